// The kinds of bug. Each family draws a small function, the one line that a bug changes, wrong ways to mend it, and
// arguments to call it with.
import type { Random } from "../../random.ts";
import {
  type Arithmetic,
  assigns,
  binary,
  type Comparison,
  choice,
  type Expression,
  index,
  type Line,
  literal,
  not,
  type Parameter,
  returns,
  type Value,
  variable,
} from "./language.ts";

/** A function as a family draws it. `lines[at]` is the correct line that the bug replaces by `buggy`. */
export interface Draft {
  lines: Line[];
  at: number;
  buggy: Line;
  /** Plausible repairs that are not one; some may turn out equivalent and are dropped by whoever checks. */
  wrong: Line[];
  /** Draws arguments of one call. */
  draw: () => Value[];
  /** What an issue may say about the repair. */
  hint: string;
}

export interface Family {
  /** What a programmer says who sees the bug. */
  thought: string;
  /** Lines of the function, its head included. */
  length: number;
  draft: (world: World) => Draft;
}

/** What a family draws from. */
export interface World {
  random: Random;
  /** A fresh two-syllable name: functions, strings, keys. */
  name: () => string;
}

const LETTERS = [..."abckmnpqrsuvwyz"];
const digit = (random: Random, from = 0): number => from + random.below(10 - from);

/** Distinct letters for parameters and variables. */
function letters(random: Random, count: number): string[] {
  return random.shuffle(LETTERS).slice(0, count);
}

function head(name: string, parameters: readonly (string | Parameter)[]): Line {
  return {
    kind: "def",
    depth: 0,
    name,
    parameters: parameters.map((p) => (typeof p === "string" ? { name: p } : p)),
  };
}

/** Integers up to nine, all different, so that an order or an index shows. */
function differing(random: Random, count: number): number[] {
  return random.shuffle([1, 2, 3, 4, 5, 6, 7, 8, 9]).slice(0, count);
}

const flags = (random: Random, count: number): boolean[] =>
  Array.from({ length: count }, () => random.chance(0.5));

const OPERATORS: readonly Arithmetic[] = ["+", "-", "*"];
const OPERATOR_HINT: Record<Arithmetic, string> = {
  "+": "It should add.",
  "-": "It should subtract.",
  "*": "It should multiply.",
};

function arithmetic({ random, name }: World): Draft {
  const [p, q] = letters(random, 2).map(variable) as [Expression, Expression];
  const right = random.chance(0.3) ? literal(digit(random, 2)) : q;
  const [good, bad, other] = random.shuffle(OPERATORS) as [Arithmetic, Arithmetic, Arithmetic];
  const parameters = [p, ...(right === q ? [q] : [])].map((v) => (v as { name: string }).name);
  return {
    lines: [head(name(), parameters), returns(binary(p, good, right))],
    at: 1,
    buggy: returns(binary(p, bad, right)),
    wrong: [returns(binary(p, other, right))],
    draw: () => differing(random, parameters.length),
    hint: OPERATOR_HINT[good],
  };
}

// A comparison and the mistakes that people make in its place.
const MISTAKEN: Record<Comparison, readonly Comparison[]> = {
  "<": [">", "<=", ">="],
  "<=": [">=", "<", ">"],
  ">": ["<", ">=", "<="],
  ">=": ["<=", ">", "<"],
  "==": ["!=", "<", ">"],
  "!=": ["==", "<", ">"],
};

function comparison({ random, name }: World): Draft {
  const [p, q] = letters(random, 2) as [string, string];
  const right = random.chance(0.5) ? literal(digit(random, 2)) : variable(q);
  const good = random.pick(Object.keys(MISTAKEN) as Comparison[]);
  const [bad, ...others] = random.shuffle(MISTAKEN[good]) as [Comparison, ...Comparison[]];
  const line = (operator: Comparison): Line => returns(binary(variable(p), operator, right));
  return {
    lines: [head(name(), right.kind === "variable" ? [p, q] : [p]), line(good)],
    at: 1,
    buggy: line(bad),
    wrong: others.map(line),
    draw: () => {
      const left = digit(random, 1);
      // Equal sides often, or < and <= could not be told apart.
      if (right.kind === "literal") return [random.chance(0.3) ? (right.value as number) : left];
      return [left, random.chance(0.3) ? left : digit(random, 1)];
    },
    hint: `It should use ${good}.`,
  };
}

function constant({ random, name }: World): Draft {
  const [p] = letters(random, 1) as [string];
  const good = digit(random, 2) - (random.chance(0.1) ? 1 : 0);
  const bad = random.chance(0.5) ? good - 1 : good + 1;
  const operator = random.pick(OPERATORS);
  const line = (n: number): Line => returns(binary(variable(p), operator, literal(n)));
  return {
    lines: [head(name(), [p]), line(good)],
    at: 1,
    buggy: line(bad),
    wrong: [line(2 * bad - good), line(2 * good - bad)].filter((w) => !isNegative(w)),
    draw: () => [digit(random, 1)],
    hint: `It should use ${good}.`,
  };
}

