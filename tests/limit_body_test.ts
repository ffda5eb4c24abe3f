/**
 * `limitBody`: requests that are no larger than an application wants.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type ApplicationLike,
  type Environ,
  fromFetch,
  type InputStream,
  limitBody,
  type LimitBodyOptions,
  runApplication,
  toEnviron,
  toRequest,
} from "../mod.ts";
import { between, giving } from "./middleware_support.ts";
import { inputOf } from "./validator_support.ts";
import {
  answer,
  bytes,
  Client,
  EMPTY,
  Event,
  exchange,
  HERE,
  KIB,
  MIB,
  ok,
  parse,
  PLAIN,
  post,
  request,
  settle,
  start,
  text,
} from "./support.ts";

function limited(app: ApplicationLike, options: LimitBodyOptions = {}): Application {
  return between((app) => limitBody(app, options), app);
}

const LINES = "aaa\nbbb\nccc\n";
type Read = (environ: Environ) => Promise<string>;

function reading(read: (input: InputStream) => AsyncIterable<Uint8Array>): Read {
  return async (environ) => {
    let all = "";
    for await (const part of read(environ["wsgi.input"])) all += text(part);
    return all;
  };
}

async function* until(read: () => Promise<Uint8Array>): AsyncGenerator<Uint8Array> {
  for (let part = await read(); part.length > 0; part = await read()) yield part;
}

const READERS: [name: string, read: Read][] = [
  ["read()", reading((input) => until(() => input.read()))],
  ["read(5)", reading((input) => until(() => input.read(5)))],
  ["read(1000)", reading((input) => until(() => input.read(1000)))],
  ["read1()", reading((input) => until(() => input.read1()))],
  ["read1(5)", reading((input) => until(() => input.read1(5)))],
  ["readline()", reading((input) => until(() => input.readline()))],
  ["readline(2)", reading((input) => until(() => input.readline(2)))],
  ["readlines()", async (environ) => (await environ["wsgi.input"].readlines()).map(text).join("")],
  ["readlines(5), again and again", async (environ) => {
    let all = "";
    for (;;) {
      const lines = await environ["wsgi.input"].readlines(5);
      if (lines.length === 0) return all;
      all += lines.map(text).join("");
    }
  }],
  ["readlines(5), then the rest", async (environ) => {
    const lines = await environ["wsgi.input"].readlines(5);
    assert.ok(lines.length <= 2);
    return [...lines, await environ["wsgi.input"].read()].map(text).join("");
  }],
  ["for await", reading((input) => input)],
  ["the request's text()", (environ) => toRequest(environ).text()],
  ["a mounted Fetch handler", async (environ) => {
    const { body } = await runApplication(
      fromFetch(async (request) => new Response(await request.text())),
      environ,
    );
    return text(body);
  }],
];

function echo(read: Read): Application {
  return async (environ, startResponse) => {
    const body = await read(environ);
    ok(startResponse);
    return [bytes(body)];
  };
}

for (const [name, read] of READERS) {
  test(`limitBody lets ${name} have a body of the very limit`, async () => {
    const { response, errors } = await answer(limited(echo(read), { maxBodySize: LINES.length }), post(LINES));
    assert.equal(response.status, 200);
    assert.equal(await response.text(), LINES);
    assert.equal(errors.text, "");
  });

  test(`limitBody fails ${name} over the limit, and answers 413`, async () => {
    const caught = new Event<unknown>("the error of the read");
    const app = echo(async (environ) => {
      try {
        return await read(environ);
      } catch (error) {
        caught.happen(error);
        throw error;
      }
    });
    const { response, errors } = await answer(limited(app, { maxBodySize: LINES.length - 1 }), post(LINES));
    assert.equal(response.status, 413);
    assert.equal(await response.text(), "Content Too Large\n");
    assert.equal(response.headers.get("Content-Type"), "text/plain; charset=utf-8");
    assert.equal(errors.text, "");
    const error = await caught.wait();
    assert(error instanceof Error);
    assert.equal("status" in error && error.status, 413);
    assert.match(error.message, /more than the 11 bytes allowed/);
  });
}

test("limitBody goes on failing once the limit was passed", async () => {
  const failures: string[] = [];
  const app: Application = async (environ, startResponse) => {
    const input = environ["wsgi.input"];
    const reads = [() => input.read(), () => input.read(1), () => input.read1(), () => input.readline()];
    for (const read of [...reads, () => input.readlines()]) await read().catch((error) => failures.push(error.status));
    ok(startResponse);
    return [];
  };
  const { response } = await answer(limited(app, { maxBodySize: 3 }), post(LINES));
  assert.equal(response.status, 200);
  assert.deepEqual(failures, [413, 413, 413, 413, 413]);
});

test("limitBody answers 413 in place of a generator that has begun, but sent nothing", async () => {
  let closed = 0;
  const app: Application = (environ, startResponse) => {
    const chunks = async function* () {
      ok(startResponse, ["X-Begun", "yes"]);
      yield EMPTY;
      yield await environ["wsgi.input"].read();
    };
    return Object.assign(chunks(), { close: () => void closed++ });
  };
  const { response, errors } = await answer(limited(app, { maxBodySize: 3 }), post(LINES));
  assert.equal(response.status, 413);
  assert.equal(response.headers.get("X-Begun"), null);
  assert.equal(await response.text(), "Content Too Large\n");
  await settle();
  assert.equal(closed, 1);
  assert.equal(errors.text, "");
});

test("limitBody lets an application answer by itself", async () => {
  const app: Application = async (environ, startResponse) => {
    try {
      await environ["wsgi.input"].read();
      ok(startResponse);
      return [];
    } catch (error) {
      startResponse("400 Bad Request", PLAIN, error);
      return [bytes("Too long for us")];
    }
  };
  const { response, errors } = await answer(limited(app, { maxBodySize: 3 }), post(LINES));
  assert.equal(response.status, 400);
  assert.equal(await response.text(), "Too long for us");
  assert.equal(errors.text, "");
});

test("limitBody passes on another error of the application, after a read that failed too", async () => {
  const app: Application = async (environ) => {
    await environ["wsgi.input"].read().catch(() => {});
    throw new Error("Out of order");
  };
  const { response, errors } = await answer(limited(app, { maxBodySize: 3 }), post(LINES));
  assert.equal(response.status, 500);
  assert.match(errors.text, /Out of order/);
});

test("limitBody aborts a response after its first bytes have left", async () => {
  const log: string[] = [];
  const app: Application = (environ, startResponse) => {
    const chunks = async function* () {
      ok(startResponse);
      yield bytes("begun");
      yield await environ["wsgi.input"].read();
    };
    return Object.assign(chunks(), { close: () => void log.push("close") });
  };
  await using server = start(limited(app, { maxBodySize: 3 }));
  const headers = ["Transfer-Encoding: chunked"];
  const body = "c\r\naaa\nbbb\nccc\n\r\n0\r\n\r\n";
  const reply = await exchange(server, request("/", { method: "POST", headers, body }));
  assert.equal(reply.status, 200);
  assert.equal(reply.body, "begun");
  assert.equal(reply.complete, false);
  await settle();
  assert.deepEqual(log, ["close"]);
});

const DECLARED: [name: string, options: LimitBodyOptions, length: number, status: number][] = [
  ["one byte over a limit", { maxBodySize: 10 }, 11, 413],
  ["the very limit", { maxBodySize: 10 }, 10, 200],
  ["one byte over the limit of 1 MiB, if nothing else is said", {}, MIB + 1, 413],
  ["the very limit of 1 MiB, if nothing else is said", {}, MIB, 200],
  ["one byte where none is allowed", { maxBodySize: 0 }, 1, 413],
  ["no byte where none is allowed", { maxBodySize: 0 }, 0, 200],
  ["any length without a limit", { maxBodySize: Infinity }, 10 * MIB, 200],
];

for (const [name, options, length, status] of DECLARED) {
  test(`limitBody answers ${status} to a declared length of ${name}`, async () => {
    let called = 0;
    const app: Application = (_environ, startResponse) => {
      called++;
      ok(startResponse);
      return [];
    };
    const headers = { "Content-Length": String(length) };
    const { response, errors } = await answer(
      limited(app, options),
      new Request(HERE, { method: "POST", headers }),
    );
    assert.equal(response.status, status);
    assert.equal(called, status === 200 ? 1 : 0);
    assert.equal(errors.text, "");
  });
}

const UNDECLARED: [name: string, options: LimitBodyOptions, size: number, status: number][] = [
  ["one byte where none is allowed", { maxBodySize: 0 }, 1, 413],
  ["no byte where none is allowed", { maxBodySize: 0 }, 0, 200],
  ["1 MiB, if nothing else is said", {}, MIB, 200],
  ["more than 1 MiB, if nothing else is said", {}, MIB + 1, 413],
  ["any length without a limit", { maxBodySize: Infinity }, 2 * MIB, 200],
];

for (const [name, options, size, status] of UNDECLARED) {
  test(`limitBody answers ${status} to a body of ${name}, when it is read`, async () => {
    const app: Application = async (environ, startResponse) => {
      const { length } = await environ["wsgi.input"].read();
      ok(startResponse);
      return [bytes(String(length))];
    };
    const { response } = await answer(limited(app, options), post("a".repeat(size)));
    assert.equal(response.status, status);
    if (status === 200) assert.equal(await response.text(), String(size));
  });
}

test("limitBody lets GET pass where no byte is allowed", async () => {
  const { response } = await answer(limited(giving(() => [bytes("one")]), { maxBodySize: 0 }));
  assert.equal(await response.text(), "one");
});

test("limitBody refuses a limit that is not a number of bytes", () => {
  const wrongs: number[] = [NaN, -1, "many" as unknown as number];
  for (const limit of wrongs) assert.throws(() => limitBody(() => [], { maxBodySize: limit }), /option "maxBodySize"/);
});

/** An input that remembers how much it was asked for. */
class AskedInput implements InputStream {
  readonly asked: number[] = [];
  readonly #input: InputStream;

