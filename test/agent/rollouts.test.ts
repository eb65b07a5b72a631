import { expect, test } from "vitest";
import { type RolloutOptions, Rollouts } from "../../lib/agent/rollouts.ts";
import type { Group, Trajectory } from "../../lib/agent/types.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import type { Engine, SampleOptions, Session } from "../../lib/engine/types.ts";
import { isTokenringError, TokenringError } from "../../lib/errors.ts";
import { Random, streamKey } from "../../lib/random.ts";
import type { Verification } from "../../lib/verify/types.ts";
import { MemoryBackend, MemorySandbox } from "../support/memory-sandbox.ts";
import { act, chat, instance, limits, template, tokenizer } from "../support/tiny-agent.ts";

const broken = (what: string): TokenringError => new TokenringError("ERR_TOKENRING_SANDBOX", what);

function judged(verdict: Verification["verdict"], reason: Verification["reason"]): Verification {
  return { verdict, reason, tests: {}, failToPass: 0, passToPass: 0, exitCode: 0, log: "" };
}

/** Says something that depends on the key alone, as a sampler does, after a number of microtasks that differs. */
function keyedEngine(
  pauses: () => number = () => 0,
): Engine & { peak: number; asked: number; forks: number; temperatures: Set<number> } {
  const engine = {
    name: "keyed",
    vocabularySize: tokenizer.vocabularySize,
    contextLimit: 4096,
    peak: 0,
    asked: 0,
    forks: 0,
    temperatures: new Set<number>(),
    open: () => session(0, []),
  };
  const session = (length: number, turns: number[]): Session => {
    const state = {
      length,
      extend(tokens: ArrayLike<number>) {
        state.length += tokens.length;
      },
      async sample({ seed, stop, temperature }: SampleOptions) {
        engine.temperatures.add(temperature);
        engine.asked++;
        engine.peak = Math.max(engine.peak, engine.asked);
        for (let left = pauses(); left > 0; left--) await Promise.resolve();
        engine.asked--;
        const word = Random.of(seed, "turn", turns.length).below(4);
        turns.push(word);
        const text = word === 0 || turns.length > 4 ? act("submit") : act(`edit --file gebo.py 1:1 y${word}`);
        const tokens = Int32Array.of(...tokenizer.encode(text), stop[0] as number);
        state.length += tokens.length;
        return {
          tokens,
          logprobs: new Float32Array(tokens.length).fill(-1),
          finish: "stop" as const,
          version: 5,
        };
      },
      fork() {
        engine.forks++;
        return session(state.length, [...turns]);
      },
      dispose() {},
      [Symbol.dispose]() {},
    };
    return state;
  };
  return engine;
}

function options(changes: Partial<RolloutOptions> = {}): RolloutOptions {
  return {
    engine: keyedEngine(),
    tokenizer,
    chat,
    template,
    repository: async (task) => `/repositories/${task.instance_id}`,
    sandboxes: new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" })),
    verify: async (_task, patch) =>
      patch.includes("y1") ? judged("resolved", null) : judged("failed", "tests_failed"),
    limits,
    seed: 3,
    episodes: 4,
    ...changes,
  };
}

const instances = ["a", "b", "c"].map((name) => instance(name));
const request = { instances, rollouts: 5, purpose: "stage1", iteration: 2, temperature: 1 };

/** What must not depend on timing. */
function essence(groups: readonly Group[]): unknown {
  const plain = (trajectory: Trajectory): unknown => ({
    ...trajectory,
    verifyMs: 0,
    turns: trajectory.turns.map((turn) => ({ ...turn, sampleMs: 0, toolMs: 0 })),
  });
  return groups.map((group) => ({
    instance: group.instance.instance_id,
    trajectories: group.trajectories.map(plain),
    dropped: group.dropped.map(plain),
  }));
}

