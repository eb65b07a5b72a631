// `tokenring train CONFIG` runs a job, `tokenring demo` the one that ships, and `tokenring resume RUN` goes on with one
// that was interrupted. Each ends with the arc that it drew.
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { type Command, Option } from "commander";
import { TokenringError } from "../errors.ts";
import type { JobConfig } from "../run/config.ts";
import { parseConfig, readConfig, withKeys } from "../run/config-file.ts";
import { RunDirectory, readManifest } from "../run/directory.ts";
import type { JobResult } from "../run/job.ts";
import type { SampledTotals } from "../run/rollout-job.ts";
import { SANDBOX_KINDS } from "../sandbox/types.ts";
import {
  addRankFlags,
  examples,
  givenPath,
  JSON_HELP,
  type OutputOptions,
  prepareJson,
  type RankFlags,
  showsWords,
  wholeNumber,
  withRankFlags,
  writeJson,
} from "./options.ts";
import { commandProgress, duration } from "./progress.ts";
import { commandSignal } from "./signals.ts";
import { onRankZero } from "./worker.ts";

/** The same path from lib/cli and from dist/cli. */
const DEMO_CONFIG = fileURLToPath(new URL("../../recipes/tinyswe.yaml", import.meta.url));
const PACKAGE = fileURLToPath(new URL("../../package.json", import.meta.url));

export type ResultOptions = OutputOptions & RankFlags;

interface TrainOptions extends ResultOptions {
  seed?: number;
  device?: JobConfig["device"];
  sandbox?: JobConfig["sandbox"]["kind"];
  out?: string;
  replay?: string;
  replayStage?: string[];
}

/** `base`, or `base-2`, `base-3`, …: the first that is not there yet. */
export function freshDirectory(base: string): string {
  for (let n = 1; ; n++) {
    const candidate = n === 1 ? base : `${base}-${n}`;
    if (!existsSync(candidate)) return candidate;
  }
}

async function train(file: string, name: string, options: TrainOptions): Promise<void> {
  const read = await readConfig(file);
  const { replay, replayStage: stages } = options;
  if (stages && !replay) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      "--replay-stage: says nothing without --replay; add it, or leave --replay-stage out",
    );
  }
  // Resuming may happen from elsewhere.
  const stored = replay && { path: path.resolve(replay), ...(stages ? { stages } : {}) };
  const { config: parsed, text: configText } = stored ? withKeys(read.text, file, { replay: stored }) : read;
  const config: JobConfig = {
    ...withRankFlags(parsed, options),
    seed: options.seed ?? parsed.seed,
    device: options.device ?? parsed.device,
    sandbox: { ...parsed.sandbox, kind: options.sandbox ?? parsed.sandbox.kind },
  };
  const directory = options.out ?? freshDirectory(path.join("runs", `${name}-seed${config.seed}`));
  await begin(config, configText, directory, options);
}

/** Does a job in a new run directory. */
export async function begin(
  config: JobConfig,
  configText: string,
  directory: string,
  options: ResultOptions,
): Promise<void> {
  const { version } = JSON.parse(await readFile(PACKAGE, "utf8")) as { version: string };
  const manifest = { config, configText, seed: config.seed, version };
  await work(config, directory, () => RunDirectory.create(directory, manifest), options);
}

async function resume(directory: string, options: ResultOptions): Promise<void> {
  const manifest = await readManifest(directory);
  const stored = parseConfig(JSON.stringify(manifest.config), path.join(directory, "run.json"));
  const config = withRankFlags(stored, options);
  await work(config, directory, () => RunDirectory.open(directory), options);
}

/** Does the job of an opened run directory, draws its report and prints its arc. */
async function work(
  config: JobConfig,
  directory: string,
  open: () => Promise<RunDirectory>,
  options: ResultOptions,
): Promise<void> {
  if (options.json !== undefined) await prepareJson(options.json);
  const progress = commandProgress(options);
  const signal = commandSignal();
  const { runJob } = await import("../run/job.ts");
  const [{ readRun }, { writeReport }, { arcTable }] = await Promise.all([
    import("../run/read.ts"),
    import("../report/report.ts"),
    import("../report/terminal.ts"),
  ]);
  let result: JobResult;
  {
    await using run = await open();
    progress.log(`run directory: ${directory}`);
    try {
      result = await runJob(config, { run, progress, signal });
    } catch (error) {
      // A fault of the cleaning must not hide the one that ended the run.
      const removed = await run.discardUnused().catch(() => false);
      progress.end();
      // Belongs to the error, so it is said under --quiet too.
      if (!removed) process.stderr.write(`to go on: tokenring resume ${directory}\n`);
      throw error;
    }
    progress.end();
  }
  const report = await writeReport([await readRun(directory)], path.join(directory, "report.html"));
  if (options.json !== undefined) await writeJson(options.json, result);
  if (!showsWords(options)) return;
  if (result.sampled) process.stdout.write(`\n${describeSampled(result.sampled)}\n`);
  else process.stdout.write(`\n${arcTable(result.stages, { columns: process.stdout.columns || 80 })}\n\n`);
  process.stdout.write(
    `${duration(result.seconds)}, at most ${Math.round(result.peakRssMiB)} MiB, seed ${result.seed}\nreport: ${report}\n`,
  );
}

