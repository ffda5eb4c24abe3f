/**
 * `mapBody`: what a middleware of one's own does with the chunks of a body.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Application, type BodyTransformer, mapBody, runApplication, testEnviron, validator } from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  EMPTY,
  Event,
  FAILURE,
  ok,
  PLAIN,
  readChunk,
  reportsIn,
  request,
  settle,
  start,
  text,
  unchecked,
} from "./support.ts";

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
  await settle(); // an unhandled rejection would end the process now
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

test("mapBody does not transform an empty chunk, which does not begin the response", async () => {
  const app: Application = function* (_environ, startResponse) {
    yield EMPTY;
    ok(startResponse);
    yield bytes("one");
  };
  const { body } = await happening(app, { transform: (chunk) => bytes(`<${text(chunk)}>`) });
  assert.equal(body, "<one>");
});

const WRITES: Application = (_environ, startResponse) => {
  const write = startResponse("200 OK", PLAIN);
  void write(bytes("one"));
  void write(bytes("two"));
  return [bytes("three")];
};

test("mapBody transforms a chunk after the promise of the one before, also where both are written at once", async () => {
  const log: string[] = [];
  const transform = async (chunk: Uint8Array) => {
    log.push(`begin ${text(chunk)}`);
    await settle();
    log.push(`end ${text(chunk)}`);
    return chunk;
  };
  await happening(WRITES, { transform });
  assert.deepEqual(log, ["one", "two", "three"].flatMap((chunk) => [`begin ${chunk}`, `end ${chunk}`]));
});

for (const pace of ["at once", "after a while"]) {
  const fail = (): Promise<never> => {
    if (pace === "at once") throw FAILURE;
    return settle().then(() => Promise.reject(FAILURE));
  };

  test(`mapBody fails a response where a transformer fails ${pace} and the application goes on`, async () => {
    const app: Application = async (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      for (const chunk of ["one", "two"]) {
        try {
          await write(bytes(chunk));
        } catch {
          // It goes on.
        }
      }
      return [bytes("three")];
    };
    const transform = (chunk: Uint8Array) => text(chunk) === "two" ? fail() : chunk;
    const { events, result } = await happening(app, { transform });
    assert.equal(result, FAILURE);
    assert.deepEqual(events, ["close"]);
  });

  test(`mapBody closes once where a chunk fails ${pace} and the application returns no body`, async () => {
    const app: Application = (_environ, startResponse) => {
      void startResponse("200 OK", PLAIN)(bytes("one"))?.catch(() => {});
      return undefined as never;
    };
    const { events } = await happening(app, { transform: fail }, false);
    assert.deepEqual(events, ["close"]);
  });

  test(`mapBody waits for a close that returns a promise, which fails ${pace}`, async () => {
    const { result } = await happening(APPLICATIONS["an array"]!, { close: fail });
    assert.equal(result, FAILURE);
  });

  test(`mapBody passes on the application's failure, not that of a close that fails ${pace}`, async () => {
    const close = () => pace === "at once" ? assert.fail("close fails") : Promise.reject(new Error("close fails"));
    const { result } = await happening(FAILURES["in the call"]!, { close });
    assert.equal(result, FAILURE);
  });
}

const slow = async (chunk: Uint8Array) => {
  await settle();
  return chunk;
};

for (const pause of [() => {}, settle]) {
  const pace = pause === settle ? "after a while" : "at once";
  test(`mapBody throws an error back after a write whose chunk takes time, and the application goes on ${pace}`, async () => {
    let thrown: unknown;
    const app: Application = async (_environ, startResponse) => {
      void startResponse("200 OK", PLAIN)(bytes("one"));
      try {
        startResponse("500 Internal Server Error", PLAIN, FAILURE);
      } catch (error) {
        thrown = error;
      }
      await pause();
      await pause();
      return [];
    };
    const { response, errors } = await answer(unchecked(mapBody(app, () => ({ transform: slow }))));
    assert.equal(thrown, FAILURE);
    await assert.rejects(response.text());
    assert.equal(response.status, 200);
    assert.equal(reportsIn(errors).length, 1);
  });
}

test("mapBody refuses a second call without an error after a write, also while its chunk takes time", async () => {
  const app: Application = (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes("one"));
    startResponse("200 OK", PLAIN);
    return [];
  };
  const { result } = await happening(app, { transform: slow }, false);
  assert.match(String(result), /startResponse was called again/);
});

test("mapBody sends what was written before the application fails", async () => {
  const events: string[] = [];
  const app: Application = (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes("one"));
    throw FAILURE;
  };
  const transform = async (chunk: Uint8Array) => {
    await settle();
    events.push("transformed");
    return chunk;
  };
  const { response } = await answer(mapBody(app, () => ({ transform, close: () => void events.push("close") })));
  const reader = response.body!.getReader();
  assert.equal(await readChunk(reader), "one");
  await assert.rejects(reader.read());
  assert.deepEqual(events, ["transformed", "close"]);
});

test("mapBody refuses a write while it transforms the body that the application has returned", async () => {
  const failure = new Event<unknown>("a refusal");
  const app: Application = (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    queueMicrotask(() => {
      try {
        void write(bytes("late"));
      } catch (error) {
        failure.happen(error);
      }
    });
    return [bytes("one")];
  };
  const transform = async (chunk: Uint8Array) => {
    await settle();
    return chunk;
  };
  const { body } = await happening(app, { transform }, false);
  assert.match(String(await failure.wait()), /write was called after the body was returned/);
  assert.equal(body, "one");
});
