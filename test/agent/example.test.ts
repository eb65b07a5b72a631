// The example of a world that is not software runs, with tools, verdict and reward of its own, and learns.
import { spawnSync } from "node:child_process";
import { expect, it } from "vitest";

interface Measured {
  pass1: number;
  sem: number;
  turns: number;
}

it("a policy from nothing learns a multi-turn task with its own tools, environment and reward", () => {
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    ["examples/custom-environment/train.mjs", "--json"],
    { encoding: "utf8", timeout: 140_000 },
  );
  expect(stderr).toBe("");
  expect(status).toBe(0);
  const { before, after, rewards } = JSON.parse(stdout) as {
    before: Measured;
    after: Measured;
    rewards: number[];
  };
  // Random commands take the lamp now and then.
  expect(before.pass1).toBeLessThan(0.25);
  expect(after.pass1).toBeGreaterThan(before.pass1 + 5 * Math.hypot(before.sem, after.sem));
  expect(after.pass1).toBeGreaterThan(0.6);
  expect(after.turns).toBeLessThan(before.turns);
  expect(Math.max(...rewards)).toBeLessThan(1);
  expect(rewards.at(-1)).toBeGreaterThan(3 * (rewards[0] as number));
}, 150_000);
