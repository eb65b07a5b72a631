// PyTorch as a peer: torch_peer.py in the interpreter that TOKENRING_PYTHON names, or in python3.
import { fileURLToPath } from "node:url";
import type { Peer } from "../measure.ts";
import { openPeerProcess } from "./process.ts";

const SCRIPT = fileURLToPath(new URL("torch_peer.py", import.meta.url));

export interface TorchRequest {
  task: string;
  threads: number;
  /** What torch_peer.py says of the task. */
  [field: string]: unknown;
}

/**
 * Starts PyTorch on `request` (see torch_peer.py).
 * @returns null where the interpreter or its PyTorch and transformers are missing
 * @throws ERR_TOKENRING_INTERNAL with what Python said, if it fails otherwise
 */
export function openTorch(request: TorchRequest): Promise<Peer | null> {
  const python = process.env.TOKENRING_PYTHON ?? "python3";
  const environment = { HF_HUB_OFFLINE: "1", TRANSFORMERS_VERBOSITY: "error" };
  return openPeerProcess(python, [SCRIPT], request, environment);
}
