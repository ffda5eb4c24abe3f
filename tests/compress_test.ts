/**
 * `compress`: bodies in a coding that the client accepts.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { brotliDecompressSync, constants, gunzipSync, inflateSync } from "node:zlib";
import {
  type Application,
  type ApplicationLike,
  compress,
  type CompressOptions,
  conditional,
  files,
  type HeaderList,
  type Middleware,
  mount,
  type ResponseBody,
  runApplication,
  testEnviron,
} from "../mod.ts";
import { between, BODIES, get, giving, Log, NOISE, responding, TEXT, WHOLE } from "./middleware_support.ts";
import {
  answer,
  bytes,
  Client,
  EMPTY,
  Event,
  exchange,
  FAILURE,
  ok,
  parse,
  PLAIN,
  readChunk,
  reportsIn,
  request,
  RUNTIME,
  settle,
  start,
  text,
  unchecked,
  within,
} from "./support.ts";

interface Coding {
  /** Decodes all of a body, which has to be whole. */
  decode(body: Uint8Array): Uint8Array;
  /** Decodes as much as there is of a body. */
  decodeBeginning(body: Uint8Array): Uint8Array;
}

const SYNC = { finishFlush: constants.Z_SYNC_FLUSH };

const CODINGS: Record<string, Coding> = {
  br: {
    decode: (body) => brotliDecompressSync(body),
    decodeBeginning: (body) => brotliDecompressSync(body, { finishFlush: constants.BROTLI_OPERATION_FLUSH }),
  },
  gzip: { decode: (body) => gunzipSync(body), decodeBeginning: (body) => gunzipSync(body, SYNC) },
  deflate: { decode: (body) => inflateSync(body), decodeBeginning: (body) => inflateSync(body, SYNC) },
};

function compressed(app: ApplicationLike, options: CompressOptions = {}): Application {
  return between((app) => compress(app, options), app);
}

const ACCEPTED: [accept: string | undefined, coding: string | null][] = [
  [undefined, null],
  ["", null],
  ["br", "br"],
  ["gzip", "gzip"],
  ["deflate", "deflate"],
  ["GZip", "gzip"],
  ["gzip, deflate, br", "br"],
  ["gzip, deflate, br, zstd", "br"],
  ["deflate, gzip", "gzip"],
  ["*", "br"],
  ["gzip;q=0.5", "gzip"],
  ["gzip;q=1.0, br;q=0.9", "gzip"],
  ["gzip;q=0.001, br;q=0", "gzip"],
  ["br;q=0.2,gzip;q=0.4,deflate;q=0.8", "deflate"],
  ["gzip ; q=0.4 , br ; q=0.5", "br"],
  ["gzip;Q=0.5", "gzip"],
  ["br;q=0, *", "gzip"],
  ["*;q=0", null],
  ["*;q=0.5, br;q=0.1", "gzip"],
  ["gzip, *;q=0", "gzip"],
  ["identity", null],
  ["identity, gzip;q=0.5", null],
  ["identity;q=0.5, gzip", "gzip"],
  ["identity;q=0.5, *", "br"],
  ["identity;q=0", null],
  ["identity;q=0, gzip;q=0", null],
  ["zstd, compress", null],
  ["gzip;q=0", null],
  ["gzip;q=0.000", null],
  ["gzip;q=two", null],
  ["gzip;q=", null],
  ["gzip;q=2", null],
  ["gzip;q=-1", null],
  [", ,gzip,", "gzip"],
  [";q=1, gzip", "gzip"],
  ["gzippp, xgzip, br2", null],
  ["constructor, __proto__", null],
  ["gzip;q=0.9, br;q=0.5, gzip;q=0", "gzip"],
  ["gzip;q=0, br;q=0.5, gzip;q=0.9", "gzip"],
  ['x;y=", gzip, "', null],
];

for (const [accept, coding] of ACCEPTED) {
  test(`compress answers Accept-Encoding ${JSON.stringify(accept)} with ${coding ?? "the body as it was"}`, async () => {
    const app = compressed(giving(() => [bytes(TEXT)]));
    const { response, errors } = await answer(app, get(accept === undefined ? {} : { "Accept-Encoding": accept }));
    assert.equal(response.headers.get("Content-Encoding"), coding);
    assert.equal(response.headers.get("Vary"), "Accept-Encoding");
    const body = await response.bytes();
    assert.equal(text(coding ? CODINGS[coding]!.decode(body) : body), TEXT);
    assert.equal(Number(response.headers.get("Content-Length") ?? body.length), body.length);
    assert.equal(errors.text, "");
  });
}

/** Bytes that were received as Latin-1. */
function received(body: string): Uint8Array {
  return Buffer.from(body, "latin1");
}

