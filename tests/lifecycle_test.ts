/**
 * How a server starts, and how it stops.
 *
 * @module
 */

import assert from "node:assert/strict";
import { connect } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { type Application, serve, type Server } from "../mod.ts";
import {
  assertServes,
  bytes,
  Client,
  contextOf,
  EMPTY,
  Event,
  exchange,
  FAILURE,
  hello,
  makeIdentity,
  ok,
  parse,
  request,
  runProgram,
  RUNTIME,
  SERVING,
  standardErrorOf,
  start,
  startPatient,
  STATUSES,
  stopAnother,
  untilRefused,
  within,
  workspace,
} from "./support.ts";

const { program, FOLDER } = workspace();

// Start

test("serve tells where it listens", async () => {
  await using server = start(hello);
  assert.ok(Number.isInteger(server.port) && server.port > 0);
  assert.equal(server.hostname, "127.0.0.1");
  assert.equal(server.url, `http://localhost:${server.port}/`);
  assert.equal(server.runtime, RUNTIME);
  assert.ok(server.finished instanceof Promise);
  assert.equal((await exchange(server, request("/"))).body, "Hello");
});

test("serve calls onListen once, with the server, before it returns", async () => {
  const received: unknown[] = [];
  let during = "";
  const server = serve(hello, {
    port: 0,
    onListen(given) {
      received.push(given);
      during = given.url;
    },
  });
  assert.equal(received.length, 1);
  assert.equal(received[0], server);
  assert.equal(during, server.url);
  assert.equal((await exchange(server, request("/"))).body, "Hello");
  await server.shutdown();
  assert.equal(received.length, 1);
});

async function isRefused(port: number): Promise<boolean> {
  try {
    await fetch(`http://127.0.0.1:${port}/`);
    return false;
  } catch {
    return true;
  }
}

test("serve listens no longer when onListen throws", async () => {
  let port = 0;
  const onListen = (server: Server) => {
    ({ port } = server);
    throw FAILURE;
  };
  assert.throws(() => serve(hello, { port: 0, onListen }), FAILURE);
  assert.ok(port > 0);
  const refused = new Event("the port being free");
  (async () => {
    while (!await isRefused(port)) await new Promise((resolve) => setImmediate(resolve));
    refused.happen();
  })();
  await refused.wait();
});

const VERSION = RUNTIME === "deno" ? `Deno/${process.versions.deno}` : `Bun/${process.versions.bun}`;

async function assertServesAt(port: number): Promise<void> {
  const client = await Client.connect({ port, hostname: "127.0.0.1" });
  await client.send(request("/"));
  assert.equal(parse(await client.end()).status, 200);
}

test("serve says its address and runtime once, and that it stops, on standard error only", async () => {
  await using child = program("serve(hello, { port: 0 });");
  const [, port] = await child.until(/localhost:(\d+)/);
  await assertServesAt(Number(port));
  child.kill("SIGTERM");
  const { code, output, errors } = await child.ended();
  assert.deepEqual({ code, output, errors }, {
    code: 0,
    output: "",
    errors: `Serving on http://localhost:${port}/ with ${VERSION}, 1 worker\n` +
      "Stopping on SIGTERM: nothing is under way, another signal ends the process at once\n",
  });
});

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);

for (
  const [what, options, url] of [
    ["one address", {}, /^http:\/\/localhost:\d+\/$/],
    ["all addresses", { hostname: "0.0.0.0" }, /^http:\/\/localhost:\d+\/$/],
    ["TLS", IDENTITY, /^https:\/\/localhost:\d+\/$/],
    ["a unix socket", { unix: join(FOLDER, "said.sock") }, /^http\+unix:\/\/%2F.+%2Fsaid\.sock\/$/],
  ] as const
) {
  test(`the line of a server on ${what} has its URL`, async () => {
    let expected = "";
    const printed = await standardErrorOf(async () => {
      await using server = serve(hello, { port: 0, ...options });
      assert.match(server.url, url);
      assert.equal(server.runtime, RUNTIME);
      expected = `Serving on ${server.url} with ${VERSION}, 1 worker`;
    });
    assert.deepEqual(printed, [expected]);
  });
}

test("onListen is called once, with the server, instead of the line", async () => {
  const servers: Server[] = [];
  const printed = await standardErrorOf(async () => {
    await using server = serve(hello, { port: 0, onListen: (server) => void servers.push(server) });
    assert.deepEqual(servers, [server]);
    await assertServes(server);
  });
  assert.equal(servers.length, 1);
  assert.deepEqual(printed, []);
});

