// Where commands run. A backend opens sandboxes; a sandbox holds one private copy of a repository.

/** Where commands can run on this machine; "auto" is the strongest that works and isolates. */
export const SANDBOX_KINDS = ["auto", "namespaces", "bubblewrap", "landlock", "unsafe-host"] as const;

export interface SandboxLimits {
  /** Wall time of one command. */
  commandMs: number;
  /** CPU time of one command; what an agent can observe is limited by this, wall time is only the net. */
  cpuSeconds: number;
  /** Bytes of output kept of one command; the rest is counted and dropped. */
  outputBytes: number;
  memoryBytes: number;
  processes: number;
  fileBytes: number;
}

/** What a sandbox is opened on. */
export interface SandboxSpec {
  /** Host directory whose content (a git repository) is copied; it is never written to. */
  repository: string;
  /** Where the copy appears inside. */
  workdir?: string;
  limits?: Partial<SandboxLimits>;
  env?: Readonly<Record<string, string>>;
}

export interface ExecOptions {
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** What a command came to. */
export interface ExecResult {
  /** stdout and stderr as they came, cut at `outputBytes`. */
  output: string;
  /** null when the command was killed at a limit. */
  exitCode: number | null;
  timedOut: boolean;
  /** Bytes that were dropped. */
  droppedBytes: number;
  /** Working directory after the command; `cd` persists between commands. */
  cwd: string;
}

/** A repository as it stood; usable as the `repository` of a later sandbox. */
export interface Snapshot {
  readonly repository: string;
  dispose(): Promise<void>;
}

/** Throws ERR_TOKENRING_SANDBOX when the sandbox itself is broken: the caller retries elsewhere, it is no verdict. */
export interface Sandbox {
  readonly workdir: string;
  /** Runs in a resident shell; working directory and exported variables persist. A killed shell is started again. */
  exec(command: string, options?: ExecOptions): Promise<ExecResult>;
  /** UTF-8 text. Paths are absolute inside the sandbox or relative to `workdir`. */
  read(path: string): Promise<string>;
  write(path: string, content: string): Promise<void>;
  /**
   * Unified git diff of the working tree against the commit that it was opened on, new untracked files included, ignored
   * files left out. Ends what commands left running, and the shell with its variables: nobody else writes the diff.
   */
  diff(): Promise<string>;
  snapshot(): Promise<Snapshot>;
  close(): Promise<void>;
}

/** Opens sandboxes of one kind. */
export interface SandboxBackend {
  /** "namespaces", "bubblewrap", "landlock", "container", "kubernetes", "unsafe-host". */
  readonly name: string;
  open(spec: SandboxSpec, options?: { signal?: AbortSignal }): Promise<Sandbox>;
  /** Closes every sandbox that is still open. */
  dispose(): Promise<void>;
}
