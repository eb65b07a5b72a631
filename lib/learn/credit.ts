// Credit by the turn instead of by the trajectory: from rollouts that go on from a turn, or from the tests that the
// working tree passes there. Both need a rollout source that can begin from a prefix.
import type { Prefix, Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import { actionTokens, counts } from "../evaluate/episodes.ts";
import { mean } from "../evaluate/statistics.ts";
import { Random } from "../random.ts";
import { type AdvantageOptions, groupAdvantages, groupScale } from "./advantage.ts";
import { type Reward, rewardOf, type ScoredGroup } from "./filter.ts";
import type { Group, RolloutSource } from "./types.ts";

/** Credit by the turn from rollouts that go on from it (docs/learning.md). */
export interface StepCreditOptions {
  /** Turns of a group at which its trajectories are forked, at most: 0 = off. */
  turns: number;
  /** Rollouts from each: 4. */
  rollouts: number;
}

/** Credit by the turn from the tests that pass after it (docs/learning.md). */
export interface ShapingOptions {
  /** Weight of the potential: 0 = off. 1 counts all tests passed as much as the reward. */
  weight: number;
  /** States of a trajectory whose tests are run, at most: 8. */
  turns: number;
}

/** What credit by the turn cost in an iteration. */
export interface CreditSummary {
  /** Turns that were looked at, and those of them whose state could not be had again. */
  turns: number;
  lost: number;
  /** Episodes that were sampled for it, from the turn to their end, and their own tokens. */
  episodes: number;
  sampledTokens: number;
  milliseconds: number;
}

export interface CreditContext {
  rollouts: RolloutSource;
  reward: Reward;
  advantage: AdvantageOptions;
  purpose: string;
  iteration: number;
  seed: number | bigint;
  temperature: number;
  signal?: AbortSignal | undefined;
}

/** What is wrong with the two together. Each alone is taken to be in range. */
export function creditFault(options: {
  stepCredit: StepCreditOptions;
  shaping: ShapingOptions;
}): { key: "shaping"; message: string } | null {
  if (options.stepCredit.turns === 0 || options.shaping.weight === 0) return null;
  const message = "cancels out of the differences of values that stepCredit takes; leave one of them out";
  return { key: "shaping", message };
}

/** `count` turns, as even as can be, between the first and the end of `turns`; fewer where there are fewer. */
export function evenMarks(turns: number, count: number): number[] {
  const marks = Math.min(count, turns - 1);
  return Array.from({ length: Math.max(0, marks) }, (_, j) => Math.round(((j + 1) * turns) / (marks + 1)));
}

/** One state to be looked at: after `turn` turns of a group's trajectory. */
interface Mark {
  group: number;
  trajectory: number;
  turn: number;
}

/** Groups that have a gradient; the others keep what they have. */
function worthCredit(scored: ScoredGroup): boolean {
  return scored.state === "live" && scored.advantages.some((advantage) => advantage !== 0);
}

async function fromMarks(
  groups: readonly ScoredGroup[],
  marks: readonly Mark[],
  context: CreditContext,
  how: { purpose: string; rollouts: number; judgeOnly?: boolean },
): Promise<{ continued: Group[]; summary: CreditSummary }> {
  const begin = performance.now();
  const prefixes = marks.map(
    (mark): Prefix => ({
      trajectory: (groups[mark.group] as ScoredGroup).trajectories[mark.trajectory] as Trajectory,
      turns: mark.turn,
    }),
  );
  const continued =
    marks.length === 0
      ? []
      : await context.rollouts.collect({
          instances: marks.map((mark) => (groups[mark.group] as ScoredGroup).group.instance),
          rollouts: how.rollouts,
          purpose: `${context.purpose}/${how.purpose}`,
          iteration: context.iteration,
          temperature: context.temperature,
          prefixes,
          ...(how.judgeOnly ? { judgeOnly: true } : {}),
          ...(context.signal ? { signal: context.signal } : {}),
        });
  const summary: CreditSummary = {
    turns: marks.length,
    lost: 0,
    episodes: 0,
    sampledTokens: 0,
    milliseconds: 0,
  };
  for (const [i, group] of continued.entries()) {
    const trajectories = group.trajectories.filter(counts);
    for (const trajectory of trajectories) checkPrefix(trajectory, prefixes[i] as Prefix);
    if (trajectories.length === 0) summary.lost++;
    if (how.judgeOnly) continue;
    summary.episodes += trajectories.length;
    const { trajectory, turns } = prefixes[i] as Prefix;
    const before = trajectory.turns.slice(0, turns).reduce((sum, { start, end }) => sum + end - start, 0);
    for (const one of trajectories) summary.sampledTokens += actionTokens(one) - before;
  }
  summary.milliseconds = performance.now() - begin;
  return { continued, summary };
}

/** A source that knows nothing of prefixes would give values of the wrong state. */
function checkPrefix(got: Trajectory, { trajectory, turns }: Prefix): void {
  const end = trajectory.turns[turns]?.start as number;
  const same = got.tokens.length >= end && got.turns.length >= turns;
  if (same && trajectory.tokens.subarray(0, end).every((token, i) => token === got.tokens[i])) return;
  throw new TokenringError(
    "ERR_TOKENRING_INVALID_ARGUMENT",
    `${got.id} does not begin with the first ${turns} turns of ${trajectory.id}: the rollout source starts from no ` +
      "prefix, which stepCredit and shaping need; use Rollouts, or turn them off",
  );
}

/**
 * Credit from prefix rollouts (VinePPO, arXiv 2410.01679): the value of the state after a turn is the mean
 * final reward of `rollouts` episodes that go on from it, V(first state) is the group's mean reward and V(end) the
 * trajectory's own. A turn's advantage is
 *
 *     A = (V(after) - V(before)) / (sigma + delta)
 *
 * with the group's sigma, so that the steps of a trajectory sum to its group advantage. `turns` forks a group are dealt
 * out over its trajectories in a random order and lie evenly within one; the turns between two forks share one step.
 */
export async function stepCredit(
  groups: readonly ScoredGroup[],
  options: StepCreditOptions,
  context: CreditContext,
): Promise<{ groups: ScoredGroup[]; summary: CreditSummary }> {
  const marks: Mark[] = [];
  for (const [g, scored] of groups.entries()) {
    if (!worthCredit(scored)) continue;
    const forks = deal(scored, options.turns, g, context);
    for (const [t, trajectory] of scored.trajectories.entries()) {
      for (const turn of evenMarks(trajectory.turns.length, forks[t] as number))
        marks.push({ group: g, trajectory: t, turn });
    }
  }
  const { continued, summary } = await fromMarks(groups, marks, context, {
    purpose: "forks",
    rollouts: options.rollouts,
  });
  /** By group and trajectory: the values that are known, by turn. */
  const values = new Map<string, [number, number][]>();
  for (const [i, { group, trajectory, turn }] of marks.entries()) {
    const counted = (continued[i] as Group).trajectories.filter(counts);
    if (counted.length === 0) continue;
    const value = mean(counted.map((one) => rewardOf(one, context.reward)));
    const key = `${group}/${trajectory}`;
    values.set(key, [...(values.get(key) ?? []), [turn, value]]);
  }
  const out = groups.map((scored, g): ScoredGroup => {
    if (!worthCredit(scored)) return scored;
    const { centre, scale } = groupScale(scored.rewards, context.advantage);
    const turnAdvantages = scored.trajectories.map((trajectory, t) => {
      const advantages = new Array<number>(trajectory.turns.length).fill(0);
      let [from, before] = [0, centre];
      const end: [number, number] = [trajectory.turns.length, scored.rewards[t] as number];
      for (const [turn, after] of [...(values.get(`${g}/${t}`) ?? []), end]) {
        advantages.fill((after - before) / scale, from, turn);
        [from, before] = [turn, after];
      }
      return advantages;
    });
    return { ...scored, turnAdvantages };
  });
  return { groups: out, summary };
}

/** How often each trajectory of a group is forked. */
function deal(scored: ScoredGroup, turns: number, index: number, context: CreditContext): number[] {
  const { seed, purpose, iteration } = context;
  const order = Random.of(seed, `${purpose}/forks`, iteration, index).shuffle([
    ...scored.trajectories.keys(),
  ]);
  const room = scored.trajectories.map((trajectory) => Math.max(0, trajectory.turns.length - 1));
  const forks = room.map(() => 0);
  for (let left = turns; left > 0; ) {
    const able = order.filter((t) => (forks[t] as number) < (room[t] as number)).slice(0, left);
    if (able.length === 0) break;
    for (const t of able) forks[t] = (forks[t] as number) + 1;
    left -= able.length;
  }
  return forks;
}

/**
 * Potential-based shaping (Ng, Harada & Russell 1999; with a potential of 0 at the end of an episode, as Grzes 2017
 * asks for). The
 * potential of a state is weight x (share of FAIL_TO_PASS tests that pass) x (that of PASS_TO_PASS), so 0 at first and
 * weight where the working tree would be resolved. Each turn earns F = potential(after) - potential(before), which
 * leaves from turn t on
 *
 *     G_t = R - potential(s_t),    A_t = (G_t - mean) / (sigma + delta) over all turns of the group
 *
 * a baseline that depends on the state alone: the optimum stays, and turns after the tests already pass gain nothing.
 * A trajectory's tests are run at `turns` states at most; between two of them the earlier one counts.
 */
export async function shapedCredit(
  groups: readonly ScoredGroup[],
  options: ShapingOptions,
  context: CreditContext,
): Promise<{ groups: ScoredGroup[]; summary: CreditSummary }> {
  const marks: Mark[] = [];
  /** By what was done so far: what the same commands do to the same repository is judged once. */
  const places = new Map<string, number>();
  const place = ({ group, trajectory, turn }: Mark): string => {
    const scored = groups[group] as ScoredGroup;
    const turns = (scored.trajectories[trajectory] as Trajectory).turns.slice(0, turn);
    return JSON.stringify([
      scored.group.instance.instance_id,
      ...turns.flatMap(({ command }) => command ?? []),
    ]);
  };
  const marksOf = (group: number, trajectory: number, turns: number): Mark[] =>
    evenMarks(turns, options.turns).map((turn) => ({ group, trajectory, turn }));
  for (const [g, scored] of groups.entries()) {
    if (!worthCredit(scored)) continue;
    for (const [t, trajectory] of scored.trajectories.entries()) {
      for (const mark of marksOf(g, t, trajectory.turns.length)) {
        const key = place(mark);
        if (places.has(key)) continue;
        places.set(key, marks.length);
        marks.push(mark);
      }
    }
  }
  const { continued, summary } = await fromMarks(groups, marks, context, {
    purpose: "states",
    rollouts: 1,
    judgeOnly: true,
  });
  const out = groups.map((scored, g): ScoredGroup => {
    if (!worthCredit(scored)) return scored;
    const toGo = scored.trajectories.map((trajectory, t) => {
      const left = new Array<number>(trajectory.turns.length).fill(scored.rewards[t] as number);
      for (const mark of marksOf(g, t, trajectory.turns.length)) {
        const judged = continued[places.get(place(mark)) as number]?.trajectories.filter(counts)[0];
        // A state that is lost keeps the potential of the one before.
        if (!judged) continue;
        left.fill((scored.rewards[t] as number) - options.weight * potential(judged), mark.turn);
      }
      return left;
    });
    const advantages = groupAdvantages(toGo.flat(), context.advantage);
    let at = 0;
    const turnAdvantages = toGo.map((turns) => {
      at += turns.length;
      return advantages.slice(at - turns.length, at);
    });
    return { ...scored, turnAdvantages };
  });
  return { groups: out, summary };
}

function potential({ id, tests }: Trajectory): number {
  if (tests) return tests.failToPass * tests.passToPass;
  throw new TokenringError(
    "ERR_TOKENRING_INVALID_ARGUMENT",
    `${id} says nothing of its tests, whose share shaping needs; use Rollouts, or a source that fills in \`tests\``,
  );
}
