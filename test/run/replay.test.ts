// Sampling without training, and training without sampling.
import { spawnSync } from "node:child_process";
import { cp, mkdtemp, open, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DapoSummary } from "../../lib/learn/dapo.ts";
import { overview } from "../../lib/report/overview.ts";
import { type JobInput, jobSchema } from "../../lib/run/config.ts";
import { parseConfig } from "../../lib/run/config-file.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { type JobResult, runJob } from "../../lib/run/job.ts";
import { readEvents } from "../../lib/run/metrics.ts";
import { type ProgressSink, silent } from "../../lib/run/progress.ts";
import { readRun } from "../../lib/run/read.ts";
import { readIndex, type TrajectoryEntry, TrajectoryReader } from "../../lib/run/trajectories.ts";
import { scalarsOf } from "../../lib/track/scalars.ts";
import { SMALL_MODEL } from "../support/small-job.ts";
import { timeless } from "../support/timeless.ts";

const limits = { maxTurns: 3, maxContext: 320, maxActionTokens: 12, observationChars: 300 };
const common: JobInput = {
  seed: 6,
  model: { create: { ...SMALL_MODEL, previousTokenBias: 0 } },
  tasks: { name: "tinyswe", train: 6, heldOut: 1 },
  episodes: 8,
  evaluate: { runs: 1, limits },
};
const sampling: JobInput = { ...common, rollout: { instances: 4, rollouts: 4, limits } };
const stage = {
  name: "stage1",
  iterations: 3,
  instances: 2,
  rollouts: 4,
  batchSize: 8,
  lengthThreshold: 1,
  learningRate: 0.01,
  limits,
};

