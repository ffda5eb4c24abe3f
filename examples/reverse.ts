/**
 * A middleware around the application of `environ.ts`: it reverses the text of every response.
 *
 * Run it with `deno run --allow-net examples/reverse.ts` or `bun run examples/reverse.ts`, and open
 * http://localhost:8000/.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import {
  application as callable,
  type ApplicationLike,
  type ApplicationObject,
  type Environ,
  type HeaderList,
  type ResponseBody,
  serve,
  type StartResponse,
} from "../mod.ts";
import { application as environ } from "./environ.ts";

/** To the application inside this is the server, to the server it is the application. */
export class Reverseware implements ApplicationObject {
  readonly #app;

  constructor(app: ApplicationLike) {
    this.#app = callable(app);
  }

  async handle(environ: Environ, startResponse: StartResponse): Promise<ResponseBody> {
    const chunks: Uint8Array[] = [];
    let reverses = false;
    const body = await this.#app(environ, (status, headers, error) => {
      const write = startResponse(status, headers, error);
      reverses = isReversible(headers);
      return async (chunk) => reverses ? void chunks.push(new Uint8Array(chunk)) : await write(chunk);
    });
    return {
      async *[Symbol.asyncIterator]() {
        for await (const chunk of body) {
          if (reverses) chunks.push(new Uint8Array(chunk));
          // What comes last leaves first, so there is nothing to send yet; an empty chunk says so to the server.
          yield reverses ? new Uint8Array(0) : chunk;
        }
        if (reverses) yield reverse(Buffer.concat(chunks));
      },
      close: () => body.close?.(),
    };
  }
}

/** Whether a body is text as it stands. Compressed text is not, a part of it neither, and events never end. */
function isReversible(headers: HeaderList): boolean {
  const values = new Map(headers.map(([name, value]) => [name.toLowerCase(), value]));
  return /^text\/(?!event-stream)/i.test(values.get("content-type") ?? "") &&
    !values.has("content-encoding") && !values.has("content-range");
}

/** Reverses UTF-8 character by character: it keeps its length, so that Content-Length stays true, to HEAD as well. */
function reverse(text: Uint8Array): Uint8Array {
  const reversed = new Uint8Array(text.length);
  let end = text.length;
  for (let at = 0; at < text.length;) {
    const start = at++;
    while ((text[at] ?? 0) >> 6 === 0b10) at++; // the bytes of a character after its first
    end -= at - start;
    reversed.set(text.subarray(start, at), end);
  }
  return reversed;
}

/** The application that prints its environ, reversed. */
export const application = new Reverseware(environ);

if (import.meta.main) serve(application);
