// The backend for this machine. bubblewrap where it works; where it does not, a plain shell, and a loud word about it.
import { chmodSync, chownSync, existsSync, mkdirSync, realpathSync, rmSync } from "node:fs";
import { TokenringError } from "../errors.ts";
import { type Base, BaseStore } from "./base.ts";
import { BASE_INSIDE, bubblewrapPlan } from "./bubblewrap.ts";
import { sandboxAborted, sandboxBroken } from "./errors.ts";
import { findProgram, findPython, type Python } from "./host.ts";
import { Launcher, type LaunchPlan, type Slot } from "./launcher.ts";
import { limitCommand, resolveLimits } from "./limits.ts";
import { LocalSandbox } from "./local-sandbox.ts";
import { RESIDENT_SCRIPT, ResidentShell } from "./resident-shell.ts";
import { createScratch, defaultScratchParent, removeStaleScratch } from "./scratch.ts";
import { type Owner, removeTree, type TreeSize } from "./tree.ts";
import type { Sandbox, SandboxBackend, SandboxLimits, SandboxSpec } from "./types.ts";
import { PathMapping, unsafeHostPlan } from "./unsafe-host.ts";

export type LocalKind = "bubblewrap" | "unsafe-host";

export interface LocalBackendOptions {
  /** Left out: bubblewrap, or unsafe-host where that does not work. Named: that kind or an error. */
  kind?: LocalKind;
  /** Host directory below which sandboxes lie; default is memory (/dev/shm) where there is enough, else the temporary one. */
  directory?: string;
  limits?: Partial<SandboxLimits>;
  /** Told once, in one line, what is weaker than it should be and how to cure it. Default: a process warning. */
  onWarning?: (message: string) => void;
}

/** An id that Debian reserves and gives to nobody: whom sandboxes run as when the host process is root. */
const SANDBOX_UID = 65_533;
const DEFAULT_WORKDIR = "/repo";

const CURE =
  "install bubblewrap (`apt-get install bubblewrap`, 0.5 or newer) and allow unprivileged user namespaces";

interface Tools {
  bash: string;
  git: string;
  python: Python | null;
}

interface Way {
  kind: LocalKind;
  plan: LaunchPlan;
  countProcesses: boolean;
}

/**
 * Opens the local backend: finds out by really starting a sandbox what works here.
 * @throws ERR_TOKENRING_SANDBOX when nothing does, or the kind that was asked for does not.
 */
export async function localBackend(options: LocalBackendOptions = {}): Promise<SandboxBackend> {
  const warn = options.onWarning ?? ((message) => process.emitWarning(message, "TokenringWarning"));
  const limits = resolveLimits(options.limits);
  const parent = options.directory ?? defaultScratchParent();
  await removeStaleScratch(parent);
  const scratch = createScratch(parent);
  try {
    for (const [name, mode] of [
      ["slots", 0o711],
      ["bases", 0o755],
      ["bases/none", 0o755],
      ["snapshots", 0o700],
    ] as const) {
      mkdirSync(`${scratch}/${name}`);
      chmodSync(`${scratch}/${name}`, mode);
    }
    const tools: Tools = {
      bash: requireProgram("bash"),
      git: requireProgram("git"),
      python: await findPython(),
    };
    requireProgram("mkfifo");
    const { way, launcher, failure } = await findWay(options.kind, scratch, tools, limits);
    const weaker = weaknesses(way, options.kind, failure);
    if (weaker) warn(weaker);
    return new LocalBackend(scratch, way, launcher, tools, limits);
  } catch (error) {
    await removeTree(scratch);
    throw error;
  }
}

function requireProgram(name: string): string {
  const path = findProgram(name);
  if (path) return path;
  const source = name === "mkfifo" ? "coreutils" : name;
  throw sandboxBroken(`Sandboxes need ${name} on the host: apt-get install ${source}.`);
}

async function findWay(
  kind: LocalKind | undefined,
  scratch: string,
  tools: Tools,
  limits: SandboxLimits,
): Promise<{ way: Way; launcher: Launcher; failure: string }> {
  let failure = "";
  let firstSlot = 0;
  for (const way of ways(kind, scratch, tools)) {
    if (typeof way === "string") {
      failure ||= way;
      continue;
    }
    const launcher = new Launcher(scratch, way.plan, tools.bash, firstSlot);
    try {
      await tryOut(launcher, way, limits);
      return { way, launcher, failure };
    } catch (error) {
      failure ||= (error as Error).message;
      firstSlot = launcher.nextSlot;
      launcher.stop();
    }
  }
  const cure = kind === "unsafe-host" ? "apt-get install util-linux coreutils" : CURE;
  throw sandboxBroken(`No sandbox works here: ${failure} To cure it: ${cure}.`);
}

