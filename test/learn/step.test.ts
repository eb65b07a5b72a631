import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ACTION } from "../../lib/agent/types.ts";
import { isTokenringError } from "../../lib/errors.ts";
import { learningRate } from "../../lib/learn/schedule.ts";
import { type SftStep, sft } from "../../lib/learn/sft.ts";
import { type StepOptions, trainStep } from "../../lib/learn/step.ts";
import { demonstrationDocument, trajectoryDocument } from "../../lib/learn/weights.ts";
import { Policy } from "../../lib/policy/policy.ts";
import type { LossResult } from "../../lib/policy/types.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";
import { PolicyDouble, trajectory } from "./doubles.ts";

const CLIP = { objective: "ppo_clip", clipLow: 0.2, clipHigh: 0.3, temperature: 1 } as const;

function step(policy: PolicyDouble, overrides: Partial<StepOptions> = {}): ReturnType<typeof trainStep> {
  const documents = [0, 1, 2].map((rollout) =>
    trajectoryDocument(trajectory({ rollout }), { advantage: [1, -0.5, -0.5][rollout] as number }),
  );
  return trainStep({
    policy,
    documents,
    loss: CLIP,
    optimiser: { learningRate: 1e-3 },
    microBatchTokens: 64,
    logprobTolerance: 0,
    ...overrides,
  });
}

async function failure(promise: Promise<unknown>): Promise<Error & { code?: string; details?: unknown }> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing was thrown");
}

describe("one optimiser step", () => {
  test("advantages, weights and behaviour logprobs reach the policy aligned with their tokens", async () => {
    const policy = new PolicyDouble();
    await step(policy);
    expect(policy.calls).toHaveLength(1);
    const { batch, loss } = policy.calls[0] as (typeof policy.calls)[0];
    expect(loss).toEqual(CLIP);
    expect([...batch.lengths]).toEqual([11, 11, 11]);
    let at = 0;
    for (const [rollout, advantage] of [1, -0.5, -0.5].entries()) {
      const made = trajectory({ rollout });
      for (let i = 0; i < 11; i++, at++) {
        const action = made.provenance[i] === 2;
        expect(batch.tokens[at]).toBe(made.tokens[i]);
        expect(batch.advantage?.[at]).toBe(advantage);
        expect(batch.oldLogprob?.[at]).toBe(made.logprobs[i]);
        // Five action tokens in each of three trajectories.
        expect(batch.weight[at]).toBe(action ? Math.fround(1 / 15) : 0);
      }
    }
  });

  test("gradients and metrics do not depend on the micro-batch (property)", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 9 }),
        fc.integer({ min: 1, max: 80 }),
        async (actions, microBatchTokens) => {
          const documents = actions.map((action, rollout) =>
            trajectoryDocument(trajectory({ rollout, turns: [{ action, observation: 0 }] }), {
              advantage: rollout % 2 === 0 ? 1 : -0.75,
            }),
          );
          const whole = new PolicyDouble();
          const split = new PolicyDouble();
          const a = await step(whole, { documents, microBatchTokens: 10_000 });
          const b = await step(split, { documents, microBatchTokens });
          expect(whole.calls).toHaveLength(1);
          // As few calls as the limit allows: each is within it or holds one document, and none has room for the next.
          const lengths = split.calls.map((call) => [...call.batch.lengths]);
          expect(lengths.flat()).toEqual(actions.map((action) => 4 + action));
          for (const [i, call] of lengths.entries()) {
            const size = call.reduce((sum, length) => sum + length, 0);
            expect(size <= microBatchTokens || call.length === 1).toBe(true);
            expect(size + (lengths[i + 1]?.[0] ?? Number.POSITIVE_INFINITY)).toBeGreaterThan(
              microBatchTokens,
            );
          }
          // The double sums in float64 in the order of the documents, so equal means equal.
          expect(split.optimised[0]?.gradient).toEqual(whole.optimised[0]?.gradient);
          expect(b.gradientNorm).toBe(a.gradientNorm);
          const rounded = { loss: 0, approximateKl: 0, learnMs: 0 };
          expect({ ...b, ...rounded }).toEqual({ ...a, ...rounded });
          // Micro-batch sums are added to each other, so the last bits of a float64 may differ.
          expect(b.loss).toBeCloseTo(a.loss, 12);
          expect(b.approximateKl).toBeCloseTo(a.approximateKl, 12);
          let weight = 0;
          for (const call of split.calls) for (const w of call.batch.weight) weight += w;
          expect(weight).toBeCloseTo(1, 5);
        },
      ),
    );
  });

  test("metrics are means over the action tokens", async () => {
    const policy = new PolicyDouble({ drift: 0.5 });
    expect(await step(policy)).toMatchObject({
      entropy: 0.5,
      clipLow: 0,
      clipHigh: 0,
      approximateKl: 0,
      tokens: 15,
      trajectories: 3,
      learningRate: 1e-3,
      mismatch: { p50: 0, p95: 0, max: 0, outside: 0, k3: 0 },
      packedTokens: 33,
    });
    // After one step the ratio is exp(0.5) = 1.65 everywhere: clipped high where the advantage is positive.
    const second = await step(policy);
    expect(second.clipHigh).toBeCloseTo(1 / 3, 12);
    expect(second.clipLow).toBe(0);
    // float32 logprobs around 1: their difference is good to 1e-7.
    expect(second.approximateKl).toBeCloseTo(Math.exp(0.5) - 0.5 - 1, 6);
    expect(second.mismatch).toBeNull();
  });

  test("cross entropy gets no advantages and no behaviour logprobs", async () => {
    const policy = new PolicyDouble();
    await step(policy, { loss: { objective: "nll" } });
    expect(Object.keys(policy.calls[0]?.batch ?? {}).sort()).toEqual(["lengths", "tokens", "weight"]);
  });

  test("the clipped loss refuses documents without advantage", async () => {
    const error = await failure(step(new PolicyDouble(), { documents: [trajectoryDocument(trajectory())] }));
    expect(error.message).toMatch(/ppo_clip needs advantages .* document i0-0/);
  });

  test("documents without loss are left out, and a step of nothing is refused", async () => {
    const policy = new PolicyDouble();
    const silent = trajectoryDocument(trajectory({ turns: [] }), { advantage: 1 });
    const spoken = trajectoryDocument(trajectory(), { advantage: 1 });
    expect(await step(policy, { documents: [silent, spoken] })).toMatchObject({ trajectories: 1, tokens: 5 });
    expect((await failure(step(policy, { documents: [silent] }))).message).toMatch(/none of the 1 documents/);
  });
});

