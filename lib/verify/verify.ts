// Patch and tests in, verdict out: the patch is applied to a fresh copy, the tests are put in place and run.
import { randomBytes } from "node:crypto";
import { isTokenringError, TokenringError, whoAborted } from "../errors.ts";
import { SandboxFileError } from "../sandbox/errors.ts";
import { quote } from "../sandbox/host.ts";
import type { Sandbox, SandboxBackend } from "../sandbox/types.ts";
import type { Instance, TaskSet, TestStatus } from "../tasks/types.ts";
import { grade } from "./grade.ts";
import { type TouchedFile, touchedFiles } from "./patch-files.ts";
import { plainlyPatched } from "./plain-patch.ts";
import { filesToRestore } from "./restore.ts";
import type { Verification } from "./types.ts";

export interface VerifyOptions {
  instance: Instance;
  tasks: Pick<TaskSet, "repository" | "testCommand" | "parseLog">;
  /** Unified git diff against base_commit. */
  patch: string;
  backend: SandboxBackend;
  /** Wall and CPU time of the test command; default is SWE-bench's 1800 s. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** Fresh sandboxes to try before a broken one is believed. */
const ATTEMPTS = 3;
const DEFAULT_TIMEOUT_MS = 1_800_000;
const APPLY_MS = 60_000;
const LOG_BYTES = 4 * 1024 * 1024;

/** Inside .git, where neither a patch nor a listing of the tree reaches. */
const MODEL_PATCH = ".git/model.patch";
const TEST_PATCH = ".git/test.patch";
const PATCH_FAILED_STATUS = 64;

/** A header line that names something in .git, where a hook or a setting would be run as a program. */
const GIT_PATH =
  /^(?:diff --git|---|\+\+\+|rename (?:from|to)|copy (?:from|to)|Index:) (?:.*[\s"/])?\.git(?:[/"\s]|$)/m;
/** What git believes of a file that is there is not the repository's to say: `checkout` has to see that it was changed. */
const GIT =
  "git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.checkStat=default -c core.trustctime=true";

/**
 * Verifies a patch by the SWE-bench rule (see `grade`). A broken sandbox is retried and then reported as
 * `not_run`/`infra_failed`.
 * @throws ERR_TOKENRING_ABORTED when `signal` aborts; what `tasks` throws.
 */
export async function verify(options: VerifyOptions): Promise<Verification> {
  const { patch, signal } = options;
  if (patch.trim() === "") return nothing("not_run", "empty_patch", "");
  let broken = "";
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (signal?.aborted) {
      throw new TokenringError("ERR_TOKENRING_ABORTED", `verification: ${whoAborted(signal.reason)}`, {
        cause: signal.reason,
      });
    }
    try {
      return await verifyOnce(options);
    } catch (error) {
      if (!isTokenringError(error, "ERR_TOKENRING_SANDBOX")) throw error;
      broken = error.message;
    }
  }
  return nothing("not_run", "infra_failed", broken);
}

async function verifyOnce(options: VerifyOptions): Promise<Verification> {
  const { instance, tasks, patch, backend, signal } = options;
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  const open = signal ? { signal } : {};
  const repository = await tasks.repository(instance);
  const sandbox = await backend.open(
    {
      repository,
      limits: { cpuSeconds: Math.ceil(timeoutMs / 1000), outputBytes: LOG_BYTES },
    },
    open,
  );
  try {
    const plain = await writePlain(sandbox, repository, instance, patch);
    const applied = plain ?? (await applyPatches(sandbox, instance, patch, open));
    if (!applied.applied) return nothing("failed", "patch_failed", applied.log);
    // A command of its own: its output and its exit status are the tests' alone, and nothing can print an end to them.
    const nonce = randomBytes(16).toString("hex");
    const run = await sandbox.exec(tasks.testCommand(instance, nonce), { timeoutMs, ...open });
    // Each verification draws its own: the log says the same each time without it.
    const shown = run.output.replaceAll(`${nonce} `, "").replaceAll(nonce, "");
    const log = `${applied.log}>>>>> Start Test Output\n${shown}\n>>>>> End Test Output\n`;
    const tests = tasks.parseLog(run.output, nonce, instance);
    const { resolved, failToPass, passToPass } = grade(instance, tests);
    const shares = { tests, failToPass, passToPass, exitCode: run.exitCode, log };
    if (run.timedOut) return { verdict: "failed", reason: "timeout", ...shares };
    if (run.exitCode !== 0 && !hasFailure(tests)) {
      // The runner says that something failed and no test did: the lines are not the runner's.
      return { verdict: "failed", reason: "invalid_run", ...shares, failToPass: 0, passToPass: 0 };
    }
    return resolved
      ? { verdict: "resolved", reason: null, ...shares }
      : { verdict: "failed", reason: "tests_failed", ...shares };
  } finally {
    await sandbox.close();
  }
}

