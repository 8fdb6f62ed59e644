/** Jobs in words. */

import { formatCount, formatSeconds } from "./format.ts";
import type { Job, JobKind } from "./types.ts";

export interface JobSummary {
  title: string;
  /** 0 to 1; null where it is unknown. */
  fraction: number | null;
  detail: string;
  isActive: boolean;
}

export function isActive(job: Job): boolean {
  return job.state === "queued" || job.state === "running";
}

/** Return the job to show: the active one, else the last. */
export function currentJob(jobs: readonly Job[]): Job | null {
  return jobs.find((job) => job.state === "running") ?? jobs.find(isActive) ?? jobs.at(-1) ?? null;
}

export function mergeJob(jobs: readonly Job[], job: Job): Job[] {
  return jobs.some((each) => each.id === job.id) ? jobs.map((each) => (each.id === job.id ? job : each)) : [...jobs, job];
}

const STARTING: Record<JobKind, string> = {
  go: "starting",
  bundle: "packing the model",
  onnx: "exporting the model to ONNX",
  deepness: "exporting the model for Deepness",
};

function capitalized(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

export function summarize(job: Job): JobSummary {
  const active = isActive(job);
  if (job.state === "running") {
    const { done, total } = job;
    const fraction = done !== null && total !== null && total > 0 ? Math.min(1, done / total) : null;
    return { title: capitalized(job.step || STARTING[job.kind]), fraction, detail: progressOf(job), isActive: active };
  }
  const titles = { queued: "Waiting for the server to start again", done: "Done", failed: "Failed", cancelled: "Cancelled" };
  return { title: titles[job.state], fraction: null, detail: job.message ?? "", isActive: active };
}

function progressOf(job: Job): string {
  const { done, total, seconds_left: left } = job;
  const counted = done !== null && total !== null && total > 0 ? `${formatCount(done)} of ${formatCount(total)}` : "";
  const time = left === null ? "" : `${formatSeconds(left)} left`;
  return [counted, time].filter(Boolean).join(" · ") || (job.message ?? "");
}
