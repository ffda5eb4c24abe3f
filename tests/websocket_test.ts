/**
 * WebSockets: beside an application, by the runtime's own server; and the error of an upgrade that reaches `fromFetch`.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { fromFetch, type Server } from "../mod.ts";
import { addressOf, assertServes, Child, Event, exchange, request, RUNTIME, start, workspace } from "./support.ts";

const { newPath } = workspace();

/** How a program splits off its WebSockets, as it is documented, and the port of the runtime's server. */
const DEPLOY = readFileSync(new URL("../examples/deploy/README.md", import.meta.url), "utf8");
const SPLIT = {
  deno: { port: 8000, code: /```ts ignore\n([^`]*Deno\.upgradeWebSocket[^`]*)```/ },
  bun: { port: 3000, code: /```ts ignore\n([^`]*server\.upgrade[^`]*)```/ },
}[RUNTIME];

/** Opens a WebSocket, sends a text, and gives what comes back, or "refused". */
async function echoed({ hostname, port }: Pick<Server, "hostname" | "port">, text: string): Promise<string> {
  const answered = new Event<string>("an answer over a WebSocket");
  const closed = new Event("the end of a WebSocket");
  const socket = new WebSocket(`ws://${hostname}:${port}/socket`);
  socket.onopen = () => socket.send(text);
  socket.onmessage = ({ data }) => {
    answered.happen(String(data));
    socket.close();
  };
  socket.onerror = () => answered.happen("refused");
  socket.onclose = () => closed.happen();
  const answer = await answered.wait();
  await closed.wait();
  return answer;
}

test("an application has WebSockets beside it, on one port", async () => {
  const file = newPath(".ts");
  writeFileSync(
    file,
    `
    import { toFetch } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    import { application as app } from ${JSON.stringify(new URL("../examples/hello.ts", import.meta.url).href)};
    ${SPLIT.code.exec(DEPLOY)![1]}
    console.log("ready");
    `,
  );
  const flags = RUNTIME === "deno" ? ["--no-prompt", "--allow-net"] : [];
  await using child = new Child(process.execPath, ["run", ...flags, file]);
  await child.until(/^ready$/m);
  const server = { hostname: "127.0.0.1", port: SPLIT.port };
  assert.equal(await echoed(server, "é"), "é");
  assert.equal((await exchange(server, request("/"))).body, "Hello, world!\n");
});

/** The upgrade of the runtime. */
interface Upgrades {
  Deno: { upgradeWebSocket(request: Request): { response: Response } };
}

test("an upgrade that reaches fromFetch fails, and says where it belongs", async () => {
  await using server = start(fromFetch((request: Request, info: never) => {
    if (!request.headers.has("Upgrade")) return new Response("Hello", { headers: { "Content-Type": "text/plain" } });
    if (RUNTIME === "deno") return (globalThis as unknown as Upgrades).Deno.upgradeWebSocket(request).response;
    (info as { upgrade(request: Request): boolean }).upgrade(request);
    return new Response("The upgrade has gone well");
  }));
  assert.equal(await echoed(server, "text"), "refused");
  await server.errors.matches(
    /^Application failed on GET \/socket: Error: Cannot upgrade the connection: WSGI has no WebSockets, expected an upgrade before the request reaches toFetch\(app\)\n/,
  );
  await assertServes(server);
  assert.equal(await (await fetch(addressOf(server))).text(), "Hello");
});
