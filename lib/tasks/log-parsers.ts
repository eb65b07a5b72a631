// From what a test runner printed to the status of each test. The lists of a row (FAIL_TO_PASS, PASS_TO_PASS) were made
// by parsers with these very quirks (cut at the first space, "- reason" taken off failures only), so they are kept.
import { TokenringError } from "../errors.ts";
import type { TestStatus } from "./types.ts";

export type LogParser = (log: string) => Record<string, TestStatus>;

const STATUSES: readonly TestStatus[] = ["FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL"];

/** What Python's str.split() parts words at; JavaScript's \s differs in the control characters. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are the point.
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;

function words(line: string): string[] {
  return line.split(SPACE).filter((word) => word !== "");
}

function isStatus(word: string | undefined): word is TestStatus {
  return (STATUSES as readonly (string | undefined)[]).includes(word);
}

/** `STATUS id ...` of one line as [id, status], or null. */
function statusFirst(line: string): [string, TestStatus] | null {
  if (!STATUSES.some((status) => line.startsWith(status))) return null;
  const [status, id] = words(line.startsWith("FAILED") ? line.replaceAll(" - ", " ") : line);
  // "ERRORS", "PASSED:" and the like begin with a status and are none; such an entry could satisfy nobody.
  return id !== undefined && isStatus(status) ? [id, status] : null;
}

function collect(
  log: string,
  read: (line: string) => readonly [string, TestStatus] | null,
): Record<string, TestStatus> {
  const found = log.split("\n").map(read);
  // fromEntries also takes an id such as "__proto__" for what it is; the last line on an id counts.
  return Object.fromEntries(found.filter((entry) => entry !== null));
}

/** The lines that begin with the nonce, without it. */
export function provenLines(log: string, nonce: string): string {
  const lines = log.split("\n").filter((line) => line.startsWith(`${nonce} `));
  return lines.map((line) => line.slice(nonce.length + 1)).join("\n");
}

/** Lines `STATUS id`, as `pytest -rA` sums up. */
export function parseLogPytest(log: string): Record<string, TestStatus> {
  return collect(log, statusFirst);
}

/** As `parseLogPytest`; a parameter that is an absolute path becomes "/" and its last part, since the rest is the machine's. */
export function parseLogPytestOptions(log: string): Record<string, TestStatus> {
  return collect(log, (line) => {
    const found = statusFirst(line);
    const parts = found && /^(.*?)\[(.*)\]/.exec(found[0]);
    if (!parts) return found;
    const [, name = "", option = ""] = parts;
    const path = option.startsWith("/") && !option.startsWith("//") && !option.includes("*");
    return [`${name}[${path ? `/${option.slice(option.lastIndexOf("/") + 1)}` : option}]`, found[1]];
  });
}

/** As `parseLogPytest` behind colours and control characters, and also lines `id STATUS`, as old `pytest -v` prints. */
export function parseLogPytestV2(log: string): Record<string, TestStatus> {
  return collect(log, (line) => {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: terminal escapes are what is taken off.
    const plain = line.replace(/\[\d+m/g, "").replace(/[\x01-\x1f]/g, "");
    if (STATUSES.some((status) => plain.startsWith(status))) return statusFirst(plain);
    if (!STATUSES.some((status) => plain.endsWith(status))) return null;
    const [id, status] = words(plain);
    return id !== undefined && isStatus(status) ? [id, status] : null;
  });
}

/** As `parseLogPytest`, with matplotlib's mouse buttons by their numbers, as the lists have them. */
export function parseLogMatplotlib(log: string): Record<string, TestStatus> {
  return parseLogPytest(log.replaceAll("MouseButton.LEFT", "1").replaceAll("MouseButton.RIGHT", "3"));
}

/** Lines `STATUS id`, and `id PASSED ...` of a verbose run. */
export function parseLogSeaborn(log: string): Record<string, TestStatus> {
  return collect(log, (line) => {
    const first = statusFirst(line);
    if (first) return first;
    const [id, status] = words(line);
    return id !== undefined && status === "PASSED" ? [id, status] : null;
  });
}

const DJANGO: readonly (readonly [RegExp, TestStatus])[] = [
  [/^(.*?) \.\.\. +(?:ok|OK)$/, "PASSED"],
  [/^(.*?) \.\.\. skipped/, "SKIPPED"],
  [/^(.*?) \.\.\. expected failure$/, "XFAIL"],
  [/^(.*?) \.\.\. FAIL$/, "FAILED"],
  [/^(.*?) \.\.\. ERROR$/, "ERROR"],
  [/^FAIL: (\S+(?: \([^)]*\))?)/, "FAILED"],
  [/^ERROR: (\S+(?: \([^)]*\))?)/, "ERROR"],
];

/**
 * Lines `test_name (module.Class) ... ok` of Django's runner. A result may stand on a later line, when the test printed
 * something; a test with a docstring goes by the docstring, as in the lists.
 */
export function parseLogDjango(log: string): Record<string, TestStatus> {
  let pending: string | null = null;
  return collect(log, (line) => {
    const text = line.trimEnd();
    for (const [pattern, status] of DJANGO) {
      const id = pattern.exec(text)?.[1];
      if (id === undefined) continue;
      pending = null;
      return [id.trim(), status];
    }
    if (pending !== null && /(?:^|\s)ok$/.test(text)) {
      const id = pending;
      pending = null;
      return [id, "PASSED"];
    }
    const begun = / \.\.\. ?/.exec(text);
    if (begun && begun.index > 0) pending = text.slice(0, begun.index);
    return null;
  });
}

/** Lines `test_name ok|F|E` of SymPy's runner, and its headings `____ path.py:test_name ____` of failures. */
export function parseLogSympy(log: string): Record<string, TestStatus> {
  const letters: Readonly<Record<string, TestStatus>> = { ok: "PASSED", F: "FAILED", E: "ERROR" };
  return collect(log, (line) => {
    const heading = /^_+ (.*\.py):(\S+) _+$/.exec(line);
    if (heading) return [`${heading[1]}:${heading[2]}`, "FAILED"];
    if (!line.startsWith("test_")) return null;
    const parts = words(line);
    const status = letters[parts.at(-1) as string];
    return status && parts.length > 1 ? [parts[0] as string, status] : null;
  });
}

/** By the names that SWE-rebench rows use (`install_config.log_parser`). */
export const LOG_PARSERS: Readonly<Record<string, LogParser>> = {
  parse_log_pytest: parseLogPytest,
  parse_log_pytest_options: parseLogPytestOptions,
  parse_log_pytest_v2: parseLogPytestV2,
};

/** @throws ERR_TOKENRING_TASK for a name that is not in `LOG_PARSERS`. */
export function logParser(name: string): LogParser {
  const parser = Object.hasOwn(LOG_PARSERS, name) ? LOG_PARSERS[name] : undefined;
  if (parser) return parser;
  throw new TokenringError(
    "ERR_TOKENRING_TASK",
    `Unknown log parser "${name}"; there are ${Object.keys(LOG_PARSERS).join(", ")}.`,
  );
}
