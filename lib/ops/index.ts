// The native surface for programs that embed it: the addon itself, its jobs and their abort signals.
export * from "./binding.ts";
export { withSignal } from "./jobs.ts";
export { loadBinding } from "./native.ts";
