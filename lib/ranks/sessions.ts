// The sampler's sessions spread over the ranks. On the CPU a session's tokens and logprobs have the same bits wherever
// it is.
import { TokenringError } from "../errors.ts";
import type {
  NativeJob,
  NativeRank,
  NativeSampleRequest,
  NativeSampleResult,
  NativeUsage,
} from "../ops/binding.ts";
import type { RankGroup } from "./group.ts";

interface Place {
  rank: number;
  /** Its number there. */
  id: number;
}

export class SpreadSessions {
  readonly #group: RankGroup;
  readonly #number: number;
  readonly #local: NativeRank;
  readonly #places = new Map<number, Place>();
  /** Open sessions by rank. */
  readonly #open: number[];
  #next = 0;

  /** `number` is that of the native rank in every process; `local` is this process's own. */
  constructor(group: RankGroup, number: number, local: NativeRank) {
    this.#group = group;
    this.#number = number;
    this.#local = local;
    this.#open = Array.from({ length: group.size }, () => 0);
  }

  /** On the rank with the fewest. */
  open(): number {
    const rank = this.#open.indexOf(Math.min(...this.#open));
    return this.#add(rank, (id) => {
      if (rank === 0) return this.#local.openSession();
      this.#group.member(rank).note(this.#number, "openSession", [id]);
      return id;
    });
  }

  /** Beside its parent, with which it shares pages. */
  fork(session: number): number {
    const parent = this.#place(session);
    return this.#add(parent.rank, (id) => {
      if (parent.rank === 0) return this.#local.forkSession(parent.id);
      this.#group.member(parent.rank).note(this.#number, "forkSession", [id, parent.id]);
      return id;
    });
  }

  /** What a worker's rank refuses of the tokens, the session's next turn fails with. */
  extend(session: number, tokens: Int32Array): void {
    const { rank, id } = this.#place(session);
    if (rank === 0) this.#local.extendSession(id, tokens);
    else this.#group.member(rank).note(this.#number, "extendSession", [id, tokens]);
  }

  close(session: number): void {
    const { rank, id } = this.#place(session);
    if (rank === 0) this.#local.closeSession(id);
    else this.#group.member(rank).note(this.#number, "closeSession", [id]);
    this.#places.delete(session);
    this.#open[rank] = (this.#open[rank] as number) - 1;
  }

  sample(session: number, request: NativeSampleRequest): NativeJob<NativeSampleResult> {
    const { rank, id } = this.#place(session);
    const start = (): NativeJob<NativeSampleResult> =>
      rank === 0
        ? this.#local.sampleSession(id, request)
        : this.#group.member(rank).call(this.#number, "sampleSession", [id, request]);
    const entering = this.#group.entering;
    return entering ? after(entering, start) : start();
  }

  usage(): NativeJob<NativeUsage> {
    const jobs = [this.#local.usage()];
    for (let rank = 1; rank < this.#group.size; rank++)
      jobs.push(this.#group.member(rank).call(this.#number, "usage", []));
    const promise = Promise.all(jobs.map((job) => job.promise)).then((all) =>
      all.reduce((a, b) => ({
        sessions: a.sessions + b.sessions,
        pages: a.pages + b.pages,
        prefilled: a.prefilled + b.prefilled,
        decoded: a.decoded + b.decoded,
      })),
    );
    return { promise, abort: () => {} };
  }

  #add(rank: number, open: (id: number) => number): number {
    const session = this.#next++;
    this.#places.set(session, { rank, id: open(session) });
    this.#open[rank] = (this.#open[rank] as number) + 1;
    return session;
  }

  #place(session: number): Place {
    const place = this.#places.get(session);
    if (place) return place;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `there is no session ${session}; it was closed or never opened`,
    );
  }
}

/** A job that starts when the commands before it have been entered, as it would behind them on one rank's queue. */
function after<T>(entered: Promise<void>, start: () => NativeJob<T>): NativeJob<T> {
  let job: NativeJob<T> | null = null;
  let aborted = false;
  const promise = entered.then(() => {
    if (aborted)
      throw new TokenringError("ERR_TOKENRING_ABORTED", "the call was aborted by its caller before it ran");
    job = start();
    return job.promise;
  });
  return {
    promise,
    abort: () => {
      aborted = true;
      job?.abort();
    },
  };
}
