/**
 * In headless Chromium: the core in a service worker, without a server and without Node's modules, the pages that are for
 * people, and the examples.
 *
 * @module
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as module from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { application as stream } from "../examples/stream.ts";
import { type Application, errorPage, files, mount } from "../mod.ts";
import { Browser, NO_BROWSER, type Page } from "./browser_support.ts";
import { addressOf, bytes, Child, hello, ok, RUNTIME, start } from "./support.ts";

const SOURCES = ["mod.ts", "server.ts", "middleware.ts"];

// The application in the service worker: every path below /app/ is its own.
const WORKER = `
import { accessLog, conditional, cors, errorPage, fromFetch, mount, pipeline, requestId, toFetch } from "./mod.ts";

const encoder = new TextEncoder();
let taken = 0;
let wake = () => {};
addEventListener("message", () => {
  taken++;
  wake();
});
/** Waits until the page has so many chunks. */
const untilTaken = async (count) => {
  while (taken < count) await new Promise((resolve) => wake = resolve);
};
const log = [];
const plain = (startResponse, status = "200 OK") => startResponse(status, [["Content-Type", "text/plain"]]);
const stream = async function* (environ, startResponse) {
  plain(startResponse);
  taken = 0;
  for (const [index, chunk] of ["one ", "two ", "three"].entries()) {
    yield encoder.encode(chunk);
    await untilTaken(index + 1);
  }
};
const failing = async function* (environ, startResponse) {
  plain(startResponse);
  taken = 0;
  yield encoder.encode("one ");
  await untilTaken(1);
  throw new Error("This stream fails");
};
const echo = async (environ, startResponse) => {
  plain(startResponse);
  return [await environ["wsgi.input"].read()];
};
const page = (environ, startResponse) => (plain(startResponse), [encoder.encode("whole")]);
const logs = (environ, startResponse) => (plain(startResponse), [encoder.encode(log.join("\\n"))]);
const wrong = () => {
  throw Object.assign(new Error("Gone"), { status: 410 });
};
const fetched = fromFetch((request) => new Response(new URL(request.url).pathname));

