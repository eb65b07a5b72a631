import { describe, expect, test } from "vitest";
import { evaluate } from "../../lib/evaluate/evaluate.ts";
import { mean, passAtK, sem, standardDeviation } from "../../lib/evaluate/statistics.ts";
import { episode, instance, RolloutDouble, trajectory } from "../learn/doubles.ts";

describe("passAtK", () => {
  // recipe.md section 4, n = 10; rLLM's and HumanEval's published vectors.
  test.each([
    [10, 1, [1, 3, 5, 10], [0.1, 0.3, 0.5, 1]],
    [10, 2, [1, 3, 5, 10], [0.2, 0.5333, 0.7778, 1]],
    [10, 4, [1, 3, 5, 10], [0.4, 0.8333, 0.9762, 1]],
    [2, 0, [2], [0]],
    [2, 2, [1], [1]],
    [2, 1, [1, 2], [0.5, 1]],
    [4, 1, [2], [0.5]],
    [10, 3, [5], [0.9166667]],
    [200, 7, [100], [0.9929911]],
  ])("n %i, c %i, k %j", (n, c, ks, expected) => {
    for (const [i, k] of ks.entries()) expect(passAtK(n, c, k)).toBeCloseTo(expected[i] as number, 4);
  });

  test("nothing solved is 0 also where n < k", () => {
    expect(passAtK(3, 0, 5)).toBe(0);
  });

  test("counts that cannot be are refused", () => {
    expect(() => passAtK(3, 4, 1)).toThrow(/passAtK\(n = 3, c = 4, k = 1\)/);
    expect(() => passAtK(3, 1, 0)).toThrow(/k = 0/);
  });
});

describe("standard error", () => {
  test("ddof 1 over runs", () => {
    expect(sem([0.1, 0.3])).toBeCloseTo(0.1, 12);
    expect(standardDeviation([2, 4, 4, 4, 5, 5, 7, 9], 0)).toBe(2);
    // The paper's Verified SEM .50 over 10 runs is a run deviation of 1.6 points.
    const tenRuns = Array.from({ length: 10 }, (_, i) => (i % 2 === 0 ? 1 : -1) * 1.5);
    expect(sem(tenRuns)).toBeCloseTo(0.5, 12);
  });

  test("one run has no known error", () => {
    expect(sem([0.5])).toBeNull();
    expect(mean([])).toBe(0);
  });
});

