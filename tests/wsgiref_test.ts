/**
 * The helpers of Python's `wsgiref.util`, by the tables of its own tests (Lib/test/test_wsgiref.py, UtilityTests), and more.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  applicationUri,
  type Environ,
  guessScheme,
  requestUri,
  shiftPathInfo,
  testEnviron,
  type TestEnvironOptions,
  toRequest,
  validator,
} from "../mod.ts";
import { lacking } from "./middleware_support.ts";
import { bytes, Client, ErrorLog, hello, request, start, text } from "./support.ts";
import { inputOf, run } from "./validator_support.ts";

/** SCRIPT_NAME and PATH_INFO before, the segment, SCRIPT_NAME and PATH_INFO after. */
const SHIFTS: [script: string, path: string, segment: string | null, scriptAfter: string, pathAfter: string][] = [
  ["", "/", "", "/", ""],
  ["", "/x", "x", "/x", ""],
  ["/", "", null, "/", ""],
  ["/a", "/x/y", "x", "/a/x", "/y"],
  ["/a", "/x/", "x", "/a/x", "/"],
  ["/a/b", "/../y", "..", "/a", "/y"],
  ["", "/../y", "..", "", "/y"],
  ["/a/b", "//y", "y", "/a/b/y", ""],
  ["/a/b", "//y/", "y", "/a/b/y", "/"],
  ["/a/b", "/./y", "y", "/a/b/y", ""],
  ["/a/b", "/./y/", "y", "/a/b/y", "/"],
  ["/a/b", "///./..//y/.//", "..", "/a", "/y/"],
  ["/a/b", "///", "", "/a/b/", ""],
  ["/a/b", "/.//", "", "/a/b/", ""],
  ["/a/b", "/x//", "x", "/a/b/x", "/"],
  ["/a/b", "/.", null, "/a/b", ""],
  // These are not from there; Python gives the same.
  ["", "", null, "", ""],
  ["", "/.", null, "", ""],
  ["", "/..", "..", "", ""],
  ["/a", "/..", "..", "", ""],
  ["/a", "/../..", "..", "", "/.."],
  ["/a/", "/x", "x", "/a/x", ""],
  ["/a/", "/", "", "/a/", ""],
  ["/a//b/./c/..", "/x", "x", "/a/b/x", ""],
  ["/a", "/x/./y", "x", "/a/x", "/y"],
  ["/a", "/x/.", "x", "/a/x", "/."],
  ["/a", "/x/..", "x", "/a/x", "/.."],
  ["/a", "/...", "...", "/a/...", ""],
  ["/a", "/\u00e9 ?%2F;x=y/z", "\u00e9 ?%2F;x=y", "/a/\u00e9 ?%2F;x=y", "/z"],
];

for (const [script, path, segment, scriptAfter, pathAfter] of SHIFTS) {
  test(`shiftPathInfo moves from ${JSON.stringify(path)} to ${JSON.stringify(script)} as Python does`, () => {
    const environ = testEnviron({ SCRIPT_NAME: script, PATH_INFO: path });
    assert.equal(shiftPathInfo(environ), segment);
    assert.equal(environ.SCRIPT_NAME, scriptAfter);
    assert.equal(environ.PATH_INFO, pathAfter);
  });
}

test("shiftPathInfo changes nothing but SCRIPT_NAME and PATH_INFO", () => {
  const environ = testEnviron({ SCRIPT_NAME: "/a", PATH_INFO: "/x/y" });
  const before = { ...environ };
  shiftPathInfo(environ);
  assert.deepEqual(environ, { ...before, SCRIPT_NAME: "/a/x", PATH_INFO: "/y" });
});

test("shiftPathInfo walks a path from segment to segment to its end", () => {
  const environ = testEnviron({ PATH_INFO: "/a//b/./c/" });
  const segments: (string | null)[] = [];
  for (let turn = 0; turn < 6; turn++) segments.push(shiftPathInfo(environ));
  assert.deepEqual(segments, ["a", "b", "c", "", null, null]);
});

