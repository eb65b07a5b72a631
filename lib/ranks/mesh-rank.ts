// Many ranks behind the face of one: what a policy sees of its group.
import path from "node:path";
import { TokenringError } from "../errors.ts";
import type {
  ContextSchedule,
  NativeAdamW,
  NativeBatch,
  NativeJob,
  NativeLoss,
  NativeLossResult,
  NativeRank,
  NativeRankOptions,
  NativeSampleRequest,
  NativeSampleResult,
  NativeSave,
  NativeUsage,
} from "../ops/binding.ts";
import { loadBinding } from "../ops/native.ts";
import { opening } from "../ops/rank.ts";
import type { Command, RankGroup } from "./group.ts";
import { type PackedLanes, unpackLanes } from "./lanes.ts";
import type { Collective } from "./messages.ts";
import { launchedPerNode, nodeFault } from "./place.ts";
import {
  type CostModel,
  checkBatch,
  costModel,
  documentCosts,
  offsetsOf,
  place,
  takeDocuments,
} from "./placement.ts";
import { SpreadSessions } from "./sessions.ts";

/** How the ranks of a group train together; see docs/ranks.md. */
export interface MeshOptions {
  /** Ranks that share one document's tokens: 1 (default), or a divisor of the group's size. */
  contextParallel?: number | undefined;
  /** How they exchange keys and values (default "ring"). "all_gather" gives the bits of one rank. */
  contextSchedule?: ContextSchedule | undefined;
  /**
   * Of "two_level": consecutive ranks with fast links to each other (default: LOCAL_WORLD_SIZE where a launcher has set
   * it, else all). Divides contextParallel, or is a multiple of it.
   */
  ranksPerNode?: number | undefined;
  /** What is sharded over ranks: 0 nothing (default), 1 the optimiser's state, 3 the parameters too. */
  shard?: 0 | 1 | 3 | undefined;
  /** Consecutive ranks that hold one copy together (default: all). */
  shardSize?: number | undefined;
}

/** A mesh in full. */
export interface Mesh {
  contextParallel: number;
  contextSchedule: ContextSchedule;
  ranksPerNode: number;
  shard: 0 | 1 | 3;
  shardSize: number;
}

export interface SpreadResult extends NativeLossResult {
  /** Cost of what each data-parallel group got, in multiplications of a forward pass. */
  costs: number[];
}

