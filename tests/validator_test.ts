/**
 * The validator, rule by rule, what it leaves alone, and the helpers that an application shares with middleware.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import {
  type Application,
  type ApplicationLike,
  applicationUri,
  type Environ,
  guessScheme,
  type HeaderList,
  type InputStream,
  type Middleware,
  pipeline,
  requestUri,
  type ResponseBody,
  runApplication,
  shiftPathInfo,
  type StartResponse,
  testEnviron,
  toEnviron,
  toFetch,
  validator,
  type Write,
} from "../mod.ts";
import { application as environExample } from "../examples/environ.ts";
import { application as fetchExample } from "../examples/fetch.ts";
import { application as filesExample } from "../examples/files.ts";
import { application as frameworkExample } from "../examples/framework.ts";
import { application as helloExample } from "../examples/hello.ts";
import { application as reverseExample } from "../examples/reverse.ts";
import { application as streamExample } from "../examples/stream.ts";
import { application as uploadExample } from "../examples/upload.ts";
import {
  answer,
  bytes,
  Client,
  ErrorLog,
  Event,
  MemoryFile,
  ok,
  parse,
  PLAIN,
  request,
  settle,
  start,
  text,
  within,
} from "./support.ts";

const HERE = "http://test.example/";

/** A value of a wrong type, for code that has to find out when it runs. */
function wrong<Wanted>(value: unknown): Wanted {
  return value as Wanted;
}

/** What the validator says. */
function complaint(side: string, section: string, found: string, expected: string): string {
  return `The ${side} broke PEP 3333, "${section}": ${found}, expected ${expected}`;
}

const HELLO: Application = (_environ, startResponse) => {
  ok(startResponse);
  return [bytes("Hello")];
};

/** Chunks that do not exist before they are asked for. */
const STREAM: Application = function* (_environ, startResponse) {
  ok(startResponse);
  yield bytes("one ");
  yield bytes("two ");
  yield bytes("three");
};

/** A request with a body, unless its method has none. */
function aRequest(method = "POST"): Request {
  return new Request(HERE, { method, body: method === "POST" ? "one\ntwo\n" : null });
}

/** A `startResponse` that takes everything. */
const accept: StartResponse = () => () => Promise.resolve();

/** Answers as a server that checks nothing, so that nobody but the validator can complain. */
async function run(
  app: Application,
  environ = toEnviron(aRequest(), { errors: new ErrorLog() }),
  startResponse = accept,
): Promise<string> {
  const body = await app(environ, startResponse);
  let received = "";
  try {
    for await (const chunk of body) received += text(chunk);
  } finally {
    await body.close?.();
  }
  return received;
}

/** Opens a body to ask for its chunks by hand. */
function open(body: ResponseBody): AsyncIterator<Uint8Array> {
  assert.ok(Symbol.asyncIterator in body);
  return body[Symbol.asyncIterator]();
}

/** A rule: what breaks it and how that is described, and what comes close and is legal. */
interface Rule<Case> {
  section: string;
  expected: string;
  broken: [how: string, found: string, breach: Case][];
  legal: [how: string, neighbour: Case][];
}

/** Makes a test of each breach of rules, and of each of their legal neighbours. */
function testRules<Case>(side: string, rules: Rule<Case>[], runs: Record<string, (example: Case) => Promise<void>>) {
  for (const { section, expected, broken, legal } of rules) {
    for (const [by, run] of Object.entries(runs)) {
      for (const [how, found, breach] of broken) {
        test(`The ${side} is told, ${by}, of ${how}: ${found}`, async () => {
          await assert.rejects(async () => await run(breach), { message: complaint(side, section, found, expected) });
        });
      }
      for (const [how, neighbour] of legal) {
        test(`The ${side} may do this, ${by}: ${how}`, async () => await run(neighbour));
      }
    }
  }
}

/** Answers over Fetch, and rejects with the complaint that the server has reported. */
async function overFetch(app: ApplicationLike, method?: string): Promise<void> {
  const { response, errors } = await answer(app, aRequest(method));
  await response.text().catch(() => {});
  await settle();
  const message = /The \w+ broke PEP 3333, .*/.exec(errors.text)?.[0].replaceAll("\\x7f", "\x7f"); // a report escapes it
  if (message !== undefined) throw new Error(message);
  assert.equal(errors.text, "");
  assert.ok(response.status < 500);
}

// The server: the environ.

/** What the environ has to have: the first of what is legal is what the tests' own environ has, or could have. */
const VARIABLES: { name: string; expected: string; broken: [shown: string, value: unknown][]; legal: unknown[] }[] = [
  {
    name: "REQUEST_METHOD",
    expected: 'a method such as "GET"',
    broken: [['""', ""], ['"GET /"', "GET /"], ['"GET\\n"', "GET\n"], ["7", 7]],
    legal: ["GET", "get", "M-SEARCH", "*"],
  },
  {
    name: "SCRIPT_NAME",
    expected: 'an empty string or a path such as "/app"',
    broken: [['"/"', "/"], ['"app"', "app"], ["null", null]],
    legal: ["", "/app", "/app/", "/a/\n"],
  },
  {
    name: "PATH_INFO",
    expected: 'an empty string or a path such as "/page"',
    broken: [['"page"', "page"], ['"*"', "*"], ["[]", []]],
    legal: ["/", "//", "/\u00e9\n/"],
  },
  {
    name: "QUERY_STRING",
    expected: 'an empty string or a query without its question mark, such as "a=b"',
    broken: [["7", 7], ["null", null]],
    legal: ["", "a=b?c"],
  },
  {
    name: "REQUEST_URI",
    expected: 'a path and a query such as "/page?a=b"',
    broken: [['""', ""], ["null", null]],
    legal: ["/", "*", "http://test.example/page?a=b"],
  },
  {
    name: "SERVER_NAME",
    expected: 'a host such as "localhost"',
    broken: [['""', ""], ["7", 7]],
    legal: ["a", "[::1]"],
  },
  {
    name: "SERVER_PORT",
    expected: 'a port such as "80"',
    broken: [['""', ""], ["80", 80], ['"http"', "http"], ['"-1"', "-1"]],
    legal: ["80", "0"],
  },
  {
    name: "SERVER_PROTOCOL",
    expected: 'a protocol such as "HTTP/1.1"',
    broken: [['"1.1"', "1.1"], ['"HTTP/1.1 "', "HTTP/1.1 "], ["1.1", 1.1]],
    legal: ["HTTP/1.0", "HTTP/2", "HTTP/3"],
  },
  { name: "SERVER_SOFTWARE", expected: "a name", broken: [['""', ""], ["true", true]], legal: ["A server/1"] },
  {
    name: "wsgi.version",
    expected: "[1, 0]",
    broken: [['"1.0"', "1.0"], ["[ 1, 1 ]", [1, 1]], ["[ 1 ]", [1]], ["[ '1', '0' ]", ["1", "0"]]],
    legal: [[1, 0], Object.freeze([1, 0])],
  },
  {
    name: "wsgi.url_scheme",
    expected: '"http" or "https"',
    broken: [['"ftp"', "ftp"], ['"HTTPS"', "HTTPS"], ['"http:"', "http:"], ["null", null]],
    legal: ["http", "https"],
  },
  { name: "wsgi.multithread", expected: "true or false", broken: [["0", 0]], legal: [true, false] },
  { name: "wsgi.multiprocess", expected: "true or false", broken: [["1", 1]], legal: [true, false] },
  { name: "wsgi.run_once", expected: "true or false", broken: [['""', ""]], legal: [true, false] },
  { name: "wsgi.input_terminated", expected: "true or false", broken: [["null", null]], legal: [true, false] },
  { name: "wsgi.file_wrapper", expected: "a function", broken: [["{}", {}]], legal: [() => []] },
  {
    name: "wsgi.input",
    expected: "an input stream",
    broken: [["null", null], ['"body"', "body"]],
    legal: [inputOf([])],
  },
  { name: "wsgi.errors", expected: "an error stream", broken: [["null", null], ["{}", {}]], legal: [new ErrorLog()] },
];

/** What the environ may have. */
const OPTIONAL: typeof VARIABLES = [
  {
    name: "CONTENT_LENGTH",
    expected: "a number of bytes",
    broken: [['"-1"', "-1"], ['"1.5"', "1.5"], ['"3, 3"', "3, 3"], ["3", 3]],
    legal: ["0", "007"],
  },
  { name: "HTTP_CONTENT_LENGTH", expected: "CONTENT_LENGTH alone", broken: [['"1"', "1"]], legal: [] },
  { name: "HTTP_CONTENT_TYPE", expected: "CONTENT_TYPE alone", broken: [['"a/b"', "a/b"]], legal: [] },
  { name: "CONTENT_TYPE", expected: "a string", broken: [["7", 7]], legal: ["", "text/plain"] },
  { name: "HTTP_ACCEPT", expected: "a string", broken: [["[ 'a/b' ]", ["a/b"]], ["null", null]], legal: ["", "a/b"] },
];

/** The members of a stream, as methods that are not shown. */
function members(...names: PropertyKey[]): object {
  return Object.defineProperties({}, Object.fromEntries(names.map((name) => [name, { value: () => {} }])));
}

const INPUT_MEMBERS = ["read", "readline", "readlines", Symbol.asyncIterator];
const ERROR_MEMBERS = ["write", "writelines", "flush"];

/** Changes a good environ. */
function environWith(changes: Record<string, unknown>): Environ {
  return Object.assign(testEnviron({ "wsgi.errors": new ErrorLog() }), changes);
}

/** Takes a variable away. */
function environWithout(name: string): Environ {
  const environ = environWith({});
  delete environ[name];
  return environ;
}

/** Gives a variable any property. */
function environDefining(name: string, property: PropertyDescriptor): Environ {
  return Object.defineProperty(environWith({}), name, { enumerable: true, configurable: true, ...property });
}

/** One rule for a variable. */
function ruleOf({ name, expected, broken, legal }: (typeof VARIABLES)[number]): Rule<() => Environ> {
  return {
    section: "environ Variables",
    expected,
    broken: broken.map(([shown, value]) => ["a variable", `${name} is ${shown}`, () => environWith({ [name]: value })]),
    legal: legal.map((value, index) => [`${name}, legal value ${index + 1}`, () => environWith({ [name]: value })]),
  };
}

class Inherited {
  constructor() {
    Object.assign(this, environWith({}));
  }
}

const ENVIRON_RULES: Rule<() => Environ>[] = [
  ...VARIABLES.map(ruleOf),
  ...OPTIONAL.map(ruleOf),
  ...VARIABLES.map(({ name, expected }): Rule<() => Environ> => ({
    section: "environ Variables",
    expected,
    broken: [["a variable left out", `${name} is absent`, () => environWithout(name)]],
    legal: [],
  })),
  ...INPUT_MEMBERS.map((left): Rule<() => Environ> => ({
    section: "environ Variables",
    expected: "an input stream",
    broken: [[
      `an input without ${String(left)}`,
      "wsgi.input is {}",
      () => environWith({ "wsgi.input": members(...INPUT_MEMBERS.filter((name) => name !== left)) }),
    ]],
    legal: [[`input with ${String(left)}`, () => environWith({ "wsgi.input": members(...INPUT_MEMBERS) })]],
  })),
  ...ERROR_MEMBERS.map((left): Rule<() => Environ> => ({
    section: "environ Variables",
    expected: "an error stream",
    broken: [[
      `an error stream without ${left}`,
      "wsgi.errors is {}",
      () => environWith({ "wsgi.errors": members(...ERROR_MEMBERS.filter((name) => name !== left)) }),
    ]],
    legal: [[`errors with ${left}`, () => environWith({ "wsgi.errors": members(...ERROR_MEMBERS) })]],
  })),
  {
    section: "environ Variables",
    expected: '"/" for the root',
    broken: [[
      "no path at all",
      'PATH_INFO is "" where SCRIPT_NAME is "", too',
      () => environWith({ SCRIPT_NAME: "", PATH_INFO: "" }),
    ]],
    legal: [["a mount point without a path", () => environWith({ SCRIPT_NAME: "/app", PATH_INFO: "" })]],
  },
  {
    section: "environ Variables",
    expected: "an ordinary object",
    broken: [
      ["no environ", "environ is undefined", () => wrong(undefined)],
      ["null", "environ is null", () => wrong(null)],
      ["text", 'environ is "environ"', () => wrong("environ")],
      ["a map", "environ is Map(0) {}", () => wrong(new Map())],
      ["an array", "environ is []", () => wrong([])],
      ["a prototype", "environ is {}", () => Object.create(environWith({}))],
    ],
    legal: [
      ["an object without a prototype", () => Object.assign(Object.create(null), environWith({}))],
      ["a copy", () => ({ ...environWith({}) })],
    ],
  },
  {
    section: "environ Variables",
    expected: "a value",
    broken: [
      [
        "a getter",
        "REMOTE_ADDR is computed when it is read",
        () => environDefining("REMOTE_ADDR", { get: () => "::1" }),
      ],
      [
        "a getter of a variable that is required",
        "PATH_INFO is computed when it is read",
        () => environDefining("PATH_INFO", { get: () => "/" }),
      ],
      [
        "a getter of the server's own",
        "example.key is computed when it is read",
        () => environDefining("example.key", { get: () => 1 }),
      ],
    ],
    legal: [["a property", () => environDefining("REMOTE_ADDR", { value: "::1" })]],
  },
  {
    section: "environ Variables",
    expected: "what is not known to be absent",
    broken: [
      ["undefined", "REMOTE_USER is undefined", () => environWith({ REMOTE_USER: undefined })],
      ["undefined in a variable of the server's own", "a.b is undefined", () => environWith({ "a.b": undefined })],
    ],
    legal: [
      ["an empty string", () => environWith({ REMOTE_USER: "" })],
      ["null in a variable of the server's own", () => environWith({ "a.b": null })],
    ],
  },
  {
    section: "environ Variables",
    expected: "a string",
    broken: [
      ["a number", "REMOTE_PORT is 80", () => environWith({ REMOTE_PORT: 80 })],
      ["a function", "HELPER is [Function (anonymous)]", () => environWith({ HELPER: (() => () => 1)() })],
      ["what is not enumerable", "HIDDEN is 1", () => environDefining("HIDDEN", { value: 1, enumerable: false })],
    ],
    legal: [["a number under a name with a dot", () => environWith({ "example.port": 80 })]],
  },
  {
    section: "Unicode Issues",
    expected: "one character for each byte",
    broken: [
      ["a header that is decoded", 'HTTP_X is "€"', () => environWith({ HTTP_X: "€" })],
      ["a path that is decoded", 'PATH_INFO is "/Ā"', () => environWith({ PATH_INFO: "/Ā" })],
    ],
    legal: [
      ["bytes up to 255", () => environWith({ HTTP_X: "\u00e2\u0082\u00ac\u00ff\0" })],
      ["text in another script, under a name with a dot", () => environWith({ "example.text": "€" })],
    ],
  },
];

