/** The raster layers of a project and how each is shown. */

import type { LayerKind, MapClass, RasterLayer } from "./types.ts";

export type Stretch = readonly [low: number, high: number];

export interface LayerView {
  layer: RasterLayer;
  visible: boolean;
  opacity: number;
  /** Bands shown as red, green and blue, or one as grey; numbers from 1. */
  bands: number[];
  /** Percentiles shown as black and white. */
  stretch: Stretch;
  /** Probabilities: the class above the threshold, or the probability itself. */
  style: "threshold" | "probability";
}

export const STRETCHES: readonly Stretch[] = [[0, 100], [0.5, 99.5], [2, 98], [5, 95]];

/** From the bottom to the top of the map. */
const ORDER: readonly LayerKind[] = ["image", "uncertainty", "applicability", "classes", "probability", "errors"];

export const KIND_NAMES: Record<LayerKind, string> = {
  image: "Image",
  classes: "Map",
  probability: "Probability",
  uncertainty: "Uncertainty",
  applicability: "Applicability",
  errors: "Errors",
};

/** Whether tiles have values that the GPU colours by a threshold: probabilities, and errors of maps that have them. */
export function hasThreshold({ kind, threshold }: RasterLayer): boolean {
  return kind === "probability" || (kind === "errors" && threshold !== null);
}

/** Return views in drawing order: images and, of each scene, one map visible. */
export function initialViews(layers: readonly RasterLayer[]): LayerView[] {
  const mapped = new Set<string>();
  return inDrawingOrder(layers).map((layer) => {
    const first = isMap(layer) && layer.id === mapShownFirst(layers, layer.group)?.id && !mapped.has(layer.group);
    if (first) mapped.add(layer.group);
    return initialView(layer, layer.kind === "image" || first);
  });
}

function isMap(layer: RasterLayer): boolean {
  return layer.kind === "classes" || layer.kind === "probability";
}

/** The probability where there is one class to map (its threshold can be moved), else the classes. */
function mapShownFirst(layers: readonly RasterLayer[], group: string): RasterLayer | undefined {
  const inGroup = layers.filter((layer) => layer.group === group);
  const probabilities = inGroup.filter((layer) => layer.kind === "probability");
  const classes = inGroup.find((layer) => layer.kind === "classes");
  return probabilities.length === 1 ? probabilities[0] : (classes ?? probabilities[0]);
}

function initialView(layer: RasterLayer, visible: boolean): LayerView {
  const opacity = { image: 1, errors: 0.9 }[layer.kind as string] ?? 0.7;
  const style = layer.threshold === null ? "probability" : "threshold";
  return { layer, visible, opacity, bands: [...layer.default_bands], stretch: [2, 98], style };
}

/** Return views of a project read anew: what the user chose is kept, new layers are as at first. */
export function renewViews(views: readonly LayerView[], layers: readonly RasterLayer[]): LayerView[] {
  const known = new Map(views.map((view) => [view.layer.id, view]));
  return initialViews(layers).map((view) => {
    const before = known.get(view.layer.id);
    return before ? { ...before, layer: view.layer } : view;
  });
}

export function inDrawingOrder(layers: readonly RasterLayer[]): RasterLayer[] {
  return [...layers].sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind));
}

/** Return scenes with their views, topmost first, as a legend lists them. */
export function byScene(views: readonly LayerView[]): Map<string, LayerView[]> {
  const scenes = new Map<string, LayerView[]>();
  for (const view of views) scenes.set(view.layer.group, [view, ...(scenes.get(view.layer.group) ?? [])]);
  return scenes;
}

/** Return the address of a view's tiles with the placeholders of MapLibre. */
export function tileUrl(view: LayerView, origin: string): string {
  const { layer } = view;
  const folder = `${origin}/api/layers/${encodeURIComponent(layer.id)}`;
  const version = encodeURIComponent(layer.revision);
  if (hasThreshold(layer)) return `${folder}/values/{z}/{x}/{y}.png?v=${version}`;
  const look = layer.kind === "image" ? `bands=${view.bands.join(",")}&low=${view.stretch[0]}&high=${view.stretch[1]}&` : "";
  return `${folder}/tiles/{z}/{x}/{y}.png?${look}v=${version}`;
}

const FALLBACK = "#0b6b4f";

/** Return the colour of a layer's class; of the last class where the layer names none. */
export function colorOf(layer: RasterLayer, classes: readonly MapClass[]): string {
  const found = classes.find((each) => each.value === layer.class_value) ?? classes.at(-1);
  return found?.color ?? FALLBACK;
}

/** Return the thresholds by class value: those of the user, else the layers'. */
export function thresholdOf(layer: RasterLayer, chosen: ReadonlyMap<number, number>): number {
  return chosen.get(layer.class_value ?? 1) ?? layer.threshold ?? 0.5;
}
