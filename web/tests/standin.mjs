/**
 * A server with invented data, for developing and testing the page without Python: the addresses and headers of
 * `geograft serve`, state in memory, tiles computed from formulas.
 *
 * node tests/standin.mjs [demo|empty|run|plain]
 */

import { createServer } from "node:http";
import { readFileSync, existsSync } from "node:fs";
import { extname, join, normalize } from "node:path";
import { crc32, deflateSync } from "node:zlib";

const PAGE = process.env.GEOGRAFT_PAGE_OUT ?? join(import.meta.dirname, "../../src/geograft/server/page");
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain" };
const POLICY = "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
export const TOKEN = "stand-in-token";
const BOUNDS = [24.0, 60.995, 24.02, 61.005];
const CLASSES = [{ value: 0, name: "other", color: "#D9D9D9" }, { value: 1, name: "forest", color: "#009E73" }, { value: 2, name: "water", color: "#0072B2" }];

const layer = (id, kind, title, more = {}) => ({ id, group: "north field", kind, title, bounds: BOUNDS, minzoom: 10, maxzoom: 17, bands: ["1"], default_bands: [1], revision: 1, class_value: null, threshold: null, legend: [], ...more });

function project(scenario) {
  const layers = [
    layer("image", "image", "ortho.tif", { bands: ["red", "green", "blue", "near infrared"], default_bands: [1, 2, 3] }),
    layer("probability", "probability", "Probability of forest", { class_value: 1, threshold: 0.44 }),
    layer("classes", "classes", "map.tif"),
    layer("uncertainty", "uncertainty", "Uncertainty"),
    layer("errors", "errors", "Errors of forest", { class_value: 1, threshold: 0.44, legend: [{ name: "right", color: "#009E73" }, { name: "missed", color: "#0072B2" }, { name: "mapped as forest, but is not", color: "#D55E00" }] }),
  ];
  const can = { label: scenario !== "run", train: scenario !== "run", export: true, upload: scenario !== "run" };
  const shared = { classes: CLASSES, bounds: BOUNDS, crs: "EPSG:32635", pixel_size_m: 0.5, georeferenced: true, can, basemap: null, revision: 1, read_only: scenario === "run" };
  if (scenario === "empty") return { ...shared, title: "New project", kind: "project", layers: [] };
  if (scenario === "plain") return { ...shared, title: "Photographs", kind: "project", layers: layers.map((each) => ({ ...each, minzoom: 0, maxzoom: 3, bounds: [-180, -85.0511, 180, 85.0511] })), bounds: [-180, -85.0511, 180, 85.0511], georeferenced: false, crs: null, pixel_size_m: null };
  return { ...shared, title: "Forest of the north", kind: scenario === "run" ? "run" : "project", layers };
}

const box = ([w, s, e, n]) => ({ type: "Polygon", coordinates: [[[w, s], [e, s], [e, n], [w, n], [w, s]]] });

function shapes(scenario) {
  if (scenario !== "demo") return { labels: [], areas: [], suggestions: [] };
  const feature = (id, bounds, properties) => ({ type: "Feature", id, geometry: box(bounds), properties });
  return {
    labels: [
      feature(1, [24.004, 60.9985, 24.0065, 61.0005], { class: "forest", origin: "drawn", note: null }),
      feature(2, [24.008, 60.997, 24.0095, 60.9982], { class: "water", origin: "suggested", note: null }),
    ],
    areas: [
      feature(1, [24.003, 60.9965, 24.0105, 61.0015], { role: "training", origin: "drawn", labelled: true, rank: null, scene: null }),
      feature(2, [24.013, 60.9985, 24.0155, 60.9997], { role: "scoring", origin: "random", labelled: false, rank: 1, scene: null }),
    ],
    suggestions: [
      feature(1, [24.011, 61.0022, 24.0135, 61.0034], { rank: 1, role: "training", reason: "the model is least sure here", origin: "suggested" }),
      feature(2, [24.0162, 60.9962, 24.0187, 60.9974], { rank: 2, role: "training", reason: "unlike what is labelled so far", origin: "suggested" }),
    ],
  };
}

