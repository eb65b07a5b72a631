// One step of training: forward, backward, gradient clip and AdamW.
import { Policy } from "tokenring";
import type { Case } from "../measure.ts";
import { DEMO_MODEL, documents, episodeLengths, packed } from "../models.ts";
import { openTorch } from "../peers/torch.ts";
import type { Suite } from "../suites.ts";

const SEED = 1;

async function trainStep(
  threads: number,
  name: string,
  lengths: readonly number[],
  compiled: boolean,
): Promise<Case> {
  const policy = await Policy.create(DEMO_MODEL, { seed: SEED, threads });
  const texts = documents(SEED, lengths);
  const batch = packed(texts);
  const request = { task: "train", threads, model: DEMO_MODEL, documents: texts.map((ids) => [...ids]) };
  return {
    name: `training step, demo model, ${name}`,
    unit: "tokens/s",
    work: batch.tokens.length,
    ours: async () => {
      await policy.accumulate(batch, { objective: "nll" });
      await policy.optimise({ learningRate: 1e-4, weightDecay: 0.1, clipNorm: 1 });
    },
    peers: {
      "torch eager": () => openTorch(request),
      ...(compiled && { "torch.compile": () => openTorch({ ...request, compile: true }) }),
    },
    close: () => policy.dispose(),
  };
}

export const train: Suite = {
  name: "train",
  about: "a training step of the demo model against PyTorch eager and torch.compile",
  cases: [
    (threads) => trainStep(threads, "16 x 256 tokens", new Array<number>(16).fill(256), true),
    // Packed here, padded there, as a user of transformers would on a CPU.
    (threads) => trainStep(threads, "4096 tokens of episodes", episodeLengths(SEED, 4096), false),
    (threads) => trainStep(threads, "480 tokens of episodes", episodeLengths(SEED, 480), false),
  ],
};
