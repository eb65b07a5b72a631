// What Policy.memory tells before there is a policy is what a policy then holds.
import { totalmem } from "node:os";
import { describe, expect, it } from "vitest";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import { lossWeights, type MemoryOptions } from "../../lib/policy/memory.ts";
import { type MemoryUse, type OffloadChoice, Policy } from "../../lib/policy/policy.ts";
import type { PackedBatch } from "../../lib/policy/types.ts";
import { ids, LIVELY, TINY } from "./tiny.ts";

const MODEL = { ...TINY, max_position_embeddings: 1024 };

/** Documents whose loss is the objective's of a plan, on every token that has a prediction. */
function documents(lengths: readonly number[]): PackedBatch {
  const tokens = ids(
    "memory",
    lengths.reduce((sum, length) => sum + length, 0),
  );
  const weight = lossWeights(lengths, 1);
  const advantage = new Float32Array(tokens.length).fill(1);
  const oldLogprob = new Float32Array(tokens.length).fill(-4);
  return { tokens, lengths: Int32Array.from(lengths), weight, advantage, oldLogprob };
}

async function measured(lengths: readonly number[], options: MemoryOptions): Promise<MemoryUse> {
  const { sessions = [], training = true, available: _, signal: __, ...how } = options;
  await using policy = await Policy.create(MODEL, { ...LIVELY, ...how });
  for (const length of sessions) {
    const session = embeddedEngine(policy).open();
    session.extend(ids("prompt", length - 1));
    await session.sample({ maxTokens: 1, stop: [], temperature: 1, seed: 7n });
  }
  if (lengths.length === 0) return await policy.heldMemory();
  const batch = documents(lengths);
  if (training) {
    // One for each data-parallel group, so that every rank has a pass of these lengths.
    const groups = policy.ranks / (how.contextParallel ?? 1);
    await policy.accumulate(documents(new Array<readonly number[]>(groups).fill(lengths).flat()), {
      objective: "ppo_clip",
    });
    await policy.optimise({ learningRate: 1e-3 });
  }
  await policy.score(batch);
  return await policy.heldMemory();
}

