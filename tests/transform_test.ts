/**
 * Middleware that changes what passes through it: `compress`, `conditional`, `limitBody` and `timeout`.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import process from "node:process";
import { test } from "node:test";
import { brotliDecompressSync, constants, gunzipSync, inflateSync } from "node:zlib";
import {
  type Application,
  type ApplicationLike,
  compress,
  type CompressOptions,
  conditional,
  type Environ,
  type FetchContext,
  fromFetch,
  type HeaderList,
  type InputStream,
  limitBody,
  type LimitBodyOptions,
  type Middleware,
  pipeline,
  type ResponseBody,
  runApplication,
  type StartResponse,
  testEnviron,
  timeout,
  toEnviron,
  toRequest,
  validator,
  type Write,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  Event,
  exchange,
  MemoryFile,
  ok,
  parse,
  PLAIN,
  reportsIn,
  request,
  RUNTIME,
  settle,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

const EMPTY = new Uint8Array(0);
const KIB = 1024;
const MIB = 1024 * KIB;
/** Text that is worth compressing. */
const TEXT = "All work and no play makes Jack a dull boy.\n".repeat(100);
const URL_OF_ALL = "http://test.example/";

const COMPRESS: Middleware = (app) => compress(app);
const LIMIT_BODY: Middleware = (app) => limitBody(app);
const TIMEOUT: Middleware = (app) => timeout(app);
const ALL: Middleware = (app) => pipeline(app, validator, TIMEOUT, validator, conditional, validator, COMPRESS);

/** Each middleware, and a stack of them, with a request that it has something to do with. */
const TRANSFORMS: [name: string, middleware: Middleware, headers: string[]][] = [
  ["compress", COMPRESS, ["Accept-Encoding: gzip"]],
  ["compress without a client that wants it", COMPRESS, []],
  ["conditional", conditional, ['If-None-Match: "none"']],
  ["limitBody", LIMIT_BODY, []],
  ["timeout", TIMEOUT, []],
  ["a stack of middleware", ALL, ["Accept-Encoding: br"]],
];

/** A middleware with a validator on either side. */
function watched(middleware: Middleware, app: ApplicationLike): Application {
  return validator(middleware(validator(app)));
}

function get(headers: Record<string, string> = {}, method = "GET"): Request {
  return new Request(URL_OF_ALL, { method, headers });
}

/** A request whose length is not declared. */
function post(body: string): Request {
  return new Request(URL_OF_ALL, { method: "POST", body });
}

function fetchHeaders(headers: string[]): Record<string, string> {
  return Object.fromEntries(headers.map((line) => line.split(": ", 2)));
}

/** An application that gives a body of any kind. */
function giving(body: (environ: Environ) => ResponseBody, ...headers: HeaderList): Application {
  return (environ, startResponse) => {
    ok(startResponse, ...headers);
    return body(environ);
  };
}

/** A promise for which the clock of a test waits, and nothing else. */
function never<Value>(): Promise<Value> {
  return new Promise<Value>(() => {});
}

/** A body of given chunks after which nothing comes, and no end, that says what is done with it. */
function unending(log: string[], chunks: Uint8Array[], closed?: Event, asked?: Event): ResponseBody {
  const left = [...chunks];
  return {
    [Symbol.asyncIterator]: () => ({
      next() {
        const value = left.shift();
        if (value) return Promise.resolve({ done: false, value });
        asked?.happen();
        return never<IteratorResult<Uint8Array>>();
      },
      return() {
        log.push("return");
        return Promise.resolve({ done: true, value: undefined });
      },
    }),
    close() {
      log.push("close");
      closed?.happen();
    },
  };
}

/** A body that says what is done with it, and never comes to its end when it is told to. */
function stubborn(log: string[], closed?: Event): ResponseBody {
  return {
    [Symbol.asyncIterator]: () => ({
      next: () => never<IteratorResult<Uint8Array>>(),
      return() {
        log.push("return");
        return never<IteratorResult<Uint8Array>>();
      },
    }),
    close() {
      log.push("close");
      closed?.happen();
    },
  };
}

/** Waits until the signal aborts, and gives the reason. */
async function aborted({ "fetch.context": context }: Environ): Promise<unknown> {
  const { signal } = context!;
  const event = new Event("the signal");
  signal.addEventListener("abort", () => event.happen(), { once: true });
  if (!signal.aborted) await event.wait();
  return signal.reason;
}

// All of them.

