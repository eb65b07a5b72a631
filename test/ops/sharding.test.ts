// Shares of parameters, gradients and optimiser state, over random models and meshes: whatever is cut, and between
// however many ranks, training and its checkpoints are those of one rank.
import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, it } from "vitest";
import type { NativeBatch, NativeMesh, NativeRank, NativeRankOptions } from "../../lib/ops/binding.ts";
import { ids, TINY } from "../policy/tiny.ts";
import {
  documents,
  LONGEST,
  makeDocument,
  model as modelOf,
  packed,
  sha256,
  tries,
} from "../support/arbitrary.ts";
import { adamw, nll, rankOptions, seed } from "./native.ts";
import { settledMesh } from "./ranks.ts";

type Shape = Pick<
  NativeMesh,
  "size" | "contextParallel" | "contextSchedule" | "ranksPerNode" | "shard" | "shardSize"
>;

const shape: fc.Arbitrary<Shape> = fc.constantFrom(1, 2, 3, 4, 6).chain((size) => {
  const divisor = fc.constantFrom(...[1, 2, 3, 4, 6].filter((n) => size % n === 0));
  const shapes = fc.record({
    size: fc.constant(size),
    contextParallel: divisor,
    contextSchedule: fc.constantFrom("ring" as const, "all_gather" as const, "two_level" as const),
    ranksPerNode: divisor,
    shard: fc.constantFrom<0 | 1 | 3>(0, 1, 3),
    shardSize: divisor,
  });
  return shapes.filter(
    ({ contextParallel: c, ranksPerNode: n }) => c % n === 0 || n % c === 0, // of two levels
  );
});
const ALONE: Shape = { size: 1, contextParallel: 1, contextSchedule: "ring", shard: 0, shardSize: 1 };

/** What every rank gave; they must all succeed. */
async function onMesh<T>(
  options: NativeRankOptions,
  mesh: Shape,
  body: (rank: NativeRank, index: number) => Promise<T>,
): Promise<T[]> {
  const outcomes = await settledMesh(options, mesh, body);
  return outcomes.map((outcome) => {
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  });
}

/** A temporary directory with these in it. */
async function folders(...names: string[]) {
  const root = await mkdtemp(join(tmpdir(), "tokenring-sharding-"));
  const at = (name: string): string => join(root, name);
  for (const name of names) await mkdir(at(name));
  return { at, [Symbol.asyncDispose]: () => rm(root, { recursive: true }) };
}

async function files(directory: string): Promise<Record<string, string>> {
  const names = (await readdir(directory)).sort();
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, sha256(await readFile(join(directory, name)))])),
  );
}

it("trains, saves and loads in any shares as one rank does", async () => {
  const cases = fc.record({
    // As in mesh-invariance.test.ts: norms over a few numbers multiply rounding.
    model: modelOf(fc.constant(LONGEST), fc.constant("float32")).filter(
      ({ config }) => config.hidden_size >= 8,
    ),
    documents,
    from: shape,
    to: shape,
    last: fc.boolean(),
    shardBytes: fc.constantFrom(5e9, 30_000),
  });
  await fc.assert(
    fc.asyncProperty(cases, async ({ model, documents, from, to, last, shardBytes }) => {
      await using directory = await folders("first", "second", "again", "copied");
      const options: NativeRankOptions = { ...rankOptions, config: model.config };
      const made = documents.map(({ seed, length }) => makeDocument(model.config, seed, length));
      const batch = (index: number, { size, contextParallel }: Shape): NativeBatch =>
        packed(made.filter((_, d) => d % (size / contextParallel) === Math.floor(index / contextParallel)));
      const step = async (rank: NativeRank, index: number, mesh: Shape) => {
        const { loss } = await rank.accumulate(batch(index, mesh), nll, last).promise;
        return { loss, ...(await rank.optimise(adamw).promise) };
      };
      const start = { std: 0.1, seed: 5n, previousTokenBias: 0 };
      const save = (rank: NativeRank, name: string) =>
        rank.save(directory.at(name), { dtype: "f32", optimiser: true, shardBytes }).promise;
      const load = (rank: NativeRank, name: string) =>
        rank.load(directory.at(name), { optimiser: true }).promise;

      const [alone] = await onMesh(options, ALONE, async (rank) => {
        await rank.initialise(start).promise;
        return [await step(rank, 0, ALONE), await step(rank, 0, ALONE)];
      });
      const all = await onMesh(options, from, async (rank, index) => {
        await rank.initialise(start).promise;
        const first = await step(rank, index, from);
        await save(rank, "first");
        const second = await step(rank, index, from);
        await save(rank, "second");
        return [first, second];
      });
      for (const s of [0, 1]) {
        const expected = alone?.[s] as { loss: number; gradientNorm: number };
        const loss = all.reduce((sum, steps) => sum + (steps[s]?.loss as number), 0);
        expect(Math.abs(loss - expected.loss)).toBeLessThan(1e-4 * (1 + Math.abs(expected.loss)));
        for (const steps of all) {
          expect(steps[s]?.gradientNorm).toBe(all[0]?.[s]?.gradientNorm);
          const off = Math.abs((steps[s]?.gradientNorm as number) - expected.gradientNorm);
          // Weights after a step are off where a gradient is near 0 and AdamW makes a step of it.
          expect(off).toBeLessThan((s === 0 ? 1e-5 : 1e-3) * expected.gradientNorm + 1e-9);
        }
      }
      // The same mesh goes on to the bit; another reads the same numbers, and goes on as closely as sums allow.
      await onMesh(options, from, async (rank, index) => {
        await load(rank, "first");
        await step(rank, index, from);
        await save(rank, "again");
      });
      const others = await onMesh(options, to, async (rank, index) => {
        await load(rank, "first");
        await save(rank, "copied");
        return step(rank, index, to);
      });
      expect(await files(directory.at("again"))).toEqual(await files(directory.at("second")));
      expect(await files(directory.at("copied"))).toEqual(await files(directory.at("first")));
      const norm = all[0]?.[1]?.gradientNorm as number;
      for (const other of others) {
        expect(other).toMatchObject({ step: 2, version: all[0]?.[1]?.version });
        expect(Math.abs(other.gradientNorm - norm)).toBeLessThan(1e-5 * norm + 1e-9);
      }
    }),
    tries(15),
  );
});

it("refuses a session of parameters that no rank has whole, and takes one of sharded optimiser state", async () => {
  const options: NativeRankOptions = { ...rankOptions, config: TINY };
  const open = (shard: 1 | 3) =>
    onMesh(options, { ...ALONE, size: 2, shard, shardSize: 2 }, async (rank) => {
      await rank.initialise(seed).promise;
      const session = rank.openSession();
      rank.extendSession(session, ids("prompt", 5));
      const request = { maxTokens: 4, stop: new Int32Array(), temperature: 1, seed: 7n };
      return (await rank.sampleSession(session, request).promise).tokens;
    });
  const [one, other] = await open(1);
  expect(one).toEqual(other);
  await expect(open(3)).rejects.toMatchObject({
    code: "ERR_TOKENRING_INVALID_ARGUMENT",
    message: expect.stringMatching(/needs whole weights.*shard: 3/),
  });
});