/**
 * Does by itself what `applyPatches` would come to, where that is plain and there is nothing to put back: git is started
 * three times for it. Null where it is not.
 */
async function writePlain(
  sandbox: Sandbox,
  repository: string,
  instance: Instance,
  patch: string,
): Promise<{ applied: true; log: string } | null> {
  const model = plainlyPatched(withNewline(patch), repository);
  if (model === null || filesToRestore(instance, patch).length > 0) return null;
  const hasTests = instance.test_patch.trim() !== "";
  const tests = hasTests ? plainlyPatched(withNewline(instance.test_patch), repository) : new Map();
  if (tests === null || [...tests.keys()].some((path) => model.has(path))) return null;
  let log = "";
  for (const files of [model, tests]) {
    for (const [path, content] of files) await sandbox.write(path, content);
    // What git says of it.
    for (const path of files.keys()) log += `Checking patch ${path}...\n`;
    for (const path of files.keys()) log += `Applied patch ${path} cleanly.\n`;
  }
  return { applied: true, log };
}

/** The model's patch, then the tests and their settings as they were, then the test patch; one command. */
async function applyPatches(
  sandbox: Sandbox,
  instance: Instance,
  patch: string,
  open: { signal?: AbortSignal },
): Promise<{ applied: boolean; log: string }> {
  try {
    await sandbox.write(MODEL_PATCH, withNewline(patch));
  } catch (error) {
    // Larger than any file may be, or no text.
    if (!(error instanceof SandboxFileError)) throw error;
    return { applied: false, log: `${error.message}\n>>>>> Patch Apply Failed\n` };
  }
  if (GIT_PATH.test(patch)) {
    return { applied: false, log: "the patch reaches into .git\n>>>>> Patch Apply Failed\n" };
  }
  const fail = `exit ${PATCH_FAILED_STATUS}`;
  const steps = [
    `{ ${GIT} apply --verbose ${MODEL_PATCH} || ${GIT} apply --verbose --reject ${MODEL_PATCH} || ` +
      `patch --batch --fuzz=5 -p1 -i ${MODEL_PATCH} || ${fail}; }`,
  ];
  const putBack = (files: readonly TouchedFile[]): void => {
    const before = files.filter((file) => !file.added).map((file) => quote(file.path));
    // A program is started only for what is in the way: new files, and what git would not write over.
    for (const { path, added } of files) {
      const file = quote(path);
      const fits = added ? `! -e ${file}` : `-f ${file}`;
      steps.push(`[[ ${fits} && ! -L ${file} ]] || rm -rf -- ${file}`);
    }
    // The repository stands at base_commit, and no patch can move HEAD.
    if (before.length > 0) steps.push(`${GIT} checkout --quiet HEAD -- ${before.join(" ")} || ${fail}`);
  };
  putBack(filesToRestore(instance, patch));
  if (instance.test_patch.trim() !== "") {
    await sandbox.write(TEST_PATCH, withNewline(instance.test_patch));
    putBack(touchedFiles(instance.test_patch));
    // It fits the tree that the dataset has: where it does not go in, the model's patch stands in its way, and the tests
    // as they were must not be asked instead.
    steps.push(`${GIT} apply --verbose ${TEST_PATCH} || ${fail}`);
  }
  // The code under test is not to read there what it should return. Emptied: to remove them takes a program.
  steps.push(`: >|${MODEL_PATCH}`, `: >|${TEST_PATCH}`);
  const result = await sandbox.exec(`( ${steps.join("\n")} )`, { timeoutMs: APPLY_MS, ...open });
  const applied = result.exitCode !== null && result.exitCode !== PATCH_FAILED_STATUS;
  return { applied, log: applied ? result.output : `${result.output}>>>>> Patch Apply Failed\n` };
}

function hasFailure(tests: Readonly<Record<string, TestStatus>>): boolean {
  return Object.values(tests).some((status) => status === "FAILED" || status === "ERROR");
}

function nothing(
  verdict: "failed" | "not_run",
  reason: "empty_patch" | "patch_failed" | "infra_failed",
  log: string,
): Verification {
  return { verdict, reason, tests: {}, failToPass: 0, passToPass: 0, exitCode: null, log };
}

/** git calls a patch that does not end in a line end corrupt. */
function withNewline(patch: string): string {
  return patch.endsWith("\n") ? patch : `${patch}\n`;
}
