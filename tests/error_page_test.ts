/**
 * `errorPage`: a page in place of a failure.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { inspect } from "node:util";
import { gzipSync } from "node:zlib";
import {
  accessLog,
  type Application,
  type ApplicationLike,
  basicAuth,
  compress,
  conditional,
  cors,
  type Environ,
  errorPage,
  type ErrorPageOptions,
  type ErrorResponse,
  files,
  type HeaderList,
  limitBody,
  limitConcurrency,
  type Middleware,
  mount,
  proxyFix,
  runApplication,
  secureHeaders,
  testEnviron,
  timeout,
  type ToFetchOptions,
  trustedHosts,
  validator,
} from "../mod.ts";
import {
  aborted,
  Closing,
  explode,
  failing,
  giving,
  lacking,
  Log,
  never,
  responding,
  stacked,
  valuesOf,
  whole,
  withStatus,
} from "./middleware_support.ts";
import {
  answer,
  bytes,
  Child,
  Client,
  EMPTY,
  Event,
  exchange,
  HERE,
  ok,
  PLAIN,
  reportsOf,
  request,
  RUNTIME,
  settle,
  start,
  text,
  within,
} from "./support.ts";

interface Page {
  status: number;
  reason: string;
  headers: Headers;
  body: string;
  errors: string;
}

interface Asking {
  accept?: string;
  development?: boolean;
  render?: ErrorPageOptions["render"];
  method?: string;
  path?: string;
  headers?: Record<string, string>;
  options?: ToFetchOptions;
}

/** What an error page answers. */
async function pageOf(app: ApplicationLike, asking: Asking = {}): Promise<Page> {
  const { accept, development = false, render, method = "GET", path = "", options } = asking;
  const headers = { ...asking.headers, ...accept === undefined ? {} : { Accept: accept } };
  let reason = "";
  // A Response does not tell the reason that it was made with.
  const listening: Middleware = (app) => (environ, startResponse) =>
    validator(app)(environ, (status, headers, error) => {
      reason = status.slice(4);
      return startResponse(status, headers, error);
    });
  const { response, errors } = await answer(
    stacked(app, listening, (app) => errorPage(app, { development, render })),
    new Request(`${HERE}${path}`, { method, headers }),
    options,
  );
  const { status } = response;
  return { status, reason, headers: response.headers, body: await response.text(), errors: errors.text };
}

const SECRET = "the-secret-of-the-message";

/** The ways to fail before the first byte. */
const FAILURES: Record<string, (error: unknown) => Application> = {
  "in the call": failing,
  "in the promise": (error) => () => Promise.reject(error),
  "in the call, after startResponse": (error) => (_environ, startResponse) => {
    ok(startResponse, ["X-First", "1"], ["Content-Length", "7"]);
    throw error;
  },
  "in a generator, before startResponse": (error) =>
    function* (): Generator<Uint8Array> {
      yield EMPTY;
      throw error;
    },
  "in a generator, before the first byte": (error) =>
    function* (_environ, startResponse): Generator<Uint8Array> {
      ok(startResponse, ["X-First", "1"], ["Set-Cookie", "first=1"]);
      yield EMPTY;
      throw error;
    },
  "in an asynchronous generator": (error) =>
    async function* (_environ, startResponse): AsyncGenerator<Uint8Array> {
      ok(startResponse, ["X-First", "1"]);
      await settle();
      yield EMPTY;
      throw error;
    },
  "in a stream": (error) =>
    responding("200 OK", [...PLAIN, ["X-First", "1"]], () =>
      new ReadableStream({
        pull: (controller) => controller.error(error),
      })),
};

test("errorPage: a report names the target also where the server has no REQUEST_URI", async () => {
  const environ = lacking({ PATH_INFO: "/a b", QUERY_STRING: "c" }, "REQUEST_URI", "SCRIPT_NAME");
  const { errors } = await runApplication(errorPage(failing(new Error("The reason"))), environ);
  assert.match(errors, /^Application failed on GET \/a%20b\?c: Error: The reason\n/);
});

for (const [name, make] of Object.entries(FAILURES)) {
  test(`errorPage: a failure ${name} is answered with a page, and reported once`, async () => {
    const page = await pageOf(make(new Error(SECRET, { cause: new Error("the cause") })));
    assert.equal(page.status, 500);
    assert.equal(page.body, "500 Internal Server Error\n");
    assert.equal(page.headers.get("X-First"), null);
    assert.equal(page.headers.get("Set-Cookie"), null);
    assert.equal(reportsOf(page.errors), 1);
    assert.match(page.errors, /^Application failed on GET \/: Error: the-secret-of-the-message\n +at /);
    assert.match(page.errors, /Error: the cause\n +at /);
  });

  test(`errorPage: a failure ${name} whose error is undefined or null is answered with a page, too`, async () => {
    for (const error of [undefined, null]) {
      const page = await pageOf(make(error), { development: true });
      assert.equal(page.status, 500);
      assert.equal(page.headers.get("Content-Type"), "text/html; charset=utf-8", String(error));
      assert.equal(reportsOf(page.errors), 1, page.errors);
    }
  });

  test(`errorPage: a failure ${name} that is the client's fault is not reported`, async () => {
    const page = await pageOf(make(withStatus(404)));
    assert.equal(page.status, 404);
    assert.equal(page.body, "404 Not Found\n");
    assert.equal(page.errors, "");
  });
}

test("errorPage: startResponse that refuses what it is given is a failure like any other", async () => {
  const page = await pageOf((_environ, startResponse) => {
    startResponse("200", []);
    return [];
  });
  assert.equal(page.status, 500);
  assert.equal(reportsOf(page.errors), 1);
  assert.match(page.errors, /status "200" has no reason phrase/);
});

for (
  const [name, app] of Object.entries<Application>({
    "in a generator": function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      throw new Error(SECRET);
    },
    "in a promise, after write": async (_environ, startResponse) => {
      await startResponse("200 OK", PLAIN)(bytes("one"));
      throw new Error(SECRET);
    },
    "in a generator, with undefined": function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      throw undefined;
    },
  })
) {
  test(`errorPage: once bytes have left, the connection is aborted, and there is no page: ${name}`, async () => {
    await using server = start(stacked(app, (app) => errorPage(app, { development: true })));
    const reply = await exchange(server, request("/"));
    assert.deepEqual([reply.status, reply.body, reply.complete], [200, "one", false]);
    assert.equal(reportsOf(server.errors.text), 1, server.errors.text);
    if (!name.endsWith("undefined")) assert.match(server.errors.text, /the-secret-of-the-message/);
  });
}

for (
  const [status, title] of [
    [400, "Bad Request"],
    [404, "Not Found"],
    // RFC 9110, sections 15.5.14 and 15.5.21; the first is also what limitBody and the server say.
    [413, "Content Too Large"],
    [422, "Unprocessable Content"],
    [451, "Unavailable For Legal Reasons"],
    [500, "Internal Server Error"],
    [503, "Service Unavailable"],
    [511, "Network Authentication Required"],
  ] as const
) {
  test(`errorPage: an error with the status ${status} is a ${status}`, async () => {
    const { body, errors, reason, ...page } = await pageOf(failing(withStatus(status, SECRET)));
    assert.deepEqual([page.status, reason, body], [status, title, `${status} ${title}\n`]);
    assert.equal(reportsOf(errors), status < 500 ? 0 : 1);
  });
}

for (const status of [499, 599]) {
  test(`errorPage: ${status}, which has no name, is a status all the same`, async () => {
    const page = await pageOf(failing(withStatus(status)));
    assert.equal(page.status, status);
    assert.notEqual(page.reason, "");
  });
}

for (const status of [200, 304, 399, 600, 1000, 404.5, -404, NaN, Infinity, "404", "", null, true, [404], {}]) {
  test(`errorPage: an error with the status ${inspect(status)} is a 500, and reported`, async () => {
    const page = await pageOf(failing(withStatus(status)));
    assert.deepEqual([page.status, page.body], [500, "500 Internal Server Error\n"]);
    assert.equal(reportsOf(page.errors), 1);
  });
}

const reading: Application = async (environ, startResponse) => {
  const body = await environ["wsgi.input"].read();
  ok(startResponse);
  return [body];
};

const CHUNKED = request("/", {
  method: "POST",
  headers: ["Transfer-Encoding: chunked"],
  body: "5\r\n12345\r\n0\r\n\r\n",
});

