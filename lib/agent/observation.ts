// What the agent is shown: printable, bounded, and ended by the shell prompt.

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
const SUSPECT = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/;
// CSI (colours, cursor moves), strings that end with BEL or ST (titles, links), and two-byte escapes.
const ESCAPES =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: terminal escapes start with one
  /(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b(?:[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: what is left is written as \xNN
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

/** Drops terminal escapes, turns carriage returns into newlines, and writes other control characters as \xNN. */
export function printable(text: string): string {
  if (!SUSPECT.test(text)) return text;
  return text
    .replace(/\r+\n/g, "\n")
    .replace(ESCAPES, "")
    .replace(/\r/g, "\n")
    .replace(CONTROLS, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

/** Cuts the middle out of a text longer than `limit` characters and says so; the result has at most `limit`. */
export function truncateMiddle(text: string, limit: number): string {
  if (text.length <= limit) return text;
  const notice = (cut: number): string => `\n[... ${cut} characters cut ...]\n`;
  // The notice's own length depends on the number in it; one digit more than now is always enough.
  const kept = Math.max(0, limit - notice(text.length).length);
  let head = Math.ceil(kept / 2);
  let tail = kept - head;
  if (isHighSurrogate(text, head - 1)) head--;
  if (isHighSurrogate(text, text.length - tail - 1)) tail--;
  return text.slice(0, head) + notice(text.length - head - tail) + text.slice(text.length - tail);
}

function isHighSurrogate(text: string, at: number): boolean {
  const unit = text.charCodeAt(at);
  return unit >= 0xd800 && unit < 0xdc00;
}

/** Characters of a path that the shell prompt shows. */
const PATH_CHARS = 256;

/** A path as one short line: names may hold anything. */
function shownPath(path: string): string {
  const line = printable(path).replaceAll("\n", "\\n");
  return line.length <= PATH_CHARS ? line : `${line.slice(0, PATH_CHARS)}...`;
}

/** The line that ends every observation. `file` is null when none is open. */
export function shellPrompt(directory: string, file: string | null): string {
  const open = file === null ? "none" : shownPath(file);
  return `(Current directory: ${shownPath(directory)}, current file: ${open}) bash-$`;
}
