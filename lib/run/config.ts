// What a training job is made of, as data: one schema gives the types, the defaults and the checks.
// Key names are those of the recipe's paper (arXiv 2508.03501, Table 3) where it has one.
import { z } from "zod";
import { CONFIDENCE_SCORES } from "../evaluate/confidence.ts";
import { creditFault } from "../learn/credit.ts";
import { DAPO_STAGE1 } from "../learn/dapo.ts";
import { objectiveFaults, withObjectiveDefaults } from "../learn/objective.ts";
import { OPTIMISER_DEFAULTS } from "../policy/types.ts";
import { nodeFault } from "../ranks/place.ts";
import { SANDBOX_KINDS } from "../sandbox/types.ts";

const count = z.int().positive();
const rate = z.number().positive().max(1);
/** A Node timer holds at most 2^31 - 1 milliseconds and fires at once when it is given more. */
const seconds = z.number().positive().max(2_147_483);

const adamw = {
  learningRate: rate,
  beta1: z.number().min(0).lt(1).default(OPTIMISER_DEFAULTS.beta1),
  beta2: z.number().min(0).lt(1).default(OPTIMISER_DEFAULTS.beta2),
  epsilon: z
    .number()
    .positive()
    .max(0.01, "this is AdamW's epsilon, at most 0.01; the clip range is clipLow and clipHigh")
    .default(OPTIMISER_DEFAULTS.epsilon),
  weightDecay: z.number().min(0).default(OPTIMISER_DEFAULTS.weightDecay),
  clipNorm: z.number().min(0).default(OPTIMISER_DEFAULTS.clipNorm),
};

/** A new model of the Qwen2 shape; the vocabulary's size comes from the tokenizer. */
const newModel = z.strictObject({
  hiddenSize: count,
  layers: count,
  heads: count,
  keyValueHeads: count,
  headDim: count.multipleOf(16),
  intermediateSize: count,
  maxPositions: count,
  ropeTheta: z.number().positive().default(10_000),
  initStd: z.number().positive().default(0.02),
  previousTokenBias: z.number().min(0).default(0),
});

const loadedModel = {
  /** A Jinja file in place of the model's own chat template, for models whose own rewrites earlier turns. */
  chatTemplate: z.string().min(1).optional(),
  /** Stretches the context of a model whose config.json does not: positions after `originalMaxPositions`. */
  yarn: z.strictObject({ factor: z.number().min(1), originalMaxPositions: count }).optional(),
};

const limits = z.strictObject({
  maxTurns: count,
  maxContext: count,
  maxActionTokens: count.default(48),
  observationChars: count.default(1_000),
  episodeSeconds: seconds.default(60),
  /** Wall time of one command. */
  commandSeconds: seconds.default(30),
  autoSubmit: z.boolean().default(true),
});

/** Who samples (docs/engine.md). */
const engine = z.discriminatedUnion(
  "kind",
  [
    z.strictObject({ kind: z.literal("embedded") }),
    z.strictObject({
      kind: z.literal("vllm"),
      urls: z
        .array(z.url({ protocol: /^https?$/, error: "give http://host:port" }))
        .min(1)
        .refine((urls) => new Set(urls).size === urls.length, "a server is named twice"),
      /** As the servers call the model, where they serve several. */
      model: z.string().min(1).optional(),
      /** A folder that all servers read under the same path; in the run directory where left out. */
      weights: z.string().min(1).optional(),
      dtype: z.enum(["bf16", "f32"]).default("bf16"),
      /** See VllmOptions. */
      seeded: z.boolean().default(false),
      turnSeconds: seconds.default(600),
      updateSeconds: seconds.default(600),
      /** Median of |server - policy|, in nats, over a few tokens after each update. */
      tolerance: z.number().positive().default(0.1),
    }),
  ],
  { error: "give kind: embedded or vllm" },
);

