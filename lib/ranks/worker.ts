// A rank that is not the leader: joins it, does what it is told, and ends when the leader does.
import { connect, type Socket } from "node:net";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { TokenringError } from "../errors.ts";
import type { NativeJob, NativeLossResult, NativeRank, NativeSampleRequest } from "../ops/binding.ts";
import { loadBinding } from "../ops/native.ts";
import { opening } from "../ops/rank.ts";
import { Channel } from "./channel.ts";
import { HEARTBEAT_SILENCE, packageVersion, RENDEZVOUS_WAIT } from "./defaults.ts";
import { introduce } from "./handshake.ts";
import { packLanes } from "./lanes.ts";
import { type CreateOptions, plainError, type ToLeader, type ToWorker } from "./messages.ts";
import { launchedPlace, type Place } from "./place.ts";

/** Which rank a worker is, and how long it waits for the leader. */
export interface WorkerOptions {
  /** Default: as the launcher's environment says (`launchedPlace`). */
  place?: Place;
  /** Milliseconds to wait for the leader (default 600 000); 0: it must be there. */
  wait?: number;
  /** The worker's own launcher wants it to stop: the leader is told, and the worker goes on until that ends. */
  signal?: AbortSignal;
}

/** Milliseconds that native calls get to end by themselves when the ranks cannot go on. */
const GRACE = 3000;
const RETRY = 500;
const ATTEMPT = 10_000;

/**
 * Serves the leader until it ends; resolves when it has said so.
 * @throws ERR_TOKENRING_COMMUNICATOR when the leader turns the worker away or is lost, or when the ranks cannot go on,
 * naming the command that was under way; ERR_TOKENRING_TIMEOUT when no leader came. Native calls that could not be
 * ended may then still run: end the process.
 */
export async function runWorker(options: WorkerOptions = {}): Promise<void> {
  const place = options.place ?? launchedPlace();
  const binding = loadBinding();
  const socket = await reach(place, options.wait ?? RENDEZVOUS_WAIT);
  const channel = new Channel(socket, HEARTBEAT_SILENCE);
  channel.silence = await introduce(channel, place.secret, {
    rank: place.rank,
    size: place.size,
    version: packageVersion(),
    host: hostname(),
    pid: process.pid,
    cores: binding.cores,
    gpus: binding.cuda().devices.length,
    localRank: place.localRank,
  });
  await new Worker(channel, place, options.signal).ended;
}

/** A connection to the leader, which may be started after its workers. */
async function reach({ rank, size, address, port }: Place, wait: number): Promise<Socket> {
  const until = performance.now() + wait;
  for (;;) {
    const left = until - performance.now();
    const outcome = await new Promise<Socket | Error>((resolve) => {
      const socket = connect({ host: address, port, noDelay: true });
      const fail = (error: Error): void => {
        socket.destroy();
        resolve(error);
      };
      socket.once("error", fail);
      socket.setTimeout(ATTEMPT, () => fail(new Error("no answer")));
      socket.once("connect", () => {
        socket.setTimeout(0);
        socket.removeAllListeners();
        resolve(socket);
      });
    });
    if (!(outcome instanceof Error)) return outcome;
    if (left <= 0) {
      throw new TokenringError(
        "ERR_TOKENRING_TIMEOUT",
        `rank ${rank} of ${size}: no leader at ${address}:${port} within ${wait / 1000} s (${outcome.message}); ` +
          "start rank 0, and check MASTER_ADDR, MASTER_PORT and TOKENRING_PORT",
        { cause: outcome },
      );
    }
    await delay(Math.max(0, Math.min(RETRY, left)));
  }
}

/** A native rank of this process, with its sessions by the leader's numbers. */
interface Hosted {
  rank: NativeRank;
  sessions: Map<number, number>;
  /** What bookkeeping failed with: the session's next turn says it. */
  faults: Map<number, unknown>;
}

const done: NativeJob<void> = { promise: Promise.resolve(), abort: () => {} };

class Worker {
  readonly ended: Promise<void>;
  readonly #channel: Channel;
  readonly #who: string;
  readonly #hosted = new Map<number, Hosted>();
  readonly #prepared = new Map<number, Extract<ToWorker, { kind: "prepare" }>>();
  /** Calls under way, with what the leader calls them. */
  readonly #running = new Map<number, { name: string; job: NativeJob<unknown> }>();
  #over = false;
  #settle: { resolve: () => void; reject: (error: Error) => void } = { resolve: () => {}, reject: () => {} };

