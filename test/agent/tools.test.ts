import { expect, test } from "vitest";
import { type Tool, ToolError } from "../../lib/agent/tool.ts";
import { defaultTools, UPDATED_COMPACT, UPDATED_FULL } from "../../lib/agent/tools.ts";
import { Workspace, type WorkspaceOptions } from "../../lib/agent/workspace.ts";
import { TokenringError } from "../../lib/errors.ts";
import { MemorySandbox } from "../support/memory-sandbox.ts";

const numbered = (count: number): string =>
  Array.from({ length: count }, (_, i) => `line ${i + 1}\n`).join("");
const NOWHERE = "(Current directory: /repo, current file: none) bash-$";

function agent(files: Record<string, string>, options: WorkspaceOptions = {}) {
  const sandbox = new MemorySandbox(files);
  const workspace = new Workspace(sandbox, options);
  return {
    sandbox,
    text: (name: string) => sandbox.files.get(`/repo/${name}`),
    /** The observation without its prompt, which is checked to be there. */
    async run(command: string): Promise<string> {
      const { observation } = await workspace.run(command);
      const lines = observation.split("\n");
      expect(lines.at(-1)).toMatch(/^\(Current directory: \S+, current file: \S+\) bash-\$$/);
      return lines.slice(0, -1).join("\n");
    },
    prompt: () => workspace.prompt(),
    workspace,
  };
}

test("open shows the file, its lines and the prompt", async () => {
  const { run, prompt } = agent({ "a.py": "x = 1\ny = 2\n" });
  expect(prompt()).toBe(NOWHERE);
  expect(await run("open a.py")).toBe("[File: /repo/a.py (2 lines total)]\n1:x = 1\n2:y = 2");
  expect(prompt()).toBe("(Current directory: /repo, current file: /repo/a.py) bash-$");
});

test("open moves the window so that the line stands at a sixth of it, and marks what is out of sight", async () => {
  const { run } = agent({ "a.py": numbered(300) }, { window: 60 });
  const shown = (await run("open a.py 100")).split("\n");
  expect(shown.slice(0, 3)).toEqual([
    "[File: /repo/a.py (300 lines total)]",
    "(89 more lines above)",
    "90:line 90",
  ]);
  expect(shown.slice(-2)).toEqual(["149:line 149", "(151 more lines below)"]);
});

test("open without a file shows the last one again; a bare number is a line of it", async () => {
  const { run } = agent({ "a.py": numbered(30) }, { window: 6 });
  await run("open a.py 20");
  expect(await run("open")).toContain("\n(18 more lines above)\n19:line 19");
  expect(await run("open 10")).toContain("\n9:line 9\n10:line 10");
});

test("open: faults", async () => {
  const { run } = agent({ "src/a.py": "x\n" });
  expect(await run("open")).toBe("Error: no file is open; use open FILE first.");
  expect(await run("open b.py")).toBe("Error: there is no file /repo/b.py.");
  expect(await run("open src")).toBe("Error: /repo/src: Is a directory.");
  expect(await run("open src/a.py 2")).toBe("Error: line 2 is outside the file, which has 1 lines.");
  expect(await run("open src/a.py two")).toBe('Error: "two" is no line number.');
  expect(await run("open my file.py 3 4")).toMatch(
    /at most 2 argument\(s\), got 4; put text with spaces in quotes/,
  );
  expect(await run("open src/a.py\nls")).toMatch(/takes one line/);
  expect(await run("open 'src/a.py")).toMatch(/single quote/);
});

test("goto and scrolling move the window; it stays in the file", async () => {
  const { run } = agent({ "a.py": numbered(30) }, { window: 12, overlap: 2 });
  const first = async (command: string): Promise<string | undefined> =>
    /^(\d+):/m.exec(await run(command))?.[1];
  await run("open a.py");
  expect(await first("goto 15")).toBe("13");
  expect(await first("scroll_down")).toBe("19");
  expect(await first("scroll_up")).toBe("9");
  expect(await first("scroll_up")).toBe("1");
  expect(await first("scroll_up")).toBe("1");
  expect(await first("scroll_down")).toBe("11");
  expect(await run("goto 31")).toMatch(/^Error: line 31 is outside/);
  expect(await run("goto")).toMatch(/^Error: goto needs 1/);
  expect(await run("scroll_down 3")).toMatch(/^Error: scroll_down takes no arguments/);
});

