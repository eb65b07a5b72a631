// Unified diffs as git prints them, for the small text files of the tiny world.
import { blobHash } from "./git.ts";

const CONTEXT = 3;

/** One line of an edit script: kept, removed or added. */
interface Edit {
  sign: " " | "-" | "+";
  text: string;
}

/**
 * `git diff` of text files that exist on both sides, in the order of their names. File contents end with a line
 * end. An empty string when nothing changed.
 */
export function gitDiff(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): string {
  let out = "";
  for (const name of [...before.keys()].sort()) {
    const [old, now] = [before.get(name) as string, after.get(name) as string];
    if (old === now) continue;
    out += `diff --git a/${name} b/${name}\n`;
    out += `index ${blobHash(old).slice(0, 7)}..${blobHash(now).slice(0, 7)} 100644\n`;
    out += `--- a/${name}\n+++ b/${name}\n${hunks(linesOf(old), linesOf(now))}`;
  }
  return out;
}

const linesOf = (content: string): string[] => content.split("\n").slice(0, -1);

function hunks(old: readonly string[], now: readonly string[]): string {
  const script = trimmedEdits(old, now);
  let out = "";
  let at = 0;
  let [oldLine, newLine] = [1, 1];
  const skip = (count: number): void => {
    for (const { sign } of script.slice(at, at + count)) {
      if (sign !== "+") oldLine++;
      if (sign !== "-") newLine++;
    }
    at += count;
  };
  for (;;) {
    const first = script.findIndex((edit, i) => i >= at && edit.sign !== " ");
    if (first < 0) return out;
    skip(Math.max(at, first - CONTEXT) - at);
    let last = first;
    for (let i = first; i < script.length && i <= last + 2 * CONTEXT + 1; i++) {
      if (script[i]?.sign !== " ") last = i;
    }
    const part = script.slice(at, last + CONTEXT + 1);
    const [removed, added] = (["-", "+"] as const).map((sign) => part.filter((e) => e.sign === sign).length);
    const same = part.length - (removed as number) - (added as number);
    const range = (line: number, count: number): string => {
      if (count === 1) return `${line}`;
      return `${count === 0 ? line - 1 : line},${count}`;
    };
    const ranges = `-${range(oldLine, same + (removed as number))} +${range(newLine, same + (added as number))}`;
    const heading = old.slice(0, oldLine - 1).findLast((line) => /^[A-Za-z_$]/.test(line));
    out += `@@ ${ranges} @@${heading === undefined ? "" : ` ${heading.slice(0, 80).trimEnd()}`}\n`;
    out += part.map((edit) => `${edit.sign}${edit.text}\n`).join("");
    skip(part.length);
  }
}

/** Like `edits`, which is quadratic, without the lines that both sides begin and end with. */
function trimmedEdits(old: readonly string[], now: readonly string[]): Edit[] {
  const most = Math.min(old.length, now.length);
  let head = 0;
  while (head < most && old[head] === now[head]) head++;
  let tail = 0;
  while (tail < most - head && old.at(-1 - tail) === now.at(-1 - tail)) tail++;
  const keep = (lines: readonly string[]): Edit[] => lines.map((text) => ({ sign: " ", text }));
  return [
    ...keep(old.slice(0, head)),
    ...edits(old.slice(head, old.length - tail), now.slice(head, now.length - tail)),
    ...keep(old.slice(old.length - tail)),
  ];
}

/**
 * A shortest edit script; within a change removals stand before additions. Where pairing the lines by their number is
 * as short as any script it is the one that git finds, too; else the longest common subsequence decides.
 */
function edits(old: readonly string[], now: readonly string[]): Edit[] {
  // common[i][j]: length of the longest common subsequence of old[i..] and now[j..].
  const common = Array.from({ length: old.length + 1 }, () => new Int32Array(now.length + 1));
  const at = (i: number, j: number): number => common[i]?.[j] as number;
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      const row = common[i] as Int32Array;
      row[j] = old[i] === now[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const paired = old.length === now.length && old.filter((line, i) => line === now[i]).length === at(0, 0);
  const out: Edit[] = [];
  let added: Edit[] = [];
  let [i, j] = [0, 0];
  while (i < old.length || j < now.length) {
    const removes = i < old.length && (j === now.length || paired || at(i + 1, j) >= at(i, j + 1));
    if (i < old.length && old[i] === now[j]) {
      out.push(...added, { sign: " ", text: old[i++] as string });
      added = [];
      j++;
    } else {
      if (removes) out.push({ sign: "-", text: old[i++] as string });
      if (!removes || paired) added.push({ sign: "+", text: now[j++] as string });
    }
  }
  return [...out, ...added];
}
