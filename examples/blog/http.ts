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

/** Handlers by method and path, in which `:id` stands for a number: `"GET /posts/:id"`. */
export type Routes<Handler> = Record<string, Handler>;

/** Makes a function that finds the handler of a request, and the number in its path. */
export function router<Handler>(routes: Routes<Handler>): (environ: Environ) => { handler: Handler; id: number } {
  const table = Object.entries(routes).map(([route, handler]) => {
    const [method = "", path = ""] = route.split(" ");
    return { method, pattern: new RegExp(`^${path.replace(":id", "(\\d{1,15})")}$`), handler };
  });
  return ({ REQUEST_METHOD: method, PATH_INFO }) => {
    const path = PATH_INFO || "/"; // a mounted application is also reached without the slash
    const found = table.filter(({ pattern }) => pattern.test(path));
    if (found.length === 0) throw httpError(404, `There is no page at ${fromNativeString(path)}`);
    const route = found.find((route) => route.method === (method === "HEAD" ? "GET" : method));
    if (!route) {
      const allow = found.map(({ method }) => method).join(", ");
      throw httpError(405, `Expected one of ${allow}`, [["Allow", allow]]);
    }
    return { handler: route.handler, id: Number(route.pattern.exec(path)?.[1]) };
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
export function json(value: unknown): Reply {
  const body = [new TextEncoder().encode(`${JSON.stringify(value)}\n`)];
  return { status: "200 OK", headers: [["Content-Type", "application/json"]], body };
}

/** Sends the browser to another page, after a form: Post/Redirect/Get. */
export function redirect(location: string): Reply {
  return { status: "303 See Other", headers: [["Location", location]], body: [] };
}

/** Makes an error that the error page answers with its status and, because it is for the client, with its message. */
export function httpError(status: number, message: string, headers: HeaderList = []): Error {
  return Object.assign(new Error(message), { status, expose: true, headers });
}
