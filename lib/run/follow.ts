// Reads a log of one JSON value a line while somebody else may be writing it.
import { type FileHandle, open } from "node:fs/promises";
import { TokenringError } from "../errors.ts";

const CHUNK = 1 << 20;
const NEWLINE = 0x0a;

/** Where a line lies in its file, in bytes, its line break left out. */
export interface LinePlace {
  at: number;
  length: number;
}

/** A log that grows. What was read is not read again. */
export class LogFollower {
  readonly #path: string;
  /** End of the last whole line that was read. */
  #read = 0;

  constructor(path: string) {
    this.#path = path;
  }

  /**
   * Gives every line that was finished since the last call to `take`. Returns "cut" when the file is shorter than what
   * was read: work is done again, and what was read is not true any more. A file that is missing is empty. Throws
   * ERR_TOKENRING_RUN_DIRECTORY for a line that is not JSON.
   */
  async poll(take: (value: unknown, place: LinePlace) => void): Promise<"read" | "cut"> {
    let file: FileHandle;
    try {
      file = await open(this.#path, "r");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      return this.#read === 0 ? "read" : "cut";
    }
    try {
      const { size } = await file.stat();
      if (size < this.#read) return "cut";
      let parts: Buffer[] = [];
      let position = this.#read;
      while (position < size) {
        const chunk = Buffer.allocUnsafe(Math.min(CHUNK, size - position));
        const { bytesRead } = await file.read(chunk, 0, chunk.length, position);
        if (bytesRead === 0) break;
        position += bytesRead;
        let from = 0;
        for (
          let end = chunk.indexOf(NEWLINE);
          end >= 0 && end < bytesRead;
          end = chunk.indexOf(NEWLINE, from)
        ) {
          this.#line(Buffer.concat([...parts, chunk.subarray(from, end)]), take);
          parts = [];
          from = end + 1;
        }
        if (from < bytesRead) parts.push(chunk.subarray(from, bytesRead));
      }
      return "read";
    } finally {
      await file.close();
    }
  }

  #line(line: Buffer, take: (value: unknown, place: LinePlace) => void): void {
    const place = { at: this.#read, length: line.length };
    let value: unknown;
    try {
      value = JSON.parse(line.toString("utf8"));
    } catch (cause) {
      throw new TokenringError(
        "ERR_TOKENRING_RUN_DIRECTORY",
        `${this.#path}: byte ${place.at}: not JSON; the file is damaged`,
        { cause },
      );
    }
    this.#read += line.length + 1;
    take(value, place);
  }

  /** The value of a line again. */
  async again({ at, length }: LinePlace): Promise<unknown> {
    await using file = await open(this.#path, "r");
    const line = Buffer.allocUnsafe(length);
    await file.read(line, 0, length, at);
    return JSON.parse(line.toString("utf8")) as unknown;
  }
}
