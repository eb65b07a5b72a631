import { describe, expect, it } from "vitest";
import type { TestStatus } from "../../lib/tasks/types.ts";
import { grade } from "../../lib/verify/grade.ts";
import { touchedFiles } from "../../lib/verify/patch-files.ts";

const lists = { FAIL_TO_PASS: ["f1", "f2"], PASS_TO_PASS: ["p1", "p2"] };
const passing: Record<string, TestStatus> = { f1: "PASSED", f2: "XFAIL", p1: "PASSED", p2: "XFAIL" };

describe("grade", () => {
  it("resolves when all pass or fail as expected", () => {
    expect(grade(lists, passing)).toEqual({ resolved: true, failToPass: 1, passToPass: 1 });
    expect(grade({ FAIL_TO_PASS: [], PASS_TO_PASS: [] }, {})).toEqual({
      resolved: true,
      failToPass: 1,
      passToPass: 1,
    });
  });

  it.each([
    ["FAILED", "f1", 0.5, 1],
    ["ERROR", "f1", 0.5, 1],
    ["SKIPPED", "f1", 0.5, 1],
    ["FAILED", "p2", 1, 0.5],
    ["ERROR", "p2", 1, 0.5],
  ] as const)("does not where %s is %s", (status, id, failToPass, passToPass) => {
    expect(grade(lists, { ...passing, [id]: status })).toEqual({ resolved: false, failToPass, passToPass });
  });

  it("counts a missing test as failed and a skipped PASS_TO_PASS test as maintained", () => {
    const { f1: _, ...missing } = passing;
    expect(grade(lists, missing)).toEqual({ resolved: false, failToPass: 0.5, passToPass: 1 });
    expect(grade(lists, { ...passing, p1: "SKIPPED" }).resolved).toBe(true);
    expect(grade(lists, {})).toEqual({ resolved: false, failToPass: 0, passToPass: 0 });
    expect(grade({ FAIL_TO_PASS: ["toString"], PASS_TO_PASS: [] }, {}).resolved).toBe(false);
  });

  it("takes an id that was cut inside its parameters for all that it begins, if they agree", () => {
    const cut = { FAIL_TO_PASS: ["t.py::t[a"], PASS_TO_PASS: [] };
    expect(grade(cut, { "t.py::t[a b]": "PASSED", "t.py::t[a c]": "PASSED" }).resolved).toBe(true);
    expect(grade(cut, { "t.py::t[a b]": "PASSED", "t.py::t[a c]": "FAILED" }).resolved).toBe(false);
    expect(grade({ ...cut, FAIL_TO_PASS: ["t.py::t"] }, { "t.py::t2": "PASSED" }).resolved).toBe(false);
  });
});

describe("touchedFiles", () => {
  it("reads changed, new, deleted, renamed, empty, binary and quoted files", () => {
    const patch = [
      "diff --git a/a.py b/a.py\nindex 1..2 100644\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n--- a/not-this\n+++ b/nor-this\n",
      "diff --git a/new b/new\nnew file mode 100644\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+x\n",
      "diff --git a/old b/old\ndeleted file mode 100644\n--- a/old\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n",
      "diff --git a/from b/to\nsimilarity index 90%\nrename from from\nrename to to\n--- a/from\n+++ b/to\n@@ -1 +1 @@\n-x\n+y\n",
      "diff --git a/empty file b/empty file\nnew file mode 100644\nindex 0..e69\n",
      "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n",
      'diff --git "a/\\303\\244\\t.txt" "b/\\303\\244\\t.txt"\n--- "a/\\303\\244\\t.txt"\n+++ "b/\\303\\244\\t.txt"\n@@ -1 +1 @@\n-x\n+y\n',
    ].join("");
    const change = { added: false, deleted: false };
    expect(touchedFiles(patch)).toEqual([
      { path: "a.py", ...change },
      { path: "new", added: true, deleted: false },
      { path: "old", added: false, deleted: true },
      { path: "from", added: false, deleted: true },
      { path: "to", added: true, deleted: false },
      { path: "empty file", added: true, deleted: false },
      { path: "run.sh", ...change },
      { path: "ä\t.txt", ...change },
    ]);
    expect(touchedFiles("no patch")).toEqual([]);
  });
});
