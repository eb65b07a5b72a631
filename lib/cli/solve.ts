// `tokenring solve`: a trained agent on a bug of one's own repository. The patch goes to stdout, the conversation to
// stderr; with --json both are JSON Lines on stdout.
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { text } from "node:stream/consumers";
import { type Command, Option } from "commander";
import { printable } from "../agent/observation.ts";
import type { Turn } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import type { LimitsConfig } from "../run/config.ts";
import type { Attempt, Solution } from "../run/solve.ts";
import { SANDBOX_KINDS } from "../sandbox/types.ts";
import { givenPath, positiveNumber, temperature, wholeNumber } from "./options.ts";
import { commandSignal } from "./signals.ts";

interface SolveCommandOptions {
  repo: string;
  issue?: string;
  model?: string;
  checkpoint?: string;
  attempts: number;
  temperature: number;
  seed: number;
  test?: string;
  testSeconds: number;
  with: string[];
  maxTurns?: number;
  maxContext?: number;
  maxActionTokens?: number;
  commandSeconds?: number;
  seconds?: number;
  sandbox?: (typeof SANDBOX_KINDS)[number];
  apply?: boolean;
  out?: string;
  json?: boolean;
  quiet?: boolean;
}

/** Where no run says how its agent was trained: a model of the size that works on real repositories. */
const LIMITS: Omit<LimitsConfig, "maxContext"> = {
  maxTurns: 40,
  maxActionTokens: 4096,
  observationChars: 16_384,
  episodeSeconds: 3600,
  commandSeconds: 60,
  autoSubmit: true,
};

function refuse(message: string, cause?: unknown): TokenringError {
  return new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message, cause === undefined ? {} : { cause });
}

/** The runs below runs/ here that have a checkpoint, newest first: what a user may have meant. */
async function runsHere(): Promise<string[]> {
  const names = await readdir("runs").catch(() => []);
  const found = await Promise.all(
    names.map(async (name) => {
      const run = path.join("runs", name);
      const made = await stat(path.join(run, "checkpoints", "latest")).catch(() => null);
      return made ? [{ run, at: made.mtimeMs }] : [];
    }),
  );
  return found
    .flat()
    .sort((a, b) => b.at - a.at)
    .map(({ run }) => run);
}

/** What the options leave out and nothing can stand in for. */
async function required({ issue, model }: SolveCommandOptions): Promise<{ issue: string; model: string }> {
  if (issue === undefined)
    throw refuse("no issue: give --issue FILE, a text that says what is wrong (- reads standard input)");
  if (model === undefined) {
    const here = (await runsHere()).slice(0, 3).join(", ");
    throw refuse(
      "no model: give --model PATH, a run of tokenring train or demo, one of its checkpoints, or the directory of a model" +
        (here === "" ? "" : ` (here: ${here})`),
    );
  }
  return { issue, model };
}

async function readIssue(file: string): Promise<string> {
  if (file === "-") return text(process.stdin);
  try {
    return await readFile(file, "utf8");
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw refuse(
      `--issue ${file}: cannot be read (${code}); give a text file that says what is wrong`,
      cause,
    );
  }
}

const many = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;

/** What a model or a repository says is text: no terminal may obey it. */
const shown = (value: string): string => printable(value).trimEnd();

function describeTurn({ text: said, observation }: Turn, attempt: number, index: number, of: number): string {
  const who = of === 1 ? "" : `attempt ${attempt + 1}, `;
  const answer = observation === "" ? "" : `\n${shown(observation).replaceAll(/^/gm, "  | ")}`;
  return `--- ${who}turn ${index + 1}\n${shown(said)}${answer}\n`;
}

