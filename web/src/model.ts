/** The state of the page and what the user can do with it; no elements, no map. */

import type { Api } from "./api.ts";
import { type Callbacks, type Conflict, Editor, type Item, type Status } from "./editor.ts";
import { boundsOf, boundsOverlap } from "./geometry.ts";
import { mergeJob } from "./jobs.ts";
import { initialViews, type LayerView, renewViews } from "./layers.ts";
import type { Bounds, Download, Job, MultiPolygon, Polygon, Project, QuickState, Revision, Round, Shape } from "./types.ts";
import { areaProperties, isRandom, type Task, tasksOf } from "./work.ts";

export type Tool = "inspect" | "select" | "polygon" | "rectangle" | "subtract" | "area";
export type Topic = "project" | "views" | "shapes" | "selection" | "tool" | "task" | "jobs" | "status" | "notice" | "results" | "quick";

/** Refused: the server was started again, with another token. */
export type Connection = "connected" | "lost" | "refused";

export interface Notice {
  text: string;
  isError: boolean;
  action?: { label: string; run: () => void };
}

const RENEWAL_MS = 1000;
const REST_MS = 500; // the map rests before its view is mapped

export class Model {
  readonly api: Api;
  readonly editor: Editor;
  project: Project;
  views: LayerView[];
  /** Thresholds that the user chose, by class value. */
  readonly thresholds = new Map<number, number>();
  /** Whether only images are shown, to look at what the maps cover. */
  hidesMaps = false;
  tool: Tool = "inspect";
  className: string;
  selected: string | null = null;
  suggestions: Shape[] = [];
  task: Task | null = null;
  /** What the map shows. */
  view: Bounds | null = null;
  jobs: Job[] = [];
  rounds: Round[] = [];
  files: Download[] = [];
  status: Status = "saved";
  connection: Connection = "connected";
  quick: QuickState = { state: "off", text: "", seconds: null };
  notice: Notice | null = null;
  private heardJobs = 0;
  private rest: ReturnType<typeof setTimeout> | undefined;
  private renewal: ReturnType<typeof setTimeout> | undefined;
  private readonly listeners = new Map<Topic, (() => void)[]>();

  constructor(api: Api, project: Project) {
    this.api = api;
    this.project = project;
    this.views = initialViews(project.layers);
    this.className = (project.classes.find((each) => each.value !== 0) ?? project.classes[0])?.name ?? "";
    this.editor = new Editor(api, this.callbacks());
  }

  on(topics: readonly Topic[], listener: () => void): void {
    for (const topic of topics) this.listeners.set(topic, [...(this.listeners.get(topic) ?? []), listener]);
  }

  emit(topic: Topic): void {
    for (const listener of this.listeners.get(topic) ?? []) listener();
  }

  get canLabel(): boolean {
    return this.project.can.label && !this.project.read_only;
  }

  get canImport(): boolean {
    return this.canLabel && this.project.can.upload;
  }

  get canTrain(): boolean {
    return this.project.can.train && !this.project.read_only;
  }

  get tasks(): Task[] {
    return tasksOf(this.editor.list("areas"), this.suggestions);
  }

  get selectedItem(): Item | undefined {
    return this.selected === null ? undefined : this.editor.get(this.selected);
  }

  colorOfClass(name: string): string {
    return this.project.classes.find((each) => each.name === name)?.color ?? "#8a8f94";
  }

  /** Read the project again, with its layers' revisions. */
  async reload(): Promise<void> {
    this.project = await this.api.project();
    this.views = renewViews(this.views, this.project.layers);
    this.emit("project");
    this.emit("views");
    await this.loadResults();
  }

  /** The labels changed: the errors of the maps did, too. */
  hearLabels(revision: Revision): void {
    void this.editor.hear(revision).catch(this.fail);
    clearTimeout(this.renewal);
    this.renewal = setTimeout(() => void this.renewLayers().catch(this.fail), RENEWAL_MS);
  }

  private async renewLayers(): Promise<void> {
    const { layers } = await this.api.project();
    const known = new Map(layers.map((layer) => [layer.id, layer]));
    const same = layers.length === this.views.length && this.views.every(({ layer }) => known.has(layer.id));
    this.project = { ...this.project, layers };
    if (same) for (const view of this.views) view.layer = known.get(view.layer.id) ?? view.layer;
    else {
      this.views = renewViews(this.views, layers);
      this.emit("project");
    }
    this.emit("views");
  }

  async loadShapes(): Promise<void> {
    if (this.project.kind !== "project") return;
    await this.editor.load();
    this.suggestions = (await this.api.shapes("suggestions")).features;
    this.emit("shapes");
  }

  async loadResults(): Promise<void> {
    const heard = this.heardJobs;
    const [rounds, files, jobs] = await Promise.all([this.api.history(), this.api.files(), this.api.jobs()]);
    this.rounds = rounds;
    this.files = files;
    // What the stream told meanwhile is newer.
    if (heard === this.heardJobs) this.jobs = jobs;
    this.emit("results");
    this.emit("jobs");
  }

  hearJob(job: Job): void {
    this.heardJobs += 1;
    const before = this.jobs.find((each) => each.id === job.id)?.state;
    this.jobs = mergeJob(this.jobs, job);
    this.emit("jobs");
    if (job.state === "done" && before !== "done") void this.reload().then(() => this.loadShapes()).catch(this.fail);
  }

  hearQuick(quick: QuickState): void {
    this.quick = quick;
    this.emit("quick");
  }

