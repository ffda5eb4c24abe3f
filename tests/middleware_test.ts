/**
 * What holds for every middleware alike: validators above and below have nothing to complain about, no chunk is held
 * back, `write` and errors pass, and the application inside is closed once.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  application,
  basicAuth,
  compress,
  conditional,
  cors,
  errorPage,
  health,
  limitBody,
  type Middleware,
  mount,
  pipeline,
  proxyFix,
  requestId,
  runApplication,
  secureHeaders,
  timeout,
  toEnviron,
  toFetch,
  trustedHosts,
  validator,
} from "../mod.ts";
import { answer, bytes, Client, Event, ok, parse, PLAIN, request, settle, start } from "./support.ts";

const hello: Application = (_environ, startResponse) => {
  ok(startResponse);
  return [bytes("Hello")];
};

const GZIP = "Accept-Encoding: gzip";
const USER = `Authorization: Basic ${btoa("user:password")}`;

/** Every middleware, and what a client has to say for it to be at work. */
const ALL: Record<string, { middleware: Middleware; headers?: string[] }> = {
  accessLog: { middleware: (app) => accessLog(app, { write: () => {} }) },
  "accessLog in JSON": { middleware: (app) => accessLog(app, { write: () => {}, format: "json" }) },
  basicAuth: { middleware: (app) => basicAuth(app, { users: { user: "password" } }), headers: [USER] },
  "basicAuth with a promise": {
    middleware: (app) => basicAuth(app, { check: () => Promise.resolve(true) }),
    headers: [USER],
  },
  compress: { middleware: (app) => compress(app, { threshold: 0 }), headers: [GZIP] },
  "compress for a client that accepts nothing": { middleware: compress },
  conditional: { middleware: conditional, headers: ['If-None-Match: "other"'] },
  cors: { middleware: (app) => cors(app, { origin: "http://a.example" }), headers: ["Origin: http://a.example"] },
  errorPage: { middleware: errorPage },
  health: { middleware: health },
  limitBody: { middleware: limitBody },
  mount: { middleware: (app) => mount({ "/": app }) },
  pipeline: { middleware: (app) => pipeline(app, requestId, conditional, errorPage) },
  proxyFix: { middleware: proxyFix, headers: ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"] },
  requestId: { middleware: requestId },
  secureHeaders: { middleware: secureHeaders },
  timeout: { middleware: timeout },
  trustedHosts: { middleware: (app) => trustedHosts(app, { hosts: ["test.example"] }) },
  validator: { middleware: validator },
};

/** Applications that say the same in every way there is. */
const WAYS: Record<string, Application> = {
  "an array": (_environ, startResponse) => {
    ok(startResponse);
    return [bytes("one, "), bytes("two")];
  },
  "a promise of an array": async (_environ, startResponse) => {
    await Promise.resolve();
    ok(startResponse);
    return [bytes("one, "), bytes("two")];
  },
  "a generator": function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("");
    yield bytes("one, ");
    yield bytes("two");
  },
  "an async generator": async function* (_environ, startResponse) {
    ok(startResponse, ["Content-Length", "8"]);
    yield bytes("one, ");
    await Promise.resolve();
    yield bytes("two");
  },
  "a set, begun early": (_environ, startResponse) => {
    ok(startResponse);
    return new Set([bytes("one, "), bytes("two")]);
  },
  "a ReadableStream": (_environ, startResponse) => {
    ok(startResponse);
    return ReadableStream.from([bytes("one, "), bytes("two")]);
  },
  "a file": (environ, startResponse) => {
    ok(startResponse);
    return environ["wsgi.file_wrapper"](new Blob(["one, two"]));
  },
  "write()": async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    await write(bytes("one, "));
    return [bytes("two")];
  },
  "write(), which nobody waits for": (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes("one, "));
    return [bytes("two")];
  },
  "a second call with an error": function* (_environ, startResponse) {
    startResponse("404 Not Found", [...PLAIN, ["X-First", "yes"]]);
    yield bytes("");
    startResponse("200 OK", PLAIN, new Error("which made it necessary"));
    yield bytes("one, two");
  },
};

