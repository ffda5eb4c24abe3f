/**
 * Failures of an application: the answer, the report, and the server that goes on.
 *
 * @module
 */

import assert from "node:assert/strict";
import { connect } from "node:net";
import { Readable } from "node:stream";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  type ApplicationLike,
  compress,
  type Environ,
  errorPage,
  fromFetch,
  type ResponseBody,
  type StartResponse,
  timeout,
  toFetch,
  validator,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  contextOf,
  EMPTY,
  ErrorLog,
  evaluate,
  Event,
  exchange,
  HERE,
  KIB,
  ok,
  parse,
  pingable,
  PLAIN,
  readChunk,
  reportsIn,
  request,
  RUNTIME,
  settle,
  start,
  startPatient,
  unchecked,
} from "./support.ts";

// Before the first byte

const SECRET = "the password is hunter2";

const FAILURES: Record<string, unknown> = {
  "an error": new Error(SECRET),
  "an error with a cause": new Error("outer", { cause: new Error(SECRET) }),
  "an error that looks like a response": Object.assign(new Error(SECRET), { status: 403, reason: SECRET }),
  "a text": SECRET,
  "a Response": new Response(SECRET),
  "undefined": undefined,
  "null": null,
  "an object without a prototype": Object.assign(Object.create(null), { SECRET }),
  "an error that cannot be read": new Proxy(new Error(SECRET), {
    get() {
      throw new Error("unreadable");
    },
  }),
  "an AbortError": new DOMException(SECRET, "AbortError"),
};

for (const [what, failure] of Object.entries(FAILURES)) {
  test(`an application that throws ${what} gets a 500 and one report, and the client learns nothing of the error`, async () => {
    const apps: ApplicationLike[] = [
      () => {
        throw failure;
      },
      () => Promise.reject(failure),
      function* (_environ, startResponse) {
        ok(startResponse);
        yield EMPTY;
        throw failure;
      },
    ];
    for (const app of apps) {
      const { response, errors } = await answer(app);
      assert.equal(response.status, 500);
      assert.equal(await response.text(), "Internal Server Error\n");
      assert.ok(![...response.headers.values()].some((value) => value.includes(SECRET)));
      await settle();
      assert.equal(reportsIn(errors).length, 1, errors.text);
      if (/^an error( with a cause)?$|^a text$/.test(what)) assert.ok(errors.text.includes(SECRET), errors.text);
    }
  });
}

// After the first byte

/** What fails after its first byte. */
const LATE_FAILURES: Record<string, (startResponse: StartResponse) => ResponseBody | Promise<ResponseBody>> = {
  *generator(startResponse) {
    ok(startResponse);
    yield bytes("first");
    throw new Error("failed by design");
  },
  async *asyncGenerator(startResponse) {
    ok(startResponse);
    yield await bytes("first");
    throw new Error("failed by design");
  },
  *declaringGenerator(startResponse) {
    ok(startResponse, ["Content-Length", "10"]);
    yield bytes("first");
    throw new Error("failed by design");
  },
  readableStream(startResponse) {
    ok(startResponse);
    let turn = 0;
    return new ReadableStream({
      pull(controller) {
        if (turn++ === 0) controller.enqueue(bytes("first"));
        else controller.error(new Error("failed by design"));
      },
    }, { highWaterMark: 0 });
  },
  *notBytes(startResponse) {
    ok(startResponse);
    yield bytes("first");
    yield "failed by design" as unknown as Uint8Array;
  },
  async writing(startResponse) {
    await startResponse("200 OK", PLAIN)(bytes("first"));
    throw new Error("failed by design");
  },
  writingWithoutWaiting(startResponse) {
    startResponse("200 OK", PLAIN)(bytes("first"));
    throw new Error("failed by design");
  },
};

for (const [name, fail] of Object.entries(LATE_FAILURES)) {
  test(`a failure after the first byte never looks complete, and is logged once: ${name}`, async () => {
    const app: Application = (_environ, startResponse) => fail(startResponse);
    await using server = startPatient(name === "notBytes" ? unchecked(app) : app);
    const client = await Client.connect(server);
    await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
    const reply = parse(await client.end());
    assert.equal(reply.complete, false);
    assert.ok("first".startsWith(reply.body));
    assert.equal(server.errors.text.split("failed by design").length, 2);
  });
}

