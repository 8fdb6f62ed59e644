/** Starts the page: takes the token, reads the project, listens to the server. */

import "./style.css";

import { Api, ApiError, takeToken } from "./api.ts";
import { button, fill, h } from "./dom.ts";
import { listen, type ServerEvent } from "./events.ts";
import { type Connection, Model } from "./model.ts";
import { buildPage, restoreTheme } from "./page.ts";
import type { Job, QuickState, Revision } from "./types.ts";

async function start(root: HTMLElement): Promise<void> {
  const api = new Api(takeToken());
  fill(root, h("main", { class: "blocked", "aria-busy": "true" }, h("p", { role: "status" }, "Reading the project …")));
  const project = await api.project().catch((error: unknown) => {
    showFailure(root, error);
  });
  if (!project) return;
  const model = new Model(api, project);
  buildPage(root, model);
  await Promise.all([model.loadShapes(), model.loadResults()]).catch(model.fail);
  const stop = new AbortController();
  const onState = (isConnected: boolean, error?: unknown) => {
    const refused = error instanceof ApiError && error.status === 401;
    hearState(model, isConnected ? "connected" : refused ? "refused" : "lost");
    if (refused) stop.abort();
  };
  await listen(() => api.request("/events"), { onEvent: (event) => { hear(model, event); }, onState }, stop.signal);
}

function hear(model: Model, { name, data }: ServerEvent): void {
  if (name === "job") model.hearJob(data as Job);
  else if (name === "project" && String((data as { revision: Revision }).revision) !== String(model.project.revision)) void model.reload().catch(model.fail);
  else if (name === "quick") model.hearQuick(data as QuickState);
  else if (name === "labels") model.hearLabels((data as { revision: Revision }).revision);
}

/** After a lost connection, what happened meanwhile is read. */
function hearState(model: Model, connection: Connection): void {
  const returned = connection === "connected" && model.connection !== "connected";
  model.hearConnection(connection);
  if (returned) void model.reload().then(() => model.loadShapes()).catch(model.fail);
}

function showFailure(root: HTMLElement, error: unknown): void {
  const refused = error instanceof ApiError && (error.status === 401 || error.status === 403);
  const title = refused ? "This address lacks its token" : "The project cannot be read";
  const text = refused
    ? "Open the whole address that geograft serve printed, with all that follows #."
    : error instanceof ApiError ? error.message : "The server does not answer. Is geograft serve still running?";
  const again = button("Try again", () => { void start(root); }, { class: "primary" });
  fill(root, h("main", { class: "blocked" }, h("h1", {}, title), h("p", { role: "alert" }, text), again));
}

restoreTheme();
// The address of a server that was started again differs in its token only: browsers do not load the page again for that.
addEventListener("hashchange", () => { location.reload(); });
const root = document.getElementById("page");
if (root) void start(root);
