/**
 * Servers on a unix socket.
 *
 * @module
 */

import assert from "node:assert/strict";
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { serve, type ServeOptions, type Server } from "../mod.ts";
import {
  assertAbsent,
  assertRefused,
  bytes,
  type Child,
  Client,
  fetched,
  hello,
  makeIdentity,
  ok,
  parse,
  type Received,
  recorder,
  type Reply,
  request,
  RUNTIME,
  start,
  surroundings,
  withHost,
  workspace,
} from "./support.ts";

const { newPath, FOLDER, program } = workspace();

// Requests

test("curl is served over a unix socket", async () => {
  const unix = newPath(".sock");
  await using server = start(surroundings, { unix });
  assert.equal(server.hostname, unix);
  assert.equal(server.port, 0);
  assert.equal(
    await fetched("--unix-socket", unix, "http://test.example/"),
    "http undefined localhost test.example undefined 1.1 200",
  );
});

for (const unixMode of [0o660, 0o600, 0o777]) {
  test(`unixMode ${unixMode.toString(8)} sets the permissions of a unix socket, through which curl is served`, async () => {
    const unix = newPath(".sock");
    await using _server = start(hello, { unix, unixMode });
    assert.equal(lstatSync(unix).mode & 0o777, unixMode);
    assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "Hello 1.1 200");
  });
}

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);

test("TLS over a unix socket is TLS on Bun, and refused on Deno, which would serve in the clear", async () => {
  const unix = newPath(".sock");
  const options: ServeOptions = { unix, ...IDENTITY };
  if (RUNTIME === "deno") return assert.throws(() => void start(hello, options).shutdown(), /unix/);
  await using _server = start(surroundings, options);
  assert.equal(
    await fetched("--unix-socket", unix, "--cacert", CERT_FILE, "https://localhost/"),
    "https on localhost localhost undefined 1.1 200",
  );
});