const TOO_LARGE = "413 Content Too Large\nCannot read the request body: it has more than the 4 bytes allowed\n";

test("errorPage: a body that is too large for the server is a 413, and not reported", async () => {
  await using server = start(stacked(reading, errorPage), { maxBodySize: 4 });
  const reply = await exchange(server, CHUNKED);
  assert.deepEqual([reply.status, reply.body], [413, TOO_LARGE]);
  assert.equal(server.errors.text, "");
});

for (
  const [name, middleware] of Object.entries<Middleware[]>({
    "inside": [errorPage, (app) => limitBody(app, { maxBodySize: 4 })],
    "outside": [(app) => limitBody(app, { maxBodySize: 4 }), errorPage],
  })
) {
  test(`errorPage: a body that is too large for limitBody ${name} is a 413, and not reported`, async () => {
    await using server = start(stacked(reading, ...middleware));
    const reply = await exchange(server, CHUNKED);
    assert.equal(reply.status, 413);
    assert.equal(reply.body, TOO_LARGE);
    assert.equal(server.errors.text, "");
  });
}

/** The message of an error in a chain, by its depth. */
function chain(length: number, depth = 1): Error {
  return new Error(`link ${depth}`, depth < length ? { cause: chain(length, depth + 1) } : {});
}

test("errorPage: a report has all of the causes, each with its stack", async () => {
  const { errors } = await pageOf(failing(chain(5)));
  for (const depth of [1, 2, 3, 4, 5]) assert.match(errors, new RegExp(`Error: link ${depth}\n +at `), `link ${depth}`);
});

for (const type of ["text/html", "application/json", "text/plain"]) {
  test(`errorPage: in development ${type} shows the error, all of its causes and the stack`, async () => {
    const { body, headers } = await pageOf(failing(chain(5)), { accept: type, development: true });
    assert.match(headers.get("Content-Type")!, new RegExp(`^${type}`));
    for (const depth of [1, 2, 3, 4, 5]) assert.match(body, new RegExp(`link ${depth}`));
    assert.match(body, /error_page_test\.ts/);
  });

  test(`errorPage: in production ${type} shows nothing of the error`, async () => {
    for (const status of [undefined, 404, 503]) {
      const error = Object.assign(new TypeError(SECRET, { cause: new Error(SECRET) }), { status, detail: SECRET });
      for (const make of Object.values(FAILURES)) {
        const page = await pageOf(make(error), { accept: type, path: "a-path?a-query" });
        const all = page.body + page.reason + JSON.stringify([...page.headers]);
        assert.doesNotMatch(all, /secret|error_page_test|middleware_support|TypeError|at |a-path|a-query|link/);
      }
    }
  });

  test(`errorPage: to HEAD, ${type} is a head without a body`, async () => {
    const page = await pageOf(failing(new Error("no")), { accept: type, development: true, method: "HEAD" });
    assert.deepEqual([page.status, page.body], [500, ""]);
    assert.match(page.headers.get("Content-Type")!, new RegExp(`^${type}`));
    assert.equal(reportsOf(page.errors), 1);
  });
}

test("errorPage: the page in JSON is an object that says status and title, and in development the detail", async () => {
  const asking = { accept: "application/json" };
  const { body } = await pageOf(failing(withStatus(404)), asking);
  assert.deepEqual(JSON.parse(body), { status: 404, title: "Not Found" });
  const page = await pageOf(failing(withStatus(404, "Article 7")), { ...asking, development: true });
  const { detail, ...others } = JSON.parse(page.body);
  assert.deepEqual(others, { status: 404, title: "Not Found" });
  assert.match(detail, /^Error: Article 7\n/);
});

const BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

for (
  const [accept, inDevelopment, inProduction] of [
    [undefined, "text/html", "text/plain"],
    ["*/*", "text/html", "text/plain"],
    ["", "text/html", "text/plain"],
    [BROWSER, "text/html", "text/html"],
    ["text/html", "text/html", "text/html"],
    ["text/*", "text/html", "text/plain"],
    ["*/*, application/json", "application/json", "application/json"],
    ["application/json", "application/json", "application/json"],
    ["application/*", "application/json", "application/json"],
    ["Application/JSON", "application/json", "application/json"],
    ["application/json, text/plain, */*", "application/json", "application/json"],
    ["application/json;q=0.5, text/plain;q=0.9", "text/plain", "text/plain"],
    ["application/json;q=0.9, text/plain;q=0.5", "application/json", "application/json"],
    ["text/html;q=0, */*;q=0.1", "application/json", "text/plain"],
    ["text/plain;q=0, text/*;q=0.4, application/json;q=0.3", "text/html", "text/html"],
    ["text/*;q=0, application/json;q=0.3", "application/json", "application/json"],
    ["text/plain", "text/plain", "text/plain"],
    ["application/json ; charset=utf-8 ; q=1 , text/*;q=0.1", "application/json", "application/json"],
    ["application/json;q=nonsense, text/plain;q=0.1", "text/plain", "text/plain"],
    ["application/json;q=0.1, text/plain;q=0.5, application/json", "application/json", "application/json"],
    ["application/json, text/plain;q=0.5, application/json;q=0.1", "application/json", "application/json"],
    ['application/x;a=", application/json, ", text/plain;q=0.5', "text/plain", "text/plain"],
    ['application/x;a="\\", application/json;q=0.9, ", text/plain;q=0.5', "text/plain", "text/plain"],
    ['application/x;a=";q=0", application/json;q=0.2, text/plain;q=0.1', "application/json", "application/json"],
    ["application/json;version=2, text/plain;q=0.5", "text/plain", "text/plain"],
    [
      'application/json;profile="a,b;q=0", application/json;q=0.5, text/*;q=0.1',
      "application/json",
      "application/json",
    ],
    ["application/json;q=0.1;version=2, application/json, text/*;q=0.5", "application/json", "application/json"],
    ["application/json;charset=UTF-8, text/*;q=0.5", "application/json", "application/json"],
    ['application/json;charset="utf-8", text/*;q=0.5', "application/json", "application/json"],
    ["application/json;charset=latin1, text/*;q=0.5", "text/html", "text/plain"],
    ["application/json;charset=utf-8;q=0, application/json, text/plain;q=0.5", "text/plain", "text/plain"],
    ["image/png", "text/html", "text/plain"],
    [";;,,q=,/,*", "text/html", "text/plain"],
    ["__proto__, constructor;q=1", "text/html", "text/plain"],
  ] as const
) {
  // With equal weights the server may choose (RFC 9110, section 12.5.1): HTML in development, and else plain text.
  test(`errorPage: Accept ${JSON.stringify(accept)} is answered with ${inDevelopment}, or ${inProduction}`, async () => {
    for (const [development, expected] of [[true, inDevelopment], [false, inProduction]] as const) {
      const asking = { development, ...accept === undefined ? {} : { accept } };
      const { headers, status } = await pageOf(failing(new Error("no")), asking);
      assert.equal(status, 500);
      assert.equal(headers.get("Content-Type")!.split(";")[0], expected);
    }
  });
}

test("errorPage: a page is not kept, depends on Accept, and runs nothing", async () => {
  for (const development of [false, true]) {
    const { headers } = await pageOf(failing(new Error("no")), { development });
    assert.equal(headers.get("Cache-Control"), "no-store");
    assert.equal(headers.get("Vary"), "Accept");
    assert.match(headers.get("Content-Security-Policy")!, /^default-src 'none'/);
    assert.match(headers.get("Content-Type")!, /; charset=utf-8$/);
  }
});

