// llama.cpp as a peer, through the package node-llama-cpp, on the weights of a policy.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Policy } from "tokenring";
import type { Peer } from "../measure.ts";
import { readTensors, writeGguf } from "./gguf.ts";
import { openPeerProcess } from "./process.ts";

const SCRIPT = fileURLToPath(new URL("llama_peer.mjs", import.meta.url));

/** What the peer does in one call: `tokens` tokens after each prompt, all sequences in one context. */
export interface LlamaRequest {
  threads: number;
  prompts: number[][];
  tokens: number;
  /** What greedy decoding gives after each prompt; the peer fails at its start if it finds others. */
  greedy: number[][];
}

/**
 * Starts llama.cpp on the policy's weights.
 * @returns null where node-llama-cpp is neither in TOKENRING_NODE_LLAMA_CPP nor among the installed packages
 */
export async function openLlama(policy: Policy, request: LlamaRequest): Promise<Peer | null> {
  const directory = await mkdtemp(join(tmpdir(), "tokenring-bench-llama-"));
  try {
    await policy.save(directory, { dtype: "f32" });
    const path = join(directory, "model.gguf");
    await writeFile(path, writeGguf(policy.config, await readTensors(directory)));
    return await openPeerProcess(process.execPath, [SCRIPT], { ...request, path });
  } finally {
    await rm(directory, { recursive: true });
  }
}
