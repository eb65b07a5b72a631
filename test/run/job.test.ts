// The whole circle on a very small policy: warm start, evaluation, DAPO in real sandboxes, checkpoints, report.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { LoggedEvent } from "../../lib/learn/events.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { type JobInput, jobSchema } from "../../lib/run/config.ts";
import { findCheckpoint, RunDirectory } from "../../lib/run/directory.ts";
import { type JobResult, runJob } from "../../lib/run/job.ts";
import { readEvents } from "../../lib/run/metrics.ts";
import { silent } from "../../lib/run/progress.ts";
import { loadTrajectory, readIndex } from "../../lib/run/trajectories.ts";

const limits = { maxTurns: 5, maxContext: 320, maxActionTokens: 24, observationChars: 300 };

const small: JobInput = {
  seed: 5,
  model: {
    create: {
      hiddenSize: 64,
      layers: 2,
      heads: 2,
      keyValueHeads: 1,
      headDim: 32,
      intermediateSize: 128,
      maxPositions: 512,
      initStd: 0.08,
      previousTokenBias: 5,
    },
  },
  tasks: { name: "tinyswe", train: 6, heldOut: 3 },
  episodes: 16,
  warmStart: {
    copySteps: 10,
    copyBatch: { sequences: 8, tokens: 48 },
    steps: 120,
    tokensPerStep: 600,
    expertShare: 0,
    personas: { expert: 0, sloppy: 0, confused: 1 },
    warmupSteps: 10,
    learningRate: 0.005,
  },
  stages: [
    {
      name: "stage1",
      iterations: 2,
      instances: 3,
      rollouts: 4,
      batchSize: 8,
      clipHigh: 0.3,
      lengthThreshold: 2,
      // A policy this small solves nothing: groups live by the lengths of their episodes.
      filter: "final_reward",
      learningRate: 0.001,
      limits,
    },
  ],
  evaluate: { runs: 2, limits },
};

/** Events without what differs between two runs of one seed by contract: times and memory. */
function timeless(events: readonly LoggedEvent[]): unknown[] {
  const strip = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(strip);
    if (value === null || typeof value !== "object") return value;
    const kept = Object.entries(value).filter(
      ([key]) => key !== "at" && key !== "seconds" && key !== "peakRssMiB" && !key.endsWith("Ms"),
    );
    return Object.fromEntries(kept.map(([key, entry]) => [key, strip(entry)]));
  };
  return events.map(strip);
}

