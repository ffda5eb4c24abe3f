/**
 * Text that a client, a proxy or an upstream has made up to be slow to read.
 *
 * @module
 */

import assert from "node:assert/strict";
import process from "node:process";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  basicAuth,
  compress,
  conditional,
  cors,
  type Environ,
  errorPage,
  files,
  fromFetch,
  limitBody,
  mount,
  proxyFix,
  requestId,
  runApplication,
  secureHeaders,
  testEnviron,
  toEnviron,
  toRequest,
  trustedHosts,
} from "../mod.ts";
import { bytes, ok } from "./support.ts";

const LENGTH = 65_536;

/** What makes a careless pattern or a careless split slow: each is repeated, between what begins and ends a value. */
const REPEATED = [
  ...[" ", "\t", '"', ",", ";", "[", "]", ".", "1", "%", "/", "=", "\\", "-", ":", "+", "_", "*", "\xa0"],
  ...[
    " ,",
    ", ",
    "a,",
    "a ",
    '\\"',
    '""',
    "%4",
    "%41",
    "/.",
    "a=",
    "a=;",
    'a="',
    ":1",
    "]:",
    "]:_a",
    "1-,",
    "W/",
    "q=,",
    "xn--",
  ],
];

/** Reads a header that a client has sent: all that stand between it and the application look at it. */
const client: Application = accessLog(
  proxyFix(
    trustedHosts(
      requestId(
        cors(
          compress(
            conditional(
              secureHeaders(
                limitBody(
                  errorPage(
                    mount({
                      "/file": files(new URL(".", import.meta.url)),
                      "/asked": basicAuth(() => [], { users: { ada: "secret" } }),
                      "/fetch": fromFetch(() => new Response("a", { headers: { ETag: '"a"' } })),
                      "/": () => {
                        throw new Error("Not here");
                      },
                    }),
                  ),
                ),
              ),
            ),
          ),
        ),
      ),
      { hosts: [".example"] },
    ),
    { trust: ["unix"] },
  ),
  { write: () => {} },
);

const asClient = (variable: string, overrides: object = {}) => (value: string) => {
  return runApplication(client, testEnviron({ HTTP_HOST: "a.example", ...overrides, [variable]: value }));
};
const preflight = { REQUEST_METHOD: "OPTIONS", HTTP_ORIGIN: "http://a", HTTP_ACCESS_CONTROL_REQUEST_METHOD: "PUT" };

/** Sends a header from inside through what looks at it. */
const asApplication =
  (name: string, condition: Partial<Environ> = { HTTP_IF_NONE_MATCH: '"a"' }) => (value: string) => {
    const app: Application = (_environ, startResponse) => {
      ok(startResponse, [name, value]);
      return [bytes("a")];
    };
    const environ = testEnviron({ HTTP_ACCEPT_ENCODING: "gzip", ...condition });
    return runApplication(cors(compress(conditional(app), { threshold: 0 }), { origin: "http://a" }), environ);
  };

