import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { findCheckpoint } from "../../lib/run/checkpoints.ts";
import { RunDirectory, readManifest } from "../../lib/run/directory.ts";
import { readEvents } from "../../lib/run/metrics.ts";

let at: string;
beforeEach(async () => {
  at = path.join(await mkdtemp(path.join(tmpdir(), "tokenring-run-")), "run");
});
afterEach(() => rm(path.dirname(at), { recursive: true }));

const make = (): Promise<RunDirectory> =>
  RunDirectory.create(at, {
    config: { batchSize: 8 },
    seed: 7,
    version: "1.2.3",
    configText: "batchSize: 8 # why\n",
  });

const FAULT = "ERR_TOKENRING_RUN_DIRECTORY";

describe("create and open", () => {
  test("keeps seed, version and the config in both forms", async () => {
    await using run = await make();
    expect(run.manifest).toMatchObject({ schema: 1, seed: 7, version: "1.2.3", config: { batchSize: 8 } });
    expect(run.progress).toBeNull();
    expect(await readFile(path.join(at, "config.yaml"), "utf8")).toBe("batchSize: 8 # why\n");
    expect(await readManifest(at)).toEqual(run.manifest);
  });

  test("a directory with something in it is left alone", async () => {
    await mkdir(at);
    await writeFile(path.join(at, "thesis.tex"), "!");
    await expect(make()).rejects.toMatchObject({
      code: FAULT,
      message: /not empty \(thesis\.tex\).*empty or a new/,
    });
    expect(await readdir(at)).toEqual(["thesis.tex"]);
  });

  test("a finished run is not overwritten", async () => {
    await (await make()).close();
    await expect(make()).rejects.toMatchObject({ code: FAULT, message: /tokenring resume/ });
  });

  test("what is no run, and what another version wrote, is said to be so", async () => {
    await expect(RunDirectory.open(at)).rejects.toMatchObject({ code: FAULT, message: /no run\.json/ });
    await (await make()).close();
    const file = path.join(at, "run.json");
    await writeFile(file, (await readFile(file, "utf8")).replace('"schema": 1', '"schema": 9'));
    await expect(RunDirectory.open(at)).rejects.toMatchObject({
      code: FAULT,
      message: /schema 9, this version reads schema 1; use tokenring 1\.2\.3/,
    });
    await writeFile(file, "{");
    await expect(readManifest(at)).rejects.toMatchObject({ code: FAULT, message: /not JSON/ });
  });

  test.each([
    ["null", "null", /\(whole file\)/],
    ["a list", "[]", /schema: /],
    [
      "no config",
      '{"schema":1,"version":"1.2.3","seed":7,"createdAt":"2025-01-01T00:00:00.000Z"}',
      /config: missing/,
    ],
    ["no date", '{"schema":1,"version":"1.2.3","seed":7,"config":{}}', /createdAt: /],
  ])("a run.json that holds %s is damaged", async (_, text, which) => {
    await (await make()).close();
    const file = path.join(at, "run.json");
    await writeFile(file, text);
    for (const read of [readManifest, RunDirectory.open]) {
      const error = await read(at).then(
        () => null,
        (thrown: Error) => thrown,
      );
      expect(error).toMatchObject({ code: FAULT, message: which });
      expect(error?.message).toMatch(
        /^\S+run\.json: damaged: .*; restore it from a copy or start a new run$/,
      );
    }
  });

  test.each([
    ["null", "null", /damaged: \(whole file\)/],
    ["text", "{", /damaged: not JSON/],
    ["no progress", '{"schema":1,"metricsBytes":0,"indexBytes":0}', /damaged: progress: missing/],
    [
      "a negative length",
      '{"schema":1,"progress":null,"metricsBytes":-1,"indexBytes":0}',
      /damaged: metricsBytes/,
    ],
    ["nothing, being gone,", null, /missing, the run is damaged/],
  ])("a state.json that holds %s is damaged", async (_, text, which) => {
    await (await make()).close();
    const file = path.join(at, "state.json");
    await (text === null ? rm(file) : writeFile(file, text));
    const error = await RunDirectory.open(at).then(
      () => null,
      (thrown: Error) => thrown,
    );
    expect(error).toMatchObject({ code: FAULT, message: which });
    expect(error?.message).toMatch(/state\.json: .*; restore it from a copy or start a new run$/);
    expect(await readdir(at)).not.toContain("lock");
  });

  test("a run without its checkpoints is damaged", async () => {
    await (await make()).close();
    await rm(path.join(at, "checkpoints"), { recursive: true });
    await expect(RunDirectory.open(at)).rejects.toMatchObject({
      code: FAULT,
      message: /checkpoints: missing, the run is damaged; restore it/,
    });
    expect(await readdir(at)).not.toContain("lock");
  });

  test("a path through a file is explained", async () => {
    await writeFile(path.join(path.dirname(at), "file"), "");
    at = path.join(path.dirname(at), "file", "run");
    await expect(make()).rejects.toMatchObject({ code: FAULT, message: /a part of the path is a file/ });
    at = path.dirname(at);
  });
});

