// In the browser: the view of episodes put together: list, head, lanes, ribbons, conversation, keys, addresses.
// A closed function.
import type { createConversation } from "./conversation.ts";
import type { createDom } from "./dom.ts";
import type { createLanes, PageLane, TokenFacts } from "./lanes.ts";
import type { createList } from "./list.ts";
import type { createRibbons } from "./ribbon.ts";
import type { createRows, RowFilter } from "./rows.ts";
import type { createSyntax, createText } from "./text.ts";
import type { PageEpisode, PageSettings } from "./types.ts";

interface Parts {
  createConversation: typeof createConversation;
  createLanes: typeof createLanes;
  createList: typeof createList;
  createRibbons: typeof createRibbons;
  dom: ReturnType<typeof createDom>;
  rows: ReturnType<typeof createRows>;
  text: ReturnType<typeof createText>;
  syntax: ReturnType<typeof createSyntax>;
  /** The episode of a row; null where the page does not hold it. */
  load: (row: number) => Promise<PageEpisode | null>;
  settings: PageSettings;
}

export function createViewer(root: HTMLElement, parts: Parts) {
  const { dom, rows, text, syntax, settings } = parts;
  const { h } = dom;
  const { lanesOf } = parts.createLanes();
  const c = rows.columns;

  let current = -1;
  let episode: PageEpisode | null = null;
  let lanes: PageLane[] = [];
  let facts: ((i: number) => TokenFacts) | null = null;
  /** The lane asked for; one that has nothing to paint gives way without being forgotten. */
  let wanted = "source";
  let token = -1;
  let found: number[] = [];
  let searching = new AbortController();

  // --- what there is to choose from ---
  const option = (value: string, name: string): HTMLOptionElement => h("option", { value }, name);
  const words = h("input", {
    type: "search",
    placeholder: "Filter: task, stage, reason  ( / )",
    "aria-label": "filter episodes",
  });
  const stage = h("select", { "aria-label": "stage" });
  const outcome = h(
    "select",
    { "aria-label": "outcome" },
    option("all", "all outcomes"),
    option("resolved", "resolved"),
    option("failed", "failed"),
    option("infra", "infrastructure broke"),
    option("unreadable", "with format errors"),
    option("learnt", "learnt from"),
    option("clipped", "with clipped tokens"),
  );
  const order = h(
    "select",
    { "aria-label": "order" },
    option("newest", "newest first"),
    option("oldest", "oldest first"),
    option("tokens", "longest first"),
    option("turns", "most turns first"),
    option("clipped", "most clipped first"),
    option("slowest", "slowest first"),
    option("reward", "highest reward first"),
    option("advantage", "highest advantage first"),
  );
  const total = h("p.total", { role: "status" });
  const list = parts.createList(dom, rows, (row) => void open(row));
  const side = h("div.side", {}, h("div.filters", {}, words, stage, outcome, order, total), list.element);

  // --- the open episode ---
  const back = h("button.back", { type: "button", click: () => root.classList.remove("reading") }, "‹ list");
  const help = h("button.help", { type: "button", title: "keys ( ? )", click: () => keys.showModal() }, "?");
  const title = h("h2", {});
  const subtitle = h("p.facts", {});
  const group = h("div.group", { role: "group", "aria-label": "rollouts of the group" });
  const laneBar = h("div.lanes", { role: "radiogroup", "aria-label": "lane" });
  const legend = h("p.legend", {});
  const find = h("input", {
    type: "search",
    placeholder: "Find in episode  ( f )",
    "aria-label": "find in episode",
  });
  const findCount = h("span.find-count", { role: "status" });
  const scroller = h("div.conversation", { tabindex: 0, "aria-label": "conversation" });
  const status = h("div.token-facts", { role: "status" });
  const ribbons = parts.createRibbons(dom, {
    turn: (n) => conversation.showTurn(n),
    token: (i) => choose(i),
  });
  let waiting = false;
  const conversation = parts.createConversation(
    scroller,
    { dom, text, syntax },
    {
      select: (i) => choose(i, "stay"),
      hover: (i) => describe(i >= 0 ? i : token),
      scroll: () => {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
          waiting = false;
          ribbons.see(...conversation.inSight());
        });
      },
    },
  );
  const empty = h("div.empty", {});
  const head = h(
    "div.head",
    {},
    h("div.headline-row", {}, back, title, help),
    subtitle,
    group,
    ribbons.element,
    h("div.lane-row", {}, laneBar, h("div.find", {}, find, findCount)),
    legend,
  );
  const main = h("div.main", {}, head, scroller, status, empty);
  const keys = h(
    "dialog.key-help",
    {},
    h("h2", {}, "Keys"),
    h(
      "dl",
      {},
      ...(
        [
          ["j  k", "next, previous episode of the list"],
          ["[  ]", "previous, next rollout of the same group"],
          [",  .", "previous, next turn"],
          ["←  →", "previous, next token"],
          ["n  N", "next, previous remarkable token of the lane, or match of the search"],
          ["1 … 6", "paint by this lane"],
          ["/", "filter the list"],
          ["f", "find in the episode"],
          ["Esc", "leave a field, drop the selection"],
          ["g", "to the overview and back"],
        ] as const
      ).flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)]),
    ),
    h("p.facts", {}, "The address names the episode, the token and the lane: send it with the file."),
    h("form", { method: "dialog" }, h("button", {}, "Close")),
  );
  root.replaceChildren(side, main, keys);

  // --- the list ---
  function fillStages(): void {
    const chosen = stage.value;
    const seen = new Map<string, string>();
    for (let i = 0; i < rows.count(); i++) {
      const key = `${c.run[i]}/${c.stage[i]}`;
      if (!seen.has(key))
        seen.set(key, `${c.runs.length > 1 ? `${c.runs[c.run[i] as number]}: ` : ""}${rows.stageName(i)}`);
    }
    stage.replaceChildren(option("", "all stages"), ...[...seen].map(([key, name]) => option(key, name)));
    stage.value = chosen;
    if (stage.selectedIndex < 0) stage.value = "";
  }

  function filter(still = false): void {
    const chosen: RowFilter = {
      outcome: outcome.value,
      stage: stage.value,
      order: order.value,
      words: words.value,
    };
    const selected = rows.select(chosen);
    list.show(selected, still);
    const away =
      settings.live !== null || settings.held >= settings.episodes
        ? ""
        : ` · ${dom.whole(settings.held)} of them in this file (--all for every one)`;
    total.textContent = `${dom.whole(selected.length)} of ${dom.whole(rows.count())} episodes${away}`;
  }
  for (const control of [stage, outcome, order]) control.addEventListener("change", () => filter());
  words.addEventListener("input", () => filter());

  // --- one episode ---
  const laneNow = (): PageLane => {
    const asked = lanes.find((lane) => lane.key === wanted);
    return (asked && asked.missing === null ? asked : lanes[0]) as PageLane;
  };

  function drawLanes(): void {
    const now = laneNow();
    laneBar.replaceChildren(
      ...lanes.map((lane, n) =>
        h(
          "button",
          {
            type: "button",
            role: "radio",
            "aria-checked": String(lane === now),
            "data-lane": lane.key,
            disabled: lane.missing !== null,
            title: lane.missing === null ? `${lane.hint} ( ${n + 1} )` : `Not here: ${lane.missing}.`,
            click: () => paint(lane.key),
          },
          lane.name,
        ),
      ),
    );
    const asked = lanes.find((lane) => lane.key === wanted);
    const why =
      asked && asked.missing !== null
        ? `${asked.name} is not here: ${asked.missing}. Painted by source instead. `
        : "";
    legend.replaceChildren(
      ...now.legend.map(([colour, name]) => h(`span.t.${colour}` as "span", {}, name)),
      h("span.hint", {}, why + now.hint),
    );
  }

  function paint(key: string): void {
    const lane = lanes.find((one) => one.key === key);
    if (lane === undefined || lane.missing !== null) return;
    wanted = key;
    drawLanes();
    conversation.paint(lane);
    ribbons.paint(lane);
    remember();
  }

  function drawGroup(): void {
    const members = rows.group(current);
    group.replaceChildren(
      h("span.label", {}, `group of ${members.length}`),
      ...members.map((i) =>
        h(
          "button",
          {
            type: "button",
            "aria-current": String(i === current),
            title: `rollout ${c.rollout[i]}: ${rows.outcome(i)}${c.reward[i] === null ? "" : `, reward ${dom.signed(c.reward[i] as number)}`}, ${c.turns[i]} turns`,
            click: () => void open(i),
          },
          h(`span.dot.${rows.outcome(i)}` as "span"),
          String(c.rollout[i]),
        ),
      ),
      h("span.label.hint", {}, "[  ]"),
    );
  }

  function drawHead(): void {
    const i = current;
    const result = rows.outcome(i);
    const reward = c.reward[i] ?? null;
    const advantage = c.advantage[i] ?? null;
    title.replaceChildren(
      h(
        `span.badge.${result === "resolved" ? "good" : result === "infra" ? "odd" : "bad"}` as "span",
        {},
        result === "resolved" ? "resolved" : rows.reason(i) || result,
      ),
      dom.visible(rows.instance(i)),
    );
    const said = [
      c.runs.length > 1 ? c.runs[c.run[i] as number] : null,
      `${rows.stageName(i)}, iteration ${c.iteration[i]}`,
      `rollout ${c.rollout[i]}`,
      rows.exit(i),
      reward === null ? null : `reward ${dom.signed(reward)}`,
      advantage === null ? null : `advantage ${dom.signed(advantage)}`,
      `${c.turns[i]} turns`,
      `${dom.whole(c.tokens[i] as number)} tokens, ${dom.whole(c.actions[i] as number)} of them sampled`,
      episode?.step == null ? null : `learnt from in step ${episode.step} of its iteration`,
    ].filter((one) => one != null);
    subtitle.textContent = said.join(" · ");
  }

  let ticket = 0;
  async function open(row: number, to: { token?: number; lane?: string } = {}): Promise<void> {
    const mine = ++ticket;
    current = row;
    token = -1;
    episode = null;
    if (to.lane !== undefined) wanted = to.lane;
    root.classList.add("reading");
    list.mark(row);
    drawGroup();
    drawHead();
    let loaded: PageEpisode | null = null;
    let fault = "";
    try {
      loaded = await parts.load(row);
    } catch (error) {
      fault = String(error);
    }
    // Another one was chosen meanwhile.
    if (mine !== ticket) return;
    if (loaded === null) {
      main.classList.add("nothing");
      empty.replaceChildren(
        h(
          "p",
          {},
          fault === ""
            ? "This episode is in the list, but its tokens are not in this file."
            : `This episode cannot be shown: ${fault}`,
        ),
        fault === ""
          ? h(
              "p.facts",
              {},
              "tokenring report RUN --all writes every episode into the file; tokenring watch RUN reads them from the run.",
            )
          : "",
      );
      remember();
      return;
    }
    main.classList.remove("nothing");
    episode = loaded;
    text.use(c.run[row] as number);
    ({ lanes, facts } = lanesOf(loaded, { advantage: c.advantage[row] ?? null, stage: rows.stageName(row) }));
    drawHead();
    drawLanes();
    conversation.open(loaded, laneNow());
    ribbons.open(loaded, laneNow());
    ribbons.see(...conversation.inSight());
    describe(-1);
    if (find.value !== "") void search(false);
    if (to.token !== undefined && to.token >= 0 && to.token < loaded.tokens.length) choose(to.token);
    else remember();
  }

  function describe(i: number): void {
    if (facts === null || episode === null || i < 0) {
      status.replaceChildren(
        h(
          "span.hint",
          {},
          "Point at a token for its numbers; click it to select it and to put it into the address.",
        ),
      );
      return;
    }
    const piece = text.ofTokens(episode.tokens, i, i + 1)[0] ?? "";
    status.replaceChildren(
      h("code", {}, dom.oneLine(piece)),
      ...facts(i).map(([name, value]) => h("span.fact", { "data-fact": name }, h("small", {}, name), value)),
    );
  }

  function choose(i: number, into: "middle" | "stay" = "middle"): void {
    token = i;
    conversation.select(i, into);
    describe(i);
    remember();
  }

  async function search(go: boolean): Promise<void> {
    searching.abort();
    searching = new AbortController();
    const { signal } = searching;
    const hits = await conversation.search(find.value, signal);
    if (signal.aborted) return;
    found = hits;
    findCount.textContent = find.value === "" ? "" : `${hits.length} found`;
    if (go && hits.length > 0) choose(hits.find((i) => i > token) ?? (hits[0] as number));
  }
  find.addEventListener("input", () => void search(false));
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter") void search(true);
  });

  /** The next token that the lane, or the search, has something to say of. */
  function leap(by: 1 | -1): void {
    if (episode === null) return;
    const hits = new Set(found);
    const remarkable = found.length > 0 ? (i: number) => hits.has(i) : laneNow().notable;
    const start = token < 0 ? (by > 0 ? -1 : episode.tokens.length) : token;
    for (let i = start + by; i >= 0 && i < episode.tokens.length; i += by)
      if (remarkable(i)) {
        choose(i);
        return;
      }
  }

  // --- addresses: #/e/<run>/<stage>/<iteration>/<task>/<rollout>?t=<token>&lane=<lane> ---
  function remember(): void {
    if (root.hidden || current < 0) return;
    const query = new URLSearchParams();
    if (token >= 0) query.set("t", String(token));
    if (wanted !== "source") query.set("lane", wanted);
    const tail = query.size > 0 ? `?${query}` : "";
    history.replaceState(null, "", `#/e/${rows.address(current)}${tail}`);
  }

  async function follow(hash: string): Promise<void> {
    const [place = "", query = ""] = hash.replace(/^#\/e\/?/, "").split("?");
    const asked = new URLSearchParams(query);
    const row = place === "" ? -1 : rows.find(place);
    const lane = asked.get("lane");
    const at = asked.get("t");
    const to = { ...(lane === null ? {} : { lane }), ...(at === null ? {} : { token: Number(at) }) };
    if (row >= 0) {
      if (row === current && episode !== null && to.token !== undefined) {
        if (to.lane !== undefined) paint(to.lane);
        if (to.token !== token) choose(to.token);
      } else if (row !== current || episode === null) await open(row, to);
    } else if (current < 0) {
      const first = list.neighbour(0);
      // On a narrow window the list comes first.
      if (first !== null && getComputedStyle(back).display === "none") await open(first, to);
    } else remember();
  }

  function key(event: KeyboardEvent): void {
    if (root.hidden || event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const field = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.key === "Escape") {
      if (field) (event.target as HTMLElement).blur();
      else if (token >= 0) choose(-1);
      return;
    }
    if (field) return;
    const step = (by: number): void => {
      const row = list.neighbour(by);
      if (row !== null && row !== current) void open(row);
    };
    const rollout = (by: number): void => {
      const members = rows.group(current);
      const next = members[members.indexOf(current) + by];
      if (next !== undefined) void open(next);
    };
    const move = (by: number): void => {
      if (episode === null) return;
      choose(
        Math.min(
          episode.tokens.length - 1,
          Math.max(0, token < 0 ? (conversation.inSight()[0] ?? 0) : token + by),
        ),
      );
    };
    const actions: Record<string, () => void> = {
      j: () => step(1),
      k: () => step(-1),
      "]": () => rollout(1),
      "[": () => rollout(-1),
      ".": () => conversation.showTurn(conversation.turnInSight() + 1),
      ",": () => conversation.showTurn(conversation.turnInSight() - 1),
      ArrowRight: () => move(1),
      ArrowLeft: () => move(-1),
      n: () => leap(1),
      N: () => leap(-1),
      "/": () => words.focus(),
      f: () => find.focus(),
      "?": () => keys.showModal(),
    };
    const lane = lanes[Number(event.key) - 1];
    const action = /^[1-9]$/.test(event.key) && lane ? () => paint(lane.key) : actions[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  }
  document.addEventListener("keydown", key);

  fillStages();
  filter();
  describe(-1);

  return {
    follow,
    /** New rows came: the list is drawn anew where it stands. */
    refresh(): void {
      fillStages();
      filter(true);
      if (current >= 0) drawGroup();
    },
  };
}
