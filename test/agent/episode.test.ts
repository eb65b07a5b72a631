import fc from "fast-check";
import { expect, test } from "vitest";
import { type EpisodeRequest, openRoot, promptTokens, runEpisode } from "../../lib/agent/episode.ts";
import { formatErrorText } from "../../lib/agent/grammar.ts";
import { ACTION, type Episode, OBSERVATION, PROMPT } from "../../lib/agent/types.ts";
import { type Script, scriptedEngine } from "../../lib/engine/scripted.ts";
import type { SampledTurn, SampleOptions, Session } from "../../lib/engine/types.ts";
import { isTokenringError, TokenringError } from "../../lib/errors.ts";
import { MemorySandbox, type Shell } from "../support/memory-sandbox.ts";
import { act, chat, instance, limits, template, tokenizer } from "../support/tiny-agent.ts";

const end = chat.endOfTurn[0] as number;
const task = instance("gebo");
const prompt = promptTokens(chat, template, task);
const scripted = (script: Script): Session => scriptedEngine(tokenizer, { script: () => script }).open();
const says =
  (...replies: string[]): Script =>
  (_, turn) =>
    replies[turn] ?? act("submit");

function request(session: Session, changes: Partial<EpisodeRequest> = {}): EpisodeRequest {
  return {
    instance: task,
    template,
    session,
    tokenizer,
    chat,
    sandbox: new MemorySandbox({ "gebo.py": "x = 1\n" }),
    limits,
    key: 7n,
    temperature: 1,
    ...changes,
  };
}

/** What every trajectory must be, whatever happened in it. */
function checkLanes(episode: Episode): void {
  const { tokens, provenance, logprobs, turns } = episode;
  expect(provenance.length).toBe(tokens.length);
  expect(logprobs.length).toBe(tokens.length);
  expect([...tokens.slice(0, prompt.length)]).toEqual([...prompt]);
  expect([...provenance.slice(0, prompt.length)].every((mark) => mark === PROMPT)).toBe(true);
  let at = prompt.length;
  for (const [index, turn] of turns.entries()) {
    expect(turn.start).toBe(at);
    expect([...provenance.slice(turn.start, turn.end)].every((mark) => mark === ACTION)).toBe(true);
    expect(tokenizer.decode(tokens.slice(turn.start, turn.end))).toBe(turn.text);
    expect(tokens[turn.end - 1] === end).toBe(turn.finish === "stop");
    const next = turns[index + 1]?.start ?? tokens.length;
    const shown = tokens.slice(turn.end, next);
    expect([...provenance.slice(turn.end, next)].every((mark) => mark === OBSERVATION)).toBe(true);
    const between = turn.observation === "" ? [] : [...chat.between(turn.observation)];
    expect([...shown]).toEqual(
      turn.observation !== "" && turn.finish === "length" ? [end, ...between] : between,
    );
    at = next;
  }
  expect(at).toBe(tokens.length);
}

test("an episode: read, edit, submit; tokens, provenance and turns fit together", async () => {
  const sandbox = new MemorySandbox({ "gebo.py": "x = 1\n" });
  const session = scripted(says(act("open gebo.py"), act("edit 1:1\nx = 2", "One is wrong."), act("submit")));
  const episode = await runEpisode(
    request(session, { sandbox, workspace: { style: "compact" }, rollout: 3, id: "e" }),
  );
  checkLanes(episode);
  expect([episode.exit, episode.id, episode.rollout, episode.cause]).toEqual(["submitted", "e", 3, null]);
  expect(episode.turns.map((turn) => turn.command)).toEqual(["open gebo.py", "edit 1:1\nx = 2", "submit"]);
  expect(episode.turns.map((turn) => turn.observation)).toEqual([
    "[File: gebo.py (1 lines total)]\n1:x = 1\n(Current directory: /repo, current file: gebo.py) bash-$",
    "File updated.\n1:x = 2\n(Current directory: /repo, current file: gebo.py) bash-$",
    "",
  ]);
  expect(episode.patch).toBe("/repo/gebo.py\nx = 2\n");
  expect(session.length).toBe(episode.tokens.length);
});

