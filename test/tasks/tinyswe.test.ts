import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isTokenringError } from "../../lib/errors.ts";
import { Random } from "../../lib/random.ts";
import { copySequence } from "../../lib/tasks/tinyswe/copy.ts";
import { FAMILY_NAMES } from "../../lib/tasks/tinyswe/families.ts";
import { call, load, repr } from "../../lib/tasks/tinyswe/language.ts";
import { mended, resolves, results } from "../../lib/tasks/tinyswe/model.ts";
import { belongsTo, namesOf, SYLLABLES } from "../../lib/tasks/tinyswe/names.ts";
import { testId } from "../../lib/tasks/tinyswe/runner.ts";
import { makeTask, type TinyTask } from "../../lib/tasks/tinyswe/task.ts";
import { type TinysweTaskSet, tinyswe } from "../../lib/tasks/tinyswe/tinyswe.ts";

let set: TinysweTaskSet;
let all: TinyTask[];

beforeAll(() => {
  set = tinyswe({ seed: 5, train: 300, heldOut: 100 });
  all = [...set.tasks.train, ...set.tasks.heldOut];
});

afterAll(() => set.dispose());

/** Every word of letters that a task shows to an agent. */
function words(task: TinyTask): string[] {
  const sources = [...task.files].filter(([name]) => name !== "test.py").map(([, content]) => content);
  const patches = (task.instance.patch + task.instance.test_patch).replaceAll(/^index .*$/gm, "");
  const texts = [task.instance.problem_statement, patches, ...sources];
  return [...texts, ...task.files.keys()].join("\n").match(/[a-z]+/g) as string[];
}

const namesIn = (task: TinyTask): string[] =>
  words(task).filter((word) => belongsTo("train", word) || belongsTo("heldOut", word));

describe("names", () => {
  test("a fifth of the two-syllable names is held out, and every syllable occurs in both splits", () => {
    const [train, heldOut] = [namesOf("train"), namesOf("heldOut")];
    expect(train.filter((name) => heldOut.includes(name))).toEqual([]);
    expect(heldOut.length / (train.length + heldOut.length)).toBeCloseTo(0.2, 2);
    for (const names of [train, heldOut]) {
      expect(new Set(names.map((name) => name.slice(0, 2))).size).toBe(SYLLABLES.length);
      expect(new Set(names.map((name) => name.slice(2))).size).toBe(SYLLABLES.length);
    }
  });

  test("held-out tasks share no name, file, path or repository with training tasks and demonstrations", () => {
    for (const task of all) {
      const found = namesIn(task);
      expect(found.length).toBeGreaterThan(0);
      expect(found.filter((name) => !belongsTo(task.split, name))).toEqual([]);
    }
    for (let index = 0; index < 50; index++) {
      const found = namesIn(makeTask(5, "demonstration", index));
      expect(found.filter((name) => !belongsTo("train", name))).toEqual([]);
    }
    const own = (tasks: readonly TinyTask[]): Set<string> =>
      new Set(tasks.flatMap((t) => [t.instance.repo, t.instance.instance_id, ...t.files.keys()]));
    const shared = [...own(set.tasks.heldOut)].filter((name) => own(set.tasks.train).has(name));
    expect(shared).toEqual(["test.py"]);
    expect(new Set(all.map((t) => t.instance.instance_id)).size).toBe(400);
  });
});

describe("the seed", () => {
  test("decides every task, whatever the number of tasks", () => {
    const fewer = tinyswe({ seed: 5, train: 20, heldOut: 10 });
    expect(fewer.train).toEqual(set.train.slice(0, 20));
    expect(fewer.heldOut).toEqual(set.heldOut.slice(0, 10));
    expect(makeTask(5, "train", 7)).toEqual(set.tasks.train[7]);
    const other = tinyswe({ seed: 6, train: 20, heldOut: 0 });
    expect(other.train.filter((row, i) => row.patch === fewer.train[i]?.patch)).toEqual([]);
  });

  test("demonstrations are other tasks than the training split's", () => {
    const patches = new Set(set.train.map((row) => row.patch));
    for (let i = 0; i < 50; i++)
      expect(patches.has(makeTask(5, "demonstration", i).instance.patch)).toBe(false);
  });
});

describe("shares", () => {
  test("35 % of any split have two bugs, each in its own file", () => {
    const twos = (tasks: readonly TinyTask[]): number => tasks.filter((t) => t.kind === "two").length;
    expect(twos(set.tasks.train)).toBe(105);
    expect(twos(set.tasks.heldOut)).toBe(35);
    for (const { kind, bugs, files } of all) {
      expect(bugs.length).toBe(kind === "two" ? 2 : 1);
      expect(new Set(bugs.map((bug) => bug.file)).size).toBe(bugs.length);
      expect([2, 3]).toContain(files.size);
    }
  });

  test("every family of bugs comes equally often", () => {
    expect(FAMILY_NAMES.length).toBeGreaterThanOrEqual(14);
    for (const tasks of [set.tasks.train, set.tasks.heldOut]) {
      const families = tasks.flatMap((t) => t.bugs.map((bug) => bug.family));
      const counts = FAMILY_NAMES.map((name) => families.filter((f) => f === name).length);
      expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
    }
  });

  test("files have two functions in at most 8 lines", () => {
    for (const { files } of all) {
      for (const [name, content] of files) {
        if (name === "test.py") continue;
        expect(content.match(/^def /gm)?.length).toBe(2);
        expect(content.trimEnd().split("\n").length).toBeLessThanOrEqual(8);
      }
    }
  });
});

