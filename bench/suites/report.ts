// The report in a browser: how long a large one takes to open and to filter, and whether a long trajectory scrolls
// without a pause. Tasks are those of the browser's own trace.
import { existsSync, rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Browser, Page } from "playwright-core";
import { readRun, TokenringError, writeReport } from "tokenring";
import { type MadeRun, makeRun } from "../made-run.ts";
import type { Case } from "../measure.ts";
import type { Suite } from "../suites.ts";

const MADE: MadeRun = { episodes: 2000, tokens: 4000, longest: 131_072 };

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

async function launch(): Promise<Browser> {
  const executablePath = process.env.TOKENRING_CHROMIUM ?? PLACES.find(existsSync);
  const missing = (what: string, cause?: unknown): TokenringError =>
    new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `the suite report needs ${what}`, { cause });
  if (executablePath === undefined)
    throw missing("Chromium: apt-get install chromium, or name it with TOKENRING_CHROMIUM");
  const { chromium } = await import("playwright-core").catch((cause: unknown) => {
    throw missing("the package playwright-core: npm install playwright-core", cause);
  });
  return chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu"] });
}

interface Opened {
  browser: Browser;
  /** Address of the report. */
  url: string;
}

let made: Promise<string> | undefined;

/** The report's file: made once, since that takes longer than most of what is measured; gone with the process. */
function reportFile(): Promise<string> {
  made ??= (async () => {
    const folder = await mkdtemp(join(tmpdir(), "tokenring-report-"));
    process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
    await makeRun(join(folder, "run"), MADE);
    return await writeReport([await readRun(join(folder, "run"))], join(folder, "report.html"));
  })();
  return made;
}

/** A fresh page of its own context: nothing is cached. */
async function withPage<T>({ browser }: Opened, work: (page: Page) => Promise<T>): Promise<T> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  try {
    return await work(await context.newPage());
  } finally {
    await context.close();
  }
}

/** In the page: resolves when what is on the screen now was painted. */
const PAINTED = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))";

const FIRST_EPISODE = ".slab .t";

/** Milliseconds from the navigation to the frame that shows `selector`. */
async function opening(opened: Opened, hash: string, selector: string): Promise<number> {
  return withPage(opened, async (page) => {
    await page.goto(opened.url + hash, { waitUntil: "commit" });
    await page.locator(selector).first().waitFor();
    return (await page.evaluate(`${PAINTED}.then(() => performance.now())`)) as number;
  });
}

/** Milliseconds from the event to the frame after it, of the slowest of these choices. */
async function filtering(opened: Opened): Promise<number> {
  return withPage(opened, async (page) => {
    await page.goto(`${opened.url}#/e/`);
    await page.locator(FIRST_EPISODE).first().waitFor();
    return (await page.evaluate(`(async () => {
      const control = (label) => document.querySelector('[aria-label="' + label + '"]');
      const set = async (label, value, event) => {
        await ${PAINTED};
        const begin = performance.now();
        const element = control(label);
        element.value = value;
        element.dispatchEvent(new Event(event));
        await ${PAINTED};
        return performance.now() - begin;
      };
      const taken = [];
      for (const outcome of ["resolved", "failed", "infra", "unreadable", "clipped", "all"])
        taken.push(await set("outcome", outcome, "change"));
      for (const order of ["tokens", "clipped", "slowest", "newest"])
        taken.push(await set("order", order, "change"));
      for (const words of ["c", "ca", "cache", "cache tests failed", "nothing like it", ""])
        taken.push(await set("filter episodes", words, "input"));
      return Math.max(...taken);
    })()`)) as number;
  });
}

interface TraceEvent {
  name: string;
  ph: string;
  pid: number;
  tid: number;
  /** Microseconds of the thread's own time. */
  tdur?: number;
  args?: { name?: string };
}

/**
 * CPU milliseconds of the longest task of the page's main thread while `work` went on: what it lasts where no other
 * program wants the processor.
 */
