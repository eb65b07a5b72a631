// Per-token loss weights, made of provenance and of nothing else. The kernel only sums what it is given here.
import { ACTION, OBSERVATION, PROMPT, type Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";

/** One document to learn from. All lanes have one entry a token. */
export interface TrainingDocument {
  id: string;
  tokens: Int32Array;
  provenance: Uint8Array;
  /** How much each token counts relative to the others; an aggregation turns these into weights. */
  mask: Float32Array;
  advantage?: Float32Array;
  /** What ratios are taken against. The engine's are 0 where the provenance is not ACTION. */
  oldLogprob?: Float32Array;
  /** The logprobs that the engine sampled with, where `oldLogprob` are not they. */
  engineLogprob?: Float32Array;
  /** Those of the policy to stay near. */
  referenceLogprob?: Float32Array;
  /** Version of the weights that sampled every action of the document; null when several or unknown. */
  version: number | null;
}

export interface WeightedDocument extends TrainingDocument {
  /** Final weight of each token's loss in the optimiser step. */
  weight: Float32Array;
}

export interface MaskOptions {
  /** Relative weight of observation tokens. Default 0; the warm start learns a little from them. */
  observationWeight?: number;
  /** Relative weight of prompt tokens. Default 0. */
  promptWeight?: number;
}

/** Relative weights from provenance: 1 for actions. The first token is never predicted and always has 0. */
export function provenanceMask(provenance: Uint8Array, options: MaskOptions = {}): Float32Array {
  const { observationWeight = 0, promptWeight = 0 } = options;
  const mask = new Float32Array(provenance.length);
  for (let i = 1; i < provenance.length; i++) {
    const from = provenance[i];
    if (from === ACTION) mask[i] = 1;
    else if (from === OBSERVATION) mask[i] = observationWeight;
    else if (from === PROMPT) mask[i] = promptWeight;
    else {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `provenance of token ${i} is ${from}; it must be 0 (prompt), 1 (observation) or 2 (action)`,
      );
    }
  }
  return mask;
}

function aligned(name: string, what: string, length: number, tokens: number): void {
  if (length !== tokens) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${name}: ${what} has ${length} entries for ${tokens} tokens; every lane needs one entry a token`,
    );
  }
}

/**
 * A document without behaviour policy, such as a demonstration. `provenance` has one entry a token (PROMPT, OBSERVATION or
 * ACTION); only actions carry loss unless the options say so.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for lanes of another length.
 */
export function demonstrationDocument(
  id: string,
  tokens: Int32Array,
  provenance: Uint8Array,
  options: MaskOptions = {},
): TrainingDocument {
  aligned(id, "provenance", provenance.length, tokens.length);
  return { id, tokens, provenance, mask: provenanceMask(provenance, options), version: null };
}

/**
 * The trajectory as a document: only its actions count. With `maskFormatErrors` the turns whose action could not be
 * read stay in the context and carry no loss (RFT); `advantage` goes to every token of the trajectory, or one a turn to
 * the turn's own.
 */
export function trajectoryDocument(
  trajectory: Trajectory,
  options: { maskFormatErrors?: boolean; advantage?: number | readonly number[] } = {},
): TrainingDocument {
  const { id, tokens, provenance, logprobs, turns } = trajectory;
  aligned(id, "provenance", provenance.length, tokens.length);
  aligned(id, "logprobs", logprobs.length, tokens.length);
  const mask = provenanceMask(provenance);
  if (options.maskFormatErrors) {
    for (const turn of turns) if (turn.formatError !== null) mask.fill(0, turn.start, turn.end);
  }
  const version = turns[0]?.version ?? null;
  return {
    id,
    tokens,
    provenance,
    mask,
    oldLogprob: logprobs,
    version: turns.every((turn) => turn.version === version) ? version : null,
    ...(options.advantage === undefined ? {} : { advantage: advantageLane(trajectory, options.advantage) }),
  };
}

function advantageLane({ tokens, turns }: Trajectory, advantage: number | readonly number[]): Float32Array {
  const lane = new Float32Array(tokens.length);
  if (typeof advantage === "number") return lane.fill(advantage);
  for (const [i, { start, end }] of turns.entries()) lane.fill(advantage[i] as number, start, end);
  return lane;
}

/**
 * How token losses become the loss of one optimiser step; N documents, w the mask.
 * - "token_mean": sum w l / sum w over the whole step (DAPO). Nothing depends on micro-batch or packing.
 * - "sample_mean": 1/N sum_i (sum w l / sum w of document i) (GRPO).
 * - { drGrpo: L }: 1/(N L) sum w l with a constant L, so that length changes no scale (Dr. GRPO).
 */
export type Aggregation = "token_mean" | "sample_mean" | { drGrpo: number };

function maskSum(document: TrainingDocument): number {
  let sum = 0;
  for (const value of document.mask) sum += value;
  return sum;
}

/** Whether any token of the document carries loss. */
export function carriesLoss(document: TrainingDocument): boolean {
  return document.mask.some((value) => value !== 0);
}

/** The documents of one optimiser step with their final weights. Documents without loss count in no denominator. */
export function weigh(
  documents: readonly TrainingDocument[],
  aggregation: Aggregation = "token_mean",
): WeightedDocument[] {
  const sums = documents.map(maskSum);
  const total = sums.reduce((a, b) => a + b, 0);
  const samples = sums.filter((sum) => sum > 0).length;
  return documents.map((document, i) => {
    let scale = 0;
    if ((sums[i] as number) > 0) {
      if (aggregation === "token_mean") scale = 1 / total;
      else if (aggregation === "sample_mean") scale = 1 / (samples * (sums[i] as number));
      else scale = 1 / (samples * aggregation.drGrpo);
    }
    return { ...document, weight: document.mask.map((value) => value * scale) };
  });
}

/**
 * Truncated importance weight of one token, min(exp(trainer - engine), cap), the exponent limited to 20. Always of the
 * token: a product over a long trajectory's tokens (1.1^100 = 13,780) would be truncated whole.
 */
export function tisWeight(trainer: number, engine: number, cap: number): number {
  return Math.min(Math.exp(Math.max(-20, Math.min(20, trainer - engine))), cap);
}

/**
 * The document with its objective weighted by `tisWeight`. The weight goes into the advantage: every objective is
 * proportional to it, and neither the KL term nor the entropy bonus is.
 */
export function truncated(document: TrainingDocument, cap: number): TrainingDocument {
  const { id, advantage, oldLogprob, engineLogprob } = document;
  if (!advantage || !oldLogprob || !engineLogprob) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `tisCap ${cap}: document ${id} lacks advantages, or the trainer's logprobs beside the engine's; recompute them first`,
    );
  }
  return {
    ...document,
    advantage: advantage.map(
      (value, i) => value * tisWeight(oldLogprob[i] as number, engineLogprob[i] as number, cap),
    ),
  };
}