testRules("server", ENVIRON_RULES, {
  "in process": async (environ) => void await validator(HELLO)(environ(), accept),
});

test("An instance of a class is no environ, and told so before anything else", () => {
  const environ = wrong<Environ>(new Inherited());
  assert.throws(() => validator(HELLO)(environ, accept), {
    message:
      /^The server broke PEP 3333, "environ Variables": environ is Inherited \{.*\}, expected an ordinary object$/s,
  });
});

test("An environ that cannot be changed is a breach of the server", () => {
  assert.throws(() => validator(HELLO)(Object.freeze(environWith({})), accept), {
    message: /^The server broke PEP 3333, "environ Variables": environ is /,
  });
});

test("A query that begins with a question mark is a query: RFC 3986, section 3.4", async () => {
  await run(validator(HELLO), testEnviron({ QUERY_STRING: "?a=b" }));
});

test("A request for a target with two question marks is no breach of the server", async () => {
  const { response, errors } = await answer(validator(HELLO), new Request(`${HERE}??a=b`));
  assert.equal(errors.text, "");
  assert.equal(response.status, 200);
});

test('CONTENT_LENGTH "may be empty or absent", says PEP 3333', async () => {
  await run(validator(HELLO), environWith({ CONTENT_LENGTH: "" }));
});

test("The validator is not seen among the variables", async () => {
  const environ = environWith({});
  const names = Object.keys(environ);
  await run(validator(validator(HELLO)), environ);
  assert.deepEqual(Object.keys(environ), names);
});

test("The application gets the server's own environ, to change it", async () => {
  const environ = environWith({});
  const app: Application = (environ, startResponse) => {
    environ["example.user"] = "Ada";
    return HELLO(environ, startResponse);
  };
  await run(validator(validator(app)), environ);
  assert.equal(environ["example.user"], "Ada");
});

// The server: what it does.

/** What a server does with the application, its environ and its startResponse. */
type Conduct = (app: Application) => unknown;

/** A server whose startResponse returns something. */
function returning(value: unknown): Conduct {
  return (app) => run(app, environWith({}), () => wrong(value));
}

const CALLING_RULES: Rule<Conduct>[] = [
  {
    section: "The Application/Framework Side",
    expected: "(environ, startResponse)",
    broken: [
      ["no arguments", "the application was called with ()", (app) => Reflect.apply(app, undefined, [])],
      ["one argument", "the application was called with ({})", (app) => Reflect.apply(app, undefined, [{}])],
      [
        "a third argument",
        "the application was called with ({}, [Function: accept], 3)",
        (app) => Reflect.apply(app, undefined, [{}, accept, 3]),
      ],
      [
        "a startResponse that is none",
        "the application was called with ({}, {})",
        (app) => Reflect.apply(app, undefined, [{}, {}]),
      ],
    ],
    legal: [["two arguments", (app) => Reflect.apply(app, undefined, [environWith({}), accept])]],
  },
  {
    section: "The write() Callable",
    expected: "a function",
    broken: [
      ["no write", "startResponse returned undefined", returning(undefined)],
      ["a write that is none", "startResponse returned {}", returning({})],
    ],
    legal: [["a function", returning(() => Promise.resolve())]],
  },
  {
    section: "The write() Callable",
    expected: "a promise",
    broken: [
      ["a write that gives nothing", "write returned undefined", returning(() => {})],
      ["a write that gives a number", "write returned 3", returning(() => 3)],
    ],
    legal: [["an asynchronous function", returning(async () => {})]],
  },
  {
    section: "Specification Details",
    expected: "close to come last",
    broken: [["asking after close", "a chunk was asked for after close", async (app) => {
      const body = await app(environWith({}), accept);
      await body.close?.();
      await open(body).next();
    }]],
    legal: [["closing what was never asked for", async (app) => {
      await (await app(environWith({}), accept)).close?.();
    }]],
  },
  {
    section: "Specification Details",
    expected: "one call",
    broken: [["closing again", "close was called a second time", async (app) => {
      const body = await app(environWith({}), accept);
      await body.close?.();
      await body.close?.();
    }]],
    legal: [["closing what was not read to its end", async (app) => {
      const body = await app(environWith({}), accept);
      const chunks = open(body);
      await chunks.next();
      await chunks.return?.();
      await body.close?.();
    }]],
  },
  {
    section: "Buffering and Streaming",
    expected: "one after the other",
    broken: [["asking twice at once", "a chunk was asked for while another was awaited", async (app) => {
      const chunks = open(await app(environWith({}), accept));
      chunks.next().catch(() => {});
      await chunks.next();
    }]],
    legal: [["asking again after a chunk", async (app) => {
      const chunks = open(await app(environWith({}), accept));
      assert.equal(text((await chunks.next()).value), "one ");
      assert.equal(text((await chunks.next()).value), "two ");
    }]],
  },
];

/** An application that writes, and then streams. */
const WRITING: Application = (_environ, startResponse) => {
  startResponse("200 OK", PLAIN)(bytes("zero "));
  return new Set(["one ", "two "].map(bytes));
};

testRules("server", CALLING_RULES, {
  "in process": async (conduct) => void await conduct(validator(WRITING)),
});

test("A chunk that was asked for while another was awaited spoils both", async () => {
  const chunks = open(await validator(STREAM)(environWith({}), accept));
  const first = chunks.next();
  const message = complaint(
    "server",
    "Buffering and Streaming",
    "a chunk was asked for while another was awaited",
    "one after the other",
  );
  await assert.rejects(chunks.next(), { message });
  await assert.rejects(first, { message });
});

test("After its end a body gives its end, as often as it is asked", async () => {
  const chunks = open(await validator(STREAM)(environWith({}), accept));
  for (let asked = 0; asked < 3; asked++) await chunks.next();
  for (let asked = 0; asked < 3; asked++) assert.equal((await chunks.next()).done, true);
});

test("After it has failed, a body gives its end, as often as it is asked", async () => {
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    throw new Error("Out of order");
  };
  const chunks = open(await validator(app)(environWith({}), accept));
  await chunks.next();
  await assert.rejects(chunks.next(), { message: "Out of order" });
  for (let asked = 0; asked < 3; asked++) assert.equal((await chunks.next()).done, true);
});

test("After it was told to return, a body gives its end, also when a chunk was awaited", async () => {
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  };
  const chunks = open(await validator(app)(environWith({}), accept));
  const pending = chunks.next();
  await chunks.return?.();
  await pending;
  for (let asked = 0; asked < 3; asked++) assert.equal((await chunks.next()).done, true);
});

/** An input that gives what it is told, whatever that is. */
function inputOf(given: unknown): InputStream {
  const give = () => Promise.resolve(wrong<never>(given));
  return {
    read: give,
    readline: give,
    readlines: give,
    async *[Symbol.asyncIterator]() {
      yield await give();
    },
  };
}

/** An application that reads its input. */
function reading(read: (input: InputStream) => unknown): Application {
  return async (environ, startResponse) => {
    await read(environ["wsgi.input"]);
    return HELLO(environ, startResponse);
  };
}

/** Reads all lines by iteration. */
async function iterate(input: InputStream): Promise<void> {
  for await (const line of input) assert.ok(line);
}

/** What the input gives, and how it is read. */
type Reading = [given: unknown, read: (input: InputStream) => unknown];

const INPUT_RULES: Rule<Reading>[] = [
  {
    section: "Input and Error Streams",
    expected: "bytes",
    broken: [
      ["read", 'wsgi.input gave "text"', ["text", (input) => input.read()]],
      ["read at its end", "wsgi.input gave null", [null, (input) => input.read(1)]],
      ["readline", "wsgi.input gave undefined", [undefined, (input) => input.readline()]],
      ["readlines", 'wsgi.input gave "line"', [["line"], (input) => input.readlines()]],
      ["iteration", 'wsgi.input gave "line"', ["line", iterate]],
    ],
    legal: [
      ["read", [bytes("text"), (input) => input.read()]],
      ["an empty array at the end", [new Uint8Array(0), (input) => input.read(1)]],
      ["a Buffer", [Buffer.from("text"), (input) => input.readline()]],
      ["readlines", [[bytes("line")], (input) => input.readlines()]],
      ["iteration", [bytes("line"), iterate]],
    ],
  },
  {
    section: "Input and Error Streams",
    expected: "an array",
    broken: [["readlines", 'readlines gave "line"', ["line", (input) => input.readlines()]]],
    legal: [["no lines", [[], (input) => input.readlines()]]],
  },
  {
    section: "Input and Error Streams",
    expected: "2 at the most",
    broken: [
      ["read(2)", "wsgi.input gave 3 bytes", [bytes("abc"), (input) => input.read(2)]],
      ["readline(2)", "wsgi.input gave 3 bytes", [bytes("abc"), (input) => input.readline(2)]],
    ],
    legal: [
      ["exactly two bytes", [bytes("ab"), (input) => input.read(2)]],
      ["fewer", [bytes("a"), (input) => input.readline(2)]],
      ["all, for a size below zero", [bytes("abc"), (input) => input.read(-1)]],
      ["lines longer than the hint", [[bytes("abc")], (input) => input.readlines(2)]],
    ],
  },
];

testRules("server", INPUT_RULES, {
  "in process": async ([given, read]) => {
    await run(validator(reading(read)), environWith({ "wsgi.input": inputOf(given) }));
  },
});

// The application.

/** An application that calls startResponse with whatever it is given, and returns whatever it is given. */
function starting(args: unknown[], body: unknown = []): Application {
  return (_environ, startResponse) => {
    Reflect.apply(startResponse, undefined, args);
    return wrong(body);
  };
}

/** An application that returns a body after a good start. */
function giving(body: unknown, ...headers: HeaderList): Application {
  return starting(["200 OK", [...PLAIN, ...headers]], body);
}

/** An application with one more header. */
function heading(...headers: unknown[]): Application {
  return starting(["200 OK", [...PLAIN, ...headers]]);
}

/** An application that answers by chunks. */
function streaming(chunks: unknown[], ...headers: HeaderList): Application {
  return function* (_environ, startResponse) {
    ok(startResponse, ...headers);
    for (const chunk of chunks) yield wrong(chunk);
  };
}

/** An application that writes chunks, and returns others. */
function writes(written: unknown[], returned: Uint8Array[] = [], ...headers: HeaderList): Application {
  return (_environ, startResponse) => {
    const write = startResponse("200 OK", [...PLAIN, ...headers]);
    for (const chunk of written) Reflect.apply(write, undefined, [chunk]);
    return returned;
  };
}

