// What several commands' options have in common.
import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { TokenringError } from "../errors.ts";

/** Parses a whole number from 0 up; commander puts the option's name before the message. */
export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new InvalidArgumentError("Give a whole number from 0 up.");
  }
  return value;
}

/** Like `wholeNumber`, from 1 up. */
export function positiveNumber(text: string): number {
  const value = wholeNumber(text);
  if (value === 0) throw new InvalidArgumentError("Give a whole number from 1 up.");
  return value;
}

/** A sampling temperature. */
export function temperature(text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && value >= 0 && value <= 10) return value;
  throw new InvalidArgumentError("Give a number from 0 (greedy) to 10.");
}

/** A path that is not "", which would mean the working directory. */
export function givenPath(text: string): string {
  if (text === "") throw new InvalidArgumentError("Give a path.");
  return text;
}

/** Puts command lines below the help of `command`, each with what it does. */
export function examples(
  command: Command,
  lines: readonly (readonly [line: string, does: string])[],
  more = "",
): Command {
  const width = Math.max(...lines.map(([line]) => line.length));
  const shown = lines.map(([line, does]) => `  ${line.padEnd(width)}  # ${does}`);
  return command.addHelpText("after", `\nExamples:\n${shown.join("\n")}${more && `\n\n${more}`}`);
}

/** Of commands that give numbers as JSON; "-" and what a program is not told go for all of them. */
export const JSON_HELP = "- for standard output; without progress, unless stderr is a terminal";

export interface OutputOptions {
  /** Where the result goes as JSON; "-" is standard output. */
  json?: string;
  quiet?: boolean;
}

/** Whether there is somebody to tell of progress: with --json a program asks, unless stderr is a person's terminal. */
export function showsProgress({ json, quiet }: OutputOptions): boolean {
  if (quiet) return false;
  return json === undefined || (json !== "-" && process.stderr.isTTY === true);
}

/** Whether the result is told in words: standard output is JSON alone with --json -. */
export function showsWords({ json, quiet }: OutputOptions): boolean {
  return !quiet && json !== "-";
}

/** Writes the result where --json says. */
export async function writeJson(file: string, value: unknown): Promise<void> {
  const text = `${JSON.stringify(value, null, 2)}\n`;
  if (file === "-") process.stdout.write(text);
  else await writeFile(file, text);
}

/** A result that cannot be written would cost the whole work: found out before it starts. */
export async function prepareJson(file: string): Promise<void> {
  if (file === "-") return;
  try {
    await mkdir(path.dirname(path.resolve(file)), { recursive: true });
    await writeFile(file, "");
  } catch (cause) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `--json ${file}: cannot be written (${(cause as NodeJS.ErrnoException).code}); give a path in a directory of yours`,
      { cause },
    );
  }
}

export interface RankFlags {
  ranks?: number;
  contextParallel?: number;
}

export function addRankFlags(command: Command): Command {
  return command
    .option(
      "--ranks <n>",
      "processes that train and sample together, started here unless a launcher has (default: the config's)",
      positiveNumber,
    )
    .option(
      "--context-parallel <n>",
      "ranks that share a document's tokens (default: the config's)",
      positiveNumber,
    );
}

/** The config with what the flags say. */
export function withRankFlags<C extends object>(config: C, { ranks, contextParallel }: RankFlags): C {
  return {
    ...config,
    ...(ranks === undefined ? {} : { ranks }),
    ...(contextParallel === undefined ? {} : { contextParallel }),
  };
}
