// Reads a run directory for the report and the live page; a run may be under way, finished or broken off.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { loadTokenizer } from "../engine/tokenizer.ts";
import type { LoggedEvent } from "../learn/events.ts";
import type { EpisodeRow, RunData, StoredEpisode, TokenTexts } from "../report/data.ts";
import { type RunManifest, readManifest } from "./directory.ts";
import { type LinePlace, LogFollower } from "./follow.ts";
import { configText } from "./tracking.ts";
import { type TrajectoryEntry, TrajectoryReader } from "./trajectories.ts";

async function textOr<T>(file: string, otherwise: T): Promise<string | T> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return otherwise;
    throw error;
  }
}

function rowOf(entry: TrajectoryEntry): EpisodeRow {
  const { turns } = entry;
  const sum = (value: (turn: (typeof turns)[0]) => number): number =>
    turns.reduce((total, turn) => total + value(turn), 0);
  return {
    stage: entry.stage,
    iteration: entry.iteration,
    instanceId: entry.instanceId,
    rollout: entry.rollout,
    verdict: entry.verdict,
    exit: entry.exit,
    reason: entry.reason,
    infra: entry.dropped === true || entry.exit === "infra_failed" || entry.reason === "infra_failed",
    reward: entry.reward ?? null,
    advantage: entry.advantage ?? null,
    turns: turns.length,
    tokens: entry.length,
    actionTokens: sum((turn) => turn.end - turn.start),
    formatErrors: sum((turn) => (turn.formatError === null ? 0 : 1)),
    clipped: entry.learnt ? entry.learnt.clipped.reduce((a, b) => a + b, 0) : null,
    ms: sum((turn) => turn.sampleMs + turn.toolMs) + entry.verifyMs,
  };
}

/** What changed since the last look. */
export interface RunChanges {
  events: boolean;
  /** Number of the first new episode. */
  rows: number;
  /** The logs were cut: everything was read anew. */
  reset: boolean;
}

/** A run directory that is read and never written; takes no lock. */
export class RunReader implements RunData {
  readonly name: string;
  readonly version: string;
  readonly seed: number;
  readonly createdAt: string;
  readonly machine: string | null;
  readonly config: string;
  readonly settings: unknown;
  events: LoggedEvent[] = [];
  episodes: EpisodeRow[] = [];
  readonly #directory: string;
  readonly load: (row: number) => Promise<StoredEpisode>;
  #places: LinePlace[] = [];
  #metrics: LogFollower;
  #index: LogFollower;
  #trajectories: TrajectoryReader;
  #tokenizer: TokenTexts | undefined;

  private constructor(directory: string, manifest: RunManifest, config: string) {
    this.#directory = directory;
    this.name = path.basename(directory);
    this.version = manifest.version;
    this.seed = manifest.seed;
    this.createdAt = manifest.createdAt;
    const { machine } = manifest;
    this.machine = machine
      ? `Node.js ${machine.node} · ${machine.system} · ${machine.cpu}, ${machine.cores} cores`
      : null;
    this.settings = manifest.config;
    this.config = config;
    this.#metrics = new LogFollower(path.join(directory, "metrics.jsonl"));
    this.#index = new LogFollower(path.join(directory, "trajectories", "index.jsonl"));
    this.#trajectories = new TrajectoryReader(directory);
    this.load = async (row) => {
      const entry = (await this.#index.again(this.#places[row] as LinePlace)) as TrajectoryEntry;
      return this.#trajectories.read(entry);
    };
  }

  /** Throws ERR_TOKENRING_RUN_DIRECTORY when there is no run or its files are damaged. */
  static async open(directory: string): Promise<RunReader> {
    const at = path.resolve(directory);
    const manifest = await readManifest(at);
    const reader = new RunReader(at, manifest, await configText(at, manifest));
    await reader.poll();
    return reader;
  }

  get tokenizer(): TokenTexts | undefined {
    return this.#tokenizer;
  }

  /** Reads what was written since. */
  async poll(): Promise<RunChanges> {
    const rows = this.episodes.length;
    const events = this.events.length;
    const reads = [
      await this.#metrics.poll((value) => this.events.push(value as LoggedEvent)),
      await this.#index.poll((value, place) => {
        this.episodes.push(rowOf(value as TrajectoryEntry));
        this.#places.push(place);
      }),
    ];
    if (reads.includes("cut")) {
      this.events = [];
      this.episodes = [];
      this.#places = [];
      this.#metrics = new LogFollower(path.join(this.#directory, "metrics.jsonl"));
      this.#index = new LogFollower(path.join(this.#directory, "trajectories", "index.jsonl"));
      this.#trajectories = new TrajectoryReader(this.#directory);
      await this.poll();
      return { events: true, rows: 0, reset: true };
    }
    // The first checkpoint brings the tokenizer; a run that only samples has it by itself.
    for (const folder of ["checkpoints/latest", "tokenizer"]) {
      const from = path.join(this.#directory, folder);
      if (!this.#tokenizer && (await textOr(path.join(from, "tokenizer.json"), null)) !== null)
        this.#tokenizer = await loadTokenizer(from);
    }
    return { events: this.events.length > events, rows, reset: false };
  }
}

/**
 * Everything that the report shows of the run in `directory`. Writes nothing. Throws ERR_TOKENRING_RUN_DIRECTORY when
 * there is no run or its files are damaged.
 */
export function readRun(directory: string): Promise<RunData> {
  return RunReader.open(directory);
}
