/**
 * The blog in process. These tests can be copied with it: they need nothing of this repository but the library.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { type FetchContext, mount, testEnviron, toEnviron, toFetch, validator } from "../../mod.ts";
import { blog, type Context } from "./app.ts";
import { type Answer, Client, type Fields, readEvents } from "./client.ts";
import { announce, events } from "./events.ts";
import { html } from "./html.ts";
import { router } from "./http.ts";
import { errorView } from "./pages.ts";
import { SESSION_AGE } from "./session.ts";

const FOLDER = mkdtempSync(join(tmpdir(), "blog-"));
after(() => rmSync(FOLDER, { recursive: true }));

const PNG = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 1, 2, 3);

const PASSWORD = "a long password";

/** A blog of its own, in a folder of its own, with a limit that is easily reached. */
function makeBlog() {
  const folder = mkdtempSync(join(FOLDER, "blog-"));
  const app = blog({ folder, secret: "a secret for tests", maxImageSize: 1000 });
  const handler = toFetch(validator(app));
  const uploads = () => readdirSync(join(folder, "uploads"));
  /** A visitor, who has registered if there is a name. */
  const visit = async (name?: string) => {
    const client = new Client(handler);
    if (name !== undefined) await client.submit("/register", { name, password: PASSWORD });
    return client;
  };
  return { app, handler, uploads, visit };
}

/** An image for a form. The name says nothing about it. */
function image(bytes = PNG, name = "../../etc/x.html"): File {
  return new File([bytes.slice()], name, { type: "text/html" });
}

/** Sends JSON to the API, with the token of the last page or with another one. */
function sendJson(client: Client, body: string, token = client.token): Promise<Answer> {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": token };
  return client.send("/api/posts", { method: "POST", headers, body });
}

test("who registers is logged in, and logs out and in again", async () => {
  const client = await makeBlog().visit();
  assert.match((await client.get("/")).text, /Register/);
  const registered = await client.submit("/register", { name: "Ada", password: PASSWORD });
  assert.equal(registered.url, "/");
  assert.match(registered.text, /Welcome, Ada!/);
  assert.doesNotMatch((await client.get("/")).text, /Welcome|Register/);
  assert.match((await client.post("/logout")).text, /You have logged out\.[^]*|Register/);
  assert.equal((await client.get("/create")).url, "/login");
  assert.match((await client.submit("/login", { name: "ada", password: PASSWORD })).text, /Welcome back, Ada!/);
  assert.equal((await client.get("/create")).url, "/create");
});

for (
  const [path, name, password, error] of [
    ["/register", "", PASSWORD, /A name has 1 to 40 characters/],
    ["/register", "x".repeat(41), PASSWORD, /A name has 1 to 40 characters/],
    ["/register", "Grace", "short", /A password has 8 characters or more/],
    ["/register", "ADA", PASSWORD, /The name ADA is taken/],
    ["/login", "Ada", "another password", /The name or the password is wrong/],
    ["/login", "Nobody", PASSWORD, /The name or the password is wrong/],
    ["/login", "' OR 1=1 --", "' OR 1=1 --", /The name or the password is wrong/],
  ] as const
) {
  test(`${path} refuses the name "${name.slice(0, 12)}" with the password "${password}"`, async () => {
    const { visit } = makeBlog();
    await visit("Ada");
    const client = await visit();
    const { status, text } = await client.submit(path, { name, password });
    assert.equal(status, 422);
    assert.match(text, error);
    assert.equal((await client.get("/create")).url, "/login");
  });
}

test("an author writes, changes and deletes a post", async () => {
  const client = await makeBlog().visit("Ada");
  const written = await client.submit("/create", { title: "First", body: "one\ntwo" });
  assert.equal(written.url, "/posts/1");
  assert.match(written.text, /Your post is online\.[^]*<h1>First<\/h1>[^]*by Ada[^]*>one\r?\ntwo</);
  const changed = await client.submit("/posts/1/edit", { title: "Second", body: "three" });
  assert.match(changed.text, /<h1>Second<\/h1>[^]*>three</);
  assert.match((await client.get("/")).text, /<a href="\/posts\/1">Second<\/a>/);
  assert.match((await client.post("/posts/1/delete")).text, /Your post is deleted/);
  assert.equal((await client.get("/posts/1")).status, 404);
});

