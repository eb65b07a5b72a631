// Reads what `trace` wrote (native/core/trace.h): calls of all ranks, entry by entry, on one clock.
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { TokenringError } from "../errors.ts";
import {
  isCommunication,
  type MeshShape,
  membersOf,
  type ScheduleEntry,
  TRACKS,
  type Track,
} from "./schedule.ts";

/** An entry and when it ran, in seconds of the clock of rank 0's host. One of a communicator began when its rank came. */
export interface TracedEntry {
  entry: ScheduleEntry;
  begin: number;
  end: number;
}

/** A call that all ranks made: a pass, or an optimiser step. */
export interface TracedCall {
  /** "accumulate", "score" or "optimise". */
  name: string;
  /** Of the calls of its policy, from 1. */
  number: number;
  mesh: MeshShape;
  /** Of each rank, in the order in which they were queued; empty where it had nothing to do. */
  ranks: TracedEntry[][];
}

interface Event {
  ph: string;
  name: string;
  pid: number;
  tid: number;
  ts: number;
  dur: number;
  args: {
    name?: string;
    host?: string;
    layer?: number;
    bytes?: number;
    flops?: number;
    after?: Track[];
  } & Partial<MeshShape>;
}

/** A policy of which a file has ranks: those of later ones come behind. */
interface Life {
  mesh: MeshShape;
  /** Of each rank: the calls that it has begun. */
  begun: Map<number, number>;
  hosts: Map<number, string>;
  calls: Map<number, TracedCall>;
}

