/**
 * The blog on a server, with workers, as main.ts serves it, and in headless Chromium.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Application, mount, toFetch } from "../../mod.ts";
import { Browser, NO_BROWSER, type Page } from "../../tests/browser_support.ts";
import {
  addressOf,
  Child,
  Client as Connection,
  RUNTIME,
  startPatient,
  within,
  workspace,
} from "../../tests/support.ts";
import { blog } from "./app.ts";
import { Client, readEvents } from "./client.ts";

const { newPath, program } = workspace();

const PASSWORD = "a long password";

/** A blog of its own, in a folder of its own. */
function makeBlog(folder = newPath("")): Application {
  return blog({ folder, secret: "a secret for tests" });
}

// #region On a server

test("an upload whose client leaves leaves no file", async () => {
  const folder = newPath("");
  const app = makeBlog(folder);
  const uploads = () => readdirSync(join(folder, "uploads"));
  const client = new Client(toFetch(app));
  await client.submit("/register", { name: "Ada", password: PASSWORD });
  await using server = startPatient(app);
  const connection = await Connection.connect(server);
  await connection.send(
    [
      "POST /create HTTP/1.1",
      "Host: localhost",
      `Cookie: session=${client.cookies.get("session")}`,
      "Content-Type: multipart/form-data; boundary=b",
      "Content-Length: 900",
      "",
      `--b\r\nContent-Disposition: form-data; name="token"\r\n\r\n${client.token}`,
      '--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n',
      `GIF89a${"x".repeat(100)}`,
    ].join("\r\n"),
  );
  await within(until(() => uploads().length === 1), "a file");
  connection.leave();
  await within(until(() => uploads().length === 0), "the end of a file");
});

test("a server stops with pages open, and ends their streams", async () => {
  const server = startPatient(makeBlog());
  const pages = await Promise.all([1, 2, 3].map(() => fetch(addressOf(server, "/events"))));
  await server.shutdown();
  for (const page of pages) assert.equal(await page.text(), "retry: 1000\n\n");
  assert.equal(server.errors.text, "");
});

test("with workers, a post that one of them takes is announced on the pages of the other", async () => {
  const folder = newPath("");
  await using child = program(
    `
    import { blog } from ${JSON.stringify(new URL("app.ts", import.meta.url).href)};
    const app = blog({ folder: ${JSON.stringify(folder)}, secret: "a secret for tests" });
    const worker = crypto.randomUUID();
    export const application = (environ, startResponse) =>
      app(environ, (status, headers, error) => startResponse(status, [...headers, ["X-Worker", worker]], error));
    if (import.meta.main) serve(application, { port: 0, onListen, workers: 2 });
    `,
    { flags: ["-A", "--unstable-net"] },
  );
  const { port } = await child.listening();
  const origin = `http://127.0.0.1:${port}`;
  const writers: string[] = [];
  /** Asks over a connection of its own, which either worker may accept. */
  const ask = async (request: Request) => {
    const response = await fetch(new Request(request, { headers: [...request.headers, ["Connection", "close"]] }));
    if (request.method === "POST" && request.url.endsWith("/create")) writers.push(response.headers.get("X-Worker")!);
    return response;
  };
  const pages = new Map<string, ReadableStream<Uint8Array>>();
  const openPages = async () => {
    while (pages.size < 2) {
      const page = await ask(new Request(`${origin}/events`));
      const worker = page.headers.get("X-Worker")!;
      if (pages.has(worker)) await page.body!.cancel();
      else pages.set(worker, page.body!);
    }
  };
  await within(openPages(), "a page of each worker");
  const client = new Client(ask, origin);
  await client.submit("/register", { name: "Ada", password: PASSWORD });
  const write = async () => {
    while (new Set(writers).size < 2) await client.submit("/create", { title: "News", body: "" });
  };
  await within(write(), "a post by each worker");
  const expected = writers.map((_, index) => `/posts/${index + 1} News`);
  for (const page of pages.values()) assert.deepEqual(await readEvents(page, expected.length), expected);
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, 0);
});

