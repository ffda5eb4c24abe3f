/**
 * WSGI ({@link https://peps.python.org/pep-3333/ PEP 3333}) for TypeScript: one calling convention between any web
 * server and any web application, on Deno and on Bun.
 *
 * A server calls the application once for each request, `application(environ, startResponse)`, and gets an iterable of
 * bytes back. A middleware plays both sides: it is an application to the server and a server to the application.
 *
 * This module exports everything: the types of the interface, the server side (`server.ts`), and the middleware
 * (`middleware.ts`).
 *
 * @example An application and its server
 * ```ts ignore
 * import { type Application, serve } from "./mod.ts";
 *
 * const app: Application = (environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain; charset=utf-8"]]);
 *   return [new TextEncoder().encode(`Hello ${environ.PATH_INFO}\n`)];
 * };
 *
 * if (import.meta.main) serve(app);
 * ```
 *
 * @example A middleware: an application made of another application
 * ```ts
 * import assert from "node:assert/strict";
 * import { application, type Middleware, toFetch } from "./mod.ts";
 *
 * const poweredBy: Middleware = (app) => {
 *   const inner = application(app);
 *   return (environ, startResponse) =>
 *     inner(environ, (status, headers, error) => startResponse(status, [...headers, ["X-Powered-By", "WSGI"]], error));
 * };
 *
 * const handler = toFetch(poweredBy((_environ, startResponse) => {
 *   startResponse("204 No Content", []);
 *   return [];
 * }));
 * const response = await handler(new Request("http://localhost/"));
 * assert.equal(response.headers.get("X-Powered-By"), "WSGI");
 * ```
 *
 * @module
 */

/**
 * An application as a plain function, which the server calls once for each request.
 *
 * Both arguments are positional and always given. The application must call `startResponse` before the first chunk that
 * is not empty; a generator may do so when it is asked for its first chunk.
 * PEP 3333, "The Application/Framework Side".
 *
 * @param environ The request and its surroundings, the application's to change.
 * @param startResponse Begins the response: status and headers.
 * @returns The body, or a promise of it.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Application, toFetch } from "./mod.ts";
 *
 * const app: Application = async function* (environ, startResponse) {
 *   const size = (await environ["wsgi.input"].read()).length;
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   yield new TextEncoder().encode(`${size} bytes\n`);
 * };
 *
 * const response = await toFetch(app)(new Request("http://localhost/", { method: "POST", body: "four" }));
 * assert.equal(await response.text(), "4 bytes\n");
 * ```
 */
export type Application = (environ: Environ, startResponse: StartResponse) => ResponseBody | Promise<ResponseBody>;

/**
 * An application as an object, whose method `handle` takes the place of Python's `__call__`.
 *
 * PEP 3333, "The Application/Framework Side".
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type ApplicationObject, type StartResponse, toFetch } from "./mod.ts";
 *
 * class Counter implements ApplicationObject {
 *   #calls = 0;
 *
 *   handle(_environ: unknown, startResponse: StartResponse): Uint8Array[] {
 *     startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *     return [new TextEncoder().encode(`${++this.#calls}`)];
 *   }
 * }
 *
 * const response = await toFetch(new Counter())(new Request("http://localhost/"));
 * assert.equal(await response.text(), "1");
 * ```
 */
export interface ApplicationObject {
  /**
   * Answers one request.
   *
   * @param environ The request and its surroundings.
   * @param startResponse Begins the response.
   * @returns The body, or a promise of it.
   */
  handle(environ: Environ, startResponse: StartResponse): ResponseBody | Promise<ResponseBody>;
}

/**
 * An application as a class, which is constructed once for each request. Its instance is the body.
 *
 * PEP 3333, "The Application/Framework Side".
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Environ, type StartResponse, toFetch } from "./mod.ts";
 *
 * class Hello {
 *   constructor(readonly environ: Environ, readonly startResponse: StartResponse) {}
 *
 *   *[Symbol.iterator](): Generator<Uint8Array> {
 *     this.startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *     yield new TextEncoder().encode("Hello");
 *   }
 * }
 *
 * const response = await toFetch(Hello)(new Request("http://localhost/"));
 * assert.equal(await response.text(), "Hello");
 * ```
 */
