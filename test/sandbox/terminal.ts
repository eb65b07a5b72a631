// Opens a sandbox from a process that a terminal controls, and lets it try to write there. Arguments: kind, directory,
// repository.
import { readlinkSync } from "node:fs";
import { type LocalKind, localBackend } from "../../lib/sandbox/local.ts";

async function main(): Promise<void> {
  const [kind, directory, repository] = process.argv.slice(2) as [LocalKind, string, string];
  process.stdout.write("host speaks\n");
  const terminal = readlinkSync("/proc/self/fd/1");
  const backend = await localBackend({ kind, directory, onWarning: () => undefined });
  const sandbox = await backend.open({ repository });
  const paths = [
    "/dev/tty",
    "/dev/console",
    terminal,
    `/proc/${process.pid}/fd/1`,
    `/proc/${process.ppid}/fd/1`,
  ];
  for (const path of paths) await sandbox.exec(`printf 'ESC%s' APED >${path}`);
  await backend.dispose();
  process.stdout.write("host is done\n");
}

void main();
