// What a command says while it works: one line on stderr that is rewritten in place; where stderr is a file, or a terminal
// that cannot or should not be drawn on, a line now and then. Results go to stdout and never through here.

import type { ProgressSink } from "../run/progress.ts";
import { type OutputOptions, showsProgress } from "./options.ts";

/** Between two rewrites on a terminal. */
const REWRITE_MS = 100;
/** Between two lines elsewhere: so long, or this share of the phase's time so far, whatever is longer. */
const LINE_MS = 5_000;
const LINE_SHARE = 0.01;

export interface ProgressOptions {
  /** Default: process.stderr. */
  stream?: NodeJS.WriteStream;
  /** Prints nothing at all. */
  quiet?: boolean;
  /** Default: process.env. TERM=dumb and NO_COLOR ask for plain lines. */
  environment?: NodeJS.ProcessEnv;
}

/** The progress of a command with these options: none under --quiet, and none under --json where nobody is watching. */
export function commandProgress(options: OutputOptions): Progress {
  return new Progress({ quiet: !showsProgress(options) });
}

/** Phases that follow each other, each with a count that rises. Times are wall-clock. */
export class Progress implements ProgressSink {
  readonly #stream: NodeJS.WriteStream;
  readonly #quiet: boolean;
  /** Whether a line can be rewritten in place. */
  readonly #inPlace: boolean;
  #phase: string | undefined;
  #total: number | undefined;
  #started = 0;
  #shown = Number.NEGATIVE_INFINITY;
  #done = 0;
  #note = "";
  /** Whether the terminal's last line is ours to rewrite. */
  #open = false;

  constructor(options: ProgressOptions = {}) {
    this.#stream = options.stream ?? process.stderr;
    this.#quiet = options.quiet ?? false;
    const { TERM, NO_COLOR = "" } = options.environment ?? process.env;
    this.#inPlace = this.#stream.isTTY === true && TERM !== "dumb" && NO_COLOR === "";
  }

  /** Ends the phase before and starts `name`, which counts up to `total` where that is known. */
  phase(name: string, total?: number): void {
    this.#finish();
    this.#phase = name;
    this.#total = total;
    this.#started = performance.now();
    this.#done = 0;
    this.#note = "";
    this.#show(true);
  }

  /** `done` so far in this phase; `note` is a word on how it goes. Cheap: call it as often as there is news. */
  update(done: number, note?: string): void {
    this.#done = done;
    if (note !== undefined) this.#note = note;
    // In a file the phase's last line would stand there twice.
    const complete = this.#total !== undefined && done >= this.#total;
    if (this.#inPlace || !complete) this.#show(false);
  }

  /** A line that stays: above the phase that it falls into, below one that is complete. */
  log(line: string): void {
    if (this.#quiet) return;
    if (this.#total !== undefined && this.#done >= this.#total) this.#finish();
    this.#erase();
    this.#stream.write(`${line}\n`);
    if (this.#inPlace) this.#show(true);
  }

  /** Ends the last phase; the line stays as it is. */
  end(): void {
    this.#finish();
  }

  #finish(): void {
    if (this.#phase !== undefined) {
      const nothingNew = !this.#inPlace && this.#done === 0 && this.#note === "";
      if (!nothingNew) this.#show(true, true);
      if (this.#open) this.#stream.write("\n");
    }
    this.#open = false;
    this.#phase = undefined;
  }

  #show(now: boolean, last = false): void {
    if (this.#quiet || this.#phase === undefined) return;
    const time = performance.now();
    const interval = this.#inPlace ? REWRITE_MS : Math.max(LINE_MS, LINE_SHARE * (time - this.#started));
    if (!now && time - this.#shown < interval) return;
    this.#shown = time;
    const line = describe(
      this.#phase,
      this.#done,
      this.#total,
      (time - this.#started) / 1000,
      this.#note,
      last,
    );
    if (!this.#inPlace) {
      this.#stream.write(`${line}\n`);
      return;
    }
    this.#erase();
    // A line that wraps could not be rewritten; a terminal that says 0 does not know how wide it is.
    this.#stream.write(line.slice(0, Math.max(20, (this.#stream.columns || 80) - 1)));
    this.#open = true;
  }

  #erase(): void {
    if (this.#open) this.#stream.write("\r\x1b[2K");
    this.#open = false;
  }
}

/** "rft: 12/40  3.1/s  9 s left  pass@1 0.40"; a phase that has ended tells its time instead of what is left. */
function describe(
  phase: string,
  done: number,
  total: number | undefined,
  seconds: number,
  note: string,
  ended: boolean,
): string {
  const parts: string[] = [];
  if (total !== undefined) parts.push(`${done}/${total}`);
  else if (done > 0) parts.push(`${done}`);
  const rate = seconds > 0 ? done / seconds : 0;
  if (done > 0 && seconds >= 1)
    parts.push(rate >= 1 ? `${rate.toFixed(1)}/s` : `${(1 / rate).toFixed(1)} s each`);
  if (ended) parts.push(duration(seconds));
  else if (total !== undefined && done > 0 && done < total)
    parts.push(`${duration((total - done) / rate)} left`);
  if (note !== "") parts.push(note);
  return parts.length === 0 ? `${phase} …` : `${phase}: ${parts.join("  ")}`;
}

/** "8 s", "3 min 05 s", "2 h 10 min". */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const two = (value: number) => `${value}`.padStart(2, "0");
  if (whole < 60) return `${seconds < 10 ? seconds.toFixed(1) : whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}