test("a post needs a title, and its form keeps what was written", async () => {
  const client = await makeBlog().visit("Ada");
  const { status, text } = await client.submit("/create", { title: " ", body: "a long text" });
  assert.equal(status, 422);
  assert.match(text, /A title has 1 to 200 characters[^]*>a long text<\/textarea>/);
});

test("nobody changes the posts of others", async () => {
  const { visit } = makeBlog();
  const ada = await visit("Ada");
  await ada.submit("/create", { title: "Mine", body: "" });
  const eve = await visit("Eve");
  assert.equal((await eve.get("/posts/1/edit")).status, 403);
  assert.equal((await eve.post("/posts/1/edit", { title: "Hers" })).status, 403);
  assert.equal((await eve.post("/posts/1/delete")).status, 403);
  assert.match((await ada.get("/posts/1")).text, /<h1>Mine</);
});

for (const path of ["/register", "/login", "/logout", "/create", "/posts/1/edit", "/posts/1/delete"]) {
  test(`a form for ${path} is refused without its token, and with that of somebody else`, async () => {
    const { visit, uploads } = makeBlog();
    const client = await visit("Ada");
    await client.submit("/create", { title: "Stays", body: "" });
    const fields: Fields = { title: "Forged", name: "Ada", password: PASSWORD, image: image() };
    const other = await visit("Eve");
    for (const wrong of ["", other.token, "é"]) {
      assert.equal((await client.post(path, { ...fields, token: wrong })).status, 403);
    }
    assert.match((await client.get("/posts/1")).text, /Stays[^]*Edit/);
    assert.deepEqual(uploads(), []);
  });
}

test("a session that was changed is nobody's", async () => {
  const { visit } = makeBlog();
  const client = await visit("Ada");
  const [payload = "", signature] = decodeURIComponent(client.cookies.get("session")!).split(".");
  const session = atob(payload).replace('"userId":1', '"userId":2');
  for (const forged of [`${btoa(session)}.${signature}`, payload, `${payload}.`, `.${signature}`, "", "%"]) {
    client.cookies.set("session", forged);
    assert.equal((await client.get("/create")).url, "/login", forged);
  }
});

test("a session ends when it is too old", async (context) => {
  const client = await makeBlog().visit("Ada");
  assert.equal((await client.get("/create")).url, "/create");
  context.after(() => context.mock.timers.reset()); // Deno 2.9.6 leaves them to the next test
  context.mock.timers.enable({ apis: ["Date"], now: Date.now() + SESSION_AGE * 1000 });
  assert.equal((await client.get("/create")).url, "/login");
});

test("a blog does not sign sessions with an empty secret", () => {
  assert.throws(() => blog({ folder: FOLDER, secret: "" }), /the secret is empty/);
});

test("who logs in or out has another token", async () => {
  const client = await makeBlog().visit("Ada");
  const tokens: string[] = [];
  const note = async () => {
    await client.get("/login");
    tokens.push(client.token);
  };
  await note();
  await client.post("/logout");
  await note();
  await client.submit("/login", { name: "Ada", password: PASSWORD });
  await note();
  assert.equal(new Set(tokens).size, 3);
});

test("the cookie of a session is out of reach for scripts and other sites", async () => {
  const { handler } = makeBlog();
  const response = await handler(new Request("https://localhost/login"));
  const cookie = response.headers.get("Set-Cookie") ?? "";
  for (const attribute of ["Path=/", "Secure", "HttpOnly", "SameSite=Lax", "Max-Age=2592000"]) {
    assert.ok(cookie.split("; ").includes(attribute), cookie);
  }
});

test("an image is stored as it is, under a name of the blog's own, and served as what it is", async () => {
  const { handler, uploads, visit } = makeBlog();
  const client = await visit("Ada");
  const { text } = await client.submit("/create", { title: "Image", body: "", image: image() });
  const [, path = ""] = /<img src="(\/uploads\/[\w-]+\.png)"/.exec(text) ?? [];
  const response = await handler(new Request(`http://localhost${path}`));
  assert.equal(response.headers.get("Content-Type"), "image/png");
  assert.equal(response.headers.get("X-Content-Type-Options"), "nosniff");
  assert.deepEqual(new Uint8Array(await response.arrayBuffer()), PNG);
  assert.deepEqual(uploads(), [path.slice("/uploads/".length)]);
});