test("a fork of a root that holds the prompt gives the same stream", async () => {
  const engine = scriptedEngine(tokenizer, { script: () => says(act("ls")) });
  using root = openRoot(engine, prompt);
  using fork = root.fork();
  const forked = await runEpisode(request(fork));
  const plain = await runEpisode(request(scripted(says(act("ls")))));
  expect([...forked.tokens]).toEqual([...plain.tokens]);
  expect(root.length).toBe(prompt.length);
});

test("every sample gets the episode's key, temperature, stop tokens and what room there is", async () => {
  const asked: SampleOptions[] = [];
  const session = spy(scripted(says(act("ls"))), (options) => asked.push(options));
  await runEpisode(request(session, { temperature: 0.5, key: 99n }));
  expect(asked).toHaveLength(2);
  for (const { seed, temperature, stop, maxTokens } of asked) {
    expect({ seed, temperature, stop, maxTokens }).toEqual({
      seed: 99n,
      temperature: 0.5,
      stop: [end],
      maxTokens: limits.maxActionTokens,
    });
  }
});

test("format errors cost a turn and are told", async () => {
  const session = scripted(says("I forgot.", `${act("ls")}\n${act("ls")}`));
  const episode = await runEpisode(request(session));
  checkLanes(episode);
  expect(episode.turns.map((turn) => turn.formatError)).toEqual(["no_command", "multiple_commands", null]);
  expect(episode.turns[0]?.command).toBe(null);
  expect(episode.turns[0]?.observation).toContain(formatErrorText("no_command", "full"));
  expect(episode.turns[1]?.observation).toContain(formatErrorText("multiple_commands", "full"));
});

test("a turn that is cut gets its end as part of the observation, so that the stream stays well formed", async () => {
  const session = scripted(says("x".repeat(100)));
  const episode = await runEpisode(request(session, { limits: { ...limits, maxActionTokens: 40 } }));
  checkLanes(episode);
  const [cut] = episode.turns;
  expect([cut?.finish, (cut?.end ?? 0) - (cut?.start ?? 0), cut?.formatError]).toEqual([
    "length",
    40,
    "no_command",
  ]);
  expect(episode.tokens[cut?.end ?? 0]).toBe(end);
  expect(episode.provenance[cut?.end ?? 0]).toBe(OBSERVATION);
});

test("a turn that is cut behind its command still runs it", async () => {
  const command = act("ls", "");
  const session = scripted(says(`${command}\n${"x".repeat(200)}`));
  const room = tokenizer.encode(command).length + 3;
  const episode = await runEpisode(request(session, { limits: { ...limits, maxActionTokens: room } }));
  checkLanes(episode);
  expect([episode.turns[0]?.finish, episode.turns[0]?.command]).toEqual(["length", "ls"]);
});

test("turn limit: the last command runs, its observation is not read, the tree is judged", async () => {
  const session = scripted(() => act("edit --file gebo.py 1:1 y"));
  const episode = await runEpisode(request(session, { limits: { ...limits, maxTurns: 2 } }));
  checkLanes(episode);
  expect([episode.exit, episode.turns.length, episode.turns[1]?.observation]).toEqual(["turn_limit", 2, ""]);
  expect(episode.patch).toBe("/repo/gebo.py\ny\n");
});

test("without autoSubmit only what was submitted is judged", async () => {
  const edit = act("edit --file gebo.py 1:1 y");
  const strict = { ...limits, maxTurns: 2, autoSubmit: false };
  const unfinished = await runEpisode(request(scripted(says(edit, edit)), { limits: strict }));
  expect([unfinished.exit, unfinished.patch]).toEqual(["turn_limit", ""]);
  const submitted = await runEpisode(request(scripted(says(edit)), { limits: strict }));
  expect([submitted.exit, submitted.patch]).toEqual(["submitted", "/repo/gebo.py\ny\n"]);
});

