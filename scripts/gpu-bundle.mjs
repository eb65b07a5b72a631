// `npm run gpu:bundle`: packs what checks and measures tokenring on a GPU node that reaches nothing, into
// build/tokenring-gpu-VERSION-linux-ARCH.tar.xz: this Node, the addon, the CUDA module and its sweep, the compiled
// JavaScript with the packages that it needs, and gpu/. docs/gpu-node.md says how it is used there, and goes with it.
// With --folder PATH it only lays the files there, without an archive.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { findCommand, findNvcc, installCommand } from "./machine.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const most = 60e6; // bytes that such a node's door lets through

class BundleFault extends Error {}

function version(command, args) {
  const told = spawnSync(command, args, { encoding: "utf8", timeout: 30_000, cwd: root });
  return told.status === 0 ? told.stdout.trim() : null;
}

/** Copies a file or folder of the checkout to the same place of the bundle. */
function carry(to, path, filter = () => true) {
  const from = join(root, path);
  if (!fs.existsSync(from)) throw new BundleFault(`${path} is missing: npm run gpu:bundle makes it first`);
  fs.cpSync(from, join(to, path), { recursive: true, dereference: true, filter });
}

/** Packages that the library needs at run time, as the lockfile has them. */
function packages() {
  const lock = JSON.parse(fs.readFileSync(join(root, "package-lock.json"), "utf8"));
  return Object.entries(lock.packages)
    .filter(([place, about]) => place !== "" && !about.dev && !about.devOptional)
    .map(([place]) => place)
    .filter((place) => fs.existsSync(join(root, place)));
}

/** What a program loads and a licence asks for; not types, maps, sources and tests. */
function isNeeded(path) {
  return !/\.(d\.[cm]?ts|ts|map|flow|markdown)$|\/(test|tests|docs|examples?|\.github)$/.test(path);
}

function filesBelow(folder) {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? filesBelow(path) : [path];
  });
}

function lay(to) {
  fs.rmSync(to, { recursive: true, force: true });
  fs.mkdirSync(join(to, "bin"), { recursive: true });
  fs.copyFileSync(process.execPath, join(to, "bin", "node"));
  const licence = join(dirname(process.execPath), "..", "LICENSE");
  if (fs.existsSync(licence)) fs.copyFileSync(licence, join(to, "bin", "LICENSE"));
  for (const file of ["tokenring.node", "tokenring_sandbox", "tokenring_ops.so"])
    carry(to, join("build", "Release", file));
  for (const file of ["tokenring_cuda.so", "tokenring_sweep.so"]) carry(to, join("build", "cuda", file));
  carry(to, "dist", isNeeded);
  for (const place of packages()) carry(to, place, isNeeded);
  for (const path of ["recipes", "scripts/machine.mjs", "package.json", "LICENSE"]) carry(to, path);
  carry(to, "gpu", (path) => !/__pycache__|run\.sh$/.test(path));
  fs.copyFileSync(join(root, "gpu", "run.sh"), join(to, "run.sh"));
  fs.copyFileSync(join(root, "docs", "gpu-node.md"), join(to, "README.md"));
  const files = filesBelow(to);
  const sums = files.map((file) => [
    relative(to, file),
    createHash("sha256").update(fs.readFileSync(file)).digest("hex"),
  ]);
  const { version: own } = JSON.parse(fs.readFileSync(join(root, "package.json"), "utf8"));
  const nvcc = findNvcc();
  const manifest = {
    version: own,
    commit: version("git", ["rev-parse", "HEAD"]),
    changed: version("git", ["status", "--porcelain", "--untracked-files=no"]) !== "",
    node: process.version,
    nvcc: nvcc && (version(nvcc, ["--version"])?.match(/V[\d.]+/)?.[0] ?? null),
    files: Object.fromEntries(sums.sort()),
  };
  fs.writeFileSync(join(to, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  return files.reduce((sum, file) => sum + fs.statSync(file).size, 0);
}

function pack(folder, archive) {
  const missing = ["tar", "xz"].filter((command) => findCommand(command) === null);
  if (missing.length > 0)
    throw new BundleFault(
      `${missing.join(" and ")} not found: ${installCommand(missing.map((name) => (name === "xz" ? "xz-utils" : name)))}`,
    );
  const plain = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
  const args = [...plain, "-cJf", archive, "-C", dirname(folder), basename(folder)];
  const told = spawnSync("tar", args, {
    env: { ...process.env, XZ_OPT: "-6 -T0" },
    encoding: "utf8",
    timeout: 60 * 60_000,
  });
  if (told.status !== 0) throw new BundleFault(`tar failed: ${told.stderr || told.error?.message}`);
}

function main() {
  const at = process.argv.indexOf("--folder");
  const { version: own } = JSON.parse(fs.readFileSync(join(root, "package.json"), "utf8"));
  const name = `tokenring-gpu-${own}-linux-${process.arch}`;
  const folder = at < 0 ? join(root, "build", "bundle", name) : process.argv[at + 1];
  if (!folder) throw new BundleFault("--folder takes a path");
  const bytes = lay(folder);
  console.log(`gpu:bundle: ${(bytes / 1e6).toFixed(0)} MB in ${relative(process.cwd(), folder) || folder}`);
  if (at >= 0) return;
  const archive = join(root, "build", `${name}.tar.xz`);
  pack(folder, archive);
  const size = fs.statSync(archive).size;
  console.log(`gpu:bundle: ${relative(process.cwd(), archive)}, ${(size / 1e6).toFixed(1)} MB`);
  if (size > most) throw new BundleFault(`the archive has more than ${most / 1e6} MB; leave something out`);
}

try {
  main();
} catch (error) {
  console.error(`gpu:bundle: ${error instanceof BundleFault ? error.message : error.stack}`);
  process.exitCode = 1;
}
