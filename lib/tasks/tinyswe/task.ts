// One task: a tiny repository with its bugs, its issue and its tests, as a row of SWE-bench.
import { TokenringError } from "../../errors.ts";
import { Random } from "../../random.ts";
import type { Instance } from "../types.ts";
import { gitDiff } from "./diff.ts";
import { type Draft, FAMILIES, type FamilyName, TRAINED, type World } from "./families.ts";
import { commitHash } from "./git.ts";
import { call, type Line, load, type Module, printLine, printOutcome, repr, type Value } from "./language.ts";
import { nameSource, type Split } from "./names.ts";
import { type Difficulty, planOf, type Stream } from "./plan.ts";
import { printCall, TEST_FILE, type TestCall, testFile, testId } from "./runner.ts";

export type Kind = "one" | "two";

/** A bug: line `line` (from 1) of file `file`.py. All lines are source text without the line end. */
export interface Bug {
  family: FamilyName;
  file: string;
  function: string;
  line: number;
  correct: string;
  buggy: string;
  /** Repairs that fail the visible test; at least one. */
  wrong: readonly string[];
  thought: string;
  /** What an issue may say about the repair. */
  hint: string;
}

/** A task and everything about it that the row does not tell. */
export interface TinyTask {
  instance: Instance;
  kind: Kind;
  difficulty: Difficulty;
  split: Split;
  /** Content of the repository by file name, test.py included. */
  files: ReadonlyMap<string, string>;
  bugs: readonly Bug[];
  /** Whether the issue tells of each bug, and whether it names its file. */
  told: readonly boolean[];
  named: readonly boolean[];
  /** Calls that test.py makes, and those that the test patch adds. */
  visible: readonly TestCall[];
  hidden: readonly TestCall[];
  /** Every line that a demonstration can put into a file, by its text. */
  known: ReadonlyMap<string, Line>;
}

// Of a bug that the issue tells, where the difficulty leaves it open.
const P_NAMED = 0.85;
const P_HINT = 0.5;
const P_SECOND_FILE = 0.4;
const CREATED = "2025-01-01T00:00:00Z";

/** `meta.split` of a row. */
const SPLITS: Readonly<Record<Stream, string>> = {
  train: "train",
  heldOut: "held-out",
  heldOutFamily: "held-out-family",
  demonstration: "demonstration",
};

/** What the issue says of a bug beside its call. */
interface Telling {
  told: boolean;
  named: boolean;
  hinted: boolean;
}

function tellings(difficulty: Difficulty, random: Random): Telling[] {
  const told = { told: true, named: true, hinted: true };
  const some = (): Telling => ({ ...told, named: random.chance(P_NAMED), hinted: random.chance(P_HINT) });
  switch (difficulty) {
    case "easy":
      return [told];
    case "medium": {
      // Drawn again until something is left out.
      for (;;) {
        const telling = some();
        if (!telling.named || !telling.hinted) return [telling];
      }
    }
    case "hard":
      return [some(), some()];
    case "hardest":
      return [some(), { told: false, named: false, hinted: false }];
  }
}

