// What a long job tells whoever watches it. The command draws it as one line; tests and embedders may ignore it.

/** Whom a long job tells how far it is. */
export interface ProgressSink {
  /** A new piece of work begins; `total` is the number of units that `update` counts, if known. */
  phase(name: string, total?: number): void;
  update(done: number, note?: string): void;
  /** A line that stays. */
  log(line: string): void;
}

export const silent: ProgressSink = {
  phase() {},
  update() {},
  log() {},
};