export type ApplicationClass = new (environ: Environ, startResponse: StartResponse) => ResponseBody;

/**
 * Any application object: a function, a class, or an object with a method `handle`.
 *
 * PEP 3333, "The Application/Framework Side".
 *
 * @example
 * ```ts
 * import { type ApplicationLike, toFetch } from "./mod.ts";
 *
 * const apps: ApplicationLike[] = [() => [], async () => await [], function* () {}, { handle: () => [] }];
 * for (const app of apps) toFetch(app);
 * ```
 */
export type ApplicationLike = Application | ApplicationObject | ApplicationClass;

/**
 * The body of a response: an iterable of chunks. Each chunk is sent before the next one is asked for.
 *
 * An array is sent as a whole, with its length. Any other body is a stream, in which an empty chunk means that there is
 * nothing to send yet. The application must not change a chunk that it has given to the server.
 *
 * The server calls `close` once when the response has ended, however it ended. It calls the iterator's `return` before
 * that, where the response ended before the body. So it cancels a `ReadableStream` as soon as the client leaves. PEP 3333,
 * "Buffering and Streaming".
 *
 * @example
 * ```ts
 * import type { ResponseBody } from "./mod.ts";
 *
 * const bytes = new TextEncoder().encode("chunk");
 * const bodies: ResponseBody[] = [
 *   [bytes],
 *   new Set([bytes]),
 *   ReadableStream.from([bytes]),
 *   Object.assign([bytes], { close: () => console.log("The response has ended") }),
 * ];
 * ```
 */
export type ResponseBody = (Iterable<Uint8Array> | AsyncIterable<Uint8Array>) & { close?(): void | Promise<void> };

/**
 * Starts the response: checks status and headers at once, and sends nothing yet.
 *
 * Status and headers leave with the first chunk that is not empty, or at the end of the body. Until then, another call
 * with the error that requires it replaces them. Afterwards, such a call throws this error.
 * PEP 3333, "The start_response() Callable".
 *
 * @throws {TypeError} When status or headers break a rule, which the message names, or when it was called before and no
 * error is given.
 *
 * @param status Three digits from 200 to 599, a space and a reason phrase: `"200 OK"`.
 * @param headers The response's headers. Hop-by-hop headers are not allowed: they belong to the server.
 * @param error The error that the application caught, Python's `exc_info`; `undefined` counts as not given.
 * @returns A function that sends a chunk of the body, for applications that cannot return an iterable.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Application, toFetch } from "./mod.ts";
 *
 * const app: Application = (_environ, startResponse) => {
 *   try {
 *     startResponse("200 OK", [["Content-Type", "text/html"]]);
 *     throw new Error("No such article");
 *   } catch (error) {
 *     startResponse("404 Not Found", [["Content-Type", "text/plain"]], error);
 *     return [];
 *   }
 * };
 *
 * assert.equal((await toFetch(app)(new Request("http://localhost/"))).status, 404);
 * ```
 */
export type StartResponse = (status: string, headers: HeaderList, error?: unknown) => Write;

/**
 * Response headers: pairs of name and value, in order. A name can occur more than once.
 *
 * Values are native strings, in which each character stands for one byte (U+0000 to U+00FF), without control characters;
 * {@linkcode toNativeString} makes one of text. PEP 3333, "The start_response() Callable" and "Unicode Issues".
 *
 * @example
 * ```ts
 * import type { HeaderList } from "./mod.ts";
 *
 * const headers: HeaderList = [["Content-Type", "text/html"], ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]];
 * const more: HeaderList = [...headers, ["Cache-Control", "no-store"]]; // the list itself may be a constant
 * ```
 */
export type HeaderList = readonly (readonly [name: string, value: string])[];

