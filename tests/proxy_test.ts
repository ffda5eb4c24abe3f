/**
 * The proxy of the examples: before Flask and Django under gunicorn, and before servers that break what they promise.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { mount, pipeline, proxyFix, runApplication, type Server } from "../mod.ts";
import { proxy } from "../examples/proxy.ts";
import {
  addressOf,
  bytes,
  Child,
  Client,
  environFor,
  environWith,
  evaluate,
  Event,
  exchange,
  HELD,
  MIB,
  parse,
  request,
  RUNTIME,
  start,
  startPatient,
  text,
  unchecked,
  workspace,
} from "./support.ts";

const { FOLDER } = workspace();

// #region Servers behind the proxy that are sockets

/** A server that answers as it is told when a request has come, and keeps what it has received. */
class Other implements AsyncDisposable {
  /** What each connection has received, as Latin-1. */
  readonly received: string[] = [];
  readonly #server;
  readonly #sockets: Socket[] = [];
  #onChange = () => {};
  #closed = 0;

  private constructor(answer: (socket: Socket, received: string) => void) {
    this.#server = createServer((socket) => {
      const index = this.#sockets.push(socket) - 1;
      this.received[index] = "";
      socket.on("error", () => {});
      socket.on("data", (data) => {
        this.received[index] += Buffer.from(data).toString("latin1");
        answer(socket, this.received[index]!);
        this.#onChange();
      });
      socket.on("close", () => {
        this.#closed++;
        this.#onChange();
      });
    });
  }

  static async start(answer: (socket: Socket, received: string) => void): Promise<Other> {
    const other = new Other(answer);
    other.#server.listen(0, "127.0.0.1");
    await once(other.#server, "listening");
    return other;
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async #until(holds: () => boolean, what: string): Promise<void> {
    const event = new Event(what);
    this.#onChange = () => holds() && event.happen();
    this.#onChange();
    await event.wait();
  }

  /** Waits until what the last connection has received matches. */
  async until(pattern: RegExp): Promise<void> {
    await this.#until(() => pattern.test(this.received.at(-1) ?? ""), `${pattern} in the server behind`);
  }

  /** Waits until so many connections have ended. */
  async untilClosed(count = 1): Promise<void> {
    await this.#until(() => this.#closed >= count, "the end of a connection to the server behind");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Answers a request without a body at the end of its head. */
function answering(response: string, then: (socket: Socket) => void = () => {}): (socket: Socket, got: string) => void {
  return (socket, received) => {
    if (!received.endsWith("\r\n\r\n")) return;
    socket.write(Buffer.from(response, "latin1"));
    then(socket);
  };
}

const HELLO = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nHello";
const BEGINNING = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";

/** What the proxy sends to the other server for a request: the lines of the head, sorted, and the body. */
async function passed(raw: string): Promise<[head: string[], body: string]> {
  await using other = await Other.start((socket, received) => {
    if (/\r\n\r\n(?:hello|5\r\nhello\r\n0\r\n\r\n)?$/.test(received) && !/length: 5.*\r\n\r\n$/s.test(received)) {
      socket.end(HELLO);
    }
  });
  await using server = start(proxy(other.origin));
  const client = await Client.connect(server);
  await client.send(raw);
  assert.equal(parse((await client.end()).replace("HTTP/1.1 100 Continue\r\n\r\n", "")).body, "Hello");
  const [head = "", ...body] = other.received[0]!.split("\r\n\r\n");
  const [line = "", ...headers] = head.split("\r\n");
  return [
    [line, ...headers.map((header) => header.replace(/^[^:]*/, (name) => name.toLowerCase())).sort()],
    body.join("\r\n\r\n"),
  ];
}

/** What the other server gets of every request of `request()`. */
const ALWAYS = [
  "connection: close",
  "host: test.example",
  "x-forwarded-for: 127.0.0.1",
  "x-forwarded-host: test.example",
  "x-forwarded-proto: http",
];

test("proxy.ts passes headers on, but those of the connection and those that Connection names", async () => {
  const headers = [
    "Connection: X-Hop, keep-alive",
    "X-Hop: 1",
    "Keep-Alive: timeout=5",
    "Proxy-Authorization: Basic eDp5",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "Upgrade: websocket",
    "Cookie: a=1; b=2",
    "X-End: 1",
    "X-End: caf\xe9",
  ];
  const [head] = await passed(request("/", { headers }));
  assert.deepEqual(head, ["GET / HTTP/1.1", ...[...ALWAYS, "cookie: a=1; b=2", "x-end: 1, caf\xe9"].sort()]);
});

test("proxy.ts says itself who has asked for what, and passes on nothing that the client says of it", async () => {
  const headers = [
    "Forwarded: for=192.0.2.1",
    "X-Forwarded-For: 192.0.2.1",
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Prefix: /evil",
    "Connection: X-Forwarded-For, Host",
  ];
  assert.deepEqual((await passed(request("/", { headers })))[0], ["GET / HTTP/1.1", ...ALWAYS]);
});

test("proxy.ts says nothing of a client without an address, and nothing of a Host where there is none", async () => {
  await using other = await Other.start(answering(HELLO));
  const environ = environFor();
  delete environ.REMOTE_ADDR;
  delete environ.HTTP_HOST;
  assert.equal((await runApplication(proxy(other.origin), environ)).status, "200 OK");
  assert.doesNotMatch(other.received[0]!, /^x-forwarded-(?:for|host)/im);
  assert.match(other.received[0]!, /^host: 127\.0\.0\.1:\d+\r$/im);
});

/** How a body is framed for the other server. */
const BODIES: { what: string; method: string; headers: string[]; body: string; sent: string[]; framed: string }[] = [
  {
    what: "a body with Content-Length",
    method: "POST",
    headers: ["Content-Length: 5", "Content-Type: text/plain"],
    body: "hello",
    sent: ["content-length: 5", "content-type: text/plain"],
    framed: "hello",
  },
  {
    what: "a body that was asked for with Expect",
    method: "PUT",
    headers: ["Content-Length: 5", "Expect: 100-continue"],
    body: "hello",
    sent: ["content-length: 5"],
    framed: "hello",
  },
  {
    what: "a body in chunks",
    method: "POST",
    headers: ["Transfer-Encoding: chunked"],
    body: "5\r\nhello\r\n0\r\n\r\n",
    sent: ["transfer-encoding: chunked"],
    framed: "5\r\nhello\r\n0\r\n\r\n",
  },
  {
    what: "a body in chunks where the method seldom has one",
    method: "DELETE",
    headers: ["Transfer-Encoding: chunked"],
    body: "5\r\nhello\r\n0\r\n\r\n",
    sent: ["transfer-encoding: chunked"],
    framed: "5\r\nhello\r\n0\r\n\r\n",
  },
  {
    what: "a body whose Content-Length the client declares to be hop-by-hop",
    method: "POST",
    headers: ["Content-Length: 5", "Connection: Content-Length"],
    body: "hello",
    sent: ["transfer-encoding: chunked"],
    framed: "5\r\nhello\r\n0\r\n\r\n",
  },
  {
    what: "an empty body",
    method: "POST",
    headers: ["Content-Length: 0"],
    body: "",
    sent: ["content-length: 0"],
    framed: "",
  },
  { what: "no body", method: "GET", headers: [], body: "", sent: [], framed: "" },
  {
    what: "no body of a GET that declares one",
    method: "GET",
    headers: ["Content-Length: 5"],
    body: "hello",
    sent: [],
    framed: "",
  },
];

for (const { what, method, headers, body, sent, framed } of BODIES) {
  test(`proxy.ts passes on ${what}`, async () => {
    const [head, received] = await passed(request("/", { method, headers, body }));
    assert.deepEqual(head, [`${method} / HTTP/1.1`, ...[...ALWAYS, ...sent].sort()]);
    assert.equal(received, framed);
  });
}

for (
  const [target, sent = target] of [
    ["/old/a%2Fb/%C3%A9?x=%C3%A9&y=/"],
    ["/old//a;b=1,2/@:!$&'()*+"],
    ["/old?"],
    ["/old/%23a#b", "/old/%23a"],
  ] as const
) {
  test(`proxy.ts passes on the target ${target} with its escapes, and the prefix of its mount`, async () => {
    await using other = await Other.start(answering(HELLO));
    await using server = start(mount({ "/old": proxy(other.origin) }));
    assert.equal((await exchange(server, request(target))).body, "Hello");
    assert.equal(other.received[0]!.split(" ")[1], sent);
  });
}

test("proxy.ts refuses dot segments, which mount does not resolve, but the other server might", async () => {
  await using other = await Other.start(answering(HELLO));
  for (const PATH_INFO of ["/a/../b", "/.", "/a/.."]) {
    await assert.rejects(runApplication(proxy(other.origin), environWith({ PATH_INFO })), { status: 400 });
  }
  assert.deepEqual(other.received, []);
});

test("proxy.ts passes a response on, but the headers of its connection and those that Connection names", async () => {
  const head = [
    "HTTP/1.1 404 Not H\xe9re",
    "Connection: close, X-Hop",
    "x-hop: 1",
    "Keep-Alive: timeout=5",
    "Proxy-Authenticate: Basic",
    "Trailer: X-Sum",
    "Upgrade: h2c",
    "Set-Cookie: a=1; Path=/",
    "X-End: caf\xe9",
    "Set-Cookie: b=2",
    "Content-Length: 5",
    "X-End: 2",
  ];
  await using other = await Other.start(answering([...head, "", "Hello"].join("\r\n")));
  const { status, headers, body } = await runApplication(proxy(other.origin), environFor());
  assert.equal(status, "404 Not H\xe9re");
  assert.deepEqual(headers, [
    ["set-cookie", "a=1; Path=/"],
    ["set-cookie", "b=2"],
    ["x-end", "caf\xe9"],
    ["x-end", "2"],
    ["content-length", "5"],
  ]);
  assert.equal(text(body), "Hello");
});

test("proxy.ts gives a status its reason phrase where the other server has sent none", async () => {
  await using other = await Other.start(answering("HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n"));
  assert.equal((await runApplication(proxy(other.origin), environFor())).status, "404 Not Found");
});

// #endregion

// #region Failures

/** How the other server fails before its response has begun, and what is said of it. */
const FAILURES: { what: string; answer: (socket: Socket) => void; said: RegExp }[] = [
  { what: "that closes the connection", answer: (socket) => socket.end(), said: /socket hang up/ },
  { what: "that resets the connection", answer: (socket) => socket.resetAndDestroy(), said: /ECONNRESET/ },
  {
    what: "that ends within the head",
    answer: (socket) => socket.end("HTTP/1.1 200 OK\r\nX: "),
    said: /hang up|Parse/,
  },
  { what: "that speaks something else", answer: (socket) => socket.end("SSH-2.0-OpenSSH\r\n"), said: /Parse Error/ },
  {
    what: "whose status an application cannot send",
    answer: (socket) => socket.write(BEGINNING.replace("200 OK", "600 Odd")),
    said: /Cannot start the response: status "600 Odd"/,
  },
  {
    what: "that changes to another protocol",
    answer: (socket) => socket.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
    said: /Cannot start the response: status "101 Switching Protocols"/,
  },
];

/** Checks that the proxy has failed with a status, in one line to each side. */
async function assertFails(server: ReturnType<typeof start>, failure: string, said: RegExp): Promise<void> {
  const { status, body } = await exchange(server, request("/path?query"));
  assert.equal(status, Number(failure.slice(0, 3)));
  assert.equal(body, `${failure}: no valid answer has come from the server behind this one\n`);
  assert.match(server.errors.text, /^Cannot pass GET "\/path\?query" on to http:\/\/127\.0\.0\.1:\d+: .+\n$/);
  assert.match(server.errors.text, said);
}

for (const { what, answer, said } of FAILURES) {
  test(`proxy.ts answers with 502, and says why in one line, before a server ${what}`, async () => {
    await using other = await Other.start(answer);
    await using server = start(unchecked(proxy(other.origin))); // the validator would fail first
    await assertFails(server, "502 Bad Gateway", said);
    await other.untilClosed();
  });
}

test("proxy.ts answers with 502, and says why in one line, where there is no server", async () => {
  const other = await Other.start(() => {});
  const { origin } = other;
  await other[Symbol.asyncDispose]();
  await using server = start(proxy(origin));
  await assertFails(server, "502 Bad Gateway", /connect ECONNREFUSED 127\.0\.0\.1:\d+/);
});

test("proxy.ts answers with 502 where there is no server to take an upload", async () => {
  const other = await Other.start(() => {});
  const { origin } = other;
  await other[Symbol.asyncDispose]();
  await using server = start(proxy(origin));
  const headers = [`Content-Length: ${MIB}`];
  const { status } = await exchange(server, request("/", { method: "POST", headers, body: "x".repeat(MIB) }));
  assert.equal(status, 502);
});

test("proxy.ts answers with 504, and says why in one line, before a server that never answers", async () => {
  await using other = await Other.start(() => {});
  await using server = start(proxy(other.origin, 50));
  await assertFails(server, "504 Gateway Timeout", /it has not answered within 50 ms/);
  await other.untilClosed();
});

test("proxy.ts lets a response that has begun be silent for longer than its timeout", async () => {
  const sockets: Socket[] = [];
  await using other = await Other.start((socket, received) => {
    if (!received.startsWith("GET /never")) sockets.push(socket.write(BEGINNING) ? socket : socket);
  });
  await using server = start(proxy(other.origin, 50));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/one/);
  for (let times = 0; times < 3; times++) assert.equal((await exchange(server, request("/never"))).status, 504);
  sockets[0]!.end("3\r\ntwo\r\n0\r\n\r\n");
  assert.equal(parse(await client.end()).body, "onetwo");
});

for (
  const [what, response, end] of [
    ["a response that is cut off", BEGINNING, "destroy"],
    ["a response that is reset", BEGINNING, "resetAndDestroy"],
    ["a response without its last chunk", BEGINNING, "end"],
    ["a response that is shorter than it has said", HELLO.replace("5", "6"), "end"],
  ] as const
) {
  test(`proxy.ts does not let ${what} look complete`, async () => {
    let socket: Socket | undefined;
    await using other = await Other.start(answering(response, (own) => socket = own));
    await using server = start(proxy(other.origin));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await client.until(/one|Hello/);
    socket![end]();
    const { status, complete } = parse(await client.end());
    // On Bun a length is not sent with a stream; the connection is reset.
    assert.deepEqual([status, complete], [200, false]);
    await server.errors.matches(/aborted|ECONNRESET/);
  });
}

test("proxy.ts survives a server that answers HEAD with a body", async () => {
  await using other = await Other.start(answering(HELLO));
  await using server = start(proxy(other.origin));
  const { status, body } = await exchange(server, request("/", { method: "HEAD" }), { head: true });
  assert.deepEqual([status, body], [200, ""]);
  await other.untilClosed();
});

test("proxy.ts passes on an answer that comes before the upload has arrived", async () => {
  await using other = await Other.start((socket, received) => {
    if (received.endsWith("begin")) {
      socket.write("HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nbig");
    }
  });
  await using server = start(proxy(other.origin));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: [`Content-Length: ${HELD}`], body: "begin" }));
  await client.until(/^HTTP\/1\.1 413 [^]*\r\n\r\nbig/);
  client.leave();
});