test("errorPage: the page for a developer is light and dark, and fits a small screen", async () => {
  const { body } = await pageOf(failing(new Error("no")), { development: true });
  assert.match(body, /^<!doctype html>/);
  assert.match(body, /color-scheme: light dark/);
  assert.match(body, /<meta name="viewport" content="width=device-width/);
  assert.match(body, /<html lang="en">/);
});

/** The tags of a page. */
function tagsOf(page: string): Set<string> {
  return new Set(page.match(/<[^>]*>?/g));
}

/** The text of a page as a browser shows it. */
function shown(page: string): string {
  const plain = page.replace(/<[^>]*>/g, "");
  return plain.replace(/&#(\d+);/g, (_reference, code) => String.fromCharCode(Number(code)));
}

const XSS = `"><script>alert('&amp;')</script><img src=x onerror=alert(1)>`;

for (
  const [name, { app, asking = {} }] of Object.entries<{ app: Application; asking?: Asking }>({
    "the message": { app: failing(new Error(XSS)) },
    "the name": { app: failing(Object.assign(new Error("no"), { name: XSS })) },
    "the stack": { app: failing(Object.assign(new Error("no"), { stack: XSS })) },
    "the message of a cause": { app: failing(new Error("no", { cause: new Error(XSS) })) },
    "a cause that is text": { app: failing(new Error("no", { cause: XSS })) },
    "what is thrown": { app: failing(XSS) },
    "a property": { app: failing({ [XSS]: XSS }) },
    "the environ": {
      app: (environ) => {
        environ[`test.${XSS}`] = XSS;
        throw new Error("no");
      },
    },
    "the path": {
      app: (environ) => {
        throw new Error(environ.PATH_INFO);
      },
      asking: { path: encodeURIComponent(XSS) },
    },
    "a header": {
      app: (environ) => {
        throw new Error(environ.HTTP_X_TEST);
      },
      asking: { headers: { "X-Test": XSS } },
    },
  })
) {
  test(`errorPage: nothing can be slipped into the page by ${name}`, async () => {
    const harmless = await pageOf(failing(new Error("no", { cause: "a cause" })), { development: true });
    const { body, status } = await pageOf(app, { ...asking, development: true });
    assert.equal(status, 500);
    for (const tag of tagsOf(body)) assert.ok(tagsOf(harmless.body).has(tag), `a foreign tag: ${tag}`);
    assert.doesNotMatch(body, /<script|<img/);
    assert.match(shown(body), /alert\(\\?'&amp;\\?'\)/);
  });
}

test("errorPage: the page for a developer has the environ", async () => {
  const { body } = await pageOf(failing(new Error("no")), { development: true, path: "page?a=1&b=2" });
  const page = shown(body);
  for (const part of ["REQUEST_METHOD", "GET", "PATH_INFO", "/page", "a=1&b=2", "wsgi.input"]) {
    assert.ok(page.includes(part), part);
  }
});

test("errorPage: the page for a developer says which request has failed", async () => {
  const asking = { development: true, path: "users/8?a=<b>", method: "POST" };
  const { body } = await pageOf(failing(withStatus(404)), asking);
  assert.match(body, /<title>404 Not Found: POST \/users\/8\?a=%3Cb%3E<\/title>/);
  assert.match(body, /<p class="request">POST \/users\/8\?a=%3Cb%3E\n<h1>404 Not Found<\/h1>/);
});

test("errorPage: the page says what is left of a request whose variables the application has changed", async () => {
  const { body } = await pageOf((environ) => {
    Object.assign(environ, { REQUEST_METHOD: Symbol("none"), REQUEST_URI: undefined, PATH_INFO: "/日本" });
    throw withStatus(404);
  }, { development: true });
  assert.match(body, /<p class="request">Symbol\(none\) \n/);
});

/** The source that a page shows, with a mark before the line that has failed. */
function sourceOf(page: string): string[] {
  const [, source = ""] = /<table class="source">\n([^]*?)<\/table>/.exec(page) ?? [];
  return [...source.matchAll(/<tr( class="failed")?><th>(\d+)<td>(.*)\n/g)]
    .map(([, failed = "", number, line = ""]) => `${failed && "> "}${number} ${shown(line)}`);
}

test("errorPage: the page for a developer has the source around the line that has thrown, and no other page", async () => {
  const app: Application = () => {
    throw new Error("no"); // <this> is the line
  };
  const lines = readFileSync(new URL(import.meta.url), "utf8").split("\n").map((line, index) => `${index + 1} ${line}`);
  const at = lines.findIndex((line) => line.endsWith("// <this> is the line"));
  lines[at] = `> ${lines[at]}`;
  const { body } = await pageOf(app, { development: true });
  assert.deepEqual(sourceOf(body), lines.slice(at - 4, at + 5));
  assert.match(body, new RegExp(`<p class="dim">.*/tests/error_page_test.ts:${at + 1}\n`));
  assert.doesNotMatch((await pageOf(app)).body, /the line/);
});

test("errorPage: the page dims the frames of the library and of the runtime, and not those of the application", async () => {
  const app: Application = () => {
    throw new Error("no");
  };
  const { body } = await pageOf(app, { development: true });
  const dimmed = body.match(/<span class="dim">.*<\/span>/g) ?? [];
  assert.ok(dimmed.some((frame) => /\/middleware\.ts:/.test(frame)));
  assert.ok(!dimmed.some((frame) => /error_page_test\.ts:/.test(frame)), dimmed.join("\n"));
  assert.doesNotMatch(body.replaceAll(/<span class="dim">.*<\/span>/g, ""), / at .*\/(?:middleware|server)\.ts:/);
});

/** An error that says that it was thrown there. */
function thrownAt(frames: string[], message = "the message"): Error {
  return Object.assign(new Error(message), { stack: [`Error: ${message}`, ...frames].join("\n") });
}

const SOURCES = realpathSync(mkdtempSync(join(tmpdir(), "wsgi-sources-")));
after(() => rmSync(SOURCES, { recursive: true }));
const PLACE = join(SOURCES, "a folder (100%)");
mkdirSync(join(PLACE, "node_modules"), { recursive: true });
for (const name of ["app.ts", "app.env", "node_modules/app.js"]) {
  writeFileSync(join(PLACE, name), `one\n${"two".repeat(500)}\nthree\n`);
}
const FILE = join(PLACE, "app.ts");
const LIBRARY = new URL("../middleware.ts", import.meta.url);

for (
  const [what, frames, expected] of [
    ["a frame of Deno's", [`    at app (${pathToFileURL(FILE)}:3:7)`], "> 3 three"],
    ["a frame of Deno's without a name", [`    at async ${pathToFileURL(FILE)}:1:7`], "> 1 one"],
    ["a frame of Bun's", [`    at app (${FILE}:3:7)`], "> 3 three"],
    ["a frame of Bun's without a name", [`    at ${FILE}:3:7`], "> 3 three"],
    ["a constructor", [`    at new App (${FILE}:1:1)`], "> 1 one"],
    ["a long line", [`    at ${FILE}:2:7`], `> 2 ${"two".repeat(500).slice(0, 500)}`],
    [
      "frames of the runtimes, of the library and of a package, before",
      [
        "    at JSON.parse (<anonymous>)",
        "    at parse (unknown)",
        "    at map (native:1:11)",
        "    at node:internal/timers:5:5",
        "    at run (ext:core/01_core.js:1:1)",
        `    at catching (${LIBRARY}:1:1)`,
        `    at catching (${fileURLToPath(LIBRARY)}:1:1)`,
        `    at ${join(PLACE, "node_modules/app.js")}:1:1`,
        `    at app (${FILE}:3:7)`,
        `    at main (${FILE}:1:7)`,
      ],
      "> 3 three",
    ],
    ["an address on the network, before", ["    at https://test.example/app.ts:1:1", `    at ${FILE}:3:7`], undefined],
    ["a file that is not there", [`    at ${FILE}.mjs:1:1`], undefined],
    ["a file that is no program", [`    at ${join(PLACE, "app.env")}:1:1`], undefined],
    ["a line that is not there", [`    at ${FILE}:9:1`], undefined],
    ["a line 0", [`    at ${FILE}:0:1`], undefined],
    ["no frame", [], undefined],
  ] as [string, string[], string | undefined][]
) {
  test(`errorPage: the source is found by ${what}: ${expected !== undefined}`, async () => {
    const { body, errors } = await pageOf(failing(thrownAt(frames)), { development: true });
    assert.equal(sourceOf(body).find((line) => line.startsWith(">")), expected);
    if (expected === undefined) assert.doesNotMatch(body, />Source</);
    assert.equal(reportsOf(errors), 1);
  });
}

test("errorPage: the page does not dim a frame in a relative path, as workerd has them, or before properties", async () => {
  const frames = ["    at app (src/app.ts:3:7)", "    at app (file:///app.ts:3:7) {"];
  const { body } = await pageOf(failing({ [inspect.custom]: () => frames.join("\n") }), { development: true });
  assert.ok(body.includes(`<pre>${frames.join("\n")}</pre>`), body);
});

test("errorPage: no source is shown by a frame that a client has put into the message", async () => {
  for (const message of [`no\n    at app (${FILE}:3:7)`, `no\n    at ${FILE}:3:7\n    at ${FILE}:3:7`]) {
    const given = await pageOf(failing(thrownAt(["    at node:internal/x:1:1"], message)), { development: true });
    assert.deepEqual(sourceOf(given.body), []);
    const changed = Object.assign(thrownAt(["    at node:internal/x:1:1"], message), { message: "another" });
    assert.deepEqual(sourceOf((await pageOf(failing(changed), { development: true })).body), []);
  }
});

test("errorPage: the source is that of the first cause that has one", async () => {
  const error = Object.assign(thrownAt([]), { cause: thrownAt([`    at ${FILE}:3:7`]) });
  assert.ok(sourceOf((await pageOf(failing(error), { development: true })).body).includes("> 3 three"));
});

test("errorPage: without leave to read, Deno is not made to ask, and the page says what it needs", {
  skip: RUNTIME === "deno" ? false : "only Deno asks before a file is read",
}, async () => {
  const program = `
    import { errorPage, runApplication, testEnviron } from ${
    JSON.stringify(new URL("../mod.ts", import.meta.url).href)
  };
    import fs from "node:fs";
    const { readFileSync } = fs;
    fs.readFileSync = (...given) => (console.log("reads"), readFileSync(...given));
    const app = errorPage(() => { throw new Error("the message"); }, { development: true });
    console.log(new TextDecoder().decode((await runApplication(app, testEnviron())).body));
  `;
  writeFileSync(join(SOURCES, "program.ts"), program);
  for (const [flag, hasSource] of [["--allow-net", false], ["--allow-read", true]] as const) {
    await using child = new Child(process.execPath, ["run", "--quiet", flag, join(SOURCES, "program.ts")]);
    const { code, output, errors } = await child.ended();
    assert.deepEqual([code, errors], [0, ""]);
    assert.match(output, /Error: the message/);
    assert.deepEqual([/^reads$/m.test(output), sourceOf(output).length > 0], [hasSource, hasSource]);
    assert.equal(output.includes("Deno needs the flag --allow-read to show it"), !hasSource);
  }
});

/** An error with one property that cannot be read. */
function guarded(name: string): Error {
  return Object.defineProperty(new Error("guarded"), name, {
    get: () => {
      throw new Error("the getter");
    },
  });
}

function revoked(): object {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
}

const CYCLE = new Error("cyclic");
CYCLE.cause = new Error("between", { cause: CYCLE });

/** What may be thrown, or stand in an environ. */
const ODDITIES: Record<string, unknown> = {
  "text": "the text",
  "empty text": "",
  "null": null,
  "undefined": undefined,
  "zero": 0,
  "a bigint": 10n,
  "a symbol": Symbol("the symbol"),
  "a function": () => {},
  "an object without a prototype": Object.create(null),
  "an object with a null status": { status: null },
  "an error whose status cannot be read": guarded("status"),
  "an error whose cause cannot be read": guarded("cause"),
  "an error whose message cannot be read": guarded("message"),
  "an error whose name cannot be read": guarded("name"),
  "an error whose stack cannot be read": guarded("stack"),
  "an error whose stack is a number": Object.assign(new Error("no"), { stack: 5 }),
  "an error without a stack": Object.assign(new Error("no"), { stack: undefined }),
  "an error whose name is an object": Object.assign(new Error("no"), { name: {} }),
  "an error whose message is a symbol": Object.assign(new Error("no"), { message: Symbol("no") }),
  "an error that cannot be text": Object.assign(new Error("no"), { toString: explode, [Symbol.toPrimitive]: explode }),
  "an error that cannot be inspected": Object.assign(new Error("no"), { [inspect.custom]: explode }),
  "a cause that cannot be inspected": new Error("no", { cause: { [inspect.custom]: explode } }),
  "a cause whose cause cannot be read": new Error("no", { cause: guarded("cause") }),
  "an error that causes itself": CYCLE,
  "a chain of a hundred causes": chain(100),
  "several errors in one": new AggregateError([new Error("one"), "two"], "several"),
  "a proxy that lets nobody in": new Proxy(new Error("no"), {
    get: explode,
    has: explode,
    ownKeys: explode,
    getPrototypeOf: explode,
    getOwnPropertyDescriptor: explode,
  }),
  "a proxy that is revoked": revoked(),
  "a response": new Response("no", { status: 404 }),
  "text with half a character": "\ud800",
};

for (const [name, error] of Object.entries(ODDITIES)) {
  test(`errorPage: whatever is thrown is answered with a page: ${name}`, async () => {
    const expected = name === "a response" ? 404 : 500;
    for (const development of [true, false]) {
      for (const accept of ["text/html", "application/json"]) {
        const page = await pageOf(failing(error), { accept, development });
        assert.equal(page.status, expected);
        // What the server answers by itself is plain text without this header.
        assert.equal(page.headers.get("Cache-Control"), "no-store", "the page is not the server's own");
        assert.match(page.headers.get("Content-Type")!, new RegExp(`^${accept}`));
        assert.equal(reportsOf(page.errors), expected === 500 ? 1 : 0, page.errors);
        if (accept === "application/json") JSON.parse(page.body);
      }
    }
  });

  test(`errorPage: whatever stands in the environ, there is a page: ${name}`, async () => {
    if (error === undefined) return; // which an environ must not have
    const app: Application = (environ) => {
      environ["test.one"] = error;
      environ["test.other"] = error;
      throw new Error("the message");
    };
    const page = await pageOf(app, { development: true });
    assert.match(shown(page.body), /Error: the message/);
    assert.match(page.body, /test\.other/);
    assert.equal(reportsOf(page.errors), 1);
  });
}

test("errorPage: the body that has failed is closed once, after the page", async () => {
  for (const error of [new Error("no"), withStatus(404)]) {
    const closing = new Closing();
    const { body } = await pageOf((_environ, startResponse) => {
      ok(startResponse);
      return closing.body((function* (): Generator<Uint8Array> {
        yield EMPTY;
        throw error;
      })());
    });
    assert.match(body, /^\d{3} /);
    await closing.closed.wait();
    await settle();
    assert.equal(closing.count, 1);
  }
});

for (
  const [name, app] of Object.entries<(waiting: Event) => Application>({
    "with the reason of the signal": (waiting) => async (environ) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      throw environ["fetch.context"]!.signal.reason;
    },
    "with an AbortError of its own, as timers have it": (waiting) => async (environ) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      throw new DOMException("The operation was aborted", "AbortError");
    },
    "in a generator": (waiting) =>
      async function* (environ, startResponse) {
        const left = aborted(environ);
        ok(startResponse);
        waiting.happen();
        await left;
        yield EMPTY;
        throw environ["fetch.context"]!.signal.reason;
      },
  })
) {
  test(`errorPage: a client that leaves is no error, and nothing is reported: ${name}`, async () => {
    const waiting = new Event("an application that waits");
    const log = new Log();
    await using server = start(log.around(app(waiting), errorPage));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await waiting.wait();
    client.leave();
    const { said } = await log.one();
    assert.equal(server.errors.text, "");
    assert.notEqual(said.status, 500);
  });
}

