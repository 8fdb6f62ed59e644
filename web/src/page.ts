/** The page around the map: header, tools, tabs, notices and the list of keys. */

import { button, fill, h, iconButton, type IconName, storage } from "./dom.ts";
import { formatValue } from "./format.ts";
import { KEYS, listenToKeys } from "./keys.ts";
import { MapView } from "./mapview.ts";
import type { Model, Tool } from "./model.ts";
import { importDialog, listenToDrops } from "./panel-import.ts";
import { labelsPanel } from "./panel-labels.ts";
import { layersPanel } from "./panel-layers.ts";
import { filesPanel, trainPanel } from "./panel-train.ts";

export function buildPage(root: HTMLElement, model: Model): void {
  const map = h("div", { class: "map", role: "application", "aria-label": "Map", "aria-busy": "true" });
  const over = h("div", { class: "overs" });
  const position = h("output", { class: "position", "aria-live": "off" });
  const credit = h("p", { class: "credit" });
  const help = helpDialog();
  const showHelp = () => { help.showModal(); };
  const stage = h("div", { class: "stage" }, map, over, position, credit, notices(model));
  const side = h("aside", { class: "side", "aria-label": "Panels" });
  fill(root, header(model, showHelp), h("main", {}, stage, side), help);
  const { dialog, open: openImport } = importDialog(model);
  if (model.canImport) {
    root.append(dialog);
    listenToDrops(root, openImport);
  }
  const view = openMap(model, { map, over, position, credit }, stage);
  if (view && model.canLabel) stage.append(toolbar(model));
  if (view) stage.append(floatingButtons(model, view));
  side.append(...tabs(panels(model, view, openImport)));
  listenToKeys(model, showHelp);
  addEventListener("beforeunload", (event) => {
    if (model.editor.hasUnsaved) event.preventDefault();
  });
}

function openMap(model: Model, elements: ConstructorParameters<typeof MapView>[1], stage: HTMLElement): MapView | null {
  try {
    return new MapView(model, elements);
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error);
    stage.append(h("div", { class: "blocked" }, h("h1", {}, "The map cannot be drawn"), h("p", {}, "This browser has no WebGL 2, or it is switched off."), h("p", { class: "muted" }, detail)));
    return null;
  }
}

function header(model: Model, showHelp: () => void): HTMLElement {
  const about = h("p", { class: "muted about" });
  const title = h("h1", {});
  const status = h("p", { class: "status", role: "status" });
  const showProject = () => {
    const { title: name, crs, pixel_size_m: size, read_only: readOnly, georeferenced } = model.project;
    title.textContent = name;
    document.title = `${name} – Geograft`;
    const parts = [georeferenced ? crs : "not georeferenced", size === null ? null : `${formatValue(size)} m pixels`, readOnly ? "read-only" : null];
    about.textContent = parts.filter((part) => part !== null).join(" · ");
  };
  const showStatus = () => {
    const saving = { saved: model.canLabel ? "Saved" : "", saving: "Saving …", waiting: "Not saved yet; trying again" }[model.status];
    const lost = { connected: "", lost: "No connection to the server; trying again", refused: "The server was started again: open the address that it printed" }[model.connection];
    status.textContent = lost || saving;
    status.classList.toggle("warn", lost !== "" || model.status === "waiting");
  };
  model.on(["project"], showProject);
  model.on(["status"], showStatus);
  showProject();
  showStatus();
  const buttons = h("div", { class: "row" }, iconButton("help", "Keys (?)", showHelp), iconButton("theme", "Dark or light", toggleTheme));
  return h("header", {}, h("div", { class: "grow titles" }, title, about), status, buttons);
}

const THEME = "geograft-theme";

export function restoreTheme(): void {
  const kept = storage("localStorage")?.getItem(THEME);
  if (kept) document.documentElement.dataset["theme"] = kept;
}

function toggleTheme(): void {
  const { dataset } = document.documentElement;
  const dark = dataset["theme"] ? dataset["theme"] === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset["theme"] = dark ? "light" : "dark";
  storage("localStorage")?.setItem(THEME, dataset["theme"]);
}

