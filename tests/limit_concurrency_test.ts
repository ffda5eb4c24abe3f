/**
 * `limitConcurrency`: how many requests are inside the application at once, and how many wait.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  health,
  limitConcurrency,
  type Middleware,
  runApplication,
  testEnviron,
  timeout,
  toFetch,
} from "../mod.ts";
import { between } from "./middleware_support.ts";
import {
  asked,
  bytes,
  Client,
  contextOf,
  ErrorLog,
  Event,
  exchange,
  FAILURE,
  hello,
  HERE,
  ok,
  parse,
  pingable,
  PLAIN,
  readChunk,
  request,
  settle,
  start,
  startPatient,
  text,
  within,
} from "./support.ts";

/** An application with one request inside at a time. */
function alone(app: Application): Application {
  return limitConcurrency(app, { max: 1 });
}

/** A middleware that lets so many requests inside. */
function limitTo(max: number, queue?: number): Middleware {
  return (app) => limitConcurrency(app, { max, queue });
}

// In the order of their arrival

/** What happens inside an application that several clients ask at once. */
async function interleaving(max: number, paths: string[]): Promise<string[]> {
  const events: string[] = [];
  const app: Application = async function* (environ, startResponse) {
    const name = environ.PATH_INFO.slice(1);
    events.push(`${name} enters`);
    try {
      await settle();
      if (name === "fails") throw new Error("Planned");
      ok(startResponse);
      yield bytes(name);
      await settle();
      yield bytes("!");
    } finally {
      events.push(`${name} leaves`);
    }
  };
  const handler = toFetch(between(limitTo(max), app), { errors: new ErrorLog() });
  const texts = await within(
    Promise.all(paths.map(async (path) => (await handler(new Request(HERE + path))).text())),
    "all answers",
  );
  assert.deepEqual(texts, paths.map((path) => path === "fails" ? "Internal Server Error\n" : `${path}!`));
  return events;
}

test("limitConcurrency: with max 1 one request is done before the next comes in, in the order of their arrival", async () => {
  assert.deepEqual(await interleaving(1, ["a", "fails", "b", "c"]), [
    "a enters",
    "a leaves",
    "fails enters",
    "fails leaves",
    "b enters",
    "b leaves",
    "c enters",
    "c leaves",
  ]);
});

test("limitConcurrency: with max 2 two requests are inside at once, and with max Infinity all are", async () => {
  for (const [max, expected] of [[2, 2], [3, 3], [Infinity, 5]] as const) {
    let inside = 0;
    let most = 0;
    for (const event of await interleaving(max, ["a", "b", "c", "d", "e"])) {
      inside += event.endsWith("enters") ? 1 : -1;
      most = Math.max(most, inside);
    }
    assert.equal(inside, 0);
    assert.equal(most, expected, `max ${max}`);
  }
});

test("limitConcurrency: with max 1 a client that leaves makes room for the next", async () => {
  const inside = new Event("a request in the application");
  await using server = start(alone(async function* (environ, startResponse) {
    ok(startResponse);
    if (environ.PATH_INFO === "/endless") {
      inside.happen();
      for (;;) {
        yield bytes("more ");
        await settle();
      }
    }
    yield bytes("next");
  }));
  const client = await Client.connect(server);
  await client.send(request("/endless"));
  await inside.wait();
  await client.until(/more /);
  const next = exchange(server, request("/"));
  client.leave();
  assert.equal((await next).body, "next");
});

