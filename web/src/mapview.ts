/** The map: rasters, shapes, drawing, swiping and asking for a pixel's values. */

import "maplibre-gl/dist/maplibre-gl.css";

import { Map as MapLibreMap, type MapMouseEvent, NavigationControl, Popup, type RequestParameters, ScaleControl, setWorkerUrl } from "maplibre-gl";
import workerUrl from "maplibre-gl/dist/maplibre-gl-worker.mjs?url";

import { ApiError } from "./api.ts";
import { Drawing, type DrawMode } from "./draw.ts";
import { h } from "./dom.ts";
import { areaOf, boundsOf, isSimple, pixelAt } from "./geometry.ts";
import { formatArea, formatPosition, formatValue } from "./format.ts";
import type { Item } from "./editor.ts";
import type { LayerView } from "./layers.ts";
import { mayReshape, type Model } from "./model.ts";
import { showRasters } from "./rasters.ts";
import { addShapes, keyAt, LOWEST, showFocus, showItems, showSource, showSuggestions } from "./shapes.ts";
import { Swipe } from "./swipe.ts";
import type { Bounds } from "./types.ts";
import { textOf } from "./work.ts";

const EXTRA_ZOOM = 5; // levels beyond the finest tiles
const [BASEMAP, BASEMAP_ZOOM] = ["basemap", 19]; // the finest level that most servers have

setWorkerUrl(workerUrl);

export interface Elements {
  map: HTMLElement;
  over: HTMLElement;
  position: HTMLElement;
  /** Whose basemap is shown. */
  credit: HTMLElement;
}

export class MapView {
  readonly map: MapLibreMap;
  private readonly model: Model;
  private readonly elements: Elements;
  private drawing: Drawing | null = null;
  private swipe: { layer: string; map: MapLibreMap; control: Swipe } | null = null;
  private editing: string | null = null;
  private popup: Popup | null = null;

  constructor(model: Model, elements: Elements) {
    this.model = model;
    this.elements = elements;
    this.map = this.newMap(elements.map);
    this.map.addControl(new NavigationControl({ showCompass: false }), "top-right");
    if (model.project.georeferenced) this.map.addControl(new ScaleControl({ maxWidth: 120 }), "bottom-left");
    this.map.on("mousemove", ({ lngLat }) => { this.showPosition(lngLat.lng, lngLat.lat); });
    this.map.on("moveend", () => { this.model.view = shownBounds(this.map); });
    this.map.on("click", (event) => { this.click(event); });
    this.map.on("load", () => { this.ready(); });
    for (const [event, busy] of [["dataloading", "true"], ["idle", "false"]] as const) {
      this.map.on(event, () => { elements.map.setAttribute("aria-busy", busy); });
    }
  }

  private newMap(container: HTMLElement, interactive = true): MapLibreMap {
    const { bounds, layers } = this.model.project;
    const maxZoom = Math.min(24, Math.max(0, ...layers.map((layer) => layer.maxzoom)) + EXTRA_ZOOM);
    const map = new MapLibreMap({
      container,
      interactive,
      bounds,
      maxZoom,
      fitBoundsOptions: { padding: 24 },
      style: { version: 8, sources: {}, layers: [] },
      attributionControl: false,
      renderWorldCopies: false,
      dragRotate: false,
      pitchWithRotate: false,
      maxPitch: 0,
      canvasContextAttributes: { preserveDrawingBuffer: false },
      transformRequest: (url) => this.requestOf(url),
    });
    map.touchZoomRotate.disableRotation();
    map.keyboard.disableRotation();
    map.on("error", ({ error }) => {
      const status: unknown = "status" in error ? error.status : undefined;
      if (status !== 404) this.model.fail(new Error(`Part of the map could not be read: ${error.message}`));
    });
    return map;
  }

  private requestOf(url: string): RequestParameters {
    if (url.startsWith(`${location.origin}/api/`)) return { url, headers: this.model.api.headers };
    // Servers of tiles ask who shows them; they learn this page's host and port, never its token.
    return url.startsWith(location.origin) ? { url } : { url, referrerPolicy: "origin" };
  }

