// Text to token ids and back, and where a turn ends. Built from Hugging Face tokenizer files.

/** Text to token ids and back (byte-level BPE). */
export interface Tokenizer {
  readonly vocabularySize: number;
  /** Special tokens by their text. */
  readonly specials: ReadonlyMap<string, number>;
  /** Ids of `text`. Special tokens written out in the text become ordinary text unless `special` is true. */
  encode(text: string, options?: { special?: boolean }): Int32Array;
  /** Text of ids, special tokens left out. Never used to rebuild ids. */
  decode(tokens: ArrayLike<number>): string;
  /** The text of one token as people see it, special tokens by name. */
  piece(token: number): string;
  /** The bytes that a token stands for, a special one's name included; undefined for an unused id. */
  bytes(token: number): Uint8Array | undefined;
  /** Id of a special token by its text; throws ERR_TOKENRING_TOKENIZER when there is none. */
  specialId(text: string): number;
}

/** The text around turns, derived once from the model's chat template. */
export interface ChatFormat {
  /** Ids that open a conversation: system prompt and first user message, up to where the assistant begins. */
  opening(messages: { system?: string; user: string }): Int32Array;
  /** Ids between an assistant turn (which ended with `endOfTurn`) and the next: the observation in its wrapping. */
  between(observation: string): Int32Array;
  /** The ids at which the policy ends its turn. */
  readonly endOfTurn: readonly number[];
}