test("errorPage: a client that leaves in the middle of its upload is no error", async () => {
  const reads = new Event("an application that reads");
  const failed = new Event("the end of the reading");
  await using server = start(stacked(async (environ, startResponse) => {
    const body = environ["wsgi.input"].read();
    reads.happen();
    try {
      await body;
    } catch (error) {
      failed.happen();
      throw error;
    }
    ok(startResponse);
    return [];
  }, errorPage));
  const client = await Client.connect(server);
  await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 100\r\n\r\nsome`);
  await reads.wait();
  client.leave();
  await failed.wait();
  await settle();
  assert.equal(server.errors.text, "");
});

test("errorPage: the environ of a request with a body can be shown, and the body is still read", async () => {
  await using server = start(stacked((environ) => {
    environ["test.request"] = environ["fetch.context"]?.request;
    throw new Error("the message");
  }, (app) => errorPage(app, { development: true })));
  const reply = await exchange(server, request("/", { method: "POST", headers: ["Content-Length: 4"], body: "four" }));
  assert.equal(reply.status, 500);
  assert.equal(reply.complete, true);
  assert.match(shown(reply.body), /Error: the message/);
});

test("errorPage passes an array on as it is, since nothing of it can fail any more", () => {
  const body = [bytes("Hello")];
  const app = errorPage((_environ, startResponse) => {
    startResponse("200 OK", PLAIN);
    return body;
  });
  assert.equal(app(testEnviron(), () => () => Promise.resolve()), body);
});

// What an error says for the client

/** An error whose message is for the client. */
function exposed(message: string, properties: object = {}): Error {
  return Object.assign(new Error(message), { status: 404, expose: true, ...properties });
}

test("errorPage: in production the message of an error that may be exposed is on the page", async () => {
  const pages: Record<string, string> = {};
  for (const accept of ["text/plain", "application/json", "text/html"]) {
    pages[accept] = (await pageOf(failing(exposed("Article 7\nis sold")), { accept })).body;
  }
  assert.equal(pages["text/plain"], "404 Not Found\nArticle 7\nis sold\n");
  assert.deepEqual(JSON.parse(pages["application/json"]!), {
    status: 404,
    title: "Not Found",
    detail: "Article 7\nis sold",
  });
  assert.match(pages["text/html"]!, /<h1>404 Not Found<\/h1>\n<p>Article 7\nis sold\n$/);
});

for (
  const [name, error] of Object.entries<unknown>({
    "expose is only truthy": exposed(SECRET, { expose: 1 }),
    "there is no status": exposed(SECRET, { status: undefined }),
    "the status is none of an error": exposed(SECRET, { status: 302 }),
    "the message is empty": exposed(""),
    "the message is no text": exposed("", { message: { toString: () => SECRET } }),
    "expose cannot be read": Object.defineProperty(exposed(SECRET), "expose", { get: explode }),
    "the message cannot be read": Object.defineProperty(exposed(SECRET), "message", { get: explode }),
    "the status cannot be read": Object.defineProperty(exposed(SECRET), "status", { get: explode }),
  })
) {
  test(`errorPage: no message is exposed where ${name}`, async () => {
    for (const accept of ["text/plain", "text/html", "application/json"]) {
      const { body, status } = await pageOf(failing(error), { accept });
      assert.doesNotMatch(body, /secret/);
      if (accept === "application/json") assert.deepEqual(Object.keys(JSON.parse(body)), ["status", "title"]);
      if (accept === "text/plain") assert.match(body, new RegExp(`^${status} [A-Z a-z]+\n$`));
      if (accept === "text/html") assert.match(body, /<\/h1>\n$/);
    }
  });
}

test("errorPage: in production, too, nothing can be slipped into the page by a message", async () => {
  const harmless = await pageOf(failing(exposed("no")), { accept: "text/html" });
  const { body } = await pageOf(failing(exposed(XSS)), { accept: "text/html" });
  assert.deepEqual(tagsOf(body), tagsOf(harmless.body));
  assert.ok(shown(body).includes(XSS));
});

test("errorPage: the page for a visitor is light and dark, fits a small screen, and runs nothing", async () => {
  const { body, headers } = await pageOf(failing(new Error("no")), { accept: "text/html" });
  for (
    const part of [/^<!doctype html>/, /color-scheme: light dark/, /content="width=device-width/, /<html lang="en">/]
  ) {
    assert.match(body, part);
  }
  assert.equal(headers.get("Content-Security-Policy"), "default-src 'none'; style-src 'unsafe-inline'");
});

/** The headers of the page for an error with these. */
async function headersFor(headers: unknown, properties: object = { status: 503 }): Promise<HeaderList> {
  const app = stacked(failing(Object.assign(new Error("no"), { headers }, properties)), errorPage);
  return (await runApplication(app, testEnviron())).headers;
}

test("errorPage: the headers of an error are those of the response", async () => {
  const cookies: HeaderList = [["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]];
  const headers = await headersFor([["Retry-After", "60"], ...cookies, ["Content-Range", "bytes */5"]]);
  assert.deepEqual(valuesOf(headers, "Retry-After"), ["60"]);
  assert.deepEqual(valuesOf(headers, "Set-Cookie"), ["a=1", "b=2"]);
  assert.deepEqual(valuesOf(headers, "Content-Range"), ["bytes */5"]);
});

test("errorPage: the headers of an error come before those of the page, and Vary has both", async () => {
  const headers = await headersFor([["cache-control", "max-age=5"], ["Vary", "Cookie"]]);
  assert.deepEqual(valuesOf(headers, "Cache-Control"), ["max-age=5"]);
  assert.deepEqual(valuesOf(headers, "Vary"), ["Cookie, Accept"]);
});

test("errorPage: of the headers of an error, those of another body or of a connection are left out", async () => {
  const all = ["Content-Type", "content-length", "Content-Encoding", "Transfer-Encoding", "connection", "Upgrade"];
  const headers = await headersFor([...all, "Retry-After"].map((name) => [name, "7"]));
  assert.deepEqual(headers, await headersFor([["Retry-After", "7"]]));
  assert.deepEqual(valuesOf(headers, "Retry-After"), ["7"]);
});

for (
  const [name, headers] of Object.entries<unknown>({
    "an object": { "X-Test": "1" },
    "Headers": new Headers({ "X-Test": "1" }),
    "text": "X-Test: 1",
    "null": null,
    "a list of text": ["X-Test: 1"],
    "a list with a number in it": [["X-Test", 1]],
    "a list with three parts": [["X-Test", "1", "2"]],
    "a line feed in a value": [["X-Test", "1\r\nX-Forged: 1"]],
    "a value that is not Latin-1": [["X-Test", "塩"]],
    "a name that is none": [["X Test", "1"]],
    "a pair that cannot be read": [
      new Proxy(["X-Test", "1"], {
        get: (pair, name) => name === "1" ? explode() : Reflect.get(pair, name),
      }),
    ],
  })
) {
  test(`errorPage: the headers of an error are ignored, and there is a page: ${name}`, async () => {
    assert.deepEqual(await headersFor(headers), await headersFor(undefined));
  });
}

test("errorPage: the headers of an error without a status are not for the client", async () => {
  const headers: HeaderList = [["X-Test", "1"]];
  for (const status of [undefined, 200, "404"]) {
    assert.deepEqual(valuesOf(await headersFor(headers, { status }), "X-Test"), []);
  }
  const error = Object.defineProperty(withStatus(503), "headers", { get: explode });
  assert.equal((await pageOf(failing(error))).body, "503 Service Unavailable\n");
});

// The site's own pages

const RENDERED = "<!doctype html><title>Ours</title>";

test("errorPage: render is given the status line, what was thrown, and the environ", async () => {
  const given: unknown[] = [];
  const error = withStatus(404);
  let environ: Environ | undefined;
  const app = errorPage((inside) => {
    environ = inside;
    throw error;
  }, { render: (...all) => void given.push(...all) });
  await runApplication(app, testEnviron());
  assert.equal(given.length, 3);
  assert.equal(given[0], "404 Not Found");
  assert.equal(given[1], error);
  assert.deepEqual(given[2], environ);
});

for (
  const [accept, expected] of [
    [undefined, "text/html; charset=utf-8"],
    ["*/*", "text/html; charset=utf-8"],
    [BROWSER, "text/html; charset=utf-8"],
    ["application/json, text/plain, */*", "application/json"],
    ["application/json", "application/json"],
    ["application/json, */*;q=0.5", "application/json"],
    ["text/plain", "text/plain; charset=utf-8"],
  ] as const
) {
  test(`errorPage: HTML of render is for clients that accept it: ${expected} for ${accept}`, async () => {
    for (const render of [() => RENDERED, () => Promise.resolve(RENDERED)]) {
      const page = await pageOf(failing(withStatus(404)), { render, ...accept === undefined ? {} : { accept } });
      assert.equal(page.status, 404);
      assert.equal(page.headers.get("Content-Type"), expected);
      assert.equal(page.headers.get("Vary"), "Accept");
      assert.equal(page.headers.get("Cache-Control"), "no-store");
      assert.equal(page.body === RENDERED, expected.startsWith("text/html"));
    }
  });
}

test("errorPage: HTML of render may load what the site has", async () => {
  const { headers } = await pageOf(failing(new Error("no")), { render: () => RENDERED });
  assert.equal(headers.get("Content-Security-Policy"), null);
});

for (const [name, make] of Object.entries(FAILURES)) {
  test(`errorPage: render makes the page for a failure ${name}, whose body is closed once`, async () => {
    for (const isLater of [false, true]) {
      const closing = new Closing();
      const render = (): ErrorResponse | Promise<ErrorResponse> => {
        const response = {
          headers: [["content-type", "application/problem+json"], ["Cache-Control", "max-age=1"]] as const,
          body: closing.body(function* () {
            yield bytes("{");
            yield bytes("}");
          }()),
        };
        return isLater ? settle().then(() => response) : response;
      };
      const page = await pageOf(make(new Error(SECRET)), { render, accept: "text/plain" });
      assert.deepEqual([page.status, page.body], [500, "{}"]);
      assert.equal(page.headers.get("Content-Type"), "application/problem+json");
      assert.equal(page.headers.get("Cache-Control"), "max-age=1");
      assert.equal(page.headers.get("X-First"), null);
      assert.equal(reportsOf(page.errors), 1, page.errors);
      await closing.closed.wait();
      await settle();
      assert.equal(closing.count, 1);
    }
  });
}

test("errorPage: both the body that has failed and that of render are closed once", async () => {
  const [failed, rendered] = [new Closing(), new Closing()];
  const page = await pageOf(giving(() => failed.body(generatedFailure(withStatus(404)))), {
    render: () => ({ headers: PLAIN, body: rendered.body([bytes("ours")]) }),
  });
  assert.equal(page.body, "ours");
  await rendered.closed.wait();
  await settle();
  assert.deepEqual([failed.count, rendered.count], [1, 1]);
});

/** A body that fails before its first byte. */
function* generatedFailure(error: unknown): Generator<Uint8Array> {
  yield EMPTY;
  throw error;
}

for (
  const [name, render] of Object.entries<ErrorPageOptions["render"]>({
    "returns nothing": () => undefined,
    "resolves with nothing": () => Promise.resolve(undefined),
  })
) {
  test(`errorPage: where render ${name}, there is the page of the library`, async () => {
    for (const error of [withStatus(404), new Error("no")]) {
      const { errors, headers, ...page } = await pageOf(failing(error), { render });
      const { errors: _errors, headers: _headers, ...expected } = await pageOf(failing(error));
      assert.deepEqual(page, expected);
      assert.equal(headers.get("Content-Type"), "text/plain; charset=utf-8");
      assert.equal(reportsOf(errors), error === undefined || !("status" in error) ? 1 : 0);
    }
  });
}

/** A render that returns what the compiler would refuse. */
function returning(value: unknown): NonNullable<ErrorPageOptions["render"]> {
  return () => value as ErrorResponse;
}

for (
  const [name, render] of Object.entries<NonNullable<ErrorPageOptions["render"]>>({
    "throws": failing(new Error("The template is gone")) as () => never,
    "throws what it was given": (_status, error) => {
      throw error;
    },
    "throws undefined": failing(undefined) as () => never,
    "rejects": () => Promise.reject(new Error("The template is gone")),
    "returns a number": returning(5),
    "returns no body": returning({ headers: PLAIN }),
    "returns no headers": returning({ body: [bytes("ours")] }),
    "returns text as a body": returning({ headers: PLAIN, body: "ours" }),
    "returns headers as an object": returning({ headers: { "Content-Type": "text/plain" }, body: [] }),
    "returns a header that is none": returning({ headers: [["X Test", "1"]], body: [] }),
    "returns a body that fails before its first byte": () => ({
      headers: PLAIN,
      body: generatedFailure(new Error("The template is gone")),
    }),
    "resolves with what is no response": () => Promise.resolve(5 as unknown as string),
  })
) {
  test(`errorPage: where render ${name}, there is the page of the library, and a report`, async () => {
    for (const make of Object.values(FAILURES)) {
      const page = await pageOf(make(withStatus(404)), { render });
      assert.deepEqual([page.status, page.body], [404, "404 Not Found\n"]);
      assert.equal(reportsOf(page.errors), 1, page.errors);
      assert.match(page.errors, /^Error page failed on GET \/: /);
    }
  });
}

test("errorPage: a body that render returns with wrong headers is closed once", async () => {
  const closing = new Closing();
  const body = closing.body([bytes("ours")]);
  const page = await pageOf(failing(withStatus(404)), { render: () => ({ headers: [["X Test", "1"]], body }) });
  assert.equal(page.body, "404 Not Found\n");
  await settle();
  assert.equal(closing.count, 1);
});

test("errorPage: to HEAD, a page of render is a head without a body, which is closed", async () => {
  const closing = new Closing();
  const body = closing.body([bytes("ours")]);
  const page = await pageOf(failing(withStatus(404)), { render: () => ({ headers: PLAIN, body }), method: "HEAD" });
  assert.deepEqual([page.status, page.body, page.headers.get("Content-Length")], [404, "", "4"]);
  await closing.closed.wait();
});

test("errorPage: once bytes have left, render is not called", async () => {
  let calls = 0;
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    throw new Error(SECRET);
  };
  await using server = start(stacked(app, (app) => errorPage(app, { render: () => `${++calls}` })));
  const reply = await exchange(server, request("/"));
  assert.deepEqual([reply.status, reply.body, reply.complete, calls], [200, "one", false, 0]);
  assert.equal(reportsOf(server.errors.text), 1, server.errors.text);
});

test("errorPage: in development, failures have the page for a developer, and render makes the others", async () => {
  const asking = { development: true, render: () => RENDERED };
  assert.match((await pageOf(failing(new Error(SECRET)), asking)).body, /the-secret/);
  assert.match((await pageOf(failing(withStatus(503)), asking)).body, /Environ/);
  assert.equal((await pageOf(failing(withStatus(404)), asking)).body, RENDERED);
});

for (
  const [name, app] of Object.entries<Application>({
    "in the call": failing(withStatus(404)),
    "in a generator": giving(() => generatedFailure(withStatus(404))),
  })
) {
  test(`errorPage: a client that leaves while a page is made gets none, and all is closed once: ${name}`, async () => {
    const [failed, rendered] = [new Closing(), new Closing()];
    const [waiting, go] = [new Event("a page that is made"), new Event("permission to go on")];
    const render = async (_status: string, _error: unknown, environ: Environ): Promise<ErrorResponse> => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      await go.wait();
      return { headers: PLAIN, body: rendered.body(generatedFailure(new Error(SECRET))) };
    };
    const inner: Application = async (environ, startResponse) => failed.body(await app(environ, startResponse));
    await using server = start(stacked(inner, (app) => errorPage(app, { render })));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await waiting.wait();
    client.leave();
    if (name === "in a generator") await failed.closed.wait();
    await settle();
    go.happen();
    await rendered.closed.wait();
    await settle();
    assert.deepEqual([failed.count, rendered.count], [name === "in a generator" ? 1 : 0, 1]);
    assert.equal(server.errors.text, "");
  });
}

for (const isReturned of [true, false]) {
  test(`errorPage: a body ${isReturned ? "is returned" : "is only closed"} while its page is made`, async () => {
    const [calls, go, rendered] = [[] as string[], new Event("permission to go on"), new Closing()];
    const render = async (): Promise<ErrorResponse> => {
      await go.wait();
      return { headers: PLAIN, body: rendered.body([bytes("ours")]) };
    };
    const app = errorPage((_environ, startResponse) => {
      ok(startResponse);
      const next = () => Promise.reject(withStatus(404));
      const end = () => Promise.resolve({ done: true as const, value: calls.push("return") });
      return { [Symbol.asyncIterator]: () => ({ next, return: end }), close: () => void calls.push("close") };
    }, { render });
    const body = await app(testEnviron(), () => () => Promise.resolve());
    assert.ok(Symbol.asyncIterator in body);
    const chunks = body[Symbol.asyncIterator]();
    const chunk = chunks.next();
    await settle();
    if (isReturned) await chunks.return?.();
    await body.close?.();
    go.happen();
    assert.equal((await chunk).done, true);
    // An iterator that has thrown has ended.
    assert.deepEqual([calls, rendered.count], [["close"], 1]);
  });
}

test("errorPage: a render that fails because the client has left is not reported", async () => {
  const [waiting, failed] = [new Event("a page that is made"), new Event("the failure")];
  const render = async (_status: string, _error: unknown, environ: Environ): Promise<never> => {
    const left = aborted(environ);
    waiting.happen();
    await left;
    failed.happen();
    throw new DOMException("The operation was aborted", "AbortError");
  };
  await using server = start(stacked(failing(withStatus(404)), (app) => errorPage(app, { render })));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await waiting.wait();
  client.leave();
  await failed.wait();
  await settle();
  assert.equal(server.errors.text, "");
});

test("errorPage: a page of render that fails after its first byte is cut off, and reported once, but not the error that it is about", async () => {
  const body = function* (): Generator<Uint8Array> {
    yield bytes("one");
    throw new Error(SECRET);
  };
  const render = () => ({ headers: PLAIN, body: body() });
  await using server = start(stacked(failing(withStatus(404)), (app) => errorPage(app, { render })));
  const reply = await exchange(server, request("/"));
  assert.deepEqual([reply.status, reply.body, reply.complete], [404, "one", false]);
  assert.equal(reportsOf(server.errors.text), 1, server.errors.text);
  assert.match(server.errors.text, /^Application failed on GET \/: Error: the-secret/);
});

// Refusals of other middleware

const FOLDER = new URL(".", import.meta.url);

interface RefusalCase {
  middleware: Middleware;
  environ?: Partial<Environ>;
  body?: string;
  /** The reply where no page stands outside. */
  plain: [status: string, headers: HeaderList, body: string];
  detail?: string;
  message: RegExp;
}

/** Each refusal of a middleware. */
const REFUSALS: Record<string, RefusalCase> = {
  "mount": {
    middleware: (app) => mount({ "/other": app }),
    plain: ["404 Not Found", [], "Not Found\n"],
    message: /^Cannot find "\/"$/,
  },
  "files": {
    middleware: () => files(FOLDER),
    environ: { PATH_INFO: "/missing" },
    plain: ["404 Not Found", [], "Not Found\n"],
    message: /^Cannot find "\/missing"$/,
  },
  "files, for a method": {
    middleware: () => files(FOLDER),
    environ: { REQUEST_METHOD: "PUT" },
    plain: ["405 Method Not Allowed", [["Allow", "GET, HEAD"]], "Method Not Allowed\n"],
    detail: "Cannot PUT a file, expected GET or HEAD",
    message: /^Cannot PUT a file/,
  },
  "proxyFix": {
    middleware: (app) => proxyFix(app, { trust: 1 }),
    environ: { HTTP_X_FORWARDED_PROTO: "gopher" },
    plain: ["400 Bad Request", [], "Bad Request\n"],
    message: /^Cannot read the forwarding headers/,
  },
  "trustedHosts": {
    middleware: (app) => trustedHosts(app, { hosts: ["test.example"] }),
    environ: { HTTP_HOST: "evil.example" },
    plain: ["400 Bad Request", [], "Bad Request\n"],
    message: /^Cannot serve host "evil\.example"$/,
  },
  "basicAuth": {
    middleware: (app) => basicAuth(app, { users: { cook: "salt" } }),
    plain: ["401 Unauthorized", [["WWW-Authenticate", 'Basic realm="Restricted", charset="UTF-8"']], "Unauthorized\n"],
    message: /^Cannot log in to "Restricted"/,
  },
  "basicAuth, later": {
    middleware: (app) => basicAuth(app, { check: () => Promise.resolve(false) }),
    environ: { HTTP_AUTHORIZATION: `Basic ${btoa("cook:pepper")}` },
    plain: ["401 Unauthorized", [["WWW-Authenticate", 'Basic realm="Restricted", charset="UTF-8"']], "Unauthorized\n"],
    message: /^Cannot log in to "Restricted"/,
  },
  "limitBody": {
    middleware: (app) => limitBody(app, { maxBodySize: 4 }),
    environ: { REQUEST_METHOD: "POST", CONTENT_LENGTH: "5" },
    plain: ["413 Content Too Large", [], "Content Too Large\n"],
    detail: "Cannot read the request body: it has more than the 4 bytes allowed",
    message: /more than the 4 bytes/,
  },
  "limitBody, later": {
    middleware: () => limitBody(reading, { maxBodySize: 4 }),
    environ: { CONTENT_LENGTH: "" },
    body: "12345",
    plain: ["413 Content Too Large", [], "Content Too Large\n"],
    detail: "Cannot read the request body: it has more than the 4 bytes allowed",
    message: /more than the 4 bytes/,
  },
  "limitBody, in a generator": {
    middleware: () =>
      limitBody(async function* (environ, startResponse) {
        yield EMPTY;
        yield* await reading(environ, startResponse);
      }, { maxBodySize: 4 }),
    environ: { CONTENT_LENGTH: "" },
    body: "12345",
    plain: ["413 Content Too Large", [], "Content Too Large\n"],
    detail: "Cannot read the request body: it has more than the 4 bytes allowed",
    message: /more than the 4 bytes/,
  },
  "limitConcurrency": {
    middleware: () => {
      const limited = limitConcurrency(() => never(), { max: 1, queue: 0 });
      limited(testEnviron(), () => () => Promise.resolve());
      return limited;
    },
    plain: ["503 Service Unavailable", [["Retry-After", "1"]], "Service Unavailable\n"],
    message: /^Too many requests wait$/,
  },
  "timeout": {
    middleware: () => timeout(() => never(), { milliseconds: 5 }),
    plain: ["504 Gateway Timeout", [], "Gateway Timeout\n"],
    message: /^The response was not started in 5 ms$/,
  },
  "timeout, in a generator": {
    middleware: () =>
      timeout(async function* () {
        await never();
        yield EMPTY;
      }, { milliseconds: 5 }),
    plain: ["504 Gateway Timeout", [], "Gateway Timeout\n"],
    message: /^The response was not started in 5 ms$/,
  },
};

/** The environ of the request that is refused. */
function refusedEnviron({ environ, body }: RefusalCase, variables: Partial<Environ> = {}): Environ {
  return testEnviron({ ...environ, ...variables }, { body });
}

/** What a middleware that refuses answers, inside of others. */
async function refused(refusal: RefusalCase, outside: Middleware[], variables?: Partial<Environ>) {
  const app = stacked(whole("inside"), ...outside, refusal.middleware);
  return await within(runApplication(app, refusedEnviron(refusal, variables)), "an answer");
}

for (const [name, refusal] of Object.entries(REFUSALS)) {
  const [status, headers, body] = refusal.plain;

  test(`${name}: a refusal without a page outside is plain text`, async () => {
    const result = await refused(refusal, []);
    assert.equal(result.status, status);
    assert.deepEqual(result.headers, [["Content-Type", "text/plain; charset=utf-8"], ...headers]);
    assert.equal(text(result.body), body);
  });

  test(`${name}: a refusal is a page of the errorPage outside, and is no failure`, async () => {
    for (const development of [false, true]) {
      const page = (app: ApplicationLike) => errorPage(app, { development });
      const result = await refused(refusal, [page], { HTTP_ACCEPT: "application/json" });
      assert.equal(result.status, status);
      for (const [name, value] of headers) assert.deepEqual(valuesOf(result.headers, name), [value]);
      assert.deepEqual(valuesOf(result.headers, "Content-Type"), ["application/json"]);
      const { detail, ...others } = JSON.parse(text(result.body));
      assert.deepEqual(others, { status: Number(status.slice(0, 3)), title: status.slice(4) });
      if (development) assert.match(detail, /Error/);
      else assert.equal(detail, refusal.detail);
      assert.equal(reportsOf(result.errors), 0, result.errors);
    }
  });

  test(`${name}: the page for a refusal passes through the middleware between, as any response`, async () => {
    for (const render of [() => RENDERED, () => settle().then(() => RENDERED)]) {
      const lines: string[] = [];
      const result = await refused(refusal, [
        (app) => errorPage(app, { render }),
        cors,
        secureHeaders,
        conditional,
        compress,
        (app) => accessLog(app, { write: (line) => lines.push(line) }),
      ], { HTTP_ORIGIN: "http://a.example", HTTP_ACCEPT: "text/html" });
      assert.equal(result.status, status);
      assert.equal(text(result.body), RENDERED);
      assert.deepEqual(valuesOf(result.headers, "Access-Control-Allow-Origin"), ["*"]);
      assert.deepEqual(valuesOf(result.headers, "X-Content-Type-Options"), ["nosniff"]);
      for (const [name, value] of headers) assert.deepEqual(valuesOf(result.headers, name), [value]);
      assert.equal(lines.length, 1);
      assert.match(lines[0]!, new RegExp(` ${status.slice(0, 3)} ${RENDERED.length} `));
    }
  });

  test(`${name}: render is given the refusal as an error with a status, headers and a message`, async () => {
    const errors: unknown[] = [];
    const page: Middleware = (app) => errorPage(app, { render: (_status, error) => void errors.push(error) });
    await refused(refusal, [page]);
    assert.equal(errors.length, 1);
    const [error] = errors;
    assert.ok(error instanceof Error);
    assert.match(error.message, refusal.message);
    const { status: code, headers: own = [] }: { status?: number; headers?: HeaderList } = error as object;
    assert.deepEqual([code, own], [Number(status.slice(0, 3)), headers]);
  });

  test(`${name}: the page for a refusal has its body closed once, where render fails there is another page`, async () => {
    const closing = new Closing();
    const own = () => ({ headers: PLAIN, body: closing.body(new Set([bytes("ours")])) });
    const result = await refused(refusal, [(app) => errorPage(app, { render: own })]);
    assert.equal(text(result.body), "ours");
    assert.equal(closing.count, 1);
    const failed = await refused(refusal, [(app) => errorPage(app, { render: explode })]);
    assert.equal(failed.status, status);
    assert.equal(reportsOf(failed.errors), 1);
    assert.match(failed.errors, /Error page failed on [A-Z]+ \/.*: Error: the trap/);
  });

  test(`${name}: the page of the next errorPage outside is the one for a refusal`, async () => {
    const page = (page: string): Middleware => (app) => errorPage(app, { render: () => page });
    const result = await refused(refusal, [page("outer"), page("inner")]);
    assert.equal(text(result.body), "inner");
    const { middleware } = refusal;
    const around = { ...refusal, middleware: (app: ApplicationLike) => middleware(validator(page("inner")(app))) };
    assert.equal(text((await refused(around, [page("outer")])).body), "outer");
  });
}

test("errorPage: a refusal finds the page also in a copy of the environ", async () => {
  const copying: Middleware = (app) => (environ, startResponse) => (app as Application)({ ...environ }, startResponse);
  const result = await refused(REFUSALS.mount!, [(app) => errorPage(app, { render: () => RENDERED }), copying]);
  assert.equal(text(result.body), RENDERED);
});

test("errorPage: what timeout refuses has the page outside of it, and never the one inside", async () => {
  const page = (page: string): Middleware => (app) => errorPage(app, { render: () => page });
  const slow: Middleware = (app) => timeout(app, { milliseconds: 5 });
  const inside = stacked(() => never(), slow, page("inner"));
  assert.equal(text((await runApplication(inside, testEnviron())).body), "Gateway Timeout\n");
  assert.equal(text((await runApplication(page("outer")(inside), testEnviron())).body), "outer");
});

test("limitBody answers for its own errors alone: an application may throw undefined", async () => {
  await using server = start(stacked(failing(undefined), limitBody));
  assert.equal((await exchange(server, CHUNKED)).status, 500);
  assert.match(server.errors.text, /: undefined was thrown\n$/);
});

for (
  const [name, variables, status] of [
    ["412", { HTTP_IF_MATCH: '"other"' }, "412 Precondition Failed"],
    ["416", { HTTP_RANGE: "bytes=999999999-" }, "416 Range Not Satisfiable"],
    ["304", { HTTP_IF_NONE_MATCH: "*" }, "304 Not Modified"],
    ["301", { PATH_INFO: "/folder" }, "301 Moved Permanently"],
  ] as const
) {
  test(`files: ${name}, which is for a program that knows the file, is no error for a page`, async () => {
    const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
    try {
      writeFileSync(join(folder, "file.txt"), "content");
      mkdirSync(join(folder, "folder"));
      const environ = () => testEnviron({ PATH_INFO: "/file.txt", ...variables });
      const plain = await runApplication(files(folder), environ());
      const paged = await runApplication(errorPage(files(folder), { render: () => RENDERED }), environ());
      assert.equal(plain.status, status);
      assert.deepEqual([paged.status, paged.headers, paged.body], [plain.status, plain.headers, plain.body]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
}

test("render is told of the path as it was outside of a mount, where the pages of the site have their addresses", async () => {
  const paths: string[] = [];
  const failing: Application = () => {
    throw new Error("Out of order");
  };
  const app = errorPage(mount({ "/inside": mount({ "/failing": failing }) }), {
    render(_status, _error, { SCRIPT_NAME, PATH_INFO }) {
      paths.push(`${SCRIPT_NAME} ${PATH_INFO}`);
      return undefined;
    },
  });
  for (const path of ["/site/inside/failing", "/site/inside/missing"]) {
    await answer(mount({ "/site": app }), new Request(`http://test.example${path}`));
  }
  assert.deepEqual(paths, ["/site /inside/failing", "/site /inside/missing"]);
});

