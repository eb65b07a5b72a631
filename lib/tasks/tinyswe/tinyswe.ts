// The built-in task set: generated repositories of one or two tiny Python files, each with one or two bugs.
import { existsSync, mkdirSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { TokenringError } from "../../errors.ts";
import { parseLogPytest, provenLines } from "../log-parsers.ts";
import type { Instance, PromptTemplate, TaskSet } from "../types.ts";
import { writeRepository } from "./git.ts";
import { verifyCommand } from "./judge.ts";
import type { Stream } from "./plan.ts";
import { PROGRAMS } from "./programs.ts";
import { WORKDIR } from "./simulator.ts";
import { makeTask, type TinyTask } from "./task.ts";

export interface TinysweOptions {
  /** Decides every task. */
  seed: number;
  /** How many training and held-out tasks; the first n tasks of a split are the same whatever n is. */
  train: number;
  heldOut: number;
  /** How many held-out tasks of the families that training never sees. Default 0. */
  heldOutFamilies?: number;
  /** Where repositories are written; kept. Without it a temporary directory, which `dispose` removes. */
  directory?: string;
}

/** A task set of generated tasks. */
export interface TinysweTaskSet extends TaskSet {
  /** What was generated: bugs, repairs and calls beside the rows. */
  readonly tasks: Readonly<Record<"train" | "heldOut" | "heldOutFamilies", readonly TinyTask[]>>;
  /** Bugs of the families that training never sees. */
  readonly apart: { readonly "held-out-family": readonly Instance[] };
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
 * Generates tasks in memory (about 0.2 ms each); repositories are written when first asked for. No name, file or
 * repository of a held-out task occurs in training tasks, and no bug of `heldOutFamilies` either (docs/tinyswe.md).
 * @throws TokenringError ERR_TOKENRING_INVALID_ARGUMENT for counts that are no natural numbers.
 */
export function tinyswe(options: TinysweOptions): TinysweTaskSet {
  const counts = {
    train: options.train,
    heldOut: options.heldOut,
    heldOutFamilies: options.heldOutFamilies ?? 0,
  };
  for (const [key, count] of Object.entries(counts)) {
    if (Number.isSafeInteger(count) && count >= 0) continue;
    const message = `tinyswe: ${key} is ${count}; give the number of tasks, 0 or more`;
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
  }
  const make = (stream: Stream, count: number): TinyTask[] =>
    Array.from({ length: count }, (_, index) => makeTask(options.seed, stream, index));
  const tasks = {
    train: make("train", counts.train),
    heldOut: make("heldOut", counts.heldOut),
    heldOutFamilies: make("heldOutFamily", counts.heldOutFamilies),
  };
  const byId = new Map(
    Object.values(tasks)
      .flat()
      .map((task) => [task.instance.instance_id, task]),
  );

  let directory: string | null = options.directory === undefined ? null : resolve(options.directory);
  let disposed = false;

  return {
    name: "tinyswe",
    train: tasks.train.map((task) => task.instance),
    heldOut: tasks.heldOut.map((task) => task.instance),
    apart: { "held-out-family": tasks.heldOutFamilies.map((task) => task.instance) },
    tasks,
    template: COMPACT_TEMPLATE,
    programs: PROGRAMS,
    async repository(instance: Instance): Promise<string> {
      const task = byId.get(instance.instance_id);
      if (task === undefined) {
        const message = `tinyswe: there is no task ${instance.instance_id} in this set; ask the set that made the row`;
        throw new TokenringError("ERR_TOKENRING_TASK", message);
      }
      if (disposed)
        throw new TokenringError("ERR_TOKENRING_DISPOSED", "tinyswe: the task set was disposed of");
      directory ??= mkdtempSync(join(tmpdir(), "tokenring-tinyswe-"));
      const path = join(directory, `${instance.instance_id}-${instance.base_commit.slice(0, 12)}`);
      if (!existsSync(path)) {
        mkdirSync(directory, { recursive: true });
        writeRepository(path, task.files);
      }
      return path;
    },
    testCommand: (_, nonce) => verifyCommand(nonce),
    parseLog: (log, nonce) => parseLogPytest(provenLines(log, nonce)),
    async dispose(): Promise<void> {
      disposed = true;
      if (directory === null || options.directory !== undefined) return;
      await rm(directory, { recursive: true, force: true });
      directory = null;
    },
  };
}
