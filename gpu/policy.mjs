// The policy as a program for the checks and benchmarks in Python: a request as JSON on stdin, a line of JSON for each
// thing done on stdout. Every request has `device`, `model` (a DecoderConfig) and `options` (of Policy.create).
//
//   {"task": "steps", "documents": [[…]], "steps": n, "save": DIRECTORY or null}
//       AdamW on one batch with the loss of SFT. A line a step: loss, logprobs before it, norm of the gradient; the
//       weights are saved as they are before the first step (DIRECTORY/before) and after the last (DIRECTORY/after)
//   {"task": "sample", "prompt": […], "tokens": n}
//       {tokens, logprobs, scored}: a turn at temperature 1, and what `score` says of its tokens
//   {"task": "time", "tokens": n, "rounds": n, "optimise": true or false}
//       forward and backward of one document of random tokens (and the optimiser's step): {"ready": true} when the
//       weights are there, then a line a round: {seconds}
//   {"task": "memory", "lengths": […], "sessions": […]}
//       {told, held}: what `Policy.memory` says of these documents and sessions, and what the policy has held after them
import { embeddedEngine, Policy, Random } from "../dist/index.js";

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

/** Documents in one batch; every token but the first of each counts the same. */
function packed(documents) {
  const lengths = Int32Array.from(documents, ({ length }) => length);
  const tokens = Int32Array.from(documents.flat());
  const weight = new Float32Array(tokens.length).fill(1 / (tokens.length - documents.length));
  let at = 0;
  for (const { length } of documents) {
    weight[at] = 0;
    at += length;
  }
  return { tokens, lengths, weight };
}

async function steps(policy, { documents, steps, save }) {
  const batch = packed(documents);
  if (save) await policy.save(`${save}/before`);
  for (let i = 0; i < steps; i++) {
    const { loss, logprob } = await policy.accumulate(batch, { objective: "nll" });
    const { gradientNorm } = await policy.optimise({ learningRate: 1e-3, weightDecay: 0.1, clipNorm: 1 });
    say({ loss, logprobs: [...logprob], norm: gradientNorm });
  }
  if (save) await policy.save(`${save}/after`);
}

async function sample(policy, { prompt, tokens: count }) {
  const session = embeddedEngine(policy).open();
  session.extend(prompt);
  const turn = await session.sample({ maxTokens: count, stop: [], temperature: 1, seed: 7n });
  const whole = [...prompt, ...turn.tokens];
  const { logprob } = await policy.score({
    tokens: Int32Array.from(whole),
    lengths: Int32Array.of(whole.length),
  });
  say({
    tokens: [...turn.tokens],
    logprobs: [...turn.logprobs],
    scored: [...logprob.subarray(prompt.length)],
  });
}

async function time(policy, { tokens: count, rounds, optimise }) {
  const random = Random.of(1, "gpu/tokens");
  const batch = packed([Array.from({ length: count }, () => random.below(policy.config.vocab_size))]);
  say({ ready: true });
  for (let i = 0; i < rounds; i++) {
    const started = performance.now();
    await policy.accumulate(batch, { objective: "nll" });
    if (optimise) await policy.optimise({ learningRate: 1e-5 });
    say({ seconds: (performance.now() - started) / 1000 });
  }
}

async function memory(policy, { lengths, sessions, device, options }) {
  const random = Random.of(1, "gpu/tokens");
  const ids = (length) => Array.from({ length }, () => random.below(policy.config.vocab_size));
  for (const length of sessions) {
    const session = embeddedEngine(policy).open();
    session.extend(ids(length - 1));
    await session.sample({ maxTokens: 1, stop: [], temperature: 1, seed: 7n });
  }
  const batch = packed(lengths.map(ids));
  await policy.accumulate(batch, { objective: "nll" });
  await policy.optimise({ learningRate: 1e-5 });
  await policy.score(batch);
  const told = await Policy.memory(policy.config, lengths, { ...options, device, sessions });
  say({ told, held: await policy.heldMemory() });
}

const tasks = { steps, sample, time, memory };

async function main() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  const request = JSON.parse(text);
  const policy = await Policy.create(request.model, { ...request.options, device: request.device });
  try {
    await tasks[request.task](policy, request);
  } finally {
    await policy.dispose();
  }
}

try {
  await main();
} catch (error) {
  say({ code: error.code ?? null, error: error.message });
  process.exitCode = 1;
}
