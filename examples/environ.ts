/**
 * Answers every request with all environ variables, sorted, one `key: value` a line.
 *
 * Run it with `deno run --allow-net examples/environ.ts` or `bun run examples/environ.ts`, and open
 * http://localhost:8000/.
 *
 * @module
 */

import { type Application, serve } from "../mod.ts";

/** The application: a function that gets the environ, begins a response, and returns the body. */
export const application: Application = (environ, startResponse) => {
  const lines = Object.keys(environ).sort().map((key) => `${key}: ${show(environ[key])}\n`);
  startResponse("200 OK", [["Content-Type", "text/plain; charset=utf-8"]]);
  return [new TextEncoder().encode(lines.join(""))];
};

/** Shows text as it is, and an object by the name of its class. */
function show(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "function" || (typeof value === "object" && !Array.isArray(value))) {
    return `<${value?.constructor.name}>`;
  }
  return JSON.stringify(value);
}

if (import.meta.main) serve(application);
