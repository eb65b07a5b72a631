// What a rank says of single tokens, on its way to rank 0: the tokens that it has something to say of.
import type { NativeLossResult } from "../ops/binding.ts";

/** Lanes of a batch without the tokens of which all are 0: those of other ranks, and those that carry no loss. */
export interface PackedLanes {
  loss: number;
  /** Tokens of the batch. */
  size: number;
  /** Begin and length of each run of tokens that is there. */
  runs: Int32Array;
  /** Of the runs' tokens, one after the other; nats. */
  logprob: Float32Array;
  entropy: Float32Array;
  flags: Int32Array;
}

export function packLanes({ loss, logprob, entropy, flags }: NativeLossResult): PackedLanes {
  const runs: number[] = [];
  let kept = 0;
  for (let i = 0; i < logprob.length; i++) {
    if (logprob[i] === 0 && entropy[i] === 0 && flags[i] === 0) continue;
    const last = runs.length - 2;
    if (last >= 0 && (runs[last] as number) + (runs[last + 1] as number) === i)
      runs[last + 1] = (runs[last + 1] as number) + 1;
    else runs.push(i, 1);
    kept++;
  }
  const packed: PackedLanes = {
    loss,
    size: logprob.length,
    runs: Int32Array.from(runs),
    logprob: new Float32Array(kept),
    entropy: new Float32Array(kept),
    flags: new Int32Array(kept),
  };
  eachRun(packed, (begin, length, at) => {
    packed.logprob.set(logprob.subarray(begin, begin + length), at);
    packed.entropy.set(entropy.subarray(begin, begin + length), at);
    packed.flags.set(flags.subarray(begin, begin + length), at);
  });
  return packed;
}

export function unpackLanes(packed: PackedLanes): NativeLossResult {
  const { loss, size } = packed;
  const logprob = new Float32Array(size);
  const entropy = new Float32Array(size);
  const flags = new Int32Array(size);
  eachRun(packed, (begin, length, at) => {
    logprob.set(packed.logprob.subarray(at, at + length), begin);
    entropy.set(packed.entropy.subarray(at, at + length), begin);
    flags.set(packed.flags.subarray(at, at + length), begin);
  });
  return { loss, logprob, entropy, flags };
}

/** `at`: where the run's tokens are among those that are there. */
function eachRun({ runs }: PackedLanes, use: (begin: number, length: number, at: number) => void): void {
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) {
    const length = runs[i + 1] as number;
    use(runs[i] as number, length, at);
    at += length;
  }
}
