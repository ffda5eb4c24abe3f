/**
 * HTTP/2 and HTTP/3. Deno speaks HTTP/2 by itself, Bun when it is told.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { connect as connectHttp2, type IncomingHttpHeaders, type OutgoingHttpHeaders } from "node:http2";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import {
  type Application,
  type ApplicationLike,
  type Environ,
  fromFetch,
  type InputStream,
  limitBody,
  mount,
  type ServeOptions,
  type Server,
} from "../mod.ts";
import {
  askHttp2,
  ASKS,
  assertAbsent,
  bytes,
  countBytes,
  curl,
  Event,
  exchange,
  fetched,
  hello,
  HTTP2,
  KIB,
  makeIdentity,
  native,
  ok,
  recorder,
  request,
  RUNTIME,
  settle,
  start,
  surroundings,
  text,
  untilRefused,
  within,
  workspace,
} from "./support.ts";

const { FOLDER } = workspace();

// Clients that speak it

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);

test("curl is served over HTTP/2 and TLS, by Deno without an option", async () => {
  await using server = start(surroundings, { ...HTTP2, ...IDENTITY });
  const expectedOverTls = `https on 127.0.0.1 localhost:${server.port} 127.0.0.1`;
  assert.equal(await fetched("--http2", "--cacert", CERT_FILE, server.url), `${expectedOverTls} 2 200`);
  await using plain = start(hello, IDENTITY);
  const expected = RUNTIME === "deno" ? "Hello 2 200" : "Hello 1.1 200";
  assert.equal(await fetched("--http2", "--cacert", CERT_FILE, plain.url), expected);
});

test("curl is served over HTTP/2 without TLS when it uses prior knowledge", async () => {
  await using server = start(countBytes, HTTP2);
  assert.equal(await fetched("--http2-prior-knowledge", server.url), "0 2 200");
  assert.equal(await fetched("--http2-prior-knowledge", "-d", "a=1", server.url), "3 2 200");
});

const NO_HTTP3 = { skip: RUNTIME === "deno" && "Deno has no HTTP/3" };

test("HTTP/3 is announced on Bun when the option says so", NO_HTTP3, async () => {
  await using server = start(hello, { ...IDENTITY, bun: { http3: true } });
  const output = await fetched("-D", "-", "--cacert", CERT_FILE, server.url);
  assert.match(output, new RegExp(`^alt-svc: h3=":${server.port}"`, "im"));
});

// The curl of most machines does not speak it, Bun's own client does. Nothing else is spoken here.
test("a client is served over HTTP/3 on Bun, both ways", NO_HTTP3, async () => {
  const app: Application = (environ, startResponse) => {
    return (environ.REQUEST_METHOD === "POST" ? countBytes : surroundings)(environ, startResponse);
  };
  await using server = start(app, { ...IDENTITY, bun: { http3: true, http1: false } });
  const textOf = async (init: RequestInit) => {
    const overHttp3 = { ...init, protocol: "http3", tls: { rejectUnauthorized: false } }; // it takes no `ca` with HTTP/3
    const response = await within(fetch(`https://127.0.0.1:${server.port}/`, overHttp3), "a response over HTTP/3");
    return await response.text();
  };
  assert.equal(await textOf({}), `https on 127.0.0.1 127.0.0.1:${server.port} 127.0.0.1`);
  assert.equal(await textOf({ method: "POST", body: new Uint8Array(1_000_000) }), "1000000");
});

const LIMIT = 1000;

// Where the server need not read to the end, curl 7 takes the end of the stream for a failure, whatever the server is.
test("curl reads the 413 over HTTP/2", async () => {
  await using server = start(countBytes, { ...HTTP2, maxBodySize: LIMIT });
  assert.equal(
    await fetched("--http2-prior-knowledge", "-H", "Content-Length:", "-d", "x".repeat(LIMIT + 1), server.url),
    "Content Too Large\n 2 413",
  );
});

for (const args of [["--http2-prior-knowledge"], ["--http2", "--cacert", CERT_FILE]]) {
  test(`a stream over HTTP/2 (${args[0]}) is finished by a server that stops`, async () => {
    const go = new Event("permission to go on");
    const begun = new Event("a stream");
    const server = start(async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      begun.happen();
      await go.wait();
      yield bytes("two");
    }, { ...HTTP2, ...(args.length > 1 ? IDENTITY : {}), shutdownTimeout: 60_000 });
    await using client = curl(...ASKS, "-N", ...args, server.url);
    await begun.wait();
    const stopped = server.shutdown();
    await untilRefused(server);
    go.happen();
    const { code, output } = await client.ended();
    assert.equal(output, "onetwo 2 200");
    // Now and then Bun resets the connection behind the last byte, which is status 56.
    assert.ok(code === 0 || RUNTIME === "bun" && code === 56, `curl ended with ${code}`);
    await within(stopped, "the end of the server");
  });
}

// :authority, path and headers

/** The environ of a request over HTTP/2, whose `:authority` may depend on the server. */
async function environOverHttp2(headers: (server: Server) => OutgoingHttpHeaders): Promise<Environ> {
  const { app, environs } = recorder();
  await using server = start(app, HTTP2);
  assert.equal(await askHttp2(`http://127.0.0.1:${server.port}`, { ":path": "/", ...headers(server) }), 200);
  return environs[0]!;
}

