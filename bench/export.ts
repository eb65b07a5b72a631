// Results in the form that github-action-benchmark takes, which draws them over commits and warns of regressions.
import { biggerIsBetter, type Result, type Results } from "./result.ts";

/** One of the action's `tool` inputs; a file of it holds results of one direction only. */
export type ActionTool = "customBiggerIsBetter" | "customSmallerIsBetter";
export const ACTION_TOOLS: readonly ActionTool[] = ["customBiggerIsBetter", "customSmallerIsBetter"];

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
