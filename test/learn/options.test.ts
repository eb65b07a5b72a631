// Every option of the two loops arrives where it is meant to: what the policy and the rollouts were asked says so.
import { describe, expect, test } from "vitest";
import {
  DAPO_STAGE1,
  DAPO_STAGE2,
  type DapoConfig,
  type DapoIteration,
  type DapoOptions,
  dapo,
} from "../../lib/learn/dapo.ts";
import { RFT_DEFAULTS, type RftConfig, type RftEvent, type RftOptions, rft } from "../../lib/learn/rft.ts";
import { episode, instance, PolicyDouble, RolloutDouble, trajectory } from "./doubles.ts";

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = [];
  for await (const one of source) out.push(one);
  return out;
}

/** What was learnt from, in its order. The doubles' first token tells the number of the rollout. */
function learnt(
  policy: PolicyDouble,
): { rollout: number; advantage: number | undefined; weights: number[] }[] {
  return policy.calls.flatMap(({ batch }) => {
    let at = 0;
    return [...batch.lengths].map((length) => {
      const from = at;
      at += length;
      return {
        rollout: (batch.tokens[from] as number) - 10,
        advantage: batch.advantage?.[from],
        weights: [...batch.weight.subarray(from, at)].filter((weight) => weight !== 0),
      };
    });
  });
}

const rollouts = (policy: PolicyDouble): number[] => learnt(policy).map((one) => one.rollout);
const sorted = (numbers: readonly number[]): number[] => [...numbers].sort((a, b) => a - b);

// None is a default of the loops or of the policy.
const ADAMW = { beta1: 0.5, beta2: 0.6, epsilon: 1e-3, weightDecay: 0.7, clipNorm: 8 };

