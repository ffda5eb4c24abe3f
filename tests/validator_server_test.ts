/**
 * `validator`: what a server must not do.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { type Application, type Environ, type InputStream, testEnviron, validator } from "../mod.ts";
import { answer, bytes, ErrorLog, hello, HERE, ok, text } from "./support.ts";
import {
  accept,
  complaint,
  inputOf,
  iterate,
  open,
  reading,
  type Rule,
  run,
  STREAM,
  testEnvironWith,
  testRules,
  WRITING,
  wrong,
} from "./validator_support.ts";

// The environ

/** What the environ has to have: the first of what is legal is what the tests' own environ has, or could have. */
const VARIABLES: { name: string; expected: string; broken: [shown: string, value: unknown][]; legal: unknown[] }[] = [
  {
    name: "REQUEST_METHOD",
    expected: 'a method such as "GET"',
    broken: [['""', ""], ['"GET /"', "GET /"], ['"GET\\n"', "GET\n"], ["7", 7]],
    legal: ["GET", "get", "M-SEARCH", "*"],
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
  { name: "SERVER_SOFTWARE", expected: "a name", broken: [['""', ""], ["true", true]], legal: ["A server/1"] },
  { name: "wsgi.input_terminated", expected: "true or false", broken: [["null", null]], legal: [true, false] },
  { name: "wsgi.file_wrapper", expected: "a function", broken: [["{}", {}]], legal: [() => []] },
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

/** Takes a variable away. */
function environWithout(name: string): Environ {
  const environ = testEnvironWith({});
  delete environ[name];
  return environ;
}

/** Gives a variable any property. */
function environDefining(name: string, property: PropertyDescriptor): Environ {
  return Object.defineProperty(testEnvironWith({}), name, { enumerable: true, configurable: true, ...property });
}

/** One rule for a variable. */
function ruleOf({ name, expected, broken, legal }: (typeof VARIABLES)[number]): Rule<() => Environ> {
  return {
    section: "environ Variables",
    expected,
    broken: broken.map((
      [shown, value],
    ) => ["a variable", `${name} is ${shown}`, () => testEnvironWith({ [name]: value })]),
    legal: legal.map((value, index) => [`${name}, legal value ${index + 1}`, () => testEnvironWith({ [name]: value })]),
  };
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
      () => testEnvironWith({ "wsgi.input": members(...INPUT_MEMBERS.filter((name) => name !== left)) }),
    ]],
    legal: [[`input with ${String(left)}`, () => testEnvironWith({ "wsgi.input": members(...INPUT_MEMBERS) })]],
  })),
  ...ERROR_MEMBERS.map((left): Rule<() => Environ> => ({
    section: "environ Variables",
    expected: "an error stream",
    broken: [[
      `an error stream without ${left}`,
      "wsgi.errors is {}",
      () => testEnvironWith({ "wsgi.errors": members(...ERROR_MEMBERS.filter((name) => name !== left)) }),
    ]],
    legal: [[`errors with ${left}`, () => testEnvironWith({ "wsgi.errors": members(...ERROR_MEMBERS) })]],
  })),
  {
    section: "environ Variables",
    expected: '"/" for the root',
    broken: [[
      "no path at all",
      'PATH_INFO is "" where SCRIPT_NAME is "", too',
      () => testEnvironWith({ SCRIPT_NAME: "", PATH_INFO: "" }),
    ]],
    legal: [["a mount point without a path", () => testEnvironWith({ SCRIPT_NAME: "/app", PATH_INFO: "" })]],
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
      ["a prototype", "environ is {}", () => Object.create(testEnvironWith({}))],
    ],
    legal: [
      ["an object without a prototype", () => Object.assign(Object.create(null), testEnvironWith({}))],
      ["a copy", () => ({ ...testEnvironWith({}) })],
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
      ["undefined", "REMOTE_USER is undefined", () => testEnvironWith({ REMOTE_USER: undefined })],
      ["undefined in a variable of the server's own", "a.b is undefined", () => testEnvironWith({ "a.b": undefined })],
    ],
    legal: [
      ["an empty string", () => testEnvironWith({ REMOTE_USER: "" })],
      ["null in a variable of the server's own", () => testEnvironWith({ "a.b": null })],
    ],
  },
  {
    section: "environ Variables",
    expected: "a string",
    broken: [
      ["a number", "REMOTE_PORT is 80", () => testEnvironWith({ REMOTE_PORT: 80 })],
      ["a function", "HELPER is [Function (anonymous)]", () => testEnvironWith({ HELPER: (() => () => 1)() })],
      ["what is not enumerable", "HIDDEN is 1", () => environDefining("HIDDEN", { value: 1, enumerable: false })],
    ],
    legal: [["a number under a name with a dot", () => testEnvironWith({ "example.port": 80 })]],
  },
  {
    section: "Unicode Issues",
    expected: "one character for each byte",
    broken: [
      ["a header that is decoded", 'HTTP_X is "€"', () => testEnvironWith({ HTTP_X: "€" })],
      ["a path that is decoded", 'PATH_INFO is "/Ā"', () => testEnvironWith({ PATH_INFO: "/Ā" })],
    ],
    legal: [
      ["bytes up to 255", () => testEnvironWith({ HTTP_X: "\u00e2\u0082\u00ac\u00ff\0" })],
      ["text in another script, under a name with a dot", () => testEnvironWith({ "example.text": "€" })],
    ],
  },
];

