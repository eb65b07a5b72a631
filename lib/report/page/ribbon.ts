// In the browser: two ribbons over an episode: where its time went, and its tokens from first to last in the colours
// of the lane. A closed function.
import type { createDom } from "./dom.ts";
import type { PageLane } from "./lanes.ts";
import type { PageEpisode } from "./types.ts";

export function createRibbons(
  dom: ReturnType<typeof createDom>,
  events: { turn: (n: number) => void; token: (i: number) => void },
) {
  const { h } = dom;
  const time = h("canvas.ribbon.time", { role: "img" });
  const tokens = h("canvas.ribbon.tokens", {
    role: "img",
    title: "all tokens, in the colours of the lane: click to go there",
  });
  const said = h("p.ribbon-said");
  const element = h("div.ribbons", {}, said, time, tokens);
  let episode: PageEpisode | null = null;
  let lane: PageLane | null = null;
  let sight: [number, number] = [0, 0];
  /** Right edge of each segment of the time ribbon, in shares of its width, and what it is. */
  let segments: { end: number; turn: number; kind: string; ms: number }[] = [];
  /** The token ribbon without the window on it. */
  let painted: ImageData | null = null;

  const colour = (name: string): string =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || "#888";

  function context2d(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
    const scale = Math.min(2, devicePixelRatio || 1);
    const box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * scale));
    canvas.height = Math.max(1, Math.round(box.height * scale));
    return canvas.getContext("2d", { willReadFrequently: true }) as CanvasRenderingContext2D;
  }

  function measure(shown: PageEpisode): void {
    const parts = shown.turns.flatMap((turn, n) => [
      { turn: n, kind: "sampling", ms: turn.sampleMs },
      { turn: n, kind: "tools", ms: turn.toolMs },
    ]);
    parts.push({ turn: shown.turns.length, kind: "verifying", ms: shown.verifyMs });
    const total = parts.reduce((sum, part) => sum + part.ms, 0) || 1;
    let end = 0;
    segments = parts.map((part) => {
      end += part.ms / total;
      return { ...part, end };
    });
    const of = (kind: string): string =>
      dom.time(parts.filter((part) => part.kind === kind).reduce((sum, part) => sum + part.ms, 0));
    said.replaceChildren(
      h("span.key.sampling", {}, h("i"), `sampling, waiting for the engine included ${of("sampling")}`),
      h("span.key.tools", {}, h("i"), `tools ${of("tools")}`),
      h("span.key.verifying", {}, h("i"), `verification ${of("verifying")}`),
    );
    time.setAttribute("aria-label", `time: ${said.textContent}`);
  }

  function drawTime(): void {
    const context = context2d(time);
    const { width, height } = time;
    let from = 0;
    for (const { end, kind } of segments) {
      const [x, to] = [from * width, end * width];
      context.fillStyle = colour(kind);
      context.fillRect(x, 0, Math.max(0, to - x - (to - x > 3 ? 1 : 0)), height);
      from = end;
    }
  }

  function drawTokens(): void {
    if (episode === null || lane === null) return;
    const context = context2d(tokens);
    const { width, height } = tokens;
    const count = episode.tokens.length;
    const known = new Map<string, string>();
    const paint = (name: string): string => {
      const found = known.get(name) ?? colour(name);
      known.set(name, found);
      return found;
    };
    for (let x = 0; x < width; x++) {
      const from = Math.floor((x * count) / width);
      const to = Math.max(from + 1, Math.floor(((x + 1) * count) / width));
      // Of many tokens in one column the remarkable one is seen.
      let name = "";
      for (let i = from; i < to && i < count; i++) {
        if (lane.notable(i) && lane.key !== "source") {
          name = lane.colour(i);
          break;
        }
        const here = lane.colour(i);
        if (here !== "" && (name === "" || name === "sure" || lane.key === "source")) name = here;
      }
      context.fillStyle = paint(name === "" ? "rest" : name);
      context.fillRect(x, 0, 1, height);
    }
    painted = context.getImageData(0, 0, width, height);
    drawSight();
  }

  function drawSight(): void {
    if (painted === null || episode === null) return;
    const context = tokens.getContext("2d") as CanvasRenderingContext2D;
    context.putImageData(painted, 0, 0);
    const scale = tokens.width / Math.max(1, episode.tokens.length);
    const x = sight[0] * scale;
    const width = Math.max(3, (sight[1] - sight[0]) * scale);
    context.strokeStyle = colour("ink");
    context.lineWidth = Math.min(2, devicePixelRatio || 1) * 1.5;
    context.strokeRect(x + 1, 1, Math.max(2, width - 2), tokens.height - 2);
  }

  const share = (canvas: HTMLCanvasElement, event: MouseEvent): number => {
    const box = canvas.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const segmentAt = (event: MouseEvent) => {
    const at = share(time, event);
    return segments.find(({ end }) => at <= end);
  };
  time.addEventListener("click", (event) => {
    const segment = segmentAt(event);
    if (segment) events.turn(segment.turn);
  });
  time.addEventListener("pointermove", (event) => {
    const segment = segmentAt(event);
    time.title = segment
      ? `${segment.turn < (episode?.turns.length ?? 0) ? `turn ${segment.turn + 1}, ` : ""}${segment.kind}: ${dom.time(segment.ms)}`
      : "";
  });
  const goTo = (event: MouseEvent): void => {
    if (episode)
      events.token(
        Math.min(episode.tokens.length - 1, Math.floor(share(tokens, event) * episode.tokens.length)),
      );
  };
  tokens.addEventListener("click", goTo);

  function redraw(): void {
    if (episode === null || !element.isConnected) return;
    drawTime();
    drawTokens();
  }
  new ResizeObserver(redraw).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    element,
    open(shown: PageEpisode, by: PageLane): void {
      episode = shown;
      lane = by;
      measure(shown);
      redraw();
    },
    paint(by: PageLane): void {
      lane = by;
      drawTokens();
    },
    see(first: number, last: number): void {
      sight = [first, last];
      drawSight();
    },
  };
}
