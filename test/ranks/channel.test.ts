// Frames and heartbeats of the control channel, over a real socket.
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, describe, expect, it, vi } from "vitest";
import { Channel } from "../../lib/ranks/channel.ts";

const open: { close(): unknown }[] = [];

async function sockets(): Promise<[Socket, Socket]> {
  const server: Server = createServer().listen(0, "127.0.0.1");
  open.push(server);
  await once(server, "listening");
  const there = once(server, "connection") as Promise<[Socket]>;
  const here = connect((server.address() as { port: number }).port, "127.0.0.1");
  const [accepted] = await there;
  open.push({ close: () => here.destroy() }, { close: () => accepted.destroy() });
  return [here, accepted];
}

async function pair(silence = 5000): Promise<[Channel, Channel]> {
  const [a, b] = await sockets();
  return [new Channel(a, silence), new Channel(b, silence)];
}

/** A channel that hears messages, and how it was lost. */
function heard(channel: Channel): {
  messages: unknown[];
  lost: Promise<string>;
  next: () => Promise<unknown>;
} {
  const messages: unknown[] = [];
  let wake: () => void = () => {};
  let lose: (why: string) => void = () => {};
  const lost = new Promise<string>((resolve) => {
    lose = resolve;
  });
  channel.open(
    (message) => {
      messages.push(message);
      wake();
    },
    (why) => lose(why),
  );
  const next = async (): Promise<unknown> => {
    while (messages.length === 0) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    return messages.shift();
  };
  return { messages, lost, next };
}

afterEach(() => {
  vi.restoreAllMocks();
  for (const one of open.splice(0)) one.close();
});

describe("messages", () => {
  it("carry typed arrays, bigints and numbers that JSON has no words for, of any size", async () => {
    const [a, b] = await pair();
    const { next } = heard(b);
    heard(a);
    const large = Float32Array.from({ length: 60_000 }, (_, i) => i / 3);
    const message = {
      ids: Int32Array.of(1, -2),
      seed: 2n ** 64n - 1n,
      loss: Number.NaN,
      infinite: Number.NEGATIVE_INFINITY,
      nothing: undefined,
      bytes: Uint8Array.of(1, 2, 3),
      large,
    };
    // An odd length before it: arrays must begin where their elements may.
    a.send("x");
    a.send(message);
    a.send({ after: Float32Array.of(0.5) });
    expect(await next()).toBe("x");
    expect(await next()).toEqual(message);
    expect(await next()).toEqual({ after: Float32Array.of(0.5) });
  });

  it("arrive whole, however the stream is cut", async () => {
    const [a, b] = await sockets();
    const { next } = heard(new Channel(b, 5000));
    const frames: Buffer[] = [];
    const [c, d] = await sockets();
    d.on("data", (chunk) => frames.push(chunk));
    const source = new Channel(c, 5000);
    heard(source);
    source.send({ first: Int32Array.of(7) });
    source.send("second");
    source.close();
    await once(d, "end");
    for (const byte of Buffer.concat(frames)) {
      a.write(Buffer.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await next()).toEqual({ first: Int32Array.of(7) });
    expect(await next()).toBe("second");
  });

  it("that were sent before a close still arrive", async () => {
    const [a, b] = await pair();
    heard(a);
    const { next, lost } = heard(b);
    a.send("last words");
    a.close();
    expect(await next()).toBe("last words");
    expect(await lost).toBe("its connection was closed");
  });
});

it("what cannot be read ends the channel, not the process", async () => {
  const [a, b] = await sockets();
  const { lost } = heard(new Channel(b, 5000));
  a.write(Buffer.from([3, 0, 0, 0, 1, 2, 3]));
  expect(await lost).toMatch(/^it sent what cannot be read .*; run the same Node on all ranks$/);
});

it("a channel that was lost before anybody listened says so to who listens then", async () => {
  const [a, b] = await sockets();
  const channel = new Channel(b, 5000);
  a.destroy();
  await expect(channel.next()).rejects.toThrow(/its connection/);
  expect(await heard(channel).lost).toMatch(/its connection/);
});

describe("a stranger", () => {
  it("is cut off for a frame that is larger than a handshake's", async () => {
    const [a, b] = await sockets();
    const channel = new Channel(b, 5000);
    const frame = Buffer.alloc(4 + 5000);
    frame.writeUInt32LE(5000);
    a.write(frame);
    await expect(channel.next()).rejects.toThrow(
      "it sent a frame of 5000 bytes where at most 4096 are taken",
    );
  });

  it("is cut off for many small ones", async () => {
    const [a, b] = await sockets();
    const channel = new Channel(b, 5000);
    const frame = Buffer.from([1, 0, 0, 0, 65]);
    a.write(Buffer.concat(Array.from({ length: 9 }, () => frame)));
    await once(a, "close");
    for (let i = 0; i < 8; i++) expect((await channel.next()).toString()).toBe("A");
    await expect(channel.next()).rejects.toThrow("it sent too much before it had proved itself");
  });
});

describe("a silence", () => {
  it("ends the channel", async () => {
    const [, b] = await sockets();
    const begin = performance.now();
    const { lost } = heard(new Channel(b, 300));
    expect(await lost).toBe("it was silent for 0.3 s");
    expect(performance.now() - begin).toBeGreaterThan(290);
  });

  it("does not come of having nothing to say", async () => {
    const [a, b] = await pair(300);
    const [one, other] = [heard(a), heard(b)];
    const quiet = delay(1200, "both are there");
    expect(await Promise.race([one.lost, other.lost, quiet])).toBe("both are there");
  });

  it("in which the listener itself could not listen does not count", async () => {
    const [a, b] = await pair(300);
    const [one, other] = [heard(a), heard(b)];
    const until = performance.now() + 900;
    while (performance.now() < until);
    expect(await Promise.race([one.lost, other.lost, delay(200, "both are there")])).toBe("both are there");
  });
});
