/**
 * A framework, from its first line to its last: routes with parameters, and plain values as responses.
 *
 * Run it with `deno run --allow-net examples/framework.ts` or `bun run examples/framework.ts`, and open
 * http://localhost:8000/, which links to all that it does. Run like this, it shows errors as they are.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { accessLog, errorPage, fromNativeString, pipeline, serve, toRequest } from "../mod.ts";
import type { ApplicationObject, Environ, HeaderList, ResponseBody, StartResponse } from "../mod.ts";

/** Gives text, HTML, a redirect, nothing, an async generator of bytes, or anything else, which becomes JSON. */
type Handler = (request: Request, parameters: Record<string, string>) => unknown;

class Html extends String {}
class Redirect extends String {}

/** Makes HTML of a template, with whatever is put into it escaped. */
function markup(strings: TemplateStringsArray, ...values: unknown[]): Html {
  const show = (value: unknown): string => {
    if (value instanceof Html) return String(value);
    if (Array.isArray(value)) return value.map(show).join("");
    return String(value).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
  };
  return new Html(String.raw({ raw: strings }, ...values.map(show))); // Bun escapes `strings.raw`: oven-sh/bun#8745
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
    const value = await route.handler(toRequest(environ), { ...route.pattern.exec(path)?.groups });
    const [status, headers, body] = respond(value);
    startResponse(status, headers);
    return body;
  }
}

/** Makes a response of what a handler gives. */
function respond(value: unknown): [status: string, headers: HeaderList, body: ResponseBody] {
  const ok = (type: string, body: unknown): ReturnType<typeof respond> => {
    const chunks = typeof body === "string" ? [new TextEncoder().encode(body)] : body as ResponseBody;
    // Without "nosniff" a browser waits for a kilobyte of text, to see whether it is text.
    return ["200 OK", [["Content-Type", type], ["X-Content-Type-Options", "nosniff"]], chunks];
  };
  if (value === undefined) return ["204 No Content", [], []];
  if (value instanceof Redirect) return ["303 See Other", [["Location", String(value)]], []];
  if (value instanceof Html) return ok("text/html; charset=utf-8", String(value));
  if (typeof value === "string" || Symbol.asyncIterator in Object(value)) return ok("text/plain; charset=utf-8", value);
  return ok("application/json", JSON.stringify(value));
}

/** Makes a page of a template. */
function page(strings: TemplateStringsArray, ...values: unknown[]): Html {
  return markup`<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Framework</title>
<style>html { color-scheme: light dark; font: 1.1em/1.6 system-ui; overflow-wrap: anywhere }
body { max-width: 32em; margin: 2em auto; padding: 0 1em } input, button { font: inherit; max-width: 100% }</style>
${markup(strings, ...values)}`;
}

const messages: string[] = [];

const app = new App()
  .on("GET /", () =>
    page`<h1>A framework</h1>
<ul><li><a href="/hello/you">A page</a>, with a parameter in its path
<li><a href="/users/7">JSON</a>, and <a href="/users/8">an error with a status</a>
<li><a href="/count">A stream</a>, which counts to three
<li><a href="/failure">A failure</a>, and where it happened</ul>
<form method="post"><input name="message" aria-label="Message" required> <button>Leave a message</button></form>
<ul>${messages.map((message) => markup`<li>${message}`)}</ul>`)
  .on("POST /", async (request) => {
    const form = await request.formData(); // what it rejects with has the status 400 or 413
    messages.splice(9, 1);
    messages.unshift(String(form.get("message")).slice(0, 99));
    return new Redirect("/");
  })
  .on("GET /hello/:name", (_request, { name }) => page`<h1>Hello ${name}!</h1><a href="/">← Back</a>`)
  .on("GET /users/:id", (_request, { id }) => id === "7" ? { id, name: "Ada" } : fail(404, `No user ${id}`))
  .on("POST /sum", async (request) => {
    const numbers: unknown = await request.json();
    return Array.isArray(numbers) ? { sum: numbers.reduce((sum, number) => sum + number, 0) } : fail(422, "No list");
  })
  .on("GET /count", async function* () {
    for (let count = 1; count <= 3; count++) yield await setTimeout(300, new TextEncoder().encode(`${count}\n`));
  })
  .on("GET /failure", () => ({ parsed: JSON.parse("{") }));

/** The application, with an error page and an access log around it. */
export const application = pipeline(app, accessLog, (app) => errorPage(app, { development: import.meta.main }));

if (import.meta.main) serve(application);
