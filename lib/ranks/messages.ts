// What leader and worker say to each other once the handshake is done.
import { type ErrorCode, isTokenringError, TokenringError } from "../errors.ts";
import type { NativeRankOptions } from "../ops/binding.ts";

/** Calls that all ranks make together. */
export type Collective =
  | "create"
  | "join"
  | "initialise"
  | "accumulate"
  | "score"
  | "optimise"
  | "dropGradients"
  | "resetOptimiser"
  | "save"
  | "load";

/** Calls to one rank, which answers. */
export type Single = "sampleSession" | "busySeconds" | "usage" | "dispose";

/** Bookkeeping of sessions, without an answer. The leader gives out their numbers. */
export type Note = "openSession" | "forkSession" | "extendSession" | "closeSession";

/** `rank` is the number of one of the worker's native ranks; `seq` that of a command. */
export type ToWorker =
  /** Is acknowledged at once and entered at "enter"; forgotten at "drop". */
  | { kind: "prepare"; seq: number; rank: number; method: Collective; args: unknown[] }
  | { kind: "enter" | "drop" | "abort"; seq: number }
  | { kind: "call"; seq: number; rank: number; method: Single; args: unknown[] }
  | { kind: "note"; rank: number; method: Note; args: unknown[] }
  /** The ranks cannot go on together. */
  | { kind: "break"; reason: string }
  | { kind: "end" };

export type ToLeader =
  | { kind: "acknowledge"; seq: number }
  | { kind: "result"; seq: number; value: unknown }
  | { kind: "failure"; seq: number; error: PlainError }
  /** Its launcher wants it to stop; it goes on until the leader ends. */
  | { kind: "stopping"; reason: string };

/** First argument of "create". */
export type CreateOptions = NativeRankOptions;

export interface PlainError {
  code: ErrorCode;
  message: string;
  details: Record<string, unknown>;
}

export function plainError(error: unknown): PlainError {
  if (isTokenringError(error)) return { code: error.code, message: error.message, details: error.details };
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { code: "ERR_TOKENRING_INTERNAL", message, details: {} };
}

export function thrownError({ code, message, details }: PlainError): TokenringError {
  return new TokenringError(code, message, { details });
}