test("proxy.ts leaves it to the server to refuse an upload that is too large", async () => {
  await using other = await Other.start(() => {});
  await using server = start(proxy(other.origin), { maxBodySize: 3 });
  const body = "5\r\nhello\r\n0\r\n\r\n";
  const { status } = await exchange(
    server,
    request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body }),
  );
  assert.equal(status, 413);
  assert.equal(server.errors.text, "");
});

// #endregion

// #region Clients that leave

for (
  const [what, sent, until] of [
    ["before the response", request("/wait"), /^GET \/wait /],
    ["in the middle of a response", request("/begin"), /^GET \/begin /],
    [
      "in the middle of an upload",
      request("/wait", { method: "POST", headers: ["Content-Length: 9"], body: "abc" }),
      /abc$/,
    ],
  ] as const
) {
  test(`proxy.ts ends the request behind, once and silently, when the client leaves ${what}`, async () => {
    await using other = await Other.start((socket, received) => {
      if (received.startsWith("GET / ")) socket.write(HELLO);
      if (received.startsWith("GET /begin ")) socket.write(BEGINNING);
    });
    await using server = startPatient(proxy(other.origin));
    // On a connection that is used again, the request would be sent again.
    assert.equal((await exchange(server, request("/"))).body, "Hello");
    const client = await Client.connect(server);
    await client.send(sent);
    await other.until(until);
    if (sent.startsWith("GET /begin")) await client.until(/one/);
    client.leave();
    await other.untilClosed(2);
    assert.equal((await exchange(server, request("/"))).body, "Hello");
    assert.equal(other.received.length, 3);
    assert.equal(server.errors.text, "");
  });
}

