/**
 * Helpers for the tests of middleware.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import {
  accessLog,
  type AccessLogOptions,
  type Application,
  type ApplicationLike,
  type ApplicationResult,
  type Environ,
  type HeaderList,
  type Middleware,
  type ResponseBody,
  runApplication,
  type StartResponse,
  testEnviron,
  validator,
} from "../mod.ts";
import { bytes, EMPTY, Event, HERE, KIB, MemoryFile, ok, settle } from "./support.ts";

// #region A middleware around an application

/** Puts a validator on each side of a middleware. */
export function between(middleware: Middleware, app: ApplicationLike): Application {
  return validator(middleware(validator(app)));
}

/** Puts middleware around an application, the first outermost, with a validator on each side of each. */
export function stacked(app: ApplicationLike, ...middleware: Middleware[]): Application {
  return middleware.reduceRight((inner, wrap) => validator(wrap(inner)), validator(app));
}

/** Some variables of a request. */
export type Variables = Record<string, string>;

/** Answers with the text that is made of the environ. */
export function telling(tell: (environ: Environ) => string): Application {
  return (environ, startResponse) => {
    ok(startResponse);
    return [bytes(tell(environ))];
  };
}

/** The response, and the environ if the application was called. */
export interface Passed extends ApplicationResult {
  environ: Environ | undefined;
}

/** Sends a request through a middleware. */
export async function through(
  middleware: Middleware,
  variables: Variables = {},
  headers: HeaderList = [],
): Promise<Passed> {
  let environ: Environ | undefined;
  const app = between(middleware, (given, startResponse) => {
    environ = { ...given };
    ok(startResponse, ...headers);
    return [bytes("inside")];
  });
  return { ...await runApplication(app, testEnviron(variables)), environ };
}

/** The environ that an application gets behind a middleware, which has to call it. */
export async function inside(middleware: Middleware, variables: Variables = {}): Promise<Environ> {
  const { status, environ } = await through(middleware, variables);
  return environ ?? assert.fail(`the application was not called: ${status}`);
}

/** An environ for tests, without some of its variables. */
export function lacking(variables: Variables, ...names: string[]): Environ {
  const environ = testEnviron(variables);
  for (const name of names) delete environ[name];
  return environ;
}

/** The values of a header, in order. */
export function valuesOf(headers: HeaderList, name: string): string[] {
  return headers.filter(([given]) => given.toLowerCase() === name.toLowerCase()).map(([, value]) => value);
}