/** Answers in process, and decodes the body by what its headers say. */
async function decoded(
  app: ApplicationLike,
  accept = "gzip",
): Promise<{ response: Response; body: Uint8Array; coding: string | null; errors: string }> {
  const { response, errors } = await answer(app, get({ "Accept-Encoding": accept }));
  const coding = response.headers.get("Content-Encoding");
  const body = await within(response.bytes(), "the body");
  const { decode } = CODINGS[coding ?? ""] ?? { decode: (body: Uint8Array) => body };
  return { response, body: decode(body), coding, errors: errors.text };
}

for (const coding of Object.keys(CODINGS)) {
  for (const [what, app] of BODIES) {
    test(`compress gives the bytes of ${what} by ${coding}`, async () => {
      const { response, body, coding: used, errors } = await decoded(compressed(app), coding);
      assert.equal(used, coding);
      const expected = what === "a wrapped file" ? bytes(TEXT.repeat(50)) : WHOLE;
      assert.equal(body.length, expected.length);
      assert(Buffer.from(body).equals(expected));
      assert.equal(response.headers.get("Vary"), "Accept-Encoding");
      assert.equal(errors, "");
    });
  }

  test(`compress flushes each event by ${coding} before the next exists`, async () => {
    const gates = [new Event("the first event at the client"), new Event("the second event at the client")];
    const app: Application = async function* (_environ, startResponse) {
      startResponse("200 OK", [["Content-Type", "text/event-stream"], ["Cache-Control", "no-cache"]]);
      yield bytes("data: one\n\n");
      await gates[0]!.wait();
      yield bytes("data: two\n\n");
      await gates[1]!.wait();
      yield NOISE;
    };
    await using server = start(compressed(app));
    const client = await Client.connect(server);
    await client.send(request("/", { headers: [`Accept-Encoding: ${coding}`] }));
    const { decode, decodeBeginning } = CODINGS[coding]!;
    await client.until(/\r\n\r\n[\da-f]+\r\n[^]+\r\n$/i);
    const first = received(parse(client.received).body);
    assert.equal(text(decodeBeginning(first)), "data: one\n\n");
    const length = client.received.length;
    gates[0]!.happen();
    await client.until(new RegExp(`^[^]{${length}}[\\da-f]+\r\n[^]+\r\n$`, "i"));
    const second = received(parse(client.received).body);
    assert.equal(text(decodeBeginning(second)), "data: one\n\ndata: two\n\n");
    gates[1]!.happen();
    const reply = parse(await client.end());
    assert(reply.complete);
    assert.equal(decode(received(reply.body)).length, 22 + NOISE.length);
    assert.equal(server.errors.text, "");
  });

  test(`compress gives a large chunk by ${coding} as a whole`, async () => {
    const gate = new Event("the large chunk at the client");
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield NOISE;
      await gate.wait();
      yield bytes("end");
    };
    const { response } = await answer(compressed(app), get({ "Accept-Encoding": coding }));
    const reader = response.body!.getReader();
    const { value } = await within(reader.read(), "the first chunk");
    const begun = CODINGS[coding]!.decodeBeginning(value!);
    assert.equal(begun.length, NOISE.length);
    gate.happen();
    await reader.cancel();
  });

  test(`compress by ${coding} makes no complete body of a body that fails`, async () => {
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes(TEXT);
      await settle();
      throw new Error("Out of order");
    };
    await using server = start(compressed(app));
    const reply = await exchange(server, request("/", { headers: [`Accept-Encoding: ${coding}`] }));
    assert.equal(reply.complete, false);
    // Deno's brotliDecompressSync takes a beginning for the whole.
    if (coding !== "br" || RUNTIME === "bun") assert.throws(() => CODINGS[coding]!.decode(received(reply.body)));
  });

  test(`compress by ${coding} makes a body that can be decoded of a body without bytes`, async () => {
    const bodies: ResponseBody[] = [new Set<Uint8Array>(), new Set([EMPTY]), [], [EMPTY]];
    for (const body of bodies) {
      const given = await decoded(compressed(giving(() => body), { threshold: 0 }), coding);
      assert.equal(given.body.length, 0);
      assert.equal(given.errors, "");
    }
  });

  test(`compress begins anew by ${coding} when an error replaces the response after an empty chunk`, async () => {
    const app: Application = async function* (_environ, startResponse) {
      ok(startResponse);
      yield await Promise.resolve(EMPTY);
      startResponse("500 Internal Server Error", PLAIN, new Error("Out of order"));
      yield bytes("Sorry");
    };
    const { response, body, errors } = await decoded(compressed(app), coding);
    assert.equal(errors, "");
    assert.equal(response.status, 500);
    assert.equal(text(body), "Sorry");
  });
}

