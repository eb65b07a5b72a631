// A benchmark harness of somebody else's: it times work of its own beside a peer of its own as tokenring times its suites,
// keeps the results in the same schema, compares them with those of an earlier run, and writes them for
// github-action-benchmark.
//
//     node examples/bench-harness/harness.mjs --json now.json [--baseline before.json] [--action DIRECTORY]
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  ACTION_TOOLS,
  compareResults,
  describeMachine,
  exportForAction,
  markdownTable,
  measure,
  parseResults,
  readResults,
} from "tokenring/bench";
import { hostTensor, policyLoss, setThreads } from "tokenring/ops";

const { values: options } = parseArgs({
  options: {
    json: { type: "string" },
    baseline: { type: "string" },
    action: { type: "string" },
    rounds: { type: "string", default: "7" },
    turn: { type: "string", default: "100" },
  },
});

const ROWS = 64;
const VOCABULARY = 4096;
const WIDTH = 32;

// The same numbers for both sides: small, and without a random generator.
const numbers = (length, step) => Float32Array.from({ length }, (_, i) => Math.sin(step * (i + 1)) / 4);
const hidden = numbers(ROWS * WIDTH, 0.7);
const head = numbers(VOCABULARY * WIDTH, 0.3);
const targets = Int32Array.from({ length: ROWS }, (_, i) => (i * 997) % VOCABULARY);
const weight = new Float32Array(ROWS).fill(1 / ROWS);
const dhidden = new Float32Array(ROWS * WIDTH);
const dhead = new Float32Array(VOCABULARY * WIDTH);

setThreads(1); // as many as the peer has

/** Ours: loss and both gradients, fused. */
async function ours() {
  const { loss } = await policyLoss(
    {
      hidden: hostTensor(hidden, [ROWS, WIDTH]),
      head: hostTensor(head, [VOCABULARY, WIDTH]),
      targets,
      weight,
      dhidden: hostTensor(dhidden, [ROWS, WIDTH]),
      dhead: hostTensor(dhead, [VOCABULARY, WIDTH]),
    },
    { objective: "nll" },
  );
  return loss;
}

/** The peer: the same in plain JavaScript, in float64. */
async function plain() {
  let loss = 0;
  const logits = new Float64Array(VOCABULARY);
  dhidden.fill(0);
  for (let r = 0; r < ROWS; r++) {
    let sum = 0;
    for (let id = 0; id < VOCABULARY; id++) {
      let z = 0;
      for (let j = 0; j < WIDTH; j++) z += hidden[r * WIDTH + j] * head[id * WIDTH + j];
      logits[id] = z;
      sum += Math.exp(z);
    }
    loss += weight[r] * (Math.log(sum) - logits[targets[r]]);
    for (let id = 0; id < VOCABULARY; id++) {
      const slope = weight[r] * (Math.exp(logits[id]) / sum - (id === targets[r] ? 1 : 0));
      for (let j = 0; j < WIDTH; j++) {
        dhidden[r * WIDTH + j] += slope * head[id * WIDTH + j];
        dhead[id * WIDTH + j] += slope * hidden[r * WIDTH + j];
      }
    }
  }
  return loss;
}

// Sides that do not do the same work are not worth timing.
const [mine, theirs] = [await ours(), await plain()];
if (!(Math.abs(mine - theirs) < 1e-4)) throw new Error(`tokenring gives ${mine}, plain JavaScript ${theirs}`);

const measured = await measure(
  {
    name: `loss and gradients, ${ROWS} rows, ${VOCABULARY} ids`,
    unit: "rows/s",
    work: ROWS,
    ours,
    peers: { "plain JavaScript": async () => ({ name: `Node.js ${process.versions.node}`, call: plain }) },
  },
  { rounds: Number(options.rounds), turnMilliseconds: Number(options.turn) },
);
const results = parseResults({
  schema: 1,
  machine: describeMachine(1),
  date: new Date().toISOString(),
  node: process.version,
  results: measured,
});
console.log(markdownTable(results));
if (options.json) writeFileSync(options.json, `${JSON.stringify(results, null, 2)}\n`);
if (options.action) {
  mkdirSync(options.action, { recursive: true });
  for (const tool of ACTION_TOOLS)
    writeFileSync(join(options.action, `${tool}.json`), JSON.stringify(exportForAction(results, tool)));
}
if (options.baseline) {
  const { verdict, changes, reasons } = compareResults(await readResults(options.baseline), results);
  for (const { name, before, after, verdict: one } of changes)
    console.log(`${one}: ${name}, ${before.value.toFixed(0)} -> ${after.value.toFixed(0)}`);
  for (const reason of reasons) console.log(`not comparable: ${reason}`);
  if (verdict === "slower") process.exitCode = 1;
  if (verdict === "not comparable") process.exitCode = 2;
}
