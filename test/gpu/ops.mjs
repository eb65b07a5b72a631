// The functions of tokenring/ops on one device, given by name, over tensors of its memory: what they give, as JSON. Run by
// emulated.test.ts, on the emulated GPU and on the CPU.
import {
  adamw,
  attentionBlock,
  attentionBlockBackward,
  DeviceTensor,
  gradientNorm,
  hostTensor,
  policyLoss,
} from "../../dist/ops/index.js";

const device = process.argv[2];
let seed = 7;
function numbers(count, scale = 1) {
  return Float32Array.from({ length: count }, () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return scale * (seed / 2 ** 31 - 1);
  });
}
const put = (array, shape) => DeviceTensor.from(array, shape, { device });
const fill = (shape, dtype = "f32") => DeviceTensor.allocate(shape, { device, dtype });
const kinds = { f32: Float32Array, u8: Uint8Array };
async function get(tensor) {
  const array = new kinds[tensor.dtype](tensor.shape.reduce((a, b) => a * b, 1));
  await tensor.copyTo(array);
  return [...array];
}
const refusals = [];
const refused = async (work) =>
  refusals.push(await work().then(String, (error) => `${error.code}: ${error.message}`));

const result = {};
// Two documents in one batch, heads of 16.
const [tokens, heads, kvHeads, headDim] = [20, 4, 2, 16];
const segments = [
  { document: 0, position: 0, length: 13 },
  { document: 1, position: 0, length: 7 },
];
const rows = async (n) => put(numbers(tokens * n * headDim), [tokens, n, headDim]);
const x = { q: await rows(heads), k: await rows(kvHeads), v: await rows(kvHeads), dout: await rows(heads) };
const out = { out: fill([tokens, heads, headDim]), lse: fill([tokens, heads]) };
const grads = {
  dq: fill([tokens, heads, headDim]),
  dk: fill([tokens, kvHeads, headDim]),
  dv: fill([tokens, kvHeads, headDim]),
};
await attentionBlock({ ...x, ...out, queries: segments, keys: segments });
await attentionBlockBackward({ ...x, ...out, ...grads, queries: segments, keys: segments });
for (const [name, tensor] of Object.entries({ ...out, ...grads })) result[name] = await get(tensor);

const [count, vocabulary] = [6, 50];
const logits = await put(numbers(count * vocabulary, 3), [count, vocabulary]);
const dlogits = fill([count, vocabulary]);
const lanes = {
  targets: hostTensor(Int32Array.of(1, 49, 0, 7, 7, 12)),
  weight: Float32Array.of(0.25, 0, 0.25, 0.25, 0.25, 0.25),
  advantage: Float32Array.of(1, -1, 0.5, -2, 1, 1),
  oldLogprob: Float32Array.of(-3, -4, -5, -3, -4, -2),
};
const loss = { objective: "ppo_clip", entropyCoef: 0.01 };
const told = await policyLoss({ logits, dlogits, ...lanes }, loss);
Object.assign(result, { loss: [told.loss], logprob: [...told.logprob], dlogits: await get(dlogits) });

const n = 300;
const parameter = { weight: await put(numbers(n)), gradient: await put(numbers(n, 0.1)) };
const plain = { ...parameter, firstMoment: fill([n]), secondMoment: fill([n]) };
const coded = {
  weight: await put(numbers(n)),
  gradient: parameter.gradient,
  firstMoment: fill([n], "u8"),
  secondMoment: fill([n], "u8"),
  firstScale: fill([2]),
  secondScale: fill([2]),
};
for (const step of [1, 2]) await adamw([plain, coded], { learningRate: 0.01, step, clipNorm: 0.5 });
result.norm = [await gradientNorm([parameter.gradient])];
for (const name of ["weight", "firstMoment", "secondMoment"]) result[name] = await get(plain[name]);
for (const name of ["weight", "firstScale", "secondScale"]) result[`coded ${name}`] = await get(coded[name]);

// bf16 on the way, and DLPack there and back.
const half = await DeviceTensor.from(Float32Array.of(1, 2.5, -3), [3], { device, dtype: "bf16" });
const back = new Float32Array(3);
await half.copyTo(back);
result.half = [...back];
const second = DeviceTensor.fromDLPack(parameter.weight.toDLPack());
const third = DeviceTensor.fromDLPack(second.toDLPackPointer());
parameter.weight.dispose();
second.dispose();
result.exchanged = await get(third);

if (device === "cuda") {
  const array = new Float32Array(n);
  await refused(() =>
    adamw([{ ...plain, weight: third, firstMoment: array }], { learningRate: 0.01, step: 1 }),
  );
  await refused(() => policyLoss({ logits, ...lanes, weight: fill([count]) }, loss));
  const hidden = fill([count, 8]);
  await refused(() => policyLoss({ hidden, head: fill([vocabulary, 8]), ...lanes }, loss));
}
console.log(JSON.stringify({ device: third.device, result, refusals }));