test("a failure after the first byte is a reset for a client of HTTP/1.0, except on Deno", async () => {
  await using server = startPatient((_environ, startResponse) => LATE_FAILURES["generator"]!(startResponse));
  const socket = connect(server.port, server.hostname, () => void socket.write("GET / HTTP/1.0\r\nHost: a\r\n\r\n"));
  const ended = new Event<string>("the end of the connection");
  socket.on("data", () => {});
  socket.once("end", () => ended.happen("complete"));
  socket.once("error", () => ended.happen("reset"));
  // Without chunks the end of the connection is that of the body, and Deno has no other way to end it.
  assert.equal(await ended.wait(), RUNTIME === "deno" ? "complete" : "reset");
  socket.destroy();
});

// Whatever is thrown, and wherever

/** Throws at every touch. */
const UNTOUCHABLE = new Proxy({}, {
  get() {
    throw new Error("not to be read");
  },
  getPrototypeOf() {
    throw new Error("not to be known");
  },
});

const CYCLIC = new Error("cyclic");
CYCLIC.cause = new Error("cause", { cause: CYCLIC });

const HOSTILE: Record<string, unknown> = {
  "undefined": undefined,
  "null": null,
  "zero": 0,
  "an empty string": "",
  "a symbol": Symbol("thrown"),
  "a function": () => {},
  "an object without a prototype": Object.create(null),
  "an object with getters that throw": {
    get name() {
      throw new Error("not to be read");
    },
    get message() {
      throw new Error("not to be read");
    },
    get stack() {
      throw new Error("not to be read");
    },
    get then() {
      throw new Error("not to be read");
    },
  },
  "an error with getters that throw": Object.defineProperties(new Error("hidden"), {
    name: {
      get() {
        throw new Error("not to be read");
      },
    },
    stack: {
      get() {
        throw new Error("not to be read");
      },
    },
  }),
  "an error whose stack is a symbol": Object.assign(new Error("hidden"), { stack: Symbol("stack") }),
  "an error whose stack is an object": Object.assign(new Error("hidden"), {
    stack: {
      toString() {
        throw new Error("not to be read");
      },
    },
  }),
  "an error whose cause is itself": CYCLIC,
  "an error whose cause throws": new Error("outside", { cause: UNTOUCHABLE }),
  "a proxy that throws at every touch": UNTOUCHABLE,
  "a revoked proxy": (() => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    return proxy;
  })(),
  "a proxy of a promise": new Proxy(Promise.resolve(), {}),
};

/** Where it may be thrown, and whether the response is then a 500. */
const THROWERS: Record<string, { reply: 500 | "aborted" | "whole"; app(thrown: unknown): Application }> = {
  "the application": {
    reply: 500,
    app: (thrown) => () => {
      throw thrown;
    },
  },
  "an async application": {
    reply: 500,
    app: (thrown) => async () => {
      await undefined;
      throw thrown;
    },
  },
  "a generator before the first chunk": {
    reply: 500,
    app: (thrown) =>
      function* (_environ, startResponse) {
        ok(startResponse);
        yield EMPTY;
        throw thrown;
      },
  },
  "a generator after the first chunk": {
    reply: "aborted",
    app: (thrown) =>
      function* (_environ, startResponse) {
        ok(startResponse);
        yield bytes("one");
        throw thrown;
      },
  },
  "an async generator after the first chunk": {
    reply: "aborted",
    app: (thrown) =>
      async function* (_environ, startResponse) {
        ok(startResponse);
        yield await bytes("one");
        throw thrown;
      },
  },
  "an application that writes": {
    reply: "aborted",
    app: (thrown) => async (_environ, startResponse) => {
      await startResponse("200 OK", PLAIN)(bytes("one"));
      throw thrown;
    },
  },
  "close()": {
    reply: "whole",
    app: (thrown) => (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("one")], {
        close() {
          throw thrown;
        },
      });
    },
  },
  "an async close()": {
    reply: "whole",
    app: (thrown) => (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("one")], {
        async close() {
          await undefined;
          throw thrown;
        },
      });
    },
  },
  "a generator after the declared length": {
    reply: "whole",
    app: (thrown) =>
      function* (_environ, startResponse) {
        ok(startResponse, ["Content-Length", "3"]);
        yield bytes("one");
        throw thrown;
      },
  },
  "work that was waited for": {
    reply: "whole",
    app: (thrown) => (environ, startResponse) => {
      contextOf(environ).waitUntil(
        Promise.resolve().then(() => {
          throw thrown;
        }),
      );
      ok(startResponse);
      return [bytes("one")];
    },
  },
};

