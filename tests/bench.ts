/**
 * The benchmark: what a gateway costs beside a handler of the runtime's own, and beside others, as a table in Markdown.
 *
 * It runs on Linux with two cores, of which the server has one and its clients the other, and needs wrk, curl, gunicorn,
 * uwsgi-core, uwsgi-plugin-python3 and python3-waitress, which are Debian's packages. `deno task bench` measures all;
 * `--jobs hello`, `--runtimes deno`, `--rounds 3` and `--seconds 1` make it less. Every contender is started anew in
 * every round, one after the other, so that what else the machine does meets all alike; of all rounds the median counts,
 * with the median distance from it.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Child, Client, freePort, request } from "./support.ts";

const CACHE = join(tmpdir(), "wsgi-bench");
const FILE = join(CACHE, "file");
const ENVIRONMENT = { ...process.env, CACHE, FILE, LOG: join(CACHE, "access.log"), PYTHONPATH: CACHE, NO_COLOR: "1" };
const PACKAGES = ["hono", "h3", "srvx", "elysia"];
const VERSIONS: Record<string, string> = { deno: "deno@2.9.6", bun: "bun@1.4.5" };

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
  /** What the server computes, in microseconds a request, or a MiB. */
  cost: number;
  /** The most memory that it has had, beside what it had at the start, in MiB. */
  memory: number;
}

/** A server that runs. */
interface Running extends AsyncDisposable {
  pid: number;
  port: number;
}

/** Starts a server, and measures it, for some seconds where it can be for longer. */
type Measure = (start: () => Promise<Running>, seconds: number) => Promise<Sample>;

/** A job, and how it is measured. */
interface Job {
  contenders: string[];
  /** Whom the others are compared with. */
  base: string;
  unit: "request" | "MiB" | "start";
  measure: Measure;
  /** Python, where it is that. */
  runtimes?: string[];
}

/** Requests, for some seconds. */
function asking(headers: Record<string, string>, path = "/"): Measure {
  return async (start, seconds) => {
    await using server = await start();
    const { pid, port } = server;
    const fields = Object.entries(headers).flatMap(([name, value]) => ["-H", `${name}: ${value}`]);
    const ask = (duration: number) => {
      const args = ["-t1", "-c32", `-d${duration}s`, ...fields, `http://127.0.0.1:${port}${path}`];
      return execFileSync("taskset", ["-c", "1", "wrk", ...args], { encoding: "utf8" });
    };
    ask(1);
    const [memory, before] = [memoryOf(pid, "VmRSS"), cpuOf(pid)];
    const said = ask(seconds);
    const after = cpuOf(pid);
    const bad = /Non-2xx.*|Socket errors: connect [1-9].*/.exec(said);
    if (bad) throw new Error(`Cannot use the measurement: wrk has found ${bad[0]}`);
    const [, requests] = /(\d+) requests in/.exec(said)!;
    const [, speed] = /Requests\/sec: +([\d.]+)/.exec(said)!;
    return { speed: Number(speed), cost: (after - before) / Number(requests), memory: memoryOf(pid, "VmHWM") - memory };
  };
}

/** One transfer of so many MiB. */
function transferring(size: number, ...args: string[]): Measure {
  return async (start) => {
    await using server = await start();
    const { pid, port } = server;
    const [memory, before, began] = [memoryOf(pid, "VmRSS"), cpuOf(pid), performance.now()];
    execFileSync("taskset", ["-c", "1", "curl", "-sf", "-o", "/dev/null", ...args, `http://127.0.0.1:${port}/`]);
    const seconds = (performance.now() - began) / 1000;
    return { speed: size / seconds, cost: (cpuOf(pid) - before) / size, memory: memoryOf(pid, "VmHWM") - memory };
  };
}

/** The time from the start to the first byte, which counts as the cost. */
async function starting(start: () => Promise<Running>): Promise<Sample> {
  const began = performance.now();
  await using server = await start();
  const client = await Client.connect({ hostname: "127.0.0.1", port: server.port });
  await client.send(request("/"));
  await client.until(/./);
  const milliseconds = performance.now() - began;
  return { speed: 1000 / milliseconds, cost: 1000 * milliseconds, memory: 0 };
}

