// The one-way import rule of lib/, native/ and cuda/, as a function from sources to violations.
import path from "node:path";

/** A file, by its path from the root of the repository. */
export interface Source {
  file: string;
  text: string;
}

/** A folder may import itself and those that stand after it. */
const libOrder =
  "cli plan run track report learn evaluate agent verify sandbox engine tasks policy ranks ops".split(" ");
/** `sandbox` is a program of its own: nobody includes it. */
const nativeOrder = "sandbox addon capi model parallel loss optim io cpu comm cuda core".split(" ");

/** The source without its comments; strings stay, so that a "//" in one is none. */
export function stripComments(text: string): string {
  const token =
    /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[\s\S]|[^`\\])*`)|\/\/[^\n]*|\/\*[\s\S]*?\*\//g;
  return text.replace(token, (_, literal: string | undefined) => literal ?? " ");
}

/** Every module that a TypeScript source names: static, dynamic, type-only and re-exporting imports, and require. */
export function importsOf(text: string): string[] {
  const clean = stripComments(text);
  const forms = [
    /\b(?:import|export)\b[^"'`;]*?\bfrom\s*["']([^"']+)["']/g,
    /\bimport\s*["']([^"']+)["']/g,
    /\b(?:import|require)\s*\(\s*["'`]([^"'`$]+)["'`]/g,
  ];
  return forms.flatMap((form) => [...clean.matchAll(form)].map((match) => match[1] ?? ""));
}

export function includesOf(text: string): string[] {
  const include = /^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)/gm;
  return [...stripComments(text).matchAll(include)].map((match) => match[1] ?? match[2] ?? "");
}

/** The folder below `top` that a path lies in; "" for a file directly in `top`; null for one outside of it. */
function folderIn(top: string, file: string): string | null {
  const parts = file.split("/");
  if (parts[0] !== top || parts.length < 2) return null;
  return parts.length === 2 ? "" : (parts[1] ?? "");
}

function libViolation(file: string, target: string): string | null {
  const name = target.startsWith(".") ? path.posix.join(path.posix.dirname(file), target) : target;
  if (target === "tokenring" || target.startsWith("tokenring/"))
    return "lib/ imports itself by relative paths";
  if (!target.startsWith(".")) return null;
  const from = folderIn("lib", file);
  const to = folderIn("lib", name);
  if (to === null) return "lib/ imports nothing from outside of lib/";
  if (name === "lib/index.ts") return "the public index is for users, not for lib/";
  if (file === "lib/index.ts" || to === "") return null;
  if (from === "") return "a file at the top of lib/ is a leaf: it imports only its neighbours";
  const [a, b] = [libOrder.indexOf(from ?? ""), libOrder.indexOf(to)];
  if (a < 0) return `lib/${from} has no place in the order`;
  if (b < 0) return `lib/${to} has no place in the order`;
  return a <= b ? null : `${from} stands to the right of ${to}`;
}

function nativeViolation(file: string, target: string): string | null {
  const from = folderIn("native", file);
  const folder = target.includes("/") ? (target.split("/")[0] ?? "") : "";
  if (/^(napi|node_api|node|js_native_api|v8|uv)(-inl)?\.h$/.test(target)) {
    return from === "addon" ? null : "only native/addon knows JavaScript";
  }
  const b = nativeOrder.indexOf(folder);
  // A kernel, or a test of the core library.
  if (from === null && b >= 0) {
    // Kernels know what they are declared by, not the backend that launches them.
    const declared =
      /^cuda\/(attention\w*|cublaslt|launch|module|sweep|tensor_map)\.h$/.test(target) ||
      target === "comm/nccl_library.h";
    const allowed = file.startsWith("cuda/") ? folder === "core" || declared : folder !== "addon";
    return allowed ? null : `${path.posix.dirname(file)} may not include native/${folder}`;
  }
  if (target.startsWith("..")) {
    // Emulated kernels are compiled into their tests, from sources that are not on the include path.
    const name = path.posix.join(path.posix.dirname(file), target);
    const tested = file.startsWith("test/") && /^(test|cuda)\//.test(name);
    return tested ? null : "includes are relative to native/";
  }
  if (from === null || b < 0) return null;
  const a = nativeOrder.indexOf(from);
  if (a < 0) return `native/${from} has no place in the order`;
  return a <= b ? null : `${from} stands to the right of ${folder}`;
}

/** One line for each import that goes against the order. */
export function violations(sources: readonly Source[]): string[] {
  return sources.flatMap(({ file, text }) => {
    const script = file.startsWith("lib/");
    const targets = script ? importsOf(text) : includesOf(text);
    return targets.flatMap((target) => {
      const why = script ? libViolation(file, target) : nativeViolation(file, target);
      return why === null ? [] : [`${file} imports ${target}: ${why}`];
    });
  });
}
