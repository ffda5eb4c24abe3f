/**
 * An application that the tests serve on other runtimes. It uses what needs no files, no sockets and nothing of Node's.
 *
 * @module
 */

import {
  accessLog,
  type Application,
  basicAuth,
  compress,
  conditional,
  cors,
  errorPage,
  files,
  fromFetch,
  health,
  limitBody,
  limitConcurrency,
  type Middleware,
  mount,
  pipeline,
  requestId,
  requestUri,
  secureHeaders,
  serve,
  timeout,
  trustedHosts,
  validator,
} from "../mod.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

/** Answers with a text. */
const says = (text: string): Application => (_environ, startResponse) => {
  startResponse("200 OK", [["Content-Type", "text/plain"]]);
  return [bytes(text)];
};

/** Calls an application that is made now, or says what was thrown. */
const made = (make: () => Application): Application => (environ, startResponse) => {
  let app: Application;
  try {
    app = make();
  } catch (error) {
    app = says(String(error));
  }
  return app(environ, startResponse);
};

/** Yields some bytes, and then fails. */
const failing = (...headers: [string, string][]): Application =>
  async function* (_environ, startResponse) {
    startResponse("200 OK", [["Content-Type", "text/plain"], ...headers]);
    yield await bytes("one");
    throw new Error("This stream fails");
  };

const APPS: Record<string, Application> = {
  "/array": says("Hello"),
  "/environ": (environ, startResponse) => {
    return says(`${environ.REMOTE_ADDR} ${requestUri(environ)}`)(environ, startResponse);
  },
  // Answers each line of an upload before it reads the next one.
  "/lines": async function* (environ, startResponse) {
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    for await (const line of environ["wsgi.input"]) yield line;
  },
  "/upload": async (environ, startResponse) =>
    says(String((await environ["wsgi.input"].read()).length))(environ, startResponse),
  "/part": async (environ, startResponse) =>
    says(String((await environ["wsgi.input"].read(5)).length))(environ, startResponse),
  "/fails": failing(),
  "/fails-short": failing(["Content-Length", "10"]),
  "/error": () => {
    throw Object.assign(new Error("This application fails"), { status: 422 });
  },
  // Says what it has read, and how reading the rest fails.
  "/reading": async function* (environ, startResponse) {
    const { "wsgi.input": input, CONTENT_LENGTH: length } = environ;
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    yield await input.read(4);
    try {
      await input.read();
    } catch (error) {
      console.log(`${(error as Error).name} ${length ? `Content-Length: ${length}` : "Transfer-Encoding: chunked"}`);
    }
  },
  "/endless": async function* (_environ, startResponse) {
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    for (;;) {
      yield bytes("on and on");
      await new Promise((resolve) => setTimeout(resolve));
    }
  },
  "/page": errorPage(() => {
    throw new Error("This application fails");
  }, { development: true }),
  "/silent": async (environ) => {
    console.log("waits");
    const { signal } = environ["fetch.context"]!;
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
    throw signal.reason;
  },
  "/work": (environ, startResponse) => {
    environ["fetch.context"]?.waitUntil(
      new Promise<void>((resolve) => setTimeout(resolve)).then(() => console.log("worked")),
    );
    return says("answered")(environ, startResponse);
  },
  "/encoded": (_environ, startResponse) => {
    startResponse("200 OK", [["Content-Type", "text/plain"], ["Content-Encoding", "gzip"]]);
    return [Uint8Array.from(atob("H4sIAAAAAAAAA/NIzcnJBwCCidH3BQAAAA=="), (character) => character.charCodeAt(0))];
  },
  "/cached": conditional(says("Hello")),
  "/slow": timeout(() => new Promise(() => {}), { milliseconds: 10 }),
  "/limited": limitBody(async (environ, startResponse) => {
    await environ["wsgi.input"].read();
    return says("read")(environ, startResponse);
  }, { maxBodySize: 5 }),
  "/fetch": fromFetch(async (request) => Response.json([await request.text()], { status: 429 })),
  "/secret": basicAuth(says("Hello"), { check: (user, password) => user === password }),
  "/compress": made(() => compress(says("made"), { threshold: 0 })),
  "/files": made(() => files("/") && says("made")),
  "/users": made(() => basicAuth(says("made"), { users: { a: "a" } })),
  "/concurrency": made(() => limitConcurrency(says("made"), { max: 1 })),
  "/serve": made(() => serve(says("")) && says("made")),
};

const MIDDLEWARE: Middleware[] = [
  (app) => accessLog(app, { write: (line) => console.log(line) }),
  requestId,
  errorPage,
  secureHeaders,
  (app) => trustedHosts(app, { hosts: ["test.example"] }),
  (app) => cors(app),
  health,
  (app) => limitConcurrency(app, { max: 1000, queue: 0 }),
];

/** All of it. What fails on purpose breaks no rule of the interface, so that a validator is around each. */
export const application: Application = pipeline(
  mount(Object.fromEntries(Object.entries(APPS).map(([path, app]) => [path, validator(app)]))),
  ...MIDDLEWARE,
);
