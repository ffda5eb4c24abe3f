/**
 * The benchmark: what a gateway costs beside a handler of the runtime's own, and beside others, as tables and a chart.
 *
 * It runs on Linux with two cores, of which the server has one and its clients the other. It fetches the frameworks
 * into a folder of its own, says how to install what else it misses, and measures without that. `deno task bench`
 * measures all; `--jobs hello`, `--runtimes deno`, `--rounds 3` and `--seconds 1` make it less. Every contender is
 * started anew in every round, one after the other, so that what else the machine does meets all alike. What counts is
 * the median of all rounds, with the median distance from it; ratios are those of a round. `--save run.json` keeps what
 * was measured, `--from run.json` takes it from there, and `--write` puts it into README.md and BENCHMARK.md.
 *
 * @module
 */

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { cpus, release, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { MIDDLEWARE } from "./contenders.ts";
import { Child, Client, freePort, KIB, MIB, parse, request } from "./support.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const CHART = "tests/bench.svg";
const CACHE = join(tmpdir(), "wsgi-bench");
const [FOLDER, UPLOAD] = [join(CACHE, "files"), join(CACHE, "upload")];
const ENVIRONMENT = { ...process.env, CACHE, FOLDER, LOG: join(CACHE, "access.log"), PYTHONPATH: CACHE, NO_COLOR: "1" };
const FRAMEWORKS = ["hono", "h3", "srvx", "elysia"];
const RUNTIMES = ["deno", "bun"];
const VERSIONS: Record<string, string> = { deno: "deno@2.9.6", bun: "bun@1.4.5" };

/** Debian's packages that a program or a contender needs. */
const DEBIAN: Record<string, string[]> = {
  wrk: ["wrk"],
  curl: ["curl"],
  gunicorn: ["gunicorn"],
  uwsgi: ["uwsgi-core", "uwsgi-plugin-python3"],
  waitress: ["python3-waitress"],
};

/** What a browser sends beside the host. */
const BROWSER = {
  "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36",
  "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
  "Accept-Encoding": "gzip, deflate, br, zstd",
  "Accept-Language": "en-US,en;q=0.9",
  "Cache-Control": "max-age=0",
  "Cookie": "theme=dark; session=0123456789abcdef",
  "Sec-Fetch-Dest": "document",
  "Sec-Fetch-Mode": "navigate",
  "Sec-Fetch-Site": "none",
  "Upgrade-Insecure-Requests": "1",
};

/** One measurement of a contender. */
interface Sample {
  /** Requests a second, or MiB a second. */
  speed: number;
  /** What the server computes, in microseconds a request, or a MiB; of a start, how many milliseconds it takes. */
  cost: number;
  /** The most memory that the server has had beside what it had at the start, in MiB. */
  memory: number;
}

/** A run: where and how it was made, and what was measured by job, runtime and contender. */
export interface Run {
  machine: string;
  versions: string[];
  pace: string;
  jobs: Record<string, Record<string, Record<string, Sample[]>>>;
}

/** A server that runs. */
interface Running extends AsyncDisposable {
  pid: number;
  port: number;
}

/** A request, and the status of its answer. */
interface Asking {
  path: string;
  headers: Record<string, string>;
  status: number;
}

/** In what the speed and the cost of a job are given. */
const UNITS = {
  request: ["/s", " µs"],
  MiB: [" MiB/s", " µs"],
  call: ["", " µs"],
  start: ["", " ms"],
  clients: ["", ""],
} as const;

/** A job, and how it is measured. */
interface Job {
  contenders: string[];
  unit: keyof typeof UNITS;
  /** The program that measures it. */
  needs?: "wrk" | "curl";
  /** The request that all have to answer alike. */
  asking?: Asking;
  /** Starts a server, and measures it, for some seconds where it can be for longer. */
  measure(start: () => Promise<Running>, seconds: number): Promise<Sample>;
}

function urlOf({ port }: Running, path = "/"): string {
  return `http://127.0.0.1:${port}${path}`;
}

/** The fields of a request, with the ETag that the server gives, if it is to find that nothing has changed. */
async function fieldsFor(server: Running, { path, headers, status }: Asking): Promise<string[]> {
  const fields = Object.entries(headers).map(([name, value]) => `${name}: ${value}`);
  if (status !== 304) return fields;
  const response = await fetch(urlOf(server, path));
  await response.body?.cancel();
  return [...fields, `If-None-Match: ${response.headers.get("ETag")}`];
}

/** Requests, for some seconds. */
function asking(contenders: string[], options: Partial<Asking> = {}): Job {
  const asking = { path: "/", headers: BROWSER, status: 200, ...options };
  return {
    contenders,
    unit: "request",
    needs: "wrk",
    asking,
    async measure(start, seconds) {
      await using server = await start();
      const fields = await fieldsFor(server, asking);
      const ask = (duration: number) => {
        const args = ["-t1", "-c32", `-d${duration}s`, ...fields.flatMap((field) => ["-H", field])];
        return execFileSync("taskset", ["-c", "1", "wrk", ...args, urlOf(server, asking.path)], { encoding: "utf8" });
      };
      ask(1);
      const before = cpuOf(server.pid);
      const said = ask(seconds);
      const after = cpuOf(server.pid);
      const [, requests] = /(\d+) requests in/.exec(said)!;
      const [, speed] = /Requests\/sec: +([\d.]+)/.exec(said)!;
      const [, others = "0"] = /Non-2xx or 3xx responses: (\d+)/.exec(said) ?? [];
      const [lost] = /Socket errors: connect [1-9].*/.exec(said) ?? [];
      if (requests === "0" || others !== (asking.status < 400 ? "0" : requests) || lost) {
        throw new Error(`Cannot use the measurement: wrk has found ${said}`);
      }
      return { speed: Number(speed), cost: (after - before) / Number(requests), memory: 0 };
    },
  };
}

/** Transfers of 1 GiB in all, which curl is told to count on its standard output. */
function transferring(contenders: string[], options: { path?: string; upload?: boolean } = {}): Job {
  const { path, upload = false } = options;
  const args = upload ? ["-T", UPLOAD] : ["-o", "/dev/null", "-w", "%{size_download}\n"];
  return {
    contenders,
    unit: "MiB",
    needs: "curl",
    async measure(start) {
      await using server = await start();
      const { pid } = server;
      const [memory, before, began] = [memoryOf(pid, "VmRSS"), cpuOf(pid), performance.now()];
      const command = ["-c", "1", "curl", "-sf", ...args, urlOf(server, path)];
      const said = execFileSync("taskset", command, { encoding: "utf8" });
      const seconds = (performance.now() - began) / 1000;
      const cost = (cpuOf(pid) - before) / KIB;
      const count = said.trim().split("\n").reduce((sum, line) => sum + Number(line), 0);
      if (count !== KIB * MIB) throw new Error(`Cannot use the measurement: ${count} bytes were transferred`);
      return { speed: KIB / seconds, cost, memory: memoryOf(pid, "VmHWM") - memory };
    },
  };
}

/** 500 clients that read the large file at 64 KiB a second each, for some seconds more than the others. */
function crowding(contenders: string[]): Job {
  return {
    contenders,
    unit: "clients",
    needs: "curl",
    async measure(start, seconds) {
      await using server = await start();
      const memory = memoryOf(server.pid, "VmRSS");
      const limits = ["--parallel-immediate", "--parallel-max", "250", "--limit-rate", "64k", "-o", "/dev/null"];
      const command = ["-c", "1", "curl", "-sZ", ...limits, urlOf(server, "/large.txt?[1-250]")];
      await using _half = new Child("taskset", command);
      await using _other = new Child("taskset", command);
      await new Promise((resolve) => setTimeout(resolve, 1000 * (seconds + 4)));
      const connections = readFileSync("/proc/net/tcp", "utf8").match(connectionsOf(server))?.length ?? 0;
      if (connections < 500) throw new Error(`Cannot use the measurement: only ${connections} clients were there`);
      return { speed: 0, cost: 0, memory: memoryOf(server.pid, "VmHWM") - memory };
    },
  };
}

/** What a middleware takes on top of hello, as the contender says. */
async function calling(start: () => Promise<Running>): Promise<Sample> {
  await using server = await start();
  return { speed: 0, cost: Number(await (await fetch(urlOf(server))).text()), memory: 0 };
}

/** The time from the start to the first byte, of a script that does nothing else, as the median of some. */
async function starting(start: () => Promise<Running>): Promise<Sample> {
  const times: number[] = [];
  while (times.length < 7) {
    const began = performance.now();
    await using server = await start();
    const client = await Client.connect({ hostname: "127.0.0.1", port: server.port });
    await client.send(request("/"));
    await client.until(/./);
    times.push(performance.now() - began);
  }
  return { speed: 0, cost: median(times), memory: 0 };
}

/** As many headers of a request as are wanted, with the host. */
function headersOf(count: number): Record<string, string> {
  return Object.fromEntries(Array.from({ length: count - 1 }, (_, at) => [`X-Header-${at}`, "the value of a header"]));
}

/** The commands of Python's servers, of Debian's packages, each with one process and otherwise as it comes. */
const PYTHON: Record<string, (job: string, address: string) => string[]> = {
  gunicorn: (job, address) => ["gunicorn", "--log-level", "error", "-b", address, `applications:${job}`],
  uwsgi: (job, address) => {
    const quiet = ["--disable-logging", "--plugin", "python3", "--module", `applications:${job}`];
    return ["uwsgi-core", "--http-socket", address, ...quiet];
  },
  // It says so when more requests wait than it has threads, and would stop when nobody reads that.
  waitress: (job, address) => ["sh", "-c", `exec waitress-serve --listen=${address} applications:${job} 2>/dev/null`],
};

/** The same applications as those of the contenders. */
const APPLICATIONS = `
import os, re
from json import dumps

HEADERS = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
ITEMS = [{"id": id, "name": f"The item with number {id}"} for id in range(20)]

def hello(environ, start_response):
    start_response("200 OK", HEADERS)
    return [b"Hello, world!"]

def json(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    path, accept, agent = environ["PATH_INFO"], environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_USER_AGENT", "")
    session = re.search("(?:^|; )session=([^;]*)", environ.get("HTTP_COOKIE", ""))
    said = {"path": path, "accept": accept, "agent": agent, "session": session[1] if session else "", "items": ITEMS}
    return [dumps(said, separators=(",", ":")).encode()]

def generator(environ, start_response):
    start_response("200 OK", HEADERS)
    yield from (b"one\\n", b"two\\n", b"three\\n")

def upload(environ, start_response):
    size = 0
    while chunk := environ["wsgi.input"].read(65536):
        size += len(chunk)
    start_response("200 OK", HEADERS)
    return [str(size).encode()]

def file(environ, start_response):
    path = os.environ["FOLDER"] + "/large.txt"
    start_response("200 OK", [*HEADERS, ("Content-Length", str(os.path.getsize(path)))])
    return environ["wsgi.file_wrapper"](open(path, "rb"), 65536)
`;

/** The scripts whose start is measured. */
const SCRIPT = `const headers = { "Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store" };
const onListen = ({ port }) => console.log("port " + port);
const options = { hostname: "127.0.0.1", port: 0, onListen };
`;
const SCRIPTS: Record<string, string> = {
  wsgi: `import { serve } from ${JSON.stringify(join(ROOT, "mod.ts"))};
${SCRIPT}serve((_environ, startResponse) => {
  startResponse("200 OK", Object.entries(headers));
  return [new TextEncoder().encode("Hello, world!")];
}, options);
`,
  raw: `${SCRIPT}const handler = () => new Response(new TextEncoder().encode("Hello, world!"), { headers });
if (globalThis.Deno) Deno.serve(options, handler);
else onListen(Bun.serve({ ...options, fetch: handler }));
`,
};

/** The jobs that Python's servers do too. */
const PYTHON_JOBS: Record<string, string[]> = {
  "hello": Object.keys(PYTHON),
  "hello, 1 header": Object.keys(PYTHON),
  "json": ["gunicorn"],
  "generator": ["gunicorn"],
  "upload": ["gunicorn"],
  "file, 256 MiB": ["gunicorn"],
};
const PAIR = ["raw", "wsgi"];
const COPIES = ["raw", "gather", "wsgi"];
const STREAMS = ["raw", "flushed", "wsgi"];
const LARGE = "/large.txt?[1-4]";

/** What is measured. What is before the comma is the contenders' name for it. */
export const JOBS: Record<string, Job> = {
  "hello": asking([...COPIES, ...FRAMEWORKS]),
  "hello, 1 header": asking([...COPIES, ...FRAMEWORKS], { headers: {} }),
  "hello, 50 headers": asking(COPIES, { headers: headersOf(50) }),
  "hello, 100 headers": asking(COPIES, { headers: headersOf(100) }),
  "json": asking([...COPIES, ...FRAMEWORKS], { path: "/items" }),
  "environ": asking(COPIES),
  "stack": asking([...PAIR, "hono"], { path: "/app" }),
  "generator": asking([...STREAMS, ...FRAMEWORKS]),
  "files, 4 KiB": asking([...PAIR, "hono"], { path: "/small.txt" }),
  "files, 304": asking(["wsgi", "hono"], { path: "/tagged.txt", status: 304 }),
  "files, 404": asking(["wsgi", "hono"], { path: "/none.txt", status: 404 }),
  "files, 256 MiB": transferring([...PAIR, "hono"], { path: LARGE }),
  "file, 256 MiB": transferring(PAIR, { path: LARGE }),
  "download": transferring(STREAMS),
  "upload": transferring([...PAIR, "hono"], { upload: true }),
  "upload by blocks": transferring(PAIR, { upload: true }),
  "files, 500 slow clients": crowding(["wsgi", "hono"]),
  "file, 500 slow clients": crowding(PAIR),
  "file by stream, 500 slow clients": crowding(["wsgi"]),
  "file by read, 500 slow clients": crowding(["wsgi"]),
  "cold start": {
    contenders: PAIR,
    unit: "start",
    asking: { path: "/", headers: {}, status: 200 },
    measure: starting,
  },
  "middleware": { contenders: Object.keys(MIDDLEWARE), unit: "call", measure: calling },
};

/** What a process and its children have computed, in microseconds. */
function cpuOf(pid: number): number {
  let total = 0;
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const folder = `/proc/${pid}/task/${task}`;
    total += Number(readFileSync(`${folder}/schedstat`, "utf8").split(" ")[0]) / 1000;
    for (const child of readFileSync(`${folder}/children`, "utf8").split(" ").filter(Boolean)) {
      total += cpuOf(Number(child));
    }
  }
  return total;
}