const APPLICATION_URIS: [uri: string, overrides: Partial<Environ>][] = [
  ["http://127.0.0.1/", {}],
  ["http://127.0.0.1/spam", { SCRIPT_NAME: "/spam" }],
  ["http://127.0.0.1/sp%E4m", { SCRIPT_NAME: "/sp\u00e4m" }],
  ["http://spam.example.com:2071/", { HTTP_HOST: "spam.example.com:2071", SERVER_PORT: "2071" }],
  ["http://spam.example.com/", { SERVER_NAME: "spam.example.com" }],
  ["http://127.0.0.1/", { HTTP_HOST: "127.0.0.1", SERVER_NAME: "spam.example.com" }],
  ["https://127.0.0.1/", { HTTPS: "on" }],
  ["http://127.0.0.1:8000/", { SERVER_PORT: "8000", HTTP_HOST: "" }],
  // These are not from there; Python gives the same.
  ["http://127.0.0.1/", { SERVER_PORT: "80", HTTP_HOST: "" }],
  ["http://127.0.0.1:443/", { SERVER_PORT: "443", HTTP_HOST: "" }],
  ["https://127.0.0.1/", { SERVER_PORT: "443", HTTP_HOST: "", HTTPS: "1" }],
  ["https://127.0.0.1:80/", { SERVER_PORT: "80", HTTP_HOST: "", "wsgi.url_scheme": "https" }],
  ["http://[::1]:8080/", { SERVER_NAME: "[::1]", SERVER_PORT: "8080", HTTP_HOST: "" }],
  ["http://h:80/a/", { HTTP_HOST: "h:80", SCRIPT_NAME: "/a/", PATH_INFO: "/page", QUERY_STRING: "a=b" }],
  ["http://127.0.0.1/a%3Bb%3D%2C%20%25%3F%23~._-", { SCRIPT_NAME: "/a;b=, %?#~._-" }],
];

for (const [uri, overrides] of APPLICATION_URIS) {
  test(`applicationUri gives ${uri} for ${JSON.stringify(overrides)}`, () => {
    assert.equal(applicationUri(testEnviron(overrides)), uri);
  });
}

const SPAM = { SCRIPT_NAME: "/spammity", PATH_INFO: "/spam" };

const REQUEST_URIS: [uri: string, overrides: Partial<Environ>, includeQuery?: boolean][] = [
  ["http://127.0.0.1/", {}],
  ["http://127.0.0.1/spam", { SCRIPT_NAME: "/spam" }],
  ["http://127.0.0.1/sp%E4m", { SCRIPT_NAME: "/sp\u00e4m" }],
  ["http://127.0.0.1/spammity/spam", SPAM],
  ["http://127.0.0.1/spammity/sp%E4m", { ...SPAM, PATH_INFO: "/sp\u00e4m" }],
  ["http://127.0.0.1/spammity/spam;ham", { ...SPAM, PATH_INFO: "/spam;ham" }],
  ["http://127.0.0.1/spammity/spam;cookie=1234,5678", { ...SPAM, PATH_INFO: "/spam;cookie=1234,5678" }],
  ["http://127.0.0.1/spammity/spam?say=ni", { ...SPAM, QUERY_STRING: "say=ni" }],
  ["http://127.0.0.1/spammity/spam?s%E4y=ni", { ...SPAM, QUERY_STRING: "s%E4y=ni" }],
  ["http://127.0.0.1/spammity/spam", { ...SPAM, QUERY_STRING: "say=ni" }, false],
  // These are not from there; Python gives the same.
  ["http://127.0.0.1/spammity/spam?say=ni", { ...SPAM, QUERY_STRING: "say=ni" }, true],
  ["http://127.0.0.1/spammity", { ...SPAM, PATH_INFO: "" }],
  ["http://127.0.0.1//evil.example/", { PATH_INFO: "//evil.example/" }],
  ["http://127.0.0.1/a//b/../c/", { PATH_INFO: "/a//b/../c/" }],
  ["http://127.0.0.1/%00%0A%20%7F%80%FF", { PATH_INFO: "/\0\n \x7f\x80\xff" }],
  ["http://127.0.0.1/%21%22%23%24%25%26%27%28%29%2A%2B,-./", { PATH_INFO: "/!\"#$%&'()*+,-./" }],
  ["http://127.0.0.1/09%3A;%3C=%3E%3F%40AZ", { PATH_INFO: "/09:;<=>?@AZ" }],
  ["http://127.0.0.1/%5B%5C%5D%5E_%60az%7B%7C%7D~", { PATH_INFO: "/[\\]^_`az{|}~" }],
  ["http://127.0.0.1/??a b", { PATH_INFO: "/", QUERY_STRING: "?a b" }],
];

for (const [uri, overrides, includeQuery] of REQUEST_URIS) {
  const shown = JSON.stringify(includeQuery === undefined ? overrides : [overrides, { includeQuery }]);
  test(`requestUri gives ${uri} for ${shown}`, () => {
    const environ = testEnviron(overrides);
    assert.equal(includeQuery === undefined ? requestUri(environ) : requestUri(environ, { includeQuery }), uri);
  });
}

test("requestUri and applicationUri refuse what is not bytes, as Python does", () => {
  assert.throws(() => requestUri({ ...testEnviron(), PATH_INFO: "/\u20ac" }));
  assert.throws(() => applicationUri({ ...testEnviron(), SCRIPT_NAME: "/\u20ac" }));
});