for (const max of [1, 2, Infinity]) {
  test(`limitConcurrency: with max ${max} no more requests are inside the application, and they come in order`, async () => {
    const count = 5;
    const events: string[] = [];
    const bodies = Array.from({ length: count }, () => new Event("permission to go on"));
    const entered = Array.from({ length: count }, () => new Event("a request inside"));
    const app: Application = (environ, startResponse) => {
      const number = Number(environ.PATH_INFO.slice(1));
      events.push(`enter ${number}`);
      entered[number]!.happen();
      const chunks = (async function* () {
        ok(startResponse);
        yield bytes("one");
        await bodies[number]!.wait();
        yield bytes("two");
      })();
      return { [Symbol.asyncIterator]: () => chunks, close: () => void events.push(`leave ${number}`) };
    };
    await using server = start(limitTo(max)(app));
    const most = Math.min(max, count);
    const clients: Client[] = [];
    for (let number = 0; number < count; number++) {
      const client = await Client.connect(server);
      await client.send(request(`/${number}`));
      clients.push(client);
      if (number < most) await entered[number]!.wait();
      // What is refused does not wait, so its answer tells that the request before it has come.
      else await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
    }
    for (let number = 0; number < count; number++) {
      const inside = events.filter((event) => event.startsWith("enter")).length;
      assert.equal(inside, Math.min(count, number + most));
      bodies[number]!.happen();
      assert.equal(parse(await clients[number]!.end()).body, "onetwo");
      if (number + most < count) await entered[number + most]!.wait();
    }
    await settle();
    const numbers = Array.from({ length: count }, (_, number) => number);
    assert.deepEqual(events.filter((event) => event.startsWith("enter")), numbers.map((number) => `enter ${number}`));
    assert.equal(events.filter((event) => event.startsWith("leave")).length, count);
    if (max === 1) {
      assert.deepEqual(events, numbers.flatMap((number) => [`enter ${number}`, `leave ${number}`]));
    }
  });
}

test("limitConcurrency: a place inside the application is given away only when a generator and close() have ended", async () => {
  const events: string[] = [];
  const [left, closed] = [new Event("permission to end"), new Event("permission to have closed")];
  const app: Application = (environ, startResponse) => {
    const { PATH_INFO: path } = environ;
    events.push(`enter ${path}`);
    ok(startResponse);
    const chunks = (async function* () {
      try {
        yield bytes("one");
        if (path === "/leaves") await left.wait();
      } finally {
        events.push(`end ${path}`);
      }
    })();
    const close = async () => {
      if (path === "/leaves") await closed.wait();
      events.push(`close ${path}`);
    };
    return Object.assign(chunks, { close });
  };
  await using server = start(alone(app));
  const client = await Client.connect(server);
  await client.send(request("/leaves"));
  await client.until(/one/);
  const next = await Client.connect(server);
  await next.send(request("/next"));
  client.leave();
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  await settle();
  closed.happen();
  await settle();
  assert.deepEqual(events, ["enter /leaves", "close /leaves"]);
  left.happen();
  assert.equal(parse(await next.end()).body, "one");
  assert.deepEqual(events.slice(0, 4), ["enter /leaves", "close /leaves", "end /leaves", "enter /next"]);
});

test("limitConcurrency: the application is not called for a client that has left the queue", async () => {
  const entered: string[] = [];
  const go = new Event("permission to go on");
  const begun = new Event("a request inside");
  const server = startPatient(alone(async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    begun.happen();
    await go.wait();
    ok(startResponse);
    return [bytes("hello")];
  }));
  const clients = await Promise.all([1, 2, 3].map(() => Client.connect(server)));
  await clients[0]!.send(request("/first"));
  await begun.wait();
  await clients[1]!.send(request("/leaves"));
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  clients[1]!.leave();
  await clients[2]!.send(request("/last"));
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  go.happen();
  assert.equal(parse(await clients[2]!.end()).body, "hello");
  await server.shutdown(); // and nothing of it is left
  assert.deepEqual(entered, ["/first", "/last"]);
  assert.equal(server.errors.text, "");
});

