// The training loop of one rank, in a worker thread: the same program whatever the number of ranks.
import { parentPort, workerData } from "node:worker_threads";
import { adamw, Communicator, setThreads, shardDocuments } from "tokenring/ops";
import { PARAMETERS, parameters, step, VOCABULARY } from "./model.mjs";

const { id, rank, size, steps } = workerData;
const LENGTHS = [70, 30, 28]; // documents of a batch; they are cut among the ranks wherever it falls
const PERIOD = 4;

/** The same numbers on every rank: mulberry32. */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), 1 | state);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Documents that repeat a random motif, so that a token is known from the one PERIOD before it. Targets and weights
 * are made before anything is cut: a target may lie on another rank, and the mean is over all tokens of the batch.
 */
function documents(random) {
  const batch = LENGTHS.map((length) => {
    const motif = Array.from({ length: PERIOD }, () => Math.floor(random() * VOCABULARY));
    const tokens = Array.from({ length: length + 1 }, (_, i) => motif[i % PERIOD]);
    return { tokens, weight: tokens.slice(1).map((_, i) => (i + 1 >= PERIOD ? 1 : 0)) };
  });
  const counted = batch.flatMap(({ weight }) => weight).reduce((sum, w) => sum + w, 0);
  return batch.map(({ tokens, weight }) => ({ tokens, weight: weight.map((w) => w / counted) }));
}

/** The rows of the batch that this rank holds. */
function rowsOf(batch, shard) {
  const places = shard.flatMap(({ document, position, length }) =>
    Array.from({ length }, (_, i) => ({ ...batch[document], at: position + i })),
  );
  return {
    tokens: Int32Array.from(places, ({ tokens, at }) => tokens[at]),
    targets: Int32Array.from(places, ({ tokens, at }) => tokens[at + 1]),
    positions: Int32Array.from(places, ({ at }) => at),
    weight: Float32Array.from(places, ({ weight, at }) => weight[at]),
  };
}

setThreads(1); // each rank one core
const communicator = await Communicator.create({ id, rank, size, timeout: 60_000 });
const shards = shardDocuments(LENGTHS, size);
const first = generator(1);
const weight = Float32Array.from({ length: PARAMETERS }, () => (first() - 0.5) * 0.4);
const [firstMoment, secondMoment] = [new Float32Array(PARAMETERS), new Float32Array(PARAMETERS)];
const random = generator(2);
const losses = [];
for (let number = 1; number <= steps; number++) {
  const sum = new Float32Array(PARAMETERS + 1); // the gradients, and the loss
  const gradient = sum.subarray(0, PARAMETERS);
  const batch = rowsOf(documents(random), shards[rank]);
  sum[PARAMETERS] = await step(communicator, parameters(weight), parameters(gradient), batch, shards);
  // Summed in the order of the ranks: all of them take the same step, bit for bit.
  await communicator.allReduce(sum);
  await adamw([{ weight, gradient, firstMoment, secondMoment }], {
    learningRate: 0.01,
    step: number,
    clipNorm: 1,
  });
  losses.push(sum[PARAMETERS]);
}
await communicator.dispose();
parentPort.postMessage({ losses, checksum: weight.reduce((sum, w) => sum + w, 0) });
