/** The panel of layers: thresholds, what is shown and how, and what to compare with. */

import { button, fill, h, iconButton, rebuild } from "./dom.ts";
import { formatArea, formatCount, formatScore, formatSeconds } from "./format.ts";
import { byScene, colorOf, KIND_NAMES, type LayerView, STRETCHES, thresholdOf } from "./layers.ts";
import type { MapView } from "./mapview.ts";
import type { Model } from "./model.ts";
import type { QuickState } from "./types.ts";

/** What the user chose in parts that are built again when the project changes. */
interface Choices {
  /** Which of the drawn shapes are hidden. */
  hidden: Set<string>;
  /** The layer left of the line. */
  compared: string;
}

export function layersPanel(model: Model, view: MapView): HTMLElement {
  const thresholds = h("div");
  const scenes = h("div");
  const panel = h("div", {}, quickNote(model), thresholds, scenes);
  let shown = "";
  const update = () => {
    const adjustable = adjustableViews(model);
    const signature = JSON.stringify([...adjustable].map(([value, views]) => [value, views.map((each) => [each.layer.id, each.layer.revision])]));
    if (signature === shown) return;
    shown = signature;
    fill(thresholds, ...[...adjustable].map(([value, views]) => thresholdControl(model, value, views)));
  };
  const basemap = basemapControl(model, view);
  const choices: Choices = { hidden: new Set(), compared: "" };
  const build = () => {
    const groups = [...byScene(model.views)].map(([name, views], _, scenes) => sceneGroup(model, name, views, scenes.length > 1 ? view : null));
    const parts = model.views.length === 0 ? [emptyState(model)] : [...groups, shapesGroup(model, view, choices), legend(model), compareControl(model, view, choices), basemap];
    fill(scenes, ...parts);
  };
  model.on(["project"], () => { rebuild(scenes, build); });
  model.on(["project", "views"], update);
  build();
  update();
  return panel;
}

/** What the quick map is doing, as long as no network is trained. */
function quickNote(model: Model): HTMLElement {
  const note = h("p", { class: "muted quick", role: "status" });
  const update = () => {
    const text = quickText(model.quick);
    note.hidden = text === "";
    note.textContent = text;
  };
  model.on(["quick", "project"], update);
  update();
  return note;
}

function quickText({ state, text, seconds }: QuickState): string {
  const known = seconds === null ? "" : ` in ${formatSeconds(seconds)}`;
  const texts: Record<QuickState["state"], string> = {
    off: "",
    starting: "Quick map: getting ready …",
    ready: "Quick map: label an area, and what is in view is mapped.",
    waiting: "Quick map: label an area, and what is in view is mapped.",
    working: "Quick map: mapping what is in view …",
    done: `Quick map of what is in view, made${known}: an estimate. Train and map for a better one.`,
    failed: `No quick map: ${text}`,
  };
  return texts[state];
}

function emptyState(model: Model): HTMLElement {
  const hint = model.project.kind === "project" ? "Name its images in project.toml, then reload this page." : "Start the server with the run and the rasters to show.";
  return h("div", { class: "empty" }, h("p", {}, "There is no raster to show yet."), h("p", { class: "muted" }, hint));
}

/** Return the probabilities whose threshold the map shows, in their own layer or in that of their errors, by class value. */
function adjustableViews(model: Model): Map<number, LayerView[]> {
  const found = new Map<number, LayerView[]>();
  for (const view of model.views) {
    const own = view.visible && view.style === "threshold";
    const errors = model.views.some(({ layer, visible }) => visible && layer.kind === "errors" && layer.group === view.layer.group && layer.class_value === view.layer.class_value);
    if (view.layer.kind !== "probability" || !(own || errors)) continue;
    const value = view.layer.class_value ?? 1;
    found.set(value, [...(found.get(value) ?? []), view]);
  }
  return found;
}

function thresholdControl(model: Model, value: number, views: LayerView[]): HTMLElement {
  const [first] = views;
  if (!first) return h("div");
  const name = model.project.classes.find((each) => each.value === value)?.name ?? "class";
  const number = h("output", { class: "number" });
  const results = h("div", { class: "results", "aria-live": "polite" });
  const slider = h("input", { type: "range", min: 0, max: 1, step: 0.01, id: `threshold-${value}` });
  let request = new AbortController();
  const show = () => {
    const threshold = thresholdOf(first.layer, model.thresholds);
    slider.value = String(threshold);
    number.textContent = threshold.toFixed(2);
  };
  const measure = () => {
    request.abort();
    request = new AbortController();
    void showAreas(model, views, results, request.signal);
  };
  slider.addEventListener("input", () => {
    model.setThreshold(value, Number(slider.value));
    show();
  });
  slider.addEventListener("change", measure);
  const reset = button("Reset", () => {
    model.setThreshold(value, null);
    show();
    measure();
  }, { class: "link", title: "The threshold of the run" });
  show();
  measure();
  const label = h("label", { for: `threshold-${value}` }, h("span", { class: "swatch", "data-color": colorOf(first.layer, model.project.classes) }), `Threshold of ${name}`);
  return paintSwatches(h("section", { class: "card" }, h("div", { class: "row" }, label, number, reset), slider, results));
}

