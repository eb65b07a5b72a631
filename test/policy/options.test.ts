// Every option of the loss and of the optimiser reaches the native code under its own name: numbers say so.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Policy } from "../../lib/policy/policy.ts";
import type { AdamWOptions, PackedBatch, PolicyLoss } from "../../lib/policy/types.ts";
import { ids, LIVELY, TINY } from "./tiny.ts";

/** One document of which every token but the first weighs the same, 1 in all. */
function packed(tokens: Int32Array): PackedBatch {
  const weight = new Float32Array(tokens.length).fill(1 / (tokens.length - 1));
  weight[0] = 0;
  return { tokens, lengths: Int32Array.of(tokens.length), weight };
}

describe("the loss", () => {
  let policy: Policy;
  beforeAll(async () => {
    policy = await Policy.create(TINY, LIVELY);
  });
  afterAll(() => policy.dispose());

  // Either side of the edges of the defaults (0.2 and 0.28), of the paper's first stage (0.3) and of a wide clip.
  const good = [1.25, 1.27, 1.29, 1.31, 1.39, 1.41];
  const bad = [0.85, 0.81, 0.79, 0.75, 0.61, 0.59];
  it.each<[string, Pick<PolicyLoss, "clipLow" | "clipHigh">, number, number]>([
    ["the defaults", {}, 0.8, 1.28],
    ["clipLow 0.2, clipHigh 0.3", { clipLow: 0.2, clipHigh: 0.3 }, 0.8, 1.3],
    ["clipLow 0.4, clipHigh 0.2", { clipLow: 0.4, clipHigh: 0.2 }, 0.6, 1.2],
    ["clipLow 0.1", { clipLow: 0.1 }, 0.9, 1.28],
    ["clipHigh 0.4", { clipHigh: 0.4 }, 0.8, 1.4],
  ])("clips the ratio at %s", async (_, clip, low, high) => {
    const batch = packed(ids("ratios", 1 + good.length + bad.length));
    const ratios = [1, ...good, ...bad];
    const advantage = Float32Array.from(ratios, (ratio) => (ratio < 1 ? -1 : 1));
    const now = (await policy.score(batch)).logprob;
    const oldLogprob = now.map((value, i) => value - Math.log(ratios[i] as number));
    const { loss, flags } = await policy.accumulate(
      { ...batch, advantage, oldLogprob },
      { objective: "ppo_clip", ...clip },
    );
    await policy.dropGradients();
    expect([...flags]).toEqual([
      0,
      ...good.map((r) => (r > high ? 2 : 0)),
      ...bad.map((r) => (r < low ? 1 : 0)),
    ]);
    // DAPO's eq. 8. float32 logprobs of up to 10 leave a ratio good to 1e-6.
    const terms = [...good.map((r) => Math.min(r, high)), ...bad.map((r) => -Math.max(r, low))];
    expect(loss).toBeCloseTo(-terms.reduce((a, b) => a + b, 0) / terms.length, 5);
  });

  it("is cross entropy for nll, whatever the advantages", async () => {
    const batch = packed(ids("objective", 9));
    const { logprob } = await policy.score(batch);
    const lanes = { ...batch, advantage: new Float32Array(9).fill(-3), oldLogprob: logprob };
    const nll = await policy.accumulate(lanes, { objective: "nll" });
    const clipped = await policy.accumulate(lanes, { objective: "ppo_clip" });
    await policy.dropGradients();
    // Eight float32 terms of up to 10.
    expect(nll.loss).toBeCloseTo(-logprob.reduce((a, b) => a + b, 0) / 8, 5);
    expect(clipped.loss).toBeCloseTo(3, 5);
  });

  /** Loss of one document under `loss`, its ratios and its distances to the reference being these. */
  async function lossOf(
    loss: PolicyLoss,
    ratios: readonly number[],
    advantages: readonly number[],
    distances?: readonly number[],
  ): Promise<{ loss: number; flags: number[]; logprob: number[]; entropy: number[] }> {
    const batch = packed(ids("options", 1 + ratios.length));
    const now = (await policy.score(batch)).logprob;
    const lane = (of: (i: number) => number): Float32Array =>
      now.map((value, i) => (i === 0 ? 0 : value + of(i - 1)));
    const result = await policy.accumulate(
      {
        ...batch,
        advantage: Float32Array.from([0, ...advantages]),
        oldLogprob: lane((i) => -Math.log(ratios[i] as number)),
        ...(distances && { referenceLogprob: lane((i) => distances[i] as number) }),
      },
      loss,
    );
    await policy.dropGradients();
    return {
      loss: result.loss,
      flags: [...result.flags].slice(1),
      logprob: [...now].slice(1),
      entropy: [...result.entropy].slice(1),
    };
  }
  const average = (terms: readonly number[]): number => terms.reduce((a, b) => a + b, 0) / terms.length;

  // Losses of some units made of float32 logprobs of up to 10: good to 1e-5.
  it("bounds the loss of a bad token that became likelier where dualClip says so", async () => {
    const ratios = [4, 2, 1, 4];
    const advantages = [-1, -1, -1, 1];
    const plain = await lossOf({ objective: "ppo_clip" }, ratios, advantages);
    expect(plain.loss).toBeCloseTo(average([4, 2, 1, -1.28]), 5);
    expect(plain.flags).toEqual([0, 0, 0, 2]);
    const bounded = await lossOf({ objective: "ppo_clip", dualClip: 3 }, ratios, advantages);
    expect(bounded.loss).toBeCloseTo(average([3, 2, 1, -1.28]), 5);
    expect(bounded.flags).toEqual([3, 0, 0, 2]);
  });

  it("takes the document's mean ratio for gspo", async () => {
    const sequence = (2 * 0.5 * 1.5) ** (1 / 3);
    const wide = { objective: "gspo", clipHigh: 1 } as const;
    const { loss, flags } = await lossOf(wide, [2, 0.5, 1.5], [1, 1, 1]);
    expect(loss).toBeCloseTo(-sequence, 5);
    expect(flags).toEqual([0, 0, 0]);
    const clipped = await lossOf({ objective: "gspo", clipHigh: 0.1 }, [2, 0.5, 1.5], [1, 1, 1]);
    expect(clipped.loss).toBeCloseTo(-1.1, 5);
    expect(clipped.flags).toEqual([2, 2, 2]);
    // Its defaults are those of a sequence's ratio: 3e-4 and 4e-4.
    for (const [ratio, advantage, flag] of [
      [1.0002, 1, 0],
      [1.0006, 1, 2],
      [0.9999, -1, 0],
      [0.9995, -1, 1],
    ] as const) {
      const same = [ratio, ratio, ratio];
      const given = await lossOf({ objective: "gspo" }, same, [advantage, advantage, advantage]);
      expect(given.flags).toEqual([flag, flag, flag]);
    }
  });

  it("weighs logprobs by clipped ratios for cispo; clipLow 1 leaves the upper bound alone", async () => {
    const ratios = [8, 0.5, 1];
    const advantages = [1, -1, 2];
    const both = await lossOf({ objective: "cispo", clipLow: 0.2, clipHigh: 4 }, ratios, advantages);
    const [a, b, c] = both.logprob as [number, number, number];
    expect(both.loss).toBeCloseTo(average([-5 * a, 0.8 * b, -2 * c]), 4);
    expect(both.flags).toEqual([2, 1, 0]);
    const upper = await lossOf({ objective: "cispo", clipLow: 1, clipHigh: 4 }, ratios, advantages);
    expect(upper.loss).toBeCloseTo(average([-5 * a, 0.5 * b, -2 * c]), 4);
    expect(upper.flags).toEqual([2, 0, 0]);
  });

  it("adds klCoef times k3 to any objective", async () => {
    const distances = [0, 1, -0.5];
    const k3 = average(distances.map((d) => Math.exp(d) - d - 1));
    for (const objective of ["nll", "ppo_clip", "gspo", "cispo"] as const) {
      const plain = await lossOf({ objective }, [1, 1, 1], [1, -1, 1], distances);
      const { loss } = await lossOf({ objective, klCoef: 0.5 }, [1, 1, 1], [1, -1, 1], distances);
      expect(loss - plain.loss).toBeCloseTo(0.5 * k3, 5);
    }
    await expect(lossOf({ objective: "ppo_clip", klCoef: 0.5 }, [1], [1])).rejects.toThrow(
      /needs the lane reference_logprob/,
    );
  });

  it("takes entropyCoef times the entropy off any objective", async () => {
    for (const objective of ["nll", "ppo_clip", "gspo", "cispo"] as const) {
      const plain = await lossOf({ objective }, [1, 1, 1], [1, -1, 1]);
      const { loss } = await lossOf({ objective, entropyCoef: 0.25 }, [1, 1, 1], [1, -1, 1]);
      expect(loss - plain.loss).toBeCloseTo(-0.25 * average(plain.entropy), 5);
    }
  });

  it.each([0.5, 1, 2])("takes its logprobs and scores at temperature %f", async (temperature) => {
    // Every continuation of a prefix: their logprobs at temperature 1 give those at any other.
    const prefix = [...ids("tempered", 5)];
    const tokens = Int32Array.from({ length: 97 }, (_, next) => next).reduce<number[]>(
      (all, next) => all.concat(prefix, next),
      [],
    );
    const batch = { tokens: Int32Array.from(tokens), lengths: new Int32Array(97).fill(6) };
    const lastOf = (lane: Float32Array): number[] => [...lane].filter((_, i) => i % 6 === 5);
    const plain = lastOf((await policy.score(batch)).logprob);
    const tempered = await policy.score(batch, { temperature });
    const lse = Math.log(plain.reduce((sum, value) => sum + Math.exp(value / temperature), 0));
    // float32 logits of up to 10, divided by at least 0.5.
    for (const [next, value] of lastOf(tempered.logprob).entries()) {
      expect(value).toBeCloseTo((plain[next] as number) / temperature - lse, 4);
    }
    const weight = new Float32Array(tokens.length).fill(1);
    for (let at = 0; at < weight.length; at += 6) weight[at] = 0;
    const loss: PolicyLoss = { objective: "nll", temperature };
    expect((await policy.accumulate({ ...batch, weight }, loss)).logprob).toEqual(tempered.logprob);
    const { logprob: byDefault } = await policy.accumulate({ ...batch, weight }, { objective: "nll" });
    await policy.dropGradients();
    expect(byDefault).toEqual((await policy.score(batch)).logprob);
  });
});