const app = pipeline(
  mount({ "/stream": stream, "/failing": failing, "/echo": echo, "/page": page, "/log": logs, "/wrong": wrong, "/fetched": fetched }),
  (app) => accessLog(app, { write: (line) => log.push(line) }),
  errorPage,
  requestId,
  cors,
  conditional,
);
const handler = toFetch(app, { scriptName: "/app" });

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  if (!new URL(event.request.url).pathname.startsWith("/app/")) return;
  event.respondWith(handler(event.request, { waitUntil: (work) => event.waitUntil(work) }));
});
`;

const PAGE = `<!doctype html><title>A page with a service worker</title><script>
window.ready = navigator.serviceWorker.register("/worker.js", { type: "module" }).then(() => new Promise((resolve) => {
  if (navigator.serviceWorker.controller) resolve();
  else navigator.serviceWorker.oncontrollerchange = resolve;
}));
const decoder = new TextDecoder();
async function ask(path, init) {
  const response = await fetch("/app/" + path, init);
  const chunks = [];
  let failure = "";
  try {
    for await (const chunk of response.body ?? []) {
      chunks.push(decoder.decode(chunk));
      navigator.serviceWorker.controller.postMessage("taken");
    }
  } catch (error) {
    failure = error.name;
  }
  return { status: response.status, chunks, failure, tag: response.headers.get("ETag") };
}
</script>`;

/** Takes the types out of a source, by what the runtime has for it. */
function stripTypes(source: string): string {
  const { Bun } = globalThis as {
    Bun?: { Transpiler: new (options: object) => { transformSync(code: string): string } };
  };
  if (Bun) return new Bun.Transpiler({ loader: "ts" }).transformSync(source);
  return (module as { stripTypeScriptTypes?(code: string): string }).stripTypeScriptTypes!(source);
}

/** Serves the page, the service worker and the sources that it imports. */
const site: Application = ({ PATH_INFO: path }, startResponse) => {
  const name = path.slice(1);
  if (path === "/") {
    startResponse("200 OK", [["Content-Type", "text/html"]]);
    return [bytes(PAGE)];
  }
  if (path !== "/worker.js" && !SOURCES.includes(name)) {
    ok(startResponse);
    return [bytes("from the server")];
  }
  startResponse("200 OK", [["Content-Type", "text/javascript"]]);
  return [
    bytes(path === "/worker.js" ? WORKER : stripTypes(readFileSync(new URL(`../${name}`, import.meta.url), "utf8"))),
  ];
};

interface Asked {
  status: number;
  chunks: string[];
  failure: string;
  tag: string | null;
}

test("an application answers pages from a service worker", { skip: NO_BROWSER }, async (context) => {
  await using server = start(site);
  await using browser = new Browser();
  const page = await browser.open(addressOf(server).replace("localhost", "127.0.0.1"));
  const ask = (path: string, init = "{}") =>
    page.evaluate<Asked>(`ready.then(() => ask(${JSON.stringify(path)}, ${init}))`);

  await context.test("a stream arrives chunk by chunk", async () => {
    const { status, chunks, failure } = await ask("stream");
    assert.deepEqual({ status, chunks, failure }, { status: 200, chunks: ["one ", "two ", "three"], failure: "" });
  });
  await context.test("a stream that fails does not look complete", async () => {
    const { chunks, failure } = await ask("failing");
    assert.deepEqual(chunks, ["one "]);
    assert.notEqual(failure, "");
  });
  await context.test("a body is read", async () => {
    assert.deepEqual((await ask("echo", '{ method: "POST", body: "a form" }')).chunks, ["a form"]);
  });
  await context.test("a whole response has an ETag, which is answered with 304", async () => {
    const { chunks, tag } = await ask("page");
    assert.deepEqual(chunks, ["whole"]);
    const init = JSON.stringify({ headers: { "If-None-Match": tag }, cache: "no-store" });
    assert.equal((await ask("page", init)).status, 304);
  });
  await context.test("an error has its page", async () => {
    const { status, chunks } = await ask("wrong");
    assert.deepEqual({ status, chunks }, { status: 410, chunks: ["410 Gone\n"] });
  });
  await context.test("a Fetch handler is mounted", async () => {
    assert.deepEqual((await ask("fetched/page")).chunks, ["/page"]);
  });
  await context.test("requests are logged", async () => {
    assert.match((await ask("log")).chunks.join(""), /"GET \/app\/stream HTTP\/1\.1" 200 13 /);
  });
  await context.test("what is not the application's goes to the server", async () => {
    assert.equal(await page.evaluate('fetch("/other").then((response) => response.text())'), "from the server");
  });
});

/** What a page looks like. */
interface Look {
  /** The elements that are wider than their place. */
  wide: string[];
  /** The least contrast of a text. */
  contrast: number;
  isLight: boolean;
}

const LOOK = `(() => {
  const { clientWidth } = document.documentElement;
  const elements = [document.documentElement, ...document.body.querySelectorAll("*")];
  const isInline = (element) => getComputedStyle(element).display === "inline";
  const overflows = (element) => !isInline(element) && element.scrollWidth > element.clientWidth;
  const leaves = (element) => element.getBoundingClientRect().right > clientWidth + 0.5;
  const wide = elements.filter((element) => overflows(element) || leaves(element));
  // WCAG 2.2: relative luminance, contrast ratio
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const luminance = (color) => {
    const [red, green, blue] = color.match(/[\\d.]+/g).map((part) => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const canvas = document.body.appendChild(document.createElement("div"));
  canvas.style.background = "Canvas";
  const background = luminance(getComputedStyle(canvas).backgroundColor);
  canvas.remove();
  const contrasts = elements.map((element) => luminance(getComputedStyle(element).color)).map((text) =>
    (Math.max(text, background) + 0.05) / (Math.min(text, background) + 0.05)
  );
  return { wide: wide.map((element) => element.outerHTML.slice(0, 80)), contrast: Math.min(...contrasts), isLight: background > 0.5 };
})()`;

const FOLDER = mkdtempSync(join(tmpdir(), "wsgi-page-"));
after(() => rmSync(FOLDER, { recursive: true }));
for (const name of ["a".repeat(250), "two  spaces", "new\nline", "file10", "日本語"]) {
  writeFileSync(join(FOLDER, name), "");
}
mkdirSync(join(FOLDER, "sub"));

const LONG = "x".repeat(1000);

/** Fails, with text that is hard to place. */
const failingAtLength: Application = (environ) => {
  environ[environ.PATH_INFO === "/" ? "test" : LONG] = LONG;
  throw new Error(LONG, { cause: new TypeError("the cause", { cause: LONG }) });
};

test("the pages that are for people", { skip: NO_BROWSER }, async (context) => {
  const fallback = errorPage(failingAtLength, { development: true });
  await using server = start(mount({ "/files": files(FOLDER, { listing: true }), "/": fallback }));
  await using browser = new Browser();
  const page = await browser.open(addressOf(server));
  const show = (width: number, scheme = "light") =>
    Promise.all([
      page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] }),
      page.send("Emulation.setDeviceMetricsOverride", {
        width,
        height: 800,
        deviceScaleFactor: 1,
        mobile: width < 500,
      }),
    ]);

  for (const [what, path] of [["a listing", "/files/"], ["the error page", `/${LONG}`]] as const) {
    for (const scheme of ["light", "dark"]) {
      for (const width of [1280, 360]) {
        await context.test(`${what} is readable and fits a screen that is ${scheme} and ${width} wide`, async () => {
          await page.goTo(addressOf(server, path));
          await show(width, scheme);
          const { wide, contrast, isLight } = await page.evaluate<Look>(LOOK);
          assert.deepEqual({ wide, isLight }, { wide: [], isLight: scheme === "light" });
          assert.ok(contrast >= 4.5, `the contrast of a text is ${contrast}`);
        });
      }
    }
  }
  await context.test("a listing gives a name the whole width of a narrow screen", async () => {
    await page.goTo(addressOf(server, "/files/"));
    await show(360);
    const [name, table] = await page.evaluate<number[]>(
      `["td", "table"].map((selector) => document.querySelector(selector).getBoundingClientRect().width)`,
    );
    assert.equal(name, table);
  });
  await context.test("the links of a listing lead up, down and to a file", async () => {
    writeFileSync(join(FOLDER, "sub/100% #1?.txt"), "the file");
    await page.goTo(addressOf(server, "/files/"));
    for (const name of ["sub/", "../", "sub/", "100% #1?.txt"]) {
      const link = `[...document.links].find((link) => link.text === ${JSON.stringify(name)})`;
      await page.goTo(await page.evaluate<string>(`${link}.href`));
    }
    assert.equal(await page.evaluate("document.body.innerText"), "the file");
  });
  await context.test("the error page has each name of the environ on one line where there is room", async () => {
    await page.goTo(addressOf(server));
    await show(1280);
    const names = await page.evaluate<[name: string, lines: number][]>(`
      [...document.querySelectorAll(".environ th")].map((th) => {
        const range = document.createRange();
        range.selectNodeContents(th);
        return [th.textContent, new Set([...range.getClientRects()].map(({ top }) => top)).size];
      })
    `);
    assert.ok(names.some(([name]) => name === "HTTP_UPGRADE_INSECURE_REQUESTS"));
    assert.deepEqual(names.filter(([, lines]) => lines !== 1).map(([name]) => name), []);
  });
});

// #region Examples

/** Runs an example as the README says, opens its page, and calls a test with it. */
async function onExample(name: string, path: string, look: (page: Page) => Promise<void>): Promise<void> {
  const program = fileURLToPath(new URL(`../examples/${name}`, import.meta.url));
  const flags = RUNTIME === "deno" ? ["--no-prompt", "--allow-net"] : [];
  await using child = new Child(process.execPath, ["run", ...flags, program]);
  const [, url] = await child.until(/^Serving on (http:\/\/localhost:8000\/) /m);
  await using browser = new Browser();
  await look(await browser.open(url + path));
}

/** The text of a page. */
function textOf(page: Page): Promise<string> {
  return page.evaluate<string>("document.body.innerText");
}

test("environ.ts shows a browser its variables, each on a line", { skip: NO_BROWSER }, async () => {
  await onExample("environ.ts", "path?a=b", async (page) => {
    const lines = (await textOf(page)).trimEnd().split("\n");
    assert.deepEqual(lines, lines.toSorted());
    for (const line of ["HTTP_HOST: localhost:8000", "PATH_INFO: /path", "QUERY_STRING: a=b"]) {
      assert.ok(lines.includes(line), lines.join("\n"));
    }
    assert.match(lines.join("\n"), /^HTTP_USER_AGENT: .*Chrome/m);
  });
});

test("reverse.ts shows a browser the variables reversed", { skip: NO_BROWSER }, async () => {
  await onExample("reverse.ts", "path", async (page) => {
    const lines = [...(await textOf(page)).trim()].toReversed().join("").split("\n");
    assert.ok(lines.includes("PATH_INFO: /path"), lines.join("\n"));
    assert.deepEqual(lines, lines.toSorted());
  });
});

test("stream.ts sends an EventSource its events, one after the other", { skip: NO_BROWSER }, async () => {
  const { log } = console;
  console.log = () => {};
  try {
    await using server = start((environ, startResponse) =>
      (environ.PATH_INFO === "/events" ? stream : hello)(environ, startResponse)
    );
    await using browser = new Browser();
    const page = await browser.open(addressOf(server));
    const events = await page.evaluate<[id: string, data: string][]>(`new Promise((resolve) => {
      const events = [];
      const source = new EventSource("/events");
      source.onmessage = ({ lastEventId, data }) => {
        if (events.push([lastEventId, data]) < 2) return;
        source.close();
        resolve(events);
      };
    })`);
    assert.deepEqual(events.map(([id]) => id), ["1", "2"]);
    for (const [_id, data] of events) assert.equal(new Date(data).toISOString(), data);
  } finally {
    console.log = log;
  }
});

test("upload.ts hashes what a page sends by fetch()", { skip: NO_BROWSER }, async () => {
  await onExample("upload.ts", "", async (page) => {
    const script =
      'fetch("/", { method: "PUT", body: new Uint8Array(1e6).fill(7) }).then((response) => response.text())';
    const hash = createHash("sha256").update(new Uint8Array(1e6).fill(7)).digest("hex");
    assert.equal(await page.evaluate(script), `${hash}  1000000 bytes\n`);
  });
});

test("framework.ts can be clicked through", { skip: NO_BROWSER }, async (context) => {
  await onExample("framework.ts", "", async (page) => {
    const home = await page.evaluate<string>("location.href");

    await context.test("its form leaves a message, and ends on the page that shows it", async () => {
      await page.evaluate("document.querySelector('input').value = '<b>né'");
      await page.click("button");
      assert.equal(await page.evaluate("location.href"), home);
      assert.match(await textOf(page), /^<b>né$/m);
    });
    for (
      const [link, found] of [
        ["/hello/you", /^Hello you!\s+← Back$/],
        ["/users/7", /^\{"id":"7","name":"Ada"\}/],
        ["/users/8", /404 Not Found[^]*No user 8/],
        ["/count", /^1\n2\n3$/],
        ["/failure", /500 Internal Server Error[^]*SyntaxError[^]*framework\.ts/],
      ] as const
    ) {
      await context.test(`its link to ${link} leads there`, async () => {
        await page.goTo(home);
        await page.click(`a[href="${link}"]`);
        assert.equal(await page.evaluate("location.pathname"), link);
        assert.match((await textOf(page)).trim(), found);
      });
    }
    for (const scheme of ["light", "dark"]) {
      await context.test(`its page fits a phone, and is ${scheme} where the browser is`, async () => {
        await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
        const size = { width: 320, height: 640, deviceScaleFactor: 1, mobile: true };
        await page.send("Emulation.setDeviceMetricsOverride", size);
        await page.goTo(home);
        assert.equal(await page.evaluate("document.documentElement.scrollWidth"), 320);
        const canvas =
          "getComputedStyle(document.documentElement).colorScheme + matchMedia('(prefers-color-scheme: dark)').matches";
        assert.equal(await page.evaluate(canvas), `light dark${scheme === "dark"}`);
      });
    }
  });
});

// #endregion
