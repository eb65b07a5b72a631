// The embedded engine: what it samples has exactly the logprobs that the trainer computes for it, whatever else is
// in the batch, however the stream came about.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import type { Engine, SampledTurn, SampleOptions, Session } from "../../lib/engine/types.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";

const options = (seed: number, more: Partial<SampleOptions> = {}): SampleOptions => ({
  maxTokens: 20,
  stop: [],
  temperature: 1,
  seed: BigInt(seed),
  ...more,
});

/** The trainer's logprobs of the last `n` of `tokens`. */
async function scored(policy: Policy, tokens: Int32Array, n: number, temperature = 1): Promise<Float32Array> {
  const batch = { tokens, lengths: Int32Array.of(tokens.length) };
  return (await policy.score(batch, { temperature })).logprob.subarray(tokens.length - n);
}

function concat(...parts: Int32Array[]): Int32Array {
  return Int32Array.from(parts.flatMap((part) => [...part]));
}

function opened(engine: Engine, tokens: Int32Array): Session {
  const session = engine.open();
  session.extend(tokens);
  return session;
}

describe("embedded engine", () => {
  let policy: Policy;
  let engine: Engine;
  beforeAll(async () => {
    // 48 tokens a tick: prompts of these tests are read in several chunks.
    policy = await Policy.create(TINY, { ...LIVELY, maxBatchTokens: 48 });
    engine = embeddedEngine(policy);
  });
  afterAll(() => policy.dispose());

  /** A turn sampled with nothing else going on. */
  async function alone(prompt: Int32Array, how: SampleOptions): Promise<SampledTurn> {
    using session = opened(engine, prompt);
    return await session.sample(how);
  }

  it("says what it is", () => {
    expect(engine).toMatchObject({ name: "embedded", vocabularySize: 97, contextLimit: 512 });
  });

  it.each([1, 0.7, 2])("gives the trainer's logprobs bit for bit at temperature %f", async (temperature) => {
    const prompt = ids("prompt", 131);
    const turn = await alone(prompt, options(3, { temperature }));
    expect(turn.tokens).toHaveLength(20);
    expect(turn.finish).toBe("length");
    expect(turn.version).toBe(policy.version);
    expect(turn.logprobs).toEqual(await scored(policy, concat(prompt, turn.tokens), 20, temperature));
    expect(new Set(turn.tokens).size).toBeGreaterThan(3);
  });

  it("gives the trainer's logprobs over several turns with observations between", async () => {
    using session = engine.open();
    let stream: Int32Array = new Int32Array();
    for (let turn = 0; turn < 5; turn++) {
      const observation = ids(`observation ${turn}`, [70, 1, 63, 64, 65][turn] as number);
      session.extend(observation);
      const { tokens, logprobs } = await session.sample(options(turn, { maxTokens: 9 }));
      stream = concat(stream, observation, tokens);
      expect(session.length).toBe(stream.length);
      expect(logprobs).toEqual(await scored(policy, stream, 9));
    }
  });

  it("draws by all 64 bits of the seed", async () => {
    const prompt = ids("bits", 10);
    const turns = [3n, 3n | (1n << 32n), 3n | (1n << 53n), 3n | (1n << 63n)].map(async (seed) =>
      (await alone(prompt, { ...options(0), seed })).tokens.join(),
    );
    expect(new Set(await Promise.all(turns)).size).toBe(4);
  });

  it("samples the same alone and in company", async () => {
    const prompts = Array.from({ length: 12 }, (_, i) => ids(`company ${i}`, 5 + 23 * i));
    const sessions = prompts.map((prompt) => opened(engine, prompt));
    const together = await Promise.all(sessions.map((session, i) => session.sample(options(i))));
    for (const session of sessions) session.dispose();
    for (const [i, prompt] of prompts.entries()) {
      expect(await alone(prompt, options(i))).toEqual(together[i]);
    }
  });

  it.each([64, 75, 128])("samples the same in forks as alone, forked at %i tokens", async (length) => {
    const prompt = ids("forked", length);
    using parent = opened(engine, prompt);
    const first = await parent.sample(options(0, { maxTokens: 3 }));
    const forks = [parent.fork(), parent.fork(), parent.fork()];
    const tails = forks.map((_, i) => ids(`tail ${i}`, 1 + 9 * i));
    for (const [i, fork] of forks.entries()) fork.extend(tails[i] as Int32Array);
    const turns = await Promise.all(forks.map((fork, i) => fork.sample(options(i))));
    const own = await parent.sample(options(9));
    for (const [i, fork] of forks.entries()) {
      const whole = concat(prompt, first.tokens, tails[i] as Int32Array);
      expect(await alone(whole, options(i))).toEqual(turns[i]);
      expect(fork.length).toBe(whole.length + 20);
      fork.dispose();
    }
    expect(await alone(concat(prompt, first.tokens), options(9))).toEqual(own);
  });

  it("reads a prompt that several sessions share once", async () => {
    const prompt = ids("shared", 5 * 64 + 10);
    const before = await policy.rank.usage().promise;
    const sessions = Array.from({ length: 4 }, () => opened(engine, prompt));
    const turns = await Promise.all(sessions.map((session, i) => session.sample(options(i))));
    const after = await policy.rank.usage().promise;
    for (const session of sessions) session.dispose();
    // Whole pages are shared; what is left of the prompt is read by each.
    expect(after.prefilled - before.prefilled).toBe(5 * 64 + 4 * 10);
    for (const [i, turn] of turns.entries()) expect(await alone(prompt, options(i))).toEqual(turn);
  });

  it("reads each token once over the turns of a session, and gives its pages back", async () => {
    const before = await policy.rank.usage().promise;
    const session = engine.open();
    let read = 0;
    for (let turn = 0; turn < 3; turn++) {
      session.extend(ids(`once ${turn}`, 100));
      await session.sample(options(turn));
      read += 100 + (turn > 0 ? 1 : 0); // and the token that ended the turn before
    }
    const during = await policy.rank.usage().promise;
    expect(during.prefilled - before.prefilled).toBe(read);
    expect(during.decoded - before.decoded).toBe(60);
    expect(during.sessions - before.sessions).toBe(1);
    expect(during.pages - before.pages).toBe(Math.ceil((session.length - 1) / 64));
    session.dispose();
    const after = await policy.rank.usage().promise;
    expect(after.pages).toBe(before.pages);
    expect(after.sessions).toBe(before.sessions);
  });

  it("ends after a stop token, which it keeps", async () => {
    const prompt = ids("stops", 12);
    const free = await alone(prompt, options(5));
    const stop = free.tokens[7] as number;
    const first = free.tokens.indexOf(stop);
    const turn = await alone(prompt, options(5, { stop: [stop] }));
    expect(turn.finish).toBe("stop");
    expect(turn.tokens).toEqual(free.tokens.subarray(0, first + 1));
    expect(turn.logprobs).toEqual(free.logprobs.subarray(0, first + 1));
  });

  it("takes the likeliest token at temperature 0, with its logprob at temperature 1", async () => {
    const prompt = ids("greedy", 12);
    const turn = await alone(prompt, options(1, { temperature: 0, maxTokens: 6 }));
    expect(await alone(prompt, options(2, { temperature: 0, maxTokens: 6 }))).toEqual(turn);
    expect(turn.logprobs).toEqual(await scored(policy, concat(prompt, turn.tokens), 6));
    const likeliest = turn.logprobs[0] as number;
    for (let other = 0; other < TINY.vocab_size; other++) {
      const [logprob] = await scored(policy, concat(prompt, Int32Array.of(other)), 1);
      expect(logprob).toBeLessThanOrEqual(likeliest);
    }
  });

  it("samples tokens as often as their probability says", async () => {
    // 2000 draws of one next token against its exact distribution. Chi-squared over the tokens that expect at least
    // 5 draws, the rest as one class; the bound is the mean plus six standard deviations of that statistic.
    const prompt = ids("frequencies", 6);
    using parent = opened(engine, prompt);
    await parent.sample(options(0, { maxTokens: 1 }));
    const stream = concat(prompt, ids("next", 1));
    const draws = 2000;
    const counts = new Float64Array(TINY.vocab_size);
    const sessions = Array.from({ length: draws }, () => opened(engine, stream));
    const turns = await Promise.all(sessions.map((s, i) => s.sample(options(i, { maxTokens: 1 }))));
    for (const session of sessions) session.dispose();
    for (const turn of turns) {
      const token = turn.tokens[0] as number;
      counts[token] = (counts[token] as number) + 1;
    }
    let statistic = 0;
    let classes = 0;
    let restCount = 0;
    let restExpected = 0;
    for (let token = 0; token < TINY.vocab_size; token++) {
      const [logprob] = await scored(policy, concat(stream, Int32Array.of(token)), 1);
      const expected = draws * Math.exp(logprob as number);
      if (expected < 5) {
        restCount += counts[token] as number;
        restExpected += expected;
        continue;
      }
      statistic += ((counts[token] as number) - expected) ** 2 / expected;
      classes++;
    }
    statistic += (restCount - restExpected) ** 2 / restExpected;
    expect(classes).toBeGreaterThan(10);
    expect(statistic).toBeLessThan(classes + 6 * Math.sqrt(2 * classes));
  });

  it("stops at the context limit", async () => {
    using session = opened(engine, ids("long", 505));
    const turn = await session.sample(options(1, { maxTokens: 100 }));
    expect(turn).toMatchObject({ finish: "length" });
    expect(turn.tokens).toHaveLength(7);
    expect(session.length).toBe(engine.contextLimit);
    expect(() => session.extend([1])).toThrow(/the model's context is 512/);
    await expect(session.sample(options(1))).rejects.toThrow(/is full/);
  });

  it("gives the signal's reason when stopped, and leaves the session as it was", async () => {
    const prompt = ids("aborted", 100);
    using session = opened(engine, prompt);
    const controller = new AbortController();
    const turn = session.sample(options(4, { maxTokens: 400, signal: controller.signal }));
    const reason = new Error("enough");
    controller.abort(reason);
    await expect(turn).rejects.toBe(reason);
    expect(session.length).toBe(100);
    expect(await session.sample(options(4))).toEqual(await alone(prompt, options(4)));
    await expect(session.sample(options(4, { signal: AbortSignal.abort(reason) }))).rejects.toBe(reason);
    expect(session.length).toBe(120);
  });

  it("stops in the middle of a turn", async () => {
    const company = opened(engine, ids("company", 40));
    using session = opened(engine, ids("middle", 30));
    const controller = new AbortController();
    const turn = session.sample(options(4, { maxTokens: 400, signal: controller.signal }));
    await company.sample(options(5, { maxTokens: 10 })); // by now the other has been sampled too
    controller.abort();
    await expect(turn).rejects.toThrow(expect.objectContaining({ name: "AbortError" }));
    const usage = await policy.rank.usage().promise;
    company.dispose();
    expect(session.length).toBe(30);
    expect(usage.decoded).toBeGreaterThan(10);
    expect((await session.sample(options(4))).logprobs).toHaveLength(20);
  });

  it("refuses what cannot be, at once and by name", async () => {
    using session = engine.open();
    await expect(session.sample(options(1))).rejects.toThrow(/holds no tokens; extend it/);
    expect(() => session.extend([3, 97])).toThrow(/tokens\[1\] is 97, outside the vocabulary of 97/);
    expect(() => session.extend([3, 0.5])).toThrow(/tokens\[1\] is 0.5, not a token id/);
    expect(session.length).toBe(0);
    session.extend([1, 2, 3]);
    await expect(session.sample(options(1, { maxTokens: 0 }))).rejects.toThrow(/request.maxTokens must be/);
    await expect(session.sample(options(1, { temperature: -1 }))).rejects.toThrow(
      /request.temperature must be/,
    );
    await expect(session.sample({ ...options(1), seed: -1n })).rejects.toThrow(
      /request.seed must be a bigint/,
    );
    const turn = session.sample(options(1));
    expect(() => session.extend([1])).toThrow(/is sampling; wait for its result/);
    expect(() => session.fork()).toThrow(/is sampling/);
    await expect(session.sample(options(1))).rejects.toThrow(/is sampling/);
    await turn;
  });

  it("ends a turn with its session", async () => {
    const session = opened(engine, ids("closed", 10));
    const turn = session.sample(options(1, { maxTokens: 400 }));
    session.dispose();
    session.dispose();
    await expect(turn).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    expect(() => session.extend([1])).toThrow(expect.objectContaining({ code: "ERR_TOKENRING_DISPOSED" }));
  });
});

describe("embedded engine under new weights", () => {
  it("goes on from the same tokens with the new policy's logprobs", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    using session = opened(embeddedEngine(policy), ids("old", 80));
    const before = await session.sample(options(1));
    expect(before.version).toBe(policy.version);
    const stream = concat(ids("old", 80), before.tokens);
    const weight = new Float32Array(stream.length).fill(1 / stream.length, 1);
    await policy.accumulate(
      { tokens: stream, lengths: Int32Array.of(stream.length), weight },
      { objective: "nll" },
    );
    await policy.optimise({ learningRate: 1e-2 });
    const after = await session.sample(options(1));
    expect(after.version).toBe(before.version + 1);
    expect(after.logprobs).toEqual(await scored(policy, concat(stream, after.tokens), 20));
    expect(await scored(policy, stream, 20)).not.toEqual(before.logprobs);
  });
});

