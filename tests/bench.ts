/**
 * The benchmark: what a gateway costs beside a handler of the runtime's own, and beside others, as tables and a chart.
 *
 * It runs on Linux with two cores, of which the server has one and its clients the other. It fetches the frameworks
 * into a folder of its own, and says which of Debian's packages it misses. `deno task bench` measures all;
 * `--jobs hello`, `--runtimes deno`, `--rounds 3` and `--seconds 1` make it less. Every contender is started anew in
 * every round, one after the other, so that what else the machine does meets all alike. What counts is the median of
 * all rounds, with the median distance from it; ratios are those of a round. `--save run.json` keeps what was measured,
 * `--from run.json` takes it from there, and `--write` puts it into the README.
 *
 * @module
 */

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { cpus, release, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Child, Client, freePort, parse, request } from "./support.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const CHART = "tests/bench.svg";
const CACHE = join(tmpdir(), "wsgi-bench");
const MIB = 2 ** 20;
const [FILE, UPLOAD] = [join(CACHE, "file"), join(CACHE, "upload")];
const ENVIRONMENT = { ...process.env, CACHE, FILE, LOG: join(CACHE, "access.log"), PYTHONPATH: CACHE, NO_COLOR: "1" };
const PACKAGES = ["hono", "h3", "srvx", "elysia"];
const DEBIAN = ["wrk", "curl", "gunicorn", "uwsgi-core", "uwsgi-plugin-python3", "python3-waitress", "python3"];
const RUNTIMES = ["deno", "bun"];
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
  /** What the server computes, in microseconds a request, or a MiB; of a start, how long it takes. */
  cost: number;
  /** Of a transfer, the most memory that the server has had beside what it had at the start, in MiB. */
  memory: number;
}

/** A run: the machine and the versions, and what was measured by job, runtime and contender. */
interface Run {
  head: string;
  jobs: Record<string, Record<string, Record<string, Sample[]>>>;
}

/** A server that runs. */
interface Running extends AsyncDisposable {
  pid: number;
  port: number;
}

/** A job, and how it is measured. */
interface Job {
  contenders: string[];
  unit: "request" | "MiB" | "start";
  /** The request that all have to answer alike. */
  asks?: string;
  /** Starts a server, and measures it, for some seconds where it can be for longer. */
  measure(start: () => Promise<Running>, seconds: number): Promise<Sample>;
}

/** Requests, for some seconds. */
function asking(contenders: string[], options: { headers: Record<string, string>; path?: string }): Job {
  const { headers, path = "/" } = options;
  const fields = Object.entries(headers).map(([name, value]) => `${name}: ${value}`);
  return {
    contenders,
    unit: "request",
    asks: request(path, { headers: fields }),
    async measure(start, seconds) {
      await using server = await start();
      const { pid, port } = server;
      const ask = (duration: number) => {
        const args = ["-t1", "-c32", `-d${duration}s`, ...fields.flatMap((field) => ["-H", field])];
        const url = `http://127.0.0.1:${port}${path}`;
        return execFileSync("taskset", ["-c", "1", "wrk", ...args, url], { encoding: "utf8" });
      };
      ask(1);
      const before = cpuOf(pid);
      const said = ask(seconds);
      const after = cpuOf(pid);
      const bad = /Non-2xx.*|Socket errors: connect [1-9].*|^ *0 requests in.*/m.exec(said);
      if (bad) throw new Error(`Cannot use the measurement: wrk has found ${bad[0]}`);
      const [, requests] = /(\d+) requests in/.exec(said)!;
      const [, speed] = /Requests\/sec: +([\d.]+)/.exec(said)!;
      return { speed: Number(speed), cost: (after - before) / Number(requests), memory: 0 };
    },
  };
}

/** A job with a bare client, and with a browser. */
function withBoth(job: string, contenders: string[], options: { path?: string } = {}): Record<string, Job> {
  return {
    [`${job}, 1 header`]: asking(contenders, { ...options, headers: {} }),
    [`${job}, 11 headers`]: asking(contenders, { ...options, headers: BROWSER }),
  };
}

