/**
 * Headless Chromium, as far as tests need it: pages, and what a script in them returns.
 *
 * @module
 */

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { within } from "./support.ts";

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"];

/** Why there is no browser, or false. */
export const NO_BROWSER: string | false = spawnSync("chromium", ["--version"]).status === 0
  ? false
  : "Chromium is not installed";

/** An answer or an event of the DevTools protocol. */
interface Message {
  id?: number;
  result?: Record<string, unknown>;
  error?: { message: string };
}

/** A browser with a profile of its own, driven by the DevTools protocol. */
export class Browser {
  readonly #process;
  readonly #profile = mkdtempSync(join(tmpdir(), "wsgi-browser-"));
  readonly #socket: Promise<WebSocket>;
  readonly #calls = new Map<number, (message: Message) => void>();
  #lastCall = 0;

  constructor() {
    const flags = [...FLAGS, `--user-data-dir=${this.#profile}`, "about:blank"];
    this.#process = spawn("chromium", flags, { stdio: ["ignore", "ignore", "pipe"] });
    this.#socket = within(this.#connect(), "a browser");
  }

  /** Opens a page, and waits until it is loaded. */
  async open(url: string): Promise<Page> {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId as string);
    await page.goTo(url);
    return page;
  }

  /** Calls a method of the protocol. */
  async send(method: string, params: object = {}, sessionId?: string): Promise<Record<string, unknown>> {
    const socket = await this.#socket;
    const id = ++this.#lastCall;
    const answered = new Promise<Message>((resolve) => this.#calls.set(id, resolve));
    socket.send(JSON.stringify({ id, method, params, ...(sessionId === undefined ? {} : { sessionId }) }));
    const { result, error } = await within(answered, `the answer to ${method}`);
    if (error) throw new Error(`${method}: ${error.message}`);
    return result!;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#process, "exit");
    // Its own end, after that of its processes: one that is killed leaves them for a moment, which still write files.
    await this.send("Browser.close").catch(() => this.#process.kill("SIGKILL"));
    await ended;
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }

  async #connect(): Promise<WebSocket> {
    let text = "";
    for await (const chunk of this.#process.stderr.setEncoding("utf8")) {
      text += chunk;
      const [, url] = /DevTools listening on (ws:\S+)/.exec(text) ?? [];
      if (url === undefined) continue;
      const socket = new WebSocket(url);
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(String(data)) as Message;
        this.#calls.get(message.id ?? 0)?.(message);
      };
      await new Promise((resolve, reject) => {
        socket.onopen = resolve;
        socket.onerror = reject;
      });
      return socket;
    }
    throw new Error(`The browser has ended: ${text}`);
  }
}

/** A page of a browser. */
export class Page {
  readonly #browser: Browser;
  readonly #sessionId: string;

  constructor(browser: Browser, sessionId: string) {
    this.#browser = browser;
    this.#sessionId = sessionId;
  }

  /** Loads a page in place of this one. */
  async goTo(url: string): Promise<void> {
    await this.send("Page.navigate", { url });
    await this.#loaded();
  }

  /** Clicks on the first element that a selector finds, and waits until the page behind it is loaded. */
  async click(selector: string): Promise<void> {
    await this.evaluate(`window.isLeft = true; document.querySelector(${JSON.stringify(selector)}).click()`);
    await this.#loaded();
  }

  async #loaded(): Promise<void> {
    const script = `new Promise((resolve) => {
      const isLoaded = () => location.href !== "about:blank" && !window.isLeft && document.readyState === "complete";
      const look = () => isLoaded() ? resolve() : setTimeout(look, 10);
      look();
    })`;
    await this.evaluate(script).catch(() => this.evaluate(script)); // the first may end with the page that is left
  }

  /** Runs a script in the page, and gives what it or its promise comes to. */
  async evaluate<Value = unknown>(expression: string): Promise<Value> {
    const params = { expression, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", params);
    if (exceptionDetails) throw new Error(`The script has failed: ${JSON.stringify(exceptionDetails)}`);
    return (result as { value: Value }).value;
  }

  send(method: string, params: object = {}): Promise<Record<string, unknown>> {
    return this.#browser.send(method, params, this.#sessionId);
  }
}
