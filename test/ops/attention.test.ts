// Attention as other trainers call it: a block against float64, and ranks against one rank on random documents.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type AttentionGradients,
  attentionBlock,
  attentionBlockBackward,
  ringAttention,
  ringAttentionBackward,
  type Segment,
  type ShardLayout,
  shardDocuments,
} from "../../lib/ops/attention.ts";
import { hostTensor } from "../../lib/ops/tensor.ts";
import { setThreads } from "../../lib/ops/threads.ts";
import { Random } from "../../lib/random.ts";
import { ranks, ranksOfNodes } from "./ranks.ts";

const HEADS = 2;
const KV_HEADS = 1;
const HEAD_DIM = 16;

interface Arrays {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  dout: Float32Array;
  out: Float32Array;
  lse: Float32Array;
  dq: Float32Array;
  dk: Float32Array;
  dv: Float32Array;
}
type Lane = keyof Arrays;

const WIDTH: Record<Lane, number> = {
  q: HEADS * HEAD_DIM,
  k: KV_HEADS * HEAD_DIM,
  v: KV_HEADS * HEAD_DIM,
  dout: HEADS * HEAD_DIM,
  out: HEADS * HEAD_DIM,
  lse: HEADS,
  dq: HEADS * HEAD_DIM,
  dk: KV_HEADS * HEAD_DIM,
  dv: KV_HEADS * HEAD_DIM,
};
const LANES = Object.keys(WIDTH) as Lane[];
const INPUTS: Lane[] = ["q", "k", "v", "dout"];

function arrays(queries: number, keys: number, seed?: number): Arrays {
  const lane = (name: Lane): Float32Array => {
    const rows = ["k", "v", "dk", "dv"].includes(name) ? keys : queries;
    const array = new Float32Array(rows * WIDTH[name]);
    if (seed === undefined || !INPUTS.includes(name)) return array;
    const random = Random.of(seed, name);
    return array.map(() => 4 * random.uniform() - 2);
  };
  return Object.fromEntries(LANES.map((name) => [name, lane(name)])) as unknown as Arrays;
}

/** As the ops take them. */
function tensors(x: Arrays): AttentionGradients {
  const shaped = (name: Lane) => {
    const heads = name === "lse" ? [HEADS] : [WIDTH[name] / HEAD_DIM, HEAD_DIM];
    return hostTensor(x[name], [x[name].length / WIDTH[name], ...heads]);
  };
  return Object.fromEntries(LANES.map((name) => [name, shaped(name)])) as unknown as AttentionGradients;
}

const tokens = (segments: readonly Segment[]): number => segments.reduce((sum, s) => sum + s.length, 0);
const whole = (lengths: readonly number[]): Segment[] =>
  lengths.map((length, document) => ({ document, position: 0, length }));

function relative(a: Float32Array, b: ArrayLike<number>): number {
  let error = 0;
  let norm = 1e-30;
  for (let i = 0; i < b.length; i++) {
    error += ((a[i] as number) - (b[i] as number)) ** 2;
    norm += (b[i] as number) ** 2;
  }
  return Math.sqrt(error / norm);
}

