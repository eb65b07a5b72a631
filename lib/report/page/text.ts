// In the browser: token ids to the text that people see, and its colours. Closed functions.
import type { PageVocabulary } from "./types.ts";

/** Texts of tokens. A character whose bytes lie in several tokens is shown at the last of them. */
export function createText() {
  /** By run, because each has its own tokenizer. */
  const known = new Map<number, { texts: Map<number, string | number[] | null>; special: Set<number> }>();
  let texts = new Map<number, string | number[] | null>();
  let special = new Set<number>();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /** The texts of a run from here on. */
  function use(run: number): void {
    const found = known.get(run) ?? { texts: new Map(), special: new Set() };
    known.set(run, found);
    ({ texts, special } = found);
  }

  function learn(run: number, vocabulary: PageVocabulary): void {
    use(run);
    vocabulary.ids.forEach((id, i) => {
      texts.set(id, vocabulary.texts[i] ?? null);
    });
    for (const id of vocabulary.special) special.add(id);
  }

  /** Texts of tokens [start, end), one each. */
  function ofTokens(tokens: Int32Array, start: number, end: number): string[] {
    const out: string[] = [];
    /** Bytes of a character that is not whole yet. */
    let open = false;
    for (let i = start; i < end; i++) {
      const id = tokens[i] as number;
      const text = texts.get(id);
      if (text === undefined || text === null) {
        out.push(`\u27e8${id}\u27e9`);
        continue;
      }
      if (typeof text === "string") {
        // What was left open is not UTF-8: it is shown as the decoder shows such bytes.
        out.push(open ? decoder.decode() + text : text);
        open = false;
        continue;
      }
      out.push(decoder.decode(Uint8Array.from(text), { stream: true }));
      open = true;
    }
    if (open) out[out.length - 1] += decoder.decode();
    return out;
  }

  return { learn, use, ofTokens, isSpecial: (id: number) => special.has(id) };
}

/** Colours of code, diffs and logs, as ranges over a text. It knows no language well and many well enough. */
export function createSyntax() {
  type Range = [start: number, end: number, kind: string];
  /** Longer lines are machine's output; colouring them would only cost time. */
  const LONGEST = 2000;
  const words =
    "and as assert async await break case catch class const continue def default del do elif else enum except export extends false False finally fn for from func function global go if impl import in instanceof interface is lambda let match mod module mut new nil None not null or package pass private protected public raise return self static struct super switch this throw true True try type typeof undefined use var void while with yield";
  const keyword = new Set(words.split(" "));
  const token =
    /(#[^\n]*|\/\/[^\n]*)|("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\\n])*`)|(\b\d[\w.]*\b)|([A-Za-z_]\w*)/g;

  function code(line: string, offset: number, out: Range[]): void {
    for (const match of line.matchAll(token)) {
      const start = offset + match.index;
      const end = start + match[0].length;
      if (match[1] !== undefined) out.push([start, end, "comment"]);
      else if (match[2] !== undefined) out.push([start, end, "string"]);
      else if (match[3] !== undefined) out.push([start, end, "number"]);
      else if (keyword.has(match[0])) out.push([start, end, "keyword"]);
      else if (line[match.index + match[0].length] === "(") out.push([start, end, "call"]);
    }
  }

  /** Colours lines of `text` from its beginning; `mode` says what it is. */
  function ranges(text: string, mode: "prose" | "code" | "command" | "observation" | "diff"): Range[] {
    const out: Range[] = [];
    const diff =
      mode === "diff" ||
      (mode !== "prose" && /^(?:diff --git |--- a\/|@@ -\d)/m.test(text.slice(0, 100_000)));
    let at = 0;
    let first = true;
    while (at < text.length) {
      let end = text.indexOf("\n", at);
      if (end < 0) end = text.length;
      const line = text.slice(at, Math.min(end, at + LONGEST));
      const numbered = /^\s*\d+[:|\t]/.exec(line);
      if (end - at > LONGEST) {
        // Left plain.
      } else if (
        diff &&
        /^(?:diff --git|index |--- |\+\+\+ |new file|deleted file|similarity|rename )/.test(line)
      )
        out.push([at, end, "meta"]);
      else if (diff && line.startsWith("@@")) out.push([at, end, "hunk"]);
      else if (diff && line.startsWith("+")) out.push([at, end, "added"]);
      else if (diff && line.startsWith("-")) out.push([at, end, "removed"]);
      else if (mode === "prose") {
        if (line.startsWith("```")) out.push([at, end, "fence"]);
      } else if (mode === "command" && first) {
        const tool = /^\s*\S+/.exec(line);
        if (tool) {
          out.push([at, at + tool[0].length, "tool"]);
          code(line.slice(tool[0].length), at + tool[0].length, out);
        }
      } else if (mode === "observation" && /^\[(?:File|Found)|^\((?:Current|Open|\d+ more)/.test(line)) {
        out.push([at, end, "meta"]);
      } else if (
        mode === "observation" &&
        /^(?:Traceback|\w*(?:Error|Exception)\b|E {3}|FAIL|FAILED|ERROR)/.test(line)
      ) {
        out.push([at, end, "error"]);
      } else if (mode === "observation" && /^(?:OK|PASS|PASSED)\b/.test(line)) {
        out.push([at, end, "good"]);
      } else if (numbered) {
        out.push([at, at + numbered[0].length, "meta"]);
        code(line.slice(numbered[0].length), at + numbered[0].length, out);
      } else if (mode !== "observation" || /^\s{2,}\S|[;{}()=]\s*$/.test(line)) code(line, at, out);
      first = false;
      at = end + 1;
    }
    return out;
  }

  return { ranges };
}