/** Runs with a folder of its own. */
async function withFolder<Result>(use: (folder: string) => Promise<Result>): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
  try {
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function exchangeUnix(server: Server, unix: string, raw: string): Promise<Reply> {
  const client = await Client.connect(server, { unix });
  await client.send(raw);
  return parse(await client.end());
}

/** Sends a request to a server of its own on a unix socket. */
function askUnix(raw: string): Promise<Received> {
  return withFolder(async (folder) => {
    const unix = join(folder, "socket");
    const { app, environs } = recorder();
    await using server = start(app, { unix });
    return { reply: await exchangeUnix(server, unix, raw), environ: environs[0] };
  });
}

test("on a unix socket the server is localhost at port 80, and the client has no address", async () => {
  const { environ } = await askUnix(request("/p?q"));
  assert.equal(environ!.SERVER_NAME, "localhost");
  assert.equal(environ!.SERVER_PORT, "80");
  assert.equal(environ!.HTTP_HOST, "test.example");
  assert.equal(environ!["wsgi.url_scheme"], "http");
  assert.equal(environ!.PATH_INFO, "/p");
  assert.equal(environ!.QUERY_STRING, "q");
  assert.equal(environ!.REQUEST_URI, "/p?q");
  assertAbsent(environ!, "REMOTE_ADDR", "REMOTE_PORT", "HTTPS");
});

test("on a unix socket HTTP/1.0 without a Host has no HTTP_HOST", async () => {
  const { environ } = await askUnix("GET //a/../p?q HTTP/1.0\r\n\r\n");
  assertAbsent(environ!, "HTTP_HOST");
  assert.equal(environ!.PATH_INFO, "//a/../p");
  assert.equal(environ!.QUERY_STRING, "q");
});

test("on a unix socket an empty Host and an absolute target leave the path alone", async () => {
  const { environ: empty } = await askUnix(withHost("", "/a/../p?q"));
  assert.equal(empty!.HTTP_HOST, "");
  assert.equal(empty!.REQUEST_URI, "/a/../p?q");
  const { environ: absolute } = await askUnix(withHost("h.example", "http://other.example/p?q"));
  assert.equal(absolute!.HTTP_HOST, RUNTIME === "deno" ? "other.example" : "h.example");
  assert.equal(absolute!.REQUEST_URI, "/p?q");
});

test("on a unix socket a hostile Host is answered with 400", async () => {
  for (const host of ["a/b", "a%2Fb", "u:p@h"]) assertRefused(await askUnix(withHost(host)), 400);
});

/** Does something while the folder is the current one. */
function inFolder<Result>(folder: string, action: () => Result): Result {
  const before = process.cwd();
  process.chdir(folder);
  try {
    return action();
  } finally {
    process.chdir(before);
  }
}

test("on a unix socket of a relative path HTTP/1.0 without a Host has no HTTP_HOST", async () => {
  await withFolder(async (folder) => {
    const { app, environs } = recorder();
    await using server = inFolder(folder, () => start(app, { unix: "socket" }));
    await exchangeUnix(server, join(folder, "socket"), "GET /p HTTP/1.0\r\n\r\n");
    assertAbsent(environs[0]!, "HTTP_HOST");
    assert.equal(environs[0]!.PATH_INFO, "/p");
  });
});

test("a server on a unix socket says so", async () => {
  await withFolder(async (folder) => {
    const unix = join(folder, "socket");
    await using server = start(recorder().app, { unix });
    assert.equal(server.hostname, unix);
    assert.equal(server.port, 0);
    assert.equal(server.url, `http+unix://${encodeURIComponent(unix)}/`);
  });
});

test("a server on a unix socket is reached there, and again after it was stopped", async () => {
  const folder = await mkdtemp(join(tmpdir(), "wsgi-"));
  const unix = join(folder, "socket");
  try {
    for (let round = 0; round < 2; round++) {
      await using server = start((environ, startResponse) => {
        ok(startResponse);
        const { REMOTE_ADDR = "no address", SERVER_NAME, SERVER_PORT, PATH_INFO } = environ;
        return [bytes([environ["wsgi.url_scheme"], SERVER_NAME, SERVER_PORT, PATH_INFO, REMOTE_ADDR].join(" "))];
      }, { unix });
      assert.equal(server.hostname, unix);
      assert.equal(server.port, 0);
      assert.equal(server.url, `http+unix://${encodeURIComponent(unix)}/`);
      const client = await Client.connect(server, { unix });
      await client.send(request("/path"));
      assert.equal(parse(await client.end()).body, "http localhost 80 /path no address");
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

// The socket's file

/** Leaves the socket of a server that has died, or of one that lives. */
async function socketOf(
  signal: "SIGKILL" | "SIGSTOP" | "SIGCONT",
  unix = newPath(".sock"),
): Promise<{ unix: string; child: Child }> {
  const child = program(`serve(hello, { unix: ${JSON.stringify(unix)}, onListen });`);
  await child.until(/^port/m);
  child.kill(signal);
  if (signal === "SIGKILL") await child.ended();
  assert.ok(lstatSync(unix).isSocket());
  return { unix, child };
}

test("the socket of a server that has died is replaced, and gone after the new one has stopped", async () => {
  const { unix } = await socketOf("SIGKILL");
  const server = start(hello, { unix });
  assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "Hello 1.1 200");
  await server.shutdown();
  assert.equal(existsSync(unix), false);
});

const TAKEN = /: another server has the socket, or it is no socket, expected a path that is free$/;

for (const [what, signal] of [["lives", "SIGCONT"], ["lives but is stopped for now", "SIGSTOP"]] as const) {
  test(`the socket of a server that ${what} is not replaced`, async () => {
    const { unix, child } = await socketOf(signal);
    await using _child = child;
    const { ino } = lstatSync(unix);
    assert.throws(() => serve(hello, { unix, onListen() {} }), { message: TAKEN });
    child.kill("SIGCONT");
    assert.equal(lstatSync(unix).ino, ino);
    assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "Hello 1.1 200");
  });
}

test("the socket of a server in this process is not replaced", async () => {
  const unix = newPath(".sock");
  await using _server = start(hello, { unix });
  assert.throws(() => serve(hello, { unix, onListen() {} }), { message: TAKEN });
  assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "Hello 1.1 200");
});

test("a server that starts deletes no file where its socket should be", () => {
  const unix = newPath(".sock");
  writeFileSync(unix, "precious");
  assert.throws(() => serve(hello, { unix, onListen() {} }), { message: TAKEN });
  assert.equal(readFileSync(unix, "utf8"), "precious");
});

for (const what of ["a file", "the socket of another server"]) {
  test(`a server that ends deletes ${what} that has taken the place of its socket`, async () => {
    const unix = newPath(".sock");
    const server = start(hello, { unix });
    rmSync(unix);
    await using _other = what === "a file" ? undefined : start(hello, { unix });
    if (what === "a file") writeFileSync(unix, "precious");
    await server.shutdown();
    assert.equal(existsSync(unix), false);
  });
}

for (const what of ["a socket that nobody has", "a socket that a server has", "a file", "nothing"]) {
  test(`a symbolic link to ${what} is not followed, and neither the link nor its target is deleted`, async () => {
    const target = newPath("");
    const unix = newPath(".sock");
    symlinkSync(target, unix);
    if (what === "a socket that nobody has") await socketOf("SIGKILL", target);
    await using server = what === "a socket that a server has" ? start(hello, { unix: target }) : undefined;
    if (what === "a file") writeFileSync(target, "precious");
    const before = what === "nothing" ? undefined : lstatSync(target).ino;
    assert.throws(() => serve(hello, { unix, onListen() {} }), { message: TAKEN });
    assert.equal(readlinkSync(unix), target);
    assert.equal(existsSync(target) ? lstatSync(target).ino : undefined, before);
    if (server) assert.equal(await fetched("--unix-socket", target, "http://localhost/"), "Hello 1.1 200");
  });
}
