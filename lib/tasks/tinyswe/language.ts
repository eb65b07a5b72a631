// A small part of Python: enough to print the functions of the tiny world and to evaluate them as Python would, errors
// included, without a Python.

/** A Python value; a dict has string keys. */
export type Value = number | boolean | string | null | readonly Value[] | ReadonlyMap<string, Value>;

export type Expression =
  | { kind: "literal"; value: Value }
  | { kind: "variable"; name: string }
  | { kind: "binary"; operator: Arithmetic | Comparison | "and" | "or"; left: Expression; right: Expression }
  | { kind: "not"; operand: Expression }
  | { kind: "choice"; then: Expression; condition: Expression; otherwise: Expression }
  | { kind: "index"; base: Expression; index: Expression };

export type Arithmetic = "+" | "-" | "*";
export type Comparison = "<" | "<=" | ">" | ">=" | "==" | "!=";

/** One line of a file; `depth` counts indentations of four spaces. */
export type Line =
  | { kind: "def"; depth: 0; name: string; parameters: readonly Parameter[] }
  | { kind: "assign"; depth: number; target: string; value: Expression }
  | { kind: "for"; depth: number; target: string; over: Expression }
  | { kind: "return"; depth: number; value: Expression }
  | { kind: "expression"; depth: number; value: Expression };

export interface Parameter {
  name: string;
  default?: Value;
}

export const literal = (value: Value): Expression => ({ kind: "literal", value });
export const variable = (name: string): Expression => ({ kind: "variable", name });
export const not = (operand: Expression): Expression => ({ kind: "not", operand });
export const index = (base: Expression, at: Expression): Expression => ({ kind: "index", base, index: at });
export const binary = (
  left: Expression,
  operator: Arithmetic | Comparison | "and" | "or",
  right: Expression,
): Expression => ({ kind: "binary", operator, left, right });
export const choice = (then: Expression, condition: Expression, otherwise: Expression): Expression => ({
  kind: "choice",
  then,
  condition,
  otherwise,
});
export const returns = (value: Expression): Line => ({ kind: "return", depth: 1, value });
export const assigns = (target: string, value: Expression, depth = 1): Line => ({
  kind: "assign",
  depth,
  target,
  value,
});

/** What Python's repr prints. */
export function repr(value: Value): string {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return `'${value}'`;
  if (value instanceof Map) return `{${[...value].map(([k, v]) => `${repr(k)}: ${repr(v)}`).join(", ")}}`;
  return `[${(value as readonly Value[]).map(repr).join(", ")}]`;
}

/** Source text of an expression. The families nest only what needs no parentheses. */
function printExpression(expression: Expression): string {
  switch (expression.kind) {
    case "literal":
      return repr(expression.value);
    case "variable":
      return expression.name;
    case "binary":
      return `${printExpression(expression.left)} ${expression.operator} ${printExpression(expression.right)}`;
    case "not":
      return `not ${printExpression(expression.operand)}`;
    case "choice": {
      const { then, condition, otherwise } = expression;
      return `${printExpression(then)} if ${printExpression(condition)} else ${printExpression(otherwise)}`;
    }
    case "index":
      return `${printExpression(expression.base)}[${printExpression(expression.index)}]`;
  }
}

/** Source text of a line, indentation included, without the line end. */
export function printLine(line: Line): string {
  const indent = "    ".repeat(line.depth);
  switch (line.kind) {
    case "def": {
      const parameters = line.parameters.map((p) =>
        p.default === undefined ? p.name : `${p.name}=${repr(p.default)}`,
      );
      return `${indent}def ${line.name}(${parameters.join(", ")}):`;
    }
    case "assign":
      return `${indent}${line.target} = ${printExpression(line.value)}`;
    case "for":
      return `${indent}for ${line.target} in ${printExpression(line.over)}:`;
    case "return":
      return `${indent}return ${printExpression(line.value)}`;
    case "expression":
      return `${indent}${printExpression(line.value)}`;
  }
}

/** A Python exception; `message` is the name of its class. */
class Raised extends Error {}

interface Callable {
  parameters: readonly Parameter[];
  body: Block;
  locals: ReadonlySet<string>;
}

type Block = readonly Statement[];

interface Statement {
  line: Line;
  block: Block;
}

