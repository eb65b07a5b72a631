// Ranks on GPUs as a user reaches them: processes of Node on the emulated GPU, over the double of NCCL, by the program
// that runs the real ones on a GPU node.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { parseResults } from "../../bench/result.ts";

const folder = mkdtempSync(path.join(tmpdir(), "tokenring-nccl-"));
const emulated = path.resolve("build/Release/tokenring_emulated.so");
const double = path.resolve("build/Release/tokenring_nccl_double.node");
symlinkSync(emulated, path.join(folder, "libcuda.so.1"));
afterAll(() => rmSync(folder, { recursive: true }));

const environment = {
  ...process.env,
  LD_LIBRARY_PATH: folder,
  TOKENRING_CUDA_MODULE: emulated,
  TOKENRING_CUBLASLT: emulated,
  TOKENRING_NCCL: double,
};

function nccl(args: string[], changes: Record<string, string> = {}) {
  const done = spawnSync("gpu/run.sh", ["nccl", "--device", "emulated", "--out", folder, ...args], {
    encoding: "utf8",
    env: { ...environment, ...changes },
    timeout: 120_000,
  });
  return { status: done.status, said: done.stdout + done.stderr };
}

/** Loss and norm of a step of a policy on so many ranks, and the logprobs after it. */
function step(ranks: number, contextParallel = 1): number[] {
  const script = `
    import { Policy } from "./dist/index.js";
    const config = {
      vocab_size: 64, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 1, num_attention_heads: 2,
      num_key_value_heads: 1, head_dim: 64, max_position_embeddings: 128, rope_theta: 10_000, rms_norm_eps: 1e-6,
      tie_word_embeddings: true, attention_bias: true,
    };
    const policy = await Policy.create(config, { device: "cuda", seed: 3n, ranks: ${ranks}, contextParallel: ${contextParallel} });
    const tokens = Int32Array.from({ length: 40 }, (_, i) => (i * 37 + 11) % 64);
    const weight = new Float32Array(40).fill(1 / 36);
    for (const first of [0, 12, 21, 35]) weight[first] = 0;
    const batch = { tokens, lengths: Int32Array.of(12, 9, 14, 5), weight };
    const { loss } = await policy.accumulate(batch, { objective: "nll" });
    const { gradientNorm } = await policy.optimise({ learningRate: 1e-2 });
    const after = await policy.score({ tokens, lengths: batch.lengths });
    console.log(JSON.stringify([loss, gradientNorm, after.logprob.reduce((a, b) => a + b, 0)]));
    await policy.dispose();`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
    encoding: "utf8",
    env: environment,
    timeout: 100_000,
  });
  expect(stderr).toBe("");
  return JSON.parse(stdout);
}

test("a policy on ranks with a GPU each learns what one learns alone", () => {
  const [loss, norm, after] = step(1);
  const [lossOfTwo, normOfTwo, afterOfTwo] = step(2);
  const [lossOfFour, normOfFour] = step(4, 2);
  // Rows know nothing of the ranks; gradients are float32 sums in another order, and weights are rounded to bf16.
  expect(Math.abs((lossOfTwo as number) / (loss as number) - 1)).toBeLessThan(1e-6);
  expect(Math.abs((normOfTwo as number) / (norm as number) - 1)).toBeLessThan(1e-4);
  expect(Math.abs((afterOfTwo as number) / (after as number) - 1)).toBeLessThan(1e-2);
  // Parts of an attention are rounded to bf16 where one GPU rounds the whole.
  expect(Math.abs((lossOfFour as number) / (loss as number) - 1)).toBeLessThan(1e-3);
  expect(Math.abs((normOfFour as number) / (norm as number) - 1)).toBeLessThan(1e-2);
});

describe("the check of NCCL", () => {
  test("passes with one rank and several, and writes what it found", () => {
    const { status, said } = nccl(["--ranks", "1,3"]);
    expect(said).toContain("several ranks on one GPU: yes");
    expect(status, said).toBe(0);
    const { results } = parseResults(
      JSON.parse(readFileSync(path.join(folder, "nccl-emulated.json"), "utf8")),
    );
    expect(results.every(({ value }) => value === 0)).toBe(true);
    const names = results.map(({ name }) => name);
    for (const name of [
      "1 ranks, all_reduce of 5000 x f32",
      "3 ranks, exchange of 5000 x f32",
      "3 ranks, the bits of a sum, again",
      "3 ranks, ranks that disagree",
      "3 ranks, a rank that is missing",
    ])
      expect(names).toContain(name);
  });

  test("fails where NCCL does, and says what it said", () => {
    rmSync(path.join(folder, "nccl-emulated.json"), { force: true });
    const { status, said } = nccl(["--ranks", "1"], { NCCL_MULTI_RANK_GPU_ENABLE: "0" });
    expect(status).toBe(1);
    expect(said).toContain("NCCL failed on rank 0 of 1 in join: invalid usage (two ranks on one GPU)");
  });

  test("names an NCCL that is too old", () => {
    const { status, said } = nccl([], { TOKENRING_NCCL_DOUBLE_VERSION: "21602" });
    expect(status).toBe(1);
    expect(said).toContain("is NCCL 2.16.2; install NCCL 2.18.1 or newer");
  });
});