/** As many headers of a request as are wanted. */
function headersOf(count: number): Record<string, string> {
  return Object.fromEntries(Array.from({ length: count - 1 }, (_, at) => [`X-Header-${at}`, "the value of a header"]));
}

/** The commands of Python's servers, of Debian's packages. */
const PYTHON: Record<string, (address: string) => string[]> = {
  gunicorn: (address) => ["gunicorn", "--log-level", "error", "-b", address, "hello:application"],
  uwsgi: (address) => {
    const quiet = ["--disable-logging", "--plugin", "python3", "--module", "hello:application"];
    return ["uwsgi-core", "--http-socket", address, ...quiet];
  },
  // It says so when more requests wait than it has threads, and would stop when nobody reads that.
  waitress: (address) => ["sh", "-c", `exec waitress-serve --listen=${address} hello:application 2>/dev/null`],
};

/** The same application as that of the contenders. */
const HELLO = `
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [b"Hello, world!"]
`;

const ALL = ["raw", "work", "wsgi", ...PACKAGES];
const [TWO, RAW, WORK] = [["raw", "wsgi"], { base: "raw", unit: "request" }, {
  base: "work",
  unit: "request",
}] as const;

/** What is measured, and against what. The first word is the contenders' name for it. */
const JOBS: Record<string, Job> = {
  "hello, 1 header": { contenders: ALL, ...WORK, measure: asking({}) },
  "hello, in Python": {
    contenders: Object.keys(PYTHON),
    base: "gunicorn",
    unit: "request",
    runtimes: ["python"],
    measure: asking({}),
  },
  "hello, 11 headers": { contenders: ALL, ...WORK, measure: asking(BROWSER) },
  "hello, 50 headers": { contenders: ["work", "wsgi"], ...WORK, measure: asking(headersOf(50)) },
  "hello, 100 headers": { contenders: ["work", "wsgi"], ...WORK, measure: asking(headersOf(100)) },
  "json, 11 headers": { contenders: ["raw", "wsgi", ...PACKAGES], ...RAW, measure: asking(BROWSER, "/items") },
  "environ, 11 headers": { contenders: ["work", "wsgi"], ...WORK, measure: asking(BROWSER) },
  "stack, 11 headers": {
    contenders: ["hono", "wsgi"],
    base: "hono",
    unit: "request",
    measure: asking(BROWSER, "/app"),
  },
  "generator, 11 headers": { contenders: [...TWO], ...RAW, measure: asking(BROWSER) },
  "download, 1 GiB": { contenders: [...TWO], base: "raw", unit: "MiB", measure: transferring(1024) },
  "upload, 1 GiB": { contenders: [...TWO], base: "raw", unit: "MiB", measure: transferring(1024, "-T", FILE) },
  "file, 1 GiB": { contenders: [...TWO], base: "raw", unit: "MiB", measure: transferring(1024) },
  "hello, cold": { contenders: [...TWO], base: "raw", unit: "start", measure: starting },
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

/** The program of a runtime: its own process, or what npm starts would be measured. */
function programOf(runtime: string): string {
  const print = [...(runtime === "deno" ? ["eval"] : ["-e"]), "console.log(process.execPath)"];
  return execFileSync("npx", ["-y", VERSIONS[runtime]!, ...print], { encoding: "utf8" }).trim();
}

const PROGRAMS = new Map<string, string>();

/** Starts a contender on the first core. */
async function startOf(runtime: string, contender: string, job: string): Promise<Running> {
  if (runtime === "python") {
    const port = await freePort();
    const child = new Child("taskset", ["-c", "0", ...PYTHON[contender]!(`127.0.0.1:${port}`)], ENVIRONMENT);
    const running = { pid: child.pid, port, [Symbol.asyncDispose]: () => child[Symbol.asyncDispose]() };
    for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
      const client = await Client.connect({ hostname: "127.0.0.1", port }).catch(() => {});
      client?.leave();
      if (client) return running;
      await new Promise((resolve) => setTimeout(resolve));
    }
    throw new Error(`Cannot start ${contender}: ${child.errors}`);
  }
  const file = fileURLToPath(new URL("contenders.ts", import.meta.url));
  const flags = runtime === "deno" ? ["-A", "--no-check", "--config", join(CACHE, "deno.json")] : [];
  const command = ["-c", "0", PROGRAMS.get(runtime)!, "run", ...flags, file, contender, job];
  const child = new Child("taskset", command, ENVIRONMENT);
  const { port } = await child.listening();
  return { pid: child.pid, port, [Symbol.asyncDispose]: () => child[Symbol.asyncDispose]() };
}

