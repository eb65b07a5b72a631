// `tokenring tasks` as a process, on a config with few tasks.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { makeTask } from "../../lib/tasks/tinyswe/task.ts";
import type { Instance } from "../../lib/tasks/types.ts";

const main = path.resolve("dist/cli/main.js");
const root = mkdtempSync(path.join(tmpdir(), "tokenring-tasks-"));
const config = path.join(root, "few.yaml");

beforeAll(() => {
  const text = `
seed: 3
model: { create: { hiddenSize: 32, layers: 1, heads: 1, keyValueHeads: 1, headDim: 32, intermediateSize: 64, maxPositions: 512 } }
tasks: { name: tinyswe, train: 3, heldOut: 2, heldOutFamilies: 1 }
evaluate: { limits: { maxTurns: 2, maxContext: 320 } }
`;
  writeFileSync(config, text);
});
afterAll(() => rmSync(root, { recursive: true }));

const tasks = (...args: string[]) =>
  spawnSync(process.execPath, [main, "tasks", ...args], { encoding: "utf8", timeout: 50_000 });

test("show prints issue, files, tests and gold patch of one task, and with --json its row", () => {
  const { instance, files } = makeTask(3, "heldOut", 1);
  const { status, stdout } = tasks("show", "1", "--split", "held-out", "--config", config);
  expect(status).toBe(0);
  expect(stdout).toContain(`${instance.instance_id}   (held-out, seed 3)`);
  for (const line of instance.problem_statement.split("\n")) expect(stdout).toContain(`  ${line}\n`);
  for (const name of files.keys()) expect(stdout.includes(`\n${name}\n   1  def `)).toBe(name !== "test.py");
  for (const id of instance.FAIL_TO_PASS) expect(stdout).toContain(`fails now   ${id}\n`);
  for (const id of instance.PASS_TO_PASS) expect(stdout).toContain(`passes now  ${id}\n`);
  for (const line of instance.patch.trimEnd().split("\n")) expect(stdout).toContain(`  ${line}\n`);
  const row = tasks("show", "1", "--split", "held-out", "--config", config, "--json");
  expect(JSON.parse(row.stdout)).toEqual(instance);
  const other = tasks("show", "1", "--split", "held-out", "--config", config, "--seed", "4", "--json");
  expect(JSON.parse(other.stdout)).toEqual(makeTask(4, "heldOut", 1).instance);
});

test.each([
  [["show", "3", "--config", config], "train has 3 tasks in"],
  [
    ["show", "--split", "test", "--config", config],
    "--split test: there is no such split; give one of train, held-out",
  ],
  [["show", "--config", path.join(root, "lost.yaml")], "lost.yaml"],
  [["generate", "--config", config, "--out", root], "the directory is not empty; give a new one"],
])("a wrong argument is one line on stderr: %j", (args, message) => {
  const { status, stdout, stderr } = tasks(...args);
  expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr.trimEnd().split("\n").length).toBe(1);
});

test("check runs every task and ends with 0 and one line", () => {
  const json = path.join(root, "check.json");
  const { status, stdout } = tasks("check", "--config", config, "--json", json);
  expect(stdout).toMatch(/^6 tasks \(3 train, 2 held-out, 1 held-out-family\): rows sound, .*\n$/);
  expect(status).toBe(0);
  expect(JSON.parse(readFileSync(json, "utf8"))).toEqual({ ok: true, tasks: 6, faults: [] });
});

test("generate writes the rows as JSON Lines and a repository for each", () => {
  const out = path.join(root, "out");
  const { status, stdout } = tasks("generate", "--config", config, "--out", out);
  expect(status).toBe(0);
  expect(stdout).toContain(`${path.join(out, "held-out-family.jsonl")}: 1 row\n`);
  const rows = ["train", "held-out", "held-out-family"].flatMap((name) =>
    readFileSync(path.join(out, `${name}.jsonl`), "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Instance),
  );
  expect(rows.map((row) => row.meta?.split)).toEqual([
    ...Array(3).fill("train"),
    ...Array(2).fill("held-out"),
    "held-out-family",
  ]);
  expect(rows[0]).toEqual(makeTask(3, "train", 0).instance);
  const repositories = readdirSync(path.join(out, "repositories"));
  expect(repositories.sort()).toEqual(
    rows.map((r) => `${r.instance_id}-${r.base_commit.slice(0, 12)}`).sort(),
  );
  for (const name of repositories)
    expect(existsSync(path.join(out, "repositories", name, ".git"))).toBe(true);
});

test("--help says what each does, and names an example", () => {
  expect(tasks("--help").stdout).toMatch(/^ {2}show .*\n {2}check [\s\S]*\n {2}generate /m);
  expect(tasks("show", "--help").stdout).toContain("tokenring tasks show 3 --split held-out");
  expect(tasks("check", "--help").stdout).toContain("The exit code is 1 if there is a fault");
});
