import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { pairsInOrder, replay } from "../../lib/plan/replay.ts";
import type { Track } from "../../lib/plan/schedule.ts";
import { meetingsOf, readTraces, type TracedCall } from "../../lib/plan/trace.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";

const directory = mkdtempSync(join(tmpdir(), "tokenring-replay-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** An op with its begin and end in milliseconds. */
type Ran = [op: string, track: Track, begin: number, end: number, after?: Track[]];
const TIDS = { compute: 0, context: 101, gradients: 102, host: 103 };

/** As native/core/trace.cc writes it; `clock` is what the host's clock is ahead, in milliseconds. */
function text(
  rank: number,
  ranks: number,
  calls: Ran[][],
  { host = "here", clock = 0, shardSize = ranks } = {},
): string {
  const lines: unknown[] = Object.entries(TIDS).map(([name, tid]) => ({
    ph: "M",
    name: "thread_name",
    pid: rank,
    tid,
    args: { name },
  }));
  const mesh = { ranks, contextParallel: ranks, shard: 0, shardSize };
  lines.push({ ph: "M", name: "tokenring", pid: rank, tid: 0, args: { host, ...mesh } });
  for (const spans of calls) {
    const begins = 1000 * ((spans[0]?.[2] ?? 0) + clock);
    lines.push({ ph: "X", name: "accumulate", pid: rank, tid: 0, ts: begins, dur: 0, args: {} });
    for (const [name, track, begin, end, after] of spans) {
      const args = { layer: 0, bytes: 8, flops: 0, after };
      const times = { ts: 1000 * (begin + clock), dur: 1000 * (end - begin) };
      lines.push({ ph: "X", name, pid: rank, tid: TIDS[track], ...times, args });
    }
  }
  return lines.map((line) => `${JSON.stringify(line)},\n`).join("");
}

let files = 0;
function file(...parts: string[]): string {
  const path = join(directory, `${files++}.json`);
  writeFileSync(path, `[\n${parts.join("")}`);
  return path;
}

/** Rank 1 computes for longer, and rank 0 waits for its keys. */
const fast: Ran[] = [
  ["linear_forward", "compute", 0, 10],
  ["exchange", "context", 10, 35, ["compute"]],
  ["swiglu_forward", "compute", 10, 15],
  ["attention_block", "compute", 35, 45, ["context"]],
];
const slow: Ran[] = [
  ["linear_forward", "compute", 0, 30],
  ["exchange", "context", 30, 35, ["compute"]],
  ["swiglu_forward", "compute", 30, 35],
  ["attention_block", "compute", 35, 45, ["context"]],
];
const later = (spans: Ran[], by: number): Ran[] =>
  spans.map(([op, track, begin, end, after]) => [
    op,
    track,
    begin + by,
    end + by,
    ...(after ? [after] : []),
  ]) as Ran[];

describe("a trace", () => {
  it("is read as the calls of all ranks, whichever file and policy they are of", async () => {
    const both = file(
      text(0, 2, [fast, later(fast, 100)]),
      text(1, 2, [slow, later(slow, 100)]),
      text(0, 1, [fast]),
    );
    const calls = await readTraces([both]);
    expect(
      calls.map(({ number, mesh, ranks }) => [number, mesh.ranks, ranks.map((of) => of.length)]),
    ).toEqual([
      [1, 2, [4, 4]],
      [2, 2, [4, 4]],
      [1, 1, [4]],
    ]);
    expect(calls[0]?.ranks[1]?.[1]).toEqual({
      entry: { op: "exchange", layer: 0, track: "context", after: ["compute"], bytes: 8, flops: 0 },
      begin: expect.closeTo(0.03, 9),
      end: expect.closeTo(0.035, 9),
    });
  });

  it("of two hosts is brought to one clock by what the ranks did together", async () => {
    const sum = (begin: number): Ran => ["all_reduce", "gradients", begin, 50, ["compute"]];
    const here = file(text(0, 2, [[...fast, sum(45)]]));
    const there = file(text(1, 2, [[...slow, sum(45.5)]], { host: "there", clock: -12_345 }));
    const [call] = await readTraces([here, there]);
    expect(call?.ranks[1]?.[0]?.begin).toBeCloseTo(0, 6);
    const apart = file(text(1, 2, [slow], { host: "there", clock: 5 }));
    await expect(readTraces([file(text(0, 2, [fast])), apart])).rejects.toThrow(
      /rank 1 made no collective with rank 0, by which their clocks could be compared/,
    );
  });

  it.each([
    [[file("{}\n")], /is no trace of tokenring, which has an event a line: \{\}/],
    [[file()], /no policy has written into it; give what its option trace named/],
    [[file(text(0, 3, [fast]), text(2, 3, [slow]))], /rank 1 of 3 is missing; every host has a file/],
    [
      [file(text(0, 2, [fast]), text(1, 2, [slow], { shardSize: 1 }))],
      /rank 1 was in another mesh than rank 0/,
    ],
    [
      [file(text(0, 1, [fast]).replaceAll('"tid":0,"ts"', '"tid":1,"ts"'))],
      /rank 0 computed on several streams.*; trace with one thread a rank/,
    ],
    [["/nowhere/trace.json"], /cannot be read: ENOENT/],
  ])("is refused where it cannot be replayed: %#", async (paths, message) => {
    await expect(readTraces(paths)).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: expect.stringMatching(message),
    });
  });
});

