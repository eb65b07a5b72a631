// An agent on one's own repository: what is printed, what is chosen, and that the user's tree is never touched unasked.
import { spawnSync } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Turn } from "../../lib/agent/types.ts";
import { chatFormat, chatTemplateOf } from "../../lib/engine/chat.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import { tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { findAgent } from "../../lib/run/agent.ts";
import { applyPatch, ownRepository, privateCopy } from "../../lib/run/own-repository.ts";
import { type SolveOptions, solve } from "../../lib/run/solve.ts";
import { COMPACT_TEMPLATE } from "../../lib/tasks/tinyswe/tinyswe.ts";
import { git, makeRepository, removeDirectories, temporaryDirectory } from "../sandbox/support.ts";

const files = buildByteTokenizer({ phrases: ["submit"] });
const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
const chat = chatFormat(tokenizer, chatTemplateOf(files.tokenizerConfig));
const act = (command: string): string => `I do.\n\`\`\`command\n${command}\n\`\`\``;

const SOURCE = "def double(x):\n    return x + 2\n";
const TEST = "from double import double\nassert double(5) == 10\n";
const RIGHT = "sed -i 's/x + 2/x * 2/' double.py";
const WRONG = "sed -i 's/x + 2/x - 2/' double.py";
const TEST_COMMAND = "python3 test_double.py";

function repository(): string {
  return makeRepository({ "double.py": SOURCE, "test_double.py": TEST, ".gitignore": "secret\nbuilt/\n" });
}

/** Each attempt says one of the lists of commands, then submits; which one, whoever samples first decides. */
async function attempt(
  root: string,
  scripts: string[][],
  more: Partial<SolveOptions> = {},
): ReturnType<typeof solve> {
  return solve({
    engine: scriptedEngine(tokenizer, {
      script: (index) => (_, turn) => act(scripts[index]?.[turn] ?? "submit"),
    }),
    tokenizer,
    chat,
    template: COMPACT_TEMPLATE,
    style: "compact",
    repository: await ownRepository(root),
    issue: "double(5) gives 7.",
    limits: {
      maxTurns: 3,
      maxContext: 4000,
      maxActionTokens: 200,
      episodeMs: 30_000,
      observationChars: 2000,
      autoSubmit: true,
    },
    attempts: scripts.length,
    onWarning: () => undefined,
    ...more,
  });
}

/** Everything in a working tree and in its index, to see that nothing moved. */
function stateOf(root: string): unknown {
  const names = readdirSync(root).filter((name) => name !== ".git");
  return {
    files: names.map((name) => [name, readFileSync(path.join(root, name), "utf8")]),
    head: git(root, "rev-parse", "HEAD"),
    stash: git(root, "stash", "list"),
    git: readdirSync(path.join(root, ".git")).sort(),
  };
}

afterAll(removeDirectories);