for (const authority of ["example.org", "Example.ORG:99", "localhost", "localhost:1", "[::1]:8000", "192.0.2.1"]) {
  test(`over HTTP/2 the :authority ${authority} is HTTP_HOST`, async () => {
    const environ = await environOverHttp2(() => ({ ":authority": authority }));
    assert.equal(environ.HTTP_HOST, authority);
    assert.equal(environ.SERVER_NAME, "127.0.0.1");
  });
}

test("over HTTP/2 the :authority that a client makes of the server's address is HTTP_HOST", async () => {
  let address = "";
  const environ = await environOverHttp2(({ hostname, port }) => {
    address = `${hostname}:${port}`;
    return {};
  });
  assert.equal(environ.HTTP_HOST, address);
});

test("over HTTP/2 an :authority of localhost and the server's port is HTTP_HOST on Bun, and lost on Deno", async () => {
  let authority = "";
  const environ = await environOverHttp2(({ port }) => ({ ":authority": authority = `localhost:${port}` }));
  // Deno makes up the very same for a request of HTTP/1.0 that has no Host.
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? undefined : authority);
});

test("over HTTP/2 the :authority is HTTP_HOST on Deno beside another Host, which Bun refuses", async () => {
  const { app, environs } = recorder();
  await using server = start(app, HTTP2);
  const headers = { ":path": "/", ":authority": "authority.example", host: "host.example" };
  const status = await askHttp2(`http://127.0.0.1:${server.port}`, headers);
  // RFC 9113, section 8.3.1, allows both.
  assert.equal(status, RUNTIME === "deno" ? 200 : 0);
  assert.equal(environs[0]?.HTTP_HOST, RUNTIME === "deno" ? "authority.example" : undefined);
});

test("over HTTP/2 a hostile :authority does not reach the application", async () => {
  const { app, environs } = recorder();
  await using server = start(app, HTTP2);
  for (const authority of ["a/b", "a?b", "a#b", "u:p@h", "u@h", "h\\x", "a,b", "[::1", "h:port", "a%2Fb"]) {
    const headers = { ":path": "/", ":authority": authority };
    const status = await askHttp2(`http://127.0.0.1:${server.port}`, headers);
    assert.ok(status === 0 || status === 400, `${authority}: ${status}`);
  }
  assert.equal(environs.length, 0);
});

