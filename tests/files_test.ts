/**
 * The application that serves a folder: what it says of a file, what it sends of it, and what it never sends.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import {
  type Application,
  type ApplicationLike,
  compress,
  conditional,
  type Environ,
  type FileLike,
  files,
  type FilesOptions,
  type HeaderList,
  mount,
  pipeline,
  runApplication,
  type Server,
  testEnviron,
  validator,
} from "../mod.ts";
import {
  addressOf,
  answer,
  Child,
  Client,
  Event,
  exchange,
  native,
  parse,
  type Reply,
  request,
  RUNTIME,
  settle,
  start,
  within,
} from "./support.ts";

/** What must never be seen in a response. */
const SECRET = "the secret that lies outside";
const DAY = new Date("2024-01-01T00:00:00.500Z");
const DATE = "Mon, 01 Jan 2024 00:00:00 GMT";
const PAGE = "<!doctype html><title>Page</title>";
/** Some 300 KiB, in which no two neighbouring stretches look alike. */
const DATA = Buffer.from(Uint32Array.from({ length: 76_801 }, (_, at) => Math.imul(at, 2_654_435_761)).buffer);
const SIZE = DATA.length;

const FOLDER = realpathSync(mkdtempSync(join(tmpdir(), "wsgi-files-")));
const ROOT = join(FOLDER, "root");
chmodSync(FOLDER, 0o755); // so that another user can read it, too
after(() => rmSync(FOLDER, { recursive: true, force: true }));

/** Writes a file of the temporary folder, of one and the same date. */
function put(name: string, content: string | Uint8Array = `content of ${name}`): void {
  const path = join(FOLDER, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
  utimesSync(path, DAY, DAY);
}

function link(name: string, target: string): void {
  const path = join(FOLDER, name);
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(target, path);
}

const TYPES: [name: string, type: string][] = [
  ["type.html", "text/html; charset=utf-8"],
  ["type.htm", "text/html; charset=utf-8"],
  ["TYPE.HTML", "text/html; charset=utf-8"],
  ["type.css", "text/css; charset=utf-8"],
  ["type.js", "text/javascript; charset=utf-8"],
  ["type.mjs", "text/javascript; charset=utf-8"],
  ["type.ts", "text/typescript; charset=utf-8"],
  ["type.mts", "text/typescript; charset=utf-8"],
  ["type.tsx", "text/typescript; charset=utf-8"],
  ["type.txt", "text/plain; charset=utf-8"],
  ["type.json", "application/json"],
  ["type.svg", "image/svg+xml"],
  ["type.png", "image/png"],
  ["type.wasm", "application/wasm"],
  ["type.pdf", "application/pdf"],
  ["type.woff2", "font/woff2"],
  ["type.mp4", "video/mp4"],
  ["type.tar.gz", "application/gzip"],
  ["type.html.bin", "application/octet-stream"],
  ["type", "application/octet-stream"],
  ["html", "application/octet-stream"],
  ["type.", "application/octet-stream"],
  ["type.constructor", "application/octet-stream"],
  ["type.__proto__", "application/octet-stream"],
  ["folder.html/type", "application/octet-stream"],
];
const NAMES = [
  "with space.txt",
  "100%.txt",
  "a%2fb.txt",
  "%2e%2e",
  "naïve – 日本語 🙂.txt",
  "semi;colon=1,2&3+4.txt",
  "quote\"s'<>.txt",
  "question?.txt",
  "hash#.txt",
  "new\nline.txt",
  "..double",
  "...",
  "trailing.",
  " ",
  "~",
  "C:",
  "a".repeat(255),
];
for (const [name] of TYPES) put(`root/${name}`);
for (const name of NAMES.filter((name) => !name.startsWith("."))) put(`root/names/${name}`, name);
put("root/index.html", PAGE);
put("root/data.bin", DATA);
put("root/empty.txt", "");
put("root/sub/index.html", "sub index");
put("root/sub/start.htm", "sub start");
put("root/bare/file.txt");
put("root/with space/100%/index.html");
put("root/日本/index.html");
put("root/new\r\nX-Injected: 1/index.html");
put("root/evil.example/index.html");
put("root/.env", "hidden content");
put("root/..twice", "hidden content");
put("root/back\\slash.txt");
put("root/\ufffd");
put("root/.well-known/security.txt", "what is well known");
for (const name of [".well-known/.env", ".well-known/.well-known/x", ".well-known-not/x", "sub/.well-known/x"]) {
  put(`root/${name}`, "hidden content");
}
put("root/deep/.git/config", "hidden content");
put("root/both.js", "both, as it is");
put("root/both.js.br", "both, in Brotli");
put("root/both.js.gz", "both, in gzip, as it were");
put("root/single.css", "single, as it is");
put("root/single.css.gz", "single, in gzip");
put("root/plain.js", "plain, as it is");
put("root/twinned/index.html", "twinned, as it is");
put("root/twinned/index.html.gz", "twinned, in gzip");
put("root/orphan.js.gz");
put("root/folded.js", "folded, as it is");
mkdirSync(join(ROOT, "folded.js.br"));
mkdirSync(join(ROOT, "folded.js.gz"));
for (const name of ["alike.js", "alike.js.br", "alike.js.gz", "linked.js", "blob"]) put(`root/${name}`, "0123456789");
link("root/linked.js.br", "blob");
put("outside/secret.txt", SECRET);
put("outside/index.html", SECRET);
put("root-beside/secret.txt", SECRET);
link("root/inside.txt", "index.html");
link("root/inside", "sub");
link("root/absolute.txt", join(ROOT, "index.html"));
link("root/round.txt", "../root/index.html");
link("root/by-alias.txt", "../alias/index.html");
link("alias", "root");
link("root/outside.txt", "../outside/secret.txt");
link("root/outside-absolute.txt", join(FOLDER, "outside/secret.txt"));
link("root/outside", "../outside");
link("root/beside", "../root-beside");
link("root/up", "..");
link("root/chain.txt", "outside.txt");
link("root/indexed/index.html", "../../outside/index.html");
put("root/leaky.js", "leaky, as it is");
link("root/leaky.js.br", "../outside/secret.txt");
link("root/leaky.js.gz", "../outside/secret.txt");
link("root/seen-env", ".env");
link("root/seen-folder", "deep/.git");
link("root/seen-twice", "..twice");
link("root/.well-known/seen", ".env");
link("root/.dotted-link", "index.html");
link("root/broken", "nowhere");
link("root/loop", "loop");
link("root/loop-one", "loop-two");
link("root/loop-two", "loop-one");
if (process.platform !== "win32") execFileSync("mkfifo", [join(ROOT, "fifo")]);

interface Outcome {
  status: number;
  headers: Headers;
  list: HeaderList;
  body: string;
}

/** Sends a request to an application, as it is. */
async function run(app: ApplicationLike, variables: Partial<Environ> = {}): Promise<Outcome> {
  const { status, headers: list, body } = await within(
    runApplication(app, testEnviron(variables)),
    `the answer to ${JSON.stringify(variables)}`,
  );
  return {
    status: Number(status.slice(0, 3)),
    headers: new Headers(list),
    list,
    body: Buffer.from(body).toString("latin1"),
  };
}

/** Asks for a path of the root; the body is given as Latin-1. */
function get(path: string, variables: Partial<Environ> = {}, options: FilesOptions = {}): Promise<Outcome> {
  return run(validator(files(ROOT, options)), { PATH_INFO: native(path), ...variables });
}

/** Asks for a file while the clock stands at a number of milliseconds after its date. */
async function getAt(age: number, root: string, variables: Partial<Environ> = {}): Promise<Outcome> {
  const { now } = Date;
  Date.now = () => DAY.getTime() + age;
  try {
    return await run(validator(files(root)), { PATH_INFO: "/data.bin", ...variables });
  } finally {
    Date.now = now;
  }
}

async function etagOf(path: string, variables: Partial<Environ> = {}): Promise<string> {
  return (await get(path, variables)).headers.get("ETag") ?? "";
}

/** The files of a folder that this process has open, where the system tells. */
function openFiles(folder = FOLDER): string[] {
  if (!existsSync("/proc/self/fd")) return [];
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      return target.startsWith(folder) ? [target] : [];
    } catch {
      return []; // that of the listing itself
    }
  });
}

/** What was done with the files that were wrapped. */
class Wrapped {
  count = 0;
  closed = 0;
  readonly #closing = new Event("the file to be closed");

  /** Serves a folder by a `wsgi.file_wrapper` that watches; `onRead` is called after each block with their number. */
  app(root: string, onRead: (blocks: number) => void = () => {}): Application {
    const app = validator(files(root));
    return (environ, startResponse) => {
      const wrap = environ["wsgi.file_wrapper"];
      environ["wsgi.file_wrapper"] = (file, blockSize) => wrap(this.#watched(file, onRead), blockSize);
      return app(environ, startResponse);
    };
  }

  /** Waits for the first close, and for one too many. */
  async end(): Promise<void> {
    await this.#closing.wait();
    await settle();
  }

  #watched(file: FileLike, onRead: (blocks: number) => void): FileLike {
    this.count++;
    assert.ok("read" in file, "it is read block by block");
    let blocks = 0;
    return {
      read: async (size) => {
        const block = await file.read(size);
        onRead(++blocks);
        return block;
      },
      close: async () => {
        this.closed++;
        await file.close?.();
        this.#closing.happen();
      },
    };
  }
}

/** A copy of the data in a folder of its own, to be changed. */
function changeable(content: string | Uint8Array = DATA): { root: string; path: string } {
  const root = mkdtempSync(join(FOLDER, "changeable-"));
  const path = join(root, "data.bin");
  put(relative(FOLDER, path), content);
  return { root, path };
}

/** Runs something as a user who is not the superuser, for whom no file is unreadable. */
async function unprivileged<Value>(run: () => Value | Promise<Value>): Promise<Value> {
  if (process.getuid?.() !== 0) return await run();
  process.seteuid?.(65_534);
  try {
    return await run();
  } finally {
    process.seteuid?.(0);
  }
}

// What is said of a file.

for (const [name, type] of TYPES) {
  test(`"${name}" is ${type}`, async () => {
    const { status, headers, body } = await get(`/${name}`);
    assert.equal(status, 200);
    assert.equal(headers.get("Content-Type"), type);
    assert.equal(body, `content of root/${name}`);
  });
}

for (
  const [types, name, type] of [
    [{ bin: "model/stl" }, "type.html.bin", "model/stl"],
    [{ html: "application/xhtml+xml" }, "type.html", "application/xhtml+xml"],
    [{ html: "application/xhtml+xml" }, "type.css", "text/css; charset=utf-8"],
    [{ bin: "text/x-log" }, "type.html.bin", "text/x-log; charset=utf-8"],
    [{ txt: "text/plain; charset=iso-8859-1" }, "type.txt", "text/plain; charset=iso-8859-1"],
  ] as [Record<string, string>, string, string][]
) {
  test(`with the types ${JSON.stringify(types)}, "${name}" is ${type}`, async () => {
    assert.equal((await get(`/${name}`, {}, { types })).headers.get("Content-Type"), type);
  });
}

test("a file is sent whole, with its length, and with leave to ask for ranges", async () => {
  const { status, headers, body } = await get("/data.bin");
  assert.equal(status, 200);
  assert.equal(headers.get("Content-Length"), String(SIZE));
  assert.equal(headers.get("Accept-Ranges"), "bytes");
  assert.equal(headers.get("Content-Range"), null);
  assert.ok(body === DATA.toString("latin1"));
});

test("files need nothing of the environ that PEP 3333 lets a server leave out", async () => {
  const without = async (PATH_INFO: string) => {
    const environ = testEnviron({ PATH_INFO });
    for (const name of ["SCRIPT_NAME", "QUERY_STRING", "wsgi.file_wrapper"]) delete environ[name];
    return await runApplication(validator(files(ROOT)), environ);
  };
  assert.equal(Buffer.compare(DATA, (await without("/data.bin")).body), 0);
  assert.deepEqual(new Map((await without("/sub")).headers).get("Location"), "/sub/");
});

test("an empty file is sent as such", async () => {
  const { status, headers, body } = await get("/empty.txt");
  assert.deepEqual([status, headers.get("Content-Length"), body], [200, "0", ""]);
  assert.deepEqual(openFiles(), []);
});

for (const name of NAMES.filter((name) => !name.startsWith("."))) {
  test(`a file of the name ${JSON.stringify(name.slice(0, 40))} is found`, async () => {
    const { status, body } = await get(`/names/${name}`);
    assert.deepEqual([status, body], [200, native(name)]);
  });
}

