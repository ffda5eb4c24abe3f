/**
 * `timeout`: an answer in time.
 *
 * @module
 */

import assert from "node:assert/strict";
import process from "node:process";
import { test } from "node:test";
import {
  type Application,
  type ApplicationLike,
  type Environ,
  type FetchContext,
  fromFetch,
  type ResponseBody,
  runApplication,
  testEnviron,
  timeout,
} from "../mod.ts";
import { between, giving, never, stubborn, unending, withClock } from "./middleware_support.ts";
import {
  answer,
  bytes,
  Client,
  EMPTY,
  Event,
  ok,
  parse,
  PLAIN,
  reportsIn,
  request,
  settle,
  start,
  within,
} from "./support.ts";

/** A time in which nothing happens that is to happen. */
const SHORT = 15;

/** What a middleware with this time writes to the log about the first request that is too slow. */
const LINE = `timeout gave up on GET /: its response was not started in ${SHORT} ms\n`;

function timed(app: ApplicationLike, milliseconds = SHORT): Application {
  return between((app) => timeout(app, { milliseconds }), app);
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
    assert.equal(errors.text, LINE);
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

/** Waits until the signal aborts, and gives the reason. */
async function aborted({ "fetch.context": context }: Environ): Promise<unknown> {
  const { signal } = context!;
  const event = new Event("the signal");
  signal.addEventListener("abort", () => event.happen(), { once: true });
  if (!signal.aborted) await event.wait();
  return signal.reason;
}

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
    assert.equal(errors.text, LINE);
  });
}

test("timeout aborts the signal with a TimeoutError, also for an application that reads the signal later", async () => {
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

test("timeout gives an aborted signal to an application that reads it only after its time is up", async () => {
  const over = new Event("the answer");
  const read = new Event("the reading");
  let signal: AbortSignal | undefined;
  const app: Application = async (environ) => {
    await over.wait();
    ({ signal } = environ["fetch.context"]!);
    read.happen();
    return [];
  };
  assert.equal((await answer(timed(app))).response.status, 504);
  over.happen();
  await read.wait();
  assert.equal(signal?.reason.name, "TimeoutError");
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

/** Waits until an application that was called now and given more time than {@linkcode SHORT} is out of time. */
async function pass(): Promise<void> {
  await answer(timeout(() => never(), { milliseconds: 3 * SHORT }));
}

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

test("timeout gives the application a signal that still aborts when the client leaves", async () => {
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

test("timeout gives the application a signal that still aborts when the client leaves a stream", async () => {
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

test("timeout passes on request, draining, stopping and waitUntil of the server", async () => {
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
  assert.equal(context.stopping.aborted, false);
  const stopped = server.shutdown();
  assert.equal(context.draining, true);
  assert.equal(context.stopping.aborted, true);
  gate.happen();
  assert.equal(parse(await client.end()).body, "draining");
  await within(stopped, "the end of the server");
  assert.match(server.errors.text, /Out of stamps/);
});

test("timeout works without fetch.context", async () => {
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
  assert.equal(errors.text, LINE);
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
  assert.equal(errors.text, LINE);
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

test("timeout closes a body that is returned too late without waiting for its end", async () => {
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
    assert.equal(errors.text, LINE);
  });

  test(`timeout answers 504, and reports once, when an application fails ${when}`, async () => {
    const app: Application = (environ) =>
      new Promise((_resolve, reject) => atSignal(environ, microtasks, () => reject(new Error("Cancelled"))));
    const { response, errors } = await answer(timeout(app, { milliseconds: SHORT }));
    assert.equal(response.status, 504);
    await errors.matches(/Cancelled/);
    await settle();
    assert.equal(reportsIn(errors).length, 2, errors.text);
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
    assert.equal(errors.text, LINE);
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
  assert.equal(errors.text, LINE);
});

test("timeout cancels a ReadableStream that waits for its first chunk, once", async () => {
  let cancels = 0;
  const stream = new ReadableStream<Uint8Array>({ pull: () => never(), cancel: () => void cancels++ });
  const { response } = await answer(timed(() => stream));
  assert.equal(response.status, 504);
  await settle();
  assert.equal(cancels, 1);
});

test("timeout does not report that close has ended what a chunk was waiting for", async () => {
  const chunk = Promise.withResolvers<never>();
  const closed = new Event("close");
  const app: Application = () => ({
    [Symbol.asyncIterator]: () => ({ next: () => chunk.promise }),
    close() {
      chunk.reject(new Error("Closed"));
      closed.happen();
    },
  });
  const { response, errors } = await answer(timed(app));
  assert.equal(response.status, 504);
  await response.text();
  await closed.wait();
  await settle();
  assert.equal(errors.text, LINE);
});

test("timeout reports that a body without close fails after its end", async () => {
  const late = new Event("the failure");
  const app: Application = async function* () {
    await late.wait();
    yield* [].map(() => EMPTY); // the linter wants a yield in a generator
    throw new Error("Out of order");
  };
  // A validator below would give the body a close.
  const { response, errors } = await answer(timeout(app, { milliseconds: SHORT }));
  assert.equal(response.status, 504);
  await response.text();
  await settle();
  late.happen();
  await errors.matches(/Out of order/);
});

test("timeout passes on the failure of a body that is asked for its first chunk after the time is up", async () => {
  const app: Application = async function () {
    await settle();
    return (function* () {
      yield* [].map(() => EMPTY); // the linter wants a yield in a generator
      throw new Error("Out of order");
    })();
  };
  const patient: Application = async (environ, startResponse) => {
    const body = await timeout(app, { milliseconds: SHORT })(environ, startResponse);
    await aborted(environ);
    return body;
  };
  const { response, errors } = await answer(patient);
  assert.equal(response.status, 500);
  assert.match(errors.text, /Application failed on GET \/: Error: Out of order/);
});

test("timeout passes on that nothing at all was thrown", async () => {
  const { response, errors } = await answer(timed(() => Promise.reject(undefined)));
  assert.equal(response.status, 500);
  assert.match(errors.text, /^Application failed on GET \/: undefined/);
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
    yield* [].map(() => EMPTY); // the linter wants a yield in a generator
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
    assert.equal(reportsIn(errors).length, 2, errors.text);
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
    assert.equal(errors.text, LINE);
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

test("timeout refuses a time that is not a number of milliseconds", () => {
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

test("timeout makes neither a timer nor a controller for an application that starts its response at once", async () => {
  const { AbortController: Controller, setTimeout: later } = globalThis;
  const environ = testEnviron();
  const made: string[] = [];
  try {
    globalThis.AbortController = class extends Controller {
      constructor() {
        super();
        made.push("a controller");
      }
    };
    globalThis.setTimeout = ((...call: Parameters<typeof later>) => {
      made.push("a timer");
      return later(...call);
    }) as typeof later;
    const app = timeout(async (_environ, startResponse) => {
      startResponse("200 OK", PLAIN);
      await Promise.resolve();
      return [];
    });
    await app(environ, () => () => Promise.resolve());
  } finally {
    Object.assign(globalThis, { AbortController: Controller, setTimeout: later });
  }
  assert.deepEqual(made, []);
});

test("timeout writes one line in ten seconds, and then how many requests were too slow", async () => {
  await withClock(async (moveOn) => {
    const app = timed(() => never());
    const lineFor = async () => (await answer(app)).errors.text;
    assert.equal(await lineFor(), LINE);
    for (let count = 0; count < 3; count++) assert.equal(await lineFor(), "");
    moveOn(10_000);
    assert.equal(await lineFor(), LINE.replace("\n", " (3 more since the last line)\n"));
  });
});