/** The colour and the probability at a place; null outside of the raster, which is a little rotated, as UTM rasters are. */
export function sample(lng, lat, [w, s, e, n] = BOUNDS) {
  const [u0, v0] = [(lng - w) / (e - w), (lat - s) / (n - s)];
  const [u, v] = [u0 + 0.03 * (v0 - 0.5), v0 - 0.03 * (u0 - 0.5)];
  if (u < 0.03 || u > 0.97 || v < 0.03 || v > 0.97) return null;
  const wave = Math.sin(u * 21 + Math.sin(v * 13) * 1.7) * Math.cos(v * 17 + Math.sin(u * 9) * 1.3);
  const fine = Math.sin(u * 190) * Math.sin(v * 170) * 0.12;
  const p = Math.min(1, Math.max(0, 0.5 + 0.55 * wave + fine * 0.3));
  const [f, g] = [Math.floor(u * 7), Math.floor(v * 5)];
  const field = ((f * 7 + g * 13) % 5) / 5;
  const light = 0.75 + fine;
  const soil = [150 + field * 60, 140 + field * 40, 96 + field * 20];
  const rgb = soil.map((value, i) => Math.round(light * (value * (1 - p) + [46, 82, 44][i] * p)));
  return { rgb, p, truth: p + fine > 0.5 };
}

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type), data]);
  const out = Buffer.alloc(body.length + 8);
  out.writeUInt32BE(data.length, 0);
  body.copy(out, 4);
  out.writeUInt32BE(crc32(body), body.length + 4);
  return out;
}

function png(pixel) {
  const rows = Buffer.alloc(256 * 1025);
  for (let y = 0; y < 256; y++) for (let x = 0; x < 256; x++) rows.set(pixel(x, y), y * 1025 + 1 + x * 4);
  const head = Buffer.from([0, 0, 1, 0, 0, 0, 1, 0, 8, 6, 0, 0, 0]);
  return Buffer.concat([Buffer.from("89504e470d0a1a0a", "hex"), chunk("IHDR", head), chunk("IDAT", deflateSync(rows, { level: 1 })), chunk("IEND", Buffer.alloc(0))]);
}

const mix = (a, b, t) => a.map((value, i) => Math.round(value + t * (b[i] - value)));
const PAINT = {
  image: ({ rgb }) => [...rgb, 255],
  probability: ({ p }) => [Math.round(250 * p), 0, 0, 255],
  classes: ({ p }) => (p > 0.44 ? [0, 158, 115, 255] : p < 0.05 ? [0, 114, 178, 255] : [217, 217, 217, 255]),
  errors: ({ p, truth }) => [Math.round(250 * p), Number(truth), 0, 255],
  uncertainty: ({ p }) => [...mix([255, 255, 229], [140, 45, 4], 1 - Math.abs(2 * p - 1)), 255],
};

/** Tiles drawn before, for all servers of a process. */
const drawn = new Map();

function tile(state, id, z, x, y) {
  const key = [id, z, x, y, ...state.project.bounds].join();
  if (!drawn.has(key)) drawn.set(key, drawTile(state, id, z, x, y));
  return drawn.get(key);
}

function drawTile(state, id, z, x, y) {
  const size = 2 ** z;
  const nothing = id === "probability" || id === "errors" ? [255, 0, 0, 255] : [0, 0, 0, 0];
  return png((col, row) => {
    const lng = ((x + (col + 0.5) / 256) / size) * 360 - 180;
    const lat = (Math.atan(Math.sinh(Math.PI * (1 - (2 * (y + (row + 0.5) / 256)) / size))) * 180) / Math.PI;
    const found = sample(lng, lat, state.project.bounds);
    return found === null ? nothing : PAINT[id](found);
  });
}

