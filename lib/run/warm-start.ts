// The warm start: what stands in for instruction tuning where no pretrained weights can be had. First a copying task,
// from which the induction circuit forms, then scripted demonstrations that go through the very same episode, tools
// and chat format as the policy later does, in a simulated sandbox.
import { setImmediate as eventLoopTurn } from "node:timers/promises";
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
  signal?: AbortSignal;
}

/** Documents of the copying task: loss from the first repetition on. */
function* copyBatches(options: WarmStartOptions): Generator<TrainingDocument[]> {
  const { copySteps, copyBatch } = options.config;
  for (let step = 0; step < copySteps; step++) {
    const random = Random.of(options.seed, "warm-start/copy", step);
    yield Array.from({ length: copyBatch.sequences }, (_, i) => {
      const tokens = options.tokenizer.encode(copySequence(random, copyBatch.tokens));
      const document = demonstrationDocument(
        `copy-${step}-${i}`,
        tokens,
        new Uint8Array(tokens.length).fill(ACTION),
      );
      document.mask.fill(0, 0, COPY_LONGEST);
      return document;
    });
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
  const episode = await runEpisode({
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
  });
  return demonstrationDocument(episode.id, episode.tokens, episode.provenance, {
    observationWeight: config.observationWeight,
    promptWeight: config.observationWeight,
  });
}

/** Demonstrations never wait for the event loop, so that no signal would come through: they let it turn this often. */
const TURN_MS = 20;

/** Batches of about `tokensPerStep` tokens; no demonstration comes twice. */
async function* demonstrationBatches(options: WarmStartOptions): AsyncGenerator<TrainingDocument[]> {
  const { steps, tokensPerStep, expertShare } = options.config;
  let index = 0;
  let turned = performance.now();
  for (let step = 0; step < steps; step++) {
    const batch: TrainingDocument[] = [];
    for (let tokens = 0; tokens < tokensPerStep; ) {
      if (performance.now() - turned >= TURN_MS) {
        await eventLoopTurn();
        turned = performance.now();
      }
      checkAborted(options.signal, `demonstration ${index}`);
      const document = await demonstration(index++, step < expertShare * steps, options);
      batch.push(document);
      tokens += document.tokens.length;
    }
    yield batch;
  }
}

/** Pulls one element ahead, so that the next batch is made while the native threads work on this one. */
async function* ahead<T>(source: AsyncGenerator<T>): AsyncGenerator<T> {
  let next = source.next();
  for (;;) {
    const { value, done } = await next;
    if (done) return;
    next = source.next();
    // A fault of the batch after this one is thrown when its turn comes.
    next.catch(() => {});
    yield value;
  }
}

/** One event an optimiser step, copying first; `step` counts through both parts. */
export async function* warmStart(
  options: WarmStartOptions,
): AsyncGenerator<SftStep & { part: "copy" | "demonstrations" }> {
  const { config, policy, microBatchTokens, signal } = options;
  const { learningRate, beta1, beta2, epsilon, weightDecay, clipNorm } = config;
  const common = {
    policy,
    microBatchTokens,
    optimiser: { beta1, beta2, epsilon, weightDecay, clipNorm },
    ...(signal ? { signal } : {}),
  };
  const copying = sft({
    ...common,
    purpose: "warm start, copying",
    batches: copyBatches(options),
    schedule: { peak: learningRate, warmupSteps: config.warmupSteps },
  });
  for await (const step of copying) yield { ...step, part: "copy" };
  const demonstrating = sft({
    ...common,
    purpose: "warm start, demonstrations",
    batches: ahead(demonstrationBatches(options)),
    schedule: {
      peak: learningRate,
      warmupSteps: config.warmupSteps,
      totalSteps: config.steps,
      floor: config.floor,
    },
  });
  for await (const step of demonstrating)
    yield { ...step, step: config.copySteps + step.step, part: "demonstrations" };
}
