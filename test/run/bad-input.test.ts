// Bad input at the doors (docs/errors.md): each message names the thing, the place and the cure, and nothing is changed.
import { spawnSync } from "node:child_process";
import { cp, mkdtemp, open, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { findAgent, openAgent } from "../../lib/run/agent.ts";
import { readConfig } from "../../lib/run/config-file.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { guarded } from "../../lib/run/files.ts";
import { parseRow } from "../../lib/tasks/rows.ts";
import type { Instance } from "../../lib/tasks/types.ts";
import { checkTask } from "../../lib/verify/check-task.ts";
import { TINY } from "../policy/tiny.ts";
import { makeRepository, openBackend, removeDirectories } from "../sandbox/support.ts";

const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({ phrases: ["submit"] });

let root: string;
let model: string;
const at = (name: string): string => path.join(root, name);

beforeAll(async () => {
  root = await mkdtemp(path.join(tmpdir(), "tokenring-bad-"));
  model = at("model");
  await using policy = await Policy.create({ ...TINY, vocab_size: 300 });
  await policy.save(model, { optimiser: true });
  await writeFile(path.join(model, "tokenizer.json"), JSON.stringify(tokenizerJson));
  await writeFile(path.join(model, "tokenizer_config.json"), JSON.stringify(tokenizerConfig));
});
afterAll(async () => {
  await rm(root, { recursive: true });
  removeDirectories();
});

/** Contents of every file below `directory`. */
async function contents(directory: string): Promise<Record<string, string>> {
  const all: Record<string, string> = {};
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const file = path.join(entry.parentPath, entry.name);
    all[path.relative(directory, file)] = await readFile(file, "base64");
  }
  return all;
}

/** Changes the header of a safetensors file: same length, other text. */
async function rewrite(file: string, change: (header: string) => string): Promise<void> {
  const handle = await open(file, "r+");
  const head = Buffer.alloc(8);
  await handle.read(head, 0, 8, 0);
  const header = Buffer.alloc(Number(head.readBigUInt64LE()));
  await handle.read(header, 0, header.length, 8);
  const changed = change(header.toString());
  expect(Buffer.byteLength(changed)).toBe(header.length);
  await handle.write(changed, 8);
  await handle.close();
}

const json = async (file: string): Promise<Record<string, unknown>> =>
  JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;

