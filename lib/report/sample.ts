// Which episodes a report holds when it cannot hold all: whole groups from every stage, early, late and between.
import type { EpisodeRow } from "./data.ts";

/** Rows of one group, or a part of a group whose episodes are long. */
type Unit = readonly number[];

/** Tokens of a group that are held together; of more, some solved and some failed rollouts. */
const MOST_TOKENS = 400_000;

/** 0 .. count - 1 as last, first, middle, quarters, …: any beginning of it is spread evenly. */
export function spreadOrder(count: number): number[] {
  const seen = new Set<number>();
  const take = (at: number): void => {
    if (at >= 0 && at < count) seen.add(at);
  };
  take(count - 1);
  take(0);
  for (let parts = 2; seen.size < count; parts *= 2)
    for (let i = 1; i < parts; i += 2) take(Math.round((i * (count - 1)) / parts));
  return [...seen];
}

function grouped<K, V>(items: Iterable<V>, key: (item: V) => K): Map<K, V[]> {
  const out = new Map<K, V[]>();
  for (const item of items) {
    const list = out.get(key(item));
    if (list) list.push(item);
    else out.set(key(item), [item]);
  }
  return out;
}

/** A group within MOST_TOKENS: solved and failed rollouts in turns, at least one. */
function shortened(rows: readonly EpisodeRow[], group: readonly number[]): number[] {
  const row = (i: number): EpisodeRow => rows[i] as EpisodeRow;
  const [solved, failed] = [true, false].map((wanted) =>
    group.filter((i) => (row(i).verdict === "resolved") === wanted),
  ) as [number[], number[]];
  const turns = group.flatMap((_, k) => [solved[k], failed[k]]).filter((i) => i !== undefined);
  let tokens = 0;
  return turns.filter((i, place) => {
    const fits = tokens + row(i).tokens <= MOST_TOKENS || place === 0;
    if (fits) tokens += row(i).tokens;
    return fits;
  });
}

/**
 * All rows, as units in the order in which a page takes them while there is room: of every stage in turns, of each
 * stage first the groups of its longest and its most clipped episode, then iterations spread over the stage, and of an
 * iteration first the groups that were learnt from. What does not fit of a group comes after all groups.
 */
export function samplingOrder(rows: readonly EpisodeRow[]): Unit[] {
  const row = (i: number): EpisodeRow => rows[i] as EpisodeRow;
  const left: number[] = [];
  const stages = [...grouped(rows.keys(), (i) => row(i).stage).values()].map((stage) => {
    /** The episode with the largest value above 0. */
    const most = (value: (one: EpisodeRow) => number): number =>
      stage.reduce((best, i) => (value(row(i)) > (best < 0 ? 0 : value(row(best))) ? i : best), -1);
    const special = new Set([most((one) => one.tokens), most((one) => one.clipped ?? 0)]);
    const iterations = [...grouped(stage, (i) => row(i).iteration).values()].map((iteration) => {
      const groups = [...grouped(iteration, (i) => row(i).instanceId).values()];
      const rank = (group: readonly number[]): number =>
        group.some((i) => row(i).clipped !== null) ? 0 : group.some((i) => row(i).infra) ? 1 : 2;
      return groups.sort((a, b) => rank(a) - rank(b));
    });
    const order = spreadOrder(iterations.length);
    const longest = Math.max(...iterations.map((groups) => groups.length));
    const taken = Array.from({ length: longest }, (_, k) =>
      order.flatMap((at) => {
        const group = iterations[at]?.[k];
        return group === undefined ? [] : [group];
      }),
    ).flat();
    const first = taken.filter((group) => group.some((i) => special.has(i)));
    return [...first, ...taken.filter((group) => !first.includes(group))].map((group) => {
      const kept = shortened(rows, group);
      left.push(...group.filter((i) => !kept.includes(i)));
      return kept.sort((a, b) => a - b);
    });
  });
  const most = Math.max(0, ...stages.map((units) => units.length));
  const turns = Array.from({ length: most }, (_, k) =>
    stages.flatMap((units) => {
      const unit = units[k];
      return unit === undefined ? [] : [unit];
    }),
  ).flat();
  return [...turns, ...left.map((i) => [i])];
}