test("groups, trajectories and every draw are the same whatever finishes first", async () => {
  const reference = await new Rollouts(options({ episodes: 1 })).collect(request);
  expect(reference.map((group) => group.trajectories.map((trajectory) => trajectory.id))[1]).toEqual(
    [0, 1, 2, 3, 4].map((rollout) => `stage1-2/1/b/${rollout}`),
  );
  const patches = new Set(
    reference.flatMap((group) => group.trajectories.map((trajectory) => trajectory.patch)),
  );
  expect(patches.size).toBeGreaterThan(2);
  for (const seed of [1, 2, 3]) {
    const random = Random.of(seed, "pauses");
    const finished: string[] = [];
    const groups = await new Rollouts(
      options({ engine: keyedEngine(() => random.below(50)), episodes: 7, openSandboxes: 9 }),
    ).collect({ ...request, onTrajectory: (trajectory) => finished.push(trajectory.id) });
    expect(essence(groups)).toEqual(essence(reference));
    expect(finished).toHaveLength(15);
    expect(finished).not.toEqual([...finished].sort());
  }
});

test("seed, purpose, iteration, instance and rollout each change the draws", async () => {
  const tokensOf = async (changes: Partial<typeof request>, seed = 3): Promise<string> =>
    JSON.stringify(
      (await new Rollouts(options({ seed })).collect({ ...request, ...changes })).map((group) =>
        group.trajectories.map((trajectory) => [...trajectory.tokens]),
      ),
    );
  const base = await tokensOf({});
  expect(await tokensOf({})).toBe(base);
  expect(await tokensOf({ iteration: 3 })).not.toBe(base);
  expect(await tokensOf({ purpose: "evaluate" })).not.toBe(base);
  expect(await tokensOf({}, 4)).not.toBe(base);
  const [a] = await new Rollouts(options()).collect(request);
  expect(new Set(a?.trajectories.map((trajectory) => [...trajectory.tokens].join())).size).toBeGreaterThan(1);
});

test("every turn is sampled at the request's temperature", async () => {
  for (const temperature of [1, 0.6, 0]) {
    const engine = keyedEngine();
    await new Rollouts(options({ engine })).collect({ ...request, temperature });
    expect([...engine.temperatures]).toEqual([temperature]);
  }
});

test("the prompt is held once a group and forked once a rollout; limits hold; everything is closed", async () => {
  const engine = keyedEngine(() => 20);
  const sandboxes = new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" }));
  await new Rollouts(options({ engine, sandboxes, episodes: 3, openSandboxes: 5 })).collect(request);
  expect(engine.forks).toBe(15);
  expect(engine.peak).toBe(3);
  expect(sandboxes.peak).toBeLessThanOrEqual(5);
  expect(sandboxes.opened.map((sandbox) => sandbox.closed)).toEqual(Array(15).fill(1));
});

test("sandboxes are opened ahead of the episodes, on the instance's repository", async () => {
  const seen: string[] = [];
  const sandboxes = new MemoryBackend((_index, spec) => {
    seen.push(`${spec.repository} ${spec.workdir}`);
    return new MemorySandbox({ "gebo.py": "x\n" });
  });
  const engine = keyedEngine(() => 200);
  const rollouts = new Rollouts(
    options({ engine, sandboxes, episodes: 2, openSandboxes: 4, sandbox: { workdir: "/repo" } }),
  );
  await rollouts.collect(request);
  expect(seen.slice(0, 6)).toEqual([...Array(5).fill("/repositories/a /repo"), "/repositories/b /repo"]);
  expect(sandboxes.peak).toBe(4);
});

test("one patch is judged once; the verdict and its reason are the trajectory's", async () => {
  const asked: string[] = [];
  const verify = async (task: { instance_id: string }, patch: string): Promise<Verification> => {
    asked.push(`${task.instance_id} ${patch}`);
    return patch.includes("y1") ? judged("resolved", null) : judged("failed", "tests_failed");
  };
  const rollouts = new Rollouts(options({ verify }));
  const groups = await rollouts.collect(request);
  const once = asked.length;
  expect(new Set(asked).size).toBe(once);
  expect(once).toBeLessThan(15);
  await rollouts.collect(request);
  expect(asked.length).toBe(once);
  const all = groups.flatMap((group) => group.trajectories);
  for (const { patch, verdict, reason } of all) {
    expect([verdict, reason]).toEqual(patch.includes("y1") ? ["resolved", null] : ["failed", "tests_failed"]);
  }
  expect(new Set(all.map((trajectory) => trajectory.verdict)).size).toBe(2);
});

