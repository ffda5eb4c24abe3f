/**
 * `health`: whether a server lives, and is ready.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Environ,
  health,
  type HealthOptions,
  type Middleware,
  runApplication,
  testEnviron,
  toFetch,
  validator,
} from "../mod.ts";
import { explode, stacked, whole } from "./middleware_support.ts";
import {
  bytes,
  Client,
  ErrorLog,
  Event,
  exchange,
  HERE,
  ok,
  parse,
  reportsOf,
  request,
  start,
  text,
  within,
} from "./support.ts";

/** What health answers, and whether the application was called. */
async function healthOf(overrides: Partial<Environ>, options?: HealthOptions) {
  let isCalled = false;
  const app = stacked((_environ, startResponse) => {
    isCalled = true;
    ok(startResponse);
    return [bytes("application")];
  }, (app) => health(app, options));
  const { status, headers, body, errors } = await runApplication(app, testEnviron(overrides));
  return { status, headers: new Map(headers), body: text(body), errors, isCalled };
}

for (
  const [name, { environ, options, isAnswered = true }] of Object.entries<
    { environ: Partial<Environ>; options?: HealthOptions; isAnswered?: boolean }
  >({
    "/livez": { environ: { PATH_INFO: "/livez" } },
    "/readyz": { environ: { PATH_INFO: "/readyz" } },
    "/readyz with a query": { environ: { PATH_INFO: "/readyz", QUERY_STRING: "verbose" } },
    "/livez by HEAD": { environ: { PATH_INFO: "/livez", REQUEST_METHOD: "HEAD" } },
    "/readyz by HEAD": { environ: { PATH_INFO: "/readyz", REQUEST_METHOD: "HEAD" } },
    "another path for life": { environ: { PATH_INFO: "/healthz" }, options: { live: "/healthz" } },
    "another path for readiness": { environ: { PATH_INFO: "/up" }, options: { ready: "/up" } },
    "a path under a prefix": { environ: { SCRIPT_NAME: "/app", PATH_INFO: "/livez" } },
    "the path that another has replaced": {
      environ: { PATH_INFO: "/livez" },
      options: { live: "/healthz" },
      isAnswered: false,
    },
    "/": { environ: { PATH_INFO: "/" }, isAnswered: false },
    "/livez/": { environ: { PATH_INFO: "/livez/" }, isAnswered: false },
    "/livez/more": { environ: { PATH_INFO: "/livez/more" }, isAnswered: false },
    "/LIVEZ": { environ: { PATH_INFO: "/LIVEZ" }, isAnswered: false },
    "a prefix alone": { environ: { SCRIPT_NAME: "/livez", PATH_INFO: "" }, isAnswered: false },
    "/livez by POST": { environ: { PATH_INFO: "/livez", REQUEST_METHOD: "POST" }, isAnswered: false },
    "/readyz by OPTIONS": { environ: { PATH_INFO: "/readyz", REQUEST_METHOD: "OPTIONS" }, isAnswered: false },
    "/readyz by get": { environ: { PATH_INFO: "/readyz", REQUEST_METHOD: "get" }, isAnswered: false },
  })
) {
  test(`health: ${isAnswered ? "answers" : "leaves to the application"}: ${name}`, async () => {
    const { status, headers, body, isCalled } = await healthOf(environ, options);
    assert.equal(status, "200 OK");
    assert.equal(isCalled, !isAnswered);
    assert.equal(body, isAnswered ? "OK\n" : "application");
    assert.equal(headers.get("Cache-Control"), isAnswered ? "no-store" : undefined);
  });
}

for (
  const [name, { check, isReady, isReported = false }] of Object.entries<
    { check: () => boolean | Promise<boolean>; isReady: boolean; isReported?: boolean }
  >({
    "is true": { check: () => true, isReady: true },
    "is false": { check: () => false, isReady: false },
    "promises true": { check: () => Promise.resolve(true), isReady: true },
    "promises false": { check: () => Promise.resolve(false), isReady: false },
    "throws": { check: () => explode(), isReady: false, isReported: true },
    "rejects": { check: () => Promise.reject(new Error("the trap")), isReady: false, isReported: true },
    "throws nothing": {
      check: () => {
        throw undefined;
      },
      isReady: false,
    },
  })
) {
  test(`health: a check that ${name} makes it ${isReady ? "ready" : "unready"}, and it lives`, async () => {
    for (const REQUEST_METHOD of ["GET", "HEAD"]) {
      const ready = await healthOf({ PATH_INFO: "/readyz", REQUEST_METHOD }, { check });
      assert.equal(ready.status, isReady ? "200 OK" : "503 Service Unavailable");
      assert.equal(ready.body, isReady ? "OK\n" : "Service Unavailable\n");
      assert.equal(ready.headers.get("Cache-Control"), "no-store");
      assert.equal(ready.isCalled, false);
      if (isReported) {
        assert.equal(reportsOf(ready.errors), 1);
        assert.match(ready.errors, /Error: the trap\n +at /);
      }
      assert.equal((await healthOf({ PATH_INFO: "/livez", REQUEST_METHOD }, { check })).status, "200 OK");
    }
  });
}

