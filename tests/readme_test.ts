/**
 * Every command and every program of the README, as written.
 *
 * @module
 */

import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Application, serve } from "../mod.ts";
import { Child, RUNTIME, text, within } from "./support.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const README = readFileSync(join(ROOT, "README.md"), "utf8");
const [PROGRAM = "", RECIPES = ""] = blocks("ts");
const [TEST = ""] = blocks("ts ignore");
const IMPORTED = 'from "http://localhost:8080/mod.ts"';
const COMMANDS = blocks("sh").join("").trim().split("\n");

/** The blocks of code in the README that are in one language. */
function blocks(language: string): string[] {
  return [...README.matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\`$`, "gm"))].map(([_all, code]) => code!);
}

/** Serves the files of the repository, as any web server would. */
const files: Application = (environ, startResponse) => {
  startResponse("200 OK", [["Content-Type", "text/plain"]]);
  return [readFileSync(join(ROOT, environ.PATH_INFO))];
};

// What npm has fetched once it does not ask for again, and what it cannot fetch it says at once.
const NPM = { npm_config_prefer_offline: "true", npm_config_fetch_retries: "0" };

/** Tells whether npm has the package that a command begins with, or can fetch it. */
function isInstallable(command: string): boolean {
  const [npx = "", yes = "", name = ""] = command.split(" ");
  return spawnSync(npx, [yes, name, "--version"], { env: { ...process.env, ...NPM }, stdio: "ignore" }).status === 0;
}

/** Runs a command until it serves a page, and gives the page. */
async function pageOf(command: string, url: string, folder: string): Promise<string> {
  const child = spawn(command, {
    cwd: command.endsWith(" program.ts") ? folder : ROOT,
    shell: true,
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      // Modules from a URL are kept by their URL, and those of another run are not these.
      DENO_DIR: join(folder, "deno"),
      // The runtime that runs the tests is the one that is installed.
      PATH: `${dirname(process.execPath)}${delimiter}${process.env.PATH}`,
      NO_COLOR: "1",
      ...NPM,
    },
  });
  let output = "";
  for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (data: Uint8Array) => output += text(data));
  const closed = new Promise((resolve) => child.once("close", resolve));
  try {
    return await within(page(url, child, () => output), `${url}: ${output}`);
  } finally {
    try {
      process.kill(-child.pid!, "SIGKILL");
    } catch {
      // It has ended.
    }
    await closed;
  }
}

