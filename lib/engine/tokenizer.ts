// Byte-level BPE tokenizers (Qwen2, Qwen3, Llama 3, our own tiny one) from Hugging Face's files.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { isTokenringError, TokenringError } from "../errors.ts";
import type { TokenizerFiles } from "./tokenizer-build.ts";
import { BYTE_CHARACTERS, bytesOfEntry } from "./tokenizer-bytes.ts";
import { type AddedToken, AddedTokenSplitter } from "./tokenizer-split.ts";
import type { Tokenizer } from "./tokenizer-types.ts";

type Json = Record<string, unknown>;

/** Texts up to this many characters are worth remembering: tool messages, prompts, short files. */
const CACHED_CHARACTERS = 4096;
const CACHED_TEXTS = 2048;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Reads `tokenizer.json` and, where there is one, `tokenizer_config.json`. Throws ERR_TOKENRING_TOKENIZER. */
async function readTokenizerFiles(directory: string): Promise<TokenizerFiles> {
  const tokenizerJson = await readJson(join(directory, "tokenizer.json"));
  if (tokenizerJson === null) {
    throw failure(`${directory} has no tokenizer.json; save the model's fast tokenizer there`);
  }
  return { tokenizerJson, tokenizerConfig: (await readJson(join(directory, "tokenizer_config.json"))) ?? {} };
}

/** The tokenizer of a directory that Hugging Face tools read. Throws ERR_TOKENRING_TOKENIZER. */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const { tokenizerJson, tokenizerConfig } = await readTokenizerFiles(directory);
  try {
    return tokenizerFromJson(tokenizerJson, tokenizerConfig);
  } catch (error) {
    if (!isTokenringError(error, "ERR_TOKENRING_TOKENIZER")) throw error;
    throw failure(`${join(directory, "tokenizer.json")}: ${error.message}`, error);
  }
}

/** The tokenizer of a parsed `tokenizer.json` and `tokenizer_config.json`. Throws ERR_TOKENRING_TOKENIZER. */
export function tokenizerFromJson(tokenizerJson: object, tokenizerConfig: object = {}): Tokenizer {
  return new ByteLevelTokenizer(tokenizerJson as Json, tokenizerConfig as Json);
}

/** Parsed JSON object, or null when there is no such file. */
export async function readJson(path: string): Promise<Json | null> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw failure(`cannot read ${path}: ${(error as Error).message}`, error);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw failure(`${path} is not JSON: ${(error as Error).message}`, error);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw failure(`${path} holds no JSON object; save the model's tokenizer there again`);
  }
  return json as Json;
}

class ByteLevelTokenizer implements Tokenizer {
  readonly vocabularySize: number;
  readonly specials: ReadonlyMap<string, number>;
  /** Bytes of every id; what an added token stands for is its text. */
  readonly #bytes: (Uint8Array | undefined)[] = [];
  readonly #isSpecial: Uint8Array;
  readonly #names: ReadonlyMap<number, string>;
  readonly #idOfByte = new Int32Array(256);
  readonly #splitter: AddedTokenSplitter;
  /** Encodes text without special tokens; null when there are no merges, so that every byte is a token. */
  readonly #merger: HuggingFaceTokenizer | null;
  readonly #cache = new Map<string, readonly number[]>();

  constructor(json: Json, config: Json) {
    const model = record(json.model, "model");
    const vocabulary = record(model.vocab, "model.vocab") as Record<string, number>;
    requireByteLevel(json, model);

    for (const [entry, id] of Object.entries(vocabulary)) {
      const bytes = bytesOfEntry(entry);
      // Some vocabularies list their special tokens too; those are added tokens below.
      if (bytes) this.#bytes[id] = bytes;
    }
    BYTE_CHARACTERS.forEach((character, byte) => {
      const id = vocabulary[character];
      if (id === undefined)
        throw failure(`the vocabulary has no token for byte ${byte}; it is not byte-level`);
      this.#idOfByte[byte] = id;
    });

    const added = readAddedTokens(json, config);
    for (const token of added) this.#bytes[token.id] = encoder.encode(token.content);
    this.vocabularySize = this.#bytes.length;
    const special = added.filter((token) => token.special);
    this.specials = new Map(special.map((token) => [token.content, token.id]));
    this.#names = new Map(special.map((token) => [token.id, token.content]));
    this.#isSpecial = new Uint8Array(this.vocabularySize);
    for (const token of special) this.#isSpecial[token.id] = 1;

    // Added tokens that are matched after normalisation stay with the library; all others are split off here,
    // because only so can text be kept from forging a special token.
    const normalizer = json.normalizer ?? null;
    const late = (token: AddedTokenEntry): boolean =>
      token.normalized && !token.special && normalizer !== null;
    this.#splitter = new AddedTokenSplitter(added.filter((token) => !late(token)));
    const merges = (model.merges as unknown[] | undefined) ?? [];
    this.#merger =
      merges.length === 0 && model.ignore_merges !== true && normalizer === null
        ? null
        : new HuggingFaceTokenizer(
            {
              ...json,
              normalizer,
              pre_tokenizer: json.pre_tokenizer ?? null,
              decoder: json.decoder ?? null,
              post_processor: null,
              added_tokens: added.filter(late).map((token) => token.source),
            },
            {},
          );
  }

