// Who samples: token ids in, token ids and logprobs out. An engine knows nothing of text.

/** How one turn is sampled. */
export interface SampleOptions {
  /** At most this many tokens. */
  maxTokens: number;
  /** Sampling ends after any of these ids, which is kept as the last token. */
  stop: readonly number[];
  /** 1 = the policy's own distribution, 0 = greedy. No other warper exists: samples come from pi itself. */
  temperature: number;
  /** Decides every draw together with the token's position. */
  seed: bigint;
  signal?: AbortSignal;
}

/** One sampled turn: ids and behaviour logprobs (natural logarithm), one a token. */
export interface SampledTurn {
  tokens: Int32Array;
  /** log pi(token | prefix) at the sampling temperature, over the whole vocabulary, one a token. */
  logprobs: Float32Array;
  /** "length": maxTokens was reached before a stop token. */
  finish: "stop" | "length";
  /** Version of the weights that sampled the turn. */
  version: number;
}

/** One token stream whose KV stays with the engine between turns; no turn re-prefills what it has seen. */
export interface Session extends Disposable {
  /** Tokens so far: extended and sampled. */
  readonly length: number;
  /** Appends tokens that the policy reads but did not produce. No compute until the next sample. */
  extend(tokens: ArrayLike<number>): void;
  /** Samples one turn; the sampled tokens become part of the stream. */
  sample(options: SampleOptions): Promise<SampledTurn>;
  /** A second stream with the same tokens; full KV pages are shared. */
  fork(): Session;
  dispose(): void;
}

/** Who samples: opens sessions, each one token stream. */
export interface Engine {
  readonly name: string;
  readonly vocabularySize: number;
  /** Tokens that one session may hold. */
  readonly contextLimit: number;
  open(): Session;
  /**
   * Of an engine whose weights are not the policy's own: makes it sample from those that the policy has now. Rollouts
   * wait for it before any episode's time begins.
   */
  update?(options?: { signal?: AbortSignal | undefined }): Promise<void>;
}
