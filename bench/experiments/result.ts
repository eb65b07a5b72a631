// What an experiment leaves behind, and how variants are compared on the same instances.
import { readFile } from "node:fs/promises";
import { mean, sem, TokenringError } from "tokenring";
import { z } from "zod";

const confidence = z.object({
  averagePrecision: z.number().nullable(),
  curve: z.array(
    z.object({ threshold: z.number(), coverage: z.number(), precision: z.number(), recall: z.number() }),
  ),
  bestOf: z.record(z.string(), z.object({ pass1: z.number(), sem: z.number().nullable() })),
});

export const variantSchema = z.object({
  name: z.string(),
  about: z.string(),
  /** Episodes learnt from or looked at; those that begin at a fork by their share of tokens. */
  trainingEpisodes: z.number(),
  iterations: z.int(),
  steps: z.int(),
  /** Of this process and its threads; programs in sandboxes are not among them. */
  cpuSeconds: z.number(),
  seconds: z.number(),
  evaluation: z.object({
    pass1: z.number(),
    sem: z.number().nullable(),
    passK: z.record(z.string(), z.number()),
    /** The same episodes at smaller turn limits. */
    alsoAt: z.array(z.object({ maxTurns: z.int(), pass1: z.number(), sem: z.number().nullable() })),
    turns: z.number(),
    formatErrorRate: z.number(),
    submitted: z.number(),
    /** Share solved, by instance. */
    perInstance: z.record(z.string(), z.number()),
    confidence: z.record(z.string(), confidence),
  }),
  /** What the training said, iteration by iteration. */
  curve: z.array(
    z.object({
      solved: z.number(),
      live: z.number(),
      turns: z.number(),
      entropy: z.number().nullable(),
      clipHigh: z.number().nullable(),
    }),
  ),
});

export const experimentSchema = z.object({
  schema: z.literal(1),
  machine: z.string(),
  seed: z.int(),
  /** What must be equal for two results to be of one experiment. */
  settings: z.record(z.string(), z.unknown()),
  variants: z.array(variantSchema),
});

export type VariantResult = z.infer<typeof variantSchema>;
export type Experiment = z.infer<typeof experimentSchema>;

/** Mean difference of the shares solved, A - B, on the instances that both have, and its standard error over them. */
export function paired(a: VariantResult, b: VariantResult): { difference: number; sem: number | null } {
  const differences = Object.entries(a.evaluation.perInstance).flatMap(([id, rate]) => {
    const other = b.evaluation.perInstance[id];
    return other === undefined ? [] : [rate - other];
  });
  return { difference: mean(differences), sem: sem(differences) };
}

const percent = (share: number): string => (100 * share).toFixed(1);
const withError = ({ difference, sem: error }: ReturnType<typeof paired>): string =>
  `${difference < 0 ? "−" : "+"}${percent(Math.abs(difference))}${error === null ? "" : ` ± ${percent(error)}`}`;

/** One seed as a table in Markdown. */
export function experimentTable({ variants }: Experiment): string {
  const named = (name: string): VariantResult | undefined => variants.find((one) => one.name === name);
  const against = (one: VariantResult, other: VariantResult | undefined): string =>
    other === undefined || other === one ? "–" : withError(paired(one, other));
  const rows = variants.map((one) => {
    const { pass1, sem: error, alsoAt, turns, formatErrorRate, confidence } = one.evaluation;
    const sure = confidence.mean_logprob;
    return [
      one.name,
      one.about,
      `${percent(pass1)} ± ${percent(error ?? 0)}`,
      alsoAt[0] ? percent(alsoAt[0].pass1) : "–",
      against(one, named("rft")),
      against(one, named("dapo")),
      turns.toFixed(1),
      percent(formatErrorRate),
      ...bestColumns(sure, pass1),
      String(Math.round(one.trainingEpisodes)),
      String(Math.round(one.cpuSeconds)),
    ];
  });
  return markdown(
    [
      "variant",
      "what",
      "Pass@1 %",
      `at ${variants[0]?.evaluation.alsoAt[0]?.maxTurns ?? "fewer"} turns %`,
      "− rft",
      "− dapo",
      "turns",
      "format errors %",
      "best of 5 %",
      "precision at half coverage %",
      "episodes",
      "CPU s",
    ],
    rows,
  );
}

function bestColumns(sure: z.infer<typeof confidence> | undefined, pass1: number): string[] {
  const best = sure?.bestOf["5"]?.pass1;
  const half = sure?.curve.find((point) => point.coverage >= 0.5)?.precision;
  return [best === undefined ? "–" : percent(best), percent(half ?? pass1)];
}

/** Several seeds as one table: means over the seeds, and standard errors over them. */
export function seedsTable(experiments: readonly Experiment[]): string {
  const names = [...new Set(experiments.flatMap(({ variants }) => variants.map(({ name }) => name)))];
  const rows = names.map((name) => {
    const of = (experiment: Experiment, which: string): VariantResult | undefined =>
      experiment.variants.find((one) => one.name === which);
    const found = experiments.flatMap((experiment) => of(experiment, name) ?? []);
    const difference = (other: string): string => {
      if (name === other) return "–";
      const all = experiments.flatMap((experiment) => {
        const [a, b] = [of(experiment, name), of(experiment, other)];
        return a && b ? [paired(a, b).difference] : [];
      });
      return all.length === 0 ? "–" : withError({ difference: mean(all), sem: sem(all) });
    };
    const rates = found.map(({ evaluation }) => evaluation.pass1);
    const error = sem(rates);
    return [
      name,
      found[0]?.about ?? "",
      String(found.length),
      `${percent(mean(rates))}${error === null ? "" : ` ± ${percent(error)}`}`,
      difference("rft"),
      difference("dapo"),
      mean(found.map(({ evaluation }) => evaluation.turns)).toFixed(1),
      String(Math.round(mean(found.map(({ cpuSeconds }) => cpuSeconds)))),
    ];
  });
  return markdown(["variant", "what", "seeds", "Pass@1 %", "− rft", "− dapo", "turns", "CPU s"], rows);
}

function markdown(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return `${[line(head), `|${"---|".repeat(head.length)}`, ...rows.map(line)].join("\n")}\n`;
}

/**
 * Reads what `npm run bench -- experiments --json PATH` wrote.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT if it cannot be read or is something else
 */
export async function readExperiment(path: string): Promise<Experiment> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    throw notOne(path, (error as Error).message, error);
  }
  const parsed = experimentSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw notOne(path, `${issue?.path.join(".")}: ${issue?.message}`, parsed.error);
}

function notOne(path: string, why: string, cause: unknown): TokenringError {
  return new TokenringError(
    "ERR_TOKENRING_INVALID_ARGUMENT",
    `${path} is no result of the experiments (${why}); write one with npm run bench -- experiments --json PATH`,
    { cause },
  );
}
