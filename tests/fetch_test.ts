import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import {
  type Application,
  type ApplicationLike,
  type Environ,
  type FetchHandler,
  fromFetch,
  type HeaderList,
  type InputStream,
  type ResponseBody,
  runApplication,
  serve,
  type ServeOptions,
  type Server,
  type StartResponse,
  toEnviron,
  toFetch,
  type ToFetchOptions,
  toRequest,
  type Write,
} from "../mod.ts";
import {
  bytes,
  Client,
  ErrorLog,
  Event,
  exchange,
  ok,
  parse,
  PLAIN,
  type Reply,
  request,
  RUNTIME,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

const ORIGIN = "http://test.example";

/** What a test asks, and what is told about it. */
interface Asked {
  ask(path?: string, init?: RequestInit): Promise<Response>;
  errors: ErrorLog;
}

/** An application without a socket. */
function asked(app: ApplicationLike, options: ToFetchOptions = {}): Asked {
  const errors = new ErrorLog();
  const handler = toFetch(app, { errors, ...options });
  return { ask: async (path = "/", init = {}) => await handler(new Request(`${ORIGIN}${path}`, init)), errors };
}

/** An application made a Fetch handler, and an application again. */
function through(app: ApplicationLike): Application {
  return fromFetch(toFetch(app, { errors: new ErrorLog() }));
}

function environOf(path = "/", init: RequestInit = {}): Environ {
  return toEnviron(new Request(`${ORIGIN}${path}`, init));
}

function environWith(variables: Record<string, unknown>): Environ {
  return Object.assign(environOf(), variables);
}

/** The next chunk of a body, or nothing at its end. */
async function readChunk(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<string | undefined> {
  const { value } = await within(reader.read(), "a chunk");
  return value && text(value);
}

/** A body that counts how it ends. */
function counted(chunks: Generator<Uint8Array> | AsyncGenerator<Uint8Array>): ResponseBody & { closed: number } {
  return Object.assign(chunks, {
    closed: 0,
    close(this: { closed: number }) {
      this.closed++;
    },
  });
}

function streaming(body: ReadableStream<Uint8Array>): RequestInit {
  return { method: "POST", body, duplex: "half" } as RequestInit;
}

function at(server: Server, path = "/"): string {
  return `http://127.0.0.1:${server.port}${path}`;
}

/** What a reply says: without its framing, and with repeated headers joined as RFC 9110, section 5.2, has it. */
function essence({ status, reason, headers, body }: Reply): unknown {
  const framing = ["date", "connection", "content-length", "transfer-encoding"];
  const said = new Headers(headers.filter(([name]) => !framing.includes(name)));
  return { status, reason, headers: [...said], body };
}

/** Runs a program of its own, and waits for its end. `MOD` in its source is the library. */
async function runProgram(source: string): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const folder = await mkdtemp(join(tmpdir(), "wsgi-"));
  try {
    const file = join(folder, "program.ts");
    await writeFile(file, source.replaceAll("MOD", JSON.stringify(new URL("../mod.ts", import.meta.url).href)));
    const options = RUNTIME === "deno" ? ["run", "--quiet", "--allow-all"] : ["run"];
    const child = spawn(process.execPath, [...options, file], { env: { ...process.env, NO_COLOR: "1" } });
    const ended = new Event<number | null>("the end of a program");
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (data: Uint8Array) => stdout += text(data));
    child.stderr.on("data", (data: Uint8Array) => stderr += text(data));
    child.on("close", (code) => ended.happen(code));
    try {
      return { code: await ended.wait(), stdout, stderr };
    } finally {
      child.kill("SIGKILL");
    }
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Answers with all that a request says. */
const echo: Application = async (environ, startResponse) => {
  const variables = Object.entries(environ)
    .filter(([name, value]) => typeof value === "string" && !/^SERVER_|^REMOTE_PORT$|^REQUEST_URI$/.test(name))
    .sort();
  const body = text(await environ["wsgi.input"].read());
  ok(startResponse);
  return [bytes(JSON.stringify({ variables, body }))];
};

// Through both: toFetch and fromFetch.

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
  test(`an application through both gives the same Response: ${name}`, async () => {
    const expected = await summary(await asked(app).ask(path, init));
    assert.deepEqual(await summary(await asked(through(app)).ask(path, init)), expected);
  });
}

test("an application through both gives the same over a socket", async () => {
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

test("an application through both twice is still the same", async () => {
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
  const body = counted(async function* () {
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
  const body = counted(function* () {
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
  const reader = (await within(asked(app).ask("/", streaming(body)), "the answer")).body!.getReader();
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

// Fetch handlers as applications.

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
    const result = await runApplication(fromFetch(handler), environOf());
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

test("a handler that is none throws a TypeError, or is answered with 500", async () => {
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
  const { headers } = await runApplication(app, environOf());
  const names = headers.map(([name]) => name.toLowerCase()).filter((name) => name !== "content-type");
  assert.deepEqual(names, ["x-kept"]);
});

test("what connection declares to be hop-by-hop is left out, too", async () => {
  const app = fromFetch(() =>
    new Response(null, { headers: { "Connection": "close, X-Hop", "X-Hop": "1", "X-A": "2" } })
  );
  const { headers } = await runApplication(app, environOf());
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

test("what a middleware has changed is what a handler sees", async () => {
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

// A handler in front of another server.

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
    return fetch(at(upstream, pathname + search));
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
  await using server = start(fromFetch(() => fetch(at(upstream))));
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
  await using server = start(fromFetch(() => fetch(at(upstream))));
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
  await using server = start(fromFetch(() => fetch(at(upstream))));
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
      const response = await within(fetch(at(server, path)), "the response");
      assert.equal(await within(response.text(), "the body"), plain);
    }
  } finally {
    upstream.close();
  }
});

test("a request is passed on to upstream with its method, headers and body", async () => {
  await using upstream = start(async (environ, startResponse) => {
    ok(startResponse);
    const body = text(await environ["wsgi.input"].read());
    return [bytes([environ.REQUEST_METHOD, environ.CONTENT_TYPE, environ.HTTP_X_KEPT, body].join(" "))];
  });
  await using server = start(fromFetch((request) => fetch(new Request(at(upstream), request))));
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
  await using server = start(fromFetch((request) => fetch(new Request(at(upstream), request))));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body: "4\r\none\n\r\n" }));
  await arrived.wait();
  await client.send("3\r\ntwo\r\n0\r\n\r\n");
  assert.equal(parse(await client.end()).body, "one\ntwo");
});

test("an upstream that is not there is answered with 500", async () => {
  const gone = start(() => []);
  const address = at(gone);
  await gone.shutdown();
  await using server = start(fromFetch(() => fetch(address)));
  assert.equal((await exchange(server, request("/"))).status, 500);
  await server.errors.matches(/Application failed/);
});

// A router as frameworks have it.

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

// toRequest.

test("toRequest keeps the method", () => {
  for (const method of ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"]) {
    const { method: kept } = toRequest(environWith({ REQUEST_METHOD: method }));
    assert.equal(kept, method);
  }
});

test("toRequest throws a TypeError for a method that Fetch does not allow", () => {
  for (const method of ["TRACE", "CONNECT", "TRACK"]) {
    assert.throws(() => toRequest(environWith({ REQUEST_METHOD: method })), TypeError, method);
  }
});

test("a TRACE request to a mounted handler is answered with 501, and not a crash", async () => {
  await using server = start(fromFetch(() => new Response("never", { headers: PLAIN })));
  assert.equal((await exchange(server, request("/", { method: "TRACE" }))).status, 501);
  assert.equal((await exchange(server, request("/"))).body, "never");
});

const URLS: { name: string; variables: Record<string, string>; url: string }[] = [
  { name: "the root", variables: {}, url: `${ORIGIN}/` },
  { name: "an empty path", variables: { PATH_INFO: "" }, url: `${ORIGIN}/` },
  { name: "a query", variables: { PATH_INFO: "/a", QUERY_STRING: "b=%20?c&d" }, url: `${ORIGIN}/a?b=%20?c&d` },
  { name: "no query", variables: { PATH_INFO: "/a", QUERY_STRING: "" }, url: `${ORIGIN}/a` },
  { name: "a prefix", variables: { SCRIPT_NAME: "/app", PATH_INFO: "/a" }, url: `${ORIGIN}/a` },
  { name: "bytes of UTF-8", variables: { PATH_INFO: "/caf\xc3\xa9" }, url: `${ORIGIN}/caf%C3%A9` },
  { name: "delimiters", variables: { PATH_INFO: "/?#%[]\\ " }, url: `${ORIGIN}/%3F%23%25%5B%5D%5C%20` },
  {
    name: "what may stand in a path",
    variables: { PATH_INFO: "/:@!$&'()*+,;=~-._" },
    url: `${ORIGIN}/:@!$&'()*+,;=~-._`,
  },
  { name: "two slashes", variables: { PATH_INFO: "//other.example/a" }, url: `${ORIGIN}//other.example/a` },
  { name: "https", variables: { "wsgi.url_scheme": "https" }, url: "https://test.example/" },
  { name: "another host", variables: { HTTP_HOST: "other.example:81" }, url: "http://other.example:81/" },
  { name: "an address", variables: { HTTP_HOST: "[::1]:81" }, url: "http://[::1]:81/" },
];

for (const { name, variables, url } of URLS) {
  test(`toRequest makes the URL: ${name}`, () => {
    const { url: made } = toRequest(environWith(variables));
    assert.equal(made, url);
  });
}

test("toRequest goes by the server's own name when there is no Host", () => {
  const environ = environWith({ SERVER_NAME: "server.example", SERVER_PORT: "8000" });
  delete (environ as Partial<Environ>).HTTP_HOST;
  assert.equal(toRequest(environ).url, "http://server.example:8000/");
  assert.equal(toRequest({ ...environ, SERVER_PORT: "80" }).url, "http://server.example/");
});

test("a path of any bytes comes back byte for byte through toRequest and toEnviron", () => {
  const { PATH_INFO } = environOf("/caf%C3%A9%2F%3F%23 x");
  assert.equal(PATH_INFO, "/caf\xc3\xa9/?# x");
  assert.equal(toEnviron(toRequest(environOf("/caf%C3%A9%2F%3F%23 x"))).PATH_INFO, PATH_INFO);
  const everything = `/${Array.from({ length: 256 }, (_, code) => String.fromCharCode(code)).join("")}`;
  assert.equal(toEnviron(toRequest(environWith({ PATH_INFO: everything }))).PATH_INFO, everything);
});

test("toRequest keeps the headers, and no other variables", () => {
  const init = {
    method: "POST",
    body: "1234",
    headers: {
      "Accept": "*/*",
      "Content-Length": "4",
      "Content-Type": "text/x",
      "Cookie": "a=1; b=2",
      "Host": "test.example",
      "X-Two-Words": "caf\xe9",
    },
  };
  const environ = toEnviron(new Request(`${ORIGIN}/`, init), { environ: { "EXAMPLE_SECRET": "secret", HTTPS: "on" } });
  environ.REMOTE_ADDR = "192.0.2.1";
  assert.deepEqual(
    [...toRequest(environ).headers].sort(),
    Object.entries(init.headers).map(([name, value]) => [name.toLowerCase(), value]),
  );
});

test("a Host that no URL can have is the client's fault, whatever serves the request", async () => {
  await using server = start(fromFetch(() => new Response("served", { headers: PLAIN })));
  for (const host of ["h:99999", ":80", "[:::]", "[1.2.3.4]", "256.256.256.256"]) {
    const client = await Client.connect(server);
    await client.send(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
    assert.deepEqual([host, parse(await client.end()).status], [host, 400]);
  }
  assert.equal(server.errors.text, "");
});

test("toRequest gives host and cookie of a request that came over a socket", async () => {
  await using server = start(
    fromFetch(({ headers }) => new Response(`${headers.get("Host")} ${headers.get("Cookie")}`, { headers: PLAIN })),
  );
  const { body } = await exchange(server, request("/", { headers: ["Cookie: a=1", "Cookie: b=2"] }));
  assert.equal(body, "test.example a=1; b=2");
});

test("toRequest reads JSON", async () => {
  assert.deepEqual(await toRequest(environOf("/", { method: "POST", body: '{"a":[1]}' })).json(), { a: [1] });
});

test("toRequest reads a form with a file", async () => {
  const form = new FormData();
  form.append("name", "caf\xe9");
  form.append("file", new File([new Uint8Array([0, 255, 13, 10])], "name.bin", { type: "application/x-bin" }));
  const received = await toRequest(environOf("/", { method: "POST", body: form })).formData();
  assert.equal(received.get("name"), "caf\xe9");
  const file = received.get("file") as File;
  assert.equal(file.name, "name.bin");
  assert.deepEqual(new Uint8Array(await file.arrayBuffer()), new Uint8Array([0, 255, 13, 10]));
});

test("toRequest reads an encoded form that came over a socket", async () => {
  await using server = start(fromFetch(async (request) => {
    const form = await request.formData();
    return Response.json([...form]);
  }));
  const type = "Content-Type: application/x-www-form-urlencoded";
  const sent = request("/", { method: "POST", headers: [type, "Content-Length: 9"], body: "a=1&b=%20" });
  assert.equal((await exchange(server, sent)).body, '[["a","1"],["b"," "]]');
});

test("toRequest gives the body chunk by chunk", async () => {
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const body = new ReadableStream<Uint8Array>({ start: (given) => void (controller = given) });
  const reader = toRequest(environOf("/", streaming(body))).body!.getReader();
  for (const chunk of ["one", "two"]) {
    controller.enqueue(bytes(chunk));
    assert.equal(await readChunk(reader), chunk);
  }
  controller.close();
  assert.equal(await readChunk(reader), undefined);
});

test("toRequest gives what is left of a body that was begun to be read", async () => {
  const environ = environOf("/", { method: "POST", body: "head\nrest" });
  assert.equal(text(await environ["wsgi.input"].readline()), "head\n");
  assert.equal(await toRequest(environ).text(), "rest");
});

test("toRequest reads nothing before it is asked to", async () => {
  const environ = environOf("/", { method: "POST", body: "whole" });
  toRequest(environ);
  assert.equal(text(await environ["wsgi.input"].read()), "whole");
});

test("toRequest gives GET and HEAD no body", () => {
  for (const method of ["GET", "HEAD"]) assert.equal(toRequest(environOf("/", { method })).body, null);
});

test("toRequest reads a wsgi.input that a middleware has put there", async () => {
  const blocks = [bytes("re"), bytes("placed")];
  const environ = environOf("/", { method: "POST", body: "original" });
  environ["wsgi.input"] = {
    read: () => Promise.resolve(blocks.shift() ?? new Uint8Array(0)),
  } as unknown as InputStream;
  assert.equal(await toRequest(environ).text(), "replaced");
});

test("a wsgi.input of a middleware that fails makes the body of the request fail", async () => {
  const environ = environOf("/", { method: "POST" });
  const failure = new Error("This input fails");
  environ["wsgi.input"] = { read: () => Promise.reject(failure) } as unknown as InputStream;
  await assert.rejects(toRequest(environ).text(), failure);
});

test("toRequest makes a header of each HTTP_ variable that is there", () => {
  const environ = environOf("/", { headers: { "X-Removed": "1", "X-Changed": "1" } });
  environ.HTTP_X_ADDED = "2";
  environ.HTTP_X_CHANGED = "2";
  delete environ.HTTP_X_REMOVED;
  const { headers } = toRequest(environ);
  assert.equal(headers.get("X-Added"), "2");
  assert.equal(headers.get("X-Changed"), "2");
  assert.equal(headers.get("X-Removed"), null);
});

test("toRequest has the signal of fetch.context", async () => {
  const leaving = new AbortController();
  const inside = new Event("the application being called");
  const aborted = new Event<boolean>("the signal");
  const handler = toFetch((environ) => {
    const { signal } = toRequest(environ);
    assert.equal(signal, environ["fetch.context"]!.signal);
    assert.equal(signal.aborted, false);
    signal.addEventListener("abort", () => aborted.happen(signal.aborted));
    inside.happen();
    return new Promise(() => {});
  });
  handler(new Request(ORIGIN, { signal: leaving.signal }));
  await inside.wait();
  leaving.abort();
  assert.equal(await aborted.wait(), true);
});

test("toRequest works on an environ without fetch.context", () => {
  const environ = environOf();
  delete environ["fetch.context"];
  const made = toRequest(environ);
  assert.equal(made.signal.aborted, false);
  assert.equal(made.url, `${ORIGIN}/`);
});

test("a mounted handler that does not read its signal prints nothing, and leaves the runtime's alone", async () => {
  const { code, stdout, stderr } = await runProgram(`
    import { fromFetch, serve } from MOD;
    const app = fromFetch(async (request) => {
      const body = await request.text();
      return new Response(request.url.length > 0 && request.headers.has("Host") ? body : "wrong");
    });
    const server = serve(app, { port: 0, onListen() {} });
    const response = await fetch("http://127.0.0.1:" + server.port, { method: "POST", body: "body" });
    console.log(await response.text());
    await server.shutdown();
  `);
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: "body\n", stderr: "" });
});

// runApplication.

test("runApplication gives status and headers exactly as they were given", async () => {
  const headers: HeaderList = [["coNTent-tYPE", "text/plain"], ["X-Twice", "2"], ["x-twice", "1"], ["X-Twice", "2"]];
  const result = await runApplication((_environ, startResponse) => {
    startResponse("299 Very  odd, ind\xe9ed", headers);
    return [];
  }, environOf());
  assert.equal(result.status, "299 Very  odd, ind\xe9ed");
  assert.deepEqual(result.headers, headers);
  assert.equal(result.body.length, 0);
  assert.equal(result.errors, "");
});

test("runApplication keeps the headers as they were when they were given", async () => {
  const { headers } = await runApplication((_environ, startResponse) => {
    const given: HeaderList = [["X-Kept", "yes"]];
    startResponse("200 OK", given);
    given[0]![1] = "no";
    given.push(["X-Late", "yes"]);
    return [];
  }, environOf());
  assert.deepEqual(headers, [["X-Kept", "yes"]]);
});

const BODIES: { name: string; body: () => ResponseBody }[] = [
  { name: "an array", body: () => [bytes("one "), bytes("two")] },
  { name: "a set", body: () => new Set([bytes("one "), bytes(""), bytes("two")]) },
  {
    name: "a generator",
    *body() {
      yield bytes("one ");
      yield bytes("two");
    },
  },
  {
    name: "an async generator",
    async *body() {
      yield await Promise.resolve(bytes("one "));
      yield bytes("two");
    },
  },
  { name: "a ReadableStream", body: () => ReadableStream.from([bytes("one "), bytes("two")]) },
  { name: "Buffers", body: () => [Buffer.from("one "), Buffer.from("two")] },
  {
    name: "one buffer that is used again",
    *body() {
      const buffer = new Uint8Array(4);
      buffer.set(bytes("one "));
      yield buffer;
      buffer.set(bytes("two"));
      yield buffer.subarray(0, 3);
      buffer.fill(0);
    },
  },
];

for (const { name, body } of BODIES) {
  test(`runApplication collects the body: ${name}`, async () => {
    const result = await runApplication((_environ, startResponse) => {
      ok(startResponse);
      return body();
    }, environOf());
    assert.equal(text(result.body), "one two");
  });
}

test("runApplication collects what is written before what is returned", async () => {
  const { body } = await runApplication(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    await write(bytes("one "));
    write(bytes("two "));
    return [bytes("three")];
  }, environOf());
  assert.equal(text(body), "one two three");
});

test("runApplication collects what is written into one buffer that is used again", async () => {
  const { body } = await runApplication(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    const buffer = new Uint8Array(1);
    for (const character of "abc") {
      buffer.set(bytes(character));
      await write(buffer);
    }
    return [];
  }, environOf());
  assert.equal(text(body), "abc");
});

test("runApplication does not take what is written when the body has been returned", async () => {
  await assert.rejects(
    runApplication((_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      return (function* () {
        write(bytes("late"));
        yield bytes("body");
      })();
    }, environOf()),
    /Cannot write/,
  );
});

test("runApplication does not touch a Content-Length that is wrong", async () => {
  for (const length of ["1", "100"]) {
    const { headers, body } = await runApplication((_environ, startResponse) => {
      startResponse("200 OK", [["Content-Length", length]]);
      return [bytes("four")];
    }, environOf());
    assert.deepEqual(headers, [["Content-Length", length]]);
    assert.equal(text(body), "four");
  }
});

test("runApplication gives the body of an answer to HEAD, as the application gave it", async () => {
  const { body } = await runApplication((_environ, startResponse) => {
    ok(startResponse);
    return [bytes("given")];
  }, environOf("/", { method: "HEAD" }));
  assert.equal(text(body), "given");
});

test("runApplication collects what is reported, and reports nothing elsewhere", async () => {
  const elsewhere = new ErrorLog();
  const environ = toEnviron(new Request(ORIGIN), { errors: elsewhere });
  const { errors } = await runApplication((environ, startResponse) => {
    const log = environ["wsgi.errors"];
    log.write("one\n");
    log.writelines(["two\n", "thr"]);
    log.flush();
    ok(startResponse);
    return (function* () {
      log.write("ee\n");
      yield bytes("");
    })();
  }, environ);
  assert.equal(errors, "one\ntwo\nthree\n");
  assert.equal(elsewhere.text, "");
});

test("runApplication gives the application a copy of the environ", async () => {
  const environ = environOf("/path?query", { headers: { "X-Kept": "yes" } });
  const before = { ...environ };
  let received: Environ | undefined;
  await runApplication((inside, startResponse) => {
    received = inside;
    for (const name of Object.keys(inside)) delete inside[name];
    inside["example.new"] = true;
    ok(startResponse);
    return [];
  }, environ);
  assert.notEqual(received, environ);
  assert.deepEqual(Object.keys(environ), Object.keys(before));
  for (const [name, value] of Object.entries(before)) assert.equal(environ[name], value, name);
});

test("runApplication gives the application the environ that it was given", async () => {
  const environ = { ...environOf("/path?query", { method: "POST", body: "body" }), "example.pair": ["kept"] };
  const { body } = await runApplication(async (inside, startResponse) => {
    for (const [name, value] of Object.entries(environ)) {
      if (name !== "wsgi.errors") assert.equal(inside[name], value, name);
    }
    ok(startResponse);
    return [await inside["wsgi.input"].read()];
  }, environ);
  assert.equal(text(body), "body");
});

test("runApplication takes application objects, classes and async functions", async () => {
  class Instances {
    constructor(readonly environ: Environ, readonly startResponse: StartResponse) {}

    *[Symbol.iterator](): Generator<Uint8Array> {
      ok(this.startResponse);
      yield bytes(this.environ.PATH_INFO);
    }
  }
  const object = {
    prefix: "/",
    handle(environ: Environ, startResponse: StartResponse): Uint8Array[] {
      ok(startResponse);
      return [bytes(environ.PATH_INFO.replace(/^\//, this.prefix))];
    },
  };
  const app: Application = async (environ, startResponse) => {
    await Promise.resolve();
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  };
  for (const like of [Instances, object, app]) {
    assert.equal(text((await runApplication(like, environOf("/path"))).body), "/path");
  }
});

const FAILURE = new Error("This application fails");

/** Applications that end in every way, with a body that counts its ends. */
const ENDS: {
  name: string;
  status?: string;
  chunks: (startResponse: StartResponse) => Generator<unknown> | AsyncGenerator<unknown>;
  rejects?: RegExp | Error;
}[] = [
  {
    name: "it ends well",
    *chunks(startResponse) {
      ok(startResponse);
      yield bytes("chunk");
    },
  },
  {
    name: "it yields nothing",
    *chunks(startResponse) {
      yield* [];
      ok(startResponse);
    },
  },
  {
    name: "it fails at once",
    *chunks() {
      yield* [];
      throw FAILURE;
    },
    rejects: FAILURE,
  },
  {
    name: "it fails after a chunk",
    async *chunks(startResponse) {
      ok(startResponse);
      yield await Promise.resolve(bytes("chunk"));
      throw FAILURE;
    },
    rejects: FAILURE,
  },
  {
    name: "it yields text",
    *chunks(startResponse) {
      ok(startResponse);
      yield "text";
    },
    rejects: /"text".*Uint8Array/,
  },
  {
    name: "it yields before startResponse",
    *chunks() {
      yield bytes("chunk");
    },
    rejects: /startResponse was not called/,
  },
  { name: "it never calls startResponse", *chunks() {}, rejects: /startResponse was not called/ },
  {
    name: "it goes on after startResponse has thrown",
    *chunks(startResponse) {
      try {
        startResponse("bad", []);
      } catch {
        yield bytes("chunk");
      }
    },
    rejects: /status "bad"/,
  },
];

for (const { name, chunks, rejects } of ENDS) {
  test(`runApplication closes the body once, and ends its generator: ${name}`, async () => {
    let finished = 0;
    let body: ReturnType<typeof counted> | undefined;
    const run = runApplication((_environ, startResponse) => {
      body = counted(async function* () {
        try {
          yield* chunks(startResponse) as Generator<Uint8Array>;
        } finally {
          finished++;
        }
      }());
      return body;
    }, environOf());
    if (rejects === undefined) await run;
    else if (rejects instanceof Error) assert.equal(await run.catch((error) => error), rejects);
    else await assert.rejects(run, rejects);
    assert.equal(body?.closed, 1);
    assert.equal(finished, 1);
  });
}

test("runApplication rejects with what was thrown, whatever it is", async () => {
  for (const thrown of [new Error("An error"), "text", 0, null, undefined, { status: 404 }]) {
    const apps: Application[] = [
      () => {
        throw thrown;
      },
      () => Promise.reject(thrown),
      function* () {
        yield* [];
        throw thrown;
      },
    ];
    for (const app of apps) {
      const outcome = await runApplication(app, environOf()).then(() => "fulfilled", (error) => ({ error }));
      assert.deepEqual(outcome, { error: thrown });
      assert.equal((outcome as { error: unknown }).error, thrown);
    }
  }
});

test("runApplication rejects when close() fails", async () => {
  const run = runApplication((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([], { close: () => Promise.reject(FAILURE) });
  }, environOf());
  assert.equal(await run.catch((error) => error), FAILURE);
});

test("runApplication waits for close()", async () => {
  let closed = false;
  await runApplication((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([], {
      async close() {
        await new Promise((resolve) => setImmediate(resolve));
        closed = true;
      },
    });
  }, environOf());
  assert.equal(closed, true);
});

test("runApplication closes what cannot be iterated, and rejects", async () => {
  let closed = 0;
  await assert.rejects(
    runApplication((_environ, startResponse) => {
      ok(startResponse);
      return { close: () => void closed++ } as unknown as ResponseBody;
    }, environOf()),
    /iterable/,
  );
  assert.equal(closed, 1);
});

test("runApplication rejects what is no body", async () => {
  for (const body of ["text", bytes("bytes"), undefined, null, 5, {}, new Response()]) {
    const run = runApplication((_environ, startResponse) => {
      ok(startResponse);
      return body as never;
    }, environOf());
    await assert.rejects(run, TypeError, String(body));
  }
});

test("runApplication rejects what is no application", async () => {
  for (const app of ["text", undefined, null, {}, { handle: 5 }]) {
    await assert.rejects(runApplication(app as never, environOf()), TypeError);
  }
});

test("runApplication lets startResponse with an error replace what was started before", async () => {
  const result = await runApplication((_environ, startResponse) => {
    startResponse("200 OK", [["X-Old", "yes"]]);
    startResponse("500 Internal Server Error", [["X-New", "yes"]], FAILURE);
    return [bytes("Sorry")];
  }, environOf());
  assert.equal(result.status, "500 Internal Server Error");
  assert.deepEqual(result.headers, [["X-New", "yes"]]);
});

test("runApplication throws the error given to startResponse back after the first byte", async () => {
  let thrown: unknown;
  const run = runApplication(function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("");
    yield bytes("first");
    try {
      startResponse("500 Internal Server Error", [], FAILURE);
    } catch (error) {
      thrown = error;
      throw error;
    }
  }, environOf());
  assert.equal(await run.catch((error) => error), FAILURE);
  assert.equal(thrown, FAILURE);
});

test("runApplication rejects what is started twice without an error", async () => {
  await assert.rejects(
    runApplication((_environ, startResponse) => {
      ok(startResponse);
      ok(startResponse);
      return [];
    }, environOf()),
    /again/,
  );
});

// toFetch.

test("aborting the request before the first chunk aborts the signal and closes the body, once", async () => {
  const leaving = new AbortController();
  const aborted = new Event("the signal");
  let closed = 0;
  const inside = new Event("the first chunk being asked for");
  const handler = toFetch((environ, startResponse) => {
    environ["fetch.context"]!.signal.addEventListener("abort", () => aborted.happen());
    ok(startResponse);
    return {
      async *[Symbol.asyncIterator]() {
        inside.happen();
        await aborted.wait();
        yield bytes("late");
      },
      close: () => void closed++,
    };
  }, { errors: new ErrorLog() });
  const response = handler(new Request(ORIGIN, { signal: leaving.signal }));
  await inside.wait();
  leaving.abort();
  await aborted.wait();
  assert.equal(closed, 1);
  const { body } = await within(Promise.resolve(response), "an answer for nobody");
  assert.equal(body, null);
  assert.equal(closed, 1);
});

test("aborting the request of an application that yields empty chunks closes the body, once", async () => {
  const leaving = new AbortController();
  const closed = new Event("close()");
  let closes = 0;
  let chunks = 0;
  const handler = toFetch((_environ, startResponse) => {
    ok(startResponse);
    return {
      *[Symbol.iterator]() {
        for (;;) {
          if (++chunks === 3) leaving.abort();
          yield bytes("");
        }
      },
      close() {
        closes++;
        closed.happen();
      },
    };
  }, { errors: new ErrorLog() });
  handler(new Request(ORIGIN, { signal: leaving.signal }));
  await closed.wait();
  assert.equal(closes, 1);
});

test("aborting the request while a chunk is made ends the generator and closes the body, once", async () => {
  for (const when of ["first", "second"]) {
    const leaving = new AbortController();
    const finished = new Event(`the end of a generator that was left in its ${when} chunk`);
    let closes = 0;
    const { ask, errors } = asked((environ, startResponse) => {
      ok(startResponse);
      const { signal } = environ["fetch.context"]!;
      return {
        *[Symbol.iterator]() {
          try {
            if (when === "second") yield bytes("first");
            leaving.abort();
            assert.equal(signal.aborted, true);
            yield bytes("late");
            yield bytes("later");
          } finally {
            finished.happen();
          }
        },
        close: () => void closes++,
      };
    });
    if (when === "first") {
      const response = await within(ask("/", { signal: leaving.signal }), "an answer for nobody");
      await within(response.text().catch(() => {}), "the end of the answer");
    } else {
      const body = (await ask()).body!;
      leaving.signal.addEventListener("abort", () => void reader.cancel());
      const reader = body.getReader();
      await readChunk(reader);
      await within(reader.read().catch(() => {}), "the end of the answer");
    }
    await finished.wait();
    assert.equal(closes, 1);
    assert.equal(errors.text, "");
  }
});

test("cancelling a response twice, or after its end, closes the body once", async () => {
  let closed = 0;
  const { ask, errors } = asked((_environ, startResponse) => {
    ok(startResponse);
    return {
      *[Symbol.iterator]() {
        yield bytes("one");
        yield bytes("two");
      },
      close: () => void closed++,
    };
  });
  const twice = (await ask()).body!;
  await twice.cancel();
  await twice.cancel();
  assert.equal(closed, 1);
  const read = (await ask()).body!.getReader();
  while (await readChunk(read) !== undefined);
  await read.cancel();
  assert.equal(closed, 2);
  assert.equal(errors.text, "");
});

test("leaving a loop over a response ends the generator and closes the body", async () => {
  let finished = 0;
  const body = counted(function* () {
    try {
      for (;;) yield bytes("more");
    } finally {
      finished++;
    }
  }());
  const { ask } = asked((_environ, startResponse) => {
    ok(startResponse);
    return body;
  });
  for await (const _chunk of (await ask()).body!) break;
  assert.equal(finished, 1);
  assert.equal(body.closed, 1);
});

test("two reads at once do not ask for two chunks at once", async () => {
  let inside = 0;
  let most = 0;
  const { ask } = asked(async function* (_environ, startResponse) {
    ok(startResponse);
    for (const chunk of ["one", "two", "three"]) {
      most = Math.max(most, ++inside);
      await new Promise((resolve) => setImmediate(resolve));
      inside--;
      yield bytes(chunk);
    }
  });
  const reader = (await ask()).body!.getReader();
  const chunks = await within(Promise.all([readChunk(reader), readChunk(reader), readChunk(reader)]), "three chunks");
  assert.deepEqual(chunks, ["one", "two", "three"]);
  assert.equal(most, 1);
});

test("a module that exports { fetch: toFetch(app) } is called with one argument or two", async () => {
  const module = {
    fetch: toFetch((environ, startResponse) => {
      ok(startResponse);
      return [bytes(`${environ.REMOTE_ADDR ?? "nobody"} ${environ.REMOTE_PORT ?? "nowhere"}`)];
    }),
  };
  const arguments_: [info: unknown, expected: string][] = [
    [undefined, "nobody nowhere"],
    [null, "nobody nowhere"],
    [{}, "nobody nowhere"],
    [{ SOME_BINDING: "of another runtime" }, "nobody nowhere"],
    [{ remoteAddr: { transport: "tcp", hostname: "192.0.2.1", port: 1234 } }, "192.0.2.1 1234"],
    [{ remoteAddr: { transport: "unix", path: "/run/socket" } }, "nobody nowhere"],
    [{ requestIP: () => ({ address: "2001:db8::1", port: 1234, family: "IPv6" }) }, "2001:db8::1 1234"],
    [{ requestIP: () => null }, "nobody nowhere"],
  ];
  assert.equal(await (await module.fetch(new Request(ORIGIN))).text(), "nobody nowhere");
  for (const [info, expected] of arguments_) {
    assert.equal(await (await module.fetch(new Request(ORIGIN), info)).text(), expected);
  }
});

test("a handler of toFetch works under the runtime's own server", async () => {
  const handler = toFetch(async function* (environ, startResponse) {
    ok(startResponse);
    yield bytes(`${environ.REMOTE_ADDR} ${environ.PATH_INFO} `);
    yield await environ["wsgi.input"].read();
  });
  const { Deno, Bun } = globalThis as unknown as {
    Deno?: { serve(options: object, handler: FetchHandler): { addr: { port: number }; shutdown(): Promise<void> } };
    Bun?: { serve(options: object): { port: number; stop(force: boolean): Promise<void> } };
  };
  const options = { hostname: "127.0.0.1", port: 0 };
  const server = Deno?.serve({ ...options, onListen() {} }, handler) ?? Bun!.serve({ ...options, fetch: handler });
  const port = "addr" in server ? server.addr.port : server.port;
  const response = await fetch(`http://127.0.0.1:${port}/a%20b`, { method: "POST", body: "body" });
  assert.equal(await response.text(), "127.0.0.1 /a b body");
  await ("addr" in server ? server.shutdown() : server.stop(true));
});

test("concurrency bounds how many requests are inside the application, which the others enter in order", async () => {
  const places = Array.from({ length: 6 }, (_, number) => new Event(`leave for ${number}`));
  const entered: string[] = [];
  let inside = 0;
  let most = 0;
  const { ask } = asked(async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    most = Math.max(most, ++inside);
    await places[Number(environ.PATH_INFO.slice(1))]!.wait();
    inside--;
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }, { concurrency: 2 });
  const answers = places.map((_, number) => ask(`/${number}`));
  assert.deepEqual(entered, ["/0", "/1"]);
  for (const place of places) place.happen();
  const bodies = await within(Promise.all(answers.map(async (answer) => await (await answer).text())), "the answers");
  assert.deepEqual(bodies, ["/0", "/1", "/2", "/3", "/4", "/5"]);
  assert.deepEqual(entered, bodies);
  assert.equal(most, 2);
});

test("a place is taken until the body has ended", async () => {
  let calls = 0;
  const { ask } = asked(function* (_environ, startResponse) {
    calls++;
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  }, { concurrency: 1 });
  const first = await ask();
  const second = ask();
  const reader = first.body!.getReader();
  assert.equal(await readChunk(reader), "one");
  assert.equal(calls, 1);
  assert.equal(await readChunk(reader), "two");
  assert.equal(await readChunk(reader), undefined);
  assert.equal(await (await within(second, "the second answer")).text(), "onetwo");
  assert.equal(calls, 2);
});

const LEAVING: {
  name: string;
  app: Application;
  leave?: (response: Response) => Promise<unknown>;
  init?: RequestInit;
}[] = [
  {
    name: "throws",
    app() {
      throw FAILURE;
    },
  },
  { name: "rejects", app: () => Promise.reject(FAILURE) },
  { name: "returns no body", app: () => undefined as never },
  { name: "never calls startResponse", app: () => [] },
  {
    name: "answers HEAD with an endless body",
    *app(_environ, startResponse) {
      ok(startResponse);
      for (;;) yield bytes("endless");
    },
    init: { method: "HEAD" },
  },
  {
    name: "has its response cancelled",
    *app(_environ, startResponse) {
      ok(startResponse);
      for (;;) yield bytes("endless");
    },
    leave: (response) => response.body!.cancel(),
  },
  {
    name: "has its response cancelled while it waits",
    async *app(_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      await new Promise(() => {});
    },
    leave: (response) => response.body!.cancel(),
  },
  {
    name: "fails after the first byte",
    *app(_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      throw FAILURE;
    },
    leave: (response) => response.text().catch(() => {}),
  },
  {
    name: "sends more than it declares",
    *app(_environ, startResponse) {
      ok(startResponse, ["Content-Length", "3"]);
      yield bytes("more");
      yield bytes("more");
    },
    leave: (response) => response.text(),
  },
  {
    name: "has a body whose close() never ends",
    app(_environ, startResponse) {
      ok(startResponse);
      return Object.assign([], { close: () => new Promise<void>(() => {}) });
    },
  },
  {
    name: "has a body whose close() throws",
    app(_environ, startResponse) {
      ok(startResponse);
      return Object.assign([], {
        close() {
          throw FAILURE;
        },
      });
    },
  },
];

for (const { name, app, leave, init = {} } of LEAVING) {
  test(`the next request gets the place of an application that ${name}`, async () => {
    const { ask } = asked((environ, startResponse) => {
      if (environ.PATH_INFO === "/bad") return app(environ, startResponse);
      ok(startResponse);
      return [bytes("good")];
    }, { concurrency: 1 });
    const response = await within(ask("/bad", init), "the first answer");
    await leave?.(response);
    assert.equal(await (await within(ask("/"), "the next answer")).text(), "good");
  });
}

test("thousands of requests wait for one place, and each gets its own answer", async () => {
  let inside = 0;
  let most = 0;
  const { ask } = asked(async (environ, startResponse) => {
    most = Math.max(most, ++inside);
    await Promise.resolve();
    inside--;
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }, { concurrency: 1 });
  const paths = Array.from({ length: 3000 }, (_, number) => `/${number}`);
  const answers = await within(Promise.all(paths.map(async (path) => await (await ask(path)).text())), "the answers");
  assert.deepEqual(answers, paths);
  assert.equal(most, 1);
});

test("the option errors gets what the application writes and what fails", async () => {
  const errors = new ErrorLog();
  let given: unknown;
  const handler = toFetch((environ) => {
    given = environ["wsgi.errors"];
    environ["wsgi.errors"].write("written\n");
    throw FAILURE;
  }, { errors });
  await handler(new Request(`${ORIGIN}/path`));
  assert.equal(given, errors);
  assert.match(errors.text, /^written\n.*GET http:\/\/test\.example\/path: Error: This application fails/);
});

test("an option errors that fails itself does not spoil the answer", async () => {
  const fail = () => {
    throw new Error("The disk is full");
  };
  const handler = toFetch((_environ, startResponse) => {
    ok(startResponse);
    return [bytes("sent")];
  }, { errors: { write: fail, writelines: fail, flush: fail } });
  const { error } = console;
  console.error = () => {};
  try {
    assert.equal(await (await handler(new Request(ORIGIN))).text(), "sent");
  } finally {
    console.error = error;
  }
});

test("the option environ adds to the environ, and replaces nothing of the request", async () => {
  let environ: Environ | undefined;
  const added = { list: [1] };
  const pairs = {
    "example.pair": added,
    REMOTE_USER: "somebody",
    REQUEST_METHOD: "/wrong",
    PATH_INFO: "/wrong",
    QUERY_STRING: "/wrong",
    SCRIPT_NAME: "/wrong",
    SERVER_PROTOCOL: "/wrong",
    HTTP_X_SENT: "/wrong",
    CONTENT_TYPE: "/wrong",
    "wsgi.input": "/wrong",
    "wsgi.version": "/wrong",
    "fetch.context": "/wrong",
  };
  const before = { ...pairs };
  const { ask } = asked((given, startResponse) => {
    environ = given;
    ok(startResponse);
    return [];
  }, { environ: pairs });
  await ask("/path?query", { method: "POST", body: "body", headers: { "X-Sent": "true", "Content-Type": "true" } });
  assert.equal(environ!["example.pair"], added);
  assert.equal(environ!.REMOTE_USER, "somebody");
  for (const [name, value] of Object.entries(environ!)) assert.notEqual(String(value).toLowerCase(), "/wrong", name);
  assert.deepEqual(pairs, before);
});

test("what an application adds to its environ is not there in the next request", async () => {
  const seen: string[] = [];
  const { ask } = asked((environ, startResponse) => {
    seen.push(String(environ["example.mark"]));
    environ["example.mark"] = "mine";
    environ.SCRIPT_NAME = "/mine";
    ok(startResponse);
    return [bytes(environ.SCRIPT_NAME)];
  }, { environ: { "example.mark": "given" } });
  await ask();
  await ask();
  assert.deepEqual(seen, ["given", "given"]);
});

test("the option scriptName moves a prefix from PATH_INFO to SCRIPT_NAME, and nothing else is served", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.SCRIPT_NAME}|${environ.PATH_INFO}|${environ.REQUEST_URI}`)];
  };
  const cases: [scriptName: string, path: string, expected: string | 404][] = [
    ["/app", "/app/item?q", "/app|/item|/app/item?q"],
    ["/app", "/app/", "/app|/|/app/"],
    ["/app", "/app", "/app||/app"],
    ["/app", "/app?q", "/app||/app?q"],
    ["/app", "/%61pp/item", "/app|/item|/%61pp/item"],
    ["/app", "/apple", 404],
    ["/app", "/", 404],
    ["/app", "/other/app", 404],
    ["/a/b", "/a/b/c", "/a/b|/c|/a/b/c"],
    ["/a/b", "/a%2Fb/c", "/a/b|/c|/a%2Fb/c"],
    ["/caf\xe9", "/caf%C3%A9/x", "/caf\xc3\xa9|/x|/caf%C3%A9/x"],
    ["/caf%C3%A9", "/caf%C3%A9/x", "/caf\xc3\xa9|/x|/caf%C3%A9/x"],
    ["", "/app", "|/app|/app"],
  ];
  for (const [scriptName, path, expected] of cases) {
    const response = await asked(app, { scriptName }).ask(path);
    if (expected === 404) assert.equal(response.status, 404, path);
    else assert.equal(await response.text(), expected);
  }
});

const WRONG: [options: Record<string, unknown>, names: RegExp][] = [
  [{ scriptName: "app" }, /scriptName.*"app"/],
  [{ scriptName: "/app/" }, /scriptName.*"\/app\/"/],
  [{ scriptName: "/" }, /scriptName.*"\/"/],
  [{ scriptName: "/a?b" }, /scriptName/],
  [{ scriptName: 5 }, /scriptName.*5/],
  [{ concurrency: 0 }, /concurrency.*0/],
  [{ concurrency: NaN }, /concurrency.*NaN/],
  [{ concurrency: "1" }, /concurrency.*"1"/],
  [{ maxBodySize: -1 }, /maxBodySize.*-1/],
  [{ maxBodySize: "1M" }, /maxBodySize.*"1M"/],
  [{ environ: { "example.absent": undefined } }, /environ.*example\.absent.*undefined/],
];

for (const [options, names] of WRONG) {
  test(`a wrong option is a TypeError that names it: ${names.source}`, () => {
    assert.throws(
      () => toFetch(() => [], options),
      (error: Error) => error instanceof TypeError && names.test(error.message),
    );
    assert.throws(() => serve(() => [], { port: 0, onListen() {}, ...options }), TypeError);
  });
}

test("what is no application is a TypeError that shows it", () => {
  for (const app of [undefined, null, "app", 5, {}, { handle: "no" }, []]) {
    assert.throws(() => toFetch(app as never), TypeError);
    assert.throws(() => serve(app as never, { port: 0, onListen() {} }), TypeError);
  }
  assert.throws(() => toFetch("app" as never), /"app".*handle/);
});

test("options that are undefined are options that are not given", async () => {
  const options = {
    environ: undefined,
    scriptName: undefined,
    errors: undefined,
    maxBodySize: undefined,
    concurrency: undefined,
  };
  const handler = toFetch(echo, options);
  assert.equal((await handler(new Request(ORIGIN))).status, 200);
});

// serve.

const hello: Application = (_environ, startResponse) => {
  ok(startResponse);
  return [bytes("Hello")];
};

async function isRefused(port: number): Promise<boolean> {
  try {
    await fetch(`http://127.0.0.1:${port}/`);
    return false;
  } catch {
    return true;
  }
}

test("serve tells where it listens", async () => {
  await using server = start(hello);
  assert.ok(Number.isInteger(server.port) && server.port > 0);
  assert.equal(server.hostname, "127.0.0.1");
  assert.equal(server.url, `http://localhost:${server.port}/`);
  assert.equal(server.runtime, RUNTIME);
  assert.ok(server.finished instanceof Promise);
  assert.equal((await exchange(server, request("/"))).body, "Hello");
});

test("serve calls onListen once, with the server, before it returns", async () => {
  const received: unknown[] = [];
  let during = "";
  const server = serve(hello, {
    port: 0,
    onListen(given) {
      received.push(given);
      during = given.url;
    },
  });
  assert.equal(received.length, 1);
  assert.equal(received[0], server);
  assert.equal(during, server.url);
  assert.equal((await exchange(server, request("/"))).body, "Hello");
  await server.shutdown();
  assert.equal(received.length, 1);
});

test("serve listens no longer when onListen throws", async () => {
  let port = 0;
  const onListen = (server: Server) => {
    ({ port } = server);
    throw FAILURE;
  };
  assert.throws(() => serve(hello, { port: 0, onListen }), FAILURE);
  assert.ok(port > 0);
  const refused = new Event("the port being free");
  (async () => {
    while (!await isRefused(port)) await new Promise((resolve) => setImmediate(resolve));
    refused.happen();
  })();
  await refused.wait();
});

test("a program says where it serves in one line on standard error, and ends when the server has stopped", async () => {
  const { code, stdout, stderr } = await runProgram(`
    import { serve } from MOD;
    const server = serve((_environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [new TextEncoder().encode("Hello\\n")];
    }, { port: 0 });
    const response = await fetch("http://127.0.0.1:" + server.port + "/");
    console.log(server.url, await response.text());
    await server.shutdown();
  `);
  assert.equal(code, 0);
  assert.match(stderr, /^Serving on http:\/\/localhost:\d+\/[^\n]*\n$/);
  assert.match(stdout, /^http:\/\/localhost:\d+\/ Hello/);
  assert.equal(/http:\S+/.exec(stderr)![0], /http:\S+/.exec(stdout)![0]);
});

test("a server that is used with await using has stopped at the end of its block", async () => {
  let port: number;
  let finished = false;
  {
    await using server = start(hello);
    ({ port } = server);
    server.finished.then(() => finished = true);
    assert.equal((await exchange(server, request("/"))).body, "Hello");
    assert.equal(finished, false);
  }
  assert.equal(finished, true);
  assert.ok(await isRefused(port));
});

test("shutdown gives the same promise again, which is finished", async () => {
  const server = start(hello);
  const first = server.shutdown();
  assert.equal(server.shutdown(), first);
  assert.equal(first, server.finished);
  await within(first, "the end of the server");
  assert.equal(server.shutdown(), first);
});

test("a signal that is aborted later stops the server", async () => {
  const controller = new AbortController();
  const server = start(hello, { signal: controller.signal });
  assert.equal((await exchange(server, request("/"))).body, "Hello");
  controller.abort();
  await within(server.finished, "the end of the server");
  assert.ok(await isRefused(server.port));
});

test("a signal that is aborted already stops the server at once, which has listened", async () => {
  const listened: Server[] = [];
  const server = start(hello, { signal: AbortSignal.abort(), onListen: (server) => void listened.push(server) });
  assert.equal(listened.length, 1);
  await within(server.finished, "the end of the server");
  assert.ok(await isRefused(server.port));
});

test("a server on all interfaces is reached on the loopback address, and calls itself localhost", async () => {
  await using server = start(hello, { hostname: "0.0.0.0" });
  assert.equal(server.hostname, "0.0.0.0");
  assert.equal(server.url, `http://localhost:${server.port}/`);
  assert.equal(await (await fetch(at(server))).text(), "Hello");
});

const HAS_IPV6 = Object.values(networkInterfaces()).flat().some((address) => address?.address === "::1");

test("a server on ::1 is reached there", { skip: !HAS_IPV6 && "this machine has no IPv6" }, async () => {
  await using server = start((environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.SERVER_NAME} ${environ.REMOTE_ADDR}`)];
  }, { hostname: "::1" });
  assert.equal(server.hostname, "::1");
  assert.equal(server.url, `http://localhost:${server.port}/`);
  assert.equal((await exchange(server, request("/"))).body, "[::1] ::1");
});

test("cert and key go together", () => {
  assert.throws(() => serve(hello, { port: 0, cert: "PEM" }), /TypeError.*"cert"/s);
  assert.throws(() => serve(hello, { port: 0, key: "PEM" }), /TypeError.*"key"/s);
});

test("cert and key that are none throw", () => {
  assert.throws(() => serve(hello, { port: 0, onListen() {}, cert: "no certificate", key: "no key" }));
});

test("a port that is taken throws at once, with the code EADDRINUSE", async () => {
  await using server = start(hello);
  assert.throws(() => start(hello, { port: server.port }), { code: "EADDRINUSE" });
  assert.equal((await exchange(server, request("/"))).body, "Hello");
});

test("a port that is none throws at once", () => {
  for (const port of [-1, 65_536, 0.5, NaN, "http"]) {
    assert.throws(() => start(hello, { port: port as number }), `port ${port}`);
  }
});

test("a shutdownTimeout that is none is a TypeError that names it", () => {
  for (const shutdownTimeout of [-1, NaN, "soon"]) {
    assert.throws(() => start(hello, { shutdownTimeout: shutdownTimeout as number }), /TypeError.*shutdownTimeout/s);
  }
});

test("options of the runtime's own reach the runtime, and those of the other do nothing", async () => {
  let listened = 0;
  await using server = start(async (environ, startResponse) => {
    const { length } = await environ["wsgi.input"].read();
    ok(startResponse);
    return [bytes(String(length))];
  }, { deno: { onListen: () => void listened++ }, bun: { maxRequestBodySize: 10 } });
  const { status } = await exchange(
    server,
    request("/", { method: "POST", headers: ["Content-Length: 11"], body: "eleven byte" }),
  );
  assert.equal(listened, RUNTIME === "deno" ? 1 : 0);
  assert.equal(status, RUNTIME === "bun" ? 413 : 200);
});

test("options of the runtime's own do not replace the application", async () => {
  const handler = () => new Response("Not this");
  await using server = start(hello, { deno: { handler }, bun: { fetch: handler } } as ServeOptions);
  assert.equal((await exchange(server, request("/"))).body, "Hello");
});

test("a server on a unix socket is reached there, and again after it was stopped", async () => {
  const folder = await mkdtemp(join(tmpdir(), "wsgi-"));
  const unix = join(folder, "socket");
  try {
    for (let round = 0; round < 2; round++) {
      await using server = start((environ, startResponse) => {
        ok(startResponse);
        const { REMOTE_ADDR = "no address", SERVER_NAME, SERVER_PORT, PATH_INFO } = environ;
        return [bytes([environ["wsgi.url_scheme"], SERVER_NAME, SERVER_PORT, PATH_INFO, REMOTE_ADDR].join(" "))];
      }, { unix });
      assert.equal(server.hostname, unix);
      assert.equal(server.port, 0);
      assert.equal(server.url, `http+unix://${encodeURIComponent(unix)}/`);
      const client = await Client.connect(server, { unix });
      await client.send(request("/path"));
      assert.equal(parse(await client.end()).body, "http localhost 80 /path no address");
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("serve takes the options of toFetch", async () => {
  await using server = start(async (environ, startResponse) => {
    ok(startResponse);
    const { length } = await environ["wsgi.input"].read();
    return [bytes(`${environ.SCRIPT_NAME} ${environ["example.pair"]} ${length}`)];
  }, { environ: { "example.pair": "given" }, scriptName: "/app", maxBodySize: 4, concurrency: 1 });
  const post = (path: string, body: string) =>
    exchange(server, request(path, { method: "POST", headers: [`Content-Length: ${body.length}`], body }));
  assert.equal((await post("/app/", "four")).body, "/app given 4");
  assert.equal((await post("/app/", "fifth")).status, 413);
  assert.equal((await post("/", "four")).status, 404);
});

test("two servers of one application do not know of each other", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.SERVER_PORT} ${environ["fetch.context"]!.draining}`)];
  };
  const first = start(app);
  await using second = start(app);
  assert.equal((await exchange(first, request("/"))).body, `${first.port} false`);
  await first.shutdown();
  assert.equal((await exchange(second, request("/"))).body, `${second.port} false`);
});

const STUCK: { name: string; app: () => ReturnType<Application> }[] = [
  { name: "has not returned", app: () => new Promise(() => {}) },
  {
    name: "has not sent its second chunk",
    async *app() {
      yield bytes("first");
      await new Promise(() => {});
    },
  },
];

for (const { name, app } of STUCK) {
  test(`a server that stops answers what still waits for the place of an application that ${name}`, async () => {
    const inside = new Event("the application being called");
    let calls = 0;
    const server = start((_environ, startResponse) => {
      calls++;
      inside.happen();
      ok(startResponse);
      return app();
    }, { concurrency: 1, shutdownTimeout: 100 });
    const first = await Client.connect(server);
    await first.send(request("/"));
    await inside.wait();
    const second = await Client.connect(server);
    await second.send(request("/"));
    // What another server has answered since then, this one has received.
    await using other = start(hello);
    for (let round = 0; round < 5; round++) await exchange(other, request("/"));
    await within(server.shutdown(), "the end of the server");
    await first.end();
    await second.end();
    assert.equal(calls, 1);
  });
}

// Applications that do what one would not expect.

const ODD_BODIES: { name: string; body: () => unknown; report: RegExp }[] = [
  {
    name: "an iterator that cannot be had",
    body: () => ({
      [Symbol.iterator]() {
        throw FAILURE;
      },
    }),
    report: /This application fails/,
  },
  { name: "an iterator that is no object", body: () => ({ [Symbol.iterator]: () => 5 }), report: /TypeError/ },
  { name: "an iterator without next()", body: () => ({ [Symbol.iterator]: () => ({}) }), report: /TypeError/ },
  {
    name: "next() that gives nothing",
    body: () => ({ [Symbol.iterator]: () => ({ next() {} }) }),
    report: /TypeError/,
  },
  {
    name: "next() that gives a promise of nothing",
    body: () => ({ [Symbol.asyncIterator]: () => ({ next: () => Promise.resolve() }) }),
    report: /TypeError/,
  },
  {
    name: "next() that gives a number",
    body: () => ({ [Symbol.iterator]: () => ({ next: () => 5 }) }),
    report: /TypeError/,
  },
  {
    name: "next() that gives no value",
    body: () => ({ [Symbol.iterator]: () => ({ next: () => ({}) }) }),
    report: /found undefined, expected a Uint8Array/,
  },
  { name: "an array with a hole", body: () => new Array(1), report: /found undefined, expected a Uint8Array/ },
  { name: "an array of text", body: () => ["text"], report: /found "text", expected a Uint8Array/ },
  { name: "an array of arrays", body: () => [[bytes("chunk")]], report: /found an Array, expected a Uint8Array/ },
  {
    name: "a Proxy of a chunk",
    body: () => [new Proxy(bytes("chunk"), {})],
    report: /found (?:a Uint8Array|an object), expected a Uint8Array/,
  },
  {
    name: "an object that inherits from Uint8Array",
    body: () => [Object.create(Uint8Array.prototype, { length: { value: 3 } })],
    report: /found (?:a Uint8Array|an object), expected a Uint8Array/,
  },
  { name: "an ArrayBuffer as a chunk", body: () => [new ArrayBuffer(3)], report: /ArrayBuffer, expected a Uint8Array/ },
  { name: "a DataView as a chunk", body: () => [new DataView(new ArrayBuffer(3))], report: /DataView, expected/ },
  { name: "promises of chunks", body: () => [Promise.resolve(bytes("chunk"))], report: /a Promise, expected/ },
  { name: "a Map", body: () => new Map([["key", bytes("chunk")]]), report: /an Array, expected a Uint8Array/ },
  { name: "a String object", body: () => new String("text"), report: /"t", expected a Uint8Array/ },
  { name: "a Response", body: () => new Response("text"), report: /Response/ },
  {
    name: "a stream that is being read",
    body() {
      const stream = ReadableStream.from([bytes("chunk")]);
      stream.getReader();
      return stream;
    },
    report: /TypeError/,
  },
];

for (const { name, body, report } of ODD_BODIES) {
  test(`a body that is no body is answered with 500, reported and closed once: ${name}`, async () => {
    let closed = 0;
    const { ask, errors } = asked((_environ, startResponse) => {
      ok(startResponse);
      return Object.assign(body() as ResponseBody, { close: () => void closed++ });
    });
    const response = await within(ask(), "the answer");
    assert.equal(response.status, 500);
    assert.equal(await response.text(), "Internal Server Error\n");
    assert.match(errors.text, report);
    assert.equal(errors.text.match(/Application failed/g)?.length, 1);
    assert.equal(closed, 1);
  });
}

const LEGAL_BODIES: { name: string; body: () => ResponseBody }[] = [
  {
    name: "an iterator that has nothing but next()",
    body() {
      const chunks = [bytes("one "), bytes("two")];
      const next = () => ({ done: chunks.length === 0, value: chunks.shift()! });
      return { [Symbol.iterator]: () => ({ next }) } as ResponseBody;
    },
  },
  {
    name: "an iterator whose done is not a boolean",
    body() {
      const chunks = [bytes("one "), bytes("two")];
      let asked = 0;
      const next = () => {
        if (asked++ > 2) throw new Error("It has said that there is nothing left");
        return { done: chunks.length === 0 ? 1 : 0, value: chunks.shift() };
      };
      return { [Symbol.iterator]: () => ({ next }) } as unknown as ResponseBody;
    },
  },
  {
    name: "a synchronous iterator that gives promises of steps",
    body() {
      const chunks = [bytes("one "), bytes("two")];
      const next = () => Promise.resolve({ done: chunks.length === 0, value: chunks.shift() });
      return { [Symbol.iterator]: () => ({ next }) } as unknown as ResponseBody;
    },
  },
  {
    name: "an iterator that gives thenables of steps",
    body() {
      const chunks = [bytes("one "), bytes("two")];
      const next = () => ({
        then(use: (step: unknown) => void) {
          use({ done: chunks.length === 0, value: chunks.shift() });
        },
      });
      return { [Symbol.asyncIterator]: () => ({ next }) } as unknown as ResponseBody;
    },
  },
  {
    name: "both a synchronous and an asynchronous iterator",
    body: () => ({
      *[Symbol.iterator]() {
        yield bytes("not this one");
      },
      async *[Symbol.asyncIterator]() {
        yield await Promise.resolve(bytes("one "));
        yield bytes("two");
      },
    }),
  },
  {
    name: "a generator that returns a value",
    *body() {
      yield bytes("one ");
      yield bytes("two");
      return bytes("not sent");
    },
  },
  { name: "a subclass of Array", body: () => (class extends Array<Uint8Array> {}).of(bytes("one "), bytes("two")) },
  { name: "a frozen array", body: () => Object.freeze([bytes("one "), bytes("two")]) as Uint8Array[] },
  {
    name: "a proxy of an array",
    body: () => new Proxy([bytes("one "), bytes("two")], {}),
  },
  { name: "Buffers", body: () => [Buffer.from("one "), Buffer.from("two")] },
  {
    name: "parts of a larger buffer",
    body() {
      const whole = bytes("...one two...");
      return new Set([whole.subarray(3, 7), whole.subarray(7, 10)]);
    },
  },
  {
    name: "a stream of chunks in memory that is shared",
    *body() {
      const shared = new Uint8Array(new SharedArrayBuffer(7));
      shared.set(bytes("one two"));
      yield shared.subarray(0, 4);
      yield shared.subarray(4);
    },
  },
  {
    name: "a chunk in a buffer that can grow",
    body() {
      const chunk = new Uint8Array(new ArrayBuffer(7, { maxByteLength: 100 }));
      chunk.set(bytes("one two"));
      return [chunk];
    },
  },
  {
    name: "a chunk whose memory has gone elsewhere, which is empty",
    *body() {
      const gone = bytes("gone");
      structuredClone(gone.buffer, { transfer: [gone.buffer] });
      yield gone;
      yield bytes("one ");
      yield gone;
      yield bytes("two");
    },
  },
  {
    name: "one chunk again and again",
    *body() {
      const chunk = bytes("one ");
      yield chunk;
      yield chunk.subarray(0, 0);
      yield bytes("two");
    },
  },
];

for (const { name, body } of LEGAL_BODIES) {
  test(`a body is sent as it is: ${name}`, async () => {
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      return body();
    };
    const { ask, errors } = asked(app);
    const response = await within(ask(), "the answer");
    assert.equal(await within(response.text(), "the body"), "one two");
    assert.equal(errors.text, "");
    await using server = start(app);
    const reply = await exchange(server, request("/"));
    assert.equal(reply.body, "one two");
    assert.equal(reply.complete, true);
  });
}

test("a close that is no function is reported, and the response is complete", async () => {
  const { ask, errors } = asked((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([bytes("sent")], { close: "text" as never });
  });
  assert.equal(await (await ask()).text(), "sent");
  assert.match(errors.text, /TypeError/);
});

test("a return that is no function is reported, and the body is closed", async () => {
  let closed = 0;
  const { ask, errors } = asked((_environ, startResponse) => {
    ok(startResponse);
    return {
      [Symbol.iterator]: () => ({ next: () => ({ done: false as const, value: bytes("more") }), return: 5 as never }),
      close: () => void closed++,
    };
  });
  await (await ask()).body!.cancel();
  assert.equal(closed, 1);
  assert.match(errors.text, /TypeError/);
});

test("an array that is changed by its own close() leaves as it was", async () => {
  const size = 100_000;
  await using server = start((_environ, startResponse) => {
    ok(startResponse);
    const chunk = new Uint8Array(size).fill(0x41);
    return Object.assign([chunk], { close: () => void chunk.fill(0x42) });
  });
  assert.equal((await exchange(server, request("/"))).body, "A".repeat(size));
});

test("startResponse throws when it is called after the response, which stays as it was", async () => {
  let late!: StartResponse;
  const { ask, errors } = asked((_environ, startResponse) => {
    late = startResponse;
    ok(startResponse);
    return [bytes("sent")];
  });
  const response = await ask();
  await new Promise((resolve) => setTimeout(resolve));
  assert.throws(() => late("500 Late", []), /again/);
  assert.throws(() => late("500 Late", [], FAILURE), FAILURE);
  assert.equal(response.status, 200);
  assert.equal(await response.text(), "sent");
  assert.equal(errors.text, "");
});

test("startResponse that is called for the first time after the response changes nothing", async () => {
  let late!: StartResponse;
  let write: Write | undefined;
  const { ask } = asked((_environ, startResponse) => {
    late = startResponse;
    return [];
  });
  const response = await ask();
  assert.equal(response.status, 500);
  try {
    write = late("200 OK", PLAIN);
  } catch {
    // Just as well.
  }
  assert.throws(() => write ? void write(bytes("late")) : late("200 OK", PLAIN));
  assert.equal(await response.text(), "Internal Server Error\n");
});

test("whatever an application does to its environ, the server goes by its own", async () => {
  const app: Application = (environ, startResponse) => {
    const mode = environ.QUERY_STRING;
    if (mode === "delete") { for (const name of Object.keys(environ)) delete environ[name]; }
    else if (mode === "freeze") Object.freeze(environ);
    else if (mode === "prototype") Object.setPrototypeOf(environ, null);
    else for (const name of Object.keys(environ)) environ[name] = undefined;
    ok(startResponse);
    return (function* () {
      yield bytes("sent");
    })();
  };
  await using server = start(app);
  for (const mode of ["delete", "freeze", "prototype", "overwrite"]) {
    const { status, body } = await exchange(server, request(`/?${mode}`));
    assert.deepEqual([mode, status, body], [mode, 200, "sent"]);
    const head = await exchange(server, request(`/?${mode}`, { method: "HEAD" }), { head: true });
    assert.doesNotMatch(head.body, /sent/);
  }
  assert.equal(server.errors.text, "");
});

test("an application that changes the method does not turn a GET into a HEAD", async () => {
  const { ask } = asked((environ, startResponse) => {
    environ.REQUEST_METHOD = "HEAD";
    ok(startResponse);
    return [bytes("sent")];
  });
  assert.equal(await (await ask()).text(), "sent");
});

test("an application can return its input as its body", async () => {
  const inputs: ((environ: Environ) => ResponseBody)[] = [
    (environ) => environ["wsgi.input"],
    (environ) => environ["fetch.context"]!.request.body!,
  ];
  for (const input of inputs) {
    await using server = start((environ, startResponse) => {
      ok(startResponse);
      return input(environ);
    });
    const client = await Client.connect(server);
    await client.send(request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"] }));
    await client.send("4\r\none\n\r\n");
    await client.until(/one/);
    await client.send("3\r\ntwo\r\n0\r\n\r\n");
    assert.equal(parse(await client.end()).body, "one\ntwo");
    assert.equal(server.errors.text, "");
  }
});

test("an application can call itself", async () => {
  const handler = toFetch(async (environ, startResponse) => {
    const depth = Number(environ.PATH_INFO.slice(1));
    ok(startResponse);
    if (depth === 0) return [bytes("bottom")];
    const inner = await handler(new Request(`${ORIGIN}/${depth - 1}`));
    return inner.body!;
  });
  const response = await handler(new Request(`${ORIGIN}/50`));
  assert.equal(await within((async () => await response.text())(), "the body"), "bottom");
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

test("an application that reads the request itself does no harm", async () => {
  await using server = start(async (environ, startResponse) => {
    const body = await environ["fetch.context"]!.request.text();
    ok(startResponse);
    return [bytes(`${body} ${await environ["wsgi.input"].read().then(() => "again", () => "once")}`)];
  });
  const sent = request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" });
  assert.match((await exchange(server, sent)).body, /^body/);
  assert.equal((await exchange(server, request("/"))).status, 200);
});

test("a place is free again when the response was complete before the application returned", async () => {
  const sent = new Event("the response");
  let closed = 0;
  await using server = start(async (environ, startResponse) => {
    const write = startResponse("200 OK", [...PLAIN, ["Content-Length", "4"]]);
    if (environ.REQUEST_METHOD === "GET") return [bytes("next")];
    await write(bytes("sent"));
    await sent.wait();
    return Object.assign([], { close: () => void closed++ });
  }, { concurrency: 1 });
  const unread = request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" });
  assert.equal((await exchange(server, unread)).body, "sent");
  sent.happen();
  assert.equal((await exchange(server, request("/"))).body, "next");
  assert.equal(closed, 1);
  assert.equal(server.errors.text, "");
});

test("a place is free again when the client has left an application before it returned", async () => {
  const inside = new Event("the application being called");
  const left = new Event("the client having left");
  await using server = start(async (environ, startResponse) => {
    if (environ.REQUEST_METHOD === "POST") {
      environ["fetch.context"]!.signal.addEventListener("abort", () => left.happen());
      inside.happen();
      await left.wait();
    }
    ok(startResponse);
    return [bytes("next")];
  }, { concurrency: 1 });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" }));
  await inside.wait();
  client.leave();
  assert.equal((await exchange(server, request("/"))).body, "next");
  assert.equal(server.errors.text, "");
});

// Connections.

interface KeptCase {
  name: string;
  /** Breaks a rule. */
  isBad?: boolean;
  path: string;
  options?: Parameters<typeof request>[1];
  status: number;
  body: string;
}

const KEPT: KeptCase[] = [
  { name: "an array", path: "/array", status: 200, body: "sent" },
  { name: "a stream", path: "/stream", status: 200, body: "onetwo" },
  { name: "a stream with a declared length", path: "/declared", status: 200, body: "onetwo" },
  { name: "an endless stream with a declared length", isBad: true, path: "/endless", status: 200, body: "more" },
  { name: "an empty body", path: "/empty", status: 200, body: "" },
  { name: "204", path: "/204", status: 204, body: "" },
  { name: "304", path: "/304", status: 304, body: "" },
  { name: "HEAD of an array", path: "/array", options: { method: "HEAD" }, status: 200, body: "" },
  { name: "HEAD of an endless stream", path: "/endless", options: { method: "HEAD" }, status: 200, body: "" },
  { name: "a failure", path: "/failure", status: 500, body: "Internal Server Error\n" },
  {
    name: "a body that was read",
    path: "/read",
    options: { method: "POST", headers: ["Content-Length: 4"], body: "body" },
    status: 200,
    body: "body",
  },
  {
    name: "a chunked body that was read",
    path: "/read",
    options: { method: "POST", headers: ["Transfer-Encoding: chunked"], body: "4\r\nbody\r\n0\r\n\r\n" },
    status: 200,
    body: "body",
  },
  {
    name: "a body that was not read",
    path: "/array",
    options: { method: "POST", headers: ["Content-Length: 4"], body: "body" },
    status: 200,
    body: "sent",
  },
  {
    name: "a body that is too large",
    path: "/read",
    options: { method: "POST", headers: ["Content-Length: 2000"], body: "x".repeat(2000) },
    status: 413,
    body: "Content Too Large\n",
  },
  { name: "an upgrade to h2c", path: "/array", options: { headers: ["Upgrade: h2c"] }, status: 200, body: "sent" },
  {
    name: "an upgrade to a WebSocket",
    path: "/array",
    options: {
      headers: ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
    },
    status: 200,
    body: "sent",
  },
];

const various: Application = (environ, startResponse) => {
  const respond = (status: string, headers: HeaderList, body: ResponseBody) => {
    startResponse(status, headers);
    return body;
  };
  switch (environ.PATH_INFO) {
    case "/array":
      return respond("200 OK", PLAIN, [bytes("sent")]);
    case "/stream":
      return respond("200 OK", PLAIN, new Set([bytes("one"), bytes("two")]));
    case "/declared":
      return respond("200 OK", [...PLAIN, ["Content-Length", "6"]], new Set([bytes("one"), bytes("two")]));
    case "/endless":
      return respond(
        "200 OK",
        [...PLAIN, ["Content-Length", "4"]],
        (function* () {
          for (;;) yield bytes("more");
        })(),
      );
    case "/empty":
      return respond("200 OK", PLAIN, []);
    case "/204":
      return respond("204 No Content", [], []);
    case "/304":
      return respond("304 Not Modified", [["ETag", '"1"']], []);
    case "/read":
      return environ["wsgi.input"].read().then((body) => respond("200 OK", PLAIN, [body])) as never;
    default:
      throw FAILURE;
  }
};

/** A request after which the connection stays. */
function keepAlive(...sent: Parameters<typeof request>): string {
  return request(...sent).replace("Connection: close\r\n", "");
}

/** One reply at the front of what was received, and what follows it. */
function split(received: string, options: { head: boolean }): { first: Reply; rest: string } {
  const first = parse(received, options);
  const end = received.indexOf("\r\n\r\n") + 4;
  const values = new Map(first.headers);
  if (options.head || first.status === 204 || first.status === 304) {
    return { first: { ...first, body: "" }, rest: received.slice(end) };
  }
  const isChunked = values.get("transfer-encoding") === "chunked";
  const length = isChunked ? received.indexOf("0\r\n\r\n", end) + 5 - end : Number(values.get("content-length"));
  return { first, rest: received.slice(end + length) };
}

for (const { name, isBad, path, options = {}, status, body } of KEPT) {
  test(`the connection goes on after ${name}`, async () => {
    await using server = start(isBad ? unchecked(various) : various, { maxBodySize: 1000 });
    const client = await Client.connect(server);
    await client.send(keepAlive(path, options));
    await client.until(new RegExp(`\r\n\r\n${body}$|\r\n0\r\n\r\n$`));
    await client.send(request("/array"));
    const { first, rest } = split(await client.end(), { head: options.method === "HEAD" });
    assert.deepEqual([first.status, first.body], [status, body]);
    const second = parse(rest);
    assert.deepEqual([second.status, second.body, second.complete], [200, "sent", true]);
  });
}

test("pipelined requests are answered in order", async () => {
  await using server = start((environ, startResponse) => {
    ok(startResponse);
    return [bytes(`<${environ.PATH_INFO}>`)];
  });
  const client = await Client.connect(server);
  await client.send(keepAlive("/1") + keepAlive("/2") + request("/3"));
  assert.deepEqual((await client.end()).match(/<.*?>/g), ["</1>", "</2>", "</3>"]);
});

test("a request that is pipelined behind a stream is answered after it, or ends the connection on Bun", async () => {
  const closed = new Event("close()");
  await using server = start((environ, startResponse) => {
    ok(startResponse);
    const chunks = function* (): Generator<Uint8Array> {
      yield bytes(`<${environ.PATH_INFO}`);
      yield bytes(">");
    };
    return Object.assign(chunks(), { close: () => closed.happen() });
  });
  const client = await Client.connect(server);
  await client.send(keepAlive("/1") + request("/2"));
  const received = await client.end();
  await closed.wait();
  // Bun takes the next request for a reason to close a connection whose response is not complete.
  if (RUNTIME === "bun") assert.equal(parse(received).complete, false);
  else assert.match(received, /<\/1\r\n1\r\n>[^]*<\/2\r\n1\r\n>/);
});
