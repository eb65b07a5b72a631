// What a row of SWE-bench must hold, beyond its types, to be a task that can be tried and judged.
import type { Instance } from "./types.ts";

/** The row's faults in words, none where it is sound. Whether its patch mends anything takes a sandbox: `checkTask`. */
export function rowFaults(row: Instance): string[] {
  const faults: string[] = [];
  const expect = (fine: boolean, fault: string): void => {
    if (!fine) faults.push(fault);
  };
  for (const key of ["instance_id", "problem_statement", "version"] as const)
    expect(row[key].trim() !== "", `${key} is empty`);
  expect(/^[\w.-]+\/[\w.-]+$/.test(row.repo), `repo is "${row.repo}", not owner/name`);
  expect(/^[0-9a-f]{40}$/.test(row.base_commit), `base_commit is "${row.base_commit}", not a commit's hash`);
  expect(!Number.isNaN(Date.parse(row.created_at)), `created_at is "${row.created_at}", not a date`);
  for (const key of ["patch", "test_patch"] as const)
    expect(row[key].startsWith("diff --git ") && row[key].endsWith("\n"), `${key} is no git diff`);
  expect(row.FAIL_TO_PASS.length > 0, "FAIL_TO_PASS is empty: nothing would show that the bug is mended");
  const tests = [...row.FAIL_TO_PASS, ...row.PASS_TO_PASS];
  const twice = [...new Set(tests.filter((test, i) => tests.indexOf(test) < i))];
  expect(twice.length === 0, `FAIL_TO_PASS and PASS_TO_PASS name a test twice: ${twice.join(", ")}`);
  return faults;
}