describe("the tests of a task", () => {
  test("fail before and pass after the fix, as the row's lists say", () => {
    for (const task of all) {
      const calls = [...task.visible, ...task.hidden];
      const before = results(task, task.files, calls);
      const failing = before
        .filter(({ call: c, got }) => got !== repr(c.expected))
        .map(({ call: c }) => testId(c));
      expect(failing).toEqual(task.instance.FAIL_TO_PASS);
      expect([...failing, ...task.instance.PASS_TO_PASS].sort()).toEqual(calls.map(testId).sort());
      expect(failing.length).toBeGreaterThan(0);
      expect(task.instance.PASS_TO_PASS.length).toBeGreaterThan(0);
      expect(resolves(task, task.files)).toBe(false);
      expect(resolves(task, mended(task))).toBe(true);
    }
  });

  test("every half of a two-bug fix and every wrong fix is refused, wrong fixes already by the visible tests", () => {
    for (const task of all) {
      for (const bug of task.bugs) {
        const name = `${bug.file}.py`;
        const half = new Map(mended(task)).set(name, task.files.get(name) as string);
        expect(resolves(task, half)).toBe(false);
        expect(bug.wrong.length).toBeGreaterThan(0);
        for (const wrong of bug.wrong) {
          const lines = (task.files.get(name) as string).split("\n").with(bug.line - 1, wrong);
          const files = new Map(mended(task)).set(name, lines.join("\n"));
          const seen = results(task, files, task.visible).filter(
            ({ call: c, got }) => got !== repr(c.expected),
          );
          expect(seen.map(({ call: c }) => c.name)).toContain(bug.function);
        }
      }
    }
  });

  test("hidden calls refuse a constant that the visible ones accept", () => {
    for (const task of all) {
      for (const bug of task.bugs) {
        const own = (calls: TinyTask["visible"]): Set<string> =>
          new Set(calls.filter((c) => c.name === bug.function).map((c) => repr(c.expected)));
        expect(own(task.visible).size).toBe(1);
        expect(own([...task.visible, ...task.hidden]).size).toBeGreaterThan(1);
      }
    }
  });

  test("two passing calls are visible beside those of the issue, which prints what the bug returns", () => {
    for (const task of all) {
      expect(task.visible.length).toBe(task.bugs.length + 2);
      const issue = task.instance.problem_statement.split("\n");
      const failing = results(task, task.files, task.visible).filter(
        ({ call: c, got }) => got !== repr(c.expected),
      );
      expect(issue.length).toBe(failing.length);
      for (const { call: c, got } of failing) {
        const text = `${c.name}(${c.args.map(repr).join(", ")}) returns ${got}, expected ${repr(c.expected)}.`;
        expect(issue.filter((line) => line.startsWith(text)).length).toBe(1);
      }
    }
    const named = all.flatMap((t) => t.named);
    expect(named.filter(Boolean).length / named.length).toBeCloseTo(0.85, 1);
  });

  test("a file that cannot be imported fails by the class of its error", () => {
    const module = load([{ kind: "return", depth: 1, value: { kind: "literal", value: 1 } }]);
    expect(call(module, "tepa", [])).toEqual({ raised: "IndentationError" });
  });
});

describe("the task set", () => {
  test("writes a repository once, when asked, and removes its own directory", async () => {
    const own = tinyswe({ seed: 1, train: 2, heldOut: 0 });
    const [first] = own.train;
    if (first === undefined) throw new Error("no task");
    const [path, again] = await Promise.all([own.repository(first), own.repository(first)]);
    expect(again).toBe(path);
    expect((await readdir(path)).sort()).toEqual(
      [".git", ...(own.tasks.train[0] as TinyTask).files.keys()].sort(),
    );
    await own.dispose();
    expect(existsSync(path)).toBe(false);
    await expect(own.repository(first)).rejects.toSatisfy((e) =>
      isTokenringError(e, "ERR_TOKENRING_DISPOSED"),
    );
  });

  test("refuses rows of another set and counts that are none", async () => {
    const stranger = makeTask(99, "train", 0).instance;
    await expect(set.repository(stranger)).rejects.toThrow(/tinyswe: there is no task/);
    expect(() => tinyswe({ seed: 1, train: -1, heldOut: 0 })).toThrow(/train is -1/);
  });

  test("opens with the issue and the shell's prompt", () => {
    const [row] = set.train;
    if (row === undefined) throw new Error("no task");
    expect(set.template.opening(row)).toBe(
      `${row.problem_statement}\n(Current directory: /repo, current file: none) bash-$`,
    );
    expect(set.template.system).toBeUndefined();
  });
});

test("copy sequences repeat a random string of 4 to 24 syllables", () => {
  const periods = new Set<number>();
  for (let i = 0; i < 300; i++) {
    const text = copySequence(Random.of(3, "copy", i), 64);
    expect(text.length).toBe(128);
    const syllables = text.match(/../g) as string[];
    expect(syllables.every((s) => SYLLABLES.includes(s))).toBe(true);
    const period = syllables.findIndex(
      (_, p) => p > 0 && syllables.every((s, j) => j < p || s === syllables[j - p]),
    );
    expect(period).toBeLessThanOrEqual(24);
    periods.add(period);
  }
  expect(Math.max(...periods)).toBe(24);
  expect(Math.min(...periods)).toBe(4);
});
