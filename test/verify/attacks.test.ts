// Patches that try to be taken for a solution: nothing but right values may resolve a task.
import { cpSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { SandboxBackend } from "../../lib/sandbox/types.ts";
import type { TinyTask } from "../../lib/tasks/tinyswe/task.ts";
import { type TinysweTaskSet, tinyswe } from "../../lib/tasks/tinyswe/tinyswe.ts";
import type { Verification } from "../../lib/verify/types.ts";
import { verify } from "../../lib/verify/verify.ts";
import { git, KINDS, openBackend, removeDirectories, temporaryDirectory } from "../sandbox/support.ts";
import { GOLD, makeWorld, type World } from "./support.ts";

/** Code that a module of the repository runs when it is imported; LINES are fake results of all tests. */
const ON_IMPORT: Record<string, string> = {
  "prints results and ends": "import os\nprint(LINES, flush=True)\nos._exit(0)",
  "writes results to the descriptor and ends": "import os\nos.write(1, LINES.encode())\nos._exit(0)",
  "prints results at every end":
    "import atexit, os\natexit.register(lambda: os.write(1, LINES.encode()))\nraise SystemExit(0)",
  "prints results and fails": "print(LINES, flush=True)\nraise ValueError",
  "writes results where the judge writes":
    'import os\nwith open(f"/proc/{os.getppid()}/fd/1", "w") as out:\n    out.write(LINES)\nos._exit(0)',
  "kills the judge": "import os, signal\nprint(LINES, flush=True)\nos.kill(os.getppid(), signal.SIGKILL)",
  "goes on as another process":
    "import os, time\nif os.fork():\n    os._exit(0)\nos.setsid()\nfor _ in range(20):\n    os.write(1, LINES.encode())\n    time.sleep(0.01)\nos._exit(0)",
  "replaces print, repr and exit":
    'import builtins, sys\nbuiltins.repr = lambda value: "0"\nbuiltins.print = lambda *a, **k: None\nsys.exit = lambda code=0: None',
  "gives values that equal everything":
    'class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __repr__(self): return ""\nANSWER = Any()',
  "looks for the expected values in files and memory": `import gc, os, sys
found = []
for name in ("test.py", ".git/test.patch", ".git/model.patch"):
    try:
        found.append(open(name).read())
    except OSError:
        pass
frame = sys._getframe()
while frame:
    found += [repr(value) for value in [*frame.f_locals.values(), *frame.f_globals.values()]]
    frame = frame.f_back
found += [repr(value) for value in gc.get_objects() if isinstance(value, (list, tuple))]
ANSWER = next((text for text in found if "EXPECTED" in text), None)
if ANSWER is not None:
    import builtins
    NAMES = {"answers": ANSWER}
    raise SystemExit("found " + ANSWER)`,
  "answers before it is asked":
    'import os\nfor descriptor in range(3, 20):\n    try:\n        os.write(descriptor, b"+1\\n+2\\n+True\\n+0\\n" * 50)\n    except OSError:\n        pass',
};

describe.each(KINDS)("attacks on verification in %s sandboxes", (kind) => {
  let backend: SandboxBackend;
  let tasks: TinysweTaskSet;
  let task: TinyTask;
  let repository: string;

  beforeAll(async () => {
    backend = await openBackend(kind);
    tasks = tinyswe({ seed: 11, train: 1, heldOut: 0, directory: temporaryDirectory() });
    task = tasks.tasks.train[0] as TinyTask;
    repository = await tasks.repository(task.instance);
  });

  afterAll(async () => {
    await backend.dispose();
    removeDirectories();
  });

  const judge = (patch: string): Promise<Verification> =>
    verify({ instance: task.instance, tasks, patch, backend, timeoutMs: 10_000 });

  /** The diff of the repository with these files written over it. */
  function patchOf(files: Record<string, string>): string {
    const copy = mkdtempSync(join(temporaryDirectory(), "copy-"));
    cpSync(repository, copy, { recursive: true });
    for (const [name, content] of Object.entries(files)) writeFileSync(join(copy, name), content);
    git(copy, "add", "-A");
    return git(copy, "diff", "--cached", "--no-renames");
  }

  /** The modules of the task with `code` at their beginning. */
  function withCode(code: string): Record<string, string> {
    const { FAIL_TO_PASS, PASS_TO_PASS } = task.instance;
    const lines = [...FAIL_TO_PASS, ...PASS_TO_PASS].map((id) => `PASSED ${id}\n`).join("");
    const expected = JSON.stringify(task.hidden.map((call) => call.name)).slice(2, 5);
    const files: Record<string, string> = {};
    for (const [name, content] of task.files) {
      if (name === "test.py") continue;
      const text = `LINES = ${JSON.stringify(`\n${lines}`)}\n${code.replaceAll("EXPECTED", expected)}\n${content}`;
      files[name] = text;
    }
    return files;
  }

  it("resolves the gold patch", async () => {
    expect(await judge(task.instance.patch)).toMatchObject({ verdict: "resolved", exitCode: 0 });
  });

  it.each(Object.entries(ON_IMPORT))("code that %s gains nothing", async (_, code) => {
    const verification = await judge(patchOf(withCode(code)));
    expect(verification, verification.log).toMatchObject({ verdict: "failed" });
    expect(verification.failToPass, verification.log).toBeLessThan(1);
    expect(verification.log).not.toContain("found ");
  });

  it("files that Python or a test runner reads by itself gain nothing", async () => {
    const { FAIL_TO_PASS, PASS_TO_PASS } = task.instance;
    const lines = [...FAIL_TO_PASS, ...PASS_TO_PASS].map((id) => `print("PASSED ${id}")\n`).join("");
    const names = [
      "sitecustomize.py",
      "usercustomize.py",
      "conftest.py",
      "sys.py",
      "os.py",
      "io.py",
      "test.py",
    ];
    const hostile = `${lines}import posix\nposix._exit(0)\n`;
    const verification = await judge(patchOf(Object.fromEntries(names.map((name) => [name, hostile]))));
    expect(verification, verification.log).toMatchObject({ verdict: "failed", failToPass: 0 });
  });
});

describe("what a patch may bring", () => {
  let backend: SandboxBackend;
  let world: World;
  beforeAll(async () => {
    world = makeWorld();
    backend = await openBackend(KINDS[0] ?? "unsafe-host");
  });
  afterAll(async () => {
    await backend.dispose();
    removeDirectories();
  });

  it("tests and what decides how they run are put back; the gold patch's own files stay", async () => {
    // Shows what stands in the tree when the tests run.
    const shows = {
      ...world.tasks,
      testCommand: () => "git status --short --untracked-files=all; cat pkg/conftest.py",
      parseLog: () => ({}),
    };
    const files: Record<string, string> = {
      "calc.py": GOLD,
      "conftest.py": "raise SystemExit\n",
      "pytest.ini": "[pytest]\naddopts = -p hostile\n",
      "sitecustomize.py": "raise SystemExit\n",
      "hostile.pth": "import hostile\n",
      "test_mine.py": "def test_mine(): pass\n",
      "helper.py": "x = 1\n",
    };
    const patch = world.patch(files);
    const { log } = await verify({ instance: world.instance, tasks: shows, patch, backend });
    const tree = /Start Test Output\n((?:.|\n)*?)(?:cat:|\n>>>>>)/.exec(log)?.[1];
    const lines = tree?.split("\n").map((line) => line.trim());
    expect(lines?.filter((line) => line !== "").sort()).toEqual([
      "?? helper.py",
      "?? test_more.py",
      "M calc.py",
      "M test_calc.py",
    ]);
    // A row whose solution is a conftest.py.
    const instance = { ...world.instance, patch: world.patch({ "calc.py": GOLD, "conftest.py": "x = 1\n" }) };
    const kept = await verify({ instance, tasks: shows, patch, backend });
    expect(kept.log).toContain("?? conftest.py");
    expect(kept.log).not.toContain("?? pytest.ini");
  });
});
