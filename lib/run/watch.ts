// The live page of a run: a small server that reads and never writes, for this machine unless it is told otherwise.
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { type AddressInfo, isIP } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TokenringError } from "../errors.ts";
import { sectionsById } from "../report/overview.ts";
import { encodePack, RowTable, vocabularyOf } from "../report/pack.ts";
import type { LiveState } from "../report/page/types.ts";
import { contentSecurityPolicy, renderLivePage } from "../report/report.ts";
import { exposition, type WatchedRun } from "../track/prometheus.ts";
import { isLocked } from "./lock.ts";
import { RunReader } from "./read.ts";

export interface WatchOptions {
  /** Address to listen at: "127.0.0.1". */
  host?: string;
  /** 0 takes any that is free: 8642. */
  port?: number;
  /** Milliseconds between two looks at the files: 1000. */
  pollMs?: number;
}

export interface Watch extends AsyncDisposable {
  /** Where the page is. */
  readonly url: string;
}

/** Streams of events at once; a page needs one. */
const MOST_STREAMS = 64;
const HEARTBEAT_MS = 15_000;

const HEADERS: Readonly<Record<string, string>> = {
  "Cache-Control": "no-store",
  "Content-Security-Policy": `${contentSecurityPolicy(true)}; frame-ancestors 'none'`,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};

/**
 * Whether a request's Host is one that no foreign site can have: an address, localhost, or the name that the server was
 * told to listen at. A site whose name was made to point here (DNS rebinding) comes with its own name.
 */
export function hostAllowed(header: string | undefined, host: string): boolean {
  if (header === undefined) return false;
  const name = header.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
  return isIP(name) !== 0 || name.toLowerCase() === "localhost" || name.toLowerCase() === host.toLowerCase();
}

class Server {
  readonly #directory: string;
  readonly #run: RunReader;
  readonly #host: string;
  readonly #streams = new Set<ServerResponse>();
  #sections = new Map<string, string>();
  #state: LiveState;
  /** The list's names keep their indices while it grows. */
  #table: RowTable;

  constructor(directory: string, run: RunReader, host: string) {
    this.#directory = directory;
    this.#run = run;
    this.#host = host;
    this.#table = new RowTable([run]);
    this.#state = { epoch: 0, status: "running", episodes: 0, sections: {} };
  }

