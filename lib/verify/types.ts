// Patch and tests in, verdict out.
import type { TestStatus } from "../tasks/types.ts";

/** not_run: there was nothing to run (no patch) or the sandbox failed; see `reason`. */
export type Verdict = "resolved" | "failed" | "not_run";

/** A verdict, why it is that, and what the tests said. */
export interface Verification {
  verdict: Verdict;
  /** "empty_patch", "patch_failed", "tests_failed", "invalid_run", "timeout", "infra_failed" or null when resolved. */
  reason: "empty_patch" | "patch_failed" | "tests_failed" | "invalid_run" | "timeout" | "infra_failed" | null;
  tests: Record<string, TestStatus>;
  /** Share of FAIL_TO_PASS and PASS_TO_PASS tests that pass. */
  failToPass: number;
  passToPass: number;
  exitCode: number | null;
  log: string;
}
