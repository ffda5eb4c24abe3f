/**
 * `validator`: what a middleware must not do.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import {
  type Application,
  type Middleware,
  type ResponseBody,
  type StartResponse,
  validator,
  type Write,
} from "../mod.ts";
import { bytes, hello, ok, PLAIN, settle, text } from "./support.ts";
import {
  accept,
  complaint,
  ERROR,
  giving,
  inputOf,
  open,
  overFetch,
  reading,
  type Rule,
  run,
  starting,
  STREAM,
  testEnvironWith,
  testRules,
  WRITING,
  wrong,
} from "./validator_support.ts";

/** What is inside the middleware: it begins at once, so that only its chunks are still to come. */
const INSIDE: Application = (_environ, startResponse) => {
  ok(startResponse);
  return new Set(["one ", "two ", "three"].map(bytes));
};

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
      ["answering without the application", () => hello],
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
        ': new TextEncoder().encode("…")',
      ],
      [
        "an array of text",
        'a chunk is "text"',
        handling(async (body) => {
          await body.close?.();
          return wrong(["text"]);
        }),
        ': new TextEncoder().encode("…")',
      ],
    ],
    legal: [],
  },
  {
    section: "The Application/Framework Side",
    expected: 'an iterable of bytes: return [new TextEncoder().encode("…")]',
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
    expected: "the chunk in that body",
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
    expected: '"200 OK"',
    broken: [[
      "a status",
      'status "200" has no reason phrase',
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
    expected: 'startResponse("200 OK", [["Content-Type", "text/plain"]]) before the first chunk',
    broken: [[
      "keeping startResponse to itself",
      "startResponse was not called",
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

testRules("middleware", MIDDLEWARE_RULES, {
  "in process": async (middleware) => void await run(validator(middleware(validator(INSIDE)))),
  "over Fetch": async (middleware) => await overFetch(validator(middleware(validator(INSIDE)))),
});

test("a middleware whose write gives no promise is blamed by the validator below it", async () => {
  const silent = beginning((startResponse) => (...head) => {
    startResponse(...head);
    return () => wrong(undefined);
  });
  await assert.rejects(run(validator(silent(validator(WRITING)))), {
    message: complaint("middleware", "The write() Callable", "write returned undefined", "a promise"),
  });
});

test("a middleware that gives its application an input of text is blamed by the validator below it", async () => {
  const app = validator(reading((input) => input.read()));
  const environ = changing({ "wsgi.input": inputOf("text") });
  await assert.rejects(run(validator(environ(app))), {
    message: complaint("middleware", "Input and Error Streams", 'wsgi.input gave "text"', "bytes"),
  });
});

const TEXT_REMEDY = 'a Uint8Array: new TextEncoder().encode("…")';

test("a breach of the application is not blamed on the middleware around the application", async () => {
  const through = handling((body) => body);
  await assert.rejects(run(validator(through(validator(giving(["text"]))))), {
    message: complaint("application", "Buffering and Streaming", 'a chunk is "text"', TEXT_REMEDY),
  });
});

test("a breach of the server is not blamed on the middleware", async () => {
  const through = handling((body) => body);
  await assert.rejects(run(validator(through(validator(hello))), testEnvironWith({ REMOTE_PORT: 80 })), {
    message: complaint("server", "environ Variables", "REMOTE_PORT is 80", "a string"),
  });
});

test("a middleware without a validator below it is an application", async () => {
  const middleware = rechunking(async function* (chunks) {
    for await (const chunk of each(chunks)) yield wrong(text(chunk));
  });
  const asynchronous: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield await Promise.resolve(bytes("one"));
  };
  await assert.rejects(run(validator(middleware(asynchronous))), {
    message: complaint("application", "Buffering and Streaming", 'a chunk is "one"', TEXT_REMEDY),
  });
});

test("a broken middleware is blamed wherever it stands between three validators", async () => {
  const through = handling((body) => body);
  const draining = rechunking(async function* (chunks) {
    yield* await drain(chunks);
  });
  for (const [outer, inner] of [[through, draining], [draining, through]] as const) {
    await assert.rejects(run(validator(outer(validator(inner(validator(STREAM)))))), /^Error: The middleware broke/);
  }
});

test("a middleware may call the application again, after it has closed what it was given first", async () => {
  const again: Middleware = (app) => async (environ, startResponse) => {
    const first = await wrong<Application>(app)(environ, accept);
    await first.close?.();
    return await wrong<Application>(app)(environ, startResponse);
  };
  assert.equal(await run(validator(again(validator(STREAM)))), "one two three");
});

test("a middleware may call another application with the same environ, after it has closed the first one", async () => {
  const none = validator(starting(["404 Not Found", PLAIN]));
  const other = validator(STREAM);
  const app = validator(async (environ, startResponse) => {
    await (await none(environ, accept)).close?.();
    return await other(environ, startResponse);
  });
  assert.equal(await run(app), "one two three");
});

test("a middleware may call another application with the same environ, after the first one has failed", async () => {
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

test("a middleware may call two applications at once, each with an environ of its own", async () => {
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
