/** Raster layers on a MapLibre map. */

import type { LayerSpecification, Map as MapLibreMap, RasterDEMTileSource, RasterTileSource, SourceSpecification } from "maplibre-gl";

import { type LayerView, colorOf, hasThreshold, thresholdOf, tileUrl } from "./layers.ts";
import { errorStops, POSITIVE, probabilityStops, rampExpression, thresholdStops } from "./ramps.ts";
import type { MapClass } from "./types.ts";

export interface Look {
  classes: readonly MapClass[];
  /** Thresholds that the user chose, by class value. */
  thresholds: ReadonlyMap<number, number>;
}

const PREFIX = "raster-";
const TILE = 256;

/** The addresses of each map's sources; MapLibre tells them only once a source is loaded. */
const addresses = new WeakMap<MapLibreMap, Map<string, string>>();

/** Make the map show the views, in their order, below the layer `below`; remove rasters that are no longer there. */
export function showRasters(map: MapLibreMap, views: readonly LayerView[], look: Look, below?: string): void {
  const wanted = new Set(views.map((view) => PREFIX + view.layer.id));
  for (const layer of map.getStyle().layers) {
    if (layer.id.startsWith(PREFIX) && !wanted.has(layer.id)) {
      map.removeLayer(layer.id);
      map.removeSource(layer.id);
    }
  }
  let above = below;
  for (const view of [...views].reverse()) {
    const id = PREFIX + view.layer.id;
    showRaster(map, view, look, above);
    if (map.getLayer(id)) above = id;
  }
}

function showRaster(map: MapLibreMap, view: LayerView, look: Look, below?: string): void {
  const id = PREFIX + view.layer.id;
  const url = tileUrl(view, location.origin);
  const known = addresses.get(map) ?? new Map<string, string>();
  addresses.set(map, known);
  if (!map.getLayer(id)) {
    if (!view.visible) return;
    map.addSource(id, sourceOf(view, url));
    map.addLayer(layerOf(id, view), below);
  } else if (known.get(id) !== url) {
    map.getSource<RasterTileSource | RasterDEMTileSource>(id)?.setTiles([url]);
  }
  known.set(id, url);
  map.setLayoutProperty(id, "visibility", view.visible ? "visible" : "none");
  paint(map, id, view, look);
}

function sourceOf({ layer }: LayerView, url: string): SourceSpecification {
  const { bounds, minzoom, maxzoom } = layer;
  const common = { tiles: [url], tileSize: TILE, bounds, minzoom, maxzoom };
  if (!hasThreshold(layer)) return { type: "raster", ...common };
  return { type: "raster-dem", ...common, encoding: "custom", redFactor: 1, greenFactor: POSITIVE, blueFactor: 0, baseShift: 0 };
}

function layerOf(id: string, view: LayerView): LayerSpecification {
  if (hasThreshold(view.layer)) return { id, source: id, type: "color-relief", paint: { resampling: "nearest" } };
  return { id, source: id, type: "raster", paint: { "raster-resampling": "nearest", "raster-fade-duration": 0 } };
}

function paint(map: MapLibreMap, id: string, view: LayerView, look: Look): void {
  if (!hasThreshold(view.layer)) {
    map.setPaintProperty(id, "raster-opacity", view.opacity);
    return;
  }
  map.setPaintProperty(id, "color-relief-opacity", view.opacity);
  map.setPaintProperty(id, "color-relief-color", rampExpression(stopsOf(view, look)));
}

function stopsOf({ layer, style }: LayerView, look: Look): [number, string][] {
  const threshold = thresholdOf(layer, look.thresholds);
  if (layer.kind === "errors") {
    const [right = "", missed = "", wrong = ""] = layer.legend.map((each) => each.color);
    return errorStops(threshold, right, missed, wrong);
  }
  const color = colorOf(layer, look.classes);
  return style === "threshold" ? thresholdStops(threshold, color) : probabilityStops(color);
}