/**
 * Sends one chunk ahead of the body that the application returns, for code that cannot give an iterable.
 *
 * The promise is fulfilled when the chunk has left. An application that awaits it goes no faster than its client; the
 * promise may be ignored. New applications return an iterable instead. PEP 3333, "The write() Callable".
 *
 * @throws {TypeError} When the chunk is not a `Uint8Array`, or the application has already returned its body.
 *
 * @param chunk The bytes to send.
 * @returns A promise that is fulfilled when the chunk has left. It is rejected when the client has left, or when the
 * response has no body: in answer to HEAD, with 204 or 304, after a failure.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Application, toFetch } from "./mod.ts";
 *
 * const app: Application = async (_environ, startResponse) => {
 *   const write = startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   await write(new TextEncoder().encode("written, "));
 *   return [new TextEncoder().encode("returned")];
 * };
 *
 * const response = await toFetch(app)(new Request("http://localhost/"));
 * assert.equal(await response.text(), "written, returned");
 * ```
 */
export type Write = (chunk: Uint8Array) => Promise<void>;

/**
 * A middleware: a function that makes an application of another one, so that middleware composes by plain calls.
 *
 * PEP 3333, "Middleware: Components that Play Both Sides".
 *
 * @param app The inner application.
 * @returns The outer application, which takes its place.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { application, type Middleware, toFetch } from "./mod.ts";
 *
 * const shout: Middleware = (app) => {
 *   const inner = application(app);
 *   return (environ, startResponse) => {
 *     environ.PATH_INFO = environ.PATH_INFO.toUpperCase();
 *     return inner(environ, startResponse);
 *   };
 * };
 *
 * const app = shout((environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(environ.PATH_INFO)];
 * });
 * assert.equal(await (await toFetch(app)(new Request("http://localhost/hello"))).text(), "/HELLO");
 * ```
 */
export type Middleware = (app: ApplicationLike) => Application;

/**
 * The request and its surroundings: an ordinary object, new for each request, with the names of CGI and PEP 3333.
 *
 * Strings are native strings, in which each character stands for one byte (U+0000 to U+00FF); {@linkcode fromNativeString}
 * makes text of one. An unknown value is absent, never `undefined`. PEP 3333, "environ Variables"; RFC 3875, section 4.1.
 *
 * @example Text in another script, read back from its bytes
 * ```ts
 * import assert from "node:assert/strict";
 * import { fromNativeString, toEnviron } from "./mod.ts";
 *
 * const environ = toEnviron(new Request("http://localhost/caf%C3%A9?q=%C3%A9"));
 * assert.equal(environ.PATH_INFO, "/caf\u00C3\u00A9");
 * assert.equal(fromNativeString(environ.PATH_INFO), "/café");
 * assert.equal(environ.QUERY_STRING, "q=%C3%A9");
 * ```
 *
 * @example A type for a key of one's own
 * ```ts ignore
 * import type { Application } from "./mod.ts";
 *
 * declare module "./mod.ts" {
 *   interface Environ {
 *     "shop.user"?: { name: string };
 *   }
 * }
 *
 * const app: Application = (environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(environ["shop.user"]?.name)];
 * };
 * ```
 */
