// One vLLM server over HTTP: every request has a deadline, and every failure says whether to ask again.
import type { Agent } from "undici";
import { TokenringError } from "../errors.ts";

/** The server cannot be reached, or cannot answer now: the request may be made again, there or elsewhere. */
export class Unavailable extends Error {
  override readonly name = "Unavailable";
  /** Of HTTP; undefined where there was no answer. */
  readonly status: number | undefined;

  constructor(message: string, options: { cause?: unknown; status?: number } = {}) {
    super(message, { cause: options.cause });
    this.status = options.status;
  }

  /** Whether it may have been started anew since, with the weights that it began with. */
  get lost(): boolean {
    return this.status !== 429 && this.status !== 408;
  }
}

export interface RequestOptions {
  /** Milliseconds from the call to the end of the answer. */
  timeoutMs: number;
  signal?: AbortSignal | undefined;
}

/** Requests that a server is sent at once; further ones wait here for their turn, within their deadlines. */
const CONNECTIONS = 1024;

export class VllmServer {
  readonly url: string;
  #connecting: Promise<{ undici: typeof import("undici"); agent: Agent }> | null = null;
  readonly #headers: Record<string, string>;

  /** `apiKey`: what the server was given with --api-key. */
  constructor(url: string, apiKey?: string) {
    // What clients of OpenAI's protocol are given; the calls that control the server lie beside it.
    this.url = url.replace(/\/+$/, "").replace(/\/v1$/, "");
    this.#headers = {
      "content-type": "application/json",
      ...(apiKey ? { authorization: `Bearer ${apiKey}` } : {}),
    };
  }

  get(path: string, options: RequestOptions): Promise<unknown> {
    return this.#request("GET", path, undefined, options);
  }

  post(path: string, body: unknown, options: RequestOptions): Promise<unknown> {
    return this.#request("POST", path, body, options);
  }

  /** Loads the client, which most jobs never need. */
  async #connect(): Promise<{ undici: typeof import("undici"); agent: Agent }> {
    const undici = await import("undici");
    // A long turn brings nothing for minutes, which is no fault: the deadline is the caller's.
    return {
      undici,
      agent: new undici.Agent({ connections: CONNECTIONS, headersTimeout: 0, bodyTimeout: 0 }),
    };
  }

  /**
   * @throws Unavailable; ERR_TOKENRING_ENGINE for a request that is refused for good (`details.status`) or not answered
   * in time; the signal's reason.
   */
  async #request(
    method: "GET" | "POST",
    path: string,
    body: unknown,
    { timeoutMs, signal }: RequestOptions,
  ): Promise<unknown> {
    signal?.throwIfAborted();
    const deadline = AbortSignal.timeout(Math.max(1, Math.ceil(timeoutMs)));
    const where = `${this.url}${path}`;
    this.#connecting ??= this.#connect();
    const { undici, agent } = await this.#connecting;
    let status: number;
    let text: string;
    try {
      const answer = await undici.request(where, {
        method,
        headers: this.#headers,
        dispatcher: agent,
        signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      status = answer.statusCode;
      text = await answer.body.text();
    } catch (cause) {
      signal?.throwIfAborted();
      if (deadline.aborted) {
        const message = `${where}: no answer in ${Math.round(timeoutMs / 1000)} s`;
        throw new TokenringError("ERR_TOKENRING_ENGINE", message, { cause });
      }
      throw new Unavailable(
        `${where}: ${(cause as Error).message || (cause as NodeJS.ErrnoException).code}`,
        {
          cause,
        },
      );
    }
    if (status >= 200 && status < 300) {
      try {
        return text === "" ? {} : JSON.parse(text);
      } catch (cause) {
        throw new Unavailable(`${where}: answered what is no JSON (${text.length} characters)`, { cause });
      }
    }
    const said = `${where}: answered ${status}: ${messageOf(text)}`;
    if (status >= 500 || status === 429 || status === 408) throw new Unavailable(said, { status });
    const cure = status === 401 ? "; give it the key that it was started with (VLLM_API_KEY)" : "";
    throw new TokenringError("ERR_TOKENRING_ENGINE", `${said}${cure}`, { details: { url: where, status } });
  }

  /** Breaks off what is under way. */
  async close(): Promise<void> {
    await (await this.#connecting)?.agent.destroy();
  }
}

const SHOWN = 300;

/** What an error's body says, in one line. */
function messageOf(text: string): string {
  let message = text;
  try {
    const body = JSON.parse(text) as { error?: { message?: unknown }; message?: unknown; detail?: unknown };
    message = String(body.error?.message ?? body.message ?? body.detail ?? text);
  } catch {
    // Plain text, then.
  }
  return message.replaceAll(/\s+/g, " ").slice(0, SHOWN);
}
