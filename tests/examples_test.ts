/**
 * The examples, as applications and as programs.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Application, type HeaderList, runApplication, toEnviron, toFetch, validator } from "../mod.ts";
import { application as environ } from "../examples/environ.ts";
import fetching from "../examples/fetch.ts";
import { application as files } from "../examples/files.ts";
import { application as framework } from "../examples/framework.ts";
import { application as hello } from "../examples/hello.ts";
import { application as reversedEnviron, Reverseware } from "../examples/reverse.ts";
import { application as stream } from "../examples/stream.ts";
import { application as upload } from "../examples/upload.ts";
import {
  bytes,
  Child,
  Client,
  Event,
  freePort,
  HERE,
  parse,
  request,
  RUNTIME,
  start,
  startPatient,
  text,
} from "./support.ts";

const TEXT: HeaderList = [["Content-Type", "text/plain; charset=utf-8"]];

/** An application that answers with chunks, under headers. */
function answering(headers: HeaderList, chunks: Iterable<Uint8Array>): Application {
  return (_environ, startResponse) => {
    startResponse("200 OK", headers);
    return chunks;
  };
}

/** What Reverseware makes of chunks. */
async function reversed(headers: HeaderList, ...chunks: Uint8Array[]): Promise<Uint8Array> {
  const app = new Reverseware(answering(headers, new Set(chunks)));
  return (await runApplication(app, toEnviron(new Request(HERE)))).body;
}

test("environ.ts answers with all variables, sorted, each on a line of its own", async () => {
  const request = toEnviron(new Request(`${HERE}path?query`, { headers: { "X-Header": "value" } }));
  const { status, headers, body } = await runApplication(environ, request);
  const lines = text(body).trimEnd().split("\n");
  assert.equal(status, "200 OK");
  assert.deepEqual(headers, TEXT);
  assert.deepEqual(lines.map((line) => line.replace(/: .*/, "")), Object.keys(request).sort());
  for (const line of ["HTTP_X_HEADER: value", "PATH_INFO: /path", "wsgi.run_once: false"]) {
    assert.ok(lines.includes(line));
  }
});

test("hello.ts and fetch.ts greet", async () => {
  const greeting = "Hello, world!\n";
  assert.equal(text((await runApplication(hello, toEnviron(new Request(HERE)))).body), greeting);
  assert.equal(await (await fetching.fetch(new Request(HERE))).text(), greeting);
});

test("reverse.ts reverses the lines of environ.ts", async () => {
  const lines = text((await runApplication(reversedEnviron, toEnviron(new Request(HERE)))).body);
  assert.ok(lines.includes("TEG :DOHTEM_TSEUQER\n"));
});

test("Reverseware reverses text across chunks, and keeps every character whole", async () => {
  const whole = bytes("añ你😀z");
  for (let at = 0; at <= whole.length; at++) {
    assert.equal(text(await reversed(TEXT, whole.subarray(0, at), whole.subarray(at))), "z😀你ña");
  }
});

test("Reverseware keeps the length of text that is not UTF-8", async () => {
  assert.deepEqual([...await reversed(TEXT, Uint8Array.of(0x80, 0xff, 0x61, 0xe4))], [0xe4, 0x61, 0xff, 0x80]);
});

test("Reverseware leaves alone bodies that it cannot read: other types, encoded bodies, parts and events", async () => {
  const untouched: HeaderList[] = [
    [],
    [["Content-Type", "image/png"]],
    [["content-type", "TEXT/EVENT-STREAM"]],
    [...TEXT, ["Content-Encoding", "gzip"]],
    [...TEXT, ["content-range", "bytes 0-2/9"]],
  ];
  for (const headers of untouched) {
    assert.equal(text(await reversed(headers, bytes("ab"), bytes("c"))), "abc", JSON.stringify(headers));
  }
});

test("Reverseware keeps a Content-Length true, to GET and to HEAD", async () => {
  const handler = toFetch(new Reverseware(answering([...TEXT, ["Content-Length", "4"]], [bytes("añ"), bytes("b")])));
  const got = await handler(new Request(HERE));
  assert.equal(await got.text(), "bña");
  const head = await handler(new Request(HERE, { method: "HEAD" }));
  assert.equal(head.headers.get("Content-Length"), "4");
  assert.equal(await head.text(), "");
});