test("an image goes when another takes its place, and with its post", async () => {
  const { uploads, visit } = makeBlog();
  const client = await visit("Ada");
  await client.submit("/create", { title: "Image", body: "", image: image() });
  const [first] = uploads();
  await client.submit("/posts/1/edit", { title: "The same image", body: "", image: image(new Uint8Array(0), "") });
  assert.deepEqual(uploads(), [first]);
  await client.submit("/posts/1/edit", { title: "Another image", body: "", image: image() });
  assert.equal(uploads().length, 1);
  assert.notEqual(uploads()[0], first);
  await client.submit("/posts/1/edit", { title: " ", body: "", image: image() });
  assert.equal(uploads().length, 1, "a form that is refused leaves no image");
  await client.post("/posts/1/delete");
  assert.deepEqual(uploads(), []);
});

const PART = 'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n';

for (
  const [what, status, body] of [
    ["a file that is no image", 415, `--b\r\nTOKEN--b\r\n${PART}<script>alert(1)</script>\r\n--b--\r\n`],
    ["an image that is too large", 413, `--b\r\nTOKEN--b\r\n${PART}GIF89a${"x".repeat(1000)}\r\n--b--\r\n`],
    ["a second image", 400, `--b\r\nTOKEN--b\r\n${PART}GIF89a------\r\n--b\r\n${PART}GIF89a------\r\n--b--\r\n`],
    ["an image that is cut off", 400, `--b\r\nTOKEN--b\r\n${PART}GIF89a--------------`],
    ["an image before the token", 403, `--b\r\n${PART}GIF89a------\r\n--b\r\nTOKEN--b--\r\n`],
    ["a part without a name", 400, `--b\r\nTOKEN--b\r\nContent-Disposition: form-data\r\n\r\n\r\n--b--\r\n`],
    ["no boundary at all", 400, "nothing"],
    ["fields that are too large", 413, `--b\r\nTOKEN--b\r\n${PART.replace(/; filename.*"/, "")}${"x".repeat(262_144)}`],
  ] as const
) {
  test(`a form with ${what} is answered with ${status}, and leaves no file`, async () => {
    const { uploads, visit } = makeBlog();
    const client = await visit("Ada");
    const field = `Content-Disposition: form-data; name="token"\r\n\r\n${client.token}\r\n`;
    const answer = await client.send("/create", {
      method: "POST",
      headers: { "Content-Type": "multipart/form-data; boundary=b" },
      body: body.replace("TOKEN", field),
    });
    assert.equal(answer.status, status);
    assert.deepEqual(uploads(), []);
  });
}

test("an image that turns out to be too large leaves no file", async () => {
  const { uploads, visit } = makeBlog();
  const client = await visit("Ada");
  const token = `Content-Disposition: form-data; name="token"\r\n\r\n${client.token}`;
  const pieces = async function* () {
    yield `--b\r\n${token}\r\n--b\r\n${PART}GIF89a${"x".repeat(500)}`;
    for (let turn = 0; turn < 5000 && uploads().length === 0; turn++) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    assert.equal(uploads().length, 1);
    yield "x".repeat(501);
  };
  const answer = await client.send("/create", {
    method: "POST",
    headers: { "Content-Type": "multipart/form-data; boundary=b" },
    body: ReadableStream.from(pieces()).pipeThrough(new TextEncoderStream()),
    duplex: "half",
  } as RequestInit);
  assert.equal(answer.status, 413);
  assert.deepEqual(uploads(), []);
});