test("limitConcurrency: behind toFetch, max 1 serves one after the other, those that fail as well", async () => {
  let inside = 0;
  let most = 0;
  const handler = toFetch(
    alone(async (environ, startResponse) => {
      most = Math.max(most, ++inside);
      await settle();
      inside--;
      if (environ.PATH_INFO === "/fails") throw new Error("It fails");
      ok(startResponse);
      return [bytes(environ.PATH_INFO)];
    }),
    { errors: new ErrorLog() },
  );
  const paths = ["/a", "/fails", "/b", "/fails", "/c"];
  const responses = paths.map(async (path) => await handler(new Request(`http://localhost${path}`)));
  const statuses = (await within(Promise.all(responses), "all responses")).map(({ status }) => status);
  assert.deepEqual(statuses, [200, 500, 200, 500, 200]);
  assert.equal(most, 1);
});

test("limitConcurrency bounds how many requests are inside the application, which the others enter in order", async () => {
  const places = Array.from({ length: 6 }, (_, number) => new Event(`leave for ${number}`));
  const entered: string[] = [];
  let inside = 0;
  let most = 0;
  const { ask } = asked(
    limitTo(2)(async (environ, startResponse) => {
      entered.push(environ.PATH_INFO);
      most = Math.max(most, ++inside);
      await places[Number(environ.PATH_INFO.slice(1))]!.wait();
      inside--;
      ok(startResponse);
      return [bytes(environ.PATH_INFO)];
    }),
  );
  const answers = places.map((_, number) => ask(`/${number}`));
  assert.deepEqual(entered, ["/0", "/1"]);
  for (const place of places) place.happen();
  const bodies = await within(Promise.all(answers.map(async (answer) => await (await answer).text())), "the answers");
  assert.deepEqual(bodies, ["/0", "/1", "/2", "/3", "/4", "/5"]);
  assert.deepEqual(entered, bodies);
  assert.equal(most, 2);
});

test("limitConcurrency: a place is taken until the body has ended", async () => {
  let calls = 0;
  const { ask } = asked(alone(function* (_environ, startResponse) {
    calls++;
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  }));
  const first = await ask();
  const second = ask();
  const reader = first.body!.getReader();
  assert.equal(await readChunk(reader), "one");
  assert.equal(calls, 1);
  assert.equal(await readChunk(reader), "two");
  assert.equal(await readChunk(reader), undefined);
  assert.equal(await (await within(second, "the second answer")).text(), "onetwo");
  assert.equal(calls, 2);
});

test("limitConcurrency: requests wait again after a time in which none did", async () => {
  const { ask } = asked(alone(async (environ, startResponse) => {
    await settle();
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }));
  for (const paths of [["/a"], ["/b", "/c"], ["/d"], ["/e", "/f"]]) {
    const answers = Promise.all(paths.map(async (path) => await (await ask(path)).text()));
    assert.deepEqual(await within(answers, "the answers"), paths);
  }
});

test("limitConcurrency: thousands of requests wait for one place, and each gets its own answer", async () => {
  let inside = 0;
  let most = 0;
  const { ask } = asked(alone(async (environ, startResponse) => {
    most = Math.max(most, ++inside);
    await Promise.resolve();
    inside--;
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }));
  const paths = Array.from({ length: 3000 }, (_, number) => `/${number}`);
  const answers = await within(Promise.all(paths.map(async (path) => await (await ask(path)).text())), "the answers");
  assert.deepEqual(answers, paths);
  assert.equal(most, 1);
});

// How many wait

test("limitConcurrency: beyond the queue a request gets 503 with Retry-After, and does not take a place", async () => {
  for (const [queue, statuses] of [[0, [200, 503, 503, 503]], [2, [200, 200, 200, 503]]] as const) {
    const go = new Event("permission to go on");
    let calls = 0;
    const app: Application = async (_environ, startResponse) => {
      calls++;
      await go.wait();
      ok(startResponse);
      return [];
    };
    const { ask, errors } = asked(between(limitTo(1, queue), app));
    const answers = statuses.map(() => ask());
    go.happen();
    const responses = await within(Promise.all(answers), "the answers");
    assert.deepEqual(responses.map(({ status }) => status), statuses);
    assert.equal(responses[3]!.headers.get("Retry-After"), "1");
    assert.equal(await responses[3]!.text(), "Service Unavailable\n");
    assert.equal((await within(ask(), "an answer once there is a place")).status, 200);
    assert.equal(calls, statuses.filter((status) => status === 200).length + 1);
    assert.equal(errors.text, "");
  }
});

