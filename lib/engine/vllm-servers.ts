// The servers of a vLLM engine: which of them takes a turn, what they hold of the policy's weights, and what is done when
// one goes away.
import { randomUUID } from "node:crypto";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TokenringError } from "../errors.ts";
import { Random, streamKey } from "../random.ts";
import { inTime } from "../ranks/deadline.ts";
import { tokenIds } from "./token-ids.ts";
import type { SampledTurn, SampleOptions, Session } from "./types.ts";
import type { VllmEngine, VllmOptions } from "./vllm.ts";
import { Unavailable, type VllmServer } from "./vllm-server.ts";
import { Tokens, VllmSession } from "./vllm-session.ts";

const MINUTES_10 = 600_000;
/** Pauses before a request is made again. */
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 15_000;
/** A server that was not heard of for so long may have been started anew. */
const SILENCE_MS = 5_000;
/** For a call that answers at once. */
export const FACTS_MS = 30_000;
/** Far from 1, so that logprobs before temperature, and those of a truncated distribution, show. */
const PROBE_TEMPERATURE = 2;
const PROBE_TOKENS = 32;
/** What a median may grow to, of that after the first update; and what it is taken for at least, in nats. */
const GROWTH = 4;
const FLOAT32_ROUNDING = 1e-6;

export const fault = (message: string, options?: { cause?: unknown }): TokenringError =>
  new TokenringError("ERR_TOKENRING_ENGINE", message, options);

/** One server, and what it is known to hold. */
export interface Place {
  server: VllmServer;
  /** Version of the weights that it samples from; null where that is not known. */
  version: number | null;
  updating: Promise<void> | null;
  /** The call in which it reads weights, the last one. */
  reading: Promise<unknown> | null;
  /** Sessions that sample here. */
  sessions: number;
  /** Turns under way, and who waits for their end. */
  turns: number;
  idle: (() => void)[];
  /** When it answered last. */
  heard: number;
  /** When it failed last, if it has not answered since. */
  away: number | null;
  /** How far it was from the policy after the first update, in nats. */
  rounding: number | null;
  /** Whether it keeps the name of its weights, which a restart forgets (0.32 does). */
  names: boolean;
}

export class VllmServers implements VllmEngine {
  readonly name = "vllm";
  readonly vocabularySize: number;
  readonly contextLimit: number;
  readonly #options: VllmOptions;
  readonly #model: string;
  readonly #places: Place[];
  readonly #turnMs: number;
  readonly #updateMs: number;
  /** Names this engine's weights among those of others. */
  readonly #id = randomUUID().slice(0, 8);
  readonly #closing = new AbortController();
  #saved: { version: number; path: Promise<string> } | null = null;

