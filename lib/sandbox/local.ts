// The backend for this machine: namespaces, by bubblewrap where only that may make them, Landlock where they are not to be
// had, and no isolation only for those who ask for it.
import { chmodSync, existsSync, mkdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { TokenringError } from "../errors.ts";
import { type Base, BaseStore } from "./base.ts";
import { bubblewrapPlan } from "./bubblewrap.ts";
import { sandboxAborted, sandboxBroken } from "./errors.ts";
import { type Fittings, findProgram, findPython, INSIDE } from "./host.ts";
import { Launcher, type LaunchPlan, landlockVersion, type Slot } from "./launcher.ts";
import { limitCommand, resolveLimits } from "./limits.ts";
import { LocalSandbox } from "./local-sandbox.ts";
import { namespacesPlan } from "./namespaces.ts";
import { onHostPlan, PathMapping } from "./on-host.ts";
import { RESIDENT_SCRIPT, ResidentShell } from "./resident-shell.ts";
import { createScratch, defaultScratchParent, removeStaleScratch } from "./scratch.ts";
import { type Owner, removeTree, type TreeSize } from "./tree.ts";
import type { SANDBOX_KINDS, Sandbox, SandboxBackend, SandboxLimits, SandboxSpec } from "./types.ts";

export type LocalKind = Exclude<(typeof SANDBOX_KINDS)[number], "auto">;

export interface LocalBackendOptions {
  /** Left out: the first of namespaces, bubblewrap and landlock that works. Named: that kind or an error. */
  kind?: LocalKind;
  /** Host directory below which sandboxes lie; default is memory (/dev/shm) where there is enough, else the temporary one. */
  directory?: string;
  limits?: Partial<SandboxLimits>;
  /**
   * Names of the programs that commands find on their PATH beside `python`; one that the host lacks is left out (default: all
   * the system's). It hides, it forbids nothing: a full path still leads to the others.
   */
  programs?: readonly string[] | undefined;
  /** Told once, in one line, what is weaker than it should be and how to cure it. Default: a process warning. */
  onWarning?: (message: string) => void;
}

/** An id that Debian reserves and gives to nobody: whom sandboxes run as when the host process is root. */
const SANDBOX_UID = 65_533;
const DEFAULT_WORKDIR = "/repo";

const CURE =
  "allow unprivileged user namespaces (in Docker: `--security-opt seccomp=unconfined --security-opt " +
  "apparmor=unconfined`), and where only bubblewrap may make them, or before Linux 5.12, `apt-get install bubblewrap`";

type Tools = Pick<Fittings, "bash" | "python" | "programs"> & { git: string };

interface Way {
  kind: LocalKind;
  plan: LaunchPlan;
  /** What the kernel's count of processes of the sandbox's user may come to; null leaves it. */
  userProcesses: (limits: SandboxLimits) => number | null;
}

interface Found {
  way: Way;
  launcher: Launcher;
  /** Why a better way does not work here; "" where there is none. */
  failure: string;
}

/**
 * Opens the local backend: finds out by really starting a sandbox what works here.
 * @throws ERR_TOKENRING_SANDBOX when nothing that isolates does, or the kind that was asked for does not.
 */
export async function localBackend(options: LocalBackendOptions = {}): Promise<SandboxBackend> {
  const warn = options.onWarning ?? ((message) => process.emitWarning(message, "TokenringWarning"));
  const limits = resolveLimits(options.limits);
  const parent = options.directory ?? defaultScratchParent();
  await removeStaleScratch(parent);
  const scratch = createScratch(parent);
  try {
    const { tools, ...found } = await findBackend(options.kind, scratch, limits, options.programs);
    const weaker = weaknesses(found, options.kind);
    if (weaker) warn(weaker);
    return new LocalBackend(scratch, found.way, found.launcher, tools, limits);
  } catch (error) {
    await removeTree(scratch);
    throw error;
  }
}

/**
 * Which kind `localBackend` would take here, and what is weaker than in the best one (null: nothing).
 * @throws ERR_TOKENRING_SANDBOX as `localBackend`.
 */
export async function probeSandboxes(): Promise<{
  kind: LocalKind;
  weaker: string | null;
  groups: { memory: boolean; processes: boolean };
}> {
  const scratch = createScratch(defaultScratchParent());
  try {
    const found = await findBackend(undefined, scratch, resolveLimits());
    const { groups } = found.launcher;
    await found.launcher.stop();
    return { kind: found.way.kind, weaker: weaknesses(found, undefined), groups };
  } finally {
    await removeTree(scratch);
  }
}

async function findBackend(
  kind: LocalKind | undefined,
  scratch: string,
  limits: SandboxLimits,
  programs: readonly string[] | null = null,
): Promise<Found & { tools: Tools }> {
  for (const [name, mode] of [
    ["slots", 0o711],
    ["disk", 0o711],
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
    programs,
  };
  return { tools, ...(await findWay(kind, scratch, tools, limits)) };
}

function requireProgram(name: string): string {
  const path = findProgram(name);
  if (path) return path;
  throw sandboxBroken(`Sandboxes need ${name} on the host: apt-get install ${name}.`);
}

async function findWay(
  kind: LocalKind | undefined,
  scratch: string,
  tools: Tools,
  limits: SandboxLimits,
): Promise<Found> {
  const failures: string[] = [];
  let firstSlot = 0;
  for (const way of ways(kind, scratch, tools)) {
    if (typeof way === "string") {
      failures.push(way);
      continue;
    }
    let launcher: Launcher | undefined;
    try {
      launcher = await Launcher.start(scratch, way.plan, firstSlot);
      await tryOut(launcher, way, limits);
      return { way, launcher, failure: failures[0] ?? "" };
    } catch (error) {
      failures.push((error as Error).message);
      firstSlot = launcher?.nextSlot ?? firstSlot;
      await launcher?.stop();
    }
  }
  const unsafe =
    kind === undefined
      ? "; or run without isolation by `--sandbox unsafe-host` (sandbox.kind in a config)"
      : "";
  throw sandboxBroken(
    `No sandbox works here: ${[...new Set(failures)].join(" ")} To cure it: ${CURE}${unsafe}.`,
  );
}

/** What to try, best first; a string says why a way is not there. */
function* ways(kind: LocalKind | undefined, scratch: string, tools: Tools): Generator<Way | string> {
  const root = process.getuid?.() === 0;
  const common = { scratch, ...tools, script: RESIDENT_SCRIPT };
  const own = (limits: SandboxLimits): number => limits.processes;
  const users: (Owner | undefined)[] = root
    ? [{ uid: SANDBOX_UID, gid: SANDBOX_UID }, undefined]
    : [undefined];
  const apart = function* (
    name: LocalKind,
    planFor: (user: Owner | undefined) => LaunchPlan,
  ): Generator<Way> {
    for (const user of users) yield { kind: name, plan: planFor(user), userProcesses: own };
    // Before Linux 5.14 the count is that of all the user's processes, which may be many.
    if (!root) yield { kind: name, plan: planFor(undefined), userProcesses: () => null };
  };
  if (kind === undefined || kind === "namespaces") {
    yield* apart("namespaces", (user) => namespacesPlan({ ...common, user }));
  }
  if (kind === undefined || kind === "bubblewrap") {
    const bwrap = findProgram("bwrap");
    if (!bwrap) yield "bubblewrap (the program bwrap) is not installed.";
    else yield* apart("bubblewrap", (user) => bubblewrapPlan({ ...common, bwrap, user }));
  }
  if (kind === undefined || kind === "landlock") {
    if (landlockVersion() < 1)
      yield "The kernel's Landlock is missing or not switched on (`lsm=` of its command line).";
    else {
      // Root of a container that has no other users to give away goes on as itself.
      for (const change of root ? [true, false] : [false]) {
        const plan = onHostPlan({ ...common, confine: true, root: change });
        yield { kind: "landlock", plan, userProcesses: change ? own : besideOthers };
      }
    }
  }
  if (kind === "unsafe-host") {
    const plan = onHostPlan({ ...common, confine: false, root });
    yield { kind: "unsafe-host", plan, userProcesses: root ? own : besideOthers };
  }
}

/** Where the kernel counts all processes of a user who runs more than sandboxes: a bound, if a wide one. */
function besideOthers(limits: SandboxLimits): number {
  const all = Number(readFileSync("/proc/loadavg", "utf8").split(/[ /]/)[4]);
  return all + 64 * limits.processes;
}

async function tryOut(launcher: Launcher, way: Way, limits: SandboxLimits): Promise<void> {
  const slot = await launcher.acquire(null);
  // The subshell finds out whether the limits leave room to start a process at all; the rest, whether the folder can be
  // reached from above and written to.
  const prelude = `${limitCommand(limits, way.userProcesses(limits))} && ( : ) && cd -- "$PWD" && : >probe`;
  const shell = await ResidentShell.start(launcher, slot, {
    base: "none",
    workdir: DEFAULT_WORKDIR,
    limits: {
      disk: { bytes: limits.fileBytes, entries: 100 },
      memoryBytes: limits.memoryBytes,
      processes: limits.processes,
    },
    prelude,
  });
  if (await shell.kill()) await launcher.release(slot);
}

/** In one line, what is weaker than it should be; null where nothing is. */
function weaknesses({ way, launcher, failure }: Found, asked: LocalKind | undefined): string | null {
  const root = process.getuid?.() === 0;
  const why = asked === undefined ? ` because namespaces cannot be had here (${failure})` : "";
  if (way.kind === "unsafe-host") {
    return (
      "Sandboxes run WITHOUT ISOLATION (unsafe-host): commands of the agent can read the host's files, use the " +
      `network${root ? "" : ", act with all rights of this user"} and see other processes. To cure it, ${CURE}.`
    );
  }
  if (way.kind === "landlock") {
    const version = landlockVersion();
    const apart = way.plan.slotOwner(0) !== undefined;
    const weaker = [
      "names, sizes and times of the host's files and the ids of its processes can be found out",
      "the disk limit is looked after, not enforced",
      ...(launcher.groups.memory ? [] : ["memory is limited by the process alone"]),
      ...(apart ? [] : ["the agent is this user, and chmod by path fails"]),
      ...(apart || launcher.groups.processes
        ? []
        : ["the number of processes is limited together with this user's"]),
      ...(apart || version >= 6 ? [] : ["this user's processes can be signalled (Linux 6.12 cures that)"]),
      ...(apart || version >= 3 ? [] : ["this user's files can be truncated (Linux 6.2 cures that)"]),
    ];
    return `Sandboxes are confined by Landlock and seccomp alone${why}: ${weaker.join("; ")}. To cure it, ${CURE}.`;
  }
  const counted =
    way.userProcesses(resolveLimits()) !== null && !(root && way.plan.slotOwner(0) === undefined);
  if (!counted && !launcher.groups.processes) {
    return (
      "Sandboxes run in namespaces, but the number of their processes is not limited: " +
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
  #relaunching: Promise<Launcher> | undefined;
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
    const launcher = await this.#liveLauncher();
    const base = this.#bases.acquire(repository);
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

  async #liveLauncher(): Promise<Launcher> {
    if (!this.#launcher.dead) return this.#launcher;
    this.#relaunching ??= this.#relaunch().finally(() => {
      this.#relaunching = undefined;
    });
    return await this.#relaunching;
  }

  async #relaunch(): Promise<Launcher> {
    const { nextSlot } = this.#launcher;
    await this.#launcher.stop();
    this.#launcher = await Launcher.start(this.#scratch, this.#way.plan, nextSlot);
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
    const owner = this.#way.plan.slotOwner(0);
    // Only one user can own what all share.
    const shared = this.#way.plan.mounts ? this.#bases.share(repository, base, INSIDE.base, owner) : null;
    let slot: Slot | undefined;
    let start: TreeSize;
    let inside: { workdir: string; tmp: string; base: string };
    try {
      slot = await launcher.acquire(shared?.directory ?? null);
      inside = this.#way.plan.mounts
        ? { workdir, tmp: "/tmp", base: INSIDE.base }
        : { workdir: `${slot.files}/repo`, tmp: `${slot.files}/tmp`, base: base.directory };
      start = shared?.size ?? this.#bases.copy(repository, `${slot.files}/repo`, inside.base, slot.owner);
    } catch (error) {
      if (slot) await launcher.release(slot).catch(() => undefined);
      if (shared) this.#bases.giveBack(shared);
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
      shared,
      ownDisk: this.#way.plan.mounts,
      git: this.#tools.git,
      inside,
      mapping: this.#way.plan.mounts
        ? null
        : new PathMapping({ [workdir]: inside.workdir, "/tmp": inside.tmp }),
      userProcesses: this.#way.userProcesses(limits),
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
    await this.#launcher.stop();
    await removeTree(this.#scratch);
    open.delete(this);
    if (open.size === 0) process.off("exit", onProcessExit);
  }

  /** What can be done while the process is leaving. */
  abandon(): void {
    this.#launcher.abandon();
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
