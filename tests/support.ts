/**
 * Helpers for all tests: servers that log into memory, a client that sends and receives bytes, and waits with a limit.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect as connectHttp2, type OutgoingHttpHeaders } from "node:http2";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after } from "node:test";
import {
  type Application,
  application,
  type ApplicationLike,
  type Environ,
  type ErrorStream,
  type FetchContext,
  type HeaderList,
  type ResponseBody,
  serve as serveHere,
  type ServeOptions,
  type Server,
  type StartResponse,
  toEnviron,
  toFetch,
  type ToFetchOptions,
  validator,
} from "../mod.ts";

// #region Texts and bytes

/** Text as UTF-8. */
export function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

/** UTF-8 as text. */
export function text(chunk: Uint8Array): string {
  return new TextDecoder().decode(chunk);
}

/** Text as a native string: its UTF-8 bytes, each a character. */
export function native(text: string): string {
  return Buffer.from(text).toString("latin1");
}

/** No bytes. */
export const EMPTY = new Uint8Array(0);

/** 1,024 bytes. */
export const KIB = 1024;

/** 1,048,576 bytes. */
export const MIB = 1024 * KIB;

// #endregion

// #region Waits

/** The runtime that runs the tests. Those that run elsewhere, against another server, do not ask for it. */
export const RUNTIME: "deno" | "bun" = "Deno" in globalThis ? "deno" : "bun";

/** The time limit of every wait, in milliseconds. */
const TIME_LIMIT = 20_000;

/** Waits for a promise, up to the time limit. */
export async function within<Value>(promise: Promise<Value>, what: string): Promise<Value> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const expired = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`Timed out waiting for ${what}`)), TIME_LIMIT);
  });
  try {
    return await Promise.race([promise, expired]);
  } finally {
    clearTimeout(timer);
  }
}

/** An event that happens once. Tests wait for it. */
export class Event<Value = void> {
  readonly #happened = Promise.withResolvers<Value>();
  readonly #name: string;

  constructor(name: string) {
    this.#name = name;
  }

  happen(value: Value): void {
    this.#happened.resolve(value);
  }

  wait(): Promise<Value> {
    return within(this.#happened.promise, this.#name);
  }
}

/** Lets all work finish that needs no new event. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
}

// #endregion

// #region Applications and bodies

/** Headers of a response in plain text. */
export const PLAIN: [name: string, value: string][] = [["Content-Type", "text/plain"]];

/** Starts a plain response. */
export function ok(startResponse: StartResponse, ...headers: HeaderList): void {
  startResponse("200 OK", [...PLAIN, ...headers]);
}

/** Answers with "Hello". */
export const hello: Application = (_environ, startResponse) => {
  ok(startResponse);
  return [bytes("Hello")];
};

/** The error of applications that fail. */
export const FAILURE = new Error("This application fails");

/** Answers with the scheme, the addresses of server and client, and the Host of the request. */
export const surroundings: Application = (environ, startResponse) => {
  ok(startResponse);
  const names = ["wsgi.url_scheme", "HTTPS", "SERVER_NAME", "HTTP_HOST", "REMOTE_ADDR"];
  return [bytes(names.map((name) => String(environ[name])).join(" "))];
};

/** Answers with the variables and the body of the request. */
export const echo: Application = async (environ, startResponse) => {
  const variables = Object.entries(environ)
    .filter(([name, value]) => typeof value === "string" && !/^SERVER_|^REMOTE_PORT$|^REQUEST_URI$/.test(name))
    .sort();
  const body = text(await environ["wsgi.input"].read());
  ok(startResponse);
  return [bytes(JSON.stringify({ variables, body }))];
};

/** Answers with the number of bytes in the body of the request. */
export const countBytes: Application = async (environ, startResponse) => {
  let size = 0;
  for (;;) {
    const { length } = await environ["wsgi.input"].read(1000);
    size += length;
    if (length === 0) break;
  }
  ok(startResponse);
  return [bytes(String(size))];
};

/** Makes an application answer `/ping`, too, so that a test can tell that the server goes on. */
export function pingable(app: Application): Application {
  return (environ, startResponse) => {
    if (environ.PATH_INFO !== "/ping") return app(environ, startResponse);
    ok(startResponse);
    return [bytes("pong")];
  };
}

/** A function that gives a generator of texts. */
export function generated(...all: string[]): () => Generator<Uint8Array> {
  return function* () {
    for (const chunk of all) yield bytes(chunk);
  };
}

/** A function that gives an asynchronous generator of texts. */
export function generatedAsync(...all: string[]): () => AsyncGenerator<Uint8Array> {
  return async function* () {
    for (const chunk of all) yield await bytes(chunk);
  };
}

/** A stream of texts, each of which is made when it is asked for. */
export function stream(...chunks: string[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk === undefined) controller.close();
      else controller.enqueue(bytes(chunk));
    },
  });
}

