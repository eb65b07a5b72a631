// The class Rank of the addon, as lib/ sees it: arguments are checked by name, failures are TokenringErrors, and no
// misuse reaches native memory.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TokenringError } from "../../lib/errors.ts";
import type { NativeBatch, NativeLoss, NativeRank, NativeRankOptions } from "../../lib/ops/binding.ts";
import { withSignal } from "../../lib/ops/jobs.ts";
import { loadBinding } from "../../lib/ops/native.ts";
import { openRank } from "../../lib/ops/rank.ts";
import { ids, TINY } from "../policy/tiny.ts";

const options: NativeRankOptions = {
  config: TINY,
  device: "cpu",
  threads: 1,
  precision: "float32",
  activationCheckpointing: false,
  maxBatchTokens: 64,
  maxPages: 0,
};
const loss: NativeLoss = {
  objective: "nll",
  clipLow: 0.2,
  clipHigh: 0.28,
  dualClip: 0,
  klCoef: 0,
  entropyCoef: 0,
  temperature: 1,
  chunkRows: 16,
};
const { Rank, setErrorClass } = loadBinding();

function invalid(message: string | RegExp): unknown {
  return expect.objectContaining({
    name: "TokenringError",
    code: "ERR_TOKENRING_INVALID_ARGUMENT",
    message: typeof message === "string" ? message : expect.stringMatching(message),
  });
}

describe("new Rank", () => {
  const bad = (changes: object): NativeRankOptions => ({ ...options, ...changes }) as NativeRankOptions;
  it.each([
    [undefined, "options must be an object, got nothing"],
    [bad({ config: 3 }), "options.config must be an object, got 3"],
    [
      bad({ config: { ...TINY, vocab_size: 0 } }),
      /^options.config.vocab_size must be an integer from 1 .*, got 0$/,
    ],
    [bad({ config: { ...TINY, head_dim: 2.5 } }), /^options.config.head_dim must be an integer .*, got 2.5$/],
    [
      bad({ config: { ...TINY, rope_theta: "x" } }),
      /^options.config.rope_theta must be a finite number .*"x"$/,
    ],
    [
      bad({ config: { ...TINY, attention_bias: 1 } }),
      "options.config.attention_bias must be true or false, got 1",
    ],
    [bad({ config: { ...TINY, num_key_value_heads: 3 } }), /num_key_value_heads/],
    [bad({ config: { ...TINY, qk_norm: 1 } }), "options.config.qk_norm must be true or false, got 1"],
    [bad({ config: { ...TINY, qk_norm: true } }), /qk_norm \(Qwen3\) and attention_bias \(Qwen2\)/],
    [bad({ config: { ...TINY, head_dim: 24 } }), /head_dim is 24; it must be a multiple of 16/],
    [
      bad({ config: { ...TINY, rope_scaling: { rope_type: "linear" } } }),
      'config.rope_scaling.rope_type must be "yarn" or "llama3", got "linear"',
    ],
    [
      bad({
        config: {
          ...TINY,
          rope_scaling: { rope_type: "yarn", factor: 0.5, original_max_position_embeddings: 8 },
        },
      }),
      /rope_scaling.factor is 0.5; it must be a number of at least 1/,
    ],
    [bad({ threads: -1 }), /^options.threads must be an integer from 0 .*, got -1$/],
    [bad({ precision: "bf8" }), 'options.precision must be "float32" or "bf16", got "bf8"'],
    [bad({ maxBatchTokens: 0 }), /^options.maxBatchTokens must be an integer from 1/],
    [bad({ device: null }), "options.device must be a string, got null"],
    [bad({ device: "tpu" }), 'device must be "cpu", "cuda" or "cuda:N", got "tpu"'],
    [bad({ device: "cuda" }), /^device "cuda" cannot be used: .*(device "cpu"|nvidia-smi)/],
  ])("refuses %j", async (given, message) => {
    const refused = async () => openRank(given as NativeRankOptions);
    await expect(refused()).rejects.toEqual(invalid(message));
  });

  it("is a class", () => {
    expect(() => (Rank as unknown as () => void)()).toThrow(/without 'new'|new/);
  });
});

