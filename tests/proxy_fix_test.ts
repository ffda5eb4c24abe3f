/**
 * `proxyFix`: the request as the client sent it, before proxies changed it.
 *
 * @module
 */

import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import {
  type Application,
  applicationUri,
  type Environ,
  fromFetch,
  proxyFix,
  type ProxyFixOptions,
  requestUri,
  runApplication,
  type StartResponse,
  testEnviron,
  toRequest,
} from "../mod.ts";
import { between, inside, lacking, shown, telling, through, type Variables, withClock } from "./middleware_support.ts";
import { answer, bytes, Client, exchange, native, ok, parse, request, start, text } from "./support.ts";

/** Whom an application behind proxyFix takes for the client, or the status with which the request was refused. */
async function clientOf(options: ProxyFixOptions, variables: Variables): Promise<string> {
  const { status, environ } = await through((app) => proxyFix(app, options), variables);
  if (!environ) return status;
  const { REMOTE_ADDR = "nobody", REMOTE_PORT } = environ;
  return REMOTE_PORT === undefined ? REMOTE_ADDR : `${REMOTE_ADDR} port ${REMOTE_PORT}`;
}

const NETWORKS = ["127.0.0.1", "10.0.0.0/8", "2001:db8:a::/48"];

for (
  const { trust, peer, isBelieved } of [
    { trust: undefined, peer: "127.0.0.1", isBelieved: true },
    { trust: undefined, peer: "127.8.9.10", isBelieved: true },
    { trust: undefined, peer: "::1", isBelieved: true },
    { trust: undefined, peer: "::ffff:127.0.0.1", isBelieved: true },
    { trust: undefined, peer: "::ffff:7f00:1", isBelieved: true },
    { trust: undefined, peer: "::FFFF:127.0.0.1", isBelieved: true },
    { trust: undefined, peer: "0:0:0:0:0:0:0:1", isBelieved: true },
    { trust: undefined, peer: "128.0.0.1", isBelieved: false },
    { trust: undefined, peer: "10.0.0.1", isBelieved: false },
    { trust: undefined, peer: "::2", isBelieved: false },
    { trust: undefined, peer: "::127.0.0.1", isBelieved: false },
    { trust: undefined, peer: "::ffff:128.0.0.1", isBelieved: false },
    { trust: undefined, peer: "localhost", isBelieved: false },
    { trust: undefined, peer: undefined, isBelieved: false },
    { trust: NETWORKS, peer: "10.255.255.255", isBelieved: true },
    { trust: NETWORKS, peer: "11.0.0.0", isBelieved: false },
    { trust: NETWORKS, peer: "9.255.255.255", isBelieved: false },
    { trust: NETWORKS, peer: "127.0.0.1", isBelieved: true },
    { trust: NETWORKS, peer: "127.0.0.2", isBelieved: false },
    { trust: NETWORKS, peer: "2001:db8:a:ffff::1", isBelieved: true },
    { trust: NETWORKS, peer: "2001:DB8:A::1", isBelieved: true },
    { trust: NETWORKS, peer: "2001:db8:b::1", isBelieved: false },
    { trust: NETWORKS, peer: "::ffff:10.1.2.3", isBelieved: true },
    { trust: NETWORKS, peer: "::1", isBelieved: false },
    { trust: NETWORKS, peer: undefined, isBelieved: false },
    { trust: ["10.0.0.4/31"], peer: "10.0.0.5", isBelieved: true },
    { trust: ["10.0.0.4/31"], peer: "10.0.0.6", isBelieved: false },
    { trust: ["10.0.0.5/8"], peer: "10.9.9.9", isBelieved: true },
    { trust: ["0.0.0.0/0"], peer: "203.0.113.1", isBelieved: true },
    { trust: ["0.0.0.0/0"], peer: "2001:db8::1", isBelieved: false },
    { trust: ["::/0"], peer: "2001:db8::1", isBelieved: true },
    { trust: ["::/0"], peer: "203.0.113.1", isBelieved: false },
    { trust: ["::/0"], peer: "::ffff:203.0.113.1", isBelieved: false },
    { trust: ["0.0.0.0/0"], peer: "::ffff:203.0.113.1", isBelieved: true },
    { trust: ["::ffff:0:0/96"], peer: "203.0.113.1", isBelieved: true },
    { trust: ["::ffff:0:0/96"], peer: "2001:db8::1", isBelieved: false },
    { trust: ["::ffff:10.0.0.0/104"], peer: "10.255.255.255", isBelieved: true },
    { trust: ["::ffff:10.0.0.0/104"], peer: "::ffff:a01:203", isBelieved: true },
    { trust: ["::ffff:10.0.0.0/104"], peer: "11.0.0.0", isBelieved: false },
    { trust: ["::ffff:10.0.0.1"], peer: "10.0.0.1", isBelieved: true },
    { trust: ["::ffff:10.0.0.1"], peer: "10.0.0.2", isBelieved: false },
    { trust: ["fe80::/10"], peer: "fe80::1%eth0", isBelieved: true },
    { trust: ["fe80::1"], peer: "fe80::1%eth0", isBelieved: true },
    { trust: ["fe80::1"], peer: "fe80::2%eth0", isBelieved: false },
    { trust: ["fe80::1"], peer: "fe80::1%", isBelieved: false },
    { trust: ["10.0.0.1"], peer: "10.0.0.1%eth0", isBelieved: false },
    { trust: ["10.0.0.1"], peer: "::ffff:10.0.0.1%eth0", isBelieved: true },
    { trust: ["64:ff9b::/96"], peer: "64:ff9b::10.0.0.1", isBelieved: true },
    { trust: ["64:ff9b::/96"], peer: "10.0.0.1", isBelieved: false },
    { trust: ["::/0"], peer: "::ffff:", isBelieved: false },
    { trust: ["::/0"], peer: "1:2:3:4:5:6:7::8", isBelieved: false },
    { trust: ["unix"], peer: undefined, isBelieved: true },
    { trust: ["unix"], peer: "127.0.0.1", isBelieved: false },
    { trust: ["unix", "10.0.0.1"], peer: "10.0.0.1", isBelieved: true },
    { trust: [], peer: "127.0.0.1", isBelieved: false },
    { trust: [], peer: undefined, isBelieved: false },
    { trust: 1, peer: "203.0.113.1", isBelieved: true },
    { trust: 1, peer: undefined, isBelieved: true },
  ]
) {
  const name = `proxyFix ${isBelieved ? "believes" : "does not believe"} ${peer ?? "a peer without an address"}`;
  test(`${name} with trust ${JSON.stringify(trust) ?? "as it is by default"}`, async () => {
    const variables = { ...peer === undefined ? {} : { REMOTE_ADDR: peer }, HTTP_X_FORWARDED_FOR: "203.0.113.7" };
    assert.equal(await clientOf({ trust }, variables), isBelieved ? "203.0.113.7" : peer ?? "nobody");
  });
}