test("health: the check is asked only for readiness, each time", async () => {
  let asked = 0;
  const app = stacked(whole(), (app) => health(app, { check: () => ++asked > 1 }));
  const ask = async (PATH_INFO: string) => (await runApplication(app, testEnviron({ PATH_INFO }))).status.slice(0, 3);
  assert.deepEqual(
    [await ask("/livez"), await ask("/"), await ask("/readyz"), await ask("/readyz")],
    ["200", "200", "503", "200"],
  );
  assert.equal(asked, 2);
});

for (const draining of [false, true]) {
  test(`health: where draining is ${draining}, it is ${draining ? "not " : ""}ready, and lives`, async () => {
    const context = { ...testEnviron()["fetch.context"]!, draining };
    let checks = 0;
    const check = () => ++checks > 0;
    const ready = await healthOf({ PATH_INFO: "/readyz", "fetch.context": context }, { check });
    assert.equal(ready.status.slice(0, 3), draining ? "503" : "200");
    assert.equal(checks, draining ? 0 : 1);
    assert.equal((await healthOf({ PATH_INFO: "/livez", "fetch.context": context })).status, "200 OK");
  });
}

test("health: on a server without fetch.context it is ready", async () => {
  const environ = testEnviron({ PATH_INFO: "/readyz" });
  delete environ["fetch.context"];
  assert.equal((await runApplication(stacked(whole(), health), environ)).status, "200 OK");
});

for (const [path, status] of [["/livez", 200], ["/readyz", 503]] as const) {
  test(`health: a server that is stopping answers ${status} on ${path}`, async () => {
    const asked = new Event("a request");
    const stopping = new Event("a server that stops");
    const late: Middleware = (app) => {
      const inner = validator(app);
      return async (environ, startResponse) => {
        asked.happen();
        await stopping.wait();
        return await inner(environ, startResponse);
      };
    };
    await using server = start(stacked(whole(), late, health));
    const client = await Client.connect(server);
    await client.send(request(path));
    await asked.wait();
    const finished = server.shutdown();
    stopping.happen();
    assert.equal(parse(await client.end()).status, status);
    await within(finished, "the end of the server");
    assert.equal(server.errors.text, "");
  });
}

test("health: a server that begins to stop while the check is under way is not ready", async () => {
  const asked = new Event("a check");
  const stopping = new Event("a server that stops");
  await using server = start(stacked(whole(), (app) =>
    health(app, {
      async check() {
        asked.happen();
        await stopping.wait();
        return true;
      },
    })));
  const client = await Client.connect(server);
  await client.send(request("/readyz"));
  await asked.wait();
  const finished = server.shutdown();
  stopping.happen();
  assert.equal(parse(await client.end()).status, 503);
  await within(finished, "the end of the server");
});

test("health: under scriptName the paths are below the prefix", async () => {
  await using server = start(stacked(whole("application"), health), { scriptName: "/app" });
  assert.equal((await exchange(server, request("/app/livez"))).body, "OK\n");
  assert.equal((await exchange(server, request("/app/readyz"))).body, "OK\n");
  assert.equal((await exchange(server, request("/app"))).body, "application");
  assert.equal((await exchange(server, request("/livez"))).status, 404);
});

test("health: over the wire HEAD has the head of GET, and the answer its length", async () => {
  await using server = start(stacked(whole(), health));
  const get = await exchange(server, request("/livez"));
  const head = await exchange(server, request("/livez", { method: "HEAD" }), { head: true });
  const read = ({ headers }: typeof get) => new Map(headers.filter(([name]) => name !== "date"));
  assert.deepEqual([head.status, head.body], [200, ""]);
  assert.deepEqual(read(head), read(get));
  assert.equal(read(get).get("content-length"), "3");
});

const SECRET = "the-secret-of-the-message";

test("health: the error of a check is not sent to the client", async () => {
  const check = () => {
    throw new Error(SECRET);
  };
  const errors = new ErrorLog();
  const handler = toFetch(stacked(whole(), (app) => health(app, { check })), { errors });
  const response = await handler(new Request(`${HERE}readyz`));
  assert.equal(response.status, 503);
  assert.doesNotMatch((await response.text()) + JSON.stringify([...response.headers]), /secret/);
  assert.match(errors.text, /the-secret-of-the-message/);
});
