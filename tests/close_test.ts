/**
 * `close()` runs exactly once, on every way out, and a generator's `finally` runs.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Application, type HeaderList, type ResponseBody, type Server, toFetch } from "../mod.ts";
import {
  bytes,
  Client,
  contextOf,
  EMPTY,
  ErrorLog,
  Event,
  exchange,
  HELD,
  HERE,
  ok,
  pingable,
  PLAIN,
  reportsIn,
  request,
  RUNTIME,
  settle,
  startPatient,
  stopAnother,
  unchecked,
} from "./support.ts";

type Plot = (turn: number) => Uint8Array | undefined | Promise<Uint8Array | undefined>;

/** How a body comes to its end: by itself, because it is not wanted any more, or by a failure of its own. */
type Fate = "ended" | "stopped" | "failed";

interface Kind {
  isAsync: boolean;
  /** What the body notes, close() apart. */
  notes: Record<Fate, string[]>;
  make(plot: Plot, note: (event: string) => void): ResponseBody;
}

const KINDS: Record<string, Kind> = {
  generator: {
    isAsync: false,
    notes: { ended: ["finally"], stopped: ["finally"], failed: ["finally"] },
    *make(plot, note) {
      try {
        for (let turn = 0;; turn++) {
          const chunk = plot(turn) as Uint8Array | undefined;
          if (!chunk) return;
          yield chunk;
        }
      } finally {
        note("finally");
      }
    },
  },
  asyncGenerator: {
    isAsync: true,
    notes: { ended: ["finally"], stopped: ["finally"], failed: ["finally"] },
    async *make(plot, note) {
      try {
        for (let turn = 0;; turn++) {
          const chunk = await plot(turn);
          if (!chunk) return;
          yield chunk;
        }
      } finally {
        note("finally");
      }
    },
  },
  iterator: {
    isAsync: false,
    notes: { ended: [], stopped: ["return"], failed: [] },
    make(plot, note) {
      let turn = 0;
      return {
        [Symbol.iterator]: () => ({
          next() {
            const value = plot(turn++) as Uint8Array | undefined;
            return value ? { done: false, value } : { done: true, value };
          },
          return() {
            note("return");
            return { done: true, value: undefined };
          },
        }),
      };
    },
  },
  asyncIterable: {
    isAsync: true,
    notes: { ended: [], stopped: ["return"], failed: [] },
    make(plot, note) {
      let turn = 0;
      return {
        [Symbol.asyncIterator]: () => ({
          async next() {
            const value = await plot(turn++);
            return value ? { done: false, value } : { done: true, value };
          },
          return() {
            note("return");
            return Promise.resolve({ done: true, value: undefined });
          },
        }),
      };
    },
  },
  readableStream: {
    isAsync: true,
    notes: { ended: [], stopped: ["cancel"], failed: [] },
    make(plot, note) {
      let turn = 0;
      return new ReadableStream({
        async pull(controller) {
          const chunk = await plot(turn++);
          if (chunk) controller.enqueue(chunk);
          else controller.close();
        },
        cancel: () => note("cancel"),
      }, { highWaterMark: 0 });
    },
  },
};

/** What a way out is told of the world. */
interface Scene {
  server: Server & { errors: ErrorLog };
  /** Sends the request. */
  client: Client;
  closed: Event;
  /** Happens when the body waits. */
  waiting: Event;
  /** Lets a body that waits go on. */
  go: PromiseWithResolvers<void>;
}

interface WayOut {
  method?: string;
  status?: string;
  headers?: HeaderList;
  fate: Fate;
  /** Breaks a rule. */
  isBad?: boolean;
  /** For bodies that can wait. */
  isAsync?: boolean;
  /** Reads the signal, for Deno to tell of a client that leaves before the first chunk. */
  signal?: boolean;
  /** How long the server waits when it is told to stop. */
  shutdownTimeout?: number;
  plot(scene: Scene): Plot;
  act(scene: Scene): Promise<unknown>;
}

/** The chunks in turn, then the end. */
function chunks(...all: string[]): () => Plot {
  return () => (turn) => turn < all.length ? bytes(all[turn]!) : undefined;
}

/** The chunks in turn, then a failure. */
function failing(...all: string[]): () => Plot {
  return () => (turn) => {
    if (turn < all.length) return bytes(all[turn]!);
    throw new Error("failed by design");
  };
}

