// Reads a job's YAML and says of every fault which key, on which line, and what to write instead.
import { readFile } from "node:fs/promises";
import {
  type Document,
  isMap,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
  visit,
  type YAMLMap,
} from "yaml";
import type { z } from "zod";
import { TokenringError } from "../errors.ts";
import { PEER_NAMES } from "../learn/objective.ts";
import { type JobConfig, jobSchema } from "./config.ts";

/** Levenshtein distance; for "did you mean". */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, (row[j] as number) + 1, (next[j - 1] as number) + 1));
    }
    row = next;
  }
  return row[b.length] as number;
}

/** The name of `candidates` that `word` most likely means, if any is near. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const ranked = candidates
    .map((name) => ({ name, d: distance(word.toLowerCase(), name.toLowerCase()) }))
    .sort((a, b) => a.d - b.d);
  const best = ranked[0];
  return best !== undefined && best.d <= Math.max(2, Math.floor(word.length / 3)) ? best.name : undefined;
}

interface Def {
  type: string;
  shape?: Record<string, z.ZodType>;
  element?: z.ZodType;
  innerType?: z.ZodType;
  options?: z.ZodType[];
}

/** Keys that the schema knows at `path`; wrappers (default, optional, union) are looked through. */
function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  const def = schema.def as unknown as Def;
  if (def.innerType) return keysAt(def.innerType, path);
  if (def.options) return def.options.flatMap((option) => keysAt(option, path));
  const [head, ...rest] = path;
  if (head === undefined) return Object.keys(def.shape ?? {});
  const child = typeof head === "number" ? def.element : def.shape?.[String(head)];
  return child ? keysAt(child, rest) : [];
}

/** What was written at `path`; undefined when nothing was. */
function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (at, part) =>
      typeof at === "object" && at !== null ? (at as Record<PropertyKey, unknown>)[part] : undefined,
    value,
  );
}

/**
 * The issues of the union branch that was meant, which is the one whose own key was written, so that "Invalid input"
 * never hides the real fault. If none was or several were, the union's message says which keys exclude each other.
 */
function flatten(issue: z.core.$ZodIssue, config: unknown): z.core.$ZodIssue[] {
  if (issue.code !== "invalid_union") return [issue];
  const branches = issue.errors.map((inner) =>
    inner.map((one) => ({ ...one, path: [...issue.path, ...one.path] })),
  );
  const depth = issue.path.length;
  const absent = (one: z.core.$ZodIssue): boolean =>
    one.code === "invalid_type" &&
    (one.path.length === depth || (one.path.length === depth + 1 && valueAt(config, one.path) === undefined));
  const meant = branches.filter((branch) => !branch.some(absent));
  if (meant.length === 1) return (meant[0] ?? []).flatMap((one) => flatten(one, config));
  if (meant.length > 1) return [issue];
  const unknown = branches[0]?.filter((one) => one.code === "unrecognized_keys") ?? [];
  return unknown.length > 0 ? unknown : [issue];
}

function lineOf(root: Node | null, lines: LineCounter, path: readonly PropertyKey[], key?: string): number {
  let node: Node | null = root;
  let offset = node?.range?.[0] ?? 0;
  for (const part of key === undefined ? path : [...path, key]) {
    if (isMap(node)) {
      const pair = (node as YAMLMap<Node, Node | null>).items.find(
        (item) => isScalar(item.key) && item.key.value === part,
      );
      if (!pair) break;
      offset = (pair.key as Node).range?.[0] ?? offset;
      node = pair.value;
    } else {
      const child: unknown = (node as { items?: unknown[] } | null)?.items?.[Number(part)];
      if (!child) break;
      node = child as Node;
      offset = node.range?.[0] ?? offset;
    }
  }
  return lines.linePos(offset).line;
}

function fault(
  message: string,
  options: { cause?: unknown; details?: Record<string, unknown> } = {},
): TokenringError {
  return new TokenringError("ERR_TOKENRING_CONFIG", message, options);
}

