/**
 * Options: what is refused, by whom, and in which words.
 *
 * @module
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  basicAuth,
  compress,
  cors,
  errorPage,
  files,
  health,
  limitBody,
  limitConcurrency,
  mount,
  proxyFix,
  requestId,
  requestUri,
  secureHeaders,
  serve,
  type ServeOptions,
  testEnviron,
  timeout,
  toEnviron,
  toFetch,
  trustedHosts,
} from "../mod.ts";
import {
  bytes,
  echo,
  exchange,
  hello,
  makeIdentity,
  ok,
  ORIGIN,
  request,
  RUNTIME,
  start,
  workspace,
} from "./support.ts";

const { FOLDER } = workspace();

// What does not exist

/** An application that is never called. */
const IDLE = () => [];

/** Everything that takes options, called with them. What should have thrown must not keep the tests from ending. */
const CALLS: Record<string, (options: never) => unknown> = {
  serve: (options) => serve(IDLE, options).shutdown(),
  toFetch: (options) => toFetch(IDLE, options),
  toEnviron: (options) => toEnviron(new Request("http://localhost/"), options),
  requestUri: (options) => requestUri(testEnviron(), options),
  testEnviron: (options) => testEnviron({}, options),
  files: (options) => files(new URL(".", import.meta.url), options),
  accessLog: (options) => accessLog(IDLE, options),
  errorPage: (options) => errorPage(IDLE, options),
  proxyFix: (options) => proxyFix(IDLE, options),
  trustedHosts: (options) => trustedHosts(IDLE, options),
  compress: (options) => compress(IDLE, options),
  limitBody: (options) => limitBody(IDLE, options),
  limitConcurrency: (options) => limitConcurrency(IDLE, options),
  timeout: (options) => timeout(IDLE, options),
  requestId: (options) => requestId(IDLE, options),
  cors: (options) => cors(IDLE, options),
  secureHeaders: (options) => secureHeaders(IDLE, options),
  basicAuth: (options) => basicAuth(IDLE, options),
  health: (options) => health(IDLE, options),
};

/** Calls one of them with what the compiler would refuse. */
function call(name: string, options: unknown): unknown {
  return CALLS[name]!(options as never);
}

for (const name of Object.keys(CALLS)) {
  test(`${name} refuses options that are not an object, and quotes them`, () => {
    const cases: [options: unknown, shown: string][] = [
      [9000, "9000"],
      ["0.0.0.0", '"0.0.0.0"'],
      [null, "null"],
      [true, "true"],
      [[9000], "an Array"],
      [new Map([["port", 9000]]), "a Map"],
      [() => {}, "function without a name"],
    ];
    for (const [options, shown] of cases) {
      assert.throws(() => call(name, options), (error: Error) => {
        assert.equal(error.name, "TypeError");
        assert.match(error.message, /^Cannot use .* as options: expected an object such as \{ \w+(?:, [\w…]+)* \}$/);
        assert.ok(error.message.includes(shown), error.message);
        return true;
      });
    }
  });

  test(`${name} refuses an option that does not exist, even one that every object has`, () => {
    for (const unknown of ["nonsense", "constructor", "toString", "hasOwnProperty", ""]) {
      assert.throws(() => call(name, { [unknown]: 1 }), {
        name: "TypeError",
        message: new RegExp(`^Cannot use option "${unknown}": it does not exist, did you mean "\\w+"\\?$`),
      });
    }
    const inherited: unknown = JSON.parse('{ "__proto__": 1 }');
    assert.throws(() => call(name, inherited), { name: "TypeError", message: /"__proto__": it does not exist/ });
  });
}