/** Task `index` of a stream: the same whatever other tasks are made. */
export function makeTask(seed: number, stream: Stream, index: number): TinyTask {
  const random = Random.of(seed, `tinyswe/${stream}`, index);
  const split: Split = stream === "heldOut" || stream === "heldOutFamily" ? "heldOut" : "train";
  const world: World = { random, name: nameSource(split, random) };
  const { difficulty, families } = planOf(seed, stream, index);
  const kind: Kind = families.length === 2 ? "two" : "one";
  const modules = families.map((family) => makeModule(world, family));
  if (kind === "one" && random.chance(P_SECOND_FILE)) modules.push(makeModule(world, null));
  const bugs = modules.flatMap((module) => (module.bug === null ? [] : [module.bug]));

  const fillers = modules.flatMap((module) => module.functions.filter((f) => !f.buggy));
  const passing = new Set([...fillers.map((f) => f.calls[0]), ...fillers.map((f) => f.calls[1])].slice(0, 2));
  const shown = modules.flatMap((m) => m.functions.flatMap((f) => (f.buggy ? f.calls.slice(0, 1) : f.calls)));
  const visible = shown.filter((c) => passing.has(c) || bugs.some((bug) => bug.function === c.name));
  const hidden = modules
    .flatMap((m) => m.functions.flatMap((f) => f.calls))
    .filter((c) => !visible.includes(c));

  const before = new Map(modules.map((m) => [`${m.file}.py`, sourceOf(m.buggyLines)]));
  const after = new Map(modules.map((m) => [`${m.file}.py`, sourceOf(m.correctLines)]));
  const [tests, allTests] = [testFile(visible), testFile([...visible, ...hidden])];
  const files = new Map([...before, [TEST_FILE, tests]]);

  const broken = new Map(modules.map((m) => [m.file, load(m.buggyLines)]));
  const gotBefore = (c: TestCall): string =>
    printOutcome(call(broken.get(c.module) as Module, c.name, c.args));
  const fails = (c: TestCall): boolean => gotBefore(c) !== repr(c.expected);
  const telling = tellings(difficulty, random);
  const issue = bugs.flatMap((bug, i) => {
    const { told, named, hinted } = telling[i] as Telling;
    if (!told) return [];
    const shownCall = visible.find((c) => c.name === bug.function) as TestCall;
    const returned = `${printCall(shownCall)} returns ${gotBefore(shownCall)}, expected ${repr(shownCall.expected)}.`;
    return [`${returned}${named ? ` See ${bug.file}.py.` : ""}${hinted ? ` ${bug.hint}` : ""}`];
  });

  const first = (modules[0] as TinyModule).file;
  const prefix = { train: "", heldOut: "", heldOutFamily: "family-", demonstration: "demonstration-" }[
    stream
  ];
  const id = `${prefix}${index}`;
  const every = [...visible, ...hidden];
  const instance: Instance = {
    instance_id: `tinyswe__${first}-${id}`,
    repo: `tinyswe/${first}-${id}`,
    base_commit: commitHash(files),
    problem_statement: issue.join("\n"),
    hints_text: "",
    created_at: CREATED,
    version: "1.0",
    patch: gitDiff(before, after),
    test_patch: gitDiff(new Map([[TEST_FILE, tests]]), new Map([[TEST_FILE, allTests]])),
    FAIL_TO_PASS: every.filter(fails).map(testId),
    PASS_TO_PASS: every.filter((c) => !fails(c)).map(testId),
    meta: { split: SPLITS[stream], kind, difficulty, families },
  };
  const [told, named] = [telling.map((t) => t.told), telling.map((t) => t.named)];
  const known = knownLines(modules);
  return { instance, kind, difficulty, split, files, bugs, told, named, visible, hidden, known };
}

interface TinyFunction {
  buggy: boolean;
  lines: readonly Line[];
  /** Of a buggy function the first is the issue's. */
  calls: TestCall[];
}

interface TinyModule {
  file: string;
  functions: readonly TinyFunction[];
  buggyLines: readonly Line[];
  correctLines: readonly Line[];
  bug: Bug | null;
  wrong: readonly Line[];
}

const sourceOf = (lines: readonly Line[]): string => lines.map((line) => `${printLine(line)}\n`).join("");

const nameOf = (draft: Draft): string => (draft.lines[0] as Extract<Line, { kind: "def" }>).name;