test("a name is percent-decoded once on its way over a socket", async () => {
  await using server = start(validator(files(ROOT)));
  for (const name of NAMES.filter((name) => !/^\.|^%2e%2e$/.test(name))) {
    const { status, body } = await exchange(server, request(`/names/${encodeURIComponent(name)}`));
    assert.deepEqual([status, body], [200, native(name)], name);
  }
});

test("Last-Modified is the date of the file, its fraction of a second dropped", async () => {
  put("root/late.txt");
  utimesSync(join(ROOT, "late.txt"), 1_704_067_199.9996, 1_704_067_199.9996);
  assert.equal((await get("/late.txt")).headers.get("Last-Modified"), "Sun, 31 Dec 2023 23:59:59 GMT");
});

test("Last-Modified is never later than the response", async () => {
  put("root/future.txt");
  const future = new Date(Date.now() + 86_400_000);
  utimesSync(join(ROOT, "future.txt"), future, future);
  const { headers } = await get("/future.txt");
  const modified = Date.parse(headers.get("Last-Modified") ?? "");
  assert.ok(modified <= Date.now(), `${headers.get("Last-Modified")} is in the future`); // RFC 9110, section 8.8.2.1
});

test("the ETag is strong, the same as long as the file is, and another one when it has changed", async () => {
  const { root, path } = changeable("one");
  const tag = async () => (await run(files(root), { PATH_INFO: "/data.bin" })).headers.get("ETag") ?? "";
  const first = await tag();
  assert.match(first, /^"[\x21\x23-\x7e]+"$/);
  assert.equal(await tag(), first);
  writeFileSync(path, "three");
  utimesSync(path, DAY, DAY);
  const longer = await tag();
  assert.notEqual(longer, first);
  utimesSync(path, DAY, new Date(DAY.getTime() + 1));
  assert.notEqual(await tag(), longer);
});

const YOUTH: [age: number, isWeak: boolean][] = [[-86_400_000, true], [0, true], [999, true], [1000, false]];
for (const [age, isWeak] of YOUTH) {
  test(`the ETag of a file is ${isWeak ? "weak" : "strong"} ${age} ms after its date`, async () => {
    const { root } = changeable();
    const { headers, list } = await getAt(age, root);
    assert.match(headers.get("ETag") ?? "", isWeak ? /^W\/"[\x21\x23-\x7e]+"$/ : /^"[\x21\x23-\x7e]+"$/);
    assert.deepEqual((await getAt(age, root, { REQUEST_METHOD: "HEAD" })).list, list);
  });
}

test("a file that is rewritten within a millisecond is sent anew to those who have its first content", async () => {
  const { root, path } = changeable("one");
  const variables = { HTTP_IF_NONE_MATCH: (await getAt(1, root)).headers.get("ETag") ?? "" };
  assert.equal((await getAt(2, root, variables)).status, 304);
  writeFileSync(path, "two");
  utimesSync(path, DAY, DAY);
  const { status, body } = await getAt(1000, root, variables);
  assert.deepEqual([status, body], [200, "two"]);
});

test("Cache-Control is no-cache, unless the option says otherwise", async () => {
  assert.equal((await get("/index.html")).headers.get("Cache-Control"), "no-cache");
  const { headers } = await get("/index.html", {}, { cacheControl: "public, max-age=60" });
  assert.equal(headers.get("Cache-Control"), "public, max-age=60");
});

// Folders.

test("a folder is served by its index file", async () => {
  for (const [path, body] of [["/", PAGE], ["/sub/", "sub index"]]) {
    const outcome = await get(path!);
    assert.deepEqual([outcome.status, outcome.body], [200, body]);
    assert.equal(outcome.headers.get("Content-Type"), "text/html; charset=utf-8");
  }
});

test("the index file has the name that the option gives", async () => {
  const { status, headers, body } = await get("/sub/", {}, { index: "start.htm" });
  assert.deepEqual([status, headers.get("Content-Type"), body], [200, "text/html; charset=utf-8", "sub start"]);
  assert.equal((await get("/", {}, { index: "start.htm" })).status, 404);
});

for (
  const [path, variables, location] of [
    ["/sub", {}, "/sub/"],
    ["/sub", { SCRIPT_NAME: "/static" }, "/static/sub/"],
    ["", { SCRIPT_NAME: "/static" }, "/static/"],
    ["/sub", { QUERY_STRING: "a=b&c=//d?e" }, "/sub/?a=b&c=//d?e"],
    ["/sub", { SCRIPT_NAME: "/a b", QUERY_STRING: "%20" }, "/a%20b/sub/?%20"],
    ["/inside", {}, "/inside/"],
    ["/with space/100%", {}, "/with%20space/100%25/"],
    ["/日本", {}, "/%E6%97%A5%E6%9C%AC/"],
    ["/new\r\nX-Injected: 1", {}, "/new%0D%0AX-Injected%3A%201/"],
    ["/sub", { SCRIPT_NAME: "//evil.example" }, "/evil.example/sub/"],
    ["/sub", { SCRIPT_NAME: "/\\evil.example" }, "/%5Cevil.example/sub/"],
  ] as [string, Partial<Environ>, string][]
) {
  test(`the folder ${JSON.stringify(variables)} ${JSON.stringify(path)} redirects to ${location}`, async () => {
    const { status, headers } = await get(path, variables);
    assert.deepEqual([status, headers.get("Location")], [301, location]);
  });
}

test("a mounted folder redirects below its prefix, and serves its index there", async () => {
  const app = validator(mount({ "/static": validator(files(ROOT)) }));
  const redirect = await run(app, { PATH_INFO: "/static", QUERY_STRING: "a=b" });
  assert.deepEqual([redirect.status, redirect.headers.get("Location")], [301, "/static/?a=b"]);
  assert.equal((await run(app, { PATH_INFO: "/static/sub" })).headers.get("Location"), "/static/sub/");
  assert.equal((await run(app, { PATH_INFO: "/static/" })).body, PAGE);
  assert.equal((await run(app, { PATH_INFO: "/statics/" })).status, 404);
});

test("no redirect leads to another host, whatever is sent", async () => {
  await using server = start(validator(mount({ "/": validator(files(ROOT)) })));
  const targets = ["//evil.example", "///evil.example", "/\\evil.example", "/%5Cevil.example", "/%2Fevil.example"];
  for (const target of [...targets, "//evil.example/..", "/.//evil.example", "/sub/..//evil.example", "//sub"]) {
    const { status, headers } = await exchange(server, request(target));
    const location = new Map(headers).get("location") ?? "";
    assert.doesNotMatch(location, /^(?:[/\\]{2}|[^/])/, `${target} → ${location}`);
    assert.ok(status === 301 || status === 404 || status === 400, `${target} → ${status}`);
  }
});

// What is not there, and what cannot be done.

const ABSENT = [
  "/absent",
  "/absent/",
  "/absent/index.html",
  "/bare/",
  "/index.html/",
  "/index.html/index.html",
  "/index.html/x",
  "/inside.txt/",
  "/INDEX.HTML",
  "/orphan.js",
  "/broken",
  "/broken/",
  "/loop",
  "/loop/x",
  "/loop-one",
  "/fifo",
  "/fifo/",
  `/${"b".repeat(256)}`,
  `/${"b".repeat(100_000)}`,
  "/sub".repeat(5000),
];
for (const path of ABSENT) {
  test(`${JSON.stringify(path.slice(0, 40))} of ${path.length} characters is answered with 404`, async () => {
    const { status, headers, body } = await get(path);
    assert.deepEqual([status, headers.get("Content-Type")], [404, "text/plain; charset=utf-8"]);
    assert.ok(body.length < 100 && !body.includes(FOLDER), body);
  });
}

for (const REQUEST_METHOD of ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "get"]) {
  test(`${REQUEST_METHOD} is answered with 405 and the methods that are allowed`, async () => {
    for (const path of ["/index.html", "/absent", "/sub"]) {
      const { status, headers } = await get(path, { REQUEST_METHOD });
      assert.deepEqual([status, headers.get("Allow")], [405, "GET, HEAD"]);
    }
  });
}

for (
  const [path, variables] of [
    ["/index.html", {}],
    ["/data.bin", {}],
    ["/empty.txt", {}],
    ["/sub/", {}],
    ["/sub", {}],
    ["/absent", {}],
    ["/outside.txt", {}],
    ["/both.js", { HTTP_ACCEPT_ENCODING: "br" }],
    ["/both.js", { HTTP_ACCEPT_ENCODING: "gzip" }],
    ["/index.html", { HTTP_IF_NONE_MATCH: "*" }],
    ["/index.html", { HTTP_IF_MODIFIED_SINCE: DATE }],
  ] as [string, Partial<Environ>][]
) {
  test(`HEAD ${path} ${JSON.stringify(variables)} has the headers of GET and no body`, async () => {
    const whole = await get(path, variables);
    const head = await get(path, { REQUEST_METHOD: "HEAD", ...variables });
    assert.deepEqual([head.status, head.list], [whole.status, whole.list]);
    if (whole.status === 200) assert.equal(head.body, "");
  });
}

test("HEAD has the headers of GET over a socket, too, and sends nothing", async () => {
  await using server = start(validator(files(ROOT)));
  // Bun sends no Content-Length with a body of several chunks.
  const framing = RUNTIME === "bun" ? ["content-length", "transfer-encoding"] : [];
  const told = ({ headers }: Reply) => headers.filter(([name]) => name !== "date" && !framing.includes(name));
  const whole = await exchange(server, request("/data.bin"));
  const head = await exchange(server, request("/data.bin", { method: "HEAD" }), { head: true });
  assert.deepEqual(told(head), told(whole));
  assert.equal(new Map(head.headers).get("content-length"), String(SIZE));
  assert.deepEqual([head.status, head.body, whole.body.length], [200, "", SIZE]);
});

test("a file that may not be read is not there, for HEAD as for GET", async () => {
  const { root, path } = changeable();
  chmodSync(root, 0o755);
  chmodSync(path, 0);
  await unprivileged(async () => {
    for (const REQUEST_METHOD of ["GET", "HEAD"]) {
      const { status } = await run(validator(files(root)), { REQUEST_METHOD, PATH_INFO: "/data.bin" });
      assert.ok(status === 403 || status === 404, `${REQUEST_METHOD} → ${status}`);
    }
  });
});

test("a folder that may not be entered is not there", async () => {
  const { root, path } = changeable();
  chmodSync(root, 0o755);
  mkdirSync(join(root, "closed"));
  renameSync(path, join(root, "closed/data.bin"));
  chmodSync(join(root, "closed"), 0);
  await unprivileged(async () => {
    for (const PATH_INFO of ["/closed/data.bin", "/closed/"]) {
      assert.equal((await run(validator(files(root)), { PATH_INFO })).status, 404);
    }
  });
});

// What the client has already.

for (
  const [describe, status] of [
    [(tag) => tag, 304],
    [(tag) => `W/${tag}`, 304],
    [(tag) => `"a", ${tag}`, 304],
    [(tag) => `"a",W/"b" ,W/${tag}, "c"`, 304],
    [() => "*", 304],
    [() => " * ", 304],
    [() => '"*"', 200],
    [() => '"a"', 200],
    [() => 'W/"a", "b"', 200],
    [(tag) => tag.slice(1, -1), 200],
    [(tag) => tag.slice(0, -2) + '"', 200],
    [() => "", 200],
    [() => '"', 200],
    [() => '"",', 200],
  ] as [(tag: string) => string, number][]
) {
  test(`If-None-Match: ${describe('"tag"')} is answered with ${status}`, async () => {
    const HTTP_IF_NONE_MATCH = describe(await etagOf("/index.html"));
    const { status: found, body } = await get("/index.html", { HTTP_IF_NONE_MATCH });
    assert.deepEqual([found, body], [status, status === 304 ? "" : PAGE]);
  });
}

const SINCE: [since: string, status: number][] = [
  [DATE, 304],
  ["Tue, 02 Jan 2024 00:00:00 GMT", 304],
  ["Fri, 31 Dec 2100 23:59:59 GMT", 304],
  ["Sun, 31 Dec 2023 23:59:59 GMT", 200],
  ["Thu, 01 Jan 1970 00:00:00 GMT", 200],
  // The obsolete forms that every recipient must accept: RFC 9110, section 5.6.7.
  ["Monday, 01-Jan-24 00:00:00 GMT", 304],
  ["Sunday, 31-Dec-23 23:59:59 GMT", 200],
  ["Mon Jan  1 00:00:00 2024", 304],
  ["Sun Dec 31 23:59:59 2023", 200],
  // What is no date must be ignored: RFC 9110, section 13.1.3.
  ["garbage", 200],
  ["", 200],
  ["garbage 2099", 200],
  ["2099", 200],
  ["4102444800", 200],
  ["2099-01-01T00:00:00Z", 200],
  [`${DATE}, ${DATE}`, 200],
];
for (const [since, status] of SINCE) {
  test(`If-Modified-Since: ${since} is answered with ${status}`, async () => {
    assert.equal((await get("/index.html", { HTTP_IF_MODIFIED_SINCE: since })).status, status);
  });
}

