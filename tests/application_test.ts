/**
 * Applications: what may be one, what it may return, what it may read and report, and what it may not do.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  application,
  type ApplicationClass,
  type ApplicationLike,
  type Environ,
  errorPage,
  type ErrorStream,
  type FileLike,
  type HeaderList,
  health,
  type InputStream,
  type ResponseBody,
  type StartResponse,
  toEnviron,
  toFetch,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  ErrorLog,
  Event,
  exchange,
  MemoryFile,
  ok,
  PLAIN,
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

const HERE = "http://test.example/";
const EMPTY = new Uint8Array(0);

// The callables.

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

test("handle is called on its object, also when it is replaced later", async () => {
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

test("nothing of the server is the this of what it calls", async () => {
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

test("what cannot be called is refused at once, by name", () => {
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

// The bodies.

class Countdown implements Iterable<Uint8Array>, Iterator<Uint8Array> {
  #left = 3;

  [Symbol.iterator](): this {
    return this;
  }

  next(): IteratorResult<Uint8Array> {
    return this.#left > 0 ? { done: false, value: bytes(`${this.#left--}`) } : { done: true, value: undefined };
  }
}

class SlowCountdown implements AsyncIterable<Uint8Array> {
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    const countdown = new Countdown();
    return {
      next: async () => {
        await settle();
        return countdown.next();
      },
    };
  }
}

/** Lets a file be read later, as files are. */
class SlowFile {
  constructor(readonly file: MemoryFile) {}

  async read(size: number): Promise<Uint8Array> {
    await settle();
    return this.file.read(size);
  }

  async close(): Promise<void> {
    await settle();
    this.file.close();
  }
}

function byteStream(...chunks: string[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    type: "bytes",
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk === undefined) controller.close();
      else controller.enqueue(bytes(chunk));
    },
  });
}

function stream(...chunks: string[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk === undefined) controller.close();
      else controller.enqueue(bytes(chunk));
    },
  });
}

const BODIES: Record<string, [make: (wrap: Environ["wsgi.file_wrapper"]) => ResponseBody, expected: string]> = {
  "an array of one chunk": [() => [bytes("one")], "one"],
  "an array of several chunks": [() => [bytes("one "), bytes("two "), bytes("three")], "one two three"],
  "an empty array": [() => [], ""],
  "an array with empty chunks": [() => [EMPTY, bytes("one"), EMPTY, bytes("two"), EMPTY], "onetwo"],
  "an array of empty chunks": [() => [EMPTY, EMPTY], ""],
  "an array of views on one buffer": [() => {
    const buffer = bytes("0123456789");
    return [buffer.subarray(8), buffer.subarray(2, 4)];
  }, "8923"],
  "an array of the same chunk": [() => new Array(3).fill(bytes("ab")), "ababab"],
  "an array iterator": [() => [bytes("one "), bytes("two")].values(), "one two"],
  "a set": [() => new Set([bytes("one "), bytes("two")]), "one two"],
  "an empty set": [() => new Set<Uint8Array>(), ""],
  "the values of a map": [() => new Map([[1, bytes("one")]]).values(), "one"],
  "an iterator class": [() => new Countdown(), "321"],
  "an iterator of empty chunks": [() => [EMPTY, EMPTY].values(), ""],
  "an iterator with empty chunks": [() => [EMPTY, bytes("one"), EMPTY, EMPTY, bytes("two"), EMPTY].values(), "onetwo"],
  "an async iterable": [() => new SlowCountdown(), "321"],
  "an iterable of the same chunk": [() => new Array(3).fill(bytes("ab")).values(), "ababab"],
  "a generator": [function* () {
    yield bytes("one ");
    yield bytes("two");
  }, "one two"],
  "an async generator": [async function* () {
    await settle();
    yield bytes("one ");
    yield EMPTY;
    await settle();
    yield bytes("two");
  }, "one two"],
  "a stream": [() => stream("one ", "two"), "one two"],
  "an empty stream": [() => stream(), ""],
  "a stream of bytes": [() => byteStream("one ", "two"), "one two"],
  "the body of a response": [() => new Response("one two").body!, "one two"],
  "a stream of a blob": [() => new Blob(["one two"]).stream(), "one two"],
  "a piped stream": [
    () => stream("one ", "two").pipeThrough(new TransformStream<Uint8Array, Uint8Array>()),
    "one two",
  ],
  "a wrapped file": [(wrap) => wrap(new MemoryFile("one two")), "one two"],
  "a wrapped file in blocks": [(wrap) => wrap(new MemoryFile("one two"), 2), "one two"],
  "a wrapped empty file": [(wrap) => wrap(new MemoryFile("")), ""],
  "a wrapped file that is read later": [(wrap) => wrap(new SlowFile(new MemoryFile("one two")), 3), "one two"],
  "a wrapped blob": [(wrap) => wrap(new Blob(["one ", "two"])), "one two"],
  "a wrapped slice of a blob": [(wrap) => wrap(new Blob(["one two"]).slice(4)), "two"],
  "a wrapped stream": [(wrap) => wrap(stream("one ", "two")), "one two"],
};

for (const [kind, [make, expected]] of Object.entries(BODIES)) {
  test(`${kind} is a body`, async () => {
    const { response, errors } = await answer((environ, startResponse) => {
      ok(startResponse);
      return make(environ["wsgi.file_wrapper"]);
    });
    assert.equal(response.status, 200);
    assert.equal(await response.text(), expected);
    assert.equal(errors.text, "");
  });
}

test("every kind of body can be sent", async () => {
  const kinds = Object.keys(BODIES);
  await using server = start((environ, startResponse) => {
    ok(startResponse);
    const [make] = BODIES[kinds[Number(environ.QUERY_STRING)]!]!;
    return make(environ["wsgi.file_wrapper"]);
  });
  for (const [index, kind] of kinds.entries()) {
    const reply = await exchange(server, request(`/?${index}`));
    assert.equal(reply.status, 200, kind);
    assert.equal(reply.body, BODIES[kind]![1], kind);
    assert.ok(reply.complete, kind);
    assert.deepEqual(
      reply.headers.filter(([name]) => name === "content-type"),
      PLAIN.map(([, type]) => [
        "content-type",
        type,
      ]),
    );
  }
  assert.equal(server.errors.text, "");
});

test("a body may be promised", async () => {
  const { response } = await answer((_environ, startResponse) => {
    ok(startResponse);
    return Promise.resolve(new Set([bytes("promised")]));
  });
  assert.equal(await response.text(), "promised");
});

test("a chunk belongs to the application again when the next one is asked for", async () => {
  await using server = start(function* (_environ, startResponse) {
    ok(startResponse);
    const buffer = new Uint8Array(1);
    for (const byte of bytes("reused")) {
      buffer[0] = byte;
      yield buffer;
    }
  });
  const { body, complete } = await exchange(server, request("/"));
  assert.equal(body, "reused");
  assert.ok(complete);
});

