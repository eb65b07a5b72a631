// A run directory of made-up episodes, as large as one likes: what a report is drawn from, without the days of training.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  ACTION,
  buildByteTokenizer,
  OBSERVATION,
  PROMPT,
  Random,
  RunDirectory,
  type Trajectory,
  type Turn,
  tokenizerFromJson,
} from "tokenring";

const files = buildByteTokenizer({
  phrases: [
    "```command\n",
    "\n```",
    "(Current directory: /repo, current file: none) bash-$\n",
    "    return ",
    "def ",
    "self.",
    "import ",
    "assert ",
    "test_",
    "value",
    "result",
    "error",
  ],
});
const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
const encoded = (text: string): Int32Array => Int32Array.from(tokenizer.encode(text));

const WORDS = "value result error index cache queue worker token parse merge split width offset".split(" ");

/** Texts as agents meet them, each with its tokens; drawn from again and again. */
function texts(random: Random): Record<"thought" | "code" | "log" | "diff", [string, Int32Array][]> {
  const word = (): string => WORDS[random.below(WORDS.length)] as string;
  const made = (count: number, text: () => string): [string, Int32Array][] =>
    Array.from({ length: count }, () => {
      const one = text();
      return [one, encoded(one)];
    });
  const lines = (count: number, line: (n: number) => string): string =>
    Array.from({ length: count }, (_, n) => line(n + 1)).join("\n");
  return {
    thought: made(
      24,
      () => `The ${word()} of ${word()} is not what ${word()} returns, so I look at ${word()}.py first.`,
    ),
    code: made(16, () =>
      lines(24, (n) =>
        n % 6 === 1
          ? `${n}:def ${word()}_${word()}(self, ${word()}):`
          : `${n}:    ${word()} = self.${word()}[${random.below(90)}] + "${word()}"  # ${word()}`,
      ),
    ),
    log: made(16, () =>
      lines(20, (n) => `test_${word()}.py::test_${word()}_${n} ${random.chance(0.8) ? "PASSED" : "FAILED"}`),
    ),
    diff: made(
      8,
      () =>
        `diff --git a/${word()}.py b/${word()}.py\n--- a/x.py\n+++ b/x.py\n@@ -1,9 +1,9 @@\n${lines(
          9,
          (n) => `${[" ", "+", "-"][n % 3]}    ${word()} = ${word()}(${n})`,
        )}`,
    ),
  };
}

const END = encoded("\n```");

/** An episode of at least `length` tokens, cut to it, in about `turns` turns. */
function episode(
  random: Random,
  pool: ReturnType<typeof texts>,
  who: { id: string; instanceId: string; rollout: number; length: number; turns: number; solved: boolean },
): Trajectory {
  const { length } = who;
  const tokens = new Int32Array(length);
  const provenance = new Uint8Array(length);
  const logprobs = new Float32Array(length);
  let at = 0;
  const add = (piece: Int32Array, from: number): void => {
    const part = piece.subarray(0, length - at);
    tokens.set(part, at);
    provenance.fill(from, at, at + part.length);
    if (from === ACTION)
      for (let i = at; i < at + part.length; i++) logprobs[i] = -(random.uniform() ** 6) * 4;
    at += part.length;
  };
  const draw = (from: [string, Int32Array][]): [string, Int32Array] =>
    from[random.below(from.length)] as [string, Int32Array];
  add(draw(pool.code)[1], PROMPT);
  const turns: Turn[] = [];
  const share = Math.ceil((length - at) / who.turns);
  while (at < length) {
    const start = at;
    const [thought, said] = draw(pool.thought);
    const command = `open ${WORDS[turns.length % WORDS.length]}.py ${turns.length}`;
    add(said, ACTION);
    add(encoded(`\n\`\`\`command\n${command}`), ACTION);
    add(END, ACTION);
    const end = at;
    const shown: string[] = [];
    while (at < length && at - start < share) {
      const [text, piece] = draw(random.chance(0.4) ? pool.log : random.chance(0.3) ? pool.diff : pool.code);
      shown.push(text);
      add(encoded("\n"), OBSERVATION);
      add(piece, OBSERVATION);
    }
    turns.push({
      start,
      end,
      text: `${thought}\n\`\`\`command\n${command}\n\`\`\``,
      command,
      formatError: random.chance(0.03) ? "multiple_commands" : null,
      observation: at < length ? shown.join("\n") : "",
      finish: "stop",
      version: 1,
      sampleMs: 4000 * random.uniform(),
      toolMs: 1500 * random.uniform(),
    });
  }
  return {
    id: who.id,
    instanceId: who.instanceId,
    rollout: who.rollout,
    tokens,
    provenance,
    logprobs,
    turns,
    exit: random.chance(0.9) ? "submitted" : "turn_limit",
    verdict: who.solved ? "resolved" : "failed",
    reason: who.solved ? null : "tests_failed",
    patch: draw(pool.diff)[0],
    verifyMs: 900,
  };
}

