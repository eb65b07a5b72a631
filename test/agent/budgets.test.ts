// What one set of draws comes to at several budgets must be what episodes at those budgets come to.
import fc from "fast-check";
import { expect, test } from "vitest";
import { type EpisodeRequest, promptTokens, runEpisode } from "../../lib/agent/episode.ts";
import { Rollouts } from "../../lib/agent/rollouts.ts";
import type { Budget, Episode, Turn } from "../../lib/agent/types.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import type { Session } from "../../lib/engine/types.ts";
import type { Snapshot } from "../../lib/sandbox/types.ts";
import { MemoryBackend, MemorySandbox, openSnapshot } from "../support/memory-sandbox.ts";
import { act, chat, instance, limits, template, tokenizer } from "../support/tiny-agent.ts";

const task = instance("gebo");
const prompt = promptTokens(chat, template, task).length;

/** A sampler: what comes after the prefix is the same whatever room there is for it, and stops where the room ends. */
function sampler(replies: readonly string[]): Session {
  let streams = 0;
  const session = scriptedEngine(tokenizer, {
    script: () => (_, turn) => replies[turn] ?? act("submit"),
    contextLimit: 10_000,
  }).open();
  const sample = session.sample.bind(session);
  session.sample = async (options) => {
    streams++;
    const { tokens, logprobs, ...turn } = await sample({ ...options });
    return { ...turn, tokens, logprobs: logprobs.map((_, i) => -(streams + i) / 64) };
  };
  return session;
}

function request(
  replies: readonly string[],
  output: string,
  changes: Partial<EpisodeRequest>,
): EpisodeRequest {
  return {
    instance: task,
    template,
    session: sampler(replies),
    tokenizer,
    chat,
    sandbox: new MemorySandbox({ "gebo.py": "x = 1\n" }, () => ({ output })),
    limits,
    key: 7n,
    temperature: 1,
    ...changes,
  };
}

/** All of an episode but for its times. */
function essence({ alsoAt: _, ...episode }: Episode): unknown {
  const turns = episode.turns.map((turn: Turn) => ({ ...turn, sampleMs: 0, toolMs: 0 }));
  return { ...episode, turns, tokens: [...episode.tokens], logprobs: [...episode.logprobs] };
}

const opened: MemorySandbox[] = [];
const open = async ({ repository }: Snapshot): Promise<MemorySandbox> => {
  const sandbox = openSnapshot(repository) as MemorySandbox;
  opened.push(sandbox);
  return sandbox;
};

const reply = fc.oneof(
  fc.integer({ min: 0, max: 9 }).map((n) => act(`edit --file gebo.py 1:1 y${n}`)),
  fc.integer({ min: 0, max: 9 }).map((n) => act(`edit --file f${n}.py 1:1 ${"z".repeat(n)}`, "b".repeat(n))),
  fc.constantFrom(
    act("create new.py"),
    act("ls"),
    act("submit"),
    "I forgot the command.",
    // Two commands, or one where the context ends between them.
    `${act("edit --file gebo.py 1:1 first")}\n${act("edit --file gebo.py 1:1 second")}`,
    // Cut behind its command, and cut within a line that begins as the closing fence does.
    `${act("edit --file gebo.py 1:1 long")}\nand much more is said about it, to no end`,
    "```command\nedit 1:1\na\n```b\nc\n```",
  ),
);