/** The memory of a process, now or at the most, in MiB. */
function memoryOf(pid: number, name: "VmRSS" | "VmHWM"): number {
  return Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) /
    1024;
}

/** A pattern for the connections that a server has accepted, in what the kernel says of all. */
function connectionsOf({ port }: Running): RegExp {
  return new RegExp(`^ *\\d+: [0-9A-F]+:${port.toString(16).toUpperCase().padStart(4, "0")} [0-9A-F:]+ 01 `, "gm");
}

/** Makes the folder with all that is needed, and says how to install what is missing. */
function prepare(): void {
  mkdirSync(FOLDER, { recursive: true });
  writeFileSync(join(CACHE, "deno.json"), '{ "nodeModulesDir": "manual" }');
  const packages = Object.values(DEBIAN).flat().filter((name) => !installedVersion(name));
  if (packages.length > 0) console.error(`Measuring without what \`apt-get install ${packages.join(" ")}\` installs`);
  if (!FRAMEWORKS.every(isInstalled)) {
    writeFileSync(join(CACHE, "package.json"), "{}");
    spawnSync("npm", ["install", "--silent", ...FRAMEWORKS], { cwd: CACHE });
  }
  for (const runtime of RUNTIMES) {
    const program = programOf(runtime);
    if (program) PROGRAMS.set(runtime, program);
  }
  const others = [
    ...FRAMEWORKS.filter((name) => !isInstalled(name)),
    ...RUNTIMES.filter((name) => !PROGRAMS.has(name)),
  ];
  if (others.length > 0) console.error(`Measuring without ${others.join(", ")}, which npm could not fetch`);
  writeFileSync(join(CACHE, "applications.py"), APPLICATIONS);
  for (const [contender, script] of Object.entries(SCRIPTS)) writeFileSync(join(CACHE, `${contender}.ts`), script);
  const sizes = { "small.txt": 4 * KIB, "tagged.txt": 4 * KIB, "large.txt": 256 * MIB, [UPLOAD]: KIB * MIB };
  for (const [name, size] of Object.entries(sizes)) {
    const path = resolve(FOLDER, name);
    writeFileSync(path, "");
    truncateSync(path, size);
    // A file that has just been changed has another ETag than a second later.
    utimesSync(path, 0, 0);
  }
}

