/**
 * Another server mounted beside applications of one's own: the way to move from Python piece by piece.
 *
 * Start the other server, for instance with `gunicorn --bind 127.0.0.1:8001 app`. Run this one with
 * `deno run --allow-net examples/proxy.ts http://127.0.0.1:8001` or `bun run examples/proxy.ts http://127.0.0.1:8001`.
 * Open http://localhost:8000/hello for what has moved, and http://localhost:8000/ for what has not.
 *
 * @module
 */

import { once } from "node:events";
import { type IncomingMessage, request, STATUS_CODES } from "node:http";
import process from "node:process";
import { pipeline } from "node:stream/promises";
import { type Application, type HeaderList, mount, serve, toRequest } from "../mod.ts";
import { application as hello } from "./hello.ts";

// Of one connection, not of a message: RFC 9110, section 7.6.1. What Expect asks for, our server has done.
const HOP_BY_HOP = /^(?:connection|expect|keep-alive|proxy-.*|te|trailers?|transfer-encoding|upgrade)$/;

/** Takes out the headers that are not to be passed on: the hop-by-hop ones, and those that Connection names. */
function endToEnd(headers: HeaderList): HeaderList {
  const named = headers.flatMap(([name, value]) => name === "connection" ? value.toLowerCase().split(/[\s,]+/) : []);
  return headers.filter(([name]) => !HOP_BY_HOP.test(name) && !named.includes(name));
}

/** Passes requests on to the server at `origin`, which has so many milliseconds to begin its answer. */
export function proxy(origin: string, timeout = 60_000): Application {
  return async (environ, startResponse) => {
    const { HTTP_HOST: host, REMOTE_ADDR: client, REQUEST_METHOD: method, REQUEST_URI: target } = environ;
    const { headers, body, signal } = toRequest(environ); // refuses dot segments, which would lead around `mount`
    // The client's own words about proxies are not passed on.
    const passed = endToEnd([...headers]).filter(([name]) => !/^(?:x-)?forwarded/.test(name));
    passed.push(["x-forwarded-proto", environ["wsgi.url_scheme"]]);
    if (client) passed.push(["x-forwarded-for", client]);
    if (host) passed.push(["host", host], ["x-forwarded-host", host]);
    const outgoing = request(origin, {
      method,
      // Unchanged, with its escapes and the prefix of the mount, with which the links of the other server begin (RFC
      // 9110, section 7.7), but without a fragment, which is no part of it.
      path: target.replace(/#.*/, ""),
      headers: Object.fromEntries(passed),
      agent: false, // on a connection that was used before, Deno sends a request again when its client has left
      signal,
      timeout,
    });
    outgoing.useChunkedEncodingByDefault = body !== null; // for a DELETE with a body and no length, as for a POST
    let failure = "502 Bad Gateway";
    outgoing.on("timeout", () => {
      failure = "504 Gateway Timeout";
      outgoing.destroy(new Error(`it has not answered within ${timeout} ms`));
    });
    const answer = once(outgoing, "response") as Promise<[IncomingMessage]>;
    const upload = pipeline(body ?? [], outgoing).then(() => answer); // its error is that of reading `body`, too
    const upgrade = once(outgoing, "upgrade") as typeof answer; // fails below, by its status
    try {
      const [incoming] = await Promise.race([answer, upload, upgrade]);
      const { statusCode = 0, statusMessage, headersDistinct } = incoming;
      const lines = Object.entries(headersDistinct).flatMap(([name, values]) =>
        values!.map((value): [string, string] => [name, value])
      );
      startResponse(`${statusCode} ${statusMessage || STATUS_CODES[statusCode] || "Unknown"}`, endToEnd(lines));
      outgoing.setTimeout(0); // a stream may be silent for as long as it likes
      return Object.assign(incoming, { close: () => void incoming.destroy() });
    } catch (error) {
      outgoing.socket?.destroy(); // after an upgrade `outgoing` would leave it open
      const { message, status } = error as Error & { status?: number };
      if (signal.aborted || status) throw error; // the client has left, or has sent more than it may
      environ["wsgi.errors"].write(`Cannot pass ${method} ${JSON.stringify(target)} on to ${origin}: ${message}\n`);
      startResponse(failure, [["Content-Type", "text/plain"]], error);
      return [new TextEncoder().encode(`${failure}: no valid answer has come from the server behind this one\n`)];
    }
  };
}

/** The application that has moved, and the other server for everything else. */
export const application: Application = mount({
  "/hello": hello,
  "/": proxy(process.argv[2] ?? "http://127.0.0.1:8001"),
});

if (import.meta.main) serve(application);
