// Opens everything that a job's stages share: tasks, tokenizer, policy, engine, sandboxes; and closes it again.
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { Rollouts } from "../agent/rollouts.ts";
import type { RolloutSource, Trajectory } from "../agent/types.ts";
import { VerdictCache } from "../agent/verdicts.ts";
import {
  type ChatTemplate,
  chatFormat,
  chatTemplateOf,
  loadChatTemplate,
  templateVariables,
} from "../engine/chat.ts";
import { loadTokenizer, tokenizerFromJson } from "../engine/tokenizer.ts";
import { buildByteTokenizer } from "../engine/tokenizer-build.ts";
import type { ChatFormat, Tokenizer } from "../engine/tokenizer-types.ts";
import { isTokenringError, TokenringError } from "../errors.ts";
import { readCarriedFiles, writeCarriedFiles } from "../policy/carried-files.ts";
import { contextLength } from "../policy/config.ts";
import { findModel } from "../policy/model-source.ts";
import { Policy, type RankOptions } from "../policy/policy.ts";
import type { RankGroup } from "../ranks/group.ts";
import { PHRASES } from "../tasks/tinyswe/phrases.ts";
import { TEST_COMMAND } from "../tasks/tinyswe/runner.ts";
import type { TaskSet } from "../tasks/types.ts";
import { checkVocabulary } from "./agent.ts";
import type { JobConfig, LimitsConfig } from "./config.ts";
import { openEngine } from "./engine.ts";
import { episodeLimits } from "./limits.ts";
import type { ProgressSink } from "./progress.ts";
import { openRanks, rankOptions } from "./ranks.ts";
import { checkSupported } from "./supported.ts";
import { openWorld } from "./world.ts";

/** What the stages of a job share, opened by `openJob`; disposing of it closes everything. */
export interface JobContext extends AsyncDisposable {
  readonly tasks: TaskSet;
  readonly tokenizer: Tokenizer;
  readonly chat: ChatFormat;
  readonly policy: Policy;
  /** Fires when a rank's launcher wants it to stop. */
  readonly stopping?: AbortSignal;
  /** Another policy, of a checkpoint, on the same ranks; the caller disposes of it. */
  load(checkpoint: string): Promise<Policy>;
  /** Episodes of this job under the given limits; `seed` decides their draws, the config's where left out. */
  rollouts(limits: LimitsConfig, seed?: number): RolloutSource;
  /** Whether an episode ran the tests; for statistics. */
  ranTests(trajectory: Trajectory): boolean;
  /** Weights with the tokenizer's files beside them: a directory that Hugging Face tools open. */
  save(directory: string): Promise<void>;
  /** The tokenizer's files alone. */
  saveTokenizer(directory: string): Promise<void>;
}

/**
 * Opens a job. `checkpoint` replaces the model that the config names, to evaluate it, or with `optimiser` to go on
 * with its training exactly.
 * Whatever was opened is closed again when a later step fails.
 * @throws ERR_TOKENRING_CONFIG for what this machine or the model cannot serve; ERR_TOKENRING_CHECKPOINT;
 * ERR_TOKENRING_TOKENIZER; ERR_TOKENRING_SANDBOX.
 */
