// Many episodes at once: what comes back depends on no order of answers, and holds its tokens and nothing more.
import { setImmediate as eventLoopTurn } from "node:timers/promises";
import { expect, test } from "vitest";
import { Rollouts } from "../../lib/agent/rollouts.ts";
import type { Group } from "../../lib/agent/types.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import type { Engine, Session } from "../../lib/engine/types.ts";
import { Random } from "../../lib/random.ts";
import { MemoryBackend, MemorySandbox } from "../support/memory-sandbox.ts";
import { timeless } from "../support/timeless.ts";
import { act, chat, instance, limits, template, tokenizer } from "../support/tiny-agent.ts";

/** Each answer comes after as many turns of the event loop as `random` says. */
function shuffled(engine: Engine, random: Random): Engine {
  const wrap = (session: Session): Session => ({
    get length() {
      return session.length;
    },
    extend: (tokens) => session.extend(tokens),
    sample: async (options) => {
      for (let turns = random.below(8); turns > 0; turns--) await eventLoopTurn();
      return session.sample(options);
    },
    fork: () => wrap(session.fork()),
    dispose: () => session.dispose(),
    [Symbol.dispose]: () => session.dispose(),
  });
  return { ...engine, open: () => wrap(engine.open()) };
}

async function collect(order: number): Promise<{ groups: Group[]; finished: string[] }> {
  const finished: string[] = [];
  // Every observation ends in a number; the next command depends on it.
  const engine = scriptedEngine(tokenizer, {
    script: () => (seen, turn) =>
      turn === 3 ? act("submit") : act(`count ${seen.match(/\d+/g)?.at(-1) ?? 0}`),
  });
  const backend = new MemoryBackend(
    () =>
      new MemorySandbox({}, (command) => ({ output: `${command} gives ${command.length * 7}\n`.repeat(20) })),
  );
  const rollouts = new Rollouts({
    engine: shuffled(engine, Random.of(order, "answers")),
    tokenizer,
    chat,
    template,
    repository: async () => "/none",
    sandboxes: backend,
    verify: async () => ({
      verdict: "failed",
      reason: "tests_failed",
      tests: {},
      failToPass: 0,
      passToPass: 0,
      exitCode: 1,
      log: "",
    }),
    limits,
    seed: 1,
    episodes: 200,
  });
  const groups = await rollouts.collect({
    instances: Array.from({ length: 25 }, (_, i) =>
      instance(`task-${i}`, `${"x".repeat(i)} is broken, ${i}.`),
    ),
    rollouts: 8,
    purpose: "load",
    iteration: 0,
    temperature: 1,
    onTrajectory: ({ id }) => finished.push(id),
  });
  expect(backend.stillOpen).toBe(0);
  return { groups, finished };
}

test("200 episodes at once give the same, whatever finishes first, in lanes that hold their tokens alone", async () => {
  const [first, second] = [await collect(1), await collect(2)];
  expect(first.finished).toHaveLength(200);
  expect(second.finished).not.toEqual(first.finished);
  expect(timeless(second.groups)).toEqual(timeless(first.groups));
  for (const { tokens, provenance, logprobs } of first.groups.flatMap((group) => group.trajectories)) {
    expect(tokens.length).toBeGreaterThan(100);
    const bytes = [tokens, provenance, logprobs].map(({ buffer }) => buffer.byteLength);
    expect(bytes).toEqual([4 * tokens.length, tokens.length, 4 * tokens.length]);
  }
});
