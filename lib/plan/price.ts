// How long an entry of a schedule takes on given hardware, if nothing else is in its way.
import type { Hardware } from "./hardware.ts";
import { movedBytes, type ScheduleEntry } from "./schedule.ts";

/** The nodes that ranks are placed on, in their order: as many to a node as it has GPUs. */
export interface Cluster {
  hardware: Hardware;
  gpusPerNode: number;
}

/**
 * Seconds of an entry that no other rank takes part in. One that computes is bound by its products or by its memory traffic,
 * and by being launched; a copy to the host or back, by their link.
 */
export function computeSeconds({ op, track, flops, bytes }: ScheduleEntry, { hardware }: Cluster): number {
  if (flops === 0 && bytes === 0) return 0; // it only waits
  const { attentionForward, attentionBackward, products, bandwidth, hostLink, launch } = hardware;
  if (track === "host") return bytes / hostLink.value + launch.value;
  const attends = op.startsWith("attention");
  const rate = !attends ? products : op.includes("backward") ? attentionBackward : attentionForward;
  return Math.max(flops / rate.value, bytes / bandwidth.value) + launch.value;
}

/**
 * What prices a communicator's call between `members`: seconds, once all have come. Within a node the links of its GPUs
 * carry it; a group that spans nodes enters and leaves each by as many adapters as it has ranks there, and no faster than
 * within. A step has very many calls of few groups, so how a group lies on the nodes is looked up once for each list of
 * members: the lists stay as they are.
 */
export function communicationPrices({
  hardware,
  gpusPerNode,
}: Cluster): (entry: ScheduleEntry, members: readonly number[]) => number {
  const { nodeLink, nodeLatency, clusterLink, clusterLatency } = hardware;
  const spanned = new Map<readonly number[], number>();
  return (entry, members) => {
    let nodes = spanned.get(members);
    if (nodes === undefined) {
      nodes = new Set(members.map((rank) => Math.floor(rank / gpusPerNode))).size;
      spanned.set(members, nodes);
    }
    const moved = movedBytes(entry, members.length);
    if (nodes === 1) return moved / nodeLink.value + nodeLatency.value;
    const adapters = entry.op === "exchange" ? 1 : Math.max(1, Math.floor(members.length / nodes));
    return moved / Math.min(nodeLink.value, adapters * clusterLink.value) + clusterLatency.value;
  };
}
