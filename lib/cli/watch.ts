// `tokenring watch RUN`: the report of a run that goes on, live.
import { once } from "node:events";
import { isIP } from "node:net";
import type { Command } from "commander";
import { InvalidArgumentError } from "commander";
import { examples, wholeNumber } from "./options.ts";
import { commandSignal } from "./signals.ts";

function portNumber(text: string): number {
  const port = wholeNumber(text);
  if (port > 65_535) throw new InvalidArgumentError("Give a port from 0 to 65535; 0 takes one that is free.");
  return port;
}

function hostName(text: string): string {
  if (isIP(text) === 0 && !/^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$/.test(text))
    throw new InvalidArgumentError("Give an address or the name of a host, without port.");
  return text;
}

const LOOPBACK = /^(127\.|::1$|localhost$)/;

export function register(program: Command): void {
  const command = program
    .command("watch")
    .summary("show a run while it goes on, in the browser")
    .description(
      "Serves the report of RUN at http://127.0.0.1:8642/, with every episode, and keeps it up to date while the run\n" +
        "goes on. Only reads. Ctrl-C ends it.",
    )
    .argument("<run>", "a run directory")
    .option("--port <n>", "port to listen at; 0 takes one that is free", portNumber, 8642)
    .option(
      "--host <address>",
      "address to listen at; others than loopback let others read the run",
      hostName,
      "127.0.0.1",
    )
    .action(async (run: string, options: { port: number; host: string }) => {
      const { watchRun } = await import("../run/watch.ts");
      const signal = commandSignal();
      await using watch = await watchRun(run, options);
      process.stdout.write(`${watch.url}\n`);
      if (!LOOPBACK.test(options.host))
        process.stderr.write(`tokenring: whoever can reach ${options.host} can read this run\n`);
      if (!signal.aborted) await once(signal, "abort");
    });
  examples(
    command,
    [
      ["tokenring watch runs/demo-seed1", "http://127.0.0.1:8642/"],
      ["tokenring watch runs/demo-seed1 --port 0", "at a port that is free; its address is printed"],
      ["ssh -L 8642:127.0.0.1:8642 node tokenring watch runs/a", "a run on another machine, safely"],
    ],
    "/metrics is the run as Prometheus reads it (docs/tracking.md).",
  );
}
