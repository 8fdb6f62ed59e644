/** Drawing and editing outlines with terra-draw. Finished shapes leave it at once: the editor holds them. */

import type { Map as MapLibreMap } from "maplibre-gl";
import type { Polygon, Position } from "geojson";
import { type HexColor, TerraDraw, TerraDrawPolygonMode, TerraDrawRectangleMode, TerraDrawSelectMode } from "terra-draw";
import { TerraDrawMapLibreGLAdapter } from "terra-draw-maplibre-gl-adapter";

import { boundsOf, boundsOverlap, REACH, type Screen, snap } from "./geometry.ts";
import type { Shape } from "./types.ts";

export type DrawMode = "polygon" | "rectangle";

export interface DrawCallbacks {
  onDrawn: (geometry: Polygon) => void;
  onEdited: (geometry: Polygon) => void;
  onEditEnd: () => void;
  /** The shapes whose outlines attract the pointer. */
  neighbours: () => readonly Shape["geometry"][];
  color: () => string;
}

const DECIMALS = 9; // terra-draw refuses coordinates with more
type Id = string | number;

export class Drawing {
  private readonly draw: TerraDraw;
  private edited: Id | null = null;

  constructor(map: MapLibreMap, callbacks: DrawCallbacks) {
    const color = () => callbacks.color() as HexColor;
    const toCustom = ({ containerX: x, containerY: y }: { containerX: number; containerY: number }, view: Projection) => {
      const [low, high] = [view.unproject(x - REACH, y + REACH), view.unproject(x + REACH, y - REACH)];
      const near = callbacks.neighbours().filter((each) => boundsOverlap(boundsOf(each), [low.lng, low.lat, high.lng, high.lat]));
      return snap({ x, y }, near, ([lng = 0, lat = 0]) => view.project(lng, lat));
    };
    const fill = { fillColor: color, fillOpacity: 0.3, outlineColor: color, outlineWidth: 3 } as const;
    const coordinates = { draggable: true, midpoints: true, deletable: true, snappable: { toCustom } };
    this.draw = new TerraDraw({
      adapter: new TerraDrawMapLibreGLAdapter({ map, coordinatePrecision: DECIMALS }),
      modes: [
        // A vertex closer to the first one than pointerDistance closes the polygon: 40 pixels by default, half a small crown.
        new TerraDrawPolygonMode({ pointerDistance: REACH, snapping: { toCustom }, styles: { ...fill, closingPointColor: "#ffffff", closingPointOutlineColor: color, closingPointOutlineWidth: 2 } }),
        new TerraDrawRectangleMode({ styles: fill }),
        new TerraDrawSelectMode({
          allowManualSelection: false,
          keyEvents: null,
          flags: { polygon: { feature: { draggable: true, coordinates } } },
          styles: { selectedPolygonColor: color, selectedPolygonFillOpacity: 0.2, selectedPolygonOutlineColor: color, selectedPolygonOutlineWidth: 3 },
        }),
      ],
    });
    this.draw.start();
    this.listen(callbacks);
  }

  private listen(callbacks: DrawCallbacks): void {
    this.draw.on("finish", (id, { action }) => {
      const geometry = this.draw.getSnapshotFeature(id)?.geometry;
      if (geometry?.type !== "Polygon") return;
      if (action !== "draw") {
        callbacks.onEdited(geometry);
        return;
      }
      // Later: terra-draw still works on the feature, and the click that ends it would deselect the new shape.
      setTimeout(() => {
        if (this.draw.hasFeature(id)) this.draw.removeFeatures([id]);
        callbacks.onDrawn(geometry);
      });
    });
    this.draw.on("deselect", () => {
      queueMicrotask(() => {
        if (this.edited === null) return;
        this.clear();
        callbacks.onEditEnd();
      });
    });
  }

  /** Draw shapes of this kind, or none. */
  setMode(mode: DrawMode | null): void {
    this.clear();
    this.draw.setMode(mode ?? "static");
  }

  /** Let the user drag an outline; returns whether terra-draw can. */
  edit(geometry: Polygon): boolean {
    this.clear();
    const id = this.draw.getFeatureId();
    const properties = { mode: "polygon" };
    const [added] = this.draw.addFeatures([{ type: "Feature", id, geometry: rounded(geometry), properties }]);
    if (!added?.valid) return false;
    this.edited = id;
    this.draw.selectFeature(id);
    return true;
  }

  private clear(): void {
    const id = this.edited;
    this.edited = null;
    if (id !== null && this.draw.hasFeature(id)) {
      if (this.draw.getMode() === "select") this.draw.setMode("static");
      this.draw.removeFeatures([id]);
    }
    this.draw.clear();
  }
}

interface Projection {
  project: (lng: number, lat: number) => Screen;
  unproject: (x: number, y: number) => { lng: number; lat: number };
}

function rounded({ coordinates }: Polygon): Polygon {
  const round = (position: Position): Position => position.map((value) => Number(value.toFixed(DECIMALS)));
  return { type: "Polygon", coordinates: coordinates.map((ring) => ring.map(round)) };
}
