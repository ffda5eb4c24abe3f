/**
 * `cors`: responses that pages of other origins may read.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { basicAuth, cors, type HeaderList, type Middleware, runApplication, testEnviron, validator } from "../mod.ts";
import { between, shown, telling, through, valuesOf } from "./middleware_support.ts";
import { exchange, ok, PLAIN, request, start, text } from "./support.ts";

const PAGE = "https://page.example";

/** What cors says: the headers that it is about, in the order of their names. */
function said(headers: HeaderList): string[] {
  return headers.filter(([name]) => /^(?:access-control-|vary$)/i.test(name)).map((pair) => pair.join(": ")).sort();
}

for (
  const { what, options, variables, own, headers } of [
    { what: "any origin", headers: ["Access-Control-Allow-Origin: *"] },
    { what: "a request of no origin", variables: {}, headers: ["Access-Control-Allow-Origin: *"] },
    {
      what: "any origin that says null",
      variables: { HTTP_ORIGIN: "null" },
      headers: ["Access-Control-Allow-Origin: *"],
    },
    {
      what: "the one origin",
      options: { origin: PAGE },
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "one origin of several",
      options: { origin: ["https://other.example", PAGE] },
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "an origin with credentials",
      options: { origin: PAGE, credentials: true },
      headers: ["Access-Control-Allow-Credentials: true", `Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "null where it is allowed",
      options: { origin: ["null"] },
      variables: { HTTP_ORIGIN: "null" },
      headers: ["Access-Control-Allow-Origin: null", "Vary: Origin"],
    },
    {
      what: "no null otherwise",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: "null" },
      headers: ["Vary: Origin"],
    },
    { what: "no other origin", options: { origin: ["https://other.example"] }, headers: ["Vary: Origin"] },
    {
      what: "no other origin with credentials",
      options: { origin: "https://other.example", credentials: true },
      headers: ["Vary: Origin"],
    },
    { what: "nobody where nobody is allowed", options: { origin: [] }, headers: ["Vary: Origin"] },
    { what: "nobody without an origin", options: { origin: PAGE }, variables: {}, headers: ["Vary: Origin"] },
    {
      what: "no origin with another scheme",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: "http://page.example" },
      headers: ["Vary: Origin"],
    },
    {
      what: "no origin with another port",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: `${PAGE}:8443` },
      headers: ["Vary: Origin"],
    },
    {
      what: "no origin that begins alike",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: `${PAGE}.evil.org` },
      headers: ["Vary: Origin"],
    },
    {
      what: "no origin that ends alike",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: "https://evil.org/https://page.example" },
      headers: ["Vary: Origin"],
    },
    {
      what: "no list of origins",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: `${PAGE}, https://evil.org` },
      headers: ["Vary: Origin"],
    },
    {
      what: "the application's own Vary as well",
      options: { origin: PAGE },
      own: [["vary", "Accept, Cookie"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Accept, Cookie, Origin"],
    },
    {
      what: "several Vary headers in one",
      options: { origin: PAGE },
      own: [["Vary", "Accept"], ["Vary", "Cookie"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Accept, Cookie, Origin"],
    },
    {
      what: "Vary: origin as it is",
      options: { origin: PAGE },
      own: [["Vary", "Accept, origin"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Accept, origin"],
    },
    {
      what: "Vary: * as it is",
      options: { origin: PAGE },
      own: [["Vary", "*"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: *"],
    },
    {
      what: "any origin without touching Vary",
      own: [["Vary", "Accept"]] satisfies HeaderList,
      headers: ["Access-Control-Allow-Origin: *", "Vary: Accept"],
    },
    {
      what: "an origin once, whatever the application says",
      options: { origin: PAGE },
      own: [["access-control-allow-origin", "*"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "credentials once",
      options: { origin: PAGE, credentials: true },
      own: [["access-control-allow-credentials", "true"]] satisfies HeaderList,
      headers: ["Access-Control-Allow-Credentials: true", `Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "headers to be read",
      options: { exposeHeaders: ["ETag", "X-Request-Id"] },
      headers: ["Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: ETag, X-Request-Id"],
    },
    {
      what: "all headers to be read",
      options: { exposeHeaders: ["*"] },
      headers: ["Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: *"],
    },
    {
      what: "one origin to read headers, with credentials",
      options: { origin: PAGE, credentials: true, exposeHeaders: ["ETag"] },
      headers: [
        "Access-Control-Allow-Credentials: true",
        `Access-Control-Allow-Origin: ${PAGE}`,
        "Access-Control-Expose-Headers: ETag",
        "Vary: Origin",
      ],
    },
    {
      what: "no other origin to read headers",
      options: { origin: "https://other.example", exposeHeaders: ["ETag"] },
      headers: ["Vary: Origin"],
    },
    {
      what: "no headers to be read where none are named",
      options: { exposeHeaders: [] },
      headers: ["Access-Control-Allow-Origin: *"],
    },
    {
      what: "headers to be read beside the application's own",
      options: { exposeHeaders: ["X-Request-Id"] },
      own: [["Access-Control-Expose-Headers", "ETag"]] satisfies HeaderList,
      headers: [
        "Access-Control-Allow-Origin: *",
        "Access-Control-Expose-Headers: ETag",
        "Access-Control-Expose-Headers: X-Request-Id",
      ],
    },
    {
      what: "the application's own exposed headers",
      own: [["Access-Control-Expose-Headers", "ETag"]] satisfies HeaderList,
      headers: ["Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: ETag"],
    },
  ]
) {
  test(`cors allows ${what} in a response`, async () => {
    const wrap: Middleware = (app) => cors(app, options);
    const { headers: given, body } = await through(wrap, { ...variables ?? { HTTP_ORIGIN: PAGE } }, own);
    assert.deepEqual(said(given), headers);
    assert.equal(text(body), "inside");
  });
}

for (
  const { listed, sent, isAllowed } of [
    { listed: "https://App.Example", sent: "https://app.example", isAllowed: true },
    { listed: "HTTPS://app.example", sent: "https://app.example", isAllowed: true },
    { listed: "https://app.example:443", sent: "https://app.example", isAllowed: true },
    { listed: "http://app.example:0080", sent: "http://app.example", isAllowed: true },
    { listed: "https://app.example:", sent: "https://app.example", isAllowed: true },
    { listed: "https://app.example:08443", sent: "https://app.example:8443", isAllowed: true },
    { listed: "https://bücher.example", sent: "https://xn--bcher-kva.example", isAllowed: true },
    { listed: "https://[2001:DB8:0::1]:443", sent: "https://[2001:db8::1]", isAllowed: true },
    { listed: "http://app.example:443", sent: "http://app.example", isAllowed: false },
    { listed: "https://app.example:80", sent: "https://app.example", isAllowed: false },
    { listed: "https://app.example.", sent: "https://app.example", isAllowed: false },
    { listed: "capacitor://localhost", sent: "capacitor://localhost", isAllowed: true },
    { listed: "Capacitor://LocalHost:80", sent: "capacitor://localhost:80", isAllowed: true },
    { listed: "chrome-extension://AbCd", sent: "chrome-extension://abcd", isAllowed: true },
    { listed: "chrome-extension://AbCd", sent: "chrome-extension://AbCd", isAllowed: true },
    { listed: "capacitor://localhost", sent: "ionic://localhost", isAllowed: false },
    { listed: "capacitor://localhost", sent: "null", isAllowed: false },
  ]
) {
  test(`cors ${isAllowed ? "allows" : "does not allow"} ${sent} where ${listed} is listed`, async () => {
    const { headers } = await through((app) => cors(app, { origin: ["https://a.example", listed] }), {
      HTTP_ORIGIN: sent,
    });
    assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Origin"), isAllowed ? [sent] : []);
  });
}

for (
  const origin of [
    "",
    "app.example",
    "//app.example",
    "https:app.example",
    "https:///app.example",
    "https://",
    "https://app.example/",
    "https://app.example/page",
    "https://app.example?",
    "https://app.example#",
    "https://user@app.example",
    "https://app.example\\page",
    "https://*.example",
    "https://app example",
    "https://app.example:99999",
    "https://app.example:port",
    "https://[::1",
    "https://a.example, https://b.example",
    "NULL",
  ]
) {
  test(`cors refuses ${JSON.stringify(origin)}, which no browser sends as an origin`, () => {
    assert.throws(
      () => cors(() => [], { origin: ["https://a.example", origin] }),
      (error) =>
        error instanceof TypeError &&
        error.message ===
          `Cannot use option "origin": found ${
            JSON.stringify(origin)
          }, expected an origin such as "https://example.com", or "*"`,
    );
  });
}

const PREFLIGHT = { REQUEST_METHOD: "OPTIONS", HTTP_ORIGIN: PAGE, HTTP_ACCESS_CONTROL_REQUEST_METHOD: "PUT" };

const METHODS = "Access-Control-Allow-Methods: GET, HEAD, POST, PUT, PATCH, DELETE";

for (
  const { what, options, variables, headers } of [
    {
      what: "any origin and all usual methods",
      headers: [METHODS, "Access-Control-Allow-Origin: *", "Vary: Access-Control-Request-Headers"],
    },
    {
      what: "whichever headers are asked for",
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "content-type,x-a" },
      headers: [
        "Access-Control-Allow-Headers: content-type,x-a",
        METHODS,
        "Access-Control-Allow-Origin: *",
        "Vary: Access-Control-Request-Headers",
      ],
    },
    {
      what: "the headers that are named, whichever are asked for",
      options: { headers: ["Content-Type", "X-B"] },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: ["Access-Control-Allow-Headers: Content-Type, X-B", METHODS, "Access-Control-Allow-Origin: *"],
    },
    {
      what: "no headers where none are named",
      options: { headers: [] },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: [METHODS, "Access-Control-Allow-Origin: *"],
    },
    {
      what: "the methods that are named",
      options: { methods: ["GET", "PURGE"], headers: [] },
      headers: ["Access-Control-Allow-Methods: GET, PURGE", "Access-Control-Allow-Origin: *"],
    },
    {
      what: "no headers to be read",
      options: { exposeHeaders: ["ETag"], headers: [] },
      headers: [METHODS, "Access-Control-Allow-Origin: *"],
    },
    {
      what: "an answer that may be remembered",
      options: { maxAge: 600, headers: [] },
      headers: [METHODS, "Access-Control-Allow-Origin: *", "Access-Control-Max-Age: 600"],
    },
    {
      what: "an answer that must not be remembered",
      options: { maxAge: 0, headers: [] },
      headers: [METHODS, "Access-Control-Allow-Origin: *", "Access-Control-Max-Age: 0"],
    },
    {
      what: "an origin with credentials",
      options: { origin: [PAGE], credentials: true, headers: ["X-A"] },
      headers: [
        "Access-Control-Allow-Credentials: true",
        "Access-Control-Allow-Headers: X-A",
        METHODS,
        `Access-Control-Allow-Origin: ${PAGE}`,
        "Vary: Origin",
      ],
    },
    {
      what: "an origin and the headers it asks for",
      options: { origin: [PAGE] },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: [
        "Access-Control-Allow-Headers: x-a",
        METHODS,
        `Access-Control-Allow-Origin: ${PAGE}`,
        "Vary: Access-Control-Request-Headers, Origin",
      ],
    },
    {
      what: "nothing to another origin",
      options: { origin: "https://other.example", credentials: true, headers: ["X-A"], maxAge: 600 },
      headers: ["Vary: Origin"],
    },
    {
      what: "nothing to another origin that asks for headers",
      options: { origin: "https://other.example" },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: ["Vary: Access-Control-Request-Headers, Origin"],
    },
  ]
) {
  test(`cors allows ${what} in a preflight`, async () => {
    const outcome = await through((app) => cors(app, options), { ...PREFLIGHT, ...variables });
    assert.equal(outcome.status, "204 No Content");
    assert.deepEqual(said(outcome.headers), headers);
    assert.equal(outcome.headers.length, headers.length);
    assert.equal(outcome.body.length, 0);
    assert.equal(outcome.environ, undefined, "the application is not asked");
  });
}

for (
  const { what, variables } of [
    { what: "no method is asked for", variables: { REQUEST_METHOD: "OPTIONS", HTTP_ORIGIN: PAGE } },
    { what: "no origin asks", variables: { REQUEST_METHOD: "OPTIONS", HTTP_ACCESS_CONTROL_REQUEST_METHOD: "PUT" } },
    { what: "it is another method", variables: { ...PREFLIGHT, REQUEST_METHOD: "GET" } },
    { what: "it is a method in lower case", variables: { ...PREFLIGHT, REQUEST_METHOD: "options" } },
  ]
) {
  test(`cors leaves a request to the application where ${what}`, async () => {
    const { status, body, headers } = await through((app) => cors(app), variables);
    assert.equal(status, "200 OK");
    assert.equal(text(body), "inside");
    assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Origin"), ["*"]);
  });
}

test("cors calls the application for a disallowed origin, whose browser does the rest", async () => {
  const { status, environ } = await through((app) => cors(app, { origin: PAGE }), { HTTP_ORIGIN: "https://evil.org" });
  assert.equal(status, "200 OK");
  assert(environ);
});

test("cors adds its headers to a refusal from inside, so that a page can read the reason", async () => {
  const wrap: Middleware = (app) => cors(validator(basicAuth(app, { users: {} })), { origin: PAGE });
  const { status, headers } = await through(wrap, { HTTP_ORIGIN: PAGE });
  assert.equal(status, "401 Unauthorized");
  assert.deepEqual(said(headers), [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"]);
  assert.equal(valuesOf(headers, "WWW-Authenticate").length, 1);
});

test("cors answers a preflight, which has no credentials, before basicAuth asks for a password", async () => {
  const wrap: Middleware = (app) => cors(validator(basicAuth(app, { users: {} })));
  assert.equal((await through(wrap, PREFLIGHT)).status, "204 No Content");
});

test("cors adds its headers to a response that replaces another", async () => {
  const app = between((app) => cors(app), (_environ, startResponse) => {
    ok(startResponse);
    startResponse("503 Service Unavailable", PLAIN, new Error("Replaced"));
    return [];
  });
  const { status, headers } = await runApplication(app, testEnviron({ HTTP_ORIGIN: PAGE }));
  assert.equal(status, "503 Service Unavailable");
  assert.deepEqual(said(headers), ["Access-Control-Allow-Origin: *"]);
});

test("cors does not change the application's own list of headers", async () => {
  const list: HeaderList = [["Content-Type", "text/plain"], ["Vary", "Accept"]];
  const before = structuredClone(list);
  const app = between((app) => cors(app, { origin: PAGE }), (_environ, startResponse) => {
    startResponse("200 OK", list);
    return [];
  });
  await runApplication(app, testEnviron({ HTTP_ORIGIN: PAGE }));
  await runApplication(app, testEnviron({ HTTP_ORIGIN: PAGE }));
  assert.deepEqual(list, before);
});

for (const origin of ["*", ["*"], [PAGE, "*"], undefined]) {
  test(`cors refuses credentials for ${JSON.stringify(origin) ?? "any origin"}`, () => {
    assert.throws(() => cors(() => [], { origin, credentials: true }), { name: "TypeError", message: /"credentials"/ });
  });
}

for (
  const wanted of [
    "x-a\r\nSet-Cookie: a=b",
    "x-a\x01",
    "x-a\x7f",
    "x-a\0",
    '"><script>alert(1)</script>',
    "x a",
    "x-\xe9",
  ]
) {
  test(`cors does not repeat ${shown(wanted)}, which is no list of headers`, async () => {
    const variables = { ...PREFLIGHT, HTTP_ACCESS_CONTROL_REQUEST_HEADERS: wanted };
    const { status, headers } = await through((app) => cors(app), variables);
    assert.equal(status, "204 No Content");
    assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Headers"), []);
  });
}

test("cors ignores empty elements in a list of headers", async () => {
  const wanted = ",x-a, ,\tx-b,,";
  const variables = { ...PREFLIGHT, HTTP_ACCESS_CONTROL_REQUEST_HEADERS: wanted };
  const { headers } = await through((app) => cors(app), variables);
  assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Headers"), ["x-a,x-b"]);
});

for (const wanted of ["x-a\x01", "x-a\x7f", "x-\xe9"]) {
  test(`cors does not fail on a preflight that asks for ${shown(wanted)} over the wire`, async () => {
    await using server = start(between((app) => cors(app), telling(() => "")));
    const headers = [
      `Origin: ${PAGE}`,
      "Access-Control-Request-Method: PUT",
      `Access-Control-Request-Headers: ${wanted}`,
    ];
    const { status } = await exchange(server, request("/", { method: "OPTIONS", headers }));
    // A runtime may refuse the request by itself, and say so or not.
    assert([0, 204, 400].includes(status), `found ${status}`);
    assert.equal(server.errors.text, "");
  });
}
