// What a run leaves: its schema, the comparison of two, the export; and the command that does them.
import { execFile, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it, test } from "vitest";
import {
  biggerIsBetter,
  compareResults,
  exportForAction,
  markdownTable,
  parseResults,
  type Result,
  type Results,
  readResults,
  SUITES,
} from "../../bench/index.ts";

const directory = mkdtempSync(join(tmpdir(), "tokenring-bench-results-"));
afterAll(() => rmSync(directory, { recursive: true }));

const result = (name: string, unit: string, value: number, mad = 0): Result => ({
  name,
  unit,
  value,
  mad,
  peer: null,
  ratio: null,
});
const run = (...results: Result[]): Results => ({
  schema: 1,
  machine: { cpu: "a CPU, 2 threads", gpu: null },
  results,
});
const file = (name: string, value: unknown): string => {
  const path = join(directory, name);
  writeFileSync(path, typeof value === "string" ? value : JSON.stringify(value));
  return path;
};

describe("the schema", () => {
  test("takes what is committed in bench/results", async () => {
    const { results } = await readResults("bench/results/cpu-2026-11-22.json");
    expect(results.length).toBeGreaterThan(4);
    for (const { ratio, value, peer, unit } of results) {
      if (!peer) continue;
      expect(ratio).toBeCloseTo(biggerIsBetter(unit) ? value / peer.value : peer.value / value, 12);
    }
  });

  test.each([
    ["another schema", { ...run(), schema: 2 }, /at schema/],
    ["a machine without CPU", { ...run(), machine: { gpu: null } }, /at machine\.cpu/],
    ["a negative deviation", run(result("a", "s", 1, -1)), /at results\.0\.mad/],
    ["a value that is no number", run({ ...result("a", "s", 1), value: Number.NaN }), /at results\.0\.value/],
    [
      "a peer left out",
      { ...run(), results: [{ name: "a", unit: "s", value: 1, mad: 0 }] },
      /results\.0\.peer/,
    ],
    ["a name that comes twice", run(result("a", "s", 1), result("a", "s", 2)), /"a" comes twice/],
    ["no object", 7, /is no run of the benchmarks/],
  ])("refuses %s, and says where", (_, value, said) => {
    expect(() => parseResults(value)).toThrow(said);
  });

  test("a file that is missing or no JSON is named", async () => {
    const path = file("broken.json", "{");
    await expect(readResults(path)).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: expect.stringContaining(path),
    });
    await expect(readResults(join(directory, "none.json"))).rejects.toThrow(/ENOENT/);
  });
});

