/**
 * The blog as an application: its routes, and what each of them does.
 *
 * @module
 */

import { mkdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { errorPage, files, fromNativeString, limitBody, mount, pipeline, secureHeaders, toRequest } from "../../mod.ts";
import type { Application, Environ, ResponseBody, StartResponse } from "../../mod.ts";
import { Database, type Post, type User } from "./db.ts";
import { announce, events } from "./events.ts";
import { httpError, json, redirect, router } from "./http.ts";
import { Form, MAX_TEXT } from "./multipart.ts";
import { accountPage, editPage, errorView, indexPage, postPage } from "./pages.ts";
import { checkToken, hashPassword, isPassword, readSession, type Session, sessionCookie } from "./session.ts";

/** What a blog needs. */
export interface BlogOptions {
  /** The folder for the database and the images. */
  folder: string;
  /** The key that signs sessions. */
  secret: string;
  /** The largest image, in bytes. */
  maxImageSize?: number;
}

/** The visitor, and the address of the blog: all that the page of an error has to know. */
export interface Visit {
  session: Session;
  user: User | undefined;
  /** The beginning of all addresses of the blog, wherever it is mounted. */
  root: string;
}

/** What a handler gets of a request. */
export interface Context extends Visit {
  environ: Environ;
  /** Starts the response, with the session in a cookie if it has changed. */
  startResponse: StartResponse;
  /** The parameters in the path. */
  params: Record<string, string>;
  /** The form that was sent, or an empty one. */
  form: Form;
  database: Database;
  /** The folder of the images. */
  uploads: string;
  /** The name of the channel on which new posts are announced. */
  channel: string;
}

type Handler = (context: Context) => ResponseBody | Promise<ResponseBody>;

const ROUTES: Record<string, Handler> = {
  "GET /": (context) => indexPage(context, findPosts(context)),
  "GET /posts/:id": (context) => postPage(context, findPost(context)),
  "GET /register": (context) => accountPage(context, "Register"),
  "POST /register": register,
  "GET /login": (context) => accountPage(context, "Log in"),
  "POST /login": login,
  "POST /logout": logout,
  "GET /create": (context) => context.user ? editPage(context) : redirect(context, "/login"),
  "POST /create": create,
  "GET /posts/:id/edit": (context) => editPage(context, { post: findOwnPost(context) }),
  "POST /posts/:id/edit": update,
  "POST /posts/:id/delete": remove,
  "GET /events": events,
  "GET /api/posts": (context) => json(context, findPosts(context).map((post) => publish(context, post))),
  "POST /api/posts": createByApi,
  "GET /api/posts/:id": (context) => json(context, publish(context, findPost(context))),
};

// Nothing but what the blog itself serves: no script in a page, no frame around it, no form that leads elsewhere.
const CONTENT_SECURITY_POLICY = "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; " +
  "style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/** Makes the blog. It can be mounted anywhere. */
export function blog({ folder, secret, maxImageSize = 5 * 1024 * 1024 }: BlogOptions): Application {
  if (secret === "") throw new TypeError("Cannot sign sessions: the secret is empty, expected random text");
  const uploads = join(folder, "uploads");
  mkdirSync(uploads, { recursive: true });
  const database = new Database(join(folder, "blog.db"));
  const channel = `blog ${folder}`;
  const find = router(ROUTES);

  const visit = (environ: Environ): Visit => {
    const session = readSession(environ, secret);
    const user = session.userId === undefined ? undefined : database.user(session.userId);
    return { session, user, root: encodeURI(fromNativeString(environ.SCRIPT_NAME)) };
  };

  const pages: Application = async (environ, startResponse) => {
    const { handler, params } = find(environ);
    await using form = new Form();
    const context: Context = { ...visit(environ), environ, startResponse, params, form, database, uploads, channel };
    const { session, user } = context;
    const before = JSON.stringify(session);
    context.startResponse = (status, headers) => {
      if (JSON.stringify(context.session) === before) return startResponse(status, headers);
      return startResponse(status, [...headers, ["Set-Cookie", sessionCookie(context, secret)]]);
    };
    if (environ.REQUEST_METHOD === "POST") {
      const check = () => checkToken(session, form.text("token"));
      if (isApi(environ)) checkToken(session, environ.HTTP_X_CSRF_TOKEN);
      else await form.read(environ, { folder: user && uploads, maxImageSize, check });
    }
    return await handler(context);
  };

  const render = (status: string, error: unknown, environ: Environ) =>
    isApi(environ) ? undefined : `${errorView(visit(environ), status, error)}`;

  return pipeline(
    mount({
      "/static": files(new URL("static/", import.meta.url)),
      "/uploads": files(uploads, { cacheControl: "public, max-age=31536000, immutable" }),
      "/": pages,
    }),
    (app) => secureHeaders(app, { headers: { "Content-Security-Policy": CONTENT_SECURITY_POLICY } }),
    (app) => errorPage(app, { render }),
    (app) => limitBody(app, { maxBodySize: maxImageSize + MAX_TEXT }),
  );
}

/** Whether a request is for the API: it has its token in a header, and its errors are JSON or text. */
function isApi({ PATH_INFO }: Environ): boolean {
  return PATH_INFO.startsWith("/api/");
}

async function register(context: Context): Promise<ResponseBody> {
  const { database, form } = context;
  const name = form.text("name").trim();
  const password = form.text("password");
  const refuse = (error: string) => accountPage(context, "Register", error);
  if (name === "" || name.length > 40) return refuse("A name has 1 to 40 characters.");
  if (password.length < 8) return refuse("A password has 8 characters or more.");
  const userId = database.addUser(name, await hashPassword(password));
  if (userId === undefined) return refuse(`The name ${name} is taken.`);
  context.session = { userId };
  return redirect(context, "/", `Welcome, ${name}!`);
}

async function login(context: Context): Promise<ResponseBody> {
  const { database, form } = context;
  const user = database.user(form.text("name").trim());
  const isKnown = await isPassword(form.text("password"), user?.password);
  if (!user || !isKnown) return accountPage(context, "Log in", "The name or the password is wrong.");
  context.session = { userId: user.id };
  return redirect(context, "/", `Welcome back, ${user.name}!`);
}

function logout(context: Context): ResponseBody {
  context.session = {};
  return redirect(context, "/", "You have logged out.");
}

function create(context: Context): ResponseBody {
  const { channel, database, form, user } = context;
  if (!user) return redirect(context, "/login");
  const text = parseText(form.text("title"), form.text("body"));
  if (!text) return editPage(context, { error: TITLE_ERROR });
  const id = database.addPost(user.id, { ...text, image: form.image ?? null });
  form.keep();
  announce(channel);
  return redirect(context, `/posts/${id}`, "Your post is online.");
}

async function update(context: Context): Promise<ResponseBody> {
  const { database, form, uploads } = context;
  const post = findOwnPost(context);
  const text = parseText(form.text("title"), form.text("body"));
  if (!text) return editPage(context, { post, error: TITLE_ERROR });
  database.updatePost(post.id, { ...text, image: form.image ?? post.image });
  form.keep();
  if (post.image && form.image) await rm(join(uploads, post.image), { force: true });
  return redirect(context, `/posts/${post.id}`, "Your post is changed.");
}

async function remove(context: Context): Promise<ResponseBody> {
  const { database, uploads } = context;
  const post = findOwnPost(context);
  database.deletePost(post.id);
  if (post.image) await rm(join(uploads, post.image), { force: true });
  return redirect(context, "/", "Your post is deleted.");
}

/** Takes a post as JSON. */
async function createByApi(context: Context): Promise<ResponseBody> {
  const { channel, database, environ, root, user } = context;
  if (!user) throw httpError(403, "Log in first");
  const { title, body } = Object(await toRequest(environ).json()) as Record<string, unknown>;
  const text = parseText(title, body);
  if (!text) throw httpError(422, `Expected "title" and "body". ${TITLE_ERROR}`);
  const id = database.addPost(user.id, { ...text, image: null });
  announce(channel);
  return json(context, { id }, { status: "201 Created", headers: [["Location", `${root}/api/posts/${id}`]] });
}

const TITLE_ERROR = "A title has 1 to 200 characters.";

/** Checks what an author has written, which is nothing but text. */
function parseText(title: unknown, body: unknown): Pick<Post, "title" | "body"> | undefined {
  if (typeof title !== "string" || typeof body !== "string") return undefined;
  const text = { title: title.trim(), body: body.trim() };
  return text.title === "" || text.title.length > 200 ? undefined : text;
}

function findPosts({ database, environ }: Context): Post[] {
  const before = Number(new URLSearchParams(environ.QUERY_STRING).get("before"));
  return database.posts(before > 0 ? { before } : {});
}

function findPost({ database, params: { id } }: Context): Post {
  const post = database.post(Number(id));
  if (!post) throw httpError(404, `There is no post ${id}`);
  return post;
}

function findOwnPost(context: Context): Post {
  const post = findPost(context);
  if (post.authorId !== context.user?.id) throw httpError(403, "Only its author can change a post");
  return post;
}

/** A post as the API shows it. */
function publish({ root }: Context, { authorId: _, ...post }: Post): unknown {
  return { ...post, image: post.image && `${root}/uploads/${post.image}` };
}
