// The worked example runs, learns, and gives the same on two ranks as on one.
import { spawnSync } from "node:child_process";
import { expect, it } from "vitest";

interface Result {
  losses: number[];
  checksum: number;
}

it("a foreign training loop learns with tokenring/ops, on two ranks as on one", () => {
  const { stdout, stderr, status } = spawnSync(process.execPath, ["examples/embed-ops/train.mjs", "--json"], {
    encoding: "utf8",
    timeout: 50_000,
  });
  expect(stderr).toBe("");
  expect(status).toBe(0);
  const { alone, pair } = JSON.parse(stdout) as { alone: Result; pair: [Result, Result] };
  expect(alone.losses[0]).toBeGreaterThan(2.5); // about ln 16
  expect(alone.losses.at(-1)).toBeLessThan(0.5);
  // Both ranks of a pair hold the same weights to the bit; the pair follows the one rank within what float32 sums of
  // another order become after so many steps.
  expect(pair[1]).toEqual(pair[0]);
  expect(pair[0].losses.slice(0, 10)).toEqual(
    alone.losses.slice(0, 10).map((loss) => expect.closeTo(loss, 5)),
  );
  expect(pair[0].losses).toEqual(alone.losses.map((loss) => expect.closeTo(loss, 2)));
});
