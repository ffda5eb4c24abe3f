/**
 * SIGINT and SIGTERM, and the end of the process.
 *
 * @module
 */

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import {
  Child,
  Client,
  hello,
  parse,
  request,
  RUNTIME,
  SERVING,
  start,
  STATUSES,
  untilRefused,
  workspace,
} from "./support.ts";

const { newPath, program, serving } = workspace();

// SIGINT and SIGTERM

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

for (const signal of SIGNALS) {
  test(`${signal} stops accepting, finishes a stream, and the process ends with 0`, async () => {
    await using child = serving();
    const server = await child.listening();
    const client = await Client.connect(server);
    await client.send(request("/stream"));
    await client.until(/one/);
    child.kill(signal);
    await untilRefused(server);
    assert.equal(client.isClosed, false);
    child.kill("SIGHUP");
    const reply = parse(await client.end());
    assert.deepEqual([reply.body, reply.complete], ["onetwo", true]);
    const { code, output, errors } = await child.ended();
    assert.deepEqual({ code, errors }, { code: 0, errors: "" });
    assert.match(output, /closed \/stream\nfinished\n$/);
  });

  test(`${signal} finishes an upload that still arrives, and the process ends with 0`, async () => {
    await using child = serving();
    const server = await child.listening();
    const client = await Client.connect(server);
    await client.send(request("/upload", { method: "POST", headers: ["Content-Length: 6", "Expect: 100-continue"] }));
    await client.until(/ 100 Continue/);
    await client.send("abc");
    child.kill(signal);
    await untilRefused(server);
    await client.send("def");
    const reply = parse((await client.end()).replace(/^HTTP\/1\.1 100 Continue\r\n\r\n/, ""));
    assert.deepEqual([reply.body, reply.complete], ["abcdeftwo", true]);
    const { code, output, errors } = await child.ended();
    assert.deepEqual({ code, errors }, { code: 0, errors: "" });
    assert.match(output, /closed \/upload\nfinished\n$/);
  });

  test(`a second ${signal} ends the process at once with ${STATUSES[signal]}, and the connection is cut`, async () => {
    await using child = serving();
    const server = await child.listening();
    const client = await Client.connect(server);
    await client.send(request("/endless"));
    await client.until(/one/);
    child.kill(signal);
    await untilRefused(server);
    child.kill(signal);
    const reply = parse(await client.end());
    assert.deepEqual([reply.body, reply.complete], ["one", false]);
    const { code, output } = await child.ended();
    assert.equal(code, STATUSES[signal]);
    assert.match(output, /^closed \/endless$/m);
  });

  test(`a request that has not ended in time after ${signal} is aborted, and the process ends with ${STATUSES[signal]}`, async () => {
    await using child = serving({ shutdownTimeout: 50 });
    const server = await child.listening();
    const stream = await Client.connect(server);
    await stream.send(request("/endless"));
    await stream.until(/one/);
    const slow = await Client.connect(server);
    await slow.send(request("/slow"));
    await child.until(/^waits$/m);
    child.kill(signal);
    const reply = parse(await stream.end());
    assert.deepEqual([reply.body, reply.complete], ["one", false]);
    assert.notEqual(parse(await slow.end()).status, 200);
    const { code, output } = await child.ended();
    assert.equal(code, STATUSES[signal]);
    for (const line of ["told /endless", "told /slow", "closed /endless", "finished"]) {
      assert.equal(output.split("\n").filter((other) => other === line).length, 1, line);
    }
  });

  test(`with signals: false ${signal} does what it does without a server`, async () => {
    await using child = serving({ signals: false });
    const client = await Client.connect(await child.listening());
    await client.send(request("/endless"));
    await client.until(/one/);
    child.kill(signal);
    const { code, signal: killer, output } = await child.ended();
    assert.deepEqual([code, killer], [null, signal]);
    assert.doesNotMatch(output, /finished/);
  });

  test(`after the server has stopped ${signal} does what it does without one`, async () => {
    await using child = program(`
      ${SERVING}
      const server = run();
      const other = run();
      await server.shutdown();
      await other.shutdown();
      setInterval(() => {}, 1000);
      say("stopped");
    `);
    await child.until(/^stopped$/m);
    child.kill(signal);
    const { code, signal: killer } = await child.ended();
    assert.deepEqual([code, killer], [null, signal]);
  });

  test(`two servers of one process both finish on one ${signal}`, async () => {
    await using child = program(`${SERVING} run(); run();`);
    const [, first, second] = await child.until(/^port (\d+)\nport (\d+)$/m);
    const servers = [first, second].map((port) => ({ port: Number(port), hostname: "127.0.0.1" }));
    const clients = await Promise.all(servers.map((server) => Client.connect(server)));
    for (const client of clients) {
      await client.send(request("/stream"));
      await client.until(/one/);
    }
    child.kill(signal);
    for (const server of servers) await untilRefused(server);
    child.kill("SIGHUP");
    for (const client of clients) assert.equal(parse(await client.end()).complete, true);
    const { code, output } = await child.ended();
    assert.equal(code, 0);
    assert.match(output, /finished\n(?:closed \/stream\n)?finished\n$/);
  });

  test(`a first ${signal} cuts no connection of a server that was stopping already, nor of another server`, async () => {
    await using child = program(`
      ${SERVING}
      const server = run();
      run();
      process.once("SIGUSR2", () => void server.shutdown());
    `);
    const [, first, second] = await child.until(/^port (\d+)\nport (\d+)$/m);
    const servers = [first, second].map((port) => ({ port: Number(port), hostname: "127.0.0.1" }));
    const clients = await Promise.all(servers.map((server) => Client.connect(server)));
    for (const client of clients) {
      await client.send(request("/stream"));
      await client.until(/one/);
    }
    child.kill("SIGUSR2");
    await untilRefused(servers[0]!);
    child.kill(signal);
    await untilRefused(servers[1]!);
    child.kill("SIGHUP");
    for (const client of clients) {
      const reply = parse(await client.end());
      assert.deepEqual([reply.body, reply.complete], ["onetwo", true]);
    }
    assert.equal((await child.ended()).code, 0);
  });
}