describe("dapo", () => {
  /** The group that the recipe works out by hand (section 1.6): the first three are solved. */
  const TURNS = [12, 20, 40, 8, 15, 25, 40, 40, 40, 40];
  const recipe = (policy: PolicyDouble): RolloutDouble =>
    new RolloutDouble((one, rollout) =>
      episode(TURNS[rollout] as number, rollout < 3 && one.instance_id !== "failed", {
        instanceId: one.instance_id,
        rollout,
        version: policy.version,
      }),
    );

  async function run(
    config: Partial<DapoConfig> = {},
    more: Partial<DapoOptions> = {},
    policy = new PolicyDouble({ drift: 0 }),
  ): Promise<{ policy: PolicyDouble; source: RolloutDouble; iterations: DapoIteration[] }> {
    const source = (more.rollouts as RolloutDouble | undefined) ?? recipe(policy);
    const iterations = await all(
      dapo({
        policy,
        instances: [instance("mixed")],
        seed: 2,
        ...more,
        rollouts: source,
        config: { iterations: 1, ...config },
      }),
    );
    return { policy, source, iterations };
  }

  test("the stages are those of the paper's table 3", () => {
    const common = {
      rollouts: 10,
      lengthThreshold: 10,
      lengthPenalty: true,
      temperature: 1,
      filter: "outcome",
      maxExtraGroups: 0,
      stepCredit: { turns: 0, rollouts: 4 },
      shaping: { weight: 0, turns: 8 },
      advantage: { normalise: "std", ddof: 0, delta: 1e-6 },
      aggregation: "token_mean",
      learningRate: 1e-6,
      warmupSteps: 0,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0.1,
      clipNorm: 1,
      microBatchTokens: 4096,
      logprobTolerance: 0,
      objective: "ppo_clip",
      clipLow: 0.2,
      dualClip: 0,
      klCoef: 0,
      entropyCoef: 0,
      oldLogprobs: "engine",
      tisCap: 0,
      spareRollouts: 0,
      groupSeconds: null,
    };
    expect(DAPO_STAGE1).toEqual({
      ...common,
      iterations: 24,
      instances: 300,
      batchSize: 128,
      clipHigh: 0.3,
      maxTurns: 40,
    });
    expect(DAPO_STAGE2).toEqual({
      ...common,
      iterations: 20,
      instances: 100,
      batchSize: 256,
      clipHigh: 0.26,
      maxTurns: 80,
    });
  });

  // The first, the fourth and the fifth are the recipe's own numbers; the others follow from its equations 2 to 4.
  test.each<[string, Partial<DapoConfig>, number[]]>([
    ["none", {}, [1.8179, 1.4269, 0.4496, 0.4496, 0.2052, -0.2834, -1.0164]],
    ["maxTurns", { maxTurns: 80 }, [1.7683, 1.5513, 1.0089, -0.0759, -0.2115, -0.4827, -0.8896]],
    ["lengthThreshold", { lengthThreshold: 20 }, [1.6434, 1.6434, 0.3018, 0.3018, 0.3018, -0.0335, -1.0397]],
    ["lengthPenalty", { lengthPenalty: false }, [1.5275, 1.5275, 1.5275, -0.6547, -0.6547, -0.6547, -0.6547]],
    ["ddof", { advantage: { ddof: 1 } }, [1.7246, 1.3537, 0.4265, 0.4265, 0.1947, -0.2689, -0.9643]],
    [
      "normalise",
      { advantage: { normalise: "none" } },
      [1.24, 0.9733, 0.3067, 0.3067, 0.14, -0.1933, -0.6933],
    ],
    ["delta", { advantage: { delta: 1 } }, [0.7372, 0.5786, 0.1823, 0.1823, 0.0832, -0.1149, -0.4122]],
  ])("advantages of the recipe's group, changed: %s", async (_, config, expected) => {
    const { policy } = await run(config);
    const advantages = learnt(policy).sort((a, b) => a.rollout - b.rollout);
    expect(advantages.map((one) => one.rollout)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // The last four are equal. The literals have four digits.
    for (const [i, one] of advantages.entries())
      expect(one.advantage).toBeCloseTo(expected[i] ?? expected[6] ?? 0, 4);
  });

  test("the filter looks at what it is told to", async () => {
    const failed = { instances: [instance("failed")] };
    expect((await run({}, failed)).policy.calls).toHaveLength(0);
    expect((await run({ filter: "outcome" }, failed)).policy.calls).toHaveLength(0);
    const { policy, iterations } = await run({ filter: "final_reward" }, failed);
    expect(rollouts(policy)).toHaveLength(10);
    expect(iterations[0]?.summary).toMatchObject({ solved: 0, groupsKept: 1, trained: 10 });
  });

  test("a trajectory without advantage is left out and counts in no mean", async () => {
    // Rewards 1, 0 and, half way to the last turn, 0.5: the mean, exactly.
    const turns = [1, 1, 25];
    const source = new RolloutDouble((_, rollout) =>
      episode(turns[rollout] as number, rollout !== 1, { rollout }),
    );
    const { policy, iterations } = await run({ rollouts: 3 }, { rollouts: source });
    expect(sorted(rollouts(policy))).toEqual([0, 1]);
    expect(learnt(policy).map((one) => one.weights)).toEqual([[0.5], [0.5]]);
    expect(iterations[0]?.summary).toMatchObject({ episodes: 3, trained: 2 });
  });

  test("the rollouts, the loss and the optimiser are asked for what the options say", async () => {
    const { signal } = new AbortController();
    const { policy, source, iterations } = await run(
      {
        iterations: 2,
        instances: 2,
        rollouts: 5,
        batchSize: 4,
        clipLow: 0.11,
        clipHigh: 0.22,
        temperature: 0.7,
        learningRate: 6,
        warmupSteps: 4,
        ...ADAMW,
      },
      {
        instances: ["a", "b", "c"].map((id) => instance(id)),
        purpose: "stage1",
        start: { iteration: 0, step: 1 },
        signal,
      },
    );
    expect(
      source.requests.map(({ instances, ...request }) => ({ ...request, instances: instances.length })),
    ).toEqual(
      [0, 1].map((iteration) => ({
        instances: 2,
        rollouts: 5,
        purpose: "stage1",
        iteration,
        temperature: 0.7,
        signal,
      })),
    );
    // Ten trajectories an iteration, at most four to a step: three steps.
    expect(iterations.map((one) => one.steps.map((step) => step.trajectories))).toEqual([
      [3, 3, 4],
      [3, 3, 4],
    ]);
    for (const { loss, signal: given } of policy.calls) {
      expect(given).toBe(signal);
      expect(loss).toEqual({
        objective: "ppo_clip",
        clipLow: 0.11,
        clipHigh: 0.22,
        dualClip: 0,
        klCoef: 0,
        entropyCoef: 0,
        temperature: 0.7,
      });
    }
    // The second step of a warm-up of four is the first that is taken here.
    const rates = [3, 4.5, 6, 6, 6, 6];
    expect(policy.optimised.map((one) => one.options)).toEqual(
      rates.map((learningRate) => ({ learningRate, ...ADAMW })),
    );
  });

  test("clip and aggregation are the objective's where they are left out", async () => {
    const clips = async (config: Partial<DapoConfig>): Promise<unknown> =>
      (await run(config)).policy.calls[0]?.loss;
    expect(await clips({})).toMatchObject({ clipLow: 0.2, clipHigh: 0.3 });
    expect(await clips({ objective: "cispo" })).toMatchObject({ clipLow: 0.2, clipHigh: 0.3 });
    expect(await clips({ objective: "gspo" })).toMatchObject({ clipLow: 3e-4, clipHigh: 4e-4 });
    expect(await clips({ objective: "gspo", clipHigh: 0.1 })).toMatchObject({ clipLow: 3e-4, clipHigh: 0.1 });
  });

  test("the aggregation makes the weights", async () => {
    const sums = async (aggregation?: DapoConfig["aggregation"]): Promise<number[]> => {
      const { policy } = await run(aggregation ? { aggregation } : {});
      return learnt(policy)
        .sort((a, b) => a.rollout - b.rollout)
        .map((one) => one.weights.reduce((a, b) => a + b, 0));
    };
    // One action token a turn, 280 turns in all; float32 weights, so six digits.
    const expectSums = (actual: number[], expected: number[]): void => {
      for (const [i, sum] of actual.entries()) expect(sum).toBeCloseTo(expected[i] as number, 6);
    };
    expectSums(
      await sums(),
      TURNS.map((turns) => turns / 280),
    );
    expectSums(
      await sums("sample_mean"),
      TURNS.map(() => 1 / 10),
    );
    expectSums(
      await sums({ drGrpo: 50 }),
      TURNS.map((turns) => turns / 50 / 10),
    );
  });

  test("micro-batches and the tolerance of logprobs are the options'", async () => {
    const { policy: one } = await run();
    // A document has a prompt of 4 and 2 tokens a turn but for the last observation: 590 tokens in all.
    expect(one.calls).toHaveLength(1);
    const { policy: many } = await run({ microBatchTokens: 1 });
    expect(many.calls).toHaveLength(10);
    const off = (): PolicyDouble => Object.assign(new PolicyDouble({ drift: 0 }), { error: 1e-3 });
    const mismatch = { code: "ERR_TOKENRING_LOGPROB_MISMATCH" };
    await expect(run({}, {}, off())).rejects.toMatchObject(mismatch);
    await expect(run({ logprobTolerance: 1e-4 }, {}, off())).rejects.toMatchObject(mismatch);
    for (const logprobTolerance of [1e-2, null]) {
      const { iterations } = await run({ logprobTolerance }, {}, off());
      // float32 logprobs around 1.
      expect(iterations[0]?.steps[0]?.mismatch?.max).toBeCloseTo(1e-3, 6);
    }
  });

  test("seed, purpose and iteration each change the order of the trajectories", async () => {
    const order = async (seed: number, purpose: string): Promise<string[]> => {
      const { policy } = await run({ iterations: 2 }, { seed, purpose });
      const both = rollouts(policy);
      return [both.slice(0, 10).join(), both.slice(10).join()];
    };
    const base = await order(2, "stage1");
    expect(await order(2, "stage1")).toEqual(base);
    const others = [...(await order(3, "stage1")), ...(await order(2, "stage2"))];
    expect(new Set([...base, ...others]).size).toBe(6);
  });

  test("seed and purpose each change the order of the pool", async () => {
    const instances = Array.from({ length: 12 }, (_, i) => instance(`i${i}`));
    const order = async (seed: number, purpose: string): Promise<string | undefined> => {
      const { source } = await run({}, { instances, seed, purpose });
      return source.requests[0]?.instances.map((one) => one.instance_id).join();
    };
    const base = await order(2, "stage1");
    expect(await order(2, "stage1")).toBe(base);
    expect(new Set([base, await order(3, "stage1"), await order(2, "stage2")]).size).toBe(3);
  });
});

describe("rft", () => {
  /** Eight are solved; of these 1 has a turn that could not be read, and nothing of 2 could. */
  const source = (): RolloutDouble =>
    new RolloutDouble((_, rollout) =>
      trajectory({
        rollout,
        verdict: rollout < 8 ? "resolved" : "failed",
        turns: [
          { action: 1 + rollout, observation: 1, formatError: rollout === 1 || rollout === 2 },
          { action: 2, observation: 0, formatError: rollout === 2 },
        ],
      }),
    );

  async function run(
    config: Partial<RftConfig> = {},
    more: Partial<RftOptions> = {},
    policy = new PolicyDouble({ drift: 0 }),
  ): Promise<{ policy: PolicyDouble; source: RolloutDouble; events: RftEvent[] }> {
    const made = source();
    const events = await all(
      rft({ policy, rollouts: made, instances: [instance("one")], seed: 2, ...more, config }),
    );
    return { policy, source: made, events };
  }

  test("the defaults are the paper's", () => {
    expect(RFT_DEFAULTS).toEqual({
      rollouts: 10,
      temperature: 1,
      batchSize: 64,
      epochs: 1,
      learningRate: 5e-6,
      warmupSteps: 10,
      floor: 0,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0.1,
      clipNorm: 1,
      maskFormatErrors: true,
      aggregation: "token_mean",
      microBatchTokens: 4096,
      logprobTolerance: 0,
    });
  });

  test("the rollouts, the schedule and the optimiser are asked for what the options say", async () => {
    const { signal } = new AbortController();
    const options = {
      rollouts: 9,
      temperature: 0.7,
      batchSize: 2,
      epochs: 3,
      maskFormatErrors: false,
      learningRate: 4,
      warmupSteps: 2,
      floor: 0.25,
      ...ADAMW,
    };
    const { policy, source: asked, events } = await run(options, { purpose: "first", signal });
    expect(asked.requests).toEqual([
      {
        instances: [instance("one")],
        rollouts: 9,
        purpose: "first",
        iteration: 0,
        temperature: 0.7,
        signal,
      },
    ]);
    expect(events[0]).toMatchObject({ type: "rollouts", summary: { kept: 8, steps: 12, episodes: 9 } });
    // Two steps of warm-up, then ten of a cosine from 4 to 1.
    const rates = [
      2,
      ...Array.from({ length: 11 }, (_, i) => 1 + 1.5 * (1 + Math.cos((Math.PI * Math.max(0, i - 1)) / 10))),
    ];
    for (const [i, { options: adamw }] of policy.optimised.entries()) {
      expect(adamw).toEqual({ learningRate: expect.closeTo(rates[i] as number, 12), ...ADAMW });
    }
    expect(policy.optimised).toHaveLength(12);
    for (const call of policy.calls) expect(call.signal).toBe(signal);
  });

  test("an epoch holds everything once, in an order of its own", async () => {
    const { policy } = await run({ epochs: 3, batchSize: 3, maskFormatErrors: false });
    const order = rollouts(policy);
    const epochs = [0, 8, 16].map((at) => order.slice(at, at + 8));
    for (const one of epochs) expect(sorted(one)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(new Set(epochs.map((one) => one.join())).size).toBe(3);
    expect(policy.calls.map((call) => call.batch.lengths.length)).toEqual([3, 3, 2, 3, 3, 2, 3, 3, 2]);
  });

  test("turns that could not be read carry loss only where they are not masked", async () => {
    const tokens = async (config: Partial<RftConfig>): Promise<number[][]> =>
      learnt((await run(config)).policy)
        .sort((a, b) => a.rollout - b.rollout)
        .map((one) => [one.rollout, one.weights.length]);
    expect((await tokens({})).slice(0, 3)).toEqual([
      [0, 3],
      [1, 2],
      [3, 6],
    ]);
    expect((await tokens({ maskFormatErrors: false })).slice(0, 3)).toEqual([
      [0, 3],
      [1, 4],
      [2, 5],
    ]);
  });

  test("the aggregation makes the weights; micro-batches and the tolerance are the options'", async () => {
    const { policy, events: made } = await run({ aggregation: "sample_mean", microBatchTokens: 1 });
    // Of the eight that are solved one has nothing to learn from.
    expect(made[0]).toMatchObject({ type: "rollouts", summary: { solved: 8, kept: 7, steps: 1 } });
    expect(policy.calls).toHaveLength(7);
    expect(policy.optimised).toHaveLength(1);
    for (const { weights } of learnt(policy)) {
      // float32 weights: six digits.
      expect(weights.reduce((a, b) => a + b, 0)).toBeCloseTo(1 / 7, 6);
    }
    const { policy: mean } = await run();
    expect(mean.calls).toHaveLength(1);
    // Seven second turns of 2 tokens, and first turns of 1 + 4 + 5 + 6 + 7 + 8.
    expect(new Set(learnt(mean).flatMap((one) => one.weights))).toEqual(new Set([Math.fround(1 / 45)]));
    const off = (): PolicyDouble => Object.assign(new PolicyDouble({ drift: 0 }), { error: 1e-3 });
    const mismatch = { code: "ERR_TOKENRING_LOGPROB_MISMATCH" };
    await expect(run({ logprobTolerance: 1e-4 }, {}, off())).rejects.toMatchObject(mismatch);
    for (const logprobTolerance of [1e-2, null]) {
      const { events } = await run({ logprobTolerance }, {}, off());
      // float32 logprobs around 1.
      expect(events[1]).toMatchObject({
        type: "step",
        metrics: { mismatch: { max: expect.closeTo(1e-3, 6) } },
      });
    }
  });
});
