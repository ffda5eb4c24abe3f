/**
 * The server side of WSGI: Fetch requests become `environ`, what the application returns becomes a `Response`, and
 * {@linkcode serve} puts both on `Deno.serve` or `Bun.serve`.
 *
 * @module
 */

import type {
  Application,
  ApplicationClass,
  ApplicationLike,
  ApplicationResult,
  Environ,
  ErrorStream,
  FetchContext,
  FetchHandler,
  FileLike,
  HeaderList,
  InputStream,
  ResponseBody,
  ServeOptions,
  Server,
  StartResponse,
  ToEnvironOptions,
  ToFetchOptions,
  WorkersOptions,
  Write,
} from "./mod.ts";

// #region Runtimes

/** The part of `Deno` that the server uses. */
interface DenoRuntime {
  version: { deno: string };
  mainModule: string;
  listenDatagram?: unknown;
  permissions: { querySync(descriptor: { name: string; path: URL }): { state: string } };
  addSignalListener(name: string, listener: () => void): void;
  removeSignalListener(name: string, listener: () => void): void;
  serve(options: object, handler: FetchHandler): DenoServer;
  FsFile: new () => DenoFile;
  lstatSync(path: string): {
    dev: number;
    ino: number;
    isFile: boolean;
    isDirectory: boolean;
    size: number;
    mtime: Date;
    ctime: Date;
  };
}

/** The part of `Deno.HttpServer` that the server uses. */
interface DenoServer {
  addr: { hostname?: string; port?: number };
  finished: Promise<void>;
  shutdown(): Promise<void>;
}

/** The part of `Deno.FsFile` that the server uses. */
interface DenoFile {
  read(block: Uint8Array): Promise<number | null>;
  close(): void | Promise<void>;
}

/** The part of `Bun` that the server uses. */
interface BunRuntime {
  version: string;
  main: string;
  serve(options: object): {
    address?: { address?: string };
    port?: number;
    pendingRequests: number;
    timeout(request: Request, seconds: number): void;
    stop(force?: boolean): Promise<void>;
  };
}

const RUNTIMES = globalThis as unknown as { Deno?: DenoRuntime; Bun?: BunRuntime };
/** @internal */
export const DENO: DenoRuntime | undefined = RUNTIMES.Deno;
const BUN = RUNTIMES.Bun;

/** Whether this is Deno or Bun, and not Node, workerd or a browser. */
const IS_NATIVE = DENO !== undefined || BUN !== undefined;

const VERSION = "0.1.0";
const SOFTWARE = `WSGI/${VERSION}` + (DENO ? ` Deno/${DENO.version.deno}` : BUN ? ` Bun/${BUN.version}` : "");

/** The mark of a body that is a file, which may be longer than declared. Middleware passes the mark on. @internal */
export const FILE: unique symbol = Symbol.for("wsgi.file");

/** Tests for the modules of Node. On Deno the first look at `process` takes longer than the start of a server. @internal */
export function hasNodeModules(): boolean {
  return DENO !== undefined || typeof globalThis.process?.getBuiltinModule === "function";
}

/** Throws where a module of Node is missing. It does not load the module, which takes time on Deno. @internal */
export function requireNodeModule(name: string, purpose: string): void {
  if (!hasNodeModules()) throw new Error(`Cannot ${purpose}: this runtime has no module "${name}"`);
}

// #endregion

// #region Errors and their text

/** The reason phrases of the IANA registry and of RFC 2324, by status. @internal */
export const REASONS: Record<number, string> = Object.fromEntries(
  `200 OK|201 Created|202 Accepted|203 Non-Authoritative Information|204 No Content|205 Reset Content|206 Partial Content|
207 Multi-Status|208 Already Reported|226 IM Used|300 Multiple Choices|301 Moved Permanently|302 Found|303 See Other|
304 Not Modified|305 Use Proxy|307 Temporary Redirect|308 Permanent Redirect|400 Bad Request|401 Unauthorized|
402 Payment Required|403 Forbidden|404 Not Found|405 Method Not Allowed|406 Not Acceptable|
407 Proxy Authentication Required|408 Request Timeout|409 Conflict|410 Gone|411 Length Required|412 Precondition Failed|
413 Content Too Large|414 URI Too Long|415 Unsupported Media Type|416 Range Not Satisfiable|417 Expectation Failed|
418 I'm a Teapot|421 Misdirected Request|422 Unprocessable Content|423 Locked|424 Failed Dependency|425 Too Early|
426 Upgrade Required|428 Precondition Required|429 Too Many Requests|431 Request Header Fields Too Large|
451 Unavailable For Legal Reasons|500 Internal Server Error|501 Not Implemented|502 Bad Gateway|503 Service Unavailable|
504 Gateway Timeout|505 HTTP Version Not Supported|506 Variant Also Negotiates|507 Insufficient Storage|
508 Loop Detected|511 Network Authentication Required`.split(/\|\n?/).map((line) => [line.slice(0, 3), line.slice(4)]),
);
// The errors of the server's own, which have a status. They are not logged.
const HTTP_ERRORS = new WeakMap<object, number>();

/** Gives an error its status, also as a property, for an application or a middleware that catches it. */
function httpError<Fault extends Error>(status: number, error: Fault): Fault & { status: number } {
  HTTP_ERRORS.set(error, status);
  return Object.assign(error, { status });
}

/** The error for a request that a stopping server refuses, and the reason with which `stopping` aborts. */
function serverStopping(): DOMException {
  return httpError(503, new DOMException("The server is stopping", "AbortError"));
}

/** The error for a request body above a limit, in bytes. Its message is for the client. @internal */
export function bodyTooLarge(limit: number): RangeError & { status: number; expose: true } {
  const error = new RangeError(`Cannot read the request body: it has more than the ${limit} bytes allowed`);
  return Object.assign(httpError(413, error), { expose: true } as const);
}

const CLIENT_LEFT = "The client has left";

/** The error for a client that left: the same one on both runtimes. */
function clientDisconnected(cause?: unknown): DOMException {
  return Object.assign(readAborted(CLIENT_LEFT), { cause });
}

function readAborted(message: string): DOMException {
  return httpError(400, new DOMException(message, "AbortError"));
}

/** The message of a read that was still to come when the response ended. */
const READ_TOO_LATE = "Cannot read the request body: the response has ended, expected an await of each read";

/** Tests for the error of work that was aborted: by a signal, or, in a stream of Node's, by `destroy`. @internal */
export function isAbortError(error: unknown): boolean {
  try {
    const { name, code } = Object(error) as { name?: unknown; code?: unknown };
    return name === "AbortError" || code === "ERR_STREAM_PREMATURE_CLOSE";
  } catch {
    return false; // anything can be thrown, and reading its properties can throw
  }
}

function printError(text: string): void {
  try {
    console.error(text);
  } catch {
    // Standard error is closed or full.
  }
}

/** Writes to an error stream, or to standard error where a stream of the deployer's own fails. @internal */
export function writeError(errors: ErrorStream, text: string): void {
  try {
    errors.write(text);
    errors.flush();
  } catch {
    printError(text.trimEnd());
  }
}

/** The key of a request's id, which `requestId` leaves on the `Request`: copies of the environ share it. @internal */
export const REQUEST_ID: unique symbol = Symbol("request id");

/** Names the request of a report by its id, if it has one. Another server has the id only in the environ. @internal */
export function nameRequest(request: (Request & { [REQUEST_ID]?: string }) | undefined, given?: string): string {
  const id = request?.[REQUEST_ID] ?? given;
  return id === undefined ? "" : `, request ${id}`;
}

/** Writes a line about an error to an error stream, with its stack, its causes and a hint. @internal */
export function logError(errors: ErrorStream, message: string, error: unknown, app?: Application): void {
  writeError(errors, `${printable(message)}: ${formatError(error)}${hintFor(error, app)}\n`);
}

/** Explains an error of the runtime that comes of a mistake in WSGI, which the runtime does not know. */
function hintFor(error: unknown, app: Application | undefined): string {
  try {
    const { name, message } = error as Error;
    if (name !== "TypeError" || message.startsWith("Cannot send the response")) return "";
    // Without its second parameter an application cannot start a response.
    if (app?.length === 1) return "\n    Is the application a Fetch handler? Then serve fromFetch(handler)";
    if (!/\biterable\b|Symbol\.(?:asyncI|i)terator/.test(message)) return "";
    return "\n    Is it the body of an inner application? Then await it: await app(environ, startResponse)";
  } catch {
    return ""; // anything can be thrown, and reading its properties can throw
  }
}

/**
 * Makes text safe for a report, which may quote a client: characters that a terminal obeys, or that change the order of
 * a line, are escaped. Lines after the first are indented, so that none of them passes for another report.
 *
 * @internal
 */
export function printable(text: string): string {
  return text.replace(/(?![\t\n])[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu, (character) => {
    const code = character.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
  }).replace(/\n(?![ \t\n]|$)/g, "\n    ");
}

/** Describes an error and its causes. Anything can be thrown, and reading its properties can throw. */
function formatError(error: unknown, depth = 0): string {
  try {
    if (!(error instanceof Error)) return printable(`${inspect(error)} was thrown`);
    const cause = error.cause === undefined || depth > 8 ? "" : `\nCaused by: ${formatError(error.cause, depth + 1)}`;
    return `${printable(String(error.stack || error))}${cause}`;
  } catch {
    return "an error that cannot be read";
  }
}

/** Describes a value in an error message: strings quoted and shortened, objects by their class. @internal */
export function inspect(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 80 ? `${value.slice(0, 79)}…` : value);
  if (typeof value === "function") return `function ${value.name || "without a name"}`;
  if (typeof value !== "object" || value === null) return String(value);
  const name: unknown = Object.getPrototypeOf(value)?.constructor?.name;
  return name === "Object" || typeof name !== "string" ? "an object" : `${/^[AEIO]/.test(name) ? "an" : "a"} ${name}`;
}

/** A mistake of an application, in the words of the server and of the validator. @internal */
export type Mistake = readonly [found: string, expected: string];

/** @internal */
export const NOT_STARTED: Mistake = [
  "startResponse was not called",
  'startResponse("200 OK", [["Content-Type", "text/plain"]]) before the first chunk',
];

/** PEP 3333, "The write() Callable". @internal */
export const WRITTEN_LATE: Mistake = ["write was called after the body was returned", "the chunk in that body"];

/** @internal */
export function startedTwice(status: unknown): Mistake {
  const shown = inspect(status);
  return [`startResponse was called again with ${shown}`, `one call, or startResponse(${shown}, headers, error)`];
}

/** Describes an invalid status. @internal */
export function wrongStatus(status: unknown): Mistake {
  const [code] = /^[2-5]\d\d(?= ?$)/.exec(String(status)) ?? [];
  const problem = code === undefined ? "is not a status from 200 to 599 and its reason" : "has no reason phrase";
  const phrase = REASONS[Number(code)];
  return [`status ${inspect(status)} ${problem}`, phrase === undefined ? '"200 OK"' : `"${code} ${phrase}"`];
}

/** Describes headers that are not an array. @internal */
export function wrongHeaders(headers: unknown): Mistake {
  const isIterable = typeof headers === "object" && Symbol.iterator in Object(headers);
  const remedy = isIterable ? "[...headers]" : '[["Name", "value"]]';
  return [`headers are ${inspect(headers)}`, `an array of pairs: ${remedy}`];
}

/** Describes a header whose value has characters that stand for no byte. @internal */
export function wrongHeaderText(name: string, value: string): Mistake {
  return [
    `header ${inspect(name)} has the value ${inspect(value)}`,
    "one character for each byte: toNativeString(value)",
  ];
}

/** Describes a header that is not a pair of strings. @internal */
export function wrongHeader(header: unknown): Mistake {
  const found = Array.isArray(header) ? `[${header.map(inspect).join(", ")}]` : inspect(header);
  return [`header ${found} is not a pair of strings`, '["Name", "value"]'];
}

/** Describes a body that is not an iterable of chunks. @internal */
export function wrongBody(body: unknown): Mistake {
  const remedy = typeof body === "string"
    ? ': return [new TextEncoder().encode("…")]'
    : body instanceof Uint8Array
    ? ": return [bytes]"
    : body instanceof Response
    ? ": fromFetch(handler) makes an application of a Fetch handler"
    : body === undefined || body === null
    ? ": return [bytes], or [] for none"
    : " such as [bytes]";
  return [`the application returned ${inspect(body)}`, `an iterable of bytes${remedy}`];
}

/** Describes a chunk that is not a Uint8Array. @internal */
export function wrongChunk(chunk: unknown): Mistake {
  const remedy = typeof chunk === "string"
    ? ': new TextEncoder().encode("…")'
    : chunk instanceof ArrayBuffer
    ? ": new Uint8Array(chunk)"
    : isPromise(chunk)
    ? ": await it"
    : "";
  return [`a chunk is ${inspect(chunk)}`, `a Uint8Array${remedy}`];
}

// #endregion

// #region Options

/** The checks of a function's options: for each name a test, and the expected value in words. @internal */
export type OptionChecks<Options> = {
  readonly [Name in keyof Options]-?: readonly [test: (value: unknown) => boolean, expected: string];
};

const PEM = /^\s*-----BEGIN /m;

const ENVIRON_OPTIONS: OptionChecks<Omit<ToEnvironOptions, "info">> = {
  environ: [isObject, "an object"],
  scriptName: [isScriptName, 'a path such as "/app"'],
  errors: [isErrorStream, "an object with write, writelines and flush"],
};

const TO_ENVIRON_OPTIONS: OptionChecks<ToEnvironOptions> = { ...ENVIRON_OPTIONS, info: [() => true, "anything"] };

const FETCH_OPTIONS: OptionChecks<ToFetchOptions> = {
  ...ENVIRON_OPTIONS,
  maxBodySize: [integerFrom(0), "an integer of at least 0"],
};

const SERVE_OPTIONS: OptionChecks<ServeOptions> = {
  hostname: [matching(/./s), 'an address such as "127.0.0.1"'],
  port: [integerFrom(0, 65_535), "an integer from 0 to 65535"],
  unix: [matching(/./s), "the path of a socket"],
  unixMode: [integerFrom(0, 0o777), "permissions such as 0o660"],
  cert: [matching(PEM), 'PEM text, which begins with "-----BEGIN"'],
  key: [matching(PEM), 'PEM text, which begins with "-----BEGIN"'],
  reusePort: [isBoolean, "true or false"],
  signal: [(value) => value instanceof AbortSignal, "an AbortSignal"],
  signals: [isBoolean, "true or false"],
  onListen: [isFunction, "a function"],
  shutdownTimeout: [integerFrom(0), "an integer of at least 0"],
  shutdownDelay: [integerFrom(0), "an integer of at least 0"],
  workers: [
    (value) => isObject(value) || integerFrom(1, Number.MAX_VALUE)(value),
    "a number of threads from 1 on, or { min, max }",
  ],
  deno: [isObject, "an object"],
  bun: [isObject, "an object"],
  ...FETCH_OPTIONS,
};

const WORKERS_OPTIONS: OptionChecks<WorkersOptions> = {
  min: [integerFrom(1, Number.MAX_VALUE), "an integer of at least 1"],
  max: [integerFrom(1, Number.MAX_VALUE), "an integer of at least 1"],
  module: [(value) => value instanceof URL || matching(/./s)(value), "a path or a URL"],
  export: [matching(/./s), "the name of an export"],
  interval: [integerFrom(1, 2 ** 31 - 1), "an integer from 1 to 2147483647"],
  scaleDownDelay: [integerFrom(1), "an integer of at least 1"],
  timeout: [integerFrom(1), "an integer of at least 1"],
};

/**
 * Checks the options of a function: an object without unknown names, whose values pass their tests.
 *
 * An option that is `undefined` counts as not given. Options that are nested in another one have it as their `parent`.
 *
 * @throws {TypeError} When a check fails. For an unknown name, the message has the most similar name that exists.
 *
 * @internal
 */
export function checkOptions<Options extends object>(
  options: Options,
  checks: OptionChecks<Options>,
  { parent }: { parent?: string } = {},
): void {
  const names = Object.keys(checks) as (keyof Options & string)[];
  const label = (name: string) => JSON.stringify(parent === undefined ? name : `${parent}.${name}`);
  if (!isObject(options)) {
    const example = `{ ${names.slice(0, 3).join(", ")}${names.length > 3 ? ", …" : ""} }`;
    throw new TypeError(`Cannot use ${inspect(options)} as options: expected an object such as ${example}`);
  }
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(checks, name)) continue;
    const known = label(closestName(name, names));
    throw new TypeError(`Cannot use option ${label(name)}: it does not exist, did you mean ${known}?`);
  }
  for (const name of names) {
    const value = options[name];
    const [test, expected] = checks[name];
    if (value === undefined || test(value)) continue;
    const isSecret = name === "key" && typeof value === "string" && value.length > 80; // PEM text, and not the path of a file
    const found = isSecret ? `${value.length} characters` : inspect(value);
    throw new TypeError(`Cannot use option ${label(name)}: found ${found}, expected ${expected}`);
  }
}

