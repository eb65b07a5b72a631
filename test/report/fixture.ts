// A run directory as a job leaves it, with made-up numbers and hostile text in every place where text comes from
// models or repositories.
import { writeFile } from "node:fs/promises";
import path from "node:path";
import type { Trajectory, Turn } from "../../lib/agent/types.ts";
import { ACTION, OBSERVATION, PROMPT } from "../../lib/agent/types.ts";
import { tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { type Evaluation, summariseEvaluation } from "../../lib/evaluate/evaluate.ts";
import type { DapoSummary } from "../../lib/learn/dapo.ts";
import type { LearntTokens, StepMetrics } from "../../lib/learn/types.ts";
import { Random } from "../../lib/random.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { episode, instance } from "../learn/doubles.ts";

export const HOSTILE = `</pre></script><script>document.title="owned"</script><img src=x onerror="document.title='owned'">&amp;"'`;

/** What a terminal or a reader of right-to-left text would obey: escapes, a bell, an override, nothing seen. */
export const CONTROLS = "\u001b[2J\u001b]0;owned\u0007 \u202egnp.exe\u2066 a\u200bb";

const STAGES = [
  { name: "base", rate: 0.055 },
  { name: "rft", rate: 0.26 },
  { name: "stage1", rate: 0.39 },
  { name: "stage2", rate: 0.45 },
];

function evaluation(rate: number, random: Random): Evaluation {
  const groups = Array.from({ length: 40 }, (_, i) => {
    const one = instance(`held-${i}`, { kind: i % 3 === 0 ? "two" : "one" });
    // Skill differs by instance, so that Pass@10 is not certain.
    const p = Math.min(1, rate * 2 * random.uniform());
    return {
      instance: one,
      trajectories: Array.from({ length: 10 }, (_, rollout) =>
        episode(2 + random.below(6), random.chance(p), { instanceId: one.instance_id, rollout }),
      ),
      dropped: [],
    };
  });
  return summariseEvaluation(groups, { runs: 10, temperature: 1, ranTests: () => random.chance(0.4) });
}

/** An engine and a trainer that agree to the bit. */
const EXACT = { p50: 0, p95: 0, max: 0, outside: 0, k3: 0 };

function metrics(random: Random, at: number, over: Partial<StepMetrics> = {}): StepMetrics {
  return {
    loss: 0.4 + 2.5 * Math.exp(-at / 80) + 0.05 * random.uniform(),
    gradientNorm: 0.2 + 0.2 * random.uniform(),
    entropy: 0.15 + 0.15 * Math.exp(-at / 30) + 0.02 * random.uniform(),
    clipLow: 0.001 * random.uniform(),
    clipHigh: 0.004 * random.uniform(),
    clipDual: 0,
    approximateKl: 0.0004 * random.uniform(),
    referenceKl: null,
    tisClipped: null,
    tokens: 1800 + random.below(300),
    packedTokens: 12_000,
    trajectories: 60,
    learningRate: 4e-4,
    mismatch: null,
    learnMs: 300,
    ...over,
  };
}

function summary(random: Random, rate: number, iteration: number): DapoSummary {
  const groupsKept = 14 + random.below(7);
  const groupsDeadSolved = random.below(32 - groupsKept);
  return {
    episodes: 320,
    solved: Math.round(320 * rate),
    turns: 5.6 - 0.06 * iteration + 0.2 * random.uniform(),
    tokens: 200,
    actionTokens: 48,
    exits: { submitted: 290, turn_limit: 28, context_limit: 2, timeout: 0, infra_failed: 0 },
    formatErrorRate: 0.04 * Math.exp(-iteration / 10),
    testsRunRate: 0.6 - 0.02 * iteration,
    sampleMs: 4e4,
    toolMs: 2e4,
    verifyMs: 1e4,
    passRate: rate,
    reward: rate - 0.12,
    groups: 32,
    groupsExtra: 0,
    credit: null,
    groupsKept,
    groupsDeadSolved,
    groupsDeadFailed: 32 - groupsKept - groupsDeadSolved,
    groupsEmpty: 0,
    dropped: 0,
    trained: groupsKept * 10,
    mismatch: EXACT,
    learning: { steps: 3, ...metrics(random, iteration), packedTokens: 2_000 * groupsKept },
    sampledTokens: 48 * 320,
    scoredTokens: 0,
    scoreMs: 0,
    rolloutMs: 2100 + 300 * random.uniform(),
    learnMs: 900 + 100 * random.uniform(),
  };
}

const files = buildByteTokenizer({ phrases: ["The operator is wrong.", "python test.py", "submit"] });
const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);

