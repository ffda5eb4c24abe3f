/**
 * An application for a server that wants a Fetch handler.
 *
 * Run it with `deno serve --parallel examples/fetch.ts`, and open http://localhost:8000/, or with
 * `bun run examples/fetch.ts`, and open http://localhost:3000/.
 *
 * @module
 */

import { toFetch } from "../mod.ts";
import { application } from "./hello.ts";

export { application };

/** What such a server looks for. */
export default { fetch: toFetch(application) };
