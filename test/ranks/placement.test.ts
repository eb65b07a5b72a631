// Documents on data-parallel groups: each once, evenly by cost, in passes that fit.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  checkBatch,
  costModel,
  documentCosts,
  offsetsOf,
  place,
  takeDocuments,
} from "../../lib/ranks/placement.ts";
import { TINY } from "../policy/tiny.ts";

const lengthsOf = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 60 });
const groupsOf = fc.integer({ min: 1, max: 8 });

describe("placement", () => {
  it("places every document once, and cuts no pass beyond what fits", () => {
    fc.assert(
      fc.property(lengthsOf, groupsOf, fc.integer({ min: 1, max: 1000 }), (lengths, groups, passTokens) => {
        const costs = lengths.map((length) => length * length + length);
        const { passes, costs: got } = place(lengths, costs, Array(groups).fill(0), passTokens);
        expect(passes.flat(2).sort((a, b) => a - b)).toEqual(lengths.map((_, d) => d));
        for (const pass of passes) {
          expect(pass.length).toBe(groups);
          for (const documents of pass) {
            expect(documents).toEqual([...documents].sort((a, b) => a - b));
            const tokens = documents.reduce((sum, d) => sum + (lengths[d] as number), 0);
            if (documents.length > 1) expect(tokens).toBeLessThanOrEqual(passTokens);
          }
        }
        // No pass in which nobody works, but the first.
        for (const pass of passes.slice(1)) expect(pass.flat()).not.toEqual([]);
        got.forEach((cost, g) => {
          const own = passes.flatMap((pass) => pass[g] as number[]);
          expect(cost).toBeCloseTo(own.reduce((sum, d) => sum + (costs[d] as number), 0));
        });
      }),
    );
  });

  it("keeps the busiest group within 4/3 of what the best placement could reach", () => {
    // Graham's bound for the dearest first; the best is at least the mean, and at least the dearest document.
    fc.assert(
      fc.property(lengthsOf, groupsOf, (lengths, groups) => {
        const costs = lengths.map((length) => length * length + length);
        const { costs: got } = place(lengths, costs, Array(groups).fill(0), Number.POSITIVE_INFINITY);
        const mean = costs.reduce((a, b) => a + b, 0) / groups;
        const sorted = [...costs].sort((a, b) => b - a);
        // Of groups + 1 documents two are in the same place.
        const two = groups < sorted.length ? 2 * (sorted[groups] as number) : 0;
        const best = Math.max(mean, sorted[0] as number, two);
        expect(Math.max(...got)).toBeLessThanOrEqual((4 / 3) * best + 1e-6);
      }),
    );
  });

  it("goes on from what the groups have had", () => {
    const loads = [6, 0];
    expect(place([1, 1, 1], [4, 4, 4], loads, 100).passes).toEqual([[[2], [0, 1]]]);
    expect(loads).toEqual([10, 8]);
  });

  it("prefers a pass that is open to a new one", () => {
    // By cost alone the second short document would join the first, and not fit.
    const { passes } = place([60, 60, 60], [1, 1, 5], [0, 0], 120);
    expect(passes).toHaveLength(1);
  });
});

describe("cost", () => {
  it("grows with the tokens, their pairs and the rows of the head", () => {
    const model = costModel(TINY);
    // Per layer: q and o 2 x 32 x 64, k and v 2 x 32 x 32, feed-forward 3 x 32 x 64; scores and values 2 x 64 a pair.
    expect(model).toEqual({ token: 2 * (4096 + 2048 + 6144), pair: 2 * 128, row: 32 * 97 });
    const batch = {
      tokens: new Int32Array(5),
      lengths: Int32Array.of(2, 3),
      weight: Float32Array.of(0, 1, 0, 0, 0.5),
    };
    expect(documentCosts(batch, model)).toEqual([
      2 * model.token + 3 * model.pair + model.row,
      3 * model.token + 6 * model.pair + model.row,
    ]);
    const { weight: _, ...scored } = batch;
    expect(documentCosts(scored, model)[1]).toBe(3 * model.token + 6 * model.pair + 2 * model.row);
  });
});

describe("batches", () => {
  it("of some documents have their tokens and lanes, and no others", () => {
    const batch = {
      tokens: Int32Array.of(1, 2, 3, 4, 5, 6),
      lengths: Int32Array.of(1, 2, 3),
      weight: Float32Array.of(0, 0, 1, 0, 2, 3),
      advantage: Float32Array.of(1, 2, 3, 4, 5, 6),
    };
    expect(takeDocuments(batch, offsetsOf(batch.lengths), [0, 2])).toEqual({
      tokens: Int32Array.of(1, 4, 5, 6),
      lengths: Int32Array.of(1, 3),
      weight: Float32Array.of(0, 0, 2, 3),
      advantage: Float32Array.of(1, 4, 5, 6),
    });
    expect(takeDocuments(batch, offsetsOf(batch.lengths), [])).toMatchObject({ lengths: new Int32Array(0) });
  });

  const fine = { tokens: Int32Array.of(1, 2, 3), lengths: Int32Array.of(3) };
  it.each([
    [{ tokens: new Int32Array(0), lengths: new Int32Array(0) }, "tokens is empty"],
    [{ ...fine, lengths: Int32Array.of(3, 0) }, "lengths[1] is 0"],
    [{ ...fine, lengths: Int32Array.of(2) }, "lengths sum to 2 but there are 3 tokens"],
    [{ ...fine, tokens: Int32Array.of(1, 97, 3) }, "tokens[1] is 97, outside the vocabulary of 97"],
    [{ ...fine, tokens: Int32Array.of(1, -1, 3) }, "tokens[1] is -1"],
    [{ ...fine, advantage: new Float32Array(2) }, "advantage has 2 entries for 3 tokens"],
    [{ ...fine, weight: Float32Array.of(1, 0, 0) }, "weight[0] is 1 but token 0 is the first of document 0"],
    [
      { tokens: new Int32Array(9), lengths: Int32Array.of(9) },
      "document 0 has 9 tokens, more than the model's context (8)",
    ],
  ])("that no rank could take are refused before any begins: %#", (batch, message) => {
    expect(() => checkBatch(batch, 97, 8)).toThrow(`batch: ${message}`);
  });
});
