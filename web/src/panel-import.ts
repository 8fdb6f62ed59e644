/** The dialog that imports polygons and masks of other programs into the labels, and dropping files on the page. */

import { button, fill, h } from "./dom.ts";
import type { Model } from "./model.ts";
import type { Imported } from "./types.ts";

const FORMATS = ".gpkg,.geojson,.json,.tif,.tiff,.png";

/** Return the dialog, and what opens it: with a file, or to choose one. */
export function importDialog(model: Model): { dialog: HTMLDialogElement; open: (file?: File) => void } {
  const file = h("input", { type: "file", accept: FORMATS, id: "import-file" });
  const className = h("select", { id: "import-class" });
  const checked = h("input", { type: "checkbox" });
  const progress = h("progress", { max: 1, "aria-label": "Sent", hidden: true });
  const status = h("p", { class: "muted", role: "status" });
  const error = h("p", { class: "error", role: "alert" });
  const start = button("Import", () => { void send(); }, { class: "primary" });
  const cancel = button("Cancel", () => { dialog.close(); });
  let sending: AbortController | null = null;

  const dialog = h("dialog", { class: "import", "aria-labelledby": "import-title" },
    h("h2", { id: "import-title" }, "Import labels"),
    h("p", { class: "muted" }, "Polygons (GeoPackage, GeoJSON) or a mask (GeoTIFF, PNG) of another program. A mask without coordinates has the size of the image."),
    h("label", { for: "import-file" }, "File"), file,
    h("label", { for: "import-class" }, "Class"), className,
    h("label", { class: "check" }, checked, h("span", {}, "A person drew or checked these outlines")),
    progress, status, error,
    h("div", { class: "row" }, start, cancel));
  dialog.addEventListener("close", () => { sending?.abort(); });
  file.addEventListener("change", () => { update(""); });

  function update(fault: string): void {
    start.disabled = sending !== null || !file.files?.length;
    for (const each of [file, className, checked]) each.disabled = sending !== null;
    progress.hidden = sending === null;
    status.textContent = sending ? "Sending …" : "";
    error.textContent = fault;
  }

  async function send(): Promise<void> {
    const chosen = file.files?.[0];
    if (!chosen || sending) return;
    sending = new AbortController();
    progress.value = 0;
    update("");
    try {
      const result = await model.api.upload(chosen, className.value, checked.checked ? "drawn" : "suggested", (part) => {
        progress.value = part;
        if (part === 1) status.textContent = "Checking and importing …";
      }, sending.signal);
      sending = null;
      dialog.close();
      model.say(describeImport(result));
      await model.loadShapes();
    } catch (fault) {
      sending = null;
      update(fault instanceof Error ? fault.message : String(fault));
    }
  }

  function open(given?: File): void {
    const options = model.project.classes.map(({ name }) => h("option", { value: name }, `All are ${name}`));
    fill(className, h("option", { value: "" }, "As the file says"), ...options);
    checked.checked = false;
    file.value = "";
    if (given) {
      const list = new DataTransfer();
      list.items.add(given);
      file.files = list.files;
    }
    update("");
    if (!dialog.open) dialog.showModal();
  }
  return { dialog, open };
}

/** Open the dialog with a file that is dropped anywhere on the page. Elsewhere the browser would leave the page for it. */
export function listenToDrops(target: HTMLElement, open: (file: File) => void): void {
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  target.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    target.classList.add("drop");
  });
  target.addEventListener("dragleave", (event) => {
    if (!target.contains(event.relatedTarget as Node | null)) target.classList.remove("drop");
  });
  target.addEventListener("drop", (event) => {
    target.classList.remove("drop");
    if (!hasFiles(event)) return;
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (file && !document.querySelector("dialog[open]:not(.import)")) open(file);
  });
}

/** Return what an import did, in one line. */
export function describeImport({ added, skipped, suggested, unchecked }: Imported): string {
  const count = Object.values(added).reduce((sum, each) => sum + each, 0);
  const classes = Object.entries(added).map(([name, each]) => `${name} ${each}`).join(", ");
  const left = Object.entries(skipped).filter(([, each]) => each > 0).map(([reason, each]) => `${each} ${reason}`).join(", ");
  const parts = [`${count} ${count === 1 ? "label" : "labels"} imported${classes && `: ${classes}`}.`];
  if (left) parts.push(`Left out: ${left}.`);
  if (unchecked > 0) parts.push(`Check the ${unchecked} in scoring areas: a map is not scored against outlines of a model.`);
  else if (suggested > 0) parts.push("They count as suggested until you have checked them.");
  return parts.join(" ");
}
