import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isTokenringError } from "../../lib/errors.ts";
import { Random } from "../../lib/random.ts";
import { copySequence } from "../../lib/tasks/tinyswe/copy.ts";
import { FAMILIES, KEPT_OUT, TRAINED } from "../../lib/tasks/tinyswe/families.ts";
import { call, load, repr } from "../../lib/tasks/tinyswe/language.ts";
import { mended, resolves, results } from "../../lib/tasks/tinyswe/model.ts";
import { namesOf, SYLLABLES } from "../../lib/tasks/tinyswe/names.ts";
import { DIFFICULTIES, type Difficulty } from "../../lib/tasks/tinyswe/plan.ts";
import { testId } from "../../lib/tasks/tinyswe/runner.ts";
import { ownNames, shared } from "../../lib/tasks/tinyswe/separation.ts";
import { makeTask, type TinyTask } from "../../lib/tasks/tinyswe/task.ts";
import { type TinysweTaskSet, tinyswe } from "../../lib/tasks/tinyswe/tinyswe.ts";

let set: TinysweTaskSet;
let all: TinyTask[];

beforeAll(() => {
  set = tinyswe({ seed: 5, train: 300, heldOut: 100, heldOutFamilies: 20 });
  all = [...set.tasks.train, ...set.tasks.heldOut, ...set.tasks.heldOutFamilies];
});

afterAll(() => set.dispose());

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
    const { train, heldOut, heldOutFamilies } = set.tasks;
    const demonstrations = Array.from({ length: 50 }, (_, index) => makeTask(5, "demonstration", index));
    expect(shared([...train, ...demonstrations], [...heldOut, ...heldOutFamilies])).toEqual([]);
    // The same program finds what two halves of one split share.
    expect(shared(train.slice(0, 150), train.slice(150)).length).toBeGreaterThan(0);
    for (const task of all) {
      const bug = task.bugs[0] as TinyTask["bugs"][number];
      expect([...ownNames(task)]).toEqual(
        expect.arrayContaining([task.instance.repo, `${bug.file}.py`, bug.file, bug.function]),
      );
    }
    expect(new Set(all.map((t) => t.instance.instance_id)).size).toBe(420);
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
  const bugs = (tasks: readonly TinyTask[], difficulty: Difficulty): string[] =>
    tasks.filter((t) => t.difficulty === difficulty).flatMap((t) => t.bugs.map((bug) => bug.family));

  test("of any 20 tasks in a row 6 are easy, 7 medium, 4 hard and 3 hardest", () => {
    for (const tasks of [set.tasks.train, set.tasks.heldOut, set.tasks.heldOutFamilies]) {
      for (let at = 0; at < tasks.length; at += 20) {
        const counts = DIFFICULTIES.map((d) => bugs(tasks.slice(at, at + 20), d).length);
        expect(counts).toEqual([6, 7, 8, 6]);
      }
    }
    // In another order each time.
    const order = (at: number): string[] => set.tasks.train.slice(at, at + 20).map((t) => t.difficulty);
    expect(order(0)).not.toEqual(order(20));
  });

  test("two bugs lie in two files, and repositories have one file or two beside test.py", () => {
    for (const { kind, difficulty, bugs: found, files } of all) {
      expect(kind).toBe(found.length === 2 ? "two" : "one");
      expect(kind === "two").toBe(difficulty === "hard" || difficulty === "hardest");
      expect(new Set(found.map((bug) => bug.file)).size).toBe(found.length);
      expect([2, 3]).toContain(files.size);
    }
    expect(new Set(all.filter((t) => t.kind === "one").map((t) => t.files.size))).toEqual(new Set([2, 3]));
  });

  test("every family of bugs comes equally often at every difficulty, but for the two that are kept out", () => {
    expect(TRAINED.length).toBeGreaterThanOrEqual(12);
    expect(KEPT_OUT.length).toBe(2);
    expect([...TRAINED, ...KEPT_OUT].sort()).toEqual(Object.keys(FAMILIES).sort());
    const demonstrations = Array.from({ length: 100 }, (_, index) => makeTask(5, "demonstration", index));
    for (const [tasks, expected] of [
      [set.tasks.train, TRAINED],
      [set.tasks.heldOut, TRAINED],
      [set.tasks.heldOutFamilies, KEPT_OUT],
      [demonstrations, TRAINED],
    ] as const) {
      for (const difficulty of DIFFICULTIES) {
        const families = bugs(tasks, difficulty);
        const counts = expected.map((name) => families.filter((f) => f === name).length);
        expect(counts.reduce((a, b) => a + b)).toBe(families.length);
        expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
      }
    }
  });

  test("rows say which split they belong to, how hard they are and which bugs they hold", () => {
    const splits = [set.train, set.heldOut, set.apart["held-out-family"]].map((rows) =>
      rows.map((r) => r.meta?.split),
    );
    expect(splits.map((names) => [...new Set(names)])).toEqual([
      ["train"],
      ["held-out"],
      ["held-out-family"],
    ]);
    for (const { instance, bugs: found, difficulty, kind } of all) {
      expect(instance.meta).toMatchObject({ difficulty, kind, families: found.map((bug) => bug.family) });
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
      const failing = results(task, task.files, task.visible).filter(
        ({ call: c, got }) => got !== repr(c.expected),
      );
      expect(failing.length).toBe(task.bugs.length);
      const told = task.bugs.filter((_, i) => task.told[i]);
      const issue = task.instance.problem_statement.split("\n");
      expect(issue.length).toBe(told.length);
      for (const { call: c, got } of failing) {
        const text = `${c.name}(${c.args.map(repr).join(", ")}) returns ${got}, expected ${repr(c.expected)}.`;
        const lines = issue.filter((line) => line.startsWith(text));
        expect(lines.length).toBe(told.some((bug) => bug.function === c.name) ? 1 : 0);
      }
    }
  });

  test("the issue of an easy task names file and repair, that of a medium one does not, the hardest hides a bug", () => {
    for (const task of all) {
      const { problem_statement: issue } = task.instance;
      const names = task.bugs.map((bug) => issue.includes(`See ${bug.file}.py.`));
      expect(names).toEqual(task.named);
      const hints = task.bugs.map((bug) => issue.includes(bug.hint));
      if (task.difficulty === "easy") expect([...names, ...hints]).toEqual([true, true]);
      if (task.difficulty === "medium") expect(names[0] && hints[0]).toBe(false);
      expect(task.told).toEqual(task.difficulty === "hardest" ? [true, false] : task.bugs.map(() => true));
      if (task.difficulty === "hardest") {
        const hidden = task.bugs[1] as TinyTask["bugs"][number];
        expect(issue).not.toContain(hidden.function);
        expect(issue).not.toContain(hidden.file);
      }
    }
    const told = all.flatMap((t) => (t.difficulty === "hard" ? t.named : []));
    expect(told.filter(Boolean).length / told.length).toBeCloseTo(0.85, 1);
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
