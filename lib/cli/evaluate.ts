// `tokenring evaluate RUN`: measures a checkpoint of a run again, with other runs or limits if asked; with --verify it
// judges the patches that the run has stored once more.
import { type Command, Option } from "commander";
import { TokenringError } from "../errors.ts";
import { CONFIDENCE_SCORES, type ConfidenceReport } from "../evaluate/confidence.ts";
import type { Evaluation } from "../evaluate/evaluate.ts";
import { findCheckpoint } from "../run/checkpoints.ts";
import type { JobConfig } from "../run/config.ts";
import { parseConfig } from "../run/config-file.ts";
import { readManifest } from "../run/directory.ts";
import {
  addRankFlags,
  examples,
  givenPath,
  JSON_HELP,
  type OutputOptions,
  positiveNumber,
  prepareJson,
  type RankFlags,
  showsWords,
  withRankFlags,
  writeJson,
} from "./options.ts";
import { commandProgress } from "./progress.ts";
import { commandSignal } from "./signals.ts";
import { onRankZero } from "./worker.ts";

interface EvaluateOptions extends OutputOptions, RankFlags {
  checkpoint?: string;
  runs?: number;
  confidence?: (typeof CONFIDENCE_SCORES)[number];
  maxTurns?: number;
  verify?: boolean;
  sample?: number;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

async function evaluateRun(directory: string, options: EvaluateOptions): Promise<void> {
  const manifest = await readManifest(directory);
  const stored = parseConfig(JSON.stringify(manifest.config), `${directory}/run.json`);
  const config = withRankFlags(stored, options);
  if (options.verify) return verifyRun(directory, config, options);
  if (options.sample !== undefined) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      "--sample: there is nothing to sample without --verify; add it, or leave --sample out",
    );
  }
  const { name, path } = await findCheckpoint(directory, options.checkpoint);
  const runs = options.runs ?? config.evaluate.runs;
  const confidence = options.confidence ?? config.evaluate.confidence;
  const limits = { ...config.evaluate.limits, maxTurns: options.maxTurns ?? config.evaluate.limits.maxTurns };
  if (options.json !== undefined) await prepareJson(options.json);
  const progress = commandProgress(options);
  const { openJob } = await import("../run/job-context.ts");
  const { evaluate } = await import("../evaluate/evaluate.ts");
  await using context = await openJob(config, { progress, checkpoint: path, signal: commandSignal() });
  const { heldOut: instances, apart = {} } = context.tasks;
  if (instances.length === 0) {
    throw new TokenringError(
      "ERR_TOKENRING_TASK",
      `${directory}: its config has no held-out tasks to evaluate on`,
    );
  }
  const tasks = instances.length + Object.values(apart).flat().length;
  progress.phase(`${name}: evaluation`, tasks * runs);
  let episodes = 0;
  const { groups: _, ...evaluation } = await evaluate({
    rollouts: context.rollouts(limits),
    instances,
    apart,
    alsoAt: config.evaluate.alsoAt.filter(({ maxTurns }) => maxTurns < limits.maxTurns),
    runs,
    temperature: config.evaluate.temperature,
    purpose: `evaluate/${name}`,
    ...(confidence ? { confidence } : {}),
    ranTests: context.ranTests,
    onTrajectory: () => progress.update(++episodes),
    signal: commandSignal(),
  });
  progress.end();
  if (options.json !== undefined) await writeJson(options.json, evaluation);
  if (showsWords(options)) process.stdout.write(describe(name, evaluation));
}

/** Exit code 1 when a verdict of the run was not reached again. */
async function verifyRun(directory: string, config: JobConfig, options: EvaluateOptions): Promise<void> {
  const model = (["checkpoint", "runs", "maxTurns"] as const).find((name) => options[name] !== undefined);
  if (model !== undefined) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `--verify: ${model} says nothing about patches that are stored; leave it out`,
    );
  }
  if (options.json !== undefined) await prepareJson(options.json);
  const progress = commandProgress(options);
  const { openWorld } = await import("../run/world.ts");
  const { recheck } = await import("../run/recheck.ts");
  await using world = await openWorld(config, { progress });
  let begun = false;
  const result = await recheck(directory, world, {
    ...(options.sample === undefined ? {} : { sample: options.sample }),
    seed: config.seed,
    signal: commandSignal(),
    onPatch: (judged, of) => {
      if (!begun) progress.phase("patches judged again", of);
      begun = true;
      progress.update(judged);
    },
  });
  progress.end();
  const { trajectories, patches, judged, agreed, resolved, differences, broken } = result;
  if (options.json !== undefined) await writeJson(options.json, result);
  if (showsWords(options)) {
    const lines = [
      `${judged} of ${patches} patches judged again in fresh sandboxes, of ${trajectories} trajectories (at each limit that they count for)`,
      `  ${agreed} verdicts agree, ${resolved} of them resolved; ${differences.length} differ`,
      ...differences
        .slice(0, 20)
        .map((one) => `  ${one.stage} ${one.id}: stored ${one.stored}, found ${one.found} (${one.reason})`),
      ...(differences.length > 20 ? [`  ... and ${differences.length - 20} more`] : []),
      ...(broken > 0 ? [`  ${broken} patches say nothing: no sandbox held`] : []),
    ];
    process.stdout.write(`${lines.join("\n")}\n`);
  }
  if (differences.length > 0 || broken > 0) process.exitCode = 1;
}

