// Verdicts by what was judged: many rollouts of an instance propose the same patch, and tests say the same each time.
import type { Verification } from "../verify/types.ts";

export type Judgement = Pick<Verification, "verdict" | "reason" | "failToPass" | "passToPass">;

/** Remembers finished judgements and shares those under way. A broken sandbox's "verdict" is never kept. */
export class VerdictCache {
  readonly #entries = new Map<string, Promise<Judgement>>();
  readonly #capacity: number;

  constructor(capacity = 20_000) {
    this.#capacity = capacity;
  }

  /** The judgement of a patch, from `judge` if it is not known. A rejection is not kept. */
  async of(instanceId: string, patch: string, judge: () => Promise<Judgement>): Promise<Judgement> {
    const key = `${instanceId}\n${patch}`;
    const known = this.#entries.get(key);
    if (known) return await known;
    // Without the log.
    const judged = judge().then(({ verdict, reason, failToPass, passToPass }) => ({
      verdict,
      reason,
      failToPass,
      passToPass,
    }));
    this.#entries.set(key, judged);
    if (this.#entries.size > this.#capacity) {
      const [oldest] = this.#entries.keys();
      this.#entries.delete(oldest as string);
    }
    const forget = (): void => {
      if (this.#entries.get(key) === judged) this.#entries.delete(key);
    };
    try {
      const judgement = await judged;
      if (judgement.reason === "infra_failed" || judgement.reason === "timeout") forget();
      return judgement;
    } catch (error) {
      forget();
      throw error;
    }
  }
}