test("serve throws the error that onListen throws, and listens no longer", async () => {
  const servers: Server[] = [];
  const failure = new Error("no");
  const onListen = (server: Server) => {
    servers.push(server);
    throw failure;
  };
  assert.throws(() => serve(hello, { port: 0, onListen }), failure);
  await within(servers[0]!.finished, "the end of the server");
  await untilRefused(servers[0]!);
});

// Stop

test("a program says where it serves in one line on standard error, and ends when the server has stopped", async () => {
  const { code, stdout, stderr } = await runProgram(`
    import { serve } from MOD;
    const server = serve((_environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [new TextEncoder().encode("Hello\\n")];
    }, { port: 0 });
    const response = await fetch("http://127.0.0.1:" + server.port + "/");
    console.log(server.url, await response.text());
    await server.shutdown();
  `);
  assert.equal(code, 0);
  assert.match(stderr, /^Serving on http:\/\/localhost:\d+\/[^\n]*\n$/);
  assert.match(stdout, /^http:\/\/localhost:\d+\/ Hello/);
  assert.equal(/http:\S+/.exec(stderr)![0], /http:\S+/.exec(stdout)![0]);
});

test("a server that is used with await using has stopped at the end of its block", async () => {
  let port: number;
  let finished = false;
  {
    await using server = start(hello);
    ({ port } = server);
    server.finished.then(() => finished = true);
    assert.equal((await exchange(server, request("/"))).body, "Hello");
    assert.equal(finished, false);
  }
  assert.equal(finished, true);
  assert.ok(await isRefused(port));
});

test("shutdown gives the same promise again, which is finished", async () => {
  const server = start(hello);
  const first = server.shutdown();
  assert.equal(server.shutdown(), first);
  assert.equal(first, server.finished);
  await within(first, "the end of the server");
  assert.equal(server.shutdown(), first);
});

test("a signal that is aborted later stops the server", async () => {
  const controller = new AbortController();
  const server = start(hello, { signal: controller.signal });
  assert.equal((await exchange(server, request("/"))).body, "Hello");
  controller.abort();
  await within(server.finished, "the end of the server");
  assert.ok(await isRefused(server.port));
});

test("a signal that is aborted already stops the server at once, which has listened", async () => {
  const listened: Server[] = [];
  const server = start(hello, { signal: AbortSignal.abort(), onListen: (server) => void listened.push(server) });
  assert.equal(listened.length, 1);
  await within(server.finished, "the end of the server");
  assert.ok(await isRefused(server.port));
});

