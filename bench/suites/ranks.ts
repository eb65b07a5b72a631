// What a second rank brings: a training step on two ranks of one thread each against one rank of one thread. Twice is
// ideal.
import type { DecoderConfig } from "tokenring";
import { loadBinding } from "tokenring/ops";
import type { Case, Peer } from "../measure.ts";
import { DEMO_MODEL, documents, packed } from "../models.ts";
import type { Suite } from "../suites.ts";

const RANKS = 2;
const MODEL: DecoderConfig = { ...DEMO_MODEL, max_position_embeddings: 4096 };
const LOSS = {
  objective: "nll",
  clipLow: 0.2,
  clipHigh: 0.2,
  dualClip: 0,
  klCoef: 0,
  entropyCoef: 0,
  temperature: 1,
  chunkRows: 0,
} as const;
const ADAMW = { learningRate: 1e-5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };

/** Ranks of one thread, all of this process; `contextParallel` of them share a batch. */
async function openRanks(
  size: number,
  contextParallel: number,
  contextSchedule: "ring" | "all_gather",
  texts: readonly Int32Array[],
): Promise<{ step(): Promise<void>; close(): Promise<void> }> {
  const { Rank, uniqueId } = loadBinding();
  const id = uniqueId();
  const shape = { contextParallel, contextSchedule, shard: 0, shardSize: size, timeout: 60_000 } as const;
  const groups = size / contextParallel;
  const opening = Array.from({ length: size }, async (_, rank) => {
    const native = new Rank({
      config: MODEL,
      device: "cpu",
      threads: 1,
      precision: "float32",
      deterministic: true,
      activationCheckpointing: false,
      maxBatchTokens: 512,
      maxPages: 0,
      ...(size > 1 && { mesh: { id, rank, size, ...shape } }),
    });
    await native.open().promise;
    const group = Math.floor(rank / contextParallel);
    return { native, batch: packed(texts.filter((_, i) => i % groups === group)) };
  });
  const ranks = await Promise.all(opening);
  await Promise.all(
    ranks.map(({ native }) => native.initialise({ std: 0.02, seed: 1n, previousTokenBias: 0 }).promise),
  );
  return {
    step: async () => {
      await Promise.all(
        ranks.flatMap(({ native, batch }): Promise<unknown>[] => [
          native.accumulate(batch, LOSS, true).promise,
          native.optimise(ADAMW).promise,
        ]),
      );
    },
    close: async () => {
      await Promise.all(ranks.map(({ native }) => native.dispose()));
    },
  };
}

async function compared(
  name: string,
  lengths: readonly number[],
  contextParallel: number,
  contextSchedule: "ring" | "all_gather",
): Promise<Case> {
  const texts = documents(1, lengths);
  const ranks = await openRanks(RANKS, contextParallel, contextSchedule, texts);
  const one = async (): Promise<Peer> => {
    const { step, close } = await openRanks(1, 1, "ring", texts);
    return { name: "tokenring on one rank of one thread", call: step, close };
  };
  return {
    name: `training step, demo model, ${name}`,
    unit: "tokens/s",
    work: lengths.reduce((sum, length) => sum + length, 0),
    ours: ranks.step,
    peers: { "one rank": one },
    close: ranks.close,
  };
}

const LONG = [4096];
const MANY = new Array<number>(16).fill(256);

export const ranks: Suite = {
  name: "ranks",
  about:
    "a training step on two ranks of one thread (ring, all-gather, data parallel) against one; 2 is ideal",
  cases: [
    () => compared("one document of 4096 tokens on two ranks, ring", LONG, 2, "ring"),
    () => compared("one document of 4096 tokens on two ranks, all-gather", LONG, 2, "all_gather"),
    () => compared("16 x 256 tokens on two data ranks", MANY, 1, "ring"),
  ],
};