/** In float64, straight from the definition. */
function reference(x: Arrays, queries: readonly Segment[], keys: readonly Segment[]): Record<Lane, number[]> {
  const places = (segments: readonly Segment[]) =>
    segments.flatMap((s) =>
      Array.from({ length: s.length }, (_, i) => ({ d: s.document, p: s.position + i })),
    );
  const [at, of] = [places(queries), places(keys)];
  const r = Object.fromEntries(LANES.map((name) => [name, Array.from(x[name], () => 0)])) as Record<
    Lane,
    number[]
  >;
  const scale = 1 / Math.sqrt(HEAD_DIM);
  const dot = (a: Float32Array | number[], i: number, b: Float32Array, j: number): number => {
    let sum = 0;
    for (let d = 0; d < HEAD_DIM; d++) sum += (a[i + d] as number) * (b[j + d] as number);
    return sum;
  };
  const add = (to: number[], i: number, from: Float32Array, j: number, weight: number): void => {
    for (let d = 0; d < HEAD_DIM; d++) to[i + d] = (to[i + d] as number) + weight * (from[j + d] as number);
  };
  for (const [i, query] of at.entries()) {
    const seen = of.flatMap((key, j) => (key.d === query.d && key.p <= query.p ? [j * WIDTH.k] : []));
    for (let h = 0; h < HEADS; h++) {
      const o = i * WIDTH.q + h * HEAD_DIM;
      const scores = seen.map((j) => scale * dot(x.q, o, x.k, j));
      const most = Math.max(...scores);
      const lse = seen.length
        ? most + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - most), 0))
        : -Infinity;
      r.lse[i * HEADS + h] = lse;
      const p = scores.map((s) => Math.exp(s - lse));
      for (const [n, j] of seen.entries()) add(r.out, o, x.v, j, p[n] as number);
      const delta = dot(r.out, o, x.dout, o);
      for (const [n, j] of seen.entries()) {
        add(r.dv, j, x.dout, o, p[n] as number);
        const ds = (p[n] as number) * (dot(x.dout, o, x.v, j) - delta) * scale;
        add(r.dq, o, x.k, j, ds);
        add(r.dk, j, x.q, o, ds);
      }
    }
  }
  return r;
}

describe("attentionBlock", () => {
  const queries: Segment[] = [
    { document: 7, position: 40, length: 30 },
    { document: 3, position: 0, length: 5 },
  ];
  const keys: Segment[] = [
    { document: 7, position: 0, length: 20 },
    { document: 5, position: 0, length: 9 },
    { document: 7, position: 50, length: 30 },
  ];

  it("and its backward pass follow the definition", async () => {
    const x = arrays(tokens(queries), tokens(keys), 1);
    const expected = reference(x, queries, keys);
    await attentionBlock({ ...tensors(x), queries, keys });
    expect(relative(x.out, expected.out)).toBeLessThan(1e-6);
    for (const [i, lse] of x.lse.entries()) {
      if (expected.lse[i] === -Infinity) expect(lse).toBe(-Infinity);
      else expect(lse).toBeCloseTo(expected.lse[i] as number, 5);
    }
    await attentionBlockBackward({ ...tensors(x), queries, keys });
    for (const name of ["dq", "dk", "dv"] as const)
      expect(relative(x[name], expected[name])).toBeLessThan(2e-6);
    // A second call adds as much again.
    await attentionBlockBackward({ ...tensors(x), queries, keys });
    expect(
      relative(
        x.dq,
        expected.dq.map((d) => 2 * d),
      ),
    ).toBeLessThan(2e-6);
  });

  it("merges blocks, in any order, to the attention on all keys", async () => {
    const all = arrays(tokens(queries), tokens(keys), 2);
    await attentionBlock({ ...tensors(all), queries, keys });
    const parts = arrays(tokens(queries), tokens(keys), 2);
    const rows = (name: "k" | "v", begin: number, end: number) =>
      hostTensor(parts[name].subarray(begin * WIDTH.k, end * WIDTH.k), [end - begin, KV_HEADS, HEAD_DIM]);
    for (const [begin, end, segments, merge] of [
      [29, 59, keys.slice(2), false],
      [0, 29, keys.slice(0, 2), true],
    ] as const) {
      const x = { ...tensors(parts), k: rows("k", begin, end), v: rows("v", begin, end) };
      await attentionBlock({ ...x, queries, keys: segments, merge });
    }
    expect(relative(parts.out, all.out)).toBeLessThan(5e-7);
    expect(parts.lse.slice(-10)).toEqual(all.lse.slice(-10)); // no keys: -Infinity
  });

  it("refuses what does not fit", async () => {
    const x = tensors(arrays(35, 59, 1));
    const run = (changes: object) => attentionBlock({ ...x, queries, keys, ...changes });
    const invalid = (message: RegExp) =>
      expect.objectContaining({
        code: "ERR_TOKENRING_INVALID_ARGUMENT",
        message: expect.stringMatching(message),
      });
    await expect(run({ queries: queries.slice(1) })).rejects.toEqual(
      invalid(/cover 5 tokens, q has 35 rows/),
    );
    await expect(run({ keys: [keys[0], { ...keys[2], position: 19 }, keys[1]] })).rejects.toEqual(
      invalid(/position 19 of document 7 is held twice/),
    );
    await expect(run({ q: new Float32Array(16) })).rejects.toEqual(
      invalid(/q is f32 \[16\], must have 3 dimensions/),
    );
    await expect(run({ k: x.q })).rejects.toEqual(
      invalid(/options.v is f32 \[59, 1, 16\], must be f32 \[35, 2, 16\]/),
    );
    await expect(run({ lse: hostTensor(new Int32Array(70), [35, 2]) })).rejects.toEqual(
      invalid(/options.lse is i32 \[35, 2\], must be f32 \[35, 2\]/),
    );
    await expect(run({ scale: Number.NaN })).rejects.toEqual(invalid(/options.scale/));
  });
});

