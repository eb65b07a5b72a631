// The training curves of a run: by iteration and by optimiser step for DAPO, by step for supervised stages.
import type { DapoSummary } from "../learn/dapo.ts";
import type { StepMetrics } from "../learn/types.ts";
import { type LineChart, lineChart, type Series } from "./chart.ts";
import type { EpisodeRow, StageData } from "./data.ts";
import { axisPercent, compact } from "./format.ts";
import { type Html, html } from "./html.ts";
import { outcomesByIteration } from "./outcomes.ts";

/** Rows of several stages one after the other, with the places where stages begin. */
function joined<T>(
  stages: readonly StageData[],
  rows: (stage: StageData) => readonly T[],
): {
  rows: T[];
  labels: string[];
  begins: { at: number; name: string }[];
} {
  const out: { rows: T[]; labels: string[]; begins: { at: number; name: string }[] } = {
    rows: [],
    labels: [],
    begins: [],
  };
  for (const stage of stages) {
    const mine = rows(stage);
    if (mine.length === 0) continue;
    out.begins.push({ at: out.rows.length, name: stage.name });
    out.rows.push(...mine);
    out.labels.push(...mine.map((_, i) => (stages.length > 1 ? `${stage.name} ${i}` : String(i))));
  }
  return out;
}

type Pick<T> = readonly [name: string, value: (row: T) => number | null | undefined];

function charts<T>(
  data: { rows: readonly T[]; labels: readonly string[]; begins: readonly { at: number; name: string }[] },
  unit: string,
  specs: readonly {
    title: string;
    format?: (value: number) => string;
    fromZero?: boolean;
    series: readonly Pick<T>[];
  }[],
): Html[] {
  if (data.rows.length === 0) return [];
  return specs.flatMap((spec) => {
    const series: Series[] = spec.series.map(([name, value]) => ({
      name,
      values: data.rows.map((row) => value(row) ?? null),
    }));
    // A line of nothing says nothing.
    const drawn = series.filter(({ values }) => values.some((value) => value !== null));
    if (drawn.length === 0) return [];
    const chart: LineChart = {
      title: spec.title,
      unit,
      labels: data.labels,
      series: drawn,
      stages: data.begins,
      format: spec.format ?? compact,
      ...(spec.fromZero === undefined ? {} : { fromZero: spec.fromZero }),
    };
    return [lineChart(chart)];
  });
}

const perSecond = (tokens: number, ms: number): number | null => (ms > 0 ? (1000 * tokens) / ms : null);

/** Curves of the stages that sample and learn in iterations. */
export function reinforcementCurves(
  all: readonly StageData[],
  episodes: readonly EpisodeRow[],
  id: string,
): Html | null {
  const stages = all.filter((stage) => stage.iterations.length > 0);
  if (stages.length === 0) return null;
  const iterations = joined(stages, (stage) => stage.iterations);
  const steps = joined(stages, (stage) => stage.steps);
  const outcomes = outcomesByIteration(episodes);
  const place = new Map(
    stages.flatMap(({ name, iterations }) => iterations.map((row, i) => [row, [name, i] as const] as const)),
  );
  const share = (name: string) => (row: DapoSummary) => {
    const [stage, iteration] = place.get(row) ?? ["", 0];
    return outcomes.share(stage, iteration, name);
  };
  const ratio = (part: (row: DapoSummary) => number) => (row: DapoSummary) =>
    row.groups === 0 ? null : part(row) / row.groups;
  const ofEpisodes = (part: (row: DapoSummary) => number) => (row: DapoSummary) =>
    row.episodes === 0 ? null : part(row) / row.episodes;
  const byIteration = charts<DapoSummary>(iterations, "iteration", [
    {
      title: "Pass rate on sampled instances",
      format: axisPercent,
      series: [["solved", (row) => row.passRate]],
    },
    { title: "Final reward", series: [["reward", (row) => row.reward]] },
    {
      title: "Groups",
      format: axisPercent,
      series: [
        ["live", ratio((row) => row.groupsKept)],
        ["all solved", ratio((row) => row.groupsDeadSolved)],
        ["none solved", ratio((row) => row.groupsDeadFailed)],
        ["empty", ratio((row) => row.groupsEmpty)],
      ],
    },
    { title: "Turns per episode", series: [["turns", (row) => row.turns]] },
    {
      title: "Tokens per episode",
      series: [
        ["all", (row) => row.tokens],
        ["sampled", (row) => row.actionTokens],
      ],
    },
    {
      title: "Verdicts",
      format: axisPercent,
      // As many as there are colours; the table of verdicts has all.
      series: outcomes.names.slice(0, 6).map((name) => [name, share(name)] as const),
    },
    {
      title: "How episodes ended",
      format: axisPercent,
      series: [
        ["submitted", ofEpisodes((row) => row.exits.submitted)],
        ["turn limit", ofEpisodes((row) => row.exits.turn_limit)],
        ["context limit", ofEpisodes((row) => row.exits.context_limit)],
        ["timeout", ofEpisodes((row) => row.exits.timeout)],
        ["infrastructure", (row) => (row.dropped === 0 ? null : row.dropped / (row.episodes + row.dropped))],
      ],
    },
    {
      title: "Seconds by station",
      series: [
        ["rollouts", (row) => row.rolloutMs / 1000],
        ["learning", (row) => row.learnMs / 1000],
        ["old and reference logprobs", (row) => (row.scoredTokens ? row.scoreMs / 1000 : null)],
      ],
    },
    {
      title: "Seconds of an episode",
      series: [
        ["sampling", ofEpisodes((row) => row.sampleMs / 1000)],
        ["tools", ofEpisodes((row) => row.toolMs / 1000)],
        ["verification", ofEpisodes((row) => row.verifyMs / 1000)],
      ],
    },
    {
      title: "Behaviour",
      format: axisPercent,
      series: [
        ["ran tests", (row) => row.testsRunRate],
        ["format errors", (row) => row.formatErrorRate],
      ],
    },
    {
      // Runs of earlier versions lack what some series are made of: those are left out.
      title: "Tokens per second",
      series: [
        ["sampled", (row) => perSecond(row.actionTokens * row.episodes, row.rolloutMs)],
        ["learnt", (row) => row.learning && perSecond(row.learning.packedTokens, row.learnMs)],
        ["scored", (row) => (row.scoredTokens ? perSecond(row.scoredTokens, row.scoreMs) : null)],
      ],
    },
  ]);
  const byStep = charts<StepMetrics>(steps, "optimiser step", [
    { title: "Entropy", series: [["entropy", (row) => row.entropy]] },
    {
      title: "Clipped tokens",
      format: axisPercent,
      series: [
        ["low", (row) => row.clipLow],
        ["high", (row) => row.clipHigh],
        ["dual clip", (row) => row.clipDual || null],
        ["truncated weights", (row) => row.tisClipped],
      ],
    },
    { title: "Gradient norm", series: [["norm", (row) => row.gradientNorm]] },
    { title: "Busiest rank's work, relative to the mean", series: [["work", (row) => row.imbalance]] },
    { title: "Approximate KL to the sampling policy", series: [["kl", (row) => row.approximateKl]] },
    { title: "Approximate KL to the reference", series: [["kl", (row) => row.referenceKl]] },
    {
      title: "|trainer − engine| logprob",
      series: [
        ["median", (row) => row.mismatch?.p50],
        ["95 %", (row) => row.mismatch?.p95],
        ["largest", (row) => row.mismatch?.max],
      ],
    },
    { title: "Approximate KL of trainer to engine", series: [["kl", (row) => row.mismatch?.k3]] },
    {
      title: "Ratios trainer / engine outside 0.9 to 1.1",
      format: axisPercent,
      series: [["outside", (row) => row.mismatch?.outside]],
    },
  ]);
  return html`<section id="${id}"><h2>Reinforcement learning</h2><div class="charts">${byIteration}${byStep}</div></section>`;
}

