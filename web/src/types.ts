/** What the server's answers hold. Coordinates are longitude and latitude (EPSG:4326). */

import type { Feature, FeatureCollection, Geometry, MultiPolygon, Polygon } from "geojson";

export type Bounds = [west: number, south: number, east: number, north: number];

export interface MapClass {
  value: number;
  name: string;
  color: string;
}

export type LayerKind = "image" | "classes" | "probability" | "uncertainty" | "applicability" | "errors";

export interface RasterLayer {
  id: string;
  /** The scene that the layer belongs to. */
  group: string;
  kind: LayerKind;
  title: string;
  bounds: Bounds;
  minzoom: number;
  maxzoom: number;
  bands: string[];
  /** Numbers of bands from 1. */
  default_bands: number[];
  /** Part of the tiles' addresses, so that caches follow new maps. */
  revision: string | number;
  class_value: number | null;
  threshold: number | null;
  /** A quick estimate, until a network is trained. */
  quick: boolean;
  /** Of errors: what their colours mean. */
  legend: { name: string; color: string }[];
}

export interface Basemap {
  /** With {z}, {x} and {y}. */
  url: string;
  origin: string;
  attribution: string;
}

export interface Project {
  title: string;
  kind: "project" | "run";
  read_only: boolean;
  georeferenced: boolean;
  crs: string | null;
  pixel_size_m: number | null;
  bounds: Bounds;
  classes: MapClass[];
  layers: RasterLayer[];
  can: { label: boolean; train: boolean; export: boolean; upload: boolean };
  /** Tiles of another server that the user may ask for; null: there are none. */
  basemap: Basemap | null;
  /** Whether the server makes quick maps of what the page shows. */
  quick: boolean;
  revision: string | number;
}

/** What the quick map is doing. */
export interface QuickState {
  state: "off" | "starting" | "ready" | "working" | "waiting" | "done" | "failed";
  text: string;
  seconds: number | null;
}

/** What an import of a file added to the labels. */
export interface Imported {
  /** Numbers of labels by class. */
  added: Record<string, number>;
  /** Numbers of features left out by reason. */
  skipped: Record<string, number>;
  repaired: number;
  suggested: number;
  /** How many of the suggested ones lie in scoring areas. */
  unchecked: number;
}

export type Revision = string | number;

export interface Shapes extends FeatureCollection<Polygon | MultiPolygon> {
  revision: Revision;
}

export type Shape = Feature<Polygon | MultiPolygon>;

/** Training and mapping, or one of the files that the model can be exported to. */
export type JobKind = "go" | "bundle" | "onnx" | "deepness";

export interface Job {
  id: string;
  kind: JobKind;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  step: string | null;
  done: number | null;
  total: number | null;
  rate: number | null;
  seconds_left: number | null;
  message: string | null;
}

export interface Round {
  round: number;
  tiles: number | null;
  iou: number | null;
  iou_low: number | null;
  iou_high: number | null;
  areas: ClassArea[];
  unit: "m2" | "px";
}

/** The area of a class in all images. */
export interface ClassArea {
  name: string;
  mapped: number;
  /** From the labelled random areas, with its 95 % confidence interval; null if they do not determine it. */
  estimate: number | null;
  low: number | null;
  high: number | null;
}

export interface AreaOfClass {
  pixels: number;
  m2: number | null;
  iou: number | null;
  n_scored: number | null;
}

export interface PixelValues {
  row: number;
  col: number;
  values: { name: string; value: number | null }[];
  class: string | null;
}

export interface Download {
  name: string;
  title: string;
  /** Null: a job of its kind can make it. */
  bytes: number | null;
  kind: JobKind | "";
}

export type { Feature, Geometry, MultiPolygon, Polygon };
