// The report: one HTML file that needs nothing else, asks the network for nothing and shows what is in the files.
import { createHash } from "node:crypto";
import { mkdir, rename, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { TokenringError } from "../errors.ts";
import type { Evaluation } from "../evaluate/evaluate.ts";
import { type ArcStage, arcStages, kindest, meanArc } from "./arc.ts";
import { arcChart, stackedBars } from "./chart.ts";
import { reinforcementCurves, supervisedCurves } from "./curves.ts";
import { type RunData, type StageData, stagesOf } from "./data.ts";
import { compact, duration, percent } from "./format.ts";
import { Html, html } from "./html.ts";
import { samplesSection } from "./samples.ts";
import { SCRIPT } from "./script.ts";
import { STYLE } from "./style.ts";

function tile(name: string, value: string): Html {
  return html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
}

/** What the arc says in a few numbers. */
function headline(arc: readonly ArcStage[], more: readonly Html[]): Html {
  const last = arc.at(-1);
  // A baseline counts with the budget that is kindest to it.
  const first = arc[0] && kindest(arc[0]);
  if (first === undefined || last === undefined) {
    return html`<div><p class="say">No checkpoint has been evaluated yet.</p><dl class="tiles">${more}</dl></div>`;
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
  return html`<div>${arcChart(bars)}<p class="legend-line"><span class="swatch"></span>Pass@1, per cent, with ${error} <span class="swatch pale"></span>Pass@10</p></div>`;
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

function stageTable(run: RunData): Html | null {
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
  return html`<section><h2>Stages</h2><div class="scroll"><table><thead><tr><th>stage</th><th>Pass@1</th>${budgets.map(
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

function timeSection(stages: readonly StageData[]): Html | null {
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
  return html`<section><h2>Time</h2><p class="legend-line">${spent.map(
    ([, label, key]) => html`<span class="key k${key}"><i></i>${label}</span> `,
  )}</p><div class="scroll">${stackedBars(rows, duration)}</div></section>`;
}

function runFacts(run: RunData): string {
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

function runSections(run: RunData, alone: boolean): Html {
  const stages = stagesOf(run.events);
  const arc = arcStages(run.events);
  const episodes = stages.flatMap((stage) => stage.iterations).reduce((sum, one) => sum + one.episodes, 0);
  const more = [
    gapTile(stages),
    episodes > 0 ? tile("episodes sampled for DAPO", episodes.toLocaleString("en")) : null,
  ].filter((one) => one !== null);
  return html`${!alone && html`<header><h1>${run.name}</h1><p class="meta">${runFacts(run)}</p></header>`}
<section class="hero">${headline(arc, more)}${arcFigure(arc)}</section>
${stageTable(run)}${reinforcementCurves(stages)}${supervisedCurves(stages)}${timeSection(stages)}${samplesSection(run)}
<section><details><summary>Config</summary><pre class="config">${run.config}</pre></details></section>`;
}

function comparison(runs: readonly RunData[]): Html {
  const arcs = runs.map((run) => arcStages(run.events));
  const names = [...new Set(arcs.flat().map((stage) => stage.name))];
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
  )}</tbody></table></div></section>`;
}

const sha256 = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

/**
 * The report of one run, or of several with their mean arc in front, as HTML text. Style and script are inline and
 * named by their hash in the page's Content-Security-Policy, which forbids everything else; text that comes from
 * models and repositories stays text.
 */
export function renderReport(runs: readonly RunData[]): string {
  const alone = runs.length === 1;
  const title = alone ? (runs[0] as RunData).name : `${runs.length} runs`;
  const policy = [
    "default-src 'none'",
    `style-src ${sha256(STYLE)}`,
    `script-src ${sha256(SCRIPT)}`,
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
  ].join("; ");
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} – tokenring</title>
<link rel="icon" href="data:,">
<style>${new Html(STYLE)}</style></head><body>
<header><p class="brand">tokenring report</p><h1>${title}</h1>${alone && html`<p class="meta">${runFacts(runs[0] as RunData)}</p>`}</header>
<main>${!alone && runs.length > 0 && comparison(runs)}${runs.map((run) => runSections(run, alone))}</main>
<footer><p>Pass@1 is the mean over repeated evaluations of the share of held-out instances solved; its standard error does not hold the error of having drawn these instances.</p></footer>
<script>${new Html(SCRIPT)}</script></body></html>
`;
  return page.text;
}

/**
 * Writes the report of `runs` to the file `out` (its folder is made); the file appears whole. Returns its path.
 * Throws ERR_TOKENRING_INVALID_ARGUMENT when `out` cannot be written.
 */
export async function writeReport(runs: readonly RunData[], out: string): Promise<string> {
  const file = path.resolve(out);
  const folder = await stat(file).then(
    (there) => there.isDirectory(),
    () => false,
  );
  if (folder) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${file}: is a directory; give the path of a file, for example ${path.join(file, "report.html")}`,
    );
  }
  try {
    await mkdir(path.dirname(file), { recursive: true });
    await writeFile(`${file}.tmp`, renderReport(runs));
    await rename(`${file}.tmp`, file);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === undefined) throw cause;
    await rm(`${file}.tmp`, { force: true }).catch(() => {});
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${file}: the report cannot be written (${code}); give a path in a directory of yours that has space`,
      { cause },
    );
  }
  return file;
}
