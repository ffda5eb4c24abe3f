/**
 * The contenders of the benchmark: `contenders.ts CONTENDER JOB` serves one job in one way, on a port that it says.
 *
 * Each is written as those who use it write it: what is constant is made once, what is made of a request is given as
 * text where that can be, and paths are exact. All send the same bytes, but for the variables of `environ` and the
 * headers that the middleware of `stack` and the servers of files add. The frameworks are in the folder that the
 * variable CACHE names, FOLDER has the files to be sent, LOG is the access log.
 *
 * @module
 */

import { openSync, readFileSync, statSync, writeSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import type { Application, FileLike, InputStream } from "../mod.ts";

type Handler = (request: Request, info: Info) => Response | Promise<Response>;

/** What Deno and Bun tell of a request beside it. */
interface Info {
  remoteAddr?: { hostname: string; port: number };
  requestIP?(request: Request): { address: string; port: number };
}

const { Deno: DENO, Bun: BUN } = globalThis as unknown as {
  Deno?: {
    serve(options: object, handler: Handler): unknown;
    open(path: string): Promise<FileLike & { readable: ReadableStream<Uint8Array> }>;
  };
  Bun?: { serve(options: object): { port: number }; file(path: string): Blob };
};

const { CACHE = "", FOLDER = "", LOG = "/dev/null" } = process.env;
const LARGE_FILE = join(FOLDER, "large.txt");
const ENCODER = new TextEncoder();
const HELLO = ENCODER.encode("Hello, world!");
const HEADERS = { "Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store" };
const JSON_HEADERS = { "Content-Type": "application/json" };
const PLAIN_HEADERS = { "Content-Type": "text/plain; charset=utf-8" };
const ITEMS = Array.from({ length: 20 }, (_, id) => ({ id, name: `The item with number ${id}` }));
const LINES = ["one\n", "two\n", "three\n"].map((line) => ENCODER.encode(line));
const BLOCK_SIZE = 65_536;
const BLOCK = new Uint8Array(BLOCK_SIZE);
const BLOCKS = 16_384; // 1 GiB

type Text = string | null | undefined;

/** What JSON is answered with: some of the request, and about 1 KiB. */
function itemsOf(path: string, { accept, agent, session }: Record<"accept" | "agent" | "session", Text>): string {
  return JSON.stringify({ path, accept: accept ?? "", agent: agent ?? "", session: session ?? "", items: ITEMS });
}

/** The session among the cookies, for those who have no function for it. */
function sessionOf(cookies: Text): Text {
  return cookies && /(?:^|; )session=([^;]*)/.exec(cookies)?.[1];
}

type Chunks = (count: number) => Uint8Array | undefined;

const linesOf: Chunks = (count) => LINES[count];
const downloadOf: Chunks = (count) => count < BLOCKS ? BLOCK : undefined;

/** A stream of chunks that are there at once; if it is flushed, each leaves before the next is asked for. */
function streamOf(next: Chunks, { flushed = false } = {}): ReadableStream<Uint8Array> {
  let count = 0;
  const give = (controller: ReadableStreamDefaultController<Uint8Array>) => {
    const chunk = next(count++);
    if (chunk) controller.enqueue(chunk);
    else controller.close();
  };
  const giveLater = async (controller: ReadableStreamDefaultController<Uint8Array>) => {
    // The runtimes write to their sockets between two turns of the event loop.
    if (count > 0) await new Promise((resolve) => setImmediate(resolve));
    give(controller);
  };
  return new ReadableStream({ pull: flushed ? giveLater : give }, { highWaterMark: 0 });
}

/** Answers with the size of what was uploaded. */
async function sizeOf(chunks: AsyncIterable<Uint8Array>): Promise<Response> {
  let size = 0;
  for await (const { length } of chunks) size += length;
  return new Response(String(size), { headers: HEADERS });
}

/** A file as the runtime gives it. */
async function fileAt(path: string): Promise<Blob | ReadableStream<Uint8Array>> {
  return BUN ? BUN.file(path) : (await DENO!.open(path)).readable;
}

/** The body of a request. */
function bodyOf(request: Request): AsyncIterable<Uint8Array> {
  return request.body as unknown as AsyncIterable<Uint8Array>;
}

/** Each job as somebody writes it who knows only the runtime. */
const RAW: Record<string, Handler> = {
  hello: () => new Response(HELLO, { headers: HEADERS }),
  json({ url, headers }) {
    const session = sessionOf(headers.get("Cookie"));
    const of = { accept: headers.get("Accept"), agent: headers.get("User-Agent"), session };
    return new Response(itemsOf(new URL(url).pathname, of), { headers: JSON_HEADERS });
  },
  environ({ method, url, headers }) {
    const lines = ["wsgi.version: [1,0]", `REQUEST_METHOD: ${method}`, `REQUEST_URI: ${url}`];
    for (let line = 0; line < 18; line++) lines.push(`VARIABLE_${line}: its value`);
    headers.forEach((value, name) => lines.push(`${name}: ${value}`));
    return new Response(`${lines.sort().join("\n")}\n`, { headers: PLAIN_HEADERS });
  },
  stack: () => new Response(HELLO, { headers: HEADERS }),
  generator: () => new Response(streamOf(linesOf), { headers: HEADERS }),
  download: () => new Response(streamOf(downloadOf), { headers: HEADERS }),
  upload: (request) => sizeOf(bodyOf(request)),
  async "upload by blocks"(request) {
    let [size, filled, block] = [0, 0, new Uint8Array(BLOCK_SIZE)];
    for await (let chunk of bodyOf(request)) {
      while (chunk.length > 0) {
        const part = chunk.subarray(0, BLOCK_SIZE - filled);
        block.set(part, filled);
        chunk = chunk.subarray(part.length);
        size += part.length;
        filled += part.length;
        if (filled === BLOCK_SIZE) [filled, block] = [0, new Uint8Array(BLOCK_SIZE)];
      }
    }
    return new Response(String(size), { headers: HEADERS });
  },
  async files({ url }) {
    const path = join(FOLDER, new URL(url).pathname);
    const headers = { ...HEADERS, "Content-Length": String(statSync(path).size) };
    return new Response(await fileAt(path), { headers });
  },
};
RAW["file"] = RAW["files"]!;

/** The jobs with a stream, where each chunk leaves before the next is asked for. */
const FLUSHED: Record<string, Handler> = {
  generator: () => new Response(streamOf(linesOf, { flushed: true }), { headers: HEADERS }),
  download: () => new Response(streamOf(downloadOf, { flushed: true }), { headers: HEADERS }),
};

// As many as there are; what they are is no matter.
const CONSTANTS: Record<string, string> = JSON.parse(`{${Array.from("abcdefghijklmnopq", (name) => `"${name}":""`)}}`);
const NAMES = new Map<string, string>();

/** Gathers all that an environ has, as an environ has it. */
function gather(request: Request, info: Info): Record<string, string> {
  const environ: Record<string, string> = { ...CONSTANTS };
  environ["REQUEST_METHOD"] = request.method;
  environ["REQUEST_URI"] = request.url;
  request.headers.forEach((value, name) => {
    let variable = NAMES.get(name);
    if (!variable) NAMES.set(name, variable = `HTTP_${name.toUpperCase().replaceAll("-", "_")}`);
    environ[variable] = value;
  });
  const peer = info.requestIP?.(request);
  environ["REMOTE_ADDR"] = peer?.address ?? info.remoteAddr!.hostname;
  environ["REMOTE_PORT"] = String(peer?.port ?? info.remoteAddr!.port);
  return environ;
}

/** The jobs of a raw handler that gathers an environ, and then does with it what the application does. */
const GATHER: Record<string, Handler> = {
  hello(request, info) {
    gather(request, info);
    return new Response(HELLO, { headers: HEADERS });
  },
  json(request, info) {
    const { HTTP_ACCEPT, HTTP_USER_AGENT, HTTP_COOKIE } = gather(request, info);
    const of = { accept: HTTP_ACCEPT, agent: HTTP_USER_AGENT, session: sessionOf(HTTP_COOKIE) };
    const text = itemsOf(new URL(request.url).pathname, of);
    return new Response(ENCODER.encode(text), { headers: JSON_HEADERS });
  },
  environ(request, info) {
    const environ = gather(request, info);
    const lines = Object.keys(environ).sort().map((name) => `${name}: ${environ[name]}\n`);
    return new Response(ENCODER.encode(lines.join("")), { headers: PLAIN_HEADERS });
  },
};

const PAIRS = Object.entries(HEADERS);
const JSON_PAIRS = Object.entries(JSON_HEADERS);

const hello: Application = (_environ, startResponse) => {
  startResponse("200 OK", PAIRS);
  return [HELLO];
};

/** Each job as an application. */
const WSGI: Record<string, () => Application | Promise<Application>> = {
  hello: () => hello,
  json: () => ({ PATH_INFO, HTTP_ACCEPT, HTTP_USER_AGENT, HTTP_COOKIE }, startResponse) => {
    const of = { accept: HTTP_ACCEPT, agent: HTTP_USER_AGENT, session: sessionOf(HTTP_COOKIE) };
    startResponse("200 OK", JSON_PAIRS);
    return [ENCODER.encode(itemsOf(PATH_INFO, of))];
  },
  environ: async () => (await import("../examples/environ.ts")).application,
  async stack() {
    const { accessLog, conditional, mount, requestId, secureHeaders } = await import("../mod.ts");
    const log = openSync(LOG, "w");
    const inner = mount({ "/app": conditional(secureHeaders(hello)) });
    return accessLog(requestId(inner), { write: (line) => void writeSync(log, `${line}\n`) });
  },
  generator: () =>
    function* (_environ, startResponse) {
      startResponse("200 OK", PAIRS);
      yield* LINES;
    },
  download: () =>
    function* (_environ, startResponse) {
      startResponse("200 OK", PAIRS);
      for (let count = 0; count < BLOCKS; count++) yield BLOCK;
    },
  upload: () => uploading((input) => input.read1?.(BLOCK_SIZE) ?? input.read(BLOCK_SIZE)),
  "upload by blocks": () => uploading((input) => input.read(BLOCK_SIZE)),
  files: async () => (await import("../mod.ts")).files(FOLDER, { cacheControl: HEADERS["Cache-Control"] }),
  file: () => sending(async () => BUN ? BUN.file(LARGE_FILE) : await DENO!.open(LARGE_FILE)),
  "file by stream": () => sending(() => BUN ? BUN.file(LARGE_FILE).stream() : fileAt(LARGE_FILE)),
  "file by read": () =>
    sending(async () => {
      const file = await open(LARGE_FILE);
      return {
        async read(size) {
          const { buffer, bytesRead } = await file.read(new Uint8Array(size), 0, size);
          return buffer.subarray(0, bytesRead);
        },
        close: () => file.close(),
      };
    }),
};

// An input without `read1` is read by blocks.
type Input = InputStream & Partial<Record<"read1", InputStream["read"]>>;

/** An application that answers with the size of what was uploaded. */
function uploading(read: (input: Input) => Promise<Uint8Array>): Application {
  return async (environ, startResponse) => {
    let size = 0;
    for (;;) {
      const { length } = await read(environ["wsgi.input"]);
      size += length;
      if (length === 0) break;
    }
    startResponse("200 OK", PAIRS);
    return [ENCODER.encode(String(size))];
  };
}

/** An application that gives the large file to `wsgi.file_wrapper`. */
function sending(open: () => FileLike | Promise<FileLike>): Application {
  return async (environ, startResponse) => {
    startResponse("200 OK", [...PAIRS, ["Content-Length", String(statSync(LARGE_FILE).size)]]);
    return environ["wsgi.file_wrapper"](await open());
  };
}

/** Each middleware around `hello`. */
export const MIDDLEWARE: Record<string, (wsgi: typeof import("../mod.ts")) => Application> = {
  accessLog: ({ accessLog }) => accessLog(hello, { write: () => {} }),
  "accessLog, JSON": ({ accessLog }) => accessLog(hello, { format: "json", write: () => {} }),
  basicAuth: ({ basicAuth }) => basicAuth(hello, { realm: "a realm", check: () => true }),
  "compress, not accepted": ({ compress }) => compress(hello),
  conditional: ({ conditional }) => conditional(hello),
  cors: ({ cors }) => cors(hello),
  errorPage: ({ errorPage }) => errorPage(hello),
  health: ({ health }) => health(hello),
  limitBody: ({ limitBody }) => limitBody(hello),
  limitConcurrency: ({ limitConcurrency }) => limitConcurrency(hello, { max: 100 }),
  mount: ({ mount }) => mount({ "/app": hello }),
  proxyFix: ({ proxyFix }) => proxyFix(hello),
  requestId: ({ requestId }) => requestId(hello),
  secureHeaders: ({ secureHeaders }) => secureHeaders(hello),
  timeout: ({ timeout }) => timeout(hello, { milliseconds: 30_000 }),
  trustedHosts: ({ trustedHosts }) => trustedHosts(hello, { hosts: ["www.example.com"] }),
  validator: ({ validator }) => validator(hello),
};

/** A request to which each middleware has something to do, from a proxy. */
function proxiedRequest(): Request {
  return new Request("http://www.example.com/app", {
    headers: {
      "Accept": "text/html",
      "Authorization": "Basic dXNlcjpwYXNzd29yZA==",
      "Host": "www.example.com",
      "Origin": "https://other.example",
      "User-Agent": "a browser",
      "X-Forwarded-For": "192.0.2.1",
      "X-Forwarded-Proto": "https",
    },
  });
}

/** What a middleware takes of a request on top of `hello`, in microseconds of CPU, in process: the best of all batches. */
async function costOf(middleware: string): Promise<number> {
  const wsgi = await import("../mod.ts");
  const peer = { address: "127.0.0.1", hostname: "127.0.0.1", port: 50_000 };
  const info = { remoteAddr: peer, requestIP: () => peer };
  const sides = [hello, MIDDLEWARE[middleware]!(wsgi)].map((app) => ({ handler: wsgi.toFetch(app), least: Infinity }));
  for (let round = 0; round < 80; round++) {
    // Each side takes its turn at being first: what one leaves behind, the other cleans up.
    for (const side of round % 2 ? sides : sides.toReversed()) {
      const requests = Array.from({ length: 250 }, proxiedRequest);
      const before = process.cpuUsage();
      for (const request of requests) await (await side.handler(request, info)).arrayBuffer();
      const { user, system } = process.cpuUsage(before);
      side.least = Math.min(side.least, (user + system) / requests.length);
    }
  }
  return sides[1]!.least - sides[0]!.least;
}

/** What is used of Hono's context, and of those that h3 and Elysia give. */
interface Context {
  req: { path: string; header(name: string): string | undefined; headers: Headers; raw: Request };
  url: URL;
  path: string;
  headers: Record<string, string | undefined>;
  cookie: { session: { value: string | undefined } };
  header(name: string, value: string): void;
  body(body: ReadableStream | Uint8Array | string, status: number, headers: object): Response;
}

/** What is used of an application of theirs. */
interface Framework {
  get(path: string, handler: (context: Context) => unknown): Framework;
  put(path: string, handler: (context: Context) => unknown): Framework;
  use(...middleware: unknown[]): Framework;
  route(path: string, app: Framework): Framework;
  headers(headers: Record<string, string>): Framework;
  listen(options: object, ready: (server: { port: number }) => void): void;
  fetch: Handler;
}

interface Packages extends Record<"Hono" | "H3" | "Elysia", new () => Framework> {
  getCookie(context: Context, name: string): string | undefined;
  serve(options: object): { ready(): Promise<{ url: string }> };
  etag(): unknown;
  serveStatic(options: object): unknown;
}

/** A package that the benchmark has installed, in the form for this runtime. */
async function installed<Exports = Packages>(name: string, subpath = "."): Promise<Exports> {
  const folder = join(CACHE, "node_modules", name);
  let found = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).exports[subpath];
  while (typeof found === "object") found = found[DENO ? "deno" : "bun"] ?? found.import ?? found.default;
  return await import(pathToFileURL(join(folder, found)).href);
}