test("context limit: no stream is ever longer, and none ends in an observation that leaves no room", async () => {
  for (let maxContext = prompt.length; maxContext < prompt.length + 160; maxContext += 7) {
    const session = scripted(() => act("ls"));
    const episode = await runEpisode(request(session, { limits: { ...limits, maxContext } }));
    checkLanes(episode);
    expect(episode.exit).toBe("context_limit");
    expect(episode.tokens.length).toBeLessThanOrEqual(maxContext);
    if (maxContext > prompt.length) expect(episode.provenance.at(-1)).toBe(ACTION);
    else expect(episode.turns).toEqual([]);
  }
  const session = scripted(() => act("ls"));
  const small = await runEpisode(request(session, { contextLimit: prompt.length + 50 }));
  expect([small.exit, small.tokens.length <= prompt.length + 50]).toEqual(["context_limit", true]);
});

test("wall time: a sampler that hangs and hears no signal ends the episode, and what was done is judged", async () => {
  const hanging = spy(scripted(says(act("edit --file gebo.py 1:1 y"))), (_, turn) =>
    turn === 0 ? undefined : new Promise(() => {}),
  );
  const episode = await runEpisode(request(hanging, { limits: { ...limits, episodeMs: 500 } }));
  checkLanes(episode);
  expect([episode.exit, episode.turns.length, episode.patch]).toEqual(["timeout", 1, "/repo/gebo.py\ny\n"]);
});

test("wall time: a command that hangs is told to stop", async () => {
  let told = false;
  const shell: Shell = (_command, _sandbox, { signal }) =>
    new Promise((_, reject) => {
      signal?.addEventListener("abort", () => {
        told = true;
        reject(signal.reason);
      });
    });
  const sandbox = new MemorySandbox({}, shell);
  const session = scripted(says(act("hang")));
  const episode = await runEpisode(request(session, { sandbox, limits: { ...limits, episodeMs: 30 } }));
  expect([episode.exit, told, episode.turns[0]?.command]).toEqual(["timeout", true, "hang"]);
});

test("a broken sandbox ends the episode as infra_failed, with the stream so far", async () => {
  const broken = new TokenringError("ERR_TOKENRING_SANDBOX", "the shell is gone");
  const sandbox = new MemorySandbox({}, (command) => {
    if (command === "ls") return { output: "a" };
    throw broken;
  });
  const episode = await runEpisode(request(scripted(says(act("ls"), act("pwd"))), { sandbox }));
  checkLanes(episode);
  expect([episode.exit, episode.cause, episode.patch, episode.turns.length]).toEqual([
    "infra_failed",
    broken,
    "",
    2,
  ]);

  const noDiff = new MemorySandbox();
  noDiff.diff = () => Promise.reject(broken);
  expect((await runEpisode(request(scripted(says()), { sandbox: noDiff }))).exit).toBe("infra_failed");
});

test("an abort by the caller is thrown, from whatever is being waited for", async () => {
  const controller = new AbortController();
  const session = spy(scripted(says()), ({ signal }) => {
    controller.abort(new Error("enough"));
    return Promise.reject(signal?.reason);
  });
  await expect(runEpisode(request(session, { signal: controller.signal }))).rejects.toSatisfy(
    (error) => isTokenringError(error, "ERR_TOKENRING_ABORTED") && error.message.includes("gebo"),
  );
  const early = request(scripted(says()), { signal: AbortSignal.abort() });
  await expect(runEpisode(early)).rejects.toThrow("the episode of gebo: stopped by the caller");
  const named = AbortSignal.abort(new TokenringError("ERR_TOKENRING_ABORTED", "stopped by SIGTERM"));
  await expect(runEpisode(request(scripted(says()), { signal: named }))).rejects.toThrow(
    "the episode of gebo: stopped by SIGTERM",
  );
});

