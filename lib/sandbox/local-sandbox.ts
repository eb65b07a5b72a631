// One sandbox on this machine: a private copy of a repository and a resident shell over it.
import { chmodSync, lchownSync, mkdirSync, readFileSync, unlinkSync } from "node:fs";
import { posix } from "node:path";
import { StringDecoder } from "node:string_decoder";
import { isTokenringError } from "../errors.ts";
import type { Base, BaseStore, SharedTree } from "./base.ts";
import { checkBaseCommand, diffCommand } from "./diff.ts";
import { SandboxFileError, sandboxBroken, sandboxClosed } from "./errors.ts";
import { quote } from "./host.ts";
import type { Launcher, Slot } from "./launcher.ts";
import { limitCommand, TREE_ENTRIES, TREE_FILES } from "./limits.ts";
import type { PathMapping } from "./on-host.ts";
import { readOwn, TEXT_BYTES, temporaryName, writeNew } from "./own-files.ts";
import { namesBelow, type PlainPath, readPlain, writePlain } from "./plain-files.ts";
import { ResidentShell, type ShellResult } from "./resident-shell.ts";
import { copyTree, listFiles, measureTree, removeTree, type TreeSize } from "./tree.ts";
import type { ExecOptions, ExecResult, Sandbox, SandboxLimits, Snapshot } from "./types.ts";

const INTERNAL_MS = 30_000;
const DIFF_MS = 60_000;
/** The index of the base twice, a text, and what else the host may put into a disk that is full. */
const SLACK_BYTES = 64 * 1024 * 1024;
/** SIGXCPU: the CPU limit's warning, which kills by default. */
const STATUS_CPU_LIMIT = 128 + 24;

export interface SandboxParts {
  launcher: Launcher;
  slot: Slot;
  base: Base;
  bases: BaseStore;
  workdir: string;
  limits: SandboxLimits;
  env: Readonly<Record<string, string>>;
  /** Size of the tree as it was opened. */
  start: TreeSize;
  /** What the tree lies over, where it is not a copy of its own. */
  shared: SharedTree | null;
  /** Whether the kernel keeps the files to their limit; else we look now and then. */
  ownDisk: boolean;
  git: string;
  /** Where programs inside see the tree, /tmp and the base. */
  inside: { workdir: string; tmp: string; base: string };
  mapping: PathMapping | null;
  /** What the kernel's count of the user's processes may come to; null leaves it. */
  userProcesses: number | null;
  /** A fresh host directory for a snapshot. */
  snapshotDirectory(): string;
  onClose(sandbox: LocalSandbox): void;
}

export class LocalSandbox implements Sandbox {
  readonly workdir: string;
  readonly #parts: SandboxParts;
  #shell: ResidentShell | undefined;
  #cwd: string;
  #queue: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | undefined;
  /** Whether the shell has run a command of the agent, and may be bent or have company. */
  #used = false;
  /** Whether every shell so far is known to have gone with all its processes. */
  #clean = true;
  /** Whether the disk has been made larger than the limit for what is ours. */
  #slack = false;
  readonly #disk: TreeSize;

