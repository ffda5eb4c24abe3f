/**
 * `basicAuth`: a password for an application.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { basicAuth, type BasicAuthOptions, runApplication, testEnviron } from "../mod.ts";
import { basic, between, inside, shown, telling, through, USERS } from "./middleware_support.ts";
import { answer, exchange, native, request, start, text } from "./support.ts";

/** Who is let in, or the status with which the request was refused. */
async function userOf(options: BasicAuthOptions, authorization?: string): Promise<string> {
  const variables = authorization === undefined ? {} : { HTTP_AUTHORIZATION: authorization };
  const { status, environ } = await through((app) => basicAuth(app, options), variables);
  if (!environ) return status;
  assert.equal(environ.AUTH_TYPE, "Basic");
  return String(environ.REMOTE_USER);
}

const UNAUTHORIZED = "401 Unauthorized";

for (
  const { what, authorization, user } of [
    { what: "the right password", authorization: basic("cook:salt"), user: "cook" },
    { what: "a scheme in lower case", authorization: basic("cook:salt", "basic "), user: "cook" },
    { what: "a scheme in upper case", authorization: basic("cook:salt", "BASIC "), user: "cook" },
    { what: "several spaces", authorization: basic("cook:salt", "Basic    "), user: "cook" },
    { what: "a password with colons", authorization: basic("colon:a:b:c"), user: "colon" },
    { what: "no user, with a password", authorization: basic(":nobody's"), user: "" },
    { what: "an empty password", authorization: basic("guest:"), user: "guest" },
    {
      what: "other scripts, as a native string",
      authorization: basic("Zoë 料理:pässwörd 塩"),
      user: native("Zoë 料理"),
    },
    { what: "a user named constructor", authorization: basic("constructor:real"), user: "constructor" },
    { what: "a wrong password", authorization: basic("cook:sugar"), user: UNAUTHORIZED },
    { what: "a longer password", authorization: basic("cook:salty"), user: UNAUTHORIZED },
    { what: "a shorter password", authorization: basic("cook:sal"), user: UNAUTHORIZED },
    { what: "no password", authorization: basic("cook:"), user: UNAUTHORIZED },
    { what: "a password in upper case", authorization: basic("cook:SALT"), user: UNAUTHORIZED },
    { what: "a user in upper case", authorization: basic("COOK:salt"), user: UNAUTHORIZED },
    { what: "the password of somebody else", authorization: basic("cook:a:b:c"), user: UNAUTHORIZED },
    { what: "an unknown user", authorization: basic("thief:salt"), user: UNAUTHORIZED },
    { what: "an unknown user without a password", authorization: basic("thief:"), user: UNAUTHORIZED },
    { what: "neither user nor password", authorization: basic(":"), user: UNAUTHORIZED },
    { what: "a user named __proto__", authorization: basic("__proto__:"), user: UNAUTHORIZED },
    { what: "a user named toString", authorization: basic("toString:"), user: UNAUTHORIZED },
    { what: "a user named hasOwnProperty", authorization: basic("hasOwnProperty:undefined"), user: UNAUTHORIZED },
    { what: "undefined as a password", authorization: basic("thief:undefined"), user: UNAUTHORIZED },
    { what: "no header", authorization: undefined, user: UNAUTHORIZED },
    { what: "an empty header", authorization: "", user: UNAUTHORIZED },
    { what: "the scheme alone", authorization: "Basic", user: UNAUTHORIZED },
    { what: "the scheme and a space", authorization: "Basic ", user: UNAUTHORIZED },
    { what: "no space", authorization: basic("cook:salt", "Basic"), user: UNAUTHORIZED },
    { what: "another scheme", authorization: basic("cook:salt", "Bearer "), user: UNAUTHORIZED },
    { what: "a scheme that begins alike", authorization: basic("cook:salt", "Basics "), user: UNAUTHORIZED },
    { what: "something before the scheme", authorization: basic("cook:salt", "x Basic "), user: UNAUTHORIZED },
    { what: "no colon", authorization: basic("cook"), user: UNAUTHORIZED },
    { what: "no Base64", authorization: "Basic cook:salt", user: UNAUTHORIZED },
    { what: "garbage in Base64", authorization: `${basic("cook:salt")}!`, user: UNAUTHORIZED },
    { what: "too much padding", authorization: `${basic("cook:salt")}===`, user: UNAUTHORIZED },
    { what: "two credentials", authorization: `${basic("cook:salt")}, ${basic("cook:salt")}`, user: UNAUTHORIZED },
    { what: "something behind", authorization: `${basic("cook:salt")} x`, user: UNAUTHORIZED },
    { what: "no UTF-8", authorization: basic(Uint8Array.of(0x63, 0xff, 0x3a, 0x73)), user: UNAUTHORIZED },
    { what: "a byte order mark before the user", authorization: basic("\ufeffcook:salt"), user: UNAUTHORIZED },
    { what: "an overlong colon", authorization: basic(Uint8Array.of(0x63, 0xc0, 0xba, 0x73)), user: UNAUTHORIZED },
    { what: "Latin-1", authorization: basic(Buffer.from("Zoë:x", "latin1")), user: UNAUTHORIZED },
    { what: "a NUL behind the user", authorization: basic("cook\0:salt"), user: UNAUTHORIZED },
    { what: "a NUL behind the password", authorization: basic("cook:salt\0"), user: UNAUTHORIZED },
    { what: "a line break", authorization: basic("cook:salt\n"), user: UNAUTHORIZED },
  ]
) {
  test(`basicAuth ${user === UNAUTHORIZED ? "refuses" : "lets in"} ${what}`, async () => {
    assert.equal(await userOf({ users: USERS }, authorization), user);
  });
}