for (const [what, thrown] of Object.entries(HOSTILE)) {
  test(`whatever is thrown anywhere is logged, and the server goes on: ${what}`, async () => {
    for (const [where, { reply: expected, app }] of Object.entries(THROWERS)) {
      const server = startPatient(pingable(app(thrown)));
      const reply = await exchange(server, request("/"));
      if (expected === 500) assert.equal(reply.status, 500, where);
      else assert.equal(reply.complete, expected === "whole", where);
      await server.errors.matches(/\n$/);
      assert.equal((await exchange(server, request("/ping"))).body, "pong", where);
      await server.shutdown();
    }
  });

  test(`whatever is thrown after the client has left, the server goes on: ${what}`, async () => {
    const waiting = new Event("an application that waits");
    const closed = new Event("close()");
    const go = new Event("permission to go on");
    const server = startPatient(pingable((_environ, startResponse) => {
      ok(startResponse);
      return Object.assign(
        (async function* () {
          yield bytes("one");
          waiting.happen();
          await go.wait();
          throw thrown;
        })(),
        { close: () => closed.happen() },
      );
    }));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/one/);
    await waiting.wait();
    client.leave();
    await closed.wait();
    go.happen();
    assert.equal((await exchange(server, request("/ping"))).body, "pong");
    await server.shutdown();
  });
}

// After the client has left

/** What an application does after its client has left; an unhandled rejection would end the process. */
const ABANDONED: Record<string, (startResponse: StartResponse, gone: Promise<void>) => Promise<ResponseBody>> = {
  async "ignores what write() returns"(startResponse, gone) {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("one"));
    await gone;
    for (let count = 0; count < 100; count++) write(new Uint8Array(64 * KIB));
    return [bytes("two")];
  },
  async "waits for what write() returns"(startResponse, gone) {
    const write = startResponse("200 OK", PLAIN);
    await write(bytes("one"));
    await gone;
    for (;;) await write(new Uint8Array(64 * KIB));
  },
  async "throws"(startResponse, gone) {
    await startResponse("200 OK", PLAIN)(bytes("one"));
    await gone;
    throw new Error("nobody is there");
  },
  async "returns a generator that fails"(startResponse, gone) {
    await startResponse("200 OK", PLAIN)(bytes("one"));
    await gone;
    return (function* () {
      yield EMPTY;
      throw new Error("nobody is there");
    })();
  },
};

for (const [what, abandon] of Object.entries(ABANDONED)) {
  test(`the server goes on when the client has left an application that ${what}`, async () => {
    const gone = new Event("a client that leaves");
    const done = new Event("the end of the application");
    await using server = startPatient(pingable(async (environ, startResponse) => {
      contextOf(environ).signal.addEventListener("abort", () => gone.happen());
      try {
        return await abandon(startResponse, gone.wait());
      } finally {
        done.happen();
      }
    }));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/one/);
    client.leave();
    await done.wait();
    assert.equal((await exchange(server, request("/ping"))).body, "pong");
  });
}

/** Where the body is when its client leaves. */
const WRAPS: Record<string, (app: Application) => Application> = {
  "by itself": (app) => app,
  "in an access log": (app) => accessLog(app, { write() {} }),
  "in an error page": (app) => errorPage(app),
  "in a timeout": (app) => timeout(app),
  "compressed": (app) => compress(app),
  "in a validator": (app) => validator(app),
};

