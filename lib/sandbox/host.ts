// What the host offers to sandboxes: programs, an interpreter, and the few files of /etc that programs look for.
import { execFile, spawnSync } from "node:child_process";
import {
  accessSync,
  chmodSync,
  constants,
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

const PROGRAM_PATH = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/** Full path of a program of the system (never of a user's PATH), or null. */
export function findProgram(name: string): string | null {
  return PROGRAM_PATH.map((directory) => join(directory, name)).find(isExecutable) ?? null;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export interface Python {
  executable: string;
  /** Installation outside the system's folders that a sandbox needs to see, or null. */
  prefix: string | null;
}

/** The system's python3; else the one on the PATH, with the installation that it belongs to. */
export async function findPython(): Promise<Python | null> {
  const system = findProgram("python3");
  if (system) return { executable: system, prefix: null };
  try {
    const { stdout } = await promisify(execFile)(
      "python3",
      ["-I", "-c", "import os, sys; print(os.path.realpath(sys.executable)); print(sys.base_prefix)"],
      { timeout: 10_000, killSignal: "SIGKILL" },
    );
    const [executable, prefix] = stdout.split("\n");
    return executable && prefix ? { executable, prefix } : null;
  } catch {
    return null;
  }
}

/** Something that a sandbox with a root of its own sees at `target`: a path of the host, or a link and what it says. */
export interface Shown {
  kind: "read" | "write" | "device" | "link";
  source: string;
  target: string;
}

/** The system's folders: what is a link on the host is a link inside. */
function systemFolders(): Shown[] {
  const shown: Shown[] = [{ kind: "read", source: "/usr", target: "/usr" }];
  for (const name of ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]) {
    const path = `/${name}`;
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat?.isSymbolicLink()) shown.push({ kind: "link", source: readlinkSync(path), target: path });
    else if (stat?.isDirectory()) shown.push({ kind: "read", source: path, target: path });
  }
  return shown;
}

/** What the ways to start a sandbox have in common. */
export interface Fittings {
  /** The backend's folder. */
  scratch: string;
  bash: string;
  /** What the resident bash runs. */
  script: string;
  python: Python | null;
  /** Programs on the PATH beside `python`; null: all the system's. */
  programs: readonly string[] | null;
}

/** Where a sandbox with a root of its own finds what is neither the system's nor its own. */
export const INSIDE = {
  /** Holds `python`, and the programs of a backend that names them; first on the PATH. */
  bin: "/opt/bin",
  bash: "/opt/resident/bash",
  /** The base commit's objects, read-only, for diffs that no agent can spoil. */
  base: "/opt/base",
} as const;

/** All that such a sandbox sees but for /proc, its tree, its /tmp and its base. */
export function shownInside(fittings: Fittings): Shown[] {
  const { scratch, bash, python } = fittings;
  const etc = join(scratch, "etc");
  if (!existsSync(etc)) writeEtc(etc);
  const link = (target: string, source: string): Shown => ({ kind: "link", source, target });
  const devices = ["null", "zero", "full", "random", "urandom"].map((name) => `/dev/${name}`);
  return [
    ...systemFolders(),
    { kind: "read", source: etc, target: "/etc" },
    { kind: "read", source: residentBash(scratch, bash), target: INSIDE.bash },
    ...devices.filter(existsSync).map((path): Shown => ({ kind: "device", source: path, target: path })),
    link("/dev/fd", "/proc/self/fd"),
    link("/dev/stdin", "/proc/self/fd/0"),
    link("/dev/stdout", "/proc/self/fd/1"),
    link("/dev/stderr", "/proc/self/fd/2"),
    link("/dev/shm", "/tmp"),
    ...(python?.prefix ? [{ kind: "read", source: python.prefix, target: python.prefix } as const] : []),
    { kind: "read", source: binFolder(fittings), target: INSIDE.bin },
  ];
}

/** A folder of links to what commands find by name beside, or in place of, the system's programs; made once. */
export function binFolder({ scratch, python, programs }: Fittings): string {
  const bin = join(scratch, "bin");
  if (existsSync(bin)) return bin;
  mkdirSync(bin);
  chmodSync(bin, 0o755);
  const links = new Map((programs ?? []).map((name) => [name, findProgram(name)]));
  if (python)
    for (const name of python.prefix ? ["python", "python3"] : ["python"]) links.set(name, python.executable);
  for (const [name, program] of links) if (program) symlinkSync(program, join(bin, name));
  return bin;
}

/** The PATH of commands, where `bin` is the folder of links as they see it. */
export const searchPath = (bin: string, { programs }: Fittings): string =>
  programs ? bin : `${bin}:/usr/local/bin:/usr/bin:/bin`;

/** Fills `directory` with an /etc that names one user and no host. */
function writeEtc(directory: string): void {
  mkdirSync(directory);
  const files: Record<string, string> = {
    passwd: "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/tmp:/bin/bash\n",
    group: "root:x:0:\nagent:x:1000:\n",
    hosts: "127.0.0.1 localhost sandbox\n",
    hostname: "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
  };
  chmodSync(directory, 0o755);
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(join(directory, name), text);
    chmodSync(join(directory, name), 0o644);
  }
  symlinkSync("/usr/share/zoneinfo/UTC", join(directory, "localtime"));
  // The linker's cache, and the links that stand for awk, vi and the like.
  for (const name of ["ld.so.cache", "alternatives"]) {
    const source = join("/etc", name);
    if (existsSync(source))
      cpSync(source, join(directory, name), { recursive: true, verbatimSymlinks: true });
  }
}

/** The whole environment inside; nothing of the host's comes through. */
export function sandboxEnvironment(path: string, home: string): Record<string, string> {
  const identity = { NAME: "agent", EMAIL: "agent@sandbox.invalid", DATE: "2020-01-01T00:00:00Z" };
  const git = Object.entries(identity).flatMap(([key, value]) => [
    [`GIT_AUTHOR_${key}`, value],
    [`GIT_COMMITTER_${key}`, value],
  ]);
  return {
    PATH: path,
    HOME: home,
    USER: "agent",
    LOGNAME: "agent",
    LANG: "C.UTF-8",
    LC_ALL: "C.UTF-8",
    TZ: "UTC",
    TERM: "dumb",
    PAGER: "cat",
    GIT_PAGER: "cat",
    GIT_TERMINAL_PROMPT: "0",
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_CONFIG_COUNT: "2",
    GIT_CONFIG_KEY_0: "safe.directory",
    GIT_CONFIG_VALUE_0: "*",
    GIT_CONFIG_KEY_1: "init.defaultBranch",
    GIT_CONFIG_VALUE_1: "main",
    ...Object.fromEntries(git),
    PYTHONHASHSEED: "0",
    PYTHONDONTWRITEBYTECODE: "1",
  };
}

/**
 * A bash that may be run but not read: the kernel keeps what such a process has in /proc, its pipes among it, from all
 * others. The host's own bash where `scratch` lies on a file system that runs no programs.
 */
export function residentBash(scratch: string, bash: string): string {
  const copy = join(scratch, "bash");
  if (!existsSync(copy)) {
    copyFileSync(bash, copy);
    chmodSync(copy, 0o111);
  }
  return spawnSync(copy, ["-c", ":"], { timeout: 10_000 }).status === 0 ? copy : bash;
}

/** One word of shell text. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
