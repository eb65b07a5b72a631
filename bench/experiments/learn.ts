// One variant: learn from its checkpoint until the budget is spent, evaluate, write down what it cost.
import {
  CONFIDENCE_SCORES,
  confidenceReport,
  dapo,
  dapoConfig,
  evaluate,
  type JobConfig,
  type JobContext,
  openJob,
  type ProgressSink,
  Random,
  refinePool,
  rft,
  SolveRates,
  type StageConfig,
  TokenringError,
} from "tokenring";
import type { VariantResult } from "./result.ts";
import type { Variant } from "./variants.ts";

export interface LearnOptions {
  config: JobConfig;
  variant: Variant;
  /** The checkpoint that it starts from. */
  checkpoint: string;
  /** Solve rates of the variant that it starts from, for a refined pool. */
  rates: SolveRates;
  /** Evaluation. */
  tasks: number;
  runs: number;
  /** Where the weights are written afterwards, if anywhere. */
  save?: string;
  progress: ProgressSink;
  signal: AbortSignal;
}

/** What learning used, and what it said on the way. */
interface Spent {
  episodes: number;
  iterations: number;
  steps: number;
  curve: VariantResult["curve"];
}

/** Episodes of a stage, as its config has it. */
const budgetOf = (stage: StageConfig): number => stage.iterations * stage.instances * stage.rollouts;

export async function learn(options: LearnOptions): Promise<{ result: VariantResult; rates: SolveRates }> {
  const { config, variant, progress, signal } = options;
  const begin = performance.now();
  const cpu = process.cpuUsage();
  await using context = await openJob(config, { progress, checkpoint: options.checkpoint, signal });
  // As between the stages of a job.
  await context.policy.resetOptimiser();
  const rates = new SolveRates();
  const { method } = variant;
  let spent: Spent = { episodes: 0, iterations: 0, steps: 0, curve: [] };
  if (method.kind === "dapo") spent = await byDapo(context, options, method, rates);
  if (method.kind === "rft") spent = await byRft(context, options, method.rounds);
  if (options.save !== undefined) await context.save(options.save);
  const evaluation = await measure(context, options);
  const { user, system } = process.cpuUsage(cpu);
  const result: VariantResult = {
    name: variant.name,
    about: variant.about,
    trainingEpisodes: spent.episodes,
    iterations: spent.iterations,
    steps: spent.steps,
    cpuSeconds: (user + system) / 1e6,
    seconds: (performance.now() - begin) / 1000,
    evaluation,
    curve: spent.curve,
  };
  return { result, rates };
}

async function byDapo(
  context: JobContext,
  { config, variant, rates: before, progress, signal }: LearnOptions,
  { stage, assign }: Extract<Variant["method"], { kind: "dapo" }>,
  rates: SolveRates,
): Promise<Spent> {
  const pool = stage.pool === "refined" ? refinePool(context.tasks.train, before) : context.tasks.train;
  const budget = budgetOf(stage);
  progress.phase(variant.name, budget);
  const spent: Spent = { episodes: 0, iterations: 0, steps: 0, curve: [] };
  const loop = dapo({
    policy: context.policy,
    rollouts: context.rollouts(stage.limits),
    instances: pool,
    // The budget ends it: an iteration may draw more than the recipe's.
    config: { ...dapoConfig(stage, config), iterations: budget },
    seed: config.seed,
    // One name for all variants: they meet the same instances in the same order, with the same draws.
    purpose: `experiments/${stage.name}`,
    ...(assign ? { assign } : {}),
    signal,
  });
  for await (const { groups, steps, summary } of loop) {
    rates.add(groups.map((scored) => scored.group));
    const forked = summary.credit ? summary.credit.sampledTokens / Math.max(1, summary.actionTokens) : 0;
    spent.episodes += summary.episodes + summary.dropped + forked;
    spent.iterations++;
    spent.steps += steps.length;
    spent.curve.push({
      solved: summary.passRate,
      live: summary.groupsKept,
      turns: summary.turns,
      entropy: summary.learning?.entropy ?? null,
      clipHigh: summary.learning?.clipHigh ?? null,
    });
    progress.update(Math.round(spent.episodes), `solved ${(100 * summary.passRate).toFixed(1)} %`);
    if (spent.episodes >= budget) break;
  }
  return spent;
}

