/**
 * environ on real requests.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect as connectHttp2, type OutgoingHttpHeaders } from "node:http2";
import { connect as connectTcp, isIP } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { connect as connectTls } from "node:tls";
import {
  type Application,
  type Environ,
  type HeaderList,
  serve,
  type ServeOptions,
  type Server,
  toEnviron,
  type ToEnvironOptions,
  toFetch,
} from "../mod.ts";
import {
  bytes,
  Client,
  ErrorLog,
  Event,
  exchange,
  ok,
  parse,
  type Reply,
  request,
  RUNTIME,
  start,
  unchecked,
} from "./support.ts";

const ALWAYS_PRESENT = [
  "REQUEST_METHOD",
  "SCRIPT_NAME",
  "PATH_INFO",
  "QUERY_STRING",
  "SERVER_NAME",
  "SERVER_PORT",
  "SERVER_PROTOCOL",
  "SERVER_SOFTWARE",
  "REQUEST_URI",
  "wsgi.version",
  "wsgi.url_scheme",
  "wsgi.input",
  "wsgi.errors",
  "wsgi.multithread",
  "wsgi.multiprocess",
  "wsgi.run_once",
  "wsgi.input_terminated",
  "wsgi.file_wrapper",
];

/** Text as a native string: its UTF-8 bytes, each a character. */
function native(text: string): string {
  return Buffer.from(text).toString("latin1");
}

/** An application that keeps the environs it gets. */
function recorder(): { app: Application; environs: Environ[] } {
  const environs: Environ[] = [];
  const app: Application = (environ, startResponse) => {
    environs.push(environ);
    ok(startResponse);
    return [];
  };
  return { app, environs };
}

/** What came of a request: the reply, and the environ if the application was called. */
interface Outcome {
  reply: Reply;
  environ: Environ | undefined;
}

/** Sends a request to a server of its own. */
async function ask(raw: string, options: ServeOptions = {}): Promise<Outcome> {
  const { app, environs } = recorder();
  await using server = start(app, options);
  const reply = await exchange(server, raw);
  assert.ok(environs.length <= 1);
  return { reply, environ: environs[0] };
}

/** The environ of a request that is served. */
async function environOf(raw: string, options: ServeOptions = {}): Promise<Environ> {
  const { reply, environ } = await ask(raw, options);
  assert.equal(reply.status, 200);
  return environ!;
}

/** A request with these header lines and no others but Host and Connection. */
function withHeaders(...headers: string[]): string {
  return request("/", { method: "POST", headers });
}

/** A request with this Host. */
function withHost(host: string, target = "/p?q"): string {
  return `GET ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`;
}

function assertRefused({ reply, environ }: Outcome, status: number): void {
  assert.equal(reply.status, status);
  assert.equal(environ, undefined, "the application was called");
}

function assertAbsent(environ: Environ, ...names: string[]): void {
  for (const name of names) assert.ok(!(name in environ), `${name} is ${environ[name]}`);
}

// What is always there.

test("environ has every variable that is always present, and of the others only what the request brings", async () => {
  const environ = await environOf(request("/path?query"));
  const others = ["HTTP_CONNECTION", "HTTP_HOST", "REMOTE_ADDR", "REMOTE_PORT", "fetch.context"];
  assert.deepEqual(Object.keys(environ).sort(), [...ALWAYS_PRESENT, ...others].sort());
});

test("the variables of the request say what was asked", async () => {
  const environ = await environOf(request("/path?query"));
  assert.equal(environ.REQUEST_METHOD, "GET");
  assert.equal(environ.SCRIPT_NAME, "");
  assert.equal(environ.PATH_INFO, "/path");
  assert.equal(environ.QUERY_STRING, "query");
  assert.equal(environ.REQUEST_URI, "/path?query");
  assert.equal(environ.HTTP_HOST, "test.example");
});

test("the variables of WSGI have the values of one thread in one process", async () => {
  const environ = await environOf(request("/"));
  assert.deepEqual(environ["wsgi.version"], [1, 0]);
  assert.equal(environ["wsgi.url_scheme"], "http");
  assert.equal(environ["wsgi.multithread"], false);
  assert.equal(environ["wsgi.multiprocess"], false);
  assert.equal(environ["wsgi.run_once"], false);
  assert.equal(environ["wsgi.input_terminated"], true);
  assert.equal(typeof environ["wsgi.file_wrapper"], "function");
});

test("wsgi.input and wsgi.errors have their methods, with or without a body", async () => {
  for (const raw of [request("/"), request("/", { method: "POST", headers: ["Content-Length: 1"], body: "a" })]) {
    const environ = await environOf(raw);
    for (const name of ["read", "readline", "readlines", Symbol.asyncIterator] as const) {
      assert.equal(typeof environ["wsgi.input"][name], "function");
    }
    for (const name of ["write", "writelines", "flush"] as const) {
      assert.equal(typeof environ["wsgi.errors"][name], "function");
    }
  }
});

test("SERVER_NAME and SERVER_PORT are the listener's, whatever Host says", async () => {
  const { app, environs } = recorder();
  await using server = start(app);
  await exchange(server, withHost("other.example:1"));
  await exchange(server, "GET / HTTP/1.0\r\n\r\n");
  assert.equal(environs.length, 2);
  for (const environ of environs) {
    assert.equal(environ.SERVER_NAME, "127.0.0.1");
    assert.equal(environ.SERVER_PORT, String(server.port));
  }
});

for (const hostname of ["::1", "[::1]"]) {
  test(`SERVER_NAME of a server on ${hostname} is a host of a URL`, async () => {
    const { app, environs } = recorder();
    await using server = start(app, { hostname });
    await exchange({ ...server, hostname: "::1" }, request("/"));
    assert.equal(environs[0]!.SERVER_NAME, "[::1]");
    assert.equal(environs[0]!.REMOTE_ADDR, "::1");
    assert.equal(server.hostname, "::1");
    assert.equal(server.url, `http://localhost:${server.port}/`);
  });
}

test("SERVER_NAME of a server on a name is the address that it listens on", async () => {
  const { app, environs } = recorder();
  await using server = start(app, { hostname: "localhost" });
  await exchange(server, request("/"));
  const address = environs[0]!.SERVER_NAME.replace(/^\[|\]$/g, "");
  assert.notEqual(isIP(address), 0, address);
  assert.equal(server.hostname, address);
});