for (
  const { what, trust = NETWORKS, value, client } of [
    { what: "the one address", value: "203.0.113.7", client: "203.0.113.7" },
    { what: "the right-most address", value: "6.6.6.6, 203.0.113.7", client: "203.0.113.7" },
    { what: "the address before a trusted proxy", value: "203.0.113.7, 10.0.0.1", client: "203.0.113.7" },
    {
      what: "the address before several trusted proxies",
      value: "6.6.6.6, 203.0.113.7, 10.0.0.1, 2001:db8:a::1, 127.0.0.1",
      client: "203.0.113.7",
    },
    {
      what: "no address to the left of a stranger, trusted though it is",
      value: "10.0.0.9, 203.0.113.7, 10.0.0.1",
      client: "203.0.113.7",
    },
    {
      what: "the left-most of proxies that are all trusted",
      value: "10.0.0.3, 10.0.0.2, 10.0.0.1",
      client: "10.0.0.3",
    },
    {
      what: "the address alone of a list without spaces",
      value: "6.6.6.6,203.0.113.7,10.0.0.1",
      client: "203.0.113.7",
    },
    { what: "an address between tabs and spaces", value: "6.6.6.6\t,\t 203.0.113.7 \t", client: "203.0.113.7" },
    { what: "address and port", value: "203.0.113.7:4711", client: "203.0.113.7 port 4711" },
    { what: "the address before a trusted one with a port", value: "203.0.113.7, 10.0.0.1:80", client: "203.0.113.7" },
    { what: "an IPv6 address", value: "2001:db8::7", client: "2001:db8::7" },
    { what: "an IPv6 address in brackets", value: "[2001:db8::7]", client: "2001:db8::7" },
    { what: "IPv6 address and port", value: "[2001:db8::7]:4711", client: "2001:db8::7 port 4711" },
    {
      what: "the address before a proxy in brackets",
      value: "2001:db8::7, [2001:db8:a::1]:443",
      client: "2001:db8::7",
    },
    { what: "the address before a mapped proxy", value: "203.0.113.7, ::ffff:10.0.0.1", client: "203.0.113.7" },
    { what: "a port without its zeros", value: "203.0.113.7:00080", client: "203.0.113.7 port 80" },
    { what: "an address with a zone", value: "fe80::7%eth0", client: "fe80::7%eth0" },
    { what: "nobody for unknown", value: "unknown", client: "nobody" },
    { what: "nobody for unknown before a proxy", value: "6.6.6.6, unknown, 10.0.0.1", client: "nobody" },
    { what: "nobody for a name that hides", value: "_hidden", client: "nobody" },
    { what: "nobody for a name", value: "localhost", client: "nobody" },
    { what: "nobody for half an address", value: "10.0.0", client: "nobody" },
    { what: "nobody for an address in octal", value: "010.0.0.1", client: "nobody" },
    { what: "nobody for an address too many", value: "203.0.113.7 10.0.0.1", client: "nobody" },
    { what: "nobody for IPv4 in brackets", value: "[203.0.113.7]", client: "nobody" },
    { what: "nobody for open brackets", value: "[2001:db8::7", client: "nobody" },
    { what: "nobody for markup", value: "<script>alert(1)</script>", client: "nobody" },
    { what: "nobody for a network", value: "10.0.0.0/8", client: "nobody" },
    { what: "nobody for a port that cannot be", value: "203.0.113.7:65536", client: "nobody" },
    { what: "the last hop of one", trust: 1, value: "6.6.6.6, 203.0.113.7", client: "203.0.113.7" },
    { what: "the last hop but one of two", trust: 2, value: "6.6.6.6, 203.0.113.7, 10.0.0.1", client: "203.0.113.7" },
    { what: "the last hop, trusted or not", trust: 1, value: "203.0.113.7, 127.0.0.1", client: "127.0.0.1" },
    { what: "the only hop of one", trust: 1, value: "203.0.113.7", client: "203.0.113.7" },
    { what: "all of two hops", trust: 2, value: "203.0.113.7, 10.0.0.1", client: "203.0.113.7" },
    { what: "nobody new for too few hops", trust: 2, value: "203.0.113.7", client: "127.0.0.1 port 99" },
    { what: "nobody new for far too few hops", trust: 1000, value: "1.1.1.1, 2.2.2.2", client: "127.0.0.1 port 99" },
  ]
) {
  test(`proxyFix reads ${what} from X-Forwarded-For ${JSON.stringify(value)}`, async () => {
    const variables = { REMOTE_ADDR: "127.0.0.1", REMOTE_PORT: "99", HTTP_X_FORWARDED_FOR: value };
    assert.equal(await clientOf({ trust }, variables), client);
  });
}

for (
  const { value, trust = NETWORKS, client } of [
    { value: "203.0.113.7,", client: "203.0.113.7" },
    { value: ",203.0.113.7", client: "203.0.113.7" },
    { value: "203.0.113.7,\t,,", client: "203.0.113.7" },
    { value: "203.0.113.7, , 10.0.0.1", client: "203.0.113.7" },
    { value: "6.6.6.6,, 203.0.113.7", client: "203.0.113.7" },
    { value: "6.6.6.6, , 203.0.113.7", trust: 1, client: "203.0.113.7" },
    { value: "6.6.6.6, 203.0.113.7, , 10.0.0.1, ", trust: 2, client: "203.0.113.7" },
    { value: "203.0.113.7, ", trust: 2, client: "127.0.0.1 port 99" },
    { value: "", client: "127.0.0.1 port 99" },
    { value: " ", client: "127.0.0.1 port 99" },
    { value: ",", trust: 1, client: "127.0.0.1 port 99" },
  ]
) {
  test(`proxyFix ignores empty elements of X-Forwarded-For ${JSON.stringify(value)} with trust ${trust}`, async () => {
    const variables = { REMOTE_ADDR: "127.0.0.1", REMOTE_PORT: "99", HTTP_X_FORWARDED_FOR: value };
    assert.equal(await clientOf({ trust }, variables), client);
  });
}