/** Answers to a HEAD request when it is called with one. */
interface Case {
  app: ApplicationLike;
  method?: string;
}

/** An application with an ordinary request. */
function post(app: ApplicationLike): Case {
  return { app };
}

/** The same rule, broken by several statuses. */
function statuses(...shown: [shown: string, status: unknown][]): Rule<Case>["broken"] {
  return shown.map(([shown, status]) => ["a status", `the status is ${shown}`, post(starting([status, PLAIN]))]);
}

/** The same rule, broken by several headers. */
function values(...shown: [name: string, shown: string, value: string][]): Rule<Case>["broken"] {
  return shown.map(([name, shown, value]) => [
    "a header",
    `header "${name}" has the value ${shown}`,
    post(heading([name, value])),
  ]);
}

const HOP_BY_HOP = [
  "Connection",
  "keep-alive",
  "Proxy-Authenticate",
  "Proxy-Authorization",
  "TE",
  "Trailer",
  "Trailers",
  "Transfer-Encoding",
  "UPGRADE",
];

const ERROR = new Error("What was caught");

/** Calls a member that a stream should not have. */
function close(stream: object): void {
  if ("close" in stream && typeof stream.close === "function") stream.close();
}

/** An application that does something to its error stream. */
function reporting(report: (errors: Environ["wsgi.errors"]) => unknown): Application {
  return (environ, startResponse) => {
    report(environ["wsgi.errors"]);
    return HELLO(environ, startResponse);
  };
}

