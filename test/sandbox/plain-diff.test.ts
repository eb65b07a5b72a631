// The diff that is worked out without git is git's, byte for byte, and what is not sure is left to git.
import {
  appendFileSync,
  chmodSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Random, streamKey } from "../../lib/random.ts";
import { readIndex } from "../../lib/sandbox/base.ts";
import { PlainBase } from "../../lib/sandbox/plain-diff.ts";
import { blobHash } from "../../lib/tasks/tinyswe/git.ts";
import { git, KINDS, makeRepository, openBackend, removeDirectories, temporaryDirectory } from "./support.ts";

afterAll(removeDirectories);

const baseOf = (repository: string): PlainBase | null =>
  PlainBase.of(repository, join(repository, ".git"), readIndex(readFileSync(join(repository, ".git/index"))));

const read =
  (repository: string) =>
  (path: string): { bytes: Buffer; executable: boolean } => ({
    bytes: readFileSync(join(repository, path)),
    executable: (statSync(join(repository, path)).mode & 0o100) !== 0,
  });

const byGit = (repository: string): string =>
  git(repository, "diff", "--no-renames", "--binary", "HEAD", "--");

const LINES = [
  "def f(a):",
  "    return a",
  "  b",
  "",
  "class _C:   ",
  "\te",
  "$x",
  "é = 1",
  "@@ -1 +1 @@",
  `x${"y".repeat(90)} z`,
  `x${"é".repeat(60)}`,
];

const text = (lines: readonly string[]): string => lines.map((line) => `${line}\n`).join("");

describe("a diff without git", () => {
  it("is git's or is not given", () => {
    const random = new Random(streamKey(2n, "plain diffs"));
    const some = (count: number): string[] => Array.from({ length: count }, () => random.pick(LINES));
    const counts = { given: 0, left: 0 };
    for (let round = 0; round < 12; round++) {
      const before = { "a.py": some(1 + random.below(30)), "b/c.txt": some(20), "b-d": some(3) };
      const repository = makeRepository(
        Object.fromEntries(Object.entries(before).map(([path, lines]) => [path, text(lines)])),
      );
      const base = baseOf(repository) as PlainBase;
      for (let change = 0; change < 12; change++) {
        for (const [path, lines] of Object.entries(before)) {
          const now = [...lines];
          // Often of lines that are nowhere else, as what agents write is.
          const come = random.below(3) > 0 ? [`new ${random.below(9)}`] : [];
          const edits = random.below(5) === 0 ? 2 : random.below(2);
          for (let i = 0; i < edits; i++) {
            const at = random.below(now.length);
            // A run of lines twice could have come above as well as below.
            if (random.below(3) === 0) now.splice(at, 0, ...now.slice(at, at + 1 + random.below(4)));
            else now.splice(at, random.below(3), ...come, ...some(random.below(2)));
          }
          writeFileSync(join(repository, path), text(now));
        }
        const ours = base.diff(read(repository));
        counts[ours ? "given" : "left"]++;
        if (ours !== null) expect(ours).toBe(byGit(repository));
      }
    }
    expect(counts.given).toBeGreaterThan(12);
    expect(counts.left).toBeGreaterThan(25);
  });

  it("is left to git where a file is none of plain text", () => {
    const files = { "a.py": "one\ntwo\n", "b/c.py": "one\ntwo\n" };
    const changes: ((at: string) => void)[] = [
      (at) => writeFileSync(join(at, "a.py"), ""),
      (at) => writeFileSync(join(at, "a.py"), "one\n2"),
      (at) => writeFileSync(join(at, "a.py"), "one\n\0\n"),
      (at) => writeFileSync(join(at, "a.py"), Buffer.from("one\n\xe9\n", "latin1")),
      (at) => chmodSync(join(at, "b/c.py"), 0o755),
    ];
    for (const [i, change] of changes.entries()) {
      const repository = makeRepository(files);
      const base = baseOf(repository) as PlainBase;
      expect(base.diff(read(repository))).toBe("");
      change(repository);
      expect(base.diff(read(repository)), String(i)).toBeNull();
    }
    const others: Record<string, string | Buffer>[] = [
      { ".gitattributes": "*.py -diff\n" },
      { "b/.gitattributes": "*.py -diff\n" },
      { empty: "" },
      { bytes: Buffer.from([0, 10]) },
      { large: text(Array.from({ length: 20_000 }, () => "line")) },
    ];
    for (const more of others)
      expect(baseOf(makeRepository({ ...files, ...more })), Object.keys(more)[0]).toBeNull();
    const changed = makeRepository(files);
    appendFileSync(join(changed, "a.py"), "three\n");
    expect(baseOf(changed)).toBeNull();
  });

  it("is left to git where hashes begin alike, and are written longer", () => {
    const seen = new Map<string, string>();
    let pair: [string, string] | null = null;
    for (let i = 0; pair === null; i++) {
      const content = `${i}\n`;
      const beginning = blobHash(content).slice(0, 7);
      const other = seen.get(beginning);
      if (other !== undefined) pair = [other, content];
      seen.set(beginning, content);
    }
    const [one, two] = pair;
    const repository = makeRepository({ one, other: "x\n" });
    const base = baseOf(repository) as PlainBase;
    writeFileSync(join(repository, "one"), two);
    expect(byGit(repository)).toContain(`..${blobHash(two).slice(0, 8)} `);
    expect(base.diff(read(repository))).toBeNull();
    writeFileSync(join(repository, "one"), one);
    writeFileSync(join(repository, "other"), two);
    expect(base.diff(read(repository))).toBeNull();
    writeFileSync(join(repository, "other"), "y\n");
    expect(base.diff(read(repository))).toBe(byGit(repository));
  });
});

describe.each(KINDS)("the diff of a %s sandbox", (kind) => {
  const changed = (patch: string): string[] => patch.match(/^[-+].*$/gm) ?? [];

  it("asks git once for a commit, and believes itself from then on", async () => {
    const repository = makeRepository({ "a.py": "one\ntwo\nthree\n" });
    const directory = temporaryDirectory();
    const backend = await openBackend(kind, { directory });
    const first = await backend.open({ repository });
    await first.exec("sed -i s/two/2/ a.py");
    const patch = await first.diff();
    expect(changed(patch)).toEqual(["--- a/a.py", "+++ b/a.py", "-two", "+2"]);
    // Now git could not say it.
    rmSync(join(directory, readdirSync(directory)[0] as string, "bases/0/objects"), { recursive: true });
    const second = await backend.open({ repository });
    await second.exec("sed -i s/two/2/ a.py; sleep 60 & true");
    expect(await second.diff()).toBe(patch);
    await second.write("a.py", "one\ntwo\nthree\n");
    expect(await second.diff()).toBe("");
    await backend.dispose();
  });

  it("is git's for ever where the index is not the commit", async () => {
    const repository = makeRepository({ "a.py": "one\ntwo\nthree\n" });
    writeFileSync(join(repository, "a.py"), "one\n2\nthree\n");
    git(repository, "add", "a.py");
    const backend = await openBackend(kind);
    for (let i = 0; i < 2; i++) {
      const sandbox = await backend.open({ repository });
      expect(changed(await sandbox.diff())).toEqual(["--- a/a.py", "+++ b/a.py", "-two", "+2"]);
      await sandbox.write("a.py", "one\ntwo\nthree\n");
      expect(await sandbox.diff()).toBe("");
      await sandbox.close();
    }
    await backend.dispose();
  });
});
