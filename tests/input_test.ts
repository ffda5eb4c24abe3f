/**
 * `wsgi.input`: reads of every kind, and what ends a body.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type InputStream, toEnviron } from "../mod.ts";
import {
  bytes,
  Client,
  contextOf,
  EMPTY,
  Event,
  exchange,
  HERE,
  ok,
  pingable,
  PLAIN,
  request,
  start,
  startPatient,
  stream,
  text,
  withBody,
} from "./support.ts";

// Reading

function inputOf(...chunks: string[]): InputStream {
  return toEnviron(withBody(...chunks))["wsgi.input"];
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

test("read1 gives what is at hand, and no more than its size", async () => {
  const input = inputOf("abc", "defgh", "i", "jk");
  const sizes = [undefined, 2, 2, 100, 1, -1, Infinity, undefined, 5];
  const texts: string[] = [];
  for (const size of sizes) texts.push(text(await input.read1(size)));
  assert.deepEqual(texts, ["abc", "de", "fg", "h", "i", "jk", "", "", ""]);
});

test("read1 reads at most once underneath, and only where no bytes are at hand", async () => {
  const given = [bytes("abc"), bytes("def"), bytes("ghi")];
  let pulled = 0;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.enqueue(given[pulled++]!);
    },
  }, { highWaterMark: 0 });
  const input = toEnviron(new Request(HERE, { method: "POST", body, duplex: "half" } as RequestInit))["wsgi.input"];
  const reads: [size: number | undefined, pulled: number][] = [[0, 0], [2, 1], [0, 1], [2, 1], [undefined, 2], [9, 3]];
  for (const [size, expected] of reads) {
    await input.read1(size);
    assert.equal(pulled, expected, `read1(${size})`);
  }
});

test("read1 copies nothing, whether it gives a chunk or a part of one", async () => {
  const chunk = new Uint8Array(65_536);
  const body = new ReadableStream<Uint8Array>({ start: (controller) => controller.enqueue(chunk) });
  const input = toEnviron(new Request(HERE, { method: "POST", body, duplex: "half" } as RequestInit))["wsgi.input"];
  for (const size of [10, 100, undefined]) assert.equal((await input.read1(size)).buffer, chunk.buffer);
});

test("read1 of a server gives the bytes of a client before its body is complete", async () => {
  await using server = start(async function* (environ, startResponse) {
    ok(startResponse);
    for (let part; (part = await environ["wsgi.input"].read1()).length > 0;) yield bytes(`<${text(part)}>`);
    yield bytes("<end>");
  });
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Content-Length: 6"], body: "abc" }));
  await client.until(/<abc>/);
  await client.send("def");
  await client.until(/<def>[^]*<end>/);
});

async function textsOf(reads: AsyncIterable<Uint8Array> | Iterable<Promise<Uint8Array>>): Promise<string[]> {
  const texts: string[] = [];
  for await (const chunk of reads) texts.push(text(chunk));
  return texts;
}

test("the end of the body is empty, for ever", async () => {
  const input = inputOf("body\n");
  await input.read();
  for (let time = 0; time < 3; time++) {
    assert.deepEqual(await input.read(), EMPTY);
    assert.deepEqual(await input.read(10), EMPTY);
    assert.deepEqual(await input.read1(), EMPTY);
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
  assert.equal(text(await input.read(2)), "le");
  assert.equal(text(await input.read1(1)), "f");
  assert.equal(text(await input.read1()), "t");
  assert.deepEqual(await textsOf(input), [" over\n", "end"]);
});

test("reads that are not waited for follow each other", async () => {
  const input = inputOf("ab", "cd", "ef\ng", "h\nij");
  const reads = [input.read(3), input.read1(), input.readline(), input.readline(), input.read()];
  assert.deepEqual(await textsOf(reads), ["abc", "d", "ef\n", "gh\n", "ij"]);
});

test("a size that is not an integer is a RangeError, which reads nothing", async () => {
  const input = inputOf("one\ntwo\n");
  for (const size of [1.5, NaN, "1" as never]) {
    await assert.rejects(input.read(size), { name: "RangeError" });
    await assert.rejects(input.read1(size), { name: "RangeError" });
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

// Where a body ends

test("the body of a request ends at its Content-Length, even when more bytes come", async () => {
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
  const reads = [
    () => input.read(),
    () => input.read1(),
    () => input.readline(),
    () => input.readlines(),
    () => textsOf(input),
  ];
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

// A client that leaves in the middle of its body

/** What an application does with a body whose rest never comes. */
const CUT_OFF: Record<string, (input: InputStream) => unknown> = {
  "waits for": (input) => input.read(),
  "reads with read1": async (input) => {
    while ((await input.read1()).length > 0);
  },
  "iterates over": async (input) => {
    for await (const line of input) assert.ok(line);
  },
  "ignores the promise of": (input) => void input.read(),
  "reads three times at once": (input) => Promise.all([input.read(), input.read(), input.read()]),
};

