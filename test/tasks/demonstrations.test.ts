// Demonstrations through the agent's own episode: solve rates, what they cost in tokens, and the real sandbox's word
// on the simulated one.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runEpisode } from "../../lib/agent/episode.ts";
import type { Episode } from "../../lib/agent/types.ts";
import { chatFormat, chatTemplateOf } from "../../lib/engine/chat.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import { tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { Random } from "../../lib/random.ts";
import { localBackend } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { parseLogPytest, provenLines } from "../../lib/tasks/log-parsers.ts";
import {
  type DemonstrationTask,
  demonstrationTask,
  type Persona,
} from "../../lib/tasks/tinyswe/demonstrator.ts";
import { writeRepository } from "../../lib/tasks/tinyswe/git.ts";
import { verifyCommand } from "../../lib/tasks/tinyswe/judge.ts";
import { resolves } from "../../lib/tasks/tinyswe/model.ts";
import { namesOf } from "../../lib/tasks/tinyswe/names.ts";
import { PHRASES } from "../../lib/tasks/tinyswe/phrases.ts";
import { COMPACT_TEMPLATE } from "../../lib/tasks/tinyswe/tinyswe.ts";
import { verify } from "../../lib/verify/verify.ts";

const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({ phrases: PHRASES });
const tokenizer = tokenizerFromJson(tokenizerJson, tokenizerConfig);
const chat = chatFormat(tokenizer, chatTemplateOf(tokenizerConfig));

async function demonstrate(
  demonstration: DemonstrationTask,
  persona: Persona,
  sandbox: Sandbox,
): Promise<Episode> {
  const engine = scriptedEngine(tokenizer, { script: () => demonstration.script(persona) });
  using session = engine.open();
  return await runEpisode({
    instance: demonstration.instance,
    template: COMPACT_TEMPLATE,
    session,
    tokenizer,
    chat,
    sandbox,
    limits: {
      maxTurns: 12,
      maxContext: 1024,
      maxActionTokens: 48,
      episodeMs: 60_000,
      observationChars: 600,
      autoSubmit: true,
    },
    workspace: { style: "compact" },
    key: 0n,
    temperature: 1,
  });
}

/** An episode without its times. */
const lasting = ({ turns, ...episode }: Episode): object => ({
  ...episode,
  turns: turns.map(({ sampleMs, toolMs, ...turn }) => turn),
});

describe("demonstrators", () => {
  // 1,500 episodes: one standard error of a rate is at most 1.3 points, the bands are three.
  const rates: Record<Persona, [low: number, high: number]> = {
    expert: [0.86, 0.94],
    sloppy: [0.28, 0.37],
    confused: [0.06, 0.13],
  };

  test.each(Object.keys(rates) as Persona[])("%s solves its share and keeps its habits", async (persona) => {
    const count = 1500;
    const seen = { solved: 0, tokens: 0, turns: 0, malformed: 0, tested: 0, kinds: new Set<string>() };
    for (let index = 0; index < count; index++) {
      const demonstration = demonstrationTask(21, index);
      const sandbox = demonstration.sandbox();
      const episode = await demonstrate(demonstration, persona, sandbox);
      expect(episode.exit).toMatch(/submitted|turn_limit/);
      const solved = resolves(demonstration.task, sandbox.files());
      if (solved) expect(episode.patch).toBe(demonstration.instance.patch);
      seen.solved += Number(solved);
      seen.tokens += episode.tokens.length;
      seen.turns += episode.turns.length;
      for (const turn of episode.turns) {
        expect(turn.finish).toBe("stop");
        if (turn.formatError !== null) seen.malformed++;
        if (turn.formatError === "multiple_commands") seen.kinds.add("two fences");
        if (turn.formatError === "no_command")
          seen.kinds.add(turn.text.includes("```") ? "other fence" : "no fence");
      }
      seen.tested += Number(episode.turns.some((turn) => turn.command === "python test.py"));
    }
    const [low, high] = rates[persona];
    expect(seen.solved / count).toBeGreaterThan(low);
    expect(seen.solved / count).toBeLessThan(high);
    const malformed = { expert: 0.02, sloppy: 0.15, confused: 0.3 }[persona];
    expect(seen.malformed / seen.turns).toBeGreaterThan(malformed - 0.04);
    expect(seen.malformed / seen.turns).toBeLessThan(malformed + 0.02);
    expect(seen.kinds.size).toBe(3);
    if (persona === "expert") {
      expect(seen.tokens / count).toBeLessThan(230);
      expect(seen.tested / count).toBeGreaterThan(0.8);
    }
  });

  test("say the same for the same seed, and something else for another persona", () => {
    const say = (seed: number, persona: Persona): string[] => {
      const script = demonstrationTask(seed, 4).script(persona);
      return [0, 1, 2, 3].map((turn) => script("", turn));
    };
    expect(say(21, "sloppy")).toEqual(say(21, "sloppy"));
    expect(say(21, "sloppy")).not.toEqual(say(21, "confused"));
  });
});