const ALL_FORWARDED = {
  HTTP_X_FORWARDED_FOR: "203.0.113.7",
  HTTP_X_FORWARDED_PROTO: "https",
  HTTP_X_FORWARDED_HOST: "example.com:8443",
  HTTP_X_FORWARDED_PORT: "444",
  HTTP_X_FORWARDED_PREFIX: "/site",
};

/** A `startResponse` that takes everything. */
const TAKE: StartResponse = () => () => Promise.resolve();

for (
  const { what, options } of [
    { what: "a peer that is not trusted", options: {} },
    { what: "anybody where nobody is trusted", options: { trust: [] } },
    { what: "a peer that is not on the list", options: { trust: NETWORKS } },
    { what: "a peer that has an address, where only unix sockets are trusted", options: { trust: ["unix"] } },
    { what: "a peer that is not trusted, whichever header is named", options: { header: "Forwarded" as const } },
  ]
) {
  test(`proxyFix changes nothing for ${what}`, () => {
    const environ = testEnviron({ ...ALL_FORWARDED, REMOTE_ADDR: "192.0.2.1", HTTP_FORWARDED: 'for="' });
    const before = { ...environ };
    const given: Environ[] = [];
    proxyFix((environ) => {
      given.push(environ);
      return [];
    }, options)(environ, TAKE);
    assert.deepEqual(given, [environ]);
    assert.deepEqual(environ, before);
  });
}

test("proxyFix leaves alone every variable that the proxy does not mention", async () => {
  const variables = { REMOTE_ADDR: "127.0.0.1", REMOTE_PORT: "99", HTTP_HOST: "example.com:8000", SERVER_PORT: "8000" };
  const { REMOTE_ADDR, REMOTE_PORT, HTTP_HOST, SERVER_PORT } = await inside((app) => proxyFix(app), variables);
  assert.deepEqual({ REMOTE_ADDR, REMOTE_PORT, HTTP_HOST, SERVER_PORT }, variables);
});

const BAD_REQUEST = "400 Bad Request";

/** The address of the request as it is seen behind proxyFix, or the status with which it was refused. */
async function addressBehind(variables: Variables, options: ProxyFixOptions = {}): Promise<string> {
  const request = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", SERVER_PORT: "8000", PATH_INFO: "/page" };
  const { status, environ } = await through((app) => proxyFix(app, options), { ...request, ...variables });
  return environ ? requestUri(environ) : status;
}

for (
  const { variables, address } of [
    { variables: { HTTP_X_FORWARDED_PROTO: "https" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "HTTPS" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: " https\t" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "http, https" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "https, http" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "javascript, https" }, address: "https://inner:8000/page" },
    {
      variables: { HTTP_X_FORWARDED_FOR: "127.0.0.1", HTTP_X_FORWARDED_PROTO: "http, https" },
      address: "https://inner:8000/page",
    },
    { variables: { HTTP_X_FORWARDED_PROTO: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "https," }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: ", ," }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "wss" }, address: "https://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "https, WS" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PROTO: "wsss" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "ftp" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "https://" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "javascript" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PROTO: "https http" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:8080" }, address: "http://example.com:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:80" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:0080" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:08080" }, address: "http://example.com:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com," }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "evil.org, example.com" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "<evil>, example.com" }, address: "http://example.com/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1]" }, address: "http://[2001:db8::1]/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1]:8080" }, address: "http://[2001:db8::1]:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "192.0.2.1:8080" }, address: "http://192.0.2.1:8080/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "xn--mnchen-3ya.example" }, address: "http://xn--mnchen-3ya.example/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_HOST: "evil.org/" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "evil.org/.example.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com@evil.org" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com?" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com#" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com\\x" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:http" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:80:80" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example.com:65536" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "example com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: ":8080" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "2001:db8::1" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "[::::]" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "[192.0.2.1]" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "<script>" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_HOST: "m\xfcnchen" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "8080" }, address: "http://inner:8080/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "80" }, address: "http://inner/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "443" }, address: "http://inner:443/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "65535" }, address: "http://inner:65535/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "0080" }, address: "http://inner/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "1, 8080" }, address: "http://inner:8080/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "8080," }, address: "http://inner:8080/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PORT: "65536" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "99999" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "123456" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "-1" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "+80" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "0x50" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "8e3" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "80/" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PORT: "https" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site" }, address: "http://inner:8000/site/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site/" }, address: "http://inner:8000/site/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a/b-c_d.e~f" }, address: "http://inner:8000/a/b-c_d.e~f/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/caf%C3%a9" }, address: "http://inner:8000/caf%C3%A9/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%20b" }, address: "http://inner:8000/a%20b/page" },
    {
      variables: { HTTP_X_FORWARDED_PREFIX: "/..a/b../...", SCRIPT_NAME: "" },
      address: "http://inner:8000/..a/b../.../page",
    },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/", SCRIPT_NAME: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "" }, address: "http://inner:8000/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/evil, /site" }, address: "http://inner:8000/site/page" },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site, " }, address: "http://inner:8000/site/page" },
    {
      variables: { HTTP_X_FORWARDED_PREFIX: "/site", SCRIPT_NAME: "/app" },
      address: "http://inner:8000/site/app/page",
    },
    { variables: { HTTP_X_FORWARDED_PREFIX: "site" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "//evil.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "//" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site//" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a//b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/.." }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/." }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a/../b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/%2e%2e" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/.%2E/b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/%2e" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/%2fevil.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%2F..%2fb" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/site%2f" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/\\evil.com" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%00b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%0d%0ab" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a%zz" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a?b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a#b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "/a b" }, address: BAD_REQUEST },
    { variables: { HTTP_X_FORWARDED_PREFIX: "https://evil.com" }, address: BAD_REQUEST },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com" },
      address: "https://example.com/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com:443" },
      address: "https://example.com/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com:0443" },
      address: "https://example.com/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "wss", HTTP_X_FORWARDED_PORT: "0443" },
      address: "https://inner/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_HOST: "example.com:80" },
      address: "https://example.com:80/page",
    },
    {
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_X_FORWARDED_PORT: "443" },
      address: "https://inner/page",
    },
    {
      variables: { HTTP_X_FORWARDED_HOST: "example.com:8080", HTTP_X_FORWARDED_PORT: "9090" },
      address: "http://example.com:9090/page",
    },
    {
      variables: { HTTP_X_FORWARDED_HOST: "[2001:db8::1]", HTTP_X_FORWARDED_PORT: "9090" },
      address: "http://[2001:db8::1]:9090/page",
    },
    {
      variables: { HTTP_HOST: "[::1]:8000", HTTP_X_FORWARDED_PORT: "9090" },
      address: "http://[::1]:9090/page",
    },
    { variables: { HTTP_HOST: "", HTTP_X_FORWARDED_PORT: "9090" }, address: "http://127.0.0.1:9090/page" },
    { variables: { ...ALL_FORWARDED }, address: "https://example.com:444/site/page" },
  ]
) {
  test(`proxyFix makes ${address} of ${shown(Object.entries(variables).map((pair) => pair.join(": ")).join(", "))}`, async () => {
    assert.equal(await addressBehind(variables), address);
  });
}

