// The main job: warm start, RFT, stages of DAPO, an evaluation after each, everything written to the run directory.
// The same program whatever the config names as device, engine and sandbox.
import path from "node:path";
import type { Group, RolloutSource } from "../agent/types.ts";
import { isTokenringError, TokenringError } from "../errors.ts";
import { type Evaluation, evaluate } from "../evaluate/evaluate.ts";
import { refinePool, SolveRates } from "../learn/curriculum.ts";
import { dapo } from "../learn/dapo.ts";
import { rft } from "../learn/rft.ts";
import type { LearntTokens } from "../learn/types.ts";
import type { Policy } from "../policy/policy.ts";
import { type ArcStage, arcStage } from "../report/arc.ts";
import type { Instance } from "../tasks/types.ts";
import { span } from "../trace.ts";
import { findCheckpoint } from "./checkpoints.ts";
import type { JobConfig, LimitsConfig, StageConfig } from "./config.ts";
import type { RunDirectory } from "./directory.ts";
import { type JobContext, openJob } from "./job-context.ts";
import { type JobProgress, jobProgress, type StageCursor } from "./job-progress.ts";
import type { ProgressSink } from "./progress.ts";
import { logprobTolerance } from "./ranks.ts";
import { Replay } from "./replay.ts";
import { RollingCheckpoints } from "./rolling.ts";
import { runRollouts, type SampledTotals } from "./rollout-job.ts";
import { dapoConfig } from "./stage.ts";
import { Stations } from "./stations.ts";
import { startTracking } from "./tracking.ts";
import { brokenOf, readIndex, type StoredTrajectory, storedGroup, TrajectoryReader } from "./trajectories.ts";
import { warmStart } from "./warm-start.ts";

/** What a job came to. */
export interface JobResult {
  stages: ArcStage[];
  /** Of a job that only samples. */
  sampled?: SampledTotals;
  seconds: number;
  /** Largest resident set of this process, in MiB. */
  peakRssMiB: number;
  seed: number;
}

/** Where a job writes, whom it tells, and what stops it. */
export interface JobOptions {
  run: RunDirectory;
  progress: ProgressSink;
  signal?: AbortSignal;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/**
 * Runs the job of `config` in a run directory: from its beginning in a new one; in one that was opened again, from the
 * last finished iteration of DAPO, or the last saved step of the warm start or of RFT. Either way weights, metrics and
 * trajectories are those of a run that was never interrupted, to the bit. An abort ends it after the episode or
 * micro-batch under way with ERR_TOKENRING_ABORTED, when what was done so far is saved.
 */
export function runJob(config: JobConfig, options: JobOptions): Promise<JobResult> {
  const attributes = { "tokenring.run": options.run.path, "tokenring.seed": config.seed };
  return span("job", attributes, () => work(config, options));
}

async function work(config: JobConfig, options: JobOptions): Promise<JobResult> {
  const { run } = options;
  if (config.rollout) {
    const { totals, seconds } = await runRollouts(config, config.rollout, options);
    return { stages: [], sampled: totals, ...(await ended(run, seconds)), seed: config.seed };
  }
  const saved = jobProgress(run.progress, path.join(run.path, "state.json"));
  const name = run.checkpoint ?? saved?.stages.at(-1)?.name;
  const checkpoint = name === undefined ? undefined : (await findCheckpoint(run.path, name)).path;
  await using context = await openJob(config, {
    progress: options.progress,
    ...(checkpoint === undefined ? {} : { checkpoint, optimiser: true }),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const replay = config.replay
    ? await Replay.open({ ...config.replay, tokenizer: context.tokenizer, tasks: context.tasks })
    : null;
  for (const [i, stage] of config.stages.entries()) replay?.check(stage, `stages.${i}`);
  await using _ = await startTracking(config.tracking, run, options.progress);
  const stops = [options.signal, context.stopping].filter((signal) => signal !== undefined);
  const job = new Job(config, context, { ...options, signal: AbortSignal.any(stops) }, saved, replay);
  try {
    await job.base();
    if (config.rft) await job.rft(config.rft);
    for (const stage of config.stages) await job.dapo(stage);
  } catch (error) {
    if (isTokenringError(error, "ERR_TOKENRING_ABORTED")) await job.saveUnsaved();
    throw error;
  } finally {
    await job.settled().catch(() => {}); // the cause is thrown already
  }
  return { stages: job.stages, ...(await ended(run, job.seconds())), seed: config.seed };
}

/** Writes down that the job is done, and what it cost. */
async function ended(run: RunDirectory, seconds: number): Promise<{ seconds: number; peakRssMiB: number }> {
  const peakRssMiB = process.resourceUsage().maxRSS / 1024;
  await run.record({ type: "end", seconds, peakRssMiB });
  return { seconds, peakRssMiB };
}

/** A stage that is being trained. */
interface CurrentStage {
  name: string;
  stations: Stations;
}

class Job {
  readonly stages: ArcStage[];
  /** What training episodes so far say of each instance. */
  readonly #rates: SolveRates;
  readonly #began: number;
  readonly #config: JobConfig;
  readonly #context: JobContext;
  /** What to learn from in place of sampling. */
  readonly #replay: Replay | null;
  readonly #run: RunDirectory;
  readonly #progress: ProgressSink;
  readonly #signal: { signal?: AbortSignal };
  /** With stored trajectories the policies differ: measured at every step, and not judged. */
  readonly #tolerance: { logprobTolerance: number | null };
  /** Where the stage that was under way goes on; until that is taken up. */
  #resumed: JobProgress["current"];
  readonly #rolling: RollingCheckpoints;
  /** Steps that are done and not saved, and the version of the weights then. */
  #unsaved: { stage: CurrentStage; cursor: StageCursor; at: number; version: number } | null = null;

  constructor(
    config: JobConfig,
    context: JobContext,
    options: JobOptions,
    saved: JobProgress | null,
    replay: Replay | null,
  ) {
    this.stages = [...(saved?.stages ?? [])];
    this.#rates = SolveRates.fromJSON(saved?.rates ?? {});
    this.#began = performance.now() - 1000 * (saved?.seconds ?? 0);
    this.#config = config;
    this.#context = context;
    this.#replay = replay;
    this.#run = options.run;
    this.#rolling = new RollingCheckpoints(options.run, (directory) => context.save(directory));
    this.#progress = options.progress;
    this.#signal = options.signal ? { signal: options.signal } : {};
    this.#tolerance = { logprobTolerance: replay ? null : logprobTolerance(config) };
    this.#resumed = saved?.current ?? null;
  }

  /** Wall seconds, those before an interruption included. */
  seconds(): number {
    return (performance.now() - this.#began) / 1000;
  }

  /** The policy that the arc starts from: loaded, or new and warm-started on scripted demonstrations. */
  base(): Promise<void> {
    return this.#stage("base", async (stage, cursor) => {
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
        ...(cursor?.kind === "base" ? { start: cursor.next } : {}),
        ...this.#signal,
      });
      for await (const { step, part, metrics, next } of steps) {
        await this.#run.record({ type: "step", stage: "base", step, metrics });
        this.#progress.update(step + 1, `${part}, loss ${metrics.loss.toFixed(2)}`);
        await this.#stepped(stage, { kind: "base", next }, next.step);
      }
      stage.stations.lap("learn");
    });
  }

