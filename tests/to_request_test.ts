/**
 * `toRequest`: the request of an environ.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Application,
  type Environ,
  errorPage,
  type FetchHandler,
  fromFetch,
  type InputStream,
  limitBody,
  timeout,
  toEnviron,
  toFetch,
  toRequest,
} from "../mod.ts";
import {
  answer,
  bytes,
  Client,
  environFor,
  environWith,
  Event,
  exchange,
  ORIGIN,
  parse,
  PLAIN,
  post,
  readChunk,
  request,
  runProgram,
  RUNTIME,
  start,
  streamingInit,
  text,
} from "./support.ts";

test("toRequest keeps the method", () => {
  for (const method of ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"]) {
    const { method: kept } = toRequest(environWith({ REQUEST_METHOD: method }));
    assert.equal(kept, method);
  }
});

test("toRequest throws a TypeError for a method that Fetch does not allow", () => {
  for (const method of ["TRACE", "CONNECT", "TRACK"]) {
    assert.throws(() => toRequest(environWith({ REQUEST_METHOD: method })), TypeError, method);
  }
});

test("a TRACE request to a mounted handler is answered with 501, and not a crash", async () => {
  await using server = start(fromFetch(() => new Response("never", { headers: PLAIN })));
  assert.equal((await exchange(server, request("/", { method: "TRACE" }))).status, 501);
  assert.equal((await exchange(server, request("/"))).body, "never");
});

const URLS: { name: string; variables: Record<string, string>; url: string }[] = [
  { name: "the root", variables: {}, url: `${ORIGIN}/` },
  { name: "an empty path", variables: { PATH_INFO: "" }, url: `${ORIGIN}/` },
  { name: "a path that does not begin with a slash", variables: { PATH_INFO: ".other" }, url: `${ORIGIN}/.other` },
  { name: "a query", variables: { PATH_INFO: "/a", QUERY_STRING: "b=%20?c&d" }, url: `${ORIGIN}/a?b=%20?c&d` },
  { name: "no query", variables: { PATH_INFO: "/a", QUERY_STRING: "" }, url: `${ORIGIN}/a` },
  { name: "a prefix", variables: { SCRIPT_NAME: "/app", PATH_INFO: "/a" }, url: `${ORIGIN}/a` },
  { name: "bytes of UTF-8", variables: { PATH_INFO: "/caf\xc3\xa9" }, url: `${ORIGIN}/caf%C3%A9` },
  { name: "delimiters", variables: { PATH_INFO: "/?#%[]\\ " }, url: `${ORIGIN}/%3F%23%25%5B%5D%5C%20` },
  {
    name: "what may stand in a path",
    variables: { PATH_INFO: "/:@!$&'()*+,;=~-._" },
    url: `${ORIGIN}/:@!$&'()*+,;=~-._`,
  },
  { name: "two slashes", variables: { PATH_INFO: "//other.example/a" }, url: `${ORIGIN}//other.example/a` },
  { name: "https", variables: { "wsgi.url_scheme": "https" }, url: "https://test.example/" },
  { name: "another host", variables: { HTTP_HOST: "other.example:81" }, url: "http://other.example:81/" },
  { name: "an address", variables: { HTTP_HOST: "[::1]:81" }, url: "http://[::1]:81/" },
];

for (const { name, variables, url } of URLS) {
  test(`toRequest makes the URL: ${name}`, () => {
    const { url: made } = toRequest(environWith(variables));
    assert.equal(made, url);
  });
}

test("toRequest goes by the server's own name when there is no Host", () => {
  const environ = environWith({ SERVER_NAME: "server.example", SERVER_PORT: "8000" });
  delete (environ as Partial<Environ>).HTTP_HOST;
  assert.equal(toRequest(environ).url, "http://server.example:8000/");
  assert.equal(toRequest({ ...environ, SERVER_PORT: "80" }).url, "http://server.example/");
});

test("a path of any bytes comes back byte for byte through toRequest and toEnviron", () => {
  const { PATH_INFO } = environFor("/caf%C3%A9%2F%3F%23 x");
  assert.equal(PATH_INFO, "/caf\xc3\xa9/?# x");
  assert.equal(toEnviron(toRequest(environFor("/caf%C3%A9%2F%3F%23 x"))).PATH_INFO, PATH_INFO);
  const everything = `/${Array.from({ length: 256 }, (_, code) => String.fromCharCode(code)).join("")}`;
  assert.equal(toEnviron(toRequest(environWith({ PATH_INFO: everything }))).PATH_INFO, everything);
});

test("toRequest keeps the headers, and no other variables", () => {
  const init = {
    method: "POST",
    body: "1234",
    headers: {
      "Accept": "*/*",
      "Content-Length": "4",
      "Content-Type": "text/x",
      "Cookie": "a=1; b=2",
      "Host": "test.example",
      "X-Two-Words": "caf\xe9",
    },
  };
  const environ = toEnviron(new Request(`${ORIGIN}/`, init), { environ: { "EXAMPLE_SECRET": "secret", HTTPS: "on" } });
  environ.REMOTE_ADDR = "192.0.2.1";
  assert.deepEqual(
    [...toRequest(environ).headers].sort(),
    Object.entries(init.headers).map(([name, value]) => [name.toLowerCase(), value]),
  );
});

