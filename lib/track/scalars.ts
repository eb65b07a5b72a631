// The numbers of metrics.jsonl, one by one, as trackers take them. Names are those of the file: a new metric needs no
// line here.
import type { Evaluation } from "../evaluate/evaluate.ts";
import type { LoggedEvent } from "../learn/events.ts";

/** One number of an event. */
export interface Scalar {
  /** What kind of event it is from: "step", "iteration", "evaluation", … */
  type: LoggedEvent["type"];
  /** The stage; undefined for the end of a job. */
  stage?: string;
  /** Where it stands in the event: ["mismatch", "p95"]. */
  path: readonly string[];
  /** Of an evaluation: which part of it (kind of instances, set apart, smaller budget in turns). */
  labels: Readonly<Record<string, string>>;
  /** Finite. */
  value: number;
}

type Found = Pick<Scalar, "path" | "labels" | "value">;

/** Every finite number in `value`; of arrays none, since their entries have no names. */
function* numbersIn(
  value: object,
  leaveOut: ReadonlySet<string> = new Set(),
  path: readonly string[] = [],
): Generator<Found, void, undefined> {
  for (const [key, entry] of Object.entries(value) as [string, unknown][]) {
    if (leaveOut.has(key)) continue;
    const at = [...path, key];
    if (typeof entry === "number") {
      if (Number.isFinite(entry)) yield { path: at, labels: {}, value: entry };
    } else if (typeof entry === "object" && entry !== null && !Array.isArray(entry))
      yield* numbersIn(entry, leaveOut, at);
  }
}

const PARTS_OF_EVALUATION = new Set(["perInstance", "byKind", "apart", "alsoAt"]);

function* ofEvaluation(evaluation: Evaluation): Generator<Found, void, undefined> {
  yield* numbersIn(evaluation, PARTS_OF_EVALUATION);
  const parts: [label: string, name: string, numbers: object][] = [
    ...Object.entries(evaluation.byKind).map(
      ([kind, one]) => ["kind", kind, one] as [string, string, object],
    ),
    ...Object.entries(evaluation.apart ?? {}).map(
      ([set, one]) => ["set", set, one] as [string, string, object],
    ),
    ...(evaluation.alsoAt ?? []).map(
      (one) => ["turns", `${one.budget?.maxTurns}`, one] as [string, string, object],
    ),
  ];
  for (const [label, name, numbers] of parts)
    for (const found of numbersIn(numbers, PARTS_OF_EVALUATION))
      yield { ...found, labels: { [label]: name } };
}

/** The numbers of one event, in the order in which they stand there. */
export function* scalarsOf(event: LoggedEvent): Generator<Scalar, void, undefined> {
  const of = function* (found: Iterable<Found>): Generator<Scalar, void, undefined> {
    const stage = "stage" in event ? { stage: event.stage } : {};
    for (const one of found) yield { type: event.type, ...stage, ...one };
  };
  switch (event.type) {
    case "step":
      return yield* of(numbersIn(event.metrics));
    case "rollouts":
    case "sampled":
    case "iteration":
      return yield* of(numbersIn(event.summary));
    case "evaluation":
      return yield* of(ofEvaluation(event.evaluation));
    case "stage_end":
      return yield* of(numbersIn({ seconds: event.seconds }));
    case "end":
      return yield* of(numbersIn({ seconds: event.seconds, peakRssMiB: event.peakRssMiB }));
    case "stage_start":
      return;
  }
}
