// An agent on a bug of one's own: several attempts in sandboxes on a private copy, and the best of their patches.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { promptTokens } from "../agent/episode.ts";
import { Rollouts } from "../agent/rollouts.ts";
import type { EpisodeLimits, Exit, Trajectory, Turn } from "../agent/types.ts";
import type { ChatFormat, Tokenizer } from "../engine/tokenizer-types.ts";
import type { Engine } from "../engine/types.ts";
import { TokenringError } from "../errors.ts";
import { confidenceOf } from "../evaluate/confidence.ts";
import { localBackend } from "../sandbox/local.ts";
import type { SandboxBackend, SandboxLimits } from "../sandbox/types.ts";
import { provenLines } from "../tasks/log-parsers.ts";
import type { Instance, PromptTemplate, TestStatus } from "../tasks/types.ts";
import type { Verdict, Verification } from "../verify/types.ts";
import { verify } from "../verify/verify.ts";
import type { JobConfig } from "./config.ts";
import { type OwnRepository, privateCopy } from "./own-repository.ts";

/** What `solve` needs: an agent, the repository, the issue, and how much may be spent. */
export interface SolveOptions {
  engine: Engine;
  tokenizer: Tokenizer;
  chat: ChatFormat;
  /** How the issue is put, and the shell that answers: as the policy was trained with. */
  template: PromptTemplate;
  style: "full" | "compact";
  repository: OwnRepository;
  /** What is wrong, in words. */
  issue: string;
  limits: EpisodeLimits;
  /** Wall and CPU time of one command. Default 60 s. */
  commandMs?: number;
  /** Independent attempts, side by side. Default 1. */
  attempts?: number;
  /** Default 1; 0 is greedy, and attempts are then all the same. */
  temperature?: number;
  /** Decides every draw. Default 1. */
  seed?: number;
  /** A shell command that ends with 0 where the bug is mended; run on each patch in a fresh sandbox. */
  test?: string;
  /** Wall and CPU time of `test`. Default 600 s. */
  testMs?: number;
  /** Files and folders to copy although git does not follow them. */
  extra?: readonly string[];
  sandbox?: JobConfig["sandbox"]["kind"];
  signal?: AbortSignal;
  /** Told of every turn as it ends. `attempt` and `index` count from 0; a broken sandbox begins its attempt again. */
  onTurn?: (turn: Turn, at: { attempt: number; index: number }) => void;
  onAttempt?: (attempt: Attempt) => void;
  /** One line on what is weaker than it should be. */
  onWarning?: (message: string) => void;
}

/** One attempt of `solve`. */
export interface Attempt {
  /** From 0. */
  attempt: number;
  exit: Exit;
  /** "resolved" or "failed" by the test command; "not_run" without one, or without a patch. */
  verdict: Verdict;
  /** Why, as verification says. */
  reason: string | null;
  /** Unified git diff against the repository's commit; "" for none. */
  patch: string;
  turns: number;
  tokens: number;
  /** Mean logprob of what the agent said: how sure it was, in nats a token. */
  confidence: number;
}

/** What came of `solve`. */
export interface Solution {
  /** The chosen patch; "" where no attempt made one. */
  patch: string;
  /** The attempt that it is from; null for none. */
  chosen: number | null;
  attempts: Attempt[];
}

const TEST_MS = 600_000;

/** What builds and tests of real projects want, beyond what generated ones do. */
const SANDBOX: Partial<SandboxLimits> = {
  memoryBytes: 8 * 2 ** 30,
  fileBytes: 256 * 2 ** 20,
  processes: 256,
};

/** The issue as a row of SWE-bench: nothing is known of it but its text. */
function instanceOf({ repository, issue, test }: SolveOptions): Instance {
  return {
    instance_id: `${path.basename(repository.root)}-${repository.commit.slice(0, 12)}`,
    repo: path.basename(repository.root),
    base_commit: repository.commit,
    problem_statement: issue.trim(),
    hints_text: "",
    created_at: "",
    version: "",
    patch: "",
    test_patch: "",
    FAIL_TO_PASS: test === undefined ? [] : [test],
    PASS_TO_PASS: [],
  };
}

/** The user's test command as the one test of the instance: it passes where the command ends with 0. */
function testOf(command: string): {
  testCommand: (instance: Instance, nonce: string) => string;
  parseLog: (log: string, nonce: string) => Record<string, TestStatus>;
} {
  return {
    testCommand: (_, nonce) =>
      `( ( ${command}\n) </dev/null; code=$?; printf '\\n%s exit %s\\n' ${nonce} $code; exit $code )`,
    parseLog: (log, nonce) => ({
      [command]: /^exit 0$/m.test(provenLines(log, nonce)) ? "PASSED" : "FAILED",
    }),
  };
}

