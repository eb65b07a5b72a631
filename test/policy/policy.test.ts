// The policy: it learns, it continues from disk exactly, and it ends cleanly.
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Policy } from "../../lib/policy/policy.ts";
import type { PackedBatch, PolicyLoss } from "../../lib/policy/types.ts";
import { ids, LIVELY, TINY } from "./tiny.ts";

const NLL: PolicyLoss = { objective: "nll" };

/** Documents whose predicted tokens all carry loss, each with the same share of 1. */
function packed(...documents: Int32Array[]): PackedBatch {
  const tokens = Int32Array.from(documents.flatMap((document) => [...document]));
  const weight = new Float32Array(tokens.length).fill(1 / (tokens.length - documents.length));
  let start = 0;
  for (const document of documents) {
    weight[start] = 0;
    start += document.length;
  }
  return { tokens, lengths: Int32Array.from(documents, (document) => document.length), weight };
}

async function step(policy: Policy, batch: PackedBatch, learningRate = 3e-3): Promise<number> {
  const { loss } = await policy.accumulate(batch, NLL);
  await policy.optimise({ learningRate, weightDecay: 0 });
  return loss;
}

describe("policy", () => {
  it("memorises a sequence", async () => {
    await using policy = await Policy.create(TINY, { seed: 1 });
    const batch = packed(ids("by heart", 40), ids("and this", 25));
    const first = await step(policy, batch);
    for (let i = 0; i < 120; i++) await step(policy, batch);
    const last = await step(policy, batch);
    expect(first).toBeCloseTo(Math.log(TINY.vocab_size), 0); // near uniform at the start
    expect(last).toBeLessThan(0.1);
    expect(policy.version).toBeGreaterThan(120);
  });

  it("gives the same weights for the same seed, whatever the number of threads", async () => {
    const batch = packed(ids("threads", 130), ids("more", 70));
    const logprobs = [];
    for (const threads of [1, 2, 3]) {
      await using policy = await Policy.create(TINY, { ...LIVELY, threads });
      for (let i = 0; i < 2; i++) await step(policy, batch);
      logprobs.push((await policy.score(batch)).logprob);
    }
    expect(logprobs[1]).toEqual(logprobs[0]);
    expect(logprobs[2]).toEqual(logprobs[0]);
    await using other = await Policy.create(TINY, { ...LIVELY, seed: 8 });
    expect((await other.score(batch)).logprob).not.toEqual(logprobs[0]);
  });

  it("refuses a seed that is no integer", async () => {
    await expect(Policy.create(TINY, { seed: 1.5 })).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
    });
  });

  it("scores every token but the first of each document", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const { logprob, entropy, flags } = await policy.score(packed(ids("a", 3), ids("b", 4)));
    for (const lane of [logprob, entropy]) {
      expect([...lane].map((value) => value === 0)).toEqual([true, false, false, true, false, false, false]);
    }
    expect(logprob.every((value) => value <= 0)).toBe(true);
    expect([...flags]).toEqual([0, 0, 0, 0, 0, 0, 0]);
  });

  it("moves towards advantages, and clips where the ratio has left", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const batch = packed(ids("good", 20));
    const before = (await policy.score(batch)).logprob;
    const loss: PolicyLoss = { objective: "ppo_clip", clipLow: 0.2, clipHigh: 0.28 };
    const rewarded = { ...batch, advantage: new Float32Array(20).fill(1), oldLogprob: before };
    const first = await policy.accumulate(rewarded, loss);
    expect(first.loss).toBeCloseTo(-1, 5); // ratio 1, advantage 1, weights that sum to 1
    expect(first.logprob).toEqual(before);
    await policy.optimise({ learningRate: 1e-2 });
    const after = (await policy.score(batch)).logprob;
    const gain = after.reduce((sum, value, i) => sum + value - (before[i] as number), 0);
    expect(gain).toBeGreaterThan(1);
    const second = await policy.accumulate(rewarded, loss);
    expect([...second.flags]).toContain(2);
    await policy.dropGradients();
    expect(await policy.optimise({ learningRate: 0 })).toMatchObject({ gradientNorm: 0, step: 2 });
  });

  it("names the token that makes the loss not finite, and goes on", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const batch = packed(ids("nan", 10));
    batch.weight[4] = Number.NaN;
    await expect(policy.accumulate(batch, NLL)).rejects.toMatchObject({ code: "ERR_TOKENRING_NON_FINITE" });
    expect(await step(policy, packed(ids("nan", 10)))).toBeGreaterThan(0);
  });

  it("stops at a signal, with its reason", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const controller = new AbortController();
    const batch = packed(...Array.from({ length: 40 }, (_, i) => ids(`long ${i}`, 512)));
    const call = policy.accumulate(batch, NLL, { signal: controller.signal });
    controller.abort(new Error("stop it"));
    await expect(call).rejects.toThrow("stop it");
    // What had been accumulated is gone with it.
    expect(await policy.optimise({ learningRate: 0 })).toMatchObject({ gradientNorm: 0 });
  });

  it("is gone after dispose", async () => {
    const policy = await Policy.create(TINY);
    await policy.dispose();
    await policy.dispose();
    expect(policy.disposed).toBe(true);
    const gone = expect.objectContaining({ name: "TokenringError", code: "ERR_TOKENRING_DISPOSED" });
    await expect(policy.score(packed(ids("x", 3)))).rejects.toEqual(gone);
    await expect(policy.optimise({ learningRate: 1 })).rejects.toEqual(gone);
    await expect(policy.dropGradients()).rejects.toEqual(gone);
    await expect(policy.save("/tmp/never")).rejects.toEqual(gone);
    await expect(policy.load("/tmp/never")).rejects.toEqual(gone);
  });

  it("keeps its config from being changed", async () => {
    await using policy = await Policy.create(TINY);
    expect(Object.isFrozen(policy.config)).toBe(true);
    expect(policy.config).toEqual(TINY);
  });
});

