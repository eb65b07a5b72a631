// A document's numbers are its own: whatever is packed beside it, however the batch is cut, whoever computes.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { NativeLoss } from "../../lib/ops/binding.ts";
import {
  cut,
  cuts,
  documents,
  LONGEST,
  makeDocument,
  model as modelOf,
  packed,
  policyOf,
  stateOf,
  threads,
  tries,
} from "../support/arbitrary.ts";

/** The lanes of a packed result, document by document. */
function split(lane: Float32Array | Int32Array, lengths: Int32Array): (Float32Array | Int32Array)[] {
  let end = 0;
  return [...lengths].map((length) => {
    end += length;
    return lane.slice(end - length, end);
  });
}

const model = modelOf(fc.constantFrom(LONGEST, 300));
const temperature = fc.constantFrom(1, 0.3, 0.7, 1.9);

describe("the trainer", () => {
  it("scores a document alone as in any company, order and number of threads", async () => {
    const cases = fc.record({
      model,
      documents,
      threads,
      temperature,
      cuts,
      order: fc.array(fc.nat(), { minLength: 7, maxLength: 7 }),
    });
    await fc.assert(
      fc.asyncProperty(cases, async (c) => {
        await using one = await policyOf(c.model, { threads: 1 });
        await using many = await policyOf(c.model, { threads: c.threads });
        const made = c.documents.map(({ seed, length }) => makeDocument(c.model.config, seed, length));
        const alone = new Map<number, { logprob: Float32Array; entropy: Float32Array }>();
        for (const [d, document] of made.entries()) {
          alone.set(d, await one.score(packed([document]), { temperature: c.temperature }));
        }
        const order = [...made.keys()].sort((a, b) => (c.order[a] as number) - (c.order[b] as number));
        for (const part of cut(order, c.cuts)) {
          const batch = packed(part.map((d) => made[d] as (typeof made)[number]));
          const score = await many.score(batch, { temperature: c.temperature });
          const loss = await many.accumulate(batch, { objective: "nll", temperature: c.temperature });
          const logprobs = split(score.logprob, batch.lengths);
          const entropies = split(score.entropy, batch.lengths);
          for (const [i, d] of part.entries()) {
            expect(logprobs[i]).toEqual(alone.get(d)?.logprob);
            expect(entropies[i]).toEqual(alone.get(d)?.entropy);
          }
          // The pass that keeps what backward needs gives the same bits, wherever there is a loss.
          const seen = (lane: Float32Array) => lane.map((value, i) => (batch.weight[i] === 0 ? 0 : value));
          expect(loss.logprob).toEqual(seen(score.logprob));
          expect(loss.entropy).toEqual(seen(score.entropy));
        }
      }),
      tries(30),
    );
  });

  it("learns the same to the bit, however a batch is cut into micro-batches and chunks of rows", async () => {
    const how = fc.record({
      threads,
      cuts,
      chunkRows: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constant(1024)),
    });
    const cases = fc.record({
      // With bf16 the sums over tokens go in blocks of 32: test/native/ops_bf16.cc has what holds there.
      model: modelOf(fc.constantFrom(LONGEST, 300), fc.constant("float32")),
      steps: fc.array(documents, { minLength: 1, maxLength: 2 }),
      loss: fc.record({
        objective: fc.constantFrom("nll", "ppo_clip", "gspo", "cispo"),
        clipLow: fc.constantFrom(0.2, 0.01),
        clipHigh: fc.constantFrom(0.28, 0.01),
        dualClip: fc.constantFrom(0, 1.05),
        klCoef: fc.constantFrom(0, 0.1),
        entropyCoef: fc.constantFrom(0, 0.1),
        temperature,
      }),
      optimiser: fc.record({
        learningRate: fc.constantFrom(1e-3, 0.1),
        weightDecay: fc.constantFrom(0, 0.1),
        clipNorm: fc.constantFrom(0, 1e-3, 1),
      }),
      ways: fc.tuple(how, how),
    });
    await fc.assert(
      fc.asyncProperty(cases, async (c) => {
        const outcomes = [];
        for (const way of c.ways) {
          await using policy = await policyOf(c.model, { threads: way.threads });
          const dualClip = c.loss.objective === "ppo_clip" ? c.loss.dualClip : 0;
          const loss: NativeLoss = { ...c.loss, dualClip, chunkRows: way.chunkRows };
          const norms = [];
          for (const step of c.steps) {
            const made = step.map(({ seed, length }) => makeDocument(c.model.config, seed, length));
            for (const part of cut(made, way.cuts))
              await policy.rank.accumulate(packed(part), loss, false).promise;
            norms.push((await policy.optimise(c.optimiser)).gradientNorm);
          }
          outcomes.push({ norms, state: await stateOf(policy) });
        }
        expect(outcomes[0]).toEqual(outcomes[1]);
      }),
      tries(30),
    );
  });
});
