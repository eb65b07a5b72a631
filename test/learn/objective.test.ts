// The options of the objective: what they refuse, which passes they cost, and what reaches the policy.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { groupAdvantages } from "../../lib/learn/advantage.ts";
import { type DapoConfig, type DapoIteration, type DapoOptions, dapo } from "../../lib/learn/dapo.ts";
import { logprobMismatch } from "../../lib/learn/measure.ts";
import { trainStep } from "../../lib/learn/step.ts";
import {
  type Aggregation,
  type TrainingDocument,
  tisWeight,
  trajectoryDocument,
  weigh,
} from "../../lib/learn/weights.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";
import { baseLogprob, episode, instance, PolicyDouble, RolloutDouble, trajectory } from "./doubles.ts";

/** What TRL's and verl's own code says of one batch; scripts/fixtures/losses.py made it. */
const peers = JSON.parse(readFileSync(new URL("../fixtures/losses.json", import.meta.url), "utf8")) as {
  sequences: number;
  tokens: number;
  horizon: number;
  tisCap: number;
  mask: number[];
  old: number[];
  engine: number[];
  tis: number[];
  weights: Record<"token_mean" | "sample_mean" | "dr_grpo", number[]>;
  advantages: { rewards: number[]; groups: number[]; std: number[]; none: number[] };
};

describe("against TRL and verl", () => {
  const rows = <T>(values: readonly T[]): T[][] =>
    Array.from({ length: peers.sequences }, (_, i) => values.slice(i * peers.tokens, (i + 1) * peers.tokens));

  test.each<[keyof typeof peers.weights, Aggregation]>([
    ["token_mean", "token_mean"],
    ["sample_mean", "sample_mean"],
    ["dr_grpo", { drGrpo: peers.horizon }],
  ])("a token weighs under %s what it weighs in verl's agg_loss", (name, aggregation) => {
    const documents = rows(peers.mask).map((mask, i): TrainingDocument => {
      // One unpredicted token in front, as every document has.
      const full = Float32Array.from([0, ...mask]);
      const tokens = new Int32Array(full.length);
      return { id: `d${i}`, tokens, provenance: new Uint8Array(full.length), mask: full, version: null };
    });
    const expected = rows(peers.weights[name]);
    weigh(documents, aggregation).forEach(({ weight }, i) => {
      // verl divides by the tokens of a sequence plus 1e-8, in part in float32.
      for (const [at, value] of (expected[i] as number[]).entries()) {
        expect(weight[at + 1]).toBeCloseTo(value, 7);
      }
    });
  });

  test("truncated importance weights are verl's", () => {
    for (const [i, value] of peers.tis.entries()) {
      if (peers.mask[i] === 0) continue;
      expect(tisWeight(peers.old[i] as number, peers.engine[i] as number, peers.tisCap)).toBeCloseTo(
        value,
        7,
      );
    }
    // NeMo-RL's: ratios 0.1, 1 and 3 truncated at 2.
    expect([0.1, 1, 3].map((ratio) => tisWeight(Math.log(ratio), 0, 2))).toEqual([
      expect.closeTo(0.1, 12),
      1,
      2,
    ]);
    expect(peers.tis.filter((value) => value === peers.tisCap).length).toBeGreaterThan(3);
  });

  test.each(["std", "none"] as const)("advantages with ddof 1 are verl's, normalise %s", (normalise) => {
    const { rewards, groups, [normalise]: expected } = peers.advantages;
    for (const group of new Set(groups)) {
      const of = <T>(values: T[]): T[] => values.filter((_, i) => groups[i] === group);
      const got = groupAdvantages(of(rewards), { normalise, ddof: 1, delta: 1e-6 });
      // verl's mean and deviation are of float32 rewards.
      of(expected).forEach((value, i) => {
        expect(got[i]).toBeCloseTo(value, 6);
      });
    }
  });
});

/** Four of six instances live: the first rollouts of each are solved. */
function run(
  config: Partial<DapoConfig>,
  options: Partial<DapoOptions> & { policy?: PolicyDouble } = {},
): { policy: PolicyDouble; iterations: Promise<DapoIteration[]> } {
  const policy = options.policy ?? new PolicyDouble({ drift: 0.1 });
  const loop = dapo({
    policy,
    rollouts: new RolloutDouble((one, rollout) =>
      episode(2 + rollout, rollout < 2, {
        instanceId: one.instance_id,
        rollout,
        version: policy.version,
      }),
    ),
    instances: ["i0", "i1"].map((id) => instance(id)),
    seed: 1,
    purpose: "stage1",
    ...options,
    config: {
      iterations: 1,
      instances: 2,
      rollouts: 4,
      batchSize: 4,
      maxTurns: 8,
      lengthPenalty: false,
      logprobTolerance: null,
      ...config,
    },
  });
  const all = async (): Promise<DapoIteration[]> => {
    const iterations: DapoIteration[] = [];
    for await (const iteration of loop) iterations.push(iteration);
    return iterations;
  };
  return { policy, iterations: all() };
}

