// The words of a tool call. The shell's quoting and here-documents, none of its expansions: what is typed is meant.

export interface ToolCall {
  name: string;
  /** Words after the name, quotes taken off. */
  argv: string[];
  /** Lines of a here-document; null when there is none. */
  heredoc: string[] | null;
  /** Lines that follow the command line. */
  rest: string[];
}

export type ParsedCall = { call: ToolCall } | { error: string };

const BLANK = /[ \t\r]/;
const ESCAPED_IN_DOUBLE = '"\\$`';

/** The first word of a command, as far as it is plain. */
export function firstWord(command: string): string {
  return /^\s*([^\s"'\\|&;<>()$`]*)/.exec(command)?.[1] ?? "";
}

/**
 * Splits `name word "word two" 'word three'`. Quotes may hold newlines; the command line ends at the first newline
 * outside quotes. `<< 'END'` or `<< END` takes the lines up to one that is END.
 */
export function parseCall(command: string): ParsedCall {
  const text = command.replace(/^\s+/, "");
  const words: string[] = [];
  let word: string | null = null;
  let delimiter: string | null = null;
  let dropTabs = false;
  let i = 0;
  /** Whether the word being read is the delimiter of a here-document. */
  let readsDelimiter = false;

  const finish = (): void => {
    if (word === null) return;
    if (readsDelimiter) {
      delimiter = word;
      readsDelimiter = false;
    } else {
      words.push(word);
    }
    word = null;
  };

  for (; i < text.length; i++) {
    const c = text.charAt(i);
    if (c === "\n") break;
    if (BLANK.test(c)) {
      finish();
    } else if (c === "'") {
      const end = text.indexOf("'", i + 1);
      if (end < 0) return { error: "a single quote (') is never closed" };
      word = (word ?? "") + text.slice(i + 1, end);
      i = end;
    } else if (c === '"') {
      let value = "";
      let j = i + 1;
      for (; j < text.length && text.charAt(j) !== '"'; j++) {
        const next = text.charAt(j + 1);
        if (text.charAt(j) === "\\" && next !== "" && ESCAPED_IN_DOUBLE.includes(next)) j++;
        value += text.charAt(j);
      }
      if (j >= text.length) return { error: 'a double quote (") is never closed' };
      word = (word ?? "") + value;
      i = j;
    } else if (c === "\\" && i + 1 < text.length && text.charAt(i + 1) !== "\n") {
      word = (word ?? "") + text.charAt(++i);
    } else if (c === "<" && text.charAt(i + 1) === "<" && word === null) {
      if (delimiter !== null || readsDelimiter) return { error: "there is more than one here-document" };
      readsDelimiter = true;
      i++;
      if (text.charAt(i + 1) === "-") {
        dropTabs = true;
        i++;
      }
    } else {
      word = (word ?? "") + c;
    }
  }
  finish();
  if (readsDelimiter) return { error: "<< needs a word that marks the end, as in << 'EOF'" };

  const name = words.shift() ?? "";
  const lines = i < text.length ? text.slice(i + 1).split("\n") : [];
  if (delimiter === null) return { call: { name, argv: words, heredoc: null, rest: lines } };

  const body: string[] = [];
  for (const [index, line] of lines.entries()) {
    const content = dropTabs ? line.replace(/^\t+/, "") : line;
    if (content === delimiter) {
      const after = lines.slice(index + 1).join("\n");
      if (after.trim() !== "") return { error: `there is text after the here-document's end (${delimiter})` };
      return { call: { name, argv: words, heredoc: body, rest: [] } };
    }
    body.push(content);
  }
  return { error: `the here-document is never closed by a line ${delimiter}` };
}

/** Takes known options out of the words: `flags` stand alone, `values` take the next word or `=value`. */
export function takeOptions(
  argv: readonly string[],
  known: { flags?: readonly string[]; values?: readonly string[] },
): { positional: string[]; flags: Set<string>; values: Map<string, string> } | { error: string } {
  const positional: string[] = [];
  const flags = new Set<string>();
  const values = new Map<string, string>();
  let open = true;
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] as string;
    const [name, ...value] = word.split("=") as [string, ...string[]];
    if (open && word === "--") {
      open = false;
    } else if (open && known.flags?.includes(word)) {
      flags.add(word);
    } else if (open && known.values?.includes(name)) {
      const given = value.length > 0 ? value.join("=") : argv[++i];
      if (given === undefined) return { error: `${name} needs a value` };
      values.set(name, given);
    } else {
      positional.push(word);
    }
  }
  return { positional, flags, values };
}

const INTERACTIVE = new Set(
  "vi vim nvim nano emacs pico ed less more most man htop watch screen tmux ssh telnet ftp gdb pdb ipython".split(
    " ",
  ),
);
/** These wait for input when they are started with nothing to do. */
const INTERPRETERS = /^(python[0-9.]*|node|bash|sh|zsh|irb|ruby|perl|sqlite3|mysql|psql)$/;

/** The program of a shell command that would wait for a person to type, or null. Looks at its first line only. */
export function interactiveProgram(command: string): string | null {
  const line = /^[^\n]*/.exec(command.trimStart())?.[0] ?? "";
  // Quoted text is no command; the letter keeps it a word.
  const bare = line.replace(/'[^']*'|"(?:[^"\\]|\\.)*"/g, "x");
  const segments = bare.split(/(\|\||&&|[|;&])/);
  for (let i = 0; i < segments.length; i += 2) {
    const words = (segments[i] as string).trim().split(/\s+/);
    while (words[0] !== undefined && (/^\w+=/.test(words[0]) || words[0] === "sudo" || words[0] === "env"))
      words.shift();
    const program = words[0]?.split("/").at(-1) ?? "";
    if (INTERACTIVE.has(program)) return program;
    const fed = segments[i - 1] === "|" || /</.test(segments[i] as string);
    if (INTERPRETERS.test(program) && !fed && words.slice(1).every((word) => /^-(i|u|q|B|I)$/.test(word)))
      return program;
    if (
      program === "tail" &&
      words.slice(1).some((word) => word === "-f" || word === "-F" || word === "--follow")
    ) {
      return "tail -f";
    }
  }
  return null;
}

/** The first of `names` that a shell command calls behind another command of its first line, or null. */
export function toolInside(command: string, names: ReadonlyMap<string, unknown>): string | null {
  const line = /^[^\n]*/.exec(command.trimStart())?.[0] ?? "";
  const bare = line.replace(/'[^']*'|"(?:[^"\\]|\\.)*"/g, "x");
  const [, ...later] = bare.split(/\|\||&&|[|;&]/).map((segment) => segment.trim().split(/\s+/)[0] ?? "");
  return later.find((word) => names.has(word)) ?? null;
}