for (
  const [name, option, nearest] of [
    ["serve", "host", "hostname"],
    ["serve", "Port", "port"],
    ["serve", "onlisten", "onListen"],
    ["serve", "maxBody", "maxBodySize"],
    ["serve", "unixPath", "unix"],
    ["serve", "timeout", "shutdownTimeout"],
    ["toFetch", "script_name", "scriptName"],
    ["limitBody", "bytes", "maxBodySize"],
    ["limitConcurrency", "maxConcurrency", "max"],
    ["timeout", "ms", "milliseconds"],
    ["cors", "origins", "origin"],
    ["files", "dotfiles", "dotFiles"],
    ["files", "list", "listing"],
    ["basicAuth", "user", "users"],
    ["accessLog", "formt", "format"],
  ] as const
) {
  test(`${name} names the option that was probably meant by "${option}"`, () => {
    assert.throws(() => call(name, { [option]: undefined }), {
      name: "TypeError",
      message: `Cannot use option "${option}": it does not exist, did you mean "${nearest}"?`,
    });
  });
}

test("an option of workers that does not exist is refused, with the nearest that does", () => {
  assert.throws(() => call("serve", { port: 0, workers: { maximum: 2 } }), {
    name: "TypeError",
    message: 'Cannot use option "workers.maximum": it does not exist, did you mean "workers.max"?',
  });
});

test("toFetch refuses the options that only serve has", () => {
  assert.throws(() => call("toFetch", { port: 8000 }), { name: "TypeError", message: /option "port"/ });
});

test("options may be an object of a class, whose getters count", () => {
  const options = new class {
    get maxBodySize() {
      return "many";
    }
  }();
  assert.throws(() => call("limitBody", options), {
    name: "TypeError",
    message: 'Cannot use option "maxBodySize": found "many", expected a number of bytes',
  });
});

// What is wrong

for (
  const [name, option, value, message] of [
    ["requestUri", "includeQuery", 1, "found 1, expected true or false"],
    ["testEnviron", "body", 5, "found 5, expected text, a Uint8Array, a Blob, URLSearchParams or FormData"],
    ["files", "index", 5, 'found 5, expected the name of a file such as "index.html"'],
    ["files", "cacheControl", "no\ncache", 'found "no\\ncache", expected a header value such as "no-cache"'],
    ["files", "dotFiles", "no", 'found "no", expected true or false'],
    ["files", "precompressed", "gzip", 'found "gzip", expected true or false'],
    ["files", "listing", 1, "found 1, expected true or false"],
    [
      "files",
      "types",
      ["gpx"],
      'found an Array, expected media types by extension, such as { gpx: "application/gpx+xml" }',
    ],
    ["accessLog", "format", "common", 'found "common", expected "combined" or "json"'],
    ["accessLog", "write", "log.txt", 'found "log.txt", expected a function'],
    ["accessLog", "skip", "/livez", 'found "/livez", expected an array of paths such as "/livez"'],
    ["errorPage", "development", "yes", 'found "yes", expected true or false'],
    ["errorPage", "render", "404.html", 'found "404.html", expected a function'],
    ["proxyFix", "trust", 0, "found 0, expected a number of proxies or an array of their addresses"],
    ["proxyFix", "header", "X-Real-IP", 'found "X-Real-IP", expected "X-Forwarded-For" or "Forwarded"'],
    ["trustedHosts", "hosts", "a.example", 'found "a.example", expected an array of hosts such as "example.com"'],
    ["trustedHosts", "hosts", [5], 'found an Array, expected an array of hosts such as "example.com"'],
    ["compress", "threshold", -1, "found -1, expected a number of bytes"],
    ["limitBody", "maxBodySize", 1.5, "found 1.5, expected a number of bytes"],
    ["timeout", "milliseconds", NaN, "found NaN, expected a number"],
    ["requestId", "header", "X Id", 'found "X Id", expected a header name such as "X-Request-Id"'],
    ["requestId", "trust", "10.0.0.1", 'found "10.0.0.1", expected an array of addresses'],
    ["cors", "origin", [null], "found an Array, expected an origin, or an array of origins"],
    ["cors", "methods", "GET", 'found "GET", expected an array of methods such as "GET"'],
    ["cors", "headers", ["X A"], 'found an Array, expected an array of header names such as "Content-Type"'],
    ["cors", "exposeHeaders", "ETag", 'found "ETag", expected an array of header names such as "X-Request-Id"'],
    ["cors", "credentials", "include", 'found "include", expected true or false'],
    ["cors", "maxAge", "600", 'found "600", expected a number of seconds'],
    [
      "secureHeaders",
      "headers",
      [["X-Frame-Options", "DENY"]],
      "found an Array, expected values by header name, or false for none",
    ],
    ["basicAuth", "realm", "Küche", 'found "Küche", expected printable ASCII'],
    [
      "basicAuth",
      "users",
      [["ada", "secret"]],
      'found an Array, expected passwords by user, such as { ada: "secret" }',
    ],
    ["basicAuth", "users", { ada: 5 }, 'found an object, expected passwords by user, such as { ada: "secret" }'],
    ["basicAuth", "check", "secret", 'found "secret", expected a function'],
    ["health", "live", "livez", 'found "livez", expected a path such as "/livez"'],
    ["health", "ready", null, 'found null, expected a path such as "/readyz"'],
    ["health", "check", true, "found true, expected a function"],
    ["toFetch", "environ", [["APP_MODE", "test"]], "found an Array, expected an object"],
    ["serve", "workers", [2], "found an Array, expected a number of threads from 1 on, or { min, max }"],
    ["serve", "deno", [], "found an Array, expected an object"],
    ["serve", "bun", [], "found an Array, expected an object"],
    ["serve", "unixMode", "660", 'found "660", expected permissions such as 0o660'],
    ["serve", "unixMode", 0o1000, "found 512, expected permissions such as 0o660"],
  ] as const
) {
  test(`${name} says what is wrong with the option ${option}: ${JSON.stringify(value)}`, () => {
    assert.throws(() => call(name, { [option]: value }), {
      name: "TypeError",
      message: `Cannot use option "${option}": ${message}`,
    });
  });
}

