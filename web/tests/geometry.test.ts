import type { Polygon, Position } from "geojson";
import { describe, expect, it } from "vitest";

import { areaOf, boundsOf, boundsOverlap, pixelAt, snap } from "../src/geometry.ts";

const box = (w: number, s: number, e: number, n: number): Polygon => ({ type: "Polygon", coordinates: [[[w, s], [e, s], [e, n], [w, n], [w, s]]] });

describe("areaOf", () => {
  it("is the sphere's for the whole sphere", () => {
    expect(areaOf(box(-180, -90, 180, 90))).toBeCloseTo(4 * Math.PI * 6_371_007.181 ** 2, -3);
  });

  it.each([
    [box(24, 61, 24.01, 61.01), 602_820.4915704727],
    [box(-60, -3.01, -59.99, -3), 1229259.8974182606],
    [box(10, 79.9, 10.2, 80), 43523570.7277832],
  ])("is the ellipsoid's", (polygon, expected) => {
    // From pyproj.Geod(ellps="WGS84").geometry_area_perimeter; its edges are geodesics.
    expect(areaOf(polygon) / expected).toBeCloseTo(1, 4);
  });

  it("subtracts holes and does not depend on direction", () => {
    const [outer = []] = box(0, 0, 3, 3).coordinates;
    const [hole = []] = box(1, 1, 2, 2).coordinates;
    const whole = areaOf(box(0, 0, 3, 3));
    expect(areaOf({ type: "Polygon", coordinates: [outer, hole] })).toBeCloseTo(whole - areaOf(box(1, 1, 2, 2)));
    expect(areaOf({ type: "Polygon", coordinates: [[...outer].reverse()] })).toBeCloseTo(whole);
  });
});

describe("bounds", () => {
  it("covers all parts", () => {
    expect(boundsOf({ type: "MultiPolygon", coordinates: [box(0, 0, 1, 1).coordinates, box(4, -2, 5, 0).coordinates] })).toEqual([0, -2, 5, 1]);
  });

  it("overlaps where the insides do, not where edges touch", () => {
    expect(boundsOverlap([0, 0, 2, 2], [1, 1, 3, 3])).toBe(true);
    expect(boundsOverlap([0, 0, 2, 2], [2, 0, 3, 2])).toBe(false);
  });
});

describe("pixelAt", () => {
  it("counts the pixels of the finest tiles from the raster's north-west corner", () => {
    const north = (Math.atan(Math.sinh(Math.PI * (1 - 2 * 0.25))) * 180) / Math.PI; // a quarter of the square from the top
    const layer = { bounds: [-90, -north, 90, north] as [number, number, number, number], maxzoom: 3 };
    expect(pixelAt(-89.999, north - 0.001, layer)).toEqual({ row: 0, col: 0 });
    expect(pixelAt(0, 0, layer)).toEqual({ row: 512, col: 512 });
    expect(pixelAt(89.999, -north + 0.001, layer)).toEqual({ row: 1023, col: 1023 });
  });
});

describe("snap", () => {
  const shapes = [box(0, 0, 100, 100)];
  const project = ([x = 0, y = 0]: Position) => ({ x, y });

  it("takes a vertex within reach, although an edge is nearer", () => {
    expect(snap({ x: 6, y: 0 }, shapes, project)).toEqual([0, 0]);
  });

  it("takes the nearest point of an edge", () => {
    expect(snap({ x: 50, y: 7 }, shapes, project)).toEqual([50, 0]);
  });

  it("takes nothing out of reach", () => {
    expect(snap({ x: 50, y: 50 }, shapes, project)).toBeUndefined();
  });
});