export interface Environ {
  /** The method, as sent: `"GET"`. */
  REQUEST_METHOD: string;
  /** The part of the path that leads to the application, decoded: empty, or a prefix without a slash at its end. */
  SCRIPT_NAME: string;
  /** The rest of the path, for the application to read, percent-decoded to bytes, each a character of Latin-1. */
  PATH_INFO: string;
  /** The part of the target after the first `?`, without a fragment, not decoded; may be empty. */
  QUERY_STRING: string;
  /** The target of the request, path and query, as the runtime gave it: not decoded. */
  REQUEST_URI: string;
  /** The address that the server listens on, as a host of a URL. */
  SERVER_NAME: string;
  /** The port that the server listens on. */
  SERVER_PORT: string;
  /** `"HTTP/1.1"`: neither runtime tells the version that the client speaks. */
  SERVER_PROTOCOL: string;
  /** The server and the runtime: `"WSGI/0.1.0 Deno/2.9.6"`. */
  SERVER_SOFTWARE: string;
  /** The media type of the request's body, when the client sent one. */
  CONTENT_TYPE?: string;
  /** The length of the request's body in bytes, when the client sent it; never for GET and HEAD, which have no body. */
  CONTENT_LENGTH?: string;
  /** The address of the client; absent on a unix socket. */
  REMOTE_ADDR?: string;
  /** The port of the client; absent on a unix socket. */
  REMOTE_PORT?: string;
  /** `"on"` over TLS. */
  HTTPS?: string;
  /** The user that a middleware such as {@linkcode basicAuth} knows, as a native string: RFC 3875, section 4.1.11. */
  REMOTE_USER?: string;
  /** How it knows the user: `"Basic"`. RFC 3875, section 4.1.1. */
  AUTH_TYPE?: string;
  /** The version of the interface. */
  "wsgi.version": readonly [1, 0];
  /** `"http"`, or `"https"` over TLS. */
  "wsgi.url_scheme": string;
  /** The body of the request. */
  "wsgi.input": InputStream;
  /** The stream for error messages. */
  "wsgi.errors": ErrorStream;
  /** False: no other thread has the same application object. Requests are interleaved on one thread all the same. */
  "wsgi.multithread": boolean;
  /** True when another thread or process serves an equal application on the same port. */
  "wsgi.multiprocess": boolean;
  /** False: the application is called many times. */
  "wsgi.run_once": boolean;
  /** True: `wsgi.input` ends where the body ends, with or without a Content-Length. */
  "wsgi.input_terminated": boolean;
  /** Makes a response body of a file. */
  "wsgi.file_wrapper": FileWrapper;
  /** The addition of this server to the interface; another server may not have it. */
  "fetch.context"?: FetchContext;
  /** The id that {@linkcode requestId} gives the request. */
  "request.id"?: string;
  /** The variables that {@linkcode proxyFix} may change, as they were before. */
  "proxy_fix.original"?: Partial<Environ>;
  /** A request header, upper-case and with underscores: `HTTP_USER_AGENT`. Repeated headers are joined. */
  [header: `HTTP_${string}`]: string | undefined;
  /** An addition of the deployer, the server, a middleware or the application, under a prefix of its own. */
  [key: string]: unknown;
}

/**
 * The body of a request, as a stream of bytes that is read once: `wsgi.input`.
 *
 * Its end is an empty array, again and again. PEP 3333, "Input and Error Streams".
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { toEnviron } from "./mod.ts";
 *
 * const input = toEnviron(new Request("http://localhost/", { method: "POST", body: "one\ntwo\n" }))["wsgi.input"];
 * const lines: string[] = [];
 * for await (const line of input) lines.push(new TextDecoder().decode(line));
 * assert.deepEqual(lines, ["one\n", "two\n"]);
 * assert.equal((await input.read()).length, 0);
 * ```
 */
export interface InputStream extends AsyncIterable<Uint8Array> {
  /**
   * Reads bytes: exactly `size` of them, or fewer where the body ends.
   *
   * @throws {DOMException} An `"AbortError"` when the client left before the end of the body, or the response ended.
   * @throws {RangeError} When the body is larger than the server accepts, or the size is not an integer.
   *
   * @param size How many bytes; without it, or below zero, all that are left.
   * @returns The bytes; an empty array at the end.
   */
  read(size?: number): Promise<Uint8Array>;
  /**
   * Reads the bytes at hand, as Python's `io.BufferedReader` does: it waits only where there are none, for one chunk.
   *
   * It is the fastest way to read a body of any size, because it joins nothing, and copies only what fills less than half of
   * the runtime's buffer.
   *
   * @throws {DOMException} An `"AbortError"` when the client left before the end of the body, or the response ended.
   * @throws {RangeError} When the body is larger than the server accepts, or the size is not an integer.
   *
   * @param size How many bytes at the most; without it, or below zero, all that are at hand.
   * @returns The bytes, which are the caller's to keep; an empty array at the end.
   */
  read1(size?: number): Promise<Uint8Array>;
  /**
   * Reads one line, its `\n` included.
   *
   * @throws {DOMException} An `"AbortError"` when the client left before the end of the body, or the response ended.
   * @throws {RangeError} When the body is larger than the server accepts, or the size is not an integer.
   *
   * @param size How many bytes at the most; without it, or below zero, the whole line.
   * @returns The line; an empty array at the end.
   */
  readline(size?: number): Promise<Uint8Array>;
  /**
   * Reads lines.
   *
   * @throws {DOMException} An `"AbortError"` when the client left before the end of the body, or the response ended.
   * @throws {RangeError} When the body is larger than the server accepts, or the hint is not an integer.
   *
   * @param hint The number of bytes after which no further line is begun; without it, or at zero or below, all lines.
   * @returns The lines, each with its `\n`.
   */
  readlines(hint?: number): Promise<Uint8Array[]>;
}

