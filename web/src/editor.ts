/**
 * The labels and areas as the page holds them: changed at once here, saved one after the other, undone and redone.
 *
 * The server's file may be edited by another program (QGIS) meanwhile. A write names the revision that it builds on; where
 * the server holds another one, its content is adopted, and the change is made again unless it concerns a shape that was
 * changed there, too. Then theirs stays and ours is offered.
 */

import { ApiError, ConflictError, type Kind, type Written } from "./api.ts";
import type { MultiPolygon, Polygon, Revision, Shape, Shapes } from "./types.ts";

export interface Content {
  geometry: Polygon | MultiPolygon;
  properties: Record<string, unknown>;
}

/** A shape; `key` is the page's own name for it, since a shape drawn just now has no id yet and one restored a new id. */
export interface Item {
  readonly key: string;
  readonly kind: Kind;
  id: string | number | null;
  content: Content;
}

/** From null: created. To null: deleted. */
interface Change {
  kind: Kind;
  key: string;
  before: Content | null;
  after: Content | null;
}

type Step = { type: "change"; change: Change } | { type: "subtract"; key: string; geometry: Polygon | MultiPolygon };

export interface Conflict {
  change: Change;
  /** What the file holds now; null: deleted. */
  theirs: Content | null;
}

export type Status = "saved" | "saving" | "waiting";

/** The requests that the editor makes; `Api` has them. */
export interface Storage {
  shapes(kind: Kind): Promise<Shapes>;
  create(kind: Kind, feature: Shape, revision: Revision | null): Promise<Written>;
  /** What `change` leaves out stays as it is. */
  update(kind: Kind, id: string | number, change: Partial<Content>, revision: Revision | null): Promise<Written>;
  remove(kind: Kind, id: string | number, revision: Revision | null): Promise<Written>;
  subtract(id: string | number, geometry: Polygon | MultiPolygon, revision: Revision | null): Promise<Written>;
}

export interface Callbacks {
  /** The shapes or what can be undone changed. */
  onChange: () => void;
  onStatus: (status: Status) => void;
  onConflict: (conflict: Conflict) => void;
  /** A change was merged with one made by another program. */
  onMerged: () => void;
  /** The server refused a change for good. */
  onRefused: (detail: string) => void;
  pause: (seconds: number) => Promise<void>;
}

const KINDS: readonly Kind[] = ["labels", "areas"];
const MAX_PAUSE_S = 30;
const TOLERANCE = 1e-8; // degrees: a millimetre

export class Editor {
  private readonly items = new Map<string, Item>();
  private readonly kinds = new Map<string, Kind>();
  /** Ids of shapes in the file, also of those deleted here but not there yet. */
  private readonly ids = new Map<string, string | number>();
  /** What the file held for each key when last heard of. */
  private readonly confirmed = new Map<string, Content>();
  private readonly undoable: Change[][] = [];
  private readonly redoable: Change[][] = [];
  private queue: Step[] = [];
  private revision: Revision | null = null;
  private announced: Revision | null = null;
  /** Revisions that our own writes made. */
  private readonly written = new Set<string>();
  private keys = 0;
  private changes = 0;
  private running: Promise<void> | null = null;
  private readonly storage: Storage;
  private readonly callbacks: Callbacks;

  constructor(storage: Storage, callbacks: Callbacks) {
    this.storage = storage;
    this.callbacks = callbacks;
  }

  list(kind: Kind): Item[] {
    return [...this.items.values()].filter((item) => item.kind === kind);
  }

  get(key: string): Item | undefined {
    return this.items.get(key);
  }

  get canUndo(): boolean {
    return this.undoable.length > 0;
  }

  get canRedo(): boolean {
    return this.redoable.length > 0;
  }

  get hasUnsaved(): boolean {
    return this.queue.length > 0;
  }

  /** Read both layers anew. What was read before a change made meanwhile is out of date, and read again. */
  async load(): Promise<void> {
    for (let before = -1; before !== this.changes; ) {
      await this.running;
      before = this.changes;
      const [labels, areas] = await Promise.all([this.storage.shapes("labels"), this.storage.shapes("areas")]);
      if (before !== this.changes) continue;
      this.adopt("labels", labels);
      this.adopt("areas", areas);
    }
    this.callbacks.onChange();
  }

  /** The server said that the file now has this revision; it says so of our own writes, too, sometimes late. */
  async hear(revision: Revision): Promise<void> {
    if (this.written.has(String(revision))) return;
    this.announced = revision;
    if (!this.hasUnsaved) await this.loadAnnounced();
  }

  private async loadAnnounced(): Promise<void> {
    const { announced, revision } = this;
    this.announced = null;
    if (announced !== null && String(announced) !== String(revision)) await this.load();
  }