const STARTING_RULES: Rule<Case>[] = [
  {
    section: "The start_response() Callable",
    expected: 'three digits from 200 to 599, a space and a reason, such as "200 OK"',
    broken: statuses(
      ["200", 200],
      ["undefined", undefined],
      ['""', ""],
      ['"200"', "200"],
      ['"200 "', "200 "],
      ['"200OK"', "200OK"],
      ['" 200 OK"', " 200 OK"],
      ['"20 OK"', "20 OK"],
      ['"2000 OK"', "2000 OK"],
      ['"100 Continue"', "100 Continue"],
      ['"199 Own"', "199 Own"],
      ['"600 Own"', "600 Own"],
      ['"200 OK\\r\\nA: b"', "200 OK\r\nA: b"],
      ['"200 O\\tK"', "200 O\tK"],
      ['"200 OK\x7f"', "200 OK\x7f"],
      ['"200 €"', "200 €"],
    ),
    legal: [
      ["a status of its own", post(starting(["299 An own one", PLAIN]))],
      ["the first status", post(starting(["200 O", PLAIN]))],
      ["Latin-1 in the reason", post(starting(["200 Gut \u00fc\u0080", PLAIN]))],
    ],
  },
  {
    section: "The start_response() Callable",
    expected: "an array of pairs",
    broken: [
      ["a record", "the headers are { Allow: 'GET' }", post(starting(["200 OK", { Allow: "GET" }]))],
      ["nothing", "the headers are undefined", post(starting(["200 OK", undefined]))],
      ["a set", "the headers are Set(0) {}", post(starting(["200 OK", new Set()]))],
    ],
    legal: [["an array of none", post(starting(["204 No Content", []]))]],
  },
  {
    section: "The start_response() Callable",
    expected: '["Name", "value"]',
    broken: [
      ["text", 'a header is "Allow: GET"', post(heading("Allow: GET"))],
      ["two characters", 'a header is "ab"', post(heading("ab"))],
      ["a name alone", "a header is [ 'Allow' ]", post(heading(["Allow"]))],
      ["three", "a header is [ 'Allow', 'GET', 'PUT' ]", post(heading(["Allow", "GET", "PUT"]))],
      ["a number", "a header is [ 'Age', 1 ]", post(heading(["Age", 1]))],
      ["a number as the name", "a header is [ 1, 'Age' ]", post(heading([1, "Age"]))],
      ["null", "a header is null", post(heading(null))],
    ],
    legal: [
      ["an empty value", post(heading(["X-Empty", ""]))],
      ["a header twice", post(heading(["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]))],
    ],
  },
  {
    section: "The start_response() Callable",
    expected: "a token",
    broken: [["", '""'], ["X Y", '"X Y"'], ["X:", '"X:"'], ["X\n", '"X\\n"'], ["É", '"É"'], ["(X)", '"(X)"']].map((
      [name, shown],
    ) => ["a header", `a header has the name ${shown}`, post(heading([name, "value"]))]),
    legal: [["every character of a token", post(heading(["x-!#$%&'*+.^_`|~9", "value"]))]],
  },
  {
    section: "The start_response() Callable",
    expected: "the status as the first argument",
    broken: values(["Status", '"200 OK"', "200 OK"], ["STATUS", '""', ""]),
    legal: [["a header that begins so", post(heading(["Status-Of", "things"]))]],
  },
  {
    section: "Other HTTP Features",
    expected: "what is hop-by-hop to be left to the server",
    broken: values(...HOP_BY_HOP.map((name): [string, string, string] => [name, '"a"', "a"])),
    legal: [
      ["headers that begin or end so", post(heading(["X-Connection", "a"], ["Te-X", "b"], ["Trailers-X", "c"]))],
      ["WWW-Authenticate", post(heading(["WWW-Authenticate", "Basic"]))],
    ],
  },
  {
    section: "Unicode Issues",
    expected: "one character for each byte",
    broken: values(["X", '"€"', "€"], ["X", '"a\u0100"', "a\u0100"]),
    legal: [["the last byte", post(heading(["X", "a\u00ff"]))]],
  },
  {
    section: "The start_response() Callable",
    expected: "no control characters",
    broken: values(
      ["X", '"a\\r\\nY: b"', "a\r\nY: b"],
      ["X", '"\\n"', "\n"],
      ["X", '"\\u0000"', "\0"],
      ["X", '"\\b"', "\b"],
      ["X", '"\\u001f"', "\x1f"],
      ["X", '"\x7f"', "\x7f"],
    ),
    legal: [["a tab", post(heading(["X", "a\tb"]))], ["a byte above ASCII", post(heading(["X", "\u0080"]))]],
  },
  {
    section: "Handling the Content-Length Header",
    expected: "one number of bytes",
    broken: [
      ...values(
        ["Content-Length", '""', ""],
        ["content-length", '"-1"', "-1"],
        ["Content-Length", '"+0"', "+0"],
        ["Content-Length", '"0x0"', "0x0"],
        ["Content-Length", '"0, 0"', "0, 0"],
        ["Content-Length", '"0.0"', "0.0"],
      ),
      [
        "a length given twice",
        'header "content-length" has the value "0"',
        post(heading(["Content-Length", "0"], ["content-length", "0"])),
      ],
    ],
    legal: [["one number", post(heading(["content-length", "0"]))]],
  },
  {
    section: "Handling the Content-Length Header",
    expected: "no Content-Length",
    broken: [[
      "204 with a length",
      '"204 No Content" came with header "Content-Length" has the value "0"',
      post(starting(["204 No Content", [["Content-Length", "0"]]])),
    ]],
    legal: [["304 with a length", post(starting(["304 Not Modified", [["Content-Length", "9"]]]))]],
  },
  {
    section: "Other HTTP Features",
    expected: "none without a body",
    broken: ["204 No Content", "205 Reset Content", "304 Not Modified"].map((status) => [
      "a type",
      `"${status}" came with a Content-Type`,
      post(starting([status, PLAIN])),
    ]),
    legal: ["204 No Content", "304 Not Modified"].map((status) => [status, post(starting([status, [["X", "y"]]]))]),
  },
  {
    section: "Other HTTP Features",
    expected: "one",
    broken: ["200 OK", "206 Partial Content", "404 Not Found", "500 Internal Server Error"].map((status) => [
      "a missing type",
      `"${status}" came without a Content-Type`,
      post(starting([status, [["X-Content-Type", "text/plain"]]])),
    ]),
    legal: [
      ["its name in any case", post(starting(["200 OK", [["cOnTeNt-TyPe", "text/plain"]]]))],
      ["a redirect without a type", post(starting(["302 Found", [["Location", "/"]]]))],
      ["a redirect with a type", post(starting(["302 Found", [["Location", "/"], ...PLAIN]]))],
    ],
  },
  {
    section: "The start_response() Callable",
    expected: "2 or 3 arguments",
    broken: [
      ["a call", "startResponse was called with ()", post(starting([]))],
      ["a call", 'startResponse was called with ("200 OK")', post(starting(["200 OK"]))],
      ["a call", 'startResponse was called with ("200 OK", [], null, 4)', post(starting(["200 OK", [], null, 4]))],
    ],
    legal: [["a third argument that is undefined", post(starting(["200 OK", PLAIN, undefined]))]],
  },
  {
    section: "The start_response() Callable",
    expected: "the error that requires it, too",
    broken: [
      [
        "a second call",
        'startResponse was called again with "500 Oops"',
        post((_environ, startResponse) => {
          ok(startResponse);
          startResponse("500 Oops", PLAIN);
          return [];
        }),
      ],
      [
        "the same call again",
        'startResponse was called again with "200 OK"',
        post((_environ, startResponse) => {
          ok(startResponse);
          startResponse("200 OK", PLAIN, undefined);
          return [];
        }),
      ],
    ],
    legal: [[
      "a second call with the error",
      post((_environ, startResponse) => {
        ok(startResponse);
        startResponse("404 Not Found", PLAIN, ERROR);
        return [bytes("Not found")];
      }),
    ]],
  },
  {
    section: "The start_response() Callable",
    expected: "one",
    broken: [
      ["an array", "the body ended without a call of startResponse", post(() => [])],
      ["empty chunks", "the body ended without a call of startResponse", post(() => [new Uint8Array(0)])],
      ["a generator", "the body ended without a call of startResponse", post(function* () {})],
      ["a promise", "the body ended without a call of startResponse", post(() => Promise.resolve([]))],
    ],
    legal: [[
      "a call at the end",
      post(function* (_environ, startResponse) {
        yield new Uint8Array(0);
        ok(startResponse);
      }),
    ]],
  },
  {
    section: "The start_response() Callable",
    expected: "the call first",
    broken: [
      ["an array", "a chunk came before startResponse was called", post(() => [bytes("Hello")])],
      [
        "a generator that calls it too late",
        "a chunk came before startResponse was called",
        post(function* (_environ, startResponse) {
          yield bytes("Hello");
          ok(startResponse);
        }),
      ],
    ],
    legal: [[
      "empty chunks before the call",
      post(async function* (_environ, startResponse) {
        yield new Uint8Array(0);
        await Promise.resolve();
        ok(startResponse);
        yield bytes("Hello");
      }),
    ]],
  },
];

const SENDING_RULES: Rule<Case>[] = [
  {
    section: "Buffering and Streaming",
    expected: "a Uint8Array",
    broken: [
      ["an array of text", 'a chunk is "Hello"', post(giving(["Hello"]))],
      ["an array with one that is wrong", "a chunk is 5", post(giving([bytes("Hello"), 5]))],
      ["an array of arrays", "a chunk is [ 1, 2 ]", post(giving([[1, 2]]))],
      ["a stream", 'a chunk is ""', post(streaming([""]))],
      ["a stream", "a chunk is undefined", post(streaming([undefined]))],
      ["a stream, later", "a chunk is null", post(streaming([new Uint8Array(0), null]))],
      ["write", 'a chunk is "Hello"', post(writes(["Hello"]))],
      ["write", "a chunk is undefined", post(writes([undefined]))],
    ],
    legal: [
      ["a Buffer", post(giving([Buffer.from("Hello")]))],
      ["a part of an array", post(streaming([bytes("Hello").subarray(1, 3)]))],
      ["an empty chunk", post(writes([new Uint8Array(0)]))],
    ],
  },
  {
    section: "The Application/Framework Side",
    expected: "an iterable of chunks",
    broken: [
      ["text", 'the application returned "Hello"', post(giving("Hello"))],
      ["bytes", "the application returned Uint8Array(2) [ 72, 105 ]", post(giving(bytes("Hi")))],
      ["nothing", "the application returned undefined", post(() => wrong(undefined))],
      ["null", "the application returned null", post(giving(null))],
      ["a number", "the application returned 5", post(giving(5))],
      ["an object", "the application returned {}", post(giving({}))],
      ["a function", "the application returned [GeneratorFunction: body]", post(giving(function* body() {}))],
      [
        "a promise of text",
        'the application returned "Hello"',
        post(async () => wrong(await Promise.resolve("Hello"))),
      ],
    ],
    legal: [["a set", post(giving(new Set([bytes("Hello")])))], ["an empty array", post(giving([]))]],
  },
  {
    section: "Other HTTP Features",
    expected: "no body",
    broken: ["204 No Content", "304 Not Modified"].flatMap((status): Rule<Case>["broken"] => [
      [
        "an array",
        `${status} came with a body of Uint8Array(2) [ 72, 105 ]`,
        post(starting([status, []], [bytes("Hi")])),
      ],
      [
        "a set",
        `${status} came with a body of Uint8Array(2) [ 72, 105 ]`,
        post(starting([status, []], new Set([bytes("Hi")]))),
      ],
      [
        "write",
        `${status} came with a body of Uint8Array(1) [ 72 ]`,
        post((_environ, startResponse) => {
          startResponse(status, [])(bytes("H"));
          return [];
        }),
      ],
    ]),
    legal: [
      ["204 with an empty chunk", post(starting(["204 No Content", []], [new Uint8Array(0)]))],
      ["304 with an empty chunk", post(starting(["304 Not Modified", []], new Set([new Uint8Array(0)])))],
    ],
  },
  {
    section: "Handling the Content-Length Header",
    expected: "4 as declared",
    broken: [
      ["a longer array", "the body has 6 bytes", post(giving([bytes("abc"), bytes("def")], ["Content-Length", "4"]))],
      ["a longer stream", "the body has 6 bytes", post(streaming([bytes("abcdef")], ["Content-Length", "4"]))],
      ["a stream with one chunk more", "the body has 5 bytes", {
        app: streaming([bytes("abcd"), bytes("e")], ["Content-Length", "4"]),
      }],
      ["a longer write", "the body has 5 bytes", post(writes([bytes("abcde")], [], ["Content-Length", "4"]))],
      ["write and an array", "the body has 5 bytes", {
        app: writes([bytes("abc")], [bytes("de")], ["Content-Length", "4"]),
      }],
      ["a shorter array", "the body has 3 bytes", post(giving([bytes("abc")], ["Content-Length", "4"]))],
      ["a shorter stream", "the body has 3 bytes", post(streaming([bytes("abc")], ["Content-Length", "4"]))],
      ["an empty array", "the body has 0 bytes", post(giving([], ["content-length", "4"]))],
      ["a shorter write", "the body has 3 bytes", post(writes([bytes("abc")], [], ["Content-Length", "4"]))],
      ["a longer body for HEAD", "the body has 5 bytes", {
        app: giving([bytes("abcde")], ["Content-Length", "4"]),
        method: "HEAD",
      }],
    ],
    legal: [
      ["exactly as many in an array", post(giving([bytes("ab"), bytes("cd")], ["Content-Length", "4"]))],
      ["exactly as many in a stream", {
        app: streaming([bytes("ab"), bytes("cd"), new Uint8Array(0)], ["Content-Length", "4"]),
      }],
      ["exactly as many written and returned", post(writes([bytes("ab")], [bytes("cd")], ["Content-Length", "4"]))],
      ["no body for HEAD", { app: giving([], ["Content-Length", "4"]), method: "HEAD" }],
      ["an empty stream for HEAD", { app: streaming([], ["Content-Length", "4"]), method: "HEAD" }],
      ["the length of the body for HEAD", { app: giving([bytes("abcd")], ["Content-Length", "4"]), method: "HEAD" }],
      ["the length that a 200 would have", post(starting(["304 Not Modified", [["Content-Length", "4"]]], new Set()))],
      [
        "a new length with a new start",
        post((_environ, startResponse) => {
          ok(startResponse, ["Content-Length", "4"]);
          startResponse("404 Not Found", [...PLAIN, ["Content-Length", "2"]], ERROR);
          return [bytes("ab")];
        }),
      ],
      [
        "no length with a new start",
        post((_environ, startResponse) => {
          ok(startResponse, ["Content-Length", "4"]);
          startResponse("404 Not Found", PLAIN, ERROR);
          return new Set([bytes("ab")]);
        }),
      ],
    ],
  },
  {
    section: "The write() Callable",
    expected: "a chunk of it",
    broken: [
      [
        "a generator",
        "write was called after the body was returned",
        post(function* (_environ, startResponse) {
          startResponse("200 OK", PLAIN)(bytes("Hello"));
          yield bytes("world");
        }),
      ],
      ["a generator, with nothing", "write was called after the body was returned", {
        app: function* (_environ, startResponse) {
          startResponse("200 OK", PLAIN)(new Uint8Array(0));
          yield* [];
        },
      }],
      [
        "an object that is iterated",
        "write was called after the body was returned",
        post((_environ, startResponse) => {
          const write = startResponse("200 OK", PLAIN);
          return {
            *[Symbol.iterator]() {
              write(bytes("Hello"));
              yield bytes("world");
            },
          };
        }),
      ],
    ],
    legal: [
      ["write before an array is returned", post(writes([bytes("Hello")], [bytes("world")]))],
      [
        "write before a promise of the body is fulfilled",
        post(async (_environ, startResponse) => {
          await startResponse("200 OK", PLAIN)(bytes("Hello "));
          return [bytes("world")];
        }),
      ],
    ],
  },
];

const READING_RULES: Rule<Case>[] = [
  {
    section: "Input and Error Streams",
    expected: "an integer or nothing",
    broken: [
      ["text", 'read was called with ("5")', post(reading((input) => Reflect.apply(input.read, input, ["5"])))],
      ["null", "read was called with (null)", post(reading((input) => Reflect.apply(input.read, input, [null])))],
      ["a fraction", "read was called with (1.5)", post(reading((input) => input.read(1.5)))],
      ["no number", "read was called with (NaN)", post(reading((input) => input.read(NaN)))],
      ["two sizes", "read was called with (1, 2)", post(reading((input) => Reflect.apply(input.read, input, [1, 2])))],
      ["a fraction", "readline was called with (0.5)", post(reading((input) => input.readline(0.5)))],
      ["two sizes", "readline was called with (1, undefined)", {
        app: reading((input) => Reflect.apply(input.readline, input, [1, undefined])),
      }],
      ["a fraction", "readlines was called with (0.5)", post(reading((input) => input.readlines(0.5)))],
      ["a large integer", "readlines was called with (1n)", {
        app: reading((input) => Reflect.apply(input.readlines, input, [1n])),
      }],
    ],
    legal: [
      ["read()", post(reading((input) => input.read()))],
      ["read(undefined)", post(reading((input) => input.read(undefined)))],
      ["read(0)", post(reading((input) => input.read(0)))],
      ["read(-1)", post(reading((input) => input.read(-1)))],
      ["read(Infinity)", post(reading((input) => input.read(Infinity)))],
      ["readline(5)", post(reading((input) => input.readline(5)))],
      ["readlines()", post(reading((input) => input.readlines()))],
      ["readlines(1)", post(reading((input) => input.readlines(1)))],
      ["iteration", post(reading(iterate))],
    ],
  },
  {
    section: "Input and Error Streams",
    expected: "it to be left open",
    broken: [
      ["the input", "wsgi.input was closed", post(reading(close))],
      ["the error stream", "wsgi.errors was closed", post(reporting(close))],
    ],
    legal: [["leaving them open", post(HELLO)]],
  },
  {
    section: "Input and Error Streams",
    expected: "a string",
    broken: [
      ["write", "wsgi.errors was given 5", post(reporting((errors) => Reflect.apply(errors.write, errors, [5])))],
      [
        "write",
        "wsgi.errors was given undefined",
        post(reporting((errors) => Reflect.apply(errors.write, errors, []))),
      ],
      ["writelines", "wsgi.errors was given null", {
        app: reporting((errors) => Reflect.apply(errors.writelines, errors, [["", null]])),
      }],
    ],
    legal: [
      ["any text", post(reporting((errors) => errors.write("")))],
      ["flush", post(reporting((errors) => errors.flush()))],
    ],
  },
  {
    section: "Input and Error Streams",
    expected: "strings",
    broken: [["one text", 'writelines was given "ab"', {
      app: reporting((errors) => errors.writelines("ab")),
    }]],
    legal: [["any iterable of texts", post(reporting((errors) => errors.writelines(new Set([""]))))]],
  },
];

testRules("application", [...STARTING_RULES, ...SENDING_RULES, ...READING_RULES], {
  "in process": async ({ app, method }) => {
    await run(validator(app), toEnviron(aRequest(method), { errors: new ErrorLog() }));
  },
  "over Fetch": async ({ app, method }) => await overFetch(validator(app), method),
});

// What an application has swallowed.

/** Does what fails, and takes no notice. */
function swallow(attempt: () => unknown): void {
  assert.throws(attempt, /^Error: The application broke/);
}

const SWALLOWED: Record<string, { app: Application; found: RegExp }> = {
  "of startResponse": {
    app: (_environ, startResponse) => {
      swallow(() => startResponse("200", PLAIN));
      ok(startResponse.bind(undefined), ["X", "y"]);
      return [];
    },
    found: /the status is "200"/,
  },
  "of startResponse, also when the application makes up for it": {
    app: (_environ, startResponse) => {
      swallow(() => startResponse("200 OK", []));
      startResponse("500 Oops", PLAIN, ERROR);
      return [bytes("Oops")];
    },
    found: /came without a Content-Type/,
  },
  "of startResponse, in a generator": {
    app: function* (_environ, startResponse) {
      swallow(() => startResponse("200", PLAIN));
      startResponse("500 Oops", PLAIN, ERROR);
      yield bytes("Oops");
    },
    found: /the status is "200"/,
  },
  "of startResponse, in an empty generator": {
    app: function* (_environ, startResponse) {
      ok(startResponse);
      swallow(() => ok(startResponse));
      yield* [];
    },
    found: /startResponse was called again/,
  },
  "of write": {
    app: (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      swallow(() => Reflect.apply(write, undefined, ["text"]));
      return [];
    },
    found: /a chunk is "text"/,
  },
  "of write, in a stream": {
    app: (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      swallow(() => Reflect.apply(write, undefined, ["text"]));
      return new Set([bytes("Hello")]);
    },
    found: /a chunk is "text"/,
  },
  "of wsgi.errors": {
    app: reporting((errors) => swallow(() => Reflect.apply(errors.write, errors, [5]))),
    found: /wsgi.errors was given 5/,
  },
  "of wsgi.input": {
    app: reading((input) => swallow(() => close(input))),
    found: /wsgi.input was closed/,
  },
  "of wsgi.input, that was awaited": {
    app: reading(async (input) => {
      await assert.rejects(async () => await input.read(0.5), /^Error: The application broke/);
    }),
    found: /read was called with \(0\.5\)/,
  },
  "before the last chunk": {
    app: function* (environ, startResponse) {
      ok(startResponse);
      yield new Uint8Array(0);
      swallow(() => close(environ["wsgi.errors"]));
      yield bytes("Hello");
    },
    found: /wsgi.errors was closed/,
  },
  "after the last chunk": {
    app: function* (environ, startResponse) {
      ok(startResponse);
      yield bytes("Hello");
      swallow(() => close(environ["wsgi.errors"]));
    },
    found: /wsgi.errors was closed/,
  },
};

for (const [which, { app, found }] of Object.entries(SWALLOWED)) {
  // The second call of startResponse in the first of them fails with the first complaint, which goes through.
  const first = which === "of startResponse";
  test(`What is swallowed ${which} is raised ${first ? "by each call that follows" : "once more"}`, async () => {
    await assert.rejects(run(validator(app)), found);
  });

  test(`What is swallowed ${which} reaches the log of the server`, async () => {
    await assert.rejects(overFetch(validator(app)), found);
  });
}

test("What is swallowed is raised before a chunk of the body is asked for", async () => {
  const app: Application = (_environ, startResponse) => {
    swallow(() => startResponse("200", PLAIN));
    return new Set([bytes("Hello")]);
  };
  await assert.rejects(async () => await validator(app)(testEnviron(), accept), /the status is "200"/);
});

test("What is swallowed closes the body that is returned all the same, once", async () => {
  let closes = 0;
  const app: Application = (_environ, startResponse) => {
    swallow(() => startResponse("200", PLAIN));
    return Object.assign([bytes("Hello")], { close: () => void closes++ });
  };
  await assert.rejects(run(validator(app)), /the status is "200"/);
  assert.equal(closes, 1);
});

for (const [what, chunks] of Object.entries({ "an array": ["text"], "a stream": new Set(["text"]) })) {
  test(`A complaint of ${what} closes it, once`, async () => {
    let closes = 0;
    const app = giving(Object.assign(chunks, { close: () => void closes++ }));
    await assert.rejects(run(validator(app)), /a chunk is "text"/);
    assert.equal(closes, 1);
  });
}

test("A close that fails does not hide the complaint that has led to it", async () => {
  const app = giving(Object.assign(["text"], {
    close() {
      throw new Error("Cannot close");
    },
  }));
  await assert.rejects(run(validator(app)), /a chunk is "text"/);
});

test("A generator that fails as it ends does not hide the complaint that has led to it", async () => {
  const app: Application = function* (_environ, startResponse) {
    try {
      ok(startResponse);
      yield wrong("text");
    } finally {
      swallow(() => ok(startResponse));
      assert.fail("Cannot end");
    }
  };
  await assert.rejects(run(validator(app)), /a chunk is "text"/);
});

test("A chunk that is wrong ends the generator it came from", async () => {
  let isOver = false;
  const app: Application = function* (_environ, startResponse) {
    try {
      ok(startResponse);
      yield wrong("text");
    } finally {
      isOver = true;
    }
  };
  await assert.rejects(run(validator(app)), /a chunk is "text"/);
  assert.equal(isOver, true);
});

test("The first of several breaches is the one that is told", async () => {
  const app: Application = (environ, startResponse) => {
    swallow(() => startResponse("first", PLAIN));
    swallow(() => close(environ["wsgi.errors"]));
    return wrong("second");
  };
  await assert.rejects(run(validator(app)), /the status is "first"/);
});

test("A breach in one request is none in another that is answered at the same time", async () => {
  const app = validator(async (environ, startResponse) => {
    await settle();
    startResponse(environ.QUERY_STRING === "broken" ? "200" : "200 OK", PLAIN);
    return new Set([bytes("Hello")]);
  });
  const requests = ["", "broken", ""].map((query) => answer(app, new Request(`${HERE}?${query}`)));
  assert.deepEqual((await Promise.all(requests)).map(({ response }) => response.status), [200, 500, 200]);
});

// Middleware.

/** A middleware that does something to the body. */
function handling(handle: (body: ResponseBody) => ResponseBody | Promise<ResponseBody>): Middleware {
  return (app) => async (environ, startResponse) => {
    const body = await wrong<Application>(app)(environ, startResponse);
    return await handle(body);
  };
}

/** A middleware that makes other chunks of those of the body. */
function rechunking(rechunk: (chunks: AsyncIterator<Uint8Array>) => AsyncGenerator<Uint8Array>): Middleware {
  return handling((body) => ({
    [Symbol.asyncIterator]: () => rechunk(open(body)),
    close: () => body.close?.(),
  }));
}

/** A middleware that does something to startResponse. */
function beginning(begin: (startResponse: StartResponse) => StartResponse): Middleware {
  return (app) => (environ, startResponse) => wrong<Application>(app)(environ, begin(startResponse));
}

/** A middleware that changes the environ for the application inside. */
function changing(changes: Record<string, unknown>): Middleware {
  return (app) => (environ, startResponse) =>
    wrong<Application>(app)(Object.assign({ ...environ }, changes), startResponse);
}

/** All chunks that are left. */
async function drain(chunks: AsyncIterator<Uint8Array>): Promise<Uint8Array[]> {
  const drained: Uint8Array[] = [];
  for (let step = await chunks.next(); !step.done; step = await chunks.next()) drained.push(step.value);
  return drained;
}

/** Chunks one by one. */
async function* each(chunks: AsyncIterator<Uint8Array>): AsyncGenerator<Uint8Array> {
  for (let step = await chunks.next(); !step.done; step = await chunks.next()) yield step.value;
}

/** What is inside the middleware: it begins at once, so that only its chunks are still to come. */
const INSIDE: Application = (_environ, startResponse) => {
  ok(startResponse);
  return new Set(["one ", "two ", "three"].map(bytes));
};

const MIDDLEWARE_RULES: Rule<Middleware>[] = [
  {
    section: "Middleware Handling of Block Boundaries",
    expected: "each to be passed on first",
    broken: [
      [
        "draining a stream before it is asked",
        "chunk 1 was asked for ahead of its turn",
        handling(async (body) => Object.assign(await drain(open(body)), { close: () => body.close?.() })),
      ],
      [
        "draining a stream when it is asked for the first chunk",
        "chunk 2 was asked for ahead of its turn",
        rechunking(async function* (chunks) {
          yield* await drain(chunks);
        }),
      ],
      [
        "reading ahead",
        "chunk 2 was asked for ahead of its turn",
        rechunking(async function* (chunks) {
          let step = await chunks.next();
          while (!step.done) {
            const next = chunks.next();
            next.catch(() => {}); // it is awaited later
            yield step.value;
            step = await next;
          }
        }),
      ],
      [
        "merging two chunks",
        "chunk 2 was asked for ahead of its turn",
        rechunking(async function* (chunks) {
          for await (const chunk of each(chunks)) {
            const { value, done } = await chunks.next();
            yield done ? chunk : Buffer.concat([chunk, value]);
          }
        }),
      ],
      [
        "leaving out a chunk",
        "chunk 2 was asked for ahead of its turn",
        rechunking(async function* (chunks) {
          for await (const chunk of each(chunks)) if (chunk.length > 4) yield chunk;
        }),
      ],
    ],
    legal: [
      ["passing on each chunk", rechunking(each)],
      [
        "changing each chunk",
        rechunking(async function* (chunks) {
          for await (const chunk of each(chunks)) yield bytes(text(chunk).toUpperCase());
        }),
      ],
      [
        "holding back what is not ready, with an empty chunk in its place",
        rechunking(async function* (chunks) {
          const held: Uint8Array[] = [];
          for await (const chunk of each(chunks)) {
            held.push(chunk);
            yield new Uint8Array(0);
          }
          yield Buffer.concat(held);
        }),
      ],
      [
        "splitting a chunk",
        rechunking(async function* (chunks) {
          for await (const chunk of each(chunks)) {
            yield chunk.subarray(0, 1);
            yield chunk.subarray(1);
          }
        }),
      ],
      [
        "adding a chunk at the front and one at the end",
        rechunking(async function* (chunks) {
          yield bytes("first");
          yield* each(chunks);
          yield bytes("last");
        }),
      ],
      [
        "leaving before the end",
        rechunking(async function* (chunks) {
          yield (await chunks.next()).value;
          await chunks.return?.();
        }),
      ],
    ],
  },
  {
    section: "Specification Details",
    expected: "a call before this one ends",
    broken: [
      [
        "a body without close",
        "close of the application inside was not called",
        handling((body) => ({ [Symbol.asyncIterator]: () => open(body) })),
      ],
      [
        "a close that does nothing",
        "close of the application inside was not called",
        handling((body) => ({ [Symbol.asyncIterator]: () => open(body), close: () => {} })),
      ],
      [
        "a close that comes too late",
        "close of the application inside was not called",
        handling((body) => ({
          [Symbol.asyncIterator]: () => open(body),
          close: () => void Promise.resolve().then(() => body.close?.()),
        })),
      ],
      [
        "a body of its own",
        "close of the application inside was not called",
        handling(() => [bytes("Hello")]),
      ],
    ],
    legal: [
      [
        "passing close on",
        handling((body) => ({ [Symbol.asyncIterator]: () => open(body), close: () => body.close?.() })),
      ],
      [
        "a close that waits",
        handling((body) => ({
          [Symbol.asyncIterator]: () => open(body),
          close: async () => {
            await settle();
            await body.close?.();
          },
        })),
      ],
      [
        "a body of its own, after closing the other",
        handling(async (body) => {
          await body.close?.();
          return [bytes("Hello")];
        }),
      ],
      ["answering without the application", () => HELLO],
    ],
  },
  {
    section: "Specification Details",
    expected: "one call",
    broken: [[
      "closing again",
      "close was called a second time",
      handling((body) => ({
        [Symbol.asyncIterator]: () => open(body),
        close: async () => {
          await body.close?.();
          await body.close?.();
        },
      })),
    ]],
    legal: [],
  },
  {
    section: "Specification Details",
    expected: "close to come last",
    broken: [[
      "asking after close",
      "a chunk was asked for after close",
      rechunkingAfter((body) => body.close?.()),
    ]],
    legal: [["asking before close", rechunkingAfter(() => {})]],
  },
  {
    section: "Buffering and Streaming",
    expected: "one after the other",
    broken: [[
      "asking twice at once",
      "a chunk was asked for while another was awaited",
      rechunking(async function* (chunks) {
        const both = [chunks.next(), chunks.next()];
        for (const { value } of await Promise.all(both)) yield value;
      }),
    ]],
    legal: [],
  },
  {
    section: "Buffering and Streaming",
    expected: "a Uint8Array",
    broken: [
      [
        "chunks of text",
        'a chunk is "one "',
        rechunking(async function* (chunks) {
          for await (const chunk of each(chunks)) yield wrong(text(chunk));
        }),
      ],
      [
        "an array of text",
        'a chunk is "text"',
        handling(async (body) => {
          await body.close?.();
          return wrong(["text"]);
        }),
      ],
    ],
    legal: [],
  },
  {
    section: "The Application/Framework Side",
    expected: "an iterable of chunks",
    broken: [[
      "text",
      'the application returned "text"',
      handling(async (body) => {
        await body.close?.();
        return wrong("text");
      }),
    ]],
    legal: [],
  },
  {
    section: "The write() Callable",
    expected: "a chunk of it",
    broken: [[
      "writing what the application has yielded",
      "write was called after the body was returned",
      (app) => async (environ, startResponse) => {
        let write: Write | undefined;
        const body = await wrong<Application>(app)(environ, (...head) => write = startResponse(...head));
        return {
          async *[Symbol.asyncIterator]() {
            for await (const chunk of each(open(body))) {
              write ??= startResponse("200 OK", PLAIN);
              await write(chunk);
              yield new Uint8Array(0);
            }
          },
          close: () => body.close?.(),
        };
      },
    ]],
    legal: [["passing write on", beginning((startResponse) => (...head) => startResponse(...head))]],
  },
  {
    section: "The write() Callable",
    expected: "a function",
    broken: [[
      "no write",
      "startResponse returned undefined",
      beginning((startResponse) => (...head) => wrong(void startResponse(...head))),
    ]],
    legal: [[
      "a write of its own",
      beginning((startResponse) => (...head) => {
        const write = startResponse(...head);
        return async (chunk) => await write(chunk);
      }),
    ]],
  },
  {
    section: "The start_response() Callable",
    expected: 'three digits from 200 to 599, a space and a reason, such as "200 OK"',
    broken: [[
      "a status",
      'the status is "200"',
      beginning((startResponse) => (_status, ...rest) => startResponse("200", ...rest)),
    ]],
    legal: [[
      "another status",
      beginning((startResponse) => (_status, ...rest) => startResponse("201 Created", ...rest)),
    ]],
  },
  {
    section: "Other HTTP Features",
    expected: "one",
    broken: [[
      "headers taken away",
      '"200 OK" came without a Content-Type',
      beginning((startResponse) => (status) => startResponse(status, [])),
    ]],
    legal: [],
  },
  {
    section: "Other HTTP Features",
    expected: "no body",
    broken: [[
      "a status that has no body",
      "204 No Content came with a body of Uint8Array(4) [ 111, 110, 101, 32 ]",
      beginning((startResponse) => () => startResponse("204 No Content", [])),
    ]],
    legal: [],
  },
  {
    section: "Handling the Content-Length Header",
    expected: "20 as declared",
    broken: [[
      "a length that is not true any more",
      "the body has 13 bytes",
      beginning((startResponse) => (status, headers) => startResponse(status, [...headers, ["Content-Length", "20"]])),
    ]],
    legal: [[
      "a length that is true",
      beginning((startResponse) => (status, headers) => startResponse(status, [...headers, ["Content-Length", "13"]])),
    ]],
  },
  {
    section: "The start_response() Callable",
    expected: "the call first",
    broken: [[
      "keeping startResponse to itself",
      "a chunk came before startResponse was called",
      beginning(() => accept),
    ]],
    legal: [[
      "delaying startResponse until the first chunk",
      (app) => async (environ, startResponse) => {
        const heads: Parameters<StartResponse>[] = [];
        const body = await wrong<Application>(app)(environ, (...head) => {
          heads.push(head);
          return accept(...head);
        });
        return {
          async *[Symbol.asyncIterator]() {
            for await (const chunk of each(open(body))) {
              for (const head of heads.splice(0)) startResponse(...head);
              yield chunk;
            }
          },
          close: () => body.close?.(),
        };
      },
    ]],
  },
  {
    section: "The Application/Framework Side",
    expected: "(environ, startResponse)",
    broken: [["calling with nothing but the environ", "the application was called with ({})", (app) => (environ) => {
      const known = Object.getOwnPropertySymbols(environ);
      const hidden = Object.fromEntries(known.map((symbol) => [symbol, Reflect.get(environ, symbol)]));
      const empty = Object.create(Object.prototype, Object.getOwnPropertyDescriptors(hidden));
      for (const symbol of known) Object.defineProperty(empty, symbol, { enumerable: false });
      return Reflect.apply(wrong<Application>(app), undefined, [empty]);
    }]],
    legal: [],
  },
  ...[
    {
      changes: { PATH_INFO: "page" },
      found: 'PATH_INFO is "page"',
      expected: 'an empty string or a path such as "/page"',
    },
    { changes: { SERVER_PORT: 80 }, found: "SERVER_PORT is 80", expected: 'a port such as "80"' },
    { changes: { "wsgi.input": null }, found: "wsgi.input is null", expected: "an input stream" },
    {
      changes: { REMOTE_USER: undefined },
      found: "REMOTE_USER is undefined",
      expected: "what is not known to be absent",
    },
    { changes: { REMOTE_USER: 7 }, found: "REMOTE_USER is 7", expected: "a string" },
  ].map(({ changes, found, expected }): Rule<Middleware> => ({
    section: "environ Variables",
    expected,
    broken: [["an environ that is broken", found, changing(changes)]],
    legal: [],
  })),
  {
    section: "Unicode Issues",
    expected: "one character for each byte",
    broken: [["an environ with other text", 'REMOTE_USER is "€"', changing({ REMOTE_USER: "€" })]],
    legal: [["an environ with more in it", changing({ REMOTE_USER: "Ada", "example.user": { name: "€" } })]],
  },
];

/** A middleware that does something to the body before it asks for the first chunk. */
function rechunkingAfter(first: (body: ResponseBody) => unknown): Middleware {
  return handling((body) => ({
    async *[Symbol.asyncIterator]() {
      await first(body);
      yield* each(open(body));
    },
    close: () => body.close?.(),
  }));
}

testRules("middleware", MIDDLEWARE_RULES, {
  "in process": async (middleware) => void await run(validator(middleware(validator(INSIDE)))),
  "over Fetch": async (middleware) => await overFetch(validator(middleware(validator(INSIDE)))),
});

test("A middleware whose write gives no promise is told by the validator below it", async () => {
  const silent = beginning((startResponse) => (...head) => {
    startResponse(...head);
    return () => wrong(undefined);
  });
  await assert.rejects(run(validator(silent(validator(WRITING)))), {
    message: complaint("middleware", "The write() Callable", "write returned undefined", "a promise"),
  });
});

test("A middleware that gives its application an input of text is told by the validator below it", async () => {
  const app = validator(reading((input) => input.read()));
  const environ = changing({ "wsgi.input": inputOf("text") });
  await assert.rejects(run(validator(environ(app))), {
    message: complaint("middleware", "Input and Error Streams", 'wsgi.input gave "text"', "bytes"),
  });
});

test("What the application inside breaks is not blamed on the middleware around it", async () => {
  const through = handling((body) => body);
  await assert.rejects(run(validator(through(validator(giving(["text"]))))), {
    message: complaint("application", "Buffering and Streaming", 'a chunk is "text"', "a Uint8Array"),
  });
});

test("What the server breaks is not blamed on the middleware", async () => {
  const through = handling((body) => body);
  await assert.rejects(run(validator(through(validator(HELLO))), environWith({ REMOTE_PORT: 80 })), {
    message: complaint("server", "environ Variables", "REMOTE_PORT is 80", "a string"),
  });
});

test("A middleware without a validator below it is an application", async () => {
  const middleware = rechunking(async function* (chunks) {
    for await (const chunk of each(chunks)) yield wrong(text(chunk));
  });
  const asynchronous: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield await Promise.resolve(bytes("one"));
  };
  await assert.rejects(run(validator(middleware(asynchronous))), {
    message: complaint("application", "Buffering and Streaming", 'a chunk is "one"', "a Uint8Array"),
  });
});

test("Of three validators the two around the middleware that is broken say so", async () => {
  const through = handling((body) => body);
  const draining = rechunking(async function* (chunks) {
    yield* await drain(chunks);
  });
  for (const [outer, inner] of [[through, draining], [draining, through]] as const) {
    await assert.rejects(run(validator(outer(validator(inner(validator(STREAM)))))), /^Error: The middleware broke/);
  }
});

test("A middleware may call the application again, after it has closed what it was given first", async () => {
  const again: Middleware = (app) => async (environ, startResponse) => {
    const first = await wrong<Application>(app)(environ, accept);
    await first.close?.();
    return await wrong<Application>(app)(environ, startResponse);
  };
  assert.equal(await run(validator(again(validator(STREAM)))), "one two three");
});

test("A middleware may call another application with the same environ, after it has closed the first one", async () => {
  const none = validator(starting(["404 Not Found", PLAIN]));
  const other = validator(STREAM);
  const app = validator(async (environ, startResponse) => {
    await (await none(environ, accept)).close?.();
    return await other(environ, startResponse);
  });
  assert.equal(await run(app), "one two three");
});

test("A middleware may call another application with the same environ, after the first one has failed", async () => {
  const failing = validator(() => {
    throw ERROR;
  });
  const other = validator(STREAM);
  const app = validator(async (environ, startResponse) => {
    await assert.rejects(async () => await failing(environ, accept), ERROR);
    return await other(environ, startResponse);
  });
  assert.equal(await run(app), "one two three");
});

test("A middleware may call two applications at once, each with an environ of its own", async () => {
  const inner = [validator(STREAM), validator(STREAM)];
  const app = validator(async (environ, startResponse) => {
    const [one, other] = await Promise.all(inner.map((app) => app({ ...environ }, accept)));
    ok(startResponse);
    return {
      async *[Symbol.asyncIterator]() {
        yield* each(open(one!));
        yield* each(open(other!));
      },
      async close() {
        await one!.close?.();
        await other!.close?.();
      },
    };
  });
  assert.equal(await run(app), "one two threeone two three");
});

// What is right passes.

class Instance {
  closes = 0;
  constructor(readonly environ: Environ, startResponse: StartResponse) {
    ok(startResponse);
  }

  *[Symbol.iterator](): Generator<Uint8Array> {
    yield bytes("an ");
    yield bytes(typeof this.environ);
  }

  close(): void {
    if (this.closes++ > 0) throw new Error("Closed twice");
  }
}

const RIGHT: Record<string, ApplicationLike> = {
  "an array": giving(["one ", "two"].map(bytes)),
  "an empty array": giving([]),
  "a promise of an array": async (environ, startResponse) => await HELLO(environ, startResponse),
  "a set": giving(new Set(["one ", "two"].map(bytes))),
  "a generator": STREAM,
  "an async generator": async function* (_environ, startResponse) {
    await Promise.resolve();
    ok(startResponse, ["X-Late", "yes"]);
    yield bytes("one ");
    yield new Uint8Array(0);
    yield bytes("two");
  },
  "a ReadableStream": (_environ, startResponse) => {
    ok(startResponse);
    return wrong(new Blob(["from a stream"]).stream());
  },
  "a class": Instance,
  "an object": { handle: STREAM },
  "a file": (environ, startResponse) => {
    ok(startResponse);
    return environ["wsgi.file_wrapper"](new MemoryFile("a file in blocks"), 5);
  },
  "a Blob": (environ, startResponse) => {
    ok(startResponse, ["Content-Length", "6"]);
    return environ["wsgi.file_wrapper"](new Blob(["a blob"]));
  },
  "write": writes(["one ", "two "].map(bytes), [bytes("three")]),
  "write that is awaited": async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    await write(bytes("one "));
    await write(bytes("two "));
    return new Set([bytes("three")]);
  },
  "an error in place of what was begun": (_environ, startResponse) => {
    ok(startResponse, ["Content-Length", "100"]);
    startResponse("404 Not Found", PLAIN, ERROR);
    return [bytes("Nothing here")];
  },
  "an error in a generator": function* (_environ, startResponse) {
    ok(startResponse);
    yield new Uint8Array(0);
    startResponse("500 Oops", PLAIN, ERROR);
    yield bytes("Oops");
  },
  "204": starting(["204 No Content", [["X", "y"]]]),
  "304": starting(["304 Not Modified", [["ETag", '"1"'], ["Content-Length", "10"]]]),
  "headers that are repeated": heading(["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]),
};

/** A middleware that passes everything on, by hand. */
const THROUGH: Middleware = (app) => async (environ, startResponse) => {
  const body = await wrong<Application>(app)(environ, startResponse);
  return !(Symbol.asyncIterator in body) ? body : {
    [Symbol.asyncIterator]: () => open(body),
    close: () => body.close?.(),
  };
};

/** A response, to be compared. */
async function responseOf(app: ApplicationLike, method: string): Promise<unknown> {
  const { response, errors } = await answer(app, new Request(HERE, { method }));
  return [response.status, [...response.headers], await response.text(), errors.text];
}

for (const [what, app] of Object.entries(RIGHT)) {
  test(`What is right passes two validators and a middleware unchanged: ${what}`, async () => {
    const environ = testEnviron();
    const plain = await runApplication(app, environ);
    const watched = await runApplication(validator(THROUGH(validator(app))), environ);
    assert.deepEqual({ ...watched, body: text(watched.body) }, { ...plain, body: text(plain.body) });
  });

  for (const method of ["GET", "HEAD"]) {
    test(`What is right gives ${method} the same response with validators as without: ${what}`, async () => {
      const watched = await responseOf(validator(THROUGH(validator(app))), method);
      assert.deepEqual(watched, await responseOf(app, method));
    });
  }
}

test("An array stays an array of the same chunks, at once, and is not changed", () => {
  const chunks = ["one", "two"].map(bytes);
  const body = validator(validator(giving(chunks)))(testEnviron(), accept);
  assert.ok(Array.isArray(body));
  assert.equal(body.length, 2);
  for (const [index, chunk] of chunks.entries()) assert.equal(body[index], chunk);
  assert.deepEqual(Object.keys(chunks), ["0", "1"]);
});

test("Chunks of a stream are passed on as they are, one for each that is asked for", async () => {
  const chunks = ["one", "", "two"].map(bytes);
  const asked: number[] = [];
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse);
    for (const [index, chunk] of chunks.entries()) {
      asked.push(index);
      yield chunk;
    }
  };
  const body = open(await validator(validator(app))(testEnviron(), accept));
  assert.deepEqual(asked, []);
  for (const [index, chunk] of chunks.entries()) {
    assert.equal((await body.next()).value, chunk);
    assert.equal(asked.length, index + 1);
  }
});

test("A write gives the promise of the server", async () => {
  const promise = Promise.resolve();
  const promises: Promise<void>[] = [];
  const app: Application = (_environ, startResponse) => {
    promises.push(startResponse("200 OK", PLAIN)(bytes("Hello")));
    return [];
  };
  await run(validator(app), testEnviron(), () => () => promise);
  assert.equal(promises[0], promise);
});

test("What startResponse throws is passed on, and is no breach", async () => {
  const app: Application = (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("Hello"));
    assert.throws(() => startResponse("500 Oops", PLAIN, ERROR), ERROR);
    throw ERROR;
  };
  const environ = testEnviron();
  await assert.rejects(runApplication(validator(THROUGH(validator(app))), environ), ERROR);
});

for (const when of ["when it is called", "later", "in its body", "in close"]) {
  test(`An error of the application is passed on as it is, thrown ${when}`, async () => {
    const fail = () => {
      throw ERROR;
    };
    const app: Application = (_environ, startResponse) => {
      if (when === "when it is called") return fail();
      if (when === "later") return Promise.reject(ERROR);
      ok(startResponse);
      if (when === "in close") return Object.assign([], { close: fail });
      return { [Symbol.iterator]: () => ({ next: fail }) };
    };
    await assert.rejects(runApplication(validator(THROUGH(validator(app))), testEnviron()), ERROR);
  });
}

test("Input and errors work through validators as they do without", async () => {
  const lines: string[] = [];
  const app: Application = async (environ, startResponse) => {
    const input = environ["wsgi.input"];
    lines.push(text(await input.read(1)), text(await input.readline()), text(await input.readline(2)));
    lines.push(...(await input.readlines(1)).map(text));
    for await (const line of input) lines.push(text(line));
    lines.push(text(await input.read()));
    environ["wsgi.errors"].write("one\n");
    environ["wsgi.errors"].writelines(["two\n", "three\n"]);
    environ["wsgi.errors"].flush();
    return HELLO(environ, startResponse);
  };
  const request = new Request(HERE, { method: "POST", body: "first\nsecond\nthird\nfourth\n" });
  const { errors } = await runApplication(validator(THROUGH(validator(app))), toEnviron(request));
  assert.deepEqual(lines, ["f", "irst\n", "se", "cond\n", "third\n", "fourth\n", ""]);
  assert.equal(errors, "one\ntwo\nthree\n");
});

test("An application may answer with what it was sent", async () => {
  const echo: Application = (environ, startResponse) => {
    ok(startResponse);
    return environ["wsgi.input"];
  };
  const { response, errors } = await answer(validator(THROUGH(validator(echo))), aRequest());
  assert.equal(await response.text(), "one\ntwo\n");
  await settle();
  assert.equal(errors.text, "");
});

test("A flush of wsgi.errors is one of the server's, through validators", async () => {
  let flushes = 0;
  const errors = Object.assign(new ErrorLog(), { flush: () => void flushes++ });
  await run(validator(validator(reporting((errors) => errors.flush()))), environWith({ "wsgi.errors": errors }));
  assert.equal(flushes, 1);
});

test("A file that is longer than its Content-Length is sent up to there: PEP 3333 has it so", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse, ["Content-Length", "4"]);
    return environ["wsgi.file_wrapper"](new MemoryFile("0123456789"));
  };
  const { response, errors } = await answer(validator(app));
  assert.equal(errors.text, "");
  assert.equal(await response.text(), "0123");
});

