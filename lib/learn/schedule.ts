// Learning rates over the steps of a stage.

export interface LearningRateSchedule {
  /** The rate after warm-up. */
  peak: number;
  /** Optimiser steps of linear warm-up; the first step already has 1/warmupSteps of the peak. Default 0. */
  warmupSteps?: number;
  /** Optimiser steps in all; with it the rate decays by a cosine after warm-up, without it the rate stays. */
  totalSteps?: number;
  /** Share of the peak that the cosine ends at, one step after the last. Default 0. */
  floor?: number;
}

/** The learning rate of optimiser step `step`, counted from 0. */
export function learningRate(step: number, schedule: LearningRateSchedule): number {
  const { peak, warmupSteps = 0, totalSteps, floor = 0 } = schedule;
  if (step < warmupSteps) return (peak * (step + 1)) / warmupSteps;
  if (totalSteps === undefined) return peak;
  const progress = Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
  return peak * (floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * progress)));
}