/** Tells whether a program, a framework or a server of Python's is there. What is none of these always is. */
function isInstalled(name: string): boolean {
  if (FRAMEWORKS.includes(name)) return existsSync(join(CACHE, "node_modules", name));
  return (DEBIAN[name] ?? []).every(installedVersion);
}

/** The program of a runtime, or nothing: its own process, or what npm starts would be measured. */
function programOf(runtime: string): string {
  const print = [...(runtime === "deno" ? ["eval"] : ["-e"]), "console.log(process.execPath)"];
  return spawnSync("npx", ["-y", VERSIONS[runtime]!, ...print], { encoding: "utf8" }).stdout?.trim() ?? "";
}

/** The version of one of Debian's packages, or nothing. */
function installedVersion(name: string): string {
  const query = ["-W", "-f", "${db:Status-Status} ${source:Upstream-Version}", name];
  const { stdout } = spawnSync("dpkg-query", query, { encoding: "utf8" });
  return /^installed (.+)$/.exec(stdout)?.[1] ?? "";
}

/** The machine, the day, and all versions. */
function surroundings(): Pick<Run, "machine" | "versions"> {
  const packages = FRAMEWORKS.filter(isInstalled).map((name) => {
    return `${name} ${JSON.parse(readFileSync(join(CACHE, "node_modules", name, "package.json"), "utf8")).version}`;
  });
  const debian = [...Object.values(DEBIAN).flat(), "python3"].filter(installedVersion).map((name) => {
    return `${name} ${installedVersion(name)}`;
  });
  const day = new Date().toISOString().slice(0, 10);
  return {
    machine: `${cpus()[0]?.model}, ${cpus().length} cores, Linux ${/^[\d.]+/.exec(release())}; ${day}`,
    versions: [...Object.values(VERSIONS).map((version) => version.replace("@", " ")), ...packages, ...debian],
  };
}

