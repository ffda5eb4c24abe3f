/**
 * The shortest program.
 *
 * Run it with `deno run --allow-net examples/hello.ts` or `bun run examples/hello.ts`, and open http://localhost:8000/.
 *
 * @module
 */

import { type Application, serve } from "../mod.ts";

/** Answers every request with a greeting. */
export const application: Application = (_environ, startResponse) => {
  startResponse("200 OK", [["Content-Type", "text/plain; charset=utf-8"]]);
  return [new TextEncoder().encode("Hello, world!\n")];
};

if (import.meta.main) serve(application);
