// A tokenizer for a small world, as genuine Hugging Face files: every byte is a token, and so is every phrase that
// the world says often. No merges: a name is always cut the same way, which makes copying it easy to learn.
import { TokenringError } from "../errors.ts";
import { BYTE_CHARACTERS } from "./tokenizer-bytes.ts";

const END_OF_TEXT = "<|endoftext|>";
const USER = "<|user|>";
const ASSISTANT = "<|assistant|>";
const END = "<|end|>";

const CHAT_TEMPLATE = [
  "{% for message in messages %}",
  `{% if message['role'] == 'user' %}{{ '${USER}' + message['content'] }}`,
  `{% elif message['role'] == 'assistant' %}{{ '${ASSISTANT}' + message['content'] + '${END}' }}`,
  "{% else %}{{ message['content'] }}{% endif %}",
  "{% endfor %}",
  `{% if add_generation_prompt %}{{ '${ASSISTANT}' }}{% endif %}`,
].join("");

export interface TokenizerFiles {
  /** Content of `tokenizer.json`. */
  tokenizerJson: Record<string, unknown>;
  /** Content of `tokenizer_config.json`. */
  tokenizerConfig: Record<string, unknown>;
}

/**
 * Ids 0 to 255 are the bytes, then come the special tokens <|endoftext|> <|user|> <|assistant|> <|end|> and
 * `specials`, then `phrases` in their order. Phrases are matched before bytes: leftmost, there the longest.
 * Throws ERR_TOKENRING_TOKENIZER for a phrase of fewer than two characters or one that comes twice.
 */
export function buildByteTokenizer(options: {
  phrases: readonly string[];
  specials?: readonly string[];
}): TokenizerFiles {
  const specials = [END_OF_TEXT, USER, ASSISTANT, END, ...(options.specials ?? [])];
  const contents = [...specials, ...options.phrases];
  const seen = new Set<string>();
  for (const content of contents) {
    // One character may be the spelling of a byte in the vocabulary, and is a byte token already if it is ASCII.
    const fault =
      [...content].length < 2 ? "is shorter than two characters" : seen.has(content) ? "comes twice" : null;
    if (fault)
      throw new TokenringError("ERR_TOKENRING_TOKENIZER", `phrase ${JSON.stringify(content)} ${fault}`);
    seen.add(content);
  }
  const added = contents.map((content, index) => ({
    id: 256 + index,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: index < specials.length,
  }));
  return {
    tokenizerJson: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      post_processor: null,
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: Object.fromEntries(BYTE_CHARACTERS.map((character, byte) => [character, byte])),
        merges: [],
      },
    },
    tokenizerConfig: {
      added_tokens_decoder: Object.fromEntries(added.map(({ id, ...token }) => [String(id), token])),
      bos_token: null,
      chat_template: CHAT_TEMPLATE,
      clean_up_tokenization_spaces: false,
      eos_token: END,
      model_max_length: 1_000_000,
      pad_token: END_OF_TEXT,
      tokenizer_class: "PreTrainedTokenizerFast",
      unk_token: null,
    },
  };
}
