// Charts as plain SVG: small, styled by the page, legible without a script. The script adds the values under the
// pointer from `data-points`.
import { type Html, html } from "./html.ts";

export interface Series {
  name: string;
  /** One value for each x; null = no value there. */
  values: readonly (number | null)[];
}

export interface LineChart {
  title: string;
  /** What one x is, such as "iteration". */
  unit: string;
  /** One label for each x. */
  labels: readonly string[];
  series: readonly Series[];
  /** First x of each stage. */
  stages?: readonly { at: number; name: string }[];
  format: (value: number) => string;
  /** The y axis begins at 0 unless this is false. */
  fromZero?: boolean;
}

const WIDTH = 380;
const HEIGHT = 190;
const LEFT = 46;
const RIGHT = 10;
const TOP = 18;
const BOTTOM = 22;
const MOST = 300;

/** About `count` round numbers that enclose [low, high]. */
export function niceTicks(low: number, high: number, count = 4): number[] {
  const span = high > low ? high - low : Math.abs(high) || 1;
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) as number) * power;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

const round = (value: number): number => Math.round(value * 100) / 100;

/** At most MOST values: longer lines become means of equal stretches. */
function thin(chart: LineChart): LineChart {
  const length = chart.labels.length;
  if (length <= MOST) return chart;
  const stretch = Math.ceil(length / MOST);
  const starts = Array.from({ length: Math.ceil(length / stretch) }, (_, i) => i * stretch);
  return {
    ...chart,
    unit: `${chart.unit}s, means of ${stretch}`,
    labels: starts.map((at) => chart.labels[at] as string),
    series: chart.series.map(({ name, values }) => ({
      name,
      values: starts.map((at) => {
        const some = values.slice(at, at + stretch).filter((value) => value !== null);
        return some.length === 0 ? null : some.reduce((a, b) => a + b, 0) / some.length;
      }),
    })),
    ...(chart.stages
      ? { stages: chart.stages.map(({ at, name }) => ({ at: Math.floor(at / stretch), name })) }
      : {}),
  };
}

/** Path data of one series; a gap in the values is a gap in the line. */
function linePath(
  values: readonly (number | null)[],
  x: (i: number) => number,
  y: (v: number) => number,
): string {
  let path = "";
  let pen = false;
  values.forEach((value, i) => {
    if (value === null) {
      pen = false;
      return;
    }
    // A lone point between two gaps is drawn as a line of no length with round ends.
    path += `${pen ? "L" : "M"}${round(x(i))} ${round(y(value))}`;
    if (!pen && (values[i + 1] ?? null) === null) path += "h0";
    pen = true;
  });
  return path;
}

/** A line chart with its title, legend and last values, as a figure. */
export function lineChart(full: LineChart): Html {
  const chart = thin(full);
  const known = chart.series.flatMap(({ values }) => values.filter((value) => value !== null));
  const low = Math.min(...known, ...(chart.fromZero === false ? [] : [0]));
  const high = Math.max(...known, ...(chart.fromZero === false ? [] : [0]));
  const ticks = known.length === 0 || (low === 0 && high === 0) ? [0, 1] : niceTicks(low, high);
  const bottom = ticks[0] as number;
  const top = ticks.at(-1) as number;
  const count = chart.labels.length;
  const x = (i: number): number => LEFT + (count < 2 ? 0.5 : i / (count - 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value: number): number =>
    HEIGHT - BOTTOM - ((value - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);

  const points = {
    x: chart.labels.map((_, i) => round(x(i))),
    labels: chart.labels,
    names: chart.series.map(({ name }) => name),
    text: chart.labels.map((_, i) =>
      chart.series.map(({ values }) => {
        const value = values[i] ?? null;
        return value === null ? "–" : full.format(value);
      }),
    ),
    y: chart.labels.map((_, i) =>
      chart.series.map(({ values }) => {
        const value = values[i] ?? null;
        return value === null ? null : round(y(value));
      }),
    ),
  };
  const last = full.series.map(({ values }) => values.findLast((value) => value !== null) ?? null);
  const stages = (chart.stages ?? []).map(({ at, name }) => {
    const middle = at === 0 ? LEFT : round((x(at - 1) + x(at)) / 2);
    return html`${at > 0 && html`<line class="stage" x1="${middle}" x2="${middle}" y1="${TOP - 8}" y2="${HEIGHT - BOTTOM}"/>`}<text class="stage-name" x="${middle + 4}" y="${TOP - 5}">${name}</text>`;
  });
  return html`<figure class="chart">
<figcaption><span class="title">${chart.title}</span><span class="keys">${chart.series.map(
    ({ name }, i) =>
      html`<span class="key k${i}"><i></i>${chart.series.length > 1 && name} <b>${
        last[i] === null || last[i] === undefined ? "–" : full.format(last[i])
      }</b></span>`,
  )}</span></figcaption>
<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${chart.title} by ${chart.unit}" data-points="${JSON.stringify(points)}">
${ticks.map(
  (tick) =>
    html`<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${round(y(tick))}" y2="${round(y(tick))}"/><text class="tick" x="${LEFT - 6}" y="${round(y(tick) + 3.5)}" text-anchor="end">${full.format(tick)}</text>`,
)}${stages}
${chart.series.map(({ values }, i) => html`<path class="line k${i}" d="${linePath(values, x, y)}"/>`)}
<text class="tick" x="${LEFT}" y="${HEIGHT - 6}">${chart.labels[0]}</text><text class="tick" x="${WIDTH - RIGHT}" y="${HEIGHT - 6}" text-anchor="end">${chart.labels.at(-1)}</text><text class="tick" x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 6}" text-anchor="middle">${chart.unit}</text>
</svg></figure>`;
}

export interface ArcBar {
  name: string;
  pass1: number;
  sem: number | null;
  pass10: number | null;
  /** Pass@1 of single runs, drawn as dots when there are several. */
  runs?: readonly number[];
}

const percent = (value: number): string => `${(100 * value).toFixed(1)}`;

/** Bars of Pass@1 with their standard error, Pass@10 beside them. */
export function arcChart(bars: readonly ArcBar[]): Html {
  const width = 520;
  const height = 300;
  const [left, right, top, bottom] = [52, 8, 22, 30];
  const best = Math.max(0.05, ...bars.map((bar) => Math.max(bar.pass1 + (bar.sem ?? 0), bar.pass10 ?? 0)));
  const ticks = niceTicks(0, best, 4);
  const limit = ticks.at(-1) as number;
  const y = (value: number): number => round(height - bottom - (value / limit) * (height - top - bottom));
  const slot = (width - left - right) / Math.max(1, bars.length);
  const thick = Math.min(56, slot * 0.36);
  const drawn = bars.map((bar, i) => {
    const centre = left + (i + 0.5) * slot;
    const pair = bar.pass10 !== null;
    const a = round(pair ? centre - thick - 2 : centre - thick / 2);
    const b = round(centre + 2);
    const middle = round(a + thick / 2);
    const error = bar.sem;
    const head = y(bar.pass1 + (error ?? 0));
    return html`<g>
