// PyTorch as a peer: torch_peer.py in the interpreter that TOKENRING_PYTHON names, or in python3.
import { fileURLToPath } from "node:url";
import { THREADS } from "../machine.ts";
import type { Peer } from "../measure.ts";
import { openPeerProcess } from "./process.ts";

const SCRIPT = fileURLToPath(new URL("torch_peer.py", import.meta.url));

/**
 * Starts PyTorch on `request` (see torch_peer.py), with as many threads as tokenring takes.
 * @returns null where the interpreter or its PyTorch and transformers are missing
 * @throws ERR_TOKENRING_INTERNAL with what Python said, if it fails otherwise
 */
export function openTorch(request: object): Promise<Peer | null> {
  const python = process.env.TOKENRING_PYTHON ?? "python3";
  const environment = { HF_HUB_OFFLINE: "1", TRANSFORMERS_VERBOSITY: "error" };
  return openPeerProcess(python, [SCRIPT], { ...request, threads: THREADS }, environment);
}
