// The CPU backend gives the same bits on every instruction set. Which one runs is settled once a process, so each
// has a process of its own, with another number of threads, and computes the same random cases.
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { tries } from "../support/arbitrary.ts";

const script = fileURLToPath(new URL("./fixtures/digests.ts", import.meta.url));
const cases = tries(8).numRuns as number;
const seed = Date.now() % 2 ** 31;

/** What the fixture said of each case, or why it cannot run here. */
async function computed(isa: string, threads: number): Promise<unknown[] | string> {
  const args = ["--import", "tsx", script, ...[seed, cases, threads].map(String)];
  try {
    const env = { ...process.env, TOKENRING_ISA: isa };
    const { stdout } = await promisify(execFile)(process.execPath, args, { env, maxBuffer: 2 ** 28 });
    const [head, ...lines] = stdout.trim().split("\n");
    expect(head).toBe(JSON.stringify({ isa }));
    expect(lines).toHaveLength(cases);
    return lines.map((line) => JSON.parse(line));
  } catch (error) {
    const lacking = /TOKENRING_ISA asks for .*; unset it/.exec((error as { stderr?: string }).stderr ?? "");
    if (!lacking) throw error;
    return lacking[0];
  }
}

describe("random cases", () => {
  let results: Record<string, unknown[] | string>;
  beforeAll(async () => {
    const [scalar, avx2, avx512, amx] = await Promise.all([
      computed("scalar", 1),
      computed("avx2", 2),
      computed("avx512", 3),
      computed("amx", 2),
    ]);
    results = { scalar, avx2, avx512, amx };
  }, 240_000);

  it.for(["avx2", "avx512", "amx"])("have the scalar bits on %s", (isa, { skip }) => {
    const result = results[isa] as unknown[] | string;
    if (typeof result === "string") skip(result);
    expect(result, `seed ${seed}`).toEqual(results.scalar);
  });
});
