// The overview: what runs did, in numbers and curves. Sections have ids, so that the live page can replace one.
import type { Evaluation } from "../evaluate/evaluate.ts";
import { type ArcStage, arcStages, kindest, meanArc } from "./arc.ts";
import { arcChart, stackedBars } from "./chart.ts";
import { configDifferences } from "./config-difference.ts";
import { comparedCurves, reinforcementCurves, supervisedCurves } from "./curves.ts";
import { type RunData, type StageData, stagesOf } from "./data.ts";
import { compact, duration, percent } from "./format.ts";
import { type Html, html } from "./html.ts";
import { outcomeTable } from "./outcomes.ts";

function tile(name: string, value: string): Html {
  return html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
}

/** What a run that only samples came to so far; null for others. */
function sampledSay(events: RunData["events"]): string | null {
  const summaries = events.flatMap((event) => (event.type === "sampled" ? [event.summary] : []));
  if (summaries.length === 0) return null;
  const [episodes, solved] = (["episodes", "solved"] as const).map((key) =>
    summaries.reduce((sum, summary) => sum + summary[key], 0),
  ) as [number, number];
  const share = episodes === 0 ? "" : ` (${percent(solved / episodes)})`;
  return `Sampled without training: ${solved} of ${episodes} episodes solved${share}.`;
}

/** What the arc says in a few numbers; where nothing was evaluated, `otherwise`. */
function headline(
  arc: readonly ArcStage[],
  more: readonly Html[],
  otherwise = "No checkpoint has been evaluated yet.",
): Html {
  const last = arc.at(-1);
  // A baseline counts with the budget that is kindest to it.
  const first = arc[0] && kindest(arc[0]);
  if (first === undefined || last === undefined) {
    return html`<div><p class="say">${otherwise}</p><dl class="tiles">${more}</dl></div>`;
  }
  const tiles: Html[] = [];
  if (arc.length > 1 && first.pass1 > 0)
    tiles.push(tile(`times ${first.name}`, `${compact(last.pass1 / first.pass1)}×`));
  const rft = arc.find((stage) => stage.name === "rft");
  if (rft !== undefined && rft !== last) {
    const gain = 100 * (last.pass1 - rft.pass1);
    tiles.push(tile("points over rft", `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(1)}`));
    const error = Math.hypot(rft.sem ?? Number.NaN, last.sem ?? Number.NaN);
    if (error > 0) tiles.push(tile("standard errors over rft", compact((last.pass1 - rft.pass1) / error)));
  }
  const from = arc.length > 1 && html`<span class="from">${percent(first.pass1)} → </span>`;
  return html`<div><p class="headline">${from}${percent(last.pass1)}</p>
<p class="say">Pass@1 on held-out instances${arc.length > 1 && `, from ${first.name} to ${last.name}`}</p>
<dl class="tiles">${tiles}${more}</dl></div>`;
}

function arcFigure(arc: readonly ArcStage[], runs?: readonly ArcStage[][]): Html | null {
  if (arc.length === 0) return null;
  const bars = arc.map((stage) => ({
    ...stage,
    ...(runs
      ? { runs: runs.flatMap((run) => run.filter(({ name }) => name === stage.name)).map((s) => s.pass1) }
      : {}),
  }));
  const error = runs ? "standard error over runs; dots are runs" : "standard error over repeated evaluations";
  return html`<div>${arcChart(bars)}<p class="legend-line"><span class="swatch"></span>Pass@1, per cent, with ${error}${bars.some((bar) => bar.pass10 !== null) && html` <span class="swatch pale"></span>Pass@10`}</p></div>`;
}

/** Largest logprob difference and how many steps it was looked at. */
function gapTile(stages: readonly StageData[]): Html | null {
  const gaps = stages.flatMap(({ steps }) =>
    steps.flatMap(({ mismatch }) => (mismatch ? [mismatch.max] : [])),
  );
  return gaps.length === 0
    ? null
    : tile(`largest |trainer − sampler| logprob, ${gaps.length} steps`, compact(Math.max(...gaps)));
}

