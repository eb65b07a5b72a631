// In the browser: a run that goes on. The server says what state the run is in; parts of the overview that changed are
// fetched and put in place of the old ones, and new episodes come to the list. Nothing that is being read moves.
// A closed function.
import type { createCharts } from "./charts.ts";
import type { LiveState } from "./types.ts";

export function createLive(page: {
  overview: HTMLElement;
  charts: ReturnType<typeof createCharts>;
  state: LiveState;
  episodes: (count: number) => Promise<void>;
}): void {
  const sign = document.getElementById("live") as HTMLElement;
  const words = { running: "live", ended: "the run has ended", stopped: "stopped" };
  let known = page.state;
  let wanted = known;
  let busy = false;

  function say(text: string, kind: string): void {
    sign.textContent = text;
    sign.className = `live ${kind}`;
  }

  async function renew(id: string): Promise<void> {
    const response = await fetch(`/section?id=${encodeURIComponent(id)}`);
    const old = document.getElementById(id);
    // The server's own page made it, and escaped all that is not its own.
    const parsed = new DOMParser().parseFromString(await response.text(), "text/html").body.firstElementChild;
    if (!response.ok || old === null || parsed === null) return;
    const opened = [...old.querySelectorAll("details")].map((details) => details.open);
    parsed.querySelectorAll("details").forEach((details, i) => {
      details.open = opened[i] ?? false;
    });
    old.replaceWith(document.adoptNode(parsed));
  }

  /** Brings the page to the newest state; what comes meanwhile is taken in the same go. */
  async function catchUp(): Promise<void> {
    if (busy) return;
    busy = true;
    try {
      while (known !== wanted) {
        const next = wanted;
        for (const [id, hash] of Object.entries(next.sections))
          if (known.sections[id] !== hash) await renew(id);
        page.charts.follow(page.overview);
        await page.episodes(next.episodes);
        known = next;
      }
    } finally {
      busy = false;
    }
  }

  const source = new EventSource("/events");
  source.addEventListener("error", () => say("not connected; trying again", "off"));
  source.addEventListener("state", (event) => {
    wanted = JSON.parse(event.data) as LiveState;
    // Work is done again: what the page holds is not true any more.
    if (wanted.epoch !== known.epoch) location.reload();
    say(words[wanted.status], wanted.status === "running" ? "on" : "done");
    catchUp().catch(() => say("not connected; trying again", "off"));
  });
}
