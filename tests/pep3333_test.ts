/**
 * PEP 3333, requirement by requirement.
 *
 * The name of each test begins with a number and the section of the PEP that it comes from. The numbers are those of
 * the project's list of the PEP's requirements, 1 to 105, in the order of the PEP. A number stands for one requirement,
 * and has one test if the server has to meet it, is free to, or checks at run time that the application does.
 *
 * With another server (`WSGI_SERVER` in CONTRIBUTING.md) it is the conformance suite of the interface. What a server may
 * decide by itself is then not asked for, and what needs Deno or Bun is skipped.
 *
 * `NOT_THE_SERVERS` has the other numbers, each with the reason. `IMPOSSIBLE` has those that no server on these two
 * runtimes can meet to the letter: their tests show what holds instead. The last test sees to it that none is missing.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { types } from "node:util";
import {
  type Application,
  application,
  type ApplicationLike,
  type Environ,
  fromFetch,
  type HeaderList,
  limitConcurrency,
  type Middleware,
  type ResponseBody,
  type ServeOptions,
  type StartResponse,
  toEnviron,
  toFetch,
  toRequest,
  type Write,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  EMPTY,
  ErrorLog,
  Event,
  exchange,
  HERE,
  MemoryFile,
  ok,
  OTHER_SERVER,
  parse,
  PLAIN,
  post,
  reportsIn,
  request,
  RUNTIME,
  settle,
  standardErrorOf,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

const NOT_THE_SERVERS: Record<number, string> = {
  2: "the application: it must survive being called many times",
  18: "the application: it checks for variables that may be absent",
  31: "the application: it does not read past CONTENT_LENGTH, where this server's input ends anyway",
  39: "the application: it calls flush when it matters",
  40: "the application: it uses no other members of the streams, and closes neither",
  54: "the application: it gives startResponse an error only where it handles one",
  64: "the application: it avoids write",
  66: "the application: the length of its iterable is right, as that of an array always is",
  68: "the application: it does not assume that all of its body is consumed",
  78: "middleware: it yields at least once for each chunk that it gets",
  79: "middleware: it returns an iterable as soon as the application inside does",
  80: "middleware: it does not write what the application inside has yielded",
  81: "middleware: it obeys the rules of both sides",
  85: "the application: it traps its own errors and says so helpfully",
  88: "middleware: it may keep an error given to startResponse to itself",
  91: "the application: it does not rely on hop-by-hop headers of the request",
  96: "the application: it needs little configuration",
  98: "middleware: it offers parsed data as functions of the environ",
};

const IMPOSSIBLE: Record<number, string> = {
  14: "neither runtime tells the version of the protocol",
};

const TESTED: number[] = [];
// The tests that start a program on the runtime that runs them.
const OWN_PROGRAMS = new Set([26, 59]);

function requirement(number: number, section: string, sentence: string, run: () => void | Promise<void>): void {
  TESTED.push(number);
  const skip = OTHER_SERVER !== undefined && OWN_PROGRAMS.has(number) && "it runs a program on Deno or Bun";
  test(`${number} (${section}): ${sentence}`, { skip }, run);
}

/** What an application sees of a request that came over a socket. */
async function environOf(raw: string, options: ServeOptions = {}): Promise<Environ> {
  let seen: Environ | undefined;
  await using server = start((environ, startResponse) => {
    seen = { ...environ };
    ok(startResponse);
    return [];
  }, options);
  const { status } = await exchange(server, raw);
  assert.equal(status, 200, raw);
  return seen!;
}

/** A body that ends with an error. */
function* failing(error: unknown, ...chunks: string[]): Generator<Uint8Array> {
  for (const chunk of chunks) yield bytes(chunk);
  throw error;
}

/** Runs a program that is given `mod.ts`, and gives what it prints. */
function outputOf(program: string, denoFlags: string[] = []): string {
  const source = `const wsgi = await import(${JSON.stringify(new URL("../mod.ts", import.meta.url).href)});${program}`;
  const args = RUNTIME === "deno" ? ["eval", ...denoFlags, source] : ["-e", source];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  assert.equal(status, 0, stderr);
  return stdout.trim();
}

/** The documentation of an interface in mod.ts, by member. */
function documentationOf(name: string): Map<string, string> {
  const source = readFileSync(new URL("../mod.ts", import.meta.url), "utf8");
  const [, members = ""] = new RegExp(`^export interface ${name} [^\\n]*\\{\\n(.*?)^\\}`, "ms").exec(source) ?? [];
  const documented = members.matchAll(/\/\*\*((?:(?!\*\/).)+)\*\/\s+(?:readonly )?"?([\w.]+)"?[?:(]/gs);
  return new Map(documented.map(([, comment = "", member = ""]) => [member, comment]));
}

requirement(1, "The Application/Framework Side", "every kind of callable is an application", async () => {
  class Instances {
    readonly startResponse: StartResponse;

    constructor(_environ: Environ, startResponse: StartResponse) {
      this.startResponse = startResponse;
    }
    *[Symbol.iterator]() {
      ok(this.startResponse);
      yield bytes("called");
    }
  }
  class Methods {
    chunk = bytes("called");
    method(_environ: Environ, startResponse: StartResponse) {
      ok(startResponse);
      return [this.chunk];
    }
  }
  const methods = new Methods();
  const apps: Record<string, ApplicationLike> = {
    function: (_environ, startResponse) => {
      ok(startResponse);
      return [bytes("called")];
    },
    method: methods.method.bind(methods),
    class: Instances,
    instance: { handle: (environ, startResponse) => methods.method(environ, startResponse) },
    generator: function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("called");
    },
  };
  for (const [kind, app] of Object.entries(apps)) {
    const { response, errors } = await answer(app);
    assert.equal(await response.text(), "called", kind);
    assert.equal(errors.text, "", kind);
  }
});

requirement(3, "Specification Details", "the application gets two arguments, by position", async () => {
  const calls: unknown[][] = [];
  await answer((...given) => {
    calls.push(given);
    ok(given[1]);
    return [];
  });
  assert.deepEqual(calls.map((given) => given.map((value) => typeof value)), [["object", "function"]]);
});

requirement(
  4,
  "Specification Details",
  "what is not an iterable of chunks is refused, even after write()",
  async () => {
    const bodies: [found: string, body: unknown][] = [
      ["undefined", undefined],
      ["null", null],
      ["42", 42],
      ['"text"', "text"],
      ["Uint8Array", bytes("bare")],
      ["object", {}],
    ];
    for (const [found, body] of bodies) {
      for (const writes of [false, true]) {
        const { response, errors } = await answer(unchecked((_environ, startResponse) => {
          const write = startResponse("200 OK", PLAIN);
          if (writes) write(bytes("written"));
          return body as ResponseBody;
        }));
        assert.equal(response.status, 500, found);
        assert.equal(reportsIn(errors).length, 1, found);
        assert.ok(errors.text.includes(found), errors.text);
      }
    }
  },
);

requirement(5, "The Server/Gateway Side", "each request is one call", async () => {
  const calls: string[] = [];
  await using server = start((environ, startResponse) => {
    calls.push(environ.REQUEST_METHOD + environ.PATH_INFO);
    ok(startResponse);
    return [];
  });
  await exchange(server, request("/a"));
  await exchange(server, request("/a", { method: "HEAD" }), { head: true });
  await exchange(server, request("/b", { method: "POST", headers: ["Content-Length: 4"], body: "body" }));
  assert.deepEqual(calls, ["GET/a", "HEAD/a", "POST/b"]);
});

requirement(6, "Specification Details", "environ is an ordinary object, new for each request", async () => {
  const seen: Environ[] = [];
  const handler = toFetch((environ, startResponse) => {
    seen.push(environ);
    ok(startResponse);
    return [];
  });
  await handler(new Request(HERE));
  await handler(new Request(HERE));
  assert.notEqual(seen[0], seen[1]);
  for (const environ of seen) {
    assert.equal(Object.getPrototypeOf(environ), Object.prototype);
    assert.ok(!types.isProxy(environ));
    for (const [name, descriptor] of Object.entries(Object.getOwnPropertyDescriptors(environ))) {
      const { value: _, ...attributes } = descriptor;
      assert.deepEqual(attributes, { writable: true, enumerable: true, configurable: true }, name);
    }
  }
});

