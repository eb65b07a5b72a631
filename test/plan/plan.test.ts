import { describe, expect, it } from "vitest";
import { H200, readHardware } from "../../lib/plan/hardware.ts";
import { parameterCounts, planEngine } from "../../lib/plan/iteration.ts";
import { candidates, type PlanRequest, plan } from "../../lib/plan/plan.ts";
import { communicationPrices, computeSeconds } from "../../lib/plan/price.ts";
import type { ScheduleEntry } from "../../lib/plan/schedule.ts";
import { knownShape } from "../../lib/plan/shapes.ts";
import { planStep } from "../../lib/plan/step.ts";
import type { DecoderConfig } from "../../lib/policy/types.ts";
import { withFile } from "../support/files.ts";

const cluster = { hardware: H200, gpusPerNode: 8 };
const shape = (name: string): DecoderConfig => knownShape(name) as DecoderConfig;
const alone = { ranks: 1, contextParallel: 1, shard: 0, shardSize: 1, contextSchedule: "ring" } as const;
const entry = (op: string, more: Partial<ScheduleEntry> = {}): ScheduleEntry => ({
  op,
  layer: 0,
  track: "compute",
  after: [],
  bytes: 0,
  flops: 0,
  ...more,
});

describe("a planned step", () => {
  it("computes what the closed forms say, and holds weights, gradients and moments", async () => {
    const config = shape("Qwen/Qwen2.5-0.5B-Instruct");
    const { all, products } = parameterCounts(config);
    // The hub says 494,032,768.
    expect(all).toBe(494_032_768);
    const [tokens, share] = [4096, 0.25];
    const step = await planStep(
      { config, mesh: alone, activationCheckpointing: false, lengths: [tokens], lossShare: share },
      cluster,
    );
    const head = config.vocab_size * config.hidden_size;
    const attention =
      2 * tokens * (tokens + 1) * config.num_hidden_layers * config.num_attention_heads * config.head_dim;
    const layers = 2 * (products - head) * tokens;
    const forward = layers + attention + 2 * head * (tokens - 1);
    // Elementwise ops count FLOPs too; they are below one per cent.
    expect(step.passes.score.flops / forward).toBeGreaterThan(0.999);
    expect(step.passes.score.flops / forward).toBeLessThan(1.01);
    const backward = 2 * layers + 2.5 * attention + 2 * (2 * head * tokens * share);
    const both = layers + attention + 2 * head * tokens * share + backward;
    expect(step.passes.accumulate.flops / both).toBeGreaterThan(0.995);
    expect(step.passes.accumulate.flops / both).toBeLessThan(1.01);

    const held = Object.fromEntries(step.memory.items.map(({ purpose, bytes }) => [purpose, bytes]));
    const near = (bytes: number | undefined, expected: number): void => {
      expect((bytes ?? 0) / expected).toBeGreaterThan(0.999);
      expect((bytes ?? 0) / expected).toBeLessThan(1.01);
    };
    near(held.weights, 4 * all + 2 * products); // float32 masters, bf16 copies of the matrices
    near(held.gradients, 4 * (all + head)); // a tied embedding's and the head's are apart
    near(held.moments, 8 * all);
    const coded = await planStep(
      {
        config,
        mesh: alone,
        activationCheckpointing: false,
        optimiserBits: 8,
        lengths: [tokens],
        lossShare: share,
      },
      cluster,
    );
    const moments = coded.memory.items.find(({ purpose }) => purpose === "moments");
    near(moments?.bytes, 2 * (1 + 4 / 256) * all);
  });

  it("keeps less with activation checkpointing and computes the layers' products once more", async () => {
    const config = shape("Qwen2.5-1.5B");
    const plain = { config, mesh: alone, lengths: [8192], lossShare: 0.2 };
    const [kept, recomputed] = await Promise.all(
      [false, true].map((activationCheckpointing) =>
        planStep({ ...plain, activationCheckpointing }, cluster),
      ),
    );
    const activations = (step: typeof kept): number =>
      step?.memory.items.find(({ purpose }) => purpose === "activations")?.bytes ?? 0;
    expect(activations(recomputed)).toBeLessThan(activations(kept) / 3);
    const { products } = parameterCounts(config);
    const layers = 2 * (products - config.vocab_size * config.hidden_size) * 8192;
    const more = (recomputed?.passes.last.flops ?? 0) - (kept?.passes.last.flops ?? 0);
    // Without the last product of a layer, whose result nobody needs again.
    expect(more / layers).toBeGreaterThan(0.6);
    expect(more / layers).toBeLessThan(1.01);
  });
});