  constructor(parts: SandboxParts) {
    this.#parts = parts;
    this.workdir = parts.workdir;
    this.#cwd = parts.inside.workdir;
    // The start is doubled since a file system rounds up to its blocks.
    const { bytes, entries } = parts.shared ? { bytes: 0, entries: 0 } : parts.start;
    this.#disk = {
      bytes: 2 * bytes + 4096 * entries + TREE_FILES * parts.limits.fileBytes,
      entries: entries + TREE_ENTRIES,
    };
  }

  /** Starts the shell; part of opening. */
  async start(signal?: AbortSignal): Promise<void> {
    this.#shell = await this.#startShell(signal);
  }

  exec(command: string, options: ExecOptions = {}): Promise<ExecResult> {
    return this.#inTurn(async () => {
      const { limits, mapping } = this.#parts;
      if (command.includes("\0")) {
        const output = "bash: a command cannot contain a NUL character\n";
        return { output, exitCode: 2, timedOut: false, droppedBytes: 0, cwd: this.#shown(this.#cwd) };
      }
      this.#used = true;
      await this.#takeSlack();
      const result = await this.#run(mapping ? mapping.inward(command) : command, {
        timeoutMs: options.timeoutMs ?? limits.commandMs,
        keep: limits.outputBytes,
        signal: options.signal,
      });
      if (result.directory !== null) this.#cwd = result.directory;
      const cpu = result.status === STATUS_CPU_LIMIT;
      const text = decode(result) + (result.end === "watch" ? "bash: Disk quota exceeded\n" : "");
      return {
        output: mapping ? mapping.outward(text) : text,
        exitCode: cpu ? null : result.status,
        timedOut: result.end === "timeout" || cpu,
        droppedBytes: result.dropped,
        cwd: this.#shown(this.#cwd),
      };
    });
  }

  read(path: string): Promise<string> {
    return this.#inTurn(async () => {
      const plain = this.#plain(path);
      const direct = plain && readPlain(plain);
      const text = direct && decodeUtf8(direct.bytes);
      if (text !== null) return text;
      const file = quote(this.#resolve(path));
      // Through a file of our own: what the agent left running may print at any time. read(1) fails at the end of a file
      // and succeeds at a NUL, which no text has.
      const bytes = await this.#withTemporary(Buffer.alloc(0), async (inside, outside) => {
        const command =
          `( if [[ -d ${file} ]]; then builtin exit 21; elif [[ ! -e ${file} ]]; then builtin exit 20; ` +
          `elif [[ ! -f ${file} ]]; then builtin exit 22; fi; ` +
          `IFS= builtin read -r -d '' __text <${file} && builtin exit 23; ` +
          `[[ -r ${file} ]] || builtin exit 24; builtin printf %s "$__text" >|${inside} ) >/dev/null 2>&1`;
        const options = { timeoutMs: INTERNAL_MS, keep: 0 };
        let result = await this.#run(command, options);
        if (this.#used && result.status !== 0 && !FILE_FAULTS[result.status ?? -1]) {
          // Nothing is wrong with the file: the agent has bent the shell, or filled the disk.
          await this.#dropShell();
          await this.#giveSlack();
          result = await this.#run(command, options);
        }
        const fault = FILE_FAULTS[result.status ?? -1];
        if (fault) throw new SandboxFileError(path, fault);
        const read = result.end === "done" && result.status === 0 ? readOwn(outside) : null;
        if (read === null) throw new SandboxFileError(path, "File too large");
        return read;
      });
      const decoded = decodeUtf8(bytes);
      if (decoded === null) throw new SandboxFileError(path, "Not UTF-8 text");
      return decoded;
    });
  }

  write(path: string, content: string): Promise<void> {
    return this.#inTurn(async () => {
      if (content.includes("\0"))
        throw new SandboxFileError(path, "A text file cannot contain a NUL character");
      const bytes = Buffer.from(content);
      if (bytes.length > Math.min(TEXT_BYTES, this.#parts.limits.fileBytes)) {
        throw new SandboxFileError(path, "File too large");
      }
      const plain = this.#plain(path);
      // What mode a new file gets is the shell's to say once the agent has spoken to it.
      if (plain && writePlain(plain, bytes, !this.#used)) return;
      const file = quote(this.#resolve(path));
      await this.#withTemporary(bytes, async (inside) => {
        const result = await this.#run(
          `( if [[ -d ${file} ]]; then builtin exit 21; elif [[ -e ${file} && ! -f ${file} ]]; then builtin exit 22; fi; ` +
            `IFS= builtin read -r -d '' __text <${inside} || :; builtin printf %s "$__text" >|${file} )`,
          { timeoutMs: INTERNAL_MS, keep: 4096 },
        );
        if (result.end === "done" && result.status === 0) return;
        // bash says it as "bash: line 1: a/b: No such file or directory".
        const said = result.output.toString("utf8").trim().split(": ").at(-1);
        throw new SandboxFileError(path, FILE_FAULTS[result.status ?? -1] ?? (said || "Cannot write"));
      });
    });
  }

  /**
   * See the contract. A tree that git cannot read within the limits, or with more than 8 MiB of changes, has the empty
   * diff: it holds no patch, and its maker knows why.
   */
  diff(): Promise<string> {
    return this.#inTurn(async () => {
      const { base, slot } = this.#parts;
      // In a shell that the agent never spoke to, after all that it left running has ended: nobody else writes the diff.
      if (this.#used) await this.#dropShell();
      const tracked = base.tracked;
      const files = tracked && listFiles(`${slot.files}/repo`, tracked.size + TREE_ENTRIES);
      const onlyTracked = files !== null && [...files].every((file) => tracked?.has(file));
      const ours = onlyTracked ? this.#plainDiff() : null;
      if (ours !== null && base.plain?.trusted) return ours;
      const gits = await this.#gitDiff(onlyTracked);
      if (ours !== null) base.plain?.compare(ours, gits);
      return gits;
    });
  }

  /** null where only git can tell. */
  #plainDiff(): string | null {
    const { base, slot } = this.#parts;
    const read = (path: string): ReturnType<typeof readPlain> =>
      readPlain({ root: `${slot.files}/repo`, names: path.split("/"), owner: slot.owner });
    return base.plain?.diff(read) ?? null;
  }

  async #gitDiff(onlyTracked: boolean): Promise<string> {
    const { base, inside, git } = this.#parts;
    const at = { git, base: inside.base, workdir: inside.workdir, commit: base.commit };
    const attempt = async (attributes: string | null): Promise<ShellResult> => {
      const run = (index: string | null, objects: string | null, emptyIndex: boolean): Promise<ShellResult> =>
        this.#run(diffCommand({ ...at, attributes, objects, index, emptyIndex }), {
          timeoutMs: DIFF_MS,
          keep: TEXT_BYTES,
        });
      if (onlyTracked) return run(null, null, false);
      const index = base.tracked === null ? null : readFileSync(`${base.directory}/index`);
      return this.#withTemporary(index, (path) =>
        this.#withTemporaryFolder((objects) => run(path, objects, index === null)),
      );
    };
    let result = await attempt(null);
    if (result.end !== "done" || result.status !== 0) {
      // Folders that the agent locked, or a disk that it filled: the tree is opened up.
      await this.#dropShell();
      await this.#giveSlack();
      await this.#unlock();
      result = await attempt(null);
    }
    if (result.end === "done" && result.status === 0) {
      if (result.dropped > 0) return "";
      const text = decodeUtf8(result.output);
      if (text !== null) return text;
      // Other encodings travel as git's binary patches, which are ASCII and exact.
      const binary = await this.#withTemporary(Buffer.from("* -diff\n"), attempt);
      return binary.dropped > 0 ? "" : binary.output.toString("utf8");
    }
    const sound = await this.#run(checkBaseCommand(at), { timeoutMs: INTERNAL_MS, keep: 0 });
    if (sound.status !== 0) {
      throw sandboxBroken(
        `git cannot read commit ${base.commit} of the sandbox's repository; is it complete?`,
      );
    }
    return "";
  }

  snapshot(): Promise<Snapshot> {
    return this.#inTurn(async () => {
      const { base, bases, slot, start } = this.#parts;
      const repository = this.#parts.snapshotDirectory();
      const limit = { bytes: this.#disk.bytes + start.bytes, entries: this.#disk.entries + start.entries };
      const copy = (): TreeSize => copyTree(`${slot.files}/repo`, repository, { limit });
      try {
        copy();
      } catch (error) {
        await removeTree(repository);
        if ((error as NodeJS.ErrnoException).code !== "EACCES") throw cannotCopy(error);
        // What the agent locked, an unprivileged host process cannot read either.
        await this.#unlock();
        try {
          copy();
        } catch (still) {
          await removeTree(repository);
          throw cannotCopy(still);
        }
      }
      bases.remember(repository, base);
      let disposing: Promise<void> | undefined;
      return {
        repository,
        dispose: () => {
          if (!disposing) {
            bases.forget(repository);
            disposing = removeTree(repository);
          }
          return disposing;
        },
      };
    });
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const { launcher, slot, base, bases, shared } = this.#parts;
    this.#shell?.killNow();
    // What was under way ends by that, and sees that the sandbox is closed.
    await this.#queue;
    await this.#dropShell();
    if (this.#clean) await launcher.release(slot).catch(() => undefined);
    if (shared) bases.giveBack(shared);
    bases.release(base);
    this.#parts.onClose(this);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue
      .then(() => {
        if (this.#closing) throw sandboxClosed();
        return work();
      })
      .catch((error: unknown) => {
        if (error instanceof SandboxFileError || isTokenringError(error)) throw error;
        // Our own files in it are gone: with the launcher goes what it mounted, before we hear of its death.
        throw sandboxBroken(`A sandbox's files cannot be reached: ${String(error)}`, { cause: error });
      });
    this.#queue = result.catch(() => undefined);
    return result;
  }

  /** Runs shell text, in a new shell where the last one is gone; kills the shell when the text does not end well. */
  async #run(
    command: string,
    options: { timeoutMs: number; keep: number; signal?: AbortSignal | undefined },
  ): Promise<ShellResult> {
    const { slot, launcher, ownDisk } = this.#parts;
    if (!this.#shell?.alive) {
      await this.#dropShell();
      this.#shell = await this.#startShell(options.signal);
    }
    const watch = async (): Promise<boolean> => {
      const size = measureTree(
        `${slot.files}/tmp`,
        this.#disk,
        measureTree(`${slot.files}/repo`, this.#disk),
      );
      if (size.bytes > this.#disk.bytes || size.entries > this.#disk.entries) return true;
      return size.bytes + (await launcher.heldBytes(slot)) > this.#disk.bytes;
    };
    try {
      const result = await this.#shell.run(command, { ...options, watch: ownDisk ? undefined : watch });
      if (this.#closing) throw sandboxClosed();
      if (result.end !== "done") await this.#dropShell();
      return result;
    } catch (error) {
      await this.#dropShell();
      throw error;
    }
  }

  async #startShell(signal?: AbortSignal): Promise<ResidentShell> {
    const { launcher, slot, base, inside, limits, env, userProcesses } = this.#parts;
    if (this.#closing) throw sandboxClosed();
    // An agent may have locked even these; nothing can start in a folder that cannot be entered.
    for (const name of ["repo", "tmp"]) chmodSync(`${slot.files}/${name}`, 0o755);
    const exports = Object.entries(env).map(([name, value]) => `export ${name}=${quote(value)}`);
    const prelude = [
      limitCommand(limits, userProcesses),
      ...exports,
      `{ cd -- ${quote(this.#cwd)} 2>/dev/null || cd -- ${quote(inside.workdir)}; }`,
    ].join(" && ");
    this.#used = false;
    try {
      return await ResidentShell.start(launcher, slot, {
        base: base.name,
        workdir: this.workdir,
        limits: { disk: this.#disk, memoryBytes: limits.memoryBytes, processes: limits.processes },
        prelude,
        signal,
      });
    } catch (error) {
      this.#clean = false;
      throw error;
    }
  }

  /** Makes the tree readable to its owner again. */
  async #unlock(): Promise<void> {
    const command = `command chmod -R u+rwX -- ${quote(this.#parts.inside.workdir)} 2>/dev/null`;
    await this.#run(command, { timeoutMs: DIFF_MS, keep: 0 });
  }

  async #dropShell(): Promise<void> {
    const shell = this.#shell;
    if (!shell) return;
    this.#shell = undefined;
    if (!(await shell.kill())) this.#clean = false;
  }

  /**
   * Puts `bytes` (null: just a name that is free) where the inside can read them, for as long as `use` runs. The file's
   * name cannot be foreseen and must not exist, and its folder is no link: nothing is followed out of the sandbox.
   */
  async #withTemporary<T>(
    bytes: Buffer | null,
    use: (inside: string, outside: string) => Promise<T>,
  ): Promise<T> {
    const { slot, inside } = this.#parts;
    const name = temporaryName();
    const path = `${slot.files}/tmp/${name}`;
    if (bytes !== null) await this.#inRoom(() => writeNew(path, bytes, slot.owner));
    try {
      return await use(`${inside.tmp}/${name}`, path);
    } finally {
      try {
        unlinkSync(path);
      } catch {
        // Never made, or taken away by the agent.
      }
    }
  }

  /** Does `work`, and again with more room where the agent has filled its disk. */
  async #inRoom(work: () => void): Promise<void> {
    try {
      work();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC" || this.#slack) throw error;
      await this.#giveSlack();
      work();
    }
  }

  /** As `#withTemporary`, an empty folder. */
  async #withTemporaryFolder<T>(use: (inside: string) => Promise<T>): Promise<T> {
    const { slot, inside } = this.#parts;
    const name = temporaryName();
    const path = `${slot.files}/tmp/${name}`;
    await this.#inRoom(() => mkdirSync(path, 0o700));
    if (slot.owner) lchownSync(path, slot.owner.uid, slot.owner.gid);
    try {
      return await use(`${inside.tmp}/${name}`);
    } finally {
      await removeTree(path);
    }
  }

  /** Room for what the host needs to put beside an agent's files, until the next command of the agent. */
  async #giveSlack(): Promise<void> {
    if (this.#slack || !this.#parts.ownDisk) return;
    this.#slack = true;
    const { bytes, entries } = this.#disk;
    await this.#parts.launcher.resize(this.#parts.slot, {
      bytes: bytes + SLACK_BYTES,
      entries: entries + 100,
    });
  }

  async #takeSlack(): Promise<void> {
    if (!this.#slack) return;
    // It stays where a file was written into it.
    await this.#parts.launcher.resize(this.#parts.slot, this.#disk).catch(() => undefined);
    this.#slack = false;
  }

  #resolve(path: string): string {
    if (path === "" || path.includes("\0")) throw new SandboxFileError(path, "No such file or directory");
    const absolute = posix.isAbsolute(path) ? path : `${this.workdir}/${path}`;
    return this.#parts.mapping ? this.#parts.mapping.inward(absolute) : absolute;
  }

  /** Where the host finds what `path` means inside, if it is of plain names below the tree or /tmp. */
  #plain(path: string): PlainPath | null {
    const { slot, inside } = this.#parts;
    const resolved = this.#resolve(path);
    for (const [folder, name] of [
      [inside.workdir, "repo"],
      [inside.tmp, "tmp"],
    ] as const) {
      const names = namesBelow(folder, resolved);
      if (names) return { root: `${slot.files}/${name}`, names, owner: slot.owner };
    }
    return null;
  }

  #shown(directory: string): string {
    return this.#parts.mapping ? this.#parts.mapping.outward(directory) : directory;
  }
}

/** Exit codes by which the shell text of `read` and `write` tells what is wrong. */
const FILE_FAULTS: Readonly<Record<number, string>> = {
  20: "No such file or directory",
  21: "Is a directory",
  22: "Not a regular file",
  23: "Binary file",
  24: "Permission denied",
};

function cannotCopy(error: unknown): Error {
  if (isTokenringError(error)) return error;
  return sandboxBroken(`The sandbox's tree cannot be copied: ${String(error)}`, { cause: error });
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** null where the bytes are not UTF-8. */
function decodeUtf8(bytes: Buffer): string | null {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

/** UTF-8 with replacement; a character that the limit cut in two is left out. */
function decode(result: ShellResult): string {
  return result.dropped > 0 ? new StringDecoder("utf8").write(result.output) : result.output.toString("utf8");
}