describe("a job", () => {
  let root: string;
  const config = jobSchema.parse(small);
  const results: JobResult[] = [];
  const directory = (name: string): string => path.join(root, name);

  async function run(name: string, signal?: AbortSignal): Promise<JobResult> {
    await using opened = await RunDirectory.create(directory(name), {
      config,
      seed: config.seed,
      version: "test",
    });
    return await runJob(config, { run: opened, progress: silent, ...(signal ? { signal } : {}) });
  }

  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), "tokenring-job-"));
    results.push(await run("first"), await run("second"));
  }, 240_000);

  afterAll(async () => {
    await rm(root, { recursive: true, force: true });
  });

  it("gives one point of the arc a stage, with episodes, turns and cost", () => {
    const result = results[0] as JobResult;
    expect(result.stages.map((stage) => stage.name)).toEqual(["base", "stage1"]);
    for (const stage of result.stages) {
      expect(stage.episodes).toBe(6);
      expect(stage.turns).toBeGreaterThan(1);
      expect(stage.turns).toBeLessThanOrEqual(5);
      expect(stage.pass10).toBeNull();
    }
    expect(result.seed).toBe(5);
    expect(result.peakRssMiB).toBeGreaterThan(20);
  });

  it("writes the same metrics for the same seed, times apart", async () => {
    const [first, second] = await Promise.all(
      ["first", "second"].map(async (name) =>
        timeless(await readEvents(path.join(directory(name), "metrics.jsonl"))),
      ),
    );
    expect(first?.length).toBeGreaterThan(130);
    expect(second).toEqual(first);
  });

  it("takes optimiser steps whose first finds the sampler's logprobs equal to the trainer's, bit for bit", async () => {
    const events = await readEvents(path.join(directory("first"), "metrics.jsonl"));
    const steps = events.filter((event) => event.type === "step" && event.stage === "stage1");
    expect(steps.length).toBeGreaterThan(0);
    const gaps = steps.map((event) => (event.type === "step" ? event.metrics.logprobGap : null));
    expect(gaps[0]).toBe(0);
  });

  it("keeps every trajectory with the lanes it was trained on", async () => {
    let actions = 0;
    for await (const entry of readIndex(directory("first"))) {
      const trajectory = await loadTrajectory(directory("first"), entry);
      expect(trajectory.tokens.length).toBe(entry.length);
      for (const turn of trajectory.turns) {
        actions++;
        expect(trajectory.provenance.subarray(turn.start, turn.end).every((from) => from === 2)).toBe(true);
        expect(trajectory.logprobs.subarray(turn.start, turn.end).every((logprob) => logprob <= 0)).toBe(
          true,
        );
      }
    }
    // Two evaluations of 6 episodes, two iterations of 12.
    expect(actions).toBeGreaterThan(36);
  });

  it("leaves checkpoints that score as the policy did, in Hugging Face's form", async () => {
    const { path: checkpoint } = await findCheckpoint(directory("first"), "stage1");
    const json = JSON.parse(await readFile(path.join(checkpoint, "config.json"), "utf8")) as {
      model_type: string;
    };
    expect(json.model_type).toBe("qwen2");
    await readFile(path.join(checkpoint, "tokenizer.json"));
    await using policy = await Policy.load(checkpoint);
    const { path: other } = await findCheckpoint(directory("second"), "stage1");
    await using twin = await Policy.load(other);
    const batch = { tokens: Int32Array.from([65, 66, 67, 68]), lengths: Int32Array.of(4) };
    expect((await policy.score(batch)).logprob).toEqual((await twin.score(batch)).logprob);
  });

  it("stops at an abort with its cause and gives the run directory back", async () => {
    const controller = new AbortController();
    const stopped = run("aborted", controller.signal);
    controller.abort(new Error("enough"));
    await expect(stopped).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    await using reopened = await RunDirectory.open(directory("aborted"));
    expect(reopened.manifest.seed).toBe(5);
  });

  it("goes on after an interruption as if there had been none", async () => {
    const controller = new AbortController();
    // The base is done and saved when stage 1 begins.
    const phase = (name: string): void => {
      if (name === "stage1") controller.abort(new Error("pulled the plug"));
    };
    await using created = await RunDirectory.create(directory("resumed"), {
      config,
      seed: config.seed,
      version: "test",
    });
    const interrupted = runJob(config, {
      run: created,
      progress: { ...silent, phase },
      signal: controller.signal,
    });
    await expect(interrupted).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    await created.close();

    const phases: string[] = [];
    await using opened = await RunDirectory.open(directory("resumed"));
    const result = await runJob(config, {
      run: opened,
      progress: { ...silent, phase: (name) => phases.push(name) },
    });
    expect(phases).toEqual(["stage1", "stage1: evaluation"]);
    expect(result.stages).toEqual(results[0]?.stages);
    const [whole, resumed] = await Promise.all(
      ["first", "resumed"].map(async (name) =>
        timeless(await readEvents(path.join(directory(name), "metrics.jsonl"))),
      ),
    );
    expect(resumed).toEqual(whole);
  });

  it("says what to do when rejection fine-tuning finds nothing to learn from", async () => {
    const { stages: _, ...rest } = small;
    const hopeless = jobSchema.parse({
      ...rest,
      warmStart: undefined,
      rft: { instances: 1, rollouts: 1, batchSize: 1, learningRate: 0.001, limits },
    });
    await using opened = await RunDirectory.create(directory("hopeless"), {
      config: hopeless,
      seed: 5,
      version: "test",
    });
    await expect(runJob(hopeless, { run: opened, progress: silent })).rejects.toThrow(/warm-start longer/);
  });
});
