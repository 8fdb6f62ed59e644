/** What to label next: the areas not labelled yet and the suggestions, in order. */

import type { Item } from "./editor.ts";
import { boundsOf } from "./geometry.ts";
import type { Shape } from "./types.ts";

export interface Task {
  /** The key of an area, or null: a suggestion that is no area yet. */
  key: string | null;
  geometry: Shape["geometry"];
  role: string;
  reason: string;
  properties: Record<string, unknown>;
}

/** Return what is to be labelled: areas before suggestions, scoring before training, then by rank. */
export function tasksOf(areas: readonly Item[], suggestions: readonly Shape[]): Task[] {
  const open = areas.filter((area) => area.content.properties["labelled"] !== true).map(areaTask);
  const taken = new Set(areas.map((area) => extent(area.content.geometry)));
  const rest = suggestions.filter((each) => !taken.has(extent(each.geometry))).map(suggestionTask);
  return [...open.sort(before), ...rest.sort(before)];
}

/** The bounding box to about a metre: a suggestion that became an area is written and read with rounding. */
function extent(geometry: Shape["geometry"]): string {
  return boundsOf(geometry).map((value) => value.toFixed(5)).join();
}

function areaTask(area: Item): Task {
  const { geometry, properties } = area.content;
  const reason = isRandom(properties) ? "it belongs to the random sample that measures the map's accuracy" : "it is not labelled yet";
  return { key: area.key, geometry, role: textOf(properties["role"]) || "training", reason, properties };
}

function suggestionTask(shape: Shape): Task {
  const properties = shape.properties ?? {};
  const reason = textOf(properties["reason"]) || "suggested by the model";
  return { key: null, geometry: shape.geometry, role: textOf(properties["role"]) || "training", reason, properties };
}

function before(a: Task, b: Task): number {
  const role = Number(b.role === "scoring") - Number(a.role === "scoring");
  return role || rankOf(a) - rankOf(b);
}

function rankOf(task: Task): number {
  const rank = task.properties["rank"];
  return typeof rank === "number" ? rank : Infinity;
}

export function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Return the properties of the area that a suggestion becomes: one for training, since somebody chose it. */
export function areaProperties(task: Task): Record<string, unknown> {
  const { rank = null, scene = null } = task.properties;
  return { role: "training", origin: "suggested", labelled: false, rank, scene };
}

/** Whether an area belongs to the random sample that scores stand on: then it may be labelled, not moved or deleted. */
export function isRandom(properties: Record<string, unknown>): boolean {
  return properties["origin"] === "random";
}
