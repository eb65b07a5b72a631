// In the browser: an episode as a conversation of painted tokens, of which only what is near the window exists.
// A closed function.
import type { createDom } from "./dom.ts";
import type { PageLane } from "./lanes.ts";
import type { createSyntax, createText } from "./text.ts";
import type { PageEpisode, PageTurn } from "./types.ts";

interface Parts {
  dom: ReturnType<typeof createDom>;
  text: ReturnType<typeof createText>;
  syntax: ReturnType<typeof createSyntax>;
}

type Mode = "code" | "command" | "observation" | "diff" | "prose";

/** A stretch of a block that is drawn and forgotten as one: some tokens, or plain text. */
interface Slab {
  element: HTMLElement;
  mode: Mode;
  start: number;
  end: number;
  text: string | null;
  /** Whether its block begins with it. */
  first: boolean;
  drawn: boolean;
}

export function createConversation(
  scroller: HTMLElement,
  parts: Parts,
  events: { select: (token: number) => void; hover: (token: number) => void; scroll: () => void },
) {
  const { dom, text, syntax } = parts;
  const { h } = dom;
  /** A slab ends at the first line break after so many tokens, and at MOST_TOKENS wherever it is. */
  const TOKENS = 160;
  const MOST_TOKENS = 800;
  const CHARACTERS = 4000;
  const LINE = 20;

  let episode: PageEpisode | null = null;
  let lane: PageLane | null = null;
  let slabs: Slab[] = [];
  /** Slabs of tokens in the order of their tokens. */
  let tokenSlabs: Slab[] = [];
  let turns: HTMLElement[] = [];
  let selected = -1;
  let hits = new Set<number>();
  const slabOf = new WeakMap<Element, Slab>();

  const watcher = new IntersectionObserver(
    (entries) => {
      // Of a slab that came and went meanwhile the last word counts.
      const last = new Map(entries.map((entry) => [slabOf.get(entry.target), entry]));
      // First what is left: the entries tell its heights, so that nothing has to be laid out in between.
      for (const [slab, { isIntersecting, boundingClientRect }] of last)
        if (slab !== undefined && !isIntersecting) forget(slab, boundingClientRect.height);
      for (const [slab, { isIntersecting }] of last) if (slab !== undefined && isIntersecting) draw(slab);
    },
    { root: scroller, rootMargin: "800px 0px" },
  );

  function spanOf(token: number): HTMLElement | null {
    const slab = slabAt(token);
    return slab === null || !slab.drawn ? null : (slab.element.children[token - slab.start] as HTMLElement);
  }

  function slabAt(token: number): Slab | null {
    let low = 0;
    let high = tokenSlabs.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((tokenSlabs[middle] as Slab).start <= token) low = middle;
      else high = middle - 1;
    }
    return tokenSlabs[low] ?? null;
  }

  const classOf = (i: number): string =>
    `t ${lane?.colour(i) ?? ""}${i === selected ? " on" : ""}${hits.has(i) ? " hit" : ""}`;

  /** `content` with its colours, as children of `parent`; both begin at character `offset` of the coloured text. */
  function coloured(
    parent: HTMLElement,
    content: string,
    offset: number,
    ranges: readonly (readonly [number, number, string])[],
    first: number,
  ): void {
    let at = 0;
    for (let r = first; r < ranges.length; r++) {
      const [start, end, kind] = ranges[r] as readonly [number, number, string];
      if (start >= offset + content.length) break;
      const from = Math.max(at, start - offset);
      const to = Math.min(content.length, end - offset);
      if (to <= from) continue;
      if (from > at) parent.append(dom.visible(content.slice(at, from)));
      parent.append(h(`i.s-${kind}`, {}, dom.visible(content.slice(from, to))));
      at = to;
    }
    if (at === 0) parent.textContent = dom.visible(content);
    else if (at < content.length) parent.append(dom.visible(content.slice(at)));
  }

  function draw(slab: Slab): void {
    if (slab.drawn || episode === null) return;
    slab.drawn = true;
    slab.element.style.height = "";
    const pieces = slab.text === null ? text.ofTokens(episode.tokens, slab.start, slab.end) : [slab.text];
    const whole = pieces.join("");
    const ranges = syntax.ranges(whole, slab.mode);
    if (slab.text !== null) {
      coloured(slab.element, whole, 0, ranges, 0);
      return;
    }
    const fragment = document.createDocumentFragment();
    let offset = 0;
    let range = 0;
    pieces.forEach((piece, k) => {
      const i = slab.start + k;
      const span = document.createElement("span");
      span.className = classOf(i);
      if (piece === "\n") span.classList.add("nl");
      if (text.isSpecial(episode?.tokens[i] as number)) span.classList.add("special");
      while (range < ranges.length && (ranges[range]?.[1] as number) <= offset) range++;
      // The block's own edge already is the line break that its first token begins with.
      const broken = k === 0 && slab.first && piece.startsWith("\n") ? 1 : 0;
      if (broken === 1) span.classList.add("nl");
      coloured(span, piece.slice(broken), offset + broken, ranges, range);
      offset += piece.length;
      fragment.append(span);
    });
    slab.element.append(fragment);
  }

  /** Drops what is in a slab and keeps its place, which is `height` pixels high. */
  function forget(slab: Slab, height: number): void {
    if (!slab.drawn) return;
    slab.element.style.height = `${height}px`;
    slab.element.replaceChildren();
    slab.drawn = false;
  }

  function slab(
    parent: HTMLElement,
    mode: Mode,
    start: number,
    end: number,
    content: string | null,
    lines: number,
  ): void {
    const element = h("div.slab");
    element.style.height = `${Math.max(1, Math.round(lines)) * LINE}px`;
    const first = parent.childElementCount === 0;
    const made: Slab = { element, mode, start, end, text: content, first, drawn: false };
    slabOf.set(element, made);
    slabs.push(made);
    if (content === null) tokenSlabs.push(made);
    parent.append(element);
    watcher.observe(element);
  }

  /** Tokens [start, end) as slabs of a block; `pieces` are their texts. */
  function tokenBlock(
    kind: string,
    mode: Mode,
    start: number,
    end: number,
    pieces: readonly string[],
  ): HTMLElement {
    const block = h(`div.block.${kind}` as "div");
    let from = start;
    let lines = 0;
    let column = 0;
    for (let i = start; i < end; i++) {
      const piece = pieces[i - start] as string;
      const breaks = piece.split("\n").length - 1;
      column += piece.length;
      if (breaks > 0) {
        lines += breaks + Math.floor(column / 100);
        column = 0;
      }
      const full = i + 1 - from >= TOKENS && piece.endsWith("\n");
      if (full || i + 1 - from >= MOST_TOKENS || i + 1 === end) {
        slab(block, mode, from, i + 1, null, lines + Math.ceil(column / 100));
        if (mode === "command") mode = "code";
        from = i + 1;
        lines = 0;
        column = 0;
      }
    }
    return block;
  }

  function textBlock(kind: string, mode: Mode, content: string): HTMLElement {
    const block = h(`div.block.${kind}` as "div");
    for (let at = 0; at < content.length; ) {
      const window = content.slice(at, at + CHARACTERS);
      const cut = at + CHARACTERS < content.length ? window.lastIndexOf("\n") + 1 : 0;
      const part = cut > 0 ? window.slice(0, cut) : window;
      slab(block, mode, 0, 0, part, part.split("\n").length + part.length / 200);
      at += part.length;
    }
    return block;
  }

  /** The first token of `pieces` in which character `at` of their whole lies. */
  function tokenOfCharacter(pieces: readonly string[], at: number): number {
    let seen = 0;
    for (let k = 0; k < pieces.length; k++) {
      seen += (pieces[k] as string).length;
      if (seen > at) return k;
    }
    return pieces.length;
  }

  function turnSection(turn: PageTurn, n: number, next: number): HTMLElement {
    const open = episode as PageEpisode;
    const marks = [
      turn.formatError?.replaceAll("_", " ") ?? null,
      turn.finish === "length" ? "cut at the token limit" : null,
    ].filter((mark) => mark !== null);
    const facts = `${dom.whole(turn.end - turn.start)} tokens · sampled in ${dom.time(turn.sampleMs)} · tools ${dom.time(turn.toolMs)}`;
    const section = h(
      "section.turn",
      { "data-turn": n },
      h(
        "header",
        {},
        h("b", {}, `Turn ${n + 1}`),
        ...marks.map((mark) => h("span.badge.bad", {}, mark)),
        h("span.facts", {}, facts),
      ),
    );
    if (turn.text !== undefined) {
      section.append(
        h("p.aside", {}, "The text as it was recorded; the tokens below are not the same by this tokenizer."),
      );
      section.append(textBlock("recorded", "prose", turn.text));
    }
    const pieces = text.ofTokens(open.tokens, turn.start, turn.end);
    const whole = pieces.join("");
    const at = turn.command === null ? -1 : whole.lastIndexOf(turn.command);
    if (turn.command !== null && at >= 0) {
      const first = turn.start + tokenOfCharacter(pieces, at);
      const last =
        turn.start + Math.min(pieces.length, tokenOfCharacter(pieces, at + turn.command.length - 1) + 1);
      const part = (from: number, to: number): string[] => pieces.slice(from - turn.start, to - turn.start);
      if (first > turn.start)
        section.append(tokenBlock("reasoning", "prose", turn.start, first, part(turn.start, first)));
      section.append(tokenBlock("command", "command", first, last, part(first, last)));
      if (last < turn.end) section.append(tokenBlock("tail", "prose", last, turn.end, part(last, turn.end)));
    } else section.append(tokenBlock("reasoning", "prose", turn.start, turn.end, pieces));
    if (next > turn.end)
      section.append(
        tokenBlock("observation", "observation", turn.end, next, text.ofTokens(open.tokens, turn.end, next)),
      );
    if (turn.observation !== undefined) {
      section.append(
        h("p.aside", {}, "What the tools said last; the policy never saw it, so it has no tokens."),
      );
      section.append(textBlock("recorded", "observation", turn.observation));
    }
    return section;
  }

  /** Shows `shown` from its beginning, painted by `by`. */
  function open(shown: PageEpisode, by: PageLane): void {
    watcher.disconnect();
    episode = shown;
    lane = by;
    slabs = [];
    tokenSlabs = [];
    selected = -1;
    hits = new Set();
    const begin = shown.turns[0]?.start ?? shown.tokens.length;
    const prompt = h(
      "section.turn",
      { "data-turn": -1 },
      h("header", {}, h("b", {}, "Prompt"), h("span.facts", {}, `${dom.whole(begin)} tokens`)),
    );
    if (begin > 0)
      prompt.append(tokenBlock("prompt-text", "prose", 0, begin, text.ofTokens(shown.tokens, 0, begin)));
    turns = shown.turns.map((turn, n) =>
      turnSection(turn, n, shown.turns[n + 1]?.start ?? shown.tokens.length),
    );
    const end =
      shown.patch === ""
        ? []
        : [
            h(
              "section.turn",
              {},
              h("header", {}, h("b", {}, "Patch"), h("span.facts", {}, "what the tests judged")),
              textBlock("patch", "diff", shown.patch),
            ),
          ];
    scroller.replaceChildren(prompt, ...turns, ...end);
    scroller.scrollTop = 0;
  }

  function paint(by: PageLane): void {
    lane = by;
    for (const slab of tokenSlabs) {
      if (!slab.drawn) continue;
      const children = slab.element.children;
      for (let k = 0; k < children.length; k++) {
        const span = children[k] as HTMLElement;
        const kept = span.classList.contains("nl")
          ? " nl"
          : span.classList.contains("special")
            ? " special"
            : "";
        span.className = classOf(slab.start + k) + kept;
      }
    }
  }

  /** Marks `token` as selected and, unless it is in sight already, brings it to the middle of the window. */
  function select(token: number, into: "middle" | "stay" = "middle"): void {
    spanOf(selected)?.classList.remove("on");
    selected = token;
    const slab = token < 0 ? null : slabAt(token);
    if (slab === null) return;
    const mark = (): void => {
      draw(slab);
      const span = spanOf(token);
      if (span === null) return;
      span.classList.add("on");
      if (into === "stay") return;
      const box = span.getBoundingClientRect();
      const frame = scroller.getBoundingClientRect();
      if (box.top < frame.top + 40 || box.bottom > frame.bottom - 40)
        scroller.scrollTop += (box.top + box.bottom - frame.top - frame.bottom) / 2;
    };
    if (into === "middle" && !slab.drawn) slab.element.scrollIntoView({ block: "center" });
    mark();
    // What lies above is measured only once it was drawn.
    if (into === "middle") requestAnimationFrame(() => requestAnimationFrame(mark));
  }

  function showTurn(n: number): void {
    (n < 0 ? scroller.firstElementChild : turns[Math.min(n, turns.length - 1)])?.scrollIntoView({
      block: "start",
    });
  }

  /** Number of the turn at the top of the window; -1 in the prompt. */
  function turnInSight(): number {
    const top = scroller.getBoundingClientRect().top + 60;
    let low = 0;
    let high = turns.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((turns[middle] as HTMLElement).getBoundingClientRect().top <= top) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** First and last token in the window, as far as their slabs tell. */
  function inSight(): [number, number] {
    const frame = scroller.getBoundingClientRect();
    const at = (y: number): number => {
      let low = 0;
      let high = tokenSlabs.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if ((tokenSlabs[middle] as Slab).element.getBoundingClientRect().top <= y) low = middle;
        else high = middle - 1;
      }
      const slab = tokenSlabs[low];
      if (slab === undefined) return 0;
      const box = slab.element.getBoundingClientRect();
      const share = box.height === 0 ? 0 : Math.min(1, Math.max(0, (y - box.top) / box.height));
      return Math.round(slab.start + share * (slab.end - slab.start));
    };
    return [at(frame.top), at(frame.bottom)];
  }

  /** Tokens in which `words` begins, anywhere in the episode; marks them. Stops when `signal` does. */
  async function search(words: string, signal: AbortSignal): Promise<number[]> {
    const wanted = words.toLowerCase();
    const found: number[] = [];
    const marked = new Set<number>();
    const shown = episode;
    let worked = performance.now();
    for (const { start, end } of wanted === "" ? [] : tokenSlabs) {
      if (performance.now() - worked > 20) {
        await dom.breathe();
        worked = performance.now();
      }
      if (signal.aborted || shown === null || shown !== episode) return [];
      const pieces = text.ofTokens(shown.tokens, start, end);
      const whole = pieces.join("").toLowerCase();
      for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
        const first = tokenOfCharacter(pieces, at);
        const last = tokenOfCharacter(pieces, at + wanted.length - 1);
        found.push(start + first);
        for (let k = first; k <= last; k++) marked.add(start + k);
      }
    }
    hits = marked;
    if (lane) paint(lane);
    return found;
  }

  function tokenOf(event: Event): number {
    const span = (event.target as Element | null)?.closest(".t");
    const slab = span?.parentElement ? slabOf.get(span.parentElement) : undefined;
    return span && slab ? slab.start + Array.prototype.indexOf.call(slab.element.children, span) : -1;
  }
  scroller.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token >= 0 && document.getSelection()?.isCollapsed !== false) events.select(token);
  });
  scroller.addEventListener("pointerover", (event) => events.hover(tokenOf(event)));
  scroller.addEventListener("pointerleave", () => events.hover(-1));
  scroller.addEventListener("scroll", () => events.scroll(), { passive: true });

  return { open, paint, select, showTurn, turnInSight, inSight, search };
}