test("a Host that no URL can have is the client's fault, whatever serves the request", async () => {
  await using server = start(fromFetch(() => new Response("served", { headers: PLAIN })));
  for (const host of ["h:99999", ":80", "[:::]", "[1.2.3.4]", "256.256.256.256", "web.1", "xn--a", "%e9"]) {
    const client = await Client.connect(server);
    await client.send(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
    assert.deepEqual([host, parse(await client.end()).status], [host, 400]);
  }
  assert.equal(server.errors.text, "");
});

test("toRequest keeps a Host beside the URL's own spelling of it", () => {
  const spellings = { "a+b!c": "a+b!c", "caf%C3%A9.example": "xn--caf-dma.example", "H.Example:80": "h.example" };
  for (const [host, spelling] of Object.entries(spellings)) {
    const made = toRequest(environWith({ HTTP_HOST: host }));
    assert.deepEqual([made.url, made.headers.get("Host")], [`http://${spelling}/`, host]);
    // As with Deno's own requests, whose URL has the target's host where that is another.
    const info = { remoteAddr: { transport: "tcp", hostname: "192.0.2.1", port: 5000 } };
    assert.equal(toEnviron(made, { info }).HTTP_HOST, host);
  }
});

test("toRequest throws a TypeError with the status 400 for a host that no URL can have", () => {
  for (const host of ["web.1", "xn--a", "1.2.3.4.5", "a.08", "h:65536", "test%2Eexample", "%74est.example"]) {
    assert.throws(() => toRequest(environWith({ HTTP_HOST: host })), { name: "TypeError", status: 400 }, host);
  }
});

test("toRequest gives host and cookie of a request that came over a socket", async () => {
  await using server = start(
    fromFetch(({ headers }) => new Response(`${headers.get("Host")} ${headers.get("Cookie")}`, { headers: PLAIN })),
  );
  const { body } = await exchange(server, request("/", { headers: ["Cookie: a=1", "Cookie: b=2"] }));
  assert.equal(body, "test.example a=1; b=2");
});

test("toRequest reads JSON", async () => {
  assert.deepEqual(await toRequest(environFor("/", { method: "POST", body: '{"a":[1]}' })).json(), { a: [1] });
});

test("toRequest reads a form with a file", async () => {
  const form = new FormData();
  form.append("name", "caf\xe9");
  form.append("file", new File([new Uint8Array([0, 255, 13, 10])], "name.bin", { type: "application/x-bin" }));
  const received = await toRequest(environFor("/", { method: "POST", body: form })).formData();
  assert.equal(received.get("name"), "caf\xe9");
  const file = received.get("file") as File;
  assert.equal(file.name, "name.bin");
  assert.deepEqual(new Uint8Array(await file.arrayBuffer()), new Uint8Array([0, 255, 13, 10]));
});

test("toRequest reads an encoded form that came over a socket", async () => {
  await using server = start(fromFetch(async (request) => {
    const form = await request.formData();
    return Response.json([...form]);
  }));
  const type = "Content-Type: application/x-www-form-urlencoded";
  const sent = request("/", { method: "POST", headers: [type, "Content-Length: 9"], body: "a=1&b=%20" });
  assert.equal((await exchange(server, sent)).body, '[["a","1"],["b"," "]]');
});

const MULTIPART = "multipart/form-data; boundary=x";
const PART = '--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb';

const WRONG_BODIES: [name: string, method: "json" | "formData", body: string, type?: string][] = [
  ["text that is cut off", "json", "["],
  ["nothing", "json", ""],
  ["a form without a type", "formData", "a=1"],
  ["a form of another type", "formData", "a=1", "text/plain"],
  ["a form without a boundary", "formData", `${PART}\r\n--x--\r\n`, "multipart/form-data"],
  ["a form of other parts", "formData", "a=1", MULTIPART],
  ["nothing", "formData", "", MULTIPART],
];

for (const [name, method, body, type = ""] of WRONG_BODIES) {
  test(`${method} of toRequest fails with the status 400 for ${name}`, async () => {
    const made = toRequest(environFor("/", { method: "POST", body: bytes(body), headers: { "Content-Type": type } }));
    const [name, expected] = method === "json" ? ["SyntaxError", "JSON"] : ["TypeError", "a form"];
    const message = `Cannot parse the request body: expected ${expected}`;
    await assert.rejects(made[method](), { name, message, status: 400, expose: true });
  });
}

test("json and formData of toRequest fail with the status 400 for a request without a body", async () => {
  await assert.rejects(toRequest(environFor()).json(), { status: 400 });
  await assert.rejects(toRequest(environFor()).formData(), { status: 400 });
});

test("a form in parts that has no end is refused by Bun, and loses its last part on Deno", async () => {
  const reading = toRequest(environFor("/", { method: "POST", body: PART, headers: { "Content-Type": MULTIPART } }));
  if (RUNTIME === "bun") await assert.rejects(reading.formData(), { status: 400 });
  else assert.deepEqual([...await reading.formData()], []);
});

/** A body of 4 bytes after which the client leaves. */
function leavingBody(): ReadableStream<Uint8Array> {
  const chunks = [bytes("four")];
  return new ReadableStream<Uint8Array>({
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk) controller.enqueue(chunk);
      else controller.error(new TypeError("The connection was closed"));
    },
  });
}