function stageTable(run: RunData, id: string): Html | null {
  const evaluations = new Map<string, Evaluation>();
  for (const event of run.events)
    if (event.type === "evaluation") evaluations.set(event.stage, event.evaluation);
  if (evaluations.size === 0) return null;
  const budgets = [...evaluations.values()].find((one) => one.alsoAt)?.alsoAt ?? [];
  const sets = [...new Set([...evaluations.values()].flatMap((one) => Object.keys(one.apart ?? {})))];
  const rate = (one: Evaluation | undefined): Html =>
    one === undefined
      ? html`–`
      : html`${percent(one.pass1)}${one.sem !== null && html` <small>± ${(100 * one.sem).toFixed(1)}</small>`}`;
  const kinds = [...new Set([...evaluations.values()].flatMap((one) => Object.keys(one.byKind)))];
  const ks = ["5", "10"].filter((k) => [...evaluations.values()].some((one) => one.passK[k] !== undefined));
  const tested = [...evaluations.values()].some((one) => one.testsRunRate !== undefined);
  const share = (value: number | undefined): string => (value === undefined ? "–" : percent(value));
  return html`<section id="${id}"><h2>Stages</h2><div class="scroll"><table><thead><tr><th>stage</th><th>Pass@1</th>${budgets.map(
    ({ budget }) => html`<th>at ${budget?.maxTurns} turns</th>`,
  )}${sets.map((set) => html`<th>${set}, apart</th>`)}${ks.map((k) => html`<th>Pass@${k}</th>`)}${kinds.map((kind) => html`<th>Pass@1, ${kind}</th>`)}<th>turns</th><th>tokens</th><th>action tokens</th><th>format errors</th>${
    tested && html`<th>ran tests</th>`
  }<th>submitted</th><th>episodes</th></tr></thead><tbody>${[...evaluations].map(
    ([stage, one]) =>
      html`<tr data-stage="${stage}"><td>${stage}</td><td class="lead">${rate(one)}</td>${budgets.map(
        (_, i) => html`<td>${rate(one.alsoAt?.[i])}</td>`,
      )}${sets.map((set) => html`<td>${rate(one.apart?.[set])}</td>`)}${ks.map((k) => html`<td>${share(one.passK[k])}</td>`)}${kinds.map(
        (kind) => html`<td>${share(one.byKind[kind]?.pass1)}</td>`,
      )}<td>${one.turns.toFixed(2)}</td><td>${one.tokens.toFixed(0)}</td><td>${one.actionTokens.toFixed(0)}</td><td>${percent(
        one.formatErrorRate,
      )}</td>${tested && html`<td>${share(one.testsRunRate)}</td>`}<td>${
        one.episodes === 0 ? "–" : percent(one.exits.submitted / one.episodes)
      }</td><td>${one.episodes}${one.dropped > 0 && html` <small>(${one.dropped} broken)</small>`}</td></tr>`,
  )}</tbody></table></div></section>`;
}

/** Station of StageSeconds, its words, its colour. */
const STATIONS = [
  ["rollouts", "sampling, tools, tests", 0],
  ["score", "old and reference logprobs", 4],
  ["checkpoints", "checkpoints", 5],
  ["learn", "learning", 1],
  ["evaluate", "evaluation", 3],
  ["other", "the rest", 2],
] as const;

function timeSection(stages: readonly StageData[], id: string): Html | null {
  const rows = stages.flatMap(({ name, seconds }) =>
    seconds === null
      ? []
      : [
          {
            name,
            parts: STATIONS.map(([station, label, key]) => ({
              name: label,
              seconds: seconds[station] ?? 0,
              key: key as number,
            })).filter((part) => part.seconds > 0),
          },
        ],
  );
  if (rows.length === 0) return null;
  const spent = STATIONS.filter(([, label]) =>
    rows.some(({ parts }) => parts.some((part) => part.name === label)),
  );
  return html`<section id="${id}"><h2>Time</h2><p class="legend-line">${spent.map(
    ([, label, key]) => html`<span class="key k${key}"><i></i>${label}</span> `,
  )}</p><div class="scroll">${stackedBars(rows, duration)}</div></section>`;
}

/** Seed, version, beginning, duration and memory of a run as one line. */
export function runFacts(run: RunData): string {
  const end = run.events.findLast((event) => event.type === "end");
  const facts = [
    `seed ${run.seed}`,
    `tokenring ${run.version}`,
    run.createdAt.slice(0, 16).replace("T", " "),
  ];
  if (end?.type === "end") facts.push(duration(end.seconds), `${Math.round(end.peakRssMiB)} MiB at most`);
  else facts.push("not finished");
  return facts.join(" · ");
}

/** A place that stays in the page while it is empty, so that it can be filled later. */
function placed(id: string, section: Html | null): Html {
  return section ?? html`<section id="${id}" hidden></section>`;
}

