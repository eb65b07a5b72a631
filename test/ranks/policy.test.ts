// A policy on many ranks computes what it computes on one: losses, gradients, lanes in the caller's order, samples.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import { Policy, type RankOptions } from "../../lib/policy/policy.ts";
import type { LossResult, PackedBatch, PassOptions } from "../../lib/policy/types.ts";
import { RankGroup } from "../../lib/ranks/group.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";

const LENGTHS = [40, 7, 90, 3, 55, 1, 28, 61];

/** Documents of uneven lengths, with advantages; some tokens carry no loss. */
function batch(name: string, lengths: readonly number[] = LENGTHS): PackedBatch {
  const total = lengths.reduce((a, b) => a + b);
  const weight = Float32Array.from({ length: total }, (_, i) => (i % 5 === 0 ? 0 : 1 / total));
  let at = 0;
  for (const length of lengths) {
    weight[at] = 0;
    at += length;
  }
  return {
    tokens: ids(name, total),
    lengths: Int32Array.from(lengths),
    weight,
    advantage: Float32Array.from({ length: total }, (_, i) => Math.sin(i)),
    oldLogprob: Float32Array.from({ length: total }, (_, i) => -4.5 - Math.cos(i)),
  };
}

const loss = { objective: "ppo_clip", clipLow: 0.2, clipHigh: 0.3 } as const;
const adamw = { learningRate: 1e-2, clipNorm: 1 };

/** Largest difference, relative to the largest value. */
function off(a: Float32Array, b: Float32Array): number {
  let most = 0;
  let size = 0;
  a.forEach((value, i) => {
    most = Math.max(most, Math.abs(value - (b[i] as number)));
    size = Math.max(size, Math.abs(value));
  });
  return most / size;
}

/** Three steps of two passes, and what they say; the weights at the end score a batch. */
async function train(
  policy: Policy,
  pass: PassOptions = {},
): Promise<{ results: LossResult[]; norms: number[] }> {
  const results: LossResult[] = [];
  const norms: number[] = [];
  for (let step = 0; step < 3; step++) {
    results.push(await policy.accumulate(batch(`a${step}`), loss, pass));
    results.push(await policy.accumulate(batch(`b${step}`, [33, 80]), loss, { ...pass, last: true }));
    norms.push((await policy.optimise(adamw)).gradientNorm);
  }
  results.push(await policy.score(batch("c"), { temperature: 0.7, ...pass }));
  return { results, norms };
}

