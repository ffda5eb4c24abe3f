/**
 * `fromFetch`: a Fetch handler as an application.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createServer, type RequestListener } from "node:http";
import { test } from "node:test";
import { brotliCompressSync, deflateRawSync, deflateSync, gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import {
  type Application,
  type ApplicationLike,
  type FetchHandler,
  fromFetch,
  runApplication,
  type Server,
  toFetch,
} from "../mod.ts";
import {
  addressOf,
  asked,
  bytes,
  Client,
  countingClose,
  echo,
  environFor,
  environWith,
  ErrorLog,
  Event,
  exchange,
  ok,
  parse,
  PLAIN,
  readChunk,
  type Reply,
  request,
  runProgram,
  RUNTIME,
  start,
  streamingInit,
  text,
  unchecked,
  within,
} from "./support.ts";

// Through both: toFetch and fromFetch

/** An application made a Fetch handler, and an application again. */
function through(app: ApplicationLike): Application {
  return fromFetch(toFetch(app, { errors: new ErrorLog() }));
}

test("through both, an application sees the Host as the client has sent it", async () => {
  const hosts: (string | undefined)[] = [];
  const app = through(({ HTTP_HOST }, startResponse) => {
    hosts.push(HTTP_HOST);
    ok(startResponse);
    return [];
  });
  const sent = ["Example.COM", "example.com:80", "1.2.3", "example.com:8080"];
  for (const host of sent) await runApplication(app, environWith({ HTTP_HOST: host, REMOTE_ADDR: "192.0.2.1" }));
  assert.deepEqual(hosts, sent);
});

interface AlikeCase {
  name: string;
  /** Breaks a rule. */
  isBad?: boolean;
  app: ApplicationLike;
  path?: string;
  init?: RequestInit;
}

const ALIKE: AlikeCase[] = [
  {
    name: "an array",
    app(_environ, startResponse) {
      ok(startResponse);
      return [bytes("one "), bytes("two")];
    },
  },
  {
    name: "an array without a type",
    isBad: true,
    app(_environ, startResponse) {
      startResponse("200 OK", []);
      return [bytes("untyped")];
    },
  },
  {
    name: "a generator",
    *app(_environ, startResponse) {
      ok(startResponse);
      yield bytes("one ");
      yield bytes("");
      yield bytes("two");
    },
  },
  {
    name: "an async generator with a declared length",
    async *app(_environ, startResponse) {
      ok(startResponse, ["Content-Length", "7"]);
      yield bytes("one ");
      yield await Promise.resolve(bytes("two"));
    },
  },
  {
    name: "an array with a declared length",
    app(_environ, startResponse) {
      ok(startResponse, ["Content-Length", "3"]);
      return [bytes("one")];
    },
  },
  {
    name: "an empty body",
    app(_environ, startResponse) {
      ok(startResponse);
      return [];
    },
  },
  {
    name: "several cookies, in their order",
    app(_environ, startResponse) {
      ok(startResponse, ["Set-Cookie", "z=1; Path=/"], ["Set-Cookie", "a=2"], ["Set-Cookie", "m=3, 4"]);
      return [];
    },
  },
  {
    name: "repeated headers",
    app(_environ, startResponse) {
      ok(startResponse, ["Vary", "Accept"], ["Vary", "Cookie"], ["X-Empty", ""]);
      return [];
    },
  },
  {
    name: "a header in Latin-1",
    app(_environ, startResponse) {
      ok(startResponse, ["X-Name", "caf\xe9 \xff\ttab"]);
      return [];
    },
  },
  {
    name: "an answer to HEAD, of known length",
    app(_environ, startResponse) {
      ok(startResponse);
      return [bytes("not sent")];
    },
    init: { method: "HEAD" },
  },
  {
    name: "an answer to HEAD, of declared length",
    *app(_environ, startResponse) {
      ok(startResponse, ["Content-Length", "1234"]);
      yield bytes("not sent");
    },
    init: { method: "HEAD" },
  },
  {
    name: "an answer to HEAD, of unknown length",
    *app(_environ, startResponse) {
      ok(startResponse);
      for (;;) yield bytes("not sent");
    },
    init: { method: "HEAD" },
  },
  {
    name: "204",
    app(_environ, startResponse) {
      startResponse("204 No Content", [["X-Kept", "yes"]]);
      return [];
    },
  },
  {
    name: "304",
    app(_environ, startResponse) {
      startResponse("304 Not Modified", [["ETag", '"1"']]);
      return [];
    },
  },
  {
    name: "a redirect",
    app(_environ, startResponse) {
      startResponse("302 Found", [["Location", "/elsewhere?a=b"], ...PLAIN]);
      return [bytes("See elsewhere")];
    },
  },
  {
    name: "404",
    app(_environ, startResponse) {
      startResponse("404 Not Found", PLAIN);
      return [bytes("Nothing here")];
    },
  },
  {
    name: "an application that fails",
    app() {
      throw new Error("This application fails");
    },
  },
  {
    name: "what was written",
    async app(_environ, startResponse) {
      const write = startResponse("200 OK", PLAIN);
      await write(bytes("written "));
      return [bytes("returned")];
    },
  },
  {
    name: "the path and the query of a request",
    app: echo,
    path: "/caf%C3%A9%2F%3F%23%20x//y%25/?a=%20b&c=?&=d%zz",
  },
  {
    name: "the headers of a request",
    app: echo,
    init: { headers: [["Cookie", "a=1; b=2"], ["X-Two-Words", "caf\xe9"], ["Accept", "text/html"], ["X-Empty", ""]] },
  },
  {
    name: "the body of a request",
    app: echo,
    init: { method: "PUT", body: "four", headers: { "Content-Type": "text/x-four", "Content-Length": "4" } },
  },
  {
    name: "a DELETE without a body",
    app: echo,
    init: { method: "DELETE" },
  },
];

