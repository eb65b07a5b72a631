// For programs that embed the kernels in a training loop of their own: plain functions on tensors, and ranks that
// compute together. Below them, the addon itself.
export {
  type AdamWParameter,
  type AdamWStepOptions,
  adamw,
  gradientNorm,
} from "./adamw.ts";
export * from "./attention.ts";
export * from "./binding.ts";
export * from "./communicator.ts";
export * from "./device-tensor.ts";
export { type CallOptions, withSignal } from "./jobs.ts";
export { loadBinding } from "./native.ts";
export {
  type FromHidden,
  type FromLogits,
  type Objective,
  type PolicyLossOptions,
  type PolicyLossRows,
  policyLoss,
} from "./policy-loss.ts";
export { type DType, type HostArray, hostTensor, type Tensor, type TensorLike } from "./tensor.ts";
export { setThreads } from "./threads.ts";
