// The command line as data: what `tokenring --help` shows, and the one place where an error becomes a message.
import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { isTokenringError } from "../errors.ts";
import { register as registerCompletion } from "./completion.ts";
import { register as registerDoctor } from "./doctor.ts";
import { register as registerEvaluate } from "./evaluate.ts";
import { register as registerExport } from "./export.ts";
import { examples } from "./options.ts";
import { register as registerPlan } from "./plan.ts";
import { register as registerReport } from "./report.ts";
import { register as registerRollout } from "./rollout.ts";
import { interruptedExitCode } from "./signals.ts";
import { register as registerSolve } from "./solve.ts";
import { register as registerTasks } from "./tasks.ts";
import { register as registerTrain } from "./train.ts";
import { register as registerWatch } from "./watch.ts";
import { register as registerWorker } from "./worker.ts";

/** Each command's module exports `register`, which adds it to the program. In the order of the help. */
const commands: readonly ((program: Command) => void)[] = [
  registerTrain,
  registerRollout,
  registerEvaluate,
  registerReport,
  registerWatch,
  registerSolve,
  registerExport,
  registerTasks,
  registerWorker,
  registerPlan,
  registerDoctor,
  registerCompletion,
];

/** A program that throws instead of ending the process. */
export function createProgram(): Command {
  const program = new Command("tokenring")
    .description(
      "Trains multi-turn, tool-using agents with reinforcement learning: rejection fine-tuning, then DAPO, " +
        "against real sandboxes and an inference engine.",
    )
    .version(packageVersion())
    .option("--verbose", "show the stack of an error (also: TOKENRING_DEBUG=1)")
    .showHelpAfterError("(tokenring --help shows what there is)")
    .configureHelp({ showGlobalOptions: true })
    .exitOverride();
  for (const register of commands) register(program);
  examples(
    program,
    [
      ["tokenring doctor", "what this machine can do, and the cure for the rest"],
      ["tokenring demo", "trains a small agent end to end, in minutes, without a GPU"],
      ["tokenring watch runs/demo-seed1", "looks at it while it trains"],
      ["tokenring train job.yaml", "your own job; recipes/tinyswe.yaml is one to start from"],
    ],
    "What a command takes, with examples: tokenring COMMAND --help.",
  );
  return program;
}

function packageVersion(): string {
  // The same path from lib/cli and from dist/cli.
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/**
 * Runs one command line and returns its exit code: 0, 1 for an error, 130 or 143 after a signal.
 * @param argv without node and the script
 */
export async function runCommand(
  argv: readonly string[],
  program: Command = createProgram(),
): Promise<number> {
  try {
    await program.parseAsync(argv, { from: "user" });
    // Commands that found a fault without throwing (doctor) set this.
    return Number(process.exitCode ?? 0);
  } catch (thrown) {
    const error = firstOf(thrown);
    if (error instanceof CommanderError) return error.exitCode;
    const stopped = interruptedExitCode();
    const aborted = isTokenringError(error, "ERR_TOKENRING_ABORTED") || isAbortError(error);
    const verbose =
      program.opts<{ verbose?: boolean }>().verbose === true || process.env.TOKENRING_DEBUG === "1";
    process.stderr.write(describeError(error, verbose));
    return stopped !== undefined && aborted ? stopped : 1;
  }
}

function isAbortError(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

/** What failed first, where closing what was open failed too. */
function firstOf(error: unknown): unknown {
  const isLater = error instanceof Error && error.name === "SuppressedError" && "suppressed" in error;
  return isLater ? firstOf(error.suppressed) : error;
}

/** One line for an error that tokenring means; the stack too for one that it does not, or when it is asked for. */
export function describeError(error: unknown, verbose: boolean): string {
  if (isTokenringError(error)) {
    if (verbose) return `tokenring: ${error.code}\n${stackOf(error)}\n`;
    return `tokenring: ${error.message}\n`;
  }
  if (!verbose && isAbortError(error)) return `tokenring: ${(error as Error).message}\n`;
  return `tokenring: an error that it does not know (please report it with this):\n${stackOf(error)}\n`;
}

/** The stack of an error and of what led to it. */
function stackOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const stack = error.stack ?? error.message;
  return error.cause === undefined ? stack : `${stack}\ncaused by: ${stackOf(error.cause)}`;
}