test("limitConcurrency: a client that leaves the queue makes room in it, and the others keep their order", async () => {
  const entered: string[] = [];
  const go = new Event("permission to go on");
  const { ask, errors } = asked(between(limitTo(1, 3), async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    await go.wait();
    ok(startResponse);
    return [];
  }));
  const client = new AbortController();
  const answers = ["/a", "/b", "/leaves", "/c"].map((path) =>
    ask(path, path === "/leaves" ? { signal: client.signal } : {})
  );
  assert.equal((await ask("/full")).status, 503);
  client.abort();
  answers.push(ask("/d"));
  go.happen();
  await within(Promise.all(answers), "the answers");
  assert.deepEqual(entered, ["/a", "/b", "/c", "/d"]);
  assert.equal(errors.text, "");
});

test("limitConcurrency: a client that has left already does not wait", async () => {
  const entered: string[] = [];
  const go = new Event("permission to go on");
  const { ask } = asked(alone(async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    await go.wait();
    ok(startResponse);
    return [];
  }));
  const answers = [ask("/first"), ask("/left", { signal: AbortSignal.abort() }), ask("/last")];
  go.happen();
  await within(Promise.all(answers), "the answers");
  assert.deepEqual(entered, ["/first", "/last"]);
});

test("limitConcurrency: a request that timeout gives up while it waits does not call the application", async () => {
  let calls = 0;
  const app: Application = (_environ, startResponse) => {
    calls++;
    ok(startResponse);
    return (async function* () {
      yield bytes("first");
      await new Promise(() => {});
    })();
  };
  const { ask, errors } = asked(timeout(alone(app), { milliseconds: 50 }));
  const first = await ask();
  assert.equal((await within(ask(), "the second answer")).status, 504);
  await first.body!.cancel();
  await settle();
  assert.equal(calls, 1);
  assert.equal(errors.text, "timeout gave up on GET /: its response was not started in 50 ms\n");
});

test("limitConcurrency inside health: a full queue does not fail the checks", async () => {
  const { ask } = asked(health(limitConcurrency(() => new Promise(() => {}), { max: 1, queue: 0 })));
  ask();
  assert.equal((await ask()).status, 503);
  assert.equal((await ask("/livez")).status, 200);
  assert.equal((await ask("/readyz")).status, 200);
});

test("limitConcurrency works without fetch.context", async () => {
  const go = new Event("permission to go on");
  const app = alone(async (_environ, startResponse) => {
    await go.wait();
    ok(startResponse);
    return [bytes("done")];
  });
  const { "fetch.context": _context, ...environ } = testEnviron();
  const results = [1, 2].map(() => runApplication(app, { ...environ }));
  go.happen();
  for (const { body } of await within(Promise.all(results), "the results")) assert.equal(text(body), "done");
});

// When a place is free again

