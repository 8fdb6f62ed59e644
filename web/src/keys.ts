/** What keys do. */

import { isTextField } from "./dom.ts";
import type { Model, Tool } from "./model.ts";

const TOOLS: Partial<Record<string, Tool>> = { i: "inspect", v: "select", p: "polygon", r: "rectangle", s: "subtract", a: "area" };

export const KEYS: readonly (readonly [keys: string, does: string])[] = [
  ["1 to 9", "choose a class, or give it to the selected label"],
  ["I", "read a pixel's values"],
  ["V", "select and edit"],
  ["P, R", "draw polygons, rectangles"],
  ["S", "subtract a polygon from labels"],
  ["A", "draw an area"],
  ["Enter, Esc", "finish, cancel"],
  ["Del", "delete what is selected"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
  ["N, B", "next, previous area to label"],
  ["H", "show only the image, or the maps again"],
  ["?", "these keys"],
];

/** Handle keys of the page; `showHelp` opens the list of keys. */
export function listenToKeys(model: Model, showHelp: () => void): void {
  document.addEventListener("keydown", (event) => {
    if (isTextField(event.target) || document.querySelector("dialog[open]")) return;
    const handled = event.ctrlKey || event.metaKey ? pressWithControl(model, event) : !event.altKey && press(model, event, showHelp);
    if (handled) event.preventDefault();
  });
}

function pressWithControl(model: Model, event: KeyboardEvent): boolean {
  if (!model.canLabel) return false;
  const key = event.key.toLowerCase();
  if (key === "z") {
    if (event.shiftKey) model.editor.redo();
    else model.editor.undo();
    return true;
  }
  if (key === "y") model.editor.redo();
  return key === "y";
}

function press(model: Model, event: KeyboardEvent, showHelp: () => void): boolean {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "?") showHelp();
  else if (key === "h") model.toggleMaps();
  else if (key === "Escape") model.select(null);
  else return model.canLabel && pressToLabel(model, key);
  return key !== "Escape";
}

function pressToLabel(model: Model, key: string): boolean {
  const tool = TOOLS[key];
  const chosen = /^[1-9]$/.test(key) ? model.project.classes[Number(key) - 1] : undefined;
  if (tool) model.setTool(tool);
  else if (chosen) model.chooseClass(chosen.name);
  else if (key === "Delete" || key === "Backspace") model.removeSelected();
  else if (key === "n") model.moveTask(1);
  else if (key === "b") model.moveTask(-1);
  else return false;
  return true;
}
