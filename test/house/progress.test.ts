import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { duration, Progress } from "../../lib/cli/progress.ts";

const XTERM = { TERM: "xterm" };

/** What a terminal, or a file, would have been sent. */
function stream(isTTY: boolean, columns = 80) {
  const chunks: string[] = [];
  const write = (chunk: string) => chunks.push(chunk) > 0;
  return { chunks, stream: { isTTY, columns, write } as unknown as NodeJS.WriteStream };
}

/** The lines that a terminal shows after all that was written. */
function screen(chunks: readonly string[]): string[] {
  return chunks
    .join("")
    .split("\n")
    .map((line) => line.slice(line.lastIndexOf("\x1b[2K") < 0 ? 0 : line.lastIndexOf("\x1b[2K") + 4));
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["performance"] });
});
afterEach(() => {
  vi.useRealTimers();
});

describe("on a terminal", () => {
  test("a phase is one line with count, rate, time left and note, and ends with its time", () => {
    const { chunks, stream: terminal } = stream(true);
    const progress = new Progress({ stream: terminal, environment: XTERM });
    progress.phase("rft", 40);
    vi.advanceTimersByTime(4_000);
    progress.update(10, "pass@1 0.40");
    expect(screen(chunks)).toEqual(["rft: 10/40  2.5/s  12 s left  pass@1 0.40"]);
    vi.advanceTimersByTime(12_000);
    progress.update(40);
    progress.end();
    expect(screen(chunks)).toEqual(["rft: 40/40  2.5/s  16 s  pass@1 0.40", ""]);
  });

  test("the line is rewritten at most ten times a second, and the last state is not lost", () => {
    const { chunks, stream: terminal } = stream(true);
    const progress = new Progress({ stream: terminal, environment: XTERM });
    progress.phase("sample", 1000);
    for (let done = 1; done <= 1000; done++) {
      vi.advanceTimersByTime(1);
      progress.update(done);
    }
    const written = chunks.filter((chunk) => chunk.startsWith("sample")).length;
    expect(written).toBeLessThanOrEqual(11);
    expect(written).toBeGreaterThanOrEqual(10);
    progress.end();
    expect(screen(chunks)[0]).toContain("1000/1000");
  });

  test("a logged line stays above the progress line", () => {
    const { chunks, stream: terminal } = stream(true);
    const progress = new Progress({ stream: terminal, environment: XTERM });
    progress.phase("rft", 4);
    progress.log("checkpoint written");
    progress.phase("dapo");
    expect(screen(chunks)).toEqual(["checkpoint written", "rft: 0/4  0.0 s", "dapo …"]);
  });

  test("what is logged about a phase that is complete stands below it", () => {
    const { chunks, stream: terminal } = stream(true);
    const progress = new Progress({ stream: terminal, environment: XTERM });
    progress.phase("evaluation", 4);
    vi.advanceTimersByTime(2_000);
    progress.update(4);
    progress.log("Pass@1 50 %");
    progress.phase("dapo");
    expect(screen(chunks)).toEqual(["evaluation: 4/4  2.0/s  2.0 s", "Pass@1 50 %", "dapo …"]);
  });

  test("a line never wraps, because a wrapped one could not be rewritten", () => {
    const { chunks, stream: terminal } = stream(true, 30);
    const progress = new Progress({ stream: terminal, environment: XTERM });
    progress.phase("a phase with a long name", 4);
    vi.advanceTimersByTime(2_000);
    progress.update(2, "and a long note that goes on and on");
    expect(Math.max(...screen(chunks).map((line) => line.length))).toBe(29);
  });
});

describe("where a line is not to be drawn over", () => {
  test.each([
    ["TERM=dumb", { TERM: "dumb" }],
    ["NO_COLOR", { TERM: "xterm-256color", NO_COLOR: "1" }],
  ])("%s gets a line now and then, no control characters", (_, environment) => {
    const { chunks, stream: terminal } = stream(true);
    const progress = new Progress({ stream: terminal, environment });
    progress.phase("rft", 20);
    for (let done = 1; done <= 20; done++) {
      vi.advanceTimersByTime(500);
      progress.update(done);
    }
    progress.end();
    expect(chunks.join("")).toBe("rft: 0/20\nrft: 10/20  2.0/s  5.0 s left\nrft: 20/20  2.0/s  10 s\n");
  });

  test("an empty NO_COLOR asks for nothing", () => {
    const { chunks, stream: terminal } = stream(true);
    new Progress({ stream: terminal, environment: { TERM: "xterm", NO_COLOR: "" } }).phase("rft", 2);
    expect(chunks.join("")).toBe("rft: 0/2");
  });
});

describe("in a file", () => {
  test("a phase of hours is told of in hundreds of lines, not in thousands", () => {
    const { chunks, stream: file } = stream(false);
    const progress = new Progress({ stream: file });
    progress.phase("dapo", 36_000);
    for (let done = 1; done <= 36_000; done++) {
      vi.advanceTimersByTime(1000);
      progress.update(done);
    }
    progress.end();
    const lines = chunks.join("").trimEnd().split("\n").length;
    expect(lines).toBeGreaterThan(300);
    expect(lines).toBeLessThan(600);
  });

  test("a line every five seconds, no control characters", () => {
    const { chunks, stream: file } = stream(false);
    const progress = new Progress({ stream: file });
    progress.phase("dapo", 100);
    for (let done = 1; done <= 100; done++) {
      vi.advanceTimersByTime(250);
      progress.update(done);
    }
    progress.end();
    const lines = chunks.join("").trimEnd().split("\n");
    expect(lines[0]).toBe("dapo: 0/100");
    expect(lines[1]).toBe("dapo: 20/100  4.0/s  20 s left");
    expect(lines.at(-1)).toBe("dapo: 100/100  4.0/s  25 s");
    expect(lines.filter((line) => line.includes("100/100  "))).toHaveLength(1);
    expect(lines).toHaveLength(6);
    expect(chunks.join("")).not.toContain("\x1b");
  });
});

test("quiet prints nothing", () => {
  const { chunks, stream: terminal } = stream(true);
  const progress = new Progress({ stream: terminal, quiet: true });
  progress.phase("rft", 2);
  progress.update(1);
  progress.log("line");
  progress.end();
  expect(chunks).toEqual([]);
});

test.each([
  [0.25, "0.3 s"],
  [42, "42 s"],
  [59.7, "1 min 00 s"],
  [185, "3 min 05 s"],
  [7800, "2 h 10 min"],
])("%d seconds read as %s", (seconds, text) => {
  expect(duration(seconds)).toBe(text);
});