/** Measures all contenders of a job on a runtime, in rounds. */
async function compare(runtime: string, name: string, rounds: number, seconds: number): Promise<Map<string, Sample[]>> {
  const { contenders, measure } = JOBS[name]!;
  const [job = ""] = name.split(",");
  const samples = new Map(contenders.map((contender) => [contender, [] as Sample[]]));
  for (let round = 0; round < rounds; round++) {
    for (const [contender, taken] of samples) {
      taken.push(await measure(() => startOf(runtime, contender, job), seconds));
    }
  }
  return samples;
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted.length % 2
    ? sorted[sorted.length >> 1]!
    : (sorted[sorted.length / 2 - 1]! + sorted[sorted.length / 2]!) / 2;
}

/** A median, and the median distance from it, in percent. */
function spread(values: number[]): string {
  const middle = median(values);
  const off = median(values.map((value) => Math.abs(value - middle)));
  return `${Number(middle.toPrecision(3))} ± ${(100 * off / middle).toFixed(0)} %`;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      jobs: { type: "string", default: "" },
      runtimes: { type: "string", default: "deno,bun" },
      rounds: { type: "string", default: "5" },
      seconds: { type: "string", default: "2" },
    },
  });
  mkdirSync(CACHE, { recursive: true });
  writeFileSync(join(CACHE, "deno.json"), '{ "nodeModulesDir": "manual" }');
  if (!existsSync(join(CACHE, "node_modules"))) {
    writeFileSync(join(CACHE, "package.json"), "{}");
    execFileSync("npm", ["install", "--silent", ...PACKAGES], { cwd: CACHE, stdio: "inherit" });
  }
  writeFileSync(join(CACHE, "hello.py"), HELLO);
  const file = openSync(FILE, "w");
  ftruncateSync(file, 2 ** 30);
  closeSync(file);
  const runtimes = values.runtimes.split(",");
  for (const runtime of runtimes) PROGRAMS.set(runtime, programOf(runtime));
  console.log(`${cpus()[0]?.model}, Linux; ${runtimes.map((runtime) => VERSIONS[runtime]).join(", ")}`);
  console.log("\n| job | runtime | contender | speed | server CPU each | as fast as | more memory |");
  console.log(`|${" --- |".repeat(7)}`);
  for (const name of Object.keys(JOBS).filter((name) => name.startsWith(values.jobs))) {
    for (const runtime of JOBS[name]!.runtimes ?? runtimes) {
      const samples = await compare(runtime, name, Number(values.rounds), Number(values.seconds));
      const { base, unit } = JOBS[name]!;
      const of = (contender: string, key: keyof Sample) => samples.get(contender)!.map((sample) => sample[key]);
      for (const contender of samples.keys()) {
        const cells = [
          name,
          runtime,
          contender,
          `${spread(of(contender, "speed"))} ${unit}s/s`.replace("MiBs", "MiB"),
          `${spread(of(contender, "cost"))} µs`,
          `${(median(of(base, "cost")) / median(of(contender, "cost"))).toFixed(2)} of ${base}`,
          `${median(of(contender, "memory")).toFixed(0)} MiB`,
        ];
        console.log(`| ${cells.join(" | ")} |`);
      }
    }
  }
}

await main();