/** A body that counts the calls of its `close`. */
export function countingClose(
  chunks: Generator<Uint8Array> | AsyncGenerator<Uint8Array>,
): ResponseBody & { closed: number } {
  return Object.assign(chunks, {
    closed: 0,
    close(this: { closed: number }) {
      this.closed++;
    },
  });
}

/** The `fetch.context` of an environ. */
export function contextOf(environ: { "fetch.context"?: FetchContext }): FetchContext {
  const context = environ["fetch.context"];
  assert.ok(context);
  return context;
}

// #endregion

// #region Error logs

/** A `wsgi.errors` that keeps its text. */
export class ErrorLog implements ErrorStream {
  text = "";
  #waiting: { pattern: RegExp; found: Event }[] = [];

  write(text: string): void {
    this.text += text;
    for (const { pattern, found } of this.#waiting) if (pattern.test(this.text)) found.happen();
  }

  writelines(lines: Iterable<string>): void {
    for (const line of lines) this.write(line);
  }

  flush(): void {}

  /** Waits until what was written matches. */
  async matches(pattern: RegExp): Promise<void> {
    const found = new Event(`${pattern} in the error log`);
    this.#waiting.push({ pattern, found });
    this.write("");
    await found.wait();
  }
}

/** Collects what `run` prints on standard error, one entry for each call. */
export async function standardErrorOf(run: () => void | Promise<void>): Promise<string[]> {
  const printed: string[] = [];
  const { error } = console;
  console.error = (...data: unknown[]) => void printed.push(data.join(" "));
  try {
    await run();
  } finally {
    console.error = error;
  }
  return printed;
}

/** The first lines of reports. Their other lines are indented. */
export function reportsIn(errors: ErrorLog): string[] {
  return errors.text.split("\n").filter((line) => /^\S/.test(line) && !line.startsWith("Caused by"));
}

/** The number of reports in an error log. */
export function reportsOf(errors: string): number {
  return errors.match(/^(?:Application|Access log|Error page|Health check|Reading the body) failed on /mg)?.length ?? 0;
}

// #endregion

// #region Requests and responses in process

/** The origin of requests that are not sent. */
export const ORIGIN = "http://test.example";

/** The URL of requests that are not sent. */
export const HERE = `${ORIGIN}/`;

/** Sends a request to an application in process, without a socket. */
export async function answer(
  app: ApplicationLike,
  request = new Request("http://test.example/"),
  options: ToFetchOptions = {},
): Promise<{ response: Response; errors: ErrorLog }> {
  const errors = new ErrorLog();
  const response = await within(
    Promise.resolve(toFetch(checked(app), { errors, ...options })(request)),
    `the answer to ${request.method} ${request.url}`,
  );
  return { response, errors };
}

/** An application in process: a method that sends a request, and its error log. */
export interface Asked {
  ask(path?: string, init?: RequestInit): Promise<Response>;
  errors: ErrorLog;
}

/** Puts an application behind `toFetch`, without a socket. */
export function asked(app: ApplicationLike, options: ToFetchOptions = {}): Asked {
  const errors = new ErrorLog();
  const handler = toFetch(app, { errors, ...options });
  return { ask: async (path = "/", init = {}) => await handler(new Request(`${ORIGIN}${path}`, init)), errors };
}

/** A request with a body of chunks. */
export function withBody(...chunks: string[]): Request {
  return new Request(HERE, { method: "POST", body: stream(...chunks), duplex: "half" } as RequestInit);
}

/** A POST request that is not sent. */
export function post(body: string, headers: Record<string, string> = {}): Request {
  return new Request(HERE, { method: "POST", body, headers });
}

/** Options of a request whose body is a stream. */
export function streamingInit(body: ReadableStream<Uint8Array>): RequestInit {
  return { method: "POST", body, duplex: "half" } as RequestInit;
}

/** The next chunk of a body, or nothing at its end. */
export async function readChunk(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<string | undefined> {
  const { value } = await within(reader.read(), "a chunk");
  return value && text(value);
}

/** The environ of a request that is not sent. */
export function environFor(path = "/", init: RequestInit = {}): Environ {
  return toEnviron(new Request(`${ORIGIN}${path}`, init));
}

/** The environ of a request that is not sent, with changes. */
export function environWith(variables: Record<string, unknown>): Environ {
  return Object.assign(environFor(), variables);
}

// #endregion

// #region Servers

/** The module of another server, which exports `serve`. `tests/pep3333_test.ts` then tests that server. */
export const OTHER_SERVER: string | undefined = process.env.WSGI_SERVER;

const { serve }: { serve: typeof serveHere } = OTHER_SERVER === undefined
  ? { serve: serveHere }
  : await import(OTHER_SERVER);

const UNCHECKED = new WeakSet<ApplicationLike>();

/** Keeps the validator away from an application that breaks a rule on purpose, or that the validator would change. */
export function unchecked(app: ApplicationLike): Application {
  const inner = application(app);
  const own: Application = (environ, startResponse) => inner(environ, startResponse);
  UNCHECKED.add(own);
  return own;
}

/** Puts the validator around an application, unless it is unchecked. */
function checked(app: ApplicationLike): ApplicationLike {
  return UNCHECKED.has(app) ? app : validator(app);
}

/** Serves an application on a free port, prints nothing, and collects its errors. */
export function start(app: ApplicationLike, options: ServeOptions = {}): Server & { errors: ErrorLog } {
  const errors = new ErrorLog();
  const server = serve(checked(app), { port: 0, errors, onListen: () => {}, shutdownTimeout: 1000, ...options });
  return Object.assign(server, { errors });
}

/** Starts a server with a long `shutdownTimeout`: a request that never ends makes the test fail. */
export function startPatient(app: ApplicationLike, options: ServeOptions = {}): ReturnType<typeof start> {
  const server = start(app, { shutdownTimeout: 60_000, ...options });
  const { shutdown } = server;
  return Object.assign(server, { shutdown: () => within(shutdown(), "the end of the server") });
}

/** Starts, asks and stops another server, which takes as long as a stop without anything to wait for. */
export async function stopAnother(): Promise<void> {
  const server = startPatient((_environ, startResponse) => {
    ok(startResponse);
    return [bytes("one")];
  });
  await exchange(server, request("/"));
  await server.shutdown();
}

/** The URL of a path of a server. */
export function addressOf(server: Server, path = "/"): string {
  return `http://127.0.0.1:${server.port}${path}`;
}

/** Checks that a server answers. */
export async function assertServes(server: Server): Promise<void> {
  assert.equal((await exchange(server, request("/"))).status, 200);
}

/** Waits until the server refuses connections, or answers with 503. */
export async function untilRefused({ port, hostname }: Pick<Server, "port" | "hostname">): Promise<void> {
  for (let attempts = 0; attempts < 5000; attempts++) {
    const answered = new Event<string>("an answer to an attempt to connect");
    const socket = connect(port, hostname);
    socket.once("connect", () => socket.write("GET /refused HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    socket.on("data", (data: Uint8Array) => answered.happen(text(data)));
    socket.on("error", () => answered.happen("refused"));
    socket.on("close", () => answered.happen("refused"));
    try {
      if (/^(?:refused|HTTP\/1.1 503 )/.test(await answered.wait())) return;
    } finally {
      socket.destroy();
    }
  }
  assert.fail("The server goes on accepting");
}

/** More than the kernel holds for a client that does not read. */
export const HELD = 16 * MIB;

/** A port for a program that cannot choose one. */
export async function freePort(): Promise<number> {
  const server = createServer();
  const listening = new Event("a free port");
  server.listen(0, "127.0.0.1", () => listening.happen());
  await listening.wait();
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  assert.ok(address && typeof address === "object");
  return address.port;
}

// #endregion

// #region Clients

/** A client that sends and receives bytes as they are. Text stands for bytes, as Latin-1. */
export class Client {
  /** All that was received. */
  received = "";
  readonly #socket: Socket;
  readonly #closed = new Event("the end of the connection");
  #onData: () => void = () => {};
  #isClosed = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (data: Uint8Array) => {
      this.received += Buffer.from(data).toString("latin1");
      this.#onData();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.#isClosed = true;
      this.#closed.happen();
      this.#onData();
    });
  }

  /** Connects to a server's port, or its unix socket. */
  static async connect(server: Pick<Server, "hostname" | "port">, options: { unix?: string } = {}): Promise<Client> {
    const { unix } = options;
    const socket = unix ? connect(unix) : connect(server.port, server.hostname);
    const connected = new Event("a connection");
    socket.once("connect", () => connected.happen());
    const client = new Client(socket);
    socket.once("close", () => connected.happen());
    await connected.wait();
    if (client.isClosed) throw new Error(`Cannot connect to ${unix ?? `${server.hostname}:${server.port}`}`);
    return client;
  }

  /** Sends bytes, and waits until the kernel has them or the connection is gone. */
  async send(data: string | Uint8Array): Promise<void> {
    const sent = new Event("room to send");
    this.#socket.write(typeof data === "string" ? Buffer.from(data, "latin1") : data, () => sent.happen());
    await Promise.race([sent.wait(), this.#closed.wait()]);
  }

  /** Waits until what was received matches, and gives the match. */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    const found = new Event<RegExpExecArray>(`${pattern} in ${JSON.stringify(this.received.slice(-400))}`);
    const look = () => {
      const match = pattern.exec(this.received);
      if (match) found.happen(match);
    };
    this.#onData = look;
    look();
    return await found.wait();
  }

  /** Waits for a whole reply, or for what has come of it when the connection ends. */
  async reply(): Promise<Reply> {
    const came = new Event<Reply>(`a reply, after ${JSON.stringify(this.received.slice(-400))}`);
    const look = () => {
      const reply = parse(this.received);
      if (reply.complete || this.#isClosed) came.happen(reply);
    };
    this.#onData = look;
    look();
    return await came.wait();
  }

  /** Waits for the end of the connection, and gives all that was received. */
  async end(): Promise<string> {
    await this.#closed.wait();
    return this.received;
  }

  /** Whether the connection has ended. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Stops reading, so that the server has to wait. */
  pause(): void {
    this.#socket.pause();
  }

  /** Reads again. */
  resume(): void {
    this.#socket.resume();
  }

  /** Leaves at once. */
  leave(): void {
    this.#socket.destroy();
  }
}

/** A response as it was received. */
export interface Reply {
  status: number;
  /** The reason phrase. */
  reason: string;
  /** Names in lower case. */
  headers: [name: string, value: string][];
  /** The body, without the framing of chunks, as Latin-1. */
  body: string;
  /** Whether the body came to its end: by length, by the last chunk, or by the connection's end where neither is. */
  complete: boolean;
}

/** Parses the response that a client has received. */
export function parse(received: string, options: { head?: boolean } = {}): Reply {
  const end = received.indexOf("\r\n\r\n");
  const [statusLine = "", ...lines] = received.slice(0, end).split("\r\n");
  const [, status = "0", reason = ""] = /^HTTP\/1\.[01] (\d{3}) ?(.*)$/.exec(statusLine) ?? [];
  const headers = lines.map((line): [string, string] => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
  });
  let rest = received.slice(end + 4);
  const values = new Map(headers);
  let body = rest;
  let complete = end !== -1;
  if (!options.head && values.get("transfer-encoding") === "chunked") {
    body = "";
    complete = false;
    for (;;) {
      const match = /^([0-9a-f]+)\r\n/i.exec(rest);
      if (!match) break;
      const size = parseInt(match[1]!, 16);
      complete = size === 0;
      body += rest.slice(match[0].length, match[0].length + size);
      rest = rest.slice(match[0].length + size + 2);
      if (complete) break;
    }
  } else if (!options.head && values.has("content-length")) {
    const length = Number(values.get("content-length"));
    complete &&= rest.length >= length;
    body = rest.slice(0, length);
  }
  return { status: Number(status), reason, headers, body, complete };
}

/** Sends one request and waits for the end of the connection. The request has to say `Connection: close`. */
export async function exchange(
  server: Pick<Server, "hostname" | "port">,
  request: string,
  options: { head?: boolean } = {},
): Promise<Reply> {
  const client = await Client.connect(server);
  await client.send(request);
  return parse(await client.end(), options);
}

/** A request as text, with the headers that every request has. */
export function request(target: string, options: { method?: string; headers?: string[]; body?: string } = {}): string {
  const { method = "GET", headers = [], body = "" } = options;
  return [`${method} ${target} HTTP/1.1`, "Host: test.example", "Connection: close", ...headers, "", body].join("\r\n");
}

// #endregion

// #region Environs of requests that were sent

/** An application that keeps the environs it gets. */
export function recorder(): { app: Application; environs: Environ[] } {
  const environs: Environ[] = [];
  const app: Application = (environ, startResponse) => {
    environs.push(environ);
    ok(startResponse);
    return [];
  };
  return { app, environs };
}

/** The reply to a request, and the environ if the application was called. */
export interface Received {
  reply: Reply;
  environ: Environ | undefined;
}

/** Sends a request to a server of its own. */
export async function ask(raw: string, options: ServeOptions = {}): Promise<Received> {
  const { app, environs } = recorder();
  await using server = start(app, options);
  const reply = await exchange(server, raw);
  assert.ok(environs.length <= 1);
  return { reply, environ: environs[0] };
}

/** The environ of a request that is served. */
export async function environOf(raw: string, options: ServeOptions = {}): Promise<Environ> {
  const { reply, environ } = await ask(raw, options);
  assert.equal(reply.status, 200);
  return environ!;
}

/** A request with this Host. */
export function withHost(host: string, target = "/p?q"): string {
  return `GET ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`;
}

/** Checks that the server has answered by itself, with a status. */
export function assertRefused({ reply, environ }: Received, status: number): void {
  assert.equal(reply.status, status);
  assert.equal(environ, undefined, "the application was called");
}

/** Checks that an environ lacks variables. */
export function assertAbsent(environ: Environ, ...names: string[]): void {
  for (const name of names) assert.ok(!(name in environ), `${name} is ${environ[name]}`);
}

// #endregion

// #region TLS and HTTP/2

/** A certificate that has signed itself, and its key. */
export interface Identity {
  cert: string;
  key: string;
}

/** Makes a certificate, and its key, in a file. */
export function makeIdentity(file: string): Identity {
  const algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  const subject = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const files = ["-keyout", `${file}.key`, "-out", file];
  execFileSync("openssl", ["req", "-x509", ...algorithm, ...subject, ...files], { stdio: "ignore" });
  return { cert: readFileSync(file, "utf8"), key: readFileSync(`${file}.key`, "utf8") };
}

/** Options of a server that speaks HTTP/2: Deno does it by itself, Bun when it is told. */
export const HTTP2: ServeOptions = { bun: { http2: true } };

/** Sends a request over HTTP/2, and gives the status, or 0 for a stream that is reset. */
export async function askHttp2(url: string, headers: OutgoingHttpHeaders): Promise<number> {
  const answered = new Event<number>("an answer over HTTP/2");
  const session = connectHttp2(url, { rejectUnauthorized: false });
  session.on("error", () => answered.happen(0));
  try {
    const stream = session.request(headers);
    stream.on("response", (head) => answered.happen(Number(head[":status"])));
    stream.on("error", () => answered.happen(0));
    stream.resume();
    stream.end();
    return await answered.wait();
  } finally {
    session.destroy();
  }
}

// #endregion

// #region Files

/** A file in memory that records reads and calls of `close`. */
export class MemoryFile {
  readonly #content: Uint8Array;
  position: number;
  readonly reads: number[] = [];
  closed = 0;

  constructor(content: string, position = 0) {
    this.#content = bytes(content);
    this.position = position;
  }

  read(size: number): Uint8Array {
    this.reads.push(size);
    const block = this.#content.slice(this.position, this.position + size);
    this.position += block.length;
    return block;
  }

  close(): void {
    this.closed++;
  }
}

/** A file whose methods are asynchronous. */
export class SlowFile {
  readonly file: MemoryFile;

  constructor(file: MemoryFile) {
    this.file = file;
  }

  async read(size: number): Promise<Uint8Array> {
    await settle();
    return this.file.read(size);
  }

  async close(): Promise<void> {
    await settle();
    this.file.close();
  }
}

// #endregion

// #region Other programs

/** The exit status of a process that was ended by a signal. */
export const STATUSES = { SIGINT: 130, SIGTERM: 143 } as const;

/** How another program has ended, and what it has printed. */
export interface Outcome {
  code: number | null;
  signal: string | null;
  output: string;
  errors: string;
}

/** Another program, with the text that it prints. */
export class Child {
  output = "";
  errors = "";
  readonly #process: ChildProcess;
  readonly #ended = new Event<Outcome>("the end of a process");
  #onOutput = () => {};

  constructor(command: string, args: string[], env: NodeJS.ProcessEnv = process.env) {
    this.#process = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env });
    this.#process.stdout?.on("data", (data) => {
      this.output += String(data);
      this.#onOutput();
    });
    this.#process.stderr?.on("data", (data) => {
      this.errors += String(data);
      this.#onOutput();
    });
    this.#process.on("error", (error) => void (this.errors += error.message));
    this.#process.on("close", (code, signal) => {
      this.#ended.happen({ code, signal, output: this.output, errors: this.errors });
    });
  }

  /** Waits until what was printed, on either stream, matches, and gives the match. */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    const found = new Event<RegExpExecArray>(`${pattern} in the output of a process`);
    const look = () => {
      const match = pattern.exec(this.output) ?? pattern.exec(this.errors);
      if (match) found.happen(match);
    };
    this.#onOutput = look;
    look();
    return await Promise.race([
      found.wait(),
      this.#ended.wait().then((outcome) => assert.fail(`${pattern} was not printed: ${JSON.stringify(outcome)}`)),
    ]);
  }

  /** Waits until the program serves. */
  async listening(): Promise<Pick<Server, "port" | "hostname">> {
    return { port: Number((await this.until(/^port (\d+)$/m))[1]), hostname: "127.0.0.1" };
  }

  /** Closes a stream, so that the program can no longer write to it, as `| head` does. */
  close(stream: "stdout" | "stderr"): void {
    this.#process[stream]?.destroy();
  }

  get pid(): number {
    return this.#process.pid!;
  }

  /** Sends a signal. Deno's `ChildProcess.kill` takes it for the end of the process. */
  kill(signal: NodeJS.Signals): void {
    process.kill(this.pid, signal);
  }

  ended(): Promise<Outcome> {
    return this.#ended.wait();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) this.kill("SIGKILL");
    await this.ended();
  }
}

