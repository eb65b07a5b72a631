// The report in a real browser: nothing asked of the network, nothing on the console, the numbers of the files.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { LoggedEvent } from "../../lib/learn/events.ts";
import { writeReport } from "../../lib/report/report.ts";
import { readRun } from "../../lib/run/read.ts";
import { readIndex } from "../../lib/run/trajectories.ts";
import { CHROMIUM, Pages, type Window } from "./chromium.ts";
import { HOSTILE, writeRun } from "./fixture.ts";

describe.runIf(CHROMIUM !== undefined)("the report in a browser", () => {
  let folder: string;
  let pages: Pages;

  const open = (file: string, window: Window = {}): Promise<Page> =>
    pages.open(pathToFileURL(path.join(folder, file)).href, window);

  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "tokenring-report-"));
    await writeRun(path.join(folder, "one"), 1, { hostile: true });
    await writeRun(path.join(folder, "two"), 2);
    const runs = await Promise.all(["one", "two"].map((name) => readRun(path.join(folder, name))));
    await writeReport(runs.slice(0, 1), path.join(folder, "one.html"));
    await writeReport(runs, path.join(folder, "both.html"));
    pages = await Pages.start();
  });
  afterEach(() => pages.close());
  afterAll(async () => {
    await pages[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  });

  test("hostile text stays text, and every page is silent", async () => {
    const page = await open("one.html");
    expect(await page.title()).toBe("one – tokenring");
    expect(await page.locator("img").count()).toBe(0);
    expect(await page.locator("script:not([type])").count()).toBe(1);
    await page.locator("summary", { hasText: "Config" }).click();
    expect(await page.locator("pre.config").textContent()).toContain(HOSTILE);
    await open("both.html", { dark: true, width: 400 });
    expect(pages.noise).toEqual([]);
  });

  test("the numbers are those of metrics.jsonl", async () => {
    const page = await open("one.html");
    const lines = (await readFile(path.join(folder, "one", "metrics.jsonl"), "utf8")).trim().split("\n");
    const events = lines.map((line) => JSON.parse(line) as LoggedEvent);
    let checked = 0;
    for (const event of events) {
      if (event.type !== "evaluation") continue;
      const { pass1, sem, passK, turns, episodes } = event.evaluation;
      const cells = await page.locator(`tr[data-stage="${event.stage}"] td`).allTextContents();
      expect(cells[1]).toBe(`${(100 * pass1).toFixed(1)} % ± ${(100 * (sem as number)).toFixed(1)}`);
      expect(cells[2]).toBe(`${(100 * (passK["5"] as number)).toFixed(1)} %`);
      expect(cells[3]).toBe(`${(100 * (passK["10"] as number)).toFixed(1)} %`);
      expect(cells).toContain(turns.toFixed(2));
      expect(cells.at(-1)).toBe(String(episodes));
      const bar = page.locator("svg.arc g", { has: page.getByText(event.stage, { exact: true }) });
      expect(await bar.locator("text.value").last().textContent()).toBe((100 * pass1).toFixed(1));
      // The bar is as high as the number: the axis ends at 100 per cent here.
      const height = Number(await bar.locator("rect.pass1").getAttribute("height"));
      expect(height / (300 - 22 - 30)).toBeCloseTo(pass1, 3);
      checked++;
    }
    expect(checked).toBe(4);

    const steps = events.filter((event) => event.type === "step" && event.iteration !== undefined);
    const entropy = page.locator("figure", { hasText: "Entropy" }).first();
    const drawn = JSON.parse((await entropy.locator("svg").getAttribute("data-points")) as string) as {
      labels: string[];
      text: string[][];
    };
    expect(drawn.labels).toHaveLength(steps.length);
    drawn.text.forEach(([text], i) => {
      const event = steps[i];
      if (event?.type !== "step") throw new Error("one point a step");
      expect(Number(text)).toBeCloseTo(event.metrics.entropy, 2);
    });
  });

  test("verdicts and exits are those of the index, in the table and by iteration; versions are told", async () => {
    const page = await open("one.html");
    const entries = [];
    for await (const entry of readIndex(path.join(folder, "one"))) entries.push(entry);
    const head = await page.locator("#run0-outcomes th").allTextContents();
    let checked = 0;
    for (const stage of new Set(entries.map((entry) => entry.stage))) {
      const all = entries.filter((entry) => entry.stage === stage);
      const cells = await page.locator(`tr[data-outcomes="${stage}"] td`).allTextContents();
      const shown = (name: string): string => cells[head.indexOf(name)] as string;
      const cell = (count: number): string =>
        count === 0 ? "–" : `${((100 * count) / all.length).toFixed(1)} % ${count}`;
      expect(shown("number")).toBe(String(all.length));
      expect(shown("resolved")).toBe(cell(all.filter((entry) => entry.verdict === "resolved").length));
      expect(shown("infrastructure")).toBe(cell(all.filter((entry) => entry.dropped).length));
      expect(shown("exit: submitted")).toBe(cell(all.filter((entry) => entry.exit === "submitted").length));
      checked++;
    }
    expect(checked).toBe(6);
    const chart = page.locator("#run0-rl figure", { hasText: "Verdicts" });
    const { text } = JSON.parse((await chart.locator("svg").getAttribute("data-points")) as string) as {
      text: string[][];
    };
    const key = (await chart.locator(".key").allTextContents()).findIndex((one) => one.includes("resolved"));
    // Two of three rollouts fail in every iteration, and in the fourth one of them by infrastructure.
    expect(text.map((row) => row[key])).toEqual(new Array(28).fill("33.3 %"));
    const said = await page.locator("#run0-config").textContent();
    for (const version of [process.versions.node, process.platform]) expect(said).toContain(version);
  });

  test("the pointer shows the values below it", async () => {
    const page = await open("one.html");
    const figure = page.locator("#run0-rl figure").first();
    expect(await figure.locator(".tip").isVisible()).toBe(false);
    await figure.scrollIntoViewIfNeeded();
    const box = await figure.locator("svg").boundingBox();
    if (!box) throw new Error("the chart is not drawn");
    await page.mouse.move(box.x + box.width * 0.999, box.y + box.height / 2);
    const last = await figure.locator(".key b").textContent();
    expect(await figure.locator(".tip").textContent()).toBe(`stage2 13solved ${last}`);
    await page.mouse.move(1, 1);
    expect(await figure.locator(".tip").isVisible()).toBe(false);
  });

  test("fits a narrow screen and follows the system's colours", async () => {
    const narrow = await open("one.html", { width: 390 });
    expect(await narrow.evaluate("document.documentElement.scrollWidth <= window.innerWidth")).toBe(true);
    const ground = (page: Page): Promise<unknown> =>
      page.evaluate("getComputedStyle(document.body).backgroundColor");
    expect(await ground(narrow)).not.toBe(await ground(await open("one.html", { dark: true })));
  });

  test("several runs: their mean arc first, then each", async () => {
    const page = await open("both.html");
    expect(await page.locator("svg.arc").count()).toBe(3);
    expect(await page.locator("svg.arc").first().locator("circle.run").count()).toBe(8);
    expect(await page.locator("h1").allTextContents()).toEqual(["2 runs", "one", "two"]);
    // The same chart holds a line of each run, with its last value beside its name.
    const entropy = page
      .locator("section", { hasText: "Curves of all runs" })
      .locator("figure", { hasText: "Entropy" });
    expect(await entropy.locator("path.line").count()).toBe(2);
    for (const [i, name] of ["one", "two"].entries()) {
      const lines = (await readFile(path.join(folder, name, "metrics.jsonl"), "utf8")).trim().split("\n");
      const last = lines
        .map((line) => JSON.parse(line) as LoggedEvent)
        .findLast(({ type }) => type === "iteration");
      const value = last?.type === "iteration" ? last.summary.learning?.entropy : undefined;
      expect(await entropy.locator(`.key.k${i}`).textContent()).toBe(
        ` ${name} ${Number(value?.toPrecision(3))}`.trimStart(),
      );
    }
    const differences = page.locator("section", { hasText: "Differences of the configs" });
    expect(await differences.locator("tbody tr").allTextContents()).toEqual(["seed12"]);
    expect(pages.noise).toEqual([]);
  });
});