test("a chunk keeps its buffer", async () => {
  const chunk = bytes("constant");
  for (let time = 0; time < 2; time++) {
    for (const body of [[chunk], [chunk].values()]) {
      const { response } = await answer((_environ, startResponse) => {
        ok(startResponse);
        return body;
      });
      assert.equal(await response.text(), "constant");
    }
  }
  assert.equal(text(chunk), "constant");
});

test("a file wrapper reads in blocks of the size that it is given, and of 65,536 bytes without", async () => {
  for (const [blockSize, expected] of [[undefined, 65_536], [4, 4], [1, 1]] as const) {
    const file = new MemoryFile("0123456789");
    const { response } = await answer((environ, startResponse) => {
      ok(startResponse);
      return environ["wsgi.file_wrapper"](file, blockSize);
    });
    assert.equal(await response.text(), "0123456789");
    assert.deepEqual([...new Set(file.reads)], [expected]);
    assert.equal(file.closed, 1);
  }
});

test("a file wrapper refuses a block size that is not a positive integer", () => {
  const wrap = toEnviron(new Request(HERE))["wsgi.file_wrapper"];
  for (const blockSize of [0, -1, 1.5, NaN, Infinity, "1", null]) {
    assert.throws(
      () => wrap(new MemoryFile("file"), blockSize as number),
      new RegExp(`block ?size.* "?${blockSize}"?`, "i"),
      String(blockSize),
    );
  }
});

test("a file wrapper refuses what cannot be read, by name", () => {
  const wrap = toEnviron(new Request(HERE))["wsgi.file_wrapper"];
  const files: [file: unknown, found: RegExp][] = [
    [undefined, /undefined/],
    [null, /null/],
    ["/etc/hosts", /"\/etc\/hosts"/],
    [{}, /object/],
    [{ read: 1 }, /object/],
    [bytes("bytes"), /Uint8Array/],
  ];
  for (const [file, found] of files) {
    assert.throws(() => wrap(file as FileLike), { name: "TypeError", message: found });
  }
});

test("a file wrapper closes its file once, also when the file fails", async () => {
  for (const slow of [false, true]) {
    for (const fails of [false, true]) {
      const memory = new MemoryFile("0123");
      const file = slow ? new SlowFile(memory) : memory;
      if (fails) {
        file.read = () => {
          throw new Error("The disk is gone");
        };
      }
      const { response, errors } = await answer((environ, startResponse) => {
        ok(startResponse);
        return environ["wsgi.file_wrapper"](file, 2);
      });
      assert.equal(await response.text(), fails ? "Internal Server Error\n" : "0123");
      await settle();
      await settle();
      assert.equal(memory.closed, 1);
      assert.equal(errors.text.includes("The disk is gone"), fails);
    }
  }
});

test("a file wrapper starts where the file stands when it is sent", async () => {
  const file = new MemoryFile("0123456789", 2);
  const { response } = await answer((environ, startResponse) => {
    ok(startResponse);
    const body = environ["wsgi.file_wrapper"](file);
    file.position = 7;
    return body;
  });
  assert.equal(await response.text(), "789");
});

