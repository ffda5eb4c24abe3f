/**
 * What holds for all middleware.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  application,
  type ApplicationLike,
  basicAuth,
  compress,
  conditional,
  cors,
  type Environ,
  errorPage,
  type HeaderList,
  health,
  limitBody,
  limitConcurrency,
  mapBody,
  mapResponse,
  type Middleware,
  mount,
  pipeline,
  proxyFix,
  requestId,
  type ResponseBody,
  runApplication,
  secureHeaders,
  type StartResponse,
  testEnviron,
  timeout,
  toFetch,
  trustedHosts,
  validator,
  type Write,
} from "../mod.ts";
import {
  aborted,
  basic,
  between,
  Closing,
  get,
  giving,
  never,
  stacked,
  stubborn,
  telling,
  TEXT,
  unending,
  USERS,
  whole,
} from "./middleware_support.ts";
import {
  answer,
  bytes,
  Client,
  EMPTY,
  Event,
  exchange,
  HERE,
  ok,
  parse,
  PLAIN,
  reportsIn,
  request,
  settle,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

// Every middleware, with every kind of response

const GZIP = "Accept-Encoding: gzip";
const USER = `Authorization: Basic ${btoa("user:password")}`;

async function later<Value>(value: Value): Promise<Value> {
  await settle();
  return value;
}

/** Every middleware, and what a client has to say for it to be at work. */
const MIDDLEWARE: Record<string, { middleware: Middleware; headers?: string[] }> = {
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
  limitConcurrency: { middleware: (app) => limitConcurrency(app, { max: 1 }) },
  mapBody: { middleware: (app) => mapBody(app, () => ({})) },
  "mapBody with a promise": { middleware: (app) => mapBody(app, () => ({ transform: (chunk) => later(chunk) })) },
  mapResponse: { middleware: (app) => mapResponse(app, (response) => response) },
  "mapResponse with a promise": { middleware: (app) => mapResponse(app, (response) => later(response)) },
  mount: { middleware: (app) => mount({ "/": app }) },
  pipeline: { middleware: (app) => pipeline(app, requestId, conditional, errorPage) },
  proxyFix: {
    middleware: (app) => proxyFix(app, { trust: ["unix", "127.0.0.1"] }), // a request that is not sent has no peer
    headers: ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"],
  },
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

for (const [name, { middleware, headers }] of Object.entries(MIDDLEWARE)) {
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
    assert.equal(response instanceof Promise, name === "compress" || name.endsWith("with a promise"));
  });
}

// Middleware as people write it, and the validator

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

test("a middleware that fails after it has closed the body has nothing to be blamed for", async () => {
  const failing: Middleware = (app) => {
    const inner = application(app);
    return async (environ, startResponse) => {
      const body = await inner(environ, startResponse);
      await body.close?.();
      throw new Error("Out of ideas");
    };
  };
  const { response, errors } = await answer(between(failing, WAYS["a generator"]!));
  assert.equal(response.status, 500);
  assert.match(errors.text, /^Application failed on \S+ \S+: Error: Out of ideas/);
});

test("a middleware that calls the application twice, and closes both bodies at the end, has nothing to be blamed for", async () => {
  const doubling: Middleware = (app) => {
    const inner = application(app);
    return async (environ, startResponse) => {
      const first = await inner(environ, startResponse);
      const second = await inner(environ, () => () => Promise.resolve());
      return {
        async *[Symbol.asyncIterator]() {
          for (const body of [first, second]) for await (const chunk of body) yield chunk;
        },
        async close() {
          for (const body of [first, second]) await body.close?.();
        },
      };
    };
  };
  const { response, errors } = await answer(between(doubling, WAYS["a set, begun early"]!));
  assert.equal(await response.text(), "one, twoone, two");
  assert.equal(errors.text, "");
});

// accessLog, errorPage, requestId and health