for (
  const { scheme, HTTPS, forwarded, expected } of [
    { scheme: "http", HTTPS: undefined, forwarded: "https", expected: { scheme: "https", HTTPS: "on" } },
    { scheme: "https", HTTPS: "on", forwarded: "http", expected: { scheme: "http", HTTPS: undefined } },
    { scheme: "https", HTTPS: "on", forwarded: "https", expected: { scheme: "https", HTTPS: "on" } },
    { scheme: "http", HTTPS: undefined, forwarded: "wss", expected: { scheme: "https", HTTPS: "on" } },
    { scheme: "https", HTTPS: "on", forwarded: "ws", expected: { scheme: "http", HTTPS: undefined } },
    { scheme: "http", HTTPS: undefined, forwarded: "HTTP", expected: { scheme: "http", HTTPS: undefined } },
  ]
) {
  test(`proxyFix keeps HTTPS in step when ${scheme} was ${forwarded} outside`, async () => {
    const variables = { "wsgi.url_scheme": scheme, REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_PROTO: forwarded };
    const { environ } = await through(
      (app) => proxyFix(app),
      HTTPS === undefined ? variables : { ...variables, HTTPS },
    );
    assert.deepEqual({ scheme: environ?.["wsgi.url_scheme"], HTTPS: environ?.HTTPS }, expected);
    assert.equal("HTTPS" in (environ ?? {}), expected.HTTPS !== undefined);
  });
}

for (
  const { variables, name, port, host } of [
    { variables: { HTTP_X_FORWARDED_HOST: "example.com" }, name: "example.com", port: "80", host: "example.com" },
    {
      variables: { HTTP_X_FORWARDED_HOST: "example.com:8080" },
      name: "example.com",
      port: "8080",
      host: "example.com:8080",
    },
    {
      variables: { HTTP_X_FORWARDED_HOST: "[::1]", HTTP_X_FORWARDED_PROTO: "https" },
      name: "[::1]",
      port: "443",
      host: "[::1]",
    },
    { variables: { HTTP_X_FORWARDED_PORT: "81" }, name: "inner", port: "81", host: "inner:81" },
    {
      variables: { HTTP_X_FORWARDED_PORT: "443", HTTP_X_FORWARDED_PROTO: "https" },
      name: "inner",
      port: "443",
      host: "inner",
    },
  ]
) {
  test(`proxyFix sets name, port and host alike for ${JSON.stringify(variables)}`, async () => {
    const request = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", SERVER_PORT: "8000" };
    const environ = await inside((app) => proxyFix(app), { ...request, ...variables });
    const { SERVER_NAME, SERVER_PORT, HTTP_HOST } = environ;
    assert.deepEqual({ SERVER_NAME, SERVER_PORT, HTTP_HOST }, {
      SERVER_NAME: name,
      SERVER_PORT: port,
      HTTP_HOST: host,
    });
  });
}

test("proxyFix gives a Fetch handler no host of which no URL can be made", async () => {
  const app = between((app) => proxyFix(app), fromFetch((request) => Response.json(request.url)));
  const environ = testEnviron({ REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_HOST: "example.com:99999" });
  assert.equal((await runApplication(app, environ)).status, BAD_REQUEST);
});

test("proxyFix moves the prefix in front of scriptName, and the application gets its bytes", async () => {
  const app = between((app) => proxyFix(app, { trust: 1 }), telling((environ) => JSON.stringify(environ.SCRIPT_NAME)));
  const headers = { "X-Forwarded-Prefix": "/caf%C3%A9/" };
  const { response } = await answer(app, new Request("http://test.example/app/x", { headers }), { scriptName: "/app" });
  assert.equal(await response.json(), native("/café/app"));
});

test("proxyFix answers 400 in plain text, without the application", async () => {
  const { status, headers, body, environ } = await through((app) => proxyFix(app), {
    REMOTE_ADDR: "127.0.0.1",
    HTTP_X_FORWARDED_PROTO: "gopher",
  });
  assert.equal(status, BAD_REQUEST);
  assert.deepEqual(headers, [["Content-Type", "text/plain; charset=utf-8"]]);
  assert.equal(text(body), "Bad Request\n");
  assert.equal(environ, undefined);
});

test("proxyFix keeps what it changes, and nothing that was not there", async () => {
  const before = {
    REMOTE_ADDR: "127.0.0.1",
    REMOTE_PORT: "99",
    HTTP_HOST: "inner:8000",
    SERVER_NAME: "inner",
    SERVER_PORT: "8000",
    SCRIPT_NAME: "/app",
    "wsgi.url_scheme": "http",
  };
  const environ = await inside((app) => proxyFix(app), { ...before, ...ALL_FORWARDED, PATH_INFO: "/" });
  assert.deepEqual(environ["proxy_fix.original"], before);
  const { REMOTE_ADDR, HTTP_HOST, SERVER_NAME, SERVER_PORT, SCRIPT_NAME, HTTPS } = environ;
  assert.deepEqual({ REMOTE_ADDR, HTTP_HOST, SERVER_NAME, SERVER_PORT, SCRIPT_NAME, HTTPS }, {
    REMOTE_ADDR: "203.0.113.7",
    HTTP_HOST: "example.com:444",
    SERVER_NAME: "example.com",
    SERVER_PORT: "444",
    SCRIPT_NAME: "/site/app",
    HTTPS: "on",
  });
  assert(!("REMOTE_PORT" in environ), "the port of the proxy is not that of the client");
});

