import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadTokenizer } from "../../lib/engine/tokenizer.ts";

test.each(["null", "[]", '"text"'])(
  "a tokenizer.json that holds %s is there, and is no tokenizer",
  async (text) => {
    const directory = mkdtempSync(join(tmpdir(), "tokenring-"));
    try {
      const file = join(directory, "tokenizer.json");
      writeFileSync(file, text);
      await expect(loadTokenizer(directory)).rejects.toMatchObject({
        code: "ERR_TOKENRING_TOKENIZER",
        message: `${file} holds no JSON object; save the model's tokenizer there again`,
      });
    } finally {
      rmSync(directory, { recursive: true });
    }
  },
);