/** What to try, best first; a string says why a way is not there. */
function* ways(kind: LocalKind | undefined, scratch: string, tools: Tools): Generator<Way | string> {
  const root = process.getuid?.() === 0;
  const common = { scratch, bash: tools.bash, python: tools.python, script: RESIDENT_SCRIPT };
  if (kind !== "unsafe-host") {
    const bwrap = findProgram("bwrap");
    if (!bwrap) yield "bubblewrap (the program bwrap) is not installed.";
    else {
      const users: (Owner | undefined)[] = root
        ? [{ uid: SANDBOX_UID, gid: SANDBOX_UID }, undefined]
        : [undefined];
      for (const user of users) {
        const plan = bubblewrapPlan({ ...common, bwrap, user });
        yield { kind: "bubblewrap", plan, countProcesses: true };
      }
      // Before Linux 5.14 the count is that of all the user's processes, which may be many.
      if (!root) {
        const plan = bubblewrapPlan({ ...common, bwrap, user: undefined });
        yield { kind: "bubblewrap", plan, countProcesses: false };
      }
    }
  }
  if (kind !== "bubblewrap") {
    const setpriv = findProgram("setpriv");
    const setsid = findProgram("setsid");
    if (!setpriv || !setsid) yield "setpriv and setsid are not installed.";
    else
      yield {
        kind: "unsafe-host",
        plan: unsafeHostPlan({ ...common, setpriv, setsid, root }),
        countProcesses: root,
      };
  }
}

async function tryOut(launcher: Launcher, way: Way, limits: SandboxLimits): Promise<void> {
  const slot = await launcher.acquire();
  makeFolder(slot, "repo");
  makeFolder(slot, "tmp");
  // The subshell finds out whether the limits leave room to start a process at all; the rest, whether the folder can be
  // reached from above and written to.
  const prelude = `${limitCommand(limits, way.countProcesses)} && ( : ) && cd -- "$PWD" && : >probe`;
  const shell = await ResidentShell.start(launcher, slot, {
    base: "none",
    workdir: DEFAULT_WORKDIR,
    prelude,
  });
  const clean = await shell.kill();
  await removeTree(`${slot.directory}/repo`);
  await removeTree(`${slot.directory}/tmp`);
  if (clean) launcher.release(slot);
}

function makeFolder(slot: Slot, name: string): void {
  const path = `${slot.directory}/${name}`;
  mkdirSync(path, 0o700);
  if (slot.owner) chownSync(path, slot.owner.uid, slot.owner.gid);
}

function weaknesses(way: Way, asked: LocalKind | undefined, failure: string): string | null {
  if (way.kind === "unsafe-host") {
    const why = asked === undefined ? ` because bubblewrap does not work here (${failure})` : "";
    return (
      `Sandboxes run WITHOUT ISOLATION (unsafe-host)${why}: commands of the agent can read the host's files, use the ` +
      `network${way.countProcesses ? "" : ", act with all rights of this user"} and see other processes. ` +
      `To cure it, ${CURE}.`
    );
  }
  if (!way.countProcesses || (process.getuid?.() === 0 && way.plan.user === undefined)) {
    return (
      "Sandboxes run in bubblewrap, but the number of their processes is not limited: " +
      "use Linux 5.14 or newer, and a directory for sandboxes that other users may pass through."
    );
  }
  return null;
}

/** Backends that are open; one listener for all cleans up what a leaving process has left. */
const open = new Set<LocalBackend>();

function onProcessExit(): void {
  for (const backend of open) backend.abandon();
}

class LocalBackend implements SandboxBackend {
  readonly name: LocalKind;
  readonly #scratch: string;
  readonly #way: Way;
  readonly #tools: Tools;
  readonly #limits: SandboxLimits;
  readonly #bases: BaseStore;
  readonly #sandboxes = new Set<LocalSandbox>();
  #launcher: Launcher;
  #snapshots = 0;
  #disposing: Promise<void> | undefined;

  constructor(scratch: string, way: Way, launcher: Launcher, tools: Tools, limits: SandboxLimits) {
    this.name = way.kind;
    this.#scratch = scratch;
    this.#way = way;
    this.#launcher = launcher;
    this.#tools = tools;
    this.#limits = limits;
    this.#bases = new BaseStore(`${scratch}/bases`);
    if (open.size === 0) process.on("exit", onProcessExit);
    open.add(this);
  }

