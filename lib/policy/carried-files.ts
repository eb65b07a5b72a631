// What lies beside the weights of a model and belongs to it: tokenizer, chat template, generation settings. The policy
// carries the files from where it was loaded to where it is saved.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TokenringError } from "../errors.ts";

const GENERATION = "generation_config.json";

/** Carried as they are, but for generation_config.json. */
export const CARRIED_FILES: readonly string[] = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "chat_template.jinja",
  "chat_template.json",
  GENERATION,
];

/** Bytes by name; small beside the weights. */
export type CarriedFiles = ReadonlyMap<string, Uint8Array>;

/** Those of `CARRIED_FILES` that `directory` has. */
export async function readCarriedFiles(directory: string): Promise<CarriedFiles> {
  const files = new Map<string, Uint8Array>();
  for (const name of CARRIED_FILES) {
    try {
      files.set(name, await readFile(join(directory, name)));
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "ENOENT")
        throw fault(join(directory, name), "read", cause);
    }
  }
  const generation = files.get(GENERATION);
  if (generation !== undefined) files.set(GENERATION, plainSampling(generation, join(directory, GENERATION)));
  return files;
}

/** Makes the directory. */
export async function writeCarriedFiles(directory: string, files: CarriedFiles): Promise<void> {
  for (const [name, bytes] of files) {
    try {
      await mkdir(directory, { recursive: true });
      await writeFile(join(directory, name), bytes);
    } catch (cause) {
      throw fault(join(directory, name), "written", cause);
    }
  }
}

/** Of generation_config.json, what does not change the distribution that is sampled. */
const KEPT = /^(max_length|max_new_tokens|transformers_version|_from_model_config|.*_token_id)$/;

/**
 * A generation_config.json that samples from the policy itself. vLLM and transformers take their defaults from the
 * file: the top_k, top_p and penalties that a model was published with would make samples of another distribution than
 * the one that is trained, without a word. 0 is how both spell "no top_k".
 */
function plainSampling(bytes: Uint8Array, path: string): Uint8Array {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(bytes));
  } catch (cause) {
    throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${path} is not JSON; remove it or write it again`, {
      cause,
      details: { path },
    });
  }
  const kept = Object.entries((json ?? {}) as object).filter(([key]) => KEPT.test(key));
  const plain = { do_sample: true, temperature: 1, top_p: 1, top_k: 0, repetition_penalty: 1 };
  return new TextEncoder().encode(`${JSON.stringify({ ...Object.fromEntries(kept), ...plain }, null, 2)}\n`);
}

function fault(path: string, done: "read" | "written", cause: unknown): TokenringError {
  return new TokenringError(
    "ERR_TOKENRING_CHECKPOINT",
    `${path} cannot be ${done} (${(cause as NodeJS.ErrnoException).code})`,
    { cause, details: { path } },
  );
}
