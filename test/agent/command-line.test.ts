import fc from "fast-check";
import { expect, test } from "vitest";
import { firstWord, interactiveProgram, parseCall, takeOptions } from "../../lib/agent/command-line.ts";

const call = (command: string) => {
  const parsed = parseCall(command);
  if ("error" in parsed) throw new Error(parsed.error);
  return parsed.call;
};
const fault = (command: string) => {
  const parsed = parseCall(command);
  return "error" in parsed ? parsed.error : null;
};

test("words, quotes and escapes", () => {
  expect(call("open  src/a.py\t12 ")).toEqual({
    name: "open",
    argv: ["src/a.py", "12"],
    heredoc: null,
    rest: [],
  });
  expect(call(`replace "a \\"b\\" \\n" 'c "d" \\n'`).argv).toEqual(['a "b" \\n', 'c "d" \\n']);
  expect(call(`replace a\\ b ""`).argv).toEqual(["a b", ""]);
  expect(call(`replace pre'mid dle'"post" x`).argv).toEqual(["premid dlepost", "x"]);
  expect(call(`replace "two\nlines" 'x'`).argv).toEqual(["two\nlines", "x"]);
  expect(call("replace $HOME *.py").argv).toEqual(["$HOME", "*.py"]);
  expect(fault(`replace "a b`)).toMatch(/double quote/);
  expect(fault("replace 'a b")).toMatch(/single quote/);
});

test("lines that follow", () => {
  expect(call("edit 3:3\n    return p - q\n").rest).toEqual(["    return p - q", ""]);
  expect(call('edit 3:3\ndon\'t "split" this').rest).toEqual(['don\'t "split" this']);
});

test("here-documents", () => {
  const expected = { name: "edit", argv: ["1:2"], heredoc: ["  a", "", "it's <<b"], rest: [] };
  expect(call("edit 1:2 << 'EOF'\n  a\n\nit's <<b\nEOF")).toEqual(expected);
  expect(call("edit 1:2 <<EOF\n  a\n\nit's <<b\nEOF\n\n")).toEqual(expected);
  expect(call('edit <<"END OF" 1:2\nx\nEND OF').heredoc).toEqual(["x"]);
  expect(call("edit 1:1 <<-E\n\t\tx\n\tE").heredoc).toEqual(["x"]);
  expect(call("edit 1:1 << E\nE").heredoc).toEqual([]);
  expect(fault("edit 1:1 << E\nx\n E")).toMatch(/never closed by a line E/);
  expect(fault("edit 1:1 <<\nx")).toMatch(/needs a word/);
  expect(fault("edit 1:1 << A << B\nx\nA\nB")).toMatch(/more than one/);
  expect(fault("edit 1:1 << E\nx\nE\nls")).toMatch(/after the here-document/);
});

test("whatever is quoted comes back as it was", () => {
  const single = (text: string): string => `'${text.replaceAll("'", `'"'"'`)}'`;
  const double = (text: string): string => `"${text.replace(/["\\$`]/g, "\\$&")}"`;
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.string({ unit: "grapheme" }), fc.boolean())), (words) => {
      const line = words.map(([word, twice]) => (twice ? double(word) : single(word))).join(" ");
      expect(call(`tool ${line}`).argv).toEqual(words.map(([word]) => word));
    }),
  );
});

test("no text makes the splitter fail otherwise than by saying so", () => {
  const piece = fc.constantFrom("'", '"', "\\", "<<", "-", "EOF", " ", "\n", "a", "$");
  fc.assert(
    fc.property(fc.array(fc.oneof(piece, fc.string())), (pieces) => {
      const parsed = parseCall(pieces.join(""));
      if ("error" in parsed) expect(parsed.error).not.toBe("");
      else expect(parsed.call.argv.every((word) => typeof word === "string")).toBe(true);
    }),
  );
});

test("options are taken out of the words", () => {
  const known = { flags: ["--replace-all"], values: ["--file"] };
  expect(takeOptions(["--file", "a.py", "1:2", "--replace-all"], known)).toEqual({
    positional: ["1:2"],
    flags: new Set(["--replace-all"]),
    values: new Map([["--file", "a.py"]]),
  });
  expect(takeOptions(["--file=a=b", "--", "--replace-all", "--other"], known)).toEqual({
    positional: ["--replace-all", "--other"],
    flags: new Set(),
    values: new Map([["--file", "a=b"]]),
  });
  expect(takeOptions(["--file"], known)).toEqual({ error: "--file needs a value" });
});

test("the first word", () => {
  expect(firstWord("  open a")).toBe("open");
  expect(firstWord("open;ls")).toBe("open");
  expect(firstWord("'open' a")).toBe("");
});

test("programs that wait for a person are found, others are let through", () => {
  for (const [command, program] of [
    ["vim a.py", "vim"],
    ["cd src && nano x", "nano"],
    ["git log | less", "less"],
    ["python", "python"],
    ["python3 -i", "python3"],
    ["PYTHONPATH=. /usr/bin/python3.11", "python3.11"],
    ["bash", "bash"],
    ["tail -f log", "tail -f"],
  ] as const) {
    expect(interactiveProgram(command), command).toBe(program);
  }
  for (const command of [
    "python test.py",
    "python -c 'import vim'",
    "python3 -m pytest -q",
    "python <<EOF\nprint(1)\nEOF",
    "echo 1 | python",
    "python < a.py",
    "echo 'a; vim b'",
    "grep -rn less .",
    "cat vim",
    "bash run.sh 2>&1",
    "tail -n 5 log",
    "",
  ]) {
    expect(interactiveProgram(command), command).toBe(null);
  }
});
