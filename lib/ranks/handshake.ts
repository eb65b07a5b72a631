// How two ranks make sure of each other before either believes a word: both prove that they know the secret.
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { TokenringError } from "../errors.ts";
import type { Channel } from "./channel.ts";

/** What a worker says of itself. */
export interface Claim {
  rank: number;
  size: number;
  /** Of the package: both sides must be the same. */
  version: string;
  host: string;
  pid: number;
  /** CPU cores that its backend may use, and GPUs that it sees. */
  cores: number;
  gpus: number;
  /** Number among the ranks of its host, as its launcher counts. */
  localRank: number;
}

/** Milliseconds for the whole handshake. */
const DEADLINE = 30_000;

type Role = "leader" | "worker";

function proof(secret: string, role: Role, nonces: readonly string[], claim: string): string {
  return createHmac("sha256", secret)
    .update(JSON.stringify([role, ...nonces, claim]))
    .digest("hex");
}

function proves(given: unknown, wanted: string): boolean {
  if (typeof given !== "string" || given.length !== wanted.length) return false;
  return timingSafeEqual(Buffer.from(given), Buffer.from(wanted));
}

function say(channel: Channel, words: Record<string, string>): void {
  channel.sendFrame(Buffer.from(JSON.stringify(words)));
}

async function hear(channel: Channel): Promise<Record<string, unknown>> {
  const words: unknown = JSON.parse((await channel.next()).toString());
  if (typeof words !== "object" || words === null) throw new Error("it does not speak the protocol");
  return words as Record<string, unknown>;
}

/** Closes the channel if the handshake takes too long. */
async function inTime<T>(channel: Channel, shake: () => Promise<T>): Promise<T> {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    channel.close();
  }, DEADLINE);
  try {
    return await shake();
  } catch (error) {
    if (late) throw new Error(`it did not prove itself within ${DEADLINE / 1000} s`);
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * The leader's side. `judge` says why a rank that knows the secret is not wanted, null where it is. `silence`, in
 * milliseconds, is what the worker shall take for a loss.
 * Rejects, with what to tell of it, where the other side is turned away; it has been told.
 */
export async function welcome(
  channel: Channel,
  secret: string,
  judge: (claim: Claim) => string | null,
  silence: number,
): Promise<Claim> {
  return inTime(channel, async () => {
    const mine = randomBytes(16).toString("hex");
    say(channel, { nonce: mine });
    const words = await hear(channel);
    const text = String(words.claim);
    const nonces = [mine, String(words.nonce)];
    const refuse = (why: string): never => {
      say(channel, { refused: why });
      channel.close();
      throw new Error(why);
    };
    if (!proves(words.proof, proof(secret, "worker", nonces, text)))
      refuse("its secret is not the leader's; set TOKENRING_SECRET to the same text on every rank");
    const claim = JSON.parse(text) as Claim;
    const why = judge(claim);
    if (why !== null) refuse(why);
    const terms = [...nonces, `${silence}`];
    say(channel, { proof: proof(secret, "leader", terms, text), silence: `${silence}` });
    return claim;
  });
}

/**
 * The worker's side; gives the leader's `silence`.
 * @throws ERR_TOKENRING_COMMUNICATOR where the leader turns it away or is none.
 */
export async function introduce(channel: Channel, secret: string, claim: Claim): Promise<number> {
  const where = `rank ${claim.rank} of ${claim.size}: the leader at ${channel.peer}`;
  try {
    return await inTime(channel, async () => {
      const mine = randomBytes(16).toString("hex");
      const nonces = [String((await hear(channel)).nonce), mine];
      const text = JSON.stringify(claim);
      say(channel, { claim: text, nonce: mine, proof: proof(secret, "worker", nonces, text) });
      const answer = await hear(channel);
      if (typeof answer.refused === "string") throw new Error(`turned it away: ${answer.refused}`);
      const terms = [...nonces, String(answer.silence)];
      if (!proves(answer.proof, proof(secret, "leader", terms, text)))
        throw new Error("does not know the secret; set TOKENRING_SECRET to the same text on every rank");
      return Number(answer.silence);
    });
  } catch (cause) {
    channel.close();
    const why = cause instanceof SyntaxError ? "does not speak the protocol" : (cause as Error).message;
    throw new TokenringError("ERR_TOKENRING_COMMUNICATOR", `${where}: ${why}`, { cause });
  }
}
