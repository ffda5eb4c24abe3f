/**
 * The CGI programs of the examples: git's own, Python's, and scripts that do what a program may do.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Application, basicAuth, type Environ, limitBody, runApplication, type Server } from "../mod.ts";
import { cgi } from "../examples/cgi.ts";
import { application as environ } from "../examples/environ.ts";
import {
  answer,
  Child,
  Client,
  contextOf,
  environFor,
  ErrorLog,
  evaluate,
  Event,
  exchange,
  HELD,
  HERE,
  KIB,
  MIB,
  native,
  parse,
  request,
  RUNTIME,
  start,
  startPatient,
  stream,
  streamingInit,
  unchecked,
  workspace,
} from "./support.ts";

const { FOLDER, newPath } = workspace();

/** A shell script as an application. */
function script(code: string): Application {
  return cgi(["sh", "-c", code]);
}

/** The start of a script that answers in plain text. */
const PLAIN = "printf 'Content-Type: text/plain\\n\\n';";

/** The start of a script that says when it is told to end. */
const TRAP = "trap 'echo told >&2; exit' TERM;";

/** The end of a script that waits. One long sleep might outlive it: dash loses a signal between fork and exec. */
const SLEEP = "while :; do sleep 0.05; done";

/** A script that says that it runs, and waits. */
const WAIT = `${TRAP} echo runs >&2; ${SLEEP}`;

/** A script that reads its input, and says so where that seems whole. */
const READ = "trap 'echo told >&2; exit' TERM; exec 3<&0; cat <&3 >/dev/null & echo runs >&2; wait; echo whole >&2";

/** A test that needs a program, and is skipped, with the reason, where that is missing. */
function testWith(program: string, args: string[], name: string, run: () => Promise<void>): void {
  const isThere = spawnSync(program, args).status === 0;
  if (!isThere) console.log(`Skipped, because ${program} is not installed: ${name}`);
  test(name, { skip: isThere ? false : `${program} is not installed` }, run);
}

// #region What a program gives

for (
  const [what, code, status, headers, body] of [
    ["fields and a body", "printf 'A: b\\n\\nbody'", 200, [["a", "b"]], "body"],
    [
      "lines that end as in HTTP",
      "printf 'A: b\\r\\nC: d\\r\\n\\r\\nbody\\r\\n'",
      200,
      [["a", "b"], ["c", "d"]],
      "body\r\n",
    ],
    ["blanks around a value", "printf 'A: \\t b c \\t\\n\\n'", 200, [["a", "b c"]], ""],
    ["an empty value", "printf 'A:\\n\\n'", 200, [["a", ""]], ""],
    ["a header in pieces", "printf 'A: b\\r'; sleep 0; printf '\\n'; sleep 0; printf '\\r\\n'", 200, [["a", "b"]], ""],
    ["a status", "printf 'Status: 299 So Be It\\nA: b\\n\\n'", 299, [["a", "b"]], ""],
    ["a status in other letters, last", "printf 'A: b\\nSTATUS:404 Gone Away\\n\\n'", 404, [["a", "b"]], ""],
    ["a status without a reason", "printf 'status: 404\\n\\nbody'", 404, [], "body"],
    ["a location", "printf 'Location: /there?q\\n\\n'", 302, [["location", "/there?q"]], ""],
    ["a location and a status", "printf 'Status: 201 Created\\nLocation: /it\\n\\n'", 201, [["location", "/it"]], ""],
    [
      "several cookies",
      "printf 'Set-Cookie: a\\nset-cookie: b\\n\\n'",
      200,
      [["set-cookie", "a"], ["set-cookie", "b"]],
      "",
    ],
    ["a body with empty lines", "printf 'A: b\\n\\n\\nc: d\\n\\n'", 200, [["a", "b"]], "\nc: d\n\n"],
    ["bytes of all kinds", "printf 'A: \\351\\n\\n\\351\\303\\251\\000'", 200, [["a", "\xe9"]], "\xe9\xc3\xa9\0"],
    ["a status of its own exit, which CGI does not know", "printf 'A: b\\n\\nbody'; exit 1", 200, [["a", "b"]], "body"],
  ] as const
) {
  test(`a program gives ${what}`, async () => {
    await using server = start(unchecked(script(code)));
    const reply = parse(await sent(server, request("/")));
    assert.equal(reply.status, status);
    const own = new Set(["date", "content-length", "transfer-encoding", "connection", "vary", "content-type"]);
    assert.deepEqual(reply.headers.filter(([name]) => !own.has(name)), headers);
    assert.equal(reply.body, body);
    assert.ok(reply.complete);
    assert.equal(server.errors.text, "");
  });
}

