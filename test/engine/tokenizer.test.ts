// Ids are compared with those that Python's `tokenizers` gives on the same files (scripts/fixtures/tokenizer.py).
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { expect, test } from "vitest";
import { loadTokenizer, tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import { isTokenringError } from "../../lib/errors.ts";

interface Recorded {
  tokenizerJson: Record<string, unknown>;
  texts: { text: string; plain: number[]; special: number[]; decoded: string }[];
}
const fixture = JSON.parse(readFileSync(new URL("./fixtures/tokenizer.json", import.meta.url), "utf8")) as {
  phrases: string[];
  chatTemplate: string;
  bytes: Recorded;
  merged: Recorded;
};

test("the files that are built are those that Python's library writes for the same tokens", () => {
  const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({ phrases: fixture.phrases });
  expect(tokenizerJson).toEqual(fixture.bytes.tokenizerJson);
  expect(tokenizerConfig.chat_template).toBe(fixture.chatTemplate);
});

for (const kind of ["bytes", "merged"] as const) {
  test(`${kind}: ids and decoded text equal Python's, with and without special tokens`, () => {
    const tokenizer = tokenizerFromJson(fixture[kind].tokenizerJson);
    for (const { text, plain, special, decoded } of fixture[kind].texts) {
      expect([...tokenizer.encode(text)], text).toEqual(plain);
      expect([...tokenizer.encode(text, { special: true })], text).toEqual(special);
      expect(tokenizer.decode(special), text).toBe(decoded);
      // Asked twice, the answer is the same: what is cached is not what is handed out.
      tokenizer.encode(text).fill(0);
      expect([...tokenizer.encode(text)], text).toEqual(plain);
    }
  });

  test(`${kind}: no text forges a special token, and every text survives`, () => {
    const tokenizer = tokenizerFromJson(fixture[kind].tokenizerJson);
    const forbidden = new Set(tokenizer.specials.values());
    const fragments = fc.constantFrom(...tokenizer.specials.keys(), "<|", "|>", "end", "ge", " ", "\n", "日");
    const text = fc.array(fc.oneof(fragments, fc.string())).map((parts) => parts.join(""));
    fc.assert(
      fc.property(text, (sample) => {
        const ids = tokenizer.encode(sample);
        expect(ids.some((id) => forbidden.has(id))).toBe(false);
        expect(tokenizer.decode(ids)).toBe(kind === "merged" ? sample.normalize("NFC") : sample);
      }),
    );
  });
}

test("bytes and phrases: the short way of encoding gives the ids of the Hugging Face library", () => {
  const files = buildByteTokenizer({ phrases: fixture.phrases });
  const library = new HuggingFaceTokenizer(files.tokenizerJson, files.tokenizerConfig);
  const tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
  const fragments = fc.constantFrom(...fixture.phrases, "a", "é", "😀", "\n", "<|end|>");
  fc.assert(
    fc.property(fc.array(fragments), (parts) => {
      const text = parts.join("");
      const ids = [...tokenizer.encode(text, { special: true })];
      expect(ids).toEqual(library.encode(text, { add_special_tokens: false }).ids);
    }),
  );
});

test("a special token that the model's own vocabulary spells is not forged through merges", () => {
  const files = buildByteTokenizer({ phrases: [] });
  const model = files.tokenizerJson.model as Record<string, unknown>;
  const added = (files.tokenizerJson.added_tokens as { id: number; content: string }[])[3];
  expect(added?.content).toBe("<|end|>");
  const vocab = model.vocab as Record<string, number>;
  vocab["<|end|>"] = added?.id as number;
  const tokenizer = tokenizerFromJson({
    ...files.tokenizerJson,
    model: { ...model, ignore_merges: true },
  });
  const ids = tokenizer.encode("<|end|>");
  expect([...ids]).toEqual([...Buffer.from("<|end|>")]);
});

test("pieces read as people see them", () => {
  const tokenizer = tokenizerFromJson(fixture.bytes.tokenizerJson);
  expect(tokenizer.piece(tokenizer.specialId("<|end|>"))).toBe("<|end|>");
  expect(tokenizer.piece(tokenizer.encode("return ")[0] as number)).toBe("return ");
  expect(tokenizer.piece(0xe9)).toBe("\\xe9");
  expect(tokenizer.piece(0x20)).toBe(" ");
  expect(tokenizer.piece(100_000)).toBe("<unused 100000>");
  expect(tokenizer.vocabularySize).toBe(256 + 4 + fixture.phrases.length);
});

test("what cannot be a tokenizer for token streams is refused with its reason", () => {
  const bytes = fixture.bytes.tokenizerJson;
  const refused: [object, RegExp][] = [
    [{}, /no "model" object/],
    [{ ...bytes, model: { ...(bytes.model as object), type: "Unigram" } }, /only byte-level BPE/],
    [{ ...bytes, decoder: { type: "WordPiece" } }, /only byte-level BPE/],
    [{ ...bytes, pre_tokenizer: { type: "ByteLevel", add_prefix_space: true } }, /space before every text/],
    [{ ...bytes, model: { ...(bytes.model as object), vocab: { a: 0 } } }, /no token for byte 0/],
  ];
  for (const [json, message] of refused) expect(() => tokenizerFromJson(json)).toThrow(message);
  expect(() => tokenizerFromJson(bytes).specialId("<|im_end|>")).toThrow(
    /no special token of this tokenizer/,
  );
  expect(() => buildByteTokenizer({ phrases: ["a"] })).toThrow(/shorter than two/);
  expect(() => buildByteTokenizer({ phrases: ["ab", "ab"] })).toThrow(/comes twice/);
});

test("a directory is loaded; faults name the file", async () => {
  const directory = mkdtempSync(join(tmpdir(), "tokenring-"));
  try {
    await expect(loadTokenizer(directory)).rejects.toSatisfy(
      (error) =>
        isTokenringError(error, "ERR_TOKENRING_TOKENIZER") && error.message.includes("no tokenizer.json"),
    );
    writeFileSync(join(directory, "tokenizer.json"), "{ not json");
    await expect(loadTokenizer(directory)).rejects.toThrow(/tokenizer\.json is not JSON/);
    writeFileSync(join(directory, "tokenizer.json"), JSON.stringify({ model: {} }));
    await expect(loadTokenizer(directory)).rejects.toThrow(
      /tokenizer\.json: tokenizer\.json has no "model.vocab"/,
    );
    const files = buildByteTokenizer({ phrases: ["gebo"], specials: ["<|copy|>"] });
    writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(files.tokenizerJson));
    writeFileSync(join(directory, "tokenizer_config.json"), JSON.stringify(files.tokenizerConfig));
    const tokenizer = await loadTokenizer(directory);
    expect([...tokenizer.encode("gebo<|copy|>", { special: true })]).toEqual([261, 260]);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
