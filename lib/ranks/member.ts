// The leader's end of the channel to one worker: what was asked of it and is not answered yet.
import type { TokenringError } from "../errors.ts";
import type { NativeJob } from "../ops/binding.ts";
import type { Channel } from "./channel.ts";
import type { Claim } from "./handshake.ts";
import {
  type Collective,
  type Note,
  type Single,
  type ToLeader,
  type ToWorker,
  thrownError,
} from "./messages.ts";

/** A promise with its switches; nobody need listen to it. */
interface Awaited<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: unknown) => void;
}

function awaited<T>(): Awaited<T> {
  let switches: Pick<Awaited<T>, "resolve" | "reject"> | undefined;
  const promise = new Promise<T>((resolve, reject) => {
    switches = { resolve, reject };
  });
  promise.catch(() => {});
  return { promise, ...(switches as Pick<Awaited<T>, "resolve" | "reject">) };
}

/** A collective command at one rank. */
export interface Prepared {
  acknowledged: Promise<void>;
  result: Promise<unknown>;
}

export class Member {
  readonly claim: Claim;
  /** "rank 2 (process 4711 on node-3)". */
  readonly name: string;
  readonly #channel: Channel;
  readonly #acknowledgements = new Map<number, Awaited<void>>();
  readonly #results = new Map<number, Awaited<unknown>>();
  #calls = 0;
  #lost: TokenringError | null = null;

  constructor(
    claim: Claim,
    channel: Channel,
    on: { lost: (why: string) => void; stopping: (reason: string) => void },
  ) {
    this.claim = claim;
    this.name = `rank ${claim.rank} (process ${claim.pid} on ${claim.host})`;
    this.#channel = channel;
    channel.hold(false);
    channel.open((message) => {
      const answer = message as ToLeader;
      if (answer.kind === "stopping") on.stopping(answer.reason);
      else this.#answered(answer);
    }, on.lost);
  }

  prepare(seq: number, rank: number, method: Collective, args: unknown[]): Prepared {
    const acknowledged = awaited<void>();
    const result = awaited<unknown>();
    if (this.#lost) {
      acknowledged.reject(this.#lost);
      result.reject(this.#lost);
    } else {
      this.#send({ kind: "prepare", seq, rank, method, args });
      this.#acknowledgements.set(seq, acknowledged);
      this.#results.set(seq, result);
      this.#held();
    }
    return { acknowledged: acknowledged.promise, result: result.promise };
  }

  enter(seq: number): void {
    this.#send({ kind: "enter", seq });
  }

  /** The command will not be entered. */
  drop(seq: number): void {
    this.#send({ kind: "drop", seq });
    this.#acknowledgements.delete(seq);
    this.#results.delete(seq);
    this.#held();
  }

  /** A call that concerns this rank alone. */
  call<T>(rank: number, method: Single, args: unknown[]): NativeJob<T> {
    const result = awaited<unknown>();
    // Below those of the collective commands.
    const seq = -++this.#calls;
    if (this.#lost) result.reject(this.#lost);
    else {
      this.#send({ kind: "call", seq, rank, method, args });
      this.#results.set(seq, result);
      this.#held();
    }
    return { promise: result.promise as Promise<T>, abort: () => this.#send({ kind: "abort", seq }) };
  }

  note(rank: number, method: Note, args: unknown[]): void {
    this.#send({ kind: "note", rank, method, args });
  }

  /** Everything that is not answered yet, and all that is asked from now on, fails with `error`; the worker ends. */
  fail(error: TokenringError): void {
    if (this.#lost) return;
    this.#send({ kind: "break", reason: error.message });
    this.#over(error);
  }

  /** Tells the worker that it is done. */
  end(error: TokenringError): void {
    this.#send({ kind: "end" });
    this.#over(error);
    this.#channel.close();
  }

  #over(error: TokenringError): void {
    this.#lost ??= error;
    for (const one of [...this.#acknowledgements.values(), ...this.#results.values()]) one.reject(error);
    this.#acknowledgements.clear();
    this.#results.clear();
    this.#held();
  }

  #send(message: ToWorker): void {
    if (this.#lost === null) this.#channel.send(message);
  }

  #answered(answer: Exclude<ToLeader, { kind: "stopping" }>): void {
    const { seq } = answer;
    if (answer.kind === "acknowledge") {
      this.#acknowledgements.get(seq)?.resolve();
      this.#acknowledgements.delete(seq);
      return;
    }
    const result = this.#results.get(seq);
    this.#results.delete(seq);
    if (answer.kind === "result") result?.resolve(answer.value);
    else result?.reject(thrownError(answer.error));
    this.#held();
  }

  /** While an answer is awaited, the process is to go on. */
  #held(): void {
    this.#channel.hold(this.#results.size > 0);
  }
}
