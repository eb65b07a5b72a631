// How far a job is, as state.json holds it: all that another process needs beside the checkpoint.
import { z } from "zod";
import { TokenringError } from "../errors.ts";
import type { DapoCursor } from "../learn/dapo.ts";
import type { ArcStage } from "../report/arc.ts";
import type { WarmStartCursor } from "./warm-start.ts";

const count = z.int().min(0);
const warmStart: z.ZodType<WarmStartCursor> = z.object({ step: count, demonstration: count });
const dapo: z.ZodType<DapoCursor> = z.object({ iteration: count, step: count });
const arcStage: z.ZodType<ArcStage> = z.looseObject({
  name: z.string(),
  pass1: z.number(),
  sem: z.number().nullable(),
  pass10: z.number().nullable(),
  turns: z.number(),
  episodes: z.number(),
});

/** Where the stage under way goes on. */
const cursor = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("base"), next: warmStart }),
  /** The rollouts are collected and stored; so many optimiser steps are done. */
  z.object({ kind: z.literal("rft"), step: count }),
  z.object({
    kind: z.literal("dapo"),
    next: dapo,
    /** Ids of the stage's instances, in their order. */
    pool: z.array(z.string()),
  }),
  /** So many iterations of sampling are done. */
  z.object({ kind: z.literal("rollout"), next: count }),
  /** All but the evaluation is done. */
  z.object({ kind: z.literal("trained") }),
]);

const schema = z.object({
  /** Stages that are done, as points of the arc. */
  stages: z.array(arcStage),
  rates: z.record(z.string(), z.object({ solved: count, episodes: count })),
  /** Wall seconds so far. */
  seconds: z.number().min(0),
  current: z
    .object({
      stage: z.string(),
      /** Wall seconds of the stage so far, in all and by station. */
      seconds: z.number().min(0),
      stations: z.record(z.string(), z.number()),
      cursor,
    })
    .nullable()
    .default(null),
});

export type JobProgress = z.output<typeof schema>;
export type StageCursor = z.output<typeof cursor>;

/** What `RunDirectory.progress` holds of a job; null for a new run. Throws ERR_TOKENRING_RUN_DIRECTORY naming `file`. */
export function jobProgress(value: unknown, file: string): JobProgress | null {
  if (value === null) return null;
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const faults = result.error.issues.map(
    (issue) => `${["progress", ...issue.path].join(".")}: ${issue.message}`,
  );
  throw new TokenringError(
    "ERR_TOKENRING_RUN_DIRECTORY",
    `${file}: not a job's progress: ${faults.join(", ")}; restore it from a copy or start a new run`,
    { cause: result.error },
  );
}
