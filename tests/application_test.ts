/**
 * Applications: every kind that can be called, what an application may do, and what becomes of one that breaks a rule.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  application,
  type ApplicationClass,
  type ApplicationLike,
  type Environ,
  type HeaderList,
  type ResponseBody,
  serve,
  type StartResponse,
  toFetch,
} from "../mod.ts";
import {
  answer,
  asked,
  bytes,
  exchange,
  HERE,
  ok,
  ORIGIN,
  PLAIN,
  reportsIn,
  request,
  settle,
  start,
  startPatient,
  unchecked,
  within,
} from "./support.ts";

// Every kind of application

class Instances {
  constructor(readonly environ: Environ, readonly startResponse: StartResponse) {}

  *[Symbol.iterator](): Generator<Uint8Array> {
    ok(this.startResponse);
    yield bytes(`called for ${this.environ.PATH_INFO}`);
  }
}

class Handler {
  readonly #greeting = "called";

  handle(environ: Environ, startResponse: StartResponse): Uint8Array[] {
    ok(startResponse);
    return [bytes(`${this.#greeting} for ${environ.PATH_INFO}`)];
  }

  async handleLater(environ: Environ, startResponse: StartResponse): Promise<Uint8Array[]> {
    await settle();
    return this.handle(environ, startResponse);
  }

  readonly arrow = (environ: Environ, startResponse: StartResponse) => this.handle(environ, startResponse);
}

const handler = new Handler();

const CALLABLES: Record<string, ApplicationLike> = {
  "a function": function (environ, startResponse) {
    ok(startResponse);
    return [bytes(`called for ${environ.PATH_INFO}`)];
  },
  "an arrow function": (environ, startResponse) => {
    ok(startResponse);
    return [bytes(`called for ${environ.PATH_INFO}`)];
  },
  "an async function": async (environ, startResponse) => {
    await settle();
    ok(startResponse);
    return [bytes(`called for ${environ.PATH_INFO}`)];
  },
  "a bound method": handler.handle.bind(handler),
  "an async bound method": handler.handleLater.bind(handler),
  "an arrow function of an instance": handler.arrow,
  "a class": Instances,
  "a class that extends another": class extends Instances {},
  "an instance with handle": handler,
  "an object with an async handle": { handle: (environ, startResponse) => handler.handleLater(environ, startResponse) },
  "a generator function": function* (environ, startResponse) {
    ok(startResponse);
    yield bytes("called for ");
    yield bytes(environ.PATH_INFO);
  },
  "an async generator function": async function* (environ, startResponse) {
    await settle();
    ok(startResponse);
    yield bytes("called for ");
    await settle();
    yield bytes(environ.PATH_INFO);
  },
};

for (const [kind, app] of Object.entries(CALLABLES)) {
  test(`${kind} is an application`, async () => {
    for (const path of ["/first", "/second"]) {
      const { response, errors } = await answer(app, new Request(`http://test.example${path}`));
      assert.equal(response.status, 200);
      assert.equal(await response.text(), `called for ${path}`);
      assert.equal(errors.text, "");
    }
  });
}

test("every kind of callable can be served", async () => {
  for (const [kind, app] of Object.entries(CALLABLES)) {
    await using server = start(app);
    const reply = await exchange(server, request("/path"));
    assert.equal(reply.status, 200, kind);
    assert.equal(reply.body, "called for /path", kind);
    assert.ok(reply.complete, kind);
    assert.equal(server.errors.text, "", kind);
  }
});

test("a function is its own application, a class or an object is not", () => {
  for (const [kind, like] of Object.entries(CALLABLES)) {
    const app = application(like);
    assert.equal(typeof app, "function", kind);
    assert.equal(app === like, typeof like === "function" && !/class/.test(kind), kind);
    assert.equal(application(app), app, kind);
  }
});

test("a function that could be constructed is called, and a class is constructed", async () => {
  const calls: unknown[] = [];
  const es5 = function (this: unknown, _environ: Environ, startResponse: StartResponse) {
    calls.push(new.target);
    ok(startResponse);
    return [bytes("a function")];
  };
  assert.equal(Object.getOwnPropertyDescriptor(es5, "prototype")?.writable, true);
  assert.equal(await (await answer(es5)).response.text(), "a function");
  assert.deepEqual(calls, [undefined]);

  class Body extends Array<Uint8Array> {
    constructor(_environ: Environ, startResponse: StartResponse) {
      super();
      calls.push(new.target);
      ok(startResponse);
      this.push(bytes("a class"));
    }
  }
  assert.equal(await (await answer(Body as ApplicationClass)).response.text(), "a class");
  assert.deepEqual(calls, [undefined, Body]);
});

test("a class is constructed anew for each request, and its instance is closed", async () => {
  const instances: object[] = [];
  const closed: object[] = [];
  class Counted extends Instances {
    constructor(environ: Environ, startResponse: StartResponse) {
      super(environ, startResponse);
      instances.push(this);
    }
    close(): void {
      closed.push(this);
    }
  }
  const app = toFetch(Counted);
  for (let time = 0; time < 2; time++) await (await app(new Request(HERE))).text();
  await settle();
  assert.equal(new Set(instances).size, 2);
  assert.deepEqual(closed, instances);
});

test("the method handle is called on its object, also when the method is replaced later", async () => {
  const seen: unknown[] = [];
  const object = {
    handle(_environ: Environ, startResponse: StartResponse): Uint8Array[] {
      seen.push(this);
      ok(startResponse);
      return [bytes("first")];
    },
  };
  const app = toFetch(object);
  assert.equal(await (await app(new Request(HERE))).text(), "first");
  object.handle = function (_environ, startResponse) {
    seen.push(this);
    ok(startResponse);
    return [bytes("second")];
  };
  assert.equal(await (await app(new Request(HERE))).text(), "second");
  assert.ok(seen[0] === object && seen[1] === object);
});

test("the server calls an application without a this", async () => {
  const seen: unknown[] = [];
  await answer(function (this: unknown, _environ, startResponse) {
    seen.push(this);
    ok(startResponse);
    return [];
  });
  assert.deepEqual(seen, [undefined]);
});

const NOT_CALLABLE: [value: unknown, found: RegExp][] = [
  [undefined, /undefined/],
  [null, /null/],
  [42, /42/],
  ["text", /"text"/],
  [{}, /object/],
  [{ handle: "text" }, /object/],
  [[], /Array/],
  [new Map(), /Map/],
  [new Response(), /Response/],
  [{ fetch: () => new Response() }, /object/],
];

test("a value that cannot be called is refused at once, by name", () => {
  for (const [value, found] of NOT_CALLABLE) {
    for (const use of [application, toFetch, start]) {
      assert.throws(() => use(value as ApplicationLike), (error: Error) => {
        assert.equal(error.name, "TypeError");
        assert.match(error.message, found);
        assert.match(error.message, /handle/);
        return true;
      });
    }
  }
});

test("a value that is not an application is a TypeError that quotes the value", () => {
  for (const app of [undefined, null, "app", 5, {}, { handle: "no" }, []]) {
    assert.throws(() => toFetch(app as never), TypeError);
    assert.throws(() => serve(app as never, { port: 0, onListen() {} }), TypeError);
  }
  assert.throws(() => toFetch("app" as never), /"app".*handle/);
});

test("a thenable that settles twice is answered once", async () => {
  await using server = startPatient((_environ, startResponse) => {
    ok(startResponse);
    return {
      then(onFulfilled: (body: ResponseBody) => void, onRejected: (error: unknown) => void) {
        onFulfilled([bytes("first")]);
        onFulfilled([bytes("second")]);
        onRejected(new Error("third"));
        throw new Error("fourth");
      },
    } as unknown as Promise<ResponseBody>;
  });
  const reply = await exchange(server, request("/"));
  assert.equal(reply.status, 200);
  assert.equal(reply.body, "first");
});

test("a thenable that is fulfilled twice starts one response", async () => {
  const then = (resolve: (body: Uint8Array[]) => void) => {
    resolve([bytes("one")]);
    resolve([bytes("two")]);
  };
  const handler = toFetch((_environ, startResponse) => {
    ok(startResponse);
    return { then } as unknown as Promise<Uint8Array[]>;
  });
  assert.equal(await (await handler(new Request(HERE))).text(), "one");
});

// What an application does to its environ

test("whatever an application does to its environ, the server goes by its own", async () => {
  const app: Application = (environ, startResponse) => {
    const mode = environ.QUERY_STRING;
    if (mode === "delete") { for (const name of Object.keys(environ)) delete environ[name]; }
    else if (mode === "freeze") Object.freeze(environ);
    else if (mode === "prototype") Object.setPrototypeOf(environ, null);
    else for (const name of Object.keys(environ)) environ[name] = undefined;
    ok(startResponse);
    return (function* () {
      yield bytes("sent");
    })();
  };
  await using server = start(app);
  for (const mode of ["delete", "freeze", "prototype", "overwrite"]) {
    const { status, body } = await exchange(server, request(`/?${mode}`));
    assert.deepEqual([mode, status, body], [mode, 200, "sent"]);
    const head = await exchange(server, request(`/?${mode}`, { method: "HEAD" }), { head: true });
    assert.doesNotMatch(head.body, /sent/);
  }
  assert.equal(server.errors.text, "");
});

test("an application that changes the method does not turn a GET into a HEAD", async () => {
  const { ask } = asked((environ, startResponse) => {
    environ.REQUEST_METHOD = "HEAD";
    ok(startResponse);
    return [bytes("sent")];
  });
  assert.equal(await (await ask()).text(), "sent");
});

// Applications inside applications

test("an application can call itself", async () => {
  const handler = toFetch(async (environ, startResponse) => {
    const depth = Number(environ.PATH_INFO.slice(1));
    ok(startResponse);
    if (depth === 0) return [bytes("bottom")];
    const inner = await handler(new Request(`${ORIGIN}/${depth - 1}`));
    return inner.body!;
  });
  const response = await handler(new Request(`${ORIGIN}/50`));
  assert.equal(await within((async () => await response.text())(), "the body"), "bottom");
});

test("an application that reads the request itself does no harm", async () => {
  await using server = start(async (environ, startResponse) => {
    const body = await environ["fetch.context"]!.request.text();
    ok(startResponse);
    return [bytes(`${body} ${await environ["wsgi.input"].read().then(() => "again", () => "once")}`)];
  });
  const sent = request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" });
  assert.match((await exchange(server, sent)).body, /^body/);
  assert.equal((await exchange(server, request("/"))).status, 200);
});

// Applications that break a rule

interface Bad {
  what: string;
  app: ApplicationLike;
  /** The rule, as its report names it. */
  rule: RegExp;
  /** The value, as its report quotes it. */
  quoted?: string;
}

