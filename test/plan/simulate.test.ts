import { describe, expect, it } from "vitest";
import type { MeshShape, ScheduleEntry, Track } from "../../lib/plan/schedule.ts";
import { membersOf, movedBytes } from "../../lib/plan/schedule.ts";
import { chromeTrace, type Span, simulate } from "../../lib/plan/simulate.ts";

const entry = (op: string, track: Track, after: Track[] = [], bytes = 1): ScheduleEntry => ({
  op,
  layer: 0,
  track,
  after,
  bytes,
  flops: 0,
});
const mesh = (
  ranks: number,
  contextParallel = ranks,
  shard: 0 | 1 | 3 = 0,
  shardSize = ranks,
): MeshShape => ({
  ranks,
  contextParallel,
  shard,
  shardSize,
});
/** Each product takes `bytes` seconds, each call a second for each of its bytes. */
const run = (shape: MeshShape, schedules: ScheduleEntry[][], slow: Record<number, number> = {}) => {
  const spans: Span[] = [];
  const result = simulate({
    mesh: shape,
    schedules,
    computeSeconds: ({ bytes }, rank) => bytes * (slow[rank] ?? 1),
    communicationSeconds: ({ bytes }) => bytes,
    onSpan: (span) => spans.push(span),
  });
  return { ...result, spans };
};

describe("simulate", () => {
  it("hides a call behind what computes beside it", () => {
    const schedule = [
      entry("exchange", "context", [], 2),
      entry("linear_forward", "compute", [], 5),
      entry("attention", "compute", ["context"], 3),
    ];
    const { seconds, ranks } = run(mesh(2), [schedule, schedule]);
    expect(seconds).toBe(8);
    expect(ranks[0]).toEqual({
      seconds: 8,
      busy: { compute: 8, context: 2, gradients: 0, host: 0 },
      exposed: 0,
    });
  });

  it("shows what of a call nothing hides", () => {
    const schedule = [
      entry("exchange", "context", [], 7),
      entry("linear_forward", "compute", [], 5),
      entry("attention", "compute", ["context"], 3),
      // Nothing computes beside it.
      entry("all_reduce", "gradients", ["compute"], 4),
    ];
    const { seconds, ranks } = run(mesh(2), [schedule, schedule]);
    expect(seconds).toBe(7 + 3 + 4);
    expect(ranks[1]?.exposed).toBe(2 + 4);
  });

  it("lets one slow rank hold up a collective of all, and an exchange of its neighbours alone", () => {
    const all = [entry("mlp", "compute", [], 1), entry("all_reduce", "gradients", ["compute"], 1)];
    expect(run(mesh(4), [all, all, all, all], { 2: 10 }).ranks.map(({ seconds }) => seconds)).toEqual([
      11, 11, 11, 11,
    ]);
    const ring = [
      entry("mlp", "compute", [], 1),
      entry("exchange", "context", ["compute"], 1),
      entry("attention", "compute", ["context"], 1),
    ];
    const { ranks, spans } = run(mesh(5), [ring, ring, ring, ring, ring], { 2: 10 });
    expect(
      spans.filter(({ entry: { op } }) => op === "exchange").map(({ rank, begin }) => [rank, begin]),
    ).toEqual(
      expect.arrayContaining([
        [0, 1],
        [1, 10],
        [2, 10],
        [3, 10],
        [4, 1],
      ]),
    );
    expect(ranks.map(({ seconds }) => seconds)).toEqual([3, 12, 21, 12, 3]);
  });

  it("keeps groups apart: contexts, shards and their replicas", () => {
    const of = (op: string, track: Track, rank: number, shape: MeshShape) =>
      membersOf(entry(op, track), rank, shape);
    const shape = mesh(16, 4, 3, 8);
    expect(of("exchange", "context", 6, shape)).toEqual([4, 5, 6, 7]);
    expect(of("all_gather", "gradients", 10, shape)).toEqual([8, 9, 10, 11, 12, 13, 14, 15]);
    expect(of("all_reduce", "gradients", 10, shape)).toEqual([2, 10]);
    expect(of("all_reduce", "gradients", 3, mesh(4, 2))).toEqual([0, 1, 2, 3]);
    expect(movedBytes(entry("all_reduce", "gradients", [], 80), 4)).toBe(120);
    expect(movedBytes(entry("reduce_scatter", "gradients", [], 80), 4)).toBe(60);
  });

  it("replays two levels: gathers within nodes, exchanges between ranks of one place", () => {
    const shape = { ...mesh(8), contextNode: 2 };
    const of = (op: string) => membersOf(entry(op, "context"), 5, shape);
    expect(of("exchange")).toEqual([1, 3, 5, 7]);
    expect(of("all_gather")).toEqual([4, 5]);
    expect(of("reduce_scatter")).toEqual([4, 5]);
    expect(of("all_reduce")).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    // Two nodes of two: groups of one first rank and one size, which are not the same.
    const schedule = [
      entry("all_gather", "context", ["compute"], 1),
      entry("exchange", "context", ["compute"], 3),
      entry("all_gather", "context", [], 1),
      entry("attention", "compute", ["context"], 2),
    ];
    const { ranks } = run({ ...mesh(4), contextNode: 2 }, new Array(4).fill(schedule));
    expect(ranks.map(({ seconds }) => seconds)).toEqual([7, 7, 7, 7]);
  });

  it("needs the first of many groups alone where all are alike", () => {
    const schedule = [
      entry("mlp", "compute", [], 3),
      entry("exchange", "context", ["compute"], 2),
      entry("all_gather", "gradients", [], 4),
      entry("attention", "compute", ["context", "gradients"], 1),
      entry("all_reduce", "gradients", ["compute"], 1),
    ];
    const shape = mesh(16, 4, 3, 8);
    const all = run(shape, new Array(16).fill(schedule));
    const first = run(shape, new Array(4).fill(schedule));
    expect(first.seconds).toBe(all.seconds);
    expect(first.ranks).toEqual(all.ranks.slice(0, 4));
  });

  it("refuses ranks that call different things, or wait for ever", () => {
    const one = [entry("all_gather", "gradients")];
    const other = [entry("reduce_scatter", "gradients")];
    expect(() => run(mesh(2, 1, 3), [one, other])).toThrow(/rank 1 makes reduce_scatter, rank 0 all_gather/);
    expect(() => run(mesh(2, 1, 3), [one, []])).toThrow(/rank 0 waits for others in all_gather of layer 0/);
  });

  it("writes a Chrome trace with a lane for each rank and track", () => {
    const { spans } = run(mesh(1), [[entry("linear_forward", "compute", [], 2)]]);
    const { traceEvents } = JSON.parse(chromeTrace(spans)) as { traceEvents: Record<string, unknown>[] };
    expect(traceEvents.filter(({ ph }) => ph === "X")).toEqual([
      {
        name: "linear_forward 0",
        ph: "X",
        pid: 0,
        tid: 0,
        ts: 0,
        dur: 2e6,
        args: { bytes: 2, flops: 0 },
      },
    ]);
  });
});