<rect class="pass1" x="${a}" y="${y(bar.pass1)}" width="${round(thick)}" height="${round(height - bottom - y(bar.pass1))}" rx="2"/>
${pair && html`<rect class="pass10" x="${b}" y="${y(bar.pass10 as number)}" width="${round(thick)}" height="${round(height - bottom - y(bar.pass10 as number))}" rx="2"/><text class="value minor" x="${round(b + thick / 2)}" y="${y(bar.pass10 as number) - 6}">${percent(bar.pass10 as number)}</text>`}
${error !== null && html`<path class="error" d="M${middle} ${head}V${y(Math.max(0, bar.pass1 - error))}M${middle - 5} ${head}h10M${middle - 5} ${y(Math.max(0, bar.pass1 - error))}h10"/>`}
${(bar.runs ?? []).map((run) => html`<circle class="run" cx="${middle}" cy="${y(run)}" r="3"/>`)}
<text class="value" x="${middle}" y="${Math.min(head, ...(bar.runs ?? []).map((run) => y(run) - 4)) - 6}">${percent(bar.pass1)}</text>
<text class="name" x="${round(centre)}" y="${height - 9}">${bar.name}</text></g>`;
  });
  const label = bars.map((bar) => `${bar.name} ${percent(bar.pass1)} %`).join(", ");
  return html`<svg class="arc" viewBox="0 0 ${width} ${height}" role="img" aria-label="Pass@1 by stage: ${label}">
${ticks.map(
  (tick) =>
    html`<line class="grid" x1="${left}" x2="${width - right}" y1="${y(tick)}" y2="${y(tick)}"/><text class="tick" x="${left - 7}" y="${y(tick) + 4}" text-anchor="end">${round(100 * tick)} %</text>`,
)}${drawn}</svg>`;
}

/** Horizontal bars of seconds, stacked by station, one row a stage. */
export function stackedBars(
  rows: readonly { name: string; parts: readonly { name: string; seconds: number; key: number }[] }[],
  format: (seconds: number) => string,
): Html {
  const width = 1000;
  const [left, right, line] = [90, 110, 28];
  const totals = rows.map((row) => row.parts.reduce((sum, part) => sum + part.seconds, 0));
  const longest = Math.max(1e-9, ...totals);
  const scale = (width - left - right) / longest;
  return html`<svg class="stack" viewBox="0 0 ${width} ${rows.length * line}" role="img" aria-label="Time by stage and station">
${rows.map((row, r) => {
  let x = left;
  const y = r * line;
  return html`<text class="name" x="${left - 10}" y="${y + 18}" text-anchor="end">${row.name}</text>${row.parts.map(
    (part) => {
      const from = x;
      x += part.seconds * scale;
      return html`<rect class="fill k${part.key}" x="${round(from)}" y="${y + 5}" width="${round(Math.max(0, x - from - 1))}" height="17" rx="2"><title>${row.name}, ${part.name}: ${format(part.seconds)}</title></rect>`;
    },
  )}<text class="tick" x="${round(x + 6)}" y="${y + 18}">${format(totals[r] as number)}</text>`;
})}</svg>`;
}
