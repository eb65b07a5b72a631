// A trained agent to act with: found by the path of a run, of one of its checkpoints, or of any model's directory.
import { stat } from "node:fs/promises";
import path from "node:path";
import { type ChatTemplate, chatFormat, loadChatTemplate } from "../engine/chat.ts";
import { loadTokenizer } from "../engine/tokenizer.ts";
import type { ChatFormat, Tokenizer } from "../engine/tokenizer-types.ts";
import { TokenringError } from "../errors.ts";
import { Policy, type RankOptions } from "../policy/policy.ts";
import { findCheckpoint } from "./checkpoints.ts";
import type { JobConfig } from "./config.ts";
import { parseConfig } from "./config-file.ts";
import { readManifest } from "./directory.ts";

/** Where an agent's weights lie, and the job that trained them where that is known. */
export interface FoundAgent {
  /** Weights, tokenizer and chat template. */
  directory: string;
  /** The checkpoint's name, or that of the directory. */
  name: string;
  /** The run's config; null for a model that no run here trained. */
  config: JobConfig | null;
}

/** A policy with all that it needs to read and write text. */
export interface Agent extends AsyncDisposable {
  readonly policy: Policy;
  readonly tokenizer: Tokenizer;
  readonly chat: ChatFormat;
}

const exists = async (file: string): Promise<boolean> => (await stat(file).catch(() => null)) !== null;

async function configOf(run: string): Promise<JobConfig> {
  const { config } = await readManifest(run);
  return parseConfig(JSON.stringify(config), path.join(run, "run.json"));
}

/**
 * The agent at `source`: a run directory (its newest checkpoint, or the one named `checkpoint`), a checkpoint in it, or
 * a directory with a model in the form of Hugging Face.
 * @throws ERR_TOKENRING_CHECKPOINT when there is none; ERR_TOKENRING_RUN_DIRECTORY when the run lacks that checkpoint.
 */
export async function findAgent(source: string, checkpoint?: string): Promise<FoundAgent> {
  const at = path.resolve(source);
  const refuse = (why: string): TokenringError =>
    new TokenringError("ERR_TOKENRING_CHECKPOINT", `${source}: ${why}`, { details: { source } });
  if (!(await exists(at)))
    throw refuse("there is no such directory; give a run, a checkpoint of one, or a model's directory");
  if (await exists(path.join(at, "run.json"))) {
    const { name, path: directory } = await findCheckpoint(source, checkpoint);
    return { directory, name, config: await configOf(at) };
  }
  if (!(await exists(path.join(at, "config.json")))) {
    throw refuse(
      "holds neither a run (run.json) nor a model (config.json); give a run, a checkpoint of one, or a model's directory",
    );
  }
  if (checkpoint !== undefined)
    throw refuse(`is a model, so there is no checkpoint ${checkpoint} to choose; leave the checkpoint out`);
  const run = path.dirname(path.dirname(at));
  const trained =
    path.basename(path.dirname(at)) === "checkpoints" && (await exists(path.join(run, "run.json")));
  return { directory: at, name: path.basename(at), config: trained ? await configOf(run) : null };
}

/** Throws ERR_TOKENRING_CONFIG when the tokenizer has ids that the model knows nothing of. */
export function checkVocabulary(tokenizer: Tokenizer, policy: Pick<Policy, "config">): void {
  if (tokenizer.vocabularySize <= policy.config.vocab_size) return;
  throw new TokenringError(
    "ERR_TOKENRING_CONFIG",
    `the tokenizer has ${tokenizer.vocabularySize} tokens, the model ${policy.config.vocab_size}; ` +
      "put the model's own tokenizer beside its weights",
  );
}

/**
 * Loads the agent that `findAgent` found, as its run had it where that is known. `template` stands in for the model's
 * own chat template.
 * @throws ERR_TOKENRING_CHECKPOINT, ERR_TOKENRING_TOKENIZER, ERR_TOKENRING_CONFIG naming what does not fit.
 */
export async function openAgent(
  { directory, config }: Pick<FoundAgent, "directory" | "config">,
  options: RankOptions & { template?: ChatTemplate } = {},
): Promise<Agent> {
  const { template, ...rank } = options;
  const tokenizer = await loadTokenizer(directory);
  const chat = chatFormat(tokenizer, template ?? (await loadChatTemplate(directory)));
  const policy = await Policy.load(directory, {
    ...(config ? { device: config.device, threads: config.threads, precision: config.precision } : {}),
    ...rank,
  });
  try {
    checkVocabulary(tokenizer, policy);
  } catch (error) {
    await policy.dispose();
    throw error;
  }
  return { policy, tokenizer, chat, [Symbol.asyncDispose]: () => policy.dispose() };
}
