// Long work in JavaScript in slices, so that signals, timers and other episodes get their turns of the event loop.
import { setImmediate as eventLoopTurn } from "node:timers/promises";

/** What one slice may take; the next call of `turn` waits. */
const SLICE_MS = 10;

let began = performance.now();

/**
 * Resolves at once while the slice lasts that all callers share, else after a turn of the event loop in which there is
 * room. Call it before each piece of work that takes a millisecond or more and never waits.
 */
export async function turn(): Promise<void> {
  if (performance.now() - began < SLICE_MS) return;
  for (;;) {
    const asked = began;
    await eventLoopTurn();
    // The first of those that wait begins the next slice; who finds it used up waits on.
    if (began === asked) began = performance.now();
    if (performance.now() - began < SLICE_MS) return;
  }
}
