// The policy loss: its options, which the trainer's policy shares, and the loss on the caller's own tensors.
import type { NativeLoss, NativeLossResult, NativePolicyLoss } from "./binding.ts";
import { type CallOptions, withSignal } from "./jobs.ts";
import { loadBinding } from "./native.ts";
import { native, type TensorLike } from "./tensor.ts";

/**
 * - "nll": cross entropy.
 * - "ppo_clip": min(r A, clip(r, 1 - clipLow, 1 + clipHigh) A) with the token's own ratio r (DAPO eq. 8).
 * - "gspo": the same with one ratio a document, the geometric mean of its tokens' (arXiv 2507.18071).
 * - "cispo": clip(r, 1 - clipLow, 1 + clipHigh) A log pi, the ratio held constant (arXiv 2506.13585).
 */
export type Objective = NativeLoss["objective"];

/** Formulas, and the names that TRL and verl give to these options: docs/losses.md. */
export interface PolicyLossOptions {
  objective: Objective;
  /** Default 0.2; for gspo 3e-4. */
  clipLow?: number;
  /** Default 0.28; for gspo 4e-4. */
  clipHigh?: number;
  /** ppo_clip: where A < 0 the loss is at most -dualClip A. Above 1; default 0 = off. */
  dualClip?: number;
  /** Weight of the k3 estimate of KL(pi || reference), which needs `referenceLogprob`. Default 0 = off. */
  klCoef?: number;
  /** Weight of the entropy that the loss rewards. Default 0 = off. */
  entropyCoef?: number;
  /** Default 1. */
  temperature?: number;
}

/** A ratio of sequences moves a thousandth of a token's (arXiv 2507.18071, section 5.1): a token's range never clips it. */
export const GSPO_CLIP = { clipLow: 3e-4, clipHigh: 4e-4 } as const;
const TOKEN_CLIP = { clipLow: 0.2, clipHigh: 0.28 } as const;

/** With every default filled in. @internal */
export function nativeLoss(loss: PolicyLossOptions & { chunkRows?: number }): NativeLoss {
  const clip = loss.objective === "gspo" ? GSPO_CLIP : TOKEN_CLIP;
  return {
    objective: loss.objective,
    clipLow: loss.clipLow ?? clip.clipLow,
    clipHigh: loss.clipHigh ?? clip.clipHigh,
    dualClip: loss.dualClip ?? 0,
    klCoef: loss.klCoef ?? 0,
    entropyCoef: loss.entropyCoef ?? 0,
    temperature: loss.temperature ?? 1,
    chunkRows: loss.chunkRows ?? 0,
  };
}

/** What the loss is about: R rows, each of which predicts one token. */
export interface PolicyLossRows {
  /** i32 [R]: the token that each row predicts, so that of the next position. */
  targets: TensorLike;
  /** f32 [R]: the weight of each row in the sum; every mean is made of these. Rows of weight 0 are passed over. */
  weight: TensorLike;
  /** f32 [R]; all objectives but "nll". */
  advantage?: TensorLike;
  /** f32 [R]: the target's logprob under the policy that sampled, at `temperature`; all objectives but "nll". */
  oldLogprob?: TensorLike;
  /** f32 [R]: its logprob under the policy to stay near; with `klCoef`. */
  referenceLogprob?: TensorLike;
  /** i32: rows of each document, for "gspo"; they sum to R. Default: one document. */
  lengths?: TensorLike;
}

/** The loss from logits, f32 [R, vocabulary]. */
export interface FromLogits {
  logits: TensorLike;
  /** Becomes d loss / d logits, [R, vocabulary]; may be `logits` itself. */
  dlogits?: TensorLike;
}

/**
 * The loss from hidden states, f32 [R, width], through a head, f32 [vocabulary, width]: logits = hidden head^T exist
 * only for `chunkRows` rows at a time (default: 64 MiB of them, at least 256 rows and at most 1024).
 */
export interface FromHidden {
  hidden: TensorLike;
  head: TensorLike;
  /** Becomes d loss / d hidden, [R, width]. With `dhead`, or neither: then no gradients are made. */
  dhidden?: TensorLike;
  /** Receives d loss / d head in addition to what it holds, [vocabulary, width]. */
  dhead?: TensorLike;
}

/**
 * The loss over rows, and its gradients: sum of weight * objective over the rows, from the softmax of
 * logits / temperature, with logprob and entropy of each row.
 * @returns the sum; logprob, entropy and flags (1 = clipped low, 2 = clipped high, 3 = dual clip) by row, 0 in rows of
 * weight 0.
 * @throws ERR_TOKENRING_NON_FINITE naming the row whose loss is not finite, and ERR_TOKENRING_INVALID_ARGUMENT for
 * shapes that do not fit, targets outside the vocabulary and lanes that the objective lacks. After an error the
 * gradients are of no use.
 */
export async function policyLoss(
  x: PolicyLossRows & (FromLogits | FromHidden),
  loss: PolicyLossOptions & { chunkRows?: number },
  options: CallOptions = {},
): Promise<NativeLossResult> {
  const call = Object.fromEntries(
    Object.entries(x).flatMap(([name, tensor]) => (tensor === undefined ? [] : [[name, native(tensor)]])),
  ) as unknown as NativePolicyLoss;
  return withSignal(() => loadBinding().policyLoss(call, nativeLoss(loss)), options.signal);
}
