import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import {
  type Application,
  type ApplicationLike,
  type ApplicationResult,
  applicationUri,
  basicAuth,
  type BasicAuthOptions,
  cors,
  type Environ,
  fromFetch,
  type HeaderList,
  type Middleware,
  mount,
  pipeline,
  proxyFix,
  type ProxyFixOptions,
  requestUri,
  type ResponseBody,
  runApplication,
  secureHeaders,
  type SecureHeadersOptions,
  type StartResponse,
  testEnviron,
  toRequest,
  trustedHosts,
  validator,
} from "../mod.ts";
import { answer, bytes, Client, Event, exchange, ok, parse, PLAIN, request, settle, start, text } from "./support.ts";

/** Some variables of a request. */
type Variables = Record<string, string>;

/** A middleware between two validators. */
function checked(middleware: Middleware, app: ApplicationLike): Application {
  return validator(middleware(validator(app)));
}

/** Answers with the text that is made of the environ. */
function telling(tell: (environ: Environ) => string): Application {
  return (environ, startResponse) => {
    ok(startResponse);
    return [bytes(tell(environ))];
  };
}

/** What came of a request, and the environ that the application got, if it was called. */
interface Outcome extends ApplicationResult {
  environ: Environ | undefined;
}

/** Sends a request through a middleware. */
async function through(middleware: Middleware, variables: Variables = {}, headers: HeaderList = []): Promise<Outcome> {
  let environ: Environ | undefined;
  const app = checked(middleware, (given, startResponse) => {
    environ = { ...given };
    ok(startResponse, ...headers);
    return [bytes("inside")];
  });
  return { ...await runApplication(app, testEnviron(variables)), environ };
}

/** The environ that an application gets behind a middleware, which has to call it. */
async function inside(middleware: Middleware, variables: Variables = {}): Promise<Environ> {
  const { status, environ } = await through(middleware, variables);
  return environ ?? assert.fail(`the application was not called: ${status}`);
}

/** The values of a header, in order. */
function valuesOf(headers: HeaderList, name: string): string[] {
  return headers.filter(([given]) => given.toLowerCase() === name.toLowerCase()).map(([, value]) => value);
}

/** An environ for tests, without some of its variables. */
function lacking(variables: Variables, ...names: string[]): Environ {
  const environ = testEnviron(variables);
  for (const name of names) delete environ[name];
  return environ;
}

/** Text in quotes, with nothing in it that a terminal cannot show. */
function shown(text: string): string {
  const escape = (character: string) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`;
  return JSON.stringify(text).replace(/[\x7f-\xff]/g, escape);
}

/** Text as a native string. */
function native(text: string): string {
  return Buffer.from(text).toString("latin1");
}

// mount

/** Applications that say under which key they are mounted, and what they see. */
function signposts(...keys: string[]): Record<string, ApplicationLike> {
  return Object.fromEntries(
    keys.map((key) => [
      key,
      validator(telling(({ SCRIPT_NAME, PATH_INFO }) => [key, SCRIPT_NAME, PATH_INFO].join(" | "))),
    ]),
  );
}

/** Where a request comes out. */
async function routed(keys: string[], variables: Variables): Promise<string> {
  const { status, body } = await runApplication(validator(mount(signposts(...keys))), testEnviron(variables));
  return status === "200 OK" ? text(body) : status;
}

const NOT_FOUND = "404 Not Found";

for (
  const { keys, path, to } of [
    { keys: ["/app"], path: "/app", to: "/app | /app | " },
    { keys: ["/app"], path: "/app/", to: "/app | /app | /" },
    { keys: ["/app"], path: "/app/x", to: "/app | /app | /x" },
    { keys: ["/app"], path: "/app//x", to: "/app | /app | //x" },
    { keys: ["/app"], path: "/application", to: NOT_FOUND },
    { keys: ["/app"], path: "/app.", to: NOT_FOUND },
    { keys: ["/app"], path: "/App", to: NOT_FOUND },
    { keys: ["/app"], path: "//app", to: NOT_FOUND },
    { keys: ["/app"], path: "/ap", to: NOT_FOUND },
    { keys: ["/app"], path: "/", to: NOT_FOUND },
    { keys: ["/app"], path: "/x/app", to: NOT_FOUND },
    { keys: ["/a", "/a/b"], path: "/a/b/c", to: "/a/b | /a/b | /c" },
    { keys: ["/a/b", "/a"], path: "/a/b/c", to: "/a/b | /a/b | /c" },
    { keys: ["/a", "/a/b"], path: "/a/bc", to: "/a | /a | /bc" },
    { keys: ["/", "/a"], path: "/a/x", to: "/a | /a | /x" },
    { keys: ["/", "/a"], path: "/ab", to: "/ |  | /ab" },
    { keys: ["/"], path: "/", to: "/ |  | /" },
    { keys: ["/"], path: "/any/thing", to: "/ |  | /any/thing" },
    { keys: ["/"], path: "//any", to: "/ |  | //any" },
    { keys: ["/a.b"], path: "/aXb", to: NOT_FOUND },
    { keys: ["/(a+)+$"], path: "/aaaa", to: NOT_FOUND },
    { keys: ["/constructor"], path: "/constructor/x", to: "/constructor | /constructor | /x" },
    { keys: ["/__proto__"], path: "/__proto__/x", to: "/__proto__ | /__proto__ | /x" },
    { keys: ["/a"], path: "/constructor", to: NOT_FOUND },
    { keys: ["/a"], path: "/__proto__", to: NOT_FOUND },
    { keys: ["/a"], path: "/toString", to: NOT_FOUND },
    { keys: ["/1", "/0"], path: "/0/x", to: "/0 | /0 | /x" },
    { keys: ["/public", "/admin"], path: "/public/../admin", to: "/public | /public | /../admin" },
    { keys: ["/public", "/admin"], path: "/./admin", to: NOT_FOUND },
    { keys: ["/public", "/admin"], path: "/public\\..\\admin", to: NOT_FOUND },
    { keys: ["/public", "/admin"], path: "/admin\0", to: NOT_FOUND },
    { keys: ["/a b"], path: "/a b/c", to: "/a b | /a b | /c" },
  ]
) {
  test(`mount of ${keys.join(" and ")} sends ${JSON.stringify(path)} to ${to}`, async () => {
    assert.equal(await routed(keys, { PATH_INFO: path }), to);
  });
}

for (
  const { keys, host, path, to } of [
    { keys: ["example.com/api"], host: "example.com", path: "/api/x", to: "example.com/api | /api | /x" },
    { keys: ["example.com/api"], host: "example.com:8080", path: "/api", to: "example.com/api | /api | " },
    { keys: ["example.com/api"], host: "EXAMPLE.com", path: "/api", to: "example.com/api | /api | " },
    { keys: ["Example.COM/api"], host: "example.com", path: "/api", to: "Example.COM/api | /api | " },
    { keys: ["example.com/api"], host: "example.com", path: "/API", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "example.com", path: "/apis", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "www.example.com", path: "/api", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "notexample.com", path: "/api", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "example.com.evil.org", path: "/api", to: NOT_FOUND },
    { keys: ["example.com/"], host: "example.com", path: "/x", to: "example.com/ |  | /x" },
    { keys: ["example.com"], host: "example.com", path: "/x", to: "example.com |  | /x" },
    { keys: ["example.com:8080/"], host: "example.com:8080", path: "/x", to: "example.com:8080/ |  | /x" },
    { keys: ["example.com:8080/"], host: "example.com:8081", path: "/x", to: NOT_FOUND },
    { keys: ["example.com:8080/"], host: "example.com", path: "/x", to: NOT_FOUND },
    { keys: ["/api", "example.com/"], host: "example.com", path: "/api", to: "example.com/ |  | /api" },
    {
      keys: ["/api/long", "example.com/api"],
      host: "example.com",
      path: "/api/long",
      to: "example.com/api | /api | /long",
    },
    { keys: ["/api", "example.com/"], host: "example.org", path: "/api", to: "/api | /api | " },
    { keys: ["/api", "example.com/x"], host: "example.com", path: "/api", to: "/api | /api | " },
    {
      keys: ["example.com/", "example.com:8080/"],
      host: "example.com:8080",
      path: "/",
      to: "example.com:8080/ |  | /",
    },
    {
      keys: ["example.com:8080/", "example.com/"],
      host: "example.com:8080",
      path: "/",
      to: "example.com:8080/ |  | /",
    },
    { keys: ["[::1]/api"], host: "[::1]", path: "/api/x", to: "[::1]/api | /api | /x" },
    { keys: ["[::1]/api"], host: "[::1]:8000", path: "/api/x", to: "[::1]/api | /api | /x" },
    { keys: ["[2001:DB8::1]:8000/"], host: "[2001:db8::1]:8000", path: "/", to: "[2001:DB8::1]:8000/ |  | /" },
    { keys: ["[::1]:8000/"], host: "[::1]", path: "/", to: NOT_FOUND },
    { keys: ["constructor/"], host: "example.com", path: "/", to: NOT_FOUND },
    { keys: ["__proto__/"], host: "__proto__", path: "/", to: "__proto__/ |  | /" },
  ]
) {
  test(`mount of ${keys.join(" and ")} sends ${path} on ${host} to ${to}`, async () => {
    assert.equal(await routed(keys, { HTTP_HOST: host, PATH_INFO: path }), to);
  });
}

test("mount goes by SERVER_NAME where the request names no host", async () => {
  const environ = lacking({ SERVER_NAME: "example.com" }, "HTTP_HOST");
  const { body } = await runApplication(validator(mount(signposts("example.com/"))), environ);
  assert.equal(text(body), "example.com/ |  | /");
});

test("mount compares keys in other scripts with the bytes of the path", async () => {
  const url = "http://test.example/caf%C3%A9/%E6%97%A5%E6%9C%AC%20%E8%AA%9E/x";
  const { response } = await answer(validator(mount(signposts("/café/日本 語"))), new Request(url));
  assert.equal(await response.text(), `/café/日本 語 | ${native("/café/日本 語")} | /x`);
});

test("mount does not take a part of a character for the end of a segment", async () => {
  assert.equal(await routed(["/caf\u00c3"], { PATH_INFO: native("/café") }), NOT_FOUND);
});

test("mount matches an empty rest of the path at its root", async () => {
  assert.equal(await routed(["/"], { SCRIPT_NAME: "/site", PATH_INFO: "" }), "/ | /site | ");
});

test("mount sends an empty rest of the path to no key with a path", async () => {
  assert.equal(await routed(["/app"], { SCRIPT_NAME: "/site", PATH_INFO: "" }), NOT_FOUND);
});

test("mount answers 404 in plain text where nothing is mounted", async () => {
  const { headers, body } = await runApplication(validator(mount({})), testEnviron());
  assert.deepEqual(valuesOf(headers, "Content-Type"), ["text/plain; charset=utf-8"]);
  assert.equal(text(body), "Not Found\n");
});

test("mount leaves the path to the fallback as it was", async () => {
  const fallback = validator(telling(({ SCRIPT_NAME, PATH_INFO }) => `fallback | ${SCRIPT_NAME} | ${PATH_INFO}`));
  const environ = testEnviron({ SCRIPT_NAME: "/site", PATH_INFO: "/other/x" });
  const { body } = await runApplication(validator(mount(signposts("/app"), fallback)), environ);
  assert.equal(text(body), "fallback | /site | /other/x");
});

test("mounts in mounts add to SCRIPT_NAME", async () => {
  const app = validator(mount({ "/a": validator(mount({ "/b": validator(mount(signposts("/c"))) })) }));
  const { body } = await runApplication(app, testEnviron({ PATH_INFO: "/a/b/c/d" }));
  assert.equal(text(body), "/c | /a/b/c | /d");
});

test("mount goes on where scriptName ends", async () => {
  const request = new Request("http://test.example/site/app/x");
  const { response } = await answer(validator(mount(signposts("/app"))), request, { scriptName: "/site" });
  assert.equal(await response.text(), "/app | /site/app | /x");
});

test("mount leaves the address of the request whole, and the target as it was", async () => {
  const app = validator(mount({
    "/a b": validator(telling((environ) => `${requestUri(environ)} ${applicationUri(environ)} ${environ.REQUEST_URI}`)),
  }));
  const { response } = await answer(app, new Request("http://test.example/a%20b/c%20d?e=f"));
  assert.equal(
    await response.text(),
    "http://test.example/a%20b/c%20d?e=f http://test.example/a%20b /a%20b/c%20d?e=f",
  );
});

test("mount takes a Fetch handler, which routes by its own paths", async () => {
  const init = { headers: { "Content-Type": "text/plain" } };
  const handler = fromFetch(({ method, url }) => new Response(`${method} ${new URL(url).pathname}`, init));
  const app = validator(mount({ "/api": validator(handler) }));
  const { response } = await answer(app, new Request("http://test.example/api/users/7?x=1"));
  assert.equal(await response.text(), "GET /users/7");
});

test("mount takes objects and classes", async () => {
  class Page {
    readonly #startResponse: StartResponse;
    readonly #path: string;

    constructor(environ: Environ, startResponse: StartResponse) {
      this.#startResponse = startResponse;
      this.#path = environ.PATH_INFO;
    }

    *[Symbol.iterator](): Generator<Uint8Array> {
      ok(this.#startResponse);
      yield bytes(`class ${this.#path}`);
    }
  }
  const object = {
    name: "object",
    handle(environ: Environ, startResponse: StartResponse): ResponseBody {
      ok(startResponse);
      return [bytes(`${this.name} ${environ.PATH_INFO}`)];
    },
  };
  const app = validator(mount({ "/class": Page, "/object": object }, Page));
  const paths = ["/class/x", "/object/x", "/x"];
  const results = await Promise.all(paths.map((path) => runApplication(app, testEnviron({ PATH_INFO: path }))));
  assert.deepEqual(results.map(({ body }) => text(body)), ["class /x", "object /x", "class /x"]);
});