for (const [name, middleware, headers] of TRANSFORMS) {
  const failures: [name: string, app: Application][] = [
    ["throws", () => {
      throw new Error("Out of order");
    }],
    ["throws after startResponse", (_environ, startResponse) => {
      ok(startResponse);
      throw new Error("Out of order");
    }],
    ["rejects", async (_environ, startResponse) => {
      ok(startResponse);
      await settle();
      throw new Error("Out of order");
    }],
    ["fails as a generator before its first chunk", async function* (_environ, startResponse) {
      ok(startResponse);
      await settle();
      yield EMPTY;
      throw new Error("Out of order");
    }],
    ["fails as a synchronous generator", function* (_environ, startResponse) {
      ok(startResponse);
      yield EMPTY;
      throw new Error("Out of order");
    }],
    ["calls startResponse a second time", (_environ, startResponse) => {
      ok(startResponse);
      startResponse("201 Created", [...PLAIN, ["X-Reason", "Out of order"]]);
      return [];
    }],
    ["calls startResponse a second time as a generator", async function* (_environ, startResponse) {
      ok(startResponse);
      startResponse("201 Created", [...PLAIN, ["X-Reason", "Out of order"]]);
      yield await Promise.resolve(EMPTY);
    }],
  ];
  for (const [how, app] of failures) {
    test(`${name} passes on the error of an application that ${how}`, async () => {
      const { response, errors } = await answer(watched(middleware, app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.equal(reportsIn(errors).length, 1, errors.text);
      assert.match(errors.text, /Out of order|startResponse was called again/);
    });
  }

  for (const [how, app] of failures) {
    test(`${name} passes on, without a validator, the error of an application that ${how}`, async () => {
      const { response, errors } = await answer(middleware(app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.equal(reportsIn(errors).length, 1, errors.text);
      assert.match(errors.text, /Out of order|Cannot start the response again|startResponse was called again/);
    });
  }

  const mistakes: [name: string, status: string, headers: HeaderList, expected: RegExp][] = [
    ["a control character", "200 OK", [["Content-Type", "text/plain"], ["X-Bad", "a\nb"]], /"X-Bad"/],
    ["a length that is none", "200 OK", [["Content-Type", "text/plain"], ["Content-Length", "abc"]], /Content-Length/],
    ["a status without a reason", "200", [["Content-Type", "text/plain"]], /"200"/],
    ["a hop-by-hop header", "200 OK", [["Content-Type", "text/plain"], ["Connection", "close"]], /"Connection"/],
  ];
  for (const [what, status, wrong, expected] of mistakes) {
    test(`${name} lets an application that starts with ${what} know at once`, async () => {
      const caught = new Event<unknown>("the error of startResponse");
      const app: Application = (_environ, startResponse) => {
        try {
          startResponse(status, wrong);
        } catch (error) {
          caught.happen(error);
          startResponse("400 Bad Request", PLAIN, error);
        }
        return [bytes("Answered")];
      };
      const { response, errors } = await answer(unchecked(middleware(app)), get(fetchHeaders(headers)));
      assert.equal(errors.text, "");
      assert.equal(response.status, 400);
      assert.match(String(await caught.wait()), expected);
    });
  }

  test(`${name} lets an application replace what it has begun`, async () => {
    const app: Application = (_environ, startResponse) => {
      ok(startResponse, ["X-First", "yes"]);
      startResponse("503 Service Unavailable", [...PLAIN, ["X-Second", "yes"]], new Error("No database"));
      return [bytes("Later")];
    };
    const { response } = await answer(watched(middleware, app), get(fetchHeaders(headers)));
    assert.equal(response.status, 503);
    assert.equal(response.headers.get("X-First"), null);
    assert.equal(response.headers.get("X-Second"), "yes");
    assert.equal(await response.text(), "Later");
  });

  test(`${name} passes on what is written, before what is returned`, async () => {
    const gate = new Event("the first chunk at the client");
    const app: Application = async (_environ, startResponse) => {
      const write: Write = startResponse("200 OK", PLAIN);
      await write(bytes("written, "));
      await gate.wait();
      return [bytes("returned")];
    };
    await using server = start(watched(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await client.until(/written, /);
    gate.happen();
    assert.equal(parse(await client.end()).body, "written, returned");
    assert.equal(server.errors.text, "");
  });

  test(`${name} sends the first byte before the second chunk exists, and closes once at the end`, async () => {
    const gate = new Event("the first chunk at the client");
    const log: string[] = [];
    const chunks = async function* () {
      yield bytes("first");
      await gate.wait();
      log.push("second");
      yield bytes("second");
    };
    const app = giving(() => Object.assign(chunks(), { close: () => void log.push("close") }));
    await using server = start(watched(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await client.until(/\r\n\r\n[\da-f]+\r\n[^]/i);
    assert.deepEqual(log, []);
    gate.happen();
    assert(parse(await client.end()).complete);
    await settle();
    assert.deepEqual(log, ["second", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} aborts a response that fails after its first chunk, and closes once`, async () => {
    const log: string[] = [];
    const chunks = async function* () {
      try {
        yield bytes("first");
        await settle();
        throw new Error("Out of order");
      } finally {
        log.push("finally");
      }
    };
    const app = giving(() => Object.assign(chunks(), { close: () => void log.push("close") }));
    await using server = start(watched(middleware, app));
    const reply = await exchange(server, request("/", { headers }));
    assert.equal(reply.status, 200);
    assert.equal(reply.complete, false);
    await server.errors.matches(/Out of order/);
    await settle();
    assert.deepEqual(log, ["finally", "close"]);
    assert.equal(reportsIn(server.errors).length, 1);
  });

  test(`${name} ends the application at once when the client leaves while a chunk is awaited`, async () => {
    const log: string[] = [];
    const closed = new Event("close");
    const asked = new Event("the second chunk to be asked for");
    const app = giving(() => unending(log, [bytes("first")], closed, asked));
    await using server = start(watched(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await client.until(/\r\n\r\n[\da-f]+\r\n[^]/i);
    await asked.wait();
    client.leave();
    await closed.wait();
    await settle();
    assert.deepEqual(log, ["return", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} ends the application at once when the client leaves before the first chunk`, async () => {
    const log: string[] = [];
    const closed = new Event("close");
    const asked = new Event("the first chunk to be asked for");
    const app: Application = (environ) => {
      assert.equal(environ["fetch.context"]!.signal.aborted, false); // or Deno does not tell
      return unending(log, [], closed, asked);
    };
    await using server = start(watched(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await asked.wait();
    client.leave();
    await closed.wait();
    await settle();
    assert.deepEqual(log, ["return", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} cancels a ReadableStream when the client leaves while a chunk is awaited`, async () => {
    const asked = new Event("the second chunk to be asked for");
    const cancelled = new Event("cancel");
    let pulls = 0;
    let cancels = 0;
    const app = giving(() =>
      new ReadableStream<Uint8Array>({
        pull(controller) {
          if (pulls++ === 0) return controller.enqueue(bytes("first"));
          asked.happen();
          return never();
        },
        cancel() {
          cancels++;
          cancelled.happen();
        },
      }, { highWaterMark: 0 })
    );
    await using server = start(watched(middleware, app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers }));
    await asked.wait();
    client.leave();
    await cancelled.wait();
    await settle();
    assert.equal(cancels, 1);
    assert.equal(server.errors.text, "");
  });

  test(`${name} answers HEAD without a body, and closes once`, async () => {
    const log: string[] = [];
    const chunks = function* () {
      try {
        yield bytes(TEXT);
        yield bytes(TEXT);
      } finally {
        log.push("finally");
      }
    };
    const app = giving(() => Object.assign(chunks(), { close: () => void log.push("close") }));
    await using server = start(watched(middleware, app));
    const reply = await exchange(server, request("/", { method: "HEAD", headers }), { head: true });
    assert.equal(reply.status, 200);
    assert.equal(reply.body, "");
    await settle();
    assert.deepEqual(log, ["finally", "close"]);
    assert.equal(server.errors.text, "");
  });

  test(`${name} does not ask for a chunk ahead of the server`, async () => {
    let asked = 0;
    const app = giving(() => ({
      [Symbol.iterator]: () => ({
        next: () => ({ done: false, value: bytes(String(asked++)) }),
      }),
    }));
    const { response } = await answer(watched(middleware, app), get(fetchHeaders(headers)));
    const reader = response.body!.getReader();
    await reader.read();
    await settle();
    assert(asked <= 2, `asked for ${asked} chunks`); // the runtime may have asked for its second
    await reader.cancel();
  });

  test(`${name} refuses what is no application`, () => {
    for (const wrong of [undefined, null, "app", {}, [bytes("body")]]) {
      // It is the mistake that is tested.
      assert.throws(() => middleware(wrong as unknown as ApplicationLike), TypeError);
    }
  });

  test(`${name} lets the server refuse what is no body`, async () => {
    for (const wrong of [undefined, null, 7, "body", bytes("body"), {}]) {
      const app: Application = (_environ, startResponse) => {
        ok(startResponse);
        return wrong as unknown as ResponseBody;
      };
      const { response, errors } = await answer(middleware(app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.match(errors.text, /expected an iterable/);
    }
  });

  const wrongs: [name: string, body: (chunk: Uint8Array) => ResponseBody][] = [
    ["an array", (chunk) => [chunk]],
    ["a stream", (chunk) => new Set([chunk])],
  ];
  for (const [what, body] of wrongs) {
    test(`${name} lets the server refuse text in place of bytes in ${what}`, async () => {
      const app = giving(() => body(TEXT as unknown as Uint8Array));
      const { response, errors } = await answer(middleware(app), get(fetchHeaders(headers)));
      assert.equal(response.status, 500);
      assert.match(errors.text, /expected a Uint8Array/);
    });
  }
}

const HOLDING: [name: string, middleware: Middleware][] = [["compress", COMPRESS], ["conditional", conditional]];
for (const [name, middleware] of HOLDING) {
  test(`${name} passes on what the server's startResponse throws, and ends the body without waiting`, async () => {
    const log: string[] = [];
    const app = middleware(giving(() => stubborn(log)));
    const call = async () =>
      await app(testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }), () => {
        throw new Error("Refused");
      });
    await assert.rejects(within(call(), "the error"), /Refused/);
    assert.deepEqual(log, ["return", "close"]);
  });
}

// compress.

interface Coding {
  /** Decodes all of a body, which has to be whole. */
  decode(body: Uint8Array): Uint8Array;
  /** Decodes as much as there is of a body. */
  decodeBeginning(body: Uint8Array): Uint8Array;
}

const SYNC = { finishFlush: constants.Z_SYNC_FLUSH };
const CODINGS: Record<string, Coding> = {
  br: {
    decode: (body) => brotliDecompressSync(body),
    decodeBeginning: (body) => brotliDecompressSync(body, { finishFlush: constants.BROTLI_OPERATION_FLUSH }),
  },
  gzip: { decode: (body) => gunzipSync(body), decodeBeginning: (body) => gunzipSync(body, SYNC) },
  deflate: { decode: (body) => inflateSync(body), decodeBeginning: (body) => inflateSync(body, SYNC) },
};

/** Bytes that were received as Latin-1. */
function received(body: string): Uint8Array {
  return Buffer.from(body, "latin1");
}

function compressed(app: ApplicationLike, options: CompressOptions = {}): Application {
  return watched((app) => compress(app, options), app);
}

/** Answers in process, and decodes the body by what its headers say. */
async function decoded(
  app: ApplicationLike,
  accept = "gzip",
): Promise<{ response: Response; body: Uint8Array; coding: string | null; errors: string }> {
  const { response, errors } = await answer(app, get({ "Accept-Encoding": accept }));
  const coding = response.headers.get("Content-Encoding");
  const body = await within(response.bytes(), "the body");
  const { decode } = CODINGS[coding ?? ""] ?? { decode: (body: Uint8Array) => body };
  return { response, body: decode(body), coding, errors: errors.text };
}

const ACCEPTED: [accept: string | undefined, coding: string | null][] = [
  [undefined, null],
  ["", null],
  ["br", "br"],
  ["gzip", "gzip"],
  ["deflate", "deflate"],
  ["GZip", "gzip"],
  ["gzip, deflate, br", "br"],
  ["gzip, deflate, br, zstd", "br"],
  ["deflate, gzip", "gzip"],
  ["*", "br"],
  ["gzip;q=0.5", "gzip"],
  ["gzip;q=1.0, br;q=0.9", "gzip"],
  ["gzip;q=0.001, br;q=0", "gzip"],
  ["br;q=0.2,gzip;q=0.4,deflate;q=0.8", "deflate"],
  ["gzip ; q=0.4 , br ; q=0.5", "br"],
  ["gzip;Q=0.5", "gzip"],
  ["br;q=0, *", "gzip"],
  ["*;q=0", null],
  ["*;q=0.5, br;q=0.1", "gzip"],
  ["gzip, *;q=0", "gzip"],
  ["identity", null],
  ["identity, gzip;q=0.5", null],
  ["identity;q=0.5, gzip", "gzip"],
  ["identity;q=0.5, *", "br"],
  ["identity;q=0", null],
  ["identity;q=0, gzip;q=0", null],
  ["zstd, compress", null],
  ["gzip;q=0", null],
  ["gzip;q=0.000", null],
  ["gzip;q=two", null],
  ["gzip;q=", null],
  ["gzip;q=2", null],
  ["gzip;q=-1", null],
  [", ,gzip,", "gzip"],
  [";q=1, gzip", "gzip"],
  ["gzippp, xgzip, br2", null],
  ["constructor, __proto__", null],
];

for (const [accept, coding] of ACCEPTED) {
  test(`compress answers Accept-Encoding ${JSON.stringify(accept)} with ${coding ?? "what it was given"}`, async () => {
    const app = compressed(giving(() => [bytes(TEXT)]));
    const { response, errors } = await answer(app, get(accept === undefined ? {} : { "Accept-Encoding": accept }));
    assert.equal(response.headers.get("Content-Encoding"), coding);
    assert.equal(response.headers.get("Vary"), "Accept-Encoding");
    const body = await response.bytes();
    assert.equal(text(coding ? CODINGS[coding]!.decode(body) : body), TEXT);
    assert.equal(Number(response.headers.get("Content-Length") ?? body.length), body.length);
    assert.equal(errors.text, "");
  });
}

/** What no coding makes smaller: 300 KiB of a sequence that does not repeat. */
const NOISE = (() => {
  const noise = new Uint8Array(300 * KIB);
  for (let index = 0, state = 1; index < noise.length; index++) {
    state = Math.imul(state, 1_664_525) + 1_013_904_223 | 0;
    noise[index] = state >>> 24;
  }
  return noise;
})();

const PARTS = [bytes(TEXT), EMPTY, bytes("x"), NOISE, EMPTY, bytes("end")];
const WHOLE = new Uint8Array(Buffer.concat(PARTS));

class Instance {
  readonly #startResponse: StartResponse;

  constructor(_environ: Environ, startResponse: StartResponse) {
    this.#startResponse = startResponse;
  }

  *[Symbol.iterator](): Generator<Uint8Array> {
    ok(this.#startResponse);
    yield* PARTS;
  }
}

const LATE: Application = async function* (_environ, startResponse) {
  yield EMPTY;
  ok(startResponse);
  for (const part of PARTS) {
    await Promise.resolve();
    yield part;
  }
};
const BODIES: [name: string, app: ApplicationLike][] = [
  ["an array", giving(() => PARTS)],
  ["an array with close", giving(() => Object.assign([...PARTS], { close() {} }))],
  ["a promise of an array", async (_environ, startResponse) => {
    await Promise.resolve();
    ok(startResponse);
    return PARTS;
  }],
  ["a set", giving(() => new Set(PARTS))],
  ["a synchronous generator", function* (_environ, startResponse) {
    ok(startResponse);
    yield* PARTS;
  }],
  ["an asynchronous generator that starts late", LATE],
  ["a ReadableStream", giving(() => ReadableStream.from(PARTS))],
  ["a wrapped file", giving((environ) => environ["wsgi.file_wrapper"](new MemoryFile(TEXT.repeat(50)), KIB))],
  ["a wrapped Blob", giving((environ) => environ["wsgi.file_wrapper"](new Blob(PARTS.map((part) => part.slice()))))],
  ["an instance of a class", Instance],
  ["an object with a method", { handle: (_environ, startResponse) => (ok(startResponse), PARTS) }],
  ["a stream of a declared length", giving(() => new Set(PARTS), ["Content-Length", String(WHOLE.length)])],
];

for (const coding of Object.keys(CODINGS)) {
  for (const [what, app] of BODIES) {
    test(`compress gives the bytes of ${what} by ${coding}`, async () => {
      const { response, body, coding: used, errors } = await decoded(compressed(app), coding);
      assert.equal(used, coding);
      const expected = what === "a wrapped file" ? bytes(TEXT.repeat(50)) : WHOLE;
      assert.equal(body.length, expected.length);
      assert(Buffer.from(body).equals(expected));
      assert.equal(response.headers.get("Vary"), "Accept-Encoding");
      assert.equal(errors, "");
    });
  }

  test(`compress flushes each event by ${coding} before the next exists`, async () => {
    const gates = [new Event("the first event at the client"), new Event("the second event at the client")];
    const app: Application = async function* (_environ, startResponse) {
      startResponse("200 OK", [["Content-Type", "text/event-stream"], ["Cache-Control", "no-cache"]]);
      yield bytes("data: one\n\n");
      await gates[0]!.wait();
      yield bytes("data: two\n\n");
      await gates[1]!.wait();
      yield NOISE;
    };
    await using server = start(compressed(app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: [`Accept-Encoding: ${coding}`] }));
    const { decode, decodeBeginning } = CODINGS[coding]!;
    await client.until(/\r\n\r\n[\da-f]+\r\n[^]+\r\n$/i);
    const first = received(parse(client.received).body);
    assert.equal(text(decodeBeginning(first)), "data: one\n\n");
    const length = client.received.length;
    gates[0]!.happen();
    await client.until(new RegExp(`^[^]{${length}}[\\da-f]+\r\n[^]+\r\n$`, "i"));
    const second = received(parse(client.received).body);
    assert.equal(text(decodeBeginning(second)), "data: one\n\ndata: two\n\n");
    gates[1]!.happen();
    const reply = parse(await client.end());
    assert(reply.complete);
    assert.equal(decode(received(reply.body)).length, 22 + NOISE.length);
    assert.equal(server.errors.text, "");
  });

  test(`compress gives a large chunk by ${coding} as a whole`, async () => {
    const gate = new Event("the large chunk at the client");
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield NOISE;
      await gate.wait();
      yield bytes("end");
    };
    const { response } = await answer(compressed(app), get({ "Accept-Encoding": coding }));
    const reader = response.body!.getReader();
    const { value } = await within(reader.read(), "the first chunk");
    const begun = CODINGS[coding]!.decodeBeginning(value!);
    assert.equal(begun.length, NOISE.length);
    gate.happen();
    await reader.cancel();
  });

  test(`compress makes by ${coding} no complete body of one that fails`, async () => {
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes(TEXT);
      await settle();
      throw new Error("Out of order");
    };
    await using server = start(compressed(app));
    const reply = await exchange(server, request("/", { headers: [`Accept-Encoding: ${coding}`] }));
    assert.equal(reply.complete, false);
    // Deno's brotliDecompressSync takes a beginning for the whole.
    if (coding !== "br" || RUNTIME === "bun") assert.throws(() => CODINGS[coding]!.decode(received(reply.body)));
  });

  test(`compress gives by ${coding} a body that can be decoded where there are no bytes`, async () => {
    const bodies: ResponseBody[] = [new Set<Uint8Array>(), new Set([EMPTY]), [], [EMPTY]];
    for (const body of bodies) {
      const given = await decoded(compressed(giving(() => body), { threshold: 0 }), coding);
      assert.equal(given.body.length, 0);
      assert.equal(given.errors, "");
    }
  });

  test(`compress begins anew by ${coding} when an error replaces the response after an empty chunk`, async () => {
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield await Promise.resolve(EMPTY);
      startResponse("500 Internal Server Error", PLAIN, new Error("Out of order"));
      yield bytes("Sorry");
    };
    const { response, body, errors } = await decoded(compressed(app), coding);
    assert.equal(errors, "");
    assert.equal(response.status, 500);
    assert.equal(text(body), "Sorry");
  });
}

test("compress begins anew when a generator replaces the response before its first chunk", async () => {
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse, ["ETag", '"one"']);
    startResponse("500 Internal Server Error", PLAIN, new Error("Out of order"));
    yield bytes("Sorry");
  };
  const { response, body, coding } = await decoded(compressed(app));
  assert.equal(response.status, 500);
  assert.equal(response.headers.get("ETag"), null);
  assert.equal(coding, "gzip");
  assert.equal(text(body), "Sorry");
});

test("compress begins anew when a stream that was begun before it was returned is replaced", async () => {
  const app: Application = (_environ, startResponse) => {
    ok(startResponse);
    return (function* () {
      startResponse("500 Internal Server Error", PLAIN, new Error("Out of order"));
      yield bytes("Sorry");
    })();
  };
  const { response, body, coding } = await decoded(compressed(app));
  assert.equal(response.status, 500);
  assert.equal(coding, "gzip");
  assert.equal(text(body), "Sorry");
});

test("compress leaves alone what replaces a response and is not to be compressed", async () => {
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse);
    startResponse("200 OK", [["Content-Type", "image/png"]], new Error("No text"));
    yield bytes(TEXT);
  };
  const { coding, body } = await decoded(compressed(app));
  assert.equal(coding, null);
  assert.equal(text(body), TEXT);
});

test("compress gives the error back when it comes after the first chunk, and the response is aborted", async () => {
  const failure = new Error("Out of order");
  const caught = new Event<unknown>("the error given back");
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes(TEXT);
    await settle();
    try {
      startResponse("500 Internal Server Error", PLAIN, failure);
    } catch (error) {
      caught.happen(error);
      throw error;
    }
  };
  await using server = start(compressed(app));
  const reply = await exchange(server, request("/", { headers: ["Accept-Encoding: gzip"] }));
  assert.equal(await caught.wait(), failure);
  assert.equal(reply.status, 200);
  assert.equal(reply.complete, false);
  assert.equal(text(gunzipSync(received(reply.body), SYNC)), TEXT);
});

test("compress commits nothing by an empty chunk", async () => {
  const asked = new Event("the second chunk to be asked for");
  const gate = new Event("the test to look");
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield EMPTY;
    asked.happen();
    await gate.wait();
    yield bytes(TEXT);
  };
  await using server = start(compressed(app));
  const client = await Client.connect(server);
  await client.send(request("/", { headers: ["Accept-Encoding: gzip"] }));
  await asked.wait();
  await settle();
  assert.equal(client.received, "");
  gate.happen();
  assert.equal(text(gunzipSync(received(parse(await client.end()).body))), TEXT);
});

const SIZES: [name: string, size: number, isCompressed: boolean][] = [
  ["one byte below the threshold", 99, false],
  ["the threshold", 100, true],
  ["one byte above the threshold", 101, true],
];
for (const [name, size, isCompressed] of SIZES) {
  const content = bytes("a".repeat(size));
  const halves = [content.slice(0, 50), content.slice(50)];
  const declared: [name: string, value: string] = ["Content-Length", String(size)];
  const bodies: [name: string, app: Application][] = [
    ["an array", giving(() => [content])],
    ["an array of two chunks", giving(() => halves)],
    ["an array of declared length", giving(() => halves, declared)],
    ["a stream of declared length", giving(() => new Set(halves), declared)],
  ];
  for (const [what, app] of bodies) {
    test(`compress ${isCompressed ? "compresses" : "leaves alone"} ${what} at ${name}`, async () => {
      const { response, coding, body } = await decoded(compressed(app, { threshold: 100 }));
      assert.equal(coding, isCompressed ? "gzip" : null);
      assert.equal(response.headers.get("Vary"), "Accept-Encoding");
      assert.equal(body.length, size);
    });
  }
}

test("compress compresses from 1024 bytes on, if nothing else is said", async () => {
  assert.equal((await decoded(compressed(giving(() => [new Uint8Array(1023)])))).coding, null);
  assert.equal((await decoded(compressed(giving(() => [new Uint8Array(1024)])))).coding, "gzip");
});

test("compress compresses a stream of unknown length, however short", async () => {
  const { coding, body } = await decoded(compressed(giving(() => new Set([bytes("a")]))));
  assert.equal(coding, "gzip");
  assert.equal(text(body), "a");
});

test("compress refuses a threshold that is no number of bytes", () => {
  const wrongs: number[] = [NaN, -1, "large" as unknown as number];
  for (const threshold of wrongs) assert.throws(() => compress(() => [], { threshold }), /option "threshold"/);
});

const TYPE: HeaderList = [["Content-Type", "text/plain"], ["Content-Length", String(TEXT.length)], ["ETag", '"one"']];
const LEFT_ALONE: [name: string, status: string, headers: HeaderList][] = [
  ["what is encoded already", "200 OK", [...TYPE, ["Content-Encoding", "zstd"]]],
  ["what is encoded twice", "200 OK", [...TYPE, ["content-encoding", "gzip, br"]]],
  ["a part", "206 Partial Content", [...TYPE, ["Content-Range", "bytes 0-9/20"]]],
  ["several parts", "206 Partial Content", [["Content-Type", "text/x-parts"], ...TYPE.slice(1)]],
  ["what has a Content-Range", "200 OK", [...TYPE, ["Content-Range", "bytes 0-9/20"]]],
  ["what must not be transformed", "200 OK", [...TYPE, ["Cache-Control", "public, no-transform"]]],
  ["what must not be transformed, in capitals", "200 OK", [...TYPE, ["CACHE-CONTROL", "NO-TRANSFORM"]]],
  ["what must not be transformed, of two headers", "200 OK", [
    ...TYPE,
    ["Cache-Control", "no-transform"],
    ["Cache-Control", "public"],
  ]],
  ["an image", "200 OK", [["Content-Type", "image/png"], ...TYPE.slice(1)]],
  ["a video", "200 OK", [["Content-Type", "video/mp4"], ...TYPE.slice(1)]],
  ["an archive", "200 OK", [["Content-Type", "application/zip"], ...TYPE.slice(1)]],
  ["a web font", "200 OK", [["Content-Type", "font/woff2"], ...TYPE.slice(1)]],
  ["bytes of any kind", "200 OK", [["Content-Type", "application/octet-stream"], ...TYPE.slice(1)]],
];
for (const [name, status, headers] of LEFT_ALONE) {
  const bodies: [name: string, body: ResponseBody][] = [
    ["as an array", [bytes(TEXT)]],
    ["as a stream", new Set([bytes(TEXT)])],
  ];
  for (const [how, body] of bodies) {
    test(`compress leaves alone ${name}, ${how}`, async () => {
      const app: Application = (_environ, startResponse) => {
        startResponse(status, headers);
        return body;
      };
      const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip, br" }));
      assert.deepEqual(result.headers, headers);
      assert.equal(text(result.body), TEXT);
    });
  }
}

for (const status of ["204 No Content", "304 Not Modified"]) {
  test(`compress gives no body to ${status}`, async () => {
    const app: Application = (_environ, startResponse) => {
      startResponse(status, [["X-Kept", "yes"]]);
      return new Set<Uint8Array>();
    };
    const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
    assert.equal(result.status, status);
    assert.equal(result.body.length, 0);
    assert(!result.headers.some(([name]) => name === "Content-Encoding"));
    assert.deepEqual(result.headers[0], ["X-Kept", "yes"]);
  });
}

const MEDIA = [
  "text/html; charset=utf-8",
  "TEXT/CSS",
  "text/event-stream",
  "application/json",
  "application/javascript",
  "application/problem+json; charset=utf-8",
  "application/xml",
  "application/wasm",
  "image/svg+xml",
];
for (const type of MEDIA) {
  test(`compress compresses ${type}`, async () => {
    const app: Application = (_environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", type]]);
      return [bytes(TEXT)];
    };
    assert.equal((await decoded(compressed(app))).coding, "gzip");
  });
}

const VARIES: [name: string, given: string[], expected: string[]][] = [
  ["adds Vary", [], ["Accept-Encoding"]],
  ["adds to another Vary", ["Origin"], ["Origin, Accept-Encoding"]],
  ["does not add to Vary twice", ["Accept-Encoding"], ["Accept-Encoding"]],
  ["does not add to Vary twice, whatever the case", ["origin, ACCEPT-ENCODING"], ["origin, ACCEPT-ENCODING"]],
  ["does not add to Vary of everything", ["*"], ["*"]],
  ["keeps each of several Vary", ["Origin", "Cookie"], ["Origin, Cookie, Accept-Encoding"]],
  ["is not misled by a longer name in Vary", ["X-Accept-Encoding"], ["X-Accept-Encoding, Accept-Encoding"]],
];
for (const [name, given, expected] of VARIES) {
  for (const accept of ["gzip", ""]) {
    test(`compress ${name} for a client that accepts ${accept || "nothing"}`, async () => {
      const app = giving(() => [bytes(TEXT)], ...given.map((value): [string, string] => ["Vary", value]));
      const { headers } = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: accept }));
      assert.deepEqual(headers.filter(([name]) => name === "Vary").map(([, value]) => value), expected);
    });
  }
}

