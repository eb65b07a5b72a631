// In the browser: the values of a chart under the pointer. Without it the page is whole all the same. A closed
// function.

interface Points {
  x: number[];
  y: (number | null)[][];
  labels: string[];
  names: string[];
  text: string[][];
}

export function createCharts() {
  const space = "http://www.w3.org/2000/svg";

  function make(parent: Element, tag: string, attributes: Record<string, string | number>): void {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    parent.append(element);
  }

  function arm(svg: SVGSVGElement): void {
    const points = JSON.parse(svg.dataset.points as string) as Points;
    const figure = svg.parentElement as HTMLElement;
    const box = svg.viewBox.baseVal;
    const layer = svg.appendChild(document.createElementNS(space, "g"));
    const tip = figure.appendChild(document.createElement("div"));
    tip.className = "tip";
    tip.hidden = true;
    svg.addEventListener("pointerleave", () => {
      layer.replaceChildren();
      tip.hidden = true;
    });
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * box.width;
      let best = 0;
      points.x.forEach((at, i) => {
        if (Math.abs(at - x) < Math.abs((points.x[best] as number) - x)) best = i;
      });
      const at = points.x[best] as number;
      layer.replaceChildren();
      make(layer, "line", { class: "cursor", x1: at, x2: at, y1: 18, y2: box.height - 22 });
      tip.replaceChildren();
      tip.appendChild(document.createElement("div")).textContent = points.labels[best] as string;
      points.names.forEach((name, s) => {
        tip.appendChild(document.createElement("div")).textContent = `${name} ${points.text[best]?.[s]}`;
        const y = points.y[best]?.[s] ?? null;
        if (y !== null) make(layer, "circle", { class: `dot k${s}`, cx: at, cy: y, r: 3.2 });
      });
      tip.hidden = false;
      const left = (at / box.width) * frame.width;
      const aside = left > frame.width / 2 ? left - tip.offsetWidth - 10 : left + 10;
      tip.style.left = `${Math.max(0, aside)}px`;
      tip.style.top = `${frame.top - figure.getBoundingClientRect().top + 22}px`;
    });
  }

  return {
    /** Arms all charts below `root` that are not armed yet. */
    follow(root: ParentNode): void {
      for (const svg of root.querySelectorAll<SVGSVGElement>("svg[data-points]:not([data-armed])")) {
        svg.setAttribute("data-armed", "");
        arm(svg);
      }
    },
  };
}
