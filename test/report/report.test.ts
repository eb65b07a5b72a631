import { createHash } from "node:crypto";
import { appendFile, mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { inflateSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ArcStage, kindest, meanArc } from "../../lib/report/arc.ts";
import { niceTicks } from "../../lib/report/chart.ts";
import { configDifferences } from "../../lib/report/config-difference.ts";
import type { EpisodeRow, RunData } from "../../lib/report/data.ts";
import { compact, duration } from "../../lib/report/format.ts";
import { escapeHtml, html } from "../../lib/report/html.ts";
import type { RowColumns } from "../../lib/report/page/types.ts";
import { renderReport, writeReport } from "../../lib/report/report.ts";
import { samplingOrder, spreadOrder } from "../../lib/report/sample.ts";
import { arcTable } from "../../lib/report/terminal.ts";
import { type LinePlace, LogFollower } from "../../lib/run/follow.ts";
import { readRun } from "../../lib/run/read.ts";
import { HOSTILE, writeRun } from "./fixture.ts";

let folder: string;
let run: RunData;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tokenring-report-"));
  await writeRun(path.join(folder, "run"), 1, { hostile: true });
  run = await readRun(path.join(folder, "run"));
});
afterAll(() => rm(folder, { recursive: true }));

async function rendered(
  runs: readonly RunData[],
  options: { all?: boolean; budget?: number } = {},
): Promise<string> {
  let page = "";
  for await (const piece of renderReport(runs, options)) page += piece;
  return page;
}

/** The JSON that a page holds in the data element `id`. */
function dataOf<T>(page: string, id: string): T {
  const text = new RegExp(`<script type="text/plain" id="${id}">([^<]*)</script>`).exec(page)?.[1] ?? "";
  return JSON.parse(inflateSync(Buffer.from(text, "base64")).toString("utf8")) as T;
}

describe("reading a run for its report", () => {
  test("lists every episode, and reads each with its lanes", async () => {
    expect(run).toMatchObject({ name: "run", seed: 1, version: "0.1.0", settings: { seed: 1 } });
    expect(run.config).toContain("device: cpu");
    const evaluations = run.episodes.filter(({ stage }) => stage.endsWith("-evaluation"));
    expect(evaluations.map(({ stage, verdict }) => [stage, verdict])).toEqual(
      ["base", "rft", "stage1", "stage2"].flatMap((stage) => [
        [`${stage}-evaluation`, "resolved"],
        [`${stage}-evaluation`, "failed"],
      ]),
    );
    const at = run.episodes.findIndex(({ clipped }) => (clipped ?? 0) > 0);
    const { trajectory, learnt } = await run.load(at);
    const row = run.episodes[at] as (typeof run.episodes)[0];
    expect(trajectory.tokens).toHaveLength(row.tokens);
    expect(learnt?.flags.filter((flag) => flag > 0)).toHaveLength(row.clipped as number);
    expect(learnt?.flags).toHaveLength(row.actionTokens);
    expect(run.tokenizer?.decode(trajectory.tokens)).toContain("tepa(2, 3) returns -1, expected 5");
  });

  test("a path that holds no run is said to be none", async () => {
    await expect(readRun(folder)).rejects.toMatchObject({ code: "ERR_TOKENRING_RUN_DIRECTORY" });
  });

  test("a log is read as it grows: whole lines only, and a cut is said", async () => {
    const file = path.join(folder, "log.jsonl");
    const log = new LogFollower(file);
    const seen: unknown[] = [];
    const places: LinePlace[] = [];
    const look = (): Promise<string> =>
      log.poll((value, place) => {
        seen.push(value);
        places.push(place);
      });
    expect(await look()).toBe("read");
    await writeFile(file, '{"a":1}\n{"ü":"');
    await look();
    expect(seen).toEqual([{ a: 1 }]);
    // Longer than one piece that is read at a time.
    const long = "é".repeat(1_500_000);
    await appendFile(file, `${long}"}\n[3]\n`);
    await look();
    expect(seen).toEqual([{ a: 1 }, { ü: long }, [3]]);
    for (const [i, place] of places.entries()) expect(await log.again(place)).toEqual(seen[i]);
    await truncate(file, 8);
    expect(await look()).toBe("cut");
    await writeFile(file, "{]\n");
    await expect(new LogFollower(file).poll(() => {})).rejects.toMatchObject({
      code: "ERR_TOKENRING_RUN_DIRECTORY",
      message: /log\.jsonl: byte 0: not JSON/,
    });
  });
});

