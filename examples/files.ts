/**
 * Serves a folder, and lists it, as Python's `http.server` does: the present folder at port 8000, or those of the command
 * line.
 *
 * Run it with `deno run --allow-net --allow-read examples/files.ts . 8000` or `bun run examples/files.ts . 8000`, and open
 * http://localhost:8000/. Deno reads no file without `--allow-read`.
 *
 * @module
 */

import { accessLog, type Application, compress, files, pipeline, serve } from "../mod.ts";

/** The folder, compressed on its way where no compressed twin of a file is there, and logged. */
export function application(folder = "."): Application {
  return pipeline(files(folder, { listing: true }), accessLog, compress);
}

if (import.meta.main) {
  const [, , folder, port = 8000] = process.argv;
  serve(application(folder), { port: Number(port) });
}