const PROGRAMS = new Map<string, string>();

/** Starts a contender on the first core. */
async function startOf(runtime: string, options: { contender: string; job: string }): Promise<Running> {
  const { contender, job } = options;
  const start = (...command: string[]) => new Child("taskset", ["-c", "0", ...command], ENVIRONMENT);
  if (runtime === "python") {
    const port = await freePort();
    const child = start(...PYTHON[contender]!(job, `127.0.0.1:${port}`));
    const end = async () => {
      // The worker of gunicorn outlives a master that is killed by many seconds.
      child.kill("SIGINT");
      await child.ended();
    };
    for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
      const client = await Client.connect({ hostname: "127.0.0.1", port }).catch(() => {});
      client?.leave();
      if (client) return { pid: child.pid, port, [Symbol.asyncDispose]: end };
      await new Promise((resolve) => setTimeout(resolve));
    }
    throw new Error(`Cannot start ${contender}: ${child.errors}`);
  }
  const flags = runtime === "deno" ? ["-A", "--no-check", "--config", join(CACHE, "deno.json")] : [];
  const program = job === "cold start"
    ? [join(CACHE, `${contender}.ts`)]
    : [join(ROOT, "tests/contenders.ts"), contender, job];
  const child = start(PROGRAMS.get(runtime)!, "run", ...flags, ...program);
  const { port } = await child.listening();
  return { pid: child.pid, port, [Symbol.asyncDispose]: () => child[Symbol.asyncDispose]() };
}

