// Wall seconds of a stage by what they were spent on.
import type { StageSeconds } from "../learn/events.ts";

type Station = keyof Omit<StageSeconds, "other">;

/** A clock that another process can go on with: give it what `spent` and `all` said there. */
export class Stations {
  readonly #began: number;
  #mark = performance.now();
  readonly #spent = new Map<Station, number>();

  constructor(before?: { all: number; spent: Readonly<Record<string, number>> }) {
    this.#began = performance.now() - 1000 * (before?.all ?? 0);
    for (const [station, seconds] of Object.entries(before?.spent ?? {}))
      this.add(station as Station, seconds);
  }

  add(station: Station, seconds: number): void {
    this.#spent.set(station, (this.#spent.get(station) ?? 0) + seconds);
  }

  /** Adds the time since the lap before to `station`; without one it is left for "other", or was counted elsewhere. */
  lap(station?: Station): void {
    const now = performance.now();
    if (station) this.add(station, (now - this.#mark) / 1000);
    this.#mark = now;
  }

  async time<T>(station: Station, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    try {
      return await work();
    } finally {
      this.add(station, (performance.now() - begin) / 1000);
    }
  }

  /** Seconds since the stage began, interruptions left out. */
  get all(): number {
    return (performance.now() - this.#began) / 1000;
  }

  get spent(): Record<string, number> {
    return Object.fromEntries(this.#spent);
  }

  total(): StageSeconds {
    const of = (station: Station): number => this.#spent.get(station) ?? 0;
    const [score, checkpoints] = [of("score"), of("checkpoints")];
    const known = [...this.#spent.values()].reduce((sum, seconds) => sum + seconds, 0);
    return {
      rollouts: of("rollouts"),
      ...(score > 0 && { score }),
      learn: of("learn"),
      evaluate: of("evaluate"),
      ...(checkpoints > 0 && { checkpoints }),
      other: Math.max(0, this.all - known),
    };
  }
}