test("SERVER_SOFTWARE names this project in the version of deno.json, and the runtime", async () => {
  const { SERVER_SOFTWARE } = await environOf(request("/"));
  const { version } = JSON.parse(readFileSync(new URL("../deno.json", import.meta.url), "utf8"));
  assert.match(SERVER_SOFTWARE, /^WSGI\/\d+\.\d+\.\d+ (Deno|Bun)\/\d+\.\d+\.\d+/);
  assert.match(SERVER_SOFTWARE, RUNTIME === "deno" ? / Deno\// : / Bun\//);
  assert.equal(SERVER_SOFTWARE.split(" ")[0], `WSGI/${version}`);
});

test("environ is an ordinary object of ordinary properties, none of which is undefined", async () => {
  const { app, environs } = recorder();
  await using server = start(unchecked(app)); // the validator adds a symbol
  await exchange(server, withHeaders("Cookie: a=1", "Content-Type: text/plain", "Content-Length: 0"));
  const environ = environs[0]!;
  assert.equal(Object.getPrototypeOf(environ), Object.prototype);
  assert.ok(Object.isExtensible(environ));
  for (const key of Reflect.ownKeys(environ)) {
    assert.equal(typeof key, "string");
    const { value, ...rest } = Object.getOwnPropertyDescriptor(environ, key)!;
    assert.deepEqual(rest, { writable: true, enumerable: true, configurable: true }, String(key));
    assert.notEqual(value, undefined, String(key));
    assert.notEqual(value, null, String(key));
  }
});

test("every CGI variable is a native string", async () => {
  const headers = [`X-Bytes: \xff\xe9 ${native("é你")}`, `Cookie: ${native("a=é")}`, "Content-Type: a/b\xe9"];
  const environ = await environOf(request(native("/é/%E4%BD%A0/%FF?é"), { method: "POST", headers }));
  const names = Object.keys(environ).filter((name) => /^[A-Z]/.test(name));
  assert.ok(names.includes("HTTP_X_BYTES") && names.includes("CONTENT_TYPE") && names.includes("REMOTE_PORT"));
  for (const name of names) {
    const value = environ[name];
    assert.equal(typeof value, "string", name);
    assert.doesNotMatch(value as string, /[^\0-\xff]/, name);
  }
});

test("environ is new for each request, and the application's to change", async () => {
  const environs: Environ[] = [];
  const seen: string[][] = [];
  await using server = start((environ, startResponse) => {
    environs.push(environ);
    seen.push(Object.keys(environ).sort());
    assert.equal(environ.PATH_INFO, "/");
    for (const key of Object.keys(environ)) delete environ[key];
    environ["example.left"] = true;
    ok(startResponse);
    return [];
  });
  for (let count = 0; count < 2; count++) assert.equal((await exchange(server, request("/"))).status, 200);
  assert.notEqual(environs[0], environs[1]);
  assert.deepEqual(seen[0], seen[1]);
});

test("what an application does to wsgi.version does not reach the next request", () => {
  const { app, environs } = recorder();
  const handler = toFetch(app);
  handler(new Request("http://localhost/"));
  Reflect.set(environs[0]!["wsgi.version"], 0, 2);
  handler(new Request("http://localhost/"));
  assert.deepEqual(environs[1]!["wsgi.version"], [1, 0]);
});

test("an application can answer with its environ as JSON", async () => {
  await using server = start((environ, startResponse) => {
    startResponse("200 OK", [["Content-Type", "application/json"]]);
    return [bytes(JSON.stringify(Object.fromEntries(Object.entries(environ).filter(([name]) => /^[A-Z]/.test(name)))))];
  });
  const reply = await exchange(server, request("/caf%C3%A9?a=b", { headers: ["X-Test: yes"] }));
  const environ = JSON.parse(Buffer.from(reply.body, "latin1").toString());
  assert.equal(environ.PATH_INFO, native("/café"));
  assert.equal(environ.QUERY_STRING, "a=b");
  assert.equal(environ.HTTP_X_TEST, "yes");
});

// The target.

interface Target {
  sent: string;
  path: string;
  query?: string;
  /** REQUEST_URI, where it is not what was sent. */
  uri?: string;
}

const TARGETS: Target[] = [
  { sent: "/", path: "/" },
  { sent: "/caf%C3%A9", path: native("/café") },
  { sent: "/%E4%BD%A0", path: native("/你") },
  { sent: native("/café"), path: native("/café"), uri: "/caf%C3%A9" },
  { sent: native("/你?q=é"), path: native("/你"), query: "q=%C3%A9", uri: "/%E4%BD%A0?q=%C3%A9" },
  { sent: "/%ff%FE", path: "/\xff\xfe" },
  { sent: "/%zz", path: "/%zz" },
  { sent: "/%", path: "/%" },
  { sent: "/a%4", path: "/a%4" },
  { sent: "/%C3%zz%A9", path: "/\xc3%zz\xa9" },
  { sent: "/%25%32%46", path: "/%2F" },
  { sent: "/a%2Fb", path: "/a/b" },
  { sent: "/a%2fb", path: "/a/b" },
  { sent: "/a%3Fb?c", path: "/a?b", query: "c" },
  { sent: "/a%23b", path: "/a#b" },
  { sent: "/a%00b", path: "/a\0b" },
  { sent: "/a%0D%0Ab", path: "/a\r\nb" },
  { sent: "/a%20b", path: "/a b" },
  { sent: "/a+b", path: "/a+b" },
  { sent: "/~u;v=1,2:@!$&'()*", path: "/~u;v=1,2:@!$&'()*" },
  { sent: "//x", path: "//x" },
  { sent: "///", path: "///" },
  { sent: "/a//b/", path: "/a//b/" },
  { sent: "/a://b/c?d", path: "/a://b/c", query: "d" },
  { sent: "/p", path: "/p" },
  { sent: "/p?", path: "/p" },
  { sent: "/p?a?b??c", path: "/p", query: "a?b??c" },
  { sent: "/p?/x//y", path: "/p", query: "/x//y" },
  { sent: "/p?u=http://other/x", path: "/p", query: "u=http://other/x" },
  { sent: "/p?a=%C3%A9+%20b%2F%zz%", path: "/p", query: "a=%C3%A9+%20b%2F%zz%" },
  { sent: "/p?a#b", path: "/p", query: "a#b" },
  { sent: "/p#f", path: "/p#f" },
];

for (const { sent, path, query = "", uri = sent } of TARGETS) {
  test(`the target ${JSON.stringify(sent)} has the path ${JSON.stringify(path)} and the query "${query}"`, async () => {
    const environ = await environOf(request(sent));
    assert.equal(environ.PATH_INFO, path);
    assert.equal(environ.QUERY_STRING, query);
    assert.equal(environ.REQUEST_URI, uri);
    assert.equal(environ.SCRIPT_NAME, "");
  });
}

// Bun reads a target as a browser reads a URL; Deno leaves it alone, or refuses it. A number is a status.
const TARGETS_BY_RUNTIME: { sent: string; deno: Omit<Target, "sent"> | number; bun: Omit<Target, "sent"> | number }[] =
  [
    { sent: "/a/../b", deno: { path: "/a/../b" }, bun: { path: "/b", uri: "/b" } },
    { sent: "/a/./b", deno: { path: "/a/./b" }, bun: { path: "/a/b", uri: "/a/b" } },
    { sent: "/a/b/..", deno: { path: "/a/b/.." }, bun: { path: "/a/", uri: "/a/" } },
    { sent: "/%2e%2e/b", deno: { path: "/../b" }, bun: { path: "/b", uri: "/b" } },
    { sent: "/a\\b", deno: { path: "/a\\b" }, bun: { path: "/a/b", uri: "/a/b" } },
    { sent: '/"<>^`{}', deno: { path: '/"<>^`{}' }, bun: { path: '/"<>^`{}', uri: "/%22%3C%3E%5E%60%7B%7D" } },
    {
      sent: "/p?\"<>'",
      deno: { path: "/p", query: "\"<>'" },
      bun: { path: "/p", query: "%22%3C%3E%27", uri: "/p?%22%3C%3E%27" },
    },
    { sent: "/caf\xe9", deno: 400, bun: { path: native("/caf\ufffd"), uri: "/caf%EF%BF%BD" } },
    { sent: "/a\x7fb", deno: 400, bun: { path: "/a\x7fb", uri: "/a%7Fb" } },
    { sent: "/a b", deno: 400, bun: 505 },
    { sent: "ftp://other/x", deno: { path: "/x", uri: "/x" }, bun: 400 },
  ];

for (const { sent, [RUNTIME]: expected } of TARGETS_BY_RUNTIME) {
  test(`the target ${JSON.stringify(sent)} is what ${RUNTIME} makes of it`, async () => {
    const outcome = await ask(request(sent));
    if (typeof expected === "number") return assertRefused(outcome, expected);
    const { path, query = "", uri = sent } = expected;
    assert.equal(outcome.reply.status, 200);
    assert.equal(outcome.environ!.PATH_INFO, path);
    assert.equal(outcome.environ!.QUERY_STRING, query);
    assert.equal(outcome.environ!.REQUEST_URI, uri);
  });
}

for (const target of ["*", "x", "?a=1"]) {
  test(`the target "${target}" of a GET is refused`, async () => {
    assertRefused(await ask(request(target)), 400);
  });
}

const ABSOLUTE: Target[] = [
  { sent: "http://other.example:81/x?y", path: "/x", query: "y" },
  { sent: "http://other.example?x/y=1", path: "/", query: "x/y=1" },
  { sent: "http://other.example", path: "/" },
  { sent: "http://other.example//x", path: "//x" },
  { sent: "HTTP://test.example/x", path: "/x" },
  { sent: "https://other.example/x", path: "/x" },
];

for (const { sent, path, query = "" } of ABSOLUTE) {
  test(`the absolute target ${sent} says the path and the query, and on Deno the host`, async () => {
    const environ = await environOf(request(sent));
    assert.equal(environ.PATH_INFO, path);
    assert.equal(environ.QUERY_STRING, query);
    assert.equal(environ.REQUEST_URI, query === "" ? path : `${path}?${query}`);
    // RFC 9112, section 3.2.2. Bun does not tell it.
    assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? /^\w+:..([^/?]+)/.exec(sent)![1] : "test.example");
    assert.equal(environ.SERVER_NAME, "127.0.0.1");
    assert.equal(environ["wsgi.url_scheme"], "http");
    assertAbsent(environ, "HTTPS");
  });
}