  async open(spec: SandboxSpec, options: { signal?: AbortSignal } = {}): Promise<Sandbox> {
    const { signal } = options;
    this.#assertOpen();
    if (signal?.aborted) throw sandboxAborted(signal);
    const limits = resolveLimits(this.#limits, spec.limits);
    const workdir = checkWorkdir(spec.workdir ?? DEFAULT_WORKDIR);
    const env = checkEnvironment(spec.env ?? {});
    // A link may stand for the repository; what lies in it is copied as it is.
    const repository = existsSync(spec.repository) ? realpathSync(spec.repository) : spec.repository;
    try {
      return await this.#open(repository, workdir, limits, env, signal);
    } catch (error) {
      throw error instanceof TokenringError
        ? error
        : sandboxBroken(`A sandbox on ${spec.repository} did not open: ${String(error)}`, { cause: error });
    }
  }

  async #open(
    repository: string,
    workdir: string,
    limits: SandboxLimits,
    env: Readonly<Record<string, string>>,
    signal: AbortSignal | undefined,
    again = true,
  ): Promise<LocalSandbox> {
    const base = this.#bases.acquire(repository);
    const launcher = this.#liveLauncher();
    let sandbox: LocalSandbox | undefined;
    try {
      sandbox = await this.#make(launcher, repository, base, workdir, limits, env);
      await sandbox.start(signal);
      this.#assertOpen();
      return sandbox;
    } catch (error) {
      if (sandbox) await sandbox.close();
      else this.#bases.release(base);
      // A launcher's death is noticed only when it is asked for something; that is no fault of this sandbox.
      if (!again || !launcher.dead || this.#disposing || signal?.aborted) throw error;
    }
    return this.#open(repository, workdir, limits, env, signal, false);
  }

  #liveLauncher(): Launcher {
    if (this.#launcher.dead) {
      const { nextSlot } = this.#launcher;
      this.#launcher = new Launcher(this.#scratch, this.#way.plan, this.#tools.bash, nextSlot);
    }
    return this.#launcher;
  }

  async #make(
    launcher: Launcher,
    repository: string,
    base: Base,
    workdir: string,
    limits: SandboxLimits,
    env: Readonly<Record<string, string>>,
  ): Promise<LocalSandbox> {
    const slot = await launcher.acquire();
    const host = this.name === "unsafe-host";
    const inside = host
      ? { workdir: `${slot.directory}/repo`, tmp: `${slot.directory}/tmp`, base: base.directory }
      : { workdir, tmp: "/tmp", base: BASE_INSIDE };
    let start: TreeSize;
    try {
      start = this.#bases.copy(repository, `${slot.directory}/repo`, inside.base, slot.owner);
      makeFolder(slot, "tmp");
    } catch (error) {
      await removeTree(`${slot.directory}/repo`);
      launcher.release(slot);
      throw error;
    }
    const sandbox = new LocalSandbox({
      launcher,
      slot,
      base,
      bases: this.#bases,
      workdir,
      limits,
      env,
      start,
      git: this.#tools.git,
      inside,
      mapping: host ? new PathMapping(inside.workdir, workdir) : null,
      countProcesses: this.#way.countProcesses,
      snapshotDirectory: () => `${this.#scratch}/snapshots/${this.#snapshots++}`,
      onClose: (closed) => this.#sandboxes.delete(closed),
    });
    this.#sandboxes.add(sandbox);
    return sandbox;
  }

  /** Also removes snapshots that were not disposed of. */
  dispose(): Promise<void> {
    this.#disposing ??= this.#dispose();
    return this.#disposing;
  }

  async #dispose(): Promise<void> {
    await Promise.all([...this.#sandboxes].map((sandbox) => sandbox.close()));
    this.#launcher.stop();
    await removeTree(this.#scratch);
    open.delete(this);
    if (open.size === 0) process.off("exit", onProcessExit);
  }

  /** What can be done while the process is leaving. */
  abandon(): void {
    for (const sandbox of this.#sandboxes) sandbox.killNow();
    this.#launcher.stop();
    try {
      rmSync(this.#scratch, { recursive: true, force: true });
    } catch {
      // The next start removes it.
    }
  }

  #assertOpen(): void {
    if (this.#disposing)
      throw new TokenringError("ERR_TOKENRING_DISPOSED", "The sandbox backend is disposed of.");
  }
}

function checkWorkdir(workdir: string): string {
  if (/^(\/[\w.-]*\w[\w.-]*)+$/.test(workdir)) return workdir;
  throw new TokenringError(
    "ERR_TOKENRING_INVALID_ARGUMENT",
    `A sandbox's workdir must be an absolute path of plain names such as /repo, got "${workdir}".`,
  );
}

function checkEnvironment(env: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  for (const [name, value] of Object.entries(env)) {
    if (/^[A-Za-z_]\w*$/.test(name) && !value.includes("\0")) continue;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `"${name}" cannot be an environment variable.`,
    );
  }
  return env;
}
