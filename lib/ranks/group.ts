// The ranks that compute together, as rank 0 sees them: commands that all enter, or none.
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { isTokenringError, TokenringError } from "../errors.ts";
import type { NativeJob } from "../ops/binding.ts";
import { loadBinding } from "../ops/native.ts";
import { inTime } from "./deadline.ts";
import { COLLECTIVE_TIMEOUT, HEARTBEAT_SILENCE, packageVersion, RENDEZVOUS_WAIT } from "./defaults.ts";
import { disposed, Gathering } from "./gather.ts";
import type { Claim } from "./handshake.ts";
import type { Member, Prepared } from "./member.ts";
import type { Collective } from "./messages.ts";
import { launchedPlace, launchedRank, launchedRanks } from "./place.ts";

/** How many ranks come together, and how long they wait for each other. */
export interface RankGroupOptions {
  /** Ranks, this one included. Default: as many as a launcher started (WORLD_SIZE), else 1. */
  size?: number;
  /** Milliseconds for all ranks to come (default 600 000). */
  wait?: number;
  /** Milliseconds that a rank waits for the others in one collective (default 600 000). */
  timeout?: number;
  /** Milliseconds of silence, heartbeats included, after which a rank is held for lost (default 15 000). */
  silence?: number;
  signal?: AbortSignal;
}

/** A call that all ranks make of their native rank number `rank`; `local` makes it on this one. */
export interface Command<T> {
  rank: number;
  method: Collective;
  args: (rank: number) => unknown[];
  local: () => NativeJob<T>;
  /** Asked when the commands before it have been entered: an error keeps this one from being. */
  refuse?: () => TokenringError | null;
}

/** Where one of these fails on some ranks alone, they are no longer alike. */
const CHANGING: ReadonlySet<Collective> = new Set<Collective>([
  "create",
  "join",
  "initialise",
  "accumulate",
  "optimise",
  "dropGradients",
  "resetOptimiser",
  "load",
]);

/**
 * Rank 0's view of its group. Where a launcher started the ranks (RANK and WORLD_SIZE are set), it waits for them;
 * otherwise it starts `size - 1` workers on this machine, which end with it.
 *
 * A rank that ends, is silent, or fails alone breaks the group for good: every call, under way or later, fails with
 * ERR_TOKENRING_COMMUNICATOR (ERR_TOKENRING_TIMEOUT for a deadline), which names the command, its number and who is
 * missing, and the workers end with the same words.
 */
export class RankGroup implements AsyncDisposable {
  /** Ranks, this one included. */
  readonly size: number;
  /** Milliseconds that a rank waits for the others in one collective. */
  readonly timeout: number;
  readonly #claim: Claim;
  readonly #silence: number;
  #gathering: Gathering | null = null;
  #members: readonly Member[] = [];
  #commands = 0;
  #ranks = 0;
  /** Commands enter one after the other. */
  #turn: Promise<void> = Promise.resolve();
  #entering = 0;
  readonly #local = new Set<NativeJob<unknown>>();
  #broken: TokenringError | null = null;
  readonly #whenBroken: Promise<never>;
  #break: (error: TokenringError) => void = () => {};
  readonly #stopping = new AbortController();
  #closing: Promise<void> | null = null;

