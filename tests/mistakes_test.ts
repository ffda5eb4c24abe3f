/**
 * The mistakes of whoever is new to WSGI, and what the terminal says of each. Every message names the remedy in code.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import {
  accessLog,
  type ApplicationLike,
  cors,
  type Environ,
  errorPage,
  pipeline,
  requestId,
  secureHeaders,
  type StartResponse,
  toFetch,
  toRequest,
  validator,
} from "../mod.ts";
import { answer, bytes, ErrorLog, hello, HERE, PLAIN, RUNTIME, start, text, unchecked } from "./support.ts";

type Loose = (environ: never, startResponse: (...call: unknown[]) => (chunk: unknown) => Promise<void>) => unknown;

/** An application with a mistake that the types would have found. */
function loose(app: Loose): ApplicationLike {
  return app as ApplicationLike;
}

/** Starts a response, and returns anything. */
function returning(body: unknown): ApplicationLike {
  return loose((_environ, startResponse) => (startResponse("200 OK", PLAIN), body));
}

/** Starts a response with anything, and returns an empty body. */
function starting(...call: unknown[]): ApplicationLike {
  return loose((_environ, startResponse) => (startResponse(...call), []));
}

/** An application whose body is a promise. */
const inner = async (_environ: unknown, startResponse: unknown) => {
  (startResponse as StartResponse)("200 OK", PLAIN);
  return await Promise.resolve([bytes("inside")]);
};

/** The same, called by a middleware that takes the promise for the body. */
const unawaited = inner as unknown as (...call: unknown[]) => AsyncIterable<Uint8Array> & Iterable<Uint8Array>;

const NOT_STARTED =
  'startResponse was not called, expected startResponse("200 OK", [["Content-Type", "text/plain"]]) ' +
  "before the first chunk";
const NOT_BYTES = 'a chunk is "Hello", expected a Uint8Array: new TextEncoder().encode("…")';
const NO_BODY = "expected an iterable of bytes: return [bytes], or [] for none";
const RESPONSE = "the application returned a Response, expected an iterable of bytes: " +
  "fromFetch(handler) makes an application of a Fetch handler";

/** Each mistake, and its words. The server puts `Cannot …` before them, the validator the rule of PEP 3333. */
const MISTAKES: [mistake: string, app: ApplicationLike, rule: "start" | "send", words: string][] = [
  ["forgetting startResponse", () => [bytes("Hello")], "send", NOT_STARTED],
  ["forgetting startResponse, with nothing to send", () => [], "send", NOT_STARTED],
  [
    "forgetting startResponse in a generator",
    function* () {
      yield bytes("Hello");
    },
    "send",
    NOT_STARTED,
  ],
  [
    "returning a string",
    returning("Hello"),
    "send",
    'the application returned "Hello", expected an iterable of bytes: return [new TextEncoder().encode("…")]',
  ],
  ["forgetting return", returning(undefined), "send", `the application returned undefined, ${NO_BODY}`],
  [
    "returning bytes alone",
    returning(bytes("Hello")),
    "send",
    "the application returned a Uint8Array, expected an iterable of bytes: return [bytes]",
  ],
  ["not encoding", returning(["Hello"]), "send", NOT_BYTES],
  [
    "not encoding in a generator",
    loose(function* (_environ, startResponse) {
      startResponse("200 OK", PLAIN);
      yield "Hello";
    }),
    "send",
    NOT_BYTES,
  ],
  [
    "not encoding what is written",
    loose((_environ, startResponse) => (startResponse("200 OK", PLAIN)("Hello"), [])),
    "send",
    NOT_BYTES,
  ],
  [
    "a number as the status",
    starting(404, PLAIN),
    "start",
    'status 404 has no reason phrase, expected "404 Not Found"',
  ],
  ["a status alone", starting("200", PLAIN), "start", 'status "200" has no reason phrase, expected "200 OK"'],
  [
    "headers as an object",
    starting("200 OK", { "Content-Type": "text/plain" }),
    "start",
    'headers are an object, expected an array of pairs: [["Name", "value"]]',
  ],
  [
    "headers as Headers",
    starting("200 OK", new Headers()),
    "start",
    "headers are a Headers, expected an array of pairs: [...headers]",
  ],
  [
    "a header alone, without a list around it",
    starting("200 OK", ["Content-Type", "text/plain"]),
    "start",
    'header "Content-Type" is not a pair of strings, expected ["Name", "value"]',
  ],
  [
    "a number in a header",
    starting("200 OK", [["Content-Length", 5]]),
    "start",
    'header ["Content-Length", 5] is not a pair of strings, expected ["Name", "value"]',
  ],
  [
    "a header without a name",
    starting("200 OK", [[undefined, "text/plain"]]),
    "start",
    'header [undefined, "text/plain"] is not a pair of strings, expected ["Name", "value"]',
  ],
  [
    "a hole in the headers",
    starting("200 OK", [null]),
    "start",
    'header null is not a pair of strings, expected ["Name", "value"]',
  ],
  [
    "forgetting await on an inner application, whose body becomes a chunk",
    loose((environ, startResponse) => (startResponse("200 OK", PLAIN), [inner(environ, () => {})])),
    "send",
    "a chunk is a Promise, expected a Uint8Array: await it",
  ],
  [
    "text in a header",
    starting("200 OK", [["X-Name", "塩"]]),
    "start",
    'header "X-Name" has the value "塩", expected one character for each byte: toNativeString(value)',
  ],
  ["a Fetch handler", loose(() => new Response("Hello")), "send", RESPONSE],
  ["an asynchronous Fetch handler", loose(() => Promise.resolve(new Response("Hello"))), "send", RESPONSE],
  [
    "a second startResponse",
    loose((_environ, startResponse) => {
      startResponse("200 OK", PLAIN);
      startResponse("404 Not Found", PLAIN);
      return [];
    }),
    "start",
    'startResponse was called again with "404 Not Found", ' +
    'expected one call, or startResponse("404 Not Found", headers, error)',
  ],
];