for (
  const key of ["", "/api/", "//", "//api", "/api//users", "/a?b", "/a#b", "example.com/api/", "example.com//", "?"]
) {
  test(`mount refuses the key ${JSON.stringify(key)} and quotes it`, () => {
    assert.throws(
      () => mount({ "/fine": () => [], [key]: () => [] }),
      (error) => error instanceof TypeError && error.message.includes(JSON.stringify(key)),
    );
  });
}

test("mount uses its keys as they were when it was called", async () => {
  const apps = signposts("/a");
  const app = validator(mount(apps));
  Object.assign(apps, signposts("/b"));
  assert.equal((await runApplication(app, testEnviron({ PATH_INFO: "/b" }))).status, NOT_FOUND);
});

for (
  const target of ["/public/../admin/x", "/public/%2e%2e/admin/x", "/public/..%2fadmin/x", "/public%2f..%2fadmin/x"]
) {
  test(`mount agrees with the path that the application sees on ${target}`, async () => {
    await using server = start(validator(mount(signposts("/public", "/admin"))));
    const { status, body } = await exchange(server, request(target));
    assert.equal(status, 200);
    // Whether dot segments are taken away is the runtime's affair; who answers must be whom SCRIPT_NAME names.
    assert.match(body, /^(\/\w+) \| \1 \| \//);
    if (!body.startsWith("/admin")) assert.match(body, /\.\.\/admin\/x$/);
  });
}

// proxyFix

/** Whom an application behind proxyFix takes for the client, or the status with which the request was refused. */
async function clientOf(options: ProxyFixOptions, variables: Variables): Promise<string> {
  const { status, environ } = await through((app) => proxyFix(app, options), variables);
  if (!environ) return status;
  const { REMOTE_ADDR = "nobody", REMOTE_PORT } = environ;
  return REMOTE_PORT === undefined ? REMOTE_ADDR : `${REMOTE_ADDR} port ${REMOTE_PORT}`;
}

const BAD_REQUEST = "400 Bad Request";
const NETWORKS = ["127.0.0.1", "10.0.0.0/8", "2001:db8:a::/48"];

for (
  const { trust, peer, isBelieved } of [
    { trust: undefined, peer: "127.0.0.1", isBelieved: true },
    { trust: undefined, peer: "127.8.9.10", isBelieved: true },
    { trust: undefined, peer: "::1", isBelieved: true },
    { trust: undefined, peer: "::ffff:127.0.0.1", isBelieved: true },
    { trust: undefined, peer: "::ffff:7f00:1", isBelieved: true },
    { trust: undefined, peer: "::FFFF:127.0.0.1", isBelieved: true },
    { trust: undefined, peer: "0:0:0:0:0:0:0:1", isBelieved: true },
    { trust: undefined, peer: "128.0.0.1", isBelieved: false },
    { trust: undefined, peer: "10.0.0.1", isBelieved: false },
    { trust: undefined, peer: "::2", isBelieved: false },
    { trust: undefined, peer: "::127.0.0.1", isBelieved: false },
    { trust: undefined, peer: "::ffff:128.0.0.1", isBelieved: false },
    { trust: undefined, peer: "localhost", isBelieved: false },
    { trust: undefined, peer: undefined, isBelieved: false },
    { trust: NETWORKS, peer: "10.255.255.255", isBelieved: true },
    { trust: NETWORKS, peer: "11.0.0.0", isBelieved: false },
    { trust: NETWORKS, peer: "9.255.255.255", isBelieved: false },
    { trust: NETWORKS, peer: "127.0.0.1", isBelieved: true },
    { trust: NETWORKS, peer: "127.0.0.2", isBelieved: false },
    { trust: NETWORKS, peer: "2001:db8:a:ffff::1", isBelieved: true },
    { trust: NETWORKS, peer: "2001:DB8:A::1", isBelieved: true },
    { trust: NETWORKS, peer: "2001:db8:b::1", isBelieved: false },
    { trust: NETWORKS, peer: "::ffff:10.1.2.3", isBelieved: true },
    { trust: NETWORKS, peer: "::1", isBelieved: false },
    { trust: NETWORKS, peer: undefined, isBelieved: false },
    { trust: ["10.0.0.4/31"], peer: "10.0.0.5", isBelieved: true },
    { trust: ["10.0.0.4/31"], peer: "10.0.0.6", isBelieved: false },
    { trust: ["10.0.0.5/8"], peer: "10.9.9.9", isBelieved: true },
    { trust: ["0.0.0.0/0"], peer: "203.0.113.1", isBelieved: true },
    { trust: ["0.0.0.0/0"], peer: "2001:db8::1", isBelieved: false },
    { trust: ["::/0"], peer: "2001:db8::1", isBelieved: true },
    { trust: ["unix"], peer: undefined, isBelieved: true },
    { trust: ["unix"], peer: "127.0.0.1", isBelieved: false },
    { trust: ["unix", "10.0.0.1"], peer: "10.0.0.1", isBelieved: true },
    { trust: [], peer: "127.0.0.1", isBelieved: false },
    { trust: [], peer: undefined, isBelieved: false },
    { trust: 1, peer: "203.0.113.1", isBelieved: true },
    { trust: 1, peer: undefined, isBelieved: true },
  ]
) {
  const name = `proxyFix ${isBelieved ? "believes" : "does not believe"} ${peer ?? "a peer without an address"}`;
  test(`${name} with trust ${JSON.stringify(trust) ?? "as it is by default"}`, async () => {
    const variables = { ...peer === undefined ? {} : { REMOTE_ADDR: peer }, HTTP_X_FORWARDED_FOR: "203.0.113.7" };
    assert.equal(await clientOf({ trust }, variables), isBelieved ? "203.0.113.7" : peer ?? "nobody");
  });
}

for (
  const { what, trust = NETWORKS, value, client } of [
    { what: "the one address", value: "203.0.113.7", client: "203.0.113.7" },
    { what: "the right-most address", value: "6.6.6.6, 203.0.113.7", client: "203.0.113.7" },
    { what: "the address before a trusted proxy", value: "203.0.113.7, 10.0.0.1", client: "203.0.113.7" },
    {
      what: "the address before several trusted proxies",
      value: "6.6.6.6, 203.0.113.7, 10.0.0.1, 2001:db8:a::1, 127.0.0.1",
      client: "203.0.113.7",
    },
    {
      what: "no address to the left of a stranger, trusted though it is",
      value: "10.0.0.9, 203.0.113.7, 10.0.0.1",
      client: "203.0.113.7",
    },
    {
      what: "the left-most of proxies that are all trusted",
      value: "10.0.0.3, 10.0.0.2, 10.0.0.1",
      client: "10.0.0.3",
    },
    {
      what: "the address alone of a list without spaces",
      value: "6.6.6.6,203.0.113.7,10.0.0.1",
      client: "203.0.113.7",
    },
    { what: "an address between tabs and spaces", value: "6.6.6.6\t,\t 203.0.113.7 \t", client: "203.0.113.7" },
    { what: "address and port", value: "203.0.113.7:4711", client: "203.0.113.7 port 4711" },
    { what: "the address before a trusted one with a port", value: "203.0.113.7, 10.0.0.1:80", client: "203.0.113.7" },
    { what: "an IPv6 address", value: "2001:db8::7", client: "2001:db8::7" },
    { what: "an IPv6 address in brackets", value: "[2001:db8::7]", client: "2001:db8::7" },
    { what: "IPv6 address and port", value: "[2001:db8::7]:4711", client: "2001:db8::7 port 4711" },
    {
      what: "the address before a proxy in brackets",
      value: "2001:db8::7, [2001:db8:a::1]:443",
      client: "2001:db8::7",
    },
    { what: "the address before a mapped proxy", value: "203.0.113.7, ::ffff:10.0.0.1", client: "203.0.113.7" },
    { what: "nobody for unknown", value: "unknown", client: "nobody" },
    { what: "nobody for unknown before a proxy", value: "6.6.6.6, unknown, 10.0.0.1", client: "nobody" },
    { what: "nobody for a name that hides", value: "_hidden", client: "nobody" },
    { what: "nobody for a name", value: "localhost", client: "nobody" },
    { what: "nobody for half an address", value: "10.0.0", client: "nobody" },
    { what: "nobody for an address in octal", value: "010.0.0.1", client: "nobody" },
    { what: "nobody for an address too many", value: "203.0.113.7 10.0.0.1", client: "nobody" },
    { what: "nobody for IPv4 in brackets", value: "[203.0.113.7]", client: "nobody" },
    { what: "nobody for open brackets", value: "[2001:db8::7", client: "nobody" },
    { what: "nobody for markup", value: "<script>alert(1)</script>", client: "nobody" },
    { what: "nobody for a network", value: "10.0.0.0/8", client: "nobody" },
    { what: "nobody for a port that cannot be", value: "203.0.113.7:65536", client: "nobody" },
    { what: "the last hop of one", trust: 1, value: "6.6.6.6, 203.0.113.7", client: "203.0.113.7" },
    { what: "the last hop but one of two", trust: 2, value: "6.6.6.6, 203.0.113.7, 10.0.0.1", client: "203.0.113.7" },
    { what: "the last hop, trusted or not", trust: 1, value: "203.0.113.7, 127.0.0.1", client: "127.0.0.1" },
    { what: "the only hop of one", trust: 1, value: "203.0.113.7", client: "203.0.113.7" },
    { what: "all of two hops", trust: 2, value: "203.0.113.7, 10.0.0.1", client: "203.0.113.7" },
    { what: "nobody new for too few hops", trust: 2, value: "203.0.113.7", client: "127.0.0.1 port 99" },
    { what: "nobody new for far too few hops", trust: 1000, value: "1.1.1.1, 2.2.2.2", client: "127.0.0.1 port 99" },
  ]
) {
  test(`proxyFix reads ${what} from X-Forwarded-For ${JSON.stringify(value)}`, async () => {
    const variables = { REMOTE_ADDR: "127.0.0.1", REMOTE_PORT: "99", HTTP_X_FORWARDED_FOR: value };
    assert.equal(await clientOf({ trust }, variables), client);
  });
}

for (const value of ["", " ", ",", "6.6.6.6,", "6.6.6.6, , 10.0.0.1", "6.6.6.6,\t,,"]) {
  test(`proxyFix does not look past an empty entry for a client: ${JSON.stringify(value)}`, async () => {
    assert.notEqual(
      await clientOf({ trust: NETWORKS }, { REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_FOR: value }),
      "6.6.6.6",
    );
  });
}

const ALL_FORWARDED = {
  HTTP_X_FORWARDED_FOR: "203.0.113.7",
  HTTP_X_FORWARDED_PROTO: "https",
  HTTP_X_FORWARDED_HOST: "example.com:8443",
  HTTP_X_FORWARDED_PORT: "444",
  HTTP_X_FORWARDED_PREFIX: "/site",
};

/** A `startResponse` that takes everything. */
const TAKE: StartResponse = () => () => Promise.resolve();

for (
  const { what, options } of [
    { what: "a peer that is not trusted", options: {} },
    { what: "anybody where nobody is trusted", options: { trust: [] } },
    { what: "a peer that is not on the list", options: { trust: NETWORKS } },
    { what: "a peer that has an address, where only unix sockets are trusted", options: { trust: ["unix"] } },
    { what: "a peer that is not trusted, whichever header is named", options: { header: "Forwarded" as const } },
  ]
) {
  test(`proxyFix changes nothing for ${what}`, () => {
    const environ = testEnviron({ ...ALL_FORWARDED, REMOTE_ADDR: "192.0.2.1", HTTP_FORWARDED: 'for="' });
    const before = { ...environ };
    const given: Environ[] = [];
    proxyFix((environ) => {
      given.push(environ);
      return [];
    }, options)(environ, TAKE);
    assert.deepEqual(given, [environ]);
    assert.deepEqual(environ, before);
  });
}

test("proxyFix changes nothing that a proxy says nothing about", async () => {
  const variables = { REMOTE_ADDR: "127.0.0.1", REMOTE_PORT: "99", HTTP_HOST: "example.com:8000", SERVER_PORT: "8000" };
  const { REMOTE_ADDR, REMOTE_PORT, HTTP_HOST, SERVER_PORT } = await inside((app) => proxyFix(app), variables);
  assert.deepEqual({ REMOTE_ADDR, REMOTE_PORT, HTTP_HOST, SERVER_PORT }, variables);
});

/** The address of the request as it is seen behind proxyFix, or the status with which it was refused. */
async function addressBehind(variables: Variables, options: ProxyFixOptions = {}): Promise<string> {
  const request = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", SERVER_PORT: "8000", PATH_INFO: "/page" };
  const { status, environ } = await through((app) => proxyFix(app, options), { ...request, ...variables });
  return environ ? requestUri(environ) : status;
}

for (
  const { variables, address } of [
    { variables: { HTTP_X_FORWARDED_PROTO: "https" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "HTTPS" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: " https\t" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "http, https" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "https, http" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "javascript, https" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "ftp" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "https://" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "javascript" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "https http" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:8080" }, address: "http://example.com:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:80" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "evil.org, example.com" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "<evil>, example.com" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1]" }, address: "http://[2001:db8::1]/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1]:8080" }, address: "http://[2001:db8::1]:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "192.0.2.1:8080" }, address: "http://192.0.2.1:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "xn--mnchen-3ya.example" }, address: "http://xn--mnchen-3ya.example/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "evil.org/" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "evil.org/.example.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com@evil.org" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com?" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com#" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com\\x" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:http" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:80:80" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:65536" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: ":8080" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "2001:db8::1" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "[::::]" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "[192.0.2.1]" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "<script>" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "m\xfcnchen" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "8080" }, address: "http://inner:8080/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "80" }, address: "http://inner/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "443" }, address: "http://inner:443/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "65535" }, address: "http://inner:65535/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "1, 8080" }, address: "http://inner:8080/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "65536" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "99999" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "123456" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "-1" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "+80" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "0x50" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "8e3" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "80/" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "https" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site" }, address: "http://inner:8000/site/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site/" }, address: "http://inner:8000/site/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a/b-c_d.e~f" }, address: "http://inner:8000/a/b-c_d.e~f/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/caf%C3%a9" }, address: "http://inner:8000/caf%C3%A9/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%20b" }, address: "http://inner:8000/a%20b/page" },
    {
      variables: { HTTP_X_FORWARDED_PREFIX: "/..a/b../...", SCRIPT_NAME: "" },
      address: "http://inner:8000/..a/b../.../page",
    },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/", SCRIPT_NAME: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/evil, /site" }, address: "http://inner:8000/site/page" },
    {
      variables: { HTTP_X_FORWARDED_PREFIX: "/site", SCRIPT_NAME: "/app" },
      address: "http://inner:8000/site/app/page",
    },
    { variables: { HTTP_X_FORWARDED_PREFIX: "site" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "//evil.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "//" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site//" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a//b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/.." }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/." }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a/../b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/%2e%2e" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/.%2E/b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/%2e" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/%2fevil.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%2F..%2fb" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site%2f" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/\\evil.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%00b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%0d%0ab" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%zz" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a?b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a#b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "https://evil.com" }, address: BAD_REQUEST },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com" },
      address: "https://example.com/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com:443" },
      address: "https://example.com/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com:80" },
      address: "https://example.com:80/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_PORT: "443" },
      address: "https://inner/page",
    },
    {
      variables: { HTTP_X_FORWARDED_HOST: "example.com:8080", HTTP_X_FORWARDED_PORT: "9090" },
      address: "http://example.com:9090/page",
    },
    {
      variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1]", HTTP_X_FORWARDED_PORT: "9090" },
      address: "http://[2001:db8::1]:9090/page",
    },
    {
      variables: { HTTP_HOST: "[::1]:8000", HTTP_X_FORWARDED_PORT: "9090" },
      address: "http://[::1]:9090/page",
    },
    { variables: { HTTP_HOST: "", HTTP_X_FORWARDED_PORT: "9090" }, address: "http://127.0.0.1:9090/page" },
    { variables: { ...ALL_FORWARDED }, address: "https://example.com:444/site/page" },
  ]
) {
  test(`proxyFix makes ${address} of ${shown(Object.entries(variables).map((pair) => pair.join(": ")).join(", "))}`, async () => {
    assert.equal(await addressBehind(variables), address);
  });
}