export interface MadeRun {
  /** Groups of ten, ten of them an iteration. */
  episodes: number;
  /** Mean tokens of an episode. */
  tokens: number;
  /** Tokens of one more episode, the longest of all. */
  longest: number;
}

/** Writes the run to `directory`, which must not be there. Everything in it is drawn from one seed. */
export async function makeRun(directory: string, { episodes, tokens, longest }: MadeRun): Promise<void> {
  const random = Random.of(1, "made run");
  const pool = texts(random);
  await using run = await RunDirectory.create(directory, { config: {}, seed: 1, version: "bench" });
  await run.saveCheckpoint("base", async (to) => {
    await writeFile(join(to, "tokenizer.json"), JSON.stringify(files.tokenizerJson));
    await writeFile(join(to, "tokenizer_config.json"), JSON.stringify(files.tokenizerConfig));
  });
  await run.record({ type: "stage_start", stage: "stage1" });
  const stored = (trajectory: Trajectory, solved: boolean) => {
    const actions = trajectory.provenance.reduce((sum, from) => sum + (from === ACTION ? 1 : 0), 0);
    const lane = (value: () => number): Float32Array => Float32Array.from({ length: actions }, value);
    return {
      trajectory,
      reward: solved ? 1 : 0,
      advantage: solved ? 1.2 : -0.8,
      learnt: {
        step: 0,
        logprob: lane(() => -(random.uniform() ** 6) * 4),
        entropy: lane(() => random.uniform() ** 4),
        flags: Uint8Array.from({ length: actions }, () => (random.chance(0.01) ? 1 + random.below(3) : 0)),
      },
    };
  };
  for (let done = 0, iteration = 0; done < episodes; iteration++) {
    const batch = [];
    for (let i = 0; i < Math.min(100, episodes - done); i++) {
      const solved = random.chance(0.4);
      const group = Math.floor(i / 10);
      const made = episode(random, pool, {
        id: `stage1-${iteration}/${group}/${i % 10}`,
        instanceId: `${WORDS[group % WORDS.length]}__${WORDS[iteration % WORDS.length]}-${iteration * 10 + group}`,
        rollout: i % 10,
        length: Math.round(tokens * (0.4 + 1.2 * random.uniform())),
        turns: 4 + random.below(16),
        solved,
      });
      if (random.chance(0.02)) {
        batch.push({
          trajectory: {
            ...made,
            exit: "infra_failed" as const,
            verdict: "not_run" as const,
            reason: "infra_failed",
          },
          dropped: true,
        });
      } else batch.push(stored(made, solved));
    }
    await run.trajectories.write("stage1", iteration, batch);
    done += batch.length;
  }
  const whole = episode(random, pool, {
    id: "longest",
    instanceId: "longest",
    rollout: 0,
    length: longest,
    turns: 120,
    solved: true,
  });
  await run.trajectories.write("longest", 0, [stored(whole, true)]);
  await run.record({ type: "end", seconds: 1, peakRssMiB: 1 });
}