function isNegative(line: Line): boolean {
  if (line.kind !== "return" || line.value.kind !== "binary" || line.value.right.kind !== "literal")
    return false;
  return (line.value.right.value as number) < 0;
}

function order({ random, name }: World): Draft {
  const [p, q] = letters(random, 2) as [string, string];
  const [first, second] = random.shuffle([variable(p), variable(q)]) as [Expression, Expression];
  return {
    lines: [head(name(), [p, q]), returns(binary(first, "-", second))],
    at: 1,
    buggy: returns(binary(second, "-", first)),
    wrong: [returns(binary(first, "+", second)), returns(binary(first, "-", first))],
    draw: () => differing(random, 2),
    hint: "The order is wrong.",
  };
}

function returned({ random, name }: World): Draft {
  const [p, q, t] = letters(random, 3) as [string, string, string];
  const [bad, other] = random.shuffle([p, q]) as [string, string];
  return {
    lines: [
      head(name(), [p, q]),
      assigns(t, binary(variable(p), random.pick(OPERATORS), variable(q))),
      returns(variable(t)),
    ],
    at: 2,
    buggy: returns(variable(bad)),
    wrong: [returns(variable(other))],
    draw: () => differing(random, 2),
    hint: `It should return ${t}.`,
  };
}

function connective({ random, name }: World): Draft {
  const [p, q] = letters(random, 2) as [string, string];
  const [good, bad] = random.shuffle(["and", "or"] as const) as ["and" | "or", "and" | "or"];
  const line = (operator: "and" | "or"): Line => returns(binary(variable(p), operator, variable(q)));
  return {
    lines: [head(name(), [p, q]), line(good)],
    at: 1,
    buggy: line(bad),
    wrong: [returns(variable(p)), returns(variable(q)), returns(binary(not(variable(p)), bad, variable(q)))],
    draw: () => flags(random, 2),
    hint: `It should use ${good}.`,
  };
}

function negation({ random, name }: World): Draft {
  const [p, q] = letters(random, 2).map(variable) as [Expression, Expression];
  const operator = random.pick(["and", "or"] as const);
  const line = (a: Expression, b: Expression): Line => returns(binary(a, operator, b));
  const [good, other] = random.shuffle([line(not(p), q), line(p, not(q))]) as [Line, Line];
  const parameters = [p, q].map((v) => (v as { name: string }).name);
  return {
    lines: [head(name(), parameters), good],
    at: 1,
    buggy: line(p, q),
    wrong: [other, line(not(p), not(q))],
    draw: () => flags(random, 2),
    hint: "A not is missing.",
  };
}

function defaults({ random, name }: World): Draft {
  const [p, q] = letters(random, 2) as [string, string];
  const values = differing(random, 3) as [number, number, number];
  const called = name();
  const line = (n: number): Line => head(called, [p, { name: q, default: n }]);
  return {
    lines: [line(values[0]), returns(binary(variable(p), random.pick(OPERATORS), variable(q)))],
    at: 0,
    buggy: line(values[1]),
    wrong: [line(values[2])],
    draw: () => (random.chance(0.75) ? [digit(random, 1)] : differing(random, 2)),
    hint: `The default should be ${values[0]}.`,
  };
}

function text({ random, name }: World): Draft {
  const [p] = letters(random, 1) as [string];
  const called = name();
  const [good, bad, other] = [name(), name(), name()].map(literal) as [Expression, Expression, Expression];
  const first = random.chance(0.5);
  const line = (s: Expression): Line =>
    returns(first ? choice(s, variable(p), other) : choice(other, variable(p), s));
  return {
    lines: [head(called, [p]), line(good)],
    at: 1,
    buggy: line(bad),
    wrong: [line(other)],
    draw: () => flags(random, 1),
    hint: `It should say ${(good as { value: string }).value}.`,
  };
}

function position({ random, name }: World): Draft {
  const [p] = letters(random, 1) as [string];
  const [good, bad, other] = random.shuffle([0, 1, 2]) as [number, number, number];
  const line = (at: number): Line => returns(index(variable(p), literal(at)));
  return {
    lines: [head(name(), [p]), line(good)],
    at: 1,
    buggy: line(bad),
    wrong: [line(other)],
    draw: () => [differing(random, 3)],
    hint: `It should use index ${good}.`,
  };
}

function condition({ random, name }: World): Draft {
  const [p, q] = letters(random, 2).map(variable) as [Expression, Expression];
  const [good, bad] = random.shuffle(["<", ">"] as const) as ["<" | ">", "<" | ">"];
  const parameters = [p, q].map((v) => (v as { name: string }).name);
  return {
    lines: [head(name(), parameters), returns(choice(p, binary(p, good, q), q))],
    at: 1,
    buggy: returns(choice(p, binary(p, bad, q), q)),
    wrong: [
      returns(choice(q, binary(p, good, q), p)),
      returns(choice(p, binary(p, "!=", q), q)),
      returns(choice(p, binary(p, "==", q), q)),
    ],
    draw: () => differing(random, 2),
    hint: "The condition is inverted.",
  };
}