requirement(7, "Specification Details", "the application may change environ, which changes nothing else", async () => {
  const seen: Environ[] = [];
  const errors = new ErrorLog();
  const handler = toFetch((environ, startResponse) => {
    seen.push({ ...environ, "wsgi.version": [...environ["wsgi.version"]] });
    try {
      (environ["wsgi.version"] as unknown as number[])[0] = 2;
    } catch {
      // A frozen pair is as good as a new one.
    }
    for (const name of Object.keys(environ)) delete environ[name];
    environ.REQUEST_METHOD = "GET";
    environ["example.extra"] = true;
    if (seen.length === 2) throw new Error("Without an environ");
    ok(startResponse);
    return [bytes("body")];
  }, { errors, environ: { "example.option": "kept" } });
  const response = await handler(new Request(HERE, { method: "HEAD" }));
  assert.equal(await response.text(), "");
  const failure = await handler(new Request(HERE, { method: "HEAD" }));
  assert.equal(failure.status, 500);
  assert.match(errors.text, /Without an environ/);
  const [first, second] = seen as [Environ, Environ];
  assert.deepEqual(Object.keys(second), Object.keys(first));
  assert.equal(second.REQUEST_METHOD, "HEAD");
  assert.equal(second["example.option"], "kept");
  assert.deepEqual(second["wsgi.version"], [1, 0]);
});

requirement(8, "environ Variables", "REQUEST_METHOD is the method of the request", async () => {
  const methods: string[] = [];
  await using server = start((environ, startResponse) => {
    methods.push(environ.REQUEST_METHOD);
    ok(startResponse);
    return [];
  });
  const sent = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "TRACE"];
  for (const method of sent) await exchange(server, request("/", { method }), { head: method === "HEAD" });
  assert.deepEqual(methods, sent);
});

requirement(9, "environ Variables", "SCRIPT_NAME is empty or a prefix that does not end in a slash", async () => {
  assert.equal((await environOf(request("/app/x"))).SCRIPT_NAME, "");
  const environ = await environOf(request("/app/v1/x"), { scriptName: "/app/v1" });
  assert.equal(environ.SCRIPT_NAME, "/app/v1");
  assert.equal(environ.PATH_INFO, "/x");
  for (const scriptName of ["/", "/app/", "app"]) {
    assert.throws(() => toFetch(() => [], { scriptName }), { name: "TypeError", message: /scriptName/ });
  }
});

requirement(10, "environ Variables", "PATH_INFO is the rest of the path, decoded to bytes", async () => {
  const cases: [target: string, pathInfo: string][] = [
    ["/", "/"],
    ["/a%20b", "/a b"],
    ["/caf%C3%A9", "/caf\xc3\xa9"],
    ["/%e4%bd%a0", "/\xe4\xbd\xa0"],
    ["/%FF", "/\xff"],
    ["/a%2Fb", "/a/b"],
    ["/a%252Fb", "/a%2Fb"],
    ["/100%/%zz", "/100%/%zz"],
    ["/a%00b", "/a\0b"],
    ["//x", "//x"],
    ["/a+b;c=d", "/a+b;c=d"],
  ];
  const paths: string[] = [];
  await using server = start((environ, startResponse) => {
    paths.push(environ.PATH_INFO);
    ok(startResponse);
    return [];
  });
  for (const [target] of cases) await exchange(server, request(target));
  assert.deepEqual(paths, cases.map(([, pathInfo]) => pathInfo));
  assert.equal((await environOf(request("/app"), { scriptName: "/app" })).PATH_INFO, "");
});

requirement(
  11,
  "environ Variables",
  "QUERY_STRING is what follows the first question mark, as it was sent",
  async () => {
    const cases: [target: string, query: string][] = [
      ["/", ""],
      ["/?", ""],
      ["/?a=b&c=%20d+e", "a=b&c=%20d+e"],
      ["/?a?b", "a?b"],
      ["/?%zz", "%zz"],
    ];
    const queries: string[] = [];
    await using server = start((environ, startResponse) => {
      queries.push(environ.QUERY_STRING);
      ok(startResponse);
      return [];
    });
    for (const [target] of cases) await exchange(server, request(target));
    assert.deepEqual(queries, cases.map(([, query]) => query));
  },
);

requirement(12, "environ Variables", "CONTENT_TYPE and CONTENT_LENGTH are those of the request", async () => {
  const type = "text/plain; charset=utf-8";
  const headers = [`Content-Type: ${type}`, "Content-Length: 3"];
  const environ = await environOf(request("/", { method: "POST", headers, body: "abc" }));
  assert.equal(environ.CONTENT_TYPE, type);
  assert.equal(environ.CONTENT_LENGTH, "3");
  assert.ok(!("HTTP_CONTENT_TYPE" in environ));
  assert.ok(!("HTTP_CONTENT_LENGTH" in environ));

  const repeated = request("/", { method: "POST", headers: ["Content-Length: 3", "Content-Length: 3"], body: "abc" });
  // A server may refuse it: RFC 9110, section 8.6.
  if (OTHER_SERVER === undefined) assert.equal((await environOf(repeated)).CONTENT_LENGTH, "3");
  const chunked = { method: "POST", headers: ["Transfer-Encoding: chunked"], body: "3\r\nabc\r\n0\r\n\r\n" };
  assert.ok(!("CONTENT_LENGTH" in await environOf(request("/", chunked))));
});

requirement(13, "environ Variables", "SERVER_NAME and SERVER_PORT are there, and not empty", async () => {
  let environ: Environ | undefined;
  const app: Application = (given, startResponse) => {
    environ = given;
    ok(startResponse);
    return [];
  };
  await using server = start(app);
  await exchange(server, request("/"));
  assert.match(environ!.SERVER_NAME, /./);
  assert.match(environ!.SERVER_PORT, /^\d+$/);
  if (OTHER_SERVER === undefined) {
    assert.equal(environ!.SERVER_NAME, "127.0.0.1");
    assert.equal(environ!.SERVER_PORT, String(server.port));
  }
  await answer(app, new Request("https://test.example/"));
  assert.equal(environ!.SERVER_NAME, "test.example");
  assert.equal(environ!.SERVER_PORT, "443");
});

requirement(
  14,
  "environ Variables",
  "SERVER_PROTOCOL is HTTP/1.1, as no runtime tells what the client spoke",
  async () => {
    assert.equal((await environOf(request("/"))).SERVER_PROTOCOL, "HTTP/1.1");
    assert.equal((await environOf("GET / HTTP/1.0\r\n\r\n")).SERVER_PROTOCOL, "HTTP/1.1");
  },
);

requirement(15, "environ Variables", "HTTP_ variables are those of the headers that were sent", async () => {
  const headers = ["X-Test: one", "X-Empty:", "Accept: a/b", "Accept: c/d", "X_Test: twin", "Proxy: evil"];
  const environ = await environOf(request("/", { headers }));
  const variables = Object.entries(environ).filter(([name]) => name.startsWith("HTTP_")).sort();
  assert.deepEqual(variables, [
    ["HTTP_ACCEPT", "a/b, c/d"],
    ["HTTP_CONNECTION", "close"],
    ["HTTP_HOST", "test.example"],
    ["HTTP_X_EMPTY", ""],
    ["HTTP_X_TEST", "one"],
  ]);
});

requirement(16, "environ Variables", "the other CGI variables that apply are there, HTTPS with TLS", async () => {
  const environ = await environOf(request("/a%20b?c"));
  assert.equal(environ.REMOTE_ADDR, "127.0.0.1");
  assert.match(environ.REMOTE_PORT!, /^\d+$/);
  const software = OTHER_SERVER === undefined ? new RegExp(`^WSGI/[\\d.]+ ${RUNTIME}/\\d`, "i") : /./;
  assert.match(environ.SERVER_SOFTWARE, software);
  assert.equal(environ.REQUEST_URI, "/a%20b?c");
  assert.ok(!("HTTPS" in environ));
  assert.equal(toEnviron(new Request("https://test.example/")).HTTPS, "on");
});

requirement(17, "environ Variables", "mod.ts and the README document every variable that is provided", async () => {
  const body = { method: "POST", headers: ["Content-Length: 1", "Content-Type: text/plain"], body: "x" };
  const provided = Object.keys(await environOf(request("/", body))).filter((name) => !name.startsWith("HTTP_"));
  const documented = documentationOf("Environ");
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  assert.deepEqual(provided.filter((name) => !documented.has(name)), [], "in mod.ts");
  assert.deepEqual(provided.filter((name) => !readme.includes(`\`${name}\``)), [], "in README.md");
});

requirement(19, "environ Variables", "what is not known is absent", async () => {
  const environ = await environOf(request("/"));
  for (const name of ["REMOTE_USER", "AUTH_TYPE", "CONTENT_TYPE", "CONTENT_LENGTH", "HTTPS", "HTTP_ACCEPT"]) {
    assert.ok(!(name in environ), name);
  }
  const inProcess = toEnviron(new Request(HERE));
  for (const name of ["REMOTE_ADDR", "REMOTE_PORT"]) assert.ok(!(name in inProcess), name);
  for (const [name, value] of [...Object.entries(environ), ...Object.entries(inProcess)]) {
    assert.ok(value !== undefined && value !== null, name);
  }
});

