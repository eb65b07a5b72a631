// Optimiser steps that follow each other, so closely that the engine need not wait between them.
import { isTokenringError } from "../errors.ts";
import { type BegunStep, beginStep, type StepOptions } from "./step.ts";
import type { StepMetrics } from "./types.ts";

type Source<T> = Iterable<T> | AsyncIterable<T>;

export interface StepsOptions {
  /**
   * Takes the next step's options, and queues its first pass, as soon as the update before it is queued: for steps whose
   * documents do not depend on the weights. Default false: when the step is asked for.
   */
  ahead?: boolean;
}

const dropped = (error: unknown): void => {
  // A policy that is gone has no gradients either.
  if (!isTokenringError(error, "ERR_TOKENRING_DISPOSED")) throw error;
};

/**
 * One `trainStep` after the other; yields the metrics of each when it is done. No update is queued before its step is
 * asked for: between two steps the weights are those of the step that was yielded, also when the reader stops there.
 * With `ahead` the policy's gradients are the next step's by then: it may be saved, scored, sampled from and loaded
 * (then the pass is made again with the new weights), but nothing else may touch them.
 */
export async function* trainSteps(
  steps: Source<StepOptions>,
  { ahead = false }: StepsOptions = {},
): AsyncGenerator<StepMetrics, void, undefined> {
  const source = Symbol.asyncIterator in steps ? steps[Symbol.asyncIterator]() : steps[Symbol.iterator]();
  type Begun = { options: StepOptions; step: BegunStep } | null;
  const begin = async (allowed?: Promise<boolean>): Promise<Begun> => {
    const { value, done } = await source.next();
    if (done || (await allowed) === false) return null;
    return { options: value, step: beginStep(value) };
  };
  let coming: Promise<Begun> | undefined;
  try {
    for (let version: number | undefined; ; ) {
      let begun = await (coming ?? begin());
      coming = undefined;
      if (!begun) return;
      const { policy } = begun.options;
      if (version !== undefined && version !== policy.version) {
        await begun.step.drop();
        begun = { ...begun, step: beginStep(begun.options) };
      }
      const finished = begun.step.finish();
      finished.catch(() => {}); // heard of below
      if (ahead) coming = begin(begun.step.updating);
      coming?.catch(() => {}); // thrown when its turn comes
      const metrics = await finished;
      version = ahead ? policy.version : undefined;
      yield metrics;
    }
  } finally {
    const left = await coming?.catch(() => null);
    await left?.step.drop().catch(dropped);
    await source.return?.();
  }
}
