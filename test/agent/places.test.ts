import fc from "fast-check";
import { expect, test } from "vitest";
import { Places } from "../../lib/agent/places.ts";
import type { Exit, Trajectory } from "../../lib/agent/types.ts";
import { trajectory } from "../learn/doubles.ts";

const exits: Exit[] = ["submitted", "turn_limit", "context_limit", "timeout", "infra_failed"];

test("who stays depends on no order of finishing, and on nobody who finishes after it is decided (property)", () => {
  const group = fc.array(fc.constantFrom(...exits), { minLength: 1, maxLength: 9 }).chain((list) =>
    fc.record({
      list: fc.constant(list),
      places: fc.integer({ min: 1, max: list.length }),
      order: fc.shuffledSubarray([...list.keys()], { minLength: list.length }),
    }),
  );
  fc.assert(
    fc.property(group, ({ list, places, order }) => {
      const all = list.map((exit, rollout): Trajectory => ({ ...trajectory({}), rollout, exit }));
      const inOrder = new Places(places, list.length);
      all.forEach((one, i) => {
        inOrder.finish(i, one);
      });
      const expected = inOrder.assign();
      const some = new Places(places, list.length);
      for (const i of order) {
        if (some.decided) break;
        some.finish(i, all[i] as Trajectory);
      }
      expect(some.decided).toBe(true);
      expect(some.assign().trajectories).toEqual(expected.trajectories);

      const numbers = expected.trajectories.map(({ rollout }) => rollout);
      expect(numbers).toEqual([...numbers].sort((a, b) => a - b));
      const working = all.filter(({ exit }) => exit !== "infra_failed");
      expect(numbers).toHaveLength(Math.min(places, working.length));
      expect(expected.dropped).toHaveLength(all.length - working.length);
      expect(numbers.length + expected.dropped.length + expected.spared).toBe(all.length);
      // Nobody out of time stays where one who was not had to leave.
      const left = working.filter((one) => !numbers.includes(one.rollout));
      if (left.some(({ exit }) => exit !== "timeout"))
        expect(expected.trajectories.every(({ exit }) => exit !== "timeout")).toBe(true);
    }),
  );
});
