// A job that samples and trains nothing: trajectories of one policy, stored as those of a training are.
import { mkdir, rename, rm, stat } from "node:fs/promises";
import path from "node:path";
import { type RolloutSummary, rolloutSummary } from "../learn/rollout-summary.ts";
import type { JobConfig } from "./config.ts";
import { guarded } from "./files.ts";
import type { JobOptions } from "./job.ts";
import { openJob } from "./job-context.ts";
import { jobProgress } from "./job-progress.ts";
import { readEvents } from "./metrics.ts";
import { Stations } from "./stations.ts";
import { startTracking } from "./tracking.ts";
import { storedGroup } from "./trajectories.ts";

/** The name of its stage. */
const STAGE = "rollout";

/** Totals of a job that samples. */
export interface SampledTotals {
  episodes: number;
  solved: number;
  /** Trajectories that infrastructure broke; stored, and counted nowhere else. */
  dropped: number;
  instances: number;
  instancesSolved: number;
}

/**
 * Samples `config.rollout` into a run directory, iteration by iteration, each of about as many episodes as run at once.
 * A run that was interrupted goes on after its last whole iteration, with the draws of one that was not.
 * @throws as `runJob`.
 */
export async function runRollouts(
  config: JobConfig,
  rollout: NonNullable<JobConfig["rollout"]>,
  options: JobOptions,
): Promise<{ totals: SampledTotals; seconds: number }> {
  const { run, progress, signal } = options;
  const saved = jobProgress(run.progress, path.join(run.path, "state.json"));
  const current = saved?.current ?? null;
  const before = current?.cursor.kind === "rollout" ? { ...current, next: current.cursor.next } : null;
  const totals: SampledTotals = { episodes: 0, solved: 0, dropped: 0, instances: 0, instancesSolved: 0 };
  const add = (summary: Pick<RolloutSummary, keyof SampledTotals>): void => {
    for (const key of Object.keys(totals) as (keyof SampledTotals)[]) totals[key] += summary[key];
  };
  const stations = new Stations(before ? { all: before.seconds, spent: before.stations } : undefined);
  await using context = await openJob(config, { progress, ...(signal ? { signal } : {}) });
  await using _ = await startTracking(config.tracking, run, progress);
  const { tasks } = context;
  const chosen = (rollout.split === "train" ? tasks.train : tasks.heldOut).slice(0, rollout.instances);
  const source = context.rollouts(rollout.limits, rollout.seed);
  const size = Math.max(1, Math.floor(config.episodes / rollout.rollouts));
  const iterations = Math.ceil(chosen.length / size);
  if (before === null) await run.record({ type: "stage_start", stage: STAGE });
  else {
    for (const event of await readEvents(path.join(run.path, "metrics.jsonl")))
      if (event.type === "sampled") add(event.summary);
  }

  progress.phase("rollouts", chosen.length * rollout.rollouts);
  let episodes = totals.episodes + totals.dropped;
  for (let iteration = before?.next ?? 0; iteration < iterations; iteration++) {
    const begin = performance.now();
    const groups = await source.collect({
      instances: chosen.slice(iteration * size, (iteration + 1) * size),
      rollouts: rollout.rollouts,
      purpose: STAGE,
      iteration,
      temperature: rollout.temperature,
      onTrajectory: () => progress.update(++episodes),
      ...(signal ? { signal } : {}),
    });
    const rolloutMs = performance.now() - begin;
    stations.add("rollouts", rolloutMs / 1000);
    const summary = rolloutSummary(groups, { rolloutMs, ranTests: context.ranTests });
    add(summary);
    await run.trajectories.write(STAGE, iteration, groups.flatMap(storedGroup));
    await run.record({ type: "sampled", stage: STAGE, iteration, summary });
    await keepTokenizer(run.path, (directory) => context.saveTokenizer(directory));
    await run.saveProgress({
      stages: [],
      rates: {},
      seconds: stations.all,
      current: {
        stage: STAGE,
        seconds: stations.all,
        stations: stations.spent,
        cursor: { kind: "rollout", next: iteration + 1 },
      },
    });
  }
  const seconds = stations.all;
  await run.record({ type: "stage_end", stage: STAGE, seconds: stations.total() });
  return { totals, seconds };
}

/** Whoever shows the trajectories, or learns from them, needs their tokens' texts. Whole or not at all. */
async function keepTokenizer(run: string, save: (directory: string) => Promise<void>): Promise<void> {
  const target = path.join(run, "tokenizer");
  if (await stat(target).catch(() => null)) return;
  await guarded(target, async () => {
    const building = `${target}.part`;
    await rm(building, { recursive: true, force: true });
    await mkdir(building);
    await save(building);
    await rename(building, target);
  });
}
