import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ACTION, OBSERVATION, PROMPT } from "../../lib/agent/types.ts";
import { pack } from "../../lib/learn/pack.ts";
import {
  type Aggregation,
  demonstrationDocument,
  type TrainingDocument,
  trajectoryDocument,
  type WeightedDocument,
  weigh,
} from "../../lib/learn/weights.ts";
import { trajectory } from "./doubles.ts";

/** Sum over the documents of weight x value. */
function aggregate(values: number[][], masks: number[][], aggregation: Aggregation): number {
  const documents = masks.map((mask, i): TrainingDocument => {
    // One unpredicted token in front, as every document has.
    const full = [0, ...mask];
    return {
      id: `d${i}`,
      tokens: new Int32Array(full.length),
      provenance: new Uint8Array(full.length),
      mask: Float32Array.from(full),
      version: null,
    };
  });
  let sum = 0;
  weigh(documents, aggregation).forEach((document, d) => {
    values[d]?.forEach((value, i) => {
      sum += value * (document.weight[i + 1] as number);
    });
  });
  return sum;
}

describe("aggregations", () => {
  const values = [
    [1, 2, 3],
    [4, 5, 6],
  ];
  const masks = [
    [1, 1, 0],
    [1, 1, 1],
  ];

  test("token mean over the whole step: 18 / 5", () => {
    expect(aggregate(values, masks, "token_mean")).toBeCloseTo(3.6, 6);
  });

  test("sample mean: (1.5 + 5) / 2", () => {
    expect(aggregate(values, masks, "sample_mean")).toBeCloseTo(3.25, 6);
  });

  test("Dr. GRPO with L = 10: 18 / (2 * 10)", () => {
    expect(aggregate(values, masks, { drGrpo: 10 })).toBeCloseTo(0.9, 6);
  });

  test("documents without loss count in no denominator", () => {
    const more = [...masks, [0, 0, 0]];
    expect(aggregate(values, more, "token_mean")).toBeCloseTo(3.6, 6);
    expect(aggregate(values, more, "sample_mean")).toBeCloseTo(3.25, 6);
    expect(aggregate(values, more, { drGrpo: 10 })).toBeCloseTo(0.9, 6);
  });

  test("a mean of micro-batch means would be another number: the trap that the global mean avoids", () => {
    const perMicroBatch =
      (aggregate([[1, 2]], [[1, 1]], "token_mean") + aggregate([[4, 5, 6]], [[1, 1, 1]], "token_mean")) / 2;
    expect(perMicroBatch).not.toBeCloseTo(aggregate(values, masks, "token_mean"), 3);
  });
});

describe("weights come from provenance", () => {
  test("a trajectory: actions 1, everything else 0", () => {
    const made = trajectory();
    const document = trajectoryDocument(made);
    expect([...document.mask]).toEqual([0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1]);
    expect(document.oldLogprob).toBe(made.logprobs);
    expect(document.version).toBe(0);
  });

  test("turns with a format error stay in the context and carry no loss when RFT asks for it", () => {
    const made = trajectory({
      turns: [
        { action: 3, observation: 2, formatError: true },
        { action: 2, observation: 0 },
      ],
    });
    expect([...trajectoryDocument(made, { maskFormatErrors: true }).mask]).toEqual([
      0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1,
    ]);
    expect([...trajectoryDocument(made).mask]).toEqual([0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1]);
  });

  test("the warm start also learns from observations and prompts, never from the first token", () => {
    const provenance = Uint8Array.of(PROMPT, PROMPT, ACTION, OBSERVATION, ACTION);
    const document = demonstrationDocument("demo", Int32Array.of(1, 2, 3, 4, 5), provenance, {
      observationWeight: 0.5,
      promptWeight: 0.25,
    });
    expect([...document.mask]).toEqual([0, 0.25, 1, 0.5, 1]);
    expect([...(weigh([document])[0] as WeightedDocument).weight]).toEqual(
      [0, 0.25, 1, 0.5, 1].map((w) => Math.fround(w / 2.75)),
    );
  });

  test("turns of several versions leave the document without one", () => {
    const mixed = trajectory({
      turns: [
        { action: 1, observation: 1, version: 3 },
        { action: 1, observation: 0, version: 4 },
      ],
    });
    expect(trajectoryDocument(mixed).version).toBeNull();
  });

  test("lanes of another length are refused by name", () => {
    const made = { ...trajectory(), logprobs: new Float32Array(3) };
    expect(() => trajectoryDocument(made)).toThrow(/i0-0: logprobs has 3 entries for 11 tokens/);
  });

  test("a provenance that does not exist is refused", () => {
    expect(() => demonstrationDocument("d", new Int32Array(2), Uint8Array.of(0, 7))).toThrow(/token 1 is 7/);
  });
});