describe("replay", () => {
  it("gives the times of ranks that did what the simulator supposes, and says for what they waited", async () => {
    const [one] = replay(await readTraces([file(text(0, 2, [fast]), text(1, 2, [slow]))]));
    expect(one?.measured).toBeCloseTo(0.045, 9);
    expect(one?.simulated.own).toBeCloseTo(0.045, 9);
    expect(one?.simulated).toMatchObject({ stations: null, slowed: null });
    expect(one).toMatchObject({ inOrder: 1, early: 0, entries: 8 });
    // Rank 0 waits from 15 to 35; rank 1 has something to do all the time.
    expect(one?.exposures).toEqual([
      {
        rank: 0,
        op: "exchange",
        layer: 0,
        measured: expect.closeTo(0.02, 9),
        simulated: expect.closeTo(0.02, 9),
      },
    ]);
  });

  it("sees what the simulator does not: pauses between ops, and ranks that do not wait for each other", async () => {
    const pause = later(fast.slice(2), 7);
    const [one] = replay(
      await readTraces([file(text(0, 2, [[...fast.slice(0, 2), ...pause]]), text(1, 2, [slow]))]),
    );
    expect(one?.measured).toBeCloseTo(0.052, 9);
    expect(one?.simulated.own).toBeCloseTo(0.045, 9);
    expect(one?.exposures.find(({ op }) => op === "between ops")).toMatchObject({
      rank: 0,
      measured: expect.closeTo(0.014, 9),
      simulated: 0,
    });
    // Rank 0 ends its exchange before rank 1 has come, and looks at keys that it does not have.
    const hasty: Ran[] = [
      ["linear_forward", "compute", 0, 10],
      ["exchange", "context", 10, 12, ["compute"]],
      ["attention_block", "compute", 11, 20, ["context"]],
    ];
    const [wrong] = replay(await readTraces([file(text(0, 2, [hasty]), text(1, 2, [slow]))]));
    expect(wrong?.early).toBe(2);
  });

  it("takes stations from the other calls, and a slow rank by one number", async () => {
    const slower: Ran[] = [
      ["linear_forward", "compute", 200, 260],
      ["exchange", "context", 260, 265, ["compute"]],
      ["swiglu_forward", "compute", 260, 270],
      ["attention_block", "compute", 270, 290, ["context"]],
    ];
    const waiting: Ran[] = [
      ["linear_forward", "compute", 200, 210],
      ["exchange", "context", 210, 265, ["compute"]],
      ["swiglu_forward", "compute", 210, 215],
      ["attention_block", "compute", 265, 275, ["context"]],
    ];
    const even: Ran[] = [
      ["linear_forward", "compute", 0, 10],
      ["exchange", "context", 10, 15, ["compute"]],
      ["swiglu_forward", "compute", 10, 15],
      ["attention_block", "compute", 15, 25, ["context"]],
    ];
    const steps = [even, later(even, 100)];
    const calls = await readTraces([file(text(0, 2, [...steps, waiting]), text(1, 2, [...steps, slower]))]);
    const last = replay(calls)[2];
    expect(last?.measured).toBeCloseTo(0.09, 9);
    expect(last?.simulated.stations).toBeCloseTo(0.025, 9);
    // 25 ms in the other calls, 90 here: each of its products takes 3.6 times as long.
    expect(last?.slowness).toEqual([expect.closeTo(1, 9), expect.closeTo(3.6, 9)]);
    expect(last?.simulated.slowed).toBeCloseTo(0.09, 3);
  });

  it("counts pairs that are in order", () => {
    expect(pairsInOrder([1, 2, 3, 4], [10, 20, 30, 40])).toBe(1);
    expect(pairsInOrder([1, 2, 3, 4], [40, 30, 20, 10])).toBe(0);
    expect(pairsInOrder([3, 1, 2], [3, 2, 1])).toBeCloseTo(2 / 3, 9);
    expect(pairsInOrder([1], [1])).toBe(1);
  });
});

