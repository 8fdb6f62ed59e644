import type { Polygon } from "geojson";
import { beforeEach, describe, expect, it } from "vitest";

import { ApiError, ConflictError, type Kind, type Written } from "../src/api.ts";
import { type Conflict, type Content, differenceOf, Editor, sameContent, type Storage } from "../src/editor.ts";
import type { Shape, Shapes } from "../src/types.ts";

const box = (at: number): Polygon => ({ type: "Polygon", coordinates: [[[at, 0], [at + 1, 0], [at + 1, 1], [at, 1], [at, 0]]] });
const label = (at: number, name = "forest") => ({ geometry: box(at), properties: { class: name, origin: "drawn" } });

/** A file with revisions, as the server keeps it. */
class File implements Storage {
  readonly held: Record<Kind, Shape[]> = { labels: [], areas: [] };
  revision = 1;
  failures: Error[] = [];
  private next = 1;

  shapes(kind: Kind): Promise<Shapes> {
    return Promise.resolve({ type: "FeatureCollection", features: structuredClone(this.held[kind]), revision: this.revision });
  }

  create(kind: Kind, feature: Shape, revision: unknown): Promise<Written> {
    return this.write(kind, revision, () => {
      const saved = { ...structuredClone(feature), id: this.next++ };
      this.held[kind].push(saved);
      return [saved];
    });
  }

  update(kind: Kind, id: string | number, change: Partial<Content>, revision: unknown): Promise<Written> {
    return this.write(kind, revision, () => {
      const index = this.held[kind].findIndex((each) => each.id === id);
      const known = this.held[kind][index];
      if (!known) throw new ApiError(404, "no such shape");
      const saved = { ...known, ...structuredClone(change), properties: { ...known.properties, ...change.properties } };
      this.held[kind][index] = saved;
      return [saved];
    });
  }

  remove(kind: Kind, id: string | number, revision: unknown): Promise<Written> {
    return this.write(kind, revision, () => {
      this.held[kind] = this.held[kind].filter((each) => each.id !== id);
      return [];
    });
  }

  /** Leaves the left half, and a second part far away. */
  subtract(id: string | number, _geometry: unknown, revision: unknown): Promise<Written> {
    return this.write("labels", revision, () => {
      const index = this.held.labels.findIndex((each) => each.id === id);
      const whole = this.held.labels[index];
      if (!whole) throw new ApiError(404, "no such shape");
      const parts = [{ ...whole, geometry: box(20) }, { ...whole, geometry: box(30), id: this.next++ }];
      this.held.labels.splice(index, 1, ...parts);
      return parts;
    });
  }

  /** Another program writes. */
  edit(change: () => void): void {
    change();
    this.revision += 1;
  }

  private async write(kind: Kind, revision: unknown, change: () => Shape[]): Promise<Written> {
    await Promise.resolve();
    const failure = this.failures.shift();
    if (failure) throw failure;
    if (String(revision) !== String(this.revision)) throw new ConflictError("changed meanwhile", await this.shapes(kind));
    const features = change();
    this.revision += 1;
    return { features: structuredClone(features), revision: String(this.revision) };
  }
}

let file: File;
let editor: Editor;
let said: string[];
let conflicts: Conflict[];

beforeEach(async () => {
  file = new File();
  said = [];
  conflicts = [];
  editor = new Editor(file, {
    onChange: () => undefined,
    onStatus: (status) => said.push(status),
    onConflict: (conflict) => conflicts.push(conflict),
    onMerged: () => said.push("merged"),
    onRefused: (detail) => said.push(detail),
    pause: () => Promise.resolve(),
  });
  await editor.load();
});

const classes = () => file.held.labels.map((each) => each.properties?.["class"] as string);
const shown = () => editor.list("labels").map((item) => item.content.properties["class"]);

