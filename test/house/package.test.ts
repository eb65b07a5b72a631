// What the package promises to whoever installs it.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";

interface Manifest {
  dependencies: Record<string, string>;
  devDependencies: Record<string, string>;
  exports: Record<string, string | Record<string, string>>;
  bin: Record<string, string>;
  scripts: Record<string, string>;
}

interface Lockfile {
  packages: Record<
    string,
    { version?: string; resolved?: string; optionalDependencies?: Record<string, string> }
  >;
}

const manifest = JSON.parse(readFileSync("package.json", "utf8")) as Manifest;
const lockfile = JSON.parse(readFileSync("package-lock.json", "utf8")) as Lockfile;

describe("dependencies", () => {
  const pins = Object.entries({ ...manifest.dependencies, ...manifest.devDependencies });

  test.each(pins)("%s is pinned to one version (%s), and the lockfile has it", (name, version) => {
    expect(version).toMatch(/^\d+\.\d+\.\d+$/);
    expect(lockfile.packages[`node_modules/${name}`]?.version).toBe(version);
  });

  test("the lockfile names no host, so that it works with every registry", () => {
    const hosts = Object.values(lockfile.packages).filter(({ resolved }) => resolved !== undefined);
    expect(hosts).toEqual([]);
  });
});

test("the lockfile has every package that another one may want, or npm ci would refuse it", () => {
  const names = new Set(
    Object.keys(lockfile.packages).map((place) => place.replace(/^.*node_modules\//, "")),
  );
  const wanted = Object.values(lockfile.packages).flatMap(({ optionalDependencies = {} }) =>
    Object.keys(optionalDependencies),
  );
  expect(wanted.length).toBeGreaterThan(10);
  expect(wanted.filter((name) => !names.has(name))).toEqual([]);
});

describe("the tarball", () => {
  const listed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    encoding: "utf8",
  });
  // npm 12 keys the answer by package name, npm 11 and older give a list.
  const answer = JSON.parse(listed) as Record<string, { files: { path: string }[] }>;
  const packed = new Set(Object.values(answer).flatMap(({ files }) => files.map((file) => file.path)));

  test("holds every entry point", () => {
    const entries = Object.values(manifest.exports).flatMap((entry) =>
      typeof entry === "string" ? [entry] : Object.values(entry),
    );
    const wanted = [...entries, ...Object.values(manifest.bin)].map((file) => file.replace(/^\.\//, ""));
    expect(wanted.filter((file) => !packed.has(file))).toEqual([]);
  });

  test("holds what builds the addon", () => {
    const folders = ["addon", "core", "cpu", "cuda", "comm", "loss", "optim", "io", "parallel", "model"];
    const args = ["scripts/native-sources.mjs", ...folders.map((name) => `native/${name}`)];
    const sources = execFileSync("node", args, { encoding: "utf8" }).trim().split("\n");
    expect(sources.length).toBeGreaterThan(10);
    const scripts = [...readFileSync("scripts/setup.mjs", "utf8").matchAll(/from "\.\/([^"]+)"/g)].map(
      (match) => `scripts/${match[1]}`,
    );
    const wanted = [...sources, ...scripts, "scripts/setup.mjs", "scripts/native-sources.mjs", "binding.gyp"];
    expect(wanted.filter((file) => !packed.has(file))).toEqual([]);
    expect(manifest.dependencies).toHaveProperty("node-addon-api");
  });

  test("holds what the sources read beside themselves, and the licence", () => {
    expect(packed).toContain("LICENSE");
    // doctor judges by the checks of set-up.
    expect(packed).toContain("scripts/machine.mjs");
  });

  test("holds no test and no build", () => {
    const unwanted = [...packed].filter((file) => /^(test|build|node_modules|bench)\//.test(file));
    expect(unwanted).toEqual([]);
  });
});

test("every npm script runs a file that is there", () => {
  const files = Object.values(manifest.scripts).flatMap(
    (line) => line.match(/\bscripts\/[\w-]+\.mjs/g) ?? [],
  );
  expect(files.length).toBeGreaterThan(4);
  expect(files.filter((file) => !existsSync(file))).toEqual([]);
});

test("npm builds nothing by itself when the package is installed", () => {
  const hooks = ["preinstall", "install", "postinstall", "prepare"];
  expect(hooks.filter((hook) => hook in manifest.scripts)).toEqual([]);
  expect(manifest).toHaveProperty("gypfile", false);
});
