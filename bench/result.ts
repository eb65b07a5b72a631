// What a run of the benchmarks leaves behind: the published schema, and reading it back.
import { readFile } from "node:fs/promises";
import { TokenringError } from "tokenring";
import { z } from "zod";

const spread = z.number().nonnegative();

/** One result, as zod. */
export const resultSchema = z.object({
  /** What was done, and against which peer; unique in a run. */
  name: z.string().min(1),
  /** As `biggerIsBetter` says: rates ("…/s") when they are bigger, most else (ms, MiB, %) when it is smaller. */
  unit: z.string().min(1),
  /** Median over all calls, and their median absolute deviation. */
  value: z.number(),
  mad: spread,
  /** What a user would take instead; null where the machine lacks it. */
  peer: z.object({ name: z.string().min(1), value: z.number(), mad: spread.optional() }).nullable(),
  /** How many times better ours is than the peer; above 1 is faster (or smaller). Null without a peer. */
  ratio: z.number().nullable(),
});

/** A run of the benchmarks, schema 1, as zod: what `--json` writes. */
export const resultsSchema = z
  .object({
    schema: z.literal(1),
    machine: z.object({
      cpu: z.string(),
      gpu: z.string().nullable(),
      /** Of the GPU. */
      driver: z.string().optional(),
    }),
    /** Of what was measured beside: "torch", "cudnn", … */
    versions: z.record(z.string(), z.string()).optional(),
    /** What was left out, and why; "failed: …" for a check that did not pass. */
    notes: z.array(z.string()).optional(),
    /** When the run ended, as ISO 8601. */
    date: z.string().optional(),
    node: z.string().optional(),
    results: z.array(resultSchema),
  })
  .superRefine(({ results }, context) => {
    const names = new Set<string>();
    results.forEach(({ name }, i) => {
      if (names.has(name))
        context.addIssue({ code: "custom", path: ["results", i, "name"], message: `"${name}" comes twice` });
      names.add(name);
    });
  });

/** One line of a run. */
export type Result = z.infer<typeof resultSchema>;
/** A whole run. */
export type Results = z.infer<typeof resultsSchema>;

/** Shares and lengths that one wants large; gpu/results.py has the same list. */
const WANTED_LARGE = new Set(["% MFU", "% Pass@1", "tokens"]);

/** Whether a larger value of this unit is the better one. */
export function biggerIsBetter(unit: string): boolean {
  return unit.endsWith("/s") || WANTED_LARGE.has(unit);
}

/** Ours against the peer's in this unit; above 1 ours is better. Null where a side is not above 0. */
export function ratioOf(unit: string, ours: number, peer: number): number | null {
  if (!(ours > 0 && peer > 0)) return null;
  return biggerIsBetter(unit) ? ours / peer : peer / ours;
}

/**
 * The run that `value` holds.
 * @param from what errors call it
 * @throws ERR_TOKENRING_INVALID_ARGUMENT that names the field
 */
export function parseResults(value: unknown, from = "results"): Results {
  const parsed = resultsSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const place = issue?.path.length ? ` at ${issue.path.join(".")}` : "";
  throw new TokenringError(
    "ERR_TOKENRING_INVALID_ARGUMENT",
    `${from} is no run of the benchmarks in schema 1${place}: ${issue?.message}; write it with npm run bench -- --json PATH`,
  );
}

/**
 * Reads a run from a file that `npm run bench -- --json PATH` wrote.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT if it cannot be read, is no JSON, or has another schema
 */
export async function readResults(path: string): Promise<Results> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${path} cannot be read as JSON: ${(error as Error).message}; give a file of npm run bench -- --json PATH`,
      { cause: error, details: { path } },
    );
  }
  return parseResults(value, path);
}
