// Opens a run directory, says so, and holds it until standard input ends: the other process of a test.
import { RunDirectory } from "../../lib/run/directory.ts";

async function main(): Promise<void> {
  const run = await RunDirectory.open(process.argv[2] as string);
  process.stdout.write("open\n");
  for await (const _ of process.stdin);
  await run.close();
}

main();