test("over HTTP/2 path, query and headers are those of HTTP/1.1", async () => {
  const environ = await environOverHttp2(() => ({
    ":method": "POST",
    ":path": "/caf%C3%A9/%2F%zz?a=%20?b",
    "x-test": ["1", "2"],
    "x-bytes": "\xe9",
    "x_test": "3",
    "proxy": "4",
    "cookie": ["a=1", "b=2"],
    "content-type": "text/plain",
    "content-length": "0",
  }));
  assert.equal(environ.REQUEST_METHOD, "POST");
  assert.equal(environ.PATH_INFO, native("/café//%zz"));
  assert.equal(environ.QUERY_STRING, "a=%20?b");
  assert.equal(environ.HTTP_X_TEST, "1, 2");
  assert.equal(environ.HTTP_X_BYTES, "\xe9");
  assert.equal(environ.HTTP_COOKIE, "a=1; b=2");
  assert.equal(environ.CONTENT_TYPE, "text/plain");
  assert.equal(environ.CONTENT_LENGTH, "0");
  assert.equal(environ.REMOTE_ADDR, "127.0.0.1");
  assert.equal(environ.SERVER_PROTOCOL, "HTTP/1.1");
  assertAbsent(environ, "HTTP_PROXY", "HTTP_:AUTHORITY", "HTTP_:PATH");
});

// Uploads that the client cancels

/** Starts a server that speaks HTTP/2: Deno's does by itself. */
function startHttp2(app: ApplicationLike, options: ServeOptions = {}): ReturnType<typeof start> {
  return start(app, { bun: { http2: true }, ...options });
}

const [NO_ERROR, PROTOCOL_ERROR, CANCEL] = [0, 1, 8];

// Types, flags and codes of RFC 9113, sections 6 and 7.
const FRAME = { DATA: 0, HEADERS: 1, RST_STREAM: 3, SETTINGS: 4, GOAWAY: 7, CONTINUATION: 9 };

const [END_STREAM, ACK, END_HEADERS] = [1, 1, 4];
const FRAME_SIZE = 16_384;

type Fields = [name: string, value: string][];

/** What came back on a stream. */
class StreamReply {
  status = 0;
  body = "";
  /** The code with which the stream was reset, or the connection given up. */
  code: number | undefined;
  hasEnded = false;
}

/** A string literal (RFC 7541, section 5.2). */
function literal(value: string): Buffer {
  const size: number[] = [Math.min(value.length, 127)];
  for (let rest = value.length - 127; rest >= 0; rest = rest < 128 ? -1 : rest >> 7) {
    size.push(rest < 128 ? rest : rest % 128 + 128);
  }
  return Buffer.concat([Buffer.from(size), Buffer.from(value, "latin1")]);
}

/** The status of a response, which is the first field of its block: in the static table, or a literal of three digits. */
function statusOf(block: Uint8Array): number {
  const [first, size = 0, ...rest] = block.subarray(block.findIndex((byte) => byte >> 5 !== 1));
  if (first! >= 0x88) return [200, 204, 206, 304, 400, 404, 500][first! - 0x88]!;
  if (size < 0x80) return Number(Buffer.from(rest.slice(0, 3)).toString());
  // Huffman codes of digits have five bits up to "2", six from "3" on (RFC 7541, appendix B).
  const bits = rest.slice(0, 3).map((byte) => byte.toString(2).padStart(8, "0")).join("");
  const digits = bits.match(/000(?:00|01|10)|0(?:11...)/g)!;
  return Number(digits.slice(0, 3).map((code) => parseInt(code, 2) - (code.length === 5 ? 0 : 22)).join(""));
}

/** A client that sends frames as they are, malformed ones, too, which `node:http2` would not. */
class Http2Client {
  /** How the server has taken leave of the connection, if it has. */
  readonly goaway = new StreamReply();
  readonly #socket: Socket;
  readonly #replies = new Map<number, StreamReply>();
  #received = Buffer.alloc(0);
  #onChange = () => {};

