/**
 * `mapResponse`: what a middleware of one's own does with status, headers and body together.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type ApplicationResult,
  type HeaderList,
  mapResponse,
  type PendingResponse,
  runApplication,
  testEnviron,
} from "../mod.ts";
import { between } from "./middleware_support.ts";
import { answer, bytes, Event, FAILURE, ok, PLAIN, readChunk, reportsIn, settle, text } from "./support.ts";

type Change = (response: PendingResponse) => PendingResponse | Promise<PendingResponse>;

const SIGNED: HeaderList = [...PLAIN, ["X-Signed", "yes"]];
const sign: Change = (response) => ({ ...response, headers: [...response.headers, ["X-Signed", "yes"]] });

/** The same change, at once and after a while. */
const PACES: Record<string, (change: Change) => Change> = {
  "at once": (change) => change,
  "after a while": (change) => async (response) => {
    await settle();
    return change(response);
  },
};

async function run(app: Application, change: Change): Promise<ApplicationResult> {
  return await runApplication(between((app) => mapResponse(app, change), app), testEnviron());
}

const APPLICATIONS: Record<string, Application> = {
  "an array": (_environ, startResponse) => {
    ok(startResponse);
    return [bytes("one"), bytes("two")];
  },
  "a promise of an array": async (_environ, startResponse) => {
    await settle();
    ok(startResponse);
    return [bytes("one"), bytes("two")];
  },
  "a generator": function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("one");
    yield bytes("two");
  },
  "an async generator with an empty chunk": async function* (_environ, startResponse) {
    await settle();
    ok(startResponse);
    yield bytes("");
    yield bytes("onetwo");
  },
  "an async generator that waits after its start": async function* (_environ, startResponse) {
    ok(startResponse);
    await settle();
    await settle();
    yield bytes("onetwo");
  },
  "a stream that begins early": (_environ, startResponse) => {
    ok(startResponse);
    return ReadableStream.from([bytes("one"), bytes("two")]);
  },
  "write()": async (_environ, startResponse) => {
    await startResponse("200 OK", PLAIN)(bytes("one"));
    return [bytes("two")];
  },
  "write(), which nobody waits for": (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    void write(bytes("one"));
    void write(bytes("two"));
    return [];
  },
  "write() and a generator": (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes("one"));
    return (function* () {
      yield bytes("two");
    })();
  },
  "a second call with an error": (_environ, startResponse) => {
    startResponse("404 Not Found", PLAIN);
    startResponse("200 OK", PLAIN, FAILURE);
    return [bytes("onetwo")];
  },
  "a generator's second call with an error": function* (_environ, startResponse) {
    startResponse("404 Not Found", PLAIN);
    yield bytes("");
    startResponse("200 OK", PLAIN, FAILURE);
    yield bytes("onetwo");
  },
  "a stream that begins early, and again with an error": (_environ, startResponse) => {
    startResponse("404 Not Found", PLAIN);
    return (function* () {
      startResponse("200 OK", PLAIN, FAILURE);
      yield bytes("onetwo");
    })();
  },
};

