/**
 * `validator`: what is right passes unchanged.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { application as environExample } from "../examples/environ.ts";
import { application as fetchExample } from "../examples/fetch.ts";
import { application as filesExample } from "../examples/files.ts";
import { application as frameworkExample } from "../examples/framework.ts";
import { application as helloExample } from "../examples/hello.ts";
import { application as reverseExample } from "../examples/reverse.ts";
import { application as streamExample } from "../examples/stream.ts";
import { application as uploadExample } from "../examples/upload.ts";
import {
  type Application,
  type ApplicationLike,
  limitBody,
  type ResponseBody,
  runApplication,
  testEnviron,
  toEnviron,
  validator,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  ErrorLog,
  Event,
  hello,
  HERE,
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
import {
  accept,
  aRequest,
  ERROR,
  giving,
  heading,
  Instance,
  open,
  reporting,
  run,
  starting,
  STREAM,
  streaming,
  testEnvironWith,
  THROUGH,
  writes,
  wrong,
} from "./validator_support.ts";

// What is right passes

const RIGHT: Record<string, ApplicationLike> = {
  "an array": giving(["one ", "two"].map(bytes)),
  "an empty array": giving([]),
  "a promise of an array": async (environ, startResponse) => await hello(environ, startResponse),
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

/** A response, to be compared. */
async function responseOf(app: ApplicationLike, method: string): Promise<unknown> {
  const { response, errors } = await answer(app, new Request(HERE, { method }));
  return [response.status, [...response.headers], await response.text(), errors.text];
}

for (const [what, app] of Object.entries(RIGHT)) {
  test(`a correct application passes two validators and a middleware unchanged: ${what}`, async () => {
    const environ = testEnviron();
    const plain = await runApplication(app, environ);
    const watched = await runApplication(validator(THROUGH(validator(app))), environ);
    assert.deepEqual({ ...watched, body: text(watched.body) }, { ...plain, body: text(plain.body) });
  });

  for (const method of ["GET", "HEAD"]) {
    test(`a correct application gives ${method} the same response with validators as without: ${what}`, async () => {
      const watched = await responseOf(validator(THROUGH(validator(app))), method);
      assert.deepEqual(watched, await responseOf(app, method));
    });
  }
}

test("an array stays an array of the same chunks, at once, and is not changed", () => {
  const chunks = ["one", "two"].map(bytes);
  const body = validator(validator(giving(chunks)))(testEnviron(), accept);
  assert.ok(Array.isArray(body));
  assert.equal(body.length, 2);
  for (const [index, chunk] of chunks.entries()) assert.equal(body[index], chunk);
  assert.deepEqual(Object.keys(chunks), ["0", "1"]);
});

