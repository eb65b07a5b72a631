// Reads a run directory for the report; a run may be under way, finished or broken off.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { loadTokenizer } from "../engine/tokenizer.ts";
import type { RunData, SampleEpisode } from "../report/data.ts";
import { readManifest } from "./directory.ts";
import { readEvents } from "./metrics.ts";
import { loadTrajectory, readIndex, type TrajectoryEntry } from "./trajectories.ts";

/** Candidates of one stage's newest iteration; few are kept, whatever the length of the index. */
interface Candidates {
  iteration: number;
  solved: TrajectoryEntry[];
  failed: TrajectoryEntry[];
}

const MOST_CANDIDATES = 64;

/** The solved episode with the most turns, the solved one with the fewest, and a failed one, as far as there are. */
function choose(candidates: Candidates, count: number): TrajectoryEntry[] {
  const byTurns = [...candidates.solved].sort((a, b) => b.turns.length - a.turns.length);
  const [longest, shortest] = [byTurns[0], byTurns.at(-1)];
  const wanted = [longest, candidates.failed[0], shortest, ...candidates.failed.slice(1), ...byTurns];
  return [...new Set(wanted)].filter((entry) => entry !== undefined).slice(0, count);
}

async function sampleEpisodes(directory: string, perStage: number): Promise<SampleEpisode[]> {
  const stages = new Map<string, Candidates>();
  try {
    for await (const entry of readIndex(directory)) {
      if (entry.dropped) continue;
      let stage = stages.get(entry.stage);
      if (stage === undefined || entry.iteration > stage.iteration) {
        stage = { iteration: entry.iteration, solved: [], failed: [] };
        stages.set(entry.stage, stage);
      }
      const list = entry.verdict === "resolved" ? stage.solved : stage.failed;
      if (list.length < MOST_CANDIDATES) list.push(entry);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  const chosen = [...stages.values()].flatMap((stage) => choose(stage, perStage));
  return Promise.all(
    chosen.map(async (entry) => ({
      stage: entry.stage,
      iteration: entry.iteration,
      trajectory: await loadTrajectory(directory, entry),
      ...(entry.reward === undefined ? {} : { reward: entry.reward }),
      ...(entry.advantage === undefined ? {} : { advantage: entry.advantage }),
    })),
  );
}

async function textOr<T>(file: string, otherwise: T): Promise<string | T> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return otherwise;
    throw error;
  }
}

/**
 * Everything that the report shows of the run in `directory`: its events, and up to `samples` episodes of each stage
 * (default 3), with the tokens' text where a checkpoint has a tokenizer. Takes no lock and writes nothing. Throws
 * ERR_TOKENRING_RUN_DIRECTORY when there is no run or its files are damaged.
 */
export async function readRun(directory: string, options: { samples?: number } = {}): Promise<RunData> {
  const at = path.resolve(directory);
  const manifest = await readManifest(at);
  const checkpoint = path.join(at, "checkpoints", "latest");
  const tokenizer = (await textOr(path.join(checkpoint, "tokenizer.json"), null)) !== null;
  const pieces = tokenizer ? await loadTokenizer(checkpoint) : null;
  return {
    name: path.basename(at),
    version: manifest.version,
    seed: manifest.seed,
    createdAt: manifest.createdAt,
    config: (await textOr(path.join(at, "config.yaml"), null)) ?? JSON.stringify(manifest.config, null, 2),
    events: await readEvents(path.join(at, "metrics.jsonl")),
    samples: await sampleEpisodes(at, options.samples ?? 3),
    ...(pieces === null ? {} : { piece: (token: number) => pieces.piece(token) }),
  };
}
