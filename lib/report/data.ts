// What a report is made of, free of files.
import type { Trajectory } from "../agent/types.ts";
import type { DapoSummary } from "../learn/dapo.ts";
import type { LoggedEvent, RunEvent, StageSeconds } from "../learn/events.ts";
import type { StepMetrics } from "../learn/types.ts";

export interface SampleEpisode {
  stage: string;
  iteration: number;
  trajectory: Trajectory;
  reward?: number;
  advantage?: number;
}

export interface RunData {
  name: string;
  /** Of tokenring. */
  version: string;
  seed: number;
  createdAt: string;
  /** The config as text, YAML or JSON. */
  config: string;
  events: readonly LoggedEvent[];
  samples: readonly SampleEpisode[];
  /** The text of one token as people see it, where the run's tokenizer is at hand. */
  piece?: (token: number) => string;
}

export interface StageData {
  name: string;
  steps: StepMetrics[];
  iterations: DapoSummary[];
  seconds: StageSeconds | null;
}

/** The stages of a run in the order in which they began. */
export function stagesOf(events: readonly RunEvent[]): StageData[] {
  const stages = new Map<string, StageData>();
  const stage = (name: string): StageData => {
    const found = stages.get(name) ?? { name, steps: [], iterations: [], seconds: null };
    stages.set(name, found);
    return found;
  };
  for (const event of events) {
    if (event.type === "stage_start") stage(event.stage);
    else if (event.type === "step") stage(event.stage).steps.push(event.metrics);
    else if (event.type === "iteration") stage(event.stage).iterations.push(event.summary);
    else if (event.type === "stage_end") stage(event.stage).seconds = event.seconds;
  }
  return [...stages.values()];
}
