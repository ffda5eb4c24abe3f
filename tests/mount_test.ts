/**
 * `mount`: applications by path and host.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type ApplicationLike,
  applicationUri,
  type Environ,
  fromFetch,
  mount,
  requestUri,
  type ResponseBody,
  runApplication,
  type StartResponse,
  testEnviron,
  validator,
} from "../mod.ts";
import { lacking, telling, valuesOf, type Variables } from "./middleware_support.ts";
import { answer, bytes, exchange, native, ok, request, start, text } from "./support.ts";

/** Applications that say under which key they are mounted, and what they see. */
function signposts(...keys: string[]): Record<string, ApplicationLike> {
  return Object.fromEntries(
    keys.map((key) => [
      key,
      validator(telling(({ SCRIPT_NAME, PATH_INFO }) => [key, SCRIPT_NAME, PATH_INFO].join(" | "))),
    ]),
  );
}

/** Where a request comes out. */
async function routed(keys: string[], variables: Variables): Promise<string> {
  const { status, body } = await runApplication(validator(mount(signposts(...keys))), testEnviron(variables));
  return status === "200 OK" ? text(body) : status;
}

const NOT_FOUND = "404 Not Found";

for (
  const { keys, path, to } of [
    { keys: ["/app"], path: "/app", to: "/app | /app | " },
    { keys: ["/app"], path: "/app/", to: "/app | /app | /" },
    { keys: ["/app"], path: "/app/x", to: "/app | /app | /x" },
    { keys: ["/app"], path: "/app//x", to: "/app | /app | //x" },
    { keys: ["/app"], path: "/application", to: NOT_FOUND },
    { keys: ["/app"], path: "/app.", to: NOT_FOUND },
    { keys: ["/app"], path: "/App", to: NOT_FOUND },
    { keys: ["/app"], path: "//app", to: NOT_FOUND },
    { keys: ["/app"], path: "/ap", to: NOT_FOUND },
    { keys: ["/app"], path: "/", to: NOT_FOUND },
    { keys: ["/app"], path: "/x/app", to: NOT_FOUND },
    { keys: ["/a", "/a/b"], path: "/a/b/c", to: "/a/b | /a/b | /c" },
    { keys: ["/a/b", "/a"], path: "/a/b/c", to: "/a/b | /a/b | /c" },
    { keys: ["/a", "/a/b"], path: "/a/bc", to: "/a | /a | /bc" },
    { keys: ["/", "/a"], path: "/a/x", to: "/a | /a | /x" },
    { keys: ["/", "/a"], path: "/ab", to: "/ |  | /ab" },
    { keys: ["/"], path: "/", to: "/ |  | /" },
    { keys: ["/"], path: "/any/thing", to: "/ |  | /any/thing" },
    { keys: ["/"], path: "//any", to: "/ |  | //any" },
    { keys: ["/a.b"], path: "/aXb", to: NOT_FOUND },
    { keys: ["/(a+)+$"], path: "/aaaa", to: NOT_FOUND },
    { keys: ["/constructor"], path: "/constructor/x", to: "/constructor | /constructor | /x" },
    { keys: ["/__proto__"], path: "/__proto__/x", to: "/__proto__ | /__proto__ | /x" },
    { keys: ["/a"], path: "/constructor", to: NOT_FOUND },
    { keys: ["/a"], path: "/__proto__", to: NOT_FOUND },
    { keys: ["/a"], path: "/toString", to: NOT_FOUND },
    { keys: ["/1", "/0"], path: "/0/x", to: "/0 | /0 | /x" },
    { keys: ["/public", "/admin"], path: "/public/../admin", to: "/public | /public | /../admin" },
    { keys: ["/public", "/admin"], path: "/./admin", to: NOT_FOUND },
    { keys: ["/public", "/admin"], path: "/public\\..\\admin", to: NOT_FOUND },
    { keys: ["/public", "/admin"], path: "/admin\0", to: NOT_FOUND },
    { keys: ["/a b"], path: "/a b/c", to: "/a b | /a b | /c" },
  ]
) {
  test(`mount of ${keys.join(" and ")} sends ${JSON.stringify(path)} to ${to}`, async () => {
    assert.equal(await routed(keys, { PATH_INFO: path }), to);
  });
}