/** A file of two functions; the bug is in one of them, or (family null) in none. */
function makeModule(world: World, family: FamilyName | null): TinyModule {
  const { random, name } = world;
  const file = name();
  const broken = family === null ? null : makeBroken(world, family, file);
  const functions: TinyFunction[] = [makeFiller(world, file)];
  if (broken === null) functions.push(makeFiller(world, file));
  else functions.splice(random.below(2), 0, { buggy: true, lines: broken.draft.lines, calls: broken.calls });

  const correctLines = functions.flatMap((f) => f.lines);
  if (broken === null || family === null) {
    return { file, functions, buggyLines: correctLines, correctLines, bug: null, wrong: [] };
  }
  const { draft, wrong } = broken;
  const correct = draft.lines[draft.at] as Line;
  const at = correctLines.indexOf(correct);
  const bug = {
    family,
    file,
    function: nameOf(draft),
    line: at + 1,
    correct: printLine(correct),
    buggy: printLine(draft.buggy),
    wrong: wrong.map(printLine),
    thought: FAMILIES[family].thought,
    hint: draft.hint,
  };
  return { file, functions, buggyLines: correctLines.with(at, draft.buggy), correctLines, bug, wrong };
}

/** What a call of the draft's function gives when line `at` is `line`. */
function outcome(draft: Draft, line: Line | undefined, args: readonly Value[]): string {
  const lines = line === undefined ? draft.lines : draft.lines.with(draft.at, line);
  return printOutcome(call(load(lines), nameOf(draft), args));
}

function testCall(draft: Draft, module: string, args: readonly Value[]): TestCall {
  const result = call(load(draft.lines), nameOf(draft), args);
  if (!("value" in result))
    throw new TokenringError(
      "ERR_TOKENRING_INTERNAL",
      `tinyswe: ${nameOf(draft)} raised ${result.raised} before any bug`,
    );
  return { module, name: nameOf(draft), args, expected: result.value };
}

const DRAWS = 24;

/**
 * A function with a bug, and calls: the first shows the bug and exposes every wrong repair that is kept; of the
 * others at least one expects something else, so that no constant passes them all.
 */
function makeBroken(
  world: World,
  family: FamilyName,
  file: string,
): { draft: Draft; calls: TestCall[]; wrong: Line[] } {
  for (;;) {
    const draft = FAMILIES[family].draft(world);
    const draws = distinct(draft, Array.from({ length: DRAWS }, draft.draw), file);
    const candidates = draft.wrong.filter(
      (line) => ![draft.buggy, draft.lines[draft.at]].some((l) => same(l, line)),
    );
    for (const first of draws) {
      const fails = (line: Line): boolean => outcome(draft, line, first.args) !== repr(first.expected);
      const wrong = candidates.filter(fails);
      const other = draws.find((c) => repr(c.expected) !== repr(first.expected));
      if (!fails(draft.buggy) || wrong.length === 0 || other === undefined) continue;
      const third = draws.find((c) => c !== first && c !== other);
      const calls = third !== undefined && world.random.chance(0.5) ? [first, other, third] : [first, other];
      return { draft, calls, wrong };
    }
  }
}

const same = (a: Line | undefined, b: Line): boolean => a !== undefined && printLine(a) === printLine(b);

/** A short correct function and two calls of it. */
function makeFiller(world: World, file: string): TinyFunction {
  const family = world.random.pick(TRAINED.filter((name) => FAMILIES[name].length <= 3));
  const draft = FAMILIES[family].draft(world);
  let draws: TestCall[] = [];
  while (draws.length < 2) draws = distinct(draft, Array.from({ length: 4 }, draft.draw), file);
  return { buggy: false, lines: draft.lines, calls: draws.slice(0, 2) };
}

/** Test calls with these arguments, each call once. */
function distinct(draft: Draft, draws: readonly Value[][], file: string): TestCall[] {
  const byText = new Map(draws.map((args) => [repr(args), args]));
  return [...byText.values()].map((args) => testCall(draft, file, args));
}

function knownLines(modules: readonly TinyModule[]): Map<string, Line> {
  const lines = modules.flatMap((m) => [...m.correctLines, ...m.buggyLines, ...m.wrong]);
  return new Map(lines.map((line) => [printLine(line), line]));
}