const LIMITS: [name: string, status: number, wrap: (app: Application) => FetchHandler, body: () => BodyInit][] = [
  ["above maxBodySize", 413, (app) => toFetch(app, { maxBodySize: 3 }), () => "four"],
  ["above the limit of limitBody", 413, (app) => toFetch(limitBody(app, { maxBodySize: 3 })), () => "four"],
  ["of a client that has left", 400, toFetch, leavingBody],
];
const READERS = ["json", "formData", "text", "blob", "bytes", "arrayBuffer", "body"] as const;

for (const [name, status, wrap, body] of LIMITS) {
  for (const reader of READERS) {
    test(`${reader} of toRequest fails with the status ${status} for a body ${name}`, async () => {
      let caught: unknown;
      const handler = wrap(async (environ, startResponse) => {
        const made = toRequest(environ);
        const reading = reader === "body" ? made.body!.pipeTo(new WritableStream()) : made[reader]();
        await reading.catch((error) => caught = error);
        startResponse("204 No Content", []);
        return [];
      });
      const init = { method: "POST", body: body(), duplex: "half", headers: { "Content-Type": MULTIPART } };
      await handler(new Request(ORIGIN, init as RequestInit));
      assert.equal((caught as { status?: number } | undefined)?.status, status);
    });
  }
}

for (const method of ["json", "formData", "text"] as const) {
  test(`${method} of a request whose body was read before is the mistake of the program, without a status`, async () => {
    const made = toRequest(environFor("/", { method: "POST", body: new URLSearchParams("a=1") }));
    await made.text();
    await assert.rejects(made[method](), (error) => error instanceof TypeError && !("status" in error));
  });
}

test("JSON that is none is answered with 400 where nobody handles the error, and not reported", async () => {
  const apps: Application[] = [
    async (environ) => await toRequest(environ).json(),
    fromFetch(async (request) => Response.json(await request.json())),
  ];
  for (const app of apps) {
    const { response, errors } = await answer(app, post("["));
    assert.equal(response.status, 400);
    assert.equal(errors.text, "");
  }
});

test("an error page says that JSON was expected, on both runtimes in the same words", async () => {
  const { response } = await answer(errorPage(async (environ) => await toRequest(environ).json()), post("["));
  assert.equal(await response.text(), "400 Bad Request\nCannot parse the request body: expected JSON\n");
});

test("toRequest gives the body chunk by chunk", async () => {
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const body = new ReadableStream<Uint8Array>({ start: (given) => void (controller = given) });
  const reader = toRequest(environFor("/", streamingInit(body))).body!.getReader();
  for (const chunk of ["one", "two"]) {
    controller.enqueue(bytes(chunk));
    assert.equal(await readChunk(reader), chunk);
  }
  controller.close();
  assert.equal(await readChunk(reader), undefined);
});

test("toRequest gives what is left of a body that was begun to be read", async () => {
  const environ = environFor("/", { method: "POST", body: "head\nrest" });
  assert.equal(text(await environ["wsgi.input"].readline()), "head\n");
  assert.equal(await toRequest(environ).text(), "rest");
});

test("toRequest reads nothing before it is asked to", async () => {
  const environ = environFor("/", { method: "POST", body: "whole" });
  toRequest(environ);
  assert.equal(text(await environ["wsgi.input"].read()), "whole");
});