describe("prices", () => {
  it("of copies to the host are bound by its link", () => {
    const bytes = H200.hostLink.value;
    expect(computeSeconds(entry("copy_to_host", { track: "host", bytes }), cluster)).toBeCloseTo(1 + 5e-6, 9);
  });

  it("are bound by products, by attention or by memory", () => {
    const flops = 680e12;
    expect(computeSeconds(entry("linear_forward", { flops }), cluster)).toBeCloseTo(1 + 5e-6, 9);
    expect(computeSeconds(entry("attention_forward", { flops }), cluster)).toBeCloseTo(680 / 640 + 5e-6, 9);
    expect(computeSeconds(entry("attention_backward", { flops }), cluster)).toBeCloseTo(680 / 540 + 5e-6, 9);
    expect(computeSeconds(entry("swiglu_forward", { flops: 1e6, bytes: 4e12 }), cluster)).toBeCloseTo(
      1 + 5e-6,
      9,
    );
  });

  it("of communication know the links within a node and between nodes", () => {
    const bytes = 350e9;
    const call = (op: string, members: number[]): number =>
      communicationPrices(cluster)(entry(op, { bytes }), members);
    expect(call("exchange", [0, 1, 2, 3])).toBeCloseTo(1 + 10e-6, 9);
    // A hop between two nodes has one adapter; eight ranks of a node together have eight, and NVLink is slower then.
    expect(call("exchange", [7, 8])).toBeCloseTo(350 / 46 + 30e-6, 9);
    const all = Array.from({ length: 16 }, (_, i) => i);
    expect(call("all_gather", all)).toBeCloseTo(15 / 16 + 30e-6, 9);
    expect(call("all_reduce", [0, 8])).toBeCloseTo(350 / 46 + 30e-6, 9);
  });

  it("of a group are found once, and are the same to the digit for each of its calls", () => {
    const groups = [[0, 1, 2, 3], [6, 7, 8, 9], [0, 8, 16], Array.from({ length: 128 }, (_, i) => i)];
    const prices = communicationPrices(cluster);
    for (const turn of [1, 2, 3])
      for (const op of ["exchange", "all_gather", "all_reduce", "reduce_scatter"])
        for (const members of groups) {
          const call = entry(op, { bytes: turn * 123_456_789 });
          expect(prices(call, members)).toBe(communicationPrices(cluster)(call, [...members]));
        }
  });

  it("take constants of one's own, and refuse what is none", async () => {
    const own = await withFile(
      '{"products": {"value": 7e14, "source": "cuBLAS here"}, "launch": 4e-6}',
      readHardware,
    );
    expect(own.products).toEqual({ value: 7e14, unit: "FLOP/s", origin: "measured", source: "cuBLAS here" });
    expect(own.launch.origin).toBe("measured");
    expect(own.peak).toBe(H200.peak);
    await expect(withFile('{"product": 7e14}', readHardware)).rejects.toThrow(
      /"product" is no constant; there are peak/,
    );
    await expect(withFile('{"products": -1}', readHardware)).rejects.toThrow(/numbers above 0/);
    await expect(withFile("products", readHardware)).rejects.toThrow(/cannot be read as JSON/);
  });
});

describe("the engine of the rollouts", () => {
  it("holds 72B on eight GPUs of a node, and as many sequences as their keys fit", () => {
    const load = { trajectories: 1000, meanTokens: 65_536 };
    const engine = planEngine(shape("Qwen2.5-72B"), 128, cluster, load);
    expect(engine.tensorParallel * engine.replicas).toBe(128);
    expect(engine.tensorParallel).toBe(4);
    const keys = 4 * 80 * 8 * 128 * 65_536;
    const { all } = parameterCounts(shape("Qwen2.5-72B"));
    expect(engine.batch * keys + 2 * all).toBeLessThanOrEqual(4 * 137e9);
    expect(planEngine(shape("Qwen2.5-72B"), 1, cluster, load).fault).toMatch(/does not fit on the 1 GPUs/);
  });
});

const request = (more: Partial<PlanRequest>): PlanRequest => ({
  config: shape("Qwen2.5-7B"),
  cluster,
  nodes: 1,
  workload: {
    trajectories: 320,
    meanTokens: 16_384,
    maxTokens: 32_768,
    actionTokens: 4_096,
    turns: 30,
    commandSeconds: 2,
    verifySeconds: 60,
    verifications: 64,
    kept: 0.3,
    batchSize: 32,
    scored: true,
  },
  microBatchTokens: 32_768,
  mesh: {},
  activationCheckpointing: undefined,
  ...more,
});

