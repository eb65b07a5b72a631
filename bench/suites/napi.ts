// What the way from JavaScript to the engine thread and back costs: the part of a training step's time in which the
// engine thread has nothing to do.
import { ACTION, demonstrationDocument, Policy, sft } from "tokenring";
import type { Case } from "../measure.ts";
import { DEMO_MODEL, documents, packed } from "../models.ts";
import type { Suite } from "../suites.ts";

const STEPS = 16;
const LENGTHS = new Array<number>(16).fill(256);
const UNIT = "% of the step";

/** Percentage of the time of `steps` in which the engine thread did not work. */
async function idle(policy: Policy, steps: () => Promise<void>): Promise<number> {
  const before = await policy.busySeconds();
  const started = performance.now();
  await steps();
  const seconds = (performance.now() - started) / 1000;
  const engine = (await policy.busySeconds()) - before;
  return (100 * (seconds - engine)) / seconds;
}

/** The library's own loop, as the warm start and RFT run it: documents weighed and packed, metrics taken of each step. */
async function loop(threads: number): Promise<Case> {
  const policy = await Policy.create(DEMO_MODEL, { seed: 1, threads });
  const batch = documents(1, LENGTHS).map((tokens, i) =>
    demonstrationDocument(`${i}`, tokens, new Uint8Array(tokens.length).fill(ACTION)),
  );
  const batches = new Array<typeof batch>(STEPS).fill(batch);
  return {
    name: "N-API overhead of a training step, demo model, 16 x 256 tokens",
    unit: UNIT,
    work: null,
    ours: () =>
      idle(policy, async () => {
        let done = 0;
        for await (const _ of sft({ policy, batches, schedule: { peak: 1e-4 }, ahead: true })) done++;
        if (done !== STEPS) throw new Error(`${done} steps of ${STEPS} were taken`);
      }),
    peers: {},
    close: () => policy.dispose(),
  };
}

/** For who calls the policy by hand, and hears of each step before the next is sent. */
async function awaited(threads: number): Promise<Case> {
  const policy = await Policy.create(DEMO_MODEL, { seed: 1, threads });
  const batch = packed(documents(1, LENGTHS));
  return {
    name: "N-API overhead of a training step that is awaited before the next, demo model, 16 x 256 tokens",
    unit: UNIT,
    work: null,
    ours: () =>
      idle(policy, async () => {
        for (let i = 0; i < STEPS; i++) {
          const pass = policy.accumulate(batch, { objective: "nll" });
          await Promise.all([pass, policy.optimise({ learningRate: 1e-4 })]);
        }
      }),
    peers: {},
    close: () => policy.dispose(),
  };
}

export const napi: Suite = {
  name: "napi",
  about: "what of a training step's time the engine does not work",
  cases: [loop, awaited],
};
