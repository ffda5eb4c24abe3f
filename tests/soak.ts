/**
 * A soak: for a given time, clients of all kinds ask applications of all kinds, on each runtime, and what is left in the
 * end is counted. `deno task soak 600` does so for ten minutes on each; a second number repeats another run's choices.
 *
 * This file is both programs: the clients, and, when it is started with "serve", the server.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type Application, application, type ResponseBody, serve } from "../mod.ts";
import { bytes, Child, Client, ok, type Reply, RUNTIME, within } from "./support.ts";

/** What the server counts. Each pair has to be equal in the end, and nothing may be closed twice. */
interface Counts {
  bodies: number;
  closes: number;
  twice: number;
  begun: number;
  ended: number;
  files: number;
  filesClosed: number;
  promised: number;
  done: number;
}

const COUNTS: Counts = {
  ...{ bodies: 0, closes: 0, twice: 0, begun: 0, ended: 0 },
  ...{ files: 0, filesClosed: 0, promised: 0, done: 0 },
};

/** A size of which neither a socket nor a block of a file takes all at once. */
const LARGE = 300_000;
const BLOCK = new Uint8Array(LARGE).fill(120);

/** Counts how often a body is closed, which has to be once. */
function counted(body: ResponseBody): ResponseBody {
  COUNTS.bodies++;
  const { close } = body;
  let closes = 0;
  return Object.assign(body, {
    close() {
      COUNTS.closes++;
      if (++closes > 1) COUNTS.twice++;
      return close?.call(body);
    },
  });
}

/** An application whose body is a generator, whose end is counted. */
function generating(generate: (...call: Parameters<Application>) => AsyncGenerator<Uint8Array>): Application {
  return (environ, startResponse) => {
    const chunks = async function* () {
      COUNTS.begun++;
      try {
        yield* generate(environ, startResponse);
      } finally {
        COUNTS.ended++;
      }
    };
    return counted(chunks());
  };
}

/** A moment of up to some milliseconds. */
function moment(most: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.random() * most));
}

/** One kind of request. */
interface Kind {
  app: Application;
  /** The status expected. */
  status: number;
  /** The body expected; none if the response breaks off. */
  body?: string;
  /** How many bytes are uploaded. */
  upload?: number;
}

const LINES = ["one\n", "two\n", "three\n"];

/** The kinds of requests, by their paths. */
const KINDS: Record<string, Kind> = {
  plain: {
    app: (_environ, startResponse) => (ok(startResponse), counted([bytes("plain")])),
    status: 200,
    body: "plain",
  },
  empty: {
    app: (_environ, startResponse) => (startResponse("204 No Content", []), counted([])),
    status: 204,
    body: "",
  },
  large: {
    app: (_environ, startResponse) => (ok(startResponse), counted([BLOCK])),
    status: 200,
    body: "x".repeat(LARGE),
  },
  late: {
    async app(environ, startResponse) {
      await moment(10);
      ok(startResponse);
      return counted([bytes(environ["fetch.context"]!.signal.aborted ? "left" : "late")]);
    },
    status: 200,
    body: "late",
  },
  ready: {
    app: (_environ, startResponse) => (ok(startResponse), counted(LINES.map(bytes).values())),
    status: 200,
    body: LINES.join(""),
  },
  stream: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse);
      for (const line of LINES) {
        yield bytes(line);
        await moment(10);
      }
    }),
    status: 200,
    body: LINES.join(""),
  },
  download: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse);
      for (let sent = 0; sent < LARGE; sent += 10_000) yield BLOCK.subarray(0, 10_000);
    }),
    status: 200,
    body: "x".repeat(LARGE),
  },
  written: {
    async app(_environ, startResponse) {
      const write = startResponse("200 OK", [["Content-Type", "text/plain"]]);
      for (const line of LINES) await write(bytes(line));
      return counted([bytes("end")]);
    },
    status: 200,
    body: `${LINES.join("")}end`,
  },
  file: {
    app(environ, startResponse) {
      ok(startResponse);
      COUNTS.files++;
      let position = 0;
      return counted(environ["wsgi.file_wrapper"]({
        read: (size) => BLOCK.subarray(position, position += size),
        close: () => void COUNTS.filesClosed++,
      }));
    },
    status: 200,
    body: "x".repeat(LARGE),
  },
  work: {
    app(environ, startResponse) {
      ok(startResponse);
      COUNTS.promised++;
      environ["fetch.context"]!.waitUntil(moment(50).then(() => COUNTS.done++));
      return counted([bytes("work")]);
    },
    status: 200,
    body: "work",
  },
  upload: {
    async app(environ, startResponse) {
      let size = 0;
      for (;;) {
        const { length } = await environ["wsgi.input"].read(10_000);
        size += length;
        if (length === 0) break;
      }
      ok(startResponse);
      return counted([bytes(String(size))]);
    },
    upload: LARGE,
    status: 200,
    body: String(LARGE),
  },
  echo: {
    app: generating(async function* (environ, startResponse) {
      ok(startResponse);
      for (;;) {
        const chunk = await environ["wsgi.input"].read(10_000);
        if (chunk.length === 0) break;
        yield chunk;
      }
    }),
    upload: LARGE,
    status: 200,
    body: "x".repeat(LARGE),
  },
  unread: {
    app: (_environ, startResponse) => (ok(startResponse), counted([bytes("unread")])),
    upload: LARGE,
    status: 200,
    body: "unread",
  },
  fails: {
    app() {
      throw new Error("It fails at once");
    },
    status: 500,
    body: "Internal Server Error\n",
  },
  replaced: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse);
      await moment(5);
      startResponse("503 Service Unavailable", [["Content-Type", "text/plain"]], new Error("It was caught"));
      yield bytes("caught");
    }),
    status: 503,
    body: "caught",
  },
  late_failure: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse);
      yield new Uint8Array(0);
      await moment(5);
      throw new Error("It fails before the first chunk");
    }),
    status: 500,
    body: "Internal Server Error\n",
  },
  breaks: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse);
      yield bytes("begun");
      await moment(5);
      throw new Error("It fails after the first chunk");
    }),
    status: 200,
  },
  short: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse, ["Content-Length", "100"]);
      yield bytes("short");
    }),
    status: 200,
  },
  long: {
    app: generating(async function* (_environ, startResponse) {
      ok(startResponse, ["Content-Length", "5"]);
      yield bytes("long");
      yield bytes(" and longer");
    }),
    status: 200,
    body: "long ",
  },
};

