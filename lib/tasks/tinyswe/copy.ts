// Copy warm-up: text whose only pattern is that it repeats. A small decoder learns induction from it within half a
// million tokens, which it does not from demonstrations alone.
import type { Random } from "../../random.ts";
import { SYLLABLES } from "./names.ts";

const SHORTEST = 4;
/** Syllables of the longest string: from this place on everything is a repetition. */
export const COPY_LONGEST = 24;

/** `length` syllables: a random string of 4 to 24 of them, again and again. Each is one token of the demo's tokenizer. */
export function copySequence(random: Random, length: number): string {
  const period = SHORTEST + random.below(COPY_LONGEST - SHORTEST + 1);
  const unit = Array.from({ length: period }, () => random.pick(SYLLABLES));
  return Array.from({ length }, (_, i) => unit[i % period]).join("");
}
