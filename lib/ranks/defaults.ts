// Deadlines that leader and workers share, and the version that both must be of.
import { readFileSync } from "node:fs";
import { EXPECTED_ABI } from "../ops/binding.ts";

/** Milliseconds for all ranks to come: machines of a cluster may still be fetching their image. */
export const RENDEZVOUS_WAIT = 600_000;
/** Milliseconds that a rank waits for the others within one collective. */
export const COLLECTIVE_TIMEOUT = 600_000;
/** Milliseconds of silence, heartbeats included, after which a rank is held for lost. */
export const HEARTBEAT_SILENCE = 15_000;

/** Version of the package and of its addon. */
export function packageVersion(): string {
  // The same path from lib/ranks and from dist/ranks.
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return `${(JSON.parse(text) as { version: string }).version}, ABI ${EXPECTED_ABI}`;
}
