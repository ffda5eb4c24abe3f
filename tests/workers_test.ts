/**
 * Worker threads: one application on one port, as many threads as there is work for.
 *
 * @module
 */

import assert from "node:assert/strict";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { serve, type ServeOptions } from "../mod.ts";
import { Child, Client, parse, request, RUNTIME, within, workspace } from "./support.ts";

const { FOLDER, newPath } = workspace();

const FLAGS = ["--no-prompt", "--allow-net", "--allow-read", "--allow-write", "--allow-env", "--unstable-net"];

/** What every program here begins with: an application that says which thread it is, and does what it is told. */
const APPLICATION = `
  import { writeSync } from "node:fs";
  import process from "node:process";
  import { parentPort } from "node:worker_threads";
  import { serve } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
  const id = crypto.randomUUID();
  process.on("exit", () => {
    if (!import.meta.main) try { writeSync(1, "ends " + id + "\\n"); } catch {} // nobody may read it any more
  });
  const app = async (environ, startResponse) => {
    const { PATH_INFO: path } = environ;
    if (path === "/die") setTimeout(() => { throw new Error("by request"); });
    if (path === "/fail") throw new Error("an error for the deployer");
    if (path === "/exit") process.exit(3);
    if (path === "/never") await new Promise(() => {});
    for (const message of path === "/post" ? [null, "stopped", { ready: true }, { failure: "a lie" }] : []) {
      parentPort.postMessage(message);
      globalThis.postMessage?.(message);
    }
    while (path === "/loop");
    if (path === "/stall") for (const end = performance.now() + 1200; performance.now() < end;);
    if (path === "/burn") for (const end = performance.now() + 20; performance.now() < end;);
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    const text = (value) => new TextEncoder().encode(String(value));
    const argument = process.argv[2];
    const { "wsgi.multiprocess": multiprocess, "fetch.context": { draining } } = environ;
    if (path !== "/stream" && path !== "/events") return [text(JSON.stringify({ id, multiprocess, argument, draining }))];
    return (async function* () {
      yield text(id);
      const { stopping } = environ["fetch.context"];
      if (path === "/events" && !stopping.aborted) await new Promise((resolve) => stopping.addEventListener("abort", resolve));
      writeSync(1, "streams\\n");
      await environ["wsgi.input"].read();
      yield text("two");
    })();
  };
  const run = (options, served = app) => serve(served, { port: 0, onListen: ({ port }) => writeSync(1, "port " + port + "\\n"), ...options });
`;

/** A program of its own, with a name that is its. */
function program(code: string, flags = FLAGS, ...args: string[]): Child {
  const file = newPath(".mjs");
  writeFileSync(file, APPLICATION + code);
  return new Child(process.execPath, ["run", ...(RUNTIME === "deno" ? flags : []), file, ...args]);
}

/** A program that serves with workers, and exports the application as it is told. */
function serving(workers: ServeOptions["workers"], exported = "export { app as application };"): Child {
  return program(`${exported}\nif (import.meta.main) run(${JSON.stringify({ workers })});`);
}

/**
 * What a thread answers, asked over a connection of its own. One that is accepted by a thread which ends in this moment
 * is closed without a word, and asked again, as clients do.
 */
async function get(port: number, path: string): Promise<string> {
  for (;;) {
    const client = await Client.connect({ port, hostname: "127.0.0.1" });
    await client.send(request(path));
    const received = await client.end();
    if (received !== "" || path === "/die" || path === "/exit") return parse(received).body;
  }
}

/** Asks until as many workers as expected have answered, and gives their names. */
async function threadsOf(port: number, expected: number): Promise<Set<string>> {
  const ids = new Set<string>();
  const all = async () => {
    while (ids.size < expected) {
      const { id } = JSON.parse(await get(port, "/"));
      ids.add(id);
    }
    return ids;
  };
  return await within(all(), `${expected} workers`);
}

/** Keeps the workers busy; gives what lets them rest. */
function burn(port: number): () => Promise<unknown> {
  let isBusy = true;
  const load = Array.from({ length: 4 }, async () => {
    while (isBusy) await get(port, "/burn");
  });
  return () => {
    isBusy = false;
    return Promise.all(load);
  };
}

