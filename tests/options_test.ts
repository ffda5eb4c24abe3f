/**
 * Options: whoever takes some refuses what is no object, names that do not exist, and values that could never work.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  accessLog,
  basicAuth,
  compress,
  cors,
  errorPage,
  files,
  health,
  limitBody,
  proxyFix,
  requestId,
  requestUri,
  secureHeaders,
  serve,
  testEnviron,
  timeout,
  toEnviron,
  toFetch,
  trustedHosts,
} from "../mod.ts";

/** An application that is never called. */
const IDLE = () => [];

/** Everything that takes options, called with them. What should have thrown must not keep the tests from ending. */
const CALLS: Record<string, (options: never) => unknown> = {
  serve: (options) => serve(IDLE, options).shutdown(),
  toFetch: (options) => toFetch(IDLE, options),
  toEnviron: (options) => toEnviron(new Request("http://localhost/"), options),
  requestUri: (options) => requestUri(testEnviron(), options),
  files: (options) => files(new URL(".", import.meta.url), options),
  accessLog: (options) => accessLog(IDLE, options),
  errorPage: (options) => errorPage(IDLE, options),
  proxyFix: (options) => proxyFix(IDLE, options),
  trustedHosts: (options) => trustedHosts(IDLE, options),
  compress: (options) => compress(IDLE, options),
  limitBody: (options) => limitBody(IDLE, options),
  timeout: (options) => timeout(IDLE, options),
  requestId: (options) => requestId(IDLE, options),
  cors: (options) => cors(IDLE, options),
  secureHeaders: (options) => secureHeaders(IDLE, options),
  basicAuth: (options) => basicAuth(IDLE, options),
  health: (options) => health(IDLE, options),
};

/** Calls one of them with what the compiler would refuse. */
function call(name: string, options: unknown): unknown {
  return CALLS[name]!(options as never);
}

for (const name of Object.keys(CALLS)) {
  test(`${name} refuses options that are no object, and says what they are`, () => {
    const cases: [options: unknown, shown: string][] = [
      [9000, "9000"],
      ["0.0.0.0", '"0.0.0.0"'],
      [null, "null"],
      [true, "true"],
      [[9000], "an Array"],
      [new Map([["port", 9000]]), "a Map"],
      [() => {}, "function without a name"],
    ];
    for (const [options, shown] of cases) {
      assert.throws(() => call(name, options), (error: Error) => {
        assert.equal(error.name, "TypeError");
        assert.match(error.message, /^Cannot use .* as options: expected an object such as \{ \w+(?:, [\w…]+)* \}$/);
        assert.ok(error.message.includes(shown), error.message);
        return true;
      });
    }
  });

  test(`${name} refuses an option that does not exist, even one that every object has`, () => {
    for (const unknown of ["nonsense", "constructor", "toString", "hasOwnProperty", ""]) {
      assert.throws(() => call(name, { [unknown]: 1 }), {
        name: "TypeError",
        message: new RegExp(`^Cannot use option "${unknown}": it does not exist, did you mean "\\w+"\\?$`),
      });
    }
    const inherited: unknown = JSON.parse('{ "__proto__": 1 }');
    assert.throws(() => call(name, inherited), { name: "TypeError", message: /"__proto__": it does not exist/ });
  });
}

for (
  const [name, option, nearest] of [
    ["serve", "host", "hostname"],
    ["serve", "Port", "port"],
    ["serve", "onlisten", "onListen"],
    ["serve", "maxBody", "maxBodySize"],
    ["serve", "concurency", "concurrency"],
    ["serve", "unixPath", "unix"],
    ["serve", "timeout", "shutdownTimeout"],
    ["toFetch", "script_name", "scriptName"],
    ["limitBody", "bytes", "maxBodySize"],
    ["timeout", "ms", "milliseconds"],
    ["cors", "origins", "origin"],
    ["files", "dotfiles", "dotFiles"],
    ["basicAuth", "user", "users"],
    ["accessLog", "formt", "format"],
  ] as const
) {
  test(`${name} names the option that was probably meant by "${option}"`, () => {
    assert.throws(() => call(name, { [option]: undefined }), {
      name: "TypeError",
      message: `Cannot use option "${option}": it does not exist, did you mean "${nearest}"?`,
    });
  });
}

test("an option of workers that does not exist is refused, with the nearest that does", () => {
  assert.throws(() => call("serve", { port: 0, workers: { maximum: 2 } }), {
    name: "TypeError",
    message: 'Cannot use option "workers.maximum": it does not exist, did you mean "workers.max"?',
  });
});

test("what only serve has is no option of toFetch", () => {
  assert.throws(() => call("toFetch", { port: 8000 }), { name: "TypeError", message: /option "port"/ });
});

