/**
 * `requestId`: an id for each request.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  application,
  type Environ,
  errorPage,
  health,
  type Middleware,
  pipeline,
  proxyFix,
  requestId,
  type RequestIdOptions,
  runApplication,
  testEnviron,
  timeout,
  toRequest,
  trustedHosts,
} from "../mod.ts";
import { explode, failing, giving, Log, never, responding, stacked, whole, withStatus } from "./middleware_support.ts";
import { bytes, Client, exchange, FAILURE, ok, parse, reportsIn, request, start, unchecked } from "./support.ts";

const UUID = /^[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/;

/** What becomes of a request's id: in the environ, in the response, and in the log. */
async function idsOf(overrides: Partial<Environ>, options?: RequestIdOptions, outside: Middleware[] = []) {
  let seen: Environ | undefined;
  const log = new Log();
  const app = stacked(
    (environ, startResponse) => {
      seen = { ...environ };
      ok(startResponse, ["x-request-id", "the application's"]);
      return [];
    },
    log.combined,
    log.json,
    ...outside,
    (app) => requestId(app, options),
  );
  const { headers } = await runApplication(app, testEnviron(overrides));
  const { fields, entry } = await log.one();
  return { environ: seen!, headers, logged: [fields.id, entry.requestId] };
}

test("requestId: a request without an id gets a new one, in the environ, in the response and in the log", async () => {
  const { environ, headers, logged } = await idsOf({});
  const id = String(environ["request.id"]);
  assert.match(id, UUID);
  assert.equal(environ.HTTP_X_REQUEST_ID, id);
  assert.deepEqual(headers.filter(([name]) => name.toLowerCase() === "x-request-id"), [["X-Request-Id", id]]);
  assert.deepEqual(logged, [id, id]);
  assert.notEqual((await idsOf({})).environ["request.id"], id);
});

test("requestId: the id is in a log inside of requestId, too", async () => {
  const log = new Log();
  await runApplication(stacked(whole(), requestId, log.combined, log.json), testEnviron());
  const { fields, entry } = await log.one();
  assert.match(String(fields.id), UUID);
  assert.equal(entry.requestId, fields.id);
});

const TRUSTED = { "10.0.0.0/8": ["10.0.0.0/8"], "the address itself": ["10.1.2.3"], "several": ["::1", "10.0.0.0/8"] };
const PEER = "10.1.2.3";

for (
  const [name, { peer, trust, isTaken }] of Object.entries<
    { peer?: string; trust?: string[] | undefined; isTaken: boolean }
  >({
    "the loopback address": { peer: "127.0.0.1", isTaken: true },
    "the loopback network": { peer: "127.8.8.8", isTaken: true },
    "the loopback address of IPv6": { peer: "::1", isTaken: true },
    "the loopback address mapped into IPv6": { peer: "::ffff:127.0.0.1", isTaken: true },
    "another address": { peer: PEER, isTaken: false },
    "another address of IPv6": { peer: "2001:db8::1", isTaken: false },
    "an address with a zone": { peer: "fe80::1%eth0", isTaken: false },
    "what is no address": { peer: "localhost", isTaken: false },
    "nobody": { isTaken: false },
    "nobody, where a unix socket is trusted": { trust: ["unix"], isTaken: true },
    "an address, where only a unix socket is trusted": { peer: "127.0.0.1", trust: ["unix"], isTaken: false },
    "an address where no one is trusted": { peer: "127.0.0.1", trust: [], isTaken: false },
    "a loopback address that is not on the list": { peer: "127.0.0.1", trust: ["10.0.0.0/8"], isTaken: false },
    "an address with a zone on the list": { peer: "fe80::1%eth0", trust: ["fe80::/10"], isTaken: true },
    "an address where all of IPv6 is trusted": { peer: "127.0.0.1", trust: ["::/0"], isTaken: false },
    "an address of IPv6 on the list": { peer: "fd00::7", trust: ["fd00::/8"], isTaken: true },
    ...Object.fromEntries(
      Object.entries(TRUSTED).map((
        [name, trust],
      ) => [`a peer on the list: ${name}`, { peer: PEER, trust, isTaken: true }]),
    ),
  })
) {
  test(`requestId: an id ${isTaken ? "is" : "is not"} taken over from ${name}`, async () => {
    const { environ, logged } = await idsOf(
      { HTTP_X_REQUEST_ID: "given-1", ...peer === undefined ? {} : { REMOTE_ADDR: peer } },
      { trust },
    );
    assert.equal(environ["request.id"] === "given-1", isTaken);
    assert.equal(environ.HTTP_X_REQUEST_ID, environ["request.id"]);
    assert.equal(logged[0], environ["request.id"]);
  });
}

for (const id of ["a", "a".repeat(128), "A-z_0.9+/=:", "Root=1-67891233-abcdef012345678912345678"]) {
  test(`requestId: ${JSON.stringify(id.slice(0, 50))} is well-formed`, async () => {
    const { environ } = await idsOf({ REMOTE_ADDR: "127.0.0.1", HTTP_X_REQUEST_ID: id });
    assert.equal(environ["request.id"], id);
  });
}

