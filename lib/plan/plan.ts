// What a job would need on a cluster: memory, time of an iteration, and the mesh that is best for it.
import { TokenringError } from "../errors.ts";
import type { ContextSchedule } from "../ops/binding.ts";
import type { MemoryUse } from "../policy/memory.ts";
import type { OffloadChoice } from "../policy/rank-options.ts";
import type { DecoderConfig } from "../policy/types.ts";
import {
  type EnginePlan,
  parameterCounts,
  planEngine,
  rolloutSeconds,
  type Stations,
  verifySeconds,
  type Workload,
  weightSeconds,
} from "./iteration.ts";
import type { Cluster } from "./price.ts";
import type { Span } from "./simulate.ts";
import { type PlannedStep, planStep, type StepShape } from "./step.ts";

export interface PlanRequest {
  config: DecoderConfig;
  cluster: Cluster;
  nodes: number;
  workload: Workload;
  /** Tokens of one pass of a context group; a longer document gets a pass of its own. */
  microBatchTokens: number;
  /** What is given stays; the rest is searched. */
  mesh: Partial<StepShape["mesh"]>;
  activationCheckpointing: boolean | undefined;
  /** Of each of AdamW's moments (default 32). */
  optimiserBits?: 8 | 32;
  /** What is given stays; else "none", or where nothing fits so, whatever does. */
  offload?: OffloadChoice | undefined;
  signal?: AbortSignal;
  onCandidate?: (done: number, of: number) => void;
  onSpan?: (span: Span) => void;
}

export interface Plan {
  mesh: StepShape["mesh"];
  activationCheckpointing: boolean;
  offload: OffloadChoice;
  /** Of the rank that needs most, in a pass over one document of the limit's length. */
  memory: MemoryUse & { limit: number; hostLimit: number; fits: boolean };
  /** Where it does not fit: the largest item, and the change that costs least time. */
  fault?: { item: string; bytes: number; cure: string };
  engine: EnginePlan;
  /** Seconds. */
  stations: Stations;
  seconds: number;
  update: {
    optimiserSteps: number;
    passesPerStep: number;
    /** Share of the update in which the busiest rank computes: 1 if no communication were in sight. */
    ofBound: number;
    exposedSeconds: number;
    /** Of the update: trajectories' tokens a second, and the model's FLOPs over the GPUs' peak. */
    tokensPerSecond: number;
    mfu: number;
  };
  gpuHours: number;
}

type Candidate = Pick<Plan, "mesh" | "activationCheckpointing" | "offload">;

const powersUpTo = (most: number): number[] => {
  const powers: number[] = [];
  for (let p = 1; p <= most; p *= 2) powers.push(p);
  return powers;
};

/** Meshes of so many ranks, and whether layers are recomputed, that agree with what the request gives. */
export function candidates(
  request: Pick<PlanRequest, "cluster" | "nodes" | "mesh" | "activationCheckpointing" | "offload">,
): Candidate[] {
  const { cluster, nodes, mesh, activationCheckpointing, offload = "none" } = request;
  const ranks = nodes * cluster.gpusPerNode;
  const contexts = mesh.contextParallel
    ? [mesh.contextParallel]
    : powersUpTo(ranks).filter((c) => ranks % c === 0);
  const shards = mesh.shard === undefined ? ([0, 1, 3] as const) : [mesh.shard];
  const all: Candidate[] = [];
  for (const contextParallel of contexts) {
    for (const shard of shards) {
      const sizes = mesh.shardSize
        ? [mesh.shardSize]
        : [...new Set(shard === 0 ? [ranks] : [cluster.gpusPerNode, ranks])].filter(
            (size) => ranks % size === 0,
          );
      for (const shardSize of sizes) {
        for (const checkpointing of activationCheckpointing === undefined
          ? [false, true]
          : [activationCheckpointing]) {
          for (const contextSchedule of schedulesOf(contextParallel, mesh, cluster))
            all.push({
              mesh: withContext({ ranks, contextParallel, shard, shardSize, contextSchedule }, cluster),
              activationCheckpointing: checkpointing,
              offload,
            });
        }
      }
    }
  }
  return all;
}

/** A ring's hops hide behind products, which a gather of everything does not; between nodes they may be too long. */
function schedulesOf(
  contextParallel: number,
  { contextSchedule }: PlanRequest["mesh"],
  { gpusPerNode }: Cluster,
): ContextSchedule[] {
  if (contextSchedule) return [contextSchedule];
  const spans = contextParallel > gpusPerNode && contextParallel % gpusPerNode === 0 && gpusPerNode > 1;
  return spans ? ["ring", "two_level"] : ["ring"];
}

/** The mesh, with the part of a context group that is on one node. */
function withContext(
  { contextNode: _, ...mesh }: Candidate["mesh"],
  { gpusPerNode }: Cluster,
): Candidate["mesh"] {
  if (mesh.contextSchedule !== "two_level") return mesh;
  const within = gpusPerNode % mesh.contextParallel === 0;
  return { ...mesh, contextNode: within ? mesh.contextParallel : gpusPerNode };
}