test("a rollout whose sandbox broke is tried again with the same draws", async () => {
  const reference = await new Rollouts(options()).collect(request);
  let opened = 0;
  // Of every four sandboxes one does not open and one breaks when something is written.
  const sandboxes = new MemoryBackend(() => {
    opened++;
    if (opened % 4 === 0) throw broken("no room");
    const sandbox = new MemorySandbox({ "gebo.py": "x\n" });
    if (opened % 4 === 1) sandbox.write = () => Promise.reject(broken("gone"));
    return sandbox;
  });
  const groups = await new Rollouts(options({ sandboxes, retries: 20 })).collect(request);
  expect(essence(groups)).toEqual(essence(reference));
  expect(opened).toBeGreaterThan(15);
  expect(sandboxes.stillOpen).toBe(0);
});

test("a sandbox that stays broken drops the rollout from its group, and is no reward of 0", async () => {
  const verify = async (): Promise<Verification> => judged("failed", "tests_failed");
  let opened = 0;
  const sandboxes = new MemoryBackend(() => {
    opened++;
    throw broken("no room");
  });
  const [group] = await new Rollouts(options({ sandboxes, verify, retries: 3 })).collect({
    ...request,
    instances: instances.slice(0, 1),
    rollouts: 2,
  });
  expect(opened).toBe(8);
  expect(group?.trajectories).toEqual([]);
  expect(
    group?.dropped.map(({ exit, verdict, reason, turns }) => [exit, verdict, reason, turns.length]),
  ).toEqual([
    ["infra_failed", "not_run", "infra_failed", 0],
    ["infra_failed", "not_run", "infra_failed", 0],
  ]);
});

test("a verifier whose sandbox breaks is asked again, then the rollout is dropped; nothing of it is remembered", async () => {
  let calls = 0;
  const verify = async (): Promise<Verification> => {
    calls++;
    if (calls === 1) throw broken("verifier");
    return calls === 2 ? judged("not_run", "infra_failed") : judged("resolved", null);
  };
  const one = { ...request, instances: instances.slice(0, 1), rollouts: 1 };
  const rollouts = new Rollouts(options({ verify, retries: 2 }));
  const [group] = await rollouts.collect(one);
  expect([calls, group?.trajectories[0]?.verdict, group?.dropped]).toEqual([3, "resolved", []]);
  const never = new Rollouts(options({ verify: async () => judged("not_run", "infra_failed"), retries: 1 }));
  const [dropped] = await never.collect(one);
  expect([dropped?.trajectories, dropped?.dropped[0]?.exit]).toEqual([[], "infra_failed"]);
});

test("any other fault stops everything, closes everything and is thrown", async () => {
  const sandboxes = new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" }));
  let verified = 0;
  const verify = async (): Promise<Verification> => {
    verified++;
    throw new TypeError("a bug in the verifier");
  };
  await expect(new Rollouts(options({ sandboxes, verify })).collect(request)).rejects.toThrow(
    "a bug in the verifier",
  );
  expect(verified).toBeLessThan(15);
  expect(sandboxes.stillOpen).toBe(0);
});

test("an abort ends all episodes and is thrown as one", async () => {
  const controller = new AbortController();
  const sandboxes = new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" }));
  let seen = 0;
  const promise = new Rollouts(options({ sandboxes })).collect({
    ...request,
    signal: controller.signal,
    onTrajectory: () => {
      if (++seen === 3) controller.abort(new Error("enough"));
    },
  });
  await expect(promise).rejects.toSatisfy((error) => isTokenringError(error, "ERR_TOKENRING_ABORTED"));
  expect(seen).toBeLessThan(15);
  expect(sandboxes.stillOpen).toBe(0);
  await expect(new Rollouts(options()).collect({ ...request, signal: AbortSignal.abort() })).rejects.toThrow(
    /stage1, rollouts of iteration 2: stopped by the caller/,
  );
});

