/**
 * The blog as an application: its routes, and what each of them does.
 *
 * @module
 */

import { mkdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  type Application,
  type Environ,
  errorPage,
  type ErrorPageOptions,
  files,
  formatCookie,
  fromNativeString,
  limitBody,
  mount,
  parseCookies,
  pipeline,
  secureHeaders,
  toRequest,
} from "../../mod.ts";
import { Database, type Draft, type Post, type User } from "./db.ts";
import { announce, listen } from "./events.ts";
import { httpError, invalid, json, page, redirect, type Reply, router } from "./http.ts";
import { type Form, MAX_TEXT, readForm } from "./multipart.ts";
import { accountPage, editPage, errorView, indexPage, postPage } from "./pages.ts";
import {
  hashPassword,
  isCsrfToken,
  isPassword,
  readSession,
  renewSession,
  type Session,
  SESSION_AGE,
  writeSession,
} from "./session.ts";

/** What a blog needs. */
export interface BlogOptions {
  /** The folder for the database and the images. */
  folder: string;
  /** The key that signs sessions. */
  secret: string;
  /** The largest image, in bytes. */
  maxImageSize?: number;
}

/** Who asks, which is all that a page has to know. */
export interface Visit {
  session: Session;
  user: User | undefined;
  /** The address of a path of the blog, wherever it is mounted. */
  url(path: string): string;
}

/** What a handler gets of a request. */
export interface Context extends Visit {
  environ: Environ;
  /** The parameters in the path. */
  params: Record<string, string>;
  /** The form that was sent, if the route has one. */
  form?: Form;
  database: Database;
  /** The folder of the images. */
  uploads: string;
  maxImageSize: number;
  /** The name of the channel on which new posts are announced. */
  channel: string;
}

/** What is announced of a post. */
type Announcement = Pick<Post, "id" | "title" | "author">;

type FormContext = Context & { form: Form };
type Handler<C = Context> = (context: C) => Reply | Promise<Reply>;

const ROUTES: Record<string, Handler> = {
  "GET /": (context) => page(indexPage(context, findPosts(context))),
  "GET /posts/:id": (context) => page(postPage(context, findPost(context))),
  "GET /register": (context) => page(accountPage(context, "Register")),
  "POST /register": withForm(register),
  "GET /login": (context) => page(accountPage(context, "Log in")),
  "POST /login": withForm(login),
  "POST /logout": withForm(logout),
  "GET /create": (context) => context.user ? page(editPage(context)) : redirect(context.url("/login")),
  "POST /create": withForm(create),
  "GET /posts/:id/edit": (context) => page(editPage(context, findOwnPost(context))),
  "POST /posts/:id/edit": withForm(update),
  "POST /posts/:id/delete": withForm(remove),
  "GET /events": events,
  "GET /api/posts": (context) => json(findPosts(context).map((post) => publish(context, post))),
  "POST /api/posts": createByApi,
  "GET /api/posts/:id": (context) => json(publish(context, findPost(context))),
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
    const session = readSession(parseCookies(environ).session, secret);
    const user = session.userId === undefined ? undefined : database.user(session.userId);
    const root = encodeURI(fromNativeString(environ.SCRIPT_NAME));
    return { session, user, url: (path) => root + path };
  };

  const pages: Application = async (environ, startResponse) => {
    const { handler, params } = find(environ);
    const { session, user, url } = visit(environ);
    const before = JSON.stringify(session);
    const reply = await handler({ environ, params, session, user, url, database, uploads, maxImageSize, channel });
    const headers = [...reply.headers];
    if (JSON.stringify(session) !== before) {
      const secure = environ["wsgi.url_scheme"] === "https";
      const cookie = { maxAge: SESSION_AGE, path: url("") || "/", secure };
      headers.push(["Set-Cookie", formatCookie("session", writeSession(session, secret), cookie)]);
    }
    startResponse(reply.status, headers);
    return reply.body;
  };

  const render: ErrorPageOptions["render"] = (status, error, environ) => {
    if (environ.PATH_INFO.startsWith("/api/")) return undefined; // JSON, or text
    return `${errorView(visit(environ), status, error)}`;
  };

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

/** Reads the form of a request for its handler, and refuses one that another site has made. */
function withForm(handler: Handler<FormContext>): Handler {
  return async (context) => {
    const { environ, maxImageSize, session, uploads, user } = context;
    const check = (fields: Map<string, string>) => {
      if (!isCsrfToken(session, fields.get("token"))) throw httpError(403, "The form is too old, open its page again");
    };
    await using form = await readForm(environ, { folder: user && uploads, maxImageSize, check });
    return await handler({ ...context, form });
  };
}

