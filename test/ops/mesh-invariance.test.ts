// Nothing that is learnt depends on how many ranks there are, which documents they have, or who holds which tokens.
import fc from "fast-check";
import { expect, it } from "vitest";
import type { NativeBatch, NativeLoss, NativeRank } from "../../lib/ops/binding.ts";
import {
  cut,
  cuts,
  type Document,
  documents,
  LONGEST,
  makeDocument,
  model as modelOf,
  packed,
  tries,
} from "../support/arbitrary.ts";
import { settledMesh } from "./ranks.ts";

const adamw = { learningRate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };

const mesh = fc.record({
  data: fc.constantFrom(1, 2, 4),
  context: fc.constantFrom(1, 2, 4, 8),
  schedule: fc.constantFrom("ring", "all_gather", "two_level"),
  node: fc.constantFrom(1, 2, 4, 8),
  last: fc.boolean(),
  checkpoints: fc.boolean(),
  cuts,
});

const NONE: NativeBatch = { tokens: new Int32Array(), lengths: new Int32Array() };

/** The lanes of all ranks together: each token is one rank's, and 0 on the others. */
function together(lanes: Float32Array[]): Float32Array {
  return (lanes[0] as Float32Array).map((_, i) => lanes.reduce((sum, lane) => sum + (lane[i] as number), 0));
}

function error(got: Float32Array, expected: Float32Array): number {
  const square = (of: Float32Array) => Math.sqrt(of.reduce((sum, x) => sum + x * x, 0));
  return square(got.map((x, i) => x - (expected[i] as number))) / (square(expected) + 1e-30);
}

it("learns the same on any mesh, from any micro-batches", async () => {
  const cases = fc.record({
    // Norms over a few numbers, of which some may be near 0, multiply rounding by 1 / sqrt(eps) a layer: in a model as
    // wide as one number gradients were seen 4e-5 apart.
    model: modelOf(fc.constantFrom(LONGEST, 300), fc.constant("float32")).filter(
      ({ config }) => config.hidden_size >= 8,
    ),
    documents,
    mesh,
    loss: fc.record({
      objective: fc.constantFrom("nll", "ppo_clip", "gspo", "cispo"),
      klCoef: fc.constantFrom(0, 0.1),
      entropyCoef: fc.constantFrom(0, 0.1),
      temperature: fc.constantFrom(1, 0.7),
      chunkRows: fc.constantFrom(0, 7),
    }),
  });
  await fc.assert(
    fc.asyncProperty(cases, async (c) => {
      const { config, seed } = c.model;
      const loss: NativeLoss = { ...c.loss, clipLow: 0.2, clipHigh: 0.28, dualClip: 0 };
      const made = c.documents.map((document) => makeDocument(config, document.seed, document.length));
      const options = {
        config,
        device: "cpu",
        threads: 1,
        precision: "float32",
        activationCheckpointing: c.mesh.checkpoints,
        maxBatchTokens: 64,
        maxPages: 0,
      } as const;
      const begin = async (rank: NativeRank) => {
        await rank.initialise({ std: 0.3, seed: BigInt(seed), previousTokenBias: 0 }).promise;
      };
      const steps = async (rank: NativeRank, batches: NativeBatch[], last: boolean) => {
        await begin(rank);
        const passes = [];
        for (const [i, batch] of batches.entries()) {
          const scored = await rank.score(batch, loss.temperature).promise;
          const final = last && i === batches.length - 1;
          passes.push({ scored, ...(await rank.accumulate(batch, loss, final).promise) });
        }
        return { passes, step: await rank.optimise(adamw).promise };
      };
      const { data, context, schedule, node } = c.mesh;
      const parts = Array.from({ length: data }, (_, group) => {
        const own = made.filter((_, i) => i % data === group);
        // Groups need not have as many micro-batches, as long as each has one.
        return own.length === 0 ? [NONE] : cut(own, c.mesh.cuts).map((each) => packed(each));
      });
      const order = parts.flatMap((_, group) => made.filter((_, i) => i % data === group));
      const [alone] = await settledMesh(options, { size: 1 }, (rank) =>
        steps(rank, order.length === 0 ? [] : [packed(order as Document[])], false),
      );
      if (alone?.status !== "fulfilled") throw alone?.reason;
      const shape = {
        size: data * context,
        contextParallel: context,
        contextSchedule: schedule,
        ranksPerNode: Math.min(node, data * context),
      };
      const outcomes = await settledMesh(options, shape, (rank, index) =>
        steps(rank, parts[Math.floor(index / context)] as NativeBatch[], c.mesh.last),
      );
      const ranks = outcomes.map((outcome) => {
        if (outcome.status === "rejected") throw outcome.reason;
        return outcome.value;
      });
      const expected = alone.value.passes[0] as (typeof alone.value.passes)[number];
      const norm = alone.value.step.gradientNorm;
      for (const { step } of ranks) {
        expect(step).toEqual(ranks[0]?.step);
        expect(Math.abs(step.gradientNorm - norm)).toBeLessThanOrEqual(1e-5 * norm + 1e-9);
      }
      const all = ranks.flatMap(({ passes }) => passes);
      const scale = made.reduce((sum, { weight }) => sum + weight.reduce((a, b) => a + b, 0), 0);
      const sum = all.reduce((total, pass) => total + pass.loss, 0);
      expect(Math.abs(sum - expected.loss)).toBeLessThanOrEqual(1e-5 * (Math.abs(expected.loss) + scale));
      const lane = (of: (pass: (typeof all)[number]) => Float32Array): Float32Array => {
        const documents = parts.flatMap((batches, group) =>
          batches.map((_, i) =>
            together(
              Array.from({ length: context }, (_, at) => {
                return of(ranks[group * context + at]?.passes[i] as (typeof all)[number]);
              }),
            ),
          ),
        );
        return Float32Array.from(documents.flatMap((each) => [...each]));
      };
      for (const [got, wanted] of [
        [lane((pass) => pass.scored.logprob), expected.scored.logprob],
        [lane((pass) => pass.scored.entropy), expected.scored.entropy],
        [lane((pass) => pass.logprob), expected.logprob],
        [lane((pass) => pass.entropy), expected.entropy],
      ] as const) {
        if (schedule === "all_gather" || context === 1) expect(got).toEqual(wanted);
        else expect(error(got, wanted)).toBeLessThanOrEqual(1e-5);
      }
    }),
    tries(30),
  );
});
