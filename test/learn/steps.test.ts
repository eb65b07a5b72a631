// Steps that follow each other: what is queued when, and what is left when one of them fails or the reader stops.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as eventLoopTurn } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ACTION } from "../../lib/agent/types.ts";
import { type SftOptions, sft } from "../../lib/learn/sft.ts";
import type { StepOptions } from "../../lib/learn/step.ts";
import { trainSteps } from "../../lib/learn/steps.ts";
import type { StepMetrics } from "../../lib/learn/types.ts";
import { demonstrationDocument, type TrainingDocument, trajectoryDocument } from "../../lib/learn/weights.ts";
import { Policy } from "../../lib/policy/policy.ts";
import type { LossResult, OptimiserResult } from "../../lib/policy/types.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";
import { PolicyDouble, trajectory } from "./doubles.ts";

/** Writes down what it is asked and when it answers; answers one call after the other, some turns of the event loop each. */
class Slow extends PolicyDouble {
  readonly log: string[] = [];
  /** Passes, by their number, that fail. */
  readonly bad = new Set<number>();
  badUpdate: number | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #passes = 0;
  #updates = 0;

  #queue<T>(name: string, work: () => Promise<T>): Promise<T> {
    this.log.push(name);
    const result = this.#last.then(async () => {
      for (let i = 0; i < 3; i++) await eventLoopTurn();
      this.log.push(`${name} done`);
      return work();
    });
    this.#last = result.catch(() => {});
    return result;
  }

  override accumulate(...args: Parameters<PolicyDouble["accumulate"]>): Promise<LossResult> {
    const pass = this.#passes++;
    return this.#queue(`pass ${pass}`, async () => {
      args[2]?.signal?.throwIfAborted();
      if (this.bad.has(pass)) throw new Error(`pass ${pass} broke`);
      return super.accumulate(...args);
    });
  }

  override optimise(...args: Parameters<PolicyDouble["optimise"]>): Promise<OptimiserResult> {
    const update = this.#updates++;
    return this.#queue(`update ${update}`, async () => {
      if (this.badUpdate === update) throw new Error(`update ${update} broke`);
      return super.optimise(...args);
    });
  }

  override dropGradients(): Promise<void> {
    return this.#queue("drop", () => super.dropGradients());
  }
}

const demonstration = (index: number, length = 24): TrainingDocument =>
  demonstrationDocument(`d${index}`, ids(`steps-${index}`, length), new Uint8Array(length).fill(ACTION));

function options(policy: StepOptions["policy"], index: number, more: Partial<StepOptions> = {}): StepOptions {
  return {
    policy,
    documents: [trajectoryDocument(trajectory({ rollout: index }))],
    loss: { objective: "nll" },
    optimiser: { learningRate: 1e-3 },
    microBatchTokens: 4096,
    where: `step ${index}`,
    ...more,
  };
}

async function settled(): Promise<void> {
  for (let i = 0; i < 20; i++) await eventLoopTurn();
}