test("an absolute target with a password is answered with 400 by Deno, and loses it on Bun", async () => {
  const outcome = await ask(request("http://user:password@other.example/x"));
  if (RUNTIME === "deno") return assertRefused(outcome, 400);
  assert.equal(outcome.environ!.HTTP_HOST, "test.example");
});

test("OPTIONS * has the path /* on Deno, and is refused by Bun", async () => {
  const outcome = await ask(request("*", { method: "OPTIONS" }));
  if (RUNTIME === "bun") return assertRefused(outcome, 400);
  assert.equal(outcome.environ!.REQUEST_METHOD, "OPTIONS");
  assert.equal(outcome.environ!.PATH_INFO, "/*");
});

test("CONNECT is answered with 501", async () => {
  assertRefused(await ask(request("other.example:80", { method: "CONNECT" })), 501);
});

const CONNECT = "CONNECT other.example:80 HTTP/1.1\r\nHost: other.example:80\r\n";
const BEHIND_CONNECT: Record<string, string> = {
  "a request": "\r\nGET /hidden HTTP/1.1\r\nHost: test.example\r\n\r\n",
  "a body and a request": "Content-Length: 3\r\n\r\nabcGET /hidden HTTP/1.1\r\nHost: test.example\r\n\r\n",
  "a mebibyte that is no request": `\r\n${"a".repeat(2 ** 20)}`,
  "nothing": "\r\n",
};

for (const [what, behind] of Object.entries(BEHIND_CONNECT)) {
  test(`a refused CONNECT ends the connection, with ${what} behind it`, async () => {
    const { app, environs } = recorder();
    await using server = start(app, { bun: { idleTimeout: 0 } }); // or Bun would close a quiet connection by itself
    const client = await Client.connect(server);
    await client.send(CONNECT + behind);
    assert.match(await client.end(), /^HTTP\/1\.1 501 Not Implemented\r\n[^]*\r\n\r\nNot Implemented\n?$/);
    assert.equal(environs.length, 0);
    assert.equal(server.errors.text, "");
  });
}

for (const method of ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "M-SEARCH"]) {
  test(`REQUEST_METHOD of ${method} is ${method}`, async () => {
    assert.equal((await environOf(request("/", { method }))).REQUEST_METHOD, method);
  });
}

test("REQUEST_METHOD of HEAD is HEAD", async () => {
  const { app, environs } = recorder();
  await using server = start(app);
  await exchange(server, request("/", { method: "HEAD" }), { head: true });
  assert.equal(environs[0]!.REQUEST_METHOD, "HEAD");
});

for (const method of ["get", "Get", "patch", "FOO", "TRACK"]) {
  test(`the method ${method} is passed on by Deno as it is, and Bun closes the connection on it`, async () => {
    const { reply, environ } = await ask(request("/", { method }));
    assert.equal(reply.status, RUNTIME === "deno" ? 200 : 0);
    assert.equal(environ?.REQUEST_METHOD, RUNTIME === "deno" ? method : undefined);
  });
}

test("a method that is no token is refused", async () => {
  assertRefused(await ask(request("/", { method: "F@O" })), 400);
});

// Host, and requests without one.

for (
  const host of [
    "h",
    "h:81",
    "h:80",
    "h:",
    "H.Example",
    "h.example.",
    "a_b-c~d",
    "192.0.2.1:8000",
    "1.2.3",
    "[::1]",
    "[::1]:80",
    "[2001:DB8::1]:8000",
    "",
  ]
) {
  test(`Host "${host}" is HTTP_HOST as it was sent`, async () => {
    const environ = await environOf(withHost(host));
    assert.equal(environ.HTTP_HOST, host);
    assert.equal(environ.PATH_INFO, "/p");
    assert.equal(environ.QUERY_STRING, "q");
    assert.equal(environ.REQUEST_URI, "/p?q");
  });
}

test("a Host that is like the one which Deno makes up is HTTP_HOST", async () => {
  const { app, environs } = recorder();
  await using server = start(app);
  await exchange(server, withHost(`localhost:${server.port}`));
  assert.equal(environs[0]!.HTTP_HOST, `localhost:${server.port}`);
});

test("with an empty Host the path is the target's", async () => {
  const environ = await environOf(withHost("", native("/a/../é%2F?é")));
  assert.equal(environ.PATH_INFO, native("/a/../é/"));
  assert.equal(environ.QUERY_STRING, "%C3%A9");
  assert.equal(environ.REQUEST_URI, "/a/../%C3%A9%2F?%C3%A9");
});

const HOSTILE = [
  "a/b",
  "a?b",
  "a#b",
  "a b",
  "h\tx",
  "u:p@h",
  "u@h",
  "h\\x",
  "a,b",
  "[::1",
  "::1]",
  "[::1]x",
  "[zz]",
  "h:port",
  "h:80:80",
  "h:-1",
  "\xe9",
  native("é"),
  "/",
  "//h",
  "?",
  "#",
  "http://h",
  '"h"',
  "<h>",
];

for (const host of HOSTILE) {
  test(`Host ${JSON.stringify(host)} is answered with 400`, async () => {
    assertRefused(await ask(withHost(host)), 400);
  });
}

