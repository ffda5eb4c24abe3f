/**
 * `toFetch`, `fromFetch`, `toRequest` and the middleware on other runtimes: one application on each, asked over sockets.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test, type TestContext } from "node:test";
import { install, makeProject, ROOT, run, writeFiles } from "./npm_support.ts";
import { Child, Client, exchange, MIB, parse, type Reply, request, RUNTIME, within } from "./support.ts";

const PACKAGES = [
  "node24@npm:node@24",
  "node22@npm:node@22",
  "srvx@1.0.8",
  "@hono/node-server@2.1.9",
  "hono@4.13.19",
  "workerd@1.20261117.1",
];

const DEPLOY = readFileSync(join(ROOT, "examples/deploy/README.md"), "utf8");

/** The program of the chapter on other runtimes that imports a package, or has a text of its own. */
function documentedProgram(mark: string): string {
  const programs = DEPLOY.matchAll(/^```ts ignore\n([^]*?)^```$/gm);
  const found = Array.from(programs, ([_all, code = ""]) => code).find((code) => code.includes(mark));
  assert.ok(found, mark);
  return found.replaceAll('"../../mod.ts"', '"./wsgi/mod.ts"');
}

const FILES = {
  "package.json": '{ "type": "module" }',
  "srvx.ts": `
    import { serve } from "srvx";
    import { toFetch } from "./wsgi/mod.ts";
    import { application } from "./wsgi/tests/runtimes_app.ts";

    const handler = toFetch(application);
    const server = serve({
      port: 0,
      hostname: "127.0.0.1",
      silent: true,
      fetch: (request) => handler(request, { remoteAddr: { hostname: request.ip }, waitUntil: request.waitUntil }),
    });
    await server.ready();
    console.log("port", new URL(server.url).port);
  `,
  "hono.ts": `
    import { serve } from "@hono/node-server";
    import { toFetch } from "./wsgi/mod.ts";
    import { application } from "./wsgi/tests/runtimes_app.ts";

    const handler = toFetch(application);
    const options = {
      port: 0,
      hostname: "127.0.0.1",
      fetch(request, { incoming: { socket } }) {
        return handler(request, { remoteAddr: { hostname: socket.remoteAddress, port: socket.remotePort } });
      },
    };
    serve(options, ({ port }) => console.log("port", port));
  `,
  "worker.ts": `
    import { toFetch } from "./wsgi/mod.ts";
    import { application } from "./wsgi/tests/runtimes_app.ts";

    const handler = toFetch(application);
    export default {
      fetch(request, _env, context) {
        const remoteAddr = { hostname: request.headers.get("CF-Connecting-IP") ?? undefined };
        return handler(request, { remoteAddr, waitUntil: (work) => context.waitUntil(work) });
      },
    };
  `,
  // What a bundler does for workerd: types are taken out, and each module gets its name.
  "strip.ts": `
    import { readFileSync, writeFileSync } from "node:fs";
    import { stripTypeScriptTypes } from "node:module";

    for (const [index, file] of process.argv.slice(2).entries()) {
      writeFileSync(\`module\${index}.js\`, stripTypeScriptTypes(readFileSync(file, "utf8")));
    }
  `,
};

/** The configuration of workerd for a program, whose first module is the worker. */
function workerdConfig(modules: string[], flags: string[]): string {
  const listed = modules.map((name, index) => `(name = "${name}", esModule = embed "module${index}.js")`);
  return `
    using Workerd = import "/workerd/workerd.capnp";
    const config :Workerd.Config = (
      services = [(name = "main", worker = .main)],
      sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
    );
    const main :Workerd.Worker = (
      modules = [${listed.join(", ")}],
      compatibilityDate = "2026-01-01",
      compatibilityFlags = ${JSON.stringify(flags)},
    );
  `;
}

let project: { folder: string; problem: string | undefined } | undefined;

/** The folder with the servers, made once, and why they cannot be installed. */
function prepare(): { folder: string; problem: string | undefined } {
  if (project) return project;
  const folder = makeProject(FILES);
  return project = { folder, problem: install(folder, ...PACKAGES) };
}

/** Starts a program of the folder on a version of Node. */
function startNode(version: number, program: string): Child {
  const { folder } = prepare();
  return new Child(join(folder, `node_modules/node${version}/bin/node`), ["--no-warnings", join(folder, program)]);
}