for (
  const { scheme, HTTPS, forwarded, expected } of [
    { scheme: "http", HTTPS: undefined, forwarded: "https", expected: { scheme: "https", HTTPS: "on" } },
    { scheme: "https", HTTPS: "on", forwarded: "http", expected: { scheme: "http", HTTPS: undefined } },
    { scheme: "https", HTTPS: "on", forwarded: "https", expected: { scheme: "https", HTTPS: "on" } },
    { scheme: "http", HTTPS: undefined, forwarded: "HTTP", expected: { scheme: "http", HTTPS: undefined } },
  ]
) {
  test(`proxyFix keeps HTTPS in step when ${scheme} was ${forwarded} outside`, async () => {
    const variables = { "wsgi.url_scheme": scheme, REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_PROTO: forwarded };
    const { environ } = await through(
      (app) => proxyFix(app),
      HTTPS === undefined ? variables : { ...variables, HTTPS },
    );
    assert.deepEqual({ scheme: environ?.["wsgi.url_scheme"], HTTPS: environ?.HTTPS }, expected);
    assert.equal("HTTPS" in (environ ?? {}), expected.HTTPS !== undefined);
  });
}

for (
  const { variables, name, port, host } of [
    { variables: { HTTP_X_FORWARDED_HOST: "example.com" }, name: "example.com", port: "80", host: "example.com" },
    {
      variables: { HTTP_X_FORWARDED_HOST: "example.com:8080" },
      name: "example.com",
      port: "8080",
      host: "example.com:8080",
    },
    {
      variables: { HTTP_X_FORWARDED_HOST: "[::1]", HTTP_X_FORWARDED_PROTO: "https" },
      name: "[::1]",
      port: "443",
      host: "[::1]",
    },
    { variables: { HTTP_X_FORWARDED_PORT: "81" }, name: "inner", port: "81", host: "inner:81" },
    {
      variables: { HTTP_X_FORWARDED_PORT: "443", HTTP_X_FORWARDED_PROTO: "https" },
      name: "inner",
      port: "443",
      host: "inner",
    },
  ]
) {
  test(`proxyFix sets name, port and host alike for ${JSON.stringify(variables)}`, async () => {
    const request = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", SERVER_PORT: "8000" };
    const environ = await inside((app) => proxyFix(app), { ...request, ...variables });
    const { SERVER_NAME, SERVER_PORT, HTTP_HOST } = environ;
    assert.deepEqual({ SERVER_NAME, SERVER_PORT, HTTP_HOST }, {
      SERVER_NAME: name,
      SERVER_PORT: port,
      HTTP_HOST: host,
    });
  });
}

test("proxyFix gives a Fetch handler no host of which no URL can be made", async () => {
  const app = checked((app) => proxyFix(app), fromFetch((request) => Response.json(request.url)));
  const environ = testEnviron({ REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_HOST: "example.com:99999" });
  assert.equal((await runApplication(app, environ)).status, BAD_REQUEST);
});

test("proxyFix moves the prefix in front of scriptName, and the application gets its bytes", async () => {
  const app = checked((app) => proxyFix(app, { trust: 1 }), telling((environ) => JSON.stringify(environ.SCRIPT_NAME)));
  const headers = { "X-Forwarded-Prefix": "/caf%C3%A9/" };
  const { response } = await answer(app, new Request("http://test.example/app/x", { headers }), { scriptName: "/app" });
  assert.equal(await response.json(), native("/café/app"));
});

test("proxyFix answers 400 in plain text, without the application", async () => {
  const { status, headers, body, environ } = await through((app) => proxyFix(app), {
    REMOTE_ADDR: "127.0.0.1",
    HTTP_X_FORWARDED_PROTO: "gopher",
  });
  assert.equal(status, BAD_REQUEST);
  assert.deepEqual(headers, [["Content-Type", "text/plain; charset=utf-8"]]);
  assert.equal(text(body), "Bad Request\n");
  assert.equal(environ, undefined);
});

test("proxyFix keeps what it changes, and nothing that was not there", async () => {
  const before = {
    REMOTE_ADDR: "127.0.0.1",
    REMOTE_PORT: "99",
    HTTP_HOST: "inner:8000",
    SERVER_NAME: "inner",
    SERVER_PORT: "8000",
    SCRIPT_NAME: "/app",
    "wsgi.url_scheme": "http",
  };
  const environ = await inside((app) => proxyFix(app), { ...before, ...ALL_FORWARDED, PATH_INFO: "/" });
  assert.deepEqual(environ["proxy_fix.original"], before);
  const { REMOTE_ADDR, HTTP_HOST, SERVER_NAME, SERVER_PORT, SCRIPT_NAME, HTTPS } = environ;
  assert.deepEqual({ REMOTE_ADDR, HTTP_HOST, SERVER_NAME, SERVER_PORT, SCRIPT_NAME, HTTPS }, {
    REMOTE_ADDR: "203.0.113.7",
    HTTP_HOST: "example.com:444",
    SERVER_NAME: "example.com",
    SERVER_PORT: "444",
    SCRIPT_NAME: "/site/app",
    HTTPS: "on",
  });
  assert(!("REMOTE_PORT" in environ), "the port of the proxy is not that of the client");
});