for (const credentials of ["cook\0:salt", "cook:sa\nlt", "cook\x1f:salt", "cook:salt\x7f", "co\rok:salt"]) {
  test(`basicAuth checks no control characters: ${shown(credentials)}`, async () => {
    assert.equal(await userOf({ check: () => true }, basic(credentials)), UNAUTHORIZED);
  });
}

for (
  const credentials of [
    Uint8Array.of(0x63, 0xff, 0x3a, 0x73),
    Buffer.from("Zoë:x", "latin1"),
    Buffer.from("\xed\xa0\x80:x", "latin1"),
  ]
) {
  test(`basicAuth checks nothing that is no UTF-8: ${shown(Buffer.from(credentials).toString("latin1"))}`, async () => {
    assert.equal(await userOf({ check: () => true }, basic(credentials)), UNAUTHORIZED);
  });
}

for (const password of ["[object Object]", "undefined", "", "null"]) {
  test(`basicAuth without any users refuses the password ${JSON.stringify(password)}`, async () => {
    assert.equal(await userOf({ users: {} }, basic(`__proto__:${password}`)), UNAUTHORIZED);
    assert.equal(await userOf({ users: {} }, basic(`constructor:${password}`)), UNAUTHORIZED);
  });
}

test("basicAuth takes a user named __proto__ for one of its users", async () => {
  assert.equal(await userOf({ users: JSON.parse('{"__proto__": "real"}') }, basic("__proto__:real")), "__proto__");
});

test("basicAuth uses the users as they were when it was called", async () => {
  const users: Record<string, string> = { cook: "salt" };
  const app = between((app) => basicAuth(app, { users }), telling(() => ""));
  users.cook = "";
  const environ = testEnviron({ HTTP_AUTHORIZATION: basic("cook:") });
  assert.equal((await runApplication(app, environ)).status, UNAUTHORIZED);
});

test("basicAuth gives check the user and the password as text", async () => {
  const given: string[] = [];
  const check = (...pair: [string, string]) => given.push(...pair) > 0;
  assert.equal(await userOf({ check }, basic("Zoë:a:塩 ")), native("Zoë"));
  assert.deepEqual(given, ["Zoë", "a:塩 "]);
});

test("basicAuth does not call check without a user and a password", async () => {
  const check = () => assert.fail("check was called");
  assert.equal(await userOf({ check }), UNAUTHORIZED);
  assert.equal(await userOf({ check }, "Bearer x"), UNAUTHORIZED);
  assert.equal(await userOf({ check }, basic("no colon")), UNAUTHORIZED);
});

