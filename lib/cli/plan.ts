// `tokenring plan CONFIG`: memory and time of a job on a cluster, before anybody pays for it.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { TokenringError } from "../errors.ts";
import { DAPO_STAGE1 } from "../learn/dapo.ts";
import type { ContextSchedule } from "../ops/binding.ts";
import type { Constant, Hardware } from "../plan/hardware.ts";
import type { Workload } from "../plan/iteration.ts";
import type { Plan, PlanRequest } from "../plan/plan.ts";
import type { Span } from "../plan/simulate.ts";
import type { DecoderConfig } from "../policy/types.ts";
import type { JobConfig, StageConfig } from "../run/config.ts";
import { readConfig } from "../run/config-file.ts";
import { givenPath, positiveNumber, prepareJson, wholeNumber } from "./options.ts";
import { Progress } from "./progress.ts";
import { commandSignal } from "./signals.ts";

interface PlanOptions {
  nodes: number;
  gpusPerNode: number;
  hardware?: string;
  stage?: string;
  contextParallel?: number;
  contextSchedule?: ContextSchedule;
  shard?: "0" | "1" | "3";
  shardSize?: number;
  meanTokens?: number;
  actionShare?: number;
  turns?: number;
  kept?: number;
  commandSeconds?: number;
  verifySeconds?: number;
  verifications?: number;
  trace?: string;
  check?: string[];
  json?: string;
  quiet?: boolean;
}

/** What the paper does not say of its episodes, where no option does. */
const ASSUMED = {
  meanShare: 0.5,
  actionShare: 0.2,
  turnShare: 0.6,
  // 2 to 8 optimiser steps of 128 an iteration of 3,000 (arXiv 2508.03501, section 4.3).
  kept: 0.3,
  commandSeconds: 2,
  verifySeconds: 120,
  verifications: 512,
};