test("proxyFix keeps no variable that a peer without an address does not have", async () => {
  const environ = lacking({ HTTP_X_FORWARDED_FOR: "203.0.113.7:4711" }, "HTTP_HOST");
  const keys = telling((environ) => Object.keys(Object(environ["proxy_fix.original"])).sort().join());
  const { body } = await runApplication(checked((app) => proxyFix(app, { trust: ["unix"] }), keys), environ);
  assert.equal(text(body), "SCRIPT_NAME,SERVER_NAME,SERVER_PORT,wsgi.url_scheme");
});

for (
  const { what, value, options, seen } of [
    { what: "an address", value: "for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "quotes", value: 'for="203.0.113.7"', seen: "203.0.113.7 http inner:8000" },
    { what: "a port", value: 'for="203.0.113.7:4711"', seen: "203.0.113.7:4711 http inner:8000" },
    { what: "IPv6", value: 'for="[2001:db8::7]"', seen: "2001:db8::7 http inner:8000" },
    { what: "IPv6 with a port", value: 'for="[2001:db8::7]:4711"', seen: "2001:db8::7:4711 http inner:8000" },
    { what: "unknown", value: "for=unknown", seen: "nobody http inner:8000" },
    { what: "an obfuscated name", value: 'for="_gazonk"', seen: "nobody http inner:8000" },
    { what: "an obfuscated port", value: 'for="203.0.113.7:_port"', seen: "203.0.113.7 http inner:8000" },
    { what: "upper case", value: "FOR=203.0.113.7;Proto=HTTPS;hOST=a.example", seen: "203.0.113.7 https a.example" },
    {
      what: "all parameters in any order",
      value: 'proto=https;by=10.0.0.1;host="a.example:8443";for=203.0.113.7',
      seen: "203.0.113.7 https a.example:8443",
    },
    { what: "an unknown parameter", value: "secret=_x;for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "a parameter __proto__", value: "__proto__=x;for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "a parameter constructor", value: "constructor=x;for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "escapes", value: 'for="203.\\0.113.7";host="a.\\example"', seen: "203.0.113.7 http a.example" },
    {
      what: "separators in quotes",
      value: 'by="a,for=6.6.6.6;proto=https";for=203.0.113.7',
      seen: "203.0.113.7 http inner:8000",
    },
    { what: "an escaped quote", value: 'by="a\\",for=6.6.6.6";for=203.0.113.7', seen: "203.0.113.7 http inner:8000" },
    {
      what: "several elements",
      value: "for=6.6.6.6;proto=http, for=203.0.113.7;proto=https",
      seen: "203.0.113.7 https inner:8000",
    },
    { what: "elements without spaces", value: "for=6.6.6.6,for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    {
      what: "what the first trusted proxy has said",
      value:
        "for=6.6.6.6;proto=http, for=203.0.113.7;proto=https;host=a.example, for=10.0.0.1;proto=http;host=b.example",
      seen: "203.0.113.7 https a.example",
    },
    {
      what: "nothing of an element before the first trusted proxy",
      value: "for=6.6.6.6;proto=https;host=evil.org, for=203.0.113.7, for=10.0.0.1",
      seen: "203.0.113.7 http inner:8000",
    },
    {
      what: "the hop that is counted",
      value: "for=6.6.6.6, for=203.0.113.7;proto=https, for=192.0.2.9",
      options: { trust: 2 },
      seen: "203.0.113.7 https inner:8000",
    },
    {
      what: "nothing for too few hops",
      value: "for=203.0.113.7;proto=https;host=a.example",
      options: { trust: 2 },
      seen: "127.0.0.1 http inner:8000",
    },
    { what: "an empty pair at the end", value: "for=203.0.113.7;", seen: "203.0.113.7 http inner:8000" },
    {
      what: "an empty pair in the middle",
      value: "for=203.0.113.7;;proto=https",
      seen: "203.0.113.7 https inner:8000",
    },
    { what: "an empty element", value: "for=6.6.6.6, , for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "an open quote", value: 'for="203.0.113.7', seen: BAD_REQUEST },
    { what: "an open quote of a client", value: 'for="6.6.6.6, for=203.0.113.7', seen: BAD_REQUEST },
    { what: "an open quote that a proxy closes", value: 'for=6.6.6.6;x=", for="[2001:db8::7]"', seen: BAD_REQUEST },
    { what: "a quote that ends in a backslash", value: 'for="6.6.6.6\\", for=203.0.113.7', seen: BAD_REQUEST },
    { what: "something behind a quote", value: 'for="203.0.113.7"x', seen: BAD_REQUEST },
    { what: "no value", value: "for=", seen: BAD_REQUEST },
    { what: "no name", value: "=203.0.113.7", seen: BAD_REQUEST },
    { what: "no equals sign", value: "203.0.113.7", seen: BAD_REQUEST },
    { what: "a space in a value", value: "for=203.0.113.7 proto=https", seen: BAD_REQUEST },
    { what: "a scheme that is none", value: "for=203.0.113.7;proto=gopher", seen: BAD_REQUEST },
    { what: "a host that is none", value: 'for=203.0.113.7;host="evil.org/a.example"', seen: BAD_REQUEST },
    { what: "the same parameter twice", value: "for=203.0.113.7;for=6.6.6.6", seen: BAD_REQUEST },
  ]
) {
  test(`proxyFix reads Forwarded with ${what}: ${value}`, async () => {
    const variables = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", HTTP_FORWARDED: value };
    const { status, environ } = await through((app) => proxyFix(app, options ?? { trust: NETWORKS }), variables);
    if (!environ) assert.equal(status, seen);
    else {
      const { REMOTE_ADDR = "nobody", REMOTE_PORT, HTTP_HOST, "wsgi.url_scheme": scheme } = environ;
      assert.equal(`${REMOTE_ADDR}${REMOTE_PORT ? `:${REMOTE_PORT}` : ""} ${scheme} ${HTTP_HOST}`, seen);
    }
  });
}

for (
  const { what, header, variables, client } of [
    {
      what: "X-Forwarded-For before Forwarded by default",
      header: undefined,
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: "for=6.6.6.6" },
      client: "203.0.113.7",
    },
    {
      what: "no part of Forwarded where there is any X-Forwarded header",
      header: undefined,
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_FORWARDED: "for=6.6.6.6" },
      client: "127.0.0.1",
    },
    {
      what: "no Forwarded that cannot be read where it is not the one",
      header: undefined,
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: 'for="' },
      client: "203.0.113.7",
    },
    {
      what: "Forwarded alone where it is named",
      header: "Forwarded",
      variables: { HTTP_X_FORWARDED_FOR: "6.6.6.6", HTTP_FORWARDED: "for=203.0.113.7" },
      client: "203.0.113.7",
    },
    {
      what: "no X-Forwarded-For where Forwarded is named and absent",
      header: "Forwarded",
      variables: { HTTP_X_FORWARDED_FOR: "6.6.6.6" },
      client: "127.0.0.1",
    },
    {
      what: "X-Forwarded-For alone where it is named",
      header: "X-Forwarded-For",
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: "for=6.6.6.6" },
      client: "203.0.113.7",
    },
    {
      what: "no Forwarded where X-Forwarded-For is named and absent",
      header: "X-Forwarded-For",
      variables: { HTTP_FORWARDED: "for=6.6.6.6" },
      client: "127.0.0.1",
    },
    {
      what: "no Forwarded, readable or not, where X-Forwarded-For is named",
      header: "X-Forwarded-For",
      variables: { HTTP_FORWARDED: 'for="' },
      client: "127.0.0.1",
    },
  ] as const
) {
  test(`proxyFix reads ${what}`, async () => {
    assert.equal(await clientOf({ header }, { REMOTE_ADDR: "127.0.0.1", ...variables }), client);
  });
}

test("proxyFix reads nothing else of X-Forwarded where Forwarded is named", async () => {
  const variables = { ...ALL_FORWARDED, HTTP_FORWARDED: "for=203.0.113.7;proto=https" };
  assert.equal(await addressBehind(variables, { header: "Forwarded" }), "https://inner:8000/page");
});

for (const name of ["PROTO", "HOST", "PORT", "PREFIX"] as const) {
  test(`proxyFix takes nothing from an X-Forwarded-${name} with too few values for its hops`, async () => {
    const variables = { [`HTTP_X_FORWARDED_${name}`]: ALL_FORWARDED[`HTTP_X_FORWARDED_${name}`] };
    assert.equal(await addressBehind(variables, { trust: 2 }), "http://inner:8000/page");
  });
}

// What a client sends, and what the proxies of a set-up make of it: a client must not choose how it is seen.
const ATTACK = "6.6.6.6";
for (
  const { what, options, peer = "10.0.0.1", variables } of [
    { what: "goes round the proxies", options: { trust: NETWORKS }, peer: "203.0.113.7", variables: ALL_FORWARDED },
    {
      what: "poses as a proxy in front of one proxy",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK}, 10.0.0.9, 203.0.113.7` },
    },
    {
      what: "poses as a proxy in front of two proxies",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK}, 10.0.0.9, 203.0.113.7, 10.0.0.2` },
    },
    {
      what: "adds hops where they are counted",
      options: { trust: 2 },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK}, ${ATTACK}, ${ATTACK}, 203.0.113.7, 10.0.0.2` },
    },
    {
      what: "sends lists with other commas",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK};10.0.0.9\t${ATTACK},,203.0.113.7` },
    },
    {
      what: "opens brackets",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `[${ATTACK}, 203.0.113.7` },
    },
    {
      what: "opens quotes in X-Forwarded-For",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `"${ATTACK}, 203.0.113.7` },
    },
    {
      what: "sends Forwarded past proxies that set X-Forwarded-For",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: `for=${ATTACK};proto=https;host=evil.org` },
    },
    {
      what: "sends X-Forwarded-For past proxies that set Forwarded",
      options: { trust: NETWORKS, header: "Forwarded" as const },
      variables: { HTTP_X_FORWARDED_FOR: ATTACK, HTTP_FORWARDED: "for=203.0.113.7" },
    },
    {
      what: "leaves a pair open in Forwarded",
      options: { trust: NETWORKS, header: "Forwarded" as const },
      variables: { HTTP_FORWARDED: `for=${ATTACK};x=y, for=203.0.113.7` },
    },
    {
      what: "quotes the proxy's name",
      options: { trust: NETWORKS, header: "Forwarded" as const },
      variables: { HTTP_FORWARDED: `for=${ATTACK};by="10.0.0.1, for=10.0.0.1", for=203.0.113.7` },
    },
    {
      what: "has sent scheme and host before the proxy's own",
      options: { trust: NETWORKS },
      variables: {
        HTTP_X_FORWARDED_FOR: `${ATTACK}, 203.0.113.7`,
        HTTP_X_FORWARDED_PROTO: "https, http",
        HTTP_X_FORWARDED_HOST: "evil.org, inner",
        HTTP_X_FORWARDED_PREFIX: "/evil, /",
      },
    },
    {
      what: "has sent scheme and host before the proxies' own",
      options: { trust: 2 },
      variables: {
        HTTP_X_FORWARDED_FOR: `${ATTACK}, 203.0.113.7, 10.0.0.1`,
        HTTP_X_FORWARDED_PROTO: "https, http, http",
        HTTP_X_FORWARDED_HOST: "evil.org, inner, inner",
        HTTP_X_FORWARDED_PREFIX: "/evil, /, /",
      },
    },
  ]
) {
  test(`proxyFix does not believe a client that ${what}`, async () => {
    const request = { REMOTE_ADDR: peer, HTTP_HOST: "inner", ...variables };
    const environ = await inside((app) => proxyFix(app, options), request);
    assert.equal(environ.REMOTE_ADDR, "203.0.113.7");
    assert.equal(applicationUri(environ), "http://inner/");
  });
}