async function register(context: FormContext): Promise<Reply> {
  const { database, form, session, url } = context;
  const name = form.text("name");
  const password = form.fields.get("password") ?? "";
  const refuse = (error: string) => invalid(accountPage(context, "Register", error));
  if (name === "" || name.length > 40) return refuse("A name has 1 to 40 characters.");
  if (password.length < 8) return refuse("A password has 8 characters or more.");
  const userId = database.addUser(name, await hashPassword(password));
  if (userId === undefined) return refuse(`The name ${name} is taken.`);
  renewSession(session, { userId, messages: [`Welcome, ${name}!`] });
  return redirect(url("/"));
}

async function login(context: FormContext): Promise<Reply> {
  const { database, form, session, url } = context;
  const user = database.user(form.text("name"));
  const isKnown = await isPassword(form.fields.get("password") ?? "", user?.password);
  if (!user || !isKnown) return invalid(accountPage(context, "Log in", "The name or the password is wrong."));
  renewSession(session, { userId: user.id, messages: [`Welcome back, ${user.name}!`] });
  return redirect(url("/"));
}

function logout({ session, url }: Context): Reply {
  renewSession(session, { messages: ["You have logged out."] });
  return redirect(url("/"));
}

function create(context: FormContext): Reply {
  const { channel, database, form, session, url, user } = context;
  if (!user) return redirect(url("/login"));
  const draft = readDraft(form);
  if (!draft) return invalid(editPage(context, undefined, TITLE_ERROR));
  const id = database.addPost(user.id, draft);
  form.keep();
  session.messages = ["Your post is online."];
  announce<Announcement>(channel, { id, title: draft.title, author: user.name });
  return redirect(url(`/posts/${id}`));
}

async function update(context: FormContext): Promise<Reply> {
  const { database, form, session, uploads, url } = context;
  const post = findOwnPost(context);
  const draft = readDraft(form, post);
  if (!draft) return invalid(editPage(context, post, TITLE_ERROR));
  database.updatePost(post.id, draft);
  form.keep();
  if (post.image && post.image !== draft.image) await rm(join(uploads, post.image), { force: true });
  session.messages = ["Your post is changed."];
  return redirect(url(`/posts/${post.id}`));
}

async function remove(context: Context): Promise<Reply> {
  const { database, session, uploads, url } = context;
  const post = findOwnPost(context);
  database.deletePost(post.id);
  if (post.image) await rm(join(uploads, post.image), { force: true });
  session.messages = ["Your post is deleted."];
  return redirect(url("/"));
}

/** Takes a post as JSON, with the token of the session in a header. */
async function createByApi({ channel, database, environ, session, url, user }: Context): Promise<Reply> {
  if (!user || !isCsrfToken(session, environ.HTTP_X_CSRF_TOKEN)) throw httpError(403, "Log in, and send X-CSRF-Token");
  const { title, body } = Object(await toRequest(environ).json()) as Record<string, unknown>;
  if (!isTitle(title) || typeof body !== "string") throw httpError(422, `Expected "title" and "body". ${TITLE_ERROR}`);
  const id = database.addPost(user.id, { title, body, image: null });
  announce<Announcement>(channel, { id, title, author: user.name });
  return json({ id }, "201 Created", [["Location", url(`/api/posts/${id}`)]]);
}

const TITLE_ERROR = "A title has 1 to 200 characters.";

function isTitle(title: unknown): title is string {
  return typeof title === "string" && title.trim() !== "" && title.length <= 200;
}

/** Reads a post from its form. Without a new image it keeps the one that it had. */
function readDraft(form: Form, post?: Post): Draft | undefined {
  const title = form.text("title");
  if (!isTitle(title)) return undefined;
  return { title, body: form.text("body"), image: form.image ?? post?.image ?? null };
}

/** Keeps a page informed, beginning with what it has missed since the post that it knows. */
function events({ channel, database, environ, url }: Context): Reply {
  const after = Number(environ.HTTP_LAST_EVENT_ID ?? new URLSearchParams(environ.QUERY_STRING).get("after")) || 0;
  const body = listen<Announcement>(channel, {
    missed: database.posts({ after }).reverse().map(({ id, title, author }) => ({ id, title, author })),
    link: ({ id }) => url(`/posts/${id}`),
    stopping: environ["fetch.context"]!.stopping,
  });
  return { status: "200 OK", headers: [["Content-Type", "text/event-stream"], ["Cache-Control", "no-store"]], body };
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
function publish({ url }: Context, { authorId: _, ...post }: Post): unknown {
  return { ...post, image: post.image && url(`/uploads/${post.image}`) };
}