  constructor(server: Pick<Server, "hostname" | "port">) {
    this.#socket = connect(server.port, server.hostname);
    this.#socket.on("error", () => {});
    this.#socket.on("data", (data: Uint8Array) => this.#take(data));
    this.#socket.on("close", () => {
      for (const reply of [this.goaway, ...this.#replies.values()]) reply.hasEnded = true;
      this.#onChange();
    });
    this.#socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    this.#send(FRAME.SETTINGS, 0, 0, Buffer.from([0, 1, 0, 0, 0, 0])); // no dynamic table: each status stands by itself
  }

  #take(data: Uint8Array): void {
    this.#received = Buffer.concat([this.#received, data]);
    while (this.#received.length >= 9) {
      const size = 9 + this.#received.readUIntBE(0, 3);
      if (this.#received.length < size) break;
      const [type, flags, stream] = [this.#received[3]!, this.#received[4]!, this.#received.readUInt32BE(5)];
      const payload = this.#received.subarray(9, size);
      this.#received = this.#received.subarray(size);
      const reply = this.#replies.get(stream) ?? this.goaway;
      if (type === FRAME.SETTINGS && flags !== ACK) this.#send(FRAME.SETTINGS, ACK, 0);
      if (type === FRAME.HEADERS) reply.status ||= statusOf(payload);
      if (type === FRAME.DATA) reply.body += text(payload);
      if (type === FRAME.DATA || type === FRAME.HEADERS) reply.hasEnded = (flags & END_STREAM) !== 0;
      if (type === FRAME.RST_STREAM || type === FRAME.GOAWAY) {
        reply.code = payload.readUInt32BE(type === FRAME.GOAWAY ? 4 : 0);
        reply.hasEnded = true;
      }
    }
    this.#onChange();
  }

  #send(type: number, flags: number, stream: number, payload: Uint8Array = Buffer.alloc(0)): void {
    const head = Buffer.alloc(9);
    head.writeUIntBE(payload.length, 0, 3);
    head.writeUInt16BE(type * 256 + flags, 3);
    head.writeUInt32BE(stream, 5);
    this.#socket.write(Buffer.concat([head, payload]));
  }

  /** Begins a stream, and ends it unless there is a body. */
  headers(stream: number, fields: Fields, options: { end?: boolean } = {}): void {
    this.#replies.set(stream, new StreamReply());
    // Literal fields without indexing and without Huffman codes (RFC 7541, section 6.2.2).
    const block = Buffer.concat(fields.flatMap(([name, value]) => [Buffer.of(0), literal(name), literal(value)]));
    for (let at = 0; at < block.length; at += FRAME_SIZE) {
      const type = at === 0 ? FRAME.HEADERS : FRAME.CONTINUATION;
      const end = at === 0 && options.end !== false ? END_STREAM : 0;
      const last = at + FRAME_SIZE >= block.length ? END_HEADERS : 0;
      this.#send(type, end | last, stream, block.subarray(at, at + FRAME_SIZE));
    }
  }

  data(stream: number, data: string, options: { end?: boolean } = {}): void {
    this.#send(FRAME.DATA, options.end ? END_STREAM : 0, stream, bytes(data));
  }

  reset(stream: number, code: number): void {
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(code);
    this.#send(FRAME.RST_STREAM, 0, stream, payload);
  }

  /** Waits until a stream has what is wanted, or the connection is given up. */
  async until(stream: number, isEnough: (reply: StreamReply) => boolean): Promise<StreamReply> {
    const came = new Event(`stream ${stream}`);
    const reply = this.#replies.get(stream)!;
    this.#onChange = () => {
      if (isEnough(reply) || this.goaway.hasEnded) came.happen();
    };
    this.#onChange();
    await came.wait();
    return reply;
  }

  /** Waits for the whole reply, or for what has ended it otherwise. */
  reply(stream: number): Promise<StreamReply> {
    return this.until(stream, ({ hasEnded }) => hasEnded);
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}

const AUTHORITY: Fields = [[":authority", "test.example"]];

/** The fields of a request, the authority first. */
function fields(target: string, options: { method?: string; more?: Fields; authority?: Fields } = {}): Fields {
  const { method = "GET", more = [], authority = AUTHORITY } = options;
  return [[":method", method], [":scheme", "http"], [":path", target], ...authority, ...more];
}

