// One episode: the policy reads and samples tokens, its command runs, what came back is appended, and so on.
import type { ChatFormat, Tokenizer } from "../engine/tokenizer-types.ts";
import type { Engine, SampledTurn, Session } from "../engine/types.ts";
import { isTokenringError, TokenringError, whoAborted } from "../errors.ts";
import type { Sandbox, Snapshot } from "../sandbox/types.ts";
import type { Instance, PromptTemplate } from "../tasks/types.ts";
import { type Note, span } from "../trace.ts";
import { turn } from "../turns.ts";
import { SmallerBudgets } from "./budgets.ts";
import { firstWord } from "./command-line.ts";
import { type Deadline, startDeadline, withSandboxDeadline } from "./deadline.ts";
import { formatErrorText, parseAction } from "./grammar.ts";
import { type Lanes, prefixLanes, TokenStream, unanswered } from "./stream.ts";
import type { Budget, Episode, EpisodeLimits, Exit, Prefix, Turn } from "./types.ts";
import { type CommandOutcome, Workspace, type WorkspaceOptions } from "./workspace.ts";

/** The working tree's diff is taken after the episode's own time is over. */
const DIFF_MS = 60_000;

/** One episode: who acts, where, on what, and within which limits. */
export interface EpisodeRequest {
  instance: Instance;
  template: PromptTemplate;
  /** Empty, or a fork of `openRoot`. The caller disposes of it. */
  session: Session;
  tokenizer: Tokenizer;
  chat: ChatFormat;
  /** The caller closes it. */
  sandbox: Sandbox;
  limits: EpisodeLimits;
  /** Tools, style and window of the agent's shell; `observationChars` comes from the limits. */
  workspace?: Omit<WorkspaceOptions, "observationChars">;
  /** Tokens that the session may hold, when the engine holds fewer than `limits.maxContext`. */
  contextLimit?: number;
  /** Decides every draw of the episode. */
  key: bigint;
  temperature: number;
  /** Smaller budgets to end at as well, and a sandbox on the tree as it stood there, which the episode closes. */
  alsoAt?: { budgets: readonly Budget[]; open: (snapshot: Snapshot) => Promise<Sandbox> };
  /** Goes on from here; `session` then holds the prefix's tokens (`prefixLanes`) or none. */
  prefix?: Prefix;
  id?: string;
  rollout?: number;
  /** Told of each turn once it is over, with its number from 0; those of a prefix are left out. */
  onTurn?: (turn: Turn, index: number) => void;
  signal?: AbortSignal;
}

/** The ids that open an instance's conversation. */
export function promptTokens(chat: ChatFormat, template: PromptTemplate, instance: Instance): Int32Array {
  const user = template.opening(instance);
  return chat.opening(template.system === undefined ? { user } : { system: template.system, user });
}

/** A session that holds the prompt, to be forked once a rollout: the engine then computes the prompt once. */
export function openRoot(engine: Engine, prompt: Int32Array): Session {
  const root = engine.open();
  root.extend(prompt);
  return root;
}

/**
 * Runs the ReAct loop to its end. A broken sandbox (ERR_TOKENRING_SANDBOX) ends it with exit infra_failed; faults of
 * the engine and aborts by `signal` (ERR_TOKENRING_ABORTED) are thrown.
 */