/** A test that cannot be run would fail every patch: found out before the first attempt. */
async function tryTest(
  command: string,
  copy: string,
  sandboxes: SandboxBackend,
  { testMs = TEST_MS, signal, onWarning }: SolveOptions,
): Promise<void> {
  const how = signal ? { signal } : {};
  const limits = { cpuSeconds: Math.ceil(testMs / 1000) };
  const sandbox = await sandboxes.open({ repository: copy, limits }, how);
  try {
    const run = await sandbox.exec(`( ${command}\n) </dev/null`, { timeoutMs: testMs, ...how });
    const said = run.output.trim().split("\n").at(-1) ?? "";
    // 126 and 127 are the shell's own: found and no program, and not found.
    const why = run.timedOut
      ? `takes longer than ${testMs / 1000} s`
      : run.exitCode === 126 || run.exitCode === 127
        ? `cannot be run in the sandbox (${said})`
        : null;
    if (why !== null) {
      throw new TokenringError(
        "ERR_TOKENRING_TASK",
        `the test "${command}" ${why}; a sandbox has the system's programs and the files of the commit, nothing else ` +
          "that git ignores unless it is named",
      );
    }
    if (run.exitCode === 0)
      onWarning?.(
        `"${command}" passes before any patch: it cannot show that the bug is mended, only that nothing broke`,
      );
  } finally {
    await sandbox.close();
  }
}

/** Resolved before others, handed in before cut off, then the surest. Null where nobody has a patch. */
function best(attempts: readonly Attempt[]): Attempt | null {
  const rank = ({ verdict, exit }: Attempt): number =>
    (verdict === "resolved" ? 2 : 0) + (exit === "submitted" ? 1 : 0);
  const able = attempts.filter(({ patch }) => patch.trim() !== "");
  return able.sort((a, b) => rank(b) - rank(a) || b.confidence - a.confidence)[0] ?? null;
}

function checkRoom(options: SolveOptions, instance: Instance): void {
  const { chat, template, engine, limits } = options;
  const prompt = promptTokens(chat, template, instance).length;
  const room = Math.min(limits.maxContext, engine.contextLimit);
  if (prompt < room) return;
  const cure =
    limits.maxContext < engine.contextLimit
      ? `give it a larger context (at most the model's, ${engine.contextLimit}) or shorten the issue`
      : "shorten the issue or take a model with a longer context";
  throw new TokenringError(
    "ERR_TOKENRING_TASK",
    `the issue with its prompt has ${prompt} tokens, and the context holds ${room}: no room to act; ${cure}`,
    { details: { prompt, room } },
  );
}

/**
 * Lets the agent try to mend what `issue` says, and chooses among its attempts. Writes nothing to the user's repository.
 * @throws ERR_TOKENRING_TASK when the issue is empty or leaves no room in the context; ERR_TOKENRING_SANDBOX;
 * ERR_TOKENRING_ABORTED.
 */
export async function solve(options: SolveOptions): Promise<Solution> {
  const { repository, limits, signal, test, seed = 1, attempts: count = 1, commandMs = 60_000 } = options;
  const instance = instanceOf(options);
  if (instance.problem_statement === "")
    throw new TokenringError("ERR_TOKENRING_TASK", "the issue is empty; say in words what is wrong");
  checkRoom(options, instance);
  const scratch = await mkdtemp(path.join(tmpdir(), "tokenring-solve-"));
  try {
    const copy = path.join(scratch, "repository");
    await privateCopy(repository, copy, options.extra);
    const kind = options.sandbox ?? "auto";
    const sandboxes = await localBackend({
      ...(kind === "auto" ? {} : { kind }),
      limits: SANDBOX,
      ...(options.onWarning ? { onWarning: options.onWarning } : {}),
    });
    try {
      if (test !== undefined) await tryTest(test, copy, sandboxes, options);
      const judge = async (patch: string, how: { signal: AbortSignal }): Promise<Verification> => {
        const nothing = { tests: {}, failToPass: 0, passToPass: 0, exitCode: null, log: "" };
        if (test === undefined) return { verdict: "not_run", reason: null, ...nothing };
        const tasks = { repository: async () => copy, ...testOf(test) };
        const timeoutMs = options.testMs ?? TEST_MS;
        return verify({ instance, tasks, patch, backend: sandboxes, timeoutMs, ...how });
      };
      const rollouts = new Rollouts({
        engine: options.engine,
        tokenizer: options.tokenizer,
        chat: options.chat,
        template: options.template,
        repository: async () => copy,
        sandboxes,
        sandbox: { limits: { commandMs, cpuSeconds: Math.ceil(commandMs / 1000) } },
        verify: (_, patch, how) => judge(patch, how),
        limits,
        workspace: { style: options.style },
        seed,
        episodes: count,
      });
      const [group] = await rollouts.collect({
        instances: [instance],
        rollouts: count,
        purpose: "solve",
        iteration: 0,
        temperature: options.temperature ?? 1,
        onTurn: (turn, { rollout, index }) => options.onTurn?.(turn, { attempt: rollout, index }),
        onTrajectory: (trajectory) => options.onAttempt?.(attemptOf(trajectory)),
        ...(signal ? { signal } : {}),
      });
      // A broken sandbox is an attempt too: it is told as what it is.
      const all = [...(group?.trajectories ?? []), ...(group?.dropped ?? [])];
      const attempts = all.map(attemptOf).sort((a, b) => a.attempt - b.attempt);
      const chosen = best(attempts);
      return { patch: chosen?.patch ?? "", chosen: chosen?.attempt ?? null, attempts };
    } finally {
      await sandboxes.dispose();
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

function attemptOf(trajectory: Trajectory): Attempt {
  const { rollout, exit, verdict, reason, patch, turns, tokens } = trajectory;
  return {
    attempt: rollout,
    exit,
    verdict,
    reason,
    patch,
    turns: turns.length,
    tokens: tokens.length,
    confidence: confidenceOf(trajectory, "mean_logprob"),
  };
}
