// Checkpoints between two stages: the weights are copied, and written while the job goes on.
import type { RunDirectory } from "./directory.ts";
import type { JobProgress } from "./job-progress.ts";

/** Of the time between two checkpoints of steps, at most this share goes into saving. */
const SAVING_SHARE = 0.01;

export class RollingCheckpoints {
  readonly #run: RunDirectory;
  /** Takes its copy, or its place in the policy's queue, before it returns. */
  readonly #write: (directory: string) => Promise<void>;
  #saving: Promise<void> | null = null;
  #savedAt = performance.now();
  #savingMs = 0;

  constructor(run: RunDirectory, write: (directory: string) => Promise<void>) {
    this.#run = run;
    this.#write = write;
  }

  /** Whether the last save, if it is done, is long enough ago. */
  due(seconds: number): boolean {
    const since = performance.now() - this.#savedAt;
    return this.#saving === null && since >= Math.max(1000 * seconds, this.#savingMs / SAVING_SHARE);
  }

  /** Waits for the one that is being written, if there is one, and throws what it failed with. */
  async settled(): Promise<void> {
    try {
      await this.#saving;
    } finally {
      this.#saving = null;
    }
  }

  /**
   * Saves the weights as they are now, and the progress that belongs to them. Returns when they have been copied, or will
   * be before the policy's next step.
   */
  async save(stage: string, at: number, progress: JobProgress): Promise<void> {
    const begin = performance.now();
    const now = structuredClone(progress);
    await this.settled();
    const logs = await this.#run.mark();
    let copying = (): void => {};
    const begun = new Promise<void>((resolve) => {
      copying = resolve;
    });
    const save = async (): Promise<void> => {
      const name = await this.#run.saveRolling(stage, `${at}`, (to) => {
        const written = this.#write(to);
        copying();
        return written;
      });
      await this.#run.saveProgress(now, name, logs);
      this.#savedAt = performance.now();
      this.#savingMs = this.#savedAt - begin;
      this.#saving = null;
    };
    const saving = save();
    this.#saving = saving;
    saving.catch(() => {}); // settled() throws it
    await Promise.race([begun, saving]);
  }
}
