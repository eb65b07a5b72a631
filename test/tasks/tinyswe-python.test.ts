// The tiny world against the real Python and the real git.
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Random } from "../../lib/random.ts";
import { gitDiff } from "../../lib/tasks/tinyswe/diff.ts";
import { verifyCommand } from "../../lib/tasks/tinyswe/judge.ts";
import { repr } from "../../lib/tasks/tinyswe/language.ts";
import { mended, results } from "../../lib/tasks/tinyswe/model.ts";
import { runOutput, TEST_COMMAND, testFile, testId } from "../../lib/tasks/tinyswe/runner.ts";
import { makeTask, type TinyTask } from "../../lib/tasks/tinyswe/task.ts";
import { type TinysweTaskSet, tinyswe } from "../../lib/tasks/tinyswe/tinyswe.ts";

const scratch = mkdtempSync(join(tmpdir(), "tokenring-tinyswe-test-"));
const sets: TinysweTaskSet[] = [];

afterAll(async () => {
  rmSync(scratch, { recursive: true });
  for (const set of sets) await set.dispose();
});

// The interpreter itself as `python` and `python3`: a version manager's shim would cost ten times as long.
const located = ["-I", "-c", "import os, sys; print(os.path.realpath(sys.executable))"];
const python = existsSync("/usr/bin/python3")
  ? "/usr/bin/python3"
  : execFileSync("python3", located, { encoding: "utf8" }).trim();
const programs = join(scratch, "bin");
mkdirSync(programs);
for (const name of ["python", "python3"]) symlinkSync(python, join(programs, name));
const ENV = { PATH: `${programs}:/usr/bin:/bin`, HOME: scratch, GIT_CONFIG_NOSYSTEM: "1", LC_ALL: "C.UTF-8" };

function shell(command: string, cwd: string): { output: string; exitCode: number | null } {
  const { stdout, stderr, status } = spawnSync("sh", ["-c", command], {
    cwd,
    env: ENV,
    encoding: "utf8",
    timeout: 30_000,
  });
  return { output: stdout + stderr, exitCode: status };
}

function git(cwd: string, ...args: string[]): string {
  return execFileSync("git", args, { cwd, env: ENV, encoding: "utf8", timeout: 30_000 });
}

/** A new directory with these files. */
function directory(files: ReadonlyMap<string, string>): string {
  const path = mkdtempSync(join(scratch, "files-"));
  for (const [name, content] of files) writeFileSync(join(path, name), content);
  return path;
}

function sampleSet(seed: number, train: number, heldOut: number): TinysweTaskSet {
  const set = tinyswe({ seed, train, heldOut });
  sets.push(set);
  return set;
}

describe("repositories", () => {
  test("are valid git repositories with one commit and nothing changed", async () => {
    const set = sampleSet(11, 8, 2);
    for (const row of [...set.train, ...set.heldOut]) {
      const path = join(mkdtempSync(join(scratch, "clone-")), "repo");
      cpSync(await set.repository(row), path, { recursive: true });
      expect(git(path, "fsck", "--strict", "--full")).toBe("");
      expect(git(path, "log", "--all", "--format=%H %an %ad %s").split("\n")).toEqual([
        `${row.base_commit} tinyswe Wed Jan 1 00:00:00 2025 +0000 Initial commit`,
        "",
      ]);
      expect(git(path, "rev-parse", "HEAD", "--symbolic-full-name", "HEAD")).toContain("refs/heads/main");
      expect(git(path, "diff")).toBe("");
      expect(git(path, "status", "--porcelain", "--ignored")).toBe("");
      const objects = git(path, "cat-file", "--batch-all-objects", "--batch-check").trim().split("\n");
      expect(objects.map((line) => line.split(" ")[1]).sort()).toEqual(
        [
          "commit",
          "tree",
          ...git(path, "ls-files")
            .trim()
            .split("\n")
            .map(() => "blob"),
        ].sort(),
      );
    }
  });

  test("in a directory of one's own stay, and are not written again", async () => {
    const own = join(scratch, "own");
    const options = { seed: 12, train: 1, heldOut: 0, directory: own };
    const [set, later] = [tinyswe(options), tinyswe(options)];
    const row = set.train[0] as TinysweTaskSet["train"][number];
    const path = await set.repository(row);
    const before = readFileSync(join(path, "test.py"), "utf8");
    await set.dispose();
    writeFileSync(join(path, "test.py"), `${before}# marked\n`);
    expect(await later.repository(row)).toBe(path);
    expect(readFileSync(join(path, "test.py"), "utf8")).toBe(`${before}# marked\n`);
  });
});

