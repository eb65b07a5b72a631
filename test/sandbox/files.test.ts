// Reading and writing files inside, from outside: never beyond the sandbox.
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SandboxFileError } from "../../lib/sandbox/errors.ts";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import { removeTree } from "../../lib/sandbox/tree.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import {
  APART,
  KINDS,
  makeRepository,
  openBackend,
  removeDirectories,
  temporaryDirectory,
} from "./support.ts";

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
    if (APART.includes(kind) || process.getuid?.() === 0) {
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

  it("gives a file the owner, the mode and the place that a shell gives it", async () => {
    const fresh = await backend.open({ repository: makeRepository({ "a.txt": "a\n", "tool.sh": "true\n" }) });
    const look = async (...paths: string[]): Promise<string[]> =>
      (await fresh.exec(`stat -c '%a %u %g %h' -- ${paths.join(" ")}`)).output.trim().split("\n");
    try {
      await fresh.write("made.txt", "made\n");
      await fresh.write("/tmp/made.txt", "made\n");
      await fresh.exec("echo shell >shell.txt; chmod 640 a.txt; umask 077");
      const [made, temporary, shell] = await look("made.txt", "/tmp/made.txt", "shell.txt");
      expect([made, temporary]).toEqual([shell, shell]);
      // As the shell now has it.
      await fresh.write("private.txt", "x");
      expect((await look("private.txt"))[0]).toMatch(/^600 /);
      const place = (await fresh.exec("stat -c '%i %a' a.txt")).output;
      await fresh.write("a.txt", "written\n");
      expect((await fresh.exec("stat -c '%i %a' a.txt; cat a.txt")).output).toBe(`${place}written\n`);
    } finally {
      await fresh.close();
    }
  });

  it("sees links, locked folders and what is no file as the agent does", async () => {
    await sandbox.exec(
      "mkdir -p in/side && echo deep >in/side/f && ln -s in/side by && ln -s f in/side/g && ln in/side/f hard",
    );
    for (const path of ["in/side/f", "by/f", "by/g", "in/../in/side/g", "hard", "./hard", "in//side/f"])
      expect(await sandbox.read(path)).toBe("deep\n");
    await sandbox.write("by/g", "changed\n");
    expect(await sandbox.read("hard")).toBe("changed\n");
    await sandbox.exec("mkfifo pipe");
    await expect(sandbox.read("pipe")).rejects.toThrow("pipe: Not a regular file");
    await expect(sandbox.write("pipe", "x")).rejects.toThrow("pipe: Not a regular file");
    if (!APART.includes(kind) && process.getuid?.() !== 0) return;
    await sandbox.exec("echo kept >in/kept; chmod 400 in/kept; chmod 000 in/side");
    await expect(sandbox.read("in/side/f")).rejects.toThrow(SandboxFileError);
    await expect(sandbox.write("in/side/f", "x")).rejects.toThrow(SandboxFileError);
    await expect(sandbox.write("in/kept", "x")).rejects.toThrow("in/kept: Permission denied");
    await sandbox.exec("chmod 700 in/side");
    expect(await sandbox.read("in/kept")).toBe("kept\n");
  });

  it("does not follow a link of the agent's out of the sandbox", async () => {
    const outside = temporaryDirectory();
    const secret = join(outside, "secret");
    writeFileSync(secret, "secret");
    if (APART.includes(kind)) {
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

describe("removeTree", () => {
  afterAll(removeDirectories);

  it("removes all that a tree can hold, and nothing that a link leads to", async () => {
    const outside = temporaryDirectory();
    writeFileSync(join(outside, "kept"), "kept");
    const tree = join(temporaryDirectory(), "tree");
    const deep = join(tree, "a/b/c");
    mkdirSync(deep, { recursive: true });
    writeFileSync(join(deep, "file"), "");
    // No text, so no name that Node would give back.
    writeFileSync(Buffer.concat([Buffer.from(`${deep}/`), Buffer.from([0xff])]), "");
    symlinkSync(outside, join(deep, "link"));
    symlinkSync("nowhere", join(tree, "broken"));
    chmodSync(deep, 0o500);
    await removeTree(tree);
    expect(existsSync(tree)).toBe(false);
    symlinkSync(outside, tree);
    await removeTree(tree);
    await removeTree(tree);
    expect(readdirSync(outside)).toEqual(["kept"]);
    expect(lstatSync(tree, { throwIfNoEntry: false })).toBeUndefined();
  });
});