/** The chunks in turn, then a wait, then chunks for ever. */
function pausing(...all: string[]): (scene: Scene) => Plot {
  return ({ waiting, go }) => async (turn) => {
    if (turn < all.length) return bytes(all[turn]!);
    waiting.happen();
    await go.promise;
    return bytes("too late");
  };
}

/** One chunk for ever. */
function endless(chunk: Uint8Array, onGoing?: (scene: Scene) => void): (scene: Scene) => Plot {
  return (scene) => (turn) => {
    if (turn === 2) onGoing?.(scene);
    return chunk;
  };
}

const ended = ({ client }: Scene) => client.end();

/** Leaves once something was received: in the middle of it, or after it. */
async function leaveAfter({ client, closed }: Scene, received: RegExp): Promise<void> {
  await client.until(received);
  client.pause();
  client.leave();
  await closed.wait();
}

/** Leaves while the application waits, which goes on only after close(). */
async function leaveDuring({ client, closed, waiting, go }: Scene): Promise<void> {
  await waiting.wait();
  client.leave();
  await closed.wait();
  go.resolve();
}

/** Stops the server while the application waits, which goes on only after close(). */
async function stopDuring({ server, closed, waiting, go }: Scene): Promise<void> {
  await waiting.wait();
  const stopped = server.shutdown();
  await closed.wait();
  go.resolve();
  await stopped;
}

const WAYS_OUT: Record<string, WayOut> = {
  "the normal end": { fate: "ended", plot: chunks("one", "two"), act: ended },
  "the normal end of a declared length": {
    headers: [...PLAIN, ["Content-Length", "6"]],
    fate: "ended",
    plot: chunks("one", "two"),
    act: ended,
  },
  "the normal end of an empty body": { fate: "ended", plot: chunks(), act: ended },
  "an error before the first chunk": { fate: "failed", plot: failing(), act: ended },
  "an error after empty chunks": { fate: "failed", plot: failing("", ""), act: ended },
  "an error after the first chunk": { fate: "failed", plot: failing("one"), act: ended },
  "a first chunk that is not bytes": {
    isBad: true,
    fate: "stopped",
    plot: () => () => "text" as unknown as Uint8Array,
    act: ended,
  },
  "a second chunk that is not bytes": {
    isBad: true,
    fate: "stopped",
    plot: () => (turn) => turn === 0 ? bytes("one") : "text" as unknown as Uint8Array,
    act: ended,
  },
  "more bytes than declared": {
    isBad: true,
    headers: [...PLAIN, ["Content-Length", "4"]],
    fate: "stopped",
    plot: endless(bytes("one")),
    act: ended,
  },
  "fewer bytes than declared": {
    isBad: true,
    headers: [...PLAIN, ["Content-Length", "10"]],
    fate: "ended",
    plot: chunks("one", "two"),
    act: ended,
  },
  "no startResponse": { isBad: true, status: "", fate: "stopped", plot: endless(bytes("one")), act: ended },
  "HEAD": { method: "HEAD", fate: "stopped", plot: endless(bytes("one")), act: ended },
  "204": {
    isBad: true,
    status: "204 No Content",
    headers: [],
    fate: "stopped",
    plot: endless(bytes("one")),
    act: ended,
  },
  "304": {
    isBad: true,
    status: "304 Not Modified",
    headers: [],
    fate: "stopped",
    plot: endless(bytes("one")),
    act: ended,
  },
  "HEAD of an empty body": { method: "HEAD", fate: "ended", plot: chunks(), act: ended },
  "204 of an empty body": { status: "204 No Content", headers: [], fate: "ended", plot: chunks(), act: ended },
  "a client that leaves in the middle of a chunk": {
    fate: "stopped",
    plot: endless(new Uint8Array(HELD)),
    act: (scene) => leaveAfter(scene, /\r\n\r\n/),
  },
  "a client that leaves between chunks": {
    fate: "stopped",
    plot: endless(bytes("one")),
    act: (scene) => leaveAfter(scene, /one/),
  },
  "a client that leaves while there are only empty chunks": {
    fate: "stopped",
    plot: endless(EMPTY, ({ waiting }) => waiting.happen()),
    act: leaveDuring,
  },
  "a client that leaves while the second chunk is waited for": {
    fate: "stopped",
    isAsync: true,
    plot: pausing("one"),
    act: leaveDuring,
  },
  "a client that leaves while the first chunk is waited for, after an empty one": {
    fate: "stopped",
    isAsync: true,
    plot: pausing("", ""),
    act: leaveDuring,
  },
  "a client that leaves while the first chunk is waited for, and the signal was read": {
    fate: "stopped",
    isAsync: true,
    signal: true,
    plot: pausing(),
    act: leaveDuring,
  },
  "a client that leaves while the first chunk is waited for": {
    fate: "stopped",
    isAsync: true,
    plot: pausing(),
    async act(scene) {
      const { client, closed, waiting, go } = scene;
      if (RUNTIME === "bun") return await leaveDuring(scene);
      // Deno tells of it when the first chunk is there, as long as nobody reads the signal.
      await waiting.wait();
      client.leave();
      go.resolve();
      await closed.wait();
    },
  },
  "a server that does not wait any longer for the second chunk": {
    fate: "stopped",
    isAsync: true,
    shutdownTimeout: 10,
    plot: pausing("one"),
    act: stopDuring,
  },
  "a server that does not wait any longer for the first chunk": {
    fate: "stopped",
    isAsync: true,
    shutdownTimeout: 10,
    plot: pausing(),
    act: stopDuring,
  },
  "a server that does not wait any longer for what comes after the declared length": {
    headers: [...PLAIN, ["Content-Length", "3"]],
    fate: "stopped",
    isAsync: true,
    shutdownTimeout: 10,
    plot: pausing("one"),
    act: stopDuring,
  },
};

