/**
 * The target of a request, as PATH_INFO, QUERY_STRING and REQUEST_URI.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { requestUri, toRequest } from "../mod.ts";
import {
  ask,
  assertAbsent,
  assertRefused,
  Client,
  environOf,
  native,
  recorder,
  request,
  RUNTIME,
  start,
} from "./support.ts";

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
  { sent: "/p?a#b", path: "/p", query: "a" },
  { sent: "/p?#b", path: "/p" },
  { sent: "/p#f", path: "/p" },
  { sent: "/p#f?a", path: "/p" },
  { sent: "/p#f#g", path: "/p" },
  { sent: "/#/x?y", path: "/" },
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

test("requestUri and toRequest make an address without a fragment", async () => {
  for (const target of ["/p?a#b", "/p?a#b?c", "/p?a#/b"]) {
    const environ = await environOf(request(target));
    assert.equal(requestUri(environ), "http://test.example/p?a");
    assert.equal(toRequest(environ).url, "http://test.example/p?a");
  }
});

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
    {
      sent: "/p'?a='b'",
      deno: { path: "/p'", query: "a='b'" },
      bun: { path: "/p'", query: "a=%27b%27", uri: "/p'?a=%27b%27" },
    },
    { sent: "/caf\xe9", deno: 400, bun: { path: native("/caf\ufffd"), uri: "/caf%EF%BF%BD" } },
    { sent: "/a\x7fb", deno: 400, bun: { path: "/a\x7fb", uri: "/a%7Fb" } },
    { sent: "/a b", deno: 400, bun: 505 },
    { sent: "/a?\x7f", deno: 400, bun: { path: "/a", query: "%7F", uri: "/a?%7F" } },
    { sent: "http://]x/:", deno: 400, bun: { path: "/:", uri: "/:" } },
    { sent: "http:///x", deno: { path: "/http:///x", uri: "/http:///x" }, bun: { path: "/x", uri: "/x" } },
    { sent: "http://other.example#f", deno: { path: "/", uri: "/#f/" }, bun: { path: "/", uri: "/" } },
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

for (const target of ["ftp://a/x", "ws://a/x", "httpx://a/x", "http+unix://a/x", "HTTP+x://a/x", "s://]x/:", "S://"]) {
  test(`the target "${target}" is answered with 400, whatever the method`, async () => {
    for (const method of ["GET", "PUT"]) assertRefused(await ask(request(target, { method })), 400);
  });
}

const ABSOLUTE: Target[] = [
  { sent: "http://other.example:81/x?y", path: "/x", query: "y" },
  { sent: "http://other.example?x/y=1", path: "/", query: "x/y=1" },
  { sent: "http://other.example", path: "/" },
  { sent: "http://other.example//x", path: "//x" },
  { sent: "HTTP://test.example/x", path: "/x" },
  { sent: "https://other.example/x", path: "/x" },
  { sent: "http://other.example/x?y#z", path: "/x", query: "y" },
];

for (const { sent, path, query = "" } of ABSOLUTE) {
  test(`the absolute target ${sent} says the path and the query, and on Deno the host`, async () => {
    const environ = await environOf(request(sent));
    assert.equal(environ.PATH_INFO, path);
    assert.equal(environ.QUERY_STRING, query);
    assert.equal(environ.REQUEST_URI.split("#")[0], query === "" ? path : `${path}?${query}`);
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