/** Hono's counterparts of the middleware, with a line in the log for each response alone, as ours has. */
async function honoStack({ Hono }: Packages): Promise<Framework> {
  const names = ["logger", "request-id", "secure-headers", "etag"];
  const modules = await Promise.all(names.map((name) => installed<Record<string, unknown>>("hono", `./${name}`)));
  const { logger, requestId, secureHeaders, etag } = Object.assign({}, ...modules);
  const log = openSync(LOG, "w");
  const write = (line: string) => void (line.startsWith("-->") && writeSync(log, `${line}\n`));
  const inner = new Hono().use(etag(), secureHeaders()).get("/", (context) => context.body(HELLO, 200, HEADERS));
  return new Hono().use(logger(write), requestId()).route("/app", inner);
}

/** Hono's server of files, which makes an ETag of one. */
async function honoFiles({ Hono }: Packages): Promise<Framework> {
  const { serveStatic } = await installed("hono", DENO ? "./deno" : "./bun");
  const { etag } = await installed("hono", "./etag");
  const onFound = (_path: string, context: Context) => context.header("Cache-Control", HEADERS["Cache-Control"]);
  return new Hono().use("/tagged.txt", etag()).use(serveStatic({ root: FOLDER, onFound }));
}

function onListen({ port }: { port: number }): void {
  console.log(`port ${port}`);
}

