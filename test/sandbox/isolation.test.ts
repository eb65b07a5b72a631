// What namespaces keep an agent from. Where bubblewrap is not installed there is nothing of this to test.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import {
  APART,
  KINDS,
  makeRepository,
  openBackend,
  processesWith,
  removeDirectories,
  temporaryDirectory,
} from "./support.ts";

describe.each(APART)("a %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let sandbox: Sandbox;
  let repository: string;
  const output = async (command: string): Promise<string> => (await sandbox.exec(command)).output;

  beforeAll(async () => {
    repository = makeRepository({ "a.txt": "a\n" });
    backend = await openBackend(kind);
    sandbox = await backend.open({ repository });
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("sees no file of the host's users", async () => {
    const secret = join(temporaryDirectory(), "secret");
    writeFileSync(secret, "secret");
    for (const path of ["/root", "/home", "/var", "/etc/shadow", "/sys", secret, repository]) {
      expect(await output(`ls -d ${path}`), path).toContain("No such file or directory");
    }
    expect(await output("cat /etc/passwd")).toBe(
      "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/tmp:/bin/bash\n",
    );
  });

  it("writes nowhere but in its tree and /tmp", async () => {
    const written = await output(
      "for d in / /usr /usr/bin /etc /opt /opt/base /opt/bin /dev /proc; do echo >$d/x && echo $d; done 2>/dev/null",
    );
    expect(written).toBe("");
    expect(existsSync("/usr/x") || existsSync("/usr/bin/x")).toBe(false);
    expect(await output("echo x >/tmp/x && cat /tmp/x && echo y >/repo/y && cat y && rm y /tmp/x")).toBe(
      "x\ny\n",
    );
    expect(existsSync(join(repository, "y"))).toBe(false);
  });

  it("has no network, not even the host's own", async () => {
    const server: Server = createServer((socket) => socket.end("reached\n"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    expect(await output(`exec 9<>/dev/tcp/127.0.0.1/${port} && cat <&9`)).toContain("Connection refused");
    expect(await output("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '")).toBe("lo\n");
    server.close();
  });

  it("sees and reaches its own processes only", async () => {
    expect((await output("ps -e -o comm=")).trim().split("\n").sort()).toEqual(["bash", "ps"]);
    expect(await output(`kill -9 ${process.pid}`)).toContain("No such process");
  });

  it("has no rights and no name of the host", async () => {
    expect(await output("id -u; id -g; hostname; grep CapEff /proc/self/status")).toBe(
      "1000\n1000\nsandbox\nCapEff:\t0000000000000000\n",
    );
    expect((await sandbox.exec("mount -t tmpfs x /repo")).exitCode).not.toBe(0);
  });

  it("inherits nothing of the host's environment", async () => {
    process.env.TOKENRING_TEST_SECRET = "secret";
    const other = await openBackend(kind);
    const inside = await other.open({ repository });
    expect((await inside.exec("env; cat /proc/*/environ")).output).not.toContain("TOKENRING_TEST_SECRET");
    delete process.env.TOKENRING_TEST_SECRET;
    await other.dispose();
  });

  it("keeps sandboxes apart", async () => {
    const other = await backend.open({ repository });
    await sandbox.exec("echo mine >/tmp/mine; echo mine >mine");
    expect((await other.exec("ls /tmp /repo")).output).not.toContain("mine");
    await other.close();
  });
});

describe.each(KINDS)("a %s sandbox whose host process is killed", (kind: LocalKind) => {
  it("dies with it, and the next start removes what is left", async () => {
    const repository = makeRepository({ "a.txt": "a\n" });
    const directory = temporaryDirectory();
    const mark = `9${process.pid}.${kind.length}`;
    const program = join(import.meta.dirname, "orphan.ts");
    const child = spawn(process.execPath, ["--import", "tsx", program, kind, directory, repository, mark], {
      stdio: ["ignore", "pipe", "inherit"],
      timeout: 30_000,
      killSignal: "SIGKILL",
    });
    const lines = createInterface({ input: child.stdout });
    const [left] = await new Promise<string[]>((resolve, reject) => {
      lines.once("line", (line) => resolve([line]));
      child.once("exit", (code) => reject(new Error(`the child ended with ${code}`)));
    });
    expect(left).toBe("running");
    await expect.poll(() => processesWith(`sleep\0${mark}`).length, { timeout: 10_000 }).toBe(1);
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
    await expect.poll(() => processesWith(`sleep\0${mark}`).length, { timeout: 10_000 }).toBe(0);
    const backend = await openBackend(kind, { directory });
    expect(readdirSync(directory)).toEqual([expect.stringContaining(`-${process.pid}-`)]);
    await backend.dispose();
    expect(readdirSync(directory)).toEqual([]);
    removeDirectories();
  });
});
