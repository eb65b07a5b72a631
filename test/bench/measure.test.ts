// How sides are measured: in turns, with as many warm-up calls, and without a peer where it is missing or fails.
import { describe, expect, it } from "vitest";
import { measure } from "../../bench/index.ts";
import { openPeerProcess } from "../../bench/peers/process.ts";

const busy = (milliseconds: number): void => {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
};

describe("measure", () => {
  it("gives the sides turns in alternation after one call each, and divides their medians", async () => {
    const order: string[] = [];
    const side = (name: string, milliseconds: number) => async (): Promise<void> => {
      order.push(name);
      busy(milliseconds);
    };
    const [result, ...rest] = await measure(
      {
        name: "busy",
        unit: "calls/s",
        work: 1,
        ours: side("a", 1),
        peers: { four: async () => ({ name: "busier", call: side("b", 4) }) },
      },
      { rounds: 3, turnMilliseconds: 12 },
    );
    expect(rest).toEqual([]);
    expect(order.slice(0, 2)).toEqual(["a", "b"]);
    expect(order.slice(2).join("")).toMatch(/^(a+b+){3}$/);
    // A call may take longer than it was told to, never less.
    expect(result?.name).toBe("busy, vs four");
    expect(result?.value).toBeLessThanOrEqual(1000);
    expect(result?.peer?.value).toBeLessThanOrEqual(250);
    expect(result?.ratio).toBe((result?.value ?? 0) / (result?.peer?.value ?? 0));
  });

  it("takes medians and deviations of what the calls give, and smaller is better where it is no rate", async () => {
    const series = (values: number[]) => async (): Promise<number> => values.shift() as number;
    const results = await measure(
      {
        name: "memory",
        unit: "MiB",
        work: null,
        // The first of each warms up.
        ours: series([99, 1, 4, 2]),
        peers: {
          big: async () => ({ name: "big 1.0", call: series([99, 8, 30, 9]) }),
          none: async () => null,
        },
      },
      { rounds: 3 },
    );
    expect(results).toEqual([
      {
        name: "memory, vs big",
        unit: "MiB",
        value: 2,
        mad: 1,
        peer: { name: "big 1.0", value: 9, mad: 1 },
        ratio: 4.5,
      },
      { name: "memory, vs none", unit: "MiB", value: 2, mad: 1, peer: null, ratio: null },
    ]);
  });

  it("leaves out a peer that fails, and says so", async () => {
    const warnings: string[] = [];
    let calls = 0;
    const failing = async (): Promise<void> => {
      if (++calls === 3) throw new Error("out of memory");
    };
    const closed: string[] = [];
    const peers = {
      torch: async () => ({ name: "torch 9", call: failing, close: async () => void closed.push("torch 9") }),
      broken: () => Promise.reject(new Error("no such file")),
    };
    const results = await measure(
      { name: "x", unit: "s", work: 1, ours: async () => {}, peers },
      { rounds: 4, turnMilliseconds: 0.001, onWarning: (message) => warnings.push(message) },
    );
    expect(results).toMatchObject([
      { name: "x, vs torch", peer: null, ratio: null },
      { name: "x, vs broken", peer: null, ratio: null },
    ]);
    expect(warnings).toEqual([
      "x: broken failed and is left out: no such file",
      "x: torch 9 failed and is left out: out of memory",
    ]);
    expect(closed).toEqual(["torch 9"]);
  });

  it("ends with what a call of ours throws, with a value that is none, and when it is aborted", async () => {
    const of = (ours: () => Promise<unknown>, work: number | null, ms = 10_000) =>
      measure(
        { name: "x", unit: "s", work, ours, peers: {} },
        { signal: AbortSignal.timeout(ms), rounds: 1e6 },
      );
    await expect(of(() => Promise.reject(new Error("no device")), 1)).rejects.toThrow("no device");
    await expect(of(async () => undefined, null)).rejects.toThrow("x: a call gave undefined");
    await expect(of(async () => busy(1), 1, 20)).rejects.toMatchObject({ name: "TimeoutError" });
  });
});

describe("a peer's process", () => {
  const open = (script: string, onMissing?: (reason: string) => void) =>
    openPeerProcess(process.execPath, ["-e", script], { work: 3 }, {}, onMissing);
  const lines = 'require("readline").createInterface({ input: process.stdin }).on("line", (line) =>';

  it("is told its request, answers each call, and ends with its input", async () => {
    const peer = await open(
      `let work; ${lines} { if (!work) { work = JSON.parse(line).work; console.log('{"name": "node"}'); } ` +
        "else console.log(work++); });",
    );
    expect(peer?.name).toBe("node");
    expect([await peer?.call(), await peer?.call()]).toEqual([3, 4]);
    await peer?.close();
    await expect(peer?.call()).rejects.toThrow(/ended before it answered/);
  });

  it("is null where it says what is missing, or where there is no such program", async () => {
    const reasons: string[] = [];
    const note = (reason: string) => reasons.push(reason);
    expect(await open(`${lines} console.log('{"missing": "no torch"}'));`, note)).toBeNull();
    expect(await openPeerProcess("/nowhere/python", [], {}, {}, note)).toBeNull();
    expect(reasons).toEqual(["no torch", expect.stringContaining("ENOENT")]);
  });

  it("that fails at the start is an error with what it wrote", async () => {
    await expect(open('throw new Error("broken install")')).rejects.toThrow(/broken install/);
  });
});