requirement(20, "environ Variables", "every CGI variable is a string", async () => {
  const headers = ["Content-Length: 1", "Content-Type: text/plain", "Cookie: a=1", "Cookie: b=2"];
  for (
    const environ of [
      await environOf(request("/?a", { method: "POST", headers, body: "x" })),
      toEnviron(post("x", { "Content-Length": "1" })),
    ]
  ) {
    const variables = Object.entries(environ).filter(([name]) => /^[A-Z]/.test(name));
    assert.ok(variables.length > 10);
    for (const [name, value] of variables) assert.equal(typeof value, "string", name);
  }
});

requirement(21, "environ Variables", "the variables of the operating system stay outside", async () => {
  process.env.WSGI_TEST_SECRET = "secret";
  try {
    const environ = await environOf(request("/"));
    assert.deepEqual(Object.keys(process.env).filter((name) => name in environ), []);
  } finally {
    delete process.env.WSGI_TEST_SECRET;
  }
});

requirement(22, "environ Variables", "wsgi.version is the pair 1 and 0", () => {
  assert.deepEqual(toEnviron(new Request(HERE))["wsgi.version"], [1, 0]);
});

requirement(23, "environ Variables", "wsgi.url_scheme is the scheme of the connection", async () => {
  assert.equal(toEnviron(new Request("https://test.example/"))["wsgi.url_scheme"], "https");
  assert.equal(toEnviron(new Request("http://test.example/"))["wsgi.url_scheme"], "http");
  assert.equal((await environOf(request("/")))["wsgi.url_scheme"], "http");
  assert.equal((await environOf(request("https://test.example/")))["wsgi.url_scheme"], "http");
});

requirement(24, "environ Variables", "wsgi.input and wsgi.errors are there, also without a body", async () => {
  await using server = start(async (environ, startResponse) => {
    const { length } = await environ["wsgi.input"].read();
    environ["wsgi.errors"].write("written");
    ok(startResponse);
    return [bytes(`${length} bytes`)];
  });
  assert.equal((await exchange(server, request("/"))).body, "0 bytes");
  assert.equal(server.errors.text, "written");
});

requirement(25, "environ Variables", "wsgi.multithread is false, as no thread shares its application", async () => {
  assert.equal((await environOf(request("/")))["wsgi.multithread"], false);
});

requirement(26, "environ Variables", "wsgi.multiprocess is true when others may serve the same port", async () => {
  assert.equal((await environOf(request("/")))["wsgi.multiprocess"], false);
  // Deno ends the process that asks for a shared port without this flag.
  const output = outputOf(
    `const app = (environ, startResponse) => {
       startResponse("200 OK", []);
       return [new TextEncoder().encode(String(environ["wsgi.multiprocess"]))];
     };
     const server = wsgi.serve(app, { port: 0, reusePort: true, onListen() {} });
     console.log(await (await fetch(server.url)).text());
     await server.shutdown();`,
    ["--unstable-net"],
  );
  assert.equal(output, "true");
});

requirement(27, "environ Variables", "wsgi.run_once is false", async () => {
  assert.equal((await environOf(request("/")))["wsgi.run_once"], false);
});

requirement(28, "environ Variables", "the server's own variables have a prefix and lower case", async () => {
  const names = Object.keys(await environOf(request("/"))).filter((name) => !/^[A-Z]/.test(name));
  const own = names.filter((name) => !name.startsWith("wsgi."));
  assert.deepEqual(own, ["fetch.context"]);
  for (const name of names) assert.match(name, /^[a-z\d_]+\.[a-z\d._]+$/);
});

requirement(29, "Input and Error Streams", "wsgi.input has read, readline, readlines and iteration", async () => {
  const inputOf = () => toEnviron(post("a\nb\n"))["wsgi.input"];
  assert.equal(text(await inputOf().read(3)), "a\nb");
  assert.equal(text(await inputOf().readline()), "a\n");
  assert.deepEqual((await inputOf().readlines()).map(text), ["a\n", "b\n"]);
  const lines: string[] = [];
  for await (const line of inputOf()) lines.push(text(line));
  assert.deepEqual(lines, ["a\n", "b\n"]);
});

requirement(30, "Input and Error Streams", "wsgi.input ends at Content-Length", async () => {
  const input = toEnviron(post("abcdef", { "Content-Length": "3" }))["wsgi.input"];
  assert.equal(text(await input.read(10)), "abc");
  assert.equal((await input.read(10)).length, 0);
});

requirement(32, "Input and Error Streams", "read without a size gives the rest", async () => {
  const input = toEnviron(post("one two"))["wsgi.input"];
  assert.equal(text(await input.read(4)), "one ");
  assert.equal(text(await input.read()), "two");
});

requirement(33, "Input and Error Streams", "an empty or exhausted wsgi.input gives empty bytes", async () => {
  for (const empty of [new Request(HERE), new Request(HERE, { method: "POST" }), post("")]) {
    const input = toEnviron(empty)["wsgi.input"];
    for (let time = 0; time < 2; time++) {
      assert.deepEqual(await input.read(), EMPTY);
      assert.deepEqual(await input.read(1), EMPTY);
      assert.deepEqual(await input.readline(), EMPTY);
      assert.deepEqual(await input.readlines(), []);
    }
  }
});

requirement(34, "Input and Error Streams", "readline takes a size", async () => {
  const input = toEnviron(post("line\nnext"))["wsgi.input"];
  const lines: string[] = [];
  for (const size of [3, 3, 100, 100]) lines.push(text(await input.readline(size)));
  assert.deepEqual(lines, ["lin", "e\n", "next", ""]);
});

requirement(35, "Input and Error Streams", "readlines takes a hint", async () => {
  const input = toEnviron(post("1\n2\n3\n4\n"))["wsgi.input"];
  assert.deepEqual((await input.readlines(3)).map(text), ["1\n", "2\n"]);
  assert.deepEqual((await input.readlines()).map(text), ["3\n", "4\n"]);
});

requirement(36, "Input and Error Streams", "wsgi.errors has flush, write and writelines", async () => {
  const printed = await standardErrorOf(() => {
    const errors = toEnviron(new Request(HERE))["wsgi.errors"];
    errors.write("one\n");
    errors.writelines(["two\n", "three\n"]);
    errors.write("four");
    errors.flush();
  });
  assert.equal(printed.join("\n"), "one\ntwo\nthree\nfour");
});

requirement(37, "environ Variables", "wsgi.errors takes any text and never throws", async () => {
  const texts = ["\ud800", "\udfff\ud800", "你好 \u{1f40d}", "\0\x01\x7f\x9f", "a\r\nb", "", "x".repeat(100_000)];
  const printed = await standardErrorOf(() => {
    const errors = toEnviron(new Request(HERE))["wsgi.errors"];
    for (const text of texts) errors.write(`${text}\n`);
    errors.writelines(texts);
    errors.flush();
  });
  assert.match(printed.join("\n"), /你好 \u{1f40d}/u);
});

requirement(
  38,
  "environ Variables",
  "wsgi.errors is text, whose lines end where the application ends them",
  async () => {
    const printed = await standardErrorOf(() => {
      const errors = toEnviron(new Request(HERE))["wsgi.errors"];
      errors.write("one");
      errors.write(" line\nand ");
      errors.writelines(["a", "nother\n"]);
    });
    assert.deepEqual(printed, ["one line", "and another"]);
  },
);

requirement(41, "environ Variables", "the body is read when the application asks for it", async () => {
  const half = new Event("the first half in the application");
  await using server = start(async (environ, startResponse) => {
    const input = environ["wsgi.input"];
    const first = await input.read(3);
    half.happen();
    const second = await input.read();
    ok(startResponse);
    return [first, bytes("|"), second];
  });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"], body: "abc" }));
  await half.wait();
  await client.send("def");
  assert.equal(parse(await client.end()).body, "abc|def");
});

requirement(42, "environ Variables", "errors go to standard error or to the option errors, as documented", async () => {
  const app: Application = (environ, startResponse) => {
    environ["wsgi.errors"].write("noted\n");
    ok(startResponse);
    return [];
  };
  assert.deepEqual(await standardErrorOf(async () => void await toFetch(app)(new Request(HERE))), ["noted"]);
  const log = new ErrorLog();
  assert.deepEqual(
    await standardErrorOf(async () => void await toFetch(app, { errors: log })(new Request(HERE))),
    [],
  );
  assert.equal(log.text, "noted\n");
  assert.match(documentationOf("ToEnvironOptions").get("errors") ?? "", /standard error/);
});

requirement(
  43,
  "The start_response() Callable",
  "startResponse takes status, headers and an error, and gives write",
  async () => {
    const writes: Write[] = [];
    const { response } = await answer((_environ, startResponse) => {
      writes.push(startResponse("200 OK", PLAIN));
      writes.push(startResponse("404 Not Found", PLAIN, new Error("Not found")));
      return [bytes("body")];
    });
    assert.equal(response.status, 404);
    assert.deepEqual(writes.map((write) => typeof write), ["function", "function"]);
  },
);

