/**
 * `toNativeString` and `fromNativeString`: text and the bytes that stand for it.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { errorPage, fromNativeString, runApplication, testEnviron, toEnviron, toNativeString } from "../mod.ts";
import { answer, HERE, ok } from "./support.ts";

const TEXTS: [text: string, native: string][] = [
  ["", ""],
  ["/a b?\0\n\x7f", "/a b?\0\n\x7f"],
  ["é", "\xc3\xa9"],
  ["\ufeff€", "\xef\xbb\xbf\xe2\x82\xac"],
  ["😀", "\xf0\x9f\x98\x80"],
];

for (const [text, native] of TEXTS) {
  test(`toNativeString makes ${JSON.stringify(native)} of ${JSON.stringify(text)}, and fromNativeString the text again`, () => {
    assert.equal(toNativeString(text), native);
    assert.equal(fromNativeString(native), text);
  });
}

test("fromNativeString gives the text of a path that a client has sent", () => {
  assert.equal(fromNativeString(toEnviron(new Request(`${HERE}caf%C3%A9`)).PATH_INFO), "/café");
});

test("toNativeString gives what a header can have", async () => {
  const { response } = await answer((_environ, startResponse) => {
    ok(startResponse, ["X-Name", toNativeString("café")]);
    return [];
  });
  assert.equal(response.headers.get("X-Name"), "caf\xc3\xa9");
});

for (const native of ["\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "caf\xe9"]) {
  test(`fromNativeString throws an error with the status 400 for ${JSON.stringify(native)}, which is not UTF-8`, () => {
    assert.throws(() => fromNativeString(native), { name: "TypeError", status: 400, message: /^Cannot decode "/ });
  });
}

test("fromNativeString throws an error without a status for text, which is the mistake of the program", () => {
  for (const text of ["€", "😀", "caf\u0119"]) {
    assert.throws(() => fromNativeString(text), (error) => error instanceof RangeError && !("status" in error));
  }
});

test("a path that is not UTF-8 is answered with 400 where its text is asked for, and not reported", async () => {
  const app = ({ PATH_INFO }: { PATH_INFO: string }) => [new TextEncoder().encode(fromNativeString(PATH_INFO))];
  const { response, errors } = await answer(app, new Request(`${HERE}%FF`));
  assert.equal(response.status, 400);
  assert.equal(errors.text, "");
  const result = await runApplication(errorPage(app), testEnviron({ PATH_INFO: "/\xff" }));
  assert.equal(result.status, "400 Bad Request");
  assert.equal(result.errors, "");
});