test("proxyFix takes SCRIPT_NAME for empty where it is absent: PEP 3333, environ Variables", async () => {
  const environ = lacking({ REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_PREFIX: "/site" }, "SCRIPT_NAME");
  const { body } = await runApplication(between(proxyFix, telling(({ SCRIPT_NAME }) => SCRIPT_NAME)), environ);
  assert.equal(text(body), "/site");
});

test("proxyFix keeps no variable that a peer without an address does not have", async () => {
  const environ = lacking({ HTTP_X_FORWARDED_FOR: "203.0.113.7:4711" }, "HTTP_HOST");
  const keys = telling((environ) => Object.keys(Object(environ["proxy_fix.original"])).sort().join());
  const { body } = await runApplication(between((app) => proxyFix(app, { trust: ["unix"] }), keys), environ);
  assert.equal(text(body), "SCRIPT_NAME,SERVER_NAME,SERVER_PORT,wsgi.url_scheme");
});

for (
  const { what, value, options, seen } of [
    { what: "an address", value: "for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "quotes", value: 'for="203.0.113.7"', seen: "203.0.113.7 http inner:8000" },
    { what: "a port", value: 'for="203.0.113.7:4711"', seen: "203.0.113.7:4711 http inner:8000" },
    { what: "IPv6", value: 'for="[2001:db8::7]"', seen: "2001:db8::7 http inner:8000" },
    { what: "IPv6 with a port", value: 'for="[2001:db8::7]:4711"', seen: "2001:db8::7:4711 http inner:8000" },
    { what: "unknown", value: "for=unknown", seen: "nobody http inner:8000" },
    { what: "an obfuscated name", value: 'for="_gazonk"', seen: "nobody http inner:8000" },
    { what: "an obfuscated port", value: 'for="203.0.113.7:_port"', seen: "203.0.113.7 http inner:8000" },
    { what: "upper case", value: "FOR=203.0.113.7;Proto=HTTPS;hOST=a.example", seen: "203.0.113.7 https a.example" },
    {
      what: "all parameters in any order",
      value: 'proto=https;by=10.0.0.1;host="a.example:8443";for=203.0.113.7',
      seen: "203.0.113.7 https a.example:8443",
    },
    { what: "an unknown parameter", value: "secret=_x;for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "a parameter __proto__", value: "__proto__=x;for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "a parameter constructor", value: "constructor=x;for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "escapes", value: 'for="203.\\0.113.7";host="a.\\example"', seen: "203.0.113.7 http a.example" },
    {
      what: "separators in quotes",
      value: 'by="a,for=6.6.6.6;proto=https";for=203.0.113.7',
      seen: "203.0.113.7 http inner:8000",
    },
    { what: "an escaped quote", value: 'by="a\\",for=6.6.6.6";for=203.0.113.7', seen: "203.0.113.7 http inner:8000" },
    {
      what: "several elements",
      value: "for=6.6.6.6;proto=http, for=203.0.113.7;proto=https",
      seen: "203.0.113.7 https inner:8000",
    },
    { what: "elements without spaces", value: "for=6.6.6.6,for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    {
      what: "what the first trusted proxy has said",
      value:
        "for=6.6.6.6;proto=http, for=203.0.113.7;proto=https;host=a.example, for=10.0.0.1;proto=http;host=b.example",
      seen: "203.0.113.7 https a.example",
    },
    {
      what: "nothing of an element before the first trusted proxy",
      value: "for=6.6.6.6;proto=https;host=evil.org, for=203.0.113.7, for=10.0.0.1",
      seen: "203.0.113.7 http inner:8000",
    },
    {
      what: "the hop that is counted",
      value: "for=6.6.6.6, for=203.0.113.7;proto=https, for=192.0.2.9",
      options: { trust: 2 },
      seen: "203.0.113.7 https inner:8000",
    },
    {
      what: "nothing for too few hops",
      value: "for=203.0.113.7;proto=https;host=a.example",
      options: { trust: 2 },
      seen: "127.0.0.1 http inner:8000",
    },
    { what: "an empty pair at the end", value: "for=203.0.113.7;", seen: "203.0.113.7 http inner:8000" },
    {
      what: "an empty pair in the middle",
      value: "for=203.0.113.7;;proto=https",
      seen: "203.0.113.7 https inner:8000",
    },
    { what: "an empty element", value: "for=6.6.6.6, , for=203.0.113.7", seen: "203.0.113.7 http inner:8000" },
    { what: "an empty element at the end", value: "for=203.0.113.7,", seen: "203.0.113.7 http inner:8000" },
    {
      what: "empty elements between hops that are counted",
      value: "for=6.6.6.6,for=203.0.113.7;proto=wss,, ,for=10.0.0.1,",
      options: { trust: 2 },
      seen: "203.0.113.7 https inner:8000",
    },
    { what: "nothing but empty elements", value: " , ,", seen: "127.0.0.1 http inner:8000" },
    { what: "nothing", value: "", seen: "127.0.0.1 http inner:8000" },
    {
      what: "a hop that does not name its client",
      value: "for=203.0.113.7, proto=https",
      seen: "nobody https inner:8000",
    },
    { what: "one hop that does not name its client", value: "proto=https", seen: "nobody https inner:8000" },
    {
      what: "a hop that does not name its client before one that does",
      value: "for=6.6.6.6, host=a.example, for=10.0.0.1",
      seen: "nobody http a.example",
    },
    { what: "a hop that says nothing", value: "for=6.6.6.6, ;", seen: "nobody http inner:8000" },
    {
      what: "a hop that is counted and does not name its client",
      value: "for=6.6.6.6, by=10.0.0.2, for=10.0.0.1",
      options: { trust: 2 },
      seen: "nobody http inner:8000",
    },
    { what: "a host with zeros before its port", value: 'host="a.example:080"', seen: "nobody http a.example" },
    { what: "an open quote", value: 'for="203.0.113.7', seen: BAD_REQUEST },
    { what: "an open quote of a client", value: 'for="6.6.6.6, for=203.0.113.7', seen: BAD_REQUEST },
    { what: "an open quote that a proxy closes", value: 'for=6.6.6.6;x=", for="[2001:db8::7]"', seen: BAD_REQUEST },
    { what: "a quote that ends in a backslash", value: 'for="6.6.6.6\\", for=203.0.113.7', seen: BAD_REQUEST },
    { what: "something behind a quote", value: 'for="203.0.113.7"x', seen: BAD_REQUEST },
    { what: "no value", value: "for=", seen: BAD_REQUEST },
    { what: "no name", value: "=203.0.113.7", seen: BAD_REQUEST },
    { what: "no equals sign", value: "203.0.113.7", seen: BAD_REQUEST },
    { what: "a space in a value", value: "for=203.0.113.7 proto=https", seen: BAD_REQUEST },
    { what: "a scheme that is none", value: "for=203.0.113.7;proto=gopher", seen: BAD_REQUEST },
    { what: "a host that is none", value: 'for=203.0.113.7;host="evil.org/a.example"', seen: BAD_REQUEST },
    { what: "the same parameter twice", value: "for=203.0.113.7;for=6.6.6.6", seen: BAD_REQUEST },
  ]
) {
  test(`proxyFix reads Forwarded with ${what}: ${value}`, async () => {
    const variables = { REMOTE_ADDR: "127.0.0.1", HTTP_HOST: "inner:8000", HTTP_FORWARDED: value };
    const { status, environ } = await through((app) => proxyFix(app, options ?? { trust: NETWORKS }), variables);
    if (!environ) assert.equal(status, seen);
    else {
      const { REMOTE_ADDR = "nobody", REMOTE_PORT, HTTP_HOST, "wsgi.url_scheme": scheme } = environ;
      assert.equal(`${REMOTE_ADDR}${REMOTE_PORT ? `:${REMOTE_PORT}` : ""} ${scheme} ${HTTP_HOST}`, seen);
    }
  });
}

for (
  const { what, header, variables, client } of [
    {
      what: "X-Forwarded-For before Forwarded by default",
      header: undefined,
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: "for=6.6.6.6" },
      client: "203.0.113.7",
    },
    {
      what: "no part of Forwarded where there is any X-Forwarded header",
      header: undefined,
      variables: { HTTP_X_FORWARDED_PROTO: "https", HTTP_FORWARDED: "for=6.6.6.6" },
      client: "127.0.0.1",
    },
    {
      what: "no Forwarded that cannot be read where it is not the one",
      header: undefined,
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: 'for="' },
      client: "203.0.113.7",
    },
    {
      what: "Forwarded alone where it is named",
      header: "Forwarded",
      variables: { HTTP_X_FORWARDED_FOR: "6.6.6.6", HTTP_FORWARDED: "for=203.0.113.7" },
      client: "203.0.113.7",
    },
    {
      what: "no X-Forwarded-For where Forwarded is named and absent",
      header: "Forwarded",
      variables: { HTTP_X_FORWARDED_FOR: "6.6.6.6" },
      client: "127.0.0.1",
    },
    {
      what: "X-Forwarded-For alone where it is named",
      header: "X-Forwarded-For",
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: "for=6.6.6.6" },
      client: "203.0.113.7",
    },
    {
      what: "no Forwarded where X-Forwarded-For is named and absent",
      header: "X-Forwarded-For",
      variables: { HTTP_FORWARDED: "for=6.6.6.6" },
      client: "127.0.0.1",
    },
    {
      what: "no Forwarded, readable or not, where X-Forwarded-For is named",
      header: "X-Forwarded-For",
      variables: { HTTP_FORWARDED: 'for="' },
      client: "127.0.0.1",
    },
  ] as const
) {
  test(`proxyFix reads ${what}`, async () => {
    assert.equal(await clientOf({ header }, { REMOTE_ADDR: "127.0.0.1", ...variables }), client);
  });
}

