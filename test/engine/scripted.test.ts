import { expect, test } from "vitest";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import { chat, tokenizer } from "../support/tiny-agent.ts";

const end = chat.endOfTurn[0] as number;
const options = { maxTokens: 20, stop: chat.endOfTurn, temperature: 1, seed: 1n };

test("a script hears what was extended since its last turn and its words end with the stop token", async () => {
  const heard: [string, number][] = [];
  const engine = scriptedEngine(tokenizer, {
    script: () => (observation, turn) => {
      heard.push([observation, turn]);
      return turn === 0 ? "yes" : "a reply of more than twenty tokens";
    },
  });
  using session = engine.open();
  session.extend(chat.opening({ user: "well?" }));
  const before = session.length;
  const first = await session.sample(options);
  expect(first).toEqual({
    tokens: Int32Array.of(...tokenizer.encode("yes"), end),
    logprobs: new Float32Array(4),
    finish: "stop",
    version: 0,
  });
  expect(session.length).toBe(before + 4);
  session.extend(chat.between("and?"));
  const second = await session.sample(options);
  expect([second.finish, second.tokens.length]).toEqual(["length", 20]);
  expect(heard).toEqual([
    ["well?", 0],
    ["and?", 1],
  ]);
});

test("a fork goes on from the same stream with a script of its own", async () => {
  const engine = scriptedEngine(tokenizer, { script: (index) => (seen) => `${index}:${seen}` });
  using root = engine.open();
  root.extend(tokenizer.encode("hi"));
  const replies: string[] = [];
  for (let i = 0; i < 2; i++) {
    using fork = root.fork();
    replies.push(tokenizer.decode((await fork.sample(options)).tokens));
  }
  expect(replies).toEqual(["0:hi", "1:hi"]);
  expect(root.length).toBe(2);
});

test("sessions hold the engine's contract", async () => {
  const engine = scriptedEngine(tokenizer, { script: () => () => "x", contextLimit: 10 });
  const session = engine.open();
  expect(() => session.extend(new Int32Array(11))).toThrow(/context limit is 10/);
  session.extend([1, 2, 3]);
  await expect(session.sample({ ...options, maxTokens: 8 })).rejects.toThrow(/context limit/);
  await expect(session.sample({ ...options, maxTokens: 2, signal: AbortSignal.abort() })).rejects.toThrow(
    /aborted/,
  );
  session.dispose();
  expect(() => session.extend([1])).toThrow(/disposed/);
  await expect(session.sample(options)).rejects.toThrow(/disposed/);
});
