// AdamW's state: what a reset forgets, and what it keeps.
import { expect, test } from "vitest";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, TINY } from "./tiny.ts";

test("after a reset the next step is the first one again, from the weights as they are", async () => {
  const tokens = ids("some text", 30);
  const weight = new Float32Array(30).fill(1 / 29);
  weight[0] = 0;
  const batch = { tokens, lengths: Int32Array.of(30), weight };
  const step = async (policy: Policy) => {
    await policy.accumulate(batch, { objective: "nll" });
    return await policy.optimise({ learningRate: 1e-2 });
  };
  const scores = async (policy: Policy) => (await policy.score(batch)).logprob;

  await using kept = await Policy.create(TINY, { seed: 3 });
  await using reset = await Policy.create(TINY, { seed: 3 });
  for (const policy of [kept, reset]) {
    for (let i = 0; i < 3; i++) await step(policy);
  }
  // What was accumulated goes as well.
  await reset.accumulate(batch, { objective: "nll" });
  const before = await scores(reset);
  await reset.resetOptimiser();
  expect(await scores(reset)).toEqual(before);
  expect(before).toEqual(await scores(kept));
  expect((await step(kept)).step).toBe(4);
  expect((await step(reset)).step).toBe(1);
  expect(await scores(reset)).not.toEqual(await scores(kept));
});