  private constructor(size: number, localRank: number, options: RankGroupOptions) {
    this.size = size;
    this.timeout = options.timeout ?? COLLECTIVE_TIMEOUT;
    this.#silence = options.silence ?? HEARTBEAT_SILENCE;
    this.#claim = {
      rank: 0,
      size,
      version: packageVersion(),
      host: hostname(),
      pid: process.pid,
      cores: loadBinding().cores,
      gpus: loadBinding().cuda().devices.length,
      localRank,
    };
    this.#whenBroken = new Promise((_, reject) => {
      this.#break = reject;
    });
    this.#whenBroken.catch(() => {});
  }

  /**
   * Resolves when all ranks are there.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT for a size that is not what the launcher started, or on a rank that is not 0;
   * ERR_TOKENRING_COMMUNICATOR where the port is taken or a worker did not start; ERR_TOKENRING_TIMEOUT naming the
   * ranks that did not come, and who was turned away.
   */
  static async open(options: RankGroupOptions = {}): Promise<RankGroup> {
    const launched = launchedRanks();
    const size = options.size ?? launched;
    const refuse = (message: string): never => {
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
    };
    if (!Number.isInteger(size) || size < 1) refuse(`ranks: ${size} is no number of ranks; give 1 or more`);
    if (launched > 1 && size !== launched)
      refuse(
        `ranks: ${size}, but the launcher started ${launched} (WORLD_SIZE); give the same number, or none`,
      );
    const rank = launchedRank();
    if (rank > 0)
      refuse(`this is rank ${rank} of ${size}: programs run on rank 0; start \`tokenring worker\` here`);
    const place = launched > 1 ? launchedPlace() : null;
    const group = new RankGroup(size, place?.localRank ?? 0, options);
    if (size === 1) return group;
    group.#gathering = new Gathering({
      claim: group.#claim,
      place,
      wait: options.wait ?? RENDEZVOUS_WAIT,
      silence: group.#silence,
      onLost: (member, why) => void group.#lost(member, why),
      onStopping: ({ name }, reason) =>
        group.#stopping.abort(new TokenringError("ERR_TOKENRING_ABORTED", `${name}: ${reason}`)),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    try {
      group.#members = await group.#gathering.members();
    } catch (error) {
      await group.dispose();
      throw error;
    }
    return group;
  }

  /** Fires when a worker's launcher wants that to stop; the reason is an ERR_TOKENRING_ABORTED. */
  get stopping(): AbortSignal {
    return this.#stopping.signal;
  }

  /** The other ranks, in their order. */
  get workers(): readonly { rank: number; pid: number; host: string }[] {
    return this.#members.map(({ claim: { rank, pid, host } }) => ({ rank, pid, host }));
  }

  get disposed(): boolean {
    return this.#closing !== null;
  }

  /** Rank 1 and up. */
  member(rank: number): Member {
    return this.#members[rank - 1] as Member;
  }

  /** A number for a native rank that every process is to have. */
  nextRank(): number {
    return this.#ranks++;
  }

  /** Settles when the commands given so far have been entered; null when they have. */
  get entering(): Promise<void> | null {
    return this.#entering > 0 ? this.#turn : null;
  }

  /** Which of the GPUs that it sees is a rank's, how many ranks its host has, and its CPU cores. */
  host(rank: number): { gpu: number; ranks: number; cores: number } {
    const claims = [this.#claim, ...this.#members.map((member) => member.claim)];
    const { host, cores, gpus, localRank } = claims[rank] as Claim;
    // Some launchers show each process its own GPU alone.
    const gpu = localRank < gpus ? localRank : 0;
    return { gpu, ranks: claims.filter((one) => one.host === host).length, cores };
  }

  /**
   * Sends a command to all ranks, waits until all have acknowledged it, and only then lets them enter it, in the order
   * of the calls. Gives what each rank gave, in the order of the ranks. An abort keeps a command from being entered;
   * one that was entered is completed in any case, and its results are dropped, so that the ranks stay together.
   */
  collective<T>(command: Command<T>): NativeJob<T[]> {
    const seq = ++this.#commands;
    const name = `${command.method} (command #${seq})`;
    let reject: (error: TokenringError) => void = () => {};
    const aborted = new Promise<never>((_, how) => {
      reject = how;
    });
    aborted.catch(() => {});
    const state = { dropped: false };
    const work = this.#work(seq, name, command, state);
    work.catch(() => {});
    return {
      promise: Promise.race([work, aborted]),
      abort: () => {
        state.dropped = true;
        reject(abortedBy(name));
      },
    };
  }

  async #work<T>(seq: number, name: string, command: Command<T>, state: { dropped: boolean }): Promise<T[]> {
    this.#live(name);
    const prepared: Prepared[] = [];
    try {
      for (const member of this.#members) {
        const args = command.args(member.claim.rank);
        prepared.push(member.prepare(seq, command.rank, command.method, args));
      }
    } catch (error) {
      for (const member of this.#members.slice(0, prepared.length)) member.drop(seq);
      throw error;
    }
    const entry = this.#turn.then(() => this.#enter(seq, name, command, prepared, state));
    this.#entering++;
    const over = (): void => {
      this.#entering--;
    };
    this.#turn = entry.then(over, over);
    return this.#settled(name, command.method, await entry, prepared);
  }

  /** Waits for the acknowledgements, then makes all ranks enter. */
  async #enter<T>(
    seq: number,
    name: string,
    command: Command<T>,
    prepared: readonly Prepared[],
    state: { dropped: boolean },
  ): Promise<NativeJob<T>> {
    const missing = new Set(this.#members);
    const each = prepared.map(async ({ acknowledged }, i) => {
      await acknowledged;
      missing.delete(this.#members[i] as Member);
    });
    const all = Promise.race([Promise.all(each), this.#whenBroken]);
    const late = (): string =>
      `${names(missing)} did not acknowledge ${name} within ${this.timeout / 1000} s`;
    try {
      await inTime(all, this.timeout, late);
    } catch (error) {
      this.#breakUp(error as TokenringError);
      throw this.#named(name);
    }
    const refusal = state.dropped ? abortedBy(name) : (command.refuse?.() ?? null);
    if (refusal) {
      for (const member of this.#members) member.drop(seq);
      throw refusal;
    }
    for (const member of this.#members) member.enter(seq);
    try {
      const job = command.local();
      const over = (): void => void this.#local.delete(job);
      this.#local.add(job);
      job.promise.then(over, over);
      return job;
    } catch (error) {
      const failed = Promise.reject(error);
      failed.catch(() => {});
      return { promise: failed, abort: () => {} };
    }
  }

  /** The results of all ranks, or the failure that came first. */
  async #settled<T>(
    name: string,
    method: Collective,
    job: NativeJob<T>,
    prepared: readonly Prepared[],
  ): Promise<T[]> {
    const results = [job.promise, ...prepared.map(({ result }) => result as Promise<T>)];
    const pending = new Set(results.keys());
    const over = new AbortController();
    const give = (milliseconds: number, error: (late: string) => TokenringError): void => {
      const breaks = (): void =>
        this.#breakUp(error([...pending].map((rank) => this.#name(rank)).join(", ")));
      delay(milliseconds, undefined, { signal: over.signal, ref: false }).then(breaks, () => {});
    };
    results.forEach((result, rank) => {
      const finished = (): void => {
        pending.delete(rank);
        if (pending.size !== results.length - 1) return;
        // The first is done: the others have a deadline.
        const after = `within ${this.timeout / 1000} s of ${this.#name(rank)}`;
        give(
          this.timeout,
          (late) => new TokenringError("ERR_TOKENRING_TIMEOUT", `${late} did not finish ${after}`),
        );
      };
      result.then(finished, (error: Error) => {
        pending.delete(rank);
        // The others fail alike, or wait for one that will not come.
        const what = `${this.#name(rank)} failed: ${error.message}`;
        give(
          this.#silence,
          (late) =>
            new TokenringError("ERR_TOKENRING_COMMUNICATOR", `${what}; ${late} did not`, { cause: error }),
        );
      });
    });
    try {
      return this.#judged(name, method, await Promise.race([Promise.allSettled(results), this.#whenBroken]));
    } catch (error) {
      throw error === this.#broken ? this.#named(name) : error;
    } finally {
      over.abort();
    }
  }

  #judged<T>(name: string, method: Collective, outcomes: readonly PromiseSettledResult<T>[]): T[] {
    const failed = outcomes.flatMap((outcome, rank) =>
      outcome.status === "rejected" ? [{ rank, error: outcome.reason as Error }] : [],
    );
    const first = failed.find(({ error }) => !follows(error)) ?? failed[0];
    if (first === undefined) return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<T>).value);
    const { rank, error } = first;
    const alike = failed.length === outcomes.length && !failed.some((one) => follows(one.error));
    if (alike && rank === 0) throw error;
    const code = isTokenringError(error) ? error.code : "ERR_TOKENRING_INTERNAL";
    const said = new TokenringError(code, `${name}: ${this.#name(rank)}: ${error.message}`, {
      cause: error,
      details: { ...(isTokenringError(error) ? error.details : {}), rank },
    });
    if (!alike && CHANGING.has(method)) this.#breakUp(said);
    throw said;
  }

  /** Idempotent. Tells the workers to end, and waits for those that were started here. Calls under way fail. */
  dispose(): Promise<void> {
    if (this.#closing === null) {
      this.#broken ??= disposed();
      this.#break(this.#broken);
      for (const job of this.#local) job.abort();
      this.#closing = this.#gathering?.close() ?? Promise.resolve();
    }
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }

  #name(rank: number): string {
    return rank === 0 ? "rank 0" : this.member(rank).name;
  }

  #live(name: string): void {
    if (this.#broken !== null) throw this.#named(name);
  }

  /** What broke the group, as the reason why the command failed. */
  #named(name: string): TokenringError {
    const { code, message, details } = this.#broken as TokenringError;
    return new TokenringError(code, `${name}: ${message}`, {
      cause: this.#broken,
      details: { ...details, command: name },
    });
  }

  async #lost(member: Member, why: string): Promise<void> {
    if (this.#closing !== null) return;
    const how = (await this.#gathering?.howEnded(member)) ?? why;
    const message = `${member.name} of ${this.size} is lost: ${how}`;
    this.#breakUp(
      new TokenringError("ERR_TOKENRING_COMMUNICATOR", message, { details: { rank: member.claim.rank } }),
    );
  }

  #breakUp(error: TokenringError): void {
    if (this.#broken !== null || this.#closing !== null) return;
    this.#broken = error;
    this.#break(error);
    for (const member of this.#members) member.fail(error);
    // Their collectives would wait for those that do not come.
    for (const job of this.#local) job.abort();
  }
}

function abortedBy(name: string): TokenringError {
  return new TokenringError("ERR_TOKENRING_ABORTED", `${name} was aborted by its caller`);
}

function names(members: Iterable<Member>): string {
  return [...members].map((member) => member.name).join(", ");
}

/** Whether a rank says so of another, which it waited for. */
function follows(error: Error): boolean {
  return (["COMMUNICATOR", "TIMEOUT", "ABORTED"] as const).some((code) =>
    isTokenringError(error, `ERR_TOKENRING_${code}`),
  );
}
