// A headless browser for the tests of pages; it writes down all that a page says and asks for.
import { existsSync } from "node:fs";
import { type Browser, chromium, type Page } from "playwright-core";

export const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  existsSync,
);

export interface Window {
  width?: number;
  dark?: boolean;
}

/** Pages of one test file. */
export class Pages implements AsyncDisposable {
  readonly #browser: Browser;
  /** Console messages, errors, refusals and requests of every page, but for what it may ask for. */
  readonly noise: string[] = [];

  private constructor(browser: Browser) {
    this.#browser = browser;
  }

  static async start(): Promise<Pages> {
    const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
    const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];
    return new Pages(
      await chromium.launch({ executablePath: CHROMIUM as string, args: [...args, ...quiet] }),
    );
  }

  /** Opens `url`; requests below `allowed` are no noise. */
  async open(url: string, window: Window = {}, allowed?: string): Promise<Page> {
    const page = await this.#browser.newPage({
      viewport: { width: window.width ?? 1280, height: 800 },
      colorScheme: window.dark ? "dark" : "light",
    });
    const [bare = ""] = url.split("#");
    page.on("console", (message) => this.noise.push(`console: ${message.text()}`));
    page.on("pageerror", (error) => this.noise.push(`error: ${error.message}`));
    page.on("dialog", (dialog) => this.noise.push(`dialog: ${dialog.message()}`));
    page.on("request", (request) => {
      const asked = request.url().split("#")[0] as string;
      if (asked === bare || asked === "data:," || (allowed && asked.startsWith(allowed))) return;
      this.noise.push(`request: ${asked}`);
    });
    await page.goto(url);
    return page;
  }

  /** Closes all pages that are open. */
  async close(): Promise<void> {
    await Promise.all(this.#browser.contexts().map((context) => context.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close();
  }
}
