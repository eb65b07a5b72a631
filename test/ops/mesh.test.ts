// Ranks that train together, as lib/ sees them: what one of them meets, all hear of, and nothing waits for ever.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { TokenringError } from "../../lib/errors.ts";
import type { NativeBatch, NativeMesh, NativeRankOptions } from "../../lib/ops/binding.ts";
import { loadBinding } from "../../lib/ops/native.ts";
import { openRank } from "../../lib/ops/rank.ts";
import { ids } from "../policy/tiny.ts";
import { adamw, nll as loss, rankOptions as options, seed } from "./native.ts";
import { settledMesh } from "./ranks.ts";

const batch = (name: string, length: number): NativeBatch => ({
  tokens: ids(name, length),
  lengths: length > 0 ? Int32Array.of(length) : new Int32Array(),
  weight: new Float32Array(length).fill(0.01, 1),
});

/** Why each rank failed, or "" where it did not: "CODE message". */
const causes = (outcomes: PromiseSettledResult<unknown>[]): string[] =>
  outcomes.map((outcome) => {
    if (outcome.status === "fulfilled") return "";
    const error = outcome.reason as TokenringError;
    expect(error).toBeInstanceOf(TokenringError);
    return `${error.code.replace("ERR_TOKENRING_", "")} ${error.message}`;
  });

it.each([false, true])("steps together, also where a rank has nothing to add (last: %s)", async (last) => {
  const step = (documents: NativeBatch[][]) =>
    settledMesh(options, { size: documents.length }, async (rank, index) => {
      await rank.join().promise;
      await rank.initialise(seed).promise;
      const mine = documents[index] as NativeBatch[];
      let sum = 0;
      for (const [i, part] of mine.entries()) {
        sum += (await rank.accumulate(part, loss, last && i === mine.length - 1).promise).loss;
      }
      return { sum, ...(await rank.optimise(adamw).promise) };
    });
  const [a, b, none] = [batch("a", 20), batch("b", 31), batch("none", 0)];
  const values = async (documents: NativeBatch[][]) =>
    (await step(documents)).map((outcome) => {
      if (outcome.status === "rejected") throw outcome.reason;
      return outcome.value;
    });
  const [alone] = await values([[a, b]]);
  for (const documents of [
    [[a], [b]],
    [[a, none], [none, b], [none]],
  ]) {
    const all = await values(documents);
    for (const one of all) {
      expect(one).toMatchObject({ step: 1, version: alone?.version, gradientNorm: all[0]?.gradientNorm });
      expect(one.gradientNorm).toBeCloseTo(alone?.gradientNorm as number, 6);
    }
    expect(all.reduce((sum, one) => sum + one.sum, 0)).toBeCloseTo(alone?.sum as number, 6);
  }
});

it("tells all why one failed, and fails again with that", async () => {
  const outcomes = await settledMesh(options, { size: 3 }, async (rank, index) => {
    await rank.initialise(seed).promise;
    const bad = batch("x", 10);
    if (index === 1) (bad.weight as Float32Array)[3] = Number.NaN;
    await rank.accumulate(bad, loss, true).promise.catch(() => {});
    await rank.optimise(adamw).promise;
  });
  for (const cause of causes(outcomes)) {
    expect(cause).toMatch(/^(COMMUNICATOR|ABORTED)/);
  }
  expect(causes(outcomes)[0]).toMatch(/rank 1 of 3 aborted it .*batch: weight of token 3 is nan/);
});

it("ends everybody's call when one is aborted, disposed or never comes", async () => {
  const aborted = await settledMesh(options, { size: 2 }, async (rank, index) => {
    await rank.join().promise;
    const job = rank.accumulate(batch("x", 10), loss, true);
    if (index === 1) return await job.promise;
    const optimise = rank.optimise(adamw);
    optimise.abort();
    await job.promise.catch(() => {});
    return await optimise.promise;
  });
  expect(causes(aborted)[0]).toMatch(/^ABORTED/);
  expect(causes(aborted)[1]).toMatch(/^(COMMUNICATOR .*aborted by its caller|$)/);

  const disposed = await settledMesh(options, { size: 2 }, async (rank, index) => {
    await rank.join().promise;
    if (index === 0) return await rank.dispose();
    await rank.optimise(adamw).promise;
  });
  expect(causes(disposed)).toEqual(["", expect.stringMatching(/^COMMUNICATOR .*rank 0, which has left/)]);

  const { uniqueId } = loadBinding();
  const mesh: NativeMesh = {
    id: uniqueId(),
    rank: 1,
    size: 2,
    contextParallel: 1,
    contextSchedule: "ring",
    shard: 0,
    shardSize: 2,
    timeout: 60,
  };
  const late = await openRank({ ...options, mesh });
  await expect(late.join().promise).rejects.toMatchObject({
    code: "ERR_TOKENRING_TIMEOUT",
    message: expect.stringMatching(/rank 1 of 2 waited in join .* missing: rank 0 \(never joined\)/),
  });
  await expect(late.optimise(adamw).promise).rejects.toMatchObject({ code: "ERR_TOKENRING_TIMEOUT" });
  await late.dispose();
  // Disposing one that waits does not wait itself.
  const waiting = await openRank({ ...options, mesh: { ...mesh, id: uniqueId(), timeout: 600_000 } });
  const join = waiting.join().promise;
  const started = performance.now();
  await Promise.all([waiting.dispose(), expect(join).rejects.toMatchObject({ name: "TokenringError" })]);
  expect(performance.now() - started).toBeLessThan(60_000);
});

