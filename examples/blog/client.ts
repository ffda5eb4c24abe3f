/**
 * A browser, as far as tests need one: it keeps cookies, follows redirects and sends forms with their token.
 *
 * @module
 */

import type { FetchHandler } from "../../mod.ts";

/** The end of what a client has asked for, after all redirects. */
export interface Answer {
  status: number;
  /** Where it was found. */
  url: string;
  headers: Headers;
  text: string;
}

/** The fields of a form. One with a file is sent in parts. */
export type Fields = Record<string, string | File>;

/** A visitor of a site, which is `toFetch(app)` in process, or `fetch` for a server. */
export class Client {
  readonly cookies = new Map<string, string>();
  /** The token of the last page with a form. */
  token = "";
  readonly #handler: FetchHandler;
  readonly #origin: string;

  constructor(handler: FetchHandler, origin = "http://localhost") {
    this.#handler = handler;
    this.#origin = origin;
  }

  /** Opens a page. */
  get(path: string): Promise<Answer> {
    return this.send(path);
  }

  /** Sends a form with the token of the last page, or with another one. */
  post(path: string, fields: Fields = {}): Promise<Answer> {
    const pairs = Object.entries<string | File>({ token: this.token, ...fields });
    const hasFiles = pairs.some(([, value]) => value instanceof File);
    const body = hasFiles ? new FormData() : new URLSearchParams();
    for (const [name, value] of pairs) body.append(name, value as string);
    return this.send(path, { method: "POST", body });
  }

  /** Opens the page of a form, fills it in, and sends it. */
  async submit(path: string, fields: Fields): Promise<Answer> {
    await this.get(path);
    return await this.post(path, fields);
  }

  /** Sends a request, and those that its answer redirects to. */
  async send(path: string, init: RequestInit = {}): Promise<Answer> {
    const url = new URL(path, this.#origin);
    const headers = new Headers(init.headers);
    headers.set("Cookie", [...this.cookies].map(([name, value]) => `${name}=${value}`).join("; "));
    const response = await this.#handler(new Request(url, { ...init, headers, redirect: "manual" }));
    for (const cookie of response.headers.getSetCookie()) {
      const [, name = "", value = ""] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
      this.cookies.set(name, value);
    }
    const text = await response.text();
    const location = response.headers.get("Location");
    if (location !== null && Math.floor(response.status / 100) === 3) return this.get(new URL(location, url).href);
    this.token = /name="token" value="([^"]*)"/.exec(text)?.[1] ?? this.token;
    return { status: response.status, url: url.pathname + url.search, headers: response.headers, text };
  }
}

/** Reads server-sent events until so many have come, as "link title". They have ten seconds. */
export async function readEvents(body: ReadableStream<Uint8Array>, count: number): Promise<string[]> {
  const decoder = new TextDecoderStream() as TransformStream<Uint8Array, string>;
  let text = "";
  for await (const chunk of body.pipeThrough(decoder, { signal: AbortSignal.timeout(10_000) })) {
    text += chunk;
    const events = [...text.matchAll(/^data: (.*)\n\n/gm)].map(([, data = ""]) => JSON.parse(data));
    if (events.length >= count) return events.map(({ link, title }) => `${link} ${title}`);
  }
  throw new Error(`The stream has ended after "${text}", expected ${count} events`);
}
