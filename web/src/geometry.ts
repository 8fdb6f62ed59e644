/** Geometry of longitudes and latitudes, and of rasters without CRS, which lie somewhere in the Mercator square. */

import type { MultiPolygon, Polygon, Position } from "geojson";

import type { Bounds, RasterLayer, Shape } from "./types.ts";

const RADIUS_M = 6_371_007.181; // of the sphere with the area of the ellipsoid of WGS 84
const ECCENTRICITY = 0.0818191908426;
const TILE = 256;

function radians(degrees: number): number {
  return (degrees * Math.PI) / 180;
}

/** Return the sine of the authalic latitude, times a constant: areas on the sphere are then those on the ellipsoid (Snyder 1987, eq. 3-12). */
function authalic(sine: number): number {
  const e = ECCENTRICITY;
  return (1 - e * e) * (sine / (1 - (e * sine) ** 2) - Math.log((1 - e * sine) / (1 + e * sine)) / (2 * e));
}

function authalicSine(latitude: number): number {
  return authalic(Math.sin(radians(latitude))) / authalic(1);
}

/** Return the area of a ring in m² (Chamberlain & Duquette 2007, "Some algorithms for polygons on a sphere"). */
function ringArea(ring: Position[]): number {
  let sum = 0;
  for (let i = 0; i + 1 < ring.length; i++) {
    const [x1 = 0, y1 = 0] = ring[i] ?? [];
    const [x2 = 0, y2 = 0] = ring[i + 1] ?? [];
    sum += radians(x2 - x1) * (2 + authalicSine(y1) + authalicSine(y2));
  }
  return Math.abs((sum * RADIUS_M ** 2) / 2);
}

export function polygonsOf(geometry: Polygon | MultiPolygon): Position[][][] {
  return geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
}

/** Return the area of polygons in m², holes subtracted. */
export function areaOf(geometry: Polygon | MultiPolygon): number {
  let sum = 0;
  for (const [outer, ...holes] of polygonsOf(geometry)) {
    sum += ringArea(outer ?? []) - holes.reduce((total, hole) => total + ringArea(hole), 0);
  }
  return sum;
}

const known = new WeakMap<Polygon | MultiPolygon, Bounds>();

/** Return the bounding box of polygons, which must not be changed in place: it is computed once for each. */
export function boundsOf(geometry: Polygon | MultiPolygon): Bounds {
  const bounds = known.get(geometry) ?? computeBounds(geometry);
  known.set(geometry, bounds);
  return bounds;
}

function computeBounds(geometry: Polygon | MultiPolygon): Bounds {
  const bounds: Bounds = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x = 0, y = 0] of polygonsOf(geometry).flat(2)) {
    bounds[0] = Math.min(bounds[0], x);
    bounds[1] = Math.min(bounds[1], y);
    bounds[2] = Math.max(bounds[2], x);
    bounds[3] = Math.max(bounds[3], y);
  }
  return bounds;
}

export function boundsOverlap(a: Bounds, b: Bounds): boolean {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

/** Whether the outline can be dragged by its vertices: one part, no holes. */
export function isSimple(geometry: Polygon | MultiPolygon): geometry is Polygon {
  return geometry.type === "Polygon" && geometry.coordinates.length === 1;
}

function mercator(lng: number, lat: number): [x: number, y: number] {
  return [0.5 + lng / 360, 0.5 - Math.log(Math.tan(Math.PI / 4 + radians(lat) / 2)) / (2 * Math.PI)];
}

/** Return the pixel of a raster without CRS, whose pixels are those of the tiles at its highest zoom. */
export function pixelAt(lng: number, lat: number, { bounds, maxzoom }: Pick<RasterLayer, "bounds" | "maxzoom">): { row: number; col: number } {
  const size = TILE * 2 ** maxzoom;
  const [west, , , north] = bounds;
  const [[x, y], [left, top]] = [mercator(lng, lat), mercator(west, north)];
  return { row: Math.floor((y - top) * size), col: Math.floor((x - left) * size) };
}

export interface Screen {
  x: number;
  y: number;
}

function nearestOnSegment(at: Screen, a: Screen, b: Screen): number {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length2 = dx * dx + dy * dy;
  return length2 === 0 ? 0 : Math.min(1, Math.max(0, ((at.x - a.x) * dx + (at.y - a.y) * dy) / length2));
}

export const REACH = 10; // pixels of the screen

/**
 * Return the position on the shapes' outlines that is nearest to `at`, within REACH, or undefined.
 * A vertex within reach wins over an edge, so that neighbours share corners.
 */
export function snap(at: Screen, shapes: readonly Shape["geometry"][], project: (position: Position) => Screen): Position | undefined {
  let [vertex, edge]: [Position | undefined, Position | undefined] = [undefined, undefined];
  let [toVertex, toEdge] = [REACH, REACH];
  for (const ring of shapes.flatMap((shape) => polygonsOf(shape).flat())) {
    for (let i = 0; i + 1 < ring.length; i++) {
      const [from, to] = [ring[i] ?? [], ring[i + 1] ?? []];
      const [a, b] = [project(from), project(to)];
      const distance = Math.hypot(a.x - at.x, a.y - at.y);
      if (distance < toVertex) [vertex, toVertex] = [from, distance];
      const t = nearestOnSegment(at, a, b);
      const off = Math.hypot(a.x + t * (b.x - a.x) - at.x, a.y + t * (b.y - a.y) - at.y);
      if (off < toEdge) [edge, toEdge] = [between(from, to, t), off];
    }
  }
  return vertex ?? edge;
}

function between(a: Position, b: Position, t: number): Position {
  const [ax = 0, ay = 0] = a;
  const [bx = 0, by = 0] = b;
  return [ax + t * (bx - ax), ay + t * (by - ay)];
}
