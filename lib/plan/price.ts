// How long an entry of a schedule takes on given hardware, if nothing else is in its way.
import type { Hardware } from "./hardware.ts";
import { movedBytes, type ScheduleEntry } from "./schedule.ts";

/** The nodes that ranks are placed on, in their order: as many to a node as it has GPUs. */
export interface Cluster {
  hardware: Hardware;
  gpusPerNode: number;
}

/** Seconds of an entry that computes: bound by its products or by its memory traffic, and by being launched. */
export function computeSeconds({ op, flops, bytes }: ScheduleEntry, { hardware }: Cluster): number {
  if (flops === 0 && bytes === 0) return 0; // it only waits
  const { attentionForward, attentionBackward, products, bandwidth, launch } = hardware;
  const attends = op.startsWith("attention");
  const rate = !attends ? products : op.includes("backward") ? attentionBackward : attentionForward;
  return Math.max(flops / rate.value, bytes / bandwidth.value) + launch.value;
}

/**
 * Seconds of a communicator's call between `members`, once all have come. Within a node the links of its GPUs carry it;
 * a group that spans nodes enters and leaves each by as many adapters as it has ranks there, and no faster than within.
 */
export function communicationSeconds(
  entry: ScheduleEntry,
  members: readonly number[],
  { hardware, gpusPerNode }: Cluster,
): number {
  const nodes = new Set(members.map((rank) => Math.floor(rank / gpusPerNode))).size;
  const { nodeLink, nodeLatency, clusterLink, clusterLatency } = hardware;
  const moved = movedBytes(entry, members.length);
  if (nodes === 1) return moved / nodeLink.value + nodeLatency.value;
  const adapters = entry.op === "exchange" ? 1 : Math.max(1, Math.floor(members.length / nodes));
  return moved / Math.min(nodeLink.value, adapters * clusterLink.value) + clusterLatency.value;
}
