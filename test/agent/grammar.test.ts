import fc from "fast-check";
import { expect, test } from "vitest";
import { formatErrorText, parseAction } from "../../lib/agent/grammar.ts";

const block = (command: string): string => `\`\`\`command\n${command}\n\`\`\``;

test("reasoning and one block", () => {
  expect(parseAction(`The operator is wrong.\n${block("edit 3:3\n    return p - q")}`)).toEqual({
    command: "edit 3:3\n    return p - q",
    error: null,
  });
  expect(parseAction(`${block("ls")}\nand some words after it`).command).toBe("ls");
  expect(parseAction("x\r\n```command\r\nls\r\n```\r\n").command).toBe("ls");
});

for (const [what, text] of [
  ["no fence", "I would run ls."],
  ["another fence", "Fix it.\n```edit 198:198\nx\n```"],
  ["a language fence", "```python\nprint(1)\n```"],
  ["words behind the fence", "```command ls\n```"],
  ["a fence that is not on a line of its own", "Do it: ```command\nls\n```"],
  ["a fence that is never closed", "```command\nls"],
  ["an empty block", "```command\n \n```"],
  ["nothing", ""],
] as const) {
  test(`no command: ${what}`, () => {
    expect(parseAction(text)).toEqual({ command: null, error: "no_command" });
  });
}

for (const [what, text] of [
  ["two blocks", `${block("ls")}\n${block("pwd")}`],
  ["a second block that is cut off", `${block("ls")}\n\`\`\`command\npw`],
  ["a block inside a block", "```command\n```command\nls\n```\n```"],
] as const) {
  test(`multiple commands: ${what}`, () => {
    expect(parseAction(text)).toEqual({ command: null, error: "multiple_commands" });
  });
}

test("any command without fence lines comes back as it was", () => {
  const line = fc.string().filter((text) => !/[\n\r]|```/.test(text));
  fc.assert(
    fc.property(fc.array(line, { minLength: 1 }), line, (lines, thought) => {
      const command = lines.join("\n");
      fc.pre(command.trim() !== "");
      expect(parseAction(`${thought}\n${block(command)}`)).toEqual({ command, error: null });
    }),
  );
});

test("each error has its text, shorter in the compact style", () => {
  for (const error of ["no_command", "multiple_commands"] as const) {
    expect(formatErrorText(error, "compact")).toMatch(/^Error: /);
    expect(formatErrorText(error, "full").length).toBeGreaterThan(formatErrorText(error, "compact").length);
  }
  expect(formatErrorText("no_command", "full")).not.toBe(formatErrorText("multiple_commands", "full"));
});