/** A stream of Node's that gives one chunk, and then nothing. */
function nodeStream(waits: () => void): Readable {
  let asked = 0;
  return new Readable({
    read() {
      if (asked++ === 0) this.push(bytes("one"));
      else waits();
    },
  });
}

/** Bodies that wait for ever, until something destroys them, and how that is told to whoever waits. */
const DESTROYED: Record<string, (environ: Environ, waits: () => void) => ResponseBody> = {
  "a stream of Node's, by close()": (_environ, waits) => {
    const stream = nodeStream(waits);
    return { [Symbol.asyncIterator]: () => stream[Symbol.asyncIterator](), close: () => void stream.destroy() };
  },
  "a stream of Node's, by the signal": (environ, waits) => {
    const stream = nodeStream(waits);
    // Read after the first chunk, when it costs nothing.
    const listen = () => {
      environ["fetch.context"]!.signal.addEventListener("abort", () => stream.destroy());
      waits();
    };
    return (async function* () {
      yield bytes("one");
      listen();
      yield* stream as AsyncIterable<Uint8Array>;
    })();
  },
  "an iterator of its own, by close()": (_environ, waits) => {
    const { promise, reject } = Promise.withResolvers<IteratorResult<Uint8Array>>();
    let asked = 0;
    const next = () => {
      if (asked++ === 0) return Promise.resolve({ done: false as const, value: bytes("one") });
      waits();
      return promise;
    };
    return { [Symbol.asyncIterator]: () => ({ next }), close: () => reject(new Error("The cursor was closed")) };
  },
};

for (const [what, body] of Object.entries(DESTROYED)) {
  for (const [where, wrap] of Object.entries(WRAPS)) {
    test(`a pending next() that fails because the client has left is not reported: ${what}, ${where}`, async () => {
      const waits = new Event("a pending next()");
      const closed = new Event("close()");
      const app: Application = (environ, startResponse) => {
        ok(startResponse);
        const inner = body(environ, () => waits.happen());
        const close = async () => {
          await inner.close?.();
          closed.happen();
        };
        return { [Symbol.asyncIterator]: () => (inner as AsyncIterable<Uint8Array>)[Symbol.asyncIterator](), close };
      };
      await using server = start(unchecked(wrap(app)));
      const client = await Client.connect(server);
      await client.send(request("/"));
      await client.until(/one/);
      await waits.wait();
      client.leave();
      await closed.wait();
      await settle();
      assert.equal(server.errors.text, "");
    });
  }
}

