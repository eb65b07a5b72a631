// A task set with one bug, a runner that prints as pytest does, and patches of all qualities.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseLogPytest } from "../../lib/tasks/log-parsers.ts";
import type { Instance, TaskSet } from "../../lib/tasks/types.ts";
import { git, makeRepository } from "../sandbox/support.ts";

const RUNNER = `import importlib, sys, traceback
sys.path.insert(0, ".")
bad = 0
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for test in [t for t in dir(module) if t.startswith("test_")]:
        status, reason = "PASSED", ""
        try:
            outcome = getattr(module, test)()
            status = outcome or status
        except Exception as error:
            status, reason, bad = "FAILED", " - " + repr(error), 1
        print(f"{status} {name}.py::{test}{reason}")
sys.exit(bad)
`;

const TEST_BASE = `import calc

def test_old():
    assert calc.add(2, 0) == 2
`;

const TEST_NEW = `import calc

def test_old():
    assert calc.add(2, 0) == 2

def test_add():
    assert calc.add(2, 3) == 5
`;

export const FILES: Record<string, string> = {
  "calc.py": "def add(a, b):\n    return a - b\n\n\ndef sub(a, b):\n    return a - b\n",
  "test_calc.py": TEST_BASE,
  "run.py": RUNNER,
};

export interface World {
  repository: string;
  instance: Instance;
  tasks: Pick<TaskSet, "repository" | "testCommand" | "parseLog">;
  /** The diff that comes of writing these files (null: deleting) over the base. */
  patch(files: Record<string, string | null>): string;
}

export function makeWorld(): World {
  const repository = makeRepository(FILES);
  const scratch = makeRepository(FILES);
  const patch = (files: Record<string, string | null>): string => {
    for (const [name, content] of Object.entries(files)) {
      if (content === null) execFileSync("rm", ["-rf", join(scratch, name)]);
      else writeFileSync(join(scratch, name), content);
    }
    git(scratch, "add", "-A");
    const diff = git(scratch, "diff", "--cached", "--no-renames");
    git(scratch, "reset", "-q", "--hard");
    return diff;
  };
  const gold = readFileSync(join(repository, "calc.py"), "utf8").replace("a - b", "a + b");
  const instance: Instance = {
    instance_id: "calc-1",
    repo: "t/calc",
    base_commit: git(repository, "rev-parse", "HEAD").trim(),
    problem_statement: "add subtracts",
    hints_text: "",
    created_at: "2020-01-01T00:00:00Z",
    version: "1",
    patch: patch({ "calc.py": gold }),
    test_patch: patch({
      "test_calc.py": TEST_NEW,
      "test_more.py": "import calc\n\ndef test_sub():\n    assert calc.sub(3, 1) == 2\n",
    }),
    FAIL_TO_PASS: ["test_calc.py::test_add"],
    PASS_TO_PASS: ["test_calc.py::test_old", "test_more.py::test_sub"],
  };
  const tasks = {
    repository: () => Promise.resolve(repository),
    testCommand: () => "python run.py test_calc test_more",
    parseLog: parseLogPytest,
  };
  return { repository, instance, tasks, patch };
}

export const GOLD = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n";
