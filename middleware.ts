/**
 * Middleware, a validator of the interface, and the helpers that applications and middleware share.
 *
 * Every middleware is a plain function `name(app, options?)` that returns an application. It never delays a chunk of a
 * stream, calls the inner `close` once, and does not touch what is not its business.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { accessLog, errorPage, pipeline, runApplication, testEnviron } from "./mod.ts";
 *
 * const lines: string[] = [];
 * const app = pipeline(
 *   () => {
 *     throw new Error("Out of order");
 *   },
 *   (app) => accessLog(app, { write: (line) => lines.push(line) }),
 *   (app) => errorPage(app),
 * );
 * assert.equal((await runApplication(app, testEnviron())).status, "500 Internal Server Error");
 * assert.match(lines[0]!, /"GET \/ HTTP\/1\.0" 500 /);
 * ```
 *
 * @module
 */

import type {
  Application,
  ApplicationLike,
  Environ,
  ErrorStream,
  FetchContext,
  HeaderList,
  InputStream,
  Middleware,
  ResponseBody,
  StartResponse,
  Write,
} from "./mod.ts";
import {
  application,
  bodyTooLarge,
  checkOptions,
  type ChunkIterator,
  type ChunkResult,
  CODED_HEADERS,
  concat,
  DENO,
  EMPTY,
  escapeByte,
  FILE,
  fromNativeString,
  hasNodeModules,
  HEADER_VALUE,
  HOP_BY_HOP,
  HOST,
  inspect,
  integerFrom,
  isAbortError,
  isBoolean,
  isFunction,
  isHost,
  isObject,
  isPromise,
  logError,
  matching,
  MAX_DELAY,
  memoize,
  nameRequest,
  nextTurn,
  NOT_STARTED,
  NULL_BODY_STATUSES,
  openBody,
  type OptionChecks,
  parseHead,
  parseList,
  percentDecode,
  printable,
  readAtHand,
  REASONS,
  REQUEST_ID,
  requireNodeModule,
  responseHeaders,
  sendError,
  startedTwice,
  startError,
  STATUS_PATTERN,
  toEnviron,
  TOKEN,
  toNativeString,
  wrapFile,
  writeError,
  WRITTEN_LATE,
  wrongBody,
  wrongChunk,
  wrongHeader,
  wrongHeaders,
  wrongHeaderText,
  wrongStatus,
} from "./server.ts";

// #region Helpers of wsgiref.util

/**
 * Options for {@linkcode requestUri}.
 *
 * @example
 * ```ts
 * import type { RequestUriOptions } from "./mod.ts";
 *
 * const options: RequestUriOptions = { includeQuery: false };
 * ```
 */
export interface RequestUriOptions {
  /**
   * Whether the address includes the query.
   *
   * @default {true}
   */
  includeQuery?: boolean | undefined;
}

const REQUEST_URI_OPTIONS: OptionChecks<RequestUriOptions> = { includeQuery: [isBoolean, "true or false"] };

/**
 * Returns the address of the request, as Python's `wsgiref.util.request_uri`.
 *
 * PEP 3333, "URL Reconstruction".
 *
 * @throws {TypeError} When an option is unknown or invalid.
 *
 * @param environ The environ.
 * @param options Whether to include the query.
 * @returns The address.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { requestUri, testEnviron } from "./mod.ts";
 *
 * const environ = testEnviron({ SCRIPT_NAME: "/app", PATH_INFO: "/a b", QUERY_STRING: "c=d" });
 * assert.equal(requestUri(environ), "http://127.0.0.1/app/a%20b?c=d");
 * ```
 */
export function requestUri(environ: Environ, options: RequestUriOptions = {}): string {
  checkOptions(options, REQUEST_URI_OPTIONS);
  const { SCRIPT_NAME, PATH_INFO = "", QUERY_STRING } = environ;
  const path = quote(SCRIPT_NAME ? PATH_INFO : PATH_INFO.slice(1), ";=,");
  const query = (options.includeQuery ?? true) && QUERY_STRING ? `?${QUERY_STRING}` : "";
  return applicationUri(environ) + path + query;
}

/**
 * Returns the address of the application, without PATH_INFO and query, as Python's `wsgiref.util.application_uri`.
 *
 * PEP 3333, "URL Reconstruction".
 *
 * @param environ The environ.
 * @returns The address.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { applicationUri, testEnviron } from "./mod.ts";
 *
 * const environ = testEnviron({ HTTP_HOST: "example.com:8080", SCRIPT_NAME: "/app", PATH_INFO: "/page" });
 * assert.equal(applicationUri(environ), "http://example.com:8080/app");
 * ```
 */
export function applicationUri(environ: Environ): string {
  const { HTTP_HOST, SERVER_NAME, SERVER_PORT, SCRIPT_NAME, "wsgi.url_scheme": scheme } = environ;
  const port = SERVER_PORT === defaultPort(scheme) ? "" : `:${SERVER_PORT}`;
  return `${scheme}://${HTTP_HOST || SERVER_NAME + port}${quote(SCRIPT_NAME || "/")}`;
}

/**
 * Moves one segment from PATH_INFO to SCRIPT_NAME, as Python's `wsgiref.util.shift_path_info`.
 *
 * Empty segments and `.` are dropped. A segment `..` removes one from SCRIPT_NAME, as in Python, so check the result
 * before you trust it.
 *
 * @param environ The environ, which is changed.
 * @returns The segment, which is empty for a slash at the end of the path, or `null` if nothing is left.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { shiftPathInfo, testEnviron } from "./mod.ts";
 *
 * const environ = testEnviron({ PATH_INFO: "/users/7" });
 * assert.equal(shiftPathInfo(environ), "users");
 * assert.equal(environ.SCRIPT_NAME, "/users");
 * assert.equal(environ.PATH_INFO, "/7");
 * ```
 */
export function shiftPathInfo(environ: Environ): string | null {
  const { SCRIPT_NAME = "", PATH_INFO = "" } = environ;
  const [first = "", ...rest] = PATH_INFO.split("/");
  const last = rest.pop();
  if (last === undefined) return null;
  const [name = "", ...remaining] = [...rest.filter((segment) => segment !== "" && segment !== "."), last];
  const script: string[] = [];
  for (const segment of `${SCRIPT_NAME}/${name}`.split("/")) {
    if (segment === "..") script.pop();
    else if (segment !== "" && segment !== ".") script.push(`/${segment}`);
  }
  environ.SCRIPT_NAME = script.join("") + (name === "" ? "/" : "");
  environ.PATH_INFO = [first, ...remaining].join("/");
  return name === "." ? null : name;
}

/**
 * Guesses the scheme from the variable HTTPS, as Python's `wsgiref.util.guess_scheme`.
 *
 * @param environ The environ, or a part of one.
 * @returns `"https"` if HTTPS is `"on"`, `"yes"` or `"1"`, else `"http"`.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { guessScheme } from "./mod.ts";
 *
 * assert.equal(guessScheme({ HTTPS: "on" }), "https");
 * ```
 */
export function guessScheme(environ: Partial<Environ>): "http" | "https" {
  return environ.HTTPS === "on" || environ.HTTPS === "yes" || environ.HTTPS === "1" ? "https" : "http";
}

/**
 * Options for {@linkcode testEnviron}.
 *
 * @example
 * ```ts
 * import type { TestEnvironOptions } from "./mod.ts";
 *
 * const options: TestEnvironOptions = { body: new URLSearchParams({ name: "Ada" }) };
 * ```
 */
export interface TestEnvironOptions {
  /**
   * The body of the request. CONTENT_LENGTH is its size, but for `FormData`, whose size nobody knows before it is sent.
   * CONTENT_TYPE is that of a form or a `Blob`. The method is POST, if `overrides` has no other one.
   */
  body?: string | Uint8Array | Blob | URLSearchParams | FormData | undefined;
}

const TEST_ENVIRON_OPTIONS: OptionChecks<TestEnvironOptions> = {
  body: [
    (value) => isString(value) || [Uint8Array, Blob, URLSearchParams, FormData].some((type) => value instanceof type),
    "text, a Uint8Array, a Blob, URLSearchParams or FormData",
  ],
};

/**
 * Makes an environ for tests, with every required variable, as Python's `wsgiref.util.setup_testing_defaults`.
 *
 * @throws {TypeError} When an option is unknown or invalid, or there is a body with a method that has none, such as GET.
 *
 * @param overrides Variables to replace or to add.
 * @param options The body of the request.
 * @returns A new environ: by default that of a GET for `/` on 127.0.0.1, without a body.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { testEnviron } from "./mod.ts";
 *
 * const environ = testEnviron({ HTTPS: "on", PATH_INFO: "/page" });
 * assert.equal(environ["wsgi.url_scheme"], "https");
 * assert.equal(environ.SERVER_PORT, "443");
 * assert.equal(environ.REQUEST_URI, "/page");
 * ```
 *
 * @example With a body
 * ```ts
 * import assert from "node:assert/strict";
 * import { testEnviron, toRequest } from "./mod.ts";
 *
 * const environ = testEnviron({ CONTENT_TYPE: "application/json" }, { body: "[1]" });
 * assert.equal(environ.CONTENT_LENGTH, "3");
 * assert.deepEqual(await toRequest(environ).json(), [1]);
 * ```
 */
export function testEnviron(overrides: Partial<Environ> = {}, options: TestEnvironOptions = {}): Environ {
  checkOptions(options, TEST_ENVIRON_OPTIONS);
  const { SERVER_NAME = "127.0.0.1", SCRIPT_NAME = "", PATH_INFO = SCRIPT_NAME ? "" : "/", QUERY_STRING } = overrides;
  const scheme = overrides["wsgi.url_scheme"] ?? guessScheme(overrides);
  const path = quote((SCRIPT_NAME + PATH_INFO).replace(/[^\0-\xff]+/g, toNativeString), ";=,");
  return {
    ...toEnviron(new Request("http://127.0.0.1/", bodyInit(overrides, options))),
    SERVER_NAME,
    SERVER_PROTOCOL: "HTTP/1.0",
    SERVER_PORT: defaultPort(scheme),
    HTTP_HOST: SERVER_NAME,
    REQUEST_URI: QUERY_STRING ? `${path}?${QUERY_STRING}` : path,
    PATH_INFO,
    "wsgi.url_scheme": scheme,
    ...overrides,
  };
}

function bodyInit({ REQUEST_METHOD: method = "POST" }: Partial<Environ>, { body }: TestEnvironOptions): RequestInit {
  if (body === undefined) return {};
  if (/^(?:GET|HEAD)$/i.test(method)) { // Bun makes such a request, and drops the body
    throw new TypeError(`Cannot make an environ of ${method} with a body, expected a method such as POST`);
  }
  const bytes = (isString(body) ? ENCODER.encode(body) : body) as Blob; // only Deno has a type for text
  const headers: Record<string, string> = body instanceof FormData
    ? {}
    : { "Content-Length": String(new Blob([bytes]).size) };
  return { method, body: bytes, headers };
}

/** The target of a request, also where another server has no REQUEST_URI, which is not of PEP 3333. */
function requestTarget({ REQUEST_URI, SCRIPT_NAME = "", PATH_INFO = "", QUERY_STRING }: Environ): string {
  return REQUEST_URI ?? quote(SCRIPT_NAME + PATH_INFO, ";=,") + (QUERY_STRING ? `?${QUERY_STRING}` : "");
}

function defaultPort(scheme: string): string {
  return scheme === "https" ? "443" : "80";
}

/** Percent-encodes all bytes but letters, digits, `_.-~/` and those of `safe`, as Python's `urllib.parse.quote`. */
function quote(bytes: string, safe = ""): string {
  if (/[^\0-\xff]/.test(bytes)) {
    throw new RangeError(`Cannot quote ${inspect(bytes)}: expected one character for each byte`);
  }
  return bytes.replace(/[^\w.~/-]/g, (byte) => safe.includes(byte) ? byte : escapeByte(byte));
}

// #endregion

// #region Cookies

/**
 * Reads the cookies of a request. RFC 6265, sections 4.2 and 5.4.
 *
 * Percent-encoded text is decoded, as {@linkcode formatCookie} encodes it, unless its bytes are not UTF-8. Quotes around
 * a value are removed. Of two cookies with the same name the first counts: browsers send that of the longer path first.
 *
 * @param environ The environ.
 * @returns The values by name, in an object without a prototype.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { parseCookies, testEnviron } from "./mod.ts";
 *
 * const { theme } = parseCookies(testEnviron({ HTTP_COOKIE: "session=8f3a; theme=dark%20blue" }));
 * assert.equal(theme, "dark blue");
 * ```
 */
export function parseCookies({ HTTP_COOKIE = "" }: Environ): Record<string, string | undefined> {
  const cookies: Record<string, string | undefined> = Object.create(null);
  for (const pair of HTTP_COOKIE.split(";")) {
    const end = pair.indexOf("=");
    const name = trimBlanks(pair.slice(0, end));
    if (end < 0 || name in cookies) continue;
    cookies[name] = decodeCookie(trimBlanks(pair.slice(end + 1)).replace(/^"(.*)"$/s, "$1"));
  }
  return cookies;
}

/** Trims spaces and tabs. `trim` would also take the last byte of "à", which is a no-break space as a character. */
function trimBlanks(native: string): string {
  return /[^ \t]+(?:[ \t]+[^ \t]+)*/.exec(native)?.[0] ?? "";
}

const COOKIE_DECODER = new TextDecoder("utf-8", { fatal: false, ignoreBOM: true });

/** Decodes a value, or returns it as it is. It makes no errors, which a header could cause by the thousand. */
function decodeCookie(value: string): string {
  const bytes = percentDecode(value);
  if (!/[^\0-\x7f]/.test(bytes)) return bytes;
  const text = COOKIE_DECODER.decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
  return toNativeString(text) === bytes ? text : value;
}

/**
 * Options for {@linkcode formatCookie}.
 *
 * @example
 * ```ts
 * import type { CookieOptions } from "./mod.ts";
 *
 * const options: CookieOptions = { maxAge: 30 * 24 * 60 * 60, secure: true };
 * ```
 */
export interface CookieOptions {
  /**
   * How long the browser keeps the cookie, in seconds: 400 days at the most. 0 deletes it. By default it ends with the
   * browser's session.
   */
  maxAge?: number | undefined;
  /** The host that gets the cookie together with its subdomains. By default only the host of the request gets it. */
  domain?: string | undefined;
  /**
   * The prefix of the paths that get the cookie, percent-encoded. Under `mount`, it is mostly
   * `new URL(applicationUri(environ)).pathname`.
   *
   * @default {"/"}
   */
  path?: string | undefined;
  /**
   * Whether the cookie is sent over HTTPS alone.
   *
   * @default {false}
   */
  secure?: boolean | undefined;
  /**
   * Whether the cookie is hidden from JavaScript.
   *
   * @default {true}
   */
  httpOnly?: boolean | undefined;
  /**
   * Whether the cookie is sent with requests that another site causes: `"Strict"` never, `"Lax"` only when the user
   * follows a link, `"None"` always.
   *
   * @default {"Lax"}
   */
  sameSite?: "Strict" | "Lax" | "None" | undefined;
}

const COOKIE_OPTIONS: OptionChecks<CookieOptions> = {
  maxAge: [integerFrom(0, Number.MAX_SAFE_INTEGER), "a number of seconds from 0 on"],
  domain: [matching(/^\.?[\w-]+(?:\.[\w-]+)*$/), 'a host such as "example.com"'],
  path: [matching(/^\/[\x21-\x3a\x3c-\x7e]{0,1023}$/), 'a path such as "/account"'], // browsers ignore longer ones
  secure: [isBoolean, "true or false"],
  httpOnly: [isBoolean, "true or false"],
  sameSite: [matching(/^(?:Strict|Lax|None)$/), '"Strict", "Lax" or "None"'],
};

/**
 * Makes the value of a `Set-Cookie` header. RFC 6265, section 4.1.
 *
 * The value may be any text: it is percent-encoded. A cookie that browsers would drop silently is refused.
 *
 * @throws {TypeError} When the name or an option is invalid, or browsers do not take the cookie as it is.
 *
 * @param name The name.
 * @param value The value.
 * @param options The attributes.
 * @returns The value of the header.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { formatCookie } from "./mod.ts";
 *
 * assert.equal(formatCookie("theme", "dark blue"), "theme=dark%20blue; Path=/; HttpOnly; SameSite=Lax");
 * ```
 */
export function formatCookie(name: string, value: string, options: CookieOptions = {}): string {
  checkOptions(options, COOKIE_OPTIONS);
  const { maxAge, domain, path = "/", secure = false, httpOnly = true, sameSite = "Lax" } = options;
  const fail = (reason: string): never => {
    throw new TypeError(`Cannot set the cookie ${inspect(name)}: ${reason}`);
  };
  if (typeof value !== "string") fail(`its value is ${inspect(value)}, expected a string: String(value)`);
  const encoded = encodeURIComponent(value.toWellFormed());
  const size = name.length + encoded.length;
  const prefix = /^__(?:(?:Host-)?Http|Host|Secure)-/i.exec(name)?.[0].toLowerCase() ?? "";
  if (!TOKEN.test(name)) fail('its name is not a token, expected one such as "session"');
  if (size > 4096) fail(`it has ${size} bytes, browsers keep at most 4096`);
  if (!secure && (sameSite === "None" || prefix)) fail('it needs "secure: true"');
  if (!httpOnly && prefix.endsWith("http-")) fail('it needs "httpOnly: true"');
  if (prefix.startsWith("__host-") && (domain !== undefined || path !== "/")) {
    fail('it needs the path "/", and no domain');
  }
  return [
    `${name}=${encoded}`,
    ...(maxAge === undefined ? [] : [`Max-Age=${maxAge}`]),
    ...(domain === undefined ? [] : [`Domain=${domain}`]),
    `Path=${path}`,
    ...(secure ? ["Secure"] : []),
    ...(httpOnly ? ["HttpOnly"] : []),
    `SameSite=${sameSite}`,
  ].join("; ");
}

// #endregion

// #region Pipeline

/**
 * Wraps an application in middleware. The first middleware is the outermost.
 *
 * @throws {TypeError} When `app` is not an application.
 *
 * @param app The application.
 * @param middleware The middleware, from the outermost to the innermost.
 * @returns The wrapped application.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { conditional, pipeline, requestId, runApplication, testEnviron } from "./mod.ts";
 *
 * const app = pipeline(
 *   (_environ, startResponse) => {
 *     startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *     return [new TextEncoder().encode("Hello")];
 *   },
 *   requestId,
 *   conditional,
 * );
 * const { headers } = await runApplication(app, testEnviron());
 * assert.deepEqual(headers.map(([name]) => name), ["Content-Type", "ETag", "X-Request-Id"]);
 * ```
 */
export function pipeline(app: ApplicationLike, ...middleware: Middleware[]): Application {
  return middleware.reduceRight((inner, wrap) => wrap(inner), application(app));
}

// #endregion

// #region mapBody and mapResponse

/**
 * The steps of a body, for {@linkcode mapBody}.
 *
 * @example
 * ```ts
 * import type { BodyTransformer } from "./mod.ts";
 *
 * const upperCase: BodyTransformer = {
 *   transform: (chunk) => chunk.map((byte) => byte >= 97 && byte <= 122 ? byte - 32 : byte),
 * };
 * ```
 */
export interface BodyTransformer {
  /**
   * Returns the chunk to send in place of a chunk, or a promise of it, for which the next chunk waits. Empty chunks are
   * passed on without it.
   *
   * A transformer that changes the length of the body has to take Content-Length off the headers.
   *
   * @param chunk The chunk, as the application gave it.
   * @returns The chunk to send.
   */
  transform?(chunk: Uint8Array): Uint8Array | Promise<Uint8Array>;
  /**
   * Returns a chunk to send after the last one, or a promise of it. It is not called for a body that fails, or whose
   * client leaves.
   *
   * @returns The last chunk.
   */
  flush?(): Uint8Array | Promise<Uint8Array>;
  /** Is called once for each request, however it has ended, right after the application's own `close`. */
  close?(): void | Promise<void>;
}

/**
 * Looks at each chunk of a response until its end, or changes it.
 *
 * It is the same whether the application returns an array or a stream, or sends by `write`. An array stays an array,
 * no chunk is held back, and a client that leaves ends the application's body at once. PEP 3333, "Middleware Handling
 * of Block Boundaries".
 *
 * @throws {TypeError} When `app` is not an application.
 *
 * @param app The application.
 * @param transformerOf Returns what is to be done with the body of one request.
 * @returns The application, whose chunks pass the transformer.
 *
 * @example Counts the bytes of each response
 * ```ts
 * import assert from "node:assert/strict";
 * import { type ApplicationLike, mapBody, runApplication, type StartResponse, testEnviron } from "./mod.ts";
 *
 * const counts: Record<string, number> = {};
 * const countBytes = (app: ApplicationLike) =>
 *   mapBody(app, ({ PATH_INFO }) => {
 *     let bytes = 0;
 *     return {
 *       transform(chunk) {
 *         bytes += chunk.length;
 *         return chunk;
 *       },
 *       close() {
 *         counts[PATH_INFO] = bytes;
 *       },
 *     };
 *   });
 *
 * const app = countBytes(async function* (_environ: unknown, startResponse: StartResponse) {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   for (const word of ["Hello, ", "world"]) yield new TextEncoder().encode(word);
 * });
 * await runApplication(app, testEnviron());
 * assert.deepEqual(counts, { "/": 12 });
 * ```
 */
export function mapBody(app: ApplicationLike, transformerOf: (environ: Environ) => BodyTransformer): Application {
  const inner = application(app);
  return (environ, startResponse) => new TransformedBody(transformerOf(environ), startResponse).run(inner, environ);
}

/** One request, whose body passes a transformer. */
class TransformedBody implements BodyHooks {
  readonly #transformer: BodyTransformer;
  readonly #startResponse: StartResponse;
  /** Settles when all that was written is passed on, if a chunk takes time. It rejects for good when a chunk fails. */
  #sending: Promise<unknown> | undefined;
  #hasReturned = false;

  constructor(transformer: BodyTransformer, startResponse: StartResponse) {
    this.#transformer = transformer;
    this.#startResponse = startResponse;
  }

