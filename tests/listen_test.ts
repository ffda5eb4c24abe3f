/**
 * Where `serve` listens, and what it says where it cannot.
 *
 * @module
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { serve, type ServeOptions } from "../mod.ts";
import {
  addressOf,
  assertServes,
  bytes,
  Client,
  exchange,
  failureOf,
  hello,
  type Identity,
  makeIdentity,
  ok,
  parse,
  request,
  RUNTIME,
  SERVING,
  start,
  within,
  workspace,
} from "./support.ts";

const { FOLDER, newPath, program } = workspace();

// Addresses

test("a server on all interfaces is reached on the loopback address, and calls itself localhost", async () => {
  await using server = start(hello, { hostname: "0.0.0.0" });
  assert.equal(server.hostname, "0.0.0.0");
  assert.equal(server.url, `http://localhost:${server.port}/`);
  assert.equal(await (await fetch(addressOf(server))).text(), "Hello");
});

const HAS_IPV6 = Object.values(networkInterfaces()).flat().some((address) => address?.address === "::1");

test("a server on ::1 is reached there", { skip: !HAS_IPV6 && "this machine has no IPv6" }, async () => {
  await using server = start((environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.SERVER_NAME} ${environ.REMOTE_ADDR}`)];
  }, { hostname: "::1" });
  assert.equal(server.hostname, "::1");
  assert.equal(server.url, `http://localhost:${server.port}/`);
  assert.equal((await exchange(server, request("/"))).body, "[::1] ::1");
});

// What makes serve throw

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);
const OTHER = makeIdentity(join(FOLDER, "other.pem"));

const ENCRYPTED: Identity = {
  cert: IDENTITY.cert,
  key: execFileSync("openssl", ["pkcs8", "-topk8", "-passout", "pass:secret"], {
    input: IDENTITY.key,
    encoding: "utf8",
  }),
};

const GARBAGE: Identity = {
  cert: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
  key: "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n",
};

const NO_ADDRESS = /it is no address of this machine, expected one such as "127\.0\.0\.1"/;
const NO_FOLDER = /its folder is not there, or is not a directory/;
const NO_IDENTITY = /options "cert" and "key" are no certificate and its private key/;

for (
  const [what, options, message] of [
    // An address for documentation (RFC 5737).
    ["an address of another machine", { hostname: "192.0.2.1" }, NO_ADDRESS],
    ["a URL for a host", { hostname: "http://localhost" }, NO_ADDRESS],
    ["a host with its port", { hostname: "127.0.0.1:80" }, NO_ADDRESS],
    ["a host with a space", { hostname: "no such host" }, NO_ADDRESS],
    ["a host of two lines", { hostname: "local\nhost" }, /local\\nhost.*: it is no address of this machine/],
    [
      "a unix socket in a folder that is missing",
      { unix: newPath("/x.sock") },
      NO_FOLDER,
    ],
    ["a unix socket inside a file", { unix: join(CERT_FILE, "x.sock") }, NO_FOLDER],
    ["a unix socket where a folder is", { unix: FOLDER }, /it is no socket, expected a path that is free/],
    [
      "a unix socket whose path is too long",
      { unix: newPath("x".repeat(150)) },
      /the path is too long, expected at most 107 bytes/,
    ],
    ["a key with a passphrase", ENCRYPTED, /option "key" needs a passphrase, expected a private key that needs none/],
    ["a certificate and a key that are none", GARBAGE, NO_IDENTITY],
    ["a certificate that is none", { cert: GARBAGE.cert, key: IDENTITY.key }, NO_IDENTITY],
    ["a key that is none", { cert: IDENTITY.cert, key: GARBAGE.key }, NO_IDENTITY],
    ["the key of another certificate", { cert: IDENTITY.cert, key: OTHER.key }, NO_IDENTITY],
    ["certificate and key the wrong way round", { cert: IDENTITY.key, key: IDENTITY.cert }, NO_IDENTITY],
  ] as const
) {
  test(`serve throws one clear line on ${what}, with the error of the runtime`, async () => {
    assert.throws(() => serve(hello, { port: 0, onListen() {}, ...options }), (error: Error) => {
      assert.match(error.message, /^Cannot listen on .+: .+$/);
      assert.match(error.message, message);
      assert.ok(error.cause instanceof Error);
      assert.notEqual(error.cause.message, error.message);
      return true;
    });
    await using server = start(hello);
    await assertServes(server);
  });
}

// What the runtimes have thrown for a name that does not exist, on machines with and without a resolver.
for (
  const [what, failure] of [
    ["with a resolver, on Deno", new Error("failed to lookup address information: Name or service not known")],
    ["without one, on Deno", new Error("failed to lookup address information: Temporary failure in name resolution")],
    ["with a resolver, on Bun", Object.assign(new Error("Failed to start server"), { code: "ENOTFOUND" })],
    ["without one, on Bun", Object.assign(new Error("Failed to start server"), { code: "EAGAIN" })],
  ] as const
) {
  test(`serve throws one clear line on a host that is not known ${what}`, () => {
    const runtime = Object(Reflect.get(globalThis, RUNTIME === "deno" ? "Deno" : "Bun")) as { serve(): unknown };
    const { serve: original } = runtime;
    runtime.serve = () => {
      throw failure;
    };
    try {
      assert.throws(() => serve(hello, { hostname: "unknown.example", onListen() {} }), (error: Error) => {
        assert.match(error.message, /^Cannot listen on unknown\.example:8000: /);
        assert.match(error.message, NO_ADDRESS);
        assert.equal(error.cause, failure);
        return true;
      });
    } finally {
      runtime.serve = original;
    }
  });
}

test("a port in use makes serve throw one clear line, and leaves its owner alone", async () => {
  await using server = start(hello);
  const { port } = server;
  assert.throws(() => serve(hello, { port, onListen() {} }), (error: Error) => {
    const expected = `another server has the port, expected one that is free: serve(app, { port: ${port + 1} })`;
    assert.equal(error.message, `Cannot listen on 127.0.0.1:${port}: ${expected}`);
    assert.ok(error.cause instanceof Error && "code" in error.cause);
    assert.equal(error.cause.code, "EADDRINUSE");
    assert.ok("code" in error);
    assert.equal(error.code, "EADDRINUSE");
    return true;
  });
  await assertServes(server);
});

for (
  const [what, flags, options, access] of [
    ["to listen", ["--allow-env"], { port: 0 }, /net access to "127\.0\.0\.1:0", run again with the --allow-net flag/],
    ["to read a unix socket", ["--allow-net"], { unix: newPath(".sock") }, /read access to .* --allow-read flag/],
    [
      "to write a unix socket",
      ["--allow-net", "--allow-read"],
      { unix: newPath(".sock") },
      /write access to .* --allow-write flag/,
    ],
  ] as const
) {
  test(`a missing permission ${what} makes serve throw on Deno; Bun asks for none`, async () => {
    await using child = program(`await attempt(${JSON.stringify(options)})?.shutdown(); say("goes on");`, {
      flags: [...flags],
    });
    if (RUNTIME === "deno") {
      const [message, cause] = await failureOf(child);
      assert.match(message, /^Cannot listen on .+: Deno requires /);
      assert.match(message, access);
      assert.match(cause, /^NotCapable: /);
    } else await child.until(/^serves$/m);
    await child.until(/^goes on$/m);
    assert.deepEqual((await child.ended()).code, 0);
  });
}

// The first port that is for everybody. Where there is no such file, nothing is known, and 0 means that all are.
const FIRST_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

const UNPRIVILEGED = existsSync(FIRST_PORT) ? Number(readFileSync(FIRST_PORT, "utf8")) : 0;

for (const [what, isKept] of [["a port below 1024", UNPRIVILEGED > 1], ["a folder of another user", true]] as const) {
  test(`${what} makes serve throw what to do`, { skip: !isKept && "Here anybody may use any port" }, async () => {
    const folder = newPath("");
    mkdirSync(folder);
    chmodSync(folder, 0o500);
    const options: ServeOptions = what === "a port below 1024" ? { port: 1 } : { unix: join(folder, "x.sock") };
    await using child = program(`
      if (process.geteuid() === 0) process.seteuid(65534);
      attempt(${JSON.stringify(options)});
    `);
    const [message, cause] = await failureOf(child);
    assert.match(message, /: permission denied, use a (?:port from 1024 on|folder that this user may write to)$/);
    assert.match(cause, /permission denied/i);
  });
}

test("a port that is taken throws at once, with the code EADDRINUSE", async () => {
  await using server = start(hello);
  assert.throws(() => start(hello, { port: server.port }), { code: "EADDRINUSE" });
  assert.equal((await exchange(server, request("/"))).body, "Hello");
});

test("a port that is not a port number throws at once", () => {
  for (const port of [-1, 65_536, 0.5, NaN, "http"]) {
    assert.throws(() => start(hello, { port: port as number }), `port ${port}`);
  }
});

// Several servers on one port

test("reusePort lets two servers share a port, and sets wsgi.multiprocess; Deno needs --unstable-net for that", async () => {
  await using child = program(
    `
    const app = (environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [text(environ["wsgi.multiprocess"])];
    };
    const { port } = serve(app, { port: 0, reusePort: true, onListen() {} });
    serve(app, { port, reusePort: true, onListen });
  `,
    { flags: ["-A", "--unstable-net"] },
  );
  const client = await Client.connect(await child.listening());
  await client.send(request("/"));
  assert.equal(parse(await client.end()).body, "true");
});

for (const options of ["{ reusePort: true }", "{ deno: { reusePort: true } }"]) {
  test(`${options} without --unstable-net makes serve throw on Deno, and does not end the process`, async () => {
    await using child = program(`await attempt({ port: 0, ...${options} })?.shutdown(); say("goes on");`);
    await child.until(/^goes on$/m);
    if (RUNTIME === "deno") assert.match((await failureOf(child))[0], /reusePort.* --unstable-net/);
    else await child.until(/^serves$/m);
    assert.equal((await child.ended()).code, 0);
  });
}

// Descriptors and leftovers

test("a server that has run out of descriptors finishes what is under way, and accepts again", async () => {
  await using child = program(`${SERVING} run();`, { limit: 64 });
  const server = await child.listening();
  const stream = await Client.connect(server);
  await stream.send(request("/stream"));
  await stream.until(/one/);
  const others = Array.from({ length: 100 }, () => connect(server.port, server.hostname).on("error", () => {}));
  // Bun leaves connections in the queue of the kernel, and says nothing.
  if (RUNTIME === "deno") {
    await child.until(
      /^Cannot accept connections on 127\.0\.0\.1:\d+: Too many open files.*, listening again in 1000 ms$/m,
    );
  }
  for (const socket of others) socket.destroy();
  child.kill("SIGHUP");
  assert.deepEqual(parse(await stream.end()).body, "onetwo");
  const again = async () => {
    for (;;) {
      const client = await Client.connect(server).catch(() => undefined);
      await client?.send(request("/"));
      if (client && parse(await client.end()).body === "onetwo") return;
      await new Promise((resolve) => setTimeout(resolve)); // it listens when its pause is over
    }
  };
  await within(again(), "an answer");
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, 0);
});

test("a server that could not listen leaves no listener for signals, and no port", async () => {
  await using child = program(`
    const { port } = serve(hello, { port: 0, signals: false, onListen() {} });
    try {
      serve(hello, { port });
    } catch {
      say("failed");
    }
    say("port", port);
  `);
  await child.listening();
  child.kill("SIGTERM");
  const { signal, output } = await child.ended();
  assert.match(output, /^failed$/m);
  assert.equal(signal, "SIGTERM");
});
