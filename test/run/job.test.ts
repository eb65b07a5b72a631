// The whole circle on a very small policy: warm start, evaluation, DAPO in real sandboxes, checkpoints, report.
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { evaluate } from "../../lib/evaluate/evaluate.ts";
import { SolveRates } from "../../lib/learn/curriculum.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { findCheckpoint } from "../../lib/run/checkpoints.ts";
import { type JobInput, jobSchema } from "../../lib/run/config.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { type JobResult, runJob } from "../../lib/run/job.ts";
import { openJob } from "../../lib/run/job-context.ts";
import { readEvents } from "../../lib/run/metrics.ts";
import { silent } from "../../lib/run/progress.ts";
import { recheck } from "../../lib/run/recheck.ts";
import { readIndex, TrajectoryReader } from "../../lib/run/trajectories.ts";
import { openWorld } from "../../lib/run/world.ts";
import { HALF_TRAINED, SMALL_MODEL } from "../support/small-job.ts";
import { timeless } from "../support/timeless.ts";

const limits = { maxTurns: 5, maxContext: 320, maxActionTokens: 24, observationChars: 300 };

const small: JobInput = {
  seed: 6,
  model: { create: SMALL_MODEL },
  tasks: { name: "tinyswe", train: 6, heldOut: 3 },
  episodes: 16,
  warmStart: HALF_TRAINED,
  stages: [
    {
      name: "stage1",
      iterations: 2,
      instances: 3,
      rollouts: 4,
      batchSize: 4,
      clipHigh: 0.3,
      lengthThreshold: 2,
      // A policy this small solves nothing: groups live by the lengths of their episodes.
      filter: "final_reward",
      learningRate: 0.001,
      limits,
    },
  ],
  evaluate: { runs: 2, limits, alsoAt: [{ maxTurns: 1, maxContext: 230 }] },
};