test("a date without a zone is one of Greenwich, wherever the server stands", async () => {
  const { TZ } = process.env;
  process.env.TZ = "America/New_York";
  try {
    const { status } = await get("/index.html", { HTTP_IF_MODIFIED_SINCE: "Sun Dec 31 23:59:59 2023" });
    assert.equal(status, 200);
  } finally {
    if (TZ === undefined) delete process.env.TZ;
    else process.env.TZ = TZ;
  }
});

test("If-Modified-Since is ignored where If-None-Match is there", async () => {
  const newer = "Tue, 02 Jan 2024 00:00:00 GMT";
  const older = "Sun, 31 Dec 2023 00:00:00 GMT";
  const tag = await etagOf("/index.html");
  const statusOf = async (tag: string, since: string) =>
    (await get("/index.html", { HTTP_IF_NONE_MATCH: tag, HTTP_IF_MODIFIED_SINCE: since })).status;
  assert.equal(await statusOf('"other"', newer), 200);
  assert.equal(await statusOf("", newer), 200);
  assert.equal(await statusOf(tag, older), 304);
});

test("a 304 has what a cache needs, nothing of the body, and keeps no file open", async () => {
  const wrapped = new Wrapped();
  const whole = await get("/both.js", { HTTP_ACCEPT_ENCODING: "gzip" });
  const { status, headers, list, body } = await run(wrapped.app(ROOT), {
    PATH_INFO: "/both.js",
    HTTP_ACCEPT_ENCODING: "gzip",
    HTTP_IF_NONE_MATCH: whole.headers.get("ETag") ?? "",
    HTTP_RANGE: "bytes=0-1",
  });
  assert.deepEqual([status, body, wrapped.count, openFiles()], [304, "", 0, []]);
  for (const name of ["ETag", "Last-Modified", "Cache-Control", "Vary"]) {
    assert.equal(headers.get(name), whole.headers.get(name), name);
    assert.ok(headers.get(name), name);
  }
  assert.deepEqual(list.filter(([name]) => /^content-/i.test(name)), []);
});

test("a 304 comes over a socket without a body", async () => {
  await using server = start(validator(files(ROOT)));
  const headers = [`If-None-Match: ${await etagOf("/data.bin")}`];
  const client = await Client.connect(server);
  await client.send(request("/data.bin", { headers }));
  const received = await client.end();
  assert.match(received, /^HTTP\/1\.1 304 /);
  assert.ok(received.endsWith("\r\n\r\n") && received.indexOf("\r\n\r\n") === received.length - 4);
});

for (
  const [describe, status] of [
    [() => ({ HTTP_IF_MATCH: "*" }), 200],
    [(tag) => ({ HTTP_IF_MATCH: `"a", ${tag}` }), 200],
    [(tag) => ({ HTTP_IF_MATCH: tag, HTTP_IF_UNMODIFIED_SINCE: "Thu, 01 Jan 1970 00:00:00 GMT" }), 200],
    [() => ({ HTTP_IF_MATCH: '"a"' }), 412],
    [(tag) => ({ HTTP_IF_MATCH: `"a\\", ${tag}` }), 200],
    [(tag) => ({ HTTP_IF_MATCH: `"a, ${tag}` }), 412],
    [(tag) => ({ HTTP_IF_MATCH: `W/${tag}` }), 412],
    [() => ({ HTTP_IF_MATCH: '"a"', HTTP_RANGE: "bytes=0-1" }), 412],
    [() => ({ HTTP_IF_UNMODIFIED_SINCE: DATE }), 200],
    [() => ({ HTTP_IF_UNMODIFIED_SINCE: "garbage" }), 200],
    [() => ({ HTTP_IF_UNMODIFIED_SINCE: "Sun, 31 Dec 2023 23:59:59 GMT" }), 412],
  ] as [(tag: string) => Record<string, string>, number][]
) {
  // RFC 9110, sections 13.1.1, 13.1.4 and 13.2.2: an origin server must evaluate these, too.
  test(`a request on condition that ${JSON.stringify(describe('"tag"'))} is answered with ${status}`, async () => {
    const { status: found, body } = await get("/index.html", describe(await etagOf("/index.html")));
    assert.equal(found, status);
    assert.equal(body === PAGE, status === 200);
  });
}

// Ranges.

const RANGES: [range: string, at: number, end: number][] = [
  ["bytes=0-0", 0, 1],
  ["bytes=0-99", 0, 100],
  ["bytes=100-199", 100, 200],
  ["bytes=65530-65545", 65_530, 65_546],
  ["bytes=1000-200000", 1000, 200_001],
  [`bytes=${SIZE - 1}-`, SIZE - 1, SIZE],
  [`bytes=${SIZE - 1}-${SIZE - 1}`, SIZE - 1, SIZE],
  ["bytes=300000-", 300_000, SIZE],
  ["bytes=0-", 0, SIZE],
  [`bytes=0-${SIZE - 1}`, 0, SIZE],
  [`bytes=0-${SIZE}`, 0, SIZE],
  ["bytes=300000-99999999999999999999999", 300_000, SIZE],
  [`bytes=0-${"9".repeat(400)}`, 0, SIZE],
  ["bytes=-1", SIZE - 1, SIZE],
  ["bytes=-70000", SIZE - 70_000, SIZE],
  [`bytes=-${SIZE}`, 0, SIZE],
  [`bytes=-${SIZE + 1}`, 0, SIZE],
  [`bytes=-${"9".repeat(400)}`, 0, SIZE],
  ["bytes=007-0010", 7, 11],
  ["BYTES=5-6", 5, 7],
  ["bytes=5-6,", 5, 7],
  ["bytes=,5-6", 5, 7],
  ["bytes=, ,\t, 5-6 ,,", 5, 7],
  [`bytes=5-6${",".repeat(10_000)}`, 5, 7],
  [`bytes=5-6, ${SIZE}-`, 5, 7],
  [`bytes=${SIZE}-, -2 , ${"9".repeat(400)}-`, SIZE - 2, SIZE],
];
for (const [range, at, end] of RANGES) {
  test(`Range: ${range.slice(0, 40)} gives the bytes from ${at} to ${end}`, async () => {
    const { status, headers, body } = await get("/data.bin", { HTTP_RANGE: range });
    assert.equal(status, 206);
    assert.equal(headers.get("Content-Range"), `bytes ${at}-${end - 1}/${SIZE}`);
    assert.equal(headers.get("Content-Length"), String(end - at));
    assert.equal(headers.get("Content-Type"), "application/octet-stream");
    assert.ok(body === DATA.toString("latin1", at, end));
  });
}

test("a partial response has the headers of the whole one", async () => {
  const whole = await get("/index.html");
  const partial = await get("/index.html", { HTTP_RANGE: "bytes=1-3" });
  for (const [name, value] of whole.list) {
    if (name !== "Content-Length") assert.equal(partial.headers.get(name), value, name);
  }
});

const UNSATISFIABLE: [path: string, range: string, size: number][] = [
  ["/data.bin", `bytes=${SIZE}-`, SIZE],
  ["/data.bin", `bytes=${SIZE}-${SIZE + 1}`, SIZE],
  ["/data.bin", "bytes=-0", SIZE],
  ["/data.bin", `bytes=${"9".repeat(30)}-`, SIZE],
  ["/data.bin", `bytes=${"9".repeat(400)}-`, SIZE],
  ["/data.bin", `bytes=${SIZE}-,-0`, SIZE],
  ["/empty.txt", "bytes=0-", 0],
  ["/empty.txt", "bytes=0-0", 0],
  ["/empty.txt", "bytes=-0", 0],
];
for (const [path, range, size] of UNSATISFIABLE) {
  test(`Range: ${range.slice(0, 40)} of ${path} is answered with 416 and the size`, async () => {
    const wrapped = new Wrapped();
    const { status, headers, body } = await run(wrapped.app(ROOT), { PATH_INFO: path, HTTP_RANGE: range });
    assert.deepEqual([status, headers.get("Content-Range")], [416, `bytes */${size}`]);
    assert.ok(body.length < 100);
    assert.equal(wrapped.count, 0);
  });
}

const IGNORED = [
  "",
  "bytes",
  "bytes=",
  "bytes=,",
  "bytes= , ,",
  "bytes=-",
  "bytes=--5",
  "bytes=-1-5",
  "bytes=5-3",
  "bytes=0-1,5-3",
  "bytes=a-b",
  "bytes=0-b",
  "bytes=0x0-0x4",
  "bytes=0-1e3",
  "bytes=1.5-3",
  "bytes=+1-4",
  "bytes=0 - 4",
  "bytes=0-4;q=1",
  "bytes=0-4-8",
  "bytes 0-4",
  "bytes 0-4/10",
  "bytes:0-4",
  "items=0-4",
  "xbytes=0-4",
  "bytes=0-4, bytes=6-8",
  "bytes=\u00b2-\u00b3",
  "0-4",
];
for (const range of IGNORED) {
  test(`Range: ${range} is not understood, and the whole file is sent`, async () => {
    const { status, headers, body } = await get("/index.html", { HTTP_RANGE: range });
    assert.deepEqual([status, headers.get("Content-Range"), body], [200, null, PAGE]);
  });
}

for (const range of ["bytes=-5", "bytes=-1,-2", "bytes=0-,-5"]) {
  // RFC 9110, section 14.1.2, has a suffix of an empty file satisfied by all of it, which is nothing.
  test(`Range: ${range} of an empty file gives the whole file`, async () => {
    const { status, headers } = await get("/empty.txt", { HTTP_RANGE: range });
    assert.deepEqual([status, headers.get("Content-Range"), headers.get("Content-Length")], [200, null, "0"]);
  });
}

const GREEDY = [
  ["ranges that repeat the file", "bytes=0-,0-,0-"],
  ["ranges that overlap", `bytes=0-${SIZE - 2},1-`],
  ["suffixes that overlap", `bytes=-${SIZE},-${SIZE}`],
  ["a thousand ranges of a byte", `bytes=${Array.from({ length: 1000 }, (_, at) => `${2 * at}-${2 * at}`).join()}`],
  ["a thousand open ranges", `bytes=${"0-,".repeat(999)}0-`],
  ["17 ranges among empty elements", `bytes=${"0-0,,".repeat(17)}`],
] as const;
for (const [what, range] of GREEDY) {
  test(`${what} only get the whole file`, async () => {
    const { status, headers } = await get("/data.bin", { HTTP_RANGE: range, REQUEST_METHOD: "GET" });
    assert.deepEqual([status, headers.get("Content-Length")], [200, String(SIZE)]);
  });
}

test("ranges that overlap a little make no response larger than the file by more than its framing", async () => {
  const range = `bytes=${Array.from({ length: 16 }, () => `0-${Math.floor(SIZE / 16) - 1}`).join()}`;
  const { body } = await get("/data.bin", { HTTP_RANGE: range });
  assert.ok(body.length < SIZE + 16 * 300, String(body.length));
});

/** Takes a multipart body apart, by RFC 2046, section 5.1.1. */
function partsOf(type: string | null, body: string): { headers: Record<string, string>; body: string }[] {
  const [, boundary] = /^multipart\/byteranges; *boundary="?([\w'()+,./:=? -]{1,70})"?$/.exec(type ?? "") ?? [];
  assert.ok(boundary, `${type} has a boundary`);
  const pieces = `\r\n${body.replace(/^\r\n/, "")}`.split(`\r\n--${boundary}`);
  assert.equal(pieces.shift(), "", "nothing comes before the first part");
  assert.match(pieces.pop() ?? "", /^--(?:\r\n)?$/, "the last boundary comes last");
  return pieces.map((piece) => {
    const [, head = "", body = ""] = /^\r\n((?:[^\r\n]+\r\n)+)\r\n(.*)$/s.exec(piece) ?? [];
    const lines = head.trimEnd().split("\r\n").map((line) => line.split(": ", 2) as [string, string]);
    return { headers: Object.fromEntries(lines), body };
  });
}

/** A content, in Latin-1, the parts that a response is to have of it, and their type. */
function assertParts(outcome: Pick<Outcome, "headers" | "body">, whole: string, type: string, ranges: string): void {
  const parts = partsOf(outcome.headers.get("Content-Type"), outcome.body);
  const expected = ranges.split(",").map((range) => {
    const [at = 0, end = 0] = range.split("-").map(Number);
    return {
      headers: { "Content-Type": type, "Content-Range": `bytes ${at}-${end - 1}/${whole.length}` },
      body: whole.slice(at, end),
    };
  });
  assert.deepEqual(parts, expected);
  assert.equal(outcome.headers.get("Content-Length"), String(outcome.body.length));
  assert.equal(outcome.headers.get("Content-Range"), null);
}

