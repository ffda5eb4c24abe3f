/**
 * `fetch.context`: the signal, draining, stopping and waitUntil.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type FetchContext,
  type HeaderList,
  type ResponseBody,
  type Server,
  testEnviron,
  toEnviron,
  toFetch,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  contextOf,
  ErrorLog,
  Event,
  exchange,
  generated,
  generatedAsync,
  hello,
  HERE,
  ok,
  parse,
  pingable,
  PLAIN,
  recorder,
  request,
  startPatient,
  stopAnother,
} from "./support.ts";

test("fetch.context has the request as the runtime gave it", async () => {
  const sent = new Request("http://localhost/");
  const { app, environs } = recorder();
  await toFetch(app)(sent);
  for (const environ of [toEnviron(sent), environs[0]!]) {
    assert.equal(environ["fetch.context"]!.request, sent);
    assert.equal(environ["fetch.context"]!.draining, false);
  }
});

// The signal

interface Leaving {
  /** When the application reads the signal. */
  read: "before" | "after";
  /** When the client leaves. */
  leave: "before" | "after";
}

for (
  const { read, leave } of [
    { read: "before", leave: "before" },
    { read: "before", leave: "after" },
    { read: "after", leave: "after" },
  ] as Leaving[]
) {
  test(`the signal, read ${read} the first chunk, aborts when the client leaves ${leave} it`, async () => {
    const waiting = new Event("an application that waits");
    const aborted = new Event<AbortSignal>("the signal");
    await using server = startPatient(async function* (environ, startResponse) {
      const watch = () => {
        const { signal } = contextOf(environ);
        assert.equal(signal.aborted, false);
        signal.addEventListener("abort", () => aborted.happen(signal));
      };
      if (read === "before") watch();
      ok(startResponse);
      if (leave === "after") yield bytes("one");
      if (read === "after") watch();
      waiting.happen();
      await aborted.wait();
    });
    const client = await Client.connect(server);
    await client.send(request("/"));
    await waiting.wait();
    if (leave === "after") await client.until(/one/);
    client.leave();
    const signal = await aborted.wait();
    assert.equal(signal.aborted, true);
    assert.equal((signal.reason as Error).name, "AbortError");
    await server.shutdown();
    assert.equal(server.errors.text, "");
  });
}

