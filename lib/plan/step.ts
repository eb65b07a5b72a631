// The passes of a training step on one mesh, as the native code would queue them, and their time.
import type { ContextSchedule } from "../ops/binding.ts";
import { heaviest, lossWeights, type MemoryUse, planRanks } from "../policy/memory.ts";
import { nativeRankOptions, type OffloadChoice } from "../policy/rank-options.ts";
import type { DecoderConfig } from "../policy/types.ts";
import { type Cluster, communicationPrices, computeSeconds } from "./price.ts";
import { isComputation, type MeshShape, type ScheduleEntry } from "./schedule.ts";
import { type Simulation, type Span, simulate } from "./simulate.ts";

export interface StepShape {
  config: DecoderConfig;
  mesh: MeshShape & { contextSchedule: ContextSchedule };
  activationCheckpointing: boolean;
  /** Of each of AdamW's moments (default 32). */
  optimiserBits?: 8 | 32;
  /** Default "none". */
  offload?: OffloadChoice;
  /** Tokens of each document of one pass of a context group. */
  lengths: readonly number[];
  /** Share of the tokens that carry loss. */
  lossShare: number;
}

/** Of a pass over all ranks. */
export interface PassTime extends Simulation {
  /** Seconds of the rank that computes longest, if no communication and no copy to the host took any time. */
  bound: number;
  /** FLOPs of all ranks. */
  flops: number;
}

export interface PlannedStep {
  /** Of the rank that needs most. */
  memory: MemoryUse;
  /** Forward only; forward and backward; the same as the last of a step; AdamW. */
  passes: Record<PassName, PassTime>;
}

const PASSES = ["score", "accumulate", "last", "optimise"] as const;
type PassName = (typeof PASSES)[number];

/**
 * What the step does and holds. The schedules are those of the first context group, of which each rank's is built by the
 * code that would run it, on a GPU that is not there; all other groups get the same, which is right for groups whose
 * documents are alike.
 */
export async function planStep(
  shape: StepShape,
  cluster: Cluster,
  options: { signal?: AbortSignal; onSpan?: (pass: PassName, span: Span) => void; ranks?: number } = {},
): Promise<PlannedStep> {
  const { config, mesh, lengths, lossShare, activationCheckpointing } = shape;
  const { optimiserBits = 32, offload = "none" } = shape;
  const { ranks: size, contextNode, ...groups } = mesh;
  // A search looks at one rank of a group alone: zigzag gives all as much to do.
  const planned = await planRanks(
    {
      ...nativeRankOptions(config, { device: "cuda", activationCheckpointing, optimiserBits, offload }),
      lengths: Int32Array.from(lengths),
      weight: lossWeights(lengths, lossShare),
      training: true,
    },
    { ...groups, size, ...(contextNode ? { ranksPerNode: contextNode } : {}) },
    options,
  );
  const passes = Object.fromEntries(
    PASSES.map((name) => [
      name,
      timeOf(
        name,
        planned.map(({ passes }) => passes[name]),
        mesh,
        cluster,
        options.onSpan,
      ),
    ]),
  ) as PlannedStep["passes"];
  return { memory: heaviest(planned), passes };
}

function timeOf(
  name: PassName,
  group: readonly (readonly ScheduleEntry[])[],
  mesh: MeshShape,
  cluster: Cluster,
  onSpan?: (pass: PassName, span: Span) => void,
): PassTime {
  // All groups are alike, so one stands for them.
  const schedules = Array.from(
    { length: mesh.contextParallel },
    (_, rank) => group[rank % group.length] as readonly ScheduleEntry[],
  );
  const simulation = simulate({
    mesh,
    schedules,
    computeSeconds: (entry) => computeSeconds(entry, cluster),
    communicationSeconds: communicationPrices(cluster),
    ...(onSpan ? { onSpan: (span: Span) => onSpan(name, span) } : {}),
  });
  const sum = (entries: readonly ScheduleEntry[], of: (entry: ScheduleEntry) => number): number =>
    entries.reduce((all, entry) => all + of(entry), 0);
  const bound = Math.max(
    ...group.map((entries) =>
      sum(entries, (entry) => (isComputation(entry) ? computeSeconds(entry, cluster) : 0)),
    ),
  );
  const flops = schedules.reduce((all, entries) => all + sum(entries, (entry) => entry.flops), 0);
  return { ...simulation, bound, flops: (flops * mesh.ranks) / mesh.contextParallel };
}
