/**
 * Announcements to all open pages, whichever worker serves them.
 *
 * @module
 */

import type { ResponseBody } from "../../mod.ts";

/** How often a quiet stream says that it is still there, in milliseconds. Proxies close one that does not. */
const HEARTBEAT = 15_000;

/** How many announcements wait for a browser that does not read. With more its stream ends, and it asks again. */
const MAX_WAITING = 100;

/** Tells all pages that listen to a channel. */
export function announce<T>(name: string, announcement: T): void {
  const channel = new BroadcastChannel(name);
  channel.postMessage(announcement);
  channel.close();
}

/** How a page listens. */
export interface ListenOptions<T> {
  /** The announcements that the page has missed. */
  missed: T[];
  /** The address of what is announced. */
  link(announcement: T): string;
  /** Ends the stream. */
  stopping: AbortSignal;
}

/** Makes a body of server-sent events, which ends when the browser leaves or the server stops. */
export function listen<T extends { id: number }>(name: string, options: ListenOptions<T>): ResponseBody {
  const { missed, link, stopping } = options;
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const close = () => {
    clearInterval(heartbeat);
    channel.close();
    stopping.removeEventListener("abort", end);
  };
  const end = () => {
    close();
    controller.close();
  };
  const send = (text: string) => {
    if (controller.desiredSize === 0) end();
    else controller.enqueue(new TextEncoder().encode(`${text}\n\n`));
  };
  const sendEvent = (announcement: T) => {
    send(`id: ${announcement.id}\ndata: ${JSON.stringify({ ...announcement, link: link(announcement) })}`);
  };

  const stream = new ReadableStream<Uint8Array>({
    start: (own) => void (controller = own),
    cancel: close,
  }, { highWaterMark: MAX_WAITING });
  const channel = new BroadcastChannel(name);
  const heartbeat = setInterval(() => send(": still here"), HEARTBEAT);
  stopping.addEventListener("abort", end);
  send("retry: 1000"); // how soon the browser asks again, in milliseconds
  for (const announcement of missed) sendEvent(announcement);
  channel.onmessage = ({ data }) => sendEvent(data);
  if (stopping.aborted) end();
  return stream;
}
