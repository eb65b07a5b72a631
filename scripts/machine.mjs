// What this machine must have before anything of tokenring can be built, and the cure for each thing that is missing.
// A fault is { what, cure }, one line together. Used by setup.mjs and by `tokenring doctor`. No dependencies, and syntax that an old Node can still read.
import { spawnSync } from "node:child_process";
import {
  accessSync,
  constants,
  existsSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";

export const minimumNode = [20, 19];

export function faultLine({ what, cure }) {
  return `${what}: ${cure}`;
}

/** The full path of a command on the PATH, or null. */
export function findCommand(name, path = process.env.PATH || "") {
  if (name.includes("/")) return isExecutable(name) ? name : null;
  for (const folder of path.split(delimiter)) {
    if (folder !== "" && isExecutable(join(folder, name))) return join(folder, name);
  }
  return null;
}

function isExecutable(file) {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export function isRoot() {
  return typeof process.getuid === "function" && process.getuid() === 0;
}

/** The command that installs Debian packages, as this user would type it. */
export function installCommand(packages, path = process.env.PATH || "") {
  const list = packages.join(" ");
  if (findCommand("apt-get", path) === null) return `install ${list} with your system's package manager`;
  return `${isRoot() ? "" : "sudo "}apt-get install -y ${list}`;
}

/** Null, or the fault of a Node that is too old. */
export function checkNode(version = process.versions.node) {
  const [major, minor] = version.split(".").map(Number);
  if (major > minimumNode[0] || (major === minimumNode[0] && minor >= minimumNode[1])) return null;
  return {
    what: `Node.js ${version} is too old, tokenring needs ${minimumNode.join(".")} or newer`,
    cure: "install one from https://nodejs.org/en/download, or with nvm: nvm install 22",
  };
}

/** Null, or the fault of a system other than Linux. */
export function checkPlatform(platform = process.platform) {
  if (platform === "linux") return null;
  return {
    what: `tokenring runs on Linux, this is ${platform}`,
    cure: "use a Linux machine, container or virtual machine",
  };
}

/** Null, or the fault of a command that is missing from the PATH; `packageName` is Debian's. */
export function checkCommand(name, packageName = name, path = process.env.PATH || "") {
  if (findCommand(name, path) !== null) return null;
  return { what: `${name} is not on the PATH`, cure: installCommand([packageName], path) };
}

const probe = `#include <bit>
#include <concepts>
#include <span>
template <std::integral T> constexpr T twice(T x) { return x + x; }
int main() { int a[] = {1, 2}; return std::bit_cast<unsigned>(twice(std::span(a)[0])) == 2u ? 0 : 1; }
`;

/** The compiler that a build takes: $CXX, else g++, else clang++; null if there is none. */
export function findCompiler(environment = process.env) {
  const names = environment.CXX ? [environment.CXX] : ["g++", "clang++"];
  return names.find((name) => findCommand(name, environment.PATH || "") !== null) || null;
}

/**
 * Really compiles and links five lines of C++20.
 * @returns {{ compiler: string | null, version: string | null, fault: { what: string, cure: string } | null }}
 */
export function checkCompiler(environment = process.env) {
  const path = environment.PATH || "";
  const compiler = findCompiler(environment);
  if (compiler === null) {
    const what = environment.CXX
      ? `the C++ compiler CXX=${environment.CXX}`
      : "a C++ compiler (g++ or clang++)";
    return {
      compiler,
      version: null,
      fault: { what: `${what} is not on the PATH`, cure: installCommand(["g++"], path) },
    };
  }
  const run = (args) => spawnSync(compiler, args, { env: environment, encoding: "utf8", timeout: 60_000 });
  const version = (run(["-dumpfullversion", "-dumpversion"]).stdout || "").trim() || null;
  const folder = mkdtempSync(join(tmpdir(), "tokenring-probe-"));
  try {
    const source = join(folder, "probe.cc");
    writeFileSync(source, probe);
    const result = run(["-std=c++20", source, "-o", join(folder, "probe")]);
    if (result.status === 0) return { compiler, version, fault: null };
    const lines = `${result.stderr || ""}`.split("\n").filter((line) => line.trim() !== "");
    const said = result.error
      ? result.error.message
      : lines.find((line) => line.includes("error")) || lines[0] || "no message";
    return {
      compiler,
      version,
      fault: {
        what: `${compiler}${version ? ` ${version}` : ""} cannot compile C++20 (${said.trim()})`,
        cure: `${installCommand(["g++"], path)} (version 11 or newer; another one is chosen by CXX=g++-12)`,
      },
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The prefix whose include/node belongs to this very Node, or null: then node-gyp fetches the headers. */
export function findNodeHeaders(execPath = process.execPath, version = process.versions.node) {
  const prefix = dirname(dirname(realpathSync(execPath)));
  const folder = join(prefix, "include", "node");
  if (!existsSync(join(folder, "node_api.h")) || !existsSync(join(folder, "common.gypi"))) return null;
  try {
    const text = readFileSync(join(folder, "node_version.h"), "utf8");
    const major = /#define NODE_MAJOR_VERSION (\d+)/.exec(text);
    return major && major[1] === version.split(".")[0] ? prefix : null;
  } catch {
    return null;
  }
}

/** Runs `true` under bubblewrap as the local sandbox does. */
export function checkBubblewrap(path = process.env.PATH || "") {
  const bwrap = findCommand("bwrap", path);
  if (bwrap === null) {
    return {
      path: null,
      fault: { what: "bubblewrap is not installed", cure: installCommand(["bubblewrap"], path) },
    };
  }
  // Every namespace and mount that the sandbox of lib/sandbox asks for.
  const namespaces = ["user", "pid", "ipc", "uts", "net"].map((name) => `--unshare-${name}`);
  const mounts = "--ro-bind / / --dev /dev --proc /proc".split(" ");
  const args = [...mounts, ...namespaces, "--die-with-parent", "--new-session", "true"];
  const result = spawnSync(bwrap, args, { encoding: "utf8", timeout: 10_000 });
  if (result.status === 0) return { path: bwrap, fault: null };
  const said = (result.stderr || result.error?.message || `exit code ${result.status}`).trim().split("\n")[0];
  return {
    path: bwrap,
    fault: {
      what: `bubblewrap is installed but may not make namespaces here (${said})`,
      cure:
        "in a container, allow user namespaces; on Ubuntu 24.04: " +
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    },
  };
}

/** nvcc of $CUDA_HOME, of /usr/local/cuda or on the PATH; null if there is none. */
export function findNvcc(environment = process.env) {
  const homes = [environment.CUDA_HOME, "/usr/local/cuda"]
    .filter(Boolean)
    .map((home) => join(home, "bin", "nvcc"));
  return homes.find((file) => isExecutable(file)) || findCommand("nvcc", environment.PATH || "");
}
