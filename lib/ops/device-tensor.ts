// Tensors whose memory is native: allocated here, lent by another program, or exchanged by DLPack.
import { TokenringError } from "../errors.ts";
import type { DLPackCapsule, NativeDeviceTensor } from "./binding.ts";
import { type CallOptions, withSignal } from "./jobs.ts";
import { loadBinding } from "./native.ts";
import { type DType, type HostArray, native, type Tensor } from "./tensor.ts";

/** Where memory lies, and what it holds. */
export interface DeviceTensorOptions {
  /** Default "f32". */
  dtype?: DType;
  /** Default "cpu". "cuda": the first GPU that CUDA shows; refused, with the reason, where none can be used. */
  device?: "cpu" | "cuda";
  /**
   * Calls are ordered on a stream of their own, and all is done when their promises settle: only 0n (default) is taken.
   * What other programs have queued on the memory must be done before a call begins.
   */
  stream?: bigint;
}

/**
 * A tensor in the memory of a device, row-major without gaps. Ops take it where they take an array with a shape. It
 * holds its memory until `dispose()`; calls under way and DLPack capsules keep their share until they are done.
 */
export class DeviceTensor implements Tensor, Disposable {
  /** The native object. */
  readonly data: NativeDeviceTensor;
  /** Where the memory lies. */
  readonly device: "cpu" | "cuda";
  /** The stream whose work on it comes first; 0: none that others must wait for. */
  readonly stream: bigint;
  /** Of its elements. */
  readonly dtype: DType;
  /** Row-major, without gaps. */
  readonly shape: readonly number[];
  /** What a lent pointer belongs to stays alive as long as the tensor does. */
  readonly owner: object | undefined;

  private constructor(data: NativeDeviceTensor, options: DeviceTensorOptions, owner?: object) {
    this.data = data;
    this.device = data.device;
    this.stream = checkStream(options);
    this.dtype = data.dtype;
    this.shape = Object.freeze(data.shape);
    this.owner = owner;
  }

  /**
   * New memory, filled with zeros.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT for a device that cannot be used, with the reason; ERR_TOKENRING_OUT_OF_MEMORY.
   */
  static allocate(shape: readonly number[], options: DeviceTensorOptions = {}): DeviceTensor {
    checkStream(options);
    return new DeviceTensor(create(options, { shape, dtype: options.dtype ?? "f32" }), options);
  }

  /** New memory with a copy of the array; a Float32Array is rounded where the dtype is bf16. */
  static async from(
    array: HostArray,
    shape: readonly number[] = [array.length],
    options: DeviceTensorOptions & CallOptions = {},
  ): Promise<DeviceTensor> {
    const tensor = DeviceTensor.allocate(shape, {
      ...options,
      dtype: options.dtype ?? (native(array).dtype as DType),
    });
    try {
      await tensor.copyFrom(array, options);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  /**
   * Memory that somebody else owns, at an address. It must hold the whole tensor, and live until the tensor is
   * disposed and the calls with it have settled: wrong addresses end the process. `owner` is kept alive until then.
   */
  static wrap(
    pointer: bigint,
    shape: readonly number[],
    options: DeviceTensorOptions & { owner?: object } = {},
  ): DeviceTensor {
    checkStream(options);
    const data = create(options, { shape, dtype: options.dtype ?? "f32", pointer });
    return new DeviceTensor(data, options, options.owner);
  }

  /**
   * Takes over a tensor of another library: a capsule that `toDLPack` of an addon gave, or the address of a
   * DLManagedTensor. Its deleter is called when the memory is no longer needed, on any thread.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT, and the tensor stays with its owner, if it is neither in host memory nor in
   * that of the first GPU, has gaps, more than four dimensions or another dtype, or if the capsule's tensor was taken
   * before.
   */
  static fromDLPack(source: DLPackCapsule | bigint, options: { stream?: bigint } = {}): DeviceTensor {
    checkStream(options);
    return new DeviceTensor(create({}, { dlpack: source }), options);
  }

  /** Address of the first element; valid until `dispose()`. @throws ERR_TOKENRING_DISPOSED */
  get pointer(): bigint {
    return this.data.pointer;
  }

  get disposed(): boolean {
    return this.data.disposed;
  }

  /** Fills the tensor from an array of its dtype, or of float32 if it is bf16 (rounded to nearest even). */
  async copyFrom(array: HostArray, options: CallOptions = {}): Promise<void> {
    await withSignal(() => this.data.write({ array: like(this, array) }), options.signal);
  }

  /** Fills an array of the tensor's dtype, or of float32 if it is bf16. */
  async copyTo(array: HostArray, options: CallOptions = {}): Promise<void> {
    await withSignal(() => this.data.read({ array: like(this, array) }), options.signal);
  }

  /** A capsule for another addon; it shares the memory. If nobody takes the tensor, its share ends with the capsule. */
  toDLPack(): DLPackCapsule {
    return this.data.toDLPack();
  }

  /** The address of a new DLManagedTensor that shares the memory. Whoever takes it must call its deleter once. */
  toDLPackPointer(): bigint {
    return this.data.toDLPackPointer();
  }

  /** Idempotent. Lets go of the memory. */
  dispose(): void {
    this.data.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** bf16 tensors take their own bits, or float32; the array of f16 is a Uint16Array too. */
function like(tensor: DeviceTensor, array: HostArray): Tensor {
  const given = native(array);
  return given.dtype === "bf16" && tensor.dtype === "f16" ? { ...given, dtype: "f16" } : given;
}

function checkStream({ stream = 0n }: { stream?: bigint }): bigint {
  if (stream !== 0n) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `DeviceTensor: stream is ${stream}, but only 0n is taken: calls have a stream of their own; wait for other work first`,
    );
  }
  return stream;
}

function create(options: DeviceTensorOptions, what: object): NativeDeviceTensor {
  return new (loadBinding().DeviceTensor)({ device: options.device ?? "cpu", ...what });
}