test("compress begins anew when a generator replaces the response before its first chunk", async () => {
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse, ["ETag", '"one"']);
    startResponse("500 Internal Server Error", PLAIN, new Error("Out of order"));
    yield bytes("Sorry");
  };
  const { response, body, coding } = await decoded(compressed(app));
  assert.equal(response.status, 500);
  assert.equal(response.headers.get("ETag"), null);
  assert.equal(coding, "gzip");
  assert.equal(text(body), "Sorry");
});

test("compress begins anew when a stream that was begun before it was returned is replaced", async () => {
  const app: Application = (_environ, startResponse) => {
    ok(startResponse);
    return (function* () {
      startResponse("500 Internal Server Error", PLAIN, new Error("Out of order"));
      yield bytes("Sorry");
    })();
  };
  const { response, body, coding } = await decoded(compressed(app));
  assert.equal(response.status, 500);
  assert.equal(coding, "gzip");
  assert.equal(text(body), "Sorry");
});

test("compress leaves alone a replacement that is not to be compressed", async () => {
  const app: Application = function* (_environ, startResponse) {
    ok(startResponse);
    startResponse("200 OK", [["Content-Type", "image/png"]], new Error("No text"));
    yield bytes(TEXT);
  };
  const { coding, body } = await decoded(compressed(app));
  assert.equal(coding, null);
  assert.equal(text(body), TEXT);
});

test("compress gives the error back when it comes after the first chunk, and the response is aborted", async () => {
  const failure = new Error("Out of order");
  const caught = new Event<unknown>("the error given back");
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield bytes(TEXT);
    await settle();
    try {
      startResponse("500 Internal Server Error", PLAIN, failure);
    } catch (error) {
      caught.happen(error);
      throw error;
    }
  };
  await using server = start(compressed(app));
  const reply = await exchange(server, request("/", { headers: ["Accept-Encoding: gzip"] }));
  assert.equal(await caught.wait(), failure);
  assert.equal(reply.status, 200);
  assert.equal(reply.complete, false);
  assert.equal(text(gunzipSync(received(reply.body), SYNC)), TEXT);
});

test("compress commits nothing by an empty chunk", async () => {
  const asked = new Event("the second chunk to be asked for");
  const gate = new Event("the test to look");
  const app: Application = async function* (_environ, startResponse) {
    ok(startResponse);
    yield EMPTY;
    asked.happen();
    await gate.wait();
    yield bytes(TEXT);
  };
  await using server = start(compressed(app));
  const client = await Client.connect(server);
  await client.send(request("/", { headers: ["Accept-Encoding: gzip"] }));
  await asked.wait();
  await settle();
  assert.equal(client.received, "");
  gate.happen();
  assert.equal(text(gunzipSync(received(parse(await client.end()).body))), TEXT);
});

const SIZES: [name: string, size: number, isCompressed: boolean][] = [
  ["one byte below the threshold", 99, false],
  ["the threshold", 100, true],
  ["one byte above the threshold", 101, true],
];

for (const [name, size, isCompressed] of SIZES) {
  const content = bytes("a".repeat(size));
  const halves = [content.slice(0, 50), content.slice(50)];
  const declared: [name: string, value: string] = ["Content-Length", String(size)];
  const bodies: [name: string, app: Application][] = [
    ["an array", giving(() => [content])],
    ["an array of two chunks", giving(() => halves)],
    ["an array of declared length", giving(() => halves, declared)],
    ["a stream of declared length", giving(() => new Set(halves), declared)],
  ];
  for (const [what, app] of bodies) {
    test(`compress ${isCompressed ? "compresses" : "leaves alone"} ${what} at ${name}`, async () => {
      const { response, coding, body } = await decoded(compressed(app, { threshold: 100 }));
      assert.equal(coding, isCompressed ? "gzip" : null);
      assert.equal(response.headers.get("Vary"), "Accept-Encoding");
      assert.equal(body.length, size);
    });
  }
}

test("compress compresses from 1024 bytes on by default", async () => {
  assert.equal((await decoded(compressed(giving(() => [new Uint8Array(1023)])))).coding, null);
  assert.equal((await decoded(compressed(giving(() => [new Uint8Array(1024)])))).coding, "gzip");
});

test("compress compresses a stream of unknown length, however short", async () => {
  const { coding, body } = await decoded(compressed(giving(() => new Set([bytes("a")]))));
  assert.equal(coding, "gzip");
  assert.equal(text(body), "a");
});

test("compress refuses a threshold that is not a number of bytes", () => {
  const wrongs: number[] = [NaN, -1, "large" as unknown as number];
  for (const threshold of wrongs) assert.throws(() => compress(() => [], { threshold }), /option "threshold"/);
});

const TYPE: HeaderList = [["Content-Type", "text/plain"], ["Content-Length", String(TEXT.length)], ["ETag", '"one"']];

