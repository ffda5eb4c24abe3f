/**
 * A program that serves for others: all middleware but the validator, in an order that works.
 *
 * The configurations beside it run it with its port as its argument, `deno run --allow-net --allow-read app.ts 8000` or
 * `bun run app.ts 8000`. Name the host to see that it serves: `curl -H "Host: example.com" http://localhost:8000/`.
 *
 * @module
 */

import process from "node:process";
import * as wsgi from "../../mod.ts";
import { application as hello } from "../hello.ts";

export const application: wsgi.Application = wsgi.pipeline(
  wsgi.mount({
    "/": hello,
    "/files": wsgi.files(new URL("..", import.meta.url)),
    "/admin": wsgi.basicAuth(hello, { realm: "admin", check: () => false }), // until there are users
  }),
  wsgi.health,
  wsgi.proxyFix,
  wsgi.requestId,
  (app) => wsgi.accessLog(app, { format: "json" }),
  wsgi.secureHeaders,
  (app) => wsgi.cors(app, { origin: "https://app.example.com" }),
  wsgi.compress,
  wsgi.errorPage,
  (app) => wsgi.trustedHosts(app, { hosts: ["example.com", ".example.com"] }),
  (app) => wsgi.limitConcurrency(app, { max: 100, queue: 1000 }),
  (app) => wsgi.limitBody(app, { maxBodySize: 10 * 1024 * 1024 }),
  wsgi.conditional,
  (app) => wsgi.timeout(app, { milliseconds: 30_000 }),
);

if (import.meta.main) wsgi.serve(application, { port: Number(process.argv[2] ?? 8000), shutdownDelay: 5000 });