async function sent(server: Server, text: string): Promise<string> {
  const client = await Client.connect(server);
  await client.send(text);
  return await client.end();
}

for (
  const [what, code, status, error] of [
    [
      "ends before its header",
      "echo no; echo why >&2; exit 3",
      502,
      /^why\n.*"sh": found "no\\n" and its end \(3\), exp/,
    ],
    ["gives nothing", "exit 0", 502, /"sh": found "" and its end \(0\), /],
    ["is ended by a signal", "kill -KILL $$", 502, /found "" and its end \(SIGKILL\), /],
    [
      "gives a line that is no field",
      "printf 'A: b\\nno field\\n\\nbody'",
      502,
      /found "A: b\\nno field\\n\\nbody" and the line "no field", expected/,
    ],
    ["has no field", "printf '\\nbody\\n\\n'", 502, /found "\\nbody\\n\\n" and the line "", expected/],
    [
      "has a header without an end",
      "yes A: b",
      502,
      /"sh": found "A: b\\n.* and more than it may have, expected fields/,
    ],
    ["has a hop-by-hop header", "printf 'Connection: close\\n\\nbody'", 500, /"connection" is hop-by-hop/],
    ["has an impossible status", "printf 'Status: OK\\n\\nbody'", 500, /status "OK Unknown"/],
  ] as const
) {
  test(`a program that ${what} gives ${status}, and the reason is logged`, async () => {
    const { response, errors } = await answer(unchecked(script(code)));
    assert.equal(response.status, status);
    assert.doesNotMatch(await response.text(), /body|why/);
    assert.match(errors.text.replace(/\n.*Application failed/, "\nApplication failed"), error);
  });
}

for (
  const [what, before, after] of [["within a value", "a", "b"], ["around a value, and within", " a", "b "]] as const
) {
  test(`blanks ${what} take no quadratic time`, async () => {
    const timed = async (filling: string) => {
      const started = performance.now();
      const value = `printf 'A:${before}'; head -c 30000 /dev/zero | tr '\\0' '${filling}'; printf '${after}\\n'`;
      const { response } = await answer(script(`${value}; ${PLAIN}`));
      assert.equal(response.headers.get("a")?.length, 30_002);
      await response.text();
      return performance.now() - started;
    };
    await timed("x"); // the first start of a program takes longer
    const letters = await timed("x");
    const blanks = await timed(" ");
    assert.ok(blanks < 20 * letters, `${blanks} ms, ${letters} ms with letters`);
  });
}

test("a program that is not there gives 502, and the shell says so", async () => {
  const { response, errors } = await answer(cgi(["/no/such/program"]));
  assert.equal(response.status, 502);
  await errors.matches(/\/no\/such\/program: not found/);
});

test("a program that is ended by a signal in its body gives no whole response", async () => {
  await using server = start(script(`${PLAIN} printf some; kill -KILL $$`));
  const reply = parse(await sent(server, request("/")));
  assert.equal(reply.status, 200);
  assert.ok(!reply.complete);
  assert.match(server.errors.text, /"sh" was ended by SIGKILL/);
});

test("what a program writes on standard error is logged line by line", async () => {
  const log = new ErrorLog();
  const lines: string[] = [];
  const write = log.write.bind(log);
  log.write = (text) => {
    lines.push(text);
    write(text);
  };
  const { response } = await answer(script(`${PLAIN} printf 'o' >&2; sleep 0; printf 'ne\\ntwo' >&2`), undefined, {
    errors: log,
  });
  await response.text();
  await log.matches(/two\n/);
  assert.deepEqual(lines.filter(Boolean), ["one\n", "two\n"]);
});

test("a program gives each chunk when it has it", async () => {
  await using server = start(script(`${PLAIN} printf first; cat >/dev/null; printf second`));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body: "1\r\na\r\n" }));
  await client.until(/first/);
  assert.doesNotMatch(client.received, /second/);
  await client.send("0\r\n\r\n");
  await client.until(/second/);
});