requirement(
  44,
  "The start_response() Callable",
  "a status is a number of three digits, a space and a reason",
  async () => {
    const bad: unknown[] = [
      "",
      "200",
      "200 ",
      " 200 OK",
      "200  ".trimEnd(),
      "20 OK",
      "2000 OK",
      "abc OK",
      "200OK",
      "200\tOK",
      "200 OK\n",
      "200 OK\r\nX: y",
      "200 \x00",
      "200 \x7f",
      "199 Early",
      "100 Continue",
      "600 Large",
      200,
      undefined,
      null,
    ];
    for (const status of bad) {
      const { response, errors } = await answer(unchecked((_environ, startResponse) => {
        assert.throws(() => startResponse(status as string, PLAIN), { name: "TypeError", message: /status/ });
        return [];
      }));
      assert.equal(response.status, 500, String(status));
      assert.equal(reportsIn(errors).length, 1, String(status));
    }
    for (const status of ["200 OK", "299 Own words, as I like", "404 Not Found", "418 Th\xe9", "599 Last"]) {
      const { response } = await answer((_environ, startResponse) => {
        startResponse(status, PLAIN);
        return [];
      });
      assert.equal(response.status, Number(status.slice(0, 3)));
    }
  },
);

requirement(
  45,
  "The start_response() Callable",
  "the headers are an array of pairs, which stays as it is",
  async () => {
    const headers = Object.freeze([
      ...PLAIN,
      Object.freeze(["X-Constant", "1"]),
      Object.freeze(["Content-Length", "4"]),
    ]);
    for (let time = 0; time < 2; time++) {
      const { response } = await answer((_environ, startResponse) => {
        startResponse("200 OK", headers as unknown as HeaderList);
        return [bytes("body")];
      });
      assert.equal(response.headers.get("X-Constant"), "1");
    }
    assert.deepEqual(headers, [...PLAIN, ["X-Constant", "1"], ["Content-Length", "4"]]);
    const bad: unknown[] = [
      undefined,
      null,
      "X: y",
      { "X-Test": "1" },
      new Headers(),
      new Map([["X-Test", "1"]]),
      new Set([["X-Test", "1"]]),
      ["X-Test: 1"],
      [["X-Test"]],
      [["X-Test", "1", "2"]],
      [["X-Test", 1]],
      [[Symbol.iterator, "1"]],
      [undefined],
    ];
    for (const list of bad) {
      await answer(unchecked((_environ, startResponse) => {
        assert.throws(() => startResponse("200 OK", list as HeaderList), { name: "TypeError", message: /header/ });
        return [];
      }));
    }
  },
);

requirement(46, "The start_response() Callable", "a header name is a field name of HTTP", async () => {
  for (const name of ["", " ", "X:", "X Y", "X ", "é", "X\n", "X\0", "X(", "X/Y", "[X]", "X,", "\u4f60"]) {
    await answer(unchecked((_environ, startResponse) => {
      assert.throws(() => startResponse("200 OK", [[name, "value"]]), { name: "TypeError", message: /name/ }, name);
      return [];
    }));
  }
  const { response } = await answer((_environ, startResponse) => {
    startResponse("200 OK", [...PLAIN, ["X-!#$%&'*+.^_`|~09az", "value"]]);
    return [];
  });
  assert.equal(response.headers.get("X-!#$%&'*+.^_`|~09az"), "value");
});

requirement(47, "The start_response() Callable", "a header value has no control character", async () => {
  const controls = Array.from({ length: 32 }, (_, code) => String.fromCharCode(code)).filter((c) => c !== "\t");
  for (const control of [...controls, "\x7f", "\r\n", "\r\nX-Other: 1"]) {
    for (const value of [control, `a${control}b`, `a${control}`]) {
      await answer(unchecked((_environ, startResponse) => {
        assert.throws(() => startResponse("200 OK", [["X-Test", value]]), { name: "TypeError" }, JSON.stringify(value));
        return [];
      }));
    }
  }
});

requirement(48, "The start_response() Callable", "the Date that HTTP requires is added", async () => {
  await using server = start((_environ, startResponse) => {
    ok(startResponse);
    return [];
  });
  const { headers } = await exchange(server, request("/"));
  const dates = headers.filter(([name]) => name === "date");
  assert.equal(dates.length, 1);
  assert.ok(Math.abs(Date.parse(dates[0]![1]) - Date.now()) < 60_000);
});

requirement(49, "The start_response() Callable", "header names are compared without regard to case", async () => {
  const { response } = await answer(unchecked((_environ, startResponse) => {
    for (const name of ["CONNECTION", "Transfer-encoding", "uPGRADE"]) {
      assert.throws(() => startResponse("200 OK", [[name, "x"]], null), /hop-by-hop/);
    }
    assert.throws(() => startResponse("200 OK", [["content-length", "1"], ["CONTENT-LENGTH", "1"]], null), /length/i);
    startResponse("200 OK", [["CONTENT-length", "2"], ["x-CASE", "kept"]], null);
    return [bytes("longer")];
  }));
  assert.equal(await response.text(), "lo");
  assert.equal(response.headers.get("X-Case"), "kept");
});

requirement(50, "The start_response() Callable", "hop-by-hop headers are refused", async () => {
  const headers: HeaderList = [
    ["Connection", "close"],
    ["Keep-Alive", "timeout=5"],
    ["Proxy-Authenticate", "Basic"],
    ["Proxy-Authorization", "Basic x"],
    ["TE", "trailers"],
    ["Trailer", "Expires"],
    ["Trailers", "Expires"],
    ["Transfer-Encoding", "chunked"],
    ["Upgrade", "websocket"],
  ];
  for (const header of headers) {
    const { response, errors } = await answer(unchecked((_environ, startResponse) => {
      startResponse("200 OK", [...PLAIN, header]);
      return [];
    }));
    assert.equal(response.status, 500);
    assert.match(errors.text, new RegExp(`"${header[0]}" is hop-by-hop`));
  }
});

requirement(51, "The start_response() Callable", "headers are checked when startResponse is called", async () => {
  const { response, errors } = await answer(unchecked((_environ, startResponse) => {
    try {
      startResponse("200 OK", [["X-Test", "a\nb"]]);
    } catch (error) {
      startResponse("503 Service Unavailable", PLAIN, error);
    }
    return [bytes("noticed in time")];
  }));
  assert.equal(response.status, 503);
  assert.equal(await response.text(), "noticed in time");
  assert.equal(errors.text, "");
});

requirement(
  52,
  "The start_response() Callable",
  "startResponse sends nothing; the headers leave with the first chunk, the first write or the end",
  async () => {
    const received = { "/chunk": new Event("the chunk at the client"), "/write": new Event("the data at the client") };
    const change = (startResponse: StartResponse): Write => {
      startResponse("200 OK", PLAIN);
      return startResponse("203 Changed", PLAIN, new Error("Changed"));
    };
    const apps: Record<string, Application> = {
      "/chunk": async function* (_environ, startResponse) {
        startResponse("200 OK", PLAIN);
        yield EMPTY;
        await settle();
        startResponse("203 Changed", PLAIN, new Error("Changed"));
        yield bytes("first ");
        await received["/chunk"].wait();
        yield bytes("second");
      },
      "/write": async (_environ, startResponse) => {
        const write = change(startResponse);
        await write(EMPTY);
        await settle();
        write(bytes("first "));
        await received["/write"].wait();
        return [bytes("second")];
      },
      "/end": (_environ, startResponse) => {
        change(startResponse);
        return [EMPTY];
      },
    };
    await using server = start((environ, startResponse) => apps[environ.PATH_INFO]!(environ, startResponse));
    for (const [path, event] of Object.entries(received)) {
      const client = await Client.connect(server);
      await client.send(request(path));
      await client.until(/^HTTP\/1\.1 203 .*\r\n\r\n.*first /s);
      event.happen();
      const reply = parse(await client.end());
      assert.equal(reply.status, 203);
      assert.equal(reply.body, "first second");
    }
    const reply = await exchange(server, request("/end"));
    assert.equal(reply.status, 203);
    assert.equal(reply.body, "");
    assert.equal(server.errors.text, "");
  },
);

requirement(
  53,
  "The start_response() Callable",
  "even headers with a Content-Length of 0 wait for the end",
  async () => {
    await using server = start(function* (_environ, startResponse) {
      ok(startResponse, ["Content-Length", "0"]);
      yield EMPTY;
      startResponse("503 Service Unavailable", PLAIN, new Error("Too busy"));
      yield bytes("sorry");
    });
    const { status, body } = await exchange(server, request("/"));
    assert.equal(status, 503);
    assert.equal(body, "sorry");
  },
);