for (
  const [what, exported, workers] of [
    ["exported as application", "export { app as application };", 3],
    ["exported by default", "export default app;", 3],
    ["named in an option", "export { app as site };", { min: 3, max: 3, export: "site" }],
  ] as const
) {
  test(`three workers serve one application on one port: ${what}`, async () => {
    await using child = serving(workers, exported);
    const { port } = await child.listening();
    await threadsOf(port, 3);
    assert.equal(JSON.parse(await get(port, "/")).multiprocess, true);
    child.kill("SIGTERM");
    const { code, errors } = await child.ended();
    assert.equal(code, 0, errors);
  });
}

test("workers take the application from another module, if one is named", async () => {
  const module = join(FOLDER, "application.mjs");
  writeFileSync(module, `${APPLICATION}\nexport { app as application };`);
  await using child = program(
    `if (import.meta.main) run({ workers: { min: 2, max: 2, module: ${
      JSON.stringify(pathToFileURL(module).href)
    } } });`,
  );
  const { port } = await child.listening();
  await threadsOf(port, 2);
});

test("the line on standard error says how many workers there are", async () => {
  await using child = program(
    "export { app as application }; if (import.meta.main) serve(app, { port: 0, workers: 2 });",
  );
  await child.until(/^Serving on http:\/\/localhost:\d+\/ with \S+, 2 workers$/m);
});

test("SIGTERM lets workers finish what is under way", async () => {
  await using child = serving(2);
  const { port } = await child.listening();
  await threadsOf(port, 2);
  const client = await Client.connect({ port, hostname: "127.0.0.1" });
  await client.send(request("/stream", { method: "POST", headers: ["Content-Length: 3"] }));
  await child.until(/^streams$/m);
  child.kill("SIGTERM");
  await client.send("end");
  const { body, complete } = parse(await client.end());
  assert.match(body, /^[\w-]{36}two$/);
  assert.ok(complete);
  assert.equal((await child.ended()).code, 0);
});

test("workers with open streams end when these end by stopping", async () => {
  await using child = serving(2);
  const { port } = await child.listening();
  const clients = await Promise.all(Array.from({ length: 10 }, async () => {
    const client = await Client.connect({ port, hostname: "127.0.0.1" });
    await client.send(request("/events"));
    await client.until(/\r\n\r\n24\r\n/);
    return client;
  }));
  child.kill("SIGTERM");
  for (const client of clients) assert.match(parse(await client.end()).body, /^[\w-]{36}two$/);
  const { code, errors } = await child.ended();
  assert.equal(code, 0, errors);
});

test("a server that is stopped before its workers have begun ends", async () => {
  await using child = program(`
    export { app as application };
    if (import.meta.main) run({ workers: { min: 1, max: 2 }, signal: AbortSignal.abort() });
  `);
  const { code, output } = await child.ended();
  assert.equal(code, 0);
  assert.equal(output, "");
});

for (const [path, reason] of [["/die", "Error: by request"], ["/exit", "it has ended"]] as const) {
  test(`a worker that dies is replaced, and the server says so: ${path}`, async () => {
    await using child = serving(2);
    const { port } = await child.listening();
    const before = await threadsOf(port, 2);
    await get(port, path);
    await child.until(new RegExp(`^Worker \\d has died, another follows in 100 ms: ${reason}$`, "m"));
    const after = new Set(before);
    const another = async () => {
      while (after.size === before.size) for (const id of await threadsOf(port, 1)) after.add(id);
    };
    await within(another(), "another worker");
    child.kill("SIGTERM");
    assert.equal((await child.ended()).code, 0);
  });
}

test("a worker that cannot begin in the place of one that has died is tried again, while the others serve", async () => {
  const flag = join(FOLDER, "is-away");
  await using child = program(`
    import { existsSync } from "node:fs";
    if (existsSync(${JSON.stringify(flag)})) throw new Error("The database is away");
    export { app as application };
    if (import.meta.main) run({ workers: 2 });
  `);
  const { port } = await child.listening();
  const before = await threadsOf(port, 2);
  writeFileSync(flag, "");
  await get(port, "/die");
  await child.until(
    /^Worker 3 has died, another follows in 200 ms: file:.* cannot be imported: Error: The database is away$/m,
  );
  for (const id of await threadsOf(port, 1)) assert.ok(before.has(id));
  rmSync(flag);
  await threadsOf(port, 2);
});