test("goto and scrolling need an open file", async () => {
  const { run } = agent({});
  for (const command of ["goto 1", "scroll_down", "scroll_up", "edit 1:1 x", "replace a b"]) {
    expect(await run(command)).toBe("Error: no file is open; use open FILE first.");
  }
});

test("create makes an empty file of one line and opens it", async () => {
  const { run, text, prompt } = agent({ "a.py": "" });
  expect(await run("create new.py")).toBe("[File: /repo/new.py (1 lines total)]\n1:");
  expect(text("new.py")).toBe("");
  expect(prompt()).toContain("current file: /repo/new.py)");
  await run("edit 1:1 'x = 1'");
  expect(text("new.py")).toBe("x = 1\n");
  expect(await run("create a.py")).toBe("Error: /repo/a.py exists already; use open to see it.");
});

for (const [how, command] of [
  ["an argument", "edit 2:3 'B\nC'"],
  ["a here-document", "edit 2:3 << 'EOF'\nB\nC\nEOF"],
  ["the lines below", "edit 2:3\nB\nC"],
] as const) {
  test(`edit takes its text from ${how}`, async () => {
    const { run, text } = agent({ "a.py": "a\nb\nc\nd\n" });
    await run("open a.py");
    expect(await run(command)).toBe(
      `${UPDATED_FULL}\n[File: /repo/a.py (4 lines total)]\n1:a\n2:B\n3:C\n4:d`,
    );
    expect(text("a.py")).toBe("a\nB\nC\nd\n");
  });
}

test("edit keeps white space, deletes, empties, appends, and leaves a missing last newline missing", async () => {
  const { run, text } = agent({ "a.py": "a\nb\nc" });
  await run("open a.py");
  await run("edit 2:2\n    \tb  ");
  expect(text("a.py")).toBe("a\n    \tb  \nc");
  await run("edit 2:2");
  expect(text("a.py")).toBe("a\nc");
  await run("edit 3:3 d");
  expect(text("a.py")).toBe("a\nc\nd");
  await run("edit 2:2 << E\n\nE");
  expect(text("a.py")).toBe("a\n\nd");
  await run('edit 2:2 ""');
  expect(text("a.py")).toBe("a\nd");
  await run("edit 1:2 << E\nE");
  expect(text("a.py")).toBe("");
});

test("edit --file edits another file and opens it", async () => {
  const { run, text, prompt } = agent({ "a.py": "a\n", "b.py": "b\n" });
  await run("open a.py");
  expect(await run("edit --file b.py 1:1 B")).toContain("[File: /repo/b.py (1 lines total)]\n1:B");
  expect(text("b.py")).toBe("B\n");
  expect(prompt()).toContain("/repo/b.py");
});

test("edit keeps CRLF files CRLF", async () => {
  const { run, text } = agent({ "a.py": "a\r\nb\r\n" });
  await run("open a.py");
  await run("edit 1:1 A");
  expect(text("a.py")).toBe("A\r\nb\r\n");
});

test("edit: faults leave the file as it was", async () => {
  const { run, text } = agent({ "a.py": "a\nb\n" });
  await run("open a.py");
  for (const [command, message] of [
    ["edit 3 x", /"3" is no line range/],
    ["edit 0:1 x", /line 0 is outside/],
    ["edit 1:9 x", /line 9 is outside the file, which has 2 lines/],
    ["edit 2:1 x", /ends before it starts/],
    ["edit 1:1 a << E\nb\nE", /give the replacement once/],
    ["edit 1:1 a\nb", /give the replacement once/],
    ["edit 1:1 two words", /at most 2 argument/],
    ["edit", /needs 1 argument/],
    ["edit --file c.py 1:1 x", /no file \/repo\/c\.py/],
    ["edit --file", /--file needs a value/],
    ["edit 1:1 << E\nx", /never closed/],
  ] as const) {
    const output = await run(command);
    expect(output, command).toMatch(/^Error: /);
    expect(output, command).toMatch(message);
  }
  expect(text("a.py")).toBe("a\nb\n");
});

test("after an edit out of sight the window moves to it", async () => {
  const { run } = agent({ "a.py": numbered(100) }, { window: 12 });
  await run("open a.py");
  expect(await run("edit 50:50 new")).toContain("\n48:line 48\n49:line 49\n50:new\n51:line 51");
});