/** A file on the disk. */
async function withFile(content: string | Uint8Array, use: (path: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
  try {
    writeFileSync(join(folder, "file.txt"), content);
    await use(join(folder, "file.txt"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test(
  "a Deno.FsFile is sent from its position, in blocks, and closed",
  { skip: RUNTIME === "bun" && "Bun has no Deno.FsFile" },
  async () => {
    await withFile("0123456789", async (path) => {
      for (const blockSize of [undefined, 4]) {
        const file = await Deno.open(path);
        await file.seek(3, Deno.SeekMode.Start);
        const { response, errors } = await answer((environ, startResponse) => {
          ok(startResponse);
          return environ["wsgi.file_wrapper"](file, blockSize);
        });
        assert.equal(await response.text(), "3456789");
        assert.equal(errors.text, "");
        await settle();
        await assert.rejects(file.stat(), Deno.errors.BadResource);
      }
    });
  },
);

test(
  "a Deno.FsFile is closed when nobody reads it: after HEAD, by a client that leaves, by close",
  { skip: RUNTIME === "bun" && "Bun has no Deno.FsFile" },
  async () => {
    await withFile("0123456789".repeat(100), async (path) => {
      const uses: ((file: Deno.FsFile) => Promise<unknown>)[] = [
        async (file) => {
          const { response } = await answer((environ, startResponse) => {
            ok(startResponse);
            return environ["wsgi.file_wrapper"](file);
          }, new Request(HERE, { method: "HEAD" }));
          assert.equal(await response.text(), "");
        },
        async (file) => {
          const { response } = await answer((environ, startResponse) => {
            ok(startResponse);
            return environ["wsgi.file_wrapper"](file, 10);
          });
          await response.body!.cancel();
        },
        async (file) => await toEnviron(new Request(HERE))["wsgi.file_wrapper"](file).close?.(),
      ];
      for (const use of uses) {
        using file = await Deno.open(path);
        await use(file);
        await settle();
        await assert.rejects(file.stat(), Deno.errors.BadResource);
      }
    });
  },
);

test(
  "a client that leaves in the middle of a Deno.FsFile is no failure, and the file is closed",
  { skip: RUNTIME === "bun" && "Bun has no Deno.FsFile" },
  async () => {
    await withFile("0123456789".repeat(1_000_000), async (path) => {
      using file = await Deno.open(path);
      await using server = start(unchecked((environ, startResponse) => {
        ok(startResponse);
        return environ["wsgi.file_wrapper"](file);
      }));
      const client = await Client.connect(server);
      await client.send(request("/"));
      await client.until(/0123/);
      client.leave();
      await server.shutdown();
      assert.equal(server.errors.text, "");
      await assert.rejects(file.stat(), Deno.errors.BadResource);
    });
  },
);

test(
  "a Deno.FsFile is closed by an application that reads its wrapper, at the end and before",
  { skip: RUNTIME === "bun" && "Bun has no Deno.FsFile" },
  async () => {
    const wrap = toEnviron(new Request(HERE))["wsgi.file_wrapper"];
    await withFile("0123456789", async (path) => {
      for (const most of [1, Infinity]) {
        using file = await Deno.open(path);
        const seen: string[] = [];
        for await (const chunk of wrap(file, 4)) {
          seen.push(text(chunk));
          if (seen.length === most) break;
        }
        assert.deepEqual(seen, ["0123", "4567", "89"].slice(0, most));
        await assert.rejects(file.stat(), Deno.errors.BadResource);
      }
    });
  },
);

test(
  "a Deno.FsFile that the application has closed is answered with 500, and reported once",
  { skip: RUNTIME === "bun" && "Bun has no Deno.FsFile" },
  async () => {
    await withFile("0123456789", async (path) => {
      const { response, errors } = await answer(async (environ, startResponse) => {
        using file = await Deno.open(path);
        ok(startResponse);
        return environ["wsgi.file_wrapper"](file);
      });
      assert.equal(response.status, 500);
      await settle();
      assert.equal(reportsIn(errors).length, 1);
    });
  },
);

test(
  "a Deno.FsFile with a block size of more than there is memory is sent",
  { skip: RUNTIME === "bun" && "Bun has no Deno.FsFile" },
  async () => {
    await withFile("0123456789", async (path) => {
      const { response } = await answer(async (environ, startResponse) => {
        ok(startResponse);
        return environ["wsgi.file_wrapper"](await Deno.open(path), 2 ** 40);
      });
      assert.equal(await response.text(), "0123456789");
    });
  },
);

test(
  "a Bun.file is sent, whole or a slice",
  { skip: RUNTIME === "deno" && "Deno has no Bun.file" },
  async () => {
    const { Bun } = globalThis as unknown as { Bun: { file(path: string): Blob } };
    await withFile("0123456789", async (path) => {
      await using server = start((environ, startResponse) => {
        ok(startResponse);
        const file = Bun.file(path);
        return environ["wsgi.file_wrapper"](environ.PATH_INFO === "/slice" ? file.slice(3, 5) : file);
      });
      const range = { headers: ["Range: bytes=0-1"] };
      for (
        const [target, options, expected] of [["/", {}, "0123456789"], ["/", range, "0123456789"], [
          "/slice",
          {},
          "34",
        ]] as const
      ) {
        const reply = await exchange(
          server,
          request(target, { ...options, headers: [...(range === options ? range.headers : [])] }),
        );
        assert.equal(reply.status, 200);
        assert.equal(reply.body, expected);
        assert.deepEqual(reply.headers.filter(([name]) => /content-(type|range|disposition)/.test(name)), [
          ["content-type", "text/plain"],
        ]);
      }
      assert.equal(server.errors.text, "");
    });
  },
);

/** A client that takes what `wsgi.file_wrapper` makes of a file, and how large its chunks were. */
async function taken(file: FileLike, blockSize?: number): Promise<{ body: Buffer; largest: number }> {
  const wrap = toEnviron(new Request(HERE))["wsgi.file_wrapper"];
  const chunks: Uint8Array[] = [];
  for await (const chunk of wrap(file, blockSize)) chunks.push(chunk);
  return { body: Buffer.concat(chunks), largest: Math.max(...chunks.map(({ length }) => length)) };
}

/** Some content, in which no two neighbouring stretches look alike. */
const CONTENT = Buffer.from(Uint32Array.from({ length: 250_000 }, (_, at) => Math.imul(at, 2_654_435_761)).buffer);

test("no block of a file is larger than 128 KiB, whatever is asked for", async () => {
  const readable = () => {
    let at = 0;
    return { read: (size: number) => CONTENT.subarray(at, at += size) };
  };
  for (const blockSize of [undefined, 4 * 1024 * 1024]) {
    for (
      const file of [new Blob([CONTENT]), new Blob([EMPTY, CONTENT, CONTENT]).slice(0, CONTENT.length), readable()]
    ) {
      const { body, largest } = await taken(file, blockSize);
      assert.ok(body.equals(CONTENT));
      assert.ok(largest <= 131_072, String(largest));
    }
  }
});

test("a blob is read in blocks of the size that is asked for", async () => {
  const { body, largest } = await taken(new Blob(["one two"]), 3);
  assert.deepEqual([String(body), largest], ["one two", 3]);
});

test("a blob is left alone when the client leaves", async () => {
  const body = toEnviron(new Request(HERE))["wsgi.file_wrapper"](new Blob([CONTENT]), 10);
  assert.ok(Symbol.asyncIterator in body);
  const chunks = body[Symbol.asyncIterator]();
  assert.equal((await chunks.next()).value?.length, 10);
  await chunks.return?.();
  assert.deepEqual(await chunks.next(), { done: true, value: undefined });
});

test(
  "a Bun.file is read in blocks of at most 128 KiB, from the start of what it is",
  { skip: RUNTIME === "deno" && "Deno has no Bun.file" },
  async () => {
    const { Bun } = globalThis as unknown as { Bun: { file(path: string | number): Blob } };
    await withFile(CONTENT, async (path) => {
      const descriptor = openSync(path, "r");
      readSync(descriptor, new Uint8Array(10));
      const files: [file: Blob, expected: Uint8Array][] = [
        [Bun.file(path), CONTENT],
        [Bun.file(path).slice(7, 700_000), CONTENT.subarray(7, 700_000)],
        [Bun.file(descriptor), CONTENT],
        [Bun.file(descriptor).slice(7), CONTENT.subarray(7)],
      ];
      for (const [file, expected] of files) {
        const { body, largest } = await taken(file);
        assert.ok(body.equals(expected));
        assert.ok(largest <= 131_072, String(largest));
      }
      closeSync(descriptor);
    });
  },
);

test(
  "a Bun.file that does not know its size is read to its end",
  { skip: RUNTIME === "deno" && "Deno has no Bun.file" },
  async () => {
    const { Bun } = globalThis as unknown as { Bun: { file(path: string): Blob } };
    const folder = mkdtempSync(join(tmpdir(), "wsgi-pipe-"));
    const pipe = join(folder, "pipe");
    spawnSync("mkfifo", [pipe]);
    const writing = writeFile(pipe, CONTENT);
    assert.ok((await taken(Bun.file(pipe))).body.equals(CONTENT));
    await writing;
    rmSync(folder, { recursive: true });
    await withFile("", async (path) => assert.equal((await taken(Bun.file(path))).body.length, 0));
    assert.match(String((await taken(Bun.file("/proc/self/stat"))).body), /^\d/); // which is said to have no bytes
  },
);

for (const what of ["replaced", "deleted"]) {
  test(
    `a Bun.file that is ${what} while it is sent is no mixture: the response is aborted, and that is reported`,
    { skip: RUNTIME === "deno" && "Deno has no Bun.file" },
    async () => {
      const { Bun } = globalThis as unknown as { Bun: { file(path: string): Blob } };
      await withFile(CONTENT, async (path) => {
        const { response, errors } = await answer((environ, startResponse) => {
          ok(startResponse);
          return environ["wsgi.file_wrapper"](Bun.file(path));
        });
        const reader = response.body!.getReader();
        assert.ok((await reader.read()).value);
        renameSync(path, `${path}.old`);
        if (what === "replaced") writeFileSync(path, "another");
        await assert.rejects(async () => {
          while (!(await reader.read()).done);
        });
        assert.match(errors.text, what === "replaced" ? /Cannot send the file: it was replaced meanwhile/ : /ENOENT/);
        renameSync(`${path}.old`, path);
      });
    },
  );
}

test(
  "a missing Bun.file is an error like any other",
  { skip: RUNTIME === "deno" && "Deno has no Bun.file" },
  async () => {
    const { Bun } = globalThis as unknown as { Bun: { file(path: string): Blob } };
    await using server = start((environ, startResponse) => {
      ok(startResponse);
      return environ["wsgi.file_wrapper"](Bun.file(join(tmpdir(), "wsgi-without-such-a-file")));
    });
    const { status } = await exchange(server, request("/"));
    assert.equal(status, 500);
    assert.equal(reportsIn(server.errors).length, 1);
  },
);

// Bad applications.

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
    rule: /start the response again/,
    quoted: '"201 Created"',
  },
  {
    what: "that calls startResponse twice, with undefined for an error",
    app: (_environ, startResponse) => {
      ok(startResponse);
      startResponse("201 Created", [], undefined);
      return [bytes("unsent")];
    },
    rule: /start the response again/,
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
  ...BAD_BODIES.map(([what, body, quoted]) => returning(`that returns ${what}`, body, /body/, quoted)),
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

const SECRET = "the password is hunter2";
const FAILURES: Record<string, unknown> = {
  "an error": new Error(SECRET),
  "an error with a cause": new Error("outer", { cause: new Error(SECRET) }),
  "an error that looks like a response": Object.assign(new Error(SECRET), { status: 403, reason: SECRET }),
  "a text": SECRET,
  "a Response": new Response(SECRET),
  "undefined": undefined,
  "null": null,
  "an object without a prototype": Object.assign(Object.create(null), { SECRET }),
  "an error that cannot be read": new Proxy(new Error(SECRET), {
    get() {
      throw new Error("unreadable");
    },
  }),
  "an AbortError": new DOMException(SECRET, "AbortError"),
};

for (const [what, failure] of Object.entries(FAILURES)) {
  test(`an application that throws ${what} gets a 500 and one report, of which the client learns nothing`, async () => {
    const apps: ApplicationLike[] = [
      () => {
        throw failure;
      },
      () => Promise.reject(failure),
      function* (_environ, startResponse) {
        ok(startResponse);
        yield EMPTY;
        throw failure;
      },
    ];
    for (const app of apps) {
      const { response, errors } = await answer(app);
      assert.equal(response.status, 500);
      assert.equal(await response.text(), "Internal Server Error\n");
      assert.ok(![...response.headers.values()].some((value) => value.includes(SECRET)));
      await settle();
      assert.equal(reportsIn(errors).length, 1, errors.text);
      if (/^an error( with a cause)?$|^a text$/.test(what)) assert.ok(errors.text.includes(SECRET), errors.text);
    }
  });
}

test("an application that swallows what startResponse throws gets a 500 all the same", async () => {
  const heads: [status: string, headers: HeaderList][] = [
    ["200", PLAIN],
    ["200 OK", [["X-Test", "\n"]]],
    ["200 OK", [["Connection", "close"]]],
  ];
  for (const [status, headers] of heads) {
    for (const wrap of [(chunk: Uint8Array) => [chunk], (chunk: Uint8Array) => new Set([chunk])]) {
      const { response, errors } = await answer(unchecked((_environ, startResponse) => {
        try {
          startResponse(status, headers);
        } catch {
          // What it must not do.
        }
        return wrap(bytes("unsent"));
      }));
      assert.equal(response.status, 500);
      assert.equal(await response.text(), "Internal Server Error\n");
      assert.equal(reportsIn(errors).length, 1);
    }
  }
});

test("an application that swallows the failure of a second call gets a 500 all the same", async () => {
  const { response, errors } = await answer(unchecked((_environ, startResponse) => {
    ok(startResponse);
    try {
      startResponse("201 Created", PLAIN);
    } catch {
      // What it must not do.
    }
    return [bytes("unsent")];
  }));
  assert.equal(response.status, 500);
  assert.equal(reportsIn(errors).length, 1);
});

test("a second call with the error replaces the head, also after a first that failed", async () => {
  for (const first of ["200 OK", "200", "200 OK\n"]) {
    for (const error of [new Error("Caught"), null, 0, "", false]) {
      const { response, errors } = await answer(unchecked((_environ, startResponse) => {
        try {
          startResponse(first, [["X-First", "1"]]);
        } catch {
          // It goes on to say what went wrong.
        }
        startResponse("503 Service Unavailable", [["X-Second", "2"]], error);
        return [bytes("sorry")];
      }));
      assert.equal(response.status, 503);
      assert.equal(response.headers.get("X-First"), null);
      assert.equal(response.headers.get("X-Second"), "2");
      assert.equal(await response.text(), "sorry");
      assert.equal(errors.text, "");
    }
  }
});

test("a second call with an error is checked like the first", async () => {
  const { response, errors } = await answer(unchecked((_environ, startResponse) => {
    ok(startResponse);
    assert.throws(() => startResponse("500", PLAIN, new Error("Caught")), { name: "TypeError" });
    return [bytes("unsent")];
  }));
  assert.equal(response.status, 500);
  assert.match(errors.text, /"500"/);
});

test("an error given after the first chunk is thrown back, and the response aborted even if it is swallowed", async () => {
  const error = new Error("Too late");
  for (const swallows of [false, true]) {
    let thrown: unknown;
    await using server = start(function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("sent");
      try {
        startResponse("500 Internal Server Error", PLAIN, error);
      } catch (caught) {
        thrown = caught;
        if (!swallows) throw caught;
      }
      yield bytes("unsent");
    });
    const reply = await exchange(server, request("/"));
    assert.ok(thrown === error);
    assert.ok(!reply.complete);
    assert.ok(!reply.body.includes("unsent"));
    assert.equal(reportsIn(server.errors).length, 1);
    assert.match(server.errors.text, /Too late/);
  }
});

test("an error given after a write is thrown back, and the response aborted even if it is swallowed", async () => {
  const error = new Error("Too late");
  for (const swallows of [false, true]) {
    let thrown: unknown;
    await using server = start(async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      await write(bytes("sent"));
      try {
        startResponse("500 Internal Server Error", PLAIN, error);
      } catch (caught) {
        thrown = caught;
        if (!swallows) throw caught;
      }
      return [bytes("unsent")];
    });
    const reply = await exchange(server, request("/"));
    assert.ok(thrown === error);
    assert.ok(!reply.complete);
    assert.ok(!reply.body.includes("unsent"));
    assert.equal(reportsIn(server.errors).length, 1);
  }
});

test("an error swallowed after the last chunk aborts the response, too", async () => {
  await using server = start(function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("sent");
    try {
      startResponse("500 Internal Server Error", PLAIN, new Error("Too late"));
    } catch {
      // What it must not do.
    }
  });
  const reply = await exchange(server, request("/"));
  assert.ok(!reply.complete);
  assert.equal(reportsIn(server.errors).length, 1);
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

// wsgi.input.

function withBody(...chunks: string[]): Request {
  return new Request(HERE, { method: "POST", body: stream(...chunks), duplex: "half" } as RequestInit);
}

function inputOf(...chunks: string[]): InputStream {
  return toEnviron(withBody(...chunks))["wsgi.input"];
}

async function textsOf(reads: AsyncIterable<Uint8Array> | Iterable<Promise<Uint8Array>>): Promise<string[]> {
  const texts: string[] = [];
  for await (const chunk of reads) texts.push(text(chunk));
  return texts;
}

test("read gives exactly what it is asked for, wherever the chunks of the body end", async () => {
  const content = "The quick brown fox jumps over the lazy dog";
  for (const chunkSize of [1, 2, 7, 100]) {
    for (const size of [1, 3, 7, 10]) {
      const input = inputOf(...content.match(new RegExp(`.{1,${chunkSize}}`, "g"))!);
      for (let at = 0; at < content.length; at += size) {
        assert.equal(text(await input.read(size)), content.slice(at, at + size));
      }
      assert.equal((await input.read(size)).length, 0);
    }
  }
});

test("read without a size, with undefined or below zero gives all that is left", async () => {
  for (const size of [undefined, -1, -100]) {
    const input = inputOf("one ", "two ", "three");
    assert.equal(text(await input.read(2)), "on");
    assert.equal(text(await input.read(size)), "e two three");
  }
  assert.equal(text(await inputOf("a", "b").read()), "ab");
});

test("read(0) and readline(0) give nothing and read nothing", async () => {
  let pulled = 0;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      pulled++;
      controller.enqueue(bytes("body"));
      controller.close();
    },
  }, { highWaterMark: 0 });
  const request = new Request(HERE, { method: "POST", body, duplex: "half" } as RequestInit);
  const input = toEnviron(request)["wsgi.input"];
  assert.equal((await input.read(0)).length, 0);
  assert.equal((await input.readline(0)).length, 0);
  assert.equal(pulled, 0);
  assert.equal(text(await input.read()), "body");
});

test("the end of the body is empty, for ever", async () => {
  const input = inputOf("body\n");
  await input.read();
  for (let time = 0; time < 3; time++) {
    assert.deepEqual(await input.read(), EMPTY);
    assert.deepEqual(await input.read(10), EMPTY);
    assert.deepEqual(await input.readline(), EMPTY);
    assert.deepEqual(await input.readlines(), []);
    assert.deepEqual(await textsOf(input), []);
  }
});

const LINES: [chunks: string[], lines: string[]][] = [
  [["one\ntwo\n"], ["one\n", "two\n"]],
  [["one\ntwo"], ["one\n", "two"]],
  [["on", "e\nt", "wo\n"], ["one\n", "two\n"]],
  [["one", "\n", "\n", "two"], ["one\n", "\n", "two"]],
  [["\n\n\n"], ["\n", "\n", "\n"]],
  [["one\r\ntwo\r\n"], ["one\r\n", "two\r\n"]],
  [["one\r", "\ntwo"], ["one\r\n", "two"]],
  [["one\rtwo\r"], ["one\rtwo\r"]],
  [["\r\n"], ["\r\n"]],
  [["one\u2028two\x0bthree\x0c\n"], ["one\u2028two\x0bthree\x0c\n"]],
  [[], []],
];

test("readline gives a line with its end, whatever the chunks", async () => {
  for (const [chunks, lines] of LINES) {
    const input = inputOf(...chunks);
    for (const line of [...lines, "", ""]) assert.equal(text(await input.readline()), line);
  }
});

test("readlines and iteration give the lines that readline gives", async () => {
  for (const [chunks, lines] of LINES) {
    assert.deepEqual((await inputOf(...chunks).readlines()).map(text), lines);
    assert.deepEqual(await textsOf(inputOf(...chunks)), lines);
  }
});

test("readline with a size gives no more than that, and goes on in the same line", async () => {
  for (const chunks of [["abcdef\ngh\n\ni"], [..."abcdef\ngh\n\ni"]]) {
    const input = inputOf(...chunks);
    const lines: string[] = [];
    for (const size of [4, 3, 100, 1, 1, 1]) lines.push(text(await input.readline(size)));
    assert.deepEqual(lines, ["abcd", "ef\n", "gh\n", "\n", "i", ""]);
  }
  assert.equal(text(await inputOf("one\ntwo").readline(-1)), "one\n");
});

test("readlines with a hint begins no line after that many bytes", async () => {
  const cases: [hint: number | undefined, lines: string[]][] = [
    [1, ["one\n"]],
    [4, ["one\n"]],
    [5, ["one\n", "two\n"]],
    [8, ["one\n", "two\n"]],
    [9, ["one\n", "two\n", "three"]],
    [1000, ["one\n", "two\n", "three"]],
    [0, ["one\n", "two\n", "three"]],
    [-1, ["one\n", "two\n", "three"]],
    [undefined, ["one\n", "two\n", "three"]],
  ];
  for (const [hint, lines] of cases) {
    assert.deepEqual((await inputOf("one\ntwo", "\nthree").readlines(hint)).map(text), lines, String(hint));
  }
});

test("iteration can be left and taken up again", async () => {
  const input = inputOf("one\ntwo\nthree\nfour\n");
  for await (const line of input) {
    if (text(line) === "two\n") break;
  }
  assert.equal(text(await input.readline()), "three\n");
  assert.deepEqual(await textsOf(input), ["four\n"]);
});

test("all ways of reading can be mixed", async () => {
  const input = inputOf("12345\n", "line\nleft", " over\nend");
  assert.equal(text(await input.read(2)), "12");
  assert.equal(text(await input.readline()), "345\n");
  assert.equal(text(await input.readline(2)), "li");
  assert.deepEqual((await input.readlines(1)).map(text), ["ne\n"]);
  assert.equal(text(await input.read(4)), "left");
  assert.deepEqual(await textsOf(input), [" over\n", "end"]);
});

test("reads that are not waited for follow each other", async () => {
  const input = inputOf("ab", "cd", "ef\ng", "h\nij");
  const reads = [input.read(3), input.read(1), input.readline(), input.readline(), input.read()];
  assert.deepEqual(await textsOf(reads), ["abc", "d", "ef\n", "gh\n", "ij"]);
});

test("a size that is not an integer is a RangeError, which reads nothing", async () => {
  const input = inputOf("one\ntwo\n");
  for (const size of [1.5, NaN, "1" as never]) {
    await assert.rejects(input.read(size), { name: "RangeError" });
    await assert.rejects(input.readline(size), { name: "RangeError" });
    await assert.rejects(input.readlines(size), { name: "RangeError" });
  }
  assert.equal(text(await input.read()), "one\ntwo\n");
});

test("a request without a body has an empty one", async () => {
  const requests = [
    new Request(HERE),
    new Request(HERE, { method: "HEAD" }),
    new Request(HERE, { method: "POST" }),
    new Request(HERE, { method: "POST", body: "" }),
    new Request(HERE, { headers: { "Content-Length": "4" } }),
  ];
  for (const request of requests) {
    const input = toEnviron(request)["wsgi.input"];
    assert.equal((await input.read(4)).length, 0);
    assert.deepEqual(await input.readlines(), []);
  }
});

test("a GET whose body the runtime drops has an empty one, and the connection goes on", async () => {
  await using server = start(async (environ, startResponse) => {
    const { length } = await environ["wsgi.input"].read();
    ok(startResponse);
    return [bytes(`<${environ.PATH_INFO}: ${length}>`)];
  });
  const client = await Client.connect(server);
  await client.send("GET /first HTTP/1.1\r\nHost: test.example\r\nContent-Length: 4\r\n\r\nbody");
  await client.until(/<\/first: 0>/);
  await client.send(request("/second"));
  assert.match(await client.end(), /<\/second: 0>/);
});

test("a connection goes on after a body that was read to its last byte", async () => {
  for (const ways of [(input: InputStream) => input.read(6), (input: InputStream) => input.read()]) {
    const half = new Event("the first half in the application");
    await using server = start(async (environ, startResponse) => {
      const input = environ["wsgi.input"];
      let body = "";
      if (environ.REQUEST_METHOD === "POST") {
        body += text(await input.read(3));
        half.happen();
        body += text(await ways(input));
      }
      ok(startResponse);
      return [bytes(`<${environ.PATH_INFO}: ${body}>`)];
    });
    const client = await Client.connect(server);
    await client.send("POST /first HTTP/1.1\r\nHost: test.example\r\nContent-Length: 9\r\n\r\nabc");
    await half.wait();
    await client.send("defghi");
    await client.until(/<\/first: abcdefghi>/);
    await client.send(request("/second"));
    await client.until(/<\/second: >/);
    client.leave();
  }
});

test("Content-Length is where the body of a request ends that has more", async () => {
  for (const [length, expected] of [["0", ""], ["3", "abc"], ["4", "abcd"], ["6", "abcdef"]] as const) {
    const request = new Request(HERE, {
      method: "POST",
      headers: { "Content-Length": length },
      body: stream("ab", "cd", "ef"),
      duplex: "half",
    } as RequestInit);
    const input = toEnviron(request)["wsgi.input"];
    assert.equal(text(await input.read()), expected);
    assert.equal((await input.read()).length, 0);
  }
});

test("a body that is too large by its Content-Length is answered with 413, without the application", async () => {
  let calls = 0;
  const app: Application = (_environ, startResponse) => {
    calls++;
    ok(startResponse);
    return [];
  };
  const sizes: [length: string, status: number][] = [["5", 413], ["4", 200], ["0", 200], ["99999999999999999999", 413]];
  for (const [length, status] of sizes) {
    const request = new Request(HERE, { method: "POST", headers: { "Content-Length": length }, body: "body" });
    const { response } = await answer(app, request, { maxBodySize: 4 });
    assert.equal(response.status, status, length);
  }
  assert.equal(calls, 2);
});

test("a body that turns out to be too large is a RangeError, and 413 if the application lets it pass", async () => {
  const caught: unknown[] = [];
  const app: Application = async (environ, startResponse) => {
    try {
      for await (const line of environ["wsgi.input"]) assert.ok(line.length > 0);
    } catch (error) {
      caught.push(error);
      throw error;
    }
    ok(startResponse);
    return [];
  };
  assert.equal((await answer(app, withBody("ab", "cd"), { maxBodySize: 4 })).response.status, 200);
  assert.deepEqual(caught.map(String), []);
  const { response } = await answer(app, withBody("ab", "cd", "e"), { maxBodySize: 4 });
  assert.equal(response.status, 413);
  assert.equal(caught.length, 1);
  assert.ok(caught[0] instanceof RangeError, String(caught[0]));
});

test("a body that is too large stays so, however often it is read", async () => {
  const outcomes: string[] = [];
  await answer(
    async (environ, startResponse) => {
      for (const size of [3, 1, undefined, 1]) {
        outcomes.push(await environ["wsgi.input"].read(size).then(text, (error: Error) => error.name));
      }
      ok(startResponse);
      return [];
    },
    withBody("ab", "cdef"),
    { maxBodySize: 4 },
  );
  assert.deepEqual(outcomes, ["RangeError", "RangeError", "RangeError", "RangeError"]);
});

test("a body of a Request that has other chunks than bytes makes a read reject with a TypeError", async () => {
  for (const chunk of ["text", new ArrayBuffer(3), 3]) {
    const body = new ReadableStream({
      start(controller) {
        controller.enqueue(chunk);
        controller.close();
      },
    });
    // A Request of another's making: the runtimes' own have bytes.
    const foreign = Object.create(new Request(HERE), {
      method: { value: "POST" },
      url: { value: HERE },
      headers: { value: new Headers() },
      body: { value: body },
    });
    const environ = toEnviron(foreign);
    await assert.rejects(environ["wsgi.input"].read(), { name: "TypeError", message: /expected a Uint8Array$/ });
  }
});

test("a body that fails makes every read reject with an AbortError", async () => {
  const chunks = ["abc"];
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk) controller.enqueue(bytes(chunk));
      else controller.error(new Error("The connection is gone"));
    },
  });
  const input = toEnviron(new Request(HERE, { method: "POST", body, duplex: "half" } as RequestInit))["wsgi.input"];
  assert.equal(text(await input.read(3)), "abc");
  const reads = [() => input.read(), () => input.readline(), () => input.readlines(), () => textsOf(input)];
  for (const read of reads) {
    await assert.rejects(read(), (error) => {
      assert.ok(error instanceof DOMException);
      assert.equal(error.name, "AbortError");
      return true;
    });
  }
});

