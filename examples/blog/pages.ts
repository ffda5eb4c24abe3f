/**
 * The pages of the blog. Each gets the context of its request: who asks, and where the blog is mounted.
 *
 * @module
 */

import type { ResponseBody } from "../../mod.ts";
import type { Context, Visit } from "./app.ts";
import type { Post } from "./db.ts";
import { type Html, html } from "./html.ts";
import { csrfToken, type Session } from "./session.ts";

/** What stands around each page: navigation, messages, and the place for announcements. */
function layout({ session, root, user }: Visit, title: string, content: Html): Html {
  const messages = session.messages ?? [];
  delete session.messages; // each is shown once
  return html`
    <!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width">
        <title>${title} – Blog</title>
        <link rel="stylesheet" href="${root}/static/style.css">
        <script src="${root}/static/live.js" defer></script>
      </head>
      <body>
        <header>
          <a href="${root}/"><strong>Blog</strong></a>
          <nav>
            ${user
              ? html`
                <span>${user.name}</span>
                <a href="${root}/create">New post</a>
                <form method="post" action="${root}/logout">${tokenField(session)}<button>Log out</button></form>
              `
              : html`<a href="${root}/register">Register</a> <a href="${root}/login">Log in</a>`}
          </nav>
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

/** Responds with a page. If there is an error, its form is to be corrected. */
function page(context: Context, title: string, content: Html, error = ""): ResponseBody {
  const alert = error && html`<p class="error" role="alert">${error}</p>`;
  // Rendered first: it takes the messages out of the session, whose cookie leaves with the start of the response.
  const text = `${layout(context, title, html`${alert}${content}`)}`;
  context.startResponse(error ? "422 Unprocessable Content" : "200 OK", [
    ["Content-Type", "text/html; charset=utf-8"],
    ["Cache-Control", "private, no-cache"],
    ["Vary", "Cookie"],
  ]);
  return [new TextEncoder().encode(text)];
}

/** A list of posts, and where new ones are announced. */
export function indexPage(context: Context, posts: Post[]): ResponseBody {
  const { database, root } = context;
  const [newest] = database.posts({ limit: 1 });
  const [older] = database.posts({ before: posts.at(-1)?.id ?? 0, limit: 1 });
  const content = html`
    <ul id="live" aria-live="polite" data-events="${root}/events" data-after="${newest?.id ?? 0}"></ul>
    ${posts.map((post) => article(context, post, html`<h2><a href="${root}/posts/${post.id}">${post.title}</a></h2>`))}
    ${posts.length === 0 && html`<p>There is nothing here yet.</p>`}
    ${older && html`<p><a href="${root}/?before=${older.id + 1}">Older posts</a></p>`}
  `;
  return page(context, "Posts", content);
}

/** One post. */
export function postPage(context: Context, post: Post): ResponseBody {
  return page(context, post.title, article(context, post));
}

/** The form of a new post, or of one that is changed. */
export function editPage(context: Context, { post, error }: { post?: Post; error?: string } = {}): ResponseBody {
  const { form, root, session } = context;
  const title = form.fields.get("title") ?? post?.title;
  const body = form.fields.get("body") ?? post?.body;
  const content = html`
    <form method="post" enctype="multipart/form-data">
      ${tokenField(session)}
      <label>Title <input name="title" required maxlength="200" value="${title}"></label>
      <label>Text <textarea name="body" rows="10">${body}</textarea></label>
      <label>Image <input name="image" type="file" accept="image/gif, image/jpeg, image/png, image/webp"></label>
      <button>Save</button>
    </form>
    ${post && html`
      <form method="post" action="${root}/posts/${post.id}/delete">
        ${tokenField(session)}
        <button class="danger">Delete the post</button>
      </form>
    `}
  `;
  return page(context, post ? "Edit the post" : "New post", content, error);
}

/** The form of a name and a password. */
export function accountPage(context: Context, title: "Register" | "Log in", error?: string): ResponseBody {
  const name = context.form.text("name");
  const password = title === "Register" ? "new-password" : "current-password";
  const content = html`
    <form method="post">
      ${tokenField(context.session)}
      <label>Name <input name="name" required maxlength="40" autocomplete="username" value="${name}"></label>
      <label>Password <input name="password" type="password" required autocomplete="${password}"></label>
      <button>${title}</button>
    </form>
  `;
  return page(context, title, content, error);
}

/** The page for an error. Only what was thrown for the visitor says why. */
export function errorView(visit: Visit, status: string, error: unknown): Html {
  const { expose, message } = Object(error) as { expose?: boolean; message?: string };
  visit.session.messages = []; // the next page shows them, since the cookie stays as it is
  return layout(visit, status.slice(4), html`<p>${expose === true && message}</p>`);
}

/** The field by which a form proves that it comes from a page of the blog. It is the first, before any image. */
function tokenField(session: Session): Html {
  return html`<input type="hidden" name="token" value="${csrfToken(session)}">`;
}

function article({ root, user }: Context, post: Post, title?: Html): Html {
  return html`
    <article>
      ${title}
      <p class="about">
        by ${post.author} on <time datetime="${post.created}">${post.created.slice(0, 10)}</time>
        ${user?.id === post.authorId && html`<a href="${root}/posts/${post.id}/edit">Edit</a>`}
      </p>
      ${post.image && html`<img src="${root}/uploads/${post.image}" alt="${post.title}">`}
      <p class="body">${post.body}</p>
    </article>
  `;
}