/** How a response ends: what the application gives, or how it is asked, and how often close is called. */
const ENDINGS: Record<string, { status?: string; method?: string; fails?: boolean; leaves?: boolean }> = {
  "at its end": {},
  "in answer to HEAD": { method: "HEAD" },
  "with 204": { status: "204 No Content" },
  "with 304": { status: "304 Not Modified" },
  "by an error": { fails: true },
  "by the client": { leaves: true },
};

/** Bodies of every kind. */
const BODIES: Record<string, (chunks: Uint8Array[], fails: boolean) => ResponseBody> = {
  "an array": (chunks, fails) => fails ? wrong([...chunks, "text"]) : chunks,
  "an object with a generator": (chunks, fails) => ({
    *[Symbol.iterator]() {
      yield* chunks;
      if (fails) throw ERROR;
    },
  }),
  "an object with an async generator": (chunks, fails) => ({
    async *[Symbol.asyncIterator]() {
      yield* chunks;
      await settle();
      if (fails) throw ERROR;
    },
  }),
  "a ReadableStream": (chunks, fails) =>
    wrong(
      new ReadableStream({
        pull(controller) {
          const chunk = chunks.shift();
          if (chunk) controller.enqueue(chunk);
          else if (fails) controller.error(ERROR);
          else controller.close();
        },
      }, { highWaterMark: 0 }),
    ),
};