test("main.ts serves behind a proxy, for its hosts alone, and stops with pages open", async () => {
  const env = { ...process.env, BLOG_FOLDER: newPath(""), BLOG_HOSTS: "blog.example", PORT: "0" };
  const main = fileURLToPath(new URL("main.ts", import.meta.url));
  await using child = new Child(process.execPath, ["run", ...(RUNTIME === "deno" ? ["-A"] : []), main], env);
  const [, port] = await child.until(/Serving on http:\/\/localhost:(\d+)\//);
  const ask = (path: string, host = "blog.example") => {
    const forwarded = { "X-Forwarded-Host": host, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7" };
    return fetch(`http://127.0.0.1:${port}${path}`, { headers: { Accept: "text/html", ...forwarded } });
  };
  const refused = await ask("/", "evil.example");
  assert.equal(refused.status, 400);
  assert.match(await refused.text(), /^<!doctype html>/);
  assert.equal((await fetch(`http://127.0.0.1:${port}/livez`)).status, 200);
  const { headers, status } = await ask("/login");
  assert.equal(status, 200);
  assert.match(headers.get("Set-Cookie")!, /; Secure/);
  assert.match(headers.get("Strict-Transport-Security")!, /max-age/);
  assert.match(headers.get("Content-Security-Policy")!, /default-src 'none'/);
  assert.match(headers.get("Vary")!, /Cookie, Accept-Encoding/);
  await child.until(new RegExp(`^203\\.0\\.113\\.7 .*"GET /login .* ${headers.get("X-Request-Id")}$`, "m"));
  const page = await ask("/events");
  const started = performance.now();
  child.kill("SIGTERM");
  assert.equal(await page.text(), "retry: 1000\n\n");
  assert.equal((await child.ended()).code, 0);
  assert.ok(performance.now() - started < 5000, "it waits for nothing");
});

// #endregion

// #region In a browser

/** Does something that leads to another page, and waits for that. */
async function follow(page: Page, script: string): Promise<void> {
  await page.evaluate(`window.isOld = true; ${script}`);
  const isNew = () => page.evaluate<boolean>('!window.isOld && document.readyState === "complete"');
  await within(until(() => isNew().catch(() => false)), "another page"); // between two pages there is none
}

/** Fills in the form of a page, and sends it. */
async function fillIn(page: Page, fields: Record<string, string>): Promise<void> {
  for (const [name, value] of Object.entries(fields)) {
    await page.evaluate(`document.querySelector("main [name=${name}]").value = ${JSON.stringify(value)}`);
  }
  await follow(page, 'document.querySelector("main form button").click()');
}

test("in a browser", { skip: NO_BROWSER }, async (context) => {
  await using server = startPatient(mount({ "/blog": makeBlog() }));
  const address = (path: string) => addressOf(server, `/blog${path}`);
  await using browser = new Browser();
  const writer = await browser.open(address("/register"));
  const reader = await browser.open(address("/"));
  const textOf = (page: Page) => page.evaluate<string>("document.body.innerText");
  await writer.send("Emulation.setScriptExecutionDisabled", { value: true });

  await context.test("a visitor registers, without scripts", async () => {
    await fillIn(writer, { name: "Ada", password: PASSWORD });
    assert.match(await textOf(writer), /Welcome, Ada!/);
  });
  await context.test("an author writes with an image, without scripts", async () => {
    await follow(writer, 'document.querySelector("nav a").click()');
    const bytes = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    await writer.evaluate(`
      const transfer = new DataTransfer();
      const bytes = Uint8Array.from(atob("${bytes}"), (character) => character.charCodeAt(0));
      transfer.items.add(new File([bytes], "dot.png"));
      document.querySelector("[type=file]").files = transfer.files;
    `);
    await fillIn(writer, { title: "<img src=x onerror=alert(1)>", body: "Text" });
    assert.match(await textOf(writer), /Your post is online\.\s+<img src=x onerror=alert\(1\)>\s+by Ada/);
    assert.equal(await writer.evaluate('document.querySelector("img").naturalWidth'), 1);
  });
  await context.test("the page of another reader announces the post, as text", async () => {
    const announced = () => reader.evaluate<string>('document.querySelector("#live").innerText');
    await within(until(async () => await announced() !== ""), "an announcement");
    assert.equal(await announced(), "New: <img src=x onerror=alert(1)> by Ada");
    await follow(reader, 'document.querySelector("#live a").click()');
    assert.match(await textOf(reader), /by Ada/);
  });
  await context.test("a page runs no script but the blog's own", async () => {
    await reader.evaluate(`
      const script = document.createElement("script");
      script.textContent = "window.injected = true";
      document.body.append(script);
    `);
    assert.equal(await reader.evaluate("window.injected"), undefined);
  });
  await context.test("an author logs out", async () => {
    await follow(writer, 'document.querySelector("header button").click()');
    assert.match(await textOf(writer), /You have logged out\./);
  });
});

// #endregion

/** Waits until a condition holds. */
async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!await condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}
