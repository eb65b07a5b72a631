// What a report is made of, free of files.
import type { Exit, Trajectory } from "../agent/types.ts";
import type { Tokenizer } from "../engine/tokenizer-types.ts";
import type { DapoSummary } from "../learn/dapo.ts";
import type { LoggedEvent, RunEvent, StageSeconds } from "../learn/events.ts";
import type { LearntTokens, StepMetrics } from "../learn/types.ts";
import type { Verdict } from "../verify/types.ts";

/** One episode as the list of episodes shows it. */
export interface EpisodeRow {
  stage: string;
  iteration: number;
  instanceId: string;
  rollout: number;
  verdict: Verdict;
  exit: Exit;
  reason: string | null;
  /** Infrastructure broke it: it counted nowhere. */
  infra: boolean;
  reward: number | null;
  advantage: number | null;
  turns: number;
  tokens: number;
  /** Tokens that the policy sampled. */
  actionTokens: number;
  /** Turns whose action could not be read. */
  formatErrors: number;
  /** Action tokens that were clipped in the step that learnt from it; null where none did. */
  clipped: number | null;
  /** Milliseconds of sampling, tools and verification together. */
  ms: number;
}

/** An episode whole, with what learning saw of it where it did. */
export interface StoredEpisode {
  trajectory: Trajectory;
  learnt: LearntTokens | null;
}

/** What texts of tokens are made from. */
export type TokenTexts = Pick<Tokenizer, "bytes" | "decode" | "specials">;

/** A run as the report reads it: what it is, what it wrote down, and its episodes. */
export interface RunData {
  name: string;
  /** Of tokenring. */
  version: string;
  seed: number;
  createdAt: string;
  /** Node.js, system and processor of where it was begun; null where the run does not say. */
  machine: string | null;
  /** The config as text, YAML or JSON. */
  config: string;
  /** The config as values, for comparison. */
  settings: unknown;
  events: readonly LoggedEvent[];
  episodes: readonly EpisodeRow[];
  /** Reads the episode of a row. */
  load: (row: number) => Promise<StoredEpisode>;
  /** undefined where the run's tokenizer is not at hand. */
  tokenizer: TokenTexts | undefined;
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