/** Transfers of so many MiB in all, which curl is told to count on its standard output. */
function transferring(size: number, ...args: string[]): Job {
  return {
    contenders: ["raw", "wsgi"],
    unit: "MiB",
    async measure(start) {
      await using server = await start();
      const { pid, port } = server;
      const [memory, before, began] = [memoryOf(pid, "VmRSS"), cpuOf(pid), performance.now()];
      const words = args.map((arg) => arg.replace("URL", `http://127.0.0.1:${port}/`));
      const said = execFileSync("taskset", ["-c", "1", "curl", "-sf", ...words], { encoding: "utf8" });
      const seconds = (performance.now() - began) / 1000;
      const cost = (cpuOf(pid) - before) / size;
      const count = said.trim().split("\n").reduce((sum, line) => sum + Number(line), 0);
      if (count !== size * MIB) throw new Error(`Cannot use the measurement: ${count} bytes were transferred`);
      return { speed: size / seconds, cost, memory: memoryOf(pid, "VmHWM") - memory };
    },
  };
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
  return { speed: 1000 / median(times), cost: 1000 * median(times), memory: 0 };
}

/** As many headers of a request as are wanted, beside the host. */
function headersOf(count: number): Record<string, string> {
  return Object.fromEntries(Array.from({ length: count - 1 }, (_, at) => [`X-Header-${at}`, "the value of a header"]));
}

/** The commands of Python's servers, of Debian's packages, each with one process and otherwise as it comes. */
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
const PYTHON_JOBS = ["hello, 1 header", "hello, 11 headers"];
const COPIES = ["raw", "work", "gather", "wsgi"];
const ALL = [...COPIES, ...PACKAGES];
const OTHERS = ["raw", "wsgi", ...PACKAGES];
const COUNT = ["-o", "/dev/null", "-w", "%{size_download}\n"];