export async function openJob(
  config: JobConfig,
  options: { progress: ProgressSink; checkpoint?: string; optimiser?: boolean; signal?: AbortSignal },
): Promise<JobContext> {
  checkSupported(config);
  const closers: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    // In reverse: the policy and its sessions go before what they act in.
    for (const closer of closers.splice(0).reverse()) await closer();
  };
  try {
    const ranks = await openRanks(config, options.signal);
    if (ranks) closers.push(() => ranks.dispose());
    const world = await openWorld(config, options);
    closers.push(async () => world[Symbol.asyncDispose]());
    const { tasks } = world;
    const from = options.checkpoint ?? (await modelDirectory(config, options));
    // A new model gets the task set's own tokenizer.
    const made = from === undefined ? buildByteTokenizer({ phrases: PHRASES }) : null;
    const tokenizer = made
      ? tokenizerFromJson(made.tokenizerJson, made.tokenizerConfig)
      : await loadTokenizer(from as string);
    // A checkpoint of the run holds what it was trained with.
    const given =
      options.checkpoint !== undefined || "create" in config.model ? undefined : config.model.chatTemplate;
    const template = made ? chatTemplateOf(made.tokenizerConfig) : await chatTemplate(given, from as string);
    const chat = chatFormat(tokenizer, template);
    const policy = await openPolicy(config, tokenizer, from, options.optimiser ?? false, ranks);
    closers.push(() => policy.dispose());
    checkFit(config, policy, tokenizer);
    const { engine, close: closeEngine } = await openEngine(config.engine, policy, options);
    closers.push(closeEngine);
    const verdicts = new VerdictCache();

    return {
      tasks,
      tokenizer,
      chat,
      policy,
      ...(ranks ? { stopping: ranks.stopping } : {}),
      load: (checkpoint) => Policy.load(checkpoint, how(config, ranks)),
      rollouts: (limits, seed = config.seed) =>
        new Rollouts({
          engine,
          tokenizer,
          chat,
          template: tasks.template,
          repository: (instance) => tasks.repository(instance),
          sandboxes: world.sandboxes,
          sandbox: { limits: { commandMs: limits.commandSeconds * 1000 } },
          verify: (instance, patch, how) => world.verify(instance, patch, how),
          verdicts,
          limits: episodeLimits(limits),
          workspace: { style: "compact" },
          seed,
          episodes: config.episodes,
        }),
      ranTests: (trajectory) => trajectory.turns.some((turn) => turn.command?.startsWith(TEST_COMMAND)),
      async save(directory) {
        await policy.save(directory, { optimiser: true, background: true });
        // A policy that was loaded carries the files that it came with.
        if (given !== undefined)
          await writeFile(path.join(directory, "chat_template.jinja"), template.source);
        if (made) await writeTokenizer(directory, made);
      },
      async saveTokenizer(directory) {
        if (made) await writeTokenizer(directory, made);
        else await writeCarriedFiles(directory, await readCarriedFiles(from as string));
      },
      [Symbol.asyncDispose]: close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** A new model's tokenizer, in the form of Hugging Face. */
async function writeTokenizer(
  directory: string,
  { tokenizerJson, tokenizerConfig }: { tokenizerJson: object; tokenizerConfig: object },
): Promise<void> {
  await writeFile(path.join(directory, "tokenizer.json"), JSON.stringify(tokenizerJson));
  await writeFile(path.join(directory, "tokenizer_config.json"), JSON.stringify(tokenizerConfig, null, 2));
}

/** Where the config's model lies, downloaded if need be; undefined for a new one. */
async function modelDirectory(
  { model }: JobConfig,
  { progress, signal }: { progress: ProgressSink; signal?: AbortSignal },
): Promise<string | undefined> {
  if ("path" in model) return model.path;
  if (!("name" in model)) return undefined;
  let begun = false;
  return findModel(model.name, {
    revision: model.revision,
    ...(signal ? { signal } : {}),
    onProgress: ({ received, size, file }) => {
      const mebibytes = (bytes: number): number => Math.ceil(bytes / 2 ** 20);
      if (!begun && size > 0) progress.phase(`download of ${model.name}, MiB`, mebibytes(size));
      begun ||= size > 0;
      if (begun) progress.update(mebibytes(received), file);
    },
  });
}

/** The model's chat template, or the one in file `given` in its place. */
async function chatTemplate(given: string | undefined, from: string): Promise<ChatTemplate> {
  if (given === undefined) return loadChatTemplate(from);
  try {
    const source = await readFile(given, "utf8");
    return { source, variables: await templateVariables(from) };
  } catch (cause) {
    if (isTokenringError(cause)) throw cause;
    throw new TokenringError(
      "ERR_TOKENRING_CONFIG",
      `model.chatTemplate: ${given} cannot be read (${(cause as NodeJS.ErrnoException).code}); check the path`,
      { cause },
    );
  }
}

/** What the config asks of a model that was loaded, found out before the work. */
function checkFit(config: JobConfig, policy: Policy, tokenizer: Tokenizer): void {
  const fault = (message: string): TokenringError => new TokenringError("ERR_TOKENRING_CONFIG", message);
  checkVocabulary(tokenizer, policy);
  const context = contextLength(policy.config);
  const limits = [
    ...config.stages.map((stage, i) => [`stages.${i}`, stage.limits] as const),
    ...(config.rft ? [["rft", config.rft.limits] as const] : []),
    ...(config.rollout ? [["rollout", config.rollout.limits] as const] : []),
    ["evaluate", config.evaluate.limits] as const,
  ];
  for (const [name, { maxContext }] of limits) {
    if (maxContext > context) {
      throw fault(`${name}.limits.maxContext is ${maxContext}; the model's context is ${context}, lower it`);
    }
  }
}

/** Where and how the job's policies run. */
function how(config: JobConfig, ranks: RankGroup | null): RankOptions {
  const { device, threads, precision, activationCheckpointing, optimiserBits, offload } = config;
  return {
    device,
    threads,
    precision,
    activationCheckpointing,
    optimiserBits,
    offload,
    ...rankOptions(config, ranks),
  };
}

/** The model in directory `from`, or a new one. */
async function openPolicy(
  config: JobConfig,
  tokenizer: Tokenizer,
  from: string | undefined,
  optimiser: boolean,
  ranks: RankGroup | null,
): Promise<Policy> {
  const yarn = "create" in config.model ? undefined : config.model.yarn;
  const ropeScaling = yarn && {
    rope_type: "yarn" as const,
    factor: yarn.factor,
    original_max_position_embeddings: yarn.originalMaxPositions,
  };
  const rank = how(config, ranks);
  if (from !== undefined || !("create" in config.model))
    return Policy.load(from as string, { ...rank, optimiser, ...(ropeScaling ? { ropeScaling } : {}) });
  const model = config.model.create;
  return Policy.create(
    {
      vocab_size: tokenizer.vocabularySize,
      hidden_size: model.hiddenSize,
      intermediate_size: model.intermediateSize,
      num_hidden_layers: model.layers,
      num_attention_heads: model.heads,
      num_key_value_heads: model.keyValueHeads,
      head_dim: model.headDim,
      max_position_embeddings: model.maxPositions,
      rope_theta: model.ropeTheta,
      rms_norm_eps: 1e-6,
      tie_word_embeddings: true,
      attention_bias: true,
    },
    { ...rank, seed: config.seed, std: model.initStd, previousTokenBias: model.previousTokenBias },
  );
}
