/** The panels for training and mapping, and for the files to take away. */

import { historyChart, historyTable } from "./chart.ts";
import { button, fill, h, icon } from "./dom.ts";
import { formatArea, formatBytes, formatScore } from "./format.ts";
import { currentJob, summarize } from "./jobs.ts";
import type { Model } from "./model.ts";
import type { Download, Job } from "./types.ts";

export function trainPanel(model: Model): HTMLElement {
  const job = h("section", { class: "card" });
  const history = h("section", { class: "group" });
  model.on(["jobs", "project", "shapes"], () => { fill(job, ...jobParts(model)); });
  model.on(["results", "project"], () => { fill(history, ...historyParts(model)); });
  fill(job, ...jobParts(model));
  fill(history, ...historyParts(model));
  return h("div", {}, job, history);
}

function jobParts(model: Model): (HTMLElement | null)[] {
  const job = currentJob(model.jobs);
  const summary = job ? summarize(job) : null;
  if (job && summary?.isActive) return [progress(job), cancelButton(model, job)];
  const start = button("Train and map", () => void model.api.startJob().then(() => model.loadResults()).catch(model.fail), { class: "primary wide", disabled: !model.canTrain });
  const labelled = model.editor.list("areas").filter((area) => area.content.properties["labelled"] === true).length;
  const text = labelled === 0 ? "Label an area first: draw it, label all inside, and say so." : `From ${labelled} labelled ${labelled === 1 ? "area" : "areas"}.`;
  return [start, h("p", { class: "muted" }, text), job && summary ? outcome(job, summary.title, summary.detail) : null];
}

function progress(job: Job): HTMLElement {
  const { title, fraction, detail } = summarize(job);
  const bar = h("progress", { max: 1, "aria-label": title, ...(fraction === null ? {} : { value: fraction }) });
  return h("div", {}, h("h2", {}, title), bar, h("p", { class: "muted", "aria-live": "off" }, detail || "…"));
}

function cancelButton(model: Model, job: Job): HTMLElement {
  return button("Cancel", () => void model.api.cancelJob(job.id).catch(model.fail));
}

function outcome(job: Job, title: string, detail: string): HTMLElement {
  const isError = job.state === "failed";
  return h("p", { class: isError ? "error" : "muted", role: isError ? "alert" : "status" }, `Last time: ${title.toLowerCase()}${detail ? `. ${detail}` : "."}`);
}

function historyParts(model: Model): (HTMLElement | null)[] {
  const { rounds } = model;
  const last = rounds.at(-1);
  const title = h("h2", {}, "Rounds");
  if (!last) return [title, h("p", { class: "muted" }, "After the first training, its score and mapped area are shown here.")];
  const area = last.area_m2 === null ? null : h("p", {}, "Mapped area ", h("strong", {}, formatArea(last.area_m2)));
  const score = last.iou === null ? h("p", { class: "muted" }, "Not scored: that needs labelled random areas.") : h("p", {}, h("strong", {}, `IoU ${formatScore(last.iou, last.iou_low, last.iou_high)}`));
  const chart = h("div", {});
  if (rounds.some((round) => round.iou !== null)) chart.append(historyChart(rounds));
  return [title, score, area, chart, h("details", {}, h("summary", {}, "As a table"), historyTable(rounds))];
}

export function filesPanel(model: Model): HTMLElement {
  const list = h("section", { class: "group" });
  const update = () => {
    const { files } = model;
    const empty = h("p", { class: "muted" }, "There are no files yet. After training, the maps, polygons, report and model are here.");
    fill(list, h("h2", {}, "Downloads"), files.length === 0 ? empty : h("ul", {}, ...files.map((file) => fileRow(model, file))));
  };
  model.on(["results", "project"], update);
  update();
  const licences = h("a", { href: "/LICENSES.txt", target: "_blank", rel: "noopener" }, "Licences of this page's libraries");
  return h("div", {}, list, h("p", { class: "muted" }, licences));
}

function fileRow(model: Model, file: Download): HTMLElement {
  const onclick = () => {
    row.disabled = true;
    void save(model, file).catch(model.fail).finally(() => (row.disabled = false));
  };
  const text = h("span", { class: "grow" }, file.title, h("small", { class: "muted" }, file.name));
  const row = h("button", { type: "button", class: "choice", onclick }, text, h("span", { class: "muted" }, formatBytes(file.bytes)), icon("down"));
  return h("li", {}, row);
}

/** Read the file with the token, which a link could not send, and give it to the browser. */
async function save(model: Model, file: Download): Promise<void> {
  const url = URL.createObjectURL(await model.api.file(file.name));
  h("a", { href: url, download: file.name }).click();
  setTimeout(() => { URL.revokeObjectURL(url); }, 60_000);
}