/** Makes a folder for a test file, which is deleted after its tests, and gives functions that make files in it. */
export function workspace() {
  const FOLDER = mkdtempSync(join(tmpdir(), "wsgi-"));
  after(() => rmSync(FOLDER, { recursive: true, force: true }));
  let paths = 0;

  /** A path at which there is no file yet. */
  const newPath = (suffix: string): string => join(FOLDER, `${paths++}${suffix}`);

  /**
   * A program on this runtime, with so many descriptors at the most. It has `serve`, `say`, and `attempt`, which says
   * what `serve` does and goes on.
   */
  const program = (code: string, { flags = ["-A"], limit }: { flags?: string[]; limit?: number } = {}): Child => {
    const file = newPath(".mjs");
    writeFileSync(
      file,
      `
    import { writeSync } from "node:fs";
    import process from "node:process";
    import { serve } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    const say = (...words) => void writeSync(1, words.join(" ") + "\\n");
    const text = (value) => new TextEncoder().encode(String(value));
    const onListen = ({ port }) => say("port", port);
    const hello = (_environ, startResponse) => {
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [text("Hello")];
    };
    const attempt = (options) => {
      try {
        const server = serve(hello, { onListen() {}, signals: false, ...options });
        say("serves");
        return server;
      } catch (error) {
        say(JSON.stringify([error.message, String(error.cause)]));
      }
    };
    ${code}
    `,
    );
    const args = ["run", ...(RUNTIME === "deno" ? ["--no-prompt", ...flags] : []), file];
    if (limit === undefined) return new Child(process.execPath, args);
    return new Child("sh", ["-c", `ulimit -n ${limit}; exec "$0" "$@"`, process.execPath, ...args]);
  };

  /** A program that serves, and stops by signals. */
  const serving = (options: ServeOptions = {}): Child => program(`${SERVING} run(${JSON.stringify(options)});`);

  return { FOLDER, newPath, program, serving };
}