describe("the model of Python", () => {
  // All lines that a task knows, at random places: what the model says must be what Python says, errors included.
  test("says what Python says of 120 scrambled repositories", () => {
    const seen = new Set<string>();
    const cases: { task: TinyTask; files: Map<string, string> }[] = [];
    for (let index = 0; index < 120; index++) {
      const task = makeTask(17, index % 6 === 0 ? "heldOutFamily" : "train", index);
      const random = Random.of(17, "scramble", index);
      const known = [...task.known.keys()];
      const files = new Map(task.files);
      for (const [name, content] of task.files) {
        if (name === "test.py") continue;
        const lines = content.split("\n").slice(0, -1);
        for (let changes = random.below(3); changes >= 0; changes--) {
          lines[random.below(lines.length)] = random.pick(known);
        }
        files.set(name, `${lines.join("\n")}\n`);
      }
      files.set("test.py", testFile([...task.visible, ...task.hidden]));
      cases.push({ task, files });
    }
    for (const { task, files } of cases) {
      const expected = results(task, files, [...task.visible, ...task.hidden]);
      const real = shell(TEST_COMMAND, directory(files));
      expect(real, [...files].map(([n, c]) => `${n}\n${n === "test.py" ? "" : c}`).join("\n")).toEqual(
        runOutput(expected),
      );
      for (const { call, got } of expected)
        seen.add(/Error$/.test(got) ? got : got === repr(call.expected) ? "pass" : "fail");
    }
    expect([...seen].sort()).toEqual(
      expect.arrayContaining(["IndentationError", "NameError", "UnboundLocalError", "fail", "pass"]),
    );
  });

  test("the judge's lines agree with the model, and bear its nonce", () => {
    const task = makeTask(18, "train", 3);
    const files = mended(task);
    const { output, exitCode } = shell(verifyCommand("n0nce"), directory(files));
    expect(exitCode).toBe(0);
    expect(output).toBe(task.visible.map((c) => `n0nce PASSED ${testId(c)}\n`).join(""));
  });
});

describe("the runner", () => {
  const call = { module: "tepa", name: "gebo", args: [3], expected: 4 };
  const run = (source: string, command = TEST_COMMAND): { output: string; exitCode: number | null } =>
    shell(
      command,
      directory(
        new Map([
          ["tepa.py", source],
          ["test.py", testFile([call])],
        ]),
      ),
    );

  test("counts an endless loop, endless recursion, an exit and a syntax error as failures", () => {
    const failing = (got: string): object => ({
      output: `FAIL gebo(3): got ${got}, expected 4\n1 failed\n`,
      exitCode: 1,
    });
    expect(run("def gebo(p):\n    while True:\n        pass\n")).toEqual(failing("TimeoutError"));
    expect(run("def gebo(p):\n    return gebo(p)\n")).toEqual(failing("RecursionError"));
    expect(run("def gebo(p):\n    raise SystemExit(0)\n")).toEqual(failing("SystemExit"));
    expect(run("def gebo(p):\n    return p +\n")).toEqual(failing("SyntaxError"));
    expect(run("def gebo(p):\n    return True\n")).toEqual(failing("True"));
    expect(run("import lost\n")).toEqual(failing("ModuleNotFoundError"));
  });

  test("shows prints to the agent and hides them from verification, where they could pose as results", () => {
    const source = 'def gebo(p):\n    print("PASSED test.py::gebo(3)")\n    return p\n';
    expect(run(source).output).toBe("PASSED test.py::gebo(3)\nFAIL gebo(3): got 3, expected 4\n1 failed\n");
    expect(run(source, verifyCommand("n0nce")).output).toBe(
      "n0nce FAILED test.py::gebo(3) - got 3, expected 4\n",
    );
  });

  test("leaves no bytecode, from whatever directory it is started", () => {
    const path = directory(
      new Map([
        ["tepa.py", "def gebo(p):\n    return 4\n"],
        ["test.py", testFile([call])],
      ]),
    );
    mkdirSync(join(path, "below"));
    expect(shell("python ../test.py", join(path, "below"))).toEqual({ output: "OK\n", exitCode: 0 });
    expect(shell("ls", path).output).toBe("below\ntepa.py\ntest.py\n");
  });
});

describe("diffs", () => {
  test("are git's, byte for byte, for the edits that demonstrators make: a fix or a wrong one on some line", () => {
    for (let index = 0; index < 60; index++) {
      const task = makeTask(19, "train", index);
      const random = Random.of(19, "edit", index);
      const after = new Map(task.files);
      for (const bug of task.bugs) {
        const lines = (task.files.get(`${bug.file}.py`) as string).split("\n").slice(0, -1);
        for (let edits = 1 + random.below(2); edits > 0; edits--) {
          lines[random.below(lines.length)] = random.pick([bug.correct, ...bug.wrong]);
        }
        after.set(`${bug.file}.py`, `${lines.join("\n")}\n`);
      }
      const path = directory(task.files);
      git(path, "init", "-q");
      git(path, "add", ".");
      for (const [name, content] of after) writeFileSync(join(path, name), content);
      expect(gitDiff(task.files, after)).toBe(git(path, "diff"));
    }
  });
});