async function summary(response: Response): Promise<unknown> {
  return { status: response.status, headers: [...response.headers], body: await response.text() };
}

for (const { name, app, path, init } of ALIKE) {
  test(`an application through toFetch and fromFetch gives the same Response: ${name}`, async () => {
    const expected = await summary(await asked(app).ask(path, init));
    assert.deepEqual(await summary(await asked(through(app)).ask(path, init)), expected);
  });
}

/** What a reply says: without its framing, and with repeated headers joined as RFC 9110, section 5.2, has it. */
function essence({ status, reason, headers, body }: Reply): unknown {
  const framing = ["date", "connection", "content-length", "transfer-encoding"];
  const said = new Headers(headers.filter(([name]) => !framing.includes(name)));
  return { status, reason, headers: [...said], body };
}

test("an application through toFetch and fromFetch gives the same over a socket", async () => {
  for (const { name, isBad, app, path = "/", init = {} } of ALIKE) {
    const { method = "GET", body = "" } = init;
    const headers = [...new Headers(init.headers)].map(([header, value]) => `${header}: ${value}`);
    const sent = request(path, { method, headers, body: String(body) });
    await using direct = start(isBad ? unchecked(app) : app);
    await using both = start(isBad ? unchecked(through(app)) : through(app));
    const options = { head: method === "HEAD" };
    const expected = await exchange(direct, sent, options);
    const reply = await exchange(both, sent, options);
    assert.deepEqual(essence(reply), essence(expected), name);
    assert.equal(reply.complete, true, name);
  }
});

test("an application twice through toFetch and fromFetch still gives the same", async () => {
  const app: Application = (environ, startResponse) => {
    startResponse("201 Created", [["Set-Cookie", "a"], ["Set-Cookie", "b"], ["Location", environ.PATH_INFO]]);
    return [bytes("made")];
  };
  const response = await asked(through(through(app))).ask("/thing");
  assert.equal(response.status, 201);
  assert.deepEqual(response.headers.getSetCookie(), ["a", "b"]);
  assert.equal(response.headers.get("Location"), "/thing");
  assert.equal(await response.text(), "made");
});

test("through both, a chunk is there before the next one exists", async () => {
  const taken = new Event("the first chunk being read");
  const app = through(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    await taken.wait();
    yield bytes("second");
  });
  const reader = (await asked(app).ask()).body!.getReader();
  assert.equal(await readChunk(reader), "first");
  taken.happen();
  assert.equal(await readChunk(reader), "second");
  assert.equal(await readChunk(reader), undefined);
});

