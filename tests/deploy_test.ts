/**
 * The files for deployment, read by the programs that they are for; what a proxy passes on; a rolling restart behind one.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Application, proxyFix } from "../mod.ts";
import {
  bytes,
  Child,
  Client,
  exchange,
  freePort,
  ok,
  parse,
  type Reply,
  request,
  RUNTIME,
  start,
  text,
  withHost,
  within,
} from "./support.ts";

/** The text of a file for deployment. */
function deployed(name: string): string {
  return readFileSync(new URL(`../examples/deploy/${name}`, import.meta.url), "utf8");
}

/** Whether a program is installed. Where Debian has them, those of the administrator are not on every path. */
function has(program: string, ...args: string[]): boolean {
  return spawnSync(program, args, { env: ENVIRONMENT }).status === 0;
}

const ENVIRONMENT = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };

/** A test that needs a program, and is skipped, with the reason, where that is missing. */
function testWith(
  isThere: boolean,
  program: string,
  name: string,
  run: (folder: string) => void | Promise<void>,
): void {
  if (!isThere) console.log(`Skipped, because ${program} is not installed: ${name}`);
  test(name, { skip: isThere ? false : `${program} is not installed` }, async () => {
    const folder = mkdtempSync(join(tmpdir(), "wsgi-"));
    try {
      await run(folder);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
}

const HAS = {
  nginx: has("nginx", "-v"),
  haproxy: has("haproxy", "-v"),
  systemd: has("systemd-analyze", "--version"),
};

/** A program's verdict on a file: its exit status and all that it has said. */
function verdict(program: string, args: string[]): { status: number | null; said: string } {
  const { status, stdout, stderr } = spawnSync(program, args, { env: ENVIRONMENT });
  return { status, said: text(stdout) + text(stderr) };
}

/** What a deployment changes in a file, and a test too. Each of it has to be there. */
function adapted(name: string, changes: [from: string, to: string][]): string {
  return changes.reduce((config, [from, to]) => {
    assert.ok(config.includes(from), `${name} has ${JSON.stringify(from)}`);
    return config.replaceAll(from, to);
  }, deployed(name));
}

/** Where a proxy listens, and what is behind it. */
interface Ports {
  port: number;
  servers: [a: number, b: number];
}

function nginxConfig(folder: string, { port, servers: [a, b] }: Ports): string {
  const path = join(folder, "nginx.conf");
  const config = adapted("nginx.conf", [
    ["user www-data;\n", ""],
    ["worker_processes auto", "worker_processes 1"],
    ["pid /run/nginx.pid", `pid ${folder}/pid`],
    ["error_log /var/log/nginx/error.log", `error_log ${folder}/error.log`],
    ["http {\n", `http {\n  client_body_temp_path ${folder}/body;\n  proxy_temp_path ${folder}/proxy;\n`],
    ["listen 80;", `listen 127.0.0.1:${port};`],
    ["    listen [::]:80;\n", ""],
    ["127.0.0.1:8001", `127.0.0.1:${a}`],
    ["127.0.0.1:8002", `127.0.0.1:${b}`],
  ]);
  writeFileSync(path, config);
  return path;
}

function haproxyConfig(folder: string, { port, servers: [a, b] }: Ports): string {
  const path = join(folder, "haproxy.cfg");
  const config = adapted("haproxy.cfg", [
    ["/run/haproxy/admin.sock mode", `${folder}/admin.sock mode`],
    ["bind :80\n", `bind 127.0.0.1:${port}\n`],
    ["inter 2s fastinter 500ms", "inter 20ms"],
    ["127.0.0.1:8001", `127.0.0.1:${a}`],
    ["127.0.0.1:8002", `127.0.0.1:${b}`],
  ]);
  writeFileSync(path, config);
  return path;
}

const NOWHERE: Ports = { port: 8080, servers: [8001, 8002] };

testWith(HAS.nginx, "nginx", "nginx accepts nginx.conf", (folder) => {
  const { status, said } = verdict("nginx", ["-t", "-c", nginxConfig(folder, NOWHERE)]);
  assert.equal(status, 0, said);
  assert.doesNotMatch(said, /\[(?:warn|emerg)\]/);
});

testWith(HAS.haproxy, "haproxy", "HAProxy accepts haproxy.cfg", (folder) => {
  const { status, said } = verdict("haproxy", ["-c", "-f", haproxyConfig(folder, NOWHERE)]);
  assert.equal(status, 0, said);
  assert.doesNotMatch(said, /\[(?:WARNING|ALERT)\]/);
});

testWith(HAS.systemd, "systemd-analyze", "systemd accepts wsgi@.service, with Deno and with Bun", (folder) => {
  const unit = join(folder, "wsgi@.service");
  for (const runtime of ["deno", "bun"]) {
    const service = deployed("wsgi@.service")
      .replace(/^(?:# )?(ExecStart=\S+\/(\w+) .*\n)/gm, (_all, line, name) => name === runtime ? line : "")
      .replace(/^ExecStart=\S+/m, `ExecStart=${process.execPath}`); // which has to exist
    assert.equal(service.match(/^ExecStart=/gm)?.length, 1);
    writeFileSync(unit, service);
    assert.deepEqual(verdict("systemd-analyze", ["verify", unit]), { status: 0, said: "" });
  }
});

// The least that serve() may take to stop: the shutdownDelay that the README advises, and the default of shutdownTimeout.
const STOP = 5 + 30;

test("systemd and Kubernetes give a stopping server more time than it takes", () => {
  assert.ok(Number(/^TimeoutStopSec=(\d+)$/m.exec(deployed("wsgi@.service"))?.[1]) > STOP);
  const manifest = deployed("kubernetes.yaml");
  const preStop = Number(/command: \["sleep", "(\d+)"\]/.exec(manifest)?.[1]);
  assert.ok(Number(/terminationGracePeriodSeconds: (\d+)/.exec(manifest)?.[1]) > preStop + STOP);
});

test("kubernetes.yaml is indented by two spaces, and has the four objects with their keys", () => {
  const documents = deployed("kubernetes.yaml").split(/^---\n/m);
  const kinds: [kind: string, version: string, ...keys: string[]][] = [
    ["Deployment", "apps/v1", "readinessProbe", "livenessProbe", "preStop", "resources", "selector", "template"],
    ["Service", "v1", "selector", "ports"],
    ["HorizontalPodAutoscaler", "autoscaling/v2", "scaleTargetRef", "minReplicas", "maxReplicas", "metrics"],
    ["PodDisruptionBudget", "policy/v1", "minAvailable", "selector"],
  ];
  assert.equal(documents.length, kinds.length);
  for (const [index, [kind, version, ...keys]] of kinds.entries()) {
    const lines = documents[index]!.split("\n").filter((line) => line && !/^ *#/.test(line));
    for (const [at, line] of lines.entries()) {
      assert.match(line, /^(?: {2})*(?:- )?[A-Za-z]+:(?: \S.*)?$/);
      const [deeper, before] = [line, lines[at - 1] ?? ""].map((line) => /^ *(?:- )?/.exec(line)![0].length);
      assert.ok(deeper! <= before! || lines[at - 1]!.endsWith(":"), `${line} belongs to the line before`);
    }
    assert.deepEqual(lines.filter((line) => /^(?:apiVersion|kind)/.test(line)), [
      `apiVersion: ${version}`,
      `kind: ${kind}`,
    ]);
    for (const key of keys) assert.ok(lines.some((line) => line.trim().startsWith(`${key}:`)), `${kind} has ${key}`);
  }
});

test("kubernetes.yaml is YAML, and its objects mean each other", {
  skip: RUNTIME === "deno" && "only Bun reads YAML",
}, () => {
  const { YAML }: { YAML: { parse(text: string): unknown } } = Reflect.get(globalThis, "Bun");
  const objects = JSON.stringify(YAML.parse(deployed("kubernetes.yaml"))); // and back, for values of any type
  const [deployment, service, autoscaler, budget] = JSON.parse(objects);
  const { labels } = deployment.spec.template.metadata;
  assert.deepEqual(deployment.spec.selector.matchLabels, labels);
  assert.deepEqual(service.spec.selector, labels);
  assert.deepEqual(budget.spec.selector.matchLabels, labels);
  const { apiVersion, kind, metadata: { name } } = deployment;
  assert.deepEqual(autoscaler.spec.scaleTargetRef, { apiVersion, kind, name });
  const [{ ports: [port], readinessProbe, livenessProbe, resources }] = deployment.spec.template.spec.containers;
  assert.deepEqual(readinessProbe.httpGet, { path: "/readyz", port: port.name });
  assert.deepEqual(livenessProbe.httpGet, { path: "/livez", port: port.name });
  assert.equal(service.spec.ports[0].targetPort, port.name);
  assert.ok(resources.requests[autoscaler.spec.metrics[0].resource.name]);
});

/** Starts a proxy. */
function run(program: string, ...args: string[]): Child {
  return new Child(program, args, ENVIRONMENT);
}

/** Ends a program, if it has not ended, and gives its exit status. */
async function end(program: Child, signal: "SIGTERM" | "SIGKILL"): Promise<number | null> {
  try {
    program.kill(signal);
  } catch {
    // It has ended.
  }
  return (await program.ended()).code;
}

/** Waits until something holds that no event tells of. */
async function until(holds: () => boolean | Promise<boolean>, what: string): Promise<void> {
  let isOver = false;
  const look = async () => {
    while (!isOver && !await holds()) await new Promise((resolve) => setTimeout(resolve));
  };
  try {
    await within(look(), what);
  } finally {
    isOver = true;
  }
}

/** What HAProxy knows of its servers, by their names. */
async function serversOf(folder: string): Promise<Record<string, { status: string; requests: number }>> {
  const client = await Client.connect({ hostname: "", port: 0 }, { unix: join(folder, "admin.sock") });
  await client.send("show stat\n");
  const [head = "", ...lines] = (await client.end()).replace(/^# /, "").trim().split("\n");
  const names = head.split(",");
  const rows = lines.map((line) => Object.fromEntries(line.split(",").map((field, index) => [names[index], field])));
  return Object.fromEntries(
    rows.filter(({ pxname }) => pxname === "app").map(({ svname, status, stot }) => [
      svname,
      { status: status ?? "", requests: Number(stot) },
    ]),
  );
}

const PROXIES: Record<"nginx" | "haproxy", (folder: string, ports: Ports) => Promise<Child>> = {
  async nginx(folder, ports) {
    const program = run("nginx", "-c", nginxConfig(folder, ports), "-g", "daemon off;");
    await until(() => existsSync(join(folder, "pid")), "nginx");
    return program;
  },
  async haproxy(folder, ports) {
    const program = run("haproxy", "-f", haproxyConfig(folder, ports));
    // The socket has its file before it listens.
    await until(() => serversOf(folder).then(() => true, () => false), "HAProxy");
    await until(async () => {
      const { a, b } = await serversOf(folder);
      return a?.status === "UP" && b?.status === "UP";
    }, "the servers behind HAProxy");
    return program;
  },
};

/** Sends requests through a proxy, and gives the replies of an application that says what it sees. */
async function askBehind(proxy: keyof typeof PROXIES, folder: string, requests: string[]): Promise<Reply[]> {
  const seen: Application = proxyFix((environ, startResponse) => {
    ok(startResponse);
    const found = Object.entries(environ).filter(([name]) => /FORWARDED|^HTTP_HOST$|^REMOTE_ADDR$|scheme$/.test(name));
    return [bytes(JSON.stringify(Object.fromEntries([...found, ["target", environ.REQUEST_URI]])))];
  });
  await using server = start(seen);
  const ports: Ports = { port: await freePort(), servers: [server.port, server.port] };
  const program = await PROXIES[proxy](folder, ports);
  try {
    const replies: Reply[] = [];
    for (const request of requests) replies.push(await exchange({ hostname: "127.0.0.1", port: ports.port }, request));
    return replies;
  } finally {
    await end(program, "SIGTERM");
  }
}

for (const proxy of ["nginx", "haproxy"] as const) {
  testWith(
    HAS[proxy],
    proxy,
    `${proxy} says what proxyFix believes, and a client can say none of it`,
    async (folder) => {
      const lies = ["For: 203.0.113.7", "Proto: https", "Host: evil.example", "Port: 1", "Prefix: /evil"]
        .flatMap((line) => [`X-Forwarded-${line}`, `x-FORWARDED-${line}`]);
      const sent = request("/a%2Fb?c", { headers: ["Forwarded: for=203.0.113.7;proto=https", ...lies] });
      const [{ status, body }] = await askBehind(proxy, folder, [sent]) as [Reply];
      assert.equal(status, 200);
      assert.deepEqual(JSON.parse(body), {
        HTTP_HOST: "test.example",
        HTTP_X_FORWARDED_FOR: "127.0.0.1",
        HTTP_X_FORWARDED_HOST: "test.example",
        HTTP_X_FORWARDED_PROTO: "http",
        REMOTE_ADDR: "127.0.0.1",
        "wsgi.url_scheme": "http",
        target: "/a%2Fb?c",
      });
    },
  );

  // nginx chooses its server by the target's host (RFC 9112, section 3.2.2), HAProxy refuses what has two.
  const hosts: { host: string; target?: string; seen: string | number }[] = [
    { host: "test.example:8080", seen: "test.example:8080" },
    { host: "test.example.:8080", seen: proxy === "nginx" ? "test.example:8080" : "test.example.:8080" },
    { host: "Test.Example:8080", seen: "test.example:8080" },
    { host: "[::1]:8080", seen: "[::1]:8080" },
    { target: "http://asked.example/x", host: "asked.example", seen: "asked.example" },
    { target: "http://asked.example/x", host: "other.example", seen: proxy === "nginx" ? "asked.example" : 400 },
    { target: "http://asked.example/x", host: "other.example:81", seen: proxy === "nginx" ? "asked.example" : 400 },
    { target: "http://asked.example:81/x", host: "other.example", seen: proxy === "nginx" ? "asked.example" : 400 },
    { target: "http://ed.example/x", host: "asked.example:81", seen: proxy === "nginx" ? "ed.example" : 400 },
    { host: "asked.example,other.example", seen: 400 },
  ];

  testWith(HAS[proxy], proxy, `${proxy} passes the host on that it has chosen by, with its port`, async (folder) => {
    const requests = hosts.map(({ host, target }) => withHost(host, target));
    const replies = await askBehind(proxy, folder, requests);
    const seen = replies.map(({ status, body }) => status === 200 ? JSON.parse(body).HTTP_HOST : status);
    assert.deepEqual(seen, hosts.map(({ seen }) => seen));
  });

  testWith(
    HAS[proxy],
    proxy,
    `${proxy} lets no absolute target without Host name a host that it has not seen`,
    async (folder) => {
      const requests = ["http://asked.example/x", "/x"].map((target) => `GET ${target} HTTP/1.0\r\n\r\n`);
      const replies = await askBehind(proxy, folder, requests);
      const seen = replies.map(({ status, body }) => status === 200 ? JSON.parse(body).HTTP_HOST : status);
      assert.deepEqual(seen, proxy === "nginx" ? ["asked.example", "example.com"] : [400, undefined]);
    },
  );
}

const SERVER = `
import process from "node:process";
import { health, serve } from ${JSON.stringify(new URL("../mod.ts", import.meta.url).href)};

const pause = () => new Promise((resolve) => setTimeout(resolve, 3));

async function* app(environ, startResponse) {
  startResponse("200 OK", [["Content-Type", "text/plain"]]);
  let length = 0;
  for (;;) {
    const chunk = await environ["wsgi.input"].read(65_536);
    if (chunk.length === 0) break;
    length += chunk.length;
  }
  const lines = environ.PATH_INFO === "/stream" ? 10 : 1;
  for (let line = 1; line <= lines; line++) {
    yield new TextEncoder().encode(\`\${environ.REQUEST_METHOD} \${length} line \${line}\\n\`);
    await pause();
  }
}

serve(health(app), {
  port: Number(process.argv[2]),
  shutdownDelay: 500,
  onListen: ({ port }) => console.log(\`port \${port}\`),
});
`;

/** Runs the server, on a port, and gives it when it listens. */
async function runServer(folder: string, port: number): Promise<{ program: Child; port: number }> {
  const file = join(folder, "server.ts");
  writeFileSync(file, SERVER);
  const args = RUNTIME === "deno"
    ? ["run", "--no-config", "--no-check", "--allow-net", "--allow-read", file]
    : ["run", file];
  const program = run(process.execPath, ...args, String(port));
  return { program, port: (await program.listening()).port };
}

// A POST is repeated by nobody, so that none may be lost.
const REQUESTS: [method: string, path: string, length: number, lines: number][] = [
  ["GET", "/", 0, 1],
  ["POST", "/", 100, 1],
  ["GET", "/stream", 0, 10],
  ["POST", "/stream", 200_000, 10],
];

/** Sends requests on one connection, one after the other, for as long as they are wanted. Each has to come back whole. */
async function load(port: number, from: number, isWanted: () => boolean): Promise<number> {
  const client = await Client.connect({ hostname: "127.0.0.1", port });
  let count = 0;
  for (; isWanted(); count++) {
    const [method, path, length, lines] = REQUESTS[(from + count) % REQUESTS.length]!;
    client.received = "";
    const fields = `Host: test.example\r\nContent-Length: ${length}\r\n`;
    await client.send(`${method} ${path} HTTP/1.1\r\n${fields}\r\n${"x".repeat(length)}`);
    await Promise.race([client.until(/^HTTP\/1\.1 (?!200)|\r\n0\r\n\r\n$/), client.end()]);
    const { status, complete, body } = parse(client.received);
    const expected = Array.from({ length: lines }, (_, at) => `${method} ${length} line ${at + 1}\n`).join("");
    const found = { request: `${method} ${path}`, status, complete, body, isClosed: client.isClosed };
    assert.deepEqual(found, { ...found, status: 200, complete: true, body: expected, isClosed: false });
  }
  client.leave();
  return count;
}

testWith(HAS.haproxy, "haproxy", "a rolling restart behind HAProxy loses no request", async (folder) => {
  const started = [await runServer(folder, 0), await runServer(folder, 0)] as const;
  const [portA, portB] = [started[0].port, started[1].port];
  const running = new Map([["a", started[0]], ["b", started[1]]]);
  const ports: Ports = { port: await freePort(), servers: [portA, portB] };
  const programs: Child[] = [];
  let isWanted = true;
  try {
    const proxy = await PROXIES.haproxy(folder, ports);
    programs.push(proxy);
    const loads = Promise.all(Array.from({ length: 8 }, (_, from) => load(ports.port, from, () => isWanted)));
    loads.catch(() => {}); // it is looked at in the end
    /** Waits until a server has got requests from now on. */
    const isAsked = async (name: string) => {
      const before = (await serversOf(folder))[name]!.requests;
      await until(async () => (await serversOf(folder))[name]!.requests > before + 20, `requests to server ${name}`);
    };
    for (const [name, { program, port }] of running) {
      await isAsked(name);
      assert.equal(await end(program, "SIGTERM"), 0, program.errors);
      // The health check has said so while the port was still open.
      const [, reason] = await proxy.until(new RegExp(`Server app/${name} is DOWN, reason: (.*?), info`));
      assert.equal(reason, "Layer7 wrong status, code: 503");
      running.set(name, await runServer(folder, port));
      await until(async () => (await serversOf(folder))[name]!.status === "UP", `server ${name} behind HAProxy`);
      await isAsked(name);
    }
    isWanted = false;
    const counts = await within(loads, "the last responses");
    assert.ok(counts.every((count) => count > 0));
  } finally {
    isWanted = false;
    programs.push(...[...running.values()].map(({ program }) => program));
    await Promise.all(programs.map((program) => end(program, "SIGKILL")));
  }
});

// app.ts

test("app.ts serves on the port that it is told, and says that it is well", async () => {
  const file = fileURLToPath(new URL("../examples/deploy/app.ts", import.meta.url));
  const flags = RUNTIME === "deno" ? ["--no-prompt", "--allow-net", "--allow-read"] : [];
  await using child = new Child(process.execPath, ["run", ...flags, file, "0"]);
  const [, port] = await child.until(/localhost:(\d+)/);
  const server = { port: Number(port), hostname: "127.0.0.1" };
  const cases = [["/", "example.com", 200], ["/", "evil.test", 400], ["/readyz", "any", 200], [
    "/admin",
    "example.com",
    401,
  ]];
  for (const [target, host, status] of cases) {
    const made = request(String(target)).replace("test.example", String(host));
    assert.equal((await exchange(server, made)).status, status, `${target} of ${host}`);
  }
});

test("app.ts has all middleware, in the order of the README's table", () => {
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const table = [...readme.matchAll(/^\| `(\w+)\((?:app|apps|root)[,)?]/gm)].map(([_all, name]) => name);
  const [mounted = "", stacked = ""] = deployed("app.ts").split("  }),\n", 2);
  const used = (program: string) => [...program.matchAll(/wsgi\.(\w+)/g)].map(([_all, name]) => name);
  const inside = ["basicAuth", "mount", "files", "validator"];
  assert.deepEqual(used(stacked.split(");\n\nif")[0]!), table.filter((name) => !inside.includes(name!)));
  assert.deepEqual(inside.slice(0, 3).filter((name) => !used(mounted).includes(name)), []);
  assert.equal(new Set(table).size, 17);
});
