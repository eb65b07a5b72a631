// The shell prompt under every observation: one bounded, printable line.
import { expect, test } from "vitest";
import { shellPrompt } from "../../lib/agent/observation.ts";

test("names the directory and the open file", () => {
  expect(shellPrompt("/repo", null)).toBe("(Current directory: /repo, current file: none) bash-$");
  expect(shellPrompt("/repo/ä", "a b.py")).toBe("(Current directory: /repo/ä, current file: a b.py) bash-$");
});

test("shows no escapes, no second line and no endless path", () => {
  expect(shellPrompt("/repo/\x1b]0;title\x07\x1b[31m\nX", "\x1b[2Ja.py")).toBe(
    "(Current directory: /repo/\\nX, current file: a.py) bash-$",
  );
  expect(shellPrompt("/a".repeat(4000), "b".repeat(4000)).length).toBeLessThan(600);
});