describe("solve", () => {
  test("takes the patch that passes the test, shows every turn, and leaves the tree as it is", async () => {
    const root = repository();
    const before = stateOf(root);
    const turns: [number, number, Turn][] = [];
    const { patch, chosen, attempts } = await attempt(root, [[WRONG], [RIGHT]], {
      test: TEST_COMMAND,
      onTurn: (turn, { attempt: of, index }) => turns.push([of, index, turn]),
    });
    expect(attempts.map(({ verdict, exit }) => [verdict, exit]).sort()).toEqual([
      ["failed", "submitted"],
      ["resolved", "submitted"],
    ]);
    expect(attempts[chosen as number]).toMatchObject({ attempt: chosen, verdict: "resolved", patch });
    expect(patch).toContain("-    return x + 2\n+    return x * 2\n");
    expect(stateOf(root)).toEqual(before);
    expect(turns.filter(([of]) => of === chosen).map(([, index, { command }]) => [index, command])).toEqual([
      [0, RIGHT],
      [1, "submit"],
    ]);
    expect(turns[0]?.[2].observation).toContain("bash-$");
    expect(readdirSync(tmpdir()).filter((name) => name.startsWith("tokenring-solve-"))).toEqual([]);
  });

  test("without a test it takes what was handed in, and says that nobody ran anything", async () => {
    const root = repository();
    const { patch, chosen, attempts } = await attempt(root, [[WRONG, "true", "true"], [RIGHT]]);
    expect(attempts.map(({ exit, verdict }) => [exit, verdict]).sort()).toEqual([
      ["submitted", "not_run"],
      ["turn_limit", "not_run"],
    ]);
    expect(attempts[chosen as number]).toMatchObject({ exit: "submitted", patch });
    expect(patch).toContain("x * 2");
  });

  test("tests that a patch changes are asked as they were", async () => {
    const { attempts } = await attempt(repository(), [["echo pass > test_double.py"]], {
      test: TEST_COMMAND,
    });
    expect(attempts[0]).toMatchObject({ verdict: "failed", reason: "tests_failed" });
  });

  test("a test that cannot be run is refused, and one that shows nothing is warned of", async () => {
    await expect(attempt(repository(), [[]], { test: "no-such-program --all" })).rejects.toThrow(
      /^the test "no-such-program --all" cannot be run in the sandbox \(.*not found\)/,
    );
    await expect(attempt(repository(), [[]], { test: "sleep 60", testMs: 1000 })).rejects.toThrow(
      /^the test "sleep 60" takes longer than 1 s/,
    );
    const warnings: string[] = [];
    await attempt(repository(), [[]], { test: "true", onWarning: (message) => warnings.push(message) });
    expect(warnings.join("\n")).toContain('"true" passes before any patch');
  });

  test("an attempt that changes nothing has no patch, and there is no solution", async () => {
    expect(await attempt(repository(), [["true"]], { test: TEST_COMMAND })).toMatchObject({
      patch: "",
      chosen: null,
      attempts: [{ verdict: "not_run", reason: "empty_patch" }],
    });
  });

  test("the copy has the files of the commit, and others only if they are named", async () => {
    const root = repository();
    for (const name of ["secret", "untracked"]) writeFileSync(path.join(root, name), "x");
    mkdirSync(path.join(root, "built"));
    writeFileSync(path.join(root, "built", "lib"), "y");
    const own = await ownRepository(root);
    expect(own.untracked).toBe(1);
    const copy = path.join(temporaryDirectory(), "copy");
    await privateCopy(own, copy, ["built"]);
    expect(readdirSync(copy).sort()).toEqual([".git", ".gitignore", "built", "double.py", "test_double.py"]);
    expect(readFileSync(path.join(copy, "built", "lib"), "utf8")).toBe("y");
    await expect(privateCopy(own, `${copy}-2`, ["../else"])).rejects.toThrow(/lies outside of/);
    await expect(privateCopy(own, `${copy}-2`, [".git"])).rejects.toThrow(/lies outside of/);
    await expect(privateCopy(own, `${copy}-2`, ["built/none"])).rejects.toThrow(/no such file or folder/);
    // What is copied beside the commit is no part of a patch.
    const { patch } = await attempt(root, [[`${RIGHT}; cat built/lib`]], { extra: ["built"] });
    expect(patch).not.toContain("built");
  });

  test("a patch is applied to the tree as it was, or not at all", async () => {
    const root = repository();
    const own = await ownRepository(root);
    const { patch } = await attempt(root, [[RIGHT]]);
    await applyPatch(own, patch);
    expect(readFileSync(path.join(root, "double.py"), "utf8")).toContain("x * 2");
    await expect(applyPatch(own, patch)).rejects.toThrow(/was changed while the agent worked/);
    git(root, "checkout", "-q", "--", ".");
    await expect(applyPatch(own, patch.replace("x + 2", "x + 3"))).rejects.toThrow(
      /git apply refuses the patch, nothing was changed: .*patch does not apply/,
    );
    await expect(applyPatch(own, patch.replaceAll("double.py", ".git/hooks/pre-commit"))).rejects.toThrow(
      /git apply refuses/,
    );
    expect(readFileSync(path.join(root, "double.py"), "utf8")).toBe(SOURCE);
  });

  test.each([
    ["an issue of spaces", { issue: " \n" }, "the issue is empty"],
    [
      "a context that the issue fills",
      { issue: "long ".repeat(2000) },
      /^the issue with its prompt has \d+ tokens, and the context holds 4000: no room to act; give it a larger context/,
    ],
  ])("%s is refused", async (_, more, message) => {
    await expect(attempt(repository(), [[]], more)).rejects.toThrow(message);
  });
});

