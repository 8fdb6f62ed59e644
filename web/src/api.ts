/** Requests to the server, with its token. */

import { storage } from "./dom.ts";
import type { AreaOfClass, Bounds, Download, Imported, Job, JobKind, PixelValues, Project, Revision, Round, Shape, Shapes } from "./types.ts";

const HEADER = "X-Geograft-Token";
const STORED = "geograft-token";

export type Kind = "labels" | "areas";

/** An answer other than 2xx: its status and the server's one line. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, detail: string) {
    super(detail);
    this.status = status;
  }
}

/** The file was changed by another program meanwhile; `collection` is what it holds now. */
export class ConflictError extends ApiError {
  readonly collection: Shapes;

  constructor(detail: string, collection: Shapes) {
    super(409, detail);
    this.collection = collection;
  }
}

/** Return the token of the address, or the one kept for this tab; remove it from the address bar. */
export function takeToken(): string {
  const given = location.hash.slice(1);
  if (given) {
    storage("sessionStorage")?.setItem(STORED, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given || (storage("sessionStorage")?.getItem(STORED) ?? "");
}

/** Return the revision of an ETag header, without quotes and without the mark of a weak one. */
export function revisionOf(etag: string | null): string | null {
  return etag === null ? null : etag.replace(/^W\//, "").replace(/^"(.*)"$/, "$1");
}

function isShapes(value: unknown): value is Shapes {
  return typeof value === "object" && value !== null && "features" in value && Array.isArray(value.features);
}

/** Return the error of an answer with this status and text. */
function errorOf(status: number, text: string): ApiError {
  const { detail, collection } = readObject(text);
  const reason = typeof detail === "string" ? detail : `The server answered ${status}.`;
  return status === 409 && isShapes(collection) ? new ConflictError(reason, collection) : new ApiError(status, reason);
}

function readObject(text: string): Record<string, unknown> {
  try {
    const found: unknown = JSON.parse(text);
    return typeof found === "object" && found !== null ? (found as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

export interface Written {
  features: Shape[];
  /** The revision after the write; null where the server did not say. */
  revision: Revision | null;
}

export class Api {
  private readonly token: string;

  constructor(token: string) {
    this.token = token;
  }

  /** The headers that requests for tiles need, too. */
  get headers(): Record<string, string> {
    return { [HEADER]: this.token };
  }

  async request(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = { ...this.headers, ...(init.headers as Record<string, string> | undefined) };
    const response = await fetch(`/api${path}`, { ...init, headers });
    if (!response.ok) throw errorOf(response.status, await response.text());
    return response;
  }

  private async read<T>(path: string, signal?: AbortSignal): Promise<T> {
    return (await (await this.request(path, signal ? { signal } : {})).json()) as T;
  }

  private async write(method: string, path: string, revision: Revision | null, body?: unknown): Promise<Written> {
    const match: Record<string, string> = revision === null ? {} : { "If-Match": `"${revision}"` };
    const content: Record<string, string> = body === undefined ? {} : { "Content-Type": "application/json" };
    const init = { method, headers: { ...match, ...content }, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
    const response = await this.request(path, init);
    const text = await response.text();
    return { features: featuresOf(text ? JSON.parse(text) : null), revision: revisionOf(response.headers.get("ETag")) };
  }

  project(): Promise<Project> {
    return this.read("/project");
  }

  shapes(kind: Kind | "suggestions"): Promise<Shapes> {
    return this.read(`/${kind}`);
  }

  create(kind: Kind, feature: Shape, revision: Revision | null): Promise<Written> {
    return this.write("POST", `/${kind}`, revision, { feature });
  }

  update(kind: Kind, id: string | number, change: Partial<Shape>, revision: Revision | null): Promise<Written> {
    return this.write("PUT", `/${kind}/${id}`, revision, { feature: { type: "Feature", ...change } });
  }

  remove(kind: Kind, id: string | number, revision: Revision | null): Promise<Written> {
    return this.write("DELETE", `/${kind}/${id}`, revision);
  }

  subtract(id: string | number, geometry: Shape["geometry"], revision: Revision | null): Promise<Written> {
    return this.write("POST", `/labels/${id}/subtract`, revision, { geometry });
  }

  pixel(layer: string, lng: number, lat: number): Promise<PixelValues> {
    return this.read(`/layers/${encodeURIComponent(layer)}/pixel?lng=${lng}&lat=${lat}`);
  }

  area(layer: string, threshold: number, signal?: AbortSignal): Promise<AreaOfClass> {
    return this.read(`/layers/${encodeURIComponent(layer)}/area?threshold=${threshold}`, signal);
  }

  jobs(): Promise<Job[]> {
    return this.read("/jobs");
  }

  /** Say what the map shows: west, south, east, north. */
  async lookAt(bounds: Bounds): Promise<void> {
    await this.write("PUT", "/view", null, { bounds });
  }

  /** Images in the view are mapped first. */
  async startJob(kind: JobKind, view: Bounds | null): Promise<void> {
    await this.write("POST", "/jobs", null, { kind, view });
  }

  async cancelJob(id: string): Promise<void> {
    await this.write("DELETE", `/jobs/${id}`, null);
  }

  /** Send a file of polygons or a mask, which becomes labels; `onProgress` hears the fraction that has been sent. */
  upload(file: Blob, className: string, origin: string, onProgress: (fraction: number) => void, signal: AbortSignal): Promise<Imported> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
      request.open("POST", `/api/uploads/labels?${new URLSearchParams({ class: className, origin }).toString()}`);
      request.setRequestHeader(HEADER, this.token);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.upload.onprogress = ({ loaded, total }) => { onProgress(total > 0 ? loaded / total : 0); };
      request.onload = () => {
        if (request.status === 200) resolve(readObject(request.responseText) as unknown as Imported);
        else reject(errorOf(request.status, request.responseText));
      };
      request.onerror = () => { reject(new ApiError(0, "The connection was lost before the file was imported. It may be larger than the server allows.")); };
      request.onabort = () => { reject(new ApiError(0, "Cancelled.")); };
      signal.addEventListener("abort", () => { request.abort(); });
      request.send(file);
    });
  }

  history(): Promise<Round[]> {
    return this.read("/history");
  }

  files(): Promise<Download[]> {
    return this.read("/files");
  }

  async file(name: string): Promise<Blob> {
    return (await this.request(`/files/${encodeURIComponent(name)}`)).blob();
  }
}

/** Return the features of an answer: one feature, a list or a collection of them. */
export function featuresOf(answer: unknown): Shape[] {
  if (Array.isArray(answer)) return answer as Shape[];
  if (isShapes(answer)) return answer.features;
  if (typeof answer === "object" && answer !== null && "geometry" in answer) return [answer as Shape];
  return [];
}