testRules("server", ENVIRON_RULES, {
  "in process": async (environ) => void await validator(hello)(environ(), accept),
});

class Inherited {
  constructor() {
    Object.assign(this, testEnvironWith({}));
  }
}

test("an environ that is an instance of a class is refused before anything else", () => {
  const environ = wrong<Environ>(new Inherited());
  assert.throws(() => validator(hello)(environ, accept), {
    message:
      /^The server broke PEP 3333, "environ Variables": environ is Inherited \{.*\}, expected an ordinary object$/s,
  });
});

test("an environ that cannot be changed is a breach of the server", () => {
  assert.throws(() => validator(hello)(Object.freeze(testEnvironWith({})), accept), {
    message: /^The server broke PEP 3333, "environ Variables": environ is /,
  });
});

test("a query that begins with a question mark is a query: RFC 3986, section 3.4", async () => {
  await run(validator(hello), testEnviron({ QUERY_STRING: "?a=b" }));
});

test("a request for a target with two question marks is no breach of the server", async () => {
  const { response, errors } = await answer(validator(hello), new Request(`${HERE}??a=b`));
  assert.equal(errors.text, "");
  assert.equal(response.status, 200);
});

test("what PEP 3333 lets a server leave out may be absent, each and all", async () => {
  const environ = testEnvironWith({});
  for (const { name } of OPTIONAL) {
    await run(validator(hello), environWithout(name));
    delete environ[name];
  }
  await run(validator(hello), environ);
});

test('CONTENT_LENGTH "may be empty or absent", says PEP 3333', async () => {
  await run(validator(hello), testEnvironWith({ CONTENT_LENGTH: "" }));
});

test("the validator adds no variables to the environ", async () => {
  const environ = testEnvironWith({});
  const names = Object.keys(environ);
  await run(validator(validator(hello)), environ);
  assert.deepEqual(Object.keys(environ), names);
});

test("the application gets the server's own environ, to change it", async () => {
  const environ = testEnvironWith({});
  const app: Application = (environ, startResponse) => {
    environ["example.user"] = "Ada";
    return hello(environ, startResponse);
  };
  await run(validator(validator(app)), environ);
  assert.equal(environ["example.user"], "Ada");
});

// What a server does

/** What a server does with the application, its environ and its startResponse. */
type Conduct = (app: Application) => unknown;

