/**
 * `toFetch`: an application as a Fetch handler.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type FetchHandler, toEnviron, toFetch } from "../mod.ts";
import { asked, bytes, countingClose, ErrorLog, Event, ok, ORIGIN, readChunk, within } from "./support.ts";

test("aborting the request before the first chunk aborts the signal and closes the body, once", async () => {
  const leaving = new AbortController();
  const aborted = new Event("the signal");
  let closed = 0;
  const inside = new Event("the first chunk being asked for");
  const handler = toFetch((environ, startResponse) => {
    environ["fetch.context"]!.signal.addEventListener("abort", () => aborted.happen());
    ok(startResponse);
    return {
      async *[Symbol.asyncIterator]() {
        inside.happen();
        await aborted.wait();
        yield bytes("late");
      },
      close: () => void closed++,
    };
  }, { errors: new ErrorLog() });
  const response = handler(new Request(ORIGIN, { signal: leaving.signal }));
  await inside.wait();
  leaving.abort();
  await aborted.wait();
  assert.equal(closed, 1);
  const { body } = await within(Promise.resolve(response), "an answer for nobody");
  assert.equal(body, null);
  assert.equal(closed, 1);
});

test("aborting the request of an application that yields empty chunks closes the body, once", async () => {
  const leaving = new AbortController();
  const closed = new Event("close()");
  let closes = 0;
  let chunks = 0;
  const handler = toFetch((_environ, startResponse) => {
    ok(startResponse);
    return {
      *[Symbol.iterator]() {
        for (;;) {
          if (++chunks === 3) leaving.abort();
          yield bytes("");
        }
      },
      close() {
        closes++;
        closed.happen();
      },
    };
  }, { errors: new ErrorLog() });
  handler(new Request(ORIGIN, { signal: leaving.signal }));
  await closed.wait();
  assert.equal(closes, 1);
});

test("aborting the request while a chunk is made ends the generator and closes the body, once", async () => {
  for (const when of ["first", "second"]) {
    const leaving = new AbortController();
    const finished = new Event(`the end of a generator that was left in its ${when} chunk`);
    let closes = 0;
    const { ask, errors } = asked((environ, startResponse) => {
      ok(startResponse);
      const { signal } = environ["fetch.context"]!;
      return {
        *[Symbol.iterator]() {
          try {
            if (when === "second") yield bytes("first");
            leaving.abort();
            assert.equal(signal.aborted, true);
            yield bytes("late");
            yield bytes("later");
          } finally {
            finished.happen();
          }
        },
        close: () => void closes++,
      };
    });
    if (when === "first") {
      const response = await within(ask("/", { signal: leaving.signal }), "an answer for nobody");
      await within(response.text().catch(() => {}), "the end of the answer");
    } else {
      const body = (await ask()).body!;
      leaving.signal.addEventListener("abort", () => void reader.cancel());
      const reader = body.getReader();
      await readChunk(reader);
      await within(reader.read().catch(() => {}), "the end of the answer");
    }
    await finished.wait();
    assert.equal(closes, 1);
    assert.equal(errors.text, "");
  }
});

test("cancelling a response twice, or after its end, closes the body once", async () => {
  let closed = 0;
  const { ask, errors } = asked((_environ, startResponse) => {
    ok(startResponse);
    return {
      *[Symbol.iterator]() {
        yield bytes("one");
        yield bytes("two");
      },
      close: () => void closed++,
    };
  });
  const twice = (await ask()).body!;
  await twice.cancel();
  await twice.cancel();
  assert.equal(closed, 1);
  const read = (await ask()).body!.getReader();
  while (await readChunk(read) !== undefined);
  await read.cancel();
  assert.equal(closed, 2);
  assert.equal(errors.text, "");
});

test("leaving a loop over a response ends the generator and closes the body", async () => {
  let finished = 0;
  const body = countingClose(function* () {
    try {
      for (;;) yield bytes("more");
    } finally {
      finished++;
    }
  }());
  const { ask } = asked((_environ, startResponse) => {
    ok(startResponse);
    return body;
  });
  for await (const _chunk of (await ask()).body!) break;
  assert.equal(finished, 1);
  assert.equal(body.closed, 1);
});

test("two reads at once do not ask for two chunks at once", async () => {
  let inside = 0;
  let most = 0;
  const { ask } = asked(async function* (_environ, startResponse) {
    ok(startResponse);
    for (const chunk of ["one", "two", "three"]) {
      most = Math.max(most, ++inside);
      await new Promise((resolve) => setImmediate(resolve));
      inside--;
      yield bytes(chunk);
    }
  });
  const reader = (await ask()).body!.getReader();
  const chunks = await within(Promise.all([readChunk(reader), readChunk(reader), readChunk(reader)]), "three chunks");
  assert.deepEqual(chunks, ["one", "two", "three"]);
  assert.equal(most, 1);
});

test("a module that exports { fetch: toFetch(app) } is called with one argument or two", async () => {
  const module = {
    fetch: toFetch((environ, startResponse) => {
      ok(startResponse);
      return [bytes(`${environ.REMOTE_ADDR ?? "nobody"} ${environ.REMOTE_PORT ?? "nowhere"}`)];
    }),
  };
  const arguments_: [info: unknown, expected: string][] = [
    [undefined, "nobody nowhere"],
    [null, "nobody nowhere"],
    [{}, "nobody nowhere"],
    [{ SOME_BINDING: "of another runtime" }, "nobody nowhere"],
    [{ remoteAddr: { transport: "tcp", hostname: "192.0.2.1", port: 1234 } }, "192.0.2.1 1234"],
    [{ remoteAddr: { transport: "unix", path: "/run/socket" } }, "nobody nowhere"],
    [{ requestIP: () => ({ address: "2001:db8::1", port: 1234, family: "IPv6" }) }, "2001:db8::1 1234"],
    [{ requestIP: () => null }, "nobody nowhere"],
  ];
  assert.equal(await (await module.fetch(new Request(ORIGIN))).text(), "nobody nowhere");
  for (const [info, expected] of arguments_) {
    assert.equal(await (await module.fetch(new Request(ORIGIN), info)).text(), expected);
  }
});

test("a handler of toFetch works under the runtime's own server", async () => {
  const handler = toFetch(async function* (environ, startResponse) {
    ok(startResponse);
    yield bytes(`${environ.REMOTE_ADDR} ${environ.PATH_INFO} `);
    yield await environ["wsgi.input"].read();
  });
  const { Deno, Bun } = globalThis as unknown as {
    Deno?: { serve(options: object, handler: FetchHandler): { addr: { port: number }; shutdown(): Promise<void> } };
    Bun?: { serve(options: object): { port: number; stop(force: boolean): Promise<void> } };
  };
  const options = { hostname: "127.0.0.1", port: 0 };
  const server = Deno?.serve({ ...options, onListen() {} }, handler) ?? Bun!.serve({ ...options, fetch: handler });
  const port = "addr" in server ? server.addr.port : server.port;
  const response = await fetch(`http://127.0.0.1:${port}/a%20b`, { method: "POST", body: "body" });
  assert.equal(await response.text(), "127.0.0.1 /a b body");
  await ("addr" in server ? server.shutdown() : server.stop(true));
});

test("a variable that an application adds to its environ is not there in the next request", async () => {
  const seen: string[] = [];
  const { ask } = asked((environ, startResponse) => {
    seen.push(String(environ["example.mark"]));
    environ["example.mark"] = "mine";
    environ.SCRIPT_NAME = "/mine";
    ok(startResponse);
    return [bytes(environ.SCRIPT_NAME)];
  }, { environ: { "example.mark": "given" } });
  await ask();
  await ask();
  assert.deepEqual(seen, ["given", "given"]);
});

test("the second argument's waitUntil is told of the work after the response, which never fails there", async () => {
  const told: Promise<unknown>[] = [];
  const platform = { told, waitUntil: (work: Promise<unknown>) => void told.push(work) };
  const errors = new ErrorLog();
  const handler = toFetch((environ, startResponse) => {
    environ["fetch.context"]!.waitUntil(Promise.reject(new Error("This work fails")));
    ok(startResponse);
    return [];
  }, { errors });
  await handler(new Request(ORIGIN), platform);
  assert.equal(told.length, 1);
  await within(told[0]!, "the work");
  assert.match(errors.text, /^Work after the response failed: Error: This work fails\n/);
});

test("a waitUntil in the second argument is called as a method", () => {
  class Platform {
    count = 0;
    waitUntil() {
      this.count++;
    }
  }
  const platform = new Platform();
  const environ = toEnviron(new Request(ORIGIN), { info: platform });
  environ["fetch.context"]!.waitUntil(Promise.resolve());
  assert.equal(platform.count, 1);
});
