// `tokenring report RUN...`: draws one or more runs as a single HTML file.
import path from "node:path";
import type { Command } from "commander";
import { givenPath, positiveNumber } from "./options.ts";

export function register(program: Command): void {
  program
    .command("report")
    .summary("draw runs as one self-contained HTML file")
    .description(
      "Writes the arc, the curves and sample trajectories of one or more runs as one HTML file that needs no network.",
    )
    .argument("<runs...>", "run directories")
    .option("--out <path>", "the file to write (default: report.html in the first run)", givenPath)
    .option("--samples <n>", "sample trajectories per stage", positiveNumber)
    .action(async (directories: string[], options: { out?: string; samples?: number }) => {
      const { readRun } = await import("../run/read.ts");
      const { writeReport } = await import("../report/report.ts");
      const samples = options.samples === undefined ? {} : { samples: options.samples };
      const runs = [];
      for (const directory of directories) runs.push(await readRun(directory, samples));
      const out = options.out ?? path.join(directories[0] as string, "report.html");
      process.stdout.write(`${await writeReport(runs, out)}\n`);
    });
}
