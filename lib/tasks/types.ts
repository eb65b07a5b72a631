// Who has the problem. A row has the SWE-bench schema; a task set knows its repositories and how to test them.

/** A SWE-bench / SWE-rebench row. Lists are lists here, also where a file stores them as JSON strings. */
export interface Instance {
  instance_id: string;
  repo: string;
  base_commit: string;
  problem_statement: string;
  hints_text: string;
  created_at: string;
  version: string;
  /** Gold patch, unified git diff. */
  patch: string;
  test_patch: string;
  FAIL_TO_PASS: string[];
  PASS_TO_PASS: string[];
  environment_setup_commit?: string;
  /** What the task set knows beyond the schema (tinyswe: split, difficulty, kind, families of the bugs). */
  meta?: Readonly<Record<string, unknown>>;
}

export type TestStatus = "PASSED" | "FAILED" | "ERROR" | "SKIPPED" | "XFAIL";

/** The text that the agent meets: one template per task set, so that it fits the context. */
export interface PromptTemplate {
  name: string;
  system?: string;
  /** First user message. */
  opening(instance: Instance): string;
}

/** Instances, and all that is needed to act on them and to judge what was done. */
export interface TaskSet {
  readonly name: string;
  readonly train: readonly Instance[];
  readonly heldOut: readonly Instance[];
  /** More held-out instances, by name: each set is reported by itself and counts in no other number. */
  readonly apart?: Readonly<Record<string, readonly Instance[]>>;
  readonly template: PromptTemplate;
  /** Programs that commands find by name in a sandbox, beside `python` (default: all the system's). */
  readonly programs?: readonly string[];
  /** Host directory of a pristine git repository at base_commit: no remotes, no future history. */
  repository(instance: Instance): Promise<string>;
  /**
   * Shell command that runs the instance's tests (verification), in the repository's root. `nonce` is drawn anew for each
   * verification: a command that gives it to its runner alone, on standard input, and prints it before every line that
   * counts, prints lines that the code under test cannot make up.
   */
  testCommand(instance: Instance, nonce: string): string;
  /** The status of each test; with a command that knows the nonce, of lines that bear it (`provenLines`). */
  parseLog(log: string, nonce: string, instance: Instance): Record<string, TestStatus>;
}
