// Models of every family from their files: what config.json says reaches the native decoder, and what lay beside the
// weights comes out again. The fixtures are those of the C++ tests (scripts/fixtures/decoder.py).
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Policy } from "../../lib/policy/policy.ts";

const fixture = (name: string): string =>
  fileURLToPath(new URL(`../fixtures/decoder/${name}/`, import.meta.url));

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "tokenring-models-"));
});
afterEach(() => rm(directory, { recursive: true }));

/** The float32 tensors of a fixture. */
async function expected(name: string): Promise<(lane: string) => number[]> {
  const file = await readFile(join(fixture(name), "expected.safetensors"));
  const header = 8 + Number(file.readBigUInt64LE(0));
  const entries = JSON.parse(file.toString("utf8", 8, header));
  return (lane) => {
    const [begin, end] = entries[lane].data_offsets;
    return Array.from({ length: (end - begin) / 4 }, (_, i) => file.readFloatLE(header + begin + 4 * i));
  };
}

describe("a model from its files", () => {
  it("stretches its context by YaRN where its config.json does not, and says so when it is saved", async () => {
    await cp(fixture("qwen2-yarn"), directory, { recursive: true });
    const file = join(directory, "config.json");
    const { rope_scaling, ...plain } = JSON.parse(await readFile(file, "utf8"));
    await writeFile(file, JSON.stringify(plain));
    const batch = { tokens: Int32Array.from({ length: 40 }, (_, i) => i % 29), lengths: Int32Array.of(40) };
    await using whole = await Policy.load(fixture("qwen2-yarn"));
    await using short = await Policy.load(directory);
    await using stretched = await Policy.load(directory, {
      ropeScaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16 },
    });
    const { logprob } = await whole.score(batch);
    expect((await stretched.score(batch)).logprob).toEqual(logprob);
    expect((await short.score(batch)).logprob).not.toEqual(logprob);
    await stretched.save(join(directory, "saved"));
    const saved = JSON.parse(await readFile(join(directory, "saved", "config.json"), "utf8"));
    expect(saved.rope_scaling).toMatchObject({ factor: rope_scaling.factor, rope_type: "yarn" });
  });

  it.each(["tied", "untied", "qwen2-yarn", "qwen3", "qwen3-yarn", "llama", "llama3"])(
    "%s scores as float64 does, before and after it is saved",
    async (name) => {
      const lane = await expected(name);
      const batch = { tokens: Int32Array.from(lane("tokens")), lengths: Int32Array.from(lane("lengths")) };
      const temperature = lane("temperature")[0] as number;
      await using policy = await Policy.load(fixture(name));
      const { logprob } = await policy.score(batch, { temperature });
      const exact = lane("logprob");
      const off = logprob.reduce((sum, value, i) => sum + (value - (exact[i] as number)) ** 2, 0);
      const size = exact.reduce((sum, value) => sum + value * value, 0);
      expect(Math.sqrt(off / size)).toBeLessThan(1e-5);

      await policy.save(directory, { shardBytes: 4000 });
      expect(await readdir(directory)).toContain("model.safetensors.index.json");
      await using again = await Policy.load(directory);
      expect(again.config).toEqual(policy.config);
      expect((await again.score(batch, { temperature })).logprob).toEqual(logprob);
    },
  );
});

describe("what lies beside the weights", () => {
  const from = (name: string): string => join(directory, "from", name);
  const to = (name: string): string => join(directory, "to", name);

  beforeEach(() => cp(fixture("qwen3"), join(directory, "from"), { recursive: true }));

  it("is carried along byte for byte, and config.json keeps what it says of tokens", async () => {
    const tokenizer = '{ "model":\n "any text, as it is" }';
    await writeFile(from("tokenizer.json"), tokenizer);
    await writeFile(from("chat_template.jinja"), "{{ messages }}");
    await writeFile(from("README.md"), "not ours");
    const config = JSON.parse(await readFile(from("config.json"), "utf8"));
    await writeFile(from("config.json"), JSON.stringify({ ...config, eos_token_id: [7, 9], auto_map: {} }));
    await using policy = await Policy.load(join(directory, "from"));
    await rm(join(directory, "from"), { recursive: true });
    await policy.save(join(directory, "to"), { dtype: "bf16" });
    expect((await readdir(join(directory, "to"))).sort()).toEqual([
      "chat_template.jinja",
      "config.json",
      "model.safetensors",
      "tokenizer.json",
    ]);
    expect(await readFile(to("tokenizer.json"), "utf8")).toBe(tokenizer);
    const written = JSON.parse(await readFile(to("config.json"), "utf8"));
    expect(written).toMatchObject({ eos_token_id: [7, 9], torch_dtype: "bfloat16", initializer_range: 0.02 });
    expect(written).not.toHaveProperty("auto_map");
  });

  it("samples from the policy itself: published top_k, top_p and penalties are not passed on", async () => {
    const published = {
      bos_token_id: 1,
      eos_token_id: [2, 3],
      pad_token_id: 1,
      do_sample: true,
      temperature: 0.7,
      top_k: 20,
      top_p: 0.8,
      min_p: 0.1,
      repetition_penalty: 1.05,
      suppress_tokens: [5],
      transformers_version: "4.51.0",
    };
    await writeFile(from("generation_config.json"), JSON.stringify(published));
    await using policy = await Policy.load(join(directory, "from"));
    await policy.save(join(directory, "to"));
    expect(JSON.parse(await readFile(to("generation_config.json"), "utf8"))).toEqual({
      bos_token_id: 1,
      eos_token_id: [2, 3],
      pad_token_id: 1,
      transformers_version: "4.51.0",
      do_sample: true,
      temperature: 1,
      top_k: 0,
      top_p: 1,
      repetition_penalty: 1,
    });
    await writeFile(from("generation_config.json"), "{");
    await expect(Policy.load(join(directory, "from"))).rejects.toThrow(
      /generation_config.json is not JSON; remove it/,
    );
  });
});