describe("a model", () => {
  type Damage = (directory: string) => Promise<void>;
  const weights = (directory: string): string => path.join(directory, "model.safetensors");
  const cut: Damage = async (directory) =>
    truncate(weights(directory), Math.floor((await stat(weights(directory))).size / 2));
  const edit =
    (name: string, change: (value: Record<string, unknown>) => void): Damage =>
    async (directory) => {
      const value = await json(path.join(directory, name));
      change(value);
      await writeFile(path.join(directory, name), JSON.stringify(value));
    };

  it.each<[string, Damage, string, RegExp]>([
    ["weights that are cut off", cut, "CHECKPOINT", /model\.safetensors.*truncated/],
    ["weights of no bytes", (at) => truncate(weights(at), 0), "CHECKPOINT", /model\.safetensors/],
    [
      "weights that are no safetensors",
      (at) => writeFile(weights(at), "PK\u0003\u0004 a zip file, as torch.save writes it"),
      "CHECKPOINT",
      /model\.safetensors/,
    ],
    [
      "weights of another dtype",
      (at) => rewrite(weights(at), (header) => header.replace('"F32"', '"I32"')),
      "CHECKPOINT",
      /model\.safetensors.*I32/,
    ],
    [
      "weights of another shape",
      edit("config.json", (config) => {
        config.intermediate_size = 96;
      }),
      "CHECKPOINT",
      /model\.safetensors.*(gate_proj|up_proj|down_proj)/,
    ],
    ["no weights", (at) => rm(weights(at)), "CHECKPOINT", /model\.safetensors/],
    [
      "sizes that are impossible",
      edit("config.json", (config) => {
        config.hidden_size = -32;
      }),
      "CHECKPOINT",
      /config\.json.*hidden_size/,
    ],
    [
      "heads that do not divide",
      edit("config.json", (config) => {
        config.num_key_value_heads = 3;
      }),
      "CHECKPOINT",
      /num_(key_value|attention)_heads/,
    ],
    [
      "another family",
      edit("config.json", (config) => {
        config.model_type = "mamba";
      }),
      "CHECKPOINT",
      /config\.json.*mamba/,
    ],
    ["no tokenizer", (at) => rm(path.join(at, "tokenizer.json")), "TOKENIZER", /tokenizer\.json/],
    [
      "a tokenizer that is no JSON",
      (at) => writeFile(path.join(at, "tokenizer.json"), "{"),
      "TOKENIZER",
      /tokenizer\.json/,
    ],
    [
      "a larger tokenizer",
      (at) =>
        writeFile(
          path.join(at, "tokenizer.json"),
          JSON.stringify(
            buildByteTokenizer({ phrases: Array.from({ length: 60 }, (_, i) => `word${i}`) }).tokenizerJson,
          ),
        ),
      "CONFIG",
      /the tokenizer has 320 tokens, the model 300; put the model's own tokenizer/,
    ],
  ])("with %s", async (name, damage, code, message) => {
    const directory = at(name.replaceAll(" ", "-"));
    await cp(model, directory, { recursive: true });
    await damage(directory);
    const before = await contents(directory);
    await expect(findAgent(directory).then(openAgent)).rejects.toMatchObject({
      code: `ERR_TOKENRING_${code}`,
      message: expect.stringMatching(message),
    });
    expect(await contents(directory)).toEqual(before);
  });

  it("whose optimiser's state is cut off", async () => {
    const directory = at("optimiser");
    await cp(model, directory, { recursive: true });
    const file = path.join(directory, "optimizer.safetensors");
    await truncate(file, (await stat(file)).size - 10);
    await expect(Policy.load(directory, { optimiser: true })).rejects.toMatchObject({
      code: "ERR_TOKENRING_CHECKPOINT",
      message: expect.stringMatching(/optimizer\.safetensors.*truncated/),
    });
    // Whoever does not go on with the training does not need it.
    await (await Policy.load(directory)).dispose();
  });
});

describe("a config", () => {
  it("with faults names each by line, with its cure, and the command writes nothing", async () => {
    const text = (await readFile("recipes/tinyswe.yaml", "utf8"))
      .replace("clipHigh: 0.3", "clipHihg: 0.3")
      .replace("episodes: 64", "episodes: -1")
      .replace("heads: 4", "heads: 3");
    const file = at("job.yaml");
    await writeFile(file, text);
    const line = (word: string): number => text.slice(0, text.indexOf(word)).split("\n").length;
    const error = await readConfig(file).catch((thrown: Error) => thrown);
    expect(error).toMatchObject({ code: "ERR_TOKENRING_CONFIG" });
    const { message } = error as Error;
    expect(message).toContain(
      `job.yaml:${line("clipHihg")}: stages.0.clipHihg: unknown key; did you mean "clipHigh"?`,
    );
    expect(message).toMatch(new RegExp(`job\\.yaml:${line("episodes")}: episodes: .*>0`));
    const run = at("never");
    const command = spawnSync(process.execPath, ["dist/cli/main.js", "train", file, "--out", run], {
      encoding: "utf8",
    });
    expect(command).toMatchObject({ status: 1, stdout: "" });
    expect(command.stderr).toContain("did you mean");
    await expect(stat(run)).rejects.toMatchObject({ code: "ENOENT" });
  });
});

