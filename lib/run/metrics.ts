// Append-only logs of one JSON value a line.
import { createReadStream } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { createInterface } from "node:readline";
import { TokenringError } from "../errors.ts";
import type { LoggedEvent } from "../learn/events.ts";

/** A file that only grows. Appends are written in the order of the calls, each whole. */
export class AppendLog {
  readonly path: string;
  readonly #handle: FileHandle;
  #bytes: number;
  #tail: Promise<void> = Promise.resolve();

  private constructor(path: string, handle: FileHandle, bytes: number) {
    this.path = path;
    this.#handle = handle;
    this.#bytes = bytes;
  }

  /** Opens or creates `path`, cut to `bytes`. Throws ERR_TOKENRING_RUN_DIRECTORY when it is shorter than that. */
  static async open(path: string, bytes: number): Promise<AppendLog> {
    const handle = await open(path, "a");
    const { size } = await handle.stat();
    if (size < bytes) {
      await handle.close();
      throw new TokenringError(
        "ERR_TOKENRING_RUN_DIRECTORY",
        `${path}: has ${size} bytes where state.json says ${bytes}; the file was cut, restore it or start a new run`,
      );
    }
    await handle.truncate(bytes);
    return new AppendLog(path, handle, bytes);
  }

  /** Writes `value` as one line; resolves when it is in the file. */
  append(value: unknown): Promise<void> {
    const line = Buffer.from(`${JSON.stringify(value)}\n`);
    const done = this.#tail.then(async () => {
      try {
        await this.#handle.appendFile(line);
      } catch (error) {
        // Half a line would be read as garbage later.
        await this.#handle.truncate(this.#bytes).catch(() => {});
        throw error;
      }
      this.#bytes += line.length;
    });
    this.#tail = done.catch(() => {});
    return done;
  }

  /** Makes what was appended durable; returns the length of the file in bytes. */
  async sync(): Promise<number> {
    await this.#tail;
    await this.#handle.datasync();
    return this.#bytes;
  }

  async close(): Promise<void> {
    await this.#tail;
    await this.#handle.close();
  }
}

/** The lines of a log. A last line that is not finished, as a killed writer leaves it, is left out. */
export async function* readLog(path: string): AsyncGenerator<unknown, void, undefined> {
  const lines = createInterface({
    input: createReadStream(path, "utf8"),
    crlfDelay: Number.POSITIVE_INFINITY,
  });
  let number = 0;
  let fault: { number: number; cause: unknown } | null = null;
  for await (const line of lines) {
    number++;
    if (fault) break;
    try {
      yield JSON.parse(line) as unknown;
    } catch (cause) {
      fault = { number, cause };
    }
  }
  if (fault && fault.number < number) {
    throw new TokenringError(
      "ERR_TOKENRING_RUN_DIRECTORY",
      `${path}:${fault.number}: not JSON; the file is damaged`,
      {
        cause: fault.cause,
      },
    );
  }
}

/** The events of a metrics.jsonl, in order. */
export async function readEvents(path: string): Promise<LoggedEvent[]> {
  const events: LoggedEvent[] = [];
  for await (const event of readLog(path)) events.push(event as LoggedEvent);
  return events;
}