  /** Tell the server what the map shows, which it maps quickly as long as no network is trained. */
  lookAt(bounds: Bounds): void {
    if (!this.project.quick || !this.canTrain) return;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => void this.api.lookAt(bounds).catch(this.fail), REST_MS);
  }

  hearConnection(connection: Connection): void {
    if (this.connection === connection) return;
    this.connection = connection;
    this.emit("status");
  }

  changeView(view: LayerView, change: Partial<LayerView>): void {
    Object.assign(view, change);
    this.emit("views");
  }

  toggleMaps(): void {
    this.hidesMaps = !this.hidesMaps;
    this.emit("views");
  }

  setThreshold(classValue: number, threshold: number | null): void {
    if (threshold === null) this.thresholds.delete(classValue);
    else this.thresholds.set(classValue, threshold);
    this.emit("views");
  }

  setTool(tool: Tool): void {
    if (tool !== "inspect" && !this.canLabel) return;
    this.tool = tool;
    if (tool !== "subtract") this.select(null);
    this.emit("tool");
  }

  select(key: string | null): void {
    this.selected = key;
    this.emit("selection");
  }

  chooseClass(name: string): void {
    this.className = name;
    const item = this.selectedItem;
    if (item?.kind === "labels") this.setProperties(item, { class: name, origin: "drawn" });
    else if (this.tool === "inspect") this.setTool("polygon");
    this.emit("tool");
  }

  /** Do what the tool does with a finished shape. */
  finish(geometry: Polygon): void {
    if (this.tool === "subtract") {
      this.cut(geometry);
    } else if (this.tool === "area") {
      const key = this.editor.create("areas", { geometry, properties: { role: "training", origin: "drawn", labelled: false, rank: null, scene: null } });
      this.setTool("select");
      this.select(key);
    } else {
      this.editor.create("labels", { geometry, properties: { class: this.className, origin: "drawn", note: null } });
    }
  }

  private cut(geometry: Polygon): void {
    const bounds = boundsOf(geometry);
    const chosen = this.selectedItem?.kind === "labels" ? [this.selectedItem] : this.editor.list("labels");
    const keys = chosen.filter((item) => boundsOverlap(boundsOf(item.content.geometry), bounds)).map((item) => item.key);
    if (keys.length === 0) this.say("No label is there to subtract from.");
    else this.editor.subtract(keys, geometry);
  }

  reshape(geometry: Polygon | MultiPolygon): void {
    const item = this.selectedItem;
    if (!item) return;
    // An outline that a person corrected is no longer the model's.
    this.editor.update(item.key, { geometry, properties: { ...item.content.properties, origin: "drawn" } });
  }

  setProperties(item: Item, properties: Record<string, unknown>): void {
    this.editor.update(item.key, { ...item.content, properties: { ...item.content.properties, ...properties } });
  }

  removeSelected(): void {
    const item = this.selectedItem;
    if (!item || !mayReshape(item)) return;
    this.select(null);
    this.editor.remove(item.key);
  }

  /** Go to the next (1) or previous (-1) area to label. */
  moveTask(step: number): void {
    const tasks = this.tasks;
    const now = tasks.findIndex((task) => isSameTask(task, this.task));
    const next = now < 0 ? (step > 0 ? 0 : tasks.length - 1) : (now + step + tasks.length) % tasks.length;
    this.task = tasks[next] ?? null;
    this.emit("task");
  }

  /** Make a suggestion an area, to be labelled. */
  acceptTask(): void {
    if (!isSuggestion(this.task)) return;
    const { geometry } = this.task;
    const key = this.editor.create("areas", { geometry, properties: areaProperties(this.task) });
    this.task = this.tasks.find((task) => task.key === key) ?? null;
    this.emit("task");
  }

  /** Say that everything in the area of the task is labelled, and go to the next. */
  finishTask(): void {
    const key = this.task?.key ?? null;
    const item = key === null ? undefined : this.editor.get(key);
    if (!item) return;
    this.setProperties(item, { labelled: true });
    this.task = this.tasks[0] ?? null;
    this.emit("task");
  }

  say(text: string, action?: Notice["action"]): void {
    this.notice = { text, isError: false, ...(action ? { action } : {}) };
    this.emit("notice");
  }

  readonly fail = (error: unknown): void => {
    this.notice = { text: error instanceof Error ? error.message : String(error), isError: true };
    this.emit("notice");
  };

  private callbacks(): Callbacks {
    return {
      onChange: () => {
        if (this.selected !== null && !this.editor.get(this.selected)) this.select(null);
        this.emit("shapes");
      },
      onStatus: (status) => {
        this.status = status;
        this.emit("status");
      },
      onMerged: () => { this.say("Another program changed the labels, too; both changes are kept."); },
      onConflict: (conflict) => { this.sayConflict(conflict); },
      onRefused: (detail) => { this.fail(new Error(`Not saved: ${detail}`)); },
      pause: (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000)),
    };
  }

  private sayConflict(conflict: Conflict): void {
    const what = conflict.change.kind === "labels" ? "label" : "area";
    const did = conflict.theirs === null ? "deleted" : "changed";
    this.say(`Another program ${did} this ${what} meanwhile; its version is shown.`, {
      label: "Use mine",
      run: () => { this.editor.insist(conflict); },
    });
  }
}

/** Whether the shape may be moved or deleted: without one of its areas, a random sample is none any more. */
export function mayReshape(item: Item): boolean {
  return item.kind === "labels" || !isRandom(item.content.properties);
}

function isSuggestion(task: Task | null): task is Task {
  return task?.key === null;
}

function isSameTask(a: Task, b: Task | null): boolean {
  if (b === null || a.key !== b.key) return false;
  return a.key !== null || a.geometry === b.geometry;
}