/** What is measured. The first words are the contenders' name for it. */
const JOBS: Record<string, Job> = {
  ...withBoth("hello", ALL),
  "hello, 50 headers": asking(COPIES, { headers: headersOf(50) }),
  "hello, 100 headers": asking(COPIES, { headers: headersOf(100) }),
  ...withBoth("json", OTHERS, { path: "/items" }),
  ...withBoth("environ", ["raw", "wsgi"]),
  ...withBoth("stack", ["raw", "wsgi", "hono"], { path: "/app" }),
  ...withBoth("generator", OTHERS),
  "download, 1 GiB": transferring(1024, ...COUNT, "URL"),
  "upload, 1 GiB": transferring(1024, "-T", UPLOAD, "URL"),
  "file, 256 MiB, 4 times": transferring(1024, ...COUNT, "URL?[1-4]"),
  "cold start": { contenders: ["raw", "wsgi"], unit: "start", asks: request("/"), measure: starting },
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

/** Makes the folder with all that is needed beside Debian's packages. */
function prepare(): void {
  const missing = DEBIAN.filter((name) => !installedVersion(name));
  if (missing.length > 0) {
    throw new Error(`Cannot measure: Debian's packages ${missing.join(", ")} are not there, expected all of them`);
  }
  mkdirSync(CACHE, { recursive: true });
  writeFileSync(join(CACHE, "deno.json"), '{ "nodeModulesDir": "manual" }');
  if (!existsSync(join(CACHE, "node_modules"))) {
    writeFileSync(join(CACHE, "package.json"), "{}");
    execFileSync("npm", ["install", "--silent", ...PACKAGES], { cwd: CACHE, stdio: "inherit" });
  }
  writeFileSync(join(CACHE, "hello.py"), HELLO);
  for (const [contender, script] of Object.entries(SCRIPTS)) writeFileSync(join(CACHE, `${contender}.ts`), script);
  for (const [path, size] of [[FILE, 256], [UPLOAD, 1024]] as const) {
    writeFileSync(path, "");
    truncateSync(path, size * MIB);
  }
}

/** The program of a runtime: its own process, or what npm starts would be measured. */
function programOf(runtime: string): string {
  const print = [...(runtime === "deno" ? ["eval"] : ["-e"]), "console.log(process.execPath)"];
  return execFileSync("npx", ["-y", VERSIONS[runtime]!, ...print], { encoding: "utf8" }).trim();
}

/** The version of one of Debian's packages, or nothing. */
function installedVersion(name: string): string {
  const query = ["-W", "-f", "${db:Status-Status} ${source:Upstream-Version}", name];
  const { stdout } = spawnSync("dpkg-query", query, { encoding: "utf8" });
  return /^installed (.+)$/.exec(stdout)?.[1] ?? "";
}

/** The machine, the day, all versions, and how long it was measured. */
function headOf(rounds: number, seconds: number): string {
  const packages = PACKAGES.map((name) => {
    return `${name} ${JSON.parse(readFileSync(join(CACHE, "node_modules", name, "package.json"), "utf8")).version}`;
  });
  const debian = DEBIAN.map((name) => `${name} ${installedVersion(name)}`);
  const versions = [...Object.values(VERSIONS).map((version) => version.replace("@", " ")), ...packages, ...debian];
  const machine = `${cpus()[0]?.model}, ${cpus().length} cores, Linux ${/^[\d.]+/.exec(release())}`;
  const day = new Date().toISOString().slice(0, 10);
  return `${machine}; ${day}; ${versions.join(", ")}; rounds: ${rounds}, seconds for each: ${seconds}.`;
}

const PROGRAMS = new Map<string, string>();

/** Starts a contender on the first core. */
async function startOf(runtime: string, options: { contender: string; job: string }): Promise<Running> {
  const { contender, job } = options;
  const start = (...command: string[]) => new Child("taskset", ["-c", "0", ...command], ENVIRONMENT);
  if (runtime === "python") {
    const port = await freePort();
    const child = start(...PYTHON[contender]!(`127.0.0.1:${port}`));
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
async function answerOf(start: () => Promise<Running>, asks: string): Promise<string> {
  await using server = await start();
  const client = await Client.connect({ hostname: "127.0.0.1", port: server.port });
  await client.send(asks);
  const { status, headers, body } = parse(await client.end());
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
  const { contenders, asks, measure } = JOBS[name]!;
  const [job = ""] = name.split(",");
  // Python's servers have ours among them, since a ratio holds within a round.
  const own = runtime === "python" ? [...Object.keys(PYTHON), ...RUNTIMES.map(ours)] : contenders;
  const start = (contender: string) => () => {
    const other = RUNTIMES.find((name) => contender === ours(name));
    return other ? startOf(other, { contender: "wsgi", job }) : startOf(runtime, { contender, job });
  };
  let expected: string | undefined;
  for (const contender of asks ? own : []) {
    const answer = await answerOf(start(contender), asks!);
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

/** A median with a unit, and the median distance from it, in percent. */
function spread(values: number[], unit = ""): string {
  const middle = median(values);
  const off = median(values.map((value) => Math.abs(value - middle)));
  const shown = unit ? Number(middle.toPrecision(3)).toLocaleString("en") : middle.toFixed(2);
  return `${shown}${unit} ± ${(100 * off / middle).toFixed(0)} %`;
}

/** How many times as fast as others, or as cheap, round by round. */
function ratios(own: Sample[], options: { as: Sample[]; by: "speed" | "cost" }): number[] {
  const { as, by } = options;
  const faster = own.map((sample, round) => sample[by] / (as[round]?.[by] ?? NaN));
  return by === "speed" ? faster : faster.map((times) => 1 / times);
}

function peak(samples: Sample[]): number {
  return Math.max(...samples.map(({ memory }) => memory));
}

/** What this project and the other side have done in a job, on one runtime; nothing, if that was not measured. */
type Sides = (job: string) => [own: Sample[], other: Sample[]];

/** The figure that is judged, and what is said beside it. */
type Judge = (sides: Sides, job: string) => [figure: number, said: string];

function ratio(sides: Sides, options: { job: string; by: "speed" | "cost" }): number {
  const [own, as] = sides(options.job);
  return median(ratios(own, { as, by: options.by }));
}

/** The server's CPU. What is judged is the client with 11 headers. */
function cheap(sides: Sides, job: string): [number, string] {
  const [figure = NaN, bare = NaN] = [11, 1].map((count) => {
    return ratio(sides, { job: `${job}, ${count} header${count > 1 ? "s" : ""}`, by: "cost" });
  });
  return [figure, `1 header: ${bare.toFixed(2)}`];
}

/** The speed of a transfer. */
function fast(sides: Sides, job: string): [number, string] {
  return [ratio(sides, { job, by: "speed" }), `by CPU: ${ratio(sides, { job, by: "cost" }).toFixed(2)}`];
}

/** The memory of a transfer, in MiB. */
function flat(sides: Sides, job: string): [number, string] {
  const [own, other] = sides(job);
  return [own.length ? peak(own) : NaN, `raw: ${peak(other).toFixed(2)} MiB`];
}

/** What a header of a request costs, by least squares, and how much of the differences that explains. */
function straight(sides: Sides): [number, string] {
  const names = ["1 header", "11 headers", "50 headers", "100 headers"];
  const sum = (a: number[], b: number[]) => a.reduce((sum, value, at) => sum + value * b[at]!, 0);
  const centred = (values: number[]) => values.map((value) => value - sum(values, values.map(() => 1 / values.length)));
  const dx = centred(names.map((name) => parseInt(name)));
  const [own = NaN, other = NaN, explained = NaN] = [0, 1, 2].map((side) => {
    const dy = centred(names.map((name) => median(sides(`hello, ${name}`)[side % 2]!.map(({ cost }) => cost))));
    return side < 2 ? sum(dx, dy) / sum(dx, dx) : sum(dx, dy) ** 2 / (sum(dx, dx) * sum(dy, dy));
  });
  return [other / own, `${own.toFixed(3)} µs each, there ${other.toFixed(3)}; r² ${explained.toFixed(3)}`];
}

/** How much later the first byte is there, in milliseconds. */
function late(sides: Sides, job: string): [number, string] {
  const [own, other] = sides(job);
  const of = (samples: Sample[]) => median(samples.map(({ cost }) => cost)) / 1000;
  return [of(own) - of(other), `${of(own).toFixed(1)} ms, there ${of(other).toFixed(1)}`];
}

/** The goals: a job, the other side, what the figure may be, and how it is found. */
const GOALS: [job: string, against: string, goal: { atLeast?: number; atMost?: number }, judge: Judge][] = [
  ["hello", "work", { atLeast: 1 }, cheap],
  ["hello", "hono", { atLeast: 0.8 }, cheap],
  ["json", "raw", { atLeast: 1 }, cheap],
  ["environ", "raw", { atLeast: 0.9 }, cheap],
  ["stack", "hono", { atLeast: 1.01 }, cheap],
  ["generator", "raw", { atLeast: 0.9 }, cheap],
  ["download, 1 GiB", "raw", { atLeast: 0.95 }, fast],
  ["download, 1 GiB", "idle", { atMost: 32 }, flat],
  ["upload, 1 GiB", "raw", { atLeast: 0.95 }, fast],
  ["upload, 1 GiB", "idle", { atMost: 32 }, flat],
  ["file, 256 MiB, 4 times", "raw", { atLeast: 0.95 }, fast],
  ["hello, each header", "work", { atLeast: 1 }, straight],
  ["cold start", "raw", { atMost: 15 }, late],
  ["hello", "gunicorn", { atLeast: 8 }, cheap],
  ["hello", "uwsgi", { atLeast: 3 }, cheap],
];

/** A table in Markdown. */
function tableOf(head: string[], rows: string[][]): string {
  return [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

/** The goals that the run can speak of. What is shown of a figure is what is judged. */
function goalsOf({ jobs }: Run): string {
  const rows = GOALS.flatMap(([job, against, { atLeast = -Infinity, atMost = Infinity }, judge]) =>
    RUNTIMES.flatMap((runtime) => {
      const other = against === "idle" ? "raw" : against;
      const [figure, said] = judge((name) => {
        const isPython = other in PYTHON;
        const samples = jobs[name]?.[isPython ? "python" : runtime];
        return [samples?.[isPython ? ours(runtime) : "wsgi"] ?? [], samples?.[other] ?? []];
      }, job);
      const shown = figure.toFixed(2);
      const isMet = Number(shown) >= atLeast && Number(shown) <= atMost;
      const goal = atMost < Infinity ? `at most ${atMost}` : `at least ${atLeast}`;
      return Number.isNaN(figure)
        ? []
        : [[job, against, runtime, `${shown} (${said})`, goal, isMet ? "met" : "missed"]];
    })
  );
  return tableOf(["job", "against", "runtime", "measured", "goal", ""], rows);
}

/** All that was measured. */
function figuresOf({ jobs }: Run): string {
  const rows = Object.entries(jobs).flatMap(([job, runtimes]) =>
    Object.entries(runtimes).flatMap(([runtime, contenders]) =>
      Object.entries(contenders).map(([contender, samples]) => {
        const { unit } = JOBS[job]!;
        const raw = contenders["raw"];
        const [speeds, costs] = [samples.map(({ speed }) => speed), samples.map(({ cost }) => cost)];
        return [
          job,
          runtime,
          contender,
          unit === "start" ? "" : spread(speeds, unit === "MiB" ? " MiB/s" : "/s"),
          raw && unit !== "start" ? spread(ratios(samples, { as: raw, by: "speed" })) : "",
          unit === "start" ? spread(costs.map((cost) => cost / 1000), " ms") : spread(costs, " µs"),
          raw ? spread(ratios(samples, { as: raw, by: "cost" })) : "",
          unit === "MiB" ? `${peak(samples).toFixed(0)} MiB` : "",
        ];
      })
    )
  );
  const head = ["job", "runtime", "contender", "speed", "of raw", "server CPU", "as fast as raw", "more memory"];
  return tableOf(head, rows);
}

const CHART_TITLE = "How fast each contender is by the CPU that it needs for a request, the raw handler being 1";
const CHARTED = ["hello, 11 headers", "json, 11 headers"];
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
    const ratio = median(ratios(samples, { as: contenders["raw"]!, by: "cost" }));
    const [y, own] = [14 + row * 24, contender === "wsgi" ? "own" : ""];
    const width = Math.min(ratio, 1.15) * unit;
    return `
    <text class="end ${own}" x="64" y="${y + 13}">${contender}</text>
    <rect class="bar ${own}" x="72" y="${y}" width="${width.toFixed(1)}" height="18" rx="2"/>
    <text class="end ${own}" x="354" y="${y + 13}">${ratio.toFixed(2)}</text>
    <text class="end quiet" x="414" y="${y + 13}">${median(samples.map(({ cost }) => cost)).toFixed(1)} µs</text>`;
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
      return `<g transform="translate(${20 + column * 430} ${84 + row * 229})">${panel}</g>`;
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

/** What stands in the README. */
function reportOf(run: Run): string {
  return `
${run.head}

${goalsOf(run)}

![${CHART_TITLE}](${CHART})

<details>
<summary>All figures</summary>

${figuresOf(run)}

</details>
`;
}

async function measureAll(options: Record<"jobs" | "runtimes" | "rounds" | "seconds" | "save", string>): Promise<Run> {
  const [rounds, seconds] = [Number(options.rounds), Number(options.seconds)];
  const runtimes = options.runtimes.split(",");
  prepare();
  for (const runtime of RUNTIMES) PROGRAMS.set(runtime, programOf(runtime));
  const run: Run = { head: headOf(rounds, seconds), jobs: {} };
  for (const name of Object.keys(JOBS).filter((name) => name.startsWith(options.jobs))) {
    const results: Run["jobs"][string] = run.jobs[name] = {};
    for (const runtime of runtimes) {
      if (runtime === "python" && !PYTHON_JOBS.includes(name)) continue;
      const began = performance.now();
      results[runtime] = await compare(name, { runtime, rounds, seconds });
      console.error(`${name}, ${runtime}: ${((performance.now() - began) / 1000).toFixed(0)} s`);
      if (options.save) writeFileSync(options.save, JSON.stringify(run));
    }
  }
  return run;
}

/** Puts the report into the README, and the chart beside this file. */
function publish(run: Run): void {
  const path = join(ROOT, "README.md");
  const [before, after] = readFileSync(path, "utf8").split(/(?<=<!-- bench -->\n)[^]*(?=<!-- \/bench -->)/);
  if (after === undefined) {
    throw new Error("Cannot write the report: the README has no <!-- bench --> and <!-- /bench -->");
  }
  writeFileSync(path, `${before}${reportOf(run)}\n${after}`);
  writeFileSync(join(ROOT, CHART), chartOf(run));
  execFileSync(process.execPath, ["fmt", "--quiet", path, join(ROOT, CHART)], { cwd: ROOT, stdio: "inherit" });
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
  console.log(reportOf(run));
  if (values.write) publish(run);
}

await main();