describe("which episodes a page holds", () => {
  const row = (over: Partial<EpisodeRow>): EpisodeRow => ({
    ...(run.episodes[0] as EpisodeRow),
    infra: false,
    clipped: null,
    ...over,
  });

  test("any beginning of an order is spread", () => {
    expect(spreadOrder(9)).toEqual([8, 0, 4, 2, 6, 1, 3, 5, 7]);
    for (let count = 0; count < 40; count++)
      expect(spreadOrder(count).sort((a, b) => a - b)).toEqual(Array.from({ length: count }, (_, i) => i));
  });

  test("whole groups, stages in turns, the extremes first, and every episode once", () => {
    const rows = ["s", "t"].flatMap((stage) =>
      Array.from({ length: 60 }, (_, i) =>
        row({
          stage,
          iteration: Math.floor(i / 12),
          instanceId: `i${Math.floor(i / 4) % 3}`,
          rollout: i % 4,
          tokens: stage === "s" && i === 30 ? 900 : 100,
          verdict: i % 2 ? "resolved" : "failed",
        }),
      ),
    );
    const order = samplingOrder(rows);
    expect(order[0]).toEqual([28, 29, 30, 31]);
    expect(order.every((unit) => unit.length === 4)).toBe(true);
    expect(order.slice(0, 6).map((unit) => rows[unit[0] as number]?.stage)).toEqual([
      "s",
      "t",
      "s",
      "t",
      "s",
      "t",
    ]);
    expect(order.flat().sort((a, b) => a - b)).toEqual([...rows.keys()]);
  });

  test("of a group of long episodes, solved and failed ones first", () => {
    const rows = Array.from({ length: 8 }, (_, rollout) =>
      row({
        stage: "s",
        iteration: 0,
        instanceId: "i",
        rollout,
        tokens: 131_072,
        verdict: rollout < 6 ? "failed" : "resolved",
      }),
    );
    const order = samplingOrder(rows);
    expect(order[0]).toEqual([0, 6, 7]);
    expect(order.flat().sort((a, b) => a - b)).toEqual([...rows.keys()]);
  });

  test("stays within its budget, lists all, and holds all when asked to", async () => {
    const page = await rendered([run], { budget: 480_000 });
    const { pack, at, stages, stage } = dataOf<RowColumns>(page, "rows");
    expect(Buffer.byteLength(page)).toBeLessThanOrEqual(480_000);
    expect(pack).toHaveLength(run.episodes.length);
    const held = [...pack.keys()].filter((i) => (pack[i] as number) >= 0);
    expect(held.length).toBeGreaterThan(4);
    expect(held.length).toBeLessThan(run.episodes.length);
    expect(new Set(held.map((i) => stages[stage[i] as number])).size).toBe(stages.length);
    expect(new Set(held.map((i) => `${pack[i]}/${at[i]}`)).size).toBe(held.length);
    const all = dataOf<RowColumns>(await rendered([run], { all: true, budget: 1 }), "rows");
    expect(all.pack.every((number) => number >= 0)).toBe(true);
  });
});

describe("comparison", () => {
  test("configs differ where a key's value does", () => {
    expect(
      configDifferences([
        { a: 1, b: { c: [1, { d: "x" }] }, e: {} },
        { a: 1, b: { c: [1, { d: "y" }] }, f: null },
      ]),
    ).toEqual([
      { key: "b.c.1.d", values: ['"x"', '"y"'] },
      { key: "e", values: ["{}", null] },
      { key: "f", values: [null, "null"] },
    ]);
    expect(configDifferences([{ a: 1 }, { a: 1 }])).toEqual([]);
  });
});