for (
  const { what, variables } of [
    {
      what: "an X-Forwarded-For of proxies alone",
      variables: { HTTP_X_FORWARDED_FOR: `${"127.0.0.1,".repeat(6000)}127.0.0.1` },
    },
    { what: "an X-Forwarded-For in one piece", variables: { HTTP_X_FORWARDED_FOR: "1".repeat(60_000) } },
    { what: "an X-Forwarded-For of commas", variables: { HTTP_X_FORWARDED_FOR: ",".repeat(60_000) } },
    { what: "an X-Forwarded-For of spaces", variables: { HTTP_X_FORWARDED_FOR: `1${" ".repeat(60_000)}1` } },
    { what: "an X-Forwarded-For of brackets", variables: { HTTP_X_FORWARDED_FOR: "[".repeat(60_000) } },
    { what: "an X-Forwarded-For of closed brackets", variables: { HTTP_X_FORWARDED_FOR: `[${"]".repeat(60_000)}` } },
    { what: "an X-Forwarded-Host of dots", variables: { HTTP_X_FORWARDED_HOST: `${".".repeat(60_000)}/` } },
    { what: "an X-Forwarded-Prefix of segments", variables: { HTTP_X_FORWARDED_PREFIX: `${"/a".repeat(30_000)}"` } },
    { what: "an X-Forwarded-Prefix in one piece", variables: { HTTP_X_FORWARDED_PREFIX: `/${"a".repeat(60_000)}"` } },
    { what: "a Forwarded of elements", variables: { HTTP_FORWARDED: `${"for=127.0.0.1,".repeat(4300)}for=127.0.0.1` } },
    { what: "a Forwarded of spaces", variables: { HTTP_FORWARDED: `for=a${" ".repeat(60_000)}x` } },
    { what: "a Forwarded of spaces before a pair", variables: { HTTP_FORWARDED: `for=a,${" ".repeat(60_000)}"` } },
    { what: "a Forwarded of commas and spaces", variables: { HTTP_FORWARDED: `${" ,".repeat(30_000)}"` } },
    { what: "a Forwarded in one piece", variables: { HTTP_FORWARDED: "a".repeat(60_000) } },
    { what: "a Forwarded of escapes", variables: { HTTP_FORWARDED: `for="${'\\"'.repeat(30_000)}` } },
    { what: "a Forwarded of quotes", variables: { HTTP_FORWARDED: `for=${'"'.repeat(60_000)}` } },
    { what: "a Forwarded of open quotes", variables: { HTTP_FORWARDED: 'for=",'.repeat(10_000) } },
  ]
) {
  test(`proxyFix is quick with ${what}`, async () => {
    const app = proxyFix(telling(() => ""));
    const environ = testEnviron({ REMOTE_ADDR: "127.0.0.1", ...variables });
    const times: number[] = [];
    for (let run = 0; run < 3; run++) {
      const begun = performance.now();
      await runApplication(app, environ);
      times.push(performance.now() - begun);
    }
    // Some milliseconds are expected, and what is quadratic takes seconds; the best of three is least of all noise.
    assert(Math.min(...times) < 400, `${times} ms`);
  });
}

for (
  const { what, options } of [
    { what: "no hops", options: { trust: 0 } },
    { what: "less than no hops", options: { trust: -1 } },
    { what: "half a hop", options: { trust: 1.5 } },
    { what: "no number of hops", options: { trust: NaN } },
    { what: "endless hops", options: { trust: Infinity } },
    { what: "a name", options: { trust: ["localhost"] } },
    { what: "nothing", options: { trust: [""] } },
    { what: "half an address", options: { trust: ["10.0.0"] } },
    { what: "an address in octal", options: { trust: ["010.0.0.1"] } },
    { what: "an address with a zone", options: { trust: ["fe80::1%eth0"] } },
    { what: "a network that is too narrow", options: { trust: ["10.0.0.0/33"] } },
    { what: "an IPv6 network that is too narrow", options: { trust: ["::/129"] } },
    { what: "a network that is too wide", options: { trust: ["10.0.0.0/-1"] } },
    { what: "a network without a width", options: { trust: ["10.0.0.0/"] } },
    { what: "a network with a blank width", options: { trust: ["10.0.0.0/ "] } },
    { what: "a network in hexadecimal", options: { trust: ["10.0.0.0/0x8"] } },
    { what: "a network with two widths", options: { trust: ["10.0.0.0/8/8"] } },
    { what: "a network with a mask", options: { trust: ["10.0.0.0/255.0.0.0"] } },
    { what: "a network of no address", options: { trust: ["/8"] } },
    { what: "an address with a port", options: { trust: ["10.0.0.1:80"] } },
    { what: "one of several that is wrong", options: { trust: ["127.0.0.1", "10.0.0.0/99"] } },
  ]
) {
  test(`proxyFix refuses to trust ${what}: ${JSON.stringify(options.trust)}`, () => {
    const { trust } = options;
    const quoted = Array.isArray(trust) ? JSON.stringify(trust.at(-1)) : String(trust);
    assert.throws(
      () => proxyFix(() => [], options),
      (error) => error instanceof TypeError && error.message.includes('"trust"') && error.message.includes(quoted),
    );
  });
}

test("proxyFix refuses a header that it does not know", () => {
  const options = JSON.parse('{"header": "X-Real-IP"}');
  assert.throws(() => proxyFix(() => [], options), { name: "TypeError", message: /"header".*"X-Real-IP"/ });
});

test("proxyFix reads repeated headers as one, and none with an underscore", async () => {
  const app = checked((app) => proxyFix(app), telling(({ REMOTE_ADDR, HTTP_HOST }) => `${REMOTE_ADDR} ${HTTP_HOST}`));
  await using server = start(app);
  const headers = [
    "X-Forwarded-For: 6.6.6.6",
    "X_Forwarded_Host: evil.org",
    "x-forwarded-for: 203.0.113.7",
    "X-Forwarded-For: 127.0.0.1",
  ];
  assert.equal((await exchange(server, request("/", { headers }))).body, "203.0.113.7 test.example");
});

test("proxyFix reads repeated Forwarded headers as one, and refuses a quote across them", async () => {
  const app = checked((app) => proxyFix(app), telling(({ REMOTE_ADDR }) => String(REMOTE_ADDR)));
  await using server = start(app);
  const headers = ["Forwarded: for=6.6.6.6", "Forwarded: for=203.0.113.7", 'Forwarded: for="127.0.0.1:80"'];
  assert.equal((await exchange(server, request("/", { headers }))).body, "203.0.113.7");
  const open = ['Forwarded: for="6.6.6.6', 'Forwarded: for="[2001:db8::7]"'];
  assert.equal((await exchange(server, request("/", { headers: open }))).status, 400);
});

test("proxyFix believes a proxy on a unix socket when it is told to", async () => {
  const unix = join(tmpdir(), `routing-${crypto.randomUUID()}.sock`);
  const app = checked((app) => proxyFix(app, { trust: ["unix"] }), telling(({ REMOTE_ADDR }) => String(REMOTE_ADDR)));
  try {
    await using server = start(app, { unix });
    const client = await Client.connect(server, { unix });
    await client.send(request("/", { headers: ["X-Forwarded-For: 203.0.113.7"] }));
    assert.equal(parse(await client.end()).body, "203.0.113.7");
  } finally {
    await rm(unix, { force: true });
  }
});

test("proxyFix gives a Fetch handler the client's address", async () => {
  const app = checked((app) => proxyFix(app, { trust: 1 }), (environ, startResponse) => {
    ok(startResponse);
    return [bytes(toRequest(environ).url)];
  });
  const headers = { "X-Forwarded-Proto": "https", "X-Forwarded-Host": "example.com" };
  const { response } = await answer(app, new Request("http://inner.example/page?x=1", { headers }));
  assert.equal(await response.text(), "https://example.com/page?x=1");
});