test("a form is read the same however its bytes arrive", async () => {
  const { handler, uploads, visit } = makeBlog();
  const client = await visit("Ada");
  const content = `GIF89a\r\n--\r\n--b\r--bb\r\n--${"x".repeat(20)}\r\n`;
  const form = [
    `preamble\r\n--bound\r\nContent-Disposition: form-data; name="token"\r\n\r\n${client.token}`,
    'Content-Disposition: form-data; name="title"\r\n\r\nIn pieces',
    `Content-Type: image/gif\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n${content}`,
  ].join("\r\n--bound\r\n") + "\r\n--bound--";
  const all = new TextEncoder().encode(form);
  for (const size of [1, 2, 7, 1000]) {
    const pieces = async function* () {
      for (let at = 0; at < all.length; at += size) yield all.slice(at, at + size);
    };
    const response = await handler(
      new Request("http://localhost/create", {
        method: "POST",
        headers: {
          "Content-Type": 'multipart/form-data; boundary="bound"',
          "Cookie": `session=${client.cookies.get("session")}`,
        },
        body: ReadableStream.from(pieces()),
        duplex: "half",
      } as RequestInit),
    );
    assert.equal(response.status, 303, `pieces of ${size}`);
    const { text } = await client.get(response.headers.get("Location")!);
    const [, path = ""] = /<img src="([^"]+)"/.exec(text)!;
    assert.equal((await client.get(path)).text, content);
  }
  assert.equal(uploads().length, 4);
});

test("a form without parts is answered with 413 when it is too large", async () => {
  const client = await makeBlog().visit();
  assert.equal((await client.submit("/register", { name: "x".repeat(262_144), password: PASSWORD })).status, 413);
});

test("visitors without an account cannot write", async () => {
  const client = await makeBlog().visit();
  assert.equal((await client.submit("/login", { name: "Nobody", password: "" })).status, 422);
  assert.equal((await client.post("/create", { title: "Anonymous", body: "" })).url, "/login");
  assert.equal((await client.get("/api/posts")).text, "[]\n");
});

test("visitors without an account cannot send images", async () => {
  const { uploads, visit } = makeBlog();
  const client = await visit();
  await client.get("/login");
  assert.equal((await client.post("/create", { title: "Image", image: image() })).status, 403);
  assert.deepEqual(uploads(), []);
});

test("what was written is text, wherever it is shown", async () => {
  const client = await makeBlog().visit('<b>"');
  const hostile = `"><script>alert('&')</script>`;
  await client.submit("/create", { title: hostile, body: hostile, image: image() });
  for (const path of ["/", "/posts/1", "/posts/1/edit"]) {
    const { text } = await client.get(path);
    assert.doesNotMatch(text, /<script>|<b>/);
    assert.match(text, /&#34;&#62;&#60;script&#62;alert\(&#39;&#38;&#39;\)/);
  }
});

test("html escapes text, and neither HTML, nor lists of it, nor what is absent", () => {
  const cases = [["<", "&#60;"], [html`<b>`, "<b>"], [[html`<i>`, "'"], "<i>&#39;"], [undefined, ""], [false, ""], [
    0,
    "0",
  ]];
  for (const [value, expected] of cases) assert.equal(`${html`${value}`}`, expected);
});

test("a page has its title, with a dash", async () => {
  const client = await makeBlog().visit();
  assert.match((await client.get("/")).text, /<title>Posts – Blog<\/title>/);
});

test("the API lists posts, and reads one", async () => {
  const client = await makeBlog().visit("Ada");
  for (const title of ["One", "Two"]) await client.submit("/create", { title, body: "text" });
  const posts = JSON.parse((await client.get("/api/posts")).text);
  assert.deepEqual(posts.map((post: { title: string }) => post.title), ["Two", "One"]);
  const { created, ...post } = JSON.parse((await client.get("/api/posts/1")).text);
  assert.match(created, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  assert.deepEqual(post, { id: 1, author: "Ada", title: "One", body: "text", image: null });
  assert.deepEqual(JSON.parse((await client.get("/api/posts?before=2")).text).length, 1);
  assert.equal((await client.get("/api/posts/3")).status, 404);
});

test("the API takes a post, with the token of the session in a header", async () => {
  const client = await makeBlog().visit("Ada");
  const { status, text, headers } = await sendJson(client, '{"title":"Été","body":"text"}');
  assert.deepEqual([status, text, headers.get("Location")], [201, '{"id":1}\n', "/api/posts/1"]);
  assert.match((await client.get("/posts/1")).text, /<h1>Été<[^]*by Ada[^]*>text</);
});

test("the API refuses a post without an account, and without the token of its session", async () => {
  const { visit } = makeBlog();
  const [ada, eve, visitor] = [await visit("Ada"), await visit("Eve"), await visit()];
  await visitor.get("/login");
  for (const [client, token] of [[ada, ""], [ada, eve.token], [visitor, visitor.token]] as const) {
    assert.equal((await sendJson(client, '{"title":"Forged","body":""}', token)).status, 403);
  }
  assert.equal((await ada.get("/api/posts")).text, "[]\n");
});

for (
  const [body, status] of [
    ["title=Form", 400],
    ["null", 422],
    ['{"title":" ","body":""}', 422],
    [`{"title":"${"x".repeat(201)}","body":""}`, 422],
    ['{"title":"Title"}', 422],
  ] as const
) {
  test(`the API answers ${body.slice(0, 30)} with ${status}`, async () => {
    const client = await makeBlog().visit("Ada");
    assert.equal((await sendJson(client, body)).status, status);
    assert.equal((await client.get("/api/posts")).text, "[]\n");
  });
}

test("older posts are on another page", async () => {
  const client = await makeBlog().visit("Ada");
  for (let id = 1; id <= 12; id++) await client.submit("/create", { title: `Post ${id}`, body: "" });
  const { text } = await client.get("/");
  assert.match(text, /Post 12<[^]*Post 3</);
  assert.doesNotMatch(text, /Post 2</);
  const [, older = ""] = /href="([^"]*)">Older posts/.exec(text)!;
  assert.match((await client.get(older)).text, /Post 2<[^]*Post 1</);
});