for (const wait of [false, true]) {
  test(`errorPage: the headers and the body of a Response are for all clients, with the status of the error${wait ? ", late" : ""}`, async () => {
    const render = (status: string) => {
      const response = Response.json({ error: status }, { headers: { "X-Test": "yes" } });
      return wait ? Promise.resolve(response) : response;
    };
    for (const accept of [undefined, BROWSER, "text/plain"]) {
      const page = await pageOf(failing(withStatus(404)), { render, ...accept === undefined ? {} : { accept } });
      assert.equal(page.status, 404);
      assert.match(page.headers.get("Content-Type")!, /^application\/json/);
      assert.equal(page.headers.get("X-Test"), "yes");
      assert.equal(page.body, '{"error":"404 Not Found"}');
    }
  });
}

test("errorPage: a status without a name is sent as an unknown one", async () => {
  const { status, reason, body } = await pageOf(failing(withStatus(499)));
  assert.deepEqual([status, reason, body], [499, "Unknown", "499 Unknown\n"]);
});

test("errorPage: a Response without a body is sent without one", async () => {
  const render = () => new Response(null, { headers: PLAIN });
  const page = await pageOf(failing(withStatus(404)), { render });
  assert.equal(page.errors, "");
  assert.equal(page.status, 404);
  assert.equal(page.body, "");
});

