// Forward passes over an iteration's documents before its first step: the trainer's own old logprobs, and those of a
// reference policy.
import type { Policy } from "../policy/types.ts";
import { checkAborted } from "./abort.ts";
import { located } from "./located.ts";
import { pack } from "./pack.ts";
import type { TrainingDocument } from "./weights.ts";

export interface ScoreOptions {
  policy: Pick<Policy, "score" | "ranks">;
  /** That of the loss. */
  temperature: number;
  /** Tokens of one forward pass, on each of the policy's ranks. */
  microBatchTokens: number;
  /** Names the pass in errors. */
  where: string;
  signal?: AbortSignal;
}

/** Logprobs of each document's tokens, 0 for its first; f32, one entry a token. They do not depend on the packing. */
async function logprobs(
  documents: readonly TrainingDocument[],
  options: ScoreOptions,
): Promise<Float32Array[]> {
  const { policy, temperature, microBatchTokens, where, signal } = options;
  const lanes: Float32Array[] = [];
  const weighted = documents.map((document) => ({ ...document, weight: document.mask }));
  const how = { temperature, passTokens: microBatchTokens, ...(signal ? { signal } : {}) };
  const micros = pack(weighted, microBatchTokens * (policy.ranks ?? 1));
  for (const { batch, documents: inside, offsets } of micros) {
    checkAborted(signal, where);
    const { tokens, lengths } = batch;
    const { logprob } = await located(() => policy.score({ tokens, lengths }, how), {
      where,
      documents: inside,
      signal,
    });
    inside.forEach((document, d) => {
      const at = offsets[d] as number;
      lanes.push(logprob.slice(at, at + document.tokens.length));
    });
  }
  return lanes;
}

/** The documents with the policy's logprobs as `oldLogprob`; those that the engine gave become `engineLogprob`. */
export async function withTrainerLogprobs(
  documents: readonly TrainingDocument[],
  options: ScoreOptions,
): Promise<TrainingDocument[]> {
  const lanes = await logprobs(documents, options);
  return documents.map(({ oldLogprob, ...document }, i) => ({
    ...document,
    oldLogprob: lanes[i] as Float32Array,
    ...(oldLogprob && { engineLogprob: oldLogprob }),
  }));
}

/** The documents with the logprobs of `options.policy` as `referenceLogprob`. */
export async function withReferenceLogprobs(
  documents: readonly TrainingDocument[],
  options: ScoreOptions,
): Promise<TrainingDocument[]> {
  const lanes = await logprobs(documents, options);
  return documents.map((document, i) => ({ ...document, referenceLogprob: lanes[i] as Float32Array }));
}
