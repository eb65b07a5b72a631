// Opening, snapshots, aborting and closing; what a backend leaves behind is nothing.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { type LocalKind, localBackend } from "../../lib/sandbox/local.ts";
import {
  APART,
  git,
  ISOLATED,
  KINDS,
  makeRepository,
  openBackend,
  processesWith,
  removeDirectories,
  temporaryDirectory,
} from "./support.ts";

afterEach(removeDirectories);

describe.each(KINDS)("a %s backend", (kind: LocalKind) => {
  it("names its kind, and leaves the repository and the machine as they were", async () => {
    const directory = temporaryDirectory();
    const repository = makeRepository({ "a.txt": "a\n" });
    const backend = await openBackend(kind, { directory });
    expect(backend.name).toBe(kind);
    const sandbox = await backend.open({ repository });
    await sandbox.exec("echo b >a.txt; echo c >c; git commit -qam x");
    await sandbox.close();
    await sandbox.close();
    expect(git(repository, "status", "--porcelain")).toBe("");
    expect(readdirSync(repository).sort()).toEqual([".git", "a.txt"]);
    await backend.dispose();
    await backend.dispose();
    expect(readdirSync(directory)).toEqual([]);
    await expect(backend.open({ repository })).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });
    await expect(sandbox.exec("true")).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });
  });

  it("takes another workdir", async () => {
    const backend = await openBackend(kind);
    const sandbox = await backend.open({
      repository: makeRepository({ "a.txt": "a\n" }),
      workdir: "/testbed/tree-1",
    });
    expect(await sandbox.exec("pwd; cat /testbed/tree-1/a.txt")).toMatchObject({
      output: "/testbed/tree-1\na\n",
      cwd: "/testbed/tree-1",
    });
    await sandbox.exec("echo b >a.txt");
    expect(await sandbox.diff()).toContain("+b\n");
    await backend.dispose();
  });

  it("refuses what it cannot open, and says why", async () => {
    const directory = temporaryDirectory();
    const backend = await openBackend(kind);
    const repository = makeRepository({ "a.txt": "" });
    const invalid = { code: "ERR_TOKENRING_INVALID_ARGUMENT" };
    await expect(backend.open({ repository: directory })).rejects.toMatchObject(invalid);
    await expect(backend.open({ repository: join(directory, "none") })).rejects.toMatchObject(invalid);
    await expect(backend.open({ repository, workdir: "/a b" })).rejects.toMatchObject(invalid);
    await expect(backend.open({ repository, workdir: "/../x" })).rejects.toMatchObject(invalid);
    await expect(backend.open({ repository, env: { "A;B": "" } })).rejects.toMatchObject(invalid);
    await expect(backend.open({ repository, limits: { processes: -1 } })).rejects.toMatchObject(invalid);
    await backend.dispose();
  });

  it("opens more sandboxes at once than it makes room for in advance, and uses their places again", async () => {
    const backend = await openBackend(kind);
    const repository = makeRepository({ "a.txt": "a\n" });
    for (let round = 0; round < 2; round++) {
      const sandboxes = await Promise.all(Array.from({ length: 20 }, () => backend.open({ repository })));
      const outputs = await Promise.all(
        sandboxes.map(async (sandbox, i) => {
          await sandbox.exec(`echo ${i} >>a.txt`);
          return (await sandbox.exec("cat a.txt")).output;
        }),
      );
      expect(outputs).toEqual(sandboxes.map((_, i) => `a\n${i}\n`));
      await Promise.all(sandboxes.map((sandbox) => sandbox.close()));
    }
    await backend.dispose();
  });

  it("takes snapshots that start where the sandbox stood, with diffs from the same base", async () => {
    const directory = temporaryDirectory();
    const backend = await openBackend(kind, { directory });
    const sandbox = await backend.open({ repository: makeRepository({ "a.txt": "a\n" }) });
    await sandbox.exec("echo b >a.txt; echo new >new; git commit -qam b; mkfifo pipe; ln -s a.txt link");
    const snapshot = await sandbox.snapshot();
    await sandbox.exec("echo later >a.txt");
    await sandbox.close();
    const fork = await backend.open({ repository: snapshot.repository });
    expect((await fork.exec("cat a.txt new link; ls -A; git log --format=%s")).output).toBe(
      "b\nnew\nb\n.git\na.txt\nlink\nnew\nb\nbase\n",
    );
    await fork.exec("echo c >>a.txt");
    expect(await fork.diff()).toMatch(/-a\n\+b\n\+c\n(.|\n)*\+new\n/);
    const second = await fork.snapshot();
    await fork.close();
    await snapshot.dispose();
    await snapshot.dispose();
    expect(existsSync(snapshot.repository)).toBe(false);
    const again = await backend.open({ repository: second.repository });
    expect(await again.diff()).toMatch(/-a\n\+b\n\+c\n/);
    await backend.dispose();
    expect(readdirSync(directory)).toEqual([]);
  });

  it("opens, and takes snapshots of, trees with names that are no text, or too long to be copied", async () => {
    const backend = await openBackend(kind);
    const repository = makeRepository({ "a.txt": "a\n" });
    writeFileSync(Buffer.concat([Buffer.from(`${repository}/n`), Buffer.of(0xe9)]), "odd\n");
    const sandbox = await backend.open({ repository });
    expect((await sandbox.exec("cat n*")).output).toBe("odd\n");
    const snapshot = await sandbox.snapshot();
    await snapshot.dispose();
    await sandbox.exec(
      'python3 -c \'import os\nfor i in range(600): os.mkdir("long-name"); os.chdir("long-name")\'',
    );
    await expect(sandbox.snapshot()).rejects.toMatchObject({ code: "ERR_TOKENRING_SANDBOX" });
    await backend.dispose();
  });

  it("aborts opening and commands, and the sandbox lives on", async () => {
    const backend = await openBackend(kind);
    const repository = makeRepository({ "a.txt": "a\n" });
    const aborted = { code: "ERR_TOKENRING_ABORTED" };
    await expect(backend.open({ repository }, { signal: AbortSignal.abort("no") })).rejects.toMatchObject(
      aborted,
    );
    const controller = new AbortController();
    const opening = backend.open({ repository }, { signal: controller.signal });
    controller.abort();
    await expect(opening).rejects.toMatchObject(aborted);

    const sandbox = await backend.open({ repository });
    const mark = `8${process.pid}.${kind.length}`;
    const stop = new AbortController();
    const running = sandbox.exec(`echo begun >begun; sleep ${mark}`, { signal: stop.signal });
    await expect.poll(() => processesWith(`sleep\0${mark}`).length, { timeout: 10_000 }).toBe(1);
    stop.abort();
    await expect(running).rejects.toMatchObject(aborted);
    expect((await sandbox.exec("cat begun")).output).toBe("begun\n");
    expect(processesWith(`sleep\0${mark}`)).toEqual([]);
    await expect(sandbox.exec("true", { signal: stop.signal })).rejects.toMatchObject(aborted);
    await backend.dispose();
  });

  it("ends what runs when it is closed", async () => {
    const backend = await openBackend(kind);
    const sandbox = await backend.open({ repository: makeRepository({ "a.txt": "a\n" }) });
    const mark = `6${process.pid}.${kind.length}`;
    const running = sandbox.exec(`sleep ${mark} & sleep ${mark}`);
    const queued = sandbox.exec("echo never");
    await expect.poll(() => processesWith(`sleep\0${mark}`).length, { timeout: 10_000 }).toBe(2);
    await Promise.all([
      expect(running).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" }),
      expect(queued).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" }),
      backend.dispose(),
    ]);
    expect(processesWith(`sleep\0${mark}`)).toEqual([]);
  });

  it("starts the program that starts sandboxes again when it is killed", async () => {
    const directory = temporaryDirectory();
    const backend = await openBackend(kind, { directory });
    const repository = makeRepository({ "a.txt": "a\n" });
    const sandbox = await backend.open({ repository });
    const [scratch = ""] = readdirSync(directory);
    const launchers = (): number[] => processesWith(`\0${join(directory, scratch)}\0`);
    // With it, where there is one, the process that watches over the sandbox: what is forked from it bears its name.
    expect(launchers().length).toBe(APART.includes(kind) ? 1 : 2);
    process.kill(Math.min(...launchers()), "SIGKILL");
    await expect.poll(() => launchers().length, { timeout: 10_000 }).toBe(0);
    const outcome = await sandbox.exec("echo x").then(
      () => "lived on",
      (error: { code?: string }) => error.code,
    );
    expect(["lived on", "ERR_TOKENRING_SANDBOX"]).toContain(outcome);
    const next = await backend.open({ repository });
    expect((await next.exec("echo y")).output).toBe("y\n");
    // Killed again, and this time asked before anybody has noticed.
    process.kill(Math.min(...launchers()), "SIGKILL");
    const last = await backend.open({ repository });
    expect((await last.exec("echo z")).output).toBe("z\n");
    await backend.dispose();
  });

  it("installs one exit listener, no signal handlers, and takes it back", async () => {
    const count = (): number[] =>
      ["exit", "SIGINT", "SIGTERM", "SIGHUP", "beforeExit"].map((event) => process.listenerCount(event));
    const before = count();
    const backends = [await openBackend(kind), await openBackend(kind)];
    expect(count()).toEqual([(before[0] ?? 0) + 1, ...before.slice(1)]);
    await Promise.all(backends.map((backend) => backend.dispose()));
    expect(count()).toEqual(before);
  });

  it("removes what dead processes left, and nothing else", async () => {
    const directory = temporaryDirectory();
    const host = hostname().replace(/[^\w.]/g, "_");
    const dead = Number(execFileSync("sh", ["-c", "echo $$"], { encoding: "utf8" }));
    const names = [
      `tokenring-${host}-${dead}-abc`,
      `tokenring-${host}-${process.pid}-abc`,
      "tokenring-elsewhere-1-abc",
    ];
    for (const name of names) mkdirSync(join(directory, name, "deep"), { recursive: true });
    writeFileSync(join(directory, "other"), "");
    const backend = await openBackend(kind, { directory });
    await backend.dispose();
    expect(readdirSync(directory).sort()).toEqual(["other", ...names.slice(1)].sort());
  });
});