describe("shardDocuments", () => {
  it("gives every token to one rank, evenly", () => {
    expect(shardDocuments([8], 2)).toEqual([
      [
        { document: 0, position: 0, length: 2 },
        { document: 0, position: 6, length: 2 },
      ],
      [
        { document: 0, position: 2, length: 2 },
        { document: 0, position: 4, length: 2 },
      ],
    ]);
    expect(shardDocuments([3, 1], 2, "contiguous")).toEqual([
      [{ document: 0, position: 0, length: 2 }],
      [
        { document: 0, position: 2, length: 1 },
        { document: 1, position: 0, length: 1 },
      ],
    ]);
    expect(shardDocuments([1], 3).map(tokens).sort()).toEqual([0, 0, 1]);
    expect(() => shardDocuments([2.5], 2)).toThrow(/lengths\[0\] is 2.5/);
    expect(() => shardDocuments([2], 0)).toThrow(/size is 0/);
  });
});

/** Every rank's rows of `x`, through the communicator and back into one. */
async function overRanks(
  x: Arrays,
  lengths: readonly number[],
  size: number,
  layout: ShardLayout,
  schedule: "ring" | "all_gather" | "two_level",
  local = 1,
): Promise<Arrays> {
  const shards = shardDocuments(lengths, size, layout);
  const starts = lengths.map((_, i) => lengths.slice(0, i).reduce((sum, n) => sum + n, 0));
  const total = x.q.length / WIDTH.q;
  const result = arrays(total, total);
  await ranksOfNodes(size, local, async (communicator, node) => {
    const shard = shards[communicator.rank] as Segment[];
    const own = arrays(tokens(shard), tokens(shard));
    /** Calls `copy` with each segment's first row here, in the whole, and its rows. */
    const each = (copy: (row: number, from: number, rows: number) => void): void => {
      let row = 0;
      for (const s of shard) {
        copy(row, (starts[s.document] as number) + s.position, s.length);
        row += s.length;
      }
    };
    each((row, from, rows) => {
      for (const name of INPUTS) {
        const width = WIDTH[name];
        own[name].set(x[name].subarray(from * width, (from + rows) * width), row * width);
      }
    });
    const how = { shards, schedule, ...(schedule === "two_level" ? { node } : {}) };
    await ringAttention(communicator, { ...tensors(own), ...how });
    await ringAttentionBackward(communicator, { ...tensors(own), ...how });
    each((row, from, rows) => {
      for (const name of LANES) {
        const width = WIDTH[name];
        result[name].set(own[name].subarray(row * width, (row + rows) * width), from * width);
      }
    });
  });
  return result;
}

