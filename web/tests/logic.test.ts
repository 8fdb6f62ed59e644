import { describe, expect, it } from "vitest";

import { featuresOf, revisionOf } from "../src/api.ts";
import { areaFigures, axisTop, chartPoints, describeArea, iouFigures } from "../src/chart.ts";
import { EventParser } from "../src/events.ts";
import { formatArea, formatBytes, formatPosition, formatScore, formatSeconds } from "../src/format.ts";
import { currentJob, mergeJob, summarize } from "../src/jobs.ts";
import { byScene, initialViews, renewViews, thresholdOf, tileUrl } from "../src/layers.ts";
import type { Job, RasterLayer, Round, Shape } from "../src/types.ts";
import { describeImport } from "../src/panel-import.ts";
import { areaProperties, isRandom, tasksOf } from "../src/work.ts";

function layer(id: string, kind: RasterLayer["kind"], more: Partial<RasterLayer> = {}): RasterLayer {
  return { id, kind, group: "scene", title: id, bounds: [0, 0, 1, 1], minzoom: 0, maxzoom: 4, bands: ["1"], default_bands: [1], revision: 7, class_value: null, threshold: null, quick: false, legend: [], ...more };
}

describe("events", () => {
  it("are found however the text is cut", () => {
    const text = ': hello\n\nevent: job\ndata: {"id":\ndata: "a"}\n\nevent: labels\r\ndata: {"revision": 3}\r\n\r\nevent: broken\ndata: {\n\n';
    const expected = [{ name: "job", data: { id: "a" } }, { name: "labels", data: { revision: 3 } }];
    for (let size = 1; size <= text.length; size++) {
      const parser = new EventParser();
      const found = [];
      for (let i = 0; i < text.length; i += size) found.push(...parser.push(text.slice(i, i + size)));
      expect(found, `pieces of ${size}`).toEqual(expected);
    }
  });
});

describe("answers", () => {
  it("hold features in three forms", () => {
    const feature = { type: "Feature", geometry: null, properties: {} };
    expect(featuresOf(feature)).toEqual([feature]);
    expect(featuresOf([feature])).toEqual([feature]);
    expect(featuresOf({ type: "FeatureCollection", features: [feature] })).toEqual([feature]);
    expect(featuresOf({})).toEqual([]);
    expect(featuresOf(null)).toEqual([]);
  });

  it("name their revision in quotes or without", () => {
    expect(['"7"', "7", 'W/"7"', null].map(revisionOf)).toEqual(["7", "7", "7", null]);
  });
});

describe("layers", () => {
  const layers = [layer("p", "probability", { threshold: 0.3, class_value: 1 }), layer("i", "image"), layer("c", "classes")];

  it("are drawn with images at the bottom and listed with them last", () => {
    const views = initialViews(layers);
    expect(views.map((view) => view.layer.id)).toEqual(["i", "c", "p"]);
    expect(byScene(views).get("scene")?.map((view) => view.layer.id)).toEqual(["p", "c", "i"]);
  });

  it("show the image and one map at first", () => {
    const visible = (all: RasterLayer[]) => initialViews(all).filter((view) => view.visible).map((view) => view.layer.id);
    expect(visible(layers)).toEqual(["i", "p"]);
    expect(visible([...layers, layer("q", "probability", { class_value: 2 })])).toEqual(["i", "c"]);
    expect(visible([layer("i", "image")])).toEqual(["i"]);
  });

  it("keep what the user chose when the project is read again", () => {
    const views = initialViews(layers).map((view) => ({ ...view, opacity: 0.2 }));
    const renewed = renewViews(views, [...layers.map((each) => ({ ...each, revision: 8 })), layer("e", "errors")]);
    expect(renewed.map((view) => [view.layer.id, view.opacity, view.layer.revision])).toEqual([["i", 0.2, 8], ["c", 0.2, 8], ["p", 0.2, 8], ["e", 0.9, 7]]);
  });

  it("have addresses that change with their look, and values' addresses that do not", () => {
    const [image, classes, probability] = initialViews(layers);
    if (!image || !classes || !probability) throw new Error("three views");
    expect(tileUrl(image, "http://h")).toBe("http://h/api/layers/i/tiles/{z}/{x}/{y}.png?bands=1&low=2&high=98&v=7");
    expect(tileUrl(classes, "http://h")).toBe("http://h/api/layers/c/tiles/{z}/{x}/{y}.png?v=7");
    expect(tileUrl(probability, "http://h")).toBe("http://h/api/layers/p/values/{z}/{x}/{y}.png?v=7");
  });

  it("have the user's threshold, else their own", () => {
    expect(thresholdOf(layer("p", "probability", { threshold: 0.3, class_value: 1 }), new Map())).toBe(0.3);
    expect(thresholdOf(layer("p", "probability", { threshold: 0.3, class_value: 1 }), new Map([[1, 0.6]]))).toBe(0.6);
  });
});