/** An application that reads with a method, and says what has come of it. */
function reading(
  read: (input: InputStream) => Promise<unknown>,
): { app: Application; began: Event; ended: Event<string> } {
  const began = new Event("the first bytes of an upload");
  const ended = new Event<string>("the end of an upload");
  const app: Application = async (environ, startResponse) => {
    const input = environ["wsgi.input"];
    try {
      await input.read(1);
      began.happen();
      await read(input);
      ended.happen("whole");
    } catch (error) {
      ended.happen((error as Error).name);
    }
    ok(startResponse);
    return [];
  };
  return { app, began, ended };
}

const READS: Record<string, (input: InputStream) => Promise<unknown>> = {
  "read()": (input) => input.read(),
  "read(100)": (input) => input.read(100),
  "read1(), again and again": async (input) => {
    while ((await input.read1()).length > 0);
  },
  "readline()": (input) => input.readline(),
  "readlines()": (input) => input.readlines(),
  "async iteration": async (input) => {
    for await (const _line of input);
  },
};

const LENGTHS: Record<string, Fields> = { "with a length": [["content-length", "100"]], "without a length": [] };

for (const [what, length] of Object.entries(LENGTHS)) {
  for (
    const [code, name] of [[CANCEL, "CANCEL"], [NO_ERROR, "NO_ERROR"], [PROTOCOL_ERROR, "PROTOCOL_ERROR"]] as const
  ) {
    for (const [method, read] of Object.entries(READS)) {
      test(`an upload ${what} that is cancelled with ${name} makes ${method} reject`, async () => {
        const { app, began, ended } = reading(read);
        await using server = startHttp2(app);
        using client = new Http2Client(server);
        client.headers(1, fields("/", { method: "POST", more: length }), { end: false });
        client.data(1, "abc");
        await began.wait();
        client.reset(1, code);
        assert.equal(await ended.wait(), "AbortError");
        assert.equal(server.errors.text, "");
      });
    }
  }

  test(`an upload ${what} over HTTP/2 is read to its end`, async () => {
    const { app, began, ended } = reading((input) => input.read());
    await using server = startHttp2(app);
    using client = new Http2Client(server);
    client.headers(1, fields("/", { method: "POST", more: length }), { end: false });
    client.data(1, "a".repeat(60));
    await began.wait();
    client.data(1, "b".repeat(40), { end: true });
    assert.equal(await ended.wait(), "whole");
    assert.equal((await client.reply(1)).status, 200);
  });

  test(`an upload ${what} that is cancelled is no whole body of limitBody, nor of the request of a handler`, async () => {
    for (const wrap of [(app: Application) => limitBody(app), (app: Application) => app]) {
      const began = new Event("the first bytes of an upload");
      const ended = new Event<string>("the end of an upload");
      const handler = fromFetch(async ({ body }) => {
        const reader = body!.getReader();
        try {
          for (let step = await reader.read(); !step.done; step = await reader.read()) began.happen();
          ended.happen("whole");
        } catch (error) {
          ended.happen((error as Error).name);
        }
        return new Response("");
      });
      await using server = startHttp2(wrap(handler));
      using client = new Http2Client(server);
      client.headers(1, fields("/", { method: "POST", more: length }), { end: false });
      client.data(1, "abc");
      await began.wait();
      client.reset(1, CANCEL);
      assert.equal(await ended.wait(), "AbortError");
    }
  });

  test(`an upload ${what} that is cancelled while it is echoed ends the response`, async () => {
    const ended = new Event<string>("the end of an upload");
    await using server = startHttp2(async function* (environ, startResponse) {
      ok(startResponse);
      try {
        for (;;) {
          const line = await environ["wsgi.input"].readline();
          if (line.length === 0) break;
          yield line;
        }
        ended.happen("whole");
      } catch (error) {
        ended.happen((error as Error).name);
        throw error;
      } finally {
        ended.happen("returned");
      }
    });
    using client = new Http2Client(server);
    client.headers(1, fields("/", { method: "POST", more: length }), { end: false });
    client.data(1, "abc\nd");
    await client.until(1, ({ body }) => body === "abc\n");
    client.reset(1, CANCEL);
    assert.match(await ended.wait(), /^(?:AbortError|returned)$/);
  });
}

