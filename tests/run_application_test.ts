/**
 * `runApplication`: one call of an application, with its whole response.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import {
  type Application,
  type Environ,
  type HeaderList,
  type ResponseBody,
  runApplication,
  type StartResponse,
  toEnviron,
} from "../mod.ts";
import { bytes, countingClose, environFor, ErrorLog, FAILURE, ok, ORIGIN, PLAIN, text } from "./support.ts";

test("runApplication gives status and headers exactly as they were given", async () => {
  const headers: HeaderList = [["coNTent-tYPE", "text/plain"], ["X-Twice", "2"], ["x-twice", "1"], ["X-Twice", "2"]];
  const result = await runApplication((_environ, startResponse) => {
    startResponse("299 Very  odd, ind\xe9ed", headers);
    return [];
  }, environFor());
  assert.equal(result.status, "299 Very  odd, ind\xe9ed");
  assert.deepEqual(result.headers, headers);
  assert.equal(result.body.length, 0);
  assert.equal(result.errors, "");
});

test("runApplication keeps the headers as they were when they were given", async () => {
  const { headers } = await runApplication((_environ, startResponse) => {
    const given: [string, string][] = [["X-Kept", "yes"]];
    startResponse("200 OK", given);
    given[0]![1] = "no";
    given.push(["X-Late", "yes"]);
    return [];
  }, environFor());
  assert.deepEqual(headers, [["X-Kept", "yes"]]);
});

const BODIES: { name: string; body: () => ResponseBody }[] = [
  { name: "an array", body: () => [bytes("one "), bytes("two")] },
  { name: "a set", body: () => new Set([bytes("one "), bytes(""), bytes("two")]) },
  {
    name: "a generator",
    *body() {
      yield bytes("one ");
      yield bytes("two");
    },
  },
  {
    name: "an async generator",
    async *body() {
      yield await Promise.resolve(bytes("one "));
      yield bytes("two");
    },
  },
  { name: "a ReadableStream", body: () => ReadableStream.from([bytes("one "), bytes("two")]) },
  { name: "Buffers", body: () => [Buffer.from("one "), Buffer.from("two")] },
  {
    name: "one array that is used again",
    *body() {
      const buffer = new Uint8Array(4);
      buffer.set(bytes("one "));
      yield buffer;
      buffer.set(bytes("two"));
      yield buffer.subarray(0, 3);
      buffer.fill(0);
    },
  },
  {
    name: "one Buffer that is used again",
    *body() {
      const buffer = Buffer.alloc(4);
      buffer.set(bytes("one "));
      yield buffer;
      buffer.set(bytes("two"));
      yield buffer.subarray(0, 3);
      buffer.fill(0);
    },
  },
];

for (const { name, body } of BODIES) {
  test(`runApplication collects the body: ${name}`, async () => {
    const result = await runApplication((_environ, startResponse) => {
      ok(startResponse);
      return body();
    }, environFor());
    assert.equal(text(result.body), "one two");
  });
}

test("runApplication collects what is written before what is returned", async () => {
  const { body } = await runApplication(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    await write(bytes("one "));
    write(bytes("two "));
    return [bytes("three")];
  }, environFor());
  assert.equal(text(body), "one two three");
});

test("runApplication collects what is written into one buffer that is used again", async () => {
  const { body } = await runApplication(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    const buffer = new Uint8Array(1);
    for (const character of "abc") {
      buffer.set(bytes(character));
      await write(buffer);
    }
    return [];
  }, environFor());
  assert.equal(text(body), "abc");
});

test("runApplication does not take what is written when the body has been returned", async () => {
  await assert.rejects(
    runApplication((_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      return (function* () {
        write(bytes("late"));
        yield bytes("body");
      })();
    }, environFor()),
    /write was called after the body was returned/,
  );
});

test("runApplication does not touch a Content-Length that is wrong", async () => {
  for (const length of ["1", "100"]) {
    const { headers, body } = await runApplication((_environ, startResponse) => {
      startResponse("200 OK", [["Content-Length", length]]);
      return [bytes("four")];
    }, environFor());
    assert.deepEqual(headers, [["Content-Length", length]]);
    assert.equal(text(body), "four");
  }
});

test("runApplication gives the body of an answer to HEAD, as the application gave it", async () => {
  const { body } = await runApplication((_environ, startResponse) => {
    ok(startResponse);
    return [bytes("given")];
  }, environFor("/", { method: "HEAD" }));
  assert.equal(text(body), "given");
});

test("runApplication collects what is reported, and reports nothing elsewhere", async () => {
  const elsewhere = new ErrorLog();
  const environ = toEnviron(new Request(ORIGIN), { errors: elsewhere });
  const { errors } = await runApplication((environ, startResponse) => {
    const log = environ["wsgi.errors"];
    log.write("one\n");
    log.writelines(["two\n", "thr"]);
    log.flush();
    ok(startResponse);
    return (function* () {
      log.write("ee\n");
      yield bytes("");
    })();
  }, environ);
  assert.equal(errors, "one\ntwo\nthree\n");
  assert.equal(elsewhere.text, "");
});

test("runApplication gives the application a copy of the environ", async () => {
  const environ = environFor("/path?query", { headers: { "X-Kept": "yes" } });
  const before = { ...environ };
  let received: Environ | undefined;
  await runApplication((inside, startResponse) => {
    received = inside;
    for (const name of Object.keys(inside)) delete inside[name];
    inside["example.new"] = true;
    ok(startResponse);
    return [];
  }, environ);
  assert.notEqual(received, environ);
  assert.deepEqual(Object.keys(environ), Object.keys(before));
  for (const [name, value] of Object.entries(before)) assert.equal(environ[name], value, name);
});

test("runApplication gives the application the environ that it was given", async () => {
  const environ = { ...environFor("/path?query", { method: "POST", body: "body" }), "example.pair": ["kept"] };
  const { body } = await runApplication(async (inside, startResponse) => {
    for (const [name, value] of Object.entries(environ)) {
      if (name !== "wsgi.errors") assert.equal(inside[name], value, name);
    }
    ok(startResponse);
    return [await inside["wsgi.input"].read()];
  }, environ);
  assert.equal(text(body), "body");
});

test("runApplication takes application objects, classes and async functions", async () => {
  class Instances {
    constructor(readonly environ: Environ, readonly startResponse: StartResponse) {}

    *[Symbol.iterator](): Generator<Uint8Array> {
      ok(this.startResponse);
      yield bytes(this.environ.PATH_INFO);
    }
  }
  const object = {
    prefix: "/",
    handle(environ: Environ, startResponse: StartResponse): Uint8Array[] {
      ok(startResponse);
      return [bytes(environ.PATH_INFO.replace(/^\//, this.prefix))];
    },
  };
  const app: Application = async (environ, startResponse) => {
    await Promise.resolve();
    ok(startResponse);
    return [bytes(environ.PATH_INFO)];
  };
  for (const like of [Instances, object, app]) {
    assert.equal(text((await runApplication(like, environFor("/path"))).body), "/path");
  }
});

/** Applications that end in every way, with a body that counts its ends. */
const ENDS: {
  name: string;
  status?: string;
  chunks: (startResponse: StartResponse) => Generator<unknown> | AsyncGenerator<unknown>;
  rejects?: RegExp | Error;
}[] = [
  {
    name: "it ends well",
    *chunks(startResponse) {
      ok(startResponse);
      yield bytes("chunk");
    },
  },
  {
    name: "it yields nothing",
    *chunks(startResponse) {
      yield* [];
      ok(startResponse);
    },
  },
  {
    name: "it fails at once",
    *chunks() {
      yield* [];
      throw FAILURE;
    },
    rejects: FAILURE,
  },
  {
    name: "it fails after a chunk",
    async *chunks(startResponse) {
      ok(startResponse);
      yield await Promise.resolve(bytes("chunk"));
      throw FAILURE;
    },
    rejects: FAILURE,
  },
  {
    name: "it yields text",
    *chunks(startResponse) {
      ok(startResponse);
      yield "text";
    },
    rejects: /"text".*Uint8Array/,
  },
  {
    name: "it yields before startResponse",
    *chunks() {
      yield bytes("chunk");
    },
    rejects: /startResponse was not called/,
  },
  { name: "it never calls startResponse", *chunks() {}, rejects: /startResponse was not called/ },
  {
    name: "it goes on after startResponse has thrown",
    *chunks(startResponse) {
      try {
        startResponse("bad", []);
      } catch {
        yield bytes("chunk");
      }
    },
    rejects: /status "bad"/,
  },
];