const OBSERVING: Record<string, Middleware> = {
  accessLog: (app) => accessLog(app, { write: () => {} }),
  errorPage: (app) => errorPage(app),
  requestId: (app) => requestId(app),
  health: (app) => health(app),
  limitConcurrency: (app) => limitConcurrency(app, { max: 1 }),
};

for (const [name, wrap] of Object.entries(OBSERVING)) {
  test(`${name}: the first byte has left before the second chunk exists`, async () => {
    const second = new Event("permission for the second chunk");
    await using server = start(stacked(async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one ");
      await second.wait();
      yield bytes("two");
    }, wrap));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/one /);
    assert.doesNotMatch(client.received, /two/);
    second.happen();
    assert.equal(parse(await client.end()).body, "one two");
    assert.equal(server.errors.text, "");
  });

  for (
    const [when, before] of Object.entries<string[]>({
      "before the first byte": [],
      "before the first byte, after an empty chunk": [""],
      "in the middle": ["one"],
    })
  ) {
    test(`${name}: close is called once, at once, when the client leaves ${when}`, async () => {
      const closing = new Closing();
      const waiting = new Event("an application that waits");
      const never = Promise.withResolvers<void>();
      await using server = start(stacked((environ, startResponse) => {
        ok(startResponse);
        aborted(environ);
        return closing.body((async function* () {
          for (const chunk of before) yield bytes(chunk);
          waiting.happen();
          await never.promise;
        })());
      }, wrap));
      const client = await Client.connect(server);
      await client.send(request("/"));
      await waiting.wait();
      if (before.includes("one")) await client.until(/one/);
      client.leave();
      await closing.closed.wait();
      never.resolve();
      await settle();
      assert.equal(closing.count, 1);
      assert.equal(server.errors.text, "");
    });
  }

  test(`${name}: a generator that the client has left is told to return, and close is called once`, async () => {
    const closing = new Closing();
    let finished = 0;
    await using server = start(stacked((_environ, startResponse) => {
      ok(startResponse);
      return closing.body((function* () {
        try {
          for (;;) yield bytes("x".repeat(10_000));
        } finally {
          finished++;
        }
      })());
    }, wrap));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/xxx/);
    client.leave();
    await closing.closed.wait();
    await settle();
    assert.deepEqual([finished, closing.count], [1, 1]);
  });

  for (
    const [kind, make] of Object.entries<() => ResponseBody>({
      "an array": () => [bytes("body")],
      "a generator": () =>
        (function* () {
          yield bytes("body");
        })(),
      "an asynchronous generator": () =>
        (async function* () {
          await settle();
          yield bytes("body");
        })(),
      "a stream": () => ReadableStream.from([bytes("body")]),
      "nothing": () => [],
    })
  ) {
    test(`${name}: close is called once after ${kind}, and to HEAD`, async () => {
      for (const method of ["GET", "HEAD"]) {
        const closing = new Closing();
        const app: Application = (_environ, startResponse) => {
          ok(startResponse);
          return closing.body(make());
        };
        const { response, errors } = await answer(stacked(app, wrap), new Request(HERE, { method }));
        assert.equal(await response.text(), method === "HEAD" || kind === "nothing" ? "" : "body");
        await closing.closed.wait();
        await settle();
        assert.equal(closing.count, 1);
        assert.equal(errors.text, "");
      }
    });
  }

  test(`${name}: write is passed on, each chunk at once, and its promise waits`, async () => {
    const go = new Event("permission to go on");
    await using server = start(stacked(async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      await write(bytes("written, "));
      await go.wait();
      write(bytes("written again, "));
      return [bytes("returned")];
    }, wrap));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/written, /);
    go.happen();
    assert.equal(parse(await client.end()).body, "written, written again, returned");
    assert.equal(server.errors.text, "");
  });

  test(`${name}: an array stays an array, without a promise, and is sent with its length`, async () => {
    const app = stacked(whole("one", "two"), wrap);
    const body = app(testEnviron(), () => () => Promise.resolve());
    assert.ok(Array.isArray(body));
    assert.deepEqual(body.map(text), ["one", "two"]);
    (body as ResponseBody).close?.();
    await using server = start(app);
    const { headers } = await exchange(server, request("/"));
    assert.equal(new Map(headers).get("content-length"), "6");
  });

  test(`${name}: startResponse may come with the first chunk, or a second time with an error`, async () => {
    const app: Application = function* (_environ, startResponse) {
      ok(startResponse, ["X-First", "1"]);
      yield EMPTY;
      startResponse("404 Not Found", PLAIN, new Error("not there"));
      yield bytes("none");
    };
    const { response, errors } = await answer(stacked(app, wrap));
    assert.equal(response.status, 404);
    assert.equal(response.headers.get("X-First"), null);
    assert.equal(await response.text(), "none");
    assert.equal(errors.text, "");
  });

  test(`${name}: objects and classes are applications`, async () => {
    class Instances {
      constructor(readonly environ: Environ, startResponse: Parameters<Application>[1]) {
        ok(startResponse);
      }

      *[Symbol.iterator](): Generator<Uint8Array> {
        yield bytes(this.environ.PATH_INFO);
      }
    }
    for (const app of [Instances, { handle: whole("/") }]) {
      const { response } = await answer(validator(wrap(app)));
      assert.equal(await response.text(), "/");
    }
  });

  test(`${name}: a value that is not an application is a TypeError`, () => {
    assert.throws(() => wrap(JSON.parse("{}")), TypeError);
  });
}

