// The main job: warm start, RFT, stages of DAPO, an evaluation after each, everything written to the run directory.
// The same program whatever the config names as device, engine and sandbox.
import type { Group } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import { counts } from "../evaluate/episodes.ts";
import { type Evaluation, evaluate } from "../evaluate/evaluate.ts";
import { refinePool, SolveRates } from "../learn/curriculum.ts";
import { dapo } from "../learn/dapo.ts";
import type { StageSeconds } from "../learn/events.ts";
import { defaultAggregation } from "../learn/objective.ts";
import { rft } from "../learn/rft.ts";
import type { LearntTokens } from "../learn/types.ts";
import { Policy } from "../policy/policy.ts";
import { type ArcStage, arcStage } from "../report/arc.ts";
import type { JobConfig, StageConfig } from "./config.ts";
import { findCheckpoint, type RunDirectory } from "./directory.ts";
import { type JobContext, openJob } from "./job-context.ts";
import type { ProgressSink } from "./progress.ts";
import type { StoredTrajectory } from "./trajectories.ts";
import { warmStart } from "./warm-start.ts";

export interface JobResult {
  stages: ArcStage[];
  seconds: number;
  /** Largest resident set of this process, in MiB. */
  peakRssMiB: number;
  seed: number;
}

export interface JobOptions {
  run: RunDirectory;
  progress: ProgressSink;
  signal?: AbortSignal;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/** The trajectories of a group that infrastructure broke: kept to be looked at. */
function broken(group: Group): StoredTrajectory[] {
  const uncounted = group.trajectories.filter((trajectory) => !counts(trajectory));
  return [...uncounted, ...group.dropped].map((trajectory) => ({ trajectory, dropped: true }));
}

function sampled(group: Group): StoredTrajectory[] {
  return [...group.trajectories.filter(counts).map((trajectory) => ({ trajectory })), ...broken(group)];
}

/** Wall seconds of a stage by what they were spent on. */
class Stations {
  readonly #began = performance.now();
  readonly #spent: Required<Omit<StageSeconds, "other">> = { rollouts: 0, score: 0, learn: 0, evaluate: 0 };

  add(station: keyof Omit<StageSeconds, "other">, seconds: number): void {
    this.#spent[station] += seconds;
  }

  async time<T>(station: keyof Omit<StageSeconds, "other">, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    try {
      return await work();
    } finally {
      this.add(station, (performance.now() - begin) / 1000);
    }
  }

