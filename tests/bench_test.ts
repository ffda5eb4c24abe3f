/**
 * What the benchmark compares has to do the same: the raw handlers and the applications answer each job alike.
 *
 * @module
 */

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Child, Client, parse, request, RUNTIME, workspace } from "./support.ts";

const { FOLDER } = workspace();
const ENVIRONMENT = { ...process.env, FILE: join(FOLDER, "file"), LOG: join(FOLDER, "log"), NO_COLOR: "1" };
const CONTENDERS = fileURLToPath(new URL("contenders.ts", import.meta.url));
const FLAGS = RUNTIME === "deno" ? ["run", "--allow-all", "--no-check"] : ["run"];

const BROWSER = ["Accept: text/html", "User-Agent: a browser", "Cookie: theme=dark; session=0123"];
const UPLOAD = { method: "PUT", body: "x".repeat(100_000), headers: ["Content-Length: 100000"] };
const JOBS: Record<string, string> = {
  hello: request("/"),
  json: request("/items", { headers: BROWSER }),
  environ: request("/", { headers: BROWSER }),
  stack: request("/app"),
  generator: request("/"),
  upload: request("/", UPLOAD),
  file: request("/"),
};

writeFileSync(ENVIRONMENT.FILE, "The text of a file.\n".repeat(10_000));

/** What has to be the same: of the environ, whose values differ, how many lines it has. */
async function answerOf(contender: string, job: string): Promise<unknown> {
  await using child = new Child(process.execPath, [...FLAGS, CONTENDERS, contender, job], ENVIRONMENT);
  const client = await Client.connect(await child.listening());
  await client.send(JOBS[job]!);
  const { status, headers, body, complete } = parse(await client.end());
  const named = (wanted: string) => headers.filter(([name]) => name === wanted);
  const said = job === "environ" ? body.split("\n").length : body;
  return { status, said, complete, type: named("content-type"), cache: named("cache-control") };
}

for (const job of Object.keys(JOBS)) {
  test(`the raw handler and the application of the benchmark answer alike: ${job}`, async () => {
    const [raw, own] = await Promise.all([answerOf("raw", job), answerOf("wsgi", job)]);
    assert.deepEqual(own, raw);
  });
}