describe("steps taken ahead", () => {
  test("the next pass is queued behind the update, and no update before its step is asked for", async () => {
    const policy = new Slow();
    const loop = trainSteps(
      [0, 1, 2].map((i) => options(policy, i)),
      { ahead: true },
    );
    expect((await loop.next()).value).toMatchObject({ learningRate: 1e-3 });
    // Queued before the first pass was heard of.
    expect(policy.log.slice(0, 4)).toEqual(["pass 0", "update 0", "pass 1", "pass 0 done"]);
    await settled();
    expect(policy.log.slice(4)).toEqual(["update 0 done", "pass 1 done"]);
    expect(policy.version).toBe(1);
    await loop.next();
    expect(policy.log.slice(6)).toEqual(["update 1", "pass 2", "update 1 done"]);
    await loop.next();
    expect(await loop.next()).toEqual({ done: true, value: undefined });
    expect(policy.log.slice(9)).toEqual(["update 2", "pass 2 done", "update 2 done"]);
    expect(policy.dropped).toBe(0);
  });

  test("without it nothing is queued before it is asked for", async () => {
    const policy = new Slow();
    const loop = trainSteps([0, 1].map((i) => options(policy, i)));
    await loop.next();
    await settled();
    expect(policy.log).toEqual(["pass 0", "update 0", "pass 0 done", "update 0 done"]);
    await loop.return();
    expect(policy.dropped).toBe(0);
  });

  test("of a step in several passes the update comes after the last, and the next step after that", async () => {
    const policy = new Slow();
    const documents = [0, 1, 2].map((rollout) => trajectoryDocument(trajectory({ rollout })));
    const one = (index: number): StepOptions => options(policy, index, { documents, microBatchTokens: 11 });
    const loop = trainSteps([one(0), one(1)], { ahead: true });
    await loop.next();
    await loop.next();
    const asked = policy.log.filter((line) => !line.endsWith("done"));
    expect(asked.map((line) => line.split(" ")[0])).toEqual([
      "pass",
      "pass",
      "pass",
      "update",
      "pass",
      "pass",
      "pass",
      "update",
    ]);
    expect(policy.optimised.map(({ gradient }) => gradient)).toEqual([
      policy.optimised[0]?.gradient,
      policy.optimised[0]?.gradient,
    ]);
  });

  test("samples of the weights that are to be changed are judged before the update is queued", async () => {
    const policy = new Slow();
    const judged = { logprobTolerance: 0 };
    const loop = trainSteps(
      [0, 1].map((i) => options(policy, i, judged)),
      { ahead: true },
    );
    await loop.next();
    await loop.next();
    expect(policy.log.slice(0, 4)).toEqual(["pass 0", "pass 0 done", "update 0", "pass 1"]);
    // From the second step on they are of other weights, and nothing is judged.
    expect(policy.optimised).toHaveLength(2);
    const off = new Slow();
    off.error = 1;
    const broken = trainSteps(
      [0, 1].map((i) => options(off, i, judged)),
      { ahead: true },
    );
    await expect(broken.next()).rejects.toMatchObject({ code: "ERR_TOKENRING_LOGPROB_MISMATCH" });
    expect([off.optimised.length, off.calls.length, off.dropped]).toEqual([0, 1, 1]);
  });

  test("a pass that fails leaves out its update and all that follows", async () => {
    const policy = new Slow();
    policy.bad.add(0);
    // As the policy does: an update behind a pass that failed is left out.
    policy.badUpdate = 0;
    const loop = trainSteps(
      [0, 1, 2].map((i) => options(policy, i)),
      { ahead: true },
    );
    await expect(loop.next()).rejects.toThrow("pass 0 broke");
    expect(policy.optimised).toHaveLength(0);
    expect(policy.log.filter((line) => line === "drop").length).toBeGreaterThan(0);
    expect(policy.log.lastIndexOf("pass 1")).toBeLessThan(policy.log.lastIndexOf("drop"));
    expect(policy.log).not.toContain("pass 2");
    expect(await loop.next()).toEqual({ done: true, value: undefined });
  });

  test("an update that fails drops the pass behind it", async () => {
    const policy = new Slow();
    policy.badUpdate = 0;
    const loop = trainSteps(
      [0, 1].map((i) => options(policy, i)),
      { ahead: true },
    );
    await expect(loop.next()).rejects.toThrow("update 0 broke");
    expect(policy.log.at(-1)).toBe("drop done");
    expect([policy.optimised.length, policy.version]).toEqual([0, 0]);
  });

  test("a pass that failed between two steps is heard of when its step is asked for, and updates nothing", async () => {
    const policy = new Slow();
    policy.bad.add(1);
    const loop = trainSteps(
      [0, 1].map((i) => options(policy, i)),
      { ahead: true },
    );
    await loop.next();
    await settled();
    await expect(loop.next()).rejects.toThrow("pass 1 broke");
    expect([policy.optimised.length, policy.version, policy.dropped]).toEqual([1, 1, 1]);
  });

  test("what is wrong with the next step is said when it is asked for", async () => {
    const policy = new Slow();
    const silent = options(policy, 1, { documents: [trajectoryDocument(trajectory({ turns: [] }))] });
    const loop = trainSteps([options(policy, 0), silent], { ahead: true });
    expect((await loop.next()).done).toBe(false);
    await expect(loop.next()).rejects.toThrow("step 1: none of the 1 documents");
    expect(policy.version).toBe(1);

    const ended = new Error("no more");
    function* source(): Generator<StepOptions> {
      yield options(policy, 0);
      throw ended;
    }
    const other = trainSteps(source(), { ahead: true });
    expect((await other.next()).done).toBe(false);
    await expect(other.next()).rejects.toBe(ended);
  });

  test("a reader that stops leaves the weights of its step and no gradients, and closes the source", async () => {
    const policy = new Slow();
    let closed = false;
    async function* source(): AsyncGenerator<StepOptions> {
      try {
        for (let i = 0; ; i++) yield options(policy, i);
      } finally {
        closed = true;
      }
    }
    for await (const _ of trainSteps(source(), { ahead: true })) break;
    expect([closed, policy.version, policy.optimised.length]).toEqual([true, 1, 1]);
    expect(policy.log.at(-1)).toBe("drop done");
  });

  test("an abort between two steps ends the next one, and the weights stay those of the last", async () => {
    const policy = new Slow();
    const controller = new AbortController();
    const aborted = { signal: controller.signal };
    const loop = trainSteps(
      [0, 1].map((i) => options(policy, i, aborted)),
      { ahead: true },
    );
    await loop.next();
    controller.abort(new Error("enough"));
    await expect(loop.next()).rejects.toMatchObject({
      code: "ERR_TOKENRING_ABORTED",
      message: expect.stringMatching("step 1"),
      cause: controller.signal.reason,
    });
    expect([policy.version, policy.optimised.length]).toEqual([1, 1]);
    expect(policy.log.at(-1)).toBe("drop done");
  });
});