for (
  const [range, expected] of [
    ["bytes=0-9,20-29", "0-10,20-30"],
    ["bytes=20-29,0-9", "20-30,0-10"],
    ["bytes=0-0,-1", `0-1,${SIZE - 1}-${SIZE}`],
    ["bytes=0-0,\t70000-140000 ,-5", `0-1,70000-140001,${SIZE - 5}-${SIZE}`],
    [`bytes=0-0,${SIZE}-,300000-`, `0-1,300000-${SIZE}`],
    ["bytes=0-65535,65536-", `0-65536,65536-${SIZE}`],
    ["bytes=0-0,1-1", "0-1,1-2"],
    ["bytes=0-1,,3-4", "0-2,3-5"],
  ] as const
) {
  test(`Range: ${range} gives these parts, byte for byte`, async () => {
    const outcome = await get("/data.bin", { HTTP_RANGE: range });
    assert.equal(outcome.status, 206);
    assertParts(outcome, DATA.toString("latin1"), "application/octet-stream", expected);
  });
}

test("each of several parts has the Content-Type that the whole would have", async () => {
  const outcome = await get("/index.html", { HTTP_RANGE: "bytes=0-3,6-8" });
  assertParts(outcome, PAGE, "text/html; charset=utf-8", "0-4,6-9"); // RFC 9110, section 15.3.7.2
});

test("no two responses in parts have the same boundary", async () => {
  const one = await get("/data.bin", { HTTP_RANGE: "bytes=0-0,2-2" });
  const other = await get("/data.bin", { HTTP_RANGE: "bytes=0-0,2-2" });
  assert.notEqual(one.headers.get("Content-Type"), other.headers.get("Content-Type"));
});

test("several parts come whole over a socket", async () => {
  await using server = start(validator(files(ROOT)));
  const reply = await exchange(server, request("/data.bin", { headers: ["Range: bytes=0-99999,150000-"] }));
  assert.deepEqual([reply.status, reply.complete], [206, true]);
  const headers = new Headers(reply.headers);
  // Bun sends no Content-Length with a body of several chunks.
  if (RUNTIME === "bun" && !headers.has("Content-Length")) headers.set("Content-Length", String(reply.body.length));
  const outcome = { headers, body: reply.body };
  assertParts(outcome, DATA.toString("latin1"), "application/octet-stream", `0-100000,150000-${SIZE}`);
  assert.equal(server.errors.text, "");
});

const IF_RANGE: [describe: (tag: string) => string, status: number][] = [
  [(tag) => tag, 206],
  [() => DATE, 206],
  [(tag) => `W/${tag}`, 200],
  [() => '"stale"', 200],
  [() => "Sun, 31 Dec 2023 23:59:59 GMT", 200],
  [() => "Tue, 02 Jan 2024 00:00:00 GMT", 200],
  [(tag) => `"a", ${tag}`, 200],
  [() => "*", 200],
  [() => "garbage", 200],
  [() => "", 200],
];
for (const [describe, status] of IF_RANGE) {
  test(`a range If-Range: ${describe('"tag"')} is answered with ${status}`, async () => {
    const HTTP_IF_RANGE = describe(await etagOf("/index.html"));
    const outcome = await get("/index.html", { HTTP_RANGE: "bytes=1-3", HTTP_IF_RANGE });
    assert.deepEqual([outcome.status, outcome.body], status === 206 ? [206, PAGE.slice(1, 4)] : [200, PAGE]);
  });
}

for (const name of ["ETag", "Last-Modified"]) {
  test(`a range If-Range: the ${name} of a file that has just been changed is answered with all of the file`, async () => {
    const { root } = changeable("content");
    for (const [age, status] of [[0, 200], [999, 200], [1000, 206]] as const) {
      const HTTP_IF_RANGE = (await getAt(age, root)).headers.get(name) ?? "";
      assert.equal((await getAt(age, root, { HTTP_RANGE: "bytes=1-3", HTTP_IF_RANGE })).status, status, `${age} ms`);
    }
  });
}

test("If-Match never matches the weak ETag of a file that has just been changed", async () => {
  const { root } = changeable();
  const HTTP_IF_MATCH = (await getAt(0, root)).headers.get("ETag") ?? "";
  assert.equal((await getAt(0, root, { HTTP_IF_MATCH })).status, 412); // RFC 9110, section 13.1.1
});

test("a range that is not satisfiable gets the whole file when its If-Range is stale", async () => {
  const variables = { HTTP_RANGE: "bytes=999999-", HTTP_IF_RANGE: '"stale"' };
  assert.equal((await get("/index.html", variables)).status, 200);
});

test("If-Range without a range changes nothing", async () => {
  for (const HTTP_IF_RANGE of ['"stale"', await etagOf("/index.html")]) {
    assert.equal((await get("/index.html", { HTTP_IF_RANGE })).status, 200);
  }
});

for (const HTTP_RANGE of ["bytes=0-1", "bytes=0-1,3-4", "bytes=999999-"]) {
  test(`HEAD ignores the header Range: ${HTTP_RANGE}`, async () => {
    const { status, list } = await get("/index.html", { REQUEST_METHOD: "HEAD", HTTP_RANGE });
    assert.deepEqual([status, list], [200, (await get("/index.html")).list]); // RFC 9110, section 14.2
  });
}

// Precompressed twins.

const IDENTITY = undefined;
const CODINGS: [path: string, accept: string | undefined, coding: string | undefined][] = [
  ["/both.js", undefined, IDENTITY],
  ["/both.js", "", IDENTITY],
  ["/both.js", "gzip", "gzip"],
  ["/both.js", "GZIP", "gzip"],
  ["/both.js", "br", "br"],
  ["/both.js", "gzip, deflate, br, zstd", "br"],
  ["/both.js", "br;q=0.5, gzip", "gzip"],
  ["/both.js", "br;q=0.5,gzip;q=0.7", "gzip"],
  ["/both.js", "br ; q=0.8 , gzip ; q=0.7", "br"],
  ["/both.js", "br;q=0, gzip", "gzip"],
  ["/both.js", "br;Q=0.000, gzip;q=0.001", "gzip"],
  ["/both.js", "gzip;q=0", IDENTITY],
  ["/both.js", "*", "br"],
  ["/both.js", "br;q=0, *", "gzip"],
  ["/both.js", "gzip, *;q=0", "gzip"],
  ["/both.js", "*;q=0", IDENTITY],
  ["/both.js", "identity", IDENTITY],
  ["/both.js", "identity, gzip;q=0.5", IDENTITY],
  ["/both.js", "identity;q=0.5, gzip;q=0.6", "gzip"],
  ["/both.js", "identity;q=0, gzip;q=0.1", "gzip"],
  ["/both.js", "identity;q=1, *;q=0", IDENTITY],
  ["/both.js", "deflate, zstd", IDENTITY],
  ["/both.js", "gzipped, xbr", IDENTITY],
  ["/single.css", "br, gzip", "gzip"],
  ["/single.css", "br", IDENTITY],
  ["/twinned/", "gzip", "gzip"],
];
for (const [path, accept, coding] of CODINGS) {
  test(`${path} to Accept-Encoding: ${accept ?? "(none)"} is sent as ${coding ?? "it is"}`, async () => {
    const { status, headers, body } = await get(path, accept === undefined ? {} : { HTTP_ACCEPT_ENCODING: accept });
    assert.equal(status, 200);
    assert.equal(headers.get("Content-Encoding"), coding ?? null);
    assert.equal(headers.get("Vary"), "Accept-Encoding");
    assert.match(body, coding === undefined ? /, as it is$/ : coding === "br" ? /, in Brotli$/ : /, in gzip/);
    assert.equal(headers.get("Content-Length"), String(body.length));
    assert.match(headers.get("Content-Type") ?? "", /^text\/(?:javascript|css|html); charset=utf-8$/);
  });
}

for (const path of ["/plain.js", "/folded.js", "/leaky.js"]) {
  test(`${path} has no twin that can be sent, and does not vary`, async () => {
    const { status, headers, body } = await get(path, { HTTP_ACCEPT_ENCODING: "br, gzip" });
    assert.deepEqual([status, body], [200, `${path.slice(1, -3)}, as it is`]);
    assert.deepEqual([headers.get("Content-Encoding"), headers.get("Vary")], [null, null]);
  });
}

test("twins are left alone with precompressed: false", async () => {
  const { headers, body } = await get("/both.js", { HTTP_ACCEPT_ENCODING: "br" }, { precompressed: false });
  assert.equal(body, "both, as it is");
  assert.deepEqual([headers.get("Content-Encoding"), headers.get("Vary")], [null, null]);
});

test("a twin that is asked for by its own name is a file like any other", async () => {
  const { headers, body } = await get("/both.js.gz", { HTTP_ACCEPT_ENCODING: "br, gzip" });
  assert.equal(body, "both, in gzip, as it were");
  assert.deepEqual([headers.get("Content-Encoding"), headers.get("Content-Type")], [null, "application/gzip"]);
});

for (
  const [path, what] of [
    ["/both.js", "that differ in size"],
    ["/alike.js", "of one size and date"],
    ["/linked.js", "of one size and date, the twin a symbolic link"],
  ] as const
) {
  test(`the codings of a file ${what} have an ETag each`, async () => {
    const codings = path === "/linked.js" ? ["identity", "br"] : ["identity", "br", "gzip"];
    const tags = await Promise.all(codings.map((accept) => etagOf(path, { HTTP_ACCEPT_ENCODING: accept })));
    assert.equal(new Set(tags).size, codings.length, tags.join(" "));
  });
}

test("the ETag of one coding does not make a 304 of another, nor a range", async () => {
  const tag = await etagOf("/both.js", { HTTP_ACCEPT_ENCODING: "gzip" });
  assert.equal((await get("/both.js", { HTTP_IF_NONE_MATCH: tag })).status, 200);
  assert.equal((await get("/both.js", { HTTP_IF_RANGE: tag, HTTP_RANGE: "bytes=0-1" })).status, 200);
  const { status } = await get("/both.js", { HTTP_IF_NONE_MATCH: tag, HTTP_ACCEPT_ENCODING: "gzip" });
  assert.equal(status, 304);
});

test("a range of a file that is sent compressed counts compressed bytes", async () => {
  const variables = { HTTP_ACCEPT_ENCODING: "br" };
  const { status, headers, body } = await get("/both.js", { ...variables, HTTP_RANGE: "bytes=6-" });
  assert.deepEqual([status, body], [206, "in Brotli"]);
  assert.deepEqual([headers.get("Content-Encoding"), headers.get("Content-Range")], ["br", "bytes 6-14/15"]);
  assert.equal(headers.get("ETag"), await etagOf("/both.js", variables));
  assert.equal(headers.get("Vary"), "Accept-Encoding");
});

// How the bytes are sent.

for (
  const [path, variables, count] of [
    ["/data.bin", {}, 1],
    ["/data.bin", { HTTP_RANGE: "bytes=5-70000" }, 1],
    ["/data.bin", { HTTP_RANGE: "bytes=5-6,10-70000" }, 1],
    ["/data.bin", { HTTP_RANGE: "bytes=5-6,10-20" }, 0],
    ["/empty.txt", {}, 0],
    ["/both.js", { HTTP_ACCEPT_ENCODING: "gzip" }, 0],
    ["/data.bin", { REQUEST_METHOD: "HEAD" }, 0],
    ["/data.bin", { REQUEST_METHOD: "POST" }, 0],
    ["/data.bin", { HTTP_IF_MODIFIED_SINCE: DATE }, 0],
    ["/data.bin", { HTTP_RANGE: "bytes=999999-" }, 0],
    ["/absent", {}, 0],
    ["/sub", {}, 0],
  ] as [string, Partial<Environ>, number][]
) {
  test(`${path} ${JSON.stringify(variables)} wraps ${count} files and closes as many, once`, async () => {
    const wrapped = new Wrapped();
    await run(wrapped.app(ROOT), { PATH_INFO: path, ...variables });
    assert.deepEqual([wrapped.count, wrapped.closed, openFiles()], [count, count, []]);
  });
}