const LEFT_ALONE: [name: string, status: string, headers: HeaderList][] = [
  ["what is encoded already", "200 OK", [...TYPE, ["Content-Encoding", "zstd"]]],
  ["what is encoded twice", "200 OK", [...TYPE, ["content-encoding", "gzip, br"]]],
  ["a part of an image", "206 Partial Content", [["Content-Type", "image/png"], ["Content-Range", "bytes 0-9/20"]]],
  ["what has a Content-Range", "200 OK", [...TYPE, ["Content-Range", "bytes 0-9/20"]]],
  ["what must not be transformed", "200 OK", [...TYPE, ["Cache-Control", "public, no-transform"]]],
  ["what must not be transformed, in capitals", "200 OK", [...TYPE, ["CACHE-CONTROL", "NO-TRANSFORM"]]],
  ["what must not be transformed, with an argument", "200 OK", [...TYPE, ["Cache-Control", "no-transform=1"]]],
  ["what must not be transformed, of two headers", "200 OK", [
    ...TYPE,
    ["Cache-Control", "no-transform"],
    ["Cache-Control", "public"],
  ]],
  ["an image", "200 OK", [["Content-Type", "image/png"], ...TYPE.slice(1)]],
  ["a video", "200 OK", [["Content-Type", "video/mp4"], ...TYPE.slice(1)]],
  ["an archive", "200 OK", [["Content-Type", "application/zip"], ...TYPE.slice(1)]],
  ["a web font", "200 OK", [["Content-Type", "font/woff2"], ...TYPE.slice(1)]],
  ["bytes of any kind", "200 OK", [["Content-Type", "application/octet-stream"], ...TYPE.slice(1)]],
];

for (const [name, status, headers] of LEFT_ALONE) {
  const bodies: [name: string, body: ResponseBody][] = [
    ["as an array", [bytes(TEXT)]],
    ["as a stream", new Set([bytes(TEXT)])],
  ];
  for (const [how, body] of bodies) {
    test(`compress leaves alone ${name}, ${how}`, async () => {
      const app: Application = (_environ, startResponse) => {
        startResponse(status, headers);
        return body;
      };
      const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip, br" }));
      assert.deepEqual(result.headers, headers);
      assert.equal(text(result.body), TEXT);
    });
  }
}

test("compress leaves alone a part of what it compresses as a whole, except that it varies", async () => {
  const headers: HeaderList = [...TYPE, ["Content-Range", "bytes 0-9/20"]];
  for (const accept of ["gzip", ""]) {
    const app = responding("206 Partial Content", headers, () => [bytes(TEXT)]);
    const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: accept }));
    assert.deepEqual(result.headers, [...headers, ["Vary", "Accept-Encoding"]]);
    assert.equal(text(result.body), TEXT);
  }
});

const PNG: HeaderList = [["Content-Type", "image/png"]];
const JSON_TYPE: HeaderList = [["Content-Type", "application/json"]];
const VALIDATORS: HeaderList = [["ETag", '"one"'], ["Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"]];
const UNCHANGED: HeaderList[number] = ["Cache-Control", "no-transform"];
const ENCODED: HeaderList[number] = ["Content-Encoding", "zstd"];
const DIGESTS: HeaderList = [["Digest", "sha-256=RBNv"], ["Repr-Digest", "sha-256=:RBNv:"], ["Accept-Ranges", "bytes"]];

const FOLDER = mkdtempSync(join(tmpdir(), "wsgi-compress-"));
after(() => rmSync(FOLDER, { recursive: true, force: true }));
for (const name of ["image.png", "long.txt", "twinned.txt", "twinned.txt.br"]) put(name, TEXT);
put("short.txt", "short");

function put(name: string, content: string): void {
  writeFileSync(join(FOLDER, name), content);
  utimesSync(join(FOLDER, name), 1_704_067_200, 1_704_067_200);
}

const SELECTED: [name: string, app: ApplicationLike, path?: string][] = [
  ["conditional, of an image", conditional(responding("200 OK", [...PNG, ...VALIDATORS], () => [bytes(TEXT)]))],
  ["conditional, of text", conditional(responding("200 OK", [...PLAIN, ...VALIDATORS], () => [bytes(TEXT)]))],
  ["conditional, with a tag of its own", conditional(responding("200 OK", JSON_TYPE, () => [bytes(TEXT)]))],
  ["conditional, of a short text", conditional(responding("200 OK", [...PLAIN, ...VALIDATORS], () => [bytes("a")]))],
  ["conditional, of text with digests", conditional(giving(() => [bytes(TEXT)], ...VALIDATORS, ...DIGESTS))],
  ["conditional, of what must not change", conditional(giving(() => [bytes(TEXT)], ...VALIDATORS, UNCHANGED))],
  ["conditional, of what is encoded", conditional(giving(() => [bytes(TEXT)], ...VALIDATORS, ENCODED))],
  ["conditional in a mount", mount({ "/": conditional(giving(() => [bytes(TEXT)], ...VALIDATORS)) })],
  ["conditional with a copy of the environ, of an image", (environ, startResponse) => {
    return conditional(responding("200 OK", [...PNG, ...VALIDATORS], () => [bytes(TEXT)]))(
      { ...environ },
      startResponse,
    );
  }],
  ["compress around conditional", compress(conditional(giving(() => [bytes("a")], ...VALIDATORS)))],
  ["files, of an image", files(FOLDER), "/image.png"],
  ["files, of text", files(FOLDER), "/long.txt"],
  ["files, of a short text", files(FOLDER), "/short.txt"],
  ["files, of a text with a twin", files(FOLDER), "/twinned.txt"],
  ["files, of a text with a twin, without it", files(FOLDER, { precompressed: false }), "/twinned.txt"],
];