for (const [mistake, app, rule, words] of MISTAKES) {
  test(`the server names the remedy of ${mistake}`, async () => {
    const { errors } = await answer(unchecked(app));
    assert.ok(errors.text.split("\n")[0]!.endsWith(`: TypeError: Cannot ${rule} the response: ${words}`), errors.text);
  });

  test(`the server says the same of ${mistake} behind middleware`, async () => {
    const log = (app: ApplicationLike) => accessLog(app, { write: () => {} });
    const { errors } = await answer(unchecked(pipeline(app, log, requestId, cors, secureHeaders)));
    assert.ok(errors.text.split("\n")[0]!.endsWith(`: TypeError: Cannot ${rule} the response: ${words}`), errors.text);
  });

  test(`the validator says the same of ${mistake}`, async () => {
    const { errors } = await answer(unchecked(validator(app)));
    assert.match(errors.text, /^Application failed on \S+ \S+: Error: The application broke PEP 3333, "[^"]+": /);
    assert.ok(errors.text.split("\n")[0]!.endsWith(`": ${words}`), errors.text);
  });
}

/** Mistakes of which the runtime tells in its own words. */
const HINTED: [mistake: string, app: ApplicationLike, hint: string][] = [
  ...[
    function* (...call: unknown[]) {
      for (const chunk of unawaited(...call)) yield chunk;
    },
    async function* (...call: unknown[]) {
      for await (const chunk of unawaited(...call)) yield chunk;
    },
    async function* (...call: unknown[]) {
      yield* unawaited(...call);
    },
    (...call: unknown[]) => [...unawaited(...call)],
    (...call: unknown[]) => {
      const body = unawaited(...call);
      return { [Symbol.iterator]: () => body[Symbol.iterator]() };
    },
  ].map((app, index): typeof HINTED[number] => [
    `forgetting await on an inner application (${index + 1})`,
    loose(app),
    "Is it the body of an inner application? Then await it: await app(environ, startResponse)",
  ]),
  ...[
    (request: Request) => new Response(new URL(request.url).pathname),
    (request: Request) => new Response(request.headers.get("Accept")),
    async (request: Request) => new Response(await request.text()),
  ].map((app, index): typeof HINTED[number] => [
    `a Fetch handler that reads its request (${index + 1})`,
    loose(app as Loose),
    "Is the application a Fetch handler? Then serve fromFetch(handler)",
  ]),
];

for (const [mistake, app, hint] of HINTED) {
  test(`a report ends with the remedy of ${mistake}`, async () => {
    const errors = new ErrorLog();
    assert.equal((await toFetch(app, { errors })(new Request(HERE))).status, 500);
    assert.ok(errors.text.endsWith(`\n    ${hint}\n`), errors.text);
  });
}

test("the report of an error page has the remedy of a forgotten await, too", async () => {
  const { errors } = await answer(unchecked(errorPage(loose((...call) => [...unawaited(...call)]))));
  assert.match(errors.text, /\n {4}Is it the body of an inner application\? Then await it: .*\n$/);
});

test("another error has no remedy", async () => {
  const nothing = undefined as unknown as string[];
  const failures: (() => unknown)[] = [
    () => nothing.length,
    () => nothing, // whose report speaks of an iterable, and has a remedy of its own
    () => {
      throw new Error("This is not iterable");
    },
  ];
  for (const fail of failures) {
    const { errors } = await answer(unchecked((_environ, _startResponse) => fail() as never));
    assert.doesNotMatch(errors.text, /\n {4}Is /);
  }
});

const READ_TWICE = "Cannot read the request body: it was read before, expected one call, whose result is kept: " +
  "const data = await request.json()";