/** Lengths of the documents of one pass: as many of the mean length as fit, at least one. */
const fill = (tokens: number, mean: number): number[] =>
  new Array<number>(Math.max(1, Math.floor(tokens / mean))).fill(mean);

/** One mesh, priced. `ranks`: how many of a context group are looked at. */
export async function planOn(request: PlanRequest, candidate: Candidate, ranks?: number): Promise<Plan> {
  const { config, cluster, workload, microBatchTokens, signal, onSpan } = request;
  const { mesh } = candidate;
  const { hardware } = cluster;
  const mean = Math.round(workload.meanTokens);
  const lossShare = workload.actionTokens / workload.meanTokens;
  const options = { ...(signal ? { signal } : {}), ...(ranks ? { ranks } : {}) };
  const { optimiserBits = 32 } = request;
  const shape = { config, lossShare, optimiserBits, ...candidate };
  const longest = await planStep({ ...shape, lengths: [workload.maxTokens] }, cluster, options);
  const lengths = fill(microBatchTokens, mean);
  const step =
    lengths.length === 1 && lengths[0] === workload.maxTokens && !onSpan
      ? longest
      : await planStep({ ...shape, lengths }, cluster, {
          ...options,
          ...(onSpan ? { onSpan: (pass, span) => pass === "last" && onSpan(span) } : {}),
        });

  const limit = hardware.memory.value - hardware.reserved.value;
  const hostLimit = hardware.hostMemory.value;
  const groups = mesh.ranks / mesh.contextParallel;
  const kept = Math.max(1, Math.round(workload.trajectories * workload.kept));
  const optimiserSteps = Math.max(1, Math.ceil(kept / workload.batchSize));
  const passesPerStep = Math.max(1, Math.ceil(Math.min(kept, workload.batchSize) / groups / lengths.length));
  const { score, accumulate, last, optimise } = step.passes;
  const perStep = (of: (pass: PlannedStep["passes"]["last"]) => number): number =>
    (passesPerStep - 1) * of(accumulate) + of(last) + of(optimise);
  const update = optimiserSteps * perStep(({ seconds }) => seconds);
  const scored = workload.scored ? Math.ceil(kept / groups / lengths.length) * score.seconds : 0;
  const engine = planEngine(config, mesh.ranks, cluster, workload);
  const stations: Stations = {
    rollout: engine.fault ? 0 : rolloutSeconds(config, engine, mesh.ranks, cluster, workload),
    verify: verifySeconds(workload),
    score: scored,
    update,
    weights: weightSeconds(config, mesh.ranks, cluster),
  };
  const seconds = Object.values(stations).reduce((sum, one) => sum + one, 0);
  // Forward, and twice as much backward; recomputation is not the model's.
  const modelFlops = optimiserSteps * passesPerStep * 3 * score.flops;
  return {
    ...candidate,
    memory: {
      ...longest.memory,
      limit,
      hostLimit,
      fits: longest.memory.bytes <= limit && longest.memory.hostBytes <= hostLimit,
    },
    engine,
    stations,
    seconds,
    update: {
      optimiserSteps,
      passesPerStep,
      ofBound: perStep(({ bound }) => bound) / perStep(({ seconds: all }) => all),
      exposedSeconds:
        optimiserSteps * perStep(({ ranks: each }) => Math.max(...each.map(({ exposed }) => exposed))),
      tokensPerSecond: (kept * mean) / update,
      mfu: modelFlops / (update * mesh.ranks * hardware.peak.value),
    },
    gpuHours: (seconds * mesh.ranks) / 3600,
  };
}

/**
 * The plan of the mesh that the request gives, or of the fastest that fits. One that does not fit says what is largest
 * and what would help; so does the plan of a cluster that is too small for every mesh.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for a mesh that the ranks cannot make.
 */
export async function plan(request: PlanRequest): Promise<Plan> {
  const list = candidates(request);
  const ranks = request.nodes * request.cluster.gpusPerNode;
  if (list.length === 0 || list.some(({ mesh }) => ranks % mesh.contextParallel || ranks % mesh.shardSize)) {
    const { contextParallel, shardSize } = request.mesh;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `plan: contextParallel ${contextParallel ?? "(any)"} and shardSize ${shardSize ?? "(any)"} must divide the ${ranks} ranks`,
    );
  }
  let best = await search(
    request,
    list.filter((candidate) => list.length === 1 || worthTrying(request, candidate)),
  );
  if (!best?.memory.fits && request.offload === undefined) {
    const away = list.flatMap(offloading).filter((candidate) => worthTrying(request, candidate));
    const found = await search(request, away);
    if (found?.memory.fits) best = found;
  }
  // Nothing was worth trying: the one that needs least is shown.
  const chosen: Candidate = best ?? (list.at(-1) as Candidate);
  const whole = await planOn(request, chosen);
  if (whole.memory.fits) return whole;
  return { ...whole, fault: await diagnose(request, whole) };
}

