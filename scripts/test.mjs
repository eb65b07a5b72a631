// What `npm test` runs after set-up: the C++ tests, then vitest, whose summary is the last thing printed.
// Arguments go to vitest (`npm test -- test/agent`); with arguments the C++ tests are left out.
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const minute = 60_000;

/** Whether the program ended with exit code 0 within its deadline. */
function passes(program, args, deadline) {
  const result = spawnSync(program, args, {
    cwd: root,
    stdio: "inherit",
    timeout: deadline,
    killSignal: "SIGKILL",
  });
  if (result.error) console.error(`${program}: ${result.error.message}`);
  return result.status === 0;
}

const args = process.argv.slice(2);
const native = args.length > 0 || passes(join("build", "Release", "tokenring_test"), [], 10 * minute);
const vitest = join("node_modules", "vitest", "vitest.mjs");
const script = passes(process.execPath, [vitest, "run", ...args], 20 * minute);
if (!native)
  console.error("The C++ tests failed: see above the summary of vitest, or run build/Release/tokenring_test");
process.exitCode = native && script ? 0 : 1;
