// Numbers and states in words.

import { fraction, imagesOf, type Job } from "./job.ts";
import type { Status } from "./wire.ts";

export const STATUS_WORDS: Record<Status, string> = {
  pending: "Queued",
  processing: "Developing",
  completed: "Completed",
  failed: "Failed",
  cancelled: "Cancelled",
};

/** A duration in seconds, as coarse as anybody needs it. */
export function duration(seconds: number): string {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

export function milliseconds(value: number): string {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
}

export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`;
}

/** Where a job stands, beyond its status. */
export function standing(job: Job): string {
  switch (job.status) {
    case "pending": {
      const place =
        job.queuePosition === undefined
          ? "Waiting for a worker"
          : job.queuePosition === 0
            ? "Next in the queue"
            : `${count(job.queuePosition, "job goes", "jobs go")} before it`;
      return job.estimatedTime === undefined ? place : `${place} · done in about ${duration(job.estimatedTime)}`;
    }
    case "processing": {
      const { progress } = job;
      if (progress === undefined) return "A worker has it";
      const left = progress.remaining_ms > 0 ? `about ${duration(progress.remaining_ms / 1000)} left` : "storing what was made";
      return `Step ${progress.step} of ${progress.steps} · ${left}`;
    }
    case "completed":
      return count(job.images.length, "picture");
    case "failed":
      return job.error?.message ?? "No reason is known";
    case "cancelled":
      return job.images.length > 0 ? `${count(job.images.length, "picture")}, as far as it had come` : "Nothing was kept";
  }
}

/** A short status for small places. */
export function mark(job: Job): string {
  const done = fraction(job);
  return job.status === "processing" && done !== undefined ? `${Math.round(done * 100)} %` : STATUS_WORDS[job.status];
}

/** What a job is called. */
export function name(job: Job): string {
  return job.request?.prompt ?? `job ${job.id}`;
}

/** What a screen reader hears when the status of a job changes. */
export function announcement(job: Job): string {
  const what = name(job).slice(0, 80);
  switch (job.status) {
    case "pending":
      return `Queued: ${what}. ${standing(job)}.`;
    case "processing":
      return `Developing: ${what}.`;
    case "completed":
      return `Completed: ${what}, ${count(imagesOf(job), "picture")}.`;
    case "failed":
      return `Failed: ${what}. ${standing(job)}.`;
    case "cancelled":
      return `Cancelled: ${what}. ${standing(job)}.`;
  }
}
