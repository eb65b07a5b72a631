// The example of a benchmark harness runs, and finds a slower run slower.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, it } from "vitest";
import type { ActionEntry } from "../../bench/export.ts";
import { type Results, readResults } from "../../bench/result.ts";

const root = mkdtempSync(path.join(tmpdir(), "tokenring-harness-"));
afterAll(() => rmSync(root, { recursive: true }));

const harness = (...args: string[]) =>
  spawnSync(
    process.execPath,
    ["examples/bench-harness/harness.mjs", "--rounds", "2", "--turn", "20", ...args],
    { encoding: "utf8", timeout: 50_000 },
  );

it("a harness of one's own measures, exports and compares with tokenring/bench", async () => {
  const before = path.join(root, "before.json");
  const first = harness("--json", before, "--action", path.join(root, "action"));
  expect(first).toMatchObject({ status: 0, stderr: "" });
  expect(first.stdout).toContain("| what | unit | tokenring | peer | ratio |");
  const results = await readResults(before);
  expect(results.results.map(({ name, peer }) => [name, peer?.name])).toEqual([
    ["loss and gradients, 64 rows, 4096 ids, vs plain JavaScript", `Node.js ${process.versions.node}`],
  ]);
  const exported = JSON.parse(
    readFileSync(path.join(root, "action", "customBiggerIsBetter.json"), "utf8"),
  ) as ActionEntry[];
  expect(exported).toMatchObject([{ unit: "rows/s", value: results.results[0]?.value }]);
  expect(readFileSync(path.join(root, "action", "customSmallerIsBetter.json"), "utf8")).toBe("[]");

  // A baseline a hundred times as fast, and one of another machine: no noise of this one hides either.
  const faster: Results = {
    ...results,
    results: results.results.map((one) => ({ ...one, value: one.value * 100 })),
  };
  writeFileSync(before, JSON.stringify(faster));
  const slower = harness("--baseline", before);
  expect(slower).toMatchObject({ status: 1, stdout: expect.stringContaining("slower: loss and gradients") });
  writeFileSync(before, JSON.stringify({ ...faster, machine: { cpu: "another", gpu: null } }));
  expect(harness("--baseline", before)).toMatchObject({
    status: 2,
    stdout: expect.stringContaining("not comparable: other machine: cpu was another"),
  });
});