test("a client that leaves in the middle of its body makes a read reject with an AbortError", async () => {
  const began = new Event("the first part of the body");
  const failure = new Event<unknown>("an error for the read");
  await using server = start(async (environ, startResponse) => {
    const input = environ["wsgi.input"];
    await input.read(3);
    began.happen();
    await input.read().then(() => failure.happen("No error"), (error) => failure.happen(error));
    ok(startResponse);
    return [];
  });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"], body: "abc" }));
  await began.wait();
  client.leave();
  const error = await failure.wait();
  assert.ok(error instanceof DOMException, String(error));
  assert.equal(error.name, "AbortError");
});

test("a read after the response gives nothing, or an AbortError", async () => {
  const inputs: InputStream[] = [];
  await using server = start((environ, startResponse) => {
    inputs.push(environ["wsgi.input"]);
    ok(startResponse);
    return [];
  });
  await exchange(server, request("/"));
  await exchange(server, request("/", { method: "POST", headers: ["Content-Length: 4"], body: "body" }));
  for (const input of inputs) {
    const outcome = await input.read().then((rest) => rest.length, (error: Error) => error.name);
    assert.ok(outcome === 0 || outcome === "AbortError", String(outcome));
  }
});

// wsgi.errors.

test("errors go to standard error in whole lines", async () => {
  const printed = await standardErrorOf(async () => {
    const handler = toFetch((environ, startResponse) => {
      const errors = environ["wsgi.errors"];
      errors.write("one ");
      errors.write("line\nan");
      errors.writelines(["other\n", "a third\na fo", "urth\nthe last"]);
      ok(startResponse);
      return [];
    });
    await (await handler(new Request(HERE))).text();
  });
  assert.deepEqual(printed.join("\n").split("\n"), ["one line", "another", "a third", "a fourth", "the last"]);
  for (const entry of printed) assert.ok(!entry.endsWith("\n"));
});