test("a program whose response has come may go on", async () => {
  const file = newPath(".go");
  const code = "printf 'Content-Type: text/plain\\nContent-Length: 2\\n\\nhi'; exec >&-;";
  await using server = start(script(`${code} while ! [ -e ${file} ]; do sleep 0.01; done; echo done >&2`));
  const client = await Client.connect(server);
  await client.send(request("/"));
  await client.until(/\r\n\r\nhi$/);
  writeFileSync(file, "");
  await server.errors.matches(/done/);
});

test("what a program has started may go on when it has ended", async () => {
  const file = newPath(".go");
  const code = `(while ! [ -e ${file} ]; do sleep 0.01; done; echo done >&2) >&- &`;
  const { response, errors } = await answer(script(`${PLAIN} printf hi; ${code}`));
  assert.equal(await response.text(), "hi");
  writeFileSync(file, "");
  await errors.matches(/done/);
});

// #endregion

// #region What a program gets

/** The variables that a program has got, by name. */
async function variablesOf(app: (program: Application) => Application, raw: string): Promise<Map<string, string>> {
  await using server = start(app(script(`${PLAIN} env -0`)));
  const { status, body } = parse(await sent(server, raw));
  assert.equal(status, 200);
  return new Map(
    body.split("\0").filter(Boolean).map((
      line,
    ) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
  );
}

/** The variables that a shell sets for every program. */
const SHELL = new Set(["PWD", "SHLVL", "_", "OLDPWD"]);

test("a program gets the variables of the environ, PATH, and no others", async () => {
  process.env.WSGI_SECRET = "secret";
  after(() => delete process.env.WSGI_SECRET);
  let environ: Partial<Environ> = {};
  const extended = (program: Application): Application => (own, startResponse) => {
    environ = { ...own };
    Object.assign(own, { HTTP_PROXY: "http://evil.test", "my.variable": "a", lower: "b", NUMBER: 1 });
    return program(own, startResponse);
  };
  const variables = await variablesOf(
    extended,
    request("/a?b", {
      method: "POST",
      headers: [
        "Authorization: Basic YTpi",
        "Proxy-Authorization: Basic YTpi",
        "Proxy: a",
        "X-Y: z",
        "Content-Length: 0",
      ],
    }),
  );
  const expected = new Map([["GATEWAY_INTERFACE", "CGI/1.1"], ["PATH", process.env.PATH ?? ""]]);
  for (const [name, value] of Object.entries(environ)) {
    if (typeof value === "string" && !name.includes(".") && !name.includes("AUTHORIZATION")) expected.set(name, value);
  }
  assert.equal(expected.get("HTTP_X_Y"), "z");
  assert.deepEqual([...variables].filter(([name]) => !SHELL.has(name)).sort(), [...expected].sort());
});

for (
  const [what, path, value] of [
    ["UTF-8", "/%C3%A9/%E4%BD%A0/%F0%9F%98%80", native("/é/你/😀")],
    ["no UTF-8", "/%E9%FF%80%81%C3", "/\xe9\xff\x80\x81\xc3"],
    [
      "UTF-8 and what a shell would act on",
      "/%C3%A9'%22$HOME%60id%60%5C%5C0101%25s%3B%26",
      native("/é'\"$HOME`id`\\\\0101%s;&"),
    ],
    ["UTF-8 and line feeds at the end", "/%C3%A9%0A%0A", native("/é\n\n")],
    ["what a shell would act on", "/'%22$HOME%60id%60%5C0101%25s%0A", "/'\"$HOME`id`\\0101%s\n"],
  ] as const
) {
  test(`the bytes of a path come to the program as they are: ${what}`, async () => {
    const variables = await variablesOf((program) => program, request(path));
    assert.equal(variables.get("PATH_INFO"), value);
    assert.equal(variables.get("REQUEST_URI"), path);
  });
}

test("the bytes of headers come to the program as they are", async () => {
  const headers = ["X-Latin-1: \xe9 'a' \\0101", "X-Utf-8: \xc3\xa9"];
  const variables = await variablesOf((program) => program, request("/", { headers }));
  assert.equal(variables.get("HTTP_X_LATIN_1"), "\xe9 'a' \\0101");
  assert.equal(variables.get("HTTP_X_UTF_8"), "\xc3\xa9");
});

test("a null byte, which no variable can have, gives 400, and the program does not run", async () => {
  const { response, errors } = await answer(script("echo ran >&2"), new Request(`${HERE}a%00b`));
  assert.equal(response.status, 400);
  assert.equal(errors.text, "");
});

for (
  const [what, init, length] of [
    ["with a length", { method: "POST", body: "a".repeat(200_000) }, "200000"],
    ["without a length", streamingInit(stream(...Array(20).fill("a".repeat(10_000)))), "none"],
  ] as const
) {
  test(`a body ${what} comes to the program up to its end`, async () => {
    await using server = start(script(`${PLAIN} echo "\${CONTENT_LENGTH-none}" $(wc -c)`));
    const response = await fetch(`http://127.0.0.1:${server.port}/`, init);
    assert.equal(await response.text(), `${length} 200000\n`);
  });
}

test("a program without a body to read finds the end of its input at once", async () => {
  const { response } = await answer(script(`${PLAIN} echo "\${CONTENT_LENGTH-none}" $(wc -c)`));
  assert.equal(await response.text(), "none 0\n");
});

test("a program need not read its input", async () => {
  await using server = start(script("printf 'Status: 403 Forbidden\\nContent-Type: text/plain\\n\\nno'"));
  const client = await Client.connect(server);
  await client.send(request("/", { method: "POST", headers: [`Content-Length: ${HELD}`], body: "a".repeat(200_000) }));
  await client.until(/^HTTP\/1.1 403 [^]*no/);
  assert.equal(server.errors.text, "");
});

test("a body above a limit ends the program, for which it never looks whole, and gives 413", async () => {
  await using server = start(limitBody(script(READ), { maxBodySize: 100_000 }));
  const client = await Client.connect(server);
  const chunk = `186a0\r\n${"a".repeat(100_000)}\r\n`;
  await client.send(request("/", { method: "POST", headers: ["Transfer-Encoding: chunked"], body: chunk }));
  await server.errors.matches(/runs/);
  await client.send(chunk);
  await client.until(/^HTTP\/1.1 413 /);
  await server.errors.matches(/told/);
  assert.doesNotMatch(server.errors.text, /whole/);
});

// #endregion

// #region The end of a program

for (
  const [what, code, received] of [
    ["before its header", WAIT, /^$/],
    ["in its header", `printf 'A: b\\n'; ${WAIT}`, /^$/],
    ["after its header", `${PLAIN} printf some; ${WAIT}`, /some/],
    ["for another one that it has started", `(${WAIT}) & wait`, /^$/],
  ] as const
) {
  test(`a client that leaves ends a program that waits ${what}`, async () => {
    await using server = startPatient(script(code));
    const client = await Client.connect(server);
    await client.send(request("/"));
    await server.errors.matches(/runs/);
    await client.until(received);
    client.leave();
    await server.errors.matches(/told/);
  });
}

for (const header of [`Content-Length: ${HELD}`, "Transfer-Encoding: chunked"]) {
  test(`a client that leaves in its upload ends the program, for which it never looks whole: ${header}`, async () => {
    await using server = startPatient(script(READ));
    const client = await Client.connect(server);
    const chunk = "a".repeat(100_000);
    const body = header.includes("chunked") ? `186a0\r\n${chunk}\r\n` : chunk;
    await client.send(request("/", { method: "POST", headers: [header], body }));
    await server.errors.matches(/runs/);
    client.leave();
    await server.errors.matches(/told/);
    assert.doesNotMatch(server.errors.text, /whole/);
  });
}

test("a program is not started for a client that has left", async () => {
  const environ = environFor();
  environ["fetch.context"] = Object.create(contextOf(environ), { signal: { value: AbortSignal.abort() } });
  const file = newPath(".ran");
  await assert.rejects(runApplication(script(`touch ${file}; ${PLAIN}`), environ), { name: "AbortError" });
  assert.ok(!existsSync(file));
});

test("a program whose response nobody reads is ended", async () => {
  const { response, errors } = await answer(
    script(`${TRAP} ${PLAIN} echo; ${SLEEP}`),
    new Request(HERE, { method: "HEAD" }),
  );
  assert.equal(response.status, 200);
  await errors.matches(/told/);
});

// #endregion

// #region Memory

test("memory does not grow with what goes through a program, either way", async () => {
  const size = 100 * MIB;
  await using child = evaluate(`
    import { cgi } from ${JSON.stringify(new URL("../examples/cgi.ts", import.meta.url).href)};
    import { mount } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    const collect = globalThis.gc ?? (() => Bun.gc(true));
    const memory = (_environ, startResponse) => {
      collect();
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [new TextEncoder().encode(process.memoryUsage().rss)];
    };
    const program = cgi(["sh", "-c", ${JSON.stringify(`${PLAIN} wc -c; head -c ${size} /dev/zero`)}]);
    serve(mount({ "/": program, "/memory": memory }), OPTIONS);
  `);
  const server = await child.listening();
  const memory = async () => Number((await exchange(server, request("/memory"))).body);
  await transfer(server, size);
  const before = await memory();
  for (let round = 0; round < 2; round++) assert.ok(await transfer(server, size) > size);
  const grown = await memory() - before;
  assert.ok(grown < 0.8 * size, `grown by ${grown / MIB} MiB`);
});

/** Sends so many bytes, and gives the number of those that come back. */
async function transfer(server: Pick<Server, "hostname" | "port">, size: number): Promise<number> {
  const ended = new Event<number>("the end of a response");
  let received = 0;
  const socket = connect(server.port, server.hostname);
  socket.on("data", (data) => void (received += data.length));
  socket.on("error", () => {});
  socket.on("close", () => ended.happen(received));
  socket.write(request("/", { method: "POST", headers: [`Content-Length: ${size}`] }));
  const block = new Uint8Array(256 * KIB);
  for (let left = size; left > 0; left -= block.length) {
    if (!socket.write(block)) await once(socket, "drain");
  }
  return await ended.wait();
}

// #endregion

// #region Python

const PYTHON = `
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{key}: {value}\\n".encode() for key, value in sorted(environ.items())]
`;

testWith("python3", ["--version"], "a WSGI application in Python gets the environ that one of ours gets", async () => {
  writeFileSync(join(FOLDER, "program.py"), PYTHON);
  const run = "from wsgiref.handlers import CGIHandler; from program import application; CGIHandler().run(application)";
  const python = cgi(["env", `PYTHONPATH=${FOLDER}`, "python3", "-c", run]);
  const raw = request("/%C3%A9/%E9?q=%20", {
    method: "POST",
    headers: ["X-Y: z", "Content-Type: a/b", "Content-Length: 2"],
    body: "hi",
  });
  const [theirs, ours] = await Promise.all([python, environ].map(async (app) => {
    await using server = start(app);
    const { status, body } = parse(await sent(server, raw));
    assert.equal(status, 200);
    return body.split("\n");
  }));
  const portable = /^(?!SERVER_PORT|REMOTE_PORT|SERVER_SOFTWARE)[A-Z_]+: |^wsgi\.url_scheme/;
  const lines = ours!.filter((line) => portable.test(line));
  assert.ok(lines.length > 10);
  assert.deepEqual(lines.filter((line) => !theirs!.includes(line)), []);
  assert.deepEqual(theirs!.slice(0, -1), theirs!.slice(0, -1).toSorted());
});

// #endregion

// #region git

const REPOSITORIES = join(FOLDER, "repositories");

/** An environment in which git knows nothing of whoever runs the tests. */
const GIT = {
  PATH: process.env.PATH,
  HOME: FOLDER,
  GIT_CONFIG_NOSYSTEM: "1",
  GIT_TERMINAL_PROMPT: "0",
  ...Object.fromEntries(
    ["AUTHOR", "COMMITTER"].flatMap((who) => [[`GIT_${who}_NAME`, "A"], [`GIT_${who}_EMAIL`, "a@b"]]),
  ),
};

/** Runs git, and gives what it prints. It takes as long as it takes: Deno is slow to read the chunks of a push. */
async function git(...args: string[]): Promise<string> {
  const child = spawn("git", args, { env: GIT });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => void (output += String(data)));
  const [code] = await once(child, "close");
  assert.equal(code, 0, `git ${args.join(" ")}: ${output}`);
  return output.trim();
}