test("proxyFix reads nothing else of X-Forwarded where Forwarded is named", async () => {
  const variables = { ...ALL_FORWARDED, HTTP_FORWARDED: "for=203.0.113.7;proto=https" };
  assert.equal(await addressBehind(variables, { header: "Forwarded" }), "https://inner:8000/page");
});

for (const name of ["PROTO", "HOST", "PORT", "PREFIX"] as const) {
  test(`proxyFix takes nothing from an X-Forwarded-${name} with too few values for its hops`, async () => {
    const variables = { [`HTTP_X_FORWARDED_${name}`]: ALL_FORWARDED[`HTTP_X_FORWARDED_${name}`] };
    assert.equal(await addressBehind(variables, { trust: 2 }), "http://inner:8000/page");
  });
}

// What a client sends, and what the proxies of a set-up make of it: a client must not choose how it is seen.
const ATTACK = "6.6.6.6";

for (
  const { what, options, peer = "10.0.0.1", variables } of [
    { what: "goes round the proxies", options: { trust: NETWORKS }, peer: "203.0.113.7", variables: ALL_FORWARDED },
    {
      what: "poses as a proxy in front of one proxy",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK}, 10.0.0.9, 203.0.113.7` },
    },
    {
      what: "poses as a proxy in front of two proxies",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK}, 10.0.0.9, 203.0.113.7, 10.0.0.2` },
    },
    {
      what: "adds hops where they are counted",
      options: { trust: 2 },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK}, ${ATTACK}, ${ATTACK}, 203.0.113.7, 10.0.0.2` },
    },
    {
      what: "sends lists with other commas",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `${ATTACK};10.0.0.9\t${ATTACK},,203.0.113.7` },
    },
    {
      what: "opens brackets",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `[${ATTACK}, 203.0.113.7` },
    },
    {
      what: "opens quotes in X-Forwarded-For",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: `"${ATTACK}, 203.0.113.7` },
    },
    {
      what: "sends Forwarded past proxies that set X-Forwarded-For",
      options: { trust: NETWORKS },
      variables: { HTTP_X_FORWARDED_FOR: "203.0.113.7", HTTP_FORWARDED: `for=${ATTACK};proto=https;host=evil.org` },
    },
    {
      what: "sends X-Forwarded-For past proxies that set Forwarded",
      options: { trust: NETWORKS, header: "Forwarded" as const },
      variables: { HTTP_X_FORWARDED_FOR: ATTACK, HTTP_FORWARDED: "for=203.0.113.7" },
    },
    {
      what: "leaves a pair open in Forwarded",
      options: { trust: NETWORKS, header: "Forwarded" as const },
      variables: { HTTP_FORWARDED: `for=${ATTACK};x=y, for=203.0.113.7` },
    },
    {
      what: "quotes the proxy's name",
      options: { trust: NETWORKS, header: "Forwarded" as const },
      variables: { HTTP_FORWARDED: `for=${ATTACK};by="10.0.0.1, for=10.0.0.1", for=203.0.113.7` },
    },
    {
      what: "has sent scheme and host before the proxy's own",
      options: { trust: NETWORKS },
      variables: {
        HTTP_X_FORWARDED_FOR: `${ATTACK}, 203.0.113.7`,
        HTTP_X_FORWARDED_PROTO: "https, http",
        HTTP_X_FORWARDED_HOST: "evil.org, inner",
        HTTP_X_FORWARDED_PREFIX: "/evil, /",
      },
    },
    {
      what: "has sent scheme and host before the proxies' own",
      options: { trust: 2 },
      variables: {
        HTTP_X_FORWARDED_FOR: `${ATTACK}, 203.0.113.7, 10.0.0.1`,
        HTTP_X_FORWARDED_PROTO: "https, http, http",
        HTTP_X_FORWARDED_HOST: "evil.org, inner, inner",
        HTTP_X_FORWARDED_PREFIX: "/evil, /, /",
      },
    },
  ]
) {
  test(`proxyFix does not believe a client that ${what}`, async () => {
    const request = { REMOTE_ADDR: peer, HTTP_HOST: "inner", ...variables };
    const environ = await inside((app) => proxyFix(app, options), request);
    assert.equal(environ.REMOTE_ADDR, "203.0.113.7");
    assert.equal(applicationUri(environ), "http://inner/");
  });
}

