// Completion as shells do it: bash with its own completion, in a terminal too; zsh and fish where they are installed.
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { Command } from "commander";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createProgram } from "../../lib/cli/program.ts";

const main = path.resolve("dist/cli/main.js");
const folder = mkdtempSync(path.join(tmpdir(), "tokenring-completion-"));
const script = (shell: string): string => path.join(folder, `completion.${shell}`);

beforeAll(() => {
  mkdirSync(path.join(folder, "runs"));
  mkdirSync(path.join(folder, "reports of mine"));
  writeFileSync(path.join(folder, "recipe.yaml"), "");
  for (const shell of ["bash", "zsh", "fish"]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, "completion", shell], {
      encoding: "utf8",
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    writeFileSync(script(shell), stdout);
  }
});
afterAll(() => rmSync(folder, { recursive: true }));

/** What bash offers for the last of `words`. */
function offered(...words: string[]): string[] {
  const { stdout, stderr } = spawnSync(
    "bash",
    [
      "--norc",
      "-c",
      `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $(complete -p tokenring | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); ` +
        `for one in "\${COMPREPLY[@]}"; do printf "%s\\n" "$one"; done`,
      "bash",
      script("bash"),
      "tokenring",
      ...words,
    ],
    { encoding: "utf8", cwd: folder },
  );
  expect(stderr).toBe("");
  return stdout.split("\n").slice(0, -1);
}

/** All commands with the words that lead to them. */
function commandsOf(command: Command, words: readonly string[] = []): [readonly string[], Command][] {
  return [[words, command], ...command.commands.flatMap((one) => commandsOf(one, [...words, one.name()]))];
}

describe("bash", () => {
  test("commands, and commands of commands", () => {
    const names = createProgram().commands.map((one) => one.name());
    expect(offered("").sort()).toEqual([...names].sort());
    expect(offered("tr")).toEqual(["train"]);
    expect(offered("tasks", "")).toEqual(["show", "check", "generate"]);
  });

  test("every option of every command", () => {
    const commands = commandsOf(createProgram());
    expect(commands.length).toBeGreaterThan(12);
    for (const [words, command] of commands) {
      const shown = offered(...words, "--");
      for (const { long, hidden } of command.options) if (!hidden) expect(shown).toContain(long);
      expect(shown).toContain("--help");
    }
    expect(offered("train", "job.yaml", "--se")).toEqual(["--seed"]);
  });

  test("choices of options and arguments, also after an equals sign", () => {
    expect(offered("train", "--sandbox", "")).toContain("bubblewrap");
    expect(offered("train", "--sandbox", "=", "land")).toEqual(["landlock"]);
    expect(offered("train", "--sandbox", "=")).toContain("landlock");
    expect(offered("completion", "")).toEqual(["bash", "zsh", "fish"]);
    // A number is nobody's to guess.
    expect(offered("train", "--seed", "")).toEqual([]);
  });

  test("files where a file is meant, directories where one is, whatever options stand before", () => {
    expect(offered("train", "re").sort()).toEqual(["recipe.yaml", "reports of mine"]);
    expect(offered("resume", "re")).toEqual(["reports of mine"]);
    expect(offered("report", "runs", "ru")).toEqual(["runs"]);
    expect(offered("resume", "--quiet", "--json", "train", "ru")).toEqual(["runs"]);
    expect(offered("train", "--out", "ru")).toEqual(["runs"]);
  });

  test("in a terminal the Tab key completes, and quotes what needs it", async () => {
    // `script` gives the shell a terminal of its own.
    const shell = spawn("script", ["-qefc", "bash --norc --noprofile -i", "/dev/null"], {
      cwd: folder,
      env: { ...process.env, TERM: "dumb", PS1: "$ ", HISTFILE: "/dev/null" },
      timeout: 40_000,
    });
    let said = "";
    shell.stdout.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const typed = async (keys: string, answer: RegExp): Promise<void> => {
      shell.stdin.write(keys);
      await expect.poll(() => said, { timeout: 20_000 }).toMatch(answer);
    };
    await typed(`source ${script("bash")}; tokenring() { printf 'got:%s.' "$@"; }; echo ready\n`, /^ready/m);
    await typed(
      "tokenring tra\tjob.yaml --sandbox land\t\n",
      /got:train\.got:job\.yaml\.got:--sandbox\.got:landlock\./,
    );
    await typed("tokenring resume rep\t\n", /got:resume\.got:reports of mine\/\./);
    shell.stdin.end("exit\n");
    await new Promise((resolve) => shell.once("close", resolve));
  });
});

const installed = (shell: string): boolean => spawnSync(shell, ["--version"]).status === 0;

test.runIf(installed("zsh"))("zsh takes its script", () => {
  const { status, stderr } = spawnSync(
    "zsh",
    [
      "-f",
      "-c",
      `autoload -U compinit; compinit -D; source ${script("zsh")}; whence -w _tokenring_tasks_show`,
    ],
    { encoding: "utf8" },
  );
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
});

test.runIf(installed("fish"))("fish completes commands, options and choices", () => {
  const offers = (line: string): string[] => {
    const { stdout } = spawnSync("fish", ["-N", "-c", `source ${script("fish")}; complete -C '${line}'`], {
      encoding: "utf8",
      cwd: folder,
    });
    return stdout
      .trimEnd()
      .split("\n")
      .map((one) => one.split("\t")[0] as string);
  };
  expect(offers("tokenring tr")).toEqual(["train"]);
  expect(offers("tokenring tasks ")).toEqual(expect.arrayContaining(["show", "check", "generate"]));
  expect(offers("tokenring train --sandbox land")).toEqual(["landlock"]);
  expect(offers("tokenring evaluate --che")).toEqual(["--checkpoint"]);
});

test("no description of a command or an option breaks a script", () => {
  expect(spawnSync("bash", ["-n", script("bash")], { encoding: "utf8" })).toMatchObject({
    status: 0,
    stderr: "",
  });
});

test("every command's help has an example", () => {
  for (const [words, command] of commandsOf(createProgram())) {
    let said = "";
    command.configureOutput({
      writeOut: (text) => {
        said += text;
      },
    });
    command.outputHelp();
    expect(said, words.join(" ")).toMatch(/^Examples?:\s/m);
    // An example is of the command whose help it is in.
    expect(said).toContain(`tokenring ${words.join(" ")}`.trimEnd());
  }
});