const REPRESENTATIONS: [name: string, body: () => ResponseBody][] = [
  ["an array", () => [bytes(TEXT)]],
  ["a stream", () => new Set([bytes(TEXT)])],
];
for (const [what, body] of REPRESENTATIONS) {
  test(`compress makes the headers of ${what} right`, async () => {
    const app = giving(
      body,
      ["ETag", '"one"'],
      ["Accept-Ranges", "bytes"],
      ["Content-Length", String(TEXT.length)],
      ["Set-Cookie", "a=1"],
      ["Set-Cookie", "b=2"],
    );
    const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
    assert.equal(text(gunzipSync(result.body)), TEXT);
    const length = result.headers.find(([name]) => name === "Content-Length")?.[1] ?? String(result.body.length);
    assert.equal(length, String(result.body.length));
    assert.deepEqual(result.headers.filter(([name]) => name !== "Content-Length").sort(), [
      ["Content-Encoding", "gzip"],
      ["Content-Type", "text/plain"],
      ["ETag", 'W/"one"'],
      ["Set-Cookie", "a=1"],
      ["Set-Cookie", "b=2"],
      ["Vary", "Accept-Encoding"],
    ]);
  });
}

test("compress keeps a weak ETag", async () => {
  const { response } = await decoded(compressed(giving(() => [bytes(TEXT)], ["ETag", 'W/"one"'])));
  assert.equal(response.headers.get("ETag"), 'W/"one"');
});

