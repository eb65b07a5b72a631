// Brings a checkout to the state that `npm run demo` and `npm test` need, and does nothing if it is there already.
//   node scripts/setup.mjs --for demo|test|build|bundle|check
// Stages: machine, packages, bubblewrap, native code, TypeScript. Every fault ends in one line that says what to do.
// No dependencies, and syntax that an old Node can still read, because this runs before anything is installed.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import os from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import * as machine from "./machine.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const state = join(root, "build", "setup");
const minute = 60_000;

/** What each purpose needs beyond a machine that is fit. */
const purposes = {
  demo: { bubblewrap: true, native: "addon", dist: true },
  test: { bubblewrap: true, native: "all", dist: true },
  build: { bubblewrap: false, native: "addon", dist: true },
  bundle: { bubblewrap: false, native: "bundle", dist: true },
  check: { bubblewrap: false, native: null, dist: false },
};

/** A fault that the user can cure. Its message is all that is printed. */
class SetupFault extends Error {}

function say(line) {
  process.stderr.write(`tokenring setup: ${line}\n`);
}

// --- reading the state of the checkout ------------------------------------------------------------------------

/** Files below `folder` whose names pass, with size and time of change; folders that are missing hold none. */
function listFiles(folder, passes) {
  let entries = [];
  try {
    entries = fs.readdirSync(join(root, folder), { withFileTypes: true });
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  return entries.flatMap((entry) => {
    const name = join(folder, entry.name);
    if (entry.isDirectory()) return listFiles(name, passes);
    return passes(entry.name) ? [name] : [];
  });
}

/** Changes whenever one of the files is added, removed or written, or the checkout moves. */
function fingerprint(files) {
  const hash = createHash("sha256").update(`${root} ${process.arch}\n`);
  for (const file of [...files].sort()) {
    const stat = fs.statSync(join(root, file));
    hash.update(`${file} ${stat.size} ${stat.mtimeMs}\n`);
  }
  return hash.digest("hex");
}

function readStamp(name) {
  try {
    return fs.readFileSync(join(state, name), "utf8");
  } catch {
    return null;
  }
}

function writeStamp(name, value) {
  fs.mkdirSync(state, { recursive: true });
  fs.writeFileSync(join(state, name), value);
}

// --- running a stage -------------------------------------------------------------------------------------------

/**
 * Runs a program with its output in a log file, which every stage of the same name starts anew unless `append`.
 * @returns {Promise<{ ok: boolean, output: string }>} rejects with a SetupFault past the deadline
 */
function run(stage, program, args, { deadline, append = false, environment = {}, onLine = () => {} }) {
  const log = join(state, `${stage}.log`);
  fs.mkdirSync(state, { recursive: true });
  const file = fs.openSync(log, append ? "a" : "w");
  fs.writeSync(file, `$ ${program} ${args.join(" ")}\n`);
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: root,
      env: { ...process.env, ...environment },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: deadline,
      killSignal: "SIGKILL",
    });
    let output = "";
    child.stdout.setEncoding("utf8");
    child.stderr.setEncoding("utf8");
    const take = (chunk) => {
      output += chunk;
      fs.writeSync(file, chunk);
      for (const line of chunk.split("\n")) onLine(line);
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.on("error", (error) => reject(new SetupFault(`${program} could not be started: ${error.message}`)));
    child.on("close", (code, signal) => {
      fs.closeSync(file);
      if (signal === "SIGKILL") {
        const why = `${stage} was killed: it ran past ${deadline / minute} minutes, or the machine ran out of memory`;
        reject(
          new SetupFault(
            `${why}. Its output is in ${relative(process.cwd(), log) || log}; start the command again`,
          ),
        );
      } else {
        resolve({ ok: code === 0, output });
      }
    });
  });
}

/** The last lines of what a program said, indented. */
function tail(output, lines = 30) {
  return output
    .trimEnd()
    .split("\n")
    .slice(-lines)
    .map((line) => `    ${line}`)
    .join("\n");
}

