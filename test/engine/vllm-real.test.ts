// Against a vLLM that is installed: TOKENRING_VLLM names its command. On the CPU it takes about a minute.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { vllmEngine } from "../../lib/engine/vllm.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { LIVELY, TINY } from "../policy/tiny.ts";

const command = process.env.TOKENRING_VLLM;
const START_MS = 300_000;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

describe.skipIf(!command)("vLLM itself", { timeout: START_MS }, () => {
  let root: string;
  let policy: Policy;
  let server: ChildProcess;
  let url: string;
  const said: string[] = [];

  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), "tokenring-vllm-"));
    const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({ phrases: [] });
    const vocabulary = Object.keys((tokenizerJson as { model: { vocab: object } }).model.vocab).length;
    const shape = { num_attention_heads: 2, num_key_value_heads: 2, hidden_size: 128, head_dim: 64 };
    // vLLM 0.32 keeps the old head of a tied model on the CPU; see docs/engine.md.
    const config = { ...TINY, ...shape, vocab_size: vocabulary + 8, tie_word_embeddings: false };
    policy = await Policy.create(config, { ...LIVELY, std: 0.1 });
    const model = join(root, "model");
    // As a job saves it: the optimiser's tensors lie beside the model's.
    await policy.save(model, { optimiser: true });
    await writeFile(join(model, "tokenizer.json"), JSON.stringify(tokenizerJson));
    await writeFile(join(model, "tokenizer_config.json"), JSON.stringify(tokenizerConfig));
    const port = await freePort();
    url = `http://127.0.0.1:${port}`;
    server = spawn(
      command as string,
      [
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        String(port),
        "--dtype",
        "float32",
        "--enforce-eager",
      ].concat(["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]),
      {
        stdio: ["ignore", "pipe", "pipe"],
        env: { ...process.env, VLLM_SERVER_DEV_MODE: "1", VLLM_CPU_KVCACHE_SPACE: "1", HF_HUB_OFFLINE: "1" },
      },
    );
    for (const stream of [server.stdout, server.stderr])
      stream?.setEncoding("utf8").on("data", (text: string) => said.push(text));
    for (const end = performance.now() + START_MS; ; await sleep(500)) {
      const up = await fetch(`${url}/health`).then(
        ({ ok }) => ok,
        () => false,
      );
      if (up) break;
      if (server.exitCode !== null || performance.now() > end)
        throw new Error(`vLLM did not start: ${said.join("").slice(-2000)}`);
    }
  }, START_MS);

  afterAll(async () => {
    server?.kill("SIGTERM");
    await policy?.dispose();
    await rm(root, { recursive: true, force: true });
  });

  it("samples from the policy, takes its new weights, and agrees with the trainer on every token", async () => {
    await using engine = await vllmEngine({
      urls: [url],
      policy,
      weights: join(root, "weights"),
      dtype: "f32",
      tolerance: 1e-4,
    });
    const prompt = Array.from({ length: 70 }, (_, i) => (31 * i) % 200);
    for (let update = 0; update < 3; update++) {
      using session = engine.open();
      session.extend(prompt);
      using fork = session.fork();
      for (const each of [session, fork]) {
        const stream = [...prompt];
        for (let turn = 0; turn < 2; turn++) {
          const temperature = turn === 0 ? 1 : 0.7;
          const { tokens, logprobs, version } = await each.sample({
            maxTokens: 24,
            stop: [],
            temperature,
            seed: 1n,
          });
          expect([tokens.length, version]).toEqual([24, policy.version]);
          stream.push(...tokens);
          const all = Int32Array.from(stream);
          const { logprob } = await policy.score(
            { tokens: all, lengths: Int32Array.of(all.length) },
            { temperature },
          );
          const own = logprob.subarray(all.length - 24);
          for (const [i, one] of logprobs.entries())
            expect(Math.abs(one - (own[i] as number))).toBeLessThan(1e-3);
          each.extend([1, 2, 3]);
          stream.push(1, 2, 3);
        }
      }
      const tokens = Int32Array.from(prompt);
      const lengths = Int32Array.of(70);
      const weight = new Float32Array(70).fill(1, 1);
      await policy.accumulate({ tokens, lengths, weight }, { objective: "nll" });
      await policy.optimise({ learningRate: 0.01 });
    }
  });

  it("ends a turn with the token that is asked for, and keeps it", async () => {
    await using engine = await vllmEngine({
      urls: [url],
      policy,
      weights: join(root, "weights"),
      dtype: "f32",
    });
    const stop = Array.from({ length: 128 }, (_, i) => 2 * i);
    using session = engine.open();
    session.extend([5, 6, 7]);
    const turn = await session.sample({ maxTokens: 100, stop, temperature: 1, seed: 1n });
    expect(turn.finish).toBe("stop");
    expect(stop).toContain(turn.tokens.at(-1));
    expect([...turn.tokens.slice(0, -1)].some((id) => stop.includes(id))).toBe(false);
  });
});