test("compress replaces a Content-Encoding that says identity", async () => {
  const app = giving(() => [bytes(TEXT)], ["Content-Encoding", "identity"]);
  const { headers } = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
  assert.deepEqual(headers.filter(([name]) => name === "Content-Encoding"), [["Content-Encoding", "gzip"]]);
});

test("compress compresses once, however often it is applied", async () => {
  const app = watched(COMPRESS, compress(giving(() => new Set([bytes(TEXT)]))));
  const { response, body } = await decoded(app);
  assert.equal(response.headers.get("Content-Encoding"), "gzip");
  assert.equal(response.headers.get("Vary"), "Accept-Encoding");
  assert.equal(text(body), TEXT);
});

test("compress gives HEAD the headers of GET", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse, ["Content-Length", String(TEXT.length)], ["ETag", '"one"']);
    return environ.REQUEST_METHOD === "HEAD" ? [] : [bytes(TEXT)];
  };
  await using server = start(compressed(app));
  const headers = ["Accept-Encoding: gzip"];
  const head = await exchange(server, request("/", { method: "HEAD", headers }), { head: true });
  const full = new Map((await exchange(server, request("/", { headers }))).headers);
  for (const [name, value] of head.headers) {
    if (name !== "date" && name !== "transfer-encoding") assert.equal(full.get(name), value, name);
  }
  const names = head.headers.map(([name]) => name);
  for (const name of ["content-encoding", "etag", "vary"]) assert(names.includes(name), name);
});