test("errorPage: a Response whose body fails is replaced by the default page, and reported", async () => {
  const body = new ReadableStream({ pull: () => Promise.reject(new Error("Out of ink")) });
  const render = () => new Response(body, { headers: PLAIN });
  const { response, errors } = await answer(errorPage(failing(withStatus(404)), { render }));
  assert.equal(response.status, 404);
  assert.equal(await response.text(), "404 Not Found\n");
  assert.match(errors.text, /^Error page failed on .*: Error: Out of ink/);
});

test("errorPage: a page that fetch has got and decoded is sent without the headers of its connection and coding", async () => {
  const upstream = createServer((_request, response) => {
    response.writeHead(200, { "Content-Type": "text/html", "Content-Encoding": "gzip", "Connection": "keep-alive" });
    response.end(gzipSync("<h1>Lost</h1>"));
  });
  const listening = new Event("the upstream server");
  upstream.listen(0, "127.0.0.1", () => listening.happen());
  await listening.wait();
  try {
    const { port } = upstream.address() as { port: number };
    const page = await pageOf(failing(withStatus(404)), { render: () => fetch(`http://127.0.0.1:${port}/`) });
    assert.equal(page.errors, "");
    assert.equal(page.status, 404);
    assert.equal(page.headers.get("Content-Encoding"), null);
    assert.equal(page.body, "<h1>Lost</h1>");
  } finally {
    upstream.close();
  }
});

test("errorPage: a Response that was used before is replaced by the default page, and reported", async () => {
  const used = new Response("once", { headers: PLAIN });
  await used.text();
  const page = await pageOf(failing(withStatus(404)), { render: () => used });
  assert.equal(page.status, 404);
  assert.equal(page.body, "404 Not Found\n");
  assert.match(page.errors, /^Error page failed on GET /);
});

test("errorPage: a Response leaves chunk by chunk, and is cancelled when the client leaves", async () => {
  const cancelled = new Event("the end of the page's stream");
  const chunks = ["first"];
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => chunks.length > 0 ? controller.enqueue(bytes(chunks.pop()!)) : never(),
    cancel: () => cancelled.happen(),
  }, { highWaterMark: 0 });
  const render = () => new Response(body, { headers: PLAIN });
  await using server = start(errorPage(failing(withStatus(404)), { render }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  client.leave();
  await cancelled.wait();
});