for (const [name, app, PATH_INFO = "/"] of SELECTED) {
  for (const HTTP_ACCEPT_ENCODING of ["br, gzip", "gzip", ""]) {
    const ask = async (variables: Record<string, string> = {}) => {
      const environ = testEnviron({ PATH_INFO, HTTP_ACCEPT_ENCODING, ...variables });
      const { status, headers } = await runApplication(compressed(app), environ);
      return { status: status.slice(0, 3), headers: new Headers(headers) };
    };

    test(`compress around ${name}: 304 has the headers of 200 to ${HTTP_ACCEPT_ENCODING || "no coding"}`, async () => {
      for (const REQUEST_METHOD of ["GET", "HEAD"]) {
        const { headers: whole } = await ask({ REQUEST_METHOD });
        const conditions: Record<string, string>[] = [{ HTTP_IF_NONE_MATCH: whole.get("ETag") ?? "" }];
        const date = whole.get("Last-Modified");
        if (date !== null) conditions.push({ HTTP_IF_MODIFIED_SINCE: date });
        for (const condition of conditions) {
          const { status, headers } = await ask({ REQUEST_METHOD, ...condition });
          assert.equal(status, "304");
          for (const [name] of [...whole, ...headers]) {
            const expected = /^content-/.test(name) ? null : whole.get(name);
            assert.equal(headers.get(name), expected, `${name} to ${JSON.stringify(condition)}`);
          }
        }
      }
    });

    if (!name.startsWith("files")) continue;
    for (const HTTP_RANGE of ["bytes=0-1", "bytes=0-1,3-4"]) {
      test(`compress around ${name}: 206 of ${HTTP_RANGE} varies as 200 to ${HTTP_ACCEPT_ENCODING || "no coding"}`, async () => {
        const { headers: whole } = await ask();
        const { status, headers } = await ask({ HTTP_RANGE });
        assert.deepEqual([status, headers.get("Vary")], ["206", whole.get("Vary")]);
      });
    }
  }
}

for (const tag of ['"one"', 'W/"one"']) {
  test(`compress gives ${tag} back where the application has made the 304 itself`, async () => {
    const app = responding("304 Not Modified", [["ETag", '"one"']], () => []);
    const environ = testEnviron({ HTTP_ACCEPT_ENCODING: "gzip", HTTP_IF_NONE_MATCH: `"zero", ${tag}` });
    const { headers } = await runApplication(compressed(app), environ);
    assert.deepEqual(new Map(headers).get("ETag"), tag);
  });
}

for (const status of ["204 No Content", "304 Not Modified"]) {
  test(`compress gives no body to ${status}`, async () => {
    const app: Application = (_environ, startResponse) => {
      startResponse(status, [["X-Kept", "yes"]]);
      return new Set<Uint8Array>();
    };
    const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
    assert.equal(result.status, status);
    assert.equal(result.body.length, 0);
    assert(!result.headers.some(([name]) => name === "Content-Encoding"));
    assert.deepEqual(result.headers[0], ["X-Kept", "yes"]);
  });
}

const MEDIA = [
  "text/html; charset=utf-8",
  "TEXT/CSS",
  "text/event-stream",
  "application/json",
  "application/javascript",
  "application/problem+json; charset=utf-8",
  "application/xml",
  "application/wasm",
  "image/svg+xml",
];

for (const type of MEDIA) {
  test(`compress compresses ${type}`, async () => {
    const app: Application = (_environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", type]]);
      return [bytes(TEXT)];
    };
    assert.equal((await decoded(compressed(app))).coding, "gzip");
  });
}

const VARIES: [name: string, given: string[], expected: string[]][] = [
  ["adds Vary", [], ["Accept-Encoding"]],
  ["adds to another Vary", ["Origin"], ["Origin, Accept-Encoding"]],
  ["does not add to Vary twice", ["Accept-Encoding"], ["Accept-Encoding"]],
  ["does not add to Vary twice, whatever the case", ["origin, ACCEPT-ENCODING"], ["origin, ACCEPT-ENCODING"]],
  ["does not add to Vary of everything", ["*"], ["*"]],
  ["keeps each of several Vary", ["Origin", "Cookie"], ["Origin, Cookie, Accept-Encoding"]],
  ["is not misled by a longer name in Vary", ["X-Accept-Encoding"], ["X-Accept-Encoding, Accept-Encoding"]],
];

