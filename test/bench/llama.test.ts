// The peer llama.cpp without llama.cpp: the file that it would read, and its process on a double of node-llama-cpp.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it, vi } from "vitest";
import { writeGguf } from "../../bench/peers/gguf.ts";
import { openLlama } from "../../bench/peers/llama.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { TINY } from "../policy/tiny.ts";

const directory = mkdtempSync(join(tmpdir(), "tokenring-bench-llama-test-"));
afterAll(() => rmSync(directory, { recursive: true }));
afterEach(() => vi.unstubAllEnvs());

/** What a GGUF file says, read by its specification. */
function readGguf(file: Buffer) {
  let at = 0;
  const take = (bytes: number): number => {
    at += bytes;
    return at - bytes;
  };
  const uint32 = (): number => file.readUInt32LE(take(4));
  const uint64 = (): number => Number(file.readBigUInt64LE(take(8)));
  const text = (): string => {
    const from = take(uint64());
    return file.toString("utf8", from, at);
  };
  const value = (type: number): unknown => {
    if (type === 8) return text();
    if (type === 6) return file.readFloatLE(take(4));
    if (type !== 9) return uint32();
    const of = uint32();
    return Array.from({ length: uint64() }, () => value(of));
  };
  const magic = [uint32(), uint32()];
  const tensorCount = uint64();
  const metadata = Object.fromEntries(Array.from({ length: uint64() }, () => [text(), value(uint32())]));
  const infos = Array.from({ length: tensorCount }, () => {
    const name = text();
    const shape = Array.from({ length: uint32() }, uint64);
    return { name, shape, type: uint32(), offset: uint64() };
  });
  const start = Math.ceil(at / 32) * 32;
  const tensors = infos.map(({ offset, shape, ...info }) => {
    const count = shape.reduce((product, size) => product * size, 1);
    const data = Array.from({ length: count }, (_, i) => file.readFloatLE(start + offset + 4 * i));
    return { ...info, shape, offset, data };
  });
  return { magic, metadata, tensors };
}

describe("the GGUF file", () => {
  const config = { ...TINY, head_dim: 4, vocab_size: 3 };

  it("holds the shape, a name for each id, and aligned tensors by llama.cpp's names", () => {
    const { magic, metadata, tensors } = readGguf(
      writeGguf(config, [
        { name: "model.embed_tokens.weight", shape: [3, 1], data: Float32Array.of(1, 2, 3) },
        { name: "model.layers.1.mlp.down_proj.weight", shape: [1, 2], data: Float32Array.of(4, 5) },
      ]),
    );
    expect(magic).toEqual([0x46554747, 3]);
    expect(metadata).toMatchObject({
      "general.architecture": "llama",
      "llama.embedding_length": config.hidden_size,
      "llama.attention.key_length": 4,
      "llama.rope.freq_base": config.rope_theta,
      "tokenizer.ggml.tokens": ["token0", "token1", "token2"],
    });
    expect(tensors).toEqual([
      { name: "token_embd.weight", shape: [1, 3], type: 0, offset: 0, data: [1, 2, 3] },
      { name: "blk.1.ffn_down.weight", shape: [2, 1], type: 0, offset: 32, data: [4, 5] },
    ]);
  });

  it("turns the halves of queries and keys into pairs, head by head, and leaves values alone", () => {
    const data = Float32Array.of(0, 1, 2, 3, 4, 5, 6, 7);
    const names = ["q_proj", "k_proj", "v_proj"].map((part) => `model.layers.0.self_attn.${part}.bias`);
    const { tensors } = readGguf(
      writeGguf(
        config,
        names.map((name) => ({ name, shape: [8], data })),
      ),
    );
    const pairs = [0, 2, 1, 3, 4, 6, 5, 7];
    expect(tensors.map((tensor) => tensor.data)).toEqual([pairs, pairs, [...data]]);
  });

  it("refuses a tensor that it has no name for", () => {
    const tensors = [{ name: "model.layers.0.mlp.router.weight", shape: [1], data: new Float32Array(1) }];
    expect(() => writeGguf(config, tensors)).toThrow(/router/);
  });
});

describe("the peer's process", () => {
  /** A package whose sequences repeat the prompt's last token, plus `step` at each turn. */
  const double = (step: number): string => {
    const folder = join(directory, `double-${step}`);
    mkdirSync(join(folder, "dist"), { recursive: true });
    writeFileSync(join(folder, "package.json"), '{"version": "9.9.9", "type": "module"}');
    writeFileSync(
      join(folder, "dist/index.js"),
      `export const getLlama = async () => ({
        dispose: async () => {},
        loadModel: async () => ({
          createContext: async () => ({
            getSequence: () => ({
              clearHistory: async () => {},
              async *evaluate(tokens) {
                for (let token = tokens.at(-1); ; token += ${step}) yield token;
              },
            }),
          }),
        }),
      });`,
    );
    return folder;
  };
  const open = async (folder: string) => {
    vi.stubEnv("TOKENRING_NODE_LLAMA_CPP", folder);
    const policy = await Policy.create(TINY, { threads: 1 });
    try {
      const greedy = [
        [3, 3],
        [5, 5],
      ];
      return await openLlama(policy, { threads: 1, prompts: [[1, 3], [5]], tokens: 4, greedy });
    } finally {
      await policy.dispose();
    }
  };

  it("samples where its greedy tokens are ours", async () => {
    const peer = await open(double(0));
    expect(peer?.name).toBe("llama.cpp by node-llama-cpp 9.9.9");
    expect(await peer?.call()).toBeNull();
    await peer?.close?.();
  });

  it("fails where they are others", async () => {
    await expect(open(double(1))).rejects.toThrow(/greedy decoding gives 2 of 4 tokens/);
  });

  it("is absent where the package is", async () => {
    expect(await open(join(directory, "nothing"))).toBeNull();
  });
});