function starting(what: string, status: unknown, headers: unknown, rule: RegExp, quoted: string): Bad {
  const app: Application = (_environ, startResponse) => {
    startResponse(status as string, headers as HeaderList);
    return [bytes("unsent")];
  };
  return { what, app, rule, quoted };
}

function returning(what: string, body: unknown, rule: RegExp, quoted: string): Bad {
  const app: Application = (_environ, startResponse) => {
    startResponse("200 OK", [["X-Unsent", "unsent"]]);
    return body as ResponseBody;
  };
  return { what, app, rule, quoted };
}

const BAD_STATUSES = [
  "200",
  "200 ",
  "20 OK",
  "099 x",
  "600 Large",
  "101 Switching Protocols",
  "200 OK\r\nX: y",
  "",
  "OK",
];

const BAD_NAMES = ["", "a b", "X:", "é", "a\nb", "X\r\nY", "\u4f60"];
const BAD_VALUES = ["\n", "\r", "\0", "\x01", "\x1b[31m", "\x7f", "\u4f60", "a\r\nX-Other: b"];
const BAD_LENGTHS = ["abc", "", "-1", "+1", "1.5", "1e3", "0x1", "1, 1"];

const HOP_BY_HOP = [
  "Connection",
  "Keep-Alive",
  "Proxy-Authenticate",
  "Proxy-Authorization",
  "TE",
  "Trailer",
  "Trailers",
  "Transfer-Encoding",
  "Upgrade",
  "connection",
  "UPGRADE",
];