test("a worker that does not answer is reported once, and once more when it answers again", async () => {
  await using child = serving({ max: 1, interval: 100 });
  const { port } = await child.listening();
  await get(port, "/stall");
  await child.until(/^Worker 1 has not answered for 0\.5 s\nWorker 1 answers after [\d.]+ s$/m);
  child.kill("SIGTERM");
  assert.equal((await child.ended()).errors.match(/has not answered/g)?.length, 1);
});

test("an overloaded worker does not count as one that does not answer", async () => {
  await using child = serving({ max: 1, interval: 300 });
  const { port } = await child.listening();
  let count = 0;
  const ask = async () => {
    const client = await Client.connect({ port, hostname: "127.0.0.1" });
    while (count++ < 100) {
      client.received = "";
      await client.send("GET /burn HTTP/1.1\r\nHost: test.example\r\n\r\n");
      await client.reply();
    }
    client.leave();
  };
  await Promise.all(Array.from({ length: 32 }, ask));
  child.kill("SIGTERM");
  assert.doesNotMatch((await child.ended()).errors, /has not answered/);
});

/** How many sockets listen on a port: one a worker. */
function listenersOn(port: number): number {
  const address = `:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000 0A`;
  return readFileSync("/proc/net/tcp", "utf8").split(address).length - 1;
}