const READERS: [how: string, read: (environ: Environ) => Promise<unknown>][] = [
  ["with one request", async (environ) => {
    const request = toRequest(environ);
    return [await request.json(), await request.json()];
  }],
  ["with two requests", async (environ) => [await toRequest(environ).json(), await toRequest(environ).json()]],
  ["as text of one request", async (environ) => {
    const request = toRequest(environ);
    return [await request.text(), await request.text()];
  }],
  ["as text, with two requests", async (environ) => [await toRequest(environ).text(), await toRequest(environ).text()]],
  ["with wsgi.input", async (environ) => [await environ["wsgi.input"].read(), await toRequest(environ).formData()]],
];

for (const [how, read] of READERS) {
  test(`reading the body twice is a failure of the application: ${how}`, async () => {
    const headers = { "Content-Length": "2" };
    const request = new Request(HERE, { method: "POST", body: "[]", headers });
    const { response, errors } = await answer(
      async (environ, _startResponse) => [await read(environ) as never],
      request,
    );
    assert.equal(response.status, 500);
    assert.ok(errors.text.split("\n")[0]!.endsWith(`: TypeError: ${READ_TWICE}`), errors.text);
  });
}

test("what is no application is refused with what would make one of it", () => {
  const callable = 'expected a function, a class or an object with a method "handle"';
  const cases: [like: unknown, message: string][] = [
    [undefined, `Cannot call undefined, ${callable}`],
    [{ fetch: () => new Response("Hello") }, `Cannot call an object, ${callable}: fromFetch(app.fetch)`],
    [
      { development: true },
      `Cannot call an object, ${callable}: options come second, as in (app) => errorPage(app, options)`,
    ],
    [{ "/api": hello }, `Cannot call an object, ${callable}: mount(apps)`],
    [{ "example.com/api": hello }, `Cannot call an object, ${callable}: mount(apps)`],
    [new Date(), `Cannot call a Date, ${callable}`],
    [Object.create(null), `Cannot call an object, ${callable}`], // as the namespace of a module is
    [Promise.resolve(hello), `Cannot call a Promise, ${callable}: await it`],
  ];
  for (const [like, message] of cases) assert.throws(() => toFetch(like as ApplicationLike), { message });
});

/** Runs a program that imports `serve`, and gives its exit status and its standard error. */
function run(program: string): [status: number | null, errors: string] {
  const source = `import { serve } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};\n${program}`;
  const args = RUNTIME === "deno" ? ["eval", source] : ["-e", source];
  const { status, stderr } = spawnSync(process.execPath, args, { env: { ...process.env, NO_COLOR: "1" } });
  return [status, text(stderr)];
}

test("a program that cannot listen ends with the line that says why, and no stack", async () => {
  await using server = start(hello);
  const [status, errors] = run(`serve(() => [], { port: ${server.port} });`);
  assert.equal(status, 1);
  const line = `Cannot listen on 127.0.0.1:${server.port}: another server has the port, ` +
    `expected one that is free: serve(app, { port: ${server.port + 1} })`;
  assert.match(errors.split("\n")[0]!, new RegExp(`^error: (?:Uncaught .*Error: )?${RegExp.escape(line)}$`));
  assert.doesNotMatch(errors, /^ +at |server\.ts/m);
});

test("an error of listening leaves the stacks of later ones whole", async () => {
  await using server = start(hello);
  assert.throws(() => start(hello, { port: server.port }), { code: "EADDRINUSE" });
  assert.match(new Error("Later").stack!, /mistakes_test/);
});

test("a promise that fails and that nobody awaits ends the process", () => {
  const [status, errors] = run(`
    const server = serve((environ, startResponse) => {
      Promise.reject(new Error("Nobody awaits this"));
      startResponse("204 No Content", []);
      return [];
    }, { port: 0 });
    fetch(server.url);`);
  assert.equal(status, 1);
  assert.match(errors, /Nobody awaits this/);
});

for (const method of ["arrayBuffer", "blob", "bytes", "formData", "json", "text"]) {
  test(`forgetting await on ${method} of a request does not end the process, and is reported`, () => {
    const module = JSON.stringify(new URL("../mod.ts", import.meta.url).href);
    const [status, errors] = run(`
      import { toRequest } from ${module};
      const server = serve((environ, startResponse) => {
        if (environ.REQUEST_METHOD === "POST") toRequest(environ).${method}();
        startResponse("204 No Content", []);
        return [];
      }, { port: 0, onListen: () => {} });
      await fetch(server.url, { method: "POST", body: "[]", headers: { "Content-Type": "application/x-www-form-urlencoded" } });
      await fetch(server.url);
      await server.shutdown();`);
    assert.equal(status, 0, errors);
    const message = "Cannot read the request body: the response has ended, expected an await of each read";
    assert.match(errors, new RegExp(`^Reading the body failed on POST /: AbortError: ${message}$`, "m"));
  });
}
