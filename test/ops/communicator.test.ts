// The communicator as JavaScript sees it: ranks in one thread, in processes and in worker threads, and how each of
// their ends reaches the others.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readlinkSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Communicator } from "../../lib/ops/communicator.ts";
import { DeviceTensor } from "../../lib/ops/device-tensor.ts";
import { ranks, settledRanks } from "./ranks.ts";

const fixture = fileURLToPath(new URL("./fixtures/rank.ts", import.meta.url));

function code(name: string, message?: RegExp): unknown {
  return expect.objectContaining({
    name: "TokenringError",
    code: `ERR_TOKENRING_${name}`,
    ...(message && { message: expect.stringMatching(message) }),
  });
}

function reasons(outcomes: PromiseSettledResult<unknown>[]): unknown[] {
  return outcomes.map((outcome) => (outcome.status === "rejected" ? outcome.reason : undefined));
}

describe("collectives", () => {
  it("give every rank the same", async () => {
    const results = await ranks(4, async (communicator) => {
      const { rank } = communicator;
      const sum = Float32Array.of(rank, 10 * rank);
      const most = Int32Array.of(rank, -rank);
      const all = new Float32Array(8);
      const part = new Float32Array(1);
      const shared = Uint8Array.of(rank, rank);
      await Promise.all([
        communicator.allReduce(sum),
        communicator.allReduce(most, { reduction: "max" }),
        communicator.allGather(Float32Array.of(rank, -rank), all),
        communicator.reduceScatter(Float32Array.of(1, 2, 3, 4), part),
        communicator.broadcast(shared, 2),
        communicator.barrier(),
      ]);
      return { rank, sum, most, all, part, shared };
    });
    for (const { rank, ...result } of results) {
      expect(result).toEqual({
        sum: Float32Array.of(6, 60),
        most: Int32Array.of(3, 0),
        all: Float32Array.of(0, -0, 1, -1, 2, -2, 3, -3),
        part: Float32Array.of(4 * (rank + 1)),
        shared: Uint8Array.of(2, 2),
      });
    }
  });

  it("exchange messages in groups", async () => {
    const got = await ranks(3, async (communicator) => {
      const { rank, size } = communicator;
      const large = new Float32Array(300_000);
      const small = new Int32Array(1);
      await communicator.exchange([
        { send: new Float32Array(300_000).fill(rank), to: (rank + 1) % size },
        { send: Int32Array.of(10 * rank), to: (rank + 1) % size },
        { receive: large, from: (rank + size - 1) % size },
        { receive: small, from: (rank + size - 1) % size },
      ]);
      return [large[0], large[299_999], small[0]];
    });
    expect(got).toEqual([
      [2, 2, 20],
      [0, 0, 0],
      [1, 1, 10],
    ]);
  });

  it("send and receive between two", async () => {
    const got = await ranks(2, async (communicator) => {
      const x = Float32Array.of(7 + communicator.rank);
      if (communicator.rank === 0) await communicator.send(x, 1);
      else await communicator.receive(x, 0);
      return x[0];
    });
    expect(got).toEqual([7, 7]);
  });

  it("take device tensors, bf16 among them, and shared arrays", async () => {
    const sums = await ranks(2, async (communicator) => {
      using half = await DeviceTensor.from(Float32Array.of(1 + communicator.rank, 0.5), [2], {
        dtype: "bf16",
      });
      const shared = new Float32Array(new SharedArrayBuffer(8));
      shared.fill(communicator.rank);
      await communicator.allReduce(half);
      await communicator.allReduce(shared);
      const out = new Float32Array(2);
      await half.copyTo(out);
      return [...out, ...shared];
    });
    expect(sums).toEqual([
      [3, 1, 1, 1],
      [3, 1, 1, 1],
    ]);
  });
});

