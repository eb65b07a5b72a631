import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { isTokenringError } from "../../lib/errors.ts";
import { nearest, parseConfig, readConfig } from "../../lib/run/config-file.ts";

const recipe = readFileSync(new URL("../../recipes/tinyswe.yaml", import.meta.url), "utf8");

function faults(text: string): string {
  try {
    parseConfig(text, "job.yaml");
  } catch (error) {
    if (isTokenringError(error, "ERR_TOKENRING_CONFIG")) return error.message;
    throw error;
  }
  return "accepted";
}

/** The recipe's faults after `from` has become `to`, which must stand on the line that is named. */
function faultsWith(from: string | RegExp, to: string, mark: string = to): string {
  const text = recipe.replace(from, to);
  expect(text).not.toBe(recipe);
  return faults(text).replace(`job.yaml:${lineOf(text, mark)}: `, "HERE ");
}

const lineOf = (text: string, part: string): number => text.slice(0, text.indexOf(part)).split("\n").length;

describe("a job's YAML", () => {
  it("accepts the shipped recipe and fills in the defaults", () => {
    const config = parseConfig(recipe, "tinyswe.yaml");
    expect(config.stages.map((s) => s.name)).toEqual(["stage1", "stage2"]);
    expect(config.stages[0]?.stepCredit.turns).toBe(0);
    expect(config.sandbox.kind).toBe("auto");
    expect(config.rft?.beta2).toBe(0.999);
  });

  it("ships the same job without bad habits: demonstrations are an expert's, and nothing else differs", () => {
    const text = readFileSync(new URL("../../recipes/tinyswe-experts.yaml", import.meta.url), "utf8");
    const { warmStart, ...rest } = parseConfig(recipe, "tinyswe.yaml");
    const { warmStart: experts, ...same } = parseConfig(text, "tinyswe-experts.yaml");
    expect(same).toEqual(rest);
    expect(warmStart?.expertShare).toBeLessThan(1);
    expect(experts).toEqual({ ...warmStart, expertShare: 1 });
  });

  it("names a misspelt key, its line and the key that was meant", () => {
    const text = recipe.replace(/(name: stage2\n {4})iterations/, "$1iteratoins");
    const message = faults(text);
    expect(message).toContain(
      `job.yaml:${lineOf(text, "iteratoins")}: stages.1.iteratoins: unknown key; did you mean "iterations"?`,
    );
    expect(message).toContain("stages.1.iterations: missing; add it");
  });

  // Under stage 1's clipHigh.
  it.each<[string, string, RegExp | "accepted"]>([
    ["objective: gspo", "objective", "accepted"],
    [
      "objective: gpso",
      "objective",
      /^HERE stages\.0\.objective: Invalid option: expected one of "ppo_clip"/,
    ],
    ["dualclip: 3", "dualclip", /^HERE stages\.0\.dualclip: unknown key; did you mean "dualClip"\?$/],
    ["dualClip: 3", "dualClip", "accepted"],
    ["dualClip: 0.9", "dualClip", /^HERE stages\.0\.dualClip: 0\.9 must be 0 \(off\) or above 1$/],
    ["objective: cispo\n    dualClip: 3", "dualClip", /^HERE stages\.0\.dualClip: bounds ppo_clip only/],
    // By the names of TRL and verl.
    ["beta: 0.04", "beta", /^HERE stages\.0\.beta: unknown key; did you mean "klCoef"\?$/],
    ["clip_ratio_c: 3", "clip_ratio_c", /unknown key; did you mean "dualClip"\?$/],
    ["loss_agg_mode: token-mean", "loss_agg_mode", /unknown key; did you mean "aggregation"\?$/],
    ["epsilon: 0.2", "epsilon", /^HERE stages\.0\.epsilon: this is AdamW's .* clipLow and clipHigh$/],
    ["klCoef: 0.001\n    reference: rft", "reference", "accepted"],
    ["reference: rft", "reference", /^HERE stages\.0\.reference: changes nothing while klCoef is 0/],
    [
      "klCoef: 0.1\n    reference: stage2",
      "reference",
      /^HERE stages\.0\.reference: there is no checkpoint "stage2" before this stage; give one of base, rft$/,
    ],
    ["klCoef: -1", "klCoef", /^HERE stages\.0\.klCoef: Too small/],
    ["aggregation: sample_mean", "aggregation", "accepted"],
    ["aggregation: { drGrpo: 512 }", "aggregation", "accepted"],
    [
      "aggregation: mean",
      "aggregation",
      /^HERE stages\.0\.aggregation: Invalid option: expected one of "token_mean"\|"sample_mean"/,
    ],
    [
      "objective: gspo\n    aggregation: token_mean",
      "aggregation",
      /^HERE stages\.0\.aggregation: gspo has one ratio a sequence .* write sample_mean$/,
    ],
    ["oldLogprobs: trainer\n    tisCap: 2", "tisCap", "accepted"],
    [
      "tisCap: 2",
      "tisCap",
      /^HERE stages\.0\.tisCap: with oldLogprobs engine the ratio itself already corrects/,
    ],
    ["advantage: { normalise: none, ddof: 1 }", "advantage", "accepted"],
    ["advantage: { ddof: 2 }", "advantage", /^HERE stages\.0\.advantage\.ddof: give 0 or 1$/],
    ["advantage: { normalize: none }", "advantage", /unknown key; did you mean "normalise"\?$/],
  ])("says of the objective %j what is wrong with it", (lines, mark, expected) => {
    const message = faultsWith("    clipHigh: 0.3\n", `    clipHigh: 0.3\n    ${lines}\n`, `    ${mark}:`);
    if (expected === "accepted") expect(message).toBe(expected);
    else expect(message).toMatch(expected);
  });

  it("looks into the union of model.path and model.create", () => {
    const text = recipe.replace("    headDim: 64", "    headDim: 60");
    expect(faults(text)).toMatch(
      new RegExp(`^job.yaml:${lineOf(text, "headDim: 60")}: model\\.create\\.headDim: .*16`),
    );
  });

  it.each([
    ["both", "model:\n  path: x\n  create:"],
    ["neither", "model: {}\nunused:"],
    ["no mapping", "model: qwen\nunused:"],
  ])("asks for either path or create where there is %s", (_, model) => {
    const message = faultsWith("model:\n  create:", model, "model:");
    expect(message).toMatch(/^HERE model: give path .*, name .* or create /);
    expect(message).not.toMatch(/did you mean|model\.(path|create)/);
  });

  it("suggests a key of the union for one that is misspelt, and names the branch that was meant", () => {
    expect(faultsWith("  create:", "  crate:")).toContain(
      'HERE model.crate: unknown key; did you mean "create"?',
    );
    expect(faultsWith("model:\n", "model:\n  # see below\n")).toBe("accepted");
    expect(faultsWith(/model:\n {2}create:\n( {4}.*\n)+/, "model: { path: 5 }\n")).toContain(
      "model.path: Invalid input: expected string",
    );
  });

  it.each([
    ["name: stage2", "name: base", "the job's own"],
    ["name: stage2", "name: rft", "the job's own"],
    ["name: stage2", "name: latest", "the job's own"],
    ["name: stage2", "name: stage1-evaluation", "the job's own"],
    ["name: stage2", "name: _2", "the first a letter or a digit"],
    ["name: stage2", "name: -a", "the first a letter or a digit"],
    ["name: stage2", `name: ${"a".repeat(65)}`, "at most 64"],
  ])("refuses a stage for %s → %s", (from, to, why) => {
    expect(faultsWith(from, to)).toMatch(new RegExp(`^HERE stages\\.1\\.name: .*${why}`));
  });

  it("refuses a second stage of one name, which would be taken for done", () => {
    const text = recipe.replace("name: stage2", "name: stage1");
    expect(faults(text)).toBe(
      `job.yaml:${lineOf(recipe, "name: stage2")}: stages.1.name: "stage1" is the name of stages.0; give each stage a name of its own`,
    );
  });

  it.each([
    [
      "lengthPenalty: false\n    lengthThreshold: 10\n    pool",
      "lengthThreshold: 24\n    pool",
      "stages.1.lengthThreshold: 24 is not below",
    ],
    [/(rft:[\s\S]*?maxContext: )640/, "$11025", "rft.limits.maxContext: 1025 is more than model.create.maxP"],
    [
      /(stage1[\s\S]*?maxContext: )640/,
      "$11025",
      "stages.0.limits.maxContext: 1025 is more than model.create.maxP",
    ],
    [
      /(evaluate:[\s\S]*?maxContext: )1008/,
      "$11025",
      "evaluate.limits.maxContext: 1025 is more than model.create.maxP",
    ],
    [
      "sequences: 16, tokens: 64",
      "sequences: 16, tokens: 1025",
      "warmStart.copyBatch.tokens: 1025 is more than",
    ],
    ["- { maxTurns: 12", "- { maxTurns: 25", "evaluate.alsoAt.0.maxTurns: 25 is more than evaluate.limits"],
    [/640 }\n$/, "1025 }\n", "evaluate.alsoAt.0.maxContext: 1025 is more than evaluate.limits"],
    [/- { maxTurns: 12.*/, "- { maxTurns: 24, maxContext: 1008 }", "evaluate.alsoAt.0: the same as evaluate"],
    [/\bheads: 4/, "heads: 5", "model.create.heads: 5 is no multiple of keyValueHeads (2)"],
    [/personas: .*/, "personas: { expert: 0, sloppy: 0, confused: 0 }", "warmStart.personas: all are 0"],
  ] as const)("refuses what contradicts another key: %s → %s", (from, to, message) => {
    const mark = message.includes("1025") ? "1025" : message.includes("24 is") ? "lengthThreshold: 24" : to;
    expect(faultsWith(from, to, mark)).toMatch(`HERE ${message}`);
  });

  it("takes what would contradict a key that is not used", () => {
    expect(faultsWith("lengthThreshold: 10\n    pool", "lengthThreshold: 24\n    pool")).toBe("accepted");
    const expert = recipe.replace(/personas: .*/, "personas: { expert: 0, sloppy: 0, confused: 0 }");
    expect(faults(expert.replace("expertShare: 0.7", "expertShare: 1"))).toBe("accepted");
    const loaded = recipe.replace(/model:\n {2}create:\n( {4}.*\n)+/, "model: { path: qwen }\n");
    expect(faults(loaded.replace(/limits: (.*)maxContext: 640/g, "limits: $1maxContext: 4096"))).toBe(
      "accepted",
    );
  });

  it.each([
    [/heldOut: \d+/, "heldOut: 60\n  testSeconds: 2147484", "tasks.testSeconds"],
    [
      /evaluate:\n {2}runs: \d+\n {2}limits: \{/,
      "evaluate:\n  limits: { episodeSeconds: 2147484,",
      "evaluate.limits.episodeSeconds",
    ],
    [/train: \d+/, "train: 1000001", "tasks.train"],
    [/heldOut: \d+/, "heldOut: 1000001", "tasks.heldOut"],
    [/tokensPerStep: \d+/, "tokensPerStep: 1000001", "warmStart.tokensPerStep"],
  ])("bounds what a timer or the memory could not hold: %s → %s", (from, to, key) => {
    const mark = to.slice(to.lastIndexOf("\n") + 1);
    expect(faultsWith(from, to, mark)).toMatch(`HERE ${key}: Too big`);
  });

  it("names impossible values and every fault at once, in the order of the lines", () => {
    const text = recipe.replace(/heldOut: \d+/, "heldOut: -1").replace(/runs: \d+/, "runs: many");
    const lines = faults(text).split("\n");
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain("tasks.heldOut");
    expect(lines[1]).toContain("evaluate.runs");
  });

  it("names the line of broken YAML", () => {
    expect(faults("seed: 1\nmodel: {create: [\n")).toMatch(/^job.yaml:\d+: not valid YAML/);
  });

  it("names the line of an alias that nothing resolves", () => {
    expect(faults("seed: &one 1\nthreads: *one\nmodel: *tow\n")).toMatch(
      /^job.yaml:3: not valid YAML: Unresolved alias .*; write the value out or name an anchor$/,
    );
  });

  it("refuses aliases that multiply", () => {
    const row = (name: string) => `[${Array.from({ length: 10 }, () => `*${name}`).join(", ")}]`;
    const text = `a: &a [1]\nb: &b ${row("a")}\nc: &c ${row("b")}\nd: &d ${row("c")}\n`;
    expect(faults(text)).toMatch(
      /^job.yaml:2: not valid YAML: Excessive alias count.*; write the values out$/,
    );
  });

  it("wants one document", () => {
    expect(faults("seed: 1\n---\nseed: 2\n")).toMatch(
      /^job.yaml:\d: a second YAML document begins here; give one document/,
    );
  });

  it.each([
    ["UTF-16 with its mark", Buffer.from(`\ufeff${recipe}`, "utf16le")],
    ["UTF-16 without", Buffer.from(recipe.replace(/[^\n -~]/g, ""), "utf16le")],
    ["Latin-1", Buffer.from(`# für\n${recipe}`, "latin1")],
  ])("says that %s is not UTF-8", async (_, bytes) => {
    const directory = mkdtempSync(path.join(tmpdir(), "tokenring-config-"));
    try {
      const file = path.join(directory, "job.yaml");
      writeFileSync(file, bytes);
      await expect(readConfig(file)).rejects.toMatchObject({
        code: "ERR_TOKENRING_CONFIG",
        message: `${file}: not UTF-8; save the file as UTF-8`,
      });
      writeFileSync(file, `\ufeff# für\n${recipe}`);
      expect((await readConfig(file)).config.seed).toBe(1);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("says what an empty file lacks", () => {
    expect(faults("")).toContain("tasks: missing; add it");
  });

  it("says which file cannot be read", async () => {
    await expect(readConfig("/nowhere/job.yaml")).rejects.toThrow(
      /\/nowhere\/job.yaml: cannot be read \(ENOENT\)/,
    );
  });

  it("suggests only names that are near", () => {
    expect(nearest("maxTurn", ["maxTurns", "maxContext"])).toBe("maxTurns");
    expect(nearest("banana", ["maxTurns", "maxContext"])).toBeUndefined();
  });
});
