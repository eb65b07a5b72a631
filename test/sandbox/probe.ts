// Prints which kind of sandbox this process would take, or why none.
import { probeSandboxes } from "../../lib/sandbox/local.ts";

probeSandboxes().then(
  (found) => process.stdout.write(JSON.stringify(found)),
  (error: Error) => process.stdout.write(JSON.stringify({ refused: error.message })),
);