describe("the sampler's logprobs are the trainer's", () => {
  test("the smallest difference is an error that names the place, and nothing is learnt", async () => {
    const policy = new PolicyDouble();
    // One float32 ulp around 1.
    policy.error = 2 ** -22;
    const error = await failure(step(policy));
    expect(isTokenringError(error, "ERR_TOKENRING_LOGPROB_MISMATCH")).toBe(true);
    expect(error.message).toMatch(/trajectory i0-0, token 4 \(id \d+\)/);
    expect(error.details).toMatchObject({ trajectory: "i0-0", token: 4, tolerance: 0 });
    expect([policy.optimised.length, policy.dropped]).toEqual([0, 1]);
  });

  test("a tolerance lets small differences pass and reports the largest", async () => {
    const policy = new PolicyDouble();
    policy.error = 2 ** -10;
    const metrics = await step(policy, { logprobTolerance: 1e-2 });
    expect(metrics.mismatch?.max).toBeCloseTo(2 ** -10, 6);
    expect((await failure(step(new PolicyDouble(), { logprobTolerance: -1 }))).name).toBe("TokenringError");
  });

  test("not a number is a mismatch", async () => {
    const policy = new PolicyDouble();
    policy.error = Number.NaN;
    const error = await failure(step(policy, { loss: CLIP }));
    expect(isTokenringError(error, "ERR_TOKENRING_LOGPROB_MISMATCH")).toBe(true);
  });

  test("after an update the samples are of other weights: measured by the KL, not judged", async () => {
    const policy = new PolicyDouble({ drift: 0.1 });
    await step(policy);
    expect((await step(policy)).mismatch).toBeNull();
    expect(policy.optimised).toHaveLength(2);
  });
});