export async function runEpisode(request: EpisodeRequest): Promise<Episode> {
  const { instance, limits, sandbox } = request;
  const who = {
    id: request.id ?? instance.instance_id,
    instanceId: instance.instance_id,
    rollout: request.rollout ?? 0,
  };
  const contextLimit = request.contextLimit ?? limits.maxContext;
  const room = Math.min(limits.maxContext, contextLimit);
  const { prefix } = request;
  const begin = prefix
    ? prefixLanes(prefix)
    : unanswered(promptTokens(request.chat, request.template, instance));
  const turns: Turn[] = prefix ? prefix.trajectory.turns.slice(0, prefix.turns) : [];
  const smaller = new SmallerBudgets({
    budgets: request.alsoAt?.budgets ?? [],
    prompt: begin.tokens.length,
    contextLimit,
    turns,
    tokenizer: request.tokenizer,
    patch: async () => (limits.autoSubmit ? await patchSoFar(request) : ""),
  });
  const ended = (lanes: Lanes, exit: Exit, patch: string, cause: unknown = null): Episode => {
    const whole: Episode = { ...who, ...lanes, turns, exit, patch, cause };
    return request.alsoAt && exit !== "infra_failed" ? { ...whole, alsoAt: smaller.episodes(whole) } : whole;
  };
  if (begin.tokens.length >= room) return ended(begin, "context_limit", "");

  const stream = new TokenStream(request.session, begin);
  const deadline = startDeadline(limits.episodeMs, `the episode of ${instance.instance_id}`, request.signal);
  const workspace = new Workspace(sandbox, {
    ...request.workspace,
    observationChars: limits.observationChars,
  });
  let told = turns.length;
  const tell = (): void => {
    for (; told < turns.length; told++) request.onTurn?.(turns[told] as Turn, told);
  };
  try {
    if (prefix) await replay(prefix, workspace, deadline);
    let exit: Exclude<Exit, "infra_failed">;
    try {
      exit = await react(request, { workspace, stream, turns, smaller, deadline, room, tell });
    } finally {
      tell();
    }
    const judged = exit === "submitted" || limits.autoSubmit;
    return ended(stream.lanes(), exit, judged ? await takeDiff(sandbox, request) : "");
  } catch (error) {
    if (request.signal?.aborted) throw aborted(instance, request.signal, error);
    if (!isTokenringError(error, "ERR_TOKENRING_SANDBOX")) throw error;
    return ended(stream.lanes(), "infra_failed", "", error);
  } finally {
    deadline.release();
  }
}

async function takeDiff(sandbox: Sandbox, { instance, signal }: EpisodeRequest): Promise<string> {
  return withSandboxDeadline(DIFF_MS, `the diff of ${instance.instance_id}`, signal, () => sandbox.diff());
}

/** The diff of an episode that goes on: taken on a copy, since a diff ends what runs in its sandbox. */
async function patchSoFar(request: EpisodeRequest): Promise<string> {
  const { instance, sandbox, signal } = request;
  const snapshot = await withSandboxDeadline(DIFF_MS, `a snapshot of ${instance.instance_id}`, signal, () =>
    sandbox.snapshot(),
  );
  try {
    const copy = await (request.alsoAt as NonNullable<EpisodeRequest["alsoAt"]>).open(snapshot);
    try {
      return await takeDiff(copy, request);
    } finally {
      await copy.close();
    }
  } finally {
    await snapshot.dispose();
  }
}

/**
 * Brings a fresh sandbox to where it stood after the prefix, by its commands. Throws ERR_TOKENRING_SANDBOX where they
 * say something else than they did: that state cannot be had again.
 */
async function replay(prefix: Prefix, workspace: Workspace, deadline: Deadline): Promise<void> {
  const { id, turns } = prefix.trajectory;
  for (const [i, { command, observation }] of turns.slice(0, prefix.turns).entries()) {
    if (command === null) continue;
    let said: string;
    try {
      said = (await deadline.race(workspace.run(command, deadline.signal))).observation;
    } catch (error) {
      if (!deadline.expired) throw error;
      const message = `${id}: running its turns up to ${i} again took longer than an episode may`;
      throw new TokenringError("ERR_TOKENRING_SANDBOX", message, { cause: error });
    }
    if (said === observation) continue;
    const message = `${id}, turn ${i}: run again, its command gives another observation; the state after it cannot be had again`;
    throw new TokenringError("ERR_TOKENRING_SANDBOX", message, { details: { turn: i, said, observation } });
  }
}

/** What the loop of one episode works on. */
interface Running {
  workspace: Workspace;
  stream: TokenStream;
  turns: Turn[];
  smaller: SmallerBudgets;
  deadline: Deadline;
  /** Tokens that the stream may hold. */
  room: number;
  /** Passes on the turns that are over. */
  tell: () => void;
}

