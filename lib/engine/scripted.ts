// An engine that replies what a script says instead of what a model samples: demonstrations and tests go through the
// very same episode as a policy does.
import { TokenringError } from "../errors.ts";
import type { Tokenizer } from "./tokenizer-types.ts";
import type { Engine, SampledTurn, SampleOptions, Session } from "./types.ts";

/** The reply to `observation` (decoded, special tokens left out; the prompt on turn 0). One script a session. */
export type Script = (observation: string, turn: number) => string;

export interface ScriptedOptions {
  /** Called at a session's first sample, which is the `index`-th first sample of this engine. */
  script: (index: number) => Script;
  contextLimit?: number;
}

/** Logprobs are 0 and the version is 0: nothing that a script says was drawn from a policy. */
export function scriptedEngine(tokenizer: Tokenizer, options: ScriptedOptions): Engine {
  let started = 0;
  const contextLimit = options.contextLimit ?? Number.MAX_SAFE_INTEGER;
  const start = (): Script => options.script(started++);
  return {
    name: "scripted",
    vocabularySize: tokenizer.vocabularySize,
    contextLimit,
    open: () => new ScriptedSession(tokenizer, start, contextLimit),
  };
}

class ScriptedSession implements Session {
  length = 0;
  readonly #tokenizer: Tokenizer;
  readonly #start: () => Script;
  readonly #contextLimit: number;
  #script: Script | null = null;
  #turn = 0;
  /** What was extended since the last sample. */
  #unread: number[] = [];
  #disposed = false;

  constructor(tokenizer: Tokenizer, start: () => Script, contextLimit: number) {
    this.#tokenizer = tokenizer;
    this.#start = start;
    this.#contextLimit = contextLimit;
  }

  extend(tokens: ArrayLike<number>): void {
    this.#live();
    this.#fits(tokens.length);
    for (let i = 0; i < tokens.length; i++) this.#unread.push(tokens[i] as number);
    this.length += tokens.length;
  }

  async sample(options: SampleOptions): Promise<SampledTurn> {
    this.#live();
    if (options.signal?.aborted) throw new TokenringError("ERR_TOKENRING_ABORTED", "sampling was aborted");
    this.#fits(options.maxTokens);
    this.#script ??= this.#start();
    const reply = this.#script(this.#tokenizer.decode(this.#unread), this.#turn);
    const ids = [...this.#tokenizer.encode(reply), ...options.stop.slice(0, 1)];
    const finish = ids.length > options.maxTokens || options.stop.length === 0 ? "length" : "stop";
    const tokens = Int32Array.from(ids.slice(0, options.maxTokens));
    this.#unread = [];
    this.#turn++;
    this.length += tokens.length;
    return { tokens, logprobs: new Float32Array(tokens.length), finish, version: 0 };
  }

  /** A fork that continues mid-script asks for its own script, at the turn that this one has reached. */
  fork(): Session {
    this.#live();
    const fork = new ScriptedSession(this.#tokenizer, this.#start, this.#contextLimit);
    fork.length = this.length;
    fork.#unread = [...this.#unread];
    fork.#turn = this.#turn;
    return fork;
  }

  dispose(): void {
    this.#disposed = true;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #live(): void {
    if (this.#disposed)
      throw new TokenringError("ERR_TOKENRING_DISPOSED", "this scripted session is disposed");
  }

  #fits(more: number): void {
    if (this.length + more <= this.#contextLimit) return;
    throw new TokenringError(
      "ERR_TOKENRING_ENGINE",
      `a session of ${this.length} tokens cannot take ${more} more: the context limit is ${this.#contextLimit}`,
    );
  }
}
