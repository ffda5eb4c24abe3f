/**
 * `conditional`: an ETag for each body, and 304 for a client that has it.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import {
  type Application,
  type ApplicationLike,
  compress,
  conditional,
  type Environ,
  type HeaderList,
  type Middleware,
  type ResponseBody,
  runApplication,
  testEnviron,
} from "../mod.ts";
import { between, BODIES, get, giving, TEXT, WHOLE } from "./middleware_support.ts";
import { answer, bytes, Client, EMPTY, ok, parse, PLAIN, request, settle, start, text } from "./support.ts";

function tagOf({ headers }: { headers: HeaderList }): string | undefined {
  return headers.find(([name]) => name === "ETag")?.[1];
}

async function conditionally(app: ApplicationLike, environ: Partial<Environ> = {}) {
  return await runApplication(between(conditional, app), testEnviron(environ));
}

test("conditional gives equal bodies equal tags, however they are cut into chunks, and different bodies different tags", async () => {
  const whole = tagOf(await conditionally(giving(() => [bytes("one two")])));
  assert.match(whole ?? "", /^"[!#-~]+"$/);
  assert.equal(tagOf(await conditionally(giving(() => [bytes("one"), EMPTY, bytes(" two")]))), whole);
  assert.notEqual(tagOf(await conditionally(giving(() => [bytes("one three")]))), whole);
  const empty = tagOf(await conditionally(giving(() => [])));
  assert.match(empty ?? "", /^"[!#-~]+"$/);
  assert.notEqual(empty, whole);
});

test("conditional keeps the ETag of the application", async () => {
  const { headers, status } = await conditionally(giving(() => [bytes("one")], ["etag", 'W/"mine"']));
  assert.equal(status, "200 OK");
  assert.deepEqual(headers, [...PLAIN, ["etag", 'W/"mine"']]);
});

const DATE = "Sun, 06 Nov 1994 08:49:37 GMT";
const EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT";
const LATER = "Sun, 06 Nov 1994 08:49:38 GMT";
const TAGGED: HeaderList = [["ETag", '"one"']];
const WEAK: HeaderList = [["ETag", 'W/"one"']];
const DATED: HeaderList = [["Last-Modified", DATE]];
const BOTH: HeaderList = [...TAGGED, ...DATED];

const CONDITIONS: [
  name: string,
  headers: HeaderList,
  match: string | undefined,
  since: string | undefined,
  200 | 304,
][] = [
  ["the tag", TAGGED, '"one"', undefined, 304],
  ["the tag, with spaces around", TAGGED, ' "one" ', undefined, 304],
  ["the tag as a weak one", TAGGED, 'W/"one"', undefined, 304],
  ["a weak tag as a strong one", WEAK, '"one"', undefined, 304],
  ["a weak tag", WEAK, 'W/"one"', undefined, 304],
  ["a list with the tag", TAGGED, '"zero", W/"one","two"', undefined, 304],
  ["a list without the tag", TAGGED, '"zero", "two"', undefined, 200],
  ["any tag", TAGGED, "*", undefined, 304],
  ["any tag where the application has none", [], "*", undefined, 304],
  ["any tag, with spaces around", TAGGED, " * ", undefined, 304],
  ["another tag", TAGGED, '"two"', undefined, 200],
  ["a tag that begins with the tag", TAGGED, '"one-two"', undefined, 200],
  ["a tag in other case", TAGGED, '"ONE"', undefined, 200],
  ["a tag with a comma inside", [["ETag", '"one,two"']], '"zero", "one,two"', undefined, 304],
  ["a part of a tag with a comma inside", [["ETag", '"two"']], '"one,two"', undefined, 200],
  ["a tag with a backslash at its end", [["ETag", '"one\\"']], '"one\\", "two"', undefined, 304],
  ["a tag after one with a backslash at its end", TAGGED, '"zero\\", "one"', undefined, 304],
  ["a tag with two backslashes, of which the response has one", [["ETag", '"o\\ne"']], '"o\\\\ne"', undefined, 200],
  ["a list with empty elements", TAGGED, ', ,"zero",,"one",', undefined, 304],
  ["the tag in a string that is left open", TAGGED, '"zero, "one"', undefined, 200],
  ["the mark of a weak tag alone, where the application has none", [], "W/", undefined, 200],
  ["the tag without quotes", TAGGED, "one", undefined, 200],
  ["no tag at all", TAGGED, "", undefined, 200],
  ["the time of the change", DATED, undefined, DATE, 304],
  ["a later time", DATED, undefined, LATER, 304],
  ["an earlier time", DATED, undefined, EARLIER, 200],
  ["the time in the form of RFC 850", DATED, undefined, "Sunday, 06-Nov-94 08:49:37 GMT", 304],
  ["no time", DATED, undefined, "", 200],
  ["a time in words", DATED, undefined, "tomorrow", 200],
  ["a year, which is no HTTP date", DATED, undefined, "2099", 200],
  ["a word and a year, which are no HTTP date", DATED, undefined, "foo 2099", 200],
  ["a time where the application has none", TAGGED, undefined, DATE, 200],
  ["a time where the one of the application is none", [["Last-Modified", "once"]], undefined, DATE, 200],
  ["another tag and the time", BOTH, '"two"', DATE, 200],
  ["the tag and an earlier time", BOTH, '"one"', EARLIER, 304],
  ["neither", BOTH, undefined, undefined, 200],
];

const ANCIENT: HeaderList = [["Last-Modified", "Wed, 06 Nov 0024 08:49:37 GMT"]];
// RFC 9110, section 5.6.7.
const DATES: [since: string, modified: HeaderList, 200 | 304][] = [
  ["Fri, 01 Mar 2024 00:00:00 GMT", DATED, 304],
  ["Thu, 29 Feb 2024 00:00:00 GMT", DATED, 304],
  ["Fri, 29 Feb 2023 00:00:00 GMT", DATED, 200],
  ["Fri, 30 Feb 2024 00:00:00 GMT", DATED, 200],
  ["Wed, 31 Apr 2024 00:00:00 GMT", DATED, 200],
  ["Mon, 00 Jan 2024 00:00:00 GMT", DATED, 200],
  ["Mon, 32 Jan 2024 00:00:00 GMT", DATED, 200],
  ["Friday, 30-Feb-24 00:00:00 GMT", DATED, 200],
  ["Fri Feb 30 00:00:00 2024", DATED, 200],
  ["Fri Mar 01 00:00:00 2024", DATED, 304],
  ["Fri Mar 1 00:00:00 2024", DATED, 200],
  ["Fri, 1 Mar 2024 00:00:00 GMT", DATED, 200],
  ["Fri, 01 Mar 2024 23:59:59 GMT", DATED, 304],
  ["Fri, 01 Mar 2024 24:00:00 GMT", DATED, 200],
  ["Fri, 01 Mar 2024 23:60:00 GMT", DATED, 200],
  ["Sat, 31 Dec 2016 23:59:60 GMT", DATED, 304],
  ["Sat, 31 Dec 2016 23:59:60 GMT", [["Last-Modified", "Sun, 01 Jan 2017 00:00:00 GMT"]], 304],
  ["Sat, 31 Dec 2016 23:59:61 GMT", DATED, 200],
  ["Sun, 06 Nov 0025 08:49:37 GMT", DATED, 200],
  ["Sun, 06 Nov 0025 08:49:37 GMT", ANCIENT, 304],
  ["Thu, 06 Nov 0023 08:49:37 GMT", ANCIENT, 200],
  ["Mon, 06 Nov 1994 08:49:37 GMT", DATED, 304], // a Sunday; the RFC does not ask a recipient to look
  ["Xyz, 06 Nov 1994 08:49:37 GMT", DATED, 200],
  ["Sunday, 06 Nov 1994 08:49:37 GMT", DATED, 200],
  ["Sun, 06-Nov-94 08:49:37 GMT", DATED, 200],
  ["Sun, 06 Abc 2094 08:49:37 GMT", DATED, 200],
  ["sun, 06 nov 1994 08:49:37 gmt", DATED, 200],
  ["Sun, 06 Nov 1994 08:49:37 UTC", DATED, 200],
  ["Sun, 06 Nov 1994 08:49:37 +0000", DATED, 200],
  ["Sun, 06 Nov 1994 08:49:37", DATED, 200],
];

for (const [since, modified, expected] of DATES) {
  test(`conditional answers ${expected} to ${since} where the response is of ${modified[0]![1]}`, async () => {
    const app = giving(() => [bytes("one")], ...modified);
    const { status } = await conditionally(app, { HTTP_IF_MODIFIED_SINCE: since });
    assert.equal(status.slice(0, 3), String(expected));
  });
}

for (const [ahead, isAhead] of [[0, true], [49, true], [51, false], [99, false]] as const) {
  test(`the two digits of the year in ${ahead} years mean one ${isAhead ? "from now on" : "in the past"}`, async () => {
    const now = new Date();
    const digits = String(now.getUTCFullYear() + ahead).slice(-2);
    const since = `Sunday, 31-Dec-${digits} 23:59:59 GMT`;
    const app = giving(() => [bytes("one")], ["Last-Modified", now.toUTCString()]);
    const { status } = await conditionally(app, { HTTP_IF_MODIFIED_SINCE: since });
    assert.equal(status.slice(0, 3), isAhead ? "304" : "200");
  });
}

for (const [name, headers, match, since, expected] of CONDITIONS) {
  for (const method of ["GET", "HEAD"]) {
    test(`conditional answers ${method} with ${expected} to ${name}`, async () => {
      const { status, body } = await conditionally(giving(() => [bytes("one")], ...headers), {
        REQUEST_METHOD: method,
        ...(match === undefined ? {} : { HTTP_IF_NONE_MATCH: match }),
        ...(since === undefined ? {} : { HTTP_IF_MODIFIED_SINCE: since }),
      });
      assert.equal(status.slice(0, 3), String(expected));
      assert.equal(text(body), expected === 304 ? "" : "one");
    });
  }
}

test("conditional answers 304 with all headers but those of the body", async () => {
  const app = giving(
    () => [bytes("one")],
    ["Content-Length", "3"],
    ["content-language", "en"],
    ["Content-MD5", "Q2hlY2sgSW50ZWdyaXR5IQ=="],
    ["Content-Digest", "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"],
    ["Set-Cookie", "a=1"],
    ["Set-Cookie", "b=2"],
    ["Cache-Control", "no-cache"],
    ["Vary", "Origin"],
    ["Last-Modified", DATE],
    ["Expires", LATER],
    ["Content-Location", "/one"],
    ["Access-Control-Allow-Origin", "*"],
  );
  const tag = tagOf(await conditionally(app))!;
  const { status, headers, body } = await conditionally(app, { HTTP_IF_NONE_MATCH: tag });
  assert.equal(status, "304 Not Modified");
  assert.equal(body.length, 0);
  assert.deepEqual(headers, [
    ["Set-Cookie", "a=1"],
    ["Set-Cookie", "b=2"],
    ["Cache-Control", "no-cache"],
    ["Vary", "Origin"],
    ["Last-Modified", DATE],
    ["Expires", LATER],
    ["Content-Location", "/one"],
    ["Access-Control-Allow-Origin", "*"],
    ["ETag", tag],
  ]);
});

test("conditional answers 304 over the wire, without a length or a type, and the connection goes on", async () => {
  await using server = start(between(conditional, giving(() => [bytes("one")], ["ETag", '"one"'])));
  const client = await Client.connect(server);
  await client.send('GET / HTTP/1.1\r\nHost: test.example\r\nIf-None-Match: "one"\r\n\r\n');
  await client.until(/\r\n\r\n/);
  const reply = parse(client.received);
  assert.equal(reply.status, 304);
  const names = reply.headers.map(([name]) => name);
  assert(names.includes("etag"));
  for (const name of ["content-length", "content-type", "transfer-encoding"]) assert(!names.includes(name), name);
  client.received = "";
  await client.send(request("/"));
  assert.equal(parse(await client.end()).body, "one");
});

for (const method of ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"]) {
  test(`conditional leaves ${method} alone`, async () => {
    const { status, headers, body } = await conditionally(giving(() => [bytes("one")], ...BOTH), {
      REQUEST_METHOD: method,
      HTTP_IF_NONE_MATCH: "*",
      HTTP_IF_MODIFIED_SINCE: LATER,
    });
    assert.equal(status, "200 OK");
    assert.deepEqual(headers, [...PLAIN, ...BOTH]);
    assert.equal(text(body), "one");
  });
}

for (const status of ["201 Created", "206 Partial Content", "404 Not Found", "500 Internal Server Error"]) {
  test(`conditional leaves ${status} alone`, async () => {
    const app: Application = (_environ, startResponse) => {
      startResponse(status, PLAIN);
      return [bytes("one")];
    };
    const result = await conditionally(app, { HTTP_IF_NONE_MATCH: "*" });
    assert.equal(result.status, status);
    assert.deepEqual(result.headers, PLAIN);
    assert.equal(text(result.body), "one");
  });
}

for (const [what, app] of BODIES.filter(([what]) => !/array|method/.test(what))) {
  test(`conditional leaves ${what} alone`, async () => {
    const headers = { "If-None-Match": "*", "If-Modified-Since": LATER };
    const { response, errors } = await answer(between(conditional, app), get(headers));
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("ETag"), null);
    const expected = what === "a wrapped file" ? bytes(TEXT.repeat(50)) : WHOLE;
    assert(Buffer.from(await response.bytes()).equals(expected));
    assert.equal(errors.text, "");
  });
}

test("conditional returns the application's own stream, unread", async () => {
  let asked = 0;
  const stream: ResponseBody = {
    *[Symbol.iterator]() {
      asked++;
      yield bytes("one");
    },
  };
  const environ = testEnviron({ HTTP_IF_NONE_MATCH: "*" });
  const body = await conditional(giving(() => stream))(environ, () => () => Promise.resolve());
  assert.equal(body, stream);
  assert.equal(asked, 0);
});

test("conditional gives a whole body to HEAD the tag that GET gets", async () => {
  const app = giving(() => [bytes("one")]);
  assert.equal(tagOf(await conditionally(app, { REQUEST_METHOD: "HEAD" })), tagOf(await conditionally(app)));
});

const BODILESS: [name: string, body: Uint8Array[]][] = [["no chunk", []], ["an empty chunk", [EMPTY]]];

for (const [what, body] of BODILESS) {
  test(`conditional makes no tag of ${what} in answer to HEAD`, async () => {
    const app = giving(() => body, ["Content-Length", "3"]);
    const { headers } = await conditionally(app, { REQUEST_METHOD: "HEAD" });
    assert.deepEqual(headers, [...PLAIN, ["Content-Length", "3"]]);
  });

  test(`conditional answers HEAD of ${what} with 304 by the tag of the application`, async () => {
    const app = giving(() => body, ...TAGGED);
    const { status } = await conditionally(app, { REQUEST_METHOD: "HEAD", HTTP_IF_NONE_MATCH: '"one"' });
    assert.equal(status, "304 Not Modified");
  });
}

for (const match of ['"none"', "*"]) {
  test(`conditional closes a whole body once where If-None-Match is ${match}`, async () => {
    let closed = 0;
    const app = giving(() => Object.assign([bytes("one")], { close: () => void closed++ }));
    await conditionally(app, { HTTP_IF_NONE_MATCH: match });
    assert.equal(closed, 1);
  });
}

test("conditional waits for an application that returns a promise", async () => {
  const app: Application = async (_environ, startResponse) => {
    ok(startResponse);
    await settle();
    return [bytes("one")];
  };
  const { status } = await conditionally(app, { HTTP_IF_NONE_MATCH: "*" });
  assert.equal(status, "304 Not Modified");
});

test("conditional leaves alone a response that was written", async () => {
  const app: Application = async (_environ, startResponse) => {
    await startResponse("200 OK", PLAIN)(bytes("one"));
    return [bytes("two")];
  };
  const { status, headers, body } = await conditionally(app, { HTTP_IF_NONE_MATCH: "*" });
  assert.equal(status, "200 OK");
  assert.deepEqual(headers, PLAIN);
  assert.equal(text(body), "onetwo");
});

const COMPRESS: Middleware = (app) => compress(app);

const ORDERS: [name: string, app: Application][] = [
  ["compress around conditional", between(COMPRESS, conditional(giving(() => [bytes(TEXT)])))],
  ["conditional around compress", between(conditional, compress(giving(() => [bytes(TEXT)])))],
];

for (const [name, app] of ORDERS) {
  test(`${name} answers 304 with the ETag and the Vary of 200`, async () => {
    const first = await answer(app, get({ "Accept-Encoding": "gzip" }));
    assert.equal(first.response.headers.get("Content-Encoding"), "gzip");
    assert.equal(text(gunzipSync(await first.response.bytes())), TEXT);
    const tag = first.response.headers.get("ETag")!;
    const { response } = await answer(app, get({ "Accept-Encoding": "gzip", "If-None-Match": tag }));
    assert.equal(response.status, 304);
    assert.equal(response.headers.get("Content-Encoding"), null);
    // RFC 9110, section 15.4.5. With another tag a cache could not tell which of its responses is still good.
    assert.equal(response.headers.get("Vary"), "Accept-Encoding");
    assert.equal(response.headers.get("ETag"), tag);
  });

  test(`${name} gives another client the body, not a 304, unless the tag says that it is the same text`, async () => {
    const { response } = await answer(app, get({ "If-None-Match": '"other"' }));
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("Vary"), "Accept-Encoding");
    assert.equal(await response.text(), TEXT);
  });
}