// mount, proxyFix, trustedHosts, cors, secureHeaders and basicAuth

/** A `startResponse` that takes everything. */
const TAKE: StartResponse = () => () => Promise.resolve();

const PAGE = "https://page.example";

const HEADERS = [`Authorization: ${basic("cook:salt")}`, `Origin: ${PAGE}`, "X-Forwarded-For: 203.0.113.7"];

const VARIABLES = {
  HTTP_HOST: "test.example",
  HTTP_AUTHORIZATION: basic("cook:salt"),
  HTTP_ORIGIN: PAGE,
  HTTP_X_FORWARDED_FOR: "203.0.113.7",
};

const ROUTING: { name: string; wrap: Middleware; isAsync?: boolean; line?: RegExp }[] = [
  { name: "mount", wrap: (app) => mount({ "/": app }) },
  { name: "mount by host", wrap: (app) => mount({ "test.example/": app, "/": () => assert.fail("the wrong mount") }) },
  { name: "the fallback of mount", wrap: (app) => mount({ "/other": () => assert.fail("the wrong mount") }, app) },
  { name: "proxyFix", wrap: (app) => proxyFix(app, { trust: 1 }) },
  { name: "proxyFix for strangers", wrap: (app) => proxyFix(app, { trust: [] }), line: /^proxyFix ignored .*\n$/ },
  { name: "trustedHosts", wrap: (app) => trustedHosts(app, { hosts: ["test.example"] }) },
  { name: "cors", wrap: (app) => cors(app, { origin: PAGE, credentials: true }) },
  { name: "secureHeaders", wrap: (app) => secureHeaders(app) },
  { name: "basicAuth", wrap: (app) => basicAuth(app, { users: USERS }) },
  {
    name: "basicAuth that waits",
    wrap: (app) => basicAuth(app, { check: () => Promise.resolve(true) }),
    isAsync: true,
  },
  {
    name: "the whole stack",
    wrap: (app) =>
      pipeline(
        app,
        (app) => proxyFix(app),
        (app) => trustedHosts(app, { hosts: ["test.example"] }),
        (app) => secureHeaders(app),
        (app) => cors(app),
        (app) => mount({ "/": app }),
        (app) => basicAuth(app, { users: USERS }),
      ),
  },
];

