// Scripts of many sessions at once: random ones, and a player that says what every turn read and sampled.
import fc from "fast-check";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import type { SampledTurn, Session } from "../../lib/engine/types.ts";
import type { Policy } from "../../lib/policy/policy.ts";
import { streamKey } from "../../lib/random.ts";
import { makeDocument, move, packed, tokenCount } from "../support/arbitrary.ts";

/** What one session does in a round: reads, then samples a turn beside the others. */
export interface Move {
  /** Which of the sessions that there are and have no move yet in this round; none left means no move. */
  session: number;
  /** Tokens to read, from a text that sessions share (so that they share prefixes) or one of its own. */
  read: number;
  text: number;
  maxTokens: number;
  temperature: number;
  seed: number;
  /** Sampling ends after any of every nth token id; 0 = none. */
  stopEvery: number;
  /** Rounds of the engine thread before the turn begins, and after which it is cancelled. */
  wait: number;
  cancel: number | null;
}

export interface Round {
  /** Sessions to fork first; a fork may be forked by the next. */
  forks: number[];
  moves: Move[];
  /** A document scored while the turns are sampled. */
  score: number | null;
  /** A session to close afterwards. */
  close: number | null;
  /** An optimiser step afterwards. */
  train: boolean;
}

export interface Script {
  sessions: number;
  rounds: Round[];
}

const move_: fc.Arbitrary<Move> = fc.record({
  session: fc.nat(),
  read: fc.oneof(tokenCount(140), fc.integer({ min: 1, max: 12 })),
  text: fc.oneof(fc.constant(0), fc.nat(1000)),
  maxTokens: fc.oneof(
    { weight: 4, arbitrary: fc.integer({ min: 1, max: 30 }) },
    fc.integer({ min: 60, max: 140 }),
  ),
  temperature: fc.constantFrom(1, 1, 0.6, 2, 0),
  seed: fc.nat(),
  stopEvery: fc.constantFrom(0, 0, 40),
  wait: fc.nat(6),
  cancel: fc.option(fc.nat(40), { freq: 4 }),
});

export const script: fc.Arbitrary<Script> = fc.record({
  sessions: fc.integer({ min: 1, max: 4 }),
  rounds: fc.array(
    fc.record({
      forks: fc.array(fc.nat(), { maxLength: 3 }),
      moves: fc.array(move_, { minLength: 1, maxLength: 8 }),
      score: fc.option(fc.nat(), { freq: 2 }),
      close: fc.option(fc.nat(), { freq: 3 }),
      train: fc.constantFrom(true, false, false, false), // drops what is cached
    }),
    { minLength: 1, maxLength: 4 },
  ),
});

/** A turn that came to its end: the tokens before it, how it was asked for, and what came. */
export interface Played {
  round: number;
  before: Int32Array;
  how: { maxTokens: number; temperature: number; seed: bigint; stop: number[] };
  turn: SampledTurn;
}

interface Live {
  session: Session;
  tokens: number[];
}

/** Plays `script`. Throws where a session is not as long as what it read and sampled. */
export async function play(policy: Policy, script: Script): Promise<Played[]> {
  const { vocab_size: vocabulary } = policy.config;
  const engine = embeddedEngine(policy);
  const played: Played[] = [];
  const rounds = async (n: number): Promise<void> => {
    for (let i = 0; i < n; i++) await policy.rank.usage().promise;
  };
  const checkLength = ({ session, tokens }: Live): void => {
    if (session.length === tokens.length) return;
    throw new Error(`a session of ${tokens.length} tokens says that it has ${session.length}`);
  };

  async function take(live: Live, how: Move, round: number): Promise<void> {
    const from = live.tokens.length;
    const count = Math.min(how.read, engine.contextLimit - 1 - from);
    const read = Array.from({ length: count }, (_, i) =>
      Number(streamKey(how.text, "text", from + i) % BigInt(vocabulary)),
    );
    await rounds(how.wait);
    live.session.extend(read);
    live.tokens.push(...read);
    if (live.tokens.length === 0 || live.tokens.length === engine.contextLimit) return;
    const stop = Array.from({ length: vocabulary }, (_, id) => id).filter(
      (id) => how.stopEvery > 0 && id % how.stopEvery === 0,
    );
    const options = { maxTokens: how.maxTokens, temperature: how.temperature, seed: BigInt(how.seed), stop };
    const controller = new AbortController();
    const sampling = live.session.sample({ ...options, signal: controller.signal });
    const cancelling = how.cancel !== null && rounds(how.cancel).then(() => controller.abort());
    const turn = await sampling.catch((error: unknown) => {
      if (!controller.signal.aborted) throw error;
      return null;
    });
    await cancelling;
    if (turn) {
      played.push({ round, before: Int32Array.from(live.tokens), how: options, turn });
      live.tokens.push(...turn.tokens);
    }
    checkLength(live);
  }

  const open: Live[] = Array.from({ length: script.sessions }, () => ({
    session: engine.open(),
    tokens: [],
  }));
  try {
    for (const [index, round] of script.rounds.entries()) {
      for (const fork of round.forks) {
        const parent = open[fork % open.length] as Live;
        open.push({ session: parent.session.fork(), tokens: [...parent.tokens] });
        checkLength(open.at(-1) as Live);
      }
      const idle = [...open];
      const moves = round.moves.flatMap((how) => {
        const [live] = idle.splice(how.session % idle.length, 1);
        return live ? [take(live, how, index)] : [];
      });
      if (round.score !== null) {
        const document = makeDocument(policy.config, round.score, 50);
        moves.push(policy.score(packed([document])).then(() => undefined));
      }
      for (const outcome of await Promise.allSettled(moves)) {
        if (outcome.status === "rejected") throw outcome.reason;
      }
      if (round.close !== null && open.length > 1) {
        for (const { session } of open.splice(round.close % open.length, 1)) session.dispose();
      }
      if (round.train) await move(policy, index);
    }
  } finally {
    for (const { session } of open) session.dispose();
  }
  return played;
}
