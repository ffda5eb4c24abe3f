/**
 * Sends an event a second, until the client leaves or the server stops.
 *
 * Run it with `deno run --allow-net examples/stream.ts` or `bun run examples/stream.ts`, listen with
 * `curl -N http://localhost:8000/`, leave with Ctrl-C, and see in the terminal of the server what happens. Ctrl-C there
 * stops the server, which ends the streams that are open.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { type Application, serve } from "../mod.ts";

/** The application: an async generator, which the server asks for the next chunk when the one before has left. */
export const application: Application = async function* (environ, startResponse) {
  const client = `${environ.REMOTE_ADDR}:${environ.REMOTE_PORT}`;
  startResponse("200 OK", [["Content-Type", "text/event-stream"], ["Cache-Control", "no-cache"]]);
  console.log(`${client} listens`);
  let count = 0;
  const event = () => new TextEncoder().encode(`id: ${++count}\ndata: ${new Date().toISOString()}\n\n`);
  try {
    yield event();
    // After the first chunk: before it, Deno prints a warning when the signal of a client is read.
    const { signal, stopping } = environ["fetch.context"]!;
    const end = AbortSignal.any([signal, stopping]);
    while (await setTimeout(1000, true, { signal: end }).catch(() => false)) yield event();
  } finally {
    console.log(`${client} is gone after ${count} events`);
  }
};

if (import.meta.main) serve(application);
