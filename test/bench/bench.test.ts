// The benchmarks run, and what they write can be read.
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { compare } from "../../bench/compare.ts";
import { openTorch } from "../../bench/peers/torch.ts";

const directory = mkdtempSync(join(tmpdir(), "tokenring-bench-test-"));
afterAll(() => rmSync(directory, { recursive: true }));

const bench = (...args: string[]) =>
  promisify(execFile)(process.execPath, ["--import", "tsx", "bench/run.ts", ...args], { timeout: 50_000 });

describe("bench", () => {
  it("times each suite and writes medians, deviations and ratios", async () => {
    const path = join(directory, "results.json");
    // An interpreter without PyTorch: the peers of the model's suites are absent, and that is no fault.
    process.env.TOKENRING_PYTHON = join(directory, "none");
    const { stdout } = await bench("--rounds", "1", "--calls", "1", "--json", path);
    const file = JSON.parse(readFileSync(path, "utf8"));
    expect(file).toMatchObject({ schema: 1, machine: { gpu: null }, rounds: 1, calls: 1 });
    expect(file.results.length).toBe(5);
    for (const { name, value, mad, peer, ratio } of file.results) {
      expect(stdout).toContain(name);
      expect(value).toBeGreaterThan(0);
      expect(mad).toBeGreaterThanOrEqual(0);
      expect(ratio).toEqual(peer === null ? null : value / peer.value);
    }
  });

  it("refuses what it does not know", async () => {
    await expect(bench("--suite", "nothing")).rejects.toMatchObject({
      stderr: expect.stringContaining("there are train, sample"),
    });
    await expect(bench("--rounds", "0")).rejects.toMatchObject({
      stderr: expect.stringContaining("--rounds takes a whole number"),
    });
  });

  it("gives both sides as many calls and divides their medians", async () => {
    const calls = { ours: 0, theirs: 0 };
    const busy = (milliseconds: number): void => {
      const end = performance.now() + milliseconds;
      while (performance.now() < end);
    };
    const result = await compare(
      {
        name: "busy",
        unit: "calls/s",
        work: 1,
        ours: async () => {
          calls.ours++;
          busy(1);
        },
        peer: {
          name: "busier",
          call: async () => {
            calls.theirs++;
            busy(4);
          },
        },
      },
      { rounds: 3, calls: 4 },
    );
    // The call more is the one that warms up.
    expect(calls).toEqual({ ours: 13, theirs: 13 });
    // A call may take longer than it was told to, never less.
    expect(result.value).toBeLessThanOrEqual(1000);
    expect(result.peer?.value).toBeLessThanOrEqual(250);
    expect(result.ratio).toBe(result.value / (result.peer?.value ?? 0));
  });

  it("finds no peer where the interpreter lacks PyTorch or is missing", async () => {
    process.env.TOKENRING_PYTHON = join(directory, "none");
    expect(await openTorch({ task: "train" })).toBeNull();
  });
});