test("toRequest gives GET and HEAD no body, and no header that announces one", () => {
  for (const REQUEST_METHOD of ["GET", "HEAD", "get"]) {
    const framing = { CONTENT_LENGTH: "4", HTTP_TRANSFER_ENCODING: "chunked", CONTENT_TYPE: "text/plain" };
    const { body, headers } = toRequest(environWith({ REQUEST_METHOD, ...framing }));
    assert.equal(body, null);
    assert.equal(headers.get("Content-Length"), null);
    assert.equal(headers.get("Transfer-Encoding"), null);
    assert.equal(headers.get("Content-Type"), "text/plain");
  }
});

test("toRequest reads a wsgi.input that a middleware has put there", async () => {
  const blocks = [bytes("re"), bytes("placed")];
  const environ = environFor("/", { method: "POST", body: "original" });
  environ["wsgi.input"] = {
    read: () => Promise.resolve(blocks.shift() ?? new Uint8Array(0)),
  } as unknown as InputStream;
  assert.equal(await toRequest(environ).text(), "replaced");
});

test("toRequest reads what is at hand where the input has read1", async () => {
  const environ = environFor("/", { method: "POST", body: "a body" });
  const input = environ["wsgi.input"];
  environ["wsgi.input"] = { read1: (size?: number) => input.read1(size) } as unknown as InputStream;
  assert.equal(await toRequest(environ).text(), "a body");
});

test("a wsgi.input of a middleware that fails makes the body of the request fail", async () => {
  const environ = environFor("/", { method: "POST" });
  const failure = new Error("This input fails");
  environ["wsgi.input"] = { read: () => Promise.reject(failure) } as unknown as InputStream;
  await assert.rejects(toRequest(environ).text(), failure);
});

test("toRequest makes a header of each HTTP_ variable that is there", () => {
  const environ = environFor("/", { headers: { "X-Removed": "1", "X-Changed": "1" } });
  environ.HTTP_X_ADDED = "2";
  environ.HTTP_X_CHANGED = "2";
  delete environ.HTTP_X_REMOVED;
  const { headers } = toRequest(environ);
  assert.equal(headers.get("X-Added"), "2");
  assert.equal(headers.get("X-Changed"), "2");
  assert.equal(headers.get("X-Removed"), null);
});

test("toRequest has the signal of fetch.context", async () => {
  const leaving = new AbortController();
  const inside = new Event("the application being called");
  const aborted = new Event<boolean>("the signal");
  const handler = toFetch((environ) => {
    const { signal } = toRequest(environ);
    assert.equal(signal, environ["fetch.context"]!.signal);
    assert.equal(signal.aborted, false);
    signal.addEventListener("abort", () => aborted.happen(signal.aborted));
    inside.happen();
    return new Promise(() => {});
  });
  handler(new Request(ORIGIN, { signal: leaving.signal }));
  await inside.wait();
  leaving.abort();
  assert.equal(await aborted.wait(), true);
});

test("toRequest works on an environ without fetch.context, and what PEP 3333 lets a server leave out", () => {
  const environ = environFor();
  for (const name of ["fetch.context", "PATH_INFO", "SCRIPT_NAME", "QUERY_STRING"]) delete environ[name];
  const made = toRequest(environ);
  assert.equal(made.signal.aborted, false);
  assert.equal(made.url, `${ORIGIN}/`);
});

test("a mounted handler that does not read its signal prints nothing, and leaves the runtime's alone", async () => {
  const { code, stdout, stderr } = await runProgram(`
    import { fromFetch, serve } from MOD;
    const app = fromFetch(async (request) => {
      const body = await request.text();
      return new Response(request.url.length > 0 && request.headers.has("Host") ? body : "wrong");
    });
    const server = serve(app, { port: 0, onListen() {} });
    const response = await fetch("http://127.0.0.1:" + server.port, { method: "POST", body: "body" });
    console.log(await response.text());
    await server.shutdown();
  `);
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: "body\n", stderr: "" });
});

test("a read that is awaited is no forgotten one where timeout has given up", async () => {
  const failed = new Event("the failure of the read");
  await using server = start(timeout(async (environ) => {
    await toRequest(environ).json().finally(() => failed.happen());
    return [];
  }, { milliseconds: 15 }));
  const client = await Client.connect(server);
  await client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n[");
  await failed.wait();
  assert.doesNotMatch(server.errors.text, /Reading the body failed/);
});

test("a read that nobody awaits does not end the process, whatever an input rejects with", async () => {
  const { code, stderr } = await runProgram(`
    import { testEnviron, toRequest } from MOD;
    for (const reason of [undefined, null, "a text"]) {
      const input = { read: () => Promise.reject(reason) };
      toRequest(testEnviron({ REQUEST_METHOD: "POST", "wsgi.input": input })).json();
    }
    await new Promise((resolve) => setTimeout(resolve));
  `);
  assert.equal(code, 0, stderr);
});