test("an episode also ends where episodes at smaller budgets end, with their patch", async () => {
  const seen = { turns: 0, context: 0, whole: 0 };
  await fc.assert(
    fc.asyncProperty(
      fc.array(reply, { maxLength: 7 }),
      fc.string({ maxLength: 30 }),
      fc.array(
        fc.record({ turns: fc.integer({ min: 1, max: 8 }), room: fc.integer({ min: -3, max: 500 }) }),
        {
          minLength: 1,
          maxLength: 4,
        },
      ),
      fc.integer({ min: 0, max: 500 }),
      fc.boolean(),
      async (replies, output, small, room, autoSubmit) => {
        const large = { ...limits, autoSubmit, maxTurns: 8, maxContext: prompt + room, maxActionTokens: 70 };
        const budgets = small.map(
          ({ turns, room: at }): Budget => ({
            maxTurns: turns,
            maxContext: prompt + Math.min(room, at),
          }),
        );
        const alone = await runEpisode(request(replies, output, { limits: large }));
        const whole = await runEpisode(
          request(replies, output, { limits: large, alsoAt: { budgets, open } }),
        );
        expect(essence(whole)).toEqual(essence(alone));
        expect(whole.alsoAt?.map(({ budget }) => budget)).toEqual(budgets);
        for (const { budget, episode } of whole.alsoAt ?? []) {
          const real = await runEpisode(request(replies, output, { limits: { ...large, ...budget } }));
          if (episode === null) {
            // Only a context that ends within the last action may say so.
            expect(real.turns.at(-1)?.finish).toBe("length");
            expect(real.tokens.length).toBe(budget.maxContext);
            continue;
          }
          expect(essence(episode)).toEqual(essence(real));
          const how =
            episode.turns.length === whole.turns.length
              ? "whole"
              : real.exit === "turn_limit"
                ? "turns"
                : "context";
          seen[how]++;
        }
      },
    ),
    { numRuns: 150 },
  );
  expect(opened.length).toBeGreaterThan(20);
  expect(opened.every((sandbox) => sandbox.closed === 1 && sandbox.disposed)).toBe(true);
  expect(Math.min(seen.turns, seen.context, seen.whole)).toBeGreaterThan(0);
});

test("rollouts judge each budget's patch; where a context ends inside an action that reads otherwise, it is run", async () => {
  const first = `${act("edit --file gebo.py 1:1 one")}\n${act("edit --file gebo.py 1:1 two")}`;
  const engine = scriptedEngine(tokenizer, {
    script: () => (_, turn) => [first, act("edit --file gebo.py 1:1 three")][turn] ?? act("submit"),
  });
  const inside = prompt + tokenizer.encode(act("edit --file gebo.py 1:1 one")).length + 4;
  const alsoAt = [
    { maxTurns: 2, maxContext: 4096 },
    { maxTurns: 8, maxContext: inside },
  ];
  const judged: string[] = [];
  const sandboxes = new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" }));
  const rollouts = new Rollouts({
    engine,
    tokenizer,
    chat,
    template,
    repository: async () => "/repository",
    sandboxes,
    verify: async (_, patch) => {
      judged.push(patch);
      const verdict = patch.includes("three") ? ("resolved" as const) : ("failed" as const);
      return { verdict, reason: null, tests: {}, failToPass: 0, passToPass: 0, exitCode: 0, log: "" };
    },
    limits,
    seed: 3,
    episodes: 2,
  });
  const ask = { instances: [task], rollouts: 1, purpose: "evaluate", iteration: 0, temperature: 1 };
  const [group] = await rollouts.collect({ ...ask, alsoAt });
  const trajectory = group?.trajectories[0];
  expect(trajectory).toMatchObject({
    exit: "submitted",
    verdict: "resolved",
    patch: "/repo/gebo.py\nthree\n",
  });
  expect(trajectory?.alsoAt).toMatchObject([
    { budget: alsoAt[0], trajectory: { exit: "turn_limit", verdict: "resolved", turns: { length: 2 } } },
    {
      budget: alsoAt[1],
      trajectory: { exit: "context_limit", verdict: "failed", patch: "/repo/gebo.py\none\n" },
    },
  ]);
  expect(judged).toEqual(["/repo/gebo.py\nthree\n", "/repo/gebo.py\none\n"]);
  expect(sandboxes.stillOpen).toBe(0);
  await expect(rollouts.collect({ ...ask, alsoAt: [{ maxTurns: 9, maxContext: 100 }] })).rejects.toThrow(
    /alsoAt: 9 turns in 100 tokens is more than the episodes have \(8 turns in 4096 tokens\)/,
  );
});
