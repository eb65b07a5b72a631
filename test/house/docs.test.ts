// What the documentation promises is in the source, and the other way round.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { describe, expect, test } from "vitest";

const text = (file: string): string => readFileSync(file, "utf8");

describe("docs/errors.md", () => {
  const codes = [...text("lib/errors.ts").matchAll(/^ {2}\| "(ERR_TOKENRING_\w+)"/gm)].map(
    (match) => match[1],
  );
  const rows = [...text("docs/errors.md").matchAll(/^\| `(ERR_TOKENRING_\w+)` \| ([^|]+) \| ([^|]+) \|$/gm)];

  test("has a row for each code of lib/errors.ts, in their order, with cause and cure", () => {
    expect(codes.length).toBeGreaterThan(15);
    expect(rows.map((row) => row[1])).toEqual(codes);
    for (const [, , cause, cure] of rows) {
      expect(cause?.trim().length).toBeGreaterThan(15);
      expect(cure?.trim().length).toBeGreaterThan(10);
    }
  });

  test("names no code that nothing throws", () => {
    const sources = ["lib", "native"].flatMap((folder) =>
      readdirSync(folder, { recursive: true, encoding: "utf8" })
        .filter((name) => /\.(ts|cc|h)$/.test(name) && !name.endsWith("errors.ts"))
        .map((name) => text(path.join(folder, name))),
    );
    const thrown = (code: string): boolean => {
      const native = new RegExp(`(?:fail|Failure)\\(\\s*"${code.replace("ERR_TOKENRING_", "")}"`);
      return sources.some((source) => source.includes(`"${code}"`) || native.test(source));
    };
    expect(rows.map((row) => row[1] as string).filter((code) => !thrown(code))).toEqual([]);
  });

  test("names tests that are there", () => {
    const named = [...text("docs/errors.md").matchAll(/`(test\/[\w/.-]+\.test\.ts)`/g)].map(
      (match) => match[1] as string,
    );
    expect(named.length).toBeGreaterThan(8);
    expect(named.filter((file) => !existsSync(file))).toEqual([]);
  });
});

test("links of README, CONTRIBUTING and docs lead somewhere", () => {
  const pages = ["README.md", "CONTRIBUTING.md", "bench/README.md"].concat(
    readdirSync("docs")
      .filter((name) => name.endsWith(".md"))
      .map((name) => `docs/${name}`),
  );
  const broken = pages.flatMap((page) =>
    [...text(page).matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
      .map((match) => match[1] as string)
      .filter((target) => !/^[a-z]+:/.test(target))
      .filter((target) => !existsSync(path.join(path.dirname(page), target)))
      .map((target) => `${page}: ${target}`),
  );
  expect(broken).toEqual([]);
});

test("the README's picture and table of the arc are what docs/arc.json says", () => {
  const { status, stdout } = spawnSync(process.execPath, ["scripts/arc.mjs", "--check"], {
    encoding: "utf8",
  });
  expect({ status, stdout }).toEqual({ status: 0, stdout: "" });
});

test("the programs in docs/scripts.md and docs/harness.md are programs", () => {
  const folder = path.resolve("build", "docs-programs");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const programs = ["scripts", "harness"].flatMap((page) =>
    [...text(`docs/${page}.md`).matchAll(/^```ts\n(.*?)^```$/gms)].map((match) => [page, match[1] as string]),
  );
  expect(programs).toHaveLength(4);
  for (const [i, [page, program]] of programs.entries())
    writeFileSync(path.join(folder, `${page}-${i}.ts`), program as string);
  const options = {
    extends: "../../tsconfig.check.json",
    compilerOptions: {
      rootDir: "../..",
      paths: {
        tokenring: ["../../lib/index.ts"],
        "tokenring/ops": ["../../lib/ops/index.ts"],
        "tokenring/bench": ["../../bench/index.ts"],
      },
    },
    include: ["*.ts"],
  };
  writeFileSync(path.join(folder, "tsconfig.json"), JSON.stringify(options));
  const tsc = path.resolve("node_modules", "typescript", "bin", "tsc");
  const { stdout } = spawnSync(process.execPath, [tsc, "-p", folder], { encoding: "utf8", timeout: 50_000 });
  expect(stdout).toBe("");
});

describe("the API reference", () => {
  const script = path.resolve("scripts/api.mjs");

  test("has every export of the three doors, each with a docstring", () => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [script], {
      encoding: "utf8",
      timeout: 50_000,
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const counts = [...stdout.matchAll(/build\/docs\/([\w-]+)\.md: (\d+) exports/g)].map((m) => [
      m[1],
      Number(m[2]),
    ]);
    expect(counts.map(([door]) => door)).toEqual(["tokenring", "tokenring-ops", "tokenring-bench"]);
    for (const [, count] of counts) expect(count).toBeGreaterThan(20);
    const page = text("build/docs/tokenring.md");
    expect(page).toContain("## dapo\n");
    expect(page).toContain("function dapo(options: DapoOptions)");
  });

  test("tells what has none", async () => {
    const { faultsOf } = (await import(pathToFileURL(script).href)) as {
      faultsOf: (doors: object[]) => string[];
    };
    const entry = { name: "x", kind: "class", doc: " ", from: "x.ts", silent: ["y"] };
    expect(faultsOf([{ door: "tokenring", entries: [entry] }])).toEqual([
      "tokenring: class x (x.ts) has no docstring",
      "tokenring: class x.y (x.ts) has no docstring",
    ]);
  });
});