/** The mesh in full. Throws INVALID_ARGUMENT for what does not fit the number of ranks. */
export function meshOf(size: number, options: MeshOptions): Mesh {
  const { contextParallel = 1, contextSchedule = "ring", shard = 0, shardSize = size } = options;
  for (const [name, value] of Object.entries({ contextParallel, shardSize })) {
    if (Number.isInteger(value) && value >= 1 && size % value === 0) continue;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${name}: ${value} does not divide the ${size} ranks; give 1 or another divisor of their number`,
    );
  }
  const { ranksPerNode = launchedPerNode() ?? size } = options;
  const fault = contextSchedule === "two_level" ? nodeFault(contextParallel, ranksPerNode) : null;
  if (fault !== null) throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `ranksPerNode: ${fault}`);
  return { contextParallel, contextSchedule, ranksPerNode, shard, shardSize };
}

export class MeshRank implements NativeRank {
  readonly #group: RankGroup;
  readonly #number: number;
  readonly #mesh: Mesh;
  readonly #options: NativeRankOptions;
  readonly #context: number;
  readonly #costs: CostModel;
  /** Of what was accumulated since the last step: its cost by group, and the passes, with what became of them. */
  #loads: number[];
  #passes: { failed: boolean }[] = [];
  #local: NativeRank | null = null;
  #sessions: SpreadSessions | null = null;
  #disposal: Promise<void> | null = null;

  private constructor(group: RankGroup, options: NativeRankOptions, context: number, mesh: MeshOptions) {
    this.#group = group;
    this.#number = group.nextRank();
    this.#options = options;
    this.#context = context;
    this.#mesh = meshOf(group.size, mesh);
    this.#costs = costModel(options.config);
    this.#loads = this.#noLoads();
  }

  /** Makes a rank in every process of the group, and joins them. `context` is the model's, in tokens. */
  static async create(
    group: RankGroup,
    options: NativeRankOptions,
    context: number,
    mesh: MeshOptions,
  ): Promise<MeshRank> {
    const rank = new MeshRank(group, options, context, mesh);
    const binding = loadBinding();
    const id = binding.uniqueId(options.device === "cpu" ? "cpu" : "cuda");
    const optionsOf = (of: number): NativeRankOptions => rank.#optionsOf(of, id);
    try {
      await rank.#all("create", [], {
        args: (of) => [optionsOf(of)],
        local: () => {
          const options = optionsOf(0);
          const local = new binding.Rank(options);
          rank.#local = local;
          rank.#sessions = new SpreadSessions(group, rank.#number, local);
          return opening(local, options);
        },
      }).promise;
      await rank.join().promise;
    } catch (error) {
      await rank.dispose();
      throw error;
    }
    return rank;
  }

  /** Ranks of the group. */
  get size(): number {
    return this.#group.size;
  }

  get disposed(): boolean {
    return this.#disposal !== null;
  }

  join(): NativeJob<void> {
    return first(this.#all("join", []));
  }

  initialise(options: { std: number; seed: bigint; previousTokenBias: number }): NativeJob<void> {
    return first(this.#all("initialise", [options]));
  }

  /**
   * Documents go to the data-parallel groups by their cost, and results come in the order of the batch. A group that
   * gets more than `passTokens` a rank makes several passes of it.
   */
  accumulate(
    batch: NativeBatch,
    loss: NativeLoss,
    last: boolean,
    passTokens = Number.POSITIVE_INFINITY,
  ): NativeJob<SpreadResult> {
    const job = this.#spread("accumulate", batch, this.#loads, passTokens, (final) => [loss, last && final]);
    const pass = { failed: false };
    const fail = (): void => {
      pass.failed = true;
    };
    this.#passes.push(pass);
    job.promise.catch(fail);
    return {
      promise: job.promise,
      abort: () => {
        fail();
        job.abort();
      },
    };
  }

  score(
    batch: NativeBatch,
    temperature: number,
    passTokens = Number.POSITIVE_INFINITY,
  ): NativeJob<SpreadResult> {
    return this.#spread("score", batch, this.#noLoads(), passTokens, () => [temperature]);
  }

  optimise(options: NativeAdamW): NativeJob<{ gradientNorm: number; step: number; version: number }> {
    const passes = this.#passes;
    this.#begin();
    const refuse = (): TokenringError | null =>
      passes.some(({ failed }) => failed)
        ? new TokenringError(
            "ERR_TOKENRING_ABORTED",
            "optimise: a pass that it was queued behind failed; the weights are as before",
          )
        : null;
    return first(this.#all("optimise", [options], { refuse }));
  }

  dropGradients(): NativeJob<void> {
    this.#begin();
    return first(this.#all("dropGradients", []));
  }

  resetOptimiser(): NativeJob<void> {
    return first(this.#all("resetOptimiser", []));
  }

  /** With a token, settles when all ranks have written. */
  save(directory: string, options: NativeSave): NativeJob<void> {
    return first(this.#all("save", [path.resolve(directory), options]));
  }

  endSave(directory: string, options: NativeSave & { token: string; keep: boolean }): NativeJob<void> {
    return this.#live().endSave(path.resolve(directory), options);
  }

  load(directory: string, options: { optimiser: boolean }): NativeJob<{ version: number }> {
    return first(this.#all("load", [path.resolve(directory), options]));
  }

  /** The same on all ranks. */
  version(): NativeJob<number> {
    return this.#live().version();
  }

  /** Of this rank, whose share is as large as the others'. */
  busySeconds(): NativeJob<number> {
    return this.#live().busySeconds();
  }

  /** Of this rank. */
  memory(): ReturnType<NativeRank["memory"]> {
    return this.#live().memory();
  }

  openSession(): number {
    return this.#spreadSessions().open();
  }

  forkSession(session: number): number {
    return this.#spreadSessions().fork(session);
  }

  extendSession(session: number, tokens: Int32Array): void {
    this.#spreadSessions().extend(session, tokens);
  }

  closeSession(session: number): void {
    if (!this.disposed) this.#spreadSessions().close(session);
  }

  sampleSession(session: number, request: NativeSampleRequest): NativeJob<NativeSampleResult> {
    return this.#spreadSessions().sample(session, request);
  }

  usage(): NativeJob<NativeUsage> {
    return this.#spreadSessions().usage();
  }

  dispose(): Promise<void> {
    this.#disposal ??= this.#end();
    return this.#disposal;
  }

  async #end(): Promise<void> {
    const others = Array.from({ length: this.#group.size - 1 }, (_, i) =>
      this.#group
        .member(i + 1)
        .call<void>(this.#number, "dispose", [])
        .promise.catch(() => {}),
    );
    await Promise.all([...others, this.#local?.dispose()]);
  }

  /** What is accumulated from now on belongs to the next step. */
  #begin(): void {
    this.#loads = this.#noLoads();
    this.#passes = [];
  }

  #noLoads(): number[] {
    return Array.from({ length: this.#group.size / this.#mesh.contextParallel }, () => 0);
  }

  #live(): NativeRank {
    if (this.disposed || this.#local === null)
      throw new TokenringError(
        "ERR_TOKENRING_DISPOSED",
        "the policy was disposed; create or load another one",
      );
    return this.#local;
  }

  #spreadSessions(): SpreadSessions {
    this.#live();
    return this.#sessions as SpreadSessions;
  }

  #optionsOf(rank: number, id: Uint8Array): NativeRankOptions {
    const { gpu, ranks, cores } = this.#group.host(rank);
    const { device, threads } = this.#options;
    return {
      ...this.#options,
      device: device === "cuda" ? `cuda:${gpu}` : device,
      threads: ranks === 1 ? threads : Math.max(1, Math.floor((threads || cores) / ranks)),
      mesh: { id, rank, size: this.#group.size, timeout: this.#group.timeout, ...this.#mesh },
    };
  }

  #all<T>(
    method: Collective,
    args: unknown[],
    how: Partial<Pick<Command<T>, "args" | "local" | "refuse">> = {},
  ): NativeJob<T[]> {
    const argsOf = how.args ?? (() => args);
    const call = (): NativeJob<T> => {
      const start = this.#live()[method as keyof NativeRank] as unknown as (
        ...args: unknown[]
      ) => NativeJob<T>;
      return start.apply(this.#local, argsOf(0));
    };
    return this.#group.collective({
      rank: this.#number,
      method,
      args: argsOf,
      local: how.local ?? call,
      ...(how.refuse ? { refuse: how.refuse } : {}),
    });
  }

  #spread(
    method: "accumulate" | "score",
    batch: NativeBatch,
    loads: number[],
    passTokens: number,
    rest: (final: boolean) => unknown[],
  ): NativeJob<SpreadResult> {
    this.#live();
    checkBatch(batch, this.#options.config.vocab_size, this.#context);
    const { contextParallel } = this.#mesh;
    const offsets = offsetsOf(batch.lengths);
    const costs = documentCosts(batch, this.#costs);
    const placement = place(batch.lengths, costs, loads, passTokens * contextParallel);
    const { passes } = placement;
    const jobs = passes.map((groups, p) => {
      const parts = groups.map((documents) => takeDocuments(batch, offsets, documents));
      return this.#all<NativeLossResult | PackedLanes>(method, [], {
        args: (rank) => [parts[Math.floor(rank / contextParallel)], ...rest(p === passes.length - 1)],
      });
    });
    const joined = async (): Promise<SpreadResult> => {
      const size = batch.tokens.length;
      const out: SpreadResult = {
        loss: 0,
        logprob: new Float32Array(size),
        entropy: new Float32Array(size),
        flags: new Int32Array(size),
        costs: placement.costs,
      };
      const results = await Promise.all(jobs.map((job) => job.promise));
      results.forEach((ranks, p) => {
        ranks.forEach((given, rank) => {
          const result = "runs" in given ? unpackLanes(given) : given;
          out.loss += result.loss;
          const documents = passes[p]?.[Math.floor(rank / contextParallel)] ?? [];
          addLanes(out, result, documents, batch.lengths, offsets);
        });
      });
      return out;
    };
    return {
      promise: joined(),
      abort: () => {
        for (const job of jobs) job.abort();
      },
    };
  }
}

/** Adds a rank's lanes, which are 0 where another rank of its context group holds the token, to the batch's. */
function addLanes(
  out: NativeLossResult,
  part: NativeLossResult,
  documents: readonly number[],
  lengths: Int32Array,
  offsets: readonly number[],
): void {
  for (const lane of ["logprob", "entropy", "flags"] as const) {
    const to = out[lane];
    const from = part[lane];
    let at = 0;
    for (const d of documents) {
      const begin = offsets[d] as number;
      const end = begin + (lengths[d] as number);
      for (let i = begin; i < end; i++) to[i] = (to[i] as number) + (from[at++] as number);
    }
  }
}

/** What rank 0 gave, of a call that gives the same on all. */
function first<T>(job: NativeJob<T[]>): NativeJob<T> {
  return { promise: job.promise.then((results) => results[0] as T), abort: job.abort };
}
