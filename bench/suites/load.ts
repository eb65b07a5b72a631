// A thousand episodes at once against an engine that costs nothing: what is left is JavaScript's own share. The event
// loop's delay says whether signals, timers and the engine's answers still come through.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setImmediate as eventLoopTurn } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  buildByteTokenizer,
  chatFormat,
  chatTemplateOf,
  type Engine,
  type Group,
  type Instance,
  Rollouts,
  RunDirectory,
  type Sandbox,
  type Session,
  scriptedEngine,
  tokenizerFromJson,
} from "tokenring";
import type { Case } from "../measure.ts";
import type { Suite } from "../suites.ts";

const EPISODES = 1000;
const TOKENS = 65_536;
const TURNS = 16;
const GROUP = 10;
/** Between two looks at the event loop; the monitor counts it in. */
const INTERVAL_MS = 5;

const files = buildByteTokenizer({ phrases: ["```command\n", "\n```", "submit"] });
const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
const chat = chatFormat(tokenizer, chatTemplateOf(files.tokenizerConfig));

const instance = (index: number): Instance => ({
  instance_id: `load-${index}`,
  repo: "load/load",
  base_commit: "0".repeat(40),
  problem_statement: `The ${index}th is slow.`,
  hints_text: "",
  created_at: "2025-01-01T00:00:00Z",
  version: "1",
  patch: "",
  test_patch: "",
  FAIL_TO_PASS: [],
  PASS_TO_PASS: [],
});

/** What a command prints: text of which a token is about a byte. */
const OUTPUT = Array.from(
  { length: Math.ceil(TOKENS / TURNS / 40) },
  (_, line) => `${`${line}`.padStart(5)}: some output of a command, ok\n`,
).join("");

function sandbox(): Sandbox {
  return {
    workdir: "/repo",
    exec: async () => ({ output: OUTPUT, exitCode: 0, timedOut: false, droppedBytes: 0, cwd: "/repo" }),
    read: async () => "",
    write: async () => {},
    diff: async () => "",
    snapshot: async () => ({ repository: "/repo", dispose: async () => {} }),
    close: async () => {},
  };
}

/** Answers in a later turn of the event loop, as every engine does. */
function later(engine: Engine): Engine {
  const wrap = (session: Session): Session => ({
    get length() {
      return session.length;
    },
    extend: (tokens) => session.extend(tokens),
    sample: async (options) => {
      await eventLoopTurn();
      return session.sample(options);
    },
    fork: () => wrap(session.fork()),
    dispose: () => session.dispose(),
    [Symbol.dispose]: () => session.dispose(),
  });
  return { ...engine, open: () => wrap(engine.open()) };
}

function collect(episodes: number): Promise<Group[]> {
  const rollouts = new Rollouts({
    engine: later(scriptedEngine(tokenizer, { script: () => () => "Look.\n```command\nmake all\n```" })),
    tokenizer,
    chat,
    template: { name: "load", opening: (of) => of.problem_statement },
    repository: async () => "/repo",
    sandboxes: { name: "none", open: async () => sandbox(), dispose: async () => {} },
    verify: async () => ({
      verdict: "failed",
      reason: "tests_failed",
      tests: {},
      failToPass: 0,
      passToPass: 0,
      exitCode: 1,
      log: "",
    }),
    limits: {
      maxTurns: 4 * TURNS,
      maxContext: TOKENS,
      maxActionTokens: 256,
      episodeMs: 2_000_000,
      observationChars: 2 * OUTPUT.length,
      autoSubmit: true,
    },
    seed: 1,
    episodes,
  });
  const instances = Array.from({ length: episodes / GROUP }, (_, i) => instance(i));
  return rollouts.collect({ instances, rollouts: GROUP, purpose: "load", iteration: 0, temperature: 1 });
}

/** 99th percentile of the event loop's delay, in milliseconds, while episodes run and are written as a job does. */
async function delayOf(episodes: number): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), "tokenring-load-"));
  const monitor = monitorEventLoopDelay({ resolution: INTERVAL_MS });
  try {
    const run = await RunDirectory.create(join(directory, "run"), { config: {}, seed: 1, version: "bench" });
    monitor.enable();
    const groups = await collect(episodes);
    await run.trajectories.write(
      "load",
      0,
      groups.flatMap(({ trajectories }) => trajectories.map((trajectory) => ({ trajectory }))),
    );
    monitor.disable();
    await run.close();
    return monitor.percentile(99) / 1e6 - INTERVAL_MS;
  } finally {
    monitor.disable();
    await rm(directory, { recursive: true });
  }
}

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

/** Bytes of JavaScript's heap and of typed arrays that are in use. */
function held(): number {
  collectGarbage();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Bytes that one token of the trajectories holds, its share of all else included. */
async function bytesPerToken(episodes: number): Promise<number> {
  const before = held();
  const groups = await collect(episodes);
  const bytes = held() - before;
  const tokens = groups.flatMap(({ trajectories }) => trajectories.map((one) => one.tokens.length));
  return bytes / tokens.reduce((sum, length) => sum + length, 0);
}

async function delay(): Promise<Case> {
  return {
    name: `event loop delay, p99, ${EPISODES} episodes of ${TOKENS} tokens at once and written`,
    unit: "ms",
    work: null,
    ours: () => delayOf(EPISODES),
    peers: {},
    close: async () => {},
  };
}

const memory = (episodes: number) => async (): Promise<Case> => ({
  name: `memory that ${episodes} episodes of ${TOKENS} tokens hold`,
  unit: "bytes/token",
  work: null,
  ours: () => bytesPerToken(episodes),
  peers: {},
  close: async () => {},
});

export const loadSuite: Suite = {
  name: "load",
  about: "a thousand episodes at once against an engine that costs nothing: event loop and memory",
  cases: [delay, memory(EPISODES / 4), memory(EPISODES)],
};
