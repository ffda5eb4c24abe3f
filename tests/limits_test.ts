/**
 * `maxBodySize`, and the patience that the server has with clients.
 *
 * @module
 */

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type Application, limitBody, limitConcurrency } from "../mod.ts";
import {
  answer,
  assertServes,
  bytes,
  Client,
  countBytes,
  Event,
  fetched,
  HERE,
  ok,
  parse,
  request,
  RUNTIME,
  settle,
  start,
  text,
  unchecked,
  withBody,
  workspace,
} from "./support.ts";

const { FOLDER } = workspace();

// maxBodySize

test("a body that is too large by its Content-Length is answered with 413, without the application", async () => {
  let calls = 0;
  const app: Application = (_environ, startResponse) => {
    calls++;
    ok(startResponse);
    return [];
  };
  const sizes: [length: string, status: number][] = [["5", 413], ["4", 200], ["0", 200], ["99999999999999999999", 413]];
  for (const [length, status] of sizes) {
    const request = new Request(HERE, { method: "POST", headers: { "Content-Length": length }, body: "body" });
    const { response } = await answer(app, request, { maxBodySize: 4 });
    assert.equal(response.status, status, length);
  }
  assert.equal(calls, 2);
});

test("the body of a GET is never too large, since none of it is read", async () => {
  for (const method of ["GET", "HEAD"]) {
    const request = new Request(HERE, { method, headers: { "Content-Length": "5" } });
    const { response } = await answer(limitBody(countBytes, { maxBodySize: 4 }), request, { maxBodySize: 4 });
    assert.equal(response.status, 200);
  }
});

test("a body that turns out to be too large is a RangeError, and 413 if the application lets it pass", async () => {
  const caught: unknown[] = [];
  const app: Application = async (environ, startResponse) => {
    try {
      for await (const line of environ["wsgi.input"]) assert.ok(line.length > 0);
    } catch (error) {
      caught.push(error);
      throw error;
    }
    ok(startResponse);
    return [];
  };
  assert.equal((await answer(app, withBody("ab", "cd"), { maxBodySize: 4 })).response.status, 200);
  assert.deepEqual(caught.map(String), []);
  const { response } = await answer(app, withBody("ab", "cd", "e"), { maxBodySize: 4 });
  assert.equal(response.status, 413);
  assert.equal(caught.length, 1);
  assert.ok(caught[0] instanceof RangeError, String(caught[0]));
});

test("a body that is too large makes every read fail, however often it is read", async () => {
  const outcomes: string[] = [];
  await answer(
    async (environ, startResponse) => {
      for (const size of [3, 1, undefined, 1]) {
        outcomes.push(await environ["wsgi.input"].read(size).then(text, (error: Error) => error.name));
      }
      ok(startResponse);
      return [];
    },
    withBody("ab", "cdef"),
    { maxBodySize: 4 },
  );
  assert.deepEqual(outcomes, ["RangeError", "RangeError", "RangeError", "RangeError"]);
});

const LIMIT = 1000;

