/**
 * Users and posts, in SQLite, which both runtimes have built in.
 *
 * @module
 */

import { DatabaseSync } from "node:sqlite";

/** A user, with a hash of the password. */
export interface User {
  id: number;
  name: string;
  password: string;
}

/** A post, with the name of its author, and of the file of its image. */
export interface Post {
  id: number;
  authorId: number;
  author: string;
  created: string;
  title: string;
  body: string;
  image: string | null;
}

/** What an author writes. */
export type Draft = Pick<Post, "title" | "body" | "image">;

const SCHEMA = `
  PRAGMA journal_mode = WAL; -- readers and a writer do not wait for each other
  CREATE TABLE IF NOT EXISTS users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    password TEXT NOT NULL
  );
  CREATE TABLE IF NOT EXISTS posts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- an id is not given again
    author_id INTEGER NOT NULL REFERENCES users (id),
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ')),
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    image TEXT
  );
`;

const POSTS = `
  SELECT posts.id, author_id AS authorId, name AS author, created, title, body, image
  FROM posts JOIN users ON users.id = author_id
`;

/** The database of the blog. Each worker opens it for itself. */
export class Database {
  readonly #db: DatabaseSync;

  constructor(path: string) {
    this.#db = new DatabaseSync(path, { timeout: 5000 });
    this.#db.exec(SCHEMA);
  }

  /** The user of an id or a name. */
  user(key: number | string): User | undefined {
    const column = typeof key === "number" ? "id" : "name";
    return this.#db.prepare(`SELECT id, name, password FROM users WHERE ${column} = ?`).get(key) as User | undefined;
  }

  /** Adds a user and gives its id, or nothing when the name is taken. */
  addUser(name: string, password: string): number | undefined {
    const sql = "INSERT INTO users (name, password) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id";
    return (this.#db.prepare(sql).get(name, password) as Pick<User, "id"> | undefined)?.id;
  }

  /** The last posts before an id, the newest first. */
  posts({ before = Number.MAX_SAFE_INTEGER, limit = 10 } = {}): Post[] {
    const sql = `${POSTS} WHERE posts.id < ? ORDER BY posts.id DESC LIMIT ?`;
    return this.#db.prepare(sql).all(before, limit) as unknown as Post[];
  }

  /** The first posts after an id, the oldest first. */
  postsAfter(id: number, limit = 10): Post[] {
    const sql = `${POSTS} WHERE posts.id > ? ORDER BY posts.id LIMIT ?`;
    return this.#db.prepare(sql).all(id, limit) as unknown as Post[];
  }

  /** A post. */
  post(id: number): Post | undefined {
    return this.#db.prepare(`${POSTS} WHERE posts.id = ?`).get(id) as Post | undefined;
  }

  /** Adds a post and gives its id. */
  addPost(authorId: number, { title, body, image }: Draft): number {
    const sql = "INSERT INTO posts (author_id, title, body, image) VALUES (?, ?, ?, ?)";
    return Number(this.#db.prepare(sql).run(authorId, title, body, image).lastInsertRowid);
  }

  /** Changes a post. */
  updatePost(id: number, { title, body, image }: Draft): void {
    this.#db.prepare("UPDATE posts SET title = ?, body = ?, image = ? WHERE id = ?").run(title, body, image, id);
  }

  /** Deletes a post. */
  deletePost(id: number): void {
    this.#db.prepare("DELETE FROM posts WHERE id = ?").run(id);
  }
}
