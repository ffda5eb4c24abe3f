/**
 * `serve` as a server that one can put in production: how it starts and refuses to, TLS, unix sockets and HTTP/2, limits,
 * and how it stops.
 *
 * @module
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { type Application, serve, type ServeOptions, type Server, toFetch } from "../mod.ts";
import {
  answer,
  bytes,
  Child,
  Client,
  Event,
  exchange,
  ok,
  parse,
  request,
  RUNTIME,
  settle,
  standardErrorOf,
  start,
  text,
  within,
} from "./support.ts";

const VERSION = RUNTIME === "deno" ? `Deno/${process.versions.deno}` : `Bun/${process.versions.bun}`;
const STATUSES = { SIGINT: 130, SIGTERM: 143 } as const;
const SIGNALS = ["SIGINT", "SIGTERM"] as const;
const FOLDER = mkdtempSync(join(tmpdir(), "serve-"));
after(() => rmSync(FOLDER, { recursive: true, force: true }));

let paths = 0;

/** A path of nothing yet. */
function newPath(suffix: string): string {
  return join(FOLDER, `${paths++}${suffix}`);
}

const HELLO: Application = (_environ, startResponse) => {
  ok(startResponse);
  return [bytes("hello")];
};

/** Answers with how many bytes it has read. */
const COUNT: Application = async (environ, startResponse) => {
  let size = 0;
  for (;;) {
    const { length } = await environ["wsgi.input"].read(1000);
    size += length;
    if (length === 0) break;
  }
  ok(startResponse);
  return [bytes(String(size))];
};

/** A certificate that has signed itself, and its key. */
interface Identity {
  cert: string;
  key: string;
}

const CERT_FILE = join(FOLDER, "cert.pem");
const IDENTITY = makeIdentity(CERT_FILE);
const OTHER = makeIdentity(join(FOLDER, "other.pem"));

function makeIdentity(file: string): Identity {
  const algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  const subject = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const files = ["-keyout", `${file}.key`, "-out", file];
  execFileSync("openssl", ["req", "-x509", ...algorithm, ...subject, ...files], { stdio: "ignore" });
  return { cert: readFileSync(file, "utf8"), key: readFileSync(`${file}.key`, "utf8") };
}

