// From a patch to a verdict, in real sandboxes; and what happens when those break.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TokenringError } from "../../lib/errors.ts";
import type { SandboxBackend } from "../../lib/sandbox/types.ts";
import type { Verification } from "../../lib/verify/types.ts";
import { type VerifyOptions, verify } from "../../lib/verify/verify.ts";
import { KINDS, openBackend, removeDirectories } from "../sandbox/support.ts";
import { GOLD, makeWorld, type World } from "./support.ts";

describe.each(KINDS)("verification in %s sandboxes", (kind) => {
  let backend: SandboxBackend;
  let world: World;
  const judge = (patch: string, more: Partial<VerifyOptions> = {}): Promise<Verification> =>
    verify({ instance: world.instance, tasks: world.tasks, patch, backend, timeoutMs: 20_000, ...more });

  beforeAll(async () => {
    world = makeWorld();
    backend = await openBackend(kind);
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("resolves the gold patch, with or without its last line end", async () => {
    const verification = await judge(world.instance.patch);
    expect(verification).toMatchObject({
      verdict: "resolved",
      reason: null,
      failToPass: 1,
      passToPass: 1,
      exitCode: 0,
      tests: {
        "test_calc.py::test_add": "PASSED",
        "test_calc.py::test_old": "PASSED",
        "test_more.py::test_sub": "PASSED",
      },
    });
    expect(verification.log).toMatch(
      /Applied patch calc\.py cleanly(.|\n)*>>>>> Start Test Output\n(.|\n)*>>>>> End/,
    );
    expect(await judge(world.instance.patch.trimEnd())).toEqual(verification);
  });

  it("does not run where there is no patch", async () => {
    for (const patch of ["", " \n"]) {
      expect(await judge(patch)).toMatchObject({ verdict: "not_run", reason: "empty_patch", exitCode: null });
    }
  });

  it("fails a patch that does not repair, or breaks what worked", async () => {
    expect(await judge(world.patch({ "note.txt": "nothing\n" }))).toMatchObject({
      verdict: "failed",
      reason: "tests_failed",
      failToPass: 0,
      passToPass: 1,
      exitCode: 1,
      tests: { "test_calc.py::test_add": "FAILED" },
    });
    const breaks = world.patch({ "calc.py": GOLD.replace("a - b", "b - a") });
    expect(await judge(breaks)).toMatchObject({ verdict: "failed", failToPass: 1, passToPass: 0.5 });
    const silent = world.patch({ "calc.py": `import os\nos._exit(0)\n${GOLD}` });
    expect(await judge(silent)).toMatchObject({
      verdict: "failed",
      reason: "tests_failed",
      failToPass: 0,
      passToPass: 0,
    });
  });

  it("fails what cannot be applied, and says so in the log", async () => {
    const elsewhere = world.instance.patch.replaceAll("calc.py", "none.py");
    for (const patch of [elsewhere, "no patch at all", "\0"]) {
      const verification = await judge(patch);
      expect(verification).toMatchObject({
        verdict: "failed",
        reason: "patch_failed",
        tests: {},
        exitCode: null,
      });
      expect(verification.log).toContain(">>>>> Patch Apply Failed");
    }
    const outside = world.instance.patch.replaceAll("calc.py", "../calc.py");
    expect(await judge(outside)).toMatchObject({ reason: "patch_failed" });
  });

  it("fails a patch on which the test patch does not go in, instead of asking the old tests", async () => {
    const data =
      "diff --git a/data/x.txt b/data/x.txt\nnew file mode 100644\n--- /dev/null\n+++ b/data/x.txt\n@@ -0,0 +1 @@\n+x\n";
    const instance = {
      ...world.instance,
      FAIL_TO_PASS: world.instance.PASS_TO_PASS.filter((id) => id.startsWith("test_calc")),
      PASS_TO_PASS: [],
      test_patch: world.instance.test_patch + data,
    };
    expect(await judge(world.instance.patch, { instance })).toMatchObject({ verdict: "resolved" });
    const blocks =
      "diff --git a/data b/data\nnew file mode 120000\n--- /dev/null\n+++ b/data\n@@ -0,0 +1 @@\n+/usr\n\\ No newline at end of file\n";
    expect(await judge(blocks, { instance })).toMatchObject({ verdict: "failed", reason: "patch_failed" });
  });

  it("fails a patch that reaches into .git, where settings and hooks are run", async () => {
    const hook = "--- /dev/null\n+++ b/.git/hooks/post-checkout\n@@ -0,0 +1 @@\n+#!/bin/sh\n";
    expect(await judge(world.instance.patch + hook)).toMatchObject({ reason: "patch_failed" });
    const ignore = world.patch({ ".gitignore": "x\n", "calc.py": GOLD });
    expect(await judge(ignore)).toMatchObject({ verdict: "resolved" });
  });

  it("applies by fuzz what git refuses", async () => {
    const shifted = world.instance.patch.replace(/^ +$/m, " # a context that is not there");
    expect(shifted).not.toBe(world.instance.patch);
    expect(await judge(shifted)).toMatchObject({ verdict: "resolved" });
  });

  it("puts the tests in place whatever the patch did to them", async () => {
    const pass = "def test_add(): pass\ndef test_old(): pass\n";
    const none = world.patch({
      "note.txt": "",
      "test_calc.py": pass,
      "test_more.py": "def test_sub(): pass\n",
    });
    expect(await judge(none)).toMatchObject({ reason: "tests_failed", failToPass: 0, passToPass: 1 });
    const gold = world.patch({ "calc.py": GOLD, "test_calc.py": pass, "test_more.py": "raise SystemExit\n" });
    expect(await judge(gold)).toMatchObject({ verdict: "resolved" });
    const deleted = world.patch({ "calc.py": GOLD, "test_calc.py": null });
    expect(await judge(deleted)).toMatchObject({ verdict: "resolved" });
    // Something else in their place: a link to what is there, one to what is not, a folder.
    const made = (path: string, mode: string, text: string): string =>
      `diff --git a/${path} b/${path}\nnew file mode ${mode}\n--- /dev/null\n+++ b/${path}\n@@ -0,0 +1 @@\n+${text}\n\\ No newline at end of file\n`;
    for (const instead of [
      made("test_calc.py", "120000", "calc.py"),
      made("test_calc.py", "120000", "none.py"),
      made("test_calc.py/deep.txt", "100644", "x"),
      made("test_more.py", "120000", "calc.py"),
      made("test_more.py/deep.txt", "100644", "x"),
    ]) {
      const replaced =
        (instead.includes("test_calc.py") ? deleted : world.patch({ "calc.py": GOLD })) + instead;
      const judged = await judge(replaced);
      expect(judged.log).toContain("Applied patch test_");
      expect(judged).toMatchObject({ verdict: "resolved" });
    }
  });

  it("gives nothing for lines that only look like the runner's", async () => {
    const lines = [...world.instance.FAIL_TO_PASS, ...world.instance.PASS_TO_PASS]
      .map((id) => `PASSED ${id}`)
      .join("\\n");
    const end = ">>>>> End Test Output\\n\\0exit 0 /repo\\0";
    const fake = world.patch({
      "calc.py": `import os\nprint("${lines}\\n${end}", flush=True)\nos._exit(3)\n`,
    });
    const verification = await judge(fake);
    expect(verification).toMatchObject({
      verdict: "failed",
      reason: "invalid_run",
      exitCode: 3,
      failToPass: 0,
      passToPass: 0,
    });
  });

  it("counts tests that do not come to an end as failed", async () => {
    const hang = world.patch({ "calc.py": `${GOLD}\nwhile True: pass\n` });
    const verification = await judge(hang, { timeoutMs: 1_000 });
    expect(verification).toMatchObject({ verdict: "failed", reason: "timeout", exitCode: null });
  });

  it("leaves no sandbox open", async () => {
    let open = 0;
    const counting: SandboxBackend = {
      name: "counting",
      dispose: () => backend.dispose(),
      open: async (spec, options) => {
        const sandbox = await backend.open(spec, options);
        open++;
        return Object.assign(Object.create(sandbox), {
          workdir: sandbox.workdir,
          exec: sandbox.exec.bind(sandbox),
          write: sandbox.write.bind(sandbox),
          close: () => {
            open--;
            return sandbox.close();
          },
        });
      },
    };
    await judge(world.instance.patch, { backend: counting });
    await judge("no patch", { backend: counting });
    expect(open).toBe(0);
  });

  it("stops when it is told to", async () => {
    const aborted = { code: "ERR_TOKENRING_ABORTED" };
    await expect(judge(world.instance.patch, { signal: AbortSignal.abort() })).rejects.toMatchObject(aborted);
    const hang = world.patch({ "calc.py": "import time\ntime.sleep(60)\n" });
    await expect(judge(hang, { signal: AbortSignal.timeout(300) })).rejects.toMatchObject(aborted);
  });
});

describe("verification over a backend that fails", () => {
  const broken = new TokenringError("ERR_TOKENRING_SANDBOX", "the sandbox broke");

  /** Breaks in one way or another the first `times` times. */
  function flaky(backend: SandboxBackend, times: number): SandboxBackend & { opened: number } {
    return {
      name: "flaky",
      opened: 0,
      dispose: () => backend.dispose(),
      async open(spec, options) {
        const attempt = this.opened++;
        if (attempt < times && attempt % 2 === 0) throw broken;
        const sandbox = await backend.open(spec, options);
        if (attempt < times) sandbox.exec = () => Promise.reject(broken);
        return sandbox;
      },
    };
  }

  it("tries again with fresh sandboxes, and believes it after the third", async () => {
    const world = makeWorld();
    const backend = await openBackend(KINDS[0] ?? "unsafe-host");
    const judge = (over: SandboxBackend): Promise<Verification> =>
      verify({ ...world, patch: world.instance.patch, backend: over, timeoutMs: 20_000 });
    const never = flaky(backend, 99);
    expect(await judge(never)).toMatchObject({
      verdict: "not_run",
      reason: "infra_failed",
      log: "the sandbox broke",
      exitCode: null,
    });
    expect(never.opened).toBe(3);
    const twice = flaky(backend, 2);
    expect(await judge(twice)).toMatchObject({ verdict: "resolved" });
    expect(twice.opened).toBe(3);
    await backend.dispose();
    removeDirectories();
  });
});