for (const { name, chunks, rejects } of ENDS) {
  test(`runApplication closes the body once, and ends its generator: ${name}`, async () => {
    let finished = 0;
    let body: ReturnType<typeof countingClose> | undefined;
    const run = runApplication((_environ, startResponse) => {
      body = countingClose(async function* () {
        try {
          yield* chunks(startResponse) as Generator<Uint8Array>;
        } finally {
          finished++;
        }
      }());
      return body;
    }, environFor());
    if (rejects === undefined) await run;
    else if (rejects instanceof Error) assert.equal(await run.catch((error) => error), rejects);
    else await assert.rejects(run, rejects);
    assert.equal(body?.closed, 1);
    assert.equal(finished, 1);
  });
}

test("runApplication rejects with the very value that was thrown", async () => {
  for (const thrown of [new Error("An error"), "text", 0, null, undefined, { status: 404 }]) {
    const apps: Application[] = [
      () => {
        throw thrown;
      },
      () => Promise.reject(thrown),
      function* () {
        yield* [];
        throw thrown;
      },
    ];
    for (const app of apps) {
      const outcome = await runApplication(app, environFor()).then(() => "fulfilled", (error) => ({ error }));
      assert.deepEqual(outcome, { error: thrown });
      assert.equal((outcome as { error: unknown }).error, thrown);
    }
  }
});