describe("the page as text", () => {
  test("its policy names style and script by their hashes and allows nothing else", async () => {
    const out = path.join(folder, "deep", "report.html");
    expect(await writeReport([run], out)).toBe(out);
    const page = await readFile(out, "utf8");
    const policy = /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(page)?.[1] ?? "";
    for (const tag of ["style", "script"]) {
      const blocks = [...page.matchAll(new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`, "g"))];
      expect(blocks).toHaveLength(1);
      const hash = createHash("sha256")
        .update(blocks[0]?.[1] ?? "")
        .digest("base64");
      expect(policy).toContain(escapeHtml(`${tag}-src 'sha256-${hash}'`));
    }
    expect(policy).toContain("default-src");
    expect(policy).toContain(escapeHtml("connect-src 'none'"));
    expect(policy).not.toContain("unsafe");
    expect(page).not.toMatch(/<[^>]+\s(?:src|on\w+|style)=/);
    expect([...page.matchAll(/(?:href|content)="(?:https?:)?\/\//g)]).toEqual([]);
  });

  test("hostile text is only there escaped or packed", async () => {
    const page = await rendered([run]);
    expect(page).not.toContain(HOSTILE);
    expect(page).not.toContain("<img");
    expect(page).toContain(escapeHtml(HOSTILE));
    expect(dataOf<RowColumns>(page, "rows").instances[0]).toContain(HOSTILE);
  });

  test("a run that has just begun makes a page", async () => {
    const young: RunData = {
      ...run,
      events: [],
      episodes: [],
      load: run.load,
      name: run.name,
      tokenizer: undefined,
    };
    expect(await rendered([young])).toContain("No checkpoint has been evaluated yet.");
    expect(await rendered([young, young])).toContain("not finished");
  });

  test("templates escape everything that is no template", () => {
    const value = `<i>"&'\u0000\u001b</i>`;
    expect(html`<b title="${value}">${[value, 0, null, false, html`<u>${1}</u>`]}</b>`.text).toBe(
      `<b title="&lt;i&gt;&quot;&amp;&#39;\\x00\\x1b&lt;/i&gt;">&lt;i&gt;&quot;&amp;&#39;\\x00\\x1b&lt;/i&gt;0<u>1</u></b>`,
    );
  });
});

describe("numbers", () => {
  test.each([
    [0, 1, [0, 0.25, 0.5, 0.75, 1]],
    [0, 0.07, [0, 0.02, 0.04, 0.06, 0.08]],
    [-1, 1, [-1, -0.5, 0, 0.5, 1]],
    [0, 1234, [0, 500, 1000, 1500]],
    [3, 3, [3, 4]],
  ])("ticks from %d to %d", (low, high, expected) => {
    const ticks = niceTicks(low, high);
    expect(ticks).toEqual(expected);
  });

  test("are written as people read them", () => {
    expect([0, 0.1234, 12.345, 1234.5, 12345, 2.5e6, 3e-6, -0.5].map(compact)).toEqual([
      "0",
      "0.123",
      "12.3",
      "1235",
      "12.3k",
      "2.5M",
      "3.0e−6",
      "−0.5",
    ]);
    expect([0.25, 59, 65, 3725].map(duration)).toEqual(["0.3 s", "59 s", "1 min 05 s", "1 h 02 min"]);
  });
});

describe("the arc", () => {
  const stage = (name: string, pass1: number, pass10: number | null = 0.5): ArcStage => ({
    name,
    pass1,
    sem: 0.01,
    pass10,
    turns: 4.25,
    episodes: 400,
  });

  test("of several runs: means and the standard error between runs, over the stages that all have", () => {
    const arc = meanArc([
      [stage("base", 0.05), stage("rft", 0.2), stage("extra", 1)],
      [stage("base", 0.07), stage("rft", 0.4, null)],
    ]);
    expect(arc.map((one) => one.name)).toEqual(["base", "rft"]);
    expect(arc[0]?.pass1).toBeCloseTo(0.06, 12);
    expect(arc[1]?.sem).toBeCloseTo(0.1, 12);
    expect([arc[0]?.pass10, arc[1]?.pass10, arc[0]?.episodes]).toEqual([0.5, null, 800]);
  });

  test("has smaller budgets and sets apart beside it, and a baseline counts where it does best", () => {
    const at = (name: string, pass1: number, small: number, apart: number): ArcStage => ({
      ...stage(name, pass1),
      budget: { maxTurns: 24, maxContext: 1008 },
      alsoAt: [{ ...stage(name, small), budget: { maxTurns: 12, maxContext: 640 } }],
      apart: { "new families": stage(name, apart) },
    });
    const arc = [at("base", 0.05, 0.06, 0.01), at("stage2", 0.4, 0.3, 0.1)];
    expect(arc.map((one) => kindest(one).pass1)).toEqual([0.06, 0.4]);
    const lines = arcTable(arc).split("\n");
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
    expect(lines[0]).toMatch(/ turns +at 12 turns$/);
    expect(lines[2]).toMatch(/4\.3 +6\.0 % ± 1\.0$/);
    expect(lines.at(-1)).toBe("  new families: base 1.0 % · stage2 10.0 %");
    const mean = meanArc([arc, [at("base", 0.07, 0.02, 0.03), { ...at("stage2", 0.6, 0.5, 0), apart: {} }]]);
    expect(mean[0]?.alsoAt?.[0]?.pass1).toBeCloseTo(0.04, 12);
    expect(mean[0]?.apart?.["new families"]?.pass1).toBeCloseTo(0.02, 12);
    expect(mean[1]).toMatchObject({ budget: { maxTurns: 24 }, alsoAt: [{ budget: { maxTurns: 12 } }] });
    expect(mean[1]?.apart).toBeUndefined();
  });

  test("in the report: columns of their own, and the kindest base in the headline", async () => {
    const events = run.events.map((event) => {
      if (event.type !== "evaluation") return event;
      const { evaluation } = event;
      const small = { ...evaluation, pass1: 0.123, sem: 0.004, budget: { maxTurns: 12, maxContext: 640 } };
      return {
        ...event,
        evaluation: {
          ...evaluation,
          alsoAt: [small],
          apart: { "new families": { ...evaluation, pass1: 0.031 } },
        },
      };
    });
    const page = await rendered([{ ...run, events }]);
    expect(page).toContain("<th>at 12 turns</th><th>new families, apart</th>");
    expect(page.split("<td>12.3 % <small>± 0.4</small></td><td>3.1 %").length).toBe(5);
    expect(page).toContain('<span class="from">12.3 % → </span>');
  });

  test("in a terminal: bars to scale, numbers in columns, within the width", () => {
    const drawn = arcTable([stage("base", 0.05, 0.2), stage("stage2", 0.4, 0.6), stage("other", 0.1, null)]);
    const lines = drawn.split("\n");
    expect(lines).toHaveLength(5);
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
    expect(lines[0]).toMatch(/stage +Pass@1 +0 +60 % +Pass@10 +turns/);
    expect(lines[2]).toMatch(/base +5\.0 % ± 1\.0 +█+.*░+ +20\.0 % +4\.3$/);
    const full = (line: string | undefined): number => (line?.match(/█/g) ?? []).length;
    // 40 of 60 per cent is two thirds of the bar, 5 of 60 a twelfth.
    const width = (lines[3]?.match(/[█▏▎▍▌▋▊▉░]/g) ?? []).length;
    expect(full(lines[3])).toBe(Math.floor((width * 2) / 3));
    expect(full(lines[2])).toBe(Math.floor(width / 12));
    expect(lines[4]).not.toContain("░");
    expect(arcTable([])).toBe("no stage was evaluated");
  });
});