/** An episode whose tokens are its text. */
function readable(random: Random, id: string, resolved: boolean, hostile: boolean): Trajectory {
  const tokens: number[] = [];
  const provenance: number[] = [];
  const logprobs: number[] = [];
  const add = (text: string, from: number): void => {
    for (const token of tokenizer.encode(text)) {
      tokens.push(token);
      provenance.push(from);
      logprobs.push(from === ACTION ? -(random.uniform() ** 6) * 4 : 0);
    }
  };
  add(
    "tepa(2, 3) returns -1, expected 5. See gebo.py.\n(Current directory: /repo, current file: none) bash-$\n",
    PROMPT,
  );
  const script: [string, string, string][] = [
    [
      "Let me look at the file.",
      "open gebo.py",
      "[File: gebo.py (4 lines total)]\n1:def tepa(a, b):\n2:    c = a\n3:    c = c - b\n4:    return c",
    ],
    ["The operator is wrong.", "edit 3:3\n    c = c + b", "File updated. Please review the changes."],
    ["Run the tests.", "python test.py", hostile ? `${HOSTILE}\n${CONTROLS}` : "OK — é 試"],
    ["Done.", "submit", ""],
  ];
  const turns = script.map(([thought, command, observation], i): Turn => {
    const text = `${hostile && i === 1 ? HOSTILE : thought}\n\`\`\`command\n${command}\n\`\`\``;
    const start = tokens.length;
    add(text, ACTION);
    const end = tokens.length;
    if (observation !== "")
      add(`\n${observation}\n(Current directory: /repo, current file: gebo.py) bash-$\n`, OBSERVATION);
    return {
      start,
      end,
      text,
      command,
      formatError: i === 0 && !resolved ? "multiple_commands" : null,
      observation,
      finish: "stop",
      version: 3,
      sampleMs: 4,
      toolMs: 2,
    };
  });
  return {
    id,
    instanceId: hostile ? `tinyswe-${HOSTILE}` : `tinyswe-${id}`,
    rollout: 0,
    tokens: Int32Array.from(tokens),
    provenance: Uint8Array.from(provenance),
    logprobs: Float32Array.from(logprobs),
    turns,
    exit: "submitted",
    verdict: resolved ? "resolved" : "failed",
    reason: resolved ? null : "tests_failed",
    patch: hostile ? HOSTILE : "--- a/gebo.py\n+++ b/gebo.py\n@@ -3 +3 @@\n-    c = c - b\n+    c = c + b\n",
    verifyMs: 8,
  };
}

/** What a step may have seen of it: numbers that are no one else's. */
function learntFrom(
  random: Random,
  { provenance, logprobs }: Trajectory,
  step: number,
  old: boolean,
): LearntTokens {
  const at = [...provenance.keys()].filter((i) => provenance[i] === ACTION);
  const behind = at.map((i) => (logprobs[i] as number) + (old ? 0.01 * random.uniform() : 0));
  return {
    step,
    logprob: Float32Array.from(behind, (value) => value + (step === 0 ? 0 : 0.6 * (random.uniform() - 0.5))),
    entropy: Float32Array.from(at, () => 3 * random.uniform() ** 4),
    flags: Uint8Array.from(at, () => (step === 0 || random.chance(0.9) ? 0 : 1 + random.below(3))),
    ...(old && { oldLogprob: Float32Array.from(behind) }),
  };
}

