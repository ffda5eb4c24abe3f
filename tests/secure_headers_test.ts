/**
 * `secureHeaders`: headers that make browsers more careful.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type HeaderList,
  type Middleware,
  proxyFix,
  runApplication,
  secureHeaders,
  type SecureHeadersOptions,
  testEnviron,
  validator,
} from "../mod.ts";
import { between, through, valuesOf } from "./middleware_support.ts";
import { ok, PLAIN } from "./support.ts";

const SECURE: HeaderList = [
  ["Content-Security-Policy", "base-uri 'self'; frame-ancestors 'self'; object-src 'none'"],
  ["Cross-Origin-Opener-Policy", "same-origin"],
  ["Cross-Origin-Resource-Policy", "same-origin"],
  ["Referrer-Policy", "strict-origin-when-cross-origin"],
  ["X-Content-Type-Options", "nosniff"],
  ["X-Frame-Options", "SAMEORIGIN"],
];

test("secureHeaders adds the usual headers behind those of the application", async () => {
  const { headers } = await through((app) => secureHeaders(app), {}, [["X-Own", "1"]]);
  assert.deepEqual(headers, [...PLAIN, ["X-Own", "1"], ...SECURE]);
});

const HSTS = "Strict-Transport-Security";

for (const { scheme, values } of [{ scheme: "https", values: ["max-age=31536000"] }, { scheme: "http", values: [] }]) {
  test(`secureHeaders says ${values.length === 0 ? "nothing" : values} of transport security on ${scheme}`, async () => {
    const { headers } = await through((app) => secureHeaders(app), { "wsgi.url_scheme": scheme });
    assert.deepEqual(valuesOf(headers, HSTS), values);
  });
}

test("secureHeaders inside proxyFix goes by the client's scheme", async () => {
  const wrap: Middleware = (app) => proxyFix(validator(secureHeaders(app)));
  const { headers } = await through(wrap, { REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_PROTO: "https" });
  assert.equal(valuesOf(headers, HSTS).length, 1);
});

for (const [name] of SECURE) {
  test(`secureHeaders leaves the application's own ${name}`, async () => {
    const { headers } = await through((app) => secureHeaders(app), {}, [[name.toLowerCase(), "own"]]);
    assert.deepEqual(valuesOf(headers, name), ["own"]);
  });
}

test("secureHeaders leaves several of the application's own", async () => {
  const own: HeaderList = [["Content-Security-Policy", "one"], ["content-security-policy", "two"]];
  const { headers } = await through((app) => secureHeaders(app), {}, own);
  assert.deepEqual(valuesOf(headers, "Content-Security-Policy"), ["one", "two"]);
});

for (
  const { what, given, name, values } of [
    { what: "sets another value", given: { "X-Frame-Options": "DENY" }, name: "X-Frame-Options", values: ["DENY"] },
    { what: "sets it in lower case", given: { "x-frame-options": "DENY" }, name: "X-Frame-Options", values: ["DENY"] },
    { what: "leaves it out", given: { "Referrer-Policy": false }, name: "Referrer-Policy", values: [] },
    { what: "leaves it out in upper case", given: { "REFERRER-POLICY": false }, name: "Referrer-Policy", values: [] },
    {
      what: "adds a new one",
      given: { "Permissions-Policy": "camera=()" },
      name: "Permissions-Policy",
      values: ["camera=()"],
    },
    { what: "leaves out what is not there", given: { "X-New": false }, name: "X-New", values: [] },
    { what: "says nothing of transport security on http", given: { [HSTS]: "max-age=1" }, name: HSTS, values: [] },
  ] satisfies { what: string; given: SecureHeadersOptions["headers"]; name: string; values: string[] }[]
) {
  test(`secureHeaders ${what} with ${JSON.stringify(given)}`, async () => {
    const { headers } = await through((app) => secureHeaders(app, { headers: given }));
    assert.deepEqual(valuesOf(headers, name), values);
    assert.equal(headers.length, new Set(headers.map(([name]) => name.toLowerCase())).size);
  });
}

for (
  const { given, values } of [
    { given: { "strict-transport-security": "max-age=1" }, values: ["max-age=1"] },
    { given: { "Strict-Transport-Security": false as const }, values: [] },
  ]
) {
  test(`secureHeaders takes ${JSON.stringify(given)} on https`, async () => {
    const wrap: Middleware = (app) => secureHeaders(app, { headers: given });
    assert.deepEqual(valuesOf((await through(wrap, { "wsgi.url_scheme": "https" })).headers, HSTS), values);
  });
}

for (
  const status of [
    "204 No Content",
    "304 Not Modified",
    "301 Moved Permanently",
    "404 Not Found",
    "500 Internal Server Error",
  ]
) {
  test(`secureHeaders adds its headers to ${status}, too`, async () => {
    const app = between((app) => secureHeaders(app), (_environ, startResponse) => {
      startResponse(status, /^[23]04/.test(status) ? [] : PLAIN);
      return [];
    });
    const { headers } = await runApplication(app, testEnviron());
    assert.deepEqual(headers.slice(-SECURE.length), SECURE);
  });
}

test("secureHeaders adds its headers once to a response that replaces another", async () => {
  const app = between((app) => secureHeaders(app), (_environ, startResponse) => {
    ok(startResponse);
    startResponse("500 Internal Server Error", PLAIN, new Error("Replaced"));
    return [];
  });
  assert.deepEqual((await runApplication(app, testEnviron())).headers, [...PLAIN, ...SECURE]);
});

test("secureHeaders does not change the application's own list of headers", async () => {
  const list: HeaderList = [...PLAIN];
  const app = between((app) => secureHeaders(app), (_environ, startResponse) => {
    startResponse("200 OK", list);
    return [];
  });
  await runApplication(app, testEnviron());
  assert.deepEqual(list, PLAIN);
});