for (const signal of SIGNALS) {
  test(`${signal} ends a process that has a timer left, within a second after its server has finished`, async () => {
    await using child = program(`
      ${SERVING}
      setInterval(() => {}, 60_000);
      let end;
      run().finished.then(() => void (end = performance.now()));
      process.on("exit", () => say("exit", performance.now() - end));
    `);
    const server = await child.listening();
    const client = await Client.connect(server);
    await client.send(request("/stream"));
    await client.until(/one/);
    child.kill(signal);
    await untilRefused(server);
    child.kill("SIGHUP");
    assert.equal(parse(await client.end()).body, "onetwo");
    const { code, output, errors } = await child.ended();
    assert.deepEqual({ code, errors }, { code: 0, errors: "" });
    assert.ok(Number(/^exit (.*)$/m.exec(output)![1]) < 2000, output);
  });

  test(`${signal} ends a process that has nothing left to do at once, with the exit status that it has set`, async () => {
    await using child = program(`
      ${SERVING}
      let end;
      run().finished.then(() => void (end = performance.now(), process.exitCode = 3));
      process.on("exit", () => say("exit", performance.now() - end));
    `);
    await child.listening();
    child.kill(signal);
    const { code, output } = await child.ended();
    assert.equal(code, 3);
    assert.ok(Number(/^exit (.*)$/m.exec(output)![1]) < 700, output);
  });
}

for (const words of [["--watch", "run"], ["run", "--watch"], ["run", "--hot"]]) {
  test(`SIGINT ends a program that runs anew when its file has changed: bun ${words.join(" ")}`, {
    skip: RUNTIME === "deno" && "Deno's watcher takes the signal itself",
  }, async () => {
    const file = newPath(".mjs");
    const mod = JSON.stringify(new URL("../mod.ts", import.meta.url).href);
    writeFileSync(file, `import { serve } from ${mod}; serve(() => [], { port: 0 });`);
    await using child = new Child(process.execPath, [...words, file]);
    await child.until(/^Serving on /m);
    child.kill("SIGINT");
    assert.equal((await child.ended()).code, 0);
  });
}

