// The experiments: what each variant changes, how two are compared, and that what is finished is not done again.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type Experiment,
  experimentTable,
  paired,
  readExperiment,
  seedsTable,
  type VariantResult,
} from "../../bench/experiments/result.ts";
import { type ExperimentOptions, runExperiments } from "../../bench/experiments/run.ts";
import { type Variant, variantsOf } from "../../bench/experiments/variants.ts";
import { scoreGroup } from "../../lib/learn/filter.ts";
import { type JobConfig, jobSchema } from "../../lib/run/config.ts";
import { readConfig } from "../../lib/run/config-file.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { openJob } from "../../lib/run/job-context.ts";
import { silent } from "../../lib/run/progress.ts";
import { episode, instance } from "../learn/doubles.ts";

describe("the variants", () => {
  let config: JobConfig;
  let variants: Variant[];
  beforeAll(async () => {
    ({ config } = await readConfig("recipes/tinyswe.yaml"));
    variants = variantsOf(config);
  });

  /** What a variant's stage has otherwise than the recipe's. */
  function changes(name: string): object {
    const method = variants.find((variant) => variant.name === name)?.method;
    if (method?.kind !== "dapo") throw new Error(`${name} is no DAPO`);
    const base = config.stages[name.startsWith("stage2") ? 1 : 0] as Record<string, unknown>;
    return Object.fromEntries(
      Object.entries(method.stage).filter(
        ([key, value]) => JSON.stringify(value) !== JSON.stringify(base[key]),
      ),
    );
  }

  it("each change one thing of the recipe", () => {
    expect(changes("dapo")).toEqual({});
    expect(changes("symmetric-clip")).toEqual({ clipHigh: 0.2 });
    expect(changes("no-filter")).toEqual({ lengthPenalty: true, filter: "final_reward" });
    expect(changes("length-penalty")).toEqual({ lengthPenalty: true });
    expect(changes("sample-mean")).toEqual({ aggregation: "sample_mean" });
    expect(Object.keys(changes("step-credit"))).toEqual(["stepCredit"]);
    expect(Object.keys(changes("shaping"))).toEqual(["shaping"]);
    expect(changes("refill")).toEqual({ maxExtraGroups: config.stages[0]?.instances });
    expect(changes("stage2")).toEqual({});
    expect(changes("stage2-turns")).toEqual({ limits: config.stages[0]?.limits });
    expect(new Set(variants.map(({ name }) => name)).size).toBe(variants.length);
  });

  it("take the length penalty away where the recipe has it", () => {
    const penalised = config.stages.map((stage) => ({ ...stage, lengthPenalty: true }));
    const names = variantsOf({ ...config, stages: penalised }).map(({ name }) => name);
    expect(names).toContain("no-length-penalty");
    expect(names).not.toContain("length-penalty");
  });

  it("shuffle advantages within a group, and nothing else", async () => {
    const method = variants.find(({ name }) => name === "shuffled")?.method;
    if (method?.kind !== "dapo" || !method.assign) throw new Error("shuffled assigns");
    const trajectories = Array.from({ length: 8 }, (_, rollout) =>
      episode(rollout + 1, rollout < 3, { rollout }),
    );
    const group = { instance: instance("i"), trajectories, dropped: [] };
    const scored = scoreGroup(group, { reward: { maxTurns: 12, lengthThreshold: 2 } });
    const [shuffled] = await method.assign([scored], 0);
    expect(shuffled).toMatchObject({ rewards: scored.rewards, state: "live" });
    expect(shuffled?.advantages).not.toEqual(scored.advantages);
    const sorted = (list: readonly number[] = []) => [...list].sort((a, b) => a - b);
    expect(sorted(shuffled?.advantages)).toEqual(sorted(scored.advantages));
  });
});

function result(name: string, perInstance: Record<string, number>): VariantResult {
  const rates = Object.values(perInstance);
  return {
    name,
    about: `about ${name}`,
    trainingEpisodes: 1440.4,
    iterations: 6,
    steps: 18,
    cpuSeconds: 61.2,
    seconds: 40,
    evaluation: {
      pass1: rates.reduce((a, b) => a + b, 0) / rates.length,
      sem: 0.01,
      passK: {},
      alsoAt: [{ maxTurns: 12, pass1: 0.25, sem: 0.01 }],
      turns: 5.25,
      formatErrorRate: 0.02,
      submitted: 0.9,
      perInstance,
      confidence: {},
    },
    curve: [],
  };
}

const experiment = (seed: number, ...variants: VariantResult[]): Experiment => ({
  schema: 1,
  machine: "test",
  seed,
  settings: {},
  variants,
});

