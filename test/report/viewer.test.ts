// The view of episodes in a real browser: what it shows is what the files hold, and text stays text.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ACTION } from "../../lib/agent/types.ts";
import { writeReport } from "../../lib/report/report.ts";
import { RunDirectory } from "../../lib/run/directory.ts";
import { readRun } from "../../lib/run/read.ts";
import { SafetensorsFile } from "../../lib/run/safetensors.ts";
import { readIndex, type TrajectoryEntry } from "../../lib/run/trajectories.ts";
import { trajectory } from "../learn/doubles.ts";
import { CHROMIUM, Pages, type Window } from "./chromium.ts";
import { CONTROLS, HOSTILE, longEpisode, saveTokenizer, writeRun } from "./fixture.ts";

const LINE = "x".repeat(10_000_000);

describe.runIf(CHROMIUM !== undefined)("episodes in a browser", () => {
  let folder: string;
  let pages: Pages;
  let index: TrajectoryEntry[];
  let hostile: TrajectoryEntry[];

  async function entries(run: string): Promise<TrajectoryEntry[]> {
    const out: TrajectoryEntry[] = [];
    for await (const entry of readIndex(path.join(folder, run))) out.push(entry);
    return out;
  }
  const address = (entry: TrajectoryEntry): string =>
    [0, entry.stage, entry.iteration, entry.instanceId, entry.rollout].map(encodeURIComponent).join("/");
  /** Opens a report; waits for the conversation of the episode that its address names. */
  async function open(file: string, hash = "#/e/", window: Window = {}): Promise<Page> {
    const page = await pages.open(pathToFileURL(path.join(folder, file)).href + hash, window);
    if (hash.startsWith("#/e/") && (window.width ?? 1280) > 780)
      await page.locator(".slab .t, .empty p").first().waitFor();
    return page;
  }
  const shown = (page: Page): Promise<string> =>
    page.evaluate("decodeURIComponent(location.hash.split('?')[0])") as Promise<string>;
  const facts = async (page: Page): Promise<Record<string, string>> =>
    (await page.evaluate(
      "Object.fromEntries([...document.querySelectorAll('[data-fact]')].map((fact) => [fact.dataset.fact, fact.lastChild.textContent]))",
    )) as Record<string, string>;

  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "tokenring-viewer-"));
    await writeRun(path.join(folder, "plain"), 1);
    await writeRun(path.join(folder, "hostile"), 2, { hostile: true });
    {
      await using run = await RunDirectory.create(path.join(folder, "long"), {
        config: {},
        seed: 1,
        version: "0.1.0",
      });
      await run.saveCheckpoint("base", saveTokenizer);
      const spoken = trajectory({ instanceId: "spoken" });
      (spoken.turns[0] as (typeof spoken.turns)[0]).observation = LINE;
      await run.trajectories.write("stage1", 0, [
        { trajectory: longEpisode(131_072), reward: 1, advantage: 0.5 },
        { trajectory: spoken },
      ]);
    }
    for (const name of ["plain", "hostile", "long"]) {
      await writeReport([await readRun(path.join(folder, name))], path.join(folder, `${name}.html`));
    }
    const small = await readRun(path.join(folder, "plain"));
    await writeReport([small], path.join(folder, "small.html"), { budget: 420_000 });
    index = await entries("plain");
    hostile = await entries("hostile");
    pages = await Pages.start();
  });
  afterEach(() => pages.close());
  afterAll(async () => {
    await pages[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  });

  test.each(["stage1", "stage2"])("%s: every number of a token is that of the files", async (stage) => {
    const entry = index.findLast((one) => one.stage === stage && one.learnt?.step === 2) as TrajectoryEntry;
    const file = await SafetensorsFile.open(path.join(folder, "plain", "trajectories", entry.shard));
    const lane = async (name: string, at: number): Promise<number> =>
      (await file.read(name, at, at + 1))[0] as number;
    const page = await open("plain.html", `#/e/${address(entry)}?t=0`);
    expect(await facts(page)).toMatchObject({ token: "0", source: "prompt", loss: "masked" });
    let action = 0;
    for (let i = 0; i < entry.length; i++) {
      if ((await lane("provenance", entry.offset + i)) !== ACTION) continue;
      const at = (entry.learnt?.offset ?? 0) + action++;
      if (action % 17 !== 5) continue;
      await page.evaluate(`location.hash = "#/e/${address(entry)}?t=${i}"`);
      await page.locator(`[data-fact=token]`, { hasText: new RegExp(`^token${i}$`) }).waitFor();
      const engine = await lane("logprobs", entry.offset + i);
      const trainer = await lane("learnt_logprobs", at);
      const old = stage === "stage2" ? await lane("learnt_old_logprobs", at) : engine;
      const digits = (value: number): string => String(Number(value.toPrecision(6)));
      expect(await facts(page)).toEqual({
        token: String(i),
        id: String(await lane("tokens", entry.offset + i)),
        source: "action",
        "engine logprob": digits(engine),
        p: digits(Math.exp(engine)),
        advantage: digits(entry.advantage as number),
        "trainer logprob": digits(trainer),
        ...(stage === "stage2" && { "old logprob": digits(old) }),
        ratio: digits(Math.exp(trainer - old)),
        entropy: digits(await lane("learnt_entropies", at)),
        clipped: ["no", "low", "high", "dual clip"][await lane("learnt_flags", at)],
        step: "2",
      });
    }
    expect(action).toBeGreaterThan(20);
  });

  test("the conversation is the token stream, in order, and painted by the lane that is asked for", async () => {
    const entry = index.find((one) => one.learnt?.step === 1) as TrajectoryEntry;
    const page = await open("plain.html", `#/e/${address(entry)}`);
    const tokens = (await page.evaluate(
      "[...document.querySelectorAll('.conversation .t')].map((span) => span.textContent).join('')",
    )) as string;
    for (const turn of entry.turns) expect(tokens).toContain(turn.command as string);
    expect(tokens).toContain("OK — é 試");
    expect(await page.locator(".conversation .t").count()).toBe(entry.length);
    expect(await page.locator(".block.command").first().textContent()).toBe("open gebo.py");
    expect(await page.locator(".conversation .t.loss").count()).toBe(entry.learnt?.length);
    await page.keyboard.press("6");
    const clipped = entry.learnt?.clipped.reduce((a, b) => a + b) as number;
    expect(clipped).toBeGreaterThan(0);
    expect(await page.locator(".conversation").locator(".t.low, .t.high, .t.dual").count()).toBe(clipped);
    await page.keyboard.press("n");
    expect(await page.locator(".t.on.low, .t.on.high, .t.on.dual").count()).toBe(1);
    expect(await page.evaluate("location.hash")).toMatch(/\?t=\d+&lane=clip$/);
  });

  test("lists, filters, orders and groups are those of the index", async () => {
    const page = await open("plain.html");
    const total = page.locator(".total");
    const outcome = page.getByLabel("outcome");
    const counted = async (value: string): Promise<number> => {
      await outcome.selectOption(value);
      return Number(/^[\d,]+/.exec((await total.textContent()) as string)?.[0]);
    };
    const infra = index.filter((one) => one.dropped);
    expect(infra).toHaveLength(2);
    expect(await counted("all")).toBe(index.length);
    expect(await counted("resolved")).toBe(index.filter((one) => one.verdict === "resolved").length);
    expect(await counted("infra")).toBe(2);
    expect(await counted("unreadable")).toBe(
      index.filter((one) => one.turns.some((turn) => turn.formatError)).length,
    );
    expect(await counted("learnt")).toBe(index.filter((one) => one.learnt).length);
    const most = (one: TrajectoryEntry): number => one.learnt?.clipped.reduce((a, b) => a + b) ?? -1;
    expect(await counted("clipped")).toBe(index.filter((one) => most(one) > 0).length);
    await page.getByLabel("order").selectOption("clipped");
    const first = await page.locator(".row").first().locator("small").textContent();
    expect(first).toContain(`${Math.max(...index.map(most))} clipped`);
    await outcome.selectOption("all");
    await page.getByLabel("filter episodes").fill("stage1-7");
    expect(await page.locator(".row b").allTextContents()).toEqual(new Array(3).fill("tinyswe-stage1-7"));
    await page.locator(".row").first().click();
    await page.locator("h2", { hasText: "tinyswe-stage1-7" }).waitFor();
    const rollouts = page.locator(".group button");
    expect(await rollouts.count()).toBe(3);
    await page.keyboard.press("[");
    await page.keyboard.press("[");
    await page.keyboard.press("[");
    await page.locator('.group button[aria-current="true"]', { hasText: "0" }).waitFor();
    await page.keyboard.press("]");
    await page.locator('.group button[aria-current="true"]', { hasText: "1" }).waitFor();
    expect(await shown(page)).toBe("#/e/0/stage1/7/tinyswe-stage1-7/1");
  });

  test("a link to a token opens its episode with the token in sight", async () => {
    const entry = index.findLast((one) => one.learnt) as TrajectoryEntry;
    const page = await open("plain.html", `#/e/${address(entry)}?t=${entry.length - 2}&lane=entropy`);
    await page.locator(".t.on").waitFor();
    expect(await page.locator(".t.on").isVisible()).toBe(true);
    expect(await facts(page)).toMatchObject({ token: String(entry.length - 2) });
    expect(await page.locator('[data-lane="entropy"]').getAttribute("aria-checked")).toBe("true");
    // A lane that an evaluation does not have gives way, and says why.
    const evaluation = index.find((one) => one.stage === "base-evaluation") as TrajectoryEntry;
    await page.evaluate(`location.hash = "#/e/${address(evaluation)}"`);
    await page.locator(".legend", { hasText: "nothing is learnt from it" }).waitFor();
  });

  test("words are found in the whole episode", async () => {
    const entry = index[0] as TrajectoryEntry;
    const page = await open("plain.html", `#/e/${address(entry)}`);
    await page.keyboard.press("f");
    await page.keyboard.type("OPERATOR is");
    await page.locator(".find-count", { hasText: "1 found" }).waitFor();
    await page.keyboard.press("Enter");
    expect(await page.locator(".t.hit.on").count()).toBe(1);
  });

  test("hostile text stays text, and what would steer a terminal or turn text around is shown by its sign", async () => {
    const page = await open("hostile.html", `#/e/${address(hostile[0] as TrajectoryEntry)}`);
    expect(await page.title()).toBe("hostile – tokenring");
    expect(await page.locator("img").count()).toBe(0);
    expect(await page.locator(".head h2").textContent()).toContain(HOSTILE);
    expect(await page.locator(".block.patch").textContent()).toBe(HOSTILE);
    expect(await page.locator(".block.observation").nth(2).textContent()).toContain(HOSTILE);
    const text = (await page.locator("#viewer").textContent()) as string;
    for (const control of CONTROLS.match(/[^\w\s.[\];]/g) ?? []) expect(text).not.toContain(control);
    expect(text).toContain("␛[2J␛]0;owned␇ ⟨U+202E⟩gnp.exe⟨U+2066⟩ a⟨U+200B⟩b");
    expect(pages.noise).toEqual([]);
  });

  test("131,072 tokens and a line of ten megabytes: only what is in sight exists", async () => {
    const page = await open("long.html", "#/e/0/stage1/0/long/0");
    const drawn = (): Promise<number> => page.locator(".conversation .t").count();
    expect(await drawn()).toBeGreaterThan(100);
    expect(await drawn()).toBeLessThan(4000);
    await page.evaluate('location.hash = "#/e/0/stage1/0/long/0?t=131071"');
    await page.locator(".t.on").waitFor();
    expect(await page.locator(".t.on").isVisible()).toBe(true);
    expect(await facts(page)).toMatchObject({ token: "131071" });
    expect(await drawn()).toBeLessThan(6000);
    // Dragged from end to end, faster than what comes into sight can be drawn.
    await page.evaluate(`(async () => {
      const scroller = document.querySelector(".conversation");
      for (let i = 0; i <= 60; i++) {
        scroller.scrollTop = (scroller.scrollHeight * i) / 60;
        await new Promise(requestAnimationFrame);
      }
    })()`);
    await expect.poll(drawn).toBeLessThan(6000);
    await page.evaluate('location.hash = "#/e/0/stage1/0/spoken/0"');
    await page.locator("h2", { hasText: "spoken" }).waitFor();
    const recorded = page.locator(".block.recorded").nth(1);
    await recorded.locator(".slab").first().waitFor();
    // Nothing of it is lost: it is cut into pieces that are drawn when they come into sight.
    expect(await recorded.locator(".slab").count()).toBe(LINE.length / 4000);
    expect((await recorded.textContent())?.length).toBeLessThan(400_000);
    expect(pages.noise).toEqual([]);
  });

  test("a file that cannot hold all says so of each episode that it leaves out", async () => {
    const page = await open("small.html");
    expect(await page.locator(".total").textContent()).toMatch(
      / of them in this file \(--all for every one\)$/,
    );
    await page.locator(".row.away").first().click();
    await page.locator(".empty", { hasText: "--all" }).waitFor();
    expect(await page.locator(".conversation").isVisible()).toBe(false);
    expect(pages.noise).toEqual([]);
  });

  test("on a narrow screen the list and the episode take turns", async () => {
    const page = await open("plain.html", "#/e/", { width: 390 });
    await page.locator(".row").first().click();
    await page.locator(".slab .t").first().waitFor();
    expect(await page.locator(".list").isVisible()).toBe(false);
    expect(await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")).toBe(true);
    await page.locator(".back").click();
    expect(await page.locator(".list").isVisible()).toBe(true);
  });
});
