/** The panel for labelling: classes, what is selected, and what to label next. */

import { button, fill, h, iconButton, rebuild } from "./dom.ts";
import type { Item } from "./editor.ts";
import { formatArea } from "./format.ts";
import { areaOf, isSimple } from "./geometry.ts";
import { mayReshape, type Model } from "./model.ts";
import { paintSwatches } from "./panel-layers.ts";
import { isRandom, type Task, textOf } from "./work.ts";

export function labelsPanel(model: Model, openImport: () => void): HTMLElement {
  const classes = h("section", { class: "group" });
  const selection = h("section", { "aria-live": "polite" });
  const work = h("section", { class: "group" });
  const update = () => {
    fill(classes, ...classList(model), model.canImport && button("Import …", () => { openImport(); }, { "data-key": "import" }));
    fill(selection, selectionCard(model));
    fill(work, ...workList(model));
  };
  model.on(["project", "shapes", "selection", "tool", "task"], () => { rebuild(panel, update); });
  const panel = h("div", {}, classes, selection, work);
  update();
  return panel;
}

function classList(model: Model): HTMLElement[] {
  const counts = new Map<string, number>();
  for (const { content } of model.editor.list("labels")) {
    const name = textOf(content.properties["class"]);
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const selected = model.selectedItem;
  const current = selected?.kind === "labels" ? textOf(selected.content.properties["class"]) : model.className;
  const rows = model.project.classes.map(({ name, color }, i) => {
    const key = i < 9 ? h("kbd", {}, String(i + 1)) : null;
    const parts = [h("span", { class: "swatch", "data-color": color }), h("span", { class: "grow" }, name), h("span", { class: "muted" }, String(counts.get(name) ?? 0)), key];
    const onclick = () => { model.chooseClass(name); };
    return h("button", { type: "button", class: "choice", "aria-pressed": String(name === current), "data-key": `class-${name}`, disabled: !model.canLabel, onclick }, ...parts);
  });
  const total = model.editor.list("labels").length;
  const hint = total === 0 && model.canLabel ? h("p", { class: "muted" }, "No labels yet. Choose a class and draw on the map: P for polygons, R for rectangles.") : null;
  return [h("h2", {}, "Classes"), paintSwatches(h("div", { class: "choices" }, ...rows)), ...(hint ? [hint] : [])];
}

function selectionCard(model: Model): HTMLElement | null {
  const item = model.selectedItem;
  if (!item) return null;
  const { properties, geometry } = item.content;
  const name = item.kind === "labels" ? `Label: ${textOf(properties["class"])}` : "Area";
  const size = model.project.georeferenced ? `About ${formatArea(areaOf(geometry))}, ` : "";
  const close = iconButton("close", "Deselect (Esc)", () => { model.select(null); });
  const remove = model.canLabel && mayReshape(item) ? iconButton("trash", "Delete (Del)", () => { model.removeSelected(); }, { class: "icon-button danger" }) : null;
  const title = h("div", { class: "row" }, h("h2", { class: "grow" }, name), remove, close);
  const origin = h("p", { class: "muted" }, `${size}${textOf(properties["origin"]) || "origin unknown"}`);
  const form = item.kind === "areas" ? areaForm(model, item) : acceptButton(model, item);
  return h("div", { class: "card" }, title, origin, shapeHint(model, item), form);
}

function shapeHint(model: Model, item: Item): HTMLElement | null {
  if (!model.canLabel) return null;
  if (!mayReshape(item)) return h("p", { class: "muted" }, "Part of the random sample: it can be labelled, not moved or deleted.");
  if (!isSimple(item.content.geometry)) return h("p", { class: "muted" }, "It has holes or several parts. Subtract from it here, or move its vertices in QGIS.");
  return h("p", { class: "muted" }, "Drag a vertex to move it, a small dot to add one; right-click removes one.");
}

function acceptButton(model: Model, item: Item): HTMLElement | null {
  if (!model.canLabel || item.content.properties["origin"] !== "suggested") return null;
  return button("I checked this outline", () => { model.setProperties(item, { origin: "drawn" }); }, { title: "Its origin becomes drawn", "data-key": "accept" });
}

function areaForm(model: Model, item: Item): HTMLElement {
  const { properties } = item.content;
  const use = isRandom(properties) ? "Scores the map: no pixel of it is used for training." : "Used for training, not for scoring: somebody chose it, so it is no random sample.";
  const box = h("input", { type: "checkbox", checked: properties["labelled"] === true, disabled: !model.canLabel, "data-key": "labelled" });
  box.addEventListener("change", () => { model.setProperties(item, { labelled: box.checked }); });
  return h("div", { class: "form" }, h("p", { class: "muted" }, use), h("label", { class: "check" }, box, h("span", {}, "Everything inside is labelled")));
}

function workList(model: Model): (HTMLElement | null)[] {
  const { tasks, task } = model;
  const title = h("h2", {}, "Label next");
  if (tasks.length === 0) {
    const areas = model.editor.list("areas").length;
    const text = areas === 0 ? "Draw an area (A) around what you label: only what lies in an area counts." : "Every area is labelled. Train, and the model suggests the next.";
    return [title, h("p", { class: "muted" }, text)];
  }
  const move = h("div", { class: "row" },
    button("Previous", () => { model.moveTask(-1); }, { "data-key": "previous", "aria-keyshortcuts": "b" }),
    button("Next", () => { model.moveTask(1); }, { class: "primary", "data-key": "next", "aria-keyshortcuts": "n" }),
    h("span", { class: "muted grow end" }, `${tasks.length} to do`));
  return [title, move, task ? taskCard(model, task) : h("p", { class: "muted" }, "Next (N) goes to the first.")];
}

function taskCard(model: Model, task: Task): HTMLElement {
  const { rank } = task.properties;
  const title = `${task.key === null ? "Suggestion" : "Area"}${typeof rank === "number" ? ` ${rank}` : ""}, ${task.role}`;
  const action = task.key === null
    ? button("Label this area", () => { model.acceptTask(); }, { "data-key": "take" })
    : button("All inside is labelled", () => { model.finishTask(); }, { "data-key": "finish" });
  return h("div", { class: "card" }, h("h3", {}, title), h("p", { class: "muted" }, `Why: ${task.reason}.`), model.canLabel && action);
}