test("limitConcurrency says what is wrong with its limits", () => {
  const cases: [name: string, expected: string, values: [value: unknown, shown: string][]][] = [
    ["max", "an integer of at least 1", [...NOT_NUMBER, [0, "0"]]],
    ["queue", "an integer of at least 0", NOT_NUMBER],
  ];
  for (const [name, expected, values] of cases) {
    for (const [value, shown] of values) {
      assert.throws(() => call("limitConcurrency", { max: 1, [name]: value }), {
        name: "TypeError",
        message: `Cannot use option "${name}": found ${shown}, expected ${expected}`,
      });
    }
  }
  call("limitConcurrency", { max: Infinity, queue: undefined });
});

test("limitConcurrency, trustedHosts and basicAuth name the options that they need", () => {
  assert.throws(() => call("limitConcurrency", {}), { name: "TypeError", message: /option "max": found undefined/ });
  assert.throws(() => call("trustedHosts", {}), { name: "TypeError", message: /option "hosts": found undefined/ });
  assert.throws(() => call("basicAuth", {}), { name: "TypeError", message: /either "users" or "check"/ });
});

test("unixMode without unix is refused", () => {
  assert.throws(() => call("serve", { port: 0, unixMode: 0o660 }), {
    name: "TypeError",
    message: 'Cannot use option "unixMode" without "unix": only a unix socket has a file',
  });
});

test("a bad option is refused at once, with its value", () => {
  const options: [name: string, value: unknown][] = [
    ["maxBodySize", -1],
    ["maxBodySize", NaN],
    ["maxBodySize", "1"],
    ["maxBodySize", null],
  ];
  for (const [name, value] of options) {
    assert.throws(() => toFetch(() => [], { [name]: value }), (error: Error) => {
      assert.equal(error.name, "TypeError");
      assert.ok(error.message.includes(name), error.message);
      assert.ok(error.message.includes(String(value)), error.message);
      return true;
    });
  }
});

const NULL_PROTOTYPE: unknown = Object.create(null);

