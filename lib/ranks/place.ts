// A rank's place among the others, as its launcher tells it: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
// MASTER_PORT.
import { TokenringError } from "../errors.ts";

/** Who a process is among the ranks, and where rank 0 is. */
export interface Place {
  rank: number;
  size: number;
  /** Number among the ranks of this host. */
  localRank: number;
  /** Where rank 0 listens. */
  address: string;
  port: number;
  secret: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

function refuse(message: string): never {
  throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
}

function whole(env: Environment, name: string, least: number, most: number, otherwise?: number): number {
  const text = env[name];
  if ((text === undefined || text === "") && otherwise !== undefined) return otherwise;
  const value = Number(text);
  if (text && Number.isInteger(value) && value >= least && value <= most) return value;
  const found = text === undefined ? "not set" : `"${text}"`;
  return refuse(
    `the environment variable ${name} is ${found}; the launcher gives a whole number from ${least} to ${most}`,
  );
}

/** Ranks that a launcher has started: WORLD_SIZE, where it is set beside RANK; else 1. */
export function launchedRanks(env: Environment = process.env): number {
  return env.RANK === undefined || env.WORLD_SIZE === undefined ? 1 : whole(env, "WORLD_SIZE", 1, 65_536);
}

/** RANK of a process that a launcher has started as one of many; 0 otherwise. */
export function launchedRank(env: Environment = process.env): number {
  const size = launchedRanks(env);
  return size === 1 ? 0 : whole(env, "RANK", 0, size - 1);
}

/** LOCAL_WORLD_SIZE: ranks of this host, where a launcher says so. */
export function launchedPerNode(env: Environment = process.env): number | null {
  return env.LOCAL_WORLD_SIZE ? whole(env, "LOCAL_WORLD_SIZE", 1, 65_536) : null;
}

/** What is wrong with nodes of so many ranks for a context group in two levels; null if nothing is. */
export function nodeFault(contextParallel: number, ranksPerNode: number): string | null {
  if (contextParallel % ranksPerNode === 0 || ranksPerNode % contextParallel === 0) return null;
  return (
    `${ranksPerNode} neither divides the ${contextParallel} ranks of contextParallel nor is a multiple of them, so ` +
    "context groups have no equal parts on the nodes; change one of the two, or contextSchedule"
  );
}

/**
 * The place that the launcher's variables give. TOKENRING_SECRET must be the same text on all ranks. The channel's port
 * is TOKENRING_PORT; where that is not set, MASTER_PORT, or the port after it under a torchrun that listens there itself.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT naming the variable that is missing or wrong.
 */
export function launchedPlace(env: Environment = process.env): Place {
  const size = whole(env, "WORLD_SIZE", 2, 65_536);
  const rank = whole(env, "RANK", 0, size - 1);
  const address = env.MASTER_ADDR;
  if (!address) refuse("the environment variable MASTER_ADDR is not set; it names the host of rank 0");
  const agentListens = env.TORCHELASTIC_USE_AGENT_STORE === "True";
  const port = env.TOKENRING_PORT
    ? whole(env, "TOKENRING_PORT", 1, 65_535)
    : whole(env, "MASTER_PORT", 1, 65_534) + (agentListens ? 1 : 0);
  const secret = env.TOKENRING_SECRET;
  if (!secret || secret.length < 16) {
    const found = secret ? `only ${secret.length} characters long` : "not set";
    refuse(
      `the environment variable TOKENRING_SECRET is ${found}; give all ranks the same text of at least 16 characters, ` +
        "for example of `openssl rand -hex 32`, so that nobody else can join",
    );
  }
  return { rank, size, localRank: whole(env, "LOCAL_RANK", 0, size - 1, 0), address, port, secret };
}