test("a prompt that leaves no room ends its episodes at the context limit; the engine is not asked", async () => {
  const engine = keyedEngine();
  const groups = await new Rollouts(options({ engine, limits: { ...limits, maxContext: 10 } })).collect(
    request,
  );
  expect(groups[0]?.trajectories.map(({ exit, turns }) => [exit, turns.length])).toEqual(
    Array(5).fill(["context_limit", 0]),
  );
  expect(engine.peak).toBe(0);
});

test("scripts run through the same rollouts, one a session", async () => {
  const engine = scriptedEngine(tokenizer, {
    script: (index) => (_, turn) => (turn === 0 ? act(`edit --file gebo.py 1:1 y${index}`) : act("submit")),
  });
  const [group] = await new Rollouts(options({ engine, episodes: 1 })).collect({
    ...request,
    instances: instances.slice(0, 1),
  });
  expect(group?.trajectories.map(({ patch }) => patch)).toEqual(
    [0, 1, 2, 3, 4].map((index) => `/repo/gebo.py\ny${index}\n`),
  );
});

test("counts that make no sense are refused", () => {
  expect(() => new Rollouts(options({ episodes: 0 }))).toThrow(/episodes must be 1 or more, got 0/);
  expect(() => new Rollouts(options({ verifications: 1.5 }))).toThrow(/verifications must be/);
});

test("spare rollouts take the places of those that break, by number, and the rest of them is not waited for", async () => {
  const reference = await new Rollouts(options()).collect({ ...request, rollouts: 7 });
  for (const seed of [1, 2, 3]) {
    const random = Random.of(seed, "pauses");
    const hanging = new MemoryBackend((_, { repository }) => {
      if (repository.endsWith("/b")) throw broken("no sandbox");
      return new MemorySandbox({ "gebo.py": "x\n" });
    });
    const groups = await new Rollouts(
      options({ engine: keyedEngine(() => random.below(50)), sandboxes: hanging, episodes: 30, retries: 0 }),
    ).collect({ ...request, spare: 2 });
    expect(hanging.stillOpen).toBe(0);
    const ids = (list: readonly Trajectory[]): string[] => list.map(({ id }) => id);
    expect(ids(groups[0]?.trajectories ?? [])).toEqual(ids(reference[0]?.trajectories ?? []).slice(0, 5));
    expect(
      groups.map(({ trajectories, dropped, spared }) => [trajectories.length, dropped.length, spared]),
    ).toEqual([
      [5, 0, 2],
      [0, 7, 0],
      [5, 0, 2],
    ]);
  }
});

test("an episode that outlasts its group's time is cut, and gives way to a spare one", async () => {
  const engine = keyedEngine();
  const { open } = engine;
  const stuck = streamKey(3, "stage1", 2, 0, 1);
  const wrap = (session: Session): Session =>
    Object.assign(Object.create(session) as Session, {
      extend: (tokens: ArrayLike<number>) => session.extend(tokens),
      fork: () => wrap(session.fork()),
      sample: (how: SampleOptions) =>
        how.seed === stuck
          ? new Promise((_, reject) =>
              how.signal?.addEventListener("abort", () => reject(how.signal?.reason)),
            )
          : session.sample(how),
    });
  Object.assign(engine, { open: () => wrap(open()) });
  const of = async (changes: object): Promise<[number, string][] | undefined> =>
    (
      await new Rollouts(options({ engine, episodes: 30 })).collect({
        ...request,
        instances: instances.slice(0, 1),
        rollouts: 3,
        groupMs: 200,
        ...changes,
      })
    )[0]?.trajectories.map(({ rollout, exit }) => [rollout, exit]);
  expect(await of({})).toEqual([
    [0, "submitted"],
    [1, "timeout"],
    [2, "submitted"],
  ]);
  expect(await of({ spare: 1 })).toEqual([
    [0, "submitted"],
    [2, "submitted"],
    [3, "submitted"],
  ]);
});

test.each([{ spare: -1 }, { spare: 0.5 }, { groupMs: 0 }])("%j is refused", async (changes) => {
  await expect(new Rollouts(options()).collect({ ...request, ...changes })).rejects.toMatchObject({
    code: "ERR_TOKENRING_INVALID_ARGUMENT",
  });
});