/** Prints `title`, runs the stage, and prints how long it took. */
async function stage(title, work) {
  const started = Date.now();
  const fancy = process.stderr.isTTY;
  const head = `tokenring setup: ${title} …`;
  process.stderr.write(fancy ? head : `${head}\n`);
  const note = (text) => {
    if (fancy) process.stderr.write(`\r\x1b[2K${head} ${text}`);
  };
  try {
    await work(note);
  } catch (error) {
    if (fancy) process.stderr.write("\n");
    throw error;
  }
  const seconds = ((Date.now() - started) / 1000).toFixed(1);
  process.stderr.write(
    fancy ? `\r\x1b[2K${head} ${seconds} s\n` : `tokenring setup: ${title}: ${seconds} s\n`,
  );
}

/** Runs `work` while no other setup of this checkout does; a lock whose owner is gone is taken over. */
async function exclusively(work) {
  const lock = join(state, "lock");
  const deadline = Date.now() + 30 * minute;
  fs.mkdirSync(state, { recursive: true });
  for (let told = false; ; ) {
    try {
      fs.writeFileSync(lock, `${process.pid}`, { flag: "wx" });
      break;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
    }
    const owner = Number(readStamp("lock"));
    if (owner > 0 && !isAlive(owner)) {
      fs.rmSync(lock, { force: true });
      continue;
    }
    if (Date.now() > deadline) {
      throw new SetupFault(
        `process ${owner} has been setting up this checkout for 30 minutes: end it, or delete ${lock}`,
      );
    }
    if (!told) say(`waiting for process ${owner}, which is setting up this checkout`);
    told = true;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  try {
    return await work();
  } finally {
    fs.rmSync(lock, { force: true });
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

// --- the stages ------------------------------------------------------------------------------------------------

/** Whether node_modules holds every package of the lockfile in its version (npm keeps its own record there). */
export function packagesAreCurrent(lockText, installedText) {
  const wanted = JSON.parse(lockText).packages;
  const installed = JSON.parse(installedText).packages;
  return Object.keys(wanted).every((path) => {
    if (path === "" || (wanted[path].optional && !installed[path])) return true;
    return installed[path] !== undefined && installed[path].version === wanted[path].version;
  });
}

async function installPackages() {
  try {
    const read = (name) => fs.readFileSync(join(root, name), "utf8");
    const installed = read("node_modules/.package-lock.json");
    // npm's record outlives folders that somebody deleted.
    const there = Object.keys(JSON.parse(installed).packages).every((path) =>
      fs.existsSync(join(root, path)),
    );
    if (there && packagesAreCurrent(read("package-lock.json"), installed)) return;
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  await stage("installing packages (npm ci)", async () => {
    // None of the packages needs its install script; --include=dev because NODE_ENV may say production.
    const args = ["ci", "--include=dev", "--ignore-scripts", "--no-audit", "--no-fund"];
    const result = await run("npm-ci", "npm", args, { deadline: 15 * minute });
    if (result.ok) return;
    const errors = result.output.split("\n").filter((line) => /^npm (error|ERR!) \S/.test(line));
    const cure = /EUSAGE/.test(result.output)
      ? "package.json and package-lock.json disagree: npm install brings them together"
      : "Check that this machine reaches the npm registry (npm ping; behind a proxy: npm config set proxy URL), " +
        "then start the command again";
    throw new SetupFault(
      `npm ci failed:\n${tail(errors.slice(0, 10).join("\n") || result.output, 12)}\n${cure}`,
    );
  });
}

async function installBubblewrap() {
  if (machine.findCommand("bwrap") !== null) return;
  const cure = machine.installCommand(["bubblewrap"]);
  const fallback = `Until then agents' commands are confined by our own namespaces, else by Landlock, where the kernel lets us, or refused. To install it: ${cure}`;
  const mayTry =
    machine.isRoot() && machine.findCommand("apt-get") !== null && readStamp("no-bubblewrap") === null;
  if (mayTry) {
    await stage("installing bubblewrap (apt-get)", async () => {
      const environment = { DEBIAN_FRONTEND: "noninteractive" };
      const apt = (args, append) =>
        run("bubblewrap", "apt-get", args, { deadline: 5 * minute, append, environment });
      const install = ["install", "-y", "--no-install-recommends", "bubblewrap"];
      if ((await apt(install, false)).ok) return;
      await apt(["update"], true);
      await apt(install, true);
    });
    if (machine.findCommand("bwrap") !== null) return;
    // Not tried again at every start; `rm -r build/setup` forgets it.
    writeStamp("no-bubblewrap", "apt-get install bubblewrap failed\n");
  }
  say(`bubblewrap is missing. ${fallback}`);
}

/** Where node-gyp lies: our own one in a checkout, npm's one where tokenring is installed as a package. */
function findNodeGyp() {
  const own = join(root, "node_modules", "node-gyp", "bin", "node-gyp.js");
  const npm = machine.findCommand("npm");
  const bundled =
    npm && join(dirname(dirname(fs.realpathSync(npm))), "node_modules", "node-gyp", "bin", "node-gyp.js");
  const found = [own, bundled].find((file) => file && fs.existsSync(file));
  if (found) return found;
  throw new SetupFault(
    "node-gyp is missing: npm ci installs it (delete node_modules and start the command again)",
  );
}

/** By scope; their files lie in build/Release. */
const addonFiles = ["tokenring.node", "tokenring_sandbox"];
const nativeFiles = {
  addon: addonFiles,
  bundle: [...addonFiles, "tokenring_ops.so"],
  all: [
    ...addonFiles,
    "tokenring_ops.so",
    "tokenring_emulated.so",
    "tokenring_nccl_double.node",
    "tokenring_test",
  ],
};

async function buildNative(scope) {
  const isSource = (name) => /\.(cc|h|inc)$/.test(name);
  const sources = [...listFiles("native", isSource), "binding.gyp", "scripts/native-sources.mjs"];
  if (scope === "all") sources.push(...listFiles("test/native", isSource));
  const current = fingerprint(sources);
  const products = nativeFiles[scope].map((file) => join("build", "Release", file));
  if (readStamp(`native-${scope}`) === current && products.every((file) => fs.existsSync(join(root, file))))
    return;

  const compiler = machine.checkCompiler();
  if (compiler.fault) throw new SetupFault(machine.faultLine(compiler.fault));
  const environment = { CXX: compiler.compiler };
  const headers = machine.findNodeHeaders();
  const gyp = [findNodeGyp(), ...(headers ? [`--nodedir=${headers}`] : [])];
  // g++ takes up to 1 GiB a file.
  const jobs = Math.max(1, Math.min(os.availableParallelism(), Math.floor(os.totalmem() / 2 ** 30)));

  const what = scope === "all" ? "the addon and its C++ tests" : "the addon";
  await stage(`building ${what} with ${compiler.compiler} ${compiler.version} (-j ${jobs})`, async (note) => {
    const configured = await run("native", process.execPath, [...gyp, "configure"], {
      deadline: 5 * minute,
      environment,
    });
    if (!configured.ok) {
      throw new SetupFault(
        `node-gyp configure failed:\n${tail(configured.output)}\n` +
          (headers
            ? "See the lines above"
            : "If it could not fetch Node's headers: install Node from nodejs.org, which brings them"),
      );
    }
    let files = 0;
    const onLine = (line) => {
      if (/^\s*CXX\(target\)/.test(line)) note(`${++files} files`);
    };
    const targets = scope === "all" ? [] : nativeFiles[scope].map((file) => file.replace(/\.\w+$/, ""));
    const args = [...gyp, "build", "--jobs", `${process.env.JOBS || jobs}`, ...targets];
    const built = await run("native", process.execPath, args, {
      deadline: 30 * minute,
      append: true,
      environment,
      onLine,
    });
    if (built.ok) return;
    const errors = built.output.split("\n").filter((line) => /\berror\b|undefined reference/.test(line));
    const memory = /Killed|cc1plus.*(signal|internal)/.test(built.output);
    throw new SetupFault(
      `the native build failed:\n${tail(errors.length > 0 ? errors.slice(0, 20).join("\n") : built.output)}\n` +
        `The whole log is in ${relative(process.cwd(), join(state, "native.log"))}. ` +
        (memory
          ? "The compiler ran out of memory: start again with JOBS=1"
          : "Needed: g++ 11 or clang 14, or newer (CXX chooses one)"),
    );
  });
  writeStamp(`native-${scope}`, current);
  if (scope === "all")
    for (const part of ["addon", "bundle"])
      writeStamp(`native-${part}`, fingerprint(sources.filter((file) => !file.startsWith("test/"))));
}

async function buildDist() {
  // bench/ imports the library as a user does, by its name: from the dist that is compiled first.
  const programs = [
    { folder: "lib", config: "tsconfig.json", target: "dist", files: listFiles("lib", () => true) },
    {
      folder: "bench",
      config: "tsconfig.bench.json",
      target: join("dist", "bench"),
      files: listFiles("bench", (name) => /\.(ts|py|mjs)$/.test(name)),
    },
  ];
  const sources = programs.flatMap(({ config, files }) => [config, ...files]);
  const current = fingerprint(sources);
  if (readStamp("dist") === current && fs.existsSync(join(root, "dist"))) return;
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  await stage("compiling TypeScript", async () => {
    for (const { folder, config } of programs) {
      const result = await run("dist", process.execPath, [tsc, "-p", config], { deadline: 5 * minute });
      if (!result.ok)
        throw new SetupFault(
          `tsc found errors in ${folder}/:\n${tail(result.output, 40)}\nCorrect these lines`,
        );
    }
    // What is not TypeScript (templates, pages) is copied; what lost its source goes.
    const products = new Set();
    for (const { folder, target, files } of programs) {
      for (const file of files) {
        const product = join(target, relative(folder, file));
        const stem = product.replace(/\.ts$/, "");
        if (stem !== product) {
          for (const end of [".js", ".js.map", ".d.ts", ".d.ts.map"]) products.add(stem + end);
        } else {
          products.add(product);
          fs.mkdirSync(dirname(join(root, product)), { recursive: true });
          fs.copyFileSync(join(root, file), join(root, product));
        }
      }
    }
    for (const file of listFiles("dist", () => true)) if (!products.has(file)) fs.rmSync(join(root, file));
    const command = join(root, "dist", "cli", "main.js");
    if (fs.existsSync(command)) fs.chmodSync(command, 0o755);
  });
  writeStamp("dist", current);
}

export async function setup(purpose) {
  const needs = purposes[purpose];
  if (needs === undefined) {
    throw new SetupFault(`--for takes ${Object.keys(purposes).join(", ")}; got ${purpose}`);
  }
  // All at once, so that the user need not come back for each.
  const faults = [
    machine.checkPlatform(),
    machine.checkNode(),
    ...["npm", "git", "make", "python3"].map((name) => machine.checkCommand(name)),
    needs.native && machine.findCompiler() === null ? machine.checkCompiler().fault : null,
  ].filter((fault) => fault !== null);
  if (faults.length > 0) throw new SetupFault(faults.map(machine.faultLine).join("\n"));
  await exclusively(async () => {
    // As an installed package, tokenring brings its dist and lies in a node_modules that is not its own.
    const checkout = fs.existsSync(join(root, "package-lock.json"));
    if (checkout) await installPackages();
    if (needs.bubblewrap) await installBubblewrap();
    if (needs.native) await buildNative(needs.native);
    if (needs.dist && checkout) await buildDist();
  });
}

if (process.argv[1] && fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const at = process.argv.indexOf("--for");
  setup(at < 0 ? "build" : process.argv[at + 1]).catch((error) => {
    const text = error instanceof SetupFault ? error.message : error.stack;
    for (const line of text.split("\n")) say(line);
    process.exitCode = 1;
  });
}