/** The headers of a request, for one that is made and not sent. */
function headersOf(lines: string[] = []): Headers {
  return new Headers(lines.map((line): [string, string] => line.split(": ") as [string, string]));
}

/** A middleware between two validators. */
function between(middleware: Middleware, app: Application): Application {
  return validator(middleware(validator(app)));
}

for (const [name, { middleware, headers }] of Object.entries(ALL)) {
  for (const [way, app] of Object.entries(WAYS)) {
    test(`${name} passes on ${way}`, async () => {
      const made = new Request("http://test.example/", { headers: headersOf(headers) });
      const { response, errors } = await answer(between(middleware, app), made);
      assert.equal(response.status, 200);
      const encoding = response.headers.get("Content-Encoding");
      const body = encoding === null ? response.body! : response.body!.pipeThrough(new DecompressionStream("gzip"));
      assert.equal(await new Response(body).text(), "one, two");
      assert.equal(response.headers.get("X-First"), null);
      assert.equal(errors.text, "");
    });
  }

  test(`${name} lets the first chunk leave before the second exists`, async () => {
    const gate = new Event("the second chunk");
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      await gate.wait();
      yield bytes("second");
    };
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: headers ?? [] }));
    await client.until(/\r\n\r\n[0-9a-f]+\r\n/);
    gate.happen();
    assert.ok(parse(await client.end()).complete);
    assert.equal(server.errors.text, "");
  });

  test(`${name} has the application closed once, and its iterator at once, when the client leaves`, async () => {
    const calls: string[] = [];
    const closed = new Event("close()");
    let asked = 0;
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      return {
        [Symbol.asyncIterator]: () => ({
          next: () => asked++ === 0 ? Promise.resolve({ done: false, value: bytes("first") }) : new Promise(() => {}),
          return() {
            calls.push("return()");
            return Promise.resolve({ done: true, value: undefined });
          },
        }),
        close() {
          calls.push("close()");
          closed.happen();
        },
      };
    };
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: headers ?? [] }));
    await client.until(/\r\n\r\n[0-9a-f]+\r\n/);
    client.leave();
    await closed.wait();
    await server.shutdown();
    assert.deepEqual(calls, ["return()", "close()"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} cancels a ReadableStream when the client leaves`, async () => {
    const cancelled = new Event("cancel()");
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      return new ReadableStream({
        start: (controller) => controller.enqueue(bytes("first")),
        cancel: () => cancelled.happen(),
      });
    };
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: headers ?? [] }));
    await client.until(/\r\n\r\n[0-9a-f]+\r\n/);
    client.leave();
    await cancelled.wait();
  });

  test(`${name} passes on a failure after the first chunk`, async () => {
    const app: Application = function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      throw new Error("Out of paper");
    };
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: headers ?? [] }));
    assert.ok(!parse(await client.end()).complete);
    assert.equal(server.errors.text.match(/Out of paper/g)?.length, 1);
  });

  test(`${name} leaves an application that exists whole as it is: without a promise, unless it has to wait`, () => {
    const handler = toFetch(between(middleware, WAYS["an array"]!));
    const response = handler(new Request("http://test.example/", { headers: headersOf(headers) }));
    assert.equal(response instanceof Promise, name === "compress" || name === "basicAuth with a promise");
  });
}

/** Options and keys that could never work, and what is said about them. */
const MISTAKES: Record<string, [wrap: () => unknown, message: RegExp]> = {
  "a mount without a slash": [() => mount({ api: hello }), /mount at "api": expected a path such as "\/api"/],
  "a mount with a star": [() => mount({ "/api/*": hello }), /mount at "\/api\/\*"/],
  "a mount on any host": [() => mount({ "*.example.com/": hello }), /mount at "\*\.example\.com\/"/],
  "no mounts": [() => mount(JSON.parse("null")), /Cannot mount null, expected applications/],
  "a Map of mounts": [() => mount(new Map([["/", () => []]]) as never), /Cannot mount .*, expected applications/],
  "any host": [() => trustedHosts(hello, { hosts: ["*"] }), /"hosts": found "\*", expected "example\.com"/],
  "a host with a star": [() => trustedHosts(hello, { hosts: ["*.a.example"] }), /"hosts": found "\*\.a\.example"/],
  "a host with a scheme": [() => trustedHosts(hello, { hosts: ["http://a.example"] }), /"hosts": found "http/],
  "an origin with a path": [() => cors(hello, { origin: "https://a.example/" }), /"origin": found "https:\/\/a/],
  "a bad header": [() => secureHeaders(hello, { headers: { "X Y": "z" } }), /"headers": a header has the name "X Y"/],
  "a time that is text": [() => timeout(hello, JSON.parse('{"milliseconds":"5"}')), /"milliseconds": found "5"/],
  "a size that is text": [() => compress(hello, JSON.parse('{"threshold":"5"}')), /"threshold": found "5"/],
  "a single address": [() => proxyFix(hello, JSON.parse('{"trust":"127.0.0.1"}')), /"trust": found "127\.0\.0\.1"/],
  "a number of proxies": [() => requestId(hello, JSON.parse('{"trust":1}')), /"trust": found 1, expected an array/],
};

for (const [mistake, [wrap, message]] of Object.entries(MISTAKES)) {
  test(`${mistake} is a TypeError that says what would be right`, () => {
    assert.throws(wrap, { name: "TypeError", message });
  });
}

/** A middleware as most people would write it: a generator around the body, and its close. */
const generator: Middleware = (app) => {
  const inner = application(app);
  return async (environ, startResponse) => {
    const body = await inner(environ, startResponse);
    return {
      async *[Symbol.asyncIterator]() {
        for await (const chunk of body) yield chunk;
      },
      close: () => body.close?.(),
    };
  };
};

for (const method of ["GET", "HEAD"]) {
  test(`a middleware that is a generator has nothing to be blamed for, and closes once: ${method}`, async () => {
    let closes = 0;
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign(new Set([bytes("one"), bytes("two")]), { close: () => void closes++ });
    };
    const made = new Request("http://test.example/", { method });
    const { response, errors } = await answer(between(generator, app), made);
    assert.equal(await response.text(), method === "HEAD" ? "" : "onetwo");
    await settle();
    assert.equal(errors.text, "");
    assert.equal(closes, 1);
  });
}

test("a middleware that reads ahead is blamed, and the process goes on", async () => {
  const ahead: Middleware = (app) => {
    const inner = application(app);
    return async function* (environ, startResponse) {
      const body = await inner(environ, startResponse) as AsyncIterable<Uint8Array>;
      const chunks = body[Symbol.asyncIterator]();
      for (let pending = chunks.next();;) {
        const step = await pending;
        if (step.done) return;
        pending = chunks.next();
        yield step.value;
      }
    };
  };
  const { response, errors } = await answer(between(ahead, WAYS["an async generator"]!));
  await assert.rejects(response.text());
  assert.match(errors.text, /The middleware broke PEP 3333, "Middleware Handling of Block Boundaries"/);
});

test("a middleware that fails with a body in its hands is blamed for not closing it", async () => {
  const failing: Middleware = (app) => {
    const inner = application(app);
    return async (environ, startResponse) => {
      await inner(environ, startResponse);
      throw new Error("Out of ideas");
    };
  };
  const { response, errors } = await answer(between(failing, WAYS["a generator"]!));
  assert.equal(response.status, 500);
  assert.match(
    errors.text,
    /The middleware broke PEP 3333, "Specification Details": it failed with Error: Out of ideas/,
  );
});

for (const length of ["", "x"]) {
  test(`limitBody counts what is read where CONTENT_LENGTH is "${length}"`, async () => {
    const counting = limitBody(async (environ, startResponse) => {
      const body = await environ["wsgi.input"].read();
      ok(startResponse);
      return [body];
    }, { maxBodySize: 2 });
    const sent = toEnviron(new Request("http://test.example/", { method: "POST", body: "five!" }));
    const { status } = await runApplication(counting, { ...sent, CONTENT_LENGTH: length });
    assert.equal(status, "413 Content Too Large");
  });
}
