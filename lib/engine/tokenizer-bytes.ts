// The alphabet of byte-level BPE: one printable character for each of the 256 bytes, so that a vocabulary can be
// written as JSON strings. Printable Latin-1 bytes stand for themselves, the others for U+0100 and up, in order.

function standsForItself(byte: number): boolean {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/** The character that stands for each byte. */
export const BYTE_CHARACTERS: readonly string[] = (() => {
  let shifted = 0;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(standsForItself(byte) ? byte : 0x100 + shifted++),
  );
})();

const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** The bytes that a vocabulary entry stands for, or null when it holds a character outside the alphabet. */
export function bytesOfEntry(entry: string): Uint8Array | null {
  const bytes = new Uint8Array(entry.length);
  for (let i = 0; i < entry.length; i++) {
    const byte = BYTE_OF.get(entry.charAt(i));
    if (byte === undefined) return null;
    bytes[i] = byte;
  }
  return bytes;
}