function start({ random, name }: World): Draft {
  const [p, t, x] = letters(random, 3) as [string, string, string];
  const good = random.chance(0.6) ? 0 : digit(random, 1);
  const bad = good === 0 || random.chance(0.5) ? good + 1 : good - 1;
  return {
    lines: [
      head(name(), [p]),
      assigns(t, literal(good)),
      { kind: "for", depth: 1, target: x, over: variable(p) },
      assigns(t, binary(variable(t), "+", variable(x)), 2),
      returns(variable(t)),
    ],
    at: 1,
    buggy: assigns(t, literal(bad)),
    wrong: [assigns(t, literal(bad + 1)), assigns(t, literal(good + 2))],
    draw: () => [differing(random, 2)],
    hint: `It should start at ${good}.`,
  };
}

function missing({ random, name }: World): Draft {
  const [p, q] = letters(random, 2) as [string, string];
  const value = binary(variable(p), random.pick(OPERATORS), variable(q));
  return {
    lines: [head(name(), [p, q]), returns(value)],
    at: 1,
    buggy: { kind: "expression", depth: 1, value },
    wrong: [returns(variable(p)), returns(variable(q))],
    draw: () => differing(random, 2),
    hint: "The return is missing.",
  };
}

function key({ random, name }: World): Draft {
  const [p] = letters(random, 1) as [string];
  const called = name();
  const keys = random.shuffle([name(), name()]) as [string, string];
  const [good, bad] = random.shuffle(keys) as [string, string];
  const line = (k: string): Line => returns(index(variable(p), literal(k)));
  return {
    lines: [head(called, [p]), line(good)],
    at: 1,
    buggy: line(bad),
    wrong: [returns(variable(p)), returns(literal(good))],
    draw: () => {
      const values = differing(random, 2);
      return [new Map(keys.map((k, i) => [k, values[i] as number]))];
    },
    hint: `It should use ${good}.`,
  };
}

function operand({ random, name }: World): Draft {
  const [p, q] = letters(random, 2) as [string, string];
  const [first, second] = random.shuffle([variable(p), variable(q)]) as [Expression, Expression];
  const operator = random.pick(OPERATORS);
  return {
    lines: [head(name(), [p, q]), returns(binary(first, operator, second))],
    at: 1,
    buggy: returns(binary(first, operator, first)),
    wrong: [returns(binary(second, operator, second)), returns(first), returns(second)],
    draw: () => differing(random, 2),
    hint: `It should use ${(second as { name: string }).name}.`,
  };
}

function accumulation({ random, name }: World): Draft {
  const [p, t, x] = letters(random, 3) as [string, string, string];
  const line = (value: Expression): Line => assigns(t, value, 2);
  return {
    lines: [
      head(name(), [p]),
      assigns(t, literal(random.chance(0.6) ? 0 : digit(random, 1))),
      { kind: "for", depth: 1, target: x, over: variable(p) },
      line(binary(variable(t), "+", variable(x))),
      returns(variable(t)),
    ],
    at: 3,
    buggy: line(variable(x)),
    wrong: [line(binary(variable(x), "+", variable(x))), line(binary(variable(t), "-", variable(x)))],
    draw: () => [differing(random, 2)],
    hint: "It should add.",
  };
}

export const FAMILIES = {
  arithmetic: { thought: "The operator is wrong.", length: 2, draft: arithmetic },
  comparison: { thought: "The operator is wrong.", length: 2, draft: comparison },
  constant: { thought: "The number is wrong.", length: 2, draft: constant },
  order: { thought: "The order is wrong.", length: 2, draft: order },
  returned: { thought: "The variable is wrong.", length: 3, draft: returned },
  connective: { thought: "The operator is wrong.", length: 2, draft: connective },
  negation: { thought: "A not is missing.", length: 2, draft: negation },
  defaults: { thought: "The default is wrong.", length: 2, draft: defaults },
  text: { thought: "The string is wrong.", length: 2, draft: text },
  position: { thought: "The index is wrong.", length: 2, draft: position },
  condition: { thought: "The condition is wrong.", length: 2, draft: condition },
  start: { thought: "The start is wrong.", length: 5, draft: start },
  missing: { thought: "The return is missing.", length: 2, draft: missing },
  key: { thought: "The key is wrong.", length: 2, draft: key },
  operand: { thought: "The variable is wrong.", length: 2, draft: operand },
  accumulation: { thought: "The operator is wrong.", length: 5, draft: accumulation },
} as const satisfies Record<string, Family>;

export type FamilyName = keyof typeof FAMILIES;

/**
 * Families that no demonstration and no training task holds: what training makes of bugs that it never saw. `operand` is
 * near to what is trained (the functions of `arithmetic`, the words of `returned`), `accumulation` mends a line that
 * no trained family touches.
 */
export const KEPT_OUT: readonly FamilyName[] = ["operand", "accumulation"];
/** All others. */
export const TRAINED: readonly FamilyName[] = (Object.keys(FAMILIES) as FamilyName[]).filter(
  (name) => !KEPT_OUT.includes(name),
);
