// The warm start: what stands in for instruction tuning where no pretrained weights can be had. First a copying task,
// from which the induction circuit forms, then scripted demonstrations that go through the very same episode, tools
// and chat format as the policy later does, in a simulated sandbox.
import { runEpisode } from "../agent/episode.ts";
import { ACTION } from "../agent/types.ts";
import { scriptedEngine } from "../engine/scripted.ts";
import type { ChatFormat, Tokenizer } from "../engine/tokenizer-types.ts";
import { checkAborted } from "../learn/abort.ts";
import { type SftStep, sft } from "../learn/sft.ts";
import { demonstrationDocument, type TrainingDocument } from "../learn/weights.ts";
import type { Policy } from "../policy/types.ts";
import { Random } from "../random.ts";
import { COPY_LONGEST, copySequence } from "../tasks/tinyswe/copy.ts";
import { demonstrationTask } from "../tasks/tinyswe/demonstrator.ts";
import { COMPACT_TEMPLATE } from "../tasks/tinyswe/tinyswe.ts";
import { untraced } from "../trace.ts";
import { turn } from "../turns.ts";
import type { JobConfig } from "./config.ts";
import { episodeLimits } from "./limits.ts";

export type WarmStartConfig = NonNullable<JobConfig["warmStart"]>;

export interface WarmStartOptions {
  policy: Policy;
  tokenizer: Tokenizer;
  chat: ChatFormat;
  config: WarmStartConfig;
  /** Limits that demonstrations keep to. */
  limits: JobConfig["evaluate"]["limits"];
  microBatchTokens: number;
  seed: number;
  /** `next` of the last step that is done, on resume. */
  start?: WarmStartCursor;
  signal?: AbortSignal;
}

/** Where a warm start stands between two steps, as plain JSON. */
export interface WarmStartCursor {
  /** Optimiser steps done, of both parts. */
  step: number;
  /** Demonstrations used up. */
  demonstration: number;
}

/** Documents of the copying task: loss from the first repetition on. */
async function* copyBatches(options: WarmStartOptions, start: number): AsyncGenerator<TrainingDocument[]> {
  const { copySteps, copyBatch } = options.config;
  for (let step = start; step < copySteps; step++) {
    const random = Random.of(options.seed, "warm-start/copy", step);
    const batch: TrainingDocument[] = [];
    while (batch.length < copyBatch.sequences) {
      await turn();
      const id = `copy-${step}-${batch.length}`;
      checkAborted(options.signal, id);
      const tokens = options.tokenizer.encode(copySequence(random, copyBatch.tokens));
      const document = demonstrationDocument(id, tokens, new Uint8Array(tokens.length).fill(ACTION));
      document.mask.fill(0, 0, COPY_LONGEST);
      batch.push(document);
    }
    yield batch;
  }
}

/** Demonstration `index` as a document; the stage decides who demonstrates. */
async function demonstration(
  index: number,
  expertOnly: boolean,
  options: WarmStartOptions,
): Promise<TrainingDocument> {
  const { config, tokenizer, chat, seed } = options;
  const { instance, sandbox, script } = demonstrationTask(seed, index);
  const random = Random.of(seed, "warm-start/persona", index);
  const persona = expertOnly ? "expert" : random.weighted(config.personas);
  const engine = scriptedEngine(tokenizer, { script: () => script(persona) });
  using session = engine.open();
  const episode = await untraced(() =>
    runEpisode({
      id: `demonstration-${index}`,
      instance,
      template: COMPACT_TEMPLATE,
      session,
      tokenizer,
      chat,
      sandbox: sandbox(),
      limits: episodeLimits(options.limits),
      temperature: 1,
      key: 0n,
      workspace: { style: "compact" },
      ...(options.signal ? { signal: options.signal } : {}),
    }),
  );
  return demonstrationDocument(episode.id, episode.tokens, episode.provenance, {
    observationWeight: config.observationWeight,
    promptWeight: config.observationWeight,
  });
}

/**
 * Batches of about `tokensPerStep` tokens; no demonstration comes twice. Tells `used` after each how many
 * demonstrations are used up.
 */
async function* demonstrationBatches(
  options: WarmStartOptions,
  start: WarmStartCursor,
  used: (demonstrations: number) => void,
): AsyncGenerator<TrainingDocument[]> {
  const { steps, tokensPerStep, expertShare } = options.config;
  let index = start.demonstration;
  for (let step = start.step; step < steps; step++) {
    const batch: TrainingDocument[] = [];
    for (let tokens = 0; tokens < tokensPerStep; ) {
      await turn();
      checkAborted(options.signal, `demonstration ${index}`);
      const document = await demonstration(index++, step < expertShare * steps, options);
      batch.push(document);
      tokens += document.tokens.length;
    }
    used(index);
    yield batch;
  }
}

/** One event an optimiser step, copying first; `step` counts through both parts. */
export async function* warmStart(
  options: WarmStartOptions,
): AsyncGenerator<SftStep & { part: "copy" | "demonstrations"; next: WarmStartCursor }> {
  const { config, policy, microBatchTokens, signal, start = { step: 0, demonstration: 0 } } = options;
  const { learningRate, beta1, beta2, epsilon, weightDecay, clipNorm, copySteps } = config;
  const common = {
    policy,
    microBatchTokens,
    ahead: true,
    optimiser: { beta1, beta2, epsilon, weightDecay, clipNorm },
    ...(signal ? { signal } : {}),
  };
  const copying = sft({
    ...common,
    purpose: "warm start, copying",
    batches: copyBatches(options, start.step),
    startStep: start.step,
    schedule: { peak: learningRate, warmupSteps: config.warmupSteps },
  });
  for await (const { step, metrics } of copying)
    yield { step, metrics, part: "copy", next: { step: step + 1, demonstration: 0 } };
  // Batches are made ahead of the steps, so each step's count waits here for it.
  const used: number[] = [];
  const startStep = Math.max(0, start.step - copySteps);
  const from = { step: startStep, demonstration: start.demonstration };
  const demonstrating = sft({
    ...common,
    purpose: "warm start, demonstrations",
    batches: demonstrationBatches(options, from, (count) => used.push(count)),
    startStep,
    schedule: {
      peak: learningRate,
      warmupSteps: config.warmupSteps,
      totalSteps: config.steps,
      floor: config.floor,
    },
  });
  for await (const { step, metrics } of demonstrating) {
    const next = { step: copySteps + step + 1, demonstration: used.shift() as number };
    yield { step: copySteps + step, metrics, part: "demonstrations", next };
  }
}
