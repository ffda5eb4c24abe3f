/**
 * Hashes an upload of any size as it arrives, in constant memory.
 *
 * Run it with `deno run --allow-net examples/upload.ts` or `bun run examples/upload.ts`, and send it a file with
 * `curl -T file http://localhost:8000/`.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { type Application, serve } from "../mod.ts";

/** The application: reads its input in pieces, and answers what `sha256sum` would print. */
export const application: Application = async (environ, startResponse) => {
  const input = environ["wsgi.input"];
  const hash = createHash("sha256");
  let size = 0;
  for (let piece = await input.read1(); piece.length > 0; piece = await input.read1()) {
    hash.update(piece);
    size += piece.length;
  }
  startResponse("200 OK", [["Content-Type", "text/plain"]]);
  return [new TextEncoder().encode(`${hash.digest("hex")}  ${size} bytes\n`)];
};

if (import.meta.main) serve(application);