async function planJob(file: string | undefined, options: PlanOptions): Promise<void> {
  if (options.check !== undefined) {
    if (file !== undefined)
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `plan: --check looks at traces and plans nothing; leave out ${file}, or --check`,
      );
    const { checkPlan } = await import("./plan-check.ts");
    return checkPlan(options.check, options);
  }
  if (file === undefined)
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      "plan: give a job's config, or --check TRACE...",
    );
  const { config: job } = await readConfig(file);
  if (options.json !== undefined) await prepareJson(options.json);
  const { readHardware } = await import("../plan/hardware.ts");
  const { plan } = await import("../plan/plan.ts");
  const hardware = await readHardware(options.hardware);
  const stage = stageOf(job, file, options.stage);
  const config = await modelOf(job, file);
  const workload = workloadOf(stage, options);
  const spans: Span[] = [];
  const progress = new Progress({ quiet: options.quiet ?? false });
  const result = await plan({
    config,
    cluster: { hardware, gpusPerNode: options.gpusPerNode },
    nodes: options.nodes,
    workload,
    microBatchTokens: job.microBatchTokens,
    activationCheckpointing: job.activationCheckpointing || undefined,
    optimiserBits: job.optimiserBits,
    offload: job.offload === "none" ? undefined : job.offload,
    mesh: givenMesh(job, options),
    signal: commandSignal(),
    onCandidate: (done, of) => {
      if (done === 0) progress.phase("meshes", of);
      progress.update(done);
    },
    ...(options.trace ? { onSpan: (span: Span) => spans.push(span) } : {}),
  });
  progress.end();
  if (options.trace !== undefined) {
    const { chromeTrace } = await import("../plan/simulate.ts");
    await writeFile(options.trace, chromeTrace(spans));
  }
  const all = {
    schema: 1,
    job: file,
    stage: stage.name,
    nodes: options.nodes,
    ...result,
    workload,
    constants: hardware,
  };
  if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(all, null, 2)}\n`);
  if (!options.quiet) process.stdout.write(describe(result, stage.name, workload, hardware, options));
  if (result.fault) {
    const { item, bytes, cure } = result.fault;
    const { memory } = result;
    const [who, needed, has] =
      memory.bytes > memory.limit
        ? ["a GPU", memory.bytes, memory.limit]
        : ["a GPU's share of the host", memory.hostBytes, memory.hostLimit];
    throw new TokenringError(
      "ERR_TOKENRING_OUT_OF_MEMORY",
      `${file}: ${who} would need ${gb(needed)} and has ${gb(has)}; the largest item is ` +
        `${item} with ${gb(bytes)}. What would help: ${cure}`,
      { details: { item, bytes, cure } },
    );
  }
}

/** What options give, else what the job says of itself; its defaults say nothing, and are searched. */
function givenMesh(job: JobConfig, options: PlanOptions): PlanRequest["mesh"] {
  const context = job.contextParallel > 1 ? job : null;
  const sharded = job.shard > 0 ? job : null;
  const {
    contextParallel = context?.contextParallel,
    contextSchedule = options.contextParallel ? undefined : context?.contextSchedule,
    shardSize = options.shard ? undefined : sharded?.shardSize,
  } = options;
  const shard = options.shard === undefined ? sharded?.shard : (Number(options.shard) as 0 | 1 | 3);
  return {
    ...(contextParallel ? { contextParallel } : {}),
    ...(contextSchedule ? { contextSchedule } : {}),
    ...(shard === undefined ? {} : { shard }),
    ...(shardSize ? { shardSize } : {}),
  };
}

/** The stage of that name; else the one with the longest trajectories, which needs most. */
function stageOf(job: JobConfig, file: string, name: string | undefined): StageConfig {
  const { stages } = job;
  const found =
    name === undefined
      ? [...stages].sort((a, b) => b.limits.maxContext - a.limits.maxContext)[0]
      : stages.find((stage) => stage.name === name);
  if (found) return found;
  throw new TokenringError(
    "ERR_TOKENRING_CONFIG",
    stages.length === 0
      ? `${file}: it has no stages to plan; add one`
      : `${file}: there is no stage ${name}; give one of ${stages.map((stage) => stage.name).join(", ")}`,
  );
}

async function modelOf({ model }: JobConfig, file: string): Promise<DecoderConfig> {
  const { knownShape } = await import("../plan/shapes.ts");
  const { parseConfig, readConfigFile } = await import("../policy/config.ts");
  if ("create" in model) {
    throw new TokenringError(
      "ERR_TOKENRING_CONFIG",
      `${file}: model.create is a model for the CPU, and plans are of GPUs; give model.name or model.path`,
    );
  }
  const directory = "path" in model ? model.path : await cached(model.name, model.revision);
  const known = "name" in model ? knownShape(model.name) : null;
  const shape =
    directory === null ? known : parseConfig(await readConfigFile(directory), join(directory, "config.json"));
  if (!shape) {
    throw new TokenringError(
      "ERR_TOKENRING_CHECKPOINT",
      `${file}: the shape of ${"name" in model ? model.name : model.path} is not known here; ` +
        "download its config.json and give model.path its folder",
    );
  }
  if (!model.yarn) return shape;
  const { factor, originalMaxPositions } = model.yarn;
  return {
    ...shape,
    rope_scaling: { rope_type: "yarn", factor, original_max_position_embeddings: originalMaxPositions },
  };
}

/** The model's folder in the local cache; a plan downloads nothing. */
async function cached(name: string, revision: string): Promise<string | null> {
  const { findModel } = await import("../policy/model-source.ts");
  return findModel(name, { revision, offline: true }).catch(() => null);
}

function workloadOf(stage: StageConfig, options: PlanOptions): Workload {
  const { limits } = stage;
  const meanTokens = options.meanTokens ?? ASSUMED.meanShare * limits.maxContext;
  return {
    trajectories: stage.instances * stage.rollouts,
    meanTokens,
    maxTokens: limits.maxContext,
    actionTokens: (options.actionShare ?? ASSUMED.actionShare) * meanTokens,
    turns: options.turns ?? Math.round(ASSUMED.turnShare * limits.maxTurns),
    commandSeconds: options.commandSeconds ?? ASSUMED.commandSeconds,
    verifySeconds: options.verifySeconds ?? ASSUMED.verifySeconds,
    verifications: options.verifications ?? ASSUMED.verifications,
    kept: options.kept ?? ASSUMED.kept,
    batchSize: stage.batchSize,
    scored: (stage.oldLogprobs ?? DAPO_STAGE1.oldLogprobs) === "trainer",
  };
}

const gb = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
const time = (seconds: number): string =>
  seconds >= 3600
    ? `${(seconds / 3600).toFixed(2)} h`
    : seconds >= 60
      ? `${(seconds / 60).toFixed(1)} min`
      : `${seconds.toFixed(1)} s`;

function describe(
  result: Plan,
  stage: string,
  workload: Workload,
  hardware: Hardware,
  options: PlanOptions,
): string {
  const { mesh, memory, stations, update, engine } = result;
  const row = (name: string, value: string, note = ""): string =>
    `  ${name.padEnd(22)}${value.padStart(10)}   ${note}`.trimEnd();
  const share = (part: number, whole: number): string => `${((100 * part) / whole).toFixed(1)} %`;
  const schedule = mesh.contextParallel > 1 ? `, ${mesh.contextSchedule}` : "";
  const lines = [
    `${stage} on ${options.nodes} x ${options.gpusPerNode} GPUs: context parallel ${mesh.contextParallel}${schedule}, ` +
      `data parallel ${mesh.ranks / mesh.contextParallel}, ZeRO-${mesh.shard} over ${mesh.shard ? mesh.shardSize : 1}, ` +
      `activation checkpointing ${result.activationCheckpointing ? "on" : "off"}` +
      (result.offload === "none" ? "" : `, offload ${result.offload}`),
    "",
    `memory of a GPU, one trajectory of ${workload.maxTokens} tokens (modelled)`,
    ...memory.items.map(({ purpose, bytes }) => row(purpose, gb(bytes))),
    row("all", gb(memory.bytes), `of ${gb(memory.limit)}${memory.fits ? "" : ": does not fit"}`),
    ...(memory.hostBytes > 0
      ? [row("on the host", gb(memory.hostBytes), `of ${gb(memory.hostLimit)}, pinned, for each GPU`)]
      : []),
    "",
    "an iteration (modelled)",
    row(
      "rollouts",
      time(stations.rollout),
      engine.fault ??
        `${engine.replicas} engines of ${engine.tensorParallel} GPUs, ${engine.batch} sequences each`,
    ),
    row("verification", time(stations.verify)),
    row("old logprobs", time(stations.score), workload.scored ? "" : "the engine's are taken"),
    row(
      "update",
      time(stations.update),
      `${update.optimiserSteps} optimiser steps of ${update.passesPerStep} passes a group`,
    ),
    row("new weights", time(stations.weights)),
    row("all", time(result.seconds), `${result.gpuHours.toFixed(1)} GPU-hours`),
    "",
    "the update (modelled)",
    row("tokens a second", Math.round(update.tokensPerSecond).toLocaleString("en")),
    row("MFU", share(update.mfu, 1), "of the bf16 peak"),
    row("of the bound", share(update.ofBound, 1), "what it would be if communication cost nothing is 100 %"),
    row("exposed", time(update.exposedSeconds), "compute stands still for other ranks or links"),
    "",
    "constants",
    ...Object.entries(hardware).map(([name, constant]) => row(name, ...cells(constant))),
    "",
    `assumed of episodes: ${Math.round(workload.meanTokens)} tokens, ${Math.round(workload.actionTokens)} of them sampled, ` +
      `${workload.turns} turns of ${workload.commandSeconds} s, ${workload.verifySeconds} s to verify one, ` +
      `${workload.verifications} at once, ${(100 * workload.kept).toFixed(0)} % with an advantage (--help has the options)`,
  ];
  return `${lines.join("\n")}\n`;
}

function cells({ value, unit, origin, source }: Constant): [string, string] {
  const scaled: [number, string] =
    value >= 1e12
      ? [value / 1e12, "T"]
      : value >= 1e9
        ? [value / 1e9, "G"]
        : value < 1e-3
          ? [value * 1e6, "µ"]
          : [value, ""];
  return [`${Number(scaled[0].toPrecision(4))} ${scaled[1]}${unit}`.trimEnd(), `${origin}: ${source}`];
}

function fraction(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 1)) throw new InvalidArgumentError("Give a share above 0, at most 1.");
  return value;
}

export function register(program: Command): void {
  program
    .command("plan")
    .argument("[config]", "a job's config, as for tokenring train")
    .description(
      "Says what a job would need on a cluster of GPUs: memory by item, the time of an iteration by station, and the " +
        "best mesh. Nothing is run, and no GPU is needed: the schedule is built by the code that would train.",
    )
    .option("--nodes <n>", "nodes of the cluster", positiveNumber, 16)
    .option("--gpus-per-node <n>", "GPUs of a node", positiveNumber, 8)
    .option("--stage <name>", "a stage of the config (default: the one with the longest trajectories)")
    .option(
      "--context-parallel <n>",
      "ranks that share a trajectory (default: the job's, else searched)",
      positiveNumber,
    )
    .addOption(
      new Option(
        "--context-schedule <name>",
        "how they exchange keys and values (default: the job's, else ring, and two_level where they span nodes)",
      ).choices(["ring", "all_gather", "two_level"]),
    )
    .addOption(
      new Option("--shard <stage>", "ZeRO stage (default: the job's, else searched)").choices([
        "0",
        "1",
        "3",
      ]),
    )
    .option(
      "--shard-size <n>",
      "ranks that share a copy of what is sharded (default: the job's, else searched)",
      positiveNumber,
    )
    .option("--mean-tokens <n>", "tokens of a trajectory (assumed: half of the limit)", positiveNumber)
    .option("--action-share <share>", "of them, sampled by the policy (assumed: 0.2)", fraction)
    .option("--turns <n>", "turns of an episode (assumed: 0.6 of the limit)", positiveNumber)
    .option("--kept <share>", "of the trajectories, those with an advantage (assumed: 0.3)", fraction)
    .option("--command-seconds <s>", "of one command (assumed: 2)", wholeNumber)
    .option("--verify-seconds <s>", "of one verification (assumed: 120)", wholeNumber)
    .option("--verifications <n>", "at once (assumed: 512)", positiveNumber)
    .option(
      "--hardware <path>",
      "JSON with constants of your own in place of those that the plan prints",
      givenPath,
    )
    .option("--trace <path>", "also write the last pass of a step as a Chrome trace", givenPath)
    .option(
      "--check <traces...>",
      "in place of a plan: replay what the policy's option trace wrote, one file a host, and compare",
    )
    .option("--json <path>", "also write all numbers as JSON", givenPath)
    .option("--quiet", "print nothing but errors")
    .addHelpText(
      "after",
      "\nExamples:\n" +
        "  tokenring plan recipes/qwen2.5-72b.yaml                    # the fastest mesh that fits on 16 x 8 H200\n" +
        "  tokenring plan job.yaml --nodes 2 --context-parallel 4     # one mesh, on 16 GPUs\n" +
        "  tokenring plan job.yaml --trace step.json                  # the last pass of a step, for chrome://tracing\n" +
        "  tokenring plan --check traced.json                         # the simulator against steps that ranks took\n\n" +
        "The exit code is 1 if it does not fit.",
    )
    .action(planJob);
}
