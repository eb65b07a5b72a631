// The built-in task set: generated repositories of one or two tiny Python files, each with one or two bugs.
import { existsSync, mkdirSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { TokenringError } from "../../errors.ts";
import { parseLogPytest } from "../log-parsers.ts";
import type { Instance, PromptTemplate, TaskSet } from "../types.ts";
import { writeRepository } from "./git.ts";
import { VERIFY_COMMAND } from "./runner.ts";
import { WORKDIR } from "./simulator.ts";
import { makeTask, type Stream, type TinyTask } from "./task.ts";

export interface TinysweOptions {
  /** Decides every task. */
  seed: number;
  /** How many training and held-out tasks; the first n tasks of a split are the same whatever n is. */
  train: number;
  heldOut: number;
  /** Where repositories are written; kept. Without it a temporary directory, which `dispose` removes. */
  directory?: string;
}

/** A task set of generated tasks. */
export interface TinysweTaskSet extends TaskSet {
  /** What was generated: bugs, repairs and calls beside the rows. */
  readonly tasks: { readonly train: readonly TinyTask[]; readonly heldOut: readonly TinyTask[] };
  /** Removes the temporary directory. Later calls of `repository` throw ERR_TOKENRING_DISPOSED. */
  dispose(): Promise<void>;
}

/** The opening for contexts of a few hundred tokens: the issue and the shell's prompt. */
export const COMPACT_TEMPLATE: PromptTemplate = {
  name: "compact",
  opening: (instance) =>
    `${instance.problem_statement}\n(Current directory: ${WORKDIR}, current file: none) bash-$`,
};

/**
 * Generates `train` and `heldOut` tasks in memory (about 0.2 ms each); repositories are written when first asked
 * for. No name, file or repository of a held-out task occurs in training tasks.
 * @throws TokenringError ERR_TOKENRING_INVALID_ARGUMENT for counts that are no natural numbers.
 */
export function tinyswe(options: TinysweOptions): TinysweTaskSet {
  for (const key of ["train", "heldOut"] as const) {
    if (Number.isSafeInteger(options[key]) && options[key] >= 0) continue;
    const message = `tinyswe: ${key} is ${options[key]}; give the number of tasks, 0 or more`;
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
  }
  const make = (stream: Stream, count: number): TinyTask[] =>
    Array.from({ length: count }, (_, index) => makeTask(options.seed, stream, index));
  const tasks = { train: make("train", options.train), heldOut: make("heldOut", options.heldOut) };
  const byId = new Map([...tasks.train, ...tasks.heldOut].map((task) => [task.instance.instance_id, task]));

  let directory: string | null = options.directory === undefined ? null : resolve(options.directory);
  let disposed = false;

  return {
    name: "tinyswe",
    train: tasks.train.map((task) => task.instance),
    heldOut: tasks.heldOut.map((task) => task.instance),
    tasks,
    template: COMPACT_TEMPLATE,
    async repository(instance: Instance): Promise<string> {
      const task = byId.get(instance.instance_id);
      if (task === undefined) {
        const message = `tinyswe: there is no task ${instance.instance_id} in this set; ask the set that made the row`;
        throw new TokenringError("ERR_TOKENRING_TASK", message);
      }
      if (disposed)
        throw new TokenringError("ERR_TOKENRING_DISPOSED", "tinyswe: the task set was disposed of");
      directory ??= mkdtempSync(join(tmpdir(), "tokenring-tinyswe-"));
      mkdirSync(directory, { recursive: true });
      const path = join(directory, `${instance.instance_id}-${instance.base_commit.slice(0, 12)}`);
      if (!existsSync(path)) writeRepository(path, task.files);
      return path;
    },
    testCommand: () => VERIFY_COMMAND,
    parseLog: parseLogPytest,
    async dispose(): Promise<void> {
      disposed = true;
      if (directory === null || options.directory !== undefined) return;
      await rm(directory, { recursive: true, force: true });
      directory = null;
    },
  };
}
