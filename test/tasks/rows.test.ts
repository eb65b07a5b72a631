// Rows of the public datasets: what is taken, what is refused, and whose lines count when their tests run.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { sweTemplate } from "../../lib/agent/templates.ts";
import {
  parseLogDjango,
  parseLogMatplotlib,
  parseLogSeaborn,
  parseLogSympy,
} from "../../lib/tasks/log-parsers.ts";
import { pristineRepository } from "../../lib/tasks/pristine.ts";
import { parseRow, readRows, rowTasks } from "../../lib/tasks/rows.ts";
import { verify } from "../../lib/verify/verify.ts";
import { git, KINDS, makeRepository, openBackend, removeDirectories } from "../sandbox/support.ts";

const scratch = mkdtempSync(join(tmpdir(), "tokenring-rows-"));
afterAll(() => {
  rmSync(scratch, { recursive: true });
  removeDirectories();
});

const file = (path: string, mode = "new file mode 100644"): string =>
  `diff --git a/${path} b/${path}\n${mode}\n--- /dev/null\n+++ b/${path}\n@@ -0,0 +1 @@\n+x\n`;

const row = {
  instance_id: "owner__repo-7",
  repo: "owner/repo",
  base_commit: "a".repeat(40),
  problem_statement: "It is broken.",
  hints_text: null,
  created_at: "2025-02-15 11:04:29",
  version: 0.5,
  patch: file("src/a.py"),
  test_patch:
    file("tests/test_a.py") + file("tests/data.json") + file("tests/old.py", "deleted file mode 100644"),
  FAIL_TO_PASS: ["tests/test_a.py::test_a"],
  PASS_TO_PASS: [],
  install_config: {
    test_cmd: "pytest -rA",
    log_parser: "parse_log_pytest",
    python: "3.9",
    pre_install: null,
  },
  docker_image: null,
};
const django = {
  ...row,
  repo: "django/django",
  install_config: undefined,
  test_patch: file("tests/forms_tests/tests/test_media.py") + file("tests/forms_tests/x.txt"),
  FAIL_TO_PASS: '["test_media (forms_tests.tests.test_media.Tests)"]',
  PASS_TO_PASS: "[]",
};

describe("rows", () => {
  it("of SWE-rebench and of SWE-bench become instances, lists as lists", async () => {
    const path = join(scratch, "rows.jsonl");
    writeFileSync(path, `${JSON.stringify(row)}\n\n${JSON.stringify(django)}\n`);
    const [first, second] = await readRows(path);
    expect(first).toMatchObject({
      instance: {
        instance_id: "owner__repo-7",
        hints_text: "",
        version: "0.5",
        FAIL_TO_PASS: row.FAIL_TO_PASS,
      },
      testCommand: "pytest -rA",
      targets: ["tests/test_a.py"],
    });
    expect(first?.instance).not.toHaveProperty("install_config");
    expect(second).toMatchObject({
      instance: { FAIL_TO_PASS: ["test_media (forms_tests.tests.test_media.Tests)"], PASS_TO_PASS: [] },
      targets: ["forms_tests.tests.test_media"],
    });
    expect(second?.parser).toBe(parseLogDjango);
    writeFileSync(path, JSON.stringify([row]));
    expect(await readRows(path)).toHaveLength(1);
    writeFileSync(path, "{}\n{");
    await expect(readRows(path)).rejects.toThrow(
      /rows.jsonl:1: instance_id: .*; a row has the SWE-bench schema/,
    );
  });

  it.each([
    [{ FAIL_TO_PASS: [] }, /x:3: owner__repo-7 has no FAIL_TO_PASS tests, .*; leave it out/],
    [{ FAIL_TO_PASS: "[]" }, /has no FAIL_TO_PASS tests/],
    [{ FAIL_TO_PASS: "test_a" }, /FAIL_TO_PASS: is a string that holds no JSON list/],
    [{ test_patch: "\n" }, /has no test_patch, so there is nothing to run/],
    [{ test_patch: file("tests/data.json") }, /changes no file that a runner takes/],
    [{ base_commit: "main" }, /base_commit: is no commit/],
    [{ patch: undefined }, /x:3: patch: /],
    [{ install_config: null }, /nothing says how the tests of owner\/repo are run; give install_config/],
    [{ install_config: { test_cmd: "x", log_parser: "mine" } }, /Unknown log parser "mine"/],
  ])("that cannot be verified are refused by name: %j", (change, message) => {
    expect(() => parseRow({ ...row, ...change }, "x:3")).toThrow(message);
  });
});

