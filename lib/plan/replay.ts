// Holds the simulator against what ranks really did: the same schedule, with durations taken from the trace.
import { isComputation, type MeshShape, type ScheduleEntry, type Track } from "./schedule.ts";
import { type Simulation, type Span, simulate } from "./simulate.ts";
import { type Meeting, median, meetingsOf, type TracedCall, type TracedEntry } from "./trace.ts";

/** How the simulator may be given a call's durations, from what it is told most to what it is told least. */
export const SOURCES = ["own", "slowed", "stations"] as const;
/**
 * own: each entry's own duration, so that only the order and the waiting are put to the test;
 * slowed: what such an entry takes in the other calls, times one number for each rank, by which it was slower here;
 * stations: what it takes in the other calls, and nothing of this one.
 */
export type Source = (typeof SOURCES)[number];

/** Where compute stood still for an exchange: seconds, in the trace and in the simulator given the own durations. */
export interface Exposure {
  rank: number;
  /** The call that was waited for; "other ranks" at the end of a pass, "between ops" where it was for nothing here. */
  op: string;
  layer: number;
  measured: number;
  simulated: number;
}

export interface Replay {
  name: string;
  number: number;
  mesh: MeshShape;
  /** Seconds from the first rank's beginning to the last rank's end. */
  measured: number;
  /** What the simulator says of that, by what it was given; null where there are no other calls. */
  simulated: { own: number } & Record<Exclude<Source, "own">, number | null>;
  /** How much longer each rank's compute took than the same in the other calls; 1 where there are none. */
  slowness: number[];
  /** Seconds in which each rank's compute stood still. */
  exposed: { measured: number; simulated: number }[];
  exposures: Exposure[];
  /** Of all pairs of entries, the share that end in the same order in the simulator and in the trace, to 10 µs. */
  inOrder: number;
  /** Entries that began, or calls that ended, before what the simulator makes them wait for, by over 50 µs. */
  early: number;
  entries: number;
}

/** What clocks and their rounding may differ by. */
const TOLERANCE = 50e-6;
const TICK = 10e-6;

/** Seconds of an entry, by what it is and on the average of its op. */
class Stations {
  readonly #exact = new Map<string, number[]>();
  readonly #rates = new Map<string, { seconds: number; work: number }>();

  add(entry: ScheduleEntry, seconds: number): void {
    const key = Stations.#key(entry);
    const known = this.#exact.get(key) ?? [];
    known.push(seconds);
    this.#exact.set(key, known);
    const rate = this.#rates.get(entry.op) ?? { seconds: 0, work: 0 };
    rate.seconds += seconds;
    rate.work += Stations.#work(entry);
    this.#rates.set(entry.op, rate);
  }

  /** Null for an op that no other call has. */
  seconds(entry: ScheduleEntry): number | null {
    const key = Stations.#key(entry);
    const exact = this.#medians.get(key) ?? this.#exact.get(key);
    if (exact !== undefined) {
      const value = typeof exact === "number" ? exact : median(exact);
      this.#medians.set(key, value);
      return value;
    }
    const rate = this.#rates.get(entry.op);
    return rate ? (rate.seconds / rate.work) * Stations.#work(entry) : null;
  }
  readonly #medians = new Map<string, number>();

  static #key({ op, track, bytes, flops }: ScheduleEntry): string {
    return `${op}/${track}/${bytes}/${flops}`;
  }

  static #work({ bytes, flops }: ScheduleEntry): number {
    return flops || bytes || 1;
  }
}

/** Seconds of each entry while it worked: of a communicator's call, from when those that it waits for had come. */
function durationsOf(call: TracedCall): { seconds: Map<ScheduleEntry, number>; early: number } {
  const seconds = new Map<ScheduleEntry, number>();
  let early = 0;
  for (const { entry, begin, end } of call.ranks.flat()) seconds.set(entry, end - begin);
  for (const meeting of meetingsOf(call)) {
    for (const [rank, { entry, end }] of meeting) {
      const moved = end - cameAt(meeting, rank);
      if (moved < -TOLERANCE) early++;
      seconds.set(entry, Math.max(0, moved));
    }
  }
  return { seconds, early };
}