function describeAttempt({ attempt, exit, verdict, patch, turns, confidence }: Attempt): string {
  const ends: Record<Attempt["exit"], string> = {
    submitted: "submitted",
    turn_limit: "out of turns (--max-turns)",
    context_limit: "out of context (--max-context)",
    timeout: "out of time (--seconds)",
    infra_failed: "its sandbox broke",
  };
  const lines = patch === "" ? 0 : patch.split("\n").filter((line) => /^[+-](?![+-]{2} )/.test(line)).length;
  const tests = verdict === "not_run" ? "" : verdict === "resolved" ? ", test passes" : ", test fails";
  const what = patch.trim() === "" ? "no patch" : `patch of ${many(lines, "line")}${tests}`;
  return `attempt ${attempt + 1}: ${ends[exit]} after ${many(turns, "turn")}, ${what}, ${confidence.toFixed(3)} nats a token\n`;
}

async function run(options: SolveCommandOptions): Promise<void> {
  const { issue: issueFile, model } = await required(options);
  const issue = await readIssue(issueFile);
  const { ownRepository, applyPatch } = await import("../run/own-repository.ts");
  const repository = await ownRepository(options.repo);
  const [{ findAgent, openAgent }, { solve }, { episodeLimits }, { contextLength }, { embeddedEngine }] =
    await Promise.all([
      import("../run/agent.ts"),
      import("../run/solve.ts"),
      import("../run/limits.ts"),
      import("../policy/config.ts"),
      import("../engine/embedded.ts"),
    ]);
  const found = await findAgent(model, options.checkpoint);
  await using agent = await openAgent(found);
  const { policy, tokenizer, chat } = agent;
  const most = contextLength(policy.config);
  const trained = found.config?.evaluate.limits ?? { ...LIMITS, maxContext: most };
  const limits: LimitsConfig = {
    ...trained,
    maxTurns: options.maxTurns ?? trained.maxTurns,
    maxContext: options.maxContext ?? trained.maxContext,
    maxActionTokens: options.maxActionTokens ?? trained.maxActionTokens,
    episodeSeconds: options.seconds ?? trained.episodeSeconds,
  };
  if (limits.maxContext > most)
    throw refuse(`--max-context ${limits.maxContext}: the model's context is ${most}; lower it`);

  const say = (line: string): void => {
    if (!options.quiet) process.stderr.write(line);
  };
  const tell = (event: object): void => {
    if (options.json) process.stdout.write(`${JSON.stringify(event)}\n`);
  };
  say(`${found.name} on ${repository.root} at ${repository.commit.slice(0, 12)}\n`);
  if (repository.untracked > 0)
    say(`${many(repository.untracked, "file")} that git does not follow stay out of its copy\n`);
  const { template, style } = await setting(found.config?.tasks.name);
  const solution = await solve({
    ...{ engine: embeddedEngine(policy), tokenizer, chat, template, style, repository, issue },
    limits: episodeLimits(limits),
    commandMs: 1000 * (options.commandSeconds ?? trained.commandSeconds),
    attempts: options.attempts,
    temperature: options.temperature,
    seed: options.seed,
    testMs: 1000 * options.testSeconds,
    extra: options.with,
    ...(options.test === undefined ? {} : { test: options.test }),
    ...(options.sandbox === undefined ? {} : { sandbox: options.sandbox }),
    signal: commandSignal(),
    onWarning: (message) => say(`${message}\n`),
    onTurn: (turn, { attempt, index }) => {
      const { text: said, command, formatError, observation } = turn;
      tell({ type: "turn", attempt, index, text: said, command, formatError, observation });
      if (!options.json) say(describeTurn(turn, attempt, index, options.attempts));
    },
    onAttempt: (attempt) => {
      tell({ type: "attempt", ...attempt });
      if (!options.json) say(describeAttempt(attempt));
    },
  });
  tell({ type: "solution", ...solution });
  if (options.out !== undefined) await writeFile(options.out, solution.patch);
  else if (!options.json)
    process.stdout.write(process.stdout.isTTY ? printable(solution.patch) : solution.patch);
  const fault = faultOf(solution, options.test);
  if (fault === null && options.apply) {
    await applyPatch(repository, solution.patch);
    say(`applied to ${repository.root}\n`);
  } else if (fault !== null) {
    process.stderr.write(`tokenring: ${fault}${options.apply ? "; nothing was applied" : ""}\n`);
    process.exitCode = 1;
  }
}