const BAD_HEADERS: [what: string, headers: unknown, quoted: string][] = [
  ["undefined", undefined, "undefined"],
  ["null", null, "null"],
  ["a string", "X: y", '"X: y"'],
  ["a record", { "X-Test": "y" }, "object"],
  ["Headers", new Headers(), "Headers"],
  ["a map", new Map([["X-Test", "y"]]), "Map"],
  ["a pair of three", [["X-Test", "y", "z"]], '"X-Test", "y", "z"'],
  ["a pair of one", [["X-Test"]], '"X-Test"'],
  ["a string for a pair", ["Xy"], '"Xy"'],
  ["null for a pair", [null], "null"],
  ["a number as value", [["X-Test", 42]], '"X-Test", 42'],
  ["undefined as value", [["X-Test", undefined]], '"X-Test", undefined'],
  ["a number as name", [[42, "y"]], '42, "y"'],
  ["values in an array", [["X-Test", ["y"]]], '"X-Test"'],
];

const BAD_BODIES: [what: string, body: unknown, quoted: string][] = [
  ["a string", "a text", '"a text"'],
  ["an empty string", "", '""'],
  ["a bare Uint8Array", bytes("bare"), "Uint8Array"],
  ["undefined", undefined, "undefined"],
  ["null", null, "null"],
  ["a number", 42, "42"],
  ["true", true, "true"],
  ["an object", {}, "object"],
  ["a function", () => [], "function"],
  ["a Response", new Response("response"), "Response"],
  ["a Blob", new Blob(["blob"]), "Blob"],
  ["an ArrayBuffer", new ArrayBuffer(1), "ArrayBuffer"],
  ["a promise of a string", Promise.resolve("a text"), '"a text"'],
  ["a promise of nothing", Promise.resolve(), "undefined"],
];