/** Curves of the stages that imitate: warm start and RFT. */
export function supervisedCurves(all: readonly StageData[], id: string): Html | null {
  const stages = all.filter((stage) => stage.iterations.length === 0 && stage.steps.length > 0);
  if (stages.length === 0) return null;
  const drawn = stages.map((stage) =>
    charts<StepMetrics>(
      joined([stage], ({ steps }) => steps),
      "optimiser step",
      [
        { title: "Loss per token", series: [["loss", (row) => row.loss]] },
        { title: "Entropy", series: [["entropy", (row) => row.entropy]] },
        { title: "Gradient norm", series: [["norm", (row) => row.gradientNorm]] },
      ],
    ),
  );
  return html`<section id="${id}"><h2>Supervised stages</h2><div class="charts">${drawn}</div></section>`;
}

/** Several runs in the same charts, a line each, over the iterations of all their stages. */
export function comparedCurves(runs: readonly { name: string; stages: readonly StageData[] }[]): Html | null {
  const specs: [
    title: string,
    value: (row: DapoSummary) => number | null | undefined,
    format?: typeof compact,
  ][] = [
    ["Pass rate on sampled instances", (row) => row.passRate, axisPercent],
    ["Final reward", (row) => row.reward],
    ["Entropy", (row) => row.learning?.entropy],
    ["Clipped tokens", (row) => row.learning && row.learning.clipLow + row.learning.clipHigh, axisPercent],
    ["Gradient norm", (row) => row.learning?.gradientNorm],
    ["Approximate KL to the sampling policy", (row) => row.learning?.approximateKl],
    ["Largest |trainer − engine| logprob", (row) => row.mismatch?.max],
    ["Groups with a signal", (row) => (row.groups === 0 ? null : row.groupsKept / row.groups), axisPercent],
    ["Turns per episode", (row) => row.turns],
    ["Tokens per episode", (row) => row.tokens],
    ["Format errors", (row) => row.formatErrorRate, axisPercent],
    ["Seconds an iteration", (row) => (row.rolloutMs + row.scoreMs + row.learnMs) / 1000],
  ];
  const all = runs.map((run) =>
    run.stages.flatMap((stage) => stage.iterations.map((row) => ({ stage, row }))),
  );
  const longest = all.reduce((most, one) => (one.length > most.length ? one : most), all[0] ?? []);
  if (longest.length === 0) return null;
  // Names of stages stand where they begin only if they begin there in all runs.
  const sameStages = all.every((one) => one.every(({ stage }, i) => stage.name === longest[i]?.stage.name));
  const stages = longest.flatMap(({ stage }, at) =>
    sameStages && stage !== longest[at - 1]?.stage ? [{ at, name: stage.name }] : [],
  );
  const drawn = specs.flatMap(([title, value, format = compact]) => {
    const series = runs.map(({ name }, i) => ({
      name,
      values: longest.map((_, at) => {
        const one = all[i]?.[at];
        return one === undefined ? null : (value(one.row) ?? null);
      }),
    }));
    if (series.every(({ values }) => values.every((one) => one === null))) return [];
    const labels = longest.map((_, at) => String(at));
    return [lineChart({ title, unit: "iteration of all stages", labels, series, stages, format })];
  });
  return html`<section><h2>Curves of all runs</h2><div class="charts">${drawn}</div></section>`;
}
