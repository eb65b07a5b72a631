// Ranks that compute together: what torch.distributed and NCCL call a communicator or process group.
import type { NativeCommunicator } from "./binding.ts";
import { type CallOptions, withSignal } from "./jobs.ts";
import { loadBinding } from "./native.ts";
import { native, type TensorLike } from "./tensor.ts";

/** How ranks' elements become one: always in the order of the ranks. */
export type Reduction = "sum" | "max" | "min";

/** A message of a group: `tensor` goes to a rank, or is filled by one. */
export type Transfer = { send: TensorLike; to: number } | { receive: TensorLike; from: number };

/** Who joins which communicator, and how long a wait may take. */
export interface CommunicatorOptions {
  /**
   * Where the ranks compute (default "cpu"): over shared memory, or each on the first GPU that its process sees
   * (`CUDA_VISIBLE_DEVICES`), over NCCL.
   */
  device?: "cpu" | "cuda";
  /** What `Communicator.uniqueId()`, for this device, gave to one of the ranks or to whoever starts them; the same for all. */
  id: Uint8Array;
  /** 0 to size - 1, each taken once. */
  rank: number;
  /** 1 to 64; on GPUs to 4096. */
  size: number;
  /** Milliseconds that a rank waits for the others, in every wait and for all to join (default 600 000). */
  timeout?: number;
}

/**
 * A rank among others: on "cpu" on this host, in threads or processes of one user, over shared memory; on "cuda" on any
 * hosts, each with a GPU, over NCCL 2.18.1 or newer, which is found at run time. There tensors in memory of the host
 * are copied to the GPU and back.
 *
 * All ranks make the same collective calls in the same order; calls of one communicator run one after the other on a
 * thread of their own, and JavaScript never blocks. All ranks get the same bits, run after run: over shared memory sums
 * are taken in the order of the ranks, by NCCL in an order of its own. Between two calls no rank waits for another.
 *
 * Errors: ranks that call something else, with another count or dtype, a rank that left, died or aborted, end the call
 * on every rank with ERR_TOKENRING_COMMUNICATOR; a deadline with ERR_TOKENRING_TIMEOUT, which names the call, its number
 * and who is missing. A call that its signal aborts ends the communicator for all ranks, because the others cannot go
 * on without it. After an error the communicator is broken: dispose it and make another one.
 */
export class Communicator implements AsyncDisposable {
  /** This one's number, from 0. */
  readonly rank: number;
  /** How many ranks there are. */
  readonly size: number;
  /** The native object, for the ops that span ranks. @internal */
  readonly native: NativeCommunicator;

  private constructor(options: CommunicatorOptions) {
    this.rank = options.rank;
    this.size = options.size;
    this.native = new (loadBinding().Communicator)({ timeout: 600_000, ...options });
  }

  /**
   * 128 bytes that name a new communicator; hand them to all its ranks. The process that makes them must live until all
   * have joined, on GPUs as long as the ranks, but need not be a rank itself. On GPUs it listens on a TCP port, where the
   * ranks tell what they call, so that an error can say who is missing.
   */
  static uniqueId(options: { device?: "cpu" | "cuda" } = {}): Uint8Array {
    return loadBinding().uniqueId(options.device ?? "cpu");
  }

  /**
   * 128 bytes as ncclGetUniqueId gives them, for communicators of device "cuda" to which ranks of other programs belong.
   * Nobody compares what such ranks call, and a deadline cannot say who is missing.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT if there is no NCCL, with what to do.
   */
  static ncclUniqueId(): Uint8Array {
    return loadBinding().uniqueId("nccl");
  }

  /**
   * Joins as a rank; resolves when all are there.
   * @throws ERR_TOKENRING_COMMUNICATOR if the rank is taken, another size was said, or the id's process has ended;
   * ERR_TOKENRING_TIMEOUT naming the ranks that did not come.
   */
  static async create(options: CommunicatorOptions & CallOptions): Promise<Communicator> {
    const { signal, ...rest } = options;
    const communicator = new Communicator(rest);
    try {
      await withSignal(() => communicator.native.join(), signal);
    } catch (error) {
      await communicator.dispose();
      throw error;
    }
    return communicator;
  }

  get disposed(): boolean {
    return this.native.disposed;
  }

  /** x, any dtype, of rank `root` to all ranks. */
  async broadcast(x: TensorLike, root: number, options: CallOptions = {}): Promise<void> {
    await withSignal(() => this.native.broadcast(native(x), root), options.signal);
  }

  /** Reduces x over the ranks, in place: f32, bf16 (summed in float32; by NCCL in bf16) or i32. */
  async allReduce(x: TensorLike, options: CallOptions & { reduction?: Reduction } = {}): Promise<void> {
    await withSignal(() => this.native.allReduce(native(x), options.reduction ?? "sum"), options.signal);
  }

  /** `from` holds `size` parts of to's size; `to` becomes the reduction of everybody's part number `rank`. */
  async reduceScatter(
    from: TensorLike,
    to: TensorLike,
    options: CallOptions & { reduction?: Reduction } = {},
  ): Promise<void> {
    const reduction = options.reduction ?? "sum";
    await withSignal(() => this.native.reduceScatter(native(from), native(to), reduction), options.signal);
  }

  /** `to` becomes all ranks' `from`, in the order of the ranks: `size` times as many elements, of the same dtype. */
  async allGather(from: TensorLike, to: TensorLike, options: CallOptions = {}): Promise<void> {
    await withSignal(() => this.native.allGather(native(from), native(to)), options.signal);
  }

  /**
   * Sends and receives as one group: they make progress together, so that rings cannot lock each other. Messages
   * between two ranks arrive in the order they were sent; each needs a receive of the same count and dtype, for which
   * it may wait.
   */
  async exchange(transfers: readonly Transfer[], options: CallOptions = {}): Promise<void> {
    const group = transfers.map((transfer) =>
      "send" in transfer
        ? { send: true, peer: transfer.to, tensor: native(transfer.send) }
        : { send: false, peer: transfer.from, tensor: native(transfer.receive) },
    );
    await withSignal(() => this.native.exchange(group), options.signal);
  }

  /** Sends x, any dtype, to one rank, which must receive as many elements of that dtype. */
  async send(x: TensorLike, to: number, options: CallOptions = {}): Promise<void> {
    await this.exchange([{ send: x, to }], options);
  }

  /** Fills x from one rank, which must send as many elements of that dtype. */
  async receive(x: TensorLike, from: number, options: CallOptions = {}): Promise<void> {
    await this.exchange([{ receive: x, from }], options);
  }

  /** Resolves when all ranks have called it. */
  async barrier(options: CallOptions = {}): Promise<void> {
    await withSignal(() => this.native.barrier(), options.signal);
  }

  /** Ends the communicator on all ranks, at once; their calls fail with this reason. */
  abort(reason: string): void {
    this.native.abort(reason);
  }

  /** Leaves; idempotent. Calls that still run here are aborted. A rank that waits for this one from then on fails. */
  async dispose(): Promise<void> {
    await this.native.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}
