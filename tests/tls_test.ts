/**
 * Servers with TLS.
 *
 * @module
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { connect as connectTls } from "node:tls";
import { type Application, type Environ, serve, type Server } from "../mod.ts";
import {
  askHttp2,
  Client,
  Event,
  fetched,
  hello,
  HTTP2,
  makeIdentity,
  recorder,
  request,
  RUNTIME,
  start,
  STATUSES,
  surroundings,
  workspace,
} from "./support.ts";

const { FOLDER, serving } = workspace();

// cert and key

test("cert and key go together", () => {
  assert.throws(() => serve(hello, { port: 0, cert: "PEM" }), /TypeError.*"cert"/s);
  assert.throws(() => serve(hello, { port: 0, key: "PEM" }), /TypeError.*"key"/s);
});

test("a cert and a key that are not PEM text throw", () => {
  assert.throws(() => serve(hello, { port: 0, onListen() {}, cert: "no certificate", key: "no key" }));
});

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);

test("serve does not repeat what may be a private key", () => {
  const key = "MIGHAgEA".repeat(20);
  assert.throws(() => serve(hello, { port: 0, cert: IDENTITY.cert, key }), {
    name: "TypeError",
    message: 'Cannot use option "key": found 160 characters, expected PEM text, which begins with "-----BEGIN"',
  });
});

for (const [given, missing] of [["cert", "key"], ["key", "cert"]] as const) {
  test(`${given} without ${missing} is refused, whatever it is, and the message names the right one`, () => {
    for (const value of [IDENTITY[given], ""]) {
      assert.throws(() => serve(hello, { port: 0, onListen() {}, [given]: value }), {
        name: "TypeError",
        message: new RegExp(`^Cannot use option "${given}"`),
      });
    }
  });
}

// Requests

test("curl is served over TLS, and environ says so", async () => {
  await using server = start(surroundings, IDENTITY);
  assert.equal(
    await fetched("--http1.1", "--cacert", CERT_FILE, server.url),
    `https on 127.0.0.1 localhost:${server.port} 127.0.0.1 1.1 200`,
  );
});

/** A server with TLS and a certificate that it has signed itself. */
function startTls(app: Application): Server {
  return start(app, { ...HTTP2, ...IDENTITY });
}

/** The environ of a request over TLS, and the server's port. */
async function environOverTls(raw: string): Promise<{ environ: Environ; port: number }> {
  const { app, environs } = recorder();
  await using server = startTls(app);
  const closed = new Event("the end of the connection");
  const socket = connectTls({ port: server.port, host: server.hostname, rejectUnauthorized: false });
  socket.on("secureConnect", () => socket.write(raw));
  socket.on("close", () => closed.happen());
  socket.on("error", () => {});
  socket.resume();
  await closed.wait();
  return { environ: environs[0]!, port: server.port };
}

test("over TLS wsgi.url_scheme is https, HTTPS is on and all else is as without", async () => {
  const { environ, port } = await environOverTls(request("/p?q"));
  assert.equal(environ["wsgi.url_scheme"], "https");
  assert.equal(environ.HTTPS, "on");
  assert.equal(environ.HTTP_HOST, "test.example");
  assert.equal(environ.SERVER_NAME, "127.0.0.1");
  assert.equal(environ.SERVER_PORT, String(port));
  assert.equal(environ.REMOTE_ADDR, "127.0.0.1");
  assert.equal(environ.PATH_INFO, "/p");
  assert.equal(environ.QUERY_STRING, "q");
});

test("over TLS a target with http is https all the same", async () => {
  const { environ } = await environOverTls(request("http://other.example/p"));
  assert.equal(environ["wsgi.url_scheme"], "https");
  assert.equal(environ.HTTPS, "on");
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? "other.example" : "test.example");
});

test("over TLS HTTP/1.0 without a Host has no HTTP_HOST on Bun, and the one that Deno makes up", async () => {
  const { environ, port } = await environOverTls("GET /p HTTP/1.0\r\n\r\n");
  // It is the :authority of HTTP/2 on the same machine, from which it cannot be told.
  assert.equal(environ.HTTP_HOST, RUNTIME === "deno" ? `localhost:${port}` : undefined);
  assert.equal(environ.PATH_INFO, "/p");
});

test("over TLS and HTTP/2 the :authority is HTTP_HOST, localhost and the server's port as well", async () => {
  const { app, environs } = recorder();
  await using server = startTls(app);
  for (const authority of ["example.org", `localhost:${server.port}`]) {
    const headers = { ":path": "/p", ":authority": authority };
    assert.equal(await askHttp2(`https://127.0.0.1:${server.port}`, headers), 200);
    const environ = environs.pop()!;
    assert.equal(environ.HTTP_HOST, authority);
    assert.equal(environ.HTTPS, "on");
    assert.equal(environ["wsgi.url_scheme"], "https");
  }
});

// Connections

test("a silent connection over TLS delays a stop on Deno until shutdownTimeout, and is cut on Bun", async () => {
  await using child = serving({ ...IDENTITY, shutdownTimeout: 50 });
  const server = await child.listening();
  const silent = await Client.connect(server);
  assert.equal(await fetched("--http1.1", "-k", `https://127.0.0.1:${server.port}/`), "onetwo 1.1 200");
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, RUNTIME === "deno" ? STATUSES.SIGTERM : 0);
  silent.leave(); // on Bun the kernel has never handed it over
});