  total(): StageSeconds {
    const { rollouts, score, learn, evaluate: judged } = this.#spent;
    const all = (performance.now() - this.#began) / 1000;
    const other = Math.max(0, all - rollouts - score - learn - judged);
    return { rollouts, ...(score > 0 && { score }), learn, evaluate: judged, other };
  }
}

/** What a run directory remembers of a job, so that another process can go on with it. */
interface JobProgress {
  /** Stages that are done; the last one's checkpoint holds the policy. */
  stages: ArcStage[];
  rates: ReturnType<SolveRates["toJSON"]>;
  /** Wall seconds so far. */
  seconds: number;
}

/**
 * Runs the job of `config` in a run directory: from its beginning in a new one, after the last finished stage in one
 * that was opened again, with the results of a run that was never interrupted. An abort ends it after the episode or
 * micro-batch under way with ERR_TOKENRING_ABORTED; the stages that were finished stay in the directory.
 */
export async function runJob(config: JobConfig, options: JobOptions): Promise<JobResult> {
  const { run } = options;
  const saved = run.progress as JobProgress | null;
  const last = saved?.stages.at(-1);
  const checkpoint = last && (await findCheckpoint(run.path, last.name)).path;
  await using context = await openJob(config, {
    progress: options.progress,
    ...(checkpoint === undefined ? {} : { checkpoint }),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const job = new Job(config, context, options, saved);
  await job.base();
  if (config.rft) await job.rft(config.rft);
  for (const stage of config.stages) await job.dapo(stage);
  const seconds = job.seconds();
  const peakRssMiB = process.resourceUsage().maxRSS / 1024;
  await options.run.record({ type: "end", seconds, peakRssMiB });
  return { stages: job.stages, seconds, peakRssMiB, seed: config.seed };
}

class Job {
  readonly stages: ArcStage[];
  /** What training episodes so far say of each instance. */
  readonly #rates: SolveRates;
  readonly #began: number;
  readonly #config: JobConfig;
  readonly #context: JobContext;
  readonly #run: RunDirectory;
  readonly #progress: ProgressSink;
  readonly #signal: { signal?: AbortSignal };

  constructor(config: JobConfig, context: JobContext, options: JobOptions, saved: JobProgress | null) {
    this.stages = [...(saved?.stages ?? [])];
    this.#rates = SolveRates.fromJSON(saved?.rates ?? {});
    this.#began = performance.now() - 1000 * (saved?.seconds ?? 0);
    this.#config = config;
    this.#context = context;
    this.#run = options.run;
    this.#progress = options.progress;
    this.#signal = options.signal ? { signal: options.signal } : {};
  }

  /** Wall seconds, those before an interruption included. */
  seconds(): number {
    return (performance.now() - this.#began) / 1000;
  }

  /** The policy that the arc starts from: loaded, or new and warm-started on scripted demonstrations. */
  base(): Promise<void> {
    return this.#stage("base", async (stations) => {
      const { warmStart: config, seed, microBatchTokens, evaluate: evaluation } = this.#config;
      if (!config) return;
      const { policy, tokenizer, chat } = this.#context;
      this.#progress.phase("warm start", config.copySteps + config.steps);
      const steps = warmStart({
        policy,
        tokenizer,
        chat,
        config,
        limits: evaluation.limits,
        microBatchTokens,
        seed,
        ...this.#signal,
      });
      await stations.time("learn", async () => {
        for await (const { step, part, metrics } of steps) {
          await this.#run.record({ type: "step", stage: "base", step, metrics });
          this.#progress.update(step + 1, `${part}, loss ${metrics.loss.toFixed(2)}`);
        }
      });
    });
  }

  rft(config: NonNullable<JobConfig["rft"]>): Promise<void> {
    return this.#stage("rft", async (stations) => {
      const { policy, tasks } = this.#context;
      const { limits, instances, ...rest } = config;
      const pool = tasks.train.slice(0, instances);
      this.#progress.phase("rft: rollouts", pool.length * config.rollouts);
      let episodes = 0;
      let begin = performance.now();
      const lap = (): number => {
        const now = performance.now();
        const seconds = (now - begin) / 1000;
        begin = now;
        return seconds;
      };
      const events = rft({
        policy,
        rollouts: this.#context.rollouts(limits),
        instances: pool,
        config: { ...rest, microBatchTokens: this.#config.microBatchTokens },
        seed: this.#config.seed,
        ranTests: this.#context.ranTests,
        onTrajectory: () => this.#progress.update(++episodes),
        ...this.#signal,
      });
      for await (const event of events) {
        if (event.type === "rollouts") {
          stations.add("rollouts", lap());
          await this.#keep("rft", 0, event.groups.flatMap(sampled));
          await this.#run.record({ type: "rollouts", stage: "rft", summary: event.summary });
          this.#progress.log(`rft: kept ${event.summary.kept} of ${event.summary.episodes} trajectories`);
          if (event.summary.kept === 0) {
            throw new TokenringError(
              "ERR_TOKENRING_TASK",
              `rft: none of ${event.summary.episodes} trajectories was solved, so there is nothing to learn from; ` +
                "warm-start longer (warmStart.steps), take easier tasks, or sample more (rft.instances, rft.rollouts)",
            );
          }
          this.#progress.phase("rft: learning", event.summary.steps);
        } else {
          await this.#run.record({ type: "step", stage: "rft", step: event.step, metrics: event.metrics });
          this.#progress.update(event.step + 1, `loss ${event.metrics.loss.toFixed(2)}`);
        }
      }
      stations.add("learn", lap());
    });
  }

  dapo(stage: StageConfig): Promise<void> {
    return this.#stage(stage.name, async (stations) => {
      const { policy, tasks } = this.#context;
      const { name, limits, pool: which, reference: near, ...rest } = stage;
      await using reference = stage.klCoef > 0 ? await this.#reference(near) : null;
      const pool = which === "refined" ? refinePool(tasks.train, this.#rates) : tasks.train;
      if (which === "refined")
        this.#progress.log(`${name}: ${pool.length} of ${tasks.train.length} instances left`);
      const iterations = dapo({
        policy,
        rollouts: this.#context.rollouts(limits),
        instances: pool,
        ...(reference ? { reference } : {}),
        config: {
          ...rest,
          aggregation: rest.aggregation ?? defaultAggregation(rest.objective),
          maxTurns: limits.maxTurns,
          microBatchTokens: this.#config.microBatchTokens,
        },
        seed: this.#config.seed,
        purpose: name,
        ranTests: this.#context.ranTests,
        ...this.#signal,
      });
      this.#progress.phase(name, stage.iterations);
      let steps = 0;
      for await (const { iteration, groups, steps: taken, learnt, summary } of iterations) {
        stations.add("rollouts", summary.rolloutMs / 1000);
        stations.add("score", summary.scoreMs / 1000);
        stations.add("learn", summary.learnMs / 1000);
        this.#rates.add(groups.map((scored) => scored.group));
        for (const metrics of taken) {
          await this.#run.record({ type: "step", stage: name, step: steps++, iteration, metrics });
        }
        await this.#run.record({ type: "iteration", stage: name, iteration, summary });
        await this.#keep(
          name,
          iteration,
          groups.flatMap((scored) => [
            ...scored.trajectories.map((trajectory, i) => ({
              trajectory,
              reward: scored.rewards[i] as number,
              advantage: scored.advantages[i] as number,
              ...(learnt.has(trajectory.id) && { learnt: learnt.get(trajectory.id) as LearntTokens }),
            })),
            ...broken(scored.group),
          ]),
        );
        this.#progress.update(
          iteration + 1,
          `solved ${percent(summary.passRate)}, ${summary.groupsKept}/${summary.groups} groups live, ${summary.turns.toFixed(1)} turns`,
        );
      }
    });
  }

  /** The policy of a finished stage's checkpoint, the last one's where none is named; the caller disposes of it. */
  async #reference(stage = this.stages.at(-1)?.name as string): Promise<Policy> {
    const { path } = await findCheckpoint(this.#run.path, stage);
    return Policy.load(path, { device: this.#config.device, threads: this.#config.threads });
  }

  /** Runs a stage's work, saves its checkpoint and evaluates it on the held-out instances; unless that is done. */
  async #stage(name: string, work: (stations: Stations) => Promise<void>): Promise<void> {
    if (this.stages.some((stage) => stage.name === name)) return;
    const stations = new Stations();
    await this.#run.record({ type: "stage_start", stage: name });
    // Stages are trainings of their own, with other losses: moments of one would steer the next, and a stage would do
    // something else here than when it starts from the same checkpoint in a job of its own.
    await this.#context.policy.resetOptimiser();
    await work(stations);
    await this.#run.saveCheckpoint(name, (directory) => this.#context.save(directory));
    const evaluation = await stations.time("evaluate", () => this.#evaluate(name));
    await this.#run.record({ type: "evaluation", stage: name, evaluation });
    await this.#run.record({ type: "stage_end", stage: name, seconds: stations.total() });
    this.stages.push(arcStage(name, evaluation));
    const progress: JobProgress = {
      stages: this.stages,
      rates: this.#rates.toJSON(),
      seconds: this.seconds(),
    };
    await this.#run.saveProgress(progress);
    const at = [evaluation, ...(evaluation.alsoAt ?? [])].map(({ pass1, sem, budget }) => {
      const turns = budget && evaluation.alsoAt ? ` at ${budget.maxTurns} turns` : "";
      return `${percent(pass1)} ± ${percent(sem ?? 0)}${turns}`;
    });
    this.#progress.log(`${name}: Pass@1 ${at.join(", ")} on ${evaluation.instances} held-out tasks`);
  }

  async #evaluate(name: string): Promise<Evaluation> {
    const { runs, temperature, limits, alsoAt } = this.#config.evaluate;
    const { heldOut: instances, apart = {} } = this.#context.tasks;
    const tasks = instances.length + Object.values(apart).flat().length;
    this.#progress.phase(`${name}: evaluation`, tasks * runs);
    let episodes = 0;
    const { groups, ...evaluation } = await evaluate({
      rollouts: this.#context.rollouts(limits),
      instances,
      apart,
      alsoAt,
      runs,
      temperature,
      purpose: `evaluate/${name}`,
      ranTests: this.#context.ranTests,
      onTrajectory: () => this.#progress.update(++episodes),
      ...this.#signal,
    });
    await this.#keep(`${name}-evaluation`, 0, groups.flatMap(sampled));
    return evaluation;
  }

  #keep(stage: string, iteration: number, trajectories: readonly StoredTrajectory[]): Promise<void> {
    return this.#run.trajectories.write(stage, iteration, trajectories);
  }
}
