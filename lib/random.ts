// Every random choice comes from one seed through named, counted streams, so that a choice depends on what it is
// for and not on what was drawn before it.

const MASK = (1n << 64n) - 1n;

/** splitmix64's finaliser: a bijection of 64-bit integers with good avalanche. */
function mix(value: bigint): bigint {
  let z = (value + 0x9e3779b97f4a7c15n) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}

/** A 64-bit key for (seed, name, counters): equal inputs give equal keys, different ones unrelated keys. */
export function streamKey(seed: number | bigint, name: string, ...counters: number[]): bigint {
  let key = mix(BigInt(seed) & MASK);
  for (const byte of new TextEncoder().encode(name)) key = mix(key ^ BigInt(byte));
  for (const counter of counters) key = mix(key ^ (BigInt(counter) & MASK));
  return key;
}

/** A stream of random numbers: sfc32, seeded by a 64-bit key. */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d = 1;

  constructor(key: bigint) {
    this.#a = Number(key & 0xffffffffn) | 0;
    this.#b = Number(key >> 32n) | 0;
    this.#c = Number(mix(key) & 0xffffffffn) | 0;
    for (let i = 0; i < 12; i++) this.uint32();
  }

  /** The stream that belongs to (seed, name, counters). */
  static of(seed: number | bigint, name: string, ...counters: number[]): Random {
    return new Random(streamKey(seed, name, ...counters));
  }

  /** An integer in [0, 2^32). */
  uint32(): number {
    const t = (((this.#a + this.#b) | 0) + this.#d) | 0;
    this.#d = (this.#d + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (this.#c << 21) | (this.#c >>> 11);
    this.#c = (this.#c + t) | 0;
    return t >>> 0;
  }

  /** A float in [0, 1) with 32 random bits. */
  uniform(): number {
    return this.uint32() / 0x1_0000_0000;
  }

  /** An integer in [0, n). */
  below(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** True with probability p. */
  chance(p: number): boolean {
    return this.uniform() < p;
  }

  /** One element, all equally likely. */
  pick<T>(items: readonly T[]): T {
    if (items.length === 0) throw new RangeError("pick from an empty list");
    return items[this.below(items.length)] as T;
  }

  /** One key of `weights`, with probability proportional to its value. */
  weighted<K extends string>(weights: Readonly<Record<K, number>>): K {
    const entries = Object.entries(weights) as [K, number][];
    let left = this.uniform() * entries.reduce((sum, [, weight]) => sum + weight, 0);
    for (const [key, weight] of entries) {
      left -= weight;
      if (left < 0) return key;
    }
    return (entries.at(-1) as [K, number])[0];
  }

  /** A shuffled copy (Fisher-Yates). */
  shuffle<T>(items: readonly T[]): T[] {
    const out = [...items];
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j] as T, out[i] as T];
    }
    return out;
  }
}