const BEGUN: Record<string, string> = {
  "of a declared length": "Content-Length: 10\r\n\r\nabc",
  "in chunks": "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
};

for (const [what, read] of Object.entries(CUT_OFF)) {
  for (const [framing, begun] of Object.entries(BEGUN)) {
    test(`the server goes on when the client leaves in the middle of a body ${framing} that the application ${what}`, async () => {
      const reading = new Event("an application that reads");
      const done = new Event("the end of the application");
      await using server = startPatient(pingable(async (environ, startResponse) => {
        const result = read(environ["wsgi.input"]);
        reading.happen();
        try {
          await result;
        } finally {
          done.happen();
        }
        ok(startResponse);
        return [];
      }));
      const client = await Client.connect(server);
      await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\n${begun}`);
      await reading.wait();
      client.leave();
      await done.wait();
      assert.equal((await exchange(server, request("/ping"))).body, "pong");
      await server.shutdown();
      assert.equal(server.errors.text, "");
    });
  }
}

test("a read() of a generator that has yielded rejects with an AbortError when the client leaves", async () => {
  for (const begun of Object.values(BEGUN)) {
    const failed = new Event<unknown>("a read() that fails");
    await using server = startPatient(async function* (environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      await environ["wsgi.input"].read().then(() => failed.happen("the end"), (error) => failed.happen(error));
    });
    const client = await Client.connect(server);
    await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\n${begun}`);
    await client.until(/one/);
    client.leave();
    const error = await failed.wait();
    assert.ok(error instanceof Error, String(error));
    assert.equal(error.name, "AbortError");
    await server.shutdown();
    assert.equal(server.errors.text, "");
  }
});

test("a body that is read on after the response has ended is never cut short in silence", async () => {
  for (const begun of Object.values(BEGUN)) {
    const outcome = new Event<unknown>("the end of a read()");
    await using server = startPatient((environ, startResponse) => {
      const work = environ["wsgi.input"].read().then((body) => body.length, (error: Error) => error.name);
      contextOf(environ).waitUntil(work.then((result) => outcome.happen(result)));
      ok(startResponse);
      return [bytes("one")];
    });
    const client = await Client.connect(server);
    await client.send(`POST / HTTP/1.1\r\nHost: test.example\r\n${begun}`);
    await client.until(/one/);
    await client.send(begun.startsWith("Content-Length") ? "defghij" : "7\r\ndefghij\r\n0\r\n\r\n");
    const result = await outcome.wait();
    assert.ok(result === 10 || result === "AbortError", `${begun} has given ${result}`);
    client.leave();
  }
});

test("a body that is first read after the client has left rejects with an AbortError", async () => {
  const failed = new Event<unknown>("a read() that fails");
  await using server = startPatient(async (environ, startResponse) => {
    const left = new Event("a client that leaves");
    contextOf(environ).signal.addEventListener("abort", () => left.happen());
    await startResponse("200 OK", PLAIN)(bytes("one"));
    await left.wait();
    try {
      await environ["wsgi.input"].read();
      failed.happen(undefined);
    } catch (error) {
      failed.happen(error);
      throw error;
    }
    return [];
  });
  const client = await Client.connect(server);
  await client.send("POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 10\r\n\r\nabc");
  await client.until(/one/);
  client.leave();
  const error = await failed.wait();
  assert.ok(error instanceof Error);
  assert.equal(error.name, "AbortError");
  await server.shutdown();
  assert.equal(server.errors.text, "");
});
