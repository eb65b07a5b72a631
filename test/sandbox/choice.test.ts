// Which kind is taken where the kernel refuses what better ones need.
import { spawnSync } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { probeSandboxes } from "../../lib/sandbox/local.ts";
import { ISOLATED, openBackend, removeDirectories, temporaryDirectory } from "./support.ts";

type Found = Partial<Awaited<ReturnType<typeof probeSandboxes>>> & { refused?: string };

/** A seccomp program that fails one system call with ENOSYS: load its number, compare, refuse, allow. */
function refusing(call: number): Buffer {
  const code = [
    [0x20, 0, 0, 0],
    [0x15, 0, 1, call],
    [0x06, 0, 0, 0x0005_0026],
    [0x06, 0, 0, 0x7fff_0000],
  ];
  return Buffer.concat(
    code.map(([operation, yes, no, value]) => {
      const instruction = Buffer.alloc(8);
      instruction.writeUInt16LE(operation as number, 0);
      instruction.writeUInt8(yes as number, 2);
      instruction.writeUInt8(no as number, 3);
      instruction.writeUInt32LE(value as number, 4);
      return instruction;
    }),
  );
}

const MOUNT_SETATTR = 442;
const LANDLOCK_CREATE_RULESET = 444;

describe.runIf(ISOLATED.length === 3)("where namespaces, or some of what they take, are refused", () => {
  afterAll(removeDirectories);

  // As in a plain container, where the system calls that make namespaces and mounts fail.
  const container = async (): Promise<Buffer> => {
    const directory = temporaryDirectory();
    const backend = await openBackend("bubblewrap", { directory });
    const filter = readFileSync(join(directory, readdirSync(directory)[0] as string, "filter"));
    await backend.dispose();
    return filter;
  };

  const probe = (...programs: Buffer[]): Found => {
    const filters = programs.map((program, i) => {
      const path = join(temporaryDirectory(), `filter-${i}`);
      writeFileSync(path, program);
      return path;
    });
    const files = filters.map((filter) => openSync(filter, "r"));
    const args = files.flatMap((_, i) => ["--add-seccomp-fd", String(3 + i)]);
    const program = [process.execPath, "--import", "tsx", join(import.meta.dirname, "probe.ts")];
    const result = spawnSync("bwrap", ["--dev-bind", "/", "/", "--cap-add", "ALL", ...args, ...program], {
      encoding: "utf8",
      timeout: 50_000,
      stdio: ["ignore", "pipe", "inherit", ...files],
    });
    for (const file of files) closeSync(file);
    return JSON.parse(result.stdout) as Found;
  };

  it("by bubblewrap where the kernel is too old for our own", () => {
    const { kind, weaker } = probe(refusing(MOUNT_SETATTR));
    expect({ kind, weaker }).toEqual({ kind: "bubblewrap", weaker: null });
  });

  it("Landlock is taken, and one line says why and what is weaker", async () => {
    const { kind, weaker } = probe(await container());
    expect(kind).toBe("landlock");
    expect(weaker).toMatch(
      /because namespaces cannot be had here \(.*not permitted.*\): .*disk limit.*To cure it/,
    );
    expect(weaker).not.toContain("\n");
  });

  it("and Landlock too: there is none, and the message names the cure and the way without isolation", async () => {
    const { kind, refused } = probe(await container(), refusing(LANDLOCK_CREATE_RULESET));
    expect(kind).toBeUndefined();
    expect(refused).toMatch(
      /^No sandbox works here: .*Landlock.*apt-get install bubblewrap.*--sandbox unsafe-host/,
    );
  });
});
