// `tokenring export RUN...`: runs as other trackers read them.
import path from "node:path";
import type { Command } from "commander";
import { TokenringError } from "../errors.ts";
import { examples, givenPath } from "./options.ts";

async function exportRuns(directories: readonly string[], options: { tensorboard: string }): Promise<void> {
  const { readRun } = await import("../run/read.ts");
  const { TensorBoardLog } = await import("../track/tensorboard.ts");
  const names = new Map<string, string>();
  for (const directory of directories) {
    const name = path.basename(path.resolve(directory));
    const other = names.get(name);
    if (other !== undefined) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `${other} and ${directory} have the same name, so one would overwrite the other; export them to two folders`,
      );
    }
    names.set(name, directory);
  }
  for (const [name, directory] of names) {
    const run = await readRun(directory);
    const folder = path.join(options.tensorboard, name);
    try {
      await using log = await TensorBoardLog.open(folder, run, run.events);
      process.stdout.write(`${log.path}\n`);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code === undefined) throw cause;
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `${folder}: cannot be written (${code}); give a folder of yours that has space`,
        { cause },
      );
    }
  }
}

export function register(program: Command): void {
  const command = program
    .command("export")
    .summary("write runs as TensorBoard's event files")
    .description(
      "Writes DIRECTORY/NAME/events.out.tfevents.… for each run, from its metrics.jsonl. Run it again and only what is new\n" +
        "is added. docs/tracking.md has the other trackers.",
    )
    .argument("<runs...>", "run directories")
    .requiredOption(
      "--tensorboard <directory>",
      "where to; what TensorBoard's --logdir then names",
      givenPath,
    )
    .action(exportRuns);
  examples(command, [
    ["tokenring export runs/a runs/b --tensorboard boards", "then: tensorboard --logdir boards"],
  ]);
}