// Recorded by scripts/fixtures/traces.mjs on two cores; what is asserted is about these files, not this machine.
describe("steps of real ranks", () => {
  const traces = fileURLToPath(new URL("traces", import.meta.url));
  const names = readdirSync(traces).filter((name) => name.endsWith(".trace"));
  const read = async (name: string): Promise<TracedCall[]> =>
    (await readTraces([join(traces, name)])).filter((call) => call.name === "accumulate");

  it.each(names)("of %s are replayed with their own durations", async (name) => {
    for (const one of replay(await read(name))) {
      // In a ring of more than two, a rank need not wait for the one that it sends to: messages of up to 512 KiB find
      // room in shared memory. NCCL's wait, and so do the simulator's.
      expect(one.early).toBeLessThanOrEqual(name === "ring-4.trace" ? 0.05 * one.entries : 0);
      expect(one.inOrder).toBeGreaterThan(0.94);
      // Some are passes of 2 ms on cores that others used: what is left out is the time until a thread woke.
      expect(one.simulated.own).toBeLessThan(1.001 * one.measured);
      expect(one.simulated.own).toBeGreaterThan((one.measured < 0.01 ? 0.75 : 0.95) * one.measured);
    }
  });

  it.each(["ring-2.trace", "ring-4.trace", "gather-2.trace"])(
    "of %s are not what they were if nothing waited",
    async (name) => {
      for (const call of await read(name)) {
        const [honest] = replay([call]);
        const ranks = call.ranks.map((entries) =>
          entries.map((one) => ({ ...one, entry: { ...one.entry, after: [] } })),
        );
        const [hasty] = replay([{ ...call, ranks }]);
        expect(hasty?.simulated.own).toBeLessThan(0.95 * (honest?.simulated.own ?? 0));
      }
    },
  );

  /** The ranks that met in the calls of an op, in words. */
  const groupsOf = (call: TracedCall, op: string): string[] => {
    const met = meetingsOf(call).filter((meeting) => [...meeting.values()][0]?.entry.op === op);
    return [...new Set(met.map((meeting) => [...meeting.keys()].join(" ")))].sort();
  };

  it("in two levels meet within their nodes, and from node to node at their places", async () => {
    const trace = join(directory, "levels.trace");
    const levels = { contextParallel: 4, contextSchedule: "two_level", ranksPerNode: 2 } as const;
    const weight = new Float32Array(96).fill(1 / 95);
    weight[0] = 0;
    {
      await using policy = await Policy.create(TINY, { ...LIVELY, ...levels, ranks: 4, threads: 4, trace });
      const batch = { tokens: ids("levels", 96), lengths: Int32Array.of(96), weight };
      await policy.accumulate(batch, { objective: "nll" }, { last: true });
    }
    const recorded = await read("levels-4.trace");
    const [now] = (await readTraces([trace])).filter(({ name }) => name === "accumulate");
    for (const call of [...recorded, now as TracedCall]) {
      expect(call.mesh).toEqual({ ranks: 4, contextParallel: 4, contextNode: 2, shard: 0, shardSize: 4 });
      expect(groupsOf(call, "all_gather")).toEqual(["0 1", "2 3"]);
      expect(groupsOf(call, "reduce_scatter")).toEqual(["0 1", "2 3"]);
      expect(groupsOf(call, "exchange")).toEqual(["0 2", "1 3"]);
      const [one] = replay([call]);
      expect(one?.early).toBe(0);
      expect(one?.simulated.own).toBeLessThan(1.001 * (one?.measured ?? 0));
    }
  });

  it("of which one was stopped: the other waits for it, as long as in the trace", async () => {
    const last = replay(await read("stopped-2.trace")).at(-1);
    expect(last?.measured).toBeGreaterThan(0.02);
    const { measured = 0, simulated = 0 } = last?.exposed[0] ?? {};
    expect(measured).toBeGreaterThan(0.01);
    expect(Math.abs(simulated / measured - 1)).toBeLessThan(0.15);
  });
});
