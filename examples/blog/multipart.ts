/**
 * Forms: fields in memory, an image on disk, both within limits.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { randomUUID } from "node:crypto";
import { appendFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Environ, InputStream } from "../../mod.ts";
import { httpError } from "./http.ts";

/** What a form may bring. */
export interface FormOptions {
  /** The folder for the image. Without it the form may have none. */
  folder: string | undefined;
  /** The largest image, in bytes. */
  maxImageSize: number;
  /** Refuses a form by throwing: called with the fields so far before an image is read, and at the end. */
  check(): void;
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

/** The form of a request. Its image is deleted with it, unless it is kept: `await using form = …`. */
export class Form {
  fields = new URLSearchParams();
  /** The image that came with the form: the name of its file. */
  image: string | undefined;
  /** The path of an image that is not kept so far. */
  #unkept: string | undefined;

  /** The text of a field. */
  text(name: string): string {
    return this.fields.get(name) ?? "";
  }

  /** Reads a form of either type. */
  async read(environ: Environ, options: FormOptions): Promise<void> {
    const { CONTENT_TYPE: type = "", "wsgi.input": input } = environ;
    const [, boundary] = /^multipart\/form-data;.*\bboundary="?([^"\s;]+)/i.exec(type) ?? [];
    if (boundary !== undefined) await this.#readParts(input, boundary, options);
    else if (/^application\/x-www-form-urlencoded\b/i.test(type)) await this.#readPairs(input);
    else throw httpError(415, "Expected a form");
    options.check();
  }

  /** Leaves the image where it is. */
  keep(): void {
    this.#unkept = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#unkept !== undefined) await rm(this.#unkept, { force: true });
  }

  /** Reads `application/x-www-form-urlencoded`. */
  async #readPairs(input: InputStream): Promise<void> {
    const bytes = await input.read(MAX_TEXT + 1);
    if (bytes.length > MAX_TEXT) throw httpError(413, "The text of the form is too large");
    this.fields = new URLSearchParams(new TextDecoder().decode(bytes));
  }

  /** Reads `multipart/form-data` as it arrives. RFC 7578, section 4. */
  async #readParts(input: InputStream, boundary: string, options: FormOptions): Promise<void> {
    let buffer = Buffer.from("\r\n"); // the first boundary may be the first line
    let room = MAX_TEXT;

    /** Adds to the buffer what has arrived. */
    const fill = async () => {
      const chunk = await input.read1();
      if (chunk.length === 0) throw httpError(400, "The form is cut off");
      buffer = Buffer.concat([buffer, chunk]);
    };

    /** Gives what comes before a mark, in pieces. Only the last can be shorter than the start of an image. */
    const until = async function* (mark: string) {
      let end: number;
      while ((end = buffer.indexOf(mark, 0, "latin1")) < 0) {
        const size = buffer.length - mark.length; // the mark may have begun
        if (size >= IMAGE_START) {
          yield buffer.subarray(0, size);
          buffer = buffer.subarray(size);
        }
        await fill();
      }
      if (end > 0) yield buffer.subarray(0, end);
      buffer = buffer.subarray(end + mark.length);
    };

    const text = async (mark: string) => {
      const bytes = Buffer.concat(await Array.fromAsync(limit(until(mark), room, "text")));
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
      const isFile = /^content-disposition:.*;\s*filename\*?=/im.test(head);
      if (isFile) await this.#saveImage(until(delimiter), options);
      else this.fields.set(name, await text(delimiter));
    }
  }

  /** Writes an image to a file with a name of its own. Where no file was chosen, there are no pieces. */
  async #saveImage(pieces: AsyncIterable<Buffer>, options: FormOptions): Promise<void> {
    let path: string | undefined;
    for await (const piece of limit(pieces, options.maxImageSize, "image")) {
      path ??= this.#nameImage(piece, options);
      await appendFile(path, piece);
    }
  }

  /** Checks how an image begins, and returns the path of its file. */
  #nameImage(start: Buffer, { check, folder }: FormOptions): string {
    check();
    if (folder === undefined) throw httpError(403, "Log in first");
    if (this.image) throw httpError(400, "The form has an image too many");
    const [extension] = IMAGES.find(([, pattern]) => pattern.test(start.toString("latin1", 0, IMAGE_START))) ?? [];
    if (!extension) throw httpError(415, "Expected an image: GIF, JPEG, PNG or WebP");
    this.image = randomUUID() + extension;
    return this.#unkept = join(folder, this.image);
  }
}

/** Passes bytes on, up to a limit. */
async function* limit(pieces: AsyncIterable<Buffer>, size: number, what: string): AsyncGenerator<Buffer> {
  for await (const piece of pieces) {
    size -= piece.length;
    if (size < 0) throw httpError(413, `The ${what} of the form is too large`);
    yield piece;
  }
}
