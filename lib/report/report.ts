// The report: one HTML file that needs nothing else, asks the network for nothing and shows what is in the files.
import { createHash } from "node:crypto";
import { mkdir, open, rename, rm, stat } from "node:fs/promises";
import path from "node:path";
import { isTokenringError, TokenringError } from "../errors.ts";
import { blocksOf, type ReportOptions } from "./blocks.ts";
import type { RunData } from "./data.ts";
import { Html, html } from "./html.ts";
import { overview, runFacts } from "./overview.ts";
import type { LiveState, PageSettings } from "./page/types.ts";
import { SCRIPT } from "./script.ts";
import { STYLE } from "./style.ts";
import { VIEWER_STYLE } from "./viewer-style.ts";

const CSS = STYLE + VIEWER_STYLE;

const sha256 = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

const BUDGET = 20_000_000;

/** JSON that can stand in a script element. */
const scriptJson = (value: unknown): Html => new Html(JSON.stringify(value).replaceAll("<", "\\u003c"));

/** What the page may do: its own style and script by their hashes; the live page's script may ask its own server. */
export function contentSecurityPolicy(live: boolean): string {
  return [
    "default-src 'none'",
    `style-src ${sha256(CSS)}`,
    `script-src ${sha256(SCRIPT)}`,
    `connect-src ${live ? "'self'" : "'none'"}`,
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
  ].join("; ");
}

/** The page up to its data. */
function opening(runs: readonly RunData[], settings: PageSettings): string {
  const alone = runs.length === 1;
  const title = alone ? (runs[0] as RunData).name : `${runs.length} runs`;
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${contentSecurityPolicy(settings.live !== null)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} – tokenring</title>
<link rel="icon" href="data:,">
<style>${new Html(CSS)}</style></head><body>
<nav id="bar"><span class="brand">tokenring</span><span class="run-name">${title}</span>${
    settings.live && html`<span id="live" class="live">connecting</span>`
  }<span id="tabs" hidden><a href="#/">Overview</a><a href="#/e/">Episodes <span id="episode-count">${settings.episodes.toLocaleString("en")}</span></a></span></nav>
<div id="overview"><header><h1>${title}</h1>${alone && html`<p class="meta">${runFacts(runs[0] as RunData)}</p>`}</header>
<main>${overview(runs)}</main>
<footer><p>Pass@1 is the mean over repeated evaluations of the share of held-out instances solved; its standard error does not hold the error of having drawn these instances.</p></footer></div>
<div id="viewer" hidden></div>
<script type="application/json" id="settings">${scriptJson(settings)}</script>
`.text;
}

const CLOSING = `<script>${SCRIPT}</script></body></html>\n`;

/** A block of data; base64 holds nothing that HTML could mistake. */
const dataElement = (id: string, base64: string): string =>
  `<script type="text/plain" id="${id}">${base64}</script>\n`;

/**
 * The report of one run, or of several with their comparison in front, as pieces of HTML text. Style and script are
 * inline and named by their hash in the page's Content-Security-Policy, which forbids everything else; text that comes
 * from models and repositories stays text. Episodes are held while they fit into the budget, see `samplingOrder`.
 */
export async function* renderReport(
  runs: readonly RunData[],
  options: ReportOptions = {},
): AsyncGenerator<string, void, undefined> {
  const episodes = runs.reduce((sum, run) => sum + run.episodes.length, 0);
  const page = (held: number): string => opening(runs, { episodes, held, live: null });
  const limit = options.all ? Number.POSITIVE_INFINITY : (options.budget ?? BUDGET);
  const { rows, vocabularies, blocks, held } = await blocksOf(
    runs,
    limit - Buffer.byteLength(page(episodes) + CLOSING),
    options.onEpisodes,
  );
  yield page(held);
  yield dataElement("rows", rows);
  for (const [run, vocabulary] of vocabularies.entries()) yield dataElement(`vocabulary-${run}`, vocabulary);
  for (const [number, block] of blocks.entries()) yield dataElement(`pack-${number}`, block);
  yield CLOSING;
}

/** The live page of a run in `state`: it asks its server for the list, for episodes and for what changes. */
export function renderLivePage(run: RunData, state: LiveState): string {
  const { episodes } = state;
  return opening([run], { episodes, held: episodes, live: state }) + CLOSING;
}

/**
 * Writes the report of `runs` to the file `out` (its folder is made); the file appears whole. Returns its path.
 * Throws ERR_TOKENRING_INVALID_ARGUMENT when `out` cannot be written.
 */
export async function writeReport(
  runs: readonly RunData[],
  out: string,
  options: ReportOptions = {},
): Promise<string> {
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
    {
      await using handle = await open(`${file}.tmp`, "w");
      for await (const piece of renderReport(runs, options)) await handle.writeFile(piece);
    }
    await rename(`${file}.tmp`, file);
  } catch (cause) {
    await rm(`${file}.tmp`, { force: true }).catch(() => {});
    const { code } = cause as NodeJS.ErrnoException;
    if (code === undefined || isTokenringError(cause)) throw cause;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${file}: the report cannot be written (${code}); give a path in a directory of yours that has space`,
      { cause },
    );
  }
  return file;
}
