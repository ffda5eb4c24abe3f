/**
 * Serves a folder, the present one or that of the command line, with an access log.
 *
 * Run it with `deno run --allow-net --allow-read examples/files.ts folder` or `bun run examples/files.ts folder`, and
 * open http://localhost:8000/.
 *
 * @module
 */

import { accessLog, type Application, compress, files, pipeline, serve } from "../mod.ts";

/** The folder, compressed on its way where no compressed twin of a file is there, and logged. */
export function application(folder = "."): Application {
  return pipeline(files(folder), accessLog, compress);
}

if (import.meta.main) serve(application(process.argv[2]));
