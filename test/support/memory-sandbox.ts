// A sandbox of files in memory, for tests of what is above it. Its shell knows what the test teaches it.
import { posix } from "node:path";
import { SandboxFileError } from "../../lib/sandbox/errors.ts";
import type {
  ExecOptions,
  ExecResult,
  Sandbox,
  SandboxBackend,
  SandboxSpec,
  Snapshot,
} from "../../lib/sandbox/types.ts";

export type Shell = (
  command: string,
  sandbox: MemorySandbox,
  options: ExecOptions,
) => Partial<ExecResult> | Promise<Partial<ExecResult>>;

const snapshots = new Map<string, MemorySandbox>();

/** The sandbox that opens on a snapshot. */
export function openSnapshot(repository: string): MemorySandbox | undefined {
  return snapshots.get(repository);
}

export class MemorySandbox implements Sandbox {
  readonly workdir = "/repo";
  readonly files: Map<string, string>;
  readonly #before: Map<string, string>;
  readonly #shell: Shell;
  readonly commands: string[] = [];
  cwd = "/repo";
  closed = 0;
  /** Of a snapshot's copy: whether the snapshot is. */
  disposed = false;

  constructor(files: Readonly<Record<string, string>> = {}, shell: Shell = () => ({})) {
    this.files = new Map(Object.entries(files).map(([name, text]) => [posix.resolve("/repo", name), text]));
    this.#before = new Map(this.files);
    this.#shell = shell;
  }

  async exec(command: string, options: ExecOptions = {}): Promise<ExecResult> {
    this.commands.push(command);
    const answer = await this.#shell(command, this, options);
    this.cwd = answer.cwd ?? this.cwd;
    return { output: "", exitCode: 0, timedOut: false, droppedBytes: 0, cwd: this.cwd, ...answer };
  }

  async read(path: string): Promise<string> {
    const full = posix.resolve(this.workdir, path);
    const text = this.files.get(full);
    if (text !== undefined) return text;
    const folder = [...this.files.keys()].some((name) => name.startsWith(`${full}/`));
    throw new SandboxFileError(path, folder ? "Is a directory" : "No such file or directory");
  }

  async write(path: string, content: string): Promise<void> {
    this.files.set(posix.resolve(this.workdir, path), content);
  }

  /** Not a unified diff: names and new contents of what changed, which is all that these tests compare. */
  async diff(): Promise<string> {
    const changed = [...this.files].filter(([name, text]) => this.#before.get(name) !== text);
    return changed
      .sort()
      .map(([name, text]) => `${name}\n${text}`)
      .join("");
  }

  async snapshot(): Promise<Snapshot> {
    const copy = new MemorySandbox({}, this.#shell);
    for (const [path, text] of this.files) copy.files.set(path, text);
    for (const [path, text] of this.#before) copy.#before.set(path, text);
    const repository = `snapshot ${snapshots.size}`;
    snapshots.set(repository, copy);
    const dispose = async (): Promise<void> => {
      copy.disposed = true;
    };
    return { repository, dispose };
  }

  async close(): Promise<void> {
    this.closed++;
  }
}

/** Opens sandboxes in memory; `make` may throw to be a backend that is broken. */
export class MemoryBackend implements SandboxBackend {
  readonly name = "memory";
  readonly opened: MemorySandbox[] = [];
  peak = 0;
  readonly #make: (index: number, spec: SandboxSpec) => MemorySandbox;

  constructor(make: (index: number, spec: SandboxSpec) => MemorySandbox) {
    this.#make = make;
  }

  get stillOpen(): number {
    return this.opened.filter((sandbox) => sandbox.closed === 0).length;
  }

  async open(spec: SandboxSpec): Promise<MemorySandbox> {
    const sandbox = openSnapshot(spec.repository) ?? this.#make(this.opened.length, spec);
    this.opened.push(sandbox);
    this.peak = Math.max(this.peak, this.stillOpen);
    return sandbox;
  }

  async dispose(): Promise<void> {
    for (const sandbox of this.opened) await sandbox.close();
  }
}