for (const [what, framing] of [["a length", "Content-Length: 4194304"], ["chunks", "Transfer-Encoding: chunked"]]) {
  test(`a client that goes on sending a body with ${what} that is too large can read the 413`, async () => {
    let calls = 0;
    await using server = start((environ, startResponse) => {
      calls++;
      return countBytes(environ, startResponse);
    }, { maxBodySize: LIMIT });
    const client = await Client.connect(server);
    await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\n${framing}\r\n\r\n`);
    const block = "x".repeat(65_536);
    for (let sent = 0; sent < 4_194_304 && !client.isClosed; sent += block.length) {
      await client.send(what === "chunks" ? `10000\r\n${block}\r\n` : block);
    }
    await client.until(/^HTTP\/1\.1 413 [^]*\r\n\r\nContent Too Large\n$/);
    client.leave();
    assert.equal(calls, what === "chunks" ? 1 : 0);
    assert.equal(server.errors.text, "");
    await assertServes(server);
  });
}

const LARGE_FILE = join(FOLDER, "large");
writeFileSync(LARGE_FILE, new Uint8Array(4 * 1024 * 1024));

for (
  const [what, args] of [
    ["a length", ["--data-binary", `@${LARGE_FILE}`]],
    ["a length and no Expect", ["--data-binary", `@${LARGE_FILE}`, "-H", "Expect:"]],
    ["chunks", ["--data-binary", `@${LARGE_FILE}`, "-H", "Transfer-Encoding: chunked"]],
    ["chunks and no Expect", ["--data-binary", `@${LARGE_FILE}`, "-H", "Transfer-Encoding: chunked", "-H", "Expect:"]],
    ["a length, with PUT", ["-T", LARGE_FILE]],
  ] as const
) {
  test(`curl reads the 413 when it sends a body with ${what} that is too large`, async () => {
    await using server = start(countBytes, { maxBodySize: LIMIT });
    assert.equal(await fetched("--http1.1", ...args, server.url), "Content Too Large\n 1.1 413");
  });
}

for (
  const [size, limit, expected] of [
    [LIMIT, LIMIT, 200],
    [LIMIT + 1, LIMIT, 413],
    [0, 0, 200],
    [1, 0, 413],
    [LIMIT, undefined, 200],
    [LIMIT, Infinity, 200],
  ] as const
) {
  test(`with maxBodySize ${limit} a body of ${size} bytes is answered with ${expected}, however it is framed`, async () => {
    await using server = start(countBytes, { maxBodySize: limit });
    const body = "x".repeat(size);
    const chunked = `${size > 0 ? `${size.toString(16)}\r\n${body}\r\n` : ""}0\r\n\r\n`;
    for (
      const message of [
        request("/", { method: "POST", headers: [`Content-Length: ${size}`], body }),
        request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body: chunked }),
      ]
    ) {
      const client = await Client.connect(server);
      await client.send(message);
      await client.until(new RegExp(`^HTTP/1\\.1 ${expected} `));
      client.leave();
    }
    for (const framed of [body, ReadableStream.from([bytes(body)])]) {
      const { response } = await answer(
        countBytes,
        new Request("http://localhost/", { method: "POST", body: framed }),
        {
          maxBodySize: limit,
        },
      );
      assert.equal(response.status, expected);
    }
  });
}

test("an application is given no more than maxBodySize bytes, and may answer for itself", async () => {
  let given = 0;
  const failure = new Event<unknown>("a read() that fails");
  await using server = start(async (environ, startResponse) => {
    try {
      for (;;) given += (await environ["wsgi.input"].read(7)).length;
    } catch (error) {
      failure.happen(error);
    }
    startResponse("422 Unprocessable Content", [["Content-Type", "text/plain"]]);
    return [bytes("own")];
  }, { maxBodySize: 20 });
  const client = await Client.connect(server);
  await client.send("POST / HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (let block = 0; block < 10; block++) await client.send("5\r\nabcde\r\n");
  await client.until(/^HTTP\/1\.1 422 [^]*own$/);
  client.leave();
  const error = await failure.wait();
  assert.ok(error instanceof RangeError && "status" in error);
  assert.equal(error.status, 413);
  assert.ok(given <= 20);
});

// Half-sent heads and idle connections

// It takes 12 s.
test("Bun cuts half-sent heads and idle connections, but no request under way, however quiet or slow it is", {
  skip: RUNTIME === "deno" && "Deno cuts none of them",
}, async () => {
  const go = new Event("permission to go on");
  const app: Application = async (environ, startResponse) => {
    const { PATH_INFO: path } = environ;
    if (path === "/slow") await go.wait();
    ok(startResponse);
    if (path === "/") return [bytes("hello")];
    if (path === "/closes") return Object.assign([bytes("hello")], { close: settle });
    if (path === "/large") return [new Uint8Array(16 * 1024 * 1024)];
    return (async function* () {
      if (path === "/upload") yield await environ["wsgi.input"].read();
      else yield bytes("one");
      if (path === "/quiet") await go.wait();
      yield bytes("two");
    })();
  };
  await using server = start(app);
  await using serial = start(limitConcurrency(app, { max: 1 }));
  await using synchronous = start(unchecked((_environ, startResponse) => (ok(startResponse), [bytes("hello")])));
  const open = async (data: string, to = server) => {
    const client = await Client.connect(to);
    await client.send(data);
    return client;
  };
  const keepAlive = "GET / HTTP/1.1\r\nHost: test.example\r\n\r\n";
  const half = keepAlive.slice(0, -4);
  const kept = [
    await open(request("/quiet")),
    await open(request("/slow")),
    await open(`${request("/upload", { method: "POST", headers: ["Content-Length: 3"] })}on`),
    await open(request("/slow"), serial),
    await open(request("/waits"), serial),
  ];
  const stalled = await open(request("/large"));
  stalled.pause();
  const closes = keepAlive.replace("/", "/closes");
  const cut = [
    await open(half),
    await open(keepAlive),
    await open(keepAlive, synchronous),
    await open(keepAlive),
    await open(closes),
  ];
  for (const client of cut.slice(1)) await client.until(/hello$/);
  for (const client of cut.slice(3)) await client.send(half);
  for (const client of cut) assert.match(await client.end(), /^(?:HTTP\/1\.1 200 [^]*hello)?$/);
  go.happen();
  await kept[2]!.send("e");
  for (const client of kept) {
    const { body, complete } = parse(await client.end());
    assert.deepEqual({ body, complete }, { body: "onetwo", complete: true });
  }
  stalled.resume();
  const { body, complete } = parse(await stalled.end());
  assert.deepEqual({ size: body.length, complete }, { size: 16 * 1024 * 1024, complete: true });
});
