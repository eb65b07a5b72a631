// Reads an event file for the tests: an independent walk over records and protocol buffers.
import { crc32c } from "../../lib/track/event-file.ts";

export interface ReadEvent {
  wallTime: number;
  step: number;
  fileVersion?: string;
  scalars: Record<string, number>;
  texts: Record<string, string>;
}

type Field = { number: number; value: bigint | Buffer };

function* fields(data: Buffer): Generator<Field> {
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = data[at++] as number;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  const take = (length: number): Buffer => {
    at += length;
    if (at > data.length) throw new Error("a field ends behind its message");
    return data.subarray(at - length, at);
  };
  while (at < data.length) {
    const key = Number(varint());
    const number = key >> 3;
    if ((key & 7) === 0) yield { number, value: varint() };
    else if ((key & 7) === 1) yield { number, value: take(8) };
    else if ((key & 7) === 2) yield { number, value: take(Number(varint())) };
    else if ((key & 7) === 5) yield { number, value: take(4) };
    else throw new Error(`wire type ${key & 7}`);
  }
}

const field = (data: Buffer, number: number): bigint | Buffer | undefined =>
  [...fields(data)].find((one) => one.number === number)?.value;

const unmasked = (masked: number): number => {
  const rotated = (masked - 0xa282ead8) >>> 0;
  return ((rotated << 15) | (rotated >>> 17)) >>> 0;
};

/** Throws where a checksum is not that of its bytes, or the last record is not whole. */
export function readEventFile(bytes: Buffer): ReadEvent[] {
  const events: ReadEvent[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    const data = bytes.subarray(at + 12, at + 12 + length);
    if (unmasked(bytes.readUInt32LE(at + 8)) !== crc32c(bytes.subarray(at, at + 8)))
      throw new Error(`checksum of the length at ${at}`);
    if (unmasked(bytes.readUInt32LE(at + 12 + length)) !== crc32c(data)) throw new Error(`checksum at ${at}`);
    at += 16 + length;
    const version = field(data, 3) as Buffer | undefined;
    const event: ReadEvent = {
      wallTime: (field(data, 1) as Buffer).readDoubleLE(),
      step: Number(field(data, 2) ?? 0n),
      ...(version && { fileVersion: version.toString() }),
      scalars: {},
      texts: {},
    };
    for (const { value } of [...fields((field(data, 5) as Buffer | undefined) ?? Buffer.alloc(0))]) {
      const tag = (field(value as Buffer, 1) as Buffer).toString();
      const number = field(value as Buffer, 2) as Buffer | undefined;
      if (number) event.scalars[tag] = number.readFloatLE();
      else event.texts[tag] = (field(field(value as Buffer, 8) as Buffer, 8) as Buffer).toString();
    }
    events.push(event);
  }
  return events;
}
