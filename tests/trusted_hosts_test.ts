/**
 * `trustedHosts`: requests for hosts that are served, and for no others.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type Environ,
  type Middleware,
  proxyFix,
  runApplication,
  testEnviron,
  trustedHosts,
  validator,
} from "../mod.ts";
import { between, lacking, telling, through, withClock } from "./middleware_support.ts";
import { exchange, start, text } from "./support.ts";

const BAD_REQUEST = "400 Bad Request";

for (
  const { hosts, host, isServed } of [
    { hosts: ["example.com"], host: "example.com", isServed: true },
    { hosts: ["example.com"], host: "example.com:8080", isServed: true },
    { hosts: ["example.com"], host: "EXAMPLE.Com", isServed: true },
    { hosts: ["Example.COM"], host: "example.com", isServed: true },
    { hosts: ["example.com"], host: "www.example.com", isServed: false },
    { hosts: ["example.com"], host: "notexample.com", isServed: false },
    { hosts: ["example.com"], host: "example.com.evil.org", isServed: false },
    { hosts: ["example.com"], host: "exampleXcom", isServed: false },
    { hosts: ["example.com"], host: "evil.org", isServed: false },
    { hosts: ["example.com"], host: "", isServed: false },
    { hosts: ["example.com"], host: "example.com:80:80", isServed: false },
    { hosts: ["example.com"], host: "example.com:evil", isServed: false },
    { hosts: ["example.com"], host: "example.com@evil.org", isServed: false },
    { hosts: ["example.com"], host: "evil.org, example.com", isServed: false },
    { hosts: ["example.com:8080"], host: "example.com:8080", isServed: true },
    { hosts: ["example.com:8080"], host: "EXAMPLE.com:8080", isServed: true },
    { hosts: ["example.com:8080"], host: "example.com", isServed: false },
    { hosts: ["example.com:8080"], host: "example.com:80", isServed: false },
    { hosts: ["example.com:8080"], host: "example.com:80800", isServed: false },
    { hosts: [".example.com"], host: "www.example.com", isServed: true },
    { hosts: [".example.com"], host: "a.b.example.com:8080", isServed: true },
    { hosts: [".example.com"], host: "WWW.EXAMPLE.COM", isServed: true },
    { hosts: [".Example.com"], host: "www.example.com", isServed: true },
    { hosts: [".example.com"], host: "example.com", isServed: true },
    { hosts: [".example.com"], host: "notexample.com", isServed: false },
    { hosts: [".example.com"], host: "www.example.com.evil.org", isServed: false },
    { hosts: [".example.com"], host: "example.com.evil.org", isServed: false },
    { hosts: [".example.com"], host: "com", isServed: false },
    { hosts: [".example.com"], host: "", isServed: false },
    { hosts: [".example.com"], host: "evil.org:.example.com", isServed: false },
    { hosts: [".example.com"], host: "evil.org/.example.com", isServed: false },
    { hosts: [".example.com"], host: "evil.org?.example.com", isServed: false },
    { hosts: [".example.com"], host: "evil.org#.example.com", isServed: false },
    { hosts: [".example.com"], host: "evil.org\\.example.com", isServed: false },
    { hosts: [".example.com"], host: "evil.org, www.example.com", isServed: false },
    { hosts: [".example.com"], host: "user@www.example.com", isServed: false },
    { hosts: ["[::1]"], host: "[::1]", isServed: true },
    { hosts: ["[::1]"], host: "[::1]:8000", isServed: true },
    { hosts: ["[2001:DB8::1]"], host: "[2001:db8::1]:8000", isServed: true },
    { hosts: ["[::1]:8000"], host: "[::1]:8000", isServed: true },
    { hosts: ["[::1]:8000"], host: "[::1]", isServed: false },
    { hosts: ["[::1]"], host: "[::2]", isServed: false },
    { hosts: ["127.0.0.1"], host: "127.0.0.1:8000", isServed: true },
    { hosts: ["127.0.0.1"], host: "127.0.0.11", isServed: false },
    { hosts: ["example.org", ".example.com", "example.net:81"], host: "example.net:81", isServed: true },
    { hosts: ["example.org", ".example.com", "example.net:81"], host: "example.net", isServed: false },
    { hosts: ["example.com"], host: "example.com.", isServed: true },
    { hosts: ["example.com."], host: "example.com", isServed: true },
    { hosts: ["example.com.:8080"], host: "example.com:8080", isServed: true },
    { hosts: ["example.com"], host: "example.com..", isServed: false },
    { hosts: [".example.com"], host: "www.example.com.", isServed: true },
    { hosts: [".example.com"], host: ".example.com", isServed: false },
    { hosts: [".example.com"], host: "..example.com", isServed: false },
    { hosts: [".example.com"], host: "a..example.com", isServed: false },
    { hosts: [".example.com"], host: ".", isServed: false },
    { hosts: [".example.com"], host: "*.example.com", isServed: false },
    { hosts: [".example.com"], host: "evil.org%2f.example.com", isServed: false },
    { hosts: [".example.com:8080"], host: "www.example.com:8080", isServed: true },
    { hosts: [".example.com:8080"], host: "www.example.com", isServed: false },
    { hosts: [".undefined"], host: "a/b", isServed: false },
    { hosts: ["example.com:80"], host: "example.com", isServed: true },
    { hosts: ["example.com:80"], host: "example.com:", isServed: true },
    { hosts: ["example.com:080"], host: "example.com:0080", isServed: true },
    { hosts: ["example.com:80"], host: "example.com:443", isServed: false },
    { hosts: ["example.com:443"], host: "example.com", isServed: false },
    { hosts: ["[2001:db8::1]"], host: "[2001:db8:0:0::0001]:8000", isServed: true },
    { hosts: ["[2001:DB8:0::1]:80"], host: "[2001:db8::1]", isServed: true },
    { hosts: ["[::ffff:10.0.0.1]"], host: "[::ffff:a00:1]", isServed: true },
    { hosts: ["[::1]"], host: "[::0.0.0.2]", isServed: false },
    { hosts: [], host: "example.com", isServed: false },
  ]
) {
  test(`trustedHosts ${isServed ? "serves" : "refuses"} ${JSON.stringify(host)} with ${JSON.stringify(hosts)}`, async () => {
    const { status, environ } = await through((app) => trustedHosts(app, { hosts }), { HTTP_HOST: host });
    assert.equal(status, isServed ? "200 OK" : BAD_REQUEST);
    assert.equal(environ !== undefined, isServed);
  });
}

for (
  const { hosts, status } of [
    { hosts: ["inner"], status: "200 OK" },
    { hosts: ["inner:8000"], status: "200 OK" },
    { hosts: ["inner:80"], status: BAD_REQUEST },
    { hosts: ["example.com"], status: BAD_REQUEST },
  ]
) {
  test(`trustedHosts goes by SERVER_NAME without a Host: ${status} with ${hosts}`, async () => {
    const app = between((app) => trustedHosts(app, { hosts }), telling(() => ""));
    const environ = lacking({ SERVER_NAME: "inner", SERVER_PORT: "8000" }, "HTTP_HOST");
    assert.equal((await runApplication(app, environ)).status, status);
  });
}

for (
  const { hosts, host, status } of [
    { hosts: ["example.com:443"], host: "example.com", status: "200 OK" },
    { hosts: ["example.com:443"], host: "example.com:443", status: "200 OK" },
    { hosts: ["example.com:80"], host: "example.com", status: BAD_REQUEST },
  ]
) {
  test(`trustedHosts knows the default port of https: ${status} for ${host} with ${hosts}`, async () => {
    const variables = { "wsgi.url_scheme": "https", HTTPS: "on", HTTP_HOST: host };
    assert.equal((await through((app) => trustedHosts(app, { hosts }), variables)).status, status);
  });
}

for (
  const host of ["", ".", "..example.org", "a..example.org", "*", ".*.example.org", "[::1", "example.org/", "a%2eb"]
) {
  test(`trustedHosts refuses ${JSON.stringify(host)}, which is no host, in its list`, () => {
    assert.throws(
      () => trustedHosts(() => [], { hosts: ["example.com", host] }),
      (error) => error instanceof TypeError && error.message.includes(`"hosts": found ${JSON.stringify(host)}`),
    );
  });
}

test("trustedHosts answers 400 in plain text", async () => {
  const { headers, body } = await through((app) => trustedHosts(app, { hosts: [] }));
  assert.deepEqual(headers, [["Content-Type", "text/plain; charset=utf-8"]]);
  assert.equal(text(body), "Bad Request\n");
});

for (
  const options of ["{}", '{"hosts": "example.com"}', '{"hosts": null}', "null", '{"hosts": {"0": "example.com"}}']
) {
  test(`trustedHosts refuses the options ${options}`, () => {
    assert.throws(() => trustedHosts(() => [], JSON.parse(options)), { name: "TypeError", message: /\bhosts\b/ });
  });
}

for (
  const { forwarded, isServed } of [
    { forwarded: "www.example.com", isServed: true },
    { forwarded: "evil.org", isServed: false },
    { forwarded: "www.example.com, evil.org", isServed: false },
  ]
) {
  test(`trustedHosts inside proxyFix ${isServed ? "serves" : "refuses"} ${forwarded}`, async () => {
    const variables = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", HTTP_X_FORWARDED_HOST: forwarded };
    const wrap: Middleware = (app) => proxyFix(validator(trustedHosts(app, { hosts: [".example.com"] })));
    assert.equal((await through(wrap, variables)).status, isServed ? "200 OK" : BAD_REQUEST);
  });
}

for (const host of ["evil.org", "evil.org/.example.com", "evil.org?.example.com", "evil.org, a.example.com", ""]) {
  test(`trustedHosts lets no request for ${JSON.stringify(host)} in over the wire`, async () => {
    let calls = 0;
    const app = between((app) => trustedHosts(app, { hosts: [".example.com"] }), telling(() => `${++calls}`));
    await using server = start(app);
    assert.equal((await exchange(server, `GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)).status, 400);
    assert.equal(calls, 0);
  });
}

/** What is written to `wsgi.errors` about a request. */
async function lineFor(app: Application, variables: Partial<Environ> = {}): Promise<string> {
  return (await runApplication(app, testEnviron({ HTTP_HOST: "evil.example", ...variables }))).errors;
}