const LEAVING: {
  name: string;
  app: Application;
  leave?: (response: Response) => Promise<unknown>;
  init?: RequestInit;
}[] = [
  {
    name: "throws",
    app() {
      throw FAILURE;
    },
  },
  { name: "rejects", app: () => Promise.reject(FAILURE) },
  { name: "returns no body", app: () => undefined as never },
  { name: "never calls startResponse", app: () => [] },
  {
    name: "answers HEAD with an endless body",
    *app(_environ, startResponse) {
      ok(startResponse);
      for (;;) yield bytes("endless");
    },
    init: { method: "HEAD" },
  },
  {
    name: "has its response cancelled",
    *app(_environ, startResponse) {
      ok(startResponse);
      for (;;) yield bytes("endless");
    },
    leave: (response) => response.body!.cancel(),
  },
  {
    name: "has its response cancelled while it waits for ever",
    async *app(_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      await new Promise(() => {});
    },
    async leave(response) {
      const reader = response.body!.getReader();
      await reader.read();
      reader.read();
      await settle();
      await reader.cancel();
    },
  },
  {
    name: "fails after the first byte",
    *app(_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      throw FAILURE;
    },
    leave: (response) => response.text().catch(() => {}),
  },
  {
    name: "sends more than it declares",
    *app(_environ, startResponse) {
      ok(startResponse, ["Content-Length", "3"]);
      yield bytes("more");
      yield bytes("more");
    },
    leave: (response) => response.text(),
  },
  {
    name: "has a body whose close() never ends",
    app(_environ, startResponse) {
      ok(startResponse);
      return Object.assign([], { close: () => new Promise<void>(() => {}) });
    },
  },
  {
    name: "has a body whose close() throws",
    app(_environ, startResponse) {
      ok(startResponse);
      return Object.assign([], {
        close() {
          throw FAILURE;
        },
      });
    },
  },
];

for (const { name, app, leave, init = {} } of LEAVING) {
  test(`limitConcurrency: the next request gets the place of an application that ${name}`, async () => {
    const { ask } = asked(alone((environ, startResponse) => {
      if (environ.PATH_INFO === "/bad") return app(environ, startResponse);
      ok(startResponse);
      return [bytes("good")];
    }));
    const response = await within(ask("/bad", init), "the first answer");
    await leave?.(response);
    assert.equal(await (await within(ask("/"), "the next answer")).text(), "good");
  });
}

test("limitConcurrency: a place is free again when the response was complete before the application returned", async () => {
  const sent = new Event("the response");
  let closed = 0;
  await using server = start(alone(async (environ, startResponse) => {
    const write = startResponse("200 OK", [...PLAIN, ["Content-Length", "4"]]);
    if (environ.REQUEST_METHOD === "GET") return [bytes("next")];
    await write(bytes("sent"));
    await sent.wait();
    return Object.assign([], { close: () => void closed++ });
  }));
  const unread = request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" });
  assert.equal((await exchange(server, unread)).body, "sent");
  sent.happen();
  assert.equal((await exchange(server, request("/"))).body, "next");
  assert.equal(closed, 1);
  assert.equal(server.errors.text, "");
});

test("limitConcurrency: a place is free again when the client has left an application before it returned", async () => {
  const inside = new Event("the application being called");
  const left = new Event("the client having left");
  await using server = start(alone(async (environ, startResponse) => {
    if (environ.REQUEST_METHOD === "POST") {
      environ["fetch.context"]!.signal.addEventListener("abort", () => left.happen());
      inside.happen();
      await left.wait();
    }
    ok(startResponse);
    return [bytes("next")];
  }));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" }));
  await inside.wait();
  client.leave();
  assert.equal((await exchange(server, request("/"))).body, "next");
  assert.equal(server.errors.text, "");
});

/** What a request that is not HEAD looks like; bodies are left unread. */
const REQUESTS = [
  request("/"),
  request("/", { method: "POST" }),
  request("/", { method: "POST", headers: ["Content-Length: 4"], body: "form" }),
];

test("limitConcurrency: an application that outlives its client gives its place to the next request", async () => {
  for (const sent of REQUESTS) {
    const waiting = new Event("an application that waits");
    const go = new Event("permission to go on");
    await using server = startPatient(alone(
      pingable(async (environ, startResponse) => {
        const write = startResponse("200 OK", PLAIN);
        write(bytes("one"));
        contextOf(environ).signal.addEventListener("abort", () => go.happen());
        waiting.happen();
        await go.wait();
        return [bytes("two")];
      }),
    ));
    const client = await Client.connect(server);
    await client.send(sent);
    await client.until(/one/);
    await waiting.wait();
    client.leave();
    assert.equal((await exchange(server, request("/ping"))).body, "pong", sent);
    await server.shutdown();
    assert.equal(server.errors.text, "", sent);
  }
});