for (const { name, wrap, isAsync, line = /^$/ } of ROUTING) {
  test(`${name} sends the first chunk before the second exists`, async () => {
    const first = new Event("the first chunk at the client");
    await using server = start(between(wrap, async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one,");
      await first.wait();
      yield bytes("two");
    }));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: HEADERS }));
    await client.until(/one,/);
    first.happen();
    const { body, complete } = parse(await client.end());
    assert.deepEqual({ body, complete }, { body: "one,two", complete: true });
    assert.match(server.errors.text, line);
  });

  test(`${name} closes the body once when the client leaves`, async () => {
    const closed = new Event("close");
    const calls: string[] = [];
    await using server = start(between(wrap, (_environ, startResponse) => {
      ok(startResponse);
      const waits = new Promise<never>(() => {});
      const chunks = [bytes("one")];
      return {
        [Symbol.asyncIterator]: () => ({
          next: async () => {
            const value = chunks.pop();
            return value ? { done: false, value } : await waits;
          },
          return: () => {
            calls.push("return");
            return Promise.resolve({ done: true, value: undefined });
          },
        }),
        close: () => {
          calls.push("close");
          closed.happen();
        },
      };
    }));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: HEADERS }));
    await client.until(/one/);
    client.leave();
    await closed.wait();
    await settle();
    assert.deepEqual(calls, ["return", "close"]);
  });

  test(`${name} passes on what is written, and then what is returned`, async () => {
    const app = between(wrap, async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      await write(bytes("written, "));
      return [bytes("returned")];
    });
    const { body } = await runApplication(app, testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" }));
    assert.equal(text(body), "written, returned");
  });

  test(`${name} passes on the error of an application, which stays the same`, async () => {
    const error = new Error("Inside");
    const environ = () => testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" });
    const fails = (): never => {
      throw error;
    };
    const isSame = (found: unknown) => found === error;
    await assert.rejects(runApplication(between(wrap, fails), environ()), isSame);
    await assert.rejects(runApplication(between(wrap, () => Promise.reject(error)), environ()), isSame);
    const late = async function* (_environ: Environ, startResponse: StartResponse): AsyncGenerator<Uint8Array> {
      ok(startResponse);
      yield bytes("one");
      fails();
    };
    await assert.rejects(runApplication(between(wrap, late), environ()), isSame);
  });

  test(`${name} passes on the error that replaces a response, or comes back when it is too late`, async () => {
    const error = new Error("Too late");
    const app = between(wrap, async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      startResponse("500 Internal Server Error", PLAIN, new Error("In time"));
      await write(bytes("sent"));
      startResponse("503 Service Unavailable", PLAIN, error);
      return [];
    });
    const environ = testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" });
    await assert.rejects(runApplication(app, environ), (found) => found === error);
  });

  test(`${name} leaves an array an array${isAsync ? "" : ", and makes no promise"}`, async () => {
    let closed = 0;
    const app = between(wrap, (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("one,"), bytes("two")], { close: () => void closed++ });
    });
    const result = app(testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" }), TAKE);
    assert.equal(result instanceof Promise, isAsync ?? false);
    const body: ResponseBody = await result;
    const chunks: unknown = body;
    assert(Array.isArray(chunks));
    assert.deepEqual(chunks.map(text), ["one,", "two"]);
    await body.close?.();
    assert.equal(closed, 1);
  });

  test(`${name} starts with the headers that the application gives, in their order`, async () => {
    const own: HeaderList = [...PLAIN, ["Set-Cookie", "a=1"], ["X-B", "\xe9"], ["Set-Cookie", "b=2"]];
    const app = between(wrap, (_environ, startResponse) => {
      startResponse("299 Own Reason", own);
      return [];
    });
    const environ = testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" });
    const { status, headers } = await runApplication(app, environ);
    assert.equal(status, "299 Own Reason");
    assert.deepEqual(headers.slice(0, own.length), own);
  });

  test(`${name} refuses what is no application`, () => {
    assert.throws(() => wrap(JSON.parse('"app"')), { name: "TypeError", message: /Cannot call "app"/ });
  });
}