test("Reverseware passes each chunk on at once when it does not reverse", async () => {
  const ready = new Event("the first chunk");
  const app = new Reverseware(async function* (_environ, startResponse) {
    startResponse("200 OK", [["Content-Type", "text/event-stream"]]);
    yield bytes("first");
    await ready.wait();
    yield bytes("second");
  });
  const reader = (await toFetch(app)(new Request(HERE))).body!.getReader();
  assert.equal(text((await reader.read()).value!), "first");
  ready.happen();
  assert.equal(text((await reader.read()).value!), "second");
});

test("Reverseware passes on what is written, what is replaced, and close", async () => {
  let closes = 0;
  const app = new Reverseware((_environ, startResponse) => {
    startResponse("200 OK", []);
    const write = startResponse("404 Not Found", TEXT, new Error("No such thing"));
    write(bytes("ab"));
    return Object.assign([bytes("cd")], { close: () => void closes++ });
  });
  const response = await toFetch(app)(new Request(HERE));
  assert.equal(response.status, 404);
  assert.equal(await response.text(), "dcba");
  assert.equal(closes, 1);
});

test("upload.ts hashes what arrives, of any size", async () => {
  for (const size of [0, 1, 65_536, 1_000_000]) {
    const body = new Uint8Array(size).fill(7);
    const response = await toFetch(upload)(new Request(HERE, { method: "POST", body }));
    const hash = createHash("sha256").update(body).digest("hex");
    assert.equal(await response.text(), `${hash}  ${size} bytes\n`);
  }
});

test("stream.ts sends its first event at once, and the next ones later", async () => {
  await using server = start(stream);
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/id: 1\ndata: \S+\n\n/);
  assert.doesNotMatch(client.received, /id: 2/);
  await client.until(/id: 2\ndata: \S+\n\n/);
  client.leave();
});

test("stream.ts ends its streams when the server stops", async () => {
  const server = startPatient(stream);
  const clients = await Promise.all([1, 2].map(() => Client.connect(server)));
  for (const client of clients) {
    await client.send(request("/"));
    await client.until(/id: 1\ndata: \S+\n\n/);
  }
  await server.shutdown();
  for (const client of clients) assert.ok(parse(await client.end()).complete);
  assert.equal(server.errors.text, "");
});