  encode(text: string, options: { special?: boolean } = {}): Int32Array {
    const ids: number[] = [];
    this.#splitter.split(
      text,
      options.special === true,
      (from, to) => {
        if (this.#merger === null) this.#pushBytes(text, from, to, ids);
        else for (const id of this.#merge(this.#merger, text.slice(from, to))) ids.push(id);
      },
      (id) => ids.push(id),
    );
    return Int32Array.from(ids);
  }

  decode(tokens: ArrayLike<number>): string {
    let size = 0;
    for (let i = 0; i < tokens.length; i++) size += this.#visible(tokens[i] as number)?.length ?? 0;
    const bytes = new Uint8Array(size);
    let at = 0;
    for (let i = 0; i < tokens.length; i++) {
      const piece = this.#visible(tokens[i] as number);
      if (piece === undefined) continue;
      bytes.set(piece, at);
      at += piece.length;
    }
    return decoder.decode(bytes);
  }

  piece(token: number): string {
    const bytes = this.#bytes[token];
    if (bytes === undefined) return `<unused ${token}>`;
    const name = this.#names.get(token);
    if (name !== undefined) return name;
    try {
      return strictDecoder.decode(bytes);
    } catch {
      return Array.from(bytes, (byte) =>
        byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`,
      ).join("");
    }
  }

  bytes(token: number): Uint8Array | undefined {
    return this.#bytes[token];
  }

  specialId(text: string): number {
    const id = this.specials.get(text);
    if (id === undefined) {
      const known = [...this.specials.keys()].slice(0, 8).join(" ");
      throw failure(`"${text}" is no special token of this tokenizer (it has ${known || "none"})`);
    }
    return id;
  }

  #visible(token: number): Uint8Array | undefined {
    return this.#isSpecial[token] === 1 ? undefined : this.#bytes[token];
  }

  #pushBytes(text: string, from: number, to: number, ids: number[]): void {
    for (let i = from; i < to; i++) {
      const unit = text.charCodeAt(i);
      if (unit < 0x80) {
        ids.push(this.#idOfByte[unit] as number);
        continue;
      }
      let end = i + 1;
      while (end < to && text.charCodeAt(end) >= 0x80) end++;
      for (const byte of encoder.encode(text.slice(i, end))) ids.push(this.#idOfByte[byte] as number);
      i = end - 1;
    }
  }

  #merge(merger: HuggingFaceTokenizer, text: string): readonly number[] {
    const known = this.#cache.get(text);
    if (known !== undefined) return known;
    let ids: number[] = merger.encode(text, { add_special_tokens: false }).ids;
    if (ids.some((id) => id === undefined || this.#isSpecial[id] === 1)) {
      // The model's own vocabulary spells a special token: bytes say the same and forge nothing.
      ids = [];
      this.#pushBytes(text, 0, text.length, ids);
    }
    if (text.length <= CACHED_CHARACTERS) {
      if (this.#cache.size >= CACHED_TEXTS) this.#cache.clear();
      this.#cache.set(text, ids);
    }
    return ids;
  }
}

type AddedTokenEntry = AddedToken & { normalized: boolean; source: Json };

function readAddedTokens(json: Json, config: Json): AddedTokenEntry[] {
  const sources = new Map<number, Json>();
  for (const token of (json.added_tokens as Json[] | undefined) ?? []) sources.set(token.id as number, token);
  const more = (config.added_tokens_decoder as Record<string, Json> | undefined) ?? {};
  for (const [id, token] of Object.entries(more)) {
    if (!sources.has(Number(id))) sources.set(Number(id), { ...token, id: Number(id) });
  }
  return [...sources.entries()].map(([id, source]) => ({
    id,
    content: source.content as string,
    special: source.special === true,
    singleWord: source.single_word === true,
    leftStrip: source.lstrip === true,
    rightStrip: source.rstrip === true,
    normalized: source.normalized === true,
    source,
  }));
}

/** Other kinds (WordPiece, Unigram, prefix spaces) give a piece of text other ids than the same text in a whole. */
function requireByteLevel(json: Json, model: Json): void {
  const type = model.type ?? (Array.isArray(model.merges) ? "BPE" : undefined);
  const decoders = stepsOf(json.decoder, "decoders").map((step) => step.type);
  if (type !== "BPE" || !decoders.includes("ByteLevel")) {
    throw failure(
      `the tokenizer is ${String(type)} with decoder ${decoders.join("+") || "none"}; only byte-level BPE ` +
        "(Qwen2, Qwen3, Llama 3, GPT-2 style) is supported",
    );
  }
  for (const step of stepsOf(json.pre_tokenizer, "pretokenizers")) {
    if (step.add_prefix_space === true) {
      throw failure("the tokenizer puts a space before every text; set add_prefix_space to false");
    }
  }
}

function stepsOf(part: unknown, list: string): Json[] {
  if (part === null || part === undefined) return [];
  const step = part as Json;
  return step.type === "Sequence" ? ((step[list] as Json[] | undefined) ?? []) : [step];
}

function record(value: unknown, name: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw failure(`tokenizer.json has no "${name}" object; is it a Hugging Face fast tokenizer?`);
  }
  return value as Json;
}

function failure(message: string, cause?: unknown): TokenringError {
  return new TokenringError("ERR_TOKENRING_TOKENIZER", message, cause === undefined ? {} : { cause });
}
