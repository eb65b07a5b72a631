// Stand-ins for the policy and the rollouts: small, exact, and they write down what they were asked.
import {
  ACTION,
  type EpisodeLimits,
  type Exit,
  OBSERVATION,
  PROMPT,
  type Trajectory,
  type Turn,
} from "../../lib/agent/types.ts";
import type { Group, RolloutSource } from "../../lib/learn/types.ts";
import type {
  AdamWOptions,
  CallOptions,
  DecoderConfig,
  LossResult,
  OptimiserResult,
  PackedBatch,
  Policy,
  PolicyLoss,
} from "../../lib/policy/types.ts";
import type { Instance } from "../../lib/tasks/types.ts";
import type { Verdict } from "../../lib/verify/types.ts";

export function instance(id: string, meta: Record<string, unknown> = {}): Instance {
  return {
    instance_id: id,
    repo: "tests/tests",
    base_commit: "0",
    problem_statement: `${id} is broken`,
    hints_text: "",
    created_at: "2025-01-01 00:00:00",
    version: "1.0",
    patch: "",
    test_patch: "",
    FAIL_TO_PASS: ["a"],
    PASS_TO_PASS: [],
    meta,
  };
}

export interface TrajectoryShape {
  id?: string;
  instanceId?: string;
  rollout?: number;
  prompt?: number;
  /** Action and observation tokens, turn by turn; the last observation is left out. */
  turns?: readonly { action: number; observation: number; formatError?: boolean; version?: number }[];
  verdict?: Verdict;
  reason?: string | null;
  exit?: Exit;
  version?: number;
}

/** The logprob that the double's sampler and trainer give to a token at a place while nothing was learnt. */
export function baseLogprob(token: number, position: number): number {
  return Math.fround(-0.25 - ((token * 7 + position * 3) % 11) / 16);
}

/** A trajectory whose tokens differ from place to place, so that a shifted lane shows. */
export function trajectory(shape: TrajectoryShape = {}): Trajectory {
  const { instanceId = "i0", rollout = 0, prompt = 4, version = 0 } = shape;
  const id = shape.id ?? `${instanceId}-${rollout}`;
  const turns = shape.turns ?? [
    { action: 3, observation: 2 },
    { action: 2, observation: 0 },
  ];
  const provenance: number[] = new Array(prompt).fill(PROMPT);
  const made: Turn[] = [];
  turns.forEach((turn, i) => {
    const start = provenance.length;
    provenance.push(...new Array(turn.action).fill(ACTION));
    made.push({
      start,
      end: provenance.length,
      text: `turn ${i}`,
      command: turn.formatError ? null : "ls",
      formatError: turn.formatError ? "no_command" : null,
      observation: i === turns.length - 1 ? "" : "seen",
      finish: "stop",
      version: turn.version ?? version,
      sampleMs: 2,
      toolMs: 3,
    });
    if (i < turns.length - 1) provenance.push(...new Array(turn.observation).fill(OBSERVATION));
  });
  const tokens = Int32Array.from(provenance, (_, i) => 10 + ((i * 5 + rollout) % 13));
  return {
    id,
    instanceId,
    rollout,
    tokens,
    provenance: Uint8Array.from(provenance),
    logprobs: Float32Array.from(tokens, (token, i) => (provenance[i] === ACTION ? baseLogprob(token, i) : 0)),
    turns: made,
    exit: shape.exit ?? "submitted",
    verdict: shape.verdict ?? "failed",
    reason: shape.reason === undefined ? null : shape.reason,
    patch: "",
    verifyMs: 5,
  };
}

/** A trajectory of `turns` turns with one action token each. */
export function episode(turns: number, solved: boolean, shape: TrajectoryShape = {}): Trajectory {
  return trajectory({
    turns: Array.from({ length: turns }, () => ({ action: 1, observation: 1 })),
    verdict: solved ? "resolved" : "failed",
    ...shape,
  });
}

export interface AccumulateCall {
  batch: PackedBatch;
  loss: PolicyLoss;
  signal: AbortSignal | undefined;
}

export interface ScoreCall {
  batch: Pick<PackedBatch, "tokens" | "lengths">;
  options: CallOptions & { temperature?: number };
}

/**
 * A policy whose logprob of a token is `baseLogprob` plus `drift` for every optimiser step taken. Gradients are one
 * number a token id: sum of weight x advantage (ppo_clip, not clipped) or of weight (nll).
 */