test("a page of posts after which there are none has no link to older ones", async () => {
  const client = await makeBlog().visit("Ada");
  for (const title of ["Deleted", "Stays"]) await client.submit("/create", { title, body: "" });
  await client.post("/posts/1/delete");
  const { text } = await client.get("/");
  assert.match(text, /Stays/);
  assert.doesNotMatch(text, /Older posts/);
});

for (
  const [path, found] of [
    ["/posts/7", "post 7"],
    ["/posts/7/tags/caf%C3%A9 au lait", "tag 7 café au lait"],
    ["/feed.xml", "feed"],
    ["/posts/x", 404],
    ["/posts/1234567890123456", 404],
    ["/posts/7/tags/", 404],
    ["/posts/7/tags/a/b", 404],
    ["/feed-xml", 404],
    ["/posts/7/tags/%FF", 400],
  ] as const
) {
  test(`the router finds "${found}" at ${path}`, () => {
    const find = router<(params: Record<string, string>) => string>({
      "GET /posts/:id": ({ id }) => `post ${id}`,
      "GET /posts/:id/tags/:name": ({ id, name }) => `tag ${id} ${name}`,
      "GET /feed.xml": () => "feed",
    });
    const use = () => {
      const { handler, params } = find(toEnviron(new Request(`http://localhost${path}`)));
      return handler(params);
    };
    if (typeof found === "string") assert.equal(use(), found);
    else assert.throws(use, { status: found });
  });
}

test("of two routes for a path the first is taken, and a refusal names each method once", () => {
  const find = router({ "GET /posts/new": "form", "GET /posts/:name": "post", "POST /posts/:name": "change" });
  const ask = (method: string) => find(toEnviron(new Request("http://localhost/posts/new", { method })));
  assert.deepEqual(ask("GET"), { handler: "form", params: {} });
  assert.deepEqual(ask("POST"), { handler: "change", params: { name: "new" } });
  assert.throws(() => ask("DELETE"), { status: 405, headers: [["Allow", "GET, POST"]] });
});

for (
  const [request, status, text] of [
    ["GET /nothing", 404, /There is no page at \/nothing/],
    ["GET /posts/x", 404, /There is no page at \/posts\/x/],
    ["GET /posts/1", 404, /There is no post 1/],
    ["DELETE /", 405, /Expected one of GET/],
    ["GET /uploads/nothing.png", 404, /<h1>Not Found</],
    ["POST /static/style.css", 405, /<h1>Method Not Allowed</],
    ["PUT /create", 413, /<h1>[^<]* Too Large</],
  ] as const
) {
  test(`${request} is answered with ${status}, and with the blog's own page for those who read HTML`, async () => {
    const [method = "", path = ""] = request.split(" ");
    const handler = toFetch(validator(mount({ "/blog": makeBlog().app })));
    const ask = async (accept: string) => {
      const tooMuch = { body: new Uint8Array(300_000), headers: { "Accept": accept, "Content-Length": "300000" } };
      const init = method === "PUT" ? tooMuch : { headers: { Accept: accept } };
      const response = await handler(new Request(`http://localhost/blog${path}`, { method, ...init }));
      assert.equal(response.status, status);
      return response;
    };
    const page = await ask("text/html");
    assert.match(page.headers.get("Content-Security-Policy")!, /style-src 'self'/);
    if (status === 405) assert.match(page.headers.get("Allow")!, /^GET(?:, HEAD)?$/);
    const content = await page.text();
    assert.match(content, /href="\/blog\/static\/style.css"/);
    assert.match(content, text);
    assert.equal((await (await ask("application/json")).json()).status, status);
  });
}

