// What commands find by name in a backend that names its programs.
import { afterAll, describe, expect, it } from "vitest";
import type { LocalBackendOptions, LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { PROGRAMS } from "../../lib/tasks/tinyswe/programs.ts";
import { KINDS, makeRepository, openBackend, removeDirectories } from "./support.ts";

describe.each(KINDS)("the programs of a %s sandbox", (kind: LocalKind) => {
  const backends: SandboxBackend[] = [];
  const open = async (options: LocalBackendOptions = {}): Promise<Sandbox> => {
    const backend = await openBackend(kind, options);
    backends.push(backend);
    return backend.open({ repository: makeRepository({ "a.txt": "one\n" }) });
  };
  afterAll(async () => {
    for (const backend of backends) await backend.dispose();
    removeDirectories();
  });

  it("are those that the backend names, python, and no other", async () => {
    const sandbox = await open({ programs: ["cat", "grep", "python3", "nonesuch"] });
    expect((await sandbox.exec("grep one a.txt; python -c 'print(2)'; python3 -c 'print(3)'")).output).toBe(
      "one\n2\n3\n",
    );
    // All that bash would complete, but for its own.
    const own = "compgen -A function; compgen -k; compgen -b";
    const named = await sandbox.exec(`compgen -c | while read -r word; do echo "$word"; done; echo; ${own}`);
    const [all = "", bash = ""] = named.output.split("\n\n");
    const others = new Set(bash.split("\n"));
    const programs = all.split("\n").filter((word) => !others.has(word));
    expect([...new Set(programs)].sort()).toEqual(["cat", "grep", "python", "python3"]);
    expect(await sandbox.exec("nonesuch")).toMatchObject({
      output: "bash: line 1: nonesuch: command not found\n",
      exitCode: 127,
    });
  });

  it("are all the system's where it names none", async () => {
    const sandbox = await open();
    expect(await sandbox.exec("date >/dev/null && uname")).toMatchObject({ output: "Linux\n", exitCode: 0 });
  });

  it("tell an episode of tinyswe nothing of hour and host", async () => {
    const sandbox = await open({ programs: PROGRAMS });
    for (const word of ["w", "who", "uptime", "date", "ps", "top", "free", "df", "hostname", "uname", "id"])
      expect(await sandbox.exec(word)).toMatchObject({ exitCode: 127 });
    expect((await sandbox.exec("ls; wc -l a.txt; git status --short; sed -n 1p a.txt")).output).toBe(
      "a.txt\n1 a.txt\none\n",
    );
  });
});