/** Start the server; returns its address with the token, its state, a list of the requests, and `close`. */
export async function startStandin(scenario = "demo", port = 0) {
  const state = { project: project(scenario), ...shapes(scenario), revision: 1, jobs: [], rounds: [], files: [], streams: new Set(), requests: [], nextId: 100, down: false, token: TOKEN };
  if (scenario === "demo" || scenario === "run") addResults(state);
  const server = createServer((request, response) => {
    void answer(state, request, response).catch((error) => send(response, 500, { detail: String(error) }));
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  const origin = `http://127.0.0.1:${server.address().port}`;
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `${origin}/#${TOKEN}`, origin, state, close, emit: (name, data) => emit(state, name, data) };
}

function addResults(state) {
  state.rounds = [[1, 40, 0.52, 0.38, 0.66, 90e4], [2, 72, 0.61, 0.5, 0.72, 84e4], [3, 110, 0.68, 0.59, 0.77, 81e4]].map(([round, tiles, iou, low, high, area]) => ({ round, tiles, iou, iou_low: low, iou_high: high, unit: "m2", areas: [{ name: "forest", mapped: 1.1 * area, estimate: area, low: 0.85 * area, high: 1.15 * area }] }));
  state.files = [{ name: "map.tif", title: "Map (GeoTIFF)", bytes: 1_843_200 }, { name: "map.gpkg", title: "Polygons (GeoPackage)", bytes: 421_888 }, { name: "report.html", title: "Report", bytes: 912_000 }].map((file) => ({ ...file, kind: "" }));
  if (!state.project.read_only) state.files.push({ name: "trees-1a2b3c4d.graft", title: "Model for Geograft", bytes: null, kind: "bundle" }, { name: "trees-1a2b3c4d.onnx", title: "Model for other programs (ONNX)", bytes: null, kind: "onnx" });
}

function emit(state, name, data) {
  for (const stream of state.streams) stream.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
}

function send(response, status, body, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers });
  response.end(body === undefined ? undefined : JSON.stringify(body));
}

async function bodyOf(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return parts.length ? JSON.parse(Buffer.concat(parts).toString()) : null;
}

async function answer(state, request, response) {
  const url = new URL(request.url, "http://127.0.0.1");
  if (!url.pathname.startsWith("/api/")) return sendPage(url.pathname, response);
  state.requests.push(`${request.method} ${url.pathname}${url.search}`);
  if (state.down) return send(response, 503, { detail: "down" });
  if (request.headers["x-geograft-token"] !== state.token) return send(response, 401, { detail: "the token is missing or wrong" });
  const [, , name, id, what, ...rest] = url.pathname.split("/");
  const handlers = { project: () => send(response, 200, state.project), layers: () => answerLayer(state, response, { id, what, rest, query: url.searchParams }), history: () => send(response, 200, state.rounds), files: () => answerFile(state, response, id), jobs: () => answerJobs(state, request, response, id), events: () => openStream(state, request, response), suggestions: () => send(response, 200, { type: "FeatureCollection", features: state.suggestions, revision: state.revision }) };
  if (name === "labels" || name === "areas") return answerShapes(state, request, response, { kind: name, id, what });
  return handlers[name] ? handlers[name]() : send(response, 404, { detail: `no ${url.pathname}` });
}

function sendPage(path, response) {
  const file = join(PAGE, normalize(path === "/" ? "/index.html" : path));
  if (!file.startsWith(PAGE) || !existsSync(file)) return send(response, 404, { detail: "no such file" });
  response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff" });
  return response.end(readFileSync(file));
}

function answerLayer(state, response, { id, what, rest, query }) {
  if (what === "pixel") {
    const found = sample(Number(query.get("lng")), Number(query.get("lat")), state.project.bounds);
    const values = id === "image" ? ["red", "green", "blue"].map((name, i) => ({ name, value: found?.rgb[i] ?? null })) : [{ name: "forest", value: found ? Number(found.p.toFixed(3)) : null }];
    return send(response, 200, { row: 12, col: 34, values, class: id === "classes" && found ? (found.p > 0.44 ? "forest" : "other") : null });
  }
  if (what === "area") {
    const pixels = Math.round(4e6 * (1 - Number(query.get("threshold"))));
    return send(response, 200, { pixels, m2: state.project.georeferenced ? pixels / 4 : null, iou: 0.68, n_scored: 8 });
  }
  const [z, x, y] = rest.map((part) => Number.parseInt(part, 10));
  response.writeHead(200, { "Content-Type": "image/png", "Cache-Control": "max-age=3600" });
  return response.end(tile(state, id, z, x, y));
}