/**
 * The stream on which server and application report errors, as text: `wsgi.errors`.
 *
 * No method throws. PEP 3333, "Input and Error Streams".
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type ErrorStream, toEnviron } from "./mod.ts";
 *
 * let log = "";
 * const errors: ErrorStream = {
 *   write: (text) => void (log += text),
 *   writelines: (lines) => void (log += [...lines].join("")),
 *   flush: () => {},
 * };
 * toEnviron(new Request("http://localhost/"), { errors })["wsgi.errors"].write("The disk is full\n");
 * assert.equal(log, "The disk is full\n");
 * ```
 */
export interface ErrorStream {
  /**
   * Writes text. Standard error gets it in whole lines.
   *
   * @param text Any text; lines end in `\n`.
   */
  write(text: string): void;
  /**
   * Writes several texts, adding nothing between them.
   *
   * @param lines The texts.
   */
  writelines(lines: Iterable<string>): void;
  /** Writes out an unfinished line. */
  flush(): void;
}

/**
 * The facts of a Fetch runtime beyond the interface: `fetch.context`.
 *
 * @example A stream without an end, which ends when its client has left, and when the server stops
 * ```ts
 * import assert from "node:assert/strict";
 * import { setTimeout } from "node:timers/promises";
 * import { type Application, toFetch } from "./mod.ts";
 *
 * const clock: Application = async function* (environ, startResponse) {
 *   startResponse("200 OK", [["Content-Type", "text/event-stream"]]);
 *   yield new TextEncoder().encode(": begins\n\n");
 *   const { signal, stopping } = environ["fetch.context"]!;
 *   const end = AbortSignal.any([signal, stopping]);
 *   while (!end.aborted) {
 *     yield new TextEncoder().encode(`data: ${new Date().toISOString()}\n\n`);
 *     await setTimeout(1000, undefined, { signal: end }).catch(() => {});
 *   }
 * };
 *
 * const response = await toFetch(clock)(new Request("http://localhost/"));
 * for await (const chunk of response.body!) {
 *   assert.equal(new TextDecoder().decode(chunk), ": begins\n\n");
 *   break;
 * }
 * ```
 *
 * @example An application that sends clients elsewhere while the server stops
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Application, toFetch } from "./mod.ts";
 *
 * const app: Application = (environ, startResponse) => {
 *   const context = environ["fetch.context"];
 *   context?.waitUntil(Promise.resolve("Counted"));
 *   startResponse(context?.draining ? "503 Service Unavailable" : "204 No Content", []);
 *   return [];
 * };
 *
 * assert.equal((await toFetch(app)(new Request("http://localhost/"))).status, 204);
 * ```
 */
export interface FetchContext {
  /** The request as the runtime gave it. */
  readonly request: Request;
  /**
   * Aborts when the client disconnects early or a stopping server gives up; never otherwise.
   *
   * Reading it before the first chunk costs time on Deno, which also prints a warning, once. After the first chunk it is
   * free. A generator that waits for something else than its client reads it then and waits for it, too: `return` ends a
   * generator only at a `yield`, so that nothing else tells it that the client has left.
   */
  readonly signal: AbortSignal;
  /** True from the moment the server is told to stop. */
  readonly draining: boolean;
  /**
   * Aborts when the server is told to stop. A stream without an end waits for it and ends, or the server waits for the
   * stream until its `shutdownTimeout`.
   */
  readonly stopping: AbortSignal;
  /**
   * Keeps a stopping server alive until the work has settled, and reports its failure. The failure of a promise that
   * nobody awaits would end the process, on both runtimes. A platform that has a `waitUntil` of its own is told of the
   * work.
   *
   * @param work The work that goes on after the response.
   */
  waitUntil(work: Promise<unknown>): void;
}