describe("what to label next", () => {
  const geometry = (at: number): Shape["geometry"] => ({ type: "Polygon", coordinates: [[[at, 0], [at + 1, 0], [at, 1], [at, 0]]] });
  const area = (key: string, at: number, properties: Record<string, unknown>) => ({ key, kind: "areas" as const, id: key, content: { geometry: geometry(at), properties } });
  const suggestion = (at: number, rank: number): Shape => ({ type: "Feature", geometry: geometry(at), properties: { rank, role: "training", reason: "unsure" } });

  it("is scoring areas, then other areas, then suggestions by rank; labelled and taken ones are left out", () => {
    const areas = [
      area("done", 0, { role: "training", labelled: true }),
      area("own", 10, { role: "training", labelled: false, rank: 1 }),
      area("random", 20, { role: "scoring", origin: "random", labelled: false, rank: 4 }),
    ];
    const tasks = tasksOf(areas, [suggestion(40, 2), suggestion(30, 1), suggestion(10.0000001, 0)]);
    expect(tasks.map((task) => task.key ?? task.properties["rank"])).toEqual(["random", "own", 1, 2]);
  });

  it("never makes a suggestion a random area by itself", () => {
    const [task] = tasksOf([], [suggestion(0, 1)]);
    if (!task) throw new Error("a task");
    expect(areaProperties(task)).toEqual({ role: "training", origin: "suggested", labelled: false, rank: 1, scene: null });
    expect(isRandom(areaProperties(task))).toBe(false);
    expect(isRandom({ origin: "random" })).toBe(true);
  });
});

describe("jobs", () => {
  const job = (id: string, state: Job["state"], more: Partial<Job> = {}): Job => ({ id, kind: "go", state, step: null, done: null, total: null, rate: null, seconds_left: null, message: null, ...more });

  it("show the running one, else the waiting one, else the last", () => {
    expect(currentJob([job("a", "done"), job("b", "running"), job("c", "queued")])?.id).toBe("b");
    expect(currentJob([job("a", "queued"), job("b", "failed")])?.id).toBe("a");
    expect(currentJob([job("a", "done"), job("b", "failed")])?.id).toBe("b");
    expect(currentJob([])).toBeNull();
  });

  it("say how far they are", () => {
    const running = job("a", "running", { step: "Training", done: 3, total: 12, seconds_left: 190 });
    expect(summarize(running)).toEqual({ title: "Training", fraction: 0.25, detail: "3 of 12 · 3 min left", isActive: true });
    expect(summarize(job("a", "running")).fraction).toBeNull();
    expect(summarize(job("a", "running", { done: 0, total: 0 })).fraction).toBeNull();
    expect(summarize(job("a", "failed", { message: "no labels" }))).toMatchObject({ title: "Failed", detail: "no labels", isActive: false });
  });

  it("are replaced by their newer state", () => {
    expect(mergeJob([job("a", "running")], job("a", "done"))).toEqual([job("a", "done")]);
    expect(mergeJob([job("a", "done")], job("b", "queued")).map((each) => each.id)).toEqual(["a", "b"]);
  });
});

describe("numbers", () => {
  it("are short", () => {
    expect([0, 950, 12_345, 25_000_000].map(formatArea)).toEqual(["0 m²", "950 m²", "1.23 ha", "25 km²"]);
    expect([0.2, 59, 61, 3600, 4800].map(formatSeconds)).toEqual(["1 s", "59 s", "1 min", "1 h", "1 h 20 min"]);
    expect([0, 999, 1_843_200, 5e12].map(formatBytes)).toEqual(["0 B", "999 B", "1.84 MB", "5 TB"]);
    expect(formatPosition(-24.5, 61)).toBe("61.00000° N, 24.50000° W");
    expect(formatScore(0.684, 0.59, 0.77)).toBe("0.68 (95 % CI 0.59 to 0.77)");
  });
});

describe("an import", () => {
  it("says what was added and left out, and what is to be checked", () => {
    const nothing = { added: {}, skipped: { "outside of the images": 0 }, repaired: 0, suggested: 0, unchecked: 0 };
    expect(describeImport(nothing)).toBe("0 labels imported.");
    const some = { ...nothing, added: { tree: 2, water: 1 }, skipped: { "without area": 3, "of other values": 0 }, suggested: 3 };
    expect(describeImport(some)).toContain("3 labels imported: tree 2, water 1. Left out: 3 without area.");
    expect(describeImport({ ...some, unchecked: 2 })).toContain("Check the 2 in scoring areas");
  });
});

describe("the charts", () => {
  const round = (n: number, iou: number | null, estimate: number | null = null): Round => ({
    round: n, tiles: 1, iou, iou_low: iou === null ? null : iou - 0.1, iou_high: iou === null ? null : iou + 0.1,
    areas: [{ name: "forest", mapped: 5e4, estimate, low: estimate && 0.9 * estimate, high: estimate && 1.1 * estimate }], unit: "m2",
  });

  it("have a point for each scored round, higher for a higher IoU, inside its interval", () => {
    const points = chartPoints(iouFigures([round(1, 0.4), round(2, null), round(3, 0.8)]), 1);
    expect(points.map((point) => point.figure.round)).toEqual([1, 3]);
    const [first, last] = points;
    if (!first || !last) throw new Error("two points");
    expect(last.y).toBeLessThan(first.y);
    expect(last.x).toBeGreaterThan(first.x);
    for (const { y, yLow, yHigh } of points) expect(yHigh < y && y < yLow).toBe(true);
  });

  it("show areas where they are known, in their unit, below the top of the axis", () => {
    const history = [round(1, 0.4), round(2, 0.5, 40_000), round(3, 0.8, 52_000)];
    expect(areaFigures(history, "forest").map(({ round: n, value }) => [n, value])).toEqual([[2, 40_000], [3, 52_000]]);
    expect(areaFigures(history, "water")).toEqual([]);
    const [unknown, , known] = history.map(({ areas: [area], unit }) => (area ? describeArea(area, unit) : ""));
    expect(unknown).toMatch(/^unknown/);
    expect(known).toBe("5.2 ha (95 % CI 4.68 ha to 5.72 ha)");
    expect([0.45, 1, 57_200, 200].map(axisTop)).toEqual([0.5, 1, 60_000, 200]);
  });
});
