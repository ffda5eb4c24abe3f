/**
 * How a response leaves: nothing before its first chunk, each chunk before the next is asked for, and no faster than the client reads.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import {
  type Application,
  type Environ,
  limitConcurrency,
  type ResponseBody,
  type Server,
  type StartResponse,
  toFetch,
} from "../mod.ts";
import {
  bytes,
  Client,
  EMPTY,
  Event,
  exchange,
  HELD,
  HERE,
  KIB,
  ok,
  parse,
  pingable,
  PLAIN,
  type Reply,
  request,
  RUNTIME,
  settle,
  start,
  startPatient,
  text,
} from "./support.ts";

// Nothing is committed before the first chunk that is not empty

/** How an application may come to its first chunk. `failing` happens after two empty chunks. */
const BEGINNINGS: Record<string, (startResponse: StartResponse, failing: () => Uint8Array) => ResponseBody> = {
  *generator(startResponse, failing) {
    ok(startResponse);
    yield EMPTY;
    yield EMPTY;
    yield failing();
  },
  async *asyncGenerator(startResponse, failing) {
    ok(startResponse);
    yield EMPTY;
    yield EMPTY;
    yield await failing();
  },
  *lateGenerator(startResponse, failing) {
    yield EMPTY;
    ok(startResponse);
    yield EMPTY;
    yield failing();
  },
  readableStream(startResponse, failing) {
    ok(startResponse);
    let turn = 0;
    return new ReadableStream({
      pull: (controller) => controller.enqueue(turn++ < 2 ? EMPTY : failing()),
    }, { highWaterMark: 0 });
  },
};

for (const [name, begin] of Object.entries(BEGINNINGS)) {
  test(`a failure after empty chunks is a whole 500: ${name}`, async () => {
    await using server = startPatient((_environ, startResponse) =>
      begin(startResponse, () => {
        throw new Error("too early to tell");
      })
    );
    const reply = await exchange(server, request("/"));
    assert.equal(reply.status, 500);
    assert.equal(reply.complete, true);
    assert.doesNotMatch(reply.body, /too early/);
    assert.match(server.errors.text, /too early to tell/);
  });

  test(`startResponse with an error after empty chunks replaces status and headers: ${name}`, async () => {
    await using server = startPatient((_environ, startResponse) =>
      begin(startResponse, () => {
        startResponse(
          "404 Not Found",
          [["Content-Type", "text/html"], ["X-Replaced", "yes"]],
          new Error("no such thing"),
        );
        return bytes("sorry");
      })
    );
    const reply = await exchange(server, request("/"));
    assert.equal(reply.status, 404);
    assert.equal(reply.body, "sorry");
    const headers = new Map(reply.headers);
    assert.equal(headers.get("x-replaced"), "yes");
    assert.equal(headers.get("content-type"), "text/html");
  });
}

test("a failure after writing nothing but an empty chunk is a whole 500", async () => {
  await using server = startPatient(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    await write(EMPTY);
    throw new Error("too early to tell");
  });
  assert.equal((await exchange(server, request("/"))).status, 500);
});

test("an application that throws after startResponse is answered with 500, and nothing is there to be closed", async () => {
  await using server = startPatient((_environ, startResponse) => {
    ok(startResponse, ["X-Started", "yes"]);
    throw new Error("out of order");
  });
  const reply = await exchange(server, request("/"));
  assert.equal(reply.status, 500);
  assert.equal(new Map(reply.headers).has("x-started"), false);
  assert.equal(server.errors.text.split("out of order").length, 2);
});