function floatingButtons(model: Model, view: MapView): HTMLElement {
  const hide = iconButton("eye", "Only the image (H)", () => { model.toggleMaps(); });
  const update = () => { hide.setAttribute("aria-pressed", String(model.hidesMaps)); };
  model.on(["views"], update);
  update();
  return h("div", { class: "floating" }, iconButton("fit", "Show everything", () => { view.fit(); }), hide);
}

function toolbar(model: Model): HTMLElement {
  const tools: [Tool, IconName, string][] = [
    ["inspect", "inspect", "Read a pixel's values (I)"],
    ["select", "select", "Select and edit (V)"],
    ["polygon", "polygon", "Draw a polygon (P)"],
    ["rectangle", "rectangle", "Draw a rectangle (R)"],
    ["subtract", "subtract", "Subtract a polygon (S)"],
    ["area", "area", "Draw an area (A)"],
  ];
  const buttons = tools.map(([tool, name, label]) => ({ tool, element: iconButton(name, label, () => { model.setTool(tool); }) }));
  const undo = iconButton("undo", "Undo (Ctrl+Z)", () => { model.editor.undo(); });
  const redo = iconButton("redo", "Redo (Ctrl+Shift+Z)", () => { model.editor.redo(); });
  const update = () => {
    for (const { tool, element } of buttons) element.setAttribute("aria-pressed", String(tool === model.tool));
    undo.disabled = !model.editor.canUndo;
    redo.disabled = !model.editor.canRedo;
  };
  model.on(["tool", "shapes"], update);
  update();
  return h("div", { class: "toolbar", role: "toolbar", "aria-label": "Tools" }, ...buttons.map(({ element }) => element), undo, redo);
}

interface Panel {
  name: string;
  element: HTMLElement;
}

function panels(model: Model, view: MapView | null, openImport: () => void): Panel[] {
  const found: Panel[] = view ? [{ name: "Layers", element: layersPanel(model, view) }] : [];
  if (model.project.kind === "project") found.push({ name: "Labels", element: labelsPanel(model, openImport) });
  if (model.canTrain) found.push({ name: "Train", element: trainPanel(model) });
  found.push({ name: "Files", element: filesPanel(model) });
  return found;
}

/** Return the list of tabs and their panels, with the keys of the ARIA pattern for tabs. */
function tabs(entries: Panel[]): HTMLElement[] {
  const buttons = entries.map(({ name }, i) => h("button", { type: "button", role: "tab", id: `tab-${i}`, "aria-controls": `panel-${i}` }, name));
  const bodies = entries.map(({ element }, i) => h("div", { role: "tabpanel", id: `panel-${i}`, "aria-labelledby": `tab-${i}`, tabindex: 0 }, element));
  const show = (shown: number) => {
    buttons.forEach((each, i) => {
      each.setAttribute("aria-selected", String(i === shown));
      each.tabIndex = i === shown ? 0 : -1;
    });
    bodies.forEach((each, i) => (each.hidden = i !== shown));
  };
  buttons.forEach((each, i) => {
    each.addEventListener("click", () => { show(i); });
    each.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      const next = (i + step + buttons.length) % buttons.length;
      show(next);
      buttons[next]?.focus();
      event.stopPropagation();
    });
  });
  show(0);
  return [h("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, ...buttons), ...bodies];
}

function notices(model: Model): HTMLElement {
  const area = h("div", { class: "notices", "aria-live": "polite" });
  const clear = () => { fill(area); };
  let timer = 0;
  model.on(["notice"], () => {
    const { notice } = model;
    if (!notice) return;
    clearTimeout(timer);
    const { action } = notice;
    const run = action && button(action.label, () => {
      action.run();
      clear();
    }, { class: "link" });
    fill(area, h("div", { class: notice.isError ? "notice error" : "notice", role: notice.isError ? "alert" : "status" }, h("p", {}, notice.text), run ?? null, iconButton("close", "Dismiss", clear)));
    if (!action && !notice.isError) timer = window.setTimeout(clear, 8000);
  });
  return area;
}

function helpDialog(): HTMLDialogElement {
  const rows = KEYS.flatMap(([keys, does]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, does)]);
  const dialog = h("dialog", { "aria-labelledby": "help-title" }, h("h2", { id: "help-title" }, "Keys"), h("dl", {}, ...rows));
  dialog.append(button("Close", () => { dialog.close(); }, { class: "primary" }));
  return dialog;
}
