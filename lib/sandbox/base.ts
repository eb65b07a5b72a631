// The commit that a sandbox starts from, kept where no agent can write, so that a diff means the same whatever became
// of the sandbox's own .git.
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { TokenringError } from "../errors.ts";
import { PlainBase } from "./plain-diff.ts";
import { copyTree, finishDirectory, measureTree, type Owner, removeTree, type TreeSize } from "./tree.ts";

export interface Base {
  /** Below the store's directory; a git directory with the base's objects, its index and nothing else. */
  readonly name: string;
  readonly directory: string;
  readonly commit: string;
  /** The index by its paths, or null where there is none that we can read. */
  readonly tracked: ReadonlyMap<string, IndexEntry> | null;
  /** For diffs without git, where that goes. */
  readonly plain: PlainBase | null;
}

/** What an index says of a file. */
export interface IndexEntry {
  mode: number;
  hash: string;
  /** Whether it is anything but an ordinary entry: in conflict, assumed to be unchanged, left out of the tree. */
  flagged: boolean;
}

const KEPT_BASES = 256;

/**
 * A tree beyond this is not copied for every sandbox: all share one copy, and an overlay takes the changes of each. Below
 * it a copy is cheaper than the overlay; see docs/sandbox.md.
 */
export const LARGE_TREE: Readonly<TreeSize> = { bytes: 8 * 1024 * 1024, entries: 300 };

/** A copy of a repository that sandboxes share, never written to. */
export interface SharedTree {
  readonly directory: string;
  readonly size: TreeSize;
}

interface SharedUse {
  users: number;
  /** Whether it goes with its last user. */
  doomed: boolean;
}

/** Bases by repository and commit, since many sandboxes open the same instance. */
export class BaseStore {
  readonly #parent: string;
  readonly #bases = new Map<string, Base>();
  readonly #users = new Map<Base, number>();
  /** The bases of snapshots, by the snapshot's directory. */
  readonly #origins = new Map<string, Base>();
  /** By repository and state of its index, or the snapshot's directory; null where the tree is small. */
  readonly #shared = new Map<string, SharedTree | null>();
  readonly #sharedUses = new Map<string, SharedUse>();
  #count = 0;

  constructor(parent: string) {
    this.#parent = parent;
  }

  /**
   * The base of `repository` as it is now; give it back by `release`.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT when it is no git repository with a commit of its own.
   */
  acquire(repository: string): Base {
    const base = this.#origins.get(repository) ?? this.#lookUp(repository);
    this.#users.set(base, (this.#users.get(base) ?? 0) + 1);
    return base;
  }