describe("plan", () => {
  it("lists the meshes that the ranks can make, and keeps what is given", () => {
    const all = candidates(request({ activationCheckpointing: true }));
    expect(new Set(all.map(({ mesh }) => mesh.contextParallel))).toEqual(new Set([1, 2, 4, 8]));
    expect(candidates(request({ mesh: { contextParallel: 2, shard: 3, shardSize: 4 } }))).toHaveLength(2);
  });

  it("goes in two levels where a ring's hops between nodes are longer than what hides them", async () => {
    const [ring, levels] = candidates(
      request({
        nodes: 2,
        mesh: { contextParallel: 16, shard: 3, shardSize: 16 },
        activationCheckpointing: true,
      }),
    );
    expect(ring?.mesh).toMatchObject({ contextSchedule: "ring" });
    expect(levels?.mesh).toMatchObject({ contextSchedule: "two_level", contextNode: 8 });
    const step = async (candidate: typeof ring) => {
      const { mesh } = candidate as NonNullable<typeof ring>;
      const config = { ...shape("Qwen2.5-7B"), num_hidden_layers: 4, max_position_embeddings: 65_536 };
      const work = { config, mesh, activationCheckpointing: true, lengths: [16_384], lossShare: 0.2 };
      return planStep(work, cluster, { ranks: 1 }); // of a group, as a search does
    };
    const [slow, fast] = [await step(ring), await step(levels)];
    expect(fast.passes.last.seconds).toBeLessThan(slow.passes.last.seconds);
    expect(fast.passes.last.bound).toBeLessThan(slow.passes.last.bound * 1.05);
    const within = candidates(request({ mesh: { contextParallel: 4, contextSchedule: "two_level" } }));
    expect(within[0]?.mesh.contextNode).toBe(4);
  });

  it("finds a mesh for 7B on one node, whose stations add up", async () => {
    const found = await plan(request({}));
    expect(found.fault).toBeUndefined();
    expect(found.memory.fits).toBe(true);
    expect(found.memory.bytes).toBeLessThanOrEqual(found.memory.limit);
    const { rollout, verify, score, update, weights } = found.stations;
    expect(found.seconds).toBeCloseTo(rollout + verify + score + update + weights, 9);
    expect(verify).toBe(5 * 60);
    expect(score).toBeGreaterThan(0);
    expect(found.update.optimiserSteps).toBe(3);
    expect(found.update.mfu).toBeGreaterThan(0.3);
    expect(found.update.mfu).toBeLessThan(0.7);
    expect(found.update.ofBound).toBeGreaterThan(0.9);
    expect(found.update.ofBound).toBeLessThanOrEqual(1);
    expect(found.gpuHours).toBeCloseTo((8 * found.seconds) / 3600, 9);
  });

  it("names the largest item and a change where it does not fit", async () => {
    const { fault } = await plan(
      request({
        mesh: { contextParallel: 1, shard: 0 },
        activationCheckpointing: false,
        offload: "none",
      }),
    );
    expect(fault?.bytes).toBeGreaterThan(0);
    expect(fault?.cure).toMatch(/shard: 3|shard: 1|contextParallel: \d/);
  });

  it("offloads where nothing fits without, and what is asked for", async () => {
    const small = { cluster: { hardware: H200, gpusPerNode: 1 }, activationCheckpointing: true };
    const { memory, offload, fault, update } = await plan(request(small));
    expect(fault).toBeUndefined();
    expect(offload).toBe("optimiser");
    const { all } = parameterCounts(shape("Qwen2.5-7B"));
    expect(memory.host.map(({ purpose }) => purpose)).toEqual(["moments", "weights"]);
    expect(memory.hostBytes / (12 * all)).toBeCloseTo(1, 2);
    // The masters and moments of a step go over the link, in either direction at once.
    expect(update.optimiserSteps).toBe(3);
    expect(update.exposedSeconds).toBeGreaterThan(3 * ((12 * all) / H200.hostLink.value) * 0.9);
    const { fault: without } = await plan(request({ ...small, offload: "none" }));
    expect(without?.cure).toBe("offload: optimiser");
    const asked = await plan(request({ offload: "all", activationCheckpointing: true }));
    expect(asked.offload).toBe("all");
    expect(asked.memory.host.map(({ purpose }) => purpose)).toContain("checkpoints");
  });

  it("holds what a host may have pinned against what it would", async () => {
    const hostMemory = { ...H200.hostMemory, value: 50e9 };
    const cluster = { hardware: { ...H200, hostMemory }, gpusPerNode: 1 };
    const { memory, fault } = await plan(request({ cluster, offload: "optimiser" }));
    expect(memory.bytes).toBeLessThan(memory.limit);
    expect(memory.hostBytes).toBeGreaterThan(memory.hostLimit);
    expect(memory.fits).toBe(false);
    expect(fault?.item).toBe("moments on the host");
  });

  it("refuses a mesh that the ranks cannot make", async () => {
    await expect(plan(request({ mesh: { contextParallel: 3 } }))).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: expect.stringContaining("must divide the 8 ranks"),
    });
  });
});