test("an error of the API is JSON or text, and no page of the blog", async () => {
  const client = await makeBlog().visit();
  const ask = async (accept: string) => (await client.send("/api/posts/1", { headers: { Accept: accept } })).text;
  assert.equal(await ask("*/*"), "404 Not Found\nThere is no post 1\n");
  assert.deepEqual(JSON.parse(await ask("application/json")), {
    status: 404,
    title: "Not Found",
    detail: "There is no post 1",
  });
  assert.doesNotMatch(await ask("text/html"), /<nav>/);
});

test("an error page says why only where the visitor may know", () => {
  const visit = { session: {}, user: undefined, root: "" };
  const errors = [new Error("a secret"), Object.assign(new Error("a reason"), { expose: true }), null];
  const pages = errors.map((error) => `${errorView(visit, "500 Internal Server Error", error)}`);
  assert.deepEqual(pages.map((page) => /<h1>Internal Server Error<[^]*?<p>(.*?)<\/p>/.exec(page)?.[1]), [
    "",
    "a reason",
    "",
  ]);
});

test("HEAD is answered as GET is, without a body", async () => {
  const { handler } = makeBlog();
  for (const path of ["/", "/events"]) {
    const response = await handler(new Request(`http://localhost${path}`, { method: "HEAD" }));
    assert.equal(response.status, 200);
    assert.equal(await response.text(), "");
  }
});

test("an error page leaves messages for the next page", async () => {
  const { handler, visit } = makeBlog();
  const client = await visit();
  await client.get("/register");
  const body = new URLSearchParams({ token: client.token, name: "Ada", password: PASSWORD });
  const headers = { Cookie: `session=${client.cookies.get("session")}` };
  const registered = await handler(new Request("http://localhost/register", { method: "POST", headers, body }));
  client.cookies.set("session", /session=([^;]*)/.exec(registered.headers.get("Set-Cookie")!)![1]!);
  const lost = await client.send("/nothing", { headers: { Accept: "text/html" } });
  assert.match(lost.text, /Ada[^]*<h1>Not Found/);
  assert.doesNotMatch(lost.text, /Welcome/);
  assert.match((await client.get("/")).text, /Welcome, Ada!/);
});

test("mounted under a prefix, all addresses and the cookie have it", async () => {
  const { app } = makeBlog();
  const handler = toFetch(validator(mount({ "/my blog": app })));
  const client = new Client(handler);
  assert.match((await client.get("/my%20blog")).text, /There is nothing here yet/);
  const { url } = await client.submit("/my%20blog/register", { name: "Ada", password: PASSWORD });
  assert.equal(url, "/my%20blog/");
  await client.submit("/my%20blog/create", { title: "Mounted", body: "", image: image() });
  for (const path of ["/", "/posts/1", "/create", "/posts/1/edit", "/api/posts"]) {
    const { status, text } = await client.get(`/my%20blog${path}`);
    assert.equal(status, 200);
    const addresses = [...text.matchAll(/(?:href|src|action|data-events|"image":)="?([^"]*)"/g)].map(([, found]) =>
      found!
    );
    for (const address of addresses) {
      assert.match(address, /^\/my%20blog\//);
      if (!/events|logout|delete/.test(address)) assert.equal((await client.get(address)).status, 200, address);
    }
  }
  const cookie = (await handler(new Request("http://localhost/my%20blog/login"))).headers.get("Set-Cookie");
  assert.match(cookie!, /; Path=\/my%20blog;/);
});