async function answerShapes(state, request, response, { kind, id, what }) {
  const collection = () => ({ type: "FeatureCollection", features: state[kind], revision: state.revision });
  if (request.method === "GET") return send(response, 200, collection());
  const match = request.headers["if-match"]?.replaceAll('"', "");
  const body = await bodyOf(request);
  if (match !== String(state.revision)) return send(response, 409, { detail: "the file was changed meanwhile", collection: collection() });
  const index = state[kind].findIndex((each) => String(each.id) === id);
  if (id !== undefined && index < 0) return send(response, 404, { detail: `no ${kind} ${id}` });
  const features = write(state, request.method, { kind, index, what, body });
  state.revision += 1;
  emit(state, "labels", { revision: state.revision });
  return send(response, 200, features, { ETag: `"${state.revision}"` });
}

function write(state, method, { kind, index, what, body }) {
  const list = state[kind];
  if (what === "subtract") return subtract(list, index, body.geometry);
  if (method === "DELETE") return void list.splice(index, 1) ?? {};
  const known = list[index];
  const feature = method === "POST" ? { ...body.feature, id: state.nextId++ } : { ...known, ...body.feature, properties: { ...known.properties, ...body.feature.properties } };
  if (method === "POST") list.push(feature);
  else list[index] = feature;
  return feature;
}

/** Cut by bounding boxes: enough to see what the page does with the answer. */
function subtract(list, index, { coordinates: [ring] }) {
  const hole = box([Math.min(...ring.map(([x]) => x)), Math.min(...ring.map(([, y]) => y)), Math.max(...ring.map(([x]) => x)), Math.max(...ring.map(([, y]) => y))]);
  const feature = list[index];
  const [outer] = feature.geometry.coordinates;
  list[index] = { ...feature, geometry: { type: "Polygon", coordinates: [outer, [...hole.coordinates[0]].reverse()] } };
  return { type: "FeatureCollection", features: [list[index]] };
}

function answerFile(state, response, id) {
  if (id === undefined) return send(response, 200, state.files);
  response.writeHead(200, { "Content-Type": "application/octet-stream", "Content-Disposition": `attachment; filename="${id}"` });
  return response.end("content");
}

async function answerJobs(state, request, response, id) {
  if (request.method === "GET") return send(response, 200, state.jobs);
  const body = await bodyOf(request);
  if (request.method === "DELETE") {
    changeJob(state, id, { state: "cancelled", message: "cancelled by the user" });
    return send(response, 200, {});
  }
  const kind = body.kind;
  if (kind !== "go") return startExport(state, response, kind);
  const job = { id: `job${state.jobs.length + 1}`, kind, state: "running", step: "Training", done: 3, total: 12, rate: 1.2, seconds_left: 190, message: null };
  state.jobs.push(job);
  emit(state, "job", job);
  return send(response, 200, { id: job.id });
}

function startExport(state, response, kind) {
  const job = { id: `job${state.jobs.length + 1}`, kind, state: "running", step: "", done: null, total: null, rate: null, seconds_left: null, message: "" };
  state.jobs.push(job);
  emit(state, "job", job);
  return send(response, 200, { id: job.id });
}

export function changeJob(state, id, change) {
  const job = state.jobs.find((each) => each.id === id);
  Object.assign(job, change);
  emit(state, "job", job);
}

function openStream(state, request, response) {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  response.write(": open\n\n");
  state.streams.add(response);
  request.on("close", () => state.streams.delete(response));
}

if (process.argv[1] === import.meta.filename) {
  const { url } = await startStandin(process.argv[2], 8484);
  console.log(url);
}
