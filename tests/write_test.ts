/**
 * `write()`, which `startResponse` gives.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { ResponseBody } from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  Event,
  exchange,
  FAILURE,
  generated,
  generatedAsync,
  HERE,
  KIB,
  parse,
  PLAIN,
  readChunk,
  reportsIn,
  request,
  settle,
  startPatient,
  unchecked,
} from "./support.ts";

test("a chunk that is written leaves before the application returns", async () => {
  const go = new Event("permission to go on");
  await using server = startPatient(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("written"));
    await go.wait();
    return [bytes(" and returned")];
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/written/);
  go.happen();
  assert.equal(parse(await client.end()).body, "written and returned");
});

test("chunks that are written come before chunks that are returned, in order, whether write() is awaited or not", async () => {
  const bodies: Record<string, () => ResponseBody> = {
    array: () => [bytes("4"), bytes("5")],
    generator: generated("4", "", "5"),
    asyncGenerator: generatedAsync("4", "", "5"),
    readableStream: () => ReadableStream.from([bytes("4"), bytes("5")]),
  };
  for (const waits of [false, true]) {
    for (const [name, make] of Object.entries(bodies)) {
      await using server = startPatient(async (_environ, startResponse) => {
        const write = startResponse("200 OK", PLAIN);
        for (const digit of ["1", "", "2", "3"]) {
          const written = write(bytes(digit));
          if (waits) await written;
        }
        return make();
      });
      const reply = await exchange(server, request("/"));
      assert.equal(reply.body, "12345", name);
      assert.equal(reply.complete, true, name);
    }
  }
});

test("a synchronous application may write", async () => {
  await using server = startPatient((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    write(bytes("one "));
    write(bytes("two "));
    return [bytes("three")];
  });
  assert.equal((await exchange(server, request("/"))).body, "one two three");
});

test("a chunk that is written counts for the declared length", async () => {
  const cases = [
    { length: "6", complete: true, body: "123456", logged: false },
    { length: "9", complete: false, body: "", logged: true },
    { length: "4", complete: true, body: "1234", logged: true },
    { length: "2", complete: true, body: "12", logged: true },
  ];
  for (const { length, complete, body, logged } of cases) {
    const server = startPatient(unchecked(async (_environ, startResponse) => {
      const write = startResponse("200 OK", [["Content-Length", length]]);
      await write(bytes("123"));
      return [bytes("456")];
    }));
    const reply = await exchange(server, request("/"));
    await server.shutdown();
    assert.equal(reply.complete, complete, length);
    if (complete) assert.equal(reply.body, body, length);
    assert.equal(/Content-Length/.test(server.errors.text), logged, length);
  }
});

test("write() throws when it is called from inside the iterable, and nothing of it is sent", async () => {
  const thrown: unknown[] = [];
  await using server = startPatient(unchecked((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    return (function* () {
      for (const digit of ["1", "2"]) {
        try {
          write(bytes("written"));
        } catch (error) {
          thrown.push(error);
        }
        yield bytes(digit);
      }
    })();
  }));
  assert.equal((await exchange(server, request("/"))).body, "12");
  assert.deepEqual(thrown.map((error) => error instanceof Error), [true, true]);
});

test("a generator that calls write() and does not catch what it throws is answered with 500", async () => {
  await using server = startPatient(unchecked((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    return (function* () {
      write(bytes("written"));
      yield bytes("one");
    })();
  }));
  assert.equal((await exchange(server, request("/"))).status, 500);
  assert.match(server.errors.text, /write/);
});

test("write() throws at once when it is given what is not bytes", async () => {
  let thrown: unknown;
  await using server = startPatient(unchecked((_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    try {
      write("text" as unknown as Uint8Array);
    } catch (error) {
      thrown = error;
    }
    return [bytes("one")];
  }));
  assert.equal((await exchange(server, request("/"))).body, "one");
  assert.ok(thrown instanceof TypeError);
});

test("a chunk that is written in answer to HEAD, or with a status without a body, is not sent", async () => {
  const cases = [["HEAD", "200 OK"], ["GET", "204 No Content"], ["GET", "304 Not Modified"]] as const;
  for (const [method, status] of cases) {
    let closed = 0;
    const server = startPatient(unchecked((_environ, startResponse) => {
      const write = startResponse(status, [["X-Header", "yes"]]);
      for (let count = 0; count < 3; count++) write(bytes("written"));
      return Object.assign([bytes("returned")], { close: () => void closed++ });
    }));
    const reply = await exchange(server, request("/", { method }), { head: true });
    await server.shutdown();
    assert.equal(reply.status, Number(status.slice(0, 3)));
    assert.equal(new Map(reply.headers).get("x-header"), "yes");
    assert.doesNotMatch(reply.body, /written|returned/);
    assert.equal(closed, 1);
    assert.equal(server.errors.text, "");
  }
});

test("an application that awaits write() learns that the request wants no body", async () => {
  const cases = [["HEAD", "200 OK"], ["GET", "204 No Content"], ["GET", "304 Not Modified"]] as const;
  for (const [method, status] of cases) {
    const ended = new Event<unknown>("the end of an application that would write for ever");
    await using server = startPatient(unchecked(async (_environ, startResponse) => {
      const write = startResponse(status, []);
      try {
        for (;;) await write(bytes("tick"));
      } catch (error) {
        ended.happen(error);
        throw error;
      }
    }));
    const reply = await exchange(server, request("/", { method }), { head: true });
    assert.equal(reply.status, Number(status.slice(0, 3)));
    assert.equal((await ended.wait() as Error).name, "AbortError");
    assert.equal(server.errors.text, "");
  }
});

test("after writes of all that was declared, the end of the body is right, and another chunk is reported", async () => {
  for (
    const [rest, expected] of [[[], /^$/], [["more"], /Content-Length declares 5 bytes, the body has more/]] as const
  ) {
    let finished = 0;
    const server = startPatient(unchecked(async (_environ, startResponse) => {
      const write = startResponse("200 OK", [["Content-Length", "5"]]);
      await write(bytes("hello"));
      return (function* () {
        try {
          for (const chunk of rest) yield bytes(chunk);
        } finally {
          finished++;
        }
      })();
    }));
    assert.equal((await exchange(server, request("/"))).body, "hello");
    await server.shutdown();
    assert.equal(finished, 1);
    assert.match(server.errors.text, expected);
  }
});

test("a write() after all that was declared is reported, and not sent", async () => {
  const { response, errors } = await answer(unchecked(async (_environ, startResponse) => {
    const write = startResponse("200 OK", [["Content-Length", "3"]]);
    await write(bytes("one"));
    await write(bytes("two"));
    return [];
  }));
  assert.equal(await response.text(), "one");
  await errors.matches(/Content-Length declares 3 bytes, the body has more/);
});

test("write() rejects with an AbortError when the client has left, which is not logged", async () => {
  const failed = new Event<unknown>("a write() that fails");
  await using server = startPatient(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    try {
      for (;;) await write(new Uint8Array(64 * KIB));
    } catch (error) {
      failed.happen(error);
      throw error;
    }
  });
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/\r\n\r\n/);
  client.leave();
  const error = await failed.wait();
  assert.ok(error instanceof Error);
  assert.equal(error.name, "AbortError");
  await server.shutdown();
  assert.equal(server.errors.text, "");
});

test("a write() that waits for its client rejects when the client leaves", async () => {
  const failed = new Event<unknown>("a write() that fails");
  const { response } = await answer(async (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    await write(bytes("one"));
    await write(bytes("two")).catch((error) => failed.happen(error));
    return [];
  });
  const reader = response.body!.getReader();
  assert.equal(await readChunk(reader), "one");
  await settle();
  await reader.cancel();
  assert.equal((await failed.wait() as Error).name, "AbortError");
});

for (const [method, status] of [["GET", "200 OK"], ["HEAD", "200 OK"], ["GET", "204 No Content"]] as const) {
  test(`an application that fails after it has written is reported once: ${method}, ${status}`, async () => {
    const { response, errors } = await answer(
      unchecked((_environ, startResponse) => {
        void startResponse(status, status.startsWith("204") ? [] : PLAIN)(bytes("written"));
        throw FAILURE;
      }),
      new Request(HERE, { method }),
    );
    await response.text().catch(() => {});
    await settle();
    assert.equal(reportsIn(errors).length, 1);
    assert.match(errors.text, /This application fails/);
  });
}