describe("dapo's objective", () => {
  test.each<[Partial<DapoConfig>, RegExp]>([
    [{ dualClip: 0.5 }, /^stage1: dualClip: 0.5 must be 0 \(off\) or above 1$/],
    [
      { objective: "cispo", dualClip: 3 },
      /^stage1: dualClip: bounds ppo_clip only; leave it out with cispo$/,
    ],
    [{ objective: "gspo", aggregation: "token_mean" }, /^stage1: aggregation: gspo .* write sample_mean$/],
    [{ tisCap: 2 }, /^stage1: tisCap: with oldLogprobs engine .* twice/],
    [{ tisCap: 0.5, oldLogprobs: "trainer" }, /^stage1: tisCap: 0.5 must be 0 \(off\) or at least 1$/],
    [{ klCoef: 0.1 }, /^stage1: klCoef is 0.1 but there is no reference/],
  ])("refuses %j before anything is sampled", async (config, message) => {
    const { policy, iterations } = run(config);
    await expect(iterations).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: expect.stringMatching(message),
    });
    expect(policy.calls).toHaveLength(0);
  });

  test("every option of the loss reaches the policy, and gspo's mean is over samples", async () => {
    const reference = new PolicyDouble();
    const config = {
      objective: "gspo",
      klCoef: 0.25,
      entropyCoef: 0.125,
      clipLow: 0.003,
      clipHigh: 0.004,
    } as const;
    const { policy, iterations } = run({ ...config, temperature: 0.5 }, { reference });
    await iterations;
    for (const { loss, batch } of policy.calls) {
      expect(loss).toEqual({ ...config, dualClip: 0, temperature: 0.5 });
      let at = 0;
      const sums = [...batch.lengths].map((length) => {
        at += length;
        return batch.weight.slice(at - length, at).reduce((a, b) => a + b, 0);
      });
      for (const sum of sums) expect(sum).toBeCloseTo(1 / sums.length, 6);
    }
    const clipped = run({ dualClip: 3 });
    await clipped.iterations;
    expect(clipped.policy.calls[0]?.loss).toMatchObject({ objective: "ppo_clip", dualClip: 3 });
  });

  test("the default scores nothing and hands on the engine's logprobs", async () => {
    const { policy, iterations } = run({});
    const [{ summary }] = (await iterations) as [DapoIteration];
    expect(policy.scores).toHaveLength(0);
    expect(summary).toMatchObject({
      scoredTokens: 0,
      learning: { steps: 2, referenceKl: null, tisClipped: null },
    });
    for (const { batch } of policy.calls) expect(batch.referenceLogprob).toBeUndefined();
  });

  test("the reference scores each document once, at the loss's temperature, whatever the steps", async () => {
    const reference = new PolicyDouble();
    reference.error = -0.5;
    const { policy, iterations } = run({ klCoef: 0.25, temperature: 0.5 }, { reference });
    const [{ summary, steps }] = (await iterations) as [DapoIteration];
    expect(policy.scores).toHaveLength(0);
    expect(reference.scores).toHaveLength(1);
    expect(reference.scores[0]?.options).toEqual({ temperature: 0.5, passTokens: 4096 });
    expect(reference.scores[0]?.batch.lengths).toHaveLength(8);
    expect(summary.scoredTokens).toBe(reference.scores[0]?.batch.tokens.length);
    for (const [s, { batch }] of policy.calls.entries()) {
      let at = 0;
      for (const length of batch.lengths) {
        for (let i = 0; i < length; i++, at++) {
          const expected = i === 0 ? 0 : Math.fround(baseLogprob(batch.tokens[at] as number, i) - 0.5);
          expect(batch.referenceLogprob?.[at]).toBe(expected);
        }
      }
      // d = reference - new = -0.5 - 0.1 for every step taken.
      const d = -0.5 - 0.1 * s;
      expect(steps[s]?.referenceKl).toBeCloseTo(Math.exp(d) - d - 1, 6);
    }
  });

  test("the trainer's old logprobs take the engine's place, once for all steps; the engine's are compared", async () => {
    const policy = new PolicyDouble({ drift: 0.1 });
    policy.error = 0.25;
    const { iterations } = run({ oldLogprobs: "trainer" }, { policy });
    const [{ summary, steps }] = (await iterations) as [DapoIteration];
    expect(policy.scores).toHaveLength(1);
    for (const { batch } of policy.calls) {
      let at = 0;
      for (const length of batch.lengths) {
        for (let i = 0; i < length; i++, at++) {
          const expected = i === 0 ? 0 : Math.fround(baseLogprob(batch.tokens[at] as number, i) + 0.25);
          expect(batch.oldLogprob?.[at]).toBe(expected);
        }
      }
    }
    // The ratio is against the trainer's: 1 at the first step. The mismatch is the engine's at every step.
    expect(steps.map((step) => step.approximateKl < 1e-9)).toEqual([true, false]);
    for (const { mismatch } of [...steps, summary]) {
      expect(mismatch?.p50).toBeCloseTo(0.25, 6);
      expect(mismatch?.max).toBeCloseTo(0.25, 6);
      expect(mismatch?.outside).toBe(1);
      expect(mismatch?.k3).toBeCloseTo(Math.exp(0.25) - 1.25, 6);
    }
  });

  test("truncated weights scale the advantages, not the weights, and say how many were truncated", async () => {
    for (const [error, weight, share] of [
      [0.25, Math.exp(0.25), 0],
      [1, 2, 1],
    ] as const) {
      const policy = new PolicyDouble({ drift: 0 });
      policy.error = error;
      const { iterations } = run({ oldLogprobs: "trainer", tisCap: 2 }, { policy });
      const [{ summary }] = (await iterations) as [DapoIteration];
      const plain = new PolicyDouble({ drift: 0 });
      await run({}, { policy: plain }).iterations;
      for (const [i, { batch }] of policy.calls.entries()) {
        const other = plain.calls[i]?.batch as typeof batch;
        expect(batch.weight).toEqual(other.weight);
        batch.weight.forEach((value, at) => {
          if (value === 0) return;
          expect(batch.advantage?.[at]).toBeCloseTo(weight * (other.advantage?.[at] as number), 5);
        });
      }
      expect(summary.learning?.tisClipped).toBe(share);
    }
  });

  test("an iteration's metrics are those of its steps together", async () => {
    const { iterations } = run({ batchSize: 3 });
    const [{ summary, steps }] = (await iterations) as [DapoIteration];
    const sum = (of: (step: (typeof steps)[number]) => number): number =>
      steps.reduce((total, step) => total + of(step), 0);
    expect(steps.length).toBe(3);
    expect(summary.learning).toMatchObject({
      steps: 3,
      tokens: sum((step) => step.tokens),
      packedTokens: sum((step) => step.packedTokens),
    });
    expect(summary.learning?.gradientNorm).toBeCloseTo(sum((step) => step.gradientNorm) / 3, 12);
    expect(summary.learning?.approximateKl).toBeCloseTo(
      sum((step) => step.approximateKl * step.tokens) / sum((step) => step.tokens),
      12,
    );
    expect(summary.mismatch).toEqual(steps[0]?.mismatch);
    // Two groups of episodes of 2, 3, 4 and 5 turns, one sampled token a turn.
    expect(summary.sampledTokens).toBe(28);
  });
});

