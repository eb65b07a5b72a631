// A group that samples more rollouts than it keeps, and that has a deadline: who stays in it.
import type { Trajectory } from "./types.ts";

/**
 * Gives a group's places to its rollouts in the order of their numbers, whatever finished first: first to those that
 * came to an end of their own, then to those that ran out of time. Those that infrastructure broke get none.
 */
export class Places {
  readonly #places: number;
  readonly #finished: (Trajectory | undefined)[];
  /** Wall-clock time at which the group's time is over. */
  #ends = Number.POSITIVE_INFINITY;

  constructor(places: number, rollouts: number) {
    this.#places = places;
    this.#finished = new Array<undefined>(rollouts).fill(undefined);
  }

  /** An episode begins; the first one starts the group's clock of `ms`. Returns the milliseconds that are left. */
  left(ms: number | undefined): number {
    if (ms === undefined) return Number.POSITIVE_INFINITY;
    const now = performance.now();
    if (this.#ends === Number.POSITIVE_INFINITY) this.#ends = now + ms;
    return Math.max(1, this.#ends - now);
  }

  finish(index: number, trajectory: Trajectory): void {
    this.#finished[index] = trajectory;
  }

  /** Whether no rollout that still runs can change who stays. */
  get decided(): boolean {
    let taken = 0;
    for (const trajectory of this.#finished) {
      if (taken === this.#places) return true;
      if (trajectory === undefined) return false;
      if (ended(trajectory)) taken++;
    }
    return true;
  }

  /** Who stays, in the order of their numbers, who left, and how many were not needed. */
  assign(): { trajectories: Trajectory[]; dropped: Trajectory[]; spared: number } {
    const finished = this.#finished.filter((one) => one !== undefined);
    const dropped = finished.filter((one) => one.exit === "infra_failed");
    const late = finished.filter((one) => one.exit === "timeout");
    const kept = new Set([...finished.filter(ended), ...late].slice(0, this.#places));
    const trajectories = finished.filter((one) => kept.has(one));
    return { trajectories, dropped, spared: this.#finished.length - trajectories.length - dropped.length };
  }
}

function ended({ exit }: Trajectory): boolean {
  return exit !== "infra_failed" && exit !== "timeout";
}
