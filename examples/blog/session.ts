/**
 * Sessions in a signed cookie, tokens against forged requests, and passwords.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { createHmac, randomBytes, scrypt, type ScryptOptions, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import { type Environ, formatCookie, parseCookies } from "../../mod.ts";
import type { Context } from "./app.ts";
import { httpError } from "./http.ts";

/** How long a session lasts, in seconds. */
export const SESSION_AGE = 30 * 24 * 60 * 60;

// 32 MiB and about a tenth of a second for each password, as in Werkzeug.
const COST: ScryptOptions = { N: 2 ** 15, r: 8, p: 1, maxmem: 64 * 1024 * 1024 };

const derive = promisify<string, string, number, ScryptOptions, Buffer>(scrypt);

/** What the blog remembers of a visitor. The visitor can read it, but not change it. */
export interface Session {
  userId?: number;
  token?: string;
  messages?: string[];
}

/** Reads the session of a request. One that is missing, forged or too old is a new session. */
export function readSession(environ: Environ, secret: string): Session {
  const [payload = "", signature = ""] = parseCookies(environ).session?.split(".") ?? [];
  if (!equals(signature, sign(payload, secret))) return {};
  const { session, expires } = JSON.parse(Buffer.from(payload, "base64url").toString());
  return expires > Date.now() ? session : {};
}

/** Makes the cookie of a session. */
export function sessionCookie({ environ, root, session }: Context, secret: string): string {
  const expires = Date.now() + SESSION_AGE * 1000;
  const payload = Buffer.from(JSON.stringify({ session, expires })).toString("base64url");
  const options = { maxAge: SESSION_AGE, path: root || "/", secure: environ["wsgi.url_scheme"] === "https" };
  return formatCookie("session", `${payload}.${sign(payload, secret)}`, options);
}

/** The token that each form of a session carries. Another site cannot know it. */
export function csrfToken(session: Session): string {
  return session.token ??= randomBytes(32).toString("base64url");
}

/** Refuses a request without the token of its session, which another site has made. */
export function checkToken(session: Session, token = ""): void {
  if (session.token !== undefined && equals(token, session.token)) return;
  throw httpError(403, "The token is missing or too old, open the form again");
}

/** Hashes a password with a salt. */
export async function hashPassword(password: string, salt = randomBytes(16).toString("base64url")): Promise<string> {
  return `${salt}.${(await derive(password, salt, 32, COST)).toString("base64url")}`;
}

/** Whether a password is the one of a hash. It takes as long without a hash, which tells nobody who has an account. */
export async function isPassword(password: string, hash = "."): Promise<boolean> {
  return equals(await hashPassword(password, hash.split(".")[0]), hash);
}

function sign(payload: string, secret: string): string {
  return createHmac("sha256", secret).update(payload).digest("base64url");
}

/** Compares in constant time. */
function equals(one: string, other: string): boolean {
  const [a, b] = [Buffer.from(one), Buffer.from(other)];
  return a.length === b.length && timingSafeEqual(a, b);
}
