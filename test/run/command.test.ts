// `tokenring train` and `tokenring resume` as processes, on a job of seconds.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test, vi } from "vitest";

const main = path.resolve("dist/cli/main.js");
const root = mkdtempSync(path.join(tmpdir(), "tokenring-command-"));
afterAll(() => rmSync(root, { recursive: true }));

const call = (...args: string[]) =>
  spawnSync(process.execPath, [main, ...args], { encoding: "utf8", timeout: 50_000 });

function writeConfig(name: string, steps: number): string {
  const file = path.join(root, name);
  const text = `
seed: 3
model: { create: { hiddenSize: 32, layers: 1, heads: 1, keyValueHeads: 1, headDim: 32, intermediateSize: 64, maxPositions: 512 } }
tasks: { name: tinyswe, train: 1, heldOut: 2 }
warmStart:
  copySteps: 1
  copyBatch: { sequences: 2, tokens: 48 }
  steps: ${steps}
  tokensPerStep: 300
  expertShare: 0.5
  personas: { expert: 0.5, sloppy: 0.5, confused: 0 }
  learningRate: 0.001
evaluate: { runs: 1, limits: { maxTurns: 2, maxContext: 320 } }
`;
  writeFileSync(file, text);
  return file;
}

test("a run gives arc, report and JSON; resumed when it is whole, the same arc again; and is not overwritten", () => {
  const run = path.join(root, "whole");
  const json = path.join(root, "whole.json");
  const config = writeConfig("whole.yaml", 3);
  const trained = call("train", config, "--out", run, "--json", json);
  // Nobody watches: a program reads the numbers, and the arc is there for whoever reads the log.
  expect(trained).toMatchObject({ status: 0, stderr: "" });
  expect(trained.stdout).toMatch(/^ {2}base +\d/m);
  const result = JSON.parse(readFileSync(json, "utf8"));
  expect(result).toMatchObject({ seed: 3, stages: [{ name: "base", episodes: 2, pass10: null }] });
  rmSync(path.join(run, "report.html"));

  const again = call("resume", run);
  expect(again).toMatchObject({ status: 0, stderr: expect.stringContaining(`run directory: ${run}`) });
  const numbers = call("resume", run, "--json", "-");
  expect(numbers).toMatchObject({ status: 0, stderr: "" });
  expect(JSON.parse(numbers.stdout).stages).toEqual(result.stages);
  expect(existsSync(path.join(run, "report.html"))).toBe(true);

  const over = call("train", config, "--out", run);
  expect(over.status).toBe(1);
  expect(over.stderr).toContain(`tokenring resume ${run}`);
  expect(call("resume", root)).toMatchObject({
    status: 1,
    stderr: expect.stringContaining("no run directory; check the path"),
  });

  const folder = path.join(root, "reports");
  mkdirSync(folder);
  expect(call("report", run, "--out", folder)).toMatchObject({
    status: 1,
    stderr: `tokenring: ${folder}: is a directory; give the path of a file, for example ${folder}/report.html\n`,
  });
  expect(call("report", run, "--out", path.join(config, "report.html"))).toMatchObject({
    status: 1,
    stderr: expect.stringMatching(/the report cannot be written \((ENOTDIR|EEXIST)\); give a path/),
  });

  // One patch of the run is called a solution.
  const verified = call("evaluate", run, "--verify");
  expect(verified).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/ 2 verdicts agree, \d .* 0 differ$/m),
  });
  const index = path.join(run, "trajectories", "index.jsonl");
  writeFileSync(index, readFileSync(index, "utf8").replace(/"verdict":"\w+"/, '"verdict":"resolved"'));
  expect(call("evaluate", run, "--verify", "--json", json)).toMatchObject({
    status: 1,
    stdout: expect.stringMatching(/ 1 differ\n {2}base-evaluation \S+: stored resolved, found \w+ \(\w+\)$/m),
  });
  expect(JSON.parse(readFileSync(json, "utf8"))).toMatchObject({ trajectories: 2, agreed: 1, broken: 0 });
  expect(call("evaluate", run, "--sample", "3")).toMatchObject({
    status: 1,
    stderr: expect.stringContaining("nothing to sample without --verify"),
  });

  // A path through a file: said before the evaluation, which would have been reported on stderr.
  const evaluated = call("evaluate", run, "--json", path.join(config, "numbers.json"));
  expect(evaluated).toMatchObject({ status: 1, stdout: "" });
  expect(evaluated.stderr).toMatch(/^tokenring: --json \S+: cannot be written \(\w+\); give a path .*\n$/);
});

test("a run that fails before anything is recorded leaves its directory as it was", () => {
  const config = path.join(root, "no-model.yaml");
  const text = readFileSync(writeConfig("some-model.yaml", 1), "utf8");
  writeFileSync(config, text.replace(/model: .*/, "model: { path: /nowhere/model }"));
  const run = path.join(root, "failed");
  for (const expected of [[], ["failed"]]) {
    const failed = call("train", config, "--out", run);
    expect(failed).toMatchObject({ status: 1, stderr: expect.stringContaining("/nowhere/model") });
    expect(failed.stderr).not.toContain("tokenring resume");
    expect(readdirSync(root).filter((name) => name === "failed")).toEqual(expected);
    mkdirSync(run, { recursive: true });
  }
  expect(readdirSync(run)).toEqual([]);
});

/** A run that is told by `signal` to stop when it has taken a step; how it ended, and what it said. */
async function stoppedBy(
  signal: NodeJS.Signals,
  run: string,
): Promise<{ code: number | null; said: string }> {
  const child = spawn(process.execPath, [main, "train", writeConfig("long.yaml", 100_000), "--out", run], {
    stdio: ["ignore", "ignore", "pipe"],
    timeout: 50_000,
  });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const closed = once(child, "close");
  const metrics = path.join(run, "metrics.jsonl");
  await vi.waitUntil(() => existsSync(metrics) && readFileSync(metrics, "utf8").includes('"type":"step"'), {
    timeout: 40_000,
  });
  child.kill(signal);
  const [code] = await closed;
  return { code, said };
}

test.each([
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const)(
  "%s stops a run, which saves its steps, says how to go on, and leaves nothing locked",
  async (signal, code) => {
    const run = path.join(root, signal);
    const ended = await stoppedBy(signal, run);
    expect(ended.code).toBe(code);
    expect(ended.said).toMatch(new RegExp(`^tokenring: .*: stopped by ${signal}$`, "m"));
    expect(ended.said).toContain(`to go on: tokenring resume ${run}`);
    expect(existsSync(path.join(run, "lock"))).toBe(false);
    const state = JSON.parse(readFileSync(path.join(run, "state.json"), "utf8"));
    const steps = readFileSync(path.join(run, "metrics.jsonl"), "utf8").match(/"type":"step"/g)?.length ?? 0;
    expect(steps).toBeGreaterThan(0);
    expect(state.progress.current.cursor).toMatchObject({ kind: "base", next: { step: steps } });
    expect(readdirSync(path.join(run, "checkpoints"))).toEqual([`base.at-${steps}`]);
    expect(state.checkpoint).toBe(`base.at-${steps}`);
  },
);
