// Tensors in arrays and in native memory: what they hold, who holds them, and what is refused.
import { describe, expect, it } from "vitest";
import { adamw, gradientNorm } from "../../lib/ops/adamw.ts";
import { DeviceTensor } from "../../lib/ops/device-tensor.ts";
import { loadBinding } from "../../lib/ops/native.ts";
import { hostTensor } from "../../lib/ops/tensor.ts";

function invalid(message: RegExp): unknown {
  return expect.objectContaining({
    code: "ERR_TOKENRING_INVALID_ARGUMENT",
    message: expect.stringMatching(message),
  });
}

describe("hostTensor", () => {
  it("names the dtype by the array, and checks the shape", () => {
    const data = new Float32Array(6);
    const tensor = hostTensor(data, [2, 3]);
    expect(tensor).toEqual({ dtype: "f32", shape: [2, 3], data });
    expect(hostTensor(new Uint16Array(2)).dtype).toBe("bf16");
    expect(hostTensor(new Uint16Array(2), [2], "f16").dtype).toBe("f16");
    expect(() => hostTensor(data, [7])).toThrow(invalid(/\[7\] has 7 elements, the array 6/) as Error);
  });
});

describe("DeviceTensor", () => {
  it("owns zeroed memory until it is disposed", async () => {
    const tensor = DeviceTensor.allocate([2, 2]);
    expect(tensor).toMatchObject({ dtype: "f32", shape: [2, 2], device: "cpu", stream: 0n, disposed: false });
    expect(tensor.pointer).toBeGreaterThan(0n);
    const out = new Float32Array(4).fill(9);
    await tensor.copyTo(out);
    expect([...out]).toEqual([0, 0, 0, 0]);
    tensor.dispose();
    tensor.dispose();
    expect(tensor.disposed).toBe(true);
    expect(() => tensor.pointer).toThrow(
      expect.objectContaining({ code: "ERR_TOKENRING_DISPOSED" }) as Error,
    );
    await expect(tensor.copyTo(out)).rejects.toMatchObject({ code: "ERR_TOKENRING_DISPOSED" });
  });

  it("keeps its memory for calls that are under way", async () => {
    const tensor = await DeviceTensor.from(new Float32Array(1_000_000).fill(3));
    const out = new Float32Array(1_000_000);
    const copied = tensor.copyTo(out);
    tensor.dispose();
    await copied;
    expect(out.every((x) => x === 3)).toBe(true);
  });

  it("rounds float32 to bf16 and back", async () => {
    using tensor = await DeviceTensor.from(Float32Array.of(1, 1 + 2 ** -9, -5.33), [3], { dtype: "bf16" });
    const back = new Float32Array(3);
    await tensor.copyTo(back);
    expect([...back]).toEqual([1, 1, -5.34375]);
    const bits = new Uint16Array(3);
    await tensor.copyTo(bits);
    expect([...bits]).toEqual([0x3f80, 0x3f80, 0xc0ab]);
  });

  it("holds every dtype", async () => {
    for (const [array, dtype] of [
      [Int32Array.of(-1, 2), "i32"],
      [Uint8Array.of(1, 255), "u8"],
      [Uint16Array.of(0x3c00, 1), "f16"],
    ] as const) {
      using tensor = await DeviceTensor.from(array, [2, 1], { dtype });
      expect(tensor).toMatchObject({ dtype, shape: [2, 1] });
      const out = array.slice().fill(0);
      await tensor.copyTo(out);
      expect(out).toEqual(array);
    }
  });

  it("wraps memory that somebody else owns", async () => {
    using owner = await DeviceTensor.from(Float32Array.of(1, 2, 3, 4));
    using view = DeviceTensor.wrap(owner.pointer + 4n, [3], { owner });
    await view.copyFrom(Float32Array.of(20, 30, 40));
    const out = new Float32Array(4);
    await owner.copyTo(out);
    expect([...out]).toEqual([1, 20, 30, 40]);
    expect(() => DeviceTensor.wrap(0n, [3])).toThrow(invalid(/null/) as Error);
    expect(() => DeviceTensor.wrap(owner.pointer + 2n, [3])).toThrow(
      invalid(/not aligned to the 4 bytes/) as Error,
    );
  });

  it("goes through DLPack and back, and outlives who made it", async () => {
    const first = await DeviceTensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), [3, 2]);
    const capsule = first.toDLPack();
    const address = first.toDLPackPointer();
    using second = DeviceTensor.fromDLPack(capsule);
    using third = DeviceTensor.fromDLPack(address);
    expect(second).toMatchObject({ dtype: "f32", shape: [3, 2], pointer: first.pointer });
    first.dispose();
    await second.copyFrom(Float32Array.of(6, 5, 4, 3, 2, 1));
    second.dispose();
    const out = new Float32Array(6);
    await third.copyTo(out);
    expect([...out]).toEqual([6, 5, 4, 3, 2, 1]);
    expect(() => DeviceTensor.fromDLPack(capsule)).toThrow(invalid(/taken already/) as Error);
    expect(() => DeviceTensor.fromDLPack({} as never)).toThrow(invalid(/DLPack capsule/) as Error);
    expect(() => DeviceTensor.fromDLPack(0n)).toThrow(invalid(/null/) as Error);
  });

  it("refuses devices that cannot be used, and streams that are not there", () => {
    const reason = loadBinding().cuda().reason as string;
    expect(() => DeviceTensor.allocate([1], { device: "cuda" })).toThrow(
      expect.objectContaining({
        code: "ERR_TOKENRING_INVALID_ARGUMENT",
        message: `device "cuda" cannot be used: ${reason}`,
      }) as Error,
    );
    expect(() => DeviceTensor.allocate([1], { stream: 5n })).toThrow(invalid(/stream is 5/) as Error);
    expect(() => DeviceTensor.allocate([1, 1, 1, 1, 1])).toThrow(invalid(/at most 4/) as Error);
    expect(() => DeviceTensor.allocate([-1])).toThrow(invalid(/sizes of at least 0, got -1/) as Error);
    expect(() => DeviceTensor.allocate([1], { dtype: "f64" as never })).toThrow(
      invalid(/"f32", .* got "f64"/) as Error,
    );
    expect(() => DeviceTensor.allocate([2 ** 44])).toThrow(
      expect.objectContaining({ code: "ERR_TOKENRING_OUT_OF_MEMORY" }) as Error,
    );
  });
});