for (
  const id of [
    "",
    " ",
    "two words",
    "one, two",
    'a"quote',
    "a\\backslash",
    "line\nend",
    "end\n",
    "\r\nX-Forged: 1",
    "a".repeat(129),
    "\xe9",
    "<script>",
    "a;b",
    "\x1b[31m",
    "a%0a",
  ]
) {
  test(`requestId: ${JSON.stringify(id.slice(0, 20))} of ${id.length} is malformed, and replaced`, async () => {
    const { environ, headers, logged } = await idsOf({ REMOTE_ADDR: "127.0.0.1", HTTP_X_REQUEST_ID: id });
    assert.match(String(environ["request.id"]), UUID);
    assert.equal(environ.HTTP_X_REQUEST_ID, environ["request.id"]);
    assert.ok(headers.every(([, value]) => value !== id));
    assert.deepEqual(logged, [environ["request.id"], environ["request.id"]]);
  });
}

for (
  const [peer, isTaken] of [["127.0.0.1", true], ["203.0.113.9", false]] as const
) {
  test(`requestId: inside of proxyFix the peer ${peer} decides, not the client that it names`, async () => {
    const client = isTaken ? "203.0.113.9" : "127.0.0.1";
    const { environ } = await idsOf(
      { REMOTE_ADDR: peer, HTTP_X_FORWARDED_FOR: client, HTTP_X_REQUEST_ID: "given-1" },
      {},
      [(app) => proxyFix(app, { trust: 1 })],
    );
    assert.equal(environ.REMOTE_ADDR, client);
    assert.equal(environ["request.id"] === "given-1", isTaken);
  });
}

test("requestId: inside of proxyFix a unix socket is told from a client without an address", async () => {
  const { environ } = await idsOf(
    { REMOTE_ADDR: "203.0.113.9", HTTP_X_FORWARDED_FOR: "unknown", HTTP_X_REQUEST_ID: "given-1" },
    { trust: ["unix"] },
    [(app) => proxyFix(app, { trust: 1 })],
  );
  assert.equal(environ.REMOTE_ADDR, undefined);
  assert.match(String(environ["request.id"]), UUID);
});

test("requestId: the header can be another one", async () => {
  const app = stacked(whole(), (app) => requestId(app, { header: "X-Correlation-Id" }));
  const environ = testEnviron({ REMOTE_ADDR: "::1", HTTP_X_CORRELATION_ID: "given-1", HTTP_X_REQUEST_ID: "other" });
  const { headers } = await runApplication(app, environ);
  assert.deepEqual(headers.filter(([name]) => /-id$/i.test(name)), [["X-Correlation-Id", "given-1"]]);
});

test("requestId: the id is taken over and goes out once over the wire, also with an error page and a 304", async () => {
  const responses: Record<string, Application> = {
    "200": whole("Hello"),
    "304": responding("304 Not Modified", [], () => []),
    "404": failing(withStatus(404)),
  };
  for (const [status, app] of Object.entries(responses)) {
    await using server = start(stacked(app, requestId, errorPage));
    for (const [sent, expected] of [["given-1", /^given-1$/], ["two words", UUID]] as const) {
      const reply = await exchange(server, request("/", { headers: [`x-request-id: ${sent}`] }));
      assert.equal(reply.status, Number(status));
      const ids = reply.headers.filter(([name]) => name === "x-request-id");
      assert.equal(ids.length, 1);
      assert.match(ids[0]![1], expected);
    }
  }
});