for (const [name, given, expected] of VARIES) {
  for (const accept of ["gzip", ""]) {
    test(`compress ${name} for a client that accepts ${accept || "nothing"}`, async () => {
      const app = giving(() => [bytes(TEXT)], ...given.map((value): [string, string] => ["Vary", value]));
      const { headers } = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: accept }));
      assert.deepEqual(headers.filter(([name]) => name === "Vary").map(([, value]) => value), expected);
    });
  }
}

const REPRESENTATIONS: [name: string, body: () => ResponseBody][] = [
  ["an array", () => [bytes(TEXT)]],
  ["a stream", () => new Set([bytes(TEXT)])],
];

for (const [what, body] of REPRESENTATIONS) {
  test(`compress makes the headers of ${what} right`, async () => {
    const app = giving(
      body,
      ["ETag", '"one"'],
      ["Accept-Ranges", "bytes"],
      ["Content-Length", String(TEXT.length)],
      ["Content-MD5", "Q2hlY2sgSW50ZWdyaXR5IQ=="],
      ["Digest", "sha-256=RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o="],
      ["Content-Digest", "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"],
      ["Repr-Digest", "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"],
      ["Want-Repr-Digest", "sha-256=1"],
      ["Set-Cookie", "a=1"],
      ["Set-Cookie", "b=2"],
    );
    const result = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
    assert.equal(text(gunzipSync(result.body)), TEXT);
    const length = result.headers.find(([name]) => name === "Content-Length")?.[1] ?? String(result.body.length);
    assert.equal(length, String(result.body.length));
    assert.deepEqual(result.headers.filter(([name]) => name !== "Content-Length").sort(), [
      ["Content-Encoding", "gzip"],
      ["Content-Type", "text/plain"],
      ["ETag", 'W/"one"'],
      ["Set-Cookie", "a=1"],
      ["Set-Cookie", "b=2"],
      ["Vary", "Accept-Encoding"],
      ["Want-Repr-Digest", "sha-256=1"],
    ]);
  });
}

test("compress keeps a weak ETag", async () => {
  const { response } = await decoded(compressed(giving(() => [bytes(TEXT)], ["ETag", 'W/"one"'])));
  assert.equal(response.headers.get("ETag"), 'W/"one"');
});

test("compress replaces a Content-Encoding that says identity", async () => {
  const app = giving(() => [bytes(TEXT)], ["Content-Encoding", "Identity"]);
  const { headers } = await runApplication(compressed(app), testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
  assert.deepEqual(headers.filter(([name]) => name === "Content-Encoding"), [["Content-Encoding", "gzip"]]);
});

const COMPRESS: Middleware = (app) => compress(app);

for (const value of ["x-no-transform", "no-transform-at-all", 'private="a, no-transform, b"']) {
  test(`compress is not forbidden by Cache-Control: ${value}`, async () => {
    assert.equal((await decoded(compressed(giving(() => [bytes(TEXT)], ["Cache-Control", value])))).coding, "gzip");
  });
}

test("compress compresses once, however often it is applied", async () => {
  const app = between(COMPRESS, compress(giving(() => new Set([bytes(TEXT)]))));
  const { response, body } = await decoded(app);
  assert.equal(response.headers.get("Content-Encoding"), "gzip");
  assert.equal(response.headers.get("Vary"), "Accept-Encoding");
  assert.equal(text(body), TEXT);
});

test("compress gives HEAD the headers of GET", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse, ["Content-Length", String(TEXT.length)], ["ETag", '"one"']);
    return environ.REQUEST_METHOD === "HEAD" ? [] : [bytes(TEXT)];
  };
  await using server = start(compressed(app));
  const headers = ["Accept-Encoding: gzip"];
  const head = await exchange(server, request("/", { method: "HEAD", headers }), { head: true });
  const full = new Map((await exchange(server, request("/", { headers }))).headers);
  for (const [name, value] of head.headers) {
    if (name !== "date" && name !== "transfer-encoding") assert.equal(full.get(name), value, name);
  }
  const names = head.headers.map(([name]) => name);
  for (const name of ["content-encoding", "etag", "vary"]) assert(names.includes(name), name);
});

const WRONG_LENGTHS: [method: string, declared: number, size: number][] = [
  ["GET", 5000, 0],
  ["GET", 5000, 3000],
  ["GET", 3000, 5000],
  ["GET", 0, 3000],
  ["HEAD", 5000, 3000],
  ["HEAD", 3000, 5000],
];