test("limitConcurrency: a generator that outlives its response gives its place to the next request, though it fails", async () => {
  for (const sent of REQUESTS) {
    const waiting = new Event("a generator that waits");
    const go = new Event("permission to go on");
    await using server = startPatient(alone(
      pingable(async function* (_environ, startResponse) {
        ok(startResponse, ["Content-Length", "3"]);
        yield bytes("one");
        waiting.happen();
        await go.wait();
        throw new Error("failed by design");
      }),
    ));
    const client = await Client.connect(server);
    await client.send(sent);
    assert.equal(parse(await client.end()).body, "one", sent);
    await waiting.wait();
    go.happen();
    assert.equal((await exchange(server, request("/ping"))).body, "pong", sent);
    assert.equal(server.errors.text.split("failed by design").length, 2, sent);
  }
});

test("limitConcurrency: a close that is called twice frees one place", async () => {
  for (const body of [[bytes("one")], new Set([bytes("one")])]) {
    let calls = 0;
    const app = alone((environ, startResponse) => {
      calls++;
      if (environ.PATH_INFO === "/stays") return new Promise(() => {});
      ok(startResponse);
      return body;
    });
    const { close } = await app(testEnviron(), () => () => Promise.resolve());
    close!();
    close!();
    const { ask } = asked(app);
    ask("/stays");
    ask("/stays");
    assert.equal(calls, 2);
  }
});

// When the server stops

test("limitConcurrency: an iterator without return can be left", async () => {
  const app: Application = (_environ, startResponse) => {
    ok(startResponse);
    return { [Symbol.asyncIterator]: () => ({ next: () => Promise.resolve({ done: false, value: bytes("one") }) }) };
  };
  const body = await alone(app)(testEnviron(), () => () => Promise.resolve());
  assert.ok(Symbol.asyncIterator in body);
  const chunks = body[Symbol.asyncIterator]();
  await chunks.next();
  assert.deepEqual(await chunks.return?.(), { done: true, value: undefined });
});

test("limitConcurrency: a stopping server serves what waits", async () => {
  const inside = new Event("the application being called");
  const go = new Event("permission to go on");
  const server = startPatient(between(limitTo(1), async (environ, startResponse) => {
    if (environ.PATH_INFO === "/first") {
      inside.happen();
      await go.wait();
    }
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }));
  const first = await Client.connect(server);
  await first.send(request("/first"));
  await inside.wait();
  const waiting = await Client.connect(server);
  await waiting.send(request("/waits"));
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  const stopped = server.shutdown();
  go.happen();
  assert.equal(parse(await first.end()).body, "/first");
  assert.equal(parse(await waiting.end()).body, "/waits");
  await stopped;
  assert.equal(server.errors.text, "");
});

const STUCK: { name: string; app: () => ReturnType<Application> }[] = [
  { name: "has not returned", app: () => new Promise(() => {}) },
  {
    name: "has not sent its second chunk",
    async *app() {
      yield bytes("first");
      await new Promise(() => {});
    },
  },
];

for (const { name, app } of STUCK) {
  test(`limitConcurrency: a server that stops answers what still waits for the place of an application that ${name}`, async () => {
    const inside = new Event("the application being called");
    let calls = 0;
    const server = start(
      alone((_environ, startResponse) => {
        calls++;
        inside.happen();
        ok(startResponse);
        return app();
      }),
      { shutdownTimeout: 100 },
    );
    const first = await Client.connect(server);
    await first.send(request("/"));
    await inside.wait();
    const second = await Client.connect(server);
    await second.send(request("/"));
    // What another server has answered since then, this one has received.
    await using other = start(hello);
    for (let round = 0; round < 5; round++) await exchange(other, request("/"));
    await within(server.shutdown(), "the end of the server");
    await first.end();
    await second.end();
    assert.equal(calls, 1);
  });
}