describe("disagreement", () => {
  it("is an error on every rank", async () => {
    const outcomes = await settledRanks(3, (communicator) =>
      communicator.allReduce(new Float32Array(communicator.rank === 1 ? 5 : 4)),
    );
    const words =
      /collective #1: rank \d runs all_reduce\(sum\) of . x f32, rank \d all_reduce\(sum\) of . x f32/;
    expect(reasons(outcomes)).toEqual(Array(3).fill(code("COMMUNICATOR", words)));
  });

  it("stays: later calls fail with the first cause", async () => {
    await settledRanks(2, async (communicator) => {
      const first = await (communicator.rank === 0
        ? communicator.barrier()
        : communicator.broadcast(Int32Array.of(1), 0)
      ).catch((error: Error) => error);
      expect(first).toEqual(code("COMMUNICATOR", /disagree/));
      await expect(communicator.barrier()).rejects.toEqual(code("COMMUNICATOR", /collective #1/));
    });
  });

  it("of a rank that never comes ends at the deadline, which names it", async () => {
    const id = Communicator.uniqueId();
    await expect(Communicator.create({ id, rank: 1, size: 3, timeout: 100 })).rejects.toEqual(
      code("TIMEOUT", /rank 1 of 3 waited in join for 0.1 s; missing: rank 0 \(never joined\) rank 2/),
    );
  });
});

/** Collectives of one rank, in their order. */
interface Step {
  call: "barrier" | "allReduce" | "allGather" | "broadcast" | "ring";
  count: number;
}
const step: fc.Arbitrary<Step> = fc.record({
  call: fc.constantFrom("barrier", "allReduce", "allGather", "broadcast", "ring"),
  count: fc.constantFrom(1, 7, 100_000),
});

async function follow(communicator: Communicator, steps: readonly Step[]): Promise<number[]> {
  const { rank, size } = communicator;
  const seen: number[] = [];
  for (const { call, count } of steps) {
    const x = new Float32Array(count).fill(rank);
    const all = new Float32Array(count * size);
    const next = new Float32Array(count);
    if (call === "barrier") await communicator.barrier();
    if (call === "allReduce") await communicator.allReduce(x);
    if (call === "broadcast") await communicator.broadcast(x, size - 1);
    if (call === "allGather") await communicator.allGather(x, all);
    if (call === "ring") {
      await communicator.exchange([
        { send: x, to: (rank + 1) % size },
        { receive: next, from: (rank + size - 1) % size },
      ]);
    }
    seen.push(x[count - 1] as number, all[count * size - 1] as number, next[count - 1] as number);
  }
  return seen;
}

describe("programs of collectives", () => {
  const program = fc.array(step, { minLength: 1, maxLength: 6 });
  const sizes = fc.integer({ min: 2, max: 4 });

  it("give all ranks what they should, whatever they are", async () => {
    await fc.assert(
      fc.asyncProperty(program, sizes, async (steps, size) => {
        const results = await ranks(size, (communicator) => follow(communicator, steps));
        for (const [rank, seen] of results.entries()) {
          const expected = steps.flatMap(({ call }) => [
            call === "allReduce" ? (size * (size - 1)) / 2 : call === "broadcast" ? size - 1 : rank,
            call === "allGather" ? size - 1 : 0,
            call === "ring" ? (rank + size - 1) % size : 0,
          ]);
          expect(seen).toEqual(expected);
        }
      }),
      { numRuns: 30 },
    );
  });

  it("that differ on one rank end everywhere, and not without an error", async () => {
    const odd = fc.nat();
    await fc.assert(
      fc.asyncProperty(program, sizes, step, odd, odd, async (steps, size, other, who, where) => {
        const at = where % steps.length;
        fc.pre(
          other.call !== steps[at]?.call || (other.count !== steps[at]?.count && other.call !== "barrier"),
        );
        const changed = steps.with(at, other);
        const outcomes = await settledRanks(size, (communicator) =>
          follow(communicator, communicator.rank === who % size ? changed : steps),
        );
        const failed = reasons(outcomes).filter((reason) => reason !== undefined);
        expect(failed.length).toBeGreaterThan(0);
        // A rank that waits for one that left or disagrees learns it long before the deadline.
        for (const reason of failed) expect(reason).toEqual(code("COMMUNICATOR"));
      }),
      { numRuns: 40 },
    );
  });
});

describe("the end of a rank", () => {
  it("by its signal ends the others, and gives it its reason", async () => {
    const controller = new AbortController();
    const reason = new Error("no longer wanted");
    let ended = (): void => {};
    const end = new Promise<void>((resolve) => {
      ended = resolve;
    });
    const outcomes = await settledRanks(3, async (communicator) => {
      if (communicator.rank === 1) return end.then(() => communicator.barrier());
      if (communicator.rank === 0) return communicator.allReduce(new Float32Array(3)).finally(ended);
      setTimeout(() => controller.abort(reason), 20);
      return communicator.allReduce(new Float32Array(3), { signal: controller.signal });
    });
    const [first, second, own] = reasons(outcomes);
    expect(own).toBe(reason);
    expect([first, second]).toEqual(
      Array(2).fill(code("COMMUNICATOR", /rank 2 of 3 aborted it in all_reduce #1: a call was aborted/)),
    );
  });

  it("by its signal while it joins ends the joining of the others", async () => {
    const id = Communicator.uniqueId();
    const controller = new AbortController();
    const waiting = Communicator.create({ id, rank: 0, size: 3 });
    const own = Communicator.create({ id, rank: 1, size: 3, signal: controller.signal });
    const reason = new Error("no longer wanted");
    controller.abort(reason);
    expect(reasons(await Promise.allSettled([own, waiting]))).toEqual([
      reason,
      code("COMMUNICATOR", /rank 1 of 3 aborted it in join/),
    ]);
  });

  it("by abort() says why", async () => {
    const outcomes = await settledRanks(2, async (communicator) => {
      if (communicator.rank === 1) communicator.abort("the learning rate is wrong");
      await communicator.barrier();
    });
    expect(reasons(outcomes)).toEqual([
      code("COMMUNICATOR", /rank 1 of 2 aborted it .*: the learning rate is wrong/),
      code("ABORTED", /rank 1 of 2 aborted the communicator/),
    ]);
  });

  it("by dispose() is noticed, and ends its own calls", async () => {
    const outcomes = await settledRanks(2, async (communicator) => {
      if (communicator.rank === 0) return communicator.barrier();
      const waiting = communicator.barrier().catch((error: Error) => error);
      await communicator.dispose();
      expect(communicator.disposed).toBe(true);
      await communicator.dispose();
      await expect(communicator.barrier()).rejects.toEqual(code("DISPOSED", /the communicator was disposed/));
      return waiting;
    });
    // The last barrier may have been passed by both before one of them left.
    for (const reason of reasons(outcomes))
      if (reason) expect(reason).toMatchObject({ name: "TokenringError" });
    const left = await settledRanks(2, async (communicator) => {
      if (communicator.rank === 0) await communicator.barrier();
    });
    expect(reasons(left)).toEqual([
      code("COMMUNICATOR", /rank 1, which has left the communicator/),
      undefined,
    ]);
  });
});

/** A rank in a process of its own, and the lines that it says. */
function start(
  id: Uint8Array,
  rank: number,
  size: number,
  what: string,
): { child: ChildProcess; lines: string[] } {
  const argv = ["--import", "tsx", fixture, Buffer.from(id).toString("hex"), `${rank}`, `${size}`, what];
  const child = spawn(process.execPath, argv, { stdio: ["ignore", "pipe", "inherit"], timeout: 50_000 });
  const lines: string[] = [];
  createInterface({ input: child.stdout as NonNullable<typeof child.stdout> }).on("line", (line) =>
    lines.push(line),
  );
  return { child, lines };
}

/** Shared memory of communicators that this process has open or mapped. */
function remains(): string[] {
  return readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes("memfd:tokenring");
    } catch {
      return false;
    }
  });
}

describe("ranks in processes", () => {
  it("meet, and a killed one is missed at once", async () => {
    const id = Communicator.uniqueId();
    const other = start(id, 1, 3, "idle");
    const third = start(id, 2, 3, "stay");
    const closed = Promise.all([once(other.child, "close"), once(third.child, "close")]);
    await using communicator = await Communicator.create({ id, rank: 0, size: 3, timeout: 30_000 });
    expect(remains()).toEqual([]);
    const x = Float32Array.of(0, 1);
    await communicator.allReduce(x);
    expect([...x]).toEqual([3, 3]);
    while (other.lines.length === 0) await new Promise(setImmediate);
    other.child.kill("SIGKILL");
    const noticed = performance.now();
    await expect(communicator.barrier()).rejects.toEqual(
      code("COMMUNICATOR", new RegExp(`rank 1, whose process ${other.child.pid} has died`)),
    );
    expect(performance.now() - noticed).toBeLessThan(15_000); // far from the deadline
    await closed;
    expect(third.lines[0]).toBe("sum 3 3");
    expect(third.lines[1]).toMatch(/has died/);
  });

  it.each([
    ["leave", 0],
    ["exit", 3],
    ["end undisposed", 0],
  ])("may %s when their work is done", async (what, status) => {
    const id = Communicator.uniqueId();
    const other = start(id, 1, 2, what);
    const closed = once(other.child, "close");
    await using communicator = await Communicator.create({ id, rank: 0, size: 2, timeout: 30_000 });
    await communicator.allReduce(Float32Array.of(0, 1));
    expect(await closed).toEqual([status, null]);
    expect(other.lines).toEqual(["sum 1 2"]);
    await expect(communicator.barrier()).rejects.toEqual(code("COMMUNICATOR", /left|died/));
  });
});

describe("ranks in worker threads", () => {
  // A thread has no loader for TypeScript: it takes what was built.
  const script = new URL("../../dist/ops/index.js", import.meta.url).href;
  const source = `
    const { workerData } = require("node:worker_threads");
    import(workerData.script).then(async ({ Communicator }) => {
      const { id, rank, size } = workerData;
      const communicator = await Communicator.create({ id, rank, size, timeout: 20000 });
      await communicator.barrier();
      await communicator.barrier();
    });`;

  it("are missed when their thread is terminated, even in the middle of a call", async () => {
    const id = Communicator.uniqueId();
    const worker = new Worker(source, { eval: true, workerData: { id, rank: 1, size: 2, script } });
    await using communicator = await Communicator.create({ id, rank: 0, size: 2, timeout: 30_000 });
    await communicator.barrier();
    await worker.terminate();
    await expect(communicator.barrier()).rejects.toEqual(code("COMMUNICATOR", /rank 1.*(left|aborted)/));
  });
});

describe("arguments", () => {
  it("are checked before anything happens, and leave the communicator whole", async () => {
    await ranks(2, async (communicator) => {
      const bad = async (call: Promise<unknown>, message: RegExp) =>
        expect(call).rejects.toEqual(code("INVALID_ARGUMENT", message));
      await bad(communicator.broadcast(new Float32Array(1), 2), /root is 2, must be a rank below 2/);
      await bad(communicator.broadcast(new Float32Array(1), 0.5), /root must be an integer, got 0.5/);
      await bad(communicator.allGather(new Float32Array(2), new Float32Array(3)), /must have 2 times/);
      await bad(communicator.send(new Float32Array(1), communicator.rank), /must be another rank/);
      await bad(communicator.allReduce(new Uint8Array(1)), /u8 has no arithmetic/);
      await bad(communicator.allReduce([1] as never), /x.dtype must be a string|dtype/);
      await communicator.barrier();
    });
    const id = Communicator.uniqueId();
    const make = (changes: object) => Communicator.create({ id, rank: 0, size: 1, ...changes });
    await expect(make({ rank: 1 })).rejects.toEqual(code("INVALID_ARGUMENT", /options.rank .* got 1/));
    await expect(make({ size: 65 })).rejects.toEqual(code("INVALID_ARGUMENT", /options.size/));
    await expect(make({ timeout: 0 })).rejects.toEqual(code("INVALID_ARGUMENT", /options.timeout/));
    await expect(make({ id: new Uint8Array(3) })).rejects.toEqual(code("INVALID_ARGUMENT", /128 bytes/));
    await expect(make({ id: new Uint8Array(128) })).rejects.toEqual(code("INVALID_ARGUMENT", /uniqueId/));
    await expect(make({ device: "tpu" })).rejects.toEqual(code("INVALID_ARGUMENT", /options.device must be/));
    // On a GPU, or with the reason why not.
    const gpu = await make({ device: "cuda", id: Communicator.uniqueId({ device: "cuda" }) }).then(
      (communicator) => communicator.dispose(),
      (error) => error,
    );
    if (gpu) expect(gpu).toEqual(code("INVALID_ARGUMENT", /device "cuda" cannot be used: |needs? NCCL/));
  });
});