const BAD_CHUNKS: [what: string, chunk: unknown, quoted: string][] = [
  ["a string", "a text", '"a text"'],
  ["an empty string", "", '""'],
  ["a number", 42, "42"],
  ["zero", 0, "0"],
  ["undefined", undefined, "undefined"],
  ["null", null, "null"],
  ["an ArrayBuffer", new ArrayBuffer(1), "ArrayBuffer"],
  ["an array", [1, 2], "Array"],
  ["a Uint16Array", new Uint16Array(1), "Uint16Array"],
  ["a DataView", new DataView(new ArrayBuffer(1)), "DataView"],
  ["an object with a length", { length: 1 }, "object"],
];

const BAD: Bad[] = [
  { what: "without startResponse", app: () => [bytes("unsent")], rule: /startResponse was not called/ },
  { what: "without startResponse or a body", app: () => [], rule: /startResponse was not called/ },
  {
    what: "without startResponse, as a generator",
    app: function* () {
      yield bytes("unsent");
    },
    rule: /startResponse was not called/,
  },
  {
    what: "that calls startResponse twice",
    app: (_environ, startResponse) => {
      ok(startResponse);
      startResponse("201 Created", []);
      return [bytes("unsent")];
    },
    rule: /startResponse was called again/,
    quoted: '"201 Created"',
  },
  {
    what: "that calls startResponse twice, with undefined for an error",
    app: (_environ, startResponse) => {
      ok(startResponse);
      startResponse("201 Created", [], undefined);
      return [bytes("unsent")];
    },
    rule: /startResponse was called again/,
    quoted: '"201 Created"',
  },
  ...BAD_STATUSES.map((status) =>
    starting(`with the status ${JSON.stringify(status)}`, status, PLAIN, /status/, JSON.stringify(status))
  ),
  starting("with the number 200 for a status", 200, PLAIN, /status/, "200"),
  starting("with no status", undefined, PLAIN, /status/, "undefined"),
  ...BAD_NAMES.map((name) => {
    const quoted = JSON.stringify(name);
    return starting(`with the header name ${quoted}`, "200 OK", [...PLAIN, [name, "value"]], /header name/, quoted);
  }),
  ...BAD_VALUES.map((value) => {
    const quoted = JSON.stringify(value);
    return starting(`with the header value ${quoted}`, "200 OK", [["X-Test", value]], /header "X-Test"/, quoted);
  }),
  ...BAD_HEADERS.map(([what, headers, quoted]) =>
    starting(`with bad headers: ${what}`, "200 OK", headers, /header/, quoted)
  ),
  ...HOP_BY_HOP.map((name) =>
    starting(`with the header ${name}`, "200 OK", [[name, "value"]], /hop-by-hop/, JSON.stringify(name))
  ),
  ...BAD_LENGTHS.map((length) => {
    const quoted = JSON.stringify(length);
    return starting(
      `with the Content-Length ${quoted}`,
      "200 OK",
      [["Content-Length", length]],
      /Content-Length/,
      quoted,
    );
  }),
  ...["6", "7"].map((length) =>
    starting(
      `with the Content-Length 6 and ${length}`,
      "200 OK",
      [["Content-Length", "6"], ["content-length", length]],
      /content-length/i,
      `"${length}"`,
    )
  ),
  ...BAD_BODIES.map(([what, body, quoted]) =>
    returning(`that returns ${what}`, body, /the application returned/, quoted)
  ),
  ...BAD_CHUNKS.flatMap(([what, chunk, quoted]) => [
    returning(`with ${what} for a chunk`, [chunk], /chunk/, quoted),
    returning(`with ${what} for a chunk among others`, [bytes("unsent"), chunk], /chunk/, quoted),
    returning(`that yields ${what}`, new Set([chunk]), /chunk/, quoted),
    returning(
      `that yields ${what}, later`,
      {
        async *[Symbol.asyncIterator]() {
          await settle();
          yield chunk;
        },
      },
      /chunk/,
      quoted,
    ),
  ]),
];

