// The picture and the table of the arc in the README, from the numbers in docs/arc.json. With files that
// `npm run demo -- --seed N --json FILE` wrote, the numbers are taken from those first.
//
//     node scripts/arc.mjs [seed1.json seed2.json ...]
//
// With --check it writes nothing, and its exit code is 1 where something would change.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const DATA = join(root, "docs", "arc.json");
const PICTURE = join(root, "docs", "arc.svg");
const README = join(root, "README.md");
const [BEGIN, END] = ["<!-- arc: written by scripts/arc.mjs -->", "<!-- /arc -->"];

/** Of a result of the demo, what the README shows: rates in [0, 1], to a tenth of a per cent. */
function pointsOf({ seed, stages }) {
  const rate = (value) => Math.round(value * 1000) / 1000;
  return {
    seed,
    stages: stages.map(({ name, pass1, sem, budget, alsoAt: [short], apart }) => ({
      name,
      pass1: rate(pass1),
      sem: rate(sem),
      turns: budget.maxTurns,
      short: { turns: short.budget.maxTurns, pass1: rate(short.pass1) },
      unseen: rate(Object.values(apart)[0].pass1),
    })),
  };
}

const percent = (rate) => (100 * rate).toFixed(1);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const standardError = (values) => {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2)) / (values.length - 1));
};

function table(runs) {
  const names = runs[0].stages.map(({ name }) => name);
  const rows = runs.map(({ seed, stages }) => {
    const cells = stages.map(({ pass1, sem }, i) => {
      const cell = `${percent(pass1)} ± ${percent(sem)}`;
      return i === stages.length - 1 ? `**${cell}**` : cell;
    });
    const short = stages.map((stage) => percent(stage.short.pass1)).join(" → ");
    const unseen = [stages[0], stages.at(-1)].map((stage) => Math.round(100 * stage.unseen)).join(" → ");
    return `| seed ${seed} | ${cells.join(" | ")} | ${short} | ${unseen} |`;
  });
  const turns = runs[0].stages[0].short.turns;
  return [
    `| | ${names.join(" | ")} | at ${turns} turns | unseen families |`,
    `|${"---|".repeat(names.length + 3)}`,
    ...rows,
  ].join("\n");
}

const WIDTH = 720;
const HEIGHT = 330;
const PLOT = { left: 56, right: 700, top: 46, bottom: 286 };
const COLOURS = {
  bar: "#9db8ee",
  first: "#c9ced6",
  dot: "#1f4fb4",
  ink: "#1f2328",
  pale: "#57606a",
  line: "#d8dee4",
};

function picture(runs) {
  const names = runs[0].stages.map(({ name }) => name);
  const rates = names.map((_, i) => runs.map(({ stages }) => stages[i].pass1));
  const top = Math.ceil(Math.max(...rates.flat()) * 10 + 0.2) / 10;
  const y = (rate) => PLOT.bottom - (rate / top) * (PLOT.bottom - PLOT.top);
  const step = (PLOT.right - PLOT.left) / names.length;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="system-ui, sans-serif" role="img" ` +
      `aria-label="Pass@1 on held-out tasks after each stage, ${runs.length} seeds">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#ffffff"/>`,
    `<text x="20" y="26" font-size="14" font-weight="600" fill="${COLOURS.ink}">Pass@1 on held-out tasks, per cent</text>`,
    `<text x="${PLOT.right}" y="26" text-anchor="end" font-size="12.5" fill="${COLOURS.pale}">bars: mean of ${runs.length} seeds ± its standard error · dots: each seed</text>`,
  ];
  for (let tick = 0; tick <= top + 1e-9; tick += 0.1) {
    const at = y(tick).toFixed(1);
    parts.push(
      `<path d="M${PLOT.left} ${at}H${PLOT.right}" stroke="${COLOURS.line}" stroke-width="1"/>`,
      `<text x="${PLOT.left - 8}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end" font-size="12" fill="${COLOURS.pale}">${Math.round(100 * tick)}</text>`,
    );
  }
  for (const [i, name] of names.entries()) {
    const values = rates[i];
    const middle = mean(values);
    const error = standardError(values);
    const centre = PLOT.left + step * (i + 0.5);
    const half = 38;
    parts.push(
      `<rect x="${(centre - half).toFixed(1)}" y="${y(middle).toFixed(1)}" width="${2 * half}" height="${(PLOT.bottom - y(middle)).toFixed(1)}" rx="3" fill="${i === 0 ? COLOURS.first : COLOURS.bar}"/>`,
      `<path d="M${centre} ${y(middle - error).toFixed(1)}V${y(middle + error).toFixed(1)}m-6 0h12M${centre - 6} ${y(middle - error).toFixed(1)}h12" stroke="${COLOURS.ink}" stroke-width="1.5" fill="none"/>`,
      ...values.map(
        (value, s) =>
          `<circle cx="${(centre + 12 + 8 * s).toFixed(1)}" cy="${y(value).toFixed(1)}" r="3" fill="${COLOURS.dot}"/>`,
      ),
      `<text x="${centre - half - 6}" y="${(y(middle) + 5).toFixed(1)}" text-anchor="end" font-size="15" font-weight="600" fill="${COLOURS.ink}">${percent(middle)}</text>`,
      `<text x="${centre}" y="${PLOT.bottom + 20}" text-anchor="middle" font-size="13.5" fill="${COLOURS.ink}">${name}</text>`,
    );
  }
  parts.push("</svg>");
  return `${parts.join("\n")}\n`;
}

function main() {
  const args = process.argv.slice(2);
  const check = args.includes("--check");
  const files = args.filter((arg) => arg !== "--check");
  if (files.length > 0) {
    const runs = files.map((file) => pointsOf(JSON.parse(readFileSync(file, "utf8"))));
    runs.sort((a, b) => a.seed - b.seed);
    writeFileSync(DATA, `${JSON.stringify(runs, null, 2)}\n`);
  }
  const runs = JSON.parse(readFileSync(DATA, "utf8"));
  const readme = readFileSync(README, "utf8");
  const [from, to] = [readme.indexOf(BEGIN), readme.indexOf(END)];
  if (from < 0 || to < from) throw new Error(`README.md lacks the marks ${BEGIN} and ${END}`);
  const written = {
    [PICTURE]: picture(runs),
    [README]: `${readme.slice(0, from)}${BEGIN}\n\n${table(runs)}\n\n${readme.slice(to)}`,
  };
  for (const [file, content] of Object.entries(written)) {
    let before = "";
    try {
      before = readFileSync(file, "utf8");
    } catch {}
    if (before === content) continue;
    console.log(`${file}: ${check ? "is not what docs/arc.json says; run node scripts/arc.mjs" : "written"}`);
    if (check) process.exitCode = 1;
    else writeFileSync(file, content);
  }
}

main();