// Whole jobs, on machines that are busy, too.
describe("a job", { timeout: 240_000 }, () => {
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
    expect(result.seed).toBe(config.seed);
    expect(result.peakRssMiB).toBeGreaterThan(20);
  });

  it("writes the same metrics for the same seed, times apart", async () => {
    const [first, second] = await Promise.all(
      ["first", "second"].map(async (name) =>
        timeless(await readEvents(path.join(directory(name), "metrics.jsonl"))),
      ),
    );
    expect(first).toHaveProperty(
      "length",
      expect.toSatisfy((length: number) => length > 130),
    );
    expect(second).toEqual(first);
  });

  it("takes optimiser steps whose first finds the sampler's logprobs equal to the trainer's, bit for bit", async () => {
    const events = await readEvents(path.join(directory("first"), "metrics.jsonl"));
    const steps = events.filter((event) => event.type === "step" && event.stage === "stage1");
    expect(steps.length).toBeGreaterThan(0);
    const gaps = steps.map((event) => (event.type === "step" ? event.metrics.mismatch?.max : null));
    expect(gaps[0]).toBe(0);
  });

  it("keeps every trajectory with the lanes it was trained on", async () => {
    let actions = 0;
    const reader = new TrajectoryReader(directory("first"));
    for await (const entry of readIndex(directory("first"))) {
      const { trajectory } = await reader.read(entry);
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

  it("says of a checkpoint at smaller budgets what an evaluation with these limits says, patch for patch", async () => {
    const { path: checkpoint } = await findCheckpoint(directory("first"), "stage1");
    await using context = await openJob(config, { progress: silent, checkpoint });
    const { groups, ...at } = await evaluate({
      rollouts: context.rollouts({ ...config.evaluate.limits, maxTurns: 1, maxContext: 230 }),
      instances: context.tasks.heldOut,
      runs: 2,
      purpose: "evaluate/stage1",
      ranTests: context.ranTests,
    });
    const events = await readEvents(path.join(directory("first"), "metrics.jsonl"));
    const written = events.findLast((event) => event.type === "evaluation");
    if (written?.type !== "evaluation") throw new Error("there is no evaluation");
    expect(timeless([written.evaluation.alsoAt?.[0] as never])).toEqual(timeless([at as never]));
    const found = new Map(
      groups.flatMap(({ trajectories }) =>
        trajectories.map(({ id, patch, exit, turns, tokens, verdict }) => [
          id,
          { patch, exit, verdict, turns: turns.length, tokens: tokens.length },
        ]),
      ),
    );
    let shorter = 0;
    for await (const entry of readIndex(directory("first"))) {
      if (entry.stage !== "stage1-evaluation") continue;
      expect(entry.alsoAt?.[0]).toMatchObject(found.get(entry.id) as object);
      if ((entry.alsoAt?.[0]?.turns ?? 0) < entry.turns.length) shorter++;
    }
    expect(shorter).toBeGreaterThan(0);
  });

  it("is judged again to the same verdicts, and a verdict that was changed is found", async () => {
    await using world = await openWorld(config, { progress: silent });
    let patches = 0;
    const result = await recheck(directory("first"), world, { onPatch: () => patches++ });
    // Evaluations at two budgets and rollouts.
    expect(result).toMatchObject({ trajectories: 2 * 2 * 6 + 2 * 12, differences: [], broken: 0 });
    expect(result.agreed).toBe(result.trajectories);
    expect([result.judged, patches]).toEqual([result.patches, result.patches]);
    const some = await recheck(directory("first"), world, { sample: 3 });
    expect([some.judged, some.patches]).toEqual([3, result.patches]);

    const copied = path.join(root, "tampered", "trajectories");
    await cp(path.join(directory("first"), "trajectories"), copied, { recursive: true });
    const index = path.join(copied, "index.jsonl");
    const lines = (await readFile(index, "utf8")).split("\n");
    const [first] = lines as [string];
    await writeFile(
      index,
      [first.replace(/"verdict":"\w+"/, '"verdict":"resolved"'), ...lines.slice(1)].join("\n"),
    );
    const tampered = await recheck(path.join(root, "tampered"), world);
    const { id, stage, verdict } = JSON.parse(first) as { id: string; stage: string; verdict: string };
    expect(tampered.differences).toMatchObject([{ id, stage, stored: "resolved", found: verdict }]);
    const broken = { ...world, verify: async () => ({ reason: "infra_failed" }) as never };
    expect(await recheck(directory("first"), broken)).toMatchObject({ agreed: 0, broken: result.patches });
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
    expect(reopened.manifest.seed).toBe(config.seed);
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

  it("goes on with the pool that the stage began with, though what its iterations did would refine it anew", async () => {
    const [stage] = small.stages as [NonNullable<JobInput["stages"]>[number]];
    const refined = jobSchema.parse({
      ...small,
      warmStart: undefined,
      stages: [{ ...stage, pool: "refined", iterations: 3 }],
      evaluate: { runs: 1, limits },
    });
    // A policy from nothing solves nothing: each instance looks half solved once, and hopeless after that.
    const seen = new Set<string>();
    const spy = vi
      .spyOn(SolveRates.prototype, "rate")
      .mockImplementation((id) => (seen.size === seen.add(id).size ? 0 : 0.5));
    const name = "refined";
    const run = { config: refined, seed: refined.seed, version: "test" };
    try {
      const controller = new AbortController();
      await using created = await RunDirectory.create(directory(name), run);
      const update = (done: number): void => {
        if (done === 1) controller.abort(new Error("enough"));
      };
      let stageBegun = false;
      const phase = (of: string): void => {
        stageBegun = of === "stage1";
      };
      const progress = { ...silent, phase, update: (done: number) => stageBegun && update(done) };
      await expect(
        runJob(refined, { run: created, progress, signal: controller.signal }),
      ).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
      await created.close();
      await using opened = await RunDirectory.open(directory(name));
      const logs: string[] = [];
      await runJob(refined, { run: opened, progress: { ...silent, log: (line) => logs.push(line) } });
      expect(logs).toContain("stage1: 6 of 6 instances left");
    } finally {
      spy.mockRestore();
    }
    const iterations = (await readEvents(path.join(directory(name), "metrics.jsonl"))).flatMap((event) =>
      event.type === "iteration" ? [event.iteration] : [],
    );
    expect(iterations).toEqual([0, 1, 2]);
  });

  it("names stage, iteration, step and token of a number that is not finite, and goes on from the checkpoint", async () => {
    await using created = await RunDirectory.create(directory("broken"), {
      config,
      seed: config.seed,
      version: "test",
    });
    const { accumulate } = Policy.prototype;
    let clipped = 0;
    const spy = vi.spyOn(Policy.prototype, "accumulate").mockImplementation(function (
      this: Policy,
      batch,
      loss,
      options,
    ) {
      // The second pass of stage 1, whatever the step: one advantage is lost.
      if (loss.objective !== "ppo_clip" || ++clipped !== 2)
        return accumulate.call(this, batch, loss, options);
      const advantage = batch.advantage?.slice() as Float32Array;
      advantage[batch.weight.findIndex((weight) => weight !== 0)] = Number.NaN;
      return accumulate.call(this, { ...batch, advantage }, loss, options);
    });
    try {
      await expect(runJob(config, { run: created, progress: silent })).rejects.toMatchObject({
        code: "ERR_TOKENRING_NON_FINITE",
        message: expect.stringMatching(
          /^stage1, iteration 0, step 1: batch: advantage of token \d+ is nan; .* \(documents .+\); .*resume/,
        ),
      });
    } finally {
      spy.mockRestore();
    }
    await created.close();

    await using opened = await RunDirectory.open(directory("broken"));
    const result = await runJob(config, { run: opened, progress: silent });
    expect(result.stages).toEqual(results[0]?.stages);
    const [whole, resumed] = await Promise.all(
      ["first", "broken"].map(async (name) =>
        timeless(await readEvents(path.join(directory(name), "metrics.jsonl"))),
      ),
    );
    expect(resumed).toEqual(whole);
  });

  it("saves no weights that are not finite, so that the last checkpoint stays good", async () => {
    const { path: checkpoint } = await findCheckpoint(directory("first"), "stage1");
    await using policy = await Policy.load(checkpoint);
    const batch = {
      tokens: Int32Array.from([65, 66, 67, 68]),
      lengths: Int32Array.of(4),
      weight: Float32Array.of(0, 1, 1, 1),
    };
    await policy.accumulate(batch, { objective: "nll" });
    // Steps of up to 3e38 each take some weight past what float32 holds.
    await expect(policy.optimise({ learningRate: 3e38, weightDecay: 0 })).rejects.toMatchObject({
      code: "ERR_TOKENRING_NON_FINITE",
    });
    await expect(policy.save(directory("overflown"))).rejects.toMatchObject({
      code: "ERR_TOKENRING_NON_FINITE",
      message: expect.stringMatching(/overflown.model\.safetensors: element \d+ of tensor model\.\S+ is /),
    });
  });

  it("learns with every option of a stage on, near the checkpoint of an earlier stage", async () => {
    const [stage] = small.stages as [NonNullable<JobInput["stages"]>[number]];
    const all = jobSchema.parse({
      ...small,
      stages: [
        {
          ...stage,
          iterations: 1,
          dualClip: 3,
          klCoef: 0.1,
          reference: "base",
          entropyCoef: 0.01,
          aggregation: { drGrpo: 64 },
          oldLogprobs: "trainer",
          tisCap: 2,
          advantage: { normalise: "none" },
          maxExtraGroups: 2,
        },
        {
          ...stage,
          name: "stage2",
          iterations: 1,
          objective: "gspo",
          clipHigh: undefined,
          stepCredit: { turns: 3, rollouts: 2 },
        },
        {
          ...stage,
          name: "stage3",
          iterations: 1,
          objective: "cispo",
          clipLow: 1,
          clipHigh: 4,
          klCoef: 0.1,
          shaping: { weight: 0.5, turns: 2 },
        },
      ],
      evaluate: { ...small.evaluate, confidence: "mean_logprob" },
    });
    await using run = await RunDirectory.create(directory("options"), {
      config: all,
      seed: all.seed,
      version: "test",
    });
    const result = await runJob(all, { run, progress: silent });
    expect(result.stages.map(({ name }) => name)).toEqual(["base", "stage1", "stage2", "stage3"]);
    const events = await readEvents(path.join(directory("options"), "metrics.jsonl"));
    const steps = events.flatMap((event) =>
      event.type === "step" && event.stage.startsWith("stage") ? [event] : [],
    );
    const credit = events.flatMap((event) => (event.type === "iteration" ? [event.summary.credit] : []));
    // Real sandboxes come to the state that they had, and episodes go on from there.
    expect(credit).toMatchObject([null, { lost: 0 }, { lost: 0, episodes: 0 }]);
    expect(credit[1]?.turns).toBeGreaterThan(0);
    expect(credit[1]?.episodes).toBe(2 * (credit[1]?.turns as number));
    expect(credit[2]?.turns).toBeGreaterThan(0);
    const last = events.findLast((event) => event.type === "evaluation");
    expect(last?.type === "evaluation" && last.evaluation.confidence?.curve.length).toBeGreaterThan(0);
    const first = (name: string) => steps.find((step) => step.stage === name)?.metrics;
    // The engine is the trainer: nothing to correct. At the first step the policy still is the reference.
    expect(first("stage1")).toMatchObject({ referenceKl: 0, tisClipped: 0, mismatch: { max: 0 } });
    expect(first("stage2")).toMatchObject({ referenceKl: null, tisClipped: null, mismatch: { max: 0 } });
    expect(first("stage3")).toMatchObject({ referenceKl: 0, mismatch: { max: 0 } });
    const later = steps.filter((step) => step.stage === "stage1").slice(1);
    expect(later.length).toBeGreaterThan(0);
    for (const { metrics } of later) expect(metrics.referenceKl).toBeGreaterThan(0);
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