test("requestId: a peer on a unix socket is trusted by name", async () => {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
  const unix = join(folder, "socket");
  try {
    await using server = start(stacked(whole("Hello"), (app) => requestId(app, { trust: ["unix"] })), { unix });
    const client = await Client.connect(server, { unix });
    await client.send(request("/", { headers: ["X-Request-Id: given-1"] }));
    assert.equal(new Map(parse(await client.end()).headers).get("x-request-id"), "given-1");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

for (
  const options of [
    { header: "" },
    { header: "X Request Id" },
    { header: "X-Id:" },
    { header: "X-Id\r\n" },
    { header: "X-Ïd" },
    { header: null },
    { header: 5 },
    { trust: "127.0.0.1" },
    { trust: 1 },
    { trust: [1] },
    { trust: [""] },
    { trust: ["localhost"] },
    { trust: ["10.0.0.0/33"] },
    { trust: ["10.0.0.0/-1"] },
    { trust: ["10.0.0.0/8.5"] },
    { trust: ["10.0.0.0/"] },
    { trust: ["10.0.0.0/ "] },
    { trust: ["10.0.0.0/8/8"] },
    { trust: ["10.0.0.0/0x8"] },
    { trust: ["::1/129"] },
    { trust: ["*"] },
  ]
) {
  test(`requestId: ${JSON.stringify(options)} is a TypeError`, () => {
    const wrong: RequestIdOptions = JSON.parse(JSON.stringify(options));
    assert.throws(() => requestId(whole(), wrong), TypeError);
  });
}

const ID = "given-1";
const log: Middleware = (app) => accessLog(app, { write: explode });

/** Each report about a request, by who writes it. The first middleware is the outermost. */
const REPORTS: Record<
  string,
  { app: Application; middleware?: Middleware[]; report: RegExp; sent?: Parameters<typeof request>[1] }
> = {
  "the server, in the call": { app: failing(FAILURE), report: /^Application failed on GET / },
  "the server, in a promise": { app: () => Promise.reject(FAILURE), report: /^Application failed on GET / },
  "the server, before the first byte": { app: giving(() => failingAfter()), report: /^Application failed on GET / },
  "the server, after the first byte": { app: giving(() => failingAfter("one")), report: /^Application failed on GET / },
  "the server, in the close of an array": {
    app: giving(() => Object.assign([bytes("one")], { close: explode })),
    report: /^Application failed on GET .*the trap/,
  },
  "the server, after the response": {
    app: (environ, startResponse) => {
      environ["fetch.context"]!.waitUntil(Promise.reject(FAILURE));
      ok(startResponse);
      return [];
    },
    report: /^Work after the response failed, /,
  },
  "toRequest, whose json() is not awaited": {
    app: (environ, startResponse) => {
      toRequest(environ).json();
      ok(startResponse);
      return [];
    },
    report: /^Reading the body failed on POST /,
    sent: { method: "POST", headers: ["Content-Length: 2"], body: "[]" },
  },
  "the server, where a middleware has copied the environ": {
    app: failing(FAILURE),
    middleware: [(app) => (environ, startResponse) => application(app)({ ...environ }, startResponse), requestId],
    report: /^Application failed on GET /,
  },
  "errorPage": { app: failing(FAILURE), middleware: [requestId, errorPage], report: /^Application failed on GET / },
  "errorPage outside": {
    app: failing(FAILURE),
    middleware: [errorPage, requestId],
    report: /^Application failed on GET /,
  },
  "errorPage, where render fails": {
    app: failing(withStatus(404)),
    middleware: [requestId, (app) => errorPage(app, { render: explode })],
    report: /^Error page failed on GET /,
  },
  "accessLog": { app: whole(), middleware: [requestId, log], report: /^Access log failed on GET / },
  "accessLog outside": { app: whole(), middleware: [log, requestId], report: /^Access log failed on GET / },
  "health": {
    app: whole(),
    middleware: [requestId, (app) => health(app, { ready: "/path", check: explode })],
    report: /^Health check failed on GET /,
  },
  "timeout": {
    app: () => never(),
    middleware: [requestId, (app) => timeout(app, { milliseconds: 5 })],
    report: /^timeout gave up on GET /,
  },
  "trustedHosts": {
    app: whole(),
    middleware: [requestId, (app) => trustedHosts(app, { hosts: [] })],
    report: /^trustedHosts refused GET /,
  },
  "proxyFix": {
    app: whole(),
    middleware: [requestId, (app) => proxyFix(app, { trust: [] })],
    report: /^proxyFix ignored /,
    sent: { headers: ["X-Forwarded-For: 203.0.113.7"] },
  },
};

/** A body that fails after its chunks. */
function* failingAfter(...chunks: string[]): Generator<Uint8Array> {
  for (const chunk of chunks) yield bytes(chunk);
  throw FAILURE;
}

for (const [name, { app, middleware = [requestId], report, sent = {} }] of Object.entries(REPORTS)) {
  test(`requestId: the id is in the report of ${name}`, async () => {
    // A close that fails would be a breach to a validator.
    await using server = start(unchecked(pipeline(app, ...middleware)));
    await exchange(server, request("/path", { ...sent, headers: [`X-Request-Id: ${ID}`, ...sent.headers ?? []] }));
    await server.errors.matches(report);
    const reports = reportsIn(server.errors);
    assert.equal(reports.length, 1, server.errors.text);
    assert.match(reports[0]!, /^[^:]+(?: https?:\/\/[^ ]+)?, request given-1: /);
  });
}

test("requestId: the id is in a report also where the server has no fetch.context", async () => {
  const environ = testEnviron({ REMOTE_ADDR: "127.0.0.1", HTTP_X_REQUEST_ID: ID });
  delete environ["fetch.context"];
  const { errors } = await runApplication(pipeline(failing(FAILURE), requestId, errorPage), environ);
  assert.match(errors, /^Application failed on GET \/, request given-1: Error: /);
});

test("requestId: a report about a request without an id says nothing of one", async () => {
  await using server = start(failing(FAILURE));
  await exchange(server, request("/path"));
  assert.match(server.errors.text, /^Application failed on GET \/path: Error: /);
});

test("requestId: what the application writes to wsgi.errors stays as it is", async () => {
  const app: Application = (environ, startResponse) => {
    environ["wsgi.errors"].write('{"level":"warn"}\n');
    ok(startResponse);
    return [];
  };
  assert.equal((await runApplication(stacked(app, requestId), testEnviron())).errors, '{"level":"warn"}\n');
});