test("through both, a chunk is on the wire before the next one exists", async () => {
  const taken = new Event("the first chunk being read");
  await using server = start(through(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    await taken.wait();
    yield bytes("second");
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  taken.happen();
  assert.equal(parse(await client.end()).body, "firstsecond");
});

test("through both, chunks are neither merged nor read ahead", async () => {
  let made = 0;
  const app = through(function* (_environ, startResponse) {
    ok(startResponse);
    for (made = 1; made <= 5; made++) yield bytes(`chunk ${made}`);
  });
  const reader = (await asked(app).ask()).body!.getReader();
  for (let number = 1; number <= 5; number++) {
    assert.equal(await readChunk(reader), `chunk ${number}`);
    for (let round = 0; round < 3; round++) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(made, number);
  }
});

test("through both, cancelling the response ends the generator and closes the body, once", async () => {
  let finished = 0;
  const body = countingClose(async function* () {
    try {
      for (;;) yield await Promise.resolve(bytes("more"));
    } finally {
      finished++;
    }
  }());
  const response = await asked(through((_environ, startResponse) => {
    ok(startResponse);
    return body;
  })).ask();
  const reader = response.body!.getReader();
  assert.equal(await readChunk(reader), "more");
  await within(reader.cancel("enough"), "the cancellation");
  await reader.closed;
  assert.equal(finished, 1);
  assert.equal(body.closed, 1);
});

test("through both, cancelling a response of which nothing was read closes the body, once", async () => {
  let finished = 0;
  const body = countingClose(function* () {
    try {
      for (;;) yield bytes("more");
    } finally {
      finished++;
    }
  }());
  const response = await asked(through((_environ, startResponse) => {
    ok(startResponse);
    return body;
  })).ask();
  await within(response.body!.cancel(), "the cancellation");
  assert.equal(finished, 1);
  assert.equal(body.closed, 1);
});

test("through both, a client that leaves ends the generator and closes the body, once", async () => {
  const finished = new Event("the end of the generator");
  const closed = new Event("close()");
  let closes = 0;
  const chunks = async function* (): AsyncGenerator<Uint8Array> {
    try {
      for (;;) yield await Promise.resolve(bytes("more"));
    } finally {
      finished.happen();
    }
  };
  await using server = start(through((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign(chunks(), {
      close() {
        closes++;
        closed.happen();
      },
    });
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/more/);
  client.leave();
  await finished.wait();
  await closed.wait();
  assert.equal(closes, 1);
});

test("through both, a client that leaves before the answer aborts the signal inside", async () => {
  const inside = new Event("the application being called");
  const aborted = new Event("the signal");
  await using server = start(through(async (environ, startResponse) => {
    const { signal } = environ["fetch.context"]!;
    signal.addEventListener("abort", () => aborted.happen());
    inside.happen();
    await aborted.wait();
    ok(startResponse);
    return [];
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await inside.wait();
  client.leave();
  await aborted.wait();
});

test("through both, a failure after the first byte is a failure of the stream", async () => {
  const app = through(function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    throw new Error("This application fails");
  });
  const response = await asked(app).ask();
  assert.equal(response.status, 200);
  const reader = response.body!.getReader();
  assert.equal(await readChunk(reader), "first");
  await assert.rejects(within(reader.read(), "the failure"));
});

test("through both, a failure after the first byte never looks complete", async () => {
  await using server = start(through(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    await Promise.resolve();
    throw new Error("This application fails");
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  assert.equal(parse(await client.end()).complete, false);
});

test("through both, a body shorter than it was declared never looks complete", async () => {
  const app = through(function* (_environ, startResponse) {
    ok(startResponse, ["Content-Length", "10"]);
    yield bytes("first");
  });
  await assert.rejects((await asked(app).ask()).text());
});

test("through both, the first line of a request is answered before the rest of its body exists", async () => {
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const body = new ReadableStream<Uint8Array>({ start: (given) => void (controller = given) });
  const app = through(async function* (environ, startResponse) {
    ok(startResponse);
    for await (const line of environ["wsgi.input"]) yield bytes(`<${text(line)}>`);
  });
  controller.enqueue(bytes("one\n"));
  const reader = (await within(asked(app).ask("/", streamingInit(body)), "the answer")).body!.getReader();
  assert.equal(await readChunk(reader), "<one\n>");
  controller.enqueue(bytes("two\nthr"));
  assert.equal(await readChunk(reader), "<two\n>");
  controller.enqueue(bytes("ee"));
  controller.close();
  assert.equal(await readChunk(reader), "<three>");
  assert.equal(await readChunk(reader), undefined);
});

test("through both, the first line of a request is answered over a socket before the rest was sent", async () => {
  await using server = start(through(async function* (environ, startResponse) {
    ok(startResponse);
    for await (const line of environ["wsgi.input"]) yield bytes(`<${text(line).trim()}>`);
  }));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"] }));
  await client.send("4\r\none\n\r\n");
  await client.until(/<one>/);
  await client.send("4\r\ntwo\n\r\n");
  await client.until(/<two>/);
  await client.send("0\r\n\r\n");
  assert.equal(parse(await client.end()).body, "<one><two>");
});

test("through both, the client's address survives", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.REMOTE_ADDR} ${environ.REMOTE_PORT}`)];
  };
  let direct = "";
  await using server = start((environ, startResponse) => {
    direct = `${environ.REMOTE_ADDR} ${environ.REMOTE_PORT}`;
    return through(app)(environ, startResponse);
  });
  const { body } = await exchange(server, request("/"));
  assert.match(body, /^127\.0\.0\.1 \d+$/);
  assert.equal(body, direct);
});

test("through both, an address that a middleware has put there survives, with or without a port", async () => {
  const app = through((environ, startResponse) => {
    ok(startResponse);
    return [bytes(JSON.stringify([environ.REMOTE_ADDR, environ.REMOTE_PORT]))];
  });
  const address = async (variables: Record<string, string>) =>
    JSON.parse(text((await runApplication(app, environWith(variables))).body));
  assert.deepEqual(await address({ REMOTE_ADDR: "192.0.2.1", REMOTE_PORT: "1234" }), ["192.0.2.1", "1234"]);
  assert.deepEqual(await address({ REMOTE_ADDR: "2001:db8::1" }), ["2001:db8::1", null]);
  assert.deepEqual(await address({}), [null, null]);
});

test("an application can be made of itself through fromFetch", async () => {
  let app: Application = (_environ, startResponse) => {
    ok(startResponse, ["Set-Cookie", "a"], ["Set-Cookie", "b"]);
    return [bytes("core")];
  };
  for (let layer = 0; layer < 20; layer++) app = through(app);
  const response = await asked(app).ask();
  assert.deepEqual(response.headers.getSetCookie(), ["a", "b"]);
  assert.equal(await response.text(), "core");
});

// Fetch handlers as applications

const HANDLERS: {
  name: string;
  handler: FetchHandler;
  status?: string;
  type?: string | undefined;
  body: string | RegExp;
}[] = [
  {
    name: "a string",
    handler: () => new Response("caf\xe9"),
    // Bun adds the type when it sends such a response, and does not show it before.
    type: RUNTIME === "deno" ? "text/plain;charset=utf-8" : undefined,
    body: "caf\xc3\xa9",
  },
  {
    name: "a string with a type",
    handler: () => new Response("<p>", { headers: { "Content-Type": "text/html" } }),
    type: "text/html",
    body: "<p>",
  },
  {
    name: "a typed Blob",
    handler: () => new Response(new Blob(["{}"], { type: "application/x-blob" })),
    type: "application/x-blob",
    body: "{}",
  },
  {
    name: "FormData",
    handler() {
      const form = new FormData();
      form.append("name", "value");
      return new Response(form);
    },
    body: /form-data; name="name"\r\n\r\nvalue\r\n/,
  },
  {
    name: "URLSearchParams",
    handler: () => new Response(new URLSearchParams({ a: "1", b: "2" })),
    type: "application/x-www-form-urlencoded;charset=utf-8",
    body: "a=1&b=2",
  },
  {
    name: "bytes with a type",
    handler: () => new Response(bytes("bytes"), { headers: { "Content-Type": "image/png" } }),
    type: "image/png",
    body: "bytes",
  },
  {
    name: "a stream",
    handler: () => new Response(ReadableStream.from([bytes("one "), bytes("two")])),
    type: undefined,
    body: "one two",
  },
  { name: "null", handler: () => new Response(null), type: undefined, body: "" },
  { name: "nothing", handler: () => new Response(), type: undefined, body: "" },
  {
    name: "an async handler",
    handler: async () => await Promise.resolve(new Response(null, { status: 202 })),
    status: "202 Accepted",
    body: "",
  },
  {
    name: "204",
    handler: () => new Response(null, { status: 204 }),
    status: "204 No Content",
    body: "",
  },
  {
    name: "304",
    handler: () => new Response(null, { status: 304, headers: { ETag: '"1"' } }),
    status: "304 Not Modified",
    body: "",
  },
  {
    name: "a reason phrase of its own",
    handler: () => new Response("", { status: 200, statusText: "Fine" }),
    status: "200 Fine",
    body: "",
  },
  {
    name: "a status without a name",
    handler: () => new Response("", { status: 299 }),
    status: "299 Unknown",
    body: "",
  },
];

for (const { name, handler, status = "200 OK", body, ...expected } of HANDLERS) {
  test(`fromFetch makes an application of a handler: ${name}`, async () => {
    const result = await runApplication(fromFetch(handler), environFor());
    assert.equal(result.status, status);
    const sent = Buffer.from(result.body).toString("latin1");
    if (typeof body === "string") assert.equal(sent, body);
    else assert.match(sent, body);
    if ("type" in expected) {
      const [, type] = result.headers.find(([header]) => header.toLowerCase() === "content-type") ?? [];
      // Bun adds a charset to the type of a Blob, and each runtime writes it in its own way.
      assert.equal(type?.toLowerCase().replace(/^(application\/x-blob);.*/, "$1"), expected.type);
    }
  });
}

test("a FormData response keeps the boundary that its type declares", async () => {
  const form = new FormData();
  form.append("name", "value");
  form.append("file", new File(["content"], "name.txt"));
  const response = await asked(fromFetch(() => new Response(form))).ask();
  const received = await response.formData();
  assert.equal(received.get("name"), "value");
  assert.equal(await (received.get("file") as File).text(), "content");
});

test("Response.json keeps its type, its status and its headers", async () => {
  const app = fromFetch(() => Response.json({ a: [1] }, { status: 418, headers: { "X-Kept": "yes" } }));
  const response = await asked(app).ask();
  assert.equal(response.status, 418);
  assert.match(response.headers.get("Content-Type")!, /^application\/json/);
  assert.equal(response.headers.get("X-Kept"), "yes");
  assert.deepEqual(await response.json(), { a: [1] });
});

test("Response.redirect keeps its status and where it points to", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    const app = fromFetch(() => Response.redirect("http://elsewhere.example/path?query", status));
    const response = await asked(app).ask();
    assert.equal(response.status, status);
    assert.equal(response.headers.get("Location"), "http://elsewhere.example/path?query");
  }
});

test("a status without a text gets the reason phrase of RFC 9110, on every runtime", async () => {
  const phrases = {
    200: "OK",
    226: "IM Used",
    404: "Not Found",
    413: "Content Too Large",
    422: "Unprocessable Content",
  };
  for (
    const [status, phrase] of Object.entries({ ...phrases, 511: "Network Authentication Required", 599: "Unknown" })
  ) {
    const app = fromFetch(() => new Response(null, { status: Number(status) }));
    assert.equal((await runApplication(app, environFor())).status, `${status} ${phrase}`);
  }
});

test("a handler's cookies stay apart and in order", async () => {
  await using server = start(fromFetch(() => {
    const headers = new Headers(PLAIN);
    headers.append("Set-Cookie", "z=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT");
    headers.append("Set-Cookie", "a=2");
    return new Response("", { headers });
  }));
  const { headers } = await exchange(server, request("/"));
  const cookies = headers.filter(([name]) => name === "set-cookie").map(([, value]) => value);
  assert.deepEqual(cookies, ["z=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT", "a=2"]);
});

const FAILING: { name: string; handler: unknown; report: RegExp }[] = [
  {
    name: "throws",
    handler() {
      throw new Error("This handler fails");
    },
    report: /This handler fails/,
  },
  { name: "rejects", handler: () => Promise.reject(new Error("This handler fails")), report: /This handler fails/ },
  { name: "returns nothing", handler() {}, report: /undefined.*Response/ },
  { name: "gives a promise of null", handler: () => Promise.resolve(null), report: /null.*Response/ },
  { name: "returns text", handler: () => "text", report: /"text".*Response/ },
  { name: "returns an object", handler: () => ({}), report: /object.*Response/ },
  { name: "returns status 101", handler: () => new Response(null, { status: 101 }), report: /WSGI has no WebSockets/ },
  {
    name: "upgrades the connection by its second argument",
    handler: (request: Request, server: { upgrade(request: Request): boolean }) => server.upgrade(request),
    report: /^Application failed on GET \S+: Error: Cannot upgrade the connection: WSGI has no WebSockets/,
  },
  { name: "returns Response.error()", handler: () => Response.error(), report: /status/ },
  {
    name: "returns a Response whose body was read",
    async handler() {
      const response = new Response("read");
      await response.text();
      return response;
    },
    report: /TypeError/,
  },
  {
    name: "returns a header with a control character",
    handler: () => new Response("", { headers: { "X-Bad": "\x01" } }),
    report: /"x-bad".*control character/,
  },
  {
    name: "returns a body that fails at once",
    handler() {
      const body = new ReadableStream({ start: (controller) => controller.error(new Error("This body fails")) });
      return new Response(body);
    },
    report: /This body fails/,
  },
];

for (const { name, handler, report } of FAILING) {
  test(`a handler that ${name} is answered with 500, and reported`, async () => {
    const { ask, errors } = asked(fromFetch(handler as FetchHandler));
    const response = await ask();
    assert.equal(response.status, 500);
    assert.equal(await response.text(), "Internal Server Error\n");
    assert.match(errors.text, report);
    assert.equal(errors.text.match(/Application failed/g)?.length, 1);
  });
}

test("a value that is not a handler throws a TypeError, or is answered with 500", async () => {
  for (const handler of [undefined, null, "text", {}]) {
    let app: Application;
    try {
      app = fromFetch(handler as never);
    } catch (error) {
      assert.ok(error instanceof TypeError);
      continue;
    }
    assert.equal((await asked(app).ask()).status, 500);
  }
});

test("a body that cannot be sent because of the head is cancelled", async () => {
  const cancelled = new Event("the cancellation of the body");
  const { ask } = asked(fromFetch(() => {
    const body = new ReadableStream({ cancel: () => cancelled.happen() });
    return new Response(body, { headers: { "X-Bad": "\x01" } });
  }));
  assert.equal((await ask()).status, 500);
  await cancelled.wait();
});

test("a process survives handlers whose body can neither be sent nor cancelled", async () => {
  const { code, stdout, stderr } = await runProgram(`
    import { fromFetch, toFetch } from MOD;
    const errors = { write() {}, writelines() {}, flush() {} };
    const respond = (source) => new Response(new ReadableStream(source), { headers: { "X-Bad": "\\x01" } });
    const failing = () => respond({ cancel: () => Promise.reject(new Error("cancel() fails")) });
    const locked = () => {
      const response = respond({});
      response.body.getReader();
      return response;
    };
    for (const handler of [failing, locked]) {
      const response = await toFetch(fromFetch(handler), { errors })(new Request("http://localhost/"));
      console.log(response.status);
    }
    setTimeout(() => console.log("alive"));
  `);
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: "500\n500\nalive\n", stderr: "" });
});

test("a handler's body that fails after its first chunk aborts the response", async () => {
  const { ask, errors } = asked(fromFetch(() => {
    let pulls = 0;
    const pull = (controller: ReadableStreamDefaultController<Uint8Array>) => {
      if (pulls++ === 0) controller.enqueue(bytes("first"));
      else controller.error(new Error("This body fails"));
    };
    return new Response(new ReadableStream({ pull }, { highWaterMark: 0 }));
  }));
  const reader = (await ask()).body!.getReader();
  assert.equal(await readChunk(reader), "first");
  await assert.rejects(within(reader.read(), "the failure"));
  assert.match(errors.text, /This body fails/);
});

test("a handler's body is cancelled when it answers HEAD", async () => {
  const cancelled = new Event("the cancellation of the body");
  await using server = start(fromFetch(() => {
    const pull = (controller: ReadableStreamDefaultController<Uint8Array>) => controller.enqueue(bytes("endless"));
    return new Response(new ReadableStream({ pull, cancel: () => cancelled.happen() }), { headers: PLAIN });
  }));
  const { status, body } = await exchange(server, request("/", { method: "HEAD" }), { head: true });
  assert.equal(status, 200);
  assert.equal(body.replace(/^0\r\n\r\n$/, ""), "");
  await cancelled.wait();
});

test("hop-by-hop headers of a handler's response are left out", async () => {
  const app = fromFetch(() =>
    new Response("body", {
      headers: {
        "Connection": "keep-alive",
        "Keep-Alive": "timeout=5",
        "Proxy-Authenticate": "Basic",
        "TE": "trailers",
        "Trailer": "X-Late",
        "Transfer-Encoding": "chunked",
        "Upgrade": "h2c",
        "X-Kept": "yes",
      },
    })
  );
  const { headers } = await runApplication(app, environFor());
  const names = headers.map(([name]) => name.toLowerCase()).filter((name) => name !== "content-type");
  assert.deepEqual(names, ["x-kept"]);
});

test("a header that Connection declares to be hop-by-hop is left out, too", async () => {
  const app = fromFetch(() =>
    new Response(null, { headers: { "Connection": "close, X-Hop", "X-Hop": "1", "X-A": "2" } })
  );
  const { headers } = await runApplication(app, environFor());
  assert.deepEqual(headers, [["x-a", "2"]]);
});

test("a handler's own Content-Length is kept", async () => {
  await using server = start(fromFetch((request) => {
    const body = request.method === "HEAD" ? null : "twelve bytes";
    return new Response(body, { headers: { "Content-Type": "text/plain", "Content-Length": "12" } });
  }));
  for (const method of ["GET", "HEAD"]) {
    const head = method === "HEAD";
    const { headers, body } = await exchange(server, request("/", { method }), { head });
    assert.equal(new Map(headers).get("content-length"), "12");
    assert.equal(body, head ? "" : "twelve bytes");
  }
});

test("the handler gets the client's address second, where Deno's handlers expect it", async () => {
  let received: unknown;
  const app = fromFetch((_request, info) => {
    received = info;
    return new Response();
  });
  await runApplication(app, environWith({ REMOTE_ADDR: "192.0.2.1", REMOTE_PORT: "1234" }));
  const { remoteAddr } = received as { remoteAddr: unknown };
  assert.deepEqual(remoteAddr, { transport: "tcp", hostname: "192.0.2.1", port: 1234 });
});

test("the handler is told of a client that leaves before the answer", async () => {
  const inside = new Event("the handler being called");
  const aborted = new Event("the signal");
  await using server = start(fromFetch(async (request) => {
    request.signal.addEventListener("abort", () => aborted.happen());
    inside.happen();
    await aborted.wait();
    return new Response(null, { status: 204 });
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await inside.wait();
  client.leave();
  await aborted.wait();
  assert.equal(server.errors.text, "");
});

test("a handler reads the body of a client that leaves in the middle of it, and fails", async () => {
  const inside = new Event("the handler being called");
  const failed = new Event<unknown>("the failure");
  await using server = start(fromFetch(async (request) => {
    inside.happen();
    await request.text().catch((error) => failed.happen(error));
    return new Response(null, { status: 204 });
  }));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 10"], body: "half" }));
  await inside.wait();
  client.leave();
  assert.equal((await failed.wait() as Error).name, "AbortError");
});

test("a handler sees the changes that a middleware has made to the environ", async () => {
  const inner = fromFetch((request) => {
    const { pathname, search } = new URL(request.url);
    return new Response(`${request.method} ${pathname}${search} ${request.headers.get("X-User")}`, { headers: PLAIN });
  });
  const app: Application = (environ, startResponse) => {
    environ.REQUEST_METHOD = "PUT";
    environ.PATH_INFO = "/changed \xc3\xa9";
    environ.QUERY_STRING = "changed=1";
    environ.HTTP_X_USER = "somebody";
    return inner(environ, startResponse);
  };
  const response = await asked(app).ask("/path?query", { headers: { "X-User": "nobody" } });
  assert.equal(await response.text(), "PUT /changed%20%C3%A9?changed=1 somebody");
});

// A handler in front of another server

test("a response fetched from upstream is passed on", async () => {
  await using upstream = start((environ, startResponse) => {
    startResponse("203 Non-Authoritative Information", [
      ["Content-Type", "text/x-upstream"],
      ["Set-Cookie", "a=1"],
      ["Set-Cookie", "b=2"],
    ]);
    return [bytes(`${environ.PATH_INFO}?${environ.QUERY_STRING}`)];
  });
  await using server = start(fromFetch((request) => {
    const { pathname, search } = new URL(request.url);
    return fetch(addressOf(upstream, pathname + search));
  }));
  const { status, headers, body, complete } = await exchange(server, request("/a%2Fb?c=d"));
  assert.equal(status, 203);
  assert.equal(new Map(headers).get("content-type"), "text/x-upstream");
  assert.deepEqual(headers.filter(([name]) => name === "set-cookie").map(([, value]) => value), ["a=1", "b=2"]);
  assert.equal(body, "/a/b?c=d");
  assert.equal(complete, true);
});

test("a chunked response fetched from upstream is passed on chunk by chunk", async () => {
  const taken = new Event("the first chunk being read");
  await using upstream = start(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    await taken.wait();
    yield bytes("second");
  });
  await using server = start(fromFetch(() => fetch(addressOf(upstream))));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  taken.happen();
  const { body, complete } = parse(await client.end());
  assert.equal(body, "firstsecond");
  assert.equal(complete, true);
});

test("a client that leaves ends what is fetched from upstream", async () => {
  const finished = new Event("the end of the upstream generator");
  await using upstream = start(async function* (_environ, startResponse) {
    try {
      ok(startResponse);
      for (;;) yield await Promise.resolve(bytes("more"));
    } finally {
      finished.happen();
    }
  });
  await using server = start(fromFetch(() => fetch(addressOf(upstream))));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/more/);
  client.leave();
  await finished.wait();
});

test("an upstream that fails in the middle aborts the response", async () => {
  const taken = new Event("the first chunk being read");
  await using upstream = start(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    await taken.wait();
    throw new Error("Upstream fails");
  });
  await using server = start(fromFetch(() => fetch(addressOf(upstream))));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  taken.happen();
  assert.equal(parse(await client.end()).complete, false);
});

test("a compressed response fetched from upstream, which fetch has decompressed, is readable", async () => {
  const plain = "The quick brown fox jumps over the lazy dog. ".repeat(100);
  const upstream = createServer((request, response) => {
    const body = gzipSync(plain);
    const length = request.url === "/declared" ? { "Content-Length": body.length } : {};
    response.writeHead(200, { "Content-Type": "text/plain", "Content-Encoding": "gzip", ...length });
    response.end(body);
  });
  const listening = new Event("the upstream server");
  upstream.listen(0, "127.0.0.1", () => listening.happen());
  await listening.wait();
  try {
    const { port } = upstream.address() as { port: number };
    await using server = start(fromFetch(({ url }) => fetch(`http://127.0.0.1:${port}${new URL(url).pathname}`)));
    for (const path of ["/declared", "/chunked"]) {
      const response = await within(fetch(addressOf(server, path)), "the response");
      assert.equal(await within(response.text(), "the body"), plain);
    }
  } finally {
    upstream.close();
  }
});

const CODINGS: [contentEncoding: string, encode: (plain: Uint8Array) => Uint8Array][] = [
  ["gzip", gzipSync],
  ["GZip", gzipSync],
  ["x-gzip", gzipSync],
  ["br", brotliCompressSync],
  ["deflate", deflateSync],
  ["deflate", deflateRawSync],
  ["zstd", zstdCompressSync],
  ["identity", (plain) => plain],
  ["unknown", (plain) => plain.toReversed()],
  ["gzip;q=1", gzipSync],
  ["gzip,", gzipSync],
  ["identity, gzip", gzipSync],
  ["br, identity", brotliCompressSync],
  ["gzip, br", (plain) => brotliCompressSync(gzipSync(plain))],
  ["gzip, gzip", (plain) => gzipSync(gzipSync(plain))],
  ["unknown, gzip", (plain) => gzipSync(plain.toReversed())],
];
const PLAINTEXT = "The quick brown fox jumps over the lazy dog. ".repeat(10);

/** A server that fetches from another one, which sends the plain text by the coding whose index is the path. */
async function withCodedUpstream(
  fetchHandler: (url: string, request: Request) => Promise<Response>,
  use: (server: Pick<Server, "hostname" | "port">) => Promise<void>,
): Promise<void> {
  const listener: RequestListener = ({ method, headers, url = "" }, response) => {
    const [contentEncoding, encode] = CODINGS[Number(url.slice(1))]!;
    const body = encode(bytes(PLAINTEXT));
    const status = Number(headers["x-status"] ?? (headers.range ? 206 : headers["if-none-match"] ? 304 : 200));
    response.writeHead(status, {
      "Content-Encoding": contentEncoding,
      "Content-Digest": "sha-256=:coded:",
      "Accept-Ranges": "bytes",
      ...status === 304 ? {} : { "Content-Type": "text/plain", "Content-Length": body.length },
      ...status === 206 ? { "Content-Range": `bytes 0-${body.length - 1}/${body.length}` } : {},
    });
    response.end(method === "HEAD" || status === 304 ? undefined : body);
  };
  const upstream = createServer(listener);
  const listening = new Event("the upstream server");
  upstream.listen(0, "127.0.0.1", () => listening.happen());
  await listening.wait();
  try {
    const { port } = upstream.address() as { port: number };
    await using server = start(fromFetch((request) => {
      return fetchHandler(`http://127.0.0.1:${port}${new URL(request.url).pathname}`, request);
    }));
    await use(server);
  } finally {
    upstream.close();
  }
}

// A runtime that decodes another set of codings than it did fails this test.
for (const [what, headers] of [["a ", []], ["a partial ", ["Range: bytes=0-"]]] as const) {
  test(`${what}response of fetch keeps Content-Encoding and its like exactly where the body is still coded`, async () => {
    await withCodedUpstream((url, { headers }) => fetch(url, { headers }), async (server) => {
      for (const [index, [contentEncoding, encode]] of CODINGS.entries()) {
        const reply = await exchange(server, request(`/${index}`, { headers: [...headers] }));
        const found = new Map(reply.headers);
        const coded = Buffer.from(encode(bytes(PLAINTEXT))).toString("latin1");
        const isKept = found.has("content-encoding");
        assert.equal(reply.body, isKept ? coded : PLAINTEXT, contentEncoding);
        assert.equal(found.get("content-encoding"), isKept ? contentEncoding : undefined);
        assert.equal(found.get("content-length"), isKept ? String(coded.length) : undefined);
        assert.equal(found.has("content-digest"), isKept);
        assert.equal(found.has("accept-ranges"), isKept);
      }
    });
  });
}

test("HEAD and 304 keep each Content-Encoding that a response of fetch to GET keeps", async () => {
  const forward = (url: string, { method, headers }: Request) => fetch(url, { method, headers });
  await withCodedUpstream(forward, async (server) => {
    const keptBy = async (method: string, ...headers: string[]) => {
      const ask = async (index: number) => {
        const reply = await exchange(server, request(`/${index}`, { method, headers }), { head: method === "HEAD" });
        return new Map(reply.headers).get("content-encoding");
      };
      return await Promise.all(CODINGS.keys().map(ask));
    };
    const kept = await keptBy("GET");
    assert.ok(kept.includes("unknown"));
    assert.deepEqual(await keptBy("HEAD"), kept);
    assert.deepEqual(await keptBy("GET", "If-None-Match: *"), kept);
  });
});

for (const header of ["Accept-Encoding: identity", "Range: bytes=0-"]) {
  test(`a new Response of what fetch was told not to decode by ${header} keeps Content-Encoding`, async () => {
    const [name = "", value = ""] = header.split(": ");
    const asCoded = { headers: { [name]: value, "X-Status": "200" }, decompress: false }; // for Deno, and for Bun
    const handler = async (url: string) => {
      const response = await fetch(url, asCoded);
      return new Response(response.body, response);
    };
    await withCodedUpstream(handler, async (server) => {
      const { status, headers, body } = await exchange(server, request("/0"));
      assert.deepEqual([status, new Map(headers).get("content-encoding")], [200, "gzip"]);
      assert.equal(String(gunzipSync(Buffer.from(body, "latin1"))), PLAINTEXT);
    });
  });
}

for (const header of ["Accept-Encoding: identity", "Range: bytes=0-"]) {
  test(`a 200 in gzip to a fetch() with ${header} loses its label on Deno, and is decoded on Bun`, async () => {
    const [name = "", value = ""] = header.split(": ");
    await withCodedUpstream((url) => fetch(url, { headers: { [name]: value, "X-Status": "200" } }), async (server) => {
      const { headers, body } = await exchange(server, request("/0"));
      const sent = Buffer.from(body, "latin1");
      assert.equal(new Map(headers).get("content-encoding"), undefined);
      assert.equal(String(RUNTIME === "deno" ? gunzipSync(sent) : sent), PLAINTEXT);
    });
  });
}

test("a request is passed on to upstream with its method, headers and body", async () => {
  await using upstream = start(async (environ, startResponse) => {
    ok(startResponse);
    const body = text(await environ["wsgi.input"].read());
    return [bytes([environ.REQUEST_METHOD, environ.CONTENT_TYPE, environ.HTTP_X_KEPT, body].join(" "))];
  });
  await using server = start(fromFetch((request) => fetch(new Request(addressOf(upstream), request))));
  const { body } = await exchange(
    server,
    request("/", {
      method: "PATCH",
      headers: ["Content-Type: text/x", "X-Kept: yes", "Content-Length: 4"],
      body: "four",
    }),
  );
  assert.equal(body, "PATCH text/x yes four");
});

test("a chunked request is passed on to upstream chunk by chunk", async () => {
  const arrived = new Event("the first line at the upstream server");
  await using upstream = start(async (environ, startResponse) => {
    const first = await environ["wsgi.input"].readline();
    arrived.happen();
    const rest = await environ["wsgi.input"].read();
    ok(startResponse);
    return [first, rest];
  });
  await using server = start(fromFetch((request) => fetch(new Request(addressOf(upstream), request))));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body: "4\r\none\n\r\n" }));
  await arrived.wait();
  await client.send("3\r\ntwo\r\n0\r\n\r\n");
  assert.equal(parse(await client.end()).body, "one\ntwo");
});

test("an upstream that is not there is answered with 500", async () => {
  const gone = start(() => []);
  const address = addressOf(gone);
  await gone.shutdown();
  await using server = start(fromFetch(() => fetch(address)));
  assert.equal((await exchange(server, request("/"))).status, 500);
  await server.errors.matches(/Application failed/);
});

// A router as frameworks have it

interface RouteContext {
  request: Request;
  path: string;
  json(value: unknown, status?: number): Response;
  text(value: string): Response;
  redirect(location: string): Response;
}

class Router {
  readonly #routes: { method: string; path: string; handler: (c: RouteContext) => Response | Promise<Response> }[] = [];

  on(method: string, path: string, handler: (c: RouteContext) => Response | Promise<Response>): this {
    this.#routes.push({ method, path, handler });
    return this;
  }

  readonly fetch: FetchHandler = (request) => {
    const path = decodeURIComponent(new URL(request.url).pathname);
    const route = this.#routes.find((route) => route.method === request.method && route.path === path);
    if (!route) return new Response("No such route", { status: 404, headers: PLAIN });
    return route.handler({
      request,
      path,
      json: (value, status = 200) => Response.json(value, { status }),
      text: (value) => new Response(value, { headers: PLAIN }),
      redirect: (location) => new Response(null, { status: 302, headers: { Location: location } }),
    });
  };
}

function router(): FetchHandler {
  return new Router()
    .on("GET", "/", (c) => c.text("root"))
    .on("GET", "/items", (c) => c.json({ path: c.path, query: new URL(c.request.url).searchParams.get("q") }))
    .on("GET", "/caf\xe9", (c) => c.text("coffee"))
    .on("GET", "/old", (c) => c.redirect("/items"))
    .on("POST", "/items", async (c) => c.json({ made: await c.request.json() }, 201))
    .fetch;
}

const ROUTED: {
  sent: string;
  options?: { method: string; headers?: string[]; body?: string };
  status: number;
  body: string;
}[] = [
  { sent: "", status: 200, body: "root" },
  { sent: "/", status: 200, body: "root" },
  { sent: "/items?q=%C3%A9", status: 200, body: '{"path":"/items","query":"\xc3\xa9"}' },
  { sent: "/caf%C3%A9", status: 200, body: "coffee" },
  { sent: "/old", status: 302, body: "" },
  { sent: "/items/1", status: 404, body: "No such route" },
  { sent: "/items", options: { method: "DELETE" }, status: 404, body: "No such route" },
  {
    sent: "/items",
    options: { method: "POST", headers: ["Content-Type: application/json", "Content-Length: 7"], body: '{"a":1}' },
    status: 201,
    body: '{"made":{"a":1}}',
  },
];

async function assertRouted(server: Server, prefix: string): Promise<void> {
  for (const { sent, options, status, body } of ROUTED) {
    const target = `${prefix}${sent}` || "/";
    const reply = await exchange(server, request(target, options));
    assert.deepEqual([target, reply.status, reply.body], [target, status, body]);
  }
}

test("a router routes by its own paths at the root", async () => {
  await using server = start(fromFetch(router()));
  await assertRouted(server, "");
});

test("a router routes by its own paths below scriptName", async () => {
  await using server = start(fromFetch(router()), { scriptName: "/app" });
  await assertRouted(server, "/app");
  assert.equal((await exchange(server, request("/apple"))).status, 404);
});

test("a router routes by its own paths where an application has moved a prefix to SCRIPT_NAME", async () => {
  const inner = fromFetch(router());
  await using server = start((environ, startResponse) => {
    assert.ok(environ.PATH_INFO.startsWith("/mounted"));
    environ.SCRIPT_NAME += "/mounted";
    environ.PATH_INFO = environ.PATH_INFO.slice("/mounted".length);
    return inner(environ, startResponse);
  });
  await assertRouted(server, "/mounted");
});