for (
  const { what, wrap } of [
    { what: "mount", wrap: () => mount({}) },
    { what: "trustedHosts", wrap: (app: ApplicationLike) => trustedHosts(app, { hosts: [] }) },
    { what: "basicAuth", wrap: (app: ApplicationLike) => basicAuth(app, { users: {} }) },
  ]
) {
  test(`${what} refuses HEAD without a body`, async () => {
    await using server = start(between(wrap, telling(() => "")));
    const { status, body } = await exchange(server, request("/", { method: "HEAD" }), { head: true });
    assert(status >= 400);
    assert.equal(body, "");
  });
}

// compress, conditional, limitBody and timeout

const COMPRESS: Middleware = (app) => compress(app);
const LIMIT_BODY: Middleware = (app) => limitBody(app);
const TIMEOUT: Middleware = (app) => timeout(app);
const STACK: Middleware = (app) => pipeline(app, validator, TIMEOUT, validator, conditional, validator, COMPRESS);

/** Each middleware, and a stack of them, with a request that it has something to do with. */
const TRANSFORMS: [name: string, middleware: Middleware, headers: string[]][] = [
  ["compress", COMPRESS, ["Accept-Encoding: gzip"]],
  ["compress without a client that wants it", COMPRESS, []],
  ["conditional", conditional, ['If-None-Match: "none"']],
  ["limitBody", LIMIT_BODY, []],
  ["limitConcurrency", (app) => limitConcurrency(app, { max: 1 }), []],
  ["timeout", TIMEOUT, []],
  ["a stack of middleware", STACK, ["Accept-Encoding: br"]],
];

function fetchHeaders(headers: string[]): Record<string, string> {
  return Object.fromEntries(headers.map((line) => line.split(": ", 2)));
}

