// The token stream of an episode and its lanes, and the proof that the engine's session holds the same stream.
import type { SampledTurn, Session } from "../engine/types.ts";
import { TokenringError } from "../errors.ts";
import { ACTION, OBSERVATION, PROMPT } from "./types.ts";

export interface Lanes {
  tokens: Int32Array;
  provenance: Uint8Array;
  logprobs: Float32Array;
}

/**
 * Appends to a session and to the lanes at once. Nothing is ever removed or encoded again, so the stream is exactly
 * what was extended and sampled. Every call checks that the session is as long as the stream
 * (ERR_TOKENRING_PREFIX_CHANGED).
 */
export class TokenStream {
  readonly #session: Session;
  readonly #chunks: { tokens: Int32Array; provenance: number; logprobs: Float32Array | null }[] = [];
  #length = 0;

  /** The session is empty, or holds exactly the prompt (a fork of the group's root). */
  constructor(session: Session, prompt: Int32Array) {
    this.#session = session;
    if (session.length === 0) session.extend(prompt);
    this.#append(prompt, PROMPT, null);
  }

  get length(): number {
    return this.#length;
  }

  observe(tokens: Int32Array): void {
    this.#session.extend(tokens);
    this.#append(tokens, OBSERVATION, null);
  }

  /** Takes over a turn that the session has just sampled. Returns where it stands. */
  act(
    turn: SampledTurn,
    asked: { maxTokens: number; stop: readonly number[] },
  ): { start: number; end: number } {
    checkTurn(turn, asked);
    const start = this.#length;
    this.#append(turn.tokens, ACTION, turn.logprobs);
    return { start, end: this.#length };
  }

  lanes(): Lanes {
    const tokens = new Int32Array(this.#length);
    const provenance = new Uint8Array(this.#length);
    const logprobs = new Float32Array(this.#length);
    let at = 0;
    for (const chunk of this.#chunks) {
      tokens.set(chunk.tokens, at);
      provenance.fill(chunk.provenance, at, at + chunk.tokens.length);
      if (chunk.logprobs) logprobs.set(chunk.logprobs, at);
      at += chunk.tokens.length;
    }
    return { tokens, provenance, logprobs };
  }

  #append(tokens: Int32Array, provenance: number, logprobs: Float32Array | null): void {
    this.#chunks.push({ tokens, provenance, logprobs });
    this.#length += tokens.length;
    const held = this.#session.length;
    if (held === this.#length) return;
    const what = ["the prompt", "an observation", "a sampled turn"][provenance];
    throw new TokenringError(
      "ERR_TOKENRING_PREFIX_CHANGED",
      `after ${what} the engine's session holds ${held} tokens and the stream ${this.#length}: what the policy reads ` +
        "is no longer what it saw and produced; look at the engine's extend, sample and fork",
      { details: { held, stream: this.#length } },
    );
  }
}

/** Lanes of a prompt that left no room for an answer. */
export function unanswered(prompt: Int32Array): Lanes {
  const { length } = prompt;
  return {
    tokens: prompt,
    provenance: new Uint8Array(length).fill(PROMPT),
    logprobs: new Float32Array(length),
  };
}

/** A turn that breaks the engine's contract would train on tokens that nobody sampled. */
function checkTurn(
  turn: SampledTurn,
  { maxTokens, stop }: { maxTokens: number; stop: readonly number[] },
): void {
  const { tokens, logprobs, finish } = turn;
  const fault = (message: string): TokenringError =>
    new TokenringError("ERR_TOKENRING_ENGINE", `the engine returned a turn that ${message}`);
  if (tokens.length === 0) throw fault("is empty");
  if (tokens.length > maxTokens)
    throw fault(`has ${tokens.length} tokens; at most ${maxTokens} were asked for`);
  if (tokens.length !== logprobs.length) {
    throw fault(`has ${tokens.length} tokens and ${logprobs.length} logprobs`);
  }
  for (let i = 0; i < tokens.length; i++) {
    const logprob = logprobs[i] as number;
    if (stop.includes(tokens[i] as number) !== (finish === "stop" && i === tokens.length - 1)) {
      throw fault(`is said to end by "${finish}" but has its stop token elsewhere than that says`);
    }
    if (Number.isFinite(logprob)) continue;
    throw new TokenringError(
      "ERR_TOKENRING_NON_FINITE",
      `the engine gave token ${i} of a turn the logprob ${logprob}; weights or sampler are broken`,
    );
  }
}