test("compact: short paths, and after an edit only the lines around it", async () => {
  const { run, prompt } = agent({ "gebo.py": "a\nb\nc\nd\ne\n" }, { style: "compact" });
  expect(await run("open gebo.py")).toBe("[File: gebo.py (5 lines total)]\n1:a\n2:b\n3:c\n4:d\n5:e");
  expect(prompt()).toBe("(Current directory: /repo, current file: gebo.py) bash-$");
  expect(await run("edit 3:3\nC")).toBe(`${UPDATED_COMPACT}\n2:b\n3:C\n4:d`);
  expect(await run('replace "e" "E"')).toBe(`${UPDATED_COMPACT}\n4:d\n5:E`);
  expect(await run("edit 5:5")).toBe(`${UPDATED_COMPACT}\n4:d`);
  expect(await run("open gone.py")).toBe("Error: there is no file gone.py.");
});

test("replace: the first place, or all of them", async () => {
  const { run, text } = agent({ "a.py": "x = x\ny = x\n" });
  await run("open a.py");
  expect(await run('replace "x" "z"')).toContain("Replaced 1 of 3.\n");
  expect(text("a.py")).toBe("z = x\ny = x\n");
  expect(await run("replace --replace-all x $&")).toContain("Replaced 2 of 2.\n");
  expect(text("a.py")).toBe("z = $&\ny = $&\n");
  expect(await run("replace 'z = $&\ny' 'q\nr'")).toContain("\n1:q\n2:r = $&");
  expect(await run("replace nowhere x")).toBe('Error: "nowhere" is not in /repo/a.py.');
  expect(await run('replace "" x')).toBe("Error: SEARCH is empty.");
  expect(await run("replace x")).toMatch(/needs 2 argument/);
});

test("search_file: the open file or a named one, at most 100 lines", async () => {
  const { run } = agent({
    "a.py": "def f():\n    return f\n",
    "b.py": "f\n".repeat(100),
    "c.py": "f\n".repeat(101),
  });
  expect(await run("search_file f")).toMatch(/no file is open; name one/);
  expect(await run("search_file 'f' a.py")).toBe(
    "[2 matching lines in /repo/a.py]\n1:def f():\n2:    return f",
  );
  await run("open a.py");
  expect(await run('search_file "return f"')).toBe("[1 matching lines in /repo/a.py]\n2:    return f");
  expect(await run("search_file g")).toBe('No line of /repo/a.py holds "g".');
  expect(await run("search_file f b.py")).toContain("[100 matching lines");
  expect(await run("search_file f c.py")).toMatch(
    /^Error: 101 lines of \/repo\/c\.py hold "f", more than 100/,
  );
  expect(await run('search_file ""')).toBe("Error: SEARCH_TERM is empty.");
});

test("submit ends the episode and takes nothing", async () => {
  const { workspace, run } = agent({});
  expect((await workspace.run("submit")).submitted).toBe(true);
  expect(await run("submit now")).toMatch(/takes no arguments/);
});

test("every tool explains itself", async () => {
  const { run } = agent({});
  for (const tool of defaultTools)
    expect(await run(`${tool.name} --help`)).toBe(`${tool.signature}\n${tool.help}`);
});

test("the table of tools can be cut and extended", async () => {
  const shout: Tool = {
    name: "shout",
    signature: "shout WORD",
    help: "Says it louder.",
    run: async (_context, call) => {
      if (call.argv[0] === undefined) throw new ToolError("say something");
      return call.argv[0].toUpperCase();
    },
  };
  const { run, sandbox } = agent({ "a.py": "" }, { tools: [shout] });
  expect(await run("shout 'hey you'")).toBe("HEY YOU");
  expect(await run("shout")).toBe("Error: say something.");
  await run("open a.py");
  expect(sandbox.commands).toEqual(["open a.py"]);
});

test("a broken sandbox and faults of a tool's code are no observations", async () => {
  const sandbox = new MemorySandbox({ "a.py": "x\n" });
  sandbox.read = async () => {
    throw new TokenringError("ERR_TOKENRING_SANDBOX", "gone");
  };
  await expect(new Workspace(sandbox).run("open a.py")).rejects.toThrow("gone");
  const bad: Tool = { ...(defaultTools[0] as Tool), run: () => Promise.reject(new TypeError("a bug")) };
  await expect(new Workspace(sandbox, { tools: [bad] }).run("create x")).rejects.toThrow(TypeError);
});