/** An application for `program`. It prints "closed" when the server has called `close`, and goes on with SIGHUP. */
export const SERVING = `
  let go;
  const gone = new Promise((resolve) => void (go = resolve));
  process.once("SIGHUP", go);
  const never = new Promise(() => {});
  const app = async (environ, startResponse) => {
    const { PATH_INFO: path, "wsgi.input": input, "fetch.context": context } = environ;
    // Deno prints a warning when it is read.
    if (/slow|endless/.test(path)) context.signal.addEventListener("abort", () => say("told", path));
    if (path === "/slow") {
      say("waits");
      setInterval(() => {}, 60_000); // what is slow does something, for ever
      await never;
    }
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    const chunks = async function* () {
      if (path === "/upload") yield await input.read();
      if (path !== "/upload") yield text("one");
      if (path === "/work") context.waitUntil(gone.then(() => say("worked")));
      if (path === "/stream") await gone;
      if (path === "/endless") await never;
      yield text("two");
    };
    const body = chunks();
    return {
      [Symbol.asyncIterator]: () => body,
      close: () => path === "/refused" || say("closed", path),
    };
  };
  const run = (options) => {
    const server = serve(app, { port: 0, onListen, ...options });
    server.finished.then(() => say("finished"));
    return server;
  };
`;