describe("over the native policy", () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "tokenring-steps-"));
  });
  afterEach(() => rm(directory, { recursive: true }));

  const learn = (policy: Policy, more: Partial<SftOptions> = {}): ReturnType<typeof sft> =>
    sft({
      policy,
      batches: [0, 1, 2, 3].map((i) => [demonstration(2 * i), demonstration(2 * i + 1)]),
      schedule: { peak: 1e-2 },
      microBatchTokens: 24,
      ...more,
    });
  const weights = async (policy: Policy, name: string): Promise<Buffer> => {
    await policy.save(join(directory, name), { optimiser: true });
    return readFile(join(directory, name, "model.safetensors"));
  };
  const gradientNorm = async (policy: Policy): Promise<number> =>
    (await policy.optimise({ learningRate: 0 })).gradientNorm;

  test("gives the same bits as step by step, and between two steps the weights are the step's", async () => {
    const runs: { metrics: Omit<StepMetrics, "learnMs">; weights: Buffer }[][] = [];
    for (const ahead of [false, true]) {
      await using policy = await Policy.create(TINY, LIVELY);
      const seen: (typeof runs)[0] = [];
      for await (const { step, metrics } of learn(policy, { ahead })) {
        const { learnMs: _, ...rest } = metrics;
        seen.push({ metrics: rest, weights: await weights(policy, `${ahead}-${step}`) });
      }
      expect(seen).toHaveLength(4);
      runs.push(seen);
    }
    expect(runs[1]).toEqual(runs[0]);
  });

  test("goes on from a checkpoint between two steps as if nothing had happened", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const whole: number[] = [];
    for await (const { step, metrics } of learn(policy, { ahead: true })) {
      if (step === 1) await policy.save(join(directory, "one"), { optimiser: true });
      whole.push(metrics.loss);
    }
    const last = await weights(policy, "whole");
    await using other = await Policy.create(TINY, { seed: 99 });
    await other.load(join(directory, "one"), { optimiser: true });
    const batches = [2, 3].map((i) => [demonstration(2 * i), demonstration(2 * i + 1)]);
    const rest: number[] = [];
    for await (const { metrics } of learn(other, { ahead: true, batches, startStep: 2 }))
      rest.push(metrics.loss);
    expect(rest).toEqual(whole.slice(2));
    expect(await weights(other, "resumed")).toEqual(last);
  });

  test("weights that are loaded between two steps are those of the next", async () => {
    const losses: number[][] = [];
    for (const ahead of [false, true]) {
      await using policy = await Policy.create(TINY, LIVELY);
      await policy.save(join(directory, "start"), { optimiser: true });
      const seen: number[] = [];
      for await (const { step, metrics } of learn(policy, { ahead })) {
        seen.push(metrics.loss, metrics.gradientNorm);
        if (step === 1) await policy.load(join(directory, "start"), { optimiser: true });
      }
      losses.push(seen);
    }
    expect(losses[1]).toEqual(losses[0]);
  });

  test("a number that is none stops it with the weights of the step before and no gradients", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const clipped = (index: number, logprob: number): StepOptions => {
      const document = trajectoryDocument(trajectory({ rollout: index }), { advantage: 1 });
      document.oldLogprob?.fill(logprob);
      return options(policy, index, { documents: [document], loss: { objective: "ppo_clip" } });
    };
    const steps = [clipped(0, -1), clipped(1, Number.NaN), clipped(2, -1)];
    const loop = trainSteps(steps, { ahead: true });
    await loop.next();
    const before = await weights(policy, "before");
    await expect(loop.next()).rejects.toMatchObject({
      code: "ERR_TOKENRING_NON_FINITE",
      message: expect.stringMatching(/step 1: .*documents i0-1/),
    });
    expect(await weights(policy, "after")).toEqual(before);
    expect(await gradientNorm(policy)).toBe(0);
  });

  test("an abort in the pass that was queued ahead keeps the weights of the step before", async () => {
    await using policy = await Policy.create(TINY, LIVELY);
    const controller = new AbortController();
    const long = [[demonstration(0)], Array.from({ length: 8 }, (_, i) => demonstration(i, 512))];
    const loop = learn(policy, {
      ahead: true,
      batches: long,
      microBatchTokens: 4096,
      signal: controller.signal,
    });
    await loop.next();
    controller.abort();
    const { version } = policy;
    const before = await weights(policy, "before");
    await expect(loop.next()).rejects.toMatchObject({ code: "ERR_TOKENRING_ABORTED" });
    expect(await weights(policy, "after")).toEqual(before);
    expect([policy.version, await gradientNorm(policy)]).toEqual([version, 0]);
  });

  test("a policy that is disposed of between two steps ends the loop with that", async () => {
    const policy = await Policy.create(TINY, LIVELY);
    const loop = learn(policy, { ahead: true });
    await loop.next();
    await policy.dispose();
    await expect(loop.next()).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });

    const other = await Policy.create(TINY, LIVELY);
    const stopped = learn(other, { ahead: true });
    await stopped.next();
    await other.dispose();
    expect(await stopped.return()).toEqual({ done: true, value: undefined });
  });
});