test("an upload that is cancelled without a length, but with a Host, looks whole on Deno alone", async () => {
  const { app, began, ended } = reading((input) => input.read());
  await using server = startHttp2(app);
  using client = new Http2Client(server);
  client.headers(1, fields("/", { method: "POST", more: [["host", "test.example"]] }), { end: false });
  client.data(1, "abc");
  await began.wait();
  client.reset(1, CANCEL);
  // Nothing tells it from a request of HTTP/1.1, whose signal is left alone.
  assert.equal(await ended.wait(), RUNTIME === "deno" ? "whole" : "AbortError");
});

const UPLOADS: Record<string, { headers: string[]; body?: string }> = {
  "with a length": { headers: ["Content-Length: 3"], body: "abc" },
  "in chunks": { headers: ["Transfer-Encoding: chunked"], body: "3\r\nabc\r\n0\r\n\r\n" },
  "of nothing": { headers: [] },
};

for (const [what, options] of Object.entries(UPLOADS)) {
  test(`an upload ${what} over HTTP/1.1 leaves the request's signal alone on Deno, which would print a warning`, async () => {
    let touched = 0;
    const { get } = Object.getOwnPropertyDescriptor(Request.prototype, "signal")!;
    await using server = startHttp2(async (environ, startResponse) => {
      const { request } = environ["fetch.context"]!;
      Object.defineProperty(request, "signal", { get: () => (touched++, get!.call(request)) });
      ok(startResponse);
      return [await environ["wsgi.input"].read()];
    });
    assert.equal(
      (await exchange(server, request("/", { method: "POST", ...options }))).body,
      options.body ? "abc" : "",
    );
    assert.equal(touched > 0, RUNTIME === "bun");
  });
}

// What a client must not send, and what it may

/** An application that remembers what it was called with, and reads the body. */
function bodyRecorder(): { app: Application; environs: Environ[]; bodies: string[] } {
  const environs: Environ[] = [];
  const bodies: string[] = [];
  const app: Application = async (environ, startResponse) => {
    environs.push(environ);
    bodies.push(text(await environ["wsgi.input"].read()));
    ok(startResponse);
    return [];
  };
  return { app, environs, bodies };
}

const AUTHORITIES: { sent: Fields; host: string | undefined }[] = [
  { sent: [[":authority", "public.example"], ["host", "public.example"]], host: "public.example" },
  { sent: [["host", "admin.example"]], host: "admin.example" },
  { sent: [[":authority", "public.example"], ["host", ""]], host: "public.example" },
];

for (const { sent, host } of AUTHORITIES) {
  test(`over HTTP/2 ${JSON.stringify(Object.fromEntries(sent))} makes HTTP_HOST ${host}`, async () => {
    const { app, environs } = bodyRecorder();
    await using server = startHttp2(app);
    using client = new Http2Client(server);
    client.headers(1, fields("/", { authority: sent }));
    assert.equal((await client.reply(1)).status, 200);
    assert.equal(environs[0]!.HTTP_HOST, host);
  });
}

for (const scheme of ["http", "https", "http+unix"]) {
  test(`over HTTP/2 and ${scheme} a Host beside another :authority does not reach what is mounted for it`, async () => {
    const [admin, open] = [bodyRecorder(), bodyRecorder()];
    await using server = startHttp2(mount({ "admin.example/": admin.app, "/": open.app }));
    using client = new Http2Client(server);
    client.headers(1, [
      [":method", "GET"],
      [":scheme", scheme],
      [":path", "/"],
      [":authority", "public.example"],
      ["host", "admin.example"],
    ]);
    await client.reply(1);
    assert.equal(admin.environs.length, 0);
    const isServed = RUNTIME === "deno" && scheme !== "http+unix"; // Bun refuses the Host, Deno the scheme
    assert.deepEqual(open.environs.map(({ HTTP_HOST }) => HTTP_HOST), isServed ? ["public.example"] : []);
  });
}

