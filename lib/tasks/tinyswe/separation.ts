// That held-out tasks are new to a policy: which whole names, paths and repositories they share with other tasks.
import { belongsTo } from "./names.ts";
import { TEST_FILE } from "./runner.ts";
import type { TinyTask } from "./task.ts";

/**
 * What a task calls its own: repository, instance, files but for test.py, and every two-syllable name in its sources, its
 * issue, its tests and its patches (functions, strings, keys). Parameters and variables are single letters that all
 * tasks share, as they share the words of Python.
 */
export function ownNames(task: TinyTask): Set<string> {
  const { instance } = task;
  // The program in test.py is the same in all.
  const files = [...task.files].filter(([name]) => name !== TEST_FILE);
  const patches = (instance.patch + instance.test_patch).replaceAll(/^index .*$/gm, "");
  const texts = [instance.problem_statement, patches, ...files.map(([, content]) => content)];
  const words = texts.join("\n").match(/[a-z]+/g) ?? [];
  const names = words.filter((word) => belongsTo("train", word) || belongsTo("heldOut", word));
  const paths = files.map(([name]) => name);
  return new Set([instance.repo, instance.instance_id, ...paths, ...names]);
}

/** What both have, sorted; empty where the one says nothing of the other. */
export function shared(some: readonly TinyTask[], others: readonly TinyTask[]): string[] {
  const known = new Set(some.flatMap((task) => [...ownNames(task)]));
  return [...new Set(others.flatMap((task) => [...ownNames(task)]))].filter((name) => known.has(name)).sort();
}
