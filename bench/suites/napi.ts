// What the way from JavaScript to the engine thread and back costs: batch and results marshalled, two threads woken.
// Steps follow each other as in training, each optimiser step queued behind its pass.
import { Policy } from "tokenring";
import type { Case } from "../measure.ts";
import { DEMO_MODEL, documents, packed } from "../models.ts";
import type { Suite } from "../suites.ts";

const STEPS = 8;

async function overhead(threads: number): Promise<Case> {
  const policy = await Policy.create(DEMO_MODEL, { seed: 1, threads });
  const batch = packed(documents(1, new Array<number>(16).fill(256)));
  return {
    name: "N-API overhead of a training step, demo model, 16 x 256 tokens",
    unit: "% of the step",
    work: null,
    ours: async () => {
      const before = await policy.busySeconds();
      const started = performance.now();
      for (let i = 0; i < STEPS; i++) {
        const pass = policy.accumulate(batch, { objective: "nll" });
        await Promise.all([pass, policy.optimise({ learningRate: 1e-4 })]);
      }
      const seconds = (performance.now() - started) / 1000;
      const engine = (await policy.busySeconds()) - before;
      return (100 * (seconds - engine)) / seconds;
    },
    peers: {},
    close: () => policy.dispose(),
  };
}

export const napi: Suite = {
  name: "napi",
  about: "what of a training step's time the engine does not work",
  cases: [overhead],
};