describe("a task", () => {
  const row = {
    instance_id: "o__r-1",
    repo: "o/r",
    base_commit: "0".repeat(40),
    problem_statement: "It is broken.",
    created_at: "2025-01-01",
    patch: "",
    test_patch: "diff --git a/test_x.py b/test_x.py\n",
    FAIL_TO_PASS: ["test_x.py::test"],
    PASS_TO_PASS: [],
    install_config: { test_cmd: "pytest", log_parser: "parse_log_pytest" },
  };

  it.each([
    ["no tests", { FAIL_TO_PASS: [] }, /^rows\.jsonl:3: o__r-1 has no FAIL_TO_PASS tests.*leave it out/],
    ["tests that are no list", { FAIL_TO_PASS: "x" }, /^rows\.jsonl:3: FAIL_TO_PASS: .*no JSON list/],
    ["no commit", { base_commit: "main" }, /^rows\.jsonl:3: base_commit: is no commit/],
    ["nothing to run", { test_patch: "" }, /^rows\.jsonl:3: o__r-1 has no test_patch/],
  ])("with %s is refused by row and field", (_, change, message) => {
    expect(() => parseRow({ ...row, ...change }, "rows.jsonl:3")).toThrow(message);
  });

  it("whose repository does not build fails as such, and is found out by a check", async () => {
    const repository = makeRepository({ "x.py": "def f(:\n" });
    const backend = await openBackend("unsafe-host");
    const patch =
      "diff --git a/y.py b/y.py\nnew file mode 100644\n--- /dev/null\n+++ b/y.py\n@@ -0,0 +1 @@\n+y = 1\n";
    const instance: Instance = {
      ...row,
      hints_text: "",
      version: "1",
      patch,
      test_patch: patch.replaceAll("y.py", "test_x.py"),
    };
    const tasks = {
      repository: async () => repository,
      testCommand: () => "python3 -c 'import x'",
      parseLog: () => ({}),
    };
    const faults = await checkTask({ instance, tasks, backend, timeoutMs: 20_000 }).finally(() =>
      backend.dispose(),
    );
    expect(faults.join("\n")).toMatch(
      /the gold patch does not resolve it: failed, invalid_run.*a patch that mends nothing is failed/s,
    );
  });
});

describe("a run directory", () => {
  const make = (name: string): Promise<RunDirectory> =>
    RunDirectory.create(at(name), { config: {}, seed: 1, version: "1.2.3" });
  const resume = (name: string) =>
    spawnSync(process.execPath, ["dist/cli/main.js", "resume", at(name)], { encoding: "utf8" });

  it("in use is not gone on with, and stays as it is", async () => {
    await using _ = await make("used");
    const before = await contents(at("used"));
    await expect(RunDirectory.open(at("used"))).rejects.toThrow(
      `locked by process ${process.pid} on ${hostname()}; wait for it or stop it, or use another directory`,
    );
    expect(await contents(at("used"))).toEqual(before);
  });

  it("of another version says which one wrote it", async () => {
    await (await make("old")).close();
    const file = path.join(at("old"), "run.json");
    const manifest = await json(file);
    await writeFile(file, JSON.stringify({ ...manifest, schema: 0 }));
    const before = await contents(at("old"));
    expect(resume("old")).toMatchObject({
      status: 1,
      stdout: "",
      stderr: expect.stringMatching(
        /^tokenring: .*run\.json: written with schema 0, .*use tokenring 1\.2\.3\n$/,
      ),
    });
    expect(await contents(at("old"))).toEqual(before);
  });

  it("that is none is said to be none", () => {
    expect(resume("nothing-here")).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^tokenring: .*nothing-here: no run\.json, .*check the path\n$/),
    });
  });

  it.each([
    ["ENOSPC", "no space left on the device; free some and resume, nothing that was finished is lost"],
    ["EDQUOT", "the disk quota is used up; free some space and resume, nothing that was finished is lost"],
    ["EACCES", "no permission to write; give another directory or change its owner"],
    ["EROFS", "the file system is read-only; give another directory"],
  ])("that the file system refuses by %s is told with its cure", async (code, cure) => {
    const refused = Object.assign(new Error(code), { code });
    await expect(guarded("/runs/a", () => Promise.reject(refused))).rejects.toMatchObject({
      code: "ERR_TOKENRING_RUN_DIRECTORY",
      message: `/runs/a: ${cure}`,
      cause: refused,
    });
  });
});
