// The arc: what each stage's checkpoint can do on the held-out instances.
import type { Budget } from "../agent/types.ts";
import type { Evaluation } from "../evaluate/evaluate.ts";
import { mean, sem } from "../evaluate/statistics.ts";
import type { RunEvent } from "../learn/events.ts";

/** One stage of the arc. Rates are shares in [0, 1]. */
export interface ArcStage {
  name: string;
  /** Mean over the evaluation's runs of the share of held-out instances solved. */
  pass1: number;
  /** Standard error of `pass1` over the runs; null with fewer than two. */
  sem: number | null;
  /** Share of held-out instances solved in at least one of ten runs; null with fewer than ten. */
  pass10: number | null;
  /** Mean turns per episode. */
  turns: number;
  /** Episodes that the numbers come from. */
  episodes: number;
  /** What an episode had to spend, where the run says so. */
  budget?: Budget;
  /** The same stage on tasks that count in none of the numbers above, by the names of their sets. */
  apart?: Record<string, ArcStage>;
  /** The same stage at smaller budgets. */
  alsoAt?: ArcStage[];
}

/** The point of the arc that an evaluation makes. */
export function arcStage(name: string, evaluation: Evaluation): ArcStage {
  const { pass1, sem: error, passK, turns, episodes, budget, apart, alsoAt } = evaluation;
  return {
    name,
    pass1,
    sem: error,
    pass10: passK["10"] ?? null,
    turns,
    episodes,
    ...(budget ? { budget } : {}),
    ...(apart ? { apart: mapValues(apart, (one) => arcStage(name, one)) } : {}),
    ...(alsoAt ? { alsoAt: alsoAt.map((one) => arcStage(name, one)) } : {}),
  };
}

/** The stages of a run in the order of their evaluation; a stage evaluated twice counts as it was the last time. */
export function arcStages(events: readonly RunEvent[]): ArcStage[] {
  const stages = new Map<string, ArcStage>();
  for (const event of events) {
    if (event.type === "evaluation") stages.set(event.stage, arcStage(event.stage, event.evaluation));
  }
  return [...stages.values()];
}

/** The stage at whichever of its budgets it does best: what a baseline is to be measured by. */
export function kindest(stage: ArcStage): ArcStage {
  return [stage, ...(stage.alsoAt ?? [])].reduce((best, one) => (one.pass1 > best.pass1 ? one : best));
}

/**
 * The mean arc of several runs (seeds) over the stages that all of them have. `sem` is then between runs, so it also
 * holds what differs from seed to seed.
 */
export function meanArc(arcs: readonly ArcStage[][]): ArcStage[] {
  return (arcs[0] ?? []).flatMap(({ name }) => {
    const same = arcs.flatMap((arc) => arc.filter((stage) => stage.name === name).slice(0, 1));
    return same.length === arcs.length ? [meanStage(same)] : [];
  });
}

/** Of one stage in several runs; budgets and sets that not all of them have are left out. */
function meanStage(stages: readonly ArcStage[]): ArcStage {
  const [first] = stages as [ArcStage];
  const pass10 = stages.flatMap((stage) => (stage.pass10 === null ? [] : [stage.pass10]));
  const inAll = (find: (stage: ArcStage) => ArcStage | undefined): ArcStage[] => {
    const found = stages.flatMap((stage) => find(stage) ?? []);
    return found.length === stages.length ? [meanStage(found)] : [];
  };
  const at = ({ budget }: ArcStage): string => `${budget?.maxTurns}/${budget?.maxContext}`;
  const alsoAt = (first.alsoAt ?? []).flatMap((one) =>
    inAll((stage) => stage.alsoAt?.find((other) => at(other) === at(one))),
  );
  const apart = Object.keys(first.apart ?? {}).flatMap((name) =>
    inAll((stage) => stage.apart?.[name]).map((stage) => [name, stage] as const),
  );
  return {
    name: first.name,
    pass1: mean(stages.map((stage) => stage.pass1)),
    sem: sem(stages.map((stage) => stage.pass1)),
    pass10: pass10.length === stages.length ? mean(pass10) : null,
    turns: mean(stages.map((stage) => stage.turns)),
    episodes: stages.reduce((sum, stage) => sum + stage.episodes, 0),
    ...(first.budget && stages.every((stage) => at(stage) === at(first)) ? { budget: first.budget } : {}),
    ...(apart.length > 0 ? { apart: Object.fromEntries(apart) } : {}),
    ...(alsoAt.length > 0 ? { alsoAt } : {}),
  };
}

function mapValues<A, B>(record: Readonly<Record<string, A>>, map: (value: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, map(value)]));
}