  constructor(options: VllmOptions, servers: readonly VllmServer[], model: string, contextLimit: number) {
    this.#options = options;
    this.#model = model;
    this.vocabularySize = options.policy.config.vocab_size;
    this.contextLimit = contextLimit;
    this.#turnMs = options.turnMs ?? MINUTES_10;
    this.#updateMs = options.updateMs ?? MINUTES_10;
    this.#places = servers.map((server) => ({
      server,
      version: null,
      updating: null,
      reading: null,
      sessions: 0,
      turns: 0,
      idle: [],
      heard: 0,
      away: null,
      rounding: null,
      names: true,
    }));
  }

  open(): Session {
    return new VllmSession(this, new Tokens(), null);
  }

  /** Done when all servers that are there have the weights, at least one. */
  async update({ signal }: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    await this.#patiently(signal, async () => {
      const given = await Promise.allSettled(
        this.#places.map((place) => this.#at(place, () => this.#ready(place, this.#updateMs, signal))),
      );
      const failures = given.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
      const final = failures.find((reason) => !(reason instanceof Unavailable));
      if (final) throw final;
      if (failures.length === this.#places.length) throw failures[0];
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new TokenringError("ERR_TOKENRING_DISPOSED", "the vLLM engine was disposed"));
    await Promise.all(this.#places.map(({ server }) => server.close()));
    // Nobody reads them any more.
    const folder = await this.#saved?.path.catch(() => null);
    if (folder) await rm(folder, { recursive: true, force: true });
  }

  /** Where a session goes on: where it was; else at the server with the fewest sessions of those that are there. */
  #choose(session: VllmSession): Place {
    const { place } = session;
    if (place?.away === null) return place;
    const there = this.#places.filter(({ away }) => away === null);
    if (there.length > 0) return there.reduce((least, one) => (one.sessions < least.sessions ? one : least));
    // The one that was tried longest ago.
    return this.#places.reduce((first, one) => ((one.away as number) < (first.away as number) ? one : first));
  }

  /** One turn of a session that holds `tokens`. */
  async turn(session: VllmSession, tokens: Int32Array, options: SampleOptions): Promise<SampledTurn> {
    const { signal } = options;
    return this.#patiently(signal, (timeoutMs) => {
      const place = session.moveTo(this.#choose(session));
      return this.#at(place, async () => {
        await this.#ready(place, timeoutMs, signal);
        const { version } = this.#options.policy;
        place.turns++;
        try {
          const turn = await this.#sample(place, tokens, options, timeoutMs);
          place.heard = performance.now();
          return { ...turn, version };
        } finally {
          place.turns--;
          if (place.turns === 0) for (const resolve of place.idle.splice(0)) resolve();
        }
      });
    });
  }

  /** Does `work` until a server answers, for as long as a turn may take. */
  async #patiently<T>(signal: AbortSignal | undefined, work: (timeoutMs: number) => Promise<T>): Promise<T> {
    const end = performance.now() + this.#turnMs;
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      this.#closing.signal.throwIfAborted();
      try {
        return await work(end - performance.now());
      } catch (error) {
        this.#closing.signal.throwIfAborted();
        if (!(error instanceof Unavailable)) throw error;
        if (performance.now() + pause > end) {
          const seconds = Math.round(this.#turnMs / 1000);
          throw fault(`${error.message}; given up after ${seconds} s: see to the server and resume`, {
            cause: error,
          });
        }
      }
      const stop = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
      await sleep(pause, undefined, { signal: stop }).catch(() => stop.throwIfAborted());
    }
  }

  /** Does `work` at a server, and notes whether it is there. */
  async #at<T>(place: Place, work: () => Promise<T>): Promise<T> {
    try {
      const result = await work();
      if (place.away !== null) this.#options.onWarning?.(`${place.server.url}: is back`);
      place.away = null;
      return result;
    } catch (error) {
      if (error instanceof Unavailable && error.lost) {
        if (place.away === null && !this.#closing.signal.aborted)
          this.#options.onWarning?.(
            `${error.message}; ${this.#places.length > 1 ? "others take its sessions" : "waiting"} until it is back`,
          );
        place.away = performance.now();
        // It may have been started anew: the next turn there finds out.
        if (place.names) place.heard = Number.NEGATIVE_INFINITY;
        else place.version = null;
      }
      throw error;
    }
  }

  async #sample(
    place: Place,
    tokens: Int32Array,
    options: SampleOptions,
    timeoutMs: number,
  ): Promise<Omit<SampledTurn, "version">> {
    const { maxTokens, temperature, seed, stop } = options;
    // Every knob is given: what is left out, a server takes from the model's generation_config.json.
    const answer = await place.server.post(
      "/v1/completions",
      {
        model: this.#model,
        prompt: Array.from(tokens),
        max_tokens: maxTokens,
        n: 1,
        temperature,
        top_p: 1,
        top_k: 0,
        min_p: 0,
        repetition_penalty: 1,
        presence_penalty: 0,
        frequency_penalty: 0,
        // A server begins each request's draws anew: turns of one session need seeds of their own.
        ...(this.#options.seeded && {
          seed: Number(streamKey(seed, "vllm", tokens.length) & BigInt(Number.MAX_SAFE_INTEGER)),
        }),
        ignore_eos: true,
        stop_token_ids: Array.from(tokenIds(stop)),
        logprobs: 0,
        // Ids in the place of text; `return_token_ids` would send all of the prompt back, too.
        return_tokens_as_token_ids: true,
        skip_special_tokens: false,
      },
      { timeoutMs, signal: options.signal },
    );
    return this.#turnOf(place, answer, options);
  }

  #turnOf(place: Place, answer: unknown, { maxTokens, stop }: SampleOptions): Omit<SampledTurn, "version"> {
    const where = `${place.server.url}/v1/completions`;
    const choice = (answer as { choices?: Choice[] }).choices?.[0];
    const reason = choice?.finish_reason;
    // As an overloaded or stopping server ends a turn.
    if (reason === "abort" || reason === "error")
      throw new Unavailable(`${where}: the turn was ended by the server (${reason})`);
    const ids = choice?.logprobs?.tokens ?? [];
    const given = choice?.logprobs?.token_logprobs ?? [];
    const tokens = Int32Array.from(ids, (id) => Number(/^token_id:(\d+)$/.exec(String(id))?.[1] ?? -1));
    const bad = tokens.findIndex((id) => id < 0 || id >= this.vocabularySize);
    if (ids.length === 0 || ids.length !== given.length || bad >= 0) {
      const what =
        bad >= 0 ? `token ${JSON.stringify(ids[bad])}` : `${ids.length} tokens, ${given.length} logprobs`;
      throw fault(`${where}: answered ${what}; it needs a vLLM that knows return_tokens_as_token_ids`);
    }
    const logprobs = Float32Array.from(given);
    const odd = logprobs.findIndex((logprob) => !(logprob <= 0 && logprob > Number.NEGATIVE_INFINITY));
    if (odd >= 0) throw fault(`${where}: the logprob of a token that it sampled is ${given[odd]}`);
    const last = tokens.at(-1) as number;
    const stopped = reason === "stop" && stop.includes(last);
    if (!stopped && !(reason === "length" && tokens.length === maxTokens)) {
      const message = `after ${tokens.length} of ${maxTokens} tokens, the last ${last}`;
      throw fault(`${where}: a turn ended by "${reason}" ${message}; no such end was asked for`);
    }
    return { tokens, logprobs, finish: stopped ? "stop" : "length" };
  }

  /** Resolves once the server samples from the policy's weights as they are now. */
  async #ready(place: Place, timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    const end = performance.now() + timeoutMs;
    for (;;) {
      const { version } = this.#options.policy;
      const silent = place.names && performance.now() - place.heard > SILENCE_MS;
      if (place.version === version && !silent && !place.updating) return;
      // One that is under way may be of older weights: then the next follows.
      place.updating ??= this.#refresh(place, version).finally(() => {
        place.updating = null;
      });
      const late = (): string =>
        `${place.server.url}: has not got the policy's weights in ${Math.round(timeoutMs / 1000)} s`;
      await inTime(place.updating, Math.max(1, end - performance.now()), late, signal);
    }
  }

  /** Gives a server the weights of `version`, unless it still has them. */
  async #refresh(place: Place, version: number): Promise<void> {
    if (place.version === version) await this.#confirm(place);
    if (place.version !== version) await this.#push(place, version);
  }

  /** Looks whether a server that was silent still has the weights that it was given. */
  async #confirm(place: Place): Promise<void> {
    const options = { timeoutMs: FACTS_MS };
    const { weight_version: name } = (await place.server.get("/weight_info", options)) as {
      weight_version?: unknown;
    };
    place.heard = performance.now();
    if (name !== this.#nameOf(place.version as number)) place.version = null;
  }

  #nameOf(version: number): string {
    return `tokenring-${this.#id}-${version}`;
  }

  async #push(place: Place, version: number): Promise<void> {
    const folder = await this.#save(version);
    if (place.turns > 0) await new Promise<void>((resolve) => place.idle.push(resolve));
    place.version = null;
    const options = { timeoutMs: this.#updateMs };
    const { server } = place;
    try {
      const kwargs = { weights_path: folder };
      place.reading = server.post("/collective_rpc", { method: "reload_weights", kwargs }, options);
      await place.reading;
    } catch (cause) {
      if (cause instanceof TokenringError && cause.details.status === 404)
        throw fault(`${cause.message}; start the server with VLLM_SERVER_DEV_MODE=1`, { cause });
      // Else the server itself has ended, and somebody may start it again.
      if (!(cause instanceof Unavailable && cause.message.includes("collective_rpc method failed")))
        throw cause;
      const message = "it must serve this model's shape, and see that folder under the same path";
      throw fault(`${cause.message}; the weights are in ${folder}: ${message}`, { cause });
    }
    const { success } = (await server.post("/reset_prefix_cache", {}, options)) as { success?: unknown };
    if (success === false)
      throw new Unavailable(
        `${server.url}: keeps its cache while it works for others; let it work for one job alone`,
      );
    if (!(await this.#verify(place, version))) return;
    if (place.names) await this.#label(place, version);
    place.heard = performance.now();
    place.version = version;
  }

  async #label(place: Place, version: number): Promise<void> {
    const options = { timeoutMs: FACTS_MS };
    try {
      await place.server.post("/update_weight_version", { new_version: this.#nameOf(version) }, options);
    } catch (error) {
      if (!(error instanceof TokenringError) || error.details.status !== 404) throw error;
      place.names = false;
    }
  }

  /** Where the weights of `version` lie. */
  #save(version: number): Promise<string> {
    if (this.#saved?.version !== version) {
      const saving = { version, path: this.#write(version) };
      this.#saved = saving;
      // Who asks again, tries again.
      saving.path.catch(() => {
        if (this.#saved === saving) this.#saved = null;
      });
    }
    return (this.#saved as { path: Promise<string> }).path;
  }

  async #write(version: number): Promise<string> {
    const root = path.resolve(this.#options.weights);
    const folder = path.join(root, this.#nameOf(version));
    const unfinished = `${folder}.new`;
    try {
      // One that came back late may still read what lies there.
      await Promise.allSettled(this.#places.map(({ reading }) => reading));
      await mkdir(unfinished, { recursive: true });
      // Their own of before, and what an earlier process left.
      for (const name of await readdir(root))
        if (/^tokenring-[0-9a-f]{8}-\d+(\.new)?$/.test(name) && path.join(root, name) !== unfinished)
          await rm(path.join(root, name), { recursive: true });
      await this.#options.policy.save(unfinished, { dtype: this.#options.dtype ?? "bf16" });
      await rename(unfinished, folder);
    } catch (cause) {
      await rm(unfinished, { recursive: true, force: true }).catch(() => {});
      if (cause instanceof TokenringError) throw cause;
      throw fault(`${root}: the weights for vLLM cannot be written (${(cause as Error).message})`, { cause });
    }
    return folder;
  }

  /** Holds what the server says of a few tokens against what the policy says; false where that has other weights by now. */
  async #verify(place: Place, version: number): Promise<boolean> {
    const { policy, tolerance = 0.1 } = this.#options;
    const random = Random.of(0, "vllm/probe");
    const length = Math.min(PROBE_TOKENS, Math.floor(this.contextLimit / 2));
    const prompt = Int32Array.from({ length }, () => random.below(this.vocabularySize));
    const turn = await this.#sample(
      place,
      prompt,
      { maxTokens: length, stop: [], temperature: PROBE_TEMPERATURE, seed: 1n },
      this.#updateMs,
    );
    const batch = { tokens: Int32Array.of(...prompt, ...turn.tokens), lengths: Int32Array.of(2 * length) };
    const apart = async (temperature: number): Promise<number> => {
      const { logprob } = await policy.score(batch, { temperature });
      const differences = [...turn.logprobs].map((one, i) => Math.abs(one - (logprob[length + i] as number)));
      return differences.sort((a, b) => a - b)[differences.length >> 1] as number;
    };
    const median = await apart(PROBE_TEMPERATURE);
    if (policy.version !== version) return false;
    // An update that leaves a part of the weights as it was is no further off than one step of training.
    const limit = Math.min(tolerance, GROWTH * Math.max(place.rounding ?? tolerance, FLOAT32_ROUNDING));
    if (median <= limit) {
      place.rounding ??= median;
      return true;
    }
    const why =
      median <= tolerance
        ? "that is more than after the first update: it reads only a part of the new weights, as vLLM on the CPU does where " +
          "the model's embeddings are tied"
        : (await apart(1)) <= tolerance
          ? "they are those before the temperature: start the server with --logprobs-mode processed_logprobs"
          : "its weights are others, or it filters or penalises tokens: start it for this very model, without such options";
    const far = `median ${median.toPrecision(2)} nats apart (at most ${limit.toPrecision(2)})`;
    throw fault(`${place.server.url}: its logprobs are not the policy's, ${far}; ${why}`);
  }
}

interface Choice {
  finish_reason?: unknown;
  logprobs?: { tokens?: unknown[]; token_logprobs?: number[] };
}