/** The server: answers by kind, and says what it has counted when it gets SIGUSR2. */
function serveKinds(): void {
  const app: Application = (environ, startResponse) => {
    const kind = KINDS[environ.PATH_INFO.slice(1)];
    return application(kind!.app)(environ, startResponse);
  };
  process.on("SIGUSR2", () => {
    const { gc, Bun } = globalThis as unknown as { gc?(): void; Bun?: { gc(isForced: boolean): void } };
    gc?.();
    Bun?.gc(true);
    console.log(`counts ${JSON.stringify(COUNTS)}`);
  });
  const errors = { write() {}, writelines() {}, flush() {} }; // failures are expected, by the thousand
  serve(app, { port: 0, errors, onListen: ({ port }) => console.log(`port ${port}`) });
}

/** Random numbers from 0 to 1 that are the same for the same seed (mulberry32). */
function randomFrom(seed: number): () => number {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let mixed = Math.imul(seed ^ seed >>> 15, 1 | seed);
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed);
    return ((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32;
  };
}

/** What the clients have seen. */
interface Tally {
  requests: number;
  whole: number;
  /** Responses that broke off, as they had to. */
  broken: number;
  left: number;
  /** What was not as expected. */
  problems: string[];
}

/** A client that sends requests, one after the other, and now and then leaves in the middle of one. */
async function ask(port: number, random: () => number, tally: Tally, isWanted: () => boolean): Promise<void> {
  const below = (count: number) => Math.floor(random() * count);
  const pause = (most: number) => new Promise((resolve) => setTimeout(resolve, random() * most));
  const names = Object.keys(KINDS);
  let client: Client | undefined;
  for (; isWanted(); tally.requests++) {
    client ??= await Client.connect({ hostname: "127.0.0.1", port });
    client.received = "";
    const name = names[below(names.length)]!;
    const { upload } = KINDS[name]!;
    const leaves = random() < 0.25;
    const cut = leaves ? random() : 1;
    await send(client, name, { cut, isChunked: random() < 0.5, pause: () => random() < 0.1 ? pause(5) : undefined });
    if (leaves) {
      if (upload === undefined && random() < 0.5) await client.until(/^HTTP/);
      else if (random() < 0.5) await pause(15);
      tally.left++;
      client.leave();
    } else {
      if (random() < 0.1) {
        client.pause();
        await pause(15);
        client.resume();
      }
      const reply = await client.reply();
      judge(name, reply, tally);
      const isLast = reply.headers.some(([name, value]) => name === "connection" && value === "close");
      if (reply.complete && !client.isClosed && !isLast && random() < 0.9) continue;
      client.leave();
    }
    client = undefined;
  }
  client?.leave();
}