requirement(55, "The start_response() Callable", "with an error, status and headers are replaced", async () => {
  for (const error of [new Error("Caught"), "thrown text", 0, null, false]) {
    const { response } = await answer((_environ, startResponse) => {
      startResponse("200 OK", [...PLAIN, ["X-First", "1"], ["Content-Length", "100"], ["Set-Cookie", "a=1"]]);
      startResponse("500 Oops", [...PLAIN, ["X-Second", "2"]], error);
      return [bytes("instead")];
    });
    assert.equal(response.status, 500);
    assert.equal(response.headers.get("X-Second"), "2");
    for (const name of ["X-First", "Set-Cookie"]) assert.ok(!response.headers.has(name), name);
    assert.equal(await response.text(), "instead");
  }
});

requirement(
  56,
  "The start_response() Callable",
  "with an error after the headers were sent, that error is thrown",
  async () => {
    for (const error of [new Error("Too late"), "thrown text", 0, null]) {
      const thrown: unknown[] = [];
      const { response, errors } = await answer(function* (_environ, startResponse) {
        ok(startResponse);
        yield bytes("sent");
        try {
          startResponse("500 Oops", PLAIN, error);
        } catch (caught) {
          thrown.push(caught);
          throw caught;
        }
      });
      await assert.rejects(response.text());
      assert.deepEqual(thrown, [error]);
      assert.ok(thrown[0] === error);
      assert.equal(reportsIn(errors).length, 1);
    }
  },
);

requirement(
  57,
  "The start_response() Callable",
  "a second call without an error is fatal, even after a failed first",
  async () => {
    for (const first of ["200 OK", "bad"]) {
      const { response, errors } = await answer(unchecked((_environ, startResponse) => {
        try {
          startResponse(first, PLAIN);
        } catch {
          // As an application would that only wants to try another status.
        }
        startResponse("201 Created", PLAIN);
        return [bytes("body")];
      }));
      assert.equal(response.status, 500, first);
      assert.match(errors.text, /again.*"201 Created"/, first);
    }
  },
);

requirement(
  58,
  "The start_response() Callable",
  "an application that swallows the error is aborted all the same",
  async () => {
    await using server = start(function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("sent");
      try {
        startResponse("500 Oops", PLAIN, new Error("Too late"));
      } catch {
        // What the PEP forbids.
      }
      yield bytes("kept from the client");
    });
    const reply = await exchange(server, request("/"));
    assert.equal(reply.complete, false);
    assert.doesNotMatch(reply.body, /kept/);
    assert.equal(reportsIn(server.errors).length, 1);
    assert.match(server.errors.text, /Too late/);
  },
);

requirement(59, "The start_response() Callable", "the error is not kept after the call", () => {
  const output = outputOf(
    `const turn = () => new Promise((resolve) => setImmediate(resolve));
     const end = Promise.withResolvers();
     const kept = [];
     function replace(startResponse) {
       const error = new Error("Caught");
       kept.push(new WeakRef(error));
       startResponse("500 Oops", [], error);
     }
     const handler = wsgi.toFetch(async (_environ, startResponse) => {
       startResponse("200 OK", []);
       replace(startResponse);
       await end.promise;
       return [];
     });
     const answers = Array.from({ length: 50 }, () => handler(new Request("http://test.example/")));
     for (let time = 0; time < 5; time++) {
       await turn();
       typeof Bun === "undefined" ? gc() : Bun.gc(true);
     }
     console.log(kept.filter((reference) => reference.deref()).length);
     end.resolve();
     await Promise.all(answers);`,
    ["--v8-flags=--expose-gc"],
  );
  // Bun's collector takes what looks like a pointer for one, so a few may survive.
  assert.ok(Number(output) < 10, output);
});

requirement(60, "Specification Details", "startResponse may be called as late as before the first chunk", async () => {
  const apps: Record<string, ApplicationLike> = {
    "in the first iteration": function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("late");
    },
    "after empty chunks": function* (_environ, startResponse) {
      yield EMPTY;
      yield EMPTY;
      ok(startResponse);
      yield bytes("late");
    },
    "after waiting": async function* (_environ, startResponse) {
      await settle();
      ok(startResponse);
      yield bytes("late");
    },
    "at the end of an empty body": async function* (_environ, startResponse) {
      yield* [] as Uint8Array[];
      await settle();
      ok(startResponse);
    },
  };
  for (const [moment, app] of Object.entries(apps)) {
    const { response, errors } = await answer(app);
    assert.equal(response.status, 200, moment);
    assert.equal(await response.text(), moment.startsWith("at the end") ? "" : "late");
    assert.equal(errors.text, "", moment);
  }
  const { response, errors } = await answer(unchecked(function* (_environ, startResponse) {
    yield bytes("early");
    ok(startResponse);
  }));
  assert.equal(response.status, 500);
  assert.match(errors.text, /startResponse was not called/);
});

requirement(61, "The write() Callable", "what is written leaves while the application goes on", async () => {
  const received = [new Event("the first data at the client"), new Event("the second data at the client")];
  await using server = start(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("first "));
    await received[0]!.wait();
    await write(bytes("second "));
    await received[1]!.wait();
    return [];
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/\r\n\r\n.*first /s);
  received[0]!.happen();
  await client.until(/second /);
  received[1]!.happen();
  const reply = parse(await client.end());
  assert.equal(reply.body, "first second ");
  assert.ok(reply.complete);
});

requirement(62, "The write() Callable", "what is returned follows all that was written", async () => {
  const apps: Record<string, Application> = {
    "not waited for": (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      for (const word of ["a", "b", "c"]) write(bytes(word));
      return [bytes("d"), bytes("e")];
    },
    "waited for": async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      for (const word of ["a", "b", "c"]) await write(bytes(word));
      return new Set([bytes("d"), bytes("e")]);
    },
  };
  for (const [how, app] of Object.entries(apps)) {
    const { response, errors } = await answer(app);
    assert.equal(await response.text(), "abcde", how);
    assert.equal(errors.text, "", how);
  }
});

requirement(63, "The write() Callable", "write throws when it is called from inside the body", async () => {
  const { response, errors } = await answer(unchecked((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    return (function* () {
      write(bytes("from inside"));
      yield bytes("body");
    })();
  }));
  assert.equal(response.status, 500);
  assert.equal(reportsIn(errors).length, 1);
  assert.match(errors.text, /write was called after the body was returned/);
});

requirement(
  65,
  "The write() Callable",
  "write comes from startResponse alone, and throws when all is over",
  async () => {
    let write: Write | undefined;
    const { response, errors } = await answer(unchecked((_environ, startResponse) => {
      write = startResponse("200 OK", PLAIN);
      return [bytes("all")];
    }));
    assert.equal(await response.text(), "all");
    assert.throws(() => write!(bytes("more")), /write was called after the body was returned/);
    assert.equal(errors.text, "");
  },
);

requirement(67, "Specification Details", "close is called once, however the response ends", async () => {
  interface End {
    end: string;
    method?: string;
    status?: string;
    headers?: HeaderList;
    /** Breaks a rule. */
    isBad?: boolean;
    chunks?: () => Iterable<Uint8Array>;
    client?: (response: Response) => Promise<unknown>;
  }
  const aborted = (response: Response) => assert.rejects(response.text());
  const ends: End[] = [
    { end: "normal" },
    { end: "empty", chunks: () => [] },
    { end: "an array", chunks: () => [bytes("a"), bytes("b")] },
    { end: "an error before the first chunk", chunks: () => failing(new Error("Planned")) },
    { end: "an error after the first chunk", chunks: () => failing(new Error("Planned"), "a"), client: aborted },
    { end: "no status", isBad: true, status: "" },
    { end: "a chunk that is none", isBad: true, chunks: () => new Set([1]) as unknown as Iterable<Uint8Array> },
    { end: "an array with a chunk that is none", isBad: true, chunks: () => [1] as unknown as Iterable<Uint8Array> },
    { end: "HEAD", method: "HEAD" },
    { end: "HEAD with an array", method: "HEAD", chunks: () => [bytes("a")] },
    { end: "204", isBad: true, status: "204 No Content", headers: [] },
    { end: "304", isBad: true, status: "304 Not Modified", headers: [] },
    { end: "too long", isBad: true, headers: [...PLAIN, ["Content-Length", "1"]] },
    { end: "too short", isBad: true, headers: [...PLAIN, ["Content-Length", "100"]], client: aborted },
    {
      end: "too short, an array",
      isBad: true,
      headers: [...PLAIN, ["Content-Length", "100"]],
      chunks: () => [bytes("a")],
    },
    { end: "the client leaves", client: (response) => response.body!.cancel() },
  ];
  for (const { end, method = "GET", status = "200 OK", headers = PLAIN, isBad, chunks, client } of ends) {
    const closed = new Event(`close after ${end}`);
    let count = 0;
    const app: Application = (_environ, startResponse) => {
      if (status) startResponse(status, headers);
      const body = chunks?.() ?? new Set([bytes("a"), bytes("b"), bytes("c")]);
      return Object.assign(body, {
        close: () => {
          count++;
          closed.happen();
        },
      });
    };
    const { response } = await answer(isBad ? unchecked(app) : app, new Request(HERE, { method }));
    await (client ?? ((response) => response.text()))(response);
    await closed.wait();
    await settle();
    assert.equal(count, 1, end);
  }
});

