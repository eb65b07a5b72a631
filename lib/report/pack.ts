// Episodes and their list as the page's script reads them (types in page/types.ts): columns of rows, and packs.
//
// A pack is a u32 with the length of a JSON header, the header, and the lanes of its episodes, little-endian, each from
// a multiple of four bytes on. Offsets count from the end of the header, whose length is a multiple of four too.
import type { EpisodeRow, RunData, StoredEpisode, TokenTexts } from "./data.ts";
import type {
  LaneName,
  PackHeader,
  PageEpisodeHead,
  PageTurn,
  PageVocabulary,
  RowColumns,
} from "./page/types.ts";

type Lane = Int32Array | Float32Array | Uint8Array;

/** The turns, with their texts only where the tokens do not say the same. */
function turnsOf({ trajectory }: StoredEpisode, tokenizer: TokenTexts | undefined): PageTurn[] {
  const { tokens, turns } = trajectory;
  const said = (from: number, to: number): string | undefined => tokenizer?.decode(tokens.subarray(from, to));
  return turns.map((turn, i) => {
    const next = turns[i + 1]?.start ?? tokens.length;
    const { start, end, command, formatError, finish, version, sampleMs, toolMs } = turn;
    return {
      start,
      end,
      command,
      formatError,
      finish,
      version,
      sampleMs,
      toolMs,
      ...(said(start, end) === turn.text ? {} : { text: turn.text }),
      ...(said(end, next)?.includes(turn.observation) ? {} : { observation: turn.observation }),
    };
  });
}

function lanesOf({ trajectory, learnt }: StoredEpisode): Partial<Record<LaneName, Lane>> {
  return {
    tokens: trajectory.tokens,
    logprobs: trajectory.logprobs,
    ...(learnt && {
      learntLogprobs: learnt.logprob,
      learntEntropies: learnt.entropy,
      ...(learnt.oldLogprob && { learntOldLogprobs: learnt.oldLogprob }),
      learntFlags: learnt.flags,
    }),
    provenance: trajectory.provenance,
  };
}

/** The episodes as one pack; `vocabulary` goes along where the pack travels alone. */
export function encodePack(
  episodes: readonly StoredEpisode[],
  options: { tokenizer?: TokenTexts | undefined; vocabulary?: PageVocabulary } = {},
): Uint8Array<ArrayBuffer> {
  let size = 0;
  const lanes: { at: number; lane: Lane }[] = [];
  const heads = episodes.map((episode): PageEpisodeHead => {
    const places: PageEpisodeHead["lanes"] = {};
    for (const [name, lane] of Object.entries(lanesOf(episode)) as [LaneName, Lane][]) {
      places[name] = [size, lane.length];
      lanes.push({ at: size, lane });
      size += Math.ceil(lane.byteLength / 4) * 4;
    }
    const { id, patch, verifyMs } = episode.trajectory;
    const turns = turnsOf(episode, options.tokenizer);
    return { id, turns, patch, verifyMs, step: episode.learnt?.step ?? null, lanes: places };
  });
  const header: PackHeader = {
    episodes: heads,
    ...(options.vocabulary && { vocabulary: options.vocabulary }),
  };
  let json = Buffer.from(JSON.stringify(header));
  json = Buffer.concat([json, Buffer.alloc((4 - (json.length % 4)) % 4, " ")]);
  const out = new Uint8Array(4 + json.length + size);
  new DataView(out.buffer).setUint32(0, json.length, true);
  out.set(json, 4);
  for (const { at, lane } of lanes)
    out.set(new Uint8Array(lane.buffer, lane.byteOffset, lane.byteLength), 4 + json.length + at);
  return out;
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The texts of `ids`. */
export function vocabularyOf(ids: Iterable<number>, tokenizer: TokenTexts | undefined): PageVocabulary {
  const sorted = tokenizer === undefined ? [] : [...ids].sort((a, b) => a - b);
  const specials = new Set(tokenizer?.specials.values());
  return {
    ids: sorted,
    texts: sorted.map((id) => {
      const bytes = tokenizer?.bytes(id);
      if (bytes === undefined) return null;
      try {
        return strict.decode(bytes);
      } catch {
        return [...bytes];
      }
    }),
    special: sorted.filter((id) => specials.has(id)),
  };
}

/** Names by the order in which they came. */
class Names {
  readonly list: string[] = [];
  readonly #index = new Map<string, number>();

  of(name: string): number {
    let index = this.#index.get(name);
    if (index === undefined) {
      index = this.list.push(name) - 1;
      this.#index.set(name, index);
    }
    return index;
  }
}

/** Turns rows into columns; may be asked for more of them as a run goes on, with the same indices of names. */
export class RowTable {
  readonly #names = {
    runs: [] as string[],
    stages: new Names(),
    instances: new Names(),
    verdicts: new Names(),
    exits: new Names(),
    reasons: new Names(),
  };

  constructor(runs: readonly Pick<RunData, "name">[]) {
    this.#names.runs = runs.map(({ name }) => name);
  }

  columns(rows: readonly { run: number; row: EpisodeRow; pack: number; at: number }[]): RowColumns {
    const { runs, stages, instances, verdicts, exits, reasons } = this.#names;
    const column = <T>(value: (row: EpisodeRow) => T): T[] => rows.map(({ row }) => value(row));
    return {
      run: rows.map(({ run }) => run),
      stage: column(({ stage }) => stages.of(stage)),
      iteration: column(({ iteration }) => iteration),
      instance: column(({ instanceId }) => instances.of(instanceId)),
      rollout: column(({ rollout }) => rollout),
      verdict: column(({ verdict }) => verdicts.of(verdict)),
      exit: column(({ exit }) => exits.of(exit)),
      reason: column(({ reason }) => (reason === null ? -1 : reasons.of(reason))),
      infra: column(({ infra }) => (infra ? 1 : 0)),
      reward: column(({ reward }) => reward),
      advantage: column(({ advantage }) => advantage),
      turns: column(({ turns }) => turns),
      tokens: column(({ tokens }) => tokens),
      actions: column(({ actionTokens }) => actionTokens),
      unreadable: column(({ formatErrors }) => formatErrors),
      clipped: column(({ clipped }) => clipped),
      ms: column(({ ms }) => Math.round(ms)),
      pack: rows.map(({ pack }) => pack),
      at: rows.map(({ at }) => at),
      // Last: by now they hold every name that the columns point to.
      runs: [...runs],
      stages: [...stages.list],
      instances: [...instances.list],
      verdicts: [...verdicts.list],
      exits: [...exits.list],
      reasons: [...reasons.list],
    };
  }
}
