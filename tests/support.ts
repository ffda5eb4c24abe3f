/**
 * What the tests share: a server that is ready and quiet, a client that speaks bytes, and waits that end.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { type ChildProcess, spawn } from "node:child_process";
import { connect, createServer, type Socket } from "node:net";
import process from "node:process";
import {
  type Application,
  application,
  type ApplicationLike,
  type ErrorStream,
  type HeaderList,
  serve,
  type ServeOptions,
  type Server,
  type StartResponse,
  toFetch,
  type ToFetchOptions,
  validator,
} from "../mod.ts";

/** The runtime that runs the tests. */
export const RUNTIME: "deno" | "bun" = "Deno" in globalThis ? "deno" : "bun";

/** How long anything may take, in milliseconds. */
const PATIENCE = 20_000;

/** Text as UTF-8. */
export function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

/** UTF-8 as text. */
export function text(chunk: Uint8Array): string {
  return new TextDecoder().decode(chunk);
}

/** Headers of a response in plain text. */
export const PLAIN: HeaderList = [["Content-Type", "text/plain"]];

/** Starts a plain response. */
export function ok(startResponse: StartResponse, ...headers: HeaderList): void {
  startResponse("200 OK", [...PLAIN, ...headers]);
}

/** Waits for a promise, but not for ever. */
export async function within<Value>(promise: Promise<Value>, what: string): Promise<Value> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const expired = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`Waited in vain for ${what}`)), PATIENCE);
  });
  try {
    return await Promise.race([promise, expired]);
  } finally {
    clearTimeout(timer);
  }
}

/** Something that happens once, to be waited for. */
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

/** A `wsgi.errors` that remembers. */
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

const UNCHECKED = new WeakSet<ApplicationLike>();

/** Gives an application that breaks a rule on purpose, or whose test looks at what the validator changes. */
export function unchecked(app: ApplicationLike): Application {
  const inner = application(app);
  const own: Application = (environ, startResponse) => inner(environ, startResponse);
  UNCHECKED.add(own);
  return own;
}

/** Has an application watched, unless it is unchecked. */
function checked(app: ApplicationLike): ApplicationLike {
  return UNCHECKED.has(app) ? app : validator(app);
}

/** A server of an application on a free port, quiet, with its errors collected. */
export function start(app: ApplicationLike, options: ServeOptions = {}): Server & { errors: ErrorLog } {
  const errors = new ErrorLog();
  const server = serve(checked(app), { port: 0, errors, onListen: () => {}, shutdownTimeout: 1000, ...options });
  return Object.assign(server, { errors });
}

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

/** A response as it came over the wire. */
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

/** Reads a reply off what a client has received. */
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

/** Sends one request and waits for the end of the connection: `Connection: close` is the caller's to say. */
export async function exchange(server: Server, request: string, options: { head?: boolean } = {}): Promise<Reply> {
  const client = await Client.connect(server);
  await client.send(request);
  return parse(await client.end(), options);
}

/** A request as text, with the headers that every request has. */
export function request(target: string, options: { method?: string; headers?: string[]; body?: string } = {}): string {
  const { method = "GET", headers = [], body = "" } = options;
  return [`${method} ${target} HTTP/1.1`, "Host: test.example", "Connection: close", ...headers, "", body].join("\r\n");
}

/** Answers in process. */
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

/** What goes to standard error, one entry a call. */
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

/** Lets everything go on that needs no new event. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Reports begin at the margin; what follows is indented. */
export function reportsIn(errors: ErrorLog): string[] {
  return errors.text.split("\n").filter((line) => /^\S/.test(line) && !line.startsWith("Caused by"));
}

/** A file in memory, that knows what was done with it. */
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

/** What another program has done. */
export interface Outcome {
  code: number | null;
  signal: string | null;
  output: string;
  errors: string;
}

/** Another program, with the lines that it has printed. */
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

  /** Waits until it serves. */
  async listening(): Promise<Pick<Server, "port" | "hostname">> {
    return { port: Number((await this.until(/^port (\d+)$/m))[1]), hostname: "127.0.0.1" };
  }

  /** Reads a stream no more, and lets it break: as `| head` does. */
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
