import { execFileSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Trajectory } from "../../lib/agent/types.ts";
import type { LearntTokens } from "../../lib/learn/types.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { type Lane, SafetensorsFile, safetensorsPieces } from "../../lib/run/safetensors.ts";
import { readIndex, type TrajectoryEntry, TrajectoryReader } from "../../lib/run/trajectories.ts";
import { trajectory } from "../learn/doubles.ts";

const encodeSafetensors = (lanes: Record<string, Lane>): Buffer =>
  Buffer.concat([
    ...safetensorsPieces(Object.fromEntries(Object.entries(lanes).map(([name, lane]) => [name, [lane]]))),
  ]);

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tokenring-traj-"));
});
afterEach(() => rm(folder, { recursive: true }));

async function entries(at: string): Promise<TrajectoryEntry[]> {
  const out: TrajectoryEntry[] = [];
  for await (const entry of readIndex(at)) out.push(entry);
  return out;
}

describe("trajectories on disk", () => {
  test("come back bit for bit, each from its part of the shard", async () => {
    const at = path.join(folder, "run");
    const first = [0, 1, 2].map((rollout) => trajectory({ rollout, verdict: "resolved" }));
    const second = [trajectory({ rollout: 3, turns: [{ action: 9, observation: 0 }] })];
    {
      await using run = await RunDirectory.create(at, { config: {}, seed: 1, version: "0" });
      await run.trajectories.write(
        "stage1",
        0,
        first.map((one, i) => ({ trajectory: one, reward: i / 2, advantage: -i, dropped: i === 2 })),
      );
      await run.trajectories.write("stage1", 1, [{ trajectory: second[0] as (typeof second)[0] }]);
      await run.trajectories.write("stage1", 2, []);
    }
    const index = await entries(at);
    expect(index.map((one) => [one.shard, one.offset, one.length])).toEqual([
      ["stage1-0000.safetensors", 0, 11],
      ["stage1-0000.safetensors", 11, 11],
      ["stage1-0000.safetensors", 22, 11],
      ["stage1-0001.safetensors", 0, 13],
    ]);
    expect(index[1]).toMatchObject({ stage: "stage1", iteration: 0, reward: 0.5, advantage: -1 });
    expect(index.map((one) => one.dropped)).toEqual([undefined, undefined, true, undefined]);
    const reader = new TrajectoryReader(at);
    for (const [i, one] of [...first, ...second].entries()) {
      expect(await reader.read(index[i] as TrajectoryEntry)).toEqual({ trajectory: one, learnt: null });
    }
  });

  test("what learning saw of some of them comes back too, with how often they were clipped", async () => {
    const at = path.join(folder, "run");
    const made = [0, 1, 2].map((rollout) => trajectory({ rollout }));
    const lanes = (step: number, old: boolean): LearntTokens => ({
      step,
      logprob: Float32Array.from([1, 2, 3, 4, 5], (i) => -i - step / 3),
      entropy: Float32Array.from([1, 2, 3, 4, 5], (i) => i * 0.1 + step),
      flags: Uint8Array.of(0, 1, 2, 2, 3),
      ...(old && { oldLogprob: Float32Array.from([1, 2, 3, 4, 5], (i) => -i) }),
    });
    {
      await using run = await RunDirectory.create(at, { config: {}, seed: 1, version: "0" });
      const [a, b, c] = made as [Trajectory, Trajectory, Trajectory];
      await run.trajectories.write("s", 0, [
        { trajectory: a, learnt: lanes(1, false) },
        { trajectory: b },
        { trajectory: c, learnt: lanes(0, false) },
      ]);
      await run.trajectories.write("s", 1, [{ trajectory: a, learnt: lanes(2, true) }]);
    }
    const index = await entries(at);
    const reader = new TrajectoryReader(at);
    const read = await Promise.all(index.map((entry) => reader.read(entry)));
    expect(read.map((one) => one.learnt)).toEqual([lanes(1, false), null, lanes(0, false), lanes(2, true)]);
    expect(index.map((entry) => entry.learnt?.clipped)).toEqual([[1, 2, 1], undefined, [1, 2, 1], [1, 2, 1]]);
    expect(read[2]?.trajectory).toEqual(made[2]);
  });

  test("index lines of work that is done again are cut on open", async () => {
    const at = path.join(folder, "run");
    {
      await using run = await RunDirectory.create(at, { config: {}, seed: 1, version: "0" });
      await run.trajectories.write("s", 0, [{ trajectory: trajectory() }]);
      await run.saveProgress(1);
      await run.trajectories.write("s", 1, [{ trajectory: trajectory() }]);
    }
    await using run = await RunDirectory.open(at);
    await run.trajectories.write("s", 1, [{ trajectory: trajectory({ rollout: 8 }) }]);
    expect((await entries(at)).map((one) => [one.iteration, one.rollout])).toEqual([
      [0, 0],
      [1, 8],
    ]);
  });

  test("a stage that is no file name is refused", async () => {
    await using run = await RunDirectory.create(path.join(folder, "run"), {
      config: {},
      seed: 1,
      version: "0",
    });
    await expect(run.trajectories.write("../x", 0, [])).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
    });
  });
});

