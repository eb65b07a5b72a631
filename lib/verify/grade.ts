// The SWE-bench rule: from test statuses to a verdict.
import type { Instance, TestStatus } from "../tasks/types.ts";

export interface Grade {
  resolved: boolean;
  /** Share of the list that passes; an empty list counts as 1. */
  failToPass: number;
  passToPass: number;
}

/**
 * Resolved when every FAIL_TO_PASS and PASS_TO_PASS test is PASSED or XFAIL. A test that is missing has failed. A
 * skipped FAIL_TO_PASS test has failed, a skipped PASS_TO_PASS test is maintained.
 */
export function grade(
  instance: Pick<Instance, "FAIL_TO_PASS" | "PASS_TO_PASS">,
  tests: Readonly<Record<string, TestStatus>>,
): Grade {
  const share = (ids: readonly string[], passing: readonly (TestStatus | undefined)[]): number =>
    ids.length === 0 ? 1 : ids.filter((id) => passing.includes(statusOf(id, tests))).length / ids.length;
  const failToPass = share(instance.FAIL_TO_PASS, ["PASSED", "XFAIL"]);
  const passToPass = share(instance.PASS_TO_PASS, ["PASSED", "XFAIL", "SKIPPED"]);
  return { resolved: failToPass === 1 && passToPass === 1, failToPass, passToPass };
}

/**
 * Ids with spaces in their parameters were cut at the first space when the lists were made; such an id (an open
 * bracket that is never closed) stands for all tests that it begins, if they agree.
 */
function statusOf(id: string, tests: Readonly<Record<string, TestStatus>>): TestStatus | undefined {
  if (Object.hasOwn(tests, id)) return tests[id];
  if (id.split("[").length <= id.split("]").length) return undefined;
  const found = new Set(Object.keys(tests).flatMap((name) => (name.startsWith(id) ? [tests[name]] : [])));
  return found.size === 1 ? [...found][0] : undefined;
}
