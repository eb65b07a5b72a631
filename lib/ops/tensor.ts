// What every op takes: elements of one dtype in row-major order, in an array of JavaScript or in native memory.
import { TokenringError } from "../errors.ts";
import type { NativeDeviceTensor, NativeTensor } from "./binding.ts";

/** How elements are stored. JavaScript has no arithmetic on bf16 and f16: arrays hold their bits. */
export type DType = NativeTensor["dtype"];

/** The arrays that hold them: f32 in a Float32Array, i32 in an Int32Array, bf16 and f16 in a Uint16Array, u8 in a Uint8Array. */
export type HostArray = Float32Array | Int32Array | Uint16Array | Uint8Array;

/**
 * Elements with a dtype and a shape, row-major without gaps, at most four dimensions. An object of your own with these
 * three fields will do; `hostTensor` makes one and checks it, and `DeviceTensor` is one whose memory is native.
 */
export interface Tensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: HostArray | NativeDeviceTensor;
}

/** What ops take where they need a tensor: a bare array is a vector. */
export type TensorLike = Tensor | HostArray;

function dtypeOf(data: HostArray): DType {
  if (data instanceof Float32Array) return "f32";
  if (data instanceof Int32Array) return "i32";
  if (data instanceof Uint8Array) return "u8";
  return "bf16";
}

function isArray(value: TensorLike): value is HostArray {
  return ArrayBuffer.isView(value);
}

/**
 * A typed array with a shape; shares the array's memory. A Uint16Array holds bf16 unless `dtype` says f16.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT if the shape has another number of elements than the array.
 */
export function hostTensor(
  data: HostArray,
  shape: readonly number[] = [data.length],
  dtype: DType = dtypeOf(data),
): Tensor & { readonly data: HostArray } {
  const elements = shape.reduce((product, size) => product * size, 1);
  if (elements !== data.length) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `hostTensor: shape [${shape.join(", ")}] has ${elements} elements, the array ${data.length}`,
    );
  }
  return Object.freeze({ dtype, shape: Object.freeze([...shape]), data });
}

/** As the addon reads it. @internal */
export function native(tensor: TensorLike): NativeTensor {
  return (isArray(tensor) ? hostTensor(tensor) : tensor) as NativeTensor;
}

/** The sizes of a tensor, of which it must have `rank`; `what` names it. @internal */
export function shapeOf(tensor: TensorLike, rank: number, what: string): readonly number[] {
  const { shape, dtype } = native(tensor);
  if (shape.length !== rank) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${what} is ${dtype} [${shape.join(", ")}], must have ${rank} dimensions`,
    );
  }
  return shape;
}