/**
 * Makes a response body of a file: `wsgi.file_wrapper`.
 *
 * The chunks of a stream are sent as they are. The body closes the file when the response has ended. PEP 3333, "Optional
 * Platform-Specific File Handling".
 *
 * @throws {TypeError} When the file cannot be read in any of these ways.
 * @throws {RangeError} When the block size is not a positive integer.
 *
 * @param file The file, which is read from its current position to its end.
 * @param blockSize How many bytes to read at a time, at the most 262144. @default {65536}, and 262144 for a fast client
 * @returns The body.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Application, toFetch } from "./mod.ts";
 *
 * const app: Application = (environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return environ["wsgi.file_wrapper"](new Blob(["The file"]));
 * };
 *
 * const response = await toFetch(app)(new Request("http://localhost/"));
 * assert.equal(await response.text(), "The file");
 * ```
 */
export type FileWrapper = (file: FileLike, blockSize?: number) => ResponseBody;

/**
 * A file for {@linkcode FileWrapper}: a `Blob` such as `Bun.file(...)`, a `ReadableStream`, a `Deno.FsFile`, a stream of
 * `node:stream` such as `createReadStream(...)`, a `FileHandle` of `node:fs/promises`, or an object with a method
 * `read(size)` that returns bytes, and an empty array at the end.
 *
 * PEP 3333, "Optional Platform-Specific File Handling".
 *
 * @example
 * ```ts
 * import type { FileLike } from "./mod.ts";
 *
 * const blocks = [new Uint8Array(10), new Uint8Array(5)];
 * const file: FileLike = { read: (_size: number) => blocks.shift() ?? new Uint8Array(0), close: () => {} };
 * ```
 */
export type FileLike =
  | Blob
  | ReadableStream<Uint8Array>
  | {
    /** Reads up to `size` bytes; an empty array at the end. */
    read(size: number): Uint8Array | Promise<Uint8Array>;
    /** Called when the response has ended. */
    close?(): void | Promise<void>;
  }
  | {
    /** The stream of a `Deno.FsFile`, which closes the file at its end. */
    readable: ReadableStream<Uint8Array>;
  }
  | {
    /** Tells a `FileHandle`, whose `read` takes a block, from other files. It is not called. */
    readableWebStream(): unknown;
    /** Called once, at the end of the file or of the response. */
    close(): Promise<void>;
  }
  | AsyncIterable<Uint8Array> & {
    /** Called when the response has ended. */
    destroy(): unknown;
    /** Called once, so that no error of the stream is one to which nobody listens. */
    on(event: "error", listener: () => void): unknown;
  };

/**
 * A Fetch handler, which `Deno.serve`, `Bun.serve` and every other Fetch runtime call for each request.
 *
 * @param request The request.
 * @param info The second argument of the runtime: `Deno.ServeHandlerInfo`, or Bun's `Server`. Any other server can hand over
 * an object with `remoteAddr` (`hostname` and `port` of the client) and with `waitUntil`, a function that takes a promise.
 * @returns The response, or a promise of it.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type FetchHandler, fromFetch, toFetch } from "./mod.ts";
 *
 * const handler: FetchHandler = (request) => new Response(request.method);
 * const response = await toFetch(fromFetch(handler))(new Request("http://localhost/"));
 * assert.equal(await response.text(), "GET");
 * ```
 */
export type FetchHandler = (request: Request, info?: unknown) => Response | Promise<Response>;

/**
 * Options for {@linkcode toEnviron}.
 *
 * @example
 * ```ts
 * import type { ToEnvironOptions } from "./mod.ts";
 *
 * const options: ToEnvironOptions = { scriptName: "/app", environ: { "example.database": "test.db" } };
 * ```
 */
