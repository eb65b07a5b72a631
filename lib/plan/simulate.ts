// Replays the schedules of all ranks: who waits for whom, and what of the communication stays in sight.
import { TokenringError } from "../errors.ts";
import {
  isCommunication,
  type MeshShape,
  membersOf,
  type ScheduleEntry,
  TRACKS,
  type Track,
} from "./schedule.ts";

export interface SimulationOptions {
  mesh: MeshShape;
  /**
   * Of each rank; ranks of a group make the same calls in the same order. Of the first ranks alone where all others are
   * like them: those that are left out are as ready as those that are there.
   */
  schedules: readonly (readonly ScheduleEntry[])[];
  /** Seconds of an entry that computes, on a rank; a straggler is a rank whose entries take longer. */
  computeSeconds: (entry: ScheduleEntry, rank: number) => number;
  /** Seconds of a rank's part in a communicator's call, once all its ranks have come. */
  communicationSeconds: (entry: ScheduleEntry, members: readonly number[]) => number;
  /** When each rank begins; at 0 where nothing is said. */
  begins?: readonly number[];
  onSpan?: (span: Span) => void;
}

/** When an entry ran, in seconds from the beginning. A communicator's call begins when its last rank has come. */
export interface Span {
  rank: number;
  entry: ScheduleEntry;
  begin: number;
  end: number;
}

export interface RankTime {
  /** When the rank's last entry ended. */
  seconds: number;
  /** Of which each track was at work. */
  busy: Record<Track, number>;
  /** Of which compute stood still because another track, or another rank, was not done. */
  exposed: number;
}

export interface Simulation {
  /** Of the slowest rank. */
  seconds: number;
  ranks: RankTime[];
}

interface Walk {
  at: number;
  /** End of the last entry of each track. */
  ends: Record<Track, number>;
  time: RankTime;
  /** With whom it makes the calls of each track, by their op. */
  groups: Record<Track, Map<string, Group>>;
}

/** Ranks that make calls together. One call after the other: nobody goes on before all have come. */
interface Group {
  name: string;
  members: number[];
  /** Those of them that are simulated. */
  there: number[];
  /** When each rank that has come to the call was ready. */
  ready: Map<number, number>;
  /** Calls made so far. */
  calls: number;
}

/**
 * Each track runs its entries in their order; an entry starts when its track is free and the tracks that it comes after
 * have ended what they had queued. A collective starts when all its ranks are ready for it; an exchange waits for the
 * neighbours in the ring alone.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT where ranks disagree about what they call.
 */
export function simulate(options: SimulationOptions): Simulation {
  const { mesh, schedules } = options;
  const walks = schedules.map((_, rank): Walk => {
    const all = (value: number): Record<Track, number> => ({
      compute: value,
      context: value,
      gradients: value,
      host: value,
    });
    const ends = all(options.begins?.[rank] ?? 0);
    // A rank that is late holds up others, and has not waited itself.
    const groups = { compute: new Map(), context: new Map(), gradients: new Map(), host: new Map() };
    return { at: 0, ends, time: { seconds: 0, busy: all(0), exposed: 0 }, groups };
  });
  const groups = new Map<string, Group>();
  /** Who takes part in a rank's call. */
  const groupOf = (entry: ScheduleEntry, rank: number, known: Map<string, Group>): Group => {
    const own = known.get(entry.op);
    if (own) return own;
    const members = membersOf(entry, rank, mesh);
    const name = `${entry.track}/${members[0]}-${members.at(-1)}/${members.length}`;
    const there = members.filter((member) => member < schedules.length);
    const group = groups.get(name) ?? { name, members, there, ready: new Map(), calls: 0 };
    groups.set(name, group);
    known.set(entry.op, group);
    return group;
  };

  const finish = (rank: number, entry: ScheduleEntry, begin: number, end: number): void => {
    const { ends, time } = walks[rank] as Walk;
    if (entry.track === "compute") time.exposed += begin - ends.compute;
    time.busy[entry.track] += end - begin;
    ends[entry.track] = end;
    time.seconds = Math.max(time.seconds, end);
    options.onSpan?.({ rank, entry, begin, end });
  };

  /** Whether the rank's next entry has run; false where it waits for others, or there is none. */
  const advance = (rank: number): boolean => {
    const walk = walks[rank] as Walk;
    const entry = schedules[rank]?.[walk.at];
    if (!entry) return false;
    const ready = Math.max(walk.ends[entry.track], ...entry.after.map((track) => walk.ends[track]));
    if (!isCommunication(entry)) {
      finish(rank, entry, ready, ready + options.computeSeconds(entry, rank));
      walk.at++;
      return true;
    }
    const group = groupOf(entry, rank, walk.groups[entry.track]);
    const { name, members, there } = group;
    if (group.ready.has(rank)) return false; // it waits there
    group.ready.set(rank, ready);
    if (group.ready.size < there.length) return false;
    const all = there.map((member) => group.ready.get(member) as number);
    group.ready.clear();
    group.calls++;
    const last = Math.max(...all);
    const n = there.length;
    for (const [i, member] of there.entries()) {
      const of = walks[member] as Walk;
      const own = schedules[member]?.[of.at] as ScheduleEntry;
      if (own.op !== entry.op) {
        throw new TokenringError(
          "ERR_TOKENRING_INVALID_ARGUMENT",
          `simulate: at call ${group.calls - 1} of ${name} rank ${rank} makes ${entry.op}, rank ${member} ${own.op}`,
        );
      }
      const neighbours = [all[i], all[(i + 1) % n], all[(i + n - 1) % n]] as number[];
      const begin = own.op === "exchange" ? Math.max(...neighbours) : last;
      finish(member, own, begin, begin + options.communicationSeconds(own, members));
      of.at++;
    }
    return true;
  };

  // In any order: times come from the recurrences above, not from when they are evaluated.
  for (let moved = true; moved; ) {
    moved = false;
    for (const rank of walks.keys()) while (advance(rank)) moved = true;
  }
  const stuck = walks.findIndex((walk, rank) => walk.at < (schedules[rank]?.length ?? 0));
  if (stuck >= 0) {
    const entry = schedules[stuck]?.[walks[stuck]?.at ?? 0] as ScheduleEntry;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `simulate: rank ${stuck} waits for others in ${entry.op} of layer ${entry.layer}, which they never make`,
    );
  }
  const seconds = Math.max(0, ...walks.map(({ time }) => time.seconds));
  // What comes after the last product is waited for as well.
  for (const { ends, time } of walks) time.exposed += seconds - ends.compute;
  return { seconds, ranks: walks.map(({ time }) => time) };
}

/** Spans as a Chrome trace: a process for each rank, a thread for each track. */
export function chromeTrace(spans: readonly Span[]): string {
  const events = spans.map(({ rank, entry, begin, end }) => ({
    name: entry.layer < 0 ? entry.op : `${entry.op} ${entry.layer}`,
    ph: "X",
    pid: rank,
    tid: TRACKS.indexOf(entry.track),
    ts: begin * 1e6,
    dur: (end - begin) * 1e6,
    args: { bytes: entry.bytes, flops: entry.flops },
  }));
  const names = [...new Set(spans.map(({ rank }) => rank))].flatMap((rank) => [
    { name: "process_name", ph: "M", pid: rank, args: { name: `rank ${rank}` } },
    ...TRACKS.map((track, tid) => ({ name: "thread_name", ph: "M", pid: rank, tid, args: { name: track } })),
  ]);
  return JSON.stringify({ traceEvents: [...names, ...events], displayTimeUnit: "ms" });
}
