// What a valid config may ask for and a job cannot do yet: said by key before anything is downloaded or opened.
import { TokenringError } from "../errors.ts";
import { loadBinding } from "../ops/native.ts";
import type { JobConfig } from "./config.ts";

/** Throws ERR_TOKENRING_CONFIG with every key that this machine, or this version, cannot serve. */
export function checkSupported(config: Pick<JobConfig, "device" | "engine" | "shard" | "tasks">): void {
  const faults: string[] = [];
  if (config.device === "cuda") {
    const { reason } = loadBinding().cuda();
    if (reason) faults.push(`device: cuda cannot be used: ${reason}`);
  }
  if (config.shard === 3 && config.engine.kind === "embedded") {
    faults.push(
      "shard: 3 leaves no rank the whole weights, which the embedded engine samples from; use 1 or 0, or engine.kind: vllm",
    );
  }
  if (config.tasks.name !== "tinyswe") {
    faults.push(
      `tasks.name: ${config.tasks.name} cannot be run: its repositories live in container images, which no sandbox here ` +
        "opens; use tinyswe, or give Rollouts a sandbox backend of your own in a script",
    );
  }
  if (faults.length > 0) throw new TokenringError("ERR_TOKENRING_CONFIG", faults.join("\n"));
}