  /** Show the basemap under everything, or no more; this alone makes requests to its server. */
  showBasemap(visible: boolean): void {
    const { basemap } = this.model.project;
    const { map, elements } = this;
    elements.credit.textContent = visible && basemap ? basemap.attribution || new URL(basemap.origin).host : "";
    if (map.getLayer(BASEMAP)) {
      map.removeLayer(BASEMAP);
      map.removeSource(BASEMAP);
    }
    if (!visible || !basemap) return;
    map.addSource(BASEMAP, { type: "raster", tiles: [basemap.url], tileSize: 256, maxzoom: BASEMAP_ZOOM });
    map.addLayer({ id: BASEMAP, source: BASEMAP, type: "raster" }, map.getStyle().layers[0]?.id);
  }

  private ready(): void {
    const { map, model } = this;
    addShapes(map, model.project.classes);
    if (model.canLabel) this.drawing = this.newDrawing();
    model.on(["project", "views"], () => { this.drawRasters(); });
    model.on(["shapes", "selection"], () => { this.drawShapes(); });
    model.on(["tool"], () => { this.applyTool(); });
    model.on(["selection"], () => { this.applySelection(); });
    model.on(["task"], () => { this.goToTask(); });
    model.view = shownBounds(map);
    this.drawRasters();
    this.drawShapes();
    this.applyTool();
    const look = () => { model.lookAt(shownBounds(map)); };
    map.on("moveend", look);
    look();
  }

  private newDrawing(): Drawing {
    const { model } = this;
    return new Drawing(this.map, {
      onDrawn: (geometry) => { model.finish(geometry); },
      onEdited: (geometry) => { model.reshape(geometry); },
      onEditEnd: () => {
        this.editing = null;
        model.select(null);
      },
      neighbours: () => [...model.editor.list("labels"), ...model.editor.list("areas")]
        .filter(({ key }) => key !== this.editing)
        .map(({ content }) => content.geometry),
      color: () => this.drawColor(),
    });
  }

  private drawColor(): string {
    const { model } = this;
    if (model.tool === "subtract") return "#c81e1e";
    const item = model.selectedItem;
    if (model.tool === "area" || item?.kind === "areas") return "#2f7dd1";
    return model.colorOfClass(item ? textOf(item.content.properties["class"]) : model.className);
  }

  private drawRasters(): void {
    const { project, thresholds, hidesMaps } = this.model;
    const views = hidesMaps ? this.model.views.map((view) => ({ ...view, visible: view.visible && view.layer.kind === "image" })) : this.model.views;
    const look = { classes: project.classes, thresholds };
    showRasters(this.map, views, look, LOWEST);
    if (!this.swipe) return;
    const compared = this.model.views.find(({ layer }) => layer.id === this.swipe?.layer);
    if (compared) showRasters(this.swipe.map, this.compared(compared), look);
    else this.compare("");
  }

  private drawShapes(): void {
    const { editor, suggestions, tasks } = this.model;
    showItems(this.map, "labels", editor.list("labels"), this.editing);
    showItems(this.map, "areas", editor.list("areas"), this.editing);
    const open = new Set(tasks.map((task) => task.geometry));
    showSuggestions(this.map, suggestions.filter((shape) => open.has(shape.geometry)));
    const selected = this.model.selectedItem;
    const focus = selected?.content.geometry ?? this.model.task?.geometry ?? null;
    showFocus(this.map, selected && selected.key === this.editing ? null : focus);
  }

  showShapes(source: "labels" | "areas" | "suggestions", visible: boolean): void {
    showSource(this.map, source, visible);
  }

  fit(bounds: Bounds = this.model.project.bounds): void {
    this.map.fitBounds(bounds, { padding: 48, duration: reducedMotion() ? 0 : 300 });
  }

  private goToTask(): void {
    this.drawShapes();
    if (this.model.task) this.fit(boundsOf(this.model.task.geometry));
  }

  private applyTool(): void {
    const { tool } = this.model;
    const modes: Partial<Record<typeof tool, DrawMode>> = { polygon: "polygon", rectangle: "rectangle", subtract: "polygon", area: "rectangle" };
    this.drawing?.setMode(modes[tool] ?? null);
    this.editing = null;
    this.popup?.remove();
    this.map.getCanvas().style.cursor = tool === "inspect" || tool === "select" ? "default" : "crosshair";
    this.drawShapes();
  }

  private applySelection(): void {
    const item = this.model.selectedItem;
    if (item && item.key === this.editing) return;
    if (this.model.tool === "select") this.drawing?.setMode(null);
    this.editing = item && this.startEditing(item) ? item.key : null;
    this.drawShapes();
  }

  private startEditing(item: Item): boolean {
    const { geometry } = item.content;
    return isSimple(geometry) && mayReshape(item) && (this.drawing?.edit(geometry) ?? false);
  }

