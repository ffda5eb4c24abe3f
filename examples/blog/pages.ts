/**
 * The pages of the blog. Each gets the context of its request: who asks, and where the blog is mounted.
 *
 * @module
 */

import type { Context, Visit } from "./app.ts";
import type { Post } from "./db.ts";
import { type Html, html } from "./html.ts";
import { csrfToken } from "./session.ts";

/** What stands around each page: navigation, messages, and the place for announcements. */
function layout({ session, url, user }: Visit, title: string, content: Html): Html {
  const messages = session.messages ?? [];
  delete session.messages; // each is shown once
  const visitor = html`<a href="${url("/register")}">Register</a> <a href="${url("/login")}">Log in</a>`;
  const author = () =>
    html`
      <span>${user?.name}</span>
      <a href="${url("/create")}">New post</a>
      <form method="post" action="${url("/logout")}">${tokenField(session)}<button>Log out</button></form>
    `;
  return html`
    <!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width">
        <title>${title} – Blog</title>
        <link rel="stylesheet" href="${url("/static/style.css")}">
        <script src="${url("/static/live.js")}" defer></script>
      </head>
      <body>
        <header>
          <a href="${url("/")}"><strong>Blog</strong></a>
          <nav>${user ? author() : visitor}</nav>
        </header>
        <main>
          ${messages.map((message) => html`<p class="message" role="status">${message}</p>`)}
          <h1>${title}</h1>
          ${content}
        </main>
      </body>
    </html>
  `;
}

/** A list of posts, and where new ones are announced. */
export function indexPage(context: Context, posts: Post[]): Html {
  const { database, url } = context;
  const [newest] = database.posts({ limit: 1 });
  const [older] = database.posts({ before: posts.at(-1)?.id ?? 0, limit: 1 });
  const content = html`
    <ul id="live" aria-live="polite" data-events="${url("/events")}" data-after="${newest?.id ?? 0}"></ul>
    ${posts.map((post) => article(context, post, html`<h2><a href="${linkOf(context, post)}">${post.title}</a></h2>`))}
    ${posts.length === 0 && html`<p>There is nothing here yet.</p>`}
    ${older && html`<p><a href="${url(`/?before=${older.id + 1}`)}">Older posts</a></p>`}
  `;
  return layout(context, "Posts", content);
}

/** One post. */
export function postPage(context: Context, post: Post): Html {
  return layout(context, post.title, article(context, post));
}

/** The form of a new post, or of one that is changed. */
export function editPage(context: Context, post?: Post, error?: string): Html {
  const { form, session, url } = context;
  const title = form?.fields.get("title") ?? post?.title;
  const body = form?.fields.get("body") ?? post?.body;
  const remove = () =>
    html`
      <form method="post" action="${url(`/posts/${post?.id}/delete`)}">
        ${tokenField(session)}
        <button class="danger">Delete the post</button>
      </form>
    `;
  const content = html`
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <form method="post" enctype="multipart/form-data">
      ${tokenField(session)}
      <label>Title <input name="title" required maxlength="200" value="${title}"></label>
      <label>Text <textarea name="body" rows="10">${body}</textarea></label>
      <label>Image <input name="image" type="file" accept="image/gif, image/jpeg, image/png, image/webp"></label>
      <button>Save</button>
    </form>
    ${post && remove()}
  `;
  return layout(context, post ? "Edit the post" : "New post", content);
}

/** The form of a name and a password. */
export function accountPage(context: Context, title: "Register" | "Log in", error?: string): Html {
  const password = title === "Register" ? "new-password" : "current-password";
  const name = context.form?.fields.get("name");
  const content = html`
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <form method="post">
      ${tokenField(context.session)}
      <label>Name <input name="name" required maxlength="40" autocomplete="username" value="${name}"></label>
      <label>Password <input name="password" type="password" required autocomplete="${password}"></label>
      <button>${title}</button>
    </form>
  `;
  return layout(context, title, content);
}

/** The page for an error. Only what was thrown for the visitor says why. */
export function errorView(visit: Visit, status: string, error: unknown): Html {
  const { expose, message } = Object(error) as { expose?: boolean; message?: string };
  visit.session.messages = []; // the next page shows them, since the cookie stays as it is
  return layout(visit, status.slice(4), html`<p>${expose === true && message}</p>`);
}

/** The field by which a form proves that it comes from a page of the blog. It is the first, before any image. */
function tokenField(session: Context["session"]): Html {
  return html`<input type="hidden" name="token" value="${csrfToken(session)}">`;
}

function article(context: Context, post: Post, title?: Html): Html {
  const link = linkOf(context, post);
  return html`
    <article>
      ${title}
      <p class="about">
        by ${post.author} on <time datetime="${post.created}">${post.created.slice(0, 10)}</time>
        ${context.user?.id === post.authorId && html`<a href="${link}/edit">Edit</a>`}
      </p>
      ${post.image && html`<img src="${context.url(`/uploads/${post.image}`)}" alt="${post.title}">`}
      <p class="body">${post.body}</p>
    </article>
  `;
}

function linkOf({ url }: Context, { id }: Post): string {
  return url(`/posts/${id}`);
}