async function search(request: PlanRequest, list: readonly Candidate[]): Promise<Plan | null> {
  const { onSpan: _, onCandidate, ...quick } = request;
  let best: Plan | null = null;
  for (const [i, candidate] of list.entries()) {
    onCandidate?.(i, list.length);
    const one = await planOn(quick, candidate, 1);
    if (best === null || better(one, best)) best = one;
  }
  return best;
}

/** The same with what may lie in the host's memory there; checkpoints are there only where they are kept. */
const offloading = (candidate: Candidate): Candidate[] =>
  (candidate.activationCheckpointing
    ? (["checkpoints", "optimiser", "all"] as const)
    : (["optimiser"] as const)
  ).map((offload) => ({ ...candidate, offload }));

const better = (a: Plan, b: Plan): boolean => {
  if (a.memory.fits !== b.memory.fits) return a.memory.fits;
  return a.memory.fits ? a.seconds < b.seconds : a.memory.bytes < b.memory.bytes;
};

/** Weights in bf16 and float32 gradients, and masters and moments: what no schedule can do without. */
function worthTrying(
  { config, cluster, optimiserBits = 32 }: PlanRequest,
  { mesh, offload }: Candidate,
): boolean {
  const { all } = parameterCounts(config);
  const away = offload === "optimiser" || offload === "all";
  const own = away ? 0 : 4 + (2 * optimiserBits) / 8;
  const { shard, shardSize } = mesh;
  const state = shard === 3 ? ((6 + own) * all) / shardSize : 6 * all + (own * all) / (shard ? shardSize : 1);
  return state <= cluster.hardware.memory.value;
}

async function diagnose(request: PlanRequest, plan: Plan): Promise<NonNullable<Plan["fault"]>> {
  const { items, host, bytes, limit } = plan.memory;
  const [item] =
    bytes > limit ? items : host.map((one) => ({ ...one, purpose: `${one.purpose} on the host` }));
  const largest = item ?? { purpose: "nothing", bytes: 0 };
  const { mesh, activationCheckpointing, offload } = plan;
  const now: Candidate = { mesh, activationCheckpointing, offload };
  const changes: { cure: string; candidate: Candidate }[] = [];
  if (!activationCheckpointing)
    changes.push({
      cure: "activationCheckpointing: true",
      candidate: { ...now, activationCheckpointing: true },
    });
  if (mesh.shard < 3) changes.push({ cure: "shard: 3", candidate: { ...now, mesh: { ...mesh, shard: 3 } } });
  if (mesh.shardSize < mesh.ranks)
    changes.push({
      cure: `shardSize: ${mesh.ranks}`,
      candidate: { ...now, mesh: { ...mesh, shardSize: mesh.ranks } },
    });
  for (let c = 2 * mesh.contextParallel; c <= mesh.ranks && mesh.ranks % c === 0; c *= 2)
    changes.push({
      cure: `contextParallel: ${c}`,
      candidate: { ...now, mesh: withContext({ ...mesh, contextParallel: c }, request.cluster) },
    });
  if (offload !== "all")
    for (const candidate of offloading(now))
      if (worthTrying(request, candidate)) changes.push({ cure: `offload: ${candidate.offload}`, candidate });
  const { onSpan: _, ...quick } = request;
  let cure: Plan | null = null;
  let words = "";
  for (const change of changes) {
    const one = await planOn(quick, change.candidate, 1);
    if (one.memory.fits && (cure === null || one.seconds < cure.seconds)) [cure, words] = [one, change.cure];
  }
  if (!cure) words = await manyChanges(request);
  return { item: largest.purpose, bytes: largest.bytes, cure: words };
}

/** No single change helps: the best of all meshes, or of twice as many nodes, and so on. */
async function manyChanges(request: PlanRequest): Promise<string> {
  const { onSpan: _, ...rest } = request;
  for (let nodes = request.nodes; nodes <= 64 * request.nodes; nodes *= 2) {
    const free = { ...rest, nodes, mesh: {}, activationCheckpointing: undefined };
    let best: Plan | null = null;
    for (const candidate of candidates(free)) {
      if (!worthTrying(free, candidate)) continue;
      const one = await planOn(free, candidate, 1);
      if (best === null || better(one, best)) best = one;
    }
    if (!best?.memory.fits) continue;
    const { contextParallel, contextSchedule, shard, shardSize } = best.mesh;
    const schedule = contextSchedule === "ring" ? "" : `contextSchedule: ${contextSchedule}, `;
    const more = nodes > request.nodes ? `${nodes} nodes, ` : "";
    return (
      `${more}contextParallel: ${contextParallel}, ${schedule}shard: ${shard}, shardSize: ${shardSize}, ` +
      `activationCheckpointing: ${best.activationCheckpointing}`
    );
  }
  return "a smaller model, or shorter trajectories (limits.maxContext)";
}
