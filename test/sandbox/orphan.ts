// Opens a sandbox, lets it sleep, and waits to be killed. Arguments: kind, directory, repository, seconds.
import { type LocalKind, localBackend } from "../../lib/sandbox/local.ts";

async function main(): Promise<void> {
  const [kind, directory, repository, seconds] = process.argv.slice(2) as [LocalKind, string, string, string];
  const backend = await localBackend({ kind, directory, onWarning: () => undefined });
  const sandbox = await backend.open({ repository });
  process.stdout.write("running\n");
  await sandbox.exec(`sleep ${seconds}`);
}

void main();