test("compress closes an array once", async () => {
  let closed = 0;
  const app = giving(() => Object.assign([bytes(TEXT)], { close: () => void closed++ }));
  await decoded(compressed(app));
  assert.equal(closed, 1);
});

test("compress does not complete a stream that is shorter than it declares", async () => {
  const app = giving(() => new Set([bytes(TEXT)]), ["Content-Length", String(2 * TEXT.length)]);
  await using server = start(compress(app));
  const reply = await exchange(server, request("/", { headers: ["Accept-Encoding: gzip"] }));
  assert.equal(reply.complete, false);
  await server.errors.matches(/Content-Length/);
});

test("compress counts the leaving of a client that does not read as one end", async () => {
  const log: string[] = [];
  const closed = new Event("close");
  const chunks = function* () {
    try {
      for (;;) yield NOISE;
    } finally {
      log.push("finally");
    }
  };
  const app = giving(() =>
    Object.assign(chunks(), {
      close() {
        log.push("close");
        closed.happen();
      },
    })
  );
  await using server = start(compressed(app));
  const client = await Client.connect(server);
  await client.send(request("/", { headers: ["Accept-Encoding: gzip"] }));
  await client.until(/\r\n\r\n/);
  client.leave();
  await closed.wait();
  await settle();
  assert.deepEqual(log, ["finally", "close"]);
  assert.equal(server.errors.text, "");
});

// conditional.

function tagOf({ headers }: { headers: HeaderList }): string | undefined {
  return headers.find(([name]) => name === "ETag")?.[1];
}

async function conditionally(app: ApplicationLike, environ: Partial<Environ> = {}) {
  return await runApplication(watched(conditional, app), testEnviron(environ));
}

test("conditional gives equal bodies equal tags, however they are cut, and others others", async () => {
  const whole = tagOf(await conditionally(giving(() => [bytes("one two")])));
  assert.match(whole ?? "", /^"[!#-~]+"$/);
  assert.equal(tagOf(await conditionally(giving(() => [bytes("one"), EMPTY, bytes(" two")]))), whole);
  assert.notEqual(tagOf(await conditionally(giving(() => [bytes("one three")]))), whole);
  assert.notEqual(tagOf(await conditionally(giving(() => []))), whole);
});

test("conditional keeps the ETag of the application", async () => {
  const { headers, status } = await conditionally(giving(() => [bytes("one")], ["etag", 'W/"mine"']));
  assert.equal(status, "200 OK");
  assert.deepEqual(headers, [...PLAIN, ["etag", 'W/"mine"']]);
});

const DATE = "Sun, 06 Nov 1994 08:49:37 GMT";
const EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT";
const LATER = "Sun, 06 Nov 1994 08:49:38 GMT";
const TAGGED: HeaderList = [["ETag", '"one"']];
const WEAK: HeaderList = [["ETag", 'W/"one"']];
const DATED: HeaderList = [["Last-Modified", DATE]];
const BOTH: HeaderList = [...TAGGED, ...DATED];

const CONDITIONS: [
  name: string,
  headers: HeaderList,
  match: string | undefined,
  since: string | undefined,
  200 | 304,
][] = [
  ["the tag", TAGGED, '"one"', undefined, 304],
  ["the tag, with spaces around", TAGGED, ' "one" ', undefined, 304],
  ["the tag as a weak one", TAGGED, 'W/"one"', undefined, 304],
  ["a weak tag as a strong one", WEAK, '"one"', undefined, 304],
  ["a weak tag", WEAK, 'W/"one"', undefined, 304],
  ["a list with the tag", TAGGED, '"zero", W/"one","two"', undefined, 304],
  ["a list without the tag", TAGGED, '"zero", "two"', undefined, 200],
  ["any tag", TAGGED, "*", undefined, 304],
  ["any tag where the application has none", [], "*", undefined, 304],
  ["any tag, with spaces around", TAGGED, " * ", undefined, 304],
  ["another tag", TAGGED, '"two"', undefined, 200],
  ["a tag that begins with the tag", TAGGED, '"one-two"', undefined, 200],
  ["a tag in other case", TAGGED, '"ONE"', undefined, 200],
  ["a tag with a comma inside", [["ETag", '"one,two"']], '"zero", "one,two"', undefined, 304],
  ["a part of a tag with a comma inside", [["ETag", '"two"']], '"one,two"', undefined, 200],
  ["the tag without quotes", TAGGED, "one", undefined, 200],
  ["no tag at all", TAGGED, "", undefined, 200],
  ["the time of the change", DATED, undefined, DATE, 304],
  ["a later time", DATED, undefined, LATER, 304],
  ["an earlier time", DATED, undefined, EARLIER, 200],
  ["the time in the form of RFC 850", DATED, undefined, "Sunday, 06-Nov-94 08:49:37 GMT", 304],
  ["no time", DATED, undefined, "", 200],
  ["a time in words", DATED, undefined, "tomorrow", 200],
  ["a year, which is no HTTP date", DATED, undefined, "2099", 200],
  ["a word and a year, which are no HTTP date", DATED, undefined, "foo 2099", 200],
  ["a time where the application has none", TAGGED, undefined, DATE, 200],
  ["a time where the one of the application is none", [["Last-Modified", "once"]], undefined, DATE, 200],
  ["another tag and the time", BOTH, '"two"', DATE, 200],
  ["the tag and an earlier time", BOTH, '"one"', EARLIER, 304],
  ["neither", BOTH, undefined, undefined, 200],
];
for (const [name, headers, match, since, expected] of CONDITIONS) {
  for (const method of ["GET", "HEAD"]) {
    test(`conditional answers ${method} with ${expected} to ${name}`, async () => {
      const { status, body } = await conditionally(giving(() => [bytes("one")], ...headers), {
        REQUEST_METHOD: method,
        ...(match === undefined ? {} : { HTTP_IF_NONE_MATCH: match }),
        ...(since === undefined ? {} : { HTTP_IF_MODIFIED_SINCE: since }),
      });
      assert.equal(status.slice(0, 3), String(expected));
      assert.equal(text(body), expected === 304 ? "" : "one");
    });
  }
}

test("conditional answers 304 with all headers but those of the body", async () => {
  const app = giving(
    () => [bytes("one")],
    ["Content-Length", "3"],
    ["content-language", "en"],
    ["Set-Cookie", "a=1"],
    ["Set-Cookie", "b=2"],
    ["Cache-Control", "no-cache"],
    ["Vary", "Origin"],
    ["Last-Modified", DATE],
    ["Expires", LATER],
    ["Content-Location", "/one"],
    ["Access-Control-Allow-Origin", "*"],
  );
  const tag = tagOf(await conditionally(app))!;
  const { status, headers, body } = await conditionally(app, { HTTP_IF_NONE_MATCH: tag });
  assert.equal(status, "304 Not Modified");
  assert.equal(body.length, 0);
  assert.deepEqual(headers, [
    ["Set-Cookie", "a=1"],
    ["Set-Cookie", "b=2"],
    ["Cache-Control", "no-cache"],
    ["Vary", "Origin"],
    ["Last-Modified", DATE],
    ["Expires", LATER],
    ["Content-Location", "/one"],
    ["Access-Control-Allow-Origin", "*"],
    ["ETag", tag],
  ]);
});