for (
  const { what, variables } of [
    {
      what: "an X-Forwarded-For of proxies alone",
      variables: { HTTP_X_FORWARDED_FOR: `${"127.0.0.1,".repeat(6000)}127.0.0.1` },
    },
    { what: "an X-Forwarded-For in one piece", variables: { HTTP_X_FORWARDED_FOR: "1".repeat(60_000) } },
    { what: "an X-Forwarded-For of commas", variables: { HTTP_X_FORWARDED_FOR: ",".repeat(60_000) } },
    { what: "an X-Forwarded-For of spaces", variables: { HTTP_X_FORWARDED_FOR: `1${" ".repeat(60_000)}1` } },
    { what: "an X-Forwarded-For of brackets", variables: { HTTP_X_FORWARDED_FOR: "[".repeat(60_000) } },
    { what: "an X-Forwarded-For of closed brackets", variables: { HTTP_X_FORWARDED_FOR: `[${"]".repeat(60_000)}` } },
    { what: "an X-Forwarded-Host of dots", variables: { HTTP_X_FORWARDED_HOST: `${".".repeat(60_000)}/` } },
    { what: "an X-Forwarded-Prefix of segments", variables: { HTTP_X_FORWARDED_PREFIX: `${"/a".repeat(30_000)}"` } },
    { what: "an X-Forwarded-Prefix in one piece", variables: { HTTP_X_FORWARDED_PREFIX: `/${"a".repeat(60_000)}"` } },
    { what: "a Forwarded of elements", variables: { HTTP_FORWARDED: `${"for=127.0.0.1,".repeat(4300)}for=127.0.0.1` } },
    { what: "a Forwarded of spaces", variables: { HTTP_FORWARDED: `for=a${" ".repeat(60_000)}x` } },
    { what: "a Forwarded of spaces before a pair", variables: { HTTP_FORWARDED: `for=a,${" ".repeat(60_000)}"` } },
    { what: "a Forwarded of commas and spaces", variables: { HTTP_FORWARDED: `${" ,".repeat(30_000)}"` } },
    { what: "a Forwarded in one piece", variables: { HTTP_FORWARDED: "a".repeat(60_000) } },
    { what: "a Forwarded of escapes", variables: { HTTP_FORWARDED: `for="${'\\"'.repeat(30_000)}` } },
    { what: "a Forwarded of quotes", variables: { HTTP_FORWARDED: `for=${'"'.repeat(60_000)}` } },
    { what: "a Forwarded of open quotes", variables: { HTTP_FORWARDED: 'for=",'.repeat(10_000) } },
  ]
) {
  test(`proxyFix is quick with ${what}`, async () => {
    const app = proxyFix(telling(() => ""));
    const environ = testEnviron({ REMOTE_ADDR: "127.0.0.1", ...variables });
    const times: number[] = [];
    for (let run = 0; run < 3; run++) {
      const begun = process.cpuUsage();
      await runApplication(app, environ);
      const { user, system } = process.cpuUsage(begun);
      times.push((user + system) / 1000);
    }
    // Some milliseconds are expected, and what is quadratic takes seconds; the best of three is least of all noise.
    assert(Math.min(...times) < 400, `${times} ms`);
  });
}

for (
  const { what, options } of [
    { what: "no hops", options: { trust: 0 } },
    { what: "less than no hops", options: { trust: -1 } },
    { what: "half a hop", options: { trust: 1.5 } },
    { what: "no number of hops", options: { trust: NaN } },
    { what: "endless hops", options: { trust: Infinity } },
    { what: "a name", options: { trust: ["localhost"] } },
    { what: "nothing", options: { trust: [""] } },
    { what: "half an address", options: { trust: ["10.0.0"] } },
    { what: "an address in octal", options: { trust: ["010.0.0.1"] } },
    { what: "an address with a zone", options: { trust: ["fe80::1%eth0"] } },
    { what: "a network that is too narrow", options: { trust: ["10.0.0.0/33"] } },
    { what: "an IPv6 network that is too narrow", options: { trust: ["::/129"] } },
    { what: "a network that is too wide", options: { trust: ["10.0.0.0/-1"] } },
    { what: "a network without a width", options: { trust: ["10.0.0.0/"] } },
    { what: "a network with a blank width", options: { trust: ["10.0.0.0/ "] } },
    { what: "a network in hexadecimal", options: { trust: ["10.0.0.0/0x8"] } },
    { what: "a network with two widths", options: { trust: ["10.0.0.0/8/8"] } },
    { what: "a network with a mask", options: { trust: ["10.0.0.0/255.0.0.0"] } },
    { what: "a network of no address", options: { trust: ["/8"] } },
    { what: "an address with a port", options: { trust: ["10.0.0.1:80"] } },
    { what: "all of IPv4 by a mapped network", options: { trust: ["::ffff:10.0.0.0/8"] } },
    { what: "all of IPv4 and more by a mapped network", options: { trust: ["::ffff:0:0/95"] } },
    { what: "a mapped network that is too narrow", options: { trust: ["::ffff:10.0.0.0/129"] } },
    { what: "an address in pieces", options: { trust: ["1::2::3"] } },
    { what: "an address with a colon too many", options: { trust: ["::ffff:"] } },
    { what: "one of several that is wrong", options: { trust: ["127.0.0.1", "10.0.0.0/99"] } },
  ]
) {
  test(`proxyFix refuses to trust ${what}: ${JSON.stringify(options.trust)}`, () => {
    const { trust } = options;
    const quoted = Array.isArray(trust) ? JSON.stringify(trust.at(-1)) : String(trust);
    assert.throws(
      () => proxyFix(() => [], options),
      (error) => error instanceof TypeError && error.message.includes('"trust"') && error.message.includes(quoted),
    );
  });
}