test("requestUri gives the address of a request back, under a mount point and over a socket", async () => {
  let uris: string[] = [];
  await using server = start(
    validator((environ, startResponse) => {
      uris = [requestUri(environ), applicationUri(environ)];
      return hello(environ, startResponse);
    }),
    { scriptName: "/app" },
  );
  const client = await Client.connect(server);
  await client.send(request("/app/caf%C3%A9;x=1/%2F?q=%C3%A9"));
  await client.end();
  assert.deepEqual(uris, ["http://test.example/app/caf%C3%A9;x=1//?q=%C3%A9", "http://test.example/app"]);
});

for (
  const [scheme, environ] of [
    ["http", {}],
    ["http", { HTTPS: "foo" }],
    ["https", { HTTPS: "on" }],
    ["https", { HTTPS: "yes" }],
    ["https", { HTTPS: "1" }],
    // These are not from there; Python gives the same.
    ["http", { HTTPS: "" }],
    ["http", { HTTPS: "ON" }],
    ["http", { HTTPS: "off" }],
    ["http", { HTTPS: "true" }],
    ["http", { "wsgi.url_scheme": "https" }],
  ] satisfies [string, Partial<Environ>][]
) {
  test(`guessScheme guesses ${scheme} for ${JSON.stringify(environ)}`, () => {
    assert.equal(guessScheme(environ), scheme);
  });
}

/** What Python's `setup_testing_defaults` sets, and another value, which must stay. */
const DEFAULTS: [name: string, value: unknown, overrides: Partial<Environ>][] = [
  ["SERVER_NAME", "127.0.0.1", { SERVER_NAME: "spam" }],
  ["SERVER_PORT", "80", { SERVER_PORT: "8080" }],
  ["SERVER_PROTOCOL", "HTTP/1.0", { SERVER_PROTOCOL: "HTTP/1.1" }],
  ["HTTP_HOST", "127.0.0.1", { HTTP_HOST: "spam:1" }],
  ["REQUEST_METHOD", "GET", { REQUEST_METHOD: "PUT" }],
  ["SCRIPT_NAME", "", { SCRIPT_NAME: "/spam" }],
  ["PATH_INFO", "/", { PATH_INFO: "/spam" }],
  ["wsgi.version", [1, 0], { "wsgi.version": [1, 0] }],
  ["wsgi.run_once", false, { "wsgi.run_once": true }],
  ["wsgi.multithread", false, { "wsgi.multithread": true }],
  ["wsgi.multiprocess", false, { "wsgi.multiprocess": true }],
  ["wsgi.url_scheme", "http", { "wsgi.url_scheme": "https" }],
  ["wsgi.input", undefined, { "wsgi.input": inputOf([]) }],
  ["wsgi.errors", undefined, { "wsgi.errors": new ErrorLog() }],
  // These are not from there: the contract has them always present.
  ["QUERY_STRING", "", { QUERY_STRING: "a=b" }],
  ["REQUEST_URI", "/", { REQUEST_URI: "*" }],
  ["wsgi.input_terminated", true, { "wsgi.input_terminated": false }],
  ["SERVER_SOFTWARE", undefined, { SERVER_SOFTWARE: "Own/1" }],
  ["wsgi.file_wrapper", undefined, { "wsgi.file_wrapper": () => [] }],
];

for (const [name, value, overrides] of DEFAULTS) {
  if (value !== undefined) {
    test(`testEnviron has the default of ${name}`, () => assert.deepEqual(testEnviron()[name], value));
  }

  test(`testEnviron keeps what is given for ${name}`, () => {
    assert.equal(testEnviron(overrides)[name], overrides[name]);
  });
}

const CROSS_DEFAULTS: [name: string, value: string, overrides: Partial<Environ>][] = [
  ["HTTP_HOST", "foo.bar", { SERVER_NAME: "foo.bar" }],
  ["wsgi.url_scheme", "https", { HTTPS: "on" }],
  ["wsgi.url_scheme", "https", { HTTPS: "1" }],
  ["wsgi.url_scheme", "https", { HTTPS: "yes" }],
  ["wsgi.url_scheme", "http", { HTTPS: "foo" }],
  ["SERVER_PORT", "80", { HTTPS: "foo" }],
  ["SERVER_PORT", "443", { HTTPS: "on" }],
  // These are not from there; Python gives the same, where it has the variable at all.
  ["SERVER_PORT", "443", { "wsgi.url_scheme": "https" }],
  ["wsgi.url_scheme", "http", { HTTPS: "on", "wsgi.url_scheme": "http" }],
  ["HTTP_HOST", "h", { SERVER_NAME: "foo.bar", HTTP_HOST: "h" }],
  ["SCRIPT_NAME", "", { PATH_INFO: "/page" }],
  ["PATH_INFO", "", { SCRIPT_NAME: "/app" }],
  ["PATH_INFO", "/", { SCRIPT_NAME: "" }],
  ["REQUEST_URI", "/app/a%20b?c=d", { SCRIPT_NAME: "/app", PATH_INFO: "/a b", QUERY_STRING: "c=d" }],
];