function describeSampled({ episodes, solved, dropped, instances, instancesSolved }: SampledTotals): string {
  const share = episodes === 0 ? "0" : ((100 * solved) / episodes).toFixed(1);
  const broken = dropped > 0 ? `, ${dropped} more that a sandbox broke` : "";
  return `${episodes} episodes${broken}: ${solved} solved (${share} %), ${instancesSolved} of ${instances} instances at least once`;
}

export function addResultOptions(command: Command): Command {
  return addRankFlags(command)
    .option("--json <path>", `also write the arc and its cost as JSON; ${JSON_HELP}`, givenPath)
    .option("--quiet", "print nothing but errors");
}

function addOptions(command: Command): Command {
  return addResultOptions(
    command
      .option("--seed <n>", "decides every random choice (default: the config's)", wholeNumber)
      .addOption(
        new Option("--device <device>", "where the policy computes (default: the config's)").choices([
          "cpu",
          "cuda",
        ]),
      )
      .addOption(
        new Option("--sandbox <kind>", "where the agent's commands run (default: the config's)").choices([
          ...SANDBOX_KINDS,
        ]),
      )
      .option(
        "--out <directory>",
        "the run directory; must be new or empty (default: a new one under runs/)",
        givenPath,
      ),
  );
}

export function register(program: Command): void {
  const demo = addOptions(
    program
      .command("demo")
      .summary("train a tiny policy on generated repositories, base to stage 2, in minutes")
      .description(
        "Warm-starts a policy of about a million parameters on scripted demonstrations, lets it act on generated git\n" +
          "repositories in a sandbox, and learns from the tests' verdicts by RFT and two stages of DAPO. Prints the arc\n" +
          "on held-out tasks and writes report.html into the run directory.",
      ),
  ).action(onRankZero((options: TrainOptions) => train(DEMO_CONFIG, "demo", options)));
  examples(demo, [
    ["tokenring demo", "writes runs/demo-seed1"],
    ["tokenring demo --seed 2 --json arc.json", "other draws, and the numbers as JSON"],
    ["tokenring watch runs/demo-seed1", "in a second terminal: looks at it while it trains"],
  ]);

  const trained = addOptions(
    program
      .command("train")
      .summary("run the job that a YAML file describes")
      .description(
        "Runs the job of CONFIG, for example recipes/tinyswe.yaml, which is also what `demo` runs.",
      )
      .argument("<config>", "path of the job's YAML")
      .option("--replay <run>", "learn from the trajectories of this run in place of sampling", givenPath)
      .option("--replay-stage <name...>", "with --replay: from these of its stages alone"),
  ).action(
    onRankZero((config: string, options: TrainOptions) => train(config, path.parse(config).name, options)),
  );
  examples(
    trained,
    [
      ["tokenring train recipes/tinyswe.yaml", "the job behind the demo"],
      ["tokenring train job.yaml --seed 2 --out runs/second", "the same job with other draws"],
      ["tokenring train job.yaml --ranks 4", "on four processes of this machine"],
      ["tokenring train job.yaml --replay runs/sampled", "from trajectories of tokenring rollout"],
    ],
    "A key that the config misspells is named with its line and the nearest right one,\nbefore anything begins. " +
      "Ctrl-C ends a run at a point that tokenring resume goes on from.",
  );

  const resumed = addResultOptions(
    program
      .command("resume")
      .summary("go on with a run that was interrupted")
      .description(
        "Goes on after the last finished iteration of RUN, or the last saved step of a warm start, and ends as if the\n" +
          "run had never been interrupted.",
      )
      .argument("<run>", "a run directory"),
  ).action(onRankZero(resume));
  examples(resumed, [["tokenring resume runs/demo-seed1", "needs no flags: the run knows its job"]]);
}