const NOT_NUMBER: [unknown, string][] = [
  [-1, "-1"],
  [1.5, "1.5"],
  [NaN, "NaN"],
  ["10", '"10"'],
  [null, "null"],
  [true, "true"],
  [Symbol("port"), "Symbol(port)"],
  [NULL_PROTOTYPE, "an object"],
];

/** What is wrong for an option of `toFetch`, and how the message shows it. */
const SHARED_OPTIONS: Record<string, [expected: string, values: [value: unknown, shown: string][]]> = {
  environ: ["an object", [[5, "5"], [null, "null"], ["a=b", '"a=b"']]],
  errors: ["an object with write, writelines and flush", [
    [{}, "an object"],
    [null, "null"],
    ["log", '"log"'],
    [{ write() {} }, "an object"],
  ]],
  scriptName: ['a path such as "/app"', [
    ["app", '"app"'],
    ["/app/", '"/app/"'],
    ["/", '"/"'],
    ["/a?b", '"/a?b"'],
    ["/a#b", '"/a#b"'],
    ["/\ud800", '"/\\ud800"'],
    [5, "5"],
    [null, "null"],
  ]],
  maxBodySize: ["an integer of at least 0", NOT_NUMBER],
};

const NOT_BOOLEAN: [unknown, string][] = [["yes", '"yes"'], [1, "1"], [null, "null"]];
const NOT_TEXT: [unknown, string][] = [["", '""'], [5, "5"], [null, "null"], [[], "an Array"]];

/** The same for those of `serve` alone. */
const SERVE_OPTIONS: typeof SHARED_OPTIONS = {
  shutdownTimeout: ["an integer of at least 0", NOT_NUMBER],
  hostname: ['an address such as "127.0.0.1"', NOT_TEXT],
  port: ["an integer from 0 to 65535", [...NOT_NUMBER, [65_536, "65536"], [Infinity, "Infinity"]]],
  unix: ["the path of a socket", NOT_TEXT],
  cert: ['PEM text, which begins with "-----BEGIN"', [...NOT_TEXT, ["cert.pem", '"cert.pem"']]],
  key: ['PEM text, which begins with "-----BEGIN"', [...NOT_TEXT, ["key.pem", '"key.pem"']]],
  reusePort: ["true or false", NOT_BOOLEAN],
  signals: ["true or false", NOT_BOOLEAN],
  signal: ["an AbortSignal", [[{}, "an object"], [null, "null"], ["SIGTERM", '"SIGTERM"']]],
  onListen: ["a function", [[{}, "an object"], [null, "null"], ["log", '"log"']]],
  deno: ["an object", [[5, "5"], [null, "null"], ["fast", '"fast"']]],
  bun: ["an object", [[5, "5"], [null, "null"], ["fast", '"fast"']]],
};

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);

/** Calls something with options that the compiler would refuse. */
function callWith(call: (app: Application, options: object) => unknown, name: string, value: unknown): void {
  const rest = name === "cert" ? { key: IDENTITY.key } : name === "key" ? { cert: IDENTITY.cert } : {};
  const result = call(hello, { ...rest, [name]: value });
  // What should have thrown must not keep the tests from ending.
  if (result instanceof Object && "shutdown" in result && typeof result.shutdown === "function") result.shutdown();
}

/** Listens on a free port unless the option says otherwise. */
const QUIET = (app: Application, options: object) => serve(app, { port: 0, onListen() {}, ...options });

for (
  const [table, calls] of [
    [SHARED_OPTIONS, { serve: QUIET, toFetch }],
    [SERVE_OPTIONS, { serve: QUIET }],
  ] as const
) {
  for (const [called, call] of Object.entries(calls)) {
    for (const [name, [expected, values]] of Object.entries(table)) {
      test(`${called} refuses what is wrong for the option ${name}, and says what is right`, () => {
        for (const [value, shown] of values) {
          assert.throws(() => callWith(call, name, value), {
            name: "TypeError",
            message: `Cannot use option "${name}": found ${shown}, expected ${expected}`,
          });
        }
      });

      test(`${called} takes the option ${name} when it is undefined, as though it were not there`, async () => {
        if (called === "serve") await QUIET(hello, { [name]: undefined, port: 0 }).shutdown();
        else assert.equal((await toFetch(hello, { [name]: undefined })(new Request("http://localhost/"))).status, 200);
      });
    }
  }
}

