// The script of ten lines learns, and on three ranks as on one.
import { spawnSync } from "node:child_process";
import { expect, it } from "vitest";

function train(ranks: number): number[][] {
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    ["examples/many-ranks/train.mjs", `${ranks}`],
    { encoding: "utf8", timeout: 50_000 },
  );
  expect(stderr).toBe("");
  expect(status).toBe(0);
  return stdout
    .trimEnd()
    .split("\n")
    .map((line) => line.split(" ").map(Number));
}

it("a script trains on three ranks by one number, as on one", () => {
  const [one, three] = [train(1), train(3)];
  expect(one).toHaveLength(30);
  const first = one[0] as [number, number, number];
  expect(first[1]).toBeCloseTo(Math.log(64), 0);
  expect(one.at(-1)?.[1]).toBeLessThan(0.5 * first[1]);
  // float32 sums in another order: a few units of 6e-8 at first, more after every step.
  expect(three[0]).toEqual(first.map((value) => expect.closeTo(value, 6)));
  expect(three.slice(0, 10)).toEqual(
    one.slice(0, 10).map((row) => row.map((value) => expect.closeTo(value, 3))),
  );
}, 110_000);