function describe(name: string, evaluation: Evaluation): string {
  const { passK, instances, runs, turns, formatErrorRate, dropped, byKind, budget, alsoAt, apart } =
    evaluation;
  const rate = ({ pass1, sem }: Evaluation): string =>
    `${percent(pass1)}${sem === null ? "" : ` ± ${percent(sem)}`}`;
  const lines = [
    `${name}: Pass@1 ${rate(evaluation)} over ${runs} runs of ${instances} tasks, ${budget?.maxTurns} turns at most`,
    ...(alsoAt ?? []).map((one) => `  the same at ${one.budget?.maxTurns} turns: ${rate(one)}`),
    ...Object.entries(apart ?? {}).map(
      ([set, one]) => `  apart, ${set}: ${rate(one)} of ${one.instances} tasks`,
    ),
    ...Object.entries(passK)
      .filter(([k]) => k !== "1")
      .map(([k, share]) => `  Pass@${k} ${percent(share)}`),
    ...Object.entries(byKind).map(
      ([kind, entry]) => `  ${kind}: ${percent(entry.pass1)} of ${entry.instances} tasks`,
    ),
    ...(evaluation.confidence ? describeConfidence(evaluation.confidence) : []),
    `  ${turns.toFixed(1)} turns an episode, ${percent(formatErrorRate)} of them unreadable`,
  ];
  if (dropped > 0) lines.push(`  ${dropped} episodes left out: their sandbox broke`);
  return `${lines.join("\n")}\n`;
}

/** What confidence is worth: the surest of n, and answering only the surest episodes. */
function describeConfidence({ bestOf, curve, averagePrecision }: ConfidenceReport): string[] {
  const chosen = Object.entries(bestOf).filter(([n]) => n !== "1");
  const half = curve.find((point) => point.coverage >= 0.5);
  return [
    ...chosen.map(([n, { pass1 }]) => `  Pass@1 of the surest of ${n}: ${percent(pass1)}`),
    ...(half
      ? [`  answering the surest ${percent(half.coverage)} alone: ${percent(half.precision)} of them solved`]
      : []),
    ...(averagePrecision === null ? [] : [`  average precision by confidence ${percent(averagePrecision)}`]),
  ];
}

export function register(program: Command): void {
  const command = program
    .command("evaluate")
    .summary("measure a checkpoint of a run on its held-out tasks")
    .description(
      "Runs the held-out tasks of RUN with one of its checkpoints and prints Pass@1 with its standard error.",
    )
    .argument("<run>", "a run directory")
    .option("--checkpoint <name>", "base, rft, stage1, … (default: the newest)")
    .option("--runs <n>", "episodes per task (default: the config's)", positiveNumber)
    .option("--max-turns <n>", "turn limit of an episode (default: the config's)", positiveNumber)
    .option(
      "--verify",
      "instead judge the patches of the run again, in fresh sandboxes; exit code 1 if a verdict differs",
    )
    .option("--sample <n>", "with --verify: only this many of the patches", positiveNumber)
    .addOption(
      new Option("--confidence <score>", "also say what abstention and best-of-n by it gain").choices(
        CONFIDENCE_SCORES,
      ),
    );
  addRankFlags(command)
    .option("--json <path>", `also write all numbers as JSON; ${JSON_HELP}`, givenPath)
    .option("--quiet", "print nothing but errors")
    .action(onRankZero(evaluateRun));
  examples(command, [
    ["tokenring evaluate runs/demo-seed1", "the newest checkpoint, as its config says"],
    ["tokenring evaluate runs/demo-seed1 --checkpoint rft --runs 5", "another one, five episodes a task"],
    ["tokenring evaluate runs/demo-seed1 --verify --sample 200", "200 of the stored patches, judged again"],
  ]);
}
