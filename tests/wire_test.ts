/**
 * How the runtimes put a response on the wire, where they do not agree: the README's table of differences names them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { ApplicationLike } from "../mod.ts";
import { bytes, Client, exchange, ok, parse, request, RUNTIME, start, unchecked } from "./support.ts";

const STREAM: ApplicationLike = function* (_environ, startResponse) {
  ok(startResponse);
  yield bytes("one");
  yield bytes("two");
};

test("a repeated response header has a line each on Deno, and one joined line on Bun", async () => {
  await using server = start((_environ, startResponse) => {
    ok(startResponse, ["X-A", "1"], ["x-a", "2"]);
    return [];
  });
  const { headers } = await exchange(server, request("/"));
  const values = headers.filter(([name]) => name === "x-a").map(([_name, value]) => value);
  assert.deepEqual(values, RUNTIME === "deno" ? ["1", "2"] : ["1, 2"]);
});

test("every Set-Cookie has a line of its own, in order", async () => {
  await using server = start((_environ, startResponse) => {
    ok(startResponse, ["Set-Cookie", "b=1"], ["Set-Cookie", "a=2"]);
    return [];
  });
  const { headers } = await exchange(server, request("/"));
  const values = headers.filter(([name]) => name === "set-cookie").map(([_name, value]) => value);
  assert.deepEqual(values, ["b=1", "a=2"]);
});

test("a response to HEAD declares no length that is not known", async () => {
  await using server = start(STREAM);
  const { headers, body } = await exchange(server, request("/", { method: "HEAD" }), { head: true });
  const framing = headers.filter(([name]) => name === "content-length" || name === "transfer-encoding");
  assert.deepEqual(framing, RUNTIME === "deno" ? [] : [["transfer-encoding", "chunked"]]);
  assert.equal(body, "");
});

test("a response to HEAD declares the length of an array that the application returns all the same", async () => {
  await using server = start((_environ, startResponse) => {
    ok(startResponse);
    return [bytes("four")];
  });
  const reply = await exchange(server, request("/", { method: "HEAD" }), { head: true });
  assert.equal(new Map(reply.headers).get("content-length"), "4");
  assert.equal(reply.body, "");
});

test("a client of HTTP/1.0 gets the status line of its version on Deno only, and a stream without chunks", async () => {
  await using server = start(STREAM);
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.0\r\n\r\n");
  const received = await client.end();
  assert.match(received, RUNTIME === "deno" ? /^HTTP\/1\.0 200 OK\r\n/ : /^HTTP\/1\.1 200 OK\r\n/);
  assert.equal(parse(received).body, "onetwo");
});

test("a response without a Content-Type is sent without one", async () => {
  for (const chunks of [[], [bytes("a")], [bytes("a"), bytes("b")]]) {
    await using server = start(unchecked((_environ, startResponse) => {
      startResponse("200 OK", []);
      return chunks;
    }));
    const headers = new Map((await exchange(server, request("/"))).headers);
    assert.equal(headers.has("content-type"), false);
    assert.equal(headers.get("content-length"), String(chunks.length));
  }
});

test("an empty Content-Type is sent as it is", async () => {
  await using server = start((_environ, startResponse) => {
    startResponse("200 OK", [["Content-Type", ""]]);
    return [bytes("a")];
  });
  const { headers } = await exchange(server, request("/"));
  assert.deepEqual(headers.filter(([name]) => name === "content-type"), [["content-type", ""]]);
});

test("205 is sent with its length on Bun, and refused on Deno, which would have the client wait for ever", async () => {
  await using server = start((_environ, startResponse) => {
    startResponse("205 Reset Content", []);
    return [];
  });
  const { status, headers } = await exchange(server, request("/"));
  assert.equal(status, RUNTIME === "deno" ? 500 : 205);
  if (RUNTIME === "deno") assert.match(server.errors.text, /status "205 Reset Content" is one that Deno cannot send/);
  else assert.equal(new Map(headers).get("content-length"), "0");
});

test("a body of GET is dropped, and its input is empty", async () => {
  await using server = start(async (environ, startResponse) => {
    ok(startResponse);
    return [await environ["wsgi.input"].read(), bytes(`length ${environ.CONTENT_LENGTH}`)];
  });
  const reply = await exchange(server, request("/", { headers: ["Content-Length: 4"], body: "four" }));
  assert.equal(reply.body, "length 4");
});

test("a chunked upload with trailers is read to its end, which is the end of the connection on Bun", async () => {
  await using server = start(async (environ, startResponse) => {
    const body = await environ["wsgi.input"].read();
    ok(startResponse);
    return [body];
  });
  const client = await Client.connect(server);
  const head = "POST / HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n";
  await client.send(`${head}3\r\nabc\r\n0\r\nX-Trailer: yes\r\n\r\n`);
  await client.until(/\r\n\r\nabc/);
  if (RUNTIME === "bun") return assert.match(await client.end(), /\r\n\r\nabcHTTP\/1\.1 400 /);
  await client.send(request("/"));
  assert.match(await client.end(), /\r\n\r\nabcHTTP\/1\.1 200 /);
});

test("a head of more than 16 KiB is accepted by Deno only", async () => {
  await using server = start((_environ, startResponse) => {
    ok(startResponse);
    return [];
  });
  const { status } = await exchange(server, request("/", { headers: [`X-Long: ${"a".repeat(17_000)}`] }));
  assert.equal(status, RUNTIME === "deno" ? 200 : 431);
});

test("a stream that begins before an unread upload has arrived is the last of its connection on Deno", async () => {
  await using server = start(STREAM);
  const client = await Client.connect(server);
  await client.send("POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 5\r\n\r\n");
  await client.until(/two\r\n0\r\n\r\n/);
  const headers = new Map(parse(client.received).headers);
  assert.equal(headers.get("connection"), RUNTIME === "deno" ? "close" : undefined);
  client.leave();
});