/** Scripted demonstrations that stand in for instruction tuning; only task sets that bring demonstrators have them. */
const warmStart = z.strictObject({
  copySteps: z.int().min(0),
  copyBatch: z.strictObject({ sequences: count, tokens: count }),
  steps: count,
  tokensPerStep: count.max(1_000_000),
  /** Share of the steps that learns from the expert alone; the rest from the mix of personas. */
  expertShare: z.number().min(0).max(1),
  personas: z.strictObject({
    expert: z.number().min(0),
    sloppy: z.number().min(0),
    confused: z.number().min(0),
  }),
  observationWeight: z.number().min(0).default(0.1),
  warmupSteps: z.int().min(0).default(50),
  /** The learning rate decays by a cosine to this share of itself. */
  floor: z.number().min(0).max(1).default(0.05),
  ...adamw,
});

/** How token losses become a step's: lib/learn/weights.ts. */
const aggregation = z.union(
  [z.enum(["token_mean", "sample_mean"]), z.strictObject({ drGrpo: z.number().positive() })],
  { error: "give token_mean, sample_mean or { drGrpo: L } with a constant length L" },
);

/** Names, formulas and defaults: docs/losses.md. */
const objective = {
  objective: z.enum(["ppo_clip", "gspo", "cispo"]).default("ppo_clip"),
  /** Where left out: as the objective has it (lib/learn/objective.ts). */
  clipLow: z.number().min(0).max(1).optional(),
  clipHigh: z.number().min(0).optional(),
  dualClip: z.number().min(0).default(0),
  klCoef: z.number().min(0).default(0),
  /** The checkpoint to stay near, by the name of its stage; the one that the stage starts from where not given. */
  reference: z.string().min(1).optional(),
  entropyCoef: z.number().min(0).default(0),
  aggregation: aggregation.optional(),
  oldLogprobs: z.enum(["engine", "trainer"]).default("engine"),
  tisCap: z.number().min(0).default(0),
  advantage: z
    .strictObject({
      normalise: z.enum(["std", "none"]).default("std"),
      ddof: z.union([z.literal(0), z.literal(1)], { error: "give 0 or 1" }).default(0),
      delta: z.number().min(0).default(1e-6),
    })
    .prefault({}),
};

/** Groups beyond the iteration's own, and credit by the turn: docs/learning.md. 0 turns it off. */
const credit = {
  maxExtraGroups: z.int().min(0).default(DAPO_STAGE1.maxExtraGroups),
  stepCredit: z
    .strictObject({
      turns: z.int().min(0).default(DAPO_STAGE1.stepCredit.turns),
      rollouts: count.default(DAPO_STAGE1.stepCredit.rollouts),
    })
    .prefault({}),
  shaping: z
    .strictObject({
      weight: z.number().min(0).default(DAPO_STAGE1.shaping.weight),
      turns: count.default(DAPO_STAGE1.shaping.turns),
    })
    .prefault({}),
};

const rft = z.strictObject({
  instances: count,
  rollouts: count,
  batchSize: count,
  aggregation: aggregation.default("token_mean"),
  warmupSteps: z.int().min(0).default(10),
  ...adamw,
});

/** Sampling without training (docs/replay.md): a job that has this has no other stage. */
const rollout = z.strictObject({
  split: z.enum(["train", "held-out"]).default("train"),
  /** So many instances of the split, from its first on. */
  instances: count,
  rollouts: count,
  temperature: z.number().min(0).default(1),
  /** Decides the draws; the job's seed where left out, which decides the tasks as well. */
  seed: z.int().min(0).optional(),
  limits,
});

/** Stored trajectories that RFT and DAPO learn from in place of sampling (docs/replay.md). */
const replay = z.strictObject({
  /** A run directory. */
  path: z.string().min(1),
  /** Those of its stages alone; all but evaluations where left out. */
  stages: z.array(z.string().min(1)).min(1).optional(),
});

/** Checkpoints and shards of trajectories that the job itself names. */
const RESERVED = /^(base|rft|latest|rollout)$|-evaluation$/;