describe("the simulated sandbox", () => {
  let backend: SandboxBackend;
  const scratch = mkdtempSync(join(tmpdir(), "tokenring-simulator-test-"));

  beforeAll(async () => {
    backend = await localBackend();
  });

  afterAll(async () => {
    await backend.dispose();
    rmSync(scratch, { recursive: true });
  });

  test("gives the episodes that the real one gives, byte for byte: 48 by three personas", async () => {
    const commands = new Set<string>();
    for (let index = 0; index < 48; index++) {
      const persona = (["expert", "sloppy", "confused"] as const)[index % 3] as Persona;
      const demonstration = demonstrationTask(22, index);
      const simulated = await demonstrate(demonstration, persona, demonstration.sandbox());
      const repository = join(scratch, demonstration.instance.instance_id);
      writeRepository(repository, demonstration.task.files);
      const sandbox = await backend.open({ repository });
      const real = await demonstrate(demonstration, persona, sandbox);
      await sandbox.close();
      expect(lasting(simulated)).toEqual(lasting(real));
      for (const turn of real.turns) commands.add(turn.command?.split(" ")[0] as string);
    }
    expect([...commands]).toEqual(expect.arrayContaining(["open", "edit", "ls", "grep", "python", "submit"]));
  });

  test("leaves trees of which verification says what the model says", async () => {
    const verdicts: string[] = [];
    for (let index = 0; index < 24; index++) {
      const demonstration = demonstrationTask(25, index);
      const { instance, task } = demonstration;
      const sandbox = demonstration.sandbox();
      const { patch } = await demonstrate(demonstration, index % 2 === 0 ? "expert" : "sloppy", sandbox);
      const repository = join(scratch, instance.instance_id);
      writeRepository(repository, task.files);
      const { verdict, reason } = await verify({
        instance,
        tasks: {
          repository: async () => repository,
          testCommand: (_, nonce) => verifyCommand(nonce),
          parseLog: (log, nonce) => parseLogPytest(provenLines(log, nonce)),
        },
        patch,
        backend,
      });
      const solved = resolves(task, sandbox.files());
      expect(verdict).toBe(solved ? "resolved" : patch === "" ? "not_run" : "failed");
      if (verdict === "failed") expect(reason).toBe("tests_failed");
      verdicts.push(verdict);
    }
    expect([...new Set(verdicts)]).toEqual(expect.arrayContaining(["resolved", "failed"]));
  });

  test("refuses what no demonstrator does", async () => {
    const sandbox = demonstrationTask(22, 0).sandbox();
    await expect(sandbox.exec("rm -rf .")).rejects.toThrow(/does not know the command "rm -rf \."/);
    await expect(sandbox.read("other.py")).rejects.toThrow(/does not know the file other.py/);
    await expect(sandbox.snapshot()).rejects.toThrow(/does not know snapshots/);
  });
});

describe("phrases", () => {
  const before = [
    "",
    " ",
    "(",
    "'",
    "\n",
    "def ",
    ":def ",
    "open ",
    ". See ",
    'grep -rn "def ',
    "FAIL ",
    "[File: ",
  ];
  const after = ["(", ".py", "']", "': ", ".", " returns ", '"\n```', ".py) bash-$", "\n"];

  test("cut every name into the same two tokens in any surrounding", () => {
    const random = Random.of(23, "phrases");
    for (const name of [...namesOf("train"), ...namesOf("heldOut")]) {
      const expected = [...tokenizer.encode(name)];
      expect(expected.map((token) => tokenizer.piece(token))).toEqual([name.slice(0, 2), name.slice(2)]);
      for (let i = 0; i < 3; i++) {
        const [left, right] = [random.pick(before), random.pick(after)];
        const tokens = [...tokenizer.encode(left + name + right)];
        const whole = [...tokenizer.encode(left), ...expected, ...tokenizer.encode(right)];
        expect(tokens, left + name + right).toEqual(whole);
      }
    }
  });

  test("keep the vocabulary small, and are all met in demonstrations but for what only a policy runs into; held-out names never", async () => {
    expect(tokenizer.vocabularySize).toBeLessThan(512);
    const met = new Set<string>();
    const heldOut = new Set(namesOf("heldOut"));
    for (let index = 0; index < 400; index++) {
      const demonstration = demonstrationTask(24, index);
      const persona = (["expert", "sloppy", "confused"] as const)[index % 3] as Persona;
      const episode = await demonstrate(demonstration, persona, demonstration.sandbox());
      for (const token of episode.tokens) met.add(tokenizer.piece(token));
      // Every token that the warm start sees: none spells a name that is reserved for held-out tasks.
      const words = tokenizer.decode(episode.tokens).match(/[a-z]+/g) ?? [];
      expect(words.filter((word) => heldOut.has(word))).toEqual([]);
    }
    const unmet = PHRASES.filter((phrase) => !met.has(phrase));
    expect(unmet.length).toBeLessThan(20);
  });
});

test("a simulated sandbox fits the sandbox contract", () => {
  const sandbox: Sandbox = demonstrationTask(22, 0).sandbox();
  expect(sandbox.workdir).toBe("/repo");
});