  /** Looks at the files again and tells the pages what changed. */
  async look(): Promise<void> {
    const { reset, events } = await this.#run.poll();
    if (reset) this.#table = new RowTable([this.#run]);
    const { episodes, sections, epoch } = this.#state;
    // Episodes come to the list after the line that tells of their iteration.
    const more = events || reset || epoch === 0 || this.#run.episodes.length !== episodes;
    if (more) this.#sections = sectionsById(this.#run);
    const ended = this.#run.events.at(-1)?.type === "end";
    // A process that was killed leaves its lock behind.
    const locked = await isLocked(path.join(this.#directory, "lock"));
    const state: LiveState = {
      epoch: epoch === 0 || reset ? epoch + 1 : epoch,
      status: ended ? "ended" : locked ? "running" : "stopped",
      episodes: this.#run.episodes.length,
      sections: more
        ? Object.fromEntries(
            [...this.#sections].map(([id, text]) => [id, createHash("sha256").update(text).digest("hex")]),
          )
        : sections,
    };
    const changed = events || reset || state.episodes !== episodes || state.status !== this.#state.status;
    this.#state = state;
    if (changed) for (const stream of this.#streams) this.#tell(stream);
  }

  #tell(stream: ServerResponse): void {
    // A page that does not read gets the next state that it reads.
    if (stream.writableLength < 1 << 20)
      stream.write(`event: state\ndata: ${JSON.stringify(this.#state)}\n\n`);
  }

  heartbeat(): void {
    for (const stream of this.#streams) stream.write(": still here\n\n");
  }

  async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const send = (status: number, type: string, body: string | Uint8Array): void => {
      response.writeHead(status, { ...HEADERS, "Content-Type": type });
      response.end(request.method === "HEAD" ? undefined : body);
    };
    const text = (status: number, words: string): void => send(status, "text/plain; charset=utf-8", words);
    if (!hostAllowed(request.headers.host, this.#host))
      return text(403, `this server does not answer for the host ${request.headers.host ?? "(none)"}`);
    if (request.method !== "GET" && request.method !== "HEAD") return text(405, "this server only reads");
    const url = new URL(request.url ?? "/", "http://localhost");
    const number = (name: string): number => {
      const given = url.searchParams.get(name) ?? "";
      return /^\d{1,9}$/.test(given) ? Number(given) : -1;
    };
    if (url.pathname === "/")
      return send(200, "text/html; charset=utf-8", renderLivePage(this.#run, this.#state));
    if (url.pathname === "/metrics") {
      const { type, text } = await exposition(this.#watched());
      return send(200, type, text);
    }
    if (url.pathname === "/events") return this.#stream(request, response, text);
    if (url.pathname === "/section") {
      const section = this.#sections.get(url.searchParams.get("id") ?? "");
      if (section !== undefined) return send(200, "text/html; charset=utf-8", section);
    }
    if (url.pathname === "/rows") {
      const rows = this.#run.episodes.slice(Math.max(0, number("from")));
      const columns = this.#table.columns(rows.map((row) => ({ run: 0, row, pack: 0, at: 0 })));
      return send(200, "application/json", JSON.stringify(columns));
    }
    const row = number("row");
    if (url.pathname === "/episode" && row >= 0 && row < this.#run.episodes.length) {
      const episode = await this.#run.load(row);
      const { tokenizer } = this.#run;
      const vocabulary = vocabularyOf(new Set(episode.trajectory.tokens), tokenizer);
      return send(200, "application/octet-stream", encodePack([episode], { tokenizer, vocabulary }));
    }
    return text(404, "there is nothing here");
  }

  #watched(): WatchedRun {
    const { name, version, seed, events, episodes } = this.#run;
    return { name, version, seed, status: this.#state.status, events, episodes };
  }

  #stream(
    request: IncomingMessage,
    response: ServerResponse,
    refuse: (status: number, words: string) => void,
  ): void {
    if (this.#streams.size >= MOST_STREAMS) {
      refuse(503, `${MOST_STREAMS} pages are open already; close some`);
      return;
    }
    response.writeHead(200, { ...HEADERS, "Content-Type": "text/event-stream" });
    this.#streams.add(response);
    request.on("close", () => this.#streams.delete(response));
    this.#tell(response);
  }
}

/**
 * Serves the page of the run in `directory` until it is disposed of or `signal` fires; looks at the files every
 * `pollMs`. Takes no lock and writes nothing. Throws ERR_TOKENRING_RUN_DIRECTORY when there is no run, and
 * ERR_TOKENRING_INVALID_ARGUMENT when it cannot listen there.
 */
export async function watchRun(directory: string, options: WatchOptions = {}): Promise<Watch> {
  const { host = "127.0.0.1", port = 8642, pollMs = 1000 } = options;
  const server = new Server(directory, await RunReader.open(directory), host);
  await server.look();
  const http = createServer((request, response) => {
    server.answer(request, response).catch((error: unknown) => {
      // A fault of one file is that request's; the page says it.
      if (!response.headersSent)
        response.writeHead(500, { ...HEADERS, "Content-Type": "text/plain; charset=utf-8" });
      response.end(error instanceof Error ? error.message : String(error));
    });
  });
  await new Promise<void>((resolve, reject) => {
    http.once("error", (cause: NodeJS.ErrnoException) => {
      const why =
        cause.code === "EADDRINUSE" ? "something else listens there; give another --port" : cause.message;
      reject(new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${host}:${port}: ${why}`, { cause }));
    });
    http.listen(port, host, resolve);
  });
  const { port: taken } = http.address() as AddressInfo;
  const stop = new AbortController();
  const looking = (async () => {
    let beat = Date.now();
    while (!stop.signal.aborted) {
      await sleep(pollMs, undefined, { signal: stop.signal }).catch(() => {});
      // What cannot be read now (a file is being replaced) may be read at the next look.
      if (!stop.signal.aborted) await server.look().catch(() => {});
      if (Date.now() - beat > HEARTBEAT_MS) {
        beat = Date.now();
        server.heartbeat();
      }
    }
  })();
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${taken}/`,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await looking;
      http.closeAllConnections();
      await new Promise((resolve) => http.close(resolve));
    },
  };
}
