// The command `tokenring` as a process: help, errors, signals; and doctor's verdicts.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import { Command } from "commander";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Check, checkDisk, examine, renderChecks } from "../../lib/cli/doctor.ts";
import { describeError, runCommand } from "../../lib/cli/program.ts";
import { TokenringError } from "../../lib/errors.ts";

const main = path.resolve("dist/cli/main.js");

function tokenring(args: string[], environment: Record<string, string> = {}) {
  const env = { ...process.env, ...environment };
  return spawnSync(process.execPath, [main, ...args], { env, encoding: "utf8", timeout: 50_000 });
}

describe("the command line", () => {
  test("--help names the commands on stdout and loads no native code", () => {
    // A file that is not an addon: loading it would fail.
    const { status, stdout, stderr } = tokenring(["--help"], {
      TOKENRING_NATIVE_PATH: path.resolve("package.json"),
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toMatch(/^ {2}doctor/m);
  });

  test("a wrong option is refused with the nearest right one", () => {
    const { status, stdout, stderr } = tokenring(["doctor", "--jsn"]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
    expect(stderr).toContain("unknown option '--jsn'");
    expect(stderr).toContain("--json");
  });

  test.each([
    ["train", "job.yaml", "--out"],
    ["demo", "--out"],
    ["report", "run", "--out"],
    ["evaluate", "run", "--json"],
    ["resume", "run", "--json"],
  ])("an empty path is refused: %s %s %s", (...args) => {
    const { status, stdout, stderr } = tokenring([...args, ""]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
    expect(stderr).toMatch(/^error: option '--(out|json) <\w+>' argument '' is invalid\. Give a path\.\n/);
  });

  test("a command that does not exist is refused", () => {
    const { status, stderr } = tokenring(["tain"]);
    expect(status).toBe(1);
    expect(stderr).toContain("unknown command 'tain'");
  });
});

describe("an error that a command ends with", () => {
  let printed: string;
  beforeEach(() => {
    printed = "";
    vi.spyOn(process.stderr, "write").mockImplementation((chunk) => {
      printed += chunk;
      return true;
    });
  });
  afterEach(() => {
    vi.restoreAllMocks();
    vi.unstubAllEnvs();
  });

  const failing = (error: unknown) => {
    const program = new Command("tokenring").option("--verbose").exitOverride();
    program.command("fail").action(() => {
      throw error;
    });
    return program;
  };
  const meant = new TokenringError("ERR_TOKENRING_CONFIG", "job.yaml:3: steps must be positive", {
    cause: new Error("zod said so"),
  });

  test("one of tokenring's own is one line, and exit code 1", async () => {
    expect(await runCommand(["fail"], failing(meant))).toBe(1);
    expect(printed).toBe("tokenring: job.yaml:3: steps must be positive\n");
  });

  test.each([
    ["--verbose", ["--verbose", "fail"], "0"],
    ["TOKENRING_DEBUG=1", ["fail"], "1"],
  ])("with %s it shows code, stack and cause", async (_, argv, debug) => {
    vi.stubEnv("TOKENRING_DEBUG", debug);
    expect(await runCommand(argv, failing(meant))).toBe(1);
    expect(printed).toContain("ERR_TOKENRING_CONFIG");
    expect(printed).toMatch(/command\.test\.ts:\d+/);
    expect(printed).toContain("caused by: Error: zod said so");
  });

  test("an unknown one keeps its stack", async () => {
    expect(await runCommand(["fail"], failing(new TypeError("x is not a function")))).toBe(1);
    expect(printed).toContain("please report");
    expect(printed).toMatch(/TypeError: x is not a function\n.*at /);
  });

  test("what is thrown without being an error is shown too", () => {
    expect(describeError("a string", false)).toContain("a string");
  });
});

// A command that waits for its signal, in a process of its own, because signal handlers are the process's.
describe("signals", () => {
  const script = (onAbort: string) => `
    import { Command } from ${JSON.stringify(import.meta.resolve("commander"))};
    import { runCommand } from ${JSON.stringify(path.resolve("dist/cli/program.js"))};
    import { commandSignal } from ${JSON.stringify(path.resolve("dist/cli/signals.js"))};
    import { TokenringError } from ${JSON.stringify(path.resolve("dist/errors.js"))};
    const program = new Command().exitOverride();
    program.command("wait").action(() => new Promise((resolve, reject) => {
      const signal = commandSignal();
      const alive = setInterval(() => {}, 1000);
      signal.addEventListener("abort", () => {
        ${onAbort}
      });
      console.log("waiting");
    }));
    process.exitCode = await runCommand(["wait"], program);
  `;
  const start = async (onAbort: string) => {
    const child = spawn(process.execPath, ["--input-type=module", "-e", script(onAbort)], {
      timeout: 30_000,
    });
    let said = "";
    child.stderr.on("data", (chunk) => {
      said += chunk;
    });
    await once(child.stdout, "data");
    return { child, said: () => said };
  };
  const endOnAbort =
    'clearInterval(alive); reject(new TokenringError("ERR_TOKENRING_ABORTED", "rft: stopped", { cause: signal.reason }));';

  test.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("%s lets the command end by itself, with exit code %i", async (name, code) => {
    const { child, said } = await start(endOnAbort);
    child.kill(name);
    expect(await once(child, "close")).toEqual([code, null]);
    expect(said()).toContain("rft: stopped");
  });

  test("an error that is the signal's own reason counts as stopped too", async () => {
    const { child, said } = await start("clearInterval(alive); reject(signal.reason);");
    child.kill("SIGTERM");
    expect(await once(child, "close")).toEqual([143, null]);
    expect(said()).toContain("tokenring: stopped by SIGTERM\n");
  });

  test("a second signal ends a command that does not come back", async () => {
    const { child, said } = await start('process.stderr.write("still here\\n");');
    child.kill("SIGINT");
    while (!said().includes("still here")) await once(child.stderr, "data");
    child.kill("SIGINT");
    expect(await once(child, "close")).toEqual([130, null]);
  });
});

describe("doctor", () => {
  test("this machine passes, with every check named once", async () => {
    const checks = await examine();
    expect(checks.filter(({ status }) => status === "fail")).toEqual([]);
    expect(new Set(checks.map(({ name }) => name)).size).toBe(checks.length);
    for (const { status, cure } of checks) expect(cure === null).toBe(status === "ok");
  });

  test("--json is JSON alone, and the exit code is its verdict", () => {
    const { status, stdout, stderr } = tokenring(["doctor", "--json"]);
    const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: Check[] };
    expect({ status, stderr, ok }).toEqual({ status: 0, stderr: "", ok: true });
    expect(checks.map(({ name }) => name)).toContain("addon");
    const sandbox = checks.find(({ name }) => name === "sandbox");
    expect(sandbox?.found).toMatch(/^(namespaces|bubblewrap|landlock), /);
    expect(sandbox?.cure === null).toBe(sandbox?.status === "ok");
  });

  test("what the environment takes away is told with its cure", async () => {
    const { stdout } = tokenring(["doctor"], { HF_HUB_OFFLINE: "1", HF_HUB_CACHE: "/nowhere" });
    expect(stdout).toMatch(/^-- {2}models .* \/nowhere; HF_HUB_OFFLINE forbids .*\n +unset HF_HUB_OFFLINE/m);
    expect(stdout).toMatch(/^It goes without: .*models/m);
    expect(await checkDisk("/nowhere")).toMatchObject({ status: "limited", cure: expect.any(String) });
    expect(await checkDisk()).toMatchObject({ name: "disk", found: expect.stringContaining(process.cwd()) });
  });

  test("without the addon it says so, how to build it, and ends with 1", () => {
    const { status, stdout } = tokenring(["doctor"], { TOKENRING_NATIVE_PATH: "/nowhere/tokenring.node" });
    expect(status).toBe(1);
    expect(stdout).toMatch(/^NO {2}addon .*\n.*\/nowhere\/tokenring\.node.*TOKENRING_NATIVE_PATH/m);
    expect(stdout).toContain("cannot run here before these are cured: addon.");
  });

  test("what is missing is told with its cure, what is limited apart from what is fatal", () => {
    const text = renderChecks([
      { name: "git", status: "fail", found: "git is not on the PATH", cure: "apt-get install -y git" },
      {
        name: "bubblewrap",
        status: "limited",
        found: "not installed",
        cure: "apt-get install -y bubblewrap",
      },
      { name: "Node.js", status: "ok", found: "20.20.2", cure: null },
    ]);
    expect(text).toContain(
      "NO  git         git is not on the PATH\n                apt-get install -y git\n",
    );
    expect(text).toContain("cured: git.\nIt goes without: bubblewrap.\n");
  });
});