describe("Rank", () => {
  let rank: NativeRank;
  beforeAll(async () => {
    rank = await openRank(options);
    await rank.initialise({ std: 0.02, seed: 1n, previousTokenBias: 0 }).promise;
  });
  afterAll(() => rank.dispose());

  const batch = (changes: object): NativeBatch => ({
    tokens: ids("batch", 8),
    lengths: Int32Array.of(5, 3),
    weight: new Float32Array(8),
    ...changes,
  });

  it.each([
    [batch({ tokens: [1, 2, 3] }), /^batch.tokens must be an Int32Array, got a value of class Array$/],
    [
      batch({ tokens: new Float64Array(8) }),
      /^batch.tokens must be an Int32Array, got a value of class Float64Array$/,
    ],
    [batch({ lengths: undefined }), "batch.lengths must be an Int32Array, got nothing"],
    [
      batch({ weight: new Int32Array(8) }),
      /^batch.weight must be a Float32Array, got a value of class Int32Array$/,
    ],
    [batch({ weight: new Float32Array(7) }), /weight/],
    [batch({ lengths: Int32Array.of(5, 4) }), /lengths/],
    [batch({ tokens: new Int32Array(8).fill(97) }), /97/],
    [batch({ tokens: new Int32Array(0), lengths: new Int32Array(0), weight: new Float32Array(0) }), /./],
  ])("refuses the batch %#", (given, message) => {
    expect(() => rank.accumulate(given, loss, false)).toThrow(invalid(message) as Error);
  });

  it.each([
    [{ objective: "ppo" }, 'loss.objective must be "nll", "ppo_clip", "gspo" or "cispo", got "ppo"'],
    [{ objective: "ppo_clip", dualClip: 0.5 }, /dual_clip is 0.5; it must be 0 \(off\) or above 1$/],
    [{ objective: "cispo", dualClip: 3 }, /dual_clip bounds the objective ppo_clip only/],
    [{ klCoef: -1 }, /^loss.klCoef must be a finite number in \[0, 1e\+06\], got -1$/],
    [{ entropyCoef: -1 }, /^loss.entropyCoef must be a finite number/],
    [{ clipLow: -0.1 }, /^loss.clipLow must be a finite number in \[0, 1\], got -0.1$/],
    [{ temperature: 0 }, /temperature must be greater than 0/],
    [{ temperature: Number.NaN }, /^loss.temperature must be a finite number .*, got NaN$/],
    [{ chunkRows: -1 }, /^loss.chunkRows must be an integer from 0/],
  ])("refuses the loss %j", (changes, message) => {
    expect(() => rank.accumulate(batch({}), { ...loss, ...changes } as NativeLoss, false)).toThrow(
      invalid(message) as Error,
    );
  });

  it("refuses other arguments by name", () => {
    const adamw = { learningRate: 1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, clipNorm: 0 };
    expect(() => rank.optimise({ ...adamw, learningRate: -1 })).toThrow(
      invalid(/^options.learningRate/) as Error,
    );
    expect(() => rank.optimise({ ...adamw, epsilon: Infinity })).toThrow(
      invalid(/^options.epsilon/) as Error,
    );
    expect(() => rank.score(batch({}), -1)).toThrow(invalid(/^temperature must be/) as Error);
    expect(() =>
      rank.save(3 as unknown as string, { dtype: "f32", optimiser: false, shardBytes: 1 }),
    ).toThrow(invalid("directory must be a string, got 3") as Error);
    expect(() => rank.save("/tmp", { dtype: "f16" as "bf16", optimiser: false, shardBytes: 1 })).toThrow(
      invalid('options.dtype must be "f32" or "bf16", got "f16"') as Error,
    );
    expect(() => rank.initialise({ std: 1, seed: 1 as unknown as bigint, previousTokenBias: 0 })).toThrow(
      invalid("options.seed must be a bigint in [0, 2^64), got 1") as Error,
    );
    expect(() => rank.extendSession(99, ids("x", 1))).toThrow(
      invalid("there is no session 99; it was closed or never opened") as Error,
    );
    expect(() => rank.openSession.call({} as NativeRank)).toThrow(/Illegal invocation/);
    expect(() => setErrorClass(3 as never)).toThrow(invalid("errorClass must be a class") as Error);
  });

  it("checks before it queues: refused calls leave nothing behind", async () => {
    const before = await rank.usage().promise;
    const session = rank.openSession();
    rank.closeSession(session);
    expect(() => rank.closeSession(session)).toThrow(invalid(/there is no session/) as Error);
    expect(await rank.usage().promise).toEqual(before);
  });

  it("counts the time that its thread works, not the time between jobs", async () => {
    const started = performance.now();
    const before = await rank.busySeconds().promise;
    await Promise.all(Array.from({ length: 20 }, () => rank.score(batch({}), 1).promise));
    const after = await rank.busySeconds().promise;
    const wall = (performance.now() - started) / 1000;
    expect(after - before).toBeGreaterThan(0);
    expect(after - before).toBeLessThan(wall);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect((await rank.busySeconds().promise) - after).toBeLessThan(0.04);
  });

  it("fails with the registered class, and with the caller's stack", async () => {
    async function caller(): Promise<unknown> {
      const load = () => rank.load("/nonexistent/checkpoint", { optimiser: false });
      return withSignal(load).catch((error: unknown) => error);
    }
    const error = (await caller()) as TokenringError;
    expect(error).toBeInstanceOf(TokenringError);
    expect(error.code).toBe("ERR_TOKENRING_CHECKPOINT");
    expect(error.message).toMatch(/\/nonexistent\/checkpoint/);
    expect(error.stack).toMatch(/^TokenringError: .*\n\s+at caller .*rank\.test\.ts/);
  });

  it("aborts a call that waits, and only that", async () => {
    const long = batch({
      tokens: ids("long", 512),
      lengths: Int32Array.of(512),
      weight: new Float32Array(512).fill(1, 1),
    });
    const running = rank.accumulate(long, loss, false);
    const waiting = rank.accumulate(long, loss, false);
    waiting.abort();
    waiting.abort();
    await expect(waiting.promise).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    expect((await running.promise).loss).toBeGreaterThan(0);
    running.abort(); // settled: nothing happens
    await rank.dropGradients().promise;
  });

  it("aborts the call that runs", async () => {
    // Enough to read for the abort to come first, whether before the first layer or after it.
    const documents = 64;
    const job = rank.score(
      { tokens: ids("many", 512 * documents), lengths: new Int32Array(documents).fill(512) },
      1,
    );
    job.abort();
    await expect(job.promise).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    expect(await rank.version().promise).toBeGreaterThan(0);
  });

  it("settles with the signal's reason", async () => {
    const reason = new Error("no longer wanted");
    const start = () => rank.score(batch({}), 1);
    await expect(withSignal(start, AbortSignal.abort(reason))).rejects.toBe(reason);
  });
});

