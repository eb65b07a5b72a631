// One end of the control channel: messages over a socket, each a frame of its length and its bytes, and heartbeats.
import type { Socket } from "node:net";
import { deserialize, serialize } from "node:v8";
import { TokenringError } from "../errors.ts";

/** Bytes of a frame, before the other side has proved that it knows the secret, and after. */
const STRANGERS_FRAME = 4096;
const LARGEST_FRAME = 2 ** 28;
/** A beat is an empty frame; so many are sent within the silence that is allowed. */
const BEATS = 5;

/**
 * Frames over `socket`: a u32 (little endian) with the number of bytes, then the bytes. A side that hears nothing for
 * `silence` milliseconds, beats included, holds the other for lost; the time in which it could not listen itself does
 * not count. Until `open` is called only `next` reads, and frames are small and not deserialised.
 */
export class Channel {
  readonly #socket: Socket;
  #beat: NodeJS.Timeout;
  #limit = STRANGERS_FRAME;
  #chunks: Buffer[] = [];
  #buffered = 0;
  /** Frames that nobody has taken yet. */
  readonly #frames: Buffer[] = [];
  #wake: () => void = () => {};
  #quiet = 0;
  #lost: string | null = null;
  #closed = false;
  #listener: { message: (message: unknown) => void; lost: (why: string) => void } | null = null;

  constructor(socket: Socket, silence: number) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.setKeepAlive(true);
    socket.on("data", (chunk) => this.#receive(chunk));
    socket.on("error", (error) => this.#lose(`its connection broke (${error.message})`));
    socket.on("close", () => this.#lose("its connection was closed"));
    this.#beat = this.#beating(silence);
  }

  /** Milliseconds, from now on. */
  set silence(silence: number) {
    clearInterval(this.#beat);
    this.#beat = this.#beating(silence);
  }

  #beating(silence: number): NodeJS.Timeout {
    const interval = silence / BEATS;
    return setInterval(() => {
      if (++this.#quiet > BEATS) this.#lose(`it was silent for ${silence / 1000} s`);
      else this.#write(Buffer.alloc(0));
    }, interval);
  }

  /** Address of the other side. */
  get peer(): string {
    return `${this.#socket.remoteAddress ?? "?"}:${this.#socket.remotePort ?? 0}`;
  }

  /** The next frame of the handshake. Rejects with what ended the channel. */
  async next(): Promise<Buffer> {
    for (;;) {
      const frame = this.#frames.shift();
      if (frame) return frame;
      if (this.#lost !== null || this.#closed) throw new Error(this.#lost ?? "the channel was closed");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Sends a frame of the handshake. */
  sendFrame(body: Buffer): void {
    this.#write(body);
  }

  /** From now on the other side is trusted: its frames are messages. `lost` is called once, and never after `close`. */
  open(message: (message: unknown) => void, lost: (why: string) => void): void {
    this.#limit = LARGEST_FRAME;
    this.#listener = { message, lost };
    for (const frame of this.#frames.splice(0)) this.#take(frame);
    const why = this.#lost;
    if (why !== null) queueMicrotask(() => lost(why));
  }

  /** Anything that the structured clone algorithm takes; typed arrays travel as their bytes. */
  send(message: unknown): void {
    if (this.#lost !== null || this.#closed) return;
    const body = serialize(message);
    if (body.length > LARGEST_FRAME) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `a message of ${body.length} bytes to another rank is more than ${LARGEST_FRAME}; give smaller batches`,
      );
    }
    this.#write(body);
  }

  /** What was sent still arrives. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#beat);
    this.#wake();
    this.#socket.end();
    // One that does not close its side would keep this one.
    setTimeout(() => this.#socket.destroy(), 1000).unref();
  }

  /** Whether the channel keeps the process running. */
  hold(held: boolean): void {
    if (held) {
      this.#socket.ref();
      this.#beat.ref();
    } else {
      this.#socket.unref();
      this.#beat.unref();
    }
  }

  #write(body: Buffer): void {
    if (this.#lost !== null || !this.#socket.writable) return;
    const length = Buffer.alloc(4);
    length.writeUInt32LE(body.length);
    this.#socket.cork();
    this.#socket.write(length);
    if (body.length > 0) this.#socket.write(body);
    this.#socket.uncork();
  }

  #receive(chunk: Buffer): void {
    this.#quiet = 0;
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
    while (this.#buffered >= 4 && this.#lost === null) {
      if ((this.#chunks[0] as Buffer).length < 4) this.#chunks = [Buffer.concat(this.#chunks)];
      const length = (this.#chunks[0] as Buffer).readUInt32LE();
      if (length > this.#limit) {
        this.#lose(`it sent a frame of ${length} bytes where at most ${this.#limit} are taken`);
        return;
      }
      if (this.#buffered < 4 + length) return;
      const all = this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks);
      const rest = all.subarray(4 + length);
      this.#chunks = rest.length > 0 ? [rest] : [];
      this.#buffered = rest.length;
      if (length > 0) this.#take(all.subarray(4, 4 + length));
    }
  }

  #take(frame: Buffer): void {
    if (this.#listener === null) {
      // A stranger has a few frames to say, and no memory to fill.
      if (this.#frames.length >= 8) this.#lose("it sent too much before it had proved itself");
      else this.#frames.push(frame);
      this.#wake();
      return;
    }
    if (this.#closed) return;
    let message: unknown;
    try {
      // Copied, so that typed arrays begin where their elements may, and no message keeps its neighbours' memory.
      message = deserialize(new Uint8Array(frame));
    } catch (error) {
      this.#lose(`it sent what cannot be read (${(error as Error).message}); run the same Node on all ranks`);
      return;
    }
    this.#listener.message(message);
  }

  #lose(why: string): void {
    if (this.#lost !== null || this.#closed) return;
    this.#lost = why;
    clearInterval(this.#beat);
    this.#socket.destroy();
    this.#wake();
    this.#listener?.lost(why);
  }
}