const documents = fc.array(
  fc
    .array(fc.record({ token: fc.nat(30), from: fc.constantFrom(PROMPT, OBSERVATION, ACTION) }), {
      minLength: 2,
      maxLength: 40,
    })
    .map((rows): TrainingDocument => {
      const provenance = Uint8Array.from(rows, (row) => row.from);
      provenance[1] = ACTION;
      const document = demonstrationDocument(
        `d${rows.length}`,
        Int32Array.from(rows, (row) => row.token),
        provenance,
        {
          observationWeight: 0.25,
        },
      );
      return {
        ...document,
        advantage: Float32Array.from(rows, (_, at) => at / 8),
        oldLogprob: Float32Array.from(rows, (_, at) => -at / 16),
      };
    }),
  { minLength: 1, maxLength: 12 },
);

describe("packing (properties)", () => {
  test("weights sum to 1 for both means, whatever the packing", () => {
    fc.assert(
      fc.property(documents, fc.integer({ min: 1, max: 100 }), (list, maxTokens) => {
        for (const aggregation of ["token_mean", "sample_mean"] as const) {
          let sum = 0;
          for (const { batch } of pack(weigh(list, aggregation), maxTokens))
            for (const w of batch.weight) sum += w;
          // At most 480 float32 roundings of half an ulp of values that sum to 1.
          expect(sum).toBeCloseTo(1, 5);
        }
      }),
    );
  });

  test("every document is whole, in order, and all lanes are aligned", () => {
    fc.assert(
      fc.property(documents, fc.integer({ min: 1, max: 100 }), (list, maxTokens) => {
        const weighted = weigh(list);
        const micro = pack(weighted, maxTokens);
        expect(micro.flatMap((one) => one.documents)).toEqual(weighted);
        for (const { batch, documents: inside, offsets } of micro) {
          expect(batch.tokens.length <= maxTokens || inside.length === 1).toBe(true);
          inside.forEach((document, d) => {
            const at = offsets[d] as number;
            const end = at + document.tokens.length;
            expect(batch.lengths[d]).toBe(document.tokens.length);
            expect(batch.tokens.subarray(at, end)).toEqual(document.tokens);
            expect(batch.weight.subarray(at, end)).toEqual(document.weight);
            expect(batch.advantage?.subarray(at, end)).toEqual(document.advantage);
            expect(batch.oldLogprob?.subarray(at, end)).toEqual(document.oldLogprob);
          });
        }
      }),
    );
  });

  test("no micro-batch could have taken the next document too", () => {
    fc.assert(
      fc.property(documents, fc.integer({ min: 1, max: 100 }), (list, maxTokens) => {
        const micro = pack(weigh(list), maxTokens);
        for (let i = 1; i < micro.length; i++) {
          const before = micro[i - 1]?.batch.tokens.length as number;
          expect(before + (micro[i]?.batch.lengths[0] as number)).toBeGreaterThan(maxTokens);
        }
      }),
    );
  });

  test("a document without tokens and a budget of nothing are refused", () => {
    const empty = demonstrationDocument("nil", new Int32Array(0), new Uint8Array(0));
    expect(() => pack(weigh([empty]), 8)).toThrow(/document nil has no tokens/);
    expect(() => pack([], 0)).toThrow(/maxTokens is 0/);
  });
});
