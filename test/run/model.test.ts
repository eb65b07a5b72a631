// A job that begins with a model that is there: its tokenizer and template are used, and saved with what was trained.
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { type JobConfig, type JobInput, jobSchema } from "../../lib/run/config.ts";
import { openJob } from "../../lib/run/job-context.ts";
import { silent } from "../../lib/run/progress.ts";

const limits = { maxTurns: 2, maxContext: 200 };
const job = (model: JobInput["model"], more: Partial<JobInput> = {}): JobConfig =>
  jobSchema.parse({
    model,
    tasks: { name: "tinyswe", train: 1, heldOut: 1 },
    evaluate: { limits },
    ...more,
  });

describe("a job's model", () => {
  let root: string;
  let model: string;
  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), "tokenring-job-model-"));
    model = path.join(root, "model");
    const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({ phrases: ["submit"] });
    await using policy = await Policy.create({
      vocab_size: 300,
      hidden_size: 32,
      intermediate_size: 32,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      head_dim: 16,
      max_position_embeddings: 256,
      rope_theta: 10_000,
      rms_norm_eps: 1e-6,
      tie_word_embeddings: true,
      attention_bias: false,
      qk_norm: true,
    });
    await policy.save(model);
    await writeFile(path.join(model, "tokenizer.json"), JSON.stringify(tokenizerJson));
    // As transformers 5 writes it: the template has a file of its own.
    const { chat_template, ...rest } = tokenizerConfig;
    await writeFile(path.join(model, "tokenizer_config.json"), JSON.stringify(rest));
    await writeFile(path.join(model, "chat_template.jinja"), chat_template as string);
  });
  afterAll(() => rm(root, { recursive: true }));

  it("keeps tokenizer and template through a checkpoint", async () => {
    const saved = path.join(root, "saved");
    {
      await using context = await openJob(job({ path: model }), { progress: silent });
      expect(context.tokenizer.vocabularySize).toBe(261);
      await context.save(saved);
    }
    for (const name of ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]) {
      expect(await readFile(path.join(saved, name), "utf8")).toBe(
        await readFile(path.join(model, name), "utf8"),
      );
    }
    expect(await readdir(saved)).toContain("optimizer.safetensors");
    await using again = await openJob(job({ path: "/gone" }), { progress: silent, checkpoint: saved });
    expect(again.policy.config.qk_norm).toBe(true);
  });

  it("takes another template, and saves it with the model", async () => {
    const own = await readFile(path.join(model, "chat_template.jinja"), "utf8");
    const marked = own.replace("{% for message", "Agent.{% for message");
    const chatTemplate = path.join(root, "other.jinja");
    await writeFile(chatTemplate, marked);
    const saved = path.join(root, "saved-template");
    {
      await using context = await openJob(job({ path: model, chatTemplate }), { progress: silent });
      expect(context.tokenizer.decode(context.chat.opening({ user: "x" }))).toMatch(/^Agent\./);
      await context.save(saved);
    }
    await rm(chatTemplate);
    await using again = await openJob(job({ path: model, chatTemplate }), {
      progress: silent,
      checkpoint: saved,
    });
    expect(again.tokenizer.decode(again.chat.opening({ user: "x" }))).toMatch(/^Agent\./);
    await expect(openJob(job({ path: model, chatTemplate }), { progress: silent })).rejects.toMatchObject({
      code: "ERR_TOKENRING_CONFIG",
      message: expect.stringMatching(/model.chatTemplate: .*other.jinja cannot be read \(ENOENT\)/),
    });
  });

  it("must hold what the config asks for", async () => {
    const long = { limits: { ...limits, maxContext: 300 } };
    await expect(openJob(job({ path: model }, { evaluate: long }), { progress: silent })).rejects.toThrow(
      "evaluate.limits.maxContext is 300; the model's context is 256, lower it",
    );
    const { tokenizerJson } = buildByteTokenizer({
      phrases: Array.from({ length: 50 }, (_, i) => `word${i}`),
    });
    const wide = path.join(root, "wide");
    await using policy = await Policy.load(model);
    await policy.save(wide);
    await writeFile(path.join(wide, "tokenizer.json"), JSON.stringify(tokenizerJson));
    await expect(openJob(job({ path: wide }), { progress: silent })).rejects.toThrow(
      "the tokenizer has 310 tokens, the model 300",
    );
  });

  it("is looked for in the cache when it is named", async () => {
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    vi.stubEnv("HF_HUB_CACHE", path.join(root, "cache"));
    try {
      await expect(openJob(job({ name: "org/model" }), { progress: silent })).rejects.toThrow(
        /org\/model \(main\) is no directory, not in the cache .*cache, and HF_HUB_OFFLINE/,
      );
    } finally {
      vi.unstubAllEnvs();
    }
  });
});
