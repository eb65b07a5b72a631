// A rank of a communicator over NCCL, for nccl.py: one request as JSON on stdin, JSON a line on stdout.
//   {"rank": r, "size": n, "count": elements, "ids": [hex, …] or null}
// Rank 0 gets no ids and answers {ids} first. Then a line a check: {name, error}, the largest error of this rank, which
// must be 0: sums are of whole numbers, exact in any order. Last {done: true}.
import { text } from "node:stream/consumers";
import { Communicator } from "../dist/ops/index.js";

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const { rank, size, count, ids } = JSON.parse(await text(process.stdin));
const made =
  ids ?? [0, 1, 2].map(() => Buffer.from(Communicator.uniqueId({ device: "cuda" })).toString("hex"));
if (ids === null) say({ ids: made });
/** Runs `work` as a rank of the communicator number `which`. */
async function within(which, timeout, work) {
  const id = Buffer.from(made[which], "hex");
  const communicator = await Communicator.create({ device: "cuda", id, rank, size, timeout });
  try {
    await work(communicator);
  } finally {
    await communicator.dispose();
  }
}

/** Whole numbers below 100 that differ from rank to rank. */
const number = (of, i) => (of * 31 + i * 7) % 100;
const fill = (array, of) => array.map((_, i) => number(of, i));
const sum = (i) => Array.from({ length: size }, (_, r) => number(r, i)).reduce((a, b) => a + b, 0);
const ranks = (i) => Array.from({ length: size }, (_, r) => number(r, i));
const worst = (got, expected) => got.reduce((most, x, i) => Math.max(most, Math.abs(x - expected(i))), 0);
const check = (name, got, expected) => say({ name, error: worst(got, expected) });
/** bf16 of a whole number below 256, exactly, and back. */
const narrow = (x) => new Uint16Array(Float32Array.of(x).buffer)[1];
const widen = (bits) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0];

await within(0, 120_000, async (communicator) => {
  for (const n of [1, 1000, count]) {
    const x = fill(new Float32Array(n), rank);
    await communicator.allReduce(x);
    check(`all_reduce of ${n} x f32`, x, sum);
    const whole = fill(new Int32Array(n), rank);
    await communicator.allReduce(whole, { reduction: "max" });
    check(`all_reduce of ${n} x i32, max`, whole, (i) => Math.max(...ranks(i)));
    // Sums below 256: bf16 holds them.
    const half = {
      data: Uint16Array.from({ length: n }, (_, i) => narrow((i + rank) % 16)),
      dtype: "bf16",
      shape: [n],
    };
    await communicator.allReduce(half);
    const halves = (i) => Array.from({ length: size }, (_, r) => (i + r) % 16).reduce((a, b) => a + b, 0);
    check(`all_reduce of ${n} x bf16`, Array.from(half.data, widen), halves);
    const all = new Float32Array(n * size);
    await communicator.allGather(fill(new Float32Array(n), rank), all);
    check(`all_gather of ${n} x f32`, all, (i) => number(Math.floor(i / n), i % n));
    const part = new Float32Array(n);
    await communicator.reduceScatter(fill(new Float32Array(n * size), rank), part);
    check(`reduce_scatter of ${n} x f32`, part, (i) => sum(rank * n + i));
    const given = fill(new Float32Array(n), rank);
    await communicator.broadcast(given, size - 1);
    check(`broadcast of ${n} x f32`, given, (i) => number(size - 1, i));
    if (size === 1) continue;
    const next = new Float32Array(n);
    await communicator.exchange([
      { send: fill(new Float32Array(n), rank), to: (rank + 1) % size },
      { receive: next, from: (rank + size - 1) % size },
    ]);
    check(`exchange of ${n} x f32`, next, (i) => number((rank + size - 1) % size, i));
  }
  await communicator.barrier();
  // The same sum twice has the same bits, whatever its order.
  const random = Float32Array.from({ length: count }, (_, i) => Math.sin(i * 12.9898 + rank) * 1e3);
  const [first, second] = [random.slice(), random.slice()];
  await communicator.allReduce(first);
  await communicator.allReduce(second);
  check("the bits of a sum, again", second, (i) => first[i]);
  await communicator.barrier();
});

/** 0 if the call fails with this code and these words. */
async function refused(name, call, code, words) {
  const error = await call.then(
    () => undefined,
    (failure) => failure,
  );
  const right = error?.code === `ERR_TOKENRING_${code}` && words.test(error.message);
  say({ name, error: right ? 0 : 1, ...(!right && { said: error?.message ?? "nothing" }) });
}
if (size > 1) {
  await within(1, 60_000, async (communicator) => {
    // A rank that is still in the barrier when others have gone on to disagree hears of it there.
    const call = communicator
      .barrier()
      .then(() => (rank === 0 ? communicator.barrier() : communicator.allReduce(new Float32Array(8))));
    await refused("ranks that disagree", call, "COMMUNICATOR", /disagree about collective #2/);
  });
  await within(2, 5000, async (communicator) => {
    // Rank 1 comes when the others have given up.
    if (rank === 1) await new Promise((resolve) => setTimeout(resolve, 6500));
    const call = communicator.barrier();
    await refused("a rank that is missing", call, "TIMEOUT", /barrier #1 for 5 s; missing: rank 1/);
  });
}
say({ done: true });
