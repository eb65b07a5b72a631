// In the browser: the list of episodes as columns; filters, order and names. A closed function.
import type { RowColumns } from "./types.ts";

export interface RowFilter {
  outcome: string;
  stage: string;
  order: string;
  words: string;
}

export function createRows(columns: RowColumns) {
  const c = columns;
  const count = (): number => c.run.length;
  const stageName = (i: number): string => c.stages[c.stage[i] as number] ?? "";
  const instance = (i: number): string => c.instances[c.instance[i] as number] ?? "";
  const resolved = (i: number): boolean => c.verdicts[c.verdict[i] as number] === "resolved";
  const infra = (i: number): boolean => c.infra[i] === 1;

  /** resolved, failed or infra. */
  const outcome = (i: number): string => (infra(i) ? "infra" : resolved(i) ? "resolved" : "failed");

  /** Why an episode is not resolved, or how it ended. */
  function reason(i: number): string {
    const why = c.reason[i] as number;
    const said = why >= 0 ? c.reasons[why] : c.verdicts[c.verdict[i] as number];
    return (said ?? "").replaceAll("_", " ");
  }
  const exit = (i: number): string => (c.exits[c.exit[i] as number] ?? "").replaceAll("_", " ");

  /** The name of an episode in addresses: it stays the same when the page is drawn anew. */
  function address(i: number): string {
    return [c.run[i], stageName(i), c.iteration[i], instance(i), c.rollout[i]]
      .map((part) => encodeURIComponent(String(part)))
      .join("/");
  }

  function find(wanted: string): number {
    for (let i = 0; i < count(); i++) if (address(i) === wanted) return i;
    return -1;
  }

  const outcomes: Record<string, (i: number) => boolean> = {
    all: () => true,
    resolved: (i) => !infra(i) && resolved(i),
    failed: (i) => !infra(i) && !resolved(i),
    infra,
    unreadable: (i) => (c.unreadable[i] as number) > 0,
    clipped: (i) => (c.clipped[i] ?? 0) > 0,
    learnt: (i) => c.clipped[i] !== null,
  };
  const orders: Record<string, ((i: number) => number) | null> = {
    newest: null,
    oldest: null,
    tokens: (i) => c.tokens[i] as number,
    turns: (i) => c.turns[i] as number,
    clipped: (i) => c.clipped[i] ?? -1,
    slowest: (i) => c.ms[i] as number,
    reward: (i) => c.reward[i] ?? -Infinity,
    advantage: (i) => c.advantage[i] ?? -Infinity,
  };

  /** Indices of the episodes that pass, in the order asked for. */
  function select(filter: RowFilter): Int32Array {
    const pass = outcomes[filter.outcome] ?? (() => true);
    const words = filter.words.toLowerCase().split(/\s+/).filter(Boolean);
    // Names are few: each is looked at once.
    const named = (names: readonly string[]): boolean[][] =>
      words.map((word) => names.map((name) => name.toLowerCase().includes(word)));
    const [instances, stages, reasons, exits] = [c.instances, c.stages, c.reasons, c.exits].map(named);
    const out: number[] = [];
    for (let i = 0; i < count(); i++) {
      if (filter.stage !== "" && `${c.run[i]}/${c.stage[i]}` !== filter.stage) continue;
      if (!pass(i)) continue;
      let all = true;
      for (let w = 0; all && w < words.length; w++) {
        all =
          instances?.[w]?.[c.instance[i] as number] === true ||
          stages?.[w]?.[c.stage[i] as number] === true ||
          reasons?.[w]?.[c.reason[i] as number] === true ||
          exits?.[w]?.[c.exit[i] as number] === true;
      }
      if (all) out.push(i);
    }
    const order = orders[filter.order];
    if (order) out.sort((a, b) => order(b) - order(a) || a - b);
    else if (filter.order === "newest") out.reverse();
    return Int32Array.from(out);
  }

  /** The rollouts of one episode's group, in their order. */
  function group(of: number): number[] {
    const out: number[] = [];
    for (let i = 0; i < count(); i++) {
      if (
        c.instance[i] === c.instance[of] &&
        c.iteration[i] === c.iteration[of] &&
        c.stage[i] === c.stage[of] &&
        c.run[i] === c.run[of]
      )
        out.push(i);
    }
    return out.sort((a, b) => (c.rollout[a] as number) - (c.rollout[b] as number));
  }

  /** Takes rows that were written since: columns of the same names, whose lists of names only ever grow. */
  function append(more: RowColumns): void {
    for (const key of Object.keys(c) as (keyof RowColumns)[]) {
      if (["runs", "stages", "instances", "verdicts", "exits", "reasons"].includes(key)) {
        (c as unknown as Record<string, unknown>)[key] = more[key];
      } else for (const value of more[key]) (c[key] as unknown[]).push(value);
    }
  }

  return {
    columns: c,
    count,
    stageName,
    instance,
    outcome,
    reason,
    exit,
    address,
    find,
    select,
    group,
    append,
  };
}