for (const [pace, at] of Object.entries(PACES)) {
  for (const [name, app] of Object.entries(APPLICATIONS)) {
    test(`mapResponse changes the headers of ${name} ${pace}`, async () => {
      const { status, headers, body } = await run(app, at(sign));
      assert.equal(status, "200 OK");
      assert.deepEqual(headers, SIGNED);
      assert.equal(text(body), "onetwo");
    });

    test(`mapResponse passes on its own failure with ${name}, ${pace}`, async () => {
      await assert.rejects(run(app, at(() => assert.fail(FAILURE))), FAILURE);
    });
  }

  test(`mapResponse replaces status, headers and body of an array ${pace}, and keeps its close`, async () => {
    let closes = 0;
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign([bytes("one")], { close: () => void closes++ });
    };
    const change = at(({ body }) => ({ status: "201 Created", headers: PLAIN, body: [...body!, bytes("two")] }));
    const result = await run(app, change);
    assert.deepEqual([result.status, result.headers, text(result.body)], ["201 Created", PLAIN, "onetwo"]);
    assert.equal(closes, 1);
  });

  test(`mapResponse refuses a body in place of a stream ${pace}, and closes that once`, async () => {
    let closes = 0;
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      return Object.assign(ReadableStream.from([bytes("one")]), { close: () => void closes++ });
    };
    const message = "Cannot replace the body: its chunks do not exist yet, use mapBody";
    await assert.rejects(run(app, at((response) => ({ ...response, body: [] }))), new TypeError(message));
    assert.equal(closes, 1);
  });

  test(`mapResponse has a header that it has made wrongly refused, ${pace}`, async () => {
    const change = at((response) => ({ ...response, headers: [["X-Bad\n", "yes"]] }));
    for (const app of Object.values(APPLICATIONS)) {
      await assert.rejects(runApplication(mapResponse(app, change), testEnviron()), /X-Bad/);
    }
  });

  test(`mapResponse throws the application's error back after the first chunk, ${pace}`, async () => {
    let thrown: unknown;
    const { response, errors } = await answer(mapResponse(function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("one");
      try {
        startResponse("500 Internal Server Error", PLAIN, FAILURE);
      } catch (error) {
        thrown = error;
        throw error;
      }
    }, at(sign)));
    await assert.rejects(response.text());
    assert.equal(thrown, FAILURE);
    assert.equal(reportsIn(errors).length, 1);
  });

  test(`mapResponse throws an error back at once after a write, ${pace}`, async () => {
    let thrown: unknown;
    const app: Application = (_environ, startResponse) => {
      void startResponse("200 OK", PLAIN)(bytes("one"));
      try {
        startResponse("500 Internal Server Error", PLAIN, FAILURE);
      } catch (error) {
        thrown = error;
      }
      return [];
    };
    await assert.rejects(runApplication(mapResponse(app, at(sign)), testEnviron()), FAILURE);
    assert.equal(thrown, FAILURE);
  });

  test(`mapResponse sends what was written before the application fails, ${pace}`, async () => {
    const app: Application = (_environ, startResponse) => {
      void startResponse("200 OK", PLAIN)(bytes("one"));
      throw FAILURE;
    };
    const { response } = await answer(mapResponse(app, at(sign)));
    const reader = response.body!.getReader();
    assert.equal(await readChunk(reader), "one");
    await assert.rejects(reader.read());
  });

  test(`mapResponse fails a response whose generator ignores that startResponse has failed, ${pace}`, async () => {
    const app: Application = function* (_environ, startResponse) {
      ok(startResponse);
      assert.throws(() => ok(startResponse));
      yield bytes("one");
    };
    await assert.rejects(runApplication(mapResponse(app, at(sign)), testEnviron()), /startResponse was called again/);
  });

  test(`mapResponse fails a response that ignores a failed startResponse after a write, ${pace}`, async () => {
    const app: Application = (_environ, startResponse) => {
      void startResponse("200 OK", PLAIN)(bytes("one"));
      assert.throws(() => ok(startResponse));
      return [bytes("two")];
    };
    await assert.rejects(runApplication(mapResponse(app, at(sign)), testEnviron()), /startResponse was called again/);
  });

  test(`mapResponse keeps the body of an array if it is given no other, ${pace}`, async () => {
    const { headers, body } = await run(APPLICATIONS["an array"]!, at(({ status }) => ({ status, headers: SIGNED })));
    assert.deepEqual(headers, SIGNED);
    assert.equal(text(body), "onetwo");
  });

  test(`mapResponse refuses a second call without an error, ${pace}`, async () => {
    const app: Application = (_environ, startResponse) => {
      ok(startResponse);
      ok(startResponse);
      return [];
    };
    await assert.rejects(runApplication(mapResponse(app, at(sign)), testEnviron()), /startResponse was called again/);
  });
}

test("mapResponse is told of the environ, and of the body of an array alone", async () => {
  const seen: unknown[] = [];
  for (const name of ["an array", "a generator", "write()"]) {
    const app = mapResponse(APPLICATIONS[name]!, (response, { PATH_INFO }) => {
      seen.push([PATH_INFO, response.body?.map(text)]);
      return response;
    });
    await runApplication(app, testEnviron({ PATH_INFO: "/here" }));
  }
  assert.deepEqual(seen, [["/here", ["one", "two"]], ["/here", undefined], ["/here", undefined]]);
});

test("mapResponse has an application stopped and closed when its change fails while the body waits", async () => {
  const closed = new Event("close");
  const app: Application = (_environ, startResponse) => {
    ok(startResponse);
    const next = () => new Promise<IteratorResult<Uint8Array>>(() => {});
    return { [Symbol.asyncIterator]: () => ({ next }), close: () => closed.happen() };
  };
  await assert.rejects(runApplication(mapResponse(app, () => Promise.reject(FAILURE)), testEnviron()), FAILURE);
  await closed.wait();
});

test("mapResponse passes on its own failure where the application ignores that of write", async () => {
  const app: Application = (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    assert.throws(() => write(bytes("one")));
    return [bytes("two")];
  };
  await assert.rejects(runApplication(mapResponse(app, () => assert.fail(FAILURE)), testEnviron()), FAILURE);
});
