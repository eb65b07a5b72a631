// What the page's data look like: written by lib/report/pack.ts, read in the browser. Types only.

/** All episodes of all runs of the page, one entry each in every array; indices point into the lists of names. */
export interface RowColumns {
  runs: string[];
  stages: string[];
  instances: string[];
  verdicts: string[];
  exits: string[];
  reasons: string[];
  run: number[];
  stage: number[];
  iteration: number[];
  instance: number[];
  rollout: number[];
  verdict: number[];
  exit: number[];
  /** -1 = none. */
  reason: number[];
  /** 1 where infrastructure broke the episode. */
  infra: number[];
  reward: (number | null)[];
  advantage: (number | null)[];
  turns: number[];
  tokens: number[];
  actions: number[];
  /** Turns whose action could not be read. */
  unreadable: number[];
  /** Action tokens that were clipped; null where nothing was learnt from the episode. */
  clipped: (number | null)[];
  /** Milliseconds of sampling, tools and verification together. */
  ms: number[];
  /** Number of the block that holds the episode, and its place in it; -1 = the page does not hold it. */
  pack: number[];
  at: number[];
}

/** Token texts by id; bytes where they are no text alone, null for an unused id. */
export interface PageVocabulary {
  ids: number[];
  texts: (string | number[] | null)[];
  special: number[];
}

export interface PageTurn {
  /** Tokens [start, end) are the action. */
  start: number;
  end: number;
  command: string | null;
  formatError: string | null;
  finish: string;
  version: number;
  sampleMs: number;
  toolMs: number;
  /** Only where the tokens do not say the same. */
  text?: string;
  observation?: string;
}

export interface PageEpisodeHead {
  id: string;
  turns: PageTurn[];
  patch: string;
  verifyMs: number;
  /** Optimiser step of the iteration that learnt from it; null where none did. */
  step: number | null;
  /** Byte offset in the block's data and number of entries of each lane. */
  lanes: Partial<Record<LaneName, [offset: number, length: number]>>;
}

export interface PageEpisode extends PageEpisodeHead {
  tokens: Int32Array;
  provenance: Uint8Array;
  /** The engine's, 0 where the policy did not sample. */
  logprobs: Float32Array;
  /** Of action tokens in their order, where a step learnt from them. */
  learntLogprobs?: Float32Array;
  learntEntropies?: Float32Array;
  learntFlags?: Uint8Array;
  learntOldLogprobs?: Float32Array;
}

export type LaneName =
  | "tokens"
  | "logprobs"
  | "learntLogprobs"
  | "learntEntropies"
  | "learntOldLogprobs"
  | "provenance"
  | "learntFlags";

export interface PackHeader {
  episodes: PageEpisodeHead[];
  /** Of a block that travels alone. */
  vocabulary?: PageVocabulary;
}

/** What the live page's server says whenever something changed. */
export interface LiveState {
  /** Grows when what was read is not true any more. */
  epoch: number;
  /** ended: the job is done; stopped: nobody works on it, it can be resumed. */
  status: "running" | "ended" | "stopped";
  episodes: number;
  /** Hashes of the overview's sections by their ids. */
  sections: Record<string, string>;
}

/** How the page is set up: the only JSON that it reads at once. */
export interface PageSettings {
  /** Episodes in all, and how many of them the page holds. */
  episodes: number;
  held: number;
  /** The state that the live page was made from; null in a report. */
  live: LiveState | null;
}