test("proxy.ts ends the request behind when its response is closed unread", async () => {
  await using other = await Other.start(answering(BEGINNING));
  const body = await proxy(other.origin)(environFor(), () => async () => {});
  await body.close?.();
  await other.untilClosed();
});

test("proxy.ts reads no more of a response than its client takes", async () => {
  let written = 0;
  await using other = await Other.start((socket, received) => {
    if (!received.startsWith("GET /endless")) return void socket.write(HELLO);
    socket.write("HTTP/1.1 200 OK\r\n\r\n");
    const more = () => {
      written += MIB;
      socket.write(new Uint8Array(MIB), () => socket.destroyed || more());
    };
    more();
  });
  await using server = start(proxy(other.origin));
  const client = await Client.connect(server);
  client.pause();
  await client.send(request("/endless"));
  await other.until(/endless/);
  // The time that it takes to answer so often would be enough to read all of it many times over.
  for (let before = -1; before !== written;) {
    before = written;
    for (let times = 0; times < 100; times++) await exchange(server, request("/"));
  }
  assert.ok(written < 2 * HELD, `${written / MIB} MiB`);
  client.leave();
});

// #endregion

// #region Flask and Django

const FLASK = `
import hashlib, threading
from flask import Flask, Response, jsonify, redirect, request, url_for

application = Flask(__name__)
go, left = threading.Event(), threading.Event()

def route(path, **options):
    return application.route(path, methods=["GET", "POST", "PUT"], **options)

def digest(stream):
    hashed, size = hashlib.sha256(), 0
    while piece := stream.read(65536):
        hashed.update(piece)
        size += len(piece)
    return [size, hashed.hexdigest()]

@route("/redirect")
def absolute():
    return redirect(url_for("form", _external=True))

@route("/again")
def again():
    return redirect("/form", 307)

@route("/cookies")
def cookies():
    response = jsonify(request.cookies)
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", path="/b")
    return response

@route("/form")
def form():
    files = {name: [file.filename, *digest(file.stream)] for name, file in request.files.items()}
    return jsonify(method=request.method, form=request.form.to_dict(False), files=files)

@route("/upload")
def upload():
    return jsonify(digest(request.stream))

@route("/download")
def download():
    size = int(request.args["size"])
    return Response((b"x" * 65536 for _ in range(size // 65536)), headers={"Content-Length": size})

@route("/events")
def events():
    def body():
        yield b"data: 1\\n\\n"
        go.wait(20)
        go.clear()
        yield b"data: 2\\n\\n"
    return Response(body(), mimetype="text/event-stream")

@route("/go")
def go_on():
    go.set()
    return "gone on"

@route("/endless")
def endless():
    def body():
        try:
            while True:
                yield b"x" * 65536
        finally:
            left.set()
    return Response(body(), mimetype="text/plain")

@route("/left")
def has_left():
    return str(left.wait(20))

@route("/page")
def page():
    response = Response("Hello", headers={"X-Page": "1"})
    response.set_etag("page")
    return response.make_conditional(request)

@route("/encoded/<coding>")
def encoded(coding):
    return Response(request.get_data(), headers={"Content-Encoding": coding})
`;

