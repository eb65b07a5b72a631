import { readFileSync } from "node:fs";
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

const lineOf = (text: string, part: string): number => text.slice(0, text.indexOf(part)).split("\n").length;

describe("a job's YAML", () => {
  it("accepts the shipped recipe and fills in the defaults", () => {
    const config = parseConfig(recipe, "tinyswe.yaml");
    expect(config.stages.map((s) => s.name)).toEqual(["stage1", "stage2"]);
    expect(config.stages[0]?.clipLow).toBe(0.2);
    expect(config.sandbox.kind).toBe("auto");
    expect(config.rft?.beta2).toBe(0.999);
  });

  it("names a misspelt key, its line and the key that was meant", () => {
    const text = recipe.replace("    clipHigh: 0.26", "    clipHihg: 0.26");
    const message = faults(text);
    expect(message).toContain(
      `job.yaml:${lineOf(text, "clipHihg")}: stages.1.clipHihg: unknown key; did you mean "clipHigh"?`,
    );
    expect(message).toContain("stages.1.clipHigh: missing; add it");
  });

  it("looks into the union of model.path and model.create", () => {
    const text = recipe.replace("    headDim: 64", "    headDim: 60");
    expect(faults(text)).toMatch(
      new RegExp(`^job.yaml:${lineOf(text, "headDim: 60")}: model\\.create\\.headDim: .*16`),
    );
  });

  it("names impossible values and every fault at once, in the order of the lines", () => {
    const text = recipe.replace(/heldOut: \d+/, "heldOut: -1").replace("runs: 10", "runs: many");
    const lines = faults(text).split("\n");
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain("tasks.heldOut");
    expect(lines[1]).toContain("evaluate.runs");
  });

  it("names the line of broken YAML", () => {
    expect(faults("seed: 1\nmodel: {create: [\n")).toMatch(/^job.yaml:\d+: not valid YAML/);
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
