// Finds and loads the native addon, on first use only: types, the command's help and the pure TypeScript parts
// work without it.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { TokenringError } from "../errors.ts";
import { type Binding, EXPECTED_ABI } from "./binding.ts";

// lib/ops/native.ts and dist/ops/native.js lie equally deep in the package.
const ROOT: string = fileURLToPath(new URL("../../", import.meta.url));

let loaded: Binding | undefined;

/**
 * The addon: the file that TOKENRING_NATIVE_PATH names, else `build/Release/tokenring.node` of the package.
 * Every thread has its own binding of the one library.
 * @throws ERR_TOKENRING_NATIVE_MISSING, with the cure, when it does not load or belongs to another version.
 */
export function loadBinding(): Binding {
  loaded ??= load();
  return loaded;
}

function load(): Binding {
  const override = process.env.TOKENRING_NATIVE_PATH;
  const path = override || join(ROOT, "build", "Release", "tokenring.node");
  const source = override ? " (from TOKENRING_NATIVE_PATH)" : "";
  if (!existsSync(path)) {
    throw missing(`there is no file ${path}${source}`, override ? UNSET : BUILD, path);
  }
  let binding: Binding;
  try {
    binding = createRequire(import.meta.url)(path) as Binding;
  } catch (cause) {
    throw missing(`${path}${source} does not load: ${reason(cause)}`, cure(cause, override), path, cause);
  }
  if (binding.abi !== EXPECTED_ABI) {
    const versions = `${path}${source} has ABI ${binding.abi}, but this version needs ${EXPECTED_ABI}`;
    throw missing(versions, override ? UNSET : BUILD, path);
  }
  binding.setErrorClass(TokenringError);
  return binding;
}

const BUILD = `run \`npm run build\` in ${ROOT}`;
const UNSET = `point TOKENRING_NATIVE_PATH at the tokenring.node of this version, or unset it and ${BUILD}`;

function reason(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replaceAll(/\s*\n\s*/g, "; ");
}

function cure(error: unknown, override: string | undefined): string {
  const text = reason(error);
  if (process.execArgv.includes("--no-addons") || process.env.NODE_OPTIONS?.includes("--no-addons")) {
    return "start node without --no-addons";
  }
  if (
    /GLIBC|version .* not found|wrong ELF class|invalid ELF header|file too short|undefined symbol/.test(text)
  ) {
    return `it was built for another machine or Node: ${override ? UNSET : BUILD}`;
  }
  return override ? UNSET : BUILD;
}

function missing(what: string, todo: string, path: string, cause?: unknown): TokenringError {
  return new TokenringError(
    "ERR_TOKENRING_NATIVE_MISSING",
    `the native addon is not usable: ${what}; ${todo} ` +
      `(Node ${process.version}, ${process.platform}-${process.arch})`,
    { cause, details: { path } },
  );
}