describe("memory of arrays", () => {
  it("must be there and stay where it is", async () => {
    const detached = new Float32Array(4);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    await expect(gradientNorm([detached])).rejects.toEqual(invalid(/detached/));
    const Resizable = ArrayBuffer as unknown as new (bytes: number, options: object) => ArrayBuffer;
    const resizable = new Float32Array(new Resizable(16, { maxByteLength: 64 }));
    await expect(gradientNorm([resizable])).rejects.toEqual(invalid(/gradients\[0\] .*resizable/));
    const lies = { dtype: "f32", shape: [5], data: new Float32Array(4) } as const;
    await expect(gradientNorm([lies])).rejects.toEqual(invalid(/has 4 elements, its shape needs 5/));
    const kinds = { dtype: "f32", shape: [4], data: new Int32Array(4) } as const;
    await expect(gradientNorm([kinds])).rejects.toEqual(invalid(/f32 must be held by a Float32Array/));
    await expect(gradientNorm([{ dtype: "f32", shape: [4], data: {} } as never])).rejects.toEqual(
      invalid(/typed array or a DeviceTensor/),
    );
  });

  it("that is taken away under a call fails the call", async () => {
    const x = new Float32Array(1_000_000).fill(1);
    const norm = gradientNorm([x]);
    const kept = structuredClone(x.buffer, { transfer: [x.buffer] });
    await expect(norm).rejects.toEqual(invalid(/gradients\[0\] was detached .* while the call ran/));
    expect(kept.byteLength).toBe(4_000_000);
  });
});

