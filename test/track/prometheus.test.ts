// The text exposition format, read by its grammar: names, labels with escapes, a value; HELP and TYPE once a family.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { RunData } from "../../lib/report/data.ts";
import { readRun } from "../../lib/run/read.ts";
import { watchRun } from "../../lib/run/watch.ts";
import { exposition } from "../../lib/track/prometheus.ts";
import { writeRun } from "../report/fixture.ts";

/** A run's name may hold anything that a folder's name may. */
const NAME = 'a "run" \\ é\nb';
let folder: string;
let run: RunData;

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tokenring-prometheus-"));
  await writeRun(path.join(folder, NAME), 1);
  run = await readRun(path.join(folder, NAME));
});
afterAll(() => rm(folder, { recursive: true }));

interface Sample {
  labels: Record<string, string>;
  value: number;
}

/** Samples by name. Throws for a line that is not in the format, and for samples without HELP and TYPE. */
function parse(text: string): Map<string, Sample[]> {
  const families = new Map<string, { help?: true; type?: string }>();
  const samples = new Map<string, Sample[]>();
  expect(text.endsWith("\n")).toBe(true);
  for (const line of text.trimEnd().split("\n")) {
    if (line === "") continue;
    const comment = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line);
    if (comment) {
      const [, kind, name = "", rest] = comment;
      const family = families.get(name) ?? {};
      if (kind === "TYPE") expect(family.type).toBeUndefined();
      families.set(name, kind === "HELP" ? { ...family, help: true } : { ...family, type: rest as string });
      continue;
    }
    const sample =
      /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)$/.exec(line);
    if (!sample) throw new Error(`not in the format: ${line}`);
    const [, name = "", inside = "", value] = sample;
    expect(families.get(name)).toMatchObject({
      help: true,
      type: expect.stringMatching(/^(gauge|counter)$/),
    });
    const labels = Object.fromEntries(
      [...inside.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text = ""]) => [
        key,
        text.replaceAll(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c)),
      ]),
    );
    expect(Number.isFinite(Number(value))).toBe(true);
    samples.set(name, [...(samples.get(name) ?? []), { labels, value: Number(value) }]);
  }
  return samples;
}

const about = (status: string) => {
  const { name, version, seed, events, episodes } = run;
  return { name, version, seed, status, events, episodes };
};

test("the newest numbers of metrics.jsonl, under their names, with the run and the stage as labels", async () => {
  const { type, text } = await exposition(about("running"));
  expect(type).toBe("text/plain; version=0.0.4; charset=utf-8");
  const samples = parse(text);
  const value = (name: string, labels: Record<string, string> = {}): number | undefined =>
    samples
      .get(name)
      ?.find(
        (one) =>
          one.labels.run === NAME && Object.entries(labels).every(([key, text]) => one.labels[key] === text),
      )?.value;
  const last = run.events.findLast((event) => event.type === "step" && event.stage === "stage2");
  const iteration = run.events.findLast((event) => event.type === "iteration" && event.stage === "stage1");
  const evaluation = run.events.findLast((event) => event.type === "evaluation" && event.stage === "rft");
  if (last?.type !== "step" || iteration?.type !== "iteration" || evaluation?.type !== "evaluation")
    throw new Error("the run has no such events");
  expect(value("tokenring_step_gradient_norm", { stage: "stage2" })).toBe(last.metrics.gradientNorm);
  expect(value("tokenring_step_loss", { stage: "base" })).toBeDefined();
  expect(value("tokenring_iteration_pass_rate", { stage: "stage1" })).toBe(iteration.summary.passRate);
  expect(value("tokenring_iteration_mismatch_p95", { stage: "stage1" })).toBe(0);
  expect(value("tokenring_evaluation_pass1", { stage: "rft" })).toBe(evaluation.evaluation.pass1);
  expect(value("tokenring_evaluation_pass1", { stage: "rft", kind: "two" })).toBe(
    evaluation.evaluation.byKind.two?.pass1,
  );
  expect(value("tokenring_end_peak_rss_mib")).toBe(412.7);
  expect(value("tokenring_run_info", { version: run.version, seed: "1" })).toBe(1);
  expect(value("tokenring_run_status", { status: "running" })).toBe(1);
  expect(value("tokenring_run_status", { status: "ended" })).toBe(0);
  expect(value("tokenring_last_event_timestamp_seconds")).toBe((run.events.at(-1)?.at ?? 0) / 1000);
  expect(value("tokenring_events_total", { type: "step", stage: "stage2" })).toBe(42);
  const resolved = run.episodes.filter((one) => one.stage === "stage1" && one.verdict === "resolved").length;
  expect(value("tokenring_episodes_total", { stage: "stage1", verdict: "resolved" })).toBe(resolved);
});

test("a run that has not begun has a state and no numbers", async () => {
  const samples = parse((await exposition({ ...about("stopped"), events: [], episodes: [] })).text);
  expect([...samples.keys()].sort()).toEqual(["tokenring_run_info", "tokenring_run_status"]);
});

test("tokenring watch serves it under /metrics, to nobody who comes by a foreign name", async () => {
  await using watch = await watchRun(path.join(folder, NAME), { port: 0 });
  const url = new URL("metrics", watch.url);
  const response = await fetch(url);
  expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
  const samples = parse(await response.text());
  expect(samples.get("tokenring_run_status")?.find(({ value }) => value === 1)?.labels.status).toBe("ended");
  const foreign = await import("node:http").then(
    ({ get }) =>
      new Promise<number | undefined>((resolve, reject) => {
        get(url, { headers: { Host: "evil.example" } }, (answer) => {
          answer.resume();
          resolve(answer.statusCode);
        }).on("error", reject);
      }),
  );
  expect(foreign).toBe(403);
});
