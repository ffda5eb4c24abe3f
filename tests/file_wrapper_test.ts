/**
 * `wsgi.file_wrapper`, over every kind of file.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import {
  closeSync,
  createReadStream,
  mkdtempSync,
  openAsBlob,
  openSync,
  type ReadStream,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { type FileHandle, open, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { test } from "node:test";
import { type FileLike, type HeaderList, type ResponseBody, toEnviron, toFetch } from "../mod.ts";
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
  reportsIn,
  request,
  runProgram,
  RUNTIME,
  settle,
  SlowFile,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

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

for (
  const [speed, milliseconds, last] of [["a client that keeps up", 0, 262_144], ["a slow client", 16, 65_536]] as const
) {
  test(`of a file without a block size, ${speed} is sent blocks of ${last} bytes after 8 MiB`, async () => {
    const block = new Uint8Array(262_144);
    const sizes: number[] = [];
    const read = (size: number) => sizes.push(size) > 200 ? EMPTY : block.subarray(0, size);
    const { now } = performance;
    performance.now = () => sizes.length * milliseconds;
    try {
      await taken({ read });
    } finally {
      performance.now = now;
    }
    assert.deepEqual(new Set(sizes.slice(0, 128)), new Set([65_536])); // 8 MiB
    assert.deepEqual(new Set(sizes.slice(128)), new Set([last]));
  });
}

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

test("no block of a file is larger than 256 KiB, whatever is asked for", async () => {
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
      assert.ok(largest <= 262_144, String(largest));
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
  "a Bun.file is read in blocks of at most 256 KiB, from the start of what it is",
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
        assert.ok(largest <= 262_144, String(largest));
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
  assert.match(errors.text, /a chunk is an object, expected a Uint8Array/);
});

// What node:fs opens, on both runtimes.

test("files of node:fs and node:fs/promises are sent from where they stand, in bounded blocks", async () => {
  await withFile(CONTENT, async (path) => {
    const handle = await open(path);
    await handle.read(new Uint8Array(7), 0, 7, null);
    const files: [file: FileLike, expected: Uint8Array][] = [
      [createReadStream(path), CONTENT],
      [createReadStream(path, { start: 7, end: 699_999, highWaterMark: 1000 }), CONTENT.subarray(7, 700_000)],
      [await open(path), CONTENT],
      [handle, CONTENT.subarray(7)],
      [await openAsBlob(path), CONTENT],
      [Readable.from([CONTENT.subarray(0, 5), CONTENT.subarray(5, 9)], { objectMode: false }), CONTENT.subarray(0, 9)],
    ];
    for (const [file, expected] of files) {
      const { body, largest } = await taken(file);
      assert.ok(body.equals(expected));
      assert.ok(largest <= 262_144, String(largest));
    }
    assert.equal((await taken(await open(path), 100)).largest, 100);
  });
});

/** A file, the event and the count of its closing, and how many bytes were read of it. */
interface Watched {
  file: FileLike;
  closed: Event;
  count: () => number;
  bytesRead: () => number;
}

function watchStream(file: ReadStream): Watched {
  const closed = new Event("the end of a stream");
  let count = 0;
  file.on("close", () => {
    count++;
    closed.happen();
  });
  return { file, closed, count: () => count, bytesRead: () => file.bytesRead };
}

function watchHandle(file: FileHandle): Watched {
  const closed = new Event("the end of a file");
  let count = 0;
  let bytesRead = 0;
  const { close, read } = file;
  file.read = (...given: unknown[]) => {
    bytesRead += (given[0] as Uint8Array).length;
    return Reflect.apply(read, file, given);
  };
  file.close = async () => {
    count++;
    await close.call(file);
    closed.happen();
  };
  return { file, closed, count: () => count, bytesRead: () => bytesRead };
}

