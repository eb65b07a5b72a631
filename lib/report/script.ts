// The page's only script: shows the values under the pointer. Without it the page is whole all the same.

export const SCRIPT = `"use strict";
for (const svg of document.querySelectorAll("svg[data-points]")) {
  const points = JSON.parse(svg.dataset.points);
  const figure = svg.parentElement;
  const space = "http://www.w3.org/2000/svg";
  const box = svg.viewBox.baseVal;
  const layer = svg.appendChild(document.createElementNS(space, "g"));
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const hide = () => { layer.replaceChildren(); tip.hidden = true; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * box.width;
    let best = 0;
    points.x.forEach((at, i) => { if (Math.abs(at - x) < Math.abs(points.x[best] - x)) best = i; });
    const at = points.x[best];
    layer.replaceChildren();
    const line = layer.appendChild(document.createElementNS(space, "line"));
    line.setAttribute("class", "cursor");
    line.setAttribute("x1", at); line.setAttribute("x2", at);
    line.setAttribute("y1", 18); line.setAttribute("y2", box.height - 22);
    tip.replaceChildren();
    tip.appendChild(document.createElement("div")).textContent = points.labels[best];
    points.names.forEach((name, s) => {
      tip.appendChild(document.createElement("div")).textContent = name + " " + points.text[best][s];
      const y = points.y[best][s];
      if (y === null) return;
      const dot = layer.appendChild(document.createElementNS(space, "circle"));
      dot.setAttribute("class", "dot k" + s);
      dot.setAttribute("cx", at); dot.setAttribute("cy", y); dot.setAttribute("r", 3.2);
    });
    tip.hidden = false;
    const left = (at / box.width) * frame.width;
    tip.style.left = Math.max(0, left > frame.width / 2 ? left - tip.offsetWidth - 10 : left + 10) + "px";
    tip.style.top = frame.top - figure.getBoundingClientRect().top + 22 + "px";
  });
}
`;
