/**
 * The little that a framework would bring: routes, responses, and errors with a status.
 *
 * @module
 */

import { type Environ, fromNativeString, type HeaderList, type ResponseBody } from "../../mod.ts";
import type { Context } from "./app.ts";

/** Finds handlers by method and path, as in `"GET /posts/:id"`: `:id` is a number, any other name is a segment. */
export function router<Handler>(
  routes: Record<string, Handler>,
): (environ: Environ) => { handler: Handler; params: Record<string, string> } {
  const table = Object.entries(routes).map(([route, handler]) => {
    const [method = "", path = ""] = route.split(" ");
    const source = path.replace(/[.*+?^$(){}|[\]\\]/g, "\\$&")
      .replace(/:(\w+)/g, (_, name) => `(?<${name}>${name === "id" ? "\\d{1,15}" : "[^/]+"})`);
    return { method, pattern: new RegExp(`^${source}$`), handler };
  });
  return ({ REQUEST_METHOD: method, PATH_INFO }) => {
    const path = fromNativeString(PATH_INFO) || "/"; // a mounted application is also reached without the slash
    const found = table.filter(({ pattern }) => pattern.test(path));
    if (found.length === 0) throw httpError(404, `There is no page at ${path}`);
    const route = found.find((route) => route.method === (method === "HEAD" ? "GET" : method));
    if (!route) {
      const allow = [...new Set(found.map(({ method }) => method))].join(", ");
      throw httpError(405, `Expected one of ${allow}`, [["Allow", allow]]);
    }
    return { handler: route.handler, params: { ...route.pattern.exec(path)?.groups } };
  };
}

/** Sends the browser to another page of the blog, which shows the message. After a form this is Post/Redirect/Get. */
export function redirect({ root, session, startResponse }: Context, path: string, message?: string): ResponseBody {
  if (message !== undefined) session.messages = [message];
  startResponse("303 See Other", [["Location", root + path]]);
  return [];
}

/** Responds with JSON. */
export function json(
  { startResponse }: Context,
  value: unknown,
  { status = "200 OK", headers = [] }: { status?: string; headers?: HeaderList } = {},
): ResponseBody {
  startResponse(status, [["Content-Type", "application/json"], ...headers]);
  return [new TextEncoder().encode(`${JSON.stringify(value)}\n`)];
}

/** Makes an error that the error page answers with its status and, because it is for the client, with its message. */
export function httpError(status: number, message: string, headers: HeaderList = []): Error {
  return Object.assign(new Error(message), { status, expose: true, headers });
}
