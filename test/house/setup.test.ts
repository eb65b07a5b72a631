// Set-up on machines that lack something, and on a small project that it really builds.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
// @ts-expect-error: plain JavaScript, because it must start on an old Node
import * as machine from "../../scripts/machine.mjs";
// @ts-expect-error: the same
import { packagesAreCurrent } from "../../scripts/setup.mjs";

describe("Node's version", () => {
  test.each(["18.19.0", "20.18.3", "16.20.2", "9.99.0"])(
    "%s is refused with a way to get another",
    (version) => {
      const fault = machine.checkNode(version);
      expect(fault.what).toContain(version);
      expect(fault.what).toContain("20.19");
      expect(fault.cure).toContain("nodejs.org");
    },
  );

  test.each(["20.19.0", "20.20.2", "22.0.0", "24.1.0"])("%s will do", (version) => {
    expect(machine.checkNode(version)).toBeNull();
  });
});

test("a system other than Linux is refused", () => {
  expect(machine.checkPlatform("linux")).toBeNull();
  expect(machine.checkPlatform("win32").what).toContain("win32");
});

describe("what is on the PATH", () => {
  let folder: string;
  const link = (name: string, target: string) => symlinkSync(target, path.join(folder, name));
  const script = (name: string, text: string) =>
    writeFileSync(path.join(folder, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  /** Runs set-up with `folder` as the whole PATH. */
  const setup = () =>
    spawnSync(process.execPath, ["scripts/setup.mjs", "--for", "build"], {
      env: { PATH: folder },
      encoding: "utf8",
      timeout: 60_000,
    });

  beforeAll(() => {
    folder = mkdtempSync(path.join(tmpdir(), "tokenring-path-"));
    link("apt-get", "/bin/true");
    for (const name of ["npm", "git", "make", "python3"]) link(name, "/bin/true");
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test("no compiler: one line with the command that installs one", () => {
    const { status, stderr } = setup();
    expect(status).toBe(1);
    expect(stderr.trim().split("\n")).toHaveLength(1);
    expect(stderr).toMatch(/C\+\+ compiler.* is not on the PATH: (sudo )?apt-get install -y g\+\+/);
  });

  test("several things missing: a line for each", () => {
    for (const name of ["git", "make"]) rmSync(path.join(folder, name));
    const { status, stderr } = setup();
    expect(status).toBe(1);
    const lines = stderr.trim().split("\n");
    expect(lines).toHaveLength(3);
    for (const name of ["git", "make", "g++"]) expect(stderr).toContain(`apt-get install -y ${name}`);
  });

  test("a compiler that knows no C++20 is found out, by name and version", () => {
    script(
      "g++",
      'case "$1" in -dump*) echo 8.3.0;; *) echo "error: unrecognized option -std=c++20" >&2; exit 1;; esac',
    );
    const { compiler, fault } = machine.checkCompiler({ PATH: folder });
    expect(compiler).toBe("g++");
    expect(fault.what).toContain("g++ 8.3.0 cannot compile C++20 (error: unrecognized option");
    expect(fault.cure).toContain("CXX=");
  });

  test("a compiler chosen by CXX that is not there is named", () => {
    expect(machine.checkCompiler({ PATH: folder, CXX: "g++-99" }).fault.what).toContain("CXX=g++-99");
  });

  test("bubblewrap that may not make namespaces is told from one that is missing", () => {
    expect(machine.checkBubblewrap(folder).fault.what).toContain("not installed");
    script("bwrap", 'echo "bwrap: No permissions to create new namespace" >&2; exit 1');
    expect(machine.checkBubblewrap(folder).fault.what).toContain("No permissions to create new namespace");
  });

  test("this machine's compiler is fit", () => {
    expect(machine.checkCompiler().fault).toBeNull();
  });
});

describe("node_modules against the lockfile", () => {
  const lock = (packages: Record<string, object>) =>
    JSON.stringify({ packages: { "": { name: "x" }, ...packages } });
  const wanted = lock({
    "node_modules/a": { version: "1.0.0" },
    "node_modules/b": { version: "2.0.0", optional: true },
  });

  test.each([
    ["the same", { "node_modules/a": { version: "1.0.0" }, "node_modules/b": { version: "2.0.0" } }, true],
    ["an optional package of another platform left out", { "node_modules/a": { version: "1.0.0" } }, true],
    ["another version", { "node_modules/a": { version: "1.0.1" } }, false],
    ["a package missing", {}, false],
  ])("%s", (_, installed, current) => {
    expect(packagesAreCurrent(wanted, lock(installed))).toBe(current);
  });
});

// A project of a few lines with the real scripts and the real binding.gyp: what a fresh checkout goes through.
describe("a small checkout", { timeout: 600_000 }, () => {
  let root: string;
  const write = (file: string, text: string) => {
    mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
    writeFileSync(path.join(root, file), text);
  };
  const setup = () =>
    spawnSync(process.execPath, ["scripts/setup.mjs", "--for", "build"], {
      cwd: root,
      encoding: "utf8",
      timeout: 580_000,
    });
  const evaluate = (code: string) =>
    spawnSync(process.execPath, ["-p", code], { cwd: root, encoding: "utf8", timeout: 30_000 }).stdout.trim();

  beforeAll(() => {
    root = mkdtempSync(path.join(tmpdir(), "tokenring-checkout-"));
    for (const name of ["setup", "machine", "native-sources"]) {
      cpSync(`scripts/${name}.mjs`, path.join(root, `scripts/${name}.mjs`));
    }
    for (const name of [
      "binding.gyp",
      "tsconfig.json",
      "tsconfig.bench.json",
      "package.json",
      "package-lock.json",
    ]) {
      cpSync(name, path.join(root, name));
    }
    symlinkSync(path.resolve("node_modules"), path.join(root, "node_modules"));
    write("native/core/answer.h", "int answer();\n");
    write("native/core/answer.cc", '#include "core/answer.h"\nint answer() { return 41; }\n');
    write(
      "native/addon/module.cc",
      '#include <napi.h>\n#include "core/answer.h"\n' +
        "Napi::Object init(Napi::Env env, Napi::Object exports) {\n" +
        '  exports.Set("answer", Napi::Number::New(env, answer()));\n  return exports;\n}\n' +
        "NODE_API_MODULE(tokenring, init)\n",
    );
    write("native/sandbox/main.cc", "int main() {}\n");
    write("lib/index.ts", "export const name: string = 'a';\n");
    write("lib/page/page.html", "<p>\n");
    write("bench/index.ts", "export const bench: number = 1;\n");
    write("bench/results/README.md", "# Results\n");
  });
  afterAll(() => rmSync(root, { recursive: true }));

  const answer = 'require("./build/Release/tokenring.node").answer';

  test("the first run builds the addon and dist", () => {
    const { status, stderr } = setup();
    expect(stderr).toContain("building the addon");
    expect(status).toBe(0);
    expect(evaluate(answer)).toBe("41");
    expect(readFileSync(path.join(root, "dist/index.js"), "utf8")).toContain("name");
    expect(readFileSync(path.join(root, "dist/page/page.html"), "utf8")).toBe("<p>\n");
    expect(evaluate('require("fs").readdirSync("dist/bench").join()')).toMatch(
      /^index\.d\.ts,.*index\.js\.map$/,
    );
  });

  test("the second run does nothing and says nothing", () => {
    const { status, stdout, stderr } = setup();
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "", stderr: "" });
  });

  test("without bubblewrap it tries once where it may, then says the command and goes on", () => {
    const folder = path.join(root, "path");
    mkdirSync(folder);
    for (const name of ["npm", "git", "make", "python3", "g++"])
      symlinkSync("/bin/true", path.join(folder, name));
    writeFileSync(path.join(folder, "apt-get"), "#!/bin/sh\nexit 100\n", { mode: 0o755 });
    const demo = () =>
      spawnSync(process.execPath, ["scripts/setup.mjs", "--for", "demo"], {
        cwd: root,
        env: { PATH: folder },
        encoding: "utf8",
        timeout: 30_000,
      });
    const first = demo();
    expect(first.status).toBe(0);
    expect(first.stderr).toMatch(/bubblewrap is missing.* (sudo )?apt-get install -y bubblewrap/);
    expect(first.stderr.includes("installing bubblewrap")).toBe(machine.isRoot());
    const second = demo();
    expect(second.status).toBe(0);
    expect(second.stderr).toMatch(/bubblewrap is missing/);
    expect(second.stderr).not.toContain("installing");
  });

  test("a changed source is built, and a removed one leaves dist", () => {
    write("native/core/answer.cc", '#include "core/answer.h"\nint answer() { return 42; }\n');
    write("lib/other.ts", "export const other: number = 1;\n");
    rmSync(path.join(root, "lib/index.ts"));
    const { status } = setup();
    expect(status).toBe(0);
    expect(evaluate(answer)).toBe("42");
    expect(evaluate('require("fs").readdirSync("dist").join()')).toMatch(
      /^bench,other\.d\.ts,.*other\.js\.map,page$/,
    );
  });

  test("a fault in the C++ is shown with its line, and where the log is", () => {
    write("native/core/answer.cc", "int answer() { return forty_two; }\n");
    const { status, stderr } = setup();
    expect(status).toBe(1);
    expect(stderr).toMatch(/answer\.cc:1:\d+: error: .*forty_two/);
    expect(stderr).toContain("build/setup/native.log");
    expect(stderr).toContain("CXX");
  });

  test("a fault in the TypeScript is shown with its line", () => {
    write("native/core/answer.cc", '#include "core/answer.h"\nint answer() { return 43; }\n');
    write("lib/other.ts", "export const other: number = 'one';\n");
    const { status, stderr } = setup();
    expect(status).toBe(1);
    expect(stderr).toMatch(/lib\/other\.ts.*TS2322/);
  });
});
