// A run as Prometheus reads it: the newest number of everything that metrics.jsonl holds, in the text exposition format.
import { Counter, Gauge, Registry } from "prom-client";
import type { LoggedEvent } from "../learn/events.ts";
import { scalarsOf } from "./scalars.ts";

/** What is told of a run. */
export interface WatchedRun {
  name: string;
  version: string;
  seed: number;
  /** "running", "ended" or "stopped". */
  status: string;
  events: readonly LoggedEvent[];
  episodes: readonly { stage: string; verdict: string; exit: string }[];
}

/** passRate -> pass_rate; whatever else a name may not hold becomes "_". */
const snake = (name: string): string =>
  name
    .replaceAll("MiB", "Mib")
    .replaceAll(/([a-z0-9])([A-Z])/g, "$1_$2")
    .replaceAll(/[^A-Za-z0-9]+/g, "_")
    .toLowerCase();

const SOURCES: Partial<Record<LoggedEvent["type"], string>> = {
  step: "the newest optimiser step of a stage",
  rollouts: "what rejection fine-tuning collected",
  sampled: "the newest iteration of sampling without training",
  iteration: "the newest iteration of a stage",
  evaluation: "the evaluation of a stage's checkpoint",
  stage_end: "the end of a stage",
  end: "the end of the job",
};

/** The last event of each kind and stage. */
function newest(events: readonly LoggedEvent[]): LoggedEvent[] {
  const found = new Map<string, LoggedEvent>();
  for (const event of events) found.set(`${event.type} ${"stage" in event ? event.stage : ""}`, event);
  return [...found.values()];
}

const LABELS = ["stage", "kind", "set", "turns"];

/** The numbers of `run` as text, and that text's media type. Steps and iterations of a stage are counters. */
export async function exposition(run: WatchedRun): Promise<{ type: string; text: string }> {
  const registry = new Registry();
  registry.setDefaultLabels({ run: run.name });
  const registers = [registry];
  const gauges = new Map<string, Gauge>();
  const gauge = (name: string, help: string, labelNames: readonly string[]): Gauge => {
    const known = gauges.get(name) ?? new Gauge({ name, help, labelNames, registers });
    gauges.set(name, known);
    return known;
  };
  const { version, seed, status, events, episodes } = run;
  gauge("tokenring_run_info", "Version and seed of the run.", ["version", "seed"]).set(
    { version, seed: String(seed) },
    1,
  );
  for (const one of ["running", "ended", "stopped"])
    gauge("tokenring_run_status", "1 for the state that the run is in.", ["status"]).set(
      { status: one },
      one === status ? 1 : 0,
    );
  const last = events.at(-1);
  if (last)
    gauge("tokenring_last_event_timestamp_seconds", "When the run last wrote to metrics.jsonl.", []).set(
      last.at / 1000,
    );
  const counted = new Counter({
    name: "tokenring_events_total",
    help: "Lines of metrics.jsonl by their type.",
    labelNames: ["type", "stage"],
    registers,
  });
  for (const event of events) counted.inc({ type: event.type, stage: "stage" in event ? event.stage : "" });
  const ended = new Counter({
    name: "tokenring_episodes_total",
    help: "Episodes by verdict and by how they ended.",
    labelNames: ["stage", "verdict", "exit"],
    registers,
  });
  for (const { stage, verdict, exit } of episodes) ended.inc({ stage, verdict, exit });
  for (const event of newest(events)) {
    for (const { type, stage, path, labels, value } of scalarsOf(event)) {
      const help = `${path.join(".")} of ${SOURCES[type]}.`;
      gauge(`tokenring_${[type, ...path].map(snake).join("_")}`, help, LABELS).set(
        { ...(stage === undefined ? {} : { stage }), ...labels },
        value,
      );
    }
  }
  return { type: registry.contentType, text: await registry.metrics() };
}