/** What has to be the same in all answers to a request: of the environ, whose values differ, how many lines it has. */
async function answerOf(start: () => Promise<Running>, asking: Asking): Promise<string> {
  await using server = await start();
  const client = await Client.connect({ hostname: "127.0.0.1", port: server.port });
  await client.send(request(asking.path, { headers: await fieldsFor(server, asking) }));
  const { status, headers, body } = parse(await client.end());
  if (status !== asking.status) throw new Error(`The status is ${status}, expected ${asking.status}`);
  // What is said of what is not there is everybody's own.
  if (status === 404) return "";
  const kept = headers.filter(([name]) => name === "content-type" || name === "cache-control").sort();
  const said = body.includes("REQUEST_METHOD") ? body.split("\n").length : body;
  return JSON.stringify([status, kept, said]);
}

/** What this project is called among Python's servers. */
function ours(runtime: string): string {
  return `wsgi on ${runtime}`;
}

/** Measures all contenders of a job on a runtime, in rounds, once they have answered alike. */
async function compare(
  name: string,
  options: { runtime: string; rounds: number; seconds: number },
): Promise<Record<string, Sample[]>> {
  const { runtime, rounds, seconds } = options;
  const { contenders, asking, measure } = JOBS[name]!;
  const [job = ""] = name.split(",");
  // Python's servers have ours among them, since a ratio holds within a round.
  const all = runtime === "python" ? [...PYTHON_JOBS[name]!, ...[...PROGRAMS.keys()].map(ours)] : contenders;
  const own = all.filter(isInstalled);
  const start = (contender: string) => () => {
    const other = RUNTIMES.find((name) => contender === ours(name));
    return other ? startOf(other, { contender: "wsgi", job }) : startOf(runtime, { contender, job });
  };
  let expected: string | undefined;
  for (const contender of asking ? own : []) {
    const answer = await answerOf(start(contender), asking!);
    if (answer !== (expected ??= answer)) {
      throw new Error(`Cannot compare ${name} on ${runtime}: ${contender} answered ${answer}, expected ${expected}`);
    }
  }
  const samples = Object.fromEntries(own.map((contender): [string, Sample[]] => [contender, []]));
  for (let round = 0; round < rounds; round++) {
    for (const contender of own) {
      const again = (error: Error) => {
        console.error(`${name} on ${runtime}, ${contender}: ${error.message}; measuring again`);
        return measure(start(contender), seconds);
      };
      samples[contender]!.push(await measure(start(contender), seconds).catch(again));
    }
  }
  return samples;
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function costOf(samples: Sample[]): number {
  return median(samples.map(({ cost }) => cost));
}

/** A median with a unit, and the median distance from it, in percent. */
function spread(values: number[], unit = ""): string {
  const middle = median(values);
  const off = median(values.map((value) => Math.abs(value - middle)));
  const shown = unit ? Number(middle.toPrecision(3)).toLocaleString("en") : middle.toFixed(2);
  return `${shown}${unit} ± ${(100 * off / middle).toFixed(0)} %`;
}

/** How many times as cheap as others, round by round. */
function ratios(own: Sample[], as: Sample[]): number[] {
  return own.map(({ cost }, round) => (as[round]?.cost ?? NaN) / cost);
}

/** The goals: by the server's CPU, as a ratio; of a start, in milliseconds; of slow clients, in MiB. */
const GOALS: [job: string, against: string, goal: { atLeast?: number; atMost?: number }][] = [
  ["hello", "gather", { atLeast: 0.92 }],
  ["json", "gather", { atLeast: 0.92 }],
  ["environ", "gather", { atLeast: 0.92 }],
  ["stack", "hono", { atLeast: 1.2 }],
  ["files, 4 KiB", "hono", { atLeast: 1 }],
  ["files, 304", "hono", { atLeast: 1 }],
  ["files, 404", "hono", { atLeast: 1 }],
  ["files, 256 MiB", "raw", { atLeast: 0.9 }],
  ["generator", "flushed", { atLeast: 0.9 }],
  ["download", "flushed", { atLeast: 0.95 }],
  ["upload", "raw", { atLeast: 0.95 }],
  ["upload by blocks", "raw", { atLeast: 0.95 }],
  ["files, 500 slow clients", "idle", { atMost: 150 }],
  ["file, 500 slow clients", "idle", { atMost: 150 }],
  ["file by stream, 500 slow clients", "idle", { atMost: 150 }],
  ["file by read, 500 slow clients", "idle", { atMost: 150 }],
  ["cold start", "raw", { atMost: 15 }],
];

/** What is said in the README: a job in its words, and the raw handler, if one does the same, and the job of Python's. */
const SUMMARY: [words: string, job: string, options?: { raw?: string; python?: string }][] = [
  ["hello, world", "hello"],
  ["JSON of 1 KiB, with a cookie", "json"],
  ["five middleware", "stack", { raw: "" }],
  ["a file of 4 KiB", "files, 4 KiB"],
  ["a file of 256 MiB", "files, 256 MiB", { python: "file, 256 MiB" }],
  ["three chunks, each sent before the next is made (Hono: all at once)", "generator", { raw: "flushed" }],
  ["an upload of 1 GiB", "upload"],
];

/** A table in Markdown. */
function tableOf(head: string[], rows: string[][]): string {
  return [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

/** Whom this project is compared with, and where. */
interface Against {
  job: string;
  runtime: string;
  against: string;
}

/** What this project needs, as a ratio to another: how many times as much that one does, round by round. */
function ratiosOf({ jobs }: Run, { job, runtime, against }: Against): number[] {
  const isPython = against in PYTHON;
  const contenders = jobs[job]?.[isPython ? "python" : runtime] ?? {};
  return ratios(contenders[isPython ? ours(runtime) : "wsgi"] ?? [], contenders[against] ?? []);
}

/** A figure that has a goal, and how it is shown. */
function figureOf(run: Run, options: Against): [figure: number, shown: string] {
  const { job, runtime, against } = options;
  const { wsgi = [], [against]: other = [] } = run.jobs[job]?.[runtime] ?? {};
  const [all, { unit }] = [ratiosOf(run, options), JOBS[job]!];
  let figure = median(all);
  if (unit === "clients") figure = Math.max(...wsgi.map(({ memory }) => memory));
  if (unit === "start") figure = costOf(wsgi) - costOf(other);
  const shown = figure.toFixed(2);
  return [Number(shown), { clients: `${shown} MiB`, start: `${shown} ms more` }[unit as string] ?? spread(all)];
}

/** The goals that the run can speak of. What is shown of a figure is what is judged. */
function goalsOf(run: Run): string {
  const rows = GOALS.flatMap(([job, against, { atLeast = -Infinity, atMost = Infinity }]) =>
    RUNTIMES.flatMap((runtime) => {
      const [figure, shown] = figureOf(run, { job, runtime, against });
      const goal = atMost < Infinity ? `at most ${atMost}` : `at least ${atLeast}`;
      const distance = Math.max(figure - atMost, atLeast - figure);
      const result = distance > 0 ? `missed by ${distance.toFixed(2)}` : "met";
      return Number.isFinite(figure) ? [[job, against, runtime, shown, goal, result]] : [];
    })
  );
  return tableOf(["job", "against", "runtime", "measured", "goal", ""], rows);
}

/** What somebody who chooses asks. */
function summaryOf(run: Run): string {
  const rows = SUMMARY.map(([words, job, { raw = "raw", python = job } = {}]) => {
    const sides = [[job, raw], [job, "hono"], [python, "gunicorn"]] as const;
    const cells = sides.flatMap(([job, against]) =>
      RUNTIMES.map((runtime) => {
        const ratio = median(ratiosOf(run, { job, runtime, against }));
        return Number.isNaN(ratio) ? "–" : ratio.toFixed(2);
      })
    );
    return [words, ...cells];
  });
  const heads = ["raw", "Hono", "gunicorn"].flatMap((name) => [`${name}, Deno`, `${name}, Bun`]);
  return tableOf(["", ...heads], rows);
}

/** What each middleware takes. */
function middlewareOf({ jobs }: Run): string {
  const rows = Object.keys(MIDDLEWARE).map((name) => [
    name,
    ...RUNTIMES.map((runtime) => {
      const samples = jobs["middleware"]?.[runtime]?.[name];
      return samples ? `${costOf(samples).toFixed(1)} µs` : "";
    }),
  ]);
  return tableOf(["middleware", "Deno", "Bun"], rows);
}

/** All that was measured. */
function figuresOf({ jobs }: Run): string {
  const rows = Object.entries(jobs).flatMap(([job, runtimes]) =>
    Object.entries(runtimes).flatMap(([runtime, contenders]) =>
      Object.entries(contenders).map(([contender, samples]) => {
        const [speed, cost] = UNITS[JOBS[job]!.unit];
        const raw = contenders["raw"];
        const memory = Math.max(...samples.map(({ memory }) => memory));
        return [
          job,
          runtime,
          contender,
          speed && spread(samples.map(({ speed }) => speed), speed),
          cost && spread(samples.map(({ cost }) => cost), cost),
          cost && raw ? spread(ratios(samples, raw)) : "",
          // That of Python's workers is not counted.
          memory > 0 && runtime !== "python" ? `${memory.toFixed(0)} MiB` : "",
        ];
      })
    ).filter(() => job !== "middleware")
  );
  return tableOf(["job", "runtime", "contender", "speed", "server CPU", "as cheap as raw", "more memory"], rows);
}

const CHART_TITLE = "How fast each contender is by the CPU that it needs for a request, the raw handler being 1";
const CHARTED = ["hello", "json"];
const STYLE = `
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .head, text.own { font-weight: 600 }
  .quiet { fill: #59636e }
  .end { text-anchor: end }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .bar { fill: #afb8c1 }
  .bar.own { fill: #0969da }
  .line { stroke: #818b98; stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .quiet { fill: #9198a1 }
    .card { fill: #0d1117; stroke: #3d444d }
    .bar { fill: #57606a }
    .bar.own { fill: #4493f8 }
  }
`;

/** The bars of one job on one runtime, below each other. */
function panelOf(title: string, contenders: Record<string, Sample[]>): string {
  const unit = 220; // The width of the raw handler's bar.
  const bars = Object.entries(contenders).map(([contender, samples], row) => {
    const ratio = median(ratios(samples, contenders["raw"]!));
    const [y, own] = [14 + row * 24, contender === "wsgi" ? "own" : ""];
    const width = Math.min(ratio, 1.15) * unit;
    return `
    <text class="end ${own}" x="64" y="${y + 13}">${contender}</text>
    <rect class="bar ${own}" x="72" y="${y}" width="${width.toFixed(1)}" height="18" rx="2"/>
    <text class="end ${own}" x="354" y="${y + 13}">${ratio.toFixed(2)}</text>
    <text class="end quiet" x="414" y="${y + 13}">${costOf(samples).toFixed(1)} µs</text>`;
  });
  const height = 14 + bars.length * 24;
  return `
    <text class="head" x="72">${title}</text>
    <line class="line" x1="${72 + unit}" x2="${72 + unit}" y1="8" y2="${height}"/>${bars.join("")}`;
}

/** The chart: how cheap a request is, the raw handler being 1, with a panel for each job and runtime. */
function chartOf({ jobs }: Run): string {
  const panels = CHARTED.flatMap((job, row) =>
    RUNTIMES.map((runtime, column) => {
      const contenders = jobs[job]?.[runtime];
      const panel = contenders ? panelOf(`${job}, on ${runtime}`, contenders) : "";
      return `<g transform="translate(${20 + column * 430} ${84 + row * 205})">${panel}</g>`;
    })
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 488" role="img" aria-labelledby="title">
  <title id="title">${CHART_TITLE}</title>
  <style>${STYLE}</style>
  <rect class="card" x="0.5" y="0.5" width="879" height="487" rx="8"/>
  <text class="title" x="20" y="32">Requests for the same server CPU, as a share of the raw handler's</text>
  <text class="quiet" x="20" y="52">Longer is better. Beside it, what a request costs.</text>
  ${panels.join("\n  ")}
</svg>
`;
}

/** What is between the markers of a document. */
export const MARKED = /(?<=<!-- bench -->\n)[^]*(?=<!-- \/bench -->)/;

/** What stands in each document, by its path. */
export function reportsOf(run: Run): Record<string, string> {
  const { machine, versions, pace } = run;
  return {
    "README.md": `
![${CHART_TITLE}](${CHART})

How much of the server's CPU the others need, ours being 1: the runtime's raw handler, Hono, and Python's gunicorn. Above 1,
ours is cheaper (medians of alternating rounds; ${machine}).

${summaryOf(run)}
`,
    "tests/BENCHMARK.md": `
${machine}; ${versions.join(", ")}; ${pace}.

${goalsOf(run)}

${middlewareOf(run)}

<details>
<summary>All figures</summary>

${figuresOf(run)}

</details>
`,
  };
}

async function measureAll(options: Record<"jobs" | "runtimes" | "rounds" | "seconds" | "save", string>): Promise<Run> {
  const [rounds, seconds] = [Number(options.rounds), Number(options.seconds)];
  const runtimes = options.runtimes.split(",");
  prepare();
  const run: Run = { ...surroundings(), pace: `rounds: ${rounds}, seconds for each: ${seconds}`, jobs: {} };
  for (const [name, { needs = "" }] of Object.entries(JOBS)) {
    if (!name.startsWith(options.jobs) || !isInstalled(needs)) continue;
    const results: Run["jobs"][string] = run.jobs[name] = {};
    for (const runtime of runtimes) {
      if (runtime === "python" ? !(name in PYTHON_JOBS) : !PROGRAMS.has(runtime)) continue;
      const began = performance.now();
      results[runtime] = await compare(name, { runtime, rounds, seconds });
      console.error(`${name}, ${runtime}: ${((performance.now() - began) / 1000).toFixed(0)} s`);
      if (options.save) writeFileSync(options.save, JSON.stringify(run));
    }
  }
  return run;
}

/** Puts the reports into the documents, and the chart beside this file. */
function publish(run: Run): void {
  for (const [path, report] of Object.entries(reportsOf(run))) {
    const [before, after] = readFileSync(join(ROOT, path), "utf8").split(MARKED);
    if (after === undefined) {
      throw new Error(`Cannot write the report: ${path} has no <!-- bench --> and <!-- /bench -->`);
    }
    writeFileSync(join(ROOT, path), `${before}${report}\n${after}`);
  }
  writeFileSync(join(ROOT, CHART), chartOf(run));
  const written = [...Object.keys(reportsOf(run)), CHART];
  execFileSync(process.execPath, ["fmt", "--quiet", ...written], { cwd: ROOT, stdio: "inherit" });
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      jobs: { type: "string", default: "" },
      runtimes: { type: "string", default: "deno,bun,python" },
      rounds: { type: "string", default: "5" },
      seconds: { type: "string", default: "2" },
      save: { type: "string", default: "" },
      from: { type: "string" },
      write: { type: "boolean" },
    },
  });
  const run: Run = values.from ? JSON.parse(readFileSync(values.from, "utf8")) : await measureAll(values);
  for (const report of Object.values(reportsOf(run))) console.log(report);
  if (values.write) publish(run);
}

if (import.meta.main) await main();
