// vLLM as the engine, against a server that speaks its protocol: the turns are the policy's, the weights arrive, and what
// goes wrong is said or got over.
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import type { SampledTurn, SampleOptions } from "../../lib/engine/types.ts";
import { type VllmEngine, type VllmOptions, vllmEngine } from "../../lib/engine/vllm.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";
import { VllmDouble } from "./vllm-double.ts";

const options = (seed: number, more: Partial<SampleOptions> = {}): SampleOptions => ({
  maxTokens: 12,
  stop: [],
  temperature: 1,
  seed: BigInt(seed),
  ...more,
});

const CONFIG = { ...TINY, max_position_embeddings: 160 };

describe("the vLLM engine", () => {
  let policy: Policy;
  let folder: string;
  let servers: VllmDouble[];
  let opened: VllmEngine[] = [];
  let warned: (message: string) => void;

  const open = async (more: Partial<VllmOptions> = {}): Promise<VllmEngine> => {
    const urls = servers.map(({ url }) => url);
    const how = {
      urls,
      policy,
      weights: folder,
      dtype: "f32" as const,
      seeded: true,
      tolerance: 1e-5,
      turnMs: 4000,
    };
    const engine = await vllmEngine({ ...how, ...more, onWarning: (message) => warned(message) });
    opened.push(engine);
    return engine;
  };

  const turn = async (engine: VllmEngine, how = options(1)): Promise<SampledTurn> => {
    using session = engine.open();
    session.extend(ids("prompt", 20));
    return await session.sample(how);
  };

  beforeAll(async () => {
    policy = await Policy.create(CONFIG, LIVELY);
  });
  afterAll(() => policy.dispose());
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "tokenring-vllm-"));
    servers = [await VllmDouble.start(CONFIG)];
    warned = () => {};
  });
  afterEach(async () => {
    for (const engine of opened) await engine[Symbol.asyncDispose]();
    opened = [];
    for (const server of servers) await server.close();
    await rm(folder, { recursive: true });
  });

  const learn = async (learningRate = 0.05): Promise<void> => {
    const weight = new Float32Array(60).fill(1, 1);
    await policy.accumulate(
      { tokens: ids("text", 60), lengths: Int32Array.of(60), weight },
      { objective: "nll" },
    );
    await policy.optimise({ learningRate });
  };

  const server = (): VllmDouble => servers[0] as VllmDouble;
  /** Turns alone, without what is asked to verify weights. */
  const turns = (of = server()): VllmDouble["completions"] =>
    of.completions.filter((one) => one.temperature !== 2);
  const reloads = (of = server()): number => of.calls.filter((path) => path === "/collective_rpc").length;

  it("samples from the policy, with its logprobs, and says so", async () => {
    const engine = await open();
    expect(engine).toMatchObject({ name: "vllm", vocabularySize: 97, contextLimit: 160 });
    for (const temperature of [1, 0.7]) {
      const sampled = await turn(engine, options(1, { temperature }));
      expect(sampled).toMatchObject({ finish: "length", version: policy.version });
      const tokens = Int32Array.of(...ids("prompt", 20), ...sampled.tokens);
      const { logprob } = await policy.score({ tokens, lengths: Int32Array.of(32) }, { temperature });
      expect(sampled.logprobs).toEqual(logprob.slice(20));
    }
  });

  it("ends a turn with a stop token, which it keeps, and with no other", async () => {
    const engine = await open();
    const whole = await turn(engine);
    const stop = whole.tokens[4] as number;
    const stopped = await turn(engine, options(1, { stop: [stop] }));
    expect(stopped).toMatchObject({ finish: "stop" });
    expect(stopped.tokens).toEqual(whole.tokens.slice(0, whole.tokens.indexOf(stop) + 1));
    expect(turns()[1]).toMatchObject({ stop_token_ids: [stop], ignore_eos: true });
  });

  it("sends every knob that a server would else set by itself", async () => {
    await turn(await open());
    expect(turns()[0]).toEqual({
      model: "served",
      prompt: [...ids("prompt", 20)],
      max_tokens: 12,
      n: 1,
      temperature: 1,
      top_p: 1,
      top_k: 0,
      min_p: 0,
      repetition_penalty: 1,
      presence_penalty: 0,
      frequency_penalty: 0,
      seed: expect.any(Number),
      ignore_eos: true,
      stop_token_ids: [],
      logprobs: 0,
      return_tokens_as_token_ids: true,
      skip_special_tokens: false,
    });
  });

  it("sends a session's whole stream each turn, and draws of its own; forks go on from it", async () => {
    const engine = await open();
    using session = engine.open();
    session.extend(ids("prompt", 20));
    const first = await session.sample(options(1));
    session.extend([3, 4]);
    using fork = session.fork();
    const second = await session.sample(options(1));
    const other = await fork.sample(options(2));
    expect([session.length, fork.length]).toEqual([46, 46]);
    const [a, b, c] = turns();
    expect(b?.prompt).toEqual([...ids("prompt", 20), ...first.tokens, 3, 4]);
    expect(c?.prompt).toEqual(b?.prompt);
    expect(new Set([a?.seed, b?.seed, c?.seed]).size).toBe(3);
    expect(other.tokens).not.toEqual(second.tokens);
    // What one appends, the other does not see.
    session.extend([5]);
    expect((await fork.sample(options(3))).tokens).toHaveLength(12);
    expect(turns().at(-1)?.prompt.slice(-12)).toEqual([...other.tokens]);
  });

  it("gives servers the weights once for each change, and one copy lies on the disk", async () => {
    servers.push(await VllmDouble.start(CONFIG));
    const engine = await open();
    await engine.update();
    await Promise.all([1, 2, 3, 4].map((seed) => turn(engine, options(seed))));
    expect(servers.map(reloads)).toEqual([1, 1]);
    const before = await turn(engine);
    await learn();
    const after = await turn(engine);
    expect([before.version + 1, after.version]).toEqual([policy.version, policy.version]);
    expect(after.logprobs).not.toEqual(before.logprobs);
    await engine.update();
    expect(servers.map(reloads)).toEqual([2, 2]);
    expect(await readdir(folder)).toHaveLength(1);
    await engine[Symbol.asyncDispose]();
    expect(await readdir(folder)).toEqual([]);
  });

  it("gives a server that is slow the newest weights, and leaves it those that it reads", async () => {
    const engine = await open();
    let release = (): void => {};
    server().faults.hold = new Promise((resolve) => {
      release = resolve;
    });
    const first = engine.update();
    await vi.waitFor(() => expect(reloads()).toBe(1), 5000);
    await learn();
    const second = engine.update();
    const reading = await readdir(folder);
    release();
    await Promise.all([first, second]);
    expect(reading).toHaveLength(1);
    expect(reloads()).toBe(2);
    expect(await readdir(folder)).not.toEqual(reading);
    const sampled = await turn(engine);
    const tokens = Int32Array.of(...ids("prompt", 20), ...sampled.tokens);
    const { logprob } = await policy.score({ tokens, lengths: Int32Array.of(32) });
    expect(sampled.logprobs).toEqual(logprob.slice(20));
  });

  it("finds weights that arrive in part only, whatever the tolerance", async () => {
    const engine = await open({ tolerance: 0.1 });
    await engine.update();
    server().faults.keepsWeights = true;
    await learn(1e-3);
    await expect(engine.update()).rejects.toMatchObject({
      code: "ERR_TOKENRING_ENGINE",
      message: expect.stringMatching(/reads only a part of the new weights/),
    });
  });

  it("ends an update by signal", async () => {
    const engine = await open();
    server().faults.hold = new Promise(() => {});
    const stop = new AbortController();
    const updating = engine.update({ signal: stop.signal });
    await vi.waitFor(() => expect(reloads()).toBe(1), 5000);
    stop.abort(new Error("enough"));
    await expect(updating).rejects.toThrow("enough");
  });

  it("spreads sessions over the servers", async () => {
    servers.push(await VllmDouble.start(CONFIG));
    const engine = await open();
    const sessions = Array.from({ length: 6 }, () => engine.open());
    for (const session of sessions) session.extend(ids("prompt", 20));
    await Promise.all(sessions.map((session, i) => session.sample(options(i))));
    expect(servers.map((one) => turns(one).length)).toEqual([3, 3]);
    // A session stays where its tokens were read.
    await Promise.all(sessions.slice(0, 3).map((session, i) => session.sample(options(i))));
    const [a, b] = servers.map((one) => turns(one).map(({ prompt }) => prompt.length));
    expect([...(a as number[]), ...(b as number[])].filter((length) => length === 32)).toHaveLength(3);
    for (const session of sessions) session.dispose();
  });

  describe("refuses a server", () => {
    it.each([
      [
        "whose logprobs are those before the temperature",
        { rawLogprobs: true },
        /logprobs-mode processed_logprobs/,
      ],
      ["that leaves out tokens", { kept: 0.95 }, /filters or penalises tokens/],
      ["that has not taken the weights", { keepsWeights: true }, /its weights are others/],
      ["without its development endpoints", { noDevelopment: true }, /VLLM_SERVER_DEV_MODE=1/],
      ["that knows no ids in the place of text", { text: true }, /return_tokens_as_token_ids/],
    ])("%s", async (_, faults, message) => {
      Object.assign(server().faults, faults);
      await expect((await open()).update()).rejects.toMatchObject({
        code: "ERR_TOKENRING_ENGINE",
        message: expect.stringMatching(message),
      });
    });

    it("that is not there, serves another model, or wants a key", async () => {
      const refused = (more: Partial<VllmOptions>): Promise<unknown> =>
        open(more).then(String, (error) => error);
      expect(await refused({ urls: ["http://127.0.0.1:1"] })).toMatchObject({
        code: "ERR_TOKENRING_ENGINE",
        message: expect.stringMatching(/127\.0\.0\.1:1.*is vLLM up there\?/),
      });
      expect(await refused({ model: "other" })).toMatchObject({
        message: expect.stringMatching(/no model other, but served/),
      });
      expect(await refused({ urls: ["ftp://x"] })).toMatchObject({ code: "ERR_TOKENRING_INVALID_ARGUMENT" });
      expect(await refused({ urls: [] })).toMatchObject({ code: "ERR_TOKENRING_INVALID_ARGUMENT" });
      server().apiKey = "secret";
      expect(await refused({})).toMatchObject({ message: expect.stringMatching(/401.*VLLM_API_KEY/) });
      expect((await turn(await open({ apiKey: "secret" }))).tokens).toHaveLength(12);
    });

    it("for weights that it cannot read, with where they are", async () => {
      await server().close();
      servers[0] = await VllmDouble.start({ ...CONFIG, hidden_size: 48, head_dim: 32 });
      await expect((await open()).update()).rejects.toMatchObject({
        code: "ERR_TOKENRING_ENGINE",
        message: expect.stringMatching(/Worker failed.*the weights are in .*same path/),
      });
    });
  });

  describe("gets over", () => {
    it.each([
      ["a busy server", { status: 503, times: 2 }],
      ["too many requests", { status: 429, times: 2 }],
      ["a connection that breaks off", { status: 0, times: 2 }],
    ])("%s", async (_, refuse) => {
      const engine = await open();
      const expected = await turn(engine);
      server().faults.refuse = { ...refuse };
      expect(await turn(engine)).toEqual(expected);
      expect(server().faults.refuse?.times).toBe(0);
    });

    it("a turn that the server ends", async () => {
      const engine = await open();
      const expected = await turn(engine);
      server().faults.abort = 1;
      expect(await turn(engine)).toEqual(expected);
    });

    it("a server that goes away: others take its sessions", async () => {
      servers.push(await VllmDouble.start(CONFIG));
      const engine = await open();
      await engine.update();
      const sessions = [engine.open(), engine.open()];
      for (const session of sessions) session.extend(ids("prompt", 20));
      await Promise.all(sessions.map((session, i) => session.sample(options(i))));
      await server().close();
      const warnings = vi.fn();
      warned = warnings;
      const more = await Promise.all(sessions.map((session, i) => session.sample(options(i))));
      expect(more.map(({ tokens }) => tokens.length)).toEqual([12, 12]);
      expect(warnings.mock.calls.flat()).toEqual([
        expect.stringMatching(/others take its sessions until it is back$/),
      ]);
      // New weights are no business of one that is away, until it is back.
      await learn();
      await engine.update();
      expect(reloads(servers[1])).toBe(2);
      const { port } = new URL(server().url);
      servers[0] = await VllmDouble.start(CONFIG, Number(port));
      await engine.update();
      expect(reloads()).toBe(1);
      expect(warnings).toHaveBeenLastCalledWith(expect.stringMatching(/is back$/));
    });

    it("a restart, after which a server has other weights: it gets them again", async () => {
      const engine = await open();
      const expected = await turn(engine);
      await server().restart();
      const later = performance.now() + 60_000;
      vi.spyOn(performance, "now").mockImplementation(() => later);
      try {
        expect(await turn(engine)).toEqual(expected);
      } finally {
        vi.restoreAllMocks();
      }
      expect(reloads()).toBe(2);
    });

    it("a restart of one that keeps no names, where a request failed by it", async () => {
      server().faults.noNames = true;
      const engine = await open();
      const expected = await turn(engine);
      await server().restart();
      server().faults.refuse = { status: 0, times: 1 };
      expect(await turn(engine)).toEqual(expected);
      expect(reloads()).toBe(2);
    });
  });

  it("gives up when a turn's time is over, and says who did not answer", async () => {
    const engine = await open({ turnMs: 1000 });
    await engine.update();
    server().faults.hang = true;
    await expect(turn(engine)).rejects.toMatchObject({
      code: "ERR_TOKENRING_ENGINE",
      message: expect.stringMatching(/completions: no answer in 1 s/),
    });
    server().faults.hang = false;
    server().faults.refuse = { status: 503, times: 1000 };
    await expect(turn(engine)).rejects.toMatchObject({
      code: "ERR_TOKENRING_ENGINE",
      message: expect.stringMatching(/answered 503: not now; given up after 1 s/),
    });
  });

  it("ends a turn by signal and by dispose, at once", async () => {
    const engine = await open({ turnMs: 60_000 });
    await engine.update();
    server().faults.hang = true;
    const stop = new AbortController();
    const stopped = turn(engine, options(1, { signal: stop.signal }));
    using session = engine.open();
    session.extend(ids("prompt", 20));
    const disposed = session.sample(options(1));
    await vi.waitFor(() => expect(turns()).toHaveLength(2), 5000);
    stop.abort(new Error("enough"));
    session.dispose();
    await expect(stopped).rejects.toThrow("enough");
    await expect(disposed).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    expect(() => session.extend([1])).toThrow(/disposed/);
    const waiting = expect(turn(engine)).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });
    await vi.waitFor(() => expect(turns()).toHaveLength(3), 5000);
    await engine[Symbol.asyncDispose]();
    await waiting;
  });

  it("refuses what no server could do, before it is asked", async () => {
    const engine = await open();
    using session = engine.open();
    await expect(session.sample(options(1))).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
    });
    expect(() => session.extend([97])).toThrow(/tokens\[0\] is 97; the vocabulary has 97/);
    expect(() => session.extend([1.5])).toThrow(/not a token id/);
    expect(() => session.extend(new Int32Array(161))).toThrow(/context limit is 160/);
    session.extend(new Int32Array(150));
    await expect(session.sample(options(1))).rejects.toMatchObject({ code: "ERR_TOKENRING_ENGINE" });
    expect(server().completions).toEqual([]);
  });

  it("says where weights cannot be written", async () => {
    const engine = await open({ weights: "/dev/null/nowhere" });
    await expect(engine.update()).rejects.toMatchObject({
      code: "ERR_TOKENRING_ENGINE",
      message: expect.stringMatching(/^\/dev\/null\/nowhere: the weights for vLLM cannot be written/),
    });
  });
});
