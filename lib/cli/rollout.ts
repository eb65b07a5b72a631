// `tokenring rollout SOURCE`: samples trajectories and trains nothing. Reports show them, `train --replay` learns from them.
import { stat } from "node:fs/promises";
import path from "node:path";
import { type Command, Option } from "commander";
import { stringify } from "yaml";
import { TokenringError } from "../errors.ts";
import type { JobConfig } from "../run/config.ts";
import { readConfig, withKeys } from "../run/config-file.ts";
import { SANDBOX_KINDS } from "../sandbox/types.ts";
import { givenPath, positiveNumber, temperature, wholeNumber, withRankFlags } from "./options.ts";
import { addResultOptions, begin, freshDirectory, type ResultOptions } from "./train.ts";
import { onRankZero } from "./worker.ts";

type RolloutConfig = NonNullable<JobConfig["rollout"]>;

interface RolloutOptions extends ResultOptions {
  checkpoint?: string;
  split?: RolloutConfig["split"];
  instances?: number;
  rollouts?: number;
  temperature?: number;
  maxTurns?: number;
  maxContext?: number;
  seed?: number;
  sandbox?: JobConfig["sandbox"]["kind"];
  out?: string;
}

/** The job that samples with the agent of a run or checkpoint, on its tasks. */
async function ofRun(
  source: string,
  checkpoint: string | undefined,
): Promise<{ config: JobConfig; name: string }> {
  const { findAgent } = await import("../run/agent.ts");
  const { directory, name, config } = await findAgent(source, checkpoint);
  if (config === null) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${source}: a model says nothing of tasks; give a run, or a config whose model.path is this directory`,
    );
  }
  return { config: { ...config, model: { path: directory } }, name };
}

async function rollout(source: string, options: RolloutOptions): Promise<void> {
  const there = await stat(source).catch(() => null);
  if (!there) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${source}: there is no such file or directory; give a run, a checkpoint of one, or a job's YAML`,
    );
  }
  const isFile = there.isFile();
  if (isFile && options.checkpoint !== undefined) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `--checkpoint ${options.checkpoint}: is of a run, and ${source} is a config; its model.path says which weights`,
    );
  }
  const { config: given, name } = isFile
    ? { config: (await readConfig(source)).config, name: path.parse(source).name }
    : await ofRun(source, options.checkpoint);
  if (isFile && given.warmStart) {
    throw new TokenringError(
      "ERR_TOKENRING_CONFIG",
      `${source}: warmStart: its policy comes of a warm start, and rollout trains nothing; train it, then give the run`,
    );
  }
  const { warmStart: _, rft, stages, replay: __, rollout: written, ...rest } = given;
  const split = options.split ?? written?.split ?? "train";
  const most = given.tasks[split === "train" ? "train" : "heldOut"];
  if ((options.instances ?? 0) > most) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `--instances ${options.instances}: there are ${most} tasks of ${split}; give fewer`,
    );
  }
  const limits = written?.limits ?? given.evaluate.limits;
  const seed = options.seed ?? written?.seed;
  const sampling: RolloutConfig = {
    split,
    instances: options.instances ?? written?.instances ?? most,
    rollouts: options.rollouts ?? written?.rollouts ?? rft?.rollouts ?? stages[0]?.rollouts ?? 10,
    temperature: options.temperature ?? written?.temperature ?? 1,
    ...(seed === undefined ? {} : { seed }),
    limits: {
      ...limits,
      maxTurns: options.maxTurns ?? limits.maxTurns,
      maxContext: options.maxContext ?? limits.maxContext,
    },
  };
  const job = { ...rest, sandbox: { ...rest.sandbox, kind: options.sandbox ?? rest.sandbox.kind } };
  const { config, text } = withKeys(stringify(withRankFlags(job, options)), source, { rollout: sampling });
  const out = options.out ?? freshDirectory(path.join("runs", `rollout-${name}-seed${seed ?? config.seed}`));
  await begin(config, text, out, options);
}

export function register(program: Command): void {
  addResultOptions(
    program
      .command("rollout")
      .summary("sample trajectories and train nothing")
      .description(
        "Lets the agent of SOURCE try tasks of its job and stores every trajectory, token by token, in a run directory " +
          "that `report` shows, `evaluate --verify` judges again and `train --replay` learns from.",
      )
      .argument("<source>", "a run directory, a checkpoint of one, or a job's YAML")
      .option("--checkpoint <name>", "of a run: base, rft, stage1, … (default: the newest)")
      .addOption(new Option("--split <name>", "which tasks (default: train)").choices(["train", "held-out"]))
      .option("--instances <n>", "so many of them, from the first on (default: all)", positiveNumber)
      .option("--rollouts <n>", "trajectories of each (default: as its job samples, else 10)", positiveNumber)
      .option("--temperature <t>", "of sampling (default: 1)", temperature)
      .option("--max-turns <n>", "turn limit of an episode (default: that of its evaluation)", positiveNumber)
      .option(
        "--max-context <n>",
        "token limit of an episode (default: that of its evaluation)",
        positiveNumber,
      )
      .option("--seed <n>", "decides the draws; the tasks stay (default: the job's)", wholeNumber)
      .addOption(
        new Option("--sandbox <kind>", "where commands run (default: the config's)").choices([
          ...SANDBOX_KINDS,
        ]),
      )
      .option(
        "--out <directory>",
        "the run directory; must be new or empty (default: a new one under runs/)",
        givenPath,
      ),
  )
    .addHelpText(
      "after",
      "\nExample: tokenring rollout runs/demo-seed1 --checkpoint base --instances 100 --out runs/sampled\n" +
        "tokenring resume goes on with one that was interrupted.",
    )
    .action(onRankZero(rollout));
}
