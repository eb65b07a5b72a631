// What a session samples is decided by its tokens, its seed and the weights: not by who else samples, how the tokens
// came there, how much a tick packs, who gives pages to whom, or the number of threads. And the trainer agrees.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import type { Policy } from "../../lib/policy/policy.ts";
import { model, move, policyOf, threads, tries } from "../support/arbitrary.ts";
import { type Played, play, script } from "./play.ts";

/** Pages that a session as long as the context needs. */
const pagesOf = (positions: number): number => Math.ceil(positions / 64);

const concat = ({ before, turn }: Played): Int32Array => Int32Array.of(...before, ...turn.tokens);

/** The turns of one round, each by itself in a session of its own, and in the trainer's eyes. */
async function check(reference: Policy, turns: readonly Played[]): Promise<void> {
  const engine = embeddedEngine(reference);
  for (const { before, how, turn } of turns) {
    using session = engine.open();
    session.extend(before);
    expect(await session.sample(how)).toEqual(turn);
  }
  // A greedy turn has its logprobs at temperature 1.
  const temperatures = new Map<number, Played[]>();
  for (const one of turns) {
    const temperature = one.how.temperature || 1;
    temperatures.set(temperature, [...(temperatures.get(temperature) ?? []), one]);
  }
  for (const [temperature, together] of temperatures) {
    const streams = together.map(concat);
    const batch = {
      tokens: Int32Array.from(streams.flatMap((stream) => [...stream])),
      lengths: Int32Array.from(streams, (stream) => stream.length),
    };
    const { logprob } = await reference.score(batch, { temperature });
    let end = 0;
    for (const [i, { turn }] of together.entries()) {
      end += batch.lengths[i] as number;
      expect(logprob.subarray(end - turn.tokens.length, end)).toEqual(turn.logprobs);
    }
  }
}

describe("the embedded engine", () => {
  it("samples what it would alone, with the trainer's logprobs, in chunked, forked and batched sessions", async () => {
    const cases = fc.record({
      // Sessions reach the limit, and one of that length is all that the smallest pool holds.
      model: model(fc.constantFrom(65, 100, 128, 150, 300)),
      script,
      threads,
      maxBatchTokens: fc.oneof(
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 10, max: 200 }),
        fc.constant(512),
      ),
      // Beyond what the longest session needs; null = as many as wanted.
      spare: fc.option(fc.nat(2), { freq: 3 }),
    });
    await fc.assert(
      fc.asyncProperty(cases, async (c) => {
        const maxPages = c.spare === null ? 0 : pagesOf(c.model.config.max_position_embeddings) + c.spare;
        const { maxBatchTokens } = c;
        await using policy = await policyOf(c.model, { threads: c.threads, maxBatchTokens, maxPages });
        await using reference = await policyOf(c.model, { threads: 1 });
        const played = await play(policy, c.script);
        for (const [index, round] of c.script.rounds.entries()) {
          await check(
            reference,
            played.filter((one) => one.round === index),
          );
          if (round.train) await move(reference, index);
        }
        const usage = await policy.rank.usage().promise;
        expect(usage).toMatchObject({ sessions: 0, pages: 0 });
      }),
      tries(60),
    );
  });
});