/** Waits until nobody can connect any more, or is turned away. */
async function untilRefused({ port, hostname }: Pick<Server, "port" | "hostname">): Promise<void> {
  for (let attempts = 0; attempts < 5000; attempts++) {
    const answered = new Event<string>("an answer to an attempt to connect");
    const socket = connect(port, hostname);
    socket.once("connect", () => socket.write("GET /refused HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    socket.on("data", (data: Uint8Array) => answered.happen(text(data)));
    socket.on("error", () => answered.happen("refused"));
    socket.on("close", () => answered.happen("refused"));
    try {
      if (/^(?:refused|HTTP\/1.1 503 )/.test(await answered.wait())) return;
    } finally {
      socket.destroy();
    }
  }
  assert.fail("The server goes on accepting");
}

async function assertServes(server: Server): Promise<void> {
  assert.equal((await exchange(server, request("/"))).status, 200);
}

/**
 * A program on this runtime, with so many descriptors at the most. It has `serve`, `say`, and `attempt`, which says what
 * `serve` does and goes on.
 */
function program(code: string, { flags = ["-A"], limit }: { flags?: string[]; limit?: number } = {}): Child {
  const file = newPath(".mjs");
  writeFileSync(
    file,
    `
    import { writeSync } from "node:fs";
    import process from "node:process";
    import { serve } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    const say = (...words) => void writeSync(1, words.join(" ") + "\\n");
    const text = (value) => new TextEncoder().encode(String(value));
    const onListen = ({ port }) => say("port", port);
    const hello = (_environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [text("hello")];
    };
    const attempt = (options) => {
      try {
        const server = serve(hello, { onListen() {}, signals: false, ...options });
        say("serves");
        return server;
      } catch (error) {
        say(JSON.stringify([error.message, String(error.cause)]));
      }
    };
    ${code}
    `,
  );
  const args = ["run", ...(RUNTIME === "deno" ? ["--no-prompt", ...flags] : []), file];
  if (limit === undefined) return new Child(process.execPath, args);
  return new Child("sh", ["-c", `ulimit -n ${limit}; exec "$0" "$@"`, process.execPath, ...args]);
}

/** What `attempt` has said. */
async function failureOf(child: Child): Promise<[message: string, cause: string]> {
  const [message, cause] = JSON.parse((await child.until(/^\["Cannot.*\]$/m))[0]);
  assert.doesNotMatch(message, /\n/);
  return [message, cause];
}

// What a path does is said by "closed", when the server has called close. SIGHUP lets what waits go on.
const SERVING = `
  let go;
  const gone = new Promise((resolve) => void (go = resolve));
  process.once("SIGHUP", go);
  const never = new Promise(() => {});
  const app = async (environ, startResponse) => {
    const { PATH_INFO: path, "wsgi.input": input, "fetch.context": context } = environ;
    // Deno prints a warning when it is read.
    if (/slow|endless/.test(path)) context.signal.addEventListener("abort", () => say("told", path));
    if (path === "/slow") {
      say("waits");
      setInterval(() => {}, 60_000); // what is slow does something, for ever
      await never;
    }
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    const chunks = async function* () {
      if (path === "/upload") yield await input.read();
      if (path !== "/upload") yield text("one");
      if (path === "/work") context.waitUntil(gone.then(() => say("worked")));
      if (path === "/stream") await gone;
      if (path === "/endless") await never;
      yield text("two");
    };
    const body = chunks();
    return {
      [Symbol.asyncIterator]: () => body,
      close: () => path === "/refused" || say("closed", path),
    };
  };
  const run = (options) => {
    const server = serve(app, { port: 0, onListen, ...options });
    server.finished.then(() => say("finished"));
    return server;
  };
`;

/** A program that serves, and stops by signals. */
function serving(options: ServeOptions = {}): Child {
  return program(`${SERVING} run(${JSON.stringify(options)});`);
}

/** A real client. It must not wait in this thread, which serves. */
function curl(...args: string[]): Child {
  return new Child("curl", ["-q", "-sS", "--noproxy", "*", "--max-time", "10", ...args]);
}

const ASKS = ["-w", " %{http_version} %{http_code}"];

/** What curl has got, and then the version and the status. */
async function fetched(...args: string[]): Promise<string> {
  await using child = curl(...ASKS, ...args);
  const { code, output, errors } = await child.ended();
  assert.deepEqual({ code, errors }, { code: 0, errors: "" });
  return output;
}

// Start

test("serve says once where it serves, on what, and that it stops, on standard error only", async () => {
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

async function assertServesAt(port: number): Promise<void> {
  const client = await Client.connect({ port, hostname: "127.0.0.1" });
  await client.send(request("/"));
  assert.equal(parse(await client.end()).status, 200);
}

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
      await using server = serve(HELLO, { port: 0, ...options });
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
    await using server = serve(HELLO, { port: 0, onListen: (server) => void servers.push(server) });
    assert.deepEqual(servers, [server]);
    await assertServes(server);
  });
  assert.equal(servers.length, 1);
  assert.deepEqual(printed, []);
});

test("what onListen throws is thrown by serve, which listens no longer", async () => {
  const servers: Server[] = [];
  const failure = new Error("no");
  const onListen = (server: Server) => {
    servers.push(server);
    throw failure;
  };
  assert.throws(() => serve(HELLO, { port: 0, onListen }), failure);
  await within(servers[0]!.finished, "the end of the server");
  await untilRefused(servers[0]!);
});

const NULL_PROTOTYPE: unknown = Object.create(null);
const NOT_BOOLEAN: [unknown, string][] = [["yes", '"yes"'], [1, "1"], [null, "null"]];
const NOT_TEXT: [unknown, string][] = [["", '""'], [5, "5"], [null, "null"], [[], "an Array"]];
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
  concurrency: ["an integer of at least 1", [...NOT_NUMBER, [0, "0"]]],
};

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

/** Calls something with options that the compiler would refuse. */
function callWith(call: (app: Application, options: object) => unknown, name: string, value: unknown): void {
  const rest = name === "cert" ? { key: IDENTITY.key } : name === "key" ? { cert: IDENTITY.cert } : {};
  const result = call(HELLO, { ...rest, [name]: value });
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
        if (called === "serve") await QUIET(HELLO, { [name]: undefined, port: 0 }).shutdown();
        else assert.equal((await toFetch(HELLO, { [name]: undefined })(new Request("http://localhost/"))).status, 200);
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

test("serve does not repeat what may be a private key", () => {
  const key = "MIGHAgEA".repeat(20);
  assert.throws(() => serve(HELLO, { port: 0, cert: IDENTITY.cert, key }), {
    name: "TypeError",
    message: 'Cannot use option "key": found 160 characters, expected PEM text, which begins with "-----BEGIN"',
  });
});

for (const [given, missing] of [["cert", "key"], ["key", "cert"]] as const) {
  test(`${given} without ${missing} is refused, whatever it is, and the message names the right one`, () => {
    for (const value of [IDENTITY[given], ""]) {
      assert.throws(() => serve(HELLO, { port: 0, onListen() {}, [given]: value }), {
        name: "TypeError",
        message: new RegExp(`^Cannot use option "${given}"`),
      });
    }
  });
}

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
    assert.throws(() => serve(HELLO, { port: 0, onListen() {}, ...options }), (error: Error) => {
      assert.match(error.message, /^Cannot listen on .+: .+$/);
      assert.match(error.message, message);
      assert.ok(error.cause instanceof Error);
      assert.notEqual(error.cause.message, error.message);
      return true;
    });
    await using server = start(HELLO);
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
      assert.throws(() => serve(HELLO, { hostname: "unknown.example", onListen() {} }), (error: Error) => {
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
  await using server = start(HELLO);
  const { port } = server;
  assert.throws(() => serve(HELLO, { port, onListen() {} }), (error: Error) => {
    const expected = "another server has the port, expected one that is free, or 0 for any";
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

test("reusePort lets two servers share a port, which environ tells; Deno needs --unstable-net for it", async () => {
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
  const server = start(HELLO, { unix });
  assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "hello 1.1 200");
  await server.shutdown();
  assert.equal(existsSync(unix), false);
});

const TAKEN = /: another server has the socket, or it is no socket, expected a path that is free$/;

for (const [what, signal] of [["lives", "SIGCONT"], ["lives but is stopped for now", "SIGSTOP"]] as const) {
  test(`the socket of a server that ${what} is not replaced`, async () => {
    const { unix, child } = await socketOf(signal);
    await using _child = child;
    const { ino } = lstatSync(unix);
    assert.throws(() => serve(HELLO, { unix, onListen() {} }), { message: TAKEN });
    child.kill("SIGCONT");
    assert.equal(lstatSync(unix).ino, ino);
    assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "hello 1.1 200");
  });
}

test("the socket of a server in this process is not replaced", async () => {
  const unix = newPath(".sock");
  await using _server = start(HELLO, { unix });
  assert.throws(() => serve(HELLO, { unix, onListen() {} }), { message: TAKEN });
  assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "hello 1.1 200");
});

test("a server that starts deletes no file where its socket should be", () => {
  const unix = newPath(".sock");
  writeFileSync(unix, "precious");
  assert.throws(() => serve(HELLO, { unix, onListen() {} }), { message: TAKEN });
  assert.equal(readFileSync(unix, "utf8"), "precious");
});

for (const what of ["a file", "the socket of another server"]) {
  test(`a server that ends deletes ${what} that has taken the place of its socket`, async () => {
    const unix = newPath(".sock");
    const server = start(HELLO, { unix });
    rmSync(unix);
    await using _other = what === "a file" ? undefined : start(HELLO, { unix });
    if (what === "a file") writeFileSync(unix, "precious");
    await server.shutdown();
    assert.equal(existsSync(unix), false);
  });
}

for (const what of ["a socket that nobody has", "a socket that a server has", "a file", "nothing"]) {
  test(`a symbolic link to ${what} is not followed, and nothing of it is deleted`, async () => {
    const target = newPath("");
    const unix = newPath(".sock");
    symlinkSync(target, unix);
    if (what === "a socket that nobody has") await socketOf("SIGKILL", target);
    await using server = what === "a socket that a server has" ? start(HELLO, { unix: target }) : undefined;
    if (what === "a file") writeFileSync(target, "precious");
    const before = what === "nothing" ? undefined : lstatSync(target).ino;
    assert.throws(() => serve(HELLO, { unix, onListen() {} }), { message: TAKEN });
    assert.equal(readlinkSync(unix), target);
    assert.equal(existsSync(target) ? lstatSync(target).ino : undefined, before);
    if (server) assert.equal(await fetched("--unix-socket", target, "http://localhost/"), "hello 1.1 200");
  });
}

// TLS, unix sockets, HTTP/2

const SURROUNDINGS: Application = (environ, startResponse) => {
  ok(startResponse);
  const names = ["wsgi.url_scheme", "HTTPS", "SERVER_NAME", "HTTP_HOST", "REMOTE_ADDR"];
  return [bytes(names.map((name) => String(environ[name])).join(" "))];
};

test("curl is served over TLS, and environ says so", async () => {
  await using server = start(SURROUNDINGS, IDENTITY);
  assert.equal(
    await fetched("--http1.1", "--cacert", CERT_FILE, server.url),
    `https on 127.0.0.1 localhost:${server.port} 127.0.0.1 1.1 200`,
  );
});

test("curl is served over a unix socket", async () => {
  const unix = newPath(".sock");
  await using server = start(SURROUNDINGS, { unix });
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
    await using _server = start(HELLO, { unix, unixMode });
    assert.equal(lstatSync(unix).mode & 0o777, unixMode);
    assert.equal(await fetched("--unix-socket", unix, "http://localhost/"), "hello 1.1 200");
  });
}

test("TLS over a unix socket is TLS on Bun, and refused on Deno, which would serve in the clear", async () => {
  const unix = newPath(".sock");
  const options: ServeOptions = { unix, ...IDENTITY };
  if (RUNTIME === "deno") return assert.throws(() => void start(HELLO, options).shutdown(), /unix/);
  await using _server = start(SURROUNDINGS, options);
  assert.equal(
    await fetched("--unix-socket", unix, "--cacert", CERT_FILE, "https://localhost/"),
    "https on localhost localhost undefined 1.1 200",
  );
});

// What Deno does by itself, Bun does when it is told.
const HTTP2: ServeOptions = { bun: { http2: true } };

test("curl is served over HTTP/2 and TLS, by Deno without an option", async () => {
  await using server = start(SURROUNDINGS, { ...HTTP2, ...IDENTITY });
  const surroundings = `https on 127.0.0.1 localhost:${server.port} 127.0.0.1`;
  assert.equal(await fetched("--http2", "--cacert", CERT_FILE, server.url), `${surroundings} 2 200`);
  await using plain = start(HELLO, IDENTITY);
  const expected = RUNTIME === "deno" ? "hello 2 200" : "hello 1.1 200";
  assert.equal(await fetched("--http2", "--cacert", CERT_FILE, plain.url), expected);
});

test("curl is served over HTTP/2 without TLS when it knows that it can be", async () => {
  await using server = start(COUNT, HTTP2);
  assert.equal(await fetched("--http2-prior-knowledge", server.url), "0 2 200");
  assert.equal(await fetched("--http2-prior-knowledge", "-d", "a=1", server.url), "3 2 200");
});

const NO_HTTP3 = { skip: RUNTIME === "deno" && "Deno has no HTTP/3" };

test("HTTP/3 is announced on Bun when it is told so", NO_HTTP3, async () => {
  await using server = start(HELLO, { ...IDENTITY, bun: { http3: true } });
  const output = await fetched("-D", "-", "--cacert", CERT_FILE, server.url);
  assert.match(output, new RegExp(`^alt-svc: h3=":${server.port}"`, "im"));
});

// The curl of most machines does not speak it, Bun's own client does. Nothing else is spoken here.
test("a client is served over HTTP/3 on Bun, both ways", NO_HTTP3, async () => {
  const app: Application = (environ, startResponse) => {
    return (environ.REQUEST_METHOD === "POST" ? COUNT : SURROUNDINGS)(environ, startResponse);
  };
  await using server = start(app, { ...IDENTITY, bun: { http3: true, http1: false } });
  const textOf = async (init: RequestInit) => {
    const overHttp3 = { ...init, protocol: "http3", tls: { rejectUnauthorized: false } }; // it takes no `ca` with HTTP/3
    const response = await within(fetch(`https://127.0.0.1:${server.port}/`, overHttp3), "a response over HTTP/3");
    return await response.text();
  };
  assert.equal(await textOf({}), `https on 127.0.0.1 127.0.0.1:${server.port} 127.0.0.1`);
  assert.equal(await textOf({ method: "POST", body: new Uint8Array(1_000_000) }), "1000000");
});

// Limits

const LIMIT = 1000;
const LARGE_FILE = join(FOLDER, "large");
writeFileSync(LARGE_FILE, new Uint8Array(4 * 1024 * 1024));

for (const [what, framing] of [["a length", "Content-Length: 4194304"], ["chunks", "Transfer-Encoding: chunked"]]) {
  test(`a client that goes on sending a body with ${what} that is too large can read the 413`, async () => {
    let calls = 0;
    await using server = start((environ, startResponse) => {
      calls++;
      return COUNT(environ, startResponse);
    }, { maxBodySize: LIMIT });
    const client = await Client.connect(server);
    await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\n${framing}\r\n\r\n`);
    const block = "x".repeat(65_536);
    for (let sent = 0; sent < 4_194_304 && !client.isClosed; sent += block.length) {
      await client.send(what === "chunks" ? `10000\r\n${block}\r\n` : block);
    }
    await client.until(/^HTTP\/1\.1 413 [^]*\r\n\r\nContent Too Large\n$/);
    client.leave();
    assert.equal(calls, what === "chunks" ? 1 : 0);
    assert.equal(server.errors.text, "");
    await assertServes(server);
  });
}

for (
  const [what, args] of [
    ["a length", ["--data-binary", `@${LARGE_FILE}`]],
    ["a length and no Expect", ["--data-binary", `@${LARGE_FILE}`, "-H", "Expect:"]],
    ["chunks", ["--data-binary", `@${LARGE_FILE}`, "-H", "Transfer-Encoding: chunked"]],
    ["chunks and no Expect", ["--data-binary", `@${LARGE_FILE}`, "-H", "Transfer-Encoding: chunked", "-H", "Expect:"]],
    ["a length, with PUT", ["-T", LARGE_FILE]],
  ] as const
) {
  test(`curl reads the 413 when it sends a body with ${what} that is too large`, async () => {
    await using server = start(COUNT, { maxBodySize: LIMIT });
    assert.equal(await fetched("--http1.1", ...args, server.url), "Content Too Large\n 1.1 413");
  });
}

// Where the server need not read to the end, curl 7 takes the end of the stream for a failure, whatever the server is.
test("curl reads the 413 over HTTP/2", async () => {
  await using server = start(COUNT, { ...HTTP2, maxBodySize: LIMIT });
  assert.equal(
    await fetched("--http2-prior-knowledge", "-H", "Content-Length:", "-d", "x".repeat(LIMIT + 1), server.url),
    "Content Too Large\n 2 413",
  );
});

for (
  const [size, limit, expected] of [
    [LIMIT, LIMIT, 200],
    [LIMIT + 1, LIMIT, 413],
    [0, 0, 200],
    [1, 0, 413],
    [LIMIT, undefined, 200],
    [LIMIT, Infinity, 200],
  ] as const
) {
  test(`with maxBodySize ${limit} a body of ${size} bytes is answered with ${expected}, however it is framed`, async () => {
    await using server = start(COUNT, { maxBodySize: limit });
    const body = "x".repeat(size);
    const chunked = `${size > 0 ? `${size.toString(16)}\r\n${body}\r\n` : ""}0\r\n\r\n`;
    for (
      const message of [
        request("/", { method: "POST", headers: [`Content-Length: ${size}`], body }),
        request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body: chunked }),
      ]
    ) {
      const client = await Client.connect(server);
      await client.send(message);
      await client.until(new RegExp(`^HTTP/1\\.1 ${expected} `));
      client.leave();
    }
    for (const framed of [body, ReadableStream.from([bytes(body)])]) {
      const { response } = await answer(COUNT, new Request("http://localhost/", { method: "POST", body: framed }), {
        maxBodySize: limit,
      });
      assert.equal(response.status, expected);
    }
  });
}

test("an application is given no more than maxBodySize bytes, and may answer for itself", async () => {
  let given = 0;
  const failure = new Event<unknown>("a read() that fails");
  await using server = start(async (environ, startResponse) => {
    try {
      for (;;) given += (await environ["wsgi.input"].read(7)).length;
    } catch (error) {
      failure.happen(error);
    }
    startResponse("422 Unprocessable Content", [["Content-Type", "text/plain"]]);
    return [bytes("own")];
  }, { maxBodySize: 20 });
  const client = await Client.connect(server);
  await client.send("POST / HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (let block = 0; block < 10; block++) await client.send("5\r\nabcde\r\n");
  await client.until(/^HTTP\/1\.1 422 [^]*own$/);
  client.leave();
  const error = await failure.wait();
  assert.ok(error instanceof RangeError && "status" in error);
  assert.equal(error.status, 413);
  assert.ok(given <= 20);
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
    serve(HELLO, { onListen() {}, signals: false, ...options }).shutdown();
  } finally {
    runtime.serve = original;
  }
  assert.equal(handed.length, 1);
  return handed[0]!;
}

test("what only one runtime has is handed to that one, and wins", () => {
  const handed = handedOver({
    hostname: "127.0.0.1",
    deno: { a: "deno", hostname: "d" },
    bun: { b: "bun", hostname: "b" },
  });
  assert.deepEqual([handed.a, handed.b], RUNTIME === "deno" ? ["deno", undefined] : [undefined, "bun"]);
  assert.equal(handed.hostname, RUNTIME === "deno" ? "d" : "b");
});

test("Bun is told to cut no large bodies, and what the deployer tells it wins", {
  skip: RUNTIME === "deno" && "Deno has no such limits",
}, () => {
  assert.ok(Number(handedOver({}).maxRequestBodySize) >= Number.MAX_SAFE_INTEGER);
  assert.equal(handedOver({ bun: { idleTimeout: 5 } }).idleTimeout, 5);
});

// It takes 12 s.
test("Bun cuts half-sent heads and idle connections, but no request under way, however quiet or slow it is", {
  skip: RUNTIME === "deno" && "Deno cuts none of them",
}, async () => {
  const go = new Event("permission to go on");
  const app: Application = async (environ, startResponse) => {
    const { PATH_INFO: path } = environ;
    if (path === "/slow") await go.wait();
    ok(startResponse);
    if (path === "/") return [bytes("hello")];
    if (path === "/closes") return Object.assign([bytes("hello")], { close: settle });
    if (path === "/large") return [new Uint8Array(16 * 1024 * 1024)];
    return (async function* () {
      if (path === "/upload") yield await environ["wsgi.input"].read();
      else yield bytes("one");
      if (path === "/quiet") await go.wait();
      yield bytes("two");
    })();
  };
  await using server = start(app);
  await using serial = start(app, { concurrency: 1 });
  const open = async (data: string, to = server) => {
    const client = await Client.connect(to);
    await client.send(data);
    return client;
  };
  const keepAlive = "GET / HTTP/1.1\r\nHost: test.example\r\n\r\n";
  const half = keepAlive.slice(0, -4);
  const kept = [
    await open(request("/quiet")),
    await open(request("/slow")),
    await open(`${request("/upload", { method: "POST", headers: ["Content-Length: 3"] })}on`),
    await open(request("/slow"), serial),
    await open(request("/waits"), serial),
  ];
  const stalled = await open(request("/large"));
  stalled.pause();
  const closes = keepAlive.replace("/", "/closes");
  const cut = [await open(half), await open(keepAlive), await open(keepAlive), await open(closes)];
  for (const client of cut.slice(1)) await client.until(/hello$/);
  for (const client of cut.slice(2)) await client.send(half);
  for (const client of cut) assert.match(await client.end(), /^(?:HTTP\/1\.1 200 [^]*hello)?$/);
  go.happen();
  await kept[2]!.send("e");
  for (const client of kept) {
    const { body, complete } = parse(await client.end());
    assert.deepEqual({ body, complete }, { body: "onetwo", complete: true });
  }
  stalled.resume();
  const { body, complete } = parse(await stalled.end());
  assert.deepEqual({ size: body.length, complete }, { size: 16 * 1024 * 1024, complete: true });
});

for (const concurrency of [1, 2, undefined]) {
  test(`with concurrency ${concurrency} no more requests are inside the application, and they come in order`, async () => {
    const count = 5;
    const events: string[] = [];
    const bodies = Array.from({ length: count }, () => new Event("permission to go on"));
    const entered = Array.from({ length: count }, () => new Event("a request inside"));
    const app: Application = (environ, startResponse) => {
      const number = Number(environ.PATH_INFO.slice(1));
      events.push(`enter ${number}`);
      entered[number]!.happen();
      const chunks = (async function* () {
        ok(startResponse);
        yield bytes("one");
        await bodies[number]!.wait();
        yield bytes("two");
      })();
      return { [Symbol.asyncIterator]: () => chunks, close: () => void events.push(`leave ${number}`) };
    };
    await using server = start(app, { concurrency });
    const most = concurrency ?? count;
    const clients: Client[] = [];
    for (let number = 0; number < count; number++) {
      const client = await Client.connect(server);
      await client.send(request(`/${number}`));
      clients.push(client);
      if (number < most) await entered[number]!.wait();
      // What is refused does not wait, so its answer tells that the request before it has come.
      else await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
    }
    for (let number = 0; number < count; number++) {
      const inside = events.filter((event) => event.startsWith("enter")).length;
      assert.equal(inside, Math.min(count, number + most));
      bodies[number]!.happen();
      assert.equal(parse(await clients[number]!.end()).body, "onetwo");
      if (number + most < count) await entered[number + most]!.wait();
    }
    await settle();
    const numbers = Array.from({ length: count }, (_, number) => number);
    assert.deepEqual(events.filter((event) => event.startsWith("enter")), numbers.map((number) => `enter ${number}`));
    assert.equal(events.filter((event) => event.startsWith("leave")).length, count);
    if (concurrency === 1) {
      assert.deepEqual(events, numbers.flatMap((number) => [`enter ${number}`, `leave ${number}`]));
    }
  });
}

test("a place inside the application is given away only when a generator and close() have ended", async () => {
  const events: string[] = [];
  const [left, closed] = [new Event("permission to end"), new Event("permission to have closed")];
  const app: Application = (environ, startResponse) => {
    const { PATH_INFO: path } = environ;
    events.push(`enter ${path}`);
    ok(startResponse);
    const chunks = (async function* () {
      try {
        yield bytes("one");
        if (path === "/leaves") await left.wait();
      } finally {
        events.push(`end ${path}`);
      }
    })();
    const close = async () => {
      if (path === "/leaves") await closed.wait();
      events.push(`close ${path}`);
    };
    return Object.assign(chunks, { close });
  };
  await using server = start(app, { concurrency: 1 });
  const client = await Client.connect(server);
  await client.send(request("/leaves"));
  await client.until(/one/);
  const next = await Client.connect(server);
  await next.send(request("/next"));
  client.leave();
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  await settle();
  closed.happen();
  await settle();
  assert.deepEqual(events, ["enter /leaves", "close /leaves"]);
  left.happen();
  assert.equal(parse(await next.end()).body, "one");
  assert.deepEqual(events.slice(0, 4), ["enter /leaves", "close /leaves", "end /leaves", "enter /next"]);
});

test("a client that leaves while it waits for its turn is not called for on Bun; Deno tells only those who pay", async () => {
  const entered: string[] = [];
  const go = new Event("permission to go on");
  const begun = new Event("a request inside");
  await using server = start(async (environ, startResponse) => {
    entered.push(environ.PATH_INFO);
    begun.happen();
    await go.wait();
    ok(startResponse);
    return [bytes("hello")];
  }, { concurrency: 1 });
  const clients = await Promise.all([1, 2, 3].map(() => Client.connect(server)));
  await clients[0]!.send(request("/first"));
  await begun.wait();
  await clients[1]!.send(request("/leaves"));
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  clients[1]!.leave();
  await clients[2]!.send(request("/last"));
  await exchange(server, "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n");
  go.happen();
  assert.equal(parse(await clients[2]!.end()).body, "hello");
  assert.deepEqual(entered, RUNTIME === "deno" ? ["/first", "/leaves", "/last"] : ["/first", "/last"]);
});

test("toFetch with concurrency 1 serves one after the other, those that fail as well", async () => {
  let inside = 0;
  let most = 0;
  const handler = toFetch(async (environ, startResponse) => {
    most = Math.max(most, ++inside);
    await settle();
    inside--;
    if (environ.PATH_INFO === "/fails") throw new Error("It fails");
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  }, { concurrency: 1, errors: { write() {}, writelines() {}, flush() {} } });
  const paths = ["/a", "/fails", "/b", "/fails", "/c"];
  const responses = paths.map(async (path) => await handler(new Request(`http://localhost${path}`)));
  const statuses = (await within(Promise.all(responses), "all responses")).map(({ status }) => status);
  assert.deepEqual(statuses, [200, 500, 200, 500, 200]);
  assert.equal(most, 1);
});

// Stop

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

  test(`what ${signal} has waited for in vain is aborted, and the process ends with ${STATUSES[signal]}`, async () => {
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

  test(`a first ${signal} cuts nothing of a server that was stopping already, nor of another`, async () => {
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
    assert.ok(Number(/^exit (.*)$/m.exec(output)![1]) < 500, output);
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
    child.kill("SIGHUP");
    const { code, errors } = await child.ended();
    assert.equal(code, 0);
    const [_serving, ...lines] = errors.trim().split("\n");
    assert.deepEqual(lines, [`Stopping on SIGTERM: ${plan}, another signal ends the process at once`]);
    client.leave();
  });
}

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

test("a connection that says nothing over TLS is waited for on Deno, as long as for anything, and cut on Bun", async () => {
  await using child = serving({ ...IDENTITY, shutdownTimeout: 50 });
  const server = await child.listening();
  const silent = await Client.connect(server);
  assert.equal(await fetched("--http1.1", "-k", `https://127.0.0.1:${server.port}/`), "onetwo 1.1 200");
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, RUNTIME === "deno" ? STATUSES.SIGTERM : 0);
  silent.leave(); // on Bun the kernel has never handed it over
});

test("a response that says so ends its connection on Bun, and leaves that to the client on Deno", async () => {
  const server = start(HELLO, { shutdownDelay: 1000, shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  const stopped = server.shutdown();
  const keepAlive = "GET / HTTP/1.1\r\nHost: test.example\r\n\r\n";
  await client.send(keepAlive);
  await client.until(/connection: close\r\n[^]*hello$/i);
  if (RUNTIME === "deno") {
    await client.send(keepAlive);
    await client.until(/hello[^]*connection: close\r\n[^]*hello$/i);
  }
  await client.end();
  await within(stopped, "the end of the server");
});

test("a server that has waited in vain cuts nothing of another one", async () => {
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

test("what onListen throws stops a server at once, however long shutdownDelay is", async () => {
  const servers: Server[] = [];
  const onListen = (server: Server) => {
    servers.push(server);
    throw new Error("no");
  };
  assert.throws(() => serve(HELLO, { port: 0, onListen, shutdownDelay: 3_600_000 }), /^Error: no$/);
  await within(servers[0]!.finished, "the end of the server");
});

test("what a server that stops refuses ends its connection, like all that it answers", async () => {
  const server = start(HELLO, { shutdownDelay: 100, maxBodySize: 10, shutdownTimeout: 60_000 });
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

test("all servers of a process share one listener for each signal, and take it back with the last", {
  skip: RUNTIME === "deno" && "Deno does not count the listeners that are its own",
}, async () => {
  const counts = () => SIGNALS.map((signal) => process.listenerCount(signal));
  const before = counts();
  const during = before.map((count) => count + 1);
  const first = start(HELLO);
  assert.deepEqual(counts(), during);
  const second = start(HELLO);
  const without = start(HELLO, { signals: false });
  assert.deepEqual(counts(), during);
  await without.shutdown();
  await first.shutdown();
  assert.deepEqual(counts(), during);
  assert.throws(() => start(HELLO, { port: second.port }));
  await second.shutdown();
  assert.deepEqual(counts(), before);
  assert.throws(() => start(HELLO, { hostname: "192.0.2.1" }));
  assert.deepEqual(counts(), before);
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
  const late = start(HELLO, { signal: controller.signal });
  await within(late.finished, "the end of a server that was stopped from the start");
  await untilRefused(late);
});

test("await using stops the server at the end of the block, and waits for it", async () => {
  let server: Server;
  let isFinished = false;
  {
    await using scoped = start(HELLO);
    server = scoped;
    server.finished.then(() => isFinished = true);
    await assertServes(server);
  }
  assert.equal(isFinished, true);
  await untilRefused(server);
});

test("a connection that is idle after a response is closed at once", async () => {
  const server = start(HELLO, { shutdownTimeout: 60_000 });
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await client.until(/hello$/);
  const stopped = server.shutdown();
  await client.end();
  await within(stopped, "the end of the server");
});

test("a connection on which nothing was ever sent keeps no process from ending with 0", async () => {
  await using child = serving();
  const client = await Client.connect(await child.listening());
  child.kill("SIGTERM");
  assert.equal((await child.ended()).code, 0);
  client.leave(); // on Bun the kernel has never handed the connection over, and says nothing when the server is gone
});

test("a half-sent head holds no stop for long, and what comes of it by then is answered", async () => {
  const server = start(HELLO, { shutdownTimeout: 60_000 });
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
  const server = start(HELLO, { shutdownTimeout: 60_000 });
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

for (const args of [["--http2-prior-knowledge"], ["--http2", "--cacert", CERT_FILE]]) {
  test(`a stream over HTTP/2 (${args[0]}) is finished by a server that stops`, async () => {
    const go = new Event("permission to go on");
    const begun = new Event("a stream");
    const server = start(async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      begun.happen();
      await go.wait();
      yield bytes("two");
    }, { ...HTTP2, ...(args.length > 1 ? IDENTITY : {}), shutdownTimeout: 60_000 });
    await using client = curl(...ASKS, "-N", ...args, server.url);
    await begun.wait();
    const stopped = server.shutdown();
    await untilRefused(server);
    go.happen();
    const { code, output } = await client.ended();
    assert.equal(output, "onetwo 2 200");
    // Now and then Bun resets the connection behind the last byte, which is status 56.
    assert.ok(code === 0 || RUNTIME === "bun" && code === 56, `curl ended with ${code}`);
    await within(stopped, "the end of the server");
  });
}