test("a new post is announced to all pages, and to those that come back what they have missed", async () => {
  const { handler, visit } = makeBlog();
  const client = await visit("Ada");
  await client.submit("/create", { title: "One", body: "" });
  const open = async (path: string, headers = {}) => {
    return (await handler(new Request(`http://localhost${path}`, { headers }))).body!;
  };
  const pages = await Promise.all([open("/events?after=1"), open("/events?after=1")]);
  const all = pages.map((page) => readEvents(page, 2));
  await client.submit("/create", { title: "Two\n", body: "" });
  await sendJson(client, '{"title":"<Three>","body":""}');
  const expected = ["/posts/2 Two", "/posts/3 <Three>"];
  assert.deepEqual(await Promise.all(all), [expected, expected]);
  assert.deepEqual(await readEvents(await open("/events?after=1"), 2), expected);
  assert.deepEqual(await readEvents(await open("/events?after=0", { "Last-Event-ID": "2" }), 1), expected.slice(1));
});

/** A page that listens on a channel, and the questions after which post it has asked the database. */
function listenOn(channel: string, stopping: AbortSignal) {
  const asked: number[] = [];
  // Every second question finds nothing, so that the page waits.
  const postsAfter = (after: number) => asked.push(after) % 2 === 1 ? [{ id: after + 1, title: "", author: "" }] : [];
  const environ = testEnviron({ "fetch.context": { signal: new AbortController().signal, stopping } as FetchContext });
  const context = { channel, database: { postsAfter }, environ, root: "", startResponse: () => {} };
  const stream = events(context as unknown as Context);
  const next = async () => new TextDecoder().decode((await stream.next()).value);
  return { asked, stream, next };
}

/** Announces a number of times, and waits until all announcements have arrived. */
async function announceAll(name: string, times: number): Promise<void> {
  const channel = new BroadcastChannel(name);
  const { promise, resolve } = Promise.withResolvers<void>();
  let count = 0;
  channel.onmessage = () => ++count === times && resolve();
  for (let time = 0; time < times; time++) announce(name);
  await promise;
  channel.close();
}

test("for a page that does not read nothing is kept, and it goes on with what it has missed", async () => {
  const channel = crypto.randomUUID();
  const stop = new AbortController();
  const { asked, stream, next } = listenOn(channel, stop.signal);
  assert.equal(await next(), "retry: 1000\n\n");
  assert.match(await next(), /^id: 1\ndata: .*\n\n$/);
  await announceAll(channel, 200);
  assert.deepEqual(asked, [0]);
  assert.equal(await next(), ": still here\n\n");
  assert.match(await next(), /^id: 2\n/);
  assert.deepEqual(asked, [0, 1, 1]);
  const rest = Array.fromAsync(stream);
  stop.abort();
  assert.deepEqual((await rest).map((chunk) => chunk.length), [0]);
});

test("a page that has missed many posts gets all of them, the oldest first", async () => {
  const { handler, visit } = makeBlog();
  const client = await visit("Ada");
  for (let post = 1; post <= 25; post++) await client.submit("/create", { title: `Post ${post}`, body: "" });
  const { body } = await handler(new Request("http://localhost/events?after=2"));
  const expected = Array.from({ length: 23 }, (_, index) => `/posts/${index + 3} Post ${index + 3}`);
  assert.deepEqual(await readEvents(body!, 23), expected);
});

test("a quiet stream says that it is still there, and finds posts that nobody has announced", async (context) => {
  context.after(() => context.mock.timers.reset());
  context.mock.timers.enable({ apis: ["setInterval"] });
  const { asked, stream, next } = listenOn(crypto.randomUUID(), new AbortController().signal);
  assert.equal(await next(), "retry: 1000\n\n");
  assert.match(await next(), /^id: 1\n/);
  const woken = next();
  context.mock.timers.tick(15_000);
  assert.equal(await woken, ": still here\n\n");
  assert.match(await next(), /^id: 2\n/);
  assert.deepEqual(asked, [0, 1, 1]);
  await stream.return(undefined);
});

test("a stream ends at once on a server that stops already", async () => {
  const { stream } = listenOn(crypto.randomUUID(), AbortSignal.abort());
  let text = "";
  for await (const chunk of stream) text += new TextDecoder().decode(chunk);
  assert.equal(text, "retry: 1000\n\n");
});
