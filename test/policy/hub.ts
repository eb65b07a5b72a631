// A server on this machine that plays the Hugging Face hub: revisions, lists of files, files by range. It can be told
// to break off, to fall silent, to answer with a status or to send other bytes.
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export const COMMIT = "c0ffee".padEnd(40, "0");

interface Fault {
  /** Ends the connection after so many bytes of the answer. */
  breakAfter?: number;
  /** Says nothing more after so many bytes. */
  silentAfter?: number;
  status?: number;
  /** Sends these bytes in place of the file's. */
  bytes?: Buffer;
  /** Answers with the whole file, whatever range was asked for. */
  noRange?: boolean;
}

export class FakeHub implements AsyncDisposable {
  /** Files of the one repository, "org/model". */
  readonly files = new Map<string, Buffer>();
  /** Files that are stored by SHA-256, as large ones are. */
  readonly large = new Set<string>();
  /** What happens to the next requests of a path, in order. */
  readonly faults = new Map<string, Fault[]>();
  /** "GET path range" of each request. */
  readonly requests: string[] = [];
  /** If set, requests without it get 401. */
  token: string | null = null;
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async open(): Promise<FakeHub> {
    const hub = new FakeHub();
    await new Promise<void>((resolve) => hub.#server.listen(0, "127.0.0.1", resolve));
    return hub;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  hash(path: string): string {
    const bytes = this.files.get(path) as Buffer;
    if (this.large.has(path)) return createHash("sha256").update(bytes).digest("hex");
    return createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
  }

  /** Requests of a file's content, but for the probes that ask for its first byte. */
  fetched(path: string): string[] {
    return this.requests.filter((line) => line.startsWith(`GET ${path} `) && !line.endsWith("bytes=0-0"));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? "/", this.url);
    const path = new RegExp(`^/org/model/resolve/${COMMIT}/(.+)$`).exec(url.pathname)?.[1];
    const whole = path === undefined ? undefined : this.files.get(path);
    const [status, value] = this.#reply(url, request.headers.authorization);
    if (status === 404 && path !== undefined && whole !== undefined) {
      const range = request.headers.range;
      this.requests.push(`GET ${path} ${range ?? "whole"}`);
      this.#send(path, whole, range, response);
      return;
    }
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
  }

  /** What is answered in JSON: status and value; 404 for what else there may be. */
  #reply(url: URL, authorization: string | undefined): [number, unknown] {
    if (this.token !== null && authorization !== `Bearer ${this.token}`) {
      return [401, { error: "Invalid username or password." }];
    }
    const revision = /^\/api\/models\/org\/model\/revision\/(.+)$/.exec(url.pathname)?.[1];
    if (revision !== undefined) {
      this.requests.push(`revision ${decodeURIComponent(revision)}`);
      const fault = this.faults.get("revision")?.shift();
      if (fault?.status !== undefined) return [fault.status, { error: "busy" }];
      return revision === "nowhere"
        ? [404, { error: "Revision not found" }]
        : [200, { _id: "1", id: "org/model", sha: COMMIT }];
    }
    if (url.pathname === `/api/models/org/model/tree/${COMMIT}`) {
      this.requests.push("tree");
      const files = [...this.files].map(([path, bytes]) => ({
        type: "file",
        path,
        size: bytes.length,
        ...(this.large.has(path)
          ? {
              oid: "0".repeat(40),
              lfs: { oid: this.hash(path), size: bytes.length, pointerSize: 130 },
            }
          : { oid: this.hash(path) }),
      }));
      return [200, [...files, { type: "directory", path: "onnx", size: 0, oid: "1".repeat(40) }]];
    }
    return [404, { error: "Repository not found" }];
  }

  #send(path: string, whole: Buffer, range: string | undefined, response: ServerResponse): void {
    const probe = range === "bytes=0-0";
    const fault = probe ? undefined : this.faults.get(path)?.shift();
    if (fault?.status !== undefined) {
      response.writeHead(fault.status).end();
      return;
    }
    const given = fault?.bytes ?? whole;
    const [first, last] = (/^bytes=(\d+)-(\d*)$/.exec(range ?? "") ?? []).slice(1);
    const partial = first !== undefined && !fault?.noRange;
    const begin = partial ? Number(first) : 0;
    const part = given.subarray(begin, partial && last ? Number(last) + 1 : undefined);
    response.writeHead(partial ? 206 : 200, {
      "content-length": part.length,
      etag: `"${this.hash(path)}"`,
      ...(partial ? { "content-range": `bytes ${begin}-${begin + part.length - 1}/${whole.length}` } : {}),
    });
    const stop = fault?.breakAfter ?? fault?.silentAfter;
    if (stop === undefined) {
      response.end(part);
      return;
    }
    response.write(part.subarray(0, stop), () => {
      if (fault?.breakAfter !== undefined) response.destroy();
    });
  }
}
