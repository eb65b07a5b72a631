import { describe, expect, test } from "vitest";
import { ACTION } from "../../lib/agent/types.ts";
import { isTokenringError } from "../../lib/errors.ts";
import {
  type DapoCursor,
  type DapoIteration,
  type DapoOptions,
  dapo,
  evenParts,
} from "../../lib/learn/dapo.ts";
import { type RftEvent, type RftOptions, rft } from "../../lib/learn/rft.ts";
import { episode, instance, PolicyDouble, RolloutDouble, trajectory } from "./doubles.ts";

const pool = Array.from({ length: 7 }, (_, i) => instance(`i${i}`));

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = [];
  for await (const one of source) out.push(one);
  return out;
}

describe("rft", () => {
  /** i0 is always solved, i1 now and then, the others never. */
  const rollouts = (): RolloutDouble =>
    new RolloutDouble((one, rollout) =>
      trajectory({
        instanceId: one.instance_id,
        rollout,
        verdict:
          one.instance_id === "i0" || (one.instance_id === "i1" && rollout < 2) ? "resolved" : "failed",
        exit: one.instance_id === "i2" && rollout === 0 ? "infra_failed" : "submitted",
        turns: [
          { action: 3, observation: 2, formatError: rollout === 1 },
          { action: 2, observation: 0 },
        ],
      }),
    );
  const run = (
    policy: PolicyDouble,
    source: RolloutDouble,
    more: Partial<RftOptions> = {},
  ): Promise<RftEvent[]> =>
    all(
      rft({
        policy,
        rollouts: source,
        instances: pool.slice(0, 3),
        config: { rollouts: 4, batchSize: 4, learningRate: 1, warmupSteps: 10 },
        seed: 1,
        ...more,
      }),
    );

  test("keeps what was solved and learns each of it once", async () => {
    const policy = new PolicyDouble();
    const source = rollouts();
    const events = await run(policy, source);
    expect(source.requests[0]).toMatchObject({ rollouts: 4, purpose: "rft", iteration: 0, temperature: 1 });
    const first = events[0];
    if (first?.type !== "rollouts") throw new Error("the rollouts come first");
    expect(first.summary).toMatchObject({
      kept: 6,
      episodes: 11,
      dropped: 1,
      solved: 6,
      steps: 2,
      instances: 3,
      instancesSolved: 2,
      turns: 2,
      formatErrorRate: 3 / 22,
    });
    expect(events.slice(1).map((event) => event.type)).toEqual(["step", "step"]);
    expect(policy.calls.flatMap((call) => [...call.batch.lengths])).toHaveLength(6);
    expect(policy.calls.every((call) => call.loss.objective === "nll")).toBe(true);
    // Warm-up is cut to a quarter of the two steps, so it is none.
    expect(policy.optimised.map((one) => one.options.learningRate)).toEqual([1, 0.5]);
    expect(policy.optimised[0]?.options).toEqual({
      learningRate: 1,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0.1,
      clipNorm: 1,
    });
  });

  test("badly formatted turns carry no loss", async () => {
    const policy = new PolicyDouble();
    await run(policy, rollouts());
    const weighted = policy.calls.map((call) => call.batch.weight.filter((w) => w > 0).length);
    // Four clean trajectories with 5 action tokens, two whose first turn (3 tokens) is masked.
    expect(weighted.reduce((a, b) => a + b, 0)).toBe(4 * 5 + 2 * 2);
  });

  test("the first step's logprobs must be the sampler's", async () => {
    const policy = new PolicyDouble();
    policy.error = 1e-3;
    await expect(run(policy, rollouts())).rejects.toMatchObject({ code: "ERR_TOKENRING_LOGPROB_MISMATCH" });
    const tempered = new PolicyDouble();
    tempered.error = 1e-3;
    const events = await run(tempered, rollouts(), { config: { rollouts: 4, temperature: 0.7 } });
    expect(events[1]).toMatchObject({ type: "step", metrics: { mismatch: null } });
  });

  test("the order is the seed's", async () => {
    const orders = await Promise.all(
      [1, 1, 2].map(async (seed) => {
        const policy = new PolicyDouble();
        await run(policy, rollouts(), { seed });
        return JSON.stringify(policy.calls.map((call) => [...call.batch.tokens]));
      }),
    );
    expect(orders[1]).toBe(orders[0]);
    expect(orders[2]).not.toBe(orders[0]);
  });

  test("nothing solved: an event that says so and no step", async () => {
    const policy = new PolicyDouble();
    const events = await run(
      policy,
      new RolloutDouble((one, rollout) => episode(2, false, { instanceId: one.instance_id, rollout })),
    );
    expect(events).toHaveLength(1);
    expect(events[0]).toMatchObject({ type: "rollouts", summary: { kept: 0, steps: 0 } });
    expect(policy.version).toBe(0);
  });
});