  release(base: Base): void {
    this.#users.set(base, (this.#users.get(base) ?? 1) - 1);
    for (const [key, old] of this.#bases) {
      if (this.#bases.size <= KEPT_BASES) return;
      if (this.#users.get(old)) continue;
      this.#bases.delete(key);
      this.#users.delete(old);
      void removeTree(old.directory);
      for (const [state, tree] of this.#shared) {
        if (!state.startsWith(`${key}\0`)) continue;
        this.#shared.delete(state);
        if (tree) this.#doom(tree.directory);
      }
    }
  }

  /**
   * The tree that sandboxes on `repository` share, where it is large; give it back by `giveBack`. A repository is taken to
   * be the same while its commit, its index and the entries of its top folder are.
   */
  share(repository: string, base: Base, inside: string, owner: Owner | undefined): SharedTree | null {
    const key = this.#origins.has(repository) ? repository : stateOf(repository, base);
    let tree = this.#shared.get(key);
    if (tree === undefined) {
      tree = null;
      if (isLarge(repository)) {
        const directory = join(this.#parent, `tree-${this.#count++}`);
        tree = { directory, size: this.copy(repository, directory, inside, owner) };
      }
      this.#shared.set(key, tree);
    }
    if (tree) this.#useOf(tree.directory).users++;
    return tree;
  }

  giveBack(tree: SharedTree): void {
    const use = this.#useOf(tree.directory);
    use.users--;
    if (use.doomed) this.#doom(tree.directory);
  }

  #useOf(directory: string): SharedUse {
    const use = this.#sharedUses.get(directory) ?? { users: 0, doomed: false };
    this.#sharedUses.set(directory, use);
    return use;
  }

  #doom(directory: string): void {
    const use = this.#useOf(directory);
    use.doomed = true;
    if (use.users > 0) return;
    this.#sharedUses.delete(directory);
    void removeTree(directory);
  }

  /**
   * Copies `repository` to `target`. What is committed is not copied but borrowed from the base, which the inside finds
   * at `inside`: opening costs the same however long the history is. A snapshot borrows already.
   */
  copy(repository: string, target: string, inside: string, owner: Owner | undefined): TreeSize {
    if (this.#origins.has(repository)) return copyTree(repository, target, { owner });
    const size = copyTree(repository, target, { owner, omit: [".git", "objects"] });
    const objects = join(target, ".git", "objects");
    const alternates = join(objects, "info", "alternates");
    for (const path of [objects, join(objects, "info"), join(objects, "pack")]) mkdirSync(path);
    writeFileSync(alternates, `${inside}/objects\n`);
    if (owner) chownSync(alternates, owner.uid, owner.gid);
    for (const path of [join(objects, "info"), join(objects, "pack"), objects]) finishDirectory(path, owner);
    finishDirectory(join(target, ".git"), owner);
    return size;
  }

  /** Lets sandboxes that open `snapshot` start from `base`. */
  remember(snapshot: string, base: Base): void {
    this.#origins.set(snapshot, base);
    this.#users.set(base, (this.#users.get(base) ?? 0) + 1);
  }

  forget(snapshot: string): void {
    const base = this.#origins.get(snapshot);
    if (base && this.#origins.delete(snapshot)) this.release(base);
    const tree = this.#shared.get(snapshot);
    this.#shared.delete(snapshot);
    if (tree) this.#doom(tree.directory);
  }

  #lookUp(repository: string): Base {
    const commit = readHead(repository);
    const key = `${repository}\0${commit}`;
    const base = this.#bases.get(key) ?? this.#make(repository, commit);
    // The most recently used stands last.
    this.#bases.delete(key);
    this.#bases.set(key, base);
    return base;
  }

  #make(repository: string, commit: string): Base {
    const name = String(this.#count++);
    const directory = join(this.#parent, name);
    const git = join(repository, ".git");
    mkdirSync(join(directory, "refs"), { recursive: true });
    mkdirSync(join(directory, "info"));
    for (const path of [directory, join(directory, "refs"), join(directory, "info")]) chmodSync(path, 0o755);
    copyTree(join(git, "objects"), join(directory, "objects"));
    writeFileSync(join(directory, "HEAD"), `${commit}\n`);
    writeFileSync(join(directory, "config"), "[core]\n\trepositoryformatversion = 0\n\tbare = false\n");
    for (const file of ["index", "info/exclude", "shallow"]) {
      if (!existsSync(join(git, file))) continue;
      copyFileSync(join(git, file), join(directory, file));
      chmodSync(join(directory, file), 0o644);
    }
    const index = join(directory, "index");
    const tracked = existsSync(index) ? readIndex(readFileSync(index)) : null;
    return { name, directory, commit, tracked, plain: PlainBase.of(repository, directory, tracked) };
  }
}

function stateOf(repository: string, base: Base): string {
  const time = (path: string): number => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  return [repository, base.commit, time(join(repository, ".git", "index")), time(repository)].join("\0");
}

/** What git keeps is not copied, so it does not count. */
function isLarge(repository: string): boolean {
  const size: TreeSize = { bytes: 0, entries: 0 };
  for (const name of readdirSync(repository)) {
    if (name !== ".git") measureTree(join(repository, name), LARGE_TREE, size);
  }
  return size.bytes > LARGE_TREE.bytes || size.entries > LARGE_TREE.entries;
}

/** The commit that HEAD of a repository names, read without starting git. */
export function readHead(repository: string): string {
  const refuse = (why: string): TokenringError =>
    new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `Cannot open a sandbox on ${repository}: ${why}.`);
  const read = (name: string): string | null => {
    try {
      return readFileSync(join(repository, ".git", name), "utf8");
    } catch {
      return null;
    }
  };
  const head = read("HEAD")?.trim();
  if (head === undefined) throw refuse("it has no .git folder; make it a git repository with one commit");
  if (read("objects/info/alternates") !== null) {
    throw refuse(
      "it borrows objects of another repository; run `git repack -a -d` and remove its alternates",
    );
  }
  const branch = /^ref: (refs\/\S+)$/.exec(head)?.[1];
  const commit = branch
    ? (read(branch)?.trim() ??
      read("packed-refs")
        ?.split("\n")
        .find((line) => line.endsWith(` ${branch}`))
        ?.slice(0, 40))
    : head;
  if (!commit || !/^[0-9a-f]{40}$/.test(commit)) throw refuse("its HEAD names no (SHA-1) commit");
  return commit;
}

/** The entries of a git index of version 2 or 3 (Documentation/gitformat-index), else null. */
export function readIndex(index: Buffer): Map<string, IndexEntry> | null {
  if (index.length < 12 || index.toString("latin1", 0, 4) !== "DIRC") return null;
  const version = index.readUInt32BE(4);
  if (version !== 2 && version !== 3) return null;
  const entries = new Map<string, IndexEntry>();
  let offset = 12;
  for (let left = index.readUInt32BE(8); left > 0; left--) {
    if (offset + 62 > index.length) return null;
    const extended = (index.readUInt16BE(offset + 60) & 0x4000) !== 0;
    const start = offset + (extended ? 64 : 62);
    const end = index.indexOf(0, start);
    if (end < 0) return null;
    entries.set(index.toString("utf8", start, end), {
      mode: index.readUInt32BE(offset + 24),
      hash: index.toString("hex", offset + 40, offset + 60),
      // Below them stands the length of the name.
      flagged: index.readUInt16BE(offset + 60) > 0xfff,
    });
    // Each entry is padded with one to eight NULs to a multiple of eight bytes.
    offset += (end - offset + 8) & ~7;
  }
  return entries;
}