/** The value of a document without errors. Aliases are resolved only here, and so are their faults found. */
function toValue(document: Document.Parsed, lines: LineCounter, file: string): unknown {
  try {
    return document.toJS() ?? {};
  } catch (cause) {
    let first: number | undefined;
    let unresolved: number | undefined;
    visit(document, {
      Alias(_, alias) {
        first ??= alias.range?.[0];
        if (alias.resolve(document) === undefined) unresolved ??= alias.range?.[0];
      },
    });
    const { line } = lines.linePos(unresolved ?? first ?? 0);
    const cure = unresolved === undefined ? "write the values out" : "write the value out or name an anchor";
    throw fault(`${file}:${line}: not valid YAML: ${(cause as Error).message}; ${cure}`, { cause });
  }
}

/**
 * Checks the text of a job's YAML against the schema.
 * Throws ERR_TOKENRING_CONFIG whose message has one line a fault, `file:line: key: what is wrong; what to do`.
 */
export function parseConfig(text: string, file: string): JobConfig {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const broken = document.errors[0];
  if (broken) {
    const line = lines.linePos(broken.pos[0]).line;
    throw fault(
      broken.code === "MULTIPLE_DOCS"
        ? `${file}:${line}: a second YAML document begins here; give one document, without a "---" between its keys`
        : `${file}:${line}: not valid YAML: ${broken.message}; correct this line`,
      { cause: broken },
    );
  }
  const value = toValue(document, lines, file);
  const result = jobSchema.safeParse(value);
  if (result.success) return result.data;
  const root = document.contents as Node | null;
  const issues = result.error.issues.flatMap((issue) => flatten(issue, value));
  const faults = issues.flatMap((issue) => {
    if (issue.code === "unrecognized_keys") {
      const known = keysAt(jobSchema, issue.path);
      return issue.keys.map((key) => {
        const peer = PEER_NAMES[key];
        const meant = peer !== undefined && known.includes(peer) ? peer : nearest(key, known);
        const cure = meant ? `did you mean "${meant}"?` : `remove it; known here: ${known.join(", ")}`;
        return {
          line: lineOf(root, lines, issue.path, key),
          text: `${[...issue.path, key].join(".")}: unknown key; ${cure}`,
        };
      });
    }
    const missing = issue.code === "invalid_type" && valueAt(value, issue.path) === undefined;
    const what = missing ? "missing; add it" : issue.message;
    return [
      { line: lineOf(root, lines, issue.path), text: `${issue.path.join(".") || "(whole file)"}: ${what}` },
    ];
  });
  faults.sort((a, b) => a.line - b.line);
  throw fault(faults.map((f) => `${file}:${f.line}: ${f.text}`).join("\n"), {
    details: { issues: result.error.issues },
    cause: result.error,
  });
}

/**
 * The text of a job's YAML with top-level `keys` set, its comments kept, and what it says then.
 * Throws ERR_TOKENRING_CONFIG as `parseConfig`.
 */
export function withKeys(
  text: string,
  file: string,
  keys: Readonly<Record<string, unknown>>,
): { config: JobConfig; text: string } {
  const document = parseDocument(text);
  for (const [key, value] of Object.entries(keys)) document.set(key, value);
  const changed = document.toString({ lineWidth: 0 });
  return { config: parseConfig(changed, file), text: changed };
}

/** Keeps a byte order mark: the text is stored as its author wrote it. */
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of `bytes`; null if they are not UTF-8. A NUL is UTF-8, but in a text it comes from UTF-16. */
function decode(bytes: Uint8Array): string | null {
  try {
    return bytes.includes(0) ? null : utf8.decode(bytes);
  } catch {
    return null;
  }
}

/** Reads and checks a job's YAML file; `text` is the file as it stands. Throws ERR_TOKENRING_CONFIG. */
export async function readConfig(file: string): Promise<{ config: JobConfig; text: string }> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(file);
  } catch (cause) {
    throw fault(
      `${file}: cannot be read (${(cause as NodeJS.ErrnoException).code}); give the path of a job's YAML, for example recipes/tinyswe.yaml`,
      { cause },
    );
  }
  const text = decode(bytes);
  if (text === null) throw fault(`${file}: not UTF-8; save the file as UTF-8`);
  return { config: parseConfig(text, file), text };
}