/** When all that a rank waits for in a meeting had come: of an exchange, its neighbours. */
function cameAt(meeting: Meeting, rank: number): number {
  const ranks = [...meeting.keys()];
  const i = ranks.indexOf(rank);
  const n = ranks.length;
  const exchange = meeting.get(rank)?.entry.op === "exchange";
  const awaited = exchange ? [i, (i + 1) % n, (i + n - 1) % n] : ranks.keys();
  return Math.max(...[...awaited].map((at) => (meeting.get(ranks[at] as number) as TracedEntry).begin));
}

/** Entries that began before what they come after, on their rank, had ended. */
function earlyBegins({ ranks }: TracedCall): number {
  let early = 0;
  for (const entries of ranks) {
    const ends: Partial<Record<Track, number>> = {};
    for (const { entry, begin, end } of entries) {
      const ready = Math.max(...[entry.track, ...entry.after].map((track) => ends[track] ?? 0));
      if (begin < ready - TOLERANCE) early++;
      ends[entry.track] = end;
    }
  }
  return early;
}

/** Of one rank, in order: when its compute stood still, and for what. */
function exposuresOf(
  entries: readonly TracedEntry[],
  begin: number,
  end: number,
): { op: string; layer: number; seconds: number }[] {
  const stops: { op: string; layer: number; seconds: number }[] = [];
  const last: Partial<Record<Track, TracedEntry>> = {};
  /** Of each track, whose other entries work on what came with it. */
  const calls: Partial<Record<Track, TracedEntry>> = {};
  const stop = ({ entry }: TracedEntry, seconds: number): void => {
    const { op, layer } = (calls[entry.track] ?? { entry }).entry;
    stops.push({ op, layer, seconds });
  };
  let free = begin;
  for (const traced of entries) {
    const { entry } = traced;
    if (entry.track === "compute") {
      const late = entry.after
        .map((track) => last[track])
        .filter((one) => one !== undefined)
        .reduce<TracedEntry | null>((most, one) => (most === null || one.end > most.end ? one : most), null);
      const waited = Math.min(traced.begin, Math.max(free, late?.end ?? 0)) - free;
      if (late && waited > 0) stop(late, waited);
      stops.push({ op: "between ops", layer: -1, seconds: traced.begin - free - waited });
      free = traced.end;
    }
    last[entry.track] = traced;
    if (!isComputation(entry)) calls[entry.track] = traced;
  }
  // What comes after the last product.
  for (const track of ["context", "gradients"] as const) {
    const of = last[track];
    if (!of || of.end <= free) continue;
    stop(of, of.end - free);
    free = of.end;
  }
  stops.push({ op: "other ranks", layer: -1, seconds: end - free });
  return stops;
}

/** Of all pairs, the share of those whose two numbers are in the same order in both; equal ones are in any. */
export function pairsInOrder(one: readonly number[], other: readonly number[]): number {
  // Inversions of `other` in the order of `one`, by merging.
  const by = (values: readonly number[], a: number, b: number): number =>
    (values[a] as number) - (values[b] as number);
  const order = one.map((_, i) => i).sort((a, b) => by(one, a, b) || by(other, a, b));
  const count = (values: number[]): [number[], number] => {
    if (values.length < 2) return [values, 0];
    const half = values.length >> 1;
    const [left, a] = count(values.slice(0, half));
    const [right, b] = count(values.slice(half));
    const merged: number[] = [];
    let swapped = a + b;
    for (let i = 0, j = 0; i < left.length || j < right.length; ) {
      if (j >= right.length || (i < left.length && (left[i] as number) <= (right[j] as number)))
        merged.push(left[i++] as number);
      else {
        swapped += left.length - i;
        merged.push(right[j++] as number);
      }
    }
    return [merged, swapped];
  };
  const [, swapped] = count(order.map((i) => other[i] as number));
  const pairs = (one.length * (one.length - 1)) / 2;
  return pairs === 0 ? 1 : 1 - swapped / pairs;
}

const alike = (one: TracedCall, other: TracedCall): boolean =>
  one.name === other.name && JSON.stringify(one.mesh) === JSON.stringify(other.mesh);

