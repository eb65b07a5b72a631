// An episode seen at smaller budgets than its own. The agent does not know its limits and every draw depends on key and
// position alone, so that what a smaller budget allows is a prefix of the episode: nothing is sampled twice.
import type { Tokenizer } from "../engine/tokenizer-types.ts";
import { parseAction } from "./grammar.ts";
import type { Lanes } from "./stream.ts";
import type { Budget, Episode, Exit, Turn } from "./types.ts";

interface Follower {
  readonly budget: Budget;
  /** Tokens of the whole stream. */
  readonly room: number;
  /** Its last action, where its context ends inside the one under way and the command is the same. */
  cut: Turn | null;
}

/** Where a budget ended. */
interface End {
  exit: Exclude<Exit, "infra_failed">;
  /** Turns, of which the last may be cut. */
  turns: readonly Turn[];
  /** Tokens of the stream. */
  length: number;
  patch: string;
}

/** Follows one episode; `turns` is the episode's own list, which grows. */
export class SmallerBudgets {
  readonly #following: Set<Follower>;
  readonly #budgets: readonly Budget[];
  /** null: what is run there differs, so the prefix says nothing. */
  readonly #ends = new Map<Budget, End | null>();
  readonly #turns: readonly Turn[];
  readonly #tokenizer: Tokenizer;
  readonly #patch: () => Promise<string>;

  /** `patch` is what the working tree holds now; taking it must leave the episode as it is. */
  constructor(options: {
    budgets: readonly Budget[];
    prompt: number;
    contextLimit: number;
    turns: readonly Turn[];
    tokenizer: Tokenizer;
    patch: () => Promise<string>;
  }) {
    const { budgets, prompt, contextLimit } = options;
    this.#budgets = budgets;
    this.#turns = options.turns;
    this.#tokenizer = options.tokenizer;
    this.#patch = options.patch;
    const all = budgets.map((budget) => ({
      budget,
      room: Math.min(budget.maxContext, contextLimit),
      cut: null,
    }));
    this.#following = new Set(all);
    for (const one of all) {
      if (prompt >= one.room) this.#end(one, { exit: "context_limit", turns: [], length: prompt, patch: "" });
    }
  }

  /** After an action was sampled and before its command runs. */
  async sampled(tokens: Int32Array): Promise<void> {
    const turn = this.#turns.at(-1) as Turn;
    const patch = once(this.#patch);
    for (const one of this.#following) {
      const most = one.room - turn.start;
      if (tokens.length <= most) continue;
      const text = this.#tokenizer.decode(tokens.subarray(0, most));
      const { command, error } = parseAction(text);
      one.cut = { ...turn, end: turn.start + most, text, command, formatError: error, finish: "length" };
      if (command === turn.command) continue;
      if (command === null) await this.#endHere(one, patch);
      else this.#end(one, null);
    }
  }

  /** After the command has run; `length` tokens are in the stream and `next` are about to be shown. */
  async ran(length: number, next: number): Promise<void> {
    const patch = once(this.#patch);
    for (const one of this.#following) {
      const over = this.#turns.length >= one.budget.maxTurns || length + next >= one.room;
      if (one.cut || over) await this.#endHere(one, patch);
    }
  }

  /** Each budget with its episode, once the whole one has ended; null where it has to be run by itself. */
  episodes(whole: Episode): { budget: Budget; episode: Episode | null }[] {
    return this.#budgets.map((budget) => {
      const end = this.#ends.get(budget);
      if (end === null) return { budget, episode: null };
      if (end) {
        const { exit, turns, length, patch } = end;
        return { budget, episode: { ...whole, ...lanes(whole, length), exit, turns: [...turns], patch } };
      }
      // It ended as the whole one did, but for an action that is cut.
      const cut = [...this.#following].find((one) => one.budget === budget)?.cut;
      if (!cut) return { budget, episode: whole };
      const turns = [...whole.turns.slice(0, -1), cut];
      return { budget, episode: { ...whole, ...lanes(whole, cut.end), turns } };
    });
  }

  async #endHere(one: Follower, patch: () => Promise<string>): Promise<void> {
    const { budget, cut } = one;
    const last = this.#turns.at(-1) as Turn;
    const shown = cut ?? { ...last, observation: "" };
    this.#end(one, {
      exit: this.#turns.length >= budget.maxTurns ? "turn_limit" : "context_limit",
      turns: [...this.#turns.slice(0, -1), { ...shown, toolMs: last.toolMs }],
      length: shown.end,
      patch: await patch(),
    });
  }

  #end(one: Follower, end: End | null): void {
    this.#following.delete(one);
    this.#ends.set(one.budget, end);
  }
}

function lanes({ tokens, provenance, logprobs }: Lanes, length: number): Lanes {
  return {
    tokens: tokens.subarray(0, length),
    provenance: provenance.subarray(0, length),
    logprobs: logprobs.subarray(0, length),
  };
}

/** Budgets that end at one place share what is taken there. */
function once<T>(take: () => Promise<T>): () => Promise<T> {
  let taken: Promise<T> | undefined;
  return () => {
    taken ??= take();
    return taken;
  };
}
