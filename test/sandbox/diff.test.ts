// What counts as the agent's change, whatever it did to git.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readHead, readIndex } from "../../lib/sandbox/base.ts";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { git, KINDS, makeRepository, openBackend, removeDirectories } from "./support.ts";

const FILES = {
  "a.py": "one\ntwo\nthree\n",
  "sub/b.py": "b\n",
  ".gitignore": "*.pyc\n/out/\n",
  "run.sh": "echo\n",
};

const CHANGE = `diff --git a/a.py b/a.py
index 4cb29ea..f04eb26 100644
--- a/a.py
+++ b/a.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
`;

describe.each(KINDS)("the diff of a %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let repository: string;

  beforeAll(async () => {
    repository = makeRepository(FILES);
    backend = await openBackend(kind);
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  const diffAfter = async (...commands: string[]): Promise<string> => {
    const sandbox: Sandbox = await backend.open({ repository });
    for (const command of commands) await sandbox.exec(command, { timeoutMs: 2_000 });
    const diff = await sandbox.diff();
    await sandbox.close();
    return diff;
  };
  const edit = "sed -i s/two/2/ a.py";

  it("is empty where nothing changed, and shows an edit", async () => {
    expect(await diffAfter("true")).toBe("");
    expect(await diffAfter(edit)).toBe(CHANGE);
  });

  it("shows new, deleted, executable, linked and binary files, and leaves out ignored ones", async () => {
    const diff = await diffAfter(
      `${edit}; echo n >new.py; mkdir d; echo 'ä b' >'d/ä b.txt'; rm sub/b.py; chmod +x run.sh; ln -s a.py link; : >empty`,
      "printf 'a\\0b' >bin; touch x.pyc; mkdir out; echo o >out/o; mkdir nothing",
    );
    const check = makeRepository(FILES);
    writeFileSync(join(check, ".git/p"), diff);
    git(check, "apply", ".git/p");
    const status = git(check, "status", "--porcelain", "-uall").split("\n").slice(0, -1);
    expect(status.sort()).toEqual([
      " D sub/b.py",
      " M a.py",
      " M run.sh",
      '?? "d/\\303\\244 b.txt"',
      "?? bin",
      "?? empty",
      "?? link",
      "?? new.py",
    ]);
    expect(readFileSync(join(check, "d/ä b.txt"), "utf8")).toBe("ä b\n");
    expect(readFileSync(join(check, "bin"))).toEqual(Buffer.from("a\0b"));
  });

  it("is against the base, whatever was staged, committed, stashed or checked out", async () => {
    expect(await diffAfter(`${edit}; git add -A`)).toBe(CHANGE);
    expect(await diffAfter(`${edit}; git commit -qam x; git tag t`)).toBe(CHANGE);
    expect(
      await diffAfter(`${edit}; git checkout -q --orphan other; git commit -qam x; git update-ref -d HEAD`),
    ).toBe(CHANGE);
    expect(await diffAfter("echo n >n; git add n; rm n")).toBe("");
    expect(await diffAfter(`${edit}; git stash -q`)).toBe("");
  });

  it("does not mind what became of .git, its configuration, hooks and attributes", async () => {
    expect(await diffAfter(edit, "rm -rf .git")).toBe(CHANGE);
    expect(await diffAfter(edit, "echo '[broken' >.git/config; rm .git/index; echo x >.git/HEAD")).toBe(
      CHANGE,
    );
    const evil = "#!/bin/sh\necho evil; touch /repo/evil; exit 1\n";
    expect(
      await diffAfter(
        edit,
        `mkdir -p .git/hooks; printf '${evil}' >.git/evil; chmod +x .git/evil; cp .git/evil .git/hooks/post-index-change`,
        "for k in core.fsmonitor diff.external diff.evil.command diff.evil.textconv core.pager core.hooksPath; do git config $k /repo/.git/evil; done",
        "echo '* diff=evil filter=evil' >.git/info/attributes; mkdir -p ~/.config/git; echo '*' >~/.config/git/ignore",
        "export GIT_EXTERNAL_DIFF=/repo/.git/evil GIT_DIR=/nowhere GIT_INDEX_FILE=/x GIT_TRACE=1 LD_PRELOAD=/x PATH=/nowhere",
      ),
    ).toBe(CHANGE);
  });

  it("does not mind a bent shell, locked folders, a tree of other repositories, another directory", async () => {
    expect(await diffAfter(edit, "exec() { :; }; builtin() { :; }; cd /tmp")).toBe(CHANGE);
    expect(await diffAfter(edit, "chmod 000 sub a.py")).toBe(CHANGE);
    expect(await diffAfter(edit, "chmod 000 .")).toBe(CHANGE);
    expect(await diffAfter(edit, "git init -q inner; echo x >inner/x")).toContain(CHANGE);
    expect(await diffAfter(edit, "sleep 60 & trap '' TERM HUP; set -eu -o noglob")).toBe(CHANGE);
  });

  it("is written by nobody else: not by what still runs, nor by functions and modes of the shell", async () => {
    const noise = "(while :; do echo noise; echo noise >&2; done) & disown";
    expect(await diffAfter(edit, noise)).toBe(CHANGE);
    expect(await diffAfter("set -xv; trap 'echo trapped' DEBUG; set -T")).toBe("");
    const forged = 'builtin() { case $1 in exec) echo forged; exit 0;; *) command builtin "$@";; esac; }';
    expect(await diffAfter(edit, forged)).toBe(CHANGE);
  });

  it("keeps new files beside a repository that holds nothing", async () => {
    const diff = await diffAfter("git init -q scratch; mkdir -p /tmp; touch ~/.git-objects; echo n >new.py");
    expect(diff).toContain("+++ b/new.py\n");
  });

  it("carries every byte of files that are not UTF-8", async () => {
    const latin = Buffer.from("name = 'caf\xe9'\nx = 1 - 2\n", "latin1");
    const before = makeRepository({ "a.py": latin });
    const sandbox = await backend.open({ repository: before });
    await sandbox.exec("sed -i 's/1 - 2/1 + 2/' a.py");
    const diff = await sandbox.diff();
    await sandbox.close();
    writeFileSync(join(before, ".git/p"), diff);
    git(before, "apply", ".git/p");
    const after = Buffer.from(latin.toString("latin1").replace("1 - 2", "1 + 2"), "latin1");
    expect(readFileSync(join(before, "a.py"))).toEqual(after);
  });

  it("is empty where the change is beyond any patch, and the sandbox goes on", async () => {
    const sandbox = await backend.open({ repository, limits: { fileBytes: 64 * 1024 * 1024 } });
    await sandbox.exec("yes | head -c 10M >a.py");
    expect(await sandbox.diff()).toBe("");
    await sandbox.exec("git checkout -q a.py");
    await sandbox.exec(edit);
    expect(await sandbox.diff()).toBe(CHANGE);
    expect(await sandbox.diff()).toBe(CHANGE);
    await sandbox.close();
  });

  it("is an infrastructure error where the repository itself is broken", async () => {
    const broken = makeRepository(FILES);
    const tree = git(broken, "rev-parse", "HEAD^{tree}").trim();
    execFileSync("rm", ["-f", join(broken, ".git/objects", tree.slice(0, 2), tree.slice(2))]);
    const sandbox = await backend.open({ repository: broken });
    await sandbox.exec(edit);
    await expect(sandbox.diff()).rejects.toMatchObject({ code: "ERR_TOKENRING_SANDBOX" });
    await sandbox.close();
  });
});

describe("the base of a sandbox", () => {
  it("is read from a branch, packed references or a bare commit, without git", () => {
    const repository = makeRepository(FILES);
    const head = git(repository, "rev-parse", "HEAD").trim();
    expect(readHead(repository)).toBe(head);
    git(repository, "pack-refs", "--all");
    expect(readHead(repository)).toBe(head);
    git(repository, "checkout", "-q", "--detach");
    expect(readHead(repository)).toBe(head);
    expect(() => readHead("/usr")).toThrow(/no \.git folder/);
    removeDirectories();
  });

  it("knows the paths of an index, or that it cannot read it", () => {
    const files = Object.fromEntries(
      Array.from({ length: 20 }, (_, i) => [`${"d".repeat(i)}/f${i}`, `${i}`]),
    );
    const repository = makeRepository({ ...files, "0/f": "", ü: "" });
    const names = git(repository, "ls-files", "-z").split("\0").slice(0, -1);
    const index = join(repository, ".git/index");
    expect([...(readIndex(readFileSync(index))?.keys() ?? [])].sort()).toEqual(names.sort());
    writeFileSync(join(repository, "later"), "x");
    git(repository, "add", "--intent-to-add", "later");
    expect(readFileSync(index).readUInt32BE(4)).toBe(3);
    expect([...(readIndex(readFileSync(index))?.keys() ?? [])].sort()).toEqual([...names, "later"].sort());
    git(repository, "update-index", "--index-version", "4");
    expect(readIndex(readFileSync(index))).toBeNull();
    expect(readIndex(Buffer.from("DIRC"))).toBeNull();
    removeDirectories();
  });

  it.each(KINDS)("is worked out by git in a %s sandbox where the index cannot be read", async (kind) => {
    const repository = makeRepository(FILES);
    git(repository, "update-index", "--index-version", "4");
    const backend = await openBackend(kind);
    const sandbox = await backend.open({ repository });
    await sandbox.exec("sed -i s/two/2/ a.py; echo n >n");
    expect(await sandbox.diff()).toMatch(/a\.py(.|\n)*\+2\n(.|\n)*b\/n\n(.|\n)*\+n\n/);
    await backend.dispose();
    removeDirectories();
  });
});