for (const host of HOSTILE) {
  test(`Host ${JSON.stringify(host)} is answered with 400 in HTTP/1.0 and with an absolute target, too`, async () => {
    assertRefused(await ask(`GET /p HTTP/1.0\r\nHost: ${host}\r\n\r\n`), 400);
    assertRefused(await ask(withHost(host, "http://other.example/p")), 400);
  });
}

for (const [first, second] of [["a", "b"], ["a", "a"], ["a", ""], ["", "a"], ["", ""]]) {
  test(`two Host headers, "${first}" and "${second}", are answered with 400`, async () => {
    const raw = `GET / HTTP/1.1\r\nHost: ${first}\r\nHost: ${second}\r\nConnection: close\r\n\r\n`;
    assertRefused(await ask(raw), 400);
  });
}

test("a hostile Host is answered without a word about it, and is no failure of the application", async () => {
  const { app } = recorder();
  await using server = start(app);
  const reply = await exchange(server, withHost("a/b"));
  assert.doesNotMatch(reply.body, /a\/b/);
  assert.equal(server.errors.text, "");
});

test("a Host is checked once, also after thousands of others", () => {
  const { canParse } = URL;
  let checks = 0;
  URL.canParse = (...given) => {
    checks++;
    return canParse(...given);
  };
  const ask = (host: string) => toEnviron(new Request("http://test.example/", { headers: { Host: host } }));
  try {
    for (let count = 0; count < 2000; count++) ask(`host-${count}.example`);
    ask("often.example");
    checks = 0;
    for (let count = 0; count < 10; count++) ask("often.example");
  } finally {
    URL.canParse = canParse;
  }
  assert.equal(checks, 0);
});

test("without a Host HTTP/1.1 is served by Deno without HTTP_HOST, and refused by Bun", async () => {
  const outcome = await ask("GET /p?q HTTP/1.1\r\nConnection: close\r\n\r\n");
  if (RUNTIME === "bun") return assertRefused(outcome, 400);
  assert.equal(outcome.environ!.PATH_INFO, "/p");
  assertAbsent(outcome.environ!, "HTTP_HOST");
});

test("a request of HTTP/1.0 without a Host has no HTTP_HOST", async () => {
  const environ = await environOf("GET /p?q HTTP/1.0\r\n\r\n");
  assertAbsent(environ, "HTTP_HOST");
  assert.equal(environ.PATH_INFO, "/p");
  assert.equal(environ.QUERY_STRING, "q");
});

test("a request of HTTP/1.0 with a Host has HTTP_HOST", async () => {
  assert.equal((await environOf("GET / HTTP/1.0\r\nHost: old.example:81\r\n\r\n")).HTTP_HOST, "old.example:81");
});

test("without a Host the target arrives as it was sent, on both runtimes", async () => {
  const environ = await environOf(`GET ${native("//a/../é%2F\\?é")} HTTP/1.0\r\n\r\n`);
  assert.equal(environ.PATH_INFO, native("//a/../é/\\"));
  assert.equal(environ.QUERY_STRING, "%C3%A9");
  assert.equal(environ.REQUEST_URI, "//a/../%C3%A9%2F\\?%C3%A9");
});

test("without a Host the authority of an absolute target is HTTP_HOST on Deno, and lost on Bun", async () => {
  const environ = await environOf("GET http://other.example:81/x?y HTTP/1.0\r\n\r\n");
  assert.equal(environ.PATH_INFO, "/x");
  assert.equal(environ.QUERY_STRING, "y");
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? "other.example:81" : undefined);
});

test("SERVER_PROTOCOL is HTTP/1.1, since no runtime tells what the client spoke", async () => {
  assert.equal((await environOf(request("/"))).SERVER_PROTOCOL, "HTTP/1.1");
  assert.equal((await environOf("GET / HTTP/1.0\r\n\r\n")).SERVER_PROTOCOL, "HTTP/1.1");
});

// HTTP/2: Deno speaks it by itself, Bun when asked.

const HTTP2: ServeOptions = { bun: { http2: true } };

/** Sends a request over HTTP/2, and gives the status, or 0 for a stream that is reset. */
async function askHttp2(url: string, headers: OutgoingHttpHeaders): Promise<number> {
  const answered = new Event<number>("an answer over HTTP/2");
  const session = connectHttp2(url, { rejectUnauthorized: false });
  session.on("error", () => answered.happen(0));
  try {
    const stream = session.request(headers);
    stream.on("response", (head) => answered.happen(Number(head[":status"])));
    stream.on("error", () => answered.happen(0));
    stream.resume();
    stream.end();
    return await answered.wait();
  } finally {
    session.destroy();
  }
}

/** The environ of a request over HTTP/2, whose `:authority` may depend on the server. */
async function environOverHttp2(headers: (server: Server) => OutgoingHttpHeaders): Promise<Environ> {
  const { app, environs } = recorder();
  await using server = start(app, HTTP2);
  assert.equal(await askHttp2(`http://127.0.0.1:${server.port}`, { ":path": "/", ...headers(server) }), 200);
  return environs[0]!;
}

for (const authority of ["example.org", "Example.ORG:99", "localhost", "localhost:1", "[::1]:8000", "192.0.2.1"]) {
  test(`over HTTP/2 the :authority ${authority} is HTTP_HOST`, async () => {
    const environ = await environOverHttp2(() => ({ ":authority": authority }));
    assert.equal(environ.HTTP_HOST, authority);
    assert.equal(environ.SERVER_NAME, "127.0.0.1");
  });
}

test("over HTTP/2 the :authority that a client makes of the server's address is HTTP_HOST", async () => {
  let address = "";
  const environ = await environOverHttp2(({ hostname, port }) => {
    address = `${hostname}:${port}`;
    return {};
  });
  assert.equal(environ.HTTP_HOST, address);
});

test("over HTTP/2 an :authority of localhost and the server's port is HTTP_HOST on Bun, and lost on Deno", async () => {
  let authority = "";
  const environ = await environOverHttp2(({ port }) => ({ ":authority": authority = `localhost:${port}` }));
  // Deno makes up the very same for a request of HTTP/1.0 that has no Host.
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? undefined : authority);
});

test("over HTTP/2 the :authority is HTTP_HOST on Deno beside another Host, which Bun refuses", async () => {
  const { app, environs } = recorder();
  await using server = start(app, HTTP2);
  const headers = { ":path": "/", ":authority": "authority.example", host: "host.example" };
  const status = await askHttp2(`http://127.0.0.1:${server.port}`, headers);
  // RFC 9113, section 8.3.1, allows both.
  assert.equal(status, RUNTIME === "deno" ? 200 : 0);
  assert.equal(environs[0]?.HTTP_HOST, RUNTIME === "deno" ? "authority.example" : undefined);
});

test("over HTTP/2 a hostile :authority does not reach the application", async () => {
  const { app, environs } = recorder();
  await using server = start(app, HTTP2);
  for (const authority of ["a/b", "a?b", "a#b", "u:p@h", "u@h", "h\\x", "a,b", "[::1", "h:port", "a%2Fb"]) {
    const headers = { ":path": "/", ":authority": authority };
    const status = await askHttp2(`http://127.0.0.1:${server.port}`, headers);
    assert.ok(status === 0 || status === 400, `${authority}: ${status}`);
  }
  assert.equal(environs.length, 0);
});

