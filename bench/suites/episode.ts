// What an episode costs beside the model, in CPU time: it can be told apart from what else the machine does.
import {
  buildByteTokenizer,
  chatFormat,
  chatTemplateOf,
  type Instance,
  localBackend,
  runEpisode,
  scriptedEngine,
  tinyswe,
  tokenizerFromJson,
  verify,
} from "tokenring";
import { cpuMilliseconds } from "../cpu.ts";
import type { Case } from "../measure.ts";
import type { Suite } from "../suites.ts";

const EPISODES = 20;
const LIMITS = {
  maxTurns: 12,
  maxContext: 100_000,
  maxActionTokens: 1_000,
  observationChars: 1_000,
  episodeMs: 30_000,
  autoSubmit: true,
};

/** What an episode costs beside the model: tasks are solved by a script (open, edit, test, submit) and judged. */
async function episodes(): Promise<Case> {
  const tasks = tinyswe({ seed: 1, train: EPISODES, heldOut: 0 });
  const backend = await localBackend({
    programs: tasks.programs,
    onWarning: (message) => process.stderr.write(`${message}\n`),
  });
  const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({ phrases: [] });
  const tokenizer = tokenizerFromJson(tokenizerJson, tokenizerConfig);
  const chat = chatFormat(tokenizer, chatTemplateOf(tokenizerConfig));
  const solve = async (task: (typeof tasks.tasks.train)[number]): Promise<void> => {
    const { instance, bugs } = task;
    const mend = bugs.flatMap((bug) => [
      `open ${bug.file}.py`,
      `edit ${bug.line}:${bug.line}\n${bug.correct}`,
    ]);
    const actions = [...mend, "python test.py", "submit"];
    const script = (_: string, turn: number): string => `So.\n\`\`\`command\n${actions[turn]}\n\`\`\``;
    using session = scriptedEngine(tokenizer, { script: () => script }).open();
    const sandbox = await backend.open({ repository: await tasks.repository(instance) });
    const request = { instance, template: tasks.template, session, tokenizer, chat, sandbox, limits: LIMITS };
    const { patch } = await runEpisode({
      ...request,
      workspace: { style: "compact" },
      key: 0n,
      temperature: 1,
    });
    await sandbox.close();
    const { verdict } = await verify({ instance, tasks, patch, backend });
    if (verdict !== "resolved") throw new Error(`${instance.instance_id}: the gold patch is ${verdict}`);
  };
  // Generated once for all episodes of a task.
  for (const { instance } of tasks.tasks.train) await tasks.repository(instance);
  return {
    name: "CPU of a scripted episode with its verification",
    unit: "ms",
    work: null,
    ours: async () => {
      const before = cpuMilliseconds();
      for (const task of tasks.tasks.train) await solve(task);
      return (cpuMilliseconds() - before) / EPISODES;
    },
    peers: {},
    async close() {
      await backend.dispose();
      await tasks.dispose();
    },
  };
}

const SANDBOXES = 64;

async function atOnce(): Promise<Case> {
  const tasks = tinyswe({ seed: 1, train: 1, heldOut: 0 });
  const backend = await localBackend({ onWarning: (message) => process.stderr.write(`${message}\n`) });
  const repository = await tasks.repository(tasks.train[0] as Instance);
  return {
    name: `CPU of a sandbox opened and closed, ${SANDBOXES} at once`,
    unit: "ms",
    work: null,
    ours: async () => {
      const before = cpuMilliseconds();
      const opened = await Promise.all(Array.from({ length: SANDBOXES }, () => backend.open({ repository })));
      await Promise.all(opened.map((one) => one.close()));
      return (cpuMilliseconds() - before) / SANDBOXES;
    },
    peers: {},
    async close() {
      await backend.dispose();
      await tasks.dispose();
    },
  };
}

export const episode: Suite = {
  name: "episode",
  about: "CPU of a scripted episode with its verification, and of the sandboxes that it opens",
  cases: [episodes, atOnce],
};
