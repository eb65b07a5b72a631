import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { packLanes, unpackLanes } from "../../lib/ranks/lanes.ts";
import { rankOptions as options, seed } from "../ops/native.ts";
import { settledMesh } from "../ops/ranks.ts";
import { ids } from "../policy/tiny.ts";

const bytes = (packed: ReturnType<typeof packLanes>): number =>
  [packed.runs, packed.logprob, packed.entropy, packed.flags].reduce((sum, lane) => sum + lane.byteLength, 0);

describe("lanes", () => {
  it("come out as they went in, and never take more than they do whole", () => {
    const token = fc.record({
      logprob: fc.constantFrom(0, 0, -0.5, -3),
      entropy: fc.constantFrom(0, 0, 1.5),
      flag: fc.constantFrom(0, 0, 1, 2),
    });
    fc.assert(
      fc.property(fc.array(token, { maxLength: 40 }), (tokens) => {
        const whole = {
          loss: -1.25,
          logprob: Float32Array.from(tokens, ({ logprob }) => logprob),
          entropy: Float32Array.from(tokens, ({ entropy }) => entropy),
          flags: Int32Array.from(tokens, ({ flag }) => flag),
        };
        const packed = packLanes(whole);
        expect(unpackLanes(packed)).toEqual(whole);
        expect(bytes(packed)).toBeLessThanOrEqual(12 * tokens.length + 8);
      }),
    );
  });

  it("of a context group are sent once, by the rank that holds the token", async () => {
    const lengths = [37, 5, 90];
    const size = lengths.reduce((sum, length) => sum + length, 0);
    const outcomes = await settledMesh(options, { size: 4, contextParallel: 4 }, async (rank) => {
      await rank.initialise(seed).promise;
      return packLanes(
        await rank.score({ tokens: ids("lanes", size), lengths: Int32Array.from(lengths) }, 1).promise,
      );
    });
    const packed = outcomes.map((outcome) => {
      if (outcome.status === "rejected") throw outcome.reason;
      return outcome.value;
    });
    // All but the first token of each document have a logprob; a document is held in 8 ranges at most.
    expect(packed.reduce((sum, { logprob }) => sum + logprob.length, 0)).toBe(size - lengths.length);
    const sent = packed.reduce((sum, one) => sum + bytes(one), 0);
    expect(sent).toBeLessThanOrEqual(12 * (size - lengths.length) + 8 * 8 * lengths.length);
    expect(sent).toBeLessThan((4 * 12 * size) / 3);
  });
});
