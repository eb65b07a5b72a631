// OpenTelemetry's spans, as an SDK in the user's process collects them; and that nothing is asked of one without.
import { context, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";
import { afterAll, expect, test } from "vitest";
import { Rollouts } from "../../lib/agent/rollouts.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import { TokenringError } from "../../lib/errors.ts";
import { dapo } from "../../lib/learn/dapo.ts";
import { type Note, span, untraced } from "../../lib/trace.ts";
import type { Verification } from "../../lib/verify/types.ts";
import { PolicyDouble } from "../learn/doubles.ts";
import { MemoryBackend, MemorySandbox } from "../support/memory-sandbox.ts";
import { act, chat, instance, limits, template, tokenizer } from "../support/tiny-agent.ts";

const exporter = new InMemorySpanExporter();

/** What a user's own start-up file does; later than tokenring was loaded. */
function installSdk(): void {
  trace.setGlobalTracerProvider(
    new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }),
  );
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
}
afterAll(() => {
  trace.disable();
  context.disable();
});

/** One iteration of two groups of two; every other rollout solves its task at the second turn. */
async function iterate(signal?: AbortSignal): Promise<void> {
  const rollouts = new Rollouts({
    engine: scriptedEngine(tokenizer, {
      script: (index) => (_, turn) => act(turn === 0 ? `edit --file gebo.py 1:1 y${index % 2}` : "submit"),
      contextLimit: 4096,
    }),
    tokenizer,
    chat,
    template,
    repository: async () => "/repository",
    sandboxes: new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" })),
    verify: async (_, patch): Promise<Verification> => ({
      ...(patch.includes("y1")
        ? { verdict: "resolved", reason: null }
        : { verdict: "failed", reason: "tests_failed" }),
      tests: {},
      failToPass: 0,
      passToPass: 0,
      exitCode: 0,
      log: "",
    }),
    limits,
    seed: 3,
    episodes: 4,
  });
  const iterations = dapo({
    policy: new PolicyDouble(),
    rollouts,
    instances: [instance("a"), instance("b")],
    config: { iterations: 1, instances: 2, rollouts: 2, learningRate: 1, logprobTolerance: null },
    seed: 1,
    purpose: "stage1",
    ...(signal ? { signal } : {}),
  });
  for await (const _ of iterations);
}

test("without an SDK nothing is collected and the work is the same; one that comes later is followed", async () => {
  await iterate();
  const work = async (note: Note): Promise<number> => {
    note({ a: 1 });
    return 7;
  };
  expect(await span("alone", {}, work)).toBe(7);
  installSdk();
  expect(exporter.getFinishedSpans()).toEqual([]);
  await iterate();
  expect(exporter.getFinishedSpans().map(({ name }) => name)).toContain("optimiser step");
});

test("iteration, rollouts, episode, turn, sample, exec, verify and optimiser step, each below the other", async () => {
  exporter.reset();
  await span("mine", { who: "a user" }, () => iterate());
  const spans = exporter.getFinishedSpans();
  const byId = new Map(spans.map((one) => [one.spanContext().spanId, one]));
  const pathOf = (one: ReadableSpan): string => {
    const parent = one.parentSpanContext && byId.get(one.parentSpanContext.spanId);
    return parent ? `${pathOf(parent)}/${one.name}` : one.name;
  };
  const counts: Record<string, number> = {};
  for (const one of spans) counts[pathOf(one)] = (counts[pathOf(one)] ?? 0) + 1;
  const episode = "mine/iteration/rollouts/episode";
  const { [`${episode}/verify`]: verified, ...others } = counts;
  expect(others).toEqual({
    mine: 1,
    "mine/iteration": 1,
    "mine/iteration/rollouts": 1,
    [episode]: 4,
    [`${episode}/turn`]: 8,
    [`${episode}/turn/sample`]: 8,
    [`${episode}/turn/exec`]: 8,
    "mine/iteration/optimiser step": 1,
  });
  // Of two tasks and two patches each, all are judged once.
  expect(verified).toBe(4);
  for (const one of spans) {
    expect(one.instrumentationScope.name).toBe("tokenring");
    expect(one.status.code).toBe(0);
    expect(one.ended).toBe(true);
  }

  const named = (name: string): ReadableSpan[] => spans.filter((one) => one.name === name);
  expect(named("iteration")[0]?.attributes).toMatchObject({
    "tokenring.stage": "stage1",
    "tokenring.iteration": 0,
    "tokenring.episodes": 4,
    "tokenring.pass_rate": 0.5,
    "tokenring.groups_kept": 2,
    "tokenring.optimiser_steps": 1,
  });
  const verdicts = named("episode").map(({ attributes }) => attributes["tokenring.verdict"]);
  expect(verdicts.sort()).toEqual(["failed", "failed", "resolved", "resolved"]);
  expect(named("episode")[0]?.attributes).toMatchObject({
    "tokenring.exit": "submitted",
    "tokenring.turns": 2,
    "tokenring.attempts": 1,
  });
  const [sample] = named("sample");
  expect(sample?.attributes).toMatchObject({
    "gen_ai.request.max_tokens": 256,
    "gen_ai.request.temperature": 1,
    "gen_ai.response.finish_reasons": ["stop"],
  });
  expect(sample?.attributes["gen_ai.usage.output_tokens"]).toBeGreaterThan(5);
  expect(new Set(named("exec").map(({ attributes }) => attributes["gen_ai.tool.name"]))).toEqual(
    new Set(["edit", "submit"]),
  );
  expect(named("optimiser step")[0]?.attributes).toMatchObject({
    "tokenring.step": "stage1, iteration 0, step 0",
    "tokenring.trajectories": 4,
    "tokenring.gradient_norm": expect.any(Number),
  });
});

test("work that is not to be traced makes no spans, and its neighbours do", async () => {
  exporter.reset();
  await span("outer", {}, async () => {
    await Promise.all([untraced(iterate), span("beside", {}, async () => 1)]);
    await span("after", {}, async () => 2);
  });
  expect(exporter.getFinishedSpans().map(({ name }) => name)).toEqual(["beside", "after", "outer"]);
});

test("what fails marks its spans up to where it is caught", async () => {
  exporter.reset();
  await expect(
    span("outer", {}, () =>
      span("inner", {}, async () => {
        throw new TokenringError("ERR_TOKENRING_TASK", "no tests");
      }),
    ),
  ).rejects.toThrow("no tests");
  const spans = exporter.getFinishedSpans();
  expect(spans.map(({ name, status }) => [name, status.code, status.message])).toEqual([
    ["inner", 2, "no tests"],
    ["outer", 2, "no tests"],
  ]);
  expect(spans[0]?.events[0]).toMatchObject({
    name: "exception",
    attributes: { "exception.message": "no tests" },
  });
});