describe("saving", () => {
  it("shows a change at once and saves it", async () => {
    editor.create("labels", label(0));
    expect(shown()).toEqual(["forest"]);
    expect(file.held.labels).toEqual([]);
    await editor.settled();
    expect(classes()).toEqual(["forest"]);
    expect(said).toEqual(["saving", "saved"]);
  });

  it("saves quick changes of a shape that has no id yet in order", async () => {
    const key = editor.create("labels", label(0));
    editor.update(key, label(1, "water"));
    editor.update(key, label(2, "field"));
    await editor.settled();
    expect(classes()).toEqual(["field"]);
    editor.remove(key);
    await editor.settled();
    expect(classes()).toEqual([]);
  });

  it("tries again where the server does not answer", async () => {
    file.failures = [new TypeError("network"), new ApiError(503, "down")];
    editor.create("labels", label(0));
    await editor.settled();
    expect(classes()).toEqual(["forest"]);
    expect(said).toEqual(["saving", "waiting", "waiting", "saved"]);
  });

  it("takes back what the server refuses, and goes on with the rest", async () => {
    file.failures = [new ApiError(422, "the polygon crosses itself")];
    editor.create("labels", label(0));
    editor.create("labels", label(5, "water"));
    await editor.settled();
    expect(shown()).toEqual(["water"]);
    expect(classes()).toEqual(["water"]);
    expect(said).toContain("the polygon crosses itself");
    editor.undo();
    expect(editor.canUndo).toBe(false);
  });
});

describe("undo and redo", () => {
  it("restore deleted shapes, which get new ids, and their later changes", async () => {
    const key = editor.create("labels", label(0));
    editor.update(key, label(0, "water"));
    editor.remove(key);
    await editor.settled();
    expect(classes()).toEqual([]);
    editor.undo();
    await editor.settled();
    expect(classes()).toEqual(["water"]);
    editor.undo();
    editor.undo();
    await editor.settled();
    expect(classes()).toEqual([]);
    editor.redo();
    editor.redo();
    await editor.settled();
    expect(classes()).toEqual(["water"]);
    expect(file.held.labels[0]?.id).toBe(3);
  });

  it("undo a subtraction: the parts become the whole again", async () => {
    const key = editor.create("labels", label(0));
    await editor.settled();
    editor.subtract([key], box(0));
    await editor.settled();
    expect(file.held.labels.map((each) => each.geometry)).toEqual([box(20), box(30)]);
    expect(shown()).toHaveLength(2);
    editor.undo();
    await editor.settled();
    expect(file.held.labels.map((each) => each.geometry)).toEqual([box(0)]);
  });

  it("forget what was undone once something else is changed", () => {
    editor.create("labels", label(0));
    editor.undo();
    expect(editor.canRedo).toBe(true);
    editor.create("labels", label(1));
    expect(editor.canRedo).toBe(false);
  });
});