  run(app: Application, environ: Environ): ResponseBody | Promise<ResponseBody> {
    return catching(
      () => mapMaybe(app(environ, this.#start), (body) => this.#onReturn(body)),
      (error) => this.#fail(error),
    );
  }

  transform(chunk: Uint8Array): Uint8Array | Promise<Uint8Array> {
    return this.#transformer.transform && hasBytes(chunk) ? this.#transformer.transform(chunk) : chunk;
  }

  flush(): Uint8Array | Promise<Uint8Array> {
    return this.#transformer.flush?.() ?? EMPTY;
  }

  close(inner: () => void | Promise<void>): void | Promise<void> {
    let closed: void | Promise<void>;
    let own: void | Promise<void>;
    try {
      closed = inner();
    } finally {
      own = this.#closeTransformer();
    }
    return isPromise(own) ? Promise.all([closed, own]).then(() => {}) : closed;
  }

  readonly #start: StartResponse = (status, headers, error) => {
    if (error !== undefined && this.#sending && !this.#hasReturned) {
      // The server does not know of the chunk before yet, and would accept the error.
      this.#sending = handled(this.#sending.then(() => Promise.reject(error)));
      throw error;
    }
    const write = this.#startResponse(status, headers, error);
    return (chunk) => this.#write(write, chunk);
  };

  #write(write: Write, chunk: Uint8Array): Promise<void> {
    if (this.#hasReturned) throw sendError(...WRITTEN_LATE);
    const transformed = catching(
      () => mapMaybe(this.#sending, () => this.transform(chunk)),
      (error) => Promise.reject(error), // the application may ignore it and go on
    );
    if (!isPromise(transformed)) return write(transformed);
    const sending = transformed.then((chunk) => ({ written: write(chunk) }));
    this.#sending = handled(sending);
    return handled(sending.then(({ written }) => written));
  }

  #onReturn(body: ResponseBody): ResponseBody | Promise<ResponseBody> {
    this.#hasReturned = true;
    if (!isIterableBody(body)) {
      this.#closeTransformer();
      return body; // the server refuses it, and calls no close
    }
    const transform = () => Array.isArray(body) ? this.#transformAll(body) : withHooks(body, this);
    return cancelOnError(body, () => mapMaybe(this.#sending, transform));
  }

  /** Transforms an array, which stays one. */
  #transformAll(body: ResponseBody & Uint8Array[]): ResponseBody | Promise<ResponseBody> {
    const chunks: Uint8Array[] = [];
    const push = (chunk: Uint8Array) => void chunks.push(chunk);
    let pushed: void | Promise<void> = undefined;
    for (const chunk of body) pushed = mapMaybe(pushed, () => mapMaybe(this.transform(chunk), push));
    const flushed = mapMaybe(pushed, () => this.flush());
    return mapMaybe(flushed, (last) => {
      if (last?.length) push(last);
      return Object.assign(chunks, { close: () => this.close(() => body.close?.()) });
    });
  }

  /** Passes a failure on, after the chunks that were written before. */
  #fail(error: unknown): ResponseBody | Promise<ResponseBody> {
    return catching<ResponseBody>(() => failAfter(this.#sending, error), () => {
      safely(() => this.#closeTransformer(), undefined); // the first failure is the one to report
      throw error;
    });
  }

  #closeTransformer(): void | Promise<void> {
    const closed = this.#transformer.close?.();
    return isPromise(closed) ? handled(closed) : closed;
  }
}

/**
 * A response that has not been started, for {@linkcode mapResponse}.
 *
 * @example
 * ```ts
 * import type { PendingResponse } from "./mod.ts";
 *
 * const response: PendingResponse = { status: "200 OK", headers: [], body: [new Uint8Array(5)] };
 * ```
 */
export interface PendingResponse {
  /** The status, such as `"200 OK"`. */
  status: string;
  /** The headers. */
  headers: HeaderList;
  /**
   * The chunks, where the application has returned an array and not written. Without it in the response to send, the body
   * stays as it is. A body of another length needs another Content-Length.
   */
  body?: readonly Uint8Array[] | undefined;
}

/**
 * Changes the status and the headers of each response before it is started, and the body where that is an array.
 *
 * Until the change is made, the call of `startResponse` is held back, and so are the first chunks: the change may take
 * time, as WebCrypto does, although `startResponse` is synchronous. Where the application calls `startResponse` again,
 * with an error, that response is changed as well.
 *
 * @throws {TypeError} When `app` is not an application.
 *
 * @param app The application.
 * @param map Returns the response to send in place of a response, or a promise of it.
 * @returns The application, whose responses are changed.
 *
 * @example Signs a cookie
 * ```ts
 * import assert from "node:assert/strict";
 * import { type ApplicationLike, mapResponse, runApplication, type StartResponse, testEnviron } from "./mod.ts";
 *
 * const key = await crypto.subtle.generateKey({ name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
 * const signCookies = (app: ApplicationLike) =>
 *   mapResponse(app, async (response) => {
 *     const headers = response.headers.map(async ([name, value]): Promise<[string, string]> => {
 *       if (name !== "Set-Cookie") return [name, value];
 *       const signature = await crypto.subtle.sign("HMAC", key, new TextEncoder().encode(value));
 *       return [name, `${value}.${new Uint8Array(signature).toHex()}`];
 *     });
 *     return { ...response, headers: await Promise.all(headers) };
 *   });
 *
 * const app = signCookies((_environ: unknown, startResponse: StartResponse) => {
 *   startResponse("200 OK", [["Set-Cookie", "user=7"]]);
 *   return [];
 * });
 * const { headers } = await runApplication(app, testEnviron());
 * assert.match(headers[0]![1], /^user=7\.[0-9a-f]{64}$/);
 * ```
 */
export function mapResponse(
  app: ApplicationLike,
  map: (response: PendingResponse, environ: Environ) => PendingResponse | Promise<PendingResponse>,
): Application {
  const inner = application(app);
  return (environ, startResponse) => {
    const change: ChangeResponse = (head, body) => {
      const chunks = isChunkArray(body) ? body : undefined;
      return mapMaybe(map({ status: head.status, headers: head.headers, body: chunks }, environ), (mapped) => {
        head.status = mapped.status;
        head.headers = mapped.headers;
        if (chunks) return mapped.body && withChunks(chunks, [...mapped.body]);
        if (mapped.body) throw new TypeError("Cannot replace the body: its chunks do not exist yet, use mapBody");
        return undefined;
      });
    };
    const deferred = new DeferredStart(startResponse, change);
    return mapMaybe(deferred.run(inner, environ), (body) => Array.isArray(body) ? body : withHooks(body, deferred));
  };
}

// #endregion

// #region Options, errors and text

function arrayOf(test: (value: unknown) => boolean): (value: unknown) => boolean {
  return (value) => Array.isArray(value) && value.every(test);
}

function recordOf(test: (value: unknown) => boolean): (value: unknown) => boolean {
  return (value) => isObject(value) && Object.values(value).every(test);
}

function isString(value: unknown): value is string {
  return typeof value === "string";
}

function isNotNegative(value: unknown): boolean {
  return typeof value === "number" && value >= 0;
}

/** Makes the error for an invalid option, in the words of `checkOptions`. */
function optionError(name: string, found: unknown, expected: string, options?: ErrorOptions): TypeError {
  return new TypeError(`Cannot use option "${name}": found ${inspect(found)}, expected ${expected}`, options);
}

/** Makes a call that may throw, such as a getter of an unknown value. Returns the fallback then. */
function safely<Value>(call: () => Value, fallback: Value): Value {
  try {
    return call();
  } catch {
    return fallback;
  }
}

/** The status that an error asks for: its own `status` from 400 to 599. */
function ownStatus(error: unknown): number | undefined {
  const status = safely(() => (Object(error) as { status: number }).status, NaN);
  return Number.isInteger(status) && status >= 400 && status < 600 ? status : undefined;
}

/** The status that `errorPage` gives an error. */
function errorStatus(error: unknown): number {
  return ownStatus(error) ?? 500;
}

/** Whether an error means that the client has left: the server's own error, or one that the signal has caused. */
function isDisconnect(error: unknown, context: FetchContext | undefined): boolean {
  if (!isAbortError(error)) return false;
  return errorStatus(error) === 400 || (context?.signal.aborted ?? false);
}

/** Logs a failure that is handled here, so that the server never sees it. */
function logFailure(environ: Environ, error: unknown, what = "Application"): void {
  logError(environ["wsgi.errors"], `${what} failed on ${describeRequest(environ)}`, error);
}

/** A request in a report: its method, its target, and the id that `requestId` has given it. */
function describeRequest(environ: Environ): string {
  const id = nameRequest(environ["fetch.context"]?.request, environ["request.id"]);
  return `${environ.REQUEST_METHOD} ${requestTarget(environ)}${id}`;
}

// The least time between two lines of one middleware about requests, in milliseconds: a client must not fill the log.
const WARNING_INTERVAL = 10_000;

/** Writes a line about a request to `wsgi.errors`, unless one was written a moment ago. */
type Warn = (environ: Environ, event: string, reason: string) => void;

function rateLimitedWarning(): Warn {
  let quietUntil = 0;
  let omitted = 0;
  return (environ, event, reason) => {
    const now = performance.now();
    if (now < quietUntil) {
      omitted++;
      return;
    }
    const more = omitted > 0 ? ` (${omitted} more since the last line)` : "";
    writeError(environ["wsgi.errors"], `${printable(`${event} ${describeRequest(environ)}: ${reason}${more}`)}\n`);
    quietUntil = now + WARNING_INTERVAL;
    omitted = 0;
  };
}

/** Describes a value with its contents, and an error with its stack and its causes. `inspect` only names the class. */
function inspectDeep(value: unknown, depth = 1): string {
  if (typeof value === "string") return JSON.stringify(value);
  return safely(() => {
    if (!hasNodeModules()) return value instanceof Error ? String(value.stack || value) : inspect(value);
    return process.getBuiltinModule("node:util").inspect(value, { depth, breakLength: Infinity });
  }, "a value that cannot be shown");
}

const ENCODER = new TextEncoder();
const END: IteratorReturnResult<undefined> = { done: true, value: undefined };

// #endregion

// #region Promises and bodies

/** Applies `use` now, or when the promise resolves. It is synchronous where the value is no promise. */
function mapMaybe<Value, Result>(
  value: Value | PromiseLike<Value>,
  use: (value: Value) => Result | PromiseLike<Result>,
): Result | Promise<Result> {
  return (isPromise(value) ? Promise.resolve(value).then(use) : use(value)) as Result | Promise<Result>;
}

/** Marks a promise as handled: it may reject although nobody waits for it. */
function handled<Value>(promise: Promise<Value>): Promise<Value> {
  promise.catch(() => {});
  return promise;
}

/** Makes a call, and handles its failure now or when its promise rejects. */
function catching<Result>(
  call: () => Result | Promise<Result>,
  onError: (error: unknown) => Result | Promise<Result>,
): Result | Promise<Result> {
  try {
    const result = call();
    return isPromise(result) ? Promise.resolve(result).catch(onError) : result;
  } catch (error) {
    return onError(error);
  }
}

/** Throws an error, after a promise has settled if there is one. */
function failAfter(pending: Promise<unknown> | undefined, error: unknown): Promise<never> {
  const fail = (): never => {
    throw error;
  };
  return pending ? pending.then(fail, fail) : fail();
}

/** The functions of a middleware for the steps of a body. Without a hook, a step passes through unchanged. */
interface BodyHooks {
  /** Asks the application for a chunk. `cancel` tells the application that no more is wanted. */
  pull?(ask: () => Promise<ChunkResult>, cancel: () => Promise<void>): Promise<ChunkResult>;
  /** Returns the chunk to send in place of a chunk. */
  transform?(chunk: Uint8Array): Uint8Array | Promise<Uint8Array>;
  /** Returns a chunk to send after the last one. */
  flush?(): Uint8Array | Promise<Uint8Array>;
  /** Handles a failure of the application: returns a body to send instead, or throws. A failure of that is thrown on. */
  recover?(error: unknown): ResponseBody | Promise<ResponseBody>;
  /** Calls the inner `close`. `isOpen` tells whether chunks were asked for and the body has not ended. */
  close?(inner: () => void | Promise<void>, isOpen: () => boolean): void | Promise<void>;
}

/**
 * Passes a body on, chunk by chunk, through hooks. An array stays an array, for which only `close` is called.
 *
 * This is not a generator: where a client leaves, the `return` of a generator is queued behind its pending `next`.
 */
function withHooks(body: ResponseBody, hooks: BodyHooks): ResponseBody {
  if (!isIterableBody(body)) return body; // the server refuses it
  let iterator: ChunkIterator | undefined;
  let isOpen = false;
  let hasEnded = false;
  let hasRecovered = false;
  let replacement: ResponseBody | undefined;
  const closeInner = () => replacement ? closeAll(body, replacement) : body.close?.();
  const close = () => {
    hasEnded = true;
    return hooks.close ? hooks.close(closeInner, () => isOpen) : closeInner();
  };
  if (Array.isArray(body)) return hooks.close ? Object.assign([...body], { close }) : body;

  const ask = async () => {
    if (hasEnded) return END;
    isOpen = true;
    return await (iterator ??= openBody(body)).next();
  };
  const cancel = async () => {
    await (iterator ??= openBody(body)).return?.();
  };
  const stop = async () => {
    hasEnded = true;
    isOpen = false;
    await cancel();
    return END;
  };
  const pull = async (): Promise<ChunkResult> => {
    try {
      return await (hooks.pull ? hooks.pull(ask, cancel) : ask());
    } catch (error) {
      isOpen = false;
      if (!hooks.recover || hasRecovered || hasEnded) throw error;
      hasRecovered = true;
      iterator = openBody([]); // what has thrown has ended: a client that leaves meanwhile has nothing to cancel
      const recovered = await hooks.recover(error);
      if (hasEnded) {
        await cancelBody(recovered);
        return END;
      }
      replacement = recovered;
      iterator = openBody(replacement);
      return await iterator.next();
    }
  };
  const next = async (): Promise<ChunkResult> => {
    const step = await pull();
    if (hasEnded) return END;
    try {
      if (!step.done) {
        return { done: false, value: hooks.transform ? await hooks.transform(step.value) : step.value };
      }
      hasEnded = true;
      isOpen = false;
      const value = await hooks.flush?.();
      return value?.length ? { done: false, value } : END;
    } catch (error) {
      if (!step.done) await stop().catch(() => {}); // a hook has failed, of which the application does not know
      throw error;
    }
  };
  const hooked = { [Symbol.asyncIterator]: () => ({ next: () => handled(next()), return: stop }), close };
  return FILE in body ? Object.assign(hooked, { [FILE]: true }) : hooked;
}

/** Whether a body is an array of chunks. The server refuses an array of anything else. */
function isChunkArray(body: unknown): body is ResponseBody & Uint8Array[] {
  return Array.isArray(body) && body.every((chunk) => chunk instanceof Uint8Array);
}

/** Whether a chunk begins the response. Until then status and headers can change. */
function hasBytes(chunk: unknown): boolean {
  return chunk instanceof Uint8Array && chunk.length > 0;
}

function isIterableBody(body: unknown): body is ResponseBody {
  return typeof body === "object" && body !== null && !(body instanceof Uint8Array) &&
    (Symbol.asyncIterator in body || Symbol.iterator in body);
}

/** Replaces the chunks of a body, and keeps its `close`. */
function withChunks(body: ResponseBody, chunks: Uint8Array[]): ResponseBody {
  return body.close ? Object.assign(chunks, { close: () => body.close?.() }) : chunks;
}

/** Stops and closes a body that is not passed on, even while it waits for something. */
async function cancelBody(body: ResponseBody): Promise<void> {
  const stop = async () => isIterableBody(body) ? await openBody(body).return?.() : undefined;
  const close = async () => await body?.close?.();
  await Promise.all([stop(), close()]);
}

/** Closes several bodies, also where closing one of them fails. */
async function closeAll(...bodies: ResponseBody[]): Promise<void> {
  await Promise.all(bodies.map(async (body) => await body.close?.()));
}

/** Does some work before a body is passed on, and cancels the body if that fails. */
function cancelOnError<Result>(body: ResponseBody, work: () => Result | Promise<Result>): Result | Promise<Result> {
  return catching(work, (error) => {
    cancelBody(body).catch(() => {}); // the first failure is the one to report
    throw error;
  });
}

// #endregion

// #region Headers and negotiation

interface StartArguments {
  status: string;
  headers: HeaderList;
  error: unknown;
}

/** A `startResponse` that changes the headers. The server refuses what is not a list of pairs. */
function mapStart(
  startResponse: StartResponse,
  change: (headers: HeaderList, status: string) => HeaderList,
): StartResponse {
  return (status, headers, error) => startResponse(status, isPairs(headers) ? change(headers, status) : headers, error);
}

/**
 * A `startResponse` that waits for the body, so that a middleware can change both together.
 *
 * | The application has              | A call of `startResponse`                                       |
 * | -------------------------------- | --------------------------------------------------------------- |
 * | neither returned nor written yet | is checked, and held back until one of both happens             |
 * | written                          | is changed without a body, and passed on before the first chunk |
 * | returned, as a generator does    | is changed without a body, and passed on before the next chunk  |
 */
class DeferredStart implements BodyHooks {
  readonly #startResponse: StartResponse;
  readonly #change: ChangeResponse;
  /** The call that is held back. */
  #deferred: StartArguments | undefined;
  /** The error of the last call, if that was refused. */
  #failure: unknown;
  /** The `write` of the server, once a call was passed on. */
  #write: Write | undefined;
  /** Settles when the last call was changed and passed on, if that takes time. */
  #changing: Promise<void> | undefined;
  #wasCalled = false;
  #hasReturned = false;
  #hasSent = false;

  constructor(startResponse: StartResponse, change: ChangeResponse) {
    this.#startResponse = startResponse;
    this.#change = change;
  }

