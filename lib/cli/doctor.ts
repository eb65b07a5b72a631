// `tokenring doctor`: what this machine can do, why not the rest, and the cure for each.
import { execFile } from "node:child_process";
import { readdir, statfs } from "node:fs/promises";
import { arch, freemem, release, totalmem } from "node:os";
import { promisify } from "node:util";
import type { Command } from "commander";
import { isTokenringError } from "../errors.ts";
import type { Binding } from "../ops/binding.ts";
import { examples } from "./options.ts";

/** `fail`: the main job does not run without it. `limited`: it runs, with something missing. */
export type CheckStatus = "ok" | "limited" | "fail";

export interface Check {
  name: string;
  status: CheckStatus;
  /** What was found; for a fault, what is wrong. */
  found: string;
  /** What to do; null when there is nothing to do. */
  cure: string | null;
}

/** The parts of scripts/machine.mjs that are used here: set-up and doctor judge by the same checks. */
interface Machine {
  checkNode(): Fault | null;
  checkPlatform(): Fault | null;
  checkCommand(name: string, packageName?: string): Fault | null;
  checkCompiler(): { compiler: string | null; version: string | null; fault: Fault | null };
  checkBubblewrap(): { path: string | null; fault: Fault | null };
  findNvcc(): string | null;
}

interface Fault {
  what: string;
  cure: string;
}

function check(name: string, fault: Fault | null, found: string, severity: "limited" | "fail"): Check {
  if (fault === null) return { name, status: "ok", found, cure: null };
  return { name, status: severity, found: fault.what, cure: fault.cure };
}

const run = promisify(execFile);

/** The first thing like a version number that `command --version` prints; "" where it prints none. */
async function versionOf(command: string): Promise<string> {
  try {
    const { stdout } = await run(command, ["--version"], { timeout: 20_000 });
    return /\d+\.\d+(\.\d+)*/.exec(stdout)?.[0] ?? "";
  } catch {
    return "";
  }
}

const gibibytes = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function checkMemory(): Check {
  const found = `${gibibytes(totalmem())}, ${gibibytes(freemem())} of it free`;
  if (totalmem() >= 2 * 2 ** 30) return { name: "memory", status: "ok", found, cure: null };
  return { name: "memory", status: "limited", found, cure: "the demo wants 2 GiB: use a larger machine" };
}

const GIBIBYTE = 2 ** 30;

/** Bytes free for this user below `directory`; null where nobody can tell. */
async function freeBytes(directory: string): Promise<number | null> {
  return statfs(directory).then(
    ({ bavail, bsize }) => bavail * bsize,
    () => null,
  );
}

/** Where runs are written: one of the demo takes about 100 MiB. */
export async function checkDisk(directory = process.cwd()): Promise<Check> {
  const name = "disk";
  const free = await freeBytes(directory);
  if (free === null)
    return {
      name,
      status: "limited",
      found: `${directory} cannot be looked at`,
      cure: "go to another folder",
    };
  const found = `${gibibytes(free)} free for runs in ${directory}`;
  if (free >= GIBIBYTE) return { name, status: "ok", found, cure: null };
  const cure =
    "free some, or write runs elsewhere (--out): the demo takes 100 MiB, other jobs what their checkpoints take";
  return { name, status: "limited", found, cure };
}

/** Sandboxes lie in memory where there is enough of it. */
async function checkScratch(): Promise<Check> {
  const name = "scratch";
  const { defaultScratchParent } = await import("../sandbox/scratch.ts");
  const folder = defaultScratchParent();
  const free = (await freeBytes(folder)) ?? 0;
  const found = `sandboxes lie in ${folder}, ${gibibytes(free)} free`;
  if (folder === "/dev/shm") return { name, status: "ok", found, cure: null };
  const cure =
    "making one costs a fifth in memory: give /dev/shm 1 GiB and let it hold programs (docker run --shm-size=2g)";
  return { name, status: "limited", found, cure };
}

/** Where models come from. Asks the network for nothing. */
async function checkModels(): Promise<Check> {
  const name = "models";
  const { defaultCache } = await import("../policy/model-cache.ts");
  const { isOffline } = await import("../policy/model-source.ts");
  const cache = defaultCache();
  const models = await readdir(cache).catch(() => []);
  const held = models.filter((one) => one.startsWith("models--")).length;
  const found = `${held} in the cache ${cache}`;
  if (!isOffline()) return { name, status: "ok", found: `${found}, others from the hub`, cure: null };
  return {
    name,
    status: "limited",
    found: `${found}; HF_HUB_OFFLINE forbids to download others`,
    cure: "unset HF_HUB_OFFLINE, or name models by their folder (model.path)",
  };
}

/** Loads the addon, which is the proof that it was built for this machine. */
async function checkAddon(): Promise<{ check: Check; binding: Binding | null }> {
  try {
    const { loadBinding } = await import("../ops/native.ts");
    const binding = loadBinding();
    const { isa, amxFault } = binding.bf16();
    const bf16 = amxFault === null ? isa : `${isa}, slowly: ${amxFault}`;
    const found = `built; CPU backend: ${binding.isa}, bf16 by ${bf16}, ${binding.cores} cores`;
    return { check: { name: "addon", status: "ok", found, cure: null }, binding };
  } catch (error) {
    if (!isTokenringError(error)) throw error;
    // The message of the loader ends in the cure that fits its cause.
    return {
      check: { name: "addon", status: "fail", found: "not usable", cure: error.message },
      binding: null,
    };
  }
}

