/**
 * A short soak of the runtime that runs the tests; `deno task soak` is the long one.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { commandOf, problemsOf, soak } from "./soak.ts";
import { RUNTIME } from "./support.ts";

test("a mix of requests, clients that leave and applications that fail leaves nothing behind", async () => {
  const findings = await soak(commandOf(RUNTIME), { seconds: 2, seed: 3 });
  assert.deepEqual(problemsOf(findings), []);
  for (const name of ["whole", "broken", "left"] as const) assert.ok(findings[name] > 0, name);
  assert.ok(findings.counts.bodies > 0);
});
