// Patches that verification applies by itself come to what git makes of them, and all others are left to git.
import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  cpSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Random, streamKey } from "../../lib/random.ts";
import type { TinyTask } from "../../lib/tasks/tinyswe/task.ts";
import { tinyswe } from "../../lib/tasks/tinyswe/tinyswe.ts";
import { plainlyPatched } from "../../lib/verify/plain-patch.ts";
import { verify } from "../../lib/verify/verify.ts";
import {
  git,
  KINDS,
  makeRepository,
  openBackend,
  removeDirectories,
  temporaryDirectory,
} from "../sandbox/support.ts";

afterAll(removeDirectories);

/** What `git apply` says and makes of `patch` in a copy of the repository. */
function byGit(
  repository: string,
  patch: string,
  paths: Iterable<string>,
): { said: string; files: Map<string, string> } {
  const copy = join(temporaryDirectory(), "copy");
  cpSync(repository, copy, { recursive: true });
  const { stderr } = spawnSync("git", ["-C", copy, "apply", "--verbose"], { input: patch, encoding: "utf8" });
  return {
    said: stderr,
    files: new Map([...paths].map((path) => [path, readFileSync(join(copy, path), "utf8")])),
  };
}

const said = (paths: readonly string[]): string =>
  paths.map((path) => `Checking patch ${path}...\n`).join("") +
  paths.map((path) => `Applied patch ${path} cleanly.\n`).join("");

/** Lines of few words, so that hunks fit in more places than one. */
function someLines(random: Random, count: number): string[] {
  return Array.from({ length: count }, () =>
    random.pick(["a", "  b", "", "c d", "\te", "é", "@@ -1 +1 @@", "-x", "+y"]),
  );
}

function edited(random: Random, lines: readonly string[]): string[] {
  const out = [...lines];
  for (let edits = 1 + random.below(3); edits > 0; edits--) {
    out.splice(random.below(out.length), random.below(3), ...someLines(random, random.below(3)));
  }
  return out;
}

describe("a plain patch", () => {
  it("comes to what git makes of it, and one that was bent to that or to nothing", () => {
    const random = new Random(streamKey(1n, "plain patches"));
    const counts = { plain: 0, bent: 0, refused: 0 };
    for (let round = 0; round < 40; round++) {
      const before = { "a.py": someLines(random, 1 + random.below(30)), "b/c.txt": someLines(random, 20) };
      const text = (lines: readonly string[]): string => lines.map((line) => `${line}\n`).join("");
      const repository = makeRepository({ "a.py": text(before["a.py"]), "b/c.txt": text(before["b/c.txt"]) });
      for (const [path, lines] of Object.entries(before)) {
        writeFileSync(join(repository, path), text(edited(random, lines)));
      }
      const patch = git(repository, "diff");
      git(repository, "checkout", "-q", ".");
      const lines = patch.split("\n");
      const bent = random.below(Math.max(1, lines.length));
      const patches = [
        patch,
        lines.filter((_, i) => i !== bent).join("\n"),
        patch.replace(/^@@ -(\d+)/m, (_, from) => `@@ -${Number(from) + 1}`),
        patch.replace(/^index (.)/m, (_, digit) => `index ${digit === "0" ? "1" : "0"}`),
        lines.map((line, i) => (i === bent ? `${line}x` : line)).join("\n"),
      ];
      for (const [i, one] of patches.entries()) {
        const made = plainlyPatched(one, repository);
        if (made === null) counts.refused++;
        else {
          counts[i === 0 ? "plain" : "bent"]++;
          expect({ said: said([...made.keys()]), files: made }, one).toEqual(
            byGit(repository, one, made.keys()),
          );
        }
      }
    }
    // Not for want of trying.
    expect(counts.plain).toBeGreaterThan(10);
    expect(counts.refused).toBeGreaterThan(100);
  });

  it("is left to git where the repository or the file is not plain", () => {
    const files = { "a.py": "one\ntwo\n", "b/c.py": "one\ntwo\n" };
    const fresh = (): string => makeRepository(files);
    const repository = fresh();
    writeFileSync(join(repository, "b/c.py"), "one\n2\n");
    const patch = git(repository, "diff");
    git(repository, "checkout", "-q", ".");
    const expected = new Map([["b/c.py", "one\n2\n"]]);
    expect(plainlyPatched(patch, fresh())).toEqual(expected);
    const changes: ((repository: string) => void)[] = [
      (at) => writeFileSync(join(at, ".gitattributes"), ""),
      (at) => writeFileSync(join(at, "b/.gitattributes"), ""),
      (at) => {
        mkdirSync(join(at, ".git/info"), { recursive: true });
        writeFileSync(join(at, ".git/info/attributes"), "");
      },
      (at) => appendFileSync(join(at, ".git/config"), "\tautocrlf = true\n"),
      (at) => chmodSync(join(at, "b/c.py"), 0o755),
      (at) => writeFileSync(join(at, "b/c.py"), "one\nto\n"),
      (at) => git(at, "mv", "b", "d") && symlinkSync("d", join(at, "b")),
      (at) =>
        git(at, "mv", "b/c.py", "c.py") &&
        mkdirSync(join(at, "b")) === undefined &&
        symlinkSync("../c.py", join(at, "b/c.py")),
    ];
    for (const [i, change] of changes.entries()) {
      const changed = fresh();
      change(changed);
      expect(plainlyPatched(patch, changed), String(i)).toBeNull();
    }
    const elsewhere = ["../c.py", ".git/config", "b/./c.py", "b/../a.py", "none.py"];
    for (const path of elsewhere)
      expect(plainlyPatched(patch.replaceAll("b/c.py", path), fresh()), path).toBeNull();
    for (const [from, to] of [
      ["+2", "+2 "],
      ["+2", "+ \t2"],
      ["+2\n", "+2\n\\ No newline at end of file\n"],
      ["100644", "100755"],
      ["index", "old mode 100644\nnew mode 100755\nindex"],
      ["diff", "From: somebody\ndiff"],
    ] as const) {
      expect(plainlyPatched(patch.replace(from, to), fresh()), to).toBeNull();
    }
    expect(plainlyPatched(patch + patch, fresh())).toBeNull();
    expect(plainlyPatched("", fresh())).toBeNull();
  });

  it("is judged as git's application of it is", async () => {
    const tasks = tinyswe({ seed: 3, train: 3, heldOut: 0, directory: temporaryDirectory() });
    const backend = await openBackend(KINDS[0] ?? "unsafe-host");
    for (const { instance } of tasks.tasks.train as TinyTask[]) {
      const repository = await tasks.repository(instance);
      const judge = (): Promise<unknown> =>
        verify({ instance, tasks, patch: instance.patch, backend, timeoutMs: 20_000 });
      expect(plainlyPatched(instance.patch, repository)).not.toBeNull();
      const plain = await judge();
      expect(plain).toMatchObject({ verdict: "resolved" });
      mkdirSync(join(repository, ".git/info"));
      writeFileSync(join(repository, ".git/info/attributes"), "");
      expect(plainlyPatched(instance.patch, repository)).toBeNull();
      expect(await judge()).toEqual(plain);
    }
    await backend.dispose();
  });
});