test("chunks of a stream are passed on as they are, one for each that is asked for", async () => {
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

test("a write gives the promise of the server", async () => {
  const promise = Promise.resolve();
  const promises: Promise<void>[] = [];
  const app: Application = (_environ, startResponse) => {
    promises.push(startResponse("200 OK", PLAIN)(bytes("Hello")));
    return [];
  };
  await run(validator(app), testEnviron(), () => () => promise);
  assert.equal(promises[0], promise);
});

test("an error that startResponse throws is passed on, and is not a breach", async () => {
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
  test(`an error of the application is passed on as it is, thrown ${when}`, async () => {
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

test("input and errors work through validators as they do without", async () => {
  const lines: string[] = [];
  const app: Application = async (environ, startResponse) => {
    const input = environ["wsgi.input"];
    lines.push(text(await input.read(1)), text(await input.readline()), text(await input.readline(2)));
    lines.push(text(await input.read1(1)));
    lines.push(...(await input.readlines(1)).map(text));
    for await (const line of input) lines.push(text(line));
    lines.push(text(await input.read()));
    environ["wsgi.errors"].write("one\n");
    environ["wsgi.errors"].writelines(["two\n", "three\n"]);
    environ["wsgi.errors"].flush();
    return hello(environ, startResponse);
  };
  const request = new Request(HERE, { method: "POST", body: "first\nsecond\nthird\nfourth\n" });
  const { errors } = await runApplication(validator(THROUGH(validator(app))), toEnviron(request));
  assert.deepEqual(lines, ["f", "irst\n", "se", "c", "ond\n", "third\n", "fourth\n", ""]);
  assert.equal(errors, "one\ntwo\nthree\n");
});

for (const [name, middleware] of Object.entries({ validator, limitBody })) {
  test(`through ${name}, reads that fail and that nobody awaits do not end the process`, async () => {
    const app: Application = async (environ, startResponse) => {
      const input = environ["wsgi.input"];
      void [input.read(), input.read1(), input.readline(), input.readlines()];
      await settle();
      return hello(environ, startResponse);
    };
    const failed = () => Promise.reject(new Error("Out of order"));
    const input = {
      read: failed,
      read1: failed,
      readline: failed,
      readlines: failed,
      [Symbol.asyncIterator]: assert.fail,
    };
    const { status } = await runApplication(middleware(app), testEnvironWith({ "wsgi.input": input }));
    assert.equal(status, "200 OK");
  });
}

test("an application may answer with what it was sent", async () => {
  const echo: Application = (environ, startResponse) => {
    ok(startResponse);
    return environ["wsgi.input"];
  };
  const { response, errors } = await answer(validator(THROUGH(validator(echo))), aRequest());
  assert.equal(await response.text(), "one\ntwo\n");
  await settle();
  assert.equal(errors.text, "");
});

test("a flush of wsgi.errors is one of the server's, through validators", async () => {
  let flushes = 0;
  const errors = Object.assign(new ErrorLog(), { flush: () => void flushes++ });
  await run(validator(validator(reporting((errors) => errors.flush()))), testEnvironWith({ "wsgi.errors": errors }));
  assert.equal(flushes, 1);
});

test("a file that is longer than its Content-Length is sent up to that length, as PEP 3333 allows", async () => {
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
    test(`through validators ${which} is closed once when the response ends ${how}`, async () => {
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

test("the first chunk leaves through validators before the second one exists", async () => {
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

test("a client that leaves ends a generator behind validators, once, and neither side is blamed", async () => {
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

test("a breach after the first chunk aborts the response on the wire, and is logged", async () => {
  await using server = start(validator(streaming([bytes("first"), "second"])));
  const client = await Client.connect(server);
  await client.send(request("/"));
  assert.equal(parse(await client.end()).complete, false);
  await server.errors.matches(/The application broke .*: a chunk is "second", expected a Uint8Array/);
});

test("a request for any kind of target is no breach of the server", async () => {
  await using server = start(validator(hello));
  for (const target of ["/", "//", "/a?b?c", "/?", "/%00%ff", "http://test.example/page", "/a;b=c/../d"]) {
    const client = await Client.connect(server);
    await client.send(request(target));
    assert.equal(parse(await client.end()).status, 200, target);
  }
  assert.equal(server.errors.text, "");
});

for (const like of [undefined, null, 5, "app", {}, { handle: 1 }]) {
  test(`a validator of ${JSON.stringify(like)} throws a TypeError at once`, () => {
    assert.throws(() => validator(wrong(like)), TypeError);
  });
}

// The examples

/** A folder, seen from here. */
function folderOf(path: string): string {
  return fileURLToPath(new URL(path, import.meta.url));
}

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
  test(`the validator has nothing to say of the example ${which}`, async () => {
    await quietly(async () => {
      const { response, errors } = await answer(validator(app), new Request(HERE + path, init));
      assert.match(await response.text(), reply);
      await settle();
      assert.doesNotMatch(errors.text, /broke/);
    });
  });
}

test("the validator has nothing to say of the example stream.ts, which a client leaves", async () => {
  await quietly(async () => {
    const { response, errors } = await answer(validator(streamExample));
    const reader = response.body!.getReader();
    assert.match(text((await within(reader.read(), "an event")).value!), /^id: 1\n/);
    await reader.cancel();
    await settle();
    assert.equal(errors.text, "");
  });
});
