// The script of ten lines learns, and on three ranks as on one, whoever starts them.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { text } from "node:stream/consumers";
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

it("the script for launchers trains on the ranks that one has started, without their number", async () => {
  // The system's own ports begin at 32768: below them nobody else is given this one meanwhile.
  const port = 10_000 + (process.pid % 20_000);
  const server = createServer().listen(port, "127.0.0.1");
  await once(server, "listening");
  server.close();
  await once(server, "close");
  const ranks = [0, 1, 2].map((rank) => {
    const child = spawn(process.execPath, ["examples/many-ranks/launched.mjs"], {
      timeout: 50_000,
      env: {
        ...process.env,
        RANK: `${rank}`,
        WORLD_SIZE: "3",
        LOCAL_RANK: `${rank}`,
        LOCAL_WORLD_SIZE: "3",
        MASTER_ADDR: "127.0.0.1",
        MASTER_PORT: `${port}`,
        TOKENRING_SECRET: "a secret of the tests",
      },
    });
    return Promise.all([once(child, "close"), text(child.stdout), text(child.stderr)]);
  });
  const ended = await Promise.all(ranks);
  expect(ended.map(([[code], , said]) => [code, said])).toEqual([
    [0, ""],
    [0, ""],
    [0, ""],
  ]);
  const [[, said], ...workers] = ended as [(typeof ended)[0], ...typeof ended];
  // As many ranks give the same bits.
  expect(said.trimEnd().split("\n")).toEqual(train(3).map((row) => row.join(" ")));
  for (const [, words] of workers) expect(words).toBe("");
}, 110_000);