describe("ringAttention", () => {
  const documents = fc.oneof(
    fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 40 }), // many, some shorter than the ranks
    fc.integer({ min: 1, max: 400 }).map((length) => [length]), // one
    fc.array(fc.constantFrom(1, 2, 63, 64, 65, 128, 130), { minLength: 1, maxLength: 4 }),
  );
  const layouts = fc.constantFrom<ShardLayout>("zigzag", "contiguous");

  it("is that of one rank, whatever the documents, the ranks and the layout", async () => {
    setThreads(1);
    await fc.assert(
      fc.asyncProperty(
        documents,
        fc.constantFrom(1, 2, 4, 8),
        layouts,
        fc.constantFrom(1, 2, 4, 8),
        fc.nat(),
        async (lengths, size, layout, most, seed) => {
          const total = lengths.reduce((sum, n) => sum + n, 0);
          const alone = arrays(total, total, seed);
          const blocks = { queries: whole(lengths), keys: whole(lengths) };
          await attentionBlock({ ...tensors(alone), ...blocks });
          await attentionBlockBackward({ ...tensors(alone), ...blocks });

          const gathered = await overRanks(alone, lengths, size, layout, "all_gather");
          for (const name of ["out", "lse", "dq"] as const) expect(gathered[name]).toEqual(alone[name]);
          const ring = await overRanks(alone, lengths, size, layout, "ring");
          const local = Math.min(most, size);
          const levels = await overRanks(alone, lengths, size, layout, "two_level", local);
          if (local === size) expect(levels).toEqual(gathered);
          else if (local === 1) expect(levels).toEqual(ring);
          // Merging rounds each number a few times more, in float32; sums over ranks have another order.
          for (const name of ["out", "lse"] as const) {
            expect(relative(ring[name], alone[name])).toBeLessThan(1e-6);
            expect(relative(levels[name], alone[name])).toBeLessThan(1e-6);
          }
          for (const name of ["dq", "dk", "dv"] as const)
            for (const got of [ring, gathered, levels])
              expect(relative(got[name], alone[name])).toBeLessThan(1e-5);
        },
      ),
      { numRuns: 40 },
    );
  });

  it("fails on every rank when one rank holds something else", async () => {
    const outcomes = await ranks(2, async (communicator) => {
      const lengths = communicator.rank === 0 ? [20] : [24];
      const shards = shardDocuments(lengths, 2);
      const rows = tokens(shards[communicator.rank] as Segment[]);
      const x = tensors(arrays(rows, rows, 1));
      return ringAttention(communicator, { ...x, shards }).catch((error: Error) => error);
    });
    for (const outcome of outcomes) {
      expect(outcome).toMatchObject({
        code: "ERR_TOKENRING_COMMUNICATOR",
        message: expect.stringMatching(/rank \d sent \d+ x f32 .* receives \d+ x f32/),
      });
    }
  });

  it("takes only what its shard holds", async () => {
    await ranks(1, async (communicator) => {
      const x = tensors(arrays(3, 3, 1));
      const bad = (changes: object, message: RegExp) =>
        expect(
          ringAttention(communicator, { ...x, shards: shardDocuments([3], 1), ...changes }),
        ).rejects.toMatchObject({
          code: "ERR_TOKENRING_INVALID_ARGUMENT",
          message: expect.stringMatching(message),
        });
      // Nothing of this breaks the communicator.
      await bad({ shards: shardDocuments([4], 1) }, /shards\[0\] covers 4 tokens, q has 3 rows/);
      await bad({ shards: shardDocuments([3], 2) }, /there are 2 for 1 ranks/);
      const odd = hostTensor(new Float32Array(3 * 8), [3, 1, 8]);
      const heads = { q: odd, k: odd, v: odd, out: odd, lse: hostTensor(new Float32Array(3), [3, 1]) };
      await bad(heads, /head_dim is 8; it must be a multiple of 16/);
      await bad({ schedule: "tree" }, /"ring", "all_gather" or "two_level", got "tree"/);
      await bad({ schedule: "two_level" }, /options.node must be a Communicator/);
      await communicator.barrier();
    });
  });
});