describe("comparing", () => {
  const rft = result("rft", { a: 0.2, b: 0, c: 1 });
  const dapo = result("dapo", { a: 0.6, b: 0.2, c: 1 });

  it("pairs by instance: the mean difference and its standard error", () => {
    const { difference, sem } = paired(dapo, rft);
    expect(difference).toBeCloseTo(0.2, 12);
    // Differences 0.4, 0.2, 0: sd 0.2.
    expect(sem).toBeCloseTo(0.2 / Math.sqrt(3), 12);
    expect(paired(dapo, result("other", { z: 1 }))).toEqual({ difference: 0, sem: null });
  });

  it("writes one seed as a table, and several with errors over the seeds", () => {
    const [, , first, second] = experimentTable(experiment(1, rft, dapo)).split("\n");
    expect(first).toBe(
      "| rft | about rft | 40.0 ± 1.0 | 25.0 | – | −20.0 ± 11.5 | 5.3 | 2.0 | – | 40.0 | 1440 | 61 |",
    );
    expect(second).toContain("| dapo | about dapo | 60.0 ± 1.0 | 25.0 | +20.0 ± 11.5 | – |");
    const better = result("dapo", { a: 1, b: 0.4, c: 1 });
    const table = seedsTable([experiment(1, rft, dapo), experiment(2, rft, better)]);
    expect(table).toContain("| dapo | about dapo | 2 | 70.0 ± 10.0 | +30.0 ± 10.0 | – |");
  });

  it("refuses a file that is none", async () => {
    await expect(readExperiment("package.json")).rejects.toThrow(/no result of the experiments \(schema/);
    await expect(readExperiment("missing.json")).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
    });
  });
});

describe("running", () => {
  let root: string;
  let options: ExperimentOptions;

  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), "tokenring-experiments-"));
    const limits = { maxTurns: 2, maxContext: 256, maxActionTokens: 8 };
    const stage = {
      iterations: 3,
      instances: 2,
      rollouts: 2,
      batchSize: 4,
      lengthThreshold: 1,
      learningRate: 1e-3,
      // An untrained policy solves nothing: lengths are its signal.
      filter: "final_reward" as const,
      limits,
    };
    const model = { hiddenSize: 32, layers: 1, heads: 1, keyValueHeads: 1, headDim: 32 };
    const config = jobSchema.parse({
      seed: 4,
      model: { create: { ...model, intermediateSize: 32, maxPositions: 256 } },
      tasks: { name: "tinyswe", train: 4, heldOut: 2 },
      rft: { instances: 1, rollouts: 1, batchSize: 1, learningRate: 1e-3, limits },
      stages: [
        { name: "stage1", ...stage },
        { name: "stage2", ...stage },
      ],
      evaluate: { runs: 1, limits },
    });
    const run = path.join(root, "run");
    await using directory = await RunDirectory.create(run, { config, seed: 4, version: "test" });
    await using context = await openJob(config, { progress: silent });
    await directory.saveCheckpoint("rft", (to) => context.save(to));
    options = {
      run,
      recipe: "recipes/tinyswe.yaml",
      seed: 4,
      out: path.join(root, "out"),
      only: ["shuffled", "more-rft", "stage2"],
      iterations: 1,
      runs: 1,
      progress: silent,
      signal: new AbortController().signal,
    };
  }, 60_000);
  afterAll(async () => {
    await rm(root, { recursive: true, force: true });
  });

  it("spends the budget, starts from what a variant starts from, and does nothing twice", async () => {
    const names: [string, boolean][] = [];
    const onResult: ExperimentOptions["onResult"] = ({ name }, again) => names.push([name, again]);
    const first = await runExperiments({ ...options, only: ["shuffled", "more-rft"], onResult });
    expect(first.variants.map(({ trainingEpisodes }) => trainingEpisodes)).toEqual([4, 4]);
    const more = await runExperiments({ ...options, only: ["shuffled", "stage2-turns"], onResult });
    // dapo comes along, since stage2-turns starts from it.
    expect(names).toEqual([
      ["shuffled", false],
      ["more-rft", false],
      ["dapo", false],
      ["shuffled", true],
      ["stage2-turns", false],
    ]);
    expect(more.variants[1]).toEqual(first.variants[0]);
    await readFile(path.join(options.out, "checkpoints", "dapo", "model.safetensors"));
    const json = path.join(root, "all.json");
    await writeFile(json, JSON.stringify(more));
    expect(await readExperiment(json)).toEqual(more);
  }, 60_000);

  it("refuses results of other settings, and names that there are not", async () => {
    await expect(runExperiments({ ...options, only: ["shuffled"], runs: 2 })).rejects.toThrow(
      /shuffled\.json was made with other settings/,
    );
    await expect(runExperiments({ ...options, only: ["shufled"] })).rejects.toThrow(/no variant "shufled"/);
  });
});
