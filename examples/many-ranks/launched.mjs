// The same under a launcher, which starts it once for each rank: torchrun --no-python --nproc-per-node 2 node launched.mjs
import { launchedRank, Policy, runWorker } from "tokenring";
import { batch, model } from "./counting.mjs";

if (launchedRank() > 0) await runWorker();
else {
  const policy = await Policy.create(model, { seed: 1 });
  for (let step = 0; step < 30; step++) {
    const { loss } = await policy.accumulate(batch, { objective: "nll" }, { last: true });
    const { gradientNorm } = await policy.optimise({ learningRate: 0.01 });
    console.log(step, loss, gradientNorm);
  }
  await policy.dispose();
}
