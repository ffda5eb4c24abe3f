/**
 * The option `scriptName`: the prefix under which an application is reached.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Application, serve, toEnviron, toFetch } from "../mod.ts";
import { ask, asked, assertRefused, bytes, environOf, native, ok, recorder, request, RUNTIME } from "./support.ts";

const PREFIXES: { prefix: string; sent: string; script: string; path: string }[] = [
  { prefix: "/app", sent: "/app/x/y", script: "/app", path: "/x/y" },
  { prefix: "/app", sent: "/app", script: "/app", path: "" },
  { prefix: "/app", sent: "/app?q", script: "/app", path: "" },
  { prefix: "/app", sent: "/app/", script: "/app", path: "/" },
  { prefix: "/app", sent: "/app//x", script: "/app", path: "//x" },
  { prefix: "/app", sent: "/app/app", script: "/app", path: "/app" },
  { prefix: "/app", sent: "/%61pp/x", script: "/app", path: "/x" },
  { prefix: "/app", sent: "http://other.example/app/x", script: "/app", path: "/x" },
  { prefix: "/a/b", sent: "/a/b/c", script: "/a/b", path: "/c" },
  { prefix: "/a b", sent: "/a%20b/c", script: "/a b", path: "/c" },
  { prefix: "/a%20b", sent: "/a%20b/c", script: "/a b", path: "/c" },
  { prefix: "/café", sent: "/caf%C3%A9/x", script: native("/café"), path: "/x" },
  { prefix: "/caf%C3%A9", sent: "/caf%c3%a9/x", script: native("/café"), path: "/x" },
  { prefix: "/你", sent: native("/你/é"), script: native("/你"), path: native("/é") },
  { prefix: "", sent: "/app/x", script: "", path: "/app/x" },
];

for (const { prefix, sent, script, path } of PREFIXES) {
  test(`with scriptName "${prefix}" the target ${JSON.stringify(sent)} has the path "${path}"`, async () => {
    const environ = await environOf(request(sent), { scriptName: prefix });
    assert.equal(environ.SCRIPT_NAME, script);
    assert.equal(environ.PATH_INFO, path);
  });
}

test("scriptName leaves REQUEST_URI and QUERY_STRING alone", async () => {
  const environ = await environOf(request("/%61pp/caf%C3%A9?/app/q"), { scriptName: "/app" });
  assert.equal(environ.REQUEST_URI, "/%61pp/caf%C3%A9?/app/q");
  assert.equal(environ.QUERY_STRING, "/app/q");
  assert.equal(environ.PATH_INFO, native("/café"));
});

for (const sent of ["/", "/application", "/ap", "/App/x", "/x/app", "//app/x", "/?/app/", "/app%zz/x", "/appx/../y"]) {
  test(`with scriptName "/app" the target ${sent} is answered with 404`, async () => {
    assertRefused(await ask(request(sent), { scriptName: "/app" }), 404);
  });
}

test("a path that dots lead out of scriptName is inside on Deno, and answered with 404 on Bun", async () => {
  const outcome = await ask(request("/app/../x"), { scriptName: "/app" });
  if (RUNTIME === "bun") return assertRefused(outcome, 404);
  assert.equal(outcome.environ!.PATH_INFO, "/../x");
});

for (const wrong of ["app", "app/x", "/", "//", "/app/", "/a?b", "/a#b", "/app%2F", "/\ud800", 5, null, ["/app"]]) {
  test(`scriptName ${JSON.stringify(wrong)} throws a TypeError that names it`, () => {
    const options = { scriptName: wrong as string };
    const expected = { name: "TypeError", message: /scriptName/ };
    assert.throws(() => toFetch(recorder().app, options), expected);
    assert.throws(() => toEnviron(new Request("http://localhost/app"), options), expected);
    assert.throws(() => serve(recorder().app, { ...options, port: 0 }), expected);
  });
}

test("the option scriptName moves a prefix from PATH_INFO to SCRIPT_NAME, and nothing else is served", async () => {
  const app: Application = (environ, startResponse) => {
    ok(startResponse);
    return [bytes(`${environ.SCRIPT_NAME}|${environ.PATH_INFO}|${environ.REQUEST_URI}`)];
  };
  const cases: [scriptName: string, path: string, expected: string | 404][] = [
    ["/app", "/app/item?q", "/app|/item|/app/item?q"],
    ["/app", "/app/", "/app|/|/app/"],
    ["/app", "/app", "/app||/app"],
    ["/app", "/app?q", "/app||/app?q"],
    ["/app", "/%61pp/item", "/app|/item|/%61pp/item"],
    ["/app", "/apple", 404],
    ["/app", "/", 404],
    ["/app", "/other/app", 404],
    ["/a/b", "/a/b/c", "/a/b|/c|/a/b/c"],
    ["/a/b", "/a%2Fb/c", "/a/b|/c|/a%2Fb/c"],
    ["/caf\xe9", "/caf%C3%A9/x", "/caf\xc3\xa9|/x|/caf%C3%A9/x"],
    ["/caf%C3%A9", "/caf%C3%A9/x", "/caf\xc3\xa9|/x|/caf%C3%A9/x"],
    ["", "/app", "|/app|/app"],
  ];
  for (const [scriptName, path, expected] of cases) {
    const response = await asked(app, { scriptName }).ask(path);
    if (expected === 404) assert.equal(response.status, 404, path);
    else assert.equal(await response.text(), expected);
  }
});
