// Event files: the bytes of TensorBoard's own writer, the numbers of metrics.jsonl, and nothing twice after a resume.
import { readFileSync } from "node:fs";
import { appendFile, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { LoggedEvent } from "../../lib/learn/events.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { readRun } from "../../lib/run/read.ts";
import { startTracking } from "../../lib/run/tracking.ts";
import { crc32c, fileVersion, summaryEvent } from "../../lib/track/event-file.ts";
import { TensorBoardLog } from "../../lib/track/tensorboard.ts";
import { writeRun } from "../report/fixture.ts";
import { readEventFile } from "./event-reader.ts";

let folder: string;
let events: LoggedEvent[];
const about = {
  version: "0.1.0",
  seed: 3,
  createdAt: "2026-01-02T03:04:05.678Z",
  config: "seed: 3\nmodel: |\n  <script>\n",
};

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tokenring-tensorboard-"));
  await writeRun(path.join(folder, "run"), 1);
  events = [...(await readRun(path.join(folder, "run"))).events];
});
afterAll(() => rm(folder, { recursive: true }));

/** The file that `open` and then `append` leave, in a folder of its own. */
async function written(
  name: string,
  before: readonly LoggedEvent[],
  after: readonly LoggedEvent[],
): Promise<string> {
  await using log = await TensorBoardLog.open(path.join(folder, name), about, before);
  for (const event of after) await log.append(event);
  return log.path;
}

const holds = async (file: string, bytes: Buffer): Promise<boolean> => bytes.equals(await readFile(file));

describe("the format", () => {
  test("CRC32C is that of RFC 3720, appendix B.4", () => {
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e);
  });

  test("the bytes are those of TensorBoard's own writer", () => {
    const given = JSON.parse(readFileSync("test/track/fixtures/events.json", "utf8")) as {
      begin: number;
      events: { at: number; step: number; values: [string, number | string][] }[];
    };
    const bytes = Buffer.concat([
      fileVersion(given.begin),
      ...given.events.map(({ at, step, values }) =>
        summaryEvent(
          at,
          step,
          values.map(([tag, value]) => ({ tag, value })),
        ),
      ),
    ]);
    expect(bytes.toString("hex")).toBe(readFileSync("test/track/fixtures/events.out.tfevents", "hex"));
  });
});

describe("the file of a run", () => {
  test("holds every number under its name, with its step and its time", async () => {
    const read = readEventFile(await readFile(await written("whole", [], events)));
    expect(read[0]).toMatchObject({
      fileVersion: "brain.Event:2",
      wallTime: Date.parse(about.createdAt) / 1000,
    });
    expect(read[1]?.texts.config).toBe(
      "tokenring 0.1.0, seed 3\n\n    seed: 3\n    model: |\n      <script>\n",
    );
    const points = (tag: string): [number, number][] =>
      read.flatMap(({ step, scalars }) => (tag in scalars ? [[step, scalars[tag] as number]] : []));
    const expected = (type: string, stage: string, value: (event: never) => number): [number, number][] =>
      events
        .filter((event) => event.type === type && "stage" in event && event.stage === stage)
        .map((event, i) => [i, Math.fround(value(event as never))]);
    type Step = Extract<LoggedEvent, { type: "step" }>;
    type Iteration = Extract<LoggedEvent, { type: "iteration" }>;
    expect(points("base/step/loss")).toEqual(expected("step", "base", ({ metrics }: Step) => metrics.loss));
    expect(points("base/step/loss")).toHaveLength(700);
    expect(points("stage2/step/entropy")).toHaveLength(42);
    expect(points("stage2/step/mismatch/p95")).toHaveLength(14);
    expect(points("stage1/iteration/passRate")).toEqual(
      expected("iteration", "stage1", ({ summary }: Iteration) => summary.passRate),
    );
    expect(points("stage1/iteration/learning/gradientNorm")).toHaveLength(14);
    expect(points("stage1/iteration/exits/turn_limit")).toEqual(
      Array.from({ length: 14 }, (_, i) => [i, 28]),
    );
    // One curve through all stages: the arc. Of each kind of instance too, and of no single instance.
    const arc = events.flatMap((event) => (event.type === "evaluation" ? [event.evaluation] : []));
    expect(points("evaluation/pass1")).toEqual(arc.map(({ pass1 }, i) => [i, Math.fround(pass1)]));
    expect(points("evaluation/kind two/pass1")).toHaveLength(4);
    expect(points("end/peakRssMiB")).toEqual([[0, Math.fround(412.7)]]);
    const tags = new Set(read.flatMap(({ scalars }) => Object.keys(scalars)));
    expect([...tags].filter((tag) => tag.includes("held-"))).toEqual([]);
    for (const { scalars } of read) for (const value of Object.values(scalars)) expect(value).not.toBeNaN();
    const last = events.at(-1) as LoggedEvent;
    expect(read.at(-1)?.wallTime).toBe(last.at / 1000);
  });

  test("is the same whether it grew or was made at once, and in how many goes", async () => {
    const at = Math.floor(events.length / 2);
    const once = await readFile(await written("once", events, []));
    expect(await holds(await written("two", events.slice(0, at), events.slice(at)), once)).toBe(true);
    expect(await holds(await written("again", [], events), once)).toBe(true);
    expect(await holds(await written("again", events, []), once)).toBe(true);
  });

  test("is cut, in place, where a resume does work again", async () => {
    const file = await written("resumed", [], events);
    const { ino } = await stat(file);
    const kept = events.slice(0, 900);
    // Done again at other times.
    const again = events.slice(900).map((event) => ({ ...event, at: event.at + 5000 }));
    expect(await written("resumed", kept, again)).toBe(file);
    const straight = await readFile(await written("straight", [...kept, ...again], []));
    expect(await holds(file, straight)).toBe(true);
    expect((await stat(file)).ino).toBe(ino);
  });

  test("keeps its name when the run goes on at another host", async () => {
    const file = await written("moved", events.slice(0, 10), []);
    const before = file.replace(`.${hostname()}.`, ".elsewhere.");
    await rename(file, before);
    expect(await written("moved", events.slice(0, 10), events.slice(10, 20))).toBe(before);
  });

  test("that a crash left half written is mended", async () => {
    const file = await written("crashed", events.slice(0, 300), []);
    const whole = await readFile(file);
    await writeFile(file, whole.subarray(0, whole.length - 7));
    await written("crashed", events.slice(0, 300), []);
    expect(await holds(file, whole)).toBe(true);
    await appendFile(file, "something else");
    await written("crashed", events.slice(0, 300), []);
    expect(await holds(file, whole)).toBe(true);
  });
});