describe("two runs", () => {
  const verdictOf = (unit: string, before: [number, number], after: [number, number], threshold?: number) =>
    compareResults(
      run(result("a", unit, ...before)),
      run(result("a", unit, ...after)),
      threshold === undefined ? {} : { threshold },
    ).verdict;

  test("a rate that grew is faster, a time that grew is slower", () => {
    expect(verdictOf("tokens/s", [100, 1], [120, 1])).toBe("faster");
    expect(verdictOf("tokens/s", [120, 1], [100, 1])).toBe("slower");
    expect(verdictOf("ms", [100, 1], [120, 1])).toBe("slower");
    expect(verdictOf("MiB", [120, 1], [100, 1])).toBe("faster");
  });

  test("within the threshold nothing counts, however quiet the runs", () => {
    expect(verdictOf("tokens/s", [100, 0], [95, 0])).toBe("same");
    expect(verdictOf("tokens/s", [100, 0], [94.9, 0])).toBe("slower");
    expect(verdictOf("tokens/s", [100, 0], [94.9, 0], 0.1)).toBe("same");
    expect(verdictOf("tokens/s", [100, 0], [99.9, 0], 0)).toBe("slower");
  });

  test("within twice the sum of both deviations nothing counts, however far the medians", () => {
    expect(verdictOf("tokens/s", [100, 5], [71, 10])).toBe("same");
    expect(verdictOf("tokens/s", [100, 5], [69, 10])).toBe("slower");
    // The noise of the second run alone is enough.
    expect(verdictOf("tokens/s", [100, 0], [131, 15])).toBe("faster");
    expect(verdictOf("tokens/s", [100, 0], [129, 15])).toBe("same");
  });

  test("a value of 0 is judged by the noise alone", () => {
    expect(verdictOf("%", [0, 0.01], [0.015, 0.01])).toBe("same");
    expect(verdictOf("%", [0, 0.01], [0.05, 0.01])).toBe("slower");
  });

  test("one slower result outweighs any faster one", () => {
    const before = run(result("a", "tokens/s", 100), result("b", "tokens/s", 100));
    const after = run(result("a", "tokens/s", 200), result("b", "tokens/s", 80));
    expect(compareResults(before, after)).toMatchObject({
      verdict: "slower",
      changes: [
        { name: "a", verdict: "faster", gain: 100, limit: 5 },
        { name: "b", verdict: "slower", gain: -20, limit: 5 },
      ],
    });
  });

  test("a result that only the second run has is told, and no fault", () => {
    const before = run(result("a", "s", 1));
    expect(compareResults(before, run(...before.results, result("b", "s", 1)))).toMatchObject({
      verdict: "same",
      added: ["b"],
    });
  });

  test.each<[string, Results, RegExp]>([
    [
      "another CPU",
      { ...run(result("a", "s", 1)), machine: { cpu: "another", gpu: null } },
      /cpu was a CPU, 2 threads, is another/,
    ],
    [
      "a GPU more",
      { ...run(result("a", "s", 1)), machine: { cpu: "a CPU, 2 threads", gpu: "H100" } },
      /gpu was none, is H100/,
    ],
    ["a result less", run(), /missing result: a/],
    ["another unit", run(result("a", "ms", 1)), /a was in s, is in ms/],
  ])("not comparable: %s", (_, after, reason) => {
    const comparison = compareResults(run(result("a", "s", 1)), after);
    expect(comparison.verdict).toBe("not comparable");
    expect(comparison.reasons).toHaveLength(1);
    expect(comparison.reasons[0]).toMatch(reason);
  });

  test("two empty runs say nothing", () => {
    expect(compareResults(run(), run()).verdict).toBe("not comparable");
  });
});

describe("the export for github-action-benchmark", () => {
  const results = run(
    { ...result("rate", "tokens/s", 10, 2), peer: { name: "torch", value: 5 }, ratio: 2 },
    result("memory", "MiB", 7, 1),
  );

  test("holds the results of one direction, with deviation and peer", () => {
    expect(exportForAction(results, "customBiggerIsBetter")).toEqual([
      {
        name: "rate",
        unit: "tokens/s",
        value: 10,
        range: "± 2",
        extra: "torch: 5 tokens/s, ratio 2\na CPU, 2 threads",
      },
    ]);
    expect(exportForAction(results, "customSmallerIsBetter")).toEqual([
      { name: "memory", unit: "MiB", value: 7, range: "± 1", extra: "no peer\na CPU, 2 threads" },
    ]);
  });
});

test("the table has a row for each result, and dashes where there is no peer", () => {
  const rows = markdownTable(
    run(
      {
        ...result("rate", "tokens/s", 23_572.4, 390.59),
        peer: { name: "torch", value: 5359, mad: 71 },
        ratio: 4.398,
      },
      result("memory", "MiB", 7, 1),
    ),
  ).split("\n");
  expect(rows.slice(2)).toEqual([
    "| rate | tokens/s | 23,600 ± 391 | 5,360 ± 71 | 4.40 |",
    "| memory | MiB | 7 ± 1 | – | – |",
    "",
  ]);
});