async function longestTask(browser: Browser, page: Page, work: () => Promise<void>): Promise<number> {
  await browser.startTracing(page, { categories: ["toplevel", "disabled-by-default-devtools.timeline"] });
  await work();
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString()) as {
    traceEvents: TraceEvent[];
  };
  const main = traceEvents.filter(
    ({ name, args }) => name === "thread_name" && args?.name === "CrRendererMain",
  );
  const tasks = traceEvents.filter(
    ({ name, ph, pid, tid }) =>
      name === "RunTask" && ph === "X" && main.some((thread) => thread.pid === pid && thread.tid === tid),
  );
  if (tasks.length === 0)
    throw new TokenringError("ERR_TOKENRING_INTERNAL", "the browser's trace has no tasks of the page");
  return Math.max(...tasks.map(({ tdur = 0 }) => tdur)) / 1000;
}

/** What a reader does with the longest trajectory. */
const READING = {
  "opened from the list": async (page: Page) => {
    await page.locator('[aria-label="order"]').selectOption("tokens");
    await page.locator(".row", { hasText: "longest" }).click();
    await page.locator(".head h2", { hasText: "longest" }).waitFor();
    await page.locator(FIRST_EPISODE).first().waitFor();
    await page.evaluate(PAINTED);
  },
  "scrolled by the wheel, painted": async (page: Page) => {
    await page.locator(".conversation").hover();
    for (let i = 0; i < 60; i++) {
      await page.mouse.wheel(0, 1200);
      await page.evaluate(PAINTED);
    }
  },
  "scrolled from end to end, painted": async (page: Page) => {
    // By its bar: every frame shows another place.
    await page.evaluate(`(async () => {
      const scroller = document.querySelector(".conversation");
      for (let i = 0; i <= 40; i++) {
        scroller.scrollTop = (scroller.scrollHeight * i) / 40;
        await ${PAINTED};
      }
    })()`);
  },
  "painted by another lane": async (page: Page) => {
    const lanes = page.locator("[data-lane]:not(:disabled)");
    for (let i = 0; i < (await lanes.count()); i++) {
      await lanes.nth(i).evaluate("(button) => button.click()");
      await page.evaluate(PAINTED);
    }
  },
  "searched for a word": async (page: Page) => {
    await page.locator('[aria-label="find in episode"]').fill("queue");
    await page.locator(".find-count", { hasText: "found" }).waitFor();
    await page.evaluate(PAINTED);
  },
} as const;

async function reading(opened: Opened, what: keyof typeof READING): Promise<number> {
  return withPage(opened, async (page) => {
    await page.goto(`${opened.url}#/e/`);
    await page.locator(FIRST_EPISODE).first().waitFor();
    if (what !== "opened from the list") {
      await READING["opened from the list"](page);
      await page.locator('[data-lane="ratio"]').click();
      await page.evaluate(PAINTED);
    }
    return longestTask(opened.browser, page, () => READING[what](page));
  });
}

function browserCase(name: string, ours: (opened: Opened) => Promise<number>) {
  return async (): Promise<Case> => {
    const browser = await launch();
    const opened = { browser, url: pathToFileURL(await reportFile()).href };
    return {
      name,
      unit: "ms",
      work: null,
      ours: () => ours(opened),
      peers: {},
      close: () => browser.close(),
    };
  };
}

const large = `a report of ${MADE.episodes} episodes`;
const long = `${MADE.longest} tokens`;

export const report: Suite = {
  name: "report",
  about: "a large report in Chromium: opening, filtering, and the longest pause in a long trajectory",
  cases: [
    browserCase(`${large} opened, to the overview`, (opened) => opening(opened, "", "#run0-config")),
    browserCase(`${large} opened, to its list and first episode`, (opened) =>
      opening(opened, "#/e/", FIRST_EPISODE),
    ),
    browserCase(`${large} filtered, the slowest of 16 filters`, filtering),
    ...(Object.keys(READING) as (keyof typeof READING)[]).map((what) =>
      browserCase(`${long} ${what}, the longest task`, (opened) => reading(opened, what)),
    ),
  ],
};