for (const [which, make] of Object.entries(BODIES)) {
  for (const [how, { status = "200 OK", method = "GET", fails = false, leaves = false }] of Object.entries(ENDINGS)) {
    test(`Through validators ${which} is closed once when the response ends ${how}`, async () => {
      let closes = 0;
      const hasBody = status === "200 OK";
      const app: Application = (_environ, startResponse) => {
        startResponse(status, hasBody ? PLAIN : []);
        const body = make(hasBody ? ["one", "two", "three"].map(bytes) : [], fails);
        return Object.assign(body, { close: () => void closes++ });
      };
      const { response } = await answer(validator(THROUGH(validator(app))), new Request(HERE, { method }));
      if (leaves) await response.body?.cancel();
      else await response.text().catch(() => {});
      await settle();
      assert.equal(closes, 1);
    });
  }
}

test("The first chunk leaves through validators before the second one exists", async () => {
  const received = new Event("the first chunk");
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    await received.wait();
    yield bytes("second");
  };
  await using server = start(validator(THROUGH(validator(app))));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  received.happen();
  assert.match(parse(await client.end()).body, /^firstsecond$/);
  assert.equal(server.errors.text, "");
});

test("A client that leaves ends a generator behind validators, once, and nobody is blamed", async () => {
  const ended = new Event("the end of the generator");
  const closed = new Event("close");
  let closes = 0;
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    const left = new Promise((resolve) => environ["fetch.context"]?.signal.addEventListener("abort", resolve));
    return {
      async *[Symbol.asyncIterator]() {
        try {
          yield bytes("first");
          await left;
        } finally {
          ended.happen();
        }
      },
      close() {
        closes++;
        closed.happen();
      },
    };
  };
  await using server = start(validator(THROUGH(validator(app))));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/first/);
  client.leave();
  await ended.wait();
  await closed.wait();
  await settle();
  assert.equal(closes, 1);
  assert.doesNotMatch(server.errors.text, /broke/);
});