test("files.ts serves and lists a folder, compressed and logged", async () => {
  const lines: unknown[] = [];
  const { log } = console;
  console.log = (line: unknown) => void lines.push(line);
  try {
    const handler = toFetch(files(fileURLToPath(new URL("..", import.meta.url))));
    const response = await handler(new Request(`${HERE}README.md`, { headers: { "Accept-Encoding": "deflate" } }));
    const body = response.body!.pipeThrough(new DecompressionStream("deflate"));
    assert.match(await new Response(body).text(), /^# WSGI/);
    assert.equal((await handler(new Request(`${HERE}missing`))).status, 404);
    const listing = await (await handler(new Request(`${HERE}examples/`))).text();
    assert.match(listing, /<a href="\.\/files\.ts">/);
  } finally {
    console.log = log;
  }
  assert.equal(lines.length, 3);
  assert.match(String(lines[0]), /"GET \/README.md HTTP\/1.1" 200 \d+ /);
});

for (
  const [call, status, type, page] of [
    ["GET /", 200, "text/html", /<a href="\/hello\/you">/],
    ["GET /hello/%3Cb%3E%C3%A9", 200, "text/html", /Hello &#60;b&#62;é!.*← Back/],
    ["GET /hello/%FF", 400, "text/plain", /^400 Bad Request\n$/],
    ["GET /hello/a/b", 404, "text/plain", /^404 Not Found\n$/],
    ["GET /users/7", 200, "application/json", /^\{"id":"7","name":"Ada"\}$/],
    ["GET /users/8", 404, "text/plain", /^404 Not Found\n$/],
    ["POST /sum [1,2,3]", 200, "application/json", /^\{"sum":6\}$/],
    ["POST /sum {}", 422, "text/plain", /^422 Unprocessable Content\n$/],
    ["POST /sum [", 400, "text/plain", /^400 Bad Request\n.*JSON/],
    ["PUT /sum []", 405, "text/plain", /^$/],
    ["POST / [", 400, "text/plain", /^400 Bad Request\n.+\n$/],
    ["PUT /", 405, "text/plain", /^$/],
    ["GET /failure", 500, "text/plain", /^500 Internal Server Error\n$/],
    ["GET /count", 200, "text/plain", /^1\n2\n3\n$/],
    ["HEAD /count", 200, "text/plain", /^$/],
  ] as const
) {
  test(`framework.ts answers ${call} with ${status}`, async () => {
    const [method = "", path = "", body = null] = call.split(" ");
    const { log } = console;
    console.log = () => {};
    try {
      const app = toFetch(validator(framework));
      const response = await app(new Request(new URL(path, HERE), { method, body }));
      assert.equal(response.status, status);
      assert.equal(response.headers.get("Content-Type")?.split(";")[0], type);
      assert.match(await response.text(), page);
    } finally {
      console.log = log;
    }
  });
}

test("framework.ts takes a message from its form, and shows it as text, until ten others have followed", async () => {
  const { log } = console;
  console.log = () => {};
  try {
    const app = toFetch(validator(framework));
    const leave = async (message: string) => {
      const response = await app(new Request(HERE, { method: "POST", body: new URLSearchParams({ message }) }));
      assert.equal(response.status, 303);
      assert.equal(response.headers.get("Location"), "/");
      return await (await app(new Request(HERE))).text();
    };
    assert.match(await leave("<i>né"), /<li>&#60;i&#62;né<\/ul>$/);
    for (let count = 1; count <= 9; count++) assert.match(await leave(`Message ${count}`), /<li>&#60;i&#62;né<\/ul>$/);
    assert.match(await leave("The last"), /<ul><li>The last<li>Message 9.*<li>Message 1<\/ul>$/);
  } finally {
    console.log = log;
  }
});

test("framework.ts answers a body above the limit with 413", async () => {
  const { log } = console;
  console.log = () => {};
  try {
    const app = toFetch(framework, { maxBodySize: 3 });
    for (const [path, body] of [["sum", "[1,2]"], ["", new URLSearchParams({ message: "Hello" })]] as const) {
      assert.equal((await app(new Request(HERE + path, { method: "POST", body }))).status, 413);
    }
  } finally {
    console.log = log;
  }
});

test("framework.ts has fewer than 120 lines", () => {
  const program = readFileSync(new URL("../examples/framework.ts", import.meta.url), "utf8");
  assert.ok(program.trimEnd().split("\n").length < 120);
});

test("files.ts takes a folder and a port from the command line", async () => {
  const program = fileURLToPath(new URL("../examples/files.ts", import.meta.url));
  const folder = fileURLToPath(new URL("../examples/deploy", import.meta.url));
  const flags = RUNTIME === "deno" ? ["--allow-net", "--allow-read"] : [];
  const port = await freePort();
  await using child = new Child(process.execPath, ["run", ...flags, program, folder, String(port)]);
  await child.until(/^Serving on /m);
  assert.match(await (await fetch(`http://127.0.0.1:${port}/`)).text(), /<h1>Index of \/<\/h1>[^]*nginx\.conf/);
});

test("stream.ts shows in the terminal who listens, and who is gone", async () => {
  const program = fileURLToPath(new URL("../examples/stream.ts", import.meta.url));
  const args = RUNTIME === "deno" ? ["run", "--allow-net", program] : ["run", program];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  try {
    let output = "";
    const waiting: [pattern: RegExp, found: Event][] = [
      [/^Serving on http:\/\/localhost:8000\/ with /, new Event("a server")],
      [/^127\.0\.0\.1:\d+ listens$/m, new Event("a client that listens")],
      [/^127\.0\.0\.1:\d+ is gone after 1 events$/m, new Event("a client that is gone")],
    ];
    for (const readable of [child.stdout, child.stderr]) {
      readable.on("data", (data: Uint8Array) => {
        output += text(data);
        for (const [pattern, found] of waiting) if (pattern.test(output)) found.happen();
      });
    }
    await waiting[0]![1].wait();
    const client = await Client.connect({ hostname: "127.0.0.1", port: 8000 });
    await client.send(request("/"));
    await waiting[1]![1].wait();
    await client.until(/id: 1/);
    client.leave();
    await waiting[2]![1].wait();
    assert.doesNotMatch(output, /failed/);
  } finally {
    child.kill("SIGKILL");
    await once(child, "close");
  }
});
