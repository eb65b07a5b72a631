// The loader: lazy, and clear about what is missing and what to do. Each case is a process of its own, because a
// process loads the addon once.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const loader = new URL("../../lib/ops/native.ts", import.meta.url).href;

/** What loadBinding() does in a fresh process: "loaded", or the error's code and message. */
function load(environment: Record<string, string>, ...flags: string[]): string {
  const source = `
    const { loadBinding } = await import(${JSON.stringify(loader)});
    try {
      loadBinding();
      console.log(loadBinding() === loadBinding() ? "loaded" : "loaded twice");
    } catch (error) {
      console.log(error.code + " " + error.message);
    }`;
  const args = [...flags, "--import", "tsx", "--input-type=module", "--eval", source];
  const { stdout, stderr } = spawnSync(process.execPath, args, {
    env: { ...process.env, ...environment },
    encoding: "utf8",
    timeout: 30_000,
  });
  expect(stderr).toBe("");
  return stdout.trim();
}

describe("loadBinding", () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "tokenring-native-"));
  });
  afterAll(() => rmSync(directory, { recursive: true }));

  it("loads the addon once", () => {
    expect(load({})).toBe("loaded");
  });

  it("says where it looked when there is no file", () => {
    expect(load({ TOKENRING_NATIVE_PATH: "/nowhere/tokenring.node" })).toMatch(
      /^ERR_TOKENRING_NATIVE_MISSING the native addon is not usable: there is no file \/nowhere\/tokenring.node \(from TOKENRING_NATIVE_PATH\); point TOKENRING_NATIVE_PATH at .* or unset it and run `npm run build` in \S+ \(Node v\d+.*linux-/,
    );
  });

  it("passes on why a file does not load", () => {
    const path = join(directory, "text.node");
    writeFileSync(path, "this is no library");
    expect(load({ TOKENRING_NATIVE_PATH: path })).toMatch(
      /^ERR_TOKENRING_NATIVE_MISSING .*text.node .* does not load: .*; it was built for another machine or Node: .*npm run build/,
    );
  });

  it("refuses the addon of another version", () => {
    const path = join(directory, "other.cjs");
    writeFileSync(path, "module.exports = { abi: 999 };");
    expect(load({ TOKENRING_NATIVE_PATH: path })).toMatch(
      /other.cjs .* has ABI 999, but this version needs \d+; /,
    );
  });

  it("knows --no-addons", () => {
    expect(load({}, "--no-addons")).toMatch(
      /^ERR_TOKENRING_NATIVE_MISSING .*; start node without --no-addons/,
    );
  });

  it("passes on what is wrong with the environment", () => {
    expect(load({ TOKENRING_ISA: "sse9" })).toMatch(
      /TOKENRING_ISA is "sse9"; it must be amx, avx512, avx2, scalar or unset/,
    );
  });
});
