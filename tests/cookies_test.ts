/**
 * `parseCookies` and `formatCookie`.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  applicationUri,
  type CookieOptions,
  formatCookie,
  mount,
  parseCookies,
  runApplication,
  testEnviron,
} from "../mod.ts";

const HEADERS: [header: string, cookies: [name: string, value: string][]][] = [
  ["a=1", [["a", "1"]]],
  ["a=1; b=2", [["a", "1"], ["b", "2"]]],
  ["a=1;b=2 ;  c = 3", [["a", "1"], ["b", "2"], ["c", "3"]]],
  ["a=1; a=2", [["a", "1"]]],
  ["a=; b", [["a", ""]]],
  ["", []],
  [";;", []],
  ["a=b=c", [["a", "b=c"]]],
  ['a="one two"', [["a", "one two"]]],
  ['a="one', [["a", '"one']]],
  ["a=%E2%82%AC%20", [["a", "€ "]]],
  ["a=caf\xc3\xa9", [["a", "café"]]],
  ["a=voil\xc3\xa0; \t b\t = \xc3\xa0 ;", [["a", "voilà"], ["b", "à"]]],
  ["a=%ff", [["a", "%ff"]]],
  ["a=\xff", [["a", "\xff"]]],
  ["a=%EF%BF%BD; b=%EF%BB%BF; c=%ED%A0%80", [["a", "\ufffd"], ["b", "\ufeff"], ["c", "%ED%A0%80"]]],
  ["a=100%", [["a", "100%"]]],
  ["__proto__=a; toString=b", [["__proto__", "a"], ["toString", "b"]]],
];

for (const [header, cookies] of HEADERS) {
  test(`parseCookies reads ${JSON.stringify(header)}`, () => {
    assert.deepEqual(Object.entries(parseCookies(testEnviron({ HTTP_COOKIE: header }))), cookies);
  });
}

test("parseCookies finds none where there is no header, not even what every object has", () => {
  assert.equal(parseCookies(testEnviron())["constructor"], undefined);
});

test("parseCookies reads what formatCookie has made of any text", () => {
  const value = 'a "quoted" word; a line\r\nof €, %41 and \0';
  const [pair] = formatCookie("name", value).split("; ");
  assert.equal(parseCookies(testEnviron({ HTTP_COOKIE: pair! }))["name"], value);
});

const FORMATTED: [options: CookieOptions, attributes: string][] = [
  [{}, "Path=/; HttpOnly; SameSite=Lax"],
  [{ maxAge: 0 }, "Max-Age=0; Path=/; HttpOnly; SameSite=Lax"],
  [
    { maxAge: 60, domain: "example.com", path: "/a" },
    "Max-Age=60; Domain=example.com; Path=/a; HttpOnly; SameSite=Lax",
  ],
  [{ httpOnly: false, sameSite: "Strict" }, "Path=/; SameSite=Strict"],
  [{ secure: true, sameSite: "None" }, "Path=/; Secure; HttpOnly; SameSite=None"],
  [{ maxAge: undefined, secure: undefined }, "Path=/; HttpOnly; SameSite=Lax"],
];

for (const [options, attributes] of FORMATTED) {
  test(`formatCookie with ${JSON.stringify(options)} gives ${attributes}`, () => {
    assert.equal(formatCookie("a", "1", options), `a=1; ${attributes}`);
  });
}

test("formatCookie takes as many bytes of name and value as browsers keep", () => {
  assert.equal(formatCookie("a", "x".repeat(4095)).split("; ")[0]!.length, 4097);
});

test("formatCookie takes the path under which an application is mounted", async () => {
  const app = mount({
    "/café": (environ, startResponse) => {
      const path = new URL(applicationUri(environ)).pathname;
      startResponse("200 OK", [["Set-Cookie", formatCookie("a", "1", { path })]]);
      return [];
    },
  });
  const { headers } = await runApplication(app, testEnviron({ PATH_INFO: "/caf\xc3\xa9/menu" }));
  assert.deepEqual(headers, [["Set-Cookie", "a=1; Path=/caf%C3%A9; HttpOnly; SameSite=Lax"]]);
});

test("formatCookie takes the prefixes of names whose promises are kept", () => {
  assert.match(formatCookie("__Host-Http-a", "1", { secure: true }), /^__Host-Http-a=1; /);
  assert.match(formatCookie("__Host-a", "1", { secure: true }), /^__Host-a=1; /);
  assert.match(formatCookie("__Secure-a", "1", { secure: true, domain: "a.example" }), /^__Secure-a=1; /);
});

const REFUSED: [name: string, value: string, options: CookieOptions, message: string][] = [
  ["a b", "1", {}, 'Cannot set the cookie "a b": its name is not a token, expected one such as "session"'],
  ["", "1", {}, 'Cannot set the cookie "": its name is not a token, expected one such as "session"'],
  ["a\r\nb", "1", {}, 'Cannot set the cookie "a\\r\\nb": its name is not a token, expected one such as "session"'],
  ["a", 1 as unknown as string, {}, 'Cannot set the cookie "a": its value is 1, expected a string: String(value)'],
  ["a", "x".repeat(4096), {}, 'Cannot set the cookie "a": it has 4097 bytes, browsers keep at most 4096'],
  ["a", "1", { sameSite: "None" }, 'Cannot set the cookie "a": it needs "secure: true"'],
  ["__Secure-a", "1", {}, 'Cannot set the cookie "__Secure-a": it needs "secure: true"'],
  [
    "__Host-a",
    "1",
    { secure: true, path: "/a" },
    'Cannot set the cookie "__Host-a": it needs the path "/", and no domain',
  ],
  [
    "__host-a",
    "1",
    { secure: true, domain: "a.example" },
    'Cannot set the cookie "__host-a": it needs the path "/", and no domain',
  ],
  ["__Http-a", "1", {}, 'Cannot set the cookie "__Http-a": it needs "secure: true"'],
  ["__Http-a", "1", { secure: true, httpOnly: false }, 'Cannot set the cookie "__Http-a": it needs "httpOnly: true"'],
  [
    "__Host-Http-a",
    "1",
    { secure: true, path: "/a" },
    'Cannot set the cookie "__Host-Http-a": it needs the path "/", and no domain',
  ],
  [
    "a",
    "1",
    { domain: "a.example." },
    'Cannot use option "domain": found "a.example.", expected a host such as "example.com"',
  ],
  ["a", "1", { path: "/;b" }, 'Cannot use option "path": found "/;b", expected a path such as "/account"'],
  ["a", "1", { path: "a" }, 'Cannot use option "path": found "a", expected a path such as "/account"'],
  ["a", "1", { domain: "a;b" }, 'Cannot use option "domain": found "a;b", expected a host such as "example.com"'],
  ["a", "1", { maxAge: -1 }, 'Cannot use option "maxAge": found -1, expected a number of seconds from 0 on'],
  [
    "a",
    "1",
    { maxAge: Infinity },
    'Cannot use option "maxAge": found Infinity, expected a number of seconds from 0 on',
  ],
];

for (const [name, value, options, message] of REFUSED) {
  test(`formatCookie refuses ${JSON.stringify(name)} of ${String(value).length} with ${JSON.stringify(options)}`, () => {
    assert.throws(() => formatCookie(name, value, options), new TypeError(message));
  });
}
