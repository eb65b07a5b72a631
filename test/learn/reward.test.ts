import { describe, expect, test } from "vitest";
import { groupAdvantages } from "../../lib/learn/advantage.ts";
import { finalReward } from "../../lib/learn/reward.ts";

describe("finalReward (recipe eq. 3-4)", () => {
  // Worked by hand from the formula: slopes are 1/30 and 1/70.
  test.each([
    [40, [9, 10, 11, 20, 25, 40], [0, 0, -1 / 30, -1 / 3, -0.5, -1]],
    [80, [11, 20, 40, 45, 60, 80], [-1 / 70, -1 / 7, -3 / 7, -0.5, -5 / 7, -1]],
  ])("T_max %i: penalties over turns %j", (maxTurns, turns, expected) => {
    const options = { maxTurns, lengthThreshold: 10 };
    turns.forEach((n, i) => {
      expect(finalReward(false, n, options)).toBeCloseTo(expected[i] as number, 12);
      expect(finalReward(true, n, options)).toBeCloseTo(1 + (expected[i] as number), 12);
    });
  });

  test("a success in the last turn scores 0, a failure there -1, and it never goes below", () => {
    const options = { maxTurns: 8, lengthThreshold: 7 };
    expect(finalReward(true, 8, options)).toBe(0);
    expect(finalReward(false, 8, options)).toBe(-1);
    expect(finalReward(false, 30, options)).toBe(-1);
  });

  test("without the penalty only the outcome counts", () => {
    const options = { maxTurns: 8, lengthThreshold: 8, lengthPenalty: false };
    expect([finalReward(true, 8, options), finalReward(false, 8, options)]).toEqual([1, 0]);
  });

  test("a threshold that is not below T_max is refused", () => {
    expect(() => finalReward(true, 3, { maxTurns: 8, lengthThreshold: 8 })).toThrow(/lengthThreshold \(8\)/);
  });
});

describe("groupAdvantages (recipe eq. 2)", () => {
  const turns = [12, 20, 40, 8, 15, 25, 40, 40, 40, 40];
  const rewards = turns.map((n, i) => finalReward(i < 3, n, { maxTurns: 40, lengthThreshold: 10 }));

  test("the recipe's group of ten, ddof 0 and 1", () => {
    const close = (actual: number[], expected: number[]): void => {
      for (const [i, value] of actual.entries()) expect(value).toBeCloseTo(expected[i] as number, 3);
    };
    close(rewards, [0.9333, 0.6667, 0, 0, -0.1667, -0.5, -1, -1, -1, -1]);
    const failed = (value: number): number[] => new Array(4).fill(value);
    close(groupAdvantages(rewards), [1.8179, 1.4269, 0.4496, 0.4496, 0.2052, -0.2834, ...failed(-1.0164)]);
    close(groupAdvantages(rewards, { ddof: 1 }), [
      1.7246,
      1.3537,
      0.4265,
      0.4265,
      0.1947,
      -0.2689,
      ...failed(-0.9643),
    ]);
  });

  test("outcome only, three of ten", () => {
    const outcome = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
    expect(groupAdvantages(outcome)[0]).toBeCloseTo(1.5275, 4);
    expect(groupAdvantages(outcome)[9]).toBeCloseTo(-0.6547, 4);
    expect(groupAdvantages(outcome, { ddof: 1 })[0]).toBeCloseTo(1.4491, 4);
    expect(groupAdvantages(outcome, { ddof: 1 })[9]).toBeCloseTo(-0.6211, 4);
  });

  // The two conventions that other trainers use, by their own tests' numbers.
  test("rewards 1 and 3 give 1.0 with ddof 0 and 0.70711 with ddof 1", () => {
    expect(groupAdvantages([1, 3], { ddof: 0 })[1]).toBeCloseTo(1, 5);
    expect(groupAdvantages([1, 3], { ddof: 1 })[1]).toBeCloseTo(Math.SQRT1_2, 5);
    expect(groupAdvantages([1, 1.01], { ddof: 1 })[1]).toBeCloseTo(Math.SQRT1_2, 3);
  });

  test("Dr. GRPO only centres", () => {
    expect(groupAdvantages([6, 3], { normalise: "none" })).toEqual([1.5, -1.5]);
    expect(groupAdvantages([9, 12], { normalise: "none" })).toEqual([-1.5, 1.5]);
  });

  test("equal rewards and singletons give exactly 0", () => {
    expect(groupAdvantages([0.1, 0.1, 0.1])).toEqual([0, 0, 0]);
    expect(groupAdvantages([0.7], { ddof: 1 })).toEqual([0]);
    expect(groupAdvantages([])).toEqual([]);
  });

  // Groups whose standard deviation must belong to the whole group, never to a leave-one-out row.
  test.each([[[1, 0, 0, 0]], [[1, 1, 1, 0]], [[1, 1, 0, 0]]])(
    "%j: no row of a mixed group is 0",
    (outcome) => {
      const advantages = groupAdvantages(outcome);
      expect(advantages.every((value) => value !== 0)).toBe(true);
      expect(advantages.reduce((a, b) => a + b, 0)).toBeCloseTo(0, 12);
    },
  );
});
