// A job whose episodes are sampled by vLLM servers: on one rank, and on ranks of which none holds the whole weights, as
// no other engine can.
import { mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type JobInput, jobSchema } from "../../lib/run/config.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { runJob } from "../../lib/run/job.ts";
import { openJob } from "../../lib/run/job-context.ts";
import { readEvents } from "../../lib/run/metrics.ts";
import { silent } from "../../lib/run/progress.ts";
import { readIndex, TrajectoryReader } from "../../lib/run/trajectories.ts";
import { VllmDouble } from "../engine/vllm-double.ts";
import { HALF_TRAINED, SMALL_MODEL } from "../support/small-job.ts";

const limits = { maxTurns: 5, maxContext: 320, maxActionTokens: 24, observationChars: 300 };

const job: JobInput = {
  seed: 6,
  model: { create: SMALL_MODEL },
  tasks: { name: "tinyswe", train: 4, heldOut: 2 },
  episodes: 16,
  warmStart: { ...HALF_TRAINED, steps: 60 },
  stages: [
    {
      name: "stage1",
      iterations: 2,
      instances: 3,
      rollouts: 4,
      batchSize: 8,
      clipHigh: 0.3,
      lengthThreshold: 2,
      filter: "final_reward",
      learningRate: 0.001,
      limits,
    },
  ],
  evaluate: { runs: 1, limits },
};

describe("a job with vLLM", { timeout: 120_000 }, () => {
  let root: string;
  let server: VllmDouble;

  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), "tokenring-vllm-job-"));
    await using context = await openJob(jobSchema.parse(job), { progress: silent });
    server = await VllmDouble.start(context.policy.config);
  }, 60_000);
  afterAll(async () => {
    await server.close();
    await rm(root, { recursive: true, force: true });
  });

  const run = async (name: string, more: Partial<JobInput>): Promise<string> => {
    const weights = path.join(root, `${name}-weights`);
    const engine = {
      kind: "vllm",
      urls: [server.url],
      dtype: "f32",
      seeded: true,
      tolerance: 1e-3,
      weights,
    } as const;
    const config = jobSchema.parse({ ...job, ...more, engine });
    const directory = path.join(root, name);
    await using opened = await RunDirectory.create(directory, { config, seed: 6, version: "test" });
    const { stages } = await runJob(config, { run: opened, progress: silent });
    expect(stages.map((stage) => stage.name)).toEqual(["base", "stage1"]);
    // Given back, and no weights left.
    expect(await readdir(weights)).toEqual([]);
    return directory;
  };

  it.each<[string, Partial<JobInput>]>([
    ["one", {}],
    ["sharded", { ranks: 2, shard: 3 }],
  ])("samples every turn there, from the weights of its time (%s)", async (name, more) => {
    const before = server.completions.length;
    const directory = await run(name, more);
    let turns = 0;
    const versions: Record<string, Set<number>> = {};
    const reader = new TrajectoryReader(directory);
    for await (const entry of readIndex(directory)) {
      const { trajectory } = await reader.read(entry);
      turns += trajectory.turns.length;
      const when = `${entry.stage}/${entry.iteration}`;
      versions[when] ??= new Set();
      for (const turn of trajectory.turns) versions[when].add(turn.version);
    }
    const [base, first, second, last] = [
      "base-evaluation/0",
      "stage1/0",
      "stage1/1",
      "stage1-evaluation/0",
    ].map((when) => [...(versions[when] as Set<number>)]);
    expect([base, first, second, last].map((one) => one?.length)).toEqual([1, 1, 1, 1]);
    expect(first).toEqual(base);
    expect(second?.[0]).toBeGreaterThan(first?.[0] as number);
    expect(last?.[0]).toBeGreaterThan(second?.[0] as number);
    // And one for each version to see that it has arrived.
    expect(server.completions.length - before).toBe(turns + 3);
    const events = await readEvents(path.join(directory, "metrics.jsonl"));
    // Of each iteration's first step, whose weights are those that sampled.
    const gaps = events.flatMap((event) =>
      event.type === "step" && event.metrics.mismatch ? [event.metrics.mismatch.max] : [],
    );
    expect(gaps.length).toBeGreaterThan(1);
    for (const gap of gaps) expect(gap).toBeLessThan(1e-4);
  });

  it("is refused another job's folder of weights", async () => {
    const weights = path.join(root, "taken");
    const engine = { kind: "vllm", urls: [server.url], weights } as const;
    const config = jobSchema.parse({ ...job, engine });
    await using _ = await openJob(config, { progress: silent });
    await expect(openJob(config, { progress: silent })).rejects.toMatchObject({
      code: "ERR_TOKENRING_RUN_DIRECTORY",
      message: expect.stringContaining(weights),
    });
  });

  it("uses a temporary folder where none is named, and removes those of jobs that were killed", async () => {
    const left = await mkdtemp(path.join(tmpdir(), "tokenring-weights-"));
    await writeFile(
      path.join(left, "lock"),
      JSON.stringify({ pid: 2 ** 22 + 1, host: hostname(), started: "1" }),
    );
    const old = new Date(Date.now() - 3_600_000);
    await utimes(left, old, old);
    const young = await mkdtemp(path.join(tmpdir(), "tokenring-weights-"));
    const folders = async (): Promise<string[]> =>
      (await readdir(tmpdir())).filter((name) => name.startsWith("tokenring-weights-"));
    const config = jobSchema.parse({ ...job, engine: { kind: "vllm", urls: [server.url] } });
    const before = await folders();
    const context = await openJob(config, { progress: silent });
    expect(await folders()).not.toContain(path.basename(left));
    expect(await folders()).toContain(path.basename(young));
    const made = (await folders()).filter((name) => !before.includes(name));
    expect(made).toHaveLength(1);
    await context[Symbol.asyncDispose]();
    expect(await folders()).not.toContain(made[0]);
    await rm(young, { recursive: true });
  });
});