for (const { what, app, rule, quoted = "" } of BAD) {
  test(`an application ${what} gets a 500 and one report`, async () => {
    const { response, errors } = await answer(unchecked(app));
    assert.equal(response.status, 500);
    assert.equal(await response.text(), "Internal Server Error\n");
    assert.deepEqual([...response.headers.keys()].filter((name) => !/^content-(type|length)$/.test(name)), []);
    await settle();
    assert.equal(reportsIn(errors).length, 1, errors.text);
    const [report = ""] = reportsIn(errors);
    assert.match(report, rule);
    assert.ok(report.includes(quoted.replaceAll("\x7f", "\\x7f")), report); // a report escapes it
  });
}

test("bad applications harm neither each other nor the server", async () => {
  await using server = start(unchecked((environ, startResponse) => {
    const bad = BAD[Number(environ.QUERY_STRING)];
    if (bad) return application(bad.app)(environ, startResponse);
    ok(startResponse);
    return [bytes("still there")];
  }));
  for (const [index, { what }] of BAD.entries()) {
    const reply = await exchange(server, request(`/?${index}`));
    assert.equal(reply.status, 500, what);
    assert.equal(reply.body, "Internal Server Error\n", what);
    const names = new Set(reply.headers.map(([name]) => name));
    assert.deepEqual([...names].sort().filter((name) => name !== "connection"), [
      "content-length",
      "content-type",
      "date",
    ], what);
  }
  assert.equal((await exchange(server, request("/?fine"))).body, "still there");
  assert.equal(reportsIn(server.errors).length, BAD.length);
});

test("a bad chunk after the first aborts the response", async () => {
  for (const [what, chunk] of BAD_CHUNKS) {
    await using server = start(unchecked((_environ, startResponse) => {
      ok(startResponse);
      return new Set([bytes("sent"), chunk]) as Set<Uint8Array>;
    }));
    const reply = await exchange(server, request("/"));
    assert.ok(!reply.complete, what);
    assert.equal(reportsIn(server.errors).length, 1, what);
    assert.match(server.errors.text, /chunk/, what);
  }
});