describe("a run in which nothing was recorded", () => {
  test("is removed, with its folder if that was made for it", async () => {
    expect(await (await make()).discardUnused()).toBe(true);
    expect(await readdir(path.dirname(at))).toEqual([]);
    await mkdir(at);
    const run = await make();
    expect(await run.discardUnused()).toBe(true);
    expect(await readdir(at)).toEqual([]);
    expect(await run.discardUnused()).toBe(false);
    await (await make()).close();
  });

  test("stays if it was there before, and so does what somebody else put into it", async () => {
    await (await make()).close();
    {
      await using reopened = await RunDirectory.open(at);
      expect(await reopened.discardUnused()).toBe(false);
    }
    expect((await readManifest(at)).seed).toBe(7);
    await rm(at, { recursive: true });
    const run = await make();
    await writeFile(path.join(at, "notes.txt"), "!");
    expect(await run.discardUnused()).toBe(true);
    expect(await readdir(at)).toEqual(["notes.txt"]);
  });

  test.each([
    ["an event", (run: RunDirectory) => run.record({ type: "stage_start", stage: "base" })],
    ["progress", (run: RunDirectory) => run.saveProgress(1)],
    ["a checkpoint", (run: RunDirectory) => run.saveCheckpoint("base", async () => {})],
  ])("is another than one with %s, which stays", async (_, write) => {
    await using run = await make();
    await write(run);
    expect(await run.discardUnused()).toBe(false);
    expect(await readManifest(at)).toEqual(run.manifest);
  });

  test("is not left half made", async () => {
    const broken = RunDirectory.create(at, { config: 1n, seed: 7, version: "1.2.3" });
    await expect(broken).rejects.toThrow(/BigInt/);
    expect(await readdir(path.dirname(at))).toEqual([]);
  });
});

