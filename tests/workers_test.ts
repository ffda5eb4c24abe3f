/**
 * Worker threads: one application on one port, as many threads as there is work for.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";
import { serve, type ServeOptions } from "../mod.ts";
import { Child, Client, parse, request, RUNTIME, within } from "./support.ts";

const FOLDER = mkdtempSync(join(tmpdir(), "wsgi-workers-"));
after(() => rmSync(FOLDER, { recursive: true, force: true }));

const FLAGS = ["--no-prompt", "--allow-net", "--allow-read", "--allow-write", "--allow-env", "--unstable-net"];

/** What every program here begins with: an application that says which thread it is, and does what it is told. */
const APPLICATION = `
  import { writeSync } from "node:fs";
  import { serve } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
  const id = import.meta.main ? "" : crypto.randomUUID(); // the main thread serves until the others do
  const app = async (environ, startResponse) => {
    const { PATH_INFO: path } = environ;
    if (path === "/die") setTimeout(() => { throw new Error("by request"); });
    if (path === "/fail") throw new Error("an error for the deployer");
    if (path === "/burn") for (const end = performance.now() + 20; performance.now() < end;);
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    const text = (value) => new TextEncoder().encode(String(value));
    if (path !== "/stream") return [text(JSON.stringify({ id, multiprocess: environ["wsgi.multiprocess"] }))];
    return (async function* () {
      yield text("one");
      writeSync(1, "streams\\n");
      await environ["wsgi.input"].read();
      yield text("two");
    })();
  };
  const run = (options) => serve(app, { port: 0, onListen: ({ port }) => writeSync(1, "port " + port + "\\n"), ...options });
`;

/** A program of its own, with a name that is its. */
let programs = 0;
function program(code: string, flags = FLAGS): Child {
  const file = join(FOLDER, `program-${++programs}.mjs`);
  writeFileSync(file, APPLICATION + code);
  return new Child(process.execPath, ["run", ...(RUNTIME === "deno" ? flags : []), file]);
}

/** A program that serves with workers, and exports the application as it is told. */
function serving(workers: ServeOptions["workers"], exported = "export { app as application };"): Child {
  return program(`${exported}\nif (import.meta.main) run(${JSON.stringify({ workers })});`);
}

/**
 * What a thread answers, asked over a connection of its own. One that is accepted by a thread which ends in this moment
 * is closed without a word, and asked again, as clients do.
 */
async function get(port: number, path: string): Promise<string> {
  for (;;) {
    const client = await Client.connect({ port, hostname: "127.0.0.1" });
    await client.send(request(path));
    const received = await client.end();
    if (received !== "" || path === "/die") return parse(received).body;
  }
}

/** Asks until as many workers as expected have answered, and gives their names. */
async function threadsOf(port: number, expected: number): Promise<Set<string>> {
  const ids = new Set<string>();
  const all = async () => {
    while (ids.size < expected) {
      const { id } = JSON.parse(await get(port, "/"));
      if (id !== "") ids.add(id);
    }
    return ids;
  };
  return await within(all(), `${expected} workers`);
}

for (
  const [what, exported, workers] of [
    ["exported as application", "export { app as application };", 3],
    ["exported by default", "export default app;", 3],
    ["named in an option", "export { app as site };", { min: 3, max: 3, export: "site" }],
  ] as const
) {
  test(`three workers serve one application on one port: ${what}`, async () => {
    await using child = serving(workers, exported);
    const { port } = await child.listening();
    await threadsOf(port, 3);
    assert.equal(JSON.parse(await get(port, "/")).multiprocess, true);
    child.kill("SIGTERM");
    const { code, errors } = await child.ended();
    assert.equal(code, 0, errors);
  });
}

test("workers take the application from another module, if one is named", async () => {
  const module = join(FOLDER, "application.mjs");
  writeFileSync(module, `${APPLICATION}\nexport { app as application };`);
  await using child = program(
    `if (import.meta.main) run({ workers: { min: 2, max: 2, module: ${
      JSON.stringify(pathToFileURL(module).href)
    } } });`,
  );
  const { port } = await child.listening();
  await threadsOf(port, 2);
});

test("the line on standard error says how many workers there are", async () => {
  await using child = program(
    "export { app as application }; if (import.meta.main) serve(app, { port: 0, workers: 2 });",
  );
  await child.until(/^Serving on http:\/\/localhost:\d+\/ with \S+, 2 workers$/m);
});