test("a block is never larger than the server asked for, and blocks of any size make the same body", async () => {
  const app = validator(files(ROOT));
  const sizes: number[] = [];
  const small: Application = (environ, startResponse) => {
    const wrap = environ["wsgi.file_wrapper"];
    environ["wsgi.file_wrapper"] = (file) => {
      assert.ok("read" in file);
      const read = async (size: number) => {
        const block = await file.read(size);
        sizes.push(block.length);
        return block;
      };
      return wrap({ read, close: () => file.close?.() }, 160);
    };
    return app(environ, startResponse);
  };
  const content = DATA.toString("latin1");
  assert.equal((await run(small, { PATH_INFO: "/data.bin" })).body, content);
  const outcome = await run(small, { PATH_INFO: "/data.bin", HTTP_RANGE: "bytes=0-3,4-99999" });
  assertParts(outcome, content, "application/octet-stream", "0-4,4-100000");
  assert.equal(Math.max(...sizes), 160, `blocks of ${sizes}`); // PEP 3333, "Optional Platform-Specific File Handling"
});

for (const length of [1, 65_536, 65_537]) {
  test(`a file of ${length} bytes is ${length <= 65_536 ? "given whole, in an array" : "wrapped"}`, async () => {
    const { root } = changeable(DATA.subarray(0, length));
    const body = await files(root)(testEnviron({ PATH_INFO: "/data.bin" }), () => () => Promise.resolve());
    assert.equal(Array.isArray(body), length <= 65_536);
    if (Array.isArray(body)) assert.deepEqual(Buffer.concat(body), DATA.subarray(0, length));
    else await body.close?.();
    assert.deepEqual(openFiles(root), []);
  });
}

for (
  const [what, variables] of [
    ["the whole file", {}],
    ["a range", { HTTP_RANGE: "bytes=9-299999" }],
    ["several ranges", { HTTP_RANGE: "bytes=9-99999,100009-299999" }],
  ] as [string, Record<string, string>][]
) {
  test(`the file is closed once when ${what} was sent over a socket`, async () => {
    const wrapped = new Wrapped();
    await using server = start(validator(wrapped.app(ROOT)));
    const headers = Object.values(variables).map((range) => `Range: ${range}`);
    assert.equal((await exchange(server, request("/data.bin", { headers }))).complete, true);
    await wrapped.end();
    assert.deepEqual([wrapped.closed, openFiles(), server.errors.text], [1, [], ""]);
  });
}

for (const range of ["", "Range: bytes=1-", "Range: bytes=0-1,3-"]) {
  test(`the file is closed once when the client leaves in the middle ${range && `of ${range}`}`, async () => {
    const { root, path } = changeable();
    truncateSync(path, 64 * 1024 * 1024); // more than any buffer on the way holds
    const wrapped = new Wrapped();
    await using server = start(validator(wrapped.app(root)));
    const client = await Client.connect(server);
    await client.send(request("/data.bin", range ? { headers: [range] } : {}));
    await client.until(/\r\n\r\n/);
    client.leave();
    await wrapped.end();
    assert.deepEqual([wrapped.count, wrapped.closed, openFiles(root), server.errors.text], [1, 1, [], ""]);
  });
}

test("the file is closed once when the reader of a response in process leaves", async () => {
  const wrapped = new Wrapped();
  const { response, errors } = await answer(validator(wrapped.app(ROOT)), new Request("http://test.example/data.bin"));
  await response.body?.cancel();
  await wrapped.end();
  assert.deepEqual([wrapped.closed, openFiles(), errors.text], [1, [], ""]);
});

test("a file that is closed twice, also while it is read, is closed once, and not read any more", async () => {
  const body = await files(ROOT)(testEnviron({ PATH_INFO: "/data.bin" }), () => () => Promise.resolve());
  assert.ok(Symbol.asyncIterator in body);
  const chunks = body[Symbol.asyncIterator]();
  const reading = chunks.next();
  await Promise.all([body.close?.(), body.close?.()]); // a second close(2) would fail, or be that of another file
  await reading;
  assert.deepEqual(await chunks.next(), { done: true, value: undefined });
  assert.deepEqual(openFiles(), []);
});

test("no file stays open when the response cannot be begun", async () => {
  const { root } = changeable();
  const app = files(root);
  const broken = run((environ) =>
    app(environ, () => {
      throw new Error("Out of order");
    }), { PATH_INFO: "/data.bin" });
  await assert.rejects(broken, /Out of order/);
  assert.deepEqual(openFiles(root), []);
});

test("no file stays open when it cannot be wrapped", async () => {
  const { root } = changeable();
  const app = files(root);
  const broken = run((environ, startResponse) => {
    environ["wsgi.file_wrapper"] = () => {
      throw new Error("Out of paper");
    };
    return app(environ, startResponse);
  }, { PATH_INFO: "/data.bin" });
  await assert.rejects(broken, /Out of paper/);
  await settle();
  assert.deepEqual(openFiles(root), []);
});

for (const range of ["", "Range: bytes=100-", "Range: bytes=0-9,100-"]) {
  test(`a file that shrinks while it is sent makes no complete response ${range && `of ${range}`}`, async () => {
    const { root, path } = changeable();
    const wrapped = new Wrapped();
    const app = wrapped.app(root, (blocks) => {
      if (blocks === (range.includes(",") ? 4 : 1)) truncateSync(path, 70_000);
    });
    await using server = start(validator(app));
    const reply = await exchange(server, request("/data.bin", range ? { headers: [range] } : {}));
    assert.equal(reply.complete, false);
    await wrapped.end();
    assert.match(server.errors.text, /Content-Length/);
    assert.deepEqual([wrapped.closed, openFiles(root)], [1, []]);
  });
}

test("a file that has shrunk to nothing before its first byte is answered with 500", async () => {
  const { root, path } = changeable();
  const app = validator(files(root));
  const emptying: Application = (environ, startResponse) => {
    const wrap = environ["wsgi.file_wrapper"];
    environ["wsgi.file_wrapper"] = (...call) => {
      truncateSync(path, 0);
      return wrap(...call);
    };
    return app(environ, startResponse);
  };
  const { response, errors } = await answer(validator(emptying), new Request("http://test.example/data.bin"));
  assert.equal(response.status, 500);
  await response.body?.cancel();
  assert.match(errors.text, /Content-Length/);
});

test("a file that grows while it is sent is sent as it was declared", async () => {
  const { root, path } = changeable();
  const wrapped = new Wrapped();
  await using server = start(validator(wrapped.app(root, () => appendFileSync(path, "more"))));
  const reply = await exchange(server, request("/data.bin"));
  assert.ok(reply.complete && reply.body === DATA.toString("latin1"));
  await wrapped.end();
  assert.deepEqual([wrapped.closed, openFiles(root), server.errors.text], [1, [], ""]);
});

test("a file that is removed while it is sent is sent to its end", async () => {
  const { root, path } = changeable();
  const wrapped = new Wrapped();
  await using server = start(validator(wrapped.app(root, () => rmSync(path, { force: true }))));
  const reply = await exchange(server, request("/data.bin"));
  assert.ok(reply.complete && reply.body === DATA.toString("latin1"));
  await wrapped.end();
  assert.deepEqual([wrapped.closed, openFiles(root)], [1, []]);
});

/** Does something between the moment a file is found and that in which it is opened. */
function meanwhile(root: string, act: () => void): Application {
  const app = files(root);
  return (environ, startResponse) => {
    const variable = { get: () => void act(), configurable: true, enumerable: true };
    return app(Object.defineProperty(environ, "HTTP_IF_RANGE", variable), startResponse);
  };
}

test("a file that disappears while it is looked up is not there", async () => {
  const { root, path } = changeable();
  const { status } = await run(meanwhile(root, () => rmSync(path, { force: true })), { PATH_INFO: "/data.bin" });
  assert.ok(status === 404 || status === 200, String(status)); // 200 when it was open by then
  assert.deepEqual(openFiles(root), []);
});

test("a file that is replaced while it is looked up is sent as one of the two, with its own ETag", async () => {
  const { root, path } = changeable("the old content");
  const tag = async () => (await run(files(root), { PATH_INFO: "/data.bin" })).headers.get("ETag");
  const old = await tag();
  const { headers, body } = await run(
    meanwhile(root, () => {
      writeFileSync(`${path}.new`, "the new content, which is longer");
      renameSync(`${path}.new`, path);
    }),
    { PATH_INFO: "/data.bin" },
  );
  const expected = headers.get("ETag") === old ? "the old content" : "the new content, which is longer";
  assert.deepEqual([body, headers.get("Content-Length")], [expected, String(expected.length)]);
});

test("a file that was sent before is sent as it is now: replaced, removed, and put back", async () => {
  const { root, path } = changeable("the old content");
  const app = files(root);
  const body = async () => (await run(app, { PATH_INFO: "/data.bin", HTTP_ACCEPT_ENCODING: "gzip" })).body;
  const bodies = [await body(), await body()];
  writeFileSync(`${path}.new`, "the new content, which is longer");
  renameSync(`${path}.new`, path);
  bodies.push(await body());
  appendFileSync(path, " now");
  bodies.push(await body());
  renameSync(path, `${path}.old`);
  bodies.push(await body());
  renameSync(`${path}.old`, path);
  bodies.push(await body());
  const [old, now] = ["the old content", "the new content, which is longer now"];
  assert.deepEqual(bodies, [old, old, now.slice(0, -4), now, "Not Found\n", now]);
});

test("a compressed twin that was sent before and is gone is not sent, and the file itself is", async () => {
  const { root, path } = changeable("as it is");
  writeFileSync(`${path}.gz`, "in gzip");
  const app = files(root);
  const codings = [];
  for (const act of [() => {}, () => {}, () => rmSync(`${path}.gz`)]) {
    act();
    const { headers, body } = await run(app, { PATH_INFO: "/data.bin", HTTP_ACCEPT_ENCODING: "gzip" });
    codings.push([body, headers.get("Content-Encoding"), headers.get("Vary")]);
  }
  const twin = ["in gzip", "gzip", "Accept-Encoding"];
  assert.deepEqual(codings, [twin, twin, ["as it is", null, null]]);
});

// Whoever may write inside the root changes it while a file is looked up.

/** A root with a file at a path, to be swapped for something else, and the same path below a folder outside. */
function swappable(path: string): { root: string; swap: (what: "file" | "folder" | "pipe") => () => void } {
  const folder = mkdtempSync(join(FOLDER, "swappable-"));
  const place = relative(FOLDER, folder);
  put(`${place}/root${path}`, "the file inside");
  put(`${place}/outside${path}`, SECRET);
  const root = join(folder, "root");
  const swap = (what: "file" | "folder" | "pipe") => {
    const place = what === "folder" ? "/sub" : path;
    renameSync(root + place, join(folder, "aside"));
    if (what === "pipe") execFileSync("mkfifo", [root + place]);
    else symlinkSync(`${folder}/outside${place}`, root + place);
    return () => {
      rmSync(root + place);
      renameSync(join(folder, "aside"), root + place);
    };
  };
  return { root, swap };
}

/** Does something before and after a file is opened, the first times or always. */
async function whenOpened<Value>(
  act: () => (() => void) | void,
  run: () => Promise<Value>,
  times = Infinity,
): Promise<Value> {
  const fs = process.getBuiltinModule("node:fs");
  const { openSync } = fs;
  fs.openSync = (...given: Parameters<typeof openSync>) => {
    const undo = times-- > 0 ? act() : undefined;
    try {
      return openSync(...given);
    } finally {
      undo?.();
    }
  };
  try {
    return await within(run(), "an answer");
  } finally {
    fs.openSync = openSync;
  }
}

for (
  const [what, path, variables] of [
    ["a file", "/sub/data.txt", {}],
    ["an index file", "/sub/index.html", {}],
    ["a compressed twin", "/sub/data.txt.gz", { HTTP_ACCEPT_ENCODING: "gzip" }],
  ] as const
) {
  const PATH_INFO = path.replace(/index\.html$|\.gz$/, "");
  const environ = { ...variables, PATH_INFO };
  const swappableTwin = () => {
    const made = swappable(path);
    if (path.endsWith(".gz")) writeFileSync(join(made.root, PATH_INFO), "the file itself");
    return made;
  };
  for (const replaced of ["file", "folder", "pipe"] as const) {
    for (const isPutBack of [false, true]) {
      const name = `${what} whose ${
        replaced === "pipe" ? "place a pipe takes" : `${replaced} becomes a link to outside`
      }`;
      test(`${name}${isPutBack ? ", and what it was again," : ""} while it is opened is not sent`, async () => {
        const { root, swap } = swappableTwin();
        const change = () => {
          if (!existsSync(join(root, "../aside"))) return isPutBack ? swap(replaced) : void swap(replaced);
        };
        const { status, body } = await whenOpened(change, () => run(files(root), environ));
        // Of a twin that is not there any more the file itself is sent.
        const expected = status === 200 && path.endsWith(".gz") ? [200, "the file itself"] : [404, "Not Found\n"];
        assert.deepEqual([status, body], expected);
        assert.deepEqual(openFiles(root), []);
      });
    }
  }

  test(`${what} that is replaced once while it is opened is looked up again, and sent`, async () => {
    const { root } = swappableTwin();
    const replace = () => {
      writeFileSync(join(root, "new"), "the new file inside");
      renameSync(join(root, "new"), root + path);
    };
    const { status, body } = await whenOpened(replace, () => run(files(root), environ), 1);
    assert.deepEqual([status, body], [200, "the new file inside"]);
    assert.deepEqual(openFiles(root), []);
  });
}

