// A GGUF file of a policy's weights, as llama.cpp reads it: float32 throughout.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { DecoderConfig } from "tokenring";

/** GGUF's numbers for the types of metadata values. */
const UINT32 = 4;
const INT32 = 5;
const FLOAT32 = 6;
const STRING = 8;
const ARRAY = 9;
const ALIGNMENT = 32;

interface Tensor {
  /** By Hugging Face's name and shape: rows, then columns. */
  name: string;
  shape: readonly number[];
  data: Float32Array;
}

/** Little-endian parts, one after the other. */
class Writer {
  readonly #parts: Buffer[] = [];
  length = 0;

  bytes(part: Buffer): void {
    this.#parts.push(part);
    this.length += part.length;
  }

  uint32(value: number): void {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    this.bytes(part);
  }

  uint64(value: number): void {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    this.bytes(part);
  }

  float32(value: number): void {
    const part = Buffer.alloc(4);
    part.writeFloatLE(value);
    this.bytes(part);
  }

  text(text: string): void {
    const part = Buffer.from(text);
    this.uint64(part.length);
    this.bytes(part);
  }

  pad(): void {
    this.bytes(Buffer.alloc((ALIGNMENT - (this.length % ALIGNMENT)) % ALIGNMENT));
  }

  done(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

type WriteValue = (to: Writer) => void;
const uint32 = (value: number): WriteValue => typed(UINT32, (to) => to.uint32(value));
const float32 = (value: number): WriteValue => typed(FLOAT32, (to) => to.float32(value));
const text = (value: string): WriteValue => typed(STRING, (to) => to.text(value));
const list = <T>(type: number, values: readonly T[], write: (to: Writer, value: T) => void): WriteValue =>
  typed(ARRAY, (to) => {
    to.uint32(type);
    to.uint64(values.length);
    for (const value of values) write(to, value);
  });

function typed(type: number, write: WriteValue): WriteValue {
  return (to) => {
    to.uint32(type);
    write(to);
  };
}

const EDGE: Readonly<Record<string, string>> = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
};
const PARTS: Readonly<Record<string, string>> = {
  input_layernorm: "attn_norm",
  post_attention_layernorm: "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

function ggufName(name: string): string {
  const [, layer, part = "", kind] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? [];
  const found = EDGE[name] ?? (PARTS[part] && `blk.${layer}.${PARTS[part]}.${kind}`);
  if (found === undefined) throw new Error(`the tensor ${name} has no place in a GGUF file`);
  return found;
}

/**
 * llama.cpp's "llama" architecture takes biases of queries, keys and values, and heads whose width is not hidden size
 * over heads, which its "qwen2" does not; but it turns neighbouring pairs of a head where Hugging Face turns halves.
 */
function metadata(config: DecoderConfig): Record<string, WriteValue> {
  const names = Array.from({ length: config.vocab_size }, (_, id) => `token${id}`);
  return {
    "general.architecture": text("llama"),
    "general.alignment": uint32(ALIGNMENT),
    "llama.vocab_size": uint32(config.vocab_size),
    "llama.context_length": uint32(config.max_position_embeddings),
    "llama.embedding_length": uint32(config.hidden_size),
    "llama.block_count": uint32(config.num_hidden_layers),
    "llama.feed_forward_length": uint32(config.intermediate_size),
    "llama.attention.head_count": uint32(config.num_attention_heads),
    "llama.attention.head_count_kv": uint32(config.num_key_value_heads),
    "llama.attention.key_length": uint32(config.head_dim),
    "llama.attention.value_length": uint32(config.head_dim),
    "llama.rope.dimension_count": uint32(config.head_dim),
    "llama.rope.freq_base": float32(config.rope_theta),
    "llama.attention.layer_norm_rms_epsilon": float32(config.rms_norm_eps),
    // A vocabulary must be there; only ids go in and out.
    "tokenizer.ggml.model": text("gpt2"),
    "tokenizer.ggml.pre": text("qwen2"),
    "tokenizer.ggml.tokens": list(STRING, names, (to, name) => to.text(name)),
    "tokenizer.ggml.token_type": list(INT32, names, (to) => to.uint32(1)),
    "tokenizer.ggml.merges": list(STRING, ["t o"], (to, merge) => to.text(merge)),
    "tokenizer.ggml.eos_token_id": uint32(0),
  };
}

/** The rows of each head from halves to neighbouring pairs. */
function inPairs({ shape, data }: Tensor, headDim: number): Float32Array {
  const width = shape[1] ?? 1;
  const out = new Float32Array(data.length);
  for (let row = 0; row < data.length / width; row++) {
    const at = row % headDim;
    const from = row - at + (at % 2) * (headDim / 2) + Math.floor(at / 2);
    out.set(data.subarray(from * width, (from + 1) * width), row * width);
  }
  return out;
}

export function writeGguf(config: DecoderConfig, tensors: readonly Tensor[]): Buffer {
  const header = new Writer();
  header.bytes(Buffer.from("GGUF"));
  header.uint32(3);
  header.uint64(tensors.length);
  const entries = Object.entries(metadata(config));
  header.uint64(entries.length);
  for (const [key, write] of entries) {
    header.text(key);
    write(header);
  }
  const data = new Writer();
  for (const tensor of tensors) {
    const values = /\.[qk]_proj\./.test(tensor.name) ? inPairs(tensor, config.head_dim) : tensor.data;
    header.text(ggufName(tensor.name));
    header.uint32(tensor.shape.length);
    for (const size of [...tensor.shape].reverse()) header.uint64(size); // the innermost first
    header.uint32(0); // float32
    header.uint64(data.length);
    data.bytes(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
    data.pad();
  }
  header.pad();
  return Buffer.concat([header.done(), data.done()]);
}

/** The tensors of a folder that `Policy.save` wrote with dtype "f32". */
export async function readTensors(directory: string): Promise<Tensor[]> {
  const file = await readFile(join(directory, "model.safetensors"));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, start)) as Record<
    string,
    { shape: number[]; data_offsets: [number, number] }
  >;
  return Object.entries(header)
    .filter(([name]) => name !== "__metadata__")
    .map(([name, { shape, data_offsets: offsets }]) => {
      const bytes = Uint8Array.prototype.slice.call(file, start + offsets[0], start + offsets[1]);
      return { name, shape, data: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4) };
    });
}