const stage = z.strictObject({
  name: z
    .string()
    .regex(
      /^[a-z0-9][a-z0-9_-]{0,63}$/,
      "use at most 64 lower-case letters, digits, - and _, the first a letter or a digit",
    )
    .refine((name) => !RESERVED.test(name), "this name is the job's own; give the stage another"),
  iterations: count,
  instances: count,
  rollouts: count.min(2),
  /** Rollouts more than that, for the places of those that break or run out of time; docs/runs.md says the bias. */
  spareRollouts: z.int().min(0).default(0),
  /** Wall seconds of a group; an episode that is then under way ends as one out of time does. */
  groupSeconds: seconds.nullable().default(null),
  batchSize: count,
  ...objective,
  lengthThreshold: count,
  lengthPenalty: z.boolean().default(true),
  temperature: z.number().positive().default(1),
  filter: z.enum(["outcome", "final_reward"]).default("outcome"),
  ...credit,
  /** "refined" keeps the instances whose success rate over the stages before lies strictly between 0 and 2/3. */
  pool: z.enum(["all", "refined"]).default("all"),
  limits,
  ...adamw,
});

/** A stage that is called as one before it would be taken for done. */
const stages = z.array(stage).superRefine((list, context) => {
  for (const [i, { name }] of list.entries()) {
    const first = list.findIndex((other) => other.name === name);
    if (first < i) {
      context.addIssue({
        code: "custom",
        path: [i, "name"],
        message: `"${name}" is the name of stages.${first}; give each stage a name of its own`,
      });
    }
  }
});

const job = z.strictObject({
  seed: z.int().min(0).default(1),
  device: z.enum(["cpu", "cuda"]).default("cpu"),
  /** CPU threads of the engine, shared by the ranks of a machine; 0 = all cores. */
  threads: z.int().min(0).default(0),
  /** Ranks that compute together (docs/ranks.md). Left out: as many as a launcher started, else 1. */
  ranks: count.max(65_536).optional(),
  /** Ranks that share the tokens of a document. */
  contextParallel: count.default(1),
  /** How they exchange keys and values; "all_gather" computes the bits of one rank. */
  contextSchedule: z.enum(["ring", "all_gather", "two_level"]).default("ring"),
  /** Ranks of a node, of "two_level"; where left out, what a launcher says in LOCAL_WORLD_SIZE, else all. */
  ranksPerNode: count.optional(),
  /** What is sharded over the ranks: 0 nothing, 1 the optimiser's state, 3 the parameters too. */
  shard: z.union([z.literal(0), z.literal(1), z.literal(3)], { error: "give 0, 1 or 3" }).default(0),
  /** Ranks that hold one copy together; all where left out. */
  shardSize: count.optional(),
  /** Seconds that a rank waits for the others in one collective. */
  collectiveSeconds: seconds.default(600),
  /** Seconds of silence, heartbeats included, after which a rank is held for lost. */
  silenceSeconds: seconds.min(1).default(15),
  /** What the operands of linear layers are rounded to. */
  precision: z.enum(["float32", "bf16"]).default("float32"),
  /** Train in a fraction of the memory, for about a quarter more work and the same bits. */
  activationCheckpointing: z.boolean().default(false),
  /** What AdamW keeps its moments in: 8 bits are a quarter of the memory. */
  optimiserBits: z.union([z.literal(32), z.literal(8)]).default(32),
  /** What of a GPU's memory lies in the host's while it is not needed: the same bits in less of it. */
  offload: z.enum(["none", "checkpoints", "optimiser", "all"]).default("none"),
  model: z.union(
    [
      z.strictObject({ path: z.string().min(1), ...loadedModel }),
      // Looked for in the local Hugging Face cache, then downloaded.
      z.strictObject({
        name: z.string().min(1),
        revision: z.string().min(1).default("main"),
        ...loadedModel,
      }),
      z.strictObject({ create: newModel }),
    ],
    {
      error:
        "give path (a model's directory), name (as on the Hugging Face hub) or create (the shape of a new model)",
    },
  ),
  tasks: z.strictObject({
    /** Which of them a job can run today: lib/run/supported.ts. */
    name: z.enum(["tinyswe", "swe-rebench"]),
    /** Rows in SWE-bench's schema, of task sets that are no generator. */
    rows: z.string().min(1).optional(),
    train: count.max(1_000_000),
    heldOut: count.max(1_000_000),
    /** Held-out tasks of the families of bugs that training never sees; measured apart. */
    heldOutFamilies: z.int().min(0).max(1_000_000).default(0),
    /** Wall and CPU time of one verification's test command. */
    testSeconds: seconds.default(60),
  }),
  engine: engine.prefault({ kind: "embedded" }),
  sandbox: z
    .strictObject({
      kind: z.enum(SANDBOX_KINDS).default("auto"),
    })
    .prefault({}),
  /** Episodes that sample at the same time. */
  episodes: count.default(64),
  /** Tokens of one forward and backward pass, on each rank. */
  microBatchTokens: count.default(4096),
  /** Trackers that are written while the job runs; all of them can also be made from metrics.jsonl later. */
  tracking: z
    .strictObject({
      /** An event file in the run's folder tensorboard/. */
      tensorboard: z.boolean().default(false),
    })
    .prefault({}),
  /** Seconds of the warm start or of RFT that a crash may cost; more where saving takes over 1 % of that time. */
  checkpointSeconds: seconds.default(30),
  warmStart: warmStart.optional(),
  rft: rft.extend({ limits }).optional(),
  stages: stages.default([]),
  rollout: rollout.optional(),
  replay: replay.optional(),
  /** The same for every checkpoint, so that the arc compares like with like. */
  evaluate: z.strictObject({
    runs: count.default(10),
    temperature: z.number().min(0).default(1),
    /** How sure the policy was of an episode: gives abstention and best-of-n (docs/learning.md). */
    confidence: z.enum(CONFIDENCE_SCORES).optional(),
    limits,
    /** Smaller budgets at which the same episodes are judged as well. */
    alsoAt: z.array(z.strictObject({ maxTurns: count, maxContext: count })).default([]),
  }),
});

