// Trains a policy from nothing on a multi-turn task that is not SWE: first it is shown what commands look like (random
// ones, which find few lamps), then DAPO lets it find out what to do with them.
//
//     node examples/custom-environment/train.mjs [--json]
import {
  buildByteTokenizer,
  chatFormat,
  chatTemplateOf,
  dapo,
  demonstrationDocument,
  embeddedEngine,
  evaluate,
  Policy,
  Random,
  Rollouts,
  runEpisode,
  scriptedEngine,
  sft,
  tokenizerFromJson,
} from "tokenring";
import { corridors, instances, reward, TURNS, template, tools, verify } from "./lamp.mjs";

const SEED = 1;
const COMMANDS = ["go left", "go right", "take"];
const json = process.argv.includes("--json");

const files = buildByteTokenizer({
  phrases: [
    "Take the lamp. ",
    "It is left.",
    "It is right.",
    "It is here.",
    "```command\n",
    "\n```",
    ...COMMANDS,
  ],
});
const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
const chat = chatFormat(tokenizer, chatTemplateOf(files.tokenizerConfig));
const policy = await Policy.create(
  {
    vocab_size: tokenizer.vocabularySize,
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    head_dim: 32,
    max_position_embeddings: 256,
    rope_theta: 10_000,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
    attention_bias: true,
  },
  { seed: SEED, std: 0.08 },
);

const limits = {
  maxTurns: TURNS,
  maxContext: 256,
  maxActionTokens: 6,
  episodeMs: 30_000,
  observationChars: 100,
  autoSubmit: true,
};
// No shell, so no shell's prompt under what is seen.
const workspace = { tools, style: "compact", prompt: () => "" };

/** An episode that does anything, as a document to imitate. */
async function demonstration(index) {
  const random = Random.of(SEED, "demonstration", index);
  const script = () => () => `\`\`\`command\n${random.pick(COMMANDS)}\n\`\`\``;
  const session = scriptedEngine(tokenizer, { script }).open();
  const instance = random.pick(instances);
  const sandbox = await corridors.open({ repository: String(instance.meta.lamp) });
  const { tokens, provenance } = await runEpisode({
    ...{ instance, template, session, tokenizer, chat, sandbox, limits, workspace },
    ...{ temperature: 1, key: 0n },
  });
  session.dispose();
  return demonstrationDocument(`demonstration-${index}`, tokens, provenance);
}

async function* demonstrations(steps, batch) {
  for (let step = 0; step < steps; step++) {
    yield await Promise.all(Array.from({ length: batch }, (_, i) => demonstration(step * batch + i)));
  }
}

const shown = sft({
  policy,
  batches: demonstrations(80, 16),
  schedule: { peak: 0.003, warmupSteps: 10 },
  optimiser: { beta2: 0.98 },
  microBatchTokens: 2048,
  ahead: true, // the demonstrations do not depend on the weights
});
for await (const { step, metrics } of shown) {
  if (!json && step % 40 === 39)
    console.log(`demonstrations, step ${step + 1}: loss ${metrics.loss.toFixed(2)}`);
}
await policy.resetOptimiser();

const rollouts = new Rollouts({
  ...{
    engine: embeddedEngine(policy),
    tokenizer,
    chat,
    template,
    sandboxes: corridors,
    verify,
    limits,
    workspace,
  },
  repository: async ({ meta }) => String(meta.lamp),
  seed: SEED,
  episodes: 64,
});

async function measure(purpose) {
  const { pass1, sem, turns } = await evaluate({ rollouts, instances, runs: 20, purpose });
  if (!json) {
    const percent = (share) => `${(100 * share).toFixed(1)} %`;
    console.log(
      `${purpose}: ${percent(pass1)} ± ${percent(sem)} of the lamps taken, ${turns.toFixed(2)} turns`,
    );
  }
  return { pass1, sem, turns };
}

const before = await measure("before");
const rewards = [];
const iterations = dapo({
  ...{ policy, rollouts, instances, reward, seed: SEED },
  config: {
    iterations: 30,
    instances: instances.length,
    rollouts: 16,
    batchSize: 48,
    filter: "final_reward",
    learningRate: 0.002,
    microBatchTokens: 2048,
  },
});
for await (const { iteration, summary } of iterations) {
  rewards.push(summary.reward);
  if (!json && iteration % 4 === 3)
    console.log(`iteration ${iteration + 1}: mean reward ${summary.reward.toFixed(2)}`);
}
const after = await measure("after");
await policy.dispose();
if (json) console.log(JSON.stringify({ before, after, rewards }));