test("two servers of one application do not know of each other", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.SERVER_PORT} ${environ["fetch.context"]!.draining}`)];
  };
  const first = start(app);
  await using second = start(app);
  assert.equal((await exchange(first, request("/"))).body, `${first.port} false`);
  await first.shutdown();
  assert.equal((await exchange(second, request("/"))).body, `${second.port} false`);
});

test("the option signal stops the server, and is no failure when it comes late or was there from the start", async () => {
  const controller = new AbortController();
  const go = new Event("permission to go on");
  const server = start(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    await go.wait();
    yield bytes("two");
  }, { signal: controller.signal });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  controller.abort();
  await untilRefused(server);
  go.happen();
  assert.equal(parse(await client.end()).complete, true);
  await within(server.finished, "the end of the server");
  const late = start(hello, { signal: controller.signal });
  await within(late.finished, "the end of a server that was stopped from the start");
  await untilRefused(late);
});

test("await using stops the server at the end of the block, and waits for it", async () => {
  let server: Server;
  let isFinished = false;
  {
    await using scoped = start(hello);
    server = scoped;
    server.finished.then(() => isFinished = true);
    await assertServes(server);
  }
  assert.equal(isFinished, true);
  await untilRefused(server);
});

/** Waits until nobody can connect any more. */
async function untilConnectionRefused(server: Server): Promise<void> {
  for (let attempts = 0; attempts < 1000; attempts++) {
    const socket = connect(server.port, server.hostname);
    const refused = new Event<boolean>("an answer to an attempt to connect");
    socket.once("connect", () => refused.happen(false));
    socket.once("error", () => refused.happen(true));
    try {
      if (await refused.wait()) return;
    } finally {
      socket.destroy();
    }
  }
  assert.fail("The server goes on listening");
}

test("a stopping server refuses new connections and finishes what is under way", async () => {
  const events: string[] = [];
  const waiting = new Event("an application that waits");
  const go = new Event("permission to go on");
  const server = startPatient(async (environ, startResponse) => {
    ok(startResponse);
    if (environ.PATH_INFO === "/stream") {
      return (async function* () {
        yield bytes("one");
        await go.wait();
        yield bytes("two");
      })();
    }
    waiting.happen();
    await go.wait();
    return [bytes("slow")];
  });
  const stream = await Client.connect(server);
  const slow = await Client.connect(server);
  await stream.send(request("/stream"));
  await slow.send(request("/slow"));
  await stream.until(/one/);
  await waiting.wait();
  const stopped = server.shutdown().then(() => events.push("stopped"));
  await untilConnectionRefused(server);
  events.push("go");
  go.happen();
  assert.equal(parse(await stream.end()).body, "onetwo");
  assert.equal(parse(await stream.end()).complete, true);
  assert.equal(parse(await slow.end()).body, "slow");
  await stopped;
  assert.deepEqual(events, ["go", "stopped"]);
  assert.equal(server.errors.text, "");
});

for (const [name, isBegun] of [["that is being read", true], ["that is still to be read", false]] as const) {
  test(`a stopping server finishes an upload ${name}`, async () => {
    const waiting = new Event("an application that waits");
    const go = new Event("permission to go on");
    const server = startPatient(async (environ, startResponse) => {
      const input = environ["wsgi.input"];
      const first = isBegun ? await input.read(3) : EMPTY;
      waiting.happen();
      await go.wait();
      const rest = await input.read();
      ok(startResponse);
      return [first, rest];
    });
    const client = await Client.connect(server);
    await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"] }) + "abc");
    await waiting.wait();
    const stopped = server.shutdown();
    await stopAnother();
    go.happen();
    await client.send("def");
    assert.equal(parse(await client.end()).body, "abcdef");
    await stopped;
    assert.equal(server.errors.text, "");
  });

  test(`an upload ${name} and never ends is aborted after shutdownTimeout`, async () => {
    const waiting = new Event("an application that waits");
    const failed = new Event<unknown>("a read() that fails");
    const go = new Event("permission to go on");
    const server = startPatient(async (environ, startResponse) => {
      const input = environ["wsgi.input"];
      if (isBegun) await input.read(3);
      waiting.happen();
      if (!isBegun) await go.wait();
      await input.read().catch((error) => failed.happen(error));
      ok(startResponse);
      return [];
    }, { shutdownTimeout: 10 });
    const client = await Client.connect(server);
    await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"] }) + "abc");
    await waiting.wait();
    await server.shutdown();
    await untilConnectionRefused(server);
    go.happen();
    assert.equal((await failed.wait() as Error).name, "AbortError");
    await client.until(/^HTTP\/1.1 503 /);
    client.leave();
    assert.equal(server.errors.text, "");
  });
}

test("a request that comes while uploads keep a stopping server is refused", async () => {
  const reading = new Event("an application that reads");
  const server = startPatient(async (environ, startResponse) => {
    reading.happen();
    const body = await environ["wsgi.input"].read();
    ok(startResponse);
    return [body];
  });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"] }) + "abc");
  await reading.wait();
  const stopped = server.shutdown();
  // Bun listens no longer. Deno has to, or it would break off the upload.
  if (RUNTIME === "bun") await assert.rejects(fetch(server.url));
  else assert.equal((await exchange(server, request("/"))).status, 503);
  await client.send("def");
  assert.equal(parse(await client.end()).body, "abcdef");
  await stopped;
});

test("a stopping server finishes an upload that nobody reads yet", async () => {
  const go = new Event("permission to go on");
  const server = startPatient(async (environ, startResponse) => {
    await go.wait();
    const body = await environ["wsgi.input"].read();
    ok(startResponse);
    return [body];
  });
  const waiting = await Client.connect(server);
  await waiting.send(request("/", { method: "POST", headers: ["Content-Length: 6", "Expect: 100-continue"] }));
  await waiting.until(/^HTTP\/1.1 100 /);
  // A request that is refused does not wait, and comes after the one that does.
  assert.equal((await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n")).status, 400);
  const stopped = server.shutdown();
  await waiting.send("abcdef");
  go.happen();
  assert.match(await waiting.end(), /\r\n\r\nabcdef$/);
  await stopped;
});

test("an infinite shutdownTimeout lets a stream come to its own end", async () => {
  const begun = new Event("a stream");
  const go = new Event("permission to go on");
  const server = startPatient(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    begun.happen();
    await go.wait();
    yield bytes("last");
  }, { shutdownTimeout: Infinity });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await begun.wait();
  const stopped = server.shutdown();
  await untilConnectionRefused(server);
  go.happen();
  const reply = parse(await client.end());
  assert.equal(reply.body, "firstlast");
  assert.equal(reply.complete, true);
  await stopped;
});

test("shutdown() can be called again, and settles like finished", async () => {
  const server = start((_environ, startResponse) => {
    ok(startResponse);
    return [];
  });
  const first = server.shutdown();
  assert.equal(server.shutdown(), first);
  assert.equal(server.finished, first);
  await within(first, "the end of the server");
  await untilConnectionRefused(server);
});

test("a request that is left after shutdownTimeout is aborted, and the application is told", async () => {
  const aborted = new Event("the signal");
  const waiting = new Event("two applications that wait");
  let count = 0;
  const server = startPatient(async function* (environ, startResponse) {
    const { signal } = contextOf(environ);
    ok(startResponse);
    if (environ.PATH_INFO === "/stream") yield bytes("one");
    signal.addEventListener("abort", () => aborted.happen());
    if (++count === 2) waiting.happen();
    await new Promise(() => {});
  }, { shutdownTimeout: 50 });
  const stream = await Client.connect(server);
  const slow = await Client.connect(server);
  await stream.send(request("/stream"));
  await slow.send(request("/slow"));
  await stream.until(/one/);
  await waiting.wait();
  await server.shutdown();
  await untilConnectionRefused(server);
  await aborted.wait();
  const reply = parse(await stream.end());
  assert.equal(reply.body, "one");
  assert.equal(reply.complete, false);
  assert.notEqual(parse(await slow.end()).status, 200);
});

test("a server that has waited in vain cuts no connection of another server", async () => {
  await using child = program(`${SERVING} run({ shutdownTimeout: 50 }); run();`);
  const [, first, second] = await child.until(/^port (\d+)\nport (\d+)$/m);
  const [cut, kept] = await Promise.all(
    [first, second].map((port) => Client.connect({ port: Number(port), hostname: "127.0.0.1" })),
  );
  for (const client of [cut!, kept!]) {
    await client.send(request("/stream"));
    await client.until(/one/);
  }
  child.kill("SIGTERM");
  assert.equal(parse(await cut!.end()).complete, false);
  await child.until(/^finished$/m);
  child.kill("SIGHUP");
  assert.equal(parse(await kept!.end()).complete, true);
  assert.equal((await child.ended()).code, STATUSES.SIGTERM);
});

test("an error thrown by onListen stops the server at once, however long shutdownDelay is", async () => {
  const servers: Server[] = [];
  const onListen = (server: Server) => {
    servers.push(server);
    throw new Error("no");
  };
  assert.throws(() => serve(hello, { port: 0, onListen, shutdownDelay: 3_600_000 }), /^Error: no$/);
  await within(servers[0]!.finished, "the end of the server");
});

test("a request that a stopping server refuses ends its connection, like every other request then", async () => {
  const server = start(hello, { shutdownDelay: 100, maxBodySize: 10, shutdownTimeout: 60_000 });
  const clients = await Promise.all([1, 2].map(() => Client.connect(server)));
  const stopped = server.shutdown();
  await clients[0]!.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await clients[1]!.send("POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 11\r\n\r\nhello world");
  for (const [index, status] of [200, 413].entries()) {
    const reply = await clients[index]!.reply();
    assert.equal(reply.status, status);
    assert.deepEqual(reply.headers.find(([name]) => name === "connection"), ["connection", "close"]);
  }
  await within(stopped, "the end of the server");
});

// Connections of a server that stops

test("a connection that is idle after a response is closed at once", async () => {
  const server = start(hello, { shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await client.until(/Hello$/);
  const stopped = server.shutdown();
  await client.end();
  await within(stopped, "the end of the server");
});

test("a half-sent head does not delay a stop for long; when it is completed by then, Bun answers with 503", async () => {
  const server = start(hello, { shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.1\r\nHost: test.ex");
  await exchange(server, request("/"));
  const stopped = server.shutdown();
  await untilRefused(server);
  await client.send("ample\r\n\r\n");
  assert.match(await client.end(), RUNTIME === "deno" ? /^$/ : /^HTTP\/1\.1 503 /);
  await within(stopped, "the end of the server");
});

test("a half-sent head that remains so is cut by a server that stops", async () => {
  const server = start(hello, { shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.1\r\nHost: test.ex");
  await exchange(server, request("/"));
  await within(server.shutdown(), "the end of the server");
  assert.equal(await client.end(), "");
});

test("a client that reads slowly gets all of a large response from a server that stops", async () => {
  const size = 16 * 1024 * 1024;
  const closed = new Event("the end of the application");
  const server = start((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([new Uint8Array(size)], { close: () => closed.happen() });
  }, { shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  client.pause();
  await client.send(request("/"));
  await closed.wait();
  const stopped = server.shutdown();
  await untilRefused(server);
  client.resume();
  const reply = parse(await client.end());
  assert.deepEqual([reply.body.length, reply.complete], [size, true]);
  await within(stopped, "the end of the server");
});
