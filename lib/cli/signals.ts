// Ctrl-C and SIGTERM, for the command alone: as a library tokenring installs no handlers.
import { TokenringError } from "../errors.ts";

let controller: AbortController | undefined;
let received: NodeJS.Signals | undefined;

/**
 * The signal of this process's command: it fires at the first SIGINT or SIGTERM; its reason is an
 * ERR_TOKENRING_ABORTED that says which.
 * The command then ends what it holds and comes back; a second signal ends the process at once.
 */
export function commandSignal(): AbortSignal {
  if (controller === undefined) {
    controller = new AbortController();
    for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, interrupt);
  }
  return controller.signal;
}

function interrupt(name: NodeJS.Signals): void {
  if (received !== undefined) process.exit(exitCodeOf(name));
  received = name;
  process.stderr.write(`\ntokenring: ${name}: stopping, what was done is kept; once more to end at once\n`);
  controller?.abort(new TokenringError("ERR_TOKENRING_ABORTED", `stopped by ${name}`));
}

/** 128 + the signal's number, as a shell gives it; undefined while no signal has come. */
export function interruptedExitCode(): number | undefined {
  return received === undefined ? undefined : exitCodeOf(received);
}

function exitCodeOf(name: NodeJS.Signals): number {
  return name === "SIGINT" ? 130 : 143;
}
