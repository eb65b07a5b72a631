// `tokenring report RUN...`: draws one or more runs as a single HTML file.
import path from "node:path";
import type { Command } from "commander";
import { givenPath } from "./options.ts";

export function register(program: Command): void {
  program
    .command("report")
    .summary("draw runs as one self-contained HTML file")
    .description(
      "Writes the arc, the curves and the episodes, token by token, of one or more runs as one HTML file that needs no\n" +
        "network. Several runs are compared.",
    )
    .argument("<runs...>", "run directories")
    .option("--out <path>", "the file to write (default: report.html in the first run)", givenPath)
    .option("--all", "hold every episode; without it the file stays below 20 MB and holds a sample of them")
    .action(async (directories: string[], options: { out?: string; all?: boolean }) => {
      const { readRun } = await import("../run/read.ts");
      const { writeReport } = await import("../report/report.ts");
      const runs = [];
      for (const directory of directories) runs.push(await readRun(directory));
      const out = options.out ?? path.join(directories[0] as string, "report.html");
      process.stdout.write(`${await writeReport(runs, out, { all: options.all ?? false })}\n`);
    });
}
