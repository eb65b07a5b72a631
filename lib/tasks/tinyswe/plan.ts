// What the tasks of a stream are to be: how hard, and which bugs, so that any run of tasks holds all of it evenly.
import { Random } from "../../random.ts";
import { type FamilyName, KEPT_OUT, TRAINED } from "./families.ts";

/** Where a task comes from; each stream has its own draws, and demonstrations are tasks that are nowhere else. */
export type Stream = "train" | "heldOut" | "heldOutFamily" | "demonstration";

/**
 * How much of the way the issue shows. easy: one bug; the issue names its file and says what is wrong with it.
 * medium: one bug, and one or both of these are left out. hard: two bugs in two files, both told. hardest: two bugs, of
 * which the issue tells the first; the other shows only to who runs the tests.
 */
export type Difficulty = "easy" | "medium" | "hard" | "hardest";

/** Of every 20 tasks in a row, beginning with the first. */
const SHARES: Readonly<Record<Difficulty, number>> = { easy: 6, medium: 7, hard: 4, hardest: 3 };
export const DIFFICULTIES = Object.keys(SHARES) as readonly Difficulty[];
const BLOCK: readonly Difficulty[] = DIFFICULTIES.flatMap((name) => Array(SHARES[name]).fill(name));

export interface Plan {
  difficulty: Difficulty;
  /** The family of each bug. */
  families: readonly FamilyName[];
}

export const bugsOf = (difficulty: Difficulty): 1 | 2 =>
  difficulty === "hard" || difficulty === "hardest" ? 2 : 1;

function blockOf(seed: number, stream: Stream, block: number): readonly Difficulty[] {
  return Random.of(seed, `tinyswe/difficulty/${stream}`, block).shuffle(BLOCK);
}

/** Family of the n-th bug of a difficulty: as many in a row as there are families hold every one once. */
function familyOf(seed: number, stream: Stream, difficulty: Difficulty, bug: number): FamilyName {
  const families = stream === "heldOutFamily" ? KEPT_OUT : TRAINED;
  const [block, place] = [Math.floor(bug / families.length), bug % families.length];
  const order = Random.of(seed, `tinyswe/families/${stream}/${difficulty}`, block).shuffle(families);
  return order[place] as FamilyName;
}

/** The plan of task `index` of a stream: the same whatever other tasks are made. */
export function planOf(seed: number, stream: Stream, index: number): Plan {
  const [block, place] = [Math.floor(index / BLOCK.length), index % BLOCK.length];
  const order = blockOf(seed, stream, block);
  const difficulty = order[place] as Difficulty;
  const before = order.slice(0, place).filter((other) => other === difficulty).length;
  const bugs = bugsOf(difficulty);
  const first = bugs * (block * SHARES[difficulty] + before);
  const families = Array.from({ length: bugs }, (_, i) => familyOf(seed, stream, difficulty, first + i));
  return { difficulty, families };
}
