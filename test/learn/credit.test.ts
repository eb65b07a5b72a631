// Credit by the turn: which states are looked at, what their values make of the advantages, and what it costs.
import { describe, expect, test } from "vitest";
import type { Trajectory } from "../../lib/agent/types.ts";
import {
  type CreditContext,
  creditFault,
  evenMarks,
  shapedCredit,
  stepCredit,
} from "../../lib/learn/credit.ts";
import { type DapoConfig, dapo } from "../../lib/learn/dapo.ts";
import { type ScoredGroup, scoreGroup } from "../../lib/learn/filter.ts";
import { jobSchema } from "../../lib/run/config.ts";
import { episode, instance, PolicyDouble, RolloutDouble, trajectory } from "./doubles.ts";

const reward = { maxTurns: 12, lengthThreshold: 10 };

function groupOf(...trajectories: Trajectory[]): ScoredGroup {
  return scoreGroup({ instance: instance("i0"), trajectories, dropped: [] }, { reward });
}

/** Goes on from the prefixes that are asked for by as many turns as it had, solved where `solves` says so. */
function branching(solves: (turn: number, rollout: number) => boolean, lost?: number): RolloutDouble {
  return new RolloutDouble((one, rollout, request, index) => {
    const prefix = request.prefixes?.[index];
    if (!prefix) throw new Error("only prefixes are asked for here");
    return {
      ...prefix.trajectory,
      id: `${one.instance_id}+${rollout}`,
      rollout,
      verdict: solves(prefix.turns, rollout) ? "resolved" : "failed",
      exit: prefix.turns === lost ? "infra_failed" : "submitted",
    };
  });
}

const context = (rollouts: RolloutDouble): CreditContext => ({
  rollouts,
  reward,
  advantage: {},
  purpose: "stage1",
  iteration: 3,
  seed: 1,
  temperature: 1,
});

test("marks lie evenly strictly inside a trajectory", () => {
  expect(evenMarks(8, 1)).toEqual([4]);
  expect(evenMarks(8, 3)).toEqual([2, 4, 6]);
  expect(evenMarks(3, 9)).toEqual([1, 2]);
  expect(evenMarks(1, 4)).toEqual([]);
  expect(evenMarks(0, 4)).toEqual([]);
});

describe("credit from prefix rollouts", () => {
  // Rewards 1, 0, 0, 0: mean 1/4, sigma sqrt(3)/4.
  const group = groupOf(
    episode(4, true, { rollout: 0 }),
    ...[1, 2, 3].map((rollout) => episode(4, false, { rollout })),
  );
  const sigma = Math.sqrt(3) / 4 + 1e-6;

  test("a turn's advantage is the gain of value over it, and the steps sum to the group's advantage", async () => {
    // After turn 2 three of four go on to solve it.
    const source = branching((_, rollout) => rollout < 3);
    const given = await stepCredit([group], { turns: 4, rollouts: 4 }, context(source));
    const [scored] = given.groups as [ScoredGroup];
    expect(source.requests).toHaveLength(1);
    expect(source.requests[0]).toMatchObject({
      rollouts: 4,
      purpose: "stage1/forks",
      iteration: 3,
      temperature: 1,
    });
    expect(source.requests[0]?.prefixes?.map(({ turns }) => turns)).toEqual([2, 2, 2, 2]);
    const [solved, failed] = scored.turnAdvantages as [number[], number[]];
    const rise = (0.75 - 0.25) / sigma;
    expect(solved.map((one) => one * sigma)).toEqual(
      [0.5, 0.5, 0.25, 0.25].map((one) => expect.closeTo(one, 6)),
    );
    expect(failed.map((one) => one * sigma)).toEqual(
      [0.5, 0.5, -0.75, -0.75].map((one) => expect.closeTo(one, 6)),
    );
    expect(solved[0]).toBeCloseTo(rise, 9);
    for (const [t, turns] of (scored.turnAdvantages as number[][]).entries())
      expect((turns[0] as number) + (turns[3] as number)).toBeCloseTo(scored.advantages[t] as number, 9);
    expect(given.summary).toMatchObject({ turns: 4, lost: 0, episodes: 16 });
    // Two of the four actions of one token lie after the fork.
    expect(given.summary.sampledTokens).toBe(32);
  });

  test("no more turns are forked than asked for, and groups without a signal are left alone", async () => {
    const dead = groupOf(episode(4, false), episode(5, false, { rollout: 1 }));
    const source = branching(() => true);
    const given = await stepCredit([dead, group], { turns: 6, rollouts: 1 }, context(source));
    expect(given.groups[0]).toBe(dead);
    const forks = source.requests[0]?.prefixes?.map((prefix) => prefix.trajectory.rollout) ?? [];
    expect(forks).toHaveLength(6);
    // Dealt out: each of the four once, two of them twice.
    expect([...new Set(forks)].sort()).toEqual([0, 1, 2, 3]);
    const none = branching(() => true);
    await stepCredit([dead], { turns: 6, rollouts: 1 }, context(none));
    expect(none.requests).toEqual([]);
  });

  test("a state that cannot be had again joins its turns to the next step, and is counted", async () => {
    const source = branching(() => true, 2);
    const given = await stepCredit([group], { turns: 4, rollouts: 2 }, context(source));
    const [scored] = given.groups as [ScoredGroup];
    expect(given.summary).toMatchObject({ turns: 4, lost: 4, episodes: 0 });
    for (const [t, turns] of (scored.turnAdvantages as number[][]).entries())
      expect(turns).toEqual(new Array(4).fill(expect.closeTo(scored.advantages[t] as number, 9)));
  });

  test("a source that starts at the prompt is refused", async () => {
    const source = new RolloutDouble((one, rollout) =>
      trajectory({ instanceId: one.instance_id, rollout: rollout + 5 }),
    );
    await expect(stepCredit([group], { turns: 1, rollouts: 1 }, context(source))).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: expect.stringMatching(/does not begin with the first 2 turns/),
    });
  });
});