describe("safetensors", () => {
  test("what is written is read, any range of it (property)", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer(), { maxLength: 20 }),
        fc.uint8Array({ maxLength: 9 }),
        fc.float32Array({ maxLength: 7, noNaN: true }),
        fc.nat(20),
        async (ints, bytes, floats, cut) => {
          const file = path.join(folder, "t.safetensors");
          await writeFile(file, encodeSafetensors({ a: bytes, b: Int32Array.from(ints), "c ü": floats }));
          const opened = await SafetensorsFile.open(file);
          const start = Math.min(cut, ints.length);
          expect([...(await opened.read("b", start, ints.length))]).toEqual(ints.slice(start));
          expect(await opened.read("a", 0, bytes.length)).toEqual(bytes);
          expect(await opened.read("c ü", 0, floats.length)).toEqual(floats);
        },
      ),
      { numRuns: 30 },
    );
  });

  test("an independent reader agrees on the layout", async () => {
    const file = path.join(folder, "t.safetensors");
    await writeFile(
      file,
      encodeSafetensors({ u: Uint8Array.of(1, 2, 3), i: Int32Array.of(-5, 6), f: Float32Array.of(0.5) }),
    );
    // Reads the format by its definition with nothing of ours.
    const program = `
import json, struct, sys
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
assert size % 8 == 0
header = json.loads(data[8:8 + size])
out = {}
for name, entry in header.items():
    if name == "__metadata__": continue
    a, b = entry["data_offsets"]
    code = {"I32": "i", "U8": "B", "F32": "f"}[entry["dtype"]]
    assert a % struct.calcsize(code) == 0
    out[name] = struct.unpack("<%d%s" % (entry["shape"][0], code), data[8 + size + a:8 + size + b])
print(json.dumps(out, sort_keys=True))`;
    const said = execFileSync("python3", ["-c", program, file], { encoding: "utf8" });
    expect(JSON.parse(said)).toEqual({ u: [1, 2, 3], i: [-5, 6], f: [0.5] });
  });

  test("a damaged file is said to be damaged", async () => {
    const file = path.join(folder, "t.safetensors");
    const good = encodeSafetensors({ a: Int32Array.of(1, 2, 3) });
    const code = "ERR_TOKENRING_RUN_DIRECTORY";
    await writeFile(file, good.subarray(0, good.length - 4));
    await expect(SafetensorsFile.open(file)).rejects.toMatchObject({
      code,
      message: /tensor a ends after the file/,
    });
    await writeFile(file, good.subarray(0, 5));
    await expect(SafetensorsFile.open(file)).rejects.toMatchObject({
      code,
      message: /shorter than its own header/,
    });
    await writeFile(file, Buffer.concat([Buffer.from("ffffffffffffff7f", "hex"), good.subarray(8)]));
    await expect(SafetensorsFile.open(file)).rejects.toMatchObject({ code });
    const text = Buffer.from(good);
    text[8] = 0x7e;
    await writeFile(file, text);
    await expect(SafetensorsFile.open(file)).rejects.toMatchObject({ code, message: /header is not JSON/ });
    await writeFile(file, good);
    const opened = await SafetensorsFile.open(file);
    await expect(opened.read("b", 0, 1)).rejects.toMatchObject({ code, message: /no tensor b/ });
    await expect(opened.read("a", 2, 4)).rejects.toMatchObject({ code, message: /no elements 2 to 4/ });
  });
});
