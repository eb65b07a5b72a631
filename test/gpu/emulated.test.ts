// Device "cuda" as a user reaches it, on the emulated GPU: driver, kernels and cuBLASLt are found by name at run time.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import type { MemoryUse } from "../../lib/policy/memory.ts";

const library = path.resolve("build/Release/tokenring_emulated.so");
const folder = mkdtempSync(path.join(tmpdir(), "tokenring-emulated-"));
symlinkSync(library, path.join(folder, "libcuda.so.1"));
afterAll(() => rmSync(folder, { recursive: true }));

const environment = {
  ...process.env,
  LD_LIBRARY_PATH: folder,
  TOKENRING_CUDA_MODULE: library,
  TOKENRING_CUBLASLT: library,
};

/** What gpu/policy.mjs answers, a line each. */
function ask(request: object): Record<string, unknown>[] {
  const { stdout, stderr } = spawnSync(process.execPath, ["gpu/policy.mjs"], {
    input: JSON.stringify(request),
    encoding: "utf8",
    env: environment,
    timeout: 50_000,
  });
  expect(stderr).toBe("");
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

// Heads for the Hopper kernels.
const model = {
  vocab_size: 64,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 64,
  max_position_embeddings: 128,
  rope_theta: 10_000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  attention_bias: true,
};
const document = Array.from({ length: 24 }, (_, i) => (i * 37 + 11) % model.vocab_size);
const far = (a: number[], b: number[]) => Math.max(...a.map((x, i) => Math.abs(x - (b[i] ?? Number.NaN))));

test("doctor finds the GPU", () => {
  const { stdout } = spawnSync(process.execPath, ["dist/cli/main.js", "doctor"], {
    encoding: "utf8",
    env: environment,
    timeout: 50_000,
  });
  expect(stdout).toMatch(/ok +CUDA +an emulated H100/);
});

test("a policy trains on it as on the CPU, with gradients of queries in order and in any order", () => {
  const request = { task: "steps", model, documents: [document], steps: 2 };
  const options = { seed: 3, std: 0.1 };
  const steps = (device: string, more: object = {}) =>
    ask({ ...request, device, options: { ...options, ...more } }) as { logprobs: number[]; norm: number }[];
  const expected = steps("cpu");
  for (const deterministic of [true, false]) {
    const got = steps("cuda", { deterministic });
    expect(got).toHaveLength(2);
    for (const [i, { logprobs, norm }] of got.entries()) {
      // What bf16 rounds, as in the C++ tests of the backend; the second step is of weights that differ already.
      expect(far(logprobs, expected[i]?.logprobs ?? [])).toBeLessThan(0.03 * (i + 1));
      expect(Math.abs(norm / (expected[i]?.norm ?? 0) - 1)).toBeLessThan(0.02 * (i + 1));
    }
  }
});

test("what it samples has the logprobs that it scores", () => {
  const request = { task: "sample", device: "cuda", model, options: { seed: 3, std: 0.1 } };
  const [turn] = ask({ ...request, prompt: document, tokens: 3 }) as {
    logprobs: number[];
    scored: number[];
  }[];
  expect(turn?.logprobs).toHaveLength(3);
  expect(far(turn?.logprobs ?? [], turn?.scored ?? [])).toBeLessThan(0.03);
});

test.each([
  {},
  { activationCheckpointing: true, optimiserBits: 8 },
  { activationCheckpointing: true, offload: "all" },
  { deterministic: false },
])("a policy holds what Policy.memory tells of it, with %j", (options) => {
  const request = { task: "memory", device: "cuda", model, lengths: [70, 31], sessions: [50], options };
  const [{ told, held }] = ask(request) as unknown as [{ told: MemoryUse; held: MemoryUse }];
  expect(Math.abs(told.bytes / held.bytes - 1)).toBeLessThan(0.05);
  expect(told.host).toEqual(held.host);
  expect(told.hostBytes > 0).toBe("offload" in options);
  expect(told.items.map(({ purpose }) => purpose).sort()).toEqual(
    held.items.map(({ purpose }) => purpose).sort(),
  );
});

test("what it offloads changes no number of its steps, and has a lane of its own in a trace", () => {
  const deep = { ...model, num_hidden_layers: 3 };
  const trace = path.join(folder, "offload.trace");
  const steps = (more: object) =>
    ask({
      task: "steps",
      device: "cuda",
      model: deep,
      documents: [document, document.slice(5)],
      steps: 3,
      options: { seed: 3, std: 0.1, activationCheckpointing: true, optimiserBits: 8, ...more },
    });
  const expected = steps({});
  expect(expected).toHaveLength(3);
  expect(steps({ offload: "all", trace })).toEqual(expected);
  const copies = readFileSync(trace, "utf8")
    .split("\n")
    .filter((line) => line.includes('"tid":103') && line.includes('"ph":"X"'))
    .map((line) => JSON.parse(line.replace(/,$/, "")) as { name: string; args: { layer: number } });
  // Of each pass: two layers of three, out and back.
  expect(copies.slice(0, 4).map(({ name, args }) => [name, args.layer])).toEqual([
    ["copy_to_host", 0],
    ["copy_to_host", 1],
    ["copy_to_device", 1],
    ["copy_to_device", 0],
  ]);
  expect(copies).toHaveLength(3 * 4);
});

test("the functions of tokenring/ops take tensors in its memory, and say which they do not take", () => {
  const on = (device: string) => {
    const program = ["test/gpu/ops.mjs", device];
    const { stdout, stderr } = spawnSync(process.execPath, program, {
      encoding: "utf8",
      env: environment,
      timeout: 50_000,
    });
    expect(stderr).toBe("");
    return JSON.parse(stdout) as { device: string; result: Record<string, number[]>; refusals: string[] };
  };
  const [cpu, gpu] = [on("cpu"), on("cuda")];
  expect([cpu.device, gpu.device]).toEqual(["cpu", "cuda"]);
  expect(Object.keys(gpu.result)).toEqual(Object.keys(cpu.result));
  // Both compute in float32, in other orders.
  for (const [name, expected] of Object.entries(cpu.result)) {
    const got = gpu.result[name] ?? [];
    expect(got).toHaveLength(expected.length);
    const largest = Math.max(...expected.map(Math.abs));
    expect(largest).toBeGreaterThan(0);
    expect(far(got, expected) / largest, name).toBeLessThan(1e-5);
  }
  expect(gpu.refusals).toEqual([
    expect.stringMatching(
      /INVALID_ARGUMENT: parameters\[0\]\.weight lies in a GPU's memory, parameters\[0\]\.firstMoment in the host's/,
    ),
    expect.stringMatching(/INVALID_ARGUMENT: options\.weight lies in a GPU's memory, but the host reads it/),
    expect.stringMatching(/INVALID_ARGUMENT: policyLoss: hidden states in a GPU's memory are not taken/),
  ]);
});
