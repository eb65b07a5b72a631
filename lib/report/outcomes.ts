// How episodes ended and what the tests said of them, counted from the list of episodes.
import type { EpisodeRow } from "./data.ts";
import { percent } from "./format.ts";
import { type Html, html } from "./html.ts";

/** What became of an episode, in words: resolved, or why not. */
export function outcomeOf({ infra, verdict, reason }: EpisodeRow): string {
  if (infra) return "infrastructure";
  if (verdict === "resolved") return "resolved";
  return (reason ?? verdict).replaceAll("_", " ");
}

/** In the order in which they are shown; others come after them. */
const OUTCOMES = [
  "resolved",
  "tests failed",
  "empty patch",
  "patch failed",
  "invalid run",
  "timeout",
  "infrastructure",
];
const EXITS = ["submitted", "turn limit", "context limit", "timeout", "infra failed"];

function counted(values: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

/** The names of `found` that there are, those of `order` first. */
const inOrder = (found: Iterable<string>, order: readonly string[]): string[] => {
  const names = new Set(found);
  return [
    ...order.filter((name) => names.has(name)),
    ...[...names].filter((name) => !order.includes(name)).sort(),
  ];
};

export interface IterationOutcomes {
  /** Names of the outcomes of all iterations. */
  names: string[];
  /** Share of the iteration's episodes that came to `name`; null where the iteration has none. */
  share: (stage: string, iteration: number, name: string) => number | null;
}

/** What the episodes of each iteration came to. */
export function outcomesByIteration(rows: readonly EpisodeRow[]): IterationOutcomes {
  const groups = new Map<string, string[]>();
  for (const row of rows) {
    const key = `${row.stage} ${row.iteration}`;
    const outcome = outcomeOf(row);
    const group = groups.get(key);
    if (group) group.push(outcome);
    else groups.set(key, [outcome]);
  }
  const counts = new Map([...groups].map(([key, outcomes]) => [key, counted(outcomes)]));
  return {
    names: inOrder([...groups.values()].flat(), OUTCOMES),
    share(stage, iteration, name) {
      const all = groups.get(`${stage} ${iteration}`)?.length ?? 0;
      return all === 0 ? null : (counts.get(`${stage} ${iteration}`)?.get(name) ?? 0) / all;
    },
  };
}

/** Verdicts and exits of all episodes by stage, those of evaluations too. */
export function outcomeTable(rows: readonly EpisodeRow[], id: string): Html | null {
  if (rows.length === 0) return null;
  const stages = new Map<string, EpisodeRow[]>();
  for (const row of rows) {
    const stage = stages.get(row.stage);
    if (stage) stage.push(row);
    else stages.set(row.stage, [row]);
  }
  const outcomes = inOrder(rows.map(outcomeOf), OUTCOMES);
  const exits = inOrder(
    rows.map(({ exit }) => exit.replaceAll("_", " ")),
    EXITS,
  );
  const cells = (names: readonly string[], counts: Map<string, number>, of: number): Html[] =>
    names.map((name) => {
      const count = counts.get(name) ?? 0;
      return count === 0 ? html`<td>–</td>` : html`<td>${percent(count / of)} <small>${count}</small></td>`;
    });
  return html`<section id="${id}"><h2>Verdicts and exits</h2><div class="scroll"><table><thead><tr><th>episodes of</th><th>number</th>${outcomes.map(
    (name) => html`<th>${name}</th>`,
  )}${exits.map((name) => html`<th>exit: ${name}</th>`)}</tr></thead><tbody>${[...stages].map(
    ([stage, all]) =>
      html`<tr data-outcomes="${stage}"><td>${stage}</td><td>${all.length}</td>${cells(
        outcomes,
        counted(all.map(outcomeOf)),
        all.length,
      )}${cells(exits, counted(all.map(({ exit }) => exit.replaceAll("_", " "))), all.length)}</tr>`,
  )}</tbody></table></div></section>`;
}