test("A breach after the first chunk aborts the response on the wire, and is logged", async () => {
  await using server = start(validator(streaming([bytes("first"), "second"])));
  const client = await Client.connect(server);
  await client.send(request("/"));
  assert.equal(parse(await client.end()).complete, false);
  await server.errors.matches(/The application broke .*: a chunk is "second", expected a Uint8Array/);
});

test("A request for any kind of target is no breach of the server", async () => {
  await using server = start(validator(HELLO));
  for (const target of ["/", "//", "/a?b?c", "/?", "/%00%ff", "http://test.example/page", "/a;b=c/../d"]) {
    const client = await Client.connect(server);
    await client.send(request(target));
    assert.equal(parse(await client.end()).status, 200, target);
  }
  assert.equal(server.errors.text, "");
});

for (const like of [undefined, null, 5, "app", {}, { handle: 1 }]) {
  test(`A validator of ${JSON.stringify(like)} throws a TypeError at once`, () => {
    assert.throws(() => validator(wrong(like)), TypeError);
  });
}

// The examples.

/** A request to each example, and what its answer has in it. */
const EXAMPLES: Record<string, { app: ApplicationLike; path?: string; init?: RequestInit; reply: RegExp }> = {
  "environ.ts": { app: environExample, reply: /^REQUEST_METHOD: GET$/m },
  "fetch.ts": { app: fetchExample, reply: /^Hello, world!\n$/ },
  "hello.ts": { app: helloExample, reply: /^Hello, world!\n$/ },
  "reverse.ts": { app: reverseExample, reply: /^TEG :DOHTEM_TSEUQER$/m },
  "upload.ts": { app: uploadExample, init: { method: "POST", body: "four" }, reply: /^[0-9a-f]{64} {2}4 bytes\n$/ },
  "framework.ts": { app: frameworkExample, path: "hello/you", reply: /Hello you!/ },
  "framework.ts, its JSON": { app: frameworkExample, path: "users/7", reply: /^\{"id":"7","name":"Ada"\}$/ },
  "framework.ts, its stream": { app: frameworkExample, path: "count", reply: /^1\n2\n3\n$/ },
  "framework.ts, its input": {
    app: frameworkExample,
    path: "sum",
    init: { method: "POST", body: "[1, 2, 3]" },
    reply: /^\{"sum":6\}$/,
  },
  "framework.ts, an error": { app: frameworkExample, path: "users/8", reply: /./ },
  "framework.ts, a wrong method": { app: frameworkExample, path: "sum", reply: /^$/ },
  "files.ts": { app: filesExample(folderOf("../examples")), path: "hello.ts", reply: /The shortest program/ },
  "files.ts, a part": {
    app: filesExample(folderOf("../examples")),
    path: "hello.ts",
    init: { headers: { Range: "bytes=3-9" } },
    reply: /^.{7}$/s,
  },
  "files.ts, compressed": {
    app: filesExample(folderOf("..")),
    path: "README.md",
    init: { headers: { "Accept-Encoding": "gzip" } },
    reply: /\ufffd/, // gzip is no text
  },
  "files.ts, nothing": { app: filesExample(folderOf("../examples")), path: "nothing", reply: /./ },
};

/** A folder, seen from here. */
function folderOf(path: string): string {
  return fileURLToPath(new URL(path, import.meta.url));
}

/** Runs something while nothing is printed. */
async function quietly<Result>(run: () => Promise<Result>): Promise<Result> {
  const { log } = console;
  console.log = () => {};
  try {
    return await run();
  } finally {
    console.log = log;
  }
}

for (const [which, { app, path = "", init, reply }] of Object.entries(EXAMPLES)) {
  test(`The validator has nothing to say of the example ${which}`, async () => {
    await quietly(async () => {
      const { response, errors } = await answer(validator(app), new Request(HERE + path, init));
      assert.match(await response.text(), reply);
      await settle();
      assert.doesNotMatch(errors.text, /broke/);
    });
  });
}

test("The validator has nothing to say of the example stream.ts, which a client leaves", async () => {
  await quietly(async () => {
    const { response, errors } = await answer(validator(streamExample));
    const reader = response.body!.getReader();
    assert.match(text((await within(reader.read(), "an event")).value!), /^id: 1\n/);
    await reader.cancel();
    await settle();
    assert.equal(errors.text, "");
  });
});

// The helpers, by the tables of Python's own tests (Lib/test/test_wsgiref.py, UtilityTests), and more.

/** SCRIPT_NAME and PATH_INFO before, the segment, SCRIPT_NAME and PATH_INFO after. */
const SHIFTS: [script: string, path: string, segment: string | null, scriptAfter: string, pathAfter: string][] = [
  ["", "/", "", "/", ""],
  ["", "/x", "x", "/x", ""],
  ["/", "", null, "/", ""],
  ["/a", "/x/y", "x", "/a/x", "/y"],
  ["/a", "/x/", "x", "/a/x", "/"],
  ["/a/b", "/../y", "..", "/a", "/y"],
  ["", "/../y", "..", "", "/y"],
  ["/a/b", "//y", "y", "/a/b/y", ""],
  ["/a/b", "//y/", "y", "/a/b/y", "/"],
  ["/a/b", "/./y", "y", "/a/b/y", ""],
  ["/a/b", "/./y/", "y", "/a/b/y", "/"],
  ["/a/b", "///./..//y/.//", "..", "/a", "/y/"],
  ["/a/b", "///", "", "/a/b/", ""],
  ["/a/b", "/.//", "", "/a/b/", ""],
  ["/a/b", "/x//", "x", "/a/b/x", "/"],
  ["/a/b", "/.", null, "/a/b", ""],
  // These are not from there; Python gives the same.
  ["", "", null, "", ""],
  ["", "/.", null, "", ""],
  ["", "/..", "..", "", ""],
  ["/a", "/..", "..", "", ""],
  ["/a", "/../..", "..", "", "/.."],
  ["/a/", "/x", "x", "/a/x", ""],
  ["/a/", "/", "", "/a/", ""],
  ["/a//b/./c/..", "/x", "x", "/a/b/x", ""],
  ["/a", "/x/./y", "x", "/a/x", "/y"],
  ["/a", "/x/.", "x", "/a/x", "/."],
  ["/a", "/x/..", "x", "/a/x", "/.."],
  ["/a", "/...", "...", "/a/...", ""],
  ["/a", "/\u00e9 ?%2F;x=y/z", "\u00e9 ?%2F;x=y", "/a/\u00e9 ?%2F;x=y", "/z"],
];

for (const [script, path, segment, scriptAfter, pathAfter] of SHIFTS) {
  test(`shiftPathInfo moves from ${JSON.stringify(path)} to ${JSON.stringify(script)} as Python does`, () => {
    const environ = testEnviron({ SCRIPT_NAME: script, PATH_INFO: path });
    assert.equal(shiftPathInfo(environ), segment);
    assert.equal(environ.SCRIPT_NAME, scriptAfter);
    assert.equal(environ.PATH_INFO, pathAfter);
  });
}

test("shiftPathInfo changes nothing but SCRIPT_NAME and PATH_INFO", () => {
  const environ = testEnviron({ SCRIPT_NAME: "/a", PATH_INFO: "/x/y" });
  const before = { ...environ };
  shiftPathInfo(environ);
  assert.deepEqual(environ, { ...before, SCRIPT_NAME: "/a/x", PATH_INFO: "/y" });
});

test("shiftPathInfo walks a path from segment to segment to its end", () => {
  const environ = testEnviron({ PATH_INFO: "/a//b/./c/" });
  const segments: (string | null)[] = [];
  for (let turn = 0; turn < 6; turn++) segments.push(shiftPathInfo(environ));
  assert.deepEqual(segments, ["a", "b", "c", "", null, null]);
});

const APPLICATION_URIS: [uri: string, overrides: Partial<Environ>][] = [
  ["http://127.0.0.1/", {}],
  ["http://127.0.0.1/spam", { SCRIPT_NAME: "/spam" }],
  ["http://127.0.0.1/sp%E4m", { SCRIPT_NAME: "/sp\u00e4m" }],
  ["http://spam.example.com:2071/", { HTTP_HOST: "spam.example.com:2071", SERVER_PORT: "2071" }],
  ["http://spam.example.com/", { SERVER_NAME: "spam.example.com" }],
  ["http://127.0.0.1/", { HTTP_HOST: "127.0.0.1", SERVER_NAME: "spam.example.com" }],
  ["https://127.0.0.1/", { HTTPS: "on" }],
  ["http://127.0.0.1:8000/", { SERVER_PORT: "8000", HTTP_HOST: "" }],
  // These are not from there; Python gives the same.
  ["http://127.0.0.1/", { SERVER_PORT: "80", HTTP_HOST: "" }],
  ["http://127.0.0.1:443/", { SERVER_PORT: "443", HTTP_HOST: "" }],
  ["https://127.0.0.1/", { SERVER_PORT: "443", HTTP_HOST: "", HTTPS: "1" }],
  ["https://127.0.0.1:80/", { SERVER_PORT: "80", HTTP_HOST: "", "wsgi.url_scheme": "https" }],
  ["http://[::1]:8080/", { SERVER_NAME: "[::1]", SERVER_PORT: "8080", HTTP_HOST: "" }],
  ["http://h:80/a/", { HTTP_HOST: "h:80", SCRIPT_NAME: "/a/", PATH_INFO: "/page", QUERY_STRING: "a=b" }],
  ["http://127.0.0.1/a%3Bb%3D%2C%20%25%3F%23~._-", { SCRIPT_NAME: "/a;b=, %?#~._-" }],
];