/** Sends a request, or only the first part of one. */
async function send(
  client: Client,
  name: string,
  { cut, isChunked, pause }: { cut: number; isChunked: boolean; pause(): Promise<unknown> | undefined },
): Promise<void> {
  const { upload = 0 } = KINDS[name]!;
  const head = [`${upload ? "POST" : "GET"} /${name} HTTP/1.1`, "Host: test.example"];
  if (upload) head.push(isChunked ? "Transfer-Encoding: chunked" : `Content-Length: ${upload}`);
  await client.send(`${head.join("\r\n")}\r\n\r\n`);
  const size = 30_000;
  for (let sent = 0; sent < upload * cut && !client.isClosed; sent += size) {
    const block = "x".repeat(size);
    await client.send(isChunked ? `${size.toString(16)}\r\n${block}\r\n` : block);
    await pause();
  }
  if (upload && isChunked && cut === 1) await client.send("0\r\n\r\n");
}

/** Looks whether a reply is what its kind gives. On Bun, a response that breaks off may take its first chunk with it. */
function judge(name: string, { status, body, complete }: Reply, tally: Tally): void {
  const expected = KINDS[name]!;
  if (expected.body === undefined) {
    if (!complete) tally.broken++;
    else tally.problems.push(`${name} looks complete: ${status} ${JSON.stringify(body.slice(0, 80))}`);
  } else if (complete && status === expected.status && body === expected.body) tally.whole++;
  else tally.problems.push(`${name}: ${complete ? "" : "broken off, "}${status} ${JSON.stringify(body.slice(0, 80))}`);
}

/** What the system knows of a process. */
interface Usage {
  openFiles: number;
  /** Resident, in MiB. */
  memory: number;
}

function usageOf(pid: number): Usage {
  try {
    const kilobytes = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1];
    return { openFiles: readdirSync(`/proc/${pid}/fd`).length, memory: Math.round(Number(kilobytes) / 1024) };
  } catch {
    return { openFiles: NaN, memory: NaN }; // there is no /proc on this system
  }
}

/** What a soak has found. */
export interface Findings extends Tally {
  counts: Counts;
  /** When the server listens, when the clients have been at it for half a minute, and when all have gone. */
  usage: [start: Usage, warm: Usage, end: Usage];
  /** The exit status of the server, which is 0 only if nothing was under way when it had to stop. */
  status: number | null;
}

/**
 * Soaks a server.
 *
 * @param command The runtime, and its arguments before the file.
 * @param options How long, in seconds, how many clients at a time, the seed of their choices, and who is told how it goes.
 * @returns What was found.
 */
export async function soak(
  command: string[],
  options: { seconds: number; clients?: number; seed?: number; say?(line: string): void },
): Promise<Findings> {
  const { seconds, clients = 16, seed = 1, say = () => {} } = options;
  const [program = "", ...args] = command;
  await using server = new Child(program, [...args, fileURLToPath(import.meta.url), "serve"]);
  const { port } = await server.listening();
  const measure = async (): Promise<Usage> => {
    server.output = "";
    server.kill("SIGUSR2");
    await server.until(/^counts .*$/m);
    return usageOf(server.pid);
  };
  const start = await measure();
  const tally: Tally = { requests: 0, whole: 0, broken: 0, left: 0, problems: [] };
  const random = randomFrom(seed);
  const began = performance.now();
  const elapsed = () => (performance.now() - began) / 1000;
  const isWanted = () => elapsed() < seconds && tally.problems.length < 20;
  const asking = Promise.all(Array.from({ length: clients }, () => ask(port, random, tally, isWanted)));
  let warm: Usage = { openFiles: NaN, memory: NaN };
  let isOver = false;
  const over = asking.finally(() => isOver = true);
  for (let at = seconds / 10; !isOver; at += seconds / 10) {
    const timer = Promise.withResolvers<void>();
    const id = setTimeout(timer.resolve, Math.max(0, at - elapsed()) * 1000);
    await Promise.race([over, timer.promise]);
    clearTimeout(id);
    const usage = await measure();
    if (Number.isNaN(warm.memory) && elapsed() > 30) warm = usage;
    say(`${elapsed().toFixed(0)} s: ${tally.requests} requests, ${usage.memory} MiB, ${usage.openFiles} open files`);
  }
  await over;
  const settled = async () => {
    for (;;) {
      const end = await measure();
      const counts = JSON.parse(/^counts (.*)$/m.exec(server.output)![1]!) as Counts;
      const isSettled = leftIn(counts).length === 0 && !(end.openFiles > start.openFiles);
      if (isSettled || performance.now() > began + (seconds + 8) * 1000) return { end, counts };
    }
  };
  const { end, counts } = await within(settled(), "the end of all that is under way");
  server.kill("SIGTERM");
  const { code } = await server.ended();
  return { ...tally, counts, usage: [start, warm, end], status: code };
}