for (
  const { keys, host, path, to } of [
    { keys: ["example.com/api"], host: "example.com", path: "/api/x", to: "example.com/api | /api | /x" },
    { keys: ["example.com/api"], host: "example.com:8080", path: "/api", to: "example.com/api | /api | " },
    { keys: ["example.com/api"], host: "EXAMPLE.com", path: "/api", to: "example.com/api | /api | " },
    { keys: ["Example.COM/api"], host: "example.com", path: "/api", to: "Example.COM/api | /api | " },
    { keys: ["example.com/api"], host: "example.com", path: "/API", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "example.com", path: "/apis", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "www.example.com", path: "/api", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "notexample.com", path: "/api", to: NOT_FOUND },
    { keys: ["example.com/api"], host: "example.com.evil.org", path: "/api", to: NOT_FOUND },
    { keys: ["example.com/"], host: "example.com", path: "/x", to: "example.com/ |  | /x" },
    { keys: ["example.com"], host: "example.com", path: "/x", to: "example.com |  | /x" },
    { keys: ["example.com:8080/"], host: "example.com:8080", path: "/x", to: "example.com:8080/ |  | /x" },
    { keys: ["example.com:8080/"], host: "example.com:8081", path: "/x", to: NOT_FOUND },
    { keys: ["example.com:8080/"], host: "example.com", path: "/x", to: NOT_FOUND },
    { keys: ["/api", "example.com/"], host: "example.com", path: "/api", to: "example.com/ |  | /api" },
    {
      keys: ["/api/long", "example.com/api"],
      host: "example.com",
      path: "/api/long",
      to: "example.com/api | /api | /long",
    },
    { keys: ["/api", "example.com/"], host: "example.org", path: "/api", to: "/api | /api | " },
    { keys: ["/api", "example.com/x"], host: "example.com", path: "/api", to: "/api | /api | " },
    {
      keys: ["example.com/", "example.com:8080/"],
      host: "example.com:8080",
      path: "/",
      to: "example.com:8080/ |  | /",
    },
    {
      keys: ["example.com:8080/", "example.com/"],
      host: "example.com:8080",
      path: "/",
      to: "example.com:8080/ |  | /",
    },
    { keys: ["[::1]/api"], host: "[::1]", path: "/api/x", to: "[::1]/api | /api | /x" },
    { keys: ["[::1]/api"], host: "[::1]:8000", path: "/api/x", to: "[::1]/api | /api | /x" },
    { keys: ["[2001:DB8::1]:8000/"], host: "[2001:db8::1]:8000", path: "/", to: "[2001:DB8::1]:8000/ |  | /" },
    { keys: ["[::1]:8000/"], host: "[::1]", path: "/", to: NOT_FOUND },
    { keys: ["example.com/"], host: "example.com.", path: "/", to: "example.com/ |  | /" },
    { keys: ["example.com./"], host: "example.com", path: "/", to: "example.com./ |  | /" },
    { keys: ["example.com/"], host: "example.com..", path: "/", to: NOT_FOUND },
    { keys: ["example.com:80/"], host: "example.com", path: "/", to: "example.com:80/ |  | /" },
    { keys: ["example.com:0080/"], host: "example.com:80", path: "/", to: "example.com:0080/ |  | /" },
    { keys: ["example.com:443/"], host: "example.com", path: "/", to: NOT_FOUND },
    { keys: ["[2001:db8::1]/"], host: "[2001:DB8:0:0::1]", path: "/", to: "[2001:db8::1]/ |  | /" },
    {
      keys: ["[0:0:0:0:0:0:0:1]/", "[::1]:8000/"],
      host: "[::1]:8000",
      path: "/",
      to: "[::1]:8000/ |  | /",
    },
    { keys: ["localhost/"], host: "localhost:8000", path: "/", to: "localhost/ |  | /" },
    { keys: ["constructor:80/"], host: "example.com", path: "/", to: NOT_FOUND },
    { keys: ["__proto__:80/"], host: "__proto__", path: "/", to: "__proto__:80/ |  | /" },
  ]
) {
  test(`mount of ${keys.join(" and ")} sends ${path} on ${host} to ${to}`, async () => {
    assert.equal(await routed(keys, { HTTP_HOST: host, PATH_INFO: path }), to);
  });
}