for (const [uri, overrides] of APPLICATION_URIS) {
  test(`applicationUri gives ${uri} for ${JSON.stringify(overrides)}`, () => {
    assert.equal(applicationUri(testEnviron(overrides)), uri);
  });
}

const SPAM = { SCRIPT_NAME: "/spammity", PATH_INFO: "/spam" };
const REQUEST_URIS: [uri: string, overrides: Partial<Environ>, includeQuery?: boolean][] = [
  ["http://127.0.0.1/", {}],
  ["http://127.0.0.1/spam", { SCRIPT_NAME: "/spam" }],
  ["http://127.0.0.1/sp%E4m", { SCRIPT_NAME: "/sp\u00e4m" }],
  ["http://127.0.0.1/spammity/spam", SPAM],
  ["http://127.0.0.1/spammity/sp%E4m", { ...SPAM, PATH_INFO: "/sp\u00e4m" }],
  ["http://127.0.0.1/spammity/spam;ham", { ...SPAM, PATH_INFO: "/spam;ham" }],
  ["http://127.0.0.1/spammity/spam;cookie=1234,5678", { ...SPAM, PATH_INFO: "/spam;cookie=1234,5678" }],
  ["http://127.0.0.1/spammity/spam?say=ni", { ...SPAM, QUERY_STRING: "say=ni" }],
  ["http://127.0.0.1/spammity/spam?s%E4y=ni", { ...SPAM, QUERY_STRING: "s%E4y=ni" }],
  ["http://127.0.0.1/spammity/spam", { ...SPAM, QUERY_STRING: "say=ni" }, false],
  // These are not from there; Python gives the same.
  ["http://127.0.0.1/spammity/spam?say=ni", { ...SPAM, QUERY_STRING: "say=ni" }, true],
  ["http://127.0.0.1/spammity", { ...SPAM, PATH_INFO: "" }],
  ["http://127.0.0.1//evil.example/", { PATH_INFO: "//evil.example/" }],
  ["http://127.0.0.1/a//b/../c/", { PATH_INFO: "/a//b/../c/" }],
  ["http://127.0.0.1/%00%0A%20%7F%80%FF", { PATH_INFO: "/\0\n \x7f\x80\xff" }],
  ["http://127.0.0.1/%21%22%23%24%25%26%27%28%29%2A%2B,-./", { PATH_INFO: "/!\"#$%&'()*+,-./" }],
  ["http://127.0.0.1/09%3A;%3C=%3E%3F%40AZ", { PATH_INFO: "/09:;<=>?@AZ" }],
  ["http://127.0.0.1/%5B%5C%5D%5E_%60az%7B%7C%7D~", { PATH_INFO: "/[\\]^_`az{|}~" }],
  ["http://127.0.0.1/??a b", { PATH_INFO: "/", QUERY_STRING: "?a b" }],
];

for (const [uri, overrides, includeQuery] of REQUEST_URIS) {
  const shown = JSON.stringify(includeQuery === undefined ? overrides : [overrides, { includeQuery }]);
  test(`requestUri gives ${uri} for ${shown}`, () => {
    const environ = testEnviron(overrides);
    assert.equal(includeQuery === undefined ? requestUri(environ) : requestUri(environ, { includeQuery }), uri);
  });
}

test("requestUri and applicationUri refuse what is not bytes, as Python does", () => {
  assert.throws(() => requestUri({ ...testEnviron(), PATH_INFO: "/\u20ac" }));
  assert.throws(() => applicationUri({ ...testEnviron(), SCRIPT_NAME: "/\u20ac" }));
});

test("requestUri gives the address of a request back, under a mount point and over a socket", async () => {
  let uris: string[] = [];
  await using server = start(
    validator((environ, startResponse) => {
      uris = [requestUri(environ), applicationUri(environ)];
      return HELLO(environ, startResponse);
    }),
    { scriptName: "/app" },
  );
  const client = await Client.connect(server);
  await client.send(request("/app/caf%C3%A9;x=1/%2F?q=%C3%A9"));
  await client.end();
  assert.deepEqual(uris, ["http://test.example/app/caf%C3%A9;x=1//?q=%C3%A9", "http://test.example/app"]);
});

for (
  const [scheme, environ] of [
    ["http", {}],
    ["http", { HTTPS: "foo" }],
    ["https", { HTTPS: "on" }],
    ["https", { HTTPS: "yes" }],
    ["https", { HTTPS: "1" }],
    // These are not from there; Python gives the same.
    ["http", { HTTPS: "" }],
    ["http", { HTTPS: "ON" }],
    ["http", { HTTPS: "off" }],
    ["http", { HTTPS: "true" }],
    ["http", { "wsgi.url_scheme": "https" }],
  ] satisfies [string, Partial<Environ>][]
) {
  test(`guessScheme guesses ${scheme} for ${JSON.stringify(environ)}`, () => {
    assert.equal(guessScheme(environ), scheme);
  });
}

/** What Python's `setup_testing_defaults` sets, and another value, which must stay. */
const DEFAULTS: [name: string, value: unknown, overrides: Partial<Environ>][] = [
  ["SERVER_NAME", "127.0.0.1", { SERVER_NAME: "spam" }],
  ["SERVER_PORT", "80", { SERVER_PORT: "8080" }],
  ["SERVER_PROTOCOL", "HTTP/1.0", { SERVER_PROTOCOL: "HTTP/1.1" }],
  ["HTTP_HOST", "127.0.0.1", { HTTP_HOST: "spam:1" }],
  ["REQUEST_METHOD", "GET", { REQUEST_METHOD: "PUT" }],
  ["SCRIPT_NAME", "", { SCRIPT_NAME: "/spam" }],
  ["PATH_INFO", "/", { PATH_INFO: "/spam" }],
  ["wsgi.version", [1, 0], { "wsgi.version": [1, 0] }],
  ["wsgi.run_once", false, { "wsgi.run_once": true }],
  ["wsgi.multithread", false, { "wsgi.multithread": true }],
  ["wsgi.multiprocess", false, { "wsgi.multiprocess": true }],
  ["wsgi.url_scheme", "http", { "wsgi.url_scheme": "https" }],
  ["wsgi.input", undefined, { "wsgi.input": inputOf([]) }],
  ["wsgi.errors", undefined, { "wsgi.errors": new ErrorLog() }],
  // These are not from there: the contract has them always present.
  ["QUERY_STRING", "", { QUERY_STRING: "a=b" }],
  ["REQUEST_URI", "/", { REQUEST_URI: "*" }],
  ["wsgi.input_terminated", true, { "wsgi.input_terminated": false }],
  ["SERVER_SOFTWARE", undefined, { SERVER_SOFTWARE: "Own/1" }],
  ["wsgi.file_wrapper", undefined, { "wsgi.file_wrapper": () => [] }],
];

for (const [name, value, overrides] of DEFAULTS) {
  if (value !== undefined) {
    test(`testEnviron has the default of ${name}`, () => assert.deepEqual(testEnviron()[name], value));
  }

  test(`testEnviron keeps what is given for ${name}`, () => {
    assert.equal(testEnviron(overrides)[name], overrides[name]);
  });
}

const CROSS_DEFAULTS: [name: string, value: string, overrides: Partial<Environ>][] = [
  ["HTTP_HOST", "foo.bar", { SERVER_NAME: "foo.bar" }],
  ["wsgi.url_scheme", "https", { HTTPS: "on" }],
  ["wsgi.url_scheme", "https", { HTTPS: "1" }],
  ["wsgi.url_scheme", "https", { HTTPS: "yes" }],
  ["wsgi.url_scheme", "http", { HTTPS: "foo" }],
  ["SERVER_PORT", "80", { HTTPS: "foo" }],
  ["SERVER_PORT", "443", { HTTPS: "on" }],
  // These are not from there; Python gives the same, where it has the variable at all.
  ["SERVER_PORT", "443", { "wsgi.url_scheme": "https" }],
  ["wsgi.url_scheme", "http", { HTTPS: "on", "wsgi.url_scheme": "http" }],
  ["HTTP_HOST", "h", { SERVER_NAME: "foo.bar", HTTP_HOST: "h" }],
  ["SCRIPT_NAME", "", { PATH_INFO: "/page" }],
  ["PATH_INFO", "", { SCRIPT_NAME: "/app" }],
  ["PATH_INFO", "/", { SCRIPT_NAME: "" }],
  ["REQUEST_URI", "/app/a%20b?c=d", { SCRIPT_NAME: "/app", PATH_INFO: "/a b", QUERY_STRING: "c=d" }],
];

for (const [name, value, overrides] of CROSS_DEFAULTS) {
  test(`testEnviron makes ${name} ${JSON.stringify(value)} of ${JSON.stringify(overrides)}`, () => {
    assert.equal(testEnviron(overrides)[name], value);
  });

  test(`testEnviron gives what the validator accepts for ${name} of ${JSON.stringify(overrides)}`, async () => {
    assert.equal(await run(validator(HELLO), testEnviron(overrides)), "Hello");
  });
}

test("testEnviron has an input that is empty, and streams that work", async () => {
  const { "wsgi.input": input, "wsgi.errors": errors } = testEnviron();
  assert.equal((await input.read()).length, 0);
  assert.deepEqual(await input.readlines(), []);
  errors.flush();
});

test("testEnviron makes a new environ each time, and does not change what it is given", () => {
  const overrides = { HTTPS: "on" };
  const environ = testEnviron(overrides);
  environ.PATH_INFO = "/changed";
  assert.equal(testEnviron(overrides).PATH_INFO, "/");
  assert.deepEqual(overrides, { HTTPS: "on" });
});

/** A middleware that leaves its mark in the environ on the way in, and in the headers on the way out. */
function marking(mark: string): Middleware {
  return (app) => (environ, startResponse) => {
    environ["example.marks"] = `${environ["example.marks"] ?? ""}${mark}`;
    const begin: StartResponse = (status, headers, error) =>
      startResponse(status, [...headers, ["X-Mark", mark]], error);
    return wrong<Application>(app)(environ, begin);
  };
}

test("pipeline puts the first middleware outermost", async () => {
  let marks: unknown;
  const app: Application = (environ, startResponse) => {
    marks = environ["example.marks"];
    return HELLO(environ, startResponse);
  };
  const stack = pipeline(app, validator, marking("a"), validator, marking("b"), validator, marking("c"), validator);
  const { headers } = await runApplication(stack, testEnviron());
  assert.equal(marks, "abc");
  assert.deepEqual(headers.slice(1), [["X-Mark", "c"], ["X-Mark", "b"], ["X-Mark", "a"]]);
});

test("pipeline without middleware is the application", async () => {
  assert.equal(text((await runApplication(pipeline(validator(HELLO)), testEnviron())).body), "Hello");
});

const LIKES: Record<string, ApplicationLike> = {
  "a function": STREAM,
  "a class": Instance,
  "an object": { handle: STREAM },
};

for (const [what, like] of Object.entries(LIKES)) {
  test(`pipeline takes ${what}, with middleware and without`, async () => {
    const { body } = await runApplication(like, testEnviron());
    for (const stack of [pipeline(like), pipeline(like, THROUGH), pipeline(like, validator, THROUGH, validator)]) {
      assert.deepEqual((await runApplication(stack, testEnviron())).body, body);
    }
  });
}

test("pipeline gives every middleware a plain function, once, from the inside to the outside", () => {
  const calls: string[] = [];
  const noting = (name: string): Middleware => (app) => {
    calls.push(`${name} ${typeof app}`);
    return wrong(app);
  };
  const stack = pipeline({ handle: STREAM }, noting("outer"), noting("inner"));
  assert.deepEqual(calls, ["inner function", "outer function"]);
  assert.equal(typeof stack, "function");
});

test("pipeline refuses at once what is no application", () => {
  assert.throws(() => pipeline(wrong({})), TypeError);
  assert.throws(() => pipeline(wrong(undefined), validator), TypeError);
});

test("A pipeline is served over Fetch as any application", async () => {
  const response = await toFetch(pipeline(STREAM, validator, THROUGH, validator))(new Request(HERE));
  assert.equal(await response.text(), "one two three");
});
