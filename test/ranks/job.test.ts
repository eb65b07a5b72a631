// A job on many ranks: the same trajectories and, within float32's sums, the same first iteration as on one; the same
// gates; and it goes on after a rank was lost.
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { StepMetrics } from "../../lib/learn/types.ts";
import { RankGroup } from "../../lib/ranks/group.ts";
import { findCheckpoint } from "../../lib/run/checkpoints.ts";
import { type JobInput, jobSchema } from "../../lib/run/config.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { runJob } from "../../lib/run/job.ts";
import { readEvents } from "../../lib/run/metrics.ts";
import { silent } from "../../lib/run/progress.ts";
import { readIndex, TrajectoryReader } from "../../lib/run/trajectories.ts";
import { HALF_TRAINED, SMALL_MODEL } from "../support/small-job.ts";
import { timeless } from "../support/timeless.ts";

const limits = { maxTurns: 4, maxContext: 320, maxActionTokens: 24, observationChars: 300 };

const started: JobInput = {
  seed: 6,
  model: { create: SMALL_MODEL },
  tasks: { name: "tinyswe", train: 6, heldOut: 2 },
  warmStart: { ...HALF_TRAINED, copySteps: 5, steps: 100 },
  evaluate: { runs: 1, limits },
};

/** From that checkpoint, by way of everything that goes through the ranks: RFT needs a solved task, which this has not. */
const learning = (model: string): JobInput => ({
  seed: 6,
  model: { path: model },
  tasks: { name: "tinyswe", train: 6, heldOut: 2 },
  microBatchTokens: 512,
  stages: [
    {
      name: "stage1",
      iterations: 2,
      instances: 3,
      rollouts: 4,
      batchSize: 6,
      clipHigh: 0.3,
      klCoef: 0.01,
      lengthThreshold: 2,
      filter: "final_reward",
      learningRate: 0.001,
      limits,
    },
  ],
  evaluate: { runs: 1, limits },
});

describe("a job", { timeout: 240_000 }, () => {
  let root: string;
  let model: string;
  const directory = (name: string): string => path.join(root, name);

  async function run(name: string, input: JobInput): Promise<void> {
    const config = jobSchema.parse(input);
    await using opened = await RunDirectory.create(directory(name), { config, seed: 6, version: "test" });
    await runJob(config, { run: opened, progress: silent });
  }

  async function steps(name: string, stage: string): Promise<StepMetrics[]> {
    const events = await readEvents(path.join(directory(name), "metrics.jsonl"));
    return events.flatMap((event) => (event.type === "step" && event.stage === stage ? [event.metrics] : []));
  }

  /** What was sampled in a stage's first iteration, or an evaluation. */
  async function sampled(name: string, stage: string) {
    const reader = new TrajectoryReader(directory(name));
    const lanes: Record<string, unknown> = {};
    for await (const entry of readIndex(directory(name))) {
      if (entry.stage !== stage || entry.iteration !== 0) continue;
      const { tokens, logprobs, verdict } = (await reader.read(entry)).trajectory;
      lanes[entry.id] = { tokens, logprobs, verdict };
    }
    return lanes;
  }

  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), "tokenring-ranks-job-"));
    await run("started", started);
    model = directory("model");
    await cp((await findCheckpoint(directory("started"), "base")).path, model, { recursive: true });
    await run("one", learning(model));
  }, 240_000);

  afterAll(async () => {
    await rm(root, { recursive: true });
  });

  /** Relative; float32 sums in another order, over some thousand tokens. */
  const CLOSE = 1e-5;
  const COMPARED = ["loss", "gradientNorm", "entropy", "approximateKl", "referenceKl"] as const;

  function expectClose(metrics: StepMetrics, expected: StepMetrics): void {
    for (const key of COMPARED) {
      const [a, b] = [metrics[key] ?? 0, expected[key] ?? 0];
      expect(Math.abs(a - b), `${key}: ${a}, on one rank ${b}`).toBeLessThan(
        CLOSE * Math.max(1, Math.abs(b)),
      );
    }
    for (const key of ["tokens", "packedTokens", "trajectories", "clipLow", "clipHigh"] as const)
      expect(metrics[key], key).toBe(expected[key]);
  }

  it.each<[string, Partial<JobInput>, boolean]>([
    ["two", { ranks: 2 }, true],
    ["ring", { ranks: 4, contextParallel: 2 }, false],
    ["gathered", { ranks: 4, contextParallel: 2, contextSchedule: "all_gather" }, true],
  ])("on ranks (%s) samples and learns as on one, within the first iteration", async (name, ranks, exact) => {
    await run(name, { ...learning(model), ...ranks });
    for (const stage of ["base-evaluation", "stage1"]) {
      const expected = await sampled("one", stage);
      expect(Object.keys(expected).length).toBeGreaterThan(1);
      expect(await sampled(name, stage)).toEqual(expected);
    }
    const [many, one] = await Promise.all([steps(name, "stage1"), steps("one", "stage1")]);
    expectClose(many[0] as StepMetrics, one[0] as StepMetrics);
    // The gate: trainer and sampler under the same weights, in every first step of an iteration.
    expect(many[0]?.mismatch?.max).toEqual(exact ? 0 : expect.toSatisfy((gap: number) => gap < 1e-4));
    for (const { imbalance } of many) {
      expect(imbalance).toBeGreaterThanOrEqual(1);
      // Twelve episodes of like lengths on two groups.
      expect(imbalance).toBeLessThan(1.5);
    }
    expect(one[0]).not.toHaveProperty("imbalance");
  });

  it("warm-starts on ranks from the same weights", async () => {
    const short = { ...started, warmStart: { ...started.warmStart, copySteps: 2, steps: 2 } } as JobInput;
    await run("warm", { ...short, ranks: 2 });
    const [many, one] = await Promise.all([steps("warm", "base"), steps("started", "base")]);
    expectClose(many[0] as StepMetrics, one[0] as StepMetrics);
  });

  it("that loses a rank ends by its name, and resumed it is as one that lost none", async () => {
    const input = { ...learning(model), ranks: 2 };
    const config = jobSchema.parse(input);
    const name = "lost";
    const open = RankGroup.open;
    let pid = 0;
    RankGroup.open = async (options) => {
      const group = await open.call(RankGroup, options);
      pid = group.workers[0]?.pid as number;
      return group;
    };
    try {
      await using created = await RunDirectory.create(directory(name), { config, seed: 6, version: "test" });
      // In the rollouts of the second iteration, when the first is saved.
      const update = (done: number): void => {
        if (stage === "stage1" && done === 1) process.kill(pid, "SIGKILL");
      };
      let stage = "";
      const phase = (of: string): void => {
        stage = of;
      };
      await expect(
        runJob(config, { run: created, progress: { ...silent, phase, update } }),
      ).rejects.toMatchObject({
        code: "ERR_TOKENRING_COMMUNICATOR",
        message: expect.stringMatching(
          /rank 1 \(process \d+ on .*\) of 2 is lost: its process was ended by SIGKILL/,
        ),
      });
      stage = "";
    } finally {
      RankGroup.open = open;
    }
    await using opened = await RunDirectory.open(directory(name));
    await runJob(config, { run: opened, progress: silent });
    const [whole, resumed] = await Promise.all(
      ["two", name].map(async (of) => timeless(await readEvents(path.join(directory(of), "metrics.jsonl")))),
    );
    expect(resumed).toEqual(whole);
  });
});