test("over HTTP/2 the scheme ftp is answered with 400 by Deno, and served by Bun, which does not tell it", async () => {
  const { app, environs } = bodyRecorder();
  await using server = startHttp2(app);
  using client = new Http2Client(server);
  client.headers(1, [[":method", "GET"], [":scheme", "ftp"], [":path", "/"], [":authority", "test.example"]]);
  assert.equal((await client.reply(1)).status, RUNTIME === "deno" ? 400 : 200);
  assert.deepEqual(environs.map((environ) => environ["wsgi.url_scheme"]), RUNTIME === "deno" ? [] : ["http"]);
});

const NO_AUTHORITIES: Fields[] = [
  [[":authority", "user:password@test.example"]],
  [[":authority", "user:password@test.example"], ["host", "test.example"]],
  [[":authority", ""]],
  [[":authority", ""], ["host", "test.example"]],
  [[":authority", "a.example"], [":authority", "b.example"]],
  [[":authority", "a.example"], ["host", "b.example/c"]],
  [["host", "a.example"], ["host", "b.example"]],
  [[":authority", "a.example"], ["host", "a.example"], ["host", "a.example"]],
];

for (const sent of NO_AUTHORITIES) {
  test(`over HTTP/2 ${JSON.stringify(sent)} is refused`, async () => {
    const { app, environs } = bodyRecorder();
    await using server = startHttp2(app);
    using client = new Http2Client(server);
    client.headers(1, fields("/", { authority: sent }));
    const { status, code } = await client.reply(1);
    assert.ok(status === 400 || code === PROTOCOL_ERROR, `${status} ${code}`);
    assert.equal(environs.length, 0);
  });
}

const LENGTH_FIELDS: { sent: string[]; isRead?: boolean }[] = [
  { sent: ["3"], isRead: true },
  { sent: ["003"], isRead: true },
  { sent: ["3", "3"], isRead: RUNTIME === "deno" },
  { sent: ["3", "5"] },
  { sent: ["5", "3"] },
  { sent: ["3", "003"] },
  { sent: ["3, 3"] },
  { sent: ["3, 5"] },
  { sent: ["+3"] },
  { sent: ["-3"] },
  { sent: ["0x3"] },
  { sent: [""] },
  { sent: ["9".repeat(30)] },
  { sent: ["9".repeat(16)] },
  { sent: ["2"] },
  { sent: ["5"] },
];

for (const { sent, isRead = false } of LENGTH_FIELDS) {
  test(`over HTTP/2 three bytes with Content-Length ${JSON.stringify(sent)} are ${isRead ? "read" : "refused"}`, async () => {
    const { app, environs, bodies } = bodyRecorder();
    await using server = startHttp2(app);
    using client = new Http2Client(server);
    const more = sent.map((value): [string, string] => ["content-length", value]);
    client.headers(1, fields("/", { method: "POST", more }), { end: false });
    client.data(1, "abc", { end: true });
    const { status } = await client.reply(1);
    assert.deepEqual(bodies, isRead ? ["abc"] : []);
    if (!isRead) assert.ok([0, 400, 413].includes(status), String(status));
    else assert.equal(environs[0]!.CONTENT_LENGTH, sent[0]);
  });
}

test("over HTTP/2 OPTIONS * has the path /*", async () => {
  const { app, environs } = bodyRecorder();
  await using server = startHttp2(app);
  using client = new Http2Client(server);
  client.headers(1, fields("*", { method: "OPTIONS" }));
  assert.equal((await client.reply(1)).status, 200);
  assert.equal(environs[0]!.PATH_INFO, "/*");
  assert.equal(environs[0]!.REQUEST_URI, "/*");
});