/** The sections of run number `n`, by their ids, in order. */
function runSections(run: RunData, n: number, alone: boolean): [id: string, section: Html][] {
  const stages = stagesOf(run.events);
  const arc = arcStages(run.events);
  const iterations = stages.flatMap((stage) => stage.iterations);
  const episodes = iterations.reduce((sum, one) => sum + one.episodes, 0);
  const stored = episodes > 0 && iterations.every((one) => one.sampledTokens === 0);
  const what = stored ? "stored episodes that DAPO was given" : "episodes sampled for DAPO";
  const more = [gapTile(stages), episodes > 0 ? tile(what, episodes.toLocaleString("en")) : null].filter(
    (one) => one !== null,
  );
  const sampled = sampledSay(run.events) ?? undefined;
  const parts: Record<string, (id: string) => Html | null> = {
    name: (id) =>
      alone
        ? null
        : html`<header id="${id}"><h1>${run.name}</h1><p class="meta">${runFacts(run)}</p></header>`,
    arc: (id) =>
      html`<section id="${id}" class="hero">${headline(arc, more, sampled)}${arcFigure(arc)}</section>`,
    stages: (id) => stageTable(run, id),
    outcomes: (id) => outcomeTable(run.episodes, id),
    rl: (id) => reinforcementCurves(stages, run.episodes, id),
    sft: (id) => supervisedCurves(stages, id),
    time: (id) => timeSection(stages, id),
    config: (id) =>
      html`<section id="${id}"><h2>Config and versions</h2><p class="meta">tokenring ${run.version}${run.machine && ` · ${run.machine}`}</p><details><summary>Config</summary><pre class="config">${run.config}</pre></details></section>`,
  };
  return Object.entries(parts).map(([name, part]) => {
    const id = `run${n}-${name}`;
    return [id, placed(id, part(id))];
  });
}

function comparison(runs: readonly RunData[]): Html {
  const arcs = runs.map((run) => arcStages(run.events));
  const names = [...new Set(arcs.flat().map((stage) => stage.name))];
  const differences = configDifferences(runs.map((run) => run.settings));
  return html`<section class="hero">${headline(meanArc(arcs), [tile("runs", String(runs.length))])}${arcFigure(
    meanArc(arcs),
    arcs,
  )}</section>
<section><h2>Runs</h2><div class="scroll"><table><thead><tr><th>run</th><th>seed</th>${names.map(
    (name) => html`<th>${name}</th>`,
  )}</tr></thead><tbody>${runs.map(
    (run, i) =>
      html`<tr><td>${run.name}</td><td>${run.seed}</td>${names.map((name) => {
        const stage = arcs[i]?.find((one) => one.name === name);
        return stage === undefined
          ? html`<td>–</td>`
          : html`<td>${percent(stage.pass1)}${stage.sem !== null && html` <small>± ${(100 * stage.sem).toFixed(1)}</small>`}</td>`;
      })}</tr>`,
  )}</tbody></table></div></section>
${comparedCurves(runs.map((run) => ({ name: run.name, stages: stagesOf(run.events) })))}
<section><h2>Differences of the configs</h2>${differenceTable(runs, differences)}</section>`;
}

/** More keys than this, as of runs of different jobs, are unfolded by a click. */
const MOST_DIFFERENCES = 30;

function differenceTable(runs: readonly RunData[], differences: ReturnType<typeof configDifferences>): Html {
  if (differences.length === 0)
    return html`<p class="note">None: only the seeds and the machines can differ.</p>`;
  const table = html`<div class="scroll"><table class="left"><thead><tr><th>key</th>${runs.map(({ name }) => html`<th>${name}</th>`)}</tr></thead><tbody>${differences.map(
    ({ key, values }) =>
      html`<tr><td><code>${key}</code></td>${values.map((value) => html`<td><code>${value ?? "–"}</code></td>`)}</tr>`,
  )}</tbody></table></div>`;
  if (differences.length <= MOST_DIFFERENCES) return table;
  return html`<details><summary>${differences.length} keys differ</summary>${table}</details>`;
}

/** The sections of one run, or of several with their comparison in front. */
export function overview(runs: readonly RunData[]): Html[] {
  const alone = runs.length === 1;
  const sections = runs.flatMap((run, n) => runSections(run, n, alone).map(([, section]) => section));
  return alone || runs.length === 0 ? sections : [comparison(runs), ...sections];
}

/** The sections of one run as text, by id. */
export function sectionsById(run: RunData): Map<string, string> {
  return new Map(runSections(run, 0, true).map(([id, section]) => [id, section.text]));
}