describe("Policy.memory", () => {
  it.each<[string, number[], MemoryOptions]>([
    ["a step", [200, 31], {}],
    ["a step with checkpointing", [600], { activationCheckpointing: true }],
    ["operands in bf16", [200, 31], { precision: "bf16" }],
    ["moments in eight bits", [64], { optimiserBits: 8 }],
    ["parts of a batch side by side", new Array<number>(120).fill(200), { threads: 2 }],
    ["scoring", [500], { training: false }],
    ["sampling", [], { sessions: [700], maxBatchTokens: 128 }],
    ["sampling and a step", [300], { sessions: [700] }],
  ])("tells what a policy holds: %s", async (_, lengths, options) => {
    const how = { threads: 1, ...options };
    const told = await Policy.memory(MODEL, lengths, how);
    const held = await measured(lengths, how);
    expect(told).toMatchObject(held);
    expect(told.bytes).toBe(held.items.reduce((sum, { bytes }) => sum + bytes, 0));
    const purposes = told.items.map(({ purpose }) => purpose);
    expect(purposes).toContain("weights");
    expect(purposes.includes("moments")).toBe(lengths.length > 0 && options.training !== false);
    expect(purposes.includes("cache")).toBe(options.sessions !== undefined);
  });

  it.each<[string, MemoryOptions]>([
    ["optimiser's state", { shard: 1 }],
    ["parameters", { shard: 3 }],
    ["documents", { contextParallel: 2 }],
  ])("tells what each of two ranks holds that share the %s", async (_, mesh) => {
    const how = { threads: 1, ranks: 2, ...mesh };
    const told = await Policy.memory(MODEL, [400], how);
    const held = (await measured([400], how)).bytes;
    // Of two ranks that share documents one may hold a row more.
    expect(Math.abs(told.bytes / held - 1)).toBeLessThan(0.05);
    if (mesh.contextParallel === undefined) expect(told.bytes).toBe(held);
  });

  it("tells of a GPU without one, and by how much checkpoints and eight bits are less", async () => {
    const of = async (options: MemoryOptions) =>
      Object.fromEntries(
        (await Policy.memory(MODEL, [1024], { device: "cuda", ...options })).items.map(
          ({ purpose, bytes }) => [purpose, bytes],
        ),
      );
    const [plain, frugal] = [await of({}), await of({ activationCheckpointing: true, optimiserBits: 8 })];
    expect(frugal.activations).toBeLessThan((plain.activations ?? 0) * 0.9);
    // Blocks of 256 begin with each tensor, which of a model this small is felt.
    expect((frugal.moments ?? 0) / (plain.moments ?? 0)).toBeCloseTo(1 / 4 + 1 / 256, 1);
  });

  it("tells what lies on the host in place of the GPU", async () => {
    // Of more parameters than the parts that a step has on the GPU.
    const large = {
      ...MODEL,
      vocab_size: 50_000,
      hidden_size: 1024,
      intermediate_size: 4096,
      num_hidden_layers: 8,
      head_dim: 64,
    };
    const of = (offload: OffloadChoice) =>
      Policy.memory(large, [1024], { device: "cuda", activationCheckpointing: true, offload });
    const [none, checkpoints, optimiser, all] = await Promise.all([
      of("none"),
      of("checkpoints"),
      of("optimiser"),
      of("all"),
    ]);
    expect(none).toMatchObject({ host: [], hostBytes: 0 });
    // The last layer's checkpoints stay: another's are its input and what attention gave, in bf16, and a float32 a head.
    const { hidden_size: h, num_attention_heads: heads, head_dim: d } = large;
    expect(checkpoints.host).toEqual([
      { purpose: "checkpoints", bytes: 7 * 1024 * (2 * (h + heads * d) + 4 * heads) },
    ]);
    const purposes = ({ host }: typeof none) => host.map(({ purpose }) => purpose).sort();
    expect(purposes(optimiser)).toEqual(["moments", "weights"]);
    expect(checkpoints.bytes).toBeLessThan(none.bytes);
    expect(optimiser.bytes).toBeLessThan(none.bytes / 2);
    expect(purposes(all)).toEqual(["checkpoints", "moments", "weights"]);
    expect(all.hostBytes).toBe(checkpoints.hostBytes + optimiser.hostBytes);
  });

  it("refuses to offload on the CPU, and checkpoints that are not made", async () => {
    const message = expect.stringMatching(
      /device "cpu" has all of it there already, so offload must be "none"/,
    );
    const code = "ERR_TOKENRING_INVALID_ARGUMENT";
    for (const offload of ["checkpoints", "optimiser", "all"] as const) {
      const options = { offload, activationCheckpointing: true };
      await expect(Policy.memory(MODEL, [8], options)).rejects.toMatchObject({ code, message });
      await expect(Policy.create(MODEL, options)).rejects.toMatchObject({ code, message });
    }
    await expect(Policy.memory(MODEL, [8], { device: "cuda", offload: "checkpoints" })).rejects.toMatchObject(
      {
        code,
        message: "offload of checkpoints needs activationCheckpointing: without it there are no checkpoints",
      },
    );
    await expect(Policy.create(MODEL, { offload: "weights" as "all" })).rejects.toMatchObject({
      code,
      message: 'options.offload must be "none", "checkpoints", "optimiser" or "all", got "weights"',
    });
  });

  it("says whether it fits", async () => {
    const { bytes, available, fits } = await Policy.memory(MODEL, [100]);
    expect([available, fits]).toEqual([totalmem(), true]);
    expect(await Policy.memory(MODEL, [100], { available: bytes })).toMatchObject({ fits: true });
    expect(await Policy.memory(MODEL, [100], { available: bytes - 1 })).toMatchObject({
      fits: false,
      available: bytes - 1,
    });
  });

  it.each<[number[], MemoryOptions, string]>([
    [[7, 1025], {}, "Policy.memory: lengths[1] is 1025 tokens, more than the model's context (1024)"],
    [
      [],
      { sessions: [2000] },
      "Policy.memory: sessions[0] is 2000 tokens, more than the model's context (1024)",
    ],
    [[0], {}, "Policy.memory: lengths[0] is 0; give a whole number of tokens from 1 up"],
    [[], {}, "Policy.memory: there is nothing to do; give lengths of documents, or sessions"],
    [[8], { ranks: 0 }, "Policy.memory: ranks is 0; give a whole number from 1 up"],
    [
      [8],
      { ranks: 4, contextParallel: 3 },
      "contextParallel: 3 does not divide the 4 ranks; give 1 or another divisor of their number",
    ],
    [[8], { optimiserBits: 16 as 8 }, "options.optimiserBits must be 8 or 32, got 16"],
    [[8], { device: "tpu" as "cpu" }, 'device must be "cpu" or "cuda", got "tpu"'],
  ])("refuses %j with %j", async (lengths, options, message) => {
    await expect(Policy.memory(MODEL, lengths, options)).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message,
    });
  });

  it("ends when it is aborted", async () => {
    const signal = AbortSignal.abort(new Error("enough"));
    await expect(Policy.memory(MODEL, [100], { signal })).rejects.toThrow("enough");
  });
});