describe("dapo", () => {
  /** i0 always solved, i1 never, the others by the first half of the group; turns grow with the rollout. */
  const rollouts = (version: () => number): RolloutDouble =>
    new RolloutDouble((one, rollout) =>
      episode(rollout + 1, one.instance_id === "i0" || (one.instance_id !== "i1" && rollout < 2), {
        instanceId: one.instance_id,
        rollout,
        version: version(),
      }),
    );
  const run = (policy: PolicyDouble, more: Partial<DapoOptions> = {}): AsyncGenerator<DapoIteration> =>
    dapo({
      policy,
      rollouts: rollouts(() => policy.version),
      instances: pool,
      config: {
        iterations: 1,
        instances: 7,
        rollouts: 4,
        batchSize: 8,
        maxTurns: 8,
        lengthThreshold: 4,
        learningRate: 0.5,
        logprobTolerance: null,
        ...more.config,
      },
      seed: 3,
      ...Object.fromEntries(Object.entries(more).filter(([key]) => key !== "config")),
    });

  test("one iteration: groups, rewards, filter, even steps, metrics", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    const [iteration] = await all(run(policy, { config: { logprobTolerance: 0 } }));
    if (!iteration) throw new Error("one iteration was asked for");
    expect(iteration.summary).toMatchObject({
      groups: 7,
      groupsKept: 5,
      groupsDeadSolved: 1,
      groupsDeadFailed: 1,
      groupsEmpty: 0,
      episodes: 28,
      dropped: 0,
      solved: 14,
      passRate: 0.5,
      reward: 0.5,
      turns: 2.5,
      trained: 20,
      exits: { submitted: 28 },
    });
    // 20 trajectories in steps of at most 8: three steps, as even as can be.
    expect(iteration.steps.map((one) => one.trajectories)).toEqual([6, 7, 7]);
    expect(iteration.steps[0]?.mismatch).toEqual({ p50: 0, p95: 0, max: 0, outside: 0, k3: 0 });
    expect(iteration.steps[1]?.mismatch).toBeNull();
    expect(policy.calls.every((call) => call.loss.clipHigh === 0.3 && call.loss.clipLow === 0.2)).toBe(true);
  });

  test("each trajectory's advantage sits on its tokens; dead groups are not trained on", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    await all(run(policy));
    const seen = new Map<number, number>();
    for (const { batch } of policy.calls) {
      let at = 0;
      for (const length of batch.lengths) {
        // Prompt of 4, then action and observation by turns: the length says how many turns there were.
        const turns = (length - 4 + 1) / 2;
        const lane = batch.advantage?.subarray(at, at + length) as Float32Array;
        expect(new Set(lane).size).toBe(1);
        expect(lane[0]).toBeCloseTo(turns <= 2 ? 1 : -1, 5);
        seen.set(turns, (seen.get(turns) ?? 0) + 1);
        at += length;
      }
    }
    expect([...seen].sort()).toEqual([1, 2, 3, 4].map((turns) => [turns, 5]));
  });

  test("what each step saw of the action tokens that it learnt from comes with the iteration", async () => {
    const policy = new PolicyDouble({ drift: 0.3 });
    const [iteration] = await all(run(policy, { config: { logprobTolerance: 0 } }));
    if (!iteration) throw new Error("one iteration was asked for");
    const trained = iteration.groups.filter((scored) => scored.state === "live");
    const all20 = trained.flatMap((scored) => scored.trajectories);
    expect([...iteration.learnt.keys()].sort()).toEqual(all20.map((one) => one.id).sort());
    const clipped: [number, number, number] = [0, 0, 0];
    for (const one of all20) {
      const learnt = iteration.learnt.get(one.id);
      const at = [...one.provenance.keys()].filter((i) => one.provenance[i] === ACTION);
      const expected = at.map((i) =>
        Math.fround((one.logprobs[i] as number) + 0.3 * (learnt?.step ?? Number.NaN)),
      );
      expect([...(learnt?.logprob ?? [])]).toEqual(expected);
      expect([...(learnt?.entropy ?? [])]).toEqual(at.map(() => 0.5));
      expect(learnt?.flags).toHaveLength(at.length);
      for (const flag of learnt?.flags ?? []) if (flag > 0) clipped[(learnt?.step ?? 0) as 0]++;
    }
    // Nothing can be clipped while the weights are those that sampled.
    expect(clipped[0]).toBe(0);
    expect(clipped).toEqual(
      iteration.steps.map((step) => Math.round((step.clipLow + step.clipHigh) * step.tokens)),
    );
    expect(clipped[2]).toBeGreaterThan(0);
  });

  test("every instance comes once per pass, over iterations that do not divide the pool", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    const source = rollouts(() => policy.version);
    const iterations = await all(run(policy, { rollouts: source, config: { iterations: 7, instances: 3 } }));
    expect(iterations).toHaveLength(7);
    const ids = source.requests.map((request) => request.instances.map((one) => one.instance_id));
    for (const one of ids) expect(new Set(one).size).toBe(3);
    const counts = new Map<string, number>();
    for (const id of ids.flat()) counts.set(id, (counts.get(id) ?? 0) + 1);
    expect([...counts.values()]).toEqual(new Array(7).fill(3));
    expect(source.requests.map((request) => request.iteration)).toEqual([0, 1, 2, 3, 4, 5, 6]);
  });

  test("a resumed stage goes on as if nothing had happened", async () => {
    const whole = new PolicyDouble();
    const first = await all(run(whole, { config: { iterations: 4, instances: 3 } }));
    const resumed = new PolicyDouble();
    const start = first[1]?.next as DapoCursor;
    expect(start).toEqual({ iteration: 2, step: first.slice(0, 2).flatMap((one) => one.steps).length });
    resumed.version = start.step;
    const rest = await all(run(resumed, { start, config: { iterations: 4, instances: 3 } }));
    const plain = (list: DapoIteration[]): unknown =>
      list.map((one) => ({
        ...one,
        steps: one.steps.map((step) => ({ ...step, learnMs: 0 })),
        summary: { ...one.summary, rolloutMs: 0, scoreMs: 0, learnMs: 0 },
      }));
    expect(plain(rest)).toEqual(plain(first.slice(2)));
  });

  test("works only as fast as it is read", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    const source = rollouts(() => policy.version);
    for await (const one of run(policy, { rollouts: source, config: { iterations: 9, instances: 3 } })) {
      expect(source.requests).toHaveLength(one.iteration + 1);
      if (one.iteration === 1) break;
    }
    expect(source.requests).toHaveLength(2);
  });

  test("reports every step while it goes", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    const steps: string[] = [];
    await all(run(policy, { onStep: (one) => steps.push(`${one.iteration}:${one.step}/${one.steps}`) }));
    expect(steps).toEqual(["0:0/3", "0:1/3", "0:2/3"]);
  });

  test("an iteration without a live group takes no step and is not the end", async () => {
    const policy = new PolicyDouble();
    const dead = new RolloutDouble((one, rollout) =>
      episode(2, true, { instanceId: one.instance_id, rollout }),
    );
    const iterations = await all(run(policy, { rollouts: dead, config: { iterations: 2 } }));
    expect(iterations.map((one) => one.steps.length)).toEqual([0, 0]);
    expect(iterations[0]?.summary).toMatchObject({ groupsKept: 0, groupsDeadSolved: 7, trained: 0 });
    expect(policy.calls).toHaveLength(0);
  });

  test("an abort stops before the next rollouts", async () => {
    const policy = new PolicyDouble({ drift: 0 });
    const controller = new AbortController();
    const seen: number[] = [];
    const loop = async (): Promise<void> => {
      for await (const one of run(policy, { signal: controller.signal, config: { iterations: 5 } })) {
        seen.push(one.iteration);
        controller.abort();
      }
    };
    const error = await loop().catch((thrown: unknown) => thrown);
    expect(isTokenringError(error, "ERR_TOKENRING_ABORTED")).toBe(true);
    expect(seen).toEqual([0]);
  });

  test("an empty pool is refused", async () => {
    await expect(all(run(new PolicyDouble(), { instances: [] }))).rejects.toThrow(
      /the pool has no instances/,
    );
  });

  test("evenParts", () => {
    expect(evenParts([1, 2, 3, 4, 5], 2)).toEqual([[1], [2, 3], [4, 5]]);
    expect(evenParts([1, 2], 2)).toEqual([[1, 2]]);
    expect(evenParts([], 2)).toEqual([]);
  });
});