test("SIGTERM lets workers finish what is under way", async () => {
  await using child = serving(2);
  const { port } = await child.listening();
  await threadsOf(port, 2);
  const client = await Client.connect({ port, hostname: "127.0.0.1" });
  await client.send(request("/stream", { method: "POST", headers: ["Content-Length: 3"] }));
  await child.until(/^streams$/m);
  child.kill("SIGTERM");
  await client.send("end");
  const { body, complete } = parse(await client.end());
  assert.equal(body, "onetwo");
  assert.ok(complete);
  assert.equal((await child.ended()).code, 0);
});

test("a server that is stopped before its workers have begun ends", async () => {
  await using child = program(`
    export { app as application };
    if (import.meta.main) run({ workers: { min: 1, max: 2 }, signal: AbortSignal.abort() });
  `);
  const { code, output } = await child.ended();
  assert.equal(code, 0);
  assert.equal(output, "");
});

test("a worker that dies is replaced, and the server says so", async () => {
  await using child = serving(2);
  const { port } = await child.listening();
  const before = await threadsOf(port, 2);
  await get(port, "/die");
  await child.until(/^Worker has died, another follows in 200 ms: /m);
  const after = new Set(before);
  const another = async () => {
    while (after.size === before.size) for (const id of await threadsOf(port, 1)) after.add(id);
  };
  await within(another(), "another worker");
});

test("with a range, the number of workers follows the load, up and down", async () => {
  await using child = serving({ min: 1, max: 2, window: 50, quiet: 300 });
  const { port } = await child.listening();
  let isBusy = true;
  const load = Array.from({ length: 4 }, async () => {
    while (isBusy) await get(port, "/burn");
  });
  await threadsOf(port, 2);
  isBusy = false;
  await Promise.all(load);
  // Until the second has gone, it answers now and then.
  const gone = async () => {
    for (let id = "", same = 0; same < 40;) {
      const [next = ""] = await threadsOf(port, 1);
      same = next === id ? same + 1 : 0;
      id = next;
    }
  };
  await within(gone(), "the end of a worker");
});

test("a program that exports no application is told so, and does not go on", async () => {
  await using child = serving(2, "");
  const { code, errors } = await child.ended();
  assert.equal(code, 1);
  assert.match(errors, /^Cannot serve file:\S+ with workers: expected it to export "application" or a default$/m);
});

test("a program that serves in its workers, too, is told so", async () => {
  await using child = program("export { app as application }; run({ workers: 2 });");
  const { code, errors } = await child.ended();
  assert.equal(code, 1);
  assert.match(errors, /^Cannot serve in a thread of a server: .* if \(import\.meta\.main\)$/m);
});

test("errors in a worker go to the option errors of the main thread", async () => {
  await using child = program(`
    export { app as application };
    const errors = { write: (text) => writeSync(1, "reported: " + text), writelines() {}, flush() {} };
    if (import.meta.main) run({ workers: 1, errors });
  `);
  const { port } = await child.listening();
  await threadsOf(port, 1);
  assert.equal(await get(port, "/fail"), "Internal Server Error\n");
  await child.until(/^reported: Application failed on GET .*an error for the deployer/m);
});

for (const workers of [0, -1, 1.5, NaN, "2", { max: 0 }, { min: 3, max: 2 }, {}, null]) {
  test(`workers ${JSON.stringify(workers)} are refused`, () => {
    const options: ServeOptions = JSON.parse(JSON.stringify({ port: 0 }));
    assert.throws(() => serve(() => [], Object.assign(options, { workers })), {
      name: "TypeError",
      message: /^Cannot use option "workers": found .*, expected a number of threads from 1 on, or \{ min, max \}$/,
    });
  });
}

test("workers are refused on a unix socket, which they could not share", () => {
  const unix = join(FOLDER, "socket");
  assert.throws(() => serve(() => [], { unix, workers: 2 }), { name: "TypeError", message: /"workers" with "unix"/ });
});

test("workers are refused with options that cannot be copied for them", () => {
  const environ = { "example.now": () => Date.now() };
  assert.throws(() => serve(() => [], { port: 0, environ, workers: 2 }), { name: "TypeError", message: /copied/ });
});

test(
  "workers on Deno without --unstable-net are refused, with the other way",
  { skip: RUNTIME === "deno" ? false : "Bun needs no flag for it" },
  async () => {
    await using child = program("run({ workers: 2 });", ["--no-prompt", "--allow-net", "--allow-read"]);
    const { code, errors } = await child.ended();
    assert.equal(code, 1);
    assert.match(errors, /Cannot use option "workers": Deno needs --unstable-net for it, or "deno serve --parallel"/);
  },
);
