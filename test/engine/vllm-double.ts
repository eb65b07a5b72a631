// A server that speaks vLLM's protocol and samples from a policy of its own: what it says is what vLLM 0.32 was seen to
// say. Its faults are those that clients of vLLM meet.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import { Policy } from "../../lib/policy/policy.ts";
import type { DecoderConfig } from "../../lib/policy/types.ts";

export interface Completion {
  prompt: number[];
  max_tokens: number;
  temperature: number;
  seed?: number;
  stop_token_ids: number[];
  [knob: string]: unknown;
}

/** What is wrong with it, from now on. */
export interface Faults {
  /** Logprobs are those before the temperature (the default of vLLM). */
  rawLogprobs?: boolean;
  /** Leaves out tokens: those that it may sample share this probability among them. */
  kept?: number;
  /** Started without VLLM_SERVER_DEV_MODE. */
  noDevelopment?: boolean;
  /** Older: does not keep the name of its weights. */
  noNames?: boolean;
  /** Reads new weights once this is there. */
  hold?: Promise<void>;
  /** Says that it has read new weights, and has not. */
  keepsWeights?: boolean;
  /** Answers so many completions with this status; 0 breaks the connection off. */
  refuse?: { times: number; status: number };
  /** Ends so many turns by itself. */
  abort?: number;
  /** Completions never come. */
  hang?: boolean;
  /** Text in the place of ids, as vLLM without return_tokens_as_token_ids. */
  text?: boolean;
}

export class VllmDouble {
  readonly faults: Faults = {};
  readonly completions: Completion[] = [];
  /** Other calls, by path. */
  readonly calls: string[] = [];
  apiKey: string | undefined;
  url = "";
  #policy: Policy;
  readonly #first: () => Promise<Policy>;
  #name = "default";
  #draws = 0;
  readonly #server = createServer((request, response) => void this.#serve(request, response));

  private constructor(policy: Policy, first: () => Promise<Policy>) {
    this.#policy = policy;
    this.#first = first;
  }

  /** Begins with weights that are nobody's. */
  static async start(config: DecoderConfig, port = 0): Promise<VllmDouble> {
    const first = (): Promise<Policy> => Policy.create(config, { seed: 99, std: 0.3 });
    const double = new VllmDouble(await first(), first);
    await new Promise<void>((resolve) => double.#server.listen(port, "127.0.0.1", resolve));
    double.url = `http://127.0.0.1:${(double.#server.address() as AddressInfo).port}`;
    return double;
  }

  /** As a supervisor would, with the weights that it began with. */
  async restart(): Promise<void> {
    await this.#policy.dispose();
    this.#policy = await this.#first();
    this.#name = "default";
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
    await this.#policy.dispose();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString();
    const body = text === "" ? {} : JSON.parse(text);
    const path = request.url ?? "";
    const reply = (status: number, answer: object): void => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(answer));
    };
    const error = (status: number, message: string): void =>
      reply(status, { error: { message, code: status } });
    if (path.startsWith("/v1/") && this.apiKey && request.headers.authorization !== `Bearer ${this.apiKey}`)
      return error(401, "Unauthorized");
    try {
      if (path === "/v1/completions") return await this.#complete(body, response, reply, error);
      this.calls.push(path);
      if (path === "/v1/models") {
        const context = this.#policy.config.max_position_embeddings;
        return reply(200, { data: [{ id: "served", max_model_len: context }] });
      }
      if (this.faults.noDevelopment) return error(404, "Not Found");
      if (path === "/collective_rpc") {
        await this.faults.hold;
        if (!this.faults.keepsWeights) await this.#policy.load(body.kwargs.weights_path);
        return reply(200, { results: [null] });
      }
      if (path === "/reset_prefix_cache") return reply(200, { success: true });
      if (this.faults.noNames) return error(404, "Not Found");
      if (path === "/update_weight_version") {
        this.#name = body.new_version;
        return reply(200, { success: true, new_version: this.#name });
      }
      if (path === "/weight_info") return reply(200, { weight_version: this.#name });
      error(404, "Not Found");
    } catch (failure) {
      error(
        500,
        `Call to collective_rpc method failed: Worker failed with error '${(failure as Error).message}'`,
      );
    }
  }

  async #complete(
    body: Completion,
    response: ServerResponse,
    reply: (status: number, answer: object) => void,
    error: (status: number, message: string) => void,
  ): Promise<void> {
    this.completions.push(body);
    const { faults } = this;
    if (faults.hang) return;
    if (faults.refuse && faults.refuse.times > 0) {
      faults.refuse.times--;
      if (faults.refuse.status === 0) return void response.destroy();
      return error(faults.refuse.status, "not now");
    }
    const { prompt, max_tokens: maxTokens, temperature, seed, stop_token_ids: stop } = body;
    using session = embeddedEngine(this.#policy).open();
    session.extend(prompt);
    const turn = await session.sample({ maxTokens, temperature, seed: BigInt(seed ?? ++this.#draws), stop });
    let logprobs = turn.logprobs;
    if (faults.rawLogprobs) {
      const tokens = Int32Array.of(...prompt, ...turn.tokens);
      const scored = await this.#policy.score({ tokens, lengths: Int32Array.of(tokens.length) });
      logprobs = scored.logprob.slice(prompt.length);
    }
    if (faults.kept) logprobs = logprobs.map((one) => Math.min(0, one - Math.log(faults.kept as number)));
    const ended = faults.abort && faults.abort > 0;
    if (ended) faults.abort = (faults.abort as number) - 1;
    reply(200, {
      choices: [
        {
          index: 0,
          finish_reason: ended ? "abort" : turn.finish,
          logprobs: {
            tokens: [...turn.tokens].map((id) => (faults.text ? `<${id}>` : `token_id:${id}`)),
            token_logprobs: [...logprobs],
          },
        },
      ],
    });
  }
}