test("the unfinished lines of concurrent requests do not mix", async () => {
  const printed = await standardErrorOf(async () => {
    const handler = toFetch(async (environ, startResponse) => {
      for (const word of ["begins, ", "goes on, ", "ends\n", "and says ", "no more"]) {
        environ["wsgi.errors"].write(word === "begins, " ? `${environ.PATH_INFO} begins, ` : word);
        await settle();
      }
      ok(startResponse);
      return [];
    });
    await Promise.all(["a", "b", "c"].map(async (path) => (await handler(new Request(HERE + path))).text()));
  });
  assert.deepEqual(printed.toSorted(), [
    "/a begins, goes on, ends",
    "/b begins, goes on, ends",
    "/c begins, goes on, ends",
    ...new Array(3).fill("and says no more"),
  ]);
});

test("flush prints what is not a whole line yet, and nothing else", async () => {
  const printed = await standardErrorOf(() => {
    const errors = toEnviron(new Request(HERE))["wsgi.errors"];
    errors.flush();
    errors.write("");
    errors.flush();
    errors.write("half");
    errors.flush();
    errors.flush();
    errors.write(" a line\n");
    errors.flush();
    errors.write("\n");
  });
  assert.deepEqual(printed, ["half", " a line", ""]);
});

test("wsgi.errors never throws, whatever it is given and wherever it goes", async () => {
  const hostile: unknown[] = [
    undefined,
    null,
    42,
    Symbol("symbol"),
    {},
    new Error("error"),
    bytes("bytes"),
    Object.create(null),
    {
      toString() {
        throw new Error("unreadable");
      },
    },
  ];
  await standardErrorOf(() => {
    const errors = toEnviron(new Request(HERE))["wsgi.errors"];
    for (const value of hostile) {
      errors.write(value as string);
      errors.writelines(value as string[]);
      errors.writelines([value as string]);
    }
    errors.flush();
    console.error = () => {
      throw new Error("Standard error is closed");
    };
    errors.write("text\n");
    errors.writelines(["text\n"]);
    errors.write("text");
    errors.flush();
  });
});