  private click(event: MapMouseEvent): void {
    const { tool } = this.model;
    if (tool === "select") {
      const key = keyAt(this.map, event.point);
      if (key !== this.model.selected) this.model.select(key);
    } else if (tool === "inspect") {
      void this.inspect(event).catch((error: unknown) => {
        this.popup?.remove();
        this.model.fail(error);
      });
    }
  }

  private async inspect({ lngLat: { lng, lat }, point }: MapMouseEvent): Promise<void> {
    const views = this.model.views.filter(({ visible, layer }) => visible && layer.kind !== "errors" && contains(layer.bounds, lng, lat));
    const key = keyAt(this.map, point);
    const content = h("div", { class: "values" }, h("p", { class: "muted" }, "Reading …"));
    this.popup?.remove();
    this.popup = new Popup({ maxWidth: "320px" }).setLngLat([lng, lat]).setDOMContent(content).addTo(this.map);
    const found = await Promise.all(views.toReversed().map(async (view) => this.valuesOf(view, lng, lat)));
    content.replaceChildren(h("p", { class: "muted" }, this.positionText(lng, lat)), ...(key === null ? [] : [this.shapeText(key)]), ...found);
    if (found.length === 0 && key === null) content.append(h("p", {}, "No visible layer is here."));
  }

  private async valuesOf({ layer }: LayerView, lng: number, lat: number): Promise<HTMLElement> {
    const pixel = await this.model.api.pixel(layer.id, lng, lat).catch((error: unknown) => {
      if (error instanceof ApiError && error.status === 404) return { values: [{ name: "no pixel here", value: null }], class: null };
      throw error;
    });
    const rows = pixel.values.flatMap(({ name, value }) => [h("dt", {}, name), h("dd", {}, formatValue(value))]);
    const className = pixel.class === null ? null : h("span", { class: "tag" }, pixel.class);
    return h("section", {}, h("h2", {}, layer.title, className), h("dl", {}, ...rows));
  }

  private shapeText(key: string): HTMLElement {
    const { content, kind } = this.model.editor.get(key) ?? { content: null, kind: null };
    if (!content) return h("p");
    const { properties, geometry } = content;
    const name = kind === "labels" ? `Label: ${textOf(properties["class"])}` : `Area for ${textOf(properties["role"])}`;
    const size = this.model.project.georeferenced ? `, about ${formatArea(areaOf(geometry))}` : "";
    return h("p", {}, h("strong", {}, name), `${size}, ${textOf(properties["origin"])}`);
  }

  private positionText(lng: number, lat: number): string {
    const { georeferenced, layers } = this.model.project;
    const image = layers.find((layer) => layer.kind === "image") ?? layers[0];
    if (georeferenced || !image) return formatPosition(lng, lat);
    if (!contains(image.bounds, lng, lat)) return "outside of the image";
    const { row, col } = pixelAt(lng, lat, image);
    return `row ${row}, column ${col}`;
  }

  private showPosition(lng: number, lat: number): void {
    this.elements.position.textContent = this.positionText(lng, lat);
  }

  /** Show the layer with this id left of a line that can be moved, or only the map if it is empty. */
  compare(layer: string): void {
    this.swipe?.control.remove();
    this.swipe = null;
    if (layer === "") return;
    const container = h("div", { class: "map over", "aria-hidden": "true" });
    this.elements.over.append(container);
    const map = this.newMap(container, false);
    map.getCanvas().tabIndex = -1;
    this.swipe = { layer, map, control: new Swipe(this.map, map) };
    map.on("load", () => { this.drawRasters(); });
  }

  /** A compared map has the layer itself, and the images under it. */
  private compared(view: LayerView): LayerView[] {
    const under = this.model.views.filter((each) => each.layer.kind === "image" && each.layer.id !== view.layer.id);
    return view.layer.kind === "image" ? [{ ...view, visible: true, opacity: 1 }] : [...under, { ...view, visible: true }];
  }
}

function contains([west, south, east, north]: Bounds, lng: number, lat: number): boolean {
  return lng >= west && lng <= east && lat >= south && lat <= north;
}

function shownBounds(map: MapLibreMap): Bounds {
  const [[west, south], [east, north]] = map.getBounds().toArray();
  return [Math.max(-180, west), Math.max(-90, south), Math.min(180, east), Math.min(90, north)];
}

export function reducedMotion(): boolean {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