for (const replaced of ["file", "folder", "pipe"] as const) {
  const what = replaced === "pipe" ? "whose place a pipe takes" : `whose ${replaced} becomes a link to outside`;
  test(`a file that was sent before, and ${what}, is not sent, until it is what it was`, async () => {
    const { root, swap } = swappable("/sub/data.txt");
    const past = new Date(Date.now() - 5000);
    for (const folder of [root, join(root, "sub")]) utimesSync(folder, past, past);
    const app = files(root);
    const get = async () => (await run(app, { PATH_INFO: "/sub/data.txt" })).body;
    assert.deepEqual([await get(), await get()], ["the file inside", "the file inside"]);
    const undo = swap(replaced);
    assert.equal(await get(), "Not Found\n");
    undo();
    assert.equal(await get(), "the file inside");
  });
}

for (const replaced of ["file", "folder"] as const) {
  test(`a file that was sent before, and whose ${replaced} is another only while it is opened, is not sent`, async () => {
    const { root, swap } = swappable("/sub/data.txt");
    const app = files(root);
    const bodies: string[] = [];
    const change = () => {
      if (bodies.length < 2) return;
      const path = replaced === "file" ? "/sub/data.txt" : "/sub";
      const undo = swap(replaced);
      rmSync(root + path);
      renameSync(join(root, "../outside", path), root + path);
      return () => {
        renameSync(root + path, join(root, "../outside", path));
        symlinkSync(".", root + path);
        undo();
      };
    };
    const { now } = Date;
    Date.now = () => now() + 5000; // the last change of the folders is some time ago
    try {
      await whenOpened(change, async () => {
        while (bodies.length < 3) bodies.push((await run(app, { PATH_INFO: "/sub/data.txt" })).body);
      });
    } finally {
      Date.now = now;
    }
    assert.deepEqual(bodies, ["the file inside", "the file inside", "Not Found\n"]);
    assert.deepEqual(openFiles(root), []);
  });
}

test("a file is sent while others come into its folder all the time", async () => {
  const { root } = swappable("/sub/data.txt");
  let count = 0;
  const change = () => {
    writeFileSync(join(root, `sub/${count}`), "another file");
    utimesSync(join(root, "sub"), ++count, count); // in one second all times are the same to Deno
  };
  const { status, body } = await whenOpened(change, () => run(files(root), { PATH_INFO: "/sub/data.txt" }));
  assert.deepEqual([status, body], [200, "the file inside"]);
});

test("a pipe in the root is not there, and others are still served", async () => {
  const { root } = changeable("the file");
  execFileSync("mkfifo", [join(root, "pipe")]);
  await using server = start(files(root));
  for (let count = 0; count < 40; count++) {
    const client = await Client.connect(server);
    await client.send(request("/pipe"));
    assert.equal(parse(await client.end()).status, 404);
  }
  assert.equal((await exchange(server, request("/data.bin"))).body, "the file");
});

test("a folder that is swapped for a link to outside all the time never leads there", async () => {
  const { root } = swappable("/sub/data.txt");
  symlinkSync(join(root, "../outside/sub"), join(root, "link"));
  const state = new Int32Array(new SharedArrayBuffer(4));
  const swapping = new Worker(
    `const { renameSync } = require("node:fs");
    const { parentPort, workerData: { root, state } } = require("node:worker_threads");
    const move = (from, to) => renameSync(root + from, root + to);
    parentPort.postMessage("swapping");
    for (let count = 0; count < 1_000_000 && Atomics.load(state, 0) === 0; count++) {
      move("/sub", "/folder");
      move("/link", "/sub");
      move("/sub", "/link");
      move("/folder", "/sub");
    }
    parentPort.postMessage("done");`,
    { eval: true, workerData: { root, state } },
  );
  const isSwapping = new Event("the first swap");
  const isDone = new Event("the last swap");
  swapping.on("message", (message) => (message === "done" ? isDone : isSwapping).happen());
  await isSwapping.wait();
  const app = files(root, { listing: true });
  writeFileSync(join(root, "../outside/sub/only-outside"), SECRET);
  const bodies = new Set<string>();
  const listings = new Set<string>();
  for (let count = 0; count < 500; count++) {
    bodies.add((await run(app, { PATH_INFO: "/sub/data.txt" })).body);
    listings.add((await run(app, { PATH_INFO: "/sub/" })).body);
  }
  Atomics.store(state, 0, 1);
  await isDone.wait();
  assert.ok(!bodies.has(SECRET), [...bodies].join());
  assert.ok(![...listings].some((listing) => listing.includes("only-outside")), [...listings].join());
  assert.equal((await run(app, { PATH_INFO: "/sub/data.txt" })).body, "the file inside");
  await swapping.terminate();
});

// The root.

for (
  const [what, root] of [
    ["is missing", join(FOLDER, "absent")],
    ["is a file", join(ROOT, "index.html")],
    ["is a broken link", join(ROOT, "broken")],
    ["is a loop of links", join(ROOT, "loop")],
    ["is empty", ""],
    ["has a NUL", `${ROOT}\0`],
    ["is a URL of something else than a file", new URL("http://test.example/")],
    ["is a URL of a file that is missing", pathToFileURL(join(FOLDER, "absent"))],
  ] as [string, string | URL][]
) {
  test(`a root that ${what} is refused at once, by name`, () => {
    assert.throws(() => files(root), (error: unknown) => {
      assert.ok(error instanceof Error);
      assert.match(error.message, /^Cannot serve files from ".*": expected a folder/);
      assert.ok(error.cause instanceof Error || root === "");
      return true;
    });
  });
}

test("a root that may not be read is refused at once", async () => {
  const { root } = changeable();
  chmodSync(root, 0);
  await unprivileged(() => assert.throws(() => files(root), /Cannot serve files from/));
});

const ROOTS: [what: string, root: string | URL, path: string][] = [
  ["with a slash at its end", `${ROOT}/`, "/sub/index.html"],
  ["with dot segments", `${ROOT}/sub/../.`, "/sub/index.html"],
  ["through a symbolic link", join(FOLDER, "alias"), "/sub/index.html"],
  ["relative to the working folder", relative(process.cwd(), ROOT), "/sub/index.html"],
  ["given as a URL", pathToFileURL(ROOT), "/sub/index.html"],
  ["given as a URL with a slash at its end", new URL(`${pathToFileURL(ROOT)}/`), "/sub/index.html"],
  ["given as a URL that is encoded", pathToFileURL(join(ROOT, "with space")), "/100%/index.html"],
  ["in a hidden folder", join(ROOT, "deep/.git"), "/config"],
  ["that is all there is", "/", `${ROOT}/sub/index.html`],
];
for (const [what, root, path] of ROOTS) {
  test(`a root ${what} is served, and nothing around it`, async () => {
    const app = validator(files(root));
    assert.equal((await run(app, { PATH_INFO: path })).status, 200);
    for (const PATH_INFO of ["/../outside/secret.txt", "/sub/../../outside/secret.txt"]) {
      assert.equal((await run(app, { PATH_INFO })).status, 404);
    }
  });
}

/** Two releases of a folder, and a link to the first, which can be switched to the second. */
function releases(): { link: string; old: string; switchOver: () => void } {
  const folder = mkdtempSync(join(FOLDER, "releases-"));
  const place = relative(FOLDER, folder);
  put(`${place}/one/sub/data.txt`, "the first release");
  put(`${place}/two/sub/data.txt`, "the second release, which is longer");
  const current = join(folder, "current");
  symlinkSync("one", current);
  const switchOver = () => {
    symlinkSync("two", `${current}.new`);
    renameSync(`${current}.new`, current);
  };
  return { link: current, old: join(folder, "one"), switchOver };
}

test("a root that is a link is followed at each request", async () => {
  const { link, switchOver } = releases();
  for (const root of [link, `${link}/`, pathToFileURL(link), relative(process.cwd(), link)]) {
    symlinkSync("one", `${link}.new`);
    renameSync(`${link}.new`, link);
    const app = validator(files(root));
    assert.equal((await run(app, { PATH_INFO: "/sub/data.txt" })).body, "the first release");
    switchOver();
    assert.equal((await run(app, { PATH_INFO: "/sub/data.txt" })).body, "the second release, which is longer");
  }
});

test("a root that is a link to nothing for a while has no files meanwhile", async () => {
  const { link } = releases();
  const app = validator(files(link));
  renameSync(link, `${link}.old`);
  assert.equal((await run(app, { PATH_INFO: "/sub/data.txt" })).status, 404);
  renameSync(`${link}.old`, link);
  assert.equal((await run(app, { PATH_INFO: "/sub/data.txt" })).status, 200);
});

test("a root that is switched while a file is opened gives the file of one release, old or new", async () => {
  for (const isRemoved of [false, true]) {
    const { link, old, switchOver } = releases();
    const change = () => {
      switchOver();
      if (isRemoved) rmSync(old, { recursive: true });
    };
    const { status, headers, body } = await whenOpened(
      change,
      () => run(files(link), { PATH_INFO: "/sub/data.txt" }),
      1,
    );
    const expected = isRemoved ? "the second release, which is longer" : "the first release";
    assert.deepEqual([status, body, headers.get("Content-Length")], [200, expected, String(expected.length)]);
    assert.deepEqual(openFiles(old), []);
  }
});

test("a root that is switched while a file is looked up gives the file of the new release", async () => {
  const { link, old, switchOver } = releases();
  const fs = process.getBuiltinModule("node:fs");
  const { existsSync } = fs;
  fs.existsSync = (path) => {
    fs.existsSync = existsSync;
    switchOver();
    rmSync(old, { recursive: true });
    return existsSync(path);
  };
  const { status, body } = await run(files(link), { PATH_INFO: "/sub/data.txt" });
  assert.deepEqual([status, body], [200, "the second release, which is longer"]);
});

for (const replaced of ["file", "folder"] as const) {
  test(`a ${replaced} of a new release is not sent while it is a link to outside`, async () => {
    const { link } = releases();
    const { root, swap } = swappable("/sub/data.txt");
    const app = files(link);
    symlinkSync(root, `${link}.new`);
    renameSync(`${link}.new`, link);
    const { status, body } = await whenOpened(() => swap(replaced), () => run(app, { PATH_INFO: "/sub/data.txt" }), 1);
    assert.deepEqual([status, body], [200, "the file inside"]); // looked up again after the first file was refused
  });
}

// Dot files and symbolic links.

const HIDDEN = [
  "/.env",
  "/.env/",
  "/..twice",
  "/.well-known/",
  "/.well-known/.env",
  "/.well-known/.well-known/x",
  "/.well-known/seen",
  "/.well-known/../.env",
  "/.well-known/.",
  "/.well-known-not/x",
  "/sub/.well-known/x",
  "/deep/.git/config",
  "/deep/.git",
  "/seen-env",
  "/seen-folder/config",
  "/seen-folder",
  "/seen-twice",
  "/.dotted-link",
];
for (const path of HIDDEN) {
  test(`${path} is hidden`, async () => {
    const { status, headers, body } = await get(path);
    assert.deepEqual([status, headers.get("Location")], [404, null]);
    assert.ok(!body.includes("hidden"));
  });
}

test("/.well-known is no dot file: RFC 8615, section 3", async () => {
  for (const options of [{}, { dotFiles: true }]) {
    assert.equal((await get("/.well-known/security.txt", {}, options)).body, "what is well known");
    assert.equal((await get("/.well-known", {}, options)).headers.get("Location"), "/.well-known/");
  }
  await using server = start(validator(files(ROOT)));
  const { status, body } = await exchange(server, request("/%2Ewell-known/security.txt"));
  assert.deepEqual([status, body], [200, "what is well known"]);
});

for (const path of ["/.env", "/..twice", "/.well-known/.env", "/deep/.git/config", "/seen-env"]) {
  test(`${path} is served with dotFiles: true`, async () => {
    const { status, body } = await get(path, {}, { dotFiles: true });
    assert.deepEqual([status, body], [200, "hidden content"]);
  });
}

for (const path of ["/inside.txt", "/absolute.txt", "/round.txt", "/by-alias.txt", "/inside/../index.html"]) {
  const isThere = !path.includes("..");
  test(`${path} ${isThere ? "leads by a link to a file of the root" : "is no path"}`, async () => {
    const { status, body } = await get(path);
    assert.deepEqual([status, body === PAGE], isThere ? [200, true] : [404, false]);
  });
}