// As pytest, as far as its plugins see of it: loads those of PYTEST_ADDOPTS, then imports the named files, runs their
// tests, prints what happened and tells the plugins.
const PYTEST = `import importlib.util, os, sys, types
words = os.environ.get("PYTEST_ADDOPTS", "").split()
plugins = [importlib.import_module(words[i + 1]) for i, word in enumerate(words) if word == "-p"]
def tell(hook, argument):
    for plugin in plugins:
        getattr(plugin, hook)(argument)
failed = False
for path in sys.argv[2:]:
    spec = importlib.util.spec_from_file_location("tests", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception:
        failed = True
        print("ERROR", path)
        tell("pytest_collectreport", types.SimpleNamespace(nodeid=path, outcome="failed"))
        continue
    for name in [name for name in dir(module) if name.startswith("test_")]:
        outcome = "passed"
        try:
            getattr(module, name)()
        except Exception:
            outcome, failed = "failed", True
        print(outcome.upper(), path + "::" + name)
        for when in ("setup", "call", "teardown"):
            report = types.SimpleNamespace(nodeid=path + "::" + name, when=when, outcome="passed")
            report.outcome = outcome if when == "call" else "passed"
            tell("pytest_runtest_logreport", report)
tell("pytest_unconfigure", types.SimpleNamespace())
sys.exit(failed)
`;

describe("tests of rows that pytest runs", () => {
  it("count by pytest's own reports, not by lines that the code under test prints", async () => {
    const repository = makeRepository({ "src.py": "answer = 1\n", "tools/pytest": PYTEST });
    const patch = (path: string, text: string): string =>
      `diff --git a/${path} b/${path}\n--- a/${path}\n+++ b/${path}\n@@ -1 +1,${text.split("\n").length} @@\n-answer = 1\n${text
        .split("\n")
        .map((line) => `+${line}\n`)
        .join("")}`;
    const test = [
      "import sys",
      'sys.path.insert(0, ".")',
      "import src",
      "def test_a():",
      "    assert src.answer == 2",
    ];
    const test_patch = `diff --git a/test_a.py b/test_a.py\nnew file mode 100644\n--- /dev/null\n+++ b/test_a.py\n@@ -0,0 +1,${test.length} @@\n${test.map((line) => `+${line}\n`).join("")}`;
    const parsed = parseRow(
      {
        ...row,
        test_patch,
        patch: patch("src.py", "answer = 2"),
        FAIL_TO_PASS: ["test_a.py::test_a"],
        install_config: { test_cmd: "python3 tools/pytest -rA", log_parser: "parse_log_pytest" },
      },
      "row",
    );
    const tasks = rowTasks({
      name: "rows",
      train: [],
      heldOut: [parsed],
      template: sweTemplate(),
      repository: async () => repository,
    });
    const backend = await openBackend(KINDS[0] ?? "unsafe-host");
    const judge = (text: string) =>
      verify({ instance: parsed.instance, tasks, patch: patch("src.py", text), backend, timeoutMs: 20_000 });
    const fake = 'print("PASSED test_a.py::test_a", flush=True)';
    expect(await judge("answer = 2")).toMatchObject({
      verdict: "resolved",
      tests: { "test_a.py::test_a": "PASSED" },
    });
    expect(await judge("answer = 3")).toMatchObject({
      verdict: "failed",
      tests: { "test_a.py::test_a": "FAILED" },
    });
    for (const text of [`${fake}\nimport os\nos._exit(0)`, `${fake}\nraise ValueError`]) {
      const verification = await judge(text);
      expect(verification.log).toContain("PASSED test_a.py::test_a");
      expect(verification).toMatchObject({ verdict: "failed", failToPass: 0 });
      expect(verification.tests).not.toHaveProperty("test_a.py::test_a");
    }
    await backend.dispose();
  });
});

