/**
 * `mapBody`: what a middleware of one's own does with the chunks of a body.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Application, type BodyTransformer, mapBody, runApplication, testEnviron, validator } from "../mod.ts";
import { bytes, Client, EMPTY, Event, FAILURE, ok, PLAIN, request, settle, start, text, unchecked } from "./support.ts";

/** What happened, in its order, with an application inside. */
async function happening(app: Application, transformer: BodyTransformer = {}, isChecked = true) {
  const events: string[] = [];
  const mapped = mapBody(isChecked ? validator(app) : app, () => ({
    transform(chunk) {
      events.push(`chunk ${JSON.stringify(text(chunk))}`);
      return chunk;
    },
    flush() {
      events.push("flush");
      return EMPTY;
    },
    close: () => void events.push("close"),
    ...transformer,
  }));
  const result = await runApplication(isChecked ? validator(mapped) : mapped, testEnviron()).catch((error) => error);
  return { events, result, body: result instanceof Error ? undefined : text(result.body) };
}

const APPLICATIONS: Record<string, Application> = {
  "an array": (_environ, startResponse) => {
    ok(startResponse);
    return [bytes("one"), bytes("two")];
  },
  "a generator": function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  },
  "write() and an array": async (_environ, startResponse) => {
    await startResponse("200 OK", PLAIN)(bytes("one"));
    return [bytes("two")];
  },
  "write(), which nobody waits for, and a generator": (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes("one"));
    return (function* () {
      yield bytes("two");
    })();
  },
  "write() twice, which nobody waits for": (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    void write(bytes("one"));
    void write(bytes("two"));
    return [];
  },
};

for (const [name, app] of Object.entries(APPLICATIONS)) {
  test(`mapBody sees each chunk, the end and the close of ${name}`, async () => {
    const { events, body } = await happening(app);
    assert.equal(body, "onetwo");
    assert.deepEqual(events, ['chunk "one"', 'chunk "two"', "flush", "close"]);
  });

  test(`mapBody sends other chunks and a last one in place of ${name}`, async () => {
    const { body } = await happening(app, { transform: (chunk) => chunk.toReversed(), flush: () => bytes("!") });
    assert.equal(body, "enoowt!");
  });

  test(`mapBody keeps the order of ${name} where a chunk takes longer than the next`, async () => {
    const first = new Event("the first chunk");
    const transform = async (chunk: Uint8Array) => {
      if (text(chunk) === "one") await settle();
      else first.happen();
      return chunk;
    };
    const { body } = await happening(app, { transform, flush: () => Promise.resolve(bytes("!")) });
    await first.wait();
    assert.equal(body, "onetwo!");
  });
}

test("mapBody has the application's close called before its own", async () => {
  const events: string[] = [];
  const app = mapBody((_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([bytes("one")], { close: () => void events.push("inner") });
  }, () => ({ close: () => void events.push("outer") }));
  await runApplication(app, testEnviron());
  assert.deepEqual(events, ["inner", "outer"]);
});

const FAILURES: Record<string, Application> = {
  "in the call": () => {
    throw FAILURE;
  },
  "in its promise": () => Promise.reject(FAILURE),
  "before the first chunk": function* (_environ, startResponse) {
    ok(startResponse);
    yield EMPTY;
    throw FAILURE;
  },
  "after the first chunk": function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    throw FAILURE;
  },
  "in close": (_environ, startResponse) => {
    ok(startResponse);
    return Object.assign([bytes("one")], {
      close() {
        throw FAILURE;
      },
    });
  },
};

for (const [when, app] of Object.entries(FAILURES)) {
  test(`mapBody passes on a failure ${when}, and closes once`, async () => {
    const { events, result } = await happening(app);
    assert.equal(result, FAILURE);
    assert.equal(events.filter((event) => event === "close").length, 1);
  });
}

test("mapBody closes once where the application returns no body", async () => {
  const { events, result } = await happening(() => undefined as never, {}, false);
  assert.match(String(result), /the application returned undefined/);
  assert.deepEqual(events, ["close"]);
});

for (const [name, app] of Object.entries(APPLICATIONS)) {
  test(`mapBody passes on the failure of a transformer with ${name}, closes once, and stops the application`, async () => {
    for (const failure of [() => Promise.reject(FAILURE), () => assert.fail(FAILURE)]) {
      const { events, result } = await happening(app, { transform: failure });
      assert.equal(result, FAILURE);
      assert.equal(events.filter((event) => event === "close").length, 1);
    }
  });
}

test("mapBody does not flush, and closes at once, when the client leaves", async () => {
  const events: string[] = [];
  const closed = new Event("close");
  const app = mapBody(async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    await new Promise(() => {});
  }, () => ({
    flush() {
      events.push("flush");
      return EMPTY;
    },
    close() {
      events.push("close");
      closed.happen();
    },
  }));
  await using server = start(unchecked(app));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  client.leave();
  await closed.wait();
  assert.deepEqual(events, ["close"]);
});

test("mapBody makes a transformer for each request", async () => {
  const seen: string[] = [];
  const app = mapBody(APPLICATIONS["an array"]!, ({ PATH_INFO }) => ({ close: () => void seen.push(PATH_INFO) }));
  for (const path of ["/a", "/b"]) await runApplication(app, testEnviron({ PATH_INFO: path }));
  assert.deepEqual(seen, ["/a", "/b"]);
});