describe("failures leave the weights alone", () => {
  test("an abort between micro-batches drops the gradients", async () => {
    const controller = new AbortController();
    class Aborting extends PolicyDouble {
      override accumulate(...args: Parameters<PolicyDouble["accumulate"]>): Promise<LossResult> {
        controller.abort(new Error("enough"));
        return super.accumulate(...args);
      }
    }
    const policy = new Aborting();
    const error = await failure(step(policy, { signal: controller.signal, microBatchTokens: 11 }));
    expect(isTokenringError(error, "ERR_TOKENRING_ABORTED")).toBe(true);
    expect((error.cause as Error).message).toBe("enough");
    expect([policy.calls.length, policy.optimised.length, policy.dropped]).toEqual([1, 0, 1]);
  });

  test("an abort within a pass is an abort of the step, with the signal's reason as its cause", async () => {
    const controller = new AbortController();
    class Stopped extends PolicyDouble {
      override async accumulate(...args: Parameters<PolicyDouble["accumulate"]>): Promise<LossResult> {
        await super.accumulate(...args);
        controller.abort();
        throw args[2]?.signal?.reason;
      }
    }
    const policy = new Stopped();
    const error = await failure(step(policy, { signal: controller.signal }));
    expect(isTokenringError(error, "ERR_TOKENRING_ABORTED")).toBe(true);
    expect(error.cause).toBe(controller.signal.reason);
    expect([policy.optimised.length, policy.dropped]).toEqual([0, 1]);
  });

  test("an abort within the native pass leaves version and gradients as they were", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const controller = new AbortController();
    const accumulate = policy.accumulate.bind(policy);
    policy.accumulate = (...args) => {
      const pass = accumulate(...args);
      controller.abort();
      return pass;
    };
    const documents = Array.from({ length: 4 }, (_, i) =>
      demonstrationDocument(`d${i}`, ids(`d${i}`, 512), new Uint8Array(512).fill(ACTION)),
    );
    const error = await failure(
      trainStep({
        policy,
        documents,
        loss: { objective: "nll" },
        optimiser: { learningRate: 1e-3 },
        microBatchTokens: 2048,
        signal: controller.signal,
      }),
    );
    expect(isTokenringError(error, "ERR_TOKENRING_ABORTED")).toBe(true);
    expect(error.cause).toBe(controller.signal.reason);
    expect(await policy.optimise({ learningRate: 0 })).toMatchObject({ gradientNorm: 0, step: 1 });
  });

  test("a loss that is not finite stops before the update", async () => {
    class Broken extends PolicyDouble {
      override async accumulate(...args: Parameters<PolicyDouble["accumulate"]>): Promise<LossResult> {
        return { ...(await super.accumulate(...args)), loss: Number.POSITIVE_INFINITY };
      }
    }
    const policy = new Broken();
    const error = await failure(step(policy));
    expect(isTokenringError(error, "ERR_TOKENRING_NON_FINITE")).toBe(true);
    expect([policy.optimised.length, policy.dropped]).toEqual([0, 1]);
  });
});

describe("learning rate", () => {
  test("linear warm-up, then a cosine to the floor", () => {
    const schedule = { peak: 2, warmupSteps: 4, totalSteps: 14, floor: 0.1 };
    expect([0, 1, 2, 3, 4].map((i) => learningRate(i, schedule))).toEqual([0.5, 1, 1.5, 2, 2]);
    expect(learningRate(9, schedule)).toBeCloseTo(2 * (0.1 + 0.9 / 2), 12);
    expect(learningRate(14, schedule)).toBeCloseTo(0.2, 12);
    expect(learningRate(99, schedule)).toBeCloseTo(0.2, 12);
  });

  test("without a total it stays", () => {
    expect(learningRate(1000, { peak: 3 })).toBe(3);
  });
});

describe("sft", () => {
  test("takes one step a batch, pulls no batch early and follows the schedule", async () => {
    const policy = new PolicyDouble();
    let pulled = 0;
    function* batches(): Generator<ReturnType<typeof trajectoryDocument>[]> {
      for (let i = 0; i < 4; i++) {
        pulled++;
        yield [trajectoryDocument(trajectory({ rollout: i }))];
      }
    }
    const seen: SftStep[] = [];
    for await (const one of sft({ policy, batches: batches(), schedule: { peak: 1, warmupSteps: 2 } })) {
      seen.push(one);
      expect(pulled).toBe(seen.length);
    }
    expect(seen.map((one) => one.metrics.learningRate)).toEqual([0.5, 1, 1, 1]);
    expect(policy.calls.every((call) => call.loss.objective === "nll")).toBe(true);
  });

  test("goes on from a step, and leaves off when the reader does", async () => {
    const policy = new PolicyDouble();
    let closed = false;
    async function* batches(): AsyncGenerator<ReturnType<typeof trajectoryDocument>[]> {
      try {
        for (;;) yield [trajectoryDocument(trajectory())];
      } finally {
        closed = true;
      }
    }
    const loop = sft({ policy, batches: batches(), schedule: { peak: 1, warmupSteps: 10 }, startStep: 4 });
    for await (const { step: at, metrics } of loop) {
      expect([at, metrics.learningRate]).toEqual([4, 0.5]);
      break;
    }
    expect(closed).toBe(true);
    expect(policy.version).toBe(1);
  });
});