describe("the command", () => {
  const bench = (...args: string[]) =>
    spawnSync(process.execPath, ["dist/bench/main.js", ...args], { encoding: "utf8", timeout: 50_000 });
  const a = file("a.json", run(result("a", "tokens/s", 100)));
  const slower = file("slower.json", run(result("a", "tokens/s", 80)));

  test.each([
    ["the same run", a, a, 0],
    ["a faster one", slower, a, 0],
    ["a slower one", a, slower, 1],
    ["another machine's", a, file("other.json", { ...run(), machine: { cpu: "another", gpu: null } }), 2],
    ["another schema", a, file("schema.json", { ...run(), schema: 2 }), 2],
    ["a file that is not there", a, join(directory, "none.json"), 2],
  ])("compare with %s ends with its code", (_, before, after, code) => {
    const { status, stdout, stderr } = bench("compare", before, after);
    expect({ status, said: stdout.length + stderr.length > 0 }).toEqual({ status: code, said: true });
  });

  test("compare prints its verdicts, or JSON alone", () => {
    expect(bench("compare", a, slower).stdout).toMatch(/^slower a\n.*worse by 20, counts from 5\nslower\n$/s);
    expect(JSON.parse(bench("compare", "--json", a, slower).stdout)).toMatchObject({ verdict: "slower" });
    expect(bench("compare", "--threshold", "30", a, slower).status).toBe(0);
  });

  test("export prints JSON alone", () => {
    const { status, stdout } = bench("export", a);
    expect({ status, entries: JSON.parse(stdout) }).toMatchObject({ status: 0, entries: [{ name: "a" }] });
    expect(JSON.parse(bench("export", "--tool", "customSmallerIsBetter", a).stdout)).toEqual([]);
    expect(bench("export", "--tool", "custom", a)).toMatchObject({ status: 1 });
  });

  test("table prints the table", () => {
    expect(bench("table", a)).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^\| a \| tokens\/s \|/m),
    });
  });

  test("--help names every suite", () => {
    const { status, stdout } = bench("--help");
    expect(status).toBe(0);
    for (const { name } of SUITES) expect(stdout).toMatch(new RegExp(`^ {2}${name} `, "m"));
  });

  test.each([
    [["--suite", "nothing"], `there is no suite "nothing": ${SUITES.map(({ name }) => name).join(", ")}`],
    [["--rounds", "0"], "whole number above 0"],
    [["--json", ""], "Give a path"],
    [["compare", "--threshold", "x", "a", "b"], "percentage"],
    [["nothing"], "too many arguments"],
  ])("refuses %j", (args, said) => {
    const { status, stdout, stderr } = bench(...args);
    expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
    expect(stderr).toContain(said);
  });

  it("runs a suite without its peer and writes what the schema takes", async () => {
    const path = join(directory, "run.json");
    const args = ["dist/bench/main.js", "--suite", "train", "--rounds", "1", "--turn", "1", "--json", path];
    // An interpreter without PyTorch: the peers are absent, and that is no fault.
    const env = { ...process.env, TOKENRING_PYTHON: join(directory, "none") };
    const { stdout } = await promisify(execFile)(process.execPath, args, { env, timeout: 50_000 });
    const { results, machine } = await readResults(path);
    expect(machine.cpu).toMatch(/, \d+ threads$/);
    expect(results.map(({ name }) => name)).toContain(
      "training step, demo model, 16 x 256 tokens, vs torch.compile",
    );
    for (const { name, value, mad, peer, ratio } of results) {
      expect(stdout).toContain(name);
      expect(value).toBeGreaterThan(0);
      expect({ mad, peer, ratio }).toEqual({ mad: expect.any(Number), peer: null, ratio: null });
    }
    expect(JSON.parse(readFileSync(path, "utf8"))).toHaveProperty("schema", 1);
  });
});

test("the package offers it as tokenring/bench", async () => {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [
      "--input-type=module",
      "-e",
      'import { SUITES, compareResults } from "tokenring/bench"; console.log(SUITES.length, typeof compareResults);',
    ],
    { encoding: "utf8", timeout: 30_000 },
  );
  expect({ status, stdout, stderr }).toEqual({
    status: 0,
    stdout: `${SUITES.length} function\n`,
    stderr: "",
  });
});