describe("evaluate", () => {
  const instances = [
    instance("a", { kind: "one" }),
    instance("b", { kind: "one" }),
    instance("c", { kind: "two" }),
  ];
  /** Run 0 solves a and b, run 1 solves a. */
  const rollouts = new RolloutDouble((one, rollout) =>
    trajectory({
      instanceId: one.instance_id,
      rollout,
      verdict: one.instance_id === "a" || (one.instance_id === "b" && rollout === 0) ? "resolved" : "failed",
      exit: one.instance_id === "c" ? "turn_limit" : "submitted",
      turns: [
        { action: 3, observation: 1, formatError: one.instance_id === "c" },
        { action: 1, observation: 0 },
      ],
    }),
  );

  test("run-level Pass@1 and SEM, counts by instance and kind", async () => {
    const { groups, ...result } = await evaluate({
      rollouts,
      instances,
      runs: 2,
      purpose: "evaluate/base",
      ranTests: (one) => one.instanceId !== "a",
    });
    expect(groups).toHaveLength(3);
    expect(rollouts.requests.at(-1)).toMatchObject({ rollouts: 2, purpose: "evaluate/base", temperature: 1 });
    expect(result.runRates).toEqual([2 / 3, 1 / 3]);
    expect(result.pass1).toBeCloseTo(0.5, 12);
    // s = sqrt(2 (1/6)^2 / 1), over sqrt(2).
    expect(result.sem).toBeCloseTo(1 / 6, 12);
    expect(result).toMatchObject({
      instances: 3,
      runs: 2,
      episodes: 6,
      solved: 3,
      dropped: 0,
      turns: 2,
      tokens: 9,
      actionTokens: 4,
      exits: { submitted: 4, turn_limit: 2 },
      perInstance: {
        a: { solved: 2, episodes: 2 },
        b: { solved: 1, episodes: 2 },
        c: { solved: 0, episodes: 2 },
      },
      byKind: {
        one: { pass1: 0.75, instances: 2, episodes: 4 },
        two: { pass1: 0, instances: 1, episodes: 2 },
      },
    });
    expect(result.formatErrorRate).toBeCloseTo(2 / 12, 12);
    expect(result.testsRunRate).toBeCloseTo(4 / 6, 12);
    expect(Object.keys(result.passK)).toEqual(["1"]);
    expect(result.passK["1"]).toBeCloseTo(0.5, 12);
  });

  test("ten runs give Pass@1, 5 and 10 over the instances that kept enough episodes", async () => {
    const ten = new RolloutDouble((one, rollout) =>
      episode(1, rollout === 3, {
        instanceId: one.instance_id,
        rollout,
        exit: one.instance_id === "c" && rollout === 0 ? "infra_failed" : "submitted",
      }),
    );
    const result = await evaluate({ rollouts: ten, instances });
    expect(result.dropped).toBe(1);
    expect(result.episodes).toBe(29);
    expect(result.runRates[3]).toBe(1);
    expect(result.passK["10"]).toBe(1);
    // Instance c has one success in nine episodes.
    expect(result.passK["5"]).toBeCloseTo((0.5 + 0.5 + 5 / 9) / 3, 12);
  });

  test("episodes that broke leave their run and their instance, and Pass@k the instances with fewer than k", async () => {
    // By run, 1 = solved, 0 = not, x = broke:
    const outcomes: Record<string, string> = { a: "11000", b: "x1000", c: "00xx0" };
    const broken = new RolloutDouble((one, rollout) => {
      const outcome = outcomes[one.instance_id]?.[rollout];
      return episode(1, outcome === "1", {
        instanceId: one.instance_id,
        rollout,
        // Broken while acting leaves the group, broken while judged stays in it: neither counts.
        ...(outcome === "x" && rollout < 3 ? { exit: "infra_failed" as const } : {}),
        ...(outcome === "x" && rollout === 3 ? { reason: "infra_failed" } : {}),
      });
    });
    const result = await evaluate({ rollouts: broken, instances, runs: 5 });
    expect(result).toMatchObject({ episodes: 12, dropped: 3, solved: 3 });
    expect(result.runRates).toEqual([1 / 2, 2 / 3, 0, 0, 0]);
    // The mean over runs, 7/30: over instances it is 13/60, over episodes 1/4.
    expect(result.pass1).toBeCloseTo(7 / 30, 12);
    // Squares about it 19/45, over 4 degrees of freedom and 5 runs.
    expect(result.sem).toBeCloseTo(Math.sqrt(19 / 45 / 4 / 5), 12);
    expect(Object.keys(result.passK)).toEqual(["1", "5"]);
    expect(result.passK["1"]).toBeCloseTo((2 / 5 + 1 / 4 + 0) / 3, 12);
    // Only a has five episodes.
    expect(result.passK["5"]).toBe(1);
    expect(result.byKind).toMatchObject({
      one: { pass1: 0.325, instances: 2, episodes: 9 },
      two: { pass1: 0, instances: 1, episodes: 3 },
    });
  });

  test("every option arrives at the rollouts", async () => {
    const { signal } = new AbortController();
    const seen: string[] = [];
    const { temperature } = await evaluate({
      rollouts,
      instances,
      runs: 3,
      temperature: 0.6,
      purpose: "evaluate/stage1",
      iteration: 4,
      signal,
      onTrajectory: (one) => seen.push(one.id),
    });
    expect(temperature).toBe(0.6);
    expect(seen).toHaveLength(9);
    const request = rollouts.requests.at(-1);
    expect(request).toMatchObject({
      rollouts: 3,
      temperature: 0.6,
      purpose: "evaluate/stage1",
      iteration: 4,
    });
    expect(request?.instances).toEqual(instances);
    expect(request?.signal).toBe(signal);
  });

  test("sets that are kept apart have numbers of their own and change no others, and so has a smaller budget", async () => {
    const budget = { maxTurns: 2, maxContext: 100 };
    const full = { maxTurns: 4, maxContext: 200 };
    // Solved: a always, b in run 0 of the full budget, x in run 1 of the full budget, y never.
    const solved = (id: string, rollout: number, small: boolean): boolean =>
      id === "a" || (!small && ((id === "b" && rollout === 0) || (id === "x" && rollout === 1)));
    const source = new RolloutDouble(
      (one, rollout) => {
        const at = (small: boolean) =>
          episode(small ? 2 : 4, solved(one.instance_id, rollout, small), {
            instanceId: one.instance_id,
            rollout,
          });
        return { ...at(false), alsoAt: [{ budget, trajectory: at(true) }] };
      },
      { ...full, maxActionTokens: 9, episodeMs: 1, observationChars: 9, autoSubmit: true },
    );
    const [a, b] = instances as [(typeof instances)[0], (typeof instances)[0]];
    const options = { rollouts: source, instances: [a, b], runs: 2 };
    const apart = { families: [instance("x"), instance("y")], none: [] };
    const plain = await evaluate(options);
    const result = await evaluate({ ...options, apart, alsoAt: [budget] });
    expect(source.requests.at(-1)).toMatchObject({
      alsoAt: [budget],
      instances: [a, b, { instance_id: "x" }, {}],
    });
    expect(result.groups.map((group) => group.instance.instance_id)).toEqual(["a", "b", "x", "y"]);
    const { groups: _, apart: families, alsoAt, ...main } = result;
    const { groups: __, ...alone } = plain;
    expect(main).toEqual(alone);
    expect(main).toMatchObject({ pass1: 0.75, runRates: [1, 0.5], instances: 2, turns: 4, budget: full });
    expect(Object.keys(families ?? {})).toEqual(["families"]);
    expect(families?.families).toMatchObject({ pass1: 0.25, runRates: [0, 0.5], instances: 2, episodes: 4 });
    expect(alsoAt).toMatchObject([
      { budget, pass1: 0.5, runRates: [0.5, 0.5], turns: 2, apart: { families: { pass1: 0, episodes: 4 } } },
    ]);
    await expect(evaluate({ rollouts, instances, runs: 2, alsoAt: [budget] })).rejects.toThrow(
      /was not judged at smaller budget 0/,
    );
  });

  test("a number of runs that is none is refused", async () => {
    await expect(evaluate({ rollouts, instances, runs: 0 })).rejects.toThrow(/runs is 0/);
  });
});
