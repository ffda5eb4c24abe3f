/**
 * Announcements to all open pages, whichever worker serves them.
 *
 * @module
 */

import { once } from "node:events";
import type { Context } from "./app.ts";

/** How often a quiet stream says that it is still there, in milliseconds. Proxies close one that does not. */
const HEARTBEAT = 15_000;

/** Tells all pages that listen to a channel that there is a new post. */
export function announce(name: string): void {
  const channel = new BroadcastChannel(name);
  channel.postMessage("new post");
  channel.close();
}

/**
 * Keeps a page informed by server-sent events: of the posts after the one that it knows, and of new ones once they are
 * announced. The database is asked for posts when the page takes them, so that none wait for a page that does not read.
 */
export async function* events(context: Context): AsyncGenerator<Uint8Array> {
  const { channel: name, database, environ, root, startResponse } = context;
  const encoder = new TextEncoder();
  let after = Number(environ.HTTP_LAST_EVENT_ID ?? new URLSearchParams(environ.QUERY_STRING).get("after")) || 0;
  startResponse("200 OK", [["Content-Type", "text/event-stream"], ["Cache-Control", "no-store"]]);
  yield encoder.encode("retry: 1000\n\n"); // how soon the browser asks again, in milliseconds

  const { signal, stopping } = environ["fetch.context"]!; // the signal costs nothing after the first chunk
  const end = AbortSignal.any([signal, stopping]);
  const channel = new BroadcastChannel(name);
  const heartbeat = setInterval(() => channel.dispatchEvent(new Event("message")), HEARTBEAT);
  try {
    while (!end.aborted) {
      // It listens before it reads, so that it misses nothing. A line with a colon is a comment, which browsers ignore.
      const woken = once(channel, "message", { signal: end }).then(() => ": still here\n\n", () => "");
      for (let posts; (posts = database.postsAfter(after)).length > 0;) {
        for (const { id, title, author } of posts) {
          const data = JSON.stringify({ id, title, author, link: `${root}/posts/${id}` });
          yield encoder.encode(`id: ${id}\ndata: ${data}\n\n`);
          after = id;
        }
      }
      yield encoder.encode(await woken);
    }
  } finally {
    clearInterval(heartbeat);
    channel.close();
  }
}
