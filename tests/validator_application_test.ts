/**
 * `validator`: what an application must not do.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { type Application, type ApplicationLike, testEnviron, toEnviron, validator } from "../mod.ts";
import { answer, bytes, ErrorLog, hello, HERE, ok, PLAIN, settle } from "./support.ts";
import {
  accept,
  aRequest,
  ERROR,
  giving,
  heading,
  iterate,
  overFetch,
  reading,
  reporting,
  type Rule,
  run,
  starting,
  streaming,
  testRules,
  writes,
  wrong,
} from "./validator_support.ts";

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
  return shown.map(([shown, status]) => {
    const reason = /^"?\d{3} ?"?$/.test(shown)
      ? "has no reason phrase"
      : "is not a status from 200 to 599 and its reason";
    return ["a status", `status ${shown} ${reason}`, post(starting([status, PLAIN]))];
  });
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

const STARTING_RULES: Rule<Case>[] = [
  {
    section: "The start_response() Callable",
    expected: '"200 OK"',
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
      ["a record", "headers are an object", post(starting(["200 OK", { Allow: "GET" }])), ': [["Name", "value"]]'],
      ["nothing", "headers are undefined", post(starting(["200 OK", undefined])), ': [["Name", "value"]]'],
      ["text", 'headers are "A: b"', post(starting(["200 OK", "A: b"])), ': [["Name", "value"]]'],
      ["a set", "headers are a Set", post(starting(["200 OK", new Set()])), ": [...headers]"],
    ],
    legal: [["an array of none", post(starting(["204 No Content", []]))]],
  },
  {
    section: "The start_response() Callable",
    expected: '["Name", "value"]',
    broken: [
      ["text", 'header "Allow: GET" is not a pair of strings', post(heading("Allow: GET"))],
      ["two characters", 'header "ab" is not a pair of strings', post(heading("ab"))],
      ["a name alone", 'header ["Allow"] is not a pair of strings', post(heading(["Allow"]))],
      ["three", 'header ["Allow", "GET", "PUT"] is not a pair of strings', post(heading(["Allow", "GET", "PUT"]))],
      ["a number", 'header ["Age", 1] is not a pair of strings', post(heading(["Age", 1]))],
      ["a number as the name", 'header [1, "Age"] is not a pair of strings', post(heading([1, "Age"]))],
      ["null", "header null is not a pair of strings", post(heading(null))],
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
    expected: 'no "-" or "_" at its end',
    broken: ["X-", "x_", "-"].map((name) => [
      "a header",
      `a header has the name "${name}"`,
      post(heading([name, "value"])),
    ]),
    legal: [["a hyphen and an underscore before the end", post(heading(["X-A_b", "value"]))]],
  },
  {
    section: "The start_response() Callable",
    expected: "the status as the first argument",
    broken: values(["Status", '"200 OK"', "200 OK"], ["STATUS", '""', ""]),
    legal: [["a header that begins so", post(heading(["Status-Of", "things"]))]],
  },
  {
    section: "Other HTTP Features",
    expected: "it to be left to the server",
    broken: HOP_BY_HOP.map((name) => ["a header", `header "${name}" is hop-by-hop`, post(heading([name, "a"]))]),
    legal: [
      ["headers that begin or end so", post(heading(["X-Connection", "a"], ["Te-X", "b"], ["Trailers-X", "c"]))],
      ["WWW-Authenticate", post(heading(["WWW-Authenticate", "Basic"]))],
    ],
  },
  {
    section: "Unicode Issues",
    expected: "one character for each byte: toNativeString(value)",
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
    expected: "one call, or startResponse",
    broken: [
      [
        "a second call",
        'startResponse was called again with "500 Oops"',
        post((_environ, startResponse) => {
          ok(startResponse);
          startResponse("500 Oops", PLAIN);
          return [];
        }),
        '("500 Oops", headers, error)',
      ],
      [
        "the same call again",
        'startResponse was called again with "200 OK"',
        post((_environ, startResponse) => {
          ok(startResponse);
          startResponse("200 OK", PLAIN, undefined);
          return [];
        }),
        '("200 OK", headers, error)',
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
    expected: 'startResponse("200 OK", [["Content-Type", "text/plain"]]) before the first chunk',
    broken: [
      ["an array", "startResponse was not called", post(() => [])],
      ["empty chunks", "startResponse was not called", post(() => [new Uint8Array(0)])],
      ["a generator", "startResponse was not called", post(function* () {})],
      ["a promise", "startResponse was not called", post(() => Promise.resolve([]))],
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
    expected: 'startResponse("200 OK", [["Content-Type", "text/plain"]]) before the first chunk',
    broken: [
      ["an array", "startResponse was not called", post(() => [bytes("Hello")])],
      [
        "a generator that calls it too late",
        "startResponse was not called",
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
      ["an array of text", 'a chunk is "Hello"', post(giving(["Hello"])), ': new TextEncoder().encode("…")'],
      ["an array with one that is wrong", "a chunk is 5", post(giving([bytes("Hello"), 5]))],
      ["an array of arrays", "a chunk is an Array", post(giving([[1, 2]]))],
      ["an array of promises", "a chunk is a Promise", post(giving([Promise.resolve()])), ": await it"],
      ["a buffer", "a chunk is an ArrayBuffer", post(giving([new ArrayBuffer(3)])), ": new Uint8Array(chunk)"],
      ["a stream", 'a chunk is ""', post(streaming([""])), ': new TextEncoder().encode("…")'],
      ["a stream", "a chunk is undefined", post(streaming([undefined]))],
      ["a stream, later", "a chunk is null", post(streaming([new Uint8Array(0), null]))],
      ["write", 'a chunk is "Hello"', post(writes(["Hello"])), ': new TextEncoder().encode("…")'],
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
    expected: "an iterable of bytes",
    broken: [
      ["text", 'the application returned "Hello"', post(giving("Hello")), ': return [new TextEncoder().encode("…")]'],
      ["bytes", "the application returned a Uint8Array", post(giving(bytes("Hi"))), ": return [bytes]"],
      [
        "nothing",
        "the application returned undefined",
        post(() => wrong(undefined)),
        ": return [bytes], or [] for none",
      ],
      ["null", "the application returned null", post(giving(null)), ": return [bytes], or [] for none"],
      ["a number", "the application returned 5", post(giving(5)), " such as [bytes]"],
      ["an object", "the application returned an object", post(giving({})), " such as [bytes]"],
      ["a function", "the application returned function body", post(giving(function* body() {})), " such as [bytes]"],
      [
        "a promise of text",
        'the application returned "Hello"',
        post(async () => wrong(await Promise.resolve("Hello"))),
        ': return [new TextEncoder().encode("…")]',
      ],
      [
        "a Response",
        "the application returned a Response",
        post(() => wrong(new Response("Hello"))),
        ": fromFetch(handler) makes an application of a Fetch handler",
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
    expected: "the chunk in that body",
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

/** Calls a member that a stream should not have. */
function close(stream: object): void {
  if ("close" in stream && typeof stream.close === "function") stream.close();
}

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
      ["a fraction", "read1 was called with (0.5)", post(reading((input) => input.read1(0.5)))],
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
      ["read1()", post(reading((input) => input.read1()))],
      ["read1(5)", post(reading((input) => input.read1(5)))],
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
    legal: [["leaving them open", post(hello)]],
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

