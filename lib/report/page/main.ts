// In the browser: the beginning. Decides what is shown, and fetches what the view of episodes needs when it is first
// asked for. A closed function.
import type { createCharts } from "./charts.ts";
import type { createConversation } from "./conversation.ts";
import type { createDecode } from "./decode.ts";
import type { createDom } from "./dom.ts";
import type { createLanes } from "./lanes.ts";
import type { createList } from "./list.ts";
import type { createLive } from "./live.ts";
import type { createRibbons } from "./ribbon.ts";
import type { createRows } from "./rows.ts";
import type { createSyntax, createText } from "./text.ts";
import type { PageEpisode, PageSettings, PageVocabulary, RowColumns } from "./types.ts";
import type { createViewer } from "./viewer.ts";

export interface PageParts {
  createCharts: typeof createCharts;
  createConversation: typeof createConversation;
  createDecode: typeof createDecode;
  createDom: typeof createDom;
  createLanes: typeof createLanes;
  createList: typeof createList;
  createLive: typeof createLive;
  createRibbons: typeof createRibbons;
  createRows: typeof createRows;
  createSyntax: typeof createSyntax;
  createText: typeof createText;
  createViewer: typeof createViewer;
}

export function main(parts: PageParts): void {
  const decode = parts.createDecode();
  const dom = parts.createDom();
  const text = parts.createText();
  const charts = parts.createCharts();
  const overview = document.getElementById("overview") as HTMLElement;
  const root = document.getElementById("viewer") as HTMLElement;
  const tabs = document.getElementById("tabs") as HTMLElement;
  const settings = JSON.parse(document.getElementById("settings")?.textContent ?? "{}") as PageSettings;
  charts.follow(overview);

  type Viewer = ReturnType<typeof createViewer>;
  type Rows = ReturnType<typeof createRows>;
  let viewer: Promise<{ viewer: Viewer; rows: Rows }> | null = null;
  let overviewScroll = 0;
  let lastEpisode = "#/e/";

  const vocabularies = new Map<number, Promise<unknown>>();
  function vocabulary(run: number): Promise<unknown> {
    const known = vocabularies.get(run);
    if (known) return known;
    const read = decode
      .json<PageVocabulary>(`vocabulary-${run}`)
      .then((found) => found && text.learn(run, found));
    vocabularies.set(run, read);
    return read;
  }

  /** The newest blocks stay open: a group lies together. */
  const packs = new Map<number, Promise<PageEpisode[]>>();
  function pack(number: number): Promise<PageEpisode[]> {
    const known = packs.get(number);
    if (known) return known;
    const read = decode
      .block(`pack-${number}`)
      .then((buffer) => (buffer ? decode.unpack(buffer).episodes : []));
    packs.set(number, read);
    for (const old of packs.keys()) {
      if (packs.size <= 8) break;
      packs.delete(old);
    }
    return read;
  }

  async function load(rows: Rows, row: number): Promise<PageEpisode | null> {
    if (settings.live) {
      const response = await fetch(`/episode?row=${row}`);
      if (!response.ok) throw new Error(await response.text());
      const { episodes, vocabulary: more } = decode.unpack(await response.arrayBuffer());
      if (more) text.learn(0, more);
      return episodes[0] ?? null;
    }
    const number = rows.columns.pack[row] as number;
    if (number < 0) return null;
    await vocabulary(rows.columns.run[row] as number);
    return (await pack(number))[rows.columns.at[row] as number] ?? null;
  }

  async function begin(): Promise<{ viewer: Viewer; rows: Rows }> {
    const columns = settings.live
      ? ((await (await fetch("/rows")).json()) as RowColumns)
      : await decode.json<RowColumns>("rows");
    if (columns === null) throw new Error("the page has no list of episodes");
    const rows = parts.createRows(columns);
    const made = parts.createViewer(root, {
      ...parts,
      dom,
      rows,
      text,
      syntax: parts.createSyntax(),
      settings,
      load: (row) => load(rows, row),
    });
    return { viewer: made, rows };
  }

  async function route(): Promise<void> {
    const episodes = location.hash.startsWith("#/e") && settings.episodes > 0;
    if (!episodes && !root.hidden) lastEpisode = "#/e/";
    if (episodes && !overview.hidden) overviewScroll = scrollY;
    document.documentElement.classList.toggle("viewing", episodes);
    const shown = overview.hidden;
    overview.hidden = episodes;
    root.hidden = !episodes;
    for (const tab of tabs.querySelectorAll("a"))
      tab.setAttribute("aria-current", String((tab.hash === "#/e/") === episodes));
    if (!episodes) {
      if (shown) scrollTo(0, overviewScroll);
      return;
    }
    viewer ??= begin();
    try {
      await (await viewer).viewer.follow(location.hash);
    } catch (error) {
      const old = typeof DecompressionStream === "undefined";
      root.textContent = old
        ? "This browser cannot unpack the episodes (it has no DecompressionStream); use one from 2023 or later."
        : `The episodes cannot be shown: ${error}`;
    }
    lastEpisode = location.hash;
  }

  tabs.hidden = settings.episodes === 0;
  addEventListener("hashchange", () => void route());
  document.addEventListener("keydown", (event) => {
    const field = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.key !== "g" || field || event.ctrlKey || event.metaKey || event.altKey || tabs.hidden) return;
    location.hash = root.hidden ? lastEpisode : "#/";
  });
  void route();

  if (settings.live !== null) {
    parts.createLive({
      overview,
      charts,
      state: settings.live,
      episodes: async (count) => {
        settings.episodes = count;
        tabs.hidden = count === 0;
        const shown = document.getElementById("episode-count");
        if (shown) shown.textContent = dom.whole(count);
        if (viewer === null) return;
        const { viewer: made, rows } = await viewer;
        if (rows.count() >= count) return;
        rows.append((await (await fetch(`/rows?from=${rows.count()}`)).json()) as RowColumns);
        made.refresh();
      },
    });
  }
}
