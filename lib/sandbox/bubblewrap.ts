// The strong kind: namespaces by bubblewrap. A sandbox sees the system read-only, its tree, its /tmp, and nobody else.
import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  type Python,
  residentBash,
  SANDBOX_PATH,
  sandboxEnvironment,
  systemMounts,
  writeEtc,
} from "./host.ts";
import type { LaunchPlan } from "./launcher.ts";
import type { Owner } from "./tree.ts";

/** Holds `python`; first on the PATH inside. */
const EXTRA_BIN = "/opt/bin";
/** Where the resident shell lies inside. */
const RESIDENT_BASH = "/opt/resident/bash";
/** The base commit's objects, read-only, for diffs that no agent can spoil. */
export const BASE_INSIDE = "/opt/base";
/** Where the launcher puts the filter of system calls. */
const FILTER_DESCRIPTOR = "9";

/**
 * @param user Whom to run as; undefined is the current user. As real root the kernel does not count processes.
 */
export function bubblewrapPlan(options: {
  scratch: string;
  bwrap: string;
  bash: string;
  script: string;
  python: Python | null;
  user: Owner | undefined;
}): LaunchPlan {
  const { scratch, bwrap, bash, script, python, user } = options;
  const etc = join(scratch, "etc");
  if (!existsSync(etc)) writeEtc(etc);
  const devices = ["null", "zero", "full", "random", "urandom"].flatMap((name) => {
    const path = `/dev/${name}`;
    return existsSync(path) ? ["--dev-bind", path, path] : [];
  });
  const fixed = [
    ...["--unshare-user", "--uid", "1000", "--gid", "1000"],
    ...["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"],
    ...["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"],
    ...["--seccomp", FILTER_DESCRIPTOR],
    // The resident shell is the namespace's first process: nothing inside can kill it, and all dies with it.
    "--as-pid-1",
    ...systemMounts(),
    ...["--ro-bind", etc, "/etc", "--proc", "/proc"],
    ...["--ro-bind", residentBash(scratch, bash), RESIDENT_BASH],
    ...devices,
    ...["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/proc/self/fd/0", "/dev/stdin"],
    ...["--symlink", "/proc/self/fd/1", "/dev/stdout", "--symlink", "/proc/self/fd/2", "/dev/stderr"],
    ...["--symlink", "/tmp", "/dev/shm"],
    ...(python?.prefix ? ["--ro-bind", python.prefix, python.prefix] : []),
    ...(python ? ["--symlink", python.executable, `${EXTRA_BIN}/python`] : []),
    ...(python?.prefix ? ["--symlink", python.executable, `${EXTRA_BIN}/python3`] : []),
  ];
  return {
    env: sandboxEnvironment(`${EXTRA_BIN}:${SANDBOX_PATH}`, "/tmp"),
    mounts: true,
    slotOwner: () => user,
    start: ({ base, workdir }) => ({
      options: user ? [`user=${user.uid}`] : [],
      arguments: [
        ...[bwrap, ...fixed, "--ro-bind", join(scratch, "bases", base), BASE_INSIDE],
        ...["--bind", `${scratch}/disk/tmp`, "/tmp", "--bind", `${scratch}/disk/repo`, workdir],
        ...["--remount-ro", "/", "--chdir", workdir],
        ...[RESIDENT_BASH, "--norc", "--noprofile", "-c", script, "bash"],
      ],
    }),
  };
}
