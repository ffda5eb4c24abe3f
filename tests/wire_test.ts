/**
 * How the runtimes put a response on the wire, where they do not agree: DIFFERENCES.md names them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { ApplicationLike } from "../mod.ts";
import {
  answer,
  assertAbsent,
  bytes,
  Client,
  echo,
  exchange,
  HERE,
  ok,
  parse,
  recorder,
  request,
  RUNTIME,
  start,
  text,
  unchecked,
} from "./support.ts";

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

for (const method of ["GET", "HEAD"]) {
  for (const framing of ["Content-Length: 14", "Content-Length: 0", "Transfer-Encoding: chunked"]) {
    test(`a body of ${method} is dropped, and the application told of none, with ${framing}`, async () => {
      const { app, environs } = recorder();
      let body = "";
      await using server = start(async (environ, startResponse) => {
        body = text(await environ["wsgi.input"].read());
        return app(environ, startResponse);
      });
      const headers = [framing, "Content-Type: text/plain"];
      const sent = request("/", { method, headers, body: framing.endsWith("0") ? "" : "4\r\nfour\r\n0\r\n\r\n" });
      const { status } = await exchange(server, sent, { head: method === "HEAD" });
      assert.equal(status, 200);
      assert.equal(body, "");
      assertAbsent(environs[0]!, "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING");
      assert.equal(environs[0]!.CONTENT_TYPE, "text/plain"); // RFC 3875, section 4.1.3: set if the header is there
    });
  }
}

test("a body of DELETE is read, and one that is not declared is empty", async () => {
  const { app, environs } = recorder();
  const bodies: string[] = [];
  await using server = start(async (environ, startResponse) => {
    bodies.push(text(await environ["wsgi.input"].read()));
    return app(environ, startResponse);
  });
  for (const headers of [["Content-Length: 4"], ["Content-Length: 0"], []]) {
    await exchange(server, request("/", { method: "DELETE", headers, body: headers[0]?.endsWith("4") ? "four" : "" }));
  }
  assert.deepEqual(bodies, ["four", "", ""]);
  assert.deepEqual(environs.map(({ CONTENT_LENGTH }) => CONTENT_LENGTH), ["4", "0", undefined]);
});

// RFC 9112, section 6.1. What a runtime lets through is either chunks alone, or refused with 501.
const TRANSFER_ENCODINGS: { sent: string[]; deno: number; bun: number }[] = [
  { sent: ["chunked"], deno: 200, bun: 200 },
  { sent: ["CHUNKED"], deno: 200, bun: 200 },
  { sent: [",chunked"], deno: 400, bun: 200 },
  { sent: ["chunked,"], deno: 400, bun: 200 },
  { sent: [",", "chunked"], deno: 400, bun: 200 },
  { sent: ["gzip, chunked"], deno: 501, bun: 400 },
  { sent: ["gzip,chunked"], deno: 501, bun: 400 },
  { sent: ["gzip", "chunked"], deno: 501, bun: 400 },
  { sent: ["x, chunked"], deno: 501, bun: 400 },
  { sent: ['x;a="b, c", chunked'], deno: 501, bun: 400 },
  { sent: ["gzip, deflate, chunked"], deno: 501, bun: 400 },
  { sent: ["identity, chunked"], deno: 400, bun: 400 },
  { sent: ["chunked, chunked"], deno: 400, bun: 400 },
  { sent: ["chunked", "chunked"], deno: 400, bun: 400 },
  { sent: ["chunked, gzip"], deno: 400, bun: 400 },
  { sent: ["chunked;q=1"], deno: 400, bun: 400 },
  { sent: ["identity"], deno: 400, bun: 400 },
  { sent: ["gzip"], deno: 400, bun: 400 },
  { sent: ["x"], deno: 400, bun: 400 },
  { sent: [""], deno: 400, bun: 400 },
];

for (const { sent, [RUNTIME]: status } of TRANSFER_ENCODINGS) {
  for (const method of ["POST", "GET"]) {
    test(`a ${method} with Transfer-Encoding ${JSON.stringify(sent)} is answered with ${status}`, async () => {
      let calls = 0;
      let body = "";
      await using server = start(async (environ, startResponse) => {
        calls++;
        body = text(await environ["wsgi.input"].read());
        ok(startResponse);
        return [];
      });
      const headers = sent.map((coding) => `Transfer-Encoding: ${coding}`);
      const reply = await exchange(server, request("/", { method, headers, body: "3\r\nabc\r\n0\r\n\r\n" }));
      assert.equal(reply.status, status);
      assert.equal(calls, status === 200 ? 1 : 0);
      assert.equal(body, status === 200 && method === "POST" ? "abc" : "");
      assert.equal(server.errors.text, "");
    });
  }
}

test("a Transfer-Encoding of a request that no socket has brought is refused with 501 in the same way", async () => {
  for (const [coding, status] of [["gzip, chunked", 501], ["identity", 501], ["Chunked", 200], ["chunked, ", 200]]) {
    const headers = { "Transfer-Encoding": String(coding) };
    const { response } = await answer(echo, new Request(HERE, { method: "POST", headers, body: "abc" }));
    assert.deepEqual([coding, response.status], [coding, status]);
  }
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

// What the runtimes make of a request that is not quite one. A status of 0: the connection is closed without an answer.
const MESSAGES: { what: string; sent: string; deno: number; bun: number }[] = [
  { what: "HTTP/1.2", sent: "GET / HTTP/1.2\r\nHost: h\r\nConnection: close\r\n\r\n", deno: 400, bun: 505 },
  { what: "HTTP/2.0", sent: "GET / HTTP/2.0\r\nHost: h\r\nConnection: close\r\n\r\n", deno: 400, bun: 505 },
  { what: "HTTP/0.9", sent: "GET / HTTP/0.9\r\nHost: h\r\nConnection: close\r\n\r\n", deno: 400, bun: 505 },
  { what: "no version", sent: "GET /\r\n\r\n", deno: 400, bun: 505 },
  { what: "a leading CRLF", sent: `\r\n${request("/")}`, deno: 200, bun: 400 },
  { what: "a bare LF behind each line", sent: request("/").replaceAll("\r\n", "\n"), deno: 200, bun: 505 },
  { what: "a bare LF behind a field", sent: request("/").replace("example\r\n", "example\n"), deno: 200, bun: 400 },
  { what: "a bare CR behind a field", sent: request("/").replace("example\r\n", "example\r"), deno: 400, bun: 400 },
  { what: "DEL in a value", sent: request("/", { headers: ["X-A: a\x7fb"] }), deno: 400, bun: 200 },
];

for (const { what, sent, [RUNTIME]: status } of MESSAGES) {
  test(`a request with ${what} is answered with ${status}`, async () => {
    const { app, environs } = recorder();
    await using server = start(app);
    assert.equal((await exchange(server, sent)).status, status);
    assert.equal(environs.length, status === 200 ? 1 : 0);
  });
}

const CHUNKS: { what: string; chunk: string; deno: number; bun: number }[] = [
  { what: "zeros before its size", chunk: "003\r\nabc\r\n", deno: 200, bun: 200 },
  { what: "an extension", chunk: '3;a;b=c;d="e"\r\nabc\r\n', deno: 200, bun: 200 },
  { what: "a space in an extension", chunk: "3; a=b\r\nabc\r\n", deno: 200, bun: 400 },
  { what: "a space in a quoted extension", chunk: '3;a="b c"\r\nabc\r\n', deno: 200, bun: 400 },
  { what: "an extension of 4,000 bytes", chunk: `3;${"a".repeat(4000)}\r\nabc\r\n`, deno: 200, bun: 200 },
  { what: "an extension of 5,000 bytes", chunk: `3;${"a".repeat(5000)}\r\nabc\r\n`, deno: 400, bun: 200 },
  { what: "an extension of 20,000 bytes", chunk: `3;${"a".repeat(20_000)}\r\nabc\r\n`, deno: 400, bun: 413 },
  { what: "DEL in an extension", chunk: "3;\x7f\r\nabc\r\n", deno: 0, bun: 200 },
  { what: "a space before its size", chunk: " 3\r\nabc\r\n", deno: 200, bun: 400 },
  { what: "a space behind its size", chunk: "3 \r\nabc\r\n", deno: 200, bun: 400 },
  { what: "a tab behind its size", chunk: "3\t\r\nabc\r\n", deno: 0, bun: 400 },
  { what: "a size that is no number", chunk: "x\r\nabc\r\n", deno: 0, bun: 400 },
  { what: "a negative size", chunk: "-3\r\nabc\r\n", deno: 0, bun: 400 },
  { what: "a size with 0x", chunk: "0x3\r\nabc\r\n", deno: 0, bun: 400 },
  { what: "a size beyond 2^64", chunk: "fffffffffffffffff\r\nabc\r\n", deno: 0, bun: 400 },
  { what: "more bytes than its size", chunk: "3\r\nabcd\r\n", deno: 0, bun: 400 },
  { what: "no size", chunk: "\r\nabc\r\n", deno: 0, bun: 400 },
  { what: "a bare LF behind its size", chunk: "3\nabc\r\n", deno: 0, bun: 400 },
  { what: "a bare LF behind its bytes", chunk: "3\r\nabc\n", deno: 0, bun: 400 },
];

for (const { what, chunk, [RUNTIME]: status } of CHUNKS) {
  const outcome = status === 0 ? "closes the connection" : `is answered with ${status}`;
  test(`a chunk with ${what} ${outcome}, and is not read as a whole body unless that is 200`, async () => {
    const bodies: string[] = [];
    await using server = start(async (environ, startResponse) => {
      bodies.push(text(await environ["wsgi.input"].read()));
      ok(startResponse);
      return [];
    });
    const headers = ["Transfer-Encoding: chunked"];
    const reply = await exchange(server, request("/", { method: "POST", headers, body: `${chunk}0\r\n\r\n` }));
    assert.equal(reply.status, status);
    assert.deepEqual(bodies, status === 200 ? ["abc"] : []);
    assert.equal(server.errors.text, "");
  });
}

const LENGTHS: { sent: string[]; deno: number; bun: number; length?: string }[] = [
  { sent: ["003"], deno: 200, bun: 200, length: "003" },
  { sent: ["003", "003"], deno: 200, bun: 200, length: "003" },
  { sent: ["003", "3"], deno: 400, bun: 400 },
  { sent: ["3", "003"], deno: 400, bun: 400 },
  { sent: ["9007199254740992"], deno: 200, bun: 413, length: "9007199254740992" },
  { sent: ["18446744073709551615"], deno: 200, bun: 400, length: "18446744073709551615" },
  { sent: ["18446744073709551616"], deno: 400, bun: 400 },
];

for (const { sent, [RUNTIME]: status, length } of LENGTHS) {
  test(`a body with Content-Length ${sent.join(" and ")} is answered with ${status}`, async () => {
    const { app, environs } = recorder();
    await using server = start(app);
    const client = await Client.connect(server);
    const headers = sent.map((length) => `Content-Length: ${length}`);
    await client.send(request("/", { method: "POST", headers, body: "abc" }));
    assert.equal((await client.reply()).status, status);
    client.leave(); // there is more to come than anybody waits for
    assert.deepEqual(environs.map(({ CONTENT_LENGTH }) => CONTENT_LENGTH), status === 200 ? [length] : []);
  });
}

test("a Content-Length beyond 2^53 is above any maxBodySize", async () => {
  const { app, environs } = recorder();
  await using server = start(app, { maxBodySize: Number.MAX_SAFE_INTEGER });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 9007199254740993"] }));
  assert.equal((await client.reply()).status, 413);
  client.leave();
  assert.equal(environs.length, 0);
});

test("a client of HTTP/1.0 keeps its connection on Deno, if it asks for that, and never on Bun", async () => {
  const { app, environs } = recorder();
  await using server = start(app);
  const client = await Client.connect(server);
  await client.send("GET /1 HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n");
  const { status, headers } = await client.reply();
  assert.equal(status, 200);
  assert.equal(new Map(headers).get("connection"), RUNTIME === "deno" ? "keep-alive" : undefined);
  if (RUNTIME === "deno") await client.send("GET /2 HTTP/1.0\r\nHost: h\r\n\r\n");
  await client.end();
  assert.deepEqual(environs.map(({ PATH_INFO }) => PATH_INFO), RUNTIME === "deno" ? ["/1", "/2"] : ["/1"]);
});
