// The policy loss on arrays of one's own: from logits and from hidden states, against the formulas in float64.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type PolicyLossOptions, policyLoss } from "../../lib/ops/policy-loss.ts";
import { hostTensor } from "../../lib/ops/tensor.ts";
import { Random } from "../../lib/random.ts";

interface Case {
  rows: number;
  width: number;
  vocabulary: number;
  hidden: Float32Array;
  head: Float32Array;
  targets: Int32Array;
  weight: Float32Array;
  advantage: Float32Array;
  oldLogprob: Float32Array;
  referenceLogprob: Float32Array;
  lengths: Int32Array;
}

function random(seed: number, rows = 9, width = 5, vocabulary = 7): Case {
  const draw = Random.of(seed, "loss");
  const floats = (n: number, low: number, high: number) =>
    Float32Array.from({ length: n }, () => low + (high - low) * draw.uniform());
  const first = draw.below(rows + 1);
  return {
    rows,
    width,
    vocabulary,
    hidden: floats(rows * width, -1, 1),
    head: floats(vocabulary * width, -1, 1),
    targets: Int32Array.from({ length: rows }, () => draw.below(vocabulary)),
    weight: floats(rows, 0.1, 0.3).map((w) => (draw.chance(0.3) ? 0 : w)),
    advantage: floats(rows, -1, 1),
    oldLogprob: floats(rows, -2.5, -1.5),
    referenceLogprob: floats(rows, -2.5, -1.5),
    lengths: Int32Array.of(first, 0, rows - first),
  };
}

const lanes = (x: Case) => ({
  targets: x.targets,
  weight: x.weight,
  advantage: x.advantage,
  oldLogprob: x.oldLogprob,
  referenceLogprob: x.referenceLogprob,
  lengths: x.lengths,
});
const shaped = (x: Case) => ({
  hidden: hostTensor(x.hidden, [x.rows, x.width]),
  head: hostTensor(x.head, [x.vocabulary, x.width]),
});

/** Loss in float64 at hidden + nudge of one element. `held` are the logprobs that the ratio holds constant (cispo, gspo). */
function formula(
  x: Case,
  how: PolicyLossOptions,
  hidden: number[],
  head: number[],
  held?: number[],
): { loss: number; logprob: number[] } {
  const t = how.temperature ?? 1;
  const [low, high] = [1 - (how.clipLow ?? 0.2), 1 + (how.clipHigh ?? 0.28)];
  const z = (i: number) =>
    Array.from({ length: x.vocabulary }, (_, j) => {
      let sum = 0;
      for (let d = 0; d < x.width; d++)
        sum += (hidden[i * x.width + d] as number) * (head[j * x.width + d] as number);
      return sum / t;
    });
  const rows = Array.from({ length: x.rows }, (_, i) => {
    const logits = z(i);
    const lse = Math.log(logits.reduce((sum, l) => sum + Math.exp(l), 0));
    const entropy = -logits.reduce((sum, l) => sum + Math.exp(l - lse) * (l - lse), 0);
    return { logprob: (logits[x.targets[i] as number] as number) - lse, entropy };
  });
  const logprob = rows.map((row) => row.logprob);
  const now = held ?? logprob;
  const ratioOfDocument = (i: number): number => {
    let start = 0;
    for (const length of x.lengths) {
      if (i < start + length) {
        const members = [...Array(length).keys()].map((n) => n + start).filter((n) => x.weight[n] !== 0);
        const mean =
          members.reduce((sum, n) => sum + (now[n] as number) - (x.oldLogprob[n] as number), 0) /
          members.length;
        return Math.exp(mean);
      }
      start += length;
    }
    return 1;
  };
  let loss = 0;
  for (const [i, { logprob: lp, entropy }] of rows.entries()) {
    const w = x.weight[i] as number;
    if (w === 0) continue;
    const a = x.advantage[i] as number;
    const clip = (r: number) => Math.min(Math.max(r, low), high);
    let value = 0;
    if (how.objective === "nll") value = -lp;
    else if (how.objective === "cispo")
      value = -clip(Math.exp((now[i] as number) - (x.oldLogprob[i] as number))) * a * lp;
    else {
      const r =
        how.objective === "gspo"
          ? ratioOfDocument(i) * Math.exp(lp - (now[i] as number))
          : Math.exp(lp - (x.oldLogprob[i] as number));
      value = -Math.min(r * a, clip(r) * a);
      if (how.dualClip && a < 0) value = Math.min(value, -how.dualClip * a);
    }
    const d = (x.referenceLogprob[i] as number) - lp;
    value += (how.klCoef ?? 0) * (Math.exp(d) - d - 1) - (how.entropyCoef ?? 0) * entropy;
    loss += w * value;
  }
  return { loss, logprob };
}

