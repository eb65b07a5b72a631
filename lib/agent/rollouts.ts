// Groups of rollouts: many episodes at once, each in its own sandbox, judged, and handed back in a fixed order.
import { setMaxListeners } from "node:events";
import pLimit, { type LimitFunction } from "p-limit";
import type { ChatFormat, Tokenizer } from "../engine/tokenizer-types.ts";
import type { Engine, Session } from "../engine/types.ts";
import { isTokenringError, TokenringError, whoAborted } from "../errors.ts";
import { streamKey } from "../random.ts";
import type { Sandbox, SandboxBackend, SandboxSpec, Snapshot } from "../sandbox/types.ts";
import type { Instance, PromptTemplate } from "../tasks/types.ts";
import { span } from "../trace.ts";
import type { Verification } from "../verify/types.ts";
import { withDeadline, withSandboxDeadline } from "./deadline.ts";
import { openRoot, promptTokens, runEpisode } from "./episode.ts";
import { Places } from "./places.ts";
import { type Lanes, prefixLanes, unanswered } from "./stream.ts";
import type { Budget, Episode, EpisodeLimits, Group, Prefix, RolloutSource, Trajectory } from "./types.ts";
import { type Judgement, VerdictCache } from "./verdicts.ts";
import type { WorkspaceOptions } from "./workspace.ts";

/** Nets under calls that have limits of their own. */
const OPEN_MS = 300_000;
const CLOSE_MS = 60_000;
const VERIFY_MS = 1_800_000;

/** What episodes need: an engine, text formats, tasks, sandboxes and a judge. */
export interface RolloutOptions {
  engine: Engine;
  tokenizer: Tokenizer;
  chat: ChatFormat;
  template: PromptTemplate;
  /** Host directory of an instance's pristine repository (`TaskSet.repository`). */
  repository: (instance: Instance) => Promise<string>;
  sandboxes: SandboxBackend;
  /** Limits, environment and place of the repository in an episode's sandbox. */
  sandbox?: Omit<SandboxSpec, "repository">;
  /** Judges a patch in a sandbox of its own. */
  verify: (instance: Instance, patch: string, options: { signal: AbortSignal }) => Promise<Verification>;
  limits: EpisodeLimits;
  workspace?: Omit<WorkspaceOptions, "observationChars">;
  seed: number;
  /** Episodes that sample at the same time: as many as the engine's batch takes. */
  episodes: number;
  /** Episode sandboxes that are open at the same time; some more than `episodes`, so that the next is ready. */
  openSandboxes?: number;
  /** Patches that are judged at the same time. */
  verifications?: number;
  /** How often a rollout is tried again after its sandbox broke, before it leaves its group. */
  retries?: number;
  /** Shared between stages, so that a patch is judged once in a run. */
  verdicts?: VerdictCache;
}

type CollectRequest = Parameters<RolloutSource["collect"]>[0];

/** What belongs to one `collect` call. */
interface Collection {
  request: CollectRequest;
  signal: AbortSignal;
  openSandboxes: LimitFunction;
  episodes: LimitFunction;
  verifications: LimitFunction;
}

/** A group of one `collect` call: its own signal, prompt and places. */
interface GroupRun extends Collection {
  prompts: GroupPrompt;
  places: Places;
}

/** Groups of episodes, many at once, each in a sandbox of its own and judged in another. */
export class Rollouts implements RolloutSource {
  readonly #options: RolloutOptions;
  readonly #verdicts: VerdictCache;

