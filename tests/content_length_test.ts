/**
 * `Content-Length`: what an application declares is what is sent.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Application, type HeaderList, type ResponseBody, toFetch } from "../mod.ts";
import {
  bytes,
  Client,
  exchange,
  generated,
  generatedAsync,
  HERE,
  ok,
  parse,
  pingable,
  PLAIN,
  request,
  RUNTIME,
  startPatient,
  unchecked,
} from "./support.ts";

interface Declared {
  length: number;
  body: () => ResponseBody;
}

function declaring({ length, body }: Declared): Application {
  return pingable((_environ, startResponse) => {
    ok(startResponse, ["Content-Length", String(length)]);
    return body();
  });
}

const TOO_LONG: Record<string, Declared> = {
  "a generator whose last chunk is too long": { length: 5, body: generated("123", "4567") },
  "a generator whose first chunk is too long": { length: 5, body: generated("1234567") },
  "a generator that has another chunk": { length: 5, body: generated("123", "45", "67") },
  "a generator with one whole chunk and another": { length: 5, body: generated("12345", "67") },
  "an endless generator": {
    length: 5,
    body: function* () {
      for (;;) yield bytes("12345");
    },
  },
  "an async generator whose last chunk is too long": { length: 5, body: generatedAsync("123", "4567") },
  "an async generator that has another chunk": { length: 5, body: generatedAsync("123", "45", "67") },
  "an array": { length: 5, body: () => [bytes("123"), bytes("4567")] },
};

for (const [name, declared] of Object.entries(TOO_LONG)) {
  test(`more bytes than declared never leave, and are logged once: ${name}`, async () => {
    await using server = startPatient(unchecked(declaring(declared)));
    const client = await Client.connect(server);
    // The connection stays usable, so that anything that left would be seen before the second answer.
    await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
    await client.until(/12345(\r\n0\r\n\r\n)?$|45\r\n0\r\n\r\n$/);
    await server.errors.matches(/Content-Length/);
    await client.send(request("/ping"));
    const received = await client.end();
    const second = received.lastIndexOf("HTTP/1.1 200");
    const first = parse(received.slice(0, second));
    assert.equal(first.complete, true);
    assert.equal(first.body, "12345");
    assert.equal(parse(received.slice(second)).body, "pong");
    assert.doesNotMatch(received, /67/);
    assert.equal(server.errors.text.match(/Content-Length/g)?.length, 1);
  });
}

const TOO_SHORT: Record<string, Declared> = {
  "a generator": { length: 10, body: generated("123", "45") },
  "a generator of one chunk": { length: 10, body: generated("12345") },
  "an async generator": { length: 10, body: generatedAsync("123", "45") },
};

for (const [name, declared] of Object.entries(TOO_SHORT)) {
  test(`fewer bytes than declared abort the connection, and are logged once: ${name}`, async () => {
    await using server = startPatient(unchecked(declaring(declared)));
    const client = await Client.connect(server);
    await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
    const reply = parse(await client.end());
    assert.equal(reply.complete, false);
    assert.ok("12345".startsWith(reply.body));
    assert.equal(server.errors.text.match(/Content-Length/g)?.length, 1);
  });
}

const KNOWN_TOO_SHORT: Record<string, Declared> = {
  "an array": { length: 10, body: () => [bytes("123"), bytes("45")] },
  "an empty array": { length: 10, body: () => [] },
  "an empty generator": { length: 10, body: generated() },
  "a generator of empty chunks": { length: 10, body: generated("", "") },
  "an empty async generator": { length: 10, body: generatedAsync() },
};

for (const [name, declared] of Object.entries(KNOWN_TOO_SHORT)) {
  test(`fewer bytes than declared, known before anything is sent, give a 500 and are logged once: ${name}`, async () => {
    await using server = startPatient(unchecked(declaring(declared)));
    const reply = await exchange(server, request("/"));
    assert.equal(reply.status, 500);
    assert.equal(reply.complete, true);
    assert.equal(server.errors.text.match(/Content-Length/g)?.length, 1);
  });
}

const EXACT: Record<string, Declared> = {
  "an array": { length: 5, body: () => [bytes("123"), bytes("45")] },
  "a generator": { length: 5, body: generated("123", "45") },
  "a generator of one chunk": { length: 5, body: generated("12345") },
  "a generator with empty chunks around": { length: 5, body: generated("", "123", "", "45", "") },
  "an async generator": { length: 5, body: generatedAsync("123", "45") },
  "an async generator of one chunk": { length: 5, body: generatedAsync("12345") },
};

test("a body of exactly the declared length is sent as it is, and nothing is logged", async () => {
  for (const [name, declared] of Object.entries(EXACT)) {
    const server = startPatient(declaring(declared));
    const reply = await exchange(server, request("/"));
    await server.shutdown();
    assert.equal(reply.complete, true, name);
    assert.equal(reply.body, "12345", name);
    assert.equal(server.errors.text, "", name);
  }
});

test("a declared length is sent whenever it is known to be kept, and on Deno with streams too", async () => {
  const lengths: Record<string, string | undefined> = {
    "an array": "5",
    "a generator of one chunk": "5",
    "an async generator of one chunk": "5",
    // Bun sends no Content-Length with a stream.
    "a generator": RUNTIME === "deno" ? "5" : undefined,
    "an async generator": RUNTIME === "deno" ? "5" : undefined,
  };
  for (const [name, length] of Object.entries(lengths)) {
    await using server = startPatient(declaring(EXACT[name]!));
    const headers = new Map((await exchange(server, request("/"))).headers);
    assert.equal(headers.get("content-length"), length, name);
    assert.equal(headers.get("transfer-encoding"), length ? undefined : "chunked", name);
  }
});

test("a Content-Length too large for a number does not make a short body look complete", async () => {
  for (const length of ["9".repeat(400), "1".padEnd(22, "0"), "9007199254740993"]) {
    await using server = startPatient((_environ, startResponse) => {
      ok(startResponse, ["Content-Length", length]);
      return generated("123", "45")();
    });
    const reply = await exchange(server, request("/"));
    assert.equal(reply.status === 500 || !reply.complete, true, length);
    const sent = new Map(reply.headers).get("content-length");
    if (reply.status !== 500 && sent !== undefined) assert.equal(sent, length);
    assert.notEqual(server.errors.text, "", length);
  }
});

test("a response to HEAD, 204 or 304 is not held to the length it declares", async () => {
  const cases: { method: string; status: string; headers: HeaderList }[] = [
    { method: "HEAD", status: "200 OK", headers: [...PLAIN, ["Content-Length", "10"]] },
    { method: "GET", status: "204 No Content", headers: [] },
    { method: "GET", status: "304 Not Modified", headers: [["Content-Length", "10"]] },
  ];
  for (const { method, status, headers } of cases) {
    await using server = startPatient((_environ, startResponse) => {
      startResponse(status, headers);
      return [];
    });
    const reply = await exchange(server, request("/", { method }), { head: true });
    assert.equal(reply.status, Number(status.slice(0, 3)));
    assert.equal(reply.body, "", status);
    assert.equal(server.errors.text, "", status);
  }
});

test("a declared Content-Length is among the headers of the Response, for callers without a socket", async () => {
  for (const body of [[bytes("one")], new Set([bytes("one")])]) {
    const handler = toFetch((_environ, startResponse) => {
      ok(startResponse, ["Content-Length", "3"]);
      return body;
    });
    assert.equal((await handler(new Request(HERE))).headers.get("Content-Length"), "3");
  }
});
