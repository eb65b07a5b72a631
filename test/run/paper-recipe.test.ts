// The paper's recipe as a job: what Table 3 says is what the file says, and what cannot be run is named at once.
import { expect, it } from "vitest";
import { DAPO_STAGE1, DAPO_STAGE2, type DapoConfig } from "../../lib/learn/dapo.ts";
import { RFT_DEFAULTS } from "../../lib/learn/rft.ts";
import type { JobConfig, StageConfig } from "../../lib/run/config.ts";
import { readConfig } from "../../lib/run/config-file.ts";
import { openJob } from "../../lib/run/job-context.ts";
import { silent } from "../../lib/run/progress.ts";
import { dapoConfig } from "../../lib/run/stage.ts";

const recipe = async (): Promise<JobConfig> => (await readConfig("recipes/qwen2.5-72b.yaml")).config;

it("has the numbers of Table 3 and of the appendix", async () => {
  const { model, tasks, rft, stages, evaluate } = await recipe();
  expect(model).toMatchObject({
    name: "Qwen/Qwen2.5-72B-Instruct",
    yarn: { factor: 4, originalMaxPositions: 32_768 },
  });
  expect(tasks).toMatchObject({ train: 7249 });
  expect(rft).toMatchObject({
    instances: 7249,
    rollouts: 10,
    batchSize: 64,
    learningRate: 5e-6,
    weightDecay: 0.1,
    warmupSteps: 10,
    limits: { maxContext: 65_536 },
  });
  const [first, second] = stages as [StageConfig, StageConfig];
  const common = { rollouts: 10, lengthThreshold: 10, clipLow: 0.2, learningRate: 1e-6 };
  const optimiser = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };
  expect(first).toMatchObject({
    ...common,
    ...optimiser,
    instances: 300,
    batchSize: 128,
    clipHigh: 0.3,
    pool: "all",
    limits: { maxTurns: 40, maxContext: 65_536 },
  });
  expect(second).toMatchObject({
    ...common,
    ...optimiser,
    instances: 100,
    batchSize: 256,
    clipHigh: 0.26,
    pool: "refined",
    limits: { maxTurns: 80, maxContext: 131_072 },
  });
  expect(evaluate).toMatchObject({ runs: 10, limits: { maxTurns: 80, maxContext: 131_072 } });
});

it("is what the loops' own defaults are", async () => {
  const config = await recipe();
  const [first, second] = config.stages as [StageConfig, StageConfig];
  const { microBatchTokens } = config;
  for (const [stage, defaults] of [
    [first, DAPO_STAGE1],
    [second, DAPO_STAGE2],
  ] as const) {
    const expected: Partial<DapoConfig> = { ...defaults, microBatchTokens };
    // No key of a job: the embedded engine needs no tolerance, and the rate has no warm-up.
    delete expected.logprobTolerance;
    delete expected.warmupSteps;
    expect(dapoConfig(stage, config)).toEqual(expected);
  }
  const { limits: _, instances: __, ...rft } = config.rft as NonNullable<JobConfig["rft"]>;
  expect(RFT_DEFAULTS).toMatchObject(rft);
});

it("names everything that cannot be done before anything is opened", async () => {
  const started = openJob(await recipe(), { progress: silent });
  await expect(started).rejects.toMatchObject({
    code: "ERR_TOKENRING_CONFIG",
    // Where a GPU can be used the tasks alone are in the way.
    message: expect.stringMatching(
      /^(?:device: cuda cannot be used: .+\n)?tasks\.name: swe-rebench cannot be run: .*container images/,
    ),
  });
});