const bad = (file: string, what: string): TokenringError =>
  new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${file}: ${what}`);

/**
 * The calls in the files, which together have all ranks: one file a host. Their clocks are brought together by the ends
 * of what they did together.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT naming the file that is none of ours, or what is missing.
 */
export async function readTraces(files: readonly string[]): Promise<TracedCall[]> {
  const lives: Life[] = [];
  /** How many policies a rank has had. */
  const born = new Map<number, number>();
  for (const file of files) await readInto(file, lives, born);
  const name = files.join(", ");
  if (lives.length === 0) throw bad(name, "no policy has written into it; give what its option trace named");
  return lives.flatMap((life) => {
    const { mesh, hosts, calls } = life;
    const missing = Array.from({ length: mesh.ranks }, (_, rank) => rank).filter((rank) => !hosts.has(rank));
    if (missing.length > 0)
      throw bad(
        name,
        `rank ${missing.join(", ")} of ${mesh.ranks} is missing; every host has a file, give all of them`,
      );
    align(name, life);
    return [...calls.values()].filter(({ ranks }) => ranks.some((entries) => entries.length > 0));
  });
}

async function readInto(file: string, lives: Life[], born: Map<number, number>): Promise<void> {
  const threads = new Map<string, string>();
  const own = new Map<number, Life>();
  const input = createReadStream(file, "utf8");
  try {
    for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      // An array of events, one to a line, which need not have an end.
      const text = line.replace(/,\s*$/, "");
      if (text === "" || text === "[" || text === "]") continue;
      const event = parsed(file, text);
      const { ph, pid, tid, args } = event;
      if (ph === "M" && event.name === "thread_name") threads.set(`${pid}/${tid}`, args.name ?? "");
      else if (ph === "M" && event.name === "process_name") own.delete(pid);
      else if (ph === "M" && event.name === "tokenring") {
        const count = born.get(pid) ?? 0;
        born.set(pid, count + 1);
        own.set(pid, lifeOf(file, lives, count, pid, args));
      } else if (ph === "X") {
        const life = own.get(pid);
        if (!life)
          throw bad(file, "it does not say how its ranks are grouped; trace again with this version");
        if (CALLS.has(event.name)) beginCall(file, life, event);
        else addSpan(file, life, event, threads.get(`${pid}/${tid}`));
      }
    }
  } catch (error) {
    if (error instanceof TokenringError) throw error;
    throw bad(file, `cannot be read: ${(error as Error).message}`);
  }
}

function parsed(file: string, text: string): Event {
  try {
    const event = JSON.parse(text) as Event;
    if (typeof event.pid === "number" && typeof event.args === "object") return event;
  } catch {
    // said below
  }
  throw bad(file, `is no trace of tokenring, which has an event a line: ${text.slice(0, 60)}`);
}

/** The policy that this is rank `rank` of: the first that it was in was the first of the others, too. */
function lifeOf(file: string, lives: Life[], count: number, rank: number, args: Event["args"]): Life {
  const { host = "", ranks = 1, contextParallel = 1, contextNode, shard = 0, shardSize = ranks } = args;
  const levels = contextNode === undefined ? {} : { contextNode };
  const mesh = { ranks, contextParallel, ...levels, shard, shardSize };
  lives[count] ??= { mesh, begun: new Map(), hosts: new Map(), calls: new Map() };
  const life = lives[count];
  if (JSON.stringify(life.mesh) !== JSON.stringify(mesh))
    throw bad(
      file,
      `rank ${rank} was in another mesh than rank ${[...life.hosts.keys()][0]}; give files of one run`,
    );
  if (life.hosts.has(rank)) throw bad(file, `rank ${rank} is in another file, too; give each file once`);
  life.hosts.set(rank, host);
  return life;
}

/** Marks in a rank's spans: here a call begins. */
const CALLS = new Set(["accumulate", "score", "optimise"]);

function beginCall(file: string, { mesh, begun, calls }: Life, { pid, name }: Event): void {
  const number = (begun.get(pid) ?? 0) + 1;
  begun.set(pid, number);
  const known = calls.get(number);
  if (known === undefined)
    calls.set(number, { name, number, mesh, ranks: Array.from({ length: mesh.ranks }, () => []) });
  else if (known.name !== name)
    throw bad(file, `call ${number} of rank ${pid} is ${name}, of another rank ${known.name}`);
}

function addSpan(file: string, life: Life, event: Event, track: string | undefined): void {
  const { pid, ts, dur, name, args } = event;
  const { layer = -1, bytes = 0, flops = 0, after = [] } = args;
  if (!TRACKS.includes(track as Track))
    throw bad(
      file,
      `rank ${pid} computed on several streams, whose turns are not replayed; trace with one thread a rank`,
    );
  life.calls.get(life.begun.get(pid) ?? 0)?.ranks[pid]?.push({
    entry: { op: name, layer, track: track as Track, after, bytes, flops },
    begin: ts * 1e-6,
    end: (ts + dur) * 1e-6,
  });
}

/** A communicator's call: what each of its ranks did, by rank. */
export type Meeting = Map<number, TracedEntry>;

/** Those of a call, each with the ranks that came. */
export function meetingsOf({ mesh, ranks }: TracedCall): Meeting[] {
  const meetings = new Map<string, Meeting>();
  ranks.forEach((entries, rank) => {
    const made = new Map<string, number>();
    for (const traced of entries) {
      const { entry } = traced;
      if (!isCommunication(entry)) continue;
      const members = membersOf(entry, rank, mesh);
      // Nodes and the places within them, shards and their replicas: first and size may be the same of both.
      const name = `${entry.track}/${members[0]}-${members.at(-1)}/${members.length}`;
      const count = made.get(name) ?? 0;
      made.set(name, count + 1);
      const key = `${name}/${count}`;
      const meeting = meetings.get(key) ?? new Map<number, TracedEntry>();
      meeting.set(rank, traced);
      meetings.set(key, meeting);
    }
  });
  return [...meetings.values()];
}

/** Brings the clocks of the hosts to that of rank 0's: a collective ends on all its ranks at about the same time. */
function align(files: string, { hosts, calls }: Life): void {
  const offsets = new Map([[hosts.get(0) as string, 0]]);
  if (new Set(hosts.values()).size === 1) return;
  const gaps = new Map<string, Map<string, number[]>>();
  for (const call of calls.values()) {
    for (const meeting of meetingsOf(call)) {
      const ends = new Map<string, number>();
      for (const [rank, { entry, end }] of meeting) {
        if (entry.op === "exchange") break; // neighbours alone wait for each other
        const host = hosts.get(rank) as string;
        ends.set(host, Math.max(end, ends.get(host) ?? end));
      }
      for (const [one, end] of ends) {
        for (const [other, late] of ends) {
          if (one === other) continue;
          const from = gaps.get(one) ?? new Map<string, number[]>();
          const between = from.get(other) ?? [];
          between.push(end - late);
          gaps.set(one, from.set(other, between));
        }
      }
    }
  }
  const found = [hosts.get(0) as string];
  for (const one of found) {
    for (const [other, between] of gaps.get(one) ?? []) {
      if (offsets.has(other)) continue;
      offsets.set(other, (offsets.get(one) as number) + median(between));
      found.push(other);
    }
  }
  const apart = [...hosts].find(([, host]) => !offsets.has(host));
  if (apart)
    throw bad(
      files,
      `rank ${apart[0]} made no collective with rank 0, by which their clocks could be compared`,
    );
  for (const { ranks } of calls.values()) {
    ranks.forEach((entries, rank) => {
      const offset = offsets.get(hosts.get(rank) as string) as number;
      for (const traced of entries) {
        traced.begin += offset;
        traced.end += offset;
      }
    });
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(half)] as number) + (sorted[Math.ceil(half)] as number)) / 2;
}