test("options may be an object of a class, whose getters count", () => {
  const options = new class {
    get maxBodySize() {
      return "many";
    }
  }();
  assert.throws(() => call("limitBody", options), {
    name: "TypeError",
    message: 'Cannot use option "maxBodySize": found "many", expected a number of bytes',
  });
});

for (
  const [name, option, value, message] of [
    ["requestUri", "includeQuery", 1, "found 1, expected true or false"],
    ["files", "index", 5, 'found 5, expected the name of a file such as "index.html"'],
    ["files", "cacheControl", "no\ncache", 'found "no\\ncache", expected a header value such as "no-cache"'],
    ["files", "dotFiles", "no", 'found "no", expected true or false'],
    ["files", "precompressed", "gzip", 'found "gzip", expected true or false'],
    [
      "files",
      "types",
      ["gpx"],
      'found an Array, expected media types by extension, such as { gpx: "application/gpx+xml" }',
    ],
    ["accessLog", "format", "common", 'found "common", expected "combined" or "json"'],
    ["accessLog", "write", "log.txt", 'found "log.txt", expected a function'],
    ["accessLog", "skip", "/livez", 'found "/livez", expected an array of paths such as "/livez"'],
    ["errorPage", "development", "yes", 'found "yes", expected true or false'],
    ["proxyFix", "trust", 0, "found 0, expected a number of proxies or an array of their addresses"],
    ["proxyFix", "header", "X-Real-IP", 'found "X-Real-IP", expected "X-Forwarded-For" or "Forwarded"'],
    ["trustedHosts", "hosts", "a.example", 'found "a.example", expected an array of hosts such as "example.com"'],
    ["trustedHosts", "hosts", [5], 'found an Array, expected an array of hosts such as "example.com"'],
    ["compress", "threshold", -1, "found -1, expected a number of bytes"],
    ["limitBody", "maxBodySize", 1.5, "found 1.5, expected a number of bytes"],
    ["timeout", "milliseconds", NaN, "found NaN, expected a number"],
    ["requestId", "header", "X Id", 'found "X Id", expected a header name such as "X-Request-Id"'],
    ["requestId", "trust", "10.0.0.1", 'found "10.0.0.1", expected an array of addresses'],
    ["cors", "origin", [null], "found an Array, expected an origin, or an array of origins"],
    ["cors", "methods", "GET", 'found "GET", expected an array of methods such as "GET"'],
    ["cors", "headers", ["X A"], 'found an Array, expected an array of header names such as "Content-Type"'],
    ["cors", "credentials", "include", 'found "include", expected true or false'],
    ["cors", "maxAge", "600", 'found "600", expected a number of seconds'],
    [
      "secureHeaders",
      "headers",
      [["X-Frame-Options", "DENY"]],
      "found an Array, expected values by header name, or false for none",
    ],
    ["basicAuth", "realm", "Küche", 'found "Küche", expected printable ASCII'],
    [
      "basicAuth",
      "users",
      [["ada", "secret"]],
      'found an Array, expected passwords by user, such as { ada: "secret" }',
    ],
    ["basicAuth", "users", { ada: 5 }, 'found an object, expected passwords by user, such as { ada: "secret" }'],
    ["basicAuth", "check", "secret", 'found "secret", expected a function'],
    ["health", "live", "livez", 'found "livez", expected a path such as "/livez"'],
    ["health", "ready", null, 'found null, expected a path such as "/readyz"'],
    ["health", "check", true, "found true, expected a function"],
    ["toFetch", "environ", [["APP_MODE", "test"]], "found an Array, expected an object"],
    ["serve", "workers", [2], "found an Array, expected a number of threads from 1 on, or { min, max }"],
    ["serve", "deno", [], "found an Array, expected an object"],
    ["serve", "bun", [], "found an Array, expected an object"],
    ["serve", "unixMode", "660", 'found "660", expected permissions such as 0o660'],
    ["serve", "unixMode", 0o1000, "found 512, expected permissions such as 0o660"],
  ] as const
) {
  test(`${name} says what is wrong with the option ${option}: ${JSON.stringify(value)}`, () => {
    assert.throws(() => call(name, { [option]: value }), {
      name: "TypeError",
      message: `Cannot use option "${option}": ${message}`,
    });
  });
}

test("trustedHosts and basicAuth say what they cannot do without", () => {
  assert.throws(() => call("trustedHosts", {}), { name: "TypeError", message: /option "hosts": found undefined/ });
  assert.throws(() => call("basicAuth", {}), { name: "TypeError", message: /either "users" or "check"/ });
});

test("unixMode without unix is refused", () => {
  assert.throws(() => call("serve", { port: 0, unixMode: 0o660 }), {
    name: "TypeError",
    message: 'Cannot use option "unixMode" without "unix": only a unix socket has a file',
  });
});