/** What a request that is not HEAD looks like; bodies are left unread. */
const REQUESTS = [
  request("/"),
  request("/", { method: "POST" }),
  request("/", { method: "POST", headers: ["Content-Length: 4"], body: "form" }),
];

for (const [name, way] of Object.entries(WAYS_OUT)) {
  test(`close() runs exactly once, and finally too: ${name}`, async () => {
    const { status = "200 OK", headers = PLAIN } = way;
    for (const [kindName, kind] of Object.entries(KINDS)) {
      if (way.isAsync && !kind.isAsync) continue;
      for (const sent of way.method ? [request("/", { method: way.method })] : REQUESTS) {
        const events: string[] = [];
        const closed = new Event(`close() of ${kindName}`);
        const waiting = new Event(`${kindName} to wait`);
        const go = Promise.withResolvers<void>();
        const app: Application = (environ, startResponse) => {
          if (way.signal) assert.equal(contextOf(environ).signal.aborted, false);
          if (status !== "") startResponse(status, headers);
          return Object.assign(kind.make(way.plot(scene), (event) => void events.push(event)), {
            close() {
              events.push("close");
              closed.happen();
            },
          });
        };
        const { isBad, shutdownTimeout = 60_000 } = way;
        const server = startPatient(isBad ? unchecked(app) : app, { shutdownTimeout });
        const client = await Client.connect(server);
        const scene: Scene = { server, client, closed, waiting, go };
        await client.send(sent);
        await way.act(scene);
        await closed.wait();
        client.leave();
        await server.shutdown();
        const message = `${kindName}, ${sent}`;
        assert.deepEqual(events.toSorted(), ["close", ...kind.notes[way.fate]].toSorted(), message);
      }
    }
  });
}

interface ArrayCase {
  method?: string;
  status?: string;
  headers?: HeaderList;
  /** Breaks a rule. */
  isBad?: boolean;
  body: Uint8Array[];
}

const ARRAYS: Record<string, ArrayCase> = {
  "of one chunk": { body: [bytes("one")] },
  "of several chunks": { body: [bytes("one"), bytes("two")] },
  "of none": { body: [] },
  "too short for its declared length": {
    isBad: true,
    headers: [...PLAIN, ["Content-Length", "10"]],
    body: [bytes("one")],
  },
  "too long for its declared length": {
    isBad: true,
    headers: [...PLAIN, ["Content-Length", "1"]],
    body: [bytes("one")],
  },
  "of what is not bytes": { isBad: true, body: ["text" as unknown as Uint8Array] },
  "without startResponse": { isBad: true, status: "", body: [bytes("one")] },
  "for HEAD": { method: "HEAD", body: [bytes("one")] },
  "with 204": { isBad: true, status: "204 No Content", headers: [], body: [bytes("one")] },
  "with 304": { isBad: true, status: "304 Not Modified", headers: [], body: [bytes("one")] },
};