describe("open", () => {
  it("makes the rank elsewhere, once, and nothing else may come before it", async () => {
    const rank = new Rank(options);
    expect(rank.disposed).toBe(false);
    expect(() => rank.version()).toThrow(/the rank is not there yet; wait for open\(\)/);
    const job = rank.open();
    expect(() => rank.openSession()).toThrow(/not there yet/); // it is made on another thread, and not by open()
    expect(() => rank.open()).toThrow(/a rank is opened once/);
    await job.promise;
    expect(await rank.version().promise).toBe(0);
    await rank.dispose();
  });

  it("says what kept it from being made, and a rank may go before or while it is made", async () => {
    const bad = new Rank({ ...options, device: "tpu" } as unknown as NativeRankOptions);
    await expect(bad.open().promise).rejects.toEqual(invalid(/device must be/));
    expect(() => bad.version()).toThrow(/not there yet/);
    await bad.dispose();
    const unopened = new Rank(options);
    await unopened.dispose();
    expect(() => unopened.open()).toThrow(/was disposed/);
    const going = new Rank(options);
    const made = going.open().promise;
    await going.dispose();
    expect(going.disposed).toBe(true);
    await made;
    expect(() => going.version()).toThrow(/was disposed/);
  });
});

describe("dispose", () => {
  it("finishes what runs, ends what waits, and refuses what comes", async () => {
    const rank = await openRank(options);
    const first = rank.initialise({ std: 0.02, seed: 1n, previousTokenBias: 0 });
    await first.promise;
    const session = rank.openSession();
    rank.extendSession(session, ids("disposed", 3));
    const sampled = rank.sampleSession(session, {
      maxTokens: 500,
      stop: new Int32Array(),
      temperature: 1,
      seed: 1n,
    });
    const waiting = Array.from({ length: 8 }, () => rank.version());
    const outcomes = Promise.allSettled([sampled.promise, ...waiting.map((job) => job.promise)]);
    expect(rank.disposed).toBe(false);
    const disposal = rank.dispose();
    expect(rank.disposed).toBe(true);
    expect(rank.dispose()).toBe(disposal);
    expect(() => rank.version()).toThrow(
      expect.objectContaining({ code: "ERR_TOKENRING_DISPOSED" }) as Error,
    );
    expect(() => rank.openSession()).toThrow(
      expect.objectContaining({ code: "ERR_TOKENRING_DISPOSED" }) as Error,
    );
    expect(rank.closeSession(session)).toBeUndefined();
    await disposal;
    sampled.abort(); // nothing is left to stop
    for (const outcome of await outcomes) {
      if (outcome.status === "fulfilled") continue;
      expect(outcome.reason).toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });
    }
    expect((await outcomes)[0]?.status).toBe("rejected");
    await rank.dispose();
  });
});
