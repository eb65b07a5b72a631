// The token stream of an episode and its lanes, and the proof that the engine's session holds the same stream.
import type { SampledTurn, Session } from "../engine/types.ts";
import { TokenringError } from "../errors.ts";
import { ACTION, OBSERVATION, PROMPT, type Prefix } from "./types.ts";

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
  readonly #chunks: Lanes[] = [];
  #length = 0;

  /** `begin` is what came before: a prompt, or the prefix of a trajectory. The session is empty or holds exactly it. */
  constructor(session: Session, begin: Lanes) {
    this.#session = session;
    if (session.length === 0) session.extend(begin.tokens);
    this.#append(begin, "the prompt");
  }

  get length(): number {
    return this.#length;
  }

  observe(tokens: Int32Array): void {
    this.#session.extend(tokens);
    this.#append(observed(tokens, OBSERVATION), "an observation");
  }

  /** Takes over a turn that the session has just sampled. Returns where it stands. */
  act(
    turn: SampledTurn,
    asked: { maxTokens: number; stop: readonly number[] },
  ): { start: number; end: number } {
    checkTurn(turn, asked);
    const start = this.#length;
    const provenance = new Uint8Array(turn.tokens.length).fill(ACTION);
    this.#append({ tokens: turn.tokens, provenance, logprobs: turn.logprobs }, "a sampled turn");
    return { start, end: this.#length };
  }

  lanes(): Lanes {
    const tokens = new Int32Array(this.#length);
    const provenance = new Uint8Array(this.#length);
    const logprobs = new Float32Array(this.#length);
    let at = 0;
    for (const chunk of this.#chunks) {
      tokens.set(chunk.tokens, at);
      provenance.set(chunk.provenance, at);
      logprobs.set(chunk.logprobs, at);
      at += chunk.tokens.length;
    }
    return { tokens, provenance, logprobs };
  }

  #append(lanes: Lanes, what: string): void {
    this.#chunks.push(lanes);
    this.#length += lanes.tokens.length;
    const held = this.#session.length;
    if (held === this.#length) return;
    throw new TokenringError(
      "ERR_TOKENRING_PREFIX_CHANGED",
      `after ${what} the engine's session holds ${held} tokens and the stream ${this.#length}: what the policy reads ` +
        "is no longer what it saw and produced; look at the engine's extend, sample and fork",
      { details: { held, stream: this.#length } },
    );
  }
}

/** Lanes of a prompt without an answer. */
export function unanswered(prompt: Int32Array): Lanes {
  return observed(prompt, PROMPT);
}

/** Lanes of tokens that the policy did not produce. */
function observed(tokens: Int32Array, from: typeof PROMPT | typeof OBSERVATION): Lanes {
  const { length } = tokens;
  return { tokens, provenance: new Uint8Array(length).fill(from), logprobs: new Float32Array(length) };
}

/** What stood in the stream when the turn after the prefix was sampled. */
export function prefixLanes({ trajectory, turns }: Prefix): Lanes {
  const end = trajectory.turns[turns]?.start;
  if (turns < 1 || end === undefined) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `a prefix of ${turns} turns of ${trajectory.id}, which has ${trajectory.turns.length}: give at least 1 and fewer than it has`,
    );
  }
  const { tokens, provenance, logprobs } = trajectory;
  return {
    tokens: tokens.subarray(0, end),
    provenance: provenance.subarray(0, end),
    logprobs: logprobs.subarray(0, end),
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
