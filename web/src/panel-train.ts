/** The panels for training and mapping, and for the files to take away. */

import { areaFigures, axisTop, describeArea, historyChart, historyTable, iouFigures } from "./chart.ts";
import { button, fill, h, icon, rebuild } from "./dom.ts";
import { formatBytes, formatScore, formatSize } from "./format.ts";
import { currentJob, isActive, summarize } from "./jobs.ts";
import type { Model } from "./model.ts";
import type { Download, Job, JobKind, Round } from "./types.ts";

const MAX_AREA_CHARTS = 3;

export function trainPanel(model: Model): HTMLElement {
  const job = h("section", { class: "card" });
  const history = h("section", { class: "group" });
  model.on(["jobs", "project", "shapes"], () => { rebuild(job, () => { fill(job, ...jobParts(model)); }); });
  model.on(["results", "project"], () => { rebuild(history, () => { fill(history, ...historyParts(model)); }); });
  fill(job, ...jobParts(model));
  fill(history, ...historyParts(model));
  return h("div", {}, job, history);
}

function jobParts(model: Model): (HTMLElement | null)[] {
  const job = currentJob(model.jobs);
  if (job && isActive(job)) return [progress(job), cancelButton(model, job)];
  const start = button("Train and map", () => { startJob(model, "go"); }, { class: "primary wide", disabled: !model.canTrain, "data-key": "start" });
  const labelled = model.editor.list("areas").filter((area) => area.content.properties["labelled"] === true).length;
  const text = labelled === 0 ? "Label an area first: draw it, label all inside, and say so." : `From ${labelled} labelled ${labelled === 1 ? "area" : "areas"}.`;
  return [start, h("p", { class: "muted" }, text), job?.kind === "go" ? outcome(job) : null];
}

function startJob(model: Model, kind: JobKind): void {
  void model.api.startJob(kind, model.view).then(() => model.loadResults()).catch(model.fail);
}

function progress(job: Job): HTMLElement {
  const { title, fraction, detail } = summarize(job);
  const bar = h("progress", { max: 1, "aria-label": title, ...(fraction === null ? {} : { value: fraction }) });
  return h("div", { class: "form" }, h("h2", {}, title), bar, detail ? h("p", { class: "muted", "aria-live": "off" }, detail) : null);
}

function cancelButton(model: Model, job: Job): HTMLElement {
  return button("Cancel", () => void model.api.cancelJob(job.id).catch(model.fail), { "data-key": "cancel" });
}

/** What the last job came to. What a training printed is no part of it: scores are in the rounds, and files in their panel. */
function outcome(job: Job): HTMLElement {
  const { title, detail } = summarize(job);
  const isError = job.state === "failed";
  const said = job.state === "done" ? "" : detail;
  return h("p", { class: `outcome ${isError ? "error" : "muted"}`, role: isError ? "alert" : "status" }, `Last time: ${title.toLowerCase()}${said ? `. ${said}` : "."}`);
}

function historyParts(model: Model): (HTMLElement | null)[] {
  const { rounds } = model;
  const last = rounds.at(-1);
  const title = h("h2", {}, "Rounds");
  if (!last) return [title, h("p", { class: "muted" }, "After a training with labelled random areas, its score and the areas of the classes are shown here.")];
  const score = last.iou === null ? h("p", { class: "muted" }, "Not scored: that needs labelled random areas.") : h("p", {}, h("strong", {}, `IoU ${formatScore(last.iou, last.iou_low, last.iou_high)}`));
  const scores = iouFigures(rounds);
  const chart = scores.length > 0 ? historyChart("IoU", scores, 1, String) : null;
  return [title, score, chart && h("div", {}, chart), ...areaParts(rounds, last), h("details", { "data-key": "table" }, h("summary", { "data-key": "summary" }, "As a table"), historyTable(rounds))];
}

function areaParts(rounds: readonly Round[], last: Round): HTMLElement[] {
  const charts = last.areas.length <= MAX_AREA_CHARTS;
  return last.areas.map((area) => {
    const text = h("p", {}, `Area of ${area.name}: `, h("strong", {}, describeArea(area, last.unit)), h("span", { class: "muted" }, `; mapped ${formatSize(area.mapped, last.unit)}`));
    const figures = charts ? areaFigures(rounds, area.name) : [];
    const top = axisTop(Math.max(...figures.map(({ value, high }) => high ?? value)));
    const chart = figures.length > 1 ? historyChart(`Area of ${area.name}`, figures, top, (value) => (value === 0 ? "0" : formatSize(value, last.unit))) : null;
    return h("div", {}, text, chart && h("div", {}, chart));
  });
}

export function filesPanel(model: Model): HTMLElement {
  const list = h("section", { class: "group" });
  const job = h("section", { class: "group" });
  const update = () => {
    const made = model.files.filter(({ bytes }) => bytes !== null);
    const empty = h("p", { class: "muted" }, "There are no files yet. After training, the maps, polygons, report and model are here.");
    fill(list, h("h2", {}, "Downloads"), made.length === 0 ? empty : h("ul", {}, ...made.map((file) => fileRow(model, file))));
    fill(job, ...exportParts(model));
  };
  const panel = h("div", {}, list, job);
  model.on(["results", "project", "jobs"], () => { rebuild(panel, update); });
  update();
  const licences = h("a", { href: "/LICENSES.txt", target: "_blank", rel: "noopener" }, "Licences of this page's libraries");
  return h("div", {}, panel, h("p", { class: "muted" }, licences));
}

/** Return the files of the model that a job can make, and how that job goes. */
function exportParts(model: Model): (HTMLElement | null)[] {
  const missing = model.files.filter(({ bytes }) => bytes === null);
  const job = currentJob(model.jobs);
  const own = job && job.kind !== "go" ? job : null;
  const active = job !== null && isActive(job);
  if (own && active) return [h("div", { class: "card" }, progress(own), cancelButton(model, own))];
  const failed = own?.state === "failed" ? outcome(own) : null;
  if (missing.length === 0) return [failed];
  const rows = missing.map(({ title, kind }) => h("li", { class: "row export" }, h("span", { class: "grow" }, title), button("Prepare", () => { if (kind) startJob(model, kind); }, { disabled: active, "aria-label": `Prepare: ${title}`, "data-key": `prepare ${title}` })));
  const hint = active ? h("p", { class: "muted" }, "When the training has ended, its model can be exported.") : null;
  return [h("h2", {}, "The model"), h("ul", {}, ...rows), hint, failed];
}

/** Names of the files that are read now. */
const saving = new Set<string>();

function fileRow(model: Model, file: Download): HTMLElement {
  const onclick = () => {
    saving.add(file.name);
    row.disabled = true;
    void save(model, file).catch(model.fail).finally(() => {
      saving.delete(file.name);
      model.emit("results");
    });
  };
  const text = h("span", { class: "grow" }, file.title, h("small", { class: "muted" }, file.name));
  const row = h("button", { type: "button", class: "choice", onclick, disabled: saving.has(file.name), "data-key": file.name }, text, h("span", { class: "muted" }, formatBytes(file.bytes ?? 0)), icon("down"));
  return h("li", {}, row);
}

/** Read the file with the token, which a link could not send, and give it to the browser. */
async function save(model: Model, file: Download): Promise<void> {
  const url = URL.createObjectURL(await model.api.file(file.name));
  h("a", { href: url, download: file.name }).click();
  setTimeout(() => { URL.revokeObjectURL(url); }, 60_000);
}