describe("the user's repository", () => {
  test("is found from a folder in it", async () => {
    const root = makeRepository({ "deep/file": "x" });
    expect(await ownRepository(path.join(root, "deep"))).toMatchObject({ root });
  });

  test("may be a clone whose history is cut off, or another working tree of one", async () => {
    const root = repository();
    appendFileSync(path.join(root, "double.py"), "\n");
    git(root, "commit", "-qam", "second");
    const clone = path.join(temporaryDirectory(), "clone");
    git(root, "clone", "-q", "--depth", "1", `file://${root}`, clone);
    const tree = path.join(temporaryDirectory(), "tree");
    git(root, "worktree", "add", "-q", tree);
    for (const [from, commits] of [
      [clone, 1],
      [tree, 2],
    ] as const) {
      const copy = path.join(temporaryDirectory(), "copy");
      await privateCopy(await ownRepository(from), copy);
      expect(git(copy, "log", "--format=%s").trim().split("\n")).toHaveLength(commits);
      const { chosen } = await attempt(from, [[`git log >/dev/null && ${RIGHT}`]], { test: TEST_COMMAND });
      expect(chosen).toBe(0);
    }
  });

  test.each([
    ["no folder", () => "/nowhere/at/all", "there is no such directory; check --repo"],
    ["no repository", () => temporaryDirectory(), /no working tree of a git repository .* git init/],
    [
      "commits named by SHA-256",
      () => {
        const root = temporaryDirectory();
        git(root, "init", "-q", "--object-format=sha256");
        writeFileSync(path.join(root, "file"), "x");
        git(root, "add", "-A");
        git(root, "commit", "-q", "-m", "base");
        return root;
      },
      "names its commits by SHA-256",
    ],
    [
      "no commit",
      () => {
        const root = temporaryDirectory();
        git(root, "init", "-q");
        return root;
      },
      "has no commit yet",
    ],
    [
      "changes",
      () => {
        const root = repository();
        appendFileSync(path.join(root, "double.py"), "# mine\n");
        return root;
      },
      /has changes that are not committed \(double\.py\).* commit or stash them/,
    ],
  ])("%s is refused, with the cure", async (_, make, message) => {
    await expect(ownRepository(make())).rejects.toThrow(message);
  });
});

describe("the command", () => {
  let model: string;
  const main = path.resolve("dist/cli/main.js");
  const command = (...args: string[]) =>
    spawnSync(process.execPath, [main, "solve", ...args], { encoding: "utf8", timeout: 50_000 });
  const issue = (): string => {
    const file = path.join(temporaryDirectory(), "issue.txt");
    writeFileSync(file, "double(5) gives 7.\n");
    return file;
  };

  beforeAll(async () => {
    model = path.join(temporaryDirectory(), "model");
    await using policy = await Policy.create({
      vocab_size: tokenizer.vocabularySize,
      hidden_size: 32,
      intermediate_size: 32,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      head_dim: 16,
      max_position_embeddings: 8192,
      rope_theta: 10_000,
      rms_norm_eps: 1e-6,
      tie_word_embeddings: true,
      attention_bias: false,
    });
    await policy.save(model);
    writeFileSync(path.join(model, "tokenizer.json"), JSON.stringify(files.tokenizerJson));
    writeFileSync(path.join(model, "tokenizer_config.json"), JSON.stringify(files.tokenizerConfig));
  });

  test("tells turns, attempts and the solution as JSON Lines, and ends with 1 where there is none", () => {
    const root = repository();
    const { status, stdout, stderr } = command(
      ...["--repo", root, "--issue", issue(), "--model", model, "--json", "--attempts", "2"],
      ...["--max-turns", "2", "--max-action-tokens", "8"],
    );
    expect(stderr).toContain("no attempt made a patch; try more");
    expect(status).toBe(1);
    const events = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as { type: string });
    expect(events.map(({ type }) => type).sort()).toEqual(
      ["attempt", "attempt", "solution", "turn", "turn", "turn", "turn"].sort(),
    );
    expect(events.at(-1)).toMatchObject({ type: "solution", patch: "", chosen: null });
    expect(existsSync(path.join(root, "double.py"))).toBe(true);
  });

  test.each([
    ["no issue", () => ["--model", model], "no issue: give --issue FILE"],
    ["no model", () => ["--issue", issue()], "no model: give --model PATH"],
    [
      "an issue that is not there",
      () => ["--issue", "/no/issue", "--model", model],
      "cannot be read (ENOENT)",
    ],
    [
      "a model that is not there",
      () => ["--issue", issue(), "--model", "/no/model", "--repo", repository()],
      "/no/model: there is no such directory; give a run",
    ],
    [
      "a folder that holds no model",
      () => ["--issue", issue(), "--model", temporaryDirectory(), "--repo", repository()],
      "holds neither a run (run.json) nor a model (config.json)",
    ],
    [
      "more context than the model has",
      () => ["--issue", issue(), "--model", model, "--repo", repository(), "--max-context", "9000"],
      "--max-context 9000: the model's context is 8192; lower it",
    ],
  ])("%s is one line on stderr", (_, args, message) => {
    const { status, stdout, stderr } = command(...args());
    expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
    expect(stderr).toContain(message);
    expect(stderr.trimEnd().split("\n").at(-1)).toMatch(/^tokenring: /);
  });

  test("a model by itself has no checkpoints to choose from", async () => {
    await expect(findAgent(model, "rft")).rejects.toThrow(
      "is a model, so there is no checkpoint rft to choose",
    );
  });
});