/** The error that `attempt` has printed. */
export async function failureOf(child: Child): Promise<[message: string, cause: string]> {
  const [message, cause] = JSON.parse((await child.until(/^\["Cannot.*\]$/m))[0]);
  assert.doesNotMatch(message, /\n/);
  return [message, cause];
}

/** A program on this runtime, given as text, which calls `serve` with `OPTIONS`. It can collect its garbage. */
export function evaluate(program: string): Child {
  const code = `
    import { serve as start } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    let server;
    const serve = (app, options) => void (server = start(app, options));
    const OPTIONS = { port: 0, onListen: ({ port }) => console.log("port", port) };
    ${program}
  `;
  const args = RUNTIME === "deno" ? ["eval", "--v8-flags=--expose-gc", code] : ["-e", code];
  return new Child(process.execPath, args);
}

/** Runs a program of its own, and waits for its end. `MOD` in its source is the library. */
export async function runProgram(source: string): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const folder = await mkdtemp(join(tmpdir(), "wsgi-"));
  try {
    const file = join(folder, "program.ts");
    await writeFile(file, source.replaceAll("MOD", JSON.stringify(new URL("../mod.ts", import.meta.url).href)));
    const options = RUNTIME === "deno" ? ["run", "--quiet", "--allow-all"] : ["run"];
    const child = spawn(process.execPath, [...options, file], { env: { ...process.env, NO_COLOR: "1" } });
    const ended = new Event<number | null>("the end of a program");
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (data: Uint8Array) => stdout += text(data));
    child.stderr.on("data", (data: Uint8Array) => stderr += text(data));
    child.on("close", (code) => ended.happen(code));
    try {
      return { code: await ended.wait(), stdout, stderr };
    } finally {
      child.kill("SIGKILL");
    }
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Starts curl as another program, since this thread may have to serve it. */
export function curl(...args: string[]): Child {
  return new Child("curl", ["-q", "-sS", "--noproxy", "*", "--max-time", "10", ...args]);
}

/** Options that make curl print the version of HTTP and the status. */
export const ASKS = ["-w", " %{http_version} %{http_code}"];

/** Runs curl, and gives the body, the version of HTTP and the status. */
export async function fetched(...args: string[]): Promise<string> {
  await using child = curl(...ASKS, ...args);
  const { code, output, errors } = await child.ended();
  assert.deepEqual({ code, errors }, { code: 0, errors: "" });
  return output;
}

// #endregion
