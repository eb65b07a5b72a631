// AdamW on the caller's arrays.
import { type CallOptions, withSignal } from "./jobs.ts";
import { loadBinding } from "./native.ts";
import { native, type TensorLike } from "./tensor.ts";

/**
 * A tensor that is trained, with its gradient and the two moments that AdamW keeps (zeros at first). f32, one size.
 * Moments may be of u8 instead, in blocks of 256 elements with a scale each.
 */
export interface AdamWParameter {
  weight: TensorLike;
  gradient: TensorLike;
  firstMoment: TensorLike;
  secondMoment: TensorLike;
  /** Where the moments are of u8: f32, ceil(size / 256) elements, zeros at first. */
  firstScale?: TensorLike;
  secondScale?: TensorLike;
  /** Whether weight decay applies (default true); usually not for norms and biases. */
  decay?: boolean;
}

/** AdamW's own (arXiv 1711.05101, as torch.optim.AdamW has them), without decay and clipping. */
export const ADAMW_DEFAULTS = {
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0,
  clipNorm: 0,
} as const;

/** One AdamW step: rates, moments' decay, and clipping by the global norm. */
export interface AdamWStepOptions extends CallOptions {
  learningRate: number;
  /** Number of this step, from 1: the moments are corrected for their start at zero by it. */
  step: number;
  /** Default 0.9. */
  beta1?: number;
  /** Default 0.999. */
  beta2?: number;
  /** Default 1e-8. */
  epsilon?: number;
  /** Default 0. Decoupled: the weight shrinks by learningRate * weightDecay, apart from the gradient. */
  weightDecay?: number;
  /** Where the norm of all gradients together is above it, they count times clipNorm / norm; 0 = off (default). */
  clipNorm?: number;
  /** The norm, where it is known already: that over all ranks, if each has a part of the parameters. */
  gradientNorm?: number;
}

/**
 * One step of AdamW: weights and moments change, gradients stay.
 *
 *     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
 *     w = w (1 - lr decay) - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
 *
 * Moments in 8 bits are decoded, updated, and coded again after the weights have used them.
 * Loshchilov & Hutter 2019, as torch.optim.AdamW after torch.nn.utils.clip_grad_norm_ computes it.
 * @returns the L2 norm over all gradients, before clipping.
 * @throws ERR_TOKENRING_NON_FINITE naming the gradient (its place in the list) that holds NaN or infinity, before
 * anything has changed; ERR_TOKENRING_INVALID_ARGUMENT for sizes that differ and options out of range.
 */
export async function adamw(
  parameters: readonly AdamWParameter[],
  options: AdamWStepOptions,
): Promise<{ gradientNorm: number }> {
  const how = {
    learningRate: options.learningRate,
    beta1: options.beta1 ?? ADAMW_DEFAULTS.beta1,
    beta2: options.beta2 ?? ADAMW_DEFAULTS.beta2,
    epsilon: options.epsilon ?? ADAMW_DEFAULTS.epsilon,
    weightDecay: options.weightDecay ?? ADAMW_DEFAULTS.weightDecay,
    clipNorm: options.clipNorm ?? ADAMW_DEFAULTS.clipNorm,
    step: options.step,
    ...(options.gradientNorm !== undefined && { gradientNorm: options.gradientNorm }),
  };
  const list = parameters.map((parameter) => ({
    weight: native(parameter.weight),
    gradient: native(parameter.gradient),
    firstMoment: native(parameter.firstMoment),
    secondMoment: native(parameter.secondMoment),
    ...(parameter.firstScale && { firstScale: native(parameter.firstScale) }),
    ...(parameter.secondScale && { secondScale: native(parameter.secondScale) }),
    decay: parameter.decay ?? true,
  }));
  return { gradientNorm: await withSignal(() => loadBinding().adamw(list, how), options.signal) };
}

/**
 * The L2 norm over all tensors (f32) together; sums in float64, in a fixed order.
 * @throws ERR_TOKENRING_NON_FINITE naming the tensor (its place in the list) that holds NaN or infinity.
 */
export async function gradientNorm(
  gradients: readonly TensorLike[],
  options: CallOptions = {},
): Promise<number> {
  return withSignal(() => loadBinding().gradientNorm(gradients.map(native)), options.signal);
}
