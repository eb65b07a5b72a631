// The open file, the window on it, and how both are shown.
import { posix } from "node:path";

/** What a tool remembers between turns. */
export interface EditorState {
  /** Current directory of the shell. */
  cwd: string;
  /** Absolute path of the open file. */
  file: string | null;
  /** First line of the window, from 1. */
  top: number;
}

export interface WindowOptions {
  /** Lines of the window. */
  window: number;
  /** Lines that stay in sight when scrolling. */
  overlap: number;
}

export interface FileText {
  lines: string[];
  /** "\r\n" when every line ends so. */
  newline: "\n" | "\r\n";
  finalNewline: boolean;
}

export function parseFile(text: string): FileText {
  const finalNewline = text.endsWith("\n");
  const lines = text === "" ? [] : (finalNewline ? text.slice(0, -1) : text).split("\n");
  const dos =
    lines.length > 0 &&
    lines.every((line, i) => line.endsWith("\r") || (i === lines.length - 1 && !finalNewline));
  if (!dos || !lines[0]?.endsWith("\r")) return { lines, newline: "\n", finalNewline };
  return {
    lines: lines.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line)),
    newline: "\r\n",
    finalNewline,
  };
}

export function formatFile(file: FileText): string {
  if (file.lines.length === 0) return "";
  return file.lines.join(file.newline) + (file.finalNewline ? file.newline : "");
}

/** Lines as the agent counts them: an empty file has one, empty. */
export function lineCount(file: FileText): number {
  return Math.max(1, file.lines.length);
}

/** Keeps the window inside the file. */
export function clampTop(top: number, total: number, options: WindowOptions): number {
  return Math.max(1, Math.min(top, total - options.window + 1));
}

/** The window's first line when `line` is to stand at a sixth of its height. */
export function topFor(line: number, total: number, options: WindowOptions): number {
  return clampTop(line - Math.floor(options.window / 6), total, options);
}

/** `[File: path (N lines total)]`, the lines `from` to `to` with their numbers, and what is out of sight. */
export function showLines(path: string, file: FileText, from: number, to: number): string {
  const total = lineCount(file);
  const above = from - 1;
  const below = total - to;
  return [
    `[File: ${path} (${total} lines total)]`,
    ...(above > 0 ? [`(${above} more lines above)`] : []),
    numberedLines(file, from, to),
    ...(below > 0 ? [`(${below} more lines below)`] : []),
  ].join("\n");
}

export function numberedLines(file: FileText, from: number, to: number): string {
  const shown: string[] = [];
  for (let line = from; line <= to; line++) shown.push(`${line}:${file.lines[line - 1] ?? ""}`);
  return shown.join("\n");
}

/** Absolute form of a path that the agent wrote. */
export function resolvePath(state: EditorState, path: string): string {
  return posix.resolve(state.cwd, path);
}

/** A path as the compact style writes it: relative to the repository where it lies inside. */
export function shortPath(path: string, root: string): string {
  const relative = posix.relative(root, path);
  return relative === "" || relative.startsWith("..") ? path : relative;
}
