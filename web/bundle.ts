/** A Vite plugin: writes the licences of what is bundled and the hash of the sources beside the bundle. */

import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "vite";

/** What the bundle is made from; tests/server/test_page.py reads the same list. */
export const SOURCES = ["bundle.ts", "index.html", "package-lock.json", "package.json", "public", "src", "tsconfig.json", "vite.config.ts"];

interface Manifest {
  name: string;
  version: string;
  license?: string;
  author?: string | { name: string };
  dependencies?: Record<string, string>;
}

/** Return the sources' files, sorted, relative to `root`. */
export function sourceFiles(root: string): string[] {
  const found = SOURCES.flatMap((name) => {
    const folder = name === "public" || name === "src";
    const names = folder ? readdirSync(join(root, name), { recursive: true, withFileTypes: true }) : [];
    const inside = names.filter((each) => each.isFile()).map((each) => join(each.parentPath, each.name).slice(root.length + 1));
    return folder ? inside : [name];
  });
  return found.map((name) => name.replaceAll("\\", "/")).sort();
}

/** Return the SHA-256 of the sources: for each file its name, a zero byte, its content with LF ends, a zero byte. */
export function sourceHash(root: string): string {
  const hash = createHash("sha256");
  for (const name of sourceFiles(root)) {
    hash.update(`${name}\0`).update(readFileSync(join(root, name), "utf8").replaceAll("\r\n", "\n")).update("\0");
  }
  return hash.digest("hex");
}

function readManifest(root: string, name: string): Manifest {
  return JSON.parse(readFileSync(join(root, "node_modules", name, "package.json"), "utf8")) as Manifest;
}

/** Return the packages that the page needs, directly or not, without those that are types only. */
export function bundledPackages(root: string): string[] {
  const own = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Manifest;
  const queue = Object.keys(own.dependencies ?? {});
  const found = new Set<string>();
  for (let name = queue.pop(); name !== undefined; name = queue.pop()) {
    if (found.has(name) || name.startsWith("@types/")) continue;
    found.add(name);
    queue.push(...Object.keys(readManifest(root, name).dependencies ?? {}));
  }
  return [...found].sort();
}

const MIT = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`;

/** Return a package's licence file; for MIT without a file, the text of that licence with the author that it names. */
function licenceText(folder: string, { name, license, author }: Manifest): string {
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  if (file !== undefined) return readFileSync(join(folder, file), "utf8").trim();
  const holder = typeof author === "object" ? author.name : author;
  if (license !== "MIT" || holder === undefined) throw new Error(`${name} has no licence file: add its text here or do without it`);
  return `Copyright (c) ${holder}\n\n${MIT}`;
}

/** Return the licence texts of the bundled packages. MapLibre's own files hold its dependencies, so these count. */
export function licenceTexts(root: string): string {
  const texts = bundledPackages(root).map((name) => {
    const manifest = readManifest(root, name);
    const text = licenceText(join(root, "node_modules", name), manifest);
    return `${manifest.name} ${manifest.version} (${manifest.license ?? "see below"})\n\n${text}\n`;
  });
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}

export function stamp(root: string): Plugin {
  return {
    name: "stamp",
    generateBundle() {
      if (!existsSync(join(root, "node_modules"))) this.error("node_modules is missing: run npm ci");
      this.emitFile({ type: "asset", fileName: "LICENSES.txt", source: licenceTexts(root) });
      this.emitFile({ type: "asset", fileName: "source.sha256", source: `${sourceHash(root)}\n` });
    },
  };
}