/** What is read of others, begun as it has to begin for a reader to go on. */
const FIELDS: Record<string, [read: (value: string) => unknown, beginning: string, ...others: string[]]> = {
  "the target": [asClient("PATH_INFO"), "/file/", "/file/a.", "/"],
  "the query": [asClient("QUERY_STRING"), "a="],
  "a URL": [(value) => toEnviron(Object.defineProperty(new Request("http://a"), "url", { value })), "http://a:1", "/%"],
  "the path of a Request": [(value) => toRequest(testEnviron({ PATH_INFO: `/${value}` })), "a"],
  "Host": [asClient("HTTP_HOST"), "a", "[:", "a:1"],
  "Accept": [asClient("HTTP_ACCEPT"), "text/html", "a;q="],
  "Accept-Encoding": [asClient("HTTP_ACCEPT_ENCODING"), "gzip", "br;q="],
  "Access-Control-Request-Headers": [asClient("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", preflight), "a"],
  "Authorization": [asClient("HTTP_AUTHORIZATION", { PATH_INFO: "/asked" }), "Basic ", "Basic  a "],
  "Content-Length": [asClient("CONTENT_LENGTH"), "1"],
  "If-Match": [asClient("HTTP_IF_MATCH", { PATH_INFO: "/file/support.ts" }), '"a', "W/"],
  "If-Modified-Since": [asClient("HTTP_IF_MODIFIED_SINCE", { PATH_INFO: "/file/support.ts" }), "Mon", "Monday, 0"],
  "If-None-Match": [asClient("HTTP_IF_NONE_MATCH", { PATH_INFO: "/file/support.ts" }), '"a', "W/"],
  "If-Range": [asClient("HTTP_IF_RANGE", { PATH_INFO: "/file/support.ts", HTTP_RANGE: "bytes=0-1" }), '"a'],
  "Origin": [asClient("HTTP_ORIGIN"), "http://"],
  "Range": [asClient("HTTP_RANGE", { PATH_INFO: "/file/support.ts" }), "bytes=", "bytes=0-1"],
  "Referer and User-Agent": [(value) => asClient("HTTP_REFERER", { HTTP_USER_AGENT: value })(value), "a"],
  "X-Forwarded-For": [asClient("HTTP_X_FORWARDED_FOR"), "a", "[a", "[a]:_"],
  "X-Forwarded-Host": [asClient("HTTP_X_FORWARDED_HOST"), "a"],
  "X-Forwarded-Prefix": [asClient("HTTP_X_FORWARDED_PREFIX"), "/a"],
  "X-Forwarded-Proto and -Port": [
    (value) => asClient("HTTP_X_FORWARDED_PROTO", { HTTP_X_FORWARDED_PORT: value })(value),
    "http",
  ],
  "Forwarded": [asClient("HTTP_FORWARDED"), "for=", 'for="', "for=a ", "a"],
  "X-Request-Id": [asClient("HTTP_X_REQUEST_ID"), "a"],
  "Connection of an upstream": [
    (value) => runApplication(fromFetch(() => new Response("", { headers: { Connection: value } })), testEnviron()),
    "a",
  ],
  "Vary of an application": [asApplication("Vary"), "a"],
  "ETag of an application": [asApplication("ETag"), '"', "W/"],
  "Content-Type of an application": [asApplication("Content-Type"), "application/", "text/"],
  "Cache-Control of an application": [asApplication("Cache-Control"), "no-"],
  "Last-Modified of an application": [
    asApplication("Last-Modified", { HTTP_IF_MODIFIED_SINCE: new Date(0).toUTCString() }),
    "Mon",
    "Monday, 0",
  ],
};

/**
 * The processor's time that something takes at best, in milliseconds, whatever else the machine does; a second and a
 * third time only if the first was slow.
 */
async function durationOf(run: () => unknown, enough: number): Promise<number> {
  let best = Infinity;
  for (let round = 0; round < 3 && best > enough; round++) {
    const start = process.cpuUsage();
    try {
      await run();
    } catch {
      // To refuse what cannot be read is as good as to read it.
    }
    const { user, system } = process.cpuUsage(start);
    best = Math.min(best, (user + system) / 1000);
  }
  return best;
}

/** How long it takes to read the same length of harmless text: words, and letters that have to be encoded. */
const harmless = (async () => {
  let most = 0;
  for (const [read, beginning] of Object.values(FIELDS)) {
    for (const letter of ["a", "\xe9"]) {
      most = Math.max(most, await durationOf(() => read(beginning + letter.repeat(LENGTH)), 0));
    }
  }
  return most;
})();

for (const [name, [read, ...beginnings]] of Object.entries(FIELDS)) {
  test(`64 KiB of hostile text as ${name} are read in the time of harmless text`, async () => {
    const enough = 10 * await harmless; // what is quadratic takes hundreds of times as long
    for (const beginning of ["", ...beginnings]) {
      for (const repeated of REPEATED) {
        const value = `${beginning}${repeated.repeat(LENGTH / repeated.length)}!`;
        const took = await durationOf(() => read(value), enough);
        assert(took < enough, `${JSON.stringify(repeated)} after ${JSON.stringify(beginning)} took ${took} ms`);
      }
    }
  });
}
