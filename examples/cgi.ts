/**
 * Any CGI program (RFC 3875) as an application, because an environ has the variables of CGI.
 *
 * To serve a folder of git repositories, run
 * `bun run examples/cgi.ts env GIT_PROJECT_ROOT=/folder GIT_HTTP_EXPORT_ALL=1 git http-backend`, or the same with
 * `deno run --allow-net --allow-run --allow-env`, and clone with `git clone http://localhost:8000/repository`.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { STATUS_CODES } from "node:http";
import process from "node:process";
import { createInterface } from "node:readline";
import { pipeline } from "node:stream/promises";
import { type Application, type Environ, errorPage, serve } from "../mod.ts";

// Programs obey HTTP_PROXY (https://httpoxy.org), and passwords are not for them (RFC 3875, section 4.1.18).
const VARIABLE = /^(?!HTTP_(?:PROXY|(?:PROXY_)?AUTHORIZATION)$)[A-Z][A-Z\d_]*$/;
// A field without the blanks around its value, which Headers of Deno would take out in quadratic time.
const FIELD = /^([^:]+):[ \t]*([^]*[^ \t])?/;
const MAX_HEADER = 65_536;

/** Starts a program by Unix's shell, with the variables of the environ, and of the server's own with PATH alone. */
function start(command: readonly string[], environ: Environ) {
  const env: Record<string, string> = { GATEWAY_INTERFACE: "CGI/1.1", PATH: process.env.PATH ?? "" };
  let script = "";
  for (const [name, value] of Object.entries(environ)) {
    if (typeof value !== "string" || !VARIABLE.test(name)) continue;
    if (value.includes("\0")) throw Object.assign(new Error(`Cannot pass on a null byte in ${name}`), { status: 400 });
    env[name] = value;
    if (!/[\x80-\xff]/.test(value)) continue;
    // The runtimes write text as UTF-8, and the shell's printf any byte. The dot keeps "$()" from dropping line feeds.
    const escaped = value.replace(/\W/g, (byte) => `\\0${byte.charCodeAt(0).toString(8).padStart(3, "0")}`);
    script += `${name}=$(printf %b '${escaped}.'); ${name}=\${${name}%.}; `;
  }
  return spawn("/bin/sh", ["-c", `${script}exec "$@"`, "sh", ...command], { env, detached: true });
}

/** Makes an application of a command that runs a CGI program. */
export function cgi(command: readonly string[]): Application {
  return errorPage(async (environ, startResponse) => {
    const { "wsgi.input": input, "wsgi.errors": errors, "fetch.context": context } = environ;
    context?.signal.throwIfAborted();
    const program = start(command, environ);
    const exited = once(program, "exit");
    const output: AsyncIterator<Buffer> = program.stdout[Symbol.asyncIterator]();
    const close = (error?: unknown) => {
      program.stdout.destroy(error as Error);
      try {
        // The whole group, because a program may wait for another one that it has started.
        if (program.exitCode === null && program.signalCode === null) process.kill(-program.pid!, "SIGTERM");
      } catch {
        // It has just ended.
      }
    };
    context?.signal.addEventListener("abort", () => close());
    await once(program, "spawn");
    createInterface(program.stderr).on("line", (line) => errors.write(`${line}\n`));
    const pieces = async function* () {
      try {
        for (let piece; (piece = await input.read1()).length > 0;) yield piece;
      } catch (error) {
        close(error); // before the program finds an end of its input, which would look complete
      }
    };
    pipeline(pieces, program.stdin).catch(() => {}); // it need not read its input (RFC 3875, section 4.2)
    try {
      const end = /\r?\n\r?\n/g;
      let head = "";
      const fail = (what: string) => {
        const found = `found ${JSON.stringify(head.slice(0, 80))} and ${what}, expected fields and an empty line`;
        return Object.assign(new Error(`Cannot read the header of "${command[0]}": ${found}`), { status: 502 });
      };
      do {
        const { value } = await output.next();
        if (value === undefined) throw fail(`its end (${(await exited).join("")})`);
        if (head.length > MAX_HEADER) throw fail("more than it may have");
        end.lastIndex = Math.max(head.length - 3, 0); // not from the start, or many pieces take quadratic time
        head += value.toString("latin1");
      } while (!end.test(head));
      const lines = head.slice(0, end.lastIndex).split(/\r?\n/).slice(0, -2);
      const fields = new Headers();
      for (const line of lines) {
        const [, name, value = ""] = FIELD.exec(line) ?? [];
        if (name === undefined) throw fail(`the line ${JSON.stringify(line.slice(0, 80))}`);
        fields.append(name, value);
      }
      // Without a status a Location is a redirect, here one of the client's (RFC 3875, section 6.2).
      const status = fields.get("status") ?? (fields.has("location") ? "302" : "200");
      fields.delete("status");
      startResponse(status.includes(" ") ? status : `${status} ${STATUS_CODES[status] ?? "Unknown"}`, [...fields]);
      const chunks = async function* () {
        yield Buffer.from(head.slice(end.lastIndex), "latin1");
        yield* { [Symbol.asyncIterator]: () => output };
        const [, signal] = await exited;
        if (signal) throw new Error(`Cannot complete the response: "${command[0]}" was ended by ${signal}`);
      };
      return Object.assign(chunks(), { close });
    } catch (error) {
      close();
      throw error;
    }
  });
}

export const application: Application = cgi(process.argv.slice(2));

if (import.meta.main) serve(application);