/** Fetches a page from a server that is starting. */
async function page(url: string, child: ChildProcess, output: () => string): Promise<string> {
  for (;;) {
    try {
      return await (await fetch(url)).text();
    } catch {
      assert.equal(child.exitCode, null, output());
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
}

/** What each command of the README serves, and what its page says. Others have a test of their own. */
const SERVERS: Record<string, [url: string, page: RegExp]> = {
  "npx -y deno@2.9.6 run --allow-net examples/environ.ts": ["http://localhost:8000/path", /^PATH_INFO: \/path$/m],
  "npx -y bun@1.4.5 run examples/environ.ts": ["http://localhost:8000/path", /^PATH_INFO: \/path$/m],
  "deno run --allow-net --allow-read examples/files.ts . 8080": ["http://localhost:8080/mod.ts", /^export interface /m],
  "deno run --allow-net http://localhost:8080/examples/environ.ts": [
    "http://localhost:8000/",
    /^wsgi\.version: \[1,0\]$/m,
  ],
  "deno run --allow-net --allow-import=localhost:8080 program.ts": ["http://localhost:8000/", /^Hello 127\.0\.0\.1$/m],
  "deno serve --parallel examples/fetch.ts": ["http://localhost:8000/", /^Hello, world!$/m],
  "bun run examples/fetch.ts": ["http://localhost:3000/", /^Hello, world!$/m],
};

for (const command of COMMANDS) {
  // A command of the other runtime is tested when that runs the tests.
  if (/^(deno|bun) /.test(command) && !command.startsWith(RUNTIME)) continue;
  test(`the README's command works: ${command}`, async (context) => {
    if (command.startsWith("npx ") && !isInstallable(command)) {
      return context.skip("npm has not got it yet, and cannot fetch it without a network");
    }
    const [url, expected] = SERVERS[command]!;
    const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
    copyFileSync(join(ROOT, "deno.json"), join(folder, "deno.json"));
    writeFileSync(join(folder, "program.ts"), PROGRAM.replace('from "./mod.ts"', IMPORTED));
    const port = command.endsWith("8080") ? 0 : 8080;
    await using _files = serve(files, { port, onListen: () => {}, shutdownTimeout: 0 });
    try {
      assert.match(await pageOf(command, url, folder), expected);
      // A lock file would refuse the modules of this folder after their next change.
      assert.ok(!existsSync(join(folder, "deno.lock")));
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
}

test("the README's program is whole, and has at most eight lines", () => {
  assert.ok(PROGRAM.trim().split("\n").length <= 8);
  assert.match(PROGRAM, /^import .* from "\.\/mod\.ts";$/m);
});

test("every command of the README is tested", () => {
  assert.deepEqual(COMMANDS.filter((command) => !(command in SERVERS)), []);
});

test("the README names the program whose module comes from a URL", () => {
  assert.ok(README.includes(`\`${IMPORTED}\``));
});

test("the README's test is run by its command", () => {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
  try {
    const absolute = (code: string) => code.replaceAll('"./mod.ts"', `"${new URL("../mod.ts", import.meta.url)}"`);
    writeFileSync(join(folder, "recipes.ts"), absolute(RECIPES));
    writeFileSync(join(folder, "recipes_test.ts"), absolute(TEST));
    mkdirSync(join(folder, "examples"));
    const [, command = ""] = new RegExp(`\`${RUNTIME} (test .*?)\``).exec(README) ?? [];
    const { status, stdout, stderr } = spawnSync(process.execPath, command.split(" "), { cwd: folder });
    assert.equal(status, 0, text(stderr));
    assert.match(text(stdout) + text(stderr), /\b1 pass/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("the README has at most 300 lines", () => {
  assert.ok(README.trimEnd().split("\n").length <= 300);
});

/** What the README's recipes answer. Each comment has the command of its recipe. */
const ANSWERS: [path: string, init: RequestInit, status: number, header: string | undefined, body: RegExp][] = [
  ["/query?name=you", {}, 200, undefined, /^Hello you\n$/],
  ["/json", { method: "POST", body: '{ "name": "you" }' }, 200, "application/json", /^{"received":{"name":"you"}}$/],
  ["/json", { method: "POST", body: "{" }, 400, undefined, /^400 Bad Request\n.*JSON/],
  ["/form", { method: "POST", body: new URLSearchParams({ name: "y&u" }) }, 200, undefined, /^Hello y&u\n$/],
  [
    "/cookie",
    { headers: { Cookie: "visits=1" } },
    200,
    "visits=2; Max-Age=60; Path=/; HttpOnly; SameSite=Lax",
    /^Visit 2\n$/,
  ],
  ["/items/7", {}, 200, undefined, /^Item 7\n$/],
  ["/items/x", {}, 404, undefined, /^404 Not Found\nThere is no such item\n$/],
  ["/items/7", { method: "DELETE" }, 405, "GET, HEAD", /^405 Method Not Allowed\nItems are for reading\n$/],
  ["/upload", { method: "PUT", body: "x".repeat(100_000) }, 200, undefined, /^100000 bytes\n$/],
  ["/files/hello.ts", {}, 200, undefined, /The shortest program/],
  ["/download", {}, 401, 'Basic realm="downloads", charset="UTF-8"', /Unauthorized/],
  [
    "/download",
    { headers: { Authorization: `Basic ${btoa("user:password")}` } },
    200,
    'attachment; filename="licence.txt"',
    /MIT License/,
  ],
];

test("the README's recipes answer as their comments say", async () => {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
  const file = join(folder, "recipes.ts");
  const program = RECIPES.replaceAll('"./', `"${new URL("..", import.meta.url)}`)
    .replace(/(?<=files\(|createReadStream\()"(\w+)"/g, (_all, path) => JSON.stringify(join(ROOT, path)))
    .replace("serve(application)", "serve(application, { port: 0 })");
  writeFileSync(file, program);
  const flags = RUNTIME === "deno" ? ["--no-prompt", "--allow-net", "--allow-read"] : [];
  try {
    await using child = new Child(process.execPath, ["run", ...flags, file]);
    const [origin] = await child.until(/http:\S+(?=\/)/);
    for (const [path, init, status, header, body] of ANSWERS) {
      const response = await fetch(`${origin}${path}`, init);
      const page = await response.text();
      const answer = [path, response.status, ...response.headers.values(), page].join("\n");
      assert.equal(response.status, status, answer);
      assert.ok(header === undefined || [...response.headers.values()].includes(header), answer);
      assert.match(page, body);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
