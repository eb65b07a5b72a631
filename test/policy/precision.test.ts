// The option `precision`: it reaches the native code, and a policy in bf16 learns, samples and is saved like another.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, LIVELY, TINY } from "./tiny.ts";

const tokens = ids("precision", 60);
const batch = { tokens, lengths: Int32Array.of(60), weight: new Float32Array(60).fill(1 / 59).fill(0, 0, 1) };

async function logprobs(precision?: "float32" | "bf16"): Promise<Float32Array> {
  await using policy = await Policy.create(TINY, { ...LIVELY, ...(precision && { precision }) });
  return (await policy.score(batch)).logprob;
}

it("is float32 where nothing is said, and bf16 where that is", async () => {
  const [plain, float32, bf16] = [await logprobs(), await logprobs("float32"), await logprobs("bf16")];
  expect(float32).toEqual(plain);
  expect(bf16).not.toEqual(plain);
  // Weights of 0.3 make logits of up to 10, each off by some thousandths of itself.
  for (const [i, value] of plain.entries()) expect(Math.abs((bf16[i] as number) - value)).toBeLessThan(0.3);
});

it("memorises in bf16, and keeps float32 masters on disk", async () => {
  const directory = await mkdtemp(join(tmpdir(), "tokenring-precision-"));
  try {
    await using policy = await Policy.create(TINY, { seed: 1, precision: "bf16" });
    let loss = Number.NaN;
    for (let i = 0; i < 120; i++) {
      loss = (await policy.accumulate(batch, { objective: "nll" })).loss;
      await policy.optimise({ learningRate: 3e-3, weightDecay: 0 });
    }
    expect(loss).toBeLessThan(0.1);
    await policy.save(directory, { optimiser: true });
    await using again = await Policy.load(directory, { optimiser: true, precision: "bf16" });
    expect(await again.score(batch)).toEqual(await policy.score(batch));
    await using exact = await Policy.load(directory);
    expect(await exact.score(batch)).not.toEqual(await policy.score(batch));
  } finally {
    await rm(directory, { recursive: true });
  }
});
