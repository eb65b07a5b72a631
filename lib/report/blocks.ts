// The page's data: the list of all episodes, and blocks of as many of them as fit.
import { promisify } from "node:util";
import { deflate } from "node:zlib";
import type { EpisodeRow, RunData, StoredEpisode } from "./data.ts";
import { encodePack, RowTable, vocabularyOf } from "./pack.ts";
import { samplingOrder } from "./sample.ts";

/** What a report holds, and how large it may become. */
export interface ReportOptions {
  /** Hold every episode, however large the page becomes. Default false. */
  all?: boolean;
  /** Bytes that the page may have otherwise: 20 MB. */
  budget?: number;
  /** Told how many episodes were read so far. */
  onEpisodes?: (read: number) => void;
}

/** Bytes of a block before it is packed, about: what is unpacked at once when one of its episodes is opened. */
const BLOCK = 200_000;
/** Blocks that did not fit, one after the other, before the page counts as full. */
const MISSES = 12;

const pressed = promisify(deflate);
const base64 = async (bytes: Uint8Array | string): Promise<string> =>
  (await pressed(bytes)).toString("base64");

/** One line of the list: of which run it is, and the block and the place in it where its episode lies. */
interface Line {
  run: number;
  row: EpisodeRow;
  pack: number;
  at: number;
}

/** Episodes of one run on their way into a block. */
interface Open {
  lines: Line[];
  episodes: StoredEpisode[];
  bytes: number;
}

/** What the page embeds, deflated and in base64; how many episodes the blocks hold. */
export interface Blocks {
  rows: string;
  /** One a run. */
  vocabularies: string[];
  blocks: string[];
  held: number;
}

/** Puts the episodes of `runs` into blocks while `limit` bytes of the page hold them; runs take turns. */
export async function blocksOf(
  runs: readonly RunData[],
  limit: number,
  onEpisodes: (read: number) => void = () => {},
): Promise<Blocks> {
  const lines = runs.map((data, run) => data.episodes.map((row): Line => ({ run, row, pack: -1, at: 0 })));
  // The list gets somewhat longer when it says where episodes lie; texts of tokens come on top.
  const list = await base64(JSON.stringify(new RowTable(runs).columns(lines.flat())));
  let room = 0.95 * limit - 1.3 * list.length;
  let misses = 0;
  let read = 0;
  const blocks: string[] = [];
  const ids = runs.map(() => new Set<number>());
  const open = runs.map((): Open => ({ lines: [], episodes: [], bytes: 0 }));

  const close = async (run: number): Promise<void> => {
    const { lines: taken, episodes } = open[run] as Open;
    open[run] = { lines: [], episodes: [], bytes: 0 };
    if (taken.length === 0) return;
    const block = await base64(encodePack(episodes, { tokenizer: runs[run]?.tokenizer }));
    if (block.length > room) {
      misses++;
      return;
    }
    taken.forEach((line, at) => {
      Object.assign(line, { pack: blocks.length, at });
    });
    for (const { trajectory } of episodes) for (const id of trajectory.tokens) ids[run]?.add(id);
    blocks.push(block);
    room -= block.length;
    misses = 0;
  };

  const orders = runs.map((run) => samplingOrder(run.episodes));
  const longest = Math.max(0, ...orders.map((order) => order.length));
  for (let k = 0; k < longest && misses < MISSES; k++) {
    for (const [run, order] of orders.entries()) {
      const unit = order[k] ?? [];
      const into = open[run] as Open;
      const episodes = await Promise.all(unit.map((row) => (runs[run] as RunData).load(row)));
      into.lines.push(...unit.map((row) => lines[run]?.[row] as Line));
      into.episodes.push(...episodes);
      read += unit.length;
      onEpisodes(read);
      for (const { trajectory } of episodes)
        into.bytes += 6 * trajectory.tokens.length + 300 * trajectory.turns.length;
      if (into.bytes >= BLOCK) await close(run);
    }
  }
  for (const run of runs.keys()) await close(run);
  const all = lines.flat();
  return {
    rows: await base64(JSON.stringify(new RowTable(runs).columns(all))),
    vocabularies: await Promise.all(
      ids.map((used, run) => base64(JSON.stringify(vocabularyOf(used, runs[run]?.tokenizer)))),
    ),
    blocks,
    held: all.filter((line) => line.pack >= 0).length,
  };
}
