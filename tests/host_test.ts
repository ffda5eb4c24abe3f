/**
 * The Host of a request, as HTTP_HOST, and requests without one.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { toEnviron } from "../mod.ts";
import {
  ask,
  assertAbsent,
  assertRefused,
  environOf,
  exchange,
  native,
  recorder,
  RUNTIME,
  start,
  withHost,
} from "./support.ts";

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
    "web.1",
    "1.2.3.4.5",
    "256.256.256.256",
    "a.08",
    "xn--a",
    "a!b$c&d'e(f)g*h+i;j=k",
    "a+b:81",
    "caf%C3%A9.example",
    "%e9%41%7E",
    "h:65535",
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

test("a Host that no URL can have stands in for an absolute target's on Bun, and is replaced by it on Deno", async () => {
  for (const host of ["web.1", "xn--a", "a.08:81"]) {
    const { HTTP_HOST, PATH_INFO } = await environOf(withHost(host, "http://other.example/p"));
    assert.equal(HTTP_HOST, RUNTIME === "deno" ? "other.example" : host);
    assert.equal(PATH_INFO, "/p");
  }
});

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
  "h:65536",
  "web.1:65536",
  ":80",
  "[:::]",
  "[::1:]",
  "[1.2.3.4]",
  "[fe80::1%25eth0]",
  "[v1.a:b]",
  "a, b",
  "%",
  "a%4",
  "a%zz",
  "a%00b",
  "a%0d%0ab",
  "a%20b",
  "a%23b",
  "a%25b",
  "a%2cb",
  "a%2Fb",
  "a%3A80",
  "a%3fb",
  "u%40h",
  "a%5Cb",
  "a%7f",
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

test("a hostile Host is answered without being quoted, and is not reported as a failure of the application", async () => {
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
    for (let count = 0; count < 2000; count++) ask(`[2001:db8::${count}]`);
    assert.equal(checks, 2000);
    ask("[::1]");
    checks = 0;
    for (let count = 0; count < 10; count++) ask("[::1]");
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

test("without a Host a URL in the query is no authority, on both runtimes", async () => {
  const environ = await environOf("GET /p?u=http://other.example/x HTTP/1.0\r\n\r\n");
  assertAbsent(environ, "HTTP_HOST");
  assert.equal(environ.PATH_INFO, "/p");
  assert.equal(environ.QUERY_STRING, "u=http://other.example/x");
});

test("with a Host that no URL can have the target arrives as it was sent, on both runtimes", async () => {
  const environ = await environOf(withHost("web.1", native("//a/../é%2F\\?'é'")));
  assert.equal(environ.PATH_INFO, native("//a/../é/\\"));
  assert.equal(environ.QUERY_STRING, "'%C3%A9'");
});

test("without a Host the authority of an absolute target is HTTP_HOST on Deno, and lost on Bun", async () => {
  const environ = await environOf("GET http://other.example:81/x?y HTTP/1.0\r\n\r\n");
  assert.equal(environ.PATH_INFO, "/x");
  assert.equal(environ.QUERY_STRING, "y");
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? "other.example:81" : undefined);
});
