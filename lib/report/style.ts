// The report's style sheet: one column of calm sections, light or dark as the reader's system is.

export const STYLE = `
:root {
  color-scheme: light dark;
  --ground: #f7f7f5; --card: #ffffff; --ink: #1b1f24; --soft: #5c6570; --faint: #e4e6e8; --edge: #dfe1e4;
  --k0: #2563c9; --k1: #c2620a; --k2: #7b8794; --k3: #1d8a5f; --k4: #9a4fb0; --k5: #b0316b;
  --pale: #b9cdf0; --good: #1a7f4b; --good-ground: #e2f3e9; --bad: #b3361f; --bad-ground: #fae7e3;
  --code: #f3f4f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #101317; --card: #171b20; --ink: #e4e7ea; --soft: #98a2ad; --faint: #262c33; --edge: #2a3038;
    --k0: #6ea3f7; --k1: #f0a050; --k2: #8b97a5; --k3: #56c596; --k4: #cf94e0; --k5: #ee7fae;
    --pale: #2f4a78; --good: #67d19b; --good-ground: #14301f; --bad: #f28b74; --bad-ground: #3a1d17;
    --code: #12161a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
main header { padding: 14px 0 0; }
h1 { margin: 2px 0 0; font-size: 26px; line-height: 1.25; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 17px; letter-spacing: -.005em; }
h3 { margin: 18px 0 8px; font-size: 14px; color: var(--soft); font-weight: 600; }
.meta { margin: 4px 0 0; color: var(--soft); font-size: 14px; }
section { margin: 22px 0; padding: 20px; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
footer { padding-bottom: 40px; color: var(--soft); font-size: 13px; }
.hero { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 28px; align-items: center; }
.headline { margin: 0; font-size: 38px; line-height: 1.15; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.headline .from { color: var(--soft); font-weight: 400; }
.say { margin: 6px 0 20px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 0; }
.tiles div { padding: 10px 12px; background: var(--ground); border-radius: 8px; }
.tiles dt { color: var(--soft); font-size: 12.5px; line-height: 1.35; }
.tiles dd { margin: 0; font-size: 18px; font-weight: 600; font-variant-numeric: tabular-nums; }
.legend-line { margin: 8px 0 0; font-size: 12.5px; color: var(--soft); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; background: var(--k0); margin: 0 4px 0 10px; }
.swatch.pale { background: var(--pale); }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--faint); stroke-width: 1; }
.arc text { font-size: 13px; }
.arc .value { text-anchor: middle; fill: var(--ink); font-weight: 650; font-size: 14px; }
.arc .minor { fill: var(--soft); font-weight: 400; font-size: 12px; }
.arc .name { text-anchor: middle; fill: var(--ink); }
.arc .pass1 { fill: var(--k0); }
.arc .pass10 { fill: var(--pale); }
.arc .error { stroke: var(--ink); stroke-width: 1.4; fill: none; }
.arc .run { fill: var(--card); stroke: var(--ink); stroke-width: 1.2; }
.stack { min-width: 560px; }
.stack .name { fill: var(--ink); font-size: 13px; }
.stack .tick { font-size: 12.5px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 22px 26px; }
.chart { margin: 0; position: relative; min-width: 0; display: flex; flex-direction: column; justify-content: space-between; }
.chart figcaption { font-size: 12.5px; line-height: 1.45; color: var(--soft); margin-bottom: 4px; }
.chart .title { display: block; color: var(--ink); font-weight: 600; font-size: 13.5px; }
.chart .keys { display: flex; flex-wrap: wrap; gap: 0 12px; }
.key i { display: inline-block; width: 9px; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: 4px; }
.key b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.key.k0 i { background: var(--k0); } .key.k1 i { background: var(--k1); } .key.k2 i { background: var(--k2); } .key.k3 i { background: var(--k3); } .key.k4 i { background: var(--k4); } .key.k5 i { background: var(--k5); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.k0 { stroke: var(--k0); } .line.k1 { stroke: var(--k1); } .line.k2 { stroke: var(--k2); } .line.k3 { stroke: var(--k3); } .line.k4 { stroke: var(--k4); }
.fill.k0 { fill: var(--k0); } .fill.k1 { fill: var(--k1); } .fill.k2 { fill: var(--k2); } .fill.k3 { fill: var(--k3); } .fill.k4 { fill: var(--k4); } .fill.k5 { fill: var(--k5); }
.stage { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.cursor { stroke: var(--soft); stroke-width: 1; }
.dot.k0 { fill: var(--k0); } .dot.k1 { fill: var(--k1); } .dot.k2 { fill: var(--k2); } .dot.k3 { fill: var(--k3); } .dot.k4 { fill: var(--k4); }
.tip { position: absolute; z-index: 2; pointer-events: none; padding: 5px 9px; border-radius: 6px; background: var(--ink);
  color: var(--card); font-size: 12px; line-height: 1.45; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tip[hidden] { display: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:last-child td { border-bottom: 0; }
td small { color: var(--soft); font-size: 12px; font-weight: 400; }
td.lead { font-weight: 650; }
pre { margin: 0; font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; overflow-wrap: anywhere; }
details > summary { padding: 4px 0; }
.badge { display: inline-block; padding: 0 8px; border-radius: 10px; font-size: 12px; line-height: 20px; font-weight: 600; }
.badge.good { color: var(--good); background: var(--good-ground); }
.badge.bad { color: var(--bad); background: var(--bad-ground); }
.config { padding: 9px 12px; border-radius: 6px; background: var(--code); }
.note { color: var(--soft); }
@media (max-width: 780px) {
  .hero { grid-template-columns: minmax(0, 1fr); gap: 18px; }
  .headline { font-size: 30px; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  section { padding: 16px 14px; }
  main, header, footer { padding-left: 12px; padding-right: 12px; }
}
`;
