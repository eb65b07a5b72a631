// Trains a model of one's own with tokenring/ops: once on one rank, once on two worker threads that share every
// document. The losses fall, and are the same.
//
//     node examples/embed-ops/train.mjs [--json]
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { Communicator } from "tokenring/ops";

const STEPS = 111;

async function train(size) {
  const id = Communicator.uniqueId();
  const ranks = Array.from({ length: size }, async (_, rank) => {
    const worker = new Worker(new URL("./rank.mjs", import.meta.url), {
      workerData: { id, rank, size, steps: STEPS },
    });
    const [result] = await once(worker, "message");
    return result;
  });
  return Promise.all(ranks);
}

const [alone] = await train(1);
const pair = await train(2);
if (process.argv.includes("--json")) {
  console.log(JSON.stringify({ alone, pair }));
} else {
  console.log("step   one rank   two ranks");
  for (let i = 0; i < STEPS; i += 10)
    console.log(`${i + 1}`.padEnd(7) + alone.losses[i].toFixed(6).padEnd(11) + pair[0].losses[i].toFixed(6));
}