const DJANGO = `
import hashlib, threading
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[
        "django.middleware.http.ConditionalGetMiddleware", "django.middleware.common.CommonMiddleware",
    ],
)
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_protect, ensure_csrf_cookie

go, left = threading.Event(), threading.Event()

def digest(stream):
    hashed, size = hashlib.sha256(), 0
    while piece := stream.read(65536):
        hashed.update(piece)
        size += len(piece)
    return [size, hashed.hexdigest()]

class TemporaryRedirect(HttpResponseRedirect):
    status_code = 307

def absolute(request):
    return HttpResponseRedirect(request.build_absolute_uri("/form"))

def again(request):
    return TemporaryRedirect("/form")

def cookies(request):
    response = JsonResponse(request.COOKIES)
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", path="/b")
    return response

def form(request):
    files = {name: [file.name, *digest(file)] for name, file in request.FILES.items()}
    return JsonResponse({"method": request.method, "form": dict(request.POST.lists()), "files": files})

@ensure_csrf_cookie
@csrf_protect
def protected(request):
    return HttpResponse("accepted " + request.method)

def upload(request):
    return JsonResponse(digest(request), safe=False)

def download(request):
    size = int(request.GET["size"])
    blocks = (b"x" * 65536 for _ in range(size // 65536))
    return StreamingHttpResponse(blocks, headers={"Content-Length": size})

def events(request):
    def body():
        yield b"data: 1\\n\\n"
        go.wait(20)
        go.clear()
        yield b"data: 2\\n\\n"
    return StreamingHttpResponse(body(), content_type="text/event-stream")

def go_on(request):
    go.set()
    return HttpResponse("gone on")

def endless(request):
    def body():
        try:
            while True:
                yield b"x" * 65536
        finally:
            left.set()
    return StreamingHttpResponse(body(), content_type="text/plain")

def has_left(request):
    return HttpResponse(str(left.wait(20)))

def page(request):
    return HttpResponse("Hello", headers={"X-Page": "1", "ETag": '"page"'})

def encoded(request, coding):
    return HttpResponse(request.body, headers={"Content-Encoding": coding})

urlpatterns = [
    path("redirect", absolute), path("again", again), path("cookies", cookies), path("form", form),
    path("protected", protected), path("upload", upload), path("download", download), path("events", events),
    path("go", go_on), path("endless", endless), path("left", has_left), path("page", page),
    path("encoded/<coding>", encoded),
]
application = get_wsgi_application()
`;

