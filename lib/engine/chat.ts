// The text around turns, derived once from a model's Jinja chat template, so that a stream only ever grows: what was
// sampled is never rendered again. A template that would render earlier turns differently is refused.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { TokenringError } from "../errors.ts";
import { readJson } from "./tokenizer.ts";
import type { ChatFormat, Tokenizer } from "./tokenizer-types.ts";

export interface ChatTemplate {
  /** Jinja source. */
  source: string;
  /** What the template sees besides `messages` and `add_generation_prompt`: bos_token, switches, a date. */
  variables?: Readonly<Record<string, unknown>>;
}

interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

/** The chat template of a tokenizer_config.json, with its bos and eos tokens. Throws ERR_TOKENRING_TOKENIZER without one. */
export function chatTemplateOf(tokenizerConfig: Readonly<Record<string, unknown>>): ChatTemplate {
  const found = tokenizerConfig.chat_template;
  const source = Array.isArray(found)
    ? (found as { name: string; template: string }[]).find((entry) => entry.name === "default")?.template
    : found;
  if (typeof source !== "string") {
    throw failure(
      "tokenizer_config.json has no chat_template; use a chat model's tokenizer or give a template",
    );
  }
  return { source, variables: namedTokens(tokenizerConfig) };
}

/** What a template of `directory`'s tokenizer sees: its named tokens. Throws ERR_TOKENRING_TOKENIZER. */
export async function templateVariables(directory: string): Promise<Record<string, unknown>> {
  return namedTokens((await readJson(join(directory, "tokenizer_config.json"))) ?? {});
}

/** Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`. Throws ERR_TOKENRING_TOKENIZER. */
export async function loadChatTemplate(directory: string): Promise<ChatTemplate> {
  const config = (await readJson(join(directory, "tokenizer_config.json"))) ?? {};
  try {
    const source = await readFile(join(directory, "chat_template.jinja"), "utf8");
    return { source, variables: namedTokens(config) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  return chatTemplateOf(config);
}

function namedTokens(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const variables: Record<string, unknown> = {};
  for (const name of ["bos_token", "eos_token", "pad_token", "unk_token"]) {
    const token = config[name];
    const text =
      typeof token === "object" && token !== null ? (token as { content?: unknown }).content : token;
    if (typeof text === "string") variables[name] = text;
  }
  return variables;
}

// Letters and digits only, so that no filter of a template changes them.
const SYSTEM = "xTokenringSystem0x";
const USERS = ["xTokenringUser1x", "xTokenringUser2x", "xTokenringUser3x"] as const;
const ANSWERS = ["xTokenringAnswer1x", "xTokenringAnswer2x"] as const;

/**
 * Derives the text between turns by rendering conversations of marker texts. Throws ERR_TOKENRING_PREFIX_CHANGED
 * when a longer conversation is not the shorter one continued (the template drops, trims or moves earlier turns),
 * ERR_TOKENRING_TOKENIZER when the template cannot be rendered or ends an assistant turn with no special token.
 */
export function chatFormat(tokenizer: Tokenizer, template: ChatTemplate | string): ChatFormat {
  const { source, variables } = typeof template === "string" ? { source: template } : template;
  const render = renderer(source, variables ?? {});
  const user = (content: string): Message => ({ role: "user", content });
  const assistant = (content: string): Message => ({ role: "assistant", content });

  const opening = render([user(USERS[0])]);
  let tail: string | null = null;
  // Twice: reasoning in tags is what templates like to drop from earlier turns.
  for (const dress of [(text: string) => text, (text: string) => `<think>\n${text}\n</think>\n\n${text}`]) {
    const [first, second] = ANSWERS.map(dress) as [string, string];
    const twoTurns = [user(USERS[0]), assistant(first), user(USERS[1])];
    const afterOne = render(twoTurns);
    const afterTwo = render([...twoTurns, assistant(second), user(USERS[2])]);
    const one = continuation(afterOne, opening + first, "a second user message");
    const two = continuation(afterTwo, afterOne + second, "a third user message");
    tail ??= one;
    for (const [found, marker] of [
      [one, USERS[1]],
      [two, USERS[2]],
    ] as const) {
      if (found.replace(marker, USERS[1]) !== tail) {
        throw prefixChanged("puts different text before different user messages", tail, found);
      }
    }
  }

  const between = compile(tokenizer, tail as string, [USERS[1]]);
  const end = between.shift();
  if (end === undefined || !("ids" in end) || !isSpecial(tokenizer, end.ids[0])) {
    throw failure(
      `the chat template ends an assistant turn with ${JSON.stringify((tail as string).slice(0, 20))}, ` +
        "not with a special token: the policy could not end its turn",
    );
  }
  const endOfTurn = end.ids[0] as number;
  if (end.ids.length > 1) between.unshift({ ids: end.ids.slice(1) });

  const cleanUser = cleaner(render([user(` \n${USERS[0]}\n `)]), USERS[0]);
  const plain = compile(tokenizer, opening, [USERS[0]]);
  // Some templates know no system message and say so by raising.
  const withSystem = attempt(() => {
    const system = (content: string): Message => ({ role: "system", content });
    return {
      pattern: compile(tokenizer, render([system(SYSTEM), user(USERS[0])]), [SYSTEM, USERS[0]]),
      clean: cleaner(render([system(` \n${SYSTEM}\n `), user(USERS[0])]), SYSTEM),
    };
  });

  return {
    endOfTurn: [endOfTurn],
    opening(messages) {
      const userText = cleanUser(messages.user);
      if (messages.system === undefined) return fill(tokenizer, plain, [userText]);
      if ("error" in withSystem) throw withSystem.error;
      const { pattern, clean } = withSystem.value;
      return fill(tokenizer, pattern, [clean(messages.system), userText]);
    },
    between: (observation) => fill(tokenizer, between, [cleanUser(observation)]),
  };
}

function renderer(
  source: string,
  variables: Readonly<Record<string, unknown>>,
): (messages: Message[]) => string {
  // A date in the prompt would make two runs of one seed differ, so the clock of a template stands still.
  const dated = source.includes("strftime_now") ? `{% set strftime_now = fixed_date %}\n${source}` : source;
  const parsed = attempt(() => new Template(dated));
  if ("error" in parsed)
    throw failure(`the chat template does not parse: ${parsed.error.message}`, parsed.error);
  return (messages) => {
    const rendered = attempt(() =>
      parsed.value.render({
        tools: null,
        documents: null,
        fixed_date: () => "1 January 2025",
        ...variables,
        messages,
        add_generation_prompt: true,
      }),
    );
    if ("value" in rendered) return rendered.value;
    const roles = messages.map((message) => message.role).join(", ");
    throw failure(`the chat template fails on (${roles}): ${rendered.error.message}`, rendered.error);
  };
}

function continuation(longer: string, shorter: string, added: string): string {
  if (longer.startsWith(shorter)) return longer.slice(shorter.length);
  throw prefixChanged(`renders earlier turns differently after ${added}`, shorter, longer);
}

function prefixChanged(what: string, expected: string, found: string): TokenringError {
  let at = 0;
  while (at < expected.length && expected[at] === found[at]) at++;
  const excerpt = (text: string): string => JSON.stringify(text.slice(at, at + 32));
  return new TokenringError(
    "ERR_TOKENRING_PREFIX_CHANGED",
    `the chat template rewrites history: it ${what} (expected ${excerpt(expected)} at character ${at}, ` +
      `found ${excerpt(found)}); use a template that leaves earlier turns as they were, reasoning included`,
    { details: { at, expected, found } },
  );
}

/** Whether the template keeps the white space around a text, as a function that treats texts likewise. */
function cleaner(rendered: string, marker: string): (text: string) => string {
  const keepsStart = rendered.includes(` \n${marker}`);
  const keepsEnd = rendered.includes(`${marker}\n `);
  return (text) => {
    const start = keepsStart ? text : text.trimStart();
    return keepsEnd ? start : start.trimEnd();
  };
}

/** Ids that are always the same, or text to encode in one piece because a slot (by its index) lies in it. */
type Part = { ids: Int32Array } | { text: (string | number)[] };

/** Cuts rendered text at special tokens, so that each stretch between them is encoded as a whole. */
function compile(tokenizer: Tokenizer, rendered: string, slots: readonly string[]): Part[] {
  for (const slot of slots) {
    if (rendered.split(slot).length !== 2) {
      throw failure(
        `the chat template writes a message ${rendered.split(slot).length - 1} times instead of once`,
      );
    }
  }
  const names = [...tokenizer.specials.keys()].sort((a, b) => b.length - a.length).map(escapeRegExp);
  const pieces = names.length > 0 ? rendered.split(new RegExp(`(${names.join("|")})`)) : [rendered];
  const parts: Part[] = [];
  for (const piece of pieces) {
    if (piece === "") continue;
    const cut = piece.split(new RegExp(`(${slots.map(escapeRegExp).join("|")})`));
    if (cut.length > 1) {
      parts.push({ text: cut.map((text) => (slots.includes(text) ? slots.indexOf(text) : text)) });
      continue;
    }
    const ids = tokenizer.encode(piece, { special: true });
    const last = parts.at(-1);
    if (last && "ids" in last) last.ids = Int32Array.from([...last.ids, ...ids]);
    else parts.push({ ids });
  }
  const whole = tokenizer.encode(rendered, { special: true });
  const filled = fill(tokenizer, parts, slots);
  if (whole.length !== filled.length || whole.some((id, i) => id !== filled[i])) {
    throw failure(
      "the chat template's text is cut differently in pieces than as a whole (tokens that strip spaces)",
    );
  }
  return parts;
}

function fill(tokenizer: Tokenizer, parts: readonly Part[], values: readonly string[]): Int32Array {
  const pieces = parts.map((part) =>
    "ids" in part
      ? part.ids
      : tokenizer.encode(part.text.map((text) => (typeof text === "number" ? values[text] : text)).join("")),
  );
  const ids = new Int32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    ids.set(piece, at);
    at += piece.length;
  }
  return ids;
}

function isSpecial(tokenizer: Tokenizer, id: number | undefined): boolean {
  return id !== undefined && [...tokenizer.specials.values()].includes(id);
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

function attempt<T>(action: () => T): { value: T } | { error: Error } {
  try {
    return { value: action() };
  } catch (error) {
    return { error: error instanceof Error ? error : new Error(String(error)) };
  }
}

function failure(message: string, cause?: unknown): TokenringError {
  return new TokenringError("ERR_TOKENRING_TOKENIZER", message, cause === undefined ? {} : { cause });
}