async function showAreas(model: Model, views: LayerView[], results: HTMLElement, signal: AbortSignal): Promise<void> {
  results.setAttribute("aria-busy", "true");
  try {
    const lines = await Promise.all(views.map(async ({ layer }) => {
      const area = await model.api.area(layer.id, thresholdOf(layer, model.thresholds), signal);
      const size = area.m2 === null ? `${formatCount(area.pixels)} pixels` : formatArea(area.m2);
      const scored = area.n_scored ?? 0;
      const score = area.iou === null ? "" : ` · IoU ${formatScore(area.iou, null, null)} on ${formatCount(scored)} scoring ${scored === 1 ? "area" : "areas"}`;
      return h("p", {}, views.length > 1 && h("span", { class: "muted" }, `${layer.group}: `), h("strong", {}, size), score);
    }));
    fill(results, ...lines);
  } catch (error) {
    if (!signal.aborted) fill(results, h("p", { class: "error" }, error instanceof Error ? error.message : String(error)));
  } finally {
    if (!signal.aborted) results.removeAttribute("aria-busy");
  }
}

/** `map`: where there are several scenes, which a button shows one at a time. */
function sceneGroup(model: Model, name: string, views: readonly LayerView[], map: MapView | null): HTMLElement {
  const [first] = views;
  const fit = map && first ? iconButton("fit", `Show ${name}`, () => { map.fit(first.layer.bounds); }, { class: "icon-button small" }) : null;
  return h("section", { class: "group" }, h("div", { class: "row" }, h("h2", { class: "grow" }, name), fit), h("ul", {}, ...views.map((view) => layerRow(model, view))));
}

function layerRow(model: Model, view: LayerView): HTMLElement {
  const { layer } = view;
  const opacity = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: view.opacity, "aria-label": `Opacity of ${layer.title}`, "data-key": `${layer.id} opacity` });
  opacity.addEventListener("input", () => { model.changeView(view, { opacity: Number(opacity.value) }); });
  const options = layer.kind === "image" ? imageOptions(model, view) : layer.kind === "errors" ? errorsLegend(view) : layer.threshold !== null ? styleOption(model, view) : null;
  const settings = h("div", { class: "settings", hidden: !view.visible }, h("label", { class: "row" }, h("span", { class: "muted" }, "Opacity"), opacity), options);
  const box = h("input", { type: "checkbox", checked: view.visible, "data-key": `${layer.id} visible` });
  box.addEventListener("change", () => {
    settings.hidden = !box.checked;
    model.changeView(view, { visible: box.checked });
  });
  const kind = KIND_NAMES[layer.kind];
  const tag = layer.title.startsWith(kind) ? null : h("span", { class: "tag" }, kind);
  return h("li", { class: "layer" }, h("label", { class: "check" }, box, h("span", {}, layer.title), tag), settings);
}

function errorsLegend({ layer }: LayerView): HTMLElement {
  const rows = layer.legend.map(({ name, color }) => h("li", {}, h("span", { class: "swatch", "data-color": color }), name));
  const where = layer.threshold === null ? null : h("p", { class: "muted" }, "In labelled scoring areas, at the threshold.");
  return paintSwatches(h("div", {}, h("ul", { class: "legend" }, ...rows), where));
}

function styleOption(model: Model, view: LayerView): HTMLElement {
  const select = choose(`${view.layer.id} style`, [["threshold", "above the threshold"], ["probability", "as probability"]], view.style, (value) => {
    model.changeView(view, { style: value === "probability" ? "probability" : "threshold" });
  });
  return h("label", { class: "row" }, h("span", { class: "muted" }, "Show"), select);
}