for (const [called, call] of Object.entries({ serve: QUIET, toFetch })) {
  test(`${called} refuses an environ with a variable that is undefined, and what is no application`, () => {
    assert.throws(() => callWith(call, "environ", { "a.b": undefined }), {
      name: "TypeError",
      message: /^Cannot use option "environ": "a\.b" is undefined/,
    });
    for (const app of [undefined, null, 5, "app", {}, { handle: 5 }]) {
      assert.throws(() => Reflect.apply(call, undefined, [app, {}]), { name: "TypeError", message: /^Cannot call / });
    }
  });
}

const WRONG: [options: Record<string, unknown>, names: RegExp][] = [
  [{ scriptName: "app" }, /scriptName.*"app"/],
  [{ scriptName: "/app/" }, /scriptName.*"\/app\/"/],
  [{ scriptName: "/" }, /scriptName.*"\/"/],
  [{ scriptName: "/a?b" }, /scriptName/],
  [{ scriptName: 5 }, /scriptName.*5/],
  [{ maxBodySize: -1 }, /maxBodySize.*-1/],
  [{ maxBodySize: "1M" }, /maxBodySize.*"1M"/],
  [{ environ: { "example.absent": undefined } }, /environ.*example\.absent.*undefined/],
];

for (const [options, names] of WRONG) {
  test(`a wrong option is a TypeError that names the option: ${names.source}`, () => {
    assert.throws(
      () => toFetch(() => [], options),
      (error: Error) => error instanceof TypeError && names.test(error.message),
    );
    assert.throws(() => serve(() => [], { port: 0, onListen() {}, ...options }), TypeError);
  });
}

test("options that are undefined are options that are not given", async () => {
  const options = {
    environ: undefined,
    scriptName: undefined,
    errors: undefined,
    maxBodySize: undefined,
  };
  const handler = toFetch(echo, options);
  assert.equal((await handler(new Request(ORIGIN))).status, 200);
});

test("a shutdownTimeout that is not a duration is a TypeError that names the option", () => {
  for (const shutdownTimeout of [-1, NaN, "soon"]) {
    assert.throws(() => start(hello, { shutdownTimeout: shutdownTimeout as number }), /TypeError.*shutdownTimeout/s);
  }
});