for (const [method, declared, size] of WRONG_LENGTHS) {
  test(`compress leaves it to the server that ${method} of ${size} bytes declares ${declared}`, async () => {
    const app = giving(() => size === 0 ? [] : [new Uint8Array(size)], ["Content-Length", String(declared)]);
    const [plain, between] = await Promise.all([app, compress(app)].map(async (app) => {
      const { response, errors } = await answer(unchecked(app), get({ "Accept-Encoding": "gzip" }, method));
      const headers = ["Content-Encoding", "Content-Length"].map((name) => response.headers.get(name));
      return [response.status, headers, (await response.bytes()).length, errors.text.split("\n")[0]];
    }));
    assert.deepEqual(between, plain);
    if (method === "GET") assert.match(String(plain![3]), /Content-Length declares/);
  });
}

test("compress does not expect the body that a response to HEAD declares", async () => {
  const app: Application = (_environ, startResponse) => {
    ok(startResponse, ["Content-Length", "5000"]);
    return new Set();
  };
  const { response, errors } = await answer(compressed(app), get({ "Accept-Encoding": "gzip" }, "HEAD"));
  assert.equal(response.status, 200);
  assert.equal(errors.text, "");
});

test("compress sends a file up to the length that is declared", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse, ["Content-Length", "2000"]);
    return environ["wsgi.file_wrapper"](new Blob([new Uint8Array(5000)]), 1500);
  };
  const { response, body } = await decoded(compressed(app));
  assert.equal(response.headers.get("Content-Encoding"), "gzip");
  assert.equal(body.length, 2000);
});

test("compress leaves an empty body empty, whatever the threshold", async () => {
  const app = compressed(giving(() => [], ["Content-Length", "0"]), { threshold: 0 });
  const { headers, body } = await runApplication(app, testEnviron({ HTTP_ACCEPT_ENCODING: "gzip" }));
  assert.deepEqual(headers, [...PLAIN, ["Content-Length", "0"], ["Vary", "Accept-Encoding"]]);
  assert.equal(body.length, 0);
});

test("compress compresses a 200 whose tag the client has", async () => {
  const app = compressed(giving(() => [bytes(TEXT)], ["ETag", '"one"']));
  const environ = testEnviron({ HTTP_ACCEPT_ENCODING: "gzip", HTTP_IF_NONE_MATCH: '"one"' });
  const { headers } = await runApplication(app, environ);
  assert.ok(headers.some(([name, value]) => name === "Content-Encoding" && value === "gzip"));
});

test("compress gives HEAD the headers of GET where the application gives HEAD neither body nor length", async () => {
  const app = giving(({ REQUEST_METHOD }) => REQUEST_METHOD === "HEAD" ? [] : [bytes(TEXT)], ["ETag", '"one"']);
  const [head, whole] = await Promise.all(
    ["HEAD", "GET"].map((REQUEST_METHOD) =>
      runApplication(compressed(app), testEnviron({ REQUEST_METHOD, HTTP_ACCEPT_ENCODING: "gzip" }))
    ),
  );
  assert.deepEqual(head!.headers, whole!.headers);
});

test("compress closes an array once", async () => {
  let closed = 0;
  const app = giving(() => Object.assign([bytes(TEXT)], { close: () => void closed++ }));
  await decoded(compressed(app));
  assert.equal(closed, 1);
});

test("compress does not complete a stream that is shorter than it declares", async () => {
  const app = giving(() => new Set([bytes(TEXT)]), ["Content-Length", String(2 * TEXT.length)]);
  await using server = start(compress(app));
  const reply = await exchange(server, request("/", { headers: ["Accept-Encoding: gzip"] }));
  assert.equal(reply.complete, false);
  await server.errors.matches(/Content-Length/);
});

test("compress counts the leaving of a client that does not read as one end", async () => {
  const log: string[] = [];
  const closed = new Event("close");
  const chunks = function* () {
    try {
      for (;;) yield NOISE;
    } finally {
      log.push("finally");
    }
  };
  const app = giving(() =>
    Object.assign(chunks(), {
      close() {
        log.push("close");
        closed.happen();
      },
    })
  );
  await using server = start(compressed(app));
  const client = await Client.connect(server);
  await client.send(request("/", { headers: ["Accept-Encoding: gzip"] }));
  await client.until(/\r\n\r\n/);
  client.leave();
  await closed.wait();
  await settle();
  assert.deepEqual(log, ["finally", "close"]);
  assert.equal(server.errors.text, "");
});