// What an application has swallowed

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
    found: /status "200" has no reason phrase/,
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
    found: /status "200" has no reason phrase/,
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
  test(`a breach that is swallowed ${which} is raised ${first ? "by each call that follows" : "once more"}`, async () => {
    await assert.rejects(run(validator(app)), found);
  });

  test(`a breach that is swallowed ${which} reaches the log of the server`, async () => {
    await assert.rejects(overFetch(validator(app)), found);
  });
}

test("a breach that is swallowed is raised before a chunk of the body is asked for", async () => {
  const app: Application = (_environ, startResponse) => {
    swallow(() => startResponse("200", PLAIN));
    return new Set([bytes("Hello")]);
  };
  await assert.rejects(async () => await validator(app)(testEnviron(), accept), /status "200" has no reason phrase/);
});

test("after a breach that is swallowed, the body that is returned all the same is closed once", async () => {
  let closes = 0;
  const app: Application = (_environ, startResponse) => {
    swallow(() => startResponse("200", PLAIN));
    return Object.assign([bytes("Hello")], { close: () => void closes++ });
  };
  await assert.rejects(run(validator(app)), /status "200" has no reason phrase/);
  assert.equal(closes, 1);
});

for (const [what, chunks] of Object.entries({ "an array": ["text"], "a stream": new Set(["text"]) })) {
  test(`a complaint about ${what} closes the body, once`, async () => {
    let closes = 0;
    const app = giving(Object.assign(chunks, { close: () => void closes++ }));
    await assert.rejects(run(validator(app)), /a chunk is "text"/);
    assert.equal(closes, 1);
  });
}

test("a close that fails does not hide the complaint that has led to it", async () => {
  const app = giving(Object.assign(["text"], {
    close() {
      throw new Error("Cannot close");
    },
  }));
  await assert.rejects(run(validator(app)), /a chunk is "text"/);
});

test("a generator that fails as it ends does not hide the complaint that has led to it", async () => {
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

test("a chunk that is wrong ends the generator it came from", async () => {
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

test("the first of several breaches is the one that is reported", async () => {
  const app: Application = (environ, startResponse) => {
    swallow(() => startResponse("first", PLAIN));
    swallow(() => close(environ["wsgi.errors"]));
    return wrong("second");
  };
  await assert.rejects(run(validator(app)), /status "first" is not a status/);
});

test("a breach in one request does not count in another that is answered at the same time", async () => {
  const app = validator(async (environ, startResponse) => {
    await settle();
    startResponse(environ.QUERY_STRING === "broken" ? "200" : "200 OK", PLAIN);
    return new Set([bytes("Hello")]);
  });
  const requests = ["", "broken", ""].map((query) => answer(app, new Request(`${HERE}?${query}`)));
  assert.deepEqual((await Promise.all(requests)).map(({ response }) => response.status), [200, 500, 200]);
});
