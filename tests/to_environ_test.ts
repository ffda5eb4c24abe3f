/**
 * `toEnviron`: the environ of a request that no socket has brought.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { toEnviron, type ToEnvironOptions, toFetch } from "../mod.ts";
import { assertAbsent, bytes, ErrorLog, native, recorder } from "./support.ts";

const ADDRESSES: { url: string; name: string; port: string; host: string; scheme: string }[] = [
  { url: "http://h.example/", name: "h.example", port: "80", host: "h.example", scheme: "http" },
  { url: "http://h.example:81/", name: "h.example", port: "81", host: "h.example:81", scheme: "http" },
  { url: "https://h.example/", name: "h.example", port: "443", host: "h.example", scheme: "https" },
  { url: "https://h.example:444/", name: "h.example", port: "444", host: "h.example:444", scheme: "https" },
  { url: "http://[::1]/", name: "[::1]", port: "80", host: "[::1]", scheme: "http" },
  { url: "http://[::1]:81/", name: "[::1]", port: "81", host: "[::1]:81", scheme: "http" },
];

for (const { url, name, port, host, scheme } of ADDRESSES) {
  test(`toEnviron and toFetch take the server from the URL ${url}`, () => {
    const { app, environs } = recorder();
    toFetch(app)(new Request(url));
    for (const environ of [toEnviron(new Request(url)), environs[0]!]) {
      assert.equal(environ.SERVER_NAME, name);
      assert.equal(environ.SERVER_PORT, port);
      assert.equal(environ.HTTP_HOST, host);
      assert.equal(environ["wsgi.url_scheme"], scheme);
      assert.equal(environ.HTTPS, scheme === "https" ? "on" : undefined);
      assert.equal("HTTPS" in environ, scheme === "https");
    }
  });
}

test("toEnviron reads path, query and headers as from a socket", async () => {
  const headers: [string, string][] = [["X-A", "1"], ["X-A", "2"], ["X_A", "3"], ["Content-Type", "text/plain"]];
  const environ = toEnviron(
    new Request("http://localhost/caf%C3%A9/%zz//%2F?a=%20b", { method: "PUT", headers, body: "body" }),
  );
  assert.equal(environ.REQUEST_METHOD, "PUT");
  assert.equal(environ.PATH_INFO, native("/café/%zz///"));
  assert.equal(environ.QUERY_STRING, "a=%20b");
  assert.equal(environ.REQUEST_URI, "/caf%C3%A9/%zz//%2F?a=%20b");
  assert.equal(environ.HTTP_X_A, "1, 2");
  assert.equal(environ.CONTENT_TYPE, "text/plain");
  assert.deepEqual(await environ["wsgi.input"].read(), bytes("body"));
});

test("toEnviron gives GET and HEAD no length, and any other method the one that was sent", () => {
  for (const [method, length] of [["GET", undefined], ["HEAD", undefined], ["POST", "4"], ["DELETE", "4"]] as const) {
    const environ = toEnviron(new Request("http://localhost/", { method, headers: { "Content-Length": "4" } }));
    assert.equal(environ.CONTENT_LENGTH, length);
    assert.equal("CONTENT_LENGTH" in environ, length !== undefined);
  }
});

test("a Host header goes before the URL", () => {
  const environ = toEnviron(new Request("http://url.example/", { headers: { Host: "header.example:81" } }));
  assert.equal(environ.HTTP_HOST, "header.example:81");
});

test("toEnviron throws on a hostile Host, and toFetch answers with 400", async () => {
  const { app, environs } = recorder();
  for (const host of ["a/b", "u:p@h", "a, b", "h:port"]) {
    const hostile = () => new Request("http://localhost/", { headers: { Host: host } });
    assert.throws(() => toEnviron(hostile()), Error);
    assert.equal((await toFetch(app)(hostile())).status, 400);
  }
  assert.equal(environs.length, 0);
});

test("toEnviron throws on a path outside scriptName, and toFetch answers with 404", async () => {
  const { app, environs } = recorder();
  const outside = () => new Request("http://localhost/application");
  assert.throws(() => toEnviron(outside(), { scriptName: "/app" }), Error);
  assert.equal((await toFetch(app, { scriptName: "/app" })(outside())).status, 404);
  assert.equal(environs.length, 0);
});

test("toEnviron takes scriptName, environ and errors", () => {
  const errors = new ErrorLog();
  const options: ToEnvironOptions = { scriptName: "/app", environ: { "example.mode": "test" }, errors };
  const environ = toEnviron(new Request("http://localhost/app/x"), options);
  assert.equal(environ.SCRIPT_NAME, "/app");
  assert.equal(environ.PATH_INFO, "/x");
  assert.equal(environ["example.mode"], "test");
  assert.equal(environ["wsgi.errors"], errors);
});

test("options that are undefined are options that are not given", () => {
  const options = { info: undefined, scriptName: undefined, environ: undefined, errors: undefined };
  const environ = toEnviron(new Request("http://localhost/app"), options);
  assert.equal(environ.SCRIPT_NAME, "");
  assert.equal(environ.PATH_INFO, "/app");
  assertAbsent(environ, "REMOTE_ADDR", "REMOTE_PORT");
});

const REQUEST = new Request("http://localhost/");

const INFOS: { what: string; info: unknown; address?: string; port?: string }[] = [
  {
    what: "Deno's information",
    info: { remoteAddr: { transport: "tcp", hostname: "192.0.2.1", port: 5000 } },
    address: "192.0.2.1",
    port: "5000",
  },
  {
    what: "Bun's server",
    info: new (class {
      readonly #peer = { address: "2001:db8::1", family: "IPv6", port: 5001 };

      requestIP(request: Request): unknown {
        return request === REQUEST ? this.#peer : null;
      }
    })(),
    address: "2001:db8::1",
    port: "5001",
  },
  {
    what: "an address without a port",
    info: { remoteAddr: { transport: "tcp", hostname: "192.0.2.1" } },
    address: "192.0.2.1",
  },
  { what: "Bun's server that knows no address", info: { requestIP: () => null } },
  { what: "Deno's information on a unix socket", info: { remoteAddr: { transport: "unix", path: "/run/socket" } } },
  { what: "another runtime's information", info: { waitUntil() {} } },
  { what: "null", info: null },
  { what: "nothing", info: undefined },
];

for (const { what, info, address, port } of INFOS) {
  test(`of ${what} toEnviron makes REMOTE_ADDR ${address ?? "absent"} and REMOTE_PORT ${port ?? "absent"}`, () => {
    const { app, environs } = recorder();
    toFetch(app)(REQUEST, info);
    for (const environ of [toEnviron(REQUEST, { info }), environs[0]!]) {
      assert.equal(environ.REMOTE_ADDR, address);
      assert.equal(environ.REMOTE_PORT, port);
      if (address === undefined) assertAbsent(environ, "REMOTE_ADDR");
      if (port === undefined) assertAbsent(environ, "REMOTE_PORT");
    }
  });
}