describe("localBackend", () => {
  it.runIf(ISOLATED.length > 0)(
    "takes the strongest kind there is, and warns of what is weaker",
    async () => {
      const warnings: string[] = [];
      const backend = await localBackend({ onWarning: (message) => warnings.push(message) });
      expect(backend.name).toBe(ISOLATED[0]);
      if (APART.includes(backend.name as LocalKind)) expect(warnings).toEqual([]);
      else expect(warnings).toEqual([expect.stringMatching(/Landlock.*apt-get install bubblewrap/)]);
      await backend.dispose();
    },
  );

  it.runIf(ISOLATED.includes("landlock"))("says in one line what Landlock leaves open", async () => {
    const warnings: string[] = [];
    const backend = await localBackend({ kind: "landlock", onWarning: (line) => warnings.push(line) });
    expect(warnings).toEqual([
      expect.stringMatching(/^Sandboxes are confined by Landlock and seccomp alone: .*disk limit.*apt-get/),
    ]);
    await backend.dispose();
  });

  it("warns also who asks for no isolation", async () => {
    const warnings: string[] = [];
    const backend = await localBackend({
      kind: "unsafe-host",
      onWarning: (message) => warnings.push(message),
    });
    expect(warnings).toEqual([expect.stringMatching(/WITHOUT ISOLATION.*apt-get install bubblewrap/)]);
    await backend.dispose();
  });

  it("refuses limits and directories that make no sense", async () => {
    await expect(localBackend({ limits: { cpuSeconds: 0 } })).rejects.toThrow(/cpuSeconds/);
    await expect(localBackend({ directory: "/nonesuch" })).rejects.toMatchObject({
      code: "ERR_TOKENRING_SANDBOX",
    });
  });
});