requirement(69, "Specification Details", "nothing is used of a body but iteration and close", async () => {
  const used = new Set<string>();
  const body = new Proxy({
    *[Symbol.iterator]() {
      yield bytes("a");
      yield bytes("b");
    },
    close() {},
  }, {
    get(target, name, receiver) {
      used.add(String(name));
      return Reflect.get(target, name, receiver);
    },
  });
  const { response, errors } = await answer((_environ, startResponse) => {
    ok(startResponse);
    return body;
  });
  assert.equal(await response.text(), "ab");
  assert.equal(errors.text, "");
  // "then" is how a promise of a body is told from a body.
  const allowed = ["then", "Symbol(Symbol.asyncIterator)", "Symbol(Symbol.iterator)", "close"];
  assert.deepEqual([...used].filter((name) => !allowed.includes(name)), []);
  assert.ok(used.has("close"));
});

requirement(70, "Specification Details", "a chunk has left before the next is asked for", async () => {
  let asked = 0;
  const { response } = await answer(function* (_environ, startResponse) {
    ok(startResponse);
    while (asked < 5) yield bytes(`${++asked}`);
  });
  const reader = response.body!.getReader();
  for (let number = 1; number <= 5; number++) {
    const { value } = await reader.read();
    await settle();
    assert.equal(text(value!), `${number}`);
    assert.equal(asked, number);
  }
  assert.ok((await reader.read()).done);
});

requirement(71, "Specification Details", "chunks are sent as they are", async () => {
  const all = Uint8Array.from({ length: 256 }, (_, byte) => byte);
  const lines = bytes("\n\r\r\n\n\r0\r\n\r\n");
  await using server = start((environ, startResponse) => {
    startResponse("200 OK", [["Content-Type", "text/plain; charset=utf-8"]]);
    return environ.PATH_INFO === "/array" ? [all, lines] : new Set([all, lines]);
  });
  const expected = [...all, ...lines].map((byte) => String.fromCharCode(byte)).join("");
  for (const path of ["/array", "/stream"]) {
    const { body, complete } = await exchange(server, request(path));
    assert.equal(body, expected, path);
    assert.ok(complete, path);
  }
});

requirement(72, "Specification Details", "a chunk that is not bytes is refused", async () => {
  const chunks: [found: string, chunk: unknown][] = [
    ['"text"', "text"],
    ["1", 1],
    ["undefined", undefined],
    ["null", null],
    ["Array", [1, 2]],
    ["ArrayBuffer", new ArrayBuffer(1)],
    ["Uint16Array", new Uint16Array(1)],
    ["DataView", new DataView(new ArrayBuffer(1))],
  ];
  for (const [found, chunk] of chunks) {
    for (const wrap of [(chunk: unknown) => [chunk], (chunk: unknown) => new Set([chunk])]) {
      const { response, errors } = await answer(unchecked((_environ, startResponse) => {
        ok(startResponse);
        return wrap(chunk) as Iterable<Uint8Array>;
      }));
      assert.equal(response.status, 500, found);
      assert.equal(reportsIn(errors).length, 1, found);
      assert.match(errors.text, new RegExp(`chunk.*${found}.*Uint8Array`));
    }
  }
});

requirement(73, "Handling the Content-Length Header", "no more is sent than Content-Length declares", async () => {
  let returned = false;
  const endless = function* (): Generator<Uint8Array> {
    try {
      for (;;) yield bytes("abc");
    } finally {
      returned = true;
    }
  };
  const bodies: (() => Iterable<Uint8Array>)[] = [() => [bytes("abcabc")], () => [bytes("abc"), bytes("abc")], endless];
  for (const body of bodies) {
    const { response, errors } = await answer(unchecked((_environ, startResponse) => {
      ok(startResponse, ["Content-Length", "5"]);
      return body();
    }));
    assert.equal(await response.text(), "abcab");
    await errors.matches(/Content-Length/);
    assert.equal(reportsIn(errors).length, 1);
  }
  assert.ok(returned);

  const written = new Event<unknown>("what becomes of data that is too much");
  const { response } = await answer(unchecked(async (_environ, startResponse) => {
    const write = startResponse("200 OK", [["Content-Length", "5"]]);
    await write(bytes("abcab"));
    try {
      await write(bytes("c"));
      written.happen("No error");
    } catch (error) {
      written.happen(error);
    }
    return [];
  }));
  assert.equal(await response.text(), "abcab");
  assert.match(String(await written.wait()), /Content-Length/);
});

requirement(74, "Handling the Content-Length Header", "too little closes the connection, and is reported", async () => {
  await using server = start(unchecked((_environ, startResponse) => {
    ok(startResponse, ["Content-Length", "5"]);
    return new Set([bytes("ab"), bytes("c")]);
  }));
  const reply = await exchange(server, request("/"));
  assert.ok(!reply.complete);
  assert.equal(reportsIn(server.errors).length, 1);
  assert.match(server.errors.text, /Content-Length declares 5 bytes, the body has 3/);
  const { response, errors } = await answer(unchecked((_environ, startResponse) => {
    ok(startResponse, ["Content-Length", "5"]);
    return [bytes("abc")];
  }));
  assert.equal(response.status, 500);
  assert.match(errors.text, /Content-Length declares 5 bytes, the body has 3/);
});

requirement(
  75,
  "Handling the Content-Length Header",
  "without a Content-Length the end can be seen all the same",
  async () => {
    await using server = start((environ, startResponse) => {
      startResponse("200 OK", PLAIN);
      const chunks = [bytes("abc"), bytes("de")];
      return environ.PATH_INFO === "/one" ? [bytes("abcde")] : environ.PATH_INFO === "/two" ? chunks : new Set(chunks);
    });
    for (const path of ["/one", "/two", "/stream"]) {
      const reply = await exchange(server, request(path));
      assert.equal(reply.body, "abcde", path);
      assert.ok(reply.complete, path);
      const framing = reply.headers.filter(([name]) => /^(content-length|transfer-encoding)$/.test(name));
      assert.deepEqual(framing, [path === "/stream" ? ["transfer-encoding", "chunked"] : ["content-length", "5"]]);
    }
    assert.equal((await exchange(server, "GET /stream HTTP/1.0\r\n\r\n")).body, "abcde");
  },
);

requirement(76, "Handling the Content-Length Header", "an application cannot apply a transfer encoding", async () => {
  for (const coding of ["chunked", "gzip", "identity"]) {
    const { response, errors } = await answer(unchecked((_environ, startResponse) => {
      ok(startResponse, ["Transfer-Encoding", coding]);
      return [bytes("3\r\nabc\r\n0\r\n\r\n")];
    }));
    assert.equal(response.status, 500);
    assert.match(errors.text, /Transfer-Encoding/);
  }
});

