// What goes to a GPU node: the archive's files, the C functions, results in the schema of the benchmarks.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { biggerIsBetter, parseResults } from "../../bench/result.ts";
import { loadBinding } from "../../lib/ops/native.ts";

const folder = mkdtempSync(path.join(tmpdir(), "tokenring-bundle-"));
afterAll(() => rmSync(folder, { recursive: true }));

const TINY = {
  vocab_size: 32,
  hidden_size: 16,
  intermediate_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 1,
  num_key_value_heads: 1,
  head_dim: 16,
  max_position_embeddings: 32,
  rope_theta: 10_000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  attention_bias: true,
};

function python(program: string, ...args: string[]) {
  const env = { ...process.env, PYTHONPATH: "gpu", PYTHONDONTWRITEBYTECODE: "1" };
  return spawnSync("python3", ["-c", program, ...args], { encoding: "utf8", env, timeout: 50_000 });
}

test("results of Python are in the schema, keep what an earlier run did, and tell what failed", () => {
  const file = path.join(folder, "results.json");
  const program = `
import sys
from results import BIGGER_IS_BETTER, EXIT_FAILED, Run
class Device: kind, name = "cuda", "a GPU"
run = Run(sys.argv[1], Device())
run.case("a", lambda run: run.result("a", "tokens/s", [3.0, 1.0, 2.0], "peer", [1.0]))
run.case("b", lambda run: run.limit("b", 2.0, 1.0))
assert run.end() == EXIT_FAILED
again = Run(sys.argv[1], Device(), budget=0)
again.case("a", lambda run: 1 / 0)
again.case("c", lambda run: 1 / 0, seconds=1)
assert again.end() == EXIT_FAILED and again.unfinished == ["c"]
print(",".join(BIGGER_IS_BETTER), file=sys.stderr)
`;
  const { status, stderr } = python(program, file);
  expect({ status, stderr }).toEqual({ status: 0, stderr: "% MFU,% Pass@1,tokens\n" });
  expect(stderr.trim().split(",").every(biggerIsBetter)).toBe(true);
  const { results, machine, notes } = parseResults(JSON.parse(readFileSync(file, "utf8")));
  expect(machine.gpu).toBe("a GPU");
  expect(results).toEqual([
    { name: "a", unit: "tokens/s", value: 2, mad: 1, peer: { name: "peer", value: 1, mad: 0 }, ratio: 2 },
    { name: "b", unit: "error", value: 2, mad: 0, peer: { name: "limit", value: 1, mad: 0 }, ratio: 0.5 },
  ]);
  expect(notes).toEqual(["failed: b is 2, more than 1"]);
});

test("the table of ops is there by C functions, each with its types, and says what a device lacks", () => {
  const program = `
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.tokenring_functions.restype = library.tokenring_error.restype = ctypes.c_char_p
print(library.tokenring_functions().decode())
handle = ctypes.c_void_p()
assert library.tokenring_open(b"tpu", 1, ctypes.byref(handle)) == 1
print(library.tokenring_error().decode())
`;
  const { status, stdout } = python(program, path.resolve("build/Release/tokenring_ops.so"));
  expect(status).toBe(0);
  const listed = new Map(stdout.split("\n").map((line) => line.split(" ") as [string, string]));
  expect(listed.get("rmsnorm_forward")).toBe("pTTTfTTT");
  expect(listed.get("sweep_open")).toBe("sp");
  expect(stdout).toContain('INVALID_ARGUMENT: open: device must be "cpu", "cuda"');
  // Every op has its function.
  const header = readFileSync("native/core/ops.h", "utf8");
  const ops = [...header.matchAll(/^ {2}virtual \S+ (\w+)\(/gm)].map((match) => match[1] ?? "");
  expect(ops.length).toBeGreaterThan(30);
  // How the trainer cuts batches and gathers weights, and what the sampler records; nothing that is computed.
  const hidden = ["near_bytes", "cut_rows", "logits_rows", "mlp_rows", "plain_weights"];
  hidden.push("decode_rows", "decode_keys", "place_sequences");
  expect(ops.filter((op) => !listed.has(op) && !hidden.includes(op))).toEqual([]);
});

test("run.sh says what is missing", () => {
  const run = (...args: string[]) =>
    spawnSync("gpu/run.sh", args, {
      encoding: "utf8",
      env: { ...process.env, TOKENRING_PYTHON: path.join(folder, "no-python") },
      timeout: 20_000,
    });
  expect(run()).toMatchObject({ status: 1, stdout: expect.stringContaining("usage") });
  expect(run("check")).toMatchObject({
    status: 1,
    stderr: expect.stringContaining("no-python was not found"),
  });
});

describe.skipIf(!existsSync("build/cuda/tokenring_sweep.so"))(
  "the bundle, where the kernels were built",
  () => {
    const bundle = path.join(folder, "bundle");
    const alone = { PATH: "/usr/bin:/bin", HOME: folder };
    const inside = (command: string, ...args: string[]) =>
      spawnSync(command, args, { cwd: bundle, encoding: "utf8", env: alone, timeout: 50_000 });

    test("holds all that it needs: its Node trains in an empty environment", () => {
      const laid = spawnSync(process.execPath, ["scripts/gpu-bundle.mjs", "--folder", bundle], {
        encoding: "utf8",
        timeout: 50_000,
      });
      expect(laid).toMatchObject({ status: 0 });
      const doctor = inside("bin/node", "dist/cli/main.js", "doctor");
      expect(doctor.stdout).toMatch(/ok +addon/);
      const help = inside("bin/node", "dist/cli/main.js", "demo", "--help");
      expect(help).toMatchObject({ status: 0, stdout: expect.stringContaining("--device") });
      expect(statSync(path.join(bundle, "run.sh")).mode & 0o111).not.toBe(0);
      const manifest = JSON.parse(readFileSync(path.join(bundle, "manifest.json"), "utf8"));
      expect(Object.keys(manifest.files)).toEqual(
        expect.arrayContaining([
          "bin/node",
          "build/cuda/tokenring_cuda.so",
          "build/Release/tokenring_ops.so",
        ]),
      );
    });

    test("tells what a machine without a GPU lacks", () => {
      const { reason } = loadBinding().cuda();
      const asked = spawnSync("bin/node", ["gpu/policy.mjs"], {
        cwd: bundle,
        input: JSON.stringify({
          task: "steps",
          device: "cuda",
          model: TINY,
          options: {},
          documents: [[1, 2]],
          steps: 0,
        }),
        encoding: "utf8",
        env: alone,
        timeout: 50_000,
      });
      if (reason === null) return; // a machine with one
      expect(asked.status).toBe(1);
      expect(JSON.parse(asked.stdout)).toEqual({
        code: "ERR_TOKENRING_INVALID_ARGUMENT",
        error: expect.stringMatching(/^device "cuda" cannot be used: .*; /),
      });
    });
  },
);
