/**
 * Memory does not grow with the length of a request or a response.
 *
 * @module
 */

import assert from "node:assert/strict";
import { connect } from "node:net";
import { test } from "node:test";
import type { Server } from "../mod.ts";
import { Client, evaluate, Event, exchange, KIB, MIB, parse, request } from "./support.ts";

const MEMORY_PROGRAM = `
  const collect = globalThis.gc ?? (() => Bun.gc(true));
  serve(async (environ, startResponse) => {
    startResponse("200 OK", [["Content-Type", "text/plain"]]);
    const text = (value) => [new TextEncoder().encode(String(value))];
    if (environ.PATH_INFO === "/memory") {
      collect();
      return text(process.memoryUsage().rss);
    }
    if (environ.PATH_INFO === "/download") {
      return (function* () {
        for (;;) yield new Uint8Array(${64 * KIB}).fill(65);
      })();
    }
    let size = 0;
    for (;;) {
      const chunk = await environ["wsgi.input"].read(${64 * KIB});
      if (chunk.length === 0) return text(size);
      size += chunk.length;
    }
  }, OPTIONS);
`;

/** Downloads so many bytes, and leaves. */
async function download(server: Pick<Server, "hostname" | "port">, size: number): Promise<void> {
  const enough = new Event("enough bytes");
  let received = 0;
  const socket = connect(server.port, server.hostname, () => void socket.write(request("/download")));
  socket.on("error", () => {});
  socket.on("data", (data: Uint8Array) => {
    received += data.length;
    if (received >= size) enough.happen();
  });
  await enough.wait();
  socket.destroy();
}

/** Uploads so many bytes, and tells how many the application has read. */
async function upload(server: Pick<Server, "hostname" | "port">, size: number): Promise<number> {
  const client = await Client.connect(server);
  await client.send(request("/upload", { method: "POST", headers: [`Content-Length: ${size}`] }));
  const block = new Uint8Array(256 * KIB);
  for (let sent = 0; sent < size; sent += block.length) await client.send(block);
  return Number(parse(await client.end()).body);
}

async function memory(server: Pick<Server, "hostname" | "port">): Promise<number> {
  return Number((await exchange(server, request("/memory"))).body);
}

for (const [name, transfer] of [["a response", download], ["a request", upload]] as const) {
  test(`memory does not grow with the length of ${name}`, async () => {
    await using child = evaluate(MEMORY_PROGRAM);
    const server = await child.listening();
    // Until garbage is collected for the first time it does grow, by about as much.
    await transfer(server, 64 * MIB);
    const size = 160 * MIB;
    // The moment of a garbage collection decides on some of it. What a body leaves behind, each of three does.
    let grown = Infinity;
    for (let round = 0; round < 3 && grown >= size / 2; round++) {
      const before = await memory(server);
      const read = await transfer(server, size);
      if (transfer === upload) assert.equal(read, size);
      grown = await memory(server) - before;
    }
    assert.ok(grown < size / 2, `grown by ${grown / MIB} MiB`);
  });
}

// A handler of Deno's own that reads such a body and keeps nothing takes 200 MiB. Before chunks were copied, it was 3 to
// 4 GiB. The moment of a garbage collection decides on a hundred more.
const MOST = 600;

const TINY_READS: { code: string; chunk?: string }[] = [
  { code: "input.read()" },
  { code: "input.read(1e9)" },
  { code: "all(() => input.read1())" },
  { code: "input.readline()" },
  { code: "input.readlines().then(([line]) => line)" },
  { code: "input.readlines()", chunk: "\n" },
  { code: "toRequest(environ).text()" },
];

for (const { code, chunk = "a" } of TINY_READS) {
  const what = chunk === "a" ? "chunks of one byte" : "empty lines, each a chunk";
  test(`an upload of 100,000 ${what}, read with ${code}, takes less than ${MOST} MiB`, async () => {
    // On a busy machine the runtime collects garbage late, which only adds to a peak: the least of three counts.
    let least = Infinity;
    for (let run = 0; run < 3 && least >= MOST * MIB; run++) least = Math.min(least, await peakOf(code, chunk));
    assert.ok(least > 0 && least < MOST * MIB, `${least / MIB} MiB`);
  });
}

/** Uploads 100,000 chunks to a program that reads them, and returns the peak of its memory, in bytes. */
async function peakOf(code: string, chunk: string): Promise<number> {
  const count = 100_000;
  await using child = evaluate(`
    import { toRequest } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};
    let peak = 0; // not maxRSS, which is the parent's where that has had more
    setInterval(() => peak = Math.max(peak, process.memoryUsage().rss), 5);
    const all = async (read) => {
      const parts = [];
      for (let part = await read(); part.length > 0; part = await read()) parts.push(part);
      return { parts, length: parts.reduce((sum, { length }) => sum + length, 0) };
    };
    serve(async (environ, startResponse) => {
      const input = environ["wsgi.input"];
      const { length } = await ${code};
      startResponse("200 OK", [["Content-Type", "text/plain"]]);
      return [new TextEncoder().encode(length + " " + peak)];
    }, OPTIONS);
  `);
  const client = await Client.connect(await child.listening());
  const headers = ["Transfer-Encoding: chunked"];
  await client.send(request("/", { method: "POST", headers }));
  for (let sent = 0; sent < count; sent += 1000) await client.send(`1\r\n${chunk}\r\n`.repeat(1000));
  await client.send("0\r\n\r\n");
  const [length, peak] = parse(await client.end()).body.split(" ").map(Number);
  assert.equal(length, count);
  return peak!;
}
