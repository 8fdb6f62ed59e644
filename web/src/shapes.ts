/** Labels, areas and suggestions on the map. */

import type { ExpressionSpecification, GeoJSONSource, LayerSpecification, Map as MapLibreMap } from "maplibre-gl";

import type { Item } from "./editor.ts";
import type { MapClass, Shape } from "./types.ts";

const OTHER = "#8a8f94";
export const ACCENT = { training: "#2f7dd1", scoring: "#c2410c", suggestion: "#a21caf" };

/** Layers from the bottom to the top; the raster layers are below the first. */
export const LOWEST = "areas-fill";

const SOURCES = ["areas", "labels", "suggestions", "focus"] as const;
type SourceName = (typeof SOURCES)[number];

const ROLE_COLOR: ExpressionSpecification = ["match", ["get", "role"], "scoring", ACCENT.scoring, ACCENT.training];

function colorExpression(classes: readonly MapClass[]): ExpressionSpecification | string {
  if (classes.length === 0) return OTHER;
  const match: unknown[] = ["match", ["get", "class"], ...classes.flatMap(({ name, color }) => [name, color]), OTHER];
  return match as ExpressionSpecification;
}

function line(id: string, source: SourceName, paint: Record<string, unknown>, filter?: ExpressionSpecification): LayerSpecification {
  return { id, source, type: "line", paint, ...(filter ? { filter } : {}) };
}

const LABELLED: ExpressionSpecification = ["==", ["get", "labelled"], true];
const SUGGESTED: ExpressionSpecification = ["==", ["get", "origin"], "suggested"];

/** Add the sources and layers, empty. */
export function addShapes(map: MapLibreMap, classes: readonly MapClass[]): void {
  for (const name of SOURCES) map.addSource(name, { type: "geojson", data: { type: "FeatureCollection", features: [] } });
  const color = colorExpression(classes);
  const layers: LayerSpecification[] = [
    { id: LOWEST, source: "areas", type: "fill", paint: { "fill-color": ROLE_COLOR, "fill-opacity": ["case", LABELLED, 0, 0.1] } },
    { id: "labels-fill", source: "labels", type: "fill", paint: { "fill-color": color, "fill-opacity": 0.25 } },
    line("labels-case", "labels", { "line-color": "#ffffff", "line-width": 4, "line-opacity": 0.55 }),
    line("labels-line", "labels", { "line-color": color, "line-width": 2 }, ["!", SUGGESTED]),
    line("labels-line-suggested", "labels", { "line-color": color, "line-width": 2, "line-dasharray": [2, 1.5] }, SUGGESTED),
    line("areas-line", "areas", { "line-color": ROLE_COLOR, "line-width": 2.5 }, LABELLED),
    line("areas-line-open", "areas", { "line-color": ROLE_COLOR, "line-width": 2.5, "line-dasharray": [4, 2] }, ["!", LABELLED]),
    line("suggestions-line", "suggestions", { "line-color": ACCENT.suggestion, "line-width": 2, "line-dasharray": [1, 1.5] }),
    line("focus-case", "focus", { "line-color": "#000000", "line-width": 6, "line-opacity": 0.6 }),
    line("focus-line", "focus", { "line-color": "#ffffff", "line-width": 3 }),
  ];
  for (const layer of layers) map.addLayer(layer);
}

/** Show or hide the layers of a source. */
export function showSource(map: MapLibreMap, source: SourceName, visible: boolean): void {
  for (const layer of map.getStyle().layers) {
    if ("source" in layer && layer.source === source) map.setLayoutProperty(layer.id, "visibility", visible ? "visible" : "none");
  }
}

function setFeatures(map: MapLibreMap, source: SourceName, features: Shape[]): void {
  void map.getSource<GeoJSONSource>(source)?.setData({ type: "FeatureCollection", features });
}

/** Show items; `hidden` is the key of one that is being edited and drawn by the editing tool. */
export function showItems(map: MapLibreMap, source: "labels" | "areas", items: readonly Item[], hidden: string | null): void {
  const shown = items.filter((item) => item.key !== hidden);
  setFeatures(map, source, shown.map(({ key, content }) => ({ type: "Feature", geometry: content.geometry, properties: { ...content.properties, key } })));
}

export function showSuggestions(map: MapLibreMap, shapes: readonly Shape[]): void {
  setFeatures(map, "suggestions", [...shapes]);
}

/** Outline one shape in white and black, or none. */
export function showFocus(map: MapLibreMap, geometry: Shape["geometry"] | null): void {
  setFeatures(map, "focus", geometry ? [{ type: "Feature", geometry, properties: {} }] : []);
}

/** Return the key of the label, else of the area, at a point of the screen. */
export function keyAt(map: MapLibreMap, point: { x: number; y: number }): string | null {
  const box: [[number, number], [number, number]] = [[point.x - 4, point.y - 4], [point.x + 4, point.y + 4]];
  const inside = map.queryRenderedFeatures([point.x, point.y], { layers: ["labels-fill"] });
  const near = inside.length > 0 ? inside : map.queryRenderedFeatures(box, { layers: ["areas-line", "areas-line-open"] });
  const found = near.length > 0 ? near : map.queryRenderedFeatures([point.x, point.y], { layers: [LOWEST] });
  const key: unknown = found[0]?.properties["key"];
  return typeof key === "string" ? key : null;
}
