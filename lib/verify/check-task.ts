// Whether a task is one: its row is sound, its gold patch resolves it, and without a patch its tests fail as it says.
import { rowFaults } from "../tasks/row.ts";
import type { Instance } from "../tasks/types.ts";
import { touchedFiles } from "./patch-files.ts";
import type { Verification } from "./types.ts";
import { type VerifyOptions, verify } from "./verify.ts";

/** A patch that mends nothing. The empty one is never run, and so would prove nothing of the tests. */
const NOTHING =
  "diff --git a/mends-nothing.txt b/mends-nothing.txt\nnew file mode 100644\n--- /dev/null\n" +
  "+++ b/mends-nothing.txt\n@@ -0,0 +1 @@\n+nothing\n";

/**
 * The task's faults in words; none where it is sound. Runs its tests three times at most, each in a fresh sandbox.
 * @throws ERR_TOKENRING_ABORTED when `signal` aborts; what `tasks` throws.
 */
export async function checkTask(options: Omit<VerifyOptions, "patch">): Promise<string[]> {
  const { instance } = options;
  const faults = rowFaults(instance);
  const tested = new Set(touchedFiles(instance.test_patch).map(({ path }) => path));
  for (const { path } of touchedFiles(instance.patch))
    if (tested.has(path)) faults.push(`patch and test_patch both change ${path}`);

  const empty = await verify({ ...options, patch: "" });
  if (empty.verdict !== "not_run") faults.push(`the empty patch is ${empty.verdict}, not_run was expected`);
  const gold = await verify({ ...options, patch: instance.patch });
  if (gold.verdict !== "resolved")
    faults.push(`the gold patch does not resolve it: ${described(gold, instance)}`);
  const without = await verify({ ...options, patch: NOTHING });
  if (without.verdict !== "failed" || without.reason !== "tests_failed")
    faults.push(`a patch that mends nothing is ${described(without, instance)}`);
  const { FAIL_TO_PASS, PASS_TO_PASS } = instance;
  const passing = FAIL_TO_PASS.filter((test) => without.tests[test] === "PASSED");
  if (passing.length > 0) faults.push(`of FAIL_TO_PASS these pass without a patch: ${passing.join(", ")}`);
  const failing = PASS_TO_PASS.filter((test) => without.tests[test] !== "PASSED");
  if (without.verdict === "failed" && failing.length > 0)
    faults.push(`of PASS_TO_PASS these fail without a patch: ${failing.join(", ")}`);
  return faults;
}

function described({ verdict, reason, tests, log }: Verification, instance: Instance): string {
  const failed = [...instance.FAIL_TO_PASS, ...instance.PASS_TO_PASS].filter(
    (test) => tests[test] !== "PASSED",
  );
  if (reason === "tests_failed") return `${verdict}, not passed: ${failed.join(", ")}`;
  const last = log.trim().split("\n").at(-1) ?? "";
  return `${verdict}${reason === null ? "" : `, ${reason}`}${last === "" ? "" : ` (${last})`}`;
}