test("over HTTP/2 path, query and headers are those of HTTP/1.1", async () => {
  const environ = await environOverHttp2(() => ({
    ":method": "POST",
    ":path": "/caf%C3%A9/%2F%zz?a=%20?b",
    "x-test": ["1", "2"],
    "x-bytes": "\xe9",
    "x_test": "3",
    "proxy": "4",
    "cookie": ["a=1", "b=2"],
    "content-type": "text/plain",
    "content-length": "0",
  }));
  assert.equal(environ.REQUEST_METHOD, "POST");
  assert.equal(environ.PATH_INFO, native("/café//%zz"));
  assert.equal(environ.QUERY_STRING, "a=%20?b");
  assert.equal(environ.HTTP_X_TEST, "1, 2");
  assert.equal(environ.HTTP_X_BYTES, "\xe9");
  assert.equal(environ.HTTP_COOKIE, "a=1; b=2");
  assert.equal(environ.CONTENT_TYPE, "text/plain");
  assert.equal(environ.CONTENT_LENGTH, "0");
  assert.equal(environ.REMOTE_ADDR, "127.0.0.1");
  assert.equal(environ.SERVER_PROTOCOL, "HTTP/1.1");
  assertAbsent(environ, "HTTP_PROXY", "HTTP_:AUTHORITY", "HTTP_:PATH");
});

// Unix sockets.