  create(kind: Kind, content: Content): string {
    const key = `k${++this.keys}`;
    this.perform([{ kind, key, before: null, after: content }]);
    return key;
  }

  update(key: string, content: Content): void {
    const item = this.items.get(key);
    if (item) this.perform([{ kind: item.kind, key, before: item.content, after: content }]);
  }

  remove(key: string): void {
    const item = this.items.get(key);
    if (item) this.perform([{ kind: item.kind, key, before: item.content, after: null }]);
  }

  /** Cut a shape out of labels; the server computes what remains. */
  subtract(keys: readonly string[], geometry: Polygon | MultiPolygon): void {
    this.queue.push(...keys.map((key): Step => ({ type: "subtract", key, geometry })));
    this.save();
  }

  undo(): void {
    const changes = this.undoable.pop();
    if (!changes) return;
    const reverse = changes.map((change) => ({ ...change, before: change.after, after: change.before })).reverse();
    this.redoable.push(changes);
    this.enact(reverse);
  }

  redo(): void {
    const changes = this.redoable.pop();
    if (!changes) return;
    this.undoable.push(changes);
    this.enact(changes);
  }

  /** Make a change that lost against another program's after all. */
  insist({ change, theirs }: Conflict): void {
    const kept = theirs !== null && this.items.has(change.key);
    this.perform([{ ...change, before: kept ? theirs : null }]);
  }

  /** Resolves when nothing waits to be saved. */
  async settled(): Promise<void> {
    await this.running;
  }

  private perform(changes: Change[]): void {
    this.undoable.push(changes);
    this.redoable.length = 0;
    this.enact(changes);
  }

  private enact(changes: Change[]): void {
    for (const change of changes) {
      this.put(change.kind, change.key, change.after);
      this.queue.push({ type: "change", change });
    }
    this.callbacks.onChange();
    this.save();
  }

  private put(kind: Kind, key: string, content: Content | null): void {
    this.kinds.set(key, kind);
    const item = this.items.get(key);
    if (content === null) this.items.delete(key);
    else if (item) item.content = content;
    else this.items.set(key, { key, kind, id: this.ids.get(key) ?? null, content });
  }

  private save(): void {
    this.changes += 1;
    this.running ??= this.drain().finally(() => {
      this.running = null;
      void this.loadAnnounced().catch(() => undefined);
    });
  }

  private async drain(): Promise<void> {
    this.callbacks.onStatus("saving");
    let pause = 1;
    for (let step = this.queue[0]; step !== undefined; step = this.queue[0]) {
      try {
        await this.send(step);
        this.queue.shift();
        pause = 1;
      } catch (error) {
        pause = await this.recover(step, error, pause);
      }
    }
    this.callbacks.onStatus("saved");
  }

  private async recover(step: Step, error: unknown, pause: number): Promise<number> {
    if (error instanceof ConflictError) {
      await this.merge(step, error.collection);
      return 1;
    }
    if (error instanceof ApiError && error.status < 500) {
      this.abandon(keyOf(step));
      this.revert(step);
      this.callbacks.onRefused(error.message);
      this.callbacks.onChange();
      return 1;
    }
    this.callbacks.onStatus("waiting");
    await this.callbacks.pause(pause);
    return Math.min(2 * pause, MAX_PAUSE_S);
  }

  private async send(step: Step): Promise<void> {
    if (step.type === "subtract") {
      await this.sendSubtraction(step.key, step.geometry);
      return;
    }
    const { kind, key, after } = step.change;
    const id = this.ids.get(key);
    if (after === null) {
      if (id === undefined) return;
      this.hold(await this.storage.remove(kind, id, this.revision));
      this.forget(key);
    } else {
      const written = id === undefined
        ? this.storage.create(kind, { type: "Feature", ...after }, this.revision)
        : this.storage.update(kind, id, differenceOf(step.change.before, after), this.revision);
      const [saved] = this.hold(await written);
      if (saved?.id !== undefined) this.identify(key, saved.id);
      this.confirmed.set(key, saved ? contentOf(saved) : after);
    }
  }

  private async sendSubtraction(key: string, geometry: Polygon | MultiPolygon): Promise<void> {
    const [item, id] = [this.items.get(key), this.ids.get(key)];
    if (!item || id === undefined) return;
    const remaining = this.hold(await this.storage.subtract(id, geometry, this.revision));
    const changes: Change[] = [];
    const same = remaining.find((feature) => String(feature.id) === String(id));
    changes.push({ kind: "labels", key, before: item.content, after: same ? contentOf(same) : null });
    for (const feature of remaining) {
      if (feature === same) continue;
      const part = `k${++this.keys}`;
      if (feature.id !== undefined) this.identify(part, feature.id);
      changes.push({ kind: "labels", key: part, before: null, after: contentOf(feature) });
    }
    for (const change of changes) {
      this.put("labels", change.key, change.after);
      if (change.after) this.confirmed.set(change.key, change.after);
      else this.forget(change.key);
    }
    this.undoable.push(changes);
    this.redoable.length = 0;
    this.callbacks.onChange();
  }

