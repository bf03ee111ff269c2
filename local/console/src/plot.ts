// Small plots of something over the last minutes.

import { draw } from "./page.ts";

export interface Sample {
  /** Milliseconds. */
  time: number;
  value: number;
}

/** What was not looked at for longer is a gap. */
const GAP_MS = 7000;
const [WIDTH, HEIGHT, TOP, BOTTOM] = [300, 84, 6, 4];

/** The smallest round number that is not below a value: 1, 2 or 5 times a power of ten. */
export function ceiling(value: number): number {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 5].find((factor) => factor * power >= value) ?? 10);
}

/** Runs of samples that are close enough to be joined. */
export function runs(samples: readonly Sample[]): Sample[][] {
  const found: Sample[][] = [];
  for (const sample of samples) {
    const last = found.at(-1);
    const before = last?.at(-1);
    if (last !== undefined && before !== undefined && sample.time - before.time <= GAP_MS) last.push(sample);
    else found.push([sample]);
  }
  return found;
}

/** The curve over the `span` milliseconds before `now`, from 0 to `top`. `label` is what is read out. */
export function plot(samples: readonly Sample[], now: number, span: number, top: number, label: string): SVGElement {
  const x = (time: number): string => (WIDTH * (1 - (now - time) / span)).toFixed(1);
  const y = (value: number): string => (HEIGHT - BOTTOM - (Math.min(value, top) / top) * (HEIGHT - TOP - BOTTOM)).toFixed(1);
  const grid = [0, 0.5, 1].map((part) =>
    draw("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(part * top), y2: y(part * top) }),
  );
  const minutes = Array.from({ length: Math.floor(span / 60_000) - 1 }, (_, minute) => {
    const at = x(now - (minute + 1) * 60_000);
    return draw("line", { class: "grid faint", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM });
  });
  const curves = runs(samples.filter(({ time }) => now - time <= span)).flatMap((run) => {
    const points = run.map(({ time, value }) => `${x(time)} ${y(value)}`);
    const [first, last] = [run[0], run.at(-1)];
    if (first === undefined || last === undefined) return [];
    const floor = y(0);
    return [
      draw("path", { class: "area", d: `M${x(first.time)} ${floor}L${points.join("L")}L${x(last.time)} ${floor}Z` }),
      draw("path", { class: "curve", d: `M${points.join("L")}` }),
      ...(last.time === now ? [draw("path", { class: "curve end", d: `M${points.at(-1)}h0` })] : []),
    ];
  });
  const attributes = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, preserveAspectRatio: "none" };
  return draw("svg", attributes, ...grid, ...minutes, ...curves);
}