test("an engine whose session is not our stream is caught", async () => {
  const lies: [string, (session: Session) => Session, RegExp][] = [
    ["forgets an observation", (inner) => double(inner, { extend: () => {} }), /session holds 0 tokens/],
    [
      "samples tokens it does not return",
      (inner) => double(inner, { sample: async (options) => shorten(await inner.sample(options)) }),
      /after a sampled turn/,
    ],
    [
      "comes with another stream",
      (inner) => {
        inner.extend([1, 2, 3]);
        return inner;
      },
      /after the prompt the engine's session/,
    ],
  ];
  for (const [what, lie, message] of lies) {
    const error = await runEpisode(request(lie(scripted(says(act("ls")))))).catch(
      (caught: unknown) => caught,
    );
    expect(isTokenringError(error, "ERR_TOKENRING_PREFIX_CHANGED"), what).toBe(true);
    expect((error as Error).message, what).toMatch(message);
  }
});

test("a turn that breaks the engine's contract is caught", async () => {
  const turn = (changes: Partial<SampledTurn>): Session => {
    const inner = scripted(says(act("ls")));
    return double(inner, { sample: async (options) => ({ ...(await inner.sample(options)), ...changes }) });
  };
  for (const [changes, message] of [
    [{ tokens: new Int32Array(0), logprobs: new Float32Array(0) }, /is empty/],
    [{ tokens: new Int32Array(300), logprobs: new Float32Array(300) }, /at most 256 were asked for/],
    [{ logprobs: new Float32Array(3) }, /and 3 logprobs/],
    [{ finish: "length" }, /stop token elsewhere/],
    [{ tokens: Int32Array.of(end, end), logprobs: new Float32Array(2) }, /stop token elsewhere/],
    [{ tokens: Int32Array.of(1, end), logprobs: Float32Array.of(0, Number.NaN) }, /logprob NaN/],
  ] as [Partial<SampledTurn>, RegExp][]) {
    await expect(runEpisode(request(turn(changes)))).rejects.toThrow(message);
  }
});

test("whatever is said and shown, the turns put together are the tokens", async () => {
  const reply = fc.oneof(
    fc.string({ unit: "grapheme" }),
    fc.string().map((command) => act(command)),
    fc.constantFrom(act("open gebo.py"), act("submit"), "<|end|>", act("echo '<|user|>'"), "```command\nls"),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(reply, { maxLength: 10 }),
      fc.string({ unit: "binary" }),
      fc.integer({ min: 1, max: 80 }),
      fc.integer({ min: 0, max: 600 }),
      async (replies, output, maxActionTokens, room) => {
        const sandbox = new MemorySandbox({ "gebo.py": output }, () => ({ output }));
        const bounds = { ...limits, maxActionTokens, maxContext: prompt.length + room };
        const session = scripted(says(...replies));
        const episode = await runEpisode(request(session, { sandbox, limits: bounds }));
        checkLanes(episode);
        expect(episode.tokens.length).toBeLessThanOrEqual(Math.max(prompt.length, bounds.maxContext));
        if (episode.turns.length > 0) expect(session.length).toBe(episode.tokens.length);
      },
    ),
  );
});

/** The session, but something else happens first when it is asked to sample. */
function spy(inner: Session, before: (options: SampleOptions, turn: number) => unknown): Session {
  let turn = 0;
  return double(inner, {
    sample: async (options) => {
      await before(options, turn++);
      return await inner.sample(options);
    },
  });
}

function double(inner: Session, changes: Partial<Pick<Session, "extend" | "sample">>): Session {
  return {
    get length() {
      return inner.length;
    },
    extend: (tokens) => inner.extend(tokens),
    sample: (options) => inner.sample(options),
    fork: () => inner.fork(),
    dispose: () => inner.dispose(),
    [Symbol.dispose]: () => inner.dispose(),
    ...changes,
  };
}

function shorten(turn: SampledTurn): SampledTurn {
  return { ...turn, tokens: turn.tokens.slice(1), logprobs: turn.logprobs.slice(1) };
}
