// `tokenring tasks`: the tasks that a job trains and is measured on, to look at, to check and to take away.
import { mkdir, readdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { type Command, Option } from "commander";
import { TokenringError } from "../errors.ts";
import { readConfig } from "../run/config-file.ts";
import type { TinyTask } from "../tasks/tinyswe/task.ts";
import type { TinysweTaskSet } from "../tasks/tinyswe/tinyswe.ts";
import {
  examples,
  givenPath,
  JSON_HELP,
  type OutputOptions,
  prepareJson,
  showsWords,
  wholeNumber,
  writeJson,
} from "./options.ts";
import { commandProgress } from "./progress.ts";
import { commandSignal } from "./signals.ts";

/** The same path from lib/cli and from dist/cli. */
const DEMO_CONFIG = fileURLToPath(new URL("../../recipes/tinyswe.yaml", import.meta.url));

interface SetOptions {
  config: string;
  seed?: number;
}

const SPLITS = { train: "train", "held-out": "heldOut", "held-out-family": "heldOutFamilies" } as const;
type SplitName = keyof typeof SPLITS;

/** The task set of a job's config; the caller disposes of it. */
async function openTasks(options: SetOptions, directory?: string) {
  const { config } = await readConfig(options.config);
  const { tinyswe } = await import("../tasks/tinyswe/tinyswe.ts");
  const { train, heldOut, heldOutFamilies } = config.tasks;
  const seed = options.seed ?? config.seed;
  const set = tinyswe({ seed, train, heldOut, heldOutFamilies, ...(directory ? { directory } : {}) });
  return { set, config, seed };
}

const tasksOf = (set: TinysweTaskSet): [SplitName, readonly TinyTask[]][] =>
  (Object.keys(SPLITS) as SplitName[]).map((name) => [name, set.tasks[SPLITS[name]]]);

const many = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;

async function show(index: number, options: SetOptions & { split: string; json?: boolean }): Promise<void> {
  const { set, seed } = await openTasks(options);
  const key = SPLITS[options.split as SplitName];
  if (key === undefined) {
    const message = `--split ${options.split}: there is no such split; give one of ${Object.keys(SPLITS).join(", ")}`;
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
  }
  const task = set.tasks[key][index];
  if (task === undefined) {
    const message = `${options.split} has ${many(set.tasks[key].length, "task")} in ${options.config}, counted from 0: there is no ${index}`;
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
  }
  process.stdout.write(
    options.json ? `${JSON.stringify(task.instance, null, 2)}\n` : describe(task, options.split, seed),
  );
}

/** A task as a person reads it: what the agent is told, what it finds, and what it is not told. */
function describe(task: TinyTask, split: string, seed: number): string {
  const { instance, files, bugs } = task;
  const indented = (text: string): string => text.trimEnd().replaceAll(/^(?=.)/gm, "  ");
  const numbered = (text: string): string =>
    text
      .trimEnd()
      .split("\n")
      .map((line, i) => `  ${String(i + 1).padStart(2)}  ${line}`)
      .join("\n");
  const sources = [...files].filter(([name]) => name !== "test.py");
  const parts = [
    `${instance.instance_id}   (${split}, seed ${seed})`,
    `repository ${instance.repo} at ${instance.base_commit.slice(0, 12)}; difficulty ${task.difficulty}; ` +
      `${many(bugs.length, "bug")}: ${bugs.map((bug) => bug.family).join(", ")}`,
    `\nissue\n${indented(instance.problem_statement)}`,
    ...sources.map(([name, content]) => `\n${name}\n${numbered(content)}`),
    `\ntests that must pass in the end (verification adds those that test.py does not hold yet)\n${indented(
      [
        ...instance.FAIL_TO_PASS.map((test) => `fails now   ${test}`),
        ...instance.PASS_TO_PASS.map((test) => `passes now  ${test}`),
      ].join("\n"),
    )}`,
    `\ngold patch, which the agent never sees\n${indented(instance.patch)}`,
  ];
  return `${parts.join("\n")}\n`;
}

async function check(options: SetOptions & OutputOptions): Promise<void> {
  const { set, config } = await openTasks(options);
  if (options.json !== undefined) await prepareJson(options.json);
  const progress = commandProgress(options);
  const [{ localBackend }, { checkTask }, { shared }, { default: pLimit }, { availableParallelism }] =
    await Promise.all([
      import("../sandbox/local.ts"),
      import("../verify/check-task.ts"),
      import("../tasks/tinyswe/separation.ts"),
      import("p-limit"),
      import("node:os"),
    ]);
  const signal = commandSignal();
  const backend = await localBackend({
    ...(config.sandbox.kind === "auto" ? {} : { kind: config.sandbox.kind }),
    programs: set.programs,
    onWarning: (message: string) => progress.log(message),
  });
  const faults: { task: string; fault: string }[] = [];
  const rows = [...set.train, ...set.heldOut, ...set.apart["held-out-family"]];
  try {
    const { train, heldOut, heldOutFamilies } = set.tasks;
    for (const name of shared(train, [...heldOut, ...heldOutFamilies]))
      faults.push({ task: "splits", fault: `training and held-out tasks share ${name}` });
    progress.phase("checking tasks", rows.length);
    let done = 0;
    const limit = pLimit(availableParallelism());
    await limit.map(rows, async (instance) => {
      const found = await checkTask({ instance, tasks: set, backend, signal });
      faults.push(...found.map((fault) => ({ task: instance.instance_id, fault })));
      progress.update(++done);
    });
    progress.end();
  } finally {
    await backend.dispose();
    await set.dispose();
  }
  const result = { ok: faults.length === 0, tasks: rows.length, faults };
  if (options.json !== undefined) await writeJson(options.json, result);
  for (const { task, fault } of faults) process.stderr.write(`${task}: ${fault}\n`);
  if (!result.ok) process.exitCode = 1;
  if (!showsWords(options)) return;
  const counts = tasksOf(set).map(([name, tasks]) => `${tasks.length} ${name}`);
  process.stdout.write(
    result.ok
      ? `${many(rows.length, "task")} (${counts.join(", ")}): rows sound, gold patches resolve all, ` +
          "without them every task fails as it says, training and held-out tasks share nothing\n"
      : `${many(faults.length, "fault")} in ${many(rows.length, "task")} (${counts.join(", ")})\n`,
  );
}

async function generate(options: SetOptions & { out: string; quiet?: boolean }): Promise<void> {
  const out = path.resolve(options.out);
  await mkdir(out, { recursive: true });
  if ((await readdir(out)).length > 0) {
    const message = `--out ${options.out}: the directory is not empty; give a new one`;
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
  }
  const { set } = await openTasks(options, path.join(out, "repositories"));
  const progress = commandProgress(options);
  progress.phase(
    "writing repositories",
    tasksOf(set).reduce((sum, [, tasks]) => sum + tasks.length, 0),
  );
  let done = 0;
  const written: string[] = [];
  for (const [name, tasks] of tasksOf(set)) {
    const rows = tasks.map(({ instance }) => `${JSON.stringify(instance)}\n`);
    await writeFile(path.join(out, `${name}.jsonl`), rows.join(""));
    for (const { instance } of tasks) {
      await set.repository(instance);
      progress.update(++done);
    }
    written.push(`${path.join(out, `${name}.jsonl`)}: ${many(rows.length, "row")}\n`);
  }
  progress.end();
  if (!options.quiet) process.stdout.write(written.join(""));
}

export function register(program: Command): void {
  const tasks = program
    .command("tasks")
    .summary("show, check or write out the generated tasks")
    .description(
      "The tasks of a job: tiny git repositories with one or two bugs, as rows of SWE-bench, in three splits that share\n" +
        "no name, path or repository: train, held-out, and held-out-family (bugs of kinds that training never sees).\n" +
        "A config and a seed decide every one of them; docs/tinyswe.md says how.",
    );
  const add = (name: string): Command =>
    tasks
      .command(name)
      .addOption(
        new Option("--config <path>", "the job whose tasks are meant")
          .argParser(givenPath)
          .default(DEMO_CONFIG, "the demo's"),
      )
      .option("--seed <n>", "another seed than the config's", wholeNumber);

  examples(tasks, [
    ["tokenring tasks show 3 --split held-out", "one task, as a person reads it"],
    ["tokenring tasks check --config job.yaml", "proves that all of them can be solved"],
    ["tokenring tasks generate --out tasks", "rows and repositories, for other programs"],
  ]);

  const showing = add("show")
    .summary("print one task so that a person can read it")
    .description("Prints the issue, the files, the tests and the gold patch of task INDEX of a split.")
    .argument("[index]", "which task, from 0", wholeNumber, 0)
    .option("--split <name>", `${Object.keys(SPLITS).join(", ")}`, "train")
    .option("--json", "the row itself, as JSON")
    .action(show);
  examples(showing, [
    ["tokenring tasks show 3 --split held-out --seed 2", "the fourth held-out task of seed 2"],
    ["tokenring tasks show 0 --json", "the row itself"],
  ]);
  const checking = add("check")
    .summary("prove that every task can be solved and is not solved yet")
    .description(
      "Runs the tests of every task in fresh sandboxes, with the gold patch (must be resolved) and without (FAIL_TO_PASS\n" +
        "must fail, PASS_TO_PASS must pass), checks every row, and that training and held-out tasks share no name.",
    )
    .option("--json <path>", `also write the faults as JSON; ${JSON_HELP}`, givenPath)
    .option("--quiet", "print nothing but faults")
    .action(check);
  examples(
    checking,
    [["tokenring tasks check --seed 2", "all tasks of the demo's config under another seed"]],
    "The exit code is 1 if there is a fault; each is a line on stderr.",
  );
  const generating = add("generate")
    .summary("write all tasks to a directory, for other programs")
    .description(
      "Writes OUT/train.jsonl, OUT/held-out.jsonl and OUT/held-out-family.jsonl, a row of SWE-bench a line, and under\n" +
        "OUT/repositories a git repository for each: INSTANCE_ID-COMMIT, the first 12 digits of base_commit.",
    )
    .requiredOption("--out <directory>", "where to; must be new or empty", givenPath)
    .option("--quiet", "print nothing but errors")
    .action(generate);
  examples(generating, [["tokenring tasks generate --out tasks --seed 2", "into the new folder tasks/"]]);
}