describe("one writer", () => {
  test("the same run cannot be opened twice, and can be after close", async () => {
    const run = await make();
    await expect(RunDirectory.open(at)).rejects.toMatchObject({
      code: FAULT,
      message: new RegExp(`locked by process ${process.pid} `),
    });
    await run.close();
    await run.close();
    await (await RunDirectory.open(at)).close();
    expect(await readdir(at)).not.toContain("lock");
  });

  test("another process keeps us out while it lives, and not after it was killed", async () => {
    await (await make()).close();
    const child = spawn(process.execPath, ["--import", "tsx", "test/run/hold-lock.ts", at], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    try {
      await once(child.stdout, "data");
      await expect(RunDirectory.open(at)).rejects.toMatchObject({
        message: new RegExp(`locked by process ${child.pid} on ${hostname()}; wait for it`),
      });
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    await (await RunDirectory.open(at)).close();
  });

  test("a living process that reuses the owner's pid is not the owner", async () => {
    await (await make()).close();
    const lock = path.join(at, "lock");
    await writeFile(lock, JSON.stringify({ pid: process.ppid, host: hostname(), started: "1" }));
    await (await RunDirectory.open(at)).close();
  });

  test("a killed process that its parent has not reaped yet is no owner any more", async () => {
    await (await make()).close();
    // exec leaves the shell's child to a parent that never asks for its end.
    const script = "sh -c 'echo $$; kill -9 $$' & exec node -e 'process.stdin.resume()'";
    const parent = spawn("sh", ["-c", script], { stdio: ["pipe", "pipe", "ignore"] });
    try {
      const [text] = (await once(parent.stdout, "data")) as [Buffer];
      const pid = Number(text.toString());
      await vi.waitUntil(async () => / \(sh\) Z /.test(await readFile(`/proc/${pid}/stat`, "utf8")), {
        timeout: 20_000,
      });
      await writeFile(path.join(at, "lock"), JSON.stringify({ pid, host: hostname(), started: null }));
      await (await RunDirectory.open(at)).close();
    } finally {
      parent.kill("SIGKILL");
      await once(parent, "exit");
    }
  });

  test("of a process on another host nobody here can know", async () => {
    await (await make()).close();
    const lock = path.join(at, "lock");
    await writeFile(lock, JSON.stringify({ pid: 1, host: "elsewhere", started: null }));
    await expect(RunDirectory.open(at)).rejects.toMatchObject({
      message: new RegExp(`process 1 on elsewhere; if that process is gone, delete ${lock}`),
    });
  });
});

describe("metrics and progress", () => {
  test("events are lines in order, each with its time", async () => {
    await using run = await make();
    await Promise.all(["a", "b", "c"].map((stage) => run.record({ type: "stage_start", stage })));
    const events = await readEvents(path.join(at, "metrics.jsonl"));
    expect(events.map((event) => "stage" in event && event.stage)).toEqual(["a", "b", "c"]);
    expect(events[0]?.at).toBeGreaterThan(1.7e12);
  });

  test("a resumed run drops what came after the last saved progress", async () => {
    {
      await using run = await make();
      await run.record({ type: "stage_start", stage: "kept" });
      await run.saveProgress({ iteration: 3 });
      await run.record({ type: "stage_start", stage: "again" });
    }
    await appendFile(path.join(at, "metrics.jsonl"), '{"type":"half');
    await using run = await RunDirectory.open(at);
    expect(run.progress).toEqual({ iteration: 3 });
    await run.record({ type: "stage_start", stage: "next" });
    const events = await readEvents(path.join(at, "metrics.jsonl"));
    expect(events.map((event) => "stage" in event && event.stage)).toEqual(["kept", "next"]);
  });

  test("a reader leaves out the line that a killed writer did not finish, and no other", async () => {
    await (await make()).close();
    const file = path.join(at, "metrics.jsonl");
    await writeFile(file, '{"type":"stage_start","stage":"a"}\n{"type":"sta');
    expect(await readEvents(file)).toEqual([{ type: "stage_start", stage: "a" }]);
    await writeFile(file, '{"type":"sta\n{"type":"stage_start","stage":"a"}\n');
    await expect(readEvents(file)).rejects.toMatchObject({
      code: FAULT,
      message: /metrics\.jsonl:1: not JSON/,
    });
  });

  test("a log that lost lines is not written on", async () => {
    {
      await using run = await make();
      await run.record({ type: "stage_start", stage: "kept" });
      await run.saveProgress(1);
    }
    await truncate(path.join(at, "metrics.jsonl"), 5);
    await expect(RunDirectory.open(at)).rejects.toMatchObject({ code: FAULT, message: /has 5 bytes where/ });
    // The failed attempt gave the lock back.
    expect(await readdir(at)).not.toContain("lock");
  });
});

describe("checkpoints", () => {
  test("appear whole, and latest follows", async () => {
    await using run = await make();
    await expect(findCheckpoint(at)).rejects.toMatchObject({
      code: FAULT,
      message: /no checkpoint; it has none yet/,
    });
    const first = await run.saveCheckpoint("rft", (to) => writeFile(path.join(to, "model"), "1"));
    expect(first).toBe(path.join(at, "checkpoints", "rft"));
    await run.saveCheckpoint("stage1-0004", (to) => writeFile(path.join(to, "model"), "2"));
    const newest = { name: "stage1-0004", path: path.join(at, "checkpoints", "stage1-0004") };
    expect(await findCheckpoint(at)).toEqual(newest);
    expect(await findCheckpoint(at, "latest")).toEqual(newest);
    expect(await findCheckpoint(at, "rft")).toEqual({ name: "rft", path: first });
    await expect(findCheckpoint(at, "none")).rejects.toMatchObject({
      code: FAULT,
      message: /no checkpoint named none; it has rft, stage1-0004/,
    });
    expect(await readFile(path.join(at, "checkpoints", "latest", "model"), "utf8")).toBe("2");
    await rm(path.join(at, "checkpoints", "latest"));
    for (const name of [undefined, "latest"]) {
      await expect(findCheckpoint(at, name)).rejects.toMatchObject({
        code: FAULT,
        message: /"latest" leads nowhere; name one with --checkpoint: rft, stage1-0004$/,
      });
    }
  });

  test("the same name again replaces it", async () => {
    await using run = await make();
    await run.saveCheckpoint("rft", (to) => writeFile(path.join(to, "old"), "1"));
    await run.saveCheckpoint("rft", (to) => writeFile(path.join(to, "new"), "2"));
    expect(await readdir(path.join(at, "checkpoints", "rft"))).toEqual(["new"]);
    expect((await readdir(path.join(at, "checkpoints"))).sort()).toEqual(["latest", "rft"]);
  });

  test("a full disk leaves the checkpoint before as it was, and says what to do", async () => {
    await using run = await make();
    await run.saveCheckpoint("one", (to) => writeFile(path.join(to, "model"), "1"));
    // The kernel's own full device.
    const full = run.saveCheckpoint("two", () => writeFile("/dev/full", "x"));
    await expect(full).rejects.toMatchObject({
      code: FAULT,
      message: /two: no space left .* free some and resume/,
    });
    expect((await findCheckpoint(at)).name).toBe("one");
    expect((await readdir(path.join(at, "checkpoints"))).sort()).toEqual(["latest", "one"]);
  });

  test("what a killed job had half written is undone on open", async () => {
    await (await make()).close();
    const root = path.join(at, "checkpoints");
    for (const name of [".new-rft", ".new-sft", ".old-sft", ".old-one", "one"])
      await mkdir(path.join(root, name));
    await using _run = await RunDirectory.open(at);
    // sft was between its two renames: the old one comes back.
    expect((await readdir(root)).sort()).toEqual(["one", "sft"]);
  });

  test.each(["../up", "latest", "", ".hidden", "a/b"])("the name %j is refused", async (name) => {
    await using run = await make();
    await expect(run.saveCheckpoint(name, async () => {})).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
    });
  });
});