const OPENERS: [what: string, open: (path: string) => Promise<Watched>][] = [
  ["a stream of createReadStream", (path) => Promise.resolve(watchStream(createReadStream(path)))],
  ["a FileHandle", async (path) => watchHandle(await open(path))],
];
for (const [what, watch] of OPENERS) {
  test(`${what} is closed once, and nothing is reported, however its response ends`, async () => {
    const end = async (file: FileLike, way: string, errors: ErrorLog) => {
      if (way === "by close alone") return await toEnviron(new Request(HERE))["wsgi.file_wrapper"](file).close?.();
      const handler = toFetch((environ, startResponse) => {
        ok(startResponse, ...way === "by Content-Length" ? [["Content-Length", "100000"]] as HeaderList : []);
        return environ["wsgi.file_wrapper"](file);
      }, { errors });
      const response = await handler(new Request(HERE, { method: way === "after HEAD" ? "HEAD" : "GET" }));
      const reader = response.body!.getReader();
      while (!(await reader.read()).done) {
        if (way === "by a client that leaves") await reader.cancel();
      }
    };
    for (const way of ["at its end", "by Content-Length", "after HEAD", "by a client that leaves", "by close alone"]) {
      await withFile(CONTENT, async (path) => {
        const { file, closed, count } = await watch(path);
        const errors = new ErrorLog();
        await end(file, way, errors);
        await closed.wait();
        await settle();
        assert.deepEqual([count(), errors.text], [1, ""], way);
      });
    }
  });

  test(`${what} is read no faster than its client reads`, async () => {
    await withFile(CONTENT, async (path) => {
      const { file, closed, bytesRead } = await watch(path);
      const { response } = await answer((environ, startResponse) => {
        ok(startResponse);
        return environ["wsgi.file_wrapper"](file);
      });
      const reader = response.body!.getReader();
      await reader.read();
      await settle();
      assert.ok(bytesRead() <= 3 * 65_536, String(bytesRead()));
      await reader.cancel();
      await closed.wait();
    });
  });
}

test("a stream of node:stream that has nothing yet is waited for, and ended at once when the client leaves", async () => {
  const closed = new Event("the end of the stream");
  const stream = new Readable({ read() {}, destroy: (error, callback) => (closed.happen(), callback(error)) });
  await using server = start(unchecked((environ, startResponse) => {
    ok(startResponse);
    setImmediate(() => stream.push("the first chunk"));
    return environ["wsgi.file_wrapper"](stream);
  }));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/the first chunk/);
  client.leave();
  await closed.wait();
  await server.shutdown();
  assert.equal(server.errors.text, "");
});

test("a stream of node:stream that is closed while it has nothing yet has ended, for who waits for it", async () => {
  const wrapFile = toEnviron(new Request(HERE))["wsgi.file_wrapper"];
  const body = wrapFile(new Readable({ read() {} })) as ResponseBody & AsyncIterable<Uint8Array>;
  const waiting = body[Symbol.asyncIterator]().next();
  await body.close?.();
  assert.deepEqual(await within(waiting, "the end of the stream"), { done: true, value: undefined });
});

test("a stream of node:stream that fails aborts the response, and is reported once", async () => {
  const { response, errors } = await answer((environ, startResponse) => {
    ok(startResponse);
    const stream = new Readable({ read() {} });
    stream.push("the first chunk");
    setImmediate(() => stream.destroy(new Error("The disk is gone")));
    return environ["wsgi.file_wrapper"](stream);
  });
  await assert.rejects(within(response.text(), "the failure"));
  await settle();
  assert.equal(errors.text.match(/The disk is gone/g)?.length, 1);
});

test("a missing file of createReadStream is an error like any other, also where nobody reads it", async () => {
  const { code, stdout, stderr } = await runProgram(`
    import { createReadStream } from "node:fs";
    import { toEnviron, toFetch } from MOD;
    const app = (environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return environ["wsgi.file_wrapper"](createReadStream("/absent"));
    };
    const request = new Request("http://test.example/");
    console.log((await toFetch(app)(request)).status);
    const stream = createReadStream("/absent");
    const body = toEnviron(request)["wsgi.file_wrapper"](stream);
    const closed = new Promise((resolve) => stream.on("close", resolve)); // after an error, which nobody else may hear
    body.close();
    await closed;
    console.log("alive");
  `);
  assert.deepEqual([code, stdout], [0, "500\nalive\n"]);
  assert.equal(stderr.match(/ENOENT.*absent/g)?.length, 1, stderr);
});
