/**
 * The contenders of the benchmark: `contenders.ts CONTENDER JOB` serves one job in one way, on a free port that it says.
 *
 * All that are compared send the same bytes. The frameworks are in the folder that the variable CACHE names, FILE is the
 * file to be sent, LOG the access log.
 *
 * @module
 */

import { openSync, readFileSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import {
  accessLog,
  type Application,
  conditional,
  type HeaderList,
  mount,
  requestId,
  secureHeaders,
  serve,
} from "../mod.ts";

type Handler = (request: Request, info?: unknown) => Response | Promise<Response>;

const { Deno: DENO, Bun: BUN } = globalThis as unknown as {
  Deno?: {
    serve(options: object, handler: Handler): { addr: { port: number } };
    open(path: string): Promise<{ readable: ReadableStream<Uint8Array> }>;
  };
  Bun?: { serve(options: object): { port: number }; file(path: string): Blob };
};

const { CACHE = "", FILE = "", LOG = "/dev/null" } = process.env;
const HELLO = new TextEncoder().encode("Hello, world!");
const HEADERS = { "Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store" };
const JSON_HEADERS = { "Content-Type": "application/json" };
const ITEMS = Array.from({ length: 20 }, (_, id) => ({ id, name: `The item with number ${id}` }));
const LINES = ["one\n", "two\n", "three\n"].map((line) => new TextEncoder().encode(line));
const BLOCK = new Uint8Array(65_536);
const BLOCKS = 16_384; // 1 GiB

/** What JSON is answered with: some of the request, and about 1 KiB. */
function itemsOf(path: string, accept: unknown, agent: unknown, cookie: string | null | undefined): string {
  const session = /(?:^|; )session=([^;]*)/.exec(cookie ?? "")?.[1];
  return JSON.stringify({ path, accept, agent, session, items: ITEMS });
}

/** A stream of chunks that are there at once. */
function streamOf(next: (count: number) => Uint8Array | undefined): ReadableStream<Uint8Array> {
  let count = 0;
  return new ReadableStream({
    pull(controller) {
      const chunk = next(count++);
      if (chunk) controller.enqueue(chunk);
      else controller.close();
    },
  }, { highWaterMark: 0 });
}

/** Each job as somebody writes it who knows only the runtime. */
const RAW: Record<string, Handler> = {
  hello: () => new Response(HELLO, { headers: HEADERS }),
  json({ url, headers }) {
    const { pathname } = new URL(url);
    const body = itemsOf(pathname, headers.get("Accept"), headers.get("User-Agent"), headers.get("Cookie"));
    return new Response(body, { headers: JSON_HEADERS });
  },
  generator: () => new Response(streamOf((count) => LINES[count]), { headers: HEADERS }),
  download: () => new Response(streamOf((count) => count < BLOCKS ? BLOCK : undefined), { headers: HEADERS }),
  async upload({ body }) {
    let size = 0;
    for await (const { length } of body as unknown as AsyncIterable<Uint8Array>) size += length;
    return new Response(String(size), { headers: HEADERS });
  },
  async file() {
    const body = BUN ? BUN.file(FILE) : (await DENO!.open(FILE)).readable;
    return new Response(body, { headers: { ...HEADERS, "Content-Length": String(statSync(FILE).size) } });
  },
};

/** Each job where a raw handler does what a gateway has to: it copies the headers of the request. */
const WORK: Record<string, Handler> = {
  hello(request) {
    const headers: Record<string, string> = {};
    request.headers.forEach((value, name) => headers[name] = value);
    return new Response(HELLO, { headers: HEADERS });
  },
  environ(request) {
    const lines = ["wsgi.version: 1,0", `REQUEST_METHOD: ${request.method}`, `REQUEST_URI: ${request.url}`];
    for (let line = 0; line < 18; line++) lines.push(`VARIABLE_${line}: its value`);
    request.headers.forEach((value, name) => lines.push(`${name}: ${value}`));
    return new Response(`${lines.sort().join("\n")}\n`, { headers: { "Content-Type": HEADERS["Content-Type"] } });
  },
};

/** An application of one answer. */
function answering(headers: HeaderList, ...body: Uint8Array[]): Application {
  return (_environ, startResponse) => {
    startResponse("200 OK", headers);
    return body;
  };
}

const PAIRS = Object.entries(HEADERS);
const hello = answering(PAIRS, HELLO);

/** Each job as an application. */
const WSGI: Record<string, () => Application | Promise<Application>> = {
  hello: () => hello,
  json: () => (environ, startResponse) => {
    const { PATH_INFO, HTTP_ACCEPT, HTTP_USER_AGENT, HTTP_COOKIE } = environ;
    startResponse("200 OK", Object.entries(JSON_HEADERS));
    return [new TextEncoder().encode(itemsOf(PATH_INFO, HTTP_ACCEPT, HTTP_USER_AGENT, HTTP_COOKIE))];
  },
  environ: async () => (await import("../examples/environ.ts")).application,
  stack() {
    const log = openSync(LOG, "a");
    const inner = mount({ "/app": conditional(secureHeaders(hello)) });
    return accessLog(requestId(inner), { write: (line) => void writeSync(log, line) });
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
  upload: () => async (environ, startResponse) => {
    let size = 0;
    for (;;) {
      const { length } = await environ["wsgi.input"].read(65_536);
      size += length;
      if (length === 0) break;
    }
    startResponse("200 OK", PAIRS);
    return [new TextEncoder().encode(String(size))];
  },
  file: () => async (environ, startResponse) => {
    startResponse("200 OK", [...PAIRS, ["Content-Length", String(statSync(FILE).size)]]);
    return environ["wsgi.file_wrapper"](BUN ? BUN.file(FILE) : await DENO!.open(FILE));
  },
};

/** What is used of Hono's context, and of those that h3 and Elysia give. */
interface Context {
  req: { path: string; header(name: string): string | undefined; headers: Headers };
  url: URL;
  path: string;
  set: { headers: Record<string, string> };
  headers: Record<string, string | undefined>;
  cookie: Record<string, { value: string } | undefined>;
  body(body: Uint8Array | string, status: number, headers: object): Response;
}

/** What is used of an application of theirs. */
interface Framework {
  get(path: string, handler: (context: Context) => unknown): Framework;
  use(...middleware: unknown[]): Framework;
  route(path: string, app: Framework): Framework;
  fetch: Handler;
}

type Packages = Record<string, new () => Framework>;

/** A package that the benchmark has installed, in the form for this runtime. */
async function installed<Exports = Packages>(name: string, subpath = "."): Promise<Exports> {
  const folder = join(CACHE, "node_modules", name);
  let found = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).exports[subpath];
  while (typeof found === "object") found = found[DENO ? "deno" : "bun"] ?? found.import ?? found.default;
  return await import(pathToFileURL(join(folder, found)).href);
}

/** Each framework, as those who use it write the same. */
const FRAMEWORKS: Record<string, (job: string) => Promise<Handler>> = {
  async hono(job) {
    const { Hono } = await installed("hono");
    const app = new Hono!();
    if (job === "hello") app.get("*", (context) => context.body(HELLO, 200, HEADERS));
    if (job === "json") {
      const { getCookie } = await installed<{ getCookie(context: Context, name: string): string }>("hono", "./cookie");
      app.get("*", (context) => {
        const { req } = context;
        const cookie = `session=${getCookie(context, "session")}`;
        const body = itemsOf(req.path, req.header("Accept"), req.header("User-Agent"), cookie);
        return context.body(body, 200, JSON_HEADERS);
      });
    }
    if (job === "stack") {
      const names = ["logger", "request-id", "secure-headers", "etag"];
      const modules = await Promise.all(names.map((name) => installed<Record<string, unknown>>("hono", `./${name}`)));
      const { logger, requestId, secureHeaders, etag } = Object.assign({}, ...modules);
      const log = openSync(LOG, "a");
      app.use(logger((line: string) => void writeSync(log, `${line}\n`)), requestId());
      const inner = new Hono!().use(secureHeaders(), etag()).get("/", (context) => context.body(HELLO, 200, HEADERS));
      app.route("/app", inner);
    }
    return (request, info) => app.fetch(request, info);
  },
  async h3(job) {
    const { H3 } = await installed("h3");
    const app = new H3!();
    app.get("/**", ({ req: { headers }, url: { pathname } }) => {
      if (job === "hello") return new Response(HELLO, { headers: HEADERS });
      const body = itemsOf(pathname, headers.get("Accept"), headers.get("User-Agent"), headers.get("Cookie"));
      return new Response(body, { headers: JSON_HEADERS });
    });
    return (request) => app.fetch(request);
  },
  async elysia(job) {
    const { Elysia } = await installed("elysia");
    const app = new Elysia!();
    app.get("/*", ({ set, headers, path, cookie }) => {
      for (const [name, value] of Object.entries(job === "hello" ? HEADERS : JSON_HEADERS)) {
        set.headers[name.toLowerCase()] = value;
      }
      if (job === "hello") return HELLO;
      return itemsOf(path, headers["accept"], headers["user-agent"], `session=${cookie["session"]?.value}`);
    });
    return (request) => app.fetch(request);
  },
};

function listen(handler: Handler): void {
  const options = { hostname: "127.0.0.1", port: 0, onListen() {}, maxRequestBodySize: Number.MAX_SAFE_INTEGER };
  const port = DENO ? DENO.serve(options, handler).addr.port : BUN!.serve({ ...options, fetch: handler }).port;
  console.log(`port ${port}`);
}

async function main(contender = "", job = ""): Promise<void> {
  const onListen = ({ port }: { port: number }) => console.log(`port ${port}`);
  if (contender === "wsgi") serve(await WSGI[job]!(), { port: 0, onListen });
  else if (contender === "srvx") {
    const { serve } = await installed<{ serve(options: object): { ready(): Promise<{ url: string }> } }>("srvx");
    const server = serve({ hostname: "127.0.0.1", port: 0, silent: true, gracefulShutdown: false, fetch: RAW[job]! });
    onListen({ port: Number(new URL((await server.ready()).url).port) });
  } else listen(await FRAMEWORKS[contender]?.(job) ?? (contender === "work" ? WORK : RAW)[job]!);
}

await main(...process.argv.slice(2));