test("conditional answers 304 over the wire, without a length or a type, and the connection goes on", async () => {
  await using server = start(watched(conditional, giving(() => [bytes("one")], ["ETag", '"one"'])));
  const client = await Client.connect(server);
  await client.send('GET / HTTP/1.1\r\nHost: test.example\r\nIf-None-Match: "one"\r\n\r\n');
  await client.until(/\r\n\r\n/);
  const reply = parse(client.received);
  assert.equal(reply.status, 304);
  const names = reply.headers.map(([name]) => name);
  assert(names.includes("etag"));
  for (const name of ["content-length", "content-type", "transfer-encoding"]) assert(!names.includes(name), name);
  client.received = "";
  await client.send(request("/"));
  assert.equal(parse(await client.end()).body, "one");
});

for (const method of ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"]) {
  test(`conditional leaves ${method} alone`, async () => {
    const { status, headers, body } = await conditionally(giving(() => [bytes("one")], ...BOTH), {
      REQUEST_METHOD: method,
      HTTP_IF_NONE_MATCH: "*",
      HTTP_IF_MODIFIED_SINCE: LATER,
    });
    assert.equal(status, "200 OK");
    assert.deepEqual(headers, [...PLAIN, ...BOTH]);
    assert.equal(text(body), "one");
  });
}

for (const status of ["201 Created", "206 Partial Content", "404 Not Found", "500 Internal Server Error"]) {
  test(`conditional leaves ${status} alone`, async () => {
    const app: Application = (_environ, startResponse) => {
      startResponse(status, PLAIN);
      return [bytes("one")];
    };
    const result = await conditionally(app, { HTTP_IF_NONE_MATCH: "*" });
    assert.equal(result.status, status);
    assert.deepEqual(result.headers, PLAIN);
    assert.equal(text(result.body), "one");
  });
}

for (const [what, app] of BODIES.filter(([what]) => !/array|method/.test(what))) {
  test(`conditional leaves ${what} alone`, async () => {
    const headers = { "If-None-Match": "*", "If-Modified-Since": LATER };
    const { response, errors } = await answer(watched(conditional, app), get(headers));
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("ETag"), null);
    const expected = what === "a wrapped file" ? bytes(TEXT.repeat(50)) : WHOLE;
    assert(Buffer.from(await response.bytes()).equals(expected));
    assert.equal(errors.text, "");
  });
}

test("conditional gives back the very stream, of which nothing was read", async () => {
  let asked = 0;
  const stream: ResponseBody = {
    *[Symbol.iterator]() {
      asked++;
      yield bytes("one");
    },
  };
  const environ = testEnviron({ HTTP_IF_NONE_MATCH: "*" });
  const body = await conditional(giving(() => stream))(environ, () => () => Promise.resolve());
  assert.equal(body, stream);
  assert.equal(asked, 0);
});

test("conditional gives a whole body to HEAD the tag that GET gets", async () => {
  const app = giving(() => [bytes("one")]);
  assert.equal(tagOf(await conditionally(app, { REQUEST_METHOD: "HEAD" })), tagOf(await conditionally(app)));
});

const BODILESS: [name: string, body: Uint8Array[]][] = [["no chunk", []], ["an empty chunk", [EMPTY]]];
for (const [what, body] of BODILESS) {
  test(`conditional makes no tag of ${what} in answer to HEAD`, async () => {
    const app = giving(() => body, ["Content-Length", "3"]);
    const { headers } = await conditionally(app, { REQUEST_METHOD: "HEAD" });
    assert.deepEqual(headers, [...PLAIN, ["Content-Length", "3"]]);
  });

  test(`conditional answers HEAD of ${what} with 304 by the tag of the application`, async () => {
    const app = giving(() => body, ...TAGGED);
    const { status } = await conditionally(app, { REQUEST_METHOD: "HEAD", HTTP_IF_NONE_MATCH: '"one"' });
    assert.equal(status, "304 Not Modified");
  });
}

for (const match of ['"none"', "*"]) {
  test(`conditional closes a whole body once where If-None-Match is ${match}`, async () => {
    let closed = 0;
    const app = giving(() => Object.assign([bytes("one")], { close: () => void closed++ }));
    await conditionally(app, { HTTP_IF_NONE_MATCH: match });
    assert.equal(closed, 1);
  });
}

test("conditional waits for what a promise of an application gives", async () => {
  const app: Application = async (_environ, startResponse) => {
    ok(startResponse);
    await settle();
    return [bytes("one")];
  };
  const { status } = await conditionally(app, { HTTP_IF_NONE_MATCH: "*" });
  assert.equal(status, "304 Not Modified");
});

test("conditional leaves alone what was written", async () => {
  const app: Application = async (_environ, startResponse) => {
    await startResponse("200 OK", PLAIN)(bytes("one"));
    return [bytes("two")];
  };
  const { status, headers, body } = await conditionally(app, { HTTP_IF_NONE_MATCH: "*" });
  assert.equal(status, "200 OK");
  assert.deepEqual(headers, PLAIN);
  assert.equal(text(body), "onetwo");
});

const ORDERS: [name: string, app: Application][] = [
  ["compress around conditional", watched(COMPRESS, conditional(giving(() => [bytes(TEXT)])))],
  ["conditional around compress", watched(conditional, compress(giving(() => [bytes(TEXT)])))],
];
for (const [name, app] of ORDERS) {
  test(`${name} answers 304 with the ETag and the Vary of 200`, async () => {
    const first = await answer(app, get({ "Accept-Encoding": "gzip" }));
    assert.equal(first.response.headers.get("Content-Encoding"), "gzip");
    assert.equal(text(gunzipSync(await first.response.bytes())), TEXT);
    const tag = first.response.headers.get("ETag")!;
    const { response } = await answer(app, get({ "Accept-Encoding": "gzip", "If-None-Match": tag }));
    assert.equal(response.status, 304);
    assert.equal(response.headers.get("Content-Encoding"), null);
    // RFC 9110, section 15.4.5. With another tag a cache could not tell which of its responses is still good.
    assert.equal(response.headers.get("Vary"), "Accept-Encoding");
    assert.equal(response.headers.get("ETag"), tag);
  });

  test(`${name} gives another client the body, not a 304, unless the tag says that it is the same text`, async () => {
    const { response } = await answer(app, get({ "If-None-Match": '"other"' }));
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("Vary"), "Accept-Encoding");
    assert.equal(await response.text(), TEXT);
  });
}

// limitBody.

function limited(app: ApplicationLike, options: LimitBodyOptions = {}): Application {
  return watched((app) => limitBody(app, options), app);
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
    const reads = [() => input.read(), () => input.read(1), () => input.readline(), () => input.readlines()];
    for (const read of reads) await read().catch((error) => failures.push(error.status));
    ok(startResponse);
    return [];
  };
  const { response } = await answer(limited(app, { maxBodySize: 3 }), post(LINES));
  assert.equal(response.status, 200);
  assert.deepEqual(failures, [413, 413, 413, 413]);
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

