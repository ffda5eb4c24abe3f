/**
 * Packages of npm that a test needs, installed into a temporary folder.
 *
 * @module
 */

import { spawnSync, type SpawnSyncReturns } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after } from "node:test";
import { fileURLToPath } from "node:url";

// What npm has fetched once it does not ask for again, and what it cannot fetch it says at once.
const NPM = { npm_config_prefer_offline: "true", npm_config_fetch_retries: "0", npm_config_update_notifier: "false" };

/** The folder of the repository. */
export const ROOT = fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, "");

/** Makes a folder that is removed after the tests. The sources of this project are its subfolder `wsgi`. */
export function makeProject(files: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), "wsgi-project-"));
  after(() => rmSync(folder, { recursive: true, force: true }));
  symlinkSync(ROOT, join(folder, "wsgi"));
  writeFiles(folder, files);
  return folder;
}

export function writeFiles(folder: string, files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
}

/** Runs a command in a folder. */
export function run(folder: string, command: string, ...args: string[]): SpawnSyncReturns<string> {
  const env = { ...process.env, ...NPM, NO_COLOR: "1" };
  return spawnSync(command, args, { cwd: folder, env, encoding: "utf8" });
}

/** Installs packages into a folder. Says and returns why they cannot be installed, or undefined. */
export function install(folder: string, ...packages: string[]): string | undefined {
  const { status, stderr, error } = run(
    folder,
    "npm",
    "install",
    "--no-audit",
    "--no-fund",
    "--loglevel=error",
    ...packages,
  );
  if (status === 0) return undefined;
  const problem = `npm cannot install ${packages.join(" ")}: ${error ?? stderr.split("\n")[0]}`;
  console.log(`Skipped, because ${problem}`); // Deno shows a test that skips itself as one that has passed
  return problem;
}
