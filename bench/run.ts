// `npm run bench`: every suite, ours beside what a user would take instead, as ratios.
//   npm run bench -- [--suite NAME] [--rounds N] [--calls N] [--json PATH]
import { writeFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { parseArgs } from "node:util";
import { compare, type Result, type Suite } from "./compare.ts";
import { sample } from "./sample.ts";
import { sandbox } from "./sandbox.ts";
import { train } from "./train.ts";

const SUITES: readonly Suite[] = [train, sample, sandbox];

function count(name: string, text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new Error(`--${name} takes a whole number above 0, got "${text}"`);
}

function line(result: Result): string {
  const digits = (value: number): string => value.toLocaleString("en", { maximumSignificantDigits: 3 });
  const rate = (side: { value: number; mad: number }): string =>
    `${digits(side.value)} ± ${digits(side.mad)} ${result.unit}`;
  const peer =
    result.peer && result.ratio !== null
      ? `${result.peer.name}: ${rate(result.peer)}   ratio ${result.ratio.toFixed(2)}`
      : "no peer on this machine (for PyTorch: TOKENRING_PYTHON names an interpreter with torch and transformers)";
  return `${result.name}\n    ours: ${rate(result)}\n    ${peer}`;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      suite: { type: "string" },
      rounds: { type: "string", default: "7" },
      calls: { type: "string", default: "3" },
      json: { type: "string" },
    },
  });
  const options = { rounds: count("rounds", values.rounds), calls: count("calls", values.calls) };
  const chosen = SUITES.filter(({ name }) => values.suite === undefined || name === values.suite);
  if (chosen.length === 0) {
    throw new Error(`--suite ${values.suite}: there are ${SUITES.map(({ name }) => name).join(", ")}`);
  }
  const results: Result[] = [];
  for (const suite of chosen) {
    const { comparisons, close } = await suite.open();
    try {
      for (const comparison of comparisons) {
        const result = await compare(comparison, options);
        results.push(result);
        process.stdout.write(`${line(result)}\n`);
      }
    } finally {
      await close();
    }
  }
  const machine = { cpu: `${cpus()[0]?.model ?? "unknown"}, ${availableParallelism()} threads`, gpu: null };
  if (values.json) {
    const file = { schema: 1, machine, node: process.version, ...options, results };
    writeFileSync(values.json, `${JSON.stringify(file, null, 2)}\n`);
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
