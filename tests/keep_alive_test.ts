/**
 * Connections that go on after a response, and those that end.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Application, HeaderList, InputStream, ResponseBody } from "../mod.ts";
import {
  bytes,
  Client,
  Event,
  FAILURE,
  hello,
  KIB,
  ok,
  parse,
  PLAIN,
  type Reply,
  request,
  RUNTIME,
  start,
  startPatient,
  text,
  unchecked,
  within,
} from "./support.ts";

test("a GET whose body the runtime drops has an empty one, and the connection goes on", async () => {
  await using server = start(async (environ, startResponse) => {
    const { length } = await environ["wsgi.input"].read();
    ok(startResponse);
    return [bytes(`<${environ.PATH_INFO}: ${length}>`)];
  });
  const client = await Client.connect(server);
  await client.send("GET /first HTTP/1.1\r\nHost: test.example\r\nContent-Length: 4\r\n\r\nbody");
  await client.until(/<\/first: 0>/);
  await client.send(request("/second"));
  assert.match(await client.end(), /<\/second: 0>/);
});

test("a connection goes on after a body that was read to its last byte", async () => {
  for (const ways of [(input: InputStream) => input.read(6), (input: InputStream) => input.read()]) {
    const half = new Event("the first half in the application");
    await using server = start(async (environ, startResponse) => {
      const input = environ["wsgi.input"];
      let body = "";
      if (environ.REQUEST_METHOD === "POST") {
        body += text(await input.read(3));
        half.happen();
        body += text(await ways(input));
      }
      ok(startResponse);
      return [bytes(`<${environ.PATH_INFO}: ${body}>`)];
    });
    const client = await Client.connect(server);
    await client.send("POST /first HTTP/1.1\r\nHost: test.example\r\nContent-Length: 9\r\n\r\nabc");
    await half.wait();
    await client.send("defghi");
    await client.until(/<\/first: abcdefghi>/);
    await client.send(request("/second"));
    await client.until(/<\/second: >/);
    client.leave();
  }
});

test("a large body that was read to its end leaves the connection as the client wants it", async () => {
  const reads: Record<string, (input: InputStream) => Promise<number>> = {
    async atOnce(input) {
      return (await input.read()).length;
    },
    async exactly(input) {
      return (await input.read(256 * KIB)).length;
    },
    async inPieces(input) {
      let size = 0;
      for (let piece = await input.read(KIB); piece.length > 0; piece = await input.read(KIB)) size += piece.length;
      return size;
    },
    async atHand(input) {
      let size = 0;
      for (let piece = await input.read1(); piece.length > 0; piece = await input.read1()) size += piece.length;
      return size;
    },
    async notAtAll() {
      return await 256 * KIB;
    },
  };
  for (const [name, read] of Object.entries(reads)) {
    await using server = startPatient(async (environ, startResponse) => {
      const size = await read(environ["wsgi.input"]);
      ok(startResponse);
      return [bytes(`<${size}>`)];
    });
    const client = await Client.connect(server);
    for (const keepAlive of [true, false]) {
      await client.send(
        `POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${256 * KIB}\r\n${keepAlive ? "" : "Connection: close\r\n"}\r\n`,
      );
      await client.send(new Uint8Array(256 * KIB));
      if (keepAlive) await client.until(/<262144>/);
    }
    assert.equal((await client.end()).split("<262144>").length, 3, name);
  }
});

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

test("a response with Connection: close ends its connection on Bun, and leaves that to the client on Deno", async () => {
  const server = start(hello, { shutdownDelay: 1000, shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  const stopped = server.shutdown();
  const keepAlive = "GET / HTTP/1.1\r\nHost: test.example\r\n\r\n";
  await client.send(keepAlive);
  await client.until(/connection: close\r\n[^]*hello$/i);
  if (RUNTIME === "deno") {
    await client.send(keepAlive);
    await client.until(/hello[^]*connection: close\r\n[^]*hello$/i);
  }
  await client.end();
  await within(stopped, "the end of the server");
});