// Workers are processes; on a machine that is busy they take their time to start.
describe("a policy", { timeout: 120_000 }, () => {
  let one: Awaited<ReturnType<typeof train>>;
  const groups: RankGroup[] = [];
  const group = (size: number): RankGroup => groups.find((opened) => opened.size === size) as RankGroup;

  beforeAll(async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    one = await train(policy);
    groups.push(...(await Promise.all([2, 3, 4].map((size) => RankGroup.open({ size })))));
  }, 120_000);

  afterAll(async () => {
    await Promise.all(groups.map((opened) => opened.dispose()));
  });

  /** float32 sums in another order: a few units of 6e-8, over at most 300 terms and three steps. */
  const CLOSE = 1e-5;

  it.each<[number, RankOptions, PassOptions]>([
    [2, {}, {}],
    [3, {}, {}],
    [4, {}, { passTokens: 64 }],
    [2, { contextParallel: 2 }, {}],
    [4, { contextParallel: 2, contextSchedule: "all_gather" }, {}],
    [4, { contextParallel: 2 }, { passTokens: 48 }],
    [4, { contextParallel: 4, contextSchedule: "all_gather" }, {}],
    [4, { contextParallel: 4, contextSchedule: "two_level", ranksPerNode: 2 }, {}],
  ])("on %i ranks, %o, %o, learns what it learns on one", async (size, options, pass) => {
    await using policy = await Policy.create(TINY, { ...LIVELY, ...options, ranks: group(size) });
    expect(policy.ranks).toBe(size);
    const many = await train(policy, pass);
    many.norms.forEach((norm, i) => {
      expect(Math.abs(norm / (one.norms[i] as number) - 1)).toBeLessThan(CLOSE);
    });
    many.results.forEach((result, i) => {
      const alone = one.results[i] as LossResult;
      expect(Math.abs(result.loss - alone.loss)).toBeLessThan(CLOSE);
      expect(off(alone.logprob, result.logprob)).toBeLessThan(CLOSE);
      expect(off(alone.entropy, result.entropy)).toBeLessThan(CLOSE);
      expect(result.flags).toEqual(alone.flags);
    });
    // Under the same weights, where attention is computed in one piece, the bits are the same.
    if (options.contextParallel === undefined || options.contextSchedule === "all_gather") {
      expect(many.results[0]?.logprob).toEqual(one.results[0]?.logprob);
      expect(many.results[0]?.entropy).toEqual(one.results[0]?.entropy);
    }
    const groupCount = size / (options.contextParallel ?? 1);
    expect(many.results[0]?.costs).toHaveLength(groupCount);
  });

  it("on many ranks is saved and loaded, also on another number of ranks", async () => {
    const directory = await mkdtemp(path.join(tmpdir(), "tokenring-ranks-"));
    try {
      await using two = await Policy.create(TINY, { ...LIVELY, ranks: group(2) });
      await train(two);
      await two.save(directory, { optimiser: true });
      await two.accumulate(batch("d"), loss);
      const { gradientNorm } = await two.optimise(adamw);
      for (const ranks of [1, group(3)]) {
        await using again = await Policy.load(directory, { ranks, optimiser: true });
        await again.accumulate(batch("d"), loss);
        const next = await again.optimise(adamw);
        expect(next.step).toBe(4);
        expect(Math.abs(next.gradientNorm / gradientNorm - 1)).toBeLessThan(CLOSE);
      }
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  it("samples the same tokens wherever a session is, and forks stay with their parent", async () => {
    const sample = { maxTokens: 12, stop: [], temperature: 1 };
    const turns = async (policy: Policy) => {
      const engine = embeddedEngine(policy);
      const prompts = Array.from({ length: 6 }, (_, i) => ids(`prompt${i}`, 5 + 3 * i));
      const lines = prompts.map(async (prompt, i) => {
        using session = engine.open();
        session.extend(prompt);
        const first = await session.sample({ ...sample, seed: BigInt(i) });
        using fork = session.fork();
        session.extend(ids("more", 3));
        const both = [
          session.sample({ ...sample, seed: 100n + BigInt(i) }),
          fork.sample({ ...sample, seed: 200n }),
        ];
        return [first, ...(await Promise.all(both))].map(({ tokens, logprobs, version }) => ({
          tokens,
          logprobs,
          version,
        }));
      });
      return Promise.all(lines);
    };
    await using alone = await Policy.create(TINY, LIVELY);
    await using many = await Policy.create(TINY, { ...LIVELY, ranks: group(3) });
    const expected = await turns(alone);
    expect(await turns(many)).toEqual(expected);
    expect((await many.rank.usage().promise).sessions).toBe(0);
    // New weights reach all ranks.
    for (const policy of [alone, many]) {
      await policy.accumulate(batch("e", [50]), loss);
      await policy.optimise(adamw);
    }
    const after = await turns(many);
    expect(after.flat().every(({ version }) => version === many.version)).toBe(true);
    expect(after).not.toEqual(expected);
    // One data rank learnt, alone as on three: the bits are the same here too.
    expect(after).toEqual(await turns(alone));
  });

  it("stops a turn on another rank when its signal fires, and a full session there says so at its next turn", async () => {
    await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group(2) });
    const engine = embeddedEngine(policy);
    const reason = new Error("enough");
    /** What came of a turn of some hundred tokens at each rank, whose signal fires when both have been asked for. */
    const stopped = async (): Promise<unknown[]> => {
      using first = engine.open();
      using second = engine.open();
      const controller = new AbortController();
      const turns = [first, second].map((session) => {
        session.extend([1]);
        const long = { maxTokens: 500, stop: [], temperature: 1, seed: 1n };
        return session.sample({ ...long, signal: controller.signal }).catch((error: unknown) => error);
      });
      controller.abort(reason);
      return Promise.all(turns);
    };
    // One that was done before it heard keeps its result, which happens on a busy machine, and not always.
    for (let outcomes: unknown[] = []; outcomes[1] !== reason; ) {
      outcomes = await stopped();
      for (const outcome of outcomes) if (outcome !== reason) expect(outcome).toHaveProperty("tokens");
    }
    using first = engine.open();
    using second = engine.open();
    for (const session of [first, second]) session.extend([1]);
    second.extend(ids("too much", 512));
    await expect(second.sample({ maxTokens: 1, stop: [], temperature: 1, seed: 1n })).rejects.toThrow(
      /cannot take 512 more: the model's context is 512/,
    );
  });

  it("leaves a step out whose pass was aborted, and goes on with the next", async () => {
    await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group(2) });
    const { version } = policy;
    const controller = new AbortController();
    const reason = new Error("enough");
    const pass = policy.accumulate(batch("a0"), loss, { signal: controller.signal });
    const step = policy.optimise(adamw);
    controller.abort(reason);
    const outcomes = await Promise.allSettled([pass, step]);
    expect(outcomes).toEqual([
      { status: "rejected", reason },
      { status: "rejected", reason: expect.objectContaining({ code: "ERR_TOKENRING_ABORTED" }) },
    ]);
    expect(policy.version).toBe(version);
    await policy.dropGradients();
    const { norms } = await train(policy);
    expect(Math.abs((norms[0] as number) / (one.norms[0] as number) - 1)).toBeLessThan(CLOSE);
  });

  it("refuses what no rank could take, and can still be used", async () => {
    await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group(2) });
    const wrong = { ...batch("a0"), tokens: ids("a0", 285).fill(97) };
    await expect(policy.accumulate(wrong, loss)).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
    });
    await expect(policy.load("/nowhere")).rejects.toMatchObject({ code: "ERR_TOKENRING_CHECKPOINT" });
  });

  it("is refused where the ranks cannot be divided so", async () => {
    await expect(Policy.create(TINY, { ranks: group(3), contextParallel: 2 })).rejects.toThrow(
      "contextParallel: 2 does not divide the 3 ranks",
    );
    await expect(Policy.create(TINY, { ranks: 4, shardSize: 3 })).rejects.toThrow(
      "shardSize: 3 does not divide the 4",
    );
    await expect(Policy.create(TINY, { ranks: 1.5 })).rejects.toThrow(/1.5/);
  });

  it("whose ranks are disposed of in the middle of a pass fails with that, and waits for nobody", async () => {
    const own = await RankGroup.open({ size: 2 });
    await using policy = await Policy.create(TINY, { ...LIVELY, ranks: own });
    const passes = Array.from({ length: 20 }, (_, i) => policy.accumulate(batch(`p${i}`), loss));
    const outcomes = Promise.allSettled(passes);
    await passes[0];
    await own.dispose();
    const last = (await outcomes).at(-1) as PromiseRejectedResult;
    expect(last.reason).toMatchObject({
      code: "ERR_TOKENRING_DISPOSED",
      message: expect.stringMatching(/^accumulate \(command #\d+\): the ranks were disposed$/),
    });
    await expect(policy.score(batch("after"))).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });
  });

  it("ends the ranks that it started itself", async () => {
    const policy = await Policy.create(TINY, { ...LIVELY, ranks: 2 });
    const { gradientNorm } = await (async () => {
      await policy.accumulate(batch("a0"), loss);
      await policy.accumulate(batch("b0", [33, 80]), loss);
      return policy.optimise(adamw);
    })();
    expect(Math.abs(gradientNorm / (one.norms[0] as number) - 1)).toBeLessThan(CLOSE);
    await policy.dispose();
    await expect(policy.accumulate(batch("a0"), loss)).rejects.toMatchObject({
      code: "ERR_TOKENRING_DISPOSED",
    });
  });
});