function imageOptions(model: Model, view: LayerView): HTMLElement {
  const { bands, id } = view.layer;
  const stretch = choose(`${id} stretch`, STRETCHES.map(([low, high]) => [`${low}-${high}`, `${low} to ${high} %`]), view.stretch.join("-"), (value) => {
    const [low = 0, high = 100] = value.split("-").map(Number);
    model.changeView(view, { stretch: [low, high] });
  });
  const names = view.bands.length === 3 ? ["Red", "Green", "Blue"] : ["Grey"];
  const choices = bands.map((name, i): [string, string] => [String(i + 1), name]);
  const selects = names.map((name, i) => h("label", { class: "row" }, h("span", { class: "muted" }, name), choose(`${id} ${name}`, choices, String(view.bands[i] ?? 1), (value) => {
    model.changeView(view, { bands: view.bands.map((band, j) => (j === i ? Number(value) : band)) });
  })));
  const stretchRow = h("label", { class: "row" }, h("span", { class: "muted" }, "Stretch"), stretch);
  return h("details", { "data-key": `${id} details` }, h("summary", { "data-key": `${id} summary` }, "Bands and stretch"), ...(bands.length > 1 ? selects : []), stretchRow);
}

/** Return a list to choose from; `key` is by what it gets the focus again. */
function choose(key: string, options: readonly (readonly [value: string, text: string])[], value: string, onChoice: (value: string) => void): HTMLSelectElement {
  const select = h("select", { "data-key": key }, ...options.map(([each, text]) => h("option", { value: each, selected: each === value }, text)));
  select.addEventListener("change", () => { onChoice(select.value); });
  return select;
}

function shapesGroup(model: Model, view: MapView, { hidden }: Choices): HTMLElement | null {
  if (model.project.kind !== "project") return null;
  const rows = (["labels", "areas", "suggestions"] as const).map((source) => {
    const box = h("input", { type: "checkbox", checked: !hidden.has(source), "data-key": source });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(source);
      else hidden.add(source);
      view.showShapes(source, box.checked);
    });
    const names = { labels: "Labels", areas: "Areas", suggestions: "Suggestions" };
    return h("li", { class: "layer" }, h("label", { class: "check" }, box, h("span", {}, names[source]), h("span", { class: `line ${source}` })));
  });
  const legend = h("p", { class: "muted" }, "Areas: blue for training, orange for scoring; dashed: not labelled yet.");
  return h("section", { class: "group" }, h("h2", {}, "Drawn"), h("ul", {}, ...rows), legend);
}

function legend(model: Model): HTMLElement | null {
  if (model.project.classes.length === 0) return null;
  const rows = model.project.classes.map(({ name, color }) => h("li", {}, h("span", { class: "swatch", "data-color": color }), name));
  return paintSwatches(h("section", { class: "group" }, h("h2", {}, "Classes"), h("ul", { class: "legend" }, ...rows)));
}

function compareControl(model: Model, view: MapView, choices: Choices): HTMLElement {
  const options = model.views.map(({ layer }): [string, string] => [layer.id, `${layer.group}: ${layer.title}`]);
  // A layer that is gone is compared no more.
  if (!model.views.some(({ layer }) => layer.id === choices.compared)) choices.compared = "";
  const select = choose("compared", [["", "nothing"], ...options], choices.compared, (id) => {
    choices.compared = id;
    view.compare(id);
  });
  return h("section", { class: "group" }, h("h2", {}, "Swipe"), h("label", { class: "row" }, h("span", { class: "muted" }, "Left of the line"), select));
}

/** Return a button for the basemap, which names its server and asks before anything is loaded from there. */
function basemapControl(model: Model, view: MapView): HTMLElement | null {
  const { basemap } = model.project;
  if (!basemap) return null;
  const { host } = new URL(basemap.origin);
  const body = h("div", { class: "form", "aria-live": "polite" });
  const show = (...children: HTMLElement[]) => {
    const hadFocus = body.contains(document.activeElement);
    fill(body, ...children);
    if (hadFocus) body.querySelector("button")?.focus();
  };
  const off = () => {
    view.showBasemap(false);
    show(button("Show a basemap …", ask));
  };
  const on = () => {
    view.showBasemap(true);
    show(h("p", { class: "muted" }, `From ${host}.`), button("Hide the basemap", off));
  };
  const ask = () => {
    const text = h("p", {}, "The tiles are loaded from ", h("strong", {}, host), ". Whoever runs it learns this computer's address and which places you look at. Nothing else leaves this computer.");
    show(text, h("div", { class: "row" }, button(`Load from ${host}`, on, { class: "primary" }), button("Cancel", off)));
  };
  off();
  return h("section", { class: "group" }, h("h2", {}, "Basemap"), body);
}

/** Colours are set by script: the page's policy forbids style attributes. */
export function paintSwatches<T extends HTMLElement>(element: T): T {
  for (const swatch of element.querySelectorAll<HTMLElement>("[data-color]")) swatch.style.backgroundColor = swatch.dataset["color"] ?? "";
  return element;
}
