/**
 * HTML by a tagged template, which escapes all that is put into it.
 *
 * @module
 */

/** Text that is HTML already. */
export class Html extends String {}

/** Makes HTML. Text is escaped, HTML is not, lists are joined, and nothing comes of `false`, `null` and `undefined`. */
export function html(strings: TemplateStringsArray, ...values: unknown[]): Html {
  // Not `strings.raw`, in which Bun writes "–" as "\u2013": https://github.com/oven-sh/bun/issues/8745
  return new Html(String.raw({ raw: strings }, ...values.map(render)));
}

function render(value: unknown): string {
  if (value instanceof Html) return value.toString();
  if (Array.isArray(value)) return value.map(render).join("");
  if (value === false || value === null || value === undefined) return "";
  return String(value).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
