/**
 * `startResponse`: its checks, a second call, and a call that comes too late.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { HeaderList, StartResponse, Write } from "../mod.ts";
import {
  answer,
  asked,
  bytes,
  Client,
  exchange,
  FAILURE,
  ok,
  pingable,
  PLAIN,
  reportsIn,
  request,
  start,
  startPatient,
  unchecked,
} from "./support.ts";

// A second call

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

test("startResponse with an error after the first byte throws that error and the response is aborted", async () => {
  const failure = new Error("changed my mind");
  let thrown: unknown;
  await using server = startPatient(function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes("first");
    try {
      startResponse("500 Internal Server Error", PLAIN, failure);
    } catch (error) {
      thrown = error;
    }
    yield bytes("second");
  });
  const reply = await exchange(server, request("/"));
  assert.equal(thrown, failure);
  assert.equal(reply.complete, false);
  assert.doesNotMatch(reply.body, /second/);
  assert.match(server.errors.text, /changed my mind/);
});

// Texts that are no header and no status

const BAD_TEXT = ["\r", "\n", "\r\nX-Added: yes", "\0", "\x01", "\x07", "\x0b", "\x0c", "\x1f", "\x7f", "\u0100"];

/** Where a bad text may be put. */
const PLACES: Record<string, (startResponse: StartResponse, bad: string) => void> = {
  "the value of a header": (startResponse, bad) => startResponse("200 OK", [["X-Header", `a${bad}b`]]),
  "the end of the value of a header": (startResponse, bad) => startResponse("200 OK", [["X-Header", `a${bad}`]]),
  "the name of a header": (startResponse, bad) => startResponse("200 OK", [[`X-${bad}Header`, "a"]]),
  "the end of the name of a header": (startResponse, bad) => startResponse("200 OK", [[`X-Header${bad}`, "a"]]),
  "the reason": (startResponse, bad) => startResponse(`200 O${bad}K`, []),
  "the end of the reason": (startResponse, bad) => startResponse(`200 OK${bad}`, []),
  "the Content-Length": (startResponse, bad) => startResponse("200 OK", [["Content-Length", `3${bad}`]]),
};

for (const [place, put] of Object.entries(PLACES)) {
  test(`a control character, or one beyond Latin-1, is answered with 500: in ${place}`, async () => {
    let isBad = true;
    let bad = "";
    await using server = startPatient(unchecked((_environ, startResponse) => {
      if (isBad) put(startResponse, bad);
      else ok(startResponse);
      return [bytes("one")];
    }));
    for (bad of BAD_TEXT) {
      isBad = true;
      const reply = await exchange(server, request("/"));
      assert.equal(reply.status, 500, JSON.stringify(bad));
      const headers = new Map(reply.headers);
      assert.equal(headers.has("x-added") || headers.has("x-header"), false, JSON.stringify(bad));
      isBad = false;
      assert.equal((await exchange(server, request("/"))).body, "one", JSON.stringify(bad));
    }
  });
}

test("headers that are changed after startResponse has checked them leave as they were", async () => {
  await using server = startPatient((_environ, startResponse) => {
    const pair: [string, string] = ["X-Header", "good"];
    const headers = [...PLAIN, pair];
    startResponse("200 OK", headers);
    pair[1] = "bad\x01";
    headers.push(["X-Added", "bad\x01"]);
    return [bytes("one")];
  });
  const headers = new Map((await exchange(server, request("/"))).headers);
  assert.equal(headers.get("x-header"), "good");
  assert.equal(headers.has("x-added"), false);
});

// After the response

test("no second response can be started once the first is complete", async () => {
  let later: { startResponse: StartResponse; write: Write } | undefined;
  await using server = startPatient(unchecked(pingable((_environ, startResponse) => {
    later = { startResponse, write: startResponse("200 OK", PLAIN) };
    return [bytes("one")];
  })));
  const client = await Client.connect(server);
  await client.send("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n");
  await client.until(/one/);
  const { startResponse, write } = later!;
  const failure = new Error("too late");
  assert.throws(() => startResponse("500 Internal Server Error", [], failure), failure);
  assert.throws(() => startResponse("200 OK", []));
  assert.throws(() => write(bytes("two")));
  await client.send(request("/ping"));
  const received = await client.end();
  assert.equal(received.split("HTTP/1.1").length, 3);
  assert.doesNotMatch(received, /two/);
});

test("startResponse throws when it is called after the response, which stays as it was", async () => {
  let late!: StartResponse;
  const { ask, errors } = asked((_environ, startResponse) => {
    late = startResponse;
    ok(startResponse);
    return [bytes("sent")];
  });
  const response = await ask();
  await new Promise((resolve) => setTimeout(resolve));
  assert.throws(() => late("500 Late", []), /again/);
  assert.throws(() => late("500 Late", [], FAILURE), FAILURE);
  assert.equal(response.status, 200);
  assert.equal(await response.text(), "sent");
  assert.equal(errors.text, "");
});

test("startResponse that is called for the first time after the response changes nothing", async () => {
  let late!: StartResponse;
  let write: Write | undefined;
  const { ask } = asked((_environ, startResponse) => {
    late = startResponse;
    return [];
  });
  const response = await ask();
  assert.equal(response.status, 500);
  try {
    write = late("200 OK", PLAIN);
  } catch {
    // Just as well.
  }
  assert.throws(() => write ? void write(bytes("late")) : late("200 OK", PLAIN));
  assert.equal(await response.text(), "Internal Server Error\n");
});
