// The weak kind: a plain shell on the host over a private copy. It keeps honest programs apart, not hostile ones.
import { mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { type Python, quote, SANDBOX_PATH, sandboxEnvironment } from "./host.ts";
import type { LaunchPlan } from "./launcher.ts";

/** Users per host process: no sandbox may be the user of another, since a user can kill all that is his. */
const UIDS = 512;
const UIDS_PER_BACKEND = 128;
let backends = 0;

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

/** @param root Whether the host process may change users; then each sandbox is a user of its own. */
export function unsafeHostPlan(options: {
  scratch: string;
  setpriv: string;
  setsid: string;
  bash: string;
  script: string;
  python: Python | null;
  root: boolean;
}): LaunchPlan {
  const { scratch, setpriv, setsid, bash, script, python, root } = options;
  const first = root ? firstUid() : 0;
  const bin = join(scratch, "bin");
  mkdirSync(bin, { recursive: true });
  if (python) symlinkSync(python.executable, join(bin, "python"));
  if (python?.prefix) symlinkSync(python.executable, join(bin, "python3"));
  const shell = `${quote(bash)} --norc --noprofile -c`;
  const become = root
    ? `${quote(setpriv)} --reuid $((${first} + slot % ${UIDS_PER_BACKEND})) ` +
      `--regid $((${first} + slot % ${UIDS_PER_BACKEND})) --clear-groups`
    : quote(setpriv);
  return {
    env: sandboxEnvironment(`${bin}:${SANDBOX_PATH}`, "/tmp"),
    user: undefined,
    slotOwner: (slot) => {
      const id = first + (slot % UIDS_PER_BACKEND);
      return root ? { uid: id, gid: id } : undefined;
    },
    command:
      `cd "slots/$slot/repo" && export HOME="\${PWD%/repo}/tmp" TMPDIR="\${PWD%/repo}/tmp" && ` +
      `exec ${quote(setsid)} ${become} --pdeathsig KILL ${shell} ${quote(script)} bash`,
    // kill -1 reaches every process of the sandbox's user at once, so that none can fork away.
    sweep: root ? `${become} ${shell} 'kill -KILL -1'` : null,
    group: true,
  };
}

/** Shows paths inside `real`, the copy's place on the host, as if it lay at `workdir`, and reads them back. */
export class PathMapping {
  readonly #real: string;
  readonly #workdir: string;
  readonly #mention: RegExp;

  constructor(real: string, workdir: string) {
    this.#real = real;
    this.#workdir = workdir;
    const plain = workdir.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    this.#mention = new RegExp(`(?<![\\w.~/-])${plain}(?![\\w.-])`, "g");
  }

  inward(text: string): string {
    return text.replace(this.#mention, () => this.#real);
  }

  outward(text: string): string {
    return text.replaceAll(this.#real, this.#workdir);
  }
}