async function react(request: EpisodeRequest, running: Running): Promise<Exclude<Exit, "infra_failed">> {
  const { limits } = request;
  const { turns, deadline, tell } = running;
  try {
    while (turns.length < limits.maxTurns) {
      tell();
      const exit = await span("turn", { "tokenring.turn": turns.length }, (note) =>
        takeTurn(request, running, note),
      );
      if (exit !== null) return exit;
    }
    return "turn_limit";
  } catch (error) {
    if (deadline.expired) return "timeout";
    throw error;
  }
}

/** The policy acts once and its command runs. Returns how the episode ended by that, null where it goes on. */
async function takeTurn(
  request: EpisodeRequest,
  { workspace, stream, turns, smaller, deadline, room }: Running,
  note: Note,
): Promise<Exclude<Exit, "infra_failed"> | null> {
  const { limits, chat, tokenizer } = request;
  const maxTokens = Math.min(limits.maxActionTokens, room - stream.length);
  if (maxTokens <= 0) return "context_limit";
  deadline.signal.throwIfAborted();
  const asked = performance.now();
  const sampled = await deadline.race(sample(request, maxTokens, stream.length, deadline.signal));
  const sampleMs = performance.now() - asked;
  // Many engines' answers may come in one turn of the event loop.
  await turn();
  deadline.signal.throwIfAborted();
  const place = stream.act(sampled, {
    maxTokens,
    stop: chat.endOfTurn,
  });
  const text = tokenizer.decode(sampled.tokens);
  const { command, error } = parseAction(text);
  const taken: Turn = {
    ...place,
    text,
    command,
    formatError: error,
    observation: "",
    finish: sampled.finish,
    version: sampled.version,
    sampleMs,
    toolMs: 0,
  };
  turns.push(taken);
  if (error !== null) note({ "tokenring.format_error": error });
  await smaller.sampled(sampled.tokens);

  const started = performance.now();
  let observation: string;
  if (command === null) {
    observation = workspace.observation(formatErrorText(error ?? "no_command", workspace.style));
  } else {
    const outcome = await deadline.race(exec(workspace, command, deadline.signal));
    taken.toolMs = performance.now() - started;
    if (outcome.submitted) return "submitted";
    observation = outcome.observation;
  }
  if (turns.length >= limits.maxTurns) return "turn_limit";
  await turn();

  // An action that was cut lacks its end; the policy did not say it, so it belongs to what it is shown.
  const between = chat.between(observation);
  const tokens = sampled.finish === "stop" ? between : Int32Array.of(chat.endOfTurn[0] as number, ...between);
  await smaller.ran(stream.length, tokens.length);
  if (stream.length + tokens.length >= room) return "context_limit";
  stream.observe(tokens);
  taken.observation = observation;
  return null;
}

function sample(
  { session, chat, temperature, key }: EpisodeRequest,
  maxTokens: number,
  context: number,
  signal: AbortSignal,
): Promise<SampledTurn> {
  const attributes = {
    "gen_ai.operation.name": "text_completion",
    "gen_ai.request.max_tokens": maxTokens,
    "gen_ai.request.temperature": temperature,
    "gen_ai.usage.input_tokens": context,
  };
  return span("sample", attributes, async (note) => {
    const sampled = await session.sample({ maxTokens, stop: chat.endOfTurn, temperature, seed: key, signal });
    note({
      "gen_ai.usage.output_tokens": sampled.tokens.length,
      "gen_ai.response.finish_reasons": [sampled.finish],
      "tokenring.weights_version": sampled.version,
    });
    return sampled;
  });
}

/** Of a command, what its span shows. */
const COMMAND_SHOWN = 500;

function exec(workspace: Workspace, command: string, signal: AbortSignal): Promise<CommandOutcome> {
  const attributes = {
    "gen_ai.operation.name": "execute_tool",
    "gen_ai.tool.name": firstWord(command),
    "tokenring.command": command.slice(0, COMMAND_SHOWN),
  };
  return span("exec", attributes, async (note) => {
    const outcome = await workspace.run(command, signal);
    note({ "tokenring.submitted": outcome.submitted });
    return outcome;
  });
}

function aborted(instance: Instance, signal: AbortSignal, cause: unknown): TokenringError {
  const message = `the episode of ${instance.instance_id}: ${whoAborted(signal.reason)}`;
  return new TokenringError("ERR_TOKENRING_ABORTED", message, { cause });
}