test("mount knows the default port of https", async () => {
  const variables = { "wsgi.url_scheme": "https", HTTPS: "on", HTTP_HOST: "example.com" };
  assert.equal(await routed(["example.com:443/", "example.com:80/"], variables), "example.com:443/ |  | /");
});

test("mount goes by SERVER_NAME where the request names no host", async () => {
  const environ = lacking({ SERVER_NAME: "example.com" }, "HTTP_HOST");
  const { body } = await runApplication(validator(mount(signposts("example.com/"))), environ);
  assert.equal(text(body), "example.com/ |  | /");
});

test("mount takes SCRIPT_NAME and PATH_INFO for empty where they are absent: PEP 3333, environ Variables", async () => {
  const app = validator(mount(signposts("/app", "/")));
  const bodies = [lacking({ PATH_INFO: "/app/x" }, "SCRIPT_NAME"), lacking({ SCRIPT_NAME: "/site" }, "PATH_INFO")].map(
    async (environ) => text((await runApplication(app, environ)).body),
  );
  assert.deepEqual(await Promise.all(bodies), ["/app | /app | /x", "/ | /site | "]);
});

test("mount compares keys in other scripts with the bytes of the path", async () => {
  const url = "http://test.example/caf%C3%A9/%E6%97%A5%E6%9C%AC%20%E8%AA%9E/x";
  const { response } = await answer(validator(mount(signposts("/café/日本 語"))), new Request(url));
  assert.equal(await response.text(), `/café/日本 語 | ${native("/café/日本 語")} | /x`);
});

test("mount does not take a part of a character for the end of a segment", async () => {
  assert.equal(await routed(["/caf\u00c3"], { PATH_INFO: native("/café") }), NOT_FOUND);
});

test("mount matches an empty rest of the path at its root", async () => {
  assert.equal(await routed(["/"], { SCRIPT_NAME: "/site", PATH_INFO: "" }), "/ | /site | ");
});

test("mount does not send an empty path to a key with a path", async () => {
  assert.equal(await routed(["/app"], { SCRIPT_NAME: "/site", PATH_INFO: "" }), NOT_FOUND);
});

test("mount answers 404 in plain text where nothing is mounted", async () => {
  const { headers, body } = await runApplication(validator(mount({})), testEnviron());
  assert.deepEqual(valuesOf(headers, "Content-Type"), ["text/plain; charset=utf-8"]);
  assert.equal(text(body), "Not Found\n");
});

test("mount leaves the path to the fallback as it was", async () => {
  const fallback = validator(telling(({ SCRIPT_NAME, PATH_INFO }) => `fallback | ${SCRIPT_NAME} | ${PATH_INFO}`));
  const environ = testEnviron({ SCRIPT_NAME: "/site", PATH_INFO: "/other/x" });
  const { body } = await runApplication(validator(mount(signposts("/app"), fallback)), environ);
  assert.equal(text(body), "fallback | /site | /other/x");
});

test("mounts in mounts add to SCRIPT_NAME", async () => {
  const app = validator(mount({ "/a": validator(mount({ "/b": validator(mount(signposts("/c"))) })) }));
  const { body } = await runApplication(app, testEnviron({ PATH_INFO: "/a/b/c/d" }));
  assert.equal(text(body), "/c | /a/b/c | /d");
});

test("mount goes on where scriptName ends", async () => {
  const request = new Request("http://test.example/site/app/x");
  const { response } = await answer(validator(mount(signposts("/app"))), request, { scriptName: "/site" });
  assert.equal(await response.text(), "/app | /site/app | /x");
});

test("mount leaves the address of the request whole, and the target as it was", async () => {
  const app = validator(mount({
    "/a b": validator(telling((environ) => `${requestUri(environ)} ${applicationUri(environ)} ${environ.REQUEST_URI}`)),
  }));
  const { response } = await answer(app, new Request("http://test.example/a%20b/c%20d?e=f"));
  assert.equal(
    await response.text(),
    "http://test.example/a%20b/c%20d?e=f http://test.example/a%20b /a%20b/c%20d?e=f",
  );
});

test("mount takes a Fetch handler, which routes by its own paths", async () => {
  const init = { headers: { "Content-Type": "text/plain" } };
  const handler = fromFetch(({ method, url }) => new Response(`${method} ${new URL(url).pathname}`, init));
  const app = validator(mount({ "/api": validator(handler) }));
  const { response } = await answer(app, new Request("http://test.example/api/users/7?x=1"));
  assert.equal(await response.text(), "GET /users/7");
});

