/**
 * The middleware that watch: access log, error page, request id and health.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  accessLog,
  type AccessLogOptions,
  type Application,
  type ApplicationLike,
  basicAuth,
  type Environ,
  errorPage,
  type FetchContext,
  type HeaderList,
  health,
  type HealthOptions,
  limitBody,
  type Middleware,
  mount,
  proxyFix,
  requestId,
  type RequestIdOptions,
  type ResponseBody,
  runApplication,
  testEnviron,
  timeout,
  toFetch,
  type ToFetchOptions,
  validator,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  ErrorLog,
  Event,
  exchange,
  ok,
  parse,
  PLAIN,
  request,
  settle,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

const HERE = "http://test.example/";
const EMPTY = new Uint8Array(0);

/** A middleware around an application, with a validator on each side. */
function checked(app: ApplicationLike, ...middleware: Middleware[]): Application {
  return middleware.reduceRight((inner, wrap) => validator(wrap(inner)), validator(app));
}

/** An application that answers with chunks that exist. */
function whole(...chunks: string[]): Application {
  return (_environ, startResponse) => {
    ok(startResponse);
    return chunks.map(bytes);
  };
}

/** An application that fails in the call. */
function failing(error: unknown): Application {
  return () => {
    throw error;
  };
}

function withStatus(status: unknown, message = "the message"): Error {
  return Object.assign(new Error(message), { status });
}