/** Starts a worker of the folder, which has the name of its file. */
function startWorkerd(worker: string, ...flags: string[]): Child {
  const { folder } = prepare();
  const modules = [worker, "mod.ts", "server.ts", "middleware.ts", "tests/runtimes_app.ts"];
  const names = modules.map((name) => name === worker ? name : `wsgi/${name}`);
  const { status, stderr } = run(folder, "node_modules/node24/bin/node", "--no-warnings", "strip.ts", ...names);
  assert.equal(status, 0, stderr);
  writeFiles(folder, { "config.capnp": workerdConfig(names, flags) });
  return new Child(join(folder, "node_modules/.bin/workerd"), [
    "serve",
    join(folder, "config.capnp"),
    "--control-fd=1",
  ]);
}

/** Waits until a server says its port, in its own way. */
async function listening(child: Child): Promise<{ hostname: string; port: number }> {
  const [, port] = await child.until(/port"?[ :](\d+)/);
  return { hostname: "127.0.0.1", port: Number(port) };
}

/** The places where the application is served. */
const PLACES: Record<string, { start(): Child; isWorkerd?: boolean; isBare?: boolean }> = {
  "srvx on Node 24": { start: () => startNode(24, "srvx.ts") },
  "srvx on Node 22": { start: () => startNode(22, "srvx.ts") },
  "@hono/node-server on Node 24": { start: () => startNode(24, "hono.ts") },
  "@hono/node-server on Node 22": { start: () => startNode(22, "hono.ts") },
  "workerd": { start: () => startWorkerd("worker.ts"), isWorkerd: true, isBare: true },
  "workerd with nodejs_compat": { start: () => startWorkerd("worker.ts", "nodejs_compat"), isWorkerd: true },
};

const headerOf = ({ headers }: Reply, name: string) => headers.find(([known]) => known === name)?.[1];

/** Requests, and what their responses have. */
const REQUESTS: { sent: string; status: number; body?: RegExp; header?: [name: string, value: RegExp] }[] = [
  { sent: request("/array"), status: 200, body: /^Hello$/, header: ["content-length", /^5$/] },
  { sent: request("/array"), status: 200, header: ["x-request-id", /^[\da-f-]{36}$/] },
  { sent: request("/array"), status: 200, header: ["access-control-allow-origin", /^\*$/] },
  { sent: request("/array"), status: 200, header: ["x-content-type-options", /^nosniff$/] },
  {
    sent: request("/environ/a%20b?c", { headers: ["CF-Connecting-IP: 127.0.0.1"] }), // workerd knows no other address
    status: 200,
    body: /^127\.0\.0\.1 http:\/\/test\.example\/environ\/a%20b\?c$/,
  },
  { sent: request("/cached"), status: 200, header: ["etag", /^"9\/\+ei3uy4Jtwk1pdeF4MxdnQq\/A="$/] },
  { sent: request("/cached", { headers: ["If-None-Match: *"] }), status: 304, body: /^$/ },
  { sent: request("/error"), status: 422, body: /^422 Unprocessable Content\n$/ },
  { sent: request("/page"), status: 500, body: /<pre>Error: This application fails\n +at / },
  { sent: request("/slow"), status: 504, body: /^504 Gateway Timeout\n$/ },
  { sent: request("/livez"), status: 200, body: /^OK\n$/ },
  { sent: request("/none"), status: 404 },
  { sent: request("/array").replace("test.example", "evil.test"), status: 400, body: /^400 Bad Request\n$/ },
  { sent: request("/secret"), status: 401, header: ["www-authenticate", /^Basic realm=/] },
  { sent: request("/secret", { headers: ["Authorization: Basic YTph"] }), status: 200, body: /^Hello$/ },
  {
    sent: request("/upload", { method: "POST", headers: ["Content-Length: 5"], body: "12345" }),
    status: 200,
    body: /^5$/,
  },
  {
    sent: request("/limited", {
      method: "POST",
      headers: ["Transfer-Encoding: chunked"],
      body: "6\r\n123456\r\n0\r\n\r\n",
    }),
    status: 413,
    body: /^413 Content Too Large\nCannot read the request body: it has more than the \d+ bytes allowed\n$/,
  },
  {
    sent: request("/fetch", { method: "POST", headers: ["Content-Length: 2"], body: "hi" }),
    status: 429,
    body: /^\["hi"\]$/,
  },
];

/** A request on a connection that is kept. */
function kept(target: string, length = 0): string {
  const headers = ["Host: test.example", ...(length > 0 ? [`Content-Length: ${length}`] : [])];
  return [`${length > 0 ? "POST" : "GET"} ${target} HTTP/1.1`, ...headers, "", "x".repeat(length)].join("\r\n");
}

// The servers do not depend on the runtime that runs these tests.
const skip = RUNTIME === "bun" && "run on Deno";

for (const [name, { start, isWorkerd, isBare }] of Object.entries(PLACES)) {
  test(`the core and its middleware work on ${name}`, { skip }, async (context) => {
    const { problem } = prepare();
    if (problem) return context.skip(problem);
    await using child = start();
    const server = await listening(child);
    const step = (what: string, check: (context: TestContext) => Promise<void>) => context.test(what, check);

    await step("requests have their responses", async () => {
      for (const { sent, status, body, header } of REQUESTS) {
        const reply = await exchange(server, sent);
        const what = `${sent}\n${reply.body}`;
        assert.equal(reply.status, status, what);
        assert.ok(reply.complete, what);
        assert.notEqual(reply.reason, "", what);
        if (body) assert.match(reply.body, body, what);
        if (header) assert.match(headerOf(reply, header[0]) ?? "", header[1], what);
      }
    });

    await step("HEAD has the headers of GET, and no body", async () => {
      const reply = await exchange(server, request("/array", { method: "HEAD" }), { head: true });
      assert.equal(headerOf(reply, "content-length"), "5");
      assert.equal(reply.body, "");
    });

    await step("each chunk leaves before the next one is asked for, in both directions", async () => {
      const client = await Client.connect(server);
      await client.send("POST /lines HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n");
      for (const line of ["one\n", "two\n"]) {
        await client.send(`4\r\n${line}\r\n`);
        await client.until(new RegExp(line));
      }
      await client.send("0\r\n\r\n");
      assert.equal((await client.reply()).body, "one\ntwo\n");
      client.leave();
    });

    await step("a failure after the first byte cuts the connection", async () => {
      for (const path of ["/fails", "/fails-short"]) {
        const client = await Client.connect(server);
        await client.send(kept(path));
        const reply = parse(await client.end());
        assert.equal(reply.body, "one", path);
        assert.equal(reply.complete, false, path);
        // workerd sends the length of a stream only where that is its own FixedLengthStream.
        const length = path === "/fails-short" && !isWorkerd ? "10" : undefined;
        assert.equal(headerOf(reply, "content-length"), length);
      }
    });

    await step("a connection goes on after an upload that was not read, or not to its end", async () => {
      // workerd closes the connection of one that is too large for its buffers.
      for (const length of isWorkerd ? [9] : [9, 5 * MIB]) {
        for (const path of ["/array", "/part"]) {
          const client = await Client.connect(server);
          await client.send(kept(path, length));
          await client.until(/Hello|\r\n\r\n5|\r\n5\r\n/);
          await client.send(request("/livez"));
          assert.match(await client.end(), /OK\n/, `${path} ${length}`);
        }
      }
    });

    await step("a large upload is read", async () => {
      const client = await Client.connect(server);
      await client.send(kept("/upload", 5 * MIB));
      assert.equal((await client.reply()).body, String(5 * MIB));
      client.leave();
    });

    await step("a client that leaves in the middle of an upload makes its reading fail", async () => {
      const body = { "Content-Length: 1000": "some", "Transfer-Encoding: chunked": "4\r\nsome\r\n" };
      for (const [header, sent] of Object.entries(body)) {
        const client = await Client.connect(server);
        await client.send(`POST /reading HTTP/1.1\r\nHost: test.example\r\n${header}\r\n\r\n${sent}`);
        await client.until(/some/);
        client.leave();
        await child.until(new RegExp(`^AbortError ${header}$`, "m"));
      }
    });

    await step("a client that leaves ends a stream", async () => {
      const client = await Client.connect(server);
      await client.send(kept("/endless"));
      await client.until(/on and on/);
      client.leave();
      await child.until(/"GET \/endless HTTP\/1\.1" 200 .* aborted$/m);
    });

    await step("a client that leaves before the first byte aborts the signal", async (step) => {
      if (isWorkerd) return step.skip("workerd does not tell before there is a response");
      const client = await Client.connect(server);
      await client.send(kept("/silent"));
      await child.until(/^waits$/m);
      client.leave();
      await child.until(/"GET \/silent HTTP\/1\.1" 499 .* aborted$/m);
    });

    await step("work goes on after the response", async () => {
      assert.equal((await exchange(server, request("/work"))).body, "answered");
      await child.until(/^worked$/m);
    });

    await step("what is compressed is not compressed once more", async () => {
      const reply = await exchange(server, request("/encoded", { headers: ["Accept-Encoding: gzip"] }));
      assert.equal(headerOf(reply, "content-encoding"), "gzip");
      const bytes = Uint8Array.from(reply.body, (character) => character.charCodeAt(0));
      const decoded = new Response(bytes).body!.pipeThrough(new DecompressionStream("gzip"));
      assert.equal(await within(new Response(decoded).text(), "the body"), "Hello");
    });

    await step("what a runtime lacks is said in one line", async () => {
      const refusals: Record<string, string> = {
        "/compress": 'Error: Cannot compress: this runtime has no module "node:zlib"',
        "/files": 'Error: Cannot serve files: this runtime has no module "node:fs"',
        "/users": 'Error: Cannot check passwords by option "users": this runtime has no module "node:crypto"',
        "/serve": "Error: Cannot serve: this is neither Deno nor Bun, expected another server, with toFetch(app)",
        "/concurrency":
          'TypeError: Cannot use option "queue" above 0: on Cloudflare no request can wait for another one',
      };
      const headers = ["Authorization: Basic YTph"];
      for (const [path, refusal] of Object.entries(refusals)) {
        const isRefused = isBare || isWorkerd && path === "/concurrency" || path === "/serve";
        assert.equal((await exchange(server, request(path, { headers }))).body, isRefused ? refusal : "made");
      }
      const reply = await exchange(server, request("/compress", { headers: ["Accept-Encoding: gzip"] }));
      assert.equal(headerOf(reply, "content-encoding"), isBare ? undefined : "gzip");
    });
  });
}

test("the documented program for Node works", { skip }, async (context) => {
  const { folder, problem } = prepare();
  if (problem) return context.skip(problem);
  writeFiles(folder, { "app.ts": documentedProgram('from "srvx"').replace("port: 8000", "port: 0") });
  await using child = startNode(24, "app.ts");
  const [, port] = await child.until(/127\.0\.0\.1:(\d+)/);
  const { body } = await exchange({ hostname: "127.0.0.1", port: Number(port) }, request("/"));
  assert.equal(body, "Hello 127.0.0.1");
});

test("the documented program for Cloudflare works", { skip }, async (context) => {
  const { folder, problem } = prepare();
  if (problem) return context.skip(problem);
  writeFiles(folder, { "cloudflare.ts": documentedProgram("CF-Connecting-IP") });
  await using child = startWorkerd("cloudflare.ts");
  const headers = ["CF-Connecting-IP: 203.0.113.7"];
  const { body } = await exchange(await listening(child), request("/", { headers }));
  assert.equal(body, "Hello 203.0.113.7");
});

test("PEP 3333 holds on Node, through srvx", { skip }, (context) => {
  const { folder, problem } = prepare();
  if (problem) return context.skip(problem);
  const flags = ["--no-warnings", "--preserve-symlinks", "--preserve-symlinks-main", "--test"];
  process.env.WSGI_SERVER = join(folder, "wsgi/tests/srvx_server.ts");
  try {
    const { status, stdout } = run(folder, "node_modules/node24/bin/node", ...flags, "wsgi/tests/pep3333_test.ts");
    assert.equal(status, 0, stdout);
    assert.match(stdout, /pass 8\d/);
  } finally {
    delete process.env.WSGI_SERVER;
  }
});

test("no source has an import() of an expression, which miniflare refuses", () => {
  for (const file of readdirSync(ROOT).filter((name) => name.endsWith(".ts"))) {
    assert.doesNotMatch(readFileSync(join(ROOT, file), "utf8"), /(?<!"return )\bimport\((?=[\w.])/, file);
  }
});
