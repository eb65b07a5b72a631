// A model of somebody else's: one attention layer over embeddings, in plain JavaScript, with its own arrays and its own
// backward pass. Only attention and the loss are tokenring's.
import { hostTensor, policyLoss, ringAttention, ringAttentionBackward } from "tokenring/ops";

export const VOCABULARY = 16;
const WIDTH = 32;
const HEADS = 2;
const KV_HEADS = 1;
const HEAD_DIM = 16;
const POSITIONS = 128;

const SHAPES = {
  embedding: [VOCABULARY, WIDTH],
  position: [POSITIONS, WIDTH],
  query: [HEADS * HEAD_DIM, WIDTH],
  key: [KV_HEADS * HEAD_DIM, WIDTH],
  value: [KV_HEADS * HEAD_DIM, WIDTH],
  output: [WIDTH, HEADS * HEAD_DIM],
  head: [VOCABULARY, WIDTH],
};

const sizes = Object.values(SHAPES).map(([rows, columns]) => rows * columns);
export const PARAMETERS = sizes.reduce((sum, size) => sum + size, 0);

/** The parts of one flat array that are the parameters: optimiser and communicator take the array as a whole. */
export function parameters(flat) {
  const ends = sizes.map((_, i) => sizes.slice(0, i + 1).reduce((sum, size) => sum + size, 0));
  return Object.fromEntries(
    Object.keys(SHAPES).map((name, i) => [name, flat.subarray(ends[i] - sizes[i], ends[i])]),
  );
}

/** y += x w^T: x [rows, k], w [n, k]. */
function linear(x, w, y, n, k) {
  for (let r = 0; r < x.length / k; r++)
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let j = 0; j < k; j++) sum += x[r * k + j] * w[i * k + j];
      y[r * n + i] += sum;
    }
  return y;
}

/** Its backward pass: dx += dy w and dw += dy^T x. */
function linearBackward(dy, x, w, dx, dw, n, k) {
  for (let r = 0; r < x.length / k; r++)
    for (let i = 0; i < n; i++) {
      const slope = dy[r * n + i];
      for (let j = 0; j < k; j++) {
        dx[r * k + j] += slope * w[i * k + j];
        dw[i * k + j] += slope * x[r * k + j];
      }
    }
}

/**
 * Loss and gradients of the tokens of one rank. `batch` holds this rank's rows: tokens, positions, targets and weight;
 * `shards` says which rows the ranks hold. Adds to `gradients`, and gives this rank's part of the loss.
 */
export async function step(communicator, weights, gradients, batch, shards) {
  const rows = batch.tokens.length;
  const zeros = (columns) => new Float32Array(rows * columns);
  const x = zeros(WIDTH);
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < WIDTH; j++)
      x[r * WIDTH + j] =
        weights.embedding[batch.tokens[r] * WIDTH + j] + weights.position[batch.positions[r] * WIDTH + j];

  const wide = HEADS * HEAD_DIM;
  const narrow = KV_HEADS * HEAD_DIM;
  const queries = (array) => hostTensor(array, [rows, HEADS, HEAD_DIM]);
  const keys = (array) => hostTensor(array, [rows, KV_HEADS, HEAD_DIM]);
  const attended = zeros(wide);
  const attention = {
    q: queries(linear(x, weights.query, zeros(wide), wide, WIDTH)),
    k: keys(linear(x, weights.key, zeros(narrow), narrow, WIDTH)),
    v: keys(linear(x, weights.value, zeros(narrow), narrow, WIDTH)),
    out: queries(attended),
    lse: hostTensor(zeros(HEADS), [rows, HEADS]),
    shards,
  };
  await ringAttention(communicator, attention);
  const hidden = linear(attended, weights.output, x.slice(), WIDTH, wide);

  const dhidden = zeros(WIDTH);
  const { loss } = await policyLoss(
    {
      hidden: hostTensor(hidden, [rows, WIDTH]),
      head: hostTensor(weights.head, SHAPES.head),
      targets: batch.targets,
      weight: batch.weight,
      dhidden: hostTensor(dhidden, [rows, WIDTH]),
      dhead: hostTensor(gradients.head, SHAPES.head),
    },
    { objective: "nll" }, // "ppo_clip" with advantage and oldLogprob, and so on
  );

  const dattended = zeros(wide);
  const [dq, dk, dv] = [zeros(wide), zeros(narrow), zeros(narrow)];
  linearBackward(dhidden, attended, weights.output, dattended, gradients.output, WIDTH, wide);
  await ringAttentionBackward(communicator, {
    ...attention,
    dout: queries(dattended),
    dq: queries(dq),
    dk: keys(dk),
    dv: keys(dv),
  });
  const dx = dhidden; // the residual path
  linearBackward(dq, x, weights.query, dx, gradients.query, wide, WIDTH);
  linearBackward(dk, x, weights.key, dx, gradients.key, narrow, WIDTH);
  linearBackward(dv, x, weights.value, dx, gradients.value, narrow, WIDTH);
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < WIDTH; j++) {
      gradients.embedding[batch.tokens[r] * WIDTH + j] += dx[r * WIDTH + j];
      gradients.position[batch.positions[r] * WIDTH + j] += dx[r * WIDTH + j];
    }
  return loss;
}
