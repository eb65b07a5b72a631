// The arc: what each stage's checkpoint can do on the held-out instances.
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
}

/** The stages of a run in the order of their evaluation; a stage evaluated twice counts as it was the last time. */
export function arcStages(events: readonly RunEvent[]): ArcStage[] {
  const stages = new Map<string, ArcStage>();
  for (const event of events) {
    if (event.type !== "evaluation") continue;
    const { pass1, sem: error, passK, turns, episodes } = event.evaluation;
    stages.set(event.stage, {
      name: event.stage,
      pass1,
      sem: error,
      pass10: passK["10"] ?? null,
      turns,
      episodes,
    });
  }
  return [...stages.values()];
}

/**
 * The mean arc of several runs (seeds) over the stages that all of them have. `sem` is then between runs, so it also
 * holds what differs from seed to seed.
 */
export function meanArc(arcs: readonly ArcStage[][]): ArcStage[] {
  const [first, ...rest] = arcs;
  if (first === undefined) return [];
  return first.flatMap(({ name }) => {
    const same = arcs.flatMap((arc) => arc.filter((stage) => stage.name === name).slice(0, 1));
    if (same.length !== rest.length + 1) return [];
    const pass10 = same.flatMap((stage) => (stage.pass10 === null ? [] : [stage.pass10]));
    return [
      {
        name,
        pass1: mean(same.map((stage) => stage.pass1)),
        sem: sem(same.map((stage) => stage.pass1)),
        pass10: pass10.length === same.length ? mean(pass10) : null,
        turns: mean(same.map((stage) => stage.turns)),
        episodes: same.reduce((sum, stage) => sum + stage.episodes, 0),
      },
    ];
  });
}
