// `tokenring plan --check TRACE...`: how near the simulator comes to steps that ranks really took.
import { TokenringError } from "../errors.ts";
import type { Replay, Source } from "../plan/replay.ts";
import { prepareJson, writeJson } from "./options.ts";

export async function checkPlan(
  files: readonly string[],
  { json, quiet }: { json?: string; quiet?: boolean },
): Promise<void> {
  if (json !== undefined) await prepareJson(json);
  const { readTraces } = await import("../plan/trace.ts");
  const { replay } = await import("../plan/replay.ts");
  // An optimiser step is no schedule: its norms and checks wait for all ranks, unseen by the trace.
  const calls = (await readTraces(files)).filter(({ name }) => name !== "optimise");
  if (calls.length === 0)
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${files.join(", ")}: holds no pass`);
  const replays = replay(calls);
  if (json !== undefined) await writeJson(json, { schema: 1, traces: files, replays });
  if (!quiet && json !== "-") process.stdout.write(describeReplays(replays));
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const milliseconds = (seconds: number): string => (1000 * seconds).toFixed(1);

/** One line a call, then where compute stood still, over all calls of a name and number of ranks. */
export function describeReplays(replays: readonly Replay[]): string {
  const columns = ["call", "ranks", "ms", "own", "slowed", "stations", "slowest", "in order", "early"];
  const rows = replays.map((one) => {
    const of = (source: Source): string => {
      const seconds = one.simulated[source];
      return seconds === null ? "" : (seconds / one.measured).toFixed(3);
    };
    return [
      `${one.name} #${one.number}`,
      `${one.mesh.ranks}`,
      milliseconds(one.measured),
      of("own"),
      of("slowed"),
      of("stations"),
      one.simulated.slowed === null ? "" : slowest(one.slowness),
      percent(one.inOrder),
      `${one.early} of ${one.entries}`,
    ];
  });
  const kinds = new Map<string, Replay[]>();
  for (const one of replays) {
    const { ranks, contextParallel, contextNode, shard } = one.mesh;
    const levels = contextNode === undefined ? "" : ` in nodes of ${contextNode}`;
    const kind = `${one.name} on ${ranks} ranks, context parallel ${contextParallel}${levels}, ZeRO-${shard}`;
    kinds.set(kind, [...(kinds.get(kind) ?? []), one]);
  }
  return [
    "simulated over measured: with each entry's own duration; with what it takes in the other calls, times each rank's",
    "slowness; with what it takes in the other calls alone",
    "",
    ...table([columns, ...rows]),
    ...[...kinds].flatMap(([kind, of]) => [
      "",
      `${kind}: compute stands still, ms of a call and rank`,
      ...standing(of),
    ]),
    "",
  ].join("\n");
}

function slowest(slowness: readonly number[]): string {
  const most = Math.max(...slowness);
  return `rank ${slowness.indexOf(most)}, ${most.toFixed(2)}`;
}

/** By op and rank, over the calls; what is below 1 % of them all together is left out. */
function standing(replays: readonly Replay[]): string[] {
  const sums = new Map<string, { op: string; rank: number; measured: number; simulated: number }>();
  const total = { measured: 0, simulated: 0 };
  for (const { rank, op, measured, simulated } of replays.flatMap(({ exposures }) => exposures)) {
    const key = `${op}/${rank}`;
    const sum = sums.get(key) ?? { op, rank, measured: 0, simulated: 0 };
    for (const one of [sum, total]) {
      one.measured += measured;
      one.simulated += simulated;
    }
    sums.set(key, sum);
  }
  const seen = [...sums.values()]
    .filter(
      ({ measured, simulated }) =>
        Math.max(measured, simulated) >= 0.01 * Math.max(total.measured, total.simulated),
    )
    .sort((a, b) => a.rank - b.rank || b.measured - a.measured);
  const each = (seconds: number): string => milliseconds(seconds / replays.length);
  return table([
    ["rank", "for", "measured", "simulated"],
    ...seen.map(({ rank, op, measured, simulated }) => [`${rank}`, op, each(measured), each(simulated)]),
  ]);
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  return rows.map((row) =>
    row
      .map((cell, i) => `  ${cell.padEnd(widths[i] as number)}`)
      .join("")
      .trimEnd(),
  );
}