/** Writes a finished run into `directory`. */
export async function writeRun(
  directory: string,
  seed: number,
  options: { hostile?: boolean } = {},
): Promise<void> {
  const hostile = options.hostile ?? false;
  const random = Random.of(seed, "report fixture");
  await using run = await RunDirectory.create(directory, {
    config: { seed },
    seed,
    version: "0.1.0",
    configText: `# ${hostile ? HOSTILE : "the embedded default"}\nseed: ${seed}\ndevice: cpu\nstages:\n  - name: stage1\n    clipHigh: 0.3\n`,
  });
  const seconds = { base: 118, rft: 24, stage1: 75, stage2: 69 } as Record<string, number>;
  for (const [s, stage] of STAGES.entries()) {
    const rate = stage.rate * (0.85 + 0.3 * random.uniform());
    await run.record({ type: "stage_start", stage: stage.name });
    const supervised = { base: 700, rft: 30 }[stage.name] ?? 0;
    for (let step = 0; step < supervised; step++) {
      await run.record({
        type: "step",
        stage: stage.name,
        step,
        metrics: metrics(random, s * 300 + step, {
          mismatch: stage.name === "rft" && step === 0 ? EXACT : null,
        }),
      });
    }
    let step = 0;
    for (let iteration = 0; s >= 2 && iteration < 14; iteration++) {
      for (let i = 0; i < 3; i++) {
        const made = metrics(random, iteration * 3 + i, {
          loss: 0.01 * random.uniform(),
          mismatch: i === 0 ? EXACT : null,
        });
        await run.record({ type: "step", stage: stage.name, step: step++, iteration, metrics: made });
      }
      const progress = rate - 0.15 + 0.012 * iteration + 0.02 * random.uniform();
      await run.trajectories.write(
        stage.name,
        iteration,
        [true, false, false].map((resolved, rollout) => {
          const made = { ...readable(random, `${stage.name}-${iteration}`, resolved, hostile), rollout };
          const infra = iteration === 3 && rollout === 2;
          const trajectory: Trajectory = infra
            ? { ...made, exit: "infra_failed", verdict: "not_run", reason: "infra_failed" }
            : made;
          if (infra) return { trajectory, dropped: true };
          const learnt = learntFrom(random, made, rollout, stage.name === "stage2");
          return { trajectory, reward: resolved ? 1 : 0, advantage: resolved ? 1.41 : -0.7, learnt };
        }),
      );
      await run.record({
        type: "iteration",
        stage: stage.name,
        iteration,
        summary: summary(random, progress, iteration),
      });
    }
    await run.saveCheckpoint(stage.name, saveTokenizer);
    await run.record({ type: "evaluation", stage: stage.name, evaluation: evaluation(rate, random) });
    await run.trajectories.write(`${stage.name}-evaluation`, 0, [
      { trajectory: readable(random, `${stage.name}-0`, true, hostile) },
      { trajectory: { ...readable(random, `${stage.name}-1`, false, hostile), rollout: 1 } },
    ]);
    const all = seconds[stage.name] as number;
    await run.record({
      type: "stage_end",
      stage: stage.name,
      seconds:
        s === 0
          ? { learn: 0.8 * all, evaluate: 0.18 * all, other: 0.02 * all }
          : { rollouts: 0.5 * all, learn: 0.25 * all, evaluate: 0.22 * all, other: 0.03 * all },
    });
  }
  await run.record({ type: "end", seconds: 291.4, peakRssMiB: 412.7 });
}

/** The tokenizer of the made-up episodes, as a checkpoint holds it. */
export async function saveTokenizer(directory: string): Promise<void> {
  await writeFile(path.join(directory, "tokenizer.json"), JSON.stringify(files.tokenizerJson));
  await writeFile(path.join(directory, "tokenizer_config.json"), JSON.stringify(files.tokenizerConfig));
}

/** An episode of exactly `length` tokens in 60 turns, with code in its observations. */
export function longEpisode(length: number): Trajectory {
  const random = Random.of(7, "long episode");
  const newline = tokenizer.encode("\n")[0] as number;
  const letters = Array.from(
    { length: 96 },
    (_, i) => tokenizer.encode(String.fromCharCode(32 + (i % 95)))[0] as number,
  );
  const tokens = new Int32Array(length);
  const provenance = new Uint8Array(length).fill(OBSERVATION);
  const logprobs = new Float32Array(length);
  for (let i = 0, column = 0; i < length; i++, column++) {
    const ends = column > 20 && random.chance(0.02);
    tokens[i] = ends ? newline : (letters[random.below(letters.length)] as number);
    if (ends) column = 0;
  }
  provenance.fill(PROMPT, 0, 1000);
  const stride = Math.floor((length - 1000) / 60);
  const turns = Array.from({ length: 60 }, (_, n): Turn => {
    const start = 1000 + n * stride;
    const end = start + Math.floor(stride / 5);
    provenance.fill(ACTION, start, end);
    for (let i = start; i < end; i++) logprobs[i] = -(random.uniform() ** 6) * 4;
    const text = tokenizer.decode(tokens.subarray(start, end));
    return {
      start,
      end,
      text,
      command: null,
      formatError: null,
      observation: "",
      finish: "stop",
      version: 1,
      sampleMs: 900 * random.uniform(),
      toolMs: 400 * random.uniform(),
    };
  });
  return {
    id: "long",
    instanceId: "long",
    rollout: 0,
    tokens,
    provenance,
    logprobs,
    turns,
    exit: "submitted",
    verdict: "resolved",
    reason: null,
    patch: "",
    verifyMs: 2000,
  };
}