requirement(77, "Buffering and Streaming", "no chunk is held back while the next is made", async () => {
  const received = Array.from({ length: 4 }, (_, number) => new Event(`chunk ${number} at the client`));
  await using server = start(async function* (_environ, startResponse) {
    ok(startResponse);
    for (const [number, event] of received.entries()) {
      yield bytes(`<${number}>`);
      await event.wait();
    }
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  for (const [number, event] of received.entries()) {
    await client.until(new RegExp(`<${number}>`));
    event.happen();
  }
  assert.equal(parse(await client.end()).body, "<0><1><2><3>");
});

requirement(82, "Unicode Issues", "strings hold nothing beyond U+00FF, either way", async () => {
  const latin1 = (text: string) => [...bytes(text)].map((byte) => String.fromCharCode(byte)).join("");
  const environ = await environOf(
    request(`${encodeURI("/你")}?${encodeURI("你")}`, { headers: [latin1("X-Test: 你")] }),
  );
  assert.equal(environ.HTTP_X_TEST, latin1("你"));
  assert.equal(environ.PATH_INFO, latin1("/你"));
  for (const [name, value] of Object.entries(environ)) {
    if (typeof value === "string") assert.doesNotMatch(value, /[^\p{ASCII}\x80-\xff]/u, name);
  }
  const heads: [status: string, headers: HeaderList][] = [
    ["200 \u4f60", []],
    ["200 OK", [["X-\u4f60", "1"]]],
    ["200 OK", [["X-Test", "\u4f60"]]],
    ["200 OK", [["X-Test", "\u0100"]]],
  ];
  for (const [status, headers] of heads) {
    const { response, errors } = await answer(unchecked((_environ, startResponse) => {
      assert.throws(() => startResponse(status, headers), { name: "TypeError" });
      return [];
    }));
    assert.equal(response.status, 500);
    assert.equal(reportsIn(errors).length, 1);
  }
});

requirement(83, "Unicode Issues", "data is bytes, read or written", async () => {
  const inputOf = () => toEnviron(post("line\n"))["wsgi.input"];
  const reads = [await inputOf().read(), await inputOf().read(1), await inputOf().readline()];
  for (const chunk of [...reads, ...await inputOf().readlines()]) assert.ok(chunk instanceof Uint8Array);
  for await (const line of inputOf()) assert.ok(line instanceof Uint8Array);
  const { response } = await answer(unchecked((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    for (const chunk of ["text", 1, [1], new ArrayBuffer(1)]) {
      assert.throws(() => write(chunk as never), { name: "TypeError", message: /Uint8Array/ });
    }
    return [bytes("bytes")];
  }));
  assert.equal(await response.text(), "bytes");
});

requirement(84, "Unicode Issues", "header values in Latin-1 and in RFC 2047 reach the client as they are", async () => {
  await using server = start((_environ, startResponse) => {
    startResponse("200 OK", [...PLAIN, ["X-Latin", "caf\xe9"], ["X-Encoded", "=?utf-8?q?caf=C3=A9?="]]);
    return [];
  });
  const headers = new Map((await exchange(server, request("/"))).headers);
  assert.equal(headers.get("x-latin"), "caf\xe9");
  assert.equal(headers.get("x-encoded"), "=?utf-8?q?caf=C3=A9?=");
});

requirement(86, "Error Handling", "what aborts the application or its body is caught and reported", async () => {
  const error = new Error("Planned failure");
  const stages: [stage: string, app: ApplicationLike, status: number, aborts?: boolean][] = [
    ["call", () => {
      throw error;
    }, 500],
    ["promise", () => Promise.reject(error), 500],
    ["first chunk", (_environ, startResponse) => {
      ok(startResponse);
      return failing(error);
    }, 500],
    [
      "second chunk",
      (_environ, startResponse) => {
        ok(startResponse);
        return failing(error, "sent");
      },
      200,
      true,
    ],
    ["iteration", (_environ, startResponse) => {
      ok(startResponse);
      return {
        [Symbol.iterator]: () => {
          throw error;
        },
      };
    }, 500],
    ["close", (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("sent")], {
        close: () => {
          throw error;
        },
      });
    }, 200],
    ["close, later", (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("sent")], { close: () => Promise.reject(error) });
    }, 200],
  ];
  for (const [stage, app, status, aborts = false] of stages) {
    const { response, errors } = await answer(app);
    assert.equal(response.status, status, stage);
    if (aborts) await assert.rejects(response.text(), () => true, stage);
    else assert.equal(await response.text(), status === 500 ? "Internal Server Error\n" : "sent", stage);
    await errors.matches(/Planned failure/);
    assert.equal(reportsIn(errors).length, 1, stage);
  }
});

requirement(87, "Error Handling", "nothing is added to a response that failed half-way", async () => {
  await using server = start(async function* (_environ, startResponse) {
    startResponse("200 OK", [["Content-Type", "text/html"]]);
    yield bytes("<p>half");
    await received.wait();
    throw new Error("Planned failure");
  });
  const received = new Event("the first half at the client");
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/half/);
  received.happen();
  const reply = parse(await client.end());
  assert.equal(reply.body, "<p>half");
  assert.ok(!reply.complete);
});

requirement(89, "HTTP 1.1 Expect/Continue", "a client that expects 100 Continue gets it", async () => {
  await using server = start(async (environ, startResponse) => {
    const body = await environ["wsgi.input"].read();
    ok(startResponse);
    return [body];
  });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 4", "Expect: 100-continue"] }));
  const [interim] = await client.until(/^HTTP\/1\.1 100 Continue\r\n\r\n/);
  await client.send("body");
  const reply = parse((await client.end()).slice(interim.length));
  assert.equal(reply.status, 200);
  assert.equal(reply.body, "body");
});

requirement(90, "Other HTTP Features", "a chunked request is decoded", async () => {
  await using server = start(async (environ, startResponse) => {
    const body = await environ["wsgi.input"].read();
    ok(startResponse);
    return [body];
  });
  const { body } = await exchange(
    server,
    request("/", {
      method: "POST",
      headers: ["Transfer-Encoding: chunked"],
      body: "6\r\nhello \r\n5;extension\r\nworld\r\n0\r\n\r\n",
    }),
  );
  assert.equal(body, "hello world");
});

requirement(92, "Other HTTP Features", "the response is left alone, but for what HTTP requires", async () => {
  const long = "a".repeat(2000);
  await using server = start(unchecked((environ, startResponse) => {
    const status = environ.QUERY_STRING || "299 Own";
    startResponse(status.replaceAll("+", " "), [["X-One", "1"], ["Content-Language", "en"], ["Set-Cookie", "a=1"], [
      "Set-Cookie",
      "b=2",
    ]]);
    return environ.PATH_INFO === "/array" ? [bytes(long)] : new Set([bytes(long)]);
  }));
  const headers = ["Accept-Encoding: gzip, br, deflate", "Accept: application/json"];
  const technical = ["connection", "content-length", "date", "keep-alive", "transfer-encoding"];
  for (const path of ["/array", "/stream"]) {
    const reply = await exchange(server, request(path, { headers }));
    assert.equal(reply.status, 299, path);
    assert.equal(reply.body, long, path);
    assert.deepEqual(reply.headers.filter(([name]) => !technical.includes(name)).sort(), [
      ["content-language", "en"],
      ["set-cookie", "a=1"],
      ["set-cookie", "b=2"],
      ["x-one", "1"],
    ], path);
    assert.equal((await exchange(server, request(path, { method: "HEAD" }), { head: true })).body, "", path);
    for (const status of ["204+No+Content", "304+Not+Modified"]) {
      const bodiless = await exchange(server, request(`${path}?${status}`), { head: true });
      assert.equal(bodiless.status, Number(status.slice(0, 3)), path);
      assert.equal(bodiless.body, "", path);
    }
  }
});

requirement(93, "Other HTTP Features", "cache validation, ranges and codings are left to the application", async () => {
  const seen: Environ[] = [];
  await using server = start((environ, startResponse) => {
    seen.push(environ);
    ok(startResponse, ["ETag", '"same"'], ["Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT"], [
      "Accept-Ranges",
      "bytes",
    ]);
    return environ.PATH_INFO === "/file"
      ? environ["wsgi.file_wrapper"](new Blob(["whole body"]))
      : [bytes("whole body")];
  });
  const headers = ['If-None-Match: "same"', "If-Modified-Since: Sat, 01 Jan 2022 00:00:00 GMT", "Range: bytes=0-3"];
  for (const path of ["/", "/file"]) {
    const reply = await exchange(server, request(path, { headers }));
    assert.equal(reply.status, 200, path);
    assert.equal(reply.body, "whole body", path);
  }
  assert.equal(seen[0]?.HTTP_RANGE, "bytes=0-3");
  assert.equal(seen[0]?.HTTP_IF_NONE_MATCH, '"same"');
});

requirement(94, "Thread Support", "with max 1 requests are served one after the other", async () => {
  for (const [max, most] of [[1, 1], [2, 2], [Infinity, 4]] as const) {
    let inside = 0;
    let seen = 0;
    const app: Application = async function* (_environ, startResponse) {
      seen = Math.max(seen, ++inside);
      await settle();
      ok(startResponse);
      yield bytes("a");
      await settle();
      yield bytes("b");
      inside--;
    };
    const handler = toFetch(limitConcurrency(app, { max }));
    const texts = await within(
      Promise.all(Array.from({ length: 4 }, async () => (await handler(new Request(HERE))).text())),
      "four answers",
    );
    assert.deepEqual(texts, ["ab", "ab", "ab", "ab"]);
    assert.equal(seen, most);
  }
});

requirement(
  95,
  "Application Configuration",
  "the deployer puts pairs into environ, which replace nothing",
  async () => {
    const database = { name: "test" };
    const options = {
      "example.database": database,
      EXAMPLE_MODE: "test",
      REQUEST_METHOD: "PUT",
      "wsgi.version": [2, 0],
    };
    const environ = await environOf(request("/"), { environ: options });
    assert.equal(environ["example.database"], database);
    assert.equal(environ.EXAMPLE_MODE, "test");
    assert.equal(environ.REQUEST_METHOD, "GET");
    assert.deepEqual(environ["wsgi.version"], [1, 0]);
  },
);

