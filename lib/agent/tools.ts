// The nine tools of arXiv 2508.03501 (Appendix F): a window on one open file, edits by line range or by text, search.
import { type ToolCall, takeOptions } from "./command-line.ts";
import {
  clampTop,
  type FileText,
  formatFile,
  lineCount,
  numberedLines,
  parseFile,
  topFor,
} from "./editor.ts";
import {
  displayPath,
  lineNumber,
  readIfExists,
  readOpenFile,
  readText,
  resolve,
  showWindow,
  type Tool,
  type ToolContext,
  ToolError,
  writeText,
} from "./tool.ts";

/** search_file shows at most this many lines. */
const SEARCH_LIMIT = 100;

export const UPDATED_FULL =
  "File updated. Please review the changes below (indentation, lines left over or doubled) and edit again if needed.";
export const UPDATED_COMPACT = "File updated.";

function words(
  call: ToolCall,
  range: { least: number; most: number },
  known: Parameters<typeof takeOptions>[1] = {},
): { positional: string[]; flags: Set<string>; values: Map<string, string> } {
  const taken = takeOptions(call.argv, known);
  if ("error" in taken) throw new ToolError(taken.error);
  const given = taken.positional.length;
  if (given < range.least) throw new ToolError(`${call.name} needs ${range.least} argument(s), got ${given}`);
  if (given > range.most) {
    const most = range.most === 0 ? "no arguments" : `at most ${range.most} argument(s)`;
    throw new ToolError(`${call.name} takes ${most}, got ${given}; put text with spaces in quotes`);
  }
  return taken;
}

function alone(call: ToolCall): void {
  if (call.heredoc !== null || call.rest.some((line) => line.trim() !== "")) {
    throw new ToolError(`${call.name} takes one line; send one command in each reply`);
  }
}

async function writeChange(
  context: ToolContext,
  path: string,
  file: FileText,
  lines: string[],
  changed: { first: number; count: number },
): Promise<string> {
  // A file that was empty gets the newline at its end that text files have.
  const updated = { ...file, lines, finalNewline: file.finalNewline || file.lines.length === 0 };
  await writeText(context, path, formatFile(updated));
  const total = lineCount(updated);
  const { state, window } = context;
  state.file = path;
  const inSight = changed.first >= state.top && changed.first < state.top + window.window;
  if (!inSight) state.top = topFor(changed.first, total, window);
  if (context.style === "full") return `${UPDATED_FULL}\n${showWindow(context, path, updated)}`;
  state.top = clampTop(state.top, total, window);
  const from = Math.max(1, changed.first - 1);
  const to = Math.min(total, changed.first + changed.count, from + window.window - 1);
  return `${UPDATED_COMPACT}\n${numberedLines(updated, from, to)}`;
}

const create: Tool = {
  name: "create",
  signature: "create FILENAME",
  help: "Creates a new, empty file and opens it.",
  async run(context, call) {
    alone(call);
    const [name] = words(call, { least: 1, most: 1 }).positional as [string];
    const path = resolve(context, name);
    if ((await readIfExists(context, path)) !== null) {
      throw new ToolError(`${displayPath(context, path)} exists already; use open to see it`);
    }
    await writeText(context, path, "");
    context.state.file = path;
    context.state.top = 1;
    return showWindow(context, path, parseFile(""));
  },
};

const edit: Tool = {
  name: "edit",
  signature: "edit [--file PATH] START:END [REPLACEMENT_TEXT]",
  help:
    "Replaces lines START to END (both included) of the open file, or of PATH, by the text, exactly as given. " +
    "Several lines are given as a here-document (edit 1:3 << 'EOF', the lines, EOF) or on the lines below the " +
    "command. Without text the lines are deleted; START:END one past the last line appends.",
  async run(context, call) {
    const { positional, values } = words(call, { least: 1, most: 2 }, { values: ["--file"] });
    const [range, argument] = positional as [string, string | undefined];
    const below = call.rest.some((line) => line.trim() !== "");
    if (Number(argument !== undefined) + Number(call.heredoc !== null) + Number(below) > 1)
      throw new ToolError("give the replacement once: in quotes, as a here-document or below");
    const named = values.get("--file");
    const path = named === undefined ? null : resolve(context, named);
    const open =
      path === null ? await readOpenFile(context) : { path, file: parseFile(await readText(context, path)) };

    const match = /^(\d+):(\d+)$/.exec(range);
    if (!match) throw new ToolError(`"${range}" is no line range; write START:END, as in 3:5`);
    const total = lineCount(open.file);
    const [start, end] = [Number(match[1]), Number(match[2])];
    const appends = start === end && start === open.file.lines.length + 1;
    if (!appends) {
      lineNumber(String(start), total);
      lineNumber(String(end), total);
      if (end < start) throw new ToolError(`the range ${range} ends before it starts`);
    }
    const added =
      argument === undefined ? (call.heredoc ?? call.rest) : argument === "" ? [] : argument.split("\n");
    const lines = [...open.file.lines.slice(0, start - 1), ...added, ...open.file.lines.slice(end)];
    if (path !== null && path !== context.state.file) context.state.top = 1;
    return await writeChange(context, open.path, open.file, lines, { first: start, count: added.length });
  },
};