/** An imported file: its functions, or the class of the exception that importing it raises. */
export type Module = { error: string } | { functions: ReadonlyMap<string, Callable> };

/** Reads the lines of a file as Python would on import. */
export function load(lines: readonly Line[]): Module {
  try {
    const reader = { lines, at: 0 };
    const block = readBlock(reader, [0]);
    const functions = new Map<string, Callable>();
    for (const { line, block: body } of block) {
      if (line.kind !== "def") throw new Raised("SyntaxError");
      functions.set(line.name, { parameters: line.parameters, body, locals: targets(body) });
    }
    return { functions };
  } catch (error) {
    if (error instanceof Raised) return { error: error.message };
    throw error;
  }
}

/** Reads statements at the innermost of `levels` until one stands further out. */
function readBlock(reader: { lines: readonly Line[]; at: number }, levels: readonly number[]): Block {
  const depth = levels.at(-1) as number;
  const out: Statement[] = [];
  for (;;) {
    const line = reader.lines[reader.at];
    if (line === undefined) return out;
    if (line.depth < depth) {
      if (levels.includes(line.depth)) return out;
      throw new Raised("IndentationError");
    }
    if (line.depth > depth) throw new Raised("IndentationError");
    reader.at++;
    if (line.kind !== "def" && line.kind !== "for") {
      out.push({ line, block: [] });
      continue;
    }
    const inner = reader.lines[reader.at];
    if (inner === undefined || inner.depth <= depth) throw new Raised("IndentationError");
    out.push({ line, block: readBlock(reader, [...levels, inner.depth]) });
  }
}

function targets(block: Block): Set<string> {
  const names = new Set<string>();
  for (const { line, block: inner } of block) {
    if (line.kind === "assign" || line.kind === "for") names.add(line.target);
    for (const name of targets(inner)) names.add(name);
  }
  return names;
}

/** What a call gives: a value, or the class of the exception that it raises. */
export type Outcome = { value: Value } | { raised: string };

/** Calls `name` of a file with literal arguments. */
export function call(module: Module, name: string, args: readonly Value[]): Outcome {
  try {
    if ("error" in module) throw new Raised(module.error);
    const callee = module.functions.get(name);
    if (callee === undefined) throw new Raised("NameError");
    if (args.length > callee.parameters.length) throw new Raised("TypeError");
    const scope = new Scope(callee.locals);
    callee.parameters.forEach((parameter, i) => {
      const value = i < args.length ? args[i] : parameter.default;
      if (value === undefined) throw new Raised("TypeError");
      scope.set(parameter.name, value);
    });
    return { value: run(callee.body, scope) ?? null };
  } catch (error) {
    if (error instanceof Raised) return { raised: error.message };
    throw error;
  }
}

/** An outcome as the test runner prints it: the value's repr or the exception's class. */
export function printOutcome(outcome: Outcome): string {
  return "value" in outcome ? repr(outcome.value) : outcome.raised;
}

class Scope {
  readonly #locals: ReadonlySet<string>;
  readonly #values = new Map<string, Value>();

  constructor(locals: ReadonlySet<string>) {
    this.#locals = locals;
  }

  set(name: string, value: Value): void {
    this.#values.set(name, value);
  }

