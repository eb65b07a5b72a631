// The arc as text, for the end of a job in a terminal.
import type { ArcStage } from "./arc.ts";

const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/** A bar of `width` columns for `value` in [0, 1], in steps of an eighth of a column. */
function bar(value: number, width: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, value)) * width * 8);
  return "█".repeat(Math.floor(eighths / 8)) + (EIGHTHS[eighths % 8] as string);
}

const percent = (value: number): string => (100 * value).toFixed(1);

function rate({ pass1, sem }: ArcStage): string {
  return `${percent(pass1).padStart(5)} %${sem === null ? "" : ` ± ${percent(sem)}`}`;
}

/**
 * The stages as a table with bars: Pass@1 full, from there to Pass@10 shaded, where the runs allow that. Smaller budgets
 * have a column each, sets of tasks that are reported apart a line each. Lines end without a newline; `columns` is the
 * width to stay within, default 80.
 */
export function arcTable(stages: readonly ArcStage[], options: { columns?: number } = {}): string {
  if (stages.length === 0) return "no stage was evaluated";
  const top = Math.max(
    0.05,
    ...stages.map((stage) => Math.max(stage.pass1 + (stage.sem ?? 0), stage.pass10 ?? 0)),
  );
  // The bars' full width is the next ten per cent above the best number.
  const scale = Math.min(1, Math.ceil(top * 10 - 1e-9) / 10);
  const names = Math.max(5, ...stages.map((stage) => stage.name.length));
  const budgets = (stages[0]?.alsoAt ?? []).map((_, i) => i);
  const tens = stages.some((stage) => stage.pass10 !== null);
  const fixed = 2 + names + 2 + 14 + 2 + 2 + (tens ? 8 : 0) + 7 + 17 * budgets.length;
  const width = Math.max(8, Math.min(40, (options.columns ?? 80) - fixed));

  const rows = stages.map((stage) => {
    const solid = bar(stage.pass1 / scale, width);
    const until = Math.round(Math.min(1, (stage.pass10 ?? 0) / scale) * width);
    const drawn = (solid + "░".repeat(Math.max(0, until - solid.length))).padEnd(width);
    const ten = stage.pass10 === null ? "" : `${percent(stage.pass10)} %`;
    return [
      " ",
      stage.name.padEnd(names + 1),
      rate(stage).padEnd(14),
      "",
      drawn,
      "",
      ...(tens ? [ten.padStart(7)] : []),
      stage.turns.toFixed(1).padStart(6),
      ...budgets.map((i) => (stage.alsoAt?.[i] ? `  ${rate(stage.alsoAt[i]).padEnd(14)}` : " ".repeat(16))),
    ]
      .join(" ")
      .trimEnd();
  });
  const head = [
    " ",
    "stage".padEnd(names + 1),
    " Pass@1".padEnd(14),
    "",
    `0${`${(100 * scale).toFixed(0)} %`.padStart(width - 1)}`,
    "",
    ...(tens ? ["Pass@10"] : []),
    " turns",
    ...budgets.map((i) => `  at ${stages[0]?.alsoAt?.[i]?.budget?.maxTurns} turns`.padEnd(16)),
  ]
    .join(" ")
    .trimEnd();
  const rule = `  ${"─".repeat(Math.max(...[head, ...rows].map((row) => row.length)) - 2)}`;
  const sets = [...new Set(stages.flatMap((stage) => Object.keys(stage.apart ?? {})))];
  const apart = sets.map((set) => {
    const points = stages.flatMap(({ name, apart }) =>
      apart?.[set] ? `${name} ${percent(apart[set].pass1)} %` : [],
    );
    return `  ${set}: ${points.join(" · ")}`;
  });
  return [head, rule, ...rows, ...apart].join("\n");
}
