// The patch that nearly all are: lines of plain files that are there, as `git diff` wrote it against these very files. What
// git would make of it is known without starting git: the patch names the hash of each file before and after.
import { lstatSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { TextDecoder } from "node:util";
import { blobHash } from "../tasks/tinyswe/git.ts";

/** A larger file is git's to patch. */
const BYTES = 256 * 1024;

/** The four lines before the hunks of a file. */
const HEAD =
  /^diff --git a\/([\w.-]+(?:\/[\w.-]+)*) b\/\1\nindex ([0-9a-f]{7,40})\.\.([0-9a-f]{7,40}) 100644\n--- a\/\1\n\+\+\+ b\/\1$/;
const HUNK = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: |$)/;
const CONTEXT = 3;
/** What is said of a repository that git made and nobody gave a setting. */
const NO_SETTINGS =
  /^(?:\s*(?:\[core\]|repositoryformatversion = 0|(?:filemode|bare|logallrefupdates) = (?:true|false))?\s*\n)*$/;
/** Space at the end of a line, or before a tab where it begins: git warns of it. */
const BAD_SPACE = /[ \t\v\f]$|^[ \t]* \t/;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * The content of each file that `patch` changes, after it; null where only git can tell what becomes of it.
 * @param repository Where the files lie as they were.
 */
export function plainlyPatched(patch: string, repository: string): Map<string, string> | null {
  if (patch.includes("\r") || patch.includes("\0") || !patch.endsWith("\n")) return null;
  const lines = patch.slice(0, -1).split("\n");
  const files = new Map<string, string>();
  for (let at = 0; at < lines.length; ) {
    const head = HEAD.exec(lines.slice(at, at + 4).join("\n"));
    const [, path = "", before = "", after = ""] = head ?? [];
    const old = head === null || files.has(path) ? null : plainFile(repository, path);
    if (old === null || !blobHash(old).startsWith(before)) return null;
    const patched = applyHunks(lines, at + 4, old);
    if (patched === null || !blobHash(patched.text).startsWith(after)) return null;
    files.set(path, patched.text);
    at = patched.end;
  }
  return hasNoSettings(repository) ? files : null;
}

/** Text of a file that git would take and give back as it is, or null. */
function plainFile(repository: string, path: string): string | null {
  const names = path.split("/");
  if (names.some((name) => name === "." || name === ".." || name.toLowerCase() === ".git")) return null;
  try {
    for (let folder = posix.dirname(path); ; folder = posix.dirname(folder)) {
      if (folder !== "." && !lstatSync(join(repository, folder)).isDirectory()) return null;
      if (lstatSync(join(repository, folder, ".gitattributes"), { throwIfNoEntry: false })) return null;
      if (folder === ".") break;
    }
    const file = join(repository, path);
    const stat = lstatSync(file);
    // With the rights that git gives to a file that it writes.
    const plain = stat.isFile() && (stat.mode & 0o7777) === (0o666 & ~process.umask());
    if (!plain || stat.size === 0 || stat.size > BYTES) return null;
    const text = utf8.decode(readFileSync(file));
    return text.endsWith("\n") && !text.includes("\0") && !text.includes("\r") ? text : null;
  } catch {
    return null;
  }
}

function hasNoSettings(repository: string): boolean {
  try {
    const git = join(repository, ".git");
    if (lstatSync(join(git, "info", "attributes"), { throwIfNoEntry: false })) return false;
    return NO_SETTINGS.test(readFileSync(join(git, "config"), "utf8"));
  } catch {
    return false;
  }
}

/** `old` after the hunks that stand in `patch` from line `at` on, and where they end; null where one does not fit. */
function applyHunks(patch: readonly string[], at: number, old: string): { text: string; end: number } | null {
  const lines = old.slice(0, -1).split("\n");
  const made: string[] = [];
  let taken = 0;
  let end = at;
  for (let hunk = HUNK.exec(patch[end] ?? ""); hunk !== null; hunk = HUNK.exec(patch[end] ?? "")) {
    const [from = 0, count = 0, newFrom = 0, newCount = 0] = hunk.slice(1).map((part) => Number(part ?? 1));
    if (from <= taken) return null;
    made.push(...lines.slice(taken, from - 1));
    taken = from - 1;
    if (made.length !== newFrom - 1) return null;
    let [leading, trailing] = [0, 0];
    let changed = false;
    for (end++; taken < from - 1 + count || made.length < newFrom - 1 + newCount; end++) {
      const line = patch[end] ?? "";
      const [sign, text] = [line[0], line.slice(1)];
      if (sign !== " " && sign !== "-" && sign !== "+") return null;
      // It has to stand where it is said to: else git looks elsewhere.
      if (sign !== "+" && lines[taken++] !== text) return null;
      if (sign !== "-") made.push(text);
      if (sign === "+" && BAD_SPACE.test(text)) return null;
      changed ||= sign !== " ";
      trailing = sign === " " ? trailing + 1 : 0;
      if (!changed) leading++;
    }
    if (taken !== from - 1 + count || made.length !== newFrom - 1 + newCount || !changed) return null;
    // With less context git tries whether the hunk stands at the beginning or the end of the file.
    if (leading < CONTEXT && from !== 1) return null;
    if (trailing < CONTEXT && taken !== lines.length) return null;
  }
  if (end === at) return null;
  made.push(...lines.slice(taken));
  // Of an empty line at the end git warns.
  return made.length === 0 || made.at(-1) === "" ? null : { text: `${made.join("\n")}\n`, end };
}