export class PolicyDouble implements Policy {
  readonly config: DecoderConfig = {
    vocab_size: 32,
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    head_dim: 8,
    max_position_embeddings: 128,
    rope_theta: 10_000,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
    attention_bias: true,
  };
  disposed = false;
  version = 0;
  readonly calls: AccumulateCall[] = [];
  readonly scores: ScoreCall[] = [];
  readonly optimised: { options: AdamWOptions; gradient: Float64Array }[] = [];
  dropped = 0;
  /** Added to every logprob, on top of `drift`. */
  error = 0;
  readonly drift: number;
  #gradient = new Float64Array(32);

  constructor(options: { drift?: number } = {}) {
    this.drift = options.drift ?? 0.01;
  }

  accumulate(batch: PackedBatch, loss: PolicyLoss, options?: CallOptions): Promise<LossResult> {
    this.calls.push({ batch, loss, signal: options?.signal });
    const total = batch.tokens.length;
    const result: LossResult = {
      loss: 0,
      logprob: new Float32Array(total),
      entropy: new Float32Array(total),
      flags: new Int32Array(total),
    };
    let at = 0;
    for (const length of batch.lengths) {
      for (let i = 0; i < length; i++, at++) {
        const weight = batch.weight[at] as number;
        if (weight === 0) continue;
        const token = batch.tokens[at] as number;
        const logprob = this.#logprob(token, i);
        result.logprob[at] = logprob;
        result.entropy[at] = 0.5;
        const advantage = loss.objective === "nll" ? 1 : (batch.advantage?.[at] as number);
        result.loss -= weight * advantage * (loss.objective === "nll" ? logprob : 1);
        this.#gradient[token] = (this.#gradient[token] as number) + weight * advantage;
        if (loss.objective === "ppo_clip") {
          const ratio = Math.exp(logprob - (batch.oldLogprob?.[at] as number));
          if (advantage > 0 && ratio > 1 + (loss.clipHigh as number)) result.flags[at] = 2;
          if (advantage < 0 && ratio < 1 - (loss.clipLow as number)) result.flags[at] = 1;
        }
      }
    }
    return Promise.resolve(result);
  }

  /** Every token but the first of each document, at the same logprobs as `accumulate`. */
  score(
    batch: Pick<PackedBatch, "tokens" | "lengths">,
    options: ScoreCall["options"] = {},
  ): Promise<LossResult> {
    this.scores.push({ batch, options });
    const total = batch.tokens.length;
    const logprob = new Float32Array(total);
    let at = 0;
    for (const length of batch.lengths) {
      for (let i = 0; i < length; i++, at++) {
        if (i > 0) logprob[at] = this.#logprob(batch.tokens[at] as number, i);
      }
    }
    return Promise.resolve({
      loss: 0,
      logprob,
      entropy: new Float32Array(total).fill(0.5),
      flags: new Int32Array(total),
    });
  }

  #logprob(token: number, position: number): number {
    return baseLogprob(token, position) + this.drift * this.version + this.error;
  }

  optimise(options: AdamWOptions): Promise<OptimiserResult> {
    this.optimised.push({ options, gradient: this.#gradient });
    const gradientNorm = Math.hypot(...this.#gradient);
    this.#gradient = new Float64Array(32);
    this.version++;
    return Promise.resolve({ gradientNorm, step: this.version, version: this.version });
  }

  dropGradients(): Promise<void> {
    this.dropped++;
    this.#gradient = new Float64Array(32);
    return Promise.resolve();
  }

  save(): Promise<void> {
    return Promise.resolve();
  }

  load(): Promise<void> {
    return Promise.resolve();
  }

  dispose(): Promise<void> {
    this.disposed = true;
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

type Request = Parameters<RolloutSource["collect"]>[0];

/** Rollouts that `make` invents; requests are written down. */
export class RolloutDouble implements RolloutSource {
  readonly requests: Request[] = [];
  readonly #make: (instance: Instance, rollout: number, request: Request, index: number) => Trajectory;
  declare readonly limits?: EpisodeLimits;

  constructor(
    make: (instance: Instance, rollout: number, request: Request, index: number) => Trajectory,
    limits?: EpisodeLimits,
  ) {
    this.#make = make;
    if (limits) this.limits = limits;
  }

  collect(request: Request): Promise<Group[]> {
    this.requests.push(request);
    return Promise.resolve(
      request.instances.map((one, index) => {
        const all = Array.from({ length: request.rollouts }, (_, rollout) =>
          this.#make(one, rollout, request, index),
        );
        for (const made of all) request.onTrajectory?.(made);
        return {
          instance: one,
          trajectories: all.filter((made) => made.exit !== "infra_failed"),
          dropped: all.filter((made) => made.exit === "infra_failed"),
        };
      }),
    );
  }
}