async function checkNvcc(machine: Machine): Promise<Check> {
  const nvcc = machine.findNvcc();
  const cure = "for kernels only: install the CUDA toolkit, https://developer.nvidia.com/cuda-downloads";
  if (nvcc === null) return { name: "nvcc", status: "limited", found: "not found", cure };
  return { name: "nvcc", status: "ok", found: `${await versionOf(nvcc)} (${nvcc})`, cure: null };
}

function checkCuda(binding: Binding | null): Check {
  const name = "CUDA";
  if (binding === null) {
    return {
      name,
      status: "limited",
      found: "not known: the addon asks the driver",
      cure: "build the addon",
    };
  }
  const { devices, reason } = binding.cuda();
  const found = devices.map((device) => `${device.name} (${gibibytes(device.memoryBytes)})`).join(", ");
  if (reason === null) return { name, status: "ok", found, cure: null };
  return {
    name,
    status: "limited",
    found: found === "" ? reason : `${found}; ${reason}`,
    cure: 'needed for device "cuda" alone',
  };
}

/** Opens a sandbox as a job would. */
async function checkSandbox(): Promise<Check> {
  const name = "sandbox";
  const { probeSandboxes } = await import("../sandbox/local.ts");
  try {
    const { kind, weaker, groups } = await probeSandboxes();
    const counted = Object.entries(groups).flatMap(([what, there]) => (there ? [what] : []));
    const by =
      counted.length > 0 ? `, ${counted.join(" and ")} limited by control groups` : ", limits by process";
    if (weaker === null) return { name, status: "ok", found: kind + by, cure: null };
    return { name, status: "limited", found: kind + by, cure: weaker };
  } catch (error) {
    if (!isTokenringError(error)) throw error;
    return { name, status: "fail", found: "none that isolates works here", cure: error.message };
  }
}

/** Looks at everything; takes about a second, because compiler and sandbox are really tried. */
export async function examine(): Promise<Check[]> {
  // The same path from lib/cli and from dist/cli.
  const url = new URL("../../scripts/machine.mjs", import.meta.url).href;
  const machine = (await import(url)) as Machine;
  const compiler = machine.checkCompiler();
  const bubblewrap = machine.checkBubblewrap();
  const addon = await checkAddon();
  const versions = await Promise.all(["npm", "git", "make", "python3", "bwrap"].map(versionOf));
  const [npm = "", git = "", make = "", python = "", bwrap = ""] = versions;
  return [
    check("system", machine.checkPlatform(), `${process.platform} ${release()} ${arch()}`, "fail"),
    check("Node.js", machine.checkNode(), process.versions.node, "fail"),
    check("npm", machine.checkCommand("npm"), npm, "fail"),
    check("git", machine.checkCommand("git"), git, "fail"),
    check("python3", machine.checkCommand("python3"), python, "fail"),
    check("make", machine.checkCommand("make"), make, "fail"),
    check("compiler", compiler.fault, `${compiler.compiler} ${compiler.version}, compiles C++20`, "fail"),
    addon.check,
    checkMemory(),
    await checkDisk(),
    await checkScratch(),
    check("bubblewrap", bubblewrap.fault, `${bwrap}, makes namespaces`, "limited"),
    await checkSandbox(),
    await checkNvcc(machine),
    checkCuda(addon.binding),
    await checkModels(),
  ];
}

const marks: Record<CheckStatus, string> = { ok: "ok", limited: "--", fail: "NO" };

/** One line a check, its cure below it; then what follows for the user. */
export function renderChecks(checks: readonly Check[]): string {
  const width = Math.max(...checks.map(({ name }) => name.length));
  const lines = checks.flatMap(({ name, status, found, cure }) => {
    const line = `${marks[status]}  ${name.padEnd(width)}  ${found}`;
    return cure === null ? [line] : [line, `${" ".repeat(width + 6)}${cure}`];
  });
  const named = (status: CheckStatus) => checks.filter((one) => one.status === status).map((one) => one.name);
  const failing = named("fail");
  const limited = named("limited");
  lines.push("");
  if (failing.length > 0)
    lines.push(`The main job cannot run here before these are cured: ${failing.join(", ")}.`);
  else lines.push("The main job runs here: npm run demo.");
  if (limited.length > 0) lines.push(`It goes without: ${limited.join(", ")}.`);
  return `${lines.join("\n")}\n`;
}

export function register(program: Command): void {
  const command = program
    .command("doctor")
    .description("what this machine can do, why not the rest, and the cure for each")
    .option("--json", "the same as JSON on stdout")
    .action(async (options: { json?: boolean }) => {
      const checks = await examine();
      const ok = checks.every(({ status }) => status !== "fail");
      process.stdout.write(
        options.json ? `${JSON.stringify({ ok, checks }, null, 2)}\n` : renderChecks(checks),
      );
      if (!ok) process.exitCode = 1;
    });
  examples(
    command,
    [
      ["tokenring doctor", "ok: there; --: the main job runs without; NO: it does not"],
      ["tokenring doctor --json", "for programs"],
    ],
    "The exit code is 1 if something is missing without which the main job cannot run.",
  );
}
