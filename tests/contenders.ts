/**
 * The contenders of the benchmark: `contenders.ts CONTENDER JOB` serves one job in one way, on a port that it says.
 *
 * Each is written as those who use it write it: what is constant is made once, what is made of a request is given as
 * text where that can be, and paths are exact. All send the same bytes, but for the variables of `environ` and the
 * headers that the middleware of `stack` add. The frameworks are in the folder that the variable CACHE names, FILE is
 * the file to be sent, LOG the access log.
 *
 * @module
 */

import { openSync, readFileSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import type { Application } from "../mod.ts";

type Handler = (request: Request, info: Info) => Response | Promise<Response>;

/** What Deno and Bun tell of a request beside it. */
interface Info {
  remoteAddr?: { hostname: string; port: number };
  requestIP?(request: Request): { address: string; port: number };
}

const { Deno: DENO, Bun: BUN } = globalThis as unknown as {
  Deno?: {
    serve(options: object, handler: Handler): unknown;
    open(path: string): Promise<{ readable: ReadableStream<Uint8Array> }>;
  };
  Bun?: { serve(options: object): { port: number }; file(path: string): Blob };
};

const { CACHE = "", FILE = "", LOG = "/dev/null" } = process.env;
const ENCODER = new TextEncoder();
const HELLO = ENCODER.encode("Hello, world!");
const HEADERS = { "Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store" };
const JSON_HEADERS = { "Content-Type": "application/json" };
const PLAIN_HEADERS = { "Content-Type": "text/plain; charset=utf-8" };
const ITEMS = Array.from({ length: 20 }, (_, id) => ({ id, name: `The item with number ${id}` }));
const LINES = ["one\n", "two\n", "three\n"].map((line) => ENCODER.encode(line));
const BLOCK = new Uint8Array(65_536);
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

/** A raw handler that does what a gateway has to: it copies the headers of the request. */
function work(request: Request): Response {
  const headers: Record<string, string> = {};
  request.headers.forEach((value, name) => headers[name] = value);
  return new Response(HELLO, { headers: HEADERS });
}

// As many as there are; what they are is no matter.
const CONSTANTS: Record<string, string> = JSON.parse(`{${Array.from("abcdefghijklmnopq", (name) => `"${name}":""`)}}`);
const NAMES = new Map<string, string>();

/** A raw handler that gathers all that an environ has, as an environ has it, and does nothing with it. */
function gather(request: Request, info: Info): Response {
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
  return new Response(HELLO, { headers: HEADERS });
}

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
  upload: () => async (environ, startResponse) => {
    let size = 0;
    for (;;) {
      const { length } = await environ["wsgi.input"].read(65_536);
      size += length;
      if (length === 0) break;
    }
    startResponse("200 OK", PAIRS);
    return [ENCODER.encode(String(size))];
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
  headers: Record<string, string | undefined>;
  cookie: { session: { value: string | undefined } };
  body(body: ReadableStream | Uint8Array | string, status: number, headers: object): Response;
}

/** What is used of an application of theirs. */
interface Framework {
  get(path: string, handler: (context: Context) => unknown): Framework;
  use(...middleware: unknown[]): Framework;
  route(path: string, app: Framework): Framework;
  headers(headers: Record<string, string>): Framework;
  listen(options: object, ready: (server: { port: number }) => void): void;
  fetch: Handler;
}

interface Packages extends Record<"Hono" | "H3" | "Elysia", new () => Framework> {
  getCookie(context: Context, name: string): string | undefined;
  serve(options: object): { ready(): Promise<{ url: string }> };
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
  work: () => listen(work),
  gather: () => listen(gather),
  async wsgi(job) {
    const { serve } = await import("../mod.ts");
    serve(await WSGI[job]!(), { port: 0, onListen });
  },
  async hono(job) {
    const hono = await installed("hono");
    const { getCookie } = await installed("hono", "./cookie");
    const app = job === "stack" ? await honoStack(hono) : new hono.Hono();
    if (job === "hello") app.get("/", (context) => context.body(HELLO, 200, HEADERS));
    if (job === "generator") app.get("/", (context) => context.body(streamOf((count) => LINES[count]), 200, HEADERS));
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
    if (job === "generator") app.get("/", () => new Response(streamOf((count) => LINES[count]), { headers: HEADERS }));
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

const [CONTENDER = "", JOB = ""] = process.argv.slice(2);
await CONTENDERS[CONTENDER]!(JOB);