test("a worker in an endless loop is replaced after its timeout; Deno cannot end it", {
  skip: existsSync("/proc/net/tcp") ? false : "there is no /proc/net/tcp",
}, async () => {
  await using child = serving({ min: 2, max: 2, interval: 50, timeout: 4000 });
  const { port } = await child.listening();
  const before = await threadsOf(port, 2);
  const stuck = await Client.connect({ port, hostname: "127.0.0.1" });
  await stuck.send(request("/loop"));
  const [, remains] = await child.until(
    /^Worker \d is given up, another follows in 100 ms: it has not answered for 4 s(.*)$/m,
  );
  assert.equal(remains, RUNTIME === "deno" ? "; Deno cannot end it, so that it keeps its part of the connections" : "");
  const others = new Set<string>();
  const clients: Client[] = [];
  const another = async () => {
    while ([...others].every((id) => before.has(id)) || listenersOn(port) !== (RUNTIME === "deno" ? 3 : 2)) {
      // Those that come to the one in the loop are never answered on Deno, and with 503 on Bun.
      const client = await Client.connect({ port, hostname: "127.0.0.1" });
      clients.push(client);
      await client.send(request("/"));
      client.end().then((received) => {
        const { status, body } = parse(received);
        if (status === 200) others.add(JSON.parse(body).id);
      }, () => {});
      // The kernel keeps some 500 connections that nobody accepts. It ignores a client beyond them.
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  await within(another(), "another worker");
  stuck.leave();
  for (const client of clients) client.leave();
});

test("a replacement that never begins to serve is reported, and replaced after its timeout", async () => {
  const flag = join(FOLDER, "is-slow");
  const workers = { min: 2, max: 2, interval: 50, timeout: 4000 };
  await using child = program(`
    import { existsSync } from "node:fs";
    if (existsSync(${JSON.stringify(flag)})) await new Promise((resolve) => setTimeout(resolve, 2 ** 30));
    export { app as application };
    if (import.meta.main) run({ workers: ${JSON.stringify(workers)} });
  `);
  const { port } = await child.listening();
  await threadsOf(port, 2);
  writeFileSync(flag, "");
  await get(port, "/die");
  await child.until(/^Worker 3 has not begun to serve for 0\.25 s$/m);
  rmSync(flag);
  await child.until(/^Worker 3 is given up, another follows in 200 ms: it has not begun to serve for 4 s$/m);
  await threadsOf(port, 2);
});

test("a server whose workers never begin to serve ends after their timeout", async () => {
  await using child = program(`
    if (!import.meta.main) await new Promise((resolve) => setTimeout(resolve, 2 ** 30));
    export { app as application };
    if (import.meta.main) run({ workers: { max: 1, interval: 50, timeout: 200 } });
  `);
  const { code, errors } = await child.ended();
  assert.deepEqual({ code, errors }, {
    code: 1,
    errors: "Cannot serve with workers: it has not begun to serve for 0.2 s\n",
  });
});

test("a message that an application posts is not taken for one of its worker", async () => {
  await using child = serving(1);
  const { port } = await child.listening();
  const [id] = await threadsOf(port, 1);
  assert.equal(JSON.parse(await get(port, "/post")).id, id);
  assert.equal(JSON.parse(await get(port, "/")).id, id);
  child.kill("SIGTERM");
  assert.deepEqual(await child.ended().then(({ code, errors }) => ({ code, errors })), { code: 0, errors: "" });
});

test("the exit status tells that a worker had to abort what was under way", async () => {
  await using child = program(`
    export { app as application };
    if (import.meta.main) run({ workers: 2, shutdownTimeout: 50 });
  `);
  const { port } = await child.listening();
  const client = await Client.connect({ port, hostname: "127.0.0.1" });
  await client.send(request("/stream", { method: "POST", headers: ["Content-Length: 3"] }));
  await child.until(/^streams$/m);
  child.kill("SIGTERM");
  const { body, complete } = parse(await client.end());
  assert.match(body, /^[\w-]{36}$/);
  assert.equal(complete, false);
  assert.equal((await child.ended()).code, 143);
});

test("with a range, the number of workers follows the load, up and down", async () => {
  await using child = serving({ min: 1, max: 2, interval: 50, scaleDownDelay: 300 });
  const { port } = await child.listening();
  const rest = burn(port);
  await threadsOf(port, 2);
  await rest();
  // Until the second has gone, it answers now and then.
  const gone = async () => {
    for (let id = "", same = 0; same < 40;) {
      const [next = ""] = await threadsOf(port, 1);
      same = next === id ? same + 1 : 0;
      id = next;
    }
  };
  await within(gone(), "the end of a worker");
});

test("a worker ends its connections for a while after another was added, also when the clock is set back", async () => {
  await using child = program(`
    export { app as application };
    if (import.meta.main) run({ workers: { min: 1, max: 2, interval: 50 } });
    else Date.now = () => 0;
  `);
  const { port } = await child.listening();
  const rest = burn(port);
  await threadsOf(port, 2);
  await rest();
  const ending = new Set<string>();
  const kept = async () => {
    for (;;) {
      const client = await Client.connect({ port, hostname: "127.0.0.1" });
      await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
      const { headers, body } = await client.reply();
      client.leave();
      const { id } = JSON.parse(body);
      if (headers.some(([name]) => name === "connection")) ending.add(id);
      else if (ending.has(id)) return;
    }
  };
  await within(kept(), "a connection that is kept");
});

test("only an idle worker is stopped", async () => {
  await using child = serving({ min: 1, max: 2, interval: 50, scaleDownDelay: 300 });
  const { port } = await child.listening();
  const rest = burn(port);
  await threadsOf(port, 2);
  const streams = new Map<string, Client>();
  while (streams.size < 2) {
    const client = await Client.connect({ port, hostname: "127.0.0.1" });
    await client.send(request("/stream", { method: "POST", headers: ["Content-Length: 3"] }));
    const [id] = await client.until(/[\w-]{36}(?=\r\n$)/);
    if (streams.has(id)) client.leave();
    else streams.set(id, client);
  }
  await rest();
  const [[first, ended], [, kept]] = [...streams] as [[string, Client], [string, Client]];
  await ended.send("end");
  assert.ok(parse(await ended.end()).complete);
  assert.equal((await child.until(/^ends (.*)$/m))[1], first);
  await kept.send("end");
  assert.ok(parse(await kept.end()).complete);
});

test("a worker that is stopped loses no request on a kept connection", async () => {
  await using child = serving({ min: 1, max: 2, interval: 50, scaleDownDelay: 100 });
  const { port } = await child.listening();
  let isWanted = true;
  const ask = async () => {
    let client: Client | undefined;
    let usedAt = -Infinity;
    while (isWanted) {
      if (client?.isClosed) client = undefined;
      if (!client) usedAt = -Infinity;
      client ??= await Client.connect({ port, hostname: "127.0.0.1" });
      client.received = "";
      // A connection that is new, or that a busy machine has left unused for so long, may be closed as an idle one.
      const isKept = performance.now() - usedAt < 500;
      await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
      const { status, headers, body, complete } = await client.reply();
      usedAt = performance.now();
      if (!isKept && status === 0) {
        client = undefined;
        continue;
      }
      assert.deepEqual({ status, complete }, { status: 200, complete: true });
      assert.equal(JSON.parse(body).draining, false); // or a server with workers would not be ready, now and then
      if (headers.some(([name]) => name === "connection")) {
        client.leave();
        client = undefined;
      }
      await new Promise((resolve) => setTimeout(resolve, 10 * Math.random())); // or nobody would retire
    }
    client?.leave();
  };
  const clients = Promise.all(Array.from({ length: 16 }, ask));
  clients.catch(() => {}); // it is looked at in the end
  for (let retired = 1; retired <= 3; retired++) {
    const rest = burn(port);
    await threadsOf(port, 2);
    await rest();
    await child.until(new RegExp(`(?:^ends .*\\s+){${retired}}`, "m"));
  }
  isWanted = false;
  await clients;
});

for (const workers of [undefined, 2]) {
  for (const stream of ["stdout", "stderr"] as const) {
    test(`a server goes on when its output is not read: ${stream}, ${workers ?? "no"} workers`, async () => {
      await using child = program(`
        const printing = (environ, startResponse) => {
          console.log("printed");
          console.error("printed");
          return app(environ, startResponse);
        };
        export { printing as application };
        if (import.meta.main) run({ workers: ${workers} }, printing);
      `);
      const { port } = await child.listening();
      child.close(stream);
      for (let count = 0; count < 20; count++) await threadsOf(port, workers ?? 1);
      child.kill("SIGTERM");
      assert.equal((await child.ended()).code, 0);
    });
  }
}

test("a main module that waits for its server is compared with what it serves on Deno, and not on Bun", async () => {
  await using child = program(`
    export { app as application };
    if (import.meta.main) {
      const other = (environ, startResponse) => app(environ, startResponse);
      await run({ workers: 1 }, other).finished;
    }
  `);
  if (RUNTIME === "deno") {
    assert.match((await child.ended()).errors, /^Cannot serve with workers: file:\S+ serves something else/m);
    return;
  }
  const { port } = await child.listening();
  await threadsOf(port, 1);
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, 0);
});

test("a single worker sets wsgi.multiprocess to false, and has the arguments of the program", async () => {
  await using child = program(
    "export { app as application }; if (import.meta.main) run({ workers: 1 });",
    FLAGS,
    "an argument",
  );
  const { port } = await child.listening();
  const { multiprocess, argument } = JSON.parse(await get(port, "/"));
  assert.deepEqual({ multiprocess, argument }, { multiprocess: false, argument: "an argument" });
});

test("one worker that shares its port with other processes says so, also where the runtime's own option asks for it", async () => {
  await using child = program(
    `export { app as application }; if (import.meta.main) run({ workers: 1, ${RUNTIME}: { reusePort: true } });`,
  );
  const { port } = await child.listening();
  assert.equal(JSON.parse(await get(port, "/")).multiprocess, true);
});

test("a port that another server with workers has is in use", async () => {
  await using first = serving(2);
  const { port } = await first.listening();
  await using second = program(
    `export { app as application }; if (import.meta.main) run({ port: ${port}, workers: 2 });`,
  );
  const { code, errors } = await second.ended();
  assert.equal(code, 1);
  assert.match(errors, /Cannot listen on 127\.0\.0\.1:\d+: another server has the port/);
  await threadsOf(port, 2);
});

test("a program that exports another application than it serves gets an error, and does not go on", async () => {
  await using child = program(`
    export { app as application };
    if (import.meta.main) serve((environ, startResponse) => app(environ, startResponse), { port: 0, workers: 2 });
  `);
  const { code, errors } = await child.ended();
  assert.equal(code, 1);
  assert.match(errors, /^Cannot serve with workers: file:\S+ serves something else than it exports$/m);
});

test("an error thrown by onListen when the workers serve stops the workers, and is reported", async () => {
  await using child = program(`
    export { app as application };
    const onListen = () => {
      throw new Error("no");
    };
    if (import.meta.main) run({ workers: 2, onListen });
  `);
  const { code, errors } = await child.ended();
  assert.deepEqual({ code, errors }, { code: 1, errors: "no\n" });
});

test("serve throws when workers may not read the program on Deno", {
  skip: RUNTIME === "bun" && "Bun asks for no permission",
}, async () => {
  await using child = program(
    "export { app as application }; if (import.meta.main) run({ workers: 2 });",
    ["--no-prompt", "--allow-net", "--unstable-net"],
  );
  const { code, errors } = await child.ended();
  assert.equal(code, 1);
  assert.match(
    errors,
    /Error: Cannot use option "workers": Deno needs --allow-read for "file:.*", which the threads import/,
  );
});

test("a program that exports no application gets an error, and does not go on", async () => {
  await using child = serving(2, "");
  const { code, errors } = await child.ended();
  assert.equal(code, 1);
  assert.match(
    errors,
    /^Cannot serve with workers: file:\S+ has no export "application" and no default one, expected export const application = app$/m,
  );
});

test("a program that serves in its workers, too, gets an error", async () => {
  await using child = program("export { app as application }; run({ workers: 2 });");
  const { code, errors } = await child.ended();
  assert.equal(code, 1);
  assert.match(
    errors,
    /^Cannot serve with workers: file:\S+ cannot be imported: Error: Cannot serve in a thread of a server: .* if \(import\.meta\.main\) serve\(app, \{ workers \}\)$/m,
  );
});

for (const [what, write] of [["is flushed", "text"], ["throws", "text, thrown()"]] as const) {
  test(`errors in a worker go to the option errors of the main thread, which ${what}`, async () => {
    await using child = program(`
      export { app as application };
      const thrown = () => { throw new Error("The log is full"); };
      let held = "";
      const errors = {
        write: (text) => void (held += ${write}),
        writelines() {},
        flush: () => writeSync(1, "reported: " + held),
      };
      if (import.meta.main) run({ workers: 1, errors });
    `);
    const { port } = await child.listening();
    assert.equal(await get(port, "/fail"), "Internal Server Error\n");
    await child.until(
      what === "throws"
        ? /^Application failed on GET .*an error for/m
        : /^reported: Application failed on GET .*an error for/m,
    );
    await threadsOf(port, 1);
  });
}

for (
  const workers of [
    ...[0, -1, 1.5, NaN, "2", {}, null],
    ...[{ max: 0 }, { min: 3, max: 2 }, { max: 2, interval: "1" }, { max: 2, timeout: 0 }, {
      max: 2,
      scaleDownDelay: -1,
    }],
    ...[{ max: 2, module: "" }, { max: 2, export: 5 }],
  ]
) {
  test(`workers ${JSON.stringify(workers)} are refused`, () => {
    const options: ServeOptions = JSON.parse(JSON.stringify({ port: 0 }));
    assert.throws(() => serve(() => [], Object.assign(options, { workers })), {
      name: "TypeError",
      message: /^Cannot use option "workers(?:\.\w+)?": found .*, expected /,
    });
  });
}

test("workers are refused on a unix socket, which they could not share", () => {
  const unix = join(FOLDER, "socket");
  assert.throws(() => serve(() => [], { unix, workers: 2 }), { name: "TypeError", message: /"workers" with "unix"/ });
});

test("workers are refused with options that cannot be copied for them", () => {
  const environ = { "example.now": () => Date.now() };
  assert.throws(() => serve(() => [], { port: 0, environ, workers: 2 }), {
    name: "TypeError",
    message: /"environ" with "workers".*copied/,
  });
});

test(
  "workers on Deno without --unstable-net are refused, with the other way",
  { skip: RUNTIME === "deno" ? false : "Bun needs no flag for it" },
  async () => {
    await using child = program("run({ workers: 2 });", ["--no-prompt", "--allow-net", "--allow-read"]);
    const { code, errors } = await child.ended();
    assert.equal(code, 1);
    assert.match(errors, /Cannot use option "workers": Deno needs --unstable-net for it, or "deno serve --parallel"/);
  },
);
