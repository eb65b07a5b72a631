// `npm run bench -- experiments`: what each part of the recipe is worth here, and what the options beyond it do.
import { writeFile } from "node:fs/promises";
import { Command, InvalidArgumentError } from "commander";
import { type ProgressSink, readConfig, TokenringError } from "tokenring";
import { experimentTable, readExperiment, seedsTable } from "./result.ts";
import { runExperiments } from "./run.ts";
import { variantsOf } from "./variants.ts";

const RECIPE = "recipes/tinyswe.yaml";

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("Give a whole number above 0.");
}

function names(text: string): string[] {
  const list = text.split(",").filter((name) => name !== "");
  if (list.length > 0) return list;
  throw new InvalidArgumentError("Give names, separated by commas.");
}

/** A line a tenth of the work, on stderr. */
function lines(): ProgressSink {
  let name = "";
  let total = 0;
  let next = 0;
  return {
    phase(begun, of = 0) {
      [name, total, next] = [begun, of, 0];
    },
    update(done, note) {
      if (total === 0 || done < next) return;
      next = done + total / 10;
      process.stderr.write(`${name}: ${done} of ${total}${note ? `, ${note}` : ""}\n`);
    },
    log: (line) => process.stderr.write(`${line}\n`),
  };
}

/** Fires at the first SIGINT or SIGTERM; what is finished stays. */
function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.once(name, () =>
      controller.abort(new TokenringError("ERR_TOKENRING_ABORTED", `stopped by ${name}`)),
    );
  return controller.signal;
}

/** `experiments`, for a program that has it. */
export function experimentsCommand(): Command {
  const command = new Command("experiments")
    .description(
      "Learns from one RFT checkpoint in several ways, with the same budget of episodes, and measures each on the same " +
        "held-out tasks. A variant that is finished is written to --out and not done again.",
    )
    .usage("[options]   |   table A [B ...]   |   list")
    .option(
      "--run <directory>",
      "a run of `tokenring train` or `npm run demo`: its config, seed and RFT checkpoint",
    )
    .option("--seed <n>", "without --run: decides the run that is made", count, 1)
    .option("--out <directory>", "default: runs/experiments-seedN, or beside the run")
    .option("--only <names>", "these variants, and those that they start from; see list", names, [])
    .option("--iterations <n>", "of every stage (default: the config's)", count)
    .option("--tasks <n>", "held-out tasks to evaluate on (default: the config's)", count)
    .option("--runs <n>", "episodes of each", count, 5)
    .option("--json <path>", "write the results there")
    .option("--markdown <path>", "write the table there, which is printed too")
    .enablePositionalOptions()
    .action(async ({ run, seed, out, only, iterations, tasks, runs, json, markdown }) => {
      const experiment = await runExperiments({
        run,
        recipe: RECIPE,
        seed,
        out:
          out ??
          (run === undefined ? `runs/experiments-seed${seed}` : `${run.replace(/\/+$/, "")}-experiments`),
        only,
        iterations,
        tasks,
        runs,
        progress: lines(),
        signal: interruption(),
        onResult: ({ name, evaluation, seconds }, again) =>
          process.stderr.write(
            `${name}: Pass@1 ${(100 * evaluation.pass1).toFixed(1)} %, ${again ? "from before" : `${seconds.toFixed(0)} s`}\n`,
          ),
      });
      if (json) await writeFile(json, `${JSON.stringify(experiment)}\n`);
      const table = experimentTable(experiment);
      if (markdown) await writeFile(markdown, table);
      process.stdout.write(table);
    });
  command
    .command("table")
    .description(
      "Prints results of --json as a table in Markdown; of several seeds, means and errors over them.",
    )
    .argument("<files...>", "results of --json")
    .action(async (files: string[]) => {
      const read = await Promise.all(files.map((file) => readExperiment(file)));
      const [first] = read;
      if (first) process.stdout.write(read.length === 1 ? experimentTable(first) : seedsTable(read));
    });
  command
    .command("list")
    .description("Prints the variants.")
    .action(async () => {
      const { config } = await readConfig(RECIPE);
      for (const { name, about, from } of variantsOf(config))
        process.stdout.write(`${name.padEnd(18)}${about}${from === "rft" ? "" : ` (starts from ${from})`}\n`);
    });
  return command;
}
