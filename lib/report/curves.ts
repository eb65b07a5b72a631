// The training curves of a run: by iteration and by optimiser step for DAPO, by step for supervised stages.
import type { DapoSummary } from "../learn/dapo.ts";
import type { StepMetrics } from "../learn/types.ts";
import { type LineChart, lineChart, type Series } from "./chart.ts";
import type { StageData } from "./data.ts";
import { axisPercent, compact } from "./format.ts";
import { type Html, html } from "./html.ts";

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
    // A chart of nothing says nothing.
    if (series.every(({ values }) => values.every((value) => value === null))) return [];
    const chart: LineChart = {
      title: spec.title,
      unit,
      labels: data.labels,
      series,
      stages: data.begins,
      format: spec.format ?? compact,
      ...(spec.fromZero === undefined ? {} : { fromZero: spec.fromZero }),
    };
    return [lineChart(chart)];
  });
}

const perSecond = (tokens: number, ms: number): number | null => (ms > 0 ? (1000 * tokens) / ms : null);

/** Curves of the stages that sample and learn in iterations. */
export function reinforcementCurves(all: readonly StageData[]): Html | null {
  const stages = all.filter((stage) => stage.iterations.length > 0);
  if (stages.length === 0) return null;
  const iterations = joined(stages, (stage) => stage.iterations);
  const steps = joined(stages, (stage) => stage.steps);
  const ratio = (part: (row: DapoSummary) => number) => (row: DapoSummary) =>
    row.groups === 0 ? null : part(row) / row.groups;
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
      title: "Behaviour",
      format: axisPercent,
      series: [
        ["submitted", (row) => (row.episodes === 0 ? null : row.exits.submitted / row.episodes)],
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
    {
      title: "Ratios trainer / engine outside 0.9 to 1.1",
      format: axisPercent,
      series: [["outside", (row) => row.mismatch?.outside]],
    },
  ]);
  return html`<section><h2>Reinforcement learning</h2><div class="charts">${byIteration}${byStep}</div></section>`;
}

/** Curves of the stages that imitate: warm start and RFT. */
export function supervisedCurves(all: readonly StageData[]): Html | null {
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
  return html`<section><h2>Supervised stages</h2><div class="charts">${drawn}</div></section>`;
}