/** Replays every call, with stations from the others of its name; a call alone has none, and is replayed as it was. */
export function replay(calls: readonly TracedCall[]): Replay[] {
  const durations = calls.map(durationsOf);
  return calls.map((call, c) => {
    const { seconds, early } = durations[c] as (typeof durations)[number];
    const stations = new Stations();
    const others = durations.filter((_, o) => o !== c && alike(calls[o] as TracedCall, call));
    for (const other of others) for (const [entry, took] of other.seconds) stations.add(entry, took);
    const ownOf = (entry: ScheduleEntry): number => seconds.get(entry) as number;
    const stationOf = (entry: ScheduleEntry): number => stations.seconds(entry) ?? ownOf(entry);

    const first = Math.min(...call.ranks.flatMap((entries) => entries.map(({ begin }) => begin)));
    const final = Math.max(...call.ranks.flatMap((entries) => entries.map(({ end }) => end)));
    const begins = call.ranks.map((entries) =>
      entries.length === 0 ? 0 : Math.min(...entries.map(({ begin }) => begin)) - first,
    );
    const slowness = call.ranks.map((entries) => {
      const computed = entries.filter(({ entry }) => isComputation(entry));
      const sum = (of: (entry: ScheduleEntry) => number): number =>
        computed.reduce((all, { entry }) => all + of(entry), 0);
      return computed.length === 0 ? 1 : sum(ownOf) / sum(stationOf);
    });
    const run = (source: Source): Simulation & { times: Map<ScheduleEntry, Span> } => {
      const times = new Map<ScheduleEntry, Span>();
      const simulation = simulate({
        mesh: call.mesh,
        schedules: call.ranks.map((entries) => entries.map(({ entry }) => entry)),
        computeSeconds: (entry, rank) =>
          source === "own"
            ? ownOf(entry)
            : stationOf(entry) * (source === "slowed" ? (slowness[rank] as number) : 1),
        communicationSeconds: source === "own" ? ownOf : stationOf,
        ...(source === "stations" ? {} : { begins }),
        onSpan: (span) => times.set(span.entry, span),
      });
      return { ...simulation, times };
    };
    const own = run("own");
    const simulatedOf = (entries: readonly TracedEntry[]): TracedEntry[] =>
      entries.map(({ entry }) => {
        const { begin, end } = own.times.get(entry) as Span;
        return { entry, begin, end };
      });
    const exposures = call.ranks.flatMap((entries, rank) => {
      const begin = begins[rank] as number;
      return mergeExposures(
        rank,
        exposuresOf(entries, first + begin, final),
        exposuresOf(simulatedOf(entries), begin, own.seconds),
      );
    });
    const all = call.ranks.flat();
    const exposed = call.ranks.map((_, rank) => {
      const of = exposures.filter((one) => one.rank === rank);
      const sum = (key: "measured" | "simulated"): number => of.reduce((total, one) => total + one[key], 0);
      return { measured: sum("measured"), simulated: sum("simulated") };
    });
    return {
      name: call.name,
      number: call.number,
      mesh: call.mesh,
      measured: final - first,
      simulated: {
        own: own.seconds,
        slowed: others.length > 0 ? run("slowed").seconds : null,
        stations: others.length > 0 ? run("stations").seconds : null,
      },
      slowness,
      exposed,
      exposures,
      inOrder: pairsInOrder(
        all.map(({ end }) => Math.round(end / TICK)),
        all.map(({ entry }) => Math.round((own.times.get(entry) as Span).end / TICK)),
      ),
      early: early + earlyBegins(call),
      entries: all.length,
    };
  });
}

type Stops = ReturnType<typeof exposuresOf>;

function mergeExposures(rank: number, measured: Stops, simulated: Stops): Exposure[] {
  const merged = new Map<string, Exposure>();
  for (const [side, stops] of [
    ["measured", measured],
    ["simulated", simulated],
  ] as const) {
    for (const { op, layer, seconds } of stops) {
      const key = `${op}/${layer}`;
      const of = merged.get(key) ?? { rank, op, layer, measured: 0, simulated: 0 };
      of[side] += seconds;
      merged.set(key, of);
    }
  }
  return [...merged.values()].filter((one) => one.measured > 0 || one.simulated > 0);
}
