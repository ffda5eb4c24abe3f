/**
 * `serve` on srvx, a server for Node: `tests/pep3333_test.ts` runs against it, and an example for a server of your own.
 *
 * @module
 */

import { type ApplicationLike, type ServeOptions, type Server, toFetch } from "../mod.ts";

/** The part of srvx that is used. Its types are not there where this project is checked. */
interface Srvx {
  serve(options: object): { node: { server: { address(): { port: number } } }; close(force: boolean): Promise<void> };
}

/** A request of srvx. */
interface SrvxRequest extends Request {
  runtime: { node: { req: { socket: { remoteAddress?: string; remotePort?: number } } } };
  waitUntil?(work: Promise<unknown>): void;
}

const PACKAGE: string = "srvx";
const srvx: Srvx = await import(PACKAGE);

/** Serves an application. Node listens at once where it is given a port alone. */
export function serve(app: ApplicationLike, options: ServeOptions = {}): Server {
  const { port = 8000, environ, errors, maxBodySize, scriptName } = options;
  const handler = toFetch(app, { environ, errors, maxBodySize, scriptName });
  const server = srvx.serve({
    port,
    silent: true,
    gracefulShutdown: false,
    fetch(request: SrvxRequest) {
      const { remoteAddress, remotePort } = request.runtime.node.req.socket;
      const hostname = remoteAddress?.replace("::ffff:", ""); // an address of IPv4, as a socket of IPv6 has it
      return handler(request, { remoteAddr: { hostname, port: remotePort }, waitUntil: request.waitUntil });
    },
  });
  const address = server.node.server.address();
  const stopped = Promise.withResolvers<void>();
  const shutdown = () => {
    server.close(true).then(stopped.resolve, stopped.reject);
    return stopped.promise;
  };
  return {
    url: `http://localhost:${address.port}/`,
    hostname: "127.0.0.1",
    port: address.port,
    runtime: "node" as never,
    finished: stopped.promise,
    shutdown,
    [Symbol.asyncDispose]: shutdown,
  };
}
