// A session of a vLLM engine: the stream lies here, and each turn sends all of it.
import { TokenringError } from "../errors.ts";
import { tokenIds } from "./token-ids.ts";
import type { SampledTurn, SampleOptions, Session } from "./types.ts";
import type { Place, VllmServers } from "./vllm-servers.ts";

/** Ids that are appended to; what a fork shares is never written again. */
export class Tokens {
  #ids: Int32Array;
  length: number;

  constructor(ids = new Int32Array(1024), length = 0) {
    this.#ids = ids;
    this.length = length;
  }

  append(more: Int32Array): void {
    const length = this.length + more.length;
    if (length > this.#ids.length) {
      const larger = new Int32Array(Math.max(length, 2 * this.#ids.length));
      larger.set(this.all());
      this.#ids = larger;
    }
    this.#ids.set(more, this.length);
    this.length = length;
  }

  all(): Int32Array {
    return this.#ids.subarray(0, this.length);
  }

  copy(): Tokens {
    return new Tokens(this.#ids.slice(0, this.length), this.length);
  }
}

export class VllmSession implements Session {
  readonly #engine: VllmServers;
  readonly #tokens: Tokens;
  #place: Place | null;
  /** Fires when it is disposed of. */
  readonly #ended = new AbortController();

  constructor(engine: VllmServers, tokens: Tokens, place: Place | null) {
    this.#engine = engine;
    this.#tokens = tokens;
    this.#place = place;
    if (place) place.sessions++;
  }

  get length(): number {
    return this.#tokens.length;
  }

  get place(): Place | null {
    return this.#place;
  }

  moveTo(place: Place): Place {
    if (this.#place === place) return place;
    if (this.#place) this.#place.sessions--;
    this.#place = place;
    place.sessions++;
    return place;
  }

  extend(tokens: ArrayLike<number>): void {
    this.#live();
    const ids = tokenIds(tokens);
    const bad = ids.findIndex((id) => id < 0 || id >= this.#engine.vocabularySize);
    if (bad >= 0) {
      const message = `tokens[${bad}] is ${ids[bad]}; the vocabulary has ${this.#engine.vocabularySize}`;
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
    }
    this.#fits(ids.length);
    this.#tokens.append(ids);
  }

  async sample(options: SampleOptions): Promise<SampledTurn> {
    this.#live();
    if (!(Number.isSafeInteger(options.maxTokens) && options.maxTokens > 0)) {
      const message = `maxTokens is ${options.maxTokens}; give a whole number of at least 1`;
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
    }
    if (this.length === 0)
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        "a session without tokens cannot be sampled",
      );
    // A server would cut the turn short and say nothing.
    this.#fits(options.maxTokens);
    const ended = this.#ended.signal;
    const signal = options.signal ? AbortSignal.any([options.signal, ended]) : ended;
    const turn = await this.#engine.turn(this, this.#tokens.all(), { ...options, signal });
    this.#tokens.append(turn.tokens);
    return turn;
  }

  /** Goes on at the same server, which has read the tokens, once this one has sampled. */
  fork(): Session {
    this.#live();
    return new VllmSession(this.#engine, this.#tokens.copy(), this.#place);
  }

  /** A turn being sampled ends with ERR_TOKENRING_ABORTED. */
  dispose(): void {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort(new TokenringError("ERR_TOKENRING_ABORTED", "the session was disposed"));
    if (this.#place) this.#place.sessions--;
    this.#place = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #live(): void {
    if (this.#ended.signal.aborted)
      throw new TokenringError("ERR_TOKENRING_DISPOSED", "the session was disposed");
  }

  #fits(more: number): void {
    const { contextLimit } = this.#engine;
    if (this.length + more <= contextLimit) return;
    const message = `a session of ${this.length} tokens cannot take ${more} more: the context limit is ${contextLimit}`;
    throw new TokenringError("ERR_TOKENRING_ENGINE", message);
  }
}