describe("stored trajectories", { timeout: 120_000 }, () => {
  let root: string;
  const at = (name: string): string => path.join(root, name);

  async function run(name: string, input: JobInput, progress: ProgressSink = silent, signal?: AbortSignal) {
    const config = jobSchema.parse(input);
    const begun = await stat(at(name)).catch(() => null);
    await using opened = begun
      ? await RunDirectory.open(at(name))
      : await RunDirectory.create(at(name), { config, seed: config.seed, version: "test" });
    return await runJob(config, { run: opened, progress, ...(signal ? { signal } : {}) });
  }

  /** Runs a job that is stopped once a phase has come `far`, then goes on with it. */
  async function interrupted(name: string, input: JobInput, phase: string, far: number): Promise<JobResult> {
    const stop = new AbortController();
    let now = "";
    const progress: ProgressSink = {
      phase: (what) => {
        now = what;
      },
      update: (done) => {
        if (now === phase && done >= far) stop.abort();
      },
      log: () => undefined,
    };
    await expect(run(name, input, progress, stop.signal)).rejects.toMatchObject({
      code: "ERR_TOKENRING_ABORTED",
    });
    return await run(name, input);
  }

  async function entries(name: string): Promise<TrajectoryEntry[]> {
    const all: TrajectoryEntry[] = [];
    for await (const entry of readIndex(at(name))) all.push(entry);
    return all;
  }
  const events = (name: string) => readEvents(path.join(at(name), "metrics.jsonl"));
  async function shards(name: string): Promise<Record<string, string>> {
    const folder = path.join(at(name), "trajectories");
    const names = (await readdir(folder)).filter((file) => file.endsWith(".safetensors")).sort();
    const bytes = await Promise.all(names.map((file) => readFile(path.join(folder, file), "base64")));
    return Object.fromEntries(names.map((file, i) => [file, bytes[i] as string]));
  }

  /** A copy of the sampled run whose index, or manifest, `change` has gone over. */
  async function copyOf(
    name: string,
    change: (entry: TrajectoryEntry, i: number) => unknown,
    manifest: (config: Record<string, unknown>) => unknown = () => undefined,
  ): Promise<string> {
    await cp(at("sampled"), at(name), { recursive: true });
    const index = path.join(at(name), "trajectories", "index.jsonl");
    const lines = (await entries(name)).map((entry, i) => {
      change(entry, i);
      return `${JSON.stringify(entry)}\n`;
    });
    await writeFile(index, lines.join(""));
    const file = path.join(at(name), "run.json");
    const whole = JSON.parse(await readFile(file, "utf8")) as { config: Record<string, unknown> };
    manifest(whole.config);
    await writeFile(file, JSON.stringify(whole));
    return at(name);
  }

  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), "tokenring-replay-"));
    await run("sampled", sampling);
    // A policy that was never trained solves nothing, so that verdicts are made up.
    await copyOf("judged", (entry, i) => {
      if (i % 3 === 0) Object.assign(entry, { verdict: "resolved", reason: null });
    });
  }, 120_000);
  afterAll(() => rm(root, { recursive: true, force: true }));

  it("are sampled into a run that reports can show, the same for a seed, however often it is stopped", async () => {
    const index = await entries("sampled");
    expect(index.map(({ stage: of, iteration, rollout }) => [of, iteration, rollout])).toEqual(
      [0, 0, 1, 1].flatMap((iteration) => [0, 1, 2, 3].map((rollout) => ["rollout", iteration, rollout])),
    );
    const data = await readRun(at("sampled"));
    const numbers = data.events
      .filter(({ type }) => type === "sampled")
      .map((event) => [...scalarsOf(event)]);
    expect(numbers).toHaveLength(2);
    expect(numbers[0]).toContainEqual(
      expect.objectContaining({ stage: "rollout", path: ["episodes"], value: 8 }),
    );
    const page = overview([data]).map(({ text }) => text);
    expect(page.join("")).toContain("Sampled without training: 0 of 16 episodes solved (0.0 %).");
    expect(data.episodes).toHaveLength(16);
    const { trajectory } = await data.load(0);
    const [turn] = trajectory.turns;
    expect(data.tokenizer?.decode(trajectory.tokens.subarray(turn?.start, turn?.end))).toBe(turn?.text);

    const result = await interrupted("stopped", sampling, "rollouts", 9);
    expect(result.sampled).toEqual({ episodes: 16, solved: 0, dropped: 0, instances: 4, instancesSolved: 0 });
    expect(await shards("stopped")).toEqual(await shards("sampled"));
    expect(timeless(await events("stopped"))).toEqual(timeless(await events("sampled")));
    expect(timeless(await entries("stopped"))).toEqual(timeless(index));
  });

  it("differ by the seed of the draws, of the same tasks", async () => {
    await run("other", { ...common, rollout: { instances: 4, rollouts: 4, limits, seed: 7 } });
    const ids = async (name: string) => (await entries(name)).map(({ instanceId }) => instanceId);
    expect(await ids("other")).toEqual(await ids("sampled"));
    expect(await shards("other")).not.toEqual(await shards("sampled"));
  });

  const learning: () => JobInput = () => ({
    ...common,
    stages: [stage],
    replay: { path: at("judged") },
  });

  it("teach DAPO by ratios against the logprobs that they were sampled with", async () => {
    await run("learnt", learning());
    const all = await events("learnt");
    const steps = all.flatMap((event) => (event.type === "step" ? [event.metrics] : []));
    // The weights of the first step are those that sampled: bit for bit the same logprobs. Later ones are not.
    expect(steps[0]).toMatchObject({ approximateKl: 0, clipLow: 0, clipHigh: 0, mismatch: null });
    expect(steps.at(-1)?.approximateKl).toBeGreaterThan(0);
    const iterations = all.flatMap((event): DapoSummary[] =>
      event.type === "iteration" ? [event.summary] : [],
    );
    expect(iterations.map(({ groups, sampledTokens }) => [groups, sampledTokens])).toEqual([
      [2, 0],
      [2, 0],
      [2, 0],
    ]);
    expect(iterations.every(({ trained }) => trained > 0)).toBe(true);

    // What was learnt from is kept with the run, token by token.
    const source = new Map((await entries("judged")).map((entry) => [entry.id, entry]));
    const [from, to] = [new TrajectoryReader(at("judged")), new TrajectoryReader(at("learnt"))];
    const trained = (await entries("learnt")).filter((entry) => entry.learnt);
    expect(trained.length).toBeGreaterThan(4);
    for (const entry of trained) {
      const { trajectory } = await from.read(source.get(entry.id) as TrajectoryEntry);
      expect((await to.read(entry)).trajectory).toEqual(trajectory);
    }
  });

  it("are learnt from in the same way when the run is stopped in between", async () => {
    await interrupted("learnt-stopped", learning(), "stage1", 1);
    expect(timeless(await events("learnt-stopped"))).toEqual(timeless(await events("learnt")));
    expect(await shards("learnt-stopped")).toEqual(await shards("learnt"));
  });

  it("correct for the policy that sampled by truncated importance weights where asked to", async () => {
    const changed = { ...stage, iterations: 2, oldLogprobs: "trainer" as const, tisCap: 2 };
    await run("tis", { ...learning(), stages: [changed] });
    const iterations = (await events("tis")).flatMap((event) =>
      event.type === "iteration" ? [event.summary] : [],
    );
    // The gap between the stored logprobs and the policy's: none at first, then as far as the first steps went.
    expect(iterations[0]?.mismatch?.max).toBe(0);
    expect(iterations[1]?.mismatch?.max).toBeGreaterThan(0);
  });

  it("teach RFT by those that were solved", async () => {
    const solved = await copyOf("solved", (entry, i) => {
      if (i % 5 === 0) Object.assign(entry, { verdict: "resolved", reason: null });
      // What could not be read is not imitated.
      for (const turn of entry.turns) turn.formatError = null;
      if (i === 1) Object.assign(entry, { dropped: true });
    });
    const rft = { instances: 1, rollouts: 1, batchSize: 2, learningRate: 0.001, limits };
    await run("rft", { ...common, rft, replay: { path: solved, stages: ["rollout"] } });
    const all = await events("rft");
    const summary = all.find((event) => event.type === "rollouts");
    expect(summary).toMatchObject({ summary: { kept: 4, steps: 2, episodes: 15, sampledTokens: 0 } });
    const steps = all.filter((event) => event.type === "step");
    expect(steps).toHaveLength(2);
    expect(steps[0]).toMatchObject({ metrics: { approximateKl: 0, mismatch: null, trajectories: 2 } });
  });

  describe("are refused, and nothing is begun, when", () => {
    const refuse = async (input: JobInput, code: string, message: RegExp | string): Promise<void> => {
      await expect(run("refused", input)).rejects.toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
      expect(await events("refused")).toEqual([]);
      await rm(at("refused"), { recursive: true });
    };
    const from = (source: string, more: object = {}): JobInput => ({
      ...learning(),
      replay: { path: source, ...more },
    });
    const same = (): undefined => undefined;

    it("there is no run", () =>
      refuse(
        from(at("nowhere")),
        "ERR_TOKENRING_RUN_DIRECTORY",
        /no run\.json, so this is no run directory/,
      ));

    it("a stage is named that is not there, or is an evaluation", async () => {
      await refuse(
        from(at("sampled"), { stages: ["rft"] }),
        "ERR_TOKENRING_RUN_DIRECTORY",
        /has no trajectories of rft; it has rollout/,
      );
      await refuse(
        from(at("learnt"), { stages: ["base-evaluation"] }),
        "ERR_TOKENRING_RUN_DIRECTORY",
        /itself learnt from stored trajectories, of .*judged/,
      );
      const evaluated = await copyOf("evaluated", (entry) =>
        Object.assign(entry, { stage: "base-evaluation" }),
      );
      await refuse(
        from(evaluated, { stages: ["base-evaluation"] }),
        "ERR_TOKENRING_RUN_DIRECTORY",
        /base-evaluation holds held-out tasks/,
      );
      await refuse(from(evaluated), "ERR_TOKENRING_RUN_DIRECTORY", /holds no trajectories to learn from/);
    });

    it("they were sampled greedily, or at another temperature", async () => {
      const at0 = await copyOf("greedy", same, (config) => {
        (config.rollout as { temperature: number }).temperature = 0;
      });
      await refuse(from(at0), "ERR_TOKENRING_RUN_DIRECTORY", /sampled greedily/);
      const cold = await copyOf("cold", same, (config) => {
        (config.rollout as { temperature: number }).temperature = 0.5;
      });
      await refuse(
        from(cold),
        "ERR_TOKENRING_CONFIG",
        /^stages\.0\.temperature is 1, and groups of .* were sampled with 0\.5; set it to that/,
      );
    });

    it("their groups are of another size", () =>
      refuse(
        { ...from(at("sampled")), stages: [{ ...stage, rollouts: 10 }] },
        "ERR_TOKENRING_CONFIG",
        /^stages\.0\.rollouts is 10, and groups of .* were sampled with 4/,
      ));

    it("they are of a task that the job is measured on", async () => {
      const [heldOut] = (await entries("learnt")).filter((entry) => entry.stage === "base-evaluation");
      const leaked = await copyOf("leaked", (entry) =>
        Object.assign(entry, { instanceId: heldOut?.instanceId }),
      );
      await refuse(from(leaked), "ERR_TOKENRING_TASK", /which this job is measured on/);
    });

    it("their tokens say something else with the model's tokenizer", async () => {
      const other = await copyOf("tokens", (entry) => {
        for (const turn of entry.turns) turn.text = `${turn.text}?`;
      });
      await refuse(from(other), "ERR_TOKENRING_TOKENIZER", /turn 0: its tokens read .* and were /);
    });

    it("their shard is cut off, or holds no probabilities", async () => {
      const cut = await copyOf("cut", same);
      const shard = path.join(cut, "trajectories", "rollout-0000.safetensors");
      await truncate(shard, (await stat(shard)).size - 100);
      await refuse(
        from(cut),
        "ERR_TOKENRING_RUN_DIRECTORY",
        /rollout-0000\.safetensors: .*ends after the file/,
      );

      const damaged = await copyOf("nan", same);
      const file = await open(path.join(damaged, "trajectories", "rollout-0000.safetensors"), "r+");
      const head = Buffer.alloc(8);
      await file.read(head, 0, 8, 0);
      const length = Number(head.readBigUInt64LE());
      const header = Buffer.alloc(length);
      await file.read(header, 0, length, 8);
      const { logprobs } = JSON.parse(header.toString()) as { logprobs: { data_offsets: [number, number] } };
      const [begin, end] = logprobs.data_offsets;
      await file.write(Buffer.alloc(end - begin, 0xff), 0, end - begin, 8 + length + begin);
      await file.close();
      await refuse(from(damaged), "ERR_TOKENRING_RUN_DIRECTORY", /its logprob is NaN/);
    });
  });

  it.each([
    [
      { rollout: { instances: 1, rollouts: 1, limits }, stages: [stage] },
      /rollout: samples and trains nothing.* stages/,
    ],
    [
      { rollout: { instances: 7, rollouts: 1, limits } },
      /rollout\.instances: 7 is more than the 6 tasks of train/,
    ],
    [{ replay: { path: "x" } }, /replay: nothing learns from it; add rft or stages/],
    [
      { replay: { path: "x" }, stages: [{ ...stage, maxExtraGroups: 2 }] },
      /stages\.0\.maxExtraGroups: needs episodes to be run, and replay runs none/,
    ],
    [
      { replay: { path: "x" }, stages: [{ ...stage, stepCredit: { turns: 3 } }] },
      /stages\.0\.stepCredit: needs episodes/,
    ],
    [{ stages: [{ ...stage, name: "rollout" }] }, /stages\.0\.name: this name is the job's own/],
  ])("a config that contradicts itself is refused: %j", (keys, message) => {
    expect(() => parseConfig(JSON.stringify({ ...common, ...keys }), "job.yaml")).toThrow(message);
  });

  it("go from the command's sampling to the command's training", async () => {
    const main = path.resolve("dist/cli/main.js");
    const command = (...args: string[]) => {
      const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
        encoding: "utf8",
        timeout: 60_000,
      });
      return { status, stdout, stderr };
    };
    const job = at("job.yaml");
    await writeFile(job, `# mine\n${JSON.stringify({ ...common, stages: [{ ...stage, iterations: 1 }] })}`);
    const sampled = command(
      ...["rollout", at("learnt"), "--checkpoint", "base", "--instances", "2", "--rollouts", "4"],
      ...["--max-turns", "2", "--seed", "9", "--out", at("by-command")],
    );
    expect(sampled).toMatchObject({ status: 0 });
    expect(sampled.stdout).toContain("8 episodes: 0 solved (0.0 %), 0 of 2 instances at least once");
    const { turns } = (await entries("by-command"))[0] as TrajectoryEntry;
    expect(turns.length).toBeLessThanOrEqual(2);
    const trained = command(
      "train",
      job,
      "--replay",
      at("by-command"),
      "--out",
      at("from-command"),
      "--quiet",
    );
    expect(trained).toMatchObject({ status: 0, stderr: "" });
    expect(await readFile(path.join(at("from-command"), "config.yaml"), "utf8")).toMatch(
      /^# mine\n.*"?replay"?:/s,
    );
    for (const [args, message] of [
      [[job, "--checkpoint", "base"], "--checkpoint base: is of a run, and "],
      [[at("nowhere")], "there is no such file or directory; give a run"],
      [["recipes/tinyswe.yaml"], "warmStart: its policy comes of a warm start, and rollout trains nothing"],
      [[at("learnt"), "--instances", "7"], "--instances 7: there are 6 tasks of train; give fewer"],
    ] as const)
      expect(command("rollout", ...args)).toMatchObject({
        status: 1,
        stdout: "",
        stderr: expect.stringContaining(message),
      });
  });
});