test("compress refuses a write while it compresses the body that the application has returned", async () => {
  const failure = new Event<unknown>("a refusal");
  const app: Application = (_environ, startResponse) => {
    const write = startResponse("200 OK", PLAIN);
    queueMicrotask(() => {
      try {
        write(bytes("late"));
      } catch (error) {
        failure.happen(error);
      }
    });
    return [bytes(TEXT)];
  };
  const { response } = await answer(unchecked(compress(app)), get({ "Accept-Encoding": "gzip" }));
  assert.match(
    String(await failure.wait()),
    /^TypeError: Cannot send the response: write was called after the body was returned/,
  );
  assert.equal(text(gunzipSync(await response.bytes())), TEXT);
});

test("compress compresses what is written, each chunk at once, and what is returned after it", async () => {
  const gate = new Event("the first chunk at the client");
  const app: Application = async (_environ, startResponse) => {
    await startResponse("200 OK", PLAIN)(bytes("written, "));
    await gate.wait();
    return [bytes("returned")];
  };
  const { response } = await answer(between(compress, app), get({ "Accept-Encoding": "gzip" }));
  assert.equal(response.headers.get("Content-Encoding"), "gzip");
  const reader = response.body!.pipeThrough(new DecompressionStream("gzip")).getReader();
  assert.equal(await readChunk(reader), "written, ");
  gate.happen();
  assert.equal(await readChunk(reader), "returned");
  assert.equal(await readChunk(reader), undefined);
});

test("compress lets the access log see that a HEAD was answered to which the application writes", async () => {
  const log = new Log();
  const app: Application = (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes(TEXT));
    return [];
  };
  const { response } = await answer(log.around(app, compress), get({ "Accept-Encoding": "gzip" }, "HEAD"));
  assert.equal(response.status, 200);
  assert.deepEqual((await log.one()).said, { status: 200, bytes: 0, aborted: false });
});

test("compress fails a response where too much is written and the application goes on", async () => {
  const app: Application = async (_environ, startResponse) => {
    const write = startResponse("200 OK", [...PLAIN, ["Content-Length", String(TEXT.length)]]);
    await write(bytes(TEXT));
    await assert.rejects(async () => await write(bytes("more")), /Content-Length declares/);
    return [];
  };
  const { response, errors } = await answer(unchecked(compress(app)), get({ "Accept-Encoding": "gzip" }));
  await assert.rejects(response.bytes());
  assert.match(errors.text, /Content-Length declares/);
});

test("compress throws an error back at once after a write, while it compresses the chunk", async () => {
  let thrown: unknown;
  const app: Application = (_environ, startResponse) => {
    void startResponse("200 OK", PLAIN)(bytes(TEXT));
    try {
      startResponse("500 Internal Server Error", PLAIN, FAILURE);
    } catch (error) {
      thrown = error;
    }
    return [];
  };
  const { response } = await answer(unchecked(compress(app)), get({ "Accept-Encoding": "gzip" }));
  assert.equal(thrown, FAILURE);
  assert.equal(response.headers.get("Content-Encoding"), "gzip");
  await assert.rejects(response.bytes());
});

for (const [name, middleware] of Object.entries({ compress, conditional })) {
  test(`${name} fails a response whose generator ignores that startResponse has failed`, async () => {
    const app: Application = function* (_environ, startResponse) {
      ok(startResponse);
      assert.throws(() => ok(startResponse));
      yield bytes(TEXT);
    };
    const { response } = await answer(unchecked(middleware(app)), get({ "Accept-Encoding": "gzip" }));
    assert.equal(response.status, 500);
  });

  test(`${name} fails a response whose generator ignores that its first startResponse has failed`, async () => {
    const app: Application = function* (_environ, startResponse) {
      assert.throws(() => startResponse("200", PLAIN));
      yield bytes(TEXT);
    };
    const { response, errors } = await answer(unchecked(middleware(app)), get({ "Accept-Encoding": "gzip" }));
    assert.equal(response.status, 500);
    assert.match(errors.text, /status "200" has no reason phrase/);
  });

  test(`${name} sends nothing of a response that ignores a failed startResponse and then writes`, async () => {
    const app: Application = (_environ, startResponse) => {
      const write = startResponse("200 OK", PLAIN);
      assert.throws(() => ok(startResponse));
      assert.throws(() => write(bytes(TEXT)), /startResponse was called again/);
      return [];
    };
    const { response, errors } = await answer(unchecked(middleware(app)), get({ "Accept-Encoding": "gzip" }));
    assert.equal(response.status, 500);
    assert.equal(reportsIn(errors).length, 1);
  });

  test(`${name} fails a response that ignores a failed startResponse after a write`, async () => {
    const app: Application = (_environ, startResponse) => {
      void startResponse("200 OK", PLAIN)(bytes(TEXT));
      assert.throws(() => ok(startResponse));
      return [bytes(TEXT)];
    };
    const { response, errors } = await answer(unchecked(middleware(app)), get({ "Accept-Encoding": "gzip" }));
    assert.equal(response.status, 500);
    assert.match(errors.text, /startResponse was called again/);
    assert.equal(reportsIn(errors).length, 1);
  });
}
