// In the browser: what each token can be painted by. A closed function.
import type { PageEpisode } from "./types.ts";

export interface PageLane {
  key: string;
  name: string;
  /** What the colours mean, in words. */
  hint: string;
  legend: readonly (readonly [colour: string, label: string])[];
  /** Name of the colour of token i; "" = not painted. */
  colour: (i: number) => string;
  /** Whether the lane has something remarkable to say of token i. */
  notable: (i: number) => boolean;
  /** Why there is nothing to paint; null where there is. */
  missing: string | null;
}

/** Everything the run directory says of one token, as pairs of name and value. */
export type TokenFacts = [name: string, value: string][];

export function createLanes() {
  const PROMPT = 0;
  const OBSERVATION = 1;
  const ACTION = 2;
  const FLAGS = ["no", "low", "high", "dual clip"];

  /** Index of each token among the action tokens; -1 for the others. */
  function actionIndex(episode: PageEpisode): Int32Array {
    const index = new Int32Array(episode.provenance.length).fill(-1);
    let at = 0;
    for (let i = 0; i < index.length; i++) if (episode.provenance[i] === ACTION) index[i] = at++;
    return index;
  }

  function lanesOf(
    episode: PageEpisode,
    row: { advantage: number | null; stage: string },
  ): { lanes: PageLane[]; facts: (i: number) => TokenFacts } {
    const { provenance, logprobs, learntLogprobs, learntEntropies, learntFlags, learntOldLogprobs } = episode;
    const index = actionIndex(episode);
    const isAction = (i: number): boolean => provenance[i] === ACTION;
    const at = (lane: ArrayLike<number> | undefined, i: number): number | null =>
      lane === undefined || (index[i] as number) < 0 ? null : (lane[index[i] as number] as number);
    const entropy = (i: number): number | null => at(learntEntropies, i);
    const flag = (i: number): number => at(learntFlags, i) ?? 0;
    const old = (i: number): number | null =>
      learntOldLogprobs === undefined ? (logprobs[i] as number) : at(learntOldLogprobs, i);
    /** log(policy / what the ratio was taken against). */
    const drift = (i: number): number | null => {
      const now = at(learntLogprobs, i);
      return now === null ? null : now - (old(i) as number);
    };
    const step = (value: number, bounds: readonly number[]): number => {
      let n = 0;
      while (n < bounds.length && value >= (bounds[n] as number)) n++;
      return n;
    };
    const learnt = learntLogprobs !== undefined;
    const unlearnt = learnt
      ? null
      : /-evaluation$/.test(row.stage)
        ? "an evaluation: nothing is learnt from it"
        : row.advantage === 0
          ? "all of its group were rewarded alike, so it has no advantage and no step learnt from it"
          : "no step of this run says what it saw of these tokens";
    const advantage = row.advantage;

    const lanes: PageLane[] = [
      {
        key: "source",
        name: "Source",
        hint: "Where each token came from. Only actions can carry loss; the mask is made of this and of nothing else.",
        legend: [
          ["prompt", "prompt"],
          ["observation", "observation"],
          ...(learnt ? [["loss", "action, in the loss"] as const] : [["action", "action"] as const]),
        ],
        colour: (i) => {
          if (provenance[i] === PROMPT) return "prompt";
          if (provenance[i] === OBSERVATION) return "observation";
          return learnt && i > 0 ? "loss" : "action";
        },
        notable: (i) => isAction(i) && (i === 0 || !isAction(i - 1)),
        missing: null,
      },
      {
        key: "surprise",
        name: "Surprise",
        hint: "How likely the policy held its own choice when it sampled (engine's logprob).",
        legend: [
          ["amber1", "p < .9"],
          ["amber2", "< .5"],
          ["amber3", "< .1"],
          ["amber4", "< .01"],
        ],
        colour: (i) => {
          if (!isAction(i)) return "";
          const n = step(-(logprobs[i] as number), [
            -Math.log(0.9),
            Math.log(2),
            Math.log(10),
            Math.log(100),
          ]);
          return n === 0 ? "sure" : `amber${n}`;
        },
        notable: (i) => isAction(i) && (logprobs[i] as number) < -Math.log(10),
        missing: null,
      },
      {
        key: "advantage",
        name: "Advantage",
        hint: "What each token's loss was multiplied by: one number a trajectory, against its group.",
        legend: [
          ["neg4", "≤ −1"],
          ["neg2", "< 0"],
          ["pos2", "> 0"],
          ["pos4", "≥ 1"],
        ],
        colour: (i) => {
          if (!isAction(i) || advantage === null || advantage === 0) return "";
          return `${advantage > 0 ? "pos" : "neg"}${Math.min(4, 1 + step(Math.abs(advantage), [0.25, 0.5, 1]))}`;
        },
        notable: (i) => isAction(i) && (i === 0 || !isAction(i - 1)),
        missing:
          advantage === null
            ? "an episode without advantage: evaluations and rejection fine-tuning have none"
            : null,
      },
      {
        key: "entropy",
        name: "Entropy",
        hint: "How open the trainer's policy was at each token, in nats. Where it falls to nothing, exploration ends.",
        legend: [
          ["violet1", "≥ .05"],
          ["violet2", "≥ .3"],
          ["violet3", "≥ 1"],
          ["violet4", "≥ 2"],
        ],
        colour: (i) => {
          const value = entropy(i);
          if (value === null) return "";
          const n = step(value, [0.05, 0.3, 1, 2]);
          return n === 0 ? "sure" : `violet${n}`;
        },
        notable: (i) => (entropy(i) ?? 0) >= 1,
        missing: unlearnt,
      },
      {
        key: "ratio",
        name: "Ratio",
        hint: `Policy over ${learntOldLogprobs === undefined ? "engine" : "old policy"}, when the step learnt from it: 1 at the first step of an iteration unless engine and trainer disagree, and off it as steps move the policy.`,
        legend: [
          ["cool4", "< .8"],
          ["cool2", "< .95"],
          ["sure", "1"],
          ["amber2", "> 1.05"],
          ["amber4", "> 1.2"],
        ],
        colour: (i) => {
          const value = drift(i);
          if (value === null) return "";
          const n = step(Math.abs(value), [0.005, 0.05, 0.1, 0.2]);
          return n === 0 ? "sure" : `${value > 0 ? "amber" : "cool"}${n}`;
        },
        notable: (i) => Math.abs(drift(i) ?? 0) >= 0.1,
        missing: unlearnt,
      },
      {
        key: "clip",
        name: "Clipped",
        hint: "Tokens whose ratio left the clip range in the direction of their advantage: they gave no gradient.",
        legend: [
          ["low", "low"],
          ["high", "high"],
          ["dual", "dual clip"],
        ],
        colour: (i) => {
          if (!learnt || !isAction(i)) return "";
          return ["sure", "low", "high", "dual"][flag(i)] as string;
        },
        notable: (i) => flag(i) > 0,
        missing: unlearnt,
      },
    ];

    const number = (value: number | null): string =>
      value === null ? "–" : String(Number(value.toPrecision(6)));
    function facts(i: number): TokenFacts {
      const from = ["prompt", "observation", "action"][provenance[i] as number] ?? "unknown";
      const out: TokenFacts = [
        ["token", String(i)],
        ["id", String(episode.tokens[i])],
        ["source", from],
      ];
      if (!isAction(i)) return [...out, ["loss", "masked"]];
      const engine = logprobs[i] as number;
      out.push(["engine logprob", number(engine)], ["p", number(Math.exp(engine))]);
      if (advantage !== null) out.push(["advantage", number(advantage)]);
      const value = drift(i);
      if (value === null) return [...out, ["loss", "none recorded"]];
      out.push(["trainer logprob", number(at(learntLogprobs, i))]);
      if (learntOldLogprobs !== undefined) out.push(["old logprob", number(old(i))]);
      out.push(
        ["ratio", number(Math.exp(value))],
        ["entropy", number(entropy(i))],
        ["clipped", FLAGS[flag(i)] ?? String(flag(i))],
        ["step", String(episode.step)],
      );
      return out;
    }
    return { lanes, facts };
  }

  return { lanesOf };
}
