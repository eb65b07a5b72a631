import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { instanceSchedule, refinePool, SolveRates } from "../../lib/learn/curriculum.ts";
import { episode, instance } from "./doubles.ts";

const pool = ["never", "some", "twoThirds", "always", "untried", "broken"].map((id) => instance(id));

function rates(): SolveRates {
  const made = new SolveRates();
  const solved: Record<string, boolean[]> = {
    never: [false, false, false],
    some: [true, false, false],
    twoThirds: [true, true, false],
    always: [true, true, true],
  };
  for (const one of pool) {
    const outcomes = solved[one.instance_id];
    if (!outcomes) continue;
    made.add([{ instance: one, trajectories: outcomes.map((ok) => episode(1, ok)), dropped: [] }]);
  }
  made.add([
    {
      instance: instance("broken"),
      trajectories: [episode(1, false, { reason: "infra_failed" })],
      dropped: [],
    },
  ]);
  return made;
}

describe("refining the pool", () => {
  test("keeps 0 < p < 2/3, ends excluded", () => {
    expect(refinePool(pool, rates()).map((one) => one.instance_id)).toEqual(["some"]);
  });

  test("bounds and the untried are the caller's choice", () => {
    const kept = refinePool(pool, rates(), { below: 1, untried: "keep" });
    expect(kept.map((one) => one.instance_id)).toEqual(["some", "twoThirds", "untried", "broken"]);
  });

  test("counts add up over iterations and survive JSON", () => {
    const once = rates();
    once.add([{ instance: instance("some"), trajectories: [episode(1, true)], dropped: [episode(1, true)] }]);
    const back = SolveRates.fromJSON(JSON.parse(JSON.stringify(once)));
    expect(back.rate("some")).toBe(0.5);
    expect(back.rate("broken")).toBeNull();
    expect(back.toJSON()).toEqual(once.toJSON());
  });
});

describe("the schedule of instances", () => {
  test("once per pass, never twice in an iteration, whatever the sizes (property)", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 12 }),
        fc.nat(100),
        (size, per, seed) => {
          const instances = Array.from({ length: size }, (_, i) => instance(`i${i}`));
          const schedule = instanceSchedule(instances, per, seed, "test");
          const taken = Array.from({ length: 3 * size }, () =>
            schedule.next().value.map((one) => one.instance_id),
          );
          const width = Math.min(per, size);
          for (const ids of taken) {
            expect(ids).toHaveLength(width);
            expect(new Set(ids).size).toBe(width);
          }
          const flat = taken.flat();
          for (let at = 0; at + size <= flat.length; at += size) {
            expect(new Set(flat.slice(at, at + size)).size).toBe(size);
          }
        },
      ),
    );
  });

  test("name and seed each decide the order", () => {
    const instances = Array.from({ length: 12 }, (_, i) => instance(`i${i}`));
    const first = (seed: number, name: string): string =>
      JSON.stringify(
        instanceSchedule(instances, 12, seed, name)
          .next()
          .value.map((one) => one.instance_id),
      );
    expect(first(5, "stage1/pool")).toBe(first(5, "stage1/pool"));
    expect(first(5, "stage2/pool")).not.toBe(first(5, "stage1/pool"));
    expect(first(6, "stage1/pool")).not.toBe(first(5, "stage1/pool"));
  });

  test("passes differ from each other", () => {
    const instances = Array.from({ length: 12 }, (_, i) => instance(`i${i}`));
    const schedule = instanceSchedule(instances, 12, 5, "test");
    expect(schedule.next().value).not.toEqual(schedule.next().value);
  });
});
