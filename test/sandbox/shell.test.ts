// What a command sees of the resident shell, in every kind of local sandbox.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { APART, KINDS, makeRepository, openBackend, removeDirectories } from "./support.ts";

describe.each(KINDS)("the shell of a %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let sandbox: Sandbox;
  let repository: string;

  beforeAll(async () => {
    repository = makeRepository({ "a.py": "print('a')\n", "sub/b.txt": "b\n" });
    backend = await openBackend(kind);
    sandbox = await backend.open({ repository });
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("gives output of both streams, exit status and directory", async () => {
    expect(await sandbox.exec("cat sub/b.txt; echo oops >&2; (exit 3)")).toEqual({
      output: "b\noops\n",
      exitCode: 3,
      timedOut: false,
      droppedBytes: 0,
      cwd: "/repo",
    });
  });

  it("keeps directory, exports, variables and functions from command to command", async () => {
    await sandbox.exec("cd sub; export WORD=kept; declare -A map=([k]=v); say() { echo said; }");
    const result = await sandbox.exec(
      `pwd; echo "$WORD \${map[k]}"; say; python -c "import os; print(os.environ['WORD'])"`,
    );
    expect(result.output).toBe("/repo/sub\nkept v\nsaid\nkept\n");
    expect((await sandbox.exec("cd /repo")).cwd).toBe("/repo");
  });

  it("names the first line of a command in bash's messages", async () => {
    expect(await sandbox.exec("nonesuch")).toMatchObject({
      output: "bash: line 1: nonesuch: command not found\n",
      exitCode: 127,
    });
    expect((await sandbox.exec("echo (")).exitCode).toBe(2);
    expect((await sandbox.exec("echo fine")).output).toBe("fine\n");
  });

  it("takes commands of several lines, here-documents and no standard input", async () => {
    expect((await sandbox.exec("cat <<'X'\n$one\ntwo\nX\nfor i in 1 2; do\n echo $i\ndone")).output).toBe(
      "$one\ntwo\n1\n2\n",
    );
    expect(await sandbox.exec("cat; read line; echo $?", { timeoutMs: 10_000 })).toMatchObject({
      output: "1\n",
    });
  });

  it("takes commands of any characters and length, whatever the locale", async () => {
    const long = `echo ${"é".repeat(70_000)} | wc -c`;
    for (const locale of ["C.UTF-8", "C", "POSIX", "no_such.UTF-8"]) {
      const set = await sandbox.exec(`export LC_ALL=${locale} 2>/dev/null; echo "ä ß 日本 😀"`);
      expect(set.output).toBe("ä ß 日本 😀\n");
      expect((await sandbox.exec("echo plain; echo 'two  words'  ")).output).toBe("plain\ntwo  words\n");
      expect((await sandbox.exec(long)).output).toBe("140001\n");
      expect((await sandbox.exec(`: ${"x".repeat(200_000)}; echo done`)).output).toBe("done\n");
      expect((await sandbox.exec("")).output).toBe("");
      expect((await sandbox.exec(" \t\n echo 'é\\n' \n")).output).toBe("é\\n\n");
    }
    await sandbox.exec("export LC_ALL=C.UTF-8");
  });

  it("outlives exit, exec, set -e and stray loop control, in the same directory", async () => {
    expect(await sandbox.exec("cd sub; echo bye; exit 7")).toMatchObject({
      output: "bye\n",
      exitCode: 7,
      cwd: "/repo/sub",
    });
    expect((await sandbox.exec("pwd")).output).toBe("/repo/sub\n");
    expect((await sandbox.exec("f() { exit 5; }; f")).exitCode).toBe(5);
    expect((await sandbox.exec("exec true")).exitCode).toBeNull();
    expect((await sandbox.exec("set -e; false; echo not here")).output).toBe("");
    for (const command of [
      "break",
      "break 9",
      "continue",
      "return 1",
      "exec 3<&- 4>&-",
      "exec >/dev/null",
      "set -u",
    ]) {
      await sandbox.exec(command, { timeoutMs: 10_000 });
      expect((await sandbox.exec("echo $((1 + 1))")).output, command).toBe("2\n");
    }
    await sandbox.exec("cd /repo");
  });

  it("outlives traps, traces and functions with the names of what it uses itself", async () => {
    const spoilers = [
      "trap 'echo trapped' EXIT DEBUG; exit 2",
      "set -x",
      "read() { :; }; printf() { :; }; eval() { :; }",
    ];
    for (const spoiler of [...spoilers, "builtin() { :; }", "IFS=x; unset PWD; set -f"]) {
      await sandbox.exec(spoiler, { timeoutMs: 1_000 });
      // At worst the next command is lost with the spoilt shell, never the sandbox.
      await sandbox.exec("set +x", { timeoutMs: 1_000 });
      expect((await sandbox.exec("command echo alive", { timeoutMs: 10_000 })).output, spoiler).toContain(
        "alive",
      );
      await sandbox.exec("exit");
    }
  });

  it("outlives a command that kills its shell and all it can reach", async () => {
    await sandbox.exec("kill -9 $$", { timeoutMs: 10_000 });
    if (APART.includes(kind) || process.getuid?.() === 0) {
      // Never as root, whom a broken sandbox would let kill the machine.
      await sandbox.exec("sleep 60 & ((UID)) && kill -9 -1; wait", { timeoutMs: 10_000 });
    }
    expect(await sandbox.exec("echo alive")).toMatchObject({
      output: expect.stringMatching(/alive\n$/),
      exitCode: 0,
      cwd: "/repo",
    });
  });

  it("passes control characters on, and bytes that are no text as replacements", async () => {
    expect((await sandbox.exec("printf 'a\\0b\\033[31m\\r\\xffé\\0exit 1 /x\\0'")).output).toBe(
      "a\0b\u001b[31m\r\ufffdé\0exit 1 /x\0",
    );
    expect(await sandbox.exec("echo a\0b")).toMatchObject({
      exitCode: 2,
      output: expect.stringContaining("NUL"),
    });
  });

  it("has no way to read the end mark's secret", async () => {
    const { output } = await sandbox.exec("set; env; ls -l /proc/self/fd /proc/$$/environ");
    expect(output).not.toMatch(/\b[0-9a-f]{24}\b/);
    // Its standard streams, and the folder that it lists.
    const streams = [" 0 -> ", " 1 -> ", " 2 -> ", " 3 -> "];
    expect(output.match(/ \d+ -> /g)).toEqual(kind === "landlock" ? null : streams);
    if (kind === "unsafe-host") return;
    const resident = await sandbox.exec("ls -l /proc/$$/fd; cat /proc/$$/environ; cat <&3; exit 7");
    expect(resident.output).toContain("Permission denied");
    // A pipe is no file of any folder, so that Landlock alone would let it be opened by its name in /proc.
    expect(
      (await sandbox.exec("for fd in 3 4; do : <>/proc/$$/fd/$fd && echo open; done")).output,
    ).not.toContain("open\n");
    expect(resident.output).not.toContain("->");
    expect(resident.exitCode).toBe(7);
  });

  it("runs commands that were asked for at once one after the other", async () => {
    const results = await Promise.all(
      ["x=1; echo a", "echo b$x", "echo c"].map((command) => sandbox.exec(command)),
    );
    expect(results.map(({ output }) => output)).toEqual(["a\n", "b1\n", "c\n"]);
  });

  it("gives the environment that was asked for, and again after a restart", async () => {
    const other = await backend.open({ repository, env: { FRUIT: "it's" } });
    await other.exec("exit");
    expect((await other.exec('echo "$FRUIT"')).output).toBe("it's\n");
    await other.close();
  });
});

describe.runIf(APART.length > 0)("two sandboxes on one repository", () => {
  it.each([
    ["namespaces", "namespaces"],
    ["bubblewrap", "bubblewrap"],
    ["bubblewrap", "namespaces"],
  ] as const)("look the same from inside: %s and %s", async (kind, other) => {
    const repository = makeRepository({ "a.py": "print(hash('a'))\n", "b/c.txt": "" });
    const [one, two] = [await openBackend(kind), await openBackend(other)];
    const look = async (backend: SandboxBackend): Promise<string> => {
      const sandbox = await backend.open({ repository });
      const result = await sandbox.exec(
        "pwd; hostname; id; env | sort; set; ls -lR --time-style=full-iso; python a.py; find .; ls / /tmp /etc; " +
          "echo $$ $PPID $RANDOM; ps -e; git log; git status; sleep 0 & wait; echo $!; ulimit -a; umask; " +
          "ls -lan --time-style=+ /dev /opt /opt/*; stat -c '%n %a %u %g' / /usr /etc /proc /repo /tmp; ls -l /dev/null; " +
          // What it may do, whom it is taken for, and how each folder is mounted.
          "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status; cat /proc/self/[ug]id_map; " +
          "cut -d' ' -f5,6 /proc/self/mountinfo | sort; cat /proc/net/dev /proc/net/fib_trie /proc/net/if_inet6",
      );
      expect(result.exitCode).toBe(0);
      return result.output;
    };
    expect(await look(two)).toBe(await look(one));
    await Promise.all([one.dispose(), two.dispose()]);
    removeDirectories();
  });
});
