// How sure a policy was of an episode, what it gains by keeping silent where it was not, and by choosing the surest of n.
import { ACTION, type Group, type Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import { counts } from "./episodes.ts";
import { mean, sem } from "./statistics.ts";

/**
 * Scores of a trajectory; higher is surer.
 * - "mean_logprob": mean logprob of its action tokens at the temperature of sampling; its negative is an unbiased
 *   estimate, from the sample itself, of the policy's entropy a token along the episode.
 * - "sum_logprob": their sum, the logprob of all that the policy said: long episodes are less likely.
 */
export const CONFIDENCE_SCORES = ["mean_logprob", "sum_logprob"] as const;

/** One of CONFIDENCE_SCORES, or a score of your own (a stated one, read from the last turn's text, say). */
export type ConfidenceScore = (typeof CONFIDENCE_SCORES)[number] | ((trajectory: Trajectory) => number);

/** The score of one trajectory, in nats for the named ones; 0 where nothing was said. */
export function confidenceOf(trajectory: Trajectory, score: ConfidenceScore): number {
  if (typeof score === "function") return score(trajectory);
  let sum = 0;
  let tokens = 0;
  for (let i = 0; i < trajectory.tokens.length; i++) {
    if (trajectory.provenance[i] !== ACTION) continue;
    sum += trajectory.logprobs[i] as number;
    tokens++;
  }
  return score === "sum_logprob" || tokens === 0 ? sum : sum / tokens;
}

/** Answering only where the confidence is at least `threshold`. */
export interface AbstentionPoint {
  threshold: number;
  /** Share of the episodes that are answered. */
  coverage: number;
  /** Solved of those answered. */
  precision: number;
  /** Answered of those solved; 0 where none was. */
  recall: number;
}

/** What a score of confidence is worth: abstention by it, and best-of-n. Rates are in [0, 1]. */
export interface ConfidenceReport {
  /** At coverages of 5, 10, ... 100 %, or of every episode where there are fewer than twenty. */
  curve: AbstentionPoint[];
  /**
   * Area under the whole curve of precision over recall: sum of precision x gain of recall, threshold by threshold.
   * A score that knows nothing gives `pass1`. Null where nothing was solved.
   */
  averagePrecision: number | null;
  /** Share solved of all episodes. */
  pass1: number;
  /** By n (1, 2, 5, 10 as far as there are episodes): Pass@1 of the surest of n episodes of an instance. */
  bestOf: Record<string, { pass1: number; sem: number | null }>;
}

const CURVE_POINTS = 20;
const BEST_OF = [1, 2, 5, 10];

interface Scored {
  confidence: number;
  solved: 0 | 1;
}

/**
 * Abstention and best-of-n over the groups of an evaluation (one per instance). Episodes that do not count are left out.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for a score that is NaN.
 */
export function confidenceReport(groups: readonly Group[], score: ConfidenceScore): ConfidenceReport {
  const byInstance = groups.map((group) =>
    group.trajectories.filter(counts).map((one) => scored(one, score)),
  );
  const all = byInstance.flat();
  const bestOf: ConfidenceReport["bestOf"] = {};
  for (const n of BEST_OF) {
    const able = byInstance.filter((episodes) => episodes.length >= n);
    if (able.length === 0) continue;
    const rates = able.map((episodes) => bestOfN(episodes, n));
    bestOf[n] = { pass1: mean(rates), sem: sem(rates) };
  }
  return { ...abstention(all), pass1: mean(all.map(({ solved }) => solved)), bestOf };
}

function scored(trajectory: Trajectory, score: ConfidenceScore): Scored {
  const confidence = confidenceOf(trajectory, score);
  if (Number.isNaN(confidence)) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `the confidence of ${trajectory.id} is NaN; a score gives a number that can be compared`,
    );
  }
  return { confidence, solved: trajectory.verdict === "resolved" ? 1 : 0 };
}

function abstention(all: readonly Scored[]): Pick<ConfidenceReport, "curve" | "averagePrecision"> {
  const points: AbstentionPoint[] = [];
  const total = all.reduce((sum, { solved }) => sum + solved, 0);
  let averagePrecision = 0;
  let answered = 0;
  let solved = 0;
  for (const tied of ties(all)) {
    answered += tied.length;
    const before = solved;
    for (const one of tied) solved += one.solved;
    const precision = solved / answered;
    if (total > 0) averagePrecision += (precision * (solved - before)) / total;
    points.push({
      threshold: (tied[0] as Scored).confidence,
      coverage: answered / all.length,
      precision,
      recall: total === 0 ? 0 : solved / total,
    });
  }
  const curve = new Set<AbstentionPoint>();
  for (let i = 1; i <= CURVE_POINTS; i++) {
    const at = points.find((point) => point.coverage >= i / CURVE_POINTS - 1e-9);
    if (at) curve.add(at);
  }
  return { curve: [...curve], averagePrecision: total === 0 ? null : averagePrecision };
}

/** From the surest down, those of equal confidence together. */
function ties(episodes: readonly Scored[]): Scored[][] {
  const groups: Scored[][] = [];
  for (const one of [...episodes].sort((a, b) => b.confidence - a.confidence)) {
    const last = groups.at(-1);
    if (last?.[0]?.confidence === one.confidence) last.push(one);
    else groups.push([one]);
  }
  return groups;
}

/**
 * Probability that the surest of n episodes, drawn without replacement from those given, solved the instance; of
 * equally sure ones each is taken as often. The mean over all subsets, as Pass@k is (Chen et al. 2021): the surest lies
 * among the first j with probability 1 - C(m - j, n) / C(m, n).
 */
export function bestOfN(episodes: readonly Scored[], n: number): number {
  const m = episodes.length;
  if (!Number.isInteger(n) || n < 1 || n > m) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `best of ${n} of ${m} episodes: n must be a whole number from 1 to ${m}`,
    );
  }
  /** Probability that none of the first j is drawn. */
  const none = (j: number): number => {
    let product = 1;
    for (let i = 0; i < n; i++) product *= Math.max(0, m - j - i) / (m - i);
    return product;
  };
  let rate = 0;
  let first = 0;
  for (const tied of ties(episodes)) {
    rate += (none(first) - none(first + tied.length)) * mean(tied.map(({ solved }) => solved));
    first += tied.length;
  }
  return rate;
}
