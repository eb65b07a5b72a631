import fc from "fast-check";
import { expect, test } from "vitest";
import { printable, truncateMiddle } from "../../lib/agent/observation.ts";
import { sweTemplate } from "../../lib/agent/templates.ts";
import { defaultTools } from "../../lib/agent/tools.ts";
import { Workspace } from "../../lib/agent/workspace.ts";
import { MemorySandbox, type Shell } from "../support/memory-sandbox.ts";
import { instance } from "../support/tiny-agent.ts";

const observe = async (command: string, shell: Shell, options = {}): Promise<string> =>
  (await new Workspace(new MemorySandbox({}, shell), options).run(command)).observation;
const PROMPT = "(Current directory: /repo, current file: none) bash-$";

test("what is no tool goes to the shell as it is", async () => {
  const seen: string[] = [];
  const command = "cd src && \\\n  grep -rn 'open x' . | head\nls";
  const observation = await observe(command, (text) => {
    seen.push(text);
    return { output: "hit\n", cwd: "/repo/src" };
  });
  expect(seen).toEqual([command]);
  expect(observation).toBe("hit\n(Current directory: /repo/src, current file: none) bash-$");
});

test("tools resolve paths from where the shell is", async () => {
  const sandbox = new MemorySandbox({ "src/a.py": "x\n" }, () => ({ cwd: "/repo/src" }));
  const workspace = new Workspace(sandbox, { style: "compact" });
  await workspace.run("cd src");
  expect((await workspace.run("open a.py")).observation).toContain("[File: src/a.py (1 lines total)]");
});

for (const [what, result, full, compact] of [
  ["success without output", {}, "(no output)", ""],
  ["failure with output", { output: "bad\n", exitCode: 2 }, "bad\n(exit code 2)", "bad"],
  ["failure without output", { exitCode: 1 }, "(exit code 1)", "(exit code 1)"],
  [
    "a time limit",
    { output: "half", exitCode: null, timedOut: true },
    "half\n(the command was stopped at its time limit)",
    "half\n(the command was stopped at its time limit)",
  ],
  [
    "another limit",
    { exitCode: null },
    "(the command was killed at a resource limit)",
    "(the command was killed at a resource limit)",
  ],
  [
    "dropped output",
    { output: "x", droppedBytes: 12 },
    "x\n(12 more bytes of output were dropped)",
    "x\n(12 more bytes of output were dropped)",
  ],
] as const) {
  test(`the shell's end is told: ${what}`, async () => {
    expect(await observe("run", () => result)).toBe(`${full}\n${PROMPT}`);
    expect(await observe("run", () => result, { style: "compact" })).toBe(
      compact === "" ? PROMPT : `${compact}\n${PROMPT}`,
    );
  });
}

test("interactive programs are refused without being run", async () => {
  const sandbox = new MemorySandbox();
  const { observation } = await new Workspace(sandbox).run("vim a.py");
  expect(observation).toMatch(/^Error: vim waits for a person/);
  expect(sandbox.commands).toEqual([]);
});

test("terminal escapes are dropped, control characters made visible", () => {
  expect(printable("plain\ttext\n")).toBe("plain\ttext\n");
  expect(printable("\x1b[31;1mred\x1b[0m \x1b]0;title\x07x \x1b]8;;u\x1b\\y \x1b(Bz \x9b2Kw")).toBe(
    "red x y z w",
  );
  expect(printable("10%\r50%\r100%\r\nnext\r\r\n")).toBe("10%\n50%\n100%\nnext\n");
  expect(printable("bell\x07 back\x08 nul\x00 del\x7f")).toBe("bell\\x07 back\\x08 nul\\x00 del\\x7f");
});

test("no text keeps a control character but tab and newline", () => {
  const odd = fc.constantFrom("\x1b", "\x1b[", "\x1b]", "\x9b", "\r", "\x07", "a", "\n");
  fc.assert(
    fc.property(fc.array(fc.oneof(odd, fc.string())), (parts) => {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: these must be gone
      expect(printable(parts.join(""))).not.toMatch(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/);
    }),
  );
});

test("the middle is cut, the cut is said and counted, and no character is halved", () => {
  expect(truncateMiddle("short", 5)).toBe("short");
  const cut = truncateMiddle(`${"a".repeat(500)}${"b".repeat(500)}`, 200);
  const [, head, count, tail] = /^(a+)\n\[\.\.\. (\d+) characters cut \.\.\.\]\n(b+)$/.exec(cut) ?? [];
  expect((head as string).length + (tail as string).length + Number(count)).toBe(1000);
  expect(cut.length).toBeLessThanOrEqual(200);
  for (let limit = 60; limit < 70; limit++) {
    // encodeURIComponent throws on half a surrogate pair.
    expect(() => encodeURIComponent(truncateMiddle("😀".repeat(200), limit))).not.toThrow();
  }
});

test("an observation is cut at its limit and still ends with the prompt", async () => {
  const observation = await observe("cat big", () => ({ output: "x".repeat(5000) }), {
    observationChars: 100,
  });
  expect(observation).toMatch(
    /characters cut \.\.\.\]\nx+\n\(Current directory: \/repo, current file: none\) bash-\$$/,
  );
  expect(observation.length).toBeLessThanOrEqual(100 + 1 + PROMPT.length);
});

test("the swe template explains every tool and opens with the issue, the checklist and the prompt", () => {
  const template = sweTemplate();
  for (const tool of defaultTools) expect(template.system).toContain(`\`${tool.signature}\``);
  for (const title of [
    "SPECIAL TOOLS",
    "ENVIRONMENT RESPONSE",
    "YOUR RESPONSE",
    "HANDLING TESTS",
    "USEFUL ADVICE",
  ]) {
    expect(template.system).toContain(`# ${title}\n`);
  }
  const opening = template.opening(instance("x", "It crashes.\n"));
  expect(opening).toMatch(/^# ISSUE DESCRIPTION\nIt crashes\.\n\n# ADDITIONAL ADVICE\n/);
  expect(opening.match(/- \[ \] /g)).toHaveLength(4);
  expect(opening.endsWith(PROMPT)).toBe(true);
});

test("the line that ends observations can be another, or none", async () => {
  const sandbox = new MemorySandbox({ "a.py": "x\n" }, () => ({ output: "seen" }));
  const none = new Workspace(sandbox, { prompt: () => "" });
  expect((await none.run("ls")).observation).toBe("seen");
  const own = new Workspace(sandbox, { prompt: ({ cwd, file }) => `${cwd} ${file}>` });
  await own.run("open a.py");
  expect((await own.run("ls")).observation).toBe("seen\n/repo /repo/a.py>");
});

test("a tool behind another command is refused before anything runs: the shell has no such program, or another one", async () => {
  for (const command of [
    "cd src && open a.py",
    "python t.py; submit",
    "cat x | edit 1:1",
    "true || goto 3",
  ]) {
    const said = await observe(command, () => {
      throw new Error("nothing is to run");
    });
    expect(said, command).toMatch(/^Error: \w+ is a tool, not a program: nothing was run\./);
  }
  for (const command of [
    "grep open a.py",
    "echo 'x && submit'",
    "xdg-open x; opening y",
    "cat << 'E'\n; submit\nE",
  ]) {
    expect(await observe(command, () => ({ output: "ran" })), command).toMatch(/^ran/);
  }
});
