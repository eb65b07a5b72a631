// What a sandbox's files may take, and trees that are too large to be copied for each.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LARGE_TREE } from "../../lib/sandbox/base.ts";
import { type LocalKind, probeSandboxes } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { APART, git, ISOLATED, KINDS, makeRepository, openBackend, removeDirectories } from "./support.ts";

const MiB = 1024 * 1024;

describe.each(ISOLATED)("the disk of a %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let sandbox: Sandbox;

  beforeAll(async () => {
    backend = await openBackend(kind);
    // 16 times fileBytes are the limit.
    sandbox = await backend.open({
      repository: makeRepository({ "a.txt": "a\n" }),
      limits: { fileBytes: MiB / 2 },
    });
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("counts files that were deleted and are still open", async () => {
    await sandbox.write(
      "held.py",
      `import os, time
held = []
try:
    while len(held) < 60:
        f = open("f", "wb", 0)
        f.write(bytes(500 << 10))
        os.unlink("f")
        held.append(f)
    time.sleep(20)
    print("ESCAPED")
except OSError as error: print(error.strerror)`,
    );
    const { output } = await sandbox.exec("python held.py", { timeoutMs: 15_000 });
    expect(output).toMatch(/No space left on device|Disk quota exceeded/);
    expect((await sandbox.exec("rm -f held.py f; echo alive; ls")).output).toBe("alive\na.txt\n");
  });

  it("counts names as well as bytes", async () => {
    const many = `import os, time
os.mkdir("many")
try:
    for i in range(25000): open(f"many/{i}", "w").close()
    time.sleep(20)
    print("ESCAPED")
except OSError as error: print(error.strerror)`;
    const { output } = await sandbox.exec(`python -c '${many}'`, { timeoutMs: 25_000 });
    expect(output).toMatch(/No space left on device|Disk quota exceeded/);
    // Where we look, removing takes a few commands as well while there is too much.
    for (let i = 0; i < 50 && (await sandbox.exec("rm -rf many")).exitCode !== 0; i++);
    expect((await sandbox.exec("ls")).output).toBe("a.txt\n");
  });

  it.runIf(APART.includes(kind))("is full, and what the host does there still works", async () => {
    await sandbox.exec("echo b >a.txt; i=0; while head -c 400K /dev/zero >/tmp/f$i; do i=$((i+1)); done");
    await sandbox.exec(
      "i=0; while : >/tmp/e$i; do i=$((i+1)); done; i=0; while echo >>/tmp/e$i; do i=$((i+1)); done",
    );
    expect((await sandbox.exec("echo more >more && cat more")).output).toContain("No space left");
    expect(await sandbox.read("a.txt")).toBe("b\n");
    expect(await sandbox.diff()).toMatch(/-a\n\+b\n/);
    expect((await sandbox.exec("rm /tmp/*; rm -f more; echo alive")).output).toBe("alive\n");
    await sandbox.write("new.txt", "new\n");
    expect(await sandbox.diff()).toMatch(/\+b\n(.|\n)*\+new\n/);
  });

  it("bounds the memory of all processes together, where control groups can be had", async () => {
    const { groups } = await probeSandboxes();
    if (!groups.memory) return;
    const other = await backend.open({
      repository: makeRepository({ "a.txt": "a\n" }),
      limits: { memoryBytes: 256 * MiB, fileBytes: MiB / 2 },
    });
    // Each keeps to the limit of one process.
    const program = `import os, time
for i in range(5):
    if os.fork() == 0:
        block = bytearray(150 << 20)
        for at in range(0, len(block), 4096): block[at] = 1
        os._exit(0) if i < 0 else time.sleep(20)
ended = [os.waitstatus_to_exitcode(os.wait()[1]) for i in range(3)]
print(ended)`;
    await other.write("memory.py", program);
    expect((await other.exec("python memory.py", { timeoutMs: 15_000 })).output).toContain("-9");
    expect((await other.exec("echo alive")).output).toBe("alive\n");
    await other.close();
  });
});

describe.each(KINDS)("a tree too large to be copied for every %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let repository: string;

  beforeAll(async () => {
    const files = Array.from({ length: LARGE_TREE.entries + 20 }, (_, i) => [
      `d${i % 10}/f${i}.txt`,
      `${i}\n`,
    ]);
    repository = makeRepository({ "a.txt": "a\n", ".gitignore": "*.log\n", ...Object.fromEntries(files) });
    backend = await openBackend(kind);
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("lies under an overlay, where a sandbox has a disk of its own", async () => {
    const [one, two] = await Promise.all([backend.open({ repository }), backend.open({ repository })]);
    const type = (await one.exec("stat -f -c %T .")).output;
    if (APART.includes(kind)) expect(type).toBe("overlayfs\n");
    expect(
      (await one.exec("ls | wc -l; cat d3/f3.txt; git status --porcelain; git log --format=%s")).output,
    ).toBe("11\n3\nbase\n");
    await one.exec(
      "echo b >a.txt; rm -r d1; mv d2/f2.txt moved.txt; mkdir d1; echo n >d1/new; echo x >x.log; rm d3/f3.txt",
    );
    await one.exec("chmod 755 d4/f4.txt; ln -s a.txt link; git add -A; git commit -qm mine");
    expect((await two.exec("cat a.txt; ls d1 | wc -l; git status --porcelain; ls x.log")).output).toMatch(
      /^a\n3\d\nls: /,
    );
    const diff = await one.diff();
    expect(await two.diff()).toBe("");
    const check = makeRepository({ "a.txt": "a\n" });
    execFileSync("cp", ["-r", `${repository}/.`, check]);
    writeFileSync(join(check, ".git/p"), diff);
    git(check, "apply", ".git/p");
    expect(readFileSync(join(check, "moved.txt"), "utf8")).toBe("2\n");
    expect(existsSync(join(check, "d1/f1.txt")) || existsSync(join(check, "x.log"))).toBe(false);
    expect(readFileSync(join(check, "d1/new"), "utf8")).toBe("n\n");
    expect(git(repository, "status", "--porcelain")).toBe("");
    await Promise.all([one.close(), two.close()]);
  });

  it("is taken as a snapshot and opened again, also when the snapshot goes first", async () => {
    const one = await backend.open({ repository });
    await one.exec("echo b >a.txt; rm -r d1");
    const snapshot = await one.snapshot();
    await one.close();
    const [fork, other] = await Promise.all([
      backend.open({ repository: snapshot.repository }),
      backend.open({ repository: snapshot.repository }),
    ]);
    await snapshot.dispose();
    await fork.exec("echo c >>a.txt");
    expect((await other.exec("cat a.txt; ls -d d1; cat d0/f0.txt")).output).toMatch(/^b\nls: .*\n0\n$/);
    expect(await fork.diff()).toMatch(/-a\n\+b\n\+c\n/);
    await Promise.all([fork.close(), other.close()]);
  });

  it("shows what the host has changed since, and keeps what is open as it was", async () => {
    const before = await backend.open({ repository });
    mkdirSync(join(repository, "later"));
    writeFileSync(join(repository, "later/x"), "later\n");
    const after = await backend.open({ repository });
    expect((await after.exec("cat later/x")).output).toBe("later\n");
    expect((await before.exec("cat later/x")).output).toContain("No such file");
    await Promise.all([before.close(), after.close()]);
  });
});