/** A server of repositories, of which each may be read by all, and changed by those who have a password. */
const BACKEND = ["env", `GIT_PROJECT_ROOT=${REPOSITORIES}`, "GIT_HTTP_EXPORT_ALL=1", "git", "http-backend"];

/** Makes a repository of two commits, and its bare clone, which is served. */
async function repository(name: string): Promise<string> {
  const folder = join(FOLDER, name);
  await git("init", "-q", "-b", "main", folder);
  for (const content of ["one", "two"]) {
    writeFileSync(join(folder, "file"), content);
    await git("-C", folder, "add", ".");
    await git("-C", folder, "commit", "-q", "-m", content);
  }
  mkdirSync(REPOSITORIES, { recursive: true });
  await git("clone", "-q", "--bare", folder, join(REPOSITORIES, `${name}.git`));
  return folder;
}

testWith(
  "git",
  ["--version"],
  "git clones from its own CGI program, the whole and the newest commit alone",
  async () => {
    await repository("read");
    await using server = start(cgi(BACKEND));
    for (const [options, commits] of [[[], "2"], [["--depth", "1"], "1"]] as const) {
      const clone = newPath("");
      await git("clone", "-q", ...options, `http://127.0.0.1:${server.port}/read.git`, clone);
      assert.equal(readFileSync(join(clone, "file"), "utf8"), "two");
      assert.equal(await git("-C", clone, "rev-list", "--count", "HEAD"), commits);
    }
    assert.equal(server.errors.text, "");
  },
);

