// The live page: what a run writes comes to an open page, and nobody else than this machine's browser may ask.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFile, mkdtemp, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { LoggedEvent } from "../../lib/learn/events.ts";
import type { RowColumns } from "../../lib/report/page/types.ts";
import { hostAllowed, type Watch, watchRun } from "../../lib/run/watch.ts";
import { CHROMIUM, Pages } from "./chromium.ts";
import { HOSTILE, writeRun } from "./fixture.ts";

let folder: string;
let run: string;
let watch: Watch;
/** The run's own logs, to play them again as if it went on. */
let events: LoggedEvent[];
let index: string[];

const metrics = (): string => path.join(run, "metrics.jsonl");
const list = (): string => path.join(run, "trajectories", "index.jsonl");

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tokenring-watch-"));
  run = path.join(folder, "run");
  await writeRun(run, 1, { hostile: true });
  const lines = async (file: string): Promise<string[]> => (await readFile(file, "utf8")).trim().split("\n");
  events = (await lines(metrics())).map((line) => JSON.parse(line) as LoggedEvent);
  index = await lines(list());
});
afterAll(() => rm(folder, { recursive: true }));

beforeEach(async () => {
  // The run stands in the middle of stage1.
  await truncate(metrics(), 0);
  await truncate(list(), 0);
  await appendFile(
    metrics(),
    events
      .slice(0, middle())
      .map((event) => `${JSON.stringify(event)}\n`)
      .join(""),
  );
  await appendFile(
    list(),
    index
      .slice(0, 12)
      .map((line) => `${line}\n`)
      .join(""),
  );
  watch = await watchRun(run, { port: 0, pollMs: 20 });
});
afterEach(() => watch[Symbol.asyncDispose]());

/** For a machine that is busy. */
const PATIENT = { timeout: 30_000, interval: 50 };

const middle = (): number => events.findIndex((event) => event.type === "iteration" && event.iteration === 3);

/** A request with headers that fetch would not send. */
function ask(
  url: string,
  options: { host?: string; method?: string } = {},
): Promise<{ status: number; headers: Record<string, unknown>; body: string }> {
  return new Promise((resolve, reject) => {
    const headers = options.host === undefined ? {} : { host: options.host };
    const asked = request(url, { method: options.method ?? "GET", headers }, (response) => {
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        body += chunk;
      });
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body }),
      );
    });
    asked.on("error", reject);
    asked.end();
  });
}

describe("the server", () => {
  test("answers for addresses, localhost and its own name, and for no name that was made to point here", async () => {
    expect(
      ["127.0.0.1:1", "localhost", "LOCALHOST:8642", "[::1]:3", "192.168.0.7:80", "box:1"].map((one) =>
        hostAllowed(one, "box"),
      ),
    ).toEqual(new Array(6).fill(true));
    for (const host of [
      undefined,
      "",
      "evil.example",
      "localhost.evil.example:8642",
      "127.0.0.1.nip.example",
    ])
      expect(hostAllowed(host, "127.0.0.1")).toBe(false);
    expect(await ask(watch.url, { host: "evil.example" })).toMatchObject({ status: 403 });
    expect((await ask(`${watch.url}rows`, { host: "evil.example:8642" })).body).not.toContain("tinyswe");
  });

  test("only reads, and frames, caches and foreign pages are kept out", async () => {
    const page = await ask(watch.url);
    expect(page).toMatchObject({
      status: 200,
      headers: {
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
      },
    });
    expect(page.headers["content-security-policy"]).toMatch(
      /default-src 'none'.*connect-src 'self'.*frame-ancestors 'none'/,
    );
    expect(page.headers["access-control-allow-origin"]).toBeUndefined();
    for (const method of ["POST", "PUT", "DELETE"])
      expect(await ask(watch.url, { method })).toMatchObject({ status: 405 });
    for (const nothing of [
      "../run.json",
      "run.json",
      "episode?row=99999",
      "episode?row=-1",
      "episode",
      "section?id=__proto__",
    ])
      expect(await ask(watch.url + nothing)).toMatchObject({ status: 404 });
  });

  test("gives the list from any row on, with the same names", async () => {
    const all = JSON.parse((await ask(`${watch.url}rows`)).body) as RowColumns;
    const some = JSON.parse((await ask(`${watch.url}rows?from=7`)).body) as RowColumns;
    expect(all.run).toHaveLength(12);
    for (const key of ["instance", "stage", "rollout", "clipped"] as const)
      expect(some[key]).toEqual(all[key].slice(7));
    expect(some.instances).toEqual(all.instances);
  });

  test("says what is wrong with a port that is taken, and writes nothing into the run", async () => {
    const { port } = new URL(watch.url);
    await expect(watchRun(run, { port: Number(port) })).rejects.toMatchObject({
      code: "ERR_TOKENRING_INVALID_ARGUMENT",
      message: `127.0.0.1:${port}: something else listens there; give another --port`,
    });
    await expect(watchRun(folder, { port: 0 })).rejects.toMatchObject({
      code: "ERR_TOKENRING_RUN_DIRECTORY",
    });
    await expect(stat(path.join(run, "lock"))).rejects.toMatchObject({ code: "ENOENT" });
  });
});

