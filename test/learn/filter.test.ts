import { describe, expect, test } from "vitest";
import { scoreGroup } from "../../lib/learn/filter.ts";
import { episode, instance } from "./doubles.ts";

const reward = { maxTurns: 8, lengthThreshold: 4 };

function group(...members: [turns: number, solved: boolean][]): Parameters<typeof scoreGroup>[0] {
  return {
    instance: instance("i0"),
    trajectories: members.map(([turns, solved], rollout) => episode(turns, solved, { rollout })),
    dropped: [],
  };
}

describe("the group filter", () => {
  test("a group is live when some and not all solved it", () => {
    expect(scoreGroup(group([2, true], [2, false]), { reward }).state).toBe("live");
    expect(scoreGroup(group([2, true], [2, true]), { reward }).state).toBe("solved");
    expect(scoreGroup(group([2, false], [2, false]), { reward }).state).toBe("failed");
  });

  test("shaping does not bring all-failed groups to life, unless it is asked for", () => {
    const failed = group([2, false], [8, false]);
    expect(scoreGroup(failed, { reward }).state).toBe("failed");
    const shaped = scoreGroup(failed, { reward, filter: "final_reward" });
    expect(shaped.state).toBe("live");
    expect(shaped.rewards).toEqual([0, -1]);
  });

  test("the shaped reward makes the advantages of a live group", () => {
    const scored = scoreGroup(group([2, true], [8, false], [2, false]), { reward });
    expect(scored.rewards).toEqual([1, -1, 0]);
    expect(scored.advantages[0]).toBeGreaterThan(scored.advantages[2] as number);
    expect(scored.advantages[2]).toBeGreaterThan(scored.advantages[1] as number);
  });

  test("what infrastructure broke is no failure: it leaves the group", () => {
    const broken = group([2, true], [2, true]);
    broken.trajectories.push(episode(2, false, { rollout: 2, exit: "infra_failed" }));
    broken.trajectories.push(episode(2, false, { rollout: 3, reason: "infra_failed" }));
    const scored = scoreGroup(broken, { reward });
    expect(scored.state).toBe("solved");
    expect(scored.trajectories).toHaveLength(2);
    expect(scored.rewards).toEqual([1, 1]);
  });

  test("a group that lost everything is empty, not failed", () => {
    const lost = { instance: instance("i0"), trajectories: [], dropped: [episode(1, false)] };
    expect(scoreGroup(lost, { reward })).toMatchObject({
      state: "empty",
      solved: 0,
      rewards: [],
      advantages: [],
    });
  });
});
