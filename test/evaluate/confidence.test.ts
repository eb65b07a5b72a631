import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Group, Trajectory } from "../../lib/agent/types.ts";
import { bestOfN, confidenceOf, confidenceReport } from "../../lib/evaluate/confidence.ts";
import { summariseEvaluation } from "../../lib/evaluate/evaluate.ts";
import { episode, instance, trajectory } from "../learn/doubles.ts";

/** Episodes by confidence, which a score of our own reads from the patch. */
function group(id: string, ...episodes: [confidence: number, solved: boolean][]): Group {
  return {
    instance: instance(id),
    trajectories: episodes.map(([confidence, solved], rollout) => ({
      ...episode(2, solved, { instanceId: id, rollout }),
      patch: String(confidence),
    })),
    dropped: [],
  };
}
const stated = (one: Trajectory): number => Number(one.patch);

describe("confidence", () => {
  test("is the mean or the sum of the logprobs of actions alone", () => {
    const one = trajectory({
      turns: [
        { action: 2, observation: 3 },
        { action: 1, observation: 0 },
      ],
    });
    one.logprobs.fill(-9);
    for (const [i, logprob] of [-1, -2].entries())
      one.logprobs[(one.turns[0]?.start as number) + i] = logprob;
    one.logprobs[one.turns[1]?.start as number] = -6;
    expect(confidenceOf(one, "mean_logprob")).toBe(-3);
    expect(confidenceOf(one, "sum_logprob")).toBe(-9);
    expect(confidenceOf(one, (given) => given.turns.length)).toBe(2);
  });

  test("precision and recall by threshold, and the area under them", () => {
    const { curve, averagePrecision, pass1 } = confidenceReport(
      [group("a", [4, true], [1, false]), group("b", [3, false], [2, true])],
      stated,
    );
    expect(curve).toEqual([
      { threshold: 4, coverage: 0.25, precision: 1, recall: 0.5 },
      { threshold: 3, coverage: 0.5, precision: 0.5, recall: 0.5 },
      { threshold: 2, coverage: 0.75, precision: 2 / 3, recall: 1 },
      { threshold: 1, coverage: 1, precision: 0.5, recall: 1 },
    ]);
    expect(averagePrecision).toBeCloseTo(0.5 * 1 + 0.5 * (2 / 3), 12);
    expect(pass1).toBe(0.5);
  });

  test("a score that knows nothing gives the pass rate, at one point", () => {
    const { curve, averagePrecision } = confidenceReport(
      [group("a", [1, true], [1, false], [1, false], [1, false])],
      stated,
    );
    expect(curve).toEqual([{ threshold: 1, coverage: 1, precision: 0.25, recall: 1 }]);
    expect(averagePrecision).toBe(0.25);
    expect(confidenceReport([group("a", [1, false])], stated).averagePrecision).toBeNull();
  });

  test("best of n is the mean over all subsets of n", () => {
    const subsets = <T>(items: readonly T[], n: number): T[][] =>
      n === 0
        ? [[]]
        : items.flatMap((item, i) => subsets(items.slice(i + 1), n - 1).map((rest) => [item, ...rest]));
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            confidence: fc.integer({ min: 0, max: 4 }),
            solved: fc.constantFrom(0 as const, 1 as const),
          }),
          {
            minLength: 1,
            maxLength: 8,
          },
        ),
        fc.integer({ min: 1, max: 8 }),
        (episodes, wanted) => {
          const n = Math.min(wanted, episodes.length);
          const rates = subsets(episodes, n).map((chosen) => {
            const top = Math.max(...chosen.map(({ confidence }) => confidence));
            const surest = chosen.filter(({ confidence }) => confidence === top);
            return surest.reduce((sum, { solved }) => sum + solved, 0) / surest.length;
          });
          const expected = rates.reduce((a, b) => a + b, 0) / rates.length;
          expect(bestOfN(episodes, n)).toBeCloseTo(expected, 9);
        },
      ),
    );
    expect(() => bestOfN([], 1)).toThrow(/best of 1 of 0/);
  });

  test("an evaluation carries it where it is asked for, and a score that is no number is named", () => {
    const groups = [group("a", [2, true], [1, false])];
    const how = { runs: 2, temperature: 1 };
    expect(summariseEvaluation(groups, how)).not.toHaveProperty("confidence");
    const { confidence } = summariseEvaluation(groups, { ...how, confidence: stated });
    expect(confidence?.bestOf).toEqual({ 1: { pass1: 0.5, sem: null }, 2: { pass1: 1, sem: null } });
    expect(() => summariseEvaluation(groups, { ...how, confidence: () => Number.NaN })).toThrow(
      /of a-0 is NaN/,
    );
  });
});