export interface ToEnvironOptions {
  /** The second argument of a {@linkcode FetchHandler}. */
  info?: unknown;
  /**
   * The deployer's own pairs: they add to what the request says, and never replace it. PEP 3333, "Application
   * Configuration".
   */
  environ?: Record<string, unknown> | undefined;
  /**
   * The prefix of the path under which the application is reached: it moves from PATH_INFO to SCRIPT_NAME.
   *
   * @default {""}
   */
  scriptName?: string | undefined;
  /** The stream for error messages, instead of standard error. */
  errors?: ErrorStream | undefined;
}

/**
 * Options for {@linkcode toFetch}.
 *
 * @example
 * ```ts
 * import type { ToFetchOptions } from "./mod.ts";
 *
 * const options: ToFetchOptions = { maxBodySize: 1024 * 1024, scriptName: "/app" };
 * ```
 */
export interface ToFetchOptions extends Omit<ToEnvironOptions, "info"> {
  /**
   * The largest request body, in bytes. A larger one is answered with 413.
   *
   * @default {Infinity}
   */
  maxBodySize?: number | undefined;
}

/**
 * The result of {@linkcode runApplication}.
 *
 * @example
 * ```ts
 * import type { ApplicationResult } from "./mod.ts";
 *
 * const empty: ApplicationResult = { status: "204 No Content", headers: [], body: new Uint8Array(0), errors: "" };
 * ```
 */
export interface ApplicationResult {
  /** The status, as given to `startResponse`. */
  status: string;
  /** The headers, as given to `startResponse`, in a new array. */
  headers: [name: string, value: string][];
  /** The whole body: first the chunks that were written, then those that were returned. */
  body: Uint8Array;
  /** The text that was written to `wsgi.errors`. */
  errors: string;
}

/**
 * Options for {@linkcode serve}.
 *
 * @example
 * ```ts
 * import type { ServeOptions } from "./mod.ts";
 *
 * const options: ServeOptions = { hostname: "0.0.0.0", port: 8080, environ: { "example.mode": "production" } };
 * ```
 */
export interface ServeOptions extends ToFetchOptions {
  /**
   * The address to listen on.
   *
   * @default {"127.0.0.1"}
   */
  hostname?: string | undefined;
  /**
   * The port to listen on; 0 for any that is free.
   *
   * @default {8000}
   */
  port?: number | undefined;
  /** The path of a unix socket to listen on, instead of an address and a port. */
  unix?: string | undefined;
  /** The permissions of the socket's file, such as `0o660`. By default, those that the process gives to new files. */
  unixMode?: number | undefined;
  /** The certificate for TLS, as PEM text. */
  cert?: string | undefined;
  /** The private key for TLS, as PEM text. */
  key?: string | undefined;
  /**
   * Whether other processes may listen on the same port. Deno needs `--unstable-net` for it.
   *
   * @default {false}
   */
  reusePort?: boolean | undefined;
  /** Stops the server, as {@linkcode Server.shutdown} does. */
  signal?: AbortSignal | undefined;
  /**
   * Whether SIGTERM and SIGINT stop the server. A second one ends the process at once.
   *
   * @default {true}
   */
  signals?: boolean | undefined;
  /** Called when the server listens, instead of the line on standard error. */
  onListen?: ((server: Server) => void) | undefined;
  /**
   * How long a stopping server waits for the requests under way, in milliseconds. Then it aborts the rest.
   *
   * @default {30000}
   */
  shutdownTimeout?: number | undefined;
  /**
   * How long a stopping server goes on serving before it closes its port, in milliseconds: the time in which proxies that
   * ask `/readyz` notice. Each response then closes its connection.
   *
   * @default {0}
   */
  shutdownDelay?: number | undefined;
  /**
   * The number of worker threads, or a range in which the number follows the load.
   *
   * Each worker imports the program's main module and serves the application that it exports, as `application` or as the
   * default export. The program calls `serve` only `if (import.meta.main)`. The main thread supervises the workers, and
   * calls `onListen` when they serve. Deno needs `--unstable-net` and `--allow-read` for it. Each worker counts by itself,
   * so that {@linkcode limitConcurrency} holds in each.
   */
  workers?: number | WorkersOptions | undefined;
  /** Options of `Deno.serve`, for what only Deno has. They win over the options above. */
  deno?: Record<string, unknown> | undefined;
  /**
   * Options of `Bun.serve`, for what only Bun has. They win over the options above. An `idleTimeout` among them also cuts
   * requests under way.
   */
  bun?: Record<string, unknown> | undefined;
}