const options: PolicyLossOptions[] = [
  { objective: "nll" },
  { objective: "nll", temperature: 0.7, entropyCoef: 0.1 },
  { objective: "ppo_clip" },
  { objective: "ppo_clip", dualClip: 3, klCoef: 0.2, entropyCoef: 0.05, temperature: 1.3 },
  { objective: "cispo", klCoef: 0.1 },
  { objective: "gspo", clipLow: 0.3, clipHigh: 0.3 },
];

describe.each(options)("policyLoss %j", (how) => {
  it("and its gradients follow the formulas, from hidden states and from logits", async () => {
    const x = random(3);
    const dhidden = new Float32Array(x.hidden.length);
    const dhead = new Float32Array(x.head.length).fill(1);
    const gradients = {
      dhidden: hostTensor(dhidden, [x.rows, x.width]),
      dhead: hostTensor(dhead, [x.vocabulary, x.width]),
    };
    const result = await policyLoss({ ...lanes(x), ...shaped(x), ...gradients }, { ...how, chunkRows: 4 });

    const [hidden, head] = [[...x.hidden], [...x.head]];
    const { loss, logprob } = formula(x, how, hidden, head);
    expect(result.loss).toBeCloseTo(loss, 5);
    for (const [i, weight] of x.weight.entries())
      expect(result.logprob[i]).toBeCloseTo(weight === 0 ? 0 : (logprob[i] as number), 5);

    const slope = (values: number[], i: number): number => {
      const [h, at] = [1e-5, values[i] as number];
      const loss = (value: number): number => {
        values[i] = value;
        return formula(x, how, hidden, head, logprob).loss;
      };
      const difference = (loss(at + h) - loss(at - h)) / (2 * h);
      values[i] = at;
      return difference;
    };
    for (let i = 0; i < hidden.length; i++) expect(dhidden[i]).toBeCloseTo(slope(hidden, i), 5);
    for (let i = 0; i < head.length; i++) expect((dhead[i] as number) - 1).toBeCloseTo(slope(head, i), 5);

    // From logits: the same loss; their gradient times the head is that of the hidden states.
    const logits = new Float32Array(x.rows * x.vocabulary);
    for (let i = 0; i < x.rows; i++)
      for (let j = 0; j < x.vocabulary; j++)
        for (let d = 0; d < x.width; d++)
          (logits[i * x.vocabulary + j] as number) +=
            (x.hidden[i * x.width + d] as number) * (x.head[j * x.width + d] as number);
    const tensor = hostTensor(logits, [x.rows, x.vocabulary]);
    const alone = await policyLoss({ ...lanes(x), logits: tensor }, how);
    const inPlace = await policyLoss({ ...lanes(x), logits: tensor, dlogits: tensor }, how);
    expect(inPlace).toEqual(alone);
    expect(alone.loss).toBeCloseTo(result.loss, 5);
    expect(alone.flags).toEqual(result.flags);
    for (let i = 0; i < x.rows; i++)
      for (let d = 0; d < x.width; d++) {
        let sum = 0;
        for (let j = 0; j < x.vocabulary; j++)
          sum += (logits[i * x.vocabulary + j] as number) * (x.head[j * x.width + d] as number);
        expect(dhidden[i * x.width + d]).toBeCloseTo(sum, 5);
      }
  });
});

