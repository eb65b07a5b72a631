import { expect, test } from "vitest";
import { chatFormat, chatTemplateOf } from "../../lib/engine/chat.ts";
import { tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import type { Policy } from "../../lib/policy/types.ts";
import { warmStart } from "../../lib/run/warm-start.ts";
import { PHRASES } from "../../lib/tasks/tinyswe/phrases.ts";

test("an abort comes through while a batch of demonstrations is made", async () => {
  const files = buildByteTokenizer({ phrases: PHRASES });
  const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
  const controller = new AbortController();
  const steps = warmStart({
    // The first batch is never whole, so that no step is taken.
    policy: {} as Policy,
    tokenizer,
    chat: chatFormat(tokenizer, chatTemplateOf(files.tokenizerConfig)),
    config: {
      copySteps: 0,
      copyBatch: { sequences: 1, tokens: 1 },
      steps: 1,
      tokensPerStep: 1_000_000,
      expertShare: 0.5,
      personas: { expert: 1, sloppy: 1, confused: 1 },
      observationWeight: 0.1,
      warmupSteps: 0,
      floor: 0.05,
      learningRate: 0.001,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0.1,
      clipNorm: 1,
    },
    limits: {
      maxTurns: 12,
      maxContext: 640,
      maxActionTokens: 48,
      observationChars: 1_000,
      episodeSeconds: 60,
      commandSeconds: 30,
      autoSubmit: true,
    },
    microBatchTokens: 4096,
    seed: 1,
    signal: controller.signal,
  });
  const first = steps.next();
  setImmediate(() => controller.abort(new Error("enough")));
  await expect(first).rejects.toMatchObject({
    code: "ERR_TOKENRING_ABORTED",
    message: expect.stringMatching(/^demonstration \d+: stopped by the caller$/),
  });
});
