// A config's limits as the agent takes them.
import type { EpisodeLimits } from "../agent/types.ts";
import type { LimitsConfig } from "./config.ts";

export function episodeLimits(config: LimitsConfig): EpisodeLimits {
  const { maxTurns, maxContext, maxActionTokens, observationChars, autoSubmit, episodeSeconds } = config;
  return {
    maxTurns,
    maxContext,
    maxActionTokens,
    observationChars,
    autoSubmit,
    episodeMs: episodeSeconds * 1000,
  };
}