describe("a file changed by another program", () => {
  let key: string;

  beforeEach(async () => {
    key = editor.create("labels", label(0));
    editor.create("labels", label(5, "water"));
    await editor.settled();
  });

  const relabel = (index: number, name: string) => {
    const shape = file.held.labels[index];
    if (shape) shape.properties = { ...shape.properties, class: name };
  };

  it("keeps both changes where they concern different shapes", async () => {
    file.edit(() => { relabel(1, "field"); });
    editor.update(key, label(0, "rock"));
    await editor.settled();
    expect(classes()).toEqual(["rock", "field"]);
    expect(shown()).toEqual(["rock", "field"]);
    expect(said).toContain("merged");
    expect(conflicts).toEqual([]);
  });

  it("keeps theirs where both changed the same shape, and ours on demand", async () => {
    file.edit(() => { relabel(0, "field"); });
    editor.update(key, label(0, "rock"));
    editor.update(key, label(1, "rock"));
    await editor.settled();
    expect(classes()).toEqual(["field", "water"]);
    expect(shown()).toEqual(["field", "water"]);
    const [conflict] = conflicts;
    if (!conflict) throw new Error("no conflict");
    expect(conflicts).toHaveLength(1);
    editor.insist(conflict);
    await editor.settled();
    expect(classes()).toEqual(["rock", "water"]);
    expect(file.held.labels[0]?.geometry).toEqual(box(1));
  });

  it("keeps a deletion, and makes the shape again on demand", async () => {
    file.edit(() => file.held.labels.shift());
    editor.update(key, label(0, "rock"));
    await editor.settled();
    expect(shown()).toEqual(["water"]);
    const [conflict] = conflicts;
    if (!conflict) throw new Error("no conflict");
    expect(conflict.theirs).toBeNull();
    editor.insist(conflict);
    await editor.settled();
    expect(classes()).toEqual(["water", "rock"]);
  });

  it("agrees silently where both deleted the same shape", async () => {
    file.edit(() => file.held.labels.shift());
    editor.remove(key);
    await editor.settled();
    expect(classes()).toEqual(["water"]);
    expect(shown()).toEqual(["water"]);
    expect(conflicts).toEqual([]);
  });

  it("creates a shape, whatever else was changed, and does not show it twice", async () => {
    file.edit(() => { relabel(0, "field"); });
    editor.create("labels", label(9, "rock"));
    await editor.settled();
    expect(classes()).toEqual(["field", "water", "rock"]);
    expect(shown().toSorted()).toEqual(["field", "rock", "water"]);
  });

  it("reads the file when it hears of a change, and not for its own", async () => {
    file.edit(() => { relabel(1, "field"); });
    await editor.hear(file.revision);
    expect(shown()).toEqual(["forest", "field"]);
    const reads = file.shapes.bind(file);
    let count = 0;
    file.shapes = (kind) => {
      count += 1;
      return reads(kind);
    };
    await editor.hear(file.revision);
    expect(count).toBe(0);
  });

  it("does not take what it read before its own change for news", async () => {
    const old = await file.shapes("labels");
    const reads = file.shapes.bind(file);
    const answers: (() => void)[] = [];
    file.shapes = (kind) => new Promise((resolve) => answers.push(() => { resolve(kind === "labels" ? old : { ...old, features: [] }); }));
    const hearing = editor.hear("of another program");
    await Promise.resolve();
    file.shapes = reads;
    editor.update(key, label(0, "rock"));
    await editor.settled();
    expect(answers).toHaveLength(2);
    for (const answer of answers) answer();
    await hearing;
    editor.undo();
    await editor.settled();
    editor.redo();
    await editor.settled();
    expect(classes()).toEqual(["rock", "water"]);
    expect(shown()).toEqual(["rock", "water"]);
    expect(conflicts).toEqual([]);
  });

  it("knows the revisions that it wrote, however late it hears of them", async () => {
    const late = file.revision;
    editor.update(key, label(0, "rock"));
    await editor.settled();
    file.shapes = () => Promise.reject(new Error("read without need"));
    await editor.hear(late);
    await editor.hear(file.revision);
    expect(shown()).toEqual(["rock", "water"]);
  });

  it("does not show a shape again that was deleted here and not there yet", async () => {
    file.edit(() => { relabel(1, "field"); });
    editor.remove(key);
    await editor.settled();
    expect(shown()).toEqual(["field"]);
    expect(classes()).toEqual(["field"]);
  });
});

describe("sameContent", () => {
  it("ignores rounding of coordinates, not other changes", () => {
    const near = label(0);
    near.geometry.coordinates = [[[1e-9, 0], [1, 0], [1, 1], [0, 1], [1e-9, 0]]];
    expect(sameContent(label(0), near)).toBe(true);
    expect(sameContent(label(0), label(0.001))).toBe(false);
    expect(sameContent(label(0), label(0, "water"))).toBe(false);
    expect(sameContent(label(0), null)).toBe(false);
  });
});

describe("differenceOf", () => {
  it("has only what a write must touch", () => {
    expect(differenceOf(label(0), label(0, "water"))).toEqual({ properties: { class: "water" } });
    expect(differenceOf(label(0), label(1))).toEqual({ geometry: box(1), properties: {} });
    expect(differenceOf(null, label(0))).toEqual(label(0));
  });
});
