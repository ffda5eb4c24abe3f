/**
 * `accessLog`: one line for each request, with what was sent.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  accessLog,
  type AccessLogOptions,
  type Application,
  basicAuth,
  errorPage,
  type FetchContext,
  type HeaderList,
  type Middleware,
  mount,
  proxyFix,
  requestId,
  runApplication,
  testEnviron,
  timeout,
  validator,
} from "../mod.ts";
import {
  aborted,
  Closing,
  failing,
  fieldsOf,
  lacking,
  Log,
  responding,
  type Said,
  stacked,
  whole,
  withStatus,
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
  PLAIN,
  request,
  settle,
  start,
  text,
  unchecked,
} from "./support.ts";

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

test("accessLog: a line has the date of its own request, also where the second is another than that of the last line", async () => {
  const log = new Log();
  const app = log.around(whole("Hello"));
  const RealDate = Date;
  try {
    for (const time of ["2026-01-31T23:59:59.999Z", "2026-02-01T00:00:00.000Z", "2026-01-31T23:59:59.000Z"]) {
      globalThis.Date = class extends RealDate {
        constructor() {
          super(time);
        }
      } as DateConstructor;
      await runApplication(app, testEnviron());
    }
  } finally {
    globalThis.Date = RealDate;
  }
  assert.deepEqual(log.lines.map((line) => /\[.*?\]/.exec(line)![0]), [
    "[31/Jan/2026:23:59:59 +0000]",
    "[01/Feb/2026:00:00:00 +0000]",
    "[31/Jan/2026:23:59:59 +0000]",
  ]);
});

test("accessLog: quotes and backslashes are escaped by a backslash, as Apache does", async () => {
  const log = new Log();
  await runApplication(log.around(whole("Hello")), testEnviron({ HTTP_USER_AGENT: 'a "b" \\c' }));
  await log.one();
  assert.match(log.lines[0]!, / "a \\"b\\" \\\\c" /);
});

test("accessLog: an unknown field is a dash", async () => {
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

for (const chunk of [null, 7]) {
  test(`accessLog: a chunk that is ${chunk} counts for nothing, and only the server's refusal is reported`, async () => {
    const log = new Log();
    const app: Application = (_environ, startResponse) => (ok(startResponse), [chunk as never]);
    const { response, errors } = await answer(unchecked(log.combined(log.json(app))));
    assert.equal(response.status, 500);
    assert.equal((await log.one()).said.bytes, 0);
    const refusal = `Cannot send the response: a chunk is ${chunk}, expected a Uint8Array`;
    assert.deepEqual(errors.text.match(/(?<= failed on ).*/g), [`GET /: TypeError: ${refusal}`]);
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

test("accessLog: an error whose properties cannot be read is passed on as it is, and logged", async () => {
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

test("accessLog: a log inside of a timeout has one line, too", async () => {
  const log = new Log();
  const wait: Middleware = (app) => timeout(app, { milliseconds: 5 });
  const { response } = await answer(stacked(STALLING.stream!, wait, log.combined, log.json));
  assert.equal(response.status, 504);
  await response.text();
  await log.one();
});

/** Undoes what Apache's escapes do. */
function unescape(field = ""): string {
  return field.replace(
    /\\(?:x([\da-f]{2})|(.))/g,
    (_escape, hex, character) => character ?? String.fromCharCode(parseInt(hex, 16)),
  );
}

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
  const app = stacked(whole("Hello"), (app) => accessLog(app));
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
    const logged = stacked(
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
  const { response, errors } = await answer(stacked(whole("Hello"), (app) => accessLog(app, { write: () => failure })));
  assert.equal(await response.text(), "Hello");
  await settle();
  assert.match(errors.text, /The disk is full/);
});

test("accessLog: a write that throws does not hide the application's own error", async () => {
  const write = () => {
    throw new Error("The disk is full");
  };
  for (const app of [failing(withStatus(404)), () => Promise.reject(withStatus(404))]) {
    const { response } = await answer(stacked(app, errorPage, (app) => accessLog(app, { write })));
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
      stopping: new AbortController().signal,
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

test("accessLog: a server without REQUEST_URI and SCRIPT_NAME, which PEP 3333 allows, has a target and skips", async () => {
  const log = new Log({ skip: ["/livez"] });
  const app = log.around(whole());
  for (const PATH_INFO of ["/a b", "/livez"]) {
    const environ = lacking({ PATH_INFO, QUERY_STRING: "c=d" }, "REQUEST_URI", "SCRIPT_NAME");
    await runApplication(app, environ);
  }
  assert.equal((await log.one()).fields.target, "/a%20b?c=d");
});