function guarded(): Application {
  return between((app) => trustedHosts(app, { hosts: ["example.com"] }), telling(() => ""));
}

for (
  const [name, variables, expected] of [
    [
      "who has asked for which host",
      { REMOTE_ADDR: "192.0.2.1", PATH_INFO: "/x" },
      'GET /x: 192.0.2.1 asked for host "evil.example", which is not in option "hosts"',
    ],
    [
      "the host also where the client has no address",
      {},
      'GET /: a client asked for host "evil.example", which is not in option "hosts"',
    ],
    [
      "nothing that a terminal obeys",
      { HTTP_HOST: "\x1b[31m\n\u202e", REQUEST_URI: "/\x1b\nforged" },
      'GET /\\x1b\n    forged: a client asked for host "\\u001b[31m\\n\\u202e", which is not in option "hosts"',
    ],
  ] as const
) {
  test(`trustedHosts writes a line about a request that it refuses, with ${name}`, async () => {
    const app = trustedHosts(telling(() => ""), { hosts: ["example.com"] });
    assert.equal(await lineFor(app, variables), `trustedHosts refused ${expected}\n`);
  });
}

test("trustedHosts writes nothing about a request that it serves", async () => {
  assert.equal(await lineFor(guarded(), { HTTP_HOST: "example.com" }), "");
});

test("trustedHosts writes one line in ten seconds, and then how many requests were left out", async () => {
  await withClock(async (moveOn) => {
    const [app, other] = [guarded(), guarded()];
    assert.match(await lineFor(app), /"hosts"\n$/);
    for (let count = 0; count < 3; count++) assert.equal(await lineFor(app), "");
    moveOn(9_999);
    assert.equal(await lineFor(app), "");
    assert.match(await lineFor(other), /"hosts"\n$/, "another middleware has a line of its own");
    moveOn(1);
    assert.match(await lineFor(app), /"hosts" \(4 more since the last line\)\n$/);
    moveOn(10_000);
    assert.match(await lineFor(app), /"hosts"\n$/);
  });
});