test("close() of an array runs exactly once, whatever becomes of the array", async () => {
  for (const [name, { method = "GET", status = "200 OK", headers = PLAIN, isBad, body }] of Object.entries(ARRAYS)) {
    for (const isAsync of [false, true]) {
      let closed = 0;
      const app: Application = (_environ, startResponse) => {
        if (status !== "") startResponse(status, headers);
        const array = Object.assign([...body], { close: () => void closed++ });
        return isAsync ? Promise.resolve(array) : array;
      };
      const server = startPatient(isBad ? unchecked(app) : app);
      await exchange(server, request("/", { method }));
      await server.shutdown();
      assert.equal(closed, 1, `${name}, ${isAsync ? "async" : "sync"}`);
    }
  }
});

test("close() runs exactly once when the client left before the application returned", async () => {
  const bodies: Record<string, () => ResponseBody> = {
    array: () => [bytes("one")],
    generator: () =>
      (function* () {
        yield bytes("one");
      })(),
    asyncGenerator: () =>
      (async function* () {
        yield await bytes("one");
      })(),
    readableStream: () => ReadableStream.from([bytes("one")]),
    notBytes: () => ["text" as unknown as Uint8Array],
  };
  for (const readsSignal of [false, true]) {
    for (const [name, make] of Object.entries(bodies)) {
      const events: string[] = [];
      const waiting = new Event("an application that waits");
      const aborted = new Event("the signal");
      const go = new Event("permission to go on");
      const app = pingable(async (environ, startResponse) => {
        if (readsSignal) {
          contextOf(environ).signal.addEventListener("abort", () => {
            events.push("abort");
            aborted.happen();
          });
        }
        ok(startResponse);
        waiting.happen();
        await go.wait();
        return Object.assign(make(), { close: () => void events.push("close") });
      });
      const server = startPatient(name === "notBytes" ? unchecked(app) : app);
      const client = await Client.connect(server);
      await client.send(request("/"));
      await waiting.wait();
      client.leave();
      if (readsSignal) await aborted.wait();
      await exchange(server, request("/ping"));
      go.happen();
      await server.shutdown();
      assert.deepEqual(events, readsSignal ? ["abort", "close"] : ["close"], name);
    }
  }
});

test("close() runs exactly once when the body cannot even be iterated", async () => {
  const bodies: Record<string, object> = {
    nothingToIterate: {},
    throwing: {
      [Symbol.iterator]() {
        throw new Error("no iterator");
      },
    },
    lockedStream: (() => {
      const stream = ReadableStream.from([bytes("one")]);
      stream.getReader();
      return stream;
    })(),
    nextIsMissing: { [Symbol.iterator]: () => ({}) },
    stepIsMissing: { [Symbol.iterator]: () => ({ next: () => undefined }) },
  };
  for (const [name, body] of Object.entries(bodies)) {
    let closed = 0;
    const server = startPatient(unchecked((_environ, startResponse) => {
      ok(startResponse);
      return Object.assign(body, { close: () => void closed++ }) as ResponseBody;
    }));
    const reply = await exchange(server, request("/"));
    await server.shutdown();
    assert.equal(reply.status, 500, name);
    assert.equal(closed, 1, name);
    assert.notEqual(server.errors.text, "", name);
  }
});

test("close() runs once, and one failure is reported, when an application has written and its body cannot be opened", async () => {
  let closed = 0;
  const errors = new ErrorLog();
  const handler = toFetch((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("written"));
    return {
      [Symbol.iterator](): Iterator<Uint8Array> {
        throw new Error("Nothing to open");
      },
      close: () => void closed++,
    };
  }, { errors });
  assert.equal((await handler(new Request(HERE))).status, 500);
  await settle();
  assert.equal(closed, 1);
  assert.equal(reportsIn(errors).length, 1);
  assert.match(errors.text, /Nothing to open/);
});

// When the client leaves

