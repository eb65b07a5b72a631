// Trains on as many ranks as its argument says, and changes nothing else: node examples/many-ranks/train.mjs 4
import { Policy } from "tokenring";
import { batch, model } from "./counting.mjs";

const ranks = Number(process.argv[2] ?? 1);
const policy = await Policy.create(model, { ranks, seed: 1 });
for (let step = 0; step < 30; step++) {
  const { loss } = await policy.accumulate(batch, { objective: "nll" }, { last: true });
  const { gradientNorm } = await policy.optimise({ learningRate: 0.01 });
  console.log(step, loss, gradientNorm);
}
await policy.dispose();