  constructor(input: InputStream) {
    this.#input = input;
  }

  read(size = Infinity): Promise<Uint8Array> {
    this.asked.push(size < 0 ? Infinity : size);
    return this.#input.read(size);
  }

  read1(size = Infinity): Promise<Uint8Array> {
    this.asked.push(size < 0 ? Infinity : size);
    return this.#input.read1(size);
  }

  readline(size = Infinity): Promise<Uint8Array> {
    this.asked.push(size < 0 ? Infinity : size);
    return this.#input.readline(size);
  }

  readlines(): Promise<Uint8Array[]> {
    this.asked.push(Infinity);
    return this.#input.readlines();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    this.asked.push(Infinity);
    yield* this.#input;
  }
}

for (const [name, read] of READERS) {
  test(`limitBody takes no more than a byte above the limit for ${name}`, async () => {
    const environ = toEnviron(post("a".repeat(100)));
    const input = new AskedInput(environ["wsgi.input"]);
    const result = await runApplication(limited(echo(read), { maxBodySize: 20 }), { ...environ, "wsgi.input": input });
    assert.equal(result.status, "413 Content Too Large");
    assert(input.asked.length > 0);
    assert(input.asked.every((size) => size <= 21), String(input.asked));
  });
}

test("limitBody and validator give a block for read1 where the input of another server has none", async () => {
  const asked: number[] = [];
  const given = [bytes("abc"), bytes("def")];
  const plain = inputOf(EMPTY);
  const read = (size: number) => {
    asked.push(size);
    return Promise.resolve(given.shift() ?? EMPTY);
  };
  const input = { ...plain, read, read1: undefined } as unknown as InputStream;
  const app = echo(reading((input) => until(() => input.read1(asked.length === 0 ? 5 : undefined))));
  const environ = { ...toEnviron(post("")), "wsgi.input": input };
  const { body } = await runApplication(limited(app), environ);
  assert.equal(text(body), "abcdef");
  assert.deepEqual(asked, [5, 65_536, 65_536]);
});