describe("potential-based shaping", () => {
  const group = groupOf(episode(3, true, { rollout: 0 }), episode(3, false, { rollout: 1 }));

  test("leaves R - potential from each turn on, normalised over the group's turns", async () => {
    const source = new RolloutDouble((_, __, request, index) => {
      const prefix = request.prefixes?.[index] as {
        trajectory: Trajectory;
        turns: number;
      };
      // Half of the tests pass after the first turn, all after the second.
      const tests = { failToPass: prefix.turns === 1 ? 0.5 : 1, passToPass: 1 };
      return { ...prefix.trajectory, tests };
    });
    const given = await shapedCredit([group], { weight: 0.8, turns: 8 }, context(source));
    expect(source.requests[0]).toMatchObject({ purpose: "stage1/states", rollouts: 1, judgeOnly: true });
    const toGo = [1, 0.6, 0.2, 0, -0.4, -0.8];
    const mean = toGo.reduce((a, b) => a + b) / 6;
    const sd = Math.sqrt(toGo.reduce((a, b) => a + (b - mean) ** 2, 0) / 6);
    const expected = toGo.map((one) => expect.closeTo((one - mean) / (sd + 1e-6), 6));
    expect(given.groups[0]?.turnAdvantages).toEqual([expected.slice(0, 3), expected.slice(3)]);
    // The double's commands are the same in both trajectories: each state is judged once.
    expect(given.summary).toMatchObject({ turns: 2, lost: 0, episodes: 0 });
  });

  test("a potential of a constant changes no order: the optimum stays", async () => {
    const source = new RolloutDouble((_, __, request, index) => ({
      ...(request.prefixes?.[index]?.trajectory as Trajectory),
      tests: { failToPass: 0, passToPass: 1 },
    }));
    const given = await shapedCredit([group], { weight: 1, turns: 8 }, context(source));
    expect(given.groups[0]?.turnAdvantages).toEqual(
      [1, -1].map((one) => new Array(3).fill(expect.closeTo(one, 5))),
    );
  });

  test("needs the shares of tests", async () => {
    const silent = branching(() => true);
    await expect(shapedCredit([group], { weight: 1, turns: 1 }, context(silent))).rejects.toThrow(
      /says nothing of its tests/,
    );
  });
});

