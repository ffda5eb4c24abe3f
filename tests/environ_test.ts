/**
 * The environ: what is always there, the method, the headers, the client, and the option `environ`.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import { connect as connectTcp, isIP } from "node:net";
import { test } from "node:test";
import { type Environ, serve, toEnviron, toFetch } from "../mod.ts";
import {
  ask,
  asked,
  assertAbsent,
  assertRefused,
  bytes,
  environOf,
  Event,
  exchange,
  native,
  ok,
  recorder,
  request,
  RUNTIME,
  start,
  unchecked,
  withHost,
} from "./support.ts";

// What is always there

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
    for (const name of ["read", "read1", "readline", "readlines", Symbol.asyncIterator] as const) {
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

test("the newest release in CHANGELOG.md has a date, and the version that SERVER_SOFTWARE has", async () => {
  const { SERVER_SOFTWARE } = await environOf(request("/"));
  const changelog = readFileSync(new URL("../CHANGELOG.md", import.meta.url), "utf8");
  const [, newest] = /^## \[(?!Unreleased\])(.*)$/m.exec(changelog) ?? [];
  const [version, date = ""] = newest?.split("] - ") ?? [];
  assert.equal(`WSGI/${version}`, SERVER_SOFTWARE.split(" ")[0]);
  assert.match(date, /^\d{4}-\d{2}-\d{2}$/);
});

/** A request with these header lines and no others but Host and Connection. */
function withHeaders(...headers: string[]): string {
  return request("/", { method: "POST", headers });
}

test("environ is an ordinary object of ordinary properties, and no value is undefined", async () => {
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

test("a change that an application makes to wsgi.version does not reach the next request", () => {
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

test("SERVER_PROTOCOL is HTTP/1.1, since no runtime tells what the client spoke", async () => {
  assert.equal((await environOf(request("/"))).SERVER_PROTOCOL, "HTTP/1.1");
  assert.equal((await environOf("GET / HTTP/1.0\r\n\r\n")).SERVER_PROTOCOL, "HTTP/1.1");
});

test("toEnviron gives all that is always present", () => {
  const environ = toEnviron(new Request("http://localhost/"));
  assert.deepEqual(Object.keys(environ).sort(), [...ALWAYS_PRESENT, "HTTP_HOST", "fetch.context"].sort());
  assert.equal(Object.getPrototypeOf(environ), Object.prototype);
  assert.equal(environ["wsgi.input_terminated"], true);
});

// The method

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

// Headers

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

test("a header that the client does not send is absent", async () => {
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

// The client

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

// The option environ

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

test("a pair that is undefined throws a TypeError that names the variable", () => {
  const environ = { "example.here": 1, "example.missing": undefined };
  const expected = { name: "TypeError", message: /environ.*example\.missing/ };
  assert.throws(() => toFetch(recorder().app, { environ }), expected);
  assert.throws(() => toEnviron(new Request("http://localhost/"), { environ }), expected);
  assert.throws(() => serve(recorder().app, { port: 0, environ }), expected);
});

test("the option environ adds to the environ, and replaces nothing of the request", async () => {
  let environ: Environ | undefined;
  const added = { list: [1] };
  const pairs = {
    "example.pair": added,
    REMOTE_USER: "somebody",
    REQUEST_METHOD: "/wrong",
    PATH_INFO: "/wrong",
    QUERY_STRING: "/wrong",
    SCRIPT_NAME: "/wrong",
    SERVER_PROTOCOL: "/wrong",
    HTTP_X_SENT: "/wrong",
    CONTENT_TYPE: "/wrong",
    "wsgi.input": "/wrong",
    "wsgi.version": "/wrong",
    "fetch.context": "/wrong",
  };
  const before = { ...pairs };
  const { ask } = asked((given, startResponse) => {
    environ = given;
    ok(startResponse);
    return [];
  }, { environ: pairs });
  await ask("/path?query", { method: "POST", body: "body", headers: { "X-Sent": "true", "Content-Type": "true" } });
  assert.equal(environ!["example.pair"], added);
  assert.equal(environ!.REMOTE_USER, "somebody");
  for (const [name, value] of Object.entries(environ!)) assert.notEqual(String(value).toLowerCase(), "/wrong", name);
  assert.deepEqual(pairs, before);
});
