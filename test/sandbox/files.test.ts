// Reading and writing files inside, from outside: never beyond the sandbox.
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SandboxFileError } from "../../lib/sandbox/errors.ts";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { KINDS, makeRepository, openBackend, removeDirectories, temporaryDirectory } from "./support.ts";

describe.each(KINDS)("files of a %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let sandbox: Sandbox;

  beforeAll(async () => {
    const repository = makeRepository({
      "a.txt": "a\n",
      "sub/b.txt": "no end",
      "bin.dat": Buffer.from([65, 0, 66]),
      empty: "",
    });
    backend = await openBackend(kind);
    sandbox = await backend.open({ repository, limits: { fileBytes: 1024 * 1024 } });
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("reads relative to the workdir and by absolute path, wherever the shell stands", async () => {
    await sandbox.exec("cd sub");
    expect(await sandbox.read("a.txt")).toBe("a\n");
    expect(await sandbox.read("/repo/sub/b.txt")).toBe("no end");
    expect(await sandbox.read("empty")).toBe("");
    await sandbox.exec("cd ..");
  });

  it("writes what it was given, byte for byte", async () => {
    const texts = [
      "",
      "x",
      "\n\n",
      "a\u0001b\u007f\r\n\té€😀'\"\\$(echo no)`",
      `${"long line ".repeat(50_000)}\n`,
    ];
    for (const text of texts) {
      await sandbox.write("sub/new.txt", text);
      expect(await sandbox.read("sub/new.txt")).toBe(text);
    }
    await sandbox.write("-odd 'name'\n", "odd");
    expect((await sandbox.exec("cat -- \"-odd 'name'\n\"")).output).toBe("odd");
  });

  it("leaves nothing behind in /tmp", async () => {
    await sandbox.write("a2.txt", "2");
    expect((await sandbox.exec("ls -A ~")).output).toBe("");
  });

  it("says what is wrong with a file in one short line", async () => {
    const fault = (work: Promise<unknown>): Promise<string> =>
      work.then(
        () => "no fault",
        (error: unknown) => (error instanceof SandboxFileError ? error.message : String(error)),
      );
    expect(await fault(sandbox.read("none.py"))).toBe("none.py: No such file or directory");
    expect(await fault(sandbox.read("sub"))).toBe("sub: Is a directory");
    expect(await fault(sandbox.read("bin.dat"))).toBe("bin.dat: Binary file");
    expect(await fault(sandbox.read("/dev/zero"))).toBe("/dev/zero: Not a regular file");
    expect(await fault(sandbox.write("no/such/place", "x"))).toBe("no/such/place: No such file or directory");
    expect(await fault(sandbox.write("sub", "x"))).toBe("sub: Is a directory");
    expect(await fault(sandbox.write("/usr/x", "x"))).toMatch(
      /^\/usr\/x: (Read-only file system|Permission denied)$/,
    );
    expect(await fault(sandbox.write("big", "x".repeat(1024 * 1024 + 1)))).toBe("big: File too large");
    expect(await fault(sandbox.write("nul", "\0"))).toMatch(/^nul: .*NUL/);
    await sandbox.exec("touch locked; chmod 000 locked");
    if (kind === "bubblewrap" || process.getuid?.() === 0) {
      expect(await fault(sandbox.read("locked"))).toBe("locked: Permission denied");
    }
  });

  it("refuses text in another encoding, which an edit would spoil", async () => {
    await sandbox.exec("printf 'caf\\351\\n' >latin.txt");
    await expect(sandbox.read("latin.txt")).rejects.toThrow("latin.txt: Not UTF-8 text");
  });

  it.each([
    ["something that still prints", "(while :; do echo noise; echo noise >&2; done) & disown"],
    ["a shell that says what it does", "set -xv; set -T; trap 'echo trapped' DEBUG"],
    [
      "options and variables of the agent",
      "set -eu -o noclobber -o noglob; readonly text=1; declare -u name; IFS=o",
    ],
  ])("reads and writes the file itself beside %s", async (_, command) => {
    await sandbox.write("own.txt", "one\ntwo\n");
    await sandbox.exec(command);
    expect(await sandbox.read("own.txt")).toBe("one\ntwo\n");
    await sandbox.write("own.txt", "three\n");
    expect(await sandbox.read("own.txt")).toBe("three\n");
    await sandbox.diff(); // Ends what runs.
    expect((await sandbox.exec("cat own.txt")).output).toBe("three\n");
  });

  it("keeps the shell and what it exports when a file cannot be read or written", async () => {
    await sandbox.exec("export KEPT=1");
    for (const path of ["none.txt", "sub", "bin.dat"]) await expect(sandbox.read(path)).rejects.toThrow(path);
    for (const path of ["no/such/place", "sub", "/usr/x"]) {
      await expect(sandbox.write(path, "x")).rejects.toThrow(path);
    }
    expect((await sandbox.exec("echo $KEPT")).output).toBe("1\n");
  });

  it("does not follow a link of the agent's out of the sandbox", async () => {
    const outside = temporaryDirectory();
    const secret = join(outside, "secret");
    writeFileSync(secret, "secret");
    if (kind === "bubblewrap") {
      await sandbox.exec(`ln -s ${secret} link; ln -s ${outside} dir; ln -s /etc/shadow shadow`);
      await expect(sandbox.read("link")).rejects.toThrow("link: No such file or directory");
      await expect(sandbox.read("dir/secret")).rejects.toThrow(SandboxFileError);
      await expect(sandbox.read("shadow")).rejects.toThrow(SandboxFileError);
      await expect(sandbox.write("link", "changed")).rejects.toThrow(SandboxFileError);
      await expect(sandbox.write("dir/made", "x")).rejects.toThrow(SandboxFileError);
    } else if (process.getuid?.() === 0) {
      // Another user's rights are all that stands between.
      await sandbox.exec(`ln -s ${outside} dir`);
      await expect(sandbox.write("dir/made", "x")).rejects.toThrow(SandboxFileError);
    }
    expect(existsSync(join(outside, "made"))).toBe(false);
    const snapshot = await sandbox.snapshot();
    expect(existsSync(join(snapshot.repository, "dir", "secret"))).toBe(
      existsSync(join(outside, "secret")) && existsSync(join(snapshot.repository, "dir")),
    );
    await snapshot.dispose();
  });
});
