// Progress in a real terminal: `script` gives the command one of its own.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";

const folder = mkdtempSync(path.join(tmpdir(), "tokenring-terminal-"));
const config = path.join(folder, "job.yaml");
let made = 0;

beforeAll(() => {
  writeFileSync(
    config,
    `
model: { create: { hiddenSize: 32, layers: 1, heads: 1, keyValueHeads: 1, headDim: 32, intermediateSize: 64, maxPositions: 512 } }
tasks: { name: tinyswe, train: 3, heldOut: 1 }
evaluate: { runs: 1, limits: { maxTurns: 2, maxContext: 320 } }
`,
  );
});
afterAll(() => rmSync(folder, { recursive: true }));

/** What a terminal receives of a command that writes four repositories. */
function received(environment: Record<string, string>, ...more: string[]): string {
  const out = path.join(folder, `tasks-${made++}`);
  const words = [process.execPath, path.resolve("dist/cli/main.js"), "tasks", "generate", "--config", config];
  const line = [...words, "--out", out, ...more].map((word) => `'${word}'`).join(" ");
  const { stdout, status } = spawnSync("script", ["-qefc", line, "/dev/null"], {
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "", ...environment },
    timeout: 50_000,
  });
  expect(status, stdout).toBe(0);
  return stdout.replaceAll("\r\n", "\n");
}

/** The lines that stand there in the end. */
const standing = (text: string): string[] =>
  text.split("\n").map((line) => line.split("\x1b[2K").at(-1) as string);

test("a terminal sees one line that is rewritten, then the results", () => {
  const text = received({ TERM: "xterm" });
  expect(text).toContain("\r\x1b[2K");
  const [line, ...results] = standing(text);
  expect(line).toMatch(/^writing repositories: 4\/4 {2}/);
  expect(results.join("\n")).toMatch(/^\S+train\.jsonl: 3 rows\n\S+held-out\.jsonl: 1 row\n/);
});

test.each([{ TERM: "dumb" }, { TERM: "xterm", NO_COLOR: "1" }])("%j sees plain lines", (environment) => {
  const text = received(environment);
  for (const control of ["\x1b", "\r"]) expect(text).not.toContain(control);
  expect(text).toMatch(/^writing repositories: 0\/4\nwriting repositories: 4\/4 {2}.*\n\S+train\.jsonl/);
});

test("--quiet is quiet there too", () => {
  expect(received({ TERM: "xterm" }, "--quiet")).toBe("");
});
