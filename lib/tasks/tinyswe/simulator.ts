// The sandbox of demonstrations: one tiny repository in memory, with the few commands that demonstrators use. What it
// answers is byte for byte what a real sandbox answers, at a thousandth of the cost.
import { TokenringError } from "../../errors.ts";
import { gitDiff } from "./diff.ts";
import { results } from "./model.ts";
import { runOutput, TEST_COMMAND } from "./runner.ts";
import type { TinyTask } from "./task.ts";

/** Where a sandbox shows the repository unless told otherwise. */
export const WORKDIR = "/repo";

/** Result of a command; the shape of the sandbox contract. */
export interface SimulatedResult {
  output: string;
  exitCode: number;
  timedOut: false;
  droppedBytes: 0;
  cwd: string;
}

/** Fits where a `Sandbox` is expected; the concepts stand beside each other, so neither imports the other. */
export interface SimulatedSandbox {
  readonly workdir: string;
  exec(command: string): Promise<SimulatedResult>;
  read(path: string): Promise<string>;
  write(path: string, content: string): Promise<void>;
  diff(): Promise<string>;
  /** Always throws: there is no directory that could be opened again. */
  snapshot(): Promise<never>;
  close(): Promise<void>;
  /** The files as they stand, by name. */
  files(): ReadonlyMap<string, string>;
}

/** A fresh sandbox of the task's repository. */
export function simulate(task: TinyTask): SimulatedSandbox {
  const files = new Map(task.files);
  const unknown = (what: string): TokenringError => {
    const message = `tinyswe: the simulated sandbox of ${task.instance.instance_id} does not know ${what}`;
    return new TokenringError("ERR_TOKENRING_SANDBOX", `${message}; use a real sandbox for it`);
  };
  const nameOf = (path: string): string =>
    path.startsWith(`${WORKDIR}/`) ? path.slice(WORKDIR.length + 1) : path;

  return {
    workdir: WORKDIR,
    async exec(command) {
      const { output, exitCode } = execute(task, files, command) ?? { output: null, exitCode: 0 };
      if (output === null) throw unknown(`the command "${command}"`);
      return { output, exitCode, timedOut: false, droppedBytes: 0, cwd: WORKDIR };
    },
    async read(path) {
      const content = files.get(nameOf(path));
      if (content === undefined) throw unknown(`the file ${path}`);
      return content;
    },
    async write(path, content) {
      if (!files.has(nameOf(path))) throw unknown(`the file ${path}`);
      files.set(nameOf(path), content);
    },
    diff: async () => gitDiff(task.files, files),
    snapshot: async () => {
      throw unknown("snapshots");
    },
    close: async () => {},
    files: () => files,
  };
}

function execute(
  task: TinyTask,
  files: ReadonlyMap<string, string>,
  command: string,
): { output: string; exitCode: number } | null {
  if (command === TEST_COMMAND) return runOutput(results(task, files, task.visible));
  if (command === "ls")
    return {
      output: [...files.keys()]
        .sort()
        .map((name) => `${name}\n`)
        .join(""),
      exitCode: 0,
    };
  const searched = /^grep -rn "(def [a-z]+)"$/.exec(command)?.[1];
  if (searched === undefined) return null;
  // Two files with a match would come in the order of the directory, which is the file system's affair.
  const output = [...files].flatMap(([name, content]) =>
    content.split("\n").flatMap((line, i) => (line.includes(searched) ? [`${name}:${i + 1}:${line}\n`] : [])),
  );
  return { output: output.join(""), exitCode: output.length > 0 ? 0 : 1 };
}