// trustedHosts

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
  const { hosts, status } of [{ hosts: ["inner"], status: "200 OK" }, { hosts: ["example.com"], status: BAD_REQUEST }]
) {
  test(`trustedHosts goes by SERVER_NAME without a Host: ${status} with ${hosts}`, async () => {
    const app = checked((app) => trustedHosts(app, { hosts }), telling(() => ""));
    assert.equal((await runApplication(app, lacking({ SERVER_NAME: "inner" }, "HTTP_HOST"))).status, status);
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
    const app = checked((app) => trustedHosts(app, { hosts: [".example.com"] }), telling(() => `${++calls}`));
    await using server = start(app);
    assert.equal((await exchange(server, `GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)).status, 400);
    assert.equal(calls, 0);
  });
}

// cors

const PAGE = "https://page.example";
const PREFLIGHT = { REQUEST_METHOD: "OPTIONS", HTTP_ORIGIN: PAGE, HTTP_ACCESS_CONTROL_REQUEST_METHOD: "PUT" };

/** What cors says: the headers that it is about, in the order of their names. */
function said(headers: HeaderList): string[] {
  return headers.filter(([name]) => /^(?:access-control-|vary$)/i.test(name)).map((pair) => pair.join(": ")).sort();
}

for (
  const { what, options, variables, own, headers } of [
    { what: "any origin", headers: ["Access-Control-Allow-Origin: *"] },
    { what: "a request of no origin", variables: {}, headers: ["Access-Control-Allow-Origin: *"] },
    {
      what: "any origin that says null",
      variables: { HTTP_ORIGIN: "null" },
      headers: ["Access-Control-Allow-Origin: *"],
    },
    {
      what: "the one origin",
      options: { origin: PAGE },
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "one origin of several",
      options: { origin: ["https://other.example", PAGE] },
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "an origin with credentials",
      options: { origin: PAGE, credentials: true },
      headers: ["Access-Control-Allow-Credentials: true", `Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "null where it is allowed",
      options: { origin: ["null"] },
      variables: { HTTP_ORIGIN: "null" },
      headers: ["Access-Control-Allow-Origin: null", "Vary: Origin"],
    },
    {
      what: "no null otherwise",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: "null" },
      headers: ["Vary: Origin"],
    },
    { what: "no other origin", options: { origin: ["https://other.example"] }, headers: ["Vary: Origin"] },
    {
      what: "no other origin with credentials",
      options: { origin: "https://other.example", credentials: true },
      headers: ["Vary: Origin"],
    },
    { what: "nobody where nobody is allowed", options: { origin: [] }, headers: ["Vary: Origin"] },
    { what: "nobody without an origin", options: { origin: PAGE }, variables: {}, headers: ["Vary: Origin"] },
    {
      what: "no origin with another scheme",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: "http://page.example" },
      headers: ["Vary: Origin"],
    },
    {
      what: "no origin with another port",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: `${PAGE}:8443` },
      headers: ["Vary: Origin"],
    },
    {
      what: "no origin that begins alike",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: `${PAGE}.evil.org` },
      headers: ["Vary: Origin"],
    },
    {
      what: "no origin that ends alike",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: "https://evil.org/https://page.example" },
      headers: ["Vary: Origin"],
    },
    {
      what: "no list of origins",
      options: { origin: PAGE },
      variables: { HTTP_ORIGIN: `${PAGE}, https://evil.org` },
      headers: ["Vary: Origin"],
    },
    {
      what: "the application's own Vary as well",
      options: { origin: PAGE },
      own: [["vary", "Accept, Cookie"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Accept, Cookie, Origin"],
    },
    {
      what: "several Vary headers in one",
      options: { origin: PAGE },
      own: [["Vary", "Accept"], ["Vary", "Cookie"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Accept, Cookie, Origin"],
    },
    {
      what: "Vary: origin as it is",
      options: { origin: PAGE },
      own: [["Vary", "Accept, origin"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Accept, origin"],
    },
    {
      what: "Vary: * as it is",
      options: { origin: PAGE },
      own: [["Vary", "*"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: *"],
    },
    {
      what: "any origin without touching Vary",
      own: [["Vary", "Accept"]] satisfies HeaderList,
      headers: ["Access-Control-Allow-Origin: *", "Vary: Accept"],
    },
    {
      what: "an origin once, whatever the application says",
      options: { origin: PAGE },
      own: [["access-control-allow-origin", "*"]] satisfies HeaderList,
      headers: [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "credentials once",
      options: { origin: PAGE, credentials: true },
      own: [["access-control-allow-credentials", "true"]] satisfies HeaderList,
      headers: ["Access-Control-Allow-Credentials: true", `Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"],
    },
    {
      what: "the application's own exposed headers",
      own: [["Access-Control-Expose-Headers", "ETag"]] satisfies HeaderList,
      headers: ["Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: ETag"],
    },
  ]
) {
  test(`cors allows ${what} in a response`, async () => {
    const wrap: Middleware = (app) => cors(app, options);
    const { headers: given, body } = await through(wrap, { ...variables ?? { HTTP_ORIGIN: PAGE } }, own);
    assert.deepEqual(said(given), headers);
    assert.equal(text(body), "inside");
  });
}

const METHODS = "Access-Control-Allow-Methods: GET, HEAD, POST, PUT, PATCH, DELETE";

for (
  const { what, options, variables, headers } of [
    {
      what: "any origin and all usual methods",
      headers: [METHODS, "Access-Control-Allow-Origin: *", "Vary: Access-Control-Request-Headers"],
    },
    {
      what: "whichever headers are asked for",
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "content-type,x-a" },
      headers: [
        "Access-Control-Allow-Headers: content-type,x-a",
        METHODS,
        "Access-Control-Allow-Origin: *",
        "Vary: Access-Control-Request-Headers",
      ],
    },
    {
      what: "the headers that are named, whichever are asked for",
      options: { headers: ["Content-Type", "X-B"] },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: ["Access-Control-Allow-Headers: Content-Type, X-B", METHODS, "Access-Control-Allow-Origin: *"],
    },
    {
      what: "no headers where none are named",
      options: { headers: [] },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: [METHODS, "Access-Control-Allow-Origin: *"],
    },
    {
      what: "the methods that are named",
      options: { methods: ["GET", "PURGE"], headers: [] },
      headers: ["Access-Control-Allow-Methods: GET, PURGE", "Access-Control-Allow-Origin: *"],
    },
    {
      what: "an answer that may be remembered",
      options: { maxAge: 600, headers: [] },
      headers: [METHODS, "Access-Control-Allow-Origin: *", "Access-Control-Max-Age: 600"],
    },
    {
      what: "an answer that must not be remembered",
      options: { maxAge: 0, headers: [] },
      headers: [METHODS, "Access-Control-Allow-Origin: *", "Access-Control-Max-Age: 0"],
    },
    {
      what: "an origin with credentials",
      options: { origin: [PAGE], credentials: true, headers: ["X-A"] },
      headers: [
        "Access-Control-Allow-Credentials: true",
        "Access-Control-Allow-Headers: X-A",
        METHODS,
        `Access-Control-Allow-Origin: ${PAGE}`,
        "Vary: Origin",
      ],
    },
    {
      what: "an origin and the headers it asks for",
      options: { origin: [PAGE] },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: [
        "Access-Control-Allow-Headers: x-a",
        METHODS,
        `Access-Control-Allow-Origin: ${PAGE}`,
        "Vary: Access-Control-Request-Headers, Origin",
      ],
    },
    {
      what: "nothing to another origin",
      options: { origin: "https://other.example", credentials: true, headers: ["X-A"], maxAge: 600 },
      headers: ["Vary: Origin"],
    },
    {
      what: "nothing to another origin that asks for headers",
      options: { origin: "https://other.example" },
      variables: { HTTP_ACCESS_CONTROL_REQUEST_HEADERS: "x-a" },
      headers: ["Vary: Access-Control-Request-Headers, Origin"],
    },
  ]
) {
  test(`cors allows ${what} in a preflight`, async () => {
    const outcome = await through((app) => cors(app, options), { ...PREFLIGHT, ...variables });
    assert.equal(outcome.status, "204 No Content");
    assert.deepEqual(said(outcome.headers), headers);
    assert.equal(outcome.headers.length, headers.length);
    assert.equal(outcome.body.length, 0);
    assert.equal(outcome.environ, undefined, "the application is not asked");
  });
}

for (
  const { what, variables } of [
    { what: "no method is asked for", variables: { REQUEST_METHOD: "OPTIONS", HTTP_ORIGIN: PAGE } },
    { what: "no origin asks", variables: { REQUEST_METHOD: "OPTIONS", HTTP_ACCESS_CONTROL_REQUEST_METHOD: "PUT" } },
    { what: "it is another method", variables: { ...PREFLIGHT, REQUEST_METHOD: "GET" } },
    { what: "it is a method in lower case", variables: { ...PREFLIGHT, REQUEST_METHOD: "options" } },
  ]
) {
  test(`cors leaves a request to the application where ${what}`, async () => {
    const { status, body, headers } = await through((app) => cors(app), variables);
    assert.equal(status, "200 OK");
    assert.equal(text(body), "inside");
    assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Origin"), ["*"]);
  });
}

test("cors calls the application for a disallowed origin, whose browser does the rest", async () => {
  const { status, environ } = await through((app) => cors(app, { origin: PAGE }), { HTTP_ORIGIN: "https://evil.org" });
  assert.equal(status, "200 OK");
  assert(environ);
});

test("cors speaks for what is refused inside, so that a page can read why", async () => {
  const wrap: Middleware = (app) => cors(validator(basicAuth(app, { users: {} })), { origin: PAGE });
  const { status, headers } = await through(wrap, { HTTP_ORIGIN: PAGE });
  assert.equal(status, "401 Unauthorized");
  assert.deepEqual(said(headers), [`Access-Control-Allow-Origin: ${PAGE}`, "Vary: Origin"]);
  assert.equal(valuesOf(headers, "WWW-Authenticate").length, 1);
});

test("cors answers a preflight, which has no credentials, before anybody is asked for a password", async () => {
  const wrap: Middleware = (app) => cors(validator(basicAuth(app, { users: {} })));
  assert.equal((await through(wrap, PREFLIGHT)).status, "204 No Content");
});

test("cors speaks for a response that replaces another", async () => {
  const app = checked((app) => cors(app), (_environ, startResponse) => {
    ok(startResponse);
    startResponse("503 Service Unavailable", PLAIN, new Error("Replaced"));
    return [];
  });
  const { status, headers } = await runApplication(app, testEnviron({ HTTP_ORIGIN: PAGE }));
  assert.equal(status, "503 Service Unavailable");
  assert.deepEqual(said(headers), ["Access-Control-Allow-Origin: *"]);
});

test("cors does not change the application's own list of headers", async () => {
  const list: HeaderList = [["Content-Type", "text/plain"], ["Vary", "Accept"]];
  const before = structuredClone(list);
  const app = checked((app) => cors(app, { origin: PAGE }), (_environ, startResponse) => {
    startResponse("200 OK", list);
    return [];
  });
  await runApplication(app, testEnviron({ HTTP_ORIGIN: PAGE }));
  await runApplication(app, testEnviron({ HTTP_ORIGIN: PAGE }));
  assert.deepEqual(list, before);
});

for (const origin of ["*", ["*"], [PAGE, "*"], undefined]) {
  test(`cors refuses credentials for ${JSON.stringify(origin) ?? "whoever it is"}`, () => {
    assert.throws(() => cors(() => [], { origin, credentials: true }), { name: "TypeError", message: /"credentials"/ });
  });
}

for (
  const wanted of [
    "x-a\r\nSet-Cookie: a=b",
    "x-a\x01",
    "x-a\x7f",
    "x-a\0",
    '"><script>alert(1)</script>',
    "x a",
    "x-\xe9",
  ]
) {
  test(`cors does not repeat ${shown(wanted)}, which is no list of headers`, async () => {
    const variables = { ...PREFLIGHT, HTTP_ACCESS_CONTROL_REQUEST_HEADERS: wanted };
    const { status, headers } = await through((app) => cors(app), variables);
    assert.equal(status, "204 No Content");
    assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Headers"), []);
  });
}

test("cors repeats a list of headers with empty elements, which are none", async () => {
  const wanted = ",x-a, ,\tx-b,";
  const variables = { ...PREFLIGHT, HTTP_ACCESS_CONTROL_REQUEST_HEADERS: wanted };
  const { headers } = await through((app) => cors(app), variables);
  assert.deepEqual(valuesOf(headers, "Access-Control-Allow-Headers"), [wanted]);
});

for (const wanted of ["x-a\x01", "x-a\x7f", "x-\xe9"]) {
  test(`cors does not fail on a preflight that asks for ${shown(wanted)} over the wire`, async () => {
    await using server = start(checked((app) => cors(app), telling(() => "")));
    const headers = [
      `Origin: ${PAGE}`,
      "Access-Control-Request-Method: PUT",
      `Access-Control-Request-Headers: ${wanted}`,
    ];
    const { status } = await exchange(server, request("/", { method: "OPTIONS", headers }));
    // A runtime may refuse the request by itself, and say so or not.
    assert([0, 204, 400].includes(status), `found ${status}`);
    assert.equal(server.errors.text, "");
  });
}

// secureHeaders

const SECURE: HeaderList = [
  ["Content-Security-Policy", "base-uri 'self'; frame-ancestors 'self'; object-src 'none'"],
  ["Cross-Origin-Opener-Policy", "same-origin"],
  ["Cross-Origin-Resource-Policy", "same-origin"],
  ["Referrer-Policy", "strict-origin-when-cross-origin"],
  ["X-Content-Type-Options", "nosniff"],
  ["X-Frame-Options", "SAMEORIGIN"],
];
const HSTS = "Strict-Transport-Security";

test("secureHeaders adds the usual headers behind those of the application", async () => {
  const { headers } = await through((app) => secureHeaders(app), {}, [["X-Own", "1"]]);
  assert.deepEqual(headers, [...PLAIN, ["X-Own", "1"], ...SECURE]);
});

for (const { scheme, values } of [{ scheme: "https", values: ["max-age=31536000"] }, { scheme: "http", values: [] }]) {
  test(`secureHeaders says ${values.length === 0 ? "nothing" : values} of transport security on ${scheme}`, async () => {
    const { headers } = await through((app) => secureHeaders(app), { "wsgi.url_scheme": scheme });
    assert.deepEqual(valuesOf(headers, HSTS), values);
  });
}

test("secureHeaders inside proxyFix goes by the client's scheme", async () => {
  const wrap: Middleware = (app) => proxyFix(validator(secureHeaders(app)));
  const { headers } = await through(wrap, { REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_PROTO: "https" });
  assert.equal(valuesOf(headers, HSTS).length, 1);
});

for (const [name] of SECURE) {
  test(`secureHeaders leaves the application's own ${name}`, async () => {
    const { headers } = await through((app) => secureHeaders(app), {}, [[name.toLowerCase(), "own"]]);
    assert.deepEqual(valuesOf(headers, name), ["own"]);
  });
}

test("secureHeaders leaves several of the application's own", async () => {
  const own: HeaderList = [["Content-Security-Policy", "one"], ["content-security-policy", "two"]];
  const { headers } = await through((app) => secureHeaders(app), {}, own);
  assert.deepEqual(valuesOf(headers, "Content-Security-Policy"), ["one", "two"]);
});

for (
  const { what, given, name, values } of [
    { what: "sets another value", given: { "X-Frame-Options": "DENY" }, name: "X-Frame-Options", values: ["DENY"] },
    { what: "sets it in lower case", given: { "x-frame-options": "DENY" }, name: "X-Frame-Options", values: ["DENY"] },
    { what: "leaves it out", given: { "Referrer-Policy": false }, name: "Referrer-Policy", values: [] },
    { what: "leaves it out in upper case", given: { "REFERRER-POLICY": false }, name: "Referrer-Policy", values: [] },
    {
      what: "adds a new one",
      given: { "Permissions-Policy": "camera=()" },
      name: "Permissions-Policy",
      values: ["camera=()"],
    },
    { what: "leaves out what is not there", given: { "X-New": false }, name: "X-New", values: [] },
    { what: "says nothing of transport security on http", given: { [HSTS]: "max-age=1" }, name: HSTS, values: [] },
  ] satisfies { what: string; given: SecureHeadersOptions["headers"]; name: string; values: string[] }[]
) {
  test(`secureHeaders ${what} with ${JSON.stringify(given)}`, async () => {
    const { headers } = await through((app) => secureHeaders(app, { headers: given }));
    assert.deepEqual(valuesOf(headers, name), values);
    assert.equal(headers.length, new Set(headers.map(([name]) => name.toLowerCase())).size);
  });
}

for (
  const { given, values } of [
    { given: { "strict-transport-security": "max-age=1" }, values: ["max-age=1"] },
    { given: { "Strict-Transport-Security": false as const }, values: [] },
  ]
) {
  test(`secureHeaders takes ${JSON.stringify(given)} on https`, async () => {
    const wrap: Middleware = (app) => secureHeaders(app, { headers: given });
    assert.deepEqual(valuesOf((await through(wrap, { "wsgi.url_scheme": "https" })).headers, HSTS), values);
  });
}

for (
  const status of [
    "204 No Content",
    "304 Not Modified",
    "301 Moved Permanently",
    "404 Not Found",
    "500 Internal Server Error",
  ]
) {
  test(`secureHeaders speaks for ${status}, too`, async () => {
    const app = checked((app) => secureHeaders(app), (_environ, startResponse) => {
      startResponse(status, /^[23]04/.test(status) ? [] : PLAIN);
      return [];
    });
    const { headers } = await runApplication(app, testEnviron());
    assert.deepEqual(headers.slice(-SECURE.length), SECURE);
  });
}

test("secureHeaders adds its headers once to a response that replaces another", async () => {
  const app = checked((app) => secureHeaders(app), (_environ, startResponse) => {
    ok(startResponse);
    startResponse("500 Internal Server Error", PLAIN, new Error("Replaced"));
    return [];
  });
  assert.deepEqual((await runApplication(app, testEnviron())).headers, [...PLAIN, ...SECURE]);
});

test("secureHeaders does not change the application's own list of headers", async () => {
  const list: HeaderList = [...PLAIN];
  const app = checked((app) => secureHeaders(app), (_environ, startResponse) => {
    startResponse("200 OK", list);
    return [];
  });
  await runApplication(app, testEnviron());
  assert.deepEqual(list, PLAIN);
});

// basicAuth

/** An Authorization header. */
function basic(credentials: string | Uint8Array, scheme = "Basic "): string {
  return scheme + Buffer.from(credentials).toString("base64");
}

/** Who is let in, or the status with which the request was refused. */
async function userOf(options: BasicAuthOptions, authorization?: string): Promise<string> {
  const variables = authorization === undefined ? {} : { HTTP_AUTHORIZATION: authorization };
  const { status, environ } = await through((app) => basicAuth(app, options), variables);
  if (!environ) return status;
  assert.equal(environ.AUTH_TYPE, "Basic");
  return String(environ.REMOTE_USER);
}

const UNAUTHORIZED = "401 Unauthorized";
const USERS = {
  cook: "salt",
  "": "nobody's",
  guest: "",
  colon: "a:b:c",
  "Zoë 料理": "pässwörd 塩",
  constructor: "real",
};

for (
  const { what, authorization, user } of [
    { what: "the right password", authorization: basic("cook:salt"), user: "cook" },
    { what: "a scheme in lower case", authorization: basic("cook:salt", "basic "), user: "cook" },
    { what: "a scheme in upper case", authorization: basic("cook:salt", "BASIC "), user: "cook" },
    { what: "several spaces", authorization: basic("cook:salt", "Basic    "), user: "cook" },
    { what: "a password with colons", authorization: basic("colon:a:b:c"), user: "colon" },
    { what: "no user, with a password", authorization: basic(":nobody's"), user: "" },
    { what: "an empty password", authorization: basic("guest:"), user: "guest" },
    {
      what: "other scripts, as a native string",
      authorization: basic("Zoë 料理:pässwörd 塩"),
      user: native("Zoë 料理"),
    },
    { what: "a user named constructor", authorization: basic("constructor:real"), user: "constructor" },
    { what: "a wrong password", authorization: basic("cook:sugar"), user: UNAUTHORIZED },
    { what: "a longer password", authorization: basic("cook:salty"), user: UNAUTHORIZED },
    { what: "a shorter password", authorization: basic("cook:sal"), user: UNAUTHORIZED },
    { what: "no password", authorization: basic("cook:"), user: UNAUTHORIZED },
    { what: "a password in upper case", authorization: basic("cook:SALT"), user: UNAUTHORIZED },
    { what: "a user in upper case", authorization: basic("COOK:salt"), user: UNAUTHORIZED },
    { what: "the password of somebody else", authorization: basic("cook:a:b:c"), user: UNAUTHORIZED },
    { what: "an unknown user", authorization: basic("thief:salt"), user: UNAUTHORIZED },
    { what: "an unknown user without a password", authorization: basic("thief:"), user: UNAUTHORIZED },
    { what: "neither user nor password", authorization: basic(":"), user: UNAUTHORIZED },
    { what: "a user named __proto__", authorization: basic("__proto__:"), user: UNAUTHORIZED },
    { what: "a user named toString", authorization: basic("toString:"), user: UNAUTHORIZED },
    { what: "a user named hasOwnProperty", authorization: basic("hasOwnProperty:undefined"), user: UNAUTHORIZED },
    { what: "undefined as a password", authorization: basic("thief:undefined"), user: UNAUTHORIZED },
    { what: "no header", authorization: undefined, user: UNAUTHORIZED },
    { what: "an empty header", authorization: "", user: UNAUTHORIZED },
    { what: "the scheme alone", authorization: "Basic", user: UNAUTHORIZED },
    { what: "the scheme and a space", authorization: "Basic ", user: UNAUTHORIZED },
    { what: "no space", authorization: basic("cook:salt", "Basic"), user: UNAUTHORIZED },
    { what: "another scheme", authorization: basic("cook:salt", "Bearer "), user: UNAUTHORIZED },
    { what: "a scheme that begins alike", authorization: basic("cook:salt", "Basics "), user: UNAUTHORIZED },
    { what: "something before the scheme", authorization: basic("cook:salt", "x Basic "), user: UNAUTHORIZED },
    { what: "no colon", authorization: basic("cook"), user: UNAUTHORIZED },
    { what: "no Base64", authorization: "Basic cook:salt", user: UNAUTHORIZED },
    { what: "garbage in Base64", authorization: `${basic("cook:salt")}!`, user: UNAUTHORIZED },
    { what: "too much padding", authorization: `${basic("cook:salt")}===`, user: UNAUTHORIZED },
    { what: "two credentials", authorization: `${basic("cook:salt")}, ${basic("cook:salt")}`, user: UNAUTHORIZED },
    { what: "something behind", authorization: `${basic("cook:salt")} x`, user: UNAUTHORIZED },
    { what: "no UTF-8", authorization: basic(Uint8Array.of(0x63, 0xff, 0x3a, 0x73)), user: UNAUTHORIZED },
    { what: "a byte order mark before the user", authorization: basic("\ufeffcook:salt"), user: UNAUTHORIZED },
    { what: "an overlong colon", authorization: basic(Uint8Array.of(0x63, 0xc0, 0xba, 0x73)), user: UNAUTHORIZED },
    { what: "Latin-1", authorization: basic(Buffer.from("Zoë:x", "latin1")), user: UNAUTHORIZED },
    { what: "a NUL behind the user", authorization: basic("cook\0:salt"), user: UNAUTHORIZED },
    { what: "a NUL behind the password", authorization: basic("cook:salt\0"), user: UNAUTHORIZED },
    { what: "a line break", authorization: basic("cook:salt\n"), user: UNAUTHORIZED },
  ]
) {
  test(`basicAuth ${user === UNAUTHORIZED ? "refuses" : "lets in"} ${what}`, async () => {
    assert.equal(await userOf({ users: USERS }, authorization), user);
  });
}

for (const credentials of ["cook\0:salt", "cook:sa\nlt", "cook\x1f:salt", "cook:salt\x7f", "co\rok:salt"]) {
  test(`basicAuth checks no control characters: ${shown(credentials)}`, async () => {
    assert.equal(await userOf({ check: () => true }, basic(credentials)), UNAUTHORIZED);
  });
}

for (
  const credentials of [
    Uint8Array.of(0x63, 0xff, 0x3a, 0x73),
    Buffer.from("Zoë:x", "latin1"),
    Buffer.from("\xed\xa0\x80:x", "latin1"),
  ]
) {
  test(`basicAuth checks nothing that is no UTF-8: ${shown(Buffer.from(credentials).toString("latin1"))}`, async () => {
    assert.equal(await userOf({ check: () => true }, basic(credentials)), UNAUTHORIZED);
  });
}

for (const password of ["[object Object]", "undefined", "", "null"]) {
  test(`basicAuth finds nobody in no users with the password ${JSON.stringify(password)}`, async () => {
    assert.equal(await userOf({ users: {} }, basic(`__proto__:${password}`)), UNAUTHORIZED);
    assert.equal(await userOf({ users: {} }, basic(`constructor:${password}`)), UNAUTHORIZED);
  });
}

test("basicAuth takes a user named __proto__ for one of its users", async () => {
  assert.equal(await userOf({ users: JSON.parse('{"__proto__": "real"}') }, basic("__proto__:real")), "__proto__");
});

test("basicAuth uses the users as they were when it was called", async () => {
  const users: Record<string, string> = { cook: "salt" };
  const app = checked((app) => basicAuth(app, { users }), telling(() => ""));
  users.cook = "";
  const environ = testEnviron({ HTTP_AUTHORIZATION: basic("cook:") });
  assert.equal((await runApplication(app, environ)).status, UNAUTHORIZED);
});

test("basicAuth gives check the user and the password as text", async () => {
  const given: string[] = [];
  const check = (...pair: [string, string]) => given.push(...pair) > 0;
  assert.equal(await userOf({ check }, basic("Zoë:a:塩 ")), native("Zoë"));
  assert.deepEqual(given, ["Zoë", "a:塩 "]);
});

test("basicAuth does not ask check where there is nothing to check", async () => {
  const check = () => assert.fail("check was called");
  assert.equal(await userOf({ check }), UNAUTHORIZED);
  assert.equal(await userOf({ check }, "Bearer x"), UNAUTHORIZED);
  assert.equal(await userOf({ check }, basic("no colon")), UNAUTHORIZED);
});

for (
  const { what, check, user } of [
    { what: "true", check: () => true, user: "cook" },
    { what: "a promise of true", check: () => Promise.resolve(true), user: "cook" },
    { what: "false", check: () => false, user: UNAUTHORIZED },
    { what: "a promise of false", check: () => Promise.resolve(false), user: UNAUTHORIZED },
    ...["1", '"true"', "{}", "[]", '"cook"', "null", "0"].flatMap((value) => [
      { what: value, check: () => JSON.parse(value), user: UNAUTHORIZED },
      { what: `a promise of ${value}`, check: () => Promise.resolve(JSON.parse(value)), user: UNAUTHORIZED },
    ]),
  ]
) {
  test(`basicAuth ${user === UNAUTHORIZED ? "refuses" : "lets in"} when check gives ${what}`, async () => {
    assert.equal(await userOf({ check }, basic("cook:salt")), user);
  });
}

for (
  const { what, check } of [
    {
      what: "throws",
      check: (): boolean => {
        throw new Error("The database is away");
      },
    },
    { what: "rejects", check: () => Promise.reject<boolean>(new Error("The database is away")) },
  ]
) {
  test(`basicAuth lets nobody in when check ${what}, and the failure is reported`, async () => {
    let calls = 0;
    const app = checked((app) => basicAuth(app, { check }), telling(() => `${++calls}`));
    const headers = { Authorization: basic("cook:salt") };
    const { response, errors } = await answer(app, new Request("http://test.example/", { headers }));
    assert.equal(response.status, 500);
    assert.equal(response.headers.get("WWW-Authenticate"), null);
    assert(!(await response.text()).includes("database"));
    assert.match(errors.text, /The database is away/);
    assert(!errors.text.includes("salt"), "no password in the log");
    assert.equal(calls, 0);
  });
}

for (
  const { what, realm, challenge } of [
    { what: "by default", realm: undefined, challenge: 'Basic realm="Restricted", charset="UTF-8"' },
    { what: "with a realm", realm: "The Kitchen", challenge: 'Basic realm="The Kitchen", charset="UTF-8"' },
    { what: "with quotes", realm: 'A "b" \\c', challenge: 'Basic realm="A \\"b\\" \\\\c", charset="UTF-8"' },
    { what: "with an empty realm", realm: "", challenge: 'Basic realm="", charset="UTF-8"' },
  ]
) {
  test(`basicAuth sends its challenge ${what}`, async () => {
    const { headers, body } = await through((app) => basicAuth(app, { realm, users: {} }));
    assert.deepEqual(headers, [["Content-Type", "text/plain; charset=utf-8"], ["WWW-Authenticate", challenge]]);
    assert.equal(text(body), "Unauthorized\n");
  });
}

for (const realm of ["Küche", "a\r\nX: y", "a\tb", "a\x7f", "料理", "a\n"]) {
  test(`basicAuth refuses the realm ${shown(realm)}`, () => {
    assert.throws(() => basicAuth(() => [], { realm, users: {} }), { name: "TypeError", message: /"realm"/ });
  });
}

for (
  const { what, options } of [
    { what: "neither users nor check", options: {} },
    { what: "a realm alone", options: { realm: "Kitchen" } },
    { what: "both users and check", options: { users: { cook: "salt" }, check: () => true } },
    { what: "both, though there are no users", options: { users: {}, check: () => true } },
    { what: "nothing", options: JSON.parse("null") },
    { what: "a check that is no function", options: JSON.parse('{"check": true}') },
  ]
) {
  test(`basicAuth refuses ${what} for options`, () => {
    assert.throws(() => basicAuth(() => [], options), TypeError);
  });
}

test("basicAuth overrides a REMOTE_USER that was there before", async () => {
  const variables = { REMOTE_USER: "admin", AUTH_TYPE: "Digest", HTTP_AUTHORIZATION: basic("cook:salt") };
  const { REMOTE_USER, AUTH_TYPE } = await inside((app) => basicAuth(app, { users: USERS }), variables);
  assert.deepEqual([REMOTE_USER, AUTH_TYPE], ["cook", "Basic"]);
});

test("basicAuth lets users of other scripts in over the wire", async () => {
  await using server = start(
    checked((app) => basicAuth(app, { users: USERS }), telling((environ) => String(environ.REMOTE_USER))),
  );
  const headers = [`Authorization: ${basic("Zoë 料理:pässwörd 塩")}`];
  const { body } = await exchange(server, request("/", { headers }));
  assert.equal(Buffer.from(body, "latin1").toString(), native("Zoë 料理"));
});

// What holds for all of them

const HEADERS = [`Authorization: ${basic("cook:salt")}`, `Origin: ${PAGE}`, "X-Forwarded-For: 203.0.113.7"];
const VARIABLES = {
  HTTP_HOST: "test.example",
  HTTP_AUTHORIZATION: basic("cook:salt"),
  HTTP_ORIGIN: PAGE,
  HTTP_X_FORWARDED_FOR: "203.0.113.7",
};
const ALL: { name: string; wrap: Middleware; isAsync?: boolean }[] = [
  { name: "mount", wrap: (app) => mount({ "/": app }) },
  { name: "mount by host", wrap: (app) => mount({ "test.example/": app, "/": () => assert.fail("the wrong mount") }) },
  { name: "the fallback of mount", wrap: (app) => mount({ "/other": () => assert.fail("the wrong mount") }, app) },
  { name: "proxyFix", wrap: (app) => proxyFix(app, { trust: 1 }) },
  { name: "proxyFix for strangers", wrap: (app) => proxyFix(app, { trust: [] }) },
  { name: "trustedHosts", wrap: (app) => trustedHosts(app, { hosts: ["test.example"] }) },
  { name: "cors", wrap: (app) => cors(app, { origin: PAGE, credentials: true }) },
  { name: "secureHeaders", wrap: (app) => secureHeaders(app) },
  { name: "basicAuth", wrap: (app) => basicAuth(app, { users: USERS }) },
  {
    name: "basicAuth that waits",
    wrap: (app) => basicAuth(app, { check: () => Promise.resolve(true) }),
    isAsync: true,
  },
  {
    name: "the whole stack",
    wrap: (app) =>
      pipeline(
        app,
        (app) => proxyFix(app),
        (app) => trustedHosts(app, { hosts: ["test.example"] }),
        (app) => secureHeaders(app),
        (app) => cors(app),
        (app) => mount({ "/": app }),
        (app) => basicAuth(app, { users: USERS }),
      ),
  },
];

for (const { name, wrap, isAsync } of ALL) {
  test(`${name} sends the first chunk before the second exists`, async () => {
    const first = new Event("the first chunk at the client");
    await using server = start(checked(wrap, async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one,");
      await first.wait();
      yield bytes("two");
    }));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: HEADERS }));
    await client.until(/one,/);
    first.happen();
    const { body, complete } = parse(await client.end());
    assert.deepEqual({ body, complete }, { body: "one,two", complete: true });
    assert.equal(server.errors.text, "");
  });

  test(`${name} closes the body once when the client leaves`, async () => {
    const closed = new Event("close");
    const calls: string[] = [];
    await using server = start(checked(wrap, (_environ, startResponse) => {
      ok(startResponse);
      const waits = new Promise<never>(() => {});
      const chunks = [bytes("one")];
      return {
        [Symbol.asyncIterator]: () => ({
          next: async () => {
            const value = chunks.pop();
            return value ? { done: false, value } : await waits;
          },
          return: () => {
            calls.push("return");
            return Promise.resolve({ done: true, value: undefined });
          },
        }),
        close: () => {
          calls.push("close");
          closed.happen();
        },
      };
    }));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: HEADERS }));
    await client.until(/one/);
    client.leave();
    await closed.wait();
    await settle();
    assert.deepEqual(calls, ["return", "close"]);
  });

  test(`${name} passes on what is written, and then what is returned`, async () => {
    const app = checked(wrap, async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      await write(bytes("written, "));
      return [bytes("returned")];
    });
    const { body } = await runApplication(app, testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" }));
    assert.equal(text(body), "written, returned");
  });

  test(`${name} passes on the error of an application, which stays the same`, async () => {
    const error = new Error("Inside");
    const environ = () => testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" });
    const fails = (): never => {
      throw error;
    };
    const isSame = (found: unknown) => found === error;
    await assert.rejects(runApplication(checked(wrap, fails), environ()), isSame);
    await assert.rejects(runApplication(checked(wrap, () => Promise.reject(error)), environ()), isSame);
    const late = async function* (_environ: Environ, startResponse: StartResponse): AsyncGenerator<Uint8Array> {
      ok(startResponse);
      yield bytes("one");
      fails();
    };
    await assert.rejects(runApplication(checked(wrap, late), environ()), isSame);
  });

  test(`${name} passes on the error that replaces a response, or comes back when it is too late`, async () => {
    const error = new Error("Too late");
    const app = checked(wrap, async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      startResponse("500 Internal Server Error", PLAIN, new Error("In time"));
      await write(bytes("sent"));
      startResponse("503 Service Unavailable", PLAIN, error);
      return [];
    });
    const environ = testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" });
    await assert.rejects(runApplication(app, environ), (found) => found === error);
  });

  test(`${name} leaves an array an array${isAsync ? "" : ", and makes no promise"}`, async () => {
    let closed = 0;
    const app = checked(wrap, (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("one,"), bytes("two")], { close: () => void closed++ });
    });
    const result = app(testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" }), TAKE);
    assert.equal(result instanceof Promise, isAsync ?? false);
    const body: ResponseBody = await result;
    const chunks: unknown = body;
    assert(Array.isArray(chunks));
    assert.deepEqual(chunks.map(text), ["one,", "two"]);
    await body.close?.();
    assert.equal(closed, 1);
  });

  test(`${name} starts with the headers that the application gives, in their order`, async () => {
    const own: HeaderList = [...PLAIN, ["Set-Cookie", "a=1"], ["X-B", "\xe9"], ["Set-Cookie", "b=2"]];
    const app = checked(wrap, (_environ, startResponse) => {
      startResponse("299 Own Reason", own);
      return [];
    });
    const environ = testEnviron({ ...VARIABLES, REMOTE_ADDR: "127.0.0.1" });
    const { status, headers } = await runApplication(app, environ);
    assert.equal(status, "299 Own Reason");
    assert.deepEqual(headers.slice(0, own.length), own);
  });

  test(`${name} refuses what is no application`, () => {
    assert.throws(() => wrap(JSON.parse('"app"')), { name: "TypeError", message: /Cannot call "app"/ });
  });
}

for (
  const { what, wrap } of [
    { what: "mount", wrap: () => mount({}) },
    { what: "trustedHosts", wrap: (app: ApplicationLike) => trustedHosts(app, { hosts: [] }) },
    { what: "basicAuth", wrap: (app: ApplicationLike) => basicAuth(app, { users: {} }) },
  ]
) {
  test(`${what} refuses HEAD without a body`, async () => {
    await using server = start(checked(wrap, telling(() => "")));
    const { status, body } = await exchange(server, request("/", { method: "HEAD" }), { head: true });
    assert(status >= 400);
    assert.equal(body, "");
  });
}
