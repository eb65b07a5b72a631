// Rank 0 waits for the others: it listens, starts workers on this machine where no launcher did, and lets in who belongs.
import { randomBytes } from "node:crypto";
import { createServer, type Server } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { TokenringError } from "../errors.ts";
import { Channel } from "./channel.ts";
import { inTime } from "./deadline.ts";
import { type Claim, welcome } from "./handshake.ts";
import { LocalWorker } from "./launch.ts";
import { Member } from "./member.ts";
import type { Place } from "./place.ts";

export interface GatherOptions {
  /** Rank 0's own. */
  claim: Claim;
  /** Where a launcher started the ranks; null: start them here. */
  place: Place | null;
  /** Milliseconds for all to come, and of silence that is a loss. */
  wait: number;
  silence: number;
  /** A rank was lost, now or at any time later; it has been told nothing. */
  onLost: (member: Member, why: string) => void;
  onStopping: (member: Member, reason: string) => void;
  signal?: AbortSignal;
}

/** Milliseconds for workers to end by themselves, and for the system to say how a child ended. */
const LEAVING = 10_000;
const REPORTING = 500;
/** Strangers that an error tells of. */
const TOLD = 8;

/** What calls of a group that is gone fail with. */
export function disposed(): TokenringError {
  return new TokenringError("ERR_TOKENRING_DISPOSED", "the ranks were disposed");
}

/** The other ranks, in their order. */
export class Gathering {
  readonly #options: GatherOptions;
  readonly #server: Server;
  readonly #secret: string;
  /** By rank; null while it is told that it is in. */
  readonly #came = new Map<number, Member | null>();
  readonly #lost = new Set<number>();
  readonly #refused: string[] = [];
  #workers: LocalWorker[] = [];
  #closed = false;
  #failed: (error: Error) => void = () => {};
  #complete: () => void = () => {};

  constructor(options: GatherOptions) {
    this.#options = options;
    this.#secret = options.place?.secret ?? randomBytes(32).toString("hex");
    this.#server = createServer({ noDelay: true }, (socket) => {
      const channel = new Channel(socket, options.silence);
      const { peer } = channel;
      welcome(channel, this.#secret, (claim) => this.#judge(claim), options.silence).then(
        (claim) => this.#admit(claim, channel),
        (error: Error) => {
          channel.close();
          if (this.#refused.length < TOLD) this.#refused.push(`${peer}: ${error.message}`);
        },
      );
    });
  }

  /** Resolves when all are there. After a failure, `close` ends those that came. */
  async members(): Promise<Member[]> {
    const { wait, signal, place, claim } = this.#options;
    const all = new Promise<void>((resolve, reject) => {
      this.#complete = resolve;
      this.#failed = reject;
    });
    await this.#listen();
    if (place === null) this.#start();
    const late = (): string => {
      const absent = this.#others().filter((rank) => !this.#came.get(rank));
      const away = this.#refused.length > 0 ? `; turned away: ${this.#refused.join("; ")}` : "";
      return `rank ${absent.join(", ")} of ${claim.size} did not come within ${wait / 1000} s${away}`;
    };
    await inTime(all, wait, late, signal);
    // It goes on listening, to say why to those who are too many.
    this.#server.unref();
    return this.#others().map((rank) => this.#came.get(rank) as Member);
  }

  /** What the system says of how a rank's process ended, where it was started here. */
  async howEnded(member: Member): Promise<string | null> {
    const worker = this.#workers.find(({ rank }) => rank === member.claim.rank);
    return worker ? Promise.race([worker.ended, delay(REPORTING, null)]) : null;
  }

  /**
   * Ends the workers, in order; those started here are killed if they take too long. What they were asked and have not
   * answered fails.
   */
  async close(): Promise<void> {
    this.#closed = true;
    for (const member of this.#came.values()) member?.end(disposed());
    this.#server.close();
    for (const worker of this.#workers) worker.hold(true);
    const ended = Promise.all(this.#workers.map((worker) => worker.ended));
    // Those that have not come, or are lost, hear nothing.
    for (const worker of this.#workers)
      if (!this.#came.get(worker.rank) || this.#lost.has(worker.rank)) worker.kill();
    const over = new AbortController();
    await Promise.race([ended, delay(LEAVING, undefined, { signal: over.signal }).catch(() => {})]);
    over.abort();
    for (const worker of this.#workers) worker.kill();
    await ended;
  }

  #others(): number[] {
    return Array.from({ length: this.#options.claim.size - 1 }, (_, i) => i + 1);
  }

  async #listen(): Promise<void> {
    const { place } = this.#options;
    const loopback = place === null || /^(localhost$|127\.|::1$)/.test(place.address);
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause: NodeJS.ErrnoException) => {
        const taken = cause.code === "EADDRINUSE";
        const why = taken
          ? "it is taken: another rank 0 or another program listens there, or a RankGroup of this one, which all its " +
            "policies can be given"
          : cause.message;
        const message = `rank 0 cannot listen at port ${place?.port}: ${why}; end that, or give all ranks another MASTER_PORT or TOKENRING_PORT`;
        reject(new TokenringError("ERR_TOKENRING_COMMUNICATOR", message, { cause }));
      });
      this.#server.listen({ port: place?.port ?? 0, ...(loopback ? { host: "127.0.0.1" } : {}) }, resolve);
    });
  }

  #start(): void {
    const { size } = this.#options.claim;
    const { port } = this.#server.address() as { port: number };
    this.#workers = this.#others().map((rank) => new LocalWorker({ rank, size, port, secret: this.#secret }));
    for (const { rank, ended } of this.#workers) {
      ended.then((how) => {
        const message = `rank ${rank} of ${size} did not start: ${how}`;
        if (!this.#closed) this.#failed(new TokenringError("ERR_TOKENRING_COMMUNICATOR", message));
      });
    }
  }

  /** Why a rank that knows the secret is not wanted; null where it is, and from then on its place is taken. */
  #judge({ rank, size, version }: Claim): string | null {
    const { claim } = this.#options;
    if (version !== claim.version)
      return `it is version ${version}, the leader ${claim.version}; install the same on all`;
    if (size !== claim.size)
      return `its WORLD_SIZE is ${size}, the leader's ${claim.size}; start all with the same`;
    if (!Number.isInteger(rank) || rank < 1 || rank >= size)
      return `there is no rank ${rank} beside the leader`;
    if (this.#came.has(rank)) return `rank ${rank} is there already; give every process a RANK of its own`;
    this.#came.set(rank, null);
    return null;
  }

  #admit(claim: Claim, channel: Channel): void {
    const member: Member = new Member(claim, channel, {
      lost: (why) => {
        const message = `${member.name} of ${claim.size} is lost: ${why}`;
        this.#lost.add(claim.rank);
        this.#failed(new TokenringError("ERR_TOKENRING_COMMUNICATOR", message));
        this.#options.onLost(member, why);
      },
      stopping: (reason) => this.#options.onStopping(member, reason),
    });
    this.#came.set(claim.rank, member);
    if (this.#closed) member.end(disposed());
    else if (this.#came.size === claim.size - 1 && [...this.#came.values()].every(Boolean)) this.#complete();
  }
}
