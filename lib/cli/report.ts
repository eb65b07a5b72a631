// `tokenring report RUN...`: draws one or more runs as a single HTML file.
import path from "node:path";
import type { Command } from "commander";
import { examples, givenPath } from "./options.ts";
import { commandProgress } from "./progress.ts";

export function register(program: Command): void {
  const command = program
    .command("report")
    .summary("draw runs as one self-contained HTML file")
    .description(
      "Writes the arc, the curves and the episodes, token by token, of one or more runs as one HTML file that needs no\n" +
        "network. Several runs are compared.",
    )
    .argument("<runs...>", "run directories")
    .option("--out <path>", "the file to write (default: report.html in the first run)", givenPath)
    .option("--all", "hold every episode; without it the file stays below 20 MB and holds a sample of them")
    .option("--quiet", "print nothing but errors")
    .action(async (directories: string[], options: { out?: string; all?: boolean; quiet?: boolean }) => {
      const { readRun } = await import("../run/read.ts");
      const { writeReport } = await import("../report/report.ts");
      const runs = [];
      for (const directory of directories) runs.push(await readRun(directory));
      const out = options.out ?? path.join(directories[0] as string, "report.html");
      const progress = commandProgress(options);
      const episodes = runs.reduce((sum, run) => sum + run.episodes.length, 0);
      let begun = false;
      const file = await writeReport(runs, out, {
        all: options.all ?? false,
        onEpisodes: (read) => {
          if (!begun) progress.phase("reading episodes", episodes);
          begun = true;
          progress.update(read);
        },
      });
      progress.end();
      if (!options.quiet) process.stdout.write(`${file}\n`);
    });
  examples(command, [
    ["tokenring report runs/demo-seed1", "writes runs/demo-seed1/report.html"],
    ["tokenring report runs/a runs/b --out both.html", "compares two runs"],
    ["tokenring report runs/demo-seed1 --all", "every episode, however large the file becomes"],
  ]);
}