for (const [name, middleware, headers] of TRANSFORMS) {
  const failures: [name: string, app: Application][] = [
    ["throws", () => {
      throw new Error("Out of order");
    }],
    ["throws after startResponse", (_environ, startResponse) => {
      ok(startResponse);
      throw new Error("Out of order");
    }],
    ["rejects", async (_environ, startResponse) => {
      ok(startResponse);
      await settle();
      throw new Error("Out of order");
    }],
    ["fails as a generator before its first chunk", async function* (_environ, startResponse) {
      ok(startResponse);
      await settle();
      yield EMPTY;
      throw new Error("Out of order");
    }],
    ["fails as a synchronous generator", function* (_environ, startResponse) {
      ok(startResponse);
      yield EMPTY;
      throw new Error("Out of order");
    }],
    ["calls startResponse a second time", (_environ, startResponse) => {
      ok(startResponse);
      startResponse("201 Created", [...PLAIN, ["X-Reason", "Out of order"]]);
      return [];
    }],
    ["calls startResponse a second time as a generator", async function* (_environ, startResponse) {
      ok(startResponse);
      startResponse("201 Created", [...PLAIN, ["X-Reason", "Out of order"]]);
      yield await Promise.resolve(EMPTY);
    }],
  ];
  for (const [how, app] of failures) {
    test(`${name} passes on the error of an application that ${how}`, async () => {
      const { response, errors } = await answer(between(middleware, app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.equal(reportsIn(errors).length, 1, errors.text);
      assert.match(errors.text, /Out of order|startResponse was called again/);
    });
  }

  for (const [how, app] of failures) {
    test(`${name} passes on, without a validator, the error of an application that ${how}`, async () => {
      const { response, errors } = await answer(middleware(app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.equal(reportsIn(errors).length, 1, errors.text);
      assert.match(errors.text, /Out of order|startResponse was called again/);
    });
  }

  const mistakes: [name: string, status: string, headers: HeaderList, expected: RegExp][] = [
    ["a control character", "200 OK", [["Content-Type", "text/plain"], ["X-Bad", "a\nb"]], /"X-Bad"/],
    ["a length that is none", "200 OK", [["Content-Type", "text/plain"], ["Content-Length", "abc"]], /Content-Length/],
    ["a status without a reason", "200", [["Content-Type", "text/plain"]], /"200"/],
    ["a hop-by-hop header", "200 OK", [["Content-Type", "text/plain"], ["Connection", "close"]], /"Connection"/],
  ];
  for (const [what, status, wrong, expected] of mistakes) {
    test(`${name} lets an application that starts with ${what} know at once`, async () => {
      const caught = new Event<unknown>("the error of startResponse");
      const app: Application = (_environ, startResponse) => {
        try {
          startResponse(status, wrong);
        } catch (error) {
          caught.happen(error);
          startResponse("400 Bad Request", PLAIN, error);
        }
        return [bytes("Answered")];
      };
      const { response, errors } = await answer(unchecked(middleware(app)), get(fetchHeaders(headers)));
      assert.equal(errors.text, "");
      assert.equal(response.status, 400);
      assert.match(String(await caught.wait()), expected);
    });
  }

  test(`${name} lets an application replace what it has begun`, async () => {
    const app: Application = (_environ, startResponse) => {
      ok(startResponse, ["X-First", "yes"]);
      startResponse("503 Service Unavailable", [...PLAIN, ["X-Second", "yes"]], new Error("No database"));
      return [bytes("Later")];
    };
    const { response } = await answer(between(middleware, app), get(fetchHeaders(headers)));
    assert.equal(response.status, 503);
    assert.equal(response.headers.get("X-First"), null);
    assert.equal(response.headers.get("X-Second"), "yes");
    assert.equal(await response.text(), "Later");
  });

  test(`${name} passes on what is written, before what is returned`, async () => {
    const gate = new Event("the first chunk at the client");
    const app: Application = async (_environ, startResponse) => {
      const write: Write = startResponse("200 OK", PLAIN);
      await write(bytes("written, "));
      await gate.wait();
      return [bytes("returned")];
    };
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    const readable = headers.filter((header) => !header.startsWith("Accept-Encoding"));
    await client.send(request("/", { headers: readable }));
    await client.until(/written, /);
    gate.happen();
    assert.equal(parse(await client.end()).body, "written, returned");
    assert.equal(server.errors.text, "");
  });

  test(`${name} sends the first byte before the second chunk exists, and closes once at the end`, async () => {
    const gate = new Event("the first chunk at the client");
    const log: string[] = [];
    const chunks = async function* () {
      yield bytes("first");
      await gate.wait();
      log.push("second");
      yield bytes("second");
    };
    const app = giving(() => Object.assign(chunks(), { close: () => void log.push("close") }));
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await client.until(/\r\n\r\n[\da-f]+\r\n[^]/i);
    assert.deepEqual(log, []);
    gate.happen();
    assert(parse(await client.end()).complete);
    await settle();
    assert.deepEqual(log, ["second", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} aborts a response that fails after its first chunk, and closes once`, async () => {
    const log: string[] = [];
    const chunks = async function* () {
      try {
        yield bytes("first");
        await settle();
        throw new Error("Out of order");
      } finally {
        log.push("finally");
      }
    };
    const app = giving(() => Object.assign(chunks(), { close: () => void log.push("close") }));
    await using server = start(between(middleware, app));
    const reply = await exchange(server, request("/", { headers }));
    assert.equal(reply.status, 200);
    assert.equal(reply.complete, false);
    await server.errors.matches(/Out of order/);
    await settle();
    assert.deepEqual(log, ["finally", "close"]);
    assert.equal(reportsIn(server.errors).length, 1);
  });

  test(`${name} ends the application at once when the client leaves while a chunk is awaited`, async () => {
    const log: string[] = [];
    const closed = new Event("close");
    const asked = new Event("the second chunk to be asked for");
    const app = giving(() => unending(log, [bytes("first")], closed, asked));
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await client.until(/\r\n\r\n[\da-f]+\r\n[^]/i);
    await asked.wait();
    client.leave();
    await closed.wait();
    await settle();
    assert.deepEqual(log, ["return", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} ends the application at once when the client leaves before the first chunk`, async () => {
    const log: string[] = [];
    const closed = new Event("close");
    const asked = new Event("the first chunk to be asked for");
    const app: Application = (environ) => {
      assert.equal(environ["fetch.context"]!.signal.aborted, false); // or Deno does not tell
      return unending(log, [], closed, asked);
    };
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await asked.wait();
    client.leave();
    await closed.wait();
    await settle();
    assert.deepEqual(log, ["return", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} cancels a ReadableStream when the client leaves while a chunk is awaited`, async () => {
    const asked = new Event("the second chunk to be asked for");
    const cancelled = new Event("cancel");
    let pulls = 0;
    let cancels = 0;
    const app = giving(() =>
      new ReadableStream<Uint8Array>({
        pull(controller) {
          if (pulls++ === 0) return controller.enqueue(bytes("first"));
          asked.happen();
          return never();
        },
        cancel() {
          cancels++;
          cancelled.happen();
        },
      }, { highWaterMark: 0 })
    );
    await using server = start(between(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await asked.wait();
    client.leave();
    await cancelled.wait();
    await settle();
    assert.equal(cancels, 1);
    assert.equal(server.errors.text, "");
  });

  test(`${name} answers HEAD without a body, and closes once`, async () => {
    const log: string[] = [];
    const chunks = function* () {
      try {
        yield bytes(TEXT);
        yield bytes(TEXT);
      } finally {
        log.push("finally");
      }
    };
    const app = giving(() => Object.assign(chunks(), { close: () => void log.push("close") }));
    await using server = start(between(middleware, app));
    const reply = await exchange(server, request("/", { method: "HEAD", headers }), { head: true });
    assert.equal(reply.status, 200);
    assert.equal(reply.body, "");
    await settle();
    assert.deepEqual(log, ["finally", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} does not ask for a chunk ahead of the server`, async () => {
    let asked = 0;
    const app = giving(() => ({
      [Symbol.iterator]: () => ({
        next: () => ({ done: false, value: bytes(String(asked++)) }),
      }),
    }));
    const { response } = await answer(between(middleware, app), get(fetchHeaders(headers)));
    const reader = response.body!.getReader();
    await reader.read();
    await settle();
    assert(asked <= 2, `asked for ${asked} chunks`); // the runtime may have asked for its second
    await reader.cancel();
  });

  test(`${name} refuses what is no application`, () => {
    for (const wrong of [undefined, null, "app", {}, [bytes("body")]]) {
      // It is the mistake that is tested.
      assert.throws(() => middleware(wrong as unknown as ApplicationLike), TypeError);
    }
  });

  test(`${name} lets the server refuse what is no body`, async () => {
    for (const wrong of [undefined, null, 7, "body", bytes("body"), {}]) {
      const app: Application = (_environ, startResponse) => {
        ok(startResponse);
        return wrong as unknown as ResponseBody;
      };
      const { response, errors } = await answer(middleware(app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.match(errors.text, /expected an iterable/);
    }
  });

  const wrongs: [name: string, body: (chunk: Uint8Array) => ResponseBody][] = [
    ["an array", (chunk) => [chunk]],
    ["a stream", (chunk) => new Set([chunk])],
  ];
  for (const [what, body] of wrongs) {
    test(`${name} lets the server refuse text in place of bytes in ${what}`, async () => {
      const app = giving(() => body(TEXT as unknown as Uint8Array));
      const { response, errors } = await answer(middleware(app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.match(errors.text, /expected a Uint8Array/);
    });
  }
}

const HOLDING: [name: string, middleware: Middleware][] = [["compress", COMPRESS], ["conditional", conditional]];

for (const [name, middleware] of HOLDING) {
  test(`${name} passes on what the server's startResponse throws, and ends the body without waiting`, async () => {
    const log: string[] = [];
    const app = middleware(giving(() => stubborn(log)));
    const call = async () =>
      await app(testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }), () => {
        throw new Error("Refused");
      });
    await assert.rejects(within(call(), "the error"), /Refused/);
    assert.deepEqual(log, ["return", "close"]);
  });
}