test("when the client leaves, return() and then close() are called at once, though next() never settles", async () => {
  const events: string[] = [];
  const waiting = new Event("a next() that never settles");
  const closed = new Event("close()");
  await using server = startPatient((_environ, startResponse) => {
    ok(startResponse);
    return {
      [Symbol.asyncIterator]: () => ({
        next() {
          events.push("next");
          if (events.length === 1) return Promise.resolve({ done: false, value: bytes("one") });
          waiting.happen();
          return new Promise<never>(() => {});
        },
        return() {
          events.push("return");
          return new Promise<never>(() => {});
        },
      }),
      close() {
        events.push("close");
        closed.happen();
      },
    };
  }, { shutdownTimeout: 10 });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  await waiting.wait();
  client.leave();
  await closed.wait();
  assert.deepEqual(events, ["next", "next", "return", "close"]);
});

test("return() is called before close() when a body is stopped early, and not at all when it has ended", async () => {
  for (const method of ["GET", "HEAD"]) {
    const events: string[] = [];
    const server = startPatient((_environ, startResponse) => {
      ok(startResponse);
      let turn = 0;
      return {
        [Symbol.iterator]: () => ({
          next: () => turn++ === 0 ? { done: false, value: bytes("one") } : { done: true, value: undefined },
          return() {
            events.push("return");
            return { done: true, value: undefined };
          },
        }),
        close: () => void events.push("close"),
      };
    });
    await exchange(server, request("/", { method }), { head: method === "HEAD" });
    await server.shutdown();
    assert.deepEqual(events, method === "HEAD" ? ["return", "close"] : ["close"], method);
  }
});

// When close() or return() fails, or takes its time

test("a close() that fails is logged once and does not harm the response", async () => {
  const failures: Record<string, () => void | Promise<void>> = {
    throwing: () => {
      throw new Error("cannot close");
    },
    rejecting: () => Promise.reject(new Error("cannot close")),
    rejectingLater: async () => {
      await new Promise((resolve) => setImmediate(resolve));
      throw new Error("cannot close");
    },
  };
  const bodies: Record<string, () => ResponseBody> = {
    array: () => [bytes("whole")],
    generator: () =>
      (function* () {
        yield bytes("wh");
        yield bytes("ole");
      })(),
    asyncGenerator: () =>
      (async function* () {
        yield await bytes("wh");
        yield await bytes("ole");
      })(),
  };
  for (const [failure, close] of Object.entries(failures)) {
    for (const [name, make] of Object.entries(bodies)) {
      const server = startPatient((_environ, startResponse) => {
        ok(startResponse);
        return Object.assign(make(), { close });
      });
      const reply = await exchange(server, request("/"));
      await server.shutdown();
      assert.equal(reply.status, 200);
      assert.equal(reply.body, "whole");
      assert.equal(reply.complete, true);
      assert.equal(server.errors.text.split("cannot close").length, 2, `${failure}, ${name}`);
    }
  }
});

test("a return() that fails is logged, and close() runs all the same", async () => {
  const failures: Record<string, () => IteratorResult<Uint8Array>> = {
    throwing: () => {
      throw new Error("cannot return");
    },
    rejecting: () => Promise.reject(new Error("cannot return")) as never,
  };
  for (const [name, fail] of Object.entries(failures)) {
    let closed = 0;
    const server = startPatient((_environ, startResponse) => {
      ok(startResponse);
      return {
        [Symbol.iterator]: () => ({ next: () => ({ done: false, value: bytes("one") }), return: fail }),
        close: () => void closed++,
      };
    });
    const reply = await exchange(server, request("/", { method: "HEAD" }), { head: true });
    await server.shutdown();
    assert.equal(reply.status, 200, name);
    assert.equal(closed, 1, name);
    assert.match(server.errors.text, /cannot return/, name);
  }
});

test("a stopping server waits for a close() that takes its time", async () => {
  const events: string[] = [];
  const closing = new Event("close()");
  const go = new Event("permission to go on");
  const server = startPatient((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([bytes("one")], {
      async close() {
        closing.happen();
        await go.wait();
        events.push("closed");
      },
    });
  });
  assert.equal((await exchange(server, request("/"))).body, "one");
  await closing.wait();
  const stopped = server.shutdown().then(() => events.push("stopped"));
  await stopAnother();
  go.happen();
  await stopped;
  assert.deepEqual(events, ["closed", "stopped"]);
});