test("no byte of the head leaves before a generator yields more than empty chunks", async () => {
  let ready = false;
  await using server = startPatient(pingable(function* (_environ, startResponse) {
    ok(startResponse);
    while (!ready) yield EMPTY;
    yield bytes("ready");
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  for (let count = 0; count < 5; count++) await exchange(server, request("/ping"));
  assert.equal(client.received, "");
  ready = true;
  assert.equal(parse(await client.end()).body, "ready");
});

test("no byte of the head leaves before an async generator has its first chunk that is not empty", async () => {
  const waiting = new Event("an application that waits");
  const ready = new Event("permission to go on");
  await using server = startPatient(pingable(async function* (_environ, startResponse) {
    ok(startResponse);
    yield EMPTY;
    waiting.happen();
    await ready.wait();
    yield bytes("ready");
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await waiting.wait();
  for (let count = 0; count < 5; count++) await exchange(server, request("/ping"));
  assert.equal(client.received, "");
  ready.happen();
  assert.equal(parse(await client.end()).body, "ready");
});

// Each chunk leaves before the next is asked for

/** The chunks one, two and three on the wire. */
const CHUNKED = "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n";

for (
  const [what, wait] of Object.entries({
    "a timer": () => new Promise((resolve) => setTimeout(resolve, 5)),
    "the body of the request": (environ: Environ) => environ["wsgi.input"].read(),
  })
) {
  test(`chunks that are there at once leave one by one, also when the first has waited for ${what}`, async () => {
    await using server = start(async function* (environ, startResponse) {
      ok(startResponse);
      await wait(environ);
      yield* [bytes("one"), bytes("two"), bytes("three")];
    });
    for (let round = 0; round < 5; round++) {
      const client = await Client.connect(server);
      await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"], body: "abc" }));
      await settle();
      await client.send("def");
      const received = await client.end();
      assert.equal(received.slice(received.indexOf("\r\n\r\n") + 4), CHUNKED);
    }
  });
}

/** A client in a thread of its own: it receives while this thread is busy, and counts the `>` that have arrived. */
class Bystander {
  readonly #count = new Int32Array(new SharedArrayBuffer(4));
  readonly #worker: Worker;
  readonly #received = new Event<string>("the response, in another thread");

  constructor(server: Server) {
    const program = `
      const { parentPort, workerData: { port, host, request, count } } = require("node:worker_threads");
      const socket = require("node:net").connect(port, host, () => socket.write(request));
      let received = "";
      socket.on("data", (data) => {
        received += data.toString("latin1");
        Atomics.store(count, 0, received.split(">").length - 1);
        Atomics.notify(count, 0);
      });
      socket.on("close", () => parentPort.postMessage(received));
    `;
    const workerData = { port: server.port, host: server.hostname, request: request("/"), count: this.#count };
    this.#worker = new Worker(program, { eval: true, workerData });
    this.#worker.on("message", (received: string) => this.#received.happen(received));
  }

  /** Blocks this thread until a number of chunks has arrived; tells whether they have. */
  has(chunks: number): boolean {
    for (;;) {
      const count = Atomics.load(this.#count, 0);
      if (count >= chunks) return true;
      if (Atomics.wait(this.#count, 0, count, 3000) === "timed-out") return false;
    }
  }

  async end(): Promise<Reply> {
    const reply = parse(await this.#received.wait());
    await this.#worker.terminate();
    return reply;
  }
}

/** The chunks `<0…>`, `<1…>` and so on: `check` is called whenever the next one is asked for. */
const ONE_BY_ONE: Record<string, (size: number, check: (asked: number) => void) => ResponseBody> = {
  *generator(size, check) {
    for (let turn = 0; turn < 4; turn++) {
      check(turn);
      yield bytes(`<${String(turn).repeat(size)}>`);
    }
  },
  async *asyncGenerator(size, check) {
    for (let turn = 0; turn < 4; turn++) {
      check(turn);
      yield await bytes(`<${String(turn).repeat(size)}>`);
    }
  },
  iterator(size, check) {
    let turn = 0;
    return {
      [Symbol.iterator]: () => ({
        next() {
          check(turn);
          if (turn === 4) return { done: true, value: undefined };
          return { done: false, value: bytes(`<${String(turn++).repeat(size)}>`) };
        },
      }),
    };
  },
};

for (const [name, make] of Object.entries(ONE_BY_ONE)) {
  for (const size of [1, 100 * KIB]) {
    test(`the client has each chunk of ${size} bytes before the next is asked for: ${name}`, async () => {
      const arrived: boolean[] = [];
      await using server = startPatient((_environ, startResponse) => {
        ok(startResponse);
        return make(size, (asked) => void arrived.push(client.has(asked)));
      });
      const client = new Bystander(server);
      const reply = await client.end();
      assert.deepEqual(new Set(arrived), new Set([true]));
      assert.equal(reply.complete, true);
      assert.equal(reply.body, [0, 1, 2, 3].map((turn) => `<${String(turn).repeat(size)}>`).join(""));
    });
  }
}

test("a chunk that was written has left before write() is called again, if it was waited for", async () => {
  const arrived: boolean[] = [];
  await using server = startPatient(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    for (let turn = 0; turn < 3; turn++) {
      await write(bytes(`<${turn}>`));
      arrived.push(client.has(turn + 1));
    }
    return [];
  });
  const client = new Bystander(server);
  assert.equal((await client.end()).body, "<0><1><2>");
  assert.deepEqual(arrived, [true, true, true]);
});

/** Applications whose first chunk comes late. Each tells whether a chunk has arrived before the next one is asked for. */
const LATE: Record<string, (startResponse: StartResponse, ask: (chunks: number) => void) => ReturnType<Application>> = {
  async write(startResponse, ask) {
    await later();
    const write = startResponse("200 OK", PLAIN);
    for (let turn = 0; turn < 3; turn++) {
      await write(bytes(`<${turn}>`));
      ask(turn + 1);
    }
    return [];
  },
  async *"an async generator"(startResponse, ask) {
    await later();
    ok(startResponse);
    for (let turn = 0; turn < 3; turn++) {
      yield bytes(`<${turn}>`);
      ask(turn + 1);
    }
  },
  async *"an async generator that begins with an empty chunk"(startResponse, ask) {
    await later();
    ok(startResponse);
    yield EMPTY;
    await later();
    for (let turn = 0; turn < 3; turn++) {
      yield bytes(`<${turn}>`);
      ask(turn + 1);
    }
  },
  async "a generator behind a promise"(startResponse, ask) {
    await later();
    ok(startResponse);
    return (function* () {
      for (let turn = 0; turn < 3; turn++) {
        yield bytes(`<${turn}>`);
        ask(turn + 1);
      }
    })();
  },
};

/** Waits for a timer, so that the response is not there at once. */
function later(): Promise<unknown> {
  return new Promise((resolve) => setTimeout(resolve));
}

for (const [name, app] of Object.entries(LATE)) {
  test(`a late first chunk has left before the next one is asked for: ${name}`, async () => {
    const arrived: boolean[] = [];
    await using server = startPatient((_environ, startResponse) =>
      app(startResponse, (chunks) => arrived.push(client.has(chunks)))
    );
    const client = new Bystander(server);
    assert.equal((await client.end()).body, "<0><1><2>");
    assert.deepEqual(arrived, [true, true, true]);
  });
}

test("the first chunk of a request that waited for its turn has two turns before the next one is asked for", async () => {
  const go = new Event("the end of the first request");
  const asked: number[] = [];
  let turn = 0;
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    return environ.PATH_INFO === "/first" ? go.wait().then(() => []) : counting();
  };
  function* counting() {
    for (let chunk = 0; chunk < 2; chunk++) {
      asked.push(turn);
      yield bytes("<>");
    }
  }
  const handler = toFetch(limitConcurrency(app, { max: 1 }));
  const [first, second] = ["first", "second"].map((path) => handler(new Request(`${HERE}${path}`)));
  go.happen();
  await first;
  const response = await second!;
  const count = () => {
    turn++;
    if (asked.length < 2) setImmediate(count);
  };
  setImmediate(count);
  assert.equal(await response.text(), "<><>");
  assert.equal(asked[1]! - asked[0]!, 2);
});

test("chunks are neither merged nor reordered on the wire", async () => {
  for (const generate of [generator, asyncGenerator]) {
    await using server = startPatient((_environ, startResponse) => {
      ok(startResponse);
      return generate();
    });
    const client = await Client.connect(server);
    await client.send(request("/"));
    assert.match(await client.end(), /\r\n\r\n1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n$/, generate.name);
  }

  function* generator() {
    for (const chunk of ["a", "", "bc", "d"]) yield bytes(chunk);
  }
  async function* asyncGenerator() {
    for (const chunk of ["a", "", "bc", "d"]) yield await bytes(chunk);
  }
});

test("next() is not called while another next() is pending, nor before the chunk has been taken", async () => {
  let asked = 0;
  const waiting = new Event("a second call of next()");
  const ready = new Event("permission to go on");
  await using server = startPatient(pingable((_environ, startResponse) => {
    ok(startResponse);
    return {
      [Symbol.asyncIterator]: () => ({
        async next() {
          asked++;
          if (asked === 2) {
            waiting.happen();
            await ready.wait();
          }
          return asked < 4 ? { done: false, value: bytes(`<${asked}>`) } : { done: true, value: undefined };
        },
      }),
    };
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/<1>/);
  await waiting.wait();
  for (let count = 0; count < 5; count++) await exchange(server, request("/ping"));
  assert.equal(asked, 2);
  ready.happen();
  assert.equal(parse(await client.end()).body, "<1><2><3>");
  assert.equal(asked, 4);
});

/** Waits until a measure stays the same over 25 requests, or is above `most`. */
async function standstill(server: Server, most: number, measure: () => number): Promise<number> {
  for (let answered = 0, before = measure(); answered < 25 && before <= most; answered++) {
    await exchange(server, request("/ping"));
    if (measure() !== before) answered = 0;
    before = measure();
  }
  return measure();
}

test("a reader that asks for chunks before it has others gets them in order, each asked for by itself", async () => {
  let pending = 0;
  let most = 0;
  const app: Application = (_environ, startResponse) => {
    ok(startResponse);
    const letters = [..."abcd"];
    const next = async () => {
      most = Math.max(most, ++pending);
      await settle();
      pending--;
      const letter = letters.shift();
      return letter ? { done: false, value: bytes(letter) } as const : { done: true, value: undefined } as const;
    };
    return { [Symbol.asyncIterator]: () => ({ next }) };
  };
  const reader = (await toFetch(app)(new Request(HERE))).body!.getReader();
  const reads: Promise<string>[] = [];
  for (let read = 0; read < 5; read++) {
    reads.push(reader.read().then(({ value }) => value ? text(value) : "end"));
    await settle(); // a stream is free for the next question before it has answered
  }
  assert.deepEqual(await Promise.all(reads), ["a", "b", "c", "d", "end"]);
  assert.equal(most, 1);
});

test("while a client does not read a large chunk, no more than the runtime takes in is asked for", async () => {
  for (const generate of [generator, asyncGenerator]) {
    let asked = 0;
    await using server = startPatient(pingable((_environ, startResponse) => {
      ok(startResponse);
      return generate(() => asked++);
    }));
    const client = await Client.connect(server);
    client.pause();
    await client.send(request("/"));
    // Deno takes a chunk out of the stream as soon as it begins to send the one before.
    assert.equal(await standstill(server, 10, () => asked), RUNTIME === "deno" ? 2 : 1, generate.name);
    client.leave();
  }

  function* generator(onAsked: () => void) {
    for (;;) {
      onAsked();
      yield new Uint8Array(HELD);
    }
  }
  async function* asyncGenerator(onAsked: () => void) {
    for (;;) {
      onAsked();
      yield await new Uint8Array(HELD);
    }
  }
});

// No more is read or sent than the other side takes

test("a slow reader holds the application back, and lets it go on", async () => {
  const block = new Uint8Array(64 * KIB);
  const kinds: Record<string, (startResponse: StartResponse, onTaken: () => void) => ReturnType<Application>> = {
    *generator(startResponse, onTaken) {
      ok(startResponse);
      for (;; onTaken()) yield block;
    },
    async *asyncGenerator(startResponse, onTaken) {
      ok(startResponse);
      for (;; onTaken()) yield await block;
    },
    async writing(startResponse, onTaken) {
      const write = startResponse("200 OK", PLAIN);
      for (;; onTaken()) await write(block);
    },
  };
  for (const [name, make] of Object.entries(kinds)) {
    let produced = 0;
    let goal = Infinity;
    const further = new Event(`${name} to go on`);
    await using server = startPatient(pingable((_environ, startResponse) =>
      make(startResponse, () => {
        produced += block.length;
        if (produced > goal) further.happen();
      })
    ));
    const client = await Client.connect(server);
    client.pause();
    await client.send(request("/"));
    const held = await standstill(server, HELD, () => produced);
    assert.ok(held > 0 && held < HELD, `${name} has produced ${held} bytes`);
    goal = 2 * held;
    client.resume();
    await further.wait();
    client.leave();
  }
});

test("an application that does not read holds a fast client back, and lets it go on", async () => {
  const go = new Event("permission to read");
  await using server = startPatient(pingable(async (environ, startResponse) => {
    await go.wait();
    const size = (await environ["wsgi.input"].read()).length;
    ok(startResponse);
    return [bytes(String(size))];
  }));
  const size = 2 * HELD;
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: [`Content-Length: ${size}`] }));
  let sent = 0;
  const sending = (async () => {
    for (const block = new Uint8Array(64 * KIB); sent < size; sent += block.length) await client.send(block);
  })();
  const held = await standstill(server, HELD, () => sent);
  assert.ok(held < HELD, `the client has sent ${held} bytes`);
  go.happen();
  await sending;
  assert.equal(parse(await client.end()).body, String(size));
});