describe("embedded engine with few pages", () => {
  it("lets sessions give way to each other without changing what they sample", async () => {
    // Each session needs 3 of the 7 pages at its end: two fit at a time, eight run at once.
    await using tight = await Policy.create(TINY, { ...LIVELY, maxPages: 7, maxBatchTokens: 64 });
    await using wide = await Policy.create(TINY, { ...LIVELY, maxBatchTokens: 512 });
    const sample = (policy: Policy): Promise<SampledTurn[]> => {
      const engine = embeddedEngine(policy);
      return Promise.all(
        Array.from({ length: 8 }, (_, i) =>
          opened(engine, ids(`tight ${i}`, 120)).sample(options(i, { maxTokens: 60 })),
        ),
      );
    };
    expect(await sample(tight)).toEqual(await sample(wide));
    expect((await tight.rank.usage().promise).pages).toBeLessThanOrEqual(7);
  });

  it("says so when one session alone does not fit", async () => {
    await using policy = await Policy.create(TINY, { ...LIVELY, maxPages: 2 });
    const engine = embeddedEngine(policy);
    using session = opened(engine, ids("fits not", 100));
    await expect(session.sample(options(1, { maxTokens: 60 }))).rejects.toMatchObject({
      code: "ERR_TOKENRING_OUT_OF_MEMORY",
      message: expect.stringMatching(
        /2 pages of 64 tokens cannot hold a session of 129 tokens; raise maxPages/,
      ),
    });
    using other = opened(engine, ids("fits", 100));
    expect((await other.sample(options(1, { maxTokens: 20 }))).tokens).toHaveLength(20);
  });
});
