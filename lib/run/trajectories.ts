// Trajectories on disk: index.jsonl says what happened, safetensors shards hold the token lanes.
import { open, readdir, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import type { Budget, Group, Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import { counts } from "../evaluate/episodes.ts";
import type { LearntTokens } from "../learn/types.ts";
import { guarded, syncDirectory } from "./files.ts";
import { AppendLog, readLog } from "./metrics.ts";
import { type Lane, SafetensorsFile, safetensorsPieces } from "./safetensors.ts";

/** One line of index.jsonl: a trajectory without its lanes, which `shard` holds. */
export interface TrajectoryEntry extends Omit<Trajectory, "tokens" | "provenance" | "logprobs" | "alsoAt"> {
  stage: string;
  iteration: number;
  /** File in trajectories/, and which of its tokens are this trajectory's. */
  shard: string;
  offset: number;
  length: number;
  /** Infrastructure broke it: it counted nowhere. */
  dropped?: true;
  /** What learning made of it, where it did. */
  reward?: number;
  advantage?: number;
  /** The optimiser step of the iteration that learnt from it, where its action tokens lie in the shard's learnt_*
   * lanes, and how many of them were clipped: low, high, dual. */
  learnt?: { step: number; offset: number; length: number; clipped: [number, number, number] };
  /** What it came to at smaller budgets, of which `turns` and `tokens` are prefixes of these. */
  alsoAt?: ({ budget: Budget; turns: number; tokens: number } & Pick<
    Trajectory,
    "exit" | "verdict" | "reason" | "patch" | "verifyMs"
  >)[];
}

/** A trajectory with what learning made of it. */
export interface StoredTrajectory {
  trajectory: Trajectory;
  dropped?: boolean;
  reward?: number;
  advantage?: number;
  learnt?: LearntTokens;
}

/** The trajectories of a group that infrastructure broke: kept to be looked at. */
export function brokenOf(group: Group): StoredTrajectory[] {
  const uncounted = group.trajectories.filter((trajectory) => !counts(trajectory));
  return [...uncounted, ...group.dropped].map((trajectory) => ({ trajectory, dropped: true }));
}

/** A group as it was sampled, before anything is learnt of it. */
export function storedGroup(group: Group): StoredTrajectory[] {
  return [...group.trajectories.filter(counts).map((trajectory) => ({ trajectory })), ...brokenOf(group)];
}

/** Pieces of a lane, the first of which says its dtype where there are no others. */
function pieces<T extends Lane>(type: T, lanes: readonly T[]): readonly Lane[] {
  return [type, ...lanes];
}

/** The lanes of what learning saw, one entry for each action token that was learnt from; none where nothing was. */
function learntLanes(learnt: readonly LearntTokens[]): Record<string, readonly Lane[]> {
  if (learnt.length === 0) return {};
  const old = learnt.flatMap(({ oldLogprob }) => oldLogprob ?? []);
  return {
    learnt_logprobs: learnt.map((one) => one.logprob),
    learnt_entropies: learnt.map((one) => one.entropy),
    learnt_flags: learnt.map((one) => one.flags),
    ...(old.length > 0 && { learnt_old_logprobs: old }),
  };
}

function clippedCounts(flags: Uint8Array): [number, number, number] {
  const counts: [number, number, number] = [0, 0, 0];
  for (const flag of flags) if (flag > 0) counts[(flag - 1) as 0]++;
  return counts;
}

/** The writing side; belongs to a RunDirectory. */
export class TrajectoryStore {
  readonly #directory: string;
  readonly #index: AppendLog;

  private constructor(directory: string, index: AppendLog) {
    this.#directory = directory;
    this.#index = index;
  }

  /** `indexBytes` of the index stay, what follows and half-written shards are cut off. */
  static async open(directory: string, indexBytes: number): Promise<TrajectoryStore> {
    for (const name of await readdir(directory))
      if (name.endsWith(".tmp")) await rm(path.join(directory, name));
    return new TrajectoryStore(
      directory,
      await AppendLog.open(path.join(directory, "index.jsonl"), indexBytes),
    );
  }

  /**
   * Writes one shard, <stage>-<iteration>.safetensors with the lanes tokens (I32), logprobs (F32) and provenance
   * (U8), and its lines of the index. What was learnt from adds the lanes learnt_logprobs, learnt_entropies (F32) and
   * learnt_flags (U8) of its action tokens, and learnt_old_logprobs (F32) where ratios were not taken against the
   * engine's. The same stage and iteration written again replaces the shard.
   */
  async write(stage: string, iteration: number, stored: readonly StoredTrajectory[]): Promise<void> {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(stage)) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `trajectories of stage ${JSON.stringify(stage)}: use letters, digits, ".", "_" and "-"`,
      );
    }
    await guarded(this.#directory, () => this.#write(stage, iteration, stored));
  }

  async #write(stage: string, iteration: number, stored: readonly StoredTrajectory[]): Promise<void> {
    const all = stored.map((one) => one.trajectory);
    // Written piece by piece: the lanes of a large iteration are never in memory a second time.
    const bytes = safetensorsPieces({
      tokens: pieces(
        new Int32Array(),
        all.map((one) => one.tokens),
      ),
      logprobs: pieces(
        new Float32Array(),
        all.map((one) => one.logprobs),
      ),
      provenance: pieces(
        new Uint8Array(),
        all.map((one) => one.provenance),
      ),
      ...learntLanes(stored.flatMap(({ learnt }) => learnt ?? [])),
    });
    const shard = `${stage}-${String(iteration).padStart(4, "0")}.safetensors`;
    const file = path.join(this.#directory, shard);
    {
      await using handle = await open(`${file}.tmp`, "w");
      await writeFile(handle, bytes);
      await handle.datasync();
    }
    await rename(`${file}.tmp`, file);
    let offset = 0;
    let learntOffset = 0;
    for (const { trajectory, dropped, reward, advantage, learnt } of stored) {
      const { tokens, provenance: _, logprobs: __, alsoAt, ...text } = trajectory;
      const smaller = alsoAt?.map(({ budget, trajectory: at }) => {
        const { exit, verdict, reason, patch, verifyMs } = at;
        const counts = { turns: at.turns.length, tokens: at.tokens.length };
        return { budget, ...counts, exit, verdict, reason, patch, verifyMs };
      });
      const entry: TrajectoryEntry = {
        ...text,
        stage,
        iteration,
        shard,
        offset,
        length: tokens.length,
        ...(dropped ? { dropped: true } : {}),
        ...(reward === undefined ? {} : { reward }),
        ...(advantage === undefined ? {} : { advantage }),
        ...(learnt && {
          learnt: {
            step: learnt.step,
            offset: learntOffset,
            length: learnt.flags.length,
            clipped: clippedCounts(learnt.flags),
          },
        }),
        ...(smaller ? { alsoAt: smaller } : {}),
      };
      learntOffset += learnt?.flags.length ?? 0;
      // One after the other, so that the event loop turns between two long lines.
      await this.#index.append(entry);
      offset += tokens.length;
    }
  }

  /** Makes the index and the names of the shards durable; returns the index's length in bytes. */
  async sync(): Promise<number> {
    await syncDirectory(this.#directory);
    return this.#index.sync();
  }

  close(): Promise<void> {
    return this.#index.close();
  }
}

/** The index of a run, line by line. `directory` is the run's. */
export async function* readIndex(directory: string): AsyncGenerator<TrajectoryEntry, void, undefined> {
  for await (const line of readLog(path.join(directory, "trajectories", "index.jsonl")))
    yield line as TrajectoryEntry;
}

type LaneReader = (name: string, start: number, end: number) => Promise<Lane>;

/** Shards up to so many tokens are read whole; of longer ones only what is asked for. */
const WHOLE_SHARD_TOKENS = 2_000_000;
/** Shards that stay open: neighbours share their reading. */
const KEPT_SHARDS = 4;

async function openShard(file: string): Promise<{ read: LaneReader; has: (name: string) => boolean }> {
  const shard = await SafetensorsFile.open(file);
  const has = (name: string): boolean => shard.length(name) !== null;
  if ((shard.length("tokens") ?? 0) > WHOLE_SHARD_TOKENS)
    return { read: (...range) => shard.read(...range), has };
  const lanes = new Map<string, Promise<Lane>>();
  const read: LaneReader = async (name, start, end) => {
    const lane = lanes.get(name) ?? shard.read(name, 0, shard.length(name) ?? 0);
    lanes.set(name, lane);
    return (await lane).slice(start, end);
  };
  return { read, has };
}

/** Reads the trajectories of a run, with what learning saw of them, from their entries in its index. */
export class TrajectoryReader {
  readonly #directory: string;
  readonly #shards = new Map<string, ReturnType<typeof openShard>>();

  /** `directory` is the run's. */
  constructor(directory: string) {
    this.#directory = path.join(directory, "trajectories");
  }

  /** Throws ERR_TOKENRING_RUN_DIRECTORY when the shard is not what the entry says. */
  async read(entry: TrajectoryEntry): Promise<{ trajectory: Trajectory; learnt: LearntTokens | null }> {
    const opening = this.#shards.get(entry.shard) ?? openShard(path.join(this.#directory, entry.shard));
    this.#shards.delete(entry.shard);
    this.#shards.set(entry.shard, opening);
    for (const old of this.#shards.keys()) {
      if (this.#shards.size <= KEPT_SHARDS) break;
      this.#shards.delete(old);
    }
    const { read, has } = await opening;
    const end = entry.offset + entry.length;
    const trajectory: Trajectory = {
      id: entry.id,
      instanceId: entry.instanceId,
      rollout: entry.rollout,
      tokens: (await read("tokens", entry.offset, end)) as Int32Array,
      provenance: (await read("provenance", entry.offset, end)) as Uint8Array,
      logprobs: (await read("logprobs", entry.offset, end)) as Float32Array,
      turns: entry.turns,
      exit: entry.exit,
      verdict: entry.verdict,
      reason: entry.reason,
      ...(entry.tests && { tests: entry.tests }),
      patch: entry.patch,
      verifyMs: entry.verifyMs,
    };
    if (!entry.learnt) return { trajectory, learnt: null };
    const { step, offset, length } = entry.learnt;
    const lane = (name: string): Promise<Lane> => read(name, offset, offset + length);
    const learnt: LearntTokens = {
      step,
      logprob: (await lane("learnt_logprobs")) as Float32Array,
      entropy: (await lane("learnt_entropies")) as Float32Array,
      flags: (await lane("learnt_flags")) as Uint8Array,
      ...(has("learnt_old_logprobs") && { oldLogprob: (await lane("learnt_old_logprobs")) as Float32Array }),
    };
    return { trajectory, learnt };
  }
}