test("over HTTP/2 a refused CONNECT ends its stream alone", async () => {
  const { app, environs } = bodyRecorder();
  await using server = startHttp2(app);
  using client = new Http2Client(server);
  client.headers(1, [[":method", "CONNECT"], [":authority", "other.example:80"]], { end: false });
  client.data(1, "GET /hidden HTTP/1.1\r\nHost: test.example\r\n\r\n");
  // Bun answers it by itself.
  assert.equal((await client.reply(1)).status, RUNTIME === "deno" ? 501 : 404);
  client.headers(3, fields("/after"));
  assert.equal((await client.reply(3)).status, 200);
  assert.deepEqual(environs.map(({ PATH_INFO }) => PATH_INFO), ["/after"]);
  assert.equal(server.errors.text, "");
});

// What the runtimes do otherwise than over HTTP/1.1

for (const [size, status] of [[15_000, 200], [17_000, 431]] as const) {
  test(`over HTTP/2 a head of ${size} bytes is answered with ${status}`, async () => {
    const { app, environs } = bodyRecorder();
    await using server = startHttp2(app);
    using client = new Http2Client(server);
    client.headers(1, fields("/", { more: [["x-long", "a".repeat(size)]] }));
    assert.equal((await client.reply(1)).status, status);
    assert.equal(environs.length, status === 200 ? 1 : 0);
  });
}

for (const method of ["get", "FOO"]) {
  test(`over HTTP/2 the method ${method} is passed on by Deno, and answered with 501 by Bun`, async () => {
    const { app, environs } = bodyRecorder();
    await using server = startHttp2(app);
    using client = new Http2Client(server);
    client.headers(1, fields("/", { method }));
    assert.equal((await client.reply(1)).status, RUNTIME === "deno" ? 200 : 501);
    assert.deepEqual(environs.map(({ REQUEST_METHOD }) => REQUEST_METHOD), RUNTIME === "deno" ? [method] : []);
  });
}

test("over HTTP/2 a 204 has a Content-Length on Bun, and no Content-Length on Deno", async () => {
  await using server = startHttp2((_environ, startResponse) => (startResponse("204 No Content", []), []));
  const session = connectHttp2(`http://127.0.0.1:${server.port}`);
  const answered = new Event<IncomingHttpHeaders>("an answer over HTTP/2");
  session.request({ ":path": "/" }).on("response", (headers) => answered.happen(headers)).end();
  const headers = await answered.wait();
  session.destroy();
  assert.equal(headers["content-length"], RUNTIME === "deno" ? undefined : "0");
});

test("over HTTP/2 a client is not told that the server stops before shutdownDelay is over", async () => {
  const { app, environs } = bodyRecorder();
  await using server = startHttp2(app, { shutdownDelay: 500 });
  using client = new Http2Client(server);
  client.headers(1, fields("/before"));
  await client.reply(1);
  const stopped = server.shutdown();
  client.headers(3, fields("/meanwhile"));
  assert.equal((await client.reply(3)).status, 200);
  assert.equal(environs[1]!["fetch.context"]!.draining, true);
  assert.equal(client.goaway.hasEnded, false);
  await stopped;
  await client.until(3, () => client.goaway.hasEnded);
  assert.equal(client.goaway.code, NO_ERROR);
});

test("one connection over HTTP/2 holds 200 responses that are not taken on Deno, 256 on Bun", async () => {
  const most = RUNTIME === "deno" ? 200 : 256;
  const isFull = new Event("as many responses as there can be");
  let count = 0;
  await using server = start((_environ, startResponse) => {
    if (++count === most) isFull.happen();
    ok(startResponse);
    return [new Uint8Array(256 * KIB)];
  }, { bun: { http2: true } });
  const session = connectHttp2(`http://127.0.0.1:${server.port}`);
  for (let asked = 0; asked < 300; asked++) session.request({ ":path": "/" }).on("error", () => {}).pause();
  await isFull.wait();
  await settle();
  assert.equal(count, most);
  session.destroy();
});
