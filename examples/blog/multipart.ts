/**
 * Forms: fields in memory, images on disk, both within limits.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { randomUUID } from "node:crypto";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Environ, InputStream } from "../../mod.ts";
import { httpError } from "./http.ts";

/** What a form may bring. */
export interface FormOptions {
  /** The folder for images. Without it the form may have none. */
  folder?: string | undefined;
  /** The largest image, in bytes. */
  maxImageSize: number;
  /** Refuses a form by throwing: called with the fields so far before an image is read, and at the end. */
  check(fields: Map<string, string>): void;
}

/** The most that is kept of fields and of the heads of parts, in bytes. */
export const MAX_TEXT = 256 * 1024;

/** How many bytes tell what an image is. */
const IMAGE_START = 12;

/** How the images begin that all browsers show, in Latin-1. The name that the client gives a file proves nothing. */
const IMAGES = [
  [".gif", /^GIF8[79]a/],
  [".jpg", /^\xff\xd8\xff/],
  [".png", /^\x89PNG\r\n/],
  [".webp", /^RIFF....WEBP/s],
] as const;

/** A form that was read. Its images are deleted with it, unless they are kept: `await using form = …`. */
export class Form {
  readonly fields = new Map<string, string>();
  /** The image that came with the form: the name of its file. */
  image: string | undefined;
  readonly #files: string[] = [];
  readonly #options: FormOptions;

  constructor(options: FormOptions) {
    this.#options = options;
  }

  /** The text of a field, without white space around it. */
  text(name: string): string {
    return this.fields.get(name)?.trim() ?? "";
  }

  /** Leaves the images where they are. */
  keep(): void {
    this.#files.length = 0;
  }

  /** Writes an image to a file with a name of its own. */
  async save(pieces: AsyncGenerator<Uint8Array>): Promise<void> {
    const { value: first, done } = await pieces.next();
    if (done) return; // no file was chosen
    this.#options.check(this.fields);
    const { folder, maxImageSize } = this.#options;
    if (folder === undefined || this.image) throw httpError(400, "The form has an image too many");
    const start = Buffer.from(first).toString("latin1", 0, IMAGE_START);
    const [extension] = IMAGES.find(([, pattern]) => pattern.test(start)) ?? [];
    if (!extension) throw httpError(415, "Expected an image: GIF, JPEG, PNG or WebP");
    const name = randomUUID() + extension;
    this.#files.push(join(folder, name));
    const all = async function* () {
      yield first;
      yield* pieces;
    };
    await writeFile(join(folder, name), limit(all(), maxImageSize, "image"), { flag: "wx" });
    this.image = name;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.#files) await rm(file, { force: true });
  }
}

/** Reads a form of either type. Where that fails, nothing is left of its images. */
export async function readForm(environ: Environ, options: FormOptions): Promise<Form> {
  const form = new Form(options);
  const type = environ.CONTENT_TYPE ?? "";
  const [, boundary] = /^multipart\/form-data;.*\bboundary="?([^"\s;]+)/i.exec(type) ?? [];
  try {
    if (boundary !== undefined) await readParts(environ["wsgi.input"], boundary, form);
    else if (/^application\/x-www-form-urlencoded\b/i.test(type)) await readPairs(environ["wsgi.input"], form);
    else throw httpError(415, "Expected a form");
    options.check(form.fields);
    return form;
  } catch (error) {
    await form[Symbol.asyncDispose]();
    throw error;
  }
}

/** Reads `application/x-www-form-urlencoded`. */
async function readPairs(input: InputStream, { fields }: Form): Promise<void> {
  const text = await input.read(MAX_TEXT + 1);
  if (text.length > MAX_TEXT) throw tooLarge("text");
  for (const [name, value] of new URLSearchParams(new TextDecoder().decode(text))) fields.set(name, value);
}

/** Reads `multipart/form-data` as it arrives. RFC 7578, section 4. */
async function readParts(input: InputStream, boundary: string, form: Form): Promise<void> {
  let buffer = Buffer.from("\r\n"); // the first boundary may be the first line
  let room = MAX_TEXT;

  /** Adds to the buffer what has arrived. */
  const fill = async () => {
    const chunk = await input.read1();
    if (chunk.length === 0) throw httpError(400, "The form is cut off");
    buffer = Buffer.concat([buffer, chunk]);
  };

  /** Gives what comes before a mark, in pieces. Only the last can be shorter than an image's first bytes. */
  const until = async function* (mark: string) {
    for (;;) {
      const end = buffer.indexOf(mark, 0, "latin1");
      const size = end >= 0 ? end : Math.max(0, buffer.length - mark.length + 1); // the mark may have begun
      const piece = buffer.subarray(0, size);
      if (end >= 0) {
        buffer = buffer.subarray(end + mark.length);
        if (size > 0) yield piece;
        return;
      }
      if (size >= IMAGE_START) {
        buffer = buffer.subarray(size);
        yield piece;
      }
      await fill();
    }
  };

  const text = async (mark: string) => {
    const pieces = await Array.fromAsync(limit(until(mark), room, "text"));
    const bytes = Buffer.concat(pieces);
    room -= bytes.length;
    return bytes.toString();
  };

  const delimiter = `\r\n--${boundary}`;
  await text(delimiter);
  for (;;) {
    while (buffer.length < 2) await fill();
    if (buffer.toString("latin1", 0, 2) === "--") return;
    const head = await text("\r\n\r\n");
    const [, name] = /^content-disposition:.*?;\s*name="([^"]*)"/im.exec(head) ?? [];
    if (name === undefined) throw httpError(400, "A part of the form has no name");
    if (/^content-disposition:.*;\s*filename\*?=/im.test(head)) await form.save(until(delimiter));
    else form.fields.set(name, await text(delimiter));
  }
}

/** Passes bytes on, up to a limit. */
async function* limit(pieces: AsyncIterable<Uint8Array>, size: number, what: string): AsyncGenerator<Uint8Array> {
  for await (const piece of pieces) {
    size -= piece.length;
    if (size < 0) throw tooLarge(what);
    yield piece;
  }
}

function tooLarge(what: string): Error {
  return httpError(413, `The ${what} of the form is too large`);
}