/** Sets the signal of a request in motion: Deno tells before the first byte only those who read it. */
function aborted(environ: Environ): Promise<void> {
  const { signal } = environ["fetch.context"]!;
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

/** A body that counts the calls of its `close`. */
class Closing {
  readonly closed = new Event("close");
  count = 0;

  body<Body extends object>(body: Body): Body & { close(): void } {
    return Object.assign(body, {
      close: () => {
        this.count++;
        this.closed.happen();
      },
    });
  }
}

// All four.

const ALL: Record<string, Middleware> = {
  accessLog: (app) => accessLog(app, { write: () => {} }),
  errorPage: (app) => errorPage(app),
  requestId: (app) => requestId(app),
  health: (app) => health(app),
};

for (const [name, wrap] of Object.entries(ALL)) {
  test(`${name}: the first byte has left before the second chunk exists`, async () => {
    const second = new Event("permission for the second chunk");
    await using server = start(checked(async function* (_environ, startResponse) {
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
      await using server = start(checked((environ, startResponse) => {
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
    await using server = start(checked((_environ, startResponse) => {
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
        const { response, errors } = await answer(checked(app, wrap), new Request(HERE, { method }));
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
    await using server = start(checked(async (_environ, startResponse) => {
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
    const app = checked(whole("one", "two"), wrap);
    const body = app(testEnviron(), () => () => Promise.resolve());
    assert.ok(Array.isArray(body));
    assert.deepEqual(body.map(text), ["one", "two"]);
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
    const { response, errors } = await answer(checked(app, wrap));
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

  test(`${name}: what is no application is a TypeError`, () => {
    assert.throws(() => wrap(JSON.parse("{}")), TypeError);
  });
}

// The access log.

const COMBINED = new RegExp(
  [
    String.raw`^(?<address>[^\s"]+) - (?<user>\S+) `,
    String.raw`\[(?<time>\d{2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}:\d{2} \+0000)\] `,
    String.raw`"(?<method>[^\s"\\]+) (?<target>(?:[^"\\]|\\.)*) (?<protocol>HTTP/\d\.\d)" `,
    String.raw`(?<status>\d{3}) (?<bytes>[1-9]\d*|-) "(?<referer>(?:[^"\\]|\\.)*)" "(?<agent>(?:[^"\\]|\\.)*)" `,
    String.raw`(?<duration>\d+\.\d{3})ms(?: (?!aborted$)(?<id>[^\s"]+))?(?<aborted> aborted)?$`,
  ].join(""),
);

type Fields = Record<string, string | undefined>;

/** Reads a line of the combined format, strictly. */
function fieldsOf(line: string): Fields {
  assert.match(line, /^[\x20-\x7e]*$/, "a line is printable ASCII");
  const groups = COMBINED.exec(line)?.groups;
  assert.ok(groups, `not a line of the combined format: ${line}`);
  return groups;
}

/** Undoes what Apache's escapes do. */
function unescape(field = ""): string {
  return field.replace(
    /\\(?:x([\da-f]{2})|(.))/g,
    (_escape, hex, character) => character ?? String.fromCharCode(parseInt(hex, 16)),
  );
}

/** What a line says, in either format. */
interface Said {
  status: unknown;
  bytes: unknown;
  aborted: unknown;
}

/** Two access logs, one in each format, around an application, and what they have written. */
class Log {
  readonly lines: string[] = [];
  readonly objects: string[] = [];
  readonly written = new Event("a line in each log");
  readonly #options: AccessLogOptions;

  constructor(options: AccessLogOptions = {}) {
    this.#options = options;
  }

  readonly combined: Middleware = (app) =>
    accessLog(app, {
      ...this.#options,
      write: (line) => {
        this.lines.push(line);
        this.written.happen();
      },
    });

  readonly json: Middleware = (app) =>
    accessLog(app, { ...this.#options, format: "json", write: (line) => void this.objects.push(line) });

  /** An application with both around it. The outer one is the last to write. */
  around(app: ApplicationLike, ...middleware: Middleware[]): Application {
    return checked(app, this.combined, this.json, ...middleware);
  }

  /** Waits for the one line in each log, and sees that both say the same. */
  async one(): Promise<{ fields: Fields; entry: Record<string, unknown>; said: Said }> {
    await this.written.wait();
    await settle();
    assert.deepEqual([this.lines.length, this.objects.length], [1, 1], "one line in each log");
    const fields = fieldsOf(this.lines[0]!);
    assert.match(
      this.objects[0]!,
      /^[\x20-\x7e\xa0-\u2027\u202a-\uffff]*$/,
      "an object is one line for a terminal, too",
    );
    const entry: Record<string, unknown> = JSON.parse(this.objects[0]!);
    const said = { status: entry.status, bytes: entry.bytes, aborted: entry.aborted };
    const count = fields.bytes === "-" ? 0 : Number(fields.bytes);
    assert.deepEqual({ status: Number(fields.status), bytes: count, aborted: fields.aborted !== undefined }, said);
    return { fields, entry, said };
  }
}

test("accessLog: a line of the combined format has exactly Apache's fields, then the duration", async () => {
  const log = new Log();
  const environ = testEnviron({
    REMOTE_ADDR: "2001:db8::1",
    SERVER_PROTOCOL: "HTTP/1.1",
    PATH_INFO: "/a",
    QUERY_STRING: "b=c",
    HTTP_REFERER: "http://example.com/",
    HTTP_USER_AGENT: "Mozilla/5.0 (X11; Linux)",
  });
  const before = Math.floor(Date.now() / 1000) * 1000;
  await runApplication(log.around(whole("Hello")), environ);
  const { fields } = await log.one();
  const { time = "", duration = "", ...others } = { ...fields };
  assert.deepEqual(others, {
    address: "2001:db8::1",
    user: "-",
    method: "GET",
    target: "/a?b=c",
    protocol: "HTTP/1.1",
    status: "200",
    bytes: "5",
    referer: "http://example.com/",
    agent: "Mozilla/5.0 (X11; Linux)",
    id: undefined,
    aborted: undefined,
  });
  assert.equal(log.lines[0]!.endsWith(`"http://example.com/" "Mozilla/5.0 (X11; Linux)" ${duration}ms`), true);
  const at = Date.parse(time.replace(/^(\d+)\/(\w+)\/(\d+):/, "$1 $2 $3 "));
  assert.ok(at >= before && at <= Date.now(), time);
});

test("accessLog: what is not known is a dash", async () => {
  const log = new Log();
  await runApplication(log.around(whole()), testEnviron());
  assert.match(
    log.lines[0]!,
    /^- - - \[[^\]]+\] "GET \/ HTTP\/1\.0" 200 - "-" "-" \d+\.\d{3}ms$/,
  );
});

test("accessLog: a line of JSON is one object with the right types", async () => {
  const log = new Log();
  const environ = testEnviron({ REMOTE_ADDR: "192.0.2.1", HTTP_REFERER: "r", HTTP_USER_AGENT: "u", REMOTE_USER: "me" });
  const before = Date.now();
  await runApplication(log.around(whole("Hello"), requestId), environ);
  const { entry } = await log.one();
  const { time, duration, requestId: id, ...others } = entry;
  assert.deepEqual(others, {
    method: "GET",
    target: "/",
    protocol: "HTTP/1.0",
    status: 200,
    bytes: 5,
    aborted: false,
    remoteAddr: "192.0.2.1",
    remoteUser: "me",
    referer: "r",
    userAgent: "u",
  });
  assert.match(String(time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  assert.ok(Date.parse(String(time)) >= before);
  assert.equal(typeof duration, "number");
  assert.equal(typeof id, "string");
});

/** An application of a status, headers and a body. */
function responding(status: string, headers: HeaderList, make: (environ: Environ) => ResponseBody): Application {
  return (environ, startResponse) => {
    startResponse(status, headers);
    return make(environ);
  };
}

function* generate(...chunks: string[]): Generator<Uint8Array> {
  for (const chunk of chunks) yield bytes(chunk);
}

/** What is written, and then what is returned. */
function writing(written: string[], returned: string[], headers: HeaderList = PLAIN): Application {
  return (_environ, startResponse) => {
    const write = startResponse("200 OK", headers);
    for (const chunk of written) write(bytes(chunk));
    return returned.map(bytes);
  };
}

const SHORT: HeaderList = [...PLAIN, ["Content-Length", "4"]];

for (
  const [name, { app, method = "GET", count, status = 200, isBroken = false }] of Object.entries<
    { app: Application; method?: string; count: number; status?: number; isBroken?: boolean }
  >({
    "an array": { app: whole("one", "two"), count: 6 },
    "an array with text beyond ASCII": { app: whole("é€"), count: 5 },
    "an array of nothing": { app: whole(), count: 0 },
    "an array of empty chunks": { app: whole("", ""), count: 0 },
    "a generator": { app: responding("200 OK", PLAIN, () => generate("one", "", "three")), count: 8 },
    "a generator of nothing": { app: responding("200 OK", PLAIN, () => generate()), count: 0 },
    "a stream": { app: responding("200 OK", PLAIN, () => ReadableStream.from(generate("one", "two"))), count: 6 },
    "a file": {
      app: responding("200 OK", PLAIN, (environ) => environ["wsgi.file_wrapper"](new Blob(["1234567"]))),
      count: 7,
    },
    "write": { app: writing(["one"], []), count: 3 },
    "write and an array": { app: writing(["one", "", "two"], ["three"]), count: 11 },
    "an array with its length": { app: responding("200 OK", SHORT, () => [bytes("four")]), count: 4 },
    "HEAD with an array": { app: whole("one"), method: "HEAD", count: 0 },
    "HEAD with a length": { app: responding("200 OK", SHORT, () => [bytes("four")]), method: "HEAD", count: 0 },
    "HEAD with a stream": {
      app: responding("200 OK", PLAIN, () => generate("one", "two")),
      method: "HEAD",
      count: 0,
    },
    "HEAD with write": { app: writing(["one"], ["two"]), method: "HEAD", count: 0 },
    "204": { app: responding("204 No Content", [], () => []), count: 0, status: 204 },
    "304": { app: responding("304 Not Modified", [], () => generate()), count: 0, status: 304 },
    "304 with a body": {
      app: responding("304 Not Modified", [], () => [bytes("none")]),
      count: 0,
      status: 304,
      isBroken: true,
    },
    "an array that is longer than its length": {
      app: responding("200 OK", SHORT, () => [bytes("four, five")]),
      count: 4,
      isBroken: true,
    },
    "a generator that is longer than its length": {
      app: responding("200 OK", SHORT, () => generate("on", "e, two", "three")),
      count: 4,
      isBroken: true,
    },
    "write that is longer than its length": { app: writing(["on", "e, two"], [], SHORT), count: 4, isBroken: true },
    "a file that is longer than its length": {
      app: responding("200 OK", SHORT, (environ) => environ["wsgi.file_wrapper"](new Blob(["four, five"]))),
      count: 4,
      isBroken: true,
    },
  })
) {
  test(`accessLog: the bytes that are sent are counted: ${name}`, async () => {
    const log = new Log();
    // A validator would refuse what breaks a rule.
    const logged = isBroken ? unchecked(log.combined(log.json(app))) : log.around(app);
    const { response } = await answer(logged, new Request(HERE, { method }));
    const body = await response.arrayBuffer();
    const { said } = await log.one();
    assert.deepEqual(said, { status, bytes: count, aborted: false });
    assert.equal(body.byteLength, count);
  });
}

test("accessLog: the duration is that of the whole response, to its last chunk", async () => {
  const log = new Log();
  let first = 0;
  let last = 0;
  const begin = performance.now();
  const { response } = await answer(log.around(async function* (_environ, startResponse) {
    first = performance.now();
    ok(startResponse);
    yield bytes("one");
    while (performance.now() - first < 3) await settle();
    last = performance.now();
    yield bytes("two");
  }));
  await response.text();
  const { entry, fields } = await log.one();
  assert.ok(Number(entry.duration) >= last - first, `${entry.duration} of ${last - first} ms`);
  assert.ok(Number(entry.duration) <= performance.now() - begin);
  assert.ok(Number(fields.duration) + 0.001 >= last - first);
});

test("accessLog: nothing is written before the response has ended", async () => {
  const log = new Log();
  const end = new Event("permission to end");
  const seen: number[] = [];
  await using server = start(log.around(async function* (_environ, startResponse) {
    ok(startResponse);
    seen.push(log.lines.length);
    yield bytes("one");
    seen.push(log.lines.length);
    yield bytes("two");
    await end.wait();
    seen.push(log.lines.length);
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/two/);
  await settle();
  assert.equal(log.lines.length, 0);
  end.happen();
  await client.end();
  await log.one();
  assert.deepEqual(seen, [0, 0, 0]);
});

test("accessLog: the line about an array is written with close, after that of the application", async () => {
  const events: string[] = [];
  const app = validator(accessLog(
    validator((_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("one")], { close: () => void events.push("close") });
    }),
    { write: () => events.push("line") },
  ));
  const body = await app(testEnviron(), () => () => Promise.resolve());
  assert.deepEqual(events, []);
  await body.close?.();
  assert.deepEqual(events, ["close", "line"]);
});

for (
  const [name, { app, said, method = "GET" }] of Object.entries<{ app: Application; said: Said; method?: string }>({
    "that throws in the call": { app: failing(new Error("no")), said: { status: 500, bytes: 0, aborted: false } },
    "that throws nothing at all": { app: failing(undefined), said: { status: 500, bytes: 0, aborted: false } },
    "that rejects": {
      app: () => Promise.reject(new Error("no")),
      said: { status: 500, bytes: 0, aborted: false },
    },
    "that throws in the call after startResponse": {
      app: (_environ, startResponse) => {
        ok(startResponse);
        throw new Error("no");
      },
      said: { status: 500, bytes: 0, aborted: false },
    },
    "that throws before its first byte": {
      app: function* (_environ, startResponse) {
        ok(startResponse);
        yield EMPTY;
        throw new Error("no");
      },
      said: { status: 500, bytes: 0, aborted: false },
    },
    "that throws after its first byte": {
      app: function* (_environ, startResponse) {
        ok(startResponse);
        yield bytes("one");
        throw new Error("no");
      },
      said: { status: 200, bytes: 3, aborted: false },
    },
    "that throws after a byte that it has written": {
      app: async (_environ, startResponse) => {
        await startResponse("200 OK", PLAIN)(bytes("one"));
        throw new Error("no");
      },
      said: { status: 200, bytes: 3, aborted: false },
    },
    "that throws in close": {
      app: (_environ, startResponse) => {
        ok(startResponse);
        return Object.assign(generate("one"), {
          close: () => {
            throw new Error("no");
          },
        });
      },
      said: { status: 200, bytes: 3, aborted: false },
    },
    "that is asked for the head of a stream": {
      app: async function* (_environ, startResponse) {
        ok(startResponse);
        for (;;) yield bytes("for ever");
      },
      method: "HEAD",
      said: { status: 200, bytes: 0, aborted: false },
    },
  })
) {
  test(`accessLog: one line about an application ${name}`, async () => {
    const log = new Log();
    const { response } = await answer(log.around(app), new Request(HERE, { method }));
    await response.text().catch(() => "aborted");
    assert.deepEqual((await log.one()).said, said);
    assert.equal(response.status, said.status);
  });
}

for (const found of ["null", '"text"', "7"]) {
  test(`accessLog: one line about an application whose body is ${found}, with the status of the answer`, async () => {
    const log = new Log();
    const { response } = await answer(unchecked(log.combined(log.json(() => JSON.parse(found)))));
    assert.equal(response.status, 500);
    assert.deepEqual((await log.one()).said.status, 500);
  });
}

test("accessLog: a response that was never started is a 500, as the server answers", async () => {
  const log = new Log();
  const { response } = await answer(unchecked(log.combined(log.json(() => []))));
  assert.equal(response.status, 500);
  assert.deepEqual((await log.one()).said.status, 500);
});

test("accessLog: an error page inside decides the status and the bytes", async () => {
  const log = new Log();
  const { response } = await answer(log.around(failing(withStatus(404)), errorPage));
  assert.equal(response.status, 404);
  const count = (await response.arrayBuffer()).byteLength;
  assert.deepEqual((await log.one()).said, { status: 404, bytes: count, aborted: false });
});

for (const status of [200, 99, 1000, NaN, "404", '200 "\n::1 - - forged', { toString: () => "\nforged" }, null]) {
  test(`accessLog: an error whose status is ${inspect(status)} is logged as a 500`, async () => {
    for (
      const app of [
        failing(withStatus(status)),
        function* (): Generator<Uint8Array> {
          yield EMPTY;
          throw withStatus(status);
        },
      ]
    ) {
      const log = new Log();
      assert.equal((await answer(log.around(app))).response.status, 500);
      assert.deepEqual((await log.one()).said, { status: 500, bytes: 0, aborted: false });
    }
  });
}

test("accessLog: an error that cannot be looked at is passed on as it is, and logged", async () => {
  const log = new Log();
  const error = Object.defineProperty(new Error("closed"), "status", {
    get: () => {
      throw new Error("the getter");
    },
  });
  const rejects = async () => await runApplication(log.around(failing(error)), testEnviron());
  await assert.rejects(rejects, (thrown) => thrown === error);
  assert.deepEqual((await log.one()).said, { status: 500, bytes: 0, aborted: false });
});

for (
  const [name, app] of Object.entries<(waiting: Event) => Application>({
    "a promise is pending, which rejects": (waiting) => async (environ) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      environ["fetch.context"]!.signal.throwIfAborted();
      return [];
    },
    "a promise is pending, which gives an array": (waiting) => async (environ, startResponse) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      ok(startResponse);
      return [bytes("too late")];
    },
    "a promise is pending, which gives a generator": (waiting) => async (environ, startResponse) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      ok(startResponse);
      return generate("too late");
    },
    "the first chunk is pending": (waiting) =>
      async function* (environ, startResponse) {
        const left = aborted(environ);
        ok(startResponse);
        waiting.happen();
        await left;
        yield bytes("too late");
      },
    "only empty chunks come": (waiting) =>
      async function* (_environ, startResponse) {
        ok(startResponse);
        for (;;) {
          yield EMPTY;
          waiting.happen();
        }
      },
  })
) {
  test(`accessLog: a client that leaves before the first byte is marked aborted: ${name}`, async () => {
    const log = new Log();
    const waiting = new Event("an application that waits");
    await using server = start(log.around(app(waiting)));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await waiting.wait();
    client.leave();
    assert.deepEqual((await log.one()).said, { status: 499, bytes: 0, aborted: true });
    assert.equal(server.errors.text, "");
  });
}

test("accessLog: a client that leaves while the next chunk is pending is logged at once, and marked aborted", async () => {
  const log = new Log();
  const waiting = new Event("an application that waits");
  const never = Promise.withResolvers<void>();
  await using server = start(log.around(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    waiting.happen();
    await never.promise;
    yield bytes("too late");
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  await waiting.wait();
  client.leave();
  await log.one();
  never.resolve();
  assert.deepEqual((await log.one()).said, { status: 200, bytes: 3, aborted: true });
});

test("accessLog: a client that leaves while much is sent is marked aborted", async () => {
  const log = new Log();
  await using server = start(log.around(function* (_environ, startResponse) {
    ok(startResponse);
    for (;;) yield bytes("x".repeat(10_000));
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/xxx/);
  client.leave();
  const { said } = await log.one();
  assert.deepEqual([said.status, said.aborted], [200, true]);
  assert.ok(Number(said.bytes) > 0 && Number(said.bytes) % 10_000 === 0);
});

for (const [name, middleware] of Object.entries({ "alone": [], "with an error page inside": [errorPage] })) {
  test(`accessLog: a client that leaves in the middle of its upload is marked aborted, ${name}`, async () => {
    const log = new Log();
    const reading = new Event("an application that reads");
    await using server = start(log.around(async (environ, startResponse) => {
      aborted(environ);
      const body = environ["wsgi.input"].read();
      reading.happen();
      ok(startResponse);
      return [await body];
    }, ...middleware));
    const client = await Client.connect(server);
    await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 100\r\n\r\nsome`);
    await reading.wait();
    client.leave();
    assert.deepEqual((await log.one()).said, { status: 499, bytes: 0, aborted: true });
    assert.equal(server.errors.text, "");
  });
}

/** Never goes on, but for those who read the signal. */
const STALLING: Record<string, Application> = {
  "promise": () => new Promise(() => {}),
  "promise that heeds the signal": async (environ) => {
    await aborted(environ);
    throw environ["fetch.context"]!.signal.reason;
  },
  "stream": async function* () {
    yield EMPTY;
    await new Promise(() => {});
  },
};

for (const [name, app] of Object.entries(STALLING)) {
  test(`accessLog: one line about a ${name} that timed out: a 504, and not aborted by the client`, async () => {
    const log = new Log();
    const { response } = await answer(log.around(app, (app) => timeout(app, { milliseconds: 5 })));
    assert.equal(response.status, 504);
    const count = (await response.arrayBuffer()).byteLength;
    assert.deepEqual((await log.one()).said, { status: 504, bytes: count, aborted: false });
  });
}

test("accessLog: one line inside of a timeout, too", async () => {
  const log = new Log();
  const wait: Middleware = (app) => timeout(app, { milliseconds: 5 });
  const { response } = await answer(checked(STALLING.stream!, wait, log.combined, log.json));
  assert.equal(response.status, 504);
  await response.text();
  await log.one();
});

const HOSTILE: Record<string, string> = {
  "quotes": '" 200 1 "-" "-',
  "a backslash at the end": "\\",
  "a backslash and a quote": '\\" 200',
  "line ends": "a\r\n127.0.0.1 - - forged\nb\rc",
  "an escape sequence": "\x1b[2J\x1b]0;owned\x07",
  "control characters": Array.from({ length: 32 }, (_, code) => String.fromCharCode(code)).join("") + "\x7f",
  "C1 control characters": Array.from({ length: 32 }, (_, code) => String.fromCharCode(0x80 + code)).join(""),
  "Latin-1": "\xa0é\xff",
  "what looks like an escape": "\\x22 %22 &quot; ${status}",
  "brackets and spaces": "a] [b - -  c",
  "braces": '","status":200,"x":{"y":"',
};

for (const [name, hostile] of Object.entries(HOSTILE)) {
  test(`accessLog: one request is one line, and can be read back: ${name}`, async () => {
    const log = new Log();
    const environ = testEnviron({
      REMOTE_ADDR: "192.0.2.1",
      REMOTE_USER: `u${hostile}`,
      REQUEST_URI: `/${hostile}`,
      HTTP_REFERER: hostile,
      HTTP_USER_AGENT: `${hostile}${hostile}`,
    });
    await runApplication(log.around(whole("Hello")), environ);
    const { fields, entry } = await log.one();
    const expected = [`u${hostile}`, `/${hostile}`, hostile, `${hostile}${hostile}`];
    assert.deepEqual([fields.user, fields.target, fields.referer, fields.agent].map(unescape), expected);
    assert.deepEqual([entry.remoteUser, entry.target, entry.referer, entry.userAgent], expected);
    assert.equal(fields.status, "200");
  });
}

for (const user of ["two words", 'a" quote', "a] [bracket", "tab\u00a0é\u0085", "-", "\\"]) {
  test(`accessLog: a user of the name ${JSON.stringify(user)} does not forge a line over the wire`, async () => {
    const log = new Log();
    const check = () => true;
    await using server = start(log.around(whole("Hello"), (app) => basicAuth(app, { check })));
    const native = String.fromCharCode(...bytes(user));
    const headers = [
      `Authorization: Basic ${btoa(`${native}:password`)}`,
      `User-Agent: "é\\`,
      `Referer: \xe9" "x"`,
    ];
    await exchange(server, request('/"%0a?\\', { headers }));
    const { fields, entry } = await log.one();
    assert.equal(unescape(fields.user), native);
    assert.equal(entry.remoteUser, native);
    assert.equal(unescape(fields.agent), '"é\\');
    assert.equal(unescape(fields.referer), '\xe9" "x"');
    assert.equal(entry.target, unescape(fields.target));
  });
}

for (
  const [name, { environ, skip, count }] of Object.entries({
    "a path that is on the list": { environ: { PATH_INFO: "/livez" }, skip: ["/livez", "/readyz"], count: 0 },
    "whatever the query says": { environ: { PATH_INFO: "/livez", QUERY_STRING: "a" }, skip: ["/livez"], count: 0 },
    "a path with SCRIPT_NAME": {
      environ: { SCRIPT_NAME: "/app", PATH_INFO: "/livez" },
      skip: ["/app/livez"],
      count: 0,
    },
    "not one that is elsewhere with SCRIPT_NAME": {
      environ: { SCRIPT_NAME: "/app", PATH_INFO: "/livez" },
      skip: ["/livez"],
      count: 1,
    },
    "not one that begins so": { environ: { PATH_INFO: "/livez/more" }, skip: ["/livez"], count: 1 },
    "nothing by default": { environ: { PATH_INFO: "/livez" }, skip: [], count: 1 },
  })
) {
  test(`accessLog: paths to skip: ${name}`, async () => {
    const log = new Log({ skip });
    const { body } = await runApplication(log.around(whole("Hello")), testEnviron(environ));
    assert.equal(text(body), "Hello");
    assert.deepEqual([log.lines.length, log.objects.length], [count, count]);
  });
}

test("accessLog: a path that is moved further inside is logged and skipped as it came", async () => {
  const log = new Log({ skip: ["/app/quiet"] });
  const app = log.around(whole("Hello"), (app) => mount({ "/app": app }));
  await runApplication(app, testEnviron({ PATH_INFO: "/app/quiet" }));
  assert.equal(log.lines.length, 0);
  await runApplication(app, testEnviron({ PATH_INFO: "/app/loud" }));
  assert.equal((await log.one()).fields.target, "/app/loud");
});

/** What goes to standard output, one entry a call. */
async function standardOutputOf(run: () => Promise<unknown>): Promise<string[]> {
  const printed: string[] = [];
  const { log } = console;
  console.log = (...data: unknown[]) => void printed.push(data.join(" "));
  try {
    await run();
  } finally {
    console.log = log;
  }
  return printed;
}

test("accessLog: lines go to standard output by default, in the combined format", async () => {
  const app = checked(whole("Hello"), (app) => accessLog(app));
  const printed = await standardOutputOf(() => runApplication(app, testEnviron()));
  assert.equal(printed.length, 1);
  assert.equal(fieldsOf(printed[0]!).bytes, "5");
});

for (
  const [name, app] of Object.entries<Application>({
    "an array": whole("Hello"),
    "a stream": responding("200 OK", PLAIN, () => generate("Hel", "lo")),
  })
) {
  test(`accessLog: a write that throws does not break a response of ${name}`, async () => {
    const closing = new Closing();
    const logged = checked(
      async (environ, startResponse) => closing.body(await app(environ, startResponse)),
      (app) =>
        accessLog(app, {
          write: () => {
            throw new Error("The disk is full");
          },
        }),
    );
    const { response, errors } = await answer(logged);
    assert.equal(response.status, 200);
    assert.equal(await response.text(), "Hello");
    await closing.closed.wait();
    await errors.matches(/The disk is full/);
    assert.equal(closing.count, 1);
    const { body } = await runApplication(logged, testEnviron());
    assert.equal(text(body), "Hello");
  });
}

test("accessLog: a write that rejects later is reported, and nothing is left to end the process", async () => {
  const failure = Promise.reject(new Error("The disk is full"));
  failure.catch(() => {}); // so that the test fails, and not the process
  const { response, errors } = await answer(checked(whole("Hello"), (app) => accessLog(app, { write: () => failure })));
  assert.equal(await response.text(), "Hello");
  await settle();
  assert.match(errors.text, /The disk is full/);
});

test("accessLog: a write that throws does not hide the application's own error", async () => {
  const write = () => {
    throw new Error("The disk is full");
  };
  for (const app of [failing(withStatus(404)), () => Promise.reject(withStatus(404))]) {
    const { response } = await answer(checked(app, errorPage, (app) => accessLog(app, { write })));
    assert.equal(response.status, 404);
  }
});

test("accessLog: the user and the client that are found further inside are logged", async () => {
  const log = new Log();
  const app = log.around(whole("Hello"), (app) => proxyFix(app), (app) => basicAuth(app, { users: { cook: "salt" } }));
  const environ = testEnviron({
    REMOTE_ADDR: "127.0.0.1",
    HTTP_X_FORWARDED_FOR: "203.0.113.7",
    HTTP_AUTHORIZATION: `Basic ${btoa("cook:salt")}`,
  });
  await runApplication(app, environ);
  const { fields, entry } = await log.one();
  assert.deepEqual([fields.address, fields.user], ["203.0.113.7", "cook"]);
  assert.deepEqual([entry.remoteAddr, entry.remoteUser], ["203.0.113.7", "cook"]);
});

test("accessLog: method and target are those that came, whatever becomes of the environ", async () => {
  const log = new Log();
  await runApplication(
    log.around((environ, startResponse) => {
      environ.REQUEST_METHOD = "PUT";
      environ.REQUEST_URI = "/elsewhere";
      environ.PATH_INFO = "/elsewhere";
      ok(startResponse);
      return [];
    }),
    testEnviron({ PATH_INFO: "/here" }),
  );
  const { fields, entry } = await log.one();
  assert.deepEqual([fields.method, fields.target, entry.method, entry.target], ["GET", "/here", "GET", "/here"]);
});

for (
  const [name, app] of Object.entries<Application>({
    "an array": whole("Hello"),
    "a stream": responding("200 OK", PLAIN, () => generate("Hello")),
    "a failure in the call": failing(new Error("no")),
    "a failure in the promise": () => Promise.reject(new Error("no")),
    "a failure before the first byte": function* (_environ, startResponse) {
      ok(startResponse);
      yield EMPTY;
      throw new Error("no");
    },
  })
) {
  // Deno charges for it, and prints a warning.
  test(`accessLog: the signal is not read before the end of the response: ${name}`, async () => {
    let reads = 0;
    const context: FetchContext = {
      request: new Request(HERE),
      draining: false,
      waitUntil: () => {},
      get signal() {
        reads++;
        return new AbortController().signal;
      },
    };
    const log = new Log();
    const environ = testEnviron({ "fetch.context": context });
    try {
      const body = await log.around(app)(environ, () => () => Promise.resolve());
      for await (const _chunk of body) assert.equal(reads, 0);
      assert.equal(reads, 0);
      await body.close?.();
    } catch (error) {
      assert.match(String(error), /^Error: no$/);
      assert.equal(reads, 0);
    }
  });
}

for (const format of ["Combined", "", null, 1]) {
  test(`accessLog: the format ${inspect(format)} is a TypeError that says so`, () => {
    const options: AccessLogOptions = JSON.parse(JSON.stringify({ format }));
    assert.throws(() => accessLog(whole(), options), { name: "TypeError", message: /"format".*"combined" or "json"/ });
  });
}

// The error page.

interface Page {
  status: number;
  reason: string;
  headers: Headers;
  body: string;
  errors: string;
}

interface Asking {
  accept?: string;
  development?: boolean;
  method?: string;
  path?: string;
  headers?: Record<string, string>;
  options?: ToFetchOptions;
}

/** What an error page answers. */
async function pageOf(app: ApplicationLike, asking: Asking = {}): Promise<Page> {
  const { accept, development = false, method = "GET", path = "", options } = asking;
  const headers = { ...asking.headers, ...accept === undefined ? {} : { Accept: accept } };
  let reason = "";
  // A Response does not tell the reason that it was made with.
  const listening: Middleware = (app) => (environ, startResponse) =>
    validator(app)(environ, (status, headers, error) => {
      reason = status.slice(4);
      return startResponse(status, headers, error);
    });
  const { response, errors } = await answer(
    checked(app, listening, (app) => errorPage(app, { development })),
    new Request(`${HERE}${path}`, { method, headers }),
    options,
  );
  const { status } = response;
  return { status, reason, headers: response.headers, body: await response.text(), errors: errors.text };
}

/** How often something was reported. */
function reportsOf(errors: string): number {
  return errors.match(/^(?:Application|Access log|Health check) failed on /mg)?.length ?? 0;
}

const SECRET = "the-secret-of-the-message";

/** The ways to fail before the first byte. */
const FAILURES: Record<string, (error: unknown) => Application> = {
  "in the call": failing,
  "in the promise": (error) => () => Promise.reject(error),
  "in the call, after startResponse": (error) => (_environ, startResponse) => {
    ok(startResponse, ["X-First", "1"], ["Content-Length", "7"]);
    throw error;
  },
  "in a generator, before startResponse": (error) =>
    function* (): Generator<Uint8Array> {
      yield EMPTY;
      throw error;
    },
  "in a generator, before the first byte": (error) =>
    function* (_environ, startResponse): Generator<Uint8Array> {
      ok(startResponse, ["X-First", "1"], ["Set-Cookie", "first=1"]);
      yield EMPTY;
      throw error;
    },
  "in an asynchronous generator": (error) =>
    async function* (_environ, startResponse): AsyncGenerator<Uint8Array> {
      ok(startResponse, ["X-First", "1"]);
      await settle();
      yield EMPTY;
      throw error;
    },
  "in a stream": (error) =>
    responding("200 OK", [...PLAIN, ["X-First", "1"]], () =>
      new ReadableStream({
        pull: (controller) => controller.error(error),
      })),
};

for (const [name, make] of Object.entries(FAILURES)) {
  test(`errorPage: a failure ${name} is answered with a page, and reported once`, async () => {
    const page = await pageOf(make(new Error(SECRET, { cause: new Error("the cause") })));
    assert.equal(page.status, 500);
    assert.equal(page.body, "500 Internal Server Error\n");
    assert.equal(page.headers.get("X-First"), null);
    assert.equal(page.headers.get("Set-Cookie"), null);
    assert.equal(reportsOf(page.errors), 1);
    assert.match(page.errors, /^Application failed on GET \/: Error: the-secret-of-the-message\n +at /);
    assert.match(page.errors, /Error: the cause\n +at /);
  });

  test(`errorPage: a failure ${name} whose error is undefined or null is answered with a page, too`, async () => {
    for (const error of [undefined, null]) {
      const page = await pageOf(make(error), { development: true });
      assert.equal(page.status, 500);
      assert.equal(page.headers.get("Content-Type"), "text/html; charset=utf-8", String(error));
      assert.equal(reportsOf(page.errors), 1, page.errors);
    }
  });

  test(`errorPage: a failure ${name} that is the client's fault is not reported`, async () => {
    const page = await pageOf(make(withStatus(404)));
    assert.equal(page.status, 404);
    assert.equal(page.body, "404 Not Found\n");
    assert.equal(page.errors, "");
  });
}

test("errorPage: startResponse that refuses what it is given is a failure like any other", async () => {
  const page = await pageOf((_environ, startResponse) => {
    startResponse("200", []);
    return [];
  });
  assert.equal(page.status, 500);
  assert.equal(reportsOf(page.errors), 1);
  assert.match(page.errors, /the status is "200"/);
});

for (
  const [name, app] of Object.entries<Application>({
    "in a generator": function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      throw new Error(SECRET);
    },
    "in a promise, after write": async (_environ, startResponse) => {
      await startResponse("200 OK", PLAIN)(bytes("one"));
      throw new Error(SECRET);
    },
    "in a generator, with undefined": function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      throw undefined;
    },
  })
) {
  test(`errorPage: once bytes have left, the connection is aborted, and there is no page: ${name}`, async () => {
    await using server = start(checked(app, (app) => errorPage(app, { development: true })));
    const reply = await exchange(server, request("/"));
    assert.deepEqual([reply.status, reply.body, reply.complete], [200, "one", false]);
    assert.equal(reportsOf(server.errors.text), 1, server.errors.text);
    if (!name.endsWith("undefined")) assert.match(server.errors.text, /the-secret-of-the-message/);
  });
}

for (
  const [status, title] of [
    [400, "Bad Request"],
    [404, "Not Found"],
    // RFC 9110, sections 15.5.14 and 15.5.21; the first is also what limitBody and the server say.
    [413, "Content Too Large"],
    [422, "Unprocessable Content"],
    [451, "Unavailable For Legal Reasons"],
    [500, "Internal Server Error"],
    [503, "Service Unavailable"],
    [511, "Network Authentication Required"],
  ] as const
) {
  test(`errorPage: an error with the status ${status} is a ${status}`, async () => {
    const { body, errors, reason, ...page } = await pageOf(failing(withStatus(status, SECRET)));
    assert.deepEqual([page.status, reason, body], [status, title, `${status} ${title}\n`]);
    assert.equal(reportsOf(errors), status < 500 ? 0 : 1);
  });
}

for (const status of [499, 599]) {
  test(`errorPage: ${status}, which has no name, is a status all the same`, async () => {
    const page = await pageOf(failing(withStatus(status)));
    assert.equal(page.status, status);
    assert.notEqual(page.reason, "");
  });
}

for (const status of [200, 304, 399, 600, 1000, 404.5, -404, NaN, Infinity, "404", "", null, true, [404], {}]) {
  test(`errorPage: an error with the status ${inspect(status)} is a 500, and reported`, async () => {
    const page = await pageOf(failing(withStatus(status)));
    assert.deepEqual([page.status, page.body], [500, "500 Internal Server Error\n"]);
    assert.equal(reportsOf(page.errors), 1);
  });
}

const reading: Application = async (environ, startResponse) => {
  const body = await environ["wsgi.input"].read();
  ok(startResponse);
  return [body];
};
const CHUNKED = request("/", {
  method: "POST",
  headers: ["Transfer-Encoding: chunked"],
  body: "5\r\n12345\r\n0\r\n\r\n",
});

test("errorPage: a body that is too large for the server is a 413, and not reported", async () => {
  await using server = start(checked(reading, errorPage), { maxBodySize: 4 });
  const reply = await exchange(server, CHUNKED);
  assert.deepEqual([reply.status, reply.body], [413, "413 Content Too Large\n"]);
  assert.equal(server.errors.text, "");
});

for (
  const [name, middleware] of Object.entries<Middleware[]>({
    "inside": [errorPage, (app) => limitBody(app, { maxBodySize: 4 })],
    "outside": [(app) => limitBody(app, { maxBodySize: 4 }), errorPage],
  })
) {
  test(`errorPage: a body that is too large for limitBody ${name} is a 413, and not reported`, async () => {
    await using server = start(checked(reading, ...middleware));
    const reply = await exchange(server, CHUNKED);
    assert.equal(reply.status, 413);
    assert.match(reply.body, /Content Too Large\n$/);
    assert.equal(server.errors.text, "");
  });
}

/** The message of an error in a chain, by its depth. */
function chain(length: number, depth = 1): Error {
  return new Error(`link ${depth}`, depth < length ? { cause: chain(length, depth + 1) } : {});
}

test("errorPage: a report has all of the causes, each with its stack", async () => {
  const { errors } = await pageOf(failing(chain(5)));
  for (const depth of [1, 2, 3, 4, 5]) assert.match(errors, new RegExp(`Error: link ${depth}\n +at `), `link ${depth}`);
});

for (const type of ["text/html", "application/json", "text/plain"]) {
  test(`errorPage: in development ${type} shows the error, all of its causes and the stack`, async () => {
    const { body, headers } = await pageOf(failing(chain(5)), { accept: type, development: true });
    assert.match(headers.get("Content-Type")!, new RegExp(`^${type}`));
    for (const depth of [1, 2, 3, 4, 5]) assert.match(body, new RegExp(`link ${depth}`));
    assert.match(body, /observe_test\.ts/);
  });

  test(`errorPage: in production ${type} tells nothing of the error`, async () => {
    for (const status of [undefined, 404, 503]) {
      const error = Object.assign(new TypeError(SECRET, { cause: new Error(SECRET) }), { status, detail: SECRET });
      for (const make of Object.values(FAILURES)) {
        const page = await pageOf(make(error), { accept: type, path: "a-path?a-query" });
        const all = page.body + page.reason + JSON.stringify([...page.headers]);
        assert.doesNotMatch(all, /secret|observe_test|TypeError|at |a-path|a-query|link/);
      }
    }
  });

  test(`errorPage: to HEAD, ${type} is a head without a body`, async () => {
    const page = await pageOf(failing(new Error("no")), { accept: type, development: true, method: "HEAD" });
    assert.deepEqual([page.status, page.body], [500, ""]);
    assert.match(page.headers.get("Content-Type")!, new RegExp(`^${type}`));
    assert.equal(reportsOf(page.errors), 1);
  });
}

test("errorPage: the page in JSON is an object that says status and title, and in development the detail", async () => {
  const asking = { accept: "application/json" };
  const { body } = await pageOf(failing(withStatus(404)), asking);
  assert.deepEqual(JSON.parse(body), { status: 404, title: "Not Found" });
  const page = await pageOf(failing(withStatus(404, "Article 7")), { ...asking, development: true });
  const { detail, ...others } = JSON.parse(page.body);
  assert.deepEqual(others, { status: 404, title: "Not Found" });
  assert.match(detail, /^Error: Article 7\n/);
});

const BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

for (
  const [accept, inDevelopment, inProduction] of [
    [undefined, "text/html", "text/plain"],
    ["*/*", "text/html", "text/plain"],
    ["", "text/html", "text/plain"],
    [BROWSER, "text/html", "text/plain"],
    ["text/html", "text/html", "text/plain"],
    ["text/*", "text/html", "text/plain"],
    ["application/json", "application/json", "application/json"],
    ["application/*", "application/json", "application/json"],
    ["Application/JSON", "application/json", "application/json"],
    ["application/json, text/plain, */*", "text/html", "text/plain"],
    ["application/json;q=0.5, text/plain;q=0.9", "text/plain", "text/plain"],
    ["application/json;q=0.9, text/plain;q=0.5", "application/json", "application/json"],
    ["text/html;q=0, */*;q=0.1", "application/json", "text/plain"],
    ["text/plain;q=0, text/*;q=0.4, application/json;q=0.3", "text/html", "application/json"],
    ["text/plain", "text/plain", "text/plain"],
    ["application/json ; charset=utf-8 ; q=1 , text/*;q=0.1", "application/json", "application/json"],
    ["application/json;q=nonsense, text/plain;q=0.1", "text/plain", "text/plain"],
    ["image/png", "text/html", "text/plain"],
    [";;,,q=,/,*", "text/html", "text/plain"],
    ["__proto__, constructor;q=1", "text/html", "text/plain"],
  ] as const
) {
  // With equal weights the server may choose (RFC 9110, section 12.5.1), and prefers what is said first here.
  test(`errorPage: Accept ${JSON.stringify(accept)} is answered with ${inDevelopment}, or ${inProduction}`, async () => {
    for (const [development, expected] of [[true, inDevelopment], [false, inProduction]] as const) {
      const asking = { development, ...accept === undefined ? {} : { accept } };
      const { headers, status } = await pageOf(failing(new Error("no")), asking);
      assert.equal(status, 500);
      assert.equal(headers.get("Content-Type")!.split(";")[0], expected);
    }
  });
}

test("errorPage: a page is not kept, depends on Accept, and runs nothing", async () => {
  for (const development of [false, true]) {
    const { headers } = await pageOf(failing(new Error("no")), { development });
    assert.equal(headers.get("Cache-Control"), "no-store");
    assert.equal(headers.get("Vary"), "Accept");
    assert.match(headers.get("Content-Security-Policy")!, /^default-src 'none'/);
    assert.match(headers.get("Content-Type")!, /; charset=utf-8$/);
  }
});

test("errorPage: the page for a developer is light and dark, and fits a small screen", async () => {
  const { body } = await pageOf(failing(new Error("no")), { development: true });
  assert.match(body, /^<!doctype html>/);
  assert.match(body, /color-scheme: light dark/);
  assert.match(body, /<meta name="viewport" content="width=device-width/);
  assert.match(body, /<html lang="en">/);
});

/** The tags of a page. */
function tagsOf(page: string): Set<string> {
  return new Set(page.match(/<[^>]*>?/g));
}

/** The text of a page as a browser shows it. */
function shown(page: string): string {
  const plain = page.replace(/<[^>]*>/g, "");
  return plain.replace(/&#(\d+);/g, (_reference, code) => String.fromCharCode(Number(code)));
}

const XSS = `"><script>alert('&amp;')</script><img src=x onerror=alert(1)>`;

for (
  const [name, { app, asking = {} }] of Object.entries<{ app: Application; asking?: Asking }>({
    "the message": { app: failing(new Error(XSS)) },
    "the name": { app: failing(Object.assign(new Error("no"), { name: XSS })) },
    "the stack": { app: failing(Object.assign(new Error("no"), { stack: XSS })) },
    "the message of a cause": { app: failing(new Error("no", { cause: new Error(XSS) })) },
    "a cause that is text": { app: failing(new Error("no", { cause: XSS })) },
    "what is thrown": { app: failing(XSS) },
    "a property": { app: failing({ [XSS]: XSS }) },
    "the environ": {
      app: (environ) => {
        environ[`test.${XSS}`] = XSS;
        throw new Error("no");
      },
    },
    "the path": {
      app: (environ) => {
        throw new Error(environ.PATH_INFO);
      },
      asking: { path: encodeURIComponent(XSS) },
    },
    "a header": {
      app: (environ) => {
        throw new Error(environ.HTTP_X_TEST);
      },
      asking: { headers: { "X-Test": XSS } },
    },
  })
) {
  test(`errorPage: nothing can be slipped into the page by ${name}`, async () => {
    const harmless = await pageOf(failing(new Error("no", { cause: "a cause" })), { development: true });
    const { body, status } = await pageOf(app, { ...asking, development: true });
    assert.equal(status, 500);
    for (const tag of tagsOf(body)) assert.ok(tagsOf(harmless.body).has(tag), `a foreign tag: ${tag}`);
    assert.doesNotMatch(body, /<script|<img/);
    assert.match(shown(body), /alert\(\\?'&amp;\\?'\)/);
  });
}

test("errorPage: the page for a developer has the environ", async () => {
  const { body } = await pageOf(failing(new Error("no")), { development: true, path: "page?a=1&b=2" });
  const page = shown(body);
  for (const part of ["REQUEST_METHOD", "GET", "PATH_INFO", "/page", "a=1&b=2", "wsgi.input"]) {
    assert.ok(page.includes(part), part);
  }
});

/** An error with one property that cannot be read. */
function guarded(name: string): Error {
  return Object.defineProperty(new Error("guarded"), name, {
    get: () => {
      throw new Error("the getter");
    },
  });
}

function explode(): never {
  throw new Error("the trap");
}

function revoked(): object {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
}

const CYCLE = new Error("cyclic");
CYCLE.cause = new Error("between", { cause: CYCLE });

/** What may be thrown, or stand in an environ. */
const ODDITIES: Record<string, unknown> = {
  "text": "the text",
  "empty text": "",
  "null": null,
  "undefined": undefined,
  "zero": 0,
  "a bigint": 10n,
  "a symbol": Symbol("the symbol"),
  "a function": () => {},
  "an object without a prototype": Object.create(null),
  "an object with a null status": { status: null },
  "an error whose status cannot be read": guarded("status"),
  "an error whose cause cannot be read": guarded("cause"),
  "an error whose message cannot be read": guarded("message"),
  "an error whose name cannot be read": guarded("name"),
  "an error whose stack cannot be read": guarded("stack"),
  "an error whose stack is a number": Object.assign(new Error("no"), { stack: 5 }),
  "an error without a stack": Object.assign(new Error("no"), { stack: undefined }),
  "an error whose name is an object": Object.assign(new Error("no"), { name: {} }),
  "an error whose message is a symbol": Object.assign(new Error("no"), { message: Symbol("no") }),
  "an error that cannot be text": Object.assign(new Error("no"), { toString: explode, [Symbol.toPrimitive]: explode }),
  "an error that cannot be inspected": Object.assign(new Error("no"), { [inspect.custom]: explode }),
  "a cause that cannot be inspected": new Error("no", { cause: { [inspect.custom]: explode } }),
  "a cause whose cause cannot be read": new Error("no", { cause: guarded("cause") }),
  "an error that causes itself": CYCLE,
  "a chain of a hundred causes": chain(100),
  "several errors in one": new AggregateError([new Error("one"), "two"], "several"),
  "a proxy that lets nobody in": new Proxy(new Error("no"), {
    get: explode,
    has: explode,
    ownKeys: explode,
    getPrototypeOf: explode,
    getOwnPropertyDescriptor: explode,
  }),
  "a proxy that is revoked": revoked(),
  "a response": new Response("no", { status: 404 }),
  "text with half a character": "\ud800",
};

for (const [name, error] of Object.entries(ODDITIES)) {
  test(`errorPage: whatever is thrown is answered with a page: ${name}`, async () => {
    const expected = name === "a response" ? 404 : 500;
    for (const development of [true, false]) {
      for (const [accept, type] of [["text/html", development ? "text/html" : "text/plain"], ["application/json"]]) {
        const page = await pageOf(failing(error), { accept: accept!, development });
        assert.equal(page.status, expected);
        // What the server answers by itself is plain text without this header.
        assert.equal(page.headers.get("Cache-Control"), "no-store", "the page is not the server's own");
        assert.match(page.headers.get("Content-Type")!, new RegExp(`^${type ?? accept}`));
        assert.equal(reportsOf(page.errors), expected === 500 ? 1 : 0, page.errors);
        if (accept === "application/json") JSON.parse(page.body);
      }
    }
  });

  test(`errorPage: whatever stands in the environ, there is a page: ${name}`, async () => {
    if (error === undefined) return; // which an environ must not have
    const app: Application = (environ) => {
      environ["test.one"] = error;
      environ["test.other"] = error;
      throw new Error("the message");
    };
    const page = await pageOf(app, { development: true });
    assert.match(shown(page.body), /Error: the message/);
    assert.match(page.body, /test\.other/);
    assert.equal(reportsOf(page.errors), 1);
  });
}

test("errorPage: close of what has failed is called once, after the page", async () => {
  for (const error of [new Error("no"), withStatus(404)]) {
    const closing = new Closing();
    const { body } = await pageOf((_environ, startResponse) => {
      ok(startResponse);
      return closing.body((function* (): Generator<Uint8Array> {
        yield EMPTY;
        throw error;
      })());
    });
    assert.match(body, /^\d{3} /);
    await closing.closed.wait();
    await settle();
    assert.equal(closing.count, 1);
  }
});

for (
  const [name, app] of Object.entries<(waiting: Event) => Application>({
    "with the reason of the signal": (waiting) => async (environ) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      throw environ["fetch.context"]!.signal.reason;
    },
    "with an AbortError of its own, as timers have it": (waiting) => async (environ) => {
      const left = aborted(environ);
      waiting.happen();
      await left;
      throw new DOMException("The operation was aborted", "AbortError");
    },
    "in a generator": (waiting) =>
      async function* (environ, startResponse) {
        const left = aborted(environ);
        ok(startResponse);
        waiting.happen();
        await left;
        yield EMPTY;
        throw environ["fetch.context"]!.signal.reason;
      },
  })
) {
  test(`errorPage: a client that leaves is no error, and nothing is reported: ${name}`, async () => {
    const waiting = new Event("an application that waits");
    const log = new Log();
    await using server = start(log.around(app(waiting), errorPage));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await waiting.wait();
    client.leave();
    const { said } = await log.one();
    assert.equal(server.errors.text, "");
    assert.notEqual(said.status, 500);
  });
}

test("errorPage: a client that leaves in the middle of its upload is no error", async () => {
  const reads = new Event("an application that reads");
  const failed = new Event("the end of the reading");
  await using server = start(checked(async (environ, startResponse) => {
    const body = environ["wsgi.input"].read();
    reads.happen();
    try {
      await body;
    } catch (error) {
      failed.happen();
      throw error;
    }
    ok(startResponse);
    return [];
  }, errorPage));
  const client = await Client.connect(server);
  await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 100\r\n\r\nsome`);
  await reads.wait();
  client.leave();
  await failed.wait();
  await settle();
  assert.equal(server.errors.text, "");
});

test("errorPage: the environ of a request with a body can be shown, and the body is still read", async () => {
  await using server = start(checked((environ) => {
    environ["test.request"] = environ["fetch.context"]?.request;
    throw new Error("the message");
  }, (app) => errorPage(app, { development: true })));
  const reply = await exchange(server, request("/", { method: "POST", headers: ["Content-Length: 4"], body: "four" }));
  assert.equal(reply.status, 500);
  assert.equal(reply.complete, true);
  assert.match(shown(reply.body), /Error: the message/);
});

// The request's id.

const UUID = /^[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/;

/** What becomes of a request's id: in the environ, in the response, and in the log. */
async function idsOf(overrides: Partial<Environ>, options?: RequestIdOptions, outside: Middleware[] = []) {
  let seen: Environ | undefined;
  const log = new Log();
  const app = checked(
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

test("requestId: a request without one gets a new one, in the environ, in the response and in the log", async () => {
  const { environ, headers, logged } = await idsOf({});
  const id = String(environ["request.id"]);
  assert.match(id, UUID);
  assert.equal(environ.HTTP_X_REQUEST_ID, id);
  assert.deepEqual(headers.filter(([name]) => name.toLowerCase() === "x-request-id"), [["X-Request-Id", id]]);
  assert.deepEqual(logged, [id, id]);
  assert.notEqual((await idsOf({})).environ["request.id"], id);
});

test("requestId: it is in a log inside of it, too", async () => {
  const log = new Log();
  await runApplication(checked(whole(), requestId, log.combined, log.json), testEnviron());
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
  const app = checked(whole(), (app) => requestId(app, { header: "X-Correlation-Id" }));
  const environ = testEnviron({ REMOTE_ADDR: "::1", HTTP_X_CORRELATION_ID: "given-1", HTTP_X_REQUEST_ID: "other" });
  const { headers } = await runApplication(app, environ);
  assert.deepEqual(headers.filter(([name]) => /-id$/i.test(name)), [["X-Correlation-Id", "given-1"]]);
});

test("requestId: it is taken over and goes out once over the wire, also with an error page and a 304", async () => {
  const responses: Record<string, Application> = {
    "200": whole("Hello"),
    "304": responding("304 Not Modified", [], () => []),
    "404": failing(withStatus(404)),
  };
  for (const [status, app] of Object.entries(responses)) {
    await using server = start(checked(app, requestId, errorPage));
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
    await using server = start(checked(whole("Hello"), (app) => requestId(app, { trust: ["unix"] })), { unix });
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

// Health.

/** What health answers, and whether the application was called. */
async function healthOf(overrides: Partial<Environ>, options?: HealthOptions) {
  let isCalled = false;
  const app = checked((_environ, startResponse) => {
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
  const app = checked(whole(), (app) => health(app, { check: () => ++asked > 1 }));
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
    const ready = await healthOf({ PATH_INFO: "/readyz", "fetch.context": context });
    assert.equal(ready.status.slice(0, 3), draining ? "503" : "200");
    assert.equal((await healthOf({ PATH_INFO: "/livez", "fetch.context": context })).status, "200 OK");
  });
}

test("health: on a server without fetch.context it is ready", async () => {
  const environ = testEnviron({ PATH_INFO: "/readyz" });
  delete environ["fetch.context"];
  assert.equal((await runApplication(checked(whole(), health), environ)).status, "200 OK");
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
    await using server = start(checked(whole(), late, health));
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
  await using server = start(checked(whole(), (app) =>
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
  await using server = start(checked(whole("application"), health), { scriptName: "/app" });
  assert.equal((await exchange(server, request("/app/livez"))).body, "OK\n");
  assert.equal((await exchange(server, request("/app/readyz"))).body, "OK\n");
  assert.equal((await exchange(server, request("/app"))).body, "application");
  assert.equal((await exchange(server, request("/livez"))).status, 404);
});

test("health: over the wire HEAD has the head of GET, and the answer its length", async () => {
  await using server = start(checked(whole(), health));
  const get = await exchange(server, request("/livez"));
  const head = await exchange(server, request("/livez", { method: "HEAD" }), { head: true });
  const read = ({ headers }: typeof get) => new Map(headers.filter(([name]) => name !== "date"));
  assert.deepEqual([head.status, head.body], [200, ""]);
  assert.deepEqual(read(head), read(get));
  assert.equal(read(get).get("content-length"), "3");
});

test("health: what the check says stays with the server", async () => {
  const check = () => {
    throw new Error(SECRET);
  };
  const errors = new ErrorLog();
  const handler = toFetch(checked(whole(), (app) => health(app, { check })), { errors });
  const response = await handler(new Request(`${HERE}readyz`));
  assert.equal(response.status, 503);
  assert.doesNotMatch((await response.text()) + JSON.stringify([...response.headers]), /secret/);
  assert.match(errors.text, /the-secret-of-the-message/);
});