  private hold(written: Written): Shape[] {
    if (written.revision !== null) {
      this.revision = written.revision;
      this.written.add(String(written.revision));
    }
    return written.features;
  }

  private identify(key: string, id: string | number): void {
    this.ids.set(key, id);
    const item = this.items.get(key);
    if (item) item.id = id;
  }

  private forget(key: string): void {
    this.ids.delete(key);
    this.confirmed.delete(key);
  }

  /** Take over what the file holds now; drop the step, with those that build on it, where the file's shape changed, too. */
  private async merge(step: Step, collection: Shapes): Promise<void> {
    const [key, kind] = [keyOf(step), kindOf(step)];
    const known = this.confirmed.get(key) ?? null;
    const mine = this.items.get(key)?.content ?? null;
    const theirs = this.contentIn(collection, key);
    const untouched = !this.ids.has(key) || sameContent(theirs, known) || sameContent(theirs, mine);
    if (!untouched) this.abandon(key);
    this.adopt(kind, collection);
    for (const other of KINDS) if (other !== kind) this.adopt(other, await this.storage.shapes(other));
    if (untouched) this.callbacks.onMerged();
    else this.callbacks.onConflict({ change: { kind, key, before: known, after: mine }, theirs });
    this.callbacks.onChange();
  }

  private contentIn(collection: Shapes, key: string): Content | null {
    const id = this.ids.get(key);
    const found = collection.features.find((feature) => id !== undefined && String(feature.id) === String(id));
    return found ? contentOf(found) : null;
  }

  /** Forget the changes of a shape that wait to be saved, and those that could be undone. */
  private abandon(key: string): void {
    this.queue = this.queue.filter((each) => keyOf(each) !== key);
    for (const stack of [this.undoable, this.redoable]) {
      stack.splice(0, stack.length, ...stack.filter((changes) => changes.every((change) => change.key !== key)));
    }
  }

  private adopt(kind: Kind, collection: Shapes): void {
    this.revision = collection.revision;
    const waiting = new Set(this.queue.map(keyOf));
    const keys = new Map([...this.ids].filter(([key]) => this.kinds.get(key) === kind).map(([key, id]) => [String(id), key]));
    const kept = new Set<string>();
    for (const feature of collection.features) {
      const key = keys.get(String(feature.id)) ?? `k${++this.keys}`;
      kept.add(key);
      this.kinds.set(key, kind);
      if (feature.id !== undefined) this.identify(key, feature.id);
      this.confirmed.set(key, contentOf(feature));
      if (!waiting.has(key)) this.put(kind, key, contentOf(feature));
    }
    for (const key of keys.values()) if (!kept.has(key)) this.drop(key, waiting.has(key));
  }

  private drop(key: string, isWaiting: boolean): void {
    this.forget(key);
    if (!isWaiting) this.items.delete(key);
  }

  private revert(step: Step): void {
    const key = keyOf(step);
    this.put(kindOf(step), key, this.confirmed.get(key) ?? null);
  }
}

function keyOf(step: Step): string {
  return step.type === "subtract" ? step.key : step.change.key;
}

function kindOf(step: Step): Kind {
  return step.type === "subtract" ? "labels" : step.change.kind;
}

/** Return what differs, so that a write does not touch the rest. */
export function differenceOf(before: Content | null, after: Content): Partial<Content> {
  const changed = Object.entries(after.properties).filter(([name, value]) => !sameValue(before?.properties[name], value));
  const geometry = sameValue(before?.geometry, after.geometry) ? {} : { geometry: after.geometry };
  return { ...geometry, properties: Object.fromEntries(changed) };
}

export function contentOf(feature: Shape): Content {
  return { geometry: feature.geometry, properties: { ...feature.properties } };
}

/** Whether two contents agree: properties exactly, coordinates within a millimetre. */
export function sameContent(a: Content | null, b: Content | null): boolean {
  return sameValue(a, b);
}

function sameValue(a: unknown, b: unknown): boolean {
  if (typeof a === "number" && typeof b === "number") return Math.abs(a - b) <= TOLERANCE;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const [inA, inB] = [a as Record<string, unknown>, b as Record<string, unknown>];
  const names = Object.keys(inA);
  return names.length === Object.keys(inB).length && names.every((name) => name in inB && sameValue(inA[name], inB[name]));
}