  run(app: Application, environ: Environ): ResponseBody | Promise<ResponseBody> {
    return catching(
      () => mapMaybe(app(environ, this.#start), (body) => this.#onReturn(body)),
      (error) => failAfter(this.#changing, error),
    );
  }

  /** Delays a chunk of a stream until an asynchronous change is done. */
  transform(chunk: Uint8Array): Uint8Array | Promise<Uint8Array> {
    return mapMaybe(this.#changing, () => {
      this.#throwIfFailed();
      this.#hasSent ||= hasBytes(chunk);
      return chunk;
    });
  }

  flush(): Uint8Array | Promise<Uint8Array> {
    return this.transform(EMPTY);
  }

  readonly #start: StartResponse = (status, headers, error) => {
    const head = { status, headers, error };
    try {
      if (this.#wasCalled && error === undefined) throw startError(...startedTwice(status));
      if (this.#hasSent) throw error;
      this.#wasCalled = true;
      parseHead(status, headers);
      this.#failure = undefined;
    } catch (failure) {
      this.#failure = failure;
      // The server has to know, too, once calls are passed on. It throws the same, which is to be reported once.
      try {
        if ((this.#hasReturned || this.#write) && !this.#changing) this.#startResponse(status, headers, error);
      } catch (same) {
        this.#failure = same;
      }
      throw this.#failure;
    }
    if (this.#hasReturned || this.#write || this.#changing) this.#passOn(head);
    else this.#deferred = head;
    return this.#send;
  };

  readonly #send: Write = (chunk) => {
    // The server does not know of the return while the body is being changed.
    if (this.#hasReturned) throw sendError(...WRITTEN_LATE);
    if (hasBytes(chunk)) this.#throwIfFailed();
    if (this.#deferred) this.#passOn(this.#deferred);
    this.#hasSent ||= hasBytes(chunk);
    const write = () => this.#write!(chunk);
    return this.#changing ? handled(this.#changing.then(write)) : write();
  };

  /** Throws the error of `startResponse` again, for an application that has caught it and gone on. */
  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Changes status, headers and body together, and starts the response with them, unless it has been started. */
  #onReturn(body: ResponseBody): ResponseBody | Promise<ResponseBody> {
    const head = this.#deferred;
    this.#deferred = undefined;
    this.#hasReturned = true;
    return cancelOnError(body, () => {
      this.#throwIfFailed();
      if (!head) return mapMaybe(this.#changing, () => body);
      return mapMaybe(this.#change(head, body), (changed) => {
        this.#begin(head);
        return changed ?? body;
      });
    });
  }

  /** Changes status and headers without a body, and starts the response with them. */
  #passOn(head: StartArguments): void {
    this.#deferred = undefined;
    try {
      const begun = mapMaybe(mapMaybe(this.#changing, () => this.#change(head)), () => this.#begin(head));
      if (isPromise(begun)) this.#changing = handled(begun);
    } catch (failure) {
      this.#failure = failure;
      throw failure;
    }
  }

  #begin({ status, headers, error }: StartArguments): void {
    this.#write = this.#startResponse(status, headers, error);
  }
}

/** Changes status and headers in place. Returns the new body, or undefined to keep the body. */
type ChangeResponse = (
  head: StartArguments,
  body?: ResponseBody,
) => ResponseBody | undefined | Promise<ResponseBody | undefined>;

/** Responds in place of the application, with the status as plain text. */
function respondWith(
  startResponse: StartResponse,
  status: string,
  headers: HeaderList = [],
  error?: unknown,
): Uint8Array[] {
  startResponse(status, [["Content-Type", "text/plain; charset=utf-8"], ...headers], error);
  return [ENCODER.encode(`${status.slice(4)}\n`)];
}

function isPair(pair: unknown): boolean {
  return Array.isArray(pair) && typeof pair[0] === "string" && typeof pair[1] === "string";
}

function isPairs(headers: unknown): headers is HeaderList {
  return Array.isArray(headers) && headers.every(isPair);
}

/** Tests the name of a header, in any case. Names of another length, which are most, are not made lower case. */
function isNamed(header: string, name: string): boolean {
  return header.length === name.length && header.toLowerCase() === name.toLowerCase();
}

/** The value of a header. Several values are joined. */
function getHeader(headers: HeaderList, name: string): string | undefined {
  let found: string | undefined;
  for (const pair of headers) {
    if (isNamed(pair[0], name)) found = found === undefined ? pair[1] : `${found}, ${pair[1]}`;
  }
  return found;
}

/** The headers without those of some names. */
function omitHeaders(headers: HeaderList, ...names: string[]): HeaderList {
  return headers.filter((pair) => !names.some((name) => isNamed(pair[0], name)));
}

/** The headers with one that replaces all others of its name. */
function setHeader(headers: HeaderList, name: string, value: string): HeaderList {
  return [...headers.filter((pair) => !isNamed(pair[0], name)), [name, value]];
}

/** The headers with one more name in Vary (RFC 9110, section 12.5.5). */
function addVary(headers: HeaderList, name: string): HeaderList {
  const vary = getHeader(headers, "vary");
  if (!vary) return setHeader(headers, "Vary", name);
  const known = parseList(vary.toLowerCase());
  const isKnown = known.includes("*") || known.includes(name.toLowerCase());
  return isKnown ? headers : setHeader(headers, "Vary", `${vary}, ${name}`);
}

/** The headers with those of other ones whose names they do not have. */
function addMissing(headers: HeaderList, others: HeaderList): HeaderList {
  return [...headers, ...others.filter(([name]) => getHeader(headers, name) === undefined)];
}

/** The elements of a header that is a list. */
function listHeader(headers: HeaderList, name: string): string[] {
  const value = getHeader(headers, name);
  return value === undefined ? [] : parseList(value.toLowerCase());
}

function hasNullBody(status: string): boolean {
  return NULL_BODY_STATUSES.has(Number(status.slice(0, 3)));
}

/** A host in lower case, and its port. */
interface Host {
  name: string;
  port: string | undefined;
}

function parseHost(text: string): Host | undefined {
  const [, name, port] = HOST.exec(text.toLowerCase()) ?? [];
  return name !== undefined && isHost(text) ? { name, port: parsePort(port) } : undefined;
}

/** A port without leading zeros; undefined if the text is not a port. */
function parsePort(text = ""): string | undefined {
  return /^\d+$/.test(text) && Number(text) <= 65_535 ? String(Number(text)) : undefined;
}

/** A host as hosts are compared: without the dot at its end, and an IPv6 address in its one form. */
function normalizeHost(text: string): Host | undefined {
  const { name: given, port } = parseHost(text) ?? { name: "" };
  const name = given.startsWith("[") ? new URL(`http://${given}`).hostname : given.replace(/\.$/, "");
  // Empty labels, stars and escapes of ASCII make no name: RFC 1034, section 3.1; RFC 3986, sections 3.2.2 and 6.2.2.2.
  return /(?:^|\.)(?:\.|$)|\*|%[0-7]/.test(name) ? undefined : { name, port };
}

const HOSTS_CACHE = new Map<string, Host | undefined>();

/** The host that a request is for, with its port in any case. */
function requestedHost(environ: Environ): Host | undefined {
  const { HTTP_HOST, SERVER_NAME, SERVER_PORT, "wsgi.url_scheme": scheme } = environ;
  const host = memoize(HOSTS_CACHE, HTTP_HOST || SERVER_NAME, normalizeHost);
  return host && { ...host, port: host.port ?? (HTTP_HOST ? defaultPort(scheme) : SERVER_PORT) };
}

/** Whether a host meets one of a list, which may be for any port, or begin with a dot for all subdomains. */
function meetsHost(host: Host, listed: Host): boolean {
  const meetsName = host.name === listed.name || listed.name.startsWith(".") && `.${host.name}`.endsWith(listed.name);
  return meetsName && (listed.port === undefined || listed.port === host.port);
}

const Q_VALUES_CACHE = new Map<string, Map<string, number>>();

/**
 * Parses Accept or Accept-Encoding into weights, by name and parameters in lower case: RFC 9110, section 12.4.2. Of two
 * equal names the greater weight counts.
 */
function parseQValues(accept: string): Map<string, number> {
  const weights = new Map<string, number>();
  for (const item of parseList(accept.toLowerCase())) {
    const parts = parseList(item, ";").map((part) => part.replace(/="([^"\\]*)"$/, "=$1"));
    const name = parts.filter((part) => !part.startsWith("q=")).join(";");
    const weight = Number(parts.find((part) => part.startsWith("q="))?.slice(2) ?? 1);
    weights.set(name, Math.max(weights.get(name) ?? 0, weight >= 0 && weight <= 1 ? weight : 0));
  }
  return weights;
}

/**
 * The offered media type, in UTF-8, that the client prefers: RFC 9110, section 12.5.1. The most specific range decides on
 * the weight of a type. A range with other parameters is one of other types. Of types of one weight the client prefers the
 * one with the more specific range, and then the one that it has named first, as all libraries for this have it.
 */
function preferredType({ HTTP_ACCEPT = "*/*" }: Environ, offered: string[]): string {
  const weights = memoize(Q_VALUES_CACHE, HTTP_ACCEPT, parseQValues);
  const order = [...weights.keys()];
  const ranked = offered.map((type) => {
    const ranges = [type, type.replace(/[^/]+$/, "*"), "*/*"].flatMap((range) => [`${range};charset=utf-8`, range]);
    const range = ranges.find((range) => weights.has(range)) ?? "";
    return { type, weight: weights.get(range) ?? 0, breadth: ranges.indexOf(range) >> 1, place: order.indexOf(range) };
  });
  ranked.sort((a, b) => b.weight - a.weight || a.breadth - b.breadth || a.place - b.place);
  return ranked[0]!.type;
}

/** The offered codings that the client accepts no less than plain content, best first: RFC 9110, section 12.5.3. */
function acceptedEncodings({ HTTP_ACCEPT_ENCODING = "" }: Environ, offered: string[]): string[] {
  const weights = memoize(Q_VALUES_CACHE, HTTP_ACCEPT_ENCODING, parseQValues);
  const weightOf = (coding: string) => weights.get(coding) ?? weights.get("*") ?? 0;
  const identity = weights.get("identity") ?? 0;
  const accepted = offered.filter((coding) => weightOf(coding) > 0 && weightOf(coding) >= identity);
  return accepted.sort((one, other) => weightOf(other) - weightOf(one));
}

/** Whether the client already has this response: RFC 9110, section 13.2.2. */
function isFresh(environ: Environ, headers: HeaderList): boolean {
  const { HTTP_IF_NONE_MATCH: tags, HTTP_IF_MODIFIED_SINCE: since } = environ;
  if (tags === undefined) {
    return since !== undefined && parseHttpDate(getHeader(headers, "last-modified")) <= parseHttpDate(since);
  }
  const opaque = (tag: string) => tag.replace(/^W\//, ""); // weak ones match, too
  const tag = getHeader(headers, "etag");
  return tags.trim() === "*" || tag !== undefined && parseTags(tags).map(opaque).includes(opaque(tag));
}

/** Whether the client asked for another version of this response: RFC 9110, sections 13.1.1 and 13.1.4. */
function failsPrecondition(environ: Environ, headers: HeaderList): boolean {
  const { HTTP_IF_MATCH: tags, HTTP_IF_UNMODIFIED_SINCE: since } = environ;
  if (tags === undefined) {
    return since !== undefined && parseHttpDate(getHeader(headers, "last-modified")) > parseHttpDate(since);
  }
  const tag = getHeader(headers, "etag") ?? "";
  return tags.trim() !== "*" && (tag.startsWith("W/") || !parseTags(tags).includes(tag)); // weak ones never match
}

/** The entity tags of a list. A backslash in one escapes nothing: RFC 9110, section 8.8.3. */
function parseTags(tags: string): string[] {
  return parseList(tags.replaceAll("\\", "\\\\")).map((tag) => tag.replaceAll("\\\\", "\\"));
}

// The three forms of a date: RFC 9110, section 5.6.7.
const SHORT_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)";
const LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day";
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const MONTH = `(?<month>${MONTHS.join("|")})`;
const TIME = String.raw`(?<hour>[01]\d|2[0-3]):(?<minute>[0-5]\d):(?<second>[0-5]\d|60)`;
const HTTP_DATES = [
  String.raw`${SHORT_DAY}, (?<day>\d\d) ${MONTH} (?<year>\d{4}) ${TIME} GMT`, // Sun, 06 Nov 1994 08:49:37 GMT
  String.raw`${LONG_DAY}, (?<day>\d\d)-${MONTH}-(?<year>\d\d) ${TIME} GMT`, // Sunday, 06-Nov-94 08:49:37 GMT
  String.raw`${SHORT_DAY} ${MONTH} (?<day>[ \d]\d) ${TIME} (?<year>\d{4})`, // Sun Nov  6 08:49:37 1994
].map((form) => new RegExp(`^${form}$`));

/** The time of a date, or NaN. The day of the week need not be the right one. */
function parseHttpDate(date = ""): number {
  const parts = HTTP_DATES.map((form) => form.exec(date)?.groups).find((groups) => groups !== undefined);
  if (!parts) return NaN;
  const { day, month = "", year = "", hour, minute, second } = parts;
  const timeIn = (fullYear: number) => {
    const time = new Date(0);
    time.setUTCFullYear(fullYear, MONTHS.indexOf(month), Number(day)); // Date.UTC takes the year 25 for 1925
    const isReal = time.getUTCDate() === Number(day);
    return isReal ? time.setUTCHours(Number(hour), Number(minute), Number(second)) : NaN;
  };
  if (year.length === 4) return timeIn(Number(year));
  // Two digits mean the last such year that is no more than 50 years ahead.
  const latest = new Date();
  latest.setUTCFullYear(latest.getUTCFullYear() + 50);
  const fullYear = latest.getUTCFullYear() - latest.getUTCFullYear() % 100 + Number(year);
  const time = timeIn(fullYear);
  return time <= latest.getTime() ? time : timeIn(fullYear - 100);
}

const SELECTED = Symbol("selected representation"); // a symbol, so that the application does not find it

/** The headers that a 200 would have, in whose place a 304 or a 206 is sent. */
interface Selected {
  headers?: HeaderList;
}

/** The headers that `conditional` and `files` leave for `compress`, which finds neither type nor length in a 304. */
function selectedOf(environ: Environ & { [SELECTED]?: Selected }): Selected {
  return environ[SELECTED] ??= {};
}

/** The headers of a 304: those of the 200, except those that describe the body. */
function notModifiedHeaders(headers: HeaderList): HeaderList {
  return headers.filter(([name]) => !/^content-(?:type|length|encoding|language|range|md5|digest)$/i.test(name));
}

// #endregion

// #region Pages

/** The Content-Security-Policy of our own pages, which load nothing and run nothing. */
const PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'";

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** Makes an HTML page, light or dark as the reader has it. The title is text, the style and the content are as they are. */
function renderPage(title: string, { style, content }: { style: string; content: string }): string {
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title>
<style>
:root {
  color-scheme: light dark;
  font: 1rem/1.5 system-ui, sans-serif;
  --accent: light-dark(#0b57d0, #8ab4f8);
  --dim: light-dark(#5f6368, #9aa0a6);
  --line: light-dark(#e3e5e8, #3c4043);
}
body { margin: 2rem auto; max-width: 72rem; overflow-wrap: anywhere; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th { font-weight: 500; }
th, td { padding: 0.25rem 0; text-align: left; vertical-align: top; }
${style}
</style>
${content}
`;
}

// #endregion

// #region Refusals

/** The response of a middleware that refuses a request. It may be an error. */
interface Refusal {
  status: number;
  /** Says why, in the site's own page; to the client only if it is exposed. */
  message: string;
  headers?: HeaderList;
  expose?: boolean;
}

/** Responds to an error with its page, in place of an application. A failure is logged, and a refusal is not. */
type RespondToError = (
  environ: Environ,
  startResponse: StartResponse,
  error: unknown,
  isFailure?: boolean,
) => ResponseBody | Promise<ResponseBody>;

const ERROR_PAGE = Symbol("error page"); // a symbol, so that the application does not find it

/** The environ in which `errorPage` leaves its function that responds to an error, for the middleware inside. */
type WithErrorPage = Environ & { [ERROR_PAGE]?: RespondToError | undefined };

/** Refuses a request: with the page of the `errorPage` outside, if there is one, else with the status as plain text. */
function refuse(
  environ: WithErrorPage,
  startResponse: StartResponse,
  refusal: Refusal,
): ResponseBody | Promise<ResponseBody> {
  const { status, message, headers } = refusal;
  const page = environ[ERROR_PAGE];
  const error = refusal instanceof Error ? refusal : undefined;
  if (page) return page(environ, startResponse, error ?? Object.assign(new Error(message), refusal));
  return respondWith(startResponse, `${status} ${REASONS[status]}`, headers, error);
}

// #endregion

// #region mount

/**
 * Dispatches requests by path, and by host where a key names one.
 *
 * A key is a prefix of the path, such as `"/api"`, or a host and a prefix, such as `"example.com/api"`; a host without a
 * dot needs its port, unless it is localhost. A prefix matches whole segments: `"/app"` matches `/app` and `/app/page`, but
 * not `/application`. It is no pattern: `"/:id"` is refused, and `"/%3Aid"` is the segment itself. Keys with a host come
 * first, then the longest prefix. The prefix that matches moves from PATH_INFO to SCRIPT_NAME.
 *
 * @throws {TypeError} When a key is invalid, or a value is not an application.
 *
 * @param apps The applications, by key.
 * @param fallback The application for all other requests, which responds with 404 by default.
 * @returns The application that dispatches.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { type Application, mount, runApplication, testEnviron } from "./mod.ts";
 *
 * const where: Application = ({ SCRIPT_NAME, PATH_INFO }, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(`${SCRIPT_NAME} ${PATH_INFO}`)];
 * };
 * const app = mount({ "/api": where, "/api/v2": where });
 * const { body } = await runApplication(app, testEnviron({ PATH_INFO: "/api/v2/users" }));
 * assert.equal(new TextDecoder().decode(body), "/api/v2 /users");
 * ```
 */
export function mount(apps: Record<string, ApplicationLike>, fallback: ApplicationLike = notFound): Application {
  if (!isObject(apps)) throw new TypeError(`Cannot mount ${inspect(apps)}, expected applications`);
  const routes = Object.entries(apps).map(([key, app]) => ({ ...parseMountKey(key), app: application(app) }));
  routes.sort((one, other) =>
    Number(!one.host) - Number(!other.host) || other.prefix.length - one.prefix.length ||
    Number(!one.host?.port) - Number(!other.host?.port)
  );
  const fallbackApp = application(fallback);
  const hasHosts = routes.some(({ host }) => host);
  return (environ, startResponse) => {
    const { SCRIPT_NAME: script = "", PATH_INFO: path = "" } = environ;
    const asked = hasHosts ? requestedHost(environ) : undefined;
    for (const { host, prefix, app } of routes) {
      if (host && !(asked && meetsHost(asked, host))) continue;
      if (path !== prefix && !path.startsWith(`${prefix}/`)) continue;
      environ.SCRIPT_NAME = script + prefix;
      environ.PATH_INFO = path.slice(prefix.length);
      return app(environ, startResponse);
    }
    return fallbackApp(environ, startResponse);
  };
}

/** Splits a key into a host, if it has one, and a prefix, which may be empty. */
function parseMountKey(key: string): { host: Host | undefined; prefix: string } {
  const slash = key.includes("/") ? key.indexOf("/") : key.length;
  const authority = key.slice(0, slash);
  const path = key.slice(slash);
  const prefix = path.replace(/\/+(?:[:<{*].*)?$/s, ""); // without the parameters of a router's pattern
  const host = normalizeHost(authority);
  // "api/v1" is rather a path without its slash than a host.
  const isMount = authority === "" ? path !== "" : host && /[.:]|^localhost$/i.test(authority);
  if (!isMount || !/^(?:\/[^/?#*]+)*$/.test(prefix)) {
    throw new TypeError(`Cannot mount at ${inspect(key)}: expected a path such as "/api", or "example.com/api"`);
  }
  if (prefix !== path && path !== "/") {
    const expected = `a prefix, with no pattern and no slash at its end: ${inspect(authority + (prefix || "/"))}`;
    throw new TypeError(`Cannot mount at ${inspect(key)}: expected ${expected}`);
  }
  return { host, prefix: percentDecode(toNativeString(prefix)) };
}

function notFound(environ: Environ, startResponse: StartResponse): ResponseBody | Promise<ResponseBody> {
  return refuse(environ, startResponse, { status: 404, message: `Cannot find ${inspect(environ.PATH_INFO)}` });
}

// #endregion

// #region files

/**
 * Options for {@linkcode files}.
 *
 * @example
 * ```ts
 * import type { FilesOptions } from "./mod.ts";
 *
 * const options: FilesOptions = { cacheControl: "public, max-age=3600", types: { gpx: "application/gpx+xml" } };
 * ```
 */
export interface FilesOptions {
  /**
   * The file to serve for a folder.
   *
   * @default {"index.html"}
   */
  index?: string | undefined;
  /**
   * The value of Cache-Control.
   *
   * @default {"no-cache"}
   */
  cacheControl?: string | undefined;
  /**
   * Whether to serve files and folders whose names begin with a dot. `/.well-known` is served in any case.
   *
   * @default {false}
   */
  dotFiles?: boolean | undefined;
  /**
   * Whether to serve `name.br` or `name.gz` in place of `name` to clients that accept them.
   *
   * @default {true}
   */
  precompressed?: boolean | undefined;
  /** More media types, by file extension. */
  types?: Record<string, string> | undefined;
  /**
   * Whether to list a folder that has no index file: its files and folders, their sizes and dates. Dot files are listed
   * with `dotFiles`.
   *
   * @default {false}
   */
  listing?: boolean | undefined;
}

const FILES_OPTIONS: OptionChecks<FilesOptions> = {
  index: [isString, 'the name of a file such as "index.html"'],
  cacheControl: [matching(HEADER_VALUE), 'a header value such as "no-cache"'],
  dotFiles: [isBoolean, "true or false"],
  precompressed: [isBoolean, "true or false"],
  types: [recordOf(isString), 'media types by extension, such as { gpx: "application/gpx+xml" }'],
  listing: [isBoolean, "true or false"],
};

// The types that browsers, downloads and Deno's imports need. Every other file is application/octet-stream.
// deno-fmt-ignore
const TYPES: Record<string, string> = {
  html: "text/html", htm: "text/html", css: "text/css", js: "text/javascript", mjs: "text/javascript",
  ts: "text/typescript", mts: "text/typescript", tsx: "text/typescript",
  txt: "text/plain", md: "text/markdown", csv: "text/csv", ics: "text/calendar", vtt: "text/vtt",
  json: "application/json", map: "application/json", webmanifest: "application/manifest+json",
  xml: "application/xml", pdf: "application/pdf", wasm: "application/wasm", zip: "application/zip",
  gz: "application/gzip", png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif",
  webp: "image/webp", avif: "image/avif", svg: "image/svg+xml", ico: "image/x-icon", bmp: "image/bmp",
  woff: "font/woff", woff2: "font/woff2", ttf: "font/ttf", otf: "font/otf", mp3: "audio/mpeg",
  m4a: "audio/mp4", ogg: "audio/ogg", wav: "audio/wav", mp4: "video/mp4", webm: "video/webm",
};

// The compressed variants of a file, by content coding.
const VARIANTS: readonly [coding: string, suffix: string][] = [["br", ".br"], ["gzip", ".gz"]];

/**
 * Serves the files of a folder, for GET and HEAD.
 *
 * Responses have a media type, Last-Modified and ETag. Conditional requests, one or several ranges and precompressed
 * variants are supported. A file that does not exist gets 404, and so does every path that leads out of the folder: dot
 * segments, backslashes, NUL, symbolic links. A folder is served by its index file, or with `listing` by a page that lists
 * it. The ETag of a file is weak for a second after the file was changed. RFC 9110, sections 8, 13 and 14.
 *
 * A root that is a symbolic link is followed at each request, so that a release can be switched. A compressed variant
 * that is put beside a file while it is asked for may be found a second later.
 *
 * Deno needs `--allow-read`.
 *
 * @throws {Error} When `root` is not a readable folder, or the runtime has no `node:fs`.
 * @throws {TypeError} When an option is unknown or invalid.
 *
 * @param root The folder, as a path or a `file:` URL.
 * @param options The options.
 * @returns The application.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { files, runApplication, testEnviron } from "./mod.ts";
 *
 * const app = files(new URL(".", import.meta.url));
 * const { status } = await runApplication(app, testEnviron({ PATH_INFO: "/../etc/passwd" }));
 * assert.equal(status, "404 Not Found");
 * ```
 */
export function files(root: string | URL, options: FilesOptions = {}): Application {
  checkOptions(options, FILES_OPTIONS);
  requireNodeModule("node:fs", "serve files");
  const { index = "index.html", cacheControl = "no-cache", dotFiles = false, precompressed = true } = options;
  const { listing = false } = options;
  const types = new Map(Object.entries({ ...TYPES, ...options.types }));
  const folder = new Folder(root, dotFiles);
  const found = new Map<string, FoundFile & { until: number }>();

  /** Finds the file of a path, and its compressed variants. */
  const find = (pathInfo: string): FoundFile | "folder" | undefined => {
    const now = performance.now();
    const root = folder.root(now);
    if (root === undefined) return undefined;
    const known = found.get(pathInfo);
    if (known && known.file.folders[0] === root && now < known.until) return known;
    const path = safePath(pathInfo, dotFiles);
    if (path === undefined) return undefined;
    let name = path;
    let file = folder.resolve(root, name);
    if (file?.isFolder) {
      if (!path.endsWith("/")) return "folder";
      name += index;
      file = folder.resolve(root, name);
    }
    if (!file?.isFile) return undefined;
    const variants = new Map<string, ResolvedPath>();
    for (const [coding, suffix] of precompressed ? VARIANTS : []) {
      const variant = folder.resolve(root, name + suffix);
      if (variant?.isFile) variants.set(coding, variant);
    }
    if (found.size === 256) found.clear();
    // A link may be switched to another release, which holds at once.
    if (file.real === root + name) found.set(pathInfo, { name, file, variants, until: now + 1000 });
    return { name, file, variants };
  };

  /**
   * Opens the file for a request. A file that is replaced meanwhile is looked up again, ten times at most. What is missing
   * is looked up twice, since its release may have been replaced.
   */
  const open = (environ: Environ): Selection | "folder" | undefined => {
    const { PATH_INFO: pathInfo = "" } = environ;
    let misses = 0;
    for (let attempt = 0; attempt < 10 && misses < 2; attempt++) {
      const file = find(pathInfo);
      if (file === "folder") return file;
      const [coding = ""] = file ? acceptedEncodings(environ, [...file.variants.keys()]) : [];
      const opened = file && folder.open(file.variants.get(coding) ?? file.file);
      if (opened) return { ...opened, name: file.name, coding, hasVariants: file.variants.size > 0 };
      found.delete(pathInfo);
      if (!file) misses++;
    }
    return undefined;
  };

  /** Lists a folder that has no index file. A folder that is replaced meanwhile is listed again, ten times at most. */
  const list = ({ PATH_INFO: pathInfo = "" }: Environ): Map<string, PathState> | undefined => {
    const path = safePath(pathInfo, dotFiles);
    for (let attempt = 0; attempt < 10 && path?.endsWith("/"); attempt++) {
      const root = folder.root(performance.now());
      const entries = root === undefined ? undefined : folder.list(root, path);
      if (entries) return entries;
    }
    return undefined;
  };

  const headersOf = ({ name, coding, hasVariants, size, modified }: Selection): HeaderList => {
    const now = Date.now();
    const tag = `${modified.toString(16)}-${size.toString(16)}${coding && `-${coding}`}`;
    // A file that was changed within the last second may change again and keep its time (RFC 9110, section 8.8.1). Its tag
    // is not that of later, with which it would match in If-None-Match.
    const isYoung = now - modified < 1000;
    const type = types.get(/\.([^./]+)$/.exec(name)?.[1]?.toLowerCase() ?? "") ?? "application/octet-stream";
    const headers: [name: string, value: string][] = [
      ["Content-Type", type.startsWith("text/") && !type.includes(";") ? `${type}; charset=utf-8` : type],
      ["Cache-Control", cacheControl],
      ["Accept-Ranges", "bytes"],
      ["Last-Modified", new Date(Math.min(modified, now)).toUTCString()],
      ["ETag", isYoung ? `W/"young-${tag}"` : `"${tag}"`],
    ];
    if (coding) headers.push(["Content-Encoding", coding]);
    if (hasVariants) headers.push(["Vary", "Accept-Encoding"]);
    return headers;
  };

  return (environ, startResponse) => {
    const { REQUEST_METHOD: method } = environ;
    if (method !== "GET" && method !== "HEAD") {
      const message = `Cannot ${method} a file, expected GET or HEAD`;
      const headers: HeaderList = [["Allow", "GET, HEAD"]];
      return refuse(environ, startResponse, { status: 405, message, headers, expose: true });
    }
    const opened = open(environ);
    if (!opened) {
      const entries = listing ? list(environ) : undefined;
      return entries ? respondWithListing(environ, startResponse, entries) : notFound(environ, startResponse);
    }
    if (opened === "folder") {
      return respondWith(startResponse, "301 Moved Permanently", [["Location", withTrailingSlash(environ)]]);
    }
    const { fd, size } = opened;
    let isWrapped = false;
    try {
      const parts = startFileResponse(environ, startResponse, headersOf(opened), size);
      const body = method === "GET" ? parts : [];
      if (lengthOf(body) <= MAX_WHOLE_SIZE) return body.map((part) => folder.read(fd, part));
      const wrapped = (environ["wsgi.file_wrapper"] ?? wrapFile)(folder.reader(fd, body));
      isWrapped = true;
      return wrapped;
    } finally {
      if (!isWrapped) folder.close(fd);
    }
  };
}

// A body of at most so many bytes is read at once, and the runtime has it before anything else happens.
const MAX_WHOLE_SIZE = 65_536;

/** A file and its compressed variants, as they were found. */
interface FoundFile {
  /** The requested path; for a folder, that of its index file. */
  name: string;
  file: ResolvedPath;
  /** By content coding. */
  variants: Map<string, ResolvedPath>;
}

/** The file for a request, or a compressed variant of it, open. */
interface Selection extends OpenFile {
  name: string;
  /** The content coding of the variant, or empty. */
  coding: string;
  hasVariants: boolean;
}

/** A path below the root, resolved. */
interface ResolvedPath {
  /** The path in the file system, without links. */
  real: string;
  /** The folders on the way to it, from the root on. */
  folders: string[];
  isFolder: boolean;
  isFile: boolean;
  /** The trail with which it was opened last. */
  trail?: string;
}

/** The state of a file or a folder at a path. */
interface PathState {
  /** Device and inode. */
  identity: string;
  isFile: boolean;
  isFolder: boolean;
  size: number;
  /** When its content was changed, in milliseconds. */
  modified: number;
  /** When anything of it was changed, in milliseconds. */
  changed: number;
  /** Both times, as exact as the system has them. */
  marks: string;
}

interface OpenFile extends PathState {
  fd: number;
}

/** The state of a path, and of the folders on the way to it. */
interface Trace {
  /** The identity of the file, and then the folders, each with its identity and the times of its last change. */
  trail: string;
  /** Whether one of the folders was changed in the last second. */
  isFresh: boolean;
  state: PathState;
}

/**
 * How many looks have to agree with a trace. Two changes at the same time leave one mark, and times are coarse: a second on
 * Deno 2.9.6, up to 10 ms on Linux before 6.13. An attacker cannot hit the right moment for 16 looks in a row.
 */
function looksFor({ isFresh }: Trace): number {
  return isFresh ? 16 : 1;
}

/**
 * A folder to serve: resolves paths inside it, and opens only files that are still where they were resolved.
 *
 * Somebody who may write inside the folder can replace a file or a folder by a link at any moment, and take the link away
 * again. So a look at a path does not tell where it led when the file was opened. The file is opened first. Then its path
 * is traced: the file is sent if it is at that path, and no folder on the way is a link. The path may change during a
 * trace, but every change marks the folder in which it was made. So two traces with the same marks have seen one state,
 * also where the first of them was that of an earlier request.
 */
class Folder {
  readonly #fs = process.getBuiltinModule("node:fs");
  readonly #path = process.getBuiltinModule("node:path");
  readonly #root: string;
  #rootUntil = 0;
  readonly #dotFiles: boolean;

  constructor(root: string | URL, dotFiles: boolean) {
    try {
      if (root === "") throw new TypeError("The path is empty"); // Bun takes it for the working folder
      const path = root instanceof URL ? process.getBuiltinModule("node:url").fileURLToPath(root.href) : root;
      const absolute = this.#path.isAbsolute(path) ? path : `${process.cwd()}/${path}`;
      this.#root = absolute.replace(/(?<=[^/\\:])[/\\]+$/, "");
      this.#fs.readdirSync(this.#root);
    } catch (cause) {
      const message = `Cannot serve files from ${inspect(String(root))}: expected a folder that can be read`;
      throw new Error(message, { cause });
    }
    this.#dotFiles = dotFiles;
  }

  /**
   * Finds out where the root is now. It may be a link, which is switched from one release to the next. Where no link leads
   * to it, that is true for a second.
   */
  root(now: number): string | undefined {
    if (now < this.#rootUntil) return this.#root;
    const real = orUndefined(() => this.#fs.realpathSync(this.#root));
    if (real === this.#root) this.#rootUntil = now + 1000;
    return real;
  }

  /** Finds out what a path stands for, if that is inside the root. */
  resolve(root: string, path: string): ResolvedPath | undefined {
    if (!this.#fs.existsSync(root + path)) return undefined; // cheaper than an error of realpath
    return orUndefined(() => {
      const { isAbsolute, join, relative, sep } = this.#path;
      const real = this.#fs.realpathSync(root + path);
      const inside = relative(root, real);
      const segments = inside.split(sep);
      if (isAbsolute(inside) || segments[0] === "..") return undefined;
      if (!this.#dotFiles && HIDDEN.test(segments.join("/"))) return undefined;
      const { isFile, isFolder } = this.#look(real);
      const folders = [root];
      for (const segment of segments.slice(0, -1)) folders.push(join(folders.at(-1)!, segment));
      return { real, folders, isFolder, isFile: isFile && !path.endsWith("/") };
    });
  }

  /** Opens a file; undefined if that fails, or if its path no longer leads to the file that was opened. */
  open(file: ResolvedPath): OpenFile | undefined {
    const { constants, openSync } = this.#fs;
    // Windows has only the first of these flags. Without the last one, Deno and Bun serve nothing any more while they
    // wait for somebody to write into a FIFO.
    const { O_RDONLY = 0, O_NOFOLLOW = 0, O_NONBLOCK = 0 }: Partial<typeof constants> = constants;
    const fd = orUndefined(() => openSync(file.real, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
    if (fd === undefined) return undefined;
    const state = safely(() => this.#stateOf(file, fd), undefined);
    if (state?.isFile) return { ...state, fd };
    this.close(fd);
    return undefined;
  }

  /**
   * Lists a folder: the files that `open` would open, and the folders, by name. Undefined if it is no folder, or if its
   * path led elsewhere meanwhile.
   */
  list(root: string, path: string): Map<string, PathState> | undefined {
    return orUndefined(() => {
      const found = this.resolve(root, path);
      if (!found?.isFolder) return undefined;
      // A change inside the folder does not change where its path leads.
      const folder = { ...found, folders: found.folders.filter((above) => above !== found.real) };
      const first = this.#trace(folder);
      if (!first?.state.isFolder) return undefined;
      let entries: Map<string, PathState> | undefined;
      for (let look = 0; look < looksFor(first); look++) {
        const seen = this.#entries(root, path, found.real);
        for (const [name, { identity }] of seen) {
          if (entries && entries.get(name)?.identity !== identity) seen.delete(name);
        }
        if (this.#trace(folder)?.trail !== first.trail) return undefined;
        entries = seen;
      }
      return entries;
    });
  }

  #entries(root: string, path: string, real: string): Map<string, PathState> {
    const entries = new Map<string, PathState>();
    for (const name of this.#fs.readdirSync(real)) {
      if (!this.#dotFiles && name.startsWith(".") || name.includes("\\")) continue;
      // An entry that cannot be looked at, because Deno was denied it, cannot be served either.
      const state = safely(() => this.#entry(root, path + name, this.#path.join(real, name)), undefined);
      if (state) entries.set(name, state);
    }
    return entries;
  }

  /** The state of an entry; for a link, that of its target. Undefined for what is neither a file nor a folder to serve. */
  #entry(root: string, path: string, real: string): PathState | undefined {
    const state = this.#look(real);
    if (state.isFile || state.isFolder) return state;
    const target = this.resolve(root, path);
    if (!target?.isFile && !target?.isFolder) return undefined;
    const first = this.#trace(target);
    return first && this.#isSteady(target, first) ? first.state : undefined;
  }

  close(fd: number): void {
    this.#fs.closeSync(fd);
  }

  /** Reads a part of a body at once. */
  read(fd: number, part: BodyPart): Uint8Array {
    if (part instanceof Uint8Array) return part;
    const bytes = new Uint8Array(part.end - part.start);
    return bytes.subarray(0, this.#fs.readSync(fd, bytes, 0, bytes.length, part.start));
  }

  /** A file for `wsgi.file_wrapper`, which gives the parts of a body. */
  reader(fd: number, parts: BodyPart[]) {
    let reading = Promise.resolve(0);
    let closing: Promise<void> | undefined;
    const read = async (size: number): Promise<Uint8Array> => {
      const [part] = parts;
      if (!part || closing) return EMPTY;
      if (part instanceof Uint8Array) {
        parts.splice(0, 1, ...part.length > size ? [part.subarray(size)] : []);
        return part.subarray(0, size);
      }
      const block = new Uint8Array(Math.min(size, part.end - part.start));
      reading = new Promise((resolve, reject) => {
        const onRead = (error: Error | null, bytesRead: number) => error ? reject(error) : resolve(bytesRead);
        this.#fs.read(fd, block, 0, block.length, part.start, onRead);
      });
      const bytesRead = await reading;
      part.start += bytesRead;
      if (part.start === part.end) parts.shift();
      return block.subarray(0, bytesRead);
    };
    // The number of a file that is closed is soon that of another, which must be neither read nor closed.
    return { read, close: () => closing ??= reading.catch(() => {}).then(() => this.close(fd)) };
  }

  /** The state of an open file; undefined if its path does not lead there without links. Throws if it leads nowhere. */
  #stateOf(file: ResolvedPath, fd: number): PathState | undefined {
    const first = this.#trace(file);
    if (!first || first.trail === file.trail) return first?.state;
    const { dev, ino } = this.#fs.fstatSync(fd, { bigint: true });
    if (first.state.identity !== `${dev}:${ino}` || !this.#isSteady(file, first)) return undefined;
    if (!first.isFresh) file.trail = first.trail;
    return first.state;
  }

  /** Traces a path again; false if it was changed since the first trace. */
  #isSteady(path: ResolvedPath, first: Trace): boolean {
    for (let look = 0; look < looksFor(first); look++) {
      if (this.#trace(path)?.trail !== first.trail) return false;
    }
    return true;
  }

  /** Follows a path without links; undefined if one of its folders is a link by now. */
  #trace({ real, folders }: ResolvedPath): Trace | undefined {
    const now = Date.now();
    const state = this.#look(real);
    let trail = state.identity;
    let isFresh = false;
    for (const path of folders) {
      const { identity, isFolder, changed, marks } = this.#look(path);
      if (!isFolder) return undefined;
      trail += ` ${identity}:${marks}`;
      isFresh ||= Math.abs(now - changed) < 1100;
    }
    return { trail, isFresh, state };
  }

  #look(path: string): PathState {
    if (DENO) { // node:fs takes five times as long on Deno 2.9.6
      const { dev, ino, isFile, isDirectory: isFolder, size, mtime, ctime } = DENO.lstatSync(path);
      const [modified, changed] = [mtime.getTime(), ctime.getTime()];
      return { identity: `${dev}:${ino}`, isFile, isFolder, size, modified, changed, marks: `${modified}:${changed}` };
    }
    const stats = this.#fs.lstatSync(path, { bigint: true });
    return {
      identity: `${stats.dev}:${stats.ino}`,
      isFile: stats.isFile(),
      isFolder: stats.isDirectory(),
      size: Number(stats.size),
      modified: Number(stats.mtimeMs),
      changed: Number(stats.ctimeMs),
      marks: `${stats.mtimeNs}:${stats.ctimeNs}`,
    };
  }
}

/** Does some work with files; undefined where there is no file that can be read. */
function orUndefined<Value>(work: () => Value): Value | undefined {
  try {
    return work();
  } catch (error) {
    const { code = "" } = error as { code?: string };
    if (/^(?:ENOENT|ENOTDIR|ENAMETOOLONG|ELOOP|EACCES|ENXIO)$/.test(code)) return undefined;
    throw error;
  }
}

/**
 * A path without links that has a dot file. A folder such as `..data` is none on the way: where Kubernetes mounts a
 * volume, each name in it is a link to `..data/name`, and `..data` one to the folder of the version that holds.
 */
const HIDDEN = /(?:^|\/)\.(?!well-known(?:\/|$)|\.[^/]*\/)/;

/** The path below the root, decoded; undefined if it could lead elsewhere. `/.well-known` is no dot file: RFC 8615. */
function safePath(pathInfo: string, dotFiles: boolean): string | undefined {
  const path = safely(() => fromNativeString(pathInfo), undefined);
  const hidden = dotFiles ? /\/\.\.?(?:\/|$)/ : /(?!^\/\.well-known(?:\/|$))\/\./;
  if (path === undefined || /^[^/]|[\0\\]|\/\//.test(path) || hidden.test(path)) return undefined;
  return path;
}

/** The address of the request with a slash at its end, which is that of a folder. */
function withTrailingSlash({ SCRIPT_NAME = "", PATH_INFO = "", QUERY_STRING = "" }: Environ): string {
  const path = quote(`${SCRIPT_NAME}${PATH_INFO}/`).replace(/^\/+/, "/"); // "//host" would be another host
  return QUERY_STRING === "" ? path : `${path}?${QUERY_STRING}`;
}

const LISTING_STYLE = `
body { max-width: 56rem; }
a { color: var(--accent); text-decoration: none; unicode-bidi: isolate; white-space: pre-wrap; }
a:hover { text-decoration: underline; }
th, td { border-bottom: 1px solid var(--line); padding: 0.375rem 0; vertical-align: baseline; }
th ~ th, td ~ td { font-variant-numeric: tabular-nums; padding-left: 2rem; text-align: right; white-space: nowrap; }
th, td ~ td { color: var(--dim); font-size: 0.875rem; }
td:first-child { width: 100%; }
@media (max-width: 40rem) {
  thead { display: none; }
  tr { border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; padding: 0.5rem 0; }
  td { border: 0; padding: 0; }
  td ~ td { padding: 0 1rem 0 0; }
  td:empty { display: none; }
}`.trim();

/** Responds with a page that lists a folder. Its links are relative, so that it can be mounted anywhere. */
function respondWithListing(
  { SCRIPT_NAME = "", PATH_INFO = "" }: Environ,
  startResponse: StartResponse,
  entries: Map<string, PathState>,
): Uint8Array[] {
  const byName = new Intl.Collator("en", { numeric: true }).compare; // file 2 before file 10, whatever the locale
  const title = safely(() => fromNativeString(SCRIPT_NAME + PATH_INFO), PATH_INFO);
  const row = (name: string, size: string, date: string) =>
    `<tr><td><a href="./${quote(toNativeString(name))}">${escapeHtml(name)}</a><td>${size}<td>${date}\n`;
  const rows = [...entries]
    .sort(([one, a], [other, b]) => Number(b.isFolder) - Number(a.isFolder) || byName(one, other))
    .map(([name, { isFolder, size, modified }]) =>
      row(isFolder ? `${name}/` : name, isFolder ? "" : formatSize(size), formatDate(modified))
    );
  if (PATH_INFO !== "/") rows.unshift(row("../", "", ""));
  const table = `<table>\n<thead><tr><th>Name<th>Size<th>Modified (UTC)\n<tbody>\n${rows.join("")}</table>`;
  const content = `<h1>Index of ${escapeHtml(title)}</h1>\n${rows.length > 0 ? table : "<p>This folder is empty."}`;
  startResponse("200 OK", [
    ["Content-Type", "text/html; charset=utf-8"],
    ["Content-Security-Policy", PAGE_POLICY],
    ["Cache-Control", "no-cache"],
  ]);
  return [ENCODER.encode(renderPage(`Index of ${title}`, { style: LISTING_STYLE, content }))];
}

/** A number of bytes as people read it: 1.2 kB. */
function formatSize(size: number): string {
  let value = size;
  let power = 0;
  for (; value >= 999.5 && power < 4; power++) value /= 1000;
  return `${power > 0 && value < 99.95 ? value.toFixed(1) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** A time of the file system in UTC, to the minute; empty if it is out of the range of dates. */
function formatDate(time: number): string {
  return safely(() => new Date(time).toISOString().slice(0, -8).replace("T", " "), "");
}

/** Bytes of a file, from `start` on up to, but without, `end`. */
interface ByteRange {
  start: number;
  end: number;
}

/** A part of a body: bytes as they are, or a range of the file. */
type BodyPart = Uint8Array | ByteRange;

function lengthOf(parts: BodyPart[]): number {
  return parts.reduce((sum, part) => sum + (part instanceof Uint8Array ? part.length : part.end - part.start), 0);
}

/** Starts the response for a file: all of it, some ranges, or none of it. */
function startFileResponse(
  environ: Environ,
  startResponse: StartResponse,
  headers: HeaderList,
  size: number,
): BodyPart[] {
  const send = (status: string, headers: HeaderList, parts: BodyPart[]) => {
    startResponse(status, [...headers, ["Content-Length", String(lengthOf(parts))]]);
    return parts;
  };
  selectedOf(environ).headers = [...headers, ["Content-Length", String(size)]];
  if (failsPrecondition(environ, headers)) return respondWith(startResponse, "412 Precondition Failed");
  if (isFresh(environ, headers)) {
    startResponse("304 Not Modified", notModifiedHeaders(headers));
    return [];
  }
  const ranges = parseRange(environ, headers, size);
  if (!ranges) return send("200 OK", headers, [{ start: 0, end: size }]);
  const contentRange = ({ start, end }: ByteRange) => `bytes ${start}-${end - 1}/${size}`;
  const [first, second] = ranges;
  if (!first) return respondWith(startResponse, "416 Range Not Satisfiable", [["Content-Range", `bytes */${size}`]]);
  if (!second) return send("206 Partial Content", [...headers, ["Content-Range", contentRange(first)]], [first]);
  const boundary = crypto.randomUUID();
  const type = getHeader(headers, "content-type");
  const parts = ranges.flatMap((range) => {
    const head = `\r\n--${boundary}\r\nContent-Type: ${type}\r\nContent-Range: ${contentRange(range)}\r\n\r\n`;
    return [ENCODER.encode(head), range];
  });
  const multipart = setHeader(headers, "Content-Type", `multipart/byteranges; boundary=${boundary}`);
  return send("206 Partial Content", multipart, [...parts, ENCODER.encode(`\r\n--${boundary}--\r\n`)]);
}

/**
 * Reads a Range: an empty array if no range can be satisfied, undefined if the header is to be ignored.
 *
 * RFC 9110, sections 13.1.5 and 14.2. Many or overlapping ranges would let a client ask for more than the file has: more
 * than 16 of them, or more bytes than those of the file, are ignored.
 */
function parseRange(environ: Environ, headers: HeaderList, size: number): ByteRange[] | undefined {
  const { REQUEST_METHOD, HTTP_RANGE = "", HTTP_IF_RANGE: validator } = environ;
  const tag = getHeader(headers, "etag");
  // A file whose tag is weak is too young for its date to be a strong validator: RFC 9110, section 8.8.2.2.
  const isCurrent = validator === undefined ||
    !tag?.startsWith("W/") && (validator === tag || validator === getHeader(headers, "last-modified"));
  const specs = parseList(/^bytes=(.*)$/i.exec(HTTP_RANGE)?.[1] ?? "");
  if (REQUEST_METHOD !== "GET" || !isCurrent || specs.length === 0 || specs.length > 16) return undefined;
  const ranges: ByteRange[] = [];
  let sum = 0;
  for (const spec of specs) {
    const [, first = "", last = ""] = /^(\d*)-(\d*)$/.exec(spec) ?? [];
    if (first + last === "" || first !== "" && last !== "" && Number(last) < Number(first)) return undefined;
    // The last bytes of an empty file can be had (RFC 9110, section 14.1.2), but no Content-Range can say so.
    if (size === 0 && first === "" && Number(last) > 0) return undefined;
    const start = first === "" ? Math.max(size - Number(last), 0) : Number(first);
    const end = first === "" || last === "" ? size : Math.min(Number(last) + 1, size);
    if (start < end) ranges.push({ start, end });
    sum += Math.max(end - start, 0);
  }
  return sum > size ? undefined : ranges;
}

// #endregion

// #region accessLog

/**
 * Options for {@linkcode accessLog}.
 *
 * @example
 * ```ts
 * import type { AccessLogOptions } from "./mod.ts";
 *
 * const options: AccessLogOptions = { format: "json", skip: ["/livez", "/readyz"] };
 * ```
 */
export interface AccessLogOptions {
  /**
   * Apache's combined format, followed by the duration, the request id and `aborted` where they apply, or one JSON object
   * for each request, with these fields:
   *
   * - `time`: when the request began, in UTC, such as `"2026-01-31T23:59:59.999Z"`
   * - `method`, `target`, `protocol`: the request line, as REQUEST_METHOD, REQUEST_URI and SERVER_PROTOCOL have it
   * - `status`: a number; 499 for a client that left before the first byte
   * - `bytes`: the size of the body that was sent, in bytes
   * - `duration`: how long it took, in milliseconds, with fractions
   * - `aborted`: true if the response was not complete when the client left
   * - `remoteAddr`, `remoteUser`, `referer`, `userAgent`, `requestId`: REMOTE_ADDR, REMOTE_USER, HTTP_REFERER,
   *   HTTP_USER_AGENT and `request.id`, as native strings; a field is missing where its variable is
   *
   * @default {"combined"}
   */
  format?: "combined" | "json" | undefined;
  /**
   * Writes a line. The default is standard output.
   *
   * @param line The line, without an end of line.
   */
  write?: ((line: string) => void) | undefined;
  /**
   * The paths that are not logged: SCRIPT_NAME and PATH_INFO together, percent-decoded, as native strings.
   *
   * @default {[]}
   */
  skip?: string[] | undefined;
}

const ACCESS_LOG_OPTIONS: OptionChecks<AccessLogOptions> = {
  format: [matching(/^(?:combined|json)$/), '"combined" or "json"'],
  write: [isFunction, "a function"],
  skip: [arrayOf(isString), 'an array of paths such as "/livez"'],
};

/**
 * Writes one line for each request, when its response has ended or the client has left.
 *
 * The line has the number of bytes that the server was given to send, and the time from the call of the application to
 * that of `close`. Its status is the one that was started, or that of the error: what the server refuses afterwards is
 * sent as 500. A client that left before the first byte has 499. Characters that could forge a line are escaped, as
 * Apache or JSON does.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, whose requests are logged.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { accessLog, runApplication, type StartResponse, testEnviron } from "./mod.ts";
 *
 * let line = "";
 * const hello = (_environ: unknown, startResponse: StartResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode("Hello")];
 * };
 * await runApplication(accessLog(hello, { write: (text) => line = text }), testEnviron({ REMOTE_ADDR: "10.0.0.1" }));
 * assert.match(line, /^10\.0\.0\.1 - - \[.+\] "GET \/ HTTP\/1\.0" 200 5 "-" "-" \d+\.\d{3}ms$/);
 * ```
 */
export function accessLog(app: ApplicationLike, options: AccessLogOptions = {}): Application {
  checkOptions(options, ACCESS_LOG_OPTIONS);
  const { format = "combined", write = (line) => console.log(line), skip = [] } = options;
  const formatEntry = format === "json" ? formatJson : formatCombined;
  const inner = application(app);
  return (environ, startResponse) => {
    const { SCRIPT_NAME = "", PATH_INFO = "" } = environ;
    if (skip.includes(SCRIPT_NAME + PATH_INFO)) return inner(environ, startResponse);
    return new LoggedRequest(environ, (entry) => write(formatEntry(environ, entry))).run(inner, startResponse);
  };
}

/** One request, as the access log sees it. */
class LoggedRequest implements BodyHooks {
  readonly #environ: Environ;
  readonly #onEnd: (entry: LogEntry) => void;
  readonly #context: FetchContext | undefined;
  readonly #startedAt = performance.now();
  readonly #entry: LogEntry;
  #maxBytes = Infinity;
  #isDisconnected = false;
  /** The chunks of a body that is an array. They are counted when it is closed, unless the client has left. */
  #chunks: Uint8Array[] | undefined;
  /** Whether the response was complete at once. Its signal cannot abort, and reading it would cost a controller. */
  #isComplete = false;

  constructor(environ: Environ, onEnd: (entry: LogEntry) => void) {
    const { REQUEST_METHOD: method, "fetch.context": context } = environ;
    const target = requestTarget(environ);
    this.#environ = environ;
    this.#onEnd = onEnd;
    this.#context = context;
    this.#entry = { time: new Date(), method, target, status: 500, bytes: 0, duration: 0, aborted: false };
  }

  run(app: Application, startResponse: StartResponse): ResponseBody | Promise<ResponseBody> {
    return catching(
      () => {
        const result = app(this.#environ, this.#wrapStart(startResponse));
        return mapMaybe(result, (body) => this.#onReturn(body, !isPromise(result)));
      },
      (error) => this.#fail(error),
    );
  }

  #wrapStart(startResponse: StartResponse): StartResponse {
    return (status, headers, error) => {
      const write = startResponse(status, headers, error);
      this.#isDisconnected ||= isDisconnect(error, this.#context);
      this.#entry.status = Number(status.slice(0, 3));
      const hasBody = this.#entry.method !== "HEAD" && !hasNullBody(status);
      this.#maxBytes = hasBody ? Number(getHeader(headers, "content-length") ?? Infinity) : 0;
      return (chunk) => {
        const sending = write(chunk);
        this.#count(chunk);
        return sending;
      };
    };
  }

  #onReturn(body: ResponseBody, isSync: boolean): ResponseBody {
    if (!isIterableBody(body)) {
      this.#log(this.#isDisconnected); // the server refuses the body, and calls no close
    } else if (Array.isArray(body)) {
      const hasWritten = this.#entry.bytes > 0;
      if (hasWritten) body.forEach((chunk) => this.#count(chunk));
      else this.#chunks = body;
      this.#isComplete = isSync && !hasWritten;
    }
    return withHooks(body, this);
  }

  /** Logs a request whose application has failed before it returned a body. */
  #fail(error: unknown): never {
    this.#noteFailure(error);
    // Before there is a response, reading the signal costs time on Deno, which prints a warning.
    this.#log(this.#entry.bytes > 0 ? this.#isAborted() : this.#isDisconnected);
    throw error;
  }

  transform(chunk: Uint8Array): Uint8Array {
    this.#count(chunk);
    return chunk;
  }

  recover(error: unknown): never {
    this.#noteFailure(error);
    throw error;
  }

  close(inner: () => void | Promise<void>): void | Promise<void> {
    try {
      return inner();
    } finally {
      const aborted = this.#isComplete ? this.#isDisconnected : this.#isAborted();
      if (!aborted) this.#chunks?.forEach((chunk) => this.#count(chunk));
      this.#log(aborted);
    }
  }

  #count(chunk: Uint8Array): void {
    this.#entry.bytes = Math.min(this.#entry.bytes + (chunk?.length ?? 0), this.#maxBytes);
  }

  #noteFailure(error: unknown): void {
    this.#isDisconnected ||= isDisconnect(error, this.#context);
    if (this.#entry.bytes === 0) this.#entry.status = errorStatus(error);
  }

  #isAborted(): boolean {
    return this.#isDisconnected || (this.#context?.signal.aborted ?? false);
  }

  #log(aborted: boolean): void {
    const entry = this.#entry;
    entry.aborted = aborted;
    entry.duration = performance.now() - this.#startedAt;
    if (aborted && entry.bytes === 0) entry.status = 499; // as nginx logs it
    // The response does not depend on its log, even where `write` returns a promise.
    catching<unknown>(() => this.#onEnd(entry), (error) => logFailure(this.#environ, error, "Access log"));
  }
}

interface LogEntry {
  time: Date;
  method: string;
  target: string;
  status: number;
  bytes: number;
  /** In milliseconds. */
  duration: number;
  aborted: boolean;
}

/** Formats a line in Apache's combined log format, with a little more at its end. */
function formatCombined(
  environ: Environ,
  { time, method, target, status, bytes, duration, aborted }: LogEntry,
): string {
  const { REMOTE_ADDR, REMOTE_USER, SERVER_PROTOCOL, HTTP_REFERER, HTTP_USER_AGENT, "request.id": id } = environ;
  const escape = (value: unknown) =>
    // deno-lint-ignore no-control-regex
    value ? String(value).replace(/["\\\0-\x1f\x7f-\uffff]/g, escapeInLog) : "-";
  const bare = (value: unknown) => escape(value).replaceAll(" ", "\\x20");
  return `${bare(REMOTE_ADDR)} - ${bare(REMOTE_USER)} [${logDate(time)}] ` +
    `"${escape(method)} ${escape(target)} ${escape(SERVER_PROTOCOL)}" ${status} ${bytes || "-"} ` +
    `"${escape(HTTP_REFERER)}" "${escape(HTTP_USER_AGENT)}" ` +
    `${duration.toFixed(3)}ms${id ? ` ${bare(id)}` : ""}${aborted ? " aborted" : ""}`;
}

function escapeInLog(character: string): string {
  if (/["\\]/.test(character)) return `\\${character}`;
  return `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`;
}

const LAST_DATE = { second: NaN, text: "" };

/** A date as Apache has it, made once for all lines of a second. */
function logDate(time: Date): string {
  const second = Math.floor(time.getTime() / 1000);
  if (second !== LAST_DATE.second) {
    const [, day, month, year, clock] = time.toUTCString().split(" ");
    Object.assign(LAST_DATE, { second, text: `${day}/${month}/${year}:${clock} +0000` });
  }
  return LAST_DATE.text;
}

function formatJson(environ: Environ, entry: LogEntry): string {
  const line = JSON.stringify({
    ...entry,
    protocol: environ.SERVER_PROTOCOL,
    remoteAddr: environ.REMOTE_ADDR,
    remoteUser: environ.REMOTE_USER,
    referer: environ.HTTP_REFERER,
    userAgent: environ.HTTP_USER_AGENT,
    requestId: environ["request.id"],
  });
  // JSON allows these control characters, but a terminal may obey them.
  return line.replace(/[\x7f-\x9f]/g, (character) => `\\u00${character.charCodeAt(0).toString(16)}`);
}

// #endregion

// #region errorPage

/**
 * A response to an error, as `render` of {@linkcode ErrorPageOptions} may return it.
 *
 * @example
 * ```ts
 * import type { ErrorResponse } from "./mod.ts";
 *
 * const problem = { type: "https://example.com/out-of-stock", title: "Out of stock" };
 * const response: ErrorResponse = {
 *   headers: [["Content-Type", "application/problem+json"]],
 *   body: [new TextEncoder().encode(JSON.stringify(problem))],
 * };
 * ```
 */
export interface ErrorResponse {
  /** The headers, which replace those that the error and `errorPage` have under the same names. */
  headers: HeaderList;
  /** The body. Its `close` is called as that of any other. */
  body: ResponseBody;
}

/**
 * The result of `render` of {@linkcode ErrorPageOptions}: HTML, a response of either kind, or nothing.
 *
 * @example
 * ```ts
 * import type { ErrorRendering } from "./mod.ts";
 *
 * const renderings: ErrorRendering[] = ["<h1>Not Found</h1>", Response.json({ error: "Not Found" }), undefined];
 * ```
 */
export type ErrorRendering = string | ErrorResponse | Response | undefined;

/**
 * Options for {@linkcode errorPage}.
 *
 * @example
 * ```ts
 * import type { ErrorPageOptions } from "./mod.ts";
 *
 * const options: ErrorPageOptions = { render: (status) => `<!doctype html><title>${status}</title><h1>${status}</h1>` };
 * ```
 */
export interface ErrorPageOptions {
  /**
   * Whether to show the error, its causes, its source, the stack and the environ, which nobody but the developer should see.
   *
   * @default {false}
   */
  development?: boolean | undefined;
  /**
   * Makes the site's own page for an error. In development it is not called for a status of 500 and above.
   *
   * Text is HTML, and is sent to clients that prefer it to plain text and JSON, or prefer nothing; the others get the default
   * page. An {@linkcode ErrorResponse} is sent to all, and so are the headers and the body of a Fetch `Response`, with the
   * status of the error. For `undefined` all get the default page, and also if the call fails, which is logged.
   *
   * The message of an error may tell what nobody should know. It is for the client only if the error has `expose: true`.
   *
   * @param status The status line, such as `"404 Not Found"`.
   * @param error What was thrown; for a refusal of another middleware an `Error` with `status`, `headers` and a message.
   * @param environ The environ of the place of the error, with the SCRIPT_NAME and the PATH_INFO of this one.
   * @returns HTML, a response, or nothing.
   */
  render?:
    | ((status: string, error: unknown, environ: Environ) => ErrorRendering | Promise<ErrorRendering>)
    | undefined;
}

const ERROR_PAGE_OPTIONS: OptionChecks<ErrorPageOptions> = {
  development: [isBoolean, "true or false"],
  render: [isFunction, "a function"],
};

/**
 * Responds with an error page when the application fails, and logs the error to `wsgi.errors`.
 *
 * A `status` of the error from 400 to 599 is that of the response. Errors below 500 are not logged; they may be the
 * server's own, for a body that is too large. An error with such a status may say more:
 *
 * - `expose: true`: its `message` is for the client. Nothing else of an error is sent in production.
 * - `headers`: a list of headers for the response, such as `[["Retry-After", "60"]]`. Those that describe a body, or
 *   belong to one connection, are left out.
 *
 * The page is plain text, HTML or JSON, as the client accepts it; without a preference plain text, and in development
 * HTML. In JSON it is an object with these fields of RFC 9457:
 *
 * - `status`: a number, such as `404`
 * - `title`: the reason phrase, such as `"Not Found"`
 * - `detail`: the message that is for the client, if there is one; in development the error with its stack
 *
 * It also makes the page where a middleware inside refuses a request: `mount` (404), `files` (404 and 405), `proxyFix` and
 * `trustedHosts` (400), `basicAuth` (401), `limitBody` (413), `limitConcurrency` (503) and `timeout` (504). The page is
 * sent from the place of that middleware, so that those between, such as {@linkcode cors}, add their headers.
 *
 * Once bytes have left, no page can be sent, and the error is thrown on. PEP 3333, "Error Handling".
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, which no longer fails before its first byte.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { errorPage, runApplication, testEnviron } from "./mod.ts";
 *
 * const app = errorPage(() => {
 *   throw Object.assign(new Error("Article 7 is not there"), { status: 404, expose: true });
 * });
 * const { status, body, errors } = await runApplication(app, testEnviron());
 * assert.equal(status, "404 Not Found");
 * assert.equal(new TextDecoder().decode(body), "404 Not Found\nArticle 7 is not there\n");
 * assert.equal(errors, "");
 * ```
 *
 * @example A page of the site's own
 * ```ts
 * import assert from "node:assert/strict";
 * import { errorPage, mount, runApplication, testEnviron } from "./mod.ts";
 *
 * const app = errorPage(mount({ "/shop": () => [] }), {
 *   render: (status) => `<!doctype html><title>${status}</title><h1>Have you lost your way?</h1>`,
 * });
 * const { status, body } = await runApplication(app, testEnviron({ PATH_INFO: "/shpo", HTTP_ACCEPT: "text/html" }));
 * assert.equal(status, "404 Not Found");
 * assert.match(new TextDecoder().decode(body), /lost your way/);
 * ```
 */
export function errorPage(app: ApplicationLike, options: ErrorPageOptions = {}): Application {
  checkOptions(options, ERROR_PAGE_OPTIONS);
  const { development = false, render } = options;
  const inner = application(app);
  return (environ: WithErrorPage, startResponse) => {
    const { SCRIPT_NAME, PATH_INFO } = environ; // `mount` moves them
    const respond: RespondToError = (environ, startResponse, error, isFailure = false) => {
      const code = errorStatus(error);
      const status = `${code} ${REASONS[code] ?? "Unknown"}`;
      const start = ({ headers, body }: ErrorResponse): ResponseBody => {
        const all = addMissing(addMissing(headers, errorHeaders(error)), [["Cache-Control", "no-store"]]);
        startResponse(status, addVary(all, "Accept"), error);
        return body;
      };
      const page = defaultPage(status, error, environ, development);
      const body = start(page); // throws the error on if bytes have left
      if (isFailure && code >= 500) logFailure(environ, error);
      if (!render || development && code >= 500) return body;
      const use = (rendered: ErrorRendering) => {
        const own = toErrorResponse(rendered, environ);
        return own ? cancelOnError(own.body, () => withHooks(start(checkErrorResponse(own)), { recover })) : body;
      };
      const recover = (failure: unknown) => {
        if (isDisconnect(failure, environ["fetch.context"])) throw failure;
        try {
          start(page);
        } catch {
          throw failure; // bytes have left: the server reports what failed, and not the error of the page
        }
        logFailure(environ, failure, "Error page");
        return page.body;
      };
      return catching(() => mapMaybe(render(status, error, { ...environ, SCRIPT_NAME, PATH_INFO }), use), recover);
    };
    const recover = (thrown: unknown) => {
      // The server expects this error, and nobody would read the page.
      if (isDisconnect(thrown, environ["fetch.context"])) throw thrown;
      const error = thrown ?? new Error(`${thrown} was thrown`); // startResponse takes undefined for no error
      return respond(environ, startResponse, error, true);
    };
    environ[ERROR_PAGE] = respond;
    return catching(() => mapMaybe(inner(environ, startResponse), (body) => withHooks(body, { recover })), recover);
  };
}

/** The headers of an error's own, if it has a list of valid ones, without those that would not fit its page. */
function errorHeaders(error: unknown): HeaderList {
  if (ownStatus(error) === undefined) return [];
  return safely(() => {
    const { headers } = error as { headers?: unknown };
    if (!isPairs(headers)) return [];
    const own = headers.map((pair) => [...pair] as const)
      .filter(([name]) => !/^content-(?:type|length|encoding)$/i.test(name) && !HOP_BY_HOP.test(name.toLowerCase()));
    parseHead("500 Internal Server Error", own);
    return own;
  }, []);
}

/** The message of an error that is for the client. */
function exposedMessage(error: unknown): string | undefined {
  if (ownStatus(error) === undefined) return undefined;
  return safely(() => {
    const { expose, message } = error as { expose?: unknown; message?: unknown };
    return expose === true && typeof message === "string" && message !== "" ? message : undefined;
  }, undefined);
}

/** Takes headers and body of a Fetch response, whose status is that of the error, or the HTML, if the client prefers that. */
function toErrorResponse(rendered: ErrorRendering, environ: Environ): ErrorResponse | undefined {
  if (rendered instanceof Response) {
    return { headers: responseHeaders(rendered), body: (rendered.body ?? []) as ResponseBody }; // typed as in fromFetch
  }
  if (typeof rendered !== "string") return rendered;
  const type = preferredType(environ, ["text/html", "text/plain", "application/json"]);
  return type === "text/html" ? makePage(type, rendered) : undefined;
}

/** Checks a response before the server does, for which a failed start would count. */
function checkErrorResponse(response: ErrorResponse): ErrorResponse {
  if (!isIterableBody(response.body)) {
    const expected = 'a string of HTML, a Response, or { headers: [["Content-Type", "text/html"]], body: [bytes] }';
    throw new TypeError(`Cannot use ${inspect(response)} as an error page: expected ${expected}`);
  }
  parseHead("500 Internal Server Error", response.headers);
  return response;
}

function makePage(type: string, text: string, ...headers: HeaderList): ErrorResponse {
  const contentType = type === "application/json" ? type : `${type}; charset=utf-8`;
  return { headers: [["Content-Type", contentType], ...headers], body: [ENCODER.encode(text)] };
}

/** The page of this library's own, of the type that the client prefers. */
function defaultPage(status: string, error: unknown, environ: Environ, development: boolean): ErrorResponse {
  const types = development
    ? ["text/html", "application/json", "text/plain"]
    : ["text/plain", "text/html", "application/json"];
  const type = preferredType(environ, types);
  const detail = development ? inspectDeep(error, 16) : exposedMessage(error);
  let page = development ? `${detail}\n` : `${status}\n${detail === undefined ? "" : `${detail}\n`}`;
  if (type === "text/html") page = development ? renderHtml(status, error, environ) : renderStatus(status, detail);
  if (type === "application/json") {
    page = `${JSON.stringify({ status: Number(status.slice(0, 3)), title: status.slice(4), detail })}\n`;
  }
  return makePage(type, page, ["Content-Security-Policy", PAGE_POLICY]);
}

/** The page for a visitor: the status and, if there is one, the message that is for the client. */
function renderStatus(status: string, detail = ""): string {
  return renderPage(status, {
    style: "body { margin-top: 20vh; max-width: 40rem; }\np { white-space: pre-line; }",
    content: `<h1>${escapeHtml(status)}</h1>${detail && `\n<p>${escapeHtml(detail)}`}`,
  });
}

const ERROR_STYLE = `
h1 { color: var(--accent); }
h2 { font-size: 1.125rem; margin: 2rem 0 0.5rem; }
p { margin: 0.25rem 0; white-space: pre-wrap; }
h1 + p { font-size: 1.125rem; font-weight: 500; }
pre, table { font: 0.875rem/1.5 ui-monospace, monospace; tab-size: 2; }
pre, .source { background: #8881; border-radius: 0.5rem; display: block; margin: 0; padding: 1rem; width: auto; }
pre, .source td { white-space: pre-wrap; }
.source td, .source th { padding: 0 0.5rem; }
.source th { color: var(--dim); font-weight: 400; text-align: right; white-space: nowrap; }
.source td { width: 100%; }
.failed > * { background: color-mix(in srgb, var(--accent) 20%, transparent); }
.request, .dim { color: var(--dim); }
.environ th { padding-right: 1.5rem; width: 38ch; }
@media (max-width: 48rem) {
  .environ tr { display: block; padding: 0.25rem 0; }
  .environ th, .environ td { display: block; padding: 0; width: auto; }
}`.trim();

function renderHtml(status: string, error: unknown, environ: Environ): string {
  const show = (value: unknown) => typeof value === "string" ? value : inspectDeep(value);
  const cell = (value: unknown) => escapeHtml(show(value));
  const rows = Object.keys(environ).sort().map((name) => `<tr><th>${cell(name)}<td>${cell(environ[name])}\n`);
  const causes: string[] = [];
  let source = "";
  let cause = error;
  while (cause !== undefined && causes.length < 10) {
    const shown = inspectDeep(cause);
    causes.push(escapeHtml(safely(() => cause instanceof Error ? String(cause) : shown, shown)));
    source ||= safely(() => renderSource(cause), "");
    cause = safely(() => (Object(cause) as { cause?: unknown }).cause, undefined);
  }
  const request = `${show(environ.REQUEST_METHOD)} ${safely(() => requestTarget(environ), "")}`;
  const content = `<p class="request">${escapeHtml(request)}
<h1>${escapeHtml(status)}</h1>
<p>${causes.join("\n<p>Caused by ")}
${source}<h2>Stack</h2>
<pre>${inspectDeep(error, 16).split("\n").map(renderStackLine).join("\n")}</pre>
<h2>Environ</h2>
<table class="environ">
${rows.join("")}</table>`;
  return renderPage(`${status}: ${request}`, { style: ERROR_STYLE, content });
}

/**
 * Shows the source around the line of the application that has thrown, or names the flag that Deno needs to read it.
 * Empty if there is no such line. Throws if it is not in a file. Only programs are read, and no frame is looked for in the
 * message, which may quote a client.
 */
function renderSource(error: unknown): string {
  const { stack, message } = error as { stack: string; message: string };
  const end = stack.indexOf(`${message}\n`);
  if (end === -1) return "";
  const frames = stack.slice(end + message.length).split("\n");
  const place = frames.map(parseOwnFrame).find((own) => own !== undefined);
  if (!place || !/\.[cm]?[jt]sx?$/.test(place.url.pathname)) return "";
  const { url, lineNumber } = place;
  if (DENO && DENO.permissions.querySync({ name: "read", path: url }).state !== "granted") {
    return '<h2>Source</h2>\n<p class="dim">Deno needs the flag --allow-read to show it\n';
  }
  const path = process.getBuiltinModule("node:url").fileURLToPath(url.href);
  const lines = process.getBuiltinModule("node:fs").readFileSync(path, "utf8").split("\n");
  if (lineNumber === 0 || lineNumber > lines.length) return ""; // the file is another by now
  const first = Math.max(lineNumber - 5, 0);
  const rows = lines.slice(first, lineNumber + 4).map((line, index) => {
    const number = first + index + 1;
    const row = number === lineNumber ? '<tr class="failed">' : "<tr>";
    return `${row}<th>${number}<td>${escapeHtml(line.slice(0, 500))}\n`;
  });
  const title = `<p class="dim">${escapeHtml(`${place.text}:${lineNumber}`)}`;
  return `<h2>Source</h2>\n${title}\n<table class="source">\n${rows.join("")}</table>\n`;
}

function renderStackLine(line: string): string {
  const isForeign = /^\s*at /.test(line) && !parseOwnFrame(line);
  return isForeign ? `<span class="dim">${escapeHtml(line)}</span>` : escapeHtml(line);
}

// A frame in a file: "at call (file:///app.ts:3:7)" on Deno, "at call (/app.ts:3:7)" on Bun, "at call (src/app.ts:3:7)" on
// workerd. It may have no name, and stand before the properties of the error.
const FRAME = /(?:^\s*at (?:async )?|\()((?:\w+:\/\/|[A-Za-z]:[\\/]|[\w.-]*\/).+?):(\d+):\d+\)?(?: \{)?$/;

// The files of this library, which may have been compiled. They cannot be told from a program that has bundled them.
const LIBRARY = URL.parse(".", import.meta.url)?.href ?? "";
const LIBRARY_FILE = /^(?:server|middleware)\.[jt]s$/;

/** Parses a frame of a stack; undefined for a frame of a package, of the runtime or of this library. */
function parseOwnFrame(line: string): { text: string; url: URL; lineNumber: number } | undefined {
  const [, text = "", lineNumber] = FRAME.exec(line) ?? [];
  const path = text.replace(/[%?#]/g, encodeURIComponent).replace(/^\/?/, "file:///");
  const url = URL.parse(/^\w+:\/\//.test(text) ? text : path);
  const isLibrary = url?.href.startsWith(LIBRARY) && LIBRARY_FILE.test(url.href.slice(LIBRARY.length));
  return !url || isLibrary || text === "" || text.includes("node_modules")
    ? undefined
    : { text, url, lineNumber: Number(lineNumber) };
}

// #endregion

// #region proxyFix

/**
 * Options for {@linkcode proxyFix}.
 *
 * @example
 * ```ts
 * import type { ProxyFixOptions } from "./mod.ts";
 *
 * const options: ProxyFixOptions = { trust: ["10.0.0.0/8", "fd00::/8"] };
 * ```
 */
export interface ProxyFixOptions {
  /**
   * The trusted proxies: their addresses and networks, `"unix"` for a peer on a unix socket, which has no address, or the
   * number of proxies in front of the server.
   *
   * An IPv4 address is the same when it is mapped into IPv6, and in no network of IPv6: `"::/0"` is every IPv6 address. The
   * zone of a peer, as in `fe80::1%eth0`, does not count.
   *
   * @default {["127.0.0.0/8", "::1"]}
   */
  trust?: string[] | number | undefined;
  /**
   * The header that the proxies set, with those that belong to it. By default `Forwarded` is read only if the request has
   * no `X-Forwarded-*`. Set this option if the proxies set one of them and let the other through.
   */
  header?: "X-Forwarded-For" | "Forwarded" | undefined;
}

const PROXY_FIX_OPTIONS: OptionChecks<ProxyFixOptions> = {
  trust: [
    (value) => arrayOf(isString)(value) || integerFrom(1, Number.MAX_VALUE)(value),
    "a number of proxies or an array of their addresses",
  ],
  header: [matching(/^(?:X-Forwarded-For|Forwarded)$/), '"X-Forwarded-For" or "Forwarded"'],
};

const LOOPBACK = ["127.0.0.0/8", "::1"];
// deno-fmt-ignore
const REWRITTEN = [
  "REMOTE_ADDR", "REMOTE_PORT", "HTTPS", "HTTP_HOST", "SCRIPT_NAME", "SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme",
];
const X_FORWARDED = ["for", "proto", "host", "port", "prefix"]
  .map((name) => [name, `HTTP_X_FORWARDED_${name.toUpperCase()}`] as const);
const FORWARDING = [...X_FORWARDED.map(([, variable]) => variable), "HTTP_FORWARDED"] as const;

// A pair of Forwarded: RFC 7239, section 4. A quote that is left open does not match: it must not swallow what the next
// proxy adds.
const FORWARDED_NAME = TOKEN.source.slice(1, -1); // without ^ and $
const FORWARDED_VALUE = FORWARDED_NAME.replace("[", "[:[\\]"); // an address may stand without quotes
const FORWARDED_QUOTED = String.raw`"((?:[^"\\]|\\.)*)"`;
const FORWARDED_PAIR = new RegExp(`^(${FORWARDED_NAME})=(?:(${FORWARDED_VALUE})|${FORWARDED_QUOTED})$`);

// An address with or without a port. A name such as _secret may hide the port: RFC 7239, section 6.
const FORWARDED_ADDRESS = /^(?:\[(?<six>.+)\]|(?<four>[^:]+))(?::(?<port>\d{1,5}|_[\w.-]+))?$/;

// Segments of a path: RFC 3986, section 3.3. Control characters may not be escaped either.
const PATH_PREFIX = /^(?:\/(?:[\w.~!$&'()*+,;=:@-]|%[2-9a-f][\da-f])+)+$/i;
// A decoded segment that is empty or leads elsewhere, or the control character DEL.
const UNSAFE_PREFIX = /\/\.{0,2}(?:\/|$)|\x7f/;

/**
 * Restores what a reverse proxy changed: the client's address, the scheme, the host, the port, and the prefix of the path.
 *
 * Reads `X-Forwarded-For`, `-Proto`, `-Host`, `-Port` and `-Prefix`, or `Forwarded` (RFC 7239), from right to left, up to
 * the first sender that is not trusted: values further left could come from anybody. A trusted proxy must set or remove
 * every one of these headers. A request with an invalid value gets 400. Without an address for the client, as in
 * `for=unknown`, REMOTE_ADDR is absent. Where a peer that is not trusted sends such a header, or a trusted one an invalid
 * value, a line on `wsgi.errors` says so, at most every ten seconds.
 *
 * `proxy_fix.original` keeps the variables as they were.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, which sees the request as the client sent it.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { proxyFix, requestUri, runApplication, type StartResponse, testEnviron } from "./mod.ts";
 *
 * const app = proxyFix((environ, startResponse: StartResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(`${environ.REMOTE_ADDR} ${requestUri(environ)}`)];
 * });
 * const { body } = await runApplication(
 *   app,
 *   testEnviron({
 *     REMOTE_ADDR: "127.0.0.1",
 *     HTTP_X_FORWARDED_FOR: "203.0.113.7",
 *     HTTP_X_FORWARDED_PROTO: "https",
 *     HTTP_X_FORWARDED_HOST: "example.com",
 *   }),
 * );
 * assert.equal(new TextDecoder().decode(body), "203.0.113.7 https://example.com/");
 * ```
 */
export function proxyFix(app: ApplicationLike, options: ProxyFixOptions = {}): Application {
  checkOptions(options, PROXY_FIX_OPTIONS);
  const { trust = LOOPBACK, header } = options;
  const proxies = typeof trust === "number" ? trust : trustCheck(trust);
  const refusal: Refusal = { status: 400, message: "Cannot read the forwarding headers of the proxy" };
  const warn = rateLimitedWarning();
  const inner = application(app);
  return (environ, startResponse) => {
    const { REMOTE_ADDR: peer } = environ;
    if (typeof proxies === "function" && !proxies(peer)) {
      const sent = FORWARDING.find((variable) => environ[variable] !== undefined);
      if (sent) {
        const found = peer === undefined ? 'the peer has no address, and "unix"' : `peer ${inspect(peer)}`;
        const name = sent.slice("HTTP_".length).toLowerCase().replaceAll("_", "-");
        warn(environ, `proxyFix ignored ${name} on`, `${found} is not in option "trust"`);
      }
      return inner(environ, startResponse);
    }
    const lists = parseForwarded(environ, header);
    const forwarded = lists && pickForwarded(lists, proxies);
    if (!forwarded) {
      warn(environ, "proxyFix refused", "a forwarding header of its proxy is invalid");
      return refuse(environ, startResponse, refusal);
    }
    applyForwarded(environ, forwarded);
    return inner(environ, startResponse);
  };
}

/** Picks the values that the outermost trusted proxy has set; undefined if one of them is invalid. */
function pickForwarded(lists: ForwardedLists, proxies: number | TrustCheck) {
  const isCounted = typeof proxies === "number";
  const clients = lists.for ?? [];
  const isProxy = (client: string | undefined) => {
    const peer = parseAddress(client);
    return !isCounted && peer !== undefined && proxies(peer.address);
  };
  let trusted = isCounted ? proxies : 1;
  while (trusted < clients.length && isProxy(clients.at(-trusted))) trusted++;
  // Of proxies known by address, any but the outermost may omit a header. Proxies that are counted must all set it.
  const pick = (list: ForwardedList = []) => list.at(isCounted ? -trusted : -Math.min(trusted, list.length));

  const scheme = pick(lists.proto)?.toLowerCase().replace(/^ws/, "http"); // what opens a WebSocket: RFC 6455, section 4.1
  const authority = pick(lists.host);
  const host = authority ? parseHost(authority) : undefined;
  const digits = pick(lists.port);
  const port = parsePort(digits);
  const prefix = pick(lists.prefix)?.replace(/\/$/, "");
  if (scheme && !/^https?$/.test(scheme)) return undefined;
  if (authority && !host || digits && !port || prefix && !isPrefix(prefix)) return undefined;
  return { client: pick(clients), scheme, host, port, prefix };
}

type Forwarded = NonNullable<ReturnType<typeof pickForwarded>>;

/** Changes the environ to what the client sent, and keeps the variables as they were. */
function applyForwarded(environ: Environ, { client, scheme, host, port, prefix }: Forwarded): void {
  const original: Partial<Environ> = {};
  for (const variable of REWRITTEN) if (variable in environ) original[variable] = environ[variable];
  environ["proxy_fix.original"] = original;
  if (client !== undefined) {
    const peer = parseAddress(client);
    if (peer) environ.REMOTE_ADDR = peer.address;
    else delete environ.REMOTE_ADDR;
    if (peer?.port) environ.REMOTE_PORT = peer.port;
    else delete environ.REMOTE_PORT;
  }
  if (scheme) {
    environ["wsgi.url_scheme"] = scheme;
    if (scheme === "https") environ.HTTPS = "on";
    else delete environ.HTTPS;
  }
  const asked = host ?? (port ? parseHost(environ.HTTP_HOST || environ.SERVER_NAME) : undefined);
  if (asked) {
    const usualPort = defaultPort(environ["wsgi.url_scheme"]);
    environ.SERVER_NAME = asked.name;
    environ.SERVER_PORT = port || asked.port || usualPort;
    environ.HTTP_HOST = asked.name + (environ.SERVER_PORT === usualPort ? "" : `:${environ.SERVER_PORT}`);
  }
  if (prefix) environ.SCRIPT_NAME = percentDecode(prefix) + (environ.SCRIPT_NAME ?? "");
}

/** The values of one parameter of RFC 7239, one for each proxy, that of the last proxy last. An empty one says nothing. */
type ForwardedList = string[];
type ForwardedLists = Partial<Record<string, ForwardedList>>;

/** Reads the headers of one kind, by the names of RFC 7239; undefined if they cannot be read. */
function parseForwarded(environ: Environ, header: ProxyFixOptions["header"]): ForwardedLists | undefined {
  const lists: ForwardedLists = {};
  for (const [name, variable] of X_FORWARDED) {
    const value = environ[variable];
    // These have no quotes. One that is left open must not swallow what the next proxy adds.
    if (typeof value === "string") {
      lists[name] = value.split(",").map((part) => part.trim()).filter((part) => part !== "");
    }
  }
  const isFound = Object.keys(lists).length > 0;
  if (header === "X-Forwarded-For" || !header && isFound) return lists;
  if (environ.HTTP_FORWARDED === undefined) return {};

  const elements: Map<string, string>[] = []; // one for each proxy
  for (const element of parseList(environ.HTTP_FORWARDED)) {
    const pairs = new Map<string, string>();
    for (const pair of parseList(element, ";")) {
      const [, name = "", token, quoted = ""] = FORWARDED_PAIR.exec(pair) ?? [];
      const key = name.toLowerCase();
      if (key === "" || pairs.has(key)) return undefined;
      pairs.set(key, token ?? quoted.replace(/\\(.)/g, "$1"));
    }
    elements.push(pairs);
  }
  // A proxy that does not name its client has none: the address of the next proxy would pass for a client.
  const names = ["for", "proto", "host"];
  return Object.fromEntries(names.map((name) => [name, elements.map((pairs) => pairs.get(name) ?? "")]));
}

/** Reads the address of a client, with or without a port; undefined for `unknown` and other names. */
function parseAddress(text = ""): { address: string; port: string | undefined } | undefined {
  if (addressBits(text)) return { address: text, port: undefined };
  const { six, four, port: given } = FORWARDED_ADDRESS.exec(text)?.groups ?? {};
  const address = six ?? four ?? "";
  const port = parsePort(given);
  const isHidden = given === undefined || given.startsWith("_");
  if (!addressBits(address) || six?.includes(":") === false || !isHidden && !port) return undefined;
  return { address, port };
}

// The leading bits of an IPv6 address that stands for an IPv4 address: RFC 4291, section 2.5.5.2.
const MAPPED = "0".repeat(80) + "1".repeat(16);

// An IPv4 address, which an IPv6 address may end with: RFC 4291, section 2.2.
const OCTET = String.raw`(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`;
const OCTETS = new RegExp(`^(.*:)?${Array(4).fill(OCTET).join("\\.")}$`);

const BITS_CACHE = new Map<string, string | undefined>();

/** The bits of an address as text, 32 for IPv4, mapped or not, and 128 for IPv6; undefined for none. A zone is ignored. */
function addressBits(text: string): string | undefined {
  return memoize(BITS_CACHE, text, parseBits);
}

function parseBits(text: string): string | undefined {
  const address = text.includes(":") ? text.replace(/%[\w.~-]+$/, "") : text;
  const toBits = (numbers: string[], radix: number, size: number) =>
    numbers.map((number) => parseInt(number, radix).toString(2).padStart(size, "0")).join("");
  const [, before, ...octets] = OCTETS.exec(address) ?? [];
  const end = toBits(octets, 10, 8);
  if (end !== "" && before === undefined) return end;
  const halves = (end === "" ? address : `${before}0:0`).split("::").map((half) => half === "" ? [] : half.split(":"));
  const words = halves.flat();
  const isWhole = halves.length === 1 ? words.length === 8 : halves.length === 2 && words.length < 8;
  if (!isWhole || !words.every((word) => /^[\da-f]{1,4}$/i.test(word))) return undefined;
  const [head = "", tail = ""] = halves.map((half) => toBits(half, 16, 16));
  const bits = (head.padEnd(128 - tail.length, "0") + tail).slice(0, 128 - end.length) + end;
  return bits.startsWith(MAPPED) ? bits.slice(MAPPED.length) : bits;
}

/** Whether a prefix is a path without empty segments and dot segments, also when it is decoded. */
function isPrefix(prefix: string): boolean {
  return PATH_PREFIX.test(prefix) && !UNSAFE_PREFIX.test(percentDecode(prefix));
}

type TrustCheck = (address: string | undefined) => boolean;

function trustCheck(list: string[]): TrustCheck {
  const networks = list.filter((entry) => entry !== "unix").map(parseNetwork);
  return (address) => {
    if (address === undefined) return list.includes("unix");
    const bits = addressBits(address);
    return bits !== undefined && networks.some((contains) => contains(bits));
  };
}

/** Makes a test of a network, for the bits of an address. */
function parseNetwork(entry: string): (bits: string) => boolean {
  const [, address = "", width] = /^([\da-f.:]+)(?:\/(\d{1,3}))?$/i.exec(entry) ?? [];
  const bits = addressBits(address) ?? "";
  const mapped = bits.length === 32 && address.includes(":") ? MAPPED.length : 0;
  const length = width === undefined ? bits.length : Number(width) - mapped;
  if (bits === "" || length < 0 || length > bits.length) {
    throw optionError("trust", entry, 'an address or a network such as "10.0.0.0/8"');
  }
  const prefix = bits.slice(0, length);
  return (other) => other.length === bits.length && other.startsWith(prefix);
}

// #endregion

// #region trustedHosts

/**
 * Options for {@linkcode trustedHosts}.
 *
 * @example
 * ```ts
 * import type { TrustedHostsOptions } from "./mod.ts";
 *
 * const options: TrustedHostsOptions = { hosts: ["example.com", ".example.org"] };
 * ```
 */
export interface TrustedHostsOptions {
  /**
   * The hosts: `"example.com"` on any port, `"example.com:8080"` on one, `".example.com"` with all its subdomains.
   *
   * Neither case, nor a dot at the end, nor the spelling of an IPv6 address makes another host.
   */
  hosts: string[];
}

const TRUSTED_HOSTS_OPTIONS: OptionChecks<TrustedHostsOptions> = {
  hosts: [arrayOf(isString), 'an array of hosts such as "example.com"'],
};

/**
 * Responds with 400 to requests for other hosts. Clients choose the Host freely, and applications make links with it.
 *
 * A line on `wsgi.errors` names the host, at most every ten seconds.
 *
 * Behind a proxy, this middleware belongs inside {@linkcode proxyFix}.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The trusted hosts.
 * @returns The application, which only sees requests for these hosts.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { runApplication, testEnviron, trustedHosts } from "./mod.ts";
 *
 * const app = trustedHosts(() => [], { hosts: [".example.com"] });
 * const { status } = await runApplication(app, testEnviron({ HTTP_HOST: "example.org" }));
 * assert.equal(status, "400 Bad Request");
 * ```
 */
export function trustedHosts(app: ApplicationLike, options: TrustedHostsOptions): Application {
  checkOptions(options, TRUSTED_HOSTS_OPTIONS);
  if (options.hosts === undefined) throw optionError("hosts", undefined, "an array of hosts");
  const hosts = options.hosts.map((entry) => {
    const host = normalizeHost(entry.replace(/^\./, ""));
    if (!host) throw optionError("hosts", entry, '"example.com" or ".example.com"');
    return entry.startsWith(".") ? { ...host, name: `.${host.name}` } : host;
  });
  const warn = rateLimitedWarning();
  const inner = application(app);
  return (environ, startResponse) => {
    const asked = requestedHost(environ);
    if (asked && hosts.some((host) => meetsHost(asked, host))) return inner(environ, startResponse);
    const { HTTP_HOST, SERVER_NAME, REMOTE_ADDR } = environ;
    const host = inspect(HTTP_HOST || SERVER_NAME);
    const reason = `${REMOTE_ADDR ?? "a client"} asked for host ${host}, which is not in option "hosts"`;
    warn(environ, "trustedHosts refused", reason);
    return refuse(environ, startResponse, { status: 400, message: `Cannot serve host ${host}` });
  };
}

// #endregion

// #region compress

/**
 * Options for {@linkcode compress}.
 *
 * @example
 * ```ts
 * import type { CompressOptions } from "./mod.ts";
 *
 * const options: CompressOptions = { threshold: 256 };
 * ```
 */
export interface CompressOptions {
  /**
   * The smallest body to compress, in bytes. A body of unknown length is always compressed.
   *
   * @default {1024}
   */
  threshold?: number | undefined;
}

const COMPRESS_OPTIONS: OptionChecks<CompressOptions> = { threshold: [isNotNegative, "a number of bytes"] };

// Text of some kind. Most other data is compressed already.
const COMPRESSIBLE = [
  /^text\//i,
  /^image\/(?:svg\+xml|x-icon|bmp)/i,
  /^font\/(?:ttf|otf)/i,
  /^application\/(?:[\w.+-]*\+)?(?:json|xml|javascript|wasm|yaml|x-ndjson|graphql)\b/i,
];

/**
 * Compresses responses with `br`, `gzip` or `deflate`, as the client accepts it.
 *
 * Each chunk is flushed, so that it can be decompressed when it arrives; an array stays an array. A response is not
 * compressed if it is small, compressed already, partial (206) or marked `no-transform`. A strong ETag becomes a weak one,
 * and a 304 has the ETag and the Vary of its 200. RFC 9110, sections 8.4, 12.5.3 and 15.4.5.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 * @throws {Error} When the runtime has no `node:zlib`.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, whose responses are compressed.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { compress, type StartResponse, toFetch } from "./mod.ts";
 *
 * const app = compress((_environ: unknown, startResponse: StartResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new Uint8Array(10_000)];
 * });
 * const request = new Request("http://localhost/", { headers: { "Accept-Encoding": "gzip" } });
 * const response = await toFetch(app)(request);
 * assert.equal(response.headers.get("Content-Encoding"), "gzip");
 * assert(Number((await response.bytes()).length) < 100);
 * ```
 */
export function compress(app: ApplicationLike, options: CompressOptions = {}): Application {
  checkOptions(options, COMPRESS_OPTIONS);
  requireNodeModule("node:zlib", "compress");
  const { threshold = 1024 } = options;
  const inner = application(app);
  return (environ, startResponse) => {
    const selected = selectedOf(environ);
    const wholeOf = (headers: HeaderList, status: string) => /^(?:206|304)/.test(status) && selected.headers || headers;
    const vary = (headers: HeaderList, status: string) =>
      isCompressible(status, wholeOf(headers, status)) ? addVary(headers, "Accept-Encoding") : headers;
    const [coding] = acceptedEncodings(environ, ["br", "gzip", "deflate"]);
    if (!coding) return inner(environ, mapStart(startResponse, vary));
    let encoder: Encoder | undefined;
    let declared = Infinity;
    let received = 0;
    const change: ChangeResponse = (head, body) => {
      encoder?.close();
      encoder = undefined;
      const whole = wholeOf(head.headers, head.status);
      if (!isCompressible(head.status, whole)) return undefined;
      head.headers = addVary(head.headers, "Accept-Encoding");
      if (head.status.startsWith("206")) return undefined;
      const isNotModified = head.status.startsWith("304");
      const tag = getHeader(head.headers, "etag") ?? "";
      // Of a 304 that the application has made itself only the client's tag tells whether its 200 was compressed.
      const tags = selected.headers ? "" : environ.HTTP_IF_NONE_MATCH ?? "";
      if (isNotModified && parseTags(tags).includes(tag)) return undefined;
      const chunks = isChunkArray(body) ? body : undefined;
      const size = chunks?.reduce((sum, { length }) => sum + length, 0);
      const length = getHeader(whole, "content-length");
      // A response to HEAD may have no body. Any other array of a wrong length is the server's to refuse.
      const hasSize = size !== undefined && (size > 0 || environ.REQUEST_METHOD !== "HEAD" && !isNotModified);
      if (length !== undefined && hasSize && Number(length) !== size) return undefined;
      declared = Number(length ?? (hasSize ? size : Infinity));
      if (declared < threshold || declared === 0) return undefined;
      head.headers = omitHeaders(head.headers, ...CODED_HEADERS);
      if (tag.startsWith('"')) head.headers = setHeader(head.headers, "ETag", `W/${tag}`);
      if (isNotModified) return undefined;
      head.headers = setHeader(head.headers, "Content-Encoding", coding);
      if (chunks) return hasSize ? compressAll(coding, chunks) : undefined;
      encoder = new Encoder(coding, true);
      return undefined;
    };
    const failLength = (): never => {
      throw new Error(`Cannot send the body: Content-Length declares ${declared} bytes, the body has ${received}`);
    };
    let isFile = false;
    const deferred: Application = (environ, startResponse) =>
      mapMaybe(new DeferredStart(startResponse, change).run(inner, environ), (body) => {
        isFile = FILE in Object(body);
        return body;
      });
    const transformer: BodyTransformer = {
      transform(chunk) {
        if (!encoder) return chunk;
        if (isFile) chunk = chunk.subarray(0, declared - received);
        received += chunk.length;
        if (received > declared) failLength();
        return encoder.encode(chunk);
      },
      flush() {
        if (!encoder) return EMPTY;
        const needsBody = declared !== Infinity && environ.REQUEST_METHOD !== "HEAD";
        if (needsBody && received < declared) failLength();
        return encoder.encode();
      },
      close: () => encoder?.close(),
    };
    return new TransformedBody(transformer, startResponse).run(deferred, environ);
  };
}

/** Whether a response may be compressed, or that of which it is a part or a 304. The type of a 304 may be unknown. */
function isCompressible(status: string, headers: HeaderList): boolean {
  const isNotModified = status.startsWith("304");
  const type = getHeader(headers, "content-type")?.trimStart();
  return (type === undefined ? isNotModified : COMPRESSIBLE.some((pattern) => pattern.test(type))) &&
    (isNotModified || !hasNullBody(status)) &&
    (status.startsWith("206") || getHeader(headers, "content-range") === undefined) &&
    listHeader(headers, "content-encoding").every((coding) => coding === "identity") &&
    !listHeader(headers, "cache-control").some((directive) => /^no-transform(?:=|$)/.test(directive));
}

async function compressAll(coding: string, body: Uint8Array[] & ResponseBody): Promise<ResponseBody> {
  const encoder = new Encoder(coding, false);
  const chunks: Uint8Array[] = [];
  for (const chunk of body) chunks.push(await encoder.encode(chunk));
  return withChunks(body, [...chunks, await encoder.encode()]);
}

/** A compressor that returns the compressed bytes of each chunk. */
class Encoder {
  readonly #stream;
  readonly #output: Uint8Array[] = [];
  readonly #failed = Promise.withResolvers<never>();

  constructor(coding: string, flushes: boolean) {
    const { constants, createBrotliCompress, createDeflate, createGzip } = process.getBuiltinModule("node:zlib");
    const { BROTLI_OPERATION_FLUSH, BROTLI_PARAM_QUALITY, Z_SYNC_FLUSH } = constants;
    const flush = flushes ? { flush: coding === "br" ? BROTLI_OPERATION_FLUSH : Z_SYNC_FLUSH } : {};
    const brotli = { ...flush, params: { [BROTLI_PARAM_QUALITY]: 4 } }; // 11, the default, is too slow for responses
    if (coding === "br") this.#stream = createBrotliCompress(brotli);
    else this.#stream = coding === "gzip" ? createGzip(flush) : createDeflate(flush);
    this.#stream.on("data", (chunk: Uint8Array) => this.#output.push(chunk));
    this.#stream.on("error", this.#failed.reject);
    handled(this.#failed.promise);
  }

  /** Compresses a chunk; without one, returns the rest at the end. */
  async encode(chunk?: Uint8Array): Promise<Uint8Array> {
    const done = new Promise<void>((resolve) => {
      if (chunk) this.#stream.write(chunk, () => resolve());
      else this.#stream.once("end", resolve).end();
    });
    await Promise.race([done, this.#failed.promise]);
    return process.getBuiltinModule("node:buffer").Buffer.concat(this.#output.splice(0));
  }

  close(): void {
    this.#stream.destroy();
  }
}

// #endregion

// #region conditional

/**
 * Responds with 304 when the client already has the response, and adds an ETag to responses whose body is an array.
 *
 * The ETag is a hash of the body, unless the application has set one. Only responses to GET and HEAD with the status 200
 * are changed, and streams never. RFC 9110, section 13.
 *
 * @throws {TypeError} When `app` is not an application.
 *
 * @param app The application.
 * @returns The application, which answers 304 where the client has the response.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { conditional, type StartResponse, toFetch } from "./mod.ts";
 *
 * const handler = toFetch(conditional((_environ: unknown, startResponse: StartResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode("Hello")];
 * }));
 * const first = await handler(new Request("http://localhost/"));
 * const headers = { "If-None-Match": first.headers.get("ETag")! };
 * assert.equal((await handler(new Request("http://localhost/", { headers }))).status, 304);
 * ```
 */
export function conditional(app: ApplicationLike): Application {
  const inner = application(app);
  return (environ, startResponse) => {
    const { REQUEST_METHOD: method } = environ;
    if (method !== "GET" && method !== "HEAD") return inner(environ, startResponse);
    const change: ChangeResponse = (head, body) => {
      if (!head.status.startsWith("200") || !isChunkArray(body)) return undefined;
      // A response to HEAD may have no body to hash.
      const hasContent = method === "GET" || body.some((chunk) => chunk.length > 0);
      if (hasContent && getHeader(head.headers, "etag") === undefined) {
        return mapMaybe(digest(body), (hash) => {
          head.headers = [...head.headers, ["ETag", `"${hash}"`]];
          return change(head, body);
        });
      }
      if (!isFresh(environ, head.headers)) return undefined;
      const size = body.reduce((sum, { length }) => sum + length, 0);
      selectedOf(environ).headers = hasContent ? setHeader(head.headers, "Content-Length", String(size)) : head.headers;
      head.status = "304 Not Modified";
      head.headers = notModifiedHeaders(head.headers);
      return withChunks(body, []);
    };
    return new DeferredStart(startResponse, change).run(inner, environ);
  };
}

/** The hash of a body, in base64: at once with Node's modules, else as a promise. */
function digest(body: Uint8Array[]): string | Promise<string> {
  if (!hasNodeModules()) {
    return crypto.subtle.digest("SHA-1", concat(body) as Uint8Array<ArrayBuffer>)
      .then((hash) => btoa(String.fromCharCode(...new Uint8Array(hash))));
  }
  return process.getBuiltinModule("node:crypto").hash("sha1", concat(body), "base64");
}

// #endregion

// #region limitBody

/**
 * Options for {@linkcode limitBody}.
 *
 * @example
 * ```ts
 * import type { LimitBodyOptions } from "./mod.ts";
 *
 * const options: LimitBodyOptions = { maxBodySize: 10 * 1024 * 1024 };
 * ```
 */
export interface LimitBodyOptions {
  /**
   * The size of the largest request body, in bytes.
   *
   * @default {1048576}
   */
  maxBodySize?: number | undefined;
}

const LIMIT_BODY_OPTIONS: OptionChecks<LimitBodyOptions> = { maxBodySize: [integerFrom(0), "a number of bytes"] };

/**
 * Responds with 413 to requests whose body is too large: at once if Content-Length says so, else when too much is read.
 *
 * Then the application's `read` rejects with an error whose `status` is 413. If the application does not handle it, and
 * no byte has left, the response is made here. RFC 9110, section 15.5.14.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The limit.
 * @returns The application, which cannot read more than that.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { limitBody, toFetch } from "./mod.ts";
 *
 * const handler = toFetch(limitBody(() => [], { maxBodySize: 2 }));
 * const headers = { "Content-Length": "4" };
 * const response = await handler(new Request("http://localhost/", { method: "POST", body: "four", headers }));
 * assert.equal(response.status, 413);
 * ```
 */
export function limitBody(app: ApplicationLike, options: LimitBodyOptions = {}): Application {
  checkOptions(options, LIMIT_BODY_OPTIONS);
  const { maxBodySize = 1024 * 1024 } = options;
  const inner = application(app);
  return (environ, startResponse) => {
    const { CONTENT_LENGTH } = environ;
    if (Number(CONTENT_LENGTH) > maxBodySize) return refuse(environ, startResponse, bodyTooLarge(maxBodySize));
    if (/^\d+$/.test(CONTENT_LENGTH ?? "")) return inner(environ, startResponse); // the server lets no more through
    const input = new LimitedInput(environ["wsgi.input"], maxBodySize);
    const recover = (error: unknown) => {
      if (!input.error || error !== input.error) throw error;
      return refuse(environ, startResponse, input.error);
    };
    environ["wsgi.input"] = input;
    return catching(() => mapMaybe(inner(environ, startResponse), (body) => withHooks(body, { recover })), recover);
  };
}

/** `wsgi.input` with a limit. */
class LimitedInput implements InputStream {
  /** The error that was thrown because the body is too large. */
  error: (RangeError & Refusal) | undefined;
  readonly #input: InputStream;
  readonly #maxBodySize: number;
  /** The bytes that may still be read, plus one. At 0 the body is too large. */
  #remaining: number;

  constructor(input: InputStream, maxBodySize: number) {
    this.#input = input;
    this.#maxBodySize = maxBodySize;
    this.#remaining = maxBodySize + 1;
  }

  read(size = -1): Promise<Uint8Array> {
    return this.#count(this.#input.read(this.#atMost(size)));
  }

  read1(size = -1): Promise<Uint8Array> {
    return this.#count(readAtHand(this.#input, this.#atMost(size)));
  }

  readline(size = -1): Promise<Uint8Array> {
    return this.#count(this.#input.readline(this.#atMost(size)));
  }

  readlines(hint?: number): Promise<Uint8Array[]> {
    return handled(this.#readLines(hint));
  }

  async #readLines(hint = 0): Promise<Uint8Array[]> {
    const lines: Uint8Array[] = [];
    let size = 0;
    for await (const line of this) {
      lines.push(line);
      size += line.length;
      if (hint > 0 && size >= hint) break;
    }
    return lines;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    for (let line = await this.readline(); line.length > 0; line = await this.readline()) yield line;
  }

  #atMost(size: number): number {
    return size < 0 ? this.#remaining : Math.min(size, this.#remaining);
  }

  #count(reading: Promise<Uint8Array>): Promise<Uint8Array> {
    return handled(reading.then((bytes) => {
      this.#remaining -= bytes.length;
      if (this.#remaining > 0) return bytes;
      throw this.error ??= bodyTooLarge(this.#maxBodySize);
    }));
  }
}

// #endregion

// #region timeout

/**
 * Options for {@linkcode timeout}.
 *
 * @example
 * ```ts
 * import type { TimeoutOptions } from "./mod.ts";
 *
 * const options: TimeoutOptions = { milliseconds: 5000 };
 * ```
 */
export interface TimeoutOptions {
  /**
   * How long an application may take to call `startResponse`, in milliseconds.
   *
   * @default {30000}
   */
  milliseconds?: number | undefined;
}

const TIMEOUT_OPTIONS: OptionChecks<TimeoutOptions> = { milliseconds: [isNotNegative, "a number"] };

/**
 * Responds with 504 when the application does not start its response in time.
 *
 * Then the signal in its `fetch.context` aborts, and a body that it still returns is closed. A line on `wsgi.errors` names
 * the request, at most every ten seconds. A response that has been started is not limited. It belongs inside
 * {@linkcode compress} and {@linkcode conditional}, which defer the call of `startResponse` until there is a body. RFC 9110,
 * section 15.6.5.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The limit.
 * @returns The application, whose responses start in time.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { timeout, toFetch } from "./mod.ts";
 *
 * const app = timeout(() => new Promise(() => {}), { milliseconds: 10 });
 * assert.equal((await toFetch(app)(new Request("http://localhost/"))).status, 504);
 * ```
 */
export function timeout(app: ApplicationLike, options: TimeoutOptions = {}): Application {
  checkOptions(options, TIMEOUT_OPTIONS);
  const { milliseconds = 30_000 } = options;
  const inner = application(app);
  const warn = rateLimitedWarning();
  return (environ, startResponse) => new Deadline(environ, startResponse, warn).run(inner, milliseconds);
}

/** One request, whose response must be started in time. */
class Deadline implements BodyHooks {
  readonly #environ: WithErrorPage;
  readonly #startResponse: StartResponse;
  readonly #warn: Warn;
  /** That of the `errorPage` outside. One inside leaves its own in the environ. */
  readonly #page: RespondToError | undefined;
  /** Rejects when the time is up. It is made when the application has not started the response at once. */
  #expired: Promise<never> | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Made when the application reads its signal. */
  #controller: AbortController | undefined;
  /** The error that the time is up. */
  #error: (DOMException & Refusal) | undefined;
  #isStarted = false;
  #cancel: (() => Promise<void>) | undefined;
  #hasClose = false;
  /** Whether the body has been closed by a method of its own, which may make pending reads fail. */
  #isClosed = false;

  constructor(environ: WithErrorPage, startResponse: StartResponse, warn: Warn) {
    this.#environ = environ;
    this.#startResponse = startResponse;
    this.#warn = warn;
    const { "fetch.context": context, [ERROR_PAGE]: page } = environ;
    this.#page = page;
    if (context) environ["fetch.context"] = new DeadlineContext(context, () => this.#signal());
  }

  run(app: Application, milliseconds: number): ResponseBody | Promise<ResponseBody> {
    return catching(
      () => this.#onReturn(app(this.#environ, this.#start), milliseconds),
      (error) => this.recover(error),
    );
  }

  readonly #start: StartResponse = (status, headers, error) => {
    if (this.#error) throw this.#error;
    const write = this.#startResponse(status, headers, error);
    this.#isStarted = true;
    clearTimeout(this.#timer);
    return write;
  };

  /** Waits for the body, and for its chunks, until the response is started or the time is up. */
  #onReturn(result: ResponseBody | Promise<ResponseBody>, milliseconds: number): ResponseBody | Promise<ResponseBody> {
    if (this.#isStarted || Array.isArray(result)) return result;
    this.#expired = handled(
      new Promise((_resolve, reject) => {
        this.#timer = setTimeout(() => this.#expire(milliseconds, reject), Math.min(milliseconds, MAX_DELAY));
      }),
    );
    const returned = Promise.resolve(result);
    returned.then((body) => {
      if (this.#error) cancelBody(body).catch(this.#onLateError);
    }, () => {});
    return this.#orTimeout(returned).then((body) => {
      if (this.#isStarted) return body;
      this.#hasClose = body?.close !== undefined;
      const hooked = withHooks(body, this);
      if (hooked === body || Array.isArray(body)) clearTimeout(this.#timer);
      return hooked;
    });
  }

  pull(ask: () => Promise<ChunkResult>, cancel: () => Promise<void>): Promise<ChunkResult> {
    this.#cancel = cancel;
    return this.#isStarted ? ask() : this.#orTimeout(ask());
  }

  recover(error: unknown): ResponseBody | Promise<ResponseBody> {
    clearTimeout(this.#timer);
    if (!this.#error || error !== this.#error) throw error;
    this.#isStarted = true;
    this.#environ[ERROR_PAGE] = this.#page;
    return refuse(this.#environ, this.#startResponse, this.#error);
  }

  close(inner: () => void | Promise<void>): void | Promise<void> {
    clearTimeout(this.#timer);
    this.#isClosed = this.#hasClose;
    return inner();
  }

  async #orTimeout<Value>(value: Promise<Value>): Promise<Value> {
    value.catch(this.#onLateError);
    return await Promise.race([value, this.#expired!]);
  }

  #expire(milliseconds: number, reject: (error: unknown) => void): void {
    const message = `The response was not started in ${milliseconds} ms`;
    this.#error = Object.assign(new DOMException(message, "TimeoutError"), { status: 504 });
    this.#warn(this.#environ, "timeout gave up on", `its response was not started in ${milliseconds} ms`);
    reject(this.#error); // first, so that a response to the signal comes too late
    this.#controller?.abort(this.#error);
    this.#cancel?.().catch(this.#onLateError);
  }

  readonly #onLateError = (error: unknown): void => {
    const isOwn = error === this.#error || isAbortError(error);
    if (this.#error && !isOwn && !this.#isClosed) logFailure(this.#environ, error);
  };

  #signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#error) this.#controller.abort(this.#error);
    return this.#controller.signal;
  }
}

/** `fetch.context`, whose signal aborts also when the time is up. */
class DeadlineContext implements FetchContext {
  readonly request: Request;
  readonly #context: FetchContext;
  readonly #deadline: () => AbortSignal;
  #signal: AbortSignal | undefined;

  constructor(context: FetchContext, deadline: () => AbortSignal) {
    this.request = context.request;
    this.#context = context;
    this.#deadline = deadline;
  }

  get signal(): AbortSignal {
    return this.#signal ??= AbortSignal.any([this.#context.signal, this.#deadline()]);
  }

  get draining(): boolean {
    return this.#context.draining;
  }

  get stopping(): AbortSignal {
    return this.#context.stopping;
  }

  waitUntil(work: Promise<unknown>): void {
    this.#context.waitUntil(work);
  }
}

// #endregion

// #region limitConcurrency

/**
 * Options for {@linkcode limitConcurrency}.
 *
 * @example
 * ```ts
 * import type { LimitConcurrencyOptions } from "./mod.ts";
 *
 * const options: LimitConcurrencyOptions = { max: 100, queue: 1000 };
 * ```
 */
export interface LimitConcurrencyOptions {
  /** How many requests may be inside the application at once. PEP 3333's serial mode is 1. */
  max: number;
  /**
   * How many more may wait for a place.
   *
   * @default {Infinity}
   */
  queue?: number | undefined;
}

const LIMIT_CONCURRENCY_OPTIONS: OptionChecks<LimitConcurrencyOptions> = {
  max: [integerFrom(1), "an integer of at least 1"],
  queue: [integerFrom(0), "an integer of at least 0"],
};

// How long a cleanup may keep a place, in milliseconds. Otherwise clients that leave could take all places with cleanups
// that never end.
const CLEANUP_TIMEOUT = 5000;

/**
 * Limits how many requests are inside the application at once. The others wait, and enter in the order of their arrival.
 *
 * A request is inside until its generator and its `close` have ended, but at most until 5 seconds after `close` was
 * called. The application is not called for a client that leaves while it waits. Responds with 503 and Retry-After to
 * requests for which the queue is full. A stopping server still serves what waits, until its deadline. In each worker
 * thread the limit holds by itself.
 *
 * It belongs inside {@linkcode health}, and around the routes that need it: an open stream keeps its place. On Cloudflare
 * no request can wait for another one, so that `queue` has to be 0. PEP 3333, "Thread Support"; RFC 9110, section 15.6.4.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The limits.
 * @returns The application, with so many requests inside at the most.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { limitConcurrency, toFetch } from "./mod.ts";
 *
 * const handler = toFetch(limitConcurrency(() => new Promise(() => {}), { max: 1, queue: 0 }));
 * handler(new Request("http://localhost/"));
 * const response = await handler(new Request("http://localhost/"));
 * assert.equal(response.status, 503);
 * assert.equal(response.headers.get("Retry-After"), "1");
 * ```
 */
export function limitConcurrency(app: ApplicationLike, options: LimitConcurrencyOptions): Application {
  checkOptions(options, LIMIT_CONCURRENCY_OPTIONS);
  const { max, queue = Infinity } = options;
  if (max === undefined) throw optionError("max", max, "an integer of at least 1");
  const { navigator } = globalThis as { navigator?: { userAgent?: string } };
  if (queue > 0 && navigator?.userAgent === "Cloudflare-Workers") {
    throw new TypeError('Cannot use option "queue" above 0: on Cloudflare no request can wait for another one');
  }
  const inner = application(app);
  const places = new Places(max, queue);
  const refusal: Refusal = { status: 503, message: "Too many requests wait", headers: [["Retry-After", "1"]] };
  return (environ, startResponse) =>
    mapMaybe(
      places.take(environ["fetch.context"]),
      (isTaken) => isTaken ? places.hold(() => inner(environ, startResponse)) : refuse(environ, startResponse, refusal),
    );
}

/** The places inside an application, and the requests that wait for one. */
class Places {
  readonly #max: number;
  readonly #maxWaiting: number;
  readonly #waiting = new Set<(isTaken: true) => void>();
  /** Goes through the waiting ones, each once: a look from the beginning passes by all that are gone. */
  #queue = this.#waiting.values();
  #taken = 0;

  constructor(max: number, maxWaiting: number) {
    this.#max = max;
    this.#maxWaiting = maxWaiting;
  }

  /** Takes a place, now or later. False for a request to refuse; the promise rejects when the client leaves. */
  take(context: FetchContext | undefined): boolean | Promise<boolean> {
    if (this.#taken < this.#max) {
      this.#taken++;
      return true;
    }
    if (this.#waiting.size >= this.#maxWaiting) return false;
    return new Promise((resolve, reject) => {
      const signal = context?.signal;
      signal?.throwIfAborted();
      this.#waiting.add(resolve);
      signal?.addEventListener("abort", () => {
        this.#waiting.delete(resolve);
        reject(signal.reason);
      });
    });
  }

  /** Calls the application, which has its place until its body and `close` have ended. */
  hold(call: () => ResponseBody | Promise<ResponseBody>): ResponseBody | Promise<ResponseBody> {
    return catching(() => mapMaybe(call(), (body) => this.#watch(body)), (error) => {
      this.#release();
      throw error;
    });
  }

  /** Passes a body on, and releases the place at its end. `withHooks` would not tell when a generator has returned. */
  #watch(body: ResponseBody): ResponseBody {
    if (!isIterableBody(body)) {
      this.#release();
      return body; // the server refuses it
    }
    const cleanups: unknown[] = [];
    const track = <Result>(result: Result): Result => {
      if (isPromise(result)) cleanups.push(result);
      return result;
    };
    let isOpen = true;
    const close = () => {
      try {
        return track(body.close?.());
      } finally {
        if (isOpen) this.#releaseAfter(cleanups);
        isOpen = false;
      }
    };
    if (Array.isArray(body)) return Object.assign([...body], { close });
    const open = () => {
      const chunks = openBody(body);
      return { next: () => chunks.next(), return: () => track(chunks.return?.() ?? END) };
    };
    const kind = Symbol.asyncIterator in body ? Symbol.asyncIterator : Symbol.iterator;
    const watched = { [kind]: open, close } as unknown as ResponseBody;
    return FILE in body ? Object.assign(watched, { [FILE]: true }) : watched;
  }

  #releaseAfter(cleanups: unknown[]): void {
    if (cleanups.length === 0) return this.#release();
    const expired = Promise.withResolvers<void>();
    const timer = setTimeout(expired.resolve, CLEANUP_TIMEOUT);
    timer.unref?.(); // it must not keep the process alive; some runtimes have plain numbers as timers
    Promise.race([Promise.allSettled(cleanups), expired.promise]).then(() => {
      clearTimeout(timer);
      this.#release();
    });
  }

  /** Gives a place to the next request, if one waits. */
  #release(): void {
    const { value: next } = this.#queue.next();
    if (next) {
      this.#waiting.delete(next);
      return next(true);
    }
    this.#queue = this.#waiting.values(); // an iterator that has ended stays at its end
    this.#taken--;
  }
}

// #endregion

// #region requestId

/**
 * Options for {@linkcode requestId}.
 *
 * @example
 * ```ts
 * import type { RequestIdOptions } from "./mod.ts";
 *
 * const options: RequestIdOptions = { trust: ["10.0.0.0/8"] };
 * ```
 */
export interface RequestIdOptions {
  /**
   * The header of the id, in the request and in the response.
   *
   * @default {"X-Request-Id"}
   */
  header?: string | undefined;
  /**
   * The proxies whose ids are kept, as in {@linkcode ProxyFixOptions}.
   *
   * @default {["127.0.0.0/8", "::1"]}
   */
  trust?: string[] | undefined;
}

const REQUEST_ID_OPTIONS: OptionChecks<RequestIdOptions> = {
  header: [matching(/^[a-z\d-]+$/i), 'a header name such as "X-Request-Id"'],
  trust: [arrayOf(isString), "an array of addresses"],
};

/**
 * Gives each request an id: in the environ as `request.id` and as the header, in the response, in the access log, and in
 * the reports about the request on `wsgi.errors`.
 *
 * The id of a trusted proxy is kept if it has at most 128 letters, digits and `_.+/=:-`. All others get a random UUID.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The header and the trusted proxies.
 * @returns The application, whose requests have ids.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { requestId, toFetch } from "./mod.ts";
 *
 * const handler = toFetch(requestId((environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(environ["request.id"])];
 * }));
 * const response = await handler(new Request("http://localhost/"));
 * assert.equal(await response.text(), response.headers.get("X-Request-Id"));
 * ```
 */
export function requestId(app: ApplicationLike, options: RequestIdOptions = {}): Application {
  checkOptions(options, REQUEST_ID_OPTIONS);
  const { header = "X-Request-Id", trust = LOOPBACK } = options;
  const variable = `HTTP_${header.toUpperCase().replaceAll("-", "_")}` as const;
  const isTrusted = trustCheck(trust);
  const inner = application(app);
  return (environ, startResponse) => {
    const { [variable]: given = "", "proxy_fix.original": original = environ } = environ;
    const isKept = /^[\w.+/=:-]{1,128}$/.test(given) && isTrusted(original.REMOTE_ADDR);
    const id = isKept ? given : crypto.randomUUID();
    environ[variable] = id;
    environ["request.id"] = id;
    const request: (Request & { [REQUEST_ID]?: string }) | undefined = environ["fetch.context"]?.request;
    if (request) request[REQUEST_ID] = id;
    return inner(environ, mapStart(startResponse, (headers) => setHeader(headers, header, id)));
  };
}

// #endregion

// #region cors

/**
 * Options for {@linkcode cors}.
 *
 * @example
 * ```ts
 * import type { CorsOptions } from "./mod.ts";
 *
 * const options: CorsOptions = { origin: ["https://example.com"], credentials: true, maxAge: 600 };
 * ```
 */
export interface CorsOptions {
  /**
   * The origins that may read responses: one, several, or `"*"` for all. They are compared in the form that browsers send:
   * in lower case and ASCII, without the default port of their scheme.
   *
   * @default {"*"}
   */
  origin?: string | string[] | undefined;
  /**
   * The methods they may use.
   *
   * @default {["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]}
   */
  methods?: string[] | undefined;
  /** The request headers they may send. The default is any header. */
  headers?: string[] | undefined;
  /** The response headers they may read, beside the few that every page may read: names, or `["*"]` for all. */
  exposeHeaders?: string[] | undefined;
  /**
   * Whether they may send credentials, such as cookies. This cannot be allowed to all origins. To a request that has
   * credentials, `"*"` is the name of one header or method and does not stand for all.
   *
   * @default {false}
   */
  credentials?: boolean | undefined;
  /** How long a browser may cache the response to a preflight, in seconds. */
  maxAge?: number | undefined;
}

const CORS_OPTIONS: OptionChecks<CorsOptions> = {
  origin: [(value) => isString(value) || arrayOf(isString)(value), "an origin, or an array of origins"],
  methods: [arrayOf(matching(TOKEN)), 'an array of methods such as "GET"'],
  headers: [arrayOf(matching(TOKEN)), 'an array of header names such as "Content-Type"'],
  exposeHeaders: [arrayOf(matching(TOKEN)), 'an array of header names such as "X-Request-Id"'],
  credentials: [isBoolean, "true or false"],
  maxAge: [Number.isInteger, "a number of seconds"],
};

/**
 * Lets pages of other origins use the application (Fetch, section 3.3).
 *
 * Responds to preflights, and adds the CORS headers to all other responses. It belongs outside middleware that responds
 * by itself, such as {@linkcode errorPage} and {@linkcode basicAuth}: pages could not read these responses otherwise.
 *
 * @throws {TypeError} When an option is unknown or invalid, when all origins may send credentials, or when `app` is not an
 * application.
 *
 * @param app The application.
 * @param options The options. By default all origins may send any request without credentials.
 * @returns The application, open to these origins.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { cors, runApplication, testEnviron } from "./mod.ts";
 *
 * const app = cors(() => [], { origin: "https://example.com" });
 * const { status, headers } = await runApplication(
 *   app,
 *   testEnviron({
 *     REQUEST_METHOD: "OPTIONS",
 *     HTTP_ORIGIN: "https://example.com",
 *     HTTP_ACCESS_CONTROL_REQUEST_METHOD: "PUT",
 *   }),
 * );
 * assert.equal(status, "204 No Content");
 * assert.deepEqual(headers.find(([name]) => name === "Access-Control-Allow-Origin")?.[1], "https://example.com");
 * ```
 */
export function cors(app: ApplicationLike, options: CorsOptions = {}): Application {
  checkOptions(options, CORS_OPTIONS);
  const { credentials = false, exposeHeaders = [], headers: allowedHeaders, maxAge } = options;
  const { origin = "*", methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] } = options;
  const origins = [origin].flat().map(normalizeOrigin);
  const isPublic = origins.includes("*");
  if (isPublic && credentials) {
    throw new TypeError(`Cannot use option "credentials": origin is "*", expected the origins that may have them`);
  }
  const inner = application(app);
  return (environ, startResponse) => {
    const { HTTP_ORIGIN: origin, HTTP_ACCESS_CONTROL_REQUEST_METHOD: method } = environ;
    const isAllowed = isPublic || origins.includes(origin?.toLowerCase() ?? "");
    const addOrigin = (headers: HeaderList) => {
      headers = omitHeaders(headers, "access-control-allow-origin", "access-control-allow-credentials");
      if (!isPublic) headers = addVary(headers, "Origin");
      if (!isAllowed) return headers;
      headers = setHeader(headers, "Access-Control-Allow-Origin", isPublic ? "*" : origin!);
      return credentials ? setHeader(headers, "Access-Control-Allow-Credentials", "true") : headers;
    };
    if (environ.REQUEST_METHOD !== "OPTIONS" || origin === undefined || method === undefined) {
      const exposed: HeaderList = isAllowed && exposeHeaders.length > 0
        ? [["Access-Control-Expose-Headers", exposeHeaders.join(", ")]]
        : [];
      return inner(environ, mapStart(startResponse, (headers) => [...addOrigin(headers), ...exposed]));
    }
    const requested = parseList(environ.HTTP_ACCESS_CONTROL_REQUEST_HEADERS ?? "");
    const areNames = requested.every((name) => TOKEN.test(name));
    const allowed = allowedHeaders ? allowedHeaders.join(", ") : areNames ? requested.join(",") : "";
    const headers = [...addOrigin(allowedHeaders ? [] : [["Vary", "Access-Control-Request-Headers"]])];
    if (isAllowed) {
      headers.push(["Access-Control-Allow-Methods", methods.join(", ")]);
      if (allowed) headers.push(["Access-Control-Allow-Headers", allowed]);
      if (maxAge !== undefined) headers.push(["Access-Control-Max-Age", String(maxAge)]);
    }
    startResponse("204 No Content", headers);
    return [];
  };
}

/** An origin as browsers send it: RFC 6454, section 4. */
function normalizeOrigin(origin: string): string {
  if (origin === "*" || origin === "null") return origin;
  const url = /^[a-z][a-z\d+.-]*:\/\/[^/?#@\\*\s]+$/i.test(origin) ? URL.parse(origin) : null;
  if (!url) throw optionError("origin", origin, 'an origin such as "https://example.com", or "*"');
  return url.origin === "null" ? origin.toLowerCase() : url.origin; // "null" for a scheme that URL does not know
}

// #endregion

// #region secureHeaders

/**
 * Options for {@linkcode secureHeaders}.
 *
 * @example
 * ```ts
 * import type { SecureHeadersOptions } from "./mod.ts";
 *
 * const options: SecureHeadersOptions = { headers: { "X-Frame-Options": "DENY", "Referrer-Policy": false } };
 * ```
 */
export interface SecureHeadersOptions {
  /** Headers to replace or to add, and those to omit, with `false`. */
  headers?: Record<string, string | false> | undefined;
}

const SECURE_HEADERS_OPTIONS: OptionChecks<SecureHeadersOptions> = {
  headers: [recordOf((value) => isString(value) || value === false), "values by header name, or false for none"],
};

// These are safe for any page: none of them keeps a page from loading what it loads without them.
const SECURE_HEADERS: HeaderList = [
  ["Content-Security-Policy", "base-uri 'self'; frame-ancestors 'self'; object-src 'none'"],
  ["Cross-Origin-Opener-Policy", "same-origin"],
  ["Cross-Origin-Resource-Policy", "same-origin"],
  ["Referrer-Policy", "strict-origin-when-cross-origin"],
  ["Strict-Transport-Security", "max-age=31536000"],
  ["X-Content-Type-Options", "nosniff"],
  ["X-Frame-Options", "SAMEORIGIN"],
];

/**
 * Adds the headers that make browsers protect a page and its visitors:
 *
 * | name                           | value                                                             |
 * | ------------------------------ | ----------------------------------------------------------------- |
 * | `Content-Security-Policy`      | `base-uri 'self'; frame-ancestors 'self'; object-src 'none'`      |
 * | `Cross-Origin-Opener-Policy`   | `same-origin`                                                     |
 * | `Cross-Origin-Resource-Policy` | `same-origin`                                                     |
 * | `Referrer-Policy`              | `strict-origin-when-cross-origin`                                 |
 * | `Strict-Transport-Security`    | `max-age=31536000`                                                |
 * | `X-Content-Type-Options`       | `nosniff`                                                         |
 * | `X-Frame-Options`              | `SAMEORIGIN`                                                      |
 *
 * Headers of the application are kept. `Strict-Transport-Security` is only sent over TLS (RFC 6797, section 7.2).
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, whose responses have these headers.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { runApplication, secureHeaders, type StartResponse, testEnviron } from "./mod.ts";
 *
 * const app = secureHeaders((_environ: unknown, startResponse: StartResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/html"]]);
 *   return [];
 * });
 * const { headers } = await runApplication(app, testEnviron());
 * assert(headers.some(([name, value]) => name === "X-Content-Type-Options" && value === "nosniff"));
 * ```
 */
export function secureHeaders(app: ApplicationLike, options: SecureHeadersOptions = {}): Application {
  checkOptions(options, SECURE_HEADERS_OPTIONS);
  let secure = SECURE_HEADERS;
  for (const [name, value] of Object.entries(options.headers ?? {})) {
    secure = value === false ? omitHeaders(secure, name) : setHeader(secure, name, value);
  }
  checkHead("200 OK", secure, (_section, found, expected) => {
    throw new TypeError(`Cannot use option "headers": ${found}, expected ${expected}`);
  });
  const plain = omitHeaders(secure, "strict-transport-security");
  const inner = application(app);
  return (environ, startResponse) => {
    const added = environ["wsgi.url_scheme"] === "https" ? secure : plain;
    return inner(environ, mapStart(startResponse, (headers) => addMissing(headers, added)));
  };
}

// #endregion

// #region basicAuth

/**
 * Options for {@linkcode basicAuth}: either `users` or `check`.
 *
 * @example
 * ```ts
 * import type { BasicAuthOptions } from "./mod.ts";
 *
 * const options: BasicAuthOptions = { realm: "Kitchen", users: { cook: "salt" } };
 * ```
 */
export interface BasicAuthOptions {
  /**
   * The realm shown in the password prompt.
   *
   * @default {"Restricted"}
   */
  realm?: string | undefined;
  /** Passwords by user. They are compared in constant time. */
  users?: Record<string, string> | undefined;
  /**
   * Checks a user and a password. It should compare in constant time.
   *
   * @param user The user's name.
   * @param password The password.
   * @returns Whether they are right.
   */
  check?: ((user: string, password: string) => boolean | Promise<boolean>) | undefined;
}

const BASIC_AUTH_OPTIONS: OptionChecks<BasicAuthOptions> = {
  realm: [matching(/^[\x20-\x7e]*$/), "printable ASCII"],
  users: [recordOf(isString), 'passwords by user, such as { ada: "secret" }'],
  check: [isFunction, "a function"],
};

/**
 * Asks for a user and a password (RFC 7617), and responds with 401 until they are right.
 *
 * Sets REMOTE_USER and AUTH_TYPE. Use it over TLS only: passwords are not encrypted.
 *
 * @throws {TypeError} When an option is unknown or invalid, when there is neither or both of `users` and `check`, or when
 * `app` is not an application.
 * @throws {Error} When there are `users`, and the runtime has no `node:crypto`.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, for these users only.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { basicAuth, toFetch } from "./mod.ts";
 *
 * const handler = toFetch(basicAuth((environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(environ.REMOTE_USER)];
 * }, { users: { cook: "salt" } }));
 * const headers = { Authorization: `Basic ${btoa("cook:salt")}` };
 * assert.equal(await (await handler(new Request("http://localhost/", { headers }))).text(), "cook");
 * assert.equal((await handler(new Request("http://localhost/"))).status, 401);
 * ```
 */
export function basicAuth(app: ApplicationLike, options: BasicAuthOptions): Application {
  checkOptions(options, BASIC_AUTH_OPTIONS);
  const { realm = "Restricted", users, check = users && passwordCheck(users) } = options;
  if (!check || users && options.check) {
    throw new TypeError('Cannot check passwords: expected either "users" or "check"');
  }
  const challenge = `Basic realm="${realm.replace(/["\\]/g, "\\$&")}", charset="UTF-8"`;
  const refusal: Refusal = {
    status: 401,
    message: `Cannot log in to ${inspect(realm)}: expected a user and the right password`,
    headers: [["WWW-Authenticate", challenge]],
  };
  const inner = application(app);
  return (environ, startResponse) => {
    const deny = () => refuse(environ, startResponse, refusal);
    const credentials = parseBasicAuth(environ.HTTP_AUTHORIZATION);
    if (!credentials) return deny();
    const [user, password] = credentials;
    return mapMaybe(check(user, password), (isRight) => {
      if (isRight !== true) return deny();
      environ.REMOTE_USER = toNativeString(user);
      environ.AUTH_TYPE = "Basic";
      return inner(environ, startResponse);
    });
  };
}

function parseBasicAuth(authorization = ""): [user: string, password: string] | undefined {
  const [, encoded = ""] = /^basic +(\S+) *$/i.exec(authorization) ?? [];
  const text = safely(() => fromNativeString(atob(encoded)), "");
  const colon = text.indexOf(":");
  // deno-lint-ignore no-control-regex
  return colon === -1 || /[\0-\x1f\x7f]/.test(text) ? undefined : [text.slice(0, colon), text.slice(colon + 1)];
}

/** Makes a check that takes as long for an unknown user as for a wrong password. */
function passwordCheck(users: Record<string, string>): NonNullable<BasicAuthOptions["check"]> {
  requireNodeModule("node:crypto", 'check passwords by option "users"');
  const { hash, timingSafeEqual } = process.getBuiltinModule("node:crypto");
  const digest = (text: string) => hash("sha256", text, "buffer");
  const nobody = new Uint8Array(32); // the hash of no password
  const digests = new Map(Object.entries(users).map(([user, password]) => [user, digest(password)]));
  return (user, password) => timingSafeEqual(digest(password), digests.get(user) ?? nobody);
}

// #endregion

// #region health

/**
 * Options for {@linkcode health}.
 *
 * @example
 * ```ts
 * import type { HealthOptions } from "./mod.ts";
 *
 * const options: HealthOptions = { live: "/healthz", check: () => true };
 * ```
 */
export interface HealthOptions {
  /**
   * The path of the liveness check.
   *
   * @default {"/livez"}
   */
  live?: string | undefined;
  /**
   * The path of the readiness check.
   *
   * @default {"/readyz"}
   */
  ready?: string | undefined;
  /**
   * Checks what the application depends on.
   *
   * @returns Whether the application is ready.
   */
  check?: (() => boolean | Promise<boolean>) | undefined;
}

const HEALTH_OPTIONS: OptionChecks<HealthOptions> = {
  live: [matching(/^\//), 'a path such as "/livez"'],
  ready: [matching(/^\//), 'a path such as "/readyz"'],
  check: [isFunction, "a function"],
};

/**
 * Responds to liveness and readiness checks, without calling the application.
 *
 * The process is not ready while the server is stopping, and when `check` returns false or fails, which is logged. It
 * belongs outside {@linkcode limitConcurrency}, where these checks would wait like all other requests.
 *
 * @throws {TypeError} When an option is unknown or invalid, or `app` is not an application.
 *
 * @param app The application.
 * @param options The options.
 * @returns The application, with these checks.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { health, runApplication, testEnviron } from "./mod.ts";
 *
 * const app = health(() => [], { check: () => false });
 * assert.equal((await runApplication(app, testEnviron({ PATH_INFO: "/livez" }))).status, "200 OK");
 * assert.equal((await runApplication(app, testEnviron({ PATH_INFO: "/readyz" }))).status, "503 Service Unavailable");
 * ```
 */
export function health(app: ApplicationLike, options: HealthOptions = {}): Application {
  checkOptions(options, HEALTH_OPTIONS);
  const { live = "/livez", ready = "/readyz", check = () => true } = options;
  const inner = application(app);
  return (environ, startResponse) => {
    const { PATH_INFO: path, REQUEST_METHOD: method } = environ;
    if (method !== "GET" && method !== "HEAD" || path !== live && path !== ready) return inner(environ, startResponse);
    const respond = (isHealthy: boolean) => {
      const status = isHealthy ? "200 OK" : "503 Service Unavailable";
      return respondWith(startResponse, status, [["Cache-Control", "no-store"]]);
    };
    const isDraining = () => environ["fetch.context"]?.draining ?? false;
    if (path === live) return respond(true);
    if (isDraining()) return respond(false);
    const result = catching(check, (error) => {
      logFailure(environ, error, "Health check");
      return false;
    });
    return mapMaybe(result, (isReady) => respond(isReady && !isDraining()));
  };
}

// #endregion

// #region validator

// Headings of PEP 3333.
const SECTION = {
  application: "The Application/Framework Side",
  environ: "environ Variables",
  streams: "Input and Error Streams",
  start: "The start_response() Callable",
  write: "The write() Callable",
  length: "Handling the Content-Length Header",
  blocks: "Middleware Handling of Block Boundaries",
  buffering: "Buffering and Streaming",
  details: "Specification Details",
  strings: "Unicode Issues",
  http: "Other HTTP Features",
} as const;

/** Throws the error that says what was found and what was expected. */
type ReportViolation = (section: keyof typeof SECTION, found: string, expected: string) => never;

/** Blames one side. Between two validators, the middleware is blamed in place of server and application. */
type Fail = (side: "inside" | "outside", ...violation: Parameters<ReportViolation>) => never;

const REQUEST_CHECK = Symbol("validator"); // a symbol, so that the application does not find it among the variables

/**
 * Throws an error for every rule of the interface that either side breaks, as Python's `wsgiref.validate`.
 *
 * The error says which side broke the rule, what was found and what is expected, and names the section of PEP 3333. A
 * second validator on the other side of a middleware checks that as well: `validator(middleware(validator(app)))`.
 *
 * A mistake of the application throws at once, and again at the server if the application catches the error. A middleware
 * that makes a mistake before it has called the inner application is taken for an application.
 *
 * @throws {TypeError} When `app` is not an application.
 *
 * @param app The application.
 * @returns The application, checked.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { runApplication, testEnviron, validator } from "./mod.ts";
 *
 * const app = validator((_environ, startResponse) => {
 *   startResponse("200", [["Content-Type", "text/plain"]]);
 *   return [];
 * });
 * await assert.rejects(async () => await runApplication(app, testEnviron()), {
 *   message: 'The application broke PEP 3333, "The start_response() Callable": ' +
 *     'status "200" has no reason phrase, expected "200 OK"',
 * });
 * ```
 */
export function validator(app: ApplicationLike): Application {
  const inner = application(app);
  return (...call: Parameters<Application>) => {
    const [environ, startResponse] = call as [Environ & { [REQUEST_CHECK]?: RequestCheck }, StartResponse];
    let outer = Object(environ)[REQUEST_CHECK] as RequestCheck | undefined;
    // A middleware may call the application twice, or another one after this one.
    while (outer && (outer.application === inner || outer.isClosed)) outer = outer.outer;
    const check = new RequestCheck(inner, outer);
    if (call.length !== 2 || typeof startResponse !== "function") {
      const found = `the application was called with ${formatArguments(call)}`;
      check.fail("outside", "application", found, "(environ, startResponse)");
    }
    checkEnviron(environ, (...violation) => check.fail("outside", ...violation));
    if (outer) outer.inner = check;
    environ[REQUEST_CHECK] = check;
    environ["wsgi.input"] = new CheckedInput(environ["wsgi.input"], check.fail);
    environ["wsgi.errors"] = checkedErrors(environ["wsgi.errors"], check.fail);
    check.isHead = environ.REQUEST_METHOD === "HEAD";
    return catching(
      () => mapMaybe(inner(environ, check.start(startResponse)), (body) => check.watch(body)),
      (error) => check.failed(error),
    );
  };
}

/** One request in a validator, and the state of its response. */
class RequestCheck implements BodyHooks {
  readonly application: Application;
  /** The check of the next validator outside, for the same request. */
  readonly outer: RequestCheck | undefined;
  /** The check of the next validator inside. */
  inner: RequestCheck | undefined;
  isHead = false;
  hasReturned = false;
  isClosed = false;
  failure: Error | undefined;
  #wasCalled = false;
  #status = "";
  #length: number | undefined;
  #sent = 0;
  #isFile = false;
  #requested = 0;
  #isPending = false;
  /** The application inside, once it has returned a body, which the middleware between must close. */
  #unclosedInner: RequestCheck | undefined;

  constructor(inner: Application, outer: RequestCheck | undefined) {
    this.application = inner;
    this.outer = outer;
  }

  readonly fail: Fail = (side, section, found, expected) => {
    const [neighbour, last] = side === "inside" ? [this.inner, "application"] : [this.outer, "server"];
    const who = neighbour ? "middleware" : last;
    this.failure ??= new Error(`The ${who} broke PEP 3333, "${SECTION[section]}": ${found}, expected ${expected}`);
    throw this.failure;
  };

  /** A `startResponse` that checks its arguments, and a `write` that checks its chunks. */
  start(startResponse: StartResponse): StartResponse {
    return (...call) => {
      this.#checkStart(call);
      const [status, headers, error] = call;
      const write = startResponse(status, headers, error);
      if (typeof write !== "function") {
        this.fail("outside", "write", `startResponse returned ${inspectDeep(write)}`, "a function");
      }
      this.#status = status;
      const length = getHeader(headers, "content-length");
      this.#length = length === undefined ? undefined : Number(length);
      return (chunk) => {
        if (this.hasReturned) this.fail("inside", "write", ...WRITTEN_LATE);
        const writing = write(this.#send(chunk));
        if (!(writing instanceof Promise)) {
          this.fail("outside", "write", `write returned ${inspectDeep(writing)}`, "a promise");
        }
        return writing;
      };
    };
  }

  #checkStart(call: Parameters<StartResponse>): void {
    const [status, headers, error] = call;
    if (call.length < 2 || call.length > 3) {
      this.fail("inside", "start", `startResponse was called with ${formatArguments(call)}`, "2 or 3 arguments");
    }
    if (this.#wasCalled && error === undefined) this.fail("inside", "start", ...startedTwice(status));
    this.#wasCalled = true;
    checkHead(status, headers, (...violation) => this.fail("inside", ...violation));
    const type = getHeader(headers, "content-type");
    if (type !== undefined && hasNullBody(status)) {
      this.fail("inside", "http", `${inspectDeep(status)} came with a Content-Type`, "none without a body");
    }
    if (type === undefined && !/^(?:204|205|3)/.test(status)) {
      this.fail("inside", "http", `${inspectDeep(status)} came without a Content-Type`, "one");
    }
  }

  /** Checks the body that the application has returned, and passes the body on. */
  watch(body: ResponseBody): ResponseBody | Promise<ResponseBody> {
    this.hasReturned = true;
    this.#isFile = FILE in Object(body);
    this.#noteInner();
    return cancelOnError(body, () => {
      if (this.failure) throw this.failure;
      // An application may respond with its input, which is not to be closed with the response.
      const isEcho = body instanceof CheckedInput;
      const checked = withHooks(isEcho ? { [Symbol.asyncIterator]: () => body[Symbol.asyncIterator]() } : body, this);
      if (checked === body) this.fail("inside", "application", ...wrongBody(body));
      if (Array.isArray(body)) {
        for (const chunk of body) this.#send(chunk);
        this.flush();
      }
      return checked;
    });
  }

  /** Checks what a failure before the return of a body leaves behind, and throws the error on. */
  failed(error: unknown): never {
    this.isClosed = true;
    if (this.inner?.hasReturned && !this.inner.isClosed && !this.inner.failure) {
      const found = `it failed with ${inspectDeep(error)} and left the application inside open`;
      this.fail("inside", "details", found, "a call of close");
    }
    throw error;
  }

  async pull(ask: () => Promise<ChunkResult>): Promise<ChunkResult> {
    this.#requested++;
    if (this.isClosed) this.fail("outside", "details", "a chunk was asked for after close", "close to come last");
    if (this.#isPending) {
      this.fail("outside", "buffering", "a chunk was asked for while another was awaited", "one after the other");
    }
    if (this.outer && this.#requested > this.outer.#requested) {
      const found = `chunk ${this.#requested} was asked for ahead of its turn`;
      this.fail("outside", "blocks", found, "each to be passed on first");
    }
    this.#isPending = true;
    try {
      return await ask();
    } finally {
      this.#isPending = false;
    }
  }

  transform(chunk: Uint8Array): Uint8Array {
    this.#noteInner();
    if (this.failure) throw this.failure;
    return this.#send(chunk);
  }

  flush(): Uint8Array {
    this.#noteInner();
    if (this.failure) throw this.failure;
    if (this.#status === "") this.fail("inside", "start", ...NOT_STARTED);
    if (this.#sent < (this.#length ?? 0) && !this.isHead && !hasNullBody(this.#status)) {
      this.fail("inside", "length", `the body has ${this.#sent} bytes`, `${this.#length} as declared`);
    }
    return EMPTY;
  }

  close(close: () => void | Promise<void>, isOpen: () => boolean): void | Promise<void> {
    if (this.isClosed) this.fail("outside", "details", "close was called a second time", "one call");
    this.isClosed = true;
    const check = () => {
      if (isOpen() && !this.outer?.failure) {
        this.fail("outside", "details", "close was called before the end without return of the iterator", "both");
      }
      if (!this.#unclosedInner || this.#unclosedInner.isClosed) return;
      this.fail("inside", "details", "close of the application inside was not called", "a call before this one ends");
    };
    // A generator outside calls return one microtask later, and close does not wait for that.
    return mapMaybe(close(), () => isOpen() ? nextTurn().then(check) : check());
  }

  #send(chunk: Uint8Array): Uint8Array {
    if (!(chunk instanceof Uint8Array)) this.fail("inside", "buffering", ...wrongChunk(chunk));
    if (chunk.length === 0) return chunk;
    const status = this.#status;
    if (status === "") this.fail("inside", "start", ...NOT_STARTED);
    if (hasNullBody(status)) {
      this.fail("inside", "http", `${status} came with a body of ${inspectDeep(chunk)}`, "no body");
    }
    this.#sent += chunk.length;
    if (this.#sent > (this.#length ?? Infinity) && !this.#isFile) {
      this.fail("inside", "length", `the body has ${this.#sent} bytes`, `${this.#length} as declared`);
    }
    return chunk;
  }

  #noteInner(): void {
    if (this.inner?.hasReturned) this.#unclosedInner = this.inner;
  }
}

function formatArguments(values: unknown[]): string {
  return `(${values.map((value) => inspectDeep(value)).join(", ")})`;
}

/** The variables that every environ has. A pattern is for a string. PEP 3333, "environ Variables". */
const VARIABLES: Record<string, [test: RegExp | ((value: unknown) => boolean), expected: string]> = {
  REQUEST_METHOD: [TOKEN, 'a method such as "GET"'],
  SERVER_NAME: [/^./, 'a host such as "localhost"'],
  SERVER_PORT: [/^\d+$/, 'a port such as "80"'],
  SERVER_PROTOCOL: [/^HTTP\/\d(?:\.\d)?$/, 'a protocol such as "HTTP/1.1"'],
  "wsgi.version": [(value) => Array.isArray(value) && value.length === 2 && value[0] === 1 && value[1] === 0, "[1, 0]"],
  "wsgi.url_scheme": [/^https?$/, '"http" or "https"'],
  "wsgi.input": [hasMethods("read", "readline", "readlines", Symbol.asyncIterator), "an input stream"],
  "wsgi.errors": [hasMethods("write", "writelines", "flush"), "an error stream"],
  "wsgi.multithread": [isBoolean, "true or false"],
  "wsgi.multiprocess": [isBoolean, "true or false"],
  "wsgi.run_once": [isBoolean, "true or false"],
};
const OPTIONAL: typeof VARIABLES = {
  SCRIPT_NAME: [/^(?:\/.+)?$/s, 'an empty string or a path such as "/app"'],
  PATH_INFO: [/^(?:\/.*)?$/s, 'an empty string or a path such as "/page"'],
  QUERY_STRING: [/^/, 'an empty string or a query without its question mark, such as "a=b"'],
  REQUEST_URI: [/^./, 'a path and a query such as "/page?a=b"'],
  SERVER_SOFTWARE: [/^./, "a name"],
  "wsgi.input_terminated": [isBoolean, "true or false"],
  "wsgi.file_wrapper": [isFunction, "a function"],
  CONTENT_LENGTH: [/^\d*$/, "a number of bytes"],
  HTTP_CONTENT_LENGTH: [() => false, "CONTENT_LENGTH alone"],
  HTTP_CONTENT_TYPE: [() => false, "CONTENT_TYPE alone"],
};

const ALL_VARIABLES = Object.entries({ ...VARIABLES, ...OPTIONAL });

function hasMethods(...members: PropertyKey[]): (value: unknown) => boolean {
  return (value) => members.every((member) => typeof Object(value)[member] === "function");
}

function checkEnviron(environ: Environ, report: ReportViolation): void {
  const prototype = Object(environ) === environ ? Object.getPrototypeOf(environ) : undefined;
  if (prototype !== Object.prototype && prototype !== null) {
    report("environ", `environ is ${inspectDeep(environ)}`, "an ordinary object");
  }
  if (!Object.isExtensible(environ)) {
    report("environ", "environ is closed to changes", "one for the application to change");
  }
  for (const [name, [test, expected]] of ALL_VARIABLES) {
    if (!(name in environ)) {
      if (name in VARIABLES) report("environ", `${name} is absent`, expected);
      continue;
    }
    const value = environ[name];
    const isRight = test instanceof RegExp ? typeof value === "string" && test.test(value) : test(value);
    if (!isRight) report("environ", `${name} is ${inspectDeep(value)}`, expected);
  }
  if (environ.PATH_INFO === "" && !environ.SCRIPT_NAME) {
    report("environ", 'PATH_INFO is "" where SCRIPT_NAME is "", too', '"/" for the root');
  }
  for (const name of Object.getOwnPropertyNames(environ)) {
    const { value, get } = Object.getOwnPropertyDescriptor(environ, name)!;
    if (get) report("environ", `${name} is computed when it is read`, "a value");
    if (value === undefined) report("environ", `${name} is undefined`, "what is not known to be absent");
    if (name.includes(".")) continue;
    if (typeof value !== "string") report("environ", `${name} is ${inspectDeep(value)}`, "a string");
    if (/[^\0-\xff]/.test(value)) report("strings", `${name} is ${inspectDeep(value)}`, "one character for each byte");
  }
}

function checkHead(status: string, headers: HeaderList, report: ReportViolation): void {
  if (typeof status !== "string" || !STATUS_PATTERN.test(status)) report("start", ...wrongStatus(status));
  if (!Array.isArray(headers)) report("start", ...wrongHeaders(headers));
  const names: string[] = [];
  for (const pair of headers) {
    if (!isPair(pair) || pair.length !== 2) report("start", ...wrongHeader(pair));
    const [name, value] = pair;
    const lower = name.toLowerCase();
    const shown = () => `header ${inspectDeep(name)} has the value ${inspectDeep(value)}`;
    if (!TOKEN.test(name)) report("start", `a header has the name ${inspectDeep(name)}`, "a token");
    if (/[_-]$/.test(name)) report("start", `a header has the name ${inspectDeep(name)}`, 'no "-" or "_" at its end');
    if (lower === "status") report("start", shown(), "the status as the first argument");
    if (HOP_BY_HOP.test(lower)) {
      report("http", `header ${inspectDeep(name)} is hop-by-hop`, "it to be left to the server");
    }
    if (/[^\0-\xff]/.test(value)) report("strings", ...wrongHeaderText(name, value));
    if (!HEADER_VALUE.test(value)) report("start", shown(), "no control characters");
    if (lower === "content-length") {
      if (!/^\d+$/.test(value) || names.includes(lower)) report("length", shown(), "one number of bytes");
      if (status.startsWith("204")) {
        report("length", `${inspectDeep(status)} came with ${shown()}`, "no Content-Length");
      }
    }
    names.push(lower);
  }
}

/** `wsgi.input`, with checks of both sides. */
class CheckedInput implements InputStream {
  readonly #input: InputStream;
  readonly #fail: Fail;

  constructor(input: InputStream, fail: Fail) {
    this.#input = input;
    this.#fail = fail;
  }

  read(...sizes: [size?: number]): Promise<Uint8Array> {
    return handled(this.#checkBytes(this.#input.read(...this.#checkSizes("read", sizes)), sizes[0]));
  }

  read1(...sizes: [size?: number]): Promise<Uint8Array> {
    return handled(this.#checkBytes(readAtHand(this.#input, ...this.#checkSizes("read1", sizes)), sizes[0]));
  }

  readline(...sizes: [size?: number]): Promise<Uint8Array> {
    return handled(this.#checkBytes(this.#input.readline(...this.#checkSizes("readline", sizes)), sizes[0]));
  }

  readlines(...hints: [hint?: number]): Promise<Uint8Array[]> {
    return handled(this.#checkLines(this.#input.readlines(...this.#checkSizes("readlines", hints))));
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    for await (const line of this.#input) yield await this.#checkBytes(line);
  }

  close(): void {
    this.#fail("inside", "streams", "wsgi.input was closed", "it to be left open");
  }

  #checkSizes<Sizes extends unknown[]>(method: string, sizes: Sizes): Sizes {
    const [size] = sizes;
    if (sizes.length > 1 || size !== undefined && size !== Infinity && !Number.isInteger(size)) {
      this.#fail("inside", "streams", `${method} was called with ${formatArguments(sizes)}`, "an integer or nothing");
    }
    return sizes;
  }

  async #checkLines(reading: Promise<Uint8Array[]>): Promise<Uint8Array[]> {
    const lines = await reading;
    if (!Array.isArray(lines)) this.#fail("outside", "streams", `readlines gave ${inspectDeep(lines)}`, "an array");
    return await Promise.all(lines.map((line) => this.#checkBytes(line)));
  }

  async #checkBytes(reading: Uint8Array | Promise<Uint8Array>, size = -1): Promise<Uint8Array> {
    const bytes = await reading;
    if (!(bytes instanceof Uint8Array)) {
      this.#fail("outside", "streams", `wsgi.input gave ${inspectDeep(bytes)}`, "bytes");
    }
    if (size < 0 || bytes.length <= size) return bytes;
    return this.#fail("outside", "streams", `wsgi.input gave ${bytes.length} bytes`, `${size} at the most`);
  }
}

/** `wsgi.errors`, with checks of the application. */
function checkedErrors(errors: ErrorStream, fail: Fail): ErrorStream & { close(): void } {
  const write = (text: string) => {
    if (typeof text !== "string") fail("inside", "streams", `wsgi.errors was given ${inspectDeep(text)}`, "a string");
    errors.write(text);
  };
  return {
    write,
    writelines(lines: Iterable<string>) {
      if (typeof lines === "string" || !(Symbol.iterator in Object(lines))) {
        fail("inside", "streams", `writelines was given ${inspectDeep(lines)}`, "strings");
      }
      for (const line of lines) write(line);
    },
    flush: () => errors.flush(),
    close: () => fail("inside", "streams", "wsgi.errors was closed", "it to be left open"),
  };
}

// #endregion
