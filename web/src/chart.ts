/** The history of rounds as small charts: a figure with its confidence interval against the round. */

import { h, svg } from "./dom.ts";
import { formatScore, formatSize } from "./format.ts";
import type { ClassArea, Round } from "./types.ts";

const WIDTH = 288;
const HEIGHT = 132;
const PAD = { left: 44, right: 10, top: 10, bottom: 24 };

export interface Figure {
  round: number;
  value: number;
  low: number | null;
  high: number | null;
  /** The figure in words. */
  text: string;
}

export interface Point {
  figure: Figure;
  x: number;
  y: number;
  yLow: number;
  yHigh: number;
}

export function iouFigures(rounds: readonly Round[]): Figure[] {
  return rounds.flatMap(({ round, iou, iou_low: low, iou_high: high }) => (iou === null ? [] : [{ round, value: iou, low, high, text: `IoU ${formatScore(iou, low, high)}` }]));
}

/** Return the estimated areas of a class, where there are any. */
export function areaFigures(rounds: readonly Round[], name: string): Figure[] {
  return rounds.flatMap(({ round, areas, unit }) => {
    const found = areas.find((each) => each.name === name);
    if (!found || found.estimate === null) return [];
    return [{ round, value: found.estimate, low: found.low, high: found.high, text: describeArea(found, unit) }];
  });
}

/** Return the top of an axis: a short number that is not far above a value. */
export function axisTop(value: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return ([1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * (1 - 1e-9)) ?? 10) * power;
}

/** Return the figures' positions in a chart from 0 to `top`. */
export function chartPoints(figures: readonly Figure[], top: number): Point[] {
  const inner = WIDTH - PAD.left - PAD.right;
  return figures.map((figure, i) => {
    const x = PAD.left + (figures.length === 1 ? inner / 2 : (inner * i) / (figures.length - 1));
    const { value, low, high } = figure;
    return { figure, x, y: yOf(value / top), yLow: yOf((low ?? value) / top), yHigh: yOf((high ?? value) / top) };
  });
}

function yOf(part: number): number {
  return PAD.top + (1 - Math.min(1, Math.max(0, part))) * (HEIGHT - PAD.top - PAD.bottom);
}

/** `format` writes the numbers of the vertical axis. */
export function historyChart(title: string, figures: readonly Figure[], top: number, format: (value: number) => string): SVGElement {
  const points = chartPoints(figures, top);
  const grid = [0, 0.5, 1].flatMap((part) => [
    svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: yOf(part), y2: yOf(part) }),
    svg("text", { x: PAD.left - 6, y: yOf(part) + 4, "text-anchor": "end" }, format(part * top)),
  ]);
  const line = svg("polyline", { class: "line", points: points.map(({ x, y }) => `${x},${y}`).join(" ") });
  const every = Math.ceil(points.length / 8);
  const marks = points.flatMap(({ figure, x, y, yLow, yHigh }, i) => [
    svg("line", { class: "whisker", x1: x, x2: x, y1: yLow, y2: yHigh }),
    svg("circle", { class: "dot", cx: x, cy: y, r: 3.5 }, svg("title", {}, `round ${figure.round}: ${figure.text}`)),
    i % every === 0 && svg("text", { x, y: HEIGHT - 7, "text-anchor": "middle" }, String(figure.round)),
  ]);
  const last = figures.at(-1);
  const label = last ? `${title} by round. Last: round ${last.round}: ${last.text}` : `${title} by round`;
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...grid, line, ...marks);
}

/** Return the estimated area of a class in words, or why there is none. */
export function describeArea({ estimate, low, high }: ClassArea, unit: Round["unit"]): string {
  if (estimate === null) return "unknown: the random areas show too little of it";
  const interval = low === null || high === null ? "" : ` (95 % CI ${formatSize(low, unit)} to ${formatSize(high, unit)})`;
  return formatSize(estimate, unit) + interval;
}

/** Return the same history as a table. */
export function historyTable(rounds: readonly Round[]): HTMLElement {
  const names = [...new Set(rounds.flatMap(({ areas }) => areas.map(({ name }) => name)))];
  const titles = ["Round", "Tiles", "IoU (95 % CI)", ...names.map((name) => `Area of ${name} (95 % CI)`)];
  const head = h("tr", {}, ...titles.map((text) => h("th", { scope: "col" }, text)));
  const rows = [...rounds].reverse().map((round) => {
    const iou = round.iou === null ? "–" : formatScore(round.iou, round.iou_low, round.iou_high).replace("95 % CI ", "");
    const areas = names.map((name) => areaCell(round.areas.find((each) => each.name === name), round.unit));
    return h("tr", {}, ...[String(round.round), String(round.tiles ?? "–"), iou, ...areas].map((text) => h("td", {}, text)));
  });
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
}

function areaCell(area: ClassArea | undefined, unit: Round["unit"]): string {
  return !area || area.estimate === null ? "–" : describeArea(area, unit).replace("95 % CI ", "");
}
