// The engine inside the addon: samples from the very weights that the policy trains, on the same rank.
import { TokenringError } from "../errors.ts";
import type { NativeRank, NativeSampleRequest } from "../ops/binding.ts";
import { withSignal } from "../ops/jobs.ts";
import { contextLength } from "../policy/config.ts";
import type { Policy } from "../policy/policy.ts";
import { tokenIds } from "./token-ids.ts";
import type { Engine, SampledTurn, SampleOptions, Session } from "./types.ts";

/**
 * The engine that samples from `policy`. Its sessions end with the policy; new weights drop what they have cached
 * and their tokens are read again, so a session outlives an optimiser step. Logprobs equal `policy.score`'s at the
 * same temperature bit for bit.
 */
export function embeddedEngine(policy: Policy): Engine {
  return {
    name: "embedded",
    vocabularySize: policy.config.vocab_size,
    contextLimit: contextLength(policy.config),
    open: () => new EmbeddedSession(policy.rank, policy.rank.openSession(), 0),
  };
}

class EmbeddedSession implements Session {
  readonly #rank: NativeRank;
  readonly #id: number;
  #length: number;
  #disposed = false;

  constructor(rank: NativeRank, id: number, length: number) {
    this.#rank = rank;
    this.#id = id;
    this.#length = length;
  }

  get length(): number {
    return this.#length;
  }

  extend(tokens: ArrayLike<number>): void {
    this.#live();
    const ids = tokenIds(tokens);
    this.#rank.extendSession(this.#id, ids);
    this.#length += ids.length;
  }

  async sample(options: SampleOptions): Promise<SampledTurn> {
    this.#live();
    const request: NativeSampleRequest = {
      maxTokens: options.maxTokens,
      stop: tokenIds(options.stop),
      temperature: options.temperature,
      seed: options.seed,
    };
    const start = () => this.#rank.sampleSession(this.#id, request);
    const { tokens, logprobs, stopped, version } = await withSignal(start, options.signal);
    this.#length += tokens.length;
    return { tokens, logprobs, finish: stopped ? "stop" : "length", version };
  }

  fork(): Session {
    this.#live();
    return new EmbeddedSession(this.#rank, this.#rank.forkSession(this.#id), this.#length);
  }

  /** A turn being sampled ends with ERR_TOKENRING_ABORTED. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#rank.closeSession(this.#id);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #live(): void {
    if (this.#disposed) throw new TokenringError("ERR_TOKENRING_DISPOSED", "the session was disposed");
  }
}