describe("in the loop", () => {
  const pool = [instance("i0"), instance("i1"), instance("i2"), instance("i3")];
  /** Only i3 is ever solved by some; prefixes are solved. */
  const source = (live: string): RolloutDouble =>
    new RolloutDouble((one, rollout, request, index) => {
      const prefix = request.prefixes?.[index];
      if (prefix)
        return { ...prefix.trajectory, verdict: "resolved", tests: { failToPass: 1, passToPass: 1 } };
      return episode(4, one.instance_id === live && rollout === 0, { instanceId: one.instance_id, rollout });
    });
  async function run(
    config: Partial<DapoConfig>,
    live = "i3",
    instances = 2,
  ): Promise<{ policy: PolicyDouble; source: RolloutDouble; summary: unknown; ids: string[] }> {
    const policy = new PolicyDouble({ drift: 0 });
    const rollouts = source(live);
    const loop = dapo({
      policy,
      rollouts,
      instances: pool,
      seed: 1,
      purpose: "s",
      config: { iterations: 1, instances, rollouts: 4, maxTurns: 12, logprobTolerance: null, ...config },
    });
    const { value } = await loop.next();
    if (!value) throw new Error("one iteration was asked for");
    return {
      policy,
      source: rollouts,
      summary: value.summary,
      ids: value.groups.map((g) => g.group.instance.instance_id),
    };
  }

  test("refill draws other instances while too few carry a signal, and no more than it may", async () => {
    const off = await run({});
    expect(off.source.requests).toHaveLength(1);
    expect(off.summary).toMatchObject({ groups: 2, groupsExtra: 0, credit: null });
    const bounded = await run({ maxExtraGroups: 1 }, "none");
    expect(bounded.summary).toMatchObject({ groups: 3, groupsExtra: 1, groupsKept: 0 });
    const exhausted = await run({ maxExtraGroups: 9 }, "none");
    expect(exhausted.summary).toMatchObject({ groups: 4, groupsExtra: 2 });
    expect(new Set(exhausted.ids).size).toBe(4);
    expect(exhausted.source.requests.map(({ purpose, iteration }) => [purpose, iteration])).toEqual([
      ["s", 0],
      ["s/refill1", 0],
    ]);
  });

  test("refill stops as soon as enough groups are live", async () => {
    // One instance an iteration: whichever it is, the others follow one by one until i3 comes.
    const { ids, summary } = await run({ maxExtraGroups: 3 }, "i3", 1);
    expect(ids.at(-1)).toBe("i3");
    expect(summary).toMatchObject({ groupsKept: 1, groupsExtra: ids.length - 1 });
  });

  test("advantages by the turn reach the loss token by token", async () => {
    const { policy, summary } = await run({ stepCredit: { turns: 4, rollouts: 2 } }, "i3", 4);
    expect(summary).toMatchObject({ credit: { turns: 4, episodes: 8, lost: 0 } });
    const lanes = policy.calls.flatMap(({ batch }) =>
      [...(batch.advantage ?? [])].map((a) => Math.fround(a)),
    );
    const sigma = Math.sqrt(3) / 4 + 1e-6;
    // V = 1/4 at first, 1 after two turns; the end is 1 or 0.
    const steps = [0.75, 0, -1].map((gain) => Math.fround(gain / sigma));
    for (const step of steps) expect(lanes).toContain(step);
  });

  test("credit of one's own replaces the advantages", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    const loop = dapo({
      policy,
      rollouts: source("i3"),
      instances: pool,
      seed: 1,
      config: { iterations: 1, instances: 4, rollouts: 4, maxTurns: 12, logprobTolerance: null },
      assign: (groups) => groups.map((scored) => ({ ...scored, advantages: scored.advantages.map(() => 7) })),
    });
    await loop.next();
    const given = policy.calls.flatMap(({ batch }) => [...(batch.advantage ?? [])]);
    expect(new Set(given)).toEqual(new Set([7]));
  });

  test("shaping and stepCredit together are refused, by the loop and by a job's config", async () => {
    const both = { stepCredit: { turns: 1, rollouts: 1 }, shaping: { weight: 1, turns: 1 } };
    expect(creditFault(both)?.key).toBe("shaping");
    await expect(run(both)).rejects.toThrow(/shaping: cancels out/);
    const limits = { maxTurns: 12, maxContext: 640 };
    const parsed = jobSchema.safeParse({
      model: { path: "m" },
      tasks: { name: "tinyswe", train: 1, heldOut: 1 },
      evaluate: { limits },
      stages: [
        {
          name: "s",
          iterations: 1,
          instances: 1,
          rollouts: 2,
          batchSize: 1,
          lengthThreshold: 1,
          learningRate: 1e-3,
          limits,
          ...both,
        },
      ],
    });
    expect(parsed.error?.issues.map((issue) => issue.path.join("."))).toEqual(["stages.0.shaping"]);
  });
});
