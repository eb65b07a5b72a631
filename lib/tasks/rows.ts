// Rows of SWE-bench and SWE-rebench as instances, with what runs and reads their tests.
import { readFile } from "node:fs/promises";
import { z } from "zod";
import { TokenringError } from "../errors.ts";
import { type LogParser, logParser, provenLines } from "./log-parsers.ts";
import { provenPytest } from "./pytest-reports.ts";
import type { Instance, PromptTemplate, TaskSet } from "./types.ts";
import { VERIFIED_REPOSITORIES } from "./verified-repositories.ts";

/** A row of a dataset as an instance, with what runs and reads its tests. */
export interface Row {
  instance: Instance;
  /** Runs the tests when the files or modules of `targets` are put behind it. */
  testCommand: string;
  targets: string[];
  parser: LogParser;
}

/** SWE-bench stores lists as JSON in a string, SWE-rebench as lists. */
const tests = z.preprocess((value, context) => {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value) as unknown;
  } catch {
    context.addIssue({ code: "custom", message: "is a string that holds no JSON list" });
    return z.NEVER;
  }
}, z.array(z.string()));

const text = z.union([z.string(), z.number()]).transform(String);

const schema = z.object({
  instance_id: z.string().min(1),
  repo: z.string().min(1),
  base_commit: z.string().regex(/^[0-9a-f]{40}$/, "is no commit (40 hexadecimal digits)"),
  problem_statement: z.string().min(1),
  hints_text: z
    .string()
    .nullish()
    .transform((hints) => hints ?? ""),
  created_at: text,
  version: text.nullish().transform((version) => version ?? ""),
  patch: z.string(),
  test_patch: z.string(),
  FAIL_TO_PASS: tests,
  PASS_TO_PASS: tests,
  environment_setup_commit: z.string().nullish(),
  meta: z.record(z.string(), z.unknown()).nullish(),
  install_config: z.object({ test_cmd: z.string().min(1), log_parser: z.string().min(1) }).nullish(),
});

/** What a test patch may bring that no runner is given. */
const NO_TEST = /\.(?:json|png|csv|txt|md|jpe?g|pkl|ya?ml|toml)$/;

/** Files that the test patch leaves behind and that a runner is given: whole files, as the datasets' own runs were. */
function testFiles(testPatch: string): string[] {
  const files = [...testPatch.matchAll(/^diff --git a\/.* b\/(.*)$/gm)].map((match) => match[1] as string);
  const sections = testPatch
    .split(/^(?=diff --git )/m)
    .filter((section) => section.startsWith("diff --git "));
  return files.filter((file, i) => !/^deleted file mode/m.test(sections[i] as string) && !NO_TEST.test(file));
}

/**
 * Takes a row as a dataset has it. `where` names it in messages.
 * @throws ERR_TOKENRING_TASK when a field is missing or wrong, when it has no tests, or nothing says how to run them.
 */
export function parseRow(value: unknown, where: string): Row {
  const refuse = (what: string): TokenringError =>
    new TokenringError("ERR_TOKENRING_TASK", `${where}: ${what}`);
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw refuse(`${issue?.path.join(".") || "row"}: ${issue?.message}; a row has the SWE-bench schema`);
  }
  const { install_config, environment_setup_commit, meta, ...fields } = parsed.data;
  const id = fields.instance_id;
  if (fields.FAIL_TO_PASS.length === 0)
    throw refuse(`${id} has no FAIL_TO_PASS tests, so nothing could show that it is solved; leave it out`);
  if (fields.test_patch.trim() === "")
    throw refuse(`${id} has no test_patch, so there is nothing to run; leave it out`);
  const instance: Instance = {
    ...fields,
    ...(environment_setup_commit ? { environment_setup_commit } : {}),
    ...(meta ? { meta } : {}),
  };
  const files = testFiles(fields.test_patch);
  if (files.length === 0)
    throw refuse(`${id}: its test_patch changes no file that a runner takes; leave it out`);
  if (install_config) {
    const parser = logParser(install_config.log_parser);
    return { instance, testCommand: install_config.test_cmd, targets: files, parser };
  }
  const known = Object.hasOwn(VERIFIED_REPOSITORIES, fields.repo)
    ? VERIFIED_REPOSITORIES[fields.repo]
    : undefined;
  if (!known) {
    throw refuse(
      `${id}: nothing says how the tests of ${fields.repo} are run; give install_config with test_cmd and log_parser`,
    );
  }
  const targets = known.target ? files.map(known.target) : files;
  return { instance, testCommand: known.testCommand, targets, parser: known.parser };
}

/** Reads rows from a file of JSON Lines or of one JSON list. @throws ERR_TOKENRING_TASK with file and line. */
export async function readRows(file: string): Promise<Row[]> {
  const source = await readFile(file, "utf8");
  const read = (json: string, where: string): unknown => {
    try {
      return JSON.parse(json) as unknown;
    } catch (cause) {
      throw new TokenringError("ERR_TOKENRING_TASK", `${where}: not JSON; is the file whole?`, { cause });
    }
  };
  if (source.trimStart().startsWith("[")) {
    return (read(source, file) as unknown[]).map((row, i) => parseRow(row, `${file}[${i}]`));
  }
  return source
    .split("\n")
    .flatMap((line, i) =>
      line.trim() === "" ? [] : [parseRow(read(line, `${file}:${i + 1}`), `${file}:${i + 1}`)],
    );
}

const quote = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;

/**
 * A task set of rows. `repository` gives the host directory of an instance's repository at its base commit, with all
 * that its tests need installed where sandboxes find it; `pristineRepository` makes one without a future.
 */
export function rowTasks(options: {
  name: string;
  train: readonly Row[];
  heldOut: readonly Row[];
  template: PromptTemplate;
  repository: (instance: Instance) => Promise<string>;
}): TaskSet {
  const rows = new Map([...options.train, ...options.heldOut].map((row) => [row.instance.instance_id, row]));
  const rowOf = ({ instance_id }: Instance): Row => {
    const row = rows.get(instance_id);
    if (row) return row;
    throw new TokenringError(
      "ERR_TOKENRING_TASK",
      `${options.name}: there is no row ${instance_id} in this set`,
    );
  };
  return {
    name: options.name,
    train: options.train.map((row) => row.instance),
    heldOut: options.heldOut.map((row) => row.instance),
    template: options.template,
    repository: options.repository,
    testCommand(instance, nonce) {
      const { testCommand, targets } = rowOf(instance);
      const command = `${testCommand} ${targets.map(quote).join(" ")}`;
      return provenPytest(command, nonce) ?? command;
    },
    parseLog(log, nonce, instance) {
      const { testCommand, parser } = rowOf(instance);
      return parser(provenPytest(testCommand, nonce) === null ? log : provenLines(log, nonce));
    },
  };
}
