// The diff that nearly all are: one run of lines in files of plain text that are there. git's answer is known without
// starting git, which takes a sandbox of its own since it reads what an agent left.
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { TextDecoder } from "node:util";
import { gitDiff } from "../tasks/tinyswe/diff.ts";
import { blobHash } from "../tasks/tinyswe/git.ts";
import type { IndexEntry } from "./base.ts";

/** A larger tree, in files or characters, is git's to compare. */
const MOST_FILES = 64;
const MOST_TEXT = 64 * 1024;
/** So many objects and more make git write longer hashes. */
const MOST_OBJECTS = 8192;
const ABBREVIATION = 7;
const FILE_MODE = 0o100644;
const PROGRAM_MODE = 0o100755;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

interface PlainFile {
  text: string;
  executable: boolean;
}

/** What is known of a commit's files, to tell how the files of a tree differ. */
export class PlainBase {
  readonly #files: ReadonlyMap<string, PlainFile>;
  /** The one object whose hash begins so; null where there are several. */
  readonly #objects: ReadonlyMap<string, string | null>;
  /** Whether git has once said the same: its index then is the commit, and nothing here is beyond our knowledge. */
  #trusted: boolean | null = null;

  private constructor(files: ReadonlyMap<string, PlainFile>, objects: ReadonlyMap<string, string | null>) {
    this.#files = files;
    this.#objects = objects;
  }

  /**
   * @param git The base's git directory.
   * @returns null where the commit's files are not all plain, or not all to be found in `repository` as they were.
   */
  static of(
    repository: string,
    git: string,
    tracked: ReadonlyMap<string, IndexEntry> | null,
  ): PlainBase | null {
    if (tracked === null || tracked.size > MOST_FILES) return null;
    const files = new Map<string, PlainFile>();
    let left = MOST_TEXT;
    try {
      for (const [path, { mode, hash, flagged }] of tracked) {
        const plain = (mode === FILE_MODE || mode === PROGRAM_MODE) && !flagged;
        if (!plain || basename(path) === ".gitattributes") return null;
        const text = textOf(readFileSync(join(repository, path)));
        if (text === null || blobHash(text) !== hash) return null;
        left -= text.length;
        if (left < 0) return null;
        files.set(path, { text, executable: mode === PROGRAM_MODE });
      }
      const objects = objectsIn(join(git, "objects"));
      return objects && new PlainBase(files, objects);
    } catch {
      return null;
    }
  }

  /**
   * What `git diff` says of a tree that holds the commit's files and no others.
   * @param read A file of the tree; null where it is no plain one.
   * @returns null where git has to be asked, "" where nothing has changed.
   */
  diff(read: (path: string) => { bytes: Buffer; executable: boolean } | null): string | null {
    const before = new Map<string, string>();
    const after = new Map<string, string>();
    for (const [path, { text, executable }] of this.#files) {
      const file = read(path);
      const now = file && textOf(file.bytes);
      if (file === null || now === null || file.executable !== executable) return null;
      if (now === text) continue;
      const known = this.#isUnique(blobHash(text)) && this.#isUnique(blobHash(now));
      if (executable || !known || !/^[\w./-]+$/.test(path) || !hasOneDiff(text, now)) return null;
      before.set(path, text);
      after.set(path, now);
    }
    return gitDiff(before, after);
  }

  /** Whether what `diff` says may be taken for git's answer. */
  get trusted(): boolean {
    return this.#trusted === true;
  }

  /** Hears what git says of a tree of which `diff` said `ours`; once they differ, git is asked for ever. */
  compare(ours: string, gits: string): void {
    this.#trusted = this.#trusted !== false && ours === gits;
  }

  #isUnique(hash: string): boolean {
    const known = this.#objects.get(hash.slice(0, ABBREVIATION));
    return known === undefined || known === hash;
  }
}

/** Text that is lines and nothing else, or null. */
function textOf(bytes: Buffer): string | null {
  if (bytes.length === 0 || bytes.length > MOST_TEXT || bytes.at(-1) !== 0x0a || bytes.includes(0))
    return null;
  try {
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

/** The objects of a git directory by the beginnings of their hashes, or null where there are many. */
function objectsIn(directory: string): Map<string, string | null> | null {
  const hashes: string[] = [];
  for (const folder of readdirSync(directory)) {
    if (!/^[0-9a-f]{2}$/.test(folder)) continue;
    for (const name of readdirSync(join(directory, folder))) hashes.push(folder + name);
  }
  for (const name of readdirSync(join(directory, "pack"))) {
    if (!name.endsWith(".idx")) continue;
    // Version 2 (gitformat-pack): a magic number, 256 sums of which the last counts all, and the hashes.
    const index = readFileSync(join(directory, "pack", name));
    if (index.readUInt32BE(0) !== 0xff744f63 || index.readUInt32BE(4) !== 2) return null;
    const count = index.readUInt32BE(8 + 255 * 4);
    if (count > MOST_OBJECTS) return null;
    for (let i = 0; i < count; i++) hashes.push(index.toString("hex", 1032 + 20 * i, 1052 + 20 * i));
  }
  if (hashes.length > MOST_OBJECTS) return null;
  const objects = new Map<string, string | null>();
  for (const hash of hashes) {
    const beginning = hash.slice(0, ABBREVIATION);
    const other = objects.get(beginning);
    objects.set(beginning, other === undefined || other === hash ? hash : null);
  }
  return objects;
}

/**
 * Whether every shortest diff of the two is the same: between the lines that both begin and end with, no line is common,
 * and neither what goes nor what comes could as well stand a line higher or lower. And whether the heading of its hunk,
 * which git cuts by bytes, is plain ASCII.
 */
function hasOneDiff(before: string, after: string): boolean {
  const [old, now] = [before.split("\n"), after.split("\n")];
  let head = 0;
  while (head < old.length && head < now.length && old[head] === now[head]) head++;
  let tail = 0;
  while (tail < Math.min(old.length, now.length) - head && old.at(-1 - tail) === now.at(-1 - tail)) tail++;
  const goes = old.slice(head, old.length - tail);
  const comes = now.slice(head, now.length - tail);
  if (goes.length * comes.length > MOST_TEXT) return false;
  const [above, below] = [old[head - 1], old[old.length - tail]];
  const slides = [goes, comes].some(
    (run) => run.length > 0 && (run[0] === below || (head > 0 && run.at(-1) === above)),
  );
  const removed = new Set(goes);
  const plain = old.slice(0, head).every((line) => !/^[A-Za-z_$]/.test(line) || /^[\t\r -~]*$/.test(line));
  return !slides && plain && !comes.some((line) => removed.has(line));
}
