/**
 * The sources in other people's TypeScript projects: they have no type errors there.
 *
 * @module
 */

import assert from "node:assert/strict";
import process from "node:process";
import test from "node:test";

import { install, makeProject, run, writeFiles } from "./npm_support.ts";
import { RUNTIME } from "./support.ts";

// Uses each kind of export, and adds to the environ, as a program of somebody else does.
const PROGRAM = `
import { files, fromFetch, pipeline, runApplication, serve, testEnviron, timeout, toFetch } from "./wsgi/mod.ts";
import type { Application, Environ, HeaderList } from "./wsgi/mod.ts";

const hello: Application = function* (environ: Environ, startResponse) {
  startResponse("200 OK", [["Content-Type", "text/plain"]]);
  yield new TextEncoder().encode(environ.PATH_INFO);
};
export const fetch = toFetch(pipeline(hello, (app) => timeout(app, { milliseconds: 10 })));
export const mounted = fromFetch((request) => new Response(request.body));
export const folder = files(".", { index: "index.htm" });
export const start = () => serve(hello, { port: 0 });

declare module "./wsgi/mod.ts" {
  interface Environ {
    "shop.user": { name: string };
    "shop.basket"?: string[];
  }
}

const HEADERS = [["Content-Type", "text/plain"], ["Cache-Control", "no-store"]] as const;
export const shop: Application = (environ, startResponse) => {
  const texts: (string | undefined)[] = [environ.REMOTE_USER, environ.AUTH_TYPE, environ["request.id"]];
  texts.push(environ["proxy_fix.original"]?.REMOTE_ADDR, environ["shop.user"].name, environ["shop.basket"]?.at(0));
  // @ts-expect-error: a header may be absent.
  environ.HTTP_COOKIE.split(";");
  const headers: HeaderList = HEADERS;
  // @ts-expect-error: the list may be a constant.
  headers.push(["X-Late", "yes"]);
  startResponse("200 OK", headers);
  return texts.map((text) => new TextEncoder().encode(text ?? ""));
};
export const collected = async () => new Headers((await runApplication(shop, testEnviron())).headers);
`;

/** The strictest options that a project may have, with its own for libraries and modules. */
function tsconfig(options: Record<string, unknown>): string {
  const strict = {
    strict: true,
    noUncheckedIndexedAccess: true,
    exactOptionalPropertyTypes: true,
    noImplicitOverride: true,
    noPropertyAccessFromIndexSignature: false,
    erasableSyntaxOnly: true,
    verbatimModuleSyntax: true,
    isolatedModules: true,
    allowImportingTsExtensions: true,
    skipLibCheck: true, // the types of Node are not ours to check
    noEmit: true,
  };
  return JSON.stringify({ compilerOptions: { ...strict, types: ["node"], ...options }, include: ["index.ts"] });
}

const NODE = { module: "nodenext", target: "es2024" };
const DOM = ["esnext", "dom", "dom.iterable", "dom.asynciterable"];

const LENIENT = { noUncheckedIndexedAccess: false, exactOptionalPropertyTypes: false };

const PROJECTS: Record<string, string> = {
  "Node with lib es2024": tsconfig({ ...NODE, lib: ["es2024"] }),
  "no option but strict": tsconfig({ ...NODE, lib: ["es2024"], ...LENIENT }),
  "esnext without DOM": tsconfig({ ...NODE, target: "esnext", lib: ["esnext"] }),
  "esnext with DOM": tsconfig({ ...NODE, target: "esnext", lib: DOM }),
  "esnext with DOM, without the types of its iterators": tsconfig({
    ...NODE,
    target: "esnext",
    lib: ["esnext", "dom"],
  }),
  "Cloudflare, with the types of Node": tsconfig({
    module: "preserve",
    moduleResolution: "bundler",
    target: "es2024",
    lib: ["es2024", "esnext.disposable"],
    types: ["@cloudflare/workers-types/latest", "node"],
  }),
  "a bundler, with DOM": tsconfig({ module: "preserve", moduleResolution: "bundler", target: "esnext", lib: DOM }),
};

// The compiler does not depend on the runtime that runs these tests.
const skip = RUNTIME === "bun" && "run on Deno";

test("a project of Node has no type errors in the sources", { skip }, async (context) => {
  // The compiler before the last takes many times as long, and gets one project.
  const plans = { "5.9": Object.entries(PROJECTS).slice(0, 1), "7": Object.entries(PROJECTS) };
  for (const [compiler, projects] of Object.entries(plans)) {
    const folder = makeProject({ "package.json": '{ "type": "module" }', "index.ts": PROGRAM });
    const problem = install(folder, `typescript@${compiler}`, "@types/node@24", "@cloudflare/workers-types@4");
    if (problem) return context.skip(problem);
    for (const [name, config] of projects) {
      await context.test(`TypeScript ${compiler}, ${name}`, () => {
        writeFiles(folder, { "tsconfig.json": config });
        const { status, stdout } = run(folder, "npx", "tsc");
        assert.equal(stdout, "");
        assert.equal(status, 0);
      });
    }
  }
});

test("a project of Deno, with no options of its own, has no type errors in the sources", { skip }, () => {
  const folder = makeProject({ "deno.json": "{}", "index.ts": PROGRAM });
  const { status, stderr } = run(folder, process.execPath, "check", "index.ts");
  assert.equal(status, 0, stderr);
});

test("a project as `bun init` makes it has no type errors in the sources", { skip }, (context) => {
  const folder = makeProject({});
  const { status, stderr } = run(folder, "npx", "-y", "bun@1.4.5", "init", "-y");
  if (status !== 0) {
    console.log(`Skipped, because bun init has failed: ${stderr.split("\n")[0]}`);
    return context.skip("bun init has failed");
  }
  writeFiles(folder, { "index.ts": PROGRAM });
  const { stdout } = run(folder, "npx", "tsc", "--noEmit", "--listFilesOnly");
  assert.match(stdout, /bun-types/);
  // The program alone: without a list of files, tsc would also check the tests of this project.
  const config = '{ "extends": "./tsconfig.json", "include": ["index.ts"] }';
  writeFiles(folder, { "tsconfig.program.json": config });
  const checked = run(folder, "npx", "tsc", "--noEmit", "-p", "tsconfig.program.json");
  assert.equal(checked.stdout, "");
  assert.equal(checked.status, 0);
});
