#!/usr/bin/env node
// The command `tokenring`. What it can do is in program.ts.
import { runCommand } from "./program.ts";

// `tokenring … | head` ends the reader first: that is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

runCommand(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
