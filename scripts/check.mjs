// `npm run check`: Biome, clang-format and the types of everything, tests and scripts included.
// With --write (`npm run format`) the two formatters correct the files instead.
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { findCommand, installCommand } from "./machine.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const write = process.argv.includes("--write");
const modules = join(root, "node_modules");

function run(program, args, options = {}) {
  return spawnSync(program, args, { cwd: root, stdio: "inherit", timeout: 5 * 60_000, ...options });
}

/** The major version that the C++ files are formatted with: another one formats differently. */
const clangFormatMajor = "14";

function clangFormat() {
  const name = [`clang-format-${clangFormatMajor}`, "clang-format"].find(
    (command) => findCommand(command) !== null,
  );
  if (name === undefined) {
    console.error(`clang-format is not on the PATH: ${installCommand(["clang-format"])}`);
    return false;
  }
  const version = run(name, ["--version"], { stdio: "pipe", encoding: "utf8" }).stdout.trim();
  if (!version.includes(`version ${clangFormatMajor}.`)) {
    console.error(
      `clang-format ${clangFormatMajor} is needed, as in Debian 12; this is "${version}". ` +
        `Install it: ${installCommand([`clang-format-${clangFormatMajor}`])}, or pip install clang-format==14.0.6`,
    );
    return false;
  }
  const listed = run(
    "git",
    ["ls-files", "--cached", "--others", "--exclude-standard", "*.cc", "*.h", "*.cu", "*.cuh"],
    {
      stdio: "pipe",
      encoding: "utf8",
    },
  );
  const files = listed.stdout.split("\n").filter((file) => file !== "");
  return (
    files.length === 0 || run(name, [...(write ? ["-i"] : ["--dry-run", "--Werror"]), ...files]).status === 0
  );
}

const node = (script, ...args) => run(process.execPath, [join(modules, script), ...args]).status === 0;
const checks = [
  [
    "Biome",
    () => node("@biomejs/biome/bin/biome", "check", "--error-on-warnings", ...(write ? ["--write"] : [])),
  ],
  ["clang-format", clangFormat],
  ["types", () => write || node("typescript/bin/tsc", "-p", "tsconfig.check.json")],
];
const failed = checks.filter(([, passes]) => !passes()).map(([name]) => name);
console.error(failed.length === 0 ? "check: all passed" : `check: failed: ${failed.join(", ")}`);
process.exitCode = failed.length === 0 ? 0 : 1;