describe("adamw", () => {
  /** The formulas in float64. */
  function reference(w: number[], grads: number[][], lr: number, decay: number, clip: number): number[] {
    const [b1, b2, eps] = [0.9, 0.999, 1e-8];
    const m = w.map(() => 0);
    const v = w.map(() => 0);
    grads.forEach((g, s) => {
      const norm = Math.hypot(...g);
      const scale = clip > 0 && norm > clip ? clip / norm : 1;
      g.forEach((raw, i) => {
        const x = raw * scale;
        m[i] = b1 * (m[i] as number) + (1 - b1) * x;
        v[i] = b2 * (v[i] as number) + (1 - b2) * x * x;
        const root = Math.sqrt((v[i] as number) / (1 - b2 ** (s + 1))) + eps;
        w[i] = (w[i] as number) * (1 - lr * decay) - (lr * (m[i] as number)) / (1 - b1 ** (s + 1)) / root;
      });
    });
    return w;
  }

  it("follows the formulas, over arrays and device tensors together", async () => {
    const start = [1, -2, 0.5, 3, 0.25];
    const grads = [
      [0.1, -0.2, 3, 0.01, 0],
      [0.3, 0.2, -1, 0.02, 1],
      [-0.1, 0.1, 0.5, 0.03, -1],
    ];
    const a = Float32Array.from(start.slice(0, 3));
    using b = await DeviceTensor.from(Float32Array.from(start.slice(3)), [1, 2]);
    const moments = [3, 3, 2, 2].map((n) => new Float32Array(n));
    for (const [i, g] of grads.entries()) {
      const gb = hostTensor(Float32Array.from(g.slice(3)), [2]);
      const [ma, va, mb, vb] = moments as [Float32Array, Float32Array, Float32Array, Float32Array];
      const ga = Float32Array.from(g.slice(0, 3));
      const { gradientNorm: norm } = await adamw(
        [
          { weight: a, gradient: ga, firstMoment: ma, secondMoment: va },
          { weight: b, gradient: gb, firstMoment: mb, secondMoment: vb, decay: true },
        ],
        { learningRate: 0.05, step: i + 1, weightDecay: 0.1, clipNorm: 1 },
      );
      expect(norm).toBeCloseTo(Math.hypot(...g), 6);
      expect(ga).toEqual(Float32Array.from(g.slice(0, 3)));
    }
    const rest = new Float32Array(2);
    await b.copyTo(rest);
    const expected = reference([...start], grads, 0.05, 0.1, 1);
    // float32 against float64 over three steps.
    for (const [i, w] of [...a, ...rest].entries()) expect(w).toBeCloseTo(expected[i] as number, 6);
  });

  it("takes moments in eight bits with their scales, and says what lacks one", async () => {
    const make = (n: number) => ({
      weight: new Float32Array(n),
      gradient: Float32Array.from({ length: n }, (_, i) => (i === 0 ? -1 : 0)),
      firstMoment: new Uint8Array(n),
      secondMoment: new Uint8Array(n),
    });
    const scales = (n: number) => ({ firstScale: new Float32Array(n), secondScale: new Float32Array(n) });
    const parameter = { ...make(300), ...scales(2) };
    await adamw([parameter], { learningRate: 0.1, step: 1 });
    expect(parameter.weight[0]).toBeCloseTo(0.1, 6);
    // The largest of a block has its share's code, with the sign of the first moment; the other block is still zero.
    expect([...parameter.firstMoment.subarray(0, 2)]).toEqual([127 + 128, 0]);
    expect([...parameter.secondMoment.subarray(0, 2)]).toEqual([255, 0]);
    expect(parameter.firstScale[0]).toBeCloseTo(0.1, 6);
    expect(parameter.secondScale[0]).toBeCloseTo(Math.sqrt(0.001), 6);
    expect([parameter.firstScale[1], parameter.secondScale[1]]).toEqual([0, 0]);
    const options = { learningRate: 0.1, step: 1 };
    await expect(adamw([make(300)], options)).rejects.toEqual(
      invalid(/firstMoment is u8 \[300\], must be f32/),
    );
    await expect(adamw([{ ...make(300), ...scales(1) }], options)).rejects.toEqual(
      invalid(/a scale has 1 elements, must have one for each 256 of the weight's 300/),
    );
  });

  it("leaves parameters without decay alone where the gradient is zero, and takes a norm that is given", async () => {
    const make = (decay: boolean) => ({
      weight: Float32Array.of(2),
      gradient: new Float32Array(1),
      firstMoment: new Float32Array(1),
      secondMoment: new Float32Array(1),
      decay,
    });
    const [shrinks, stays] = [make(true), make(false)];
    await adamw([shrinks, stays], { learningRate: 0.1, step: 1, weightDecay: 0.5 });
    expect(shrinks.weight[0]).toBeCloseTo(1.9, 6);
    expect(stays.weight[0]).toBe(2);
    stays.gradient[0] = 1;
    const { gradientNorm: norm } = await adamw([stays], {
      learningRate: 0.1,
      step: 1,
      clipNorm: 1,
      gradientNorm: 4,
    });
    expect(norm).toBe(4);
    expect(stays.firstMoment[0]).toBeCloseTo(0.1 * 0.25, 7);
  });

  it("names the gradient that is not finite, and changes nothing", async () => {
    const parameter = (gradient: number) => ({
      weight: Float32Array.of(2),
      gradient: Float32Array.of(gradient),
      firstMoment: new Float32Array(1),
      secondMoment: new Float32Array(1),
    });
    const parameters = [parameter(1), parameter(Number.NaN)];
    await expect(adamw(parameters, { learningRate: 1, step: 1 })).rejects.toMatchObject({
      code: "ERR_TOKENRING_NON_FINITE",
      message: expect.stringMatching(/^gradient 1 holds NaN/),
    });
    expect(parameters[0]?.weight[0]).toBe(2);
    await expect(gradientNorm([Float32Array.of(3), Float32Array.of(4)])).resolves.toBe(5);
  });

  it("refuses what does not fit", async () => {
    const parameter = {
      weight: new Float32Array(2),
      gradient: new Float32Array(2),
      firstMoment: new Float32Array(2),
    };
    const run = (changes: object, options: object = {}) =>
      adamw([{ ...parameter, secondMoment: new Float32Array(2), ...changes }], {
        learningRate: 1,
        step: 1,
        ...options,
      });
    await expect(run({ gradient: new Float32Array(3) })).rejects.toEqual(
      invalid(/parameters\[0\].* one has 3/),
    );
    await expect(run({ weight: new Int32Array(2) })).rejects.toEqual(
      invalid(/parameters\[0\].weight .* must be f32/),
    );
    await expect(run({}, { step: 0 })).rejects.toEqual(invalid(/options.step/));
    await expect(run({}, { beta1: 1 })).rejects.toEqual(invalid(/beta1/));
    await expect(run({}, { learningRate: Number.NaN })).rejects.toEqual(invalid(/options.learningRate/));
  });
});