/** A framework of Python, and the server that runs a program of it, when that is needed for the first time. */
class Framework {
  readonly name: string;
  readonly isInstalled: boolean;
  readonly #args: string[];
  #child: Child | undefined;

  constructor(name: string, program: string) {
    this.name = name;
    writeFileSync(`${FOLDER}/on_${name.toLowerCase()}.py`, program);
    this.#args = ["--chdir", FOLDER, `on_${name.toLowerCase()}`];
    this.isInstalled = spawnSync("gunicorn", ["--check-config", ...this.#args]).status === 0;
    after(async () => {
      this.#child?.kill("SIGINT");
      await this.#child?.ended();
    });
  }

  /** Where gunicorn listens. */
  async origin(): Promise<string> {
    const options = ["--bind", "127.0.0.1:0", "--threads", "8", "--timeout", "0"];
    this.#child ??= new Child("gunicorn", [...options, ...this.#args]);
    return (await this.#child.until(/Listening at: (http:\S+)/))[1]!;
  }

  /** A test that needs the framework, and is skipped, with the reason, where it is missing. */
  test(what: string, run: (server: ReturnType<typeof start>) => Promise<void>): void {
    const missing = `gunicorn and ${this.name} are not installed`;
    if (!this.isInstalled) console.log(`Skipped, because ${missing}: ${what}`);
    test(`proxy.ts before ${this.name}: ${what}`, { skip: this.isInstalled ? false : missing }, async () => {
      await using server = start(proxy(await this.origin()));
      await run(server);
      assert.equal(server.errors.text, "");
    });
  }
}

/** The answer to a request, as JSON. */
async function json(server: Server, path: string, init?: RequestInit): Promise<unknown> {
  const response = await fetch(addressOf(server, path), init);
  assert.equal(response.status, 200);
  return await response.json();
}

/** The size and the hash of bytes, as the programs give them. */
function digest(content: Uint8Array): [size: number, hash: string] {
  return [content.length, createHash("sha256").update(content).digest("hex")];
}

const SIZE = 100 * MIB;

/** A proxy that is a program of its own, and tells its memory. */
function proxyProgram(origin: string): Child {
  return evaluate(`
    const { proxy } = await import(${JSON.stringify(new URL("../examples/proxy.ts", import.meta.url).href)});
    const inner = proxy(${JSON.stringify(origin)});
    serve((environ, startResponse) => {
      if (environ.PATH_INFO !== "/memory") return inner(environ, startResponse);
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [new TextEncoder().encode(String(process.resourceUsage().maxRSS))];
    }, OPTIONS);
  `);
}

const DJANGO_FRAMEWORK = new Framework("Django", DJANGO);

for (const framework of [new Framework("Flask", FLASK), DJANGO_FRAMEWORK]) {
  framework.test("a redirect goes to the host that the client has asked for, and is not followed", async (server) => {
    const { status, headers } = await exchange(server, request("/redirect"));
    assert.equal(status, 302);
    assert.equal(new Map(headers).get("location"), "http://test.example/form");
  });

  framework.test("a POST that is answered with 307 is repeated by its client, with its form", async (server) => {
    const body = new URLSearchParams([["a", "1"], ["a", "2"], ["é", "你"]]);
    const expected = { method: "POST", form: { a: ["1", "2"], é: ["你"] }, files: {} };
    assert.deepEqual(await json(server, "/again", { method: "POST", body }), expected);
  });

  framework.test("several cookies pass, each way", async (server) => {
    const response = await fetch(addressOf(server, "/cookies"), { headers: { Cookie: "c=3; d=4" } });
    assert.deepEqual(response.headers.getSetCookie(), ["a=1; Path=/", "b=2; Path=/b"]);
    assert.deepEqual(await response.json(), { c: "3", d: "4" });
  });

  framework.test("a multipart form passes, with its files", async (server) => {
    const content = new Uint8Array(3 * MIB).map((_byte, index) => index % 251);
    const body = new FormData();
    body.append("a", "é");
    body.append("file", new File([content], "b.bin"));
    const expected = { method: "POST", form: { a: ["é"] }, files: { file: ["b.bin", ...digest(content)] } };
    assert.deepEqual(await json(server, "/form", { method: "POST", body }), expected);
  });

  framework.test("an event arrives when it is sent", async (server) => {
    const client = await Client.connect(server);
    await client.send(request("/events"));
    await client.until(/data: 1\n\n/);
    assert.doesNotMatch(client.received, /data: 2/);
    assert.equal((await exchange(server, request("/go"))).body, "gone on");
    const { headers, body, complete } = parse(await client.end());
    assert.match(new Map(headers).get("content-type")!, /^text\/event-stream/);
    assert.deepEqual([body, complete], ["data: 1\n\ndata: 2\n\n", true]);
  });

  framework.test("HEAD has the headers of GET and no body", async (server) => {
    const { status, headers, body } = await exchange(server, request("/page", { method: "HEAD" }), { head: true });
    const values = new Map(headers);
    assert.deepEqual([status, values.get("content-length"), values.get("x-page"), body], [200, "5", "1", ""]);
  });

  framework.test("what the client has is answered with 304", async (server) => {
    const { status, headers, body } = await exchange(server, request("/page", { headers: ['If-None-Match: "page"'] }));
    assert.deepEqual([status, new Map(headers).get("etag"), body], [304, '"page"', ""]);
  });

  for (const [coding, compress] of [["gzip", gzipSync], ["zstd", zstdCompressSync]] as const) {
    framework.test(`what is compressed with ${coding} passes as it is`, async (server) => {
      const body = compress(bytes("Hello ".repeat(100))).toString("latin1");
      const headers = [`Content-Length: ${body.length}`];
      const reply = await exchange(server, request(`/encoded/${coding}`, { method: "POST", headers, body }));
      assert.equal(new Map(reply.headers).get("content-encoding"), coding);
      assert.equal(reply.body, body);
    });
  }

  framework.test("a client that leaves in the middle ends the request behind", async (server) => {
    const client = await Client.connect(server);
    await client.send(request("/endless"));
    await client.until(/xxx/);
    client.leave();
    assert.equal((await exchange(server, request("/left"))).body, "True");
  });

  framework.test("a file of 100 MB goes up and comes down, and the memory of the proxy stays bounded", async () => {
    await using child = proxyProgram(await framework.origin());
    const server = await child.listening();
    const memory = async () => Number((await exchange(server, request("/memory"))).body) / 1024;
    const url = (path: string) => `http://127.0.0.1:${server.port}${path}`;
    const transfer = async (size: number): Promise<void> => {
      const block = new Uint8Array(MIB).map((_byte, index) => index % 251);
      const hash = createHash("sha256");
      const upload = await Client.connect(server);
      await upload.send(request("/upload", { method: "PUT", headers: [`Content-Length: ${size}`] }));
      for (let sent = 0; sent < size; sent += MIB) {
        hash.update(block);
        await upload.send(block);
      }
      assert.deepEqual(JSON.parse(parse(await upload.end()).body), [size, hash.digest("hex")]);
      let received = 0;
      for await (const chunk of (await fetch(url(`/download?size=${size}`))).body!) received += chunk.length;
      assert.equal(received, size);
    };
    await transfer(16 * MIB); // what the runtime needs for its buffers is no growth
    const before = await memory();
    await transfer(SIZE);
    const grown = await memory() - before;
    assert.ok(grown < 80, `grown by ${grown} MiB`);
  });
}

DJANGO_FRAMEWORK.test("a form over https is accepted from its own origin alone", async () => {
  // Django compares the Referer with scheme and host, which it knows from the proxy.
  await using server = start(pipeline(proxy(await DJANGO_FRAMEWORK.origin()), proxyFix));
  const https = "X-Forwarded-Proto: https";
  const { headers } = await exchange(server, request("/protected", { headers: [https] }));
  const [cookie = "", token = ""] = /^csrftoken=(\w+)/.exec(new Map(headers).get("set-cookie") ?? "") ?? [];
  const post = async (referer: string) => {
    const headers = [https, `Cookie: ${cookie}`, `X-CSRFToken: ${token}`, `Referer: ${referer}`, "Content-Length: 0"];
    return (await exchange(server, request("/protected", { method: "POST", headers }))).status;
  };
  assert.equal(await post("https://test.example/protected"), 200);
  assert.equal(await post("http://test.example/protected"), 403);
  assert.equal(await post("https://evil.test/protected"), 403);
});

// #endregion

test("proxy.ts is a program that serves what has moved, and passes the rest on", async () => {
  await using other = await Other.start(answering(HELLO.replace("Hello", "Other")));
  const program = fileURLToPath(new URL("../examples/proxy.ts", import.meta.url));
  const flags = RUNTIME === "deno" ? ["--no-prompt", "--allow-net"] : [];
  await using child = new Child(process.execPath, ["run", ...flags, program, other.origin]);
  await child.until(/^Serving on http:\/\/localhost:8000\//m);
  const server = { hostname: "127.0.0.1", port: 8000 };
  assert.equal((await exchange(server, request("/hello"))).body, "Hello, world!\n");
  assert.equal((await exchange(server, request("/other"))).body, "Other");
});
