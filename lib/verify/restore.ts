// What a patch may not bring to its own judgement: tests, and files that decide how tests are found and run.
import { posix } from "node:path";
import type { Instance } from "../tasks/types.ts";
import { type TouchedFile, touchedFiles } from "./patch-files.ts";

/** What datasets in the SWE-bench schema count as tests: by the folder and by the name. */
const TEST_FOLDER = /(?:^|\/)(?:tests?|e2e)\//;
const TEST_FILE = /(?:^|\/)(?:test_[^/]*|[^/]*_tests?|tests)\.py$/;
/** Read by Python or by test runners before any test, whatever the tests say. */
const RUNNER_FILE =
  /(?:^|\/)(?:conftest\.py|\.?pytest\.ini|\.?pytest\.toml|tox\.ini|setup\.cfg|sitecustomize\.py|usercustomize\.py|[^/]*\.pth)$/;

/**
 * The files of `patch` that verification puts back as they were (or takes away where they are new). What the gold
 * patch touches stays, and so does what lies beside it in a folder of tests: that is part of the solution there.
 */
export function filesToRestore(instance: Pick<Instance, "patch">, patch: string): TouchedFile[] {
  const gold = touchedFiles(instance.patch).map(({ path }) => path);
  const solved = new Set(gold);
  const folders = new Set(gold.map((path) => posix.dirname(path)));
  return touchedFiles(patch).filter(({ path }) => {
    if (solved.has(path)) return false;
    if (RUNNER_FILE.test(path) || TEST_FILE.test(path)) return true;
    return TEST_FOLDER.test(path) && !folders.has(posix.dirname(path));
  });
}
