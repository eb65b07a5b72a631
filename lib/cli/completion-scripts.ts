// Completion scripts for three shells. They hold all that they need, so that a Tab does not start Node.
import type { CompletionCommand, Value } from "./completion.ts";

/** A command and all below it. */
function all(command: CompletionCommand): CompletionCommand[] {
  return [command, ...command.commands.flatMap(all)];
}

const nameOf = ({ path }: CompletionCommand): string => path.at(-1) ?? "";
const keyOf = ({ path }: CompletionCommand): string => path.join(" ");

/** A word in single quotes, as POSIX shells and zsh read it. */
const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** The first line of a description. */
const brief = (text: string): string => text.split("\n")[0] as string;

function bashReply(value: Value): string {
  if (value === "file") return "_tokenring_files -f";
  if (value === "directory") return "_tokenring_files -d";
  return value === "anything" ? ":" : `_tokenring_words ${quoted(value.join(" "))}`;
}

/** For bash 4 and later, without the package bash-completion. */
export function bashScript(root: CompletionCommand): string {
  const commands = all(root);
  const key = (command: CompletionCommand, word: string): string => quoted(`${keyOf(command)} ${word}`);
  const enter = commands.flatMap((command) =>
    command.commands.map((one) => `      ${key(command, nameOf(one))}) at=${quoted(keyOf(one))}; place=0 ;;`),
  );
  const valued = commands.flatMap((command) =>
    command.options.flatMap(({ long, value }) => (value === null ? [] : [key(command, long)])),
  );
  const values = commands.flatMap((command) =>
    command.options.flatMap(({ long, value }) =>
      value === null ? [] : [`    ${key(command, long)}) ${bashReply(value)}; return ;;`],
    ),
  );
  const options = commands.map(
    (command) =>
      `      ${quoted(keyOf(command))}) _tokenring_words ${quoted(command.options.map(({ long }) => long).join(" "))} ;;`,
  );
  const places = commands.flatMap((command) => {
    if (command.commands.length > 0)
      return [
        `    ${quoted(keyOf(command))}:*) _tokenring_words ${quoted(command.commands.map(nameOf).join(" "))} ;;`,
      ];
    return command.values.map((value, i) => {
      const last = i === command.values.length - 1;
      return `    ${quoted(keyOf(command))}:${last ? "*" : i}) ${bashReply(value)} ;;`;
    });
  });
  return `# bash completion for tokenring: source <(tokenring completion bash)
_tokenring_words() {
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}
_tokenring_files() {
  compopt -o filenames 2>/dev/null
  mapfile -t COMPREPLY < <(compgen "$1" -- "$cur")
}
_tokenring() {
  local cur=\${COMP_WORDS[COMP_CWORD]} before='' at='' word i place=0
  COMPREPLY=()
  # The command that the line is in, how many of its arguments are there, and the option before the cursor.
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    # bash splits --option=value into three words.
    [[ $word == '=' ]] && continue
    if [[ -n $before ]]; then before=''; continue; fi
    case "$at $word" in
${enter.join("\n")}
      ${valued.join("|")}) before=$word ;;
      *' -'*) ;;
      *) place=$((place + 1)) ;;
    esac
  done
  [[ $cur == '=' ]] && cur=''
  case "$at $before" in
${values.join("\n")}
  esac
  if [[ $cur == -* ]]; then
    case "$at" in
${options.join("\n")}
    esac
    return
  fi
  case "$at:$place" in
${places.join("\n")}
  esac
}
complete -F _tokenring tokenring
`;
}

function zshAction(value: Value): string {
  if (value === "file") return "_files";
  if (value === "directory") return "_files -/";
  return value === "anything" ? " " : `(${value.join(" ")})`;
}

/** Text within the brackets and between the colons of a specification of _arguments. */
const zshText = (text: string): string => brief(text).replaceAll(/[[\]:\\]/g, "\\$&");

export function zshScript(root: CompletionCommand): string {
  const name = ({ path }: CompletionCommand): string => ["_tokenring", ...path].join("_");
  const functions = all(root).map((command) => {
    const options = command.options.map(({ long, help, value }) =>
      quoted(`${long}[${zshText(help)}]${value === null ? "" : `:value:${zshAction(value)}`}`),
    );
    const values = command.values.map((value, i) => {
      const last = i === command.values.length - 1;
      return quoted(`${last ? "*" : i + 1}:argument:${zshAction(value)}`);
    });
    if (command.commands.length === 0)
      return `${name(command)}() {\n  _arguments \\\n    ${[...options, ...values].join(" \\\n    ")}\n}`;
    const listed = command.commands.map((one) => `    ${quoted(`${nameOf(one)}:${brief(one.help)}`)}`);
    const calls = command.commands.map((one) => `        ${nameOf(one)}) ${name(one)} ;;`);
    return `${name(command)}() {
  local context state state_descr line
  typeset -A opt_args
  local -a commands=(
${listed.join("\n")}
  )
  _arguments -C \\
    ${[...options, "'1: :->command'", "'*:: :->rest'"].join(" \\\n    ")}
  case $state in
    command) _describe command commands ;;
    rest)
      case $words[1] in
${calls.join("\n")}
      esac ;;
  esac
}`;
  });
  return `#compdef tokenring
# zsh completion for tokenring: source <(tokenring completion zsh), after compinit
${functions.join("\n")}
compdef _tokenring tokenring
`;
}

/** A word in single quotes, as fish reads it. */
const fishQuoted = (text: string): string => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;

function fishValue(value: Value): string {
  if (value === "file") return "-r -F";
  if (value === "directory") return "-x -a '(__fish_complete_directories)'";
  return value === "anything" ? "-x" : `-x -a ${fishQuoted(value.join(" "))}`;
}

export function fishScript(root: CompletionCommand): string {
  const lines = [
    "# fish completion for tokenring: tokenring completion fish | source",
    "complete -c tokenring -f",
  ];
  for (const command of all(root)) {
    const inside = command.path.map((word) => `__fish_seen_subcommand_from ${word}`);
    const below = command.commands.map(nameOf).join(" ");
    const here = [...inside, ...(below === "" ? [] : [`not __fish_seen_subcommand_from ${below}`])];
    const where = `complete -c tokenring -n ${fishQuoted(here.join("; and "))}`;
    for (const one of command.commands)
      lines.push(`${where} -a ${nameOf(one)} -d ${fishQuoted(brief(one.help))}`);
    for (const { long, help, value } of command.options) {
      const takes = value === null ? "" : ` ${fishValue(value)}`;
      lines.push(`${where} -l ${long.slice(2)}${takes} -d ${fishQuoted(brief(help))}`);
    }
    // fish counts no arguments: every place may hold what one of them may.
    for (const value of new Set(command.values))
      if (value !== "anything") lines.push(`${where} ${fishValue(value).replace("-r ", "")}`);
  }
  return `${lines.join("\n")}\n`;
}