  constructor(options: RolloutOptions) {
    for (const [name, count] of [
      ["episodes", options.episodes],
      ["openSandboxes", options.openSandboxes ?? 1],
      ["verifications", options.verifications ?? 1],
    ] as const) {
      if (Number.isInteger(count) && count > 0) continue;
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${name} must be 1 or more, got ${count}`);
    }
    this.#options = options;
    this.#verdicts = options.verdicts ?? new VerdictCache();
  }

  /** What an episode may spend. */
  get limits(): EpisodeLimits {
    return this.#options.limits;
  }

  /**
   * Runs `rollouts` episodes of every instance. Groups come in the order of the instances and trajectories in that of
   * their numbers, whatever finished first; every draw depends on (seed, purpose, iteration, instance's place,
   * rollout) alone. The first fault that is no broken sandbox stops all and is thrown, when everything is closed.
   */
  collect(request: CollectRequest): Promise<Group[]> {
    const { purpose, iteration, instances, rollouts, temperature } = request;
    const attributes = {
      "tokenring.purpose": purpose,
      "tokenring.iteration": iteration,
      "tokenring.instances": instances.length,
      "tokenring.rollouts": rollouts,
      "gen_ai.request.temperature": temperature,
    };
    return span("rollouts", attributes, () => this.#collect(request));
  }

  async #collect(request: CollectRequest): Promise<Group[]> {
    checkBudgets(request.alsoAt ?? [], this.#options.limits);
    for (const [name, value] of Object.entries({
      spare: request.spare ?? 0,
      groupMs: request.groupMs ?? 1,
    })) {
      if ((name === "groupMs" || Number.isInteger(value)) && value >= (name === "spare" ? 0 : 1)) continue;
      const message = `${name} is ${value}; give a whole number of at least ${name === "spare" ? 0 : 1}`;
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
    }
    checkPrefixes(request);
    const { episodes, openSandboxes, verifications } = this.#options;
    const stop = new AbortController();
    // Every episode under way listens: that is no leak.
    setMaxListeners(0, stop.signal);
    const follow = (): void => stop.abort(request.signal?.reason);
    if (request.signal?.aborted) follow();
    else request.signal?.addEventListener("abort", follow, { once: true });
    const collection: Collection = {
      request,
      signal: stop.signal,
      openSandboxes: pLimit(openSandboxes ?? episodes + Math.max(2, Math.ceil(episodes / 8))),
      episodes: pLimit(episodes),
      verifications: pLimit(verifications ?? 2),
    };
    let fault: unknown = null;
    try {
      await this.#options.engine.update?.({ signal: stop.signal });
    } catch (error) {
      fault = error;
      stop.abort(error);
    }
    // Rollouts of an instance start side by side: they share the prompt's keys and values.
    const groups = request.instances.map(async (instance, index) => {
      const decided = new AbortController();
      const signal = AbortSignal.any([stop.signal, decided.signal]);
      setMaxListeners(0, signal);
      const total = request.rollouts + (request.spare ?? 0);
      const places = new Places(request.rollouts, total);
      const group: GroupRun = {
        ...collection,
        signal,
        places,
        prompts: new GroupPrompt(this.#options, instance, request.prefixes?.[index]),
      };
      const rollouts = Array.from({ length: total }, async (_, rollout) => {
        try {
          places.finish(rollout, await this.#rollout(group, instance, index, rollout));
          if (total > request.rollouts && places.decided) decided.abort();
        } catch (error) {
          // Nobody waits for the spare ones of a group that is complete.
          if (decided.signal.aborted) return;
          fault ??= error;
          stop.abort(error);
        }
      });
      await Promise.all(rollouts);
      group.prompts.dispose();
      return { instance, ...places.assign() };
    });
    const finished = await Promise.all(groups);
    request.signal?.removeEventListener("abort", follow);
    if (request.signal?.aborted) {
      const cause: unknown = request.signal.reason;
      const message = `${request.purpose}, rollouts of iteration ${request.iteration}: ${whoAborted(cause)}`;
      throw new TokenringError("ERR_TOKENRING_ABORTED", message, { cause });
    }
    if (fault !== null) throw fault;
    return finished.map(({ spared, ...group }) => (request.spare ? { ...group, spared } : group));
  }

  #rollout(group: GroupRun, instance: Instance, index: number, rollout: number): Promise<Trajectory> {
    const { request } = group;
    const retries = this.#options.retries ?? 2;
    const attributes = { "tokenring.instance": instance.instance_id, "tokenring.rollout": rollout };
    return span("episode", attributes, async (note) => {
      for (let attempt = 0; ; attempt++) {
        const run = (budget?: Budget): Promise<Episode> =>
          this.#episode(group, instance, index, rollout, budget);
        const trajectory = await this.#judgeAll(group, instance, await run(), run);
        if (trajectory.exit === "infra_failed" && attempt < retries) continue;
        note({
          "tokenring.episode": trajectory.id,
          "tokenring.exit": trajectory.exit,
          "tokenring.verdict": trajectory.verdict,
          "tokenring.turns": trajectory.turns.length,
          "tokenring.tokens": trajectory.tokens.length,
          "tokenring.attempts": attempt + 1,
        });
        request.onTrajectory?.(trajectory);
        return trajectory;
      }
    });
  }

  /** Opens a sandbox before it waits for its turn to sample, so that the engine need not wait for the sandbox. */
  async #episode(
    group: GroupRun,
    instance: Instance,
    index: number,
    rollout: number,
    budget: Budget | undefined,
  ): Promise<Episode> {
    const { request, signal, prompts, places } = group;
    const open = (snapshot: Snapshot): Promise<Sandbox> => this.#open(instance, signal, snapshot);
    const { purpose, iteration } = request;
    const { limits } = this.#options;
    const who = { id: `${purpose}-${iteration}/${index}/${instance.instance_id}/${rollout}`, rollout };
    return await group.openSandboxes(async () => {
      signal.throwIfAborted();
      let sandbox: Sandbox | null = null;
      try {
        const opened = await this.#open(instance, signal);
        sandbox = opened;
        return await group.episodes(async () => {
          using session = prompts.fork();
          return await runEpisode({
            ...this.#options,
            ...who,
            instance,
            session,
            sandbox: opened,
            contextLimit: this.#options.engine.contextLimit,
            key: streamKey(this.#options.seed, purpose, iteration, index, rollout),
            temperature: request.temperature,
            limits: {
              ...limits,
              ...budget,
              ...(request.judgeOnly ? prompts.noTurns() : {}),
              episodeMs: Math.min(limits.episodeMs, places.left(request.groupMs)),
            },
            ...(prompts.prefix ? { prefix: prompts.prefix } : {}),
            ...(request.alsoAt && !budget ? { alsoAt: { budgets: request.alsoAt, open } } : {}),
            onTurn: (turn, index) =>
              request.onTurn?.(turn, { instanceId: instance.instance_id, rollout, index }),
            signal,
          });
        });
      } catch (error) {
        if (!isTokenringError(error, "ERR_TOKENRING_SANDBOX")) throw error;
        return {
          ...who,
          ...prompts.lanes(),
          instanceId: instance.instance_id,
          turns: [],
          exit: "infra_failed",
          patch: "",
          cause: error,
        };
      } finally {
        if (sandbox) await close(sandbox);
      }
    });
  }

  async #open(instance: Instance, signal: AbortSignal, snapshot?: Snapshot): Promise<Sandbox> {
    const { sandboxes, sandbox, repository } = this.#options;
    const what = `opening a sandbox for ${instance.instance_id}`;
    let opening: Promise<Sandbox> | null = null;
    try {
      return await withSandboxDeadline(OPEN_MS, what, signal, async (limited) => {
        const copied = snapshot?.repository ?? (await repository(instance));
        opening = sandboxes.open({ ...sandbox, repository: copied }, { signal: limited });
        return await opening;
      });
    } catch (error) {
      // One that comes too late has nobody else to close it.
      (opening as Promise<Sandbox> | null)?.then(close).catch(() => {});
      throw error;
    }
  }

  /** Judges an episode at its own budget and the smaller ones; what has to be run by itself there, `run` runs. */
  async #judgeAll(
    collection: Collection,
    instance: Instance,
    episode: Episode,
    run: (budget: Budget) => Promise<Episode>,
  ): Promise<Trajectory> {
    const whole = await this.#judge(collection, instance, episode);
    if (whole.exit === "infra_failed" || !episode.alsoAt) return whole;
    const alsoAt: { budget: Budget; trajectory: Trajectory }[] = [];
    for (const { budget, episode: shorter } of episode.alsoAt) {
      const trajectory = await this.#judge(collection, instance, shorter ?? (await run(budget)));
      if (trajectory.exit === "infra_failed") return infraFailed(episode);
      alsoAt.push({ budget, trajectory });
    }
    return { ...whole, alsoAt };
  }

  async #judge(collection: Collection, instance: Instance, episode: Episode): Promise<Trajectory> {
    if (episode.exit === "infra_failed") return infraFailed(episode);
    const { verify } = this.#options;
    const started = performance.now();
    let judgement: Judgement;
    try {
      judgement = await this.#verdicts.of(instance.instance_id, episode.patch, () =>
        collection.verifications(() =>
          span("verify", { "tokenring.instance": instance.instance_id }, async (note) => {
            const what = `judging ${episode.id}`;
            const verification = await withSandboxDeadline(VERIFY_MS, what, collection.signal, (signal) =>
              verify(instance, episode.patch, { signal }),
            );
            const { verdict, reason } = verification;
            note({ "tokenring.verdict": verdict, ...(reason && { "tokenring.reason": reason }) });
            return verification;
          }),
        ),
      );
    } catch (error) {
      if (!isTokenringError(error, "ERR_TOKENRING_SANDBOX")) throw error;
      return infraFailed({ ...episode, cause: error });
    }
    if (judgement.reason === "infra_failed") return infraFailed(episode);
    const { cause: _, alsoAt: __, ...trajectory } = episode;
    const { verdict, reason, ...tests } = judgement;
    return { ...trajectory, verdict, reason, tests, verifyMs: performance.now() - started };
  }
}

/** What a group begins with (its prompt, or a prefix): made once, and held by one session that every rollout forks. */
class GroupPrompt {
  readonly #options: RolloutOptions;
  readonly #instance: Instance;
  readonly prefix: Prefix | undefined;
  #lanes: Lanes | null = null;
  #root: Session | null = null;

  constructor(options: RolloutOptions, instance: Instance, prefix: Prefix | undefined) {
    this.#options = options;
    this.#instance = instance;
    this.prefix = prefix;
  }

  /** Limits under which an episode ends where its prefix does, and is judged. */
  noTurns(): Partial<EpisodeLimits> {
    return this.prefix ? { maxTurns: this.prefix.turns, autoSubmit: true } : {};
  }

  fork(): Session {
    const { engine, limits } = this.#options;
    const prompt = this.lanes().tokens;
    // The episode sees for itself that a prompt of this size leaves no room.
    if (prompt.length >= Math.min(limits.maxContext, engine.contextLimit)) return engine.open();
    this.#root ??= openRoot(engine, prompt);
    return this.#root.fork();
  }

  lanes(): Lanes {
    const { chat, template } = this.#options;
    this.#lanes ??= this.prefix
      ? prefixLanes(this.prefix)
      : unanswered(promptTokens(chat, template, this.#instance));
    return this.#lanes;
  }

  dispose(): void {
    this.#root?.dispose();
    this.#root = null;
  }
}

function checkPrefixes({ prefixes, instances, alsoAt = [] }: CollectRequest): void {
  if (!prefixes) return;
  const refuse = (what: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", what);
  };
  if (prefixes.length !== instances.length)
    refuse(`${prefixes.length} prefixes for ${instances.length} instances; give one for each`);
  if (alsoAt.length > 0) refuse("prefixes are judged at their own budget alone; leave alsoAt out");
}

function checkBudgets(budgets: readonly Budget[], limits: EpisodeLimits): void {
  const size = ({ maxTurns, maxContext }: Budget): string => `${maxTurns} turns in ${maxContext} tokens`;
  for (const budget of budgets) {
    if (budget.maxTurns <= limits.maxTurns && budget.maxContext <= limits.maxContext) continue;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `alsoAt: ${size(budget)} is more than the episodes have (${size(limits)}); give smaller budgets`,
    );
  }
}

function infraFailed(episode: Episode): Trajectory {
  const { cause: _, alsoAt: __, ...trajectory } = episode;
  return { ...trajectory, exit: "infra_failed", verdict: "not_run", reason: "infra_failed", verifyMs: 0 };
}

/** What cannot be closed is broken already, and its episode is over: its backend closes what is left. */
async function close(sandbox: Sandbox): Promise<void> {
  try {
    await withDeadline(CLOSE_MS, "closing a sandbox", undefined, () => sandbox.close());
  } catch (error) {
    if (
      !isTokenringError(error, "ERR_TOKENRING_SANDBOX") &&
      !isTokenringError(error, "ERR_TOKENRING_TIMEOUT")
    ) {
      throw error;
    }
  }
}
