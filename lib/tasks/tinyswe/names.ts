// Names of the tiny world: two consonant-vowel syllables, so that a tokenizer with 70 syllable tokens writes every
// name as the same two tokens, whatever stands before it.
import type { Random } from "../../random.ts";

export type Split = "train" | "heldOut";

const CONSONANTS = "bdfgklmnprstvz";
const VOWELS = "aeiou";

/** The 70 syllables, consonant by consonant. */
export const SYLLABLES: readonly string[] = [...CONSONANTS].flatMap((c) => [...VOWELS].map((v) => c + v));

// Words that mean something to Python, to the shell or to a reader.
const TAKEN = new Set(
  "site time file line name repo date make more node size none dago dike kike nazi pedo puta puto rape".split(
    " ",
  ),
);

/**
 * Which split the name of syllables `first`, `second` (indices into SYLLABLES) belongs to: one residue in five of a
 * sum over both letters of both syllables, so that every syllable occurs in both splits and at both places.
 */
function reserved(first: number, second: number): boolean {
  const [c1, v1, c2, v2] = [Math.floor(first / 5), first % 5, Math.floor(second / 5), second % 5];
  return (c1 + 2 * c2 + v1 + 3 * v2) % 5 === 0;
}

/** Whether `name` is a name of the given split. */
export function belongsTo(split: Split, name: string): boolean {
  const first = SYLLABLES.indexOf(name.slice(0, 2));
  const second = SYLLABLES.indexOf(name.slice(2));
  if (first < 0 || second < 0 || first === second || TAKEN.has(name)) return false;
  return reserved(first, second) === (split === "heldOut");
}

/** All names of a split, in a fixed order. */
export function namesOf(split: Split): string[] {
  return SYLLABLES.flatMap((a) => SYLLABLES.map((b) => a + b)).filter((name) => belongsTo(split, name));
}

const NAMES: Record<Split, readonly string[]> = { train: namesOf("train"), heldOut: namesOf("heldOut") };

/** Draws names of one split, none twice. */
export function nameSource(split: Split, random: Random): () => string {
  const used = new Set<string>();
  return () => {
    let name = random.pick(NAMES[split]);
    while (used.has(name)) name = random.pick(NAMES[split]);
    used.add(name);
    return name;
  };
}