/**
 * Options for the worker threads of {@linkcode serve}.
 *
 * @example
 * ```ts
 * import type { WorkersOptions } from "./mod.ts";
 *
 * const workers: WorkersOptions = { min: 1, max: navigator.hardwareConcurrency };
 * ```
 */
export interface WorkersOptions {
  /**
   * The smallest number of workers.
   *
   * @default {1}
   */
  min?: number | undefined;
  /** The largest number of workers. */
  max: number;
  /** The module that exports the application, instead of the main module, from which it may be relative. */
  module?: string | URL | undefined;
  /** The name of its export. */
  export?: string | undefined;
  /**
   * How often the load of the workers is sampled, in milliseconds.
   *
   * @default {1000}
   */
  interval?: number | undefined;
  /**
   * How long there must be spare capacity for one whole worker before an idle one is stopped, in milliseconds.
   *
   * @default {30000}
   */
  scaleDownDelay?: number | undefined;
  /**
   * How long a worker may not answer, or take to start, before another one replaces it, in milliseconds. Standard error
   * names a worker that has not answered for five times `interval`.
   *
   * @default {Infinity}
   */
  timeout?: number | undefined;
}

/**
 * A server that is listening.
 *
 * @example
 * ```ts ignore
 * import { serve } from "./mod.ts";
 *
 * await using server = serve(() => [], { port: 0, onListen: ({ url }) => console.log(url) });
 * ```
 */
export interface Server extends AsyncDisposable {
  /** The address as a URL, such as `"http://localhost:8000/"`. */
  readonly url: string;
  /** The address that it listens on; of a unix socket, its path. */
  readonly hostname: string;
  /** The port that it listens on; 0 on a unix socket. */
  readonly port: number;
  /** The runtime underneath. */
  readonly runtime: "deno" | "bun";
  /** Fulfilled when the server has stopped. */
  readonly finished: Promise<void>;
  /**
   * Stops: accepts nothing new, finishes what is under way, and aborts what is left after `shutdownTimeout`.
   *
   * @returns The promise {@linkcode Server.finished}.
   */
  shutdown(): Promise<void>;
}

export {
  application,
  fromFetch,
  fromNativeString,
  runApplication,
  serve,
  toEnviron,
  toFetch,
  toNativeString,
  toRequest,
} from "./server.ts";
export {
  accessLog,
  type AccessLogOptions,
  applicationUri,
  basicAuth,
  type BasicAuthOptions,
  type BodyTransformer,
  compress,
  type CompressOptions,
  conditional,
  type CookieOptions,
  cors,
  type CorsOptions,
  errorPage,
  type ErrorPageOptions,
  type ErrorRendering,
  type ErrorResponse,
  files,
  type FilesOptions,
  formatCookie,
  guessScheme,
  health,
  type HealthOptions,
  limitBody,
  type LimitBodyOptions,
  limitConcurrency,
  type LimitConcurrencyOptions,
  mapBody,
  mapResponse,
  mount,
  parseCookies,
  type PendingResponse,
  pipeline,
  proxyFix,
  type ProxyFixOptions,
  requestId,
  type RequestIdOptions,
  requestUri,
  type RequestUriOptions,
  secureHeaders,
  type SecureHeadersOptions,
  shiftPathInfo,
  testEnviron,
  type TestEnvironOptions,
  timeout,
  type TimeoutOptions,
  trustedHosts,
  type TrustedHostsOptions,
  validator,
} from "./middleware.ts";
