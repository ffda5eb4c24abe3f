/**
 * A framework, from its first line to its last: routes with parameters, and plain values as responses.
 *
 * Run it with `deno run --allow-net examples/framework.ts` or `bun run examples/framework.ts`, and open
 * http://localhost:8000/. With `--development` at the end, errors are shown as they are.
 *
 * @module
 */

import {
  accessLog,
  type ApplicationObject,
  type Environ,
  errorPage,
  fromNativeString,
  type HeaderList,
  pipeline,
  type ResponseBody,
  serve,
  type StartResponse,
  toRequest,
} from "../mod.ts";

/** What a handler gets: the request, and what its route has found in the path. */
interface Context {
  request: Request;
  parameters: Record<string, string>;
}

/** What a handler gives: text, HTML, bytes, nothing, an async generator of bytes, or anything else, which becomes JSON. */
type Handler = (context: Context) => unknown;

/** Text that is HTML. */
class Html extends String {}

/** Makes HTML of a template, with whatever is put into it escaped. */
function page({ raw }: TemplateStringsArray, ...values: unknown[]): Html {
  const escape = (text: string) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
  return new Html(String.raw({ raw }, ...values.map((value) => value instanceof Html ? value : escape(String(value)))));
}

/** Fails with a status, for the error page to answer. */
function fail(status: number, message: string): never {
  throw Object.assign(new Error(message), { status });
}

/** An application made of routes. */
class App implements ApplicationObject {
  readonly #routes: { method: string; pattern: RegExp; handler: Handler }[] = [];

  /** Adds a route: a method and a path, in which `:name` stands for any segment. */
  on(route: string, handler: Handler): this {
    const [method = "", path = ""] = route.split(" ");
    const source = path.replace(/[.*+?^$(){}|[\]\\]/g, "\\$&").replace(/:(\w+)/g, "(?<$1>[^/]+)");
    this.#routes.push({ method, pattern: new RegExp(`^${source}$`), handler });
    return this;
  }

  /** Answers one request. This is all that a server knows of the framework. */
  async handle(environ: Environ, startResponse: StartResponse): Promise<ResponseBody> {
    const path = fromNativeString(environ.PATH_INFO);
    const routes = this.#routes.filter(({ pattern }) => pattern.test(path));
    if (routes.length === 0) fail(404, `There is nothing at ${path}`);
    const wanted = environ.REQUEST_METHOD === "HEAD" ? "GET" : environ.REQUEST_METHOD;
    const route = routes.find(({ method }) => method === wanted);
    if (!route) {
      const allowed = routes.map(({ method }) => method).join(", ");
      startResponse("405 Method Not Allowed", [["Allow", allowed], ["Content-Type", "text/plain"]]);
      return [];
    }
    const parameters = { ...route.pattern.exec(path)?.groups };
    const [status, headers, body] = respond(await route.handler({ request: toRequest(environ), parameters }));
    startResponse(status, headers);
    return body;
  }
}

/** Makes a response of what a handler gives. */
function respond(value: unknown): [status: string, headers: HeaderList, body: ResponseBody] {
  const typed = (type: string, body: ResponseBody): ReturnType<typeof respond> => {
    return ["200 OK", [["Content-Type", type]], body];
  };
  const encode = (text: unknown) => [new TextEncoder().encode(String(text))];
  if (value === undefined) return ["204 No Content", [], []];
  if (value instanceof Html) return typed("text/html; charset=utf-8", encode(value));
  if (typeof value === "string") return typed("text/plain; charset=utf-8", encode(value));
  if (value instanceof Uint8Array) return typed("application/octet-stream", [value]);
  if (Symbol.asyncIterator in Object(value)) return typed("text/plain; charset=utf-8", value as ResponseBody);
  return typed("application/json", encode(JSON.stringify(value)));
}

const app = new App()
  .on("GET /", () => page`<!doctype html><title>A framework</title><p><a href="/hello/you">Hello?</a>`)
  .on("GET /hello/:name", ({ parameters: { name } }) => page`<!doctype html><title>Hello</title><p>Hello ${name}!`)
  .on("GET /users/:id", ({ parameters: { id } }) => id === "7" ? { id, name: "Ada" } : fail(404, `No user ${id}`))
  .on("POST /sum", async ({ request }) => {
    const numbers: unknown = await request.json(); // what it rejects with has the status 400 or 413
    return Array.isArray(numbers) ? { sum: numbers.reduce((sum, number) => sum + number, 0) } : fail(422, "No list");
  })
  .on("GET /count", async function* () {
    for (let count = 1; count <= 3; count++) yield new TextEncoder().encode(`${count}\n`);
  });

const development = process.argv.includes("--development");

/** The application, with an error page and an access log around it. */
export const application = pipeline(app, accessLog, (app) => errorPage(app, { development }));

if (import.meta.main) serve(application);
