// What a tool is. The table of tools is data: leave some out, replace them, add your own.
import { SandboxFileError } from "../sandbox/errors.ts";
import type { Sandbox } from "../sandbox/types.ts";
import type { ToolCall } from "./command-line.ts";
import {
  clampTop,
  type EditorState,
  type FileText,
  lineCount,
  parseFile,
  resolvePath,
  shortPath,
  showLines,
  type WindowOptions,
} from "./editor.ts";

/** "compact" says the same in fewer tokens: short paths, and after an edit only the lines around it. */
export type Style = "full" | "compact";

/** What a tool works on: the sandbox, the agent's place and open file, and how much it may show. */
export interface ToolContext {
  readonly sandbox: Sandbox;
  readonly state: EditorState;
  readonly style: Style;
  readonly window: WindowOptions;
  readonly signal?: AbortSignal;
}

/** What a tool shows the agent; `submitted` ends the episode. */
export interface ToolResult {
  output: string;
  /** Ends the episode: the working tree is what the agent proposes. */
  submitted?: boolean;
}

/** A command of the agent that is no shell command. */
export interface Tool {
  /** First word of the command. */
  readonly name: string;
  /** How it is called, as in `open FILE [LINE_NUMBER]`. */
  readonly signature: string;
  /** What it does, for the system prompt. */
  readonly help: string;
  /** A ToolError's message is shown to the agent; any other error ends the episode. */
  run(context: ToolContext, call: ToolCall): Promise<ToolResult | string>;
}

/** Something that the agent did wrong; the message is its observation. */
export class ToolError extends Error {
  override readonly name = "ToolError";
}

/** The path as it is shown. */
export function displayPath(context: ToolContext, path: string): string {
  return context.style === "compact" ? shortPath(path, context.sandbox.workdir) : path;
}

/** Reads a file; faults of the file (missing, a directory) are the agent's, faults of the sandbox are not. */
export async function readText(context: ToolContext, path: string): Promise<string> {
  const text = await readIfExists(context, path);
  if (text === null) throw new ToolError(`there is no file ${displayPath(context, path)}`);
  return text;
}

/** Reads a file, or null when there is none. */
export async function readIfExists(context: ToolContext, path: string): Promise<string | null> {
  try {
    return await context.sandbox.read(path);
  } catch (error) {
    if (error instanceof SandboxFileError && error.message.endsWith("No such file or directory")) return null;
    throw fileFault(context, path, error);
  }
}

export async function writeText(context: ToolContext, path: string, text: string): Promise<void> {
  try {
    await context.sandbox.write(path, text);
  } catch (error) {
    throw fileFault(context, path, error);
  }
}

function fileFault(context: ToolContext, path: string, error: unknown): unknown {
  if (!(error instanceof SandboxFileError)) return error;
  return new ToolError(`${displayPath(context, path)}: ${error.message.slice(error.path.length + 2)}`);
}

/** The open file's path and content. */
export async function readOpenFile(context: ToolContext): Promise<{ path: string; file: FileText }> {
  const path = context.state.file;
  if (path === null) throw new ToolError("no file is open; use open FILE first");
  return { path, file: parseFile(await readText(context, path)) };
}

export function resolve(context: ToolContext, path: string): string {
  return resolvePath(context.state, path);
}

/** The window on the open file. */
export function showWindow(context: ToolContext, path: string, file: FileText): string {
  const total = lineCount(file);
  context.state.top = clampTop(context.state.top, total, context.window);
  const last = Math.min(total, context.state.top + context.window.window - 1);
  return showLines(displayPath(context, path), file, context.state.top, last);
}

/** A line number that the agent wrote. */
export function lineNumber(text: string, total: number): number {
  if (!/^\d+$/.test(text)) throw new ToolError(`"${text}" is no line number`);
  const line = Number(text);
  if (line < 1 || line > total)
    throw new ToolError(`line ${text} is outside the file, which has ${total} lines`);
  return line;
}
