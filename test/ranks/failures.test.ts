// Ranks that die, stop or are slow, at every command: nothing hangs, nothing goes on without them, and the error says
// what was under way and who is missing. The workers are real processes.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import { isTokenringError } from "../../lib/errors.ts";
import { Policy } from "../../lib/policy/policy.ts";
import type { PackedBatch } from "../../lib/policy/types.ts";
import { RankGroup } from "../../lib/ranks/group.ts";
import { ids, LIVELY, TINY } from "../policy/tiny.ts";

const batch: PackedBatch = {
  tokens: ids("failures", 240),
  lengths: Int32Array.of(80, 80, 80),
  weight: Float32Array.from({ length: 240 }, (_, i) => (i % 80 === 0 ? 0 : 1 / 240)),
};
const nll = { objective: "nll" } as const;

let scratch: string;

/** Every command that ranks get, as a script gives it; the words that its error must have. */
const COMMANDS: Record<string, { words: RegExp; run: (policy: Policy) => Promise<unknown> }> = {
  accumulate: { words: /accumulate \(command #\d+\)/, run: (policy) => policy.accumulate(batch, nll) },
  "accumulate, last": {
    words: /(accumulate|dropGradients) \(command #\d+\)/,
    run: async (policy) => {
      await policy.accumulate(batch, nll, { last: true });
      await policy.dropGradients();
    },
  },
  score: { words: /score \(command #\d+\)/, run: (policy) => policy.score(batch) },
  optimise: { words: /optimise \(command #\d+\)/, run: (policy) => policy.optimise({ learningRate: 1e-3 }) },
  dropGradients: { words: /dropGradients \(command #\d+\)/, run: (policy) => policy.dropGradients() },
  resetOptimiser: { words: /resetOptimiser \(command #\d+\)/, run: (policy) => policy.resetOptimiser() },
  save: { words: /save \(command #\d+\)/, run: (policy) => policy.save(path.join(scratch, "saved")) },
  load: { words: /load \(command #\d+\)/, run: (policy) => policy.load(path.join(scratch, "loaded")) },
  sample: {
    words: /^rank 1 /,
    run: async (policy) => {
      const engine = embeddedEngine(policy);
      using here = engine.open();
      using there = engine.open();
      for (const session of [here, there]) session.extend([1]);
      const turn = { maxTokens: 50, stop: [], temperature: 1, seed: 1n };
      await Promise.all([here, there].map((session) => session.sample(turn)));
    },
  },
};

/** Milliseconds of silence that are a loss here: well beyond what a busy machine takes to wake a process. */
const SILENCE = 4000;

/** What the command fails with, sooner or later, once `pid` was sent the signal; a success in between is none. */
async function failure(policy: Policy, run: (policy: Policy) => Promise<unknown>): Promise<Error> {
  for (;;) {
    try {
      await run(policy);
    } catch (error) {
      return error as Error;
    }
  }
}

describe("a rank that ends or stops", { timeout: 240_000 }, () => {
  beforeAll(async () => {
    scratch = await mkdtemp(path.join(tmpdir(), "tokenring-failures-"));
    await using policy = await Policy.create(TINY, LIVELY);
    await policy.save(path.join(scratch, "loaded"));
  });

  afterAll(async () => {
    await rm(scratch, { recursive: true });
  });

  /** The command at two ranks of which the second is sent `signal` before it, or while it is repeated. */
  async function strike(
    signal: "SIGKILL" | "SIGSTOP",
    when: "before" | "within",
    command: keyof typeof COMMANDS,
  ): Promise<{ error: Error; seconds: number; again: unknown }> {
    const { run } = COMMANDS[command] as (typeof COMMANDS)[string];
    const group = await RankGroup.open({ size: 2, silence: SILENCE, timeout: 60_000 });
    const { pid } = group.workers[0] as { pid: number };
    try {
      await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group, threads: 2 });
      await run(policy);
      if (when === "within") {
        const failed = failure(policy, run);
        await delay(20);
        process.kill(pid, signal);
        const begin = performance.now();
        const error = await failed;
        const seconds = (performance.now() - begin) / 1000;
        return { error, seconds, again: await run(policy).catch((later: unknown) => later) };
      }
      process.kill(pid, signal);
      const begin = performance.now();
      const error = await failure(policy, run);
      const seconds = (performance.now() - begin) / 1000;
      return { error, seconds, again: await run(policy).catch((later: unknown) => later) };
    } finally {
      // One that is stopped hears of nothing: the group ends it.
      await group.dispose();
      expect(() => process.kill(pid, 0)).toThrow("ESRCH");
    }
  }

  describe.each([
    ["SIGKILL", /rank 1 \(process \d+ on [^)]+\) of 2 is lost: its process was ended by SIGKILL/],
    ["SIGSTOP", /rank 1 \(process \d+ on [^)]+\) of 2 is lost: it was silent for 4 s/],
  ] as const)("by %s", (signal, who) => {
    it.each(["before", "within"] as const)(
      "%s a command is named, and every command fails with it",
      async (when) => {
        const names = Object.keys(COMMANDS);
        // Side by side, a few at a time: each waits more than it works.
        const strikes = new Map<string, Awaited<ReturnType<typeof strike>>>();
        const rest = [...names];
        const lane = async (): Promise<void> => {
          for (let name = rest.shift(); name !== undefined; name = rest.shift())
            strikes.set(name, await strike(signal, when, name));
        };
        await Promise.all([lane(), lane(), lane()]);
        for (const name of names) {
          const { error, seconds, again } = strikes.get(name) as Awaited<ReturnType<typeof strike>>;
          const { words } = COMMANDS[name] as (typeof COMMANDS)[string];
          expect(isTokenringError(error, "ERR_TOKENRING_COMMUNICATOR"), `${name}: ${error.stack}`).toBe(true);
          expect(error.message, name).toMatch(who);
          expect(error.message, name).toMatch(words);
          // Nothing goes on afterwards.
          expect(isTokenringError(again, "ERR_TOKENRING_COMMUNICATOR"), name).toBe(true);
          expect((again as Error).message, name).toMatch(who);
          // Seconds, not the deadline of the collective.
          expect(seconds, name).toBeLessThan(signal === "SIGKILL" ? 15 : 25);
        }
      },
    );
  });

  const levels = { contextSchedule: "two_level", ranksPerNode: 2 } as const;
  it.each([
    ["SIGKILL", "a ring", {}, /its process was ended by SIGKILL/],
    ["SIGSTOP", "a ring", {}, /it was silent for 4 s/],
    ["SIGKILL", "two levels", levels, /its process was ended by SIGKILL/],
    ["SIGSTOP", "two levels", levels, /it was silent for 4 s/],
  ] as const)(
    "by %s within %s is named on every rank, and no other is kept by it",
    async (signal, _, how, why) => {
      const group = await RankGroup.open({ size: 4, silence: SILENCE, timeout: 60_000 });
      const pids = group.workers.map(({ pid }) => pid);
      try {
        const options = { ...LIVELY, ...how, ranks: group, contextParallel: 4 };
        await using policy = await Policy.create(TINY, options);
        const step = async (of: Policy): Promise<void> => {
          await of.accumulate(batch, nll, { last: true });
          await of.optimise({ learningRate: 1e-3 });
        };
        await step(policy);
        const failed = failure(policy, step);
        await delay(30);
        process.kill(pids[1] as number, signal);
        const begin = performance.now();
        const error = await failed;
        expect(error).toMatchObject({ code: "ERR_TOKENRING_COMMUNICATOR" });
        expect(error.message).toMatch(
          /^(accumulate|optimise) \(command #\d+\): rank 2 \(process \d+ on .*\) of 4 is lost: /,
        );
        expect(error.message).toMatch(why);
        expect(performance.now() - begin).toBeLessThan(25_000);
      } finally {
        await group.dispose();
      }
      for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow("ESRCH");
    },
  );

  it("while the group is being made is named too", async () => {
    const group = await RankGroup.open({ size: 3, silence: SILENCE });
    process.kill((group.workers[1] as { pid: number }).pid, "SIGKILL");
    await expect(
      (async () => {
        for (;;) await (await Policy.create(TINY, { ranks: group })).dispose();
      })(),
    ).rejects.toThrow(/(create|join|initialise) \(command #\d+\): rank 2 \(process \d+ on .*\) of 3 is lost/);
    await group.dispose();
  });
});

describe("a rank that is slow", { timeout: 120_000 }, () => {
  it("is waited for at every command, and nothing is lost", async () => {
    scratch = await mkdtemp(path.join(tmpdir(), "tokenring-failures-"));
    await using group = await RankGroup.open({ size: 2, silence: 30_000 });
    const { pid } = group.workers[0] as { pid: number };
    await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group });
    await policy.save(path.join(scratch, "loaded"));
    for (const [name, { run }] of Object.entries(COMMANDS)) {
      process.kill(pid, "SIGSTOP");
      let done = false;
      const running = run(policy).finally(() => {
        done = true;
      });
      await delay(150);
      expect(done, name).toBe(false);
      process.kill(pid, "SIGCONT");
      await running;
    }
    await rm(scratch, { recursive: true });
  });

  it.each([
    [3, 1],
    [4, 2],
  ])(
    "again and again, wherever it happens to be, changes no bit on %i ranks, %i to a document",
    async (size, contextParallel) => {
      await using group = await RankGroup.open({ size, silence: 30_000 });
      const pids = group.workers.map(({ pid }) => pid);
      const train = async (): Promise<number[]> => {
        await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group, contextParallel });
        const numbers: number[] = [];
        for (let step = 0; step < 30; step++) {
          const passes = [0, 1].map((pass) => policy.accumulate(batch, nll, { last: pass === 1 }));
          numbers.push(...(await Promise.all(passes)).map(({ loss }) => loss));
          numbers.push((await policy.optimise({ learningRate: 1e-2 })).gradientNorm);
        }
        return numbers;
      };
      const undisturbed = await train();
      let over = false;
      const disturbing = (async () => {
        for (let i = 0; !over; i++) {
          const pid = pids[i % pids.length] as number;
          process.kill(pid, "SIGSTOP");
          await delay(1 + ((7 * i) % 23));
          process.kill(pid, "SIGCONT");
          await delay(1 + ((5 * i) % 11));
        }
      })();
      const disturbed = await train().finally(() => {
        over = true;
      });
      await disturbing;
      expect(disturbed).toEqual(undisturbed);
    },
  );

  it("and silent for longer than the deadline of acknowledgements ends the group, by name", async () => {
    await using group = await RankGroup.open({ size: 2, silence: 60_000, timeout: 1000 });
    const { pid } = group.workers[0] as { pid: number };
    await using policy = await Policy.create(TINY, { ...LIVELY, ranks: group });
    process.kill(pid, "SIGSTOP");
    await expect(policy.score(batch)).rejects.toMatchObject({
      code: "ERR_TOKENRING_TIMEOUT",
      message: expect.stringMatching(
        /^score \(command #\d+\): rank 1 \(process \d+ on .*\) did not acknowledge score \(command #\d+\) within 1 s$/,
      ),
    });
    process.kill(pid, "SIGCONT");
  });
});
