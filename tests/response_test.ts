/**
 * The body that an application returns: its kinds, its chunks, and what becomes of what is no body.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { type Application, type Environ, type ResponseBody, toFetch } from "../mod.ts";
import {
  answer,
  asked,
  bytes,
  Client,
  EMPTY,
  ErrorLog,
  exchange,
  FAILURE,
  MemoryFile,
  ok,
  parse,
  PLAIN,
  request,
  settle,
  SlowFile,
  start,
  startPatient,
  stream,
  text,
  within,
} from "./support.ts";

// Every kind of body

class Countdown implements Iterable<Uint8Array>, Iterator<Uint8Array> {
  #left = 3;

  [Symbol.iterator](): this {
    return this;
  }

  next(): IteratorResult<Uint8Array> {
    return this.#left > 0 ? { done: false, value: bytes(`${this.#left--}`) } : { done: true, value: undefined };
  }
}

class SlowCountdown implements AsyncIterable<Uint8Array> {
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    const countdown = new Countdown();
    return {
      next: async () => {
        await settle();
        return countdown.next();
      },
    };
  }
}

function byteStream(...chunks: string[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    type: "bytes",
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk === undefined) controller.close();
      else controller.enqueue(bytes(chunk));
    },
  });
}

const BODIES: Record<string, [make: (wrap: Environ["wsgi.file_wrapper"]) => ResponseBody, expected: string]> = {
  "an array of one chunk": [() => [bytes("one")], "one"],
  "an array of several chunks": [() => [bytes("one "), bytes("two "), bytes("three")], "one two three"],
  "an empty array": [() => [], ""],
  "an array with empty chunks": [() => [EMPTY, bytes("one"), EMPTY, bytes("two"), EMPTY], "onetwo"],
  "an array of empty chunks": [() => [EMPTY, EMPTY], ""],
  "an array of views on one buffer": [() => {
    const buffer = bytes("0123456789");
    return [buffer.subarray(8), buffer.subarray(2, 4)];
  }, "8923"],
  "an array of the same chunk": [() => new Array(3).fill(bytes("ab")), "ababab"],
  "an array iterator": [() => [bytes("one "), bytes("two")].values(), "one two"],
  "a set": [() => new Set([bytes("one "), bytes("two")]), "one two"],
  "an empty set": [() => new Set<Uint8Array>(), ""],
  "the values of a map": [() => new Map([[1, bytes("one")]]).values(), "one"],
  "an iterator class": [() => new Countdown(), "321"],
  "an iterator of empty chunks": [() => [EMPTY, EMPTY].values(), ""],
  "an iterator with empty chunks": [() => [EMPTY, bytes("one"), EMPTY, EMPTY, bytes("two"), EMPTY].values(), "onetwo"],
  "an async iterable": [() => new SlowCountdown(), "321"],
  "an iterable of the same chunk": [() => new Array(3).fill(bytes("ab")).values(), "ababab"],
  "a generator": [function* () {
    yield bytes("one ");
    yield bytes("two");
  }, "one two"],
  "an async generator": [async function* () {
    await settle();
    yield bytes("one ");
    yield EMPTY;
    await settle();
    yield bytes("two");
  }, "one two"],
  "a stream": [() => stream("one ", "two"), "one two"],
  "an empty stream": [() => stream(), ""],
  "a stream of bytes": [() => byteStream("one ", "two"), "one two"],
  "the body of a response": [() => new Response("one two").body!, "one two"],
  "a stream of a blob": [() => new Blob(["one two"]).stream(), "one two"],
  "a piped stream": [
    () => stream("one ", "two").pipeThrough(new TransformStream<Uint8Array, Uint8Array>()),
    "one two",
  ],
  "a wrapped file": [(wrap) => wrap(new MemoryFile("one two")), "one two"],
  "a wrapped file in blocks": [(wrap) => wrap(new MemoryFile("one two"), 2), "one two"],
  "a wrapped empty file": [(wrap) => wrap(new MemoryFile("")), ""],
  "a wrapped file that is read later": [(wrap) => wrap(new SlowFile(new MemoryFile("one two")), 3), "one two"],
  "a wrapped blob": [(wrap) => wrap(new Blob(["one ", "two"])), "one two"],
  "a wrapped slice of a blob": [(wrap) => wrap(new Blob(["one two"]).slice(4)), "two"],
  "a wrapped stream": [(wrap) => wrap(stream("one ", "two")), "one two"],
};

for (const [kind, [make, expected]] of Object.entries(BODIES)) {
  test(`${kind} is a body`, async () => {
    const { response, errors } = await answer((environ, startResponse) => {
      ok(startResponse);
      return make(environ["wsgi.file_wrapper"]);
    });
    assert.equal(response.status, 200);
    assert.equal(await response.text(), expected);
    assert.equal(errors.text, "");
  });
}

test("every kind of body can be sent", async () => {
  const kinds = Object.keys(BODIES);
  await using server = start((environ, startResponse) => {
    ok(startResponse);
    const [make] = BODIES[kinds[Number(environ.QUERY_STRING)]!]!;
    return make(environ["wsgi.file_wrapper"]);
  });
  for (const [index, kind] of kinds.entries()) {
    const reply = await exchange(server, request(`/?${index}`));
    assert.equal(reply.status, 200, kind);
    assert.equal(reply.body, BODIES[kind]![1], kind);
    assert.ok(reply.complete, kind);
    assert.deepEqual(
      reply.headers.filter(([name]) => name === "content-type"),
      PLAIN.map(([, type]) => [
        "content-type",
        type,
      ]),
    );
  }
  assert.equal(server.errors.text, "");
});

test("a body may be promised", async () => {
  const { response } = await answer((_environ, startResponse) => {
    ok(startResponse);
    return Promise.resolve(new Set([bytes("promised")]));
  });
  assert.equal(await response.text(), "promised");
});

test("a chunk belongs to the application again when the next one is asked for", async () => {
  await using server = start(function* (_environ, startResponse) {
    ok(startResponse);
    const buffer = new Uint8Array(1);
    for (const byte of bytes("reused")) {
      buffer[0] = byte;
      yield buffer;
    }
  });
  const { body, complete } = await exchange(server, request("/"));
  assert.equal(body, "reused");
  assert.ok(complete);
});

test("a chunk keeps its buffer", async () => {
  const chunk = bytes("constant");
  for (let time = 0; time < 2; time++) {
    for (const body of [[chunk], [chunk].values()]) {
      const { response } = await answer((_environ, startResponse) => {
        ok(startResponse);
        return body;
      });
      assert.equal(await response.text(), "constant");
    }
  }
  assert.equal(text(chunk), "constant");
});

test("an array exists as a whole and is sent as a whole, with its length", async () => {
  await using server = startPatient((_environ, startResponse) => {
    ok(startResponse);
    return ["one ", "", "two ", "three"].map(bytes);
  });
  const { body, headers } = await exchange(server, request("/"));
  assert.equal(body, "one two three");
  assert.equal(new Map(headers).get("content-length"), "13");
  assert.equal(new Map(headers).has("transfer-encoding"), false);
});

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

// What is no body

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
    report: /a chunk is undefined, expected a Uint8Array/,
  },
  { name: "an array with a hole", body: () => new Array(1), report: /a chunk is undefined, expected a Uint8Array/ },
  { name: "an array of text", body: () => ["text"], report: /a chunk is "text", expected a Uint8Array/ },
  { name: "an array of arrays", body: () => [[bytes("chunk")]], report: /a chunk is an Array, expected a Uint8Array/ },
  {
    name: "a Proxy of a chunk",
    body: () => [new Proxy(bytes("chunk"), {})],
    report: /a chunk is (?:a Uint8Array|an object), expected a Uint8Array/,
  },
  {
    name: "an object that inherits from Uint8Array",
    body: () => [Object.create(Uint8Array.prototype, { length: { value: 3 } })],
    report: /a chunk is (?:a Uint8Array|an object), expected a Uint8Array/,
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

test("a close that is not a function is reported, and the response is complete", async () => {
  const { ask, errors } = asked((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([bytes("sent")], { close: "text" as never });
  });
  assert.equal(await (await ask()).text(), "sent");
  assert.match(errors.text, /TypeError/);
});

test("a return that is not a function is reported, and the body is closed", async () => {
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

// A synchronous application that returns an array costs no promise and no stream

test("the handler of a synchronous application that returns an array gives a Response, not a promise", async () => {
  const bodies: Record<string, { init?: RequestInit; status?: string; body: Uint8Array[]; text: string }> = {
    "one chunk": { body: [bytes("one")], text: "one" },
    "several chunks": { body: [bytes("one"), bytes("two")], text: "onetwo" },
    "no chunk": { body: [], text: "" },
    "a request with a body": { init: { method: "POST", body: "form" }, body: [bytes("one")], text: "one" },
    "HEAD": { init: { method: "HEAD" }, body: [bytes("one")], text: "" },
    "204": { status: "204 No Content", body: [], text: "" },
  };
  for (const [name, { init = {}, status = "200 OK", body, text }] of Object.entries(bodies)) {
    const handler = toFetch((_environ, startResponse) => {
      startResponse(status, PLAIN);
      return body;
    });
    const response = handler(new Request("http://localhost/", init));
    assert.ok(response instanceof Response, name);
    assert.equal(await response.text(), text, name);
  }
});

test("the handler of a synchronous application that fails gives a Response, not a promise", () => {
  const handler = toFetch(() => {
    throw new Error("failed by design");
  }, { errors: new ErrorLog() });
  const response = handler(new Request("http://localhost/"));
  assert.ok(response instanceof Response);
  assert.equal(response.status, 500);
});

test("a synchronous application that returns an array costs no promise and no stream", () => {
  const handler = toFetch((_environ, startResponse) => {
    startResponse("200 OK", PLAIN);
    return [bytes("one"), bytes("two")];
  });
  const { Promise: NativePromise, ReadableStream: NativeStream } = globalThis;
  const made: string[] = [];
  const requests = [1, 2].map(() => new Request("http://localhost/"));
  globalThis.Promise = class<Value> extends NativePromise<Value> {
    constructor(executor: ConstructorParameters<typeof NativePromise<Value>>[0]) {
      super(executor);
      made.push("promise");
    }
  } as PromiseConstructor;
  globalThis.ReadableStream = class<Value> extends NativeStream<Value> {
    constructor(...args: ConstructorParameters<typeof NativeStream<Value>>) {
      super(...args);
      made.push("stream");
    }
  } as typeof ReadableStream;
  try {
    for (const request of requests) assert.ok(handler(request) instanceof Response);
  } finally {
    Object.assign(globalThis, { Promise: NativePromise, ReadableStream: NativeStream });
  }
  assert.deepEqual(made, []);
});