describe("a job with tracking.tensorboard", () => {
  const silent = () => {
    const said: string[] = [];
    return { said, sink: { phase() {}, update() {}, log: (line: string) => void said.push(line) } };
  };
  const step = (n: number) =>
    ({ ...events.find((event) => event.type === "step"), step: n }) as Extract<LoggedEvent, { type: "step" }>;
  const steps = async (file: string): Promise<number[]> =>
    readEventFile(await readFile(file)).flatMap(({ step, scalars }) =>
      "base/step/loss" in scalars ? [step] : [],
    );

  test("has each step once, also those that a resume did again", async () => {
    const at = path.join(folder, "tracked");
    const { sink } = silent();
    const manifest = { config: {}, configText: "seed: 1\n", seed: 1, version: "test" };
    let file: string;
    {
      await using run = await RunDirectory.create(at, manifest);
      await using _ = await startTracking({ tensorboard: true }, run, sink);
      await run.record(step(0));
      await run.saveProgress({});
      await run.record(step(1));
      const [name = "", ...others] = await readdir(path.join(at, "tensorboard"));
      // W&B looks at the time and the host.
      expect(name).toMatch(/^events\.out\.tfevents\.\d{10}\./);
      expect(name.endsWith(`.${hostname()}.tokenring`)).toBe(true);
      expect(others).toEqual([]);
      file = path.join(at, "tensorboard", name);
      expect(await steps(file)).toEqual([0, 1]);
    }
    {
      await using run = await RunDirectory.open(at);
      await using _ = await startTracking({ tensorboard: true }, run, sink);
      expect(await steps(file)).toEqual([0]);
      for (const n of [1, 2]) await run.record(step(n));
    }
    expect(await steps(file)).toEqual([0, 1, 2]);
    const run = await readRun(at);
    await using log = await TensorBoardLog.open(path.join(folder, "exported"), run, run.events);
    expect(await holds(log.path, await readFile(file))).toBe(true);
  });

  test("that cannot write the file says so once and goes on", async () => {
    const at = path.join(folder, "refused");
    const { said, sink } = silent();
    // Whoever watches the folder may have made it before the run begins.
    await mkdir(path.join(at, "tensorboard"), { recursive: true });
    await using run = await RunDirectory.create(at, { config: {}, seed: 1, version: "test" });
    await rm(path.join(at, "tensorboard"), { recursive: true });
    await writeFile(path.join(at, "tensorboard"), "a file in the way");
    await using _ = await startTracking({ tensorboard: true }, run, sink);
    for (const n of [0, 1]) await run.record(step(n));
    expect(said).toEqual([
      expect.stringMatching(/^tensorboard: EEXIST.*; goes on without it, and tokenring export/),
    ]);
    expect(await run.events()).toHaveLength(2);
  });

  test("leaves nothing behind when nothing was recorded", async () => {
    const at = path.join(folder, "unused");
    const run = await RunDirectory.create(at, { config: {}, seed: 1, version: "test" });
    await using _ = await startTracking({ tensorboard: true }, run, silent().sink);
    expect(await run.discardUnused()).toBe(true);
    await expect(stat(at)).rejects.toMatchObject({ code: "ENOENT" });
  });
});
