// What an optimiser step says of itself: sums over its action tokens, taken micro-batch by micro-batch.
import { ACTION } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import type { LossResult } from "../policy/types.ts";
import type { MicroBatch } from "./pack.ts";
import type { LogprobMismatch, StepMetrics } from "./types.ts";
import { tisWeight, type WeightedDocument } from "./weights.ts";

/** Value below which a share `q` of `sorted` lies, by the nearest rank. */
function quantile(sorted: Float64Array, q: number): number {
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] as number;
}

/** The k3 estimate of a KL divergence at one token: exp(d) - d - 1 (http://joschu.net/blog/kl-approx.html). */
const k3 = (difference: number): number => Math.exp(difference) - difference - 1;

/** Sums up differences trainer - engine of logprobs; null for none. */
export function logprobMismatch(differences: readonly number[]): LogprobMismatch | null {
  if (differences.length === 0) return null;
  const sizes = Float64Array.from(differences, Math.abs).sort();
  let outside = 0;
  let sum = 0;
  for (const difference of differences) {
    const ratio = Math.exp(difference);
    if (!(ratio >= 0.9 && ratio <= 1.1)) outside++;
    sum += k3(difference);
  }
  return {
    p50: quantile(sizes, 0.5),
    p95: quantile(sizes, 0.95),
    max: sizes.at(-1) as number,
    outside: outside / differences.length,
    k3: sum / differences.length,
  };
}

function mismatch(
  document: WeightedDocument,
  at: number,
  engine: number,
  trainer: number,
  tolerance: number,
): TokenringError {
  return new TokenringError(
    "ERR_TOKENRING_LOGPROB_MISMATCH",
    `trajectory ${document.id}, token ${at} (id ${document.tokens[at]}): the sampler says logprob ${engine}, the ` +
      `trainer ${trainer} under the same weights (version ${document.version}), more than ${tolerance} apart; the ` +
      "engine does not sample from this policy: check its context between turns, its temperature and its filters",
    {
      details: {
        trajectory: document.id,
        token: at,
        id: document.tokens[at],
        sampler: engine,
        trainer,
        tolerance,
      },
    },
  );
}

/** The metrics that come of the passes of one step. */
export type Measures = Omit<
  StepMetrics,
  "gradientNorm" | "trajectories" | "packedTokens" | "learningRate" | "learnMs"
>;

export class Measure {
  readonly #version: number;
  readonly #tolerance: number | undefined;
  readonly #tisCap: number;
  #loss = 0;
  #tokens = 0;
  #entropy = 0;
  /** Tokens by flag: none, clipped low, clipped high, dual clip. */
  readonly #flags = [0, 0, 0, 0];
  #kl = 0;
  #klTokens = 0;
  #referenceKl = 0;
  #referenceTokens = 0;
  #truncated = 0;
  #tisTokens = 0;
  readonly #differences: number[] = [];

  /** `version` is that of the weights; `tolerance` as StepOptions.logprobTolerance. */
  constructor(options: { version: number; tolerance?: number | undefined; tisCap: number }) {
    this.#version = options.version;
    this.#tolerance = options.tolerance;
    this.#tisCap = options.tisCap;
  }

  /** Throws ERR_TOKENRING_LOGPROB_MISMATCH for the first token that is too far off. */
  add(micro: MicroBatch, result: LossResult): void {
    this.#loss += result.loss;
    micro.documents.forEach((document, d) => {
      const offset = micro.offsets[d] as number;
      for (let i = 1; i < document.tokens.length; i++) {
        if (document.provenance[i] !== ACTION || document.weight[i] === 0) continue;
        const logprob = result.logprob[offset + i] as number;
        this.#tokens++;
        this.#entropy += result.entropy[offset + i] as number;
        const flag = result.flags[offset + i] as number;
        this.#flags[flag] = (this.#flags[flag] as number) + 1;
        if (document.referenceLogprob) {
          this.#referenceKl += k3((document.referenceLogprob[i] as number) - logprob);
          this.#referenceTokens++;
        }
        if (document.oldLogprob) this.#compare(document, i, logprob);
      }
    });
  }

  #compare(document: WeightedDocument, at: number, logprob: number): void {
    const old = document.oldLogprob?.[at] as number;
    this.#kl += k3(logprob - old);
    this.#klTokens++;
    const fresh = document.version === this.#version;
    const engine = document.engineLogprob?.[at];
    if (engine === undefined && !fresh) return;
    // Where the old logprobs are the trainer's own, they are what the engine is held against, at every step.
    const difference = engine === undefined ? logprob - old : old - engine;
    const tolerance = this.#tolerance;
    // Written so that NaN is a mismatch too.
    if (fresh && tolerance !== undefined && !(Math.abs(difference) <= tolerance)) {
      throw mismatch(document, at, engine ?? old, engine === undefined ? logprob : old, tolerance);
    }
    this.#differences.push(difference);
    if (engine === undefined || this.#tisCap === 0) return;
    this.#tisTokens++;
    if (tisWeight(old, engine, Number.POSITIVE_INFINITY) > this.#tisCap) this.#truncated++;
  }

  metrics(): Measures {
    const per = (total: number, count: number): number => (count === 0 ? 0 : total / count);
    const share = (flag: number): number => per(this.#flags[flag] as number, this.#tokens);
    return {
      loss: this.#loss,
      entropy: per(this.#entropy, this.#tokens),
      clipLow: share(1),
      clipHigh: share(2),
      clipDual: share(3),
      approximateKl: per(this.#kl, this.#klTokens),
      referenceKl: this.#referenceTokens === 0 ? null : this.#referenceKl / this.#referenceTokens,
      tisClipped: this.#tisTokens === 0 ? null : this.#truncated / this.#tisTokens,
      mismatch: logprobMismatch(this.#differences),
      tokens: this.#tokens,
    };
  }
}
