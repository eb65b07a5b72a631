// Results in other forms: as github-action-benchmark takes them, which draws them over commits and warns of
// regressions; and as a table for a page.
import { biggerIsBetter, type Result, type Results } from "./result.ts";

/** One of the action's `tool` inputs; a file of it holds results of one direction only. */
export type ActionTool = "customBiggerIsBetter" | "customSmallerIsBetter";
/** Both tools: results of one run go into a file for each. */
export const ACTION_TOOLS: readonly ActionTool[] = ["customBiggerIsBetter", "customSmallerIsBetter"];

/** One result as github-action-benchmark reads it. */
export interface ActionEntry {
  name: string;
  unit: string;
  value: number;
  /** "± " and the median absolute deviation, in the unit. */
  range: string;
  extra: string;
}

/** The results of the tool's direction: rates are bigger is better, everything else smaller is better. */
export function exportForAction({ machine, results }: Results, tool: ActionTool): ActionEntry[] {
  const bigger = tool === "customBiggerIsBetter";
  return results
    .filter(({ unit }) => biggerIsBetter(unit) === bigger)
    .map((result) => ({
      name: result.name,
      unit: result.unit,
      value: result.value,
      range: `± ${result.mad}`,
      extra: [peerLine(result), machine.cpu, ...(machine.gpu ? [machine.gpu] : [])].join("\n"),
    }));
}

function peerLine({ peer, unit, ratio }: Result): string {
  if (!peer) return "no peer";
  return `${peer.name}: ${peer.value} ${unit}${ratio === null ? "" : `, ratio ${ratio}`}`;
}

/** Three significant digits, as tables and the terminal show values. */
export function digits(value: number): string {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

/** The results as a table in Markdown: median ± median absolute deviation. */
export function markdownTable({ results }: Results): string {
  const cell = (side: { value: number; mad?: number | undefined }): string =>
    side.mad === undefined ? digits(side.value) : `${digits(side.value)} ± ${digits(side.mad)}`;
  const rows = results.map((result) => {
    const { name, unit, peer, ratio } = result;
    const theirs = peer ? cell(peer) : "–";
    return `| ${name} | ${unit} | ${cell(result)} | ${theirs} | ${ratio === null ? "–" : ratio.toFixed(2)} |`;
  });
  return ["| what | unit | tokenring | peer | ratio |", "|---|---|---|---|---|", ...rows, ""].join("\n");
}
