// In the browser: the list of episodes, of which only the rows in the window exist. A closed function.
import type { createDom } from "./dom.ts";
import type { createRows } from "./rows.ts";

export function createList(
  dom: ReturnType<typeof createDom>,
  rows: ReturnType<typeof createRows>,
  choose: (row: number) => void,
) {
  const { h } = dom;
  const HEIGHT = 54;
  const spacer = h("div.spacer");
  const element = h("div.list", { tabindex: 0, role: "listbox", "aria-label": "episodes" }, spacer);
  let shown: Int32Array = new Int32Array();
  let current = -1;
  let drawn: [number, number] = [0, 0];

  function row(place: number): HTMLElement {
    const i = shown[place] as number;
    const c = rows.columns;
    const outcome = rows.outcome(i);
    const advantage = c.advantage[i] ?? null;
    const clipped = c.clipped[i] ?? 0;
    const facts = [
      `${rows.stageName(i)} ${c.iteration[i]}`,
      `#${c.rollout[i]}`,
      `${c.turns[i]} turns`,
      `${dom.whole(c.tokens[i] as number)} tok`,
      ...(clipped > 0 ? [`${clipped} clipped`] : []),
    ].join(" · ");
    const element = h(
      "div.row",
      { role: "option", "aria-selected": String(i === current), "data-row": i },
      h(`span.dot.${outcome}` as "span", {
        title: outcome === "resolved" ? outcome : `${outcome}: ${rows.reason(i)}`,
      }),
      h("b", {}, dom.visible(rows.instance(i))),
      advantage === null
        ? h("span.adv")
        : h(
            `span.adv.${advantage > 0 ? "up" : advantage < 0 ? "down" : "flat"}` as "span",
            { title: "advantage" },
            dom.signed(advantage),
          ),
      h("small", {}, facts),
    );
    if ((c.pack[i] as number) < 0) element.classList.add("away");
    element.style.top = `${place * HEIGHT}px`;
    return element;
  }

  function draw(anew: boolean): void {
    const first = Math.max(0, Math.floor(element.scrollTop / HEIGHT) - 6);
    const last = Math.min(shown.length, Math.ceil((element.scrollTop + element.clientHeight) / HEIGHT) + 6);
    if (!anew && first === drawn[0] && last === drawn[1]) return;
    drawn = [first, last];
    const made: HTMLElement[] = [];
    for (let place = first; place < last; place++) made.push(row(place));
    spacer.replaceChildren(...made);
  }

  /** Shows these rows; with `still` the row at the upper edge stays there. */
  function show(order: Int32Array, still = false): void {
    const top = Math.floor(element.scrollTop / HEIGHT);
    const place = still && top > 0 ? order.indexOf(shown[top] as number) : -1;
    shown = order;
    spacer.style.height = `${Math.max(1, order.length) * HEIGHT}px`;
    if (place >= 0) element.scrollTop += (place - top) * HEIGHT;
    else if (element.scrollTop > order.length * HEIGHT) element.scrollTop = 0;
    draw(true);
  }

  /** Marks `row` as the open one and keeps it in the window. */
  function mark(row: number): void {
    current = row;
    const place = shown.indexOf(row);
    if (place >= 0) {
      const top = place * HEIGHT;
      if (top < element.scrollTop) element.scrollTop = top;
      else if (top + HEIGHT > element.scrollTop + element.clientHeight)
        element.scrollTop = top + HEIGHT - element.clientHeight;
    }
    draw(true);
  }

  /** The row `by` places after the open one; the first where none is open. */
  function neighbour(by: number): number | null {
    if (shown.length === 0) return null;
    const place = shown.indexOf(current);
    const next = place < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, place + by));
    return shown[next] as number;
  }

  element.addEventListener("scroll", () => draw(false), { passive: true });
  element.addEventListener("click", (event) => {
    const found = (event.target as Element).closest<HTMLElement>("[data-row]");
    if (found) choose(Number(found.dataset.row));
  });
  new ResizeObserver(() => draw(true)).observe(element);

  return { element, show, mark, neighbour, size: () => shown.length };
}
