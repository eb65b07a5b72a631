// `npm run bench`: the suites, and what can be done with their results.
import { writeFile } from "node:fs/promises";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { isTokenringError } from "tokenring";
import { compareResults, type RunComparison } from "./compare.ts";
import { experimentsCommand } from "./experiments/command.ts";
import { ACTION_TOOLS, type ActionTool, digits, exportForAction, markdownTable } from "./export.ts";
import { MOST_THREADS } from "./machine.ts";
import { biggerIsBetter, type Result, readResults } from "./result.ts";
import { runSuites, SUITES } from "./suites.ts";

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("Give a whole number above 0.");
}

function percent(text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && value >= 0 && value <= 1000) return value / 100;
  throw new InvalidArgumentError("Give a percentage, 0 to 1000.");
}

function path(text: string): string {
  if (text !== "") return text;
  throw new InvalidArgumentError("Give a path.");
}

const spread = (side: { value: number; mad?: number | undefined }): string =>
  `${digits(side.value)} ± ${digits(side.mad ?? 0)}`;

function resultLine(result: Result): string {
  const { name, unit, peer, ratio } = result;
  const theirs = peer ? `\n    ${peer.name}: ${spread(peer)} ${unit}` : "";
  const verdict = peer ? `   ratio ${ratio?.toFixed(2) ?? "–"}` : "";
  return `${name}\n    tokenring: ${spread(result)} ${unit}${theirs}${verdict}\n`;
}

function comparisonText({ changes, reasons, added, verdict }: RunComparison): string {
  const lines = changes.map(({ name, unit, before, after, gain, limit, verdict }) => {
    const better = biggerIsBetter(unit) ? "bigger" : "smaller";
    const moved = `${gain < 0 ? "worse" : "better"} by ${digits(Math.abs(gain))}, counts from ${digits(limit)}`;
    return `${verdict.padEnd(6)} ${name}\n       ${spread(before)} -> ${spread(after)} ${unit} (${better} is better): ${moved}`;
  });
  lines.push(...added.map((name) => `new    ${name}`));
  lines.push(...reasons.map((reason) => `not comparable: ${reason}`));
  return `${[...lines, verdict].join("\n")}\n`;
}

const COMPARE_EXIT = { same: 0, faster: 0, slower: 1, "not comparable": 2 } as const;

function createProgram(): Command {
  const program = new Command("bench")
    .description("Times each suite beside what one would use instead, in alternation, and prints ratios.")
    .usage("[options]   |   compare A B   |   export A   |   table A   |   experiments")
    .addOption(
      new Option("--suite <name>", "run this suite; may be given several times")
        .argParser(collect)
        .default([], "all"),
    )
    .option("--json <path>", "write the results there, in schema 1", path)
    .option("--threads <n>", "of every side that computes a model", count, MOST_THREADS)
    .option("--rounds <n>", "turns of each side", count, 7)
    .option("--turn <milliseconds>", "a side's turn goes on until it took this long", count, 300)
    .addHelpText(
      "after",
      `\nSuites:\n${SUITES.map(({ name, about }) => `  ${name.padEnd(9)}${about}`).join("\n")}`,
    )
    .addHelpText(
      "after",
      "\nPeers: TOKENRING_PYTHON names an interpreter with torch and transformers (default: python3),\n" +
        "TOKENRING_NODE_LLAMA_CPP the folder of the package node-llama-cpp. A peer that is missing is left out.",
    )
    .enablePositionalOptions() // compare has a --json of its own
    .exitOverride()
    .action(async ({ suite, json, threads, rounds, turn }) => {
      const results = await runSuites(suite, {
        threads,
        rounds,
        turnMilliseconds: turn,
        onResult: (result) => process.stdout.write(resultLine(result)),
        onWarning: (message) => process.stderr.write(`bench: ${message}\n`),
      });
      if (json) await writeFile(json, `${JSON.stringify(results, null, 2)}\n`);
    });
  program
    .command("compare")
    .description(
      "Compares two files of --json. A result is faster or slower if its median moved by more than the threshold and " +
        "by more than twice the sum of both median absolute deviations. Exit code: 0 same or faster, 1 slower, " +
        "2 not comparable (another machine, schema or unit, or a result that B lacks).",
    )
    .argument("<a>", "the earlier run", path)
    .argument("<b>", "the later run", path)
    .option("--threshold <percent>", "what a median must move at least", percent, 0.05)
    .option("--json", "print the comparison as JSON")
    .action(async (a, b, { threshold, json }) => {
      process.exitCode = COMPARE_EXIT["not comparable"]; // unless both can be read
      const comparison = compareResults(await readResults(a), await readResults(b), { threshold });
      process.stdout.write(json ? `${JSON.stringify(comparison, null, 2)}\n` : comparisonText(comparison));
      process.exitCode = COMPARE_EXIT[comparison.verdict];
    });
  program
    .command("export")
    .description("Prints a file of --json as github-action-benchmark takes it, for one of its tools.")
    .argument("<a>", "the run", path)
    .addOption(
      new Option("--tool <tool>", "rates are bigger is better, everything else smaller is better")
        .choices(ACTION_TOOLS)
        .default("customBiggerIsBetter"),
    )
    .action(async (a, { tool }: { tool: ActionTool }) => {
      process.stdout.write(`${JSON.stringify(exportForAction(await readResults(a), tool), null, 2)}\n`);
    });
  program
    .command("table")
    .description("Prints a file of --json as a table in Markdown.")
    .argument("<a>", "the run", path)
    .action(async (a) => {
      process.stdout.write(markdownTable(await readResults(a)));
    });
  program.addCommand(experimentsCommand());
  return program;
}

function collect(name: string, before: string[]): string[] {
  return [...before, name];
}

async function main(): Promise<void> {
  try {
    await createProgram().parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) process.exitCode = error.exitCode;
    else {
      const { message, stack } = error as Error;
      process.stderr.write(`bench: ${isTokenringError(error) ? message : stack}\n`);
      process.exitCode ??= 1;
    }
  }
}

main();