describe("checkpoints", () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "tokenring-policy-"));
  });
  afterEach(() => rm(directory, { recursive: true }));

  const batch = packed(ids("checkpoint", 50), ids("second", 20));

  it.each([true, false])("continues exactly from disk (tied embeddings: %s)", async (tied) => {
    await using policy = await Policy.create({ ...TINY, tie_word_embeddings: tied }, LIVELY);
    for (let i = 0; i < 3; i++) await step(policy, batch);
    await policy.save(directory, { optimiser: true });
    expect((await readdir(directory)).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "model.safetensors.index.json",
      "optimizer.safetensors",
    ]);
    // By which vLLM knows that the optimiser's tensors are none of the model's.
    const index = JSON.parse(await readFile(join(directory, "model.safetensors.index.json"), "utf8"));
    expect(new Set(Object.values(index.weight_map))).toEqual(new Set(["model.safetensors"]));
    await using loaded = await Policy.load(directory, { optimiser: true });
    expect(loaded.config).toEqual(policy.config);
    for (let i = 0; i < 3; i++) {
      expect(await loaded.score(batch)).toEqual(await policy.score(batch));
      expect(await step(loaded, batch)).toBe(await step(policy, batch));
    }
    expect(await loaded.optimise({ learningRate: 0 })).toMatchObject({ step: 7 });
  });

  it("loads into a policy that is there, and raises its version", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    await policy.save(directory);
    const before = await policy.score(batch);
    await step(policy, batch);
    const version = policy.version;
    expect(await policy.score(batch)).not.toEqual(before);
    await policy.load(directory);
    expect(policy.version).toBeGreaterThan(version);
    expect(await policy.score(batch)).toEqual(before);
  });

  it("knows its version after half a load", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    await policy.save(directory);
    const version = policy.version;
    await expect(policy.load(directory, { optimiser: true })).rejects.toThrow(/optimizer.safetensors/);
    expect(policy.version).toBe(await policy.rank.version().promise);
    expect(policy.version).toBeGreaterThanOrEqual(version);
  });

  it("keeps bf16 to within its precision", async () => {
    await using policy = await Policy.create(TINY, { seed: 3 });
    await policy.save(directory, { dtype: "bf16" });
    await using loaded = await Policy.load(directory);
    const [full, half] = [await policy.score(batch), await loaded.score(batch)];
    expect(half.logprob).not.toEqual(full.logprob);
    // bf16 keeps 8 bits: weights move by at most 2^-9 of themselves. At std 0.02 the logits are below 0.1, and
    // what reaches a logprob through two layers stays below a tenth of that.
    for (const [i, value] of full.logprob.entries()) expect(half.logprob[i]).toBeCloseTo(value, 2);
  });

  it("refuses a checkpoint of another shape and keeps the weights", async () => {
    await using small = await Policy.create({ ...TINY, hidden_size: 48 }, LIVELY);
    await small.save(directory);
    await using policy = await Policy.create(TINY, LIVELY);
    const before = await policy.score(batch);
    await expect(policy.load(directory)).rejects.toMatchObject({
      code: "ERR_TOKENRING_CHECKPOINT",
      message: expect.stringMatching(/model.safetensors/),
    });
    expect(await policy.score(batch)).toEqual(before);
  });

  it("refuses a directory without a model", async () => {
    await expect(Policy.load(join(directory, "nothing"))).rejects.toMatchObject({
      code: "ERR_TOKENRING_CHECKPOINT",
      message: expect.stringMatching(/nothing is no directory/),
    });
  });
});