function checkServeOptions(options: ServeOptions): void {
  checkOptions(options, SERVE_OPTIONS);
  const { cert, key, unix, unixMode, workers } = options;
  if ((cert === undefined) !== (key === undefined)) {
    throw new TypeError(`Cannot use option "${cert === undefined ? "key" : "cert"}" alone: TLS needs "cert" and "key"`);
  }
  if (DENO && unix !== undefined && cert !== undefined) {
    throw new TypeError('Cannot use option "cert" with "unix": Deno has no TLS on a unix socket');
  }
  if (unixMode !== undefined && unix === undefined) {
    throw new TypeError('Cannot use option "unixMode" without "unix": only a unix socket has a file');
  }
  if (!isObject(workers)) return;
  checkOptions(workers, WORKERS_OPTIONS, { parent: "workers" });
  const { min = 1, max } = workers;
  if (!(max >= min)) {
    throw new TypeError(
      `Cannot use option "workers.max": found ${inspect(max)}, expected an integer of at least ${min}`,
    );
  }
}

/** Finds the most similar name: one that contains the other, or else the one with the fewest edits. The first of equals. */
function closestName(name: string, names: string[]): string {
  const given = name.slice(0, 40).toLowerCase();
  const distance = (known: string) => {
    const lower = known.toLowerCase();
    return lower.includes(given) || given.includes(lower) ? 0 : editDistance(given, lower);
  };
  return names.reduce((best, known) => distance(known) < distance(best) ? known : best);
}

/** The number of characters to insert, delete or replace to make one text the other (Levenshtein distance). */
function editDistance(from: string, to: string): number {
  let distances = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (const [row, character] of [...from].entries()) {
    const next = [row + 1];
    for (let index = 0; index < to.length; index++) {
      const replaced = distances[index]! + (to[index] === character ? 0 : 1);
      next.push(Math.min(replaced, distances[index + 1]! + 1, next[index]! + 1));
    }
    distances = next;
  }
  return distances.at(-1)!;
}

/** Tests for an object that can have named properties: no array and no `Map`. @internal */
export function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !(Symbol.iterator in value);
}

/** @internal */
export function isFunction(value: unknown): boolean {
  return typeof value === "function";
}

/** @internal */
export function isBoolean(value: unknown): boolean {
  return typeof value === "boolean";
}

/** Tests for an integer in a range. `Infinity`, for no limit, passes unless `most` is finite. @internal */
export function integerFrom(least: number, most = Infinity): (value: unknown) => boolean {
  return (value) => (Number.isInteger(value) || value === Infinity) && Number(value) >= least && Number(value) <= most;
}

/** @internal */
export function matching(pattern: RegExp): (value: unknown) => boolean {
  return (value) => typeof value === "string" && pattern.test(value);
}

function isErrorStream(value: unknown): boolean {
  return ["write", "writelines", "flush"].every((name) => isFunction(Object(value)[name]));
}

function isScriptName(value: unknown): boolean {
  return typeof value === "string" && value.isWellFormed() &&
    /^(?:\/[^?#]*[^?#/])?$/.test(percentDecode(percentEncode(value)));
}

// #endregion

// #region Chunks and promises

/** No bytes. @internal */
export const EMPTY: Uint8Array<ArrayBuffer> = new Uint8Array(0);

/** The longest delay that a timer takes, in milliseconds. @internal */
export const MAX_DELAY: number = 2 ** 31 - 1;

/** @internal */
export type ChunkIterator = Iterator<Uint8Array> | AsyncIterator<Uint8Array>;
/** @internal */
export type ChunkResult = IteratorResult<Uint8Array>;

/** The reader of a stream, as far as it is used. The types of Deno, Bun, Node and the DOM differ. */
interface StreamReader {
  read(): Promise<{ done: boolean; value?: Uint8Array | undefined }>;
  cancel(): Promise<void>;
}

/** Opens a body. The iterator of a stream would wait for a pending `read` before it cancels; a reader does not. @internal */
export function openBody(body: ResponseBody | ReadableStream<Uint8Array>): ChunkIterator {
  if (body instanceof ReadableStream) {
    const reader: StreamReader = body.getReader();
    return {
      next: () => reader.read() as Promise<ChunkResult>,
      return: () => reader.cancel().then(() => ({ done: true, value: undefined })),
    };
  }
  if (typeof body !== "string" && !(body instanceof Uint8Array)) {
    const iterable = Object(body) as Partial<AsyncIterable<Uint8Array>> & Partial<Iterable<Uint8Array>>;
    const iterator = iterable[Symbol.asyncIterator]?.() ?? iterable[Symbol.iterator]?.();
    if (iterator) return iterator;
  }
  throw sendError(...wrongBody(body));
}

/** Checks a chunk and returns its length. */
function chunkLength(chunk: Uint8Array): number {
  if (chunk instanceof Uint8Array && ArrayBuffer.isView(chunk)) return chunk.length; // isView is false for a Proxy
  throw sendError(...wrongChunk(chunk));
}

/** The error of a body or a chunk. @internal */
export function sendError(...[found, expected]: Mistake): TypeError {
  return new TypeError(`Cannot send the response: ${found}, expected ${expected}`);
}

/** Returns the first bytes of a chunk: the chunk itself where that is all of it, since a view costs time. */
function prefix(chunk: Uint8Array, size: number): Uint8Array {
  return size < chunk.length ? chunk.subarray(0, size) : chunk;
}

/** @internal */
export function concat(chunks: readonly Uint8Array[]): Uint8Array {
  let size = 0;
  for (const chunk of chunks) size += chunkLength(chunk);
  if (chunks.length === 1) return chunks[0]!;
  const whole = new Uint8Array(size);
  size = 0;
  for (const chunk of chunks) {
    whole.set(chunk, size);
    size += chunk.length;
  }
  return whole;
}

/** Tests for a promise, or an object that behaves like one. @internal */
export function isPromise<Value>(value: Value | PromiseLike<Value>): value is PromiseLike<Value> {
  return typeof (value as PromiseLike<Value> | undefined)?.then === "function";
}

/** Waits for the next turn of the event loop: the runtimes write to their sockets between two turns. @internal */
export function nextTurn(): Promise<void> {
  return new Promise(afterTurn);
}

function afterTurn(callback: () => void): void {
  if (typeof setImmediate === "function") setImmediate(callback);
  else setTimeout(callback); // workerd, browsers
}

/** Waits, without keeping the process alive. */
function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds).unref());
}

// #endregion

// #region Request to environ

const HOST_CACHE = new Map<string, boolean>();
const ENVIRON_KEY_CACHE = new Map<string, string>();
const HEADER_NAME_CACHE = new Map<string, string>();
const STATUS_CACHE = new Map<string, number>();

/**
 * Returns the cached value of a key, or computes it.
 *
 * Clients and applications choose the keys, so that the cache needs a limit. A full cache is cleared: junk cannot fill it
 * for good, and the keys in use are back with the next request.
 *
 * @internal
 */
export function memoize<Value>(cache: Map<string, Value>, key: string, compute: (key: string) => Value): Value {
  let value = cache.get(key);
  if (value === undefined) {
    value = compute(key);
    if (key.length > 64) return value;
    if (cache.size === 256) cache.clear();
    cache.set(key, value);
  }
  return value;
}

/** The client's end of a connection: Deno says `hostname`, Bun says `address`. */
interface PeerAddress {
  hostname?: string;
  address?: string;
  port?: number;
}