test("lone surrogates come out as replacement characters, on the real standard error", () => {
  const program = `
    const { toEnviron } = await import(${JSON.stringify(new URL("../mod.ts", import.meta.url).href)});
    const errors = toEnviron(new Request("http://test.example/"))["wsgi.errors"];
    errors.write("a\\ud800b\\udc00c ");
    errors.writelines(["\\u4f60\\n", "last\\n"]);`;
  const { stdout, stderr } = spawnSync(process.execPath, RUNTIME === "deno" ? ["eval", program] : ["-e", program]);
  assert.equal(text(stdout), "");
  assert.equal(new TextDecoder("utf-8", { fatal: true }).decode(stderr), "a\ufffdb\ufffdc \u4f60\nlast\n");
});

test("the option errors is used instead of standard error", async () => {
  const printed = await standardErrorOf(async () => {
    const { response, errors } = await answer((environ, startResponse) => {
      environ["wsgi.errors"].write("noted, ");
      environ["wsgi.errors"].writelines(["twice\n"]);
      environ["wsgi.errors"].flush();
      ok(startResponse);
      return [];
    });
    await response.text();
    assert.equal(errors.text, "noted, twice\n");
    assert.equal((await answer(unchecked(() => "bad" as never))).response.status, 500);
  });
  assert.deepEqual(printed, []);
});

