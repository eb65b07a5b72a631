// What the agent may say: free text, then exactly one block that opens with ```command and closes with ```.
import type { FormatError } from "./types.ts";

export interface ParsedAction {
  /** What is between the fences; null when there is an error. */
  command: string | null;
  error: FormatError | null;
}

const OPEN = /^[ \t]*```command[ \t]*$/;
const CLOSE = /^[ \t]*```[ \t]*$/;

/**
 * Finds the one command of an action. Fences stand on lines of their own; a block ends at its first closing line.
 * An opening fence that is never closed counts as a command when there is another one, and as none when alone.
 */
export function parseAction(text: string): ParsedAction {
  if (!text.includes("```command")) return { command: null, error: "no_command" };
  let opened = 0;
  let command: string | null = null;
  let block: string[] | null = null;
  for (const line of text.split("\n")) {
    const bare = line.endsWith("\r") ? line.slice(0, -1) : line;
    if (OPEN.test(bare)) {
      opened++;
      block = [];
    } else if (block !== null && CLOSE.test(bare)) {
      command = block.join("\n");
      block = null;
    } else {
      block?.push(bare);
    }
  }
  if (opened > 1) return { command: null, error: "multiple_commands" };
  if (command === null || command.trim() === "") return { command: null, error: "no_command" };
  return { command, error: null };
}

const MESSAGES: Readonly<Record<"full" | "compact", Readonly<Record<FormatError, string>>>> = {
  full: {
    no_command:
      "Error: your reply holds no command that can be run. After your reasoning, write one block that opens with a " +
      "line ```command and closes with a line ```.",
    multiple_commands:
      "Error: your reply holds more than one command block, so none was run. Write exactly one ```command block in " +
      "each reply.",
  },
  compact: {
    no_command: "Error: no command.",
    multiple_commands: "Error: more than one command.",
  },
};

/** What the agent is told about a turn that could not be parsed. */
export function formatErrorText(error: FormatError, style: "full" | "compact"): string {
  return MESSAGES[style][error];
}
