// Tasks against their tests in real sandboxes: sound ones of every split and difficulty, and one with each fault.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { localBackend } from "../../lib/sandbox/local.ts";
import type { SandboxBackend } from "../../lib/sandbox/types.ts";
import { DIFFICULTIES } from "../../lib/tasks/tinyswe/plan.ts";
import { type TinysweTaskSet, tinyswe } from "../../lib/tasks/tinyswe/tinyswe.ts";
import type { Instance } from "../../lib/tasks/types.ts";
import { checkTask } from "../../lib/verify/check-task.ts";

let backend: SandboxBackend;
let set: TinysweTaskSet;

beforeAll(async () => {
  backend = await localBackend();
  set = tinyswe({ seed: 13, train: 20, heldOut: 20, heldOutFamilies: 20 });
});

afterAll(async () => {
  await backend.dispose();
  await set.dispose();
});

const check = (instance: Instance): Promise<string[]> => checkTask({ instance, tasks: set, backend });

test("the gold patch resolves, without it the tests fail as the row says: tasks of all splits and difficulties", async () => {
  const rows = Object.values(set.tasks).flatMap((tasks) =>
    DIFFICULTIES.flatMap((difficulty) => tasks.filter((task) => task.difficulty === difficulty).slice(0, 2)),
  );
  expect(rows.length).toBe(24);
  for (const { instance } of rows)
    expect([instance.instance_id, await check(instance)]).toEqual([instance.instance_id, []]);
});

describe("a fault of a task is found:", () => {
  const row = (): Instance => set.train[0] as Instance;
  const other = (): Instance => set.train[1] as Instance;

  test.each<[string, () => Partial<Instance>, RegExp]>([
    [
      "a gold patch that mends nothing",
      () => ({ patch: row().test_patch }),
      /the gold patch does not resolve it/,
    ],
    [
      "a gold patch of another task",
      () => ({ patch: other().patch }),
      /does not resolve it: failed, patch_failed/,
    ],
    [
      "a test that fails already",
      () => ({ PASS_TO_PASS: row().FAIL_TO_PASS, FAIL_TO_PASS: row().PASS_TO_PASS }),
      /of PASS_TO_PASS these fail without a patch: test\.py::/,
    ],
    [
      "a test that passes already",
      () => ({ FAIL_TO_PASS: row().PASS_TO_PASS, PASS_TO_PASS: [] }),
      /of FAIL_TO_PASS these pass without a patch: test\.py::/,
    ],
    [
      "a test that there is not",
      () => ({ FAIL_TO_PASS: ["test.py::lost(1)"] }),
      /not passed: test\.py::lost\(1\)/,
    ],
    [
      "tests that the gold patch changes",
      () => ({ patch: row().patch + row().test_patch }),
      /patch and test_patch both change test\.py/,
    ],
    ["a test in both lists", () => ({ PASS_TO_PASS: row().FAIL_TO_PASS }), /name a test twice/],
    ["nothing to mend", () => ({ FAIL_TO_PASS: [] }), /FAIL_TO_PASS is empty/],
    ["a repository without owner", () => ({ repo: "tepa" }), /repo is "tepa", not owner\/name/],
    ["a commit that is no hash", () => ({ base_commit: "HEAD" }), /base_commit is "HEAD"/],
    ["no date", () => ({ created_at: "long ago" }), /created_at is "long ago"/],
    ["no issue", () => ({ problem_statement: " " }), /problem_statement is empty/],
  ])("%s", async (_, change, fault) => {
    const tasks = { ...set, repository: () => set.repository(row()) };
    const found = await checkTask({ instance: { ...row(), ...change() }, tasks, backend });
    expect(found.join("\n")).toMatch(fault);
  });
});