describe("policyLoss", () => {
  it("does not depend on the chunks, nor on rows without weight or whether gradients are wanted", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat(),
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 50 }),
        async (seed, rows, chunkRows) => {
          const x = random(seed, rows, 33, 19);
          const how: PolicyLossOptions = { objective: "gspo", entropyCoef: 0.1 };
          const run = async (chunk: number) => {
            const dhidden = hostTensor(new Float32Array(x.hidden.length), [rows, 33]);
            const dhead = hostTensor(new Float32Array(x.head.length), [19, 33]);
            const result = await policyLoss(
              { ...lanes(x), ...shaped(x), dhidden, dhead },
              { ...how, chunkRows: chunk },
            );
            return { result, dhidden, dhead };
          };
          const expected = await run(1000);
          expect(await run(chunkRows)).toEqual(expected);
          expect(await policyLoss({ ...lanes(x), ...shaped(x) }, how)).toEqual(expected.result);
        },
      ),
      { numRuns: 30 },
    );
  });

  it("refuses what does not fit", async () => {
    const x = random(1);
    const run = (changes: object, how: Partial<PolicyLossOptions> = {}) =>
      policyLoss({ ...lanes(x), ...shaped(x), ...changes }, { objective: "ppo_clip", ...how });
    const invalid = (message: RegExp) =>
      expect.objectContaining({
        code: "ERR_TOKENRING_INVALID_ARGUMENT",
        message: expect.stringMatching(message),
      });
    await expect(run({ targets: new Int32Array(8) })).rejects.toEqual(
      invalid(/options.targets is i32 \[8\], must be i32 \[9\]/),
    );
    await expect(run({ targets: new Int32Array(9).fill(7) })).rejects.toEqual(
      invalid(/targets\[\d\] is 7, outside the vocabulary of 7/),
    );
    await expect(run({ weight: new Float32Array(9).fill(Number.NaN) })).rejects.toEqual(
      invalid(/weight\[0\] is nan/),
    );
    await expect(run({ oldLogprob: undefined })).rejects.toEqual(invalid(/needs advantage and oldLogprob/));
    await expect(run({ referenceLogprob: undefined }, { klCoef: 1 })).rejects.toEqual(
      invalid(/klCoef needs referenceLogprob/),
    );
    await expect(run({ lengths: Int32Array.of(3) })).rejects.toEqual(
      invalid(/lengths sum to 3, but there are 9 rows/),
    );
    await expect(run({ head: x.head })).rejects.toEqual(invalid(/options.head is f32 \[35\]/));
    await expect(run({ dhead: shaped(x).head })).rejects.toEqual(invalid(/both dhidden and dhead/));
    await expect(run({}, { clipLow: 2 })).rejects.toEqual(invalid(/loss.clipLow/));
    const broken = { ...x, hidden: x.hidden.slice().fill(Number.NaN, 0, 5) };
    x.weight[0] = 1;
    await expect(run({ ...shaped(broken), weight: x.weight })).rejects.toMatchObject({
      code: "ERR_TOKENRING_NON_FINITE",
      message: expect.stringMatching(/loss of row 0 is/),
    });
  });

  it("does not begin when its signal fires while it waits for another call", async () => {
    const x = random(1, 2000, 64, 500);
    const controller = new AbortController();
    const dhidden = hostTensor(new Float32Array(x.hidden.length).fill(9), [x.rows, x.width]);
    const dhead = hostTensor(new Float32Array(x.head.length), [x.vocabulary, x.width]);
    // A queue of them: on a busy machine one may be done before this thread comes to abort.
    const running = Array.from({ length: 24 }, () =>
      policyLoss({ ...lanes(x), ...shaped(x) }, { objective: "nll" }),
    );
    const waiting = policyLoss(
      { ...lanes(x), ...shaped(x), dhidden, dhead },
      { objective: "nll" },
      { signal: controller.signal },
    );
    const reason = new Error("enough");
    controller.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    for (const { loss } of await Promise.all(running)) expect(loss).toBeGreaterThan(0);
    expect(new Set(dhidden.data)).toEqual(new Set([9]));
  });
});