  rft(config: NonNullable<JobConfig["rft"]>): Promise<void> {
    return this.#stage("rft", async (stage, cursor) => {
      const { policy, tasks } = this.#context;
      const { limits, instances, ...rest } = config;
      const replay = this.#replay;
      const pool = replay ? replay.instances : tasks.train.slice(0, instances);
      const resumed =
        cursor?.kind === "rft" ? { collected: await this.#collected("rft"), startStep: cursor.step } : {};
      if (cursor === null && replay) {
        this.#progress.log(`rft: learns from ${replay.path}; instances, rollouts and limits say nothing`);
        this.#progress.phase("rft: stored trajectories", replay.episodes);
      } else if (cursor === null) this.#progress.phase("rft: rollouts", pool.length * config.rollouts);
      let episodes = 0;
      const events = rft({
        policy,
        ...this.#source(limits),
        instances: pool,
        config: { ...rest, microBatchTokens: this.#config.microBatchTokens, ...this.#tolerance },
        seed: this.#config.seed,
        ranTests: this.#context.ranTests,
        onTrajectory: () => this.#progress.update(++episodes),
        ...resumed,
        ...this.#signal,
      });
      let learning = false;
      for await (const event of events) {
        if (event.type === "rollouts") {
          stage.stations.lap("rollouts");
          await this.#keep("rft", 0, event.groups.flatMap(storedGroup));
          await this.#run.record({ type: "rollouts", stage: "rft", summary: event.summary });
          this.#progress.log(`rft: kept ${event.summary.kept} of ${event.summary.episodes} trajectories`);
          if (event.summary.kept === 0) {
            throw new TokenringError(
              "ERR_TOKENRING_TASK",
              `rft: none of ${event.summary.episodes} trajectories was solved, so there is nothing to learn from; ` +
                "warm-start longer (warmStart.steps), take easier tasks, or sample more (rft.instances, rft.rollouts)",
            );
          }
          // The weights are still those that sampled.
          await this.#saveProgress(stage, { kind: "rft", step: 0 }, this.#run.checkpoint);
          stage.stations.lap();
        } else {
          if (!learning) this.#progress.phase("rft: learning", event.steps);
          learning = true;
          await this.#run.record({ type: "step", stage: "rft", step: event.step, metrics: event.metrics });
          this.#progress.update(event.step + 1, `loss ${event.metrics.loss.toFixed(2)}`);
          await this.#stepped(stage, { kind: "rft", step: event.step + 1 }, event.step + 1);
        }
      }
      stage.stations.lap("learn");
    });
  }

