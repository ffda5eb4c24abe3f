/**
 * Helpers for the tests of the validator: rules, and applications that keep or break them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type ApplicationLike,
  type Environ,
  type HeaderList,
  type InputStream,
  type Middleware,
  type ResponseBody,
  type StartResponse,
  testEnviron,
  toEnviron,
} from "../mod.ts";
import { answer, bytes, ErrorLog, hello, HERE, ok, PLAIN, settle, text } from "./support.ts";

// #region Rules

/** A value of a wrong type, which only a check at run time can find. */
export function wrong<Wanted>(value: unknown): Wanted {
  return value as Wanted;
}

/** The message of the validator about a breach. */
export function complaint(side: string, section: string, found: string, expected: string): string {
  return `The ${side} broke PEP 3333, "${section}": ${found}, expected ${expected}`;
}

/** A rule: cases that break it, with their descriptions, and cases that come close and are legal. */
export interface Rule<Case> {
  section: string;
  expected: string;
  broken: [how: string, found: string, breach: Case, remedy?: string][];
  legal: [how: string, neighbour: Case][];
}

/** Makes a test of each breach of rules, and of each of their legal neighbours. */
export function testRules<Case>(
  side: string,
  rules: Rule<Case>[],
  runs: Record<string, (example: Case) => Promise<void>>,
) {
  for (const { section, expected, broken, legal } of rules) {
    for (const [by, run] of Object.entries(runs)) {
      for (const [how, found, breach, remedy = ""] of broken) {
        test(`the ${side} is told, ${by}, of ${how}: ${found}`, async () => {
          const message = complaint(side, section, found, expected + remedy);
          await assert.rejects(async () => await run(breach), { message });
        });
      }
      for (const [how, neighbour] of legal) {
        test(`the ${side} may do this, ${by}: ${how}`, async () => await run(neighbour));
      }
    }
  }
}

// #endregion

// #region A server that checks nothing

/** A request with a body, unless its method has none. */
export function aRequest(method = "POST"): Request {
  return new Request(HERE, { method, body: method === "POST" ? "one\ntwo\n" : null });
}

/** A `startResponse` that takes everything. */
export const accept: StartResponse = () => () => Promise.resolve();

/** Changes a good environ. */
export function testEnvironWith(changes: Record<string, unknown>): Environ {
  return Object.assign(testEnviron({ "wsgi.errors": new ErrorLog() }), changes);
}

/** Answers as a server without checks, so that only the validator can complain. */
export async function run(
  app: Application,
  environ = toEnviron(aRequest(), { errors: new ErrorLog() }),
  startResponse = accept,
): Promise<string> {
  const body = await app(environ, startResponse);
  let received = "";
  try {
    for await (const chunk of body) received += text(chunk);
  } finally {
    await body.close?.();
  }
  return received;
}

/** The iterator of a body, for a test that asks for the chunks by itself. */
export function open(body: ResponseBody): AsyncIterator<Uint8Array> {
  assert.ok(Symbol.asyncIterator in body);
  return body[Symbol.asyncIterator]();
}

/** Answers over Fetch, and rejects with the complaint that the server has reported. */
export async function overFetch(app: ApplicationLike, method?: string): Promise<void> {
  const { response, errors } = await answer(app, aRequest(method));
  await response.text().catch(() => {});
  await settle();
  const message = /The \w+ broke PEP 3333, .*/.exec(errors.text)?.[0].replaceAll("\\x7f", "\x7f"); // a report escapes it
  if (message !== undefined) throw new Error(message);
  assert.equal(errors.text, "");
  assert.ok(response.status < 500);
}

// #endregion

// #region Applications

/** Chunks that do not exist before they are asked for. */
export const STREAM: Application = function* (_environ, startResponse) {
  ok(startResponse);
  yield bytes("one ");
  yield bytes("two ");
  yield bytes("three");
};

/** An application that calls `startResponse` with any arguments, and returns any value. */
export function starting(args: unknown[], body: unknown = []): Application {
  return (_environ, startResponse) => {
    Reflect.apply(startResponse, undefined, args);
    return wrong(body);
  };
}

/** An application that returns a body after a good start. */
export function giving(body: unknown, ...headers: HeaderList): Application {
  return starting(["200 OK", [...PLAIN, ...headers]], body);
}

/** An application with one more header. */
export function heading(...headers: unknown[]): Application {
  return starting(["200 OK", [...PLAIN, ...headers]]);
}

/** An application that answers by chunks. */
export function streaming(chunks: unknown[], ...headers: HeaderList): Application {
  return function* (_environ, startResponse) {
    ok(startResponse, ...headers);
    for (const chunk of chunks) yield wrong(chunk);
  };
}

/** An application that writes chunks, and returns others. */
export function writes(written: unknown[], returned: Uint8Array[] = [], ...headers: HeaderList): Application {
  return (_environ, startResponse) => {
    const write = startResponse("200 OK", [...PLAIN, ...headers]);
    for (const chunk of written) Reflect.apply(write, undefined, [chunk]);
    return returned;
  };
}

/** An application that does something to its error stream. */
export function reporting(report: (errors: Environ["wsgi.errors"]) => unknown): Application {
  return (environ, startResponse) => {
    report(environ["wsgi.errors"]);
    return hello(environ, startResponse);
  };
}

/** An application that reads its input. */
export function reading(read: (input: InputStream) => unknown): Application {
  return async (environ, startResponse) => {
    await read(environ["wsgi.input"]);
    return hello(environ, startResponse);
  };
}

/** An application that writes, and then streams. */
export const WRITING: Application = (_environ, startResponse) => {
  startResponse("200 OK", PLAIN)(bytes("zero "));
  return new Set(["one ", "two "].map(bytes));
};

/** The error that an application has caught. */
export const ERROR = new Error("What was caught");

/** An application that is a class. */
export class Instance {
  closes = 0;
  constructor(readonly environ: Environ, startResponse: StartResponse) {
    ok(startResponse);
  }

  *[Symbol.iterator](): Generator<Uint8Array> {
    yield bytes("an ");
    yield bytes(typeof this.environ);
  }

  close(): void {
    if (this.closes++ > 0) throw new Error("Closed twice");
  }
}

/** A middleware that passes everything on, by hand. */
export const THROUGH: Middleware = (app) => async (environ, startResponse) => {
  const body = await wrong<Application>(app)(environ, startResponse);
  return !(Symbol.asyncIterator in body) ? body : {
    [Symbol.asyncIterator]: () => open(body),
    close: () => body.close?.(),
  };
};

// #endregion

// #region Inputs

/** An input whose methods give one value, of any type. */
export function inputOf(given: unknown): InputStream {
  const give = () => Promise.resolve(wrong<never>(given));
  return {
    read: give,
    read1: give,
    readline: give,
    readlines: give,
    async *[Symbol.asyncIterator]() {
      yield await give();
    },
  };
}

/** Reads all lines by iteration. */
export async function iterate(input: InputStream): Promise<void> {
  for await (const line of input) assert.ok(line);
}

// #endregion