/** What two keys say together and each alone does not: found out here, not after the warm start. */
export const jobSchema = job.superRefine((config, context) => {
  const fault = (path: PropertyKey[], message: string): void =>
    context.addIssue({ code: "custom", path, message });
  const { ranks } = config;
  for (const key of ["contextParallel", "shardSize"] as const) {
    const value = config[key];
    if (ranks !== undefined && value !== undefined && ranks % value !== 0)
      fault([key], `${value} does not divide the ${ranks} ranks; change one of them`);
  }
  const { contextSchedule, contextParallel, ranksPerNode } = config;
  const uneven =
    contextSchedule === "two_level" && ranksPerNode !== undefined
      ? nodeFault(contextParallel, ranksPerNode)
      : null;
  if (uneven !== null) fault(["ranksPerNode"], uneven);
  const bounded: [PropertyKey[], z.output<typeof limits>][] = config.stages.map((one, i) => [
    ["stages", i],
    one.limits,
  ]);
  if (config.rft) bounded.push([["rft"], config.rft.limits]);
  if (config.rollout) bounded.push([["rollout"], config.rollout.limits]);
  // These bound the demonstrations of the warm start too.
  bounded.push([["evaluate"], config.evaluate.limits]);

  if ("create" in config.model) {
    const { heads, keyValueHeads, maxPositions } = config.model.create;
    if (heads % keyValueHeads !== 0) {
      fault(
        ["model", "create", "heads"],
        `${heads} is no multiple of keyValueHeads (${keyValueHeads}); change one of them`,
      );
    }
    const most = `more than model.create.maxPositions (${maxPositions}); lower it or raise that`;
    for (const [path, { maxContext }] of bounded)
      if (maxContext > maxPositions) fault([...path, "limits", "maxContext"], `${maxContext} is ${most}`);
    const copied = config.warmStart?.copyBatch.tokens ?? 0;
    if (copied > maxPositions) fault(["warmStart", "copyBatch", "tokens"], `${copied} is ${most}`);
  }
  const { limits: most, alsoAt } = config.evaluate;
  for (const [i, { maxTurns, maxContext }] of alsoAt.entries()) {
    const at = ["evaluate", "alsoAt", i];
    if (maxTurns > most.maxTurns)
      fault(
        [...at, "maxTurns"],
        `${maxTurns} is more than evaluate.limits.maxTurns (${most.maxTurns}); lower it`,
      );
    if (maxContext > most.maxContext)
      fault(
        [...at, "maxContext"],
        `${maxContext} is more than evaluate.limits.maxContext (${most.maxContext}); lower it`,
      );
    if (maxTurns === most.maxTurns && maxContext === most.maxContext)
      fault(at, "the same as evaluate.limits; leave it out");
  }
  const { sequences, tokens } = config.warmStart?.copyBatch ?? { sequences: 0, tokens: 0 };
  if (sequences * tokens > 1_000_000) {
    fault(
      ["warmStart", "copyBatch", "sequences"],
      `${sequences} sequences of ${tokens} tokens are more than 1000000 tokens a step; lower one of them`,
    );
  }
  if ((config.tasks.name === "swe-rebench") !== (config.tasks.rows !== undefined)) {
    const message =
      config.tasks.rows === undefined
        ? "missing; give the file of its rows"
        : "tinyswe makes its own; leave it out";
    fault(["tasks", "rows"], message);
  }
  if (config.rollout) {
    const others = (["warmStart", "rft", "replay"] as const).filter((key) => config[key] !== undefined);
    const named = [...others, ...(config.stages.length > 0 ? ["stages"] : [])].join(", ");
    if (named !== "") fault(["rollout"], `samples and trains nothing; leave it out, or leave out ${named}`);
    const { split, instances } = config.rollout;
    const there = split === "train" ? config.tasks.train : config.tasks.heldOut;
    if (instances > there)
      fault(["rollout", "instances"], `${instances} is more than the ${there} tasks of ${split}; lower it`);
  }
  if (config.replay) {
    if (!config.rft && config.stages.length === 0)
      fault(["replay"], "nothing learns from it; add rft or stages, or leave it out");
    for (const [i, stage] of config.stages.entries()) {
      const sampling = {
        maxExtraGroups: stage.maxExtraGroups > 0,
        stepCredit: stage.stepCredit.turns > 0,
        shaping: stage.shaping.weight > 0,
        spareRollouts: stage.spareRollouts > 0,
        groupSeconds: stage.groupSeconds !== null,
      };
      for (const [key, asked] of Object.entries(sampling))
        if (asked) fault(["stages", i, key], "needs episodes to be run, and replay runs none; leave it out");
    }
  }
  const checkpoints = ["base", ...(config.rft ? ["rft"] : [])];
  for (const [i, stage] of config.stages.entries()) {
    for (const { key, message } of objectiveFaults(withObjectiveDefaults(stage)))
      fault(["stages", i, key], message);
    const clash = creditFault(stage);
    if (clash) fault(["stages", i, clash.key], clash.message);
    if (stage.reference !== undefined && stage.klCoef === 0)
      fault(["stages", i, "reference"], "changes nothing while klCoef is 0; set klCoef or leave it out");
    if (stage.reference !== undefined && !checkpoints.includes(stage.reference)) {
      fault(
        ["stages", i, "reference"],
        `there is no checkpoint "${stage.reference}" before this stage; give one of ${checkpoints.join(", ")}`,
      );
    }
    checkpoints.push(stage.name);
  }
  for (const [i, { lengthPenalty, lengthThreshold, limits }] of config.stages.entries()) {
    if (lengthPenalty && lengthThreshold >= limits.maxTurns) {
      fault(
        ["stages", i, "lengthThreshold"],
        `${lengthThreshold} is not below limits.maxTurns (${limits.maxTurns}); lower it or set lengthPenalty to false`,
      );
    }
  }
  if (config.warmStart && config.warmStart.expertShare < 1) {
    const { expert, sloppy, confused } = config.warmStart.personas;
    if (expert + sloppy + confused === 0) {
      fault(
        ["warmStart", "personas"],
        "all are 0, and expertShare is below 1; give one of them a weight above 0",
      );
    }
  }
});

/** A job's config with every default filled in; recipes/tinyswe.yaml shows one, faults are named by key and line. */
export type JobConfig = z.output<typeof jobSchema>;
export type JobInput = z.input<typeof jobSchema>;
/** One stage of DAPO in a job's config. */
export type StageConfig = JobConfig["stages"][number];
export type LimitsConfig = z.output<typeof limits>;
