// What the tests of native ranks give them.
import type { NativeAdamW, NativeLoss, NativeRankOptions } from "../../lib/ops/binding.ts";
import { TINY } from "../policy/tiny.ts";

export const rankOptions: NativeRankOptions = {
  config: TINY,
  device: "cpu",
  threads: 1,
  precision: "float32",
  activationCheckpointing: false,
  maxBatchTokens: 64,
  maxPages: 0,
};
export const nll: NativeLoss = {
  objective: "nll",
  clipLow: 0.2,
  clipHigh: 0.28,
  dualClip: 0,
  klCoef: 0,
  entropyCoef: 0,
  temperature: 1,
  chunkRows: 16,
};
export const adamw: NativeAdamW = {
  learningRate: 1e-3,
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.1,
  clipNorm: 1,
};
export const seed = { std: 0.02, seed: 1n, previousTokenBias: 0 };
