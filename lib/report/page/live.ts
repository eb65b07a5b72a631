// In the browser: a run that goes on. Parts of the overview that changed are put in place of the old ones, new
// episodes come to the list; nothing that is being read moves. A closed function.
import type { createCharts } from "./charts.ts";
import type { RowColumns } from "./types.ts";

export function createLive(page: {
  overview: HTMLElement;
  charts: ReturnType<typeof createCharts>;
  rows: (more: RowColumns) => Promise<void>;
}): void {
  const state = document.getElementById("live") as HTMLElement;
  const source = new EventSource("/events");
  const say = (words: string, kind: string): void => {
    state.textContent = words;
    state.className = `live ${kind}`;
  };
  source.addEventListener("open", () => say("live", "on"));
  source.addEventListener("error", () => say("not connected; trying again", "off"));
  source.addEventListener("state", (event) => {
    const { running } = JSON.parse(event.data) as { running: boolean };
    say(running ? "live" : "the run has ended", running ? "on" : "done");
  });
  /** Another run, or one whose logs were cut because work is done again: what the page holds is not true any more. */
  source.addEventListener("reset", () => location.reload());
  source.addEventListener("rows", (event) => void page.rows(JSON.parse(event.data) as RowColumns));
  source.addEventListener("overview", (event) => {
    const changed = JSON.parse(event.data) as Record<string, string>;
    for (const [id, markup] of Object.entries(changed)) {
      const old = document.getElementById(id);
      // The server's own page made it, and escaped all that is not its own.
      const parsed = new DOMParser().parseFromString(markup, "text/html").body.firstElementChild;
      if (old === null || parsed === null) continue;
      const opened = [...old.querySelectorAll("details")].map((details) => details.open);
      parsed.querySelectorAll("details").forEach((details, i) => {
        details.open = opened[i] ?? false;
      });
      old.replaceWith(document.adoptNode(parsed));
    }
    page.charts.follow(page.overview);
  });
}
