// All variants, one after the other, each written down when it is done.
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  findCheckpoint,
  type JobConfig,
  type ProgressSink,
  parseConfig,
  RunDirectory,
  readConfig,
  readManifest,
  runJob,
  SolveRates,
  TokenringError,
} from "tokenring";
import { describeMachine, MOST_THREADS } from "../machine.ts";
import { learn } from "./learn.ts";
import { type Experiment, type VariantResult, variantSchema } from "./result.ts";
import { type Variant, variantsOf } from "./variants.ts";

export interface ExperimentOptions {
  /** A run with a finished RFT, whose config is taken; made from `recipe` where there is none. */
  run?: string | undefined;
  recipe: string;
  seed: number;
  /** Where results and checkpoints are kept, so that what is finished is not done again. */
  out: string;
  /** Names of variants; all where empty. */
  only: readonly string[];
  /** Of each stage, where not the config's. */
  iterations?: number | undefined;
  /** Held-out tasks, at most the config's, and episodes of each. */
  tasks?: number | undefined;
  runs: number;
  progress: ProgressSink;
  signal: AbortSignal;
  onResult?: (result: VariantResult, again: boolean) => void;
}

/** What a variant leaves in the output folder. */
interface Stored {
  settings: Experiment["settings"];
  result: VariantResult;
  rates: ReturnType<SolveRates["toJSON"]>;
}

/**
 * Runs the variants that have no result yet, in their order.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for unknown names, and for results in `out` that were made otherwise.
 */
export async function runExperiments(options: ExperimentOptions): Promise<Experiment> {
  const { out, only, runs, iterations } = options;
  await mkdir(join(out, "variants"), { recursive: true });
  const base = await baseRun(options);
  const config: JobConfig = {
    ...base.config,
    stages: base.config.stages.map((stage) => ({ ...stage, iterations: iterations ?? stage.iterations })),
  };
  if (config.stages.length < 2) {
    throw new TokenringError(
      "ERR_TOKENRING_CONFIG",
      `${base.directory}: the experiments vary the first of two stages and its config has ${config.stages.length}; ` +
        "give a run of recipes/tinyswe.yaml or of one like it",
    );
  }
  const tasks = Math.min(options.tasks ?? config.tasks.heldOut, config.tasks.heldOut);
  const settings: Experiment["settings"] = { stages: config.stages, tasks, runs, seed: config.seed };
  const all = variantsOf(config);
  const variants: VariantResult[] = [];
  for (const variant of chosen(all, only)) {
    const done = await stored(out, variant.name, settings);
    if (done) {
      options.onResult?.(done.result, true);
      variants.push(done.result);
      continue;
    }
    const start = await startOf(variant, base.checkpoint, out, settings);
    // Others start from this one.
    const save = all.some((one) => one.from === variant.name && one !== variant && variant.name !== "rft");
    const { result, rates } = await learn({
      config,
      variant,
      ...start,
      tasks,
      runs,
      ...(save ? { save: checkpointOf(out, variant.name) } : {}),
      progress: options.progress,
      signal: options.signal,
    });
    await keep(out, { settings, result, rates: rates.toJSON() });
    options.onResult?.(result, false);
    variants.push(result);
  }
  return { schema: 1, machine: describeMachine(MOST_THREADS).cpu, seed: config.seed, settings, variants };
}

/** The variants of these names, and those that they start from. */
function chosen(all: readonly Variant[], only: readonly string[]): Variant[] {
  const unknown = only.find((name) => !all.some((one) => one.name === name));
  if (unknown !== undefined) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `there is no variant "${unknown}"; give some of ${all.map(({ name }) => name).join(", ")}`,
    );
  }
  const wanted = new Set(only.length === 0 ? all.map(({ name }) => name) : only);
  for (const { name, from } of all) if (wanted.has(name) && from !== "rft") wanted.add(from);
  return all.filter(({ name }) => wanted.has(name));
}

/** The run whose RFT all start from: the one that is given, or one of the recipe up to there. */
async function baseRun(
  options: ExperimentOptions,
): Promise<{ directory: string; config: JobConfig; checkpoint: string }> {
  const { run, out, recipe, seed, progress, signal } = options;
  if (run !== undefined) {
    const manifest = await readManifest(run);
    const config = parseConfig(JSON.stringify(manifest.config), `${run}/run.json`);
    return { directory: run, config, checkpoint: (await findCheckpoint(run, "rft")).path };
  }
  const directory = join(out, "base");
  const config: JobConfig = { ...(await readConfig(recipe)).config, seed };
  const done = await findCheckpoint(directory, "rft").catch(() => null);
  if (!done) {
    // Its own evaluations are not needed.
    const job: JobConfig = { ...config, stages: [], evaluate: { ...config.evaluate, runs: 1 } };
    await rm(directory, { recursive: true, force: true });
    await using opened = await RunDirectory.create(directory, { config: job, seed, version: "experiments" });
    await runJob(job, { run: opened, progress, signal });
  }
  return { directory, config, checkpoint: (await findCheckpoint(directory, "rft")).path };
}

const checkpointOf = (out: string, name: string): string => join(out, "checkpoints", name);
const fileOf = (out: string, name: string): string => join(out, "variants", `${name}.json`);

async function startOf(
  { from }: Variant,
  shared: string,
  out: string,
  settings: Experiment["settings"],
): Promise<{ checkpoint: string; rates: SolveRates }> {
  if (from === "rft") return { checkpoint: shared, rates: new SolveRates() };
  const done = await stored(out, from, settings);
  return { checkpoint: checkpointOf(out, from), rates: SolveRates.fromJSON(done?.rates ?? {}) };
}

async function stored(out: string, name: string, settings: Experiment["settings"]): Promise<Stored | null> {
  const file = fileOf(out, name);
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
  const value = JSON.parse(text) as Stored;
  if (JSON.stringify(value.settings) !== JSON.stringify(settings)) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${file} was made with other settings; give another --out, or the settings that it has`,
    );
  }
  return { ...value, result: variantSchema.parse(value.result) };
}

/** Whole or not at all, so that what is there is finished. */
async function keep(out: string, value: Stored): Promise<void> {
  const file = fileOf(out, value.result.name);
  await writeFile(`${file}.tmp`, `${JSON.stringify(value, null, 1)}\n`);
  await rename(`${file}.tmp`, file);
}