test("an option errors that throws does no harm to the response", async () => {
  const fail = () => {
    throw new Error("The log is full");
  };
  const errors: ErrorStream = { write: fail, writelines: fail, flush: fail };
  const cases: [what: string, app: ApplicationLike, status: number, body: string][] = [
    ["an application that fails", () => fail(), 500, "Internal Server Error\n"],
    [
      "one that reports nothing",
      (_environ, startResponse) => {
        ok(startResponse);
        return [bytes("fine")];
      },
      200,
      "fine",
    ],
    [
      "one whose close fails",
      (_environ, startResponse) => {
        ok(startResponse);
        return Object.assign([bytes("fine")], { close: fail });
      },
      200,
      "fine",
    ],
  ];
  await standardErrorOf(async () => {
    for (const [what, app, status, body] of cases) {
      const { response } = await answer(app, new Request(HERE), { errors });
      assert.equal(response.status, status, what);
      assert.equal(await response.text(), body, what);
    }
  });
});

test("a report that the option errors refuses goes to standard error", async () => {
  const refuse = () => {
    throw new Error("The log is full");
  };
  const printed = await standardErrorOf(async () => {
    const errors: ErrorStream = { write: refuse, writelines: refuse, flush: refuse };
    await answer(() => Promise.reject(new Error("The application failed")), new Request(HERE), { errors });
  });
  assert.match(printed.join("\n"), /The application failed/);
  assert.match(printed.join("\n"), /The log is full/);
});

// Concurrency.

/** What happens inside an application that several clients ask at once. */
async function interleaving(concurrency: number | undefined, paths: string[]): Promise<string[]> {
  const events: string[] = [];
  const handler = toFetch(async function* (environ, startResponse) {
    const name = environ.PATH_INFO.slice(1);
    events.push(`${name} enters`);
    try {
      await settle();
      if (name === "fails") throw new Error("Planned");
      ok(startResponse);
      yield bytes(name);
      await settle();
      yield bytes("!");
    } finally {
      events.push(`${name} leaves`);
    }
  }, { concurrency, errors: new ErrorLog() });
  const texts = await within(
    Promise.all(paths.map(async (path) => (await handler(new Request(HERE + path))).text())),
    "all answers",
  );
  assert.deepEqual(texts, paths.map((path) => path === "fails" ? "Internal Server Error\n" : `${path}!`));
  return events;
}

