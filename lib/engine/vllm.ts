// vLLM servers as the engine: token ids go out and come back over HTTP, and before each iteration the servers read the
// policy's new weights from a folder that they share with this process. Protocol: vLLM's OpenAI-compatible server with
// its development endpoints (https://docs.vllm.ai), tried with 0.32.
import { TokenringError } from "../errors.ts";
import { contextLength } from "../policy/config.ts";
import type { CallOptions, Policy, SaveOptions } from "../policy/types.ts";
import type { Engine } from "./types.ts";
import { Unavailable, VllmServer } from "./vllm-server.ts";
import { FACTS_MS, fault, VllmServers } from "./vllm-servers.ts";

/** Of `vllmEngine`: which servers, whose weights, and how long they may take. */
export interface VllmOptions {
  /** `http://host:port` of each server; all serve the policy's model. */
  urls: readonly string[];
  /** Whose weights the servers are given; what it says of a few tokens must be what they say. */
  policy: Pick<Policy, "config" | "version" | "save" | "score">;
  /**
   * A folder of this engine alone that this process writes and every server reads under the same path; holds one copy of
   * the weights, which is removed at the end.
   */
  weights: string;
  /** Of the weights as they are written (default "bf16"). */
  dtype?: NonNullable<SaveOptions["dtype"]>;
  /** The name that the servers give the model; needed where they serve several. */
  model?: string;
  /** What the servers were given with --api-key. */
  apiKey?: string;
  /** Milliseconds that one turn may take, with waiting for its turn and for servers that are away (default 600,000). */
  turnMs?: number;
  /** Milliseconds that a server may take to read new weights (default 600,000). */
  updateMs?: number;
  /**
   * Sends a seed with every turn (default false). It costs a server time, and repeats a turn only where the server computes
   * the same bits in any batch (VLLM_BATCH_INVARIANT=1); without it draws are the server's own.
   */
  seeded?: boolean;
  /**
   * Largest median difference of logprobs, in nats, between a server and the policy after an update (default 0.1); none may
   * be above four times what it was after the first, which shows what rounding makes of it.
   */
  tolerance?: number;
  /** Told when a server goes away and when it is back. */
  onWarning?: (message: string) => void;
}

/** The engine of `vllmEngine`. Disposing of it breaks off its turns; the servers stay as they are. */
export interface VllmEngine extends Engine, AsyncDisposable {
  update(options?: CallOptions): Promise<void>;
}

/**
 * The engine of these servers, which must be up. Sessions are theirs by prefix caching: each turn sends all tokens, and a
 * session keeps to the server that has read them. No warper or filter applies but the temperature; a server
 * must be started with `--logprobs-mode processed_logprobs --generation-config vllm` and VLLM_SERVER_DEV_MODE=1. After
 * every change of the policy's weights each server reads them anew, forgets its caches, and has to agree with
 * `policy.score` on the logprobs of a few tokens. While a server is away others take its sessions,
 * and when it is back it gets the weights again; where all are, they are waited for until a turn's time is over.
 * @throws ERR_TOKENRING_ENGINE, with the cure, for a server that is not there, serves another model, or disagrees;
 * ERR_TOKENRING_INVALID_ARGUMENT.
 */
export async function vllmEngine(options: VllmOptions, { signal }: CallOptions = {}): Promise<VllmEngine> {
  const refuse = (message: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `vllmEngine: ${message}`);
  };
  if (options.urls.length === 0) refuse("urls is empty; give at least one server");
  for (const url of options.urls)
    if (!/^https?:\/\//.test(url)) refuse(`urls: ${url} is no URL of http or https`);
  if (new Set(options.urls).size < options.urls.length) refuse("urls: a server is named twice");
  if (options.weights === "") refuse("weights is empty; give a folder that the servers can read");
  const servers = options.urls.map((url) => new VllmServer(url, options.apiKey));
  try {
    const facts = await Promise.all(servers.map((server) => factsOf(server, options.model, signal)));
    const names = new Set(facts.map(({ model }) => model));
    if (names.size > 1) {
      const models = [...names].join(", ");
      throw fault(`the servers serve different models (${models}); start them alike, or name one (model)`);
    }
    const most = Math.min(contextLength(options.policy.config), ...facts.map(({ context }) => context));
    return new VllmServers(options, servers, facts[0]?.model as string, most);
  } catch (error) {
    await Promise.all(servers.map((server) => server.close()));
    throw error;
  }
}

/** Model and context of a server. */
async function factsOf(
  server: VllmServer,
  wanted: string | undefined,
  signal: AbortSignal | undefined,
): Promise<{ model: string; context: number }> {
  const where = `${server.url}/v1/models`;
  let answer: unknown;
  try {
    answer = await server.get("/v1/models", { timeoutMs: FACTS_MS, signal });
  } catch (cause) {
    if (!(cause instanceof Unavailable)) throw cause;
    throw fault(`${cause.message}; is vLLM up there?`, { cause });
  }
  const { data } = answer as { data?: { id?: unknown; max_model_len?: unknown }[] };
  const models = (data ?? []).filter(({ id }) => typeof id === "string");
  const ids = models.map(({ id }) => id).join(", ");
  if (wanted === undefined && models.length !== 1)
    throw fault(`${where}: serves ${models.length} models (${ids}); say which (model)`);
  const found = models.find(({ id }) => wanted === undefined || id === wanted);
  if (!found) throw fault(`${where}: serves no model ${wanted}, but ${ids}`);
  const { id, max_model_len: context } = found;
  if (!Number.isSafeInteger(context))
    throw fault(`${where}: says no max_model_len; this is not vLLM, or one that is too old`);
  return { model: id as string, context: context as number };
}
