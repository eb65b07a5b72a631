// What the tests of a tiny repository say about its files, computed without Python.
import { TokenringError } from "../../errors.ts";
import { call, type Line, load, type Module, printOutcome, repr } from "./language.ts";
import type { TestCall } from "./runner.ts";
import type { TinyTask } from "./task.ts";

/**
 * What each call gives on these files (name to content), as test.py shows it. Only the lines that the task knows can
 * be read: its own, its fixes and its wrong fixes.
 * @throws TokenringError ERR_TOKENRING_TASK at any other line.
 */
export function results(
  task: TinyTask,
  files: ReadonlyMap<string, string>,
  calls: readonly TestCall[],
): { call: TestCall; got: string }[] {
  const modules = new Map<string, Module>();
  return calls.map((test) => {
    const module = modules.get(test.module) ?? load(linesOf(task, files, `${test.module}.py`));
    modules.set(test.module, module);
    return { call: test, got: printOutcome(call(module, test.name, test.args)) };
  });
}

function linesOf(task: TinyTask, files: ReadonlyMap<string, string>, name: string): Line[] {
  const content = files.get(name) ?? "";
  return content
    .split("\n")
    .slice(0, -1)
    .map((text) => {
      const line = task.known.get(text);
      if (line !== undefined) return line;
      const message = `tinyswe: ${task.instance.instance_id} does not know the line "${text}" of ${name}`;
      throw new TokenringError("ERR_TOKENRING_TASK", `${message}; run its tests in a real sandbox`);
    });
}

/** Whether every test passes, hidden ones included: what verification would say of these files. */
export function resolves(task: TinyTask, files: ReadonlyMap<string, string>): boolean {
  return results(task, files, [...task.visible, ...task.hidden]).every(
    ({ call: c, got }) => got === repr(c.expected),
  );
}

/** The repository's files with all bugs mended. */
export function mended(task: TinyTask): Map<string, string> {
  const files = new Map(task.files);
  for (const bug of task.bugs) {
    const name = `${bug.file}.py`;
    const lines = (files.get(name) as string).split("\n");
    lines[bug.line - 1] = bug.correct;
    files.set(name, lines.join("\n"));
  }
  return files;
}
