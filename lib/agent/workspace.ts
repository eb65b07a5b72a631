// One agent's shell: sends a command to a tool or to the sandbox, and makes the observation of what came back.
import type { ExecResult, Sandbox } from "../sandbox/types.ts";
import { firstWord, interactiveProgram, parseCall, toolInside } from "./command-line.ts";
import { type EditorState, shortPath } from "./editor.ts";
import { printable, shellPrompt, truncateMiddle } from "./observation.ts";
import { type Style, type Tool, type ToolContext, ToolError } from "./tool.ts";
import { defaultTools } from "./tools.ts";

/** How an agent's shell looks: tools, style, window of the open file, lengths. */
export interface WorkspaceOptions {
  tools?: readonly Tool[];
  style?: Style;
  /** Lines of the window on an open file (100) and those that stay in sight when scrolling (2). */
  window?: number;
  overlap?: number;
  /** Characters of one observation before its prompt (16 384); the middle is cut. */
  observationChars?: number;
  /** The line that ends every observation, in place of the shell's prompt; "" for none. */
  prompt?: (state: Readonly<EditorState>) => string;
}

export interface CommandOutcome {
  observation: string;
  submitted: boolean;
}

export class Workspace {
  readonly style: Style;
  readonly #sandbox: Sandbox;
  readonly #tools: ReadonlyMap<string, Tool>;
  readonly #window: { window: number; overlap: number };
  readonly #limit: number;
  readonly #prompt: WorkspaceOptions["prompt"];
  readonly #state: EditorState;

  constructor(sandbox: Sandbox, options: WorkspaceOptions = {}) {
    this.style = options.style ?? "full";
    this.#sandbox = sandbox;
    this.#tools = new Map((options.tools ?? defaultTools).map((tool) => [tool.name, tool]));
    this.#window = { window: options.window ?? 100, overlap: options.overlap ?? 2 };
    this.#limit = options.observationChars ?? 16_384;
    this.#prompt = options.prompt;
    this.#state = { cwd: sandbox.workdir, file: null, top: 1 };
  }

  /**
   * Runs one command. What the agent did wrong becomes the observation; a broken sandbox (ERR_TOKENRING_SANDBOX),
   * an abort and faults of a tool's code are thrown.
   */
  async run(command: string, signal?: AbortSignal): Promise<CommandOutcome> {
    const tool = this.#tools.get(firstWord(command));
    if (tool === undefined)
      return { observation: this.observation(await this.#shell(command, signal)), submitted: false };
    const parsed = parseCall(command);
    if ("error" in parsed)
      return { observation: this.observation(`Error: ${parsed.error}.`), submitted: false };
    if (parsed.call.argv.length === 1 && parsed.call.argv[0] === "--help") {
      return { observation: this.observation(`${tool.signature}\n${tool.help}`), submitted: false };
    }
    const context: ToolContext = {
      sandbox: this.#sandbox,
      state: this.#state,
      style: this.style,
      window: this.#window,
      ...(signal ? { signal } : {}),
    };
    try {
      const result = await tool.run(context, parsed.call);
      if (typeof result === "string") return { observation: this.observation(result), submitted: false };
      return { observation: this.observation(result.output), submitted: result.submitted === true };
    } catch (error) {
      if (!(error instanceof ToolError)) throw error;
      return { observation: this.observation(`Error: ${error.message}.`), submitted: false };
    }
  }

  /** Makes text fit to be shown and puts the shell prompt under it. */
  observation(text: string): string {
    const shown = truncateMiddle(printable(text).trimEnd(), this.#limit);
    return [shown, this.prompt()].filter((part) => part !== "").join("\n");
  }

  prompt(): string {
    if (this.#prompt) return this.#prompt(this.#state);
    const { cwd, file } = this.#state;
    const shown = file !== null && this.style === "compact" ? shortPath(file, this.#sandbox.workdir) : file;
    return shellPrompt(cwd, shown);
  }

  async #shell(command: string, signal: AbortSignal | undefined): Promise<string> {
    const program = interactiveProgram(command);
    if (program !== null) {
      return `Error: ${program} waits for a person to type, which nobody does here; use a command that ends by itself.`;
    }
    const tool = toolInside(command, this.#tools);
    if (tool !== null) {
      // The shell would look for a program of that name, and may find one.
      return `Error: ${tool} is a tool, not a program: nothing was run. Send it as a command of its own.`;
    }
    const result = await this.#sandbox.exec(command, signal ? { signal } : {});
    this.#state.cwd = result.cwd;
    const notes = execNotes(result, this.style);
    return [result.output.trimEnd(), ...notes].filter((part) => part !== "").join("\n");
  }
}

function execNotes(result: ExecResult, style: Style): string[] {
  const notes: string[] = [];
  const silent = result.output.trim() === "";
  if (result.droppedBytes > 0) notes.push(`(${result.droppedBytes} more bytes of output were dropped)`);
  if (result.timedOut) notes.push("(the command was stopped at its time limit)");
  else if (result.exitCode === null) notes.push("(the command was killed at a resource limit)");
  // The compact style keeps the exit code for where it is all there is to say.
  else if (result.exitCode !== 0 && (style === "full" || silent))
    notes.push(`(exit code ${result.exitCode})`);
  else if (silent && style === "full") notes.push("(no output)");
  return notes;
}