test("a volume of Kubernetes is served by the names of its links, and followed to its next version", async () => {
  const root = mkdtempSync(join(FOLDER, "volume-"));
  const place = relative(FOLDER, root);
  for (const version of ["1", "2"]) {
    put(`${place}/..2024_01_0${version}/file.txt`, `version ${version}`);
    put(`${place}/..2024_01_0${version}/sub/file.txt.gz`, `version ${version} below`);
    put(`${place}/..2024_01_0${version}/sub/file.txt`, "not compressed");
    put(`${place}/..2024_01_0${version}/.env`, "hidden content");
  }
  symlinkSync("..2024_01_01", join(root, "..data"));
  for (const name of ["file.txt", "sub", ".env"]) symlinkSync(`..data/${name}`, join(root, name));
  symlinkSync("..data/.env", join(root, "seen-env"));
  symlinkSync("..data", join(root, "seen-data"));
  const app = validator(files(root));
  const gzip = { HTTP_ACCEPT_ENCODING: "gzip" };
  for (const version of ["1", "2"]) {
    assert.equal((await run(app, { PATH_INFO: "/file.txt" })).body, `version ${version}`);
    assert.equal((await run(app, { PATH_INFO: "/sub/file.txt", ...gzip })).body, `version ${version} below`);
    symlinkSync("..2024_01_02", join(root, "..data_tmp"));
    renameSync(join(root, "..data_tmp"), join(root, "..data"));
  }
  for (const PATH_INFO of ["/..data/file.txt", "/..2024_01_02/file.txt", "/.env", "/seen-env", "/seen-data"]) {
    assert.equal((await run(app, { PATH_INFO })).status, 404, PATH_INFO);
  }
});

test("a link to a folder of the root is a folder", async () => {
  assert.equal((await get("/inside/")).body, "sub index");
  assert.equal((await get("/inside/start.htm")).body, "sub start");
});

// Ways out. None of these leads anywhere inside, however it is read.

const OUT = [
  "/outside.txt",
  "/outside-absolute.txt",
  "/outside/secret.txt",
  "/outside/",
  "/outside",
  "/beside/secret.txt",
  "/up/outside/secret.txt",
  "/up/root-beside/secret.txt",
  "/up/",
  "/up",
  "/chain.txt",
  "/indexed/",
  "/..",
  "/../",
  "/../outside/secret.txt",
  "/../root-beside/secret.txt",
  "/../root/index.html/../../outside/secret.txt",
  "/sub/../../outside/secret.txt",
  "/sub/./../../outside/secret.txt",
  "/absent/../../outside/secret.txt",
  "/index.html/../../outside/secret.txt",
  "/../../../../../../../../../../../../etc/passwd",
  `/..${FOLDER}/outside/secret.txt`,
  "/./outside/secret.txt",
  "/.../outside/secret.txt",
  "/back\\slash.txt",
  "/..\\outside\\secret.txt",
  "/\\..\\outside\\secret.txt",
  "\\..\\outside\\secret.txt",
  "/sub\\..\\..\\outside\\secret.txt",
  "/..;/outside/secret.txt",
  "/.. /outside/secret.txt",
  "/..\0/outside/secret.txt",
  "/\0",
  "/index.html\0",
  "/index.html\0.png",
  "/outside.txt\0.html",
  "//etc/passwd",
  "//",
  "///etc/passwd",
  `/${FOLDER}/outside/secret.txt`,
  `//${FOLDER}/outside/secret.txt`,
  `${FOLDER}/outside/secret.txt`,
  "/~root/secret.txt",
  "/~/secret.txt",
  "/C:/outside/secret.txt",
  "/file:///etc/passwd",
  "/index.html.",
  "/index.html..",
  "/index.html ",
  "/sub/.",
  "/sub/..",
  "/%2e%2e/outside/secret.txt",
  "/%2E%2e%2foutside%2fsecret.txt",
  "/..%2foutside/secret.txt",
  "/..%5coutside%5csecret.txt",
];
const OUT_BYTES = [
  "/\xc0\xae\xc0\xae/outside/secret.txt",
  "/..\xc0\xafoutside/secret.txt",
  "/\xe0\x80\xae\xe0\x80\xae/outside/secret.txt",
  "/\xf0\x80\x80\xae\xf0\x80\x80\xae/outside/secret.txt",
  "/\xff",
  "/\x80index.html",
  "/index.html\xff",
  "/\xed\xa0\x80",
  "/\xc3",
  "/\xef\xbb\xbf/index.html",
  "/\xef\xbb\xbfindex.html",
  "/\u012e\u012e/outside/secret.txt", // no native string
];

/** No bytes from outside, and no sign that there is something. */
function assertNowhere({ status, body }: Pick<Reply, "status" | "body">, path: string, ...others: number[]): void {
  assert.ok(!body.includes(SECRET) && !body.includes("root:"), `${JSON.stringify(path)} leads out`);
  assert.ok([404, ...others].includes(status), `${JSON.stringify(path)} is answered with ${status}`);
}

for (const PATH_INFO of [...OUT.map(native), ...OUT_BYTES]) {
  // The application alone has to be safe, without a server that would refuse what is no path.
  test(`the path ${JSON.stringify(PATH_INFO.replace(FOLDER, "/folder"))} leads nowhere`, async () => {
    for (const options of [{}, { dotFiles: true }, { precompressed: false }]) {
      for (const REQUEST_METHOD of ["GET", "HEAD"]) {
        assertNowhere(await run(files(ROOT, options), { REQUEST_METHOD, PATH_INFO }), PATH_INFO);
      }
    }
  });
}

for (
  const PATH_INFO of [
    "index.html",
    "sub/index.html",
    "../outside/secret.txt",
    "..",
    ".",
    "-beside/secret.txt",
    "\xef\xbb\xbf/index.html",
    "\xef\xbb\xbf/../outside/secret.txt",
  ]
) {
  test(`the path ${JSON.stringify(PATH_INFO)}, which has no slash at its beginning, leads nowhere`, async () => {
    for (const dotFiles of [false, true]) {
      assertNowhere(await run(files(ROOT, { dotFiles }), { PATH_INFO }), PATH_INFO);
    }
  });
}

test("a path without a slash leads nowhere in the root of all, either", async () => {
  for (const PATH_INFO of ["etc/passwd", `${ROOT.slice(1)}/index.html`]) {
    assertNowhere(await run(files("/"), { PATH_INFO }), PATH_INFO);
  }
});

test("an empty path leads to the root's own address", async () => {
  const { status, headers } = await run(files(ROOT), { SCRIPT_NAME: "", PATH_INFO: "" });
  assert.deepEqual([status, headers.get("Location")], [301, "/"]);
});