it("refuses a mesh that cannot be, at once", () => {
  const { Rank, uniqueId } = loadBinding();
  const good = { id: uniqueId(), rank: 0, size: 4, contextParallel: 1, contextSchedule: "ring" } as const;
  const mesh = (changes: object): NativeRankOptions => ({
    ...options,
    mesh: { ...good, shard: 0, shardSize: 4, timeout: 1000, ...changes } as NativeMesh,
  });
  for (const [changes, message] of [
    [{ id: new Uint8Array(3) }, /options.mesh.id must be the Uint8Array of 128 bytes/],
    [{ rank: 4 }, /options.mesh.rank must be an integer from 0 to 3, got 4/],
    [{ contextParallel: 3 }, /contextParallel is 3; it must divide the 4 ranks/],
    [{ contextSchedule: "tree" }, /contextSchedule must be "ring", "all_gather" or "two_level", got "tree"/],
    [
      { contextSchedule: "two_level", contextParallel: 4, ranksPerNode: 3 },
      /ranksPerNode is 3; of two_level it must divide contextParallel, 4, or be a multiple of it/,
    ],
    [{ shard: 2 }, /shard is 2; it must be 0, 1 or 3/],
    [{ shardSize: 3 }, /shardSize is 3; it must divide the 4 ranks/],
    [{ timeout: 0 }, /options.mesh.timeout/],
  ] as const) {
    expect(() => new Rank(mesh(changes))).toThrow(
      expect.objectContaining({
        code: "ERR_TOKENRING_INVALID_ARGUMENT",
        message: expect.stringMatching(message),
      }) as Error,
    );
  }
});

it("shares the documents of a batch within a context group, and writes what ran when", async () => {
  const directory = await mkdtemp(join(tmpdir(), "tokenring-trace-"));
  try {
    const trace = join(directory, "trace.json");
    const steps = async (size: number, contextSchedule: "ring" | "all_gather") => {
      const mesh = { size, contextParallel: size, contextSchedule };
      const outcomes = await settledMesh({ ...options, trace }, mesh, async (rank) => {
        await rank.initialise(seed).promise;
        const { logprob } = await rank.score(batch("long", 50), 1).promise;
        const pass = await rank.accumulate(batch("long", 50), loss, true).promise;
        return { logprob, sum: pass.loss, ...(await rank.optimise(adamw).promise) };
      });
      return outcomes.map((outcome) => {
        if (outcome.status === "rejected") throw outcome.reason;
        return outcome.value;
      });
    };
    const [alone] = await steps(1, "ring");
    for (const schedule of ["ring", "all_gather"] as const) {
      const all = await steps(3, schedule);
      const logprob = alone?.logprob.map((_, i) =>
        all.reduce((sum, one) => sum + (one.logprob[i] as number), 0),
      );
      if (schedule === "all_gather") expect(logprob).toEqual(alone?.logprob);
      expect(all.reduce((sum, one) => sum + one.sum, 0)).toBeCloseTo(alone?.sum as number, 5);
      for (const one of all) expect(one.gradientNorm).toBeCloseTo(alone?.gradientNorm as number, 5);
    }

    interface Event {
      ph: "M" | "X";
      name: string;
      pid: number;
      tid: number;
      ts: number;
      dur: number;
      args: { name?: string; layer: number; bytes: number; flops: number };
    }
    const text = await readFile(trace, "utf8");
    const events = JSON.parse(text.trimEnd().replace(/,$/, "]")) as Event[];
    const threads = new Map<string, string>();
    for (const { ph, name, pid, tid, args } of events) {
      if (ph === "M" && name === "thread_name") threads.set(`${pid}/${tid}`, args.name as string);
    }
    const spans = events.filter(({ ph }) => ph === "X");
    const on = (name: string) =>
      new Set(spans.filter((span) => span.name === name).map(({ pid, tid }) => threads.get(`${pid}/${tid}`)));
    expect(on("attention_block_backward")).toEqual(new Set(["compute"]));
    expect(on("exchange")).toEqual(new Set(["context"]));
    expect(on("reduce_scatter")).toEqual(new Set(["context"]));
    expect(on("all_reduce")).toEqual(new Set(["gradients"]));
    expect(new Set(spans.map(({ pid }) => pid))).toEqual(new Set([0, 1, 2]));
    // What one stream runs, it runs one after the other; a microsecond is what the text rounds to, and more.
    for (const thread of threads.keys()) {
      const own = spans.filter(({ pid, tid }) => `${pid}/${tid}` === thread).sort((a, b) => a.ts - b.ts);
      for (const [i, span] of own.entries()) {
        const before = own[i - 1];
        if (before) expect(span.ts).toBeGreaterThan(before.ts + before.dur - 1);
      }
    }
    await expect(
      settledMesh({ ...options, trace: join(directory, "no", "trace.json") }, { size: 1 }, async () => {}),
    ).rejects.toMatchObject({ code: "ERR_TOKENRING_INVALID_ARGUMENT" });
  } finally {
    await rm(directory, { recursive: true });
  }
});