/** The prompt and the shell that a policy knows from its training. */
async function setting(tasks: string | undefined) {
  if (tasks === "tinyswe") {
    const { COMPACT_TEMPLATE } = await import("../tasks/tinyswe/tinyswe.ts");
    return { template: COMPACT_TEMPLATE, style: "compact" as const };
  }
  const { sweTemplate } = await import("../agent/templates.ts");
  return { template: sweTemplate(), style: "full" as const };
}

/** Why the solution is none; null where it is one. */
function faultOf({ chosen, attempts }: Solution, test: string | undefined): string | null {
  if (chosen === null) {
    return attempts.every(({ exit }) => exit === "infra_failed")
      ? "no attempt had a sandbox that held; tokenring doctor says what this machine lacks"
      : "no attempt made a patch; try more of them (--attempts), more turns (--max-turns), or another agent";
  }
  if (
    test === undefined ||
    attempts.some(({ attempt, verdict }) => attempt === chosen && verdict === "resolved")
  )
    return null;
  return `no patch passes ${printable(test)}; the surest one is shown`;
}

export function register(program: Command): void {
  const limit = "(default: what the agent was trained with, ";
  program
    .command("solve")
    .summary("let a trained agent mend a bug of your own repository")
    .description(
      "Gives the issue in FILE to the agent of --model. It works in a sandbox without network on a private copy of the " +
        "repository's last commit; the conversation is shown as it goes, and the patch is printed. Your tree is read, " +
        "and changed only by --apply.",
    )
    .option("--repo <path>", "your git repository", givenPath, ".")
    .option("--issue <file>", "a text that says what is wrong; - reads standard input", givenPath)
    .option("--model <path>", "a run directory, a checkpoint of one, or the directory of a model", givenPath)
    .option("--checkpoint <name>", "of a run: base, rft, stage1, … (default: the newest)")
    .option("--attempts <n>", "independent attempts; the surest one's patch is taken", positiveNumber, 1)
    .option(
      "--test <command>",
      "prefer patches after which this ends with 0; runs in a fresh sandbox, with your tests as committed",
    )
    .option("--test-seconds <n>", "wall and CPU time of --test", positiveNumber, 600)
    .option(
      "--with <path...>",
      "also copy these, though git ignores them (node_modules, say)",
      [] as string[],
    )
    .option("--apply", "apply the patch to your working tree; with --test only if that passes")
    .option("--out <file>", "write the patch there instead of printing it", givenPath)
    .option("--temperature <t>", "of sampling; 0 is greedy", temperature, 1)
    .option("--seed <n>", "decides every draw", wholeNumber, 1)
    .option("--max-turns <n>", `turns of an attempt ${limit}else 40)`, positiveNumber)
    .option("--max-context <n>", `tokens of an attempt ${limit}else the model's context)`, positiveNumber)
    .option("--max-action-tokens <n>", `tokens of one turn ${limit}else 4096)`, positiveNumber)
    .option("--command-seconds <n>", `wall and CPU time of one command ${limit}else 60)`, positiveNumber)
    .option("--seconds <n>", `wall time of an attempt ${limit}else 3600)`, positiveNumber)
    .addOption(
      new Option("--sandbox <kind>", "where commands run (default: auto)").choices([...SANDBOX_KINDS]),
    )
    .option("--json", "turns, attempts and the solution as JSON Lines on stdout")
    .option("--quiet", "print nothing but the patch and errors")
    .addHelpText(
      "after",
      "\nExample: tokenring solve --repo . --issue bug.txt --model runs/demo-seed1 --attempts 4 --test 'python3 test.py'\n" +
        "The exit code is 1 if no attempt made a patch, or none that passes --test.",
    )
    .action(run);
}