describe("parsers of other runners", () => {
  it("read Django's results, also behind a docstring, on a later line, and at its end", () => {
    const log = [
      "test_one (a.tests.One) ... ok",
      "A docstring stands for its test. ... ok",
      "test_two (a.tests.One) ... skipped 'not here'",
      "test_three (a.tests.One) ... FAIL",
      "test_four (a.tests.One) ... ERROR",
      "test_five (a.tests.One) ... expected failure",
      "test_six (a.tests.One) ... Creating a table",
      "ok",
      "FAIL: test_three (a.tests.One)",
      "ERROR: test_seven (a.tests.One)",
      "System check identified no issues (0 silenced).",
    ].join("\n");
    expect(parseLogDjango(log)).toEqual({
      "test_one (a.tests.One)": "PASSED",
      "A docstring stands for its test.": "PASSED",
      "test_two (a.tests.One)": "SKIPPED",
      "test_three (a.tests.One)": "FAILED",
      "test_four (a.tests.One)": "ERROR",
      "test_five (a.tests.One)": "XFAIL",
      "test_six (a.tests.One)": "PASSED",
      "test_seven (a.tests.One)": "ERROR",
    });
  });

  it("read SymPy's, seaborn's and matplotlib's", () => {
    const sympy = "test_one ok\ntest_two F\ntest_three E\n____ sympy/x.py:test_two ____\ntest_four\n";
    expect(parseLogSympy(sympy)).toEqual({
      test_one: "PASSED",
      test_two: "FAILED",
      test_three: "ERROR",
      "sympy/x.py:test_two": "FAILED",
    });
    expect(parseLogSeaborn("a.py::b PASSED [ 1%]\nFAILED a.py::c - d\nPASSED a.py::e\n")).toEqual({
      "a.py::b": "PASSED",
      "a.py::c": "FAILED",
      "a.py::e": "PASSED",
    });
    expect(parseLogMatplotlib("PASSED a.py::b[MouseButton.LEFT]\n")).toEqual({ "a.py::b[1]": "PASSED" });
  });
});

describe("a pristine repository", () => {
  it("holds a commit and what came before it, and no trace of what came after", async () => {
    const source = makeRepository({ "a.py": "old\n" });
    writeFileSync(join(source, "a.py"), "base\n");
    git(source, "commit", "-qam", "base");
    const base = git(source, "rev-parse", "HEAD").trim();
    writeFileSync(join(source, "a.py"), "the solution\n");
    git(source, "commit", "-qam", "solution");
    const future = git(source, "rev-parse", "HEAD").trim();
    git(source, "tag", "v2");
    git(source, "branch", "later");
    git(source, "remote", "add", "origin", "https://example.invalid/x.git");
    git(source, "stash", "list");

    const target = join(scratch, "pristine");
    await pristineRepository(source, base, target);
    expect(git(target, "log", "--all", "--format=%s").trim()).toBe("base\nbase");
    expect(git(target, "rev-parse", "HEAD").trim()).toBe(base);
    expect(git(target, "status", "--porcelain", "--ignored")).toBe("");
    expect(git(target, "for-each-ref", "--format=%(refname)").trim()).toBe("refs/heads/main");
    expect([git(target, "remote"), git(target, "reflog"), git(target, "tag")]).toEqual(["", "", ""]);
    expect(() => git(target, "cat-file", "-e", future)).toThrow();
    expect(git(target, "fsck", "--unreachable", "--no-reflogs")).toBe("");

    await expect(pristineRepository(source, "0".repeat(40), join(scratch, "none"))).rejects.toMatchObject({
      code: "ERR_TOKENRING_TASK",
    });
    await expect(pristineRepository(source, "main", join(scratch, "none"))).rejects.toThrow(/the whole hash/);
  });
});