describe("the optimiser", () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "tokenring-adamw-"));
  });
  afterAll(() => rm(directory, { recursive: true }));

  /** The float32 tensors of a safetensors file. */
  async function tensors(file: string): Promise<Record<string, Float32Array>> {
    const bytes = await readFile(join(directory, file));
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.toString("utf8", 8, start)) as Record<
      string,
      { dtype: string; data_offsets: [number, number] }
    >;
    const floats = Object.entries(header).filter(([, entry]) => entry.dtype === "F32");
    return Object.fromEntries(
      floats.map(([name, { data_offsets }]) => {
        const [begin, end] = data_offsets;
        return [name, new Float32Array(new Uint8Array(bytes.subarray(start + begin, start + end)).buffer)];
      }),
    );
  }

  const batch = packed(ids("optimiser", 40));

  /** Weights and moments after `steps` updates, and the norm of the last gradient. */
  async function updated(
    steps: number,
    how: AdamWOptions,
    optimiserBits: 8 | 32 = 32,
  ): Promise<{ weights: Record<string, Float32Array>; moments: Record<string, Float32Array>; norm: number }> {
    await using policy = await Policy.create(TINY, { ...LIVELY, optimiserBits });
    let norm = 0;
    for (let i = 0; i < steps; i++) {
      await policy.accumulate(batch, { objective: "nll" });
      norm = (await policy.optimise(how)).gradientNorm;
    }
    await policy.save(directory, { optimiser: true });
    return {
      weights: await tensors("model.safetensors"),
      moments: await tensors("optimizer.safetensors"),
      norm,
    };
  }

  it("takes the first step that each option describes", async () => {
    const { weights: before } = await updated(0, { learningRate: 0 });
    // With beta1 0 and no clipping the first moment is the gradient.
    const { moments: raw, norm } = await updated(1, { learningRate: 0, beta1: 0, clipNorm: 0 });
    // None of them a default, and epsilon as large as a clipped gradient.
    const how = {
      learningRate: 0.25,
      beta1: 0.5,
      beta2: 0.75,
      epsilon: 1e-3,
      weightDecay: 0.625,
      clipNorm: 0.125,
    };
    expect(norm).toBeGreaterThan(how.clipNorm);
    const { weights, moments } = await updated(1, how);
    const matrix = "model.layers.0.mlp.up_proj.weight";
    const bias = "model.layers.0.self_attn.q_proj.bias";
    for (const [name, decay] of [
      [matrix, how.weightDecay],
      [bias, 0],
    ] as const) {
      const gradient = raw[`exp_avg.${name}`] as Float32Array;
      const worst = { first: 0, second: 0, weight: 0 };
      let largest = 0;
      for (const [i, value] of gradient.entries()) {
        const g = value * (how.clipNorm / norm);
        largest = Math.max(largest, Math.abs(g));
        const at = (lanes: Record<string, Float32Array>, key: string): number =>
          lanes[key]?.[i] ?? Number.NaN;
        const w = at(before, name) * (1 - how.learningRate * decay);
        const expected = w - (how.learningRate * g) / (Math.abs(g) + how.epsilon);
        worst.first = Math.max(worst.first, Math.abs(at(moments, `exp_avg.${name}`) - 0.5 * g));
        worst.second = Math.max(worst.second, Math.abs(at(moments, `exp_avg_sq.${name}`) - 0.25 * g * g));
        worst.weight = Math.max(worst.weight, Math.abs(at(weights, name) - expected));
      }
      expect(largest).toBeGreaterThan(how.epsilon / 10);
      // A few float32 roundings of what is compared.
      expect(worst.first).toBeLessThan(1e-6 * largest);
      expect(worst.second).toBeLessThan(1e-6 * largest ** 2);
      expect(worst.weight).toBeLessThan(1e-6);
    }
  });

  it("has the paper's values where none are given", async () => {
    const paper = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };
    const learningRate = 1e-2;
    const plain = await updated(2, { learningRate });
    expect(plain.norm).toBeGreaterThan(paper.clipNorm);
    expect(plain).toEqual(await updated(2, { learningRate, ...paper }));
  });

  it("keeps moments in eight bits where it is told to: the first step is float32's, later ones are near", async () => {
    const how = { learningRate: 1e-2, clipNorm: 0 };
    const [first, coded] = [await updated(1, how), await updated(1, how, 8)];
    expect(coded.weights).toEqual(first.weights);
    expect(coded.moments).not.toEqual(first.moments);
    const [later, rounded] = [await updated(3, how), await updated(3, how, 8)];
    expect(rounded.weights).not.toEqual(later.weights);
    // Small moments of a block are coded coarsely, and every element moves by about the learning rate.
    const { weights: start } = await updated(0, how);
    const [moved, apart] = [start, rounded.weights].map((from) =>
      Math.hypot(
        ...Object.entries(later.weights).map(([name, weights]) =>
          Math.hypot(...weights.map((w, i) => w - (from[name]?.[i] ?? 0))),
        ),
      ),
    ) as [number, number];
    expect(apart).toBeLessThan(0.3 * moved);
    await expect(Policy.create(TINY, { optimiserBits: 16 as 8 })).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: "options.optimiserBits must be 8 or 32, got 16",
    });
  });
});