for (
  const { what, check, user } of [
    { what: "true", check: () => true, user: "cook" },
    { what: "a promise of true", check: () => Promise.resolve(true), user: "cook" },
    { what: "false", check: () => false, user: UNAUTHORIZED },
    { what: "a promise of false", check: () => Promise.resolve(false), user: UNAUTHORIZED },
    ...["1", '"true"', "{}", "[]", '"cook"', "null", "0"].flatMap((value) => [
      { what: value, check: () => JSON.parse(value), user: UNAUTHORIZED },
      { what: `a promise of ${value}`, check: () => Promise.resolve(JSON.parse(value)), user: UNAUTHORIZED },
    ]),
  ]
) {
  test(`basicAuth ${user === UNAUTHORIZED ? "refuses" : "lets in"} when check gives ${what}`, async () => {
    assert.equal(await userOf({ check }, basic("cook:salt")), user);
  });
}

for (
  const { what, check } of [
    {
      what: "throws",
      check: (): boolean => {
        throw new Error("The database is away");
      },
    },
    { what: "rejects", check: () => Promise.reject<boolean>(new Error("The database is away")) },
  ]
) {
  test(`basicAuth refuses everybody when check ${what}, and the failure is reported`, async () => {
    let calls = 0;
    const app = between((app) => basicAuth(app, { check }), telling(() => `${++calls}`));
    const headers = { Authorization: basic("cook:salt") };
    const { response, errors } = await answer(app, new Request("http://test.example/", { headers }));
    assert.equal(response.status, 500);
    assert.equal(response.headers.get("WWW-Authenticate"), null);
    assert(!(await response.text()).includes("database"));
    assert.match(errors.text, /The database is away/);
    assert(!errors.text.includes("salt"), "no password in the log");
    assert.equal(calls, 0);
  });
}

for (
  const { what, realm, challenge } of [
    { what: "by default", realm: undefined, challenge: 'Basic realm="Restricted", charset="UTF-8"' },
    { what: "with a realm", realm: "The Kitchen", challenge: 'Basic realm="The Kitchen", charset="UTF-8"' },
    { what: "with quotes", realm: 'A "b" \\c', challenge: 'Basic realm="A \\"b\\" \\\\c", charset="UTF-8"' },
    { what: "with an empty realm", realm: "", challenge: 'Basic realm="", charset="UTF-8"' },
  ]
) {
  test(`basicAuth sends its challenge ${what}`, async () => {
    const { headers, body } = await through((app) => basicAuth(app, { realm, users: {} }));
    assert.deepEqual(headers, [["Content-Type", "text/plain; charset=utf-8"], ["WWW-Authenticate", challenge]]);
    assert.equal(text(body), "Unauthorized\n");
  });
}

for (const realm of ["Küche", "a\r\nX: y", "a\tb", "a\x7f", "料理", "a\n"]) {
  test(`basicAuth refuses the realm ${shown(realm)}`, () => {
    assert.throws(() => basicAuth(() => [], { realm, users: {} }), { name: "TypeError", message: /"realm"/ });
  });
}

for (
  const { what, options } of [
    { what: "neither users nor check", options: {} },
    { what: "a realm alone", options: { realm: "Kitchen" } },
    { what: "both users and check", options: { users: { cook: "salt" }, check: () => true } },
    { what: "both, though there are no users", options: { users: {}, check: () => true } },
    { what: "nothing", options: JSON.parse("null") },
    { what: "a check that is no function", options: JSON.parse('{"check": true}') },
  ]
) {
  test(`basicAuth refuses ${what} for options`, () => {
    assert.throws(() => basicAuth(() => [], options), TypeError);
  });
}

test("basicAuth overrides a REMOTE_USER that was there before", async () => {
  const variables = { REMOTE_USER: "admin", AUTH_TYPE: "Digest", HTTP_AUTHORIZATION: basic("cook:salt") };
  const { REMOTE_USER, AUTH_TYPE } = await inside((app) => basicAuth(app, { users: USERS }), variables);
  assert.deepEqual([REMOTE_USER, AUTH_TYPE], ["cook", "Basic"]);
});

test("basicAuth lets users of other scripts in over the wire", async () => {
  await using server = start(
    between((app) => basicAuth(app, { users: USERS }), telling((environ) => String(environ.REMOTE_USER))),
  );
  const headers = [`Authorization: ${basic("Zoë 料理:pässwörd 塩")}`];
  const { body } = await exchange(server, request("/", { headers }));
  assert.equal(Buffer.from(body, "latin1").toString(), native("Zoë 料理"));
});