  get(name: string): Value {
    const value = this.#values.get(name);
    if (value !== undefined) return value;
    throw new Raised(this.#locals.has(name) ? "UnboundLocalError" : "NameError");
  }
}

/** Runs statements; a value (None is null) when they return, undefined when they run off the end. */
function run(block: Block, scope: Scope): Value | undefined {
  for (const { line, block: inner } of block) {
    if (line.kind === "return") return evaluate(line.value, scope);
    if (line.kind === "assign") scope.set(line.target, evaluate(line.value, scope));
    else if (line.kind === "expression") evaluate(line.value, scope);
    else if (line.kind === "for") {
      for (const item of iterate(evaluate(line.over, scope))) {
        scope.set(line.target, item);
        const value = run(inner, scope);
        if (value !== undefined) return value;
      }
    }
  }
  return undefined;
}

function iterate(value: Value): Value[] {
  if (typeof value === "string") return [...value];
  if (Array.isArray(value)) return value as Value[];
  if (value instanceof Map) return [...value.keys()];
  throw new Raised("TypeError");
}

function evaluate(expression: Expression, scope: Scope): Value {
  switch (expression.kind) {
    case "literal":
      return expression.value;
    case "variable":
      return scope.get(expression.name);
    case "not":
      return !truth(evaluate(expression.operand, scope));
    case "choice":
      return truth(evaluate(expression.condition, scope))
        ? evaluate(expression.then, scope)
        : evaluate(expression.otherwise, scope);
    case "index":
      return item(evaluate(expression.base, scope), evaluate(expression.index, scope));
    case "binary": {
      const left = evaluate(expression.left, scope);
      const { operator } = expression;
      if (operator === "and") return truth(left) ? evaluate(expression.right, scope) : left;
      if (operator === "or") return truth(left) ? left : evaluate(expression.right, scope);
      const right = evaluate(expression.right, scope);
      if (operator === "==") return equal(left, right);
      if (operator === "!=") return !equal(left, right);
      if (operator === "+" || operator === "-" || operator === "*") return combine(operator, left, right);
      return ordered(operator, left, right);
    }
  }
}

function truth(value: Value): boolean {
  if (value === null) return false;
  if (value instanceof Map) return value.size > 0;
  if (Array.isArray(value)) return value.length > 0;
  return Boolean(value);
}

/** The integer that an int or a bool is, else undefined. */
function integer(value: Value): number | undefined {
  if (typeof value === "number") return value;
  return typeof value === "boolean" ? Number(value) : undefined;
}

function equal(left: Value, right: Value): boolean {
  const [a, b] = [integer(left), integer(right)];
  if (a !== undefined && b !== undefined) return a === b;
  if (left instanceof Map && right instanceof Map) {
    const same = (key: string, value: Value): boolean =>
      right.has(key) && equal(value, right.get(key) as Value);
    return left.size === right.size && [...left].every(([key, value]) => same(key, value));
  }
  if (Array.isArray(left) && Array.isArray(right)) {
    return left.length === right.length && left.every((value, i) => equal(value, right[i]));
  }
  return left === right;
}

function combine(operator: Arithmetic, left: Value, right: Value): Value {
  const [a, b] = [integer(left), integer(right)];
  if (a !== undefined && b !== undefined) {
    // `+ 0` turns JavaScript's -0 into the 0 that Python has.
    return (operator === "+" ? a + b : operator === "-" ? a - b : a * b) + 0;
  }
  if (operator === "+" && typeof left === "string" && typeof right === "string") return left + right;
  if (operator === "+" && Array.isArray(left) && Array.isArray(right)) return [...left, ...right];
  if (operator === "*") {
    const [sequence, times] = a === undefined ? [left, b] : [right, a];
    if (times !== undefined && typeof sequence === "string") return sequence.repeat(Math.max(0, times));
    if (times !== undefined && Array.isArray(sequence)) {
      return Array.from({ length: Math.max(0, times) }, () => sequence as readonly Value[]).flat();
    }
  }
  throw new Raised("TypeError");
}

function ordered(operator: Comparison, left: Value, right: Value): boolean {
  const [a, b] = [integer(left), integer(right)];
  if (a !== undefined && b !== undefined) return compare(operator, a, b);
  if (typeof left === "string" && typeof right === "string") return compare(operator, left, right);
  if (Array.isArray(left) && Array.isArray(right)) {
    const at = left.findIndex((value, i) => i >= right.length || !equal(value, right[i]));
    if (at < 0 || at >= right.length) return compare(operator, left.length, right.length);
    return ordered(operator, left[at], right[at]);
  }
  throw new Raised("TypeError");
}

function compare<T extends number | string>(operator: Comparison, a: T, b: T): boolean {
  if (operator === "<") return a < b;
  if (operator === "<=") return a <= b;
  return operator === ">" ? a > b : a >= b;
}

function item(base: Value, at: Value): Value {
  if (base instanceof Map) {
    if (Array.isArray(at) || at instanceof Map) throw new Raised("TypeError");
    const value = typeof at === "string" ? base.get(at) : undefined;
    if (value === undefined) throw new Raised("KeyError");
    return value;
  }
  if (typeof base !== "string" && !Array.isArray(base)) throw new Raised("TypeError");
  const position = integer(at);
  if (position === undefined) throw new Raised("TypeError");
  const value = (base as readonly Value[] | string).at(position);
  if (value === undefined) throw new Raised("IndexError");
  return value as Value;
}
