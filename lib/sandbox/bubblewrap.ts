// Namespaces by the program bubblewrap, where only that one may make them: some systems trust it alone. A sandbox sees the
// system read-only, its tree, its /tmp, and nobody else.
import { join } from "node:path";
import { type Fittings, INSIDE, type Shown, sandboxEnvironment, searchPath, shownInside } from "./host.ts";
import type { LaunchPlan } from "./launcher.ts";
import type { Owner } from "./tree.ts";

/** Where the launcher puts the filter of system calls. */
const FILTER_DESCRIPTOR = "9";

const MOUNTS = { read: "--ro-bind", write: "--bind", device: "--dev-bind", link: "--symlink" } as const;

function mount({ kind, source, target }: Shown): string[] {
  return [MOUNTS[kind], source, target];
}

/**
 * @param user Whom to run as; undefined is the current user. As real root the kernel does not count processes.
 */
export function bubblewrapPlan(options: Fittings & { bwrap: string; user: Owner | undefined }): LaunchPlan {
  const { scratch, bwrap, script, user } = options;
  const fixed = [
    ...["--unshare-user", "--uid", "1000", "--gid", "1000"],
    ...["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"],
    ...["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"],
    ...["--seccomp", FILTER_DESCRIPTOR],
    // The resident shell is the namespace's first process: nothing inside can kill it, and all dies with it.
    "--as-pid-1",
    ...shownInside(options).flatMap(mount),
    ...["--proc", "/proc"],
  ];
  return {
    env: sandboxEnvironment(searchPath(INSIDE.bin, options), "/tmp"),
    mounts: true,
    slotOwner: () => user,
    start: ({ base, workdir }) => ({
      options: user ? [`user=${user.uid}`] : [],
      arguments: [
        ...[bwrap, ...fixed, "--ro-bind", join(scratch, "bases", base), INSIDE.base],
        ...["--bind", `${scratch}/disk/tmp`, "/tmp", "--bind", `${scratch}/disk/repo`, workdir],
        ...["--remount-ro", "/", "--chdir", workdir],
        ...[INSIDE.bash, "--norc", "--noprofile", "-c", script, "bash"],
      ],
    }),
  };
}