test("proxyFix refuses a header that it does not know", () => {
  const options = JSON.parse('{"header": "X-Real-IP"}');
  assert.throws(() => proxyFix(() => [], options), { name: "TypeError", message: /"header".*"X-Real-IP"/ });
});

test("proxyFix reads repeated headers as one, and ignores headers with an underscore", async () => {
  const app = between((app) => proxyFix(app), telling(({ REMOTE_ADDR, HTTP_HOST }) => `${REMOTE_ADDR} ${HTTP_HOST}`));
  await using server = start(app);
  const headers = [
    "X-Forwarded-For: 6.6.6.6",
    "X_Forwarded_Host: evil.org",
    "x-forwarded-for: 203.0.113.7",
    "X-Forwarded-For: 127.0.0.1",
  ];
  assert.equal((await exchange(server, request("/", { headers }))).body, "203.0.113.7 test.example");
});

test("proxyFix reads repeated Forwarded headers as one, and refuses a quote across them", async () => {
  const app = between((app) => proxyFix(app), telling(({ REMOTE_ADDR }) => String(REMOTE_ADDR)));
  await using server = start(app);
  const headers = ["Forwarded: for=6.6.6.6", "Forwarded: for=203.0.113.7", 'Forwarded: for="127.0.0.1:80"'];
  assert.equal((await exchange(server, request("/", { headers }))).body, "203.0.113.7");
  const open = ['Forwarded: for="6.6.6.6', 'Forwarded: for="[2001:db8::7]"'];
  assert.equal((await exchange(server, request("/", { headers: open }))).status, 400);
});

test("proxyFix believes a proxy on a unix socket when it is told to", async () => {
  const unix = join(tmpdir(), `routing-${crypto.randomUUID()}.sock`);
  const app = between((app) => proxyFix(app, { trust: ["unix"] }), telling(({ REMOTE_ADDR }) => String(REMOTE_ADDR)));
  try {
    await using server = start(app, { unix });
    const client = await Client.connect(server, { unix });
    await client.send(request("/", { headers: ["X-Forwarded-For: 203.0.113.7"] }));
    assert.equal(parse(await client.end()).body, "203.0.113.7");
  } finally {
    await rm(unix, { force: true });
  }
});

test("proxyFix gives a Fetch handler the client's address", async () => {
  const app = between((app) => proxyFix(app, { trust: 1 }), (environ, startResponse) => {
    ok(startResponse);
    return [bytes(toRequest(environ).url)];
  });
  const headers = { "X-Forwarded-Proto": "https", "X-Forwarded-Host": "example.com" };
  const { response } = await answer(app, new Request("http://inner.example/page?x=1", { headers }));
  assert.equal(await response.text(), "https://example.com/page?x=1");
});

/** What proxyFix writes to `wsgi.errors` about a request. */
async function lineFor(app: Application, variables: Variables): Promise<string> {
  return (await runApplication(app, testEnviron(variables))).errors;
}

for (
  const [name, { options = {}, variables, expected }] of Object.entries<
    { options?: ProxyFixOptions; variables: Variables; expected: string }
  >({
    "an address that is not trusted": {
      variables: { REMOTE_ADDR: "10.0.0.3", HTTP_X_FORWARDED_FOR: "203.0.113.7", PATH_INFO: "/x" },
      expected: 'proxyFix ignored x-forwarded-for on GET /x: peer "10.0.0.3" is not in option "trust"\n',
    },
    "an address that is not trusted, with Forwarded": {
      variables: { REMOTE_ADDR: "10.0.0.3", HTTP_FORWARDED: "for=203.0.113.7" },
      expected: 'proxyFix ignored forwarded on GET /: peer "10.0.0.3" is not in option "trust"\n',
    },
    "a unix socket that is not trusted": {
      variables: { HTTP_X_FORWARDED_PROTO: "https" },
      expected:
        'proxyFix ignored x-forwarded-proto on GET /: the peer has no address, and "unix" is not in option "trust"\n',
    },
    "an address that is trusted": {
      variables: { REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_FOR: "203.0.113.7" },
      expected: "",
    },
    "an address that is trusted, and sends what is invalid": {
      variables: { REMOTE_ADDR: "127.0.0.1", HTTP_X_FORWARDED_PROTO: "gopher" },
      expected: "proxyFix refused GET /: a forwarding header of its proxy is invalid\n",
    },
    "a client that sends no such header": { variables: { REMOTE_ADDR: "10.0.0.3" }, expected: "" },
    "any address, where proxies are counted": {
      options: { trust: 1 },
      variables: { REMOTE_ADDR: "10.0.0.3", HTTP_X_FORWARDED_FOR: "203.0.113.7" },
      expected: "",
    },
  })
) {
  test(`proxyFix writes ${expected ? "a line" : "nothing"} about ${name}`, async () => {
    assert.equal(await lineFor(between((app) => proxyFix(app, options), telling(() => "")), variables), expected);
  });
}

test("proxyFix writes one line in ten seconds about proxies that are not trusted", async () => {
  await withClock(async (moveOn) => {
    const variables = { REMOTE_ADDR: "10.0.0.3", HTTP_X_FORWARDED_FOR: "203.0.113.7" };
    const app = between(proxyFix, telling(() => ""));
    assert.match(await lineFor(app, variables), /^proxyFix ignored /);
    assert.equal(await lineFor(app, variables), "");
    moveOn(10_000);
    assert.match(await lineFor(app, variables), / \(1 more since the last line\)\n$/);
  });
});