const goto: Tool = {
  name: "goto",
  signature: "goto LINE_NUMBER",
  help: "Moves the window of the open file to the line.",
  async run(context, call) {
    alone(call);
    const [line] = words(call, { least: 1, most: 1 }).positional as [string];
    const { path, file } = await readOpenFile(context);
    const total = lineCount(file);
    context.state.top = topFor(lineNumber(line, total), total, context.window);
    return showWindow(context, path, file);
  },
};

const open: Tool = {
  name: "open",
  signature: "open [FILE] [LINE_NUMBER]",
  help: "Opens a file, at the line if one is given. Without FILE it shows the file that was open last.",
  async run(context, call) {
    alone(call);
    const { positional } = words(call, { least: 0, most: 2 });
    const { state } = context;
    // `open 12` means line 12 of the open file.
    if (positional.length === 1 && state.file !== null && /^\d+$/.test(positional[0] as string)) {
      positional.unshift(state.file);
    }
    const [name, line] = positional as [string | undefined, string | undefined];
    if (name === undefined) {
      const { path, file } = await readOpenFile(context);
      return showWindow(context, path, file);
    }
    const path = resolve(context, name);
    const file = parseFile(await readText(context, path));
    const total = lineCount(file);
    const top = line === undefined ? 1 : topFor(lineNumber(line, total), total, context.window);
    state.file = path;
    state.top = top;
    return showWindow(context, path, file);
  },
};

const replace: Tool = {
  name: "replace",
  signature: "replace [--replace-all] SEARCH REPLACE",
  help:
    "Replaces the first place where SEARCH stands in the open file by REPLACE, or with --replace-all every place. " +
    "Both are plain text; quote them.",
  async run(context, call) {
    alone(call);
    const { positional, flags } = words(call, { least: 2, most: 2 }, { flags: ["--replace-all"] });
    const [search, replacement] = positional as [string, string];
    if (search === "") throw new ToolError("SEARCH is empty");
    const { path, file } = await readOpenFile(context);
    const text = file.lines.join("\n");
    const parts = text.split(search);
    const found = parts.length - 1;
    if (found === 0) throw new ToolError(`${JSON.stringify(search)} is not in ${displayPath(context, path)}`);
    const all = flags.has("--replace-all");
    const at = (parts[0] as string).length;
    const updated = all
      ? parts.join(replacement)
      : text.slice(0, at) + replacement + text.slice(at + search.length);
    const first = (parts[0] as string).split("\n").length;
    const shown = await writeChange(context, path, file, updated === "" ? [] : updated.split("\n"), {
      first,
      count: replacement.split("\n").length,
    });
    const done = all ? found : 1;
    return found === 1 ? shown : `Replaced ${done} of ${found}.\n${shown}`;
  },
};

function scroll(name: string, direction: 1 | -1): Tool {
  return {
    name,
    signature: name,
    help: `Moves the window of the open file ${direction > 0 ? "down" : "up"} and shows it.`,
    async run(context, call) {
      alone(call);
      words(call, { least: 0, most: 0 });
      const { path, file } = await readOpenFile(context);
      context.state.top += direction * Math.max(1, context.window.window - context.window.overlap);
      return showWindow(context, path, file);
    },
  };
}

const searchFile: Tool = {
  name: "search_file",
  signature: "search_file SEARCH_TERM [FILE]",
  help: "Shows the lines of FILE, or of the open file, that hold the text.",
  async run(context, call) {
    alone(call);
    const [term, name] = words(call, { least: 1, most: 2 }).positional as [string, string | undefined];
    if (term === "") throw new ToolError("SEARCH_TERM is empty");
    const path = name === undefined ? context.state.file : resolve(context, name);
    if (path === null) throw new ToolError("no file is open; name one, as in search_file TERM FILE");
    const { lines } = parseFile(await readText(context, path));
    const shown = displayPath(context, path);
    const hits: string[] = [];
    for (const [index, line] of lines.entries()) if (line.includes(term)) hits.push(`${index + 1}:${line}`);
    if (hits.length === 0) return `No line of ${shown} holds ${JSON.stringify(term)}.`;
    if (hits.length > SEARCH_LIMIT) {
      throw new ToolError(
        `${hits.length} lines of ${shown} hold ${JSON.stringify(term)}, more than ${SEARCH_LIMIT}; search for more`,
      );
    }
    return [`[${hits.length} matching lines in ${shown}]`, ...hits].join("\n");
  },
};

const submit: Tool = {
  name: "submit",
  signature: "submit",
  help: "Hands in the repository as it is now and ends the session.",
  async run(_context, call) {
    alone(call);
    words(call, { least: 0, most: 0 });
    return { output: "Submitted.", submitted: true };
  },
};

/** The nine tools, in the order in which they are explained to the agent. */
export const defaultTools: readonly Tool[] = [
  create,
  edit,
  goto,
  open,
  replace,
  scroll("scroll_down", 1),
  scroll("scroll_up", -1),
  searchFile,
  submit,
];