for (const [name, value, overrides] of CROSS_DEFAULTS) {
  test(`testEnviron makes ${name} ${JSON.stringify(value)} of ${JSON.stringify(overrides)}`, () => {
    assert.equal(testEnviron(overrides)[name], value);
  });

  test(`testEnviron gives what the validator accepts for ${name} of ${JSON.stringify(overrides)}`, async () => {
    assert.equal(await run(validator(hello), testEnviron(overrides)), "Hello");
  });
}

test("the helpers take what PEP 3333 lets a server leave out for empty", () => {
  const here = lacking({ SCRIPT_NAME: "/app" }, "PATH_INFO", "QUERY_STRING");
  assert.equal(requestUri(here), "http://127.0.0.1/app");
  assert.equal(shiftPathInfo(here), null);
  const below = lacking({ PATH_INFO: "/x/y" }, "SCRIPT_NAME", "QUERY_STRING");
  assert.equal(requestUri(below), "http://127.0.0.1/x/y");
  assert.equal(shiftPathInfo(below), "x");
  assert.equal(below.SCRIPT_NAME, "/x");
});

test("testEnviron has an input that is empty, and streams that work", async () => {
  const { "wsgi.input": input, "wsgi.errors": errors } = testEnviron();
  assert.equal((await input.read()).length, 0);
  assert.deepEqual(await input.readlines(), []);
  errors.flush();
});

test("testEnviron makes a new environ each time, and does not change what it is given", () => {
  const overrides = { HTTPS: "on" };
  const environ = testEnviron(overrides);
  environ.PATH_INFO = "/changed";
  assert.equal(testEnviron(overrides).PATH_INFO, "/");
  assert.deepEqual(overrides, { HTTPS: "on" });
});

const BODIES: [name: string, body: TestEnvironOptions["body"], sent: string, type?: string][] = [
  ["text", "é", "é"],
  ["no text", "", ""],
  ["bytes", bytes("é"), "é"],
  ["a Blob", new Blob(["é"], { type: "text/x" }), "é", "text/x"],
  ["an encoded form", new URLSearchParams({ a: "é" }), "a=%C3%A9", "application/x-www-form-urlencoded;charset=UTF-8"],
];

for (const [name, body, sent, type] of BODIES) {
  test(`testEnviron has ${name} as its body, with length and type`, async () => {
    const environ = testEnviron({}, { body });
    assert.equal(environ.REQUEST_METHOD, "POST");
    assert.equal(environ.CONTENT_LENGTH, String(bytes(sent).length));
    assert.equal(environ.CONTENT_TYPE, type);
    assert.equal(text(await environ["wsgi.input"].read()), sent);
  });
}

test("testEnviron has a form in parts as its body, without a length", async () => {
  const form = new FormData();
  form.append("file", new File(["text"], "name.txt"));
  const environ = testEnviron({}, { body: form });
  assert.equal("CONTENT_LENGTH" in environ, false);
  assert.equal(await ((await toRequest(environ).formData()).get("file") as File).text(), "text");
});

test("testEnviron keeps what is given beside a body", async () => {
  const overrides = { REQUEST_METHOD: "PUT", CONTENT_LENGTH: "9", CONTENT_TYPE: "text/x" };
  const environ = testEnviron(overrides, { body: new URLSearchParams("a=1") });
  const { REQUEST_METHOD, CONTENT_LENGTH, CONTENT_TYPE } = environ;
  assert.deepEqual({ REQUEST_METHOD, CONTENT_LENGTH, CONTENT_TYPE }, overrides);
  assert.equal(text(await environ["wsgi.input"].read()), "a=1");
});

test("testEnviron with a body gives what the validator accepts", async () => {
  assert.equal(await run(validator(hello), testEnviron({}, { body: "body" })), "Hello");
});

test("testEnviron refuses a body of GET and HEAD, and what is no body", () => {
  for (const REQUEST_METHOD of ["GET", "HEAD"]) {
    assert.throws(() => testEnviron({ REQUEST_METHOD }, { body: "body" }), TypeError);
  }
  for (const body of [5, {}, [bytes("a")], new ReadableStream()]) {
    assert.throws(() => testEnviron({}, { body } as TestEnvironOptions), /option "body"/);
  }
});