/** Runs with a folder of its own. */
async function withFolder<Result>(use: (folder: string) => Promise<Result>): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
  try {
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Does something while the folder is the current one. */
function inFolder<Result>(folder: string, action: () => Result): Result {
  const before = process.cwd();
  process.chdir(folder);
  try {
    return action();
  } finally {
    process.chdir(before);
  }
}

/** Sends a request to a server of its own on a unix socket. */
function askUnix(raw: string): Promise<Outcome> {
  return withFolder(async (folder) => {
    const unix = join(folder, "socket");
    const { app, environs } = recorder();
    await using server = start(app, { unix });
    return { reply: await exchangeUnix(server, unix, raw), environ: environs[0] };
  });
}

async function exchangeUnix(server: Server, unix: string, raw: string): Promise<Reply> {
  const client = await Client.connect(server, { unix });
  await client.send(raw);
  return parse(await client.end());
}

test("on a unix socket the server is localhost at port 80, and the client has no address", async () => {
  const { environ } = await askUnix(request("/p?q"));
  assert.equal(environ!.SERVER_NAME, "localhost");
  assert.equal(environ!.SERVER_PORT, "80");
  assert.equal(environ!.HTTP_HOST, "test.example");
  assert.equal(environ!["wsgi.url_scheme"], "http");
  assert.equal(environ!.PATH_INFO, "/p");
  assert.equal(environ!.QUERY_STRING, "q");
  assert.equal(environ!.REQUEST_URI, "/p?q");
  assertAbsent(environ!, "REMOTE_ADDR", "REMOTE_PORT", "HTTPS");
});

test("on a unix socket HTTP/1.0 without a Host has no HTTP_HOST", async () => {
  const { environ } = await askUnix("GET //a/../p?q HTTP/1.0\r\n\r\n");
  assertAbsent(environ!, "HTTP_HOST");
  assert.equal(environ!.PATH_INFO, "//a/../p");
  assert.equal(environ!.QUERY_STRING, "q");
});

test("on a unix socket an empty Host and an absolute target leave the path alone", async () => {
  const { environ: empty } = await askUnix(withHost("", "/a/../p?q"));
  assert.equal(empty!.HTTP_HOST, "");
  assert.equal(empty!.REQUEST_URI, "/a/../p?q");
  const { environ: absolute } = await askUnix(withHost("h.example", "http://other.example/p?q"));
  assert.equal(absolute!.HTTP_HOST, RUNTIME === "deno" ? "other.example" : "h.example");
  assert.equal(absolute!.REQUEST_URI, "/p?q");
});

test("on a unix socket a hostile Host is answered with 400", async () => {
  for (const host of ["a/b", "a%2Fb", "u:p@h"]) assertRefused(await askUnix(withHost(host)), 400);
});

test("on a unix socket of a relative path HTTP/1.0 without a Host has no HTTP_HOST", async () => {
  await withFolder(async (folder) => {
    const { app, environs } = recorder();
    await using server = inFolder(folder, () => start(app, { unix: "socket" }));
    await exchangeUnix(server, join(folder, "socket"), "GET /p HTTP/1.0\r\n\r\n");
    assertAbsent(environs[0]!, "HTTP_HOST");
    assert.equal(environs[0]!.PATH_INFO, "/p");
  });
});

test("a server on a unix socket says so", async () => {
  await withFolder(async (folder) => {
    const unix = join(folder, "socket");
    await using server = start(recorder().app, { unix });
    assert.equal(server.hostname, unix);
    assert.equal(server.port, 0);
    assert.equal(server.url, `http+unix://${encodeURIComponent(unix)}/`);
  });
});

// Headers.

test("a header is a variable in capitals, with underscores", async () => {
  const environ = await environOf(withHeaders("x-lower-case: a", "X-UPPER-CASE: b", "User-Agent: c", "DNT: 1"));
  assert.equal(environ.HTTP_X_LOWER_CASE, "a");
  assert.equal(environ.HTTP_X_UPPER_CASE, "b");
  assert.equal(environ.HTTP_USER_AGENT, "c");
  assert.equal(environ.HTTP_DNT, "1");
});

test("the values of a repeated header are joined in order by a comma", async () => {
  const environ = await environOf(withHeaders("X-A: 1", "Accept: a/b", "x-a: 2", "X-A:", "accept: c/d"));
  assert.equal(environ.HTTP_X_A, "1, 2, ");
  assert.equal(environ.HTTP_ACCEPT, "a/b, c/d");
});

test("the values of repeated Cookie headers are joined by a semicolon", async () => {
  assert.equal((await environOf(withHeaders("Cookie: a=1", "Cookie: b=2; c=3"))).HTTP_COOKIE, "a=1; b=2; c=3");
});

test("the values of a repeated Set-Cookie, which means nothing in a request, are joined as any other's", async () => {
  assert.equal((await environOf(withHeaders("Set-Cookie: a=1", "Set-Cookie: b=2"))).HTTP_SET_COOKIE, "a=1, b=2");
});

test("a header with an underscore is dropped, before, after and without its twin with a hyphen", async () => {
  assert.equal((await environOf(withHeaders("X_A: false", "X-A: true"))).HTTP_X_A, "true");
  assert.equal((await environOf(withHeaders("X-A: true", "X_A: false"))).HTTP_X_A, "true");
  assert.equal((await environOf(withHeaders("X-A_B: false", "X_A-B: false", "X-A-B: true"))).HTTP_X_A_B, "true");
  assertAbsent(await environOf(withHeaders("X_A: false", "_: a", "_b: c")), "HTTP_X_A", "HTTP__", "HTTP__B");
});

test("Content_Length and Content_Type do not pose as the headers with a hyphen", async () => {
  const environ = await environOf(withHeaders("Content_Length: 5", "Content_Type: a/b", "CONTENT_LENGTH: 6"));
  assertAbsent(environ, "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE");
});

test("Proxy is dropped, in whatever case", async () => {
  for (const name of ["Proxy", "proxy", "PROXY"]) {
    assertAbsent(await environOf(withHeaders(`${name}: http://evil.example/`)), "HTTP_PROXY");
  }
});

test("Proxy-Authorization and X-Proxy are not Proxy", async () => {
  const environ = await environOf(withHeaders("Proxy-Authorization: a", "X-Proxy: b"));
  assert.equal(environ.HTTP_PROXY_AUTHORIZATION, "a");
  assert.equal(environ.HTTP_X_PROXY, "b");
});

test("Content-Type and Content-Length have variables of their own, and no others", async () => {
  const headers = ["content-type: text/plain; charset=utf-8", "CONTENT-LENGTH: 3"];
  const environ = await environOf(request("/", { method: "POST", headers, body: "abc" }));
  assert.equal(environ.CONTENT_TYPE, "text/plain; charset=utf-8");
  assert.equal(environ.CONTENT_LENGTH, "3");
  assertAbsent(environ, "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH");
});

test("what the client does not send is absent", async () => {
  const environ = await environOf(withHeaders());
  assertAbsent(environ, "CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_COOKIE", "HTTP_USER_AGENT", "HTTP_ACCEPT", "HTTPS");
  assertAbsent(environ, "REMOTE_USER", "AUTH_TYPE", "PATH", "HOME");
});

test("a body in chunks has no CONTENT_LENGTH", async () => {
  const headers = ["Transfer-Encoding: chunked"];
  const environ = await environOf(request("/", { method: "POST", headers, body: "3\r\nabc\r\n0\r\n\r\n" }));
  assertAbsent(environ, "CONTENT_LENGTH");
});

test("a header without a value is the empty string", async () => {
  const environ = await environOf(withHeaders("X-Empty:", "X-Blank:   ", "Content-Type:"));
  assert.equal(environ.HTTP_X_EMPTY, "");
  assert.equal(environ.HTTP_X_BLANK, "");
  assert.equal(environ.CONTENT_TYPE, "");
});

test("the bytes of a header are its characters", async () => {
  const environ = await environOf(withHeaders("X-Latin: \xe9\xff\x80", `X-Text: ${native("é 你")}`, "X-Tab: a\tb"));
  assert.equal(environ.HTTP_X_LATIN, "\xe9\xff\x80");
  assert.equal(environ.HTTP_X_TEXT, native("é 你"));
  assert.equal(environ.HTTP_X_TAB, "a\tb");
});

test("a header name may have any character of a token", async () => {
  const environ = await environOf(withHeaders("X-A!b: 1", "X-A.b: 2", "X#$%&'*+^`|~0: 3"));
  assert.equal(environ["HTTP_X_A!B"], "1");
  assert.equal(environ["HTTP_X_A.B"], "2");
  assert.equal(environ["HTTP_X#$%&'*+^`|~0"], "3");
});

test("headers that are named like parts of an object are harmless", async () => {
  const names = ["__proto__", "constructor", "hasOwnProperty", "toString", "prototype"];
  const environ = await environOf(withHeaders(...names.map((name) => `${name}: a`)));
  assert.equal(Object.getPrototypeOf(environ), Object.prototype);
  assert.equal(environ.HTTP_CONSTRUCTOR, "a");
  assert.equal(environ.HTTP_HASOWNPROPERTY, "a");
  assert.equal(environ.HTTP_TOSTRING, "a");
  assert.equal(environ.HTTP_PROTOTYPE, "a");
  for (const name of names) assert.ok(!Object.hasOwn(environ, name));
  assertAbsent(environ, "HTTP___PROTO__");
});

test("an equal Content-Length that is repeated is one, and the body has that length", async () => {
  let body = "";
  let length: string | undefined;
  await using server = start(async (environ, startResponse) => {
    length = environ.CONTENT_LENGTH;
    body = new TextDecoder().decode(await environ["wsgi.input"].read());
    ok(startResponse);
    return [];
  });
  const headers = ["Content-Length: 3", "Content-Length: 3", "Content-Length: 3"];
  await exchange(server, request("/", { method: "POST", headers, body: "abc" }));
  assert.equal(length, "3");
  assert.equal(body, "abc");
});

test("a Content-Length that is repeated with another value is refused", async () => {
  const headers = ["Content-Length: 3", "Content-Length: 4"];
  assertRefused(await ask(request("/", { method: "POST", headers, body: "abcd" })), 400);
});

test("however many names clients make up, each header has its variable", () => {
  for (let count = 0; count < 1000; count++) {
    const environ = toEnviron(new Request("http://localhost/", { headers: { [`X-Name-${count}`]: String(count) } }));
    assert.equal(environ[`HTTP_X_NAME_${count}`], String(count));
  }
  const environ = toEnviron(new Request("http://localhost/", { headers: { "X_Late": "a", "Proxy": "b" } }));
  assertAbsent(environ, "HTTP_X_LATE", "HTTP_PROXY");
});

// The client, and TLS.

test("REMOTE_ADDR and REMOTE_PORT are the client's", async () => {
  const { app, environs } = recorder();
  await using server = start(app);
  const closed = new Event("the end of the connection");
  const socket = connectTcp(server.port, server.hostname);
  let port: number | undefined;
  socket.on("connect", () => {
    port = socket.localPort;
    socket.write(request("/"));
  });
  socket.on("close", () => closed.happen());
  socket.resume();
  await closed.wait();
  assert.equal(environs[0]!.REMOTE_ADDR, "127.0.0.1");
  assert.equal(environs[0]!.REMOTE_PORT, String(port));
});

let certificate: { cert: string; key: string } | undefined;

/** A server with TLS and a certificate that it has signed itself. */
async function startTls(app: Application): Promise<Server> {
  certificate ??= await withFolder((folder) => {
    const [cert, key] = [join(folder, "cert.pem"), join(folder, "key.pem")];
    const algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    const subject = ["-days", "1", "-subj", "/CN=localhost"];
    const files = ["-keyout", key, "-out", cert];
    execFileSync("openssl", ["req", "-x509", ...algorithm, ...subject, ...files], { stdio: "ignore" });
    return Promise.resolve({ cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") });
  });
  return start(app, { ...HTTP2, ...certificate });
}

/** The environ of a request over TLS, and the server's port. */
async function environOverTls(raw: string): Promise<{ environ: Environ; port: number }> {
  const { app, environs } = recorder();
  await using server = await startTls(app);
  const closed = new Event("the end of the connection");
  const socket = connectTls({ port: server.port, host: server.hostname, rejectUnauthorized: false });
  socket.on("secureConnect", () => socket.write(raw));
  socket.on("close", () => closed.happen());
  socket.on("error", () => {});
  socket.resume();
  await closed.wait();
  return { environ: environs[0]!, port: server.port };
}

test("over TLS wsgi.url_scheme is https, HTTPS is on and all else is as without", async () => {
  const { environ, port } = await environOverTls(request("/p?q"));
  assert.equal(environ["wsgi.url_scheme"], "https");
  assert.equal(environ.HTTPS, "on");
  assert.equal(environ.HTTP_HOST, "test.example");
  assert.equal(environ.SERVER_NAME, "127.0.0.1");
  assert.equal(environ.SERVER_PORT, String(port));
  assert.equal(environ.REMOTE_ADDR, "127.0.0.1");
  assert.equal(environ.PATH_INFO, "/p");
  assert.equal(environ.QUERY_STRING, "q");
});

test("over TLS a target with http is https all the same", async () => {
  const { environ } = await environOverTls(request("http://other.example/p"));
  assert.equal(environ["wsgi.url_scheme"], "https");
  assert.equal(environ.HTTPS, "on");
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? "other.example" : "test.example");
});

test("over TLS HTTP/1.0 without a Host has none on Bun, and the one that Deno makes up", async () => {
  const { environ, port } = await environOverTls("GET /p HTTP/1.0\r\n\r\n");
  // It is the :authority of HTTP/2 on the same machine, from which it cannot be told.
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? `localhost:${port}` : undefined);
  assert.equal(environ.PATH_INFO, "/p");
});

test("over TLS and HTTP/2 the :authority is HTTP_HOST, localhost and the server's port as well", async () => {
  const { app, environs } = recorder();
  await using server = await startTls(app);
  for (const authority of ["example.org", `localhost:${server.port}`]) {
    const headers = { ":path": "/p", ":authority": authority };
    assert.equal(await askHttp2(`https://127.0.0.1:${server.port}`, headers), 200);
    const environ = environs.pop()!;
    assert.equal(environ.HTTP_HOST, authority);
    assert.equal(environ.HTTPS, "on");
    assert.equal(environ["wsgi.url_scheme"], "https");
  }
});

// The options environ and scriptName.

test("the deployer's pairs are in every environ, as they are", async () => {
  const value = { database: "test.db" };
  const pairs = {
    "example.object": value,
    "example.null": null,
    "example.false": false,
    EXAMPLE: "",
    HTTP_X_ADDED: "a",
  };
  const environ = await environOf(request("/"), { environ: pairs });
  assert.equal(environ["example.object"], value);
  assert.equal(environ["example.null"], null);
  assert.equal(environ["example.false"], false);
  assert.equal(environ.EXAMPLE, "");
  assert.equal(environ.HTTP_X_ADDED, "a");
});

test("the deployer's pairs replace nothing that the request or the server says", async () => {
  const headers = ["Content-Type: text/plain", "Content-Length: 0", "X-Said: a"];
  const raw = request("/p?q", { method: "POST", headers });
  const said = ["CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_X_SAID", "HTTP_HOST", "REMOTE_ADDR", "REMOTE_PORT"];
  const theirs = ["wsgi.multithread", "wsgi.multiprocess"]; // a deployer knows better
  const names = [...ALWAYS_PRESENT, ...said, "fetch.context"].filter((name) => !theirs.includes(name));
  const environ = await environOf(raw, {
    environ: Object.fromEntries(names.map((name) => [name, "deployer.example"])),
  });
  for (const name of names) assert.notEqual(environ[name], "deployer.example", name);
  assert.equal(environ.HTTP_HOST, "test.example");
  assert.equal(environ.HTTP_X_SAID, "a");
  assert.equal(environ["wsgi.url_scheme"], "http");
  assert.equal(environ.REMOTE_ADDR, "127.0.0.1");
});

test("the deployer can say that there are other threads or processes, which toFetch does not know", () => {
  const environ = { "wsgi.multithread": true, "wsgi.multiprocess": true };
  const made = toEnviron(new Request("http://localhost/"), { environ });
  assert.equal(made["wsgi.multithread"], true);
  assert.equal(made["wsgi.multiprocess"], true);
});

test("the deployer's HTTP_HOST does not replace the host of a URL", () => {
  const environ = toEnviron(new Request("http://said.example/"), { environ: { HTTP_HOST: "deployer.example" } });
  assert.equal(environ.HTTP_HOST, "said.example");
});

test("a pair that is undefined throws a TypeError that names it", () => {
  const environ = { "example.here": 1, "example.missing": undefined };
  const expected = { name: "TypeError", message: /environ.*example\.missing/ };
  assert.throws(() => toFetch(recorder().app, { environ }), expected);
  assert.throws(() => toEnviron(new Request("http://localhost/"), { environ }), expected);
  assert.throws(() => serve(recorder().app, { port: 0, environ }), expected);
});

const PREFIXES: { prefix: string; sent: string; script: string; path: string }[] = [
  { prefix: "/app", sent: "/app/x/y", script: "/app", path: "/x/y" },
  { prefix: "/app", sent: "/app", script: "/app", path: "" },
  { prefix: "/app", sent: "/app?q", script: "/app", path: "" },
  { prefix: "/app", sent: "/app/", script: "/app", path: "/" },
  { prefix: "/app", sent: "/app//x", script: "/app", path: "//x" },
  { prefix: "/app", sent: "/app/app", script: "/app", path: "/app" },
  { prefix: "/app", sent: "/%61pp/x", script: "/app", path: "/x" },
  { prefix: "/app", sent: "http://other.example/app/x", script: "/app", path: "/x" },
  { prefix: "/a/b", sent: "/a/b/c", script: "/a/b", path: "/c" },
  { prefix: "/a b", sent: "/a%20b/c", script: "/a b", path: "/c" },
  { prefix: "/a%20b", sent: "/a%20b/c", script: "/a b", path: "/c" },
  { prefix: "/café", sent: "/caf%C3%A9/x", script: native("/café"), path: "/x" },
  { prefix: "/caf%C3%A9", sent: "/caf%c3%a9/x", script: native("/café"), path: "/x" },
  { prefix: "/你", sent: native("/你/é"), script: native("/你"), path: native("/é") },
  { prefix: "", sent: "/app/x", script: "", path: "/app/x" },
];

for (const { prefix, sent, script, path } of PREFIXES) {
  test(`with scriptName "${prefix}" the target ${JSON.stringify(sent)} has the path "${path}"`, async () => {
    const environ = await environOf(request(sent), { scriptName: prefix });
    assert.equal(environ.SCRIPT_NAME, script);
    assert.equal(environ.PATH_INFO, path);
  });
}

test("scriptName leaves REQUEST_URI and QUERY_STRING alone", async () => {
  const environ = await environOf(request("/%61pp/caf%C3%A9?/app/q"), { scriptName: "/app" });
  assert.equal(environ.REQUEST_URI, "/%61pp/caf%C3%A9?/app/q");
  assert.equal(environ.QUERY_STRING, "/app/q");
  assert.equal(environ.PATH_INFO, native("/café"));
});

for (const sent of ["/", "/application", "/ap", "/App/x", "/x/app", "//app/x", "/?/app/", "/app%zz/x", "/appx/../y"]) {
  test(`with scriptName "/app" the target ${sent} is answered with 404`, async () => {
    assertRefused(await ask(request(sent), { scriptName: "/app" }), 404);
  });
}

test("a path that dots lead out of scriptName is inside on Deno, and answered with 404 on Bun", async () => {
  const outcome = await ask(request("/app/../x"), { scriptName: "/app" });
  if (RUNTIME === "bun") return assertRefused(outcome, 404);
  assert.equal(outcome.environ!.PATH_INFO, "/../x");
});

for (const wrong of ["app", "app/x", "/", "//", "/app/", "/a?b", "/a#b", "/app%2F", "/\ud800", 5, null, ["/app"]]) {
  test(`scriptName ${JSON.stringify(wrong)} throws a TypeError that names it`, () => {
    const options = { scriptName: wrong as string };
    const expected = { name: "TypeError", message: /scriptName/ };
    assert.throws(() => toFetch(recorder().app, options), expected);
    assert.throws(() => toEnviron(new Request("http://localhost/app"), options), expected);
    assert.throws(() => serve(recorder().app, { ...options, port: 0 }), expected);
  });
}

// Requests that no socket has brought.

const ADDRESSES: { url: string; name: string; port: string; host: string; scheme: string }[] = [
  { url: "http://h.example/", name: "h.example", port: "80", host: "h.example", scheme: "http" },
  { url: "http://h.example:81/", name: "h.example", port: "81", host: "h.example:81", scheme: "http" },
  { url: "https://h.example/", name: "h.example", port: "443", host: "h.example", scheme: "https" },
  { url: "https://h.example:444/", name: "h.example", port: "444", host: "h.example:444", scheme: "https" },
  { url: "http://[::1]/", name: "[::1]", port: "80", host: "[::1]", scheme: "http" },
  { url: "http://[::1]:81/", name: "[::1]", port: "81", host: "[::1]:81", scheme: "http" },
];

for (const { url, name, port, host, scheme } of ADDRESSES) {
  test(`toEnviron and toFetch take the server from the URL ${url}`, () => {
    const { app, environs } = recorder();
    toFetch(app)(new Request(url));
    for (const environ of [toEnviron(new Request(url)), environs[0]!]) {
      assert.equal(environ.SERVER_NAME, name);
      assert.equal(environ.SERVER_PORT, port);
      assert.equal(environ.HTTP_HOST, host);
      assert.equal(environ["wsgi.url_scheme"], scheme);
      assert.equal(environ.HTTPS, scheme === "https" ? "on" : undefined);
      assert.equal("HTTPS" in environ, scheme === "https");
    }
  });
}

test("toEnviron gives all that is always present", () => {
  const environ = toEnviron(new Request("http://localhost/"));
  assert.deepEqual(Object.keys(environ).sort(), [...ALWAYS_PRESENT, "HTTP_HOST", "fetch.context"].sort());
  assert.equal(Object.getPrototypeOf(environ), Object.prototype);
  assert.equal(environ["wsgi.input_terminated"], true);
});

test("toEnviron reads path, query and headers as from a socket", async () => {
  const headers: HeaderList = [["X-A", "1"], ["X-A", "2"], ["X_A", "3"], ["Content-Type", "text/plain"]];
  const environ = toEnviron(
    new Request("http://localhost/caf%C3%A9/%zz//%2F?a=%20b", { method: "PUT", headers, body: "body" }),
  );
  assert.equal(environ.REQUEST_METHOD, "PUT");
  assert.equal(environ.PATH_INFO, native("/café/%zz///"));
  assert.equal(environ.QUERY_STRING, "a=%20b");
  assert.equal(environ.REQUEST_URI, "/caf%C3%A9/%zz//%2F?a=%20b");
  assert.equal(environ.HTTP_X_A, "1, 2");
  assert.equal(environ.CONTENT_TYPE, "text/plain");
  assert.deepEqual(await environ["wsgi.input"].read(), bytes("body"));
});

test("a Host header goes before the URL", () => {
  const environ = toEnviron(new Request("http://url.example/", { headers: { Host: "header.example:81" } }));
  assert.equal(environ.HTTP_HOST, "header.example:81");
});

test("toEnviron throws on a hostile Host, and toFetch answers with 400", async () => {
  const { app, environs } = recorder();
  for (const host of ["a/b", "u:p@h", "a, b", "h:port"]) {
    const hostile = () => new Request("http://localhost/", { headers: { Host: host } });
    assert.throws(() => toEnviron(hostile()), Error);
    assert.equal((await toFetch(app)(hostile())).status, 400);
  }
  assert.equal(environs.length, 0);
});

test("toEnviron throws on a path outside scriptName, and toFetch answers with 404", async () => {
  const { app, environs } = recorder();
  const outside = () => new Request("http://localhost/application");
  assert.throws(() => toEnviron(outside(), { scriptName: "/app" }), Error);
  assert.equal((await toFetch(app, { scriptName: "/app" })(outside())).status, 404);
  assert.equal(environs.length, 0);
});

test("toEnviron takes scriptName, environ and errors", () => {
  const errors = new ErrorLog();
  const options: ToEnvironOptions = { scriptName: "/app", environ: { "example.mode": "test" }, errors };
  const environ = toEnviron(new Request("http://localhost/app/x"), options);
  assert.equal(environ.SCRIPT_NAME, "/app");
  assert.equal(environ.PATH_INFO, "/x");
  assert.equal(environ["example.mode"], "test");
  assert.equal(environ["wsgi.errors"], errors);
});

test("options that are undefined are options that are not given", () => {
  const options = { info: undefined, scriptName: undefined, environ: undefined, errors: undefined };
  const environ = toEnviron(new Request("http://localhost/app"), options);
  assert.equal(environ.SCRIPT_NAME, "");
  assert.equal(environ.PATH_INFO, "/app");
  assertAbsent(environ, "REMOTE_ADDR", "REMOTE_PORT");
});

const REQUEST = new Request("http://localhost/");

const INFOS: { what: string; info: unknown; address?: string; port?: string }[] = [
  {
    what: "Deno's information",
    info: { remoteAddr: { transport: "tcp", hostname: "192.0.2.1", port: 5000 } },
    address: "192.0.2.1",
    port: "5000",
  },
  {
    what: "Bun's server",
    info: new (class {
      readonly #peer = { address: "2001:db8::1", family: "IPv6", port: 5001 };

      requestIP(request: Request): unknown {
        return request === REQUEST ? this.#peer : null;
      }
    })(),
    address: "2001:db8::1",
    port: "5001",
  },
  {
    what: "an address without a port",
    info: { remoteAddr: { transport: "tcp", hostname: "192.0.2.1" } },
    address: "192.0.2.1",
  },
  { what: "Bun's server that knows no address", info: { requestIP: () => null } },
  { what: "Deno's information on a unix socket", info: { remoteAddr: { transport: "unix", path: "/run/socket" } } },
  { what: "another runtime's information", info: { waitUntil() {} } },
  { what: "null", info: null },
  { what: "nothing", info: undefined },
];

for (const { what, info, address, port } of INFOS) {
  test(`of ${what} toEnviron makes REMOTE_ADDR ${address ?? "absent"} and REMOTE_PORT ${port ?? "absent"}`, () => {
    const { app, environs } = recorder();
    toFetch(app)(REQUEST, info);
    for (const environ of [toEnviron(REQUEST, { info }), environs[0]!]) {
      assert.equal(environ.REMOTE_ADDR, address);
      assert.equal(environ.REMOTE_PORT, port);
      if (address === undefined) assertAbsent(environ, "REMOTE_ADDR");
      if (port === undefined) assertAbsent(environ, "REMOTE_PORT");
    }
  });
}

test("fetch.context has the request as the runtime gave it", async () => {
  const sent = new Request("http://localhost/");
  const { app, environs } = recorder();
  await toFetch(app)(sent);
  for (const environ of [toEnviron(sent), environs[0]!]) {
    assert.equal(environ["fetch.context"]!.request, sent);
    assert.equal(environ["fetch.context"]!.draining, false);
  }
});

test("the fetch.context of toEnviron reports work that fails", async () => {
  const errors = new ErrorLog();
  const environ = toEnviron(new Request("http://localhost/"), { errors });
  environ["fetch.context"]!.waitUntil(Promise.reject(new Error("The mail was not sent")));
  await errors.matches(/The mail was not sent/);
});