function buildEnviron(exchange: Exchange): Environ {
  const { gateway: { environTemplate, defaultAuthority }, request, info, method } = exchange;
  if (method === "CONNECT") throw httpError(501, new TypeError("Cannot connect: this server is no proxy"));
  const { scheme, authority, target } = splitUrl(request.url);
  const { remoteAddr, requestIP } = (info ?? {}) as {
    remoteAddr?: PeerAddress;
    requestIP?(request: Request): PeerAddress | null;
  };
  // Without a Host Bun says nothing. On a unix socket, where a peer has no address, Deno says http+unix.
  const isLocal = scheme.startsWith("http+") && remoteAddr?.hostname === undefined;
  if (!isLocal && !/^(?:https?)?$/i.test(scheme)) {
    const found = `scheme ${inspect(scheme)}`;
    throw httpError(400, new TypeError(`Cannot serve ${inspect(target)}: ${found} is neither "http" nor "https"`));
  }
  const resource = target.replace(/#.*/s, ""); // a fragment is neither path nor query: RFC 3986, section 3
  const question = resource.indexOf("?");

  const environ = {
    ...environTemplate,
    REQUEST_METHOD: method,
    REQUEST_URI: target,
    "wsgi.input": exchange.input,
    "wsgi.errors": exchange.errors,
    "fetch.context": exchange.context,
  } as Environ;
  environ.PATH_INFO = percentDecode(question === -1 ? resource : resource.slice(0, question));
  if (question !== -1) environ.QUERY_STRING = resource.slice(question + 1);
  const scriptName = environ.SCRIPT_NAME;
  if (scriptName !== "") {
    if (environ.PATH_INFO !== scriptName && !environ.PATH_INFO.startsWith(`${scriptName}/`)) {
      const outside = `the path is outside ${inspect(scriptName)}`;
      throw httpError(404, new RangeError(`Cannot serve ${inspect(target)}: ${outside}`));
    }
    environ.PATH_INFO = environ.PATH_INFO.slice(scriptName.length);
  }

  request.headers.forEach((value, name) => {
    const key = memoize(ENVIRON_KEY_CACHE, name, environKey);
    // forEach gives Set-Cookie once for each line, and all other headers joined.
    if (key === "HTTP_SET_COOKIE") environ[key] = request.headers.get(name)!;
    else if (key !== "") environ[key] = value;
  });
  const { CONTENT_LENGTH: length, HTTP_TRANSFER_ENCODING: coding } = environ;
  if (length !== undefined) environ.CONTENT_LENGTH = parseContentLength(length, target);
  // The runtimes decode chunks and nothing else (RFC 9112, section 6.1).
  if (coding !== undefined && parseList(coding).join().toLowerCase() !== "chunked") {
    const found = `Transfer-Encoding ${inspect(coding)}`;
    throw httpError(501, new TypeError(`Cannot serve ${inspect(target)}: ${found} is not "chunked"`));
  }
  // An application would wait for the body that these announce, and that the runtime has dropped: RFC 3875, section 4.1.2.
  if ((length ?? coding) !== undefined && !Input.isArriving(exchange.input)) {
    delete environ.CONTENT_LENGTH;
    delete environ.HTTP_TRANSFER_ENCODING;
  }
  if (environ["wsgi.url_scheme"] === "") environ["wsgi.url_scheme"] = scheme === "https" ? "https" : "http";
  if (environ["wsgi.url_scheme"] === "https") environ.HTTPS = "on";

  // On a unix socket Deno puts the path of the socket where a request without a Host has no authority.
  const named = isLocal ? "" : authority;
  const host = environ.HTTP_HOST === environTemplate.HTTP_HOST ? "" : environ.HTTP_HOST!; // the header
  // The authority of HTTP/2, and of an absolute target, wins over Host (RFC 9113, section 8.3.1; RFC 9112, section 3.2.2).
  // Only Deno, whose `info` has a remoteAddr, shows it in the URL. The URL of `toRequest` has the Host itself, as `new URL`
  // writes it.
  const isOverridden = remoteAddr && host !== "" && host !== authority && isHost(host) &&
    URL.parse(`${environ["wsgi.url_scheme"]}://${host}`)?.host !== authority; // null where no URL has such a host
  if (isOverridden) environ.HTTP_HOST = authority;
  else if (host === "" && named !== "" && named !== defaultAuthority) environ.HTTP_HOST = named;
  if (environ.HTTP_HOST !== undefined && !memoize(HOST_CACHE, environ.HTTP_HOST, isHost)) {
    const found = `Host ${inspect(environ.HTTP_HOST)}`;
    throw httpError(400, new TypeError(`Cannot serve ${inspect(target)}: ${found} is not a host`));
  }
  if (environ.SERVER_NAME === "") {
    const [, name, port] = /^(.*?)(?::(\d+))?$/.exec(named)!;
    environ.SERVER_NAME = name || "localhost";
    environ.SERVER_PORT = port ?? (environ.HTTPS ? "443" : "80");
  }
  const { hostname, address = hostname, port }: PeerAddress = remoteAddr ?? requestIP?.call(info, request) ?? {};
  if (address !== undefined) environ.REMOTE_ADDR = address;
  if (address !== undefined && port !== undefined) environ.REMOTE_PORT = String(port);
  return environ;
}

/**
 * Cuts a URL into scheme, authority and target.
 *
 * `new URL` would not do: Deno's URL has the target as it was sent, which `new URL` changes; Bun's has the bare target
 * for a request without a Host, which `new URL` refuses.
 */
function splitUrl(url: string): { scheme: string; authority: string; target: string } {
  const separator = url.startsWith("/") ? -1 : url.indexOf("://");
  const rest = separator === -1 ? url : url.slice(separator + 3);
  const end = rest.search(/[/?#]/); // "http://host?query" has no path
  const authority = end === -1 ? rest : rest.slice(0, end);
  const target = end !== -1 ? percentEncode(rest.slice(end)) : url === "*" ? "/*" : "/";
  const scheme = separator === -1 ? "" : url.slice(0, separator);
  return { scheme, authority, target: target.startsWith("/") ? target : `/${target}` };
}

/** Checks a Content-Length, which the runtimes join where it is repeated. Equal ones are one (RFC 9110, section 8.6). */
function parseContentLength(value: string, target: string): string {
  const [, length] = /^(\d+)(?:, \1)*$/.exec(value) ?? [];
  if (length !== undefined) return length;
  const found = `Content-Length ${inspect(value)}`;
  throw httpError(400, new TypeError(`Cannot serve ${inspect(target)}: ${found} is not one number of bytes`));
}

/**
 * A host and its port: RFC 3986, section 3.2, without the comma, by which Bun joins two Host fields. `[::1:]` would be an
 * address to Bun's URL.
 *
 * @internal
 */
export const HOST = /^((?:[\w.~!$&'()*+;=-]|%[\da-f]{2})+|\[[\da-f:.]*(?:[\da-f]|::)\])(?::(\d*))?$/i;
const DECODED_NAME = /^[\w.~!$&'()*+;=\x80-\xff-]+$/;

/** Tests for a host: a name or an address, and a port, but nothing like a path, percent-encoded or not. @internal */
export function isHost(host: string): boolean {
  const [, name, port = ""] = HOST.exec(host) ?? [];
  if (name === undefined) return host === "";
  const isValid = name.startsWith("[") ? URL.canParse(`http://${name}`) : DECODED_NAME.test(percentDecode(name));
  return isValid && Number(port) <= 65_535;
}

/** Percent-encodes characters beyond ASCII, as UTF-8. Deno decodes them in a URL; Bun does not. */
function percentEncode(text: string): string {
  return /[\u0080-\uffff]/.test(text) ? text.replace(/[\u0080-\uffff]+/g, encodeURIComponent) : text;
}

/** Percent-decodes to bytes, one character each. Bad escapes are kept. PEP 3333, "Unicode Issues". @internal */
export function percentDecode(path: string): string {
  if (!path.includes("%")) return path;
  return path.replace(/%[\da-f]{2}/gi, (escape) => String.fromCharCode(parseInt(escape.slice(1), 16)));
}

/** Percent-encodes one byte, given as a character. @internal */
export function escapeByte(byte: string): string {
  return `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`;
}

const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const NON_ASCII = /[\x80-\uffff]/;

/**
 * Makes a native string of text, for a header, or for a variable such as PATH_INFO: one character for each byte of its
 * UTF-8. Text in ASCII is one already. PEP 3333, "Unicode Issues".
 *
 * @param text The text.
 * @returns The native string.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { toNativeString } from "./mod.ts";
 *
 * assert.equal(toNativeString("café"), "caf\u00C3\u00A9");
 * ```
 */
export function toNativeString(text: string): string {
  if (!NON_ASCII.test(text)) return text;
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/**
 * Reads the text of a native string, such as PATH_INFO, whose bytes are UTF-8. PEP 3333, "Unicode Issues".
 *
 * @throws {TypeError} With the status 400, when the bytes are not UTF-8: mostly, a client has chosen them.
 * @throws {RangeError} When a character stands for no byte: the string is text already.
 *
 * @param native The native string.
 * @returns The text.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { fromNativeString, toEnviron } from "./mod.ts";
 *
 * const environ = toEnviron(new Request("http://localhost/caf%C3%A9"));
 * assert.equal(fromNativeString(environ.PATH_INFO), "/café");
 * ```
 */
export function fromNativeString(native: string): string {
  if (!NON_ASCII.test(native)) return native;
  if (/[^\0-\xff]/.test(native)) {
    throw new RangeError(`Cannot decode ${inspect(native)}: expected one character for each byte`);
  }
  try {
    return UTF_8.decode(Uint8Array.from(native, (byte) => byte.charCodeAt(0)));
  } catch {
    throw httpError(400, new TypeError(`Cannot decode ${inspect(native)}: expected the bytes of UTF-8`));
  }
}

/** Returns the environ key of a header, or "" for a header that an application must not see. */
function environKey(name: string): string {
  // "x_a" would pose as "x-a"; "proxy" would become HTTP_PROXY, which CGI programs obey (https://httpoxy.org).
  if (name.includes("_") || name === "proxy") return "";
  const variable = name.toUpperCase().replaceAll("-", "_");
  return variable === "CONTENT_TYPE" || variable === "CONTENT_LENGTH" ? variable : `HTTP_${variable}`;
}

// An element of a list by its separator. To split by a pattern that begins with blanks would take the square of their number.
const LIST_ELEMENT = { ",": listElement(","), ";": listElement(";") };

function listElement(separator: string): RegExp {
  const text = String.raw`(?:[^ \t"${separator}]+|"(?:[^"\\]+|\\.)*"?)+`; // characters and quoted strings
  return new RegExp(String.raw`${text}(?:[ \t]+${text})*`, "g");
}

/**
 * Returns the elements of a list, without empty ones: RFC 9110, section 5.6.1.
 *
 * A separator inside a quoted string belongs to its element (section 5.6.4). A quote that is left open reaches to the end.
 *
 * @internal
 */
export function parseList(value: string, separator: "," | ";" = ","): string[] {
  return value.match(LIST_ELEMENT[separator]) ?? [];
}

// #endregion

// #region wsgi.input

// Parts of fewer bytes than SMALL_PART are joined when there are MAX_SMALL_PARTS of them.
const SMALL_PART = 1024;
const MAX_SMALL_PARTS = 1024;

/** `wsgi.input`: the body of the request. Nothing is read before the application asks for it. */
class Input implements InputStream {
  readonly #exchange: Exchange;
  #reader: StreamReader | undefined;
  #chunk: Uint8Array = EMPTY;
  #received = 0;
  #length = Infinity;
  /** The signal that tells a cancelled body from a complete one, where nothing else does. */
  #signal: AbortSignal | undefined;
  #hasEnded: boolean;
  /** Why nobody may read on: the message of the error. */
  #cancelReason: string | undefined;
  #onArrived: (() => void) | undefined;
  #lastRead: Promise<unknown> | undefined;

  constructor(exchange: Exchange) {
    this.#exchange = exchange;
    this.#hasEnded = exchange.method === "GET" || exchange.method === "HEAD"; // the runtimes drop their bodies
  }

  read(size?: number): Promise<Uint8Array> {
    return this.#serialize(() => this.#read(size, false));
  }

  read1(size?: number): Promise<Uint8Array> {
    return this.#serialize(async () => {
      const most = parseSize(size);
      return most > 0 && await this.#fill() ? this.#consume(most) : EMPTY;
    });
  }

  readline(size?: number): Promise<Uint8Array> {
    return this.#serialize(() => this.#read(size, true));
  }

  readlines(hint?: number): Promise<Uint8Array[]> {
    return this.#serialize(async () => {
      const lines: Uint8Array[] = [];
      for (let left = parseSize(hint) || Infinity; left > 0; left -= lines.at(-1)!.length) {
        const line = await this.#read(undefined, true);
        if (line.length === 0) break;
        lines.push(line);
      }
      return lines;
    });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    for (let line = await this.readline(); line.length > 0; line = await this.readline()) yield line;
  }

  /** Fulfilled when the whole body has arrived, or nobody wants the rest. */
  static whenArrived(input: Input): Promise<void> {
    return new Promise((resolve) => input.#onArrived = resolve);
  }

  static isArriving(input: Input): boolean {
    return !input.#hasEnded && input.#cancelReason === undefined;
  }

  /** Cancels the rest of the body. Deno then closes the connection, maybe before the client has the response. */
  static cancel(input: Input, reason: string): void {
    if (input.#hasEnded) return;
    input.#cancelReason ??= reason;
    input.#onArrived?.();
    if (IS_NATIVE) input.#cancelBody();
    else if (input.#reader) drain(input.#reader).catch(() => {});
  }

  #cancelBody(): void {
    try {
      (this.#reader ?? this.#exchange.request.body)?.cancel().catch(() => {});
    } catch {
      // On Deno, reading the body of a request whose connection was closed throws.
    }
  }

  /** Makes concurrent reads follow each other. A failed read that nobody awaits is no unhandled rejection. */
  #serialize<Result>(work: () => Promise<Result>): Promise<Result> {
    const result = this.#lastRead ? this.#lastRead.then(work) : work();
    const onSettled = () => {
      if (this.#lastRead === settled) this.#lastRead = undefined; // what follows need not wait for a promise
    };
    const settled = this.#lastRead = result.then(onSettled, onSettled);
    return result;
  }

  async #read(size: number | undefined, line: boolean): Promise<Uint8Array> {
    const most = parseSize(size);
    const parts: Uint8Array[] = [];
    let taken = 0;
    let small = 0; // the number of small parts at the end
    while (taken < most && await this.#fill()) {
      const end = line ? this.#chunk.indexOf(0x0a) + 1 : 0;
      const part = this.#consume(Math.min(end || Infinity, most - taken));
      parts.push(part);
      taken += part.length;
      // The arrays of an upload in tiny pieces would take more memory than its bytes.
      small = part.length < SMALL_PART ? small + 1 : 0;
      if (small === MAX_SMALL_PARTS) {
        parts.push(concat(parts.splice(-small)));
        small = 0;
      }
      if (line && part.at(-1) === 0x0a) break;
    }
    return concat(parts);
  }

  /** Takes bytes from the front of the buffered chunk. */
  #consume(size: number): Uint8Array {
    const part = prefix(this.#chunk, size);
    this.#chunk = part === this.#chunk ? EMPTY : this.#chunk.subarray(size);
    return part;
  }

  #openBody(): StreamReader | undefined {
    const { request } = this.#exchange;
    let body: Request["body"];
    try {
      body = request.body;
      const length = Number.parseInt(request.headers.get("Content-Length") ?? "");
      if (length >= 0) this.#length = length;
      else if (needsSignal(request)) this.#signal = this.#exchange.observeSignal();
    } catch (cause) {
      throw clientDisconnected(cause); // on Deno, of a request whose connection was closed
    }
    return body?.getReader();
  }

  /** Tests whether the body has ended too early, because the client left. */
  async #isTruncated(): Promise<boolean> {
    if (this.#length < Infinity) return this.#received < this.#length;
    // The signal aborts after the end of the body: under load up to three turns later (Deno 2.9.6).
    for (let turn = 0; turn < 4 && this.#signal?.aborted === false; turn++) await nextTurn();
    return this.#signal?.aborted ?? false;
  }

  /** Buffers a chunk; false at the end of the body. */
  async #fill(): Promise<boolean> {
    while (this.#chunk.length === 0 && !this.#hasEnded) {
      this.#reader ??= this.#openBody();
      let result: Awaited<ReturnType<StreamReader["read"]>> | undefined;
      try {
        result = await this.#reader?.read();
      } catch (cause) {
        throw clientDisconnected(cause);
      }
      if (this.#cancelReason !== undefined) throw readAborted(this.#cancelReason);
      const chunk = result?.value ?? EMPTY;
      if (!(chunk instanceof Uint8Array)) {
        throw new TypeError(`Cannot read the request body: found ${inspect(chunk)}, expected a Uint8Array`);
      }
      const part = prefix(chunk, this.#length - this.#received);
      // Deno allocates 64 KiB for each chunk, which a view of a few bytes would keep.
      this.#chunk = part.length < part.buffer.byteLength / 2 ? new Uint8Array(part) : part;
      this.#received += this.#chunk.length;
      const isDone = result?.done ?? true;
      if (isDone && await this.#isTruncated()) throw clientDisconnected();
      this.#hasEnded = isDone || this.#received >= this.#length;
      if (!this.#hasEnded) continue;
      this.#onArrived?.();
      if (!isDone) this.#cancelBody(); // Deno closes the connection of a body that is not read to its end
    }
    const { maxBodySize } = this.#exchange.gateway;
    if (this.#received > maxBodySize) throw bodyTooLarge(maxBodySize);
    return this.#chunk.length > 0;
  }
}

/**
 * Reads a body to its end. Node drops by itself a body that nobody has begun to read. It breaks the connection of one that
 * is cancelled, and serves no other request on that of one that is read in part.
 */
async function drain(reader: StreamReader): Promise<void> {
  while (!(await reader.read()).done);
}

/**
 * Tests for a body over HTTP/2 whose length is not declared. Deno 2.9.6 ends it as if it were complete when the client
 * cancels it: only the request's signal tells, if it is read before. Reading the signal makes Deno print a warning, so
 * that it is not read over HTTP/1.1, whose requests have a Host or a Transfer-Encoding.
 */
function needsSignal({ headers }: Request): boolean {
  return DENO !== undefined && !headers.has("Host") && !headers.has("Transfer-Encoding");
}

/** Calls `read1`, or reads a block of an input that has none: PEP 3333 does not know the method. @internal */
export function readAtHand(input: InputStream, size = -1): Promise<Uint8Array> {
  return input.read1?.(size) ?? input.read(size < 0 ? 65_536 : Math.min(size, 65_536));
}

/** Reads a size as Python does: undefined, or a number below zero, means all. */
function parseSize(size: number | undefined): number {
  if (size === undefined || size < 0 || size === Infinity) return Infinity;
  if (Number.isInteger(size)) return size;
  throw new RangeError(`Cannot read the request body: size ${inspect(size)} is not an integer`);
}

// #endregion

// #region wsgi.errors

/** `wsgi.errors`: writes whole lines to standard error, so that those of concurrent requests do not mix. */
class StandardError implements ErrorStream {
  #line = "";

  write(text: string): void {
    this.writelines([text]);
  }

  writelines(lines: Iterable<string>): void {
    try {
      for (const line of lines) this.#line += String(line);
    } catch {
      // The lines are not iterable, but the error stream must not throw.
    }
    const end = this.#line.lastIndexOf("\n");
    if (end !== -1) printError(this.#line.slice(0, end));
    this.#line = this.#line.slice(end + 1);
  }

  flush(): void {
    if (this.#line !== "") this.write("\n");
  }
}

/** Makes an error stream of a function that takes each text. */
function errorStream(write: (text: string) => void): ErrorStream {
  return { write, writelines: (lines) => write([...lines].join("")), flush: () => {} };
}

// #endregion

// #region wsgi.file_wrapper

const BLOCK_SIZE = 65_536;
const MAX_BLOCK_SIZE = 262_144;

/**
 * Tells the size of each block of a file in turn. Large blocks cost less, but every slow client keeps one in memory: they
 * are for a client that has taken 8 MiB, more than the buffers of a socket hold, at 8 MiB a second.
 */
function blockSizes(blockSize: number | undefined): () => number {
  if (blockSize !== undefined) return () => Math.min(blockSize, MAX_BLOCK_SIZE);
  const start = performance.now();
  let given = 0;
  return () => {
    const isFast = given >= 2 ** 23 && given > (performance.now() - start) * 2 ** 13;
    const size = isFast ? MAX_BLOCK_SIZE : BLOCK_SIZE;
    given += size;
    return size;
  };
}

/** `wsgi.file_wrapper`. A file with a stream of its own closes itself, at its end or when it is cancelled. @internal */
export function wrapFile(file: FileLike, blockSize?: number): ResponseBody {
  if (blockSize !== undefined && (!Number.isInteger(blockSize) || blockSize < 1)) {
    throw new RangeError(`Cannot wrap the file: block size ${inspect(blockSize)} is not a positive integer`);
  }
  const nextSize = blockSizes(blockSize);
  const wrap = (chunks: ChunkIterator, close: ResponseBody["close"] = async () => void await chunks.return!()) => {
    return { [FILE]: true, [Symbol.asyncIterator]: () => chunks as AsyncIterator<Uint8Array>, close };
  };
  if (DENO && file instanceof DENO.FsFile) return wrap(new FileBlocks(file, nextSize));
  if (isNodeStream(file)) return wrap(streamChunks(file));
  if (isFileHandle(file)) {
    const read = async (block: Uint8Array) => (await file.read(block, 0, block.length, null)).bytesRead;
    return wrap(new FileBlocks({ read, close: () => file.close() }, nextSize));
  }
  if (file instanceof Blob) return wrap(blobBlocks(file, nextSize));
  const { read, readable, close } = Object(file) as {
    read?(size: number): Uint8Array | Promise<Uint8Array>;
    readable?: unknown;
    close?(): void | Promise<void>;
  };
  const stream = file instanceof ReadableStream ? file : readable;
  if (stream instanceof ReadableStream) return wrap(openBody(stream));
  if (typeof read !== "function") throw new TypeError(`Cannot wrap ${inspect(file)}: it has no method "read"`);
  const next = async (): Promise<ChunkResult> => {
    const value = await read.call(file, nextSize());
    return chunkLength(value) > 0 ? { done: false, value } : { done: true, value: undefined };
  };
  return wrap({ next }, () => close?.call(file));
}

/** The stats of a `Bun.file`, as far as they are used. An object of S3 has none of them. */
interface BunStats {
  ino?: number;
  isFile?(): boolean;
}

/**
 * Reads a blob in blocks, each as the stream of a slice.
 *
 * The stream of the whole blob has chunks of 512 KiB in Bun 1.4.5, and one chunk in Deno 2.9.6. `bytes()` of a slice of
 * `Bun.file(descriptor)` ignores where the slice begins.
 */
function blobBlocks(file: Blob & { stat?(): Promise<BunStats> }, nextSize: () => number): ChunkIterator {
  let position = 0;
  let isLast = false; // no slice follows
  let left = 0;
  let block: ChunkIterator | undefined;
  let inode: number | undefined;
  const next = async (): Promise<ChunkResult> => {
    if (position === 0 && !isLast) {
      const stats = await file.stat?.();
      inode = stats?.ino;
      // A slice of a pipe or a device ends too early. The size does not tell them apart: Bun 1.4.5 reads nothing of a file
      // whose size was asked for and is 0, as in /proc.
      if (!isLast && stats && !stats.isFile?.()) {
        block = openBody(file.stream());
        isLast = true;
      }
    }
    for (;;) {
      if (!block) {
        if (isLast) return { done: true, value: undefined };
        left = nextSize();
        block = openBody(file.slice(position, position += left).stream());
      }
      const result = await block.next();
      if (!result.done) {
        left -= result.value.length;
        return result;
      }
      block = undefined;
      // Bun opens the path again for each slice.
      if (inode !== (await file.stat?.())?.ino) throw new Error("Cannot send the file: it was replaced meanwhile");
      if (left > 0) isLast = true; // the slice has ended with the file
    }
  };
  return {
    next,
    async return() {
      isLast = true;
      return await block?.return?.() ?? { done: true, value: undefined };
    },
  };
}

type NodeStream = Extract<FileLike, { destroy(): unknown }>;
type NodeFileHandle = Extract<FileLike, { readableWebStream(): unknown }> & {
  read(block: Uint8Array, offset: number, length: number, position: null): Promise<{ bytesRead: number }>;
};

function isNodeStream(file: FileLike): file is NodeStream {
  return isFunction((Object(file) as NodeStream).destroy) && Symbol.asyncIterator in file;
}

function isFileHandle(file: FileLike): file is NodeFileHandle {
  return isFunction((Object(file) as NodeFileHandle).readableWebStream);
}

/** The chunks of a stream of `node:stream`, whose own iterator waits for a pending `next` before it closes the stream. */
function streamChunks(stream: NodeStream): ChunkIterator {
  const iterator = stream[Symbol.asyncIterator]();
  let isClosed = false;
  stream.on("error", () => {}); // an error to which nobody listens ends the process, also after destroy()
  return {
    async next() {
      try {
        return await iterator.next();
      } catch (error) {
        if (isClosed) return { done: true, value: undefined };
        throw error;
      }
    },
    async return() {
      if (!isClosed) stream.destroy();
      isClosed = true;
      return await iterator.return?.() ?? { done: true, value: undefined };
    },
  };
}

/** Reads a file in blocks, and closes it once: a `Deno.FsFile`, whose own stream is slower, or a `FileHandle`. */
class FileBlocks implements AsyncIterator<Uint8Array> {
  readonly #file: DenoFile;
  readonly #nextSize: () => number;
  #isClosed = false;

  constructor(file: DenoFile, nextSize: () => number) {
    this.#file = file;
    this.#nextSize = nextSize;
  }

  async next(): Promise<ChunkResult> {
    const block = new Uint8Array(this.#nextSize());
    let length: number | null = null;
    try {
      if (!this.#isClosed) length = await this.#file.read(block);
    } catch (error) {
      if (!this.#isClosed) throw error; // a read that close() has interrupted is no failure
    } finally {
      if (!length) await this.return();
    }
    return length ? { done: false, value: prefix(block, length) } : { done: true, value: undefined };
  }

  async return(): Promise<ChunkResult> {
    if (!this.#isClosed) {
      this.#isClosed = true;
      try {
        await this.#file.close();
      } catch {
        // The application has closed it already.
      }
    }
    return { done: true, value: undefined };
  }
}

// #endregion

// #region startResponse

/** The arguments of `startResponse`, checked, in the form that a `Response` takes. @internal */
export interface ResponseHead {
  status: number;
  statusText: string;
  /** All but Content-Length. */
  headers: Record<string, string> | [name: string, value: string][];
  length: number | undefined;
  hasContentType: boolean;
  isEncoded: boolean;
}

/** A status line without the version: RFC 9112, section 4, with a reason phrase and the numbers of a `Response`. @internal */
export const STATUS_PATTERN = /^[2-5]\d\d [\x20-\x7e\x80-\xff]+$/;
/** A token, as the name of a header is one: RFC 9110, sections 5.1 and 5.6.2. @internal */
export const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/;
/** The value of a header: RFC 9110, section 5.5. Control characters end the process of Deno 2.9.6. @internal */
export const HEADER_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
/** The headers of a connection, not of a message: RFC 9110, section 7.6.1; PEP 3333, "Other HTTP Features". @internal */
export const HOP_BY_HOP =
  /^(?:connection|keep-alive|proxy-authenticate|proxy-authorization|te|trailers?|transfer-encoding|upgrade)$/;

/** Checks a header name and returns it in lower case. */
function checkHeaderName(name: string): string {
  const lower = name.toLowerCase();
  if (!TOKEN.test(name)) {
    throw startError(`header name ${inspect(name)} is not a token`, 'one such as "Content-Type"');
  }
  if (HOP_BY_HOP.test(lower)) {
    throw startError(`header ${inspect(name)} is hop-by-hop`, "it to be left to the server");
  }
  return lower;
}

/** Checks a status and returns its number. */
function parseStatus(status: string): number {
  if (typeof status !== "string" || !STATUS_PATTERN.test(status)) throw startError(...wrongStatus(status));
  // Deno sends a 205 without a length, and the client waits for the end of the response.
  if (DENO && status.startsWith("205")) {
    throw startError(`status ${inspect(status)} is one that Deno cannot send`, "204");
  }
  return Number(status.slice(0, 3));
}

/** Checks the arguments of `startResponse`. PEP 3333, "The start_response() Callable". @internal */
export function parseHead(status: string, headers: HeaderList): ResponseHead {
  const code = memoize(STATUS_CACHE, status, parseStatus);
  if (!Array.isArray(headers)) throw startError(...wrongHeaders(headers));
  const record: Record<string, string> = {};
  let pairs: [name: string, value: string][] | undefined; // where a name is repeated
  let length: number | undefined;
  let hasContentType = false;
  let isEncoded = false;
  for (const pair of headers) {
    const [name, value] = Array.isArray(pair) && pair.length === 2 ? pair : [];
    if (typeof name !== "string" || typeof value !== "string") throw startError(...wrongHeader(pair));
    const lower = memoize(HEADER_NAME_CACHE, name, checkHeaderName);
    const isLength = lower === "content-length";
    if (!HEADER_VALUE.test(value) || isLength && (length !== undefined || !/^\d{1,15}$/.test(value))) {
      if (/[^\0-\xff]/.test(value)) throw startError(...wrongHeaderText(name, value));
      const expected = isLength ? "one number of bytes" : "Latin-1 without control characters";
      throw startError(`header ${inspect(name)} has the value ${inspect(value)}`, expected);
    }
    if (isLength) {
      length = Number(value);
      continue;
    }
    hasContentType ||= lower === "content-type" && value.trim() !== "";
    isEncoded ||= lower === "content-encoding";
    if (name in record) pairs ??= Object.entries(record); // also for "__proto__", which a record cannot hold
    if (pairs) pairs.push([name, value]);
    else record[name] = value;
  }
  const statusText = status.slice(4);
  return { status: code, statusText, headers: pairs ?? record, length, hasContentType, isEncoded };
}

/** The error of a call of `startResponse`. @internal */
export function startError(...[found, expected]: Mistake): TypeError {
  return new TypeError(`Cannot start the response: ${found}, expected ${expected}`);
}

/** The state of one `startResponse`. */
class ResponseStart {
  /** True once the first bytes are on their way. */
  #isCommitted = false;
  #wasCalled = false;
  #head: ResponseHead | undefined;
  #failure: unknown;

  start(status: string, headers: HeaderList, error: unknown): void {
    try {
      if (error === undefined && this.#wasCalled) throw startError(...startedTwice(status));
      if (this.#isCommitted) throw error;
      // A call counts even if it fails: the next one needs an error. PEP 3333, "The start_response() Callable".
      this.#wasCalled = true;
      this.#head = parseHead(status, headers);
      this.#failure = undefined;
    } catch (failure) {
      this.#failure = failure;
      throw failure;
    }
  }

  /** Throws the error of `startResponse` again, for an application that ignored it. */
  throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Returns status and headers, which cannot change any more. */
  commit(): ResponseHead {
    this.throwIfFailed();
    if (!this.#head) throw sendError(...NOT_STARTED);
    this.#isCommitted = true;
    return this.#head;
  }
}

// #endregion

// #region Exchange: one request and its response

/** A `Response` with this status must not have a body (Fetch, "null body status"). @internal */
export const NULL_BODY_STATUSES: ReadonlySet<number> = new Set([204, 205, 304]);

// The error of a stream that fails, which Deno prints. Servers on Node do not take undefined for a failure. The report itself
// goes to wsgi.errors.
const ABORTED = DENO ? "The response was aborted" : new Error("The response was aborted");

/**
 * One request and its response, from the call of the application to the call of `close`.
 *
 * Two states say how far it is. Each changes in the order of its table, may skip some, and never goes back.
 *
 * | state of the response | meaning                                                              | ends with                             |
 * | --------------------- | -------------------------------------------------------------------- | ------------------------------------- |
 * | `pending`             | there is no `Response` yet                                           | `#commit`, `#fail`, `disconnect`      |
 * | `streaming`           | the `Response` is a stream that is not closed                        | `#onAllSent`, `#fail`, `disconnect`   |
 * | `complete`            | no more bytes are sent: all are given, it failed, or the client left |                                       |
 *
 * | state of the application | meaning                                                              | ends with               |
 * | ------------------------ | -------------------------------------------------------------------- | ----------------------- |
 * | `running`                | it has neither returned nor thrown                                   | `#onReturn`, `#onThrow` |
 * | `returned`               | it has returned its body, or thrown                                  | `#close`                |
 * | `closing`                | `close` was called before the end of the body: a `next` may reject   | a turn after `close`    |
 * | `closed`                 | `close` was called                                                   |                         |
 *
 * The response can be complete while the application is still running: it wrote everything, the response has no body,
 * or the client left. While a chunk is awaited, a client that leaves ends the iterator and calls `close` at once; the
 * chunk is dropped when it comes.
 */
class Exchange {
  readonly gateway: Gateway;
  readonly request: Request;
  readonly method: string;
  readonly input: Input;
  readonly errors: ErrorStream;
  readonly context: FetchContext;
  readonly info: unknown;
  /** Its index among the pending exchanges, or -1. */
  pendingIndex = -1;
  readonly #start = new ResponseStart();
  #responseState: "pending" | "streaming" | "complete" = "pending";
  #applicationState: "running" | "returned" | "closing" | "closed" = "running";
  /** True when the client left before the response was complete, or the server gave up. */
  #disconnected = false;
  #body: ResponseBody | undefined;
  /** The source of the next chunks; undefined before the body is opened and after its end. */
  #iterator: ChunkIterator | undefined;
  #response: Response | undefined;
  /** True if the runtime was given a promise of the response: its first chunk leaves a turn later, and then this is reset. */
  #wasPromised = false;
  #resolveResponse: ((response: Response) => void) | undefined;
  #controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  /** True while the next chunk is waited for, in which time a runtime may ask for another one. */
  #isPumping = false;
  /** The number of bytes that the body must have, if it is known. */
  #length = Infinity;
  #bytesSent = 0;
  #abortController: AbortController | undefined;
  /** The last error that was reported; at first an object that nothing throws. */
  #reported: unknown = EMPTY;

  constructor(gateway: Gateway, request: Request, info: unknown) {
    this.gateway = gateway;
    this.request = request;
    this.info = info;
    this.method = request.method; // once: each read is a call of the runtime
    this.input = new Input(this);
    this.errors = gateway.errors ?? new StandardError();
    this.context = new Context(this);
  }

  /** Answers without the application. */
  refuse(error: unknown): Response {
    this.#report(error);
    Input.cancel(this.input, READ_TOO_LATE);
    return this.#respond(this.method === "CONNECT" ? closingErrorResponse(error) : errorResponse(error));
  }

  /** Calls the application. The response is there at once if its first chunk is. */
  run(environ: Environ): Response | Promise<Response> {
    const { gateway } = this;
    try {
      const result = gateway.app(environ, this.#startResponse);
      if (isPromise(result)) {
        Promise.resolve(result).then((body) => this.#onReturn(body), (error) => this.#onThrow(error));
      } else this.#onReturn(result);
    } catch (error) {
      this.#onThrow(error);
    }
    if (this.#applicationState === "running" || this.#applicationState === "returned") gateway.pending.add(this);
    if (this.#responseState !== "complete") gateway.setIdleTimeout?.(this.request, 0);
    // Deno charges for the signal of a request and prints a warning, so that only an application asks for it there.
    if (this.#responseState === "pending" && !DENO) this.observeSignal();
    if (this.#response) return this.#response;
    this.#wasPromised = true;
    return new Promise((resolve) => this.#resolveResponse = resolve);
  }

  #startResponse: StartResponse = (status, headers, error) => {
    this.#start.start(status, headers, error);
    return this.#write;
  };

  #write: Write = (chunk) => {
    if (this.#applicationState !== "running") throw sendError(...WRITTEN_LATE);
    const startsLate = this.#wasPromised && this.#responseState === "pending";
    let taken: Promise<void> | undefined;
    if (chunkLength(chunk) > 0) {
      this.#start.commit();
      if (this.#responseState !== "complete") taken = this.#enqueue(chunk);
      else if (this.#bytesSent >= this.#length) throw this.#wrongLength();
    }
    const written = this.#whenWritten(taken, startsLate);
    written.catch(() => {}); // an application may ignore the promise
    return written;
  };

  /** Waits until a chunk is taken, and then until it has left. */
  async #whenWritten(taken: Promise<void> | undefined, startsLate: boolean): Promise<void> {
    await taken;
    await nextTurn();
    if (startsLate) await nextTurn();
    // The client left, or the response has no body: HEAD, 204, 304, a failure.
    if (this.#responseState === "complete" && this.#bytesSent < this.#length) throw clientDisconnected();
  }

  #enqueue(chunk: Uint8Array): Promise<void> {
    if (this.#iterator instanceof WriteQueue) return this.#iterator.push(chunk);
    const queue = this.#iterator = new WriteQueue();
    const taken = queue.push(chunk);
    this.#receive(true);
    return taken;
  }

  #onReturn(body: ResponseBody): void {
    this.#applicationState = "returned";
    this.#body = body;
    try {
      if (this.#iterator instanceof WriteQueue) return this.#iterator.append(openBody(body));
      if (Array.isArray(body) && this.#responseState === "pending") return this.#commit(concat(body));
      this.#iterator = openBody(body);
      if (this.#responseState === "complete") this.#close();
      else this.#receive(true);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Fails the response, but only after the chunks that were written before have left. */
  #onThrow(error: unknown): void {
    this.#applicationState = "returned";
    if (this.#iterator instanceof WriteQueue) {
      this.#report(error); // a response without a body ends before the queue does
      this.#iterator.append({ next: () => Promise.reject(error) });
    } else this.#fail(error);
  }

  /**
   * Asks for the next chunk that is not empty. It is called when the runtime reads again, after an empty chunk, and after
   * the last declared byte, to find bytes that are too many.
   */
  #pump(): void {
    this.#isPumping = true;
    // The chunk before leaves between two turns of the event loop, which empty chunks must not starve. FileBlocks need no
    // turn: each of their reads takes some.
    if (this.#iterator instanceof FileBlocks) this.#receive();
    else {
      afterTurn(() => {
        // An empty chunk must not use up the second turn.
        if (!this.#wasPromised || this.#responseState !== "streaming") return this.#receive();
        this.#wasPromised = false;
        afterTurn(() => this.#receive());
      });
    }
  }

  /** Asks for one chunk, and handles it, without a promise where it is there at once. */
  #receive(isFirst = false): void {
    if (!this.#iterator) return;
    try {
      const result = this.#iterator.next();
      if (isPromise(result)) {
        Promise.resolve(result).then((chunk) => this.#onChunk(chunk, isFirst), (error) => this.#onChunkFailed(error));
      } else this.#onChunk(result, isFirst);
    } catch (error) {
      this.#onChunkFailed(error);
    }
  }

  #onChunk(result: ChunkResult, isFirst: boolean): void {
    this.#isPumping = false;
    if (!this.#iterator || this.#disconnected) return;
    try {
      if (this.#responseState !== "pending") this.#start.throwIfFailed(); // a startResponse inside next() was ignored
      if (result.done || chunkLength(result.value) > 0) return this.#handleChunk(result);
      // Empty chunks, again and again: from now on the signal has to tell of a client that leaves.
      if (this.#responseState === "pending" && !isFirst) this.observeSignal();
      this.#pump();
    } catch (error) {
      this.#fail(error);
    }
  }

  #onChunkFailed(error: unknown): void {
    // close() may have destroyed what next() was waiting for: its rejection is no failure.
    if (this.#applicationState === "closing") return;
    this.#iterator = undefined; // an iterator that has thrown has ended: no return()
    this.#fail(error);
  }

  #handleChunk(result: ChunkResult): void {
    if (result.done) this.#iterator = undefined;
    if (this.#responseState === "pending") return this.#commit(result.done ? EMPTY : result.value);
    if (this.#responseState === "streaming") return this.#send(result);
    if (!result.done) throw this.#wrongLength(); // a chunk after the last declared byte
    this.#close();
  }

  /** Makes the response, with its first bytes at hand, or all of them. */
  #commit(bytes: Uint8Array): void {
    const head = this.#start.commit();
    const isAll = !this.#iterator;
    if (this.method === "HEAD" || NULL_BODY_STATUSES.has(head.status)) {
      const size = isAll && bytes.length > 0 ? bytes.length : undefined;
      this.#respond(emptyResponse(head, head.length ?? size));
      return this.#onAllSent(bytes.length);
    }
    this.#bytesSent = bytes.length;
    this.#length = head.length ?? (isAll ? bytes.length : Infinity);
    if (this.#bytesSent >= this.#length) {
      // Deno and Bun declare the length themselves. Others see a stream in the response.
      this.#respond(makeResponse(head, prefix(bytes, this.#length), IS_NATIVE ? head.length : this.#length));
      return this.#onAllSent(bytes.length);
    }
    if (isAll) throw this.#wrongLength();
    this.#responseState = "streaming";
    this.#respond(makeResponse(head, this.#stream(bytes), head.length));
  }

  #respond(response: Response): Response {
    const { closeConnectionsUntil } = this.gateway;
    if (closeConnectionsUntil > 0 && performance.now() < closeConnectionsUntil) {
      response.headers.set("Connection", "close");
    }
    this.#response = response;
    this.#resolveResponse?.(response);
    return response;
  }

  /** A stream that begins with a chunk. With a high-water mark of 0 it is not read ahead: `pull` asks for the next one. */
  #stream(first: Uint8Array): ReadableStream<Uint8Array> {
    return new ReadableStream({
      start: (controller) => {
        this.#controller = controller;
        controller.enqueue(first);
      },
      pull: () => {
        if (!this.#isPumping) this.#pump();
      },
      cancel: () => this.disconnect(),
    }, { highWaterMark: 0 });
  }

  #send({ done, value }: ChunkResult): void {
    if (done && this.#length < Infinity) throw this.#wrongLength();
    if (!done) {
      this.#controller!.enqueue(prefix(value, this.#length - this.#bytesSent));
      this.#bytesSent += value.length;
      if (this.#bytesSent < this.#length) return;
    }
    this.#controller!.close();
    this.#onAllSent(done ? 0 : value.length);
  }

  /** The runtime has all of the response. A body that has more than it declared is an error, unless it is a file. */
  #onAllSent(lastChunkSize: number): void {
    this.#responseState = "complete";
    this.gateway.restoreIdleTimeout(this, lastChunkSize);
    if (this.#length === Infinity || FILE in Object(this.#body)) return this.#close();
    if (this.#bytesSent > this.#length) throw this.#wrongLength();
    if (this.#iterator) this.#pump(); // finds out whether there is more
    else this.#close();
  }

  #wrongLength(): Error {
    const found = this.#responseState === "complete" ? "more" : this.#bytesSent;
    return new Error(`Cannot send the body: Content-Length declares ${this.#length} bytes, the body has ${found}`);
  }

  /** Gives up, because the server stops. */
  abort(): void {
    this.disconnect(503);
    this.#close();
    Input.cancel(this.input, CLIENT_LEFT);
  }

  /** Ends the response early. A client that has left reads no status; a server that gives up sends 503. */
  disconnect(status = 499): void {
    if (this.#responseState === "complete") return;
    const isPending = this.#responseState === "pending";
    this.#responseState = "complete";
    this.#disconnected = true;
    this.#abortController ??= new AbortController();
    this.#abortController.abort(clientDisconnected());
    if (isPending) this.#respond(new Response(null, { status, headers: { "Content-Type": "text/plain" } }));
    else this.#controller?.error(ABORTED);
    queueMicrotask(() => this.#close()); // a generator that is running now, and has caused this, cannot return
  }

  #fail(error: unknown): void {
    this.#report(error);
    if (!this.#response) this.#respond(errorResponse(error));
    else if (this.#responseState === "streaming") this.#controller?.error(ABORTED);
    this.#responseState = "complete";
    this.gateway.restoreIdleTimeout(this, 0);
    this.#close();
  }

  /** Ends the iterator. When the application has returned, calls `close`, and lets go of the input. */
  #close(): void {
    const iterator = this.#iterator;
    this.#iterator = undefined;
    if (iterator) this.#runCleanup(() => iterator.return?.());
    if (this.#applicationState !== "returned") return;
    this.#applicationState = iterator ? "closing" : "closed";
    const closed = this.#runCleanup(() => this.#body?.close?.());
    if (iterator) Promise.resolve(closed).then(nextTurn).then(() => this.#applicationState = "closed");
    this.#runCleanup(() => this.errors.flush());
    Input.cancel(this.input, this.#disconnected ? CLIENT_LEFT : READ_TOO_LATE);
    this.gateway.pending.delete(this);
  }

  /** Calls a function that cleans up. A stopping server waits for its promise. */
  #runCleanup(action: () => unknown): Promise<unknown> | undefined {
    try {
      const result = action();
      if (!isPromise(result)) return;
      return this.gateway.pending.track(result, (error) => this.#report(error));
    } catch (error) {
      this.#report(error);
    }
  }

  /** Logs a failure of the application, once. A client that leaves, and what it aborts, is no failure. */
  #report(error: unknown): void {
    const isKnown = HTTP_ERRORS.has(error as object) || error === this.#reported ||
      this.#disconnected && (error === ABORTED || isAbortError(error));
    this.#reported = error;
    if (isKnown) return;
    const { target } = splitUrl(this.request.url);
    const request = `${this.method} ${target}${nameRequest(this.request)}`;
    logError(this.errors, `Application failed on ${request}`, error, this.gateway.app);
  }

  /**
   * The signal of `fetch.context`: the request's own signal tells of a client that leaves before the response begins,
   * the stream tells of one that leaves later.
   */
  observeSignal(): AbortSignal {
    if (this.#abortController) return this.#abortController.signal;
    const { signal } = this.#abortController = new AbortController();
    if (this.#response) return signal;
    if (this.request.signal.aborted) this.disconnect();
    else this.request.signal.addEventListener("abort", () => this.disconnect(), { once: true });
    return signal;
  }
}

/** The chunks that an application writes, and then those of the body it returns. PEP 3333, "The write() Callable". */
class WriteQueue implements AsyncIterator<Uint8Array> {
  readonly #queue: { chunk: Uint8Array; onTaken(): void }[] = [];
  #body: ChunkIterator | undefined;
  #wake: (() => void) | undefined;

  /** Adds a chunk. The promise is fulfilled when the chunk is taken. */
  push(chunk: Uint8Array): Promise<void> {
    const taken = new Promise<void>((resolve) => this.#queue.push({ chunk, onTaken: resolve }));
    this.#wake?.();
    return taken;
  }

  append(body: ChunkIterator): void {
    this.#body = body;
    this.#wake?.();
  }

  async next(): Promise<ChunkResult> {
    while (this.#queue.length === 0 && !this.#body) await new Promise<void>((resolve) => this.#wake = resolve);
    const first = this.#queue.shift();
    if (!first) return this.#body!.next();
    first.onTaken();
    return { done: false, value: first.chunk };
  }

  async return(): Promise<ChunkResult> {
    for (const { onTaken } of this.#queue.splice(0)) onTaken();
    return await this.#body?.return?.() ?? { done: true, value: undefined };
  }
}

/** `fetch.context`. */
class Context implements FetchContext {
  readonly request: Request;
  readonly #exchange: Exchange;

  constructor(exchange: Exchange) {
    this.request = exchange.request;
    this.#exchange = exchange;
  }

  get signal(): AbortSignal {
    return this.#exchange.observeSignal();
  }

  get draining(): boolean {
    return this.stopping.aborted;
  }

  get stopping(): AbortSignal {
    return this.#exchange.gateway.stopping.signal;
  }

  waitUntil(work: Promise<unknown>): void {
    const { gateway, errors, info, request } = this.#exchange;
    const settled = gateway.pending.track(work, (error) => {
      logError(errors, `Work after the response failed${nameRequest(request)}`, error);
    });
    (info as { waitUntil?(work: Promise<unknown>): void } | undefined)?.waitUntil?.(settled);
  }
}

/** Makes a response of a stream, or of bytes that are all of its body. */
function makeResponse(head: ResponseHead, body: Uint8Array | ReadableStream, length?: number): Response {
  const { status, statusText, hasContentType, isEncoded } = head;
  let { headers } = head;
  if (length !== undefined) {
    const value = String(length);
    headers = Array.isArray(headers)
      ? [...headers, ["Content-Length", value]]
      : { ...headers, "Content-Length": value };
  }
  let init: ResponseInit = status === 200 ? { headers } : { status, headers }; // Deno is faster without the status 200
  if (!IS_NATIVE) init = { ...init, statusText };
  if (isEncoded) init = Object.assign(init, { encodeBody: "manual" }); // or workerd would encode the body once more
  if (body instanceof ReadableStream) return new Response(body, init);
  if (body.length === 0) return new Response(null, init);
  // Bun declares bytes without a type to be "application/octet-stream", but not a stream.
  if (!BUN || hasContentType) return new Response(body as Uint8Array<ArrayBuffer>, init);
  const start = (controller: ReadableStreamDefaultController<Uint8Array>) => {
    controller.enqueue(body);
    controller.close();
  };
  return new Response(new ReadableStream({ start }), init);
}

/** Makes a response without a body: to HEAD, or with a null body status. */
function emptyResponse(head: ResponseHead, length: number | undefined): Response {
  if (NULL_BODY_STATUSES.has(head.status)) return makeResponse(head, EMPTY);
  if (length !== undefined) return makeResponse(head, EMPTY, length);
  // Without bytes both runtimes would declare a length of 0, while the length is not known.
  return makeResponse(head, new ReadableStream({ pull: (controller) => controller.close() }, { highWaterMark: 0 }));
}

/** Makes the response to a request that the application does not answer. */
function errorResponse(error: unknown): Response {
  const status = HTTP_ERRORS.get(error as object) ?? 500;
  const headers = { "Content-Type": "text/plain; charset=utf-8" };
  return new Response(`${REASONS[status]}\n`, { status, statusText: REASONS[status]!, headers });
}

/**
 * Makes an error response that ends the connection: what follows a refused CONNECT is not for HTTP (RFC 9931).
 *
 * Bun closes the connection when `Connection: close` tells it to. Deno does so only where a stream fails short of its
 * Content-Length, here by the line feed at the end.
 */
function closingErrorResponse(error: unknown): Response {
  const response = errorResponse(error);
  response.headers.set("Connection", "close");
  if (!DENO) return response;
  const { status, headers } = response;
  const line = new TextEncoder().encode(REASONS[status]);
  headers.set("Content-Length", String(line.length + 1));
  const body = new ReadableStream({
    start: (controller) => controller.enqueue(line),
    pull: (controller) => nextTurn().then(() => controller.error(ABORTED)),
  }, { highWaterMark: 0 });
  return new Response(body, { status, headers });
}

// #endregion

// #region Gateway: one application

// Bun's idle timeout of a connection, in seconds. A slow client takes a large last chunk from Bun's buffer in bursts, and
// Bun counts the pauses between them as idle: after more than LARGE_CHUNK bytes, LARGE_IDLE_TIMEOUT holds until the next
// request.
const IDLE_TIMEOUT = 10;
const LARGE_IDLE_TIMEOUT = 240;
const LARGE_CHUNK = 65_536;

/** Sets the idle timeout of a request's connection, in seconds; 0 disables it. */
type SetIdleTimeout = (request: Request, seconds: number) => void;

/** One application, and the state that its requests share. */
class Gateway {
  readonly app: Application;
  readonly maxBodySize: number;
  readonly errors: ErrorStream | undefined;
  /** The beginning of each environ, which is a copy of it. */
  readonly environTemplate: Partial<Environ>;
  readonly pending = new PendingWork();
  /** Aborts when the server is told to stop. */
  readonly stopping = new AbortController();
  /** The authority that Deno puts in the URL of a request that names none. */
  defaultAuthority: string | undefined;
  /** True from the moment the server closes its port. A request that still arrives is refused. */
  isRefusing = false;
  /** The time until which each response closes its connection, by `performance.now()`. */
  closeConnectionsUntil = 0;
  /** Undefined where the runtime has no idle timeout, or the deployer has set one. */
  setIdleTimeout: SetIdleTimeout | undefined;

  constructor(app: ApplicationLike, options: ToFetchOptions) {
    this.app = application(app);
    this.errors = options.errors;
    this.maxBodySize = options.maxBodySize ?? Infinity;
    this.environTemplate = makeEnvironTemplate(options);
  }

  handle(request: Request, info: unknown): Response | Promise<Response> {
    const exchange = new Exchange(this, request, info);
    let environ: Environ;
    try {
      if (this.isRefusing) throw serverStopping();
      environ = buildEnviron(exchange);
      if (Number(environ.CONTENT_LENGTH) > this.maxBodySize) throw bodyTooLarge(this.maxBodySize);
    } catch (error) {
      return exchange.refuse(error);
    }
    return exchange.run(environ);
  }

  /**
   * Sets the idle timeout of a connection whose response is complete. One that was complete at once is not pending: its
   * timeout was never disabled, so that the call of the runtime can be spared.
   */
  restoreIdleTimeout(exchange: Exchange, lastChunkSize: number): void {
    if (lastChunkSize > LARGE_CHUNK) this.setIdleTimeout?.(exchange.request, LARGE_IDLE_TIMEOUT);
    else if (exchange.pendingIndex !== -1) this.setIdleTimeout?.(exchange.request, IDLE_TIMEOUT);
  }
}

/** Makes the template of all environs: the values that they share, and places for the strings of every request. */
function makeEnvironTemplate({ environ = {}, scriptName = "" }: ToEnvironOptions): Partial<Environ> {
  for (const [name, value] of Object.entries(environ)) {
    if (value === undefined) throw new TypeError(`Cannot use option "environ": "${name}" is undefined, leave it out`);
  }
  return {
    "wsgi.multithread": false,
    "wsgi.multiprocess": false,
    ...environ,
    REQUEST_METHOD: "",
    SCRIPT_NAME: percentDecode(percentEncode(scriptName)),
    PATH_INFO: "",
    QUERY_STRING: "",
    REQUEST_URI: "",
    SERVER_NAME: "",
    SERVER_PORT: "",
    SERVER_PROTOCOL: "HTTP/1.1",
    SERVER_SOFTWARE: SOFTWARE,
    "wsgi.version": Object.freeze([1, 0] as const), // shared by all requests
    "wsgi.url_scheme": "",
    "wsgi.run_once": false,
    "wsgi.input_terminated": true,
    "wsgi.file_wrapper": wrapFile,
  };
}

/**
 * The exchanges under way, and the tasks that go on after them. A stopping server waits for both.
 *
 * The exchanges are in an array, and each knows its index. A `Set` would keep many of them until V8 collects all garbage:
 * when it grows or shrinks, its old table points to the new one, so that one table that has grown old keeps all later ones.
 */
class PendingWork {
  readonly exchanges: Exchange[] = [];
  tasks = 0;
  #onIdle: (() => void) | undefined;

  get size(): number {
    return this.exchanges.length + this.tasks;
  }

  add(exchange: Exchange): void {
    exchange.pendingIndex = this.exchanges.push(exchange) - 1;
  }

  /** Takes an exchange out, whose place the last one takes. */
  delete(exchange: Exchange): void {
    if (exchange.pendingIndex === -1) return;
    const last = this.exchanges.pop()!;
    if (last !== exchange) this.exchanges[last.pendingIndex = exchange.pendingIndex] = last;
    exchange.pendingIndex = -1;
    this.#onSettled();
  }

  /** Counts work as a task until it settles. */
  track(work: PromiseLike<unknown>, onError: (error: unknown) => void): Promise<unknown> {
    this.tasks++;
    return Promise.resolve(work).catch(onError).finally(() => {
      this.tasks--;
      this.#onSettled();
    });
  }

  #onSettled(): void {
    if (this.size === 0) this.#onIdle?.();
  }

  /** Fulfilled when nothing is pending. One caller at a time can wait. */
  whenIdle(): Promise<void> {
    return this.size === 0 ? Promise.resolve() : new Promise((resolve) => this.#onIdle = resolve);
  }
}

/**
 * Makes a plain function of any application object: a function, a class, or an object with a method `handle`.
 *
 * A class is told from a function by its `prototype`, which is not writable. PEP 3333, "The Application/Framework Side".
 *
 * @throws {TypeError} When `like` is neither a function, nor a class, nor such an object.
 *
 * @param like The application object.
 * @returns The application as a function.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { application } from "./mod.ts";
 *
 * assert.equal(typeof application({ handle: () => [] }), "function");
 * ```
 */
export function application(like: ApplicationLike): Application {
  if (typeof like === "function") {
    if (Object.getOwnPropertyDescriptor(like, "prototype")?.writable !== false) return like as Application;
    return (environ, startResponse) => new (like as ApplicationClass)(environ, startResponse);
  }
  if (typeof like?.handle === "function") return (environ, startResponse) => like.handle(environ, startResponse);
  const isLiteral = isObject(like) && Object.getPrototypeOf(like) === Object.prototype;
  let remedy = isLiteral ? ": options come second, as in (app) => errorPage(app, options)" : "";
  if (isLiteral && Object.keys(like).some((key) => key.includes("/"))) remedy = ": mount(apps)";
  if (isFunction(Object(like).fetch)) remedy = ": fromFetch(app.fetch)";
  if (isPromise(like)) remedy = ": await it";
  const expected = `a function, a class or an object with a method "handle"${remedy}`;
  throw new TypeError(`Cannot call ${inspect(like)}, expected ${expected}`);
}

/**
 * Makes a Fetch handler of an application: for `export default { fetch }`, other runtimes, and tests without a socket.
 *
 * The handler never throws. It reports a failure of the application on `wsgi.errors`, and answers with a plain 500.
 *
 * Its second argument is what the runtime gives beside the request. A server that gives nothing of the kind can hand over
 * `{ remoteAddr: { hostname, port }, waitUntil }`, as {@linkcode FetchHandler} says.
 *
 * @throws {TypeError} When an option does not exist or is not what it should be, or `app` is not an application.
 *
 * @param app The application.
 * @param options The limits, and the additions to the environ.
 * @returns The handler.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { toFetch } from "./mod.ts";
 *
 * const handler = toFetch((environ, startResponse) => {
 *   startResponse("200 OK", [["Content-Type", "text/plain"]]);
 *   return [new TextEncoder().encode(environ.PATH_INFO)];
 * });
 * assert.equal(await (await handler(new Request("http://localhost/path"))).text(), "/path");
 * ```
 */
export function toFetch(app: ApplicationLike, options: ToFetchOptions = {}): FetchHandler {
  checkOptions(options, FETCH_OPTIONS);
  const gateway = new Gateway(app, options);
  return (request, info) => gateway.handle(request, info);
}

/**
 * Makes an environ of a Fetch request.
 *
 * No server waits for the work that is given to `waitUntil` of its `fetch.context`, unless `info` has a `waitUntil`.
 *
 * @throws {TypeError} When an option does not exist or is not what it should be, when Host or Content-Length of the
 * request is invalid, or when the method is CONNECT.
 * @throws {RangeError} When the path of the request is outside `scriptName`.
 *
 * @param request The request.
 * @param options The facts that are not in the request.
 * @returns The environ.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { toEnviron } from "./mod.ts";
 *
 * const environ = toEnviron(new Request("http://example.com/app/a%20b?c=d"), { scriptName: "/app" });
 * assert.equal(environ.PATH_INFO, "/a b");
 * assert.equal(environ.QUERY_STRING, "c=d");
 * ```
 */
export function toEnviron(request: Request, options: ToEnvironOptions = {}): Environ {
  checkOptions(options, TO_ENVIRON_OPTIONS);
  return buildEnviron(new Exchange(new Gateway(() => [], options), request, options.info));
}

/**
 * Calls an application once, as a server would, and collects its response: for tests.
 *
 * `startResponse` checks its arguments as that of a server does. `close` is called at the end, also after a failure. The
 * application gets a copy of the environ, whose `wsgi.errors` collects text.
 *
 * @throws {Error} When the application throws, or breaks a rule of the interface.
 *
 * @param app The application.
 * @param environ The request.
 * @returns Status, headers and body exactly as the application gave them, and the text of `wsgi.errors`.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { runApplication, type StartResponse, toEnviron } from "./mod.ts";
 *
 * const app = (_environ: unknown, startResponse: StartResponse) => (startResponse("200 Fine", []), []);
 * const { status } = await runApplication(app, toEnviron(new Request("http://localhost/")));
 * assert.equal(status, "200 Fine");
 * ```
 */
export async function runApplication(app: ApplicationLike, environ: Environ): Promise<ApplicationResult> {
  const start = new ResponseStart();
  const result: ApplicationResult = { status: "", headers: [], body: EMPTY, errors: "" };
  const sent: Uint8Array[] = [];
  const send = (chunk: Uint8Array) => {
    if (chunkLength(chunk) > 0) start.commit();
    sent.push(new Uint8Array(chunk)); // slice() of a Buffer is a view
  };
  const errors = errorStream((text) => void (result.errors += text));
  const call = application(app);
  let hasReturned = false;
  const body = await call({ ...environ, "wsgi.errors": errors }, (status, headers, error) => {
    start.start(status, headers, error);
    Object.assign(result, { status, headers: headers.map((pair) => [...pair]) });
    return (chunk) => {
      if (hasReturned) throw sendError(...WRITTEN_LATE);
      return Promise.resolve(send(chunk));
    };
  });
  hasReturned = true;
  try {
    const chunks = { [Symbol.asyncIterator]: () => openBody(body) } as AsyncIterable<Uint8Array>;
    for await (const chunk of chunks) send(chunk);
    start.commit();
  } finally {
    await body?.close?.();
  }
  return { ...result, body: concat(sent) };
}

// #endregion

// #region Fetch bridge

/**
 * Makes an application of a Fetch handler, such as Hono's `app.fetch`. Bodies stream in both directions.
 *
 * The handler gets the request of {@linkcode toRequest}, and, as its second argument, the client's address in the forms
 * of Deno and of Bun. Hop-by-hop headers of its response are dropped (RFC 9110, section 7.6.1).
 *
 * So are Content-Encoding, Content-Length, Accept-Ranges and digests of a response of `fetch` whose body the runtime has
 * decoded. Where the handler has asked for a body as it is coded, it returns `new Response(response.body, response)`, which
 * keeps them.
 *
 * @param handler The Fetch handler.
 * @returns The application.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { fromFetch, toFetch } from "./mod.ts";
 *
 * const app = fromFetch((request) => new Response(request.method));
 * assert.equal(await (await toFetch(app)(new Request("http://localhost/"))).text(), "GET");
 * ```
 */
export function fromFetch(handler: (request: Request, info: never) => Response | Promise<Response>): Application {
  return async (environ, startResponse) => {
    const response = await handler(toRequest(environ), handlerInfo(environ) as never);
    if (!(response instanceof Response)) {
      throw new TypeError(`The handler returned ${inspect(response)}, not a Response`);
    }
    if (response.status === 101) refuseUpgrade(); // that of Deno.upgradeWebSocket
    try {
      const reason = response.statusText || REASONS[response.status] || "Unknown";
      startResponse(`${response.status} ${reason}`, responseHeaders(response));
    } catch (error) {
      response.body?.cancel(error).catch(() => {});
      throw error;
    }
    return (response.body ?? []) as ResponseBody; // the DOM alone has no types of its iterators
  };
}

/** The headers of a Fetch response, without those of one connection, and of a coding that `fetch` has undone. @internal */
export function responseHeaders(response: Response): HeaderList {
  const { headers } = response;
  const perHop = parseList(headers.get("Connection")?.toLowerCase() ?? "");
  const dropped = new Set(isDecoded(response) ? [...perHop, ...CODED_HEADERS] : perHop);
  return [...headers as unknown as Iterable<[string, string]>].filter(([name]) =>
    !HOP_BY_HOP.test(name) && !dropped.has(name)
  );
}

/** The headers that no longer hold once a body is coded or decoded. @internal */
export const CODED_HEADERS = [
  "content-encoding",
  "content-length",
  "content-md5",
  "digest",
  "content-digest",
  "repr-digest",
  "accept-ranges",
];

/**
 * Whether `fetch` decodes the body of a response. No property tells, and the headers stay as they were sent.
 *
 * Deno 2.9.6 decodes `gzip` and `br`, each alone, but nothing in answer to a Range. Bun 1.4.5 decodes one of five codings,
 * beside which it ignores `identity`. For HEAD and 304 the headers are those of GET: RFC 9110, sections 9.3.2 and 15.4.5.
 */
function isDecoded({ url, status, headers }: Response): boolean {
  const coding = headers.get("Content-Encoding")?.toLowerCase() ?? "";
  if (url === "") return false; // made by the handler
  if (DENO) return status !== 206 && /^(?:gzip|br)$/.test(coding);
  return /^(?:gzip|x-gzip|deflate|br|zstd)$/.test(parseList(coding).filter((name) => name !== "identity").join());
}

function refuseUpgrade(): never {
  const expected = "expected an upgrade before the request reaches toFetch(app)";
  throw new Error(`Cannot upgrade the connection: WSGI has no WebSockets, ${expected}`);
}

/** Makes the second argument of a Fetch handler: `Deno.ServeHandlerInfo`, with methods of Bun's server. */
function handlerInfo({ REMOTE_ADDR: address, REMOTE_PORT: port }: Environ): unknown {
  if (address === undefined) return { requestIP: () => null, upgrade: refuseUpgrade };
  const peer = { address, family: address.includes(":") ? "IPv6" : "IPv4", port: port && Number(port) };
  return {
    remoteAddr: { transport: "tcp", hostname: address, port: peer.port },
    requestIP: () => peer,
    upgrade: refuseUpgrade,
  };
}

/**
 * Makes a Fetch request of an environ as it is now: for applications that want `.json()` or `.formData()`.
 *
 * The path of the URL is PATH_INFO alone, so that a mounted handler routes by its own paths. The body is the rest of
 * `wsgi.input`. The signal is that of `fetch.context`. Pass it on as `fetch(request, { signal: request.signal })`: it is
 * not read before.
 *
 * An error of reading the body has a `status`: 400 when the client has left, or when its bytes are not what `.json()` or
 * `.formData()` expects, 413 when there are more than a limit allows. An error that the application does not handle is
 * answered with its status. A second read of the body is a mistake of the application, and its error has no status.
 *
 * @throws {TypeError} When Fetch forbids the method (CONNECT, TRACE, TRACK), or a URL cannot hold the host (`web.1`, `a%2Eb`)
 * or the dot segments of the path. A middleware would have checked another one than the handler gets.
 *
 * @param environ The environ.
 * @returns The request.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { toEnviron, toRequest } from "./mod.ts";
 *
 * const environ = toEnviron(new Request("http://localhost/item", { method: "POST", body: "[1]" }));
 * assert.deepEqual(await toRequest(environ).json(), [1]);
 * ```
 */
export function toRequest(environ: Environ): Request {
  const { REQUEST_METHOD: method, PATH_INFO = "", QUERY_STRING = "", SERVER_NAME, SERVER_PORT } = environ;
  if (/^(?:CONNECT|TRACE|TRACK)$/i.test(method)) {
    throw httpError(501, new TypeError(`Cannot make a request of ${method}`));
  }
  if (/\/\.\.?(?:\/|$)/.test(PATH_INFO)) {
    throw httpError(400, new TypeError(`Cannot make a URL of ${inspect(PATH_INFO)}: it would lose the dot segments`));
  }
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(environ)) {
    if (typeof value !== "string") continue;
    if (name.startsWith("HTTP_")) headers[name.slice(5).replaceAll("_", "-")] = value;
    else if (name === "CONTENT_TYPE" || name === "CONTENT_LENGTH") headers[name.replace("_", "-")] = value;
  }
  const origin = `${environ["wsgi.url_scheme"]}://${environ.HTTP_HOST || `${SERVER_NAME}:${SERVER_PORT}`}`;
  if (!URL.canParse(origin) || /%[0-7]/.test(origin)) { // a URL decodes "a%2Eb"
    throw httpError(400, new TypeError(`Cannot make a URL of ${inspect(origin)}: it cannot have this host`));
  }
  // Bytes, not text: encodeURIComponent would encode each byte as UTF-8 once more.
  const path = PATH_INFO.replace(/[^\w/:@!$&'()*+,;=~.-]/g, escapeByte);
  const url = `${origin}${path.startsWith("/") ? "" : "/"}${path}`;
  const body = /^(?:GET|HEAD)$/i.test(method) ? null : inputToStream(environ);
  if (body === null) {
    delete headers["CONTENT-LENGTH"];
    delete headers["TRANSFER-ENCODING"];
  }
  const init = { method, headers, body, duplex: "half" as const };
  const query = QUERY_STRING === "" ? "" : `?${QUERY_STRING.replaceAll("#", "%23")}`;
  const request = new Request(`${url}${query}`, init);
  const context = environ["fetch.context"];
  if (context) Object.defineProperty(request, "signal", { get: () => context.signal });
  const readBytes = request.arrayBuffer.bind(request);
  const read = <Value>(
    parse: (bytes: ArrayBuffer) => Value | Promise<Value>,
    makeError: (cause: unknown) => Error = (cause) => cause as Error,
  ) =>
  () => {
    const parsing = (async () => {
      if (request.bodyUsed) throw readTwice(); // a mistake of the program, and not of the client
      const bytes = await readBytes();
      try {
        return await parse(bytes);
      } catch (cause) {
        throw Object.assign(httpError(400, makeError(cause)), { expose: true });
      }
    })();
    // A program that does not wait would be ended by what a client sends, or by its own response.
    parsing.catch((error) => {
      // Where a middleware has given up on the application, a read that is awaited fails, too.
      if (!isAbortError(error) || error.message !== READ_TOO_LATE || context?.signal.aborted) return;
      const target = `${method} ${environ.REQUEST_URI ?? path}${nameRequest(context?.request, environ["request.id"])}`;
      logError(environ["wsgi.errors"], `Reading the body failed on ${target}`, error);
    });
    return parsing;
  };
  const response = (bytes: ArrayBuffer) => new Response(bytes, { headers: request.headers });
  return Object.assign(request, {
    arrayBuffer: read((bytes) => bytes),
    blob: read((bytes) => response(bytes).blob()),
    bytes: read((bytes) => new Uint8Array(bytes)),
    formData: read(
      (bytes) => response(bytes).formData(),
      (cause) => new TypeError("Cannot parse the request body: expected a form", { cause }),
    ),
    json: read(
      (bytes) => JSON.parse(new TextDecoder().decode(bytes)),
      (cause) => new SyntaxError("Cannot parse the request body: expected JSON", { cause }),
    ),
    text: read((bytes) => new TextDecoder().decode(bytes)),
  });
}

function inputToStream({ "wsgi.input": input, CONTENT_LENGTH }: Environ): ReadableStream<Uint8Array> {
  let mustHaveBytes = Number(CONTENT_LENGTH) > 0;
  return new ReadableStream({
    async pull(controller) {
      const chunk = await readAtHand(input);
      if (mustHaveBytes && chunk.length === 0) throw readTwice();
      mustHaveBytes = false;
      if (chunk.length > 0) controller.enqueue(chunk);
      else controller.close();
    },
  }, { highWaterMark: 0 });
}

function readTwice(): TypeError {
  const expected = "expected one call, whose result is kept: const data = await request.json()";
  return new TypeError(`Cannot read the request body: it was read before, ${expected}`);
}

// #endregion

// #region Listening

/** The server of a runtime, as its adapter returns it. */
interface Listener {
  hostname: string;
  port: number;
  setIdleTimeout?: SetIdleTimeout | undefined;
  /** Closes the port and waits for the requests under way. A forced stop cuts them, where the runtime can. */
  stop(force?: boolean): Promise<void>;
}

/** Listens with the adapter of this runtime. The unix socket of a server that has died is replaced. */
function listen(options: ServeOptions, handler: FetchHandler): Listener {
  const { unix } = options;
  const adapter = DENO ? listenDeno : BUN ? listenBun : undefined;
  if (!adapter) {
    throw new Error("Cannot serve: this is neither Deno nor Bun, expected another server, with toFetch(app)");
  }
  if (sharesPort(options)) requireUnstableNet("reusePort");
  // A runtime prints the stacks of an error that nobody catches, and of its cause. Here the message says it all.
  const errors = Error as unknown as { stackTraceLimit?: number | undefined };
  const { stackTraceLimit } = errors;
  errors.stackTraceLimit = 0;
  try {
    if (unix !== undefined && isStaleSocket(unix)) process.getBuiltinModule("node:fs").unlinkSync(unix);
    return adapter(options, handler);
  } catch (cause) {
    const reason = listenErrorReason(cause, options);
    const error = new Error(`Cannot listen on ${formatAddress(options)}: ${reason}`, { cause });
    throw Object.assign(error, { code: (cause as { code?: unknown }).code });
  } finally {
    errors.stackTraceLimit = stackTraceLimit;
  }
}

function setUnixMode({ unix, unixMode }: ServeOptions): void {
  if (unix !== undefined && unixMode !== undefined) process.getBuiltinModule("node:fs").chmodSync(unix, unixMode);
}

/** Tests whether other processes may listen on the same port. */
function sharesPort(options: ServeOptions): boolean {
  return ((DENO ? options.deno : options.bun)?.reusePort ?? options.reusePort) === true;
}

/** Throws where Deno cannot share a port, because Deno 2.9.6 would end the process. */
function requireUnstableNet(option: string, otherWay = ""): void {
  if (!DENO || typeof DENO.listenDatagram === "function") return;
  throw new Error(`Cannot use option "${option}": Deno needs --unstable-net for it${otherWay}`);
}

function formatAddress({ hostname = "127.0.0.1", port = 8000, unix }: ServeOptions): string {
  if (unix !== undefined) return inspect(unix);
  const escaped = JSON.stringify(hostname).slice(1, -1); // it may have control characters
  return `${hostname.includes(":") ? `[${hostname}]` : escaped}:${port}`;
}

/** Explains in one line why the runtime cannot listen, and how to mend it. The first test that matches decides. */
function listenErrorReason(cause: unknown, { port = 8000, unix, key = "" }: ServeOptions): string {
  const { code, name, message } = cause as { code?: string; name: string; message: string };
  const isSocket = unix !== undefined;
  const text = `${code} ${name} ${message}`;
  if (name === "NotCapable") return `Deno ${message.replace(/^R/, "r")}`;
  if (code === "EADDRINUSE") {
    return isSocket
      ? "another server has the socket, or it is no socket, expected a path that is free"
      : `another server has the port, expected one that is free: serve(app, { port: ${port % 65_535 + 1} })`;
  }
  if (/^(?:EACCES|EPERM)/.test(text)) {
    return `permission denied, use ${isSocket ? "a folder that this user may write to" : "a port from 1024 on"}`;
  }
  if (isSocket && /^(?:ENOENT|ENOTDIR)/.test(text)) return "its folder is not there, or is not a directory";
  if (isSocket && /SUN_LEN|too long/.test(text)) return "the path is too long, expected at most 107 bytes";
  if (!isSocket && /^(?:EADDRNOTAVAIL|EINVAL|ENOTFOUND|EAGAIN|EAI_AGAIN)|URI|lookup|host/i.test(text)) {
    return 'it is no address of this machine, expected one such as "127.0.0.1", or "0.0.0.0" for all';
  }
  if (key.includes("ENCRYPTED")) return 'option "key" needs a passphrase, expected a private key that needs none';
  if (key !== "" && /InvalidData|ERR_|PEM|certificate|key/i.test(text)) {
    return 'options "cert" and "key" are no certificate and its private key';
  }
  return message.split("\n")[0]!.replace(/^Error: /, "");
}

// How long a worker may take to connect to a socket, in milliseconds.
const CONNECT_TIMEOUT = 5000;

/**
 * Tests whether the file of a unix socket was left by a server that died. Only connecting tells, and only a worker can
 * connect while this thread waits.
 */
function isStaleSocket(path: string): boolean {
  const [unknown, alive, stale] = [0, 1, 2];
  const stat = () => process.getBuiltinModule("node:fs").lstatSync(path, { throwIfNoEntry: false });
  const before = stat();
  if (!before?.isSocket()) return false;
  const { Worker } = process.getBuiltinModule("node:worker_threads");
  const state = new Int32Array(new SharedArrayBuffer(4)).fill(unknown);
  const source = `const { workerData: { path, state } } = require("node:worker_threads");
    const settle = (value) => {
      Atomics.store(state, 0, value);
      Atomics.notify(state, 0);
    };
    const socket = require("node:net").connect(path);
    socket.on("connect", () => settle(${alive}));
    socket.on("error", ({ code }) => settle(code === "ECONNREFUSED" ? ${stale} : ${alive}));`;
  const worker = new Worker(source, { eval: true, workerData: { path, state } });
  Atomics.wait(state, 0, unknown, CONNECT_TIMEOUT);
  worker.terminate();
  return state[0] === stale && stat()?.ctimeMs === before.ctimeMs; // another server may have replaced it meanwhile
}

// The pause before a server on Deno listens again, in milliseconds.
const LISTEN_PAUSE = 1000;

function listenDeno(options: ServeOptions, handler: FetchHandler): Listener {
  const { hostname = "127.0.0.1", port = 8000, unix, cert, key, reusePort = false } = options;
  const servers: DenoServer[] = []; // all since the start: each may still have connections
  let isStopping = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const start = (port: number): DenoServer => {
    const server = DENO!.serve({
      ...(unix === undefined ? { hostname, port, reusePort } : { path: unix }),
      ...(cert === undefined ? {} : { cert, key }),
      onListen() {}, // the default prints a line
      onError: errorResponse,
      ...options.deno,
    }, handler);
    setUnixMode(options);
    servers.push(server);
    server.finished.catch((error) => isStopping ? undefined : listenAgain(error));
    return server;
  };
  const { addr } = start(port);
  const address = { ...options, port: addr.port ?? 0 };
  /** Deno 2.9.6 closes its port when the process has no descriptors left. Requests under way go on. */
  const listenAgain = (cause: unknown) => {
    const where = formatAddress(address);
    const reason = listenErrorReason(cause, address);
    printError(`Cannot accept connections on ${where}: ${reason}, listening again in ${LISTEN_PAUSE} ms`);
    timer = setTimeout(() => {
      try {
        start(address.port);
      } catch (error) {
        listenAgain(error);
      }
    }, LISTEN_PAUSE);
  };
  return {
    hostname: addr.hostname ?? "",
    port: address.port,
    // No setIdleTimeout: Deno has no idle timeout.
    async stop(force = false) {
      isStopping = true;
      clearTimeout(timer);
      // A forced stop always follows a graceful one, and Deno 2.9.6 ends the process when a server that is shutting down
      // is aborted. Only clients that neither read nor leave are left then.
      if (!force) await Promise.all(servers.map((server) => server.shutdown()));
    },
  };
}

function listenBun(options: ServeOptions, handler: FetchHandler): Listener {
  const { hostname = "127.0.0.1", port = 8000, unix, cert, key, reusePort = false } = options;
  const server = BUN!.serve({
    ...(unix === undefined ? { hostname, port, reusePort } : { unix }),
    ...(cert === undefined ? {} : { tls: { cert, key } }),
    idleTimeout: IDLE_TIMEOUT,
    maxRequestBodySize: Number.MAX_SAFE_INTEGER, // the default is 128 MiB
    development: false, // the default answers errors with their source
    error: errorResponse,
    ...options.bun,
    fetch: handler,
  });
  setUnixMode(options);
  return {
    hostname: server.address?.address ?? "",
    port: server.port ?? 0,
    // Bun counts the time that an application takes as idle, so that the gateway disables the timeout meanwhile. An idle
    // timeout of the deployer's own stays as it is, and then also cuts requests under way.
    setIdleTimeout: options.bun?.idleTimeout === undefined
      ? (request, seconds) => server.timeout(request, seconds)
      : undefined,
    // server.stop() waits for half-sent heads as well. A second after the last request they are given up.
    async stop(force = false) {
      const stopped = server.stop(force);
      const requestsEnd = async () => {
        while (server.pendingRequests > 0) await pause(50);
        await pause(1000);
      };
      await (force ? stopped : Promise.race([stopped, requestsEnd()]));
    },
  };
}

// #endregion

// #region Serve and signals

/**
 * Serves an application on `Deno.serve` or `Bun.serve`, whichever runtime this is.
 *
 * Prints the address to standard error, unless `onListen` is given. The server listens when `serve` returns; with
 * workers, when it prints the address or calls `onListen`. PEP 3333, "The Server/Gateway Side".
 *
 * @throws {TypeError} When an option does not exist or is not what it should be, or `app` is not an application.
 * @throws {Error} When the runtime cannot listen, or is neither of the two.
 *
 * @param app The application.
 * @param options Where to listen, and what surrounds the application.
 * @returns The server.
 *
 * @example
 * ```ts ignore
 * import { serve } from "./mod.ts";
 *
 * serve((_environ, startResponse) => (startResponse("204 No Content", []), []), { port: 8080 });
 * ```
 */
export function serve(app: ApplicationLike, options: ServeOptions = {}): Server {
  checkServeOptions(options);
  const { signal, signals = true, onListen, shutdownDelay = 0, shutdownTimeout = 30_000 } = options;
  const backend = options.workers === undefined ? new LocalServer(app, options) : new WorkerPool(app, options);
  const { address, description } = backend;
  const stopped = Promise.withResolvers<void>();
  let isStopping = false;
  let signalStatus = 0; // the exit status for the signal that came; 0 before

  /** Drains until the deadline, and aborts what is left. */
  const stop = async (delay: number) => {
    const expired = Promise.withResolvers<boolean>();
    const limit = delay + Math.max(shutdownTimeout, 100); // even with 0, to close idle connections takes a moment
    const timer = setTimeout(() => expired.resolve(false), Math.min(limit, MAX_DELAY));
    const isDone = await Promise.race([backend.drain(delay), expired.promise]);
    clearTimeout(timer);
    await backend.abort();
    removeSignalListeners?.();
    if (signalStatus !== 0) exitAfterSignal(isDone ? 0 : signalStatus);
  };
  const shutdown = (delay = shutdownDelay) => {
    if (isStopping) return stopped.promise;
    isStopping = true;
    signal?.removeEventListener("abort", onAbort); // on Deno a listener of AbortSignal.timeout keeps the process alive
    stop(delay).then(stopped.resolve, stopped.reject);
    return stopped.promise;
  };
  const describeStop = () => {
    const wait = shutdownTimeout === Infinity ? "waiting" : `waiting up to ${shutdownTimeout / 1000} s`;
    if (shutdownDelay === 0) {
      return backend.pendingText === "" ? "nothing is under way" : `${wait} for ${backend.pendingText}`;
    }
    return `serving for another ${shutdownDelay / 1000} s, then ${wait} for what is under way`;
  };
  const onAbort = () => void shutdown();
  const removeSignalListeners = signals
    ? onSignal((name, status) => {
      if (signalStatus !== 0) backend.abort().then(() => process.exit(status));
      else if (!onListen) printError(`Stopping on ${name}: ${describeStop()}, another signal ends the process at once`);
      signalStatus = status;
      shutdown();
    })
    : undefined;
  const server: Server = {
    ...address,
    runtime: DENO ? "deno" : "bun",
    finished: stopped.promise,
    shutdown: () => shutdown(),
    [Symbol.asyncDispose]: () => shutdown(),
  };
  const listening = `Serving on ${address.url} with ${SOFTWARE.split(" ")[1]}, ${description}`;
  const announce = onListen ?? (() => printError(listening));
  try {
    backend.start(() => announce(server), (error) => {
      printError(error instanceof Error ? error.message : formatError(error));
      process.exitCode = 1;
      shutdown(0);
    });
  } catch (error) {
    shutdown(0);
    throw error;
  }
  if (signal?.aborted) shutdown(0);
  else signal?.addEventListener("abort", onAbort);
  return server;
}

/** The part of a server that serves: this thread, or a pool of workers. */
interface ServerBackend {
  readonly address: Pick<Server, "url" | "hostname" | "port">;
  /** The number of threads, in words. */
  readonly description: string;
  /** The work under way, in words; empty if there is none. */
  readonly pendingText: string;
  /** Starts. Calls `onReady` once it serves, and `onFailure` when it cannot, or can no longer. */
  start(onReady: () => void, onFailure: (error: unknown) => void): void;
  /** Serves on for a delay, then finishes the requests under way. Fulfilled with false when some were lost. */
  drain(delay: number): Promise<boolean>;
  abort(): Promise<void>;
}

// The addresses whose URL is best shown as localhost.
const LOCAL_ADDRESSES = new Set(["127.0.0.1", "0.0.0.0", "::1", "::"]);

/** A server in this thread. */
class LocalServer implements ServerBackend {
  readonly address: ServerBackend["address"];
  readonly description = "1 worker";
  readonly gateway: Gateway;
  readonly #listener: Listener;

  constructor(app: ApplicationLike, options: ServeOptions) {
    const { unix, cert } = options;
    this.gateway = new Gateway(app, options);
    this.#listener = listen(options, (request, info) => this.gateway.handle(request, info));
    const { hostname, port } = this.#listener;
    const scheme = cert === undefined ? "http" : "https";
    const serverName = unix !== undefined ? "localhost" : hostname.includes(":") ? `[${hostname}]` : hostname;
    const url = unix === undefined
      ? `${scheme}://${LOCAL_ADDRESSES.has(hostname) ? "localhost" : serverName}:${port}/`
      : `http+unix://${encodeURIComponent(unix)}/`;
    this.address = { url, hostname: unix ?? hostname, port };
    this.gateway.defaultAuthority = cert === undefined ? `localhost:${port}` : undefined;
    this.gateway.setIdleTimeout = this.#listener.setIdleTimeout;
    Object.assign(this.gateway.environTemplate, {
      SERVER_NAME: serverName,
      SERVER_PORT: unix === undefined ? String(port) : "80",
      "wsgi.url_scheme": scheme,
    });
    if (sharesPort(options)) this.gateway.environTemplate["wsgi.multiprocess"] = true;
  }

  get pendingText(): string {
    const { exchanges, tasks } = this.gateway.pending;
    const parts: string[] = [];
    if (exchanges.length > 0) parts.push(plural(exchanges.length, "request"));
    if (tasks > 0) parts.push(`${plural(tasks, "task")} after a response`);
    return parts.join(" and ");
  }

  start(onReady: () => void): void {
    onReady(); // it listens since the constructor
  }

  async drain(delay: number): Promise<boolean> {
    const { gateway } = this;
    gateway.closeConnectionsUntil = Infinity; // so that clients send their next request elsewhere
    gateway.stopping.abort(serverStopping());
    if (delay > 0) await new Promise((resolve) => setTimeout(resolve, Math.min(delay, MAX_DELAY)));
    gateway.isRefusing = true;
    await this.#close();
    return true;
  }

  /** Closes the port while other threads go on. Requests that still arrive are served: `isRefusing` stays false. */
  async retire(): Promise<void> {
    await this.#close();
    await this.gateway.pending.whenIdle(); // with the requests that came meanwhile
  }

  async #close(): Promise<void> {
    if (DENO) await this.#whenBodiesArrived();
    await Promise.all([this.#listener.stop(), this.gateway.pending.whenIdle()]);
  }

  /** Deno's shutdown breaks off request bodies that still arrive. While they are waited for, others may begin. */
  async #whenBodiesArrived(): Promise<void> {
    for (;;) {
      const inputs = this.gateway.pending.exchanges.map(({ input }) => input).filter(Input.isArriving);
      if (inputs.length === 0) return;
      await Promise.all(inputs.map(Input.whenArrived));
    }
  }

  async abort(): Promise<void> {
    for (const exchange of [...this.gateway.pending.exchanges]) exchange.abort(); // which takes it out
    await nextTurn(); // the last chunks leave
    await this.#listener.stop(true);
  }
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

type SignalListener = (name: string, status: number) => void;

const SIGNAL_LISTENERS = new Set<SignalListener>();
// The signals that stop a server, each with the exit status of a process that it ends.
const SIGNALS = Object.entries({ SIGINT: 128 + 2, SIGTERM: 128 + 15 }).map(([name, status]) => {
  return [name, () => SIGNAL_LISTENERS.forEach((listener) => listener(name, status))] as const;
});

/** Calls a listener for each signal, and returns a function that removes it. All servers share one listener a signal. */
function onSignal(listener: SignalListener): () => void {
  // On Deno, loading `process` takes longer than starting a server.
  const [add, remove] = DENO
    ? [DENO.addSignalListener, DENO.removeSignalListener]
    : [process.on.bind(process), process.off.bind(process)];
  if (SIGNAL_LISTENERS.size === 0) SIGNALS.forEach(([name, notify]) => add(name, notify));
  SIGNAL_LISTENERS.add(listener);
  return () => {
    SIGNAL_LISTENERS.delete(listener);
    if (SIGNAL_LISTENERS.size === 0) SIGNALS.forEach(([name, notify]) => remove(name, notify));
  };
}

// The time in which a program can clean up after its last server was stopped by a signal, in milliseconds.
const EXIT_DELAY = 900;

/** Ends the process after a signal, when the last of its servers has stopped. */
function exitAfterSignal(status: number): void {
  if (status !== 0) process.exitCode = status;
  if (SIGNAL_LISTENERS.size > 0) return;
  // The program's timers and connections could keep the process alive, and so could, on Deno, clients that neither read
  // nor leave. A process that nothing keeps alive ends before this timer; under `bun --watch` only exit() ends it.
  const timer = setTimeout(() => process.exit(), EXIT_DELAY);
  if (!BUN || !process.execArgv.some((flag) => /^--(?:watch|hot)$/.test(flag))) timer.unref();
}

// #endregion

// #region Workers

// The key under which a worker finds its configuration among the globals.
const WORKER_CONFIG: unique symbol = Symbol.for("wsgi.worker");

/** The configuration that all workers of a pool share. */
interface PoolConfig {
  module: string;
  exportName: string | undefined;
  /** The options of `serve` that can be copied. Each worker makes a server of its own with them. */
  options: ServeOptions;
  /** Whether the main thread has the option `errors`, to which the worker's errors go. */
  forwardErrors: boolean;
  multiprocess: boolean;
}

/** The `workerData` of a worker. */
interface WorkerConfig extends PoolConfig {
  port: TypedPort<WorkerMessage, WorkerCommand>;
  /** The number of requests begun, in shared memory: the pool can read it while the worker is busy. */
  requestCount: Int32Array;
}

/** A message from the pool to a worker. */
type WorkerCommand =
  | "sample"
  /**
   * Each response closes its connection for so many milliseconds, so that clients come back to any worker. The command
   * has a duration, because each thread has another origin of `performance.now()`.
   */
  | { closeConnections: number }
  /** Serve on for a delay in milliseconds, then finish what is under way. */
  | { drain: number }
  /** Finish what is under way while other workers serve. */
  | "retire"
  | "abort";

/** A message from a worker to the pool. */
type WorkerMessage =
  | { ready: true }
  /** The share of the time since the last sample spent computing, from 0 to 1, and the requests under way. */
  | { load: number; active: number }
  | { errors: string }
  | { failure: string };

/** A `MessagePort`, as far as it is used. It is not `parentPort`, on which an application can post. */
interface TypedPort<Sent, Received> {
  postMessage(message: Sent): void;
  on(event: "message", listener: (message: Received) => void): void;
  close(): void;
}

// The time for clients to come back on other connections, in milliseconds.
const RECONNECT_TIME = 1000;

// The load above which a worker is busy, and the share of the other workers' capacity that spares one of them.
const BUSY_LOAD = 0.8;
const SPARE_LOAD = 0.5;
// A worker that takes this long to answer is fully busy, in milliseconds, also where the system gave it little CPU time.
const BUSY_DELAY = 100;
// The number of samples for which the load settles after a worker was added or stopped.
const SETTLING_SAMPLES = 3;
// A worker that ends within this time of its start has crashed early, in milliseconds.
const EARLY_CRASH = 10_000;
// The number of samples in a row without an answer after which standard error names the worker.
const MISSED_SAMPLES = 5;

/** The callbacks of a worker's pool. */
interface WorkerListeners {
  onReady(): void;
  /** A worker that standard error has named answers again, after so many samples. */
  onAnswer(missed: number): void;
  onErrors(text: string): void;
  /** The worker has ended, or was abandoned: what happened, and why. */
  onEnd(event: string, reason: string): void;
}

/** A worker, as its pool sees it. */
class WorkerHandle {
  readonly number: number;
  readonly startedAt = performance.now();
  isReady = false;
  /** True when the worker is to end. */
  isStopping = false;
  /** The moving average of its load, from 0 to 1. */
  load = 0;
  /** The number of requests under way. */
  active = 0;
  /** The number of samples in a row without an answer and without a new request. */
  missed = 0;
  readonly #port: TypedPort<WorkerCommand, WorkerMessage>;
  readonly #worker: { terminate(): unknown };
  #sampledAt: number | undefined;
  #retireTimer: ReturnType<typeof setTimeout> | undefined;
  readonly #listeners: WorkerListeners;
  readonly #ended = Promise.withResolvers<boolean>();
  /** Fulfilled when the worker has ended, with whether its requests were finished. */
  readonly ended = this.#ended.promise;
  #hasEnded = false;
  readonly #requestCount = new Int32Array(new SharedArrayBuffer(4));
  #lastRequestCount = 0;

  constructor(number: number, { config, listeners }: { config: PoolConfig; listeners: WorkerListeners }) {
    this.number = number;
    this.#listeners = listeners;
    const { Worker, MessageChannel } = process.getBuiltinModule("node:worker_threads");
    const { port1, port2 } = new MessageChannel();
    const { URL } = process.getBuiltinModule("node:url"); // the types of Cloudflare have another one
    const worker = new Worker(new URL(WORKER_ENTRY), {
      workerData: { ...config, port: port2, requestCount: this.#requestCount },
      transferList: [port2],
      argv: process.argv.slice(2),
    });
    this.#worker = worker;
    this.#port = port1 as TypedPort<WorkerCommand, WorkerMessage>;
    let endReason = "it has ended";
    this.#port.on("message", (message) => {
      if ("errors" in message) listeners.onErrors(message.errors);
      else if ("load" in message) this.#onSample(message);
      else if ("failure" in message) {
        endReason = message.failure;
        this.terminate();
      } else {
        this.isReady = true;
        this.#onAnswer();
        listeners.onReady();
      }
    });
    worker.on("error", (error) => endReason = formatError(error));
    // A worker that never served leaves nothing unfinished.
    worker.on("exit", (status) => this.#onEnd(status === 0 || !this.isReady, "has died", endReason));
  }

  #onEnd(isDone: boolean, event: string, reason: string): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    clearTimeout(this.#retireTimer);
    this.#port.close();
    this.#ended.resolve(isDone);
    this.#listeners.onEnd(event, reason);
  }

  /** Asks for the load. A worker that has not answered the last question counts as fully busy. */
  sampleLoad(): void {
    if (this.isReady && this.#sampledAt === undefined) {
      this.#sampledAt = performance.now();
      this.#port.postMessage("sample");
      return;
    }
    const count = Atomics.load(this.#requestCount, 0);
    // Under load Bun 1.4.5 serves requests before messages, so that requests count as an answer.
    if (count !== this.#lastRequestCount) this.#onAnswer();
    // Samples are counted, not time: where this thread was blocked, the answer may already wait.
    else this.missed++;
    this.#lastRequestCount = count;
    if (this.isReady) this.#recordLoad(1);
  }

  #onAnswer(): void {
    const { missed } = this;
    this.missed = 0;
    if (missed >= MISSED_SAMPLES) this.#listeners.onAnswer(missed);
  }

  #onSample({ load, active }: { load: number; active: number }): void {
    this.#onAnswer();
    const slowness = (performance.now() - this.#sampledAt!) / BUSY_DELAY;
    this.#sampledAt = undefined;
    this.active = active;
    this.#recordLoad(Math.min(1, Math.max(load, slowness)));
  }

  #recordLoad(load: number): void {
    this.load = 0.6 * this.load + 0.4 * load;
  }

  closeConnections(duration: number): void {
    if (!this.isStopping) this.#port.postMessage({ closeConnections: duration });
  }

  /** Makes the worker finish when its clients have come back on connections to other workers. */
  retire(): void {
    this.closeConnections(Infinity);
    this.isStopping = true;
    this.#retireTimer = setTimeout(() => this.#port.postMessage("retire"), RECONNECT_TIME);
  }

  /** Makes the worker finish after a delay. A worker that does not serve yet is terminated. */
  drain(delay: number): void {
    clearTimeout(this.#retireTimer);
    this.isStopping = true;
    if (this.isReady) this.#port.postMessage({ drain: delay });
    else this.terminate();
  }

  abort(): void {
    this.#port.postMessage("abort");
  }

  terminate(): void {
    this.#worker.terminate();
  }

  /** Terminates the worker without waiting for its end: Deno 2.9.6 cannot end a worker that computes. */
  abandon(reason: string): void {
    this.#onEnd(false, "is given up", reason);
    this.terminate();
  }
}

/** The workers that serve an application on one port, as many as the load needs. This thread only supervises them. */
class WorkerPool implements ServerBackend {
  readonly address: ServerBackend["address"];
  readonly description: string;
  readonly #app: ApplicationLike;
  readonly #errors: ErrorStream | undefined;
  readonly #workers: WorkersOptions & { min: number; interval: number; scaleDownDelay: number; timeout: number };
  readonly #config: PoolConfig;
  readonly #portHolder: LocalServer;
  readonly #handles = new Set<WorkerHandle>();
  /** The number of workers started so far, which is the number of the last one. */
  #started = 0;
  readonly #respawnTimers = new Set<ReturnType<typeof setTimeout>>();
  #sampleTimer: ReturnType<typeof setInterval> | undefined;
  #isReady = false;
  #isStopping = false;
  #onReady: () => void = () => {};
  #onFailure: (error: unknown) => void = () => {};
  /** The option of this name, doubled each time a worker was retired too early. */
  #scaleDownDelay: number;
  #lastBusy = -Infinity;
  #lastChange = -Infinity;
  #lastRetired = -Infinity;

  constructor(app: ApplicationLike, options: ServeOptions) {
    const workers: WorkersOptions = typeof options.workers === "object"
      ? options.workers
      : { min: options.workers, max: options.workers! };
    const { min = 1, max, interval = 1000, scaleDownDelay = 30_000, timeout = Infinity } = workers;
    const config = poolConfig(options, workers);
    // Takes the port first, to fail where another server has it, and to find a free one for 0. start() gives it up.
    this.#portHolder = new LocalServer(app, options);
    this.address = this.#portHolder.address;
    this.description = min === max ? plural(max, "worker") : `${min} to ${max} workers`;
    this.#app = app;
    this.#errors = options.errors;
    this.#workers = { ...workers, min, interval, scaleDownDelay, timeout };
    this.#config = { ...config, options: { ...config.options, port: this.address.port, reusePort: true } };
    this.#scaleDownDelay = scaleDownDelay;
    // On Bun, the output of workers goes through these streams, whose errors (EPIPE) would end the process.
    if (BUN) [process.stdout, process.stderr].forEach((stream) => stream.off("error", ignore).on("error", ignore));
  }

  get pendingText(): string {
    return plural(this.#handles.size, "worker");
  }

  /** Hands the port over to the workers. */
  async start(onReady: () => void, onFailure: (error: unknown) => void): Promise<void> {
    const { min, interval, module: otherModule } = this.#workers;
    this.#onReady = onReady;
    this.#onFailure = onFailure;
    await this.#portHolder.drain(0);
    if (this.#isStopping) return;
    for (let count = 0; count < min; count++) this.#add();
    this.#sampleTimer = setInterval(() => {
      for (const worker of this.#handles) this.#checkWorker(worker);
      this.#autoscale();
    }, interval);
    if (otherModule !== undefined) return;
    // The main module may export another application than it serves. A failure of the import is reported elsewhere: by
    // the main module itself, or by each worker.
    const { module, exportName } = this.#config;
    const exported = exportedApplication(await importModule(module).catch(() => ({})), exportName);
    if (this.#isStopping || exported === undefined || exported === this.#app) return;
    onFailure(new TypeError(`Cannot serve with workers: ${module} serves something else than it exports`));
  }

  /** Starts a worker. `crashes` is the number of early crashes in a row before it. */
  #add(crashes = 0): void {
    const number = ++this.#started;
    const listeners: WorkerListeners = {
      onReady: () => this.#onWorkerReady(),
      onAnswer: (missed) => printError(`Worker ${number} answers after ${this.#duration(missed)}`),
      onErrors: (text) => writeError(this.#errors!, text),
      onEnd: (event, reason) => {
        this.#handles.delete(worker);
        if (worker.isStopping) return;
        const isEarly = performance.now() - worker.startedAt < EARLY_CRASH;
        if (this.#isReady) this.#respawn(isEarly ? crashes + 1 : 0, { report: `Worker ${number} ${event}`, reason });
        else this.#onFailure(new Error(`Cannot serve with workers: ${reason}`));
      },
    };
    const worker = new WorkerHandle(number, { config: this.#config, listeners });
    this.#handles.add(worker);
  }

  #onWorkerReady(): void {
    if (this.#isStopping) return;
    const workers = [...this.#handles];
    // A new worker gets its share of clients: all workers close connections for the same time, so that none is preferred.
    if (this.#isReady) return workers.forEach((worker) => worker.closeConnections(RECONNECT_TIME));
    this.#isReady = workers.every(({ isReady }) => isReady);
    if (!this.#isReady) return;
    try {
      this.#onReady();
    } catch (error) {
      this.#onFailure(error);
    }
  }

  /** The time of so many samples, in words. */
  #duration(samples: number): string {
    return `${samples * this.#workers.interval / 1000} s`;
  }

  /** Samples the load of a worker, and reports or replaces one that does not answer. */
  #checkWorker(worker: WorkerHandle): void {
    worker.sampleLoad();
    const { number, missed, isReady } = worker;
    const { interval, timeout } = this.#workers;
    const problem = `has not ${isReady ? "answered" : "begun to serve"} for ${this.#duration(missed)}`;
    if (missed * interval >= timeout) {
      const remains = DENO && isReady ? "; Deno cannot end it, so that it keeps its part of the connections" : "";
      worker.abandon(`it ${problem}${remains}`);
    } else if (missed === MISSED_SAMPLES) printError(`Worker ${number} ${problem}`);
  }

  /** Replaces a worker: at once, or after a delay that doubles with each early crash. */
  #respawn(crashes: number, { report, reason }: { report: string; reason: string }): void {
    const longest = this.#handles.size > 0 ? 30_000 : 1000; // a server without workers does not wait that long
    const delay = crashes === 0 ? 0 : Math.min(50 * 2 ** crashes, longest);
    printError(`${report}, another follows in ${delay} ms: ${reason}`);
    const timer = setTimeout(() => {
      this.#respawnTimers.delete(timer);
      this.#add(crashes);
    }, delay);
    this.#respawnTimers.add(timer);
  }

  /**
   * Adds a worker when all are busy. Retires an idle one when a part of the others' capacity was enough for the whole
   * load for a while.
   */
  #autoscale(): void {
    const { min, max, interval, scaleDownDelay } = this.#workers;
    const workers = [...this.#handles].filter(({ isStopping }) => !isStopping);
    if (min === max || this.#respawnTimers.size > 0 || workers.some(({ isReady }) => !isReady)) return;
    const now = performance.now();
    const load = workers.reduce((sum, worker) => sum + worker.load, 0);
    if (workers.length === min || load > SPARE_LOAD * (workers.length - 1)) this.#lastBusy = now;
    const isFull = this.#handles.size >= max || now - this.#lastChange < SETTLING_SAMPLES * interval;
    if (!isFull && workers.every((worker) => worker.load > BUSY_LOAD)) {
      // A worker was retired too early if one is needed again soon: the next one stays twice as long.
      const isTooEarly = now - this.#lastRetired < this.#scaleDownDelay;
      this.#scaleDownDelay = isTooEarly ? 2 * this.#scaleDownDelay : scaleDownDelay;
      this.#lastChange = now;
      this.#add();
    } else if (now - this.#lastBusy > this.#scaleDownDelay) {
      const idle = workers.find(({ active }) => active === 0);
      if (!idle) return;
      this.#lastBusy = this.#lastChange = this.#lastRetired = now;
      idle.retire();
    }
  }

  async drain(delay: number): Promise<boolean> {
    this.#isStopping = true;
    clearInterval(this.#sampleTimer);
    for (const timer of this.#respawnTimers) clearTimeout(timer);
    const workers = [...this.#handles];
    for (const worker of workers) worker.drain(delay);
    return (await Promise.all(workers.map(({ ended }) => ended))).every((isDone) => isDone);
  }

  async abort(): Promise<void> {
    const workers = [...this.#handles];
    for (const worker of workers) worker.abort();
    await Promise.race([Promise.all(workers.map(({ ended }) => ended)), pause(1000)]); // a worker can be stuck
    for (const worker of workers) worker.terminate();
  }
}

function ignore(): void {}

/** Makes the configuration of the workers, or throws where the options do not go with workers. */
function poolConfig(options: ServeOptions, { module, export: exportName, max }: WorkersOptions): PoolConfig {
  const { signal: _signal, onListen: _onListen, workers: _workers, errors, ...rest } = options;
  if (WORKER_CONFIG in globalThis) {
    const expected = "expected if (import.meta.main) serve(app, { workers })";
    throw new Error(`Cannot serve in a thread of a server: each thread imports the program, ${expected}`);
  }
  if (options.unix !== undefined) {
    throw new TypeError('Cannot use option "workers" with "unix": workers share a TCP port');
  }
  for (const [name, value] of Object.entries(rest)) {
    try {
      structuredClone(value);
    } catch (cause) {
      throw new TypeError(`Cannot use option "${name}" with "workers": it cannot be copied for a thread`, { cause });
    }
  }
  requireUnstableNet("workers", ', or "deno serve --parallel" in its place');
  const main = DENO ? DENO.mainModule : process.getBuiltinModule("node:url").pathToFileURL(BUN!.main).href;
  const imported = new URL(module ?? main, main).href;
  for (const url of [import.meta.url, imported]) {
    if (!DENO || !url.startsWith("file:")) continue;
    if (DENO.permissions.querySync({ name: "read", path: new URL(url) }).state === "granted") continue;
    throw new Error(`Cannot use option "workers": Deno needs --allow-read for "${url}", which the threads import`);
  }
  return {
    module: imported,
    exportName,
    options: rest,
    forwardErrors: errors !== undefined,
    multiprocess: max > 1 || sharesPort(options),
  };
}

/** Imports a module by its URL. Miniflare refuses a program that has an `import()` of an expression. */
function importModule(url: string): Promise<Record<string, unknown>> {
  return new Function("url", "return import(url)")(url);
}

function exportedApplication(exports: Record<string, unknown>, name: string | undefined): unknown {
  return name === undefined ? exports.application ?? exports.default : exports[name];
}

/** Makes a function that returns the share of the time since its last call that this thread spent computing. */
function loadMeter(): () => number {
  const { threadCpuUsage } = process as unknown as { threadCpuUsage(): { user: number; system: number } };
  const read = () => {
    const { user, system } = threadCpuUsage();
    return { used: (user + system) / 1000, at: performance.now() };
  };
  let last = read();
  return () => {
    const previous = last;
    last = read();
    return (last.used - previous.used) / (last.at - previous.at);
  };
}

// The module that a worker begins with. It puts the configuration in place before it imports this module.
const WORKER_ENTRY = `data:text/javascript,${
  encodeURIComponent(
    `import { workerData } from "node:worker_threads";
    globalThis[Symbol.for("wsgi.worker")] = workerData;
    await import(${JSON.stringify(import.meta.url)});`,
  )
}`;

async function runWorker(
  { port, requestCount, module, exportName, options, forwardErrors, multiprocess }: WorkerConfig,
): Promise<void> {
  try {
    const exports = await importModule(module).catch((cause) => {
      throw new Error(`${module} cannot be imported: ${formatError(cause)}`);
    });
    const exported = exportedApplication(exports, exportName) as ApplicationLike | undefined;
    if (!exported) {
      const found = exportName === undefined ? '"application" and no default one' : inspect(exportName);
      throw new TypeError(
        `${module} has no export ${found}, expected export const ${exportName ?? "application"} = app`,
      );
    }
    const inner = application(exported);
    const app: Application = (environ, startResponse) => {
      Atomics.add(requestCount, 0, 1);
      return inner(environ, startResponse);
    };
    const errors = errorStream((text) => port.postMessage({ errors: text }));
    const server = new LocalServer(app, forwardErrors ? { ...options, errors } : options);
    server.gateway.environTemplate["wsgi.multiprocess"] = multiprocess;
    const meter = loadMeter();
    port.on("message", async (command) => {
      const { gateway } = server;
      if (command === "sample") return port.postMessage({ load: meter(), active: gateway.pending.size });
      if (typeof command === "object" && "closeConnections" in command) {
        gateway.closeConnectionsUntil = performance.now() + command.closeConnections;
        return;
      }
      if (command === "abort") await server.abort();
      else if (command === "retire") await server.retire();
      else await server.drain(command.drain);
      process.exit(command === "abort" ? 1 : 0); // ends this worker alone
    });
    port.postMessage({ ready: true });
  } catch (error) {
    port.postMessage({ failure: error instanceof Error ? error.message : inspect(error) });
  }
}

const globals = globalThis as { [WORKER_CONFIG]?: WorkerConfig | undefined };
const config = globals[WORKER_CONFIG];
if (config) {
  globals[WORKER_CONFIG] = undefined; // another copy of this module must not serve as well
  runWorker(config);
}

// #endregion
