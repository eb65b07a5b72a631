// The strong kind: namespaces by the launcher itself. A sandbox sees the system read-only, its tree, its /tmp, and nobody
// else. It is what bubblewrap makes (bubblewrap.ts), but for what starting a program twice more costs: what all sandboxes
// see alike is mounted once, and none of a sandbox's namespaces belongs to its processes.
import { join } from "node:path";
import { type Fittings, INSIDE, type Shown, sandboxEnvironment, searchPath, shownInside } from "./host.ts";
import type { LaunchPlan } from "./launcher.ts";
import type { Owner } from "./tree.ts";

/**
 * @param user Whom to run as; undefined is the current user. As real root the kernel does not count processes.
 */
export function namespacesPlan(options: Fittings & { user: Owner | undefined }): LaunchPlan {
  const { scratch, script, user } = options;
  const common = shownInside(options);
  return {
    env: sandboxEnvironment(searchPath(INSIDE.bin, options), "/tmp"),
    mounts: true,
    slotOwner: () => user,
    start: ({ slot, base, workdir }) => {
      const files = join(scratch, "slots", String(slot.id), "fs");
      const own: Shown[] = [
        { kind: "read", source: join(scratch, "bases", base), target: INSIDE.base },
        { kind: "write", source: `${files}/tmp`, target: "/tmp" },
        { kind: "write", source: `${files}/repo`, target: workdir },
      ];
      // Places for them: nobody can make one later.
      const places = own.map(({ target }): Shown => ({ kind: "write", source: "", target }));
      return {
        root: { name: workdir, owner: user, shown: [...common, ...places] },
        options: [
          ...[`root=${workdir}`, `folder=${workdir}`, `environment=PWD=${workdir}`],
          ...own.map(({ kind, source, target }) => `sees=${kind}:${source}:${target}`),
          ...(user ? [`user=${user.uid}`] : []),
        ],
        arguments: [INSIDE.bash, "--norc", "--noprofile", "-c", script, "bash"],
      };
    },
  };
}
