/**
 * `pipeline`: middleware in the order in which a request passes.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type ApplicationLike,
  type Middleware,
  pipeline,
  runApplication,
  type StartResponse,
  testEnviron,
  toFetch,
  validator,
} from "../mod.ts";
import { hello, HERE, text } from "./support.ts";
import { Instance, STREAM, THROUGH, wrong } from "./validator_support.ts";

/** A middleware that leaves its mark in the environ on the way in, and in the headers on the way out. */
function marking(mark: string): Middleware {
  return (app) => (environ, startResponse) => {
    environ["example.marks"] = `${environ["example.marks"] ?? ""}${mark}`;
    const begin: StartResponse = (status, headers, error) =>
      startResponse(status, [...headers, ["X-Mark", mark]], error);
    return wrong<Application>(app)(environ, begin);
  };
}

test("pipeline puts the first middleware outermost", async () => {
  let marks: unknown;
  const app: Application = (environ, startResponse) => {
    marks = environ["example.marks"];
    return hello(environ, startResponse);
  };
  const stack = pipeline(app, validator, marking("a"), validator, marking("b"), validator, marking("c"), validator);
  const { headers } = await runApplication(stack, testEnviron());
  assert.equal(marks, "abc");
  assert.deepEqual(headers.slice(1), [["X-Mark", "c"], ["X-Mark", "b"], ["X-Mark", "a"]]);
});

test("pipeline without middleware is the application", async () => {
  assert.equal(text((await runApplication(pipeline(validator(hello)), testEnviron())).body), "Hello");
});

const LIKES: Record<string, ApplicationLike> = {
  "a function": STREAM,
  "a class": Instance,
  "an object": { handle: STREAM },
};

for (const [what, like] of Object.entries(LIKES)) {
  test(`pipeline takes ${what}, with middleware and without`, async () => {
    const { body } = await runApplication(like, testEnviron());
    for (const stack of [pipeline(like), pipeline(like, THROUGH), pipeline(like, validator, THROUGH, validator)]) {
      assert.deepEqual((await runApplication(stack, testEnviron())).body, body);
    }
  });
}

test("pipeline gives every middleware a plain function, once, from the inside to the outside", () => {
  const calls: string[] = [];
  const noting = (name: string): Middleware => (app) => {
    calls.push(`${name} ${typeof app}`);
    return wrong(app);
  };
  const stack = pipeline({ handle: STREAM }, noting("outer"), noting("inner"));
  assert.deepEqual(calls, ["inner function", "outer function"]);
  assert.equal(typeof stack, "function");
});

test("pipeline refuses at once a value that is not an application", () => {
  assert.throws(() => pipeline(wrong({})), TypeError);
  assert.throws(() => pipeline(wrong(undefined), validator), TypeError);
});

test("a pipeline is served over Fetch as any application", async () => {
  const response = await toFetch(pipeline(STREAM, validator, THROUGH, validator))(new Request(HERE));
  assert.equal(await response.text(), "one two three");
});