test("a run goes on while its process lives, and has stopped when that was killed and left its lock behind", async () => {
  const state = async (): Promise<string | undefined> =>
    /tokenring_run_status\{status="(\w+)",run="run"\} 1$/m.exec((await ask(`${watch.url}metrics`)).body)?.[1];
  const lock = path.join(run, "lock");
  const worker = spawn("sleep", ["600"]);
  try {
    await writeFile(lock, JSON.stringify({ pid: worker.pid, host: hostname(), started: null }));
    await expect.poll(state, PATIENT).toBe("running");
    worker.kill("SIGKILL");
    await once(worker, "exit");
    await expect.poll(state, PATIENT).toBe("stopped");
    // Of another host's processes nobody here can know.
    await writeFile(lock, JSON.stringify({ pid: worker.pid, host: "elsewhere", started: null }));
    await expect.poll(state, PATIENT).toBe("running");
  } finally {
    worker.kill("SIGKILL");
    await rm(lock);
  }
  await expect.poll(state, PATIENT).toBe("stopped");
});

describe.runIf(CHROMIUM !== undefined)("the page of a run that goes on", () => {
  let pages: Pages;
  beforeAll(async () => {
    pages = await Pages.start();
  });
  afterEach(() => pages.close());
  afterAll(() => pages[Symbol.asyncDispose]());

  const open = async (hash = ""): Promise<Page> => {
    const page = await pages.open(watch.url + hash, {}, watch.url);
    await page.locator("#live.on, #live.done").waitFor();
    return page;
  };
  const append = (file: string, lines: readonly unknown[]): Promise<void> =>
    appendFile(
      file,
      lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join(""),
    );
  const labels = (page: Page): Promise<number> =>
    page.evaluate(
      "JSON.parse(document.querySelector('#run0-rl svg[data-points]')?.dataset.points ?? '{\"labels\":[]}').labels.length",
    ) as Promise<number>;

  test("curves grow, and what is read stays where it is", async () => {
    const page = await open();
    expect(await page.locator("#live").textContent()).toBe("stopped");
    expect(await labels(page)).toBe(3);
    await page.locator("#run0-config summary").click();
    await page.evaluate("window.scrollTo(0, 500); window.kept = document.querySelector('#run0-stages')");
    await append(metrics(), events.slice(middle(), middle() + 1));
    await expect.poll(() => labels(page), PATIENT).toBe(4);
    expect(await page.evaluate("scrollY")).toBe(500);
    // What did not change was not touched.
    expect(await page.evaluate("window.kept.isConnected")).toBe(true);
    expect(await page.locator("#run0-config details").getAttribute("open")).toBe("");
    await append(metrics(), events.slice(middle() + 1));
    await page.locator("#live.done", { hasText: "the run has ended" }).waitFor();
    await page.locator('tr[data-stage="stage2"]').waitFor();
    expect(pages.noise).toEqual([]);
  });

  test("new episodes come to the list while one is being read", async () => {
    const page = await open("#/e/");
    await page.locator(".slab .t").first().waitFor();
    const title = await page.locator(".head h2").textContent();
    expect(await page.locator(".total").textContent()).toBe("12 of 12 episodes");
    await append(list(), index.slice(12, 30));
    await page.locator(".total", { hasText: "30 of 30 episodes" }).waitFor();
    expect(await page.locator("#episode-count").textContent()).toBe("30");
    expect(await page.locator(".head h2").textContent()).toBe(title);
    const newest = JSON.parse(index[29] as string) as { instanceId: string };
    expect(newest.instanceId).toContain(HOSTILE);
    expect(await page.locator(".row b").first().textContent()).toBe(newest.instanceId);
    await page.locator(".row").first().click();
    await page.locator(".row[aria-selected=true]", { hasText: newest.instanceId }).first().waitFor();
    await page.locator(".slab .t").first().waitFor();
    expect(await page.locator(".block.patch").textContent()).toBe(HOSTILE);
    expect(await page.title()).toBe("run – tokenring");
    expect(pages.noise).toEqual([]);
  });

  test("a run whose logs were cut, because work is done again, is read anew", async () => {
    const page = await open();
    expect(await labels(page)).toBe(3);
    await page.evaluate("window.before = true");
    await truncate(metrics(), 0);
    await append(metrics(), events.slice(0, middle() - 4));
    await expect.poll(() => labels(page), PATIENT).toBe(2);
    expect(await page.evaluate("window.before")).toBeUndefined();
    expect(pages.noise).toEqual([]);
  });
});