  constructor(channel: Channel, { rank, size }: Place, signal: AbortSignal | undefined) {
    this.#channel = channel;
    this.#who = `rank ${rank} of ${size}`;
    this.ended = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    const stopping = (): void => this.#send({ kind: "stopping", reason: String(signal?.reason?.message) });
    if (signal?.aborted) stopping();
    signal?.addEventListener("abort", stopping, { once: true });
    this.ended.catch(() => {}).finally(() => signal?.removeEventListener("abort", stopping));
    channel.open(
      (message) => this.#hear(message as ToWorker),
      (why) => this.#fail(`the leader is lost: ${why}`),
    );
  }

  #send(message: ToLeader): void {
    this.#channel.send(message);
  }

  #hear(message: ToWorker): void {
    switch (message.kind) {
      case "prepare":
        this.#prepared.set(message.seq, message);
        this.#send({ kind: "acknowledge", seq: message.seq });
        break;
      case "enter": {
        const prepared = this.#prepared.get(message.seq);
        this.#prepared.delete(message.seq);
        if (prepared) this.#run(message.seq, prepared);
        break;
      }
      case "drop":
        this.#prepared.delete(message.seq);
        break;
      case "call":
        this.#run(message.seq, message);
        break;
      case "note":
        this.#note(message);
        break;
      case "abort":
        this.#running.get(message.seq)?.job.abort();
        break;
      case "break":
        this.#fail(message.reason);
        break;
      case "end":
        void this.#end(null);
    }
  }

  #run(seq: number, call: Extract<ToWorker, { kind: "prepare" | "call" }>): void {
    let job: NativeJob<unknown>;
    try {
      job = this.#start(call);
    } catch (error) {
      this.#send({ kind: "failure", seq, error: plainError(error) });
      return;
    }
    const name = call.kind === "prepare" ? `${call.method} (command #${seq})` : call.method;
    this.#running.set(seq, { name, job });
    job.promise.then(
      (value) => {
        this.#running.delete(seq);
        this.#send({ kind: "result", seq, value });
      },
      (error: unknown) => {
        this.#running.delete(seq);
        this.#send({ kind: "failure", seq, error: plainError(error) });
      },
    );
  }

  #start({
    rank: number,
    method,
    args,
  }: Extract<ToWorker, { kind: "prepare" | "call" }>): NativeJob<unknown> {
    if (method === "create") {
      const options = args[0] as CreateOptions;
      const rank = new (loadBinding().Rank)(options);
      this.#hosted.set(number, { rank, sessions: new Map(), faults: new Map() });
      return opening(rank, options);
    }
    const hosted = this.#hosted.get(number);
    if (!hosted) throw new TokenringError("ERR_TOKENRING_DISPOSED", `${method}: the policy was disposed`);
    if (method === "sampleSession") {
      const [session, request] = args as [number, NativeSampleRequest];
      if (hosted.faults.has(session)) throw hosted.faults.get(session);
      return hosted.rank.sampleSession(hosted.sessions.get(session) as number, request);
    }
    if (method === "dispose") {
      this.#hosted.delete(number);
      return { ...done, promise: hosted.rank.dispose() };
    }
    const start = hosted.rank[method] as (...args: unknown[]) => NativeJob<unknown>;
    const job = start.apply(hosted.rank, args);
    if (method !== "accumulate" && method !== "score") return job;
    return { ...job, promise: (job.promise as Promise<NativeLossResult>).then(packLanes) };
  }

  #note({ rank: number, method, args }: Extract<ToWorker, { kind: "note" }>): void {
    const hosted = this.#hosted.get(number);
    if (!hosted) return;
    const { rank, sessions, faults } = hosted;
    const [id, other] = args as [number, unknown];
    try {
      if (method === "openSession") sessions.set(id, rank.openSession());
      else if (method === "forkSession")
        sessions.set(id, rank.forkSession(sessions.get(other as number) as number));
      else if (method === "extendSession")
        rank.extendSession(sessions.get(id) as number, other as Int32Array);
      else {
        rank.closeSession(sessions.get(id) as number);
        sessions.delete(id);
        faults.delete(id);
      }
    } catch (error) {
      if (!faults.has(id)) faults.set(id, error);
    }
  }

  /** The ranks cannot go on: says what this one was in, and ends. */
  #fail(reason: string): void {
    const collective = [...this.#running].find(([seq]) => seq > 0)?.[1];
    const within = collective ? `, in ${collective.name}` : "";
    void this.#end(new TokenringError("ERR_TOKENRING_COMMUNICATOR", `${this.#who}${within}: ${reason}`));
  }

  async #end(error: TokenringError | null): Promise<void> {
    if (this.#over) return;
    this.#over = true;
    this.#channel.close();
    for (const { job } of this.#running.values()) job.abort();
    const disposals = [...this.#hosted.values()].map(({ rank }) => rank.dispose());
    await Promise.race([Promise.allSettled(disposals), delay(GRACE, undefined, { ref: false })]);
    if (error) this.#settle.reject(error);
    else this.#settle.resolve();
  }
}