/** Text in quotes, with nothing in it that a terminal cannot show. */
export function shown(text: string): string {
  const escape = (character: string) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`;
  return JSON.stringify(text).replace(/[\x7f-\xff]/g, escape);
}

/** An Authorization header. */
export function basic(credentials: string | Uint8Array, scheme = "Basic "): string {
  return scheme + Buffer.from(credentials).toString("base64");
}

/** Users and their passwords. */
export const USERS = {
  cook: "salt",
  "": "nobody's",
  guest: "",
  colon: "a:b:c",
  "Zoë 料理": "pässwörd 塩",
  constructor: "real",
};

/** A request that is not sent. */
export function get(headers: Record<string, string> = {}, method = "GET"): Request {
  return new Request(HERE, { method, headers });
}

// #endregion

// #region Applications

/** An application that returns an array of chunks. */
export function whole(...chunks: string[]): Application {
  return (_environ, startResponse) => {
    ok(startResponse);
    return chunks.map(bytes);
  };
}

/** An application that fails in the call. */
export function failing(error: unknown): Application {
  return () => {
    throw error;
  };
}

/** An error with a status. */
export function withStatus(status: unknown, message = "the message"): Error {
  return Object.assign(new Error(message), { status });
}

/** Throws. */
export function explode(): never {
  throw new Error("the trap");
}

/** An application that answers with a status, headers and a body. */
export function responding(status: string, headers: HeaderList, make: (environ: Environ) => ResponseBody): Application {
  return (environ, startResponse) => {
    startResponse(status, headers);
    return make(environ);
  };
}

/** An application that gives a body of any kind. */
export function giving(body: (environ: Environ) => ResponseBody, ...headers: HeaderList): Application {
  return (environ, startResponse) => {
    ok(startResponse, ...headers);
    return body(environ);
  };
}

/** Waits for the signal of a request. Before the first byte Deno aborts it only for an application that reads it. */
export function aborted(environ: Environ): Promise<void> {
  const { signal } = environ["fetch.context"]!;
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

/** A body that counts the calls of its `close`. */
export class Closing {
  readonly closed = new Event("close");
  count = 0;

  body<Body extends object>(body: Body): Body & { close(): void } {
    return Object.assign(body, {
      close: () => {
        this.count++;
        this.closed.happen();
      },
    });
  }
}

// #endregion

// #region Time

/** Runs with a clock that stands still unless it is moved on, by milliseconds. */
export async function withClock(run: (moveOn: (milliseconds: number) => void) => Promise<void>): Promise<void> {
  const { now } = performance;
  let time = now.call(performance);
  performance.now = () => time;
  try {
    await run((milliseconds) => void (time += milliseconds));
  } finally {
    performance.now = now;
  }
}

// #endregion

// #region Bodies without an end

/** A promise that never settles. */
export function never<Value>(): Promise<Value> {
  return new Promise<Value>(() => {});
}

/** A body that gives its chunks, and then neither a chunk nor an end. It logs the calls of `return` and `close`. */
export function unending(log: string[], chunks: Uint8Array[], closed?: Event, asked?: Event): ResponseBody {
  const left = [...chunks];
  return {
    [Symbol.asyncIterator]: () => ({
      next() {
        const value = left.shift();
        if (value) return Promise.resolve({ done: false, value });
        asked?.happen();
        return never<IteratorResult<Uint8Array>>();
      },
      return() {
        log.push("return");
        return Promise.resolve({ done: true, value: undefined });
      },
    }),
    close() {
      log.push("close");
      closed?.happen();
    },
  };
}

/** A body without chunks whose `return` never settles. It logs the calls of `return` and `close`. */
export function stubborn(log: string[], closed?: Event): ResponseBody {
  return {
    [Symbol.asyncIterator]: () => ({
      next: () => never<IteratorResult<Uint8Array>>(),
      return() {
        log.push("return");
        return never<IteratorResult<Uint8Array>>();
      },
    }),
    close() {
      log.push("close");
      closed?.happen();
    },
  };
}

// #endregion

// #region Bodies of every kind

/** Text that is worth compressing. */
export const TEXT = "All work and no play makes Jack a dull boy.\n".repeat(100);

/** 300 KiB that no coding makes smaller: a sequence that does not repeat. */
export const NOISE = (() => {
  const noise = new Uint8Array(300 * KIB);
  for (let index = 0, state = 1; index < noise.length; index++) {
    state = Math.imul(state, 1_664_525) + 1_013_904_223 | 0;
    noise[index] = state >>> 24;
  }
  return noise;
})();

/** The chunks of the bodies. */
export const PARTS = [bytes(TEXT), EMPTY, bytes("x"), NOISE, EMPTY, bytes("end")];

/** The bytes of the bodies. */
export const WHOLE = new Uint8Array(Buffer.concat(PARTS));

/** An application that is a class. */
export class Instance {
  readonly #startResponse: StartResponse;

  constructor(_environ: Environ, startResponse: StartResponse) {
    this.#startResponse = startResponse;
  }

  *[Symbol.iterator](): Generator<Uint8Array> {
    ok(this.#startResponse);
    yield* PARTS;
  }
}

/** An application that starts its response after an empty chunk. */
export const LATE: Application = async function* (_environ, startResponse) {
  yield EMPTY;
  ok(startResponse);
  for (const part of PARTS) {
    await Promise.resolve();
    yield part;
  }
};

/** Applications that give the same bytes, each in another way. */
export const BODIES: [name: string, app: ApplicationLike][] = [
  ["an array", giving(() => PARTS)],
  ["an array with close", giving(() => Object.assign([...PARTS], { close() {} }))],
  ["a promise of an array", async (_environ, startResponse) => {
    await Promise.resolve();
    ok(startResponse);
    return PARTS;
  }],
  ["a set", giving(() => new Set(PARTS))],
  ["a synchronous generator", function* (_environ, startResponse) {
    ok(startResponse);
    yield* PARTS;
  }],
  ["an asynchronous generator that starts late", LATE],
  ["a ReadableStream", giving(() => ReadableStream.from(PARTS))],
  ["a wrapped file", giving((environ) => environ["wsgi.file_wrapper"](new MemoryFile(TEXT.repeat(50)), KIB))],
  ["a wrapped Blob", giving((environ) => environ["wsgi.file_wrapper"](new Blob(PARTS.map((part) => part.slice()))))],
  ["an instance of a class", Instance],
  ["an object with a method", { handle: (_environ, startResponse) => (ok(startResponse), PARTS) }],
  ["a stream of a declared length", giving(() => new Set(PARTS), ["Content-Length", String(WHOLE.length)])],
];

// #endregion

// #region Access logs

/** A line of the combined format. */
export const COMBINED = new RegExp(
  [
    String.raw`^(?<address>[^\s"]+) - (?<user>\S+) `,
    String.raw`\[(?<time>\d{2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}:\d{2} \+0000)\] `,
    String.raw`"(?<method>[^\s"\\]+) (?<target>(?:[^"\\]|\\.)*) (?<protocol>HTTP/\d\.\d)" `,
    String.raw`(?<status>\d{3}) (?<bytes>[1-9]\d*|-) "(?<referer>(?:[^"\\]|\\.)*)" "(?<agent>(?:[^"\\]|\\.)*)" `,
    String.raw`(?<duration>\d+\.\d{3})ms(?: (?!aborted$)(?<id>[^\s"]+))?(?<aborted> aborted)?$`,
  ].join(""),
);

/** The fields of a line. */
export type Fields = Record<string, string | undefined>;

/** Reads a line of the combined format, strictly. */
export function fieldsOf(line: string): Fields {
  assert.match(line, /^[\x20-\x7e]*$/, "a line is printable ASCII");
  const groups = COMBINED.exec(line)?.groups;
  assert.ok(groups, `not a line of the combined format: ${line}`);
  return groups;
}

/** The fields that both formats have. */
export interface Said {
  status: unknown;
  bytes: unknown;
  aborted: unknown;
}

/** Two access logs around an application, one in each format, and their lines. */
export class Log {
  readonly lines: string[] = [];
  readonly objects: string[] = [];
  readonly written = new Event("a line in each log");
  readonly #options: AccessLogOptions;

  constructor(options: AccessLogOptions = {}) {
    this.#options = options;
  }

  readonly combined: Middleware = (app) =>
    accessLog(app, {
      ...this.#options,
      write: (line) => {
        this.lines.push(line);
        this.written.happen();
      },
    });

  readonly json: Middleware = (app) =>
    accessLog(app, { ...this.#options, format: "json", write: (line) => void this.objects.push(line) });

  /** An application with both around it. The outer one is the last to write. */
  around(app: ApplicationLike, ...middleware: Middleware[]): Application {
    return stacked(app, this.combined, this.json, ...middleware);
  }

  /** Waits for the one line in each log, and sees that both say the same. */
  async one(): Promise<{ fields: Fields; entry: Record<string, unknown>; said: Said }> {
    await this.written.wait();
    await settle();
    assert.deepEqual([this.lines.length, this.objects.length], [1, 1], "one line in each log");
    const fields = fieldsOf(this.lines[0]!);
    assert.match(
      this.objects[0]!,
      /^[\x20-\x7e\xa0-\u2027\u202a-\uffff]*$/,
      "an object is one line for a terminal, too",
    );
    const entry: Record<string, unknown> = JSON.parse(this.objects[0]!);
    const said = { status: entry.status, bytes: entry.bytes, aborted: entry.aborted };
    const count = fields.bytes === "-" ? 0 : Number(fields.bytes);
    assert.deepEqual({ status: Number(fields.status), bytes: count, aborted: fields.aborted !== undefined }, said);
    return { fields, entry, said };
  }
}

// #endregion