test("with concurrency 1 one request is done before the next comes in, in the order of their arrival", async () => {
  assert.deepEqual(await interleaving(1, ["a", "fails", "b", "c"]), [
    "a enters",
    "a leaves",
    "fails enters",
    "fails leaves",
    "b enters",
    "b leaves",
    "c enters",
    "c leaves",
  ]);
});

test("with concurrency 2 two requests are inside at once, and without it all are", async () => {
  for (const [concurrency, expected] of [[2, 2], [3, 3], [undefined, 5]] as const) {
    let inside = 0;
    let most = 0;
    for (const event of await interleaving(concurrency, ["a", "b", "c", "d", "e"])) {
      inside += event.endsWith("enters") ? 1 : -1;
      most = Math.max(most, inside);
    }
    assert.equal(inside, 0);
    assert.equal(most, expected, `concurrency ${concurrency}`);
  }
});

test("with concurrency 1 a client that leaves makes room for the next", async () => {
  const inside = new Event("a request in the application");
  await using server = start(async function* (environ, startResponse) {
    ok(startResponse);
    if (environ.PATH_INFO === "/endless") {
      inside.happen();
      for (;;) {
        yield bytes("more ");
        await settle();
      }
    }
    yield bytes("next");
  }, { concurrency: 1 });
  const client = await Client.connect(server);
  await client.send(request("/endless"));
  await inside.wait();
  await client.until(/more /);
  const next = exchange(server, request("/"));
  client.leave();
  assert.equal((await next).body, "next");
});

test("a bad option is refused at once, with its value", () => {
  const options: [name: string, value: unknown][] = [
    ["concurrency", 0],
    ["concurrency", -1],
    ["concurrency", NaN],
    ["concurrency", "1"],
    ["maxBodySize", -1],
    ["maxBodySize", NaN],
    ["maxBodySize", "1"],
    ["maxBodySize", null],
  ];
  for (const [name, value] of options) {
    assert.throws(() => toFetch(() => [], { [name]: value }), (error: Error) => {
      assert.equal(error.name, "TypeError");
      assert.ok(error.message.includes(name), error.message);
      assert.ok(error.message.includes(String(value)), error.message);
      return true;
    });
  }
});

test("a file wrapper over a stream that fails is answered with 500 and reported once", async () => {
  const errors = new ErrorLog();
  const handler = toFetch((environ, startResponse) => {
    ok(startResponse);
    const stream = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.error(new Error("No such disk")),
    });
    return environ["wsgi.file_wrapper"](stream);
  }, { errors });
  assert.equal((await handler(new Request(HERE))).status, 500);
  await new Promise((resolve) => setTimeout(resolve)); // the turn in which an unhandled rejection would end the process
  assert.equal(errors.text.match(/No such disk/g)?.length, 1);
});

test("a file whose read() gives no bytes is answered with 500, and reported", async () => {
  const errors = new ErrorLog();
  const handler = toFetch((environ, startResponse) => {
    ok(startResponse);
    return environ["wsgi.file_wrapper"]({ read: () => ({ bytesRead: 5 }) as unknown as Uint8Array });
  }, { errors });
  assert.equal((await handler(new Request(HERE))).status, 500);
  assert.match(errors.text, /found an object, expected a Uint8Array/);
});

test("close() runs once when an application has written and its body cannot be opened", async () => {
  let closed = 0;
  const errors = new ErrorLog();
  const handler = toFetch((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("written"));
    return {
      [Symbol.iterator](): Iterator<Uint8Array> {
        throw new Error("Nothing to open");
      },
      close: () => void closed++,
    };
  }, { errors });
  assert.equal((await handler(new Request(HERE))).status, 500);
  assert.equal(closed, 1);
  assert.match(errors.text, /Nothing to open/);
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

test("a declared Content-Length is among the headers of the Response, for those who have no socket", async () => {
  for (const body of [[bytes("one")], new Set([bytes("one")])]) {
    const handler = toFetch((_environ, startResponse) => {
      ok(startResponse, ["Content-Length", "3"]);
      return body;
    });
    assert.equal((await handler(new Request(HERE))).headers.get("Content-Length"), "3");
  }
});

test("a report shows the address of the request without characters that would move a terminal", async () => {
  const errors = new ErrorLog();
  const request = new Request(HERE);
  Object.defineProperty(request, "url", { value: `${HERE}\u009b31m\u202e` });
  await toFetch(() => Promise.reject(new Error("Any")), { errors })(request);
  assert.match(errors.text, /^Application failed on GET \S+%C2%9B31m%E2%80%AE: /);
});

const HOSTILE = "\x1b[2J\x9b2J\x07\x7f\r\u2028\u2029\u202e\u2066";
const ESCAPED = String.raw`\x1b[2J\x9b2J\x07\x7f\x0d\u2028\u2029\u202e\u2066`;
const FORGED = "\nApplication failed on GET http://test.example/: forged\n\n\ttabbed";
const failing = (message: string): Application => () => {
  throw new Error(message);
};
const REPORTING: [what: string, app: (message: string) => Application][] = [
  ["an error", failing],
  ["a cause", (message) => () => {
    throw new Error("Out of order", { cause: new Error(message) });
  }],
  ["text that is thrown", (message) => () => {
    throw message;
  }],
  ["a name", (message) => () => {
    throw Object.assign(new Error("Out of order"), { name: message, stack: "" });
  }],
  ["work after the response", (message) => (environ, startResponse) => {
    environ["fetch.context"]?.waitUntil(Promise.reject(new Error(message)));
    ok(startResponse);
    return [];
  }],
  ["an error that has a page", (message) => errorPage(failing(message))],
  ["an error in a health check", (message) =>
    health(() => [], {
      ready: "/",
      check: () => {
        throw new Error(message);
      },
    })],
  ["an error of the access log", (message) =>
    accessLog((_environ, startResponse) => (ok(startResponse), []), {
      write: () => {
        throw new Error(message);
      },
    })],
];
for (const [what, app] of REPORTING) {
  test(`a report of ${what} is one, and has nothing that a terminal would obey, whatever it quotes`, async () => {
    const { errors } = await answer(app(`found ${HOSTILE}${FORGED}`));
    await errors.matches(/forged/);
    assert.ok(!/[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u.test(errors.text.replace(/[\t\n]/g, "")), errors.text);
    assert.equal(reportsIn(errors).length, 1, errors.text);
    if (what !== "text that is thrown") assert.ok(errors.text.includes(`found ${ESCAPED}\n`), errors.text);
  });
}

test("what an application itself writes to wsgi.errors stays as it is", async () => {
  const { errors } = await answer((environ, startResponse) => {
    environ["wsgi.errors"].write(`${HOSTILE}${FORGED}\n`);
    ok(startResponse);
    return [];
  });
  assert.equal(errors.text, `${HOSTILE}${FORGED}\n`);
});
