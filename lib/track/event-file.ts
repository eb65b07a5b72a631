// TensorBoard's event files, byte by byte. A file is a sequence of records; a record is
//
//   u64 length, u32 masked CRC32C of the length, the data, u32 masked CRC32C of the data     (little-endian)
//
// and its data a protocol buffer `Event`. Formats: tensorflow/core/lib/io/record_writer.h and, of TensorBoard's repository,
// tensorboard/compat/proto/{event,summary,tensor,tensor_shape,types}.proto.

const CASTAGNOLI = 0x82f63b78;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ CASTAGNOLI : crc >>> 1;
  return crc;
});

/** CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `bytes`. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (TABLE[(crc ^ byte) & 0xff] as number);
  return (crc ^ 0xffffffff) >>> 0;
}

/** The checksum as it stands in a record: rotated and shifted, so that a checksum over checksums still says something. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** `data` as a record. */
export function record(data: Uint8Array): Buffer {
  const out = Buffer.alloc(16 + data.length);
  out.writeBigUInt64LE(BigInt(data.length), 0);
  out.writeUInt32LE(masked(out.subarray(0, 8)), 8);
  out.set(data, 12);
  out.writeUInt32LE(masked(data), 12 + data.length);
  return out;
}

// --- protocol buffers: a field is a varint (number << 3 | wire type) and its value ---
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

function varint(value: number | bigint): Buffer {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 0x7fn; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80);
  bytes.push(Number(rest));
  return Buffer.from(bytes);
}

const key = (field: number, type: number): Buffer => varint((field << 3) | type);

function bytes(field: number, value: Uint8Array | string): Buffer {
  const data = typeof value === "string" ? Buffer.from(value) : value;
  return Buffer.concat([key(field, BYTES), varint(data.length), data]);
}

const message = (field: number, ...parts: readonly Buffer[]): Buffer => bytes(field, Buffer.concat(parts));

const integer = (field: number, value: number): Buffer => Buffer.concat([key(field, VARINT), varint(value)]);

function double(field: number, value: number): Buffer {
  const data = Buffer.alloc(8);
  data.writeDoubleLE(value);
  return Buffer.concat([key(field, FIXED64), data]);
}

function float(field: number, value: number): Buffer {
  const data = Buffer.alloc(4);
  data.writeFloatLE(value);
  return Buffer.concat([key(field, FIXED32), data]);
}

/** DataType.DT_STRING. */
const STRING = 7;

/** A number, or a text in Markdown for the tab "Text". */
export interface EventValue {
  tag: string;
  value: number | string;
}

function summaryValue({ tag, value }: EventValue): Buffer {
  if (typeof value === "number") return message(1, bytes(1, tag), float(2, value));
  const shape = message(2, message(2, integer(1, 1)));
  const tensor = message(8, integer(1, STRING), shape, bytes(8, value));
  const metadata = message(9, message(1, bytes(1, "text")));
  return message(1, bytes(1, tag), tensor, metadata);
}

/** The record that a file begins with; `at` in milliseconds since 1970. */
export function fileVersion(at: number): Buffer {
  return record(Buffer.concat([double(1, at / 1000), bytes(3, "brain.Event:2")]));
}

/** Values of one step as a record; `at` in milliseconds since 1970. Numbers become float32. */
export function summaryEvent(at: number, step: number, values: readonly EventValue[]): Buffer {
  const counted = step === 0 ? [] : [integer(2, step)];
  return record(Buffer.concat([double(1, at / 1000), ...counted, message(5, ...values.map(summaryValue))]));
}
