/**
 * The blog as it is served to others. The environment says how:
 *
 * - `BLOG_FOLDER`: the folder for the database and the images, by default `blog-data`
 * - `BLOG_SECRET`: the key that signs sessions, by default one that is made at the first start, in that folder
 * - `BLOG_HOSTS`: the hosts that it answers to, by default `localhost,127.0.0.1`
 * - `PORT` and `WORKERS`: by default 8000, and no workers but this thread
 *
 * Run it with `deno run -A examples/blog/main.ts` or `bun run examples/blog/main.ts`, and open http://localhost:8000/.
 *
 * @module
 */

import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import {
  accessLog,
  compress,
  errorPage,
  health,
  pipeline,
  proxyFix,
  requestId,
  serve,
  trustedHosts,
} from "../../mod.ts";
import { blog } from "./app.ts";

const {
  BLOG_FOLDER: folder = "blog-data",
  BLOG_SECRET,
  BLOG_HOSTS = "localhost,127.0.0.1",
  PORT = "8000",
  WORKERS,
} = process.env;

/** Reads the key that signs sessions, or makes it at the first start. */
function readSecret(): string {
  const file = join(folder, "secret");
  mkdirSync(folder, { recursive: true });
  if (!existsSync(file)) writeFileSync(file, randomBytes(32).toString("base64url"), { flag: "wx", mode: 0o600 });
  return readFileSync(file, "utf8");
}

/** The blog, with what a server for others needs around it. The first is the outermost. */
export const application = pipeline(
  blog({ folder, secret: BLOG_SECRET || readSecret() }),
  health, // asked by those who name no host, and not logged
  proxyFix, // before all that looks at the client or the host
  requestId,
  accessLog,
  compress,
  errorPage, // for what is refused before the blog, which has its own page
  (app) => trustedHosts(app, { hosts: BLOG_HOSTS.split(",") }),
);

if (import.meta.main) {
  serve(application, { port: Number(PORT), workers: WORKERS ? Number(WORKERS) : undefined });
}
