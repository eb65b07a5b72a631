// Reads a job's YAML and says of every fault which key, on which line, and what to write instead.
import { readFile } from "node:fs/promises";
import { isMap, isScalar, LineCounter, type Node, parseDocument, type YAMLMap } from "yaml";
import type { z } from "zod";
import { TokenringError } from "../errors.ts";
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

/** The issues of the union branch that fits best, so that "Invalid input" never hides the real fault. */
function flatten(issue: z.core.$ZodIssue): z.core.$ZodIssue[] {
  if (issue.code !== "invalid_union" || issue.errors.length === 0) return [issue];
  const unknownKeys = (issues: z.core.$ZodIssue[]): number =>
    issues.filter((i) => i.path.length === 0 && i.code === "unrecognized_keys").length;
  const best =
    [...issue.errors].sort((a, b) => unknownKeys(a) - unknownKeys(b) || a.length - b.length)[0] ?? [];
  return best.flatMap((inner) => flatten({ ...inner, path: [...issue.path, ...inner.path] }));
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
    throw new TokenringError(
      "ERR_TOKENRING_CONFIG",
      `${file}:${line}: not valid YAML: ${broken.message}; correct this line`,
      {
        cause: broken,
      },
    );
  }
  const result = jobSchema.safeParse(document.toJS() ?? {});
  if (result.success) return result.data;
  const root = document.contents as Node | null;
  const faults = result.error.issues.flatMap(flatten).flatMap((issue) => {
    if (issue.code === "unrecognized_keys") {
      const known = keysAt(jobSchema, issue.path);
      return issue.keys.map((key) => {
        const meant = nearest(key, known);
        const cure = meant ? `did you mean "${meant}"?` : `remove it; known here: ${known.join(", ")}`;
        return {
          line: lineOf(root, lines, issue.path, key),
          text: `${[...issue.path, key].join(".")}: unknown key; ${cure}`,
        };
      });
    }
    const missing = issue.code === "invalid_type" && document.getIn(issue.path as unknown[]) === undefined;
    const what = missing ? "missing; add it" : issue.message;
    return [
      { line: lineOf(root, lines, issue.path), text: `${issue.path.join(".") || "(whole file)"}: ${what}` },
    ];
  });
  faults.sort((a, b) => a.line - b.line);
  throw new TokenringError(
    "ERR_TOKENRING_CONFIG",
    faults.map((f) => `${file}:${f.line}: ${f.text}`).join("\n"),
    {
      details: { issues: result.error.issues },
      cause: result.error,
    },
  );
}

/** Reads and checks a job's YAML file; `text` is the file as it stands. Throws ERR_TOKENRING_CONFIG. */
export async function readConfig(file: string): Promise<{ config: JobConfig; text: string }> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    throw new TokenringError(
      "ERR_TOKENRING_CONFIG",
      `${file}: cannot be read (${(cause as NodeJS.ErrnoException).code}); give the path of a job's YAML, for example recipes/tinyswe.yaml`,
      { cause },
    );
  }
  return { config: parseConfig(text, file), text };
}
