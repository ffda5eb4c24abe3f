/**
 * The little that a framework would bring: routes, replies, and errors with a status.
 *
 * @module
 */

import { type Environ, fromNativeString, type HeaderList, type ResponseBody } from "../../mod.ts";
import type { Html } from "./html.ts";

/** A response that is still to be started. */
export interface Reply {
  status: string;
  headers: HeaderList;
  body: ResponseBody;
}

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

/** Replies with a page. */
export function page(content: Html, status = "200 OK"): Reply {
  const headers: HeaderList = [
    ["Content-Type", "text/html; charset=utf-8"],
    ["Cache-Control", "private, no-cache"],
    ["Vary", "Cookie"],
  ];
  return { status, headers, body: [new TextEncoder().encode(`${content}`)] };
}

/** Replies with the page of a form that has to be corrected. */
export function invalid(content: Html): Reply {
  return page(content, "422 Unprocessable Content");
}

/** Replies with JSON. */
export function json(value: unknown, status = "200 OK", headers: HeaderList = []): Reply {
  const body = [new TextEncoder().encode(`${JSON.stringify(value)}\n`)];
  return { status, headers: [["Content-Type", "application/json"], ...headers], body };
}

/** Sends the browser to another page, after a form: Post/Redirect/Get. */
export function redirect(location: string): Reply {
  return { status: "303 See Other", headers: [["Location", location]], body: [] };
}

/** Makes an error that the error page answers with its status and, because it is for the client, with its message. */
export function httpError(status: number, message: string, headers: HeaderList = []): Error {
  return Object.assign(new Error(message), { status, expose: true, headers });
}