test("runApplication rejects when close() fails", async () => {
  const run = runApplication((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([], { close: () => Promise.reject(FAILURE) });
  }, environFor());
  assert.equal(await run.catch((error) => error), FAILURE);
});

test("runApplication waits for close()", async () => {
  let closed = false;
  await runApplication((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([], {
      async close() {
        await new Promise((resolve) => setImmediate(resolve));
        closed = true;
      },
    });
  }, environFor());
  assert.equal(closed, true);
});

test("runApplication closes a body that cannot be iterated, and rejects", async () => {
  let closed = 0;
  await assert.rejects(
    runApplication((_environ, startResponse) => {
      ok(startResponse);
      return { close: () => void closed++ } as unknown as ResponseBody;
    }, environFor()),
    /iterable/,
  );
  assert.equal(closed, 1);
});

test("runApplication rejects a value that is not a body", async () => {
  for (const body of ["text", bytes("bytes"), undefined, null, 5, {}, new Response()]) {
    const run = runApplication((_environ, startResponse) => {
      ok(startResponse);
      return body as never;
    }, environFor());
    await assert.rejects(run, TypeError, String(body));
  }
});

test("runApplication rejects a value that is not an application", async () => {
  for (const app of ["text", undefined, null, {}, { handle: 5 }]) {
    await assert.rejects(runApplication(app as never, environFor()), TypeError);
  }
});

test("runApplication lets startResponse with an error replace what was started before", async () => {
  const result = await runApplication((_environ, startResponse) => {
    startResponse("200 OK", [["X-Old", "yes"]]);
    startResponse("500 Internal Server Error", [["X-New", "yes"]], FAILURE);
    return [bytes("Sorry")];
  }, environFor());
  assert.equal(result.status, "500 Internal Server Error");
  assert.deepEqual(result.headers, [["X-New", "yes"]]);
});

test("runApplication throws the error given to startResponse back after the first byte", async () => {
  let thrown: unknown;
  const run = runApplication(function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("");
    yield bytes("first");
    try {
      startResponse("500 Internal Server Error", [], FAILURE);
    } catch (error) {
      thrown = error;
      throw error;
    }
  }, environFor());
  assert.equal(await run.catch((error) => error), FAILURE);
  assert.equal(thrown, FAILURE);
});

test("runApplication rejects an application that starts its response twice without an error", async () => {
  await assert.rejects(
    runApplication((_environ, startResponse) => {
      ok(startResponse);
      ok(startResponse);
      return [];
    }, environFor()),
    /again/,
  );
});