  dapo(config: StageConfig): Promise<void> {
    return this.#stage(config.name, async (stage, cursor) => {
      const { policy, tasks } = this.#context;
      const { name, limits, pool: which, reference: near } = config;
      await using reference = config.klCoef > 0 ? await this.#reference(near) : null;
      const started = cursor?.kind === "dapo" ? cursor : null;
      // The rates that refined the pool have grown since.
      const all = this.#replay?.instances ?? tasks.train;
      const pool = started
        ? (this.#replay?.byKey(started.pool) ?? this.#instances(started.pool))
        : which === "refined"
          ? refinePool(all, this.#rates)
          : all;
      const what = this.#replay ? `stored groups of ${this.#replay.path}` : "instances";
      if (which === "refined" || this.#replay)
        this.#progress.log(
          `${name}: ${pool.length} of ${all.length} ${what}${which === "refined" ? " left" : ""}`,
        );
      const iterations = dapo({
        policy,
        ...this.#source(limits),
        instances: pool,
        ...(reference ? { reference } : {}),
        config: { ...dapoConfig(config, this.#config), ...this.#tolerance },
        seed: this.#config.seed,
        purpose: name,
        ranTests: this.#context.ranTests,
        ...(started ? { start: started.next } : {}),
        ...this.#signal,
      });
      this.#progress.phase(name, config.iterations);
      let steps = started?.next.step ?? 0;
      for await (const { iteration, groups, steps: taken, learnt, summary, next } of iterations) {
        stage.stations.add("rollouts", summary.rolloutMs / 1000);
        stage.stations.add("score", summary.scoreMs / 1000);
        stage.stations.add("learn", summary.learnMs / 1000);
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
            ...brokenOf(scored.group),
          ]),
        );
        this.#progress.update(
          iteration + 1,
          `solved ${percent(summary.passRate)}, ${summary.groupsKept}/${summary.groups} groups live, ${summary.turns.toFixed(1)} turns`,
        );
        // After the last one comes the stage's own checkpoint.
        if (next.iteration === config.iterations) continue;
        const ids = this.#replay?.keys(pool) ?? pool.map((instance) => instance.instance_id);
        await this.#save(stage, { kind: "dapo", next, pool: ids }, next.iteration);
      }
    });
  }

  /** Where a stage's trajectories come from. */
  #source(limits: LimitsConfig): { rollouts: RolloutSource; stored: boolean } {
    const rollouts = this.#replay ?? this.#context.rollouts(limits);
    return { rollouts, stored: this.#replay !== null };
  }

  /** Instances of the training split, by id. */
  #instances(ids: readonly string[]): Instance[] {
    const known = new Map(this.#context.tasks.train.map((instance) => [instance.instance_id, instance]));
    return ids.map((id) => {
      const instance = known.get(id);
      if (instance) return instance;
      throw new TokenringError(
        "ERR_TOKENRING_RUN_DIRECTORY",
        `${this.#run.path}: its pool has ${id}, which is no training task now; resume with the version that began it`,
      );
    });
  }

  /** The trajectories of `stage` as they were stored, in their order; which group they are of says nothing to RFT. */
  async #collected(stage: string): Promise<Group[]> {
    const group: Group = {
      instance: this.#context.tasks.train[0] as Instance,
      trajectories: [],
      dropped: [],
    };
    const reader = new TrajectoryReader(this.#run.path);
    for await (const entry of readIndex(this.#run.path)) {
      if (entry.stage !== stage || entry.dropped) continue;
      group.trajectories.push((await reader.read(entry)).trajectory);
    }
    return [group];
  }

  /** The policy of a finished stage's checkpoint, the last one's where none is named; the caller disposes of it. */
  async #reference(stage = this.stages.at(-1)?.name as string): Promise<Policy> {
    const { path } = await findCheckpoint(this.#run.path, stage);
    return this.#context.load(path);
  }

  /**
   * Runs a stage's work, saves its checkpoint and evaluates it on the held-out instances; unless that is done. `work`
   * gets the cursor to go on from, null at the beginning.
   */
  async #stage(
    name: string,
    work: (stage: CurrentStage, cursor: StageCursor | null) => Promise<void>,
  ): Promise<void> {
    if (this.stages.some((stage) => stage.name === name)) return;
    await span("stage", { "tokenring.stage": name }, () => this.#runStage(name, work));
  }

  async #runStage(
    name: string,
    work: (stage: CurrentStage, cursor: StageCursor | null) => Promise<void>,
  ): Promise<void> {
    const before = this.#resumed?.stage === name ? this.#resumed : null;
    this.#resumed = null;
    const stations = new Stations(before ? { all: before.seconds, spent: before.stations } : undefined);
    const stage: CurrentStage = { name, stations };
    if (before === null) await this.#run.record({ type: "stage_start", stage: name });
    // After the rollouts of RFT the checkpoint still is that of the stage before.
    if (before === null || (before.cursor.kind === "rft" && before.cursor.step === 0)) {
      // Stages are trainings of their own, with other losses: moments of one would steer the next, and a stage would
      // do something else here than when it starts from the same checkpoint in a job of its own.
      await this.#context.policy.resetOptimiser();
    }
    if (before?.cursor.kind !== "trained") {
      await work(stage, before?.cursor ?? null);
      await this.settled();
      this.#unsaved = null;
      await stations.time("checkpoints", () =>
        this.#run.saveCheckpoint(name, (directory) => this.#context.save(directory)),
      );
      await this.#saveProgress(stage, { kind: "trained" }, name);
    }
    const evaluation = await stations.time("evaluate", () => this.#evaluate(name));
    await this.#run.record({ type: "evaluation", stage: name, evaluation });
    await this.#run.record({ type: "stage_end", stage: name, seconds: stations.total() });
    this.stages.push(arcStage(name, evaluation));
    await this.#saveProgress(null, null, name);
    const at = [evaluation, ...(evaluation.alsoAt ?? [])].map(({ pass1, sem, budget }) => {
      const turns = budget && evaluation.alsoAt ? ` at ${budget.maxTurns} turns` : "";
      return `${percent(pass1)} ± ${percent(sem ?? 0)}${turns}`;
    });
    this.#progress.log(`${name}: Pass@1 ${at.join(", ")} on ${evaluation.instances} held-out tasks`);
  }

  /** A step is done; saves it when the last save is long enough ago. `at` counts the stage's steps. */
  async #stepped(stage: CurrentStage, cursor: StageCursor, at: number): Promise<void> {
    this.#unsaved = { stage, cursor, at, version: this.#context.policy.version };
    if (!this.#rolling.due(this.#config.checkpointSeconds)) return;
    stage.stations.lap("learn");
    await this.#save(stage, cursor, at);
    stage.stations.lap();
  }

  /** Saves steps that were done since the last save, unless the weights are those of an optimiser step after them. */
  async saveUnsaved(): Promise<void> {
    await this.settled();
    const unsaved = this.#unsaved;
    if (unsaved === null || unsaved.version !== this.#context.policy.version) return;
    unsaved.stage.stations.lap("learn");
    await this.#save(unsaved.stage, unsaved.cursor, unsaved.at);
    await this.settled();
  }

  /** Waits for what is being written. */
  settled(): Promise<void> {
    return this.#rolling.settled();
  }

  /** Weights and optimiser to a rolling checkpoint, and the progress that belongs to them, while the job goes on. */
  async #save(stage: CurrentStage, cursor: StageCursor, at: number): Promise<void> {
    this.#unsaved = null;
    await stage.stations.time("checkpoints", () =>
      this.#rolling.save(stage.name, at, this.#progressOf(stage, cursor)),
    );
  }

  async #saveProgress(
    stage: CurrentStage | null,
    cursor: StageCursor | null,
    checkpoint: string | null,
  ): Promise<void> {
    await this.settled();
    await this.#run.saveProgress(this.#progressOf(stage, cursor), checkpoint);
    this.#unsaved = null;
  }

  #progressOf(stage: CurrentStage | null, cursor: StageCursor | null): JobProgress {
    return {
      stages: this.stages,
      rates: this.#rates.toJSON(),
      seconds: this.seconds(),
      current:
        stage && cursor
          ? { stage: stage.name, seconds: stage.stations.all, stations: stage.stations.spent, cursor }
          : null,
    };
  }

  #evaluate(name: string): Promise<Evaluation> {
    return span("evaluate", { "tokenring.stage": name }, async (note) => {
      const evaluation = await this.#evaluation(name);
      note({ "tokenring.pass1": evaluation.pass1, "tokenring.episodes": evaluation.episodes });
      return evaluation;
    });
  }

  async #evaluation(name: string): Promise<Evaluation> {
    const { runs, temperature, limits, alsoAt, confidence } = this.#config.evaluate;
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
      ...(confidence ? { confidence } : {}),
      ranTests: this.#context.ranTests,
      onTrajectory: () => this.#progress.update(++episodes),
      ...this.#signal,
    });
    await this.#keep(`${name}-evaluation`, 0, groups.flatMap(storedGroup));
    return evaluation;
  }

  #keep(stage: string, iteration: number, trajectories: readonly StoredTrajectory[]): Promise<void> {
    return this.#run.trajectories.write(stage, iteration, trajectories);
  }
}