for (const [what, body] of Object.entries(DESTROYED)) {
  test(`a pending next() that fails because of a timeout is not reported: ${what}`, async () => {
    const closed = new Event("close()");
    const app: Application = (environ) => {
      const inner = body(environ, () => {});
      const chunks = (inner as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
      const close = async () => {
        await inner.close?.();
        closed.happen();
      };
      const next = async (): Promise<never> => {
        for (;;) await chunks.next();
      };
      return { [Symbol.asyncIterator]: () => ({ next }), close };
    };
    await using server = start(unchecked(timeout(app, { milliseconds: 10 })));
    assert.equal((await exchange(server, request("/"))).status, 504);
    await closed.wait();
    await settle();
    assert.match(server.errors.text, /^timeout gave up on GET .*\n$/);
  });
}

test("a generator that fails by itself after its client has left is reported", async () => {
  const { promise, reject } = Promise.withResolvers<never>();
  const left = new Event("the client to leave");
  const app: Application = async function* (environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    environ["fetch.context"]!.signal.addEventListener("abort", () => left.happen());
    await promise;
  };
  await using server = start(accessLog(app, { write() {} }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  client.leave();
  await left.wait();
  await settle();
  reject(new Error("The transaction was not committed"));
  await server.errors.matches(/The transaction was not committed/);
});

test("an application that throws the reason of a signal that has aborted already does no harm", async () => {
  const errors = new ErrorLog();
  const handler = toFetch(async function* (environ, startResponse) {
    environ["fetch.context"]!.signal.throwIfAborted();
    ok(startResponse);
    yield bytes("never");
  }, { errors });
  const { status } = await handler(new Request("http://test.example/", { signal: AbortSignal.abort() }));
  assert.equal(status, 499);
  await new Promise((resolve) => setTimeout(resolve)); // the turn in which an unhandled rejection would end the process
  assert.equal(errors.text, "");
});

test("a generator that makes its own client leave is not reported", async () => {
  const client = new AbortController();
  const { response, errors } = await answer(
    function* (environ, startResponse) {
      ok(startResponse);
      contextOf(environ).signal.addEventListener("abort", () => {});
      client.abort();
      yield bytes("never");
    },
    new Request(HERE, { signal: client.signal }),
  );
  await settle();
  assert.equal(response.status, 499);
  assert.equal(errors.text, "");
});

test("a client that leaves a stream from nested handlers is no failure", async () => {
  const started = new Event("a stream");
  const closed = new Event("the end of the inner generator");
  await using server = startPatient(fromFetch(toFetch(async function* (environ, startResponse) {
    ok(startResponse);
    const { signal } = environ["fetch.context"]!;
    try {
      yield bytes("first");
      started.happen();
      await new Promise((_resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    } finally {
      closed.happen();
    }
  })));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  await started.wait();
  client.leave();
  await closed.wait();
  await settle();
  assert.equal(server.errors.text, "");
});

test("a chunk that comes in the moment in which the client leaves is dropped, and not reported", async () => {
  const { response, errors } = await answer(unchecked((environ, startResponse) => {
    ok(startResponse);
    const { signal } = contextOf(environ);
    let isFirst = true;
    const next = () =>
      new Promise<IteratorResult<Uint8Array>>((resolve) => {
        const give = () => resolve({ done: false, value: bytes("chunk") });
        if (isFirst) give();
        else signal.addEventListener("abort", give);
        isFirst = false;
      });
    return { [Symbol.asyncIterator]: () => ({ next }) };
  }));
  const reader = response.body!.getReader();
  assert.equal(await readChunk(reader), "chunk");
  reader.read();
  await settle();
  await reader.cancel();
  await settle();
  assert.equal(errors.text, "");
});

// The process

test("a serving process survives what its applications and clients do, and then ends by itself", async () => {
  await using child = evaluate(`
    serve((environ, startResponse) => {
      const path = environ.PATH_INFO;
      if (path === "/header") startResponse("200 OK", [["X", "\\x01"]]);
      if (path === "/null") throw null;
      if (path === "/stop") environ["test.stop"]();
      const write = startResponse("200 OK", [["Content-Type", "text/plain"]]);
      if (path === "/work") environ["fetch.context"].waitUntil(Promise.reject(new Error("work undone")));
      if (path === "/read") void environ["wsgi.input"].read();
      if (path === "/write") {
        return new Promise((resolve) => {
          write(new Uint8Array(1));
          environ["fetch.context"].signal.addEventListener("abort", () => {
            for (let count = 0; count < 10; count++) write(new Uint8Array(100_000));
            resolve([]);
          });
        });
      }
      if (path === "/late") {
        return (function* () {
          yield new Uint8Array(1);
          throw Symbol("late");
        })();
      }
      return [new TextEncoder().encode(path)];
    }, { ...OPTIONS, environ: { "test.stop": () => queueMicrotask(() => server.shutdown()) } });
  `);
  const server = await child.listening();
  for (const path of ["/header", "/null", "/late", "/work"]) {
    await exchange(server, request(path));
    assert.equal((await exchange(server, request("/alive"))).body, "/alive", path);
  }
  for (const [path, method, headers] of [["/write", "GET", []], ["/read", "POST", ["Content-Length: 10"]]] as const) {
    const client = await Client.connect(server);
    await client.send(request(path, { method, headers: [...headers] }));
    await client.until(/\r\n\r\n/);
    client.leave();
    assert.equal((await exchange(server, request("/alive"))).body, "/alive", path);
  }
  await exchange(server, request("/stop"));
  assert.equal((await child.ended()).code, 0);
  assert.match(child.errors, /work undone/);
});