/** Options and keys that could never work, and what is said about them. */
const MISTAKES: Record<string, [wrap: () => unknown, message: RegExp]> = {
  "a mount without a slash": [() => mount({ api: hello }), /mount at "api": expected a path such as "\/api"/],
  "a mount with a star": [() => mount({ "/api/*": hello }), /mount at "\/api\/\*"/],
  "a mount on any host": [() => mount({ "*.example.com/": hello }), /mount at "\*\.example\.com\/"/],
  "no mounts": [() => mount(JSON.parse("null")), /Cannot mount null, expected applications/],
  "a Map of mounts": [() => mount(new Map([["/", () => []]]) as never), /Cannot mount .*, expected applications/],
  "any host": [() => trustedHosts(hello, { hosts: ["*"] }), /"hosts": found "\*", expected "example\.com"/],
  "a host with a star": [() => trustedHosts(hello, { hosts: ["*.a.example"] }), /"hosts": found "\*\.a\.example"/],
  "a host with a scheme": [() => trustedHosts(hello, { hosts: ["http://a.example"] }), /"hosts": found "http/],
  "an origin with a path": [() => cors(hello, { origin: "https://a.example/" }), /"origin": found "https:\/\/a/],
  "a bad header": [() => secureHeaders(hello, { headers: { "X Y": "z" } }), /"headers": a header has the name "X Y"/],
  "a time that is text": [() => timeout(hello, JSON.parse('{"milliseconds":"5"}')), /"milliseconds": found "5"/],
  "a size that is text": [() => compress(hello, JSON.parse('{"threshold":"5"}')), /"threshold": found "5"/],
  "a single address": [() => proxyFix(hello, JSON.parse('{"trust":"127.0.0.1"}')), /"trust": found "127\.0\.0\.1"/],
  "a number of proxies": [() => requestId(hello, JSON.parse('{"trust":1}')), /"trust": found 1, expected an array/],
};

for (const [mistake, [wrap, message]] of Object.entries(MISTAKES)) {
  test(`${mistake} is a TypeError that says what would be right`, () => {
    assert.throws(wrap, { name: "TypeError", message });
  });
}

// What serve takes

test("serve takes the options of toFetch", async () => {
  await using server = start(async (environ, startResponse) => {
    ok(startResponse);
    const { length } = await environ["wsgi.input"].read();
    return [bytes(`${environ.SCRIPT_NAME} ${environ["example.pair"]} ${length}`)];
  }, { environ: { "example.pair": "given" }, scriptName: "/app", maxBodySize: 4 });
  const post = (path: string, body: string) =>
    exchange(server, request(path, { method: "POST", headers: [`Content-Length: ${body.length}`], body }));
  assert.equal((await post("/app/", "four")).body, "/app given 4");
  assert.equal((await post("/app/", "fifth")).status, 413);
  assert.equal((await post("/", "four")).status, 404);
});

/** What `serve` hands to the runtime. */
function handedOver(options: ServeOptions): Record<string, unknown> {
  const runtime: { serve(options: Record<string, unknown>): unknown } = Reflect.get(
    globalThis,
    RUNTIME === "deno" ? "Deno" : "Bun",
  );
  const { serve: original } = runtime;
  const handed: Record<string, unknown>[] = [];
  runtime.serve = (options) => {
    handed.push(options);
    return {
      addr: {},
      address: {},
      finished: Promise.resolve(),
      shutdown: () => Promise.resolve(),
      stop: () => Promise.resolve(),
    };
  };
  try {
    serve(hello, { onListen() {}, signals: false, ...options }).shutdown();
  } finally {
    runtime.serve = original;
  }
  assert.equal(handed.length, 1);
  return handed[0]!;
}

test("the options of one runtime are handed to that runtime, and win", () => {
  const handed = handedOver({
    hostname: "127.0.0.1",
    deno: { a: "deno", hostname: "d" },
    bun: { b: "bun", hostname: "b" },
  });
  assert.deepEqual([handed.a, handed.b], RUNTIME === "deno" ? ["deno", undefined] : [undefined, "bun"]);
  assert.equal(handed.hostname, RUNTIME === "deno" ? "d" : "b");
});

test("Bun is told not to limit bodies, and the deployer's own options win", {
  skip: RUNTIME === "deno" && "Deno has no such limits",
}, () => {
  assert.ok(Number(handedOver({}).maxRequestBodySize) >= Number.MAX_SAFE_INTEGER);
  assert.equal(handedOver({ bun: { idleTimeout: 5 } }).idleTimeout, 5);
});

test("options of the runtime's own reach the runtime, and those of the other do nothing", async () => {
  let listened = 0;
  await using server = start(async (environ, startResponse) => {
    const { length } = await environ["wsgi.input"].read();
    ok(startResponse);
    return [bytes(String(length))];
  }, { deno: { onListen: () => void listened++ }, bun: { maxRequestBodySize: 10 } });
  const { status } = await exchange(
    server,
    request("/", { method: "POST", headers: ["Content-Length: 11"], body: "eleven byte" }),
  );
  assert.equal(listened, RUNTIME === "deno" ? 1 : 0);
  assert.equal(status, RUNTIME === "bun" ? 413 : 200);
});

test("options of the runtime's own do not replace the application", async () => {
  const handler = () => new Response("Not this");
  await using server = start(hello, { deno: { handler }, bun: { fetch: handler } } as ServeOptions);
  assert.equal((await exchange(server, request("/"))).body, "Hello");
});
