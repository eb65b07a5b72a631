// Safetensors for the typed arrays that trajectories are made of: an 8-byte header length, a JSON header, raw data.
import { open } from "node:fs/promises";
import { TokenringError } from "../errors.ts";

export type Lane = Int32Array | Uint8Array | Float32Array;

const DTYPES = { I32: Int32Array, U8: Uint8Array, F32: Float32Array } as const;
type Dtype = keyof typeof DTYPES;

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

function dtypeOf(lane: Lane): Dtype {
  if (lane instanceof Int32Array) return "I32";
  return lane instanceof Float32Array ? "F32" : "U8";
}

/**
 * The bytes of a file that holds `lanes` as one-dimensional tensors, each given in pieces; piece by piece, none of them
 * copied. Wider dtypes come first, so all are aligned.
 */
export function* safetensorsPieces(
  lanes: Readonly<Record<string, readonly Lane[]>>,
  metadata: Readonly<Record<string, string>> = {},
): Generator<Uint8Array> {
  const header: Record<string, unknown> = { __metadata__: { format: "tokenring", ...metadata } };
  const width = (pieces: readonly Lane[]): number => pieces[0]?.BYTES_PER_ELEMENT ?? 1;
  const ordered = Object.entries(lanes).sort(([, a], [, b]) => width(b) - width(a));
  let end = 0;
  for (const [name, pieces] of ordered) {
    const begin = end;
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    end += length * width(pieces);
    header[name] = {
      dtype: dtypeOf(pieces[0] ?? new Uint8Array()),
      shape: [length],
      data_offsets: [begin, end],
    };
  }
  const json = JSON.stringify(header);
  const text = new TextEncoder().encode(json + " ".repeat((8 - (Buffer.byteLength(json) % 8)) % 8));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
  yield length;
  yield text;
  for (const [, pieces] of ordered)
    for (const { buffer, byteOffset, byteLength } of pieces)
      yield new Uint8Array(buffer, byteOffset, byteLength);
}

function broken(path: string, why: string, cause?: unknown): TokenringError {
  return new TokenringError(
    "ERR_TOKENRING_RUN_DIRECTORY",
    `${path}: ${why}; the file is damaged or was written by something else`,
    { cause },
  );
}

/** A file of one-dimensional tensors of which any range can be read without the rest. */
export class SafetensorsFile {
  readonly #path: string;
  readonly #entries: Map<string, Entry>;
  readonly #data: number;

  private constructor(path: string, entries: Map<string, Entry>, data: number) {
    this.#path = path;
    this.#entries = entries;
    this.#data = data;
  }

  /** Reads and checks the header. Throws ERR_TOKENRING_RUN_DIRECTORY when the file is not what it should be. */
  static async open(path: string): Promise<SafetensorsFile> {
    await using file = await open(path, "r");
    const { size } = await file.stat();
    const prefix = new DataView(new ArrayBuffer(8));
    if ((await file.read(prefix, 0, 8, 0)).bytesRead < 8) throw broken(path, "shorter than its own header");
    const length = Number(prefix.getBigUint64(0, true));
    if (length > Math.min(size - 8, 100_000_000))
      throw broken(path, `says that its header has ${length} bytes`);
    const text = new Uint8Array(length);
    await file.read(text, 0, length, 8);
    let header: Record<string, Entry>;
    try {
      header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text)) as Record<string, Entry>;
    } catch (error) {
      throw broken(path, "its header is not JSON", error);
    }
    const entries = new Map(Object.entries(header).filter(([name]) => name !== "__metadata__"));
    for (const [name, entry] of entries) {
      const width = DTYPES[entry.dtype as Dtype]?.BYTES_PER_ELEMENT;
      const [begin, end] = entry.data_offsets;
      const count = entry.shape[0];
      if (width === undefined || entry.shape.length !== 1 || end - begin !== (count ?? -1) * width) {
        throw broken(path, `tensor ${name} is not a lane of I32, F32 or U8`);
      }
      if (begin < 0 || 8 + length + end > size) throw broken(path, `tensor ${name} ends after the file`);
    }
    return new SafetensorsFile(path, entries, 8 + length);
  }

  /** Elements of tensor `name`; null where there is none. */
  length(name: string): number | null {
    return this.#entries.get(name)?.shape[0] ?? null;
  }

  /** Elements [start, end) of tensor `name`. */
  async read(name: string, start: number, end: number): Promise<Lane> {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw broken(this.#path, `has no tensor ${name}`);
    if (start < 0 || end < start || end > (entry.shape[0] as number)) {
      throw broken(this.#path, `tensor ${name} has no elements ${start} to ${end}`);
    }
    const Type = DTYPES[entry.dtype as Dtype];
    const lane = new Type(end - start);
    const begin = this.#data + entry.data_offsets[0] + start * Type.BYTES_PER_ELEMENT;
    await using file = await open(this.#path, "r");
    const bytes = new Uint8Array(lane.buffer);
    const { bytesRead } = await file.read(bytes, 0, bytes.length, begin);
    if (bytesRead < bytes.length) throw broken(this.#path, `tensor ${name} ends after the file`);
    return lane;
  }
}