/** Sends without end until there is an answer, or nobody to take it. */
async function flood(client: Client, block: string): Promise<void> {
  for (let sent = 0; sent < 500 && !client.isClosed && client.received === ""; sent++) await client.send(block);
}

test("limitBody gives 413 to a client that goes on to send what it declared", async () => {
  let called = 0;
  const app: Application = () => {
    called++;
    return [];
  };
  await using server = start(limited(app));
  const client = await Client.connect(server);
  await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: ${512 * MIB}\r\n\r\n`);
  await flood(client, "a".repeat(64 * KIB));
  await client.until(/Content Too Large\n/);
  assert.equal(parse(client.received).status, 413);
  assert.equal(called, 0);
  assert.equal(server.errors.text, "");
  client.leave();
});

test("limitBody gives 413 to a client that goes on to send without a length", async () => {
  const app = echo(READERS[0]![1]);
  await using server = start(limited(app));
  const client = await Client.connect(server);
  await client.send("POST / HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n");
  await flood(client, `10000\r\n${"a".repeat(64 * KIB)}\r\n`);
  await client.until(/Content Too Large\n/);
  assert.equal(parse(client.received).status, 413);
  assert.equal(server.errors.text, "");
  client.leave();
});

for (const length of ["", "x"]) {
  test(`limitBody counts what is read where CONTENT_LENGTH is "${length}"`, async () => {
    const counting = limitBody(async (environ, startResponse) => {
      const body = await environ["wsgi.input"].read();
      ok(startResponse);
      return [body];
    }, { maxBodySize: 2 });
    const sent = toEnviron(new Request("http://test.example/", { method: "POST", body: "five!" }));
    const { status } = await runApplication(counting, { ...sent, CONTENT_LENGTH: length });
    assert.equal(status, "413 Content Too Large");
  });
}

test("limitBody passes on that nothing at all was thrown", async () => {
  const { response, errors } = await answer(limited(() => Promise.reject(undefined)), post(LINES));
  assert.equal(response.status, 500);
  assert.match(errors.text, /^Application failed on POST \/: undefined/);
});
