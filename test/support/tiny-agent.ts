// A tokenizer, a chat format, instances and limits small enough to reason about by hand.

import type { EpisodeLimits } from "../../lib/agent/types.ts";
import { chatFormat, chatTemplateOf } from "../../lib/engine/chat.ts";
import { tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import type { ChatFormat, Tokenizer } from "../../lib/engine/tokenizer-types.ts";
import type { Instance, PromptTemplate } from "../../lib/tasks/types.ts";

const files = buildByteTokenizer({ phrases: ["```command\n", "\n```", "submit", "gebo", ") bash-$"] });

export const tokenizer: Tokenizer = tokenizerFromJson(files.tokenizerJson, files.tokenizerConfig);
export const chat: ChatFormat = chatFormat(tokenizer, chatTemplateOf(files.tokenizerConfig));
export const template: PromptTemplate = {
  name: "tiny",
  opening: (instance) => instance.problem_statement,
};

export const limits: EpisodeLimits = {
  maxTurns: 8,
  maxContext: 4096,
  maxActionTokens: 256,
  episodeMs: 20_000,
  observationChars: 1000,
  autoSubmit: true,
};

export function instance(name: string, problem = `${name} is broken.`): Instance {
  return {
    instance_id: name,
    repo: "tiny/world",
    base_commit: "0".repeat(40),
    problem_statement: problem,
    hints_text: "",
    created_at: "2025-01-01T00:00:00Z",
    version: "1",
    patch: "",
    test_patch: "",
    FAIL_TO_PASS: [],
    PASS_TO_PASS: [],
  };
}

/** An action that runs `command`. */
export function act(command: string, thought = "So."): string {
  return `${thought}\n\`\`\`command\n${command}\n\`\`\``;
}