/** Targets as they may be sent, encoded or not. The URL parser of either runtime makes something of them. */
function targetsOf(path: string): string[] {
  const encode = (pattern: RegExp) =>
    path.replace(pattern, (character) => `%${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
  const isRaw = /^[\x21-\x7e]+$/.test(path) && !path.includes("#");
  const encoded = encode(/[^\w~/-]/g);
  return [...isRaw ? [path] : [], encoded, encode(/[^\w~-]/g).replace(/^%2f/, "/"), encoded.replaceAll("%", "%25")];
}

for (const dotFiles of [false, true]) {
  test(`no target leads out over a socket, encoded once, twice, or not, with dotFiles: ${dotFiles}`, async () => {
    await using server = start(validator(files(ROOT, { dotFiles })));
    const paths = [...OUT.filter((path) => !/^\/(?:index\.html|sub|~|up\/?$)/.test(path)).map(native), ...OUT_BYTES];
    const targets = paths.flatMap(targetsOf).filter((target) => target.startsWith("/"));
    const whole = ["http://test.example/../outside/secret.txt", "file:///etc/passwd", "../outside/secret.txt", "*"];
    const odd = ["/%", "/%2", "/%zz", "/%00", "/..%00/", "/%c0%ae%c0%ae%c0%afoutside/secret.txt", "/%u002e%u002e/"];
    const send = async (target: string) => {
      const reply = await exchange(server, request(target));
      // Dot segments that the URL parser has resolved lead to the root itself, or to what it lacks.
      const isRoot = reply.status === 200 && reply.body === PAGE;
      if (!isRoot) assertNowhere(reply, target, 400);
    };
    const all = [...new Set([...targets, ...whole, ...odd])];
    for (let at = 0; at < all.length; at += 16) await Promise.all(all.slice(at, at + 16).map(send));
    assert.equal(server.errors.text, "");
  });
}

test("a very long target is refused by the runtime or not found", async () => {
  await using server: Server = start(validator(files(ROOT)));
  for (const length of [300, 5000, 12_000]) {
    const client = await Client.connect(server);
    await client.send(request(`/${"../".repeat(length / 3)}outside/secret.txt`));
    const reply = parse(await client.end());
    assertNowhere(reply, `${length} bytes of dot segments`, 400, 414, 431);
  }
});

// Deno gives paths to the system as they are only to programs that may do everything.
test("a file with a slash at its end is not there, for a program that may do no more than read either", () => {
  const program = `
    import { files, runApplication, testEnviron } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    const environ = testEnviron({ PATH_INFO: "/index.html/" });
    console.log((await runApplication(files(${JSON.stringify(ROOT)}), environ)).status);
  `;
  const path = join(FOLDER, "program.ts");
  writeFileSync(path, program);
  const args = RUNTIME === "deno" ? ["run", "--no-prompt", "--allow-read", path] : ["run", path];
  assert.equal(execFileSync(process.execPath, args, { encoding: "utf8" }), "404 Not Found\n");
});

test("Deno runs a program and its modules, in TypeScript, by their addresses in a folder that is served", {
  skip: RUNTIME === "deno" ? false : "Bun imports no module by its address",
}, async () => {
  const root = mkdtempSync(join(FOLDER, "modules-"));
  writeFileSync(
    join(root, "main.ts"),
    `import { one } from "./one.mts"; import { same } from "./same.tsx"; console.log(same(one) as string)`,
  );
  writeFileSync(join(root, "one.mts"), `export const one: string = "one";`);
  writeFileSync(join(root, "same.tsx"), `export const same = <T,>(value: T): T => value;`);
  await using server = start(files(root));
  const args = ["run", "--quiet", "--no-config", addressOf(server, "/main.ts")];
  await using child = new Child(process.execPath, args, { ...process.env, DENO_DIR: join(root, "cache") });
  const { output, errors } = await child.ended();
  assert.deepEqual([output, errors], ["one\n", ""]);
});

// Listings.

/** A row of a listing, as a browser shows it. */
interface Row {
  href: string;
  name: string;
  size: string;
  date: string;
}

function rowsOf(page: string): Row[] {
  const text = (html = "") => html.replace(/&#(\d+);/g, (_reference, code) => String.fromCharCode(Number(code)));
  return [...page.matchAll(/<tr><td><a href="([^"]*)">([^<]*)<\/a><td>([^<]*)<td>(.*)\n/g)]
    .map(([, href, name, size, date]) => ({ href: text(href), name: text(name), size: text(size), date: text(date) }));
}

/** The names that a folder is listed with; undefined if it is not listed. */
async function listed(root: string, variables: Partial<Environ> = {}, options: FilesOptions = {}) {
  const { status, body } = await run(validator(files(root, { listing: true, ...options })), variables);
  return status === 200 ? rowsOf(Buffer.from(body, "latin1").toString()).map(({ name }) => name) : undefined;
}

/** A folder with files of some sizes. */
function folderOf(sizes: Record<string, number>): string {
  const root = mkdtempSync(join(FOLDER, "listed-"));
  for (const [name, size] of Object.entries(sizes)) put(join(relative(FOLDER, root), name), new Uint8Array(size));
  return root;
}

test("a folder without an index file is not there, and with listing: true it is a page", async () => {
  assert.equal((await get("/bare/")).status, 404);
  const { status, list, body } = await get("/bare/", {}, { listing: true, cacheControl: "max-age=60" });
  assert.equal(status, 200);
  assert.deepEqual(list, [
    ["Content-Type", "text/html; charset=utf-8"],
    ["Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"],
    ["Cache-Control", "no-cache"], // the value for files may say for how long they never change
  ]);
  assert.match(body, /^<!doctype html>/);
  assert.match(body, /<h1>Index of \/bare\/<\/h1>/);
});

test("with listing: true, a folder is still served by its index file, and redirected to", async () => {
  assert.equal((await get("/sub/", {}, { listing: true })).body, "sub index");
  const { status, headers } = await get("/bare", {}, { listing: true });
  assert.deepEqual([status, headers.get("Location")], [301, "/bare/"]);
  for (const path of ["/absent/", "/bare/file.txt/", "/absent"]) {
    assert.equal((await get(path, {}, { listing: true })).status, 404);
  }
});

test("a listing has folders first, then files, in the order in which people count", async () => {
  const root = folderOf({ "file10": 0, "file2": 0, "Zoo": 0, "apple": 0, "zebra/x": 0, "älter": 0, "b1/x": 0 });
  assert.deepEqual(await listed(root), ["b1/", "zebra/", "älter", "apple", "file2", "file10", "Zoo"]);
});

test("a listing has sizes, and dates in UTC", async () => {
  const sizes = { a: 0, b: 999, c: 1000, d: 1049, e: 99_949, f: 99_950, g: 999_499, h: 999_500, i: 0, j: 0, k: 0 };
  const root = folderOf({ ...sizes, "sub/x": 1 });
  for (const [name, size] of [["i", 1_234_567_890], ["j", 2.5e12], ["k", 1.5e13]] as const) {
    truncateSync(join(root, name), size);
  }
  for (const name of ["i", "j", "k", "sub"]) utimesSync(join(root, name), DAY, DAY);
  utimesSync(join(root, "a"), 0, 951_782_399);
  const { body } = await run(files(root, { listing: true }));
  assert.deepEqual(rowsOf(body).map(({ name, size }) => `${name} ${size}`), [
    "sub/ ",
    "a 0 B",
    "b 999 B",
    "c 1.0 kB",
    "d 1.0 kB",
    "e 99.9 kB",
    "f 100 kB",
    "g 999 kB",
    "h 1.0 MB",
    "i 1.2 GB",
    "j 2.5 TB",
    "k 15.0 TB",
  ]);
  const dates = new Map(rowsOf(body).map(({ name, date }) => [name, date]));
  assert.deepEqual([dates.get("sub/"), dates.get("a"), dates.get("b")], [
    "2024-01-01 00:00",
    "2000-02-28 23:59",
    "2024-01-01 00:00",
  ]);
});

test("each name of a listing is shown as it is, and leads to its file", async () => {
  const { body } = await get("/names/", {}, { listing: true });
  const rows = rowsOf(Buffer.from(body, "latin1").toString());
  const expected = ["../", ...NAMES.filter((name) => !name.startsWith("."))];
  assert.deepEqual(rows.map(({ name }) => name).sort(), expected.sort());
  assert.deepEqual(
    new Set(body.match(/<[a-z]\w*/g)).difference(new Set(["<html", "<meta", "<title", "<style"])),
    new Set([
      "<h1",
      "<table",
      "<thead",
      "<tr",
      "<th",
      "<tbody",
      "<td",
      "<a",
    ]),
  );
  for (const { href, name } of rows.slice(1)) {
    const { origin, pathname, search, hash } = new URL(href, "http://test.example/names/");
    assert.deepEqual([origin, search, hash], ["http://test.example", "", ""]);
    const PATH_INFO = native(decodeURIComponent(pathname));
    assert.equal((await run(files(ROOT), { PATH_INFO })).body, native(name));
  }
});

test("a folder is listed below a prefix, by links that hold there, and behind a proxy that takes the prefix away", async () => {
  const root = folderOf({ "sub/a b/x": 0 });
  await using server = start(mount({ "/files": validator(files(root, { listing: true })) }), { scriptName: "/app" });
  const { body } = await exchange(server, request("/app/files/sub/"));
  assert.match(body, /<title>Index of \/app\/files\/sub\/<\/title>/);
  assert.deepEqual(rowsOf(body).map(({ href }) => href), ["./../", "./a%20b/"]);
  assert.deepEqual(rowsOf((await exchange(server, request("/app/files/"))).body).map(({ href }) => href), ["./sub/"]);
  assert.equal((await exchange(server, request("/app/files/sub/a%20b/"))).status, 200);
});

test("an empty folder is said to be empty, and a folder below has a link to the one above", async () => {
  const root = folderOf({});
  assert.match((await run(files(root, { listing: true }))).body, /This folder is empty/);
  mkdirSync(join(root, "sub"));
  assert.deepEqual(await listed(root, { PATH_INFO: "/sub/" }), ["../"]);
});

test("a listing has nothing that would not be served: dot files, links to outside, pipes, backslashes", async () => {
  const root = folderOf({
    ".env": 0,
    ".git/config": 0,
    "back\\slash": 0,
    "file": 3,
    "sub/.env": 0,
    ".well-known/x": 0,
  });
  for (
    const [name, target] of [
      ["linked", "file"],
      ["linked-sub", "sub"],
      ["out", "../outside"],
      ["out.txt", "../outside/secret.txt"],
      ["up", ".."],
      ["broken", "nowhere"],
      ["loop", "loop"],
      ["seen-env", ".env"],
      ["seen-git", ".git"],
    ] as const
  ) {
    symlinkSync(target, join(root, name));
  }
  if (process.platform !== "win32") execFileSync("mkfifo", [join(root, "pipe")]);
  const seen = ["linked-sub/", "sub/", "file", "linked"];
  assert.deepEqual(await listed(root), seen);
  assert.deepEqual(await listed(root, { PATH_INFO: "/linked-sub/" }), ["../"]);
  assert.deepEqual(await listed(root, { PATH_INFO: "/.well-known/" }), ["../", "x"]);
  const all = await listed(root, {}, { dotFiles: true }) ?? [];
  assert.deepEqual(all.sort(), [...seen, ".env", ".git/", ".well-known/", "seen-env", "seen-git/"].sort());
  for (const PATH_INFO of ["/out/", "/up/", "/.git/", "/seen-git/", "/pipe/"]) {
    assert.equal(await listed(root, { PATH_INFO }), undefined);
  }
  const { body } = await run(files(root, { listing: true }));
  assert.equal(rowsOf(body).find(({ name }) => name === "linked")?.size, "3 B");
});

test("a name that is not UTF-8, and so no path leads to, is not listed", async () => {
  const root = folderOf({ "\ufffd": 0, "fine": 0 });
  writeFileSync(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff])]), "");
  assert.deepEqual((await listed(root))?.sort(), ["fine", "\ufffd"]);
});

test("a listing answers HEAD, a conditional request, and a client that accepts gzip", async () => {
  const app = pipeline(
    files(folderOf(Object.fromEntries(NAMES.map((_name, at) => [`file${at}`, at]))), { listing: true }),
    conditional,
    (app) => compress(app, { threshold: 0 }),
  );
  const ask = async (init: RequestInit = {}) => (await answer(app, new Request("http://test.example/", init))).response;
  const page = await ask();
  const head = await ask({ method: "HEAD" });
  const { length } = new Uint8Array(await page.arrayBuffer());
  assert.deepEqual([head.status, await head.text(), head.headers.get("Content-Length")], [200, "", String(length)]);
  assert.equal((await ask({ headers: { "If-None-Match": page.headers.get("ETag") ?? "" } })).status, 304);
  const coded = await ask({ headers: { "Accept-Encoding": "gzip" } });
  assert.equal(coded.headers.get("Content-Encoding"), "gzip");
});

test("a folder of 10,000 files is listed whole, in order", async () => {
  const names = Array.from({ length: 10_000 }, (_, at) => `file ${at}`);
  const root = folderOf({});
  for (const name of names) writeFileSync(join(root, name), "");
  assert.deepEqual(await listed(root), names);
});

test("a folder that may be entered but not read is not listed", async () => {
  const root = folderOf({ "closed/file": 1 });
  chmodSync(root, 0o755);
  chmodSync(join(root, "closed"), 0o311);
  await unprivileged(async () => {
    assert.equal(await listed(root, { PATH_INFO: "/closed/" }), undefined);
    assert.equal((await run(files(root, { listing: true }), { PATH_INFO: "/closed/file" })).status, 200);
  });
});

/** Changes what is seen of a path, by `Deno.lstatSync` or `node:fs`. */
async function whenSeen<Value>(see: (path: unknown, look: () => object) => object, run: () => Promise<Value>) {
  const { Deno = process.getBuiltinModule("node:fs") } = globalThis as { Deno?: object };
  const looking = Deno as { lstatSync(...given: unknown[]): object };
  const { lstatSync } = looking;
  looking.lstatSync = (...given) => see(given[0], () => lstatSync(...given));
  try {
    return await within(run(), "a listing");
  } finally {
    looking.lstatSync = lstatSync;
  }
}

/** Does something before a folder is read, for the first, second, … time, and undoes it before its path is traced. */
async function whenRead<Value>(
  folder: string,
  act: (count: number) => (() => void) | void,
  run: () => Promise<Value>,
): Promise<Value> {
  const fs = process.getBuiltinModule("node:fs");
  const { readdirSync } = fs;
  let count = 0;
  let undo: (() => void) | void;
  fs.readdirSync = ((...given: Parameters<typeof readdirSync>) => {
    undo = act(++count);
    return readdirSync(...given);
  }) as typeof readdirSync;
  const see = (path: unknown, look: () => object) => {
    const undoing = path === folder ? undo : undefined;
    if (undoing) undo = undefined; // since it may look there itself
    undoing?.();
    return look();
  };
  try {
    return await whenSeen(see, run);
  } finally {
    fs.readdirSync = readdirSync;
  }
}

/** Stops the clock of the file system, so that changes leave no marks. */
function withoutMarks<Value>(run: () => Promise<Value>): Promise<Value> {
  const now = Date.now();
  const [time, nanoseconds] = [new Date(now), BigInt(now) * 1_000_000n];
  const marks = { mtime: time, ctime: time, mtimeNs: nanoseconds, ctimeNs: nanoseconds, mtimeMs: now, ctimeMs: now };
  return whenSeen((_path, look) => Object.assign(look(), marks), run);
}

for (
  const [what, isPutBack, isDue, status] of [
    ["becomes a link to outside while it is read", false, () => true, 404],
    ["is a link to outside once while it is read", true, (count) => count === 1, 200],
    ["is a link to outside each time but one while it is read", true, (count) => count !== 5, 200],
  ] as [string, boolean, (count: number) => boolean, number][]
) {
  test(`a folder that ${what} shows nothing of outside`, async () => {
    const { root, swap } = swappable("/sub/data.txt");
    writeFileSync(join(root, "../outside/sub/only-outside"), SECRET);
    const app = files(root, { listing: true });
    const change = (count: number) => {
      const undo = isDue(count) && !existsSync(join(root, "../aside")) ? swap("folder") : undefined;
      if (isPutBack) return undo;
    };
    const list = () => withoutMarks(() => run(app, { PATH_INFO: "/sub/" }));
    const listing = await whenRead(join(root, "sub"), change, list);
    assert.equal(listing.status, status);
    assert.ok(!listing.body.includes("only-outside"), listing.body);
  });
}

test("a file whose folder is a link to outside until the file has been looked at is not sent", async () => {
  const { root, swap } = swappable("/sub/data.txt");
  let undo: (() => void) | undefined;
  const open = () => void (undo = swap("folder"));
  const see = (path: unknown, look: () => object) => {
    const seen = look();
    if (path === join(root, "sub/data.txt")) {
      undo?.();
      undo = undefined;
    }
    return seen;
  };
  const get = () => whenOpened(open, () => run(files(root), { PATH_INFO: "/sub/data.txt" }));
  const { status, body } = await withoutMarks(() => whenSeen(see, get));
  assert.deepEqual([status, body], [404, "Not Found\n"]);
  assert.deepEqual(openFiles(root), []);
});

test("a link whose target is outside each time the target is traced is not listed as what is there", async () => {
  const { root, swap } = swappable("/sub/data.txt");
  symlinkSync("sub/data.txt", join(root, "link.txt"));
  let looks = 0;
  const see = (path: unknown, look: () => object) => {
    if (path !== join(root, "sub/data.txt") || looks++ % 2 === 0) return look();
    const undo = swap("folder");
    try {
      return look();
    } finally {
      undo();
    }
  };
  const list = () => whenSeen(see, () => run(files(root, { listing: true }), { PATH_INFO: "/" }));
  const { status, body } = await withoutMarks(list);
  assert.equal(status, 200);
  assert.deepEqual(rowsOf(body).map(({ name }) => name), ["sub/"]);
});

test("a folder is listed while files come into it all the time", async () => {
  const { root } = swappable("/sub/data.txt");
  let count = 0;
  const sub = join(root, "sub");
  for (const [folder, PATH_INFO] of [[root, "/"], [sub, "/sub/"]] as const) {
    const app = files(root, { listing: true });
    const come = () => {
      writeFileSync(join(folder, `new${count}`), "another file");
      utimesSync(folder, ++count, count);
    };
    const { status, body } = await whenRead(folder, come, () => run(app, { PATH_INFO }));
    assert.equal(status, 200);
    assert.ok(rowsOf(body).some(({ name }) => name === (PATH_INFO === "/" ? "sub/" : "data.txt")));
  }
});