/** A server whose startResponse returns something. */
function returning(value: unknown): Conduct {
  return (app) => run(app, testEnvironWith({}), () => wrong(value));
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
    legal: [["two arguments", (app) => Reflect.apply(app, undefined, [testEnvironWith({}), accept])]],
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
      const body = await app(testEnvironWith({}), accept);
      await body.close?.();
      await open(body).next();
    }]],
    legal: [["closing what was never asked for", async (app) => {
      await (await app(testEnvironWith({}), accept)).close?.();
    }]],
  },
  {
    section: "Specification Details",
    expected: "one call",
    broken: [["closing again", "close was called a second time", async (app) => {
      const body = await app(testEnvironWith({}), accept);
      await body.close?.();
      await body.close?.();
    }]],
    legal: [],
  },
  {
    section: "Specification Details",
    expected: "both",
    broken: [[
      "closing what was not read to its end",
      "close was called before the end without return of the iterator",
      async (app) => {
        const body = await app(testEnvironWith({}), accept);
        await open(body).next();
        await body.close?.();
      },
    ]],
    legal: [
      ["return before close", async (app) => {
        const body = await app(testEnvironWith({}), accept);
        const chunks = open(body);
        await chunks.next();
        await chunks.return?.();
        await body.close?.();
      }],
      ["return right after close", async (app) => {
        const body = await app(testEnvironWith({}), accept);
        const chunks = open(body);
        await chunks.next();
        const closed = body.close?.();
        await Promise.resolve();
        await chunks.return?.();
        await closed;
      }],
    ],
  },
  {
    section: "Buffering and Streaming",
    expected: "one after the other",
    broken: [["asking twice at once", "a chunk was asked for while another was awaited", async (app) => {
      const chunks = open(await app(testEnvironWith({}), accept));
      chunks.next().catch(() => {});
      await chunks.next();
    }]],
    legal: [["asking again after a chunk", async (app) => {
      const chunks = open(await app(testEnvironWith({}), accept));
      assert.equal(text((await chunks.next()).value), "one ");
      assert.equal(text((await chunks.next()).value), "two ");
    }]],
  },
];

testRules("server", CALLING_RULES, {
  "in process": async (conduct) => void await conduct(validator(WRITING)),
});

test("a call of next() while another is pending makes both calls fail", async () => {
  const chunks = open(await validator(STREAM)(testEnvironWith({}), accept));
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

test("after its end a body gives its end, as often as it is asked", async () => {
  const chunks = open(await validator(STREAM)(testEnvironWith({}), accept));
  for (let asked = 0; asked < 3; asked++) await chunks.next();
  for (let asked = 0; asked < 3; asked++) assert.equal((await chunks.next()).done, true);
});

test("after it has failed, a body gives its end, as often as it is asked", async () => {
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    throw new Error("Out of order");
  };
  const chunks = open(await validator(app)(testEnvironWith({}), accept));
  await chunks.next();
  await assert.rejects(chunks.next(), { message: "Out of order" });
  for (let asked = 0; asked < 3; asked++) assert.equal((await chunks.next()).done, true);
});

test("after it was told to return, a body gives its end, also when a chunk was awaited", async () => {
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  };
  const chunks = open(await validator(app)(testEnvironWith({}), accept));
  const pending = chunks.next();
  await chunks.return?.();
  await pending;
  for (let asked = 0; asked < 3; asked++) assert.equal((await chunks.next()).done, true);
});

/** What the input gives, and how it is read. */
type Reading = [given: unknown, read: (input: InputStream) => unknown];

const INPUT_RULES: Rule<Reading>[] = [
  {
    section: "Input and Error Streams",
    expected: "bytes",
    broken: [
      ["read", 'wsgi.input gave "text"', ["text", (input) => input.read()]],
      ["read at its end", "wsgi.input gave null", [null, (input) => input.read(1)]],
      ["read1", 'wsgi.input gave "text"', ["text", (input) => input.read1()]],
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
      ["read1(2)", "wsgi.input gave 3 bytes", [bytes("abc"), (input) => input.read1(2)]],
      ["readline(2)", "wsgi.input gave 3 bytes", [bytes("abc"), (input) => input.readline(2)]],
    ],
    legal: [
      ["exactly two bytes", [bytes("ab"), (input) => input.read(2)]],
      ["fewer", [bytes("a"), (input) => input.readline(2)]],
      ["fewer than read1 may give", [bytes("a"), (input) => input.read1(2)]],
      ["all, for a size below zero", [bytes("abc"), (input) => input.read(-1)]],
      ["lines longer than the hint", [[bytes("abc")], (input) => input.readlines(2)]],
    ],
  },
];

testRules("server", INPUT_RULES, {
  "in process": async ([given, read]) => {
    await run(validator(reading(read)), testEnvironWith({ "wsgi.input": inputOf(given) }));
  },
});