requirement(
  97,
  "Server Extension APIs",
  "what offers the request or the response in another form goes by the interface",
  async () => {
    const rewriting: Middleware = (app) => {
      const inner = application(app);
      return async (environ, startResponse) => {
        const body = text(await environ["wsgi.input"].read()).toUpperCase();
        environ.REQUEST_METHOD = "PUT";
        environ.PATH_INFO = "/rewritten";
        environ.QUERY_STRING = "";
        environ.HTTP_X_TEST = "rewritten";
        environ["wsgi.input"] = toEnviron(post(body))["wsgi.input"];
        delete environ.CONTENT_LENGTH;
        return inner(environ, (status, headers, error) => startResponse(status, [...headers, ["X-Added", "1"]], error));
      };
    };
    const handler = async (request: Request) => {
      const { method, url, headers } = request;
      return Response.json([
        method,
        new URL(url).pathname + new URL(url).search,
        headers.get("X-Test"),
        await request.text(),
      ]);
    };
    const apps: Record<string, Application> = {
      fromFetch: fromFetch(handler),
      toRequest: async (environ, startResponse) => {
        ok(startResponse);
        return [bytes(await (await handler(toRequest(environ))).text())];
      },
    };
    for (const [name, app] of Object.entries(apps)) {
      const request = new Request(`${HERE}sent?sent`, { method: "POST", body: "sent", headers: { "X-Test": "sent" } });
      const { response } = await answer(rewriting(app), request);
      assert.deepEqual(await response.json(), ["PUT", "/rewritten", "rewritten", "SENT"], name);
      assert.equal(response.headers.get("X-Added"), "1", name);
    }
  },
);

requirement(99, "URL Reconstruction", "environ has what the URL of the request is made of", async () => {
  const quote = (path: string) =>
    path.replace(/[^\w./~-]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`);
  const reconstruct = (environ: Environ) => {
    const { HTTP_HOST: host, SERVER_NAME, SERVER_PORT, SCRIPT_NAME, PATH_INFO, QUERY_STRING } = environ;
    const scheme = environ["wsgi.url_scheme"];
    const port = SERVER_PORT === (scheme === "https" ? "443" : "80") ? "" : `:${SERVER_PORT}`;
    const query = QUERY_STRING ? `?${QUERY_STRING}` : "";
    return `${scheme}://${host || SERVER_NAME + port}${quote(SCRIPT_NAME)}${quote(PATH_INFO)}${query}`;
  };
  const urls = [
    "http://test.example/",
    "http://test.example:8080/a%20b?c=d%20e&f",
    "https://test.example/caf%C3%A9/%FF",
    "https://[::1]:8443/%25/%3F?%3F",
  ];
  for (const url of urls) assert.equal(reconstruct(toEnviron(new Request(url))), url);
  const mounted = "http://test.example/app%20s/x";
  assert.equal(reconstruct(toEnviron(new Request(mounted), { scriptName: "/app s" })), mounted);

  let environ: Environ | undefined;
  await using server = start((given, startResponse) => {
    environ = given;
    ok(startResponse);
    return [];
  });
  await exchange(server, request("/a%20b?c"));
  assert.equal(reconstruct(environ!), "http://test.example/a%20b?c");
  await exchange(server, "GET /a HTTP/1.0\r\n\r\n");
  const { hostname, port, pathname } = new URL(reconstruct(environ!));
  assert.deepEqual([port, pathname], [String(server.port), "/a"]);
  if (OTHER_SERVER === undefined) assert.equal(hostname, "127.0.0.1");
});

requirement(100, "Optional Platform-Specific File Handling", "wsgi.file_wrapper makes a body of a file", async () => {
  const wrap = toEnviron(new Request(HERE))["wsgi.file_wrapper"];
  assert.equal(typeof wrap, "function");
  const files = [
    new MemoryFile("the file"),
    new Blob(["the file"]),
    new Blob(["the file"]).stream(),
    { read: () => Promise.resolve(EMPTY) },
  ];
  for (const file of files) {
    for (const blockSize of [undefined, 3]) {
      if (file instanceof ReadableStream && blockSize) continue;
      const { response, errors } = await answer((environ, startResponse) => {
        ok(startResponse);
        if (file instanceof MemoryFile) file.position = 0;
        return blockSize ? environ["wsgi.file_wrapper"](file, blockSize) : environ["wsgi.file_wrapper"](file);
      });
      assert.equal(await response.text(), file instanceof MemoryFile || !("read" in file) ? "the file" : "");
      assert.equal(errors.text, "");
    }
  }
});

requirement(
  101,
  "Optional Platform-Specific File Handling",
  "a wrapper that is not returned transmits nothing",
  async () => {
    const file = new MemoryFile("the file");
    const { response } = await answer((environ, startResponse) => {
      ok(startResponse);
      const wrapper = environ["wsgi.file_wrapper"](file);
      assert.ok(Symbol.iterator in wrapper || Symbol.asyncIterator in wrapper);
      return [bytes("something else")];
    });
    assert.equal(await response.text(), "something else");
    assert.deepEqual(file.reads, []);
    assert.equal(file.closed, 0);
  },
);

requirement(102, "Optional Platform-Specific File Handling", "the wrapper's close closes the file", async () => {
  const file = new MemoryFile("the file");
  await toEnviron(new Request(HERE))["wsgi.file_wrapper"](file).close?.();
  assert.equal(file.closed, 1);
  const cases: [how: string, client: (response: Response) => Promise<unknown>, init?: RequestInit][] = [
    ["read", (response) => response.text()],
    ["left", (response) => response.body!.cancel()],
    ["HEAD", (response) => response.text(), { method: "HEAD" }],
  ];
  for (const [how, client, init] of cases) {
    const file = new MemoryFile("the file");
    const { response } = await answer((environ, startResponse) => {
      ok(startResponse);
      return environ["wsgi.file_wrapper"](file, 2);
    }, new Request(HERE, init));
    await client(response);
    await settle();
    assert.equal(file.closed, 1, how);
  }
});

requirement(
  103,
  "Optional Platform-Specific File Handling",
  "middleware sees a wrapper as any other body",
  async () => {
    const shout: Middleware = (app) => {
      const inner = application(app);
      return async function* (environ, startResponse) {
        const body = await inner(environ, startResponse);
        try {
          for await (const chunk of body) yield bytes(text(chunk).toUpperCase());
        } finally {
          await body.close?.();
        }
      };
    };
    const files = [() => new MemoryFile("the file"), () => new Blob(["the file"])];
    for (const file of files) {
      const app: Application = (environ, startResponse) => {
        ok(startResponse);
        return environ["wsgi.file_wrapper"](file());
      };
      assert.equal(await (await answer(app)).response.text(), "the file");
      assert.equal(await (await answer(shout(app))).response.text(), "THE FILE");
    }
  },
);

requirement(
  104,
  "Optional Platform-Specific File Handling",
  "a file is sent from where it stands to its end, or to Content-Length",
  async () => {
    const cases: [length: string | undefined, expected: string][] = [[undefined, "456789"], ["6", "456789"], [
      "3",
      "456",
    ]];
    for (const [length, expected] of cases) {
      for (const blockSize of [2, 100]) {
        const { response, errors } = await answer((environ, startResponse) => {
          ok(startResponse, ...(length ? [["Content-Length", length] satisfies [string, string]] : []));
          const file = new MemoryFile("0123456789");
          const body = environ["wsgi.file_wrapper"](file, blockSize);
          file.position = 4;
          return body;
        });
        assert.equal(await response.text(), expected);
        await settle();
        assert.equal(errors.text, "", `Content-Length ${length}, blocks of ${blockSize}`);
      }
    }
  },
);

requirement(
  105,
  "Optional Platform-Specific File Handling",
  "an object that only reads and closes is wrapped, too",
  async () => {
    // Members that other kinds of file have, and that mean something else here or nothing at all.
    const members = [{}, { readable: true }, {
      readable: () => true,
      stream: "x",
      fd: 3,
      size: 1,
      [Symbol.iterator]: 1,
    }];
    for (const extra of members) {
      const blocks = ["one ", "two ", "three"];
      let closed = 0;
      const file = { ...extra, read: (_size: number) => bytes(blocks.shift() ?? ""), close: () => void closed++ };
      const { response, errors } = await answer((environ, startResponse) => {
        ok(startResponse);
        return environ["wsgi.file_wrapper"](file, 1);
      });
      assert.equal(await response.text(), "one two three");
      assert.equal(closed, 1);
      assert.equal(errors.text, "");
    }
  },
);

test("every requirement from 1 to 105 has one test, or a reason why it is not the server's", () => {
  const numbers = [...TESTED, ...Object.keys(NOT_THE_SERVERS).map(Number)].sort((a, b) => a - b);
  assert.deepEqual(numbers, Array.from({ length: 105 }, (_, index) => index + 1));
  assert.deepEqual(TESTED, TESTED.toSorted((a, b) => a - b));
  assert.deepEqual(Object.keys(IMPOSSIBLE).map(Number).filter((number) => !TESTED.includes(number)), []);
});
