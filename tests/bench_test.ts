/**
 * What the benchmark compares has to do the same: the contenders answer each job alike. What it publishes has to be what
 * it measures.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import * as wsgi from "../mod.ts";
import { JOBS, MARKED, reportsOf, type Run } from "./bench.ts";
import { MIDDLEWARE } from "./contenders.ts";
import { answer, Child, Client, parse, request, RUNTIME, workspace } from "./support.ts";

const { FOLDER } = workspace();
const ROOT = fileURLToPath(new URL("..", import.meta.url));
const ENVIRONMENT = { ...process.env, FOLDER, LOG: join(FOLDER, "log"), NO_COLOR: "1" };
const FLAGS = RUNTIME === "deno" ? ["run", "--allow-all", "--no-check"] : ["run"];

const BROWSER = ["Accept: text/html", "User-Agent: a browser", "Cookie: theme=dark; session=0123"];
const UPLOAD = { method: "PUT", body: "x".repeat(100_000), headers: ["Content-Length: 100000"] };
const FILE = request("/large.txt");
const ANSWERS: [job: string, asks: string, ...contenders: string[]][] = [
  ["hello", request("/"), "raw", "gather", "wsgi"],
  ["json", request("/items", { headers: BROWSER }), "raw", "gather", "wsgi"],
  ["environ", request("/", { headers: BROWSER }), "raw", "gather", "wsgi"],
  ["stack", request("/app"), "raw", "wsgi"],
  ["generator", request("/"), "raw", "flushed", "wsgi"],
  ["upload", request("/", UPLOAD), "raw", "wsgi"],
  ["upload by blocks", request("/", UPLOAD), "raw", "wsgi"],
  ["files", FILE, "raw", "wsgi"],
  ["file", FILE, "raw", "wsgi"],
];

writeFileSync(join(FOLDER, "large.txt"), "The text of a file.\n".repeat(10_000));

/** What has to be the same: of the environ, whose values differ, how many lines it has. */
async function answerOf(contender: string, options: { job: string; asks: string }): Promise<unknown> {
  const { job, asks } = options;
  const program = [join(ROOT, "tests/contenders.ts"), contender, job];
  await using child = new Child(process.execPath, [...FLAGS, ...program], ENVIRONMENT);
  const client = await Client.connect(await child.listening());
  await client.send(asks);
  const { status, headers, body, complete } = parse(await client.end());
  const named = (wanted: string) => headers.filter(([name]) => name === wanted);
  const said = job === "environ" ? body.split("\n").length : body;
  return { status, said, complete, type: named("content-type"), cache: named("cache-control") };
}

for (const [job, asks, ...contenders] of ANSWERS) {
  test(`the contenders of the benchmark answer alike: ${job}`, async () => {
    const [first, ...others] = await Promise.all(contenders.map((contender) => answerOf(contender, { job, asks })));
    for (const other of others) assert.deepEqual(other, first);
  });
}

for (const job of ["file by stream", "file by read"]) {
  test(`the application of the benchmark sends the same file in another way: ${job}`, async () => {
    const [first, other] = await Promise.all(["file", job].map((job) => answerOf("wsgi", { job, asks: FILE })));
    assert.deepEqual(other, first);
  });
}

for (const [name, make] of Object.entries(MIDDLEWARE)) {
  test(`a middleware of the benchmark lets the request through: ${name}`, async () => {
    const headers = { "Authorization": "Basic dXNlcjpwYXNzd29yZA==", "Host": "www.example.com" };
    const { response } = await answer(make(wsgi), new Request("http://www.example.com/app", { headers }));
    assert.equal(await response.text(), "Hello, world!");
  });
}

/** The rows of all tables in a text, without what was measured: their first cells. */
function rowsOf(text: string): string[] {
  return [...text.matchAll(/^\| *([^|]*?) *\|/gm)].map(([, name]) => name!).filter((name) => !/^-+$/.test(name));
}

test("the figures in the documents are those of all jobs of the benchmark", () => {
  const sample = { speed: 1, cost: 1, memory: 1 };
  const run: Run = { machine: "", versions: [], pace: "", jobs: {} };
  for (const [job, { contenders }] of Object.entries(JOBS)) {
    const samples = Object.fromEntries(contenders.map((contender) => [contender, [sample]]));
    run.jobs[job] = { deno: samples, bun: samples };
  }
  for (const [path, report] of Object.entries(reportsOf(run))) {
    const [written = ""] = MARKED.exec(readFileSync(join(ROOT, path), "utf8")) ?? [];
    assert.deepEqual([...new Set(rowsOf(written))], [...new Set(rowsOf(report))], path);
  }
});

test("the benchmark says how to install what it misses, and goes on without that", async () => {
  const empty = join(FOLDER, "empty");
  mkdirSync(empty);
  const environment = { ...ENVIRONMENT, PATH: empty, TMPDIR: empty };
  await using child = new Child(process.execPath, [...FLAGS, join(ROOT, "tests/bench.ts")], environment);
  const { code, output, errors } = await child.ended();
  assert.match(errors, /^Measuring without what `apt-get install wrk curl gunicorn [^`]*` installs$/m);
  assert.match(errors, /^Measuring without hono, [^]* which npm could not fetch$/m);
  assert.match(output, /^\| job +\| against /m);
  assert.equal(code, 0);
});