/** Serves a Fetch handler as the runtime does. */
function listen(handler: Handler): void {
  const options = { hostname: "127.0.0.1", port: 0, maxRequestBodySize: Number.MAX_SAFE_INTEGER };
  if (DENO) DENO.serve({ ...options, onListen }, handler);
  else onListen(BUN!.serve({ ...options, fetch: handler }));
}

/** How each contender serves a job. */
const CONTENDERS: Record<string, (job: string) => Promise<void> | void> = {
  raw: (job) => listen(RAW[job]!),
  flushed: (job) => listen(FLUSHED[job]!),
  gather: (job) => listen(GATHER[job]!),
  async wsgi(job) {
    const { serve } = await import("../mod.ts");
    serve(await WSGI[job]!(), { port: 0, onListen });
  },
  async hono(job) {
    const hono = await installed("hono");
    const { getCookie } = await installed("hono", "./cookie");
    const made: Record<string, (hono: Packages) => Promise<Framework>> = { stack: honoStack, files: honoFiles };
    const app = await made[job]?.(hono) ?? new hono.Hono();
    if (job === "hello") app.get("/", (context) => context.body(HELLO, 200, HEADERS));
    if (job === "generator") app.get("/", (context) => context.body(streamOf(linesOf), 200, HEADERS));
    if (job === "upload") app.put("*", ({ req }) => sizeOf(bodyOf(req.raw)));
    if (job === "json") {
      app.get("/items", (context) => {
        const { req } = context;
        const session = getCookie(context, "session");
        const of = { accept: req.header("Accept"), agent: req.header("User-Agent"), session };
        return context.body(itemsOf(req.path, of), 200, JSON_HEADERS);
      });
    }
    listen(app.fetch);
  },
  async h3(job) {
    const { H3, getCookie } = await installed("h3");
    const app = new H3();
    if (job !== "json") app.get("/", RAW[job] as () => Response);
    else {
      app.get("/items", (event) => {
        const { req: { headers }, url: { pathname } } = event;
        const of = {
          accept: headers.get("Accept"),
          agent: headers.get("User-Agent"),
          session: getCookie(event, "session"),
        };
        return new Response(itemsOf(pathname, of), { headers: JSON_HEADERS });
      });
    }
    listen(app.fetch);
  },
  async srvx(job) {
    const { serve } = await installed("srvx");
    const server = serve({ hostname: "127.0.0.1", port: 0, silent: true, gracefulShutdown: false, fetch: RAW[job]! });
    onListen({ port: Number(new URL((await server.ready()).url).port) });
  },
  async elysia(job) {
    const { Elysia } = await installed("elysia");
    const app = new Elysia();
    // It tells names apart by case, and has its own in lower case.
    const named = (headers: object) =>
      Object.fromEntries(Object.entries(headers).map(([n, v]) => [n.toLowerCase(), v]));
    if (job === "hello") app.headers(named(HEADERS)).get("/", () => "Hello, world!");
    if (job === "generator") app.get("/", () => new Response(streamOf(linesOf), { headers: HEADERS }));
    if (job === "json") {
      app.headers(named(JSON_HEADERS)).get("/items", ({ headers, path, cookie }) => {
        const of = { accept: headers["accept"], agent: headers["user-agent"], session: cookie.session.value };
        return itemsOf(path, of);
      });
    }
    // Its own way on Bun is faster than a Fetch handler.
    if (BUN) app.listen({ hostname: "127.0.0.1", port: 0 }, onListen);
    else listen(app.fetch);
  },
};

if (import.meta.main) {
  const [contender = "", job = ""] = process.argv.slice(2);
  if (job === "middleware") listen(async () => new Response(String(await costOf(contender))));
  else await CONTENDERS[contender]!(job);
}
