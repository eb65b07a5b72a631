// `tokenring completion SHELL`: what the shell's Tab key needs to know, made of the very commands that --help shows.
import type { Argument, Command, Option } from "commander";
import { bashScript, fishScript, zshScript } from "./completion-scripts.ts";
import { examples } from "./options.ts";

/** What may stand in a place: one of some words, a file, a directory, or something that nobody can guess. */
export type Value = readonly string[] | "file" | "directory" | "anything";

export interface CompletionOption {
  long: string;
  help: string;
  /** null for a switch. */
  value: Value | null;
}

export interface CompletionCommand {
  /** [] for the program, ["tasks", "show"] for a command of a command. */
  path: readonly string[];
  help: string;
  options: readonly CompletionOption[];
  /** Of its arguments in order; the last one counts for all that follow. */
  values: readonly Value[];
  commands: readonly CompletionCommand[];
}

const PLACES: Readonly<Record<string, Value>> = {
  config: "file",
  directory: "directory",
  file: "file",
  path: "file",
  repo: "directory",
  run: "directory",
  runs: "directory",
  source: "file",
};

/** The name between the brackets of `--out <directory>`; "" for a switch. */
const placeholder = ({ flags }: Option): string => /[<[]([\w-]+)/.exec(flags)?.[1] ?? "";

function optionOf(option: Option): CompletionOption[] {
  if (option.long === undefined || option.long === null || option.hidden) return [];
  const takes = option.required || option.optional;
  const value = option.argChoices ?? PLACES[placeholder(option)] ?? "anything";
  return [{ long: option.long, help: option.description, value: takes ? value : null }];
}

const placeOf = (argument: Argument): Value => argument.argChoices ?? PLACES[argument.name()] ?? "anything";

/** The commands below and including `command`, as --help has them. */
export function completionTree(command: Command, path: readonly string[] = []): CompletionCommand {
  const help = command.createHelp();
  const commands = help.visibleCommands(command).filter((one) => one.name() !== "help");
  return {
    path,
    help: help.subcommandDescription(command),
    options: help.visibleOptions(command).flatMap(optionOf),
    values: command.registeredArguments.map(placeOf),
    commands: commands.map((one) => completionTree(one, [...path, one.name()])),
  };
}

const SCRIPTS = { bash: bashScript, zsh: zshScript, fish: fishScript } as const;

export function register(program: Command): void {
  const command = program
    .command("completion")
    .summary("print a script that completes commands and options in a shell")
    .description(
      "Prints what SHELL needs so that the Tab key completes commands, options, their choices and paths.",
    )
    .addArgument(
      program.createArgument("<shell>", "the shell that you type into").choices(Object.keys(SCRIPTS)),
    )
    .action((shell: keyof typeof SCRIPTS) => {
      process.stdout.write(SCRIPTS[shell](completionTree(program)));
    });
  examples(command, [
    ["source <(tokenring completion bash)", "in ~/.bashrc"],
    ["source <(tokenring completion zsh)", "in ~/.zshrc, after compinit"],
    ["tokenring completion fish | source", "in ~/.config/fish/config.fish"],
  ]);
}