testWith("git", ["--version"], "git pushes to its own CGI program, with a password, and not without", async () => {
  const folder = await repository("write");
  const requests: Environ[] = [];
  const backend = cgi(BACKEND);
  // git's program lets those push for whom there is a REMOTE_USER.
  const secret = basicAuth(backend, { realm: "git", users: { user: "password" } });
  await using server = start((environ, startResponse) => {
    requests.push({ ...environ });
    return (environ.REQUEST_URI.includes("receive-pack") ? secret : backend)(environ, startResponse);
  });
  const file = randomBytes(50 * MIB);
  writeFileSync(join(folder, "large"), file);
  await git("-C", folder, "config", "core.compression", "0");
  await git("-C", folder, "add", ".");
  await git("-C", folder, "commit", "-q", "-m", "large");
  const url = (user: string) => `http://${user}127.0.0.1:${server.port}/write.git`;
  await assert.rejects(git("-C", folder, "push", "-q", url(""), "main"), /could not read Username/);
  requests.length = 0;
  await git("-C", folder, "-c", "http.postBuffer=65536", "push", "-q", url("user:password@"), "main");
  const lengths = requests.filter(({ REQUEST_METHOD }) => REQUEST_METHOD === "POST").map((each) => each.CONTENT_LENGTH);
  assert.deepEqual(lengths, ["4", undefined]); // git asks whether it may push before it sends chunks
  const hash = (data: Uint8Array) => createHash("sha256").update(data).digest("hex");
  const clone = newPath("");
  await git("clone", "-q", url(""), clone);
  assert.equal(hash(readFileSync(join(clone, "large"))), hash(file));
});

testWith(
  "git",
  ["--version"],
  "the program that is run as its comment says serves git, and ends what a client leaves",
  async () => {
    await repository("run");
    const program = fileURLToPath(new URL("../examples/cgi.ts", import.meta.url));
    const flags = RUNTIME === "deno" ? ["--no-prompt", "--allow-net", "--allow-run", "--allow-env"] : [];
    const code = `[ "$PATH_INFO" = /wait ] || exec "$@"; ${WAIT}`;
    await using child = new Child(process.execPath, ["run", ...flags, program, "sh", "-c", code, "sh", ...BACKEND]);
    await child.until(/Serving on http:\/\/localhost:8000\//);
    await git("clone", "-q", "http://127.0.0.1:8000/run.git", newPath(""));
    const client = await Client.connect({ hostname: "127.0.0.1", port: 8000 });
    await client.send(request("/wait"));
    await child.until(/runs/);
    client.leave();
    await child.until(/told/);
  },
);

// #endregion