test("the signal is aborted already when it is read after the client has left", async () => {
  const closed = new Event<FetchContext>("close()");
  await using server = startPatient((environ, startResponse) => {
    ok(startResponse);
    return Object.assign(
      (function* () {
        for (;;) yield bytes("one");
      })(),
      { close: () => closed.happen(contextOf(environ)) },
    );
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  client.leave();
  assert.equal((await closed.wait()).signal.aborted, true);
});

/** Complete responses, of every kind. */
const COMPLETE: Record<string, { method?: string; status?: string; headers?: HeaderList; body(): ResponseBody }> = {
  "an array": { body: () => [bytes("one")] },
  "an empty array": { body: () => [] },
  "a generator": { body: generated("one", "two") },
  "a generator of one chunk": { headers: [...PLAIN, ["Content-Length", "3"]], body: generated("one") },
  "a generator of a declared length": { headers: [...PLAIN, ["Content-Length", "6"]], body: generated("one", "two") },
  "an async generator": { body: generatedAsync("one", "two") },
  "a readable stream": { body: () => ReadableStream.from([bytes("one"), bytes("two")]) },
  "POST": { method: "POST", body: generated("one", "two") },
  "HEAD": { method: "HEAD", body: generated("one", "two") },
  "204": { status: "204 No Content", headers: [], body: () => [] },
};

test("the signal does not abort when the response was complete, whenever it is read", async () => {
  for (const [name, { method = "GET", status = "200 OK", headers = PLAIN, body }] of Object.entries(COMPLETE)) {
    for (const read of ["before", "during", "after"]) {
      const signals: AbortSignal[] = [];
      const contexts: FetchContext[] = [];
      const server = startPatient((environ, startResponse) => {
        const context = contextOf(environ);
        contexts.push(context);
        if (read === "before") signals.push(context.signal);
        startResponse(status, headers);
        const inner = body();
        if (read !== "during" || Array.isArray(inner)) return inner;
        return (async function* () {
          for await (const chunk of inner) {
            yield chunk;
            signals.push(context.signal);
          }
        })();
      });
      const client = await Client.connect(server);
      await client.send(request("/", { method, headers: method === "POST" ? ["Content-Length: 4"] : [], body: "" }));
      if (method === "POST") await client.send("form");
      await client.end();
      await server.shutdown();
      for (const signal of [...signals, ...contexts.map((context) => context.signal)]) {
        assert.equal(signal.aborted, false, `${name}, read ${read}`);
      }
    }
  }
});

test("the signal of a complete response does not abort when its client leaves a later request", async () => {
  const signals: AbortSignal[] = [];
  const aborted = new Event("the second signal");
  await using server = startPatient(async function* (environ, startResponse) {
    const { signal } = contextOf(environ);
    signals.push(signal);
    const isSecond = signals.length === 2;
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
    if (!isSecond) return;
    signal.addEventListener("abort", () => aborted.happen());
    await aborted.wait();
  });
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await client.until(/two\r\n0\r\n\r\n/);
  await client.send(request("/"));
  await client.until(/two\r\n0\r\n\r\n.*two\r\n/s);
  client.leave();
  await aborted.wait();
  await server.shutdown();
  assert.deepEqual(signals.map((signal) => signal.aborted), [false, true]);
});

test("the signal does not abort when it is the application that fails", async () => {
  const signals: AbortSignal[] = [];
  for (const first of [[], [bytes("one")]]) {
    const server = startPatient(function* (environ, startResponse) {
      signals.push(contextOf(environ).signal);
      ok(startResponse);
      yield* first;
      throw new Error("failed by design");
    });
    await exchange(server, request("/"));
    await server.shutdown();
  }
  assert.deepEqual(signals.map((signal) => signal.aborted), [false, false]);
});

// draining and stopping

test("draining is false until the server is told to stop, and then true", async () => {
  const contexts: FetchContext[] = [];
  const go = new Event("permission to go on");
  const server = startPatient(async function* (environ, startResponse) {
    contexts.push(contextOf(environ));
    ok(startResponse);
    yield bytes("one");
    await go.wait();
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  assert.equal(contexts[0]?.draining, false);
  const stopped = server.shutdown();
  assert.equal(contexts[0]?.draining, true);
  go.happen();
  await stopped;
});

/** A stream without an end, which waits for its client to leave and for the server to stop. */
const events: Application = async function* (environ, startResponse) {
  ok(startResponse);
  yield bytes("first");
  const { signal, stopping } = contextOf(environ);
  const end = AbortSignal.any([signal, stopping]);
  if (!end.aborted) await new Promise((resolve) => end.addEventListener("abort", resolve));
  yield bytes(stopping.aborted ? " stopping" : " left");
};

/** Opens streams, each up to its first chunk. */
function openStreams(server: Server, count: number): Promise<Client[]> {
  return Promise.all(Array.from({ length: count }, async () => {
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/first/);
    return client;
  }));
}

test("a server with open streams stops when these end by stopping, and tells each of them", async () => {
  const server = startPatient(events);
  const clients = await openStreams(server, 20);
  await server.shutdown();
  for (const client of clients) assert.equal(parse(await client.end()).body, "first stopping");
  assert.equal(server.errors.text, "");
});

test("stopping aborts at the beginning of shutdownDelay, in which the server goes on", async () => {
  const server = startPatient(pingable(events), { shutdownDelay: 500 });
  const [client] = await openStreams(server, 1);
  const stopped = server.shutdown();
  assert.equal(parse(await client!.end()).body, "first stopping");
  assert.equal((await exchange(server, request("/ping"))).body, "pong");
  await stopped;
});

test("stopping is one signal for all requests, aborted with an AbortError of status 503 and not by a client", async () => {
  const contexts: FetchContext[] = [];
  const server = startPatient((environ, startResponse) => {
    contexts.push(contextOf(environ));
    return events(environ, startResponse);
  });
  const [first] = await openStreams(server, 2);
  const [{ stopping, signal }, other] = contexts as [FetchContext, FetchContext];
  assert.equal(other.stopping, stopping);
  const left = new Event("the client leaving");
  signal.addEventListener("abort", () => left.happen());
  first!.leave();
  await left.wait();
  assert.equal(stopping.aborted, false);
  await server.shutdown();
  assert.equal(stopping.aborted, true);
  assert.equal(stopping.reason.name, "AbortError");
  assert.equal(stopping.reason.status, 503);
});

test("an application that throws the reason of stopping before its first chunk answers with 503, which is not logged", async () => {
  const called = new Event<AbortSignal>("the call");
  const server = startPatient(async (environ) => {
    const { stopping } = contextOf(environ);
    called.happen(stopping);
    await new Promise((resolve) => stopping.addEventListener("abort", resolve));
    throw stopping.reason;
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await called.wait();
  await server.shutdown();
  assert.equal(parse(await client.end()).status, 503);
  assert.equal(server.errors.text, "");
});

test("toEnviron, testEnviron and toFetch have a stopping that has not aborted, and draining is false", async () => {
  const contexts = [contextOf(toEnviron(new Request(HERE))), contextOf(testEnviron())];
  await answer((environ, startResponse) => {
    contexts.push(contextOf(environ));
    return hello(environ, startResponse);
  });
  assert.equal(contexts.length, 3);
  for (const { stopping, draining } of contexts) {
    assert.ok(stopping instanceof AbortSignal);
    assert.equal(stopping.aborted, false);
    assert.equal(draining, false);
  }
});

// waitUntil

test("waitUntil keeps a stopping server alive until the work has settled, well or badly", async () => {
  for (const isGood of [true, false]) {
    const events: string[] = [];
    const go = new Event("permission to go on");
    const server = startPatient((environ, startResponse) => {
      contextOf(environ).waitUntil((async () => {
        await go.wait();
        events.push("worked");
        if (!isGood) throw new Error("work undone");
      })());
      ok(startResponse);
      return [bytes("one")];
    });
    assert.equal((await exchange(server, request("/"))).body, "one");
    const stopped = server.shutdown().then(() => events.push("stopped"));
    await stopAnother();
    go.happen();
    await stopped;
    assert.deepEqual(events, ["worked", "stopped"]);
    assert.equal(/work undone/.test(server.errors.text), !isGood);
  }
});

test("work after the response that fails is logged", async () => {
  await using server = startPatient((environ, startResponse) => {
    contextOf(environ).waitUntil(Promise.reject(new Error("work undone")));
    ok(startResponse);
    return [bytes("one")];
  });
  assert.equal((await exchange(server, request("/"))).body, "one");
  await server.errors.matches(/work undone/);
});

test("the fetch.context of toEnviron reports work that fails", async () => {
  const errors = new ErrorLog();
  const environ = toEnviron(new Request("http://localhost/"), { errors });
  environ["fetch.context"]!.waitUntil(Promise.reject(new Error("The mail was not sent")));
  await errors.matches(/The mail was not sent/);
});