/** As many episodes as the first stage of DAPO takes, with its limits. */
async function byRft(
  context: JobContext,
  { config, variant, progress, signal }: LearnOptions,
  rounds: "one" | "iterations",
): Promise<Spent> {
  const [stage] = config.stages as [StageConfig];
  if (!config.rft) throw new TokenringError("ERR_TOKENRING_CONFIG", "the run's config has no rft to repeat");
  const { limits: _, instances: __, ...options } = config.rft;
  const order: (typeof context.tasks.train)[number][] = [];
  const total = stage.iterations * stage.instances;
  for (let pass = 0; order.length < total; pass++)
    order.push(...Random.of(config.seed, "experiments/rft", pass).shuffle(context.tasks.train));
  const size = rounds === "one" ? total : stage.instances;
  progress.phase(variant.name, total * stage.rollouts);
  const spent: Spent = { episodes: 0, iterations: 0, steps: 0, curve: [] };
  for (let at = 0; at < total; at += size) {
    const events = rft({
      policy: context.policy,
      rollouts: context.rollouts(stage.limits),
      instances: order.slice(at, Math.min(total, at + size)),
      config: { ...options, rollouts: stage.rollouts, microBatchTokens: config.microBatchTokens },
      seed: config.seed,
      purpose: `experiments/${variant.name}/${at}`,
      signal,
    });
    for await (const event of events) {
      if (event.type === "step") {
        spent.steps++;
        continue;
      }
      const { episodes, dropped, solved, turns, instancesSolved } = event.summary;
      spent.episodes += episodes + dropped;
      spent.iterations++;
      const rate = episodes === 0 ? 0 : solved / episodes;
      spent.curve.push({ solved: rate, live: instancesSolved, turns, entropy: null, clipHigh: null });
      progress.update(spent.episodes, `solved ${(100 * rate).toFixed(1)} %`);
    }
  }
  return spent;
}

async function measure(
  context: JobContext,
  { config, variant, tasks, runs, progress, signal }: LearnOptions,
): Promise<VariantResult["evaluation"]> {
  const instances = context.tasks.heldOut.slice(0, tasks);
  progress.phase(`${variant.name}: evaluation`, instances.length * runs);
  let episodes = 0;
  const { groups, ...evaluation } = await evaluate({
    rollouts: context.rollouts(config.evaluate.limits),
    instances,
    runs,
    temperature: config.evaluate.temperature,
    alsoAt: config.evaluate.alsoAt,
    // The same draws for every variant: differences are paired.
    purpose: "experiments/evaluate",
    onTrajectory: () => progress.update(++episodes),
    signal,
  });
  const { pass1, sem, passK, turns, formatErrorRate, exits, perInstance, alsoAt = [] } = evaluation;
  const scored = CONFIDENCE_SCORES.map((score) => {
    const { curve, averagePrecision, bestOf } = confidenceReport(groups, score);
    return [score, { curve, averagePrecision, bestOf }] as const;
  });
  return {
    pass1,
    sem,
    passK,
    alsoAt: alsoAt.map(({ budget, pass1: rate, sem: error }) => ({
      maxTurns: budget?.maxTurns ?? 0,
      pass1: rate,
      sem: error,
    })),
    turns,
    formatErrorRate,
    submitted: evaluation.episodes === 0 ? 0 : exits.submitted / evaluation.episodes,
    perInstance: Object.fromEntries(
      Object.entries(perInstance).flatMap(([id, { solved, episodes }]) =>
        episodes === 0 ? [] : [[id, solved / episodes]],
      ),
    ),
    confidence: Object.fromEntries(scored),
  };
}
