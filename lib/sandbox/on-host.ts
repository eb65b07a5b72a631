// The kinds that run on the host's own file system and processes, where namespaces are not to be had. "landlock" is
// confined by the kernel's Landlock, a filter of system calls and, as root, a user of its own; "unsafe-host" by nothing
// but that user: it keeps honest programs apart, not hostile ones.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { binFolder, type Fittings, residentBash, sandboxEnvironment, searchPath } from "./host.ts";
import type { LaunchPlan } from "./launcher.ts";

/** Users per host process: no sandbox may be the user of another, since a user can kill all that is his. */
const UIDS = 512;
const UIDS_PER_BACKEND = 128;
let backends = 0;

/** What a confined sandbox may read and run beside its own files; the same as bubblewrap shows, as far as it is here. */
const READABLE = [
  ...["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"],
  ...["/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/nsswitch.conf"],
];
const DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/**
 * The first of this backend's user ids: far above all that are given out, apart by the host process's id. Where few ids
 * are mapped (rootless containers) those that Debian reserves have to do, and processes may meet.
 */
function firstUid(): number {
  const share = (backends++ * UIDS_PER_BACKEND) % UIDS;
  const [inside, , count] = readFileSync("/proc/self/uid_map", "utf8").trim().split(/\s+/).map(Number);
  const all = inside === 0 && count !== undefined && count >= 2 ** 32 - 2;
  return all ? 2 ** 30 + process.pid * UIDS + share : 65_000 + ((process.pid + share) % 400);
}

/**
 * @param confine "landlock", else "unsafe-host".
 * @param root Whether the host process may change users; then each sandbox is a user of its own.
 */
export function onHostPlan(options: Fittings & { confine: boolean; root: boolean }): LaunchPlan {
  const { scratch, script, python, confine, root } = options;
  const first = root ? firstUid() : 0;
  const bin = binFolder(options);
  const bash = confine ? residentBash(scratch, options.bash) : options.bash;
  const fixed = confine
    ? [
        "confine",
        ...(root ? [] : ["shared-user"]),
        ...[...READABLE, bin, bash, ...(python?.prefix ? [python.prefix] : [])].map((path) => `read=${path}`),
        ...DEVICES.map((path) => `device=${path}`),
      ]
    : [];
  const slotOwner = (slot: number): { uid: number; gid: number } | undefined => {
    const id = first + (slot % UIDS_PER_BACKEND);
    return root ? { uid: id, gid: id } : undefined;
  };
  return {
    env: sandboxEnvironment(searchPath(bin, options), "/tmp"),
    mounts: false,
    slotOwner,
    start: ({ slot, base }) => {
      const [repo, tmp] = [`${slot.files}/repo`, `${slot.files}/tmp`];
      return {
        options: [
          ...["supervise", `folder=${repo}`, `environment=HOME=${tmp}`, `environment=TMPDIR=${tmp}`],
          ...(slot.owner ? [`user=${slot.owner.uid}`] : []),
          ...fixed,
          ...(confine ? [`read=${join(scratch, "bases", base)}`, `write=${repo}`, `write=${tmp}`] : []),
        ],
        arguments: [bash, "--norc", "--noprofile", "-c", script, "bash"],
      };
    },
  };
}

/** Shows paths inside a sandbox's real folders on the host as if they lay where bubblewrap puts them, and reads them back. */
export class PathMapping {
  readonly #folders: ReadonlyMap<string, string>;
  readonly #mention: RegExp;

  /** `folders`: the real place of each shown one. */
  constructor(folders: Readonly<Record<string, string>>) {
    this.#folders = new Map(Object.entries(folders));
    const plain = [...this.#folders.keys()].map((shown) => shown.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    this.#mention = new RegExp(`(?<![\\w.~/-])(?:${plain.join("|")})(?![\\w.-])`, "g");
  }

  inward(text: string): string {
    // In one pass: a real place may have a shown one's name in it.
    return text.replace(this.#mention, (shown) => this.#folders.get(shown) as string);
  }

  outward(text: string): string {
    return [...this.#folders].reduce((outer, [shown, real]) => outer.replaceAll(real, shown), text);
  }
}
