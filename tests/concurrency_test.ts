/**
 * The option `concurrency`: how many requests are inside the application at once.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Application, toFetch } from "../mod.ts";
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
  RUNTIME,
  settle,
  start,
  startPatient,
  within,
} from "./support.ts";

// In the order of their arrival

/** What happens inside an application that several clients ask at once. */
async function interleaving(concurrency: number | undefined, paths: string[]): Promise<string[]> {
  const events: string[] = [];
  const handler = toFetch(async function* (environ, startResponse) {
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
  }, { concurrency, errors: new ErrorLog() });
  const texts = await within(
    Promise.all(paths.map(async (path) => (await handler(new Request(HERE + path))).text())),
    "all answers",
  );
  assert.deepEqual(texts, paths.map((path) => path === "fails" ? "Internal Server Error\n" : `${path}!`));
  return events;
}

test("with concurrency 1 one request is done before the next comes in, in the order of their arrival", async () => {
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

test("with concurrency 2 two requests are inside at once, and without it all are", async () => {
  for (const [concurrency, expected] of [[2, 2], [3, 3], [undefined, 5]] as const) {
    let inside = 0;
    let most = 0;
    for (const event of await interleaving(concurrency, ["a", "b", "c", "d", "e"])) {
      inside += event.endsWith("enters") ? 1 : -1;
      most = Math.max(most, inside);
    }
    assert.equal(inside, 0);
    assert.equal(most, expected, `concurrency ${concurrency}`);
  }
});

test("with concurrency 1 a client that leaves makes room for the next", async () => {
  const inside = new Event("a request in the application");
  await using server = start(async function* (environ, startResponse) {
    ok(startResponse);
    if (environ.PATH_INFO === "/endless") {
      inside.happen();
      for (;;) {
        yield bytes("more ");
        await settle();
      }
    }
    yield bytes("next");
  }, { concurrency: 1 });
  const client = await Client.connect(server);
  await client.send(request("/endless"));
  await inside.wait();
  await client.until(/more /);
  const next = exchange(server, request("/"));
  client.leave();
  assert.equal((await next).body, "next");
});

for (const concurrency of [1, 2, undefined]) {
  test(`with concurrency ${concurrency} no more requests are inside the application, and they come in order`, async () => {
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
    await using server = start(app, { concurrency });
    const most = concurrency ?? count;
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
    if (concurrency === 1) {
      assert.deepEqual(events, numbers.flatMap((number) => [`enter ${number}`, `leave ${number}`]));
    }
  });
}

test("a place inside the application is given away only when a generator and close() have ended", async () => {
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
  await using server = start(app, { concurrency: 1 });
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

test("the application is not called for a client that has left the queue on Bun; Deno tells of it only applications that read the signal", async () => {
  const entered: string[] = [];
  const go = new Event("permission to go on");
  const begun = new Event("a request inside");
  await using server = start(async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    begun.happen();
    await go.wait();
    ok(startResponse);
    return [bytes("hello")];
  }, { concurrency: 1 });
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
  assert.deepEqual(entered, RUNTIME === "deno" ? ["/first", "/leaves", "/last"] : ["/first", "/last"]);
});

test("toFetch with concurrency 1 serves one after the other, those that fail as well", async () => {
  let inside = 0;
  let most = 0;
  const handler = toFetch(async (environ, startResponse) => {
    most = Math.max(most, ++inside);
    await settle();
    inside--;
    if (environ.PATH_INFO === "/fails") throw new Error("It fails");
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }, { concurrency: 1, errors: { write() {}, writelines() {}, flush() {} } });
  const paths = ["/a", "/fails", "/b", "/fails", "/c"];
  const responses = paths.map(async (path) => await handler(new Request(`http://localhost${path}`)));
  const statuses = (await within(Promise.all(responses), "all responses")).map(({ status }) => status);
  assert.deepEqual(statuses, [200, 500, 200, 500, 200]);
  assert.equal(most, 1);
});

test("concurrency bounds how many requests are inside the application, which the others enter in order", async () => {
  const places = Array.from({ length: 6 }, (_, number) => new Event(`leave for ${number}`));
  const entered: string[] = [];
  let inside = 0;
  let most = 0;
  const { ask } = asked(async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    most = Math.max(most, ++inside);
    await places[Number(environ.PATH_INFO.slice(1))]!.wait();
    inside--;
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }, { concurrency: 2 });
  const answers = places.map((_, number) => ask(`/${number}`));
  assert.deepEqual(entered, ["/0", "/1"]);
  for (const place of places) place.happen();
  const bodies = await within(Promise.all(answers.map(async (answer) => await (await answer).text())), "the answers");
  assert.deepEqual(bodies, ["/0", "/1", "/2", "/3", "/4", "/5"]);
  assert.deepEqual(entered, bodies);
  assert.equal(most, 2);
});

test("a place is taken until the body has ended", async () => {
  let calls = 0;
  const { ask } = asked(function* (_environ, startResponse) {
    calls++;
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  }, { concurrency: 1 });
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

test("thousands of requests wait for one place, and each gets its own answer", async () => {
  let inside = 0;
  let most = 0;
  const { ask } = asked(async (environ, startResponse) => {
    most = Math.max(most, ++inside);
    await Promise.resolve();
    inside--;
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }, { concurrency: 1 });
  const paths = Array.from({ length: 3000 }, (_, number) => `/${number}`);
  const answers = await within(Promise.all(paths.map(async (path) => await (await ask(path)).text())), "the answers");
  assert.deepEqual(answers, paths);
  assert.equal(most, 1);
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
    name: "has its response cancelled while it waits",
    async *app(_environ, startResponse) {
      ok(startResponse);
      yield bytes("first");
      await new Promise(() => {});
    },
    leave: (response) => response.body!.cancel(),
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
  test(`the next request gets the place of an application that ${name}`, async () => {
    const { ask } = asked((environ, startResponse) => {
      if (environ.PATH_INFO === "/bad") return app(environ, startResponse);
      ok(startResponse);
      return [bytes("good")];
    }, { concurrency: 1 });
    const response = await within(ask("/bad", init), "the first answer");
    await leave?.(response);
    assert.equal(await (await within(ask("/"), "the next answer")).text(), "good");
  });
}

test("a place is free again when the response was complete before the application returned", async () => {
  const sent = new Event("the response");
  let closed = 0;
  await using server = start(async (environ, startResponse) => {
    const write = startResponse("200 OK", [...PLAIN, ["Content-Length", "4"]]);
    if (environ.REQUEST_METHOD === "GET") return [bytes("next")];
    await write(bytes("sent"));
    await sent.wait();
    return Object.assign([], { close: () => void closed++ });
  }, { concurrency: 1 });
  const unread = request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" });
  assert.equal((await exchange(server, unread)).body, "sent");
  sent.happen();
  assert.equal((await exchange(server, request("/"))).body, "next");
  assert.equal(closed, 1);
  assert.equal(server.errors.text, "");
});

test("a place is free again when the client has left an application before it returned", async () => {
  const inside = new Event("the application being called");
  const left = new Event("the client having left");
  await using server = start(async (environ, startResponse) => {
    if (environ.REQUEST_METHOD === "POST") {
      environ["fetch.context"]!.signal.addEventListener("abort", () => left.happen());
      inside.happen();
      await left.wait();
    }
    ok(startResponse);
    return [bytes("next")];
  }, { concurrency: 1 });
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

test("an application that outlives its client gives its place to the next request", async () => {
  for (const sent of REQUESTS) {
    const waiting = new Event("an application that waits");
    const go = new Event("permission to go on");
    await using server = startPatient(
      pingable(async (environ, startResponse) => {
        const write = startResponse("200 OK", PLAIN);
        write(bytes("one"));
        contextOf(environ).signal.addEventListener("abort", () => go.happen());
        waiting.happen();
        await go.wait();
        return [bytes("two")];
      }),
      { concurrency: 1 },
    );
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

test("a generator that outlives its response gives its place to the next request, though it fails", async () => {
  for (const sent of REQUESTS) {
    const waiting = new Event("a generator that waits");
    const go = new Event("permission to go on");
    await using server = startPatient(
      pingable(async function* (_environ, startResponse) {
        ok(startResponse, ["Content-Length", "3"]);
        yield bytes("one");
        waiting.happen();
        await go.wait();
        throw new Error("failed by design");
      }),
      { concurrency: 1 },
    );
    const client = await Client.connect(server);
    await client.send(sent);
    assert.equal(parse(await client.end()).body, "one", sent);
    await waiting.wait();
    go.happen();
    assert.equal((await exchange(server, request("/ping"))).body, "pong", sent);
    assert.equal(server.errors.text.split("failed by design").length, 2, sent);
  }
});

// When the server stops

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
  test(`a server that stops answers what still waits for the place of an application that ${name}`, async () => {
    const inside = new Event("the application being called");
    let calls = 0;
    const server = start((_environ, startResponse) => {
      calls++;
      inside.happen();
      ok(startResponse);
      return app();
    }, { concurrency: 1, shutdownTimeout: 100 });
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
