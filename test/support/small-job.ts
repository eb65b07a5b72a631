// A job on tinyswe that takes seconds: a very small policy, half-trained, so that its episodes are short and differ.
import type { JobInput } from "../../lib/run/config.ts";

export const SMALL_MODEL = {
  hiddenSize: 64,
  layers: 2,
  heads: 2,
  keyValueHeads: 1,
  headDim: 32,
  intermediateSize: 128,
  maxPositions: 512,
  initStd: 0.08,
  previousTokenBias: 5,
};

export const HALF_TRAINED: NonNullable<JobInput["warmStart"]> = {
  copySteps: 10,
  copyBatch: { sequences: 8, tokens: 48 },
  steps: 120,
  tokensPerStep: 600,
  expertShare: 0,
  personas: { expert: 0, sloppy: 0, confused: 1 },
  warmupSteps: 10,
  learningRate: 0.005,
};
