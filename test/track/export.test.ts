// `tokenring export` as a process.
import { spawnSync } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeRun } from "../report/fixture.ts";
import { readEventFile } from "./event-reader.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tokenring-export-"));
  await writeRun(path.join(folder, "one"), 1);
});
afterAll(() => rm(folder, { recursive: true }));

const call = (...args: string[]) =>
  spawnSync(process.execPath, [path.resolve("dist/cli/main.js"), "export", ...args], {
    encoding: "utf8",
    cwd: folder,
    timeout: 50_000,
  });

test("writes a folder for each run, and the same again", async () => {
  const first = call("one", "--tensorboard", "boards");
  expect(first).toMatchObject({ status: 0, stderr: "" });
  const file = first.stdout.trimEnd();
  expect(file).toMatch(/^boards\/one\/events\.out\.tfevents\.\d+\..+\.tokenring$/);
  const bytes = await readFile(path.join(folder, file));
  expect(readEventFile(bytes).filter(({ scalars }) => "base/step/loss" in scalars)).toHaveLength(700);
  expect(call("one", "--tensorboard", "boards").stdout).toBe(first.stdout);
  expect(bytes.equals(await readFile(path.join(folder, file)))).toBe(true);
});

test.each([
  [
    "two runs of one name",
    ["one", "other/one", "--tensorboard", "boards"],
    /^tokenring: one and other\/one have the same name.*two folders$/m,
  ],
  ["no run", ["none", "--tensorboard", "boards"], /^tokenring: .*none: no run\.json.*check the path$/m],
  ["no tracker", ["one"], /required option '--tensorboard <directory>'/],
  [
    "a file in the way",
    ["one", "--tensorboard", "file"],
    /^tokenring: file\/one: cannot be written \(ENOTDIR\); give a folder/m,
  ],
])("%s: refused, with the cure", async (_, args, said) => {
  await writeFile(path.join(folder, "file"), "");
  const { status, stdout, stderr } = call(...args);
  expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
  expect(stderr).toMatch(said);
});