/** What has begun and has not ended, or has ended more than once. */
function leftIn(counts: Counts): string[] {
  const pairs = [["bodies", "closes"], ["begun", "ended"], ["files", "filesClosed"], ["promised", "done"]] as const;
  return pairs.filter(([begun, ended]) => counts[begun] !== counts[ended])
    .map(([begun, ended]) => `${counts[begun]} ${begun}, but ${counts[ended]} ${ended}`);
}

/**
 * What is wrong with what was found.
 *
 * Now and then Deno 2.9.6 keeps the connection of a client that has left in the middle of an upload that is echoed: of
 * some 5,000 one, and behind a handler without this library a good third. Three are allowed besides, because in a short
 * run it is chance how many there are.
 */
export function problemsOf({ problems, counts, left, usage: [start, warm, end], status }: Findings): string[] {
  const found = [...problems, ...leftIn(counts)];
  if (counts.twice > 0) found.push(`${counts.twice} bodies closed twice`);
  const more = end.openFiles - start.openFiles;
  if (more > 3 + left / 1000) found.push(`${more} more open files than at the start`);
  if (end.memory > warm.memory + 32) found.push(`${end.memory - warm.memory} MiB more than when it was warm`);
  if (status !== 0) found.push(`the server has ended with status ${status}`);
  return found;
}

const VERSIONS = { deno: "deno@2.9.6", bun: "bun@1.4.5" };

const COMMANDS = {
  deno: ["run", "--no-prompt", "--allow-all", "--v8-flags=--expose-gc"],
  bun: ["run"],
};

/** The command of a runtime: of the one that runs this, or one that is fetched, whose own process gets the signals. */
export function commandOf(runtime: keyof typeof COMMANDS): string[] {
  const fetched = [
    "-y",
    VERSIONS[runtime],
    ...(runtime === "deno" ? ["eval"] : ["-e"]),
    "console.log(process.execPath)",
  ];
  const program = runtime === RUNTIME ? process.execPath : execFileSync("npx", fetched, { encoding: "utf8" }).trim();
  return [program, ...COMMANDS[runtime]];
}

async function main(seconds = 60, seed = Date.now() % 2 ** 31): Promise<void> {
  console.log(`A soak of ${seconds} s on each runtime, with the seed ${seed}`);
  const rows: string[][] = [[
    "",
    "requests",
    "whole",
    "broken off",
    "left",
    "closed once",
    "open files",
    "MiB",
    "status",
  ]];
  for (const runtime of ["deno", "bun"] as const) {
    const say = (line: string) => console.log(`${runtime} ${line}`);
    const findings = await soak(commandOf(runtime), { seconds, seed, say });
    const { requests, whole, broken, left, counts, usage, status } = findings;
    rows.push([
      runtime,
      ...[requests, whole, broken, left].map(String),
      `${counts.closes} of ${counts.bodies}`,
      usage.map(({ openFiles }) => openFiles).join(", "),
      usage.map(({ memory }) => memory).join(", "),
      String(status),
    ]);
    for (const problem of problemsOf(findings)) {
      process.exitCode = 1;
      say(`PROBLEM: ${problem}`);
    }
  }
  rows.splice(1, 0, rows[0]!.map(() => "---"));
  console.log(`\n${rows.map((row) => `| ${row.join(" | ")} |`).join("\n")}`);
  console.log("\nOpen files and memory are those at the start, after half a minute, and at the end");
}

if (import.meta.main) {
  const [first, ...rest] = process.argv.slice(2);
  if (first === "serve") serveKinds();
  else await main(...[first, ...rest].filter((value) => value !== undefined).map(Number));
}