test("limitBody aborts a response of which bytes have left", async () => {
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
      new Request(URL_OF_ALL, { method: "POST", headers }),
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

test("limitBody refuses a limit that is no number of bytes", () => {
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

// timeout.

/** A time in which nothing happens that is to happen. */
const SHORT = 15;

function timed(app: ApplicationLike, milliseconds = SHORT): Application {
  return watched((app) => timeout(app, { milliseconds }), app);
}

/** Waits until an application that was called now and given more time than {@linkcode SHORT} is out of time. */
async function pass(): Promise<void> {
  await answer(timeout(() => never(), { milliseconds: 3 * SHORT }));
}

const SLOW: [name: string, app: ApplicationLike][] = [
  ["a promise", () => never()],
  ["the first chunk of a generator", async function* () {
    await never();
    yield EMPTY;
  }],
  ["another chunk of a generator that has given none but empty ones", async function* () {
    yield EMPTY;
    yield EMPTY;
    await never();
  }],
  ["the first chunk of a ReadableStream", () => new ReadableStream<Uint8Array>({ pull: () => never() })],
  ["the generator that a promise gives", async () => {
    await Promise.resolve();
    return (async function* () {
      await never();
      yield EMPTY;
    })();
  }],
  ["a mounted Fetch handler", fromFetch(() => never())],
];
for (const [what, app] of SLOW) {
  test(`timeout answers 504 when it waits in vain for ${what}`, async () => {
    const { response, errors } = await answer(timed(app));
    assert.equal(response.status, 504);
    assert.equal(await response.text(), "Gateway Timeout\n");
    assert.equal(errors.text, "");
  });
}

test("timeout answers 504 over the wire, and the connection goes on", async () => {
  const app: Application = (environ, startResponse) => {
    if (environ.PATH_INFO === "/slow") return never();
    ok(startResponse);
    return [bytes("one")];
  };
  await using server = start(timed(app));
  const client = await Client.connect(server);
  await client.send("GET /slow HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await client.until(/Gateway Timeout\n/);
  assert.equal(parse(client.received).status, 504);
  client.received = "";
  await client.send(request("/"));
  assert.equal(parse(await client.end()).body, "one");
});

const LATE_STARTS: [name: string, app: (refused: Event<unknown>) => Application][] = [
  ["a promise", (refused) => async (environ, startResponse) => {
    await aborted(environ);
    await settle();
    try {
      ok(startResponse, ["X-Late", "yes"]);
    } catch (error) {
      refused.happen(error);
      throw error;
    }
    return [bytes("late")];
  }],
  ["a generator", (refused) =>
    async function* (environ, startResponse) {
      await aborted(environ);
      await settle();
      try {
        ok(startResponse, ["X-Late", "yes"]);
      } catch (error) {
        refused.happen(error);
        throw error;
      }
      yield bytes("late");
    }],
  ["one that gives an error", (refused) => async (environ, startResponse) => {
    const reason = await aborted(environ);
    try {
      startResponse("500 Internal Server Error", [...PLAIN, ["X-Late", "yes"]], reason);
    } catch (error) {
      refused.happen(error);
      throw error;
    }
    return [bytes("late")];
  }],
];
for (const [what, app] of LATE_STARTS) {
  test(`timeout refuses a late call of startResponse, by ${what}`, async () => {
    const refused = new Event<unknown>("the error of startResponse");
    const { response, errors } = await answer(timed(app(refused)));
    assert.equal(response.status, 504);
    assert.equal(response.headers.get("X-Late"), null);
    assert.equal(await response.text(), "Gateway Timeout\n");
    const error = await refused.wait();
    assert(error instanceof DOMException);
    assert.equal(error.name, "TimeoutError");
    await settle();
    assert.equal(errors.text, "");
  });
}

test("timeout aborts the signal with a TimeoutError, also for who reads it later", async () => {
  const reasons: unknown[] = [];
  const done = new Event("the late end");
  const app: Application = async (environ) => {
    reasons.push(await aborted(environ), environ["fetch.context"]!.signal.reason);
    done.happen();
    return [];
  };
  await answer(timed(app));
  await done.wait();
  assert(reasons[0] instanceof DOMException);
  assert.equal(reasons[0].name, "TimeoutError");
  assert.equal(reasons[1], reasons[0]);
});

test("timeout aborts the signal of a mounted Fetch handler", async () => {
  const reason = new Event<unknown>("the signal of the request");
  const app = fromFetch((request) => {
    request.signal.addEventListener("abort", () => reason.happen(request.signal.reason), { once: true });
    return never();
  });
  const { response } = await answer(timed(app));
  assert.equal(response.status, 504);
  const error = await reason.wait();
  assert(error instanceof DOMException);
  assert.equal(error.name, "TimeoutError");
});

test("timeout does not abort the signal of an application that is in time", async () => {
  const contexts: FetchContext[] = [];
  const app: Application = async (environ, startResponse) => {
    const context = environ["fetch.context"]!;
    contexts.push(context);
    assert.equal(context.signal.aborted, false);
    await Promise.resolve();
    ok(startResponse);
    return [bytes("one")];
  };
  const { response } = await answer(timed(app, 2 * SHORT));
  assert.equal(response.status, 200);
  await pass();
  assert.equal(contexts[0]!.signal.aborted, false);
});

test("timeout lends a signal that still aborts when the client leaves", async () => {
  const called = new Event("the call");
  const left = new Event<unknown>("the signal");
  const app: Application = async (environ, startResponse) => {
    const waiting = aborted(environ);
    called.happen();
    left.happen(await waiting);
    ok(startResponse);
    return [];
  };
  await using server = start(timed(app, 60_000));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await called.wait();
  client.leave();
  const reason = await left.wait();
  assert(reason instanceof DOMException);
  assert.equal(reason.name, "AbortError");
  await settle();
  assert.equal(server.errors.text, "");
});

test("timeout lends a signal that still aborts when the client leaves a stream", async () => {
  const left = new Event<unknown>("the signal");
  const app: Application = async function* (environ, startResponse) {
    const waiting = aborted(environ);
    ok(startResponse);
    yield bytes("one");
    left.happen(await waiting);
  };
  await using server = start(timed(app));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  client.leave();
  const reason = await left.wait();
  assert(reason instanceof DOMException);
  assert.equal(reason.name, "AbortError");
});

test("timeout lends the request, the draining and the waiting of the server", async () => {
  const called = new Event<FetchContext>("the call");
  const gate = new Event("the test to look");
  const app: Application = async (environ, startResponse) => {
    const context = environ["fetch.context"]!;
    called.happen(context);
    await gate.wait();
    context.waitUntil(Promise.reject(new Error("Out of stamps")));
    ok(startResponse);
    return [bytes(context.draining ? "draining" : "open")];
  };
  const server = start(timed(app, 60_000));
  const client = await Client.connect(server);
  await client.send(request("/page"));
  const context = await called.wait();
  assert.equal(new URL(context.request.url).pathname, "/page");
  assert.equal(context.draining, false);
  const stopped = server.shutdown();
  assert.equal(context.draining, true);
  gate.happen();
  assert.equal(parse(await client.end()).body, "draining");
  await within(stopped, "the end of the server");
  assert.match(server.errors.text, /Out of stamps/);
});

test("timeout does without fetch.context", async () => {
  const { "fetch.context": _context, ...environ } = testEnviron();
  const late = await runApplication(timed(() => never()), { ...environ });
  assert.equal(late.status, "504 Gateway Timeout");
});

test("timeout closes what an application returns too late, once", async () => {
  const log: string[] = [];
  const closed = new Event("close");
  const app: Application = async (environ) => {
    await aborted(environ);
    await settle();
    return unending(log, [bytes("late")], closed);
  };
  const { response, errors } = await answer(timed(app));
  assert.equal(response.status, 504);
  await closed.wait();
  await settle();
  assert.deepEqual(log, ["return", "close"]);
  assert.equal(errors.text, "");
});

test("timeout closes an array that an application returns too late, once", async () => {
  let count = 0;
  const closed = new Event("close");
  const app: Application = async (environ) => {
    await aborted(environ);
    return Object.assign([bytes("late")], {
      close() {
        count++;
        closed.happen();
      },
    });
  };
  // A validator below would say that startResponse was not called, which came too late.
  const { response, errors } = await answer(timeout(app, { milliseconds: SHORT }));
  assert.equal(response.status, 504);
  await closed.wait();
  await settle();
  assert.equal(count, 1);
  assert.equal(errors.text, "");
});

test("timeout cancels a ReadableStream that an application returns too late, once", async () => {
  let count = 0;
  const cancelled = new Event("cancel");
  const app: Application = async (environ) => {
    await aborted(environ);
    return new ReadableStream<Uint8Array>({
      cancel() {
        count++;
        cancelled.happen();
      },
    });
  };
  const { response } = await answer(timed(app));
  assert.equal(response.status, 504);
  await cancelled.wait();
  await settle();
  assert.equal(count, 1);
});

test("timeout closes what is returned too late without waiting for its end", async () => {
  const log: string[] = [];
  const closed = new Event("close");
  const app: Application = async (environ) => {
    await aborted(environ);
    return stubborn(log, closed);
  };
  const { response } = await answer(timeout(app, { milliseconds: SHORT }));
  assert.equal(response.status, 504);
  await closed.wait();
  await settle();
  assert.deepEqual(log, ["return", "close"]);
});

/** Calls back when the signal aborts, or a number of microtasks later. */
function atSignal({ "fetch.context": context }: Environ, microtasks: number, work: () => void): void {
  context!.signal.addEventListener("abort", async () => {
    for (let turn = 0; turn < microtasks; turn++) await undefined;
    work();
  }, { once: true });
}

for (const microtasks of [0, 1, 2, 3, 4, 5]) {
  const when = `${microtasks} microtasks after the signal`;

  test(`timeout closes what an application returns ${when}, once`, async () => {
    const log: string[] = [];
    const closed = new Event("close");
    const app: Application = (environ) =>
      new Promise((resolve) => atSignal(environ, microtasks, () => resolve(unending(log, [], closed))));
    const { response, errors } = await answer(timeout(app, { milliseconds: SHORT }));
    assert.equal(response.status, 504);
    assert.equal(await response.text(), "Gateway Timeout\n");
    await closed.wait();
    await settle();
    assert.deepEqual(log, ["return", "close"]);
    assert.equal(errors.text, "");
  });

  test(`timeout answers 504, and reports once, when an application fails ${when}`, async () => {
    const app: Application = (environ) =>
      new Promise((_resolve, reject) => atSignal(environ, microtasks, () => reject(new Error("Cancelled"))));
    const { response, errors } = await answer(timeout(app, { milliseconds: SHORT }));
    assert.equal(response.status, 504);
    await errors.matches(/Cancelled/);
    await settle();
    assert.equal(reportsIn(errors).length, 1, errors.text);
  });

  test(`timeout answers 504 when a body gives its first chunk ${when}`, async () => {
    const app: Application = (environ) => ({
      [Symbol.asyncIterator]: () => ({
        next: () =>
          new Promise((resolve) => atSignal(environ, microtasks, () => resolve({ done: false, value: bytes("late") }))),
      }),
    });
    const { response, errors } = await answer(timeout(app, { milliseconds: SHORT }));
    assert.equal(response.status, 504);
    assert.equal(await response.text(), "Gateway Timeout\n");
    assert.equal(errors.text, "");
  });
}

test("timeout ends a body that waits for its first chunk, once", async () => {
  const log: string[] = [];
  const closed = new Event("close");
  const { response, errors } = await answer(timed(() => unending(log, [EMPTY, EMPTY, EMPTY], closed)));
  assert.equal(response.status, 504);
  await response.text();
  await closed.wait();
  await settle();
  assert.deepEqual(log, ["return", "close"]);
  assert.equal(errors.text, "");
});

test("timeout cancels a ReadableStream that waits for its first chunk, once", async () => {
  let cancels = 0;
  const stream = new ReadableStream<Uint8Array>({ pull: () => never(), cancel: () => void cancels++ });
  const { response } = await answer(timed(() => stream));
  assert.equal(response.status, 504);
  await settle();
  assert.equal(cancels, 1);
});

test("timeout reports that ending a body has failed, and goes on", async () => {
  const unhandled: unknown[] = [];
  const remember = (error: unknown) => void unhandled.push(error);
  process.on("unhandledRejection", remember);
  const stream = new ReadableStream<Uint8Array>({
    pull: () => never(),
    cancel() {
      throw new Error("Out of order");
    },
  });
  const { response, errors } = await answer(timed(() => stream));
  await settle();
  process.off("unhandledRejection", remember);
  assert.equal(response.status, 504);
  assert.deepEqual(unhandled, []);
  await errors.matches(/Out of order/);
});

const LATE_FAILURES: [name: string, app: Application][] = [
  ["a promise", async (environ) => {
    await aborted(environ);
    await settle();
    throw new Error("Out of order");
  }],
  ["a generator", async function* (environ) {
    await aborted(environ);
    await settle();
    yield* [].map(() => EMPTY); // or it would be none
    throw new Error("Out of order");
  }],
  ["the close of a body", async (environ) => {
    await aborted(environ);
    await settle();
    return Object.assign(new Set<Uint8Array>(), {
      close() {
        throw new Error("Out of order");
      },
    });
  }],
];
for (const [what, app] of LATE_FAILURES) {
  test(`timeout reports the late failure of ${what}, once`, async () => {
    const { response, errors } = await answer(timed(app));
    assert.equal(response.status, 504);
    await errors.matches(/Out of order/);
    await settle();
    assert.equal(reportsIn(errors).length, 1, errors.text);
  });
}

const OWN_FAILURES: [name: string, error: (reason: unknown) => unknown][] = [
  ["the reason of the signal", (reason) => reason],
  ["an AbortError", () => new DOMException("The operation was aborted", "AbortError")],
];
for (const [what, error] of OWN_FAILURES) {
  test(`timeout does not report an application that fails with ${what}`, async () => {
    const failed = new Event("the failure");
    const app: Application = async (environ) => {
      const reason = await aborted(environ);
      failed.happen();
      throw error(reason);
    };
    const { response, errors } = await answer(timed(app));
    assert.equal(response.status, 504);
    await failed.wait();
    await settle();
    assert.equal(errors.text, "");
  });
}

const STARTED: [name: string, app: (gate: Event) => Application][] = [
  ["a generator that has given a chunk", (gate) =>
    async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      await gate.wait();
      yield bytes("two");
    }],
  ["a generator that has begun and given none", (gate) =>
    async function* (_environ, startResponse) {
      ok(startResponse);
      await gate.wait();
      yield bytes("onetwo");
    }],
  ["a promise that has begun", (gate) => async (_environ, startResponse) => {
    ok(startResponse);
    await gate.wait();
    return [bytes("onetwo")];
  }],
  ["a promise that has begun a turn later", (gate) => async (_environ, startResponse) => {
    await Promise.resolve();
    ok(startResponse);
    await gate.wait();
    return [bytes("onetwo")];
  }],
  ["an application that has written", (gate) => async (_environ, startResponse) => {
    await Promise.resolve();
    await startResponse("200 OK", PLAIN)(bytes("one"));
    await gate.wait();
    return [bytes("two")];
  }],
];
for (const [what, app] of STARTED) {
  test(`timeout lets ${what} take its time`, async () => {
    const gate = new Event("the time to have passed");
    const answering = answer(timed(app(gate), 2 * SHORT));
    await pass();
    gate.happen();
    const { response, errors } = await answering;
    assert.equal(response.status, 200);
    assert.equal(await response.text(), "onetwo");
    assert.equal(errors.text, "");
  });
}

for (const milliseconds of [2 ** 31, Number.MAX_SAFE_INTEGER, Infinity]) {
  test(`timeout gives an application ${milliseconds} milliseconds, if it is told to`, async () => {
    const gate = new Event("some time to have passed");
    const app: Application = async (_environ, startResponse) => {
      await gate.wait();
      ok(startResponse);
      return [bytes("one")];
    };
    const answering = answer(timed(app, milliseconds));
    await pass();
    gate.happen();
    const { response } = await answering;
    assert.equal(response.status, 200);
  });
}

test("timeout refuses a time that is none", () => {
  const wrongs: number[] = [NaN, -1, "long" as unknown as number];
  for (const milliseconds of wrongs) assert.throws(() => timeout(() => [], { milliseconds }), /option "milliseconds"/);
});

/** A time by which a timer is told from all others. */
const MARK = 123_457;

/** Counts the timers that were set for {@linkcode MARK}, and those of them that are left. */
async function timersOf(run: () => Promise<unknown>): Promise<{ set: number; left: number }> {
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  const left = new Set<unknown>();
  let count = 0;
  const counted = (work: () => void, milliseconds?: number) => {
    const timer = set(work, milliseconds);
    if (milliseconds === MARK) {
      count++;
      left.add(timer);
    }
    return timer;
  };
  globalThis.setTimeout = Object.assign(counted, set);
  globalThis.clearTimeout = (timer) => {
    left.delete(timer);
    clear(timer);
  };
  try {
    await run();
    await settle();
    return { set: count, left: left.size };
  } finally {
    globalThis.setTimeout = set;
    globalThis.clearTimeout = clear;
    for (const timer of left) clear(timer as Parameters<typeof clear>[0]);
  }
}

const TIMED: [name: string, app: ApplicationLike, set: number][] = [
  ["an array", giving(() => [bytes("one")]), 0],
  ["a stream that has begun", giving(() => new Set([bytes("one")])), 0],
  ["an array of an application that has not begun", () => [], 0],
  ["an application that throws", () => {
    throw new Error("Out of order");
  }, 0],
  ["a promise", async (_environ, startResponse) => {
    await settle();
    ok(startResponse);
    return [bytes("one")];
  }, 1],
  ["a promise of an application that has not begun", async () => {
    await settle();
    return [];
  }, 1],
  ["a promise of what is no body", async () => {
    await settle();
    return undefined as unknown as ResponseBody;
  }, 1],
  ["a promise that is rejected", async () => {
    await settle();
    throw new Error("Out of order");
  }, 1],
  ["a generator", function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
  }, 1],
  ["a generator that fails", async function* () {
    await settle();
    yield EMPTY;
    throw new Error("Out of order");
  }, 1],
  ["a generator that does not begin", function* () {
    yield EMPTY;
  }, 1],
];
for (const [what, app, set] of TIMED) {
  test(`timeout sets ${set ? "one timer" : "no timer"} for ${what}, and leaves none`, async () => {
    const timers = await timersOf(async () => {
      const { response } = await answer(timeout(app, { milliseconds: MARK }));
      await response.text();
    });
    assert.deepEqual(timers, { set, left: 0 });
  });
}

test("timeout leaves no timer when the client leaves before the response has begun", async () => {
  const log: string[] = [];
  const closed = new Event("close");
  const asked = new Event("the first chunk to be asked for");
  const app: Application = (environ) => {
    assert.equal(environ["fetch.context"]!.signal.aborted, false); // or Deno does not tell
    return unending(log, [], closed, asked);
  };
  const timers = await timersOf(async () => {
    await using server = start(timeout(app, { milliseconds: MARK }));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await asked.wait();
    client.leave();
    await closed.wait();
  });
  assert.deepEqual(timers, { set: 1, left: 0 });
});

test("timeout leaves a synchronous array what it was: no promise", () => {
  const body = timeout(giving(() => [bytes("one")]))(testEnviron(), () => () => Promise.resolve());
  assert(Array.isArray(body));
});