for (
  const [what, options, path, plan] of [
    ["nothing", {}, "", "nothing is under way"],
    ["a request", {}, "/stream", "waiting up to 30 s for 1 request"],
    ["work after a response", {}, "/work", "waiting up to 30 s for 1 task after a response"],
    ["a time", { shutdownTimeout: 1500 }, "/stream", "waiting up to 1.5 s for 1 request"],
    [
      "a delay",
      { shutdownDelay: 500 },
      "",
      "serving for another 0.5 s, then waiting up to 30 s for what is under way",
    ],
  ] as const
) {
  test(`a server that is stopped by a signal says that it waits for ${what}, and what another signal does`, async () => {
    await using child = program(`${SERVING} serve(app, ${JSON.stringify({ port: 0, ...options })});`);
    const [, port] = await child.until(/^Serving on http:\/\/localhost:(\d+)\/ /m);
    const client = await Client.connect({ port: Number(port), hostname: "127.0.0.1" });
    if (path !== "") await client.send(request(path));
    if (path !== "") await client.until(path === "/work" ? /two/ : /one/);
    if (path === "/work") await client.end();
    child.kill("SIGTERM");
    await child.until(/^Stopping on .*$/m);
    if (path !== "") child.kill("SIGHUP"); // without a request the process may be ending, and SIGHUP would kill it
    const { code, errors } = await child.ended();
    assert.equal(code, 0);
    const [_serving, ...lines] = errors.trim().split("\n");
    assert.deepEqual(lines, [`Stopping on SIGTERM: ${plan}, another signal ends the process at once`]);
    client.leave();
  });
}

test("all servers of a process share one listener for each signal, and take it back with the last", {
  skip: RUNTIME === "deno" && "Deno does not count the listeners that are its own",
}, async () => {
  const counts = () => SIGNALS.map((signal) => process.listenerCount(signal));
  const before = counts();
  const during = before.map((count) => count + 1);
  const first = start(hello);
  assert.deepEqual(counts(), during);
  const second = start(hello);
  const without = start(hello, { signals: false });
  assert.deepEqual(counts(), during);
  await without.shutdown();
  await first.shutdown();
  assert.deepEqual(counts(), during);
  assert.throws(() => start(hello, { port: second.port }));
  await second.shutdown();
  assert.deepEqual(counts(), before);
  assert.throws(() => start(hello, { hostname: "192.0.2.1" }));
  assert.deepEqual(counts(), before);
});

// The end of the process

test("neither a signal that has not come yet nor a generator that was abandoned keeps a process from ending", async () => {
  await using child = program(`
    ${SERVING}
    const server = run({ signal: AbortSignal.timeout(3_600_000), signals: false, shutdownTimeout: 0 });
    process.once("SIGUSR2", () => void server.shutdown());
    process.on("exit", () => say("exit", performance.now() - end));
    let end;
    server.finished.then(() => void (end = performance.now()));
  `);
  const client = await Client.connect(await child.listening());
  await client.send(request("/endless"));
  await client.until(/one/);
  child.kill("SIGUSR2");
  await client.end();
  const { code, output } = await child.ended();
  assert.equal(code, 0);
  assert.ok(Number(/^exit (.*)$/m.exec(output)![1]) < 3000, output);
});

test("an idle server that must not wait at all ends with 0 all the same", async () => {
  await using child = serving({ shutdownTimeout: 0 });
  const client = await Client.connect(await child.listening());
  await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await client.until(/\r\n0\r\n\r\n/);
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, 0);
});

test("work that was promised to waitUntil is waited for before the process ends", async () => {
  await using child = serving();
  const server = await child.listening();
  const client = await Client.connect(server);
  await client.send(request("/work"));
  assert.equal(parse(await client.end()).body, "onetwo");
  child.kill("SIGTERM");
  await untilRefused(server);
  child.kill("SIGHUP");
  const { code, output } = await child.ended();
  assert.equal(code, 0);
  assert.match(output, /^worked\nfinished\n$/m);
});

test("work that does not end is abandoned after shutdownTimeout, which the exit status tells", async () => {
  await using child = serving({ shutdownTimeout: 50 });
  const client = await Client.connect(await child.listening());
  await client.send(request("/work"));
  assert.equal(parse(await client.end()).body, "onetwo");
  child.kill("SIGTERM");
  const { code, output } = await child.ended();
  assert.equal(code, STATUSES.SIGTERM);
  assert.match(output, /^finished$/m);
});

test("a connection on which nothing was ever sent keeps no process from ending with 0", async () => {
  await using child = serving();
  const client = await Client.connect(await child.listening());
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, 0);
  client.leave(); // on Bun the kernel has never handed the connection over, and says nothing when the server is gone
});
