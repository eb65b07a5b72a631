// DAPO on whole trajectories, synchronous and on-policy: sample groups, score them, take a few clipped steps, repeat.
import type { Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import { type EpisodeStatistics, episodeStatistics } from "../evaluate/episodes.ts";
import { mean } from "../evaluate/statistics.ts";
import { type AdamWOptions, OPTIMISER_DEFAULTS, type Policy } from "../policy/types.ts";
import { Random } from "../random.ts";
import type { Instance } from "../tasks/types.ts";
import { span } from "../trace.ts";
import { checkAborted } from "./abort.ts";
import type { AdvantageOptions } from "./advantage.ts";
import { collectGroups } from "./collect.ts";
import {
  type CreditContext,
  type CreditSummary,
  creditFault,
  type ShapingOptions,
  type StepCreditOptions,
  shapedCredit,
  stepCredit,
} from "./credit.ts";
import { instanceSchedule } from "./curriculum.ts";
import { type GroupFilter, type ScoredGroup, scoreGroup } from "./filter.ts";
import { logprobMismatch } from "./measure.ts";
import { type ObjectiveOptions, objectiveFaults, policyLoss, withObjectiveDefaults } from "./objective.ts";
import { learningRate } from "./schedule.ts";
import { withReferenceLogprobs, withTrainerLogprobs } from "./score.ts";
import { adamwOptions, type StepOptions } from "./step.ts";
import { trainSteps } from "./steps.ts";
import type { LearntTokens, LogprobMismatch, RolloutSource, StepMetrics } from "./types.ts";
import { carriesLoss, type TrainingDocument, trajectoryDocument } from "./weights.ts";

/** Defaults are those of stage 1 in the paper (arXiv 2508.03501, Table 3); see DAPO_STAGE2 for stage 2. */
export interface DapoConfig extends AdamWOptions, ObjectiveOptions {
  /** Iterations of the stage. The paper gives no count per stage: 24 is one pass of its pool. */
  iterations: number;
  /** Instances per iteration: 300. */
  instances: number;
  /** Rollouts per instance, G: 10. */
  rollouts: number;
  /** Rollouts beyond G for the places of those that break or run out of time; favours short episodes: 0. */
  spareRollouts: number;
  /** Wall seconds of a group, from its first episode on; null (default): each episode has its own time alone. */
  groupSeconds: number | null;
  /** Largest number of trajectories in one optimiser step: 128. */
  batchSize: number;
  /** T_max of the length penalty; the agent's own limit must be the same: 40. */
  maxTurns: number;
  /** L_thr in turns: 10. */
  lengthThreshold: number;
  /** true. */
  lengthPenalty: boolean;
  /** What decides whether a group is learnt from: "outcome". */
  filter: GroupFilter;
  /** Groups that are drawn beyond `instances` while fewer than that carry a signal, at most: 0, no refill. */
  maxExtraGroups: number;
  /** Advantages by the turn, from rollouts that go on from it: off. */
  stepCredit: StepCreditOptions;
  /** Advantages by the turn, from the tests that pass after it: off. */
  shaping: ShapingOptions;
  /** Standard deviation with ddof 0 and delta 1e-6. */
  advantage: AdvantageOptions;
  /** Optimiser steps of linear warm-up; the rate is constant after it: 0. */
  warmupSteps: number;
  /** Tokens of one forward and backward pass: 4096. */
  microBatchTokens: number;
  /** See `trainStep`: 0, as for the embedded engine; null measures without judging. */
  logprobTolerance: number | null;
}

/** Stage 1 of the paper (arXiv 2508.03501, Table 3). */
export const DAPO_STAGE1: Readonly<DapoConfig> = {
  iterations: 24,
  instances: 300,
  rollouts: 10,
  spareRollouts: 0,
  groupSeconds: null,
  batchSize: 128,
  objective: "ppo_clip",
  clipLow: 0.2,
  clipHigh: 0.3,
  dualClip: 0,
  klCoef: 0,
  entropyCoef: 0,
  oldLogprobs: "engine",
  tisCap: 0,
  maxTurns: 40,
  lengthThreshold: 10,
  lengthPenalty: true,
  temperature: 1,
  filter: "outcome",
  maxExtraGroups: 0,
  stepCredit: { turns: 0, rollouts: 4 },
  shaping: { weight: 0, turns: 8 },
  advantage: { normalise: "std", ddof: 0, delta: 1e-6 },
  aggregation: "token_mean",
  learningRate: 1e-6,
  warmupSteps: 0,
  ...OPTIMISER_DEFAULTS,
  microBatchTokens: 4096,
  logprobTolerance: 0,
};

/** Stage 2 of the paper: twice the turns, larger batches, a narrower clip, on fewer instances. */
export const DAPO_STAGE2: Readonly<DapoConfig> = {
  ...DAPO_STAGE1,
  iterations: 20,
  instances: 100,
  batchSize: 256,
  clipHigh: 0.26,
  maxTurns: 80,
};

export interface DapoSummary extends EpisodeStatistics {
  /** Share of counted episodes that were solved. */
  passRate: number;
  /** Mean final reward, length penalty included. */
  reward: number;
  groups: number;
  /** Of them, those that were drawn beyond the iteration's own (maxExtraGroups). */
  groupsExtra: number;
  groupsKept: number;
  groupsDeadSolved: number;
  groupsDeadFailed: number;
  /** Groups of which no trajectory counts. */
  groupsEmpty: number;
  /** Trajectories that infrastructure broke. */
  dropped: number;
  /** Rollouts beyond G that their group did not need, or that ran out of time where others did not. */
  spared?: number;
  /** Trajectories that were learnt from. */
  trained: number;
  /** What credit by the turn cost, within `rolloutMs`; null without it. */
  credit: CreditSummary | null;
  /** Over the trajectories that were learnt from; with oldLogprobs "engine" over those of the first step. */
  mismatch: LogprobMismatch | null;
  /** The iteration's optimiser steps together; null when there were none. */
  learning: StepMeans | null;
  /**
   * Tokens by station, and its milliseconds of wall time: sampled by the engine (to the verdict), passed through the
   * trainer's and the reference's forward passes for old logprobs, passed through the steps (`learning`).
   */
  sampledTokens: number;
  rolloutMs: number;
  scoredTokens: number;
  scoreMs: number;
  learnMs: number;
}

/** Metrics of several steps: sums of tokens, the mean of the norms, and means over the tokens of all else. */
export type StepMeans = Omit<StepMetrics, "mismatch" | "trajectories" | "learningRate" | "learnMs"> & {
  steps: number;
};

/** Where a stage stands between two iterations, as plain JSON: all that another process needs beside the checkpoint. */
export interface DapoCursor {
  /** Iterations done. */
  iteration: number;
  /** Optimiser steps done. */
  step: number;
}

/** One iteration of `dapo`, when its steps are taken. */
export interface DapoIteration {
  iteration: number;
  groups: ScoredGroup[];
  steps: StepMetrics[];
  /** What the steps saw of each trajectory that was learnt from, by its id. */
  learnt: Map<string, LearntTokens>;
  summary: DapoSummary;
  /** Where the next iteration begins. */
  next: DapoCursor;
}

/** What `dapo` needs: a policy, a source of rollouts, a pool, and options. */
export interface DapoOptions {
  policy: Policy;
  rollouts: RolloutSource;
  /** The pool. */
  instances: readonly Instance[];
  /** Overrides of DAPO_STAGE1. */
  config?: Partial<DapoConfig>;
  /** Credit of your own: the groups, scored, with other `advantages` or `turnAdvantages`, before they are learnt from. */
  assign?: (groups: ScoredGroup[], iteration: number) => ScoredGroup[] | Promise<ScoredGroup[]>;
  /** The policy to stay near; klCoef above 0 needs it. */
  reference?: Pick<Policy, "score">;
  /** A reward of one's own, finite, in place of verdict and length penalty; what the group filter is to look at is `filter`. */
  reward?: (trajectory: Trajectory) => number;
  /**
   * `rollouts` gives stored trajectories, by whatever policy: their logprobs are what ratios are taken against (or what
   * importance weights correct for, with oldLogprobs "trainer"), and no step is held against them. Default false.
   */
  stored?: boolean;
  /** Decides the order of the pool and of the trajectories within an iteration. */
  seed: number | bigint;
  /** Names the random streams; stages of one job need different names. Default "dapo". */
  purpose?: string;
  /** `next` of the last iteration that is done, on resume. The others come out as if nothing had happened. */
  start?: DapoCursor;
  signal?: AbortSignal;
  onTrajectory?: (trajectory: Trajectory) => void;
  onStep?: (step: { iteration: number; step: number; steps: number; metrics: StepMetrics }) => void;
  /** Whether an episode ran the tests; gives `testsRunRate`. */
  ranTests?: (trajectory: Trajectory) => boolean;
}

/**
 * Splits into the fewest parts of at most `size`, as even as can be: the last step of an iteration is not a handful
 * of trajectories whose gradient counts as much as that of a full batch.
 */
export function evenParts<T>(items: readonly T[], size: number): T[][] {
  const parts = Math.ceil(items.length / size);
  return Array.from({ length: parts }, (_, i) =>
    items.slice(Math.floor((i * items.length) / parts), Math.floor(((i + 1) * items.length) / parts)),
  );
}

function documentsOf(groups: readonly ScoredGroup[], stored: boolean): TrainingDocument[] {
  return groups.flatMap((scored) =>
    scored.state !== "live"
      ? []
      : scored.trajectories.flatMap((trajectory, i) => {
          const advantage = scored.turnAdvantages?.[i] ?? (scored.advantages[i] as number);
          // A trajectory without advantage has no gradient and must not dilute the mean either.
          const document: TrainingDocument = {
            ...trajectoryDocument(trajectory, { advantage }),
            // Another policy's versions may have the same numbers.
            ...(stored && { version: null }),
          };
          const signal = [advantage].flat().some((one) => one !== 0);
          return signal && carriesLoss(document) ? [document] : [];
        }),
  );
}

function meansOf(steps: readonly StepMetrics[]): StepMeans | null {
  if (steps.length === 0) return null;
  const total = (key: "tokens" | "packedTokens"): number => steps.reduce((sum, step) => sum + step[key], 0);
  const tokens = total("tokens");
  const over = (value: (step: StepMetrics) => number): number =>
    steps.reduce((sum, step) => sum + value(step) * step.tokens, 0) / tokens;
  // Options are the same for all steps of an iteration: each has the number or none does.
  const where = (key: "referenceKl" | "tisClipped"): number | null =>
    steps.some((step) => step[key] === null) ? null : over((step) => step[key] as number);
  return {
    steps: steps.length,
    loss: mean(steps.map((step) => step.loss)),
    gradientNorm: mean(steps.map((step) => step.gradientNorm)),
    entropy: over((step) => step.entropy),
    clipLow: over((step) => step.clipLow),
    clipHigh: over((step) => step.clipHigh),
    clipDual: over((step) => step.clipDual),
    approximateKl: over((step) => step.approximateKl),
    referenceKl: where("referenceKl"),
    tisClipped: where("tisClipped"),
    tokens,
    packedTokens: total("packedTokens"),
    ...(steps.every((step) => step.imbalance !== undefined) && {
      imbalance: mean(steps.map((step) => step.imbalance as number)),
    }),
  };
}

function summarise(
  groups: readonly ScoredGroup[],
  { ranTests, stored }: Pick<DapoOptions, "ranTests" | "stored">,
): Omit<
  DapoSummary,
  | "groupsExtra"
  | "credit"
  | "trained"
  | "mismatch"
  | "learning"
  | "rolloutMs"
  | "scoredTokens"
  | "scoreMs"
  | "learnMs"
> {
  const episodes = groups.flatMap((scored) => scored.trajectories);
  const statistics = episodeStatistics(episodes, ranTests);
  const inState = (state: ScoredGroup["state"]): number =>
    groups.filter((scored) => scored.state === state).length;
  const sampled = groups.reduce(
    (sum, { group }) => sum + group.trajectories.length + group.dropped.length,
    0,
  );
  return {
    ...statistics,
    passRate: episodes.length === 0 ? 0 : statistics.solved / episodes.length,
    reward: mean(groups.flatMap((scored) => scored.rewards)),
    groups: groups.length,
    groupsKept: inState("live"),
    groupsDeadSolved: inState("solved"),
    groupsDeadFailed: inState("failed"),
    groupsEmpty: inState("empty"),
    dropped: sampled - episodes.length,
    ...(groups.some(({ group }) => group.spared !== undefined) && {
      spared: groups.reduce((sum, { group }) => sum + (group.spared ?? 0), 0),
    }),
    sampledTokens: stored ? 0 : Math.round(statistics.actionTokens * statistics.episodes),
  };
}

/** The config in full. Throws INVALID_ARGUMENT for options that contradict each other. */
function configOf(options: DapoOptions, purpose: string): DapoConfig {
  const config: DapoConfig = {
    ...DAPO_STAGE1,
    ...withObjectiveDefaults({ objective: DAPO_STAGE1.objective, ...options.config }),
  };
  const fault = objectiveFaults(config)[0];
  const refuse = (what: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${purpose}: ${what}`);
  };
  if (fault) refuse(`${fault.key}: ${fault.message}`);
  if (config.klCoef > 0 && !options.reference)
    refuse(`klCoef is ${config.klCoef} but there is no reference; give the policy to stay near`);
  const clash = creditFault(config);
  if (clash) refuse(`${clash.key}: ${clash.message}`);
  if (options.instances.length === 0) refuse("the pool has no instances; widen the filter or refine it less");
  return config;
}

/** The groups with the credit that the config asks for. */
async function credited(
  groups: ScoredGroup[],
  { stepCredit: step, shaping }: DapoConfig,
  context: CreditContext,
): Promise<{ groups: ScoredGroup[]; credit: CreditSummary | null }> {
  if (step.turns === 0 && shaping.weight === 0) return { groups, credit: null };
  const given = await (step.turns > 0
    ? stepCredit(groups, step, context)
    : shapedCredit(groups, shaping, context));
  return { groups: given.groups, credit: given.summary };
}

/** Old logprobs by the trainer and logprobs by the reference, where the options ask for them. */
async function scored(
  documents: TrainingDocument[],
  config: DapoConfig,
  options: DapoOptions,
  where: string,
): Promise<{ documents: TrainingDocument[]; passes: number }> {
  const { temperature, microBatchTokens, oldLogprobs, klCoef } = config;
  const { policy, reference, signal } = options;
  const how = { temperature, microBatchTokens, ...(signal ? { signal } : {}) };
  let out = documents;
  let passes = 0;
  if (oldLogprobs === "trainer") {
    out = await withTrainerLogprobs(out, { ...how, policy, where: `${where}, old logprobs` });
    passes++;
  }
  if (klCoef > 0 && reference) {
    out = await withReferenceLogprobs(out, {
      ...how,
      policy: reference,
      where: `${where}, logprobs of the reference`,
    });
    passes++;
  }
  return { documents: out, passes };
}

/** The iteration's mismatch: over all documents where the trainer scored them, else that of the first step. */
function mismatchOf(
  documents: readonly TrainingDocument[],
  steps: readonly StepMetrics[],
): LogprobMismatch | null {
  const differences: number[] = [];
  for (const { engineLogprob, oldLogprob, mask } of documents) {
    if (!engineLogprob || !oldLogprob) return steps[0]?.mismatch ?? null;
    mask.forEach((value, i) => {
      if (value !== 0) differences.push((oldLogprob[i] as number) - (engineLogprob[i] as number));
    });
  }
  return logprobMismatch(differences);
}

/**
 * One stage of DAPO. Each iteration takes the pool's next instances, samples G rollouts of each from the current
 * weights, keeps the groups with a signal (without `maxExtraGroups` no refill: the number of steps varies, and may be
 * none) and takes clipped steps against the logprobs of the sampling policy. Works only as fast as it is iterated; stop
 * iterating to stop. An abort throws ERR_TOKENRING_ABORTED; weights may then stand between two iterations: resume from a
 * checkpoint.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for options that contradict each other; ERR_TOKENRING_LOGPROB_MISMATCH when sampler and
 * trainer differ; ERR_TOKENRING_NON_FINITE; what `rollouts` throws.
 */
export async function* dapo(options: DapoOptions): AsyncGenerator<DapoIteration, void, undefined> {
  const { policy, instances, seed, signal, purpose = "dapo" } = options;
  const start = options.start ?? { iteration: 0, step: 0 };
  const config = configOf(options, purpose);
  const loss = policyLoss(config);
  const reward = options.reward ?? {
    maxTurns: config.maxTurns,
    lengthThreshold: config.lengthThreshold,
    lengthPenalty: config.lengthPenalty,
  };
  const schedule = instanceSchedule(instances, config.instances, seed, `${purpose}/pool`);
  for (let skipped = 0; skipped < start.iteration; skipped++) schedule.next();
  let done = start.step;

  for (let iteration = start.iteration; iteration < config.iterations; iteration++) {
    const where = `${purpose}, iteration ${iteration}`;
    checkAborted(signal, where);
    const attributes = { "tokenring.stage": purpose, "tokenring.iteration": iteration };
    yield await span("iteration", attributes, async (note): Promise<DapoIteration> => {
      const begin = performance.now();
      const draw = { rollouts: options.rollouts, purpose, iteration, seed, signal };
      const { groups: own, extra } = await collectGroups({
        ...draw,
        instances: schedule.next().value,
        pool: instances,
        maxExtraGroups: config.maxExtraGroups,
        group: config.rollouts,
        score: (group) => scoreGroup(group, { reward, advantage: config.advantage, filter: config.filter }),
        temperature: config.temperature,
        spare: config.spareRollouts,
        groupSeconds: config.groupSeconds,
        onTrajectory: options.onTrajectory,
      });
      const { groups: scoredGroups, credit } = await credited(own, config, {
        ...draw,
        reward,
        advantage: config.advantage,
        temperature: config.temperature,
      });
      const groups = options.assign ? await options.assign(scoredGroups, iteration) : scoredGroups;
      const sampled = performance.now();

      const order = Random.of(seed, `${purpose}/order`, iteration).shuffle(
        documentsOf(groups, options.stored ?? false),
      );
      const begun = performance.now();
      const { documents, passes } = await scored(order, config, options, where);
      const learning = performance.now();
      const batches = evenParts(documents, config.batchSize);
      const steps: StepMetrics[] = [];
      const learnt = new Map<string, LearntTokens>();
      const plans = batches.map((batch, step): StepOptions => {
        const rate = learningRate(done + step, {
          peak: config.learningRate,
          warmupSteps: config.warmupSteps,
        });
        return {
          policy,
          documents: batch,
          loss,
          optimiser: { ...adamwOptions(config), learningRate: rate },
          aggregation: config.aggregation,
          microBatchTokens: config.microBatchTokens,
          tisCap: config.tisCap,
          where: `${where}, step ${done + step}`,
          onLearnt: (id, tokens) => learnt.set(id, { step, ...tokens }),
          ...(config.logprobTolerance === null ? {} : { logprobTolerance: config.logprobTolerance }),
          ...(signal ? { signal } : {}),
        };
      });
      for await (const metrics of trainSteps(plans, { ahead: true })) {
        done++;
        options.onStep?.({ iteration, step: steps.length, steps: batches.length, metrics });
        steps.push(metrics);
      }
      const summary: DapoSummary = {
        ...summarise(groups, options),
        groupsExtra: extra,
        credit,
        trained: documents.length,
        mismatch: mismatchOf(documents, steps),
        learning: meansOf(steps),
        rolloutMs: sampled - begin,
        scoredTokens: passes * documents.reduce((sum, { tokens }) => sum + tokens.length, 0),
        scoreMs: learning - begun,
        learnMs: performance.now() - learning,
      };
      note({
        "tokenring.episodes": summary.episodes,
        "tokenring.pass_rate": summary.passRate,
        "tokenring.reward": summary.reward,
        "tokenring.groups_kept": summary.groupsKept,
        "tokenring.optimiser_steps": steps.length,
      });
      return { iteration, groups, steps, learnt, summary, next: { iteration: iteration + 1, step: done } };
    });
  }
}