describe("the mismatch of logprobs", () => {
  test("quantiles by the nearest rank, ratios outside [0.9, 1.1], k3", () => {
    const differences = [0, 0.01, -0.02, 0.05, -0.11, 0.2, 0, 0, 0, -0.5];
    const got = logprobMismatch(differences);
    expect(got).toMatchObject({ p50: 0.01, p95: 0.5, max: 0.5, outside: 0.3 });
    expect(got?.k3).toBeCloseTo(differences.reduce((sum, d) => sum + Math.exp(d) - d - 1, 0) / 10, 15);
    // NeMo-RL's table of k3.
    for (const [d, value] of [
      [1, 0.7183],
      [-14, 13],
      [-29, 28],
    ] as const) {
      expect(logprobMismatch([d])?.k3).toBeCloseTo(value, 4);
    }
    expect(logprobMismatch([])).toBeNull();
  });
});

describe("a step without what its options need", () => {
  const document = trajectoryDocument(trajectory(), { advantage: 1 });
  const common = {
    policy: new PolicyDouble(),
    documents: [document],
    optimiser: { learningRate: 1e-3 },
    microBatchTokens: 64,
    where: "stage1, iteration 2, step 7",
  };

  test("a KL term asks for the reference's logprobs, truncation for the engine's", async () => {
    await expect(trainStep({ ...common, loss: { objective: "ppo_clip", klCoef: 1 } })).rejects.toThrow(
      /^stage1, iteration 2, step 7: klCoef needs a reference's logprobs, document i0-0 lacks/,
    );
    await expect(trainStep({ ...common, loss: { objective: "ppo_clip" }, tisCap: 2 })).rejects.toThrow(
      /^tisCap 2: document i0-0 lacks/,
    );
  });

  test("a number that is not finite is reported with step, documents and token", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const tokens = ids("broken", 11);
    const broken = { ...document, tokens, version: null, advantage: new Float32Array(11).fill(1) };
    broken.advantage[5] = Number.NaN;
    await expect(
      trainStep({ ...common, policy, documents: [broken], loss: { objective: "ppo_clip" } }),
    ).rejects.toMatchObject({
      code: "ERR_TOKENRING_NON_FINITE",
      message: expect.stringMatching(
        /^stage1, iteration 2, step 7: batch: advantage of token 5 is nan; .* \(documents i0-0\); .*resume/,
      ),
      details: { where: "stage1, iteration 2, step 7", documents: ["i0-0"] },
    });
  });
});
