// A run as an event file of TensorBoard. The file is made of metrics.jsonl and of nothing else, so it can be made at any
// time, and what a resume did again never stands in it twice.
import { type FileHandle, mkdir, open, readdir, readFile } from "node:fs/promises";
import { hostname } from "node:os";
import path from "node:path";
import type { LoggedEvent } from "../learn/events.ts";
import { type EventValue, fileVersion, summaryEvent } from "./event-file.ts";
import { type Scalar, scalarsOf } from "./scalars.ts";

/** What a file says of its run beside the events. */
export interface TrackedRun {
  version: string;
  seed: number;
  /** ISO 8601. */
  createdAt: string;
  /** The config as text. */
  config: string;
}

/** stage1/step/mismatch/p95, evaluation/pass1, evaluation/turns 12/pass1. */
function tagOf({ type, stage, path, labels }: Scalar): string {
  // Evaluations of all stages are one curve: the arc.
  const from = stage === undefined || type === "evaluation" ? [type] : [stage, type];
  return [...from, ...Object.entries(labels).map(([label, name]) => `${label} ${name}`), ...path].join("/");
}

/** Turns the events of one run, in their order, into records. */
export class EventEncoder {
  #evaluations = 0;

  /** What the file begins with: the config is in the tab "Text". */
  begin({ version, seed, createdAt, config }: TrackedRun): Buffer {
    const at = Date.parse(createdAt);
    const code = config.trimEnd().replaceAll(/^/gm, "    ");
    const value = `tokenring ${version}, seed ${seed}\n\n${code}\n`;
    return Buffer.concat([fileVersion(at), summaryEvent(at, 0, [{ tag: "config", value }])]);
  }

  /** The record of an event; empty for one that holds no number. */
  next(event: LoggedEvent): Buffer {
    const values: EventValue[] = [];
    for (const scalar of scalarsOf(event)) values.push({ tag: tagOf(scalar), value: scalar.value });
    const step = this.#stepOf(event);
    return values.length === 0 ? Buffer.alloc(0) : summaryEvent(event.at, step, values);
  }

  /** Where an event stands on the axis of its curves: steps and iterations count within their stage. */
  #stepOf(event: LoggedEvent): number {
    if (event.type === "step") return event.step;
    if (event.type === "iteration" || event.type === "sampled") return event.iteration;
    return event.type === "evaluation" ? this.#evaluations++ : 0;
  }
}

function commonLength(a: Uint8Array, b: Uint8Array): number {
  const most = Math.min(a.length, b.length);
  if (Buffer.compare(a.subarray(0, most), b.subarray(0, most)) === 0) return most;
  let at = 0;
  while (a[at] === b[at]) at++;
  return at;
}

/**
 * The name of the file in `directory`: the one that is there, or a new one. TensorBoard knows event files by "tfevents";
 * W&B follows those alone whose names go on with a time after its own start and with its host.
 */
async function fileName(directory: string): Promise<string> {
  const there = (await readdir(directory)).find((name) =>
    /^events\.out\.tfevents\..*\.tokenring$/.test(name),
  );
  return there ?? `events.out.tfevents.${Math.floor(Date.now() / 1000)}.${hostname()}.tokenring`;
}

/** The event file of one run, which grows with it. */
export class TensorBoardLog implements AsyncDisposable {
  readonly path: string;
  readonly #encoder: EventEncoder;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle, encoder: EventEncoder) {
    this.path = path;
    this.#file = file;
    this.#encoder = encoder;
  }

  /**
   * Makes the file of `run` in `directory` (which is made) say what `events` say. One that is there already is changed in
   * place and only from where it differs, so that a TensorBoard that reads it goes on. Rejects with what the file system
   * says.
   */
  static async open(
    directory: string,
    run: TrackedRun,
    events: readonly LoggedEvent[],
  ): Promise<TensorBoardLog> {
    const encoder = new EventEncoder();
    const wanted = Buffer.concat([encoder.begin(run), ...events.map((event) => encoder.next(event))]);
    await mkdir(directory, { recursive: true });
    const file = path.join(directory, await fileName(directory));
    const handle = await open(file, "a");
    try {
      const same = commonLength(await readFile(file), wanted);
      await handle.truncate(same);
      await handle.appendFile(wanted.subarray(same));
    } catch (error) {
      await handle.close();
      throw error;
    }
    return new TensorBoardLog(file, handle, encoder);
  }

  /** Call it with one event after the other. */
  async append(event: LoggedEvent): Promise<void> {
    const bytes = this.#encoder.next(event);
    if (bytes.length > 0) await this.#file.appendFile(bytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}