test("mount takes objects and classes", async () => {
  class Page {
    readonly #startResponse: StartResponse;
    readonly #path: string;

    constructor(environ: Environ, startResponse: StartResponse) {
      this.#startResponse = startResponse;
      this.#path = environ.PATH_INFO;
    }

    *[Symbol.iterator](): Generator<Uint8Array> {
      ok(this.#startResponse);
      yield bytes(`class ${this.#path}`);
    }
  }
  const object = {
    name: "object",
    handle(environ: Environ, startResponse: StartResponse): ResponseBody {
      ok(startResponse);
      return [bytes(`${this.name} ${environ.PATH_INFO}`)];
    },
  };
  const app = validator(mount({ "/class": Page, "/object": object }, Page));
  const paths = ["/class/x", "/object/x", "/x"];
  const results = await Promise.all(paths.map((path) => runApplication(app, testEnviron({ PATH_INFO: path }))));
  assert.deepEqual(results.map(({ body }) => text(body)), ["class /x", "object /x", "class /x"]);
});

for (
  const key of [
    "",
    "api",
    "api/",
    "api/v1",
    "/api/",
    "//",
    "//api",
    "/api//users",
    "/a?b",
    "/a#b",
    "example.com/api/",
    "example.com//",
    "?",
    ".example.com/",
    "a..example.com/",
    "[::::]/",
  ]
) {
  test(`mount refuses the key ${JSON.stringify(key)} and quotes it`, () => {
    assert.throws(
      () => mount({ "/fine": () => [], [key]: () => [] }),
      (error) => error instanceof TypeError && error.message.includes(JSON.stringify(key)),
    );
  });
}

for (
  const [key, prefix] of [
    ["/items/:id", "/items"],
    ["/items/:id/edit", "/items"],
    ["/items/<int:id>", "/items"],
    ["/items/{id}", "/items"],
    ["/items/*", "/items"],
    ["/items/", "/items"],
    ["/:id", "/"],
    ["/items//", "/items"],
    ["//", "/"],
    ["example.com/*", "example.com/"],
    ["localhost/:id", "localhost/"],
    ["[::1]/items/", "[::1]/items"],
  ] as const
) {
  test(`mount refuses the pattern ${key}, and names the prefix`, () => {
    const message = `Cannot mount at "${key}": expected a prefix, with no pattern and no slash at its end: "${prefix}"`;
    assert.throws(() => mount({ [key]: () => [] }), { name: "TypeError", message });
  });
}

for (const key of ["items", "items/", "items/:id", "items/users/", "https://example.com/items/", "*.example.com/"]) {
  test(`mount refuses the key ${key}, and proposes none that is like it`, () => {
    const message = `Cannot mount at "${key}": expected a path such as "/api", or "example.com/api"`;
    assert.throws(() => mount({ [key]: () => [] }), { name: "TypeError", message });
  });
}

test("mount finds a prefix that begins as a pattern would, by a key that encodes it", async () => {
  const { body } = await runApplication(mount(signposts("/%3Aid")), testEnviron({ PATH_INFO: "/:id/7" }));
  assert.match(text(body), /^\/%3Aid /);
});

test("mount uses its keys as they were when it was called", async () => {
  const apps = signposts("/a");
  const app = validator(mount(apps));
  Object.assign(apps, signposts("/b"));
  assert.equal((await runApplication(app, testEnviron({ PATH_INFO: "/b" }))).status, NOT_FOUND);
});

for (
  const target of ["/public/../admin/x", "/public/%2e%2e/admin/x", "/public/..%2fadmin/x", "/public%2f..%2fadmin/x"]
) {
  test(`mount agrees with the path that the application sees on ${target}`, async () => {
    await using server = start(validator(mount(signposts("/public", "/admin"))));
    const { status, body } = await exchange(server, request(target));
    assert.equal(status, 200);
    // Whether dot segments are taken away is the runtime's affair; who answers must be whom SCRIPT_NAME names.
    assert.match(body, /^(\/\w+) \| \1 \| \//);
    if (!body.startsWith("/admin")) assert.match(body, /\.\.\/admin\/x$/);
  });
}
